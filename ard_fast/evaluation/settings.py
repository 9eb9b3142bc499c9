"""What an evaluation is asked to do: flags, filled up from the run's config.yaml and the data set's defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ard_fast._devices import device_note, resolve_device
from ard_fast._names import unknown
from ard_fast._precision import AUTO
from ard_fast.attacks.settings import NORMS
from ard_fast.data import DATASETS
from ard_fast.evaluation.accuracy import EVALUATION_SEED
from ard_fast.evaluation.plan import ATTACK_NAMES, check_name
from ard_fast.training.config import TrainConfig
from ard_fast.training.defaults import DATASET_DEFAULTS
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.settings.compute import SWITCH

SPLITS = ("test", "val", "train")
DEFAULT_CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of eps


@dataclass(frozen=True)
class Settings:
    """A resolved evaluation; pixels and eps in [0, 1].

    Attributes:
        source: a run's folder or a checkpoint file; None takes the model as its factory makes it.
        model: `package.module:factory`, a name of `ard_fast.models.MODELS`, or None where the checkpoint says.
        val_size: of the training files, as in `load_dataset`.
        n_examples: a sample of so many images of the split; None for all.
        attacks: names; None is the default list, without what the number of classes does not allow.
        mean, std: of a network trained on normalised images, pixels in [0, 1]; None where it takes pixels.
        weights: which of several sets of weights in a checkpoint file.
        curve: radii of the curve over eps; empty for none.
        image_size, image_cache: of an image folder, as in `load_dataset`.
        cascade: images fooled by any attack before are not attacked again.
        device: resolved: never "auto".
        device_note: what is printed behind it.
        threads: CPU threads, see `ard_fast._threads`.
    """

    source: Path | None
    model: str | None
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    weights: str | None
    dataset: str
    data_dir: str | None
    image_size: int | None
    image_cache: str | None
    download: bool
    val_size: int | None
    split: str
    n_examples: int | None
    attacks: tuple[str, ...] | None
    norm: str
    eps: float
    curve: tuple[float, ...]
    cascade: bool
    seed: int
    batch_size: int
    device: str
    device_note: str
    channels_last: str
    threads: int
    save_images: bool
    out: Path


def resolve_settings(flags: Mapping[str, Any]) -> Settings:
    """Settings from the command line's texts (absent flags are absent keys).

    A run's folder gives data set, eps, device, batch size, layout and threads; so does the folder around a checkpoint
    that is part of a run. Without a run the data set must be named, and its defaults are taken.

    Raises:
        ValueError, FileNotFoundError: names the flag, what it takes and what it got.
    """
    source = Path(flags["run"]) if "run" in flags else None
    if source is None and "model" not in flags:
        raise ValueError("run: expected the folder of a run, a checkpoint file, or --model package.module:factory")
    config = _config_of(source)
    dataset = flags.get("dataset", config.dataset if config else None)
    if dataset is None:
        what = source if source is not None else flags["model"]
        raise ValueError(f"dataset: {what} is not part of a run, so name one with --dataset: {', '.join(DATASETS)}")
    if dataset not in DATASETS:
        raise ValueError(unknown("dataset", dataset, DATASETS))
    if config is None or config.dataset != dataset:
        config = TrainConfig(**{**DATASET_DEFAULTS.get(dataset, {}), "dataset": dataset})
    split = flags.get("split", "test")
    norm = flags.get("norm", "linf").lower()
    for name, value, known in (("split", split, SPLITS), ("norm", norm, NORMS)):
        if value not in known:
            raise ValueError(f"{name}: {unknown('value', value, known)}")
    if norm != "linf" and "eps" not in flags:
        raise ValueError(
            f"eps: --norm {norm} needs --eps (0.5 is usual for CIFAR-10); a run's own is of the L-inf ball"
        )
    mean, std = (_numbers(name, flags[name]) if name in flags else None for name in ("mean", "std"))
    if (mean is None) != (std is None):
        raise ValueError(f"mean: mean and std go together, got mean {mean}, std {std}")
    of_run = AUTO if config.channels_last == "true" else config.channels_last  # which was of the run's own student
    channels_last = flags.get("channels_last", of_run).lower()
    if channels_last not in SWITCH:
        raise ValueError(f"channels_last: {unknown('value', channels_last, SWITCH)}")
    eps = _radius("eps", flags["eps"], norm) if "eps" in flags else config.eps
    device = resolve_device(flags.get("device", config.device))
    note = device_note(device)
    if "device" not in flags and device.startswith("cuda") and not torch.cuda.is_available():
        device, note = "cpu", f" (torch sees no CUDA device; the run was trained on {device})"
    return Settings(
        source=source,
        model=flags.get("model"),
        mean=mean,
        std=std,
        weights=flags.get("weights"),
        dataset=dataset,
        data_dir=flags.get("data_dir", config.data_dir),
        image_size=_count("image_size", flags["image_size"]) if "image_size" in flags else config.image_size,
        image_cache=flags.get("image_cache", config.image_cache),
        val_size=_count("val_size", flags["val_size"]) if "val_size" in flags else config.val_size,
        download=flags.get("download", False),
        split=split,
        n_examples=_count("n_examples", flags["n_examples"])
        if "n_examples" in flags
        else {"test": config.test_subset, "train": config.subset}.get(split),
        attacks=_attacks(flags["attacks"]) if "attacks" in flags else None,
        norm=norm,
        eps=eps,
        curve=_curve(flags.get("eps_curve"), eps, norm),
        cascade=flags.get("cascade", False),
        seed=_count("seed", flags.get("seed", EVALUATION_SEED), least=0),
        batch_size=_count("batch_size", flags.get("batch_size", config.eval_batch_size)),
        device=device,
        device_note=note,
        channels_last=channels_last,
        threads=_count("threads", flags["threads"], least=0) if "threads" in flags else config.threads,
        save_images=flags.get("save_images", False),
        out=_free_folder(flags.get("out"), source, flags.get("model")),
    )


def _config_of(source: Path | None) -> TrainConfig | None:
    """The configuration of the run that `source` is, or is part of."""
    if source is None:
        return None
    if not source.exists():
        raise FileNotFoundError(f"run: no such folder or file: {source}")
    folder = RunFolder(source if source.is_dir() else source.parent)
    if not folder.config_file.is_file():
        if source.is_dir():
            raise FileNotFoundError(f"run: {source} is not the folder of a run (no {folder.config_file.name})")
        return None
    return folder.config()


def _free_folder(out: str | None, source: Path | None, model: str | None) -> Path:
    """The folder for the results, where no other evaluation's are."""
    if out is not None:
        if (Path(out) / "results.json").exists():
            raise FileExistsError(f"out: {out} already holds an evaluation; choose another folder")
        return Path(out)
    if source is None:
        base = Path("runs") / f"evaluation-{(model or '').replace(':', '-')}"
    elif source.is_dir():
        base = source / "evaluation"
    else:
        base = source.with_name(f"{source.stem}-evaluation")
    number, folder = 1, base
    while (folder / "results.json").exists():
        number += 1
        folder = base.with_name(f"{base.name}-{number}")
    return folder


def _attacks(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip().lower() for name in text.split(",") if name.strip()))
    if not names:
        raise ValueError(f"attacks: expected names, comma-separated; known: {', '.join(ATTACK_NAMES)}")
    for name in names:
        check_name(name)
    return names


def _curve(text: str | None, eps: float, norm: str) -> tuple[float, ...]:
    if text is None:
        radii = [factor * eps for factor in DEFAULT_CURVE]
        return (0.0, *(radius for radius in radii if norm != "linf" or radius <= 1.0))
    if text.strip().lower() == "none":
        return ()
    radii = {_radius("eps_curve", part, norm) for part in text.split(",") if part.strip()}
    if not radii:
        raise ValueError(f"eps_curve: expected radii, comma-separated, or none, got {text!r}")
    return tuple(sorted(radii))


def _numbers(name: str, text: str) -> tuple[float, ...]:
    """A number for each channel, or one for all."""
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = (math.nan,)
    if not all(map(math.isfinite, values)) or (name == "std" and min(values) <= 0):
        raise ValueError(f"{name}: expected a number for each channel, comma-separated, got {text!r}")
    return values


def _radius(name: str, text: str, norm: str) -> float:
    """A radius, which may be written 8/255."""
    try:
        numerator, _, denominator = text.partition("/")
        value = float(numerator) / float(denominator) if denominator else float(numerator)
    except (ValueError, ZeroDivisionError):
        raise ValueError(f"{name}: expected a number such as 8/255 or 0.03, got {text!r}") from None
    most = 1.0 if norm == "linf" else math.inf
    if not (math.isfinite(value) and 0.0 <= value <= most):
        wanted = "0 to 1, in units of pixels in [0, 1] (8/255, not 8)" if norm == "linf" else "at least 0"
        raise ValueError(f"{name}: expected {wanted}, got {text}")
    return value


def _count(name: str, text: str | int, *, least: int = 1) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise ValueError(f"{name}: expected a whole number of at least {least}, got {text!r}")
    return value
