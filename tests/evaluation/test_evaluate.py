"""The command from end to end: a trained run in, table, JSON, report and figures out."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_fakes import Lighten
from matplotlib.image import imread
from torch import nn

from ard_fast import evaluate as command
from ard_fast.attacks import presets
from ard_fast.data import load_dataset
from ard_fast.evaluate import main
from ard_fast.evaluation import job
from ard_fast.evaluation.runner import Step
from ard_fast.train import main as train
from ard_fast.training.checkpoint import load_network, save_weights

FILES = {"results.json", "report.md", "accuracy_vs_eps.png", "pictures.png"}


@pytest.fixture(autouse=True)
def threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of a few seconds: a digits student trained adversarially."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = ["--method", "at", "--student", "digits-student", "--epochs", "4", "--steps", "3", "--val-steps", "2"]
    assert train([*arguments, "--eps", "0.1", "--out", str(folder)]) == 0
    return folder


def evaluate(*arguments):
    return main([str(argument) for argument in arguments])


def read(folder):
    return json.loads((folder / "results.json").read_text())


def table_line(printed, name):
    """The cells of a printed line of the table."""
    (line,) = re.findall(rf"^  {re.escape(name)} +\d.*$", printed, re.MULTILINE)
    return line.split()


def not_trivial(picture):
    """A picture that is no single colour, and not tiny."""
    pixels = imread(picture)
    return pixels.shape[0] > 300 and pixels.shape[1] > 500 and float(pixels[:, :, :3].std()) > 0.05


def test_a_run_gets_table_json_report_and_figures(run, tmp_path, capsys):
    out = tmp_path / "results"
    assert evaluate(run, "--attacks", "clean,fgsm,pgd20,cw20", "--out", out) == 0
    assert {path.name for path in out.iterdir()} == FILES
    printed, found = capsys.readouterr().out, read(out)
    assert found["complete"] and found["not_run"] == [] and found["warnings"] == []
    assert [attack["name"] for attack in found["attacks"]] == ["clean", "fgsm", "pgd20", "cw20"]
    assert found["settings"]["eps"] == 0.1 and found["settings"]["dataset"] == "digits"  # of the run
    assert found["images"] == 450 and found["settings"]["seed"] == 1234567
    assert found["versions"]["torch"] == torch.__version__ and found["versions"]["device"] == "cpu"
    assert len(found["model"]["sha256"]) == 64 and found["model"]["name"] == "digits-student"
    for attack in found["attacks"][1:]:
        (stage,) = attack["stages"]
        assert attack["attacked"] == found["attacks"][0]["robust"]
        assert "eps=0.1" in stage["parameters"]
        assert stage["cost"]["forward_images"] >= stage["cost"]["backward_images"] > 0 and stage["cost"]["seconds"] > 0
        cells = table_line(printed, attack["name"])
        assert cells[1:4] == [str(attack["attacked"]), f"{attack['robust_acc']:.2f}", f"{attack['worst_case_acc']:.2f}"]
    assert found["attacks"][2]["stages"][0]["cost"]["backward_images"] == 20 * found["attacks"][2]["attacked"]
    # The trainer's own figure, which is of the same attack, start and seed, over all images.
    summary = json.loads((run / "summary.json").read_text())
    assert found["clean_acc"] == pytest.approx(summary["clean_acc"])
    assert found["attacks"][2]["robust_acc"] == pytest.approx(summary["pgd20_acc"], abs=0.5)
    worst = [attack["worst_case_acc"] for attack in found["attacks"]]
    assert worst == sorted(worst, reverse=True) and found["worst_case_acc"] == worst[-1]
    assert all(attack["worst_case_acc"] <= attack["robust_acc"] for attack in found["attacks"])
    curve = found["eps_curve"]
    assert curve["attack"] == "pgd20" and [round(point["eps"], 6) for point in curve["points"]] == [
        0.0, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2]  # fmt: skip
    falls = [point["robust_acc"] for point in curve["points"]]
    assert falls == sorted(falls, reverse=True) and falls[0] == found["clean_acc"] and falls[-1] < falls[0] - 5
    report = (out / "report.md").read_text()
    for text in (f"{found['worst_case_acc']:.2f}", "worst case %: ", "![robust", "pictures.png", "PGD(eps=0.1"):
        assert text in report
    assert "robust %: share of all images right as they are and under this attack alone" in printed
    assert not_trivial(out / "accuracy_vs_eps.png") and not_trivial(out / "pictures.png")


def test_the_batch_size_changes_no_figure(run, tmp_path):
    for size in (450, 64):
        out = tmp_path / str(size)
        arguments = ("--attacks", "pgd20,apgd-ce", "--n-examples", 100, "--eps-curve", "0.05", "--batch-size", size)
        assert evaluate(run, *arguments, "--out", out) == 0
    first, second = (read(tmp_path / name) for name in ("450", "64"))
    for one, other in zip(first["attacks"], second["attacks"], strict=True):
        for key in ("name", "attacked", "robust", "worst_case"):
            assert one[key] == other[key]
    assert first["eps_curve"]["points"][0]["robust_acc"] == second["eps_curve"]["points"][0]["robust_acc"]


def test_the_seed_decides_the_figures(run, tmp_path):
    sums = []
    for number, seed in enumerate((1, 1, 2)):
        out = tmp_path / str(number)
        arguments = ("--attacks", "pgd10", "--eps-curve", "none", "--n-examples", 40, "--save-images", "--eps", "0.2")
        assert evaluate(run, *arguments, "--seed", seed, "--out", out) == 0
        sums.append(np.load(out / "adversarial.npz")["adversarial"])
    assert np.array_equal(sums[0], sums[1]) and not np.array_equal(sums[0], sums[2])


def test_the_default_folder_is_in_the_run_and_nothing_is_overwritten(run):
    arguments = (run, "--attacks", "fgsm", "--n-examples", 20, "--eps-curve", "none")
    assert evaluate(*arguments) == 0 and evaluate(*arguments) == 0
    assert (run / "evaluation" / "results.json").is_file() and (run / "evaluation-2" / "results.json").is_file()


def test_l2(run, tmp_path):
    out = tmp_path / "l2"
    assert evaluate(run, "--norm", "l2", "--eps", "0.5", "--n-examples", 60, "--save-images", "--out", out,
                    "--attacks", "pgd20,apgd-ce", "--eps-curve", "0,0.25,1") == 0  # fmt: skip
    found = read(out)
    assert 0 < found["worst_case_acc"] < found["clean_acc"] and found["warnings"] == []
    assert all("norm='l2'" in attack["stages"][0]["parameters"] for attack in found["attacks"][1:])
    assert found["export"]["largest"] <= 0.5 and found["export"]["still_fooled"] > 0
    stored = np.load(out / "adversarial.npz")
    moved = (stored["adversarial"].astype(float) - stored["original"]) / stored["levels"]
    assert np.sqrt((moved**2).sum((1, 2, 3))).max() <= 0.5


def test_saved_images_fool_the_network_as_reported(run, tmp_path):
    out = tmp_path / "saved"
    assert (
        evaluate(run, "--attacks", "pgd20", "--eps-curve", "none", "--eps", "0.2", "--save-images", "--out", out) == 0
    )
    found, stored = read(out), np.load(out / "adversarial.npz")
    network = load_network(run, num_classes=10, in_channels=1)
    with torch.no_grad():
        taken_for = network(torch.from_numpy(stored["adversarial"]).float() / int(stored["levels"])).argmax(1).numpy()
    assert np.array_equal(taken_for, stored["predicted_adversarial"])
    fooled = stored["fooled_by"] == "pgd20"
    assert fooled.sum() == found["export"]["fooled"] == found["attacks"][0]["robust"] - found["attacks"][1]["robust"]
    assert ((taken_for != stored["labels"]) & fooled).sum() == found["export"]["still_fooled"] > 0
    assert np.abs(stored["adversarial"].astype(int) - stored["original"]).max() <= 0.2 * int(stored["levels"])
    test = load_dataset("digits").test
    assert np.array_equal(stored["original"], test.images.numpy()) and np.array_equal(stored["ids"], test.ids.numpy())
    assert len(list((out / "samples").glob("*.png"))) == min(16, found["export"]["still_fooled"])


def test_a_cascade_says_what_it_knows(run, tmp_path, capsys):
    out = tmp_path / "cascade"
    arguments = ("--attacks", "fgsm,pgd20", "--cascade", "--eps-curve", "none", "--n-examples", 100, "--eps", "0.2")
    assert evaluate(run, *arguments, "--out", out) == 0
    found, printed = read(out), capsys.readouterr().out
    fgsm, pgd = found["attacks"][1:]
    assert pgd["attacked"] == fgsm["worst_case"] and pgd["robust_acc"] is None
    assert table_line(printed, "pgd20")[2] == "-" and "--cascade" in printed
    assert not_trivial(out / "accuracy_vs_eps.png")


def test_any_module_by_its_import_path(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "\ndef soft():\n    return nn.Sequential(*make(), nn.Softmax(1)).eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    x, y = load_dataset("digits").train.images / 16.0, load_dataset("digits").train.labels
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    torch.save({"state_dict": model.state_dict()}, tmp_path / "weights.pt")
    common = ("--dataset", "digits", "--attacks", "pgd20", "--eps", "0.05", "--eps-curve", "none")
    assert evaluate(tmp_path / "weights.pt", "--model", "elsewhere:make", *common) == 0
    found = read(tmp_path / "weights-evaluation")
    assert 30 < found["worst_case_acc"] < found["clean_acc"] - 5 and found["clean_acc"] > 85
    assert found["warnings"] == [] and found["model"]["name"] == "elsewhere:make"
    test = load_dataset("digits").test
    assert found["clean_acc"] == pytest.approx(
        100.0 * float((model(test.images / 16.0).argmax(1) == test.labels).float().mean())
    )
    assert evaluate("--model", "elsewhere:soft", *common, "--out", tmp_path / "soft") == 0
    warned = read(tmp_path / "soft")["warnings"]
    assert {warning.split(":")[0] for warning in warned} >= {"probabilities", "accuracy"}
    assert "warning: probabilities" in capsys.readouterr().out
    assert "return logits" in (tmp_path / "soft" / "report.md").read_text()


def test_part_of_class_sorted_images_holds_every_class(tmp_path, monkeypatch, capsys):
    (tmp_path / "constant.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Constant(nn.Module):\n    def forward(self, x):\n"
        "        return 0 * x.flatten(1)[:, :4] + torch.tensor([1.0, 0, 0, 0])\n\ndef make():\n"
        "    return Constant().eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    labels = np.repeat(np.arange(4), 50)
    images = np.full((200, 4, 4), 100, np.uint8)
    np.savez(tmp_path / "sorted.npz", x_train=images, y_train=labels, x_test=images, y_test=labels,
             x_val=images[::50], y_val=labels[::50])  # fmt: skip
    common = ("--model", "constant:make", "--dataset", "npz", "--data-dir", tmp_path / "sorted.npz")
    arguments = (*common, "--n-examples", 40, "--attacks", "clean", "--eps-curve", "none")
    assert evaluate(*arguments, "--out", tmp_path / "out") == 0
    found, printed = read(tmp_path / "out"), capsys.readouterr().out
    assert found["clean_acc"] == 25.0 and found["images"] == 40 and found["classes"] == 4
    assert "40 test images of npz, all 4 classes" in printed and "warning: accuracy: 25.0 %" in printed
    assert "all 4 classes" in (tmp_path / "out" / "report.md").read_text()


@pytest.fixture(scope="module")
def normalised_run(tmp_path_factory):
    """A run whose network was trained behind a normalisation, and its weights as others save them: without it."""
    folder = tmp_path_factory.mktemp("normalised") / "run"
    arguments = [
        "--method",
        "natural",
        "--student",
        "digits-student",
        "--epochs",
        "8",
        "--val-steps",
        "1",
        "--lr",
        "0.05",
    ]
    arguments += ["--student-mean", "0.7", "--student-std", "0.1", "--out", str(folder)]
    assert train(arguments) == 0
    network = load_network(folder, num_classes=10, in_channels=1).get_submodule("network")
    torch.save({"net": network.state_dict()}, folder.parent / "bare.pt")
    return folder


def test_a_normalisation_outside_the_file_is_an_option_or_a_warning(normalised_run, tmp_path, capsys):
    common = ("--attacks", "clean", "--eps-curve", "none", "--dataset", "digits", "--threads", 1)
    bare = (normalised_run.parent / "bare.pt", "--model", "digits-student")
    options = ("--mean", "0.7", "--std", "0.1", "--channels-last", "false")
    found = {}
    for name, arguments in (("run", (normalised_run,)), ("given", (*bare, *options)), ("missing", bare)):
        assert evaluate(*arguments, *common, "--out", tmp_path / name) == 0, capsys.readouterr().err
        found[name] = read(tmp_path / name)
    assert found["run"]["warnings"] == found["given"]["warnings"] == []
    assert found["run"]["clean_acc"] == found["given"]["clean_acc"] > found["missing"]["clean_acc"] + 20
    (warning,) = [text for text in found["missing"]["warnings"] if text.startswith("normalisation")]
    assert re.search(r"% with --mean [\d.e-]+ --std [\d.e-]+: the network seems to have been trained", warning)
    copy = tmp_path / "copy"  # what a run has trained on pixels may be better on others: that is no mistake
    shutil.copytree(normalised_run, copy)
    inner = load_network(copy, num_classes=10, in_channels=1).get_submodule("network")
    save_weights(copy / "best.safetensors", inner, name="digits-student", num_classes=10, in_channels=1)
    assert evaluate(copy, *common, "--out", tmp_path / "of_run") == 0
    assert not any(text.startswith("normalisation") for text in read(tmp_path / "of_run")["warnings"])
    assert found["given"]["settings"]["mean"] == [0.7] and found["given"]["settings"]["channels_last"] == "false"


def test_the_average_of_the_weights_is_named_and_can_be_taken(run, tmp_path, capsys):
    state = load_network(run, num_classes=10, in_channels=1).state_dict()
    average = {key: torch.zeros_like(value) for key, value in state.items()}
    torch.save({"model": state, "ema": average}, tmp_path / "w.pt")
    common = (tmp_path / "w.pt", "--model", "digits-student", "--dataset", "digits", "--attacks", "clean")
    for name, options in (("model", ()), ("ema", ("--weights", "ema"))):
        assert evaluate(*common, *options, "--eps-curve", "none", "--out", tmp_path / name) == 0
    assert read(tmp_path / "model")["clean_acc"] > 50 > read(tmp_path / "ema")["clean_acc"]
    (warning,) = read(tmp_path / "model")["warnings"]
    assert warning == "weights: the file holds 2 sets of weights: 'model' is taken, not 'ema' (choose with --weights)."
    assert not any(text.startswith("weights") for text in read(tmp_path / "ema")["warnings"])


def test_test_images_alone_are_enough_and_three_classes_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "triple.py").write_text(
        "from torch import nn\n\ndef make():\n    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (30, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "test.npz", x_test=images, y_test=np.arange(30) % 3)
    common = ("--model", "triple:make", "--dataset", "npz", "--data-dir", tmp_path / "test.npz", "--eps-curve", "none")
    assert evaluate(*common, "--out", tmp_path / "out") == 0, capsys.readouterr().err
    found, printed = read(tmp_path / "out"), capsys.readouterr().out
    assert [row["name"] for row in found["attacks"]] == ["clean", "fgsm", "pgd20", "cw20", "apgd-ce"]
    assert "apgd-t is left out: it needs 4 classes, the data set has 3" in printed
    assert found["settings"]["attacks"] == ["clean", "fgsm", "pgd20", "cw20", "apgd-ce"]
    assert evaluate(*common, "--attacks", "apgd-t", "--out", tmp_path / "named") == 2
    assert "apgd-t needs a model of at least 4 classes, got 3" in capsys.readouterr().err


def test_the_checkpoint_says_the_classes_that_test_labels_do_not(run, tmp_path, capsys):
    digits = load_dataset("digits").test
    few = digits.labels < 7
    images = (digits.images[few].float() / 16 * 255).round().to(torch.uint8)
    np.savez(tmp_path / "test.npz", x_test=images.numpy(), y_test=digits.labels[few].numpy())
    arguments = ("--dataset", "npz", "--data-dir", tmp_path / "test.npz", "--attacks", "clean", "--eps-curve", "none")
    assert evaluate(run, *arguments, "--out", tmp_path / "out") == 0, capsys.readouterr().err
    assert f"{int(few.sum())} test images of npz, 7 of 10 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mean", "0.5"], "mean: mean and std go together"),
        (["--mean", "0.5", "--std", "0"], "std: expected a number for each channel, comma-separated, got '0'"),
        (["--weights", "ema"], "weights: .* holds one set of weights, not 'ema'"),
        (["--channels-last", "yes"], "channels_last: unknown value 'yes'"),
        (["--threads", "-1"], "threads: expected a whole number of at least 0"),
        (["--attacks", "pgd40-l2"], r"pgd40-l2 works in the l2 ball, .*--norm l2 and an --eps of its own"),
        (["--attacks", "pdg21"], "attacks: unknown attack 'pdg21'"),
        (["--atacks", "pgd20"], "unknown argument '--atacks'; did you mean --attacks"),
        (["--eps", "8"], r"\(8/255, not 8\)"),
        (["--n-examples", "451"], "n_examples: expected 1 to 450 test images"),
        (["--device", "tpu"], "device: expected auto, cpu, cuda or cuda:N"),
        (["--model", "digits-teacher"], "model: .* holds 'digits-student'"),
        (["--model", "nowhere:make"], "model: cannot import 'nowhere'"),
        (["--dataset", "cifar10"], "data_dir: cifar10 needs --data-dir"),
        (["--norm", "l2", "--eps", "1", "--attacks", "cw20"], "cw20"),
    ],
)
def test_bad_arguments_are_one_line_and_no_folder(run, tmp_path, capsys, arguments, message):
    try:
        code = evaluate(run, *arguments, "--out", tmp_path / "out")
    except SystemExit as stopped:  # argparse's own way
        code = stopped.code
    assert code == 2 and not (tmp_path / "out").exists()
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and captured.err.count("\n") == 1 and captured.out == ""


def test_a_missing_referee_is_said_before_any_work(run, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "pyautoattack", None)
    monkeypatch.delitem(sys.modules, "pyautoattack.fab_pt", raising=False)
    assert evaluate(run, "--attacks", "pgd20,autoattack", "--out", tmp_path / "out") == 2
    assert "pip install 'ard-fast[autoattack]'" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_attacks_that_need_gradients_are_refused_without(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "frozen.py").write_text(
        "import torch\nfrom torch import nn\n\nclass Frozen(nn.Module):\n    def forward(self, x):\n"
        "        return x.detach().flatten(1)[:, :10]\n\ndef make():\n    return Frozen().eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    common = ("--model", "frozen:make", "--dataset", "digits", "--eps-curve", "none", "--n-examples", 20)
    assert evaluate(*common, "--attacks", "square,pgd20", "--out", tmp_path / "a") == 2
    assert "pgd20 needs gradients" in capsys.readouterr().err
    assert evaluate(*common, "--attacks", "clean", "--out", tmp_path / "b") == 0


def test_an_ensemble_in_table_and_report(run, tmp_path, monkeypatch, capsys):
    stages = (("a", Lighten(())), ("b", Lighten(())))
    monkeypatch.setattr(job, "make_plan", lambda *_, **__: [Step("both", stages)])
    assert evaluate(run, "--attacks", "clean", "--eps-curve", "none", "--out", tmp_path / "out") == 0
    printed, found = capsys.readouterr().out, read(tmp_path / "out")
    assert [stage["name"] for stage in found["attacks"][1]["stages"]] == ["a", "b"]
    assert re.search(r"^    a +\d+ +[\d.]+ .*\n    b .*\n  both ", printed, re.MULTILINE)
    assert "Indented: stages of an ensemble" in printed
    assert "| &nbsp;&nbsp;a " in (tmp_path / "out" / "report.md").read_text()


def test_progress_is_told_in_plain_lines(run, tmp_path, monkeypatch, capsys):
    for name in ("_QUIET_SECONDS", "_GROWTH"):
        monkeypatch.setattr(f"ard_fast.evaluation.display.{name}", 0.0)
    arguments = ("--attacks", "pgd20", "--eps-curve", "none", "--n-examples", 60, "--batch-size", 30)
    assert evaluate(run, *arguments, "--out", tmp_path / "out") == 0
    printed = capsys.readouterr().out
    assert re.search(r"^    pgd20: \d+ s, \d+ passes, 0 of \d+ images done$", printed, re.MULTILINE)
    assert re.search(
        r"^    pgd20: .* 30 of \d+ images done, \d+ still right, about \d+ s to go$", printed, re.MULTILINE
    )


def test_a_stop_in_an_attack_keeps_the_others(run, tmp_path, monkeypatch, capsys):
    jobs = []

    class Watched(job.Job):
        def __init__(self, settings, stop):
            jobs.append(stop)
            super().__init__(settings, stop)

    class Stopping:
        def __call__(self, *arguments, **keys):
            jobs[0].requested = True
            return presets.STANDARDS["pgd10"](0.1)(*arguments, **keys)

    monkeypatch.setattr(command, "Job", Watched)
    monkeypatch.setitem(presets.STANDARDS, "cw20", lambda eps, norm: Stopping())
    assert evaluate(run, "--attacks", "fgsm,cw20,pgd20", "--out", tmp_path / "out") == 130
    found = read(tmp_path / "out")
    assert not found["complete"] and found["not_run"] == ["cw20", "pgd20"]
    assert [attack["name"] for attack in found["attacks"]] == ["clean", "fgsm"]
    assert "finished: clean, fgsm; written to" in capsys.readouterr().err
    report = (tmp_path / "out" / "report.md").read_text()
    assert "Evaluation stopped; finished: clean, fgsm." in report
    assert not_trivial(tmp_path / "out" / "accuracy_vs_eps.png")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_leaves_what_is_finished(run, tmp_path):
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "ard_fast.evaluate",
        str(run),
        "--attacks",
        "fgsm,pgd50-10,apgd-t",
        "--out",
        str(out),
    ]
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "results.json").exists() or len(read(out)["attacks"]) < 2:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    error = process.communicate(timeout=60)[1]
    assert process.returncode == 130 and "stopped; finished: clean, fgsm" in error
    found = read(out)
    assert not found["complete"] and [attack["name"] for attack in found["attacks"]][:2] == ["clean", "fgsm"]
    assert "apgd-t" in found["not_run"] and not list(out.glob("*.part"))
