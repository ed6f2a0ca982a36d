"""Records of phantoms with their images, small enough to train on in seconds."""

import os
import signal
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from transformers import TrainerCallback

from unireason_lib.boxes import states_boxes
from unireason_lib.config import load_profile
from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.sources import SourceSpec
from unireason_lib.grounding import build_tiny, load_model
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.training.data import Images, images_from, training_records

FRAME = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)

SMALL = {"hidden": 64, "layers": 2, "vision_hidden": 32, "vision_layers": 2}
FAMILIES = pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
"""For a test of what must hold for both, with the fixture ``families``."""

QUICK = {
    "sft.max_steps": 4,
    "sft.learning_rate": 1e-3,
    "sft.gradient_accumulation_steps": 2,
    "sft.bf16": False,
    "grounding.muon_learning_rate": 0.0,
}


def quick(**changes):
    """The profile smoke for a run of four steps; ``sft__seed=3`` changes ``sft.seed``."""
    changed = {name.replace("__", "."): value for name, value in changes.items()}
    return load_profile("smoke", QUICK | changed)


class At(TrainerCallback):
    """Does something at the end of a step, before it is logged and saved."""

    def __init__(self, step, act):
        self.step, self.act = step, act

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.act()


def interrupt():
    os.kill(os.getpid(), signal.SIGINT)


def crash():
    raise ZeroDivisionError


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory):
    """A smaller one than elsewhere: what is tested here are long sequences of steps."""
    return build_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny", **SMALL)


@dataclass(frozen=True)
class Study:
    """Records, and what gives the images that one is about."""

    records: tuple[Record, ...]
    images: Images

    def with_boxes(self, dimension: str, boxes: int) -> Record:
        """A record with so many boxes."""
        fits = (r for r in self.records if r.dimension == dimension and len(r.boxes) == boxes)
        return next(fits)


@pytest.fixture(scope="session")
def study(data) -> Study:
    """20 records each of single slices and of volumes of four slices."""
    records = training_records(data, {"2d": 20, "3d": 20})
    return Study(tuple(sorted(records, key=lambda one: one.dimension)), images_from(data))


@pytest.fixture(scope="session")
def families(tiny_checkpoint, study, tmp_path_factory) -> dict[str, tuple[Path, Study]]:
    """Family -> its tiny checkpoint, and the same records with boxes as it writes them; for
    Qwen3-VL without those whose question states boxes."""
    folder = tmp_path_factory.mktemp("checkpoint") / "qwen3"
    build_tiny(folder, "qwen3_vl", **SMALL, patch_size=FRAME.patch_size)
    records, frame = study.records, replace(FRAME, scale=1000)
    records = [r.written_for(frame, 64, 64) for r in records if not states_boxes(r.user_text)]
    written = Study(tuple(records), study.images)
    return {"qwen2_5_vl": (tiny_checkpoint, study), "qwen3_vl": (folder, written)}


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A small data set of slices and volumes."""
    sources = ({"dimension": "2d", "count": 16}, {"dimension": "3d", "count": 8, "start": 500})
    config = BuildConfig(
        tuple(SourceSpec("phantom", None, options) for options in sources),
        size=(4, 64, 64),
        frame=FRAME,
        prior_studies=0,
        fractions={"train": 0.6, "val": 0.4, "test": 0.0},
    )
    return build(config, tmp_path_factory.mktemp("data") / "set").folder


@pytest.fixture
def fresh_model(tiny_checkpoint):
    """``(model, processor)`` of the tiny checkpoint, for a test that changes it."""
    return load_model(tiny_checkpoint, device="cpu")
