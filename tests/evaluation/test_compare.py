"""Runs side by side: which are one line, which figures they show, what cannot be compared."""

import json
import re
import sys

import pytest
import torch

from ard_fast._tables import escape
from ard_fast._typing import known
from ard_fast.compare import main
from ard_fast.models import build_model
from ard_fast.training.checkpoint import save_weights
from ard_fast.training.comparison import stronger_forms
from ard_fast.training.config import resolve
from ard_fast.training.finished import group_runs, read_run
from ard_fast.training.run_folder import RunFolder


def make_run(path, clean=80.0, robust=40.0, val=None, attacks=None, finished=True, weights=False, **settings):
    """A finished run's folder without the training. `val`: robust accuracy on the validation images, if another."""
    config = resolve({"method": "at", "epochs": 2, **settings})
    folder = RunFolder(path)
    folder.start(config)
    for epoch in (1, 2):
        folder.add_metrics({"epoch": epoch, "val_clean": clean, "val_robust": robust if val is None else val})
    if weights:
        torch.manual_seed(config.seed)
        save_weights(folder.best, build_model(config.student), name=config.student, num_classes=10, in_channels=1)
    if finished:
        folder.write_summary(
            {
                "method": config.method,
                "dataset": config.dataset,
                "student": config.student,
                "teacher": config.teacher if config.method != "at" else None,
                "seed": config.seed,
                "epochs": config.epochs,
                "clean_acc": clean,
                "pgd20_acc": robust,
                "images_per_s": 1000.0,
                "elapsed_s": 2.0,
            }
        )
    for name, (accuracy, changes) in (attacks or {}).items():
        evaluation = {"split": "test", "norm": "linf", "eps": config.eps, "dataset": "digits", "n_examples": None}
        (path / f"evaluation-{name}").mkdir()
        content = {
            "settings": {**evaluation, "source": str(path), **changes},
            "attacks": [{"name": name, "robust_acc": accuracy}],
        }
        (path / f"evaluation-{name}" / "results.json").write_text(json.dumps(content))
    return path


def lines(text):
    return {
        cells[1].strip(): [cell.strip() for cell in cells[2:-1]]
        for cells in (line.split("|") for line in text.splitlines())
        if len(cells) > 3
    }


def test_seeds_make_one_line_gaps_and_figures(tmp_path, capsys):
    for seed, (at, ard) in enumerate([(40.0, 45.0), (42.0, 44.0), (41.0, 49.0)]):
        make_run(tmp_path / "c" / f"seed{seed}-at", robust=at, seed=seed)
        apgd = {"apgd-ce": (ard - 2, {})}
        make_run(tmp_path / "c" / f"seed{seed}-ard", robust=ard, seed=seed, method="ard", attacks=apgd)
        make_run(tmp_path / "c" / f"seed{seed}-teacher", clean=99.0, robust=60.0, seed=seed, student="digits-teacher")
    assert main([str(tmp_path / "c"), "--baseline", "at", "--out", str(tmp_path / "out")]) == 0
    printed = capsys.readouterr().out
    table = lines(printed)
    assert table["at (digits-student)"][1:6] == ["3", "80.00 ± 0.00", "41.00 ± 1.00", "-", "-"]
    assert table["ard (digits-student)"][:6] == [
        "digits-teacher", "3", "80.00 ± 0.00", "46.00 ± 2.65", "44.00 ± 2.65", "+5.00",
    ]  # fmt: skip
    assert table["teacher, at (digits-teacher)"][2] == "99.00 ± 0.00"
    gap = "ard (digits-student) - at (digits-student) under PGD-20: +5.00 points (by seed: +5.00, +2.00, +8.00)"
    assert gap in printed
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    ard = next(group for group in content["groups"] if group["method"] == "ard")
    assert (ard["seeds"], ard["pgd20_gap"], ard["attacks"]) == (
        [0, 1, 2],
        [5.0, 2.0, 8.0],
        {"apgd-ce": [43.0, 42.0, 47.0]},
    )
    assert lines((tmp_path / "out" / "compare.md").read_text()) == table
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        f"compare.{kind}" for kind in ("md", "tex", "json", "png", "pdf")
    }
    assert (tmp_path / "out" / "compare.tex").read_text().splitlines() == [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"  \centering",
        r"  \caption{Test accuracy (\%) on digits, clean and under attack in the $\ell_\infty$ ball of radius $0.2$: "
        r"mean $\pm$ sample standard deviation over 3 seeds, best in bold.}",
        r"  \begin{tabular}{lrrr}",
        r"    \toprule",
        r"    Method & clean & PGD-20 & APGD-CE \\",
        r"    \midrule",
        r"    teacher, at & $99.00 \pm 0.00$ & $60.00 \pm 0.00$ & -- \\",
        r"    \midrule",
        r"    ard & $\mathbf{80.00} \pm 0.00$ & $\mathbf{46.00} \pm 2.65$ & $44.00 \pm 2.65$ \\",
        r"    at & $\mathbf{80.00} \pm 0.00$ & $41.00 \pm 1.00$ & -- \\",
        r"    \bottomrule",
        r"  \end{tabular}",
        r"\end{table}",
    ]
    assert escape(r"a_b & 50% of $x^{2}#~\y") == (
        r"a\_b \& 50\% of \$x\textasciicircum{}\{2\}\#\textasciitilde{}\textbackslash{}y"
    )


def test_accuracy_against_eps_is_drawn_where_all_seeds_have_it(tmp_path):
    runs = [make_run(tmp_path / f"seed{n}-at", seed=n, attacks={"pgd20": (40.0, {})}) for n in (0, 1)]
    points = [{"eps": eps, "robust_acc": accuracy} for eps, accuracy in ((0.0, 80.0), (0.2, 40.0))]
    for run, drawn in zip(runs, (False, True), strict=True):
        path = run / "evaluation-pgd20" / "results.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eps_curve": {"attack": "pgd20", "points": points}}))
        assert main([*map(str, runs), "--out", str(tmp_path / "out")]) == 0
        assert ("(compare_vs_eps.png)" in (tmp_path / "out" / "compare.md").read_text()) == drawn
    other = json.loads(path.read_text())
    other["settings"]["split"] = "val"
    path.write_text(json.dumps(other))
    assert not read_run(RunFolder(runs[1])).curves  # of other images


def test_other_settings_make_other_lines_and_are_named(tmp_path, capsys):
    runs = [
        make_run(tmp_path / "a"),
        make_run(tmp_path / "b", steps=3),
        make_run(tmp_path / "c", device="cuda", seed=1),
    ]
    assert main([str(run) for run in runs]) == 0
    table = lines(capsys.readouterr().out)
    assert table["at (digits-student), steps 7"][1] == "2" and table["at (digits-student), steps 3"][1] == "1"
    assert main([*map(str, runs), "--baseline", "at"]) == 2
    assert "baseline: 'at' is several: at (digits-student), steps 7; at" in capsys.readouterr().err


def test_the_stronger_form_of_a_baseline_is_chosen_on_validation_images(tmp_path, capsys):
    for seed in (0, 1):
        make_run(tmp_path / f"seed{seed}-at", seed=seed, robust=50.0, val=30.0 + 3 * seed)
        make_run(tmp_path / f"seed{seed}-at-ema", seed=seed, robust=40.0, val=32.0, method="at-ema")
    assert main([str(tmp_path), "--baseline", "at-ema"]) == 0
    printed = capsys.readouterr().out
    assert "\nat (digits-student) - at-ema (digits-student) under PGD-20: +10.00 points" in printed
    forms = {
        name: group_runs(known(read_run(RunFolder(path))) for path in sorted(tmp_path.glob(f"*-{name}")))[0]
        for name in ("at-ema", "at")
    }
    assert stronger_forms(forms) == {"at-ema": {"at": 31.5, "at-ema": 32.0}}
    assert stronger_forms({"at-ema": forms["at-ema"], "ard": forms["at"]}) == {}
    failed = make_run(tmp_path / "failed", method="at-ema", val=0.0)
    forms["at-ema"] = group_runs([known(read_run(RunFolder(failed)))])[0]
    assert stronger_forms(forms) == {"at": {"at": 31.5, "at-ema": 0.0}}


def test_smoothed_labels_are_said_to_flatter_pgd_unless_a_margin_attack_stands_beside_it(tmp_path, capsys):
    make_run(tmp_path / "at")
    make_run(tmp_path / "plain" / "smoothed", label_smoothing=0.4)
    assert main([str(tmp_path), str(tmp_path / "plain")]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    assert "The labels of at (digits-student), label_smoothing 0.4 were smoothed, which flatters PGD" in printed
    make_run(tmp_path / "both" / "smoothed", label_smoothing=0.4, attacks={"apgd-t": (30.0, {})})
    assert main([str(tmp_path), str(tmp_path / "both")]) == 0
    assert "flatters" not in capsys.readouterr().out


def test_teachers_of_several_seeds_do_not_part_the_runs(tmp_path, capsys):
    for seed in (0, 1):
        make_run(tmp_path / f"r{seed}", method="ard", teacher=f"runs/seed{seed}-teacher", seed=seed)
    assert main([str(tmp_path)]) == 0
    assert lines(capsys.readouterr().out)["ard (digits-student)"][1] == "2"


def test_only_evaluations_of_the_same_images_and_ball_count(tmp_path, capsys):
    attacks = {
        "fgsm": (50.0, {"eps": 0.01}),
        "apgd-t": (30.0, {"split": "val"}),
        "cw20": (31.0, {"n_examples": 10}),
        "apgd-dlr": (31.0, {"source": "last.safetensors"}),
        "mifgsm": (31.0, {"precision": "bf16"}),
        "apgd-ce": (32.0, {}),
    }
    make_run(tmp_path / "a", attacks=attacks)
    make_run(tmp_path / "b", test_subset=20, attacks={"cw30": (32.0, {"n_examples": 20})})  # the first 20, as once
    assert main([str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    printed = capsys.readouterr().out
    assert "apgd-ce %" in printed and not re.search("fgsm|apgd-t|cw|dlr|mi", printed)


def test_attacks_are_run_where_they_are_missing(tmp_path, capsys):
    run = make_run(tmp_path / "a", weights=True, test_subset=20)
    for _ in range(2):
        assert main([str(run), "--attacks", "apgd-ce"]) == 0
    assert "apgd-ce %" in capsys.readouterr().out
    assert [path.name for path in run.glob("evaluation*")] == ["evaluation"]  # the second time it was there
    content = json.loads((run / "evaluation" / "results.json").read_text())
    assert content["images"] == 20 and [row["name"] for row in content["attacks"]] == ["clean", "apgd-ce"]


def test_parts_of_an_evaluation_give_what_the_whole_gives(tmp_path, capsys):
    from ard_fast.evaluate import main as evaluate

    run = make_run(tmp_path / "a", weights=True, test_subset=50)
    flags = [str(run), "--attacks", "pgd3", "--eps-curve", "none"]
    for part in ("1/3", "3/3"):
        assert evaluate([*flags, "--part", part]) == 0
    assert "17 test images of digits (part 1 of 3)" in capsys.readouterr().out
    assert not read_run(RunFolder(run)).attacks  # one is missing
    assert evaluate([*flags, "--part", "2/3"]) == 0
    parts = read_run(RunFolder(run)).attacks
    assert evaluate(flags) == 0
    assert parts == pytest.approx(read_run(RunFolder(run)).attacks) and 0 < parts["pgd3"] <= parts["clean"]
    for part, wrong in (
        ("0/3", "expected K/N"),
        ("4/3", "expected K/N"),
        ("a", "expected K/N"),
        ("1/51", "expected at most 50"),
    ):
        assert evaluate([*flags, "--part", part]) == 2
        assert f"part: {wrong}" in capsys.readouterr().err


def test_code_of_a_compared_run_does_not_run(tmp_path, capsys, monkeypatch):
    module = tmp_path / "code_of_a_run.py"
    module.write_text("def make(): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    make_run(tmp_path / "a", student="code_of_a_run:make")
    module.write_text("raise SystemExit(3)\n")
    sys.modules.pop("code_of_a_run")
    assert main([str(tmp_path / "a")]) == 0
    assert "at (code_of_a_run:make)" in capsys.readouterr().out


def test_what_cannot_be_compared_is_said(tmp_path, capsys):
    make_run(tmp_path / "a")
    make_run(tmp_path / "b", eps=0.1, finished=False)
    assert main([str(tmp_path)]) == 0
    assert f"left out: {tmp_path / 'b'} is not finished" in capsys.readouterr().err
    make_run(tmp_path / "c", eps=0.1)
    assert main([str(tmp_path)]) == 0
    assert "The runs differ in eps, eval_step_size: compare with care" in capsys.readouterr().out
    (tmp_path / "empty").mkdir()
    for arguments, message in [
        ([str(tmp_path / "b")], "none of them is finished"),
        ([str(tmp_path / "empty")], "is not a run and holds none"),
        ([str(tmp_path / "none")], "no such folder"),
        ([str(tmp_path / "a"), "--attacks", "apgd"], "unknown attack 'apgd'"),
        ([str(tmp_path / "a"), "--baseline", "trades"], "baseline: unknown run 'trades'"),
    ]:
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "a" / "evaluation").mkdir()
    (tmp_path / "a" / "evaluation" / "results.json").write_text('{"settings": []}')
    assert main([str(tmp_path / "a")]) == 2
    assert "results.json is not the result of an evaluation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "key", "value", "message"),
    [
        ("summary.json", "clean_acc", "high", "clean_acc must be a percentage, got 'high'"),
        ("summary.json", "images_per_s", float("nan"), "images_per_s must be a number of at least 0, got nan"),
        ("summary.json", "epochs", 2**70, "epochs must be a whole number"),
        ("metrics.jsonl", "val_robust", "x", "val_robust must be a percentage or null, got 'x'"),
        ("evaluation-pgd50/results.json", "robust_acc", 1e308, "robust_acc must be a percentage, got 1e+308"),
        ("evaluation-pgd50/results.json", "name", 7, "name must be text, got 7"),
    ],
)
def test_values_of_another_kind_are_said(tmp_path, capsys, file, key, value, message):
    run = make_run(tmp_path / "run", attacks={"pgd50": (30.0, {})})
    content = json.loads((run / file).read_text().splitlines()[0] if file.endswith("l") else (run / file).read_text())
    (content["attacks"][0] if "attacks" in content else content)[key] = value
    (run / file).write_text(json.dumps(content) + "\n")
    assert main([str(run), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert str(run / file) in said and message in said
