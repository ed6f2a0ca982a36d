"""Records made by hand, for tests of what happens to records."""

from dataclasses import asdict

import pytest
from PIL import Image

from unireason_lib.dataset.records import Record
from unireason_lib.dataset.view import View
from unireason_lib.imaging import ProcessorFrame

FRAME = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=512 * 512)


@pytest.fixture(scope="session")
def frame() -> ProcessorFrame:
    """The frame of the tiny checkpoint."""
    return FRAME


@pytest.fixture(scope="session")
def box():
    """Coordinates as a reply writes them."""
    return lambda *coordinates: f"<|box_start|>[{','.join(map(str, coordinates))}]<|box_end|>"


@pytest.fixture(scope="session")
def picture_record(box):
    """Makes a question about one 64 x 48 picture, answered with two boxes; arguments replace fields."""

    def make(**changes) -> Record:
        values = {
            "id": "s1/structure-localization/0",
            "study": "s1",
            "patient": "p1",
            "source": "made",
            "modality": "CT",
            "dimension": "2d",
            "family": "structure localization",
            "question": "Which structure fills the box [4,4,40,30]?",
            "options": {"A": "the spleen", "B": "the liver", "C": "the heart", "D": "the stomach"},
            "answer": "B",
            "reply": f"<think>Here {box(4, 4, 40, 30)} I see it, beside {box(30, 2, 48, 20)}.</think>B. the liver",
            "image_ids": ("aa00",),
            "evidence": (("liver", (4, 4, 40, 30)), ("heart", (30, 2, 48, 20))),
            "picture_size": (64, 48),
            "serialization": {"size": None, "window": "percentile", "frame": asdict(FRAME)},
            "license": "none",
            "writer": "hand",
            "seed": 3,
            "split": "train",
        }
        return Record(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def volume_record(box, picture_record):
    """Makes a question about six slices of 64 x 64, answered with one cuboid over three of them."""

    def make(**changes) -> Record:
        values = {
            "id": "v1/spatial-localization/0",
            "study": "v1",
            "patient": "p2",
            "dimension": "3d",
            "family": "spatial localization",
            "question": "Where does the liver lie?",
            "options": {"A": "Left, front", "B": "Right, front", "C": "Left, back", "D": "Right, back"},
            "answer": "D",
            "reply": f"<think>It spans {box(2, 8, 1, 30, 40, 4)}: low and behind.</think>D. Right, back",
            "image_ids": tuple(f"bb00-{z:03d}" for z in range(6)),
            "evidence": (("liver", (2, 8, 1, 30, 40, 4)),),
            "picture_size": (64, 64),
            "serialization": {"size": [6, 64, 64], "window": [-200.0, 300.0], "frame": asdict(FRAME)},
            "split": "test",
        }
        return picture_record(**{**values, **changes})

    return make


@pytest.fixture(scope="session")
def pictures():
    """Makes a picture for every image id of a record, each with another ramp."""

    def make(record: Record) -> dict[str, Image.Image]:
        height, width = record.picture_size
        ramp = Image.linear_gradient("L").resize((width, height))
        return {
            name: ramp.point(lambda value, k=k: (value + 17 * k) % 256).convert("RGB")
            for k, name in enumerate(record.image_ids)
        }

    return make


@pytest.fixture(scope="session")
def view_of():
    """Lays a study out for the tiny checkpoint."""
    return lambda study, size=(8, 64, 64): View(study, size=size, frame=FRAME)
