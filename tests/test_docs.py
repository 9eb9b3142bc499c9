"""Pages that are generated are what their generator makes."""

import runpy
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_of_the_methods_is_up_to_date():
    script = runpy.run_path(str(ROOT / "scripts" / "methods_page.py"))
    written = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    assert written == script["page"]() + "\n", "run python scripts/methods_page.py"
