"""README's five commands from a folder of scans to answers, as they are written there."""

import json
import re
import shlex
from pathlib import Path

import nibabel as nib
import numpy as np
from typer.testing import CliRunner

from unireason_lib.cli import app
from unireason_lib.dataset import PhantomConfig, phantom
from unireason_lib.dataset.sources.phantom import LABELS
from unireason_lib.inference import read_results

ROOT = Path(__file__).resolve().parents[2]


def test_five_commands_lead_from_a_folder_of_scans_to_answers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("data").symlink_to(ROOT / "data")
    for k in (1, 2, 3, 4, 7, 16, 30):  # whose names fall into all three splits
        study = phantom(k, config=PhantomConfig(shape=(8, 64, 64)))
        for name, array in (("images", study.scan.array), ("labels", study.labels)):
            (path := Path("scans", name)).mkdir(parents=True, exist_ok=True)
            image = nib.Nifti1Image(array.astype(np.int16).transpose(2, 1, 0), study.scan.affine)
            nib.save(image, path / f"case_{k:02}.nii.gz")
    names = {str(value): name for value, name in LABELS.items()} | {"1": None}  # the whole body
    Path("scans/names.json").write_text(json.dumps(names))

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"## My folder of scans\n.*?```bash\n(.*?)```", readme, re.S)[1]
    commands = [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()]
    assert [words[3] for words in commands] == ["build", "sft", "evaluate", "trace", "infer"]
    for words in commands:
        assert words[:3] == ["python", "-m", "unireason_lib"]
        few = ["--profile", "smoke"] if words[3] in ("sft", "evaluate") else []
        done = CliRunner().invoke(app, [*words[3:], *few])
        assert done.exit_code == 0, (words[3], done.output, done.exception)
    lines = list(read_results("runs/mine/test.jsonl"))
    assert lines and {line["dimension"] for line in lines} == {"3d"}
    assert len(list(read_results("runs/mine/test.blank.jsonl"))) == len(lines)
    assert "<html" in Path("runs/mine/test.html").read_text(encoding="utf-8")
    assert "boxes_mm" in done.stdout or "answer:" in done.stdout
