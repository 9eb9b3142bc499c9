"""From a configuration to finished folders: the checks before, the teachers, the run or a comparison's runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import nn

from ard_fast._commandline import StopRequest
from ard_fast._devices import find_device, resolve_device
from ard_fast._names import GIVEN
from ard_fast._progress import Whole, wrapped
from ard_fast._typing import known
from ard_fast.data import Batch, add_extra, load_dataset
from ard_fast.evaluation.measure import at_chance
from ard_fast.evaluation.self_checks import describe_teacher
from ard_fast.methods.base import MethodContext
from ard_fast.methods.own import try_method
from ard_fast.methods.registry import build_method, find_method, method_label
from ard_fast.models import MODELS, count_parameters
from ard_fast.models.registry import ROBUSTBENCH
from ard_fast.models.trial import TRIAL_IMAGES
from ard_fast.teachers.teacher import Teacher
from ard_fast.training.checkpoint import DamagedRun, load_network, load_state
from ard_fast.training.compute import ComputeConfig
from ard_fast.training.config import TrainConfig, for_method, for_teacher, identity, is_path
from ard_fast.training.conventions import describe_comparison
from ard_fast.training.distributed import World
from ard_fast.training.fitting import (
    Environment,
    check_model_fits,
    copy_for_method,
    first_images,
    fit_beside,
    fit_student,
    fit_teacher,
    initial_student,
    merges_last_batch,
)
from ard_fast.training.graph import check_graph
from ard_fast.training.report import require_tensorboard
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.settings import COMPARE, ROLES
from ard_fast.training.trainer import Trainer


def prepare(config: TrainConfig, stop: StopRequest, world: World) -> Environment:
    """Load the data and check everything that can be checked before any work.

    The main process prepares before the others, so that it alone downloads and decodes.

    Raises:
        ValueError, FileNotFoundError: no such device, data, teacher, or networks that do not fit.
    """
    env = world.main_first(lambda: _prepare(config, stop, world))
    for role, network in env.given.items():
        _refuse_untrained(config, role, network, env)
    return env


def _refuse_untrained(config: TrainConfig, role: str, network: nn.Module, env: Environment) -> None:
    """Refuse the network of a factory that has learned nothing: it may load its weights itself, and has not.

    Raises:
        ValueError: says what to type instead.
    """
    source, flag = getattr(config, role), f"--{role.replace('_', '-')}"
    worth = env.measure(network, config)
    if is_path(role, source) or worth.normaliser or source.startswith(f"{ROBUSTBENCH}:"):
        return
    if at_chance(worth.clean, worth.images, env.dataset.num_classes):
        if source.startswith(f"{GIVEN}:"):
            raise ValueError(f"{role}: {source} is untrained: {describe_teacher(worth)}; train it, or load its weights")
        raise ValueError(
            f"{role}: {source} makes an untrained network: {describe_teacher(worth)}. Train it first, python -m "
            f"ard_fast.train --method {config.teacher_method if role == 'teacher' else 'natural'} --student {source}, "
            f"and give that run's folder as {flag} with {flag}-model {source}; or load its weights in the factory"
        )


def _prepare(config: TrainConfig, stop: StopRequest, world: World) -> Environment:
    if config.tensorboard:
        require_tensorboard()
    device = find_device(world.device_name(resolve_device(config.device)))
    check_graph(config.graph, device, world)
    if config.batch_size < world.size * config.accumulate:
        raise ValueError(
            f"batch_size: {config.batch_size} images cannot be cut into {config.accumulate} micro-batches for each of "
            f"{world.size} processes"
        )
    dataset = load_dataset(
        config.dataset,
        data_dir=config.data_dir,
        val_size=config.val_size,
        subset=config.subset,
        test_subset=config.test_subset,
        download=config.download,
        image_size=config.image_size,
        image_cache=config.image_cache,
    )
    if config.extra_data is not None:
        dataset = add_extra(dataset, config.extra_data)
    check_model_fits(config.student, dataset, "student", mean=config.student_mean, std=config.student_std)
    student, compute, _ = fit_student(config, dataset, device)
    fit_beside(config, dataset, student, compute)
    merges_last_batch(config, dataset, world, device)
    env = Environment(dataset.evaluated_on(device), device, stop, world)
    for role in _roles(config):
        source = getattr(config, role)
        if source in MODELS:
            mean, std = (getattr(config, f"{role}_{part}") for part in ("mean", "std"))
            check_model_fits(source, dataset, role, mean=mean, std=std)
            fit_student(for_teacher(config, role), dataset, device, label=role)
            merges_last_batch(for_teacher(config, role), dataset, world, device)
        else:
            network = _load_teacher(config, role, source, env)
            fit_teacher(network, config, dataset, device, role)
            env.given[role] = network
    for name in config.methods():
        if ":" in name:
            _try_own(for_method(config, name, config.seed), student, compute, env)
    return env


def _try_own(config: TrainConfig, student: nn.Module, compute: ComputeConfig, env: Environment) -> None:
    """See whether a method of the user's own works, with untrained networks for teachers that are to be trained first.

    Raises:
        ValueError: it does not.
    """
    untrained = {
        role: for_teacher(config, role) for role in find_method(config.method).teachers if role not in env.given
    }
    networks = {role: initial_student(one, env.dataset).to(env.device) for role, one in untrained.items()}
    teachers = {role: Teacher(network) for role, network in {**env.given, **networks}.items()}
    beside = fit_beside(config, env.dataset, student, compute)
    context = MethodContext(
        num_classes=env.dataset.num_classes,
        epochs=config.passes(),
        teachers=teachers,
        networks=beside,
        device=env.device,
        copy_student=partial(copy_for_method, student, config.method),
    )
    images, labels = first_images(env.dataset, env.device, TRIAL_IMAGES), env.dataset.train.labels[:TRIAL_IMAGES]
    ids, seed = torch.arange(len(labels), device=env.device), torch.zeros(1, dtype=torch.int64, device=env.device)
    batch = Batch(images.contiguous(memory_format=compute.layout), labels.to(env.device), ids, seed)
    method, label = build_method(config.method, config, context), f"method: {config.method}"
    try_method(method, student, batch, precision=compute.precision, label=label)


def _roles(config: TrainConfig) -> list[str]:
    """The teachers that the run needs, in the order they are trained."""
    return [role for role in ROLES if any(role in find_method(name).teachers for name in config.methods())]


def run(
    config: TrainConfig,
    folder: RunFolder,
    env: Environment,
    *,
    resume: bool = False,
    teacher_folders: Path | None = None,
    prefix: str = "",
    whole: Whole | None = None,
) -> None:
    """Carry out one run in a folder.

    Args:
        config: of a single method.
        folder: of the run.
        env: data set, device and processes.
        resume: go on with what is in the folder.
        teacher_folders: teachers that are to be trained first go to `teacher_folders / (prefix + role)`; None: into
            the run's folder.
        prefix: of their names.
        whole: the comparison that prints the run's line; None: the run prints its conventions and its epochs.
    """
    if env.world.from_main(lambda: _start(config, folder, env, resume)):
        if whole is None:
            print(f"{folder.path}: already finished", flush=True)
        return
    teachers, first = {}, False
    for role in find_method(config.method).teachers:
        source: str | Path = getattr(config, role)
        if source in MODELS:
            source = (teacher_folders or folder.path) / (prefix + role)
            if env.world.from_main(RunFolder(source).summary) is None:  # a comparison has trained it already
                print(f"first the {role.replace('_', ' ')}:", flush=True)
                run(for_teacher(config, role), RunFolder(source), env, resume=resume)
                first = True
        teachers[role] = env.world.from_main(partial(_load_teacher, config, role, source, env))
    trainer = Trainer(config, folder, env, teachers, whole)
    if whole is None:
        if first:
            print("the student:")
        print("\n".join(wrapped(line) for line in trainer.describe()), flush=True)
    for doubt in trainer.doubts:
        print(f"  warning{'' if whole is None else f', {whole.label}'}: {doubt}", flush=True)
    trainer.run()


def _start(config: TrainConfig, folder: RunFolder, env: Environment, resume: bool) -> bool:
    """Make the folder, unless it is there to go on with; whether the run is finished.

    Raises:
        DamagedRun: what is there is of another configuration, or was trained on other images.
    """
    if not (resume and folder.config_file.exists()):
        folder.start(config)
        return False
    before = folder.config()
    if identity(before) != identity(config):
        raise DamagedRun(f"resume: {folder.path} was started with another configuration")
    done = config.method != COMPARE and folder.summary() is not None  # a comparison asks the runs inside
    for state in (folder.state, *folder.path.glob(f"*/{folder.state.name}")):  # of this run, and of those inside
        if state.is_file() and (before != config or done):
            folder.check_inputs(load_state(state).inputs, env.fingerprints, config)
    if not done and before != config:  # other places
        folder.write_config(config)
    return done


def _load_teacher(config: TrainConfig, role: str, source: str | Path, env: Environment) -> nn.Module:
    dataset = env.dataset
    return load_network(
        source,
        num_classes=dataset.num_classes,
        in_channels=dataset.image_shape[0],
        model=getattr(config, f"{role}_model"),
        mean=getattr(config, f"{role}_mean"),
        std=getattr(config, f"{role}_std"),
        weights=getattr(config, f"{role}_weights"),
        argument=role,
        model_argument=f"{role}_model",
    )


def run_comparison(
    config: TrainConfig, folder: RunFolder, env: Environment, *, resume: bool = False
) -> dict[str, list[RunFolder]]:
    """For every seed the teachers, then every method on the same student from the same initial weights.

    Returns:
        For each role and method the folders of its runs, one a seed.
    """
    env.world.from_main(lambda: _start(config, folder, env, resume))
    planned: list[tuple[str, TrainConfig]] = []
    for seed in range(config.seed, config.seed + config.compare_seeds):
        trained = [role for role in _roles(config) if getattr(config, role) in MODELS]
        planned += [(role, for_teacher(config.replace(seed=seed), role)) for role in trained]
        planned += [(method, for_method(config, method, seed)) for method in config.compare_methods]
    networks = {one.student: one for _, one in planned}
    sizes = {name: count_parameters(initial_student(one, env.dataset)) for name, one in networks.items()}
    print("\n".join(wrapped(line) for line in describe_comparison(config, planned, env.dataset, sizes)), flush=True)
    whole = Whole([(method_label(name).replace("_", " "), one.seed) for name, one in planned])
    results: dict[str, list[RunFolder]] = {}
    for name, one in planned:
        prefix = f"seed{one.seed}-"
        place = RunFolder(folder.path / (prefix + name.replace(":", ".")))
        run(one, place, env, resume=resume, teacher_folders=folder.path, prefix=prefix, whole=whole)
        whole.finish(known(env.world.from_main(place.summary)))
        results.setdefault(name, []).append(place)
    return results
