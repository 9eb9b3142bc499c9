"""Pages that are generated are what their generator makes."""

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
def test_what_a_page_outside_of_the_documentation_links_to_is_there(page):
    # Links inside docs/ are checked by Sphinx.
    text = (ROOT / page).read_text(encoding="utf-8")
    targets = [target for target in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in target]
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_a_row_of_a_benchmark_that_the_page_does_not_know_is_an_error(tmp_path):
    generator = runpy.run_path(str(ROOT / "scripts" / "numbers_page.py"))
    (tmp_path / "new.json").write_text('[{"benchmark": "unheard-of", "status": "ok"}]')
    recorded = generator["recorded"]
    recorded.__globals__["RESULTS"] = tmp_path
    with pytest.raises(ValueError, match=r"new\.json.*unheard-of"):
        recorded()


def test_numbers_of_captured_graphs_and_of_what_is_missing_are_shown(tmp_path):
    generator = runpy.run_path(str(ROOT / "scripts" / "numbers_page.py"))
    row = {"benchmark": "augment", "case": "cifar-128", "shape": "[128, 3, 32, 32]", "dtype": "uint8", "status": "ok",
           "device": "cuda", "device_name": "A GPU", "torch": "2.13.0+cu130", "ard_fast": "0.2",
           "date": "2026-12-01T00:00:00Z", "median_us": 4.0, "pct_of_copy": 80.0, "fused_speedup": 1.0}  # fmt: skip
    rows = [
        {**row, "variant": "fused"},
        {**row, "variant": "fused+graph", "median_us": 3.0},
        {**row, "variant": "masks+graph", "median_us": 9.0, "fused_speedup": 3.0},
        {**row, "variant": "compile", "status": "no compiler"},
    ]
    table = generator["_table"](rows)
    cells = [cell.strip() for cell in table.splitlines()[-1].strip("|").split("|")]
    place = ["A GPU", "ard-fast 0.2, torch 2.13.0+cu130", "2026-12-01"]
    assert cells == ["cifar-128, graph", "128, 3, 32, 32", "uint8", "3", "80", "3", *place]
    assert "compile" not in table
    assert generator["_missing"](rows) == ["cifar-128, compile: no compiler"]
