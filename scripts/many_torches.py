#!/usr/bin/env python3
"""Builds one wheel and tests it under several releases of torch, and of Python.

    python scripts/many_torches.py                              # 2.11 to 2.15, the whole suite: hours on two cores
    python scripts/many_torches.py --torch 2.11.0 2.15.0 --tests quick --cuda
    python scripts/many_torches.py --python python3.10 python3.13 --torch 2.15.0 --tests quick

Each pair of Python and torch gets a virtual environment of its own under --folder, where a later call finds it again.
The wheel is built once, in the first of them, so name the oldest torch first: what its headers make must run on all.
Wheel and tests are those of the sdist. At the end: a table, FOLDER/many_torches.log with the same, and exit
status 1 if anything failed. A torch from PyPI is a CUDA build, 5 GB with its libraries; no GPU is needed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RELEASES = ["2.11.0", "2.12.0", "2.13.0", "2.14.1", "2.15.0"]
# What hangs most on torch, a minute of one core: every op's contract with it, results, gradients, networks, graphs.
QUICK = [
    "tests/ops/test_ops_contract.py",
    "tests/ops/test_pgd_step.py",
    "tests/ops/test_kd_loss.py",
    "tests/ops/test_crop_flip.py",
    "tests/ops/test_fold.py",
    "tests/attacks/test_attacks_ops.py",
    "tests/attacks/test_graphs.py",
    "tests/models/test_folding_network.py",
    "tests/training/test_sgd.py",
]
# What --tests needs beside torch: extras of the package, and others.
NEEDED = {"none": ("", []), "quick": ("", ["pytest>=8", "pytest-timeout", "pytest-xdist"]), "all": ("[test]", [])}
# Run away from the checkout: prints what is wrong with the installed package.
CHECK = """
import json, sys
import torch
from ard_fast import functional, info, reference
from ard_fast.functional import _load

report = info.collect()
cuda = sys.argv[1] == "cuda"
problems = [report["stale"]] if report["stale"] else []
for name, on in report["operators"].items():
    if not on["cpu"].startswith("compiled"):
        problems.append(f"{name}: on CPU tensors {on['cpu']}")
    if cuda and not on["cuda"].startswith("compiled for"):
        problems.append(f"{name}: on CUDA tensors {on['cuda']}")
torch.manual_seed(0)
x, grad = torch.rand(8, 3, 32, 32), torch.randn(8, 3, 32, 32)
step = {"step_size": 2 / 255, "eps": 8 / 255}
if not torch.equal(functional.pgd_linf_step_(x.clone(), grad, x, **step), reference.pgd_linf_step(x, grad, x, **step)):
    problems.append("pgd_linf_step_ is not what the reference says")
print(json.dumps({"torch": torch.__version__, "built": report["build"]["TORCH_VERSION"], "problems": problems,
                  "operators": len(report["operators"])}))
"""


class Failed(Exception):
    """A step failed; the message says which and shows the end of what it printed."""


@dataclass
class Environment:
    """A virtual environment with one torch."""

    interpreter: str  # such as "python3.11", as given
    torch: str  # such as "2.11.0"
    folder: Path

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def run(self, *command: str | Path, cwd: Path, log: Path | None = None, **env: str) -> str:
        """Run its Python with these arguments; what it printed, which goes into `log` as it comes.

        Raises:
            Failed: its exit status is not 0.
        """
        # The caller's own torch, packages and settings must not leak in.
        kept = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        settings = {**kept, "VIRTUAL_ENV": str(self.folder), "PYTHONNOUSERSITE": "1", **env}
        words = [str(self.python), *map(str, command)]
        with open(log, "w+") if log else tempfile.TemporaryFile("w+") as out:
            status = subprocess.call(words, cwd=cwd, env=settings, stdout=out, stderr=subprocess.STDOUT)
            out.seek(0)
            said = out.read()
        if status != 0:
            raise Failed(f"exit status {status}: {shlex.join(words)[:300]}\n{said[-3000:]}")
        return said

    def pip(self, *arguments: str | Path, **env: str) -> None:
        """Run its pip."""
        self.run("-m", "pip", "--disable-pip-version-check", "--quiet", *arguments, cwd=self.folder, **env)

    def create(self) -> None:
        """Make it, unless it is there."""
        if not self.python.is_file():
            subprocess.run([self.interpreter, "-m", "venv", str(self.folder)], check=True)
        found = "import importlib.metadata as m\ntry: print(m.version('torch'))\nexcept m.PackageNotFoundError: pass"
        if self.run("-c", found, cwd=self.folder).strip().partition("+")[0] != self.torch:
            self.pip("install", f"torch=={self.torch}")

    def install(self, wheel: Path, tests: str) -> None:
        """Put the wheel, and what the tests need, beside torch, which must stay what it is."""
        extras, others = NEEDED[tests]
        self.pip("install", f"ard-fast{extras} @ {wheel.as_uri()}", f"torch=={self.torch}", *others)
        # Of the same version as one that is there already, and not the same.
        self.pip("install", "--force-reinstall", "--no-deps", wheel)


def unpack_sdist(out: Path) -> Path:
    """The checkout as its sdist holds it, unpacked in `out`: no leftovers of other builds."""
    code = "import sys; sys.path.insert(0, 'build_backend'); import backend; print(backend.build_sdist(sys.argv[1]))"
    said = subprocess.run(
        [sys.executable, "-c", code, str(out)], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if said.returncode != 0:
        raise Failed(f"no sdist (it needs pip install '.[test]'):\n{said.stdout[-3000:]}")
    name = said.stdout.split()[-1]
    with tarfile.open(out / name) as archive:
        archive.extractall(out, filter="data")
    return out / name.removesuffix(".tar.gz")


def build_wheel(environment: Environment, source: Path, cuda: bool) -> Path:
    """Build the wheel of `source`, beside it, against the torch of `environment`."""
    out = source.parent
    # `auto` would build for CUDA wherever it can; warnings of the headers of any torch are errors.
    settings = {"ARD_FAST_CUDA": "1" if cuda else "0", "ARD_FAST_WERROR": "1"}
    environment.pip("wheel", "--no-deps", "--wheel-dir", out, source, **settings)
    (wheel,) = out.glob("ard_fast-*.whl")
    return wheel


def test(environment: Environment, source: Path, tests: list[str], arguments: list[str], log: Path) -> str:
    """Run `tests` (none: all) from the folder `source`; pytest's last line."""
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, *tests]
    said = environment.run(*command, cwd=source, log=log, OMP_NUM_THREADS="1")
    return said.strip().rpartition("\n")[2].strip("= ")


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    add = parser.add_argument
    add("--torch", nargs="+", default=RELEASES, metavar="VERSION", help=f"default: {' '.join(RELEASES)}")
    add("--python", nargs="+", default=[sys.executable], metavar="PYTHON", help="interpreters; default: this one")
    add("--tests", choices=("none", "quick", "all"), default="all", help="beyond importing it; default: all")
    add("--cuda", action="store_true", help="with the CUDA kernels, which must load and register everywhere")
    add("--wheel", type=Path, help="test this one instead of building one")
    add("--folder", type=Path, default=ROOT / "build" / "torches", help="default: %(default)s")
    add("--discard", action="store_true", help="delete each environment when it has been tested")
    add("--pytest", default="", metavar="ARGUMENTS", help="more for pytest, such as '-n 4'")
    options = parser.parse_args(argv)
    for version in options.torch:
        if not re.fullmatch(r"\d+\.\d+\.\d+", version):
            parser.error(f"argument --torch: expected versions such as 2.13.0, got {version!r}")
    return options


def run_all(options: argparse.Namespace, folder: Path) -> list[tuple[str, str, float]]:
    """Build the wheel and test it in each environment: (Python and torch, what came of it, seconds)."""
    environments = []
    for interpreter in options.python:
        name = subprocess.check_output(
            [interpreter, "-c", "import sys; print('py{}.{}'.format(*sys.version_info))"], text=True
        ).strip()
        environments += [
            Environment(interpreter, version, folder / f"{name}-torch{version}") for version in options.torch
        ]
    first = environments[0]
    work = folder / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    source = unpack_sdist(work)
    if options.wheel:
        wheel = options.wheel.resolve()
    else:
        first.create()
        wheel = build_wheel(first, source, options.cuda)
    print(f"{wheel.name}, {'given' if options.wheel else f'built against torch {first.torch}'}", flush=True)
    rows = []
    for environment in environments:
        started = time.monotonic()
        name = environment.folder.name
        try:
            environment.create()
            environment.install(wheel, options.tests)
            said = environment.run("-c", CHECK, "cuda" if options.cuda else "cpu", cwd=environment.folder)
            found = json.loads(said.strip().rpartition("\n")[2])
            if found["problems"]:
                raise Failed("; ".join(found["problems"]))
            text = f"torch {found['torch']}, built against {found['built']}, {found['operators']} operators"
            if options.tests != "none":
                tests = QUICK if options.tests == "quick" else []
                log = folder / f"{name}.log"
                text += f"; {test(environment, source, tests, shlex.split(options.pytest), log)}"
        except (Failed, subprocess.CalledProcessError) as error:
            text = f"FAILED: {error}"
        rows.append((name, text, time.monotonic() - started))
        print(f"{name:<24}{rows[-1][2]:8.0f} s  {text}", flush=True)
        if options.discard:
            shutil.rmtree(environment.folder)
    return rows


def main(argv: list[str] | None = None) -> int:
    """Run it; 0, or 1 if anything failed."""
    options = parse(argv)
    folder = options.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    try:
        rows = run_all(options, folder)
    except Failed as error:
        print(error, file=sys.stderr)
        return 1
    lines = [f"{name:<24}{seconds:8.0f} s  {text.splitlines()[0]}" for name, text, seconds in rows]
    print("\n" + "\n".join(lines))
    with (folder / "many_torches.log").open("a") as log:
        log.write(f"{time.strftime('%Y-%m-%d %H:%M')} {shlex.join(sys.argv)}\n" + "\n".join(lines) + "\n")
    return 1 if any(text.startswith("FAILED") for _, text, _ in rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
