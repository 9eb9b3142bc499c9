"""Builds the extension module: decides CUDA, architectures and jobs, compiles with Ninja, and records it all.

The metadata are in pyproject.toml; what the machine has is found by build_backend/found.py; the record is
ard_fast/_build_info.py. torch is looked for only when compiling, so that an sdist and the metadata need none.

torch's own BuildExtension is not used: it adds Python's own compiler flags to ours, imports torch, and trusts an nvcc
found on PATH to lie in its toolkit. The stable ABI needs two include folders and two libraries.

Environment variables:
    ARD_FAST_CUDA         auto (default): build the CUDA kernels if torch is a CUDA build and a toolkit is found;
                          0: do not; 1: do, or fail
    TORCH_CUDA_ARCH_LIST  such as "8.0;9.0+PTX"; default: the visible GPUs, else every generation that nvcc knows
    MAX_JOBS              parallel compile jobs; default: by cores and memory
    CXX, CXXFLAGS, LDFLAGS  the C++ compiler and flags to add to its command lines; for nvcc: NVCC_APPEND_FLAGS
    ARD_FAST_WERROR       1: compiler warnings are errors
    SOURCE_DATE_EPOCH     the time to put into what is built; without CUDA the same sources then give the same bytes
"""

import os
import pprint
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build import build
from setuptools.command.build_ext import build_ext
from setuptools.errors import SetupError

ROOT = Path(__file__).resolve().parent
CSRC = ROOT / "csrc"
sys.path.insert(0, str(ROOT / "build_backend"))

import fingerprint  # noqa: E402
import found  # noqa: E402

COMPILER = shlex.split(os.environ.get("CXX") or "c++")
# The oldest torch and Python that the module runs on: headers hide whatever is newer.
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x030a0000"]
# -fno-math-errno and -fno-trapping-math change no result; they let the compiler vectorise. No -march: one build runs
# on every CPU of its kind. CXXFLAGS may override these.
HOST_FLAGS = ["-O3", "-fno-math-errno", "-fno-trapping-math", "-DNDEBUG"]
# CXXFLAGS may not override these. -ffp-contract=off: the CPU must round as the GPU kernels do.
FIXED_HOST_FLAGS = ["-ffp-contract=off", "-fPIC", "-fvisibility=hidden", "-fvisibility-inlines-hidden"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter"]
NVCC_FLAGS = ["-O3", "--expt-relaxed-constexpr", "-DNDEBUG", "-DUSE_CUDA"]

NINJA_RULES = """\
rule cpp
  command = {cxx} -MD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = c++ $in
rule cu
  command = {nvcc} -MD -MF $out.d $flags -c $in -o $out
  depfile = $out.d
  deps = gcc
  description = nvcc $in
rule link
  command = {cxx} $in -o $out $flags
  description = link $out
"""


def host_flags(torch: found.Torch) -> list[str]:
    """What the C++ compiler is called with, but for warnings and folders."""
    return [*HOST_FLAGS, *shlex.split(os.environ.get("CXXFLAGS", "")), *FIXED_HOST_FLAGS, language(torch), *DEFINES]


def language(torch: found.Torch) -> str:
    """What torch's headers are written in; our sources are valid in both."""
    return "-std=c++20" if torch.release >= (2, 13) else "-std=c++17"


def gencode(archs: list[str]) -> list[str]:
    """nvcc's flags for names such as sm_90 and compute_90."""
    return [f"-gencode=arch=compute_{name.partition('_')[2]},code={name}" for name in archs]


def ninja_file(torch: found.Torch, toolkit: found.Toolkit | None, archs: list[str], folder: Path, output: Path) -> str:
    """The text of the Ninja file that builds `output` with objects in `folder`."""
    # Other people's headers go in by -isystem: warnings are for our sources.
    includes = [f"-I{CSRC}", "-isystem", str(torch.root / "include"), "-isystem", sysconfig.get_path("include")]
    # Error messages name the line that threw them: without this, by the folders of the machine that built it.
    short_names = [f"-fmacro-prefix-map={CSRC}=csrc", f"-fmacro-prefix-map={torch.root / 'include'}=torch"]
    strict = os.environ.get("ARD_FAST_WERROR", "0") not in ("", "0")
    flags = {"cpp": [*WARNINGS, *(["-Werror"] if strict else []), *host_flags(torch), *includes, *short_names]}
    # Our folder goes before those in LDFLAGS, which may hold another torch.
    link = [f"-L{torch.root / 'lib'}", *shlex.split(os.environ.get("LDFLAGS", "")), "-ltorch_cpu", "-lc10"]
    link = ["-bundle", "-undefined", "dynamic_lookup", *link] if sys.platform == "darwin" else ["-shared", *link]
    # The sources, those that take longest first.
    names = ["*_cpu.cpp", "*_ops.cpp", "module.cpp"]
    if toolkit is not None:
        names = ["*.cu", *names]
        flags["cpp"] += ["-DUSE_CUDA", "-isystem", str(toolkit.include)]
        flags["cu"] = [*NVCC_FLAGS, language(torch), *DEFINES, *includes, *gencode(archs)]
        flags["cu"] += [word for flag in [*FIXED_HOST_FLAGS, *WARNINGS, *short_names] for word in ("-Xcompiler", flag)]
        flags["cu"] += ["-Werror", "all-warnings"] if strict else []
        # The CUDA runtime is linked in: the module then needs no libcudart of one exact major version, and runs beside
        # torch's own, with which it shares device, context and streams. Its symbols are hidden (--exclude-libs), so
        # that the two are never mixed.
        link += ["-Wl,--exclude-libs,ALL", "-ltorch_cuda", str(toolkit.cudart_static), "-lrt", "-lpthread", "-ldl"]
    sources = [path for name in names for path in fingerprint.compiled_sources(CSRC) if path.match(name)]

    def words(command: list[str]) -> str:
        return shlex.join(command).replace("$", "$$")

    def path(name: Path) -> str:
        return str(name).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")

    lines = [NINJA_RULES.format(cxx=words(COMPILER), nvcc=words([str(toolkit.nvcc)] if toolkit else []))]
    objects = [folder / source.relative_to(CSRC).with_suffix(source.suffix + ".o") for source in sources]
    for source, target in zip(sources, objects, strict=True):
        kind = source.suffix[1:]
        lines += [f"build {path(target)}: {kind} {path(source)}", f"  flags = {words(flags[kind])}"]
    lines += [f"build {path(output)}: link {' '.join(map(path, objects))}", f"  flags = {words(link)}"]
    return "\n".join(lines) + "\n"


def run_ninja(folder: Path, jobs: int) -> None:
    """Run Ninja on `folder/build.ninja`; the output of a failed compile is on the terminal."""
    command = [found.find_ninja(), "-C", str(folder), "-j", str(jobs)]
    sys.stdout.flush()
    if subprocess.run(command, check=False).returncode != 0:
        raise found.BuildError(f"compiling failed (output above): {shlex.join(command)}")


class BuildExtension(build_ext):
    """`build_ext` that compiles with Ninja against the torch that is installed."""

    def run(self) -> None:
        try:
            self.compile_all()
        except found.BuildError as error:
            raise SetupError(f"ard-fast: {error}") from None

    def compile_all(self) -> None:
        """Decide, compile, put the module in its place and record what was done."""
        if sys.platform == "win32":
            raise found.BuildError("Windows is not supported yet: the flags are those of GCC and Clang")
        torch, looked = found.find_torch()
        if torch is None:
            raise found.BuildError(f"{found.TORCH_REQUIREMENT} is needed to build; {looked}")
        toolkit, reason = found.decide_cuda(torch)
        archs, archs_from = found.choose_archs(found.visible_gpus(), toolkit.archs) if toolkit else ([], None)
        jobs = int(os.environ.get("MAX_JOBS") or found.default_jobs())
        print(f"ard-fast: building against torch {torch.version} in {torch.root.parent}, {jobs} jobs")
        print(f"ard-fast: CUDA {'yes' if toolkit else 'no'}: {reason}")
        if toolkit:
            print(f"ard-fast: nvcc {toolkit.nvcc}, architectures {' '.join(archs)}, from {archs_from}")

        folder = Path(self.build_temp).resolve() / "ninja"
        folder.mkdir(parents=True, exist_ok=True)
        module = folder / Path(self.get_ext_filename("ard_fast._C")).name
        (folder / "build.ninja").write_text(ninja_file(torch, toolkit, archs, folder, module))
        # Taken before compiling: if a source changes meanwhile, the result counts as stale.
        sources = fingerprint.source_fingerprint(CSRC)
        run_ninja(folder, jobs)

        package = ROOT / "ard_fast" if self.inplace else Path(self.build_lib) / "ard_fast"
        package.mkdir(parents=True, exist_ok=True)
        # Not over the old file: a process that has it loaded keeps it whole.
        shutil.copyfile(module, package / f"{module.name}.new")
        os.replace(package / f"{module.name}.new", package / module.name)
        built_at = time.gmtime(int(os.environ.get("SOURCE_DATE_EPOCH") or time.time()))
        info = {
            "TORCH_VERSION": torch.version,
            "CUDA_BUILT": toolkit is not None,
            "CUDA_REASON": reason,
            "CUDA_ARCHS": archs,
            "CUDA_ARCHS_FROM": archs_from,
            "COMPILER": found.run_text(*COMPILER, "--version").partition("\n")[0],
            "HOST_FLAGS": host_flags(torch),
            "NVCC_FLAGS": [*NVCC_FLAGS, *gencode(archs)] if toolkit else [],
            "BUILT_AT": time.strftime("%Y-%m-%dT%H:%M:%SZ", built_at),
            "SOURCE_FINGERPRINT": sources,
        }
        text = '"""What the compiled extension module was built from and with. Written by setup.py; do not edit."""\n\n'
        text += "".join(f"{key} = {pprint.pformat(value, width=120)}\n" for key, value in info.items())
        (package / "_build_info.py").write_text(text)


class Build(build):
    """`build` that starts from an empty build/lib.

    setuptools packs whatever lies there, so a module built earlier for another torch, or a Python file deleted
    since, would go into the wheel. Objects are kept elsewhere and stay valid.
    """

    def run(self) -> None:
        shutil.rmtree(self.build_lib, ignore_errors=True)
        super().run()


setup(
    ext_modules=[Extension("ard_fast._C", sources=[], py_limited_api=True)],
    cmdclass={"build": Build, "build_ext": BuildExtension},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},  # the tag: for every Python from 3.10 on
)
