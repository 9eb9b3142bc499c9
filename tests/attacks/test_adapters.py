"""The adapters: what torchattacks-style and foolbox-style code relies on, and the care taken of foreign attacks."""

import pytest
import torch
from attack_cases import assert_same_snapshot, rng_state, small_net, snapshot
from torch import nn

from ard_fast.attacks import APGDT, PGD
from ard_fast.attacks.adapters import FoolboxAdapter, FromFoolbox, FromTorchattacks, TorchattacksAdapter

try:
    import eagerpy
    import foolbox
except ImportError:
    foolbox = None

EPS = 0.1
MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]


@pytest.fixture
def batch(device):
    x = torch.rand(6, 3, 6, 6, generator=torch.Generator().manual_seed(1)).to(device)
    return x, small_net().to(device).eval()(x).argmax(1)


class TestTorchattacksAdapter:
    def test_normalised_inputs_are_attacked_in_pixels(self, batch, device):
        """Within eps of the pixels and inside their range; targets come from the model of normalised inputs."""
        x, y = batch
        mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (MEAN, STD))
        model = small_net().to(device)
        attack = PGD(eps=EPS, step_size=0.03, steps=3, random_start=False)
        adapter = TorchattacksAdapter(model, attack)
        adapter.set_normalization_used(mean=MEAN, std=STD)
        before = snapshot(model)
        pixels = adapter((x - mean) / std, y) * std + mean
        assert_same_snapshot(before, snapshot(model))
        assert (pixels - x).abs().max() <= EPS + 1e-6 and pixels.min() >= -1e-6 and pixels.max() <= 1 + 1e-6
        model.eval()
        expected = attack(lambda images: model((images - mean) / std), x, y)
        assert (pixels - expected).abs().gt(1e-5).float().mean() < 0.02
        adapter.attack = PGD(eps=0.5, step_size=0.1, steps=20, random_start=False)
        adapter.set_mode_targeted_least_likely(quiet=True)
        inputs = (x - mean) / std
        assert model(adapter(inputs, y)).argmax(1).equal(model(inputs).argmin(1))
        with pytest.raises(ValueError, match="mean and std must have one value a channel each, got 3 and 1"):
            adapter.set_normalization_used(MEAN, [1.0])
        with pytest.raises(ValueError, match="std must be finite and above 0"):
            adapter.set_normalization_used(MEAN, [0.1, 0.0, 0.1])

    def test_modes(self, batch, device, capsys):
        x, y = batch
        model = small_net().to(device).eval()
        attack = PGD(eps=0.5, step_size=0.1, steps=20, random_start=False)
        adapter = TorchattacksAdapter(model, attack)
        assert adapter.get_mode() == "default"
        wanted = (y + 3) % 10
        adapter.set_mode_targeted_by_label()
        assert "targeted(label)" in capsys.readouterr().out and adapter.get_mode() == "targeted(label)"
        assert model(adapter(x, wanted)).argmax(1).equal(wanted)
        adapter.set_mode_targeted_by_function(lambda inputs, labels: (labels + 3) % 10, quiet=True)
        assert model(adapter(x, y)).argmax(1).equal(wanted)
        assert model(adapter(x)).argmax(1).equal(wanted)  # labels by the model itself
        adapter.set_mode_targeted_least_likely(quiet=True)
        assert model(adapter(x, y)).argmax(1).equal(model(x).argmin(1))
        adapter.set_mode_targeted_least_likely(kth_min=2, quiet=True)
        assert model(adapter(x, y)).argmax(1).equal(model(x).argsort(1)[:, 1])
        adapter.set_mode_targeted_random(quiet=True)
        torch.manual_seed(0)
        aimed = torch.stack([model(adapter(x, y)).argmax(1) for _ in range(5)])
        assert (aimed != y).all() and len(aimed.unique()) > 3
        adapter.set_mode_default()
        assert adapter.get_mode() == "default" and adapter(x, y).equal(attack(model, x, y))
        assert capsys.readouterr().out == ""

    def test_an_attack_without_targets_is_refused_at_once(self):
        adapter = TorchattacksAdapter(small_net(), APGDT())
        with pytest.raises(TypeError, match="APGDT has no argument 'targeted'"):
            adapter.set_mode_targeted_by_label()
        assert adapter.get_mode() == "default"


def boxed(model, bounds=(0, 1)):
    return foolbox.PyTorchModel(model, bounds=bounds, device=next(model.parameters()).device)


@pytest.mark.skipif(foolbox is None, reason="foolbox is not installed")
class TestFoolboxAdapter:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_several_radii(self, norm, batch, device):
        x, y = batch
        model = small_net(dropout=0.5).to(device).eval()
        box = boxed(model)
        model.train()
        attack = PGD(eps=0.1, step_size=0.025, steps=5, norm=norm)
        adapter, before = FoolboxAdapter(attack), snapshot(model)
        radii = [0.0, 0.01, 0.3]
        raw, clipped, is_adv = adapter(box, x, y, epsilons=radii, seed=3)
        assert_same_snapshot(before, snapshot(model))
        model.eval()
        assert len(raw) == len(clipped) == 3 and is_adv.shape == (3, 6) and is_adv.dtype == torch.bool
        for eps, found, inside, success in zip(radii, raw, clipped, is_adv, strict=True):
            assert found.equal(attack.at_eps(eps)(model, x, y, seed=3))
            assert (found - inside).abs().max() <= 6e-8
            assert success.equal(model(inside).argmax(1) != y)
        assert not is_adv[0].any() and is_adv[2].any()
        raw, clipped, is_adv = adapter(box, x, y, epsilons=0.1)
        assert raw.shape == clipped.shape == x.shape and is_adv.shape == (6,)

    def test_other_bounds(self, batch, device):
        """Radius and bounds change together: neither the attack's own nor the call's are wider than the other's."""
        x, y = batch
        model = small_net().to(device).eval()
        for attack, pixels, eps, bounds in (
            (PGD(eps=8 / 255, step_size=2 / 255, steps=2), x * 255, 8.0, (0, 255)),
            (PGD(eps=8, step_size=2, steps=2, bounds=(0, 255)), x, 8 / 255, (0, 1)),
        ):
            raw, _, _ = FoolboxAdapter(attack)(boxed(model, bounds), pixels, y, epsilons=eps)
            assert 0 < (raw - pixels).abs().max() <= eps * (1 + 1e-5)
            with pytest.raises(ValueError, match="x must be inside bounds"):
                FoolboxAdapter(attack)(boxed(model, bounds), pixels - 2 * eps, y, epsilons=eps)

    def test_criteria(self, batch, device):
        x, y = batch
        model = small_net().to(device).eval()
        adapter = FoolboxAdapter(PGD(eps=0.5, step_size=0.1, steps=20, random_start=False))
        box = boxed(model)
        plain, _, by_label = adapter(box, x, y, epsilons=0.5)
        away, _, by_criterion = adapter(box, x, foolbox.criteria.Misclassification(y), epsilons=0.5)
        assert away.equal(plain) and by_label.equal(by_criterion) and by_label.all()
        wanted = (y + 3) % 10
        x_boxed, y_boxed = eagerpy.astensor(x), eagerpy.astensor(y)
        raw, _, is_adv = adapter(box, x_boxed, y_boxed, epsilons=[0.1, 0.5])
        assert all(isinstance(part, eagerpy.Tensor) for part in (*raw, is_adv)) and is_adv.shape == (2, 6)
        assert raw[1].raw.equal(plain) and is_adv[1].raw.equal(by_label)
        towards, _, reached = adapter(box, x, foolbox.criteria.TargetedMisclassification(wanted), epsilons=0.5)
        assert reached.all() and model(towards).argmax(1).equal(wanted)
        theirs = FromFoolbox(foolbox.attacks.LinfPGD(rel_stepsize=0.2, steps=20), eps=0.5, targeted=True)
        assert model(theirs(model, x, wanted, seed=1)).argmax(1).equal(wanted)
        with pytest.raises(TypeError, match=r"criterion must be labels, .*, got str"):
            adapter(box, x, "misclassified", epsilons=0.5)
        with pytest.raises(TypeError, match="epsilons must be numbers, got None"):
            adapter(box, x, y, epsilons=None)


class Theirs:
    """Looks like an attack of torchattacks, and disturbs all that one could."""

    def __init__(self, model):
        self.model, self.device = model, "nowhere"
        self.seen = []

    def set_model(self, model):
        self.model = model

    def set_device(self, device):
        self.device = device

    def __call__(self, images, labels):
        images += 0.0
        self.seen.append((self.device, self.model.training, torch.rand(()).item()))
        probe = images.requires_grad_()
        loss = nn.functional.cross_entropy(self.model(probe), labels)
        loss.backward()
        return probe + 0.1 * probe.grad.sign()

    def __repr__(self):
        return "Theirs()"


def test_an_attack_of_torchattacks_behind_our_interface(batch, device):
    x, y = batch
    other = small_net(5)
    theirs = Theirs(other)
    attack = FromTorchattacks(theirs)
    model = small_net().to(device).train()
    model[0].weight.requires_grad_(False)
    before, image, state = snapshot(model), x.clone(), rng_state(device)
    with torch.inference_mode():
        x_adv = attack(model, x, y, seed=3, sample_ids=torch.arange(6, device=device))
    assert_same_snapshot(before, snapshot(model))
    assert x.equal(image) and rng_state(device).equal(state) and not x_adv.requires_grad
    assert theirs.model is other and theirs.device == "nowhere"
    assert theirs.seen[0][:2] == (x.device, False)
    attack(model, x, y, seed=torch.tensor([3]))
    attack(model, x, y, seed=4)
    assert theirs.seen[0] == theirs.seen[1] != theirs.seen[2]
    assert repr(attack) == "torchattacks.Theirs()"
    with pytest.raises(ValueError, match="mask must be None: Theirs has no way"):
        attack(model, x, y, mask=x > 0)
    failing = FromTorchattacks(theirs)
    with pytest.raises(ValueError):
        failing(model, x, y[:1], seed=1)
    assert theirs.model is other
    assert_same_snapshot(before, snapshot(model))
