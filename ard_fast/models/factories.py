"""Networks that are not ours: what `package.module:factory` makes, and timm's as `timm:NAME`."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ard_fast._names import nearest

TIMM = "timm"


def find_factory(path: str, argument: str) -> Callable[..., nn.Module]:
    """A builder, called as `build(num_classes=, in_channels=, **options)`, for a path with a colon.

    `package.module:factory` imports the module, which runs its code. The factory (or network class) is given
    `num_classes` and `in_channels` where it names such parameters, and the options; a path that leads to a module
    that was made already gives that one.

    Args:
        path: `package.module:factory` or `timm:NAME`.
        argument: what errors call it.

    Raises:
        ValueError: no such module, attribute, timm, or timm network.
    """
    module_name, _, attribute = path.partition(":")
    if module_name == TIMM:
        return _timm_factory(attribute, argument)
    if not module_name or not attribute:
        raise ValueError(f"{argument}: expected package.module:factory, got {path!r}")
    module = _import(module_name, argument)
    factory = getattr(module, attribute, None)
    if factory is None:
        near = nearest(attribute, [name for name, value in vars(module).items() if name[0] != "_" and callable(value)])
        hint = f"; did you mean {module_name}:{near}?" if near else ""
        raise ValueError(f"{argument}: {module_name!r} has no {attribute!r}{hint}")
    if not isinstance(factory, nn.Module) and not callable(factory):
        raise ValueError(f"{argument}: {path} must be a function or a network, got {type(factory).__name__}")

    def build(*, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
        if isinstance(factory, nn.Module):
            return factory
        fitting = _named_only(factory, num_classes=num_classes, in_channels=in_channels)
        return _make(lambda: factory(**fitting, **options), path, argument)

    return build


def _timm_factory(name: str, argument: str) -> Callable[..., nn.Module]:
    try:
        timm = importlib.import_module(TIMM)
    except ModuleNotFoundError as error:
        raise ValueError(f"{argument}: {TIMM}:{name} needs timm (pip install timm): {error}") from error
    except Exception as error:  # a torchvision that was built for another torch fails in its own ways
        raise ValueError(f"{argument}: timm is installed but fails ({type(error).__name__}: {error})") from error
    if not timm.is_model(name):  # also keeps out the names by which timm would download weights
        near = nearest(name, timm.list_models())
        raise ValueError(f"{argument}: timm has no network {name!r}{f'; did you mean {TIMM}:{near}?' if near else ''}")

    def build(*, num_classes: int, in_channels: int, **options: Any) -> nn.Module:
        def make() -> nn.Module:
            return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_channels, **options)

        return _make(make, f"{TIMM}:{name}", argument)

    return build


def _import(name: str, argument: str) -> Any:
    try:
        return importlib.import_module(name)
    except Exception as error:  # a module may fail at import with anything
        raise ValueError(f"{argument}: cannot import {name!r} ({type(error).__name__}: {error})") from error


def _named_only(factory: Callable[..., Any], **values: Any) -> dict[str, Any]:
    """Those values that the factory has parameters of the same name for."""
    try:
        parameters = inspect.signature(factory).parameters
    except (TypeError, ValueError):  # some callables written in C have no signature
        return {}
    allowed = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {name: value for name, value in values.items() if name in parameters and parameters[name].kind in allowed}


def _make(make: Callable[[], Any], path: str, argument: str) -> nn.Module:
    try:
        network = make()
    except Exception as error:  # the factory is somebody else's code
        raise ValueError(f"{argument}: {path}() failed ({type(error).__name__}: {error})") from error
    if not isinstance(network, nn.Module):
        raise ValueError(f"{argument}: {path}() must return a torch.nn.Module, got {type(network).__name__}")
    return network
