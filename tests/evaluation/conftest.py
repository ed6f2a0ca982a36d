"""Lines of results that never saw a model, and a benchmark small enough to be asked in seconds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from unireason_lib.imaging import ProcessorFrame

FRAME = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)


@pytest.fixture(scope="session")
def phantoms():
    """Six 2D and six 3D questions about held-out phantoms, in volumes of four slices."""
    from unireason_lib.evaluation import open_benchmark

    return open_benchmark("phantom", limit=12, frame=FRAME, size=(4, 64, 64), prior_studies=0)


@pytest.fixture(scope="session")
def generator(tiny_model):
    """The tiny model with random weights, ready to be asked."""
    from unireason_lib.grounding import GroundedGenerator

    return GroundedGenerator(*tiny_model)


@pytest.fixture
def line() -> Callable[..., dict[str, Any]]:
    """A function that makes a line of results; ``line("q1", "p1", right=True)``."""

    def make(
        name: str, patient: str = "p", *, right: bool | None = True, **more: Any
    ) -> dict[str, Any]:
        said = {
            "id": name,
            "patient": patient,
            "source": "made",
            "dimension": "2d",
            "family": "lesion analysis",
            "kind": "texture",
            "question": "What is it?",
            "options": {"A": "liver", "B": "spleen"},
            "truth": "A",
            "prediction": None if right is None else "A" if right else "B",
            "correct": bool(right),
            "text": "",
            "answer": "",
            "boxes": [],
            "statuses": [],
            "truth_boxes": [],
            "frame": [64, 64, 1],
            "iou_first": None,
            "iou_best": None,
            "iou_all": None,
            "crop_share": None,
            "in_format": True,
            "stop": "end",
            "rounds": 1,
            "own_tokens": 10,
            "injected_tokens": 0,
            "prompt_tokens": 50,
            "seconds": 0.1,
        }
        return said | more

    return make
