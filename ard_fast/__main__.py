"""The command `ard-fast`, also `python -m ard_fast`: starts the command that its first argument names."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from ard_fast._names import unknown
from ard_fast._version import __version__

# Nothing of a command is imported before it is known: torch alone takes a second.
COMMANDS = {
    "train": ("ard_fast.train", "train a robust network: adversarial training or robust distillation"),
    "evaluate": ("ard_fast.evaluate", "evaluate a checkpoint under attack"),
    "compare": ("ard_fast.compare", "compare finished runs in a table"),
    "methods": ("ard_fast.methods.__main__", "list the training methods, or describe one"),
    "info": ("ard_fast.info", "show what is installed: versions, GPUs, the kernels of each operator"),
}


def _help(program: str) -> str:
    commands = "\n".join(f"  {name:<11} {text}" for name, (_, text) in COMMANDS.items())
    return (
        f"usage: {program} COMMAND [arguments]\n\nAdversarial attacks and adversarially robust distillation.\n\n"
        f"commands:\n{commands}\n\noptions:\n  -h, --help  show this help\n  --version   show the version\n\n"
        f"{program} COMMAND --help shows the arguments of a command."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; 2 without a command or for an unknown one."""
    arguments = sys.argv[1:] if argv is None else list(argv)
    program = "ard-fast" if Path(sys.argv[0]).stem == "ard-fast" else "python -m ard_fast"
    command = arguments[0] if arguments else ""
    if command in ("-h", "--help", "help"):
        print(_help(program))
        return 0
    if command == "--version":
        print(f"ard-fast {__version__}")
        return 0
    if command not in COMMANDS:
        wrong = unknown("command", command, COMMANDS)
        if command.startswith("-"):
            wrong = f"expected a command before {command}: {', '.join(COMMANDS)}"
        print(f"{program}: error: {wrong}" if command else _help(program), file=sys.stderr)
        return 2
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # as under `python -m`, for a user's own networks and methods
    try:
        return importlib.import_module(COMMANDS[command][0]).main(arguments[1:])
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    raise SystemExit(main())
