"""The command from end to end: a trained run in; table, JSON, report and figures out."""

import json
import re
import sys

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
from ard_fast.evaluation import evaluator, job, report
from ard_fast.evaluation.results import Step
from ard_fast.evaluation.standard_attacks import OwnAttack, make_plan
from ard_fast.models import Normalised
from ard_fast.train import main as train
from ard_fast.training.checkpoint import load_network

FIGURES = ("accuracy_vs_eps", "per_class", "confusion", "pictures")
FILES = {"results.json", "report.md", *(f"{name}.{kind}" for name in FIGURES for kind in ("png", "pdf"))}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A digits student, trained adversarially for a second."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    arguments = ["--method", "at", "--student", "digits-student", "--epochs", "2", "--steps", "2", "--val-steps", "2"]
    assert train([*arguments, "--eps", "0.1", "--threads", "1", "--out", str(folder)]) == 0
    return folder


def evaluate(*arguments, **options):
    """Run the command; an option that is not given is kept short."""
    options = {"eps_curve": "none", "attacks": "clean", **options}
    flags = [part for name, value in options.items() for part in (f"--{name.replace('_', '-')}", value)]
    return main([str(argument) for argument in (*arguments, *flags)])


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
    assert evaluate(run, attacks="clean,fgsm,pgd20,cw20", eps_curve="0,0.05,0.1,0.2", out=out) == 0
    assert {path.name for path in out.iterdir()} == FILES
    printed, found = capsys.readouterr().out, read(out)
    assert found["complete"] and found["not_run"] == [] and found["warnings"] == []
    assert [attack["name"] for attack in found["attacks"]] == ["clean", "fgsm", "pgd20", "cw20"]
    assert found["settings"]["eps"] == 0.1 and found["settings"]["dataset"] == "digits"  # of the run
    assert found["images"] == 450 and found["settings"]["seed"] == 1234567
    assert len(found["model"]["sha256"]) == 64 and found["model"]["name"] == "digits-student"
    for attack in found["attacks"][1:]:
        (stage,) = attack["stages"]
        assert attack["attacked"] == found["attacks"][0]["robust"] and "eps=0.1" in stage["parameters"]
        assert stage["cost"]["forward_images"] >= stage["cost"]["backward_images"] > 0
        assert attack["worst_case_acc"] <= attack["robust_acc"] == 100 * attack["robust"] / 450
        cells = table_line(printed, attack["name"])
        assert cells[1:4] == [str(attack["attacked"]), f"{attack['robust_acc']:.2f}", f"{attack['worst_case_acc']:.2f}"]
        assert re.search(rf"\| {attack['name']} +\| +{' +. +'.join(cells[1:4])} \|", (out / "report.md").read_text())
    assert found["attacks"][2]["stages"][0]["cost"]["backward_images"] == 20 * found["attacks"][2]["attacked"]
    # The trainer's own figures, which are of the test images, the same attack, start and seed.
    summary = json.loads((run / "summary.json").read_text())
    assert found["clean_acc"] == pytest.approx(summary["clean_acc"])
    assert found["attacks"][2]["robust_acc"] == pytest.approx(summary["pgd20_acc"], abs=0.5)
    worst = [attack["worst_case_acc"] for attack in found["attacks"]]
    assert worst == sorted(worst, reverse=True) and found["worst_case_acc"] == worst[-1]
    points = found["eps_curve"]["points"]
    assert found["eps_curve"]["attack"] == "pgd20" and [point["eps"] for point in points] == [0.0, 0.05, 0.1, 0.2]
    assert all(f"eps={point['eps']}" in point["stage"]["parameters"] for point in points[1:])
    falls = [point["robust_acc"] for point in points]
    assert falls == sorted(falls, reverse=True) and falls[0] == found["clean_acc"] and falls[-1] < falls[0] - 5
    for text in ("worst case %: ", "![robust", "pictures.png", "PGD(eps=0.1", f"| 0.05 | {falls[1]:>8.2f} |"):
        assert text in (out / "report.md").read_text()
    assert "robust %: share of all images" in printed
    assert all(not_trivial(out / f"{name}.png") for name in FIGURES)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 0.8)])
def test_saved_images_fool_the_network_as_reported(run, tmp_path, norm, eps):
    out = tmp_path / "saved"
    assert evaluate(run, "--save-images", norm=norm, eps=eps, attacks="pgd10", seed=2, out=out) == 0
    found, stored = read(out), np.load(out / "adversarial.npz")
    network = load_network(run, num_classes=10, in_channels=1)
    with torch.no_grad():
        taken_for = network(torch.from_numpy(stored["adversarial"]).float() / int(stored["levels"])).argmax(1).numpy()
    assert np.array_equal(taken_for, stored["predicted_adversarial"])
    fooled = stored["fooled_by"] == "pgd10"
    assert fooled.sum() == found["export"]["fooled"] == found["attacks"][0]["robust"] - found["attacks"][1]["robust"]
    assert ((taken_for != stored["labels"]) & fooled).sum() == found["export"]["still_fooled"] > 0
    moved = ((stored["adversarial"].astype(float) - stored["original"]) / int(stored["levels"])).reshape(450, -1)
    size = np.abs(moved).max() if norm == "linf" else np.sqrt((moved**2).sum(1)).max()
    assert size <= eps and found["export"]["largest"] == pytest.approx(size)
    test = load_dataset("digits").test
    assert np.array_equal(stored["original"], test.images.numpy()) and np.array_equal(stored["ids"], test.ids.numpy())
    assert f"norm='{norm}'" in found["attacks"][1]["stages"][0]["parameters"]


def test_a_cascade_says_what_it_knows(run, tmp_path, capsys):
    out = tmp_path / "cascade"
    assert evaluate(run, "--cascade", attacks="fgsm,pgd10", n_examples=60, eps=0.2, split="val", out=out) == 0
    found, printed = read(out), capsys.readouterr().out
    fgsm, pgd = found["attacks"][1:]
    assert found["images"] == 60 and pgd["attacked"] == fgsm["worst_case"] and pgd["robust_acc"] is None
    assert table_line(printed, "pgd10")[2] == "-" and "--cascade" in printed and "60 val images" in printed


def test_a_factory_with_weights_for_normalised_images(tmp_path, monkeypatch, capsys):
    (tmp_path / "elsewhere.py").write_text(
        "from torch import nn\n\ndef make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))\n"
        "\ndef soft():\n    return nn.Sequential(*make(), nn.Softmax(1)).eval()\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    digits = load_dataset("digits")
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
    model = Normalised(inner, 0.7, 0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(80):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(digits.train.images / 16.0), digits.train.labels).backward()
        optimizer.step()
    torch.save({"state_dict": inner.state_dict()}, tmp_path / "weights.pt")
    common, found = (tmp_path / "weights.pt", "--model", "elsewhere:make", "--dataset", "digits"), {}
    for name, options in (("given", {"mean": 0.7, "std": 0.1}), ("missing", {})):
        assert evaluate(*common, attacks="fgsm", eps=0.05, out=tmp_path / name, **options) == 0
        found[name] = read(tmp_path / name)
    right = (model(digits.test.images / 16.0).argmax(1) == digits.test.labels).float().mean()
    assert found["given"]["clean_acc"] == pytest.approx(100 * float(right)) and found["given"]["warnings"] == []
    assert found["missing"]["clean_acc"] < found["given"]["clean_acc"] - 5
    (warning,) = [text for text in found["missing"]["warnings"] if text.startswith("normalisation")]
    assert re.search(r"% with --mean [\d.e-]+ --std [\d.e-]+: the network seems to have been trained", warning)
    assert evaluate("--model", "elsewhere:soft", "--dataset", "digits", out=tmp_path / "soft") == 0
    assert {text.split(":")[0] for text in read(tmp_path / "soft")["warnings"]} >= {"probabilities", "accuracy"}
    assert "warning: probabilities" in capsys.readouterr().out
    assert "return logits" in (tmp_path / "soft" / "report.md").read_text()


def test_one_of_several_sets_of_weights_can_be_chosen(run, tmp_path):
    state = load_network(run, num_classes=10, in_channels=1).state_dict()
    torch.save(
        {"model": state, "ema": {key: torch.zeros_like(value) for key, value in state.items()}}, tmp_path / "w.pt"
    )
    for name, options in (("model", {}), ("ema", {"weights": "ema"})):
        file = (tmp_path / "w.pt", "--model", "digits-student", "--dataset", "digits")
        assert evaluate(*file, out=tmp_path / name, **options) == 0
    assert read(tmp_path / "model")["clean_acc"] > 50 > read(tmp_path / "ema")["clean_acc"]
    (warning,) = read(tmp_path / "model")["warnings"]
    assert warning == "weights: the file holds 2 sets of weights: 'model' is taken, not 'ema' (choose with --weights)."
    assert not any(text.startswith("weights") for text in read(tmp_path / "ema")["warnings"])


CONSTANT = """
import torch
from torch import nn

class Constant(nn.Module):
    def forward(self, x):
        return (0 * x).flatten(1)[:, :3] + torch.tensor([1.0, 0, 0])

def make():
    return Constant().eval()

def few():
    return nn.Conv2d(3, 10, 3)

def ten():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10).requires_grad_(False))

class Frozen(nn.Module):
    def forward(self, x):
        return x.detach().flatten(1)[:, :10]

def frozen():
    return Frozen().eval()
"""


def test_part_of_class_sorted_test_images_holds_every_class(tmp_path, monkeypatch, capsys):
    (tmp_path / "constant.py").write_text(CONSTANT)
    monkeypatch.syspath_prepend(tmp_path)
    np.savez(tmp_path / "s.npz", x_test=np.full((150, 4, 4), 100, np.uint8), y_test=np.repeat(np.arange(3), 50))
    common = ("--model", "constant:make", "--dataset", "npz", "--data-dir", tmp_path / "s.npz")
    assert main([*map(str, common), "--n-examples", "30", "--eps-curve", "none", "--out", str(tmp_path / "out")]) == 0
    found, printed = read(tmp_path / "out"), capsys.readouterr().out
    assert found["clean_acc"] == pytest.approx(100 / 3) and found["images"] == 30 and found["classes"] == 3
    assert "30 test images of npz, all 3 classes" in printed and "warning: accuracy: 33.3 %" in printed
    assert [row["name"] for row in found["attacks"]] == ["clean", "fgsm", "pgd20", "cw20", "apgd-ce"]
    assert "apgd-t is left out: it needs 4 classes, the data set has 3" in printed


def test_images_of_8_bits_are_saved_as_they_were_attacked(run, tmp_path, capsys):
    digits, data = load_dataset("digits").test, tmp_path / "test.npz"
    np.savez(data, x_test=(digits.images[:60] * 15).numpy(), y_test=digits.labels[:60].numpy())
    options = {"dataset": "npz", "data_dir": data, "eps": 0.07, "attacks": "pgd5-8bit", "out": tmp_path / "out"}
    assert evaluate(run, "--save-images", **options) == 0
    printed, (_, eight), export = (
        capsys.readouterr().out,
        *(read(tmp_path / "out")[key] for key in ("attacks", "export")),
    )
    assert table_line(printed, "pgd5-8bit") and eight["robust"] < 50
    assert "-8bit: adversarial images of 8 bits, each pixel at most 17 of 255 levels from the clean one" in printed
    assert eight["stages"][0]["parameters"].startswith("PGD(eps=17/255, ")
    assert export["still_fooled"] == export["fooled"] > 0 and export["largest"] == 17 / 255


def test_the_checkpoint_knows_the_classes_that_test_labels_do_not_show(run, tmp_path, capsys):
    digits = load_dataset("digits").test
    few = digits.labels < 7
    images = (digits.images[few].float() / 16 * 255).round().to(torch.uint8)
    np.savez(tmp_path / "test.npz", x_test=images.numpy(), y_test=digits.labels[few].numpy())
    assert evaluate(run, dataset="npz", data_dir=tmp_path / "test.npz", out=tmp_path / "out") == 0
    assert f"{int(few.sum())} test images of npz, 7 of 10 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--weights", "ema"], "weights: .* holds one set of weights, not 'ema'"),
        (["--attacks", "pgd40-l2"], r"pgd40-l2 works in the l2 ball, .*--norm l2 and an --eps of its own"),
        (
            ["--attacks", "pgd20-8bit"],
            "pgd20-8bit needs images of 8 bits, .* this data set has levels 0 to 16: use pgd20",
        ),
        (["--atacks", "pgd20"], "unknown argument '--atacks'; did you mean --attacks"),
        (["--eps", "8"], r"\(8/255, not 8\)"),
        (["--n-examples", "451"], "n_examples: expected 1 to 450 test images"),
        (["--device", "tpu"], "device: expected auto, cpu, cuda or cuda:N"),
        (["--dataset", "cifar10"], "data_dir: cifar10 needs --data-dir"),
        (["--precision", "fp16"], "precision: unknown value 'fp16'"),
        (["--transfer-from", "nowhere"], "transfer_from: nowhere is neither"),
        (["--transfer-from", "constant:ten", "--attacks", "clean"], "attacks: --transfer-from needs one, got clean"),
        (["--transfer-from", "constant:make"], "transfer_from: constant:make: returns 3 classes, the data set has 10"),
        (
            ["--transfer-from", "constant:few"],
            r"constant:few: cannot take images of shape \[4, 1, 8, 8\]",
        ),
        (["--model", "constant:frozen", "--attacks", "square,pgd20"], "pgd20 needs gradients"),
    ],
)
def test_bad_arguments_are_one_line_and_no_folder(run, tmp_path, capsys, monkeypatch, arguments, message):
    (tmp_path / "constant.py").write_text(CONSTANT)
    monkeypatch.syspath_prepend(tmp_path)
    source = ["--dataset", "digits"] if "--model" in arguments else [str(run)]
    try:
        code = main([*source, *arguments, "--out", str(tmp_path / "out")])
    except SystemExit as stopped:  # argparse's own way
        code = stopped.code
    assert code == 2 and not (tmp_path / "out").exists()
    captured = capsys.readouterr()
    assert re.search(message, captured.err) and captured.err.count("\n") == 1 and captured.out == ""


OWN = """
import torch

class Noise:
    def __init__(self, eps):
        self.eps = eps

    def __repr__(self):
        return f"Noise({self.eps})"

    def __call__(self, model, x, y):
        assert not model.training and torch.is_grad_enabled() and model(x).requires_grad is False
        return x.add_(self.eps * torch.randn_like(x).sign()).clamp_(0, 1)

def keyed(eps, norm):
    @torch.inference_mode()
    def attack(model, x, y, seed, sample_ids):  # may write to all that it is given
        assert norm == "linf" and int(seed) in (0, 1234567) and torch.initial_seed() == int(seed)
        assert len(sample_ids.add_(seed.add_(1))) == len(y.add_(1))
        return x.add_(0)
    return attack

def wrong(change):
    return lambda eps: lambda model, x, y: change(x)

not_a_tensor = wrong(lambda x: [x])
shape = wrong(lambda x: x[:, 0])
dtype = wrong(lambda x: x.double())
finite = wrong(lambda x: x / 0)
far = wrong(lambda x: (x + 0.3).clamp(0, 1))
range = wrong(lambda x: x - 0.05)
late = wrong(lambda x: x if len(x) < 5 else x.double())
fails = wrong(lambda x: x.nothing)
fails_late = wrong(lambda x: x if len(x) < 5 else x.nothing)

def changes(how):
    return lambda eps: lambda model, x, y: (how(model, x), x)[1]

modes = changes(lambda model, x: model.train())
statistics = changes(lambda model, x: (model.train(), model(x), model.eval()))

def needs_more(eps, other):
    pass

def returns_none(eps):
    pass
"""


@pytest.fixture
def own_attacks(tmp_path, monkeypatch):
    (tmp_path / "own_attacks.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_attacks", raising=False)


def test_an_attack_of_ones_own(run, own_attacks, tmp_path, capsys):
    out = tmp_path / "out"
    attacks = "fgsm,own_attacks:Noise,own_attacks:keyed"
    assert evaluate(run, attacks=attacks, n_examples=60, batch_size=20, out=out) == 0
    noise, keyed = read(out)["attacks"][2:]
    assert noise["name"] == "own_attacks:Noise"
    assert noise["stages"][0]["cost"]["forward_images"] == 2 * noise["attacked"]
    assert noise["stages"][0]["parameters"] == "custom attack own_attacks:Noise: Noise(0.1)"
    assert keyed["stages"][0]["parameters"] == "custom attack own_attacks:keyed: eps=0.1, norm='linf'"
    assert keyed["robust"] == keyed["attacked"]  # it changes nothing
    titles, *rows = capsys.readouterr().out.split("seed 1234567\n")[1].splitlines()[:5]
    assert all(row[: len(titles)].rstrip() == row.rstrip() for row in rows)  # the columns stay in place
    assert "own_attacks:Noise: `custom attack" in (out / "report.md").read_text()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "'own_attacks' has no 'nothing'"),
        ("needs_more", r"own_attacks:needs_more must be a function or class that takes eps .* failed \(TypeError"),
        ("returns_none", "own_attacks:returns_none must return an attack to be called, got NoneType"),
        ("not_a_tensor", "own_attacks:not_a_tensor: expected a tensor of adversarial images, got list"),
        ("shape", r"images of the shape of x, \[4, 1, 8, 8\], got \[4, 8, 8\]"),
        ("dtype", "images of the dtype of x, torch.float32, got torch.float64"),
        ("finite", "finite images, got NaN or infinity in 4 of 4"),
        ("far", r"within eps 0.1 of x \(linf\) and pixels in \[0, 1\], got 4 of 4 outside \(largest distance 0.3"),
        ("range", r"got 4 of 4 outside \(largest distance 0.05.*, pixels -0.05 to"),
        ("fails", "own_attacks:fails failed on 4 images .*nothing"),
        ("modes", "expected the network as it was, got other weights, running statistics or modes"),
        ("statistics", "expected the network as it was, got other weights, running statistics or modes"),
    ],
)
def test_a_wrong_attack_of_ones_own_is_refused(own_attacks, name, message):
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(64, 10)).eval()
    with pytest.raises(ValueError, match=f"^attacks: .*{message}"):
        OwnAttack(f"own_attacks:{name}", 0.1, "linf").try_on(network, torch.zeros(4, 1, 8, 8), torch.arange(4))


@pytest.mark.parametrize(
    ("late", "wrong"),
    [
        ("late", ": expected images of the dtype of x, torch.float32, got torch.float64"),
        ("fails_late", " failed on {} images (AttributeError: 'Tensor' object has no attribute 'nothing')"),
    ],
)
def test_what_is_done_before_an_attack_of_ones_own_goes_wrong_is_kept(run, own_attacks, tmp_path, capsys, late, wrong):
    out = tmp_path / "out"
    assert evaluate(run, attacks="fgsm,own_attacks:dtype", out=out) == 2  # at once
    assert evaluate(run, attacks=f"fgsm,own_attacks:{late}", n_examples=60, out=out) == 1
    wrong = f"attacks: own_attacks:{late}{wrong}".format(read(out)["attacks"][0]["robust"])
    assert f"error: stopped: {wrong}; finished: clean, fgsm; written to {out}" in capsys.readouterr().err
    found = read(out)
    assert not found["complete"] and found["not_run"] == [f"own_attacks:{late}"]
    assert wrong in (out / "report.md").read_text()


def test_transfer_and_bfloat16_in_table_and_report(run, tmp_path, monkeypatch, capsys):
    (tmp_path / "constant.py").write_text(CONSTANT)
    monkeypatch.syspath_prepend(tmp_path)
    out = tmp_path / "out"
    options = {"attacks": "pgd3", "n_examples": 60, "eps": 0.2, "precision": "bf16", "out": out}
    assert evaluate(run / "best.safetensors", transfer_from=f"{run},constant:ten", **options) == 0
    found, printed, report = read(out), capsys.readouterr().out, (out / "report.md").read_text()
    own, same, other = found["attacks"][1:]
    assert [row["name"] for row in found["attacks"][1:]] == ["pgd3", "pgd3 from run", "pgd3 from constant:ten"]
    assert own["robust"] == same["robust"] < other["robust"]  # the same network, and one with random weights
    assert [row["source"] for row in (own, same, other)] == [None, "run", "constant:ten"]
    assert found["settings"]["transfer_from"] == [str(run), "constant:ten"] and found["settings"]["precision"] == "bf16"
    agreement = own["stages"][0]["agreement"]
    assert agreement["images"] == own["attacked"] and agreement["robust"] == own["robust"]
    text = f"verdicts equal on {agreement['equal']} of {own['attacked']} images; still correct: {own['robust']} (bf16)"
    for part in (
        text,
        "attacks in bfloat16, verdicts in float32",
        "attacks from constant:ten: constant:ten, ",
    ):
        assert part in printed and part in report
    assert "    agreement: " in printed and "## Agreement" in report and "PGD(eps=0.2" in report


def test_a_network_without_gradients_is_evaluated_by_transfer(tmp_path, monkeypatch, capsys):
    (tmp_path / "constant.py").write_text(CONSTANT)
    monkeypatch.syspath_prepend(tmp_path)
    options = {"attacks": "pgd3", "n_examples": 10, "eps_curve": "0.1", "transfer_from": "constant:ten"}
    assert evaluate("--model", "constant:frozen", "--dataset", "digits", out=tmp_path / "out", **options) == 0
    assert [row["name"] for row in read(tmp_path / "out")["attacks"]] == ["clean", "pgd3 from constant:ten"]
    left_out = "left out, because the network itself has no gradients: pgd3, the curve against eps"
    assert left_out in capsys.readouterr().out


def test_an_ensemble_in_table_and_report(run, tmp_path, monkeypatch, capsys):
    stages = (("a", Lighten(())), ("b", Lighten(())))
    monkeypatch.setattr(job, "make_plan", lambda *_, **__: [Step("both", stages)])
    assert evaluate(run, n_examples=20, out=tmp_path / "out") == 0
    printed, found = capsys.readouterr().out, read(tmp_path / "out")
    assert [stage["name"] for stage in found["attacks"][1]["stages"]] == ["a", "b"]
    assert re.search(r"^    a +\d+ +[\d.]+ .*\n    b .*\n  both ", printed, re.MULTILINE)
    assert "Indented: stages of an ensemble" in printed
    assert "| &nbsp;&nbsp;a " in (tmp_path / "out" / "report.md").read_text()


def test_without_a_terminal_progress_is_a_line_now_and_then(monkeypatch, capsys):
    now = [1000.0]
    monkeypatch.setattr(report.time, "monotonic", lambda: now[0])
    shown = report.AttackProgress()
    shown.progress(10, 0, 0)
    shown.stage_started("pgd20", 60, 20, None)
    for forwards, done in [(20, 0), (30, 0), (31, 20), (36, 20), (46, 20), (47, 40), (57, 40), (58, 60)]:
        now[0] += 20.0
        shown.progress(forwards, done, done)
    assert capsys.readouterr().out.splitlines() == [
        "    pgd20: 0/60 images, pass 20, ? left",  # 40 s; from here on a line after 30 s at least
        "    pgd20: 20/60 images, pass 5/21, 20 still right, 01:53 left",
        "    pgd20: 40/60 images, pass 0/16, 40 still right, 01:00 left",
    ]


@pytest.mark.parametrize(
    ("name", "passes"), [("pgd20", 21), ("apgd-t", 901), ("square", 5001), ("pgd50-10", 501), ("own", None)]
)
def test_the_passes_of_an_attack_are_known_beforehand(name, passes):
    attack = object() if name == "own" else make_plan([name], eps=0.1, norm="linf", num_classes=10)[0].stages[0][1]
    assert evaluator._passes(attack) == passes


def test_a_stop_in_an_attack_keeps_the_others(run, tmp_path, monkeypatch, capsys):
    stops = []

    class Watched(job.Job):
        def __init__(self, settings, stop):
            stops.append(stop)
            super().__init__(settings, stop)

    class Stopping:
        def __call__(self, *arguments, **keys):
            stops[0].requested = True
            return presets.STANDARDS["pgd10"](0.1)(*arguments, **keys)

    monkeypatch.setattr(command, "Job", Watched)
    monkeypatch.setitem(presets.STANDARDS, "cw20", lambda eps, norm: Stopping())
    assert evaluate(run, attacks="fgsm,cw20,pgd20", n_examples=30, out=tmp_path / "out") == 130
    found = read(tmp_path / "out")
    assert not found["complete"] and found["not_run"] == ["cw20", "pgd20"]
    assert [attack["name"] for attack in found["attacks"]] == ["clean", "fgsm"]
    assert "finished: clean, fgsm; written to" in capsys.readouterr().err
    assert "Evaluation stopped; finished: clean, fgsm." in (tmp_path / "out" / "report.md").read_text()
    assert "(per_class.png)" in (tmp_path / "out" / "report.md").read_text()
