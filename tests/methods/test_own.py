"""Methods that are not in the package: `--method package.module:NAME`."""

import own_losses
import pytest
import torch
from distillation_cases import make_batch, make_method, make_student, make_teacher
from short_runs import TINY, assert_same_run, small_and_tidy, stop_after

from ard_fast.methods.own import describe_method, try_method
from ard_fast.train import main
from ard_fast.training.config import for_method, read_yaml, resolve, to_yaml

__all__ = ["small_and_tidy"]  # a fixture


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nowhere:loss", "cannot import 'nowhere'"),
        ("own_losses:plane", "'own_losses' has no 'plane'; did you mean own_losses:plain"),
        ("own_losses:other_names", r"takes \(model, x_adv, y\); expected loss\(student, teacher, x, x_adv, y\)"),
        ("own_losses:LABEL", "is str; expected loss"),
        ("own_losses:Stranger", "is a class; expected a subclass of ard_fast.methods.Method"),
        ("own_losses:Abstract", "does not define attack"),
        ("own_losses:Incomplete", "has a field missing that is no setting; give it a default"),
    ],
)
def test_what_is_no_method_is_refused(name, message):
    with pytest.raises(ValueError, match=f"^method: .*{message}"):
        resolve({"method": name})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("one_by_one", r"must be a scalar tensor, a mean over the batch, got a tensor of shape \[12\]"),
        ("a_number", "must be a scalar tensor, a mean over the batch, got float"),
        ("infinite", "the loss is -?inf on 12 training images"),
        ("without_student", "no gradient for the student's weights"),
        ("detached", "no gradient for the student's weights"),
        ("Bare", r"expected StepResult\(loss, logits\), got Tensor"),
        ("in_halves", "must be asked for the logits of all 12 images at once"),
        ("broken", r" fails in own_losses.py, line \d+ \(RuntimeError: "),
    ],
)
def test_what_cannot_be_trained_with_is_refused(name, message):
    student, batch = make_student(), make_batch()
    before = {key: value.clone() for key, value in student.state_dict().items()}
    with pytest.raises(ValueError, match=f"^method{' ' if name == 'broken' else ': '}.*{message.lstrip()}"):
        try_method(make_method(f"own_losses:{name}"), student, batch, precision="fp32", label="method")
    assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())


def test_a_class_takes_the_settings_that_it_has_fields_for():
    config = resolve({"method": "own_losses:Penalised", "steps": 2})
    assert config.beta == 2.0 and config.alpha is None
    method = make_method("own_losses:Penalised", beta=1.0, steps=2)
    assert (method.beta, method.power, method.steps) == (1.0, 3.0, 2)
    with pytest.raises(ValueError, match=r"alpha: method own_losses:Penalised has no such setting; it has .*beta"):
        resolve({"method": "own_losses:Penalised", "alpha": 0.5})


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("plain", ["custom loss own_losses:plain", "x' attacks CE(S(x'), y)"]),
        ("weighted", ["custom loss own_losses:weighted", "x' attacks CE(S(x'), y)"]),
        ("distil", ["custom loss own_losses:distil: KL from the teacher at both images.", "x' attacks CE(S(x'), y)"]),
        ("Penalised", ["custom method own_losses:Penalised on top of PGDMethod: Cross-entropy and a penalty."]),
    ],
)
def test_a_run_says_that_its_method_is_custom(name, lines):
    path = f"own_losses:{name}"
    assert describe_method(path, make_method(path)) == lines


def test_a_loss_is_given_each_networks_logits_at_the_images_it_asks_for():
    student, teacher, batch = make_student().eval(), make_teacher(), make_batch()
    method = make_method("own_losses:distil", teacher, steps=2)
    inner = method.attack(student, batch)
    assert not inner.x_adv.equal(batch.x) and method.clean_teachers() == ()
    loss, logits = method.loss(student, batch, inner)
    assert loss.item() == pytest.approx(
        own_losses.distil(student, teacher, batch.x, inner.x_adv, batch.y).item(), rel=1e-5
    )
    assert torch.allclose(logits, student(inner.x_adv))  # although the student was asked at x last
    assert method.clean_teachers() == (method.teacher,)


def test_the_yaml_of_a_configuration_keeps_them(tmp_path):
    config = resolve({"method": "compare", "compare_methods": ("at", "own_losses:plain-ema", "own_losses:plain")})
    averages = [for_method(config, name, 0).averaging for name in config.compare_methods]
    assert averages == ["off", "ema", "off"]
    (tmp_path / "c.yaml").write_text(to_yaml(config))
    assert resolve({}, file=read_yaml(tmp_path / "c.yaml")) == config
    with pytest.raises(ValueError, match="compare_methods: expected each method once, got own_losses:plain, other"):
        resolve({"compare_methods": ("own_losses:plain", "other_losses:plain")})


def test_a_comparison_stopped_and_resumed(tmp_path, monkeypatch, capsys):
    """The cross-entropy as a loss of one's own is adversarial training, to the bit."""
    out = tmp_path / "run"
    arguments = [*TINY, "--epochs", "1", "--compare-seeds", "1", "--accumulate", "2"]
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        assert main([*arguments, "--compare-methods", "at,own_losses:plain", "--out", str(out)]) == 130
    assert main(["--resume", str(out)]) == 0
    assert_same_run(out / "seed0-at", out / "seed0-own_losses.plain")
    printed = capsys.readouterr().out
    assert "trained by at, own_losses:plain (custom) for" in printed and "| plain (digits-student) " in printed
