"""The examples of the documentation, the README and the docstrings run.

Python blocks of a page run in order, in one namespace, with `epochs=1`. In shell blocks, the package's own commands run
in this process in quick forms (one epoch, few images); other programs must exist and know their flags. A comment before
a block changes that: `<!-- test: check -->` only parses and resolves its commands (they need a GPU, CIFAR-10 or a
checkpoint), `<!-- test: slow -->` leaves the block to `pytest -m slow`, `<!-- test: run -->` runs one of a page outside
docs, whose shell blocks are otherwise only checked. Blocks in other languages are ignored.
"""

import doctest
import importlib
import re
import shlex
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from cifar_files import fake_cifar
from PIL import Image

from ard_fast import attacks, compare, evaluate, functional, info, train
from ard_fast.methods import __main__ as methods
from ard_fast.models import build_model

ROOT = Path(__file__).parents[1]
OUTSIDE = ["README.md", "CONTRIBUTING.md"]  # CI runs their commands; here they are only checked
PAGES = [*OUTSIDE, *sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))]
COMMANDS = {"train": train, "evaluate": evaluate, "compare": compare, "methods": methods, "info": info}
QUICK = {
    "train": ["--epochs", "1", "--teacher-epochs", "1", "--compare-seeds", "1", "--val-steps", "1"],
    "evaluate": ["--n-examples", "8", "--eps-curve", "none"],
}
FEW_DIGITS = ["--subset", "64", "--test-subset", "32"]
FEW_LARGE = ["--subset", "20", "--test-subset", "10", "--student", "resnet18-tiny"]  # of CIFAR-10
BLOCK = re.compile(r"(?:<!-- test: (check|slow|run) -->\n)?^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A fenced block: what its comment says, its language and text, the line it begins in."""

    mode: str
    language: str
    text: str
    line: int


def blocks(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for m in BLOCK.finditer(text):
        language = m[2] or "sh"
        if language in ("python", "sh"):
            mode = m[1] or ("check" if page in OUTSIDE and language == "sh" else "run")
            found.append(Block(mode, language, m[3], text[: m.start(3)].count("\n")))
    return found


def run_block(page, block, namespace):
    if block.language == "python":
        source = re.sub(r"\bepochs=\d+", "epochs=1", block.text)
        exec(compile("\n" * block.line + source, ROOT / page, "exec"), namespace)
        return
    for line in block.text.replace("\\\n", " ").splitlines():
        words = [word for word in shlex.split(line, comments=True) if word != "..."]
        own = re.search(r"(?:-m ard_fast\.|^ard-fast )(\w+) ?(.*)", " ".join(words))
        if own:
            check = block.mode == "check" or "torchrun" in words
            wrong = run_command(own[1], own[2].split(), check=check)
        else:
            wrong = unknown_flags(words[1:] if words[:1] == ["python"] else words)
        assert not wrong, f"{page}:{block.line}: {line.strip()}: {wrong}"


def unknown_flags(words):
    """Of a program of this repository; other programs are not looked at."""
    if not words or not re.match(r"(benchmarks|scripts)/", words[0]):
        return []
    program = ROOT / words[0]
    known = "".join(path.read_text() for path in (program, *program.parent.glob("_*.py")))
    return [word for word in words if word.startswith("--") and word not in known]


def run_command(name, arguments, *, check):
    """The exit code of a command of the package, None where it was only checked."""
    arguments = ["cpu" if word == "cuda" else word for word in arguments]
    if check and name != "info":
        COMMANDS[name].make_parser().parse_args(arguments)
        resolves = name == "train" and "--resume" not in arguments
        return COMMANDS[name].main([*arguments, "--print-config"]) if resolves else None
    arguments = [word.replace("autoattack", "apgd-ce5") for word in arguments]  # `.ci/run evaluate` runs it
    if "--resume" not in arguments and "--print-config" not in arguments:
        arguments += QUICK.get(name, [])
        if name == "train" and "--dataset" not in arguments:
            arguments += FEW_DIGITS
        if name == "train" and "cifar10" in arguments:
            arguments += FEW_LARGE
    return COMMANDS[name].main(arguments)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty folder with what the pages assume: images, and the user's modules that pages show."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name in ("DATA", "DIR", "cifar10"):
        fake_cifar(tmp_path / name, count=20)
    rng = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 3)):
        for label in ("cat", "dog"):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for k in range(count):
                Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(folder / f"{k}.png")
    for block in (block for page in PAGES for block in blocks(page)):
        if name := re.match(r"# (my_\w+\.py)\b", block.text):
            with (tmp_path / name[1]).open("a") as module:
                module.write(block.text)
    threads, state = torch.get_num_threads(), torch.get_rng_state()
    yield tmp_path
    torch.set_num_threads(threads)
    torch.set_rng_state(state)


@pytest.fixture
def given():
    """What incomplete examples assume."""
    x, y = torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 3])
    network = build_model("resnet18-tiny", num_classes=10, in_channels=3)
    networks = dict.fromkeys(("student", "teacher", "model"), network)
    return {"torch": torch, **networks, "x": x, "images": x, "y": y, "labels": y}


def run_page(page, namespace, modes):
    for block in blocks(page):
        if block.mode in modes:
            run_block(page, block, namespace)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)])
def test_the_examples_of_a_page_run(page, workplace, given):
    run_page(page, given if page == "README.md" else {}, ("run", "check"))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if any(block.mode == "slow" for block in blocks(page))])
def test_the_slow_examples_of_a_page_run_too(page, workplace):
    run_page(page, {}, ("run", "check", "slow"))


class AnyOutput(doctest.OutputChecker):
    """An example that shows no output may have one."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def modules_with_examples():
    for path in sorted((ROOT / "ard_fast").rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            yield ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", list(modules_with_examples()))
def test_the_examples_of_docstrings_run(name, given):
    module = importlib.import_module(name)
    if name.endswith(".adapters"):
        given["foolbox"] = pytest.importorskip("foolbox")
    names = {**given, **vars(attacks), **vars(module), "F": functional, "numpy": np}
    found = [test for test in doctest.DocTestFinder().find(module, extraglobs=names) if test.examples]
    assert found
    for test in found:
        assert doctest.DocTestRunner(AnyOutput()).run(test).failed == 0
