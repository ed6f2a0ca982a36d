"""Lines of results that never saw a model, and a benchmark small enough to be asked in seconds."""

from types import SimpleNamespace

import pytest

from unireason_lib.evaluation import open_benchmark
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.inference import complete_results

LINE = {"dimension": "2d", "family": "lesion analysis", "kind": "texture", "boxes": []}
LINE |= {"options": {"A": "liver", "B": "spleen"}, "frame": [64, 64, 1], "seconds": 0.1}
LINE |= {"rounds": 1, "own_tokens": 10, "injected_tokens": 0, "text": "", "in_format": True}
LINE |= dict.fromkeys(("iou_first", "iou_best", "iou_all", "crop_fraction"))
LINE |= {"question": "What is it?", "truth": "A"}


@pytest.fixture(scope="session")
def frame():
    """That of the tiny model."""
    return ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)


@pytest.fixture(scope="session")
def phantoms(frame):
    """Six 2D and six 3D questions about held-out phantoms, in volumes of four slices."""
    return open_benchmark("phantom", limit=12, frame=frame, size=(4, 64, 64), prior_studies=0)


@pytest.fixture
def scripted(scripted, checkpoint):
    """A function that makes the model write what ``parts_of(request)`` gives, in every reply."""

    def write(parts_of):
        scripted(lambda request: (*parts_of(request), "<|im_end|>"))
        return checkpoint.generator()

    return write


@pytest.fixture
def line():
    """A function that makes a line of results; ``line("q1", "p1", right=True)``."""

    def make(name, patient="p", right=True, **more):
        prediction = None if right is None else "A" if right else "B"
        reply = {"id": name, "patient": patient, "prediction": prediction, "correct": bool(right)}
        return LINE | reply | more

    return make


@pytest.fixture
def failed(line):
    """A function that makes the line of a question that could not be asked."""

    def make(name, patient="p"):
        asked = ("id", "patient", "dimension", "family", "kind", "question", "options", "truth")
        kept = {key: value for key, value in line(name, patient).items() if key in asked}
        return kept | {"error": {"type": "ScanError", "message": "scan.png: not there"}}

    return make


@pytest.fixture
def write(tmp_path):
    """A function that writes a file of results; ``write("r.jsonl", lines, control="blank")``."""

    def to_file(name, lines, **run):
        run = {"benchmark": {"name": "made"}, "control": "none"} | run
        questions = [SimpleNamespace(id=one["id"]) for one in lines]
        complete_results(tmp_path / name, run, questions, lambda todo: lines, quiet=True)
        return tmp_path / name

    return to_file
