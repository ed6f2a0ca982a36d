"""The script that trained ``data/tiny-sft``."""

import importlib
import os
import shlex
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from unireason_lib.cli import app
from unireason_lib.dataset.sources.phantom import INSIDE, phantom
from unireason_lib.grounding import load_model
from unireason_lib.imaging import ProcessorFrame, label_boxes
from unireason_lib.io import read_json
from unireason_lib.training.encoding import patches

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "data/tiny-sft/train.py"


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(SCRIPT.parent)  # the processes of its pool import it as well
        yield importlib.import_module(SCRIPT.stem)


@pytest.fixture(scope="module")
def base():
    return load_model(ROOT / "data/tiny-base", dtype="float32", device="cpu")


def test_targets_are_boxes_and_proportions_of_the_label_map(script, base):
    _, classes = script.planes_of(phantom, 7)
    cover, boxes, cells = script.TowerProbe(*base).targets(torch.from_numpy(classes))
    assert cover.shape[:2] == cells.shape[:2] == (8, 16) and cells.shape[2] == 16
    for z, labels in enumerate(phantom(7).labels):
        hosts = {lesion: host for lesion, host in INSIDE.items() if lesion > 20}
        whole = np.array([hosts.get(value, value) for value in labels.flat]).reshape(labels.shape)
        for label, box in label_boxes(whole).items():
            k = script.CLASSES.index(label)
            assert boxes[z, k].mul(64).tolist() == list(box.as_tuple())
            assert cover[z, :, k].mean() == pytest.approx((whole == label).mean(), abs=1e-6)
        first = [script.CLASSES[k] for k in cells[z, 1, :5]]  # of the second token: a row, and one
        assert first == [*labels[2, 18:32:4], labels[6, 18]]


def test_a_faster_tower_gives_the_same_tokens(script, base):
    visual, random = base[0].model.visual, torch.Generator().manual_seed(0)
    sizes = ((64, 64), (32, 48), (64, 64))
    images = [torch.randint(256, (*s, 3), generator=random).byte().numpy() for s in sizes]
    inputs = patches(base[1].image_processor, images)
    pixels, grids = inputs["pixel_values"], inputs["image_grid_thw"]
    before = visual(pixels, grid_thw=grids).pooler_output
    script.speed_up(visual)
    torch.testing.assert_close(visual(pixels, grid_thw=grids).pooler_output, before)


def test_a_token_tells_of_the_lesion_in_it_else_of_what_it_has_most_of(script):
    cover = torch.zeros(1, 3, len(script.CLASSES))
    lesion, (aorta, liver) = script.LESIONS[0], map(script.WORDS.index, ("aorta", "liver"))
    cover[0, 0, [liver, lesion]] = torch.tensor([0.9, 0.4])
    cover[0, 1, [liver, aorta]] = torch.tensor([0.8, 0.1])  # the whole aorta
    cover[0, 2, liver] = 0.2
    assert script.class_of_token(cover).tolist() == [[lesion, aorta, 0]]


def test_squares_have_the_size_of_crops(script, base):
    frame, image = ProcessorFrame.from_processor(base[1]), Image.new("RGB", (20, 20))
    images = torch.arange(64, dtype=torch.uint8).expand(2, 64, 64)
    pixels, classes = script.squares(images, images // 4, 20, frame)
    assert pixels.shape == classes.shape == (2, *frame.aligned(image).size)
    assert (pixels.float() / 4 - classes.float()).abs().max() < 2


def test_the_whole_script_trains_what_can_be_loaded(script, monkeypatch, tmp_path):
    small = "--slices 5 --shapes 40 --tower-steps 2 --patients-2d 12 --patients-3d 6 --steps 2"
    small += " --last-steps 2 --processes 1"
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--out", str(tmp_path), *small.split()])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    process = []
    monkeypatch.setattr(os, "execve", lambda *words: process.extend(words))
    script.main()
    _, (*_, commands), environment = process
    for command in commands.split(" && "):
        launcher, words = command.split(" -m unireason_lib ")
        words += " --quiet --set grounding.free_running_questions=0"
        assert launcher.endswith(" -m torch.distributed.run --nproc_per_node=1")
        done = CliRunner().invoke(app, shlex.split(words), env=environment)
        assert done.exit_code == 0, done.output
    assert set(read_json(tmp_path / "tower-2-5/tower.json")) == {"IoU of organs", "IoU of lesions"}
    folders = (tmp_path / name for name in ("tower-2-5", "sft/model", "all/model"))
    models = [load_model(folder)[0].model for folder in (ROOT / "data/tiny-base", *folders)]
    towers = [model.visual.merger.mlp[2].weight for model in models]
    assert [torch.equal(*pair) for pair in pairwise(towers)] == [False, True, False]
    norms = [model.language_model.norm.weight for model in models]
    assert [torch.equal(*pair) for pair in pairwise(norms)] == [True, False, False]
