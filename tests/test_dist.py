"""What people install: the rules for a wheel, on made-up ones; marked slow, the real sdist and wheel."""

import importlib.util
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EPOCH = 1_700_000_000  # so that two builds of the same sources can be compared


@pytest.fixture(scope="module")
def make_dist():
    spec = importlib.util.spec_from_file_location("make_dist", ROOT / "scripts" / "make_dist.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# ------------------------------------------------------------------------------------------------------ made-up wheels


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A checkout as far as `wheel_problems` reads it."""
    root = tmp_path / "checkout"
    for name, text in {
        "ard_fast/__init__.py": "",
        "ard_fast/_version.py": '__version__ = "1.2.3"\n',
        "ard_fast/training/settings/ard.yaml": "eps: 8\n",
        "ard_fast/_build_info.py": "LEFT = 'over'\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def write_wheel(folder: Path, changes: dict[str, str | None], name: str = "ard_fast-1.2.3-cp310-abi3-linux_x86_64.whl"):
    """The wheel of `sources` with `changes` to its files (None: left out)."""
    content = {
        "ard_fast/__init__.py": "",
        "ard_fast/_version.py": '__version__ = "1.2.3"\n',
        "ard_fast/training/settings/ard.yaml": "eps: 8\n",
        "ard_fast/_build_info.py": "",
        "ard_fast/_C.abi3.so": "\0csrc/bindings/one.cpp\0",
        "ard_fast-1.2.3.dist-info/licenses/LICENSE": "",
        "ard_fast-1.2.3.dist-info/METADATA": "Version: 1.2.3\nRequires-Dist: numpy\nRequires-Dist: torch>=2.11\n",
    }
    with zipfile.ZipFile(folder / name, "w") as archive:
        for inside, text in {**content, **changes}.items():
            if text is not None:
                archive.writestr(inside, text)
    return folder / name


def test_wheel_as_it_should_be_has_no_problems(make_dist, sources: Path, tmp_path: Path) -> None:
    assert make_dist.wheel_problems(write_wheel(tmp_path, {}), sources) == []
    repaired = "ard_fast-1.2.3-cp310-abi3-manylinux2014_x86_64.manylinux_2_17_x86_64.whl"
    assert make_dist.wheel_problems(write_wheel(tmp_path, {}, repaired), sources) == []


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"ard_fast/training/settings/ard.yaml": None}, "ard_fast/training/settings/ard.yaml is missing"),
        ({"ard_fast/__init__.py": "changed"}, "ard_fast/__init__.py is not as in {root}"),
        ({"ard_fast/deleted_since.py": ""}, "ard_fast/deleted_since.py does not belong in the wheel"),
        ({"tests/test_x.py": ""}, "tests/test_x.py does not belong in the wheel"),
        ({"ard_fast/csrc/testing/emulator.h": ""}, "ard_fast/csrc/testing/emulator.h does not belong in the wheel"),
        ({"ard_fast/_emulator.abi3.so": ""}, "ard_fast/_emulator.abi3.so does not belong in the wheel"),
        ({"ard_fast/_C.abi3.so": "\0/home/me/csrc/one.h\0"}, "ard_fast/_C.abi3.so holds the path /home/me/csrc/one.h"),
        ({"ard_fast/_C.abi3.so": None}, "ard_fast/_C.abi3.so is missing"),
        ({"ard_fast/_build_info.py": None}, "ard_fast/_build_info.py is missing"),
        (
            {"ard_fast-1.2.3.dist-info/licenses/LICENSE": None},
            "ard_fast-1.2.3.dist-info/licenses/LICENSE is missing",
        ),
        (
            {"ard_fast-1.2.3.dist-info/METADATA": "Version: 1.2.3\nRequires-Dist: torch<2.14,>=2.11\n"},
            "METADATA: requires ['torch<2.14,>=2.11'], expected torch>=2.11 and no newest version",
        ),
        (
            {"ard_fast-1.2.3.dist-info/METADATA": "Version: 1.2\nRequires-Dist: torch>=2.11\n"},
            "METADATA: version 1.2, expected 1.2.3",
        ),
    ],
)
def test_wheel_problem_is_named(
    make_dist, sources: Path, tmp_path: Path, changes: dict[str, str | None], problem: str
) -> None:
    wheel = write_wheel(tmp_path, changes)
    assert make_dist.wheel_problems(wheel, sources) == [problem.format(root=sources)]


def test_wheel_for_one_python_or_of_another_version_is_named(make_dist, sources: Path, tmp_path: Path) -> None:
    for name in ("ard_fast-1.2.3-cp311-cp311-linux_x86_64.whl", "ard_fast-1.2.4-cp310-abi3-linux_x86_64.whl"):
        (problem,) = make_dist.wheel_problems(write_wheel(tmp_path, {}, name), sources)
        assert problem == f"{name}: expected ard_fast-1.2.3-cp310-abi3-PLATFORM.whl"


def test_folder_with_an_earlier_dist_is_refused(make_dist, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The earlier wheel would be taken for the new one."""
    (tmp_path / "ard_fast-0.0.1.tar.gz").touch()
    with pytest.raises(SystemExit):
        make_dist.main([str(tmp_path)])
    assert "expected a folder without a dist" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------------------- real builds


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's own files, with the leftovers of earlier builds in it."""
    target = tmp_path_factory.mktemp("checkout") / "ard-fast"
    ignore = shutil.ignore_patterns(".git", "build", "build-*", "*.egg-info", "__pycache__", "*.so", "_build_info.py")
    shutil.copytree(ROOT, target, ignore=ignore)
    (target / "ard_fast" / "_C.abi3.so").write_bytes(b"left over")
    (target / "ard_fast" / "_C_old.abi3.so").write_bytes(b"left over")
    (target / "ard_fast" / "_build_info.py").write_text("SOURCE_FINGERPRINT = 'left over'\n")
    (target / "tests" / "__pycache__").mkdir()
    (target / "tests" / "__pycache__" / "left_over.cpython-311.pyc").touch()
    built = target / "build" / f"lib.linux-x86_64-{sys.implementation.cache_tag}" / "ard_fast"
    built.mkdir(parents=True)
    (built / "deleted_since.py").touch()
    return target


def call_hook(source: Path, hook: str, out: Path, *, hide_torch: bool = False) -> Path:
    """Call a hook of the backend as pip does; the path of what it made."""
    code = f"""
import os, sys
os.environ.update(SOURCE_DATE_EPOCH="{EPOCH}", ARD_FAST_CUDA="0")
if {hide_torch}:
    class NoTorch:
        def find_spec(self, name, path=None, target=None):
            if name.partition(".")[0] == "torch":
                raise ModuleNotFoundError("No module named 'torch'", name="torch")
    sys.meta_path.insert(0, NoTorch())
    sys.path.insert(0, "build_backend")
    import found
    found.find_torch = lambda: (None, "hidden by the test")
else:
    sys.path.insert(0, "build_backend")
import backend
print("MADE", getattr(backend, {hook!r})({str(out)!r}))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=source, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return out / done.stdout.rpartition("MADE ")[2].strip()


@pytest.fixture(scope="module")
def sdist(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sdist, made where there is no torch."""
    return call_hook(checkout, "build_sdist", tmp_path_factory.mktemp("sdist"), hide_torch=True)


@pytest.fixture(scope="module")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of the checkout."""
    return call_hook(checkout, "build_wheel", tmp_path_factory.mktemp("wheel"))


@pytest.mark.slow
def test_sdist_holds_what_a_build_and_its_tests_need(checkout: Path, sdist: Path, tmp_path: Path) -> None:
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "setup.py",
        "csrc/common/config.h",
        "build_backend/backend.py",
        "tests/conftest.py",
        "docs/methods.md",
    } <= names
    assert not [name for name in names if name.endswith((".so", ".pyc", "_build_info.py"))]
    if (ROOT / ".git").exists():
        tracked = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True).splitlines()
        assert sorted(set(tracked) - names) == [".gitignore"]


@pytest.mark.slow
def test_wheel_holds_the_package_and_nothing_else(make_dist, checkout: Path, wheel: Path) -> None:
    """Leftovers of an earlier build, in the package or under build/lib, must not get in."""
    assert make_dist.wheel_problems(wheel, checkout) == []
    with zipfile.ZipFile(wheel) as archive:
        assert b"left over" not in archive.read("ard_fast/_build_info.py")
        assert archive.read("ard_fast/_C.abi3.so").startswith(b"\x7fELF")
        assert "ard_fast/_C_old.abi3.so" not in archive.namelist()


@pytest.mark.slow
def test_wheel_of_the_sdist_is_the_same_to_the_byte(sdist: Path, wheel: Path, tmp_path: Path) -> None:
    """In a folder of another name: nothing of the machine is in it, and the sdist lacks nothing."""
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    (unpacked,) = tmp_path.glob("ard_fast-*")
    again = call_hook(unpacked, "build_wheel", tmp_path)
    with zipfile.ZipFile(wheel) as first, zipfile.ZipFile(again) as second:
        assert first.namelist() == second.namelist()
        assert [name for name in first.namelist() if first.read(name) != second.read(name)] == []
    assert again.read_bytes() == wheel.read_bytes()


@pytest.mark.slow
def test_tools_find_nothing_wrong(make_dist, sdist: Path, wheel: Path) -> None:
    for command in make_dist.audits(sdist, wheel):
        pytest.importorskip(command[0], reason="comes with pip install '.[dist]'")
        make_dist.run_tool(*command)
