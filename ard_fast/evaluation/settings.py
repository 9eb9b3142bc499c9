"""What an evaluation is asked to do: its flags, completed from the run's config.yaml and the data set's defaults."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ard_fast._commandline import FlagModel, checked, setting
from ard_fast._devices import AUTO, device_note, resolve_device
from ard_fast._names import GIVEN, unknown
from ard_fast.attacks.settings import NORMS
from ard_fast.data import DATASETS
from ard_fast.evaluation.results import EVALUATION_SEED
from ard_fast.evaluation.standard_attacks import ATTACKS_HELP, DEFAULT_ATTACKS, read_names
from ard_fast.training.config import TrainConfig
from ard_fast.training.defaults import DATASET_DEFAULTS
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.settings import SWITCH

SPLITS = ("test", "val", "train")
PRECISIONS = ("fp32", "bf16")
DEFAULT_CURVE = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0)  # of eps


class NetworkFlags(FlagModel):
    group = "network"
    run: str = setting(None, "run folder (its best checkpoint is evaluated), .safetensors file or .pt file")
    model: str = setting(
        None,
        "network of a checkpoint that does not name its network; or robustbench:NAME; or package.module:factory, "
        "called without arguments and loaded with the weights of RUN if given",
    )
    mean: tuple[float, ...] = setting(
        None, "channel means, for pixels in [0, 1], of weights trained on normalised images [the file's, or none]"
    )
    std: tuple[float, ...] = setting(None, "channel standard deviations, likewise [the file's, or none]")
    weights: str = setting(
        None, "which weights to load from a file with several sets, for example ema [those that are not an average]"
    )


class AttackFlags(FlagModel):
    group = "attacks"
    attacks: str = setting(
        None,
        f"{ATTACKS_HELP} [{','.join(DEFAULT_ATTACKS['linf'])}, without those that need more classes]",
        metavar="LIST",
    )
    norm: str = setting(None, f"norm of the ball: {' or '.join(NORMS)} [{NORMS[0]}]", choices=NORMS)
    eps: float = setting(
        None, "radius of the ball, for pixels in [0, 1]; fractions such as 8/255 are accepted [the run's]"
    )
    eps_curve: tuple[float, ...] | None = setting(
        None,
        "radii of the plot of accuracy against eps, comma-separated, or none; the attack is apgd-ce if --attacks has "
        "it, else pgd20 [0 to 2 eps; with --part none]",
    )
    cascade: bool = setting(
        None,
        "do not attack images that an earlier attack has already fooled: faster, but only the worst case then covers "
        "all images",
    )
    transfer_from: tuple[str, ...] = setting(
        None,
        "also evaluate the attacks made on other networks: run folders, .safetensors files or package.module:factory, "
        "comma-separated",
    )
    seed: int = setting(None, f"seed of every attack [{EVALUATION_SEED}]", ge=0)


class DataFlags(FlagModel):
    group = "data"
    dataset: str = setting(None, f"data set: {', '.join(DATASETS)} [the run's]")
    data_dir: str = setting(None, "where the images are, as in training [the run's]", metavar="DIR")
    download: bool = setting(
        None,
        "download missing files of cifar10, cifar100, mnist or fashion-mnist to --data-dir and verify their checksums",
    )
    image_size: int = setting(None, "image folders: resize images to this, as in training [the run's]", ge=1)
    image_cache: str = setting(None, "image folders: where decoded images are kept [the run's]", metavar="DIR")
    split: str = setting(None, f"{', '.join(SPLITS)} [{SPLITS[0]}]", choices=SPLITS)
    val_size: int = setting(None, "--split val and train: training images held out for validation [the run's]", ge=1)
    n_examples: int = setting(
        None, "evaluate this many images only, all classes in proportion, the same ones each time [all]", ge=1
    )
    part: str = setting(
        None,
        "K/N: of these images the K-th of N parts only, for an evaluation in pieces or on several machines; compare "
        "puts the parts together",
        metavar="K/N",
    )


class ComputeFlags(FlagModel):
    group = "compute"
    batch_size: int = setting(None, "images per batch; does not change the results [the run's]", ge=1)
    device: str = setting(None, "cpu, cuda, cuda:N or auto: cuda if there is one [the run's, or auto]")
    threads: int = setting(None, "CPU threads; 0: OMP_NUM_THREADS, else the number of physical cores [the run's]", ge=0)
    precision: str = setting(
        None,
        "of the network while it is attacked: fp32 or bf16; whether an image is fooled is decided in fp32 [fp32]",
        choices=PRECISIONS,
    )
    channels_last: str = setting(None, "channels-last memory format: auto, true or false [the run's]", choices=SWITCH)


class OutputFlags(FlagModel):
    group = "output"
    out: str = setting(None, "folder for the results [RUN/evaluation, or a new one beside it]", metavar="DIR")
    save_images: bool = setting(
        None,
        "save the adversarial images, rounded to 8 bits inside the ball and classified again: adversarial.npz, and "
        "PNG files in samples",
    )


class Flags(OutputFlags, ComputeFlags, DataFlags, AttackFlags, NetworkFlags):
    """The command line: a field is a flag (`run` the positional argument), its type how the text is read."""


@dataclass(frozen=True)
class Settings:
    """A resolved evaluation; the fields that are not explained here are those of `Flags`.

    Attributes:
        source: a run's folder or a checkpoint file; None takes the model as its factory makes it.
        n_examples: None for all images of the split.
        part: (K, N) as in `Flags`, or None.
        attacks: names; None is the default list, without those that need more classes.
        curve: radii of the curve against eps; empty for none.
        device: resolved: never "auto".
        device_note: printed after it.
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
    part: tuple[int, int] | None
    attacks: tuple[str, ...] | None
    norm: str
    eps: float
    curve: tuple[float, ...]
    cascade: bool
    transfer_from: tuple[str, ...]
    seed: int
    batch_size: int
    device: str
    device_note: str
    precision: str
    channels_last: str
    threads: int
    save_images: bool
    out: Path


def resolve_settings(flags: Mapping[str, Any]) -> Settings:
    """Settings from the texts of the command line, of which absent flags are absent.

    A run's folder gives data set, eps, device, batch size, layout and threads; so does the folder around a checkpoint
    that is part of a run. Without a run the data set must be named, and its defaults are taken.

    Raises:
        ValueError, FileNotFoundError: names the flag, what it takes and what it got.
    """
    lower = {name: str(flags[name]).lower() for name in ("norm", "channels_last") if name in flags}
    read = checked(Flags, {**flags, **lower})
    given = {name: getattr(read, name) for name in flags}
    source = Path(given["run"]) if "run" in given else None
    if source is None and "model" not in given:
        raise ValueError("run: expected the folder of a run, a checkpoint file, or --model package.module:factory")
    config = _config_of(source)
    dataset = given.get("dataset", config.dataset if config else None)
    if dataset is None:
        what = source if source is not None else given["model"]
        raise ValueError(f"dataset: {what} is not part of a run, so name one with --dataset: {', '.join(DATASETS)}")
    if dataset.startswith(f"{GIVEN}:"):
        raise ValueError(f"dataset: {source} was trained on images of a Python program; name a data set with --dataset")
    if dataset not in DATASETS:
        raise ValueError(unknown("dataset", dataset, DATASETS))
    if dataset == "digits" and given.get("data_dir"):
        raise ValueError(
            f"data_dir: expected none for digits, which come with scikit-learn, got {given['data_dir']}; name the data "
            "set of these files with --dataset"
        )
    if config is None or config.dataset != dataset:
        config = checked(TrainConfig, {**DATASET_DEFAULTS.get(dataset, {}), "dataset": dataset})
    split, norm = given.get("split", SPLITS[0]), given.get("norm", NORMS[0])
    of_run = AUTO if config.channels_last == "true" else config.channels_last  # "true" was for the run's own student
    if norm != "linf" and "eps" not in given:
        raise ValueError(
            f"eps: --norm {norm} needs --eps (0.5 is usual for CIFAR-10); a run's own is of the L-inf ball"
        )
    _check_normalisation(given)
    eps = given.get("eps", config.eps)
    curve = given.get("eps_curve", None if "part" in given else _default_curve(eps, norm))
    if curve is not None and not curve:
        raise ValueError(f"eps_curve: expected radii, comma-separated, or none, got {flags['eps_curve']!r}")
    for name, radius in (("eps", eps), *(("eps_curve", radius) for radius in curve or ())):
        _check_radius(name, radius, norm)
    device = resolve_device(given.get("device", config.device))
    note = device_note(device)
    if "device" not in given and device.startswith("cuda") and not torch.cuda.is_available():
        device, note = "cpu", f" (torch sees no CUDA device; the run was trained on {device})"
    of_split = {"test": config.test_subset, "train": config.subset}.get(split)
    return Settings(
        source=source,
        **{name: given.get(name) for name in ("model", "mean", "std", "weights")},
        **{
            name: given.get(name, getattr(config, name))
            for name in ("data_dir", "image_size", "image_cache", "val_size", "threads")
        },
        **{name: given.get(name, False) for name in ("download", "cascade", "save_images")},
        dataset=dataset,
        split=split,
        n_examples=given.get("n_examples", of_split),
        part=_part(given["part"]) if "part" in given else None,
        attacks=read_names(given["attacks"]) if "attacks" in given else None,
        norm=norm,
        eps=eps,
        curve=tuple(sorted(set(curve or ()))),
        transfer_from=tuple(dict.fromkeys(given.get("transfer_from", ()))),
        seed=given.get("seed", EVALUATION_SEED),
        batch_size=given.get("batch_size", config.eval_batch_size),
        device=device,
        device_note=note,
        precision=given.get("precision", PRECISIONS[0]),
        channels_last=given.get("channels_last", of_run),
        out=_free_folder(given.get("out"), source, given.get("model")),
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
    """A folder for the results that holds no other evaluation."""
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


def _part(text: str) -> tuple[int, int]:
    part, slash, count = text.partition("/")
    if not (slash and part.isdecimal() and count.isdecimal() and 1 <= int(part) <= int(count)):
        raise ValueError(f"part: expected K/N with K from 1 to N, such as 2/10, got {text!r}")
    return int(part), int(count)


def _check_normalisation(given: Mapping[str, Any]) -> None:
    mean, std = given.get("mean"), given.get("std")
    if (mean is None) != (std is None):
        raise ValueError(f"mean: mean and std go together, got mean {mean}, std {std}")
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and (not values or (name == "std" and min(values) <= 0)):
            text = ",".join(map(str, values))
            raise ValueError(f"{name}: expected a number for each channel, comma-separated, got {text!r}")


def _default_curve(eps: float, norm: str) -> tuple[float, ...]:
    radii = [factor * eps for factor in DEFAULT_CURVE]
    return (0.0, *(radius for radius in radii if norm != "linf" or radius <= 1.0))


def _check_radius(name: str, value: float, norm: str) -> None:
    most = 1.0 if norm == "linf" else math.inf
    if not 0.0 <= value <= most:
        wanted = "0 to 1, in units of pixels in [0, 1] (8/255, not 8)" if norm == "linf" else "at least 0"
        raise ValueError(f"{name}: expected {wanted}, got {value:g}")
