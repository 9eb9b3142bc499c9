"""One evaluation from settings to finished files."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from ard_fast._devices import find_device
from ard_fast._interrupts import Interrupted, StopRequest
from ard_fast._threads import set_threads
from ard_fast._typing import known
from ard_fast.data import Split, load_dataset
from ard_fast.data.splits import pixels
from ard_fast.evaluation import figures, results
from ard_fast.evaluation.curve import CurvePoint, accuracy_curve
from ard_fast.evaluation.display import Display
from ard_fast.evaluation.export import Export, save_images
from ard_fast.evaluation.loading import load_model, match_classes, other_classes
from ard_fast.evaluation.plan import curve_attack, default_attacks, make_plan
from ard_fast.evaluation.runner import Evaluator
from ard_fast.evaluation.selfcheck import Finding, SelfCheck, check_model, check_normalisation, check_results
from ard_fast.evaluation.settings import Settings
from ard_fast.models.trial import TRIAL_IMAGES, initialise_lazily, try_network
from ard_fast.training.run_folder import RunFolder

PLOT_FILE, PICTURES_FILE = "accuracy_vs_eps.png", "pictures.png"
_CHECKED_IMAGES = 256


class Job:
    """Everything that can be refused is refused by the constructor, before any attack.

    Args:
        settings: from `resolve_settings`.
        stop: asked before every forward pass.

    Raises:
        ValueError, FileNotFoundError: names the argument that is wrong.
    """

    def __init__(self, settings: Settings, stop: StopRequest) -> None:
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
        self.split = self.split.to(self.device)
        classes, attacks = self.dataset.num_classes, settings.attacks
        self.left_out: list[str] = []
        if attacks is None:
            attacks, self.left_out = default_attacks(settings.norm, classes)
        self.settings = settings = replace(settings, attacks=tuple(attacks))
        self.steps = make_plan(attacks, eps=settings.eps, norm=settings.norm, num_classes=classes)
        self.loaded = load_model(
            settings.source,
            settings.model,
            self.dataset,
            mean=settings.mean,
            std=settings.std,
            weights=settings.weights,
        )
        initialise_lazily(self.loaded.network, self.dataset.image_shape, "model")
        self.model: nn.Module = self.loaded.network.to(self.device)
        self.form = try_network(
            self.model,
            pixels(self.split.images[:TRIAL_IMAGES], self.dataset.levels),
            num_classes=classes,
            label="model",
            channels_last=settings.channels_last,
        )
        self.model.to(memory_format=self.form.layout)  # pyright: ignore[reportCallIssue]
        self.selfcheck = self._check()
        self.display = Display()
        self.evaluator = Evaluator(
            self.model,
            self.split,
            levels=self.dataset.levels,
            norm=settings.norm,
            eps=settings.eps,
            seed=settings.seed,
            batch_size=settings.batch_size,
            channels_last=self.form.layout == torch.channels_last,
            cascade=settings.cascade,
            listener=self.display,
            stop=lambda: stop.requested,
        )

    def _check(self) -> SelfCheck:
        count = min(_CHECKED_IMAGES, self.settings.batch_size, len(self.split))
        chosen = self.split.sample(count)
        x = pixels(chosen.images, self.dataset.levels).contiguous(memory_format=self.form.layout)
        found = check_model(self.model, x, chosen.labels, num_classes=self.dataset.num_classes)
        settings = self.settings
        if settings.mean is not None or settings.source is None or not RunFolder.trained(settings.source):
            check_normalisation(self.model, x, chosen.labels, self.dataset.name, found)
        if self.loaded.choice and self.settings.weights is None:
            found.add("weights", self.loaded.choice + ".")
        classes = other_classes(self.settings.source, self.dataset)
        if classes:
            found.add("classes", classes)
        gradient = [step.name for step in self.steps if step.name != "square"]
        if gradient and not found.differentiable:
            why = next(finding.message for finding in found.findings if finding.check == "no gradient")
            raise ValueError(f"attacks: {gradient[0]} needs gradients. {why}")
        return found

    # ---- the run ----------------------------------------------------------------------------------------------

    def run(self) -> dict[str, Any]:
        """Run the attacks, and return what results.json holds. Results are written after every attack.

        Raises:
            Interrupted: what is finished has been written; the message says what.
        """
        settings = self.settings
        settings.out.mkdir(parents=True, exist_ok=True)
        print("\n".join(f"  {fact}" for fact in self.facts()))
        for finding in self.selfcheck.findings:
            print(f"  warning: {finding}")
        self.display.header()
        parts = _Parts()
        try:
            self.evaluator.clean()
            self._write(parts)
            for step in self.steps:
                self.evaluator.run(step)
                self._write(parts)
            self._finish(parts)
        except (Interrupted, KeyboardInterrupt) as error:
            self.display.close()
            message = f"stopped; {self._finished(parts)}"
            parts.notes.append(f"Evaluation {message}.")
            self._plot(parts)
            self._report(parts)
            self._write(parts)
            raise Interrupted(f"{message}; written to {settings.out}") from error
        self._report(parts)
        return self._write(parts, complete=True)

    def _finish(self, parts: _Parts) -> None:
        """What comes after the attacks: explanations, warnings, curve, pictures, export."""
        settings, evaluator = self.settings, self.evaluator
        print("\n".join(f"  {line}" for line in self._explained()))
        parts.warnings = check_results(evaluator.results)
        for finding in parts.warnings:
            print(f"  warning: {finding}")
        if settings.curve:
            name, make = curve_attack(known(settings.attacks), norm=settings.norm)
            parts.curve_name = name
            for point in accuracy_curve(evaluator, name, make, settings.curve):
                parts.curve.append(point)
                self.display.close()
                print(f"  {name} at eps {point.eps:<8.5g} {point.robust_acc:6.2f} %", flush=True)
        self._plot(parts)
        names = self.dataset.class_names
        file = settings.out / PICTURES_FILE
        if self.steps and figures.draw_pictures(file, evaluator, class_names=names):
            parts.pictures.append(("clean images, perturbations, adversarial images", file.name))
        if settings.save_images:
            parts.export = save_images(evaluator, settings.out)
            made = parts.export
            note = (
                f"{made.images} images at whole pixel levels in adversarial.npz: {made.still_fooled} of {made.fooled} "
                f"adversarial ones still are after rounding inside the ball; largest perturbation {made.largest:.6g} "
                f"(eps {settings.eps:.6g})"
            )
            parts.notes.append(note + ".")
            print(f"  {note}")

    # ---- what is written --------------------------------------------------------------------------------------

    def facts(self) -> list[str]:
        """What is evaluated, and how, in words."""
        settings, loaded = self.settings, self.loaded
        weights = f" with the weights of {loaded.weights}" if loaded.weights else ""
        norm = {"linf": "L-infinity", "l2": "L2"}[settings.norm]
        return [
            f"{loaded.name}{weights}",
            f"{len(self.split)} {settings.split} images of {self.dataset.name}, {self.dataset.describe(self.split)}, "
            f"pixels in [0, 1]; {norm} ball, eps {settings.eps:.5g}; eval mode, float32; seed {settings.seed}",
            *self.left_out,
            *self.form.notes,
        ]

    def _explained(self) -> list[str]:
        return results.explain_columns(self.evaluator.results, cascade=self.settings.cascade)

    def _finished(self, parts: _Parts) -> str:
        done = [result.name for result in self.evaluator.results]
        text = f"finished: {', '.join(done) or 'nothing'}"
        if self.evaluator.unfinished:
            stages = ", ".join(stage.name for stage in self.evaluator.unfinished)
            text += f"; of the ensemble under way: {stages} (its accuracy is not known)"
        if parts.curve:
            text += f"; {len(parts.curve)} points of the curve"
        return text

    def _warnings(self, parts: _Parts) -> list[str]:
        return [str(finding) for finding in (*self.selfcheck.findings, *parts.warnings)]

    def _title(self) -> str:
        return f"{self.loaded.name} on {len(self.split)} {self.settings.split} images of {self.dataset.name}"

    def _plot(self, parts: _Parts) -> None:
        if not self.evaluator.results:
            return
        file = self.settings.out / PLOT_FILE
        figures.plot_accuracy(
            file,
            self.evaluator.results,
            parts.curve,
            curve_name=parts.curve_name,
            norm=self.settings.norm,
            eps=self.settings.eps,
            levels=self.dataset.levels,
            title=self._title(),
        )
        parts.pictures.append(("robust accuracy against eps", file.name))

    def _report(self, parts: _Parts) -> None:
        results.write_report(
            self.settings.out,
            title=f"Robustness of {self._title()}",
            facts=self.facts(),
            results=self.evaluator.results,
            explained=self._explained(),
            warnings=self._warnings(parts),
            curve=parts.curve,
            curve_name=parts.curve_name,
            pictures=parts.pictures,
            notes=parts.notes,
        )

    def _write(self, parts: _Parts, *, complete: bool = False) -> dict[str, Any]:
        settings, loaded = self.settings, self.loaded
        about = {
            "model": {"name": loaded.name, "weights": _text(loaded.weights), "sha256": loaded.sha256},
            "settings": {
                key: str(value) if key in ("source", "out") and value is not None else value
                for key, value in asdict(settings).items()
            },
            "images": len(self.split),
            "classes": len(torch.unique(self.split.labels)),
            "levels": self.dataset.levels,
            "versions": results.versions(self.device),
            "selfcheck": self.selfcheck.measured,
        }
        content = results.as_json(
            about,
            self.evaluator.results,
            planned=self.steps,
            warnings=self._warnings(parts),
            curve=results.curve_as_json(parts.curve_name, parts.curve),
            export=parts.export._asdict() if parts.export else None,
            unfinished=self.evaluator.unfinished,
            complete=complete,
        )
        results.write_results(settings.out, content)
        return content


@dataclass
class _Parts:
    """What is there beside the table."""

    warnings: list[Finding] = field(default_factory=list)
    curve: list[CurvePoint] = field(default_factory=list)
    curve_name: str = ""
    pictures: list[tuple[str, str]] = field(default_factory=list)
    export: Export | None = None
    notes: list[str] = field(default_factory=list)


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _sample(split: Split, count: int | None, name: str) -> Split:
    if count is None:
        return split
    if count > len(split):
        raise ValueError(f"n_examples: expected 1 to {len(split)} {name} images, got {count}")
    return split.sample(count)
