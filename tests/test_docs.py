"""Generated pages are up to date, and links outside docs/ lead somewhere."""

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("script", "page"),
    [("methods_page.py", "methods.md"), ("numbers_page.py", "numbers.md")],
    ids=["methods", "numbers"],
)
def test_a_generated_page_is_up_to_date(script, page):
    generator = runpy.run_path(str(ROOT / "scripts" / script))
    written = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert written == generator["page"]() + "\n", f"run python scripts/{script}"


@pytest.mark.parametrize("page", sorted(path.name for path in ROOT.glob("*.md")))
def test_links_of_pages_outside_docs_exist(page):
    # Links inside docs/ are checked by Sphinx.
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert [target for target in targets if not (ROOT / target).exists()] == []
