"""What `--help` says of a setting's default: the trainer's own, the data sets' and the methods'."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from ard_fast.methods import METHODS
from ard_fast.training.defaults import DATASET_DEFAULTS, EVERY_METHOD, METHOD_ON_DATASET

_FEW = 4  # methods named one by one


def describe_default(item: dataclasses.Field[Any]) -> str:
    """For example `200; digits: 15`, or `10; free: 7` for a setting whose default is the method's."""
    of_methods = {name: spec.defaults[item.name] for name, spec in METHODS.items() if item.name in spec.defaults}
    parts = [_of_methods(of_methods)] if item.default is None and of_methods else [show(item.default)]
    for dataset, values in DATASET_DEFAULTS.items():
        tuned = METHOD_ON_DATASET.get(dataset, {})
        if item.name in values:
            parts.append(f"{dataset}: {show(values[item.name])}")
        elif item.name in tuned.get(EVERY_METHOD, {}):
            parts.append(f"{dataset}: {show(tuned[EVERY_METHOD][item.name])}")
    return "; ".join(parts)


def _of_methods(values: dict[str, Any]) -> str:
    """The commonest value, then the methods that differ; where few methods have it, all of them by name."""
    texts = {name: show(value) for name, value in values.items()}
    common, count = Counter(texts.values()).most_common(1)[0]
    named: dict[str, list[str]] = {}
    for name, text in texts.items():
        if len(texts) <= _FEW or text != common:
            named.setdefault(text, []).append(name)
    parts = [] if len(texts) <= _FEW else [f"{common} for {count} methods"]
    return "; ".join([*parts, *(f"{', '.join(names)}: {text}" for text, names in named.items())])


def show(value: Any) -> str:
    """A value as it may be given on the command line."""
    if isinstance(value, tuple):
        return ",".join(map(str, value))
    return f"{value:.5g}" if isinstance(value, float) else str(value).lower()
