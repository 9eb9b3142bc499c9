"""Builds the extension module: decides CUDA, architectures and jobs, compiles, and records it all.

The metadata are in pyproject.toml; the decisions are functions in build_backend/plan.py; the record is
ard_fast/_build_info.py. torch is looked for only when compiling, so that an sdist and the metadata need none.

Environment variables:
    ARD_FAST_CUDA         auto (default): build the CUDA kernels if torch is a CUDA build and a toolkit is found;
                          0: do not; 1: do, or fail
    TORCH_CUDA_ARCH_LIST  such as "8.0;9.0+PTX"; default: the visible GPUs, else what torch was built for
    MAX_JOBS              parallel compile jobs; default: by cores and memory
    CXX, CXXFLAGS, LDFLAGS  the C++ compiler and flags to add to its command lines; for nvcc: NVCC_APPEND_FLAGS
    ARD_FAST_WERROR       1: compiler warnings are errors
    ARD_FAST_TORCH_SITE, ARD_FAST_ISOLATED: see build_backend/torch_install.py
    SOURCE_DATE_EPOCH     the time to put into what is built; without CUDA the same sources then give the same bytes
"""

import os
import platform
import pprint
import runpy
import shutil
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
sys.path.insert(0, str(ROOT / "build_backend"))

import ninja_build  # noqa: E402
import plan  # noqa: E402
import torch_install  # noqa: E402

fingerprint = runpy.run_path(str(ROOT / "ard_fast" / "_fingerprint.py"))

PYTHON_ABI = (3, 10)  # one build serves this and every newer Python
# The oldest torch that the modules run on: headers hide whatever is newer.
DEFINES = [
    "-DTORCH_TARGET_VERSION=0x020b000000000000",
    f"-DPy_LIMITED_API=0x{PYTHON_ABI[0]:02x}{PYTHON_ABI[1]:02x}0000",
]
# -fno-math-errno and -fno-trapping-math change no result; they let the compiler vectorise. No -march: one build runs
# on every CPU of its kind. CXXFLAGS may override these.
HOST_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-DNDEBUG"]
# CXXFLAGS may not override these. -ffp-contract=off: the CPU must round as the GPU kernels do.
FIXED_HOST_FLAGS = ["-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
NVCC_FLAGS = ["-O3", "-lineinfo", "--expt-relaxed-constexpr", "-DNDEBUG", "-DUSE_CUDA"]


def language_standard(release: tuple[int, int]) -> str:
    """What torch's headers of this release are written in; our sources are valid in both."""
    return "-std=c++20" if release >= (2, 13) else "-std=c++17"


def host_flags(release: tuple[int, int]) -> list[str]:
    """What the C++ compiler is called with, against a torch of this release, but for warnings and folders."""
    cxxflags = plan.flags_from(os.environ, "CXXFLAGS")
    return [*HOST_FLAGS, *cxxflags, *FIXED_HOST_FLAGS, language_standard(release), *DEFINES]


@dataclass(frozen=True)
class CudaPlan:
    """Whether and how the CUDA kernels are built."""

    toolkit: plan.Toolkit | None  # None: they are not built
    reason: str
    archs: list[tuple[str, bool]] = field(default_factory=list)  # (arch, also as PTX)
    archs_from: str | None = None

    @property
    def arch_names(self) -> list[str]:
        """Such as `["sm_80", "sm_90", "compute_90"]`."""
        return [name for arch, ptx in self.archs for name in [f"sm_{arch}", *([f"compute_{arch}"] if ptx else [])]]


def visible_and_torch_archs(install: torch_install.TorchInstall) -> tuple[list[str], list[str]]:
    """Architectures of the visible GPUs, and those that torch was built for (which needs no GPU)."""
    install.expose()
    import torch

    gpus = []
    if torch.cuda.is_available():
        gpus = ["{}{}".format(*torch.cuda.get_device_capability(index)) for index in range(torch.cuda.device_count())]
    # torch.cuda.get_arch_list() is empty without a GPU.
    flags = torch._C._cuda_getArchFlags() or ""
    return gpus, [word.removeprefix("sm_") for word in flags.split() if word.startswith("sm_")]


def decide_cuda(torch: torch_install.TorchInstall) -> CudaPlan:
    """Decide from the environment, the torch to build against, the toolkit and the visible GPUs."""
    toolkit, reason = plan.decide_cuda(
        plan.cuda_mode(os.environ),
        torch.version,
        torch.cuda,
        lambda: plan.find_toolkit(os.environ, shutil.which),
    )
    if toolkit is None:
        return CudaPlan(None, reason)
    requested = plan.requested_archs(os.environ)
    gpus, built = ([], []) if requested else visible_and_torch_archs(torch)
    archs, archs_from = plan.choose_archs(requested, gpus, built, toolkit.archs)
    return CudaPlan(toolkit, reason, archs, archs_from)


def module_to_build(
    torch: torch_install.TorchInstall, cuda: CudaPlan, jobs: int, folder: Path, suffix: str
) -> ninja_build.Module:
    """The extension module with its flags; its file goes to `folder`, with `suffix` after its name."""
    # The longest compiles come first.
    names = ["*.cu", "*_ops_cuda.cpp"] if cuda.toolkit else []
    names += ["*_cpu.cpp", "*_ops.cpp", "module.cpp"]
    sources = [path for name in names for path in fingerprint["compiled_sources"](CSRC) if path.match(name)]
    # Other people's headers go in by -isystem: warnings are for our sources.
    includes = [f"-I{CSRC}", "-isystem", str(torch.root / "include"), "-isystem", sysconfig.get_path("include")]
    # Error messages name the line that threw them: without this, by the folders of the machine that built it.
    short_names = [f"-fmacro-prefix-map={CSRC}=csrc", f"-fmacro-prefix-map={torch.root / 'include'}=torch"]
    strict = os.environ.get("ARD_FAST_WERROR", "0") not in ("", "0")
    standard = language_standard(torch.release)
    host = [*WARNINGS, *(["-Werror"] if strict else []), *host_flags(torch.release), *includes, *short_names]
    ldflags = plan.flags_from(os.environ, "LDFLAGS")
    # Our folder goes before those in LDFLAGS, which may hold another torch.
    link = ["-shared", f"-L{torch.root / 'lib'}", *ldflags, "-ltorch_cpu", "-lc10"]
    if sys.platform == "darwin":
        link = ["-bundle", "-undefined", "dynamic_lookup", *link[1:]]
    nvcc_flags = []
    if cuda.toolkit is not None:
        host += ["-DUSE_CUDA", "-isystem", str(cuda.toolkit.include)]
        launchers = [path for path in sources if path.suffix == ".cu"]
        threads = plan.nvcc_threads(jobs, len(launchers), len(cuda.archs))
        nvcc_flags = [
            *NVCC_FLAGS,
            standard,
            *DEFINES,
            *includes,
            *plan.gencode_flags(cuda.archs),
            f"--threads={threads}",
        ]
        nvcc_flags += ["-Xcompiler", ",".join(["-fPIC", "-fvisibility=hidden", "-ffp-contract=off", *WARNINGS])]
        nvcc_flags += [word for name in short_names for word in ("-Xcompiler", name)]
        if strict:
            nvcc_flags += ["-Werror", "all-warnings"]
        # The CUDA runtime is linked in: the module then needs no libcudart of one exact major version, and runs beside
        # torch's own, with which it shares device, context and streams. Its symbols are hidden (--exclude-libs), so
        # that the two are never mixed.
        link += ["-Wl,--exclude-libs,ALL", "-ltorch_cuda", str(cuda.toolkit.cudart_static), "-lrt", "-lpthread", "-ldl"]
    return ninja_build.Module(folder / f"_C{suffix}", sources, host, nvcc_flags, link)


def write_build_info(path: Path, info: dict) -> None:
    """Write ard_fast/_build_info.py."""
    text = '"""What the compiled extension module was built from and with. Written by setup.py; do not edit."""\n\n'
    path.write_text(text + "".join(f"{key} = {pprint.pformat(value, width=120)}\n" for key, value in info.items()))


def replace_file(source: Path, target: Path) -> None:
    """Copy so that a process that has the old file loaded keeps it whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    new = target.with_name(target.name + ".new")
    shutil.copyfile(source, new)
    os.replace(new, target)


class BuildExtensions(build_ext):
    """`build_ext` that compiles with Ninja against the torch that is installed."""

    def run(self) -> None:
        try:
            self.compile_all()
        except plan.BuildError as error:
            raise SetupError(f"ard-fast: {error}") from None

    def compile_all(self) -> None:
        """Decide, compile, put the module in its place and record what was done."""
        if platform.system() == "Windows":
            raise plan.BuildError("Windows is not supported yet: the flags are those of GCC and Clang")
        torch, looked = torch_install.find_torch()
        if torch is None:
            raise plan.BuildError(f"{torch_install.REQUIREMENT} is needed to build; looked in: {'; '.join(looked)}")
        jobs = plan.choose_jobs(os.environ, plan.machine_cores(), plan.machine_free_memory())
        cuda = decide_cuda(torch)
        print(f"ard-fast: building against torch {torch.version} in {torch.root.parent}, {jobs} jobs")
        print(f"ard-fast: CUDA {'yes' if cuda.toolkit else 'no'}: {cuda.reason}")
        if cuda.toolkit:
            print(f"ard-fast: architectures {' '.join(cuda.arch_names)}, from {cuda.archs_from}")

        folder = Path(self.build_temp).resolve() / "ninja"
        folder.mkdir(parents=True, exist_ok=True)
        suffix = Path(self.get_ext_filename("ard_fast._C")).name.removeprefix("_C")
        module = module_to_build(torch, cuda, jobs, folder, suffix)
        compiler = ninja_build.find_compiler(os.environ)
        nvcc = cuda.toolkit.nvcc if cuda.toolkit else None
        (folder / "build.ninja").write_text(ninja_build.ninja_file(module, compiler, nvcc, CSRC, folder))
        # Taken before compiling: if a source changes meanwhile, the result counts as stale.
        sources = fingerprint["source_fingerprint"](CSRC)
        ninja_build.run_ninja(folder, jobs)

        package = ROOT / "ard_fast" if self.inplace else Path(self.build_lib) / "ard_fast"
        replace_file(module.output, package / module.output.name)
        info = {
            "TORCH_VERSION": torch.version,
            "TORCH_CUDA": torch.cuda,
            "CUDA_BUILT": cuda.toolkit is not None,
            "CUDA_REASON": cuda.reason,
            "CUDA_TOOLKIT": ".".join(map(str, cuda.toolkit.version)) if cuda.toolkit else None,
            "CUDA_ARCHS": cuda.arch_names,
            "CUDA_ARCHS_FROM": cuda.archs_from,
            "COMPILER": plan.run_text(*compiler, "--version").partition("\n")[0],
            "HOST_FLAGS": host_flags(torch.release),
            "NVCC_FLAGS": [*NVCC_FLAGS, *plan.gencode_flags(cuda.archs)] if cuda.toolkit else [],
            "BUILT_AT": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(plan.build_time(os.environ))),
            "SOURCE_FINGERPRINT": sources,
        }
        write_build_info(package / "_build_info.py", info)


class Build(build):
    """`build` that starts from an empty build/lib.

    setuptools packs whatever lies there, so a module built earlier for another torch, or a Python file deleted
    since, would go into the wheel. Objects are kept elsewhere and stay valid.
    """

    def run(self) -> None:
        if Path(self.build_lib).is_dir():
            shutil.rmtree(self.build_lib)
        super().run()


class StableAbiWheel(bdist_wheel):
    """`bdist_wheel` that tags the wheel for every Python from PYTHON_ABI on."""

    def finalize_options(self) -> None:
        plan.check_python(sysconfig.get_config_vars())
        self.py_limited_api = f"cp{PYTHON_ABI[0]}{PYTHON_ABI[1]}"
        super().finalize_options()


setup(
    ext_modules=[Extension("ard_fast._C", sources=[], py_limited_api=True)],
    cmdclass={"build": Build, "build_ext": BuildExtensions, "bdist_wheel": StableAbiWheel},
)
