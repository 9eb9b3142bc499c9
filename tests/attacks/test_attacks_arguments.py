"""The attacks as objects: what they refuse, how they read, copies of them; presets and standards."""

import math
from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from attack_cases import ATTACKS, small_net, target_for
from torch import nn

from ard_fast import attacks
from ard_fast import functional as F
from ard_fast.attacks import APGD, APGDT, FGSM, FGSMRS, KLPGD, MIFGSM, NFGSM, PGD, CWLinf, InTurn

EVERY = (PGD, FGSM, MIFGSM, CWLinf, KLPGD, FGSMRS, NFGSM, APGD, APGDT)


@pytest.mark.parametrize(
    "name, value, message, error",
    [
        ("eps", -1, "eps must be finite and at least 0, got -1.0", ValueError),
        ("eps", "8/255", "eps must be a number, got str", TypeError),
        ("step_size", -0.1, "step_size must be finite and at least 0", ValueError),
        ("steps", 0, "steps must be an int of at least 1, got 0", ValueError),
        ("steps", True, "steps must be an int of at least 1, got True", ValueError),
        ("norm", "l1", "norm must be one of 'linf', 'l2', got 'l1'", ValueError),
        ("loss", "mse", "loss must be one of .*, got 'mse'", ValueError),
        ("bn", "off", "bn must be one of 'eval', 'train', 'train_frozen', got 'off'", ValueError),
        ("restarts", 0, "restarts must be an int of at least 1, got 0", ValueError),
        ("eot", 0, "eot must be an int of at least 1, got 0", ValueError),
        ("bounds", (1, 0), "bounds must be", ValueError),
        ("init", "zero", "init must be one of 'uniform', 'normal', 'surface', got 'zero'", ValueError),
        ("std", -1.0, "std must be finite and at least 0", ValueError),
        ("kappa", -1.0, "kappa must be at least 0, got -1.0", ValueError),
        ("temperature", 0.0, "temperature must be finite and above 0, got 0.0", ValueError),
        ("decay", -0.1, "decay must be finite and at least 0", ValueError),
        ("relative_step", -1.0, "relative_step must be finite and at least 0", ValueError),
        ("noise", -1.0, "noise must be finite and at least 0", ValueError),
        ("rho", -1.0, "rho must be finite and at least 0", ValueError),
        *(
            (name, "no", f"{name} must be True or False", TypeError)
            for name in ("targeted", "random_start", "clamp_start")
        ),
        ("drop_every", -1, "drop_every must be an int from 0", ValueError),
        ("n_targets", 0, "n_targets must be an int of at least 1, got 0", ValueError),
    ],
)
def test_bad_settings(name, value, message, error):
    takes = [kind for kind in EVERY if name in kind().settings()]
    assert takes
    for kind in EVERY:
        with pytest.raises(error if kind in takes else TypeError, match=message if kind in takes else "unexpected"):
            kind(**{name: value})


def test_settings_that_do_not_go_together():
    for kind in (PGD, KLPGD, CWLinf, MIFGSM):
        with pytest.raises(ValueError, match="restarts must be 1 without random_start"):
            kind(restarts=2, random_start=False)
    with pytest.raises(ValueError, match="targeted must be False for loss='dlr_targeted'"):
        PGD(loss="dlr_targeted", targeted=True)
    with pytest.raises(ValueError, match="loss must be one of 'ce', 'dlr', 'dlr_targeted', got 'kl'"):
        APGD(loss="kl")
    with pytest.raises(ValueError, match="attacks must be at least one"):
        InTurn([])
    with pytest.raises(ValueError, match="attacks must be untargeted, got PGD"):
        InTurn([PGD(targeted=True)])


X, Y = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([1, 2])


@pytest.mark.parametrize(
    "message, y, attack, call, error",
    [
        ("y must be int64 labels for loss='ce', got torch.float32", X[:, 0, 0], PGD(), {}, TypeError),
        ("y must be given for a targeted attack", None, PGD(targeted=True), {}, ValueError),
        ("y must be a tensor, or None .*, got Sequential", small_net(), PGD(), {}, TypeError),
        ("y must be a tensor, or None .*, got int", 3, APGD(), {}, TypeError),
        ("y must be target logits, a target model, or None .*, got int", 3, KLPGD(), {}, TypeError),
        ("y must be target logits, a target model, or None .*, got type", float, KLPGD(), {}, TypeError),
        ("y must be target logits .* for loss='kl', got torch.int64", Y, KLPGD(), {}, TypeError),
        (r"y must have shape \[2, C\] for loss='kl', got \(1, 10\)", torch.zeros(1, 10), KLPGD(), {}, ValueError),
        ("y must be int64 labels for loss='dlr', got torch.int32", Y.int(), PGD(loss="dlr"), {}, TypeError),
        (r"y must have shape \[2\] for loss='margin', got \(1,\)", Y[:1], CWLinf(), {}, ValueError),
        ("mask must be a bool tensor, got torch.float32", Y, PGD(), {"mask": X}, TypeError),
        ("mask must be a bool tensor, got bool", Y, APGD(), {"mask": True}, TypeError),
        (
            r"mask must be broadcastable to \(2, 3, 6, 6\), got \(5,\)",
            Y,
            PGD(),
            {"mask": X[0, 0, 0, :5] > 0},
            ValueError,
        ),
        ("target_classes must be None for PGD", Y, PGD(), {"target_classes": Y}, ValueError),
        ("target_classes must be None for APGDT", Y, APGDT(), {"target_classes": Y}, ValueError),
        ("target_classes must be int64", Y, PGD(loss="dlr_targeted"), {"target_classes": Y.int()}, TypeError),
        (r"target_classes must have shape \[2\]", Y, PGD(loss="dlr_targeted"), {"target_classes": Y[:1]}, ValueError),
        ("seed must be an int of 64 bits", Y, APGD(restarts=2), {"seed": 2**70}, ValueError),
        ("eps", Y, PGD(eps=torch.tensor([0.1, 0.1, 0.1])), {"seed": 1}, RuntimeError),
    ],
)
def test_bad_calls(message, y, attack, call, error):
    model = small_net()
    model[1].eval()
    with pytest.raises(error, match=message):
        attack(model, X, y, **call)
    assert model.training and not model[1].training


OUTSIDE = {  # images, and what the message says of them
    "normalised": ((X - 0.5) / 0.25, r"-.* to .*Normalised\(model, mean, std\)$"),
    "0 to 255": (torch.cat([X, torch.ones_like(X)]) * 255, "to 255; .* Divide them by 255, or pass bounds=\\(0, 255"),
    "overshot": (X * 1.1 - 0.05, r"clamp: x\.clamp\(0, 1\)"),
    "with NaN": (torch.cat([X * 3, torch.full_like(X, math.nan)]), "Normalised"),
    "infinite": (torch.where(X > 0.9, math.inf, X), "to inf"),
}


@pytest.mark.parametrize("images", OUTSIDE)
@pytest.mark.parametrize("name", ["pgd", "kl", "apgd-t", "in turn"])
def test_images_outside_the_bounds_are_refused(name, images, device):
    x, message = OUTSIDE[images]
    x = x.to(device)
    model = small_net().to(device)
    model.forward = None  # nothing is done before
    y = torch.zeros(len(x), dtype=torch.int64, device=device)
    with pytest.raises(ValueError, match=r"x must be inside bounds=\(0\.0, 1\.0\), got values from .*" + message):
        ATTACKS[name]()(model, x, target_for(name, y))


def test_images_at_the_bounds_are_taken():
    mean, std = torch.tensor(0.485), torch.tensor(0.229)
    ends = torch.tensor([0.0, 1.0]).repeat(54).view(1, 3, 6, 6)
    for x, bounds in (
        ((ends - mean) / std * std + mean, (0.0, 1.0)),  # beyond by a rounding
        (torch.where(ends > 0, math.nan, ends), (0.0, 1.0)),
        (ends * 2 - 1, (-1.0, 1.0)),
        (ends * 255, (0, 255)),
        (ends * 1e6, (0.0, math.inf)),
    ):
        assert PGD(steps=1, bounds=bounds)(small_net(), x, Y[:1]).shape == x.shape


def test_on_cuda_the_first_call_of_a_kind_is_looked_at(device):
    """Without a wait in later ones; on the CPU all are."""
    x = X.to(device)
    y, model, attack = Y.to(device), small_net().to(device), PGD(steps=1)
    outside = x * 3
    for _ in range(2):  # a complaint does not count as a look
        with pytest.raises(ValueError, match="bounds"):
            attack(model, outside, y)
    attack(model, x, y)
    if device.type == "cpu":
        with pytest.raises(ValueError, match="bounds"):
            attack(model, outside, y)
    else:
        attack(model, outside, y)
    with pytest.raises(ValueError, match="bounds"):  # another shape
        attack(nn.Sequential(nn.Flatten(), nn.LazyLinear(4)).to(device), outside[..., 1:], y)


def test_a_ball_wider_than_the_bounds_is_refused():
    hint = "eps is in the units of the pixels, 8/255, not 8"
    for kind in EVERY:
        with pytest.raises(
            ValueError, match=r"eps must be at most 1, the width of bounds=\(0.0, 1.0\), got 8: " + hint
        ):
            kind(eps=8)
        assert kind(eps=8, bounds=(0, 255)).eps == 8 and kind(eps=1).eps == 1
    with pytest.raises(ValueError, match=hint):
        white_box(eps=8)
    with pytest.raises(ValueError, match=hint):
        PGD(eps=torch.tensor([0.1, 8.0]))(small_net(), X, Y)
    l2 = PGD(eps=128, norm="l2")  # whether that is too wide depends on the images
    with pytest.raises(
        ValueError, match=r"at most 10\.39, the diagonal for 108 pixels .* got 128: .* 128/255, not 128"
    ):
        l2(small_net(), X, Y)
    assert white_box(eps=2, norm="l2").attacks[0].eps == 2
    assert attacks.make("ard", eps=8, bounds=(0, 255)).step_size == 2
    assert NFGSM(eps=0.6)(small_net(), X, Y).shape == X.shape  # its noise may be wider


STEPS = {
    "pgd_linf_step_": lambda x, **s: F.pgd_linf_step_(x.clone(), x, x, step_size=0.1, **s),
    "pgd_l2_step_": lambda x, **s: F.pgd_l2_step_(x.clone(), x, x, step_size=0.1, **s),
    "mifgsm_step_": lambda x, **s: F.mifgsm_step_(x.clone(), x.clone(), x, x, step_size=0.1, **s),
    "random_start": lambda x, **s: F.random_start(x, seed=0, **s),
    "APGDRun": lambda x, **s: F.APGDRun(x, x, **s),
    "APGDRun l2": lambda x, **s: F.APGDRun(x, x, norm="l2", **s),
}


@pytest.mark.parametrize("name", STEPS)
def test_steps_and_starts_look_at_the_bounds_unless_told_not_to(name):
    step = STEPS[name]
    for x, eps, message in (
        (X * 3, 0.1, r"x must be inside bounds=\(0\.0, 1\.0\), got values from"),
        (X, 20.0, "eps must be at most"),
        (X, torch.tensor([0.1, 20.0]), "eps must be at most"),
    ):
        with pytest.raises(ValueError, match=message):
            step(x, eps=eps)
        step(x, eps=eps, check_bounds=False)
    step(X, eps=0.1)
    step(X * 255, eps=20.0, bounds=(0, 255))
    F.random_start(X * 3, eps=20.0, clamp=False)  # bounds play no part


def test_a_traced_step_is_not_looked_at():
    def step(x):
        return F.pgd_linf_step_(x.clone(), x, x, step_size=0.1, eps=0.1)

    assert torch.func.vmap(lambda x: F.random_start(x, eps=0.1, seed=0), randomness="same")(X[None] * 3).max() <= 1
    with torch._subclasses.FakeTensorMode() as mode:
        assert step(mode.from_tensor(X)).shape == X.shape


@pytest.mark.parametrize(
    "x, y, message",
    [
        (X[:, 0, 0, 0], Y, r"x must have shape \[B, ...\], got \(2,\)"),
        ((X * 255).byte(), Y, r"x must be float32, got torch.uint8: for pixels of 0 to 255 give x\.float\(\) / 255$"),
        (X.double(), Y, r"got torch.float64: give x\.float\(\)$"),
        (X.half(), Y, r"got torch.float16: iterates stay in full precision: give x\.float\(\); .* torch.autocast"),
        (X[0], Y[0], r"got \(\); x \(3, 6, 6\) looks like a single image: use x\[None\] and y of shape \[1\]"),
        (X[0], Y[:1], r"got \(1,\); x \(3, 6, 6\) looks like a single image"),
        (X[0], 3, r"got int; x \(3, 6, 6\) looks like a single image"),
        (X[:, 0], Y[:1], r"got \(1,\); x \(2, 6, 6\) looks"),
        (torch.cat([X, X])[:, 0], Y, r"must have shape \[4\] for loss='ce', got \(2,\)$"),
    ],
)
def test_hints_fit_what_came(x, y, message):
    with pytest.raises((TypeError, ValueError), match=message):
        PGD()(small_net(), x, y)


def test_bad_labels_raise_on_the_cpu():
    for attack in (PGD(steps=1), CWLinf(steps=1), APGD(steps=1)):
        with pytest.raises(RuntimeError, match="label"):
            attack(small_net(), X, torch.tensor([1, 10]))


def white_box(eps=8 / 255, norm="linf", **changes):
    return InTurn([attacks.make(name, eps, norm, **changes) for name in ("apgd-ce", "apgd-t")])


def classifier(classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(108, classes))


def test_too_few_classes():
    """Whatever the data: also where the first attack of several fools every image, or none is classified correctly."""
    three = r"model must have at least 4 classes for the targeted DLR loss, got 3: use InTurn\(\[APGD.*APGD\(loss='dlr'"
    two = r"model must have at least {} classes for the {}DLR loss, got 2: use InTurn\(\[APGD.*PGD\(loss='margin'\)"
    for wrong in (True, False):
        for classes, attack, message in (
            (3, APGDT(steps=1), three),
            (3, PGD(loss="dlr_targeted", steps=1), three),
            (3, white_box(steps=1), three),
            (3, InTurn([PGD(steps=1), white_box(steps=1)]), three),
            (2, white_box(eps=1, steps=1), two.format(4, "targeted ")),
            (2, PGD(loss="dlr", steps=1), two.format(3, "")),
            (2, APGD(loss="dlr", steps=1), two.format(3, "")),
        ):
            model = classifier(classes)
            right = model(X).argmax(1)
            with pytest.raises(ValueError, match=message):
                attack(model, X, (right + wrong) % classes)
    assert APGDT(steps=1)(classifier(4), X, Y).shape == X.shape  # nine targets asked for, three there are
    for classes, last in ((3, APGD(loss="dlr", steps=1)), (2, PGD(loss="margin", steps=1))):  # what the message says
        assert InTurn([APGD(loss="ce", steps=1), last])(classifier(classes), X, Y % classes).shape == X.shape


@pytest.mark.parametrize("name", ["pgd", "kl", "apgd-t", "in turn"])
def test_one_logit_is_refused(name):
    """Its softmax is 1: no attack would move a pixel."""
    one = r"C\], C >= 2, got \(2, 1\); for a binary classifier .* returns torch.cat\(\[torch.zeros_like\(z\), z\], 1\)"
    y = torch.zeros(2, 1) if name == "kl" else Y * 0
    with pytest.raises(ValueError, match=one):
        ATTACKS[name]()(classifier(1), X, y)
    z = classifier(1)
    attack = PGD(steps=2)
    x_adv = attack(lambda x: torch.cat([torch.zeros_like(z(x)), z(x)], 1), X, Y * 0)
    assert (z(x_adv) > z(X)).all()


OUTPUTS = {
    "dict": (lambda z: {"features": z[:, :3], "logits": z}, r"got dict; give lambda x: model\(x\)\['logits'\]"),
    "no logits": (lambda z: z[:, :0], r"C >= 2, got \(2, 0\)"),
    "list": (lambda z: [z], r"got list; give lambda x: model\(x\)\[0\]"),
    "tuple": (lambda z: (z, None), r"got tuple; give lambda x: model\(x\)\[0\]"),
    "named": (namedtuple("Named", "aux logits")._make, r"got Named; give lambda x: model\(x\)\.logits"),
    "object": (lambda z: SimpleNamespace(loss=None, logits=z), r"got SimpleNamespace; .* model\(x\)\.logits"),
    "nothing": (lambda z: None, "got NoneType; give a callable that returns the logits alone"),
    "complex": (lambda z: z + 0j, "a floating dtype, got torch.complex64"),
    "pixels": (lambda z: z[..., None, None], r"got \(2, 4, 1, 1\); give lambda x: model\(x\)\.flatten\(1\)"),
    "squeezed": (lambda z: z[:, 0], r"got \(2,\); .* returns torch.stack\(\[torch.zeros_like\(z\), z\], 1\)"),
}


@pytest.mark.parametrize("kind", OUTPUTS)
def test_an_output_that_is_not_logits_names_the_wrapper(kind):
    make, message = OUTPUTS[kind]
    net = classifier(4)
    output = (lambda x: make((net(x), net(x)))) if kind == "named" else (lambda x: make(net(x)))
    for attack in (PGD(steps=1), InTurn([PGD(steps=1)])):
        with pytest.raises(ValueError, match=r"model must return logits of (shape \[2, C\], )?" + message):
            attack(output, X, Y)


@pytest.mark.parametrize("name", ATTACKS)
def test_text_holds_every_argument_and_makes_the_attack_again(name):
    attack = ATTACKS[name]()
    text = repr(attack)
    assert "\n" not in text and str(attack) == text
    for argument in attack.settings():
        assert f"{argument}=" in text
    namespace = {kind.__name__: kind for kind in (*EVERY, InTurn)}
    again = eval(text, namespace)
    assert type(again) is type(attack) and repr(again) == text
    if not isinstance(attack, InTurn):
        assert again.settings() == attack.settings()


def test_text_in_the_fields_own_units():
    text = repr(PGD(eps=8 / 255, step_size=2 / 255, std=0.001))
    assert text.startswith("PGD(eps=8/255, step_size=2/255, steps=10, norm='linf', loss='ce', random_start=True,")
    assert "eps=0.031, step_size=0.007" in repr(PGD(eps=0.031, step_size=0.007))
    assert "eps=1.25/255" in repr(FGSM(eps=1.25 / 255)) and "eps=0.5," in repr(FGSM(eps=0.5))
    assert "eps=[0.25, 0.5]" in repr(PGD(eps=torch.tensor([0.25, 0.5])))
    assert repr(InTurn([FGSM(eps=0.5)])).startswith("InTurn(attacks=(FGSM(eps=0.5,")


def test_copies():
    attack = PGD(eps=8 / 255, step_size=2 / 255, steps=7, bn="train", kappa=3.0)
    changed = attack.replace(steps=3, norm="l2")
    assert changed.settings() == {**attack.settings(), "steps": 3, "norm": "l2"} and attack.steps == 7
    with pytest.raises(TypeError, match="PGD has no argument 'step'; it has eps, step_size"):
        attack.replace(step=3)
    with pytest.raises(ValueError, match="steps must be"):
        attack.replace(steps=0)
    wider = attack.at_eps(0.2)
    assert wider.eps == 0.2 and wider.step_size == pytest.approx(0.05) and wider.steps == 7
    assert attack.at_eps(8 / 255).settings() == attack.settings()
    assert FGSM(eps=0.1).at_eps(0.2).step_size == 0.2
    assert FGSMRS(eps=0.1).at_eps(0.2).step_size == 0.25
    assert MIFGSM(eps=0.1).at_eps(0.2).step_size == pytest.approx(0.02)
    assert APGD(eps=0.1).at_eps(0.2).eps == 0.2
    assert InTurn([PGD(eps=0.1, step_size=0.1), APGD()]).at_eps(0.2).attacks[0].step_size == 0.2
    with pytest.raises(ValueError, match="eps is 0"):
        PGD(eps=0).at_eps(0.1)
    eps = torch.tensor([0.1, 0.2, 0.3])
    part = PGD(eps=eps, step_size=eps / 4).for_samples(torch.tensor([2, 0]))
    assert part.eps.equal(eps[[2, 0]]) and part.step_size.equal(eps[[2, 0]] / 4)
    assert attack.for_samples(torch.tensor([1])) is attack


def test_presets():
    ard = attacks.make("ard")
    assert (ard.eps, ard.step_size, ard.steps, ard.bn, ard.clamp_start) == (8 / 255, 2 / 255, 10, "train", False)
    trades = attacks.make("trades")
    assert (trades.eps, trades.step_size, trades.init, trades.std, trades.clamp_start, trades.bn) == (
        (0.031, 0.007, "normal", 0.001, False, "eval")
    )
    assert attacks.make("rslad").settings() == attacks.make("adaad").settings()
    assert isinstance(attacks.make("rslad"), KLPGD) and attacks.make("rslad").step_size == 2 / 255
    theirs = attacks.make("torchattacks", eps=0.1, steps=4)
    assert (theirs.eps, theirs.step_size, theirs.steps, theirs.clamp_start) == (0.1, pytest.approx(0.025), 4, True)
    model, teacher = small_net(), small_net(5)
    for name in attacks.PRESETS:
        y = {"trades": None, "rslad": teacher(X).detach(), "adaad": teacher}.get(name, Y)
        x_adv = attacks.make(name, eps=0.05, steps=2)(model, X, y, seed=0)
        assert (x_adv - X).abs().max() <= 0.05 + 6e-8
    with pytest.raises(TypeError, match="PGD has no argument 'alpha'"):
        attacks.make("ard", alpha=1)


STANDARDS = {  # name: class, and parameters that differ from it or that papers state
    "fgsm": (FGSM, {}),
    "pgd10": (PGD, {"step_size": 2 / 255, "steps": 10, "random_start": True, "loss": "ce", "restarts": 1}),
    "pgd20": (PGD, {"step_size": 2 / 255, "steps": 20, "random_start": True, "loss": "ce", "restarts": 1}),
    "pgd20-trades": (PGD, {"step_size": 0.003, "steps": 20, "random_start": True, "loss": "ce", "init": "uniform"}),
    "pgd50-10": (PGD, {"step_size": 2 / 255, "steps": 50, "restarts": 10, "loss": "ce"}),
    "cw20": (CWLinf, {"step_size": 2 / 255, "steps": 20, "kappa": 50.0, "random_start": True}),
    "cw30": (CWLinf, {"step_size": 2 / 255, "steps": 30, "kappa": 50.0, "random_start": True}),
    "mifgsm": (MIFGSM, {"step_size": 0.8 / 255, "steps": 10, "decay": 1.0, "random_start": False}),
    "apgd-ce": (APGD, {"steps": 100, "loss": "ce", "restarts": 1, "rho": 0.75}),
    "apgd-dlr": (APGD, {"steps": 100, "loss": "dlr", "restarts": 1, "rho": 0.75}),
    "apgd-t": (APGDT, {"steps": 100, "n_targets": 9, "restarts": 1, "rho": 0.75}),
}
READ = {  # names that are not listed
    "pgd40": (PGD, {"steps": 40, "step_size": 2 / 255, "restarts": 1, "loss": "ce"}),
    "pgd7-3": (PGD, {"steps": 7, "step_size": 2 / 255, "restarts": 3}),
    "pgd100-2-trades": (PGD, {"steps": 100, "step_size": 0.003, "restarts": 2}),
    "pgd50-10-l2": (PGD, {"steps": 50, "step_size": 2 / 255, "restarts": 10, "norm": "l2"}),
    "pgd20-linf": (PGD, {"steps": 20, "norm": "linf"}),
    "fgsm-l2": (FGSM, {"norm": "l2"}),
    "cw30-5": (CWLinf, {"steps": 30, "restarts": 5, "step_size": 2 / 255, "kappa": 50.0}),
    "mifgsm20": (MIFGSM, {"steps": 20, "step_size": 0.4 / 255}),
    "apgd-ce50": (APGD, {"steps": 50, "restarts": 1, "loss": "ce"}),
    "apgd-dlr20-5-l2": (APGD, {"steps": 20, "restarts": 5, "loss": "dlr", "norm": "l2"}),
    "fgsm-8bit": (FGSM, {"levels": 255}),
    "pgd20-8bit": (PGD, {"steps": 20, "step_size": 2 / 255, "levels": 255, "random_start": True}),
    "cw30-5-linf-8bit": (CWLinf, {"steps": 30, "restarts": 5, "levels": 255}),
    "apgd-ce50-8bit": (APGD, {"steps": 50, "loss": "ce", "levels": 255}),
    "apgd-t-8bit": (APGDT, {"steps": 100, "levels": 255}),
    "apgd-t20": (APGDT, {"steps": 20, "n_targets": 9}),
}


@pytest.mark.parametrize("name", [*STANDARDS, *READ])
def test_standards_have_their_published_parameters(name):
    kind, expected = {**STANDARDS, **READ}[name]
    attack, wide = (attacks.STANDARDS[name](eps) for eps in (8 / 255, 0.2))
    settings = {**attack.settings(), "norm": attack.norm, "random_start": attack.random_start}
    assert type(attack) is kind and attack.bn == "eval" and attack.eps == 8 / 255
    assert {key: settings[key] for key in expected} == pytest.approx(expected)
    assert settings["norm"] == expected.get("norm", "linf")
    step = attack.step_size and attack.step_size * 0.2 * 255 / 8
    if step and attack.levels:
        step = math.ceil(step * 255) / 255
    assert wide.eps == 0.2 and wide.step_size == (step and pytest.approx(step))
    assert list(attacks.STANDARDS) == list(STANDARDS)  # asking adds none


@pytest.mark.parametrize("name", [*STANDARDS, *READ])
def test_make_is_the_standard_attack_with_changes(name):
    made, plain = attacks.make(name, 0.1), attacks.STANDARDS[name](0.1)
    assert repr(made) == repr(plain) and attacks.make(name, 0.1, bn="train").bn == "train"


def test_make_knows_published_codes_and_autoattack():
    assert attacks.make("ard", 0.2, "l2", steps=3).settings() == {
        **attacks.make("ard", 0.2).settings(), "norm": "l2", "steps": 3
    }  # fmt: skip
    pytest.importorskip("pyautoattack")
    whole = attacks.make("autoattack", 0.5, "l2")
    assert [type(part).__name__ for part in whole.attacks] == ["APGD", "APGDT", "FABT", "Square"]
    assert all((part.eps, part.norm) == (0.5, "l2") for part in whole.attacks)
    assert whole.at_eps(0.1).attacks[3].eps == 0.1 and whole.attacks[0].drop_every == 5
    model = nn.Sequential(*small_net()[:-1], nn.Linear(8 * 36, 4)).eval()  # fewer classes than the nine targets
    y = model(X).argmax(1)
    parts = attacks.make("apgd-ce3", 0.1), attacks.make("fab-t", 0.1, steps=3), attacks.make("square", 0.1, queries=9)
    state, x_adv = torch.get_rng_state(), InTurn(parts)(model, X, y, seed=1)
    assert state.equal(torch.get_rng_state()) and (x_adv - X).abs().max() <= 0.1 + 6e-8
    square, seen = attacks.make("square", 0.1, queries=2), []
    model.register_forward_pre_hook(lambda _, given: seen.append(given[0].clone()))
    for _ in range(2):
        square(model, X, y)
    assert not seen[1].equal(seen[len(seen) // 2 + 1])  # without a seed, other noise each time


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("pdg20", 0.1), "name: unknown attack 'pdg20'; did you mean 'pgd20'.*square.*torchattacks"),
        (("pgd", 0.1), "the number of steps is missing, as in pgd20"),
        (("pgd20",), "eps must be the radius of the attack pgd20, such as 8/255, got None"),
        (("square", -1.0), "eps must be finite and at least 0"),
        (("fab-t", 0.1, "l1"), "norm must be one of 'linf', 'l2', got 'l1'"),
        ((None, 0.1), "name: unknown attack 'None'"),
    ],
)
def test_what_make_refuses(arguments, message):
    if arguments[0] in ("square", "fab-t"):
        pytest.importorskip("pyautoattack")
    with pytest.raises(ValueError, match=message):
        attacks.make(*arguments)


def test_standards_in_l2():
    for name, make in attacks.STANDARDS.items():
        if name in ("cw20", "cw30", "mifgsm"):
            with pytest.raises(ValueError, match=f"norm must be 'linf' for the attack {name}"):
                make(0.5, "l2")
        else:
            assert make(0.5, "l2").norm == "l2"
        with pytest.raises(ValueError, match="norm must be one of 'linf', 'l2', got 'l1'"):
            make(0.5, "l1")
    with pytest.raises(ValueError, match="norm must be 'l2' for the attack pgd20-l2, got 'linf'"):
        attacks.STANDARDS["pgd20-l2"](0.5, "linf")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("pdg20", "unknown attack 'pdg20'; did you mean 'pgd20'"),
        ("pgd20-l1", "unknown attack 'pgd20-l1'; did you mean 'pgd20'"),
        ("pgd", "the number of steps is missing, as in pgd20"),
        ("pgd-20", "pgd20 has 20 steps, pgd20-20 has 20 restarts"),
        ("apgd-ce-50", "apgd-ce50 has 50 steps, apgd-ce100-50 has 50 restarts"),
        ("pgd0", "steps must be an int of at least 1, got 0"),
        ("pgd20-0", "restarts must be an int of at least 1, got 0"),
        ("fgsm3", "fgsm is one step"),
        ("mifgsm5-2", "mifgsm has no random start"),
        ("pgd20-l2-8bit", "-8bit is of the L-infinity ball only"),
        ("cw20-trades", "-trades is a step size of pgd only"),
    ],
)
def test_names_that_are_no_attack(name, message):
    with pytest.raises(ValueError, match=message):
        attacks.STANDARDS[name]
