"""The generated page and tables are what their generators make; links outside of the documentation lead somewhere."""

import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_the_methods_page_is_what_its_script_makes_of_the_registry():
    generator = runpy.run_path(str(ROOT / "scripts" / "methods_page.py"))
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == generator["page"]() + "\n", "run python scripts/methods_page.py"


def test_the_tables_of_results_are_those_recorded(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    lines_of = runpy.run_path(str(ROOT / "benchmarks" / "table_figures.py"))["table_lines"]
    written = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for file in (ROOT / "benchmarks" / "results").glob("table_*.json"):
        lines = "\n".join(lines_of(json.loads(file.read_bytes()), file))
        assert lines in written, "run python benchmarks/table_figures.py"


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_of_pages_outside_docs_exist(page):
    # Links inside docs/ are checked by Sphinx.
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert [target for target in targets if not (ROOT / target).exists()] == []
