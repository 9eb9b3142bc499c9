"""Plain YAML files from anywhere: data only, small, every key once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

_MOST_BYTES = 1 << 20  # a configuration has a few kilobytes


class _Loader(yaml.SafeLoader):
    """YAML's plain types only; aliases (which a few lines turn into gigabytes) and repeated keys are refused."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=self.peek_event().start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"the key {key.value!r} is there twice", problem_mark=key.start_mark)
            seen.add(key.value if isinstance(key, yaml.ScalarNode) else None)
        return super().construct_mapping(node, deep)


def read(path: Path) -> dict[Any, Any]:
    """The mapping that a file holds; nothing in it is executed.

    Raises:
        FileNotFoundError: no such file.
        ValueError: too large, not UTF-8, not YAML or no mapping; tags of Python objects, aliases, repeated keys.
    """
    if not path.is_file():
        raise FileNotFoundError(f"config: no such file: {path}")
    with open(path, "rb") as file:
        content = file.read(_MOST_BYTES + 1)
    if len(content) > _MOST_BYTES:
        raise ValueError(f"config: {path} is larger than {_MOST_BYTES} bytes; is it a configuration?")
    try:
        found = yaml.load(content.decode(), Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, a date or number that does not exist
        raise ValueError(f"config: {path} is not YAML: {error}") from error
    except RecursionError as error:
        raise ValueError(f"config: {path} is not YAML: nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError(f"config: {path} must hold `key: value` lines, got {type(found).__name__}")
    return found
