"""One evaluation, from settings to finished files."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import torch
from torch import nn

from ard_fast._devices import find_device, set_threads
from ard_fast._typing import known
from ard_fast.data import Split, load_dataset
from ard_fast.data.splits import pixels
from ard_fast.evaluation.evaluator import CurvePoint, Evaluator
from ard_fast.evaluation.export import Export, save_images
from ard_fast.evaluation.figures import draw_pictures, plot_accuracy
from ard_fast.evaluation.loading import load_model, match_classes, other_classes
from ard_fast.evaluation.report import AttackProgress, explain_columns, versions, write_report, write_results
from ard_fast.evaluation.self_checks import Finding, SelfCheck, check_model, check_normalisation, check_results
from ard_fast.evaluation.settings import Settings
from ard_fast.evaluation.standard_attacks import curve_attack, default_attacks, make_plan
from ard_fast.models.trial import TRIAL_IMAGES, initialise_lazily, try_network
from ard_fast.training.checkpoint import written_by_run
from ard_fast.training.interrupts import Interrupted, StopRequest

PLOT_FILE, PICTURES_FILE = "accuracy_vs_eps.png", "pictures.png"
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
            cascade=settings.cascade,
            listener=self.progress,
            stop=lambda: stop.requested,
        )
        self.doubts: list[Finding] = []  # about the results
        self.curve: list[CurvePoint] = []
        self.curve_name = ""
        self.pictures: list[tuple[str, str]] = []
        self.export: Export | None = None
        self.notes: list[str] = []

    def _check(self) -> SelfCheck:
        settings = self.settings
        chosen = self.split.sample(min(_CHECKED_IMAGES, settings.batch_size, len(self.split)))
        x = pixels(chosen.images, self.dataset.levels).contiguous(memory_format=self.form.layout)
        found = check_model(self.model, x, chosen.labels, num_classes=self.dataset.num_classes)
        if settings.mean is not None or settings.source is None or not written_by_run(settings.source):
            check_normalisation(self.model, x, chosen.labels, self.dataset.name, found)
        if self.loaded.choice and settings.weights is None:
            found.add("weights", self.loaded.choice + ".")
        classes = other_classes(settings.source, self.dataset)
        if classes:
            found.add("classes", classes)
        gradient = [step.name for step in self.steps if step.name != "square"]
        if gradient and not found.differentiable:
            why = next(finding.message for finding in found.findings if finding.check == "no gradient")
            raise ValueError(f"attacks: {gradient[0]} needs gradients. {why}")
        return found

    def run(self) -> dict[str, Any]:
        """Run the attacks, and return the content of results.json, which is written after every attack.

        Raises:
            Interrupted: what is finished has been written; the message says what.
        """
        self.settings.out.mkdir(parents=True, exist_ok=True)
        print("\n".join(f"  {fact}" for fact in self.facts()))
        self._warn(self.selfcheck.findings)
        self.progress.header()
        try:
            self.evaluator.clean()
            self._write()
            for step in self.steps:
                self.evaluator.run(step)
                self._write()
            print("\n".join(f"  {line}" for line in self._explained()))
            self.doubts = check_results(self.evaluator.results)
            self._warn(self.doubts)
            self._run_curve()
            self._plot()
            if self.steps:
                file = self.settings.out / PICTURES_FILE
                if draw_pictures(file, self.evaluator, class_names=self.dataset.class_names):
                    self.pictures.append(("clean images, perturbations, adversarial images", file.name))
            if self.settings.save_images:
                self._save_images()
        except (Interrupted, KeyboardInterrupt) as error:
            self.progress.close()
            message = f"stopped; {self._finished()}"
            self.notes.append(f"Evaluation {message}.")
            self._plot()
            self._report()
            self._write()
            raise Interrupted(f"{message}; written to {self.settings.out}") from error
        self._report()
        return self._write(complete=True)

    def _run_curve(self) -> None:
        if not self.settings.curve:
            return
        name, make = curve_attack(known(self.settings.attacks), norm=self.settings.norm)
        self.curve_name = name
        for point in self.evaluator.curve(name, make, self.settings.curve):
            self.curve.append(point)
            self.progress.close()
            self.progress.say(f"  {name} at eps {point.eps:<8.5g} {point.robust_acc:6.2f} %")

    def _save_images(self) -> None:
        made = self.export = save_images(self.evaluator, self.settings.out)
        note = (
            f"{made.images} images at whole pixel levels in adversarial.npz: {made.still_fooled} of {made.fooled} "
            f"adversarial ones still fool the network after rounding inside the ball; largest perturbation "
            f"{made.largest:.6g} (eps {self.settings.eps:.6g})"
        )
        self.notes.append(note + ".")
        print(f"  {note}")

    # ---- what is printed and written --------------------------------------------------------------------------

    def facts(self) -> list[str]:
        """What is evaluated, and how."""
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

    def _warn(self, findings: list[Finding]) -> None:
        for finding in findings:
            print(f"  warning: {finding}")

    def _explained(self) -> list[str]:
        return explain_columns(self.evaluator.results, cascade=self.settings.cascade)

    def _finished(self) -> str:
        done = [result.name for result in self.evaluator.results]
        text = f"finished: {', '.join(done) or 'nothing'}"
        if self.evaluator.unfinished:
            stages = ", ".join(stage.name for stage in self.evaluator.unfinished)
            text += f"; of the unfinished ensemble: {stages} (its accuracy is not known)"
        if self.curve:
            text += f"; {len(self.curve)} points of the curve"
        return text

    def _warnings(self) -> list[str]:
        return [str(finding) for finding in (*self.selfcheck.findings, *self.doubts)]

    def _title(self) -> str:
        return f"{self.loaded.name} on {len(self.split)} {self.settings.split} images of {self.dataset.name}"

    def _plot(self) -> None:
        if not self.evaluator.results:
            return
        file = self.settings.out / PLOT_FILE
        plot_accuracy(
            file,
            self.evaluator.results,
            self.curve,
            curve_name=self.curve_name,
            norm=self.settings.norm,
            eps=self.settings.eps,
            levels=self.dataset.levels,
            title=self._title(),
        )
        self.pictures.append(("robust accuracy against eps", file.name))

    def _report(self) -> None:
        write_report(
            self.settings.out,
            title=f"Robustness of {self._title()}",
            facts=self.facts(),
            results=self.evaluator.results,
            explained=self._explained(),
            warnings=self._warnings(),
            curve=self.curve,
            curve_name=self.curve_name,
            pictures=self.pictures,
            notes=self.notes,
        )

    def _write(self, *, complete: bool = False) -> dict[str, Any]:
        settings, loaded = self.settings, self.loaded
        about = {
            "model": {"name": loaded.name, "weights": _text(loaded.weights), "sha256": loaded.sha256},
            "settings": {
                key: _text(value) if key in ("source", "out") else value for key, value in asdict(settings).items()
            },
            "images": len(self.split),
            "classes": len(torch.unique(self.split.labels)),
            "levels": self.dataset.levels,
            "versions": versions(self.device),
            "selfcheck": self.selfcheck.measured,
        }
        return write_results(
            settings.out,
            about,
            self.evaluator.results,
            planned=self.steps,
            warnings=self._warnings(),
            curve_name=self.curve_name,
            curve=self.curve,
            export=self.export._asdict() if self.export else None,
            unfinished=self.evaluator.unfinished,
            complete=complete,
        )


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _sample(split: Split, count: int | None, name: str) -> Split:
    if count is None:
        return split
    if count > len(split):
        raise ValueError(f"n_examples: expected 1 to {len(split)} {name} images, got {count}")
    return split.sample(count)
