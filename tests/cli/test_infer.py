"""``infer 2d`` and ``infer 3d``: what is printed, what is written, and the way back to the scan."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from unireason_lib.boxes import Box3D
from unireason_lib.imaging import Serialization, load_volume

BOX = "<|box_start|>[16,8,48,24]<|box_end|>"
CUBOID = "<|box_start|>[16,8,2,48,24,4]<|box_end|>"


@pytest.fixture
def ask(run, tmp_path):
    """A function that asks a question about a scan: the command's result and the line it wrote."""

    def call(dimension, scan, *words):
        out = tmp_path / "deep" / "reply.json"
        flag = "--image" if dimension == "2d" else "--volume"
        words = (flag, scan, "--question", "What is it?", "--max-new-tokens", 99, *words)
        result = run("infer", dimension, *words, "--output", out)
        return result, json.loads(out.read_text()) if out.is_file() else None

    return call


def test_an_image(ask, scans, scripted):
    scripted(f"<think>The mass at {BOX} is round.</think>B. cyst<|im_end|>")
    result, line = ask("2d", scans / "0.png", "--option-a", "mass", "--option-b", "cyst")
    assert result.exit_code == 0
    described = "80 x 48 pixels|B. cyst|1 crops of 32 x 16 pixels|choice: B"
    assert all(words in result.stdout for words in described.split("|"))
    assert line["choice"] == "B" and line["stop"] == "end" and line["in_format"]
    assert line["boxes"] == line["boxes_image"] == [[16, 8, 48, 24]]
    assert line["frame"] == [48, 80, 1] and line["serialization"]["shape"] == [48, 80]


def test_boxes_in_the_json_of_stock_qwen_are_shown_report_14(ask, scans, scripted):
    scripted('<think>[{"bbox_2d": [16, 8, 48, 24]}]</think>cyst<|im_end|>')
    result, line = ask("2d", scans / "0.png")
    assert "another syntax (JSON), fetch nothing: [[16, 8, 48, 24]]" in result.stdout
    assert line["other_syntax"] == [[16, 8, 48, 24]] and line["boxes"] == []


def test_a_volume_and_the_way_back_to_millimetres(ask, scans, scripted):
    scripted(f"<think>At {CUBOID}, and {BOX}.</think>left<|im_end|>")
    how = ("--target-size", "6x32x64", "--normalize", "-100,250")
    result, line = ask("3d", scans / "0.nii.gz", *how)
    described = "20 x 16 x 12 pixels or voxels|6 of 64 x 32|2 crops of 32 x 16|no slice"
    assert all(words in result.stdout for words in described.split("|"))
    layout = line["serialization"]
    assert layout["size"] == [6, 32, 64] and layout["range"] == layout["window"] == [-100, 250]
    assert layout["shape"] == [12, 16, 20] and layout["spacing"] == [5, 2, 2]
    assert line["boxes_voxel"] == [[5, 4, 4, 15, 12, 8], None]  # 64 -> 20, 32 -> 16, 6 -> 12
    corners = load_volume(scans / "0.nii.gz").to_mm(Box3D(5, 4, 4, 15, 12, 8))
    assert np.allclose(line["boxes_mm"][0], corners) and line["boxes_mm"][1] is None


def test_the_layout_is_that_of_the_checkpoint(ask, scans, tiny_checkpoint, tmp_path, scripted):
    """Size and window are those of the training; others by hand are warned of; images shrink to
    ``image_size``, and their boxes map back to the original."""
    trained = shutil.copytree(tiny_checkpoint, tmp_path / "trained")
    Serialization((4, 32, 48), (-50, 200), (32, 32)).save(trained)
    scripted(f"<think>{BOX}</think>left<|im_end|>")
    volume = ("3d", scans / "0.nii.gz")
    _, line = ask(*volume, "--model-path", trained)
    assert line["serialization"]["size"] == [4, 32, 48] and line["frame"] == [32, 48, 4]
    assert line["serialization"]["range"] == [-50, 200]
    result, line = ask(*volume, "--model-path", trained, "--target-size", "2,32,32")
    assert "warning: size (2, 32, 32)" in result.stderr and "(4, 32, 48)" in result.stderr
    assert "window" not in result.stderr and line["serialization"]["range"] == [-50, 200]
    assert line["serialization"]["size"] == [2, 32, 32]
    Image.new("RGB", (400, 200)).save(tmp_path / "wide.png")
    _, line = ask("2d", tmp_path / "wide.png", "--model-path", trained)
    rows, columns, _ = line["frame"]
    assert (rows, columns) == (32, 48)  # 16 x 32, then as many tokens as the processor wants
    x, y = 400 / columns, 200 / rows
    assert line["boxes_image"][0] == pytest.approx([16 * x, 8 * y, 48 * x, 24 * y], abs=1e-3)
    _, line = ask(*volume)  # a checkpoint that does not say: as in the paper
    assert line["serialization"]["size"] == [32, 256, 256]
    assert line["serialization"]["window"] == "percentile"


def test_quiet_prints_the_answer_alone(run, scans, scripted):
    scripted("<think>hm</think>\x1b[31mred<|im_end|>")
    words = (
        "infer",
        "2d",
        "--image",
        scans / "0.png",
        "--question",
        "What?",
        "--max-new-tokens",
        99,
    )
    assert run(*words, "--quiet").stdout.strip().endswith("red")
    shown = run(*words).stdout  # a model cannot send escape codes to the terminal
    assert "answer:" in shown and "\x1b" not in shown


def test_results_of_a_batch_are_not_overwritten(run, scans, tmp_path):
    out = tmp_path / "out.json"
    out.write_text("hours of work\n")
    (tmp_path / "out.json.run.json").write_text("{}")
    words = ("--image", scans / "0.png", "--question", "What?", "--output", out)
    result = run("infer", "2d", *words)
    assert result.exit_code == 2 and "results of a batch" in result.stderr
    assert out.read_text() == "hours of work\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model-path", "./nothing"), "no such folder"),
        (("--target-size", "32x256"), "slices, rows, columns"),
        (("--target-size", "0,8,8"), "from 1 to 4096"),
        (("--normalize", "kidneys"), "abdomen"),
        (("--normalize", "300,-100"), "low < high"),
        (("--volume", "missing.nii.gz"), "missing.nii.gz"),
    ],
)
def test_clear_errors_and_exit_code_2(run, scans, words, message):
    result = run("infer", "3d", "--volume", scans / "0.nii.gz", "--question", "Where?", *words)
    assert result.exit_code == 2 and result.stdout == "" and "Traceback" not in result.stderr
    assert message in " ".join(result.stderr.split())
