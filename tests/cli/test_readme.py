"""README's five commands from a folder of scans to answers, as they are written there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from typer.testing import CliRunner

from unireason_lib.cli import app
from unireason_lib.dataset import PhantomConfig, phantom
from unireason_lib.inference import read_results

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
NAMES = {
    2: "right lung",
    3: "left lung",
    4: "heart",
    6: "stomach",
    12: "aorta",
    5: "liver",
    7: "spleen",
    8: "left kidney",
    9: "right kidney",
    13: "spine",
}
NAMES |= {25: "liver lesion", 27: "spleen lesion", 28: "left kidney lesion"}


def five_commands() -> list[list[str]]:
    """The words of each command below the heading."""
    block = re.search(r"## My folder of scans\n.*?```bash\n(.*?)```", README, re.S)[1]
    return [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with ``data`` and a folder ``scans`` of volumes with label maps."""
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(ROOT / "data")
    for k in (1, 2, 3, 4, 7, 16, 30):  # whose names fall into all three splits
        study = phantom(k, config=PhantomConfig(shape=(8, 64, 64)))
        for name, array in (("images", study.scan.array), ("labels", study.labels)):
            (path := Path("scans", name)).mkdir(parents=True, exist_ok=True)
            image = nib.Nifti1Image(array.astype(np.int16).transpose(2, 1, 0), study.scan.affine)
            nib.save(image, path / f"case_{k:02}.nii.gz")
    names = {str(value): NAMES.get(value) for value in range(1, 40)}
    Path("scans/names.json").write_text(json.dumps(names))
    return tmp_path


def test_five_commands_lead_from_a_folder_of_scans_to_answers(folder):
    commands = five_commands()
    assert [words[:4][-1] for words in commands] == ["build", "sft", "evaluate", "trace", "infer"]
    for words in commands:
        assert words[:3] == ["python", "-m", "unireason_lib"]
        few = {"sft": ["--profile", "smoke"], "evaluate": ["--profile", "smoke"]}.get(words[3], [])
        done = CliRunner().invoke(app, [*words[3:], *few])
        assert done.exit_code == 0, (words[3], done.output, done.exception)
    lines = list(read_results("runs/mine/test.jsonl"))
    assert lines and {line["dimension"] for line in lines} == {"3d"}
    assert len(list(read_results("runs/mine/test.blank.jsonl"))) == len(lines)
    assert "<html" in Path("runs/mine/test.html").read_text(encoding="utf-8")
    assert "boxes_mm" in done.stdout or "answer:" in done.stdout
