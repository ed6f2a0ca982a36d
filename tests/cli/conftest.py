"""Scans and files of questions to ask about, and a model that can be made to write boxes."""

import json

import nibabel as nib
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from unireason_lib.cli import app


@pytest.fixture(scope="session")
def scans(tmp_path_factory):
    """Images ``0.png`` ... ``5.png`` (80 x 48) and volumes ``0.nii.gz`` ... ``2.nii.gz``."""
    folder = tmp_path_factory.mktemp("scans")
    draw = np.random.default_rng(0)
    for k in range(6):
        noise = draw.integers(0, 256, (48, 80, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{k}.png")
    affine = np.array([[-2.0, 0, 0, 30], [0, -2.0, 0, 20], [0, 0, 5.0, -40], [0, 0, 0, 1]])
    ramp = np.linspace(-100, 300, 20 * 16 * 12).reshape(20, 16, 12)
    for k in range(3):
        noisy = ramp + draw.normal(0, 30, ramp.shape)
        nib.save(nib.Nifti1Image(noisy.astype(np.int16), affine), folder / f"{k}.nii.gz")
    return folder


@pytest.fixture
def questions(tmp_path):
    """A function that writes rows as a ``.jsonl`` file."""

    def write(*rows):
        path = tmp_path / "questions.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def run(tiny_checkpoint):
    """A function that calls ``python -m unireason_lib`` in this process, short replies by default."""

    def call(*words):
        words = [str(word) for word in words]
        if words[0] == "infer" and "--help" not in words:
            usual = {"--model-path": tiny_checkpoint, "--max-new-tokens": 3, "--device": "cpu"}
            words += [str(w) for pair in usual.items() if pair[0] not in words for w in pair]
        result = CliRunner().invoke(app, words)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return call
