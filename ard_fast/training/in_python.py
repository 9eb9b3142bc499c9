"""A run from Python: networks, images and methods that are objects in memory."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ard_fast._commandline import Interrupted, StopRequest
from ard_fast._devices import set_threads
from ard_fast._files import lock_folder
from ard_fast._names import holding
from ard_fast._typing import known
from ard_fast.data.given import read_dataset
from ard_fast.training.checkpoint import load_network
from ard_fast.training.config import resolve
from ard_fast.training.distributed import connect
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.runs import prepare
from ard_fast.training.runs import run as carry_out
from ard_fast.training.settings import COMPARE


class Result(NamedTuple):
    """A finished run.

    Attributes:
        summary: the content of summary.json; accuracies in percent, on the test images, of the best checkpoint.
        folder: the run's.
        student: with the weights of the best checkpoint, on the CPU, frozen, in eval mode.
    """

    summary: dict[str, Any]
    folder: Path
    student: nn.Module


def run(
    method: Any = "ard",
    *,
    out: str | Path,
    student: Any = None,
    train: Any = None,
    test: Any = None,
    val: Any = None,
    teacher: Any = None,
    clean_teacher: Any = None,
    resume: bool = False,
    **settings: Any,
) -> Result:
    """Train a network as `python -m ard_fast.train` does, on objects where the command takes names.

    Args:
        method: a name, or a loss or class as in "Your own method".
        out: the run's folder.
        student: a name, or a network, which is copied, takes pixels in [0, 1] and starts with the weights that it has.
        train: a map-style data set or a loader of (image, label): uint8 `[C, H, W]`, or floating in [0, 1]. It is read
            once, into memory. None: `dataset` and `data_dir` are among the settings.
        test: likewise.
        val: likewise; None holds out images of `train`, as `val_size` says.
        teacher: a trained network, or what `--teacher` takes.
        clean_teacher: likewise.
        resume: go on with the run in `out`, if one is there; objects and settings must be those it was started with.
        **settings: the command's flags: `eps=8/255`, `epochs=30`, `device="cuda"`.

    Returns:
        Summary, folder and trained network. In config.yaml objects appear as `given` and their class, so only Python
        can repeat or resume the run.

    Raises:
        ValueError, FileNotFoundError: an argument that cannot be used, named, before any work.
        FileExistsError: `out` holds a run, and `resume` is false.
        DamagedRun: `resume`, and the run was started with others.
        KeyboardInterrupt: stopped by SIGINT or SIGTERM; the checkpoint has been written.
        NonFiniteLoss: training diverged.
    """
    folder = RunFolder(out)
    if folder.config_file.exists() and not resume:
        raise FileExistsError(f"out: {folder.path} already holds a run; choose another folder or resume=True")
    if (train is None) != (test is None) or (val is not None and train is None):
        raise ValueError("test: train and test go together, and val with both")
    for name in ("dataset", "data_dir"):
        if train is not None and settings.get(name) is not None:
            raise ValueError(f"{name}: expected none beside train and test, got {settings[name]}")
    asked = {"method": method, "student": student, "teacher": teacher, "clean_teacher": clean_teacher}
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in asked.items()}
    named = {name: value for name, value in asked.items() if isinstance(value, str)}
    objects = {
        name: (getattr(value, "__name__", type(value).__name__), value)
        for name, value in asked.items()
        if value is not None and name not in named
    }
    for name, (kind, value) in objects.items():
        if name != "method" and not isinstance(value, nn.Module):
            raise ValueError(f"{name}: expected a name or a network (torch.nn.Module), got {kind}")
    if train is not None:
        dataset = read_dataset(train, test, val)
        objects["dataset"] = dataset.name, dataset
    with (
        holding(objects) as names,
        connect() as world,
        world.only_main_prints(),
        StopRequest() as stop,
        ExitStack() as stack,
    ):
        config = resolve({**settings, **named, **names})
        if config.method == COMPARE:
            raise ValueError("method: expected a single one; comparisons are made by python -m ard_fast.train")
        if config.threads:
            set_threads(config.threads)
        env = prepare(config, stop, world)
        made = world.from_main(lambda: stack.enter_context(lock_folder(folder.path)))
        with folder.removed_if_nothing_was_trained(made=made and world.is_main):
            try:
                carry_out(config, folder, env, resume=resume)
            except Interrupted as stopped:  # which `except Exception` does not take for an error
                raise KeyboardInterrupt(f"{stopped}; go on with resume=True") from None
        shape, classes = env.dataset.image_shape, env.dataset.num_classes
        best = load_network(folder.best, num_classes=classes, in_channels=shape[0], model=config.student)
    return Result(known(folder.summary()), folder.path, best)
