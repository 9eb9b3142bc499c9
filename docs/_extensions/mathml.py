"""Formulas as MathML, which browsers typeset themselves: no script, no fonts to fetch, no network."""

import re
from typing import Any

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx


def mathml(tex: str, display: str) -> str:
    """The formula; a prime stands beside its letter, since as a superscript most fonts show it as a speck."""
    return re.sub(
        r"<msup>(<mi>\w</mi>)<m\w>&#x02032;</m\w></msup>",
        r"<mrow>\1<mi>&#x2032;</mi></mrow>",
        convert(tex, display=display),
    )


def visit_math(writer: Any, node: nodes.math) -> None:
    writer.body.append(mathml(node.astext(), "inline"))
    raise nodes.SkipNode


def visit_math_block(writer: Any, node: nodes.math_block) -> None:
    writer.body.append(f'<div class="math-block">{mathml(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (visit_math, None), (visit_math_block, None))
    return {"parallel_read_safe": True}
