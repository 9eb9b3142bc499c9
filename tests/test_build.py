"""The build: which torch and toolkit it finds and what it decides; marked slow, a real wheel."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_backend"))

import backend  # noqa: E402
import found  # noqa: E402

SETTINGS = ("ARD_FAST_CUDA", "CUDA_HOME", "CUDA_PATH", "TORCH_CUDA_ARCH_LIST", "VIRTUAL_ENV")


@pytest.fixture(autouse=True)
def bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in pip's isolated environment, on a machine without CUDA; the site-packages of the calling environment."""
    site = tmp_path / "outer"
    site.mkdir()
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(found, "sys", SimpleNamespace(path=[], platform="linux", version_info=sys.version_info))
    monkeypatch.setattr(found.sysconfig, "get_path", lambda name: str(site))
    monkeypatch.setattr(found.site, "ENABLE_USER_SITE", False)
    monkeypatch.setattr(found, "USUAL_TOOLKIT", tmp_path / "none")
    monkeypatch.setattr(found.shutil, "which", lambda name, **_: None)
    return site


# ------------------------------------------------------------------------------------------------- the installed torch


def fake_torch(site: Path, version: str = "2.14.1+cu130", cuda: str | None = "13.0") -> Path:
    """A site-packages folder that holds as much of a torch as the build reads."""
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    return site


def test_torch_of_the_calling_environment_is_found(bare_machine: Path) -> None:
    fake_torch(bare_machine, "2.13.0+cpu", None)
    torch, _ = found.find_torch()
    assert torch == found.Torch(bare_machine / "torch", "2.13.0+cpu", None)
    assert torch.release == (2, 13)
    assert backend.get_requires_for_build_wheel() == backend.get_requires_for_build_editable() == []


def test_importable_torch_goes_first(bare_machine: Path, tmp_path: Path) -> None:
    """As under --no-build-isolation."""
    fake_torch(bare_machine, "2.13.0")
    found.sys.path.append(str(fake_torch(tmp_path / "own", "2.12.0")))
    assert found.find_torch()[0].version == "2.12.0"


def test_torch_is_required_where_there_is_none(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert backend.get_requires_for_build_wheel() == ["torch>=2.11", "cuda-toolkit[nvcc,cccl]"]
    assert str(bare_machine) in capsys.readouterr().err
    monkeypatch.setenv("ARD_FAST_CUDA", "0")
    assert backend.get_requires_for_build_wheel() == ["torch>=2.11"]


def test_too_old_torch_does_not_count(bare_machine: Path) -> None:
    fake_torch(bare_machine, "2.9.1")
    torch, looked = found.find_torch()
    assert torch is None
    assert f"torch 2.9.1 in {bare_machine} is too old" in looked


def test_torch_of_the_active_environment_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m build` runs the build with an environment of its own."""
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    site = fake_torch(tmp_path / "venv" / "lib" / python / "site-packages")
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / "venv"))
    assert found.find_torch()[0].root == site / "torch"


# ------------------------------------------------------------------------------------------------------------- toolkit


def fake_toolkit(root: Path, version: str = "13.0", layout: str = "usual") -> Path:
    """A CUDA toolkit with all that the build looks at."""
    include, lib = {
        "usual": ("include", "lib64"),
        "pypi": ("include", "lib"),
        "debian": ("include", "lib/x86_64-linux-gnu"),
        "conda": ("targets/x86_64-linux/include", "targets/x86_64-linux/lib"),
    }[layout]
    for folder in ("bin", include, lib):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / include / "cuda_runtime.h").touch()
    (root / lib / "libcudart_static.a").touch()
    nvcc = root / "bin" / "nvcc"
    nvcc.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) echo "Cuda compilation tools, release {version}, V{version}.1";;\n'
        '--list-gpu-arch) printf "compute_75\\ncompute_80\\ncompute_90\\n";;\n'
        f'--dryrun) echo "#\\$ TOP={root}/bin/.." >&2;; esac\n'
    )
    nvcc.chmod(0o755)
    return root


@pytest.mark.parametrize("layout", ["usual", "debian", "conda"])
def test_cuda_home_is_taken_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str) -> None:
    home = fake_toolkit(tmp_path / "home", layout=layout)
    monkeypatch.setattr(found, "USUAL_TOOLKIT", fake_toolkit(tmp_path / "usual"))
    monkeypatch.setenv("CUDA_HOME", str(home))
    toolkit, _ = found.find_toolkit("13.0")
    assert (toolkit.nvcc, toolkit.version, toolkit.archs) == (home / "bin" / "nvcc", "13.0", [75, 80, 90])
    assert (toolkit.include / "cuda_runtime.h").is_file()
    assert toolkit.cudart_static.is_file()


def test_wrapper_outside_the_toolkit_and_link_to_nvcc_lead_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = fake_toolkit(tmp_path / "real") / "bin" / "nvcc"
    wrapper, link = tmp_path / "nvcc", tmp_path / "link"
    wrapper.write_text(f'#!/bin/sh\nexec {real} "$@"\n')
    wrapper.chmod(0o755)
    link.symlink_to(real)
    for on_path in (wrapper, link):
        monkeypatch.setattr(found.shutil, "which", lambda name, on_path=on_path: str(on_path))
        assert found.find_toolkit("13.0")[0].nvcc == real


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("bin/nvcc", "no bin/nvcc"),
        ("include/cuda_runtime.h", "no include/cuda_runtime.h"),
        ("lib64/libcudart_static.a", "no libcudart_static.a"),
    ],
)
def test_incomplete_toolkit_is_refused_with_what_it_lacks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, said: str
) -> None:
    root = fake_toolkit(tmp_path / "cuda")
    (root / missing).unlink()
    monkeypatch.setenv("CUDA_HOME", str(root))
    assert found.find_toolkit("13.0") == (None, f"no nvcc on PATH; {root}: {said}; {tmp_path}/none: no bin/nvcc")


def test_toolkit_of_another_major_version_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path / "12", "12.8")))
    assert "its version is 12.8, torch was built with 13.0" in found.find_toolkit("13.0")[1]
    monkeypatch.setattr(found, "USUAL_TOOLKIT", fake_toolkit(tmp_path / "13", "13.2"))
    assert found.find_toolkit("13.0")[0].version == "13.2"


def test_toolkit_is_required_where_torch_has_cuda_13_and_there_is_none(
    bare_machine: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Then the build environment has it; so may the calling one, beside its torch."""
    fake_torch(bare_machine)
    for mode in ("auto", "1"):
        monkeypatch.setenv("ARD_FAST_CUDA", mode)
        assert backend.get_requires_for_build_wheel() == ["cuda-toolkit[nvcc,cccl]==13.0.*"]
        assert "no CUDA toolkit for torch 2.14.1+cu130" in capsys.readouterr().err
    monkeypatch.setenv("ARD_FAST_CUDA", "0")
    assert backend.get_requires_for_build_wheel() == []
    monkeypatch.delenv("ARD_FAST_CUDA")
    root = fake_toolkit(bare_machine / "nvidia" / "cu13", layout="pypi")
    assert backend.get_requires_for_build_wheel() == []
    assert found.find_toolkit("13.0")[0].nvcc == root / "bin" / "nvcc"
    torch = found.Torch(bare_machine / "torch", "2.12.0+cu128", "12.8")
    assert found.toolkit_requirement(torch) is None


# --------------------------------------------------------------------------------------------------------- CUDA or not

CUDA_TORCH = found.Torch(Path("torch"), "2.14.1+cu130", "13.0")
CPU_TORCH = found.Torch(Path("torch"), "2.13.0+cpu", None)


def test_cuda_is_built_where_torch_and_a_toolkit_have_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_HOME", str(fake_toolkit(tmp_path / "cuda")))
    for mode in ("auto", "1"):
        monkeypatch.setenv("ARD_FAST_CUDA", mode)
        toolkit, reason = found.decide_cuda(CUDA_TORCH)
        assert toolkit.version == "13.0"
        assert reason == "torch 2.14.1+cu130 has CUDA 13.0, toolkit 13.0"
    with pytest.raises(found.BuildError, match=r"ARD_FAST_CUDA=1, but torch 2\.13\.0\+cpu is not a CUDA build"):
        found.decide_cuda(CPU_TORCH)
    monkeypatch.setenv("ARD_FAST_CUDA", "0")
    assert found.decide_cuda(CUDA_TORCH) == (None, "ARD_FAST_CUDA=0")


def test_missing_toolkit_is_an_error_only_if_cuda_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    toolkit, reason = found.decide_cuda(CUDA_TORCH)
    assert toolkit is None
    assert reason.endswith('PyPI has one: pip install "cuda-toolkit[nvcc,cccl]==13.0.*"')
    monkeypatch.setenv("ARD_FAST_CUDA", "1")
    with pytest.raises(found.BuildError, match="ARD_FAST_CUDA=1, but no CUDA toolkit that fits torch"):
        found.decide_cuda(CUDA_TORCH)


def test_mode_that_is_none_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARD_FAST_CUDA", "yes")
    with pytest.raises(found.BuildError, match="expected auto, 0 or 1, got 'yes'"):
        found.cuda_mode()


# ------------------------------------------------------------------------------------------------------- architectures

NVCC_13 = [75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0", "sm_80"),
        ("9.0+PTX;8.0", "sm_90 compute_90 sm_80"),
        ("8.0 8.6,9.0a+PTX", "sm_80 sm_86 sm_90a compute_90a"),
        ("12.0f", "sm_120f"),
    ],
)
def test_arch_list_is_followed_as_it_is(monkeypatch: pytest.MonkeyPatch, text: str, expected: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    assert found.choose_archs([75], NVCC_13) == (expected.split(), "TORCH_CUDA_ARCH_LIST")


@pytest.mark.parametrize("text", ["80", "8", "sm_80", "8.0+ptxx", "8.0;;x"])
def test_bad_arch_list_is_an_error(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", text)
    with pytest.raises(found.BuildError, match="TORCH_CUDA_ARCH_LIST: expected entries like"):
        found.choose_archs([], NVCC_13)


def test_default_is_the_visible_gpus_else_every_generation() -> None:
    assert found.choose_archs([80, 90], NVCC_13) == (["sm_80", "sm_90", "compute_90"], "the visible GPUs")
    assert found.choose_archs([130], NVCC_13)[0] == ["sm_121", "compute_121"]  # newer than nvcc
    everything = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_110", "sm_120", "compute_120"]
    for gpus in ([], [70]):
        assert found.choose_archs(gpus, NVCC_13)[0] == everything


# -------------------------------------------------------------------------------------------------------- a real build


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


@pytest.mark.slow
def test_leftovers_of_an_earlier_build_are_not_in_the_wheel(checkout: Path, tmp_path: Path) -> None:
    """From the package's folder or from build/lib; what else must not be in it: the stage `release` of .ci/run."""
    code = "import sys; sys.path.insert(0, 'build_backend'); import backend; backend.build_wheel(sys.argv[1])"
    env = {**os.environ, "ARD_FAST_CUDA": "0"}
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=checkout, env=env, check=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert b"left over" not in archive.read("ard_fast/_build_info.py")
        assert archive.read("ard_fast/_C.abi3.so").startswith(b"\x7fELF")
        assert not {"ard_fast/_C_old.abi3.so", "ard_fast/deleted_since.py"} & set(archive.namelist())
