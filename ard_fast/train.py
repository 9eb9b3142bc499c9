"""The command `ard-fast train`, or `python -m ard_fast.train`.

Without arguments it does the main job on the digits that ship inside scikit-learn: for three seeds a robust teacher,
the small student distilled from it by ARD, the same student trained adversarially for comparison, plainly and by a
stronger recipe (`at-ema`), and a table.
"""

from __future__ import annotations

from ard_fast import _startup as _startup

# isort: split
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from ard_fast._commandline import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, Interrupted, StopRequest, program
from ard_fast._devices import device_note, resolve_device, set_threads
from ard_fast._files import lock_folder
from ard_fast.training.checkpoint import DamagedRun
from ard_fast.training.commandline import make_parser
from ard_fast.training.comparison import report_comparison
from ard_fast.training.compute import compile_error, failed_to_compile
from ard_fast.training.config import (
    PATHS,
    PLACES,
    TrainConfig,
    flag,
    identity,
    is_path,
    parse,
    read_yaml,
    resolve,
    to_yaml,
    validate,
)
from ard_fast.training.distributed import World, connect, is_lost_process
from ard_fast.training.in_python import Result, run
from ard_fast.training.nonfinite import NonFiniteLoss
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.runs import prepare, run_comparison
from ard_fast.training.runs import run as run_one
from ard_fast.training.settings import COMPARE, ROLES

__all__ = ["Result", "main", "make_parser", "run"]


def _configuration(arguments: dict[str, Any], world: World, *, print_only: bool) -> tuple[TrainConfig, RunFolder, bool]:
    """The configuration and the folder that the arguments ask for, and whether to go on with what is there.

    To be printed only, a configuration needs neither images and teachers nor a free folder.
    """
    if "resume" in arguments:
        folder = RunFolder(arguments.pop("resume"))
        return _resumed(folder, arguments), folder, True
    out, file, preset = (arguments.pop(name, None) for name in ("out", "config", "preset"))
    from_file = read_yaml(file) if file else None
    config = resolve(parse(arguments), file=from_file, preset=preset, needs_inputs=not print_only)
    if out is None:
        if world.max_restarts:
            raise ValueError("out: name the run's folder with --out, for torchrun's restarts to find it again")
        out = Path("runs") / f"{config.dataset}-{config.method.replace(':', '.')}-{datetime.now():%Y%m%d-%H%M%S}"
    folder = RunFolder(out)
    resume = folder.config_file.exists()
    if resume and not print_only and not (world.restarts and identity(folder.config()) == identity(config)):
        raise FileExistsError(f"out: {folder.path} already holds a run; choose another folder or use --resume")
    return config, folder, resume


def _resumed(folder: RunFolder, places: Mapping[str, Any]) -> TrainConfig:
    """The configuration of a stopped run, with the places that have changed.

    Raises:
        ValueError, FileNotFoundError: no run, or something else than a place is to change.
    """
    other = next((name for name in places if name not in PLACES), None)
    if other is not None:
        allowed = ", ".join(map(flag, PLACES))
        raise ValueError(
            f"resume: takes its settings from the run's config.yaml; remove {flag(other)}. Places may change: {allowed}"
        )
    config = folder.config(whole=True)
    given = parse(places)
    for role in ROLES:
        if role in given and not (is_path(role, getattr(config, role)) and is_path(role, given[role])):
            raise ValueError(
                f"{role}: beside --resume only another place of the same weights; the run has "
                f"{getattr(config, role) or 'none'}, got {given[role]}"
            )
    paths = {name: str(Path(given[name]).expanduser().absolute()) for name in PATHS if is_path(name, given.get(name))}
    changed = folder.found(config).replace(**{**given, **paths})
    changed = changed.replace(device=resolve_device(changed.device))
    validate(changed)
    for name in PATHS:
        if getattr(changed, name) != getattr(config, name):
            print(f"{name}: {getattr(config, name)} -> {getattr(changed, name)}")
    return changed


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 1 diverged or a full disk, 2 wrong arguments, 130 stopped.

    Started by torchrun, it is one of several processes that train together; then 1 also stands for a lost process.
    """
    try:
        with connect() as world, world.only_main_prints():
            return _main(argv, world)
    except RuntimeError as error:
        if not is_lost_process(error):
            raise
        first = str(error).split("\n", 1)[0]
        print(
            f"\nerror: another process of the run failed, see its message, or does not answer ({first})",
            file=sys.stderr,
        )
        return EXIT_FAILED


def _main(argv: Sequence[str] | None, world: World) -> int:
    arguments = vars(make_parser().parse_args(argv))
    print_only = arguments.pop("print_config", False)
    with StopRequest() as stop, ExitStack() as stack:
        try:
            config, folder, resume = world.from_main(lambda: _configuration(arguments, world, print_only=print_only))
            if print_only:
                print(to_yaml(config), end="")
                return 0
            set_threads(config.threads)
            env = prepare(config, stop, world)
            made = world.from_main(lambda: stack.enter_context(lock_folder(folder.path)))
        except (ValueError, OSError) as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USAGE
        processes = f"{world.size} processes, " if world.size > 1 else ""
        computer = f"{config.device}{device_note(config.device)}, {processes}{torch.get_num_threads()} CPU threads"
        print(f"ard_fast.train: {config.method} on {config.dataset}, torch {torch.__version__}, {computer} "
              f"-> {folder.path}", flush=True)  # fmt: skip
        try:
            with folder.removed_if_nothing_was_trained(made=made and world.is_main):
                if config.method == COMPARE:
                    results = run_comparison(config, folder, env, resume=resume)
                    world.from_main(lambda: report_comparison(config, folder, results))
                else:
                    run_one(config, folder, env, resume=resume)
        except Interrupted as stopped:
            print(f"\n{stopped}\ncontinue with: {program('train')} --resume {folder.path}", file=sys.stderr)
            return EXIT_INTERRUPTED
        except KeyboardInterrupt:  # the second Ctrl-C, which does not wait for the current step
            print(f"\nstopped at once; {folder.path} goes on from its last checkpoint with --resume", file=sys.stderr)
            return EXIT_INTERRUPTED
        except DamagedRun as error:
            print(f"error: {error}", file=sys.stderr)
            return EXIT_USAGE
        except OSError as error:  # not written (NotWritten), or the images could not be read
            going_on = f"; {folder.path} goes on from its last checkpoint with --resume" if folder.path.exists() else ""
            print(f"\nerror: {error}{going_on}", file=sys.stderr)
            return EXIT_FAILED
        except NonFiniteLoss as error:
            print(f"\nerror: {error}", file=sys.stderr)
            return EXIT_FAILED
        except RuntimeError as error:
            if not failed_to_compile(error):
                raise
            print(f"\nerror: {compile_error('student', error)}", file=sys.stderr)
            return EXIT_FAILED
    print(f"\nreport.md, plot.png and checkpoints are in {folder.path}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
