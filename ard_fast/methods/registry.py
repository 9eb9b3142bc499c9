"""Methods by name."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from ard_fast._names import unknown
from ard_fast.methods.absld import AntiBiasDistillation
from ard_fast.methods.adaad import AdaptiveAdversarialDistillation
from ard_fast.methods.adaiad import AdaptiveIntrospectiveDistillation
from ard_fast.methods.adr import SelfDistillationRectification
from ard_fast.methods.ard import AdversariallyRobustDistillation
from ard_fast.methods.at import AdversarialTraining
from ard_fast.methods.base import Method, MethodContext
from ard_fast.methods.fair_ard import FairDistillation
from ard_fast.methods.fast_ard import FastARD
from ard_fast.methods.fgsm_ard import FGSMARD
from ard_fast.methods.fgsm_rs import FastAdversarialTraining
from ard_fast.methods.free import FreeAdversarialTraining
from ard_fast.methods.iad_i import IntrospectiveDistillation
from ard_fast.methods.iad_ii import TwoTeacherIntrospectiveDistillation
from ard_fast.methods.igdm import GradientMatching
from ard_fast.methods.ikl import ImprovedDistillation, ImprovedTrades
from ard_fast.methods.kd import CleanDistillation
from ard_fast.methods.mart import Mart
from ard_fast.methods.mtard import MultiTeacherDistillation
from ard_fast.methods.n_fgsm import NoiseFGSMTraining
from ard_fast.methods.natural import NaturalTraining
from ard_fast.methods.own import find_own
from ard_fast.methods.peeraid import PeerDistillation
from ard_fast.methods.rslad import RobustSoftLabelDistillation
from ard_fast.methods.saad import SampleWiseDistillation
from ard_fast.methods.trades import Trades

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        NaturalTraining,
        AdversarialTraining,
        Trades,
        Mart,
        ImprovedTrades,
        SelfDistillationRectification,
        FreeAdversarialTraining,
        FastAdversarialTraining,
        NoiseFGSMTraining,
        CleanDistillation,
        AdversariallyRobustDistillation,
        FastARD,
        FGSMARD,
        RobustSoftLabelDistillation,
        ImprovedDistillation,
        IntrospectiveDistillation,
        TwoTeacherIntrospectiveDistillation,
        MultiTeacherDistillation,
        AdaptiveAdversarialDistillation,
        AdaptiveIntrospectiveDistillation,
        AntiBiasDistillation,
        FairDistillation,
        GradientMatching,
        SampleWiseDistillation,
        PeerDistillation,
    )
}

_EMA = "-ema"
EMA_METHODS = tuple(f"{name}{_EMA}" for name in METHODS)
EMA_RECIPE: dict[str, Any] = {"schedule": "onecycle", "weight_decay": 5e-4, "label_smoothing": 0.4, "ema": 0.9995}
"""What training by NAME-ema adds to a method: fields of a run's configuration, of the PGD-AT with weight averaging of
the FastAT benchmark (arXiv 2604.22853, `configs/*/pgd_at_wa.yaml` of its code)."""


def plain_method(name: str) -> str:
    """The method that `name` trains by: NAME of NAME-ema."""
    return name.removesuffix(_EMA)


def find_method(name: str, *, argument: str = "method") -> type[Method]:
    """The class of a method.

    Args:
        name: of `METHODS` or `EMA_METHODS`, or `package.module:NAME` of a subclass of `Method` or of a bare loss, whose
            module is imported here, which runs its code; it, too, may end in -ema.
        argument: what errors call it.

    Raises:
        ValueError: no such method; the message has the nearest name.
    """
    plain = plain_method(name)
    if ":" in name:
        return find_own(plain, argument)
    if plain not in METHODS:
        raise ValueError(unknown(argument, name, METHODS, EMA_METHODS))
    return METHODS[plain]


def method_label(name: str) -> str:
    """The short name of a method for tables and plots: NAME of `package.module:NAME`."""
    return name.rpartition(":")[2]


def build_method(name: str, settings: Any, context: MethodContext) -> Method:
    """A method with the settings of a run.

    Args:
        name: as in `find_method`.
        settings: has each of the method's settings as an attribute, none of them None, as a resolved
            `ard_fast.training.config.TrainConfig` has. Fields of a method of one's own that are no settings keep
            their defaults.
        context: the run.

    Raises:
        ValueError: an unknown method, a missing teacher, or a setting that is None.
    """
    method = find_method(name)
    for role in method.teachers:
        if role not in context.teachers:
            raise ValueError(f"{role}: method {name} needs one")
    keys = [item.name for item in fields(method) if item.init and item.name in vars(settings)]
    values = {key: getattr(settings, key) for key in keys}
    for key, value in values.items():
        if value is None:
            raise ValueError(f"{key}: method {name} needs a value, got None")
    return method(context=context, **values)
