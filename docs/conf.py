"""Settings of the documentation: `python -m sphinx -W --keep-going -b html docs OUT`, with the package installed."""

import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

from sphinx.pycode import ModuleAnalyzer

from ard_fast import __version__

project = "ard-fast"
author = "ard-fast contributors"
copyright = author
release = version = __version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.intersphinx",
    "sphinx_argparse_cli",
    "sphinx_copybutton",
    "sphinx_design",
    "mathml",
    "public_names",
]
html_math_renderer = "mathml"
copybutton_prompt_text = ">>> "
copybutton_only_copy_prompt_lines = True
copybutton_exclude = ".linenos, .gp"
exclude_patterns = ["_extensions", "_static"]

smartquotes_action = "De"  # dashes and dots only: x' is a name

html_theme = "furo"
html_title = f"ard-fast {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_sourcelink = False
html_copy_source = False

# Names in `single backticks` of docstrings become links where they are ours, and stay code where they are not.
default_role = "py:obj"
autodoc_default_options = {"members": True}
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"
autodoc_inherit_docstrings = False
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
# A class's arguments are documented in its docstring, not in that of `__init__`.
napoleon_include_init_with_doc = False

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# Links into the documentation of Python and torch need the network: only when asked for, so that a build without it is
# a build without warnings.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }
    if os.environ.get("ARD_FAST_DOCS_ONLINE") == "1"
    else {}
)


def _drop_docstring_of_type(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """A constant without a docstring of its own would show that of `dict` or `tuple`."""
    if what == "data" and obj.__doc__ == type(obj).__doc__:
        lines.clear()


_SHOWN = (
    (r"<factory>", "..."),  # no expression: Sphinx could not read the signature
    (r"<function (\w+)>", r"\1"),
    (re.escape(str(8 / 255)), "8 / 255"),
    (re.escape(str(2 / 255)), "2 / 255"),
    (r" \| ~?[\w.]*SupportsDLPack", ""),  # the page says that arrays work wherever a tensor does
)


def _shorten(app: Any, what: str, name: str, obj: Any, options: Any, text: str | None, result: str | None) -> Any:
    """Signatures with defaults as in the source, and without what the page says once."""
    for pattern, shown in _SHOWN:
        text = text and re.sub(pattern, shown, text)
        result = result and re.sub(pattern, shown, result)
    return text, result


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out a class's fields, which its docstring has, and what overrides a member of a base class."""
    if what != "class":
        return None
    function = getattr(obj, "fget", obj)
    path = getattr(function, "__qualname__", "").split(".")
    owner = getattr(sys.modules.get(getattr(function, "__module__", "")), path[0], None)
    bases = getattr(owner, "__mro__", ())[1:-1]
    field = type(obj).__name__ == "_tuplegetter" or (len(path) == 1 and path != [""])
    return True if field or any(name in vars(base) for base in bases) else None


def setup(app: Any) -> None:
    """Called by Sphinx."""
    overloads = ModuleAnalyzer.for_module("ard_fast.functional.gradients")
    overloads.analyze()
    overloads.overloads.clear()  # five signatures for type checkers, of which the last says everything
    app.connect("autodoc-process-signature", _shorten)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-docstring", _drop_docstring_of_type)
