"""Networks as others write them run wherever our own do: as student, as teacher, under attack, in an evaluation.

An optimisation that one does not take is left out, and said; what is no classifier is refused before any work."""

import copy

import foreign_networks
import pytest
import torch
from foreign_networks import CONTIGUOUS, NAMES
from torch import nn

from ard_fast._commandline import StopRequest
from ard_fast.attacks import PGD
from ard_fast.data import load_dataset
from ard_fast.evaluate import main as evaluate
from ard_fast.folding import FoldedNetwork, Unfoldable
from ard_fast.models.trial import frozen, initialise_lazily, try_network
from ard_fast.teachers import InferenceNetwork
from ard_fast.train import main as train
from ard_fast.training.config import resolve
from ard_fast.training.fitting import Environment
from ard_fast.training.run_folder import RunFolder
from ard_fast.training.trainer import Trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of TorchScript and the older norms
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:Lazy modules are a new feature"),
]
CPU = torch.device("cpu")
OF_A_BATCH = {"BatchStatistics"}
TINY = "--epochs 1 --subset 48 --test-subset 16 --batch-size 16 --val-steps 1 --steps 1".split()  # noqa: SIM905


def images(count=12):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def build(name):
    torch.manual_seed(0)
    network = getattr(foreign_networks, name)()
    initialise_lazily(network, (1, 8, 8), name)
    return network


def plain(network, x):
    """Logits in eval mode."""
    with torch.no_grad():
        return network.eval()(x.contiguous())


def state(network):
    tensors = {key: value.clone() for key, value in (*network.named_parameters(), *network.named_buffers())}
    modes = [module.training for module in network.modules()]
    return tensors, modes, getattr(network, "calls", None), torch.get_rng_state()


def assert_same_state(found, expected):
    assert found[0].keys() == expected[0].keys() and found[1:3] == expected[1:3] and torch.equal(found[3], expected[3])
    for key, value in expected[0].items():
        assert torch.equal(found[0][key], value) and found[0][key].stride() == value.stride(), key


@pytest.mark.parametrize("name", NAMES)
def test_layout_and_precision_are_tried(name):
    network = build(name).train()
    before = state(network)
    form = try_network(network, images(), num_classes=10, label="student", precision="bf16", trained=True)
    assert_same_state(state(network), before)
    assert (form.layout == torch.contiguous_format) == (name in CONTIGUOUS)
    assert (form.precision == "fp32") == (name == "Float32Only")
    why = "student: runs contiguous: its forward does not take channels_last"
    assert any(note.startswith(why) for note in form.notes) == (name in CONTIGUOUS)
    assert any("depend on the other images" in note for note in form.notes) == (name in OF_A_BATCH)


@pytest.mark.parametrize("name", NAMES)
def test_as_a_teacher_and_folded_it_has_the_plain_logits(name):
    network = frozen(build(name))
    before = state(network)
    try:
        folded = FoldedNetwork(network, images())
    except Unfoldable:
        folded = None
    assert_same_state(state(network), before)
    assert folded is not None or name not in {"InPlace", "Tied", "Lazy"}
    inference = InferenceNetwork(network, images(16), "fp32", torch.contiguous_format)
    assert inference.by_image == (name not in OF_A_BATCH)
    for form in (inference, folded):
        if form is not None:
            with torch.no_grad():
                torch.testing.assert_close(form(images(7)), plain(network, images(7)), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_attacked_it_moves_as_in_plain_torch(name):
    """One step of the formula, from the plain gradient."""
    network, x = build(name).train(), images()
    y = torch.arange(12) % 10
    found = PGD(eps=0.1, step_size=0.03, steps=1, random_start=False)(network, x, y)
    assert all(module.training for module in network.modules())
    try:
        copied = copy.deepcopy(network)
    except Exception:  # a lock, or a weight that a hook has left behind
        copied = network
    probe = x.clone().requires_grad_()
    (grad,) = torch.autograd.grad(nn.functional.cross_entropy(copied.eval()(probe), y, reduction="sum"), probe)
    sure = grad.abs() > 1e-6  # where rounding cannot turn the sign
    torch.testing.assert_close(found[sure], (x + 0.03 * grad.sign()).clamp(0, 1)[sure], rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_trained_and_teaching(name, tmp_path):
    """A step of ARD, the same kind of network as student and as teacher."""
    student = f"foreign_networks:{name}"
    config = resolve({"method": "ard", "student": student, "teacher": str(tmp_path), "steps": 1, "batch_size": 16})
    env = Environment(load_dataset("digits", subset=48, test_subset=16), CPU, StopRequest())
    trainer = Trainer(config, RunFolder(tmp_path), env, {"teacher": frozen(build(name))})
    text = "\n".join(trainer.describe())
    for role in ("student", "teacher"):
        assert (f"{role}: runs contiguous: " in text) == (name in CONTIGUOUS)
    before = state(trainer.student)[0]
    sums = trainer.update(next(trainer._steps()), epoch=0, rates=trainer.rates())
    assert sums.isfinite().all()
    assert any(not torch.equal(value, before[key]) for key, value in trainer.student.named_parameters())


@pytest.mark.parametrize("name", ["LeNet", "Lazy"])
def test_from_the_first_command_to_the_last(name, tmp_path, capsys):
    """Trained, evaluated, and teacher of the next."""
    model, first = f"foreign_networks:{name}", tmp_path / "first"
    assert train(["--method", "at", "--student", model, *TINY, "--out", str(first)]) == 0
    why = "student: runs contiguous: its forward does not take channels_last images (RuntimeError: view"
    assert (why in capsys.readouterr().out) == (name == "LeNet")
    flags = ["--attacks", "pgd10", "--n-examples", "8", "--eps-curve", "none"]
    assert evaluate([str(first), "--model", model, *flags]) == 0
    assert ("model: runs contiguous: " in capsys.readouterr().out) == (name == "LeNet")
    teacher = ["--teacher", str(first), "--teacher-model", model, "--channels-last", "false"]
    assert train(["--method", "ard", *teacher, *TINY, "--out", str(tmp_path / "second")]) == 0
    printed = capsys.readouterr().out
    assert "runs contiguous" not in printed and "contiguous, fp32; logits within" in printed


@pytest.mark.parametrize(
    ("student", "flags", "message"),
    [
        ("LeNet", ["--channels-last", "true"], "student: cannot run with channels_last true (RuntimeError: view size"),
        ("Float32Only", ["--precision", "bf16"], "student: cannot run under precision bf16 (AssertionError: expected"),
        ("Uncopyable", ["--averaging", "ema"], "averaging: the student cannot be copied (TypeError: cannot pickle"),
        ("Uncopyable", ["--method", "adr"], "method: the student cannot be copied (TypeError: cannot pickle"),
        ("Uncopyable", ["--compare-methods", "at,at-ema", "--method", "compare"], "averaging: the student cannot"),
        ("Named", [], "student: must return logits [4, 10] for 4 images, got dict with 'logits', 'features'"),
    ],
)
def test_what_was_asked_for_and_cannot_be_is_refused(student, flags, message, tmp_path, capsys):
    out = tmp_path / "run"
    assert train(["--method", "at", "--student", f"foreign_networks:{student}", *TINY, *flags, "--out", str(out)]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith(f"error: {message}") and captured.err.count("\n") == 1 and not out.exists()


def test_an_evaluation_refuses_what_was_asked_for_and_cannot_be(tmp_path, capsys):
    flags = ["--model", "foreign_networks:LeNet", "--dataset", "digits", "--out", str(tmp_path / "run")]
    assert evaluate([*flags, "--channels-last", "true"]) == 2
    assert capsys.readouterr().err.startswith("error: model: cannot run with channels_last true (RuntimeError: view")


@pytest.mark.slow
def test_where_torch_compile_fails_it_is_reported_before_any_work(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = ["--method", "at", "--student", "foreign_networks:Scripted", *TINY, "--compile", "--out", str(out)]
    assert train(arguments) == 2
    printed = capsys.readouterr().err
    assert "error: compile: torch.compile fails for the student (" in printed and "leave --compile out" in printed
    assert "Traceback" not in printed and not out.exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Auxiliary", "must return logits [4, 10] for 4 images, got tuple of 2 in train mode"),
        ("Named", "must return logits [4, 10] for 4 images, got dict with 'logits', 'features'"),
        ("ThousandClasses", "returns 1000 classes, the data set has 10; give its factory a parameter num_classes"),
        ("FixedBatch", "cannot take images of shape [3, 1, 8, 8] in eval mode: RuntimeError: shape '[4, 64]' is"),
        ("NotANumberInTraining", "logits of 4 of 4 clean images are not finite in train mode"),
        ("Integers", "must return logits [4, 10] for 4 images of a floating dtype, got torch.int64"),
        ("ThreeChannels", "cannot take images of shape [4, 1, 8, 8] in eval mode: RuntimeError: Given groups=1"),
        ("Overwriting", "changes its images in place"),
        ("Frozen", "its logits have no gradient for any of its weights in train mode"),
        ("Growing", "its forward makes parameters, late.bias, late.weight"),
    ],
)
def test_what_is_no_classifier_is_refused_and_left_as_it_was(name, message):
    network = build(name).train()
    before = state(network)
    with pytest.raises(ValueError) as caught:
        try_network(network, images(4), num_classes=10, label="student", trained=True)
    assert str(caught.value).startswith(f"student: {message}") and "\n" not in str(caught.value)
    assert_same_state(state(network), before)
