"""Records of phantoms with their images, small enough to train on in seconds."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from unireason_lib.config import load_profile
from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.rationales import TemplateWriter
from unireason_lib.dataset.schema import Record, image_ids_of
from unireason_lib.dataset.sources import SourceSpec, open_source
from unireason_lib.dataset.view import View
from unireason_lib.imaging import ProcessorFrame

FRAME = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)

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


@dataclass(frozen=True)
class Study:
    """Records and the images they are about."""

    records: tuple[Record, ...]
    store: dict

    def images(self, record: Record) -> list:
        return [self.store[name] for name in record.image_ids]

    def with_boxes(self, dimension: str, boxes: int) -> Record:
        """A record with so many boxes."""
        fits = (r for r in self.records if r.dimension == dimension and len(r.boxes) == boxes)
        return next(fits)


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
    from unireason_lib.grounding import load_model

    return load_model(tiny_checkpoint, device="cpu")


def launch(program, folder, *arguments):
    """Run a program in two processes that meet."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "train.py").write_text(program, encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    command += ["--master_port", str(port), str(folder / "train.py"), *map(str, arguments)]
    environment = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path])}
    environment |= {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr[-3000:]
