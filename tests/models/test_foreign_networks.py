"""Networks as others write them run wherever our own do: as student, as teacher, under attack, in an evaluation.

An optimisation that one does not take is left out, and said; what is no classifier is refused before any work."""

import copy

import foreign_networks
import pytest
import torch
from foreign_networks import CONTIGUOUS, FACTORIES
from torch import nn

from ard_fast._interrupts import StopRequest
from ard_fast.attacks import PGD
from ard_fast.data import load_dataset
from ard_fast.evaluate import main as evaluate
from ard_fast.evaluation.job import Job
from ard_fast.evaluation.settings import resolve_settings
from ard_fast.folding import FoldedNetwork, Unfoldable
from ard_fast.models.trial import frozen, initialise_lazily, try_network
from ard_fast.teachers import InferenceNetwork
from ard_fast.train import main as train
from ard_fast.training.config import resolve
from ard_fast.training.fitting import Environment
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.trainer import Trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TorchScript, quantisation and the older norms
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature"),
]
NAMES = [make.__name__ for make in FACTORIES]
CPU = torch.device("cpu")
OF_A_BATCH = {"BatchStatistics"}
TINY = [
    "--epochs",
    "1",
    "--subset",
    "48",
    "--test-subset",
    "16",
    "--batch-size",
    "16",
    "--val-steps",
    "1",
    "--steps",
    "2",
]


def images(count=12):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def build(name):
    torch.manual_seed(0)
    network = getattr(foreign_networks, name)()
    initialise_lazily(network, (1, 8, 8), name)
    return network


def plain(network, x):
    """Logits in eval mode, of a network or of a copy that is not touched by them."""
    with torch.no_grad():
        return network.eval()(x.contiguous())


def state(network):
    tensors = {key: value.clone() for key, value in (*network.named_parameters(), *network.named_buffers())}
    return (
        tensors,
        [module.training for module in network.modules()],
        getattr(network, "calls", None),
        torch.get_rng_state(),
    )


def assert_same_state(found, expected):
    assert found[0].keys() == expected[0].keys() and found[1:3] == expected[1:3] and torch.equal(found[3], expected[3])
    for key, value in expected[0].items():
        assert torch.equal(found[0][key], value) and found[0][key].stride() == value.stride(), key


@pytest.fixture(scope="module")
def digits():
    return load_dataset("digits", val_size=40, subset=48, test_subset=16)


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_precision_are_tried(name):
    network = build(name).train()
    before = state(network)
    form = try_network(network, images(), num_classes=10, label="student", precision="bf16", trained=True)
    assert_same_state(state(network), before)
    assert (form.layout == torch.contiguous_format) == (name in CONTIGUOUS)
    assert (form.precision == "fp32") == (name == "Float32Only")
    layout = [note for note in form.notes if "runs contiguous" in note]
    assert [
        note.startswith("student: runs contiguous: its forward does not take channels_last") for note in layout
    ] == [True] * (name in CONTIGUOUS)
    assert any("depend on the other images" in note for note in form.notes) == (name in OF_A_BATCH)
    expected = plain(network, images())
    network.to(memory_format=form.layout)
    with torch.no_grad():
        torch.testing.assert_close(
            network(images().contiguous(memory_format=form.layout)), expected, rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels_last", "contiguous"])
def test_folded_it_is_the_same_function_or_not_folded(name, layout):
    network = build(name)
    before = state(network)
    try:
        folded = FoldedNetwork(network, images(), layout=layout)
    except Unfoldable:
        folded = None
    assert_same_state(state(network), before)
    foldable = {"InPlace", "Groups", "Quantised", "Tied", "Complex", "Attention", "Lazy"}
    if layout == torch.contiguous_format:
        foldable |= {"LeNet", "MnistNet", "NormedView", "Dropout2d", "LogSoftmax"}
    assert folded is not None or name not in foldable
    if folded is not None:
        with torch.no_grad():
            torch.testing.assert_close(folded(images(7)), plain(network, images(7)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_teacher_has_the_plain_networks_logits(name, precision):
    network = frozen(build(name))
    form = try_network(network, images(4), num_classes=10, label="teacher", precision=precision)
    network.to(memory_format=form.layout)
    inference = InferenceNetwork(network, images(16), form.precision, form.layout)
    assert inference.by_image == (name not in OF_A_BATCH)
    for count in (3, 16):
        found, expected = inference(images(count)), plain(network, images(count))
        scale = float(expected.abs().max())
        torch.testing.assert_close(
            found, expected, rtol=1e-4, atol=(1e-5 if form.precision == "fp32" else 5e-2) * scale
        )


@pytest.mark.parametrize("name", NAMES)
def test_attacked_it_moves_as_in_plain_torch(name):
    """One step of the formula, from the plain gradient."""
    network, x = build(name).train(), images()
    y = torch.arange(12) % 10
    before = state(network)[1]
    found = PGD(eps=0.1, step_size=0.03, steps=1, random_start=False)(network, x, y)
    assert [module.training for module in network.modules()] == before
    probe = x.clone().requires_grad_()
    loss = nn.functional.cross_entropy(copy_of(network).eval()(probe), y, reduction="sum")
    (grad,) = torch.autograd.grad(loss, probe)
    sure = grad.abs() > 1e-6  # where rounding cannot turn the sign
    torch.testing.assert_close(found[sure], (x + 0.03 * grad.sign()).clamp(0, 1)[sure], rtol=0, atol=1e-6)


def copy_of(network):
    try:
        return copy.deepcopy(network)
    except Exception:  # a lock, or a weight that a hook has left behind
        return network


@pytest.mark.parametrize("name", NAMES)
def test_trained_and_teaching(name, digits, tmp_path):
    """A step of ARD, the same kind of network as student and as teacher."""
    config = resolve(
        {"method": "ard", "student": f"foreign_networks:{name}", "teacher": str(tmp_path), "steps": 2, "batch_size": 16}
    )
    env = Environment(digits, CPU, StopRequest())
    trainer = Trainer(config, RunFolder(tmp_path), env, {"teacher": frozen(build(name))})
    text = "\n".join(trainer.describe())
    for role in ("student", "teacher"):
        assert (f"{role}: runs contiguous: " in text) == (name in CONTIGUOUS)
    before = state(trainer.student)[0]
    sums = trainer.update(next(trainer._steps()), epoch=0, rates=trainer.rates())
    assert sums.isfinite().all()
    moved = [key for key, value in trainer.student.named_parameters() if not torch.equal(value, before[key])]
    assert moved


@pytest.mark.parametrize("name", NAMES)
def test_evaluated(name, tmp_path):
    flags = {"model": f"foreign_networks:{name}", "dataset": "digits", "n_examples": "8", "attacks": "pgd10"}
    torch.manual_seed(0)
    job = Job(resolve_settings({**flags, "eps_curve": "none", "out": str(tmp_path)}), StopRequest())
    assert any("model: runs contiguous: " in fact for fact in job.facts()) == (name in CONTIGUOUS)
    job.evaluator.clean()
    (stage,) = job.evaluator.run(job.steps[-1]).stages
    assert stage.outside == 0 and stage.left <= stage.attacked


@pytest.mark.parametrize("name", ["LeNet", "Lazy", "Tied"])
def test_from_the_first_command_to_the_last(name, tmp_path, capsys):
    """Trained, evaluated, and teacher of the next."""
    model, first, layout = (
        f"foreign_networks:{name}",
        tmp_path / "first",
        ["--channels-last", "false"] * (name == "Tied"),
    )
    assert train(["--method", "at", "--student", model, *TINY, *layout, "--out", str(first)]) == 0
    printed = capsys.readouterr().out
    assert (
        "student: runs contiguous: its forward does not take channels_last images (RuntimeError: view" in printed
    ) == (name == "LeNet")
    flags = ["--attacks", "pgd10", "--n-examples", "8", "--eps-curve", "none"]
    assert evaluate([str(first), "--model", model, *flags]) == 0
    assert ("model: runs contiguous: " in capsys.readouterr().out) == (name == "LeNet")
    teacher = ["--teacher", str(first), "--teacher-model", model, "--channels-last", "false"]
    assert train(["--method", "ard", *teacher, *TINY, "--out", str(tmp_path / "second")]) == 0
    printed = capsys.readouterr().out
    assert "channels_last" not in printed.replace("--channels", "") and "runs contiguous" not in printed
    assert "contiguous, fp32; logits within" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--channels-last", "true"], r"error: student: cannot run with channels_last true (RuntimeError: view size"),
        (["--precision", "bf16"], "error: student: cannot run under precision bf16 (AssertionError: expected float32"),
        (["--averaging", "ema"], "error: averaging: the student cannot be copied (TypeError: cannot pickle"),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_refused(flags, message, tmp_path, capsys):
    student = {"--channels-last": "LeNet", "--precision": "Float32Only", "--averaging": "Uncopyable"}[flags[0]]
    out = tmp_path / "run"
    assert train(["--method", "at", "--student", f"foreign_networks:{student}", *TINY, *flags, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(message) and captured.err.count("\n") == 1 and not out.exists()


def test_an_evaluation_refuses_what_was_asked_for_and_cannot_be(tmp_path, capsys):
    flags = ["--model", "foreign_networks:LeNet", "--dataset", "digits", "--out", str(tmp_path / "run")]
    assert evaluate([*flags, "--channels-last", "true"]) == 2
    assert capsys.readouterr().err.startswith(
        "error: model: cannot run with channels_last true (RuntimeError: view size"
    )


@pytest.mark.parametrize("where", ["before", "within"])
def test_where_torch_compile_fails_it_is_said(where, monkeypatch, tmp_path, capsys):
    """Before any work where it is a matter of seconds to see, and else at the first step, without a traceback."""
    out = tmp_path / "run"
    student = "foreign_networks:Scripted" if where == "before" else "foreign_networks:Flat"
    if where == "within":
        from torch._dynamo.exc import BackendCompilerFailed

        def fails(network, **_):
            def compiled(*_):
                raise BackendCompilerFailed("inductor", RuntimeError("no compiler"), None)

            return compiled

        monkeypatch.setattr("ard_fast.training.fitting.try_compile", lambda *_: None)
        monkeypatch.setattr(torch, "compile", fails)
    arguments = ["--method", "at", "--student", student, *TINY, "--compile", "--out", str(out)]
    assert train(arguments) == (2 if where == "before" else 1)
    printed = capsys.readouterr().err
    assert "error: compile: torch.compile fails for the student (" in printed and "leave --compile out" in printed
    assert "Traceback" not in printed and not out.exists()


def test_an_attack_whose_parameters_cannot_be_set_apart_is_not_compiled(digits, tmp_path):
    config = resolve({"method": "at", "student": "foreign_networks:WholeParallel", "compile": True, "fold": "false"})
    trainer = Trainer(config, RunFolder(tmp_path), Environment(digits, CPU, StopRequest()))
    assert "attack on the student itself, not compiled (RuntimeError: The stateless API" in "\n".join(
        trainer.describe()
    )


def test_auto_precision_falls_back(monkeypatch, digits, tmp_path):
    """On a GPU "auto" is bfloat16; which is autocast on a CPU here."""
    monkeypatch.setattr("ard_fast.training.compute.resolve_precision", lambda *_, **__: "bf16")
    config = resolve({"method": "at", "student": "foreign_networks:Float32Only"})
    trainer = Trainer(config, RunFolder(tmp_path), Environment(digits, CPU, StopRequest()))
    assert trainer.compute.precision == "fp32"
    assert "student: runs in float32: it fails under bfloat16 autocast (AssertionError: expected float32" in "\n".join(
        trainer.describe()
    )


REFUSED = {
    "Auxiliary": "must return logits [4, 10] for 4 images, got tuple of 2 in train mode",
    "Named": "must return logits [4, 10] for 4 images, got dict with 'logits', 'features'",
    "ThousandClasses": "returns 1000 classes, the data set has 10; give its factory a parameter num_classes",
    "OneLogit": "returns 1 class, the data set has 10",
    "FixedBatch": "cannot take images of shape [3, 1, 8, 8] in eval mode: RuntimeError: shape '[4, 64]' is invalid",
    "NotANumber": "logits of 4 of 4 clean images are not finite",
    "NotANumberInTraining": "logits of 4 of 4 clean images are not finite in train mode",
    "Classes": "must return logits [4, 10] for 4 images, got [4]",
    "Integers": "must return logits [4, 10] for 4 images of a floating dtype, got torch.int64",
    "Large": "cannot take images of shape [4, 1, 8, 8] in eval mode: RuntimeError: Calculated padded input size",
    "ThreeChannels": "cannot take images of shape [4, 1, 8, 8] in eval mode: RuntimeError: Given groups=1, weight",
    "Overwriting": "changes its images in place",
    "Frozen": "its logits have no gradient for any of its weights in train mode",
    "Growing": "its forward makes parameters, late.bias, late.weight",
    "Half": "cannot take images of shape [4, 1, 8, 8] in eval mode: RuntimeError: mat1 and mat2 must have the same",
}
ONLY_IN_TRAINING = {"Auxiliary", "NotANumberInTraining", "Frozen", "Growing"}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_classifier_is_refused_before_any_work(name, tmp_path, capsys):
    model, out = f"foreign_networks:{name}", tmp_path / "run"
    attempts = [("student", lambda: train(["--method", "at", "--student", model, *TINY, "--out", str(out)]))]
    if name not in ONLY_IN_TRAINING:
        teacher = ["--method", "ard", "--teacher", model, *TINY, "--out", str(out)]
        attempts.append(("teacher", lambda: train(teacher)))
        attempts.append(("model", lambda: evaluate(["--model", model, "--dataset", "digits", "--out", str(out)])))
    for label, attempt in attempts:
        assert attempt() == 2
        captured = capsys.readouterr()
        assert captured.err.startswith(f"error: {label}: {REFUSED[name]}"), captured.err
        assert captured.err.count("\n") == 1 and not out.exists()


def test_the_trial_leaves_no_trace_where_it_fails():
    for name in ("Auxiliary", "NotANumberInTraining", "Growing"):
        network = build(name).train()
        before = state(network)
        with pytest.raises(ValueError):
            try_network(network, images(4), num_classes=10, label="student", trained=True)
        assert_same_state(state(network), before)
