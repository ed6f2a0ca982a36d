"""Does the planner's arithmetic hold? Times that it foretells against times that are measured, on this machine."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

from unireason_lib.dataset.build import phantom_set
from unireason_lib.grounding import build_tiny, load_model
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.planning import Sample, Work, shape_of
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.examples import Examples
from unireason_lib.training.logbook import read_log
from unireason_lib.training.sft import SFTSettings, fine_tune

WITHIN = 0.3
"""Share by which a foretold time may be off."""


def bench_plan(steps: int = 60, batch: int = 16, repeats: int = 3) -> list[dict]:
    """Seconds of fine-tuning that operations foretell, against those that it takes.

    A CPU has no data sheet to trust, so its speed is taken from one kind of work, fine-tuning on slices, as operations
    a second; what is foretold with it is other work: volumes, and a mixture of both. The operations are those of
    :mod:`unireason_lib.planning.work`, of the samples as they are.

    Args:
        steps: Optimizer steps of a measurement.
        batch: Examples of a step.
        repeats: Measurements of each; medians are compared.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build_tiny(place / "model")
        shape = shape_of(place / "model")
        settings = SimpleNamespace(shape=(8, 64, 64), per_family=2, prior_studies=0)
        phantom_set(place / "data", 80, 40, ProcessorFrame(8, 2, 32 * 32, 128 * 128), settings)
        pictures, count = images_from(place / "data"), steps * batch
        runs = iter(range(10**6))

        def measured(part: str) -> tuple[float, float]:
            """Operations, and seconds of the trainer."""
            counts = {
                "slices": {"2d": count},
                "volumes": {"3d": count},
                "both": {"2d": count // 2, "3d": count // 2},
            }
            records = training_records(place / "data", counts[part])
            model, processor = load_model(place / "model", dtype="float32", device="cpu")
            operations = _operations(shape, Examples(records, pictures, processor).kept)
            out = place / f"run-{next(runs)}"
            how = SFTSettings(
                steps=steps, batch_size=batch, accumulation=1, keep_features=True, save_steps=10**6
            )
            fine_tune(model, processor, records, pictures, out, how)
            return operations, read_log(out / "log.jsonl", "train_runtime")[-1]["train_runtime"]

        found: dict[str, list[tuple[float, float]]] = {"slices": [], "volumes": [], "both": []}
        for _ in range(repeats):
            for part, times in found.items():
                times.append(measured(part))
    speed = median(operations / seconds for operations, seconds in found["slices"])
    rows = []
    for part in ("volumes", "both"):
        foretold = median(operations / speed for operations, _ in found[part])
        taken = median(seconds for _, seconds in found[part])
        ratio = foretold / taken
        rows.append(
            {
                "name": f"plan, {count} examples of {part} from the speed with slices: foretold against measured",
                "baseline_s": foretold,
                "ours_s": taken,
                "ratio": ratio,
                "within": WITHIN,
                "ok": abs(ratio - 1) <= WITHIN,
            }
        )
    return rows


def _operations(shape: Any, examples: Sequence[Any]) -> float:
    """Of one pass over examples whose pictures were encoded before."""
    work = Work(shape, features_kept=True)
    total = 0.0
    for one in examples:
        own = int(one.own.sum())
        total += work.learning(Sample("2d", (), (), len(one) - own, own, 0))
    return total
