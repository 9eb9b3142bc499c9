"""The command line: `ard-fast`, other spellings of flags, suggestions, examples of the help."""

import subprocess
import sys
from pathlib import Path

import pytest

import ard_fast.__main__ as ard_fast_command
from ard_fast import __version__, compare, evaluate, info, train
from ard_fast._names import nearest
from ard_fast.methods import METHODS
from ard_fast.methods import __main__ as methods

PARSERS = {"train": train, "evaluate": evaluate, "compare": compare, "methods": methods, "info": info}


@pytest.mark.parametrize(
    ("arguments", "code", "out", "error"),
    [
        ([], 2, "", "usage: ard-fast COMMAND"),
        (["--help"], 0, "  evaluate    evaluate a checkpoint under attack\n", ""),
        (["--version"], 0, f"ard-fast {__version__}\n", ""),
        (["trian"], 2, "", "ard-fast: error: unknown command 'trian'; did you mean 'train'? Known: compare"),
        (["--method", "ard"], 2, "", "ard-fast: error: expected a command before --method: train, evaluate"),
        (["methods"], 0, "5/6 KL(T(x) || S(x')) + 1/6 KL(T(x) || S(x)), x' attacks", ""),
        (
            ["methods", "at-ema"],
            0,
            "at-ema: schedule onecycle, weight_decay 0.0005, label_smoothing 0.4, ema 0.9995",
            "",
        ),
        (["methods", "rslad"], 0, "constants: steps 10, attack_bn eval", ""),
        (["methods", "rlsad"], 2, "", "error: unknown method 'rlsad'; did you mean 'rslad'"),
        (["train", "--method", "ard", "--print-config"], 0, "method: ard\n", ""),
    ],
)
def test_the_command_ard_fast(arguments, code, out, error, capsys, monkeypatch):
    assert 'ard-fast = "ard_fast.__main__:main"' in (Path(__file__).parents[1] / "pyproject.toml").read_text()
    monkeypatch.setattr(sys, "argv", ["/usr/bin/ard-fast"])
    assert ard_fast_command.main(arguments) == code
    printed = capsys.readouterr()
    assert out in printed.out and error in printed.err
    assert (bool(printed.out), bool(printed.err)) == (bool(out), bool(error))


def test_help_and_version_import_no_torch():
    code = "import sys, ard_fast.__main__ as m; m.main(['--help']); print(*sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "numpy", "pydantic"} & set(run.stdout.split())


@pytest.mark.parametrize(
    ("argv0", "typed"),
    [
        ("/usr/bin/ard-fast", "ard-fast train"),
        ("/lib/ard_fast/__main__.py", "python -m ard_fast train"),
        ("/lib/ard_fast/train.py", "python -m ard_fast.train"),
        ("/usr/bin/pytest", "python -m ard_fast.train"),
    ],
)
def test_errors_and_usage_show_what_was_typed(argv0, typed, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [argv0])
    with pytest.raises(SystemExit):
        train.main(["--epochs"])
    assert capsys.readouterr().err == f"{typed}: error: argument --epochs: expected one argument\n"
    assert train.make_parser().format_help().startswith(f"usage: {typed} ")


@pytest.mark.parametrize("name", PARSERS)
def test_the_help_of_a_command_is_complete_and_its_examples_parse(name, capsys):
    parser = PARSERS[name].make_parser()
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["-h"])
    assert stop.value.code == 0 and f"usage: python -m ard_fast.{name} " in capsys.readouterr().out
    whole = parser.format_help()
    assert all(flag in whole for action in parser._actions for flag in action.option_strings)
    for example in parser.examples:
        parser.parse_args(example.removeprefix(parser.prog).split())


@pytest.mark.parametrize(
    ("command", "typed", "flags"),
    [
        (train, "--learning-rate 0.1 --bs=64 --epsilon 8/255", {"lr": "0.1", "batch_size": "64", "eps": "8/255"}),
        (train, "--arch resnet18 --wd 0", {"student": "resnet18", "weight_decay": "0"}),
        (train, "--data_dir d --lr_schedule cosine", {"data_dir": "d", "schedule": "cosine"}),
        (evaluate, "run --arch a.b:c --output-dir o", {"run": "run", "model": "a.b:c", "out": "o"}),
        (evaluate, "--n_ex 5 --save_images", {"n_examples": "5", "save_images": True}),
    ],
)
def test_other_spellings_of_flags(command, typed, flags):
    assert vars(command.make_parser().parse_args(typed.split())) == flags


@pytest.mark.parametrize(
    ("command", "typed", "error"),
    [
        (train, "--foo 3", "unknown argument '--foo'; --help-all shows all flags"),
        (train, "ard", "unexpected argument 'ard'; --help-all shows all flags"),
        (train, "--cuda", "argument --device: expected one argument"),
        (evaluate, "--checkpoint net.pt", "unknown argument '--checkpoint'; did you mean RUN?"),
        (info, "--foo", "unknown argument '--foo'"),
    ],
)
def test_errors_name_what_was_meant(command, typed, error, capsys):
    with pytest.raises(SystemExit) as stop:
        command.main(typed.split())
    assert stop.value.code == 2 and capsys.readouterr().err.endswith(f": error: {error}\n")


@pytest.mark.parametrize(
    ("name", "known", "found"),
    [
        ("--epoch", ["--epochs", "--eps"], "--epochs"),
        ("--temp", ["--temperature", "--teacher"], "--temperature"),  # the only one that begins so
        ("--foo", ["--fold", "--flip", "-h"], None),
        ("--num-workers", ["--tensorboard", "--momentum"], None),
        ("learning_rate", ["ema_decay", "lr"], "lr"),
        ("arl", METHODS, "ard"),
        ("madry", METHODS, "at"),
        ("vgg16", ["wrn-70-16", "resnet18"], None),
    ],
)
def test_only_near_names_are_suggested(name, known, found):
    assert nearest(name, known) == found
