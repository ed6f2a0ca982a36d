"""How fast fine-tuning goes: the trainer against a bare PyTorch loop, and what each part of the data path brings.

All rows train the same tiny model on the same phantoms; the bare loop gets its batches ready made, so the time that
it takes is the time in the model.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import torch
from transformers.trainer_pt_utils import LengthGroupedSampler

from unireason_lib.dataset.build import phantom_set
from unireason_lib.grounding import build_tiny, load_model
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.training.data import images_from, training_records
from unireason_lib.training.encoding import Collator, Encoded
from unireason_lib.training.examples import Examples, FeatureCollator
from unireason_lib.training.logbook import read_log
from unireason_lib.training.loss import own_token_loss
from unireason_lib.training.sft import SFTSettings, fine_tune, freeze

SHARE = 0.85
"""Of a bare loop's tokens a second that the trainer must reach; also the least share of its time in the model."""

Loss = Callable[[Any, dict[str, Any], int], torch.Tensor]


def bench_sft(steps: int = 12, batch: int = 16, repeats: int = 3) -> list[dict]:
    """Tokens a second of the trainer against a bare loop, and what kept features, like lengths, labelled logits,
    threads and bfloat16 bring.

    Args:
        steps: Optimizer steps of a measurement, one batch each.
        batch: Examples of a batch, two thirds of slices and one third of volumes.
        repeats: Measurements of each; medians are shown.
    """
    with tempfile.TemporaryDirectory() as folder:
        return list(_rows(Path(folder), steps, batch, repeats))


def _rows(folder: Path, steps: int, batch: int, repeats: int) -> Iterator[dict]:
    build_tiny(folder / "model")
    frame = ProcessorFrame(8, 2, 32 * 32, 128 * 128)
    settings = SimpleNamespace(shape=(8, 64, 64), per_family=2, prior_studies=0)
    phantom_set(folder / "data", 60, 20, frame, settings)
    count = steps * batch
    records = training_records(folder / "data", {"2d": count - count // 3, "3d": count // 3})
    pictures = images_from(folder / "data")
    _, processor = load_model(folder / "model", device="cpu")
    examples = Examples(records, pictures, processor)
    by_length = list(
        LengthGroupedSampler(
            batch, lengths=examples.lengths, generator=torch.Generator().manual_seed(0)
        )
    )
    tokens = sum(examples.lengths)

    def model() -> Any:
        loaded = load_model(folder / "model", dtype="float32", device="cpu")[0]
        freeze(loaded)
        return loaded.train()

    def ready(order: Sequence[int], features: bool) -> list[dict[str, Any]]:
        collate = FeatureCollator(processor, model()) if features else Collator(processor)
        rows: list[list[Encoded]] = [
            [examples[k] for k in order[first : first + batch]]
            for first in range(0, len(order), batch)
        ]
        return [dict(collate(part)) for part in rows]

    kept = ready(by_length, features=True)
    runs = iter(range(10**6))

    def trainer() -> float:
        out = folder / f"run-{next(runs)}"
        settings = SFTSettings(
            steps=steps,
            batch_size=batch,
            accumulation=1,
            keep_features=True,
            save_steps=10**6,
            learning_rate=1e-3,
            bf16=False,  # as the bare loop
        )
        fine_tune(model(), processor, records, pictures, out, settings)
        return read_log(out / "log.jsonl", "train_runtime")[-1]["train_runtime"]

    def bare(
        batches: Sequence[dict[str, Any]], loss: Loss = _labelled, around: Any = nullcontext
    ) -> float:
        return _bare_loop(model(), batches, loss, around)

    name = f"SFT, {tokens / steps:,.0f} tokens a step: "
    row = _compared(name + "the trainer against a bare loop", lambda: bare(kept), trainer, repeats)
    row |= {"tokens_per_s": tokens / row["ours_s"], "target": SHARE, "ok": row["ratio"] >= SHARE}
    yield row

    def ours() -> float:
        return bare(kept)

    for what, plain in (
        (
            "kept features against the tower in every step",
            lambda: bare(ready(by_length, features=False)),
        ),
        (
            "batches of like length against random ones",
            lambda: bare(ready(random.Random(0).sample(by_length, len(by_length)), features=True)),
        ),
        ("logits of labelled tokens against all", lambda: bare(kept, _every_logit)),
        ("float32 against bfloat16 autocast", lambda: bare(kept, around=_bfloat16)),
        (f"{torch.get_num_threads()} threads against 1", lambda: _with_threads(1, ours)),
    ):
        yield _compared(name + what, plain, ours, repeats)


PROCESSES = 1.6
"""Times the samples a second of one process that two must reach, with a thread each."""


def bench_processes(steps: int = 60, batch: int = 16, repeats: int = 3) -> list[dict]:
    """Samples a second of fine-tuning in two processes against one, a thread each and equal batches together.

    Both run the command ``sft`` under ``torchrun``, as on GPUs. Process start, reading and the encoding of pictures
    are not counted: what is compared is the trainer's own time.

    Args:
        steps: Optimizer steps of a measurement.
        batch: Examples of a step, of all processes together.
        repeats: Measurements of each; medians are compared.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        build_tiny(place / "model")
        settings = SimpleNamespace(shape=(8, 64, 64), per_family=2, prior_studies=0)
        phantom_set(place / "data", 80, 30, ProcessorFrame(8, 2, 32 * 32, 128 * 128), settings)
        runs = iter(range(10**6))

        def samples_per_second(processes: int) -> float:
            out = place / f"run-{next(runs)}"
            changes = {
                "steps": steps,
                "batch_size": batch // processes,
                "save_steps": 10**6,
                "probe_size": 0,
            }
            command = [
                "sft",
                "--data",
                str(place / "data"),
                "--model",
                str(place / "model"),
                "--out",
                str(out),
            ]
            command += ["--quiet"]
            for name, value in changes.items():
                command += ["--set", f"sft.{name}={value}"]
            start = [
                sys.executable,
                "-m",
                "torch.distributed.run",
                "--standalone",
                "--nproc_per_node",
            ]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
            subprocess.run(
                [*start, str(processes), "-m", "unireason_lib", *command],
                env=environment,
                check=True,
                capture_output=True,
            )
            return read_log(out / "log.jsonl", "train_runtime")[-1]["train_samples_per_second"]

        rates = [(samples_per_second(1), samples_per_second(2)) for _ in range(repeats)]
    alone, both = (median(column) for column in zip(*rates, strict=True))
    name = f"SFT, {batch} samples a step: two processes against one, a thread each"
    seconds = {"baseline_s": steps * batch / alone, "ours_s": steps * batch / both}
    ratio = both / alone
    return [
        {"name": name, **seconds, "ratio": ratio, "target": PROCESSES, "ok": ratio >= PROCESSES}
    ]


def _compared(
    name: str, plain: Callable[[], float], ours: Callable[[], float], repeats: int
) -> dict:
    times = [(plain(), ours()) for _ in range(repeats)]
    baseline, mine = (median(column) for column in zip(*times, strict=True))
    return {"name": name, "baseline_s": baseline, "ours_s": mine, "ratio": baseline / mine}


def _bare_loop(model: Any, batches: Sequence[dict[str, Any]], loss: Loss, around: Any) -> float:
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=1e-3, fused=True
    )
    began = time.perf_counter()
    for one in batches:
        with around():
            value = loss(model, one, int((one["labels"][:, 1:] != -100).sum()))
        value.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return time.perf_counter() - began


def _labelled(model: Any, batch: dict[str, Any], tokens: int) -> torch.Tensor:
    return own_token_loss(model, batch, tokens)[0]


def _every_logit(model: Any, batch: dict[str, Any], tokens: int) -> torch.Tensor:
    return model(**batch, num_items_in_batch=tokens).loss


@contextmanager
def _bfloat16() -> Iterator[None]:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        yield


def _with_threads(count: int, run: Callable[[], float]) -> float:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return run()
    finally:
        torch.set_num_threads(before)
