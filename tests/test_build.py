"""The build: what it decides, as functions. Real builds are in test_dist.py."""

import ast
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "build_backend"))

import backend  # noqa: E402
import ninja_build  # noqa: E402
import plan  # noqa: E402
import torch_install  # noqa: E402

# ------------------------------------------------------------------------------------------------- the installed torch


def fake_torch(site: Path, version: str = "2.13.0+cpu", cuda: str | None = None) -> Path:
    """A site-packages folder that holds as much of a torch as the build reads."""
    (site / "torch").mkdir(parents=True)
    (site / "torch" / "version.py").write_text(f"__version__ = {version!r}\ncuda = {cuda!r}\n")
    return site


@pytest.fixture
def hidden_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """As in pip's isolated environment: torch cannot be imported, and sysconfig names the outer site-packages."""
    site = tmp_path / "outer"
    site.mkdir()
    monkeypatch.setattr(torch_install.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(torch_install.sysconfig, "get_path", lambda name: str(site))
    monkeypatch.setattr(torch_install.site, "ENABLE_USER_SITE", False)
    monkeypatch.setattr(backend._setuptools, "get_requires_for_build_wheel", lambda settings: [])
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    for name in ("ARD_FAST_TORCH_SITE", "ARD_FAST_ISOLATED"):
        monkeypatch.delenv(name, raising=False)
    return site


def test_importable_torch_is_taken_without_importing_it() -> None:
    """As under --no-build-isolation."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import torch_install; print(torch_install.find_torch({})[0])\n"
    code += "assert 'torch' not in sys.modules"
    out = subprocess.check_output([sys.executable, "-c", code, str(ROOT / "build_backend")], text=True)
    import torch

    assert f"version={torch.__version__!r}" in out


def test_torch_of_the_calling_environment_is_found(hidden_torch: Path) -> None:
    fake_torch(hidden_torch, "2.14.1+cu130", "13.0")
    install, _ = torch_install.find_torch()
    assert install == torch_install.TorchInstall(hidden_torch / "torch", "2.14.1+cu130", "13.0")
    assert backend.get_requires_for_build_wheel() == backend.get_requires_for_build_editable() == []


def test_torch_is_required_where_there_is_none(hidden_torch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert backend.get_requires_for_build_wheel() == ["torch>=2.11"]
    assert str(hidden_torch) in capsys.readouterr().err
    assert backend.get_requires_for_build_sdist() == []


def test_too_old_torch_does_not_count(hidden_torch: Path) -> None:
    fake_torch(hidden_torch, "2.9.1")
    install, looked = torch_install.find_torch()
    assert install is None
    assert "torch 2.9.1 is too old" in looked[-1]


def test_named_and_virtualenv_folders_are_looked_at(hidden_torch: Path, tmp_path: Path) -> None:
    python = f"python{sys.version_info.major}.{sys.version_info.minor}"
    in_venv = fake_torch(tmp_path / "venv" / "lib" / python / "site-packages", "2.12.0")
    named = fake_torch(tmp_path / "named", "2.15.0")
    env = {"VIRTUAL_ENV": str(tmp_path / "venv")}
    assert torch_install.find_torch(env)[0].root.parent == in_venv
    assert torch_install.find_torch({**env, "ARD_FAST_TORCH_SITE": str(named)})[0].root.parent == named


def test_isolated_switch_keeps_the_isolation(hidden_torch: Path) -> None:
    fake_torch(hidden_torch)
    assert torch_install.find_torch({"ARD_FAST_ISOLATED": "1"})[0] is None
    assert torch_install.find_torch({"ARD_FAST_ISOLATED": "0"})[0] is not None


def test_exposed_torch_is_last_on_the_path(hidden_torch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The isolated environment's own setuptools must stay in front of the user's."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    install, _ = torch_install.find_torch({"ARD_FAST_TORCH_SITE": str(fake_torch(hidden_torch))})
    install.expose()
    install.expose()
    assert sys.path[-1] == str(hidden_torch)
    assert sys.path.count(str(hidden_torch)) == 1


def test_free_threaded_python_is_refused_before_torch_is_fetched(
    hidden_torch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An isolated build would otherwise download gigabytes first."""
    monkeypatch.setattr(backend.sysconfig, "get_config_vars", lambda: {"Py_GIL_DISABLED": 1})
    with pytest.raises(plan.BuildError, match="which free-threaded CPython does not have"):
        backend.get_requires_for_build_wheel()
    monkeypatch.setattr(backend.sysconfig, "get_config_vars", lambda: {"Py_GIL_DISABLED": 0})
    assert backend.get_requires_for_build_wheel() == ["torch>=2.11"]


# ------------------------------------------------------------------------------------------------------------- toolkit


def fake_toolkit(root: Path, version: str = "13.0", archs: str = "75 80 90 120", layout: str = "usual") -> Path:
    """A CUDA toolkit with all that the build looks at."""
    include, lib = {
        "usual": ("include", "lib64"),
        "debian": ("include", "lib/x86_64-linux-gnu"),
        "conda": ("targets/x86_64-linux/include", "targets/x86_64-linux/lib"),
    }[layout]
    for folder in ("bin", include, lib):
        (root / folder).mkdir(parents=True, exist_ok=True)
    (root / include / "cuda_runtime.h").touch()
    (root / lib / "libcudart_static.a").touch()
    nvcc = root / "bin" / "nvcc"
    listed = "\\n".join(f"compute_{arch}" for arch in archs.split())
    nvcc.write_text(
        "#!/bin/sh\n"
        f'case "$1" in --version) echo "Cuda compilation tools, release {version}, V{version}.1";;\n'
        f'--list-gpu-arch) printf "{listed}\\n";;\n'
        f'--dryrun) echo "#\\$ TOP={root}/bin/.." >&2;; esac\n'
    )
    nvcc.chmod(0o755)
    return root


def find_toolkit(env: dict[str, str], nvcc: Path | None = None) -> tuple[plan.Toolkit | None, list[str]]:
    """`plan.find_toolkit` with a chosen PATH, on a machine that has no toolkit in the usual place."""
    return plan.find_toolkit(env, lambda _: None if nvcc is None else str(nvcc), usual=Path("/nowhere/cuda"))


@pytest.mark.parametrize("layout", ["usual", "debian", "conda"])
def test_cuda_home_is_taken_first(tmp_path: Path, layout: str) -> None:
    home = fake_toolkit(tmp_path / "home", layout=layout)
    other = fake_toolkit(tmp_path / "other", version="12.8")
    found, looked = find_toolkit({"CUDA_HOME": str(home)}, other / "bin" / "nvcc")
    assert (found.root, found.version, found.archs) == (home, (13, 0), ("75", "80", "90", "120"))
    assert found.include.joinpath("cuda_runtime.h").is_file()
    assert looked == []


def test_wrapper_outside_the_toolkit_leads_to_it(tmp_path: Path) -> None:
    """A script on PATH that calls the real nvcc: its own folder is no toolkit."""
    real = fake_toolkit(tmp_path / "real")
    wrapper = tmp_path / "bin" / "nvcc"
    wrapper.parent.mkdir()
    wrapper.write_text(f'#!/bin/sh\nexec {real}/bin/nvcc "$@"\n')
    wrapper.chmod(0o755)
    assert find_toolkit({}, wrapper)[0].root == real


def test_link_to_nvcc_leads_to_the_toolkit(tmp_path: Path) -> None:
    real = fake_toolkit(tmp_path / "real")
    (real / "bin" / "nvcc").write_text("#!/bin/sh\nexit 1\n")  # tells nothing: only the link is left to go by
    (tmp_path / "nvcc").symlink_to(real / "bin" / "nvcc")
    assert plan.toolkit_root_of(str(tmp_path / "nvcc")) == [real]


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("bin/nvcc", "no bin/nvcc"),
        ("include/cuda_runtime.h", "no include/cuda_runtime.h"),
        ("lib64/libcudart_static.a", "no libcudart_static.a"),
    ],
)
def test_incomplete_toolkit_is_refused_with_what_it_lacks(tmp_path: Path, missing: str, said: str) -> None:
    root = fake_toolkit(tmp_path / "cuda")
    (root / missing).unlink()
    found, looked = find_toolkit({"CUDA_HOME": str(root)})
    assert found is None
    assert looked == [
        "nvcc on PATH: not found",
        f"$CUDA_HOME, {root}: {said}",
        "the usual place, /nowhere/cuda: no such folder",
    ]


# --------------------------------------------------------------------------------------------------------- CUDA or not


@pytest.fixture
def toolkit(tmp_path: Path) -> plan.Toolkit:
    return plan.inspect_toolkit(fake_toolkit(tmp_path / "cuda"))


def unreachable() -> None:
    raise AssertionError("the toolkit must not be looked for")


def test_modes(toolkit: plan.Toolkit) -> None:
    def found() -> tuple[plan.Toolkit, list[str]]:
        return toolkit, []

    def nothing() -> tuple[None, list[str]]:
        return None, ["nvcc on PATH: not found", "the usual place, /somewhere: no such folder"]

    assert plan.decide_cuda("0", "2.14.1+cu130", "13.0", unreachable) == (None, "ARD_FAST_CUDA=0")
    assert plan.decide_cuda("auto", "2.13.0+cpu", None, unreachable)[0] is None
    for mode in ("auto", "1"):
        assert plan.decide_cuda(mode, "2.14.1+cu130", "13.0", found)[0] is toolkit
    chosen, reason = plan.decide_cuda("auto", "2.14.1+cu130", "13.0", nothing)
    assert chosen is None
    assert "/somewhere" in reason
    with pytest.raises(plan.BuildError, match=r"ARD_FAST_CUDA=1, but torch 2\.13\.0\+cpu is not a CUDA build"):
        plan.decide_cuda("1", "2.13.0+cpu", None, unreachable)
    with pytest.raises(plan.BuildError, match=r"(?s)nvcc, .*cuda_runtime\.h .*PATH: not found; .*/somewhere"):
        plan.decide_cuda("1", "2.14.1+cu130", "13.0", nothing)


def test_other_major_version_of_the_toolkit_is_refused(toolkit: plan.Toolkit) -> None:
    chosen, reason = plan.decide_cuda("auto", "2.12.0+cu128", "12.8", lambda: (toolkit, []))
    assert chosen is None
    assert "13.0" in reason
    assert "12.8" in reason
    assert plan.decide_cuda("auto", "2.15.0+cu132", "13.2", lambda: (toolkit, []))[0] is toolkit


def test_mode_names() -> None:
    assert [plan.cuda_mode({}), plan.cuda_mode({"ARD_FAST_CUDA": ""})] == ["auto", "auto"]
    assert [plan.cuda_mode({"ARD_FAST_CUDA": text}) for text in ("auto", "0", " 1 ", "AUTO")] == [
        "auto",
        "0",
        "1",
        "auto",
    ]
    with pytest.raises(plan.BuildError, match="expected auto, 0 or 1, got 'yes'"):
        plan.cuda_mode({"ARD_FAST_CUDA": "yes"})


# ------------------------------------------------------------------------------------------------------- architectures

NVCC_13 = ("75", "80", "86", "87", "88", "89", "90", "100", "103", "110", "120", "121")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("8.0", [("80", False)]),
        ("9.0+PTX;8.0", [("80", False), ("90", True)]),
        ("8.0 8.6,9.0a+PTX", [("80", False), ("86", False), ("90a", True)]),
        ("9.0;9.0+PTX", [("90", True)]),
        ("9.0+PTX;9.0", [("90", True)]),
        ("Ampere Hopper", [("80", False), ("86", True), ("90", True)]),
        ("12.0f", [("120f", False)]),
    ],
)
def test_arch_list_is_followed_as_it_is(text: str, expected: list[tuple[str, bool]]) -> None:
    assert plan.choose_archs(text, ["70"], ["75"], NVCC_13) == (expected, "TORCH_CUDA_ARCH_LIST")


@pytest.mark.parametrize("text", ["80", "8", "sm_80", "8.0+ptxx", "Volta", "8.0;;x"])
def test_bad_arch_list_is_an_error(text: str) -> None:
    with pytest.raises(plan.BuildError, match="TORCH_CUDA_ARCH_LIST: expected entries like"):
        plan.parse_arch_list(text)


def test_arch_that_nvcc_does_not_know_is_an_error_only_if_asked_for() -> None:
    with pytest.raises(plan.BuildError, match=r"compiles for 75, 80, .*; got 70"):
        plan.choose_archs("7.0;8.0", [], [], NVCC_13)
    archs, source = plan.choose_archs(None, [], ["70", "80", "90", "130"], NVCC_13)
    assert (archs, source) == ([("80", False), ("90", True)], "what torch was built for")


def test_visible_gpus_go_before_what_torch_was_built_for() -> None:
    archs, source = plan.choose_archs(None, ["90", "80", "90"], ["75", "120"], NVCC_13)
    assert (archs, source) == ([("80", False), ("90", True)], "the visible GPUs")


def test_newer_gpu_than_nvcc_gets_the_newest_ptx_and_older_is_refused() -> None:
    assert plan.choose_archs(None, ["130"], [], NVCC_13)[0] == [("121", True)]
    with pytest.raises(plan.BuildError, match="none of the visible GPUs is among them: 70"):
        plan.choose_archs(None, ["70"], [], NVCC_13)


def test_architectures_are_never_empty() -> None:
    """torch itself dies with an IndexError where there is neither a GPU nor a list."""
    archs, source = plan.choose_archs(None, [], [], ("80", "90"))
    assert (archs, source) == ([("80", False), ("90", True)], "what nvcc supports")


def test_native_and_empty_lists_leave_the_choice_to_the_build() -> None:
    assert [plan.requested_archs({"TORCH_CUDA_ARCH_LIST": text}) for text in ("", " ", "native")] == [None] * 3
    assert plan.requested_archs({}) is None
    assert plan.requested_archs({"TORCH_CUDA_ARCH_LIST": "8.0 "}) == "8.0"


def test_gencode_flags() -> None:
    assert plan.gencode_flags([("80", False), ("90a", True)]) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_90a,code=compute_90a",
    ]


# ---------------------------------------------------------------------------------------------------- jobs and compile


def test_jobs() -> None:
    gib = 1 << 30
    assert plan.choose_jobs({"MAX_JOBS": "3"}, cores=64, free_memory=gib) == 3
    assert plan.choose_jobs({}, cores=8, free_memory=64 * gib) == 8
    assert plan.choose_jobs({}, cores=8, free_memory=5 * gib) == 2
    assert plan.choose_jobs({}, cores=8, free_memory=0) == 1
    assert plan.choose_jobs({}, cores=8, free_memory=None) == 8
    for text in ("0", "-1", "all"):
        with pytest.raises(plan.BuildError, match="MAX_JOBS: expected a positive whole number"):
            plan.choose_jobs({"MAX_JOBS": text}, 8, None)


@pytest.mark.parametrize(("jobs", "files", "archs"), [(1, 3, 7), (2, 3, 7), (16, 3, 7), (64, 2, 7), (4, 0, 1)])
def test_nvcc_threads_keep_to_the_jobs(jobs: int, files: int, archs: int) -> None:
    threads = plan.nvcc_threads(jobs, files, archs)
    assert 1 <= threads <= archs
    assert threads == 1 or threads * files <= jobs


def test_time_of_the_build_can_be_given() -> None:
    assert plan.build_time({"SOURCE_DATE_EPOCH": "1700000000"}) == 1700000000
    assert abs(plan.build_time({"SOURCE_DATE_EPOCH": " "}) - time.time()) < 60
    with pytest.raises(plan.BuildError, match="SOURCE_DATE_EPOCH: expected whole seconds since 1970, got 'now'"):
        plan.build_time({"SOURCE_DATE_EPOCH": "now"})


def test_ninja_builds_paths_and_flags_with_spaces_and_dollars(tmp_path: Path) -> None:
    """Compiles for real: a define with a space in it, below a folder whose name needs escaping."""
    root = tmp_path / "a $b: c"
    root.mkdir()
    (root / "one.cpp").write_text('extern "C" const char* text() { return TEXT; }\n')
    module = ninja_build.Module(
        output=root / "out" / "_C.so",
        sources=[root / "one.cpp"],
        host_flags=["-fPIC", '-DTEXT="x $y"'],
        link_flags=["-shared"],
    )
    compiler = ninja_build.find_compiler(os.environ)
    (root / "build.ninja").write_text(ninja_build.ninja_file(module, compiler, None, root, root / "objects"))
    ninja_build.run_ninja(root, 1)
    code = "import ctypes, sys; f = ctypes.CDLL(sys.argv[1]).text; f.restype = ctypes.c_char_p; print(f().decode())"
    assert subprocess.check_output([sys.executable, "-c", code, str(module.output)], text=True) == "x $y\n"
    (root / "one.cpp").write_text("this is not C++\n")
    with pytest.raises(plan.BuildError, match="compiling failed"):
        ninja_build.run_ninja(root, 1)


@pytest.fixture
def commands_of_a_build(tmp_path: Path) -> Callable[[dict[str, str]], list[list[str]]]:
    """Builds the extension with a compiler that only notes how it was called; the command lines of it."""
    log = tmp_path / "commands"
    compiler = tmp_path / "c++"
    compiler.write_text(
        f"#!{sys.executable}\n"
        "import json, sys\n"
        f"with open({str(log)!r}, 'a') as log:\n"
        "    log.write(json.dumps(sys.argv[1:]) + '\\n')\n"
        "if '-o' in sys.argv:\n"
        "    open(sys.argv[sys.argv.index('-o') + 1], 'w').close()\n"
    )
    compiler.chmod(0o755)

    def build(env: dict[str, str]) -> list[list[str]]:
        folders = ["--build-temp", str(tmp_path / "temp"), "--build-lib", str(tmp_path / "lib")]
        done = subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", *folders],
            cwd=ROOT,
            env={**os.environ, "ARD_FAST_CUDA": "0", "CXX": str(compiler), **env},
            text=True,
            capture_output=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        calls = [json.loads(line) for line in log.read_text().splitlines()]
        return [call for call in calls if "-o" in call]

    return build


def test_flags_of_the_environment_reach_every_compile_and_link(commands_of_a_build: Callable) -> None:
    """As for a sanitizer or coverage: after our defaults, so that they win, but before what the results hang on."""
    commands = commands_of_a_build({"CXXFLAGS": "-O0 -DTEXT='a b' -ffp-contract=fast", "LDFLAGS": "--coverage -L/else"})
    compiles = [command for command in commands if "-c" in command]
    links = [command for command in commands if "-c" not in command]
    assert len(compiles) > 10
    assert links
    for command in compiles:
        assert command.index("-O3") < command.index("-O0")
        assert "-DTEXT=a b" in command
        assert command.index("-ffp-contract=fast") < command.index("-ffp-contract=off")
        assert "--coverage" not in command
    for command in links:
        assert "--coverage" in command
        folders = [word for word in command if word.startswith("-L")]
        assert folders[-1] == "-L/else", "another torch there must not be linked instead of the one that was found"
        assert "-O0" not in command


def test_flags_of_the_environment_that_no_shell_takes_are_an_error() -> None:
    assert plan.flags_from({}, "CXXFLAGS") == []
    with pytest.raises(plan.BuildError, match=r"CXXFLAGS: expected flags .*got .*No closing quotation"):
        plan.flags_from({"CXXFLAGS": "-DTEXT='a"}, "CXXFLAGS")


# ------------------------------------------------------------------------------------------------------------- version


def test_version_is_a_literal() -> None:
    """The build reads it without importing the package, which would need torch."""
    tree = ast.parse((ROOT / "ard_fast" / "_version.py").read_text())
    values = [node.value.value for node in tree.body if isinstance(node, ast.Assign)]
    assert len(values) == 1
    assert all(part.isdigit() for part in values[0].split("."))
