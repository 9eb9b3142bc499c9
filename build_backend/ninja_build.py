"""Compiles and links the extension module with Ninja.

torch's own BuildExtension is not used: it trusts an nvcc found on PATH to lie in
its toolkit, and ties the build to setuptools internals. The stable ABI needs two include folders and two libraries,
which is little to write down.
"""

import shlex
import shutil
import subprocess
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path

from plan import BuildError


@dataclass
class Module:
    """An extension module."""

    output: Path
    sources: list[Path]
    host_flags: list[str]
    nvcc_flags: list[str] = field(default_factory=list)
    link_flags: list[str] = field(default_factory=list)


def find_ninja() -> str:
    """The ninja program: the one of the `ninja` package, else the one on PATH."""
    try:
        import ninja

        packaged = Path(ninja.BIN_DIR) / "ninja"
        if packaged.is_file():
            return str(packaged)
    except ImportError:
        pass
    on_path = shutil.which("ninja")
    if on_path is None:
        raise BuildError(
            "ninja was not found. With --no-build-isolation, install what the build needs first: "
            "pip install 'setuptools>=77.0.3,<82' ninja"
        )
    return on_path


def find_compiler(env: dict[str, str]) -> list[str]:
    """The C++ compiler as a command line: $CXX, else the one Python was built with, else c++."""
    for candidate in (env.get("CXX"), sysconfig.get_config_var("CXX"), "c++", "g++", "clang++"):
        command = shlex.split(candidate or "")
        if command and shutil.which(command[0]):
            return command
    raise BuildError("no C++ compiler was found: looked for $CXX, the one Python was built with, c++, g++, clang++")


def _escape(text: str | Path) -> str:
    """A path as Ninja wants it in a build line."""
    return str(text).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


def _command(words: list[str]) -> str:
    """A command line as Ninja wants it in a variable; `$in` and its like are added by the rules, unquoted."""
    return shlex.join(words).replace("$", "$$")


def ninja_file(module: Module, compiler: list[str], nvcc: Path | None, root: Path, folder: Path) -> str:
    """The text of the Ninja file that builds `module` with objects under `folder`, for sources under `root`."""
    lines = [
        "ninja_required_version = 1.5",
        f"cxx = {_command(compiler)}",
        f"nvcc = {_command([str(nvcc)]) if nvcc else ''}",
        "rule compile_cpp",
        "  command = $cxx -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = c++ $name",
        "rule compile_cu",
        "  command = $nvcc -MD -MF $out.d $flags -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "  description = nvcc $name",
        "rule link",
        "  command = $cxx $in -o $out $flags",
        "  description = link $name",
    ]
    objects = []
    for source in module.sources:
        name = source.relative_to(root).as_posix()
        target = folder / f"{name}.o"
        target.parent.mkdir(parents=True, exist_ok=True)
        objects.append(target)
        cuda = source.suffix == ".cu"
        lines += [
            f"build {_escape(target)}: {'compile_cu' if cuda else 'compile_cpp'} {_escape(source)}",
            f"  flags = {_command(module.nvcc_flags if cuda else module.host_flags)}",
            f"  name = {name}",
        ]
    module.output.parent.mkdir(parents=True, exist_ok=True)
    lines += [
        f"build {_escape(module.output)}: link {' '.join(map(_escape, objects))}",
        f"  flags = {_command(module.link_flags)}",
        f"  name = {module.output.name}",
    ]
    return "\n".join(lines) + "\n"


def run_ninja(folder: Path, jobs: int) -> None:
    """Run Ninja on `folder/build.ninja`; a failed compile is a `BuildError`, its output is on the terminal."""
    command = [find_ninja(), "-C", str(folder), "-j", str(jobs)]
    sys.stdout.flush()
    if subprocess.run(command, check=False).returncode != 0:
        raise BuildError(f"compiling failed (output above): {shlex.join(command)}")
