"""Records of phantoms with their images, small enough to train on in seconds."""

from dataclasses import dataclass

import pytest

from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.rationales import TemplateWriter
from unireason_lib.dataset.schema import Record, image_ids_of
from unireason_lib.dataset.sources import open_source
from unireason_lib.dataset.view import View
from unireason_lib.imaging import ProcessorFrame

FRAME = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)


@dataclass(frozen=True)
class Study:
    """Records and the images they are about."""

    records: tuple[Record, ...]
    store: dict

    def images(self, record: Record) -> list:
        return [self.store[name] for name in record.image_ids]


@pytest.fixture(scope="session")
def study() -> Study:
    """About 20 records each of single slices and of volumes of four slices."""
    records, store = [], {}
    writer = TemplateWriter()
    for dimension in ("2d", "3d"):
        for scan in open_source("phantom", dimension=dimension, count=6):
            view = View(scan, (4, 64, 64), None, FRAME)
            store.update(zip(image_ids_of(view), view.images(), strict=True))
            for question in ask(view):
                records.append(
                    Record.make(view, question, writer.write(question, view), writer="template")
                )
    return Study(tuple(records), store)


@pytest.fixture
def fresh_model(tiny_checkpoint):
    """``(model, processor)`` of the tiny checkpoint, for a test that changes it."""
    from unireason_lib.grounding import load_model

    return load_model(tiny_checkpoint, device="cpu")
