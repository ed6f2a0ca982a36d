"""The command that pre-trains the tiny base, and the one that measures it."""

import json

from typer.testing import CliRunner

from unireason_lib.cli import app
from unireason_lib.training.base import pretrain as pretraining
from unireason_lib.training.base.pretrain import Plan


def test_a_base_is_trained_and_its_skills_lie_beside_it(tmp_path, monkeypatch):
    small = Plan(stages=((1.0, (("words", 2), ("pointing", 1), ("shapes", 2))),), steps=2)
    monkeypatch.setattr(pretraining, "Plan", lambda **changes: small)
    out = tmp_path / "base"
    result = CliRunner().invoke(
        app, ["base", "--out", str(out), "--steps", "2", "--size", "2", "--quiet"]
    )
    assert result.exit_code == 0, result.output
    skills = json.loads((out / "model" / "skills.json").read_text(encoding="utf-8"))
    assert skills and all(scores["n"] >= 1 for scores in skills.values())
    assert (out / "model" / "log.jsonl").read_text(encoding="utf-8").count("loss") >= 1
    again = CliRunner().invoke(app, ["base", "--measure", str(out / "model"), "--size", "2"])
    assert again.exit_code == 0 and set(skills) == {
        line[:18].strip() for line in again.stdout.splitlines()
    }
