"""Records made by hand, for tests of what happens to records."""

from dataclasses import replace

import datasets
import numpy as np
import pytest
from PIL import Image

from unireason_lib.dataset.schema import Record, ScanReference
from unireason_lib.dataset.view import View
from unireason_lib.imaging import ProcessorFrame

FRAME = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=512 * 512)
FRAMED = FRAME.to_dict()
THOUSANDTHS = replace(FRAME, scale=1000)  # as Qwen3-VL writes boxes


@pytest.fixture(autouse=True, scope="session")
def cache_of_datasets(tmp_path_factory):
    """What ``load_dataset`` keeps goes with the tests."""
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def frame() -> ProcessorFrame:
    """The frame of the tiny checkpoint."""
    return FRAME


@pytest.fixture(scope="session")
def view_of():
    """Lays a study out for the tiny checkpoint."""
    return lambda study, size=(8, 64, 64): View(study, size=size, frame=FRAME)


def box(*coordinates) -> str:
    """Coordinates as a reply writes them."""
    return f"<|box_start|>[{','.join(map(str, coordinates))}]<|box_end|>"


def image_record(**changes) -> Record:
    """A question about one 64 x 48 image, answered with two boxes; arguments replace fields."""
    first, second = box(4, 4, 40, 30), box(30, 2, 48, 20)
    values = {
        "id": "s1/structure-localization/0",
        "study": "s1",
        "patient": "p1",
        "source": "made",
        "modality": "CT",
        "dimension": "2d",
        "family": "structure localization",
        "kind": "structure",
        "question": "Which structure fills the box [4,4,40,30]?",
        "options": {"A": "the spleen", "B": "the liver", "C": "the heart", "D": "the stomach"},
        "answer": "B",
        "reply": f"<think>Here {first}, beside {second}: the liver.</think>B. the liver",
        "image_ids": ("aa00",),
        "evidence": (("liver", (4, 4, 40, 30)), ("heart", (30, 2, 48, 20))),
        "image_size": (64, 48),
        "serialization": {"size": None, "window": "percentile", "frame": FRAMED},
        "scan": ScanReference("made:flip=xy", "s1"),
        "license": "none",
        "writer": "hand",
        "seed": 3,
        "split": "train",
        "names": ("the liver", "the heart"),
    }
    return Record(**{**values, **changes})


def volume_record(**changes) -> Record:
    """A question about six slices of 64 x 64, answered with one cuboid over three of them."""
    thought = f"It spans {box(2, 8, 1, 30, 40, 4)}: right, back."
    sides = ("Left, front", "Right, front", "Left, back", "Right, back")
    values = {
        "id": "v1/spatial-localization/0",
        "study": "v1",
        "patient": "p2",
        "dimension": "3d",
        "family": "spatial localization",
        "kind": "quadrant",
        "question": "Where does the liver lie?",
        "options": dict(zip("ABCD", sides, strict=True)),
        "answer": "D",
        "reply": f"<think>{thought}</think>D. Right, back",
        "image_ids": tuple(f"bb00-{z:03d}" for z in range(6)),
        "evidence": (("liver", (2, 8, 1, 30, 40, 4)),),
        "image_size": (64, 64),
        "serialization": {"size": [6, 64, 64], "window": [-200.0, 300.0], "frame": FRAMED},
        "split": "test",
        "names": ("the liver",),
    }
    return image_record(**{**values, **changes})


def images_of(record: Record) -> list[Image.Image]:
    """An image for every image id of a record, each with another ramp."""
    ramp = np.linspace(0, 200, np.prod(record.image_size)).reshape(record.image_size)
    planes = [(ramp + 9 * k).astype(np.uint8) for k in range(len(record.image_ids))]
    return [Image.fromarray(plane).convert("RGB") for plane in planes]
