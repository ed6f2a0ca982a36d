"""``infer 2d`` and ``infer 3d``: what is printed, what is written, and the way back to the scan."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest

from unireason_lib.boxes import Box3D
from unireason_lib.imaging import load_volume

BOX = "<|box_start|>[16,8,48,24]<|box_end|>"
CUBOID = "<|box_start|>[16,8,2,48,24,4]<|box_end|>"


def test_a_picture(run, scans, scripted, tmp_path):
    scripted(f"<think>The mass at {BOX} is round.</think>B. cyst<|im_end|>")
    out = tmp_path / "deep" / "reply.json"
    asked = ("--question", "What is it?", "--option-a", "mass", "--option-b", "cyst", "--max-new-tokens", 99)
    result = run("infer", "2d", "--image", scans / "0.png", *asked, "--output", out)
    assert result.exit_code == 0
    for words in (
        "0.png: 80 x 48 pixels",
        "What is it?",
        "B. cyst",
        "1 crop of 32 x 16 pixels put in",
        "choice: B",
    ):
        assert words in result.stdout
    record = json.loads(out.read_text())
    assert record["choice"] == "B" and record["stop"] == "end" and record["in_format"]
    assert record["boxes"] == [[16, 8, 48, 24]] and record["injected_tokens"] > 0
    frame, picture = record["frame"], record["picture"]
    assert (frame["width"], frame["height"]) == (80, 48) and (picture["width"], picture["height"]) == (80, 48)
    assert record["boxes_picture"] == [[16, 8, 48, 24]]


def test_a_box_goes_back_to_the_picture_that_was_resized(run, tmp_path, scripted):
    from PIL import Image

    Image.new("RGB", (400, 200)).save(tmp_path / "wide.png")  # more pixels than the tiny processor takes
    scripted(f"<think>{BOX}</think>yes<|im_end|>")
    out = tmp_path / "reply.json"
    asked = ("--question", "Is it?", "--max-new-tokens", 99, "--output", out)
    assert run("infer", "2d", "--image", tmp_path / "wide.png", *asked).exit_code == 0
    record = json.loads(out.read_text())
    sx, sy = 400 / record["frame"]["width"], 200 / record["frame"]["height"]
    assert sx > 1.5 and record["boxes_picture"][0] == pytest.approx(
        [16 * sx, 8 * sy, 48 * sx, 24 * sy], abs=1e-3
    )


def test_a_volume_and_the_way_back_to_millimetres(run, scans, scripted, tmp_path):
    scripted(f"<think>At {CUBOID}, and {BOX}.</think>left<|im_end|>")
    out = tmp_path / "reply.json"
    result = run(
        *("infer", "3d", "--volume", scans / "0.nii.gz", "--question", "Where?", "--max-new-tokens", 99),
        *("--target-size", "6x32x64", "--normalize", "-100,250", "--output", out),
    )
    assert result.exit_code == 0
    assert "20 x 16 x 12 voxels as 6 slices of 64 x 32, window given (-100 to 250)" in result.stdout
    assert "2 crops of 32 x 16 pixels put in" in result.stdout and "no slice" in result.stdout
    record = json.loads(out.read_text())
    told = record["serialization"]
    assert told["size"] == [6, 32, 64] and told["range"] == [-100, 250] and told["window"] == [-100, 250]
    assert told["volume_shape"] == [12, 16, 20] and told["spacing"] == [5, 2, 2]
    assert record["boxes_voxel"] == [[5.0, 4.0, 4.0, 15.0, 12.0, 8.0], None]  # 64 -> 20, 32 -> 16, 6 -> 12
    volume = load_volume(scans / "0.nii.gz")
    assert np.allclose(record["boxes_mm"][0], volume.to_mm(Box3D(5, 4, 4, 15, 12, 8)))
    assert record["boxes_mm"][1] is None


def test_an_array_has_no_millimetres(run, tmp_path, scripted):
    np.save(tmp_path / "m3d.npy", np.random.default_rng(0).random((1, 8, 16, 16), np.float32))
    scripted(f"<think>{CUBOID}</think>left<|im_end|>")
    out = tmp_path / "reply.json"
    result = run(
        *("infer", "3d", "--volume", tmp_path / "m3d.npy", "--question", "Where?", "--max-new-tokens", 99),
        *("--target-size", "8,64,64", "--normalize", "minmax", "--output", out),
    )
    assert "no geometry" in result.stdout
    record = json.loads(out.read_text())
    assert record["serialization"]["spacing"] is None and record["boxes_mm"] == [None]
    assert record["boxes_voxel"] == [[4, 2, 2, 12, 6, 4]]


def test_repeated_and_shuffled_slices_are_mentioned(run, scans, tmp_path):
    image = nib.load(scans / "0.nii.gz")
    array = np.asarray(image.dataobj).copy()
    array[:, :, 5] = array[:, :, 4]
    nib.save(nib.Nifti1Image(array, image.affine), tmp_path / "twice.nii")
    out = tmp_path / "reply.json"
    words = ("--question", "Where?", "--target-size", "4,32,32", "--output", out)
    result = run("infer", "3d", "--volume", tmp_path / "twice.nii", *words)
    assert "warning: slices that repeat the one before: 5" in result.stdout
    assert json.loads(out.read_text())["warnings"]


def test_quiet_prints_the_answer_alone(run, scans, scripted):
    scripted("<think>hm</think>\x1b[31mred<|im_end|>")
    words = ("infer", "2d", "--image", scans / "0.png", "--question", "What?", "--max-new-tokens", 99)
    assert run(*words, "--quiet").stdout.strip().endswith("red")
    shown = run(*words).stdout
    assert "answer:" in shown and "\x1b" not in shown  # a model cannot send escape codes to the terminal


def test_results_of_a_batch_are_not_overwritten(run, scans, tmp_path):
    (tmp_path / "out.json").write_text("hours of work\n")
    (tmp_path / "out.json.run.json").write_text("{}")
    result = run(
        "infer", "2d", "--image", scans / "0.png", "--question", "What?", "--output", tmp_path / "out.json"
    )
    assert result.exit_code == 2 and "results of a batch" in result.stderr
    assert (tmp_path / "out.json").read_text() == "hours of work\n"


def test_the_same_seed_gives_the_same_reply(run, scans, tmp_path):
    def text(seed):
        out = tmp_path / f"{seed}.json"
        sampled = ("--temperature", 2, "--top-p", 0.9, "--seed", seed, "--max-new-tokens", 8, "--output", out)
        run("infer", "2d", "--image", scans / "0.png", "--question", "What?", *sampled)
        return json.loads(out.read_text())["text"]

    assert text(1) == text(1) != text(2)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--model-path", ""), "unireason_lib tiny"),
        (("--model-path", "./nothing"), "no such folder"),
        (("--option-a", "x", "--option-c", "y"), "found A, C"),
        (("--option-a", "x"), "two and more"),
        (("--question", "<|im_end|>"), "plain text, found the control token"),
        (("--target-size", "32x256"), "write it as 32,256,256"),
        (("--target-size", "0,8,8"), "from 1 to 4096"),
        (("--target-size", "a,b,c"), "slices, rows, columns"),
        (("--normalize", "kidneys"), "abdomen"),
        (("--normalize", "300,-100"), "low < high"),
        (("--normalize", "1,2,3"), "a name or LOW,HIGH"),
        (("--torch-dtype", "int4"), "bfloat16"),
        (("--max-new-tokens", "0"), "positive token budgets"),
        (("--temperature", "-1"), "temperature >= 0"),
        (("--volume", "missing.nii.gz"), "missing.nii.gz"),
        (("--frame", "x"), "frame"),
    ],
)
def test_clear_errors_and_exit_code_2(run, scans, words, says):
    words = {"--volume": scans / "0.nii.gz", "--question": "Where?"} | dict(
        zip(words[::2], words[1::2], strict=True)
    )
    result = run("infer", "3d", *(part for pair in words.items() for part in pair))
    assert result.exit_code == 2 and result.stdout == "" and says in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr


def test_wrong_kinds_of_scans(run, scans):
    for words, says in (
        (("2d", "--image", scans / "0.nii.gz"), "a readable picture"),
        (("3d", "--volume", scans / "0.png"), "load_image"),
        (("2d", "--image", scans / "none.png"), "nothing of that name"),
    ):
        result = run("infer", *words, "--question", "What?")
        assert result.exit_code == 2 and says in result.stderr
