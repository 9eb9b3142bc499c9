"""What scripts/many_torches.py does around the environments, which are made-up here; people and CI run it for real."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def many():
    spec = importlib.util.spec_from_file_location("many_torches", ROOT / "scripts" / "many_torches.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["many_torches"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def made_up(many, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict:
    """Replaces what takes minutes; `found` is what the check says of each torch, `called` what was run."""
    state = {"found": {}, "called": []}

    def run(self, *command, cwd, log=None, **env):
        state["called"].append((self.torch, *map(str, command)))
        if "pytest" in command:
            if self.torch == "2.15.0":
                raise many.Failed("exit status 1: pytest\n1 failed, 2 passed in 1.00s")
            return "...\n\n=== 3 passed in 1.00s ===\n"
        finding = {
            "torch": f"{self.torch}+cpu",
            "built": "2.11.0+cpu",
            "operators": 2,
            "problems": state["found"].get(self.torch, []),
        }
        return f"a warning\n{json.dumps(finding)}\n"

    monkeypatch.setattr(many.Environment, "run", run)
    monkeypatch.setattr(many.Environment, "create", lambda self: self.folder.mkdir(exist_ok=True))
    monkeypatch.setattr(many, "unpack_sdist", lambda out: out / "ard_fast-1.2.3")
    return state


def call(many, folder: Path, *arguments: str) -> int:
    """Run the script on a wheel that nobody reads."""
    return many.main(["--folder", str(folder), "--wheel", "ard_fast-1.2.3-cp310-abi3-any.whl", *arguments])


def test_one_failure_fails_the_run_after_the_others_have_been_tested(
    many, made_up: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(many, tmp_path, "--torch", "2.11.0", "2.15.0", "2.12.0", "--tests", "quick") == 1
    rows = capsys.readouterr().out.splitlines()[-3:]
    assert "torch 2.11.0+cpu, built against 2.11.0+cpu, 2 operators; 3 passed in 1.00s" in rows[0]
    assert "FAILED: exit status 1" in rows[1]
    assert "3 passed" in rows[2]
    assert (tmp_path / "many_torches.log").read_text().splitlines()[-3:] == rows
    tested = [words for words in made_up["called"] if "pytest" in words]
    assert [words[0] for words in tested] == ["2.11.0", "2.15.0", "2.12.0"]
    assert all(words[-len(many.QUICK) :] == tuple(many.QUICK) for words in tested)


def test_kernel_that_does_not_register_fails_the_run(
    many, made_up: dict, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made_up["found"]["2.12.0"] = ["kd_loss: on CUDA tensors none"]
    assert call(many, tmp_path, "--torch", "2.12.0", "--tests", "none", "--cuda") == 1
    assert "FAILED: kd_loss: on CUDA tensors none" in capsys.readouterr().out
    assert made_up["called"][-1][-1] == "cuda"


def test_environments_are_kept_unless_they_are_to_be_discarded(many, made_up: dict, tmp_path: Path) -> None:
    assert call(many, tmp_path, "--torch", "2.11.0", "--tests", "none") == 0
    (kept,) = tmp_path.glob("py*-torch2.11.0")
    assert call(many, tmp_path, "--torch", "2.11.0", "--tests", "none", "--discard") == 0
    assert not kept.exists()


def test_version_that_pip_would_take_for_a_range_is_refused(many, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        many.parse(["--torch", "2.11"])
    assert "--torch: expected versions such as 2.13.0, got '2.11'" in capsys.readouterr().err


def test_failed_command_shows_what_it_said(many, tmp_path: Path) -> None:
    environment = many.Environment(sys.executable, "2.11.0", tmp_path)
    environment.python.parent.mkdir()
    environment.python.symlink_to(sys.executable)
    log = tmp_path / "log"
    assert environment.run("-c", "print(6 * 7)", cwd=tmp_path, log=log) == log.read_text() == "42\n"
    with pytest.raises(many.Failed, match=r"(?s)exit status 3: .*said this"):
        environment.run("-c", "print('said this'); raise SystemExit(3)", cwd=tmp_path)


def test_quick_tests_exist(many) -> None:
    assert [name for name in many.QUICK if not (ROOT / name).is_file()] == []
