"""The papers' constants and training recipes of the distillation methods, and what parity changes in them."""

import pytest

from ard_fast.methods import METHODS
from ard_fast.training.config import resolve
from ard_fast.training.optimiser import learning_rate

RSLAD_RECIPE = {"epochs": 300, "milestones": (215, 260, 285), "weight_decay": 2e-4}
ARD_RECIPE = {"epochs": 200, "milestones": (100, 150), "weight_decay": 2e-4}
ADAAD_RECIPE = {**ARD_RECIPE, "weight_decay": 5e-4}

PAPERS = {
    "rslad": {**RSLAD_RECIPE, "alpha": 5 / 6, "temperature": 1.0, "reduction": "mean", "attack_bn": "eval"},
    "iad-i": {**ARD_RECIPE, "alpha": 1.0, "temperature": 1.0, "reduction": "batchmean", "trust_power": 0.1},
    "iad-ii": {**ARD_RECIPE, "alpha": 0.5, "alpha2": 0.25, "temperature": 1.0, "trust_power": 0.1},
    "mtard": {**RSLAD_RECIPE, "balance_rate": 0.025, "temperature": 1.0, "reduction": "mean", "attack_bn": "eval"},
    "adaad": {**ADAAD_RECIPE, "alpha": 1.0, "temperature": 1.0, "reduction": "mean", "attack_bn": "eval"},
    "adaiad": {**ADAAD_RECIPE, "alpha": 1.0, "temperature": 30.0, "reduction": "batchmean", "trust_power": 0.1},
    "absld": {**RSLAD_RECIPE, "alpha": 5 / 6, "balance_rate": 0.1, "temperature_product": False},
    "fair-ard": {**ARD_RECIPE, "temperature": 30.0, "fairness_power": 2.0, "nesterov": True, "attack_bn": "eval"},
    "igdm": {**ARD_RECIPE, "igdm_weight": 1.0, "temperature": 1.0, "reduction": "batchmean"},
    "saad": {**ARD_RECIPE, "igdm_weight": 1.0, "entropy_scale": 5.0, "averaging": "swa"},
}
CHANGED_BY_PARITY = {
    "rslad": {"clamp_start"},
    "iad-i": {"attack_bn", "clamp_start", "trust_teacher", "clean_branch", "schedule"},
    "iad-ii": {"attack_bn", "clamp_start", "schedule"},
    "mtard": {"clamp_start"},
    "adaad": {"clamp_start", "clean_branch"},
    "adaiad": {"clamp_start", "trust_teacher", "clean_branch"},
    "absld": {"clamp_start", "temperature_product"},
    "fair-ard": {"attack_bn", "clamp_start", "clean_branch", "schedule"},
    "igdm": {"clamp_start"},
    "saad": {"clamp_start", "clean_branch"},
}


def paper(name, **flags):
    teachers = dict.fromkeys(METHODS[name].teachers, "wrn-34-10")
    return resolve({"data_dir": "d", **teachers, **flags}, preset=f"{name}-paper")


@pytest.mark.parametrize("name", PAPERS)
def test_the_paper_preset_has_the_papers_constants(name):
    config = paper(name)
    common = {"lr": 0.1, "steps": 10, "eps": 8 / 255, "step_size": 2 / 255, "batch_size": 128, "student": "resnet18"}
    for key, value in {**common, **PAPERS[name]}.items():
        assert getattr(config, key) == value, key
    drops = [learning_rate(config, epoch) for epoch in (0, *config.milestones)]
    assert drops == pytest.approx([0.1 * 0.1**count for count in range(len(drops))])


@pytest.mark.parametrize("name", CHANGED_BY_PARITY)
def test_parity_changes_what_the_quirks_say_and_nothing_else(name):
    ours, published = vars(paper(name)), vars(paper(name, parity=True))
    changed = {key for key in ours if ours[key] != published[key]} - {"parity"}
    assert changed == CHANGED_BY_PARITY[name]
    told = {key for quirk in METHODS[name].quirks for key in quirk.settings}
    assert changed <= told and all(quirk.text for quirk in METHODS[name].quirks)


def test_saad_averages_from_the_95th_epoch_on():
    config = paper("saad")
    assert int(config.averaging_start_share * config.epochs) + 1 == 95
