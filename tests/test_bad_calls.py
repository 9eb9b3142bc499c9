"""Wrong calls of every public function, in short; scripts/bad_calls.py is the long form, and runs under sanitizers."""

import inspect
import math
import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ard_fast import attacks, functional, reference
from ard_fast.attacks import adapters
from ard_fast.functional import _ops
from ard_fast.losses import ARDLoss

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from abuse.bad_call import BadCall, attempt, try_calls
from abuse.target import Target
from abuse.targets import all_targets

TARGETS = {target.name: target for target in all_targets()}


@pytest.mark.parametrize("name", TARGETS)
def test_wrong_calls_are_answered_clearly(name):
    assert not try_calls(TARGETS[name], range(25), seed=0).unclear


@pytest.mark.parametrize("name", TARGETS)
def test_the_calls_that_are_changed_are_valid_before(name):
    for seed in range(5):
        TARGETS[name].call(**TARGETS[name].arguments(random.Random(seed)))


def test_no_public_function_is_left_out():
    kinds = {"AttackGradient"}  # what functions return
    functions = {name.partition(".")[2] for name in TARGETS if name.startswith("functional.")}
    assert functions == set(functional.__all__) - kinds
    operators = {name for name, op in vars(_ops).items() if isinstance(op, torch._ops.OpOverload)}
    assert {name.rpartition(".")[2] for name in TARGETS if name.startswith("torch.ops.")} == operators
    called = {name.partition(".")[2] for name in TARGETS if name.startswith(("attacks.", "adapters."))}
    bases = {"GradientAttack", "Problem", "BN_POLICIES", "PRESETS", "as_graph", "FromFoolbox", "FromTorchattacks"}
    assert set(attacks.__all__) | set(adapters.__all__) <= called | bases


# ---- the judge -------------------------------------------------------------------------------------------------------


def judged(call, **arguments):
    target = Target("f", call, lambda rng: arguments)
    return attempt(target, BadCall(arguments, ("size",), "size is wrong"))[1]


def test_an_answer_that_names_nothing_is_unclear():
    def vague(size):
        raise ValueError("something is wrong")

    assert "does not name size" in judged(vague, size=3)


def test_an_answer_of_another_type_is_unclear():
    def careless(size):
        return size.shape

    assert "not an allowed type: AttributeError" in judged(careless, size=3)


def test_a_refused_call_that_has_written_is_unclear():
    def late(out, size):
        out.zero_()
        raise ValueError("size must be larger")

    assert judged(late, out=torch.ones(2), size=3) == "was refused, but out has been written to"


def test_a_clear_answer():
    def clear(size):
        raise ValueError("size must be larger, got 3")

    assert judged(clear, size=3) is None


# ---- what the wrong calls have found ---------------------------------------------------------------------------------

X = torch.rand(3, 2, 4, 5)
LOGITS = torch.randn(3, 6)


@pytest.mark.parametrize("where", ["x_adv", "grad", "x"])
def test_one_tensor_on_meta_is_refused_and_nothing_pretended(where):
    """torch calls the shape function in the operator's place, which wrote nothing and said nothing."""
    tensors = {"x_adv": X.clone(), "grad": X.clone(), "x": X.clone()}
    tensors[where] = tensors[where].to("meta")
    with pytest.raises(RuntimeError, match="must be on the device of"):
        functional.pgd_linf_step_(**tensors, step_size=0.1, eps=0.1)


def test_a_loss_of_logits_on_two_devices_is_not_garbage():
    with pytest.raises(RuntimeError, match="must be on the device of"):
        functional.kl_distill_loss(LOGITS, LOGITS.to("meta"))
    with pytest.raises(RuntimeError, match=r"tensors must be on the device of weights \(cpu\), got meta"):
        numbers = [1e-5], [0, -1, 0]
        layer = [torch.rand(4, 1, 1, 1, device="meta"), *[None] * 3, torch.rand(4), torch.rand(4)]
        _ops.fold_batch_norm_(torch.zeros(4), torch.zeros(4), layer, *numbers)


def test_none_for_a_tensor_of_an_operator_is_named():
    with pytest.raises(RuntimeError, match="x must be a tensor, got None"):
        _ops.pgd_l2_step_(X.clone(), X, None, None, None, 0.1, 0.1, False, 0.0, 1.0)
    with pytest.raises(RuntimeError, match="labels must be a tensor, got None"):
        _ops.pair_loss(LOGITS, LOGITS, None, None, False, 1.0, 1.0, 1.0, 1.0, True, False)


@pytest.mark.parametrize("name", ["step_size", "eps"])
def test_sizes_do_not_share_memory_with_what_is_written(name):
    x_adv = torch.rand(3, 4)
    sizes = {"step_size": 0.1, "eps": 0.1, name: x_adv.view(-1)[:3]}
    for step_ in (functional.pgd_linf_step_, functional.pgd_l2_step_):
        with pytest.raises(RuntimeError, match=f"x_adv must not overlap {name} in memory"):
            step_(x_adv, torch.rand(3, 4), torch.rand(3, 4), **sizes)


@pytest.mark.parametrize("init, norm", [("surface", "linf"), ("surface", "l2"), ("uniform", "l2")])
def test_a_radius_for_another_batch_is_not_broadcast(init, norm):
    with pytest.raises(RuntimeError, match=r"eps must have shape \[3\], one entry a sample, got \[1\]"):
        functional.random_start(X, eps=torch.rand(1), init=init, norm=norm)


@pytest.mark.parametrize("value", [10**400, 1e39, math.inf])
def test_numbers_beyond_float32(value):
    with pytest.raises(ValueError, match="eps must be finite and at least 0"):
        functional.pgd_linf_step_(X.clone(), X, X, step_size=0.1, eps=value)
    with pytest.raises(ValueError, match="bounds must be"):
        attacks.PGD(bounds=(0.0, 10**400))


def test_a_step_count_that_the_state_cannot_count():
    with pytest.raises(ValueError, match="steps must be at least 1 and at most 16777216, got 1000000000"):
        functional.checkpoint_windows(10**9)


@pytest.mark.parametrize("name", ["targeted", "random_start", "clamp_start"])
def test_a_text_is_no_flag(name):
    with pytest.raises(TypeError, match=f"{name} must be True or False, got 'false'"):
        attacks.PGD(**{name: "false"})


# Losses that take more than one tensor by position, and how many: the order of these is torch's own.
SEVERAL = {"kl_distill_loss": 2, "attack_loss": 2, "attack_gradient": 2}
LOSSES = [(part, name) for part in (functional, reference) for name in part.__all__ if name.endswith("_loss")]


@pytest.mark.parametrize(("part", "name"), [*LOSSES, (functional, "attack_gradient"), (ARDLoss, "forward")])
def test_of_several_logits_only_the_first_is_positional(part, name):
    parameters = list(inspect.signature(getattr(part, name)).parameters.values())
    parameters = [parameter for parameter in parameters if parameter.name != "self"]
    positional = [parameter for parameter in parameters if parameter.kind is not parameter.KEYWORD_ONLY]
    assert len(positional) == SEVERAL.get(name, 1)


def test_logits_in_the_order_of_a_paper_are_refused():
    """With four logits of one shape any order would give a number."""
    student, teacher, clean, y = torch.randn(3, 4), torch.randn(3, 4), torch.randn(3, 4), torch.tensor([0, 1, 2])
    for loss, given in (
        (functional.ard_loss, (student, teacher, clean, y)),
        (functional.rslad_loss, (student, clean, teacher)),
        (functional.trades_loss, (student, clean, y)),
        (functional.mart_loss, (student, clean, y)),
        (ARDLoss(), (student, teacher)),
    ):
        with pytest.raises(TypeError, match=r"takes . positional arguments? but . were given"):
            loss(*given)


def test_the_loss_module_says_at_once_what_is_wrong():
    with pytest.raises(ValueError, match=r"alpha must be in \[0, 1\], got 2.0"):
        ARDLoss(alpha=2)
    with pytest.raises(TypeError, match="temperature must be a number, got str"):
        ARDLoss(temperature="30")
    with pytest.raises(ValueError, match="reduction must be one of"):
        ARDLoss(reduction="average")


@pytest.mark.parametrize("answer", [lambda x: x.flatten(1)[:, :0], lambda x: x.flatten(1) + 0j, lambda x: [x]])
def test_what_a_model_returns_is_named_after_it(answer):
    for attack in (attacks.PGD(steps=1), attacks.InTurn([attacks.FGSM()])):
        with pytest.raises(ValueError, match="model must return logits"):
            attack(answer, X, torch.tensor([0, 1, 2]))


def test_std_that_makes_infinite_pixels():
    adapter = adapters.TorchattacksAdapter(lambda x: x.flatten(1), attacks.PGD(steps=1))
    with pytest.raises(ValueError, match="std must be finite and above 0"):
        adapter.set_normalization_used([0.5], [0.0])


def test_a_start_on_another_device_than_the_images():
    with pytest.raises(RuntimeError, match=r"start must be on the device of x \(cpu\), got meta"):
        functional.APGDRun(X, X.to("meta"), eps=0.1)


def test_a_class_is_no_target_model():
    with pytest.raises(TypeError, match=r"y must be target logits, a target model, or None .*, got type"):
        attacks.KLPGD(steps=1)(lambda x: x.flatten(1), X, float)


def test_an_eps_without_numbers_is_named():
    with pytest.raises(RuntimeError, match=r"^ard_fast: eps must"):
        functional.pgd_linf_step_(X.clone(), X, X, step_size=0.1, eps=torch.empty(0))


def test_check_bounds_is_a_flag():
    with pytest.raises(TypeError, match=r"^check_bounds must be True or False, got"):
        functional.pgd_linf_step_(X.clone(), X, X, step_size=0.1, eps=0.1, check_bounds=np.zeros(3))
