"""benchmarks/train_table.py: tiny runs in several sittings, plans, and the figures of what is recorded."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import table_figures  # noqa: E402
import train_table  # noqa: E402
from _table_plan import read_plan  # noqa: E402

from ard_fast import evaluate  # noqa: E402
from ard_fast.training.run_folder import RunFolder  # noqa: E402

PLAN = """
attacks: clean,pgd20
parts: 2
settings: {dataset: digits, epochs: 2, steps: 2, val_steps: 1, subset: 200, test_subset: 20, temperature: 2}
teachers:
  robust: {method: at, student: digits-student}
rows:
  ARD: {method: ard, teacher: robust, published: {clean: 79.47, pgd20: 50.22, source: Table 9}}
"""


class StopAfterAnEpoch:
    """A stop request that comes once some run has finished an epoch."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        pass

    @property
    def requested(self):
        return any(self.out.glob("*/metrics.jsonl"))


def test_a_table_is_made_in_several_sittings(tmp_path, monkeypatch, capsys):
    plan, out, file = tmp_path / "plan.yaml", tmp_path / "out", tmp_path / "table_tiny.json"
    plan.write_text(PLAN)
    arguments = [str(plan), "--out", str(out), "--jobs", "2", "--record", str(file)]

    assert train_table.main([*arguments, "--minutes", "0.005"]) == 130  # not even an epoch
    assert "left: 2 of 2 runs to train" in capsys.readouterr().out and not file.exists()
    with monkeypatch.context() as patch:
        patch.setattr(StopAfterAnEpoch, "out", out, raising=False)
        patch.setattr(train_table, "StopRequest", StopAfterAnEpoch)
        assert train_table.main(arguments) == 130
    printed = capsys.readouterr().out
    assert "train seed0-robust: stopped" in printed and "seed0-robust: " in printed.split("left: 2 of 2")[1]
    assert train_table.main(arguments) == 0
    assert capsys.readouterr().out.endswith("finished\n")
    started = [json.loads(line)["task"] for line in (out / "started.jsonl").read_text().splitlines()]
    assert started == [*["train seed0-robust"] * 3, "train seed0-ard"]

    plan.write_text(PLAN.replace("pgd20", "pgd20,fgsm", 1))  # an attack more
    assert train_table.main([*arguments, "--minutes", "0"]) == 130
    assert "left: 0 of 2 runs to train, 4 evaluations" in capsys.readouterr().out
    read = read_plan(plan, out, {})
    for task in [task for run in read.runs for task in train_table.evaluations(run, read)]:
        assert task.command[0] == "ard_fast.evaluate" and evaluate.main(task.command[1:]) == 0
    assert train_table.main(arguments) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert printed.endswith("finished") and all(f"| {one} |" in printed for one in ("79.47", "50.22", "FGSM %"))
    assert "Published: ARD: Table 9." in printed

    table = json.loads(file.read_bytes())
    assert table["complete"] and table["measured"]["torch"] and str(tmp_path) not in table["command"].split(" --out")[1]
    teacher, ard = table["rows"]
    assert teacher["is_teacher"] and ard["method"] == "ard" and ard["seeds"] == [0]
    summary = RunFolder(out / "seed0-ard").summary()
    assert ard["figures"]["clean"] == [round(summary["clean_acc"], 2)]
    assert ard["figures"]["pgd20"] == [round(summary["pgd20_acc"], 2)] and 0 <= ard["figures"]["fgsm"][0] <= 100
    ((first, second),) = teacher["curves"]
    assert (first[0], second[0]) == (1, 2) and 0 < first[1] < second[1] == teacher["cpu_s"][0]

    # The same images in another ball are another question; a network of the user's own is named for its weights.
    changed = next((out / "seed0-ard").glob("evaluation*/results.json"))
    content = json.loads(changed.read_bytes())
    content["settings"]["eps"] = 0.1
    changed.write_text(json.dumps(content))
    run = next(run for run in read.runs if run.row == "ARD")
    own = dataclasses.replace(run, config=run.config.replace(student="nets:Tiny"))
    (task,) = train_table.evaluations(own, read)
    assert task.writes == changed.parent and "--model nets:Tiny" in " ".join(task.command)

    plan.write_text(PLAN.replace("epochs: 2", "epochs: 3"))
    assert train_table.main(arguments) == 2
    assert "seed0-robust has other settings: epochs 2 -> 3" in capsys.readouterr().err


def test_figures_of_a_table(tmp_path, monkeypatch):
    rows = []
    for label, teacher, robust in (
        ("teacher", True, 50.0),
        ("ARD", False, 48.0),
        ("MTARD", False, 47.0),
        ("KD", False, 3.0),
    ):
        curves = [[[epoch, 60.0 * epoch + seed, 80.0, robust * epoch / 4] for epoch in (1, 2, 3, 4)] for seed in (0, 1)]
        figures = {"clean": [80.0 + robust / 10, 82.0], "pgd20": [robust, robust + 1], "apgd-t": [robust - 1, robust]}
        rows.append(
            {"label": label, "is_teacher": teacher, "cpu_s": [240.0, 241.0], "figures": figures, "curves": curves}
        )
    file = tmp_path / "table_tiny.json"
    file.write_text(json.dumps({"attacks": ["apgd-t"], "val_steps": 10, "cost": "cpu_s", "rows": rows}))
    monkeypatch.setattr(sys, "argv", ["table_figures", str(file), "--out", str(tmp_path)])
    table_figures.main()
    pictures = {path.name: path.read_bytes() for path in tmp_path.glob("table_tiny_*")}
    assert set(pictures) == {f"table_tiny_{what}.png" for what in ("cost", "tradeoff", "curves")}
    assert all(content[:8] == b"\x89PNG\r\n\x1a\n" for content in pictures.values())


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks" / "plans").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_plan_can_be_run(path, tmp_path):
    plan = read_plan(path, tmp_path, {} if path.stem == "tiny" else {"data_dir": "any"})
    assert {run.row for run in plan.runs} == set(plan.rows)
    assert all(run.config.epochs and run.config.save_every_seconds for run in plan.runs)


def test_a_run_gets_the_settings_its_method_has_and_its_own_seeds_teacher(tmp_path):
    plan = tmp_path / "plan.yaml"
    rows = "  N: {method: natural, seeds: [0, 1], lr: 0.02}\n  F: {method: fgsm-rs}\n"
    plan.write_text(PLAN.replace("steps: 2,", "steps: 2, step_size: 0.1,") + rows)
    runs = {run.folder.path.name: run for run in read_plan(plan, tmp_path, {}).runs}
    assert list(runs) == ["seed0-robust", "seed0-ard", "seed0-n", "seed0-f", "seed1-n"]
    assert runs["seed0-ard"].config.step_size == 0.1 and runs["seed0-f"].config.step_size == 0.2 * 1.25
    ard, natural = runs["seed0-ard"], runs["seed1-n"]
    assert (ard.config.temperature, ard.config.steps) == (2.0, 2) and ard.config.teacher == str(
        tmp_path / "seed0-robust"
    )
    assert (natural.config.temperature, natural.config.steps, natural.config.lr) == (None, None, 0.02)
    assert natural.teachers == () and natural.config.seed == 1 and not ard.is_ready()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("attacks:", "atacks:"), "unknown key 'atacks'; did you mean 'attacks'?"),
        (("pgd20", "fgsn", 1), "did you mean 'fgsm'?"),
        (("epochs: 2", "epoch: 2"), "unknown key 'epoch'"),
        (("method: ard,", "method: ard, lrr: 1,"), "ARD: unknown key 'lrr'"),
        (("method: ard,", ""), "ARD: expected a method or a preset"),
        (("method: ard,", "preset: ardd-paper,"), "ARD: unknown preset 'ardd-paper'"),
        (("teacher: robust", "teacher: robusst"), "ARD: unknown teacher 'robusst'; did you mean 'robust'?"),
        (("method: ard,", "method: ard, seeds: [0, x],"), "ARD: seeds: expected a list of whole numbers"),
        (("clean: 79.47", "klean: 79.47"), "ARD: published: unknown key 'klean'"),
        (("clean: 79.47", "clean: many"), "ARD: published: clean: expected a percentage"),
        (("ARD: {", "robust: {"), "rows: expected at least one, and names that differ"),
        (("parts: 2", "parts: 0"), "parts: expected a whole number"),
    ],
)
def test_a_wrong_plan_is_refused_before_any_work(tmp_path, capsys, change, message):
    plan = tmp_path / "plan.yaml"
    plan.write_text(PLAN.replace(*change))
    assert train_table.main([str(plan), "--out", str(tmp_path / "out")]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
