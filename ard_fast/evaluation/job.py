"""One evaluation, from settings to finished files."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ard_fast._commandline import Interrupted, StopRequest
from ard_fast._devices import find_device, full_precision, set_threads
from ard_fast._figures import eps_text
from ard_fast._typing import known
from ard_fast.attacks.base import GradientAttack
from ard_fast.data import Split, load_dataset
from ard_fast.data.splits import pixels
from ard_fast.evaluation.evaluator import Evaluator, evaluation_mode
from ard_fast.evaluation.export import save_images
from ard_fast.evaluation.figures import (
    MOST_CLASSES,
    attack_title,
    draw_pictures,
    plot_classes,
    plot_confusion,
    plot_curves,
)
from ard_fast.evaluation.loading import load_model, load_sources, match_classes, other_classes
from ard_fast.evaluation.report import (
    AttackProgress,
    Outcome,
    explain_columns,
    per_class,
    versions,
    write_report,
    write_results,
)
from ard_fast.evaluation.self_checks import SelfCheck, check_model, check_normalisation, check_results
from ard_fast.evaluation.standard_attacks import (
    AttackError,
    OwnAttack,
    curve_attack,
    default_attacks,
    make_plan,
    transferred,
)
from ard_fast.folding import FoldedNetwork, Unfoldable
from ard_fast.models.trial import TRIAL_IMAGES, initialise_lazily, try_network
from ard_fast.training.checkpoint import Opened, written_by_run

if TYPE_CHECKING:
    from ard_fast.evaluation.settings import Settings

CURVE_FILE, CLASSES_FILE, CONFUSION_FILE, PICTURES_FILE = (
    f"{name}.png" for name in ("accuracy_vs_eps", "per_class", "confusion", "pictures")
)
_CHECKED_IMAGES = 256


class Job:
    """Prepares and runs an evaluation. Wrong settings are refused by the constructor, before any attack.

    Args:
        settings: from `resolve_settings`.
        stop: asked before every forward pass.

    Raises:
        ValueError, FileNotFoundError: names the argument that is wrong.
    """

    def __init__(self, settings: Settings, stop: StopRequest) -> None:
        self._stop = stop
        self.device = find_device(settings.device)
        set_threads(settings.threads)
        self.dataset = load_dataset(
            settings.dataset,
            data_dir=settings.data_dir,
            val_size=settings.val_size,
            image_size=settings.image_size,
            image_cache=settings.image_cache,
            download=settings.download,
            only=settings.split,
        )
        if not self.dataset.classes_known:
            self.dataset = match_classes(settings.source, self.dataset)
        self.split = _sample(getattr(self.dataset, settings.split), settings.n_examples, settings.split)
        if settings.part is not None:
            part, count = settings.part
            if count > len(self.split):
                raise ValueError(f"part: expected at most {len(self.split)} parts, one an image, got {count}")
            self.split = self.split.take(torch.arange(part - 1, len(self.split), count))
        self.split = self.split.to(self.device)
        classes, attacks = self.dataset.num_classes, settings.attacks
        self.left_out: list[str] = []
        if attacks is None:
            attacks, self.left_out = default_attacks(settings.norm, classes)
        self.settings = settings = replace(settings, attacks=tuple(attacks))
        self.steps = make_plan(
            attacks, eps=settings.eps, norm=settings.norm, num_classes=classes, levels=self.dataset.levels
        )
        self.loaded = load_model(
            settings.source,
            settings.model,
            self.dataset,
            mean=settings.mean,
            std=settings.std,
            weights=settings.weights,
        )
        file = self.loaded.file
        if settings.transfer_from and not self.steps:
            raise ValueError(f"attacks: --transfer-from needs one, got {','.join(attacks)}")
        self.sources = load_sources(settings.transfer_from, settings.model, self.dataset)
        self.steps += [step for name in self.sources for step in transferred(self.steps, name)]
        self.sha256 = None if file is None else hashlib.sha256(file.read_bytes()).hexdigest()
        initialise_lazily(self.loaded.network, self.dataset.image_shape, "model")
        self.model: nn.Module = self.loaded.network.to(self.device)
        self.form = try_network(
            self.model,
            pixels(self.split.images[:TRIAL_IMAGES], self.dataset.levels),
            num_classes=classes,
            label="model",
            channels_last=settings.channels_last,
            precision=settings.precision,
            fixed_precision=True,
        )
        self.model.to(memory_format=self.form.layout)  # pyright: ignore[reportCallIssue]
        about_sources = [self._prepare(name, source) for name, source in self.sources.items()]
        self.folded = self._fold()
        self._try_own_attacks()
        self.selfcheck = self._check()
        self.progress = AttackProgress()
        self.evaluator = Evaluator(
            self.model,
            self.split,
            levels=self.dataset.levels,
            norm=settings.norm,
            eps=settings.eps,
            seed=settings.seed,
            batch_size=settings.batch_size,
            channels_last=self.form.layout == torch.channels_last,
            precision=settings.precision,
            sources={name: source.network for name, source in self.sources.items()},
            folded=self.folded,
            cascade=settings.cascade,
            listener=self.progress,
            before_forward=self._stop_if_requested,
        )
        name = f"{self.loaded.name} on {len(self.split)} {settings.split} images of {self.dataset.name}"
        warnings = [str(finding) for finding in self.selfcheck.findings]
        self.outcome = Outcome(name, self._facts() + about_sources, warnings, self.dataset.class_names)

    def _stop_if_requested(self) -> None:
        if self._stop.requested:
            raise Interrupted("stopped on request")

    def _fold(self) -> FoldedNetwork | None:
        """The form with folded batch norms, if it has some that can be; on a CPU, where it is known to be faster."""
        if self.device.type != "cpu" or self.settings.precision != "fp32":
            return None
        sample = pixels(self.split.images[:TRIAL_IMAGES], self.dataset.levels)
        try:
            with full_precision():
                network = FoldedNetwork(self.model, sample, layout=self.form.layout)
        except Unfoldable:
            return None
        return network if network.folded[0] else None

    def _try_own_attacks(self) -> None:
        part = self.split.sample(min(TRIAL_IMAGES, len(self.split)))
        x = pixels(part.images, self.dataset.levels).contiguous(memory_format=self.form.layout)
        for attack in (attack for step in self.steps for _, attack in step.stages if isinstance(attack, OwnAttack)):
            attack.try_on(self.model, x, part.labels)

    def _prepare(self, name: str, source: Opened) -> str:
        """Move a network that attacks are transferred from to the device, and say what it is."""
        network, form = source.network.to(self.device), self.form
        part = self.split.sample(min(_CHECKED_IMAGES, self.settings.batch_size, len(self.split)))
        x = pixels(part.images, self.dataset.levels).contiguous(memory_format=form.layout)
        try_network(
            network,
            x[:TRIAL_IMAGES],
            num_classes=self.dataset.num_classes,
            label=f"transfer_from: {name}",
            channels_last="true" if form.layout == torch.channels_last else "false",
            precision=self.settings.precision,
            fixed_precision=True,
        )
        network.to(memory_format=form.layout)  # pyright: ignore[reportCallIssue]
        with evaluation_mode(network), torch.no_grad():
            right = float((network(x).argmax(1) == part.labels).double().mean())
        weights = f" with the weights of {source.file}" if source.file else ""
        return f"attacks from {name}: {source.name}{weights}, {100 * right:.1f} % of {len(x)} clean images correct"

    def _check(self) -> SelfCheck:
        settings = self.settings
        chosen = self.split.sample(min(_CHECKED_IMAGES, settings.batch_size, len(self.split)))
        x = pixels(chosen.images, self.dataset.levels).contiguous(memory_format=self.form.layout)
        found = check_model(self.model, x, chosen.labels, num_classes=self.dataset.num_classes)
        if settings.mean is not None or settings.source is None or not written_by_run(settings.source):
            normaliser = check_normalisation(self.model, x, chosen.labels, self.dataset.name)
            if normaliser:
                found.add("normalisation", normaliser)
        if self.loaded.others and settings.weights is None:
            found.add("weights", f"{self.loaded.choice()} (choose with --weights).")
        classes = other_classes(settings.source, self.dataset)
        if classes:
            found.add("classes", classes)
        if not found.differentiable:
            self._leave_out_gradients(found)
        return found

    def _leave_out_gradients(self, found: SelfCheck) -> None:
        """Of a network without gradients only attacks made on other networks can be evaluated, and no curve."""
        without = ("square", *(step.name for step in self.steps if step.source or ":" in step.name))
        gradient = [step for step in self.steps if step.name not in without]
        if gradient and not self.sources:
            why = next(finding.message for finding in found.findings if finding.check == "no gradient")
            raise ValueError(f"attacks: {gradient[0].name} needs gradients. {why}")
        self.steps = [step for step in self.steps if step not in gradient]
        names = ", ".join([*(step.name for step in gradient), *["the curve against eps"] * bool(self.settings.curve)])
        if names:
            self.left_out.append(f"left out, because the network itself has no gradients: {names}")
        self.settings = replace(self.settings, curve=())

    def run(self) -> dict[str, Any]:
        """Run the attacks, and return the content of results.json, which is written after every attack.

        Raises:
            Interrupted: what is finished has been written; the message says what.
            AttackError: from an attack of one's own; what is finished has been written.
        """
        self.settings.out.mkdir(parents=True, exist_ok=True)
        print("\n".join(f"  {fact}" for fact in self.outcome.facts))
        for warning in self.outcome.warnings:
            print(f"  warning: {warning}")
        self.progress.header(self.steps)
        try:
            self.evaluator.clean()
            self._write()
            for step in self.steps:
                self.evaluator.run(step)
                self._write()
            for line in explain_columns(self.evaluator.results, cascade=self.settings.cascade):
                print(f"  {line}")
            self._warn_of_results()
            self._run_curve()
            self._plot()
            if self.steps:
                self._draw_attacked()
            if self.settings.save_images:
                self._save_images()
        except (Interrupted, KeyboardInterrupt, AttackError) as error:
            self.progress.close()
            wrong = f": {error}" if isinstance(error, AttackError) else ""
            message = f"stopped{wrong}; {self._finished()}"
            self.outcome.notes.append(f"Evaluation {message}.")
            self._plot()
            write_report(self.settings.out, self.evaluator, self.outcome)
            self._write()
            message = f"{message}; written to {self.settings.out}"
            raise (AttackError if wrong else Interrupted)(message) from error
        write_report(self.settings.out, self.evaluator, self.outcome)
        return self._write(complete=True)

    def _warn_of_results(self) -> None:
        for finding in check_results(self.evaluator.results):
            self.outcome.warnings.append(str(finding))
            print(f"  warning: {finding}")

    def _run_curve(self) -> None:
        if not self.settings.curve:
            return
        name, make = curve_attack(known(self.settings.attacks), norm=self.settings.norm)
        self.outcome.curve_name = name
        for point in self.evaluator.curve(name, make, self.settings.curve):
            self.outcome.curve.append(point)
            self.progress.close()
            self.progress.say(f"  {name} at eps {point.eps:<8.5g} {point.robust_acc:6.2f} %")

    def _plot(self) -> None:
        """The figures that need no more passes through the network."""
        settings, results, outcome = self.settings, self.evaluator.results, self.outcome
        if outcome.curve:
            points = {point.eps: point.robust_acc for point in outcome.curve}
            plot_curves(
                settings.out / CURVE_FILE,
                {self.loaded.name: [points]},
                attack=outcome.curve_name,
                norm=settings.norm,
                eps=settings.eps,
                worst_case=results[-1].worst_case_acc if len(results) > 1 else None,
            )
            outcome.pictures.append(("robust accuracy against eps", CURVE_FILE))
        if len(results) > 1:
            done = [attack_title(result.name) for result in results[1:]]
            robust = f"under {' and '.join(done)}" if len(done) < 3 else "under all attacks"
            rows = per_class(self.evaluator, outcome.class_names)
            plot_classes(settings.out / CLASSES_FILE, rows, robust=robust)
            outcome.pictures.append(("clean and robust accuracy by class", CLASSES_FILE))

    def _draw_attacked(self) -> None:
        """The figures of what the network takes the adversarial images for."""
        out, names = self.settings.out, self.outcome.class_names
        if len(names) <= MOST_CLASSES:
            plot_confusion(out / CONFUSION_FILE, self.evaluator, class_names=names)
            self.outcome.pictures.append(("true and predicted classes under attack", CONFUSION_FILE))
        if draw_pictures(out / PICTURES_FILE, self.evaluator, class_names=names):
            self.outcome.pictures.append(("clean images, perturbations, adversarial images", PICTURES_FILE))

    def _save_images(self) -> None:
        made = save_images(self.evaluator, self.settings.out)
        note = (
            f"{made.images} images at whole pixel levels in adversarial.npz: {made.still_fooled} of {made.fooled} "
            f"adversarial ones still fool the network after rounding inside the ball; largest perturbation "
            f"{made.largest:.6g} (eps {self.settings.eps:.6g})"
        )
        self.outcome.export = made._asdict()
        self.outcome.notes.append(note + ".")
        print(f"  {note}")

    def _facts(self) -> list[str]:
        """What is evaluated, and how."""
        settings, loaded = self.settings, self.loaded
        weights = f" with the weights of {loaded.file}" if loaded.file else ""
        norm = {"linf": "L-infinity", "l2": "L2"}[settings.norm]
        precision = {"fp32": "float32", "bf16": "attacks in bfloat16, verdicts in float32"}[settings.precision]
        part = "" if settings.part is None else f" (part {settings.part[0]} of {settings.part[1]})"
        folded = [] if self.folded is None else [f"gradients of its folded form, verdicts its own: {self.folded.facts}"]
        return [
            f"{loaded.name}{weights}",
            f"{len(self.split)} {settings.split} images of {self.dataset.name}{part}, "
            f"{self.dataset.describe(self.split)}, "
            f"pixels in [0, 1]; {norm} ball, eps {eps_text(settings.eps)}; eval mode, {precision}; "
            f"seed {settings.seed}",
            *folded,
            *self.left_out,
            *self._levels(),
            *self.form.notes,
        ]

    def _levels(self) -> list[str]:
        """What attacks of 8-bit images may do, counted in levels."""
        attacks = [attack for step in self.steps for _, attack in step.stages]
        radii = [attack.eps for attack in attacks if isinstance(attack, GradientAttack) and attack.levels]
        most = f"at most {round(255 * float(radii[0]))} of 255 levels from the clean one" if radii else ""
        return [f"-8bit: adversarial images of 8 bits, each pixel {most}"] if radii else []

    def _finished(self) -> str:
        done = [result.name for result in self.evaluator.results]
        text = f"finished: {', '.join(done) or 'nothing'}"
        if self.evaluator.unfinished:
            stages = ", ".join(stage.name for stage in self.evaluator.unfinished)
            text += f"; of the unfinished ensemble: {stages} (its accuracy is not known)"
        if self.outcome.curve:
            text += f"; {len(self.outcome.curve)} points of the curve"
        return text

    def _write(self, *, complete: bool = False) -> dict[str, Any]:
        settings, loaded = self.settings, self.loaded
        about = {
            "model": {"name": loaded.name, "weights": _text(loaded.file), "sha256": self.sha256},
            "settings": {
                key: _text(value) if key in ("source", "out") else value for key, value in asdict(settings).items()
            },
            "images": len(self.split),
            "classes": len(torch.unique(self.split.labels)),
            "levels": self.dataset.levels,
            "versions": versions(self.device),
            "selfcheck": self.selfcheck.measured,
        }
        return write_results(settings.out, about, self.evaluator, self.outcome, planned=self.steps, complete=complete)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _sample(split: Split, count: int | None, name: str) -> Split:
    if count is None:
        return split
    if count > len(split):
        raise ValueError(f"n_examples: expected 1 to {len(split)} {name} images, got {count}")
    return split.sample(count)
