"""Warns of every public name of the package that no page documents; under `-W` the build then fails."""

import importlib
from collections.abc import Iterator

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging

logger = logging.getLogger(__name__)

_MODULES = [
    "functional",
    "attacks",
    "attacks.cuda_graph",
    "attacks.adapters",
    "losses",
    "reference",
    "methods",
    "models",
    "data",
    "teachers",
]


def public_names() -> Iterator[str]:
    """The full names of what the public modules offer: `__all__`, or without one what a module itself defines."""
    for name in ("ard_fast", *(f"ard_fast.{short}" for short in _MODULES)):
        module = importlib.import_module(name)
        own = [
            name
            for name, value in vars(module).items()
            if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
        ]
        names = getattr(module, "__all__", own)
        yield from (f"{module.__name__}.{name}" for name in names if name != "__version__")


def warn_of_undocumented(app: Sphinx, env: BuildEnvironment) -> None:
    documented = env.get_domain("py").data["objects"]
    for name in public_names():
        if name not in documented:
            logger.warning("%s is public but on no page: add it to docs/api", name)


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("env-check-consistency", warn_of_undocumented)
    return {"parallel_read_safe": True}
