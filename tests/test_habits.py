"""What contributors run: the versions of the tools are the same wherever they are named."""

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent


def test_pre_commit_has_the_versions_of_the_extra_dev() -> None:
    extra = re.search(r"^dev = \[(.+)\]$", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    dev = re.findall(r'"([^"]+)"', extra)
    (repo,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repo["repo"] == "local"
    needed = [one for hook in repo["hooks"] for one in hook.get("additional_dependencies", [])]
    assert {one.partition("==")[0] for one in needed} == {"ruff", "clang-format"}
    assert set(needed) <= set(dev)
    assert {hook["entry"] for hook in repo["hooks"] if hook["language"] == "system"} == {"basedpyright"}
    assert any(one.startswith("basedpyright==") for one in dev)
