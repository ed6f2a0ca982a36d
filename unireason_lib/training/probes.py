"""Free-running answers while training: the loss on text looks fine long before the letter is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from unireason_lib.answers import extract_choice
from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.dataset.records import Record
from unireason_lib.grounding import GroundedGenerator, GroundedRequest
from unireason_lib.training.examples import Pictures
from unireason_lib.training.forms import injects
from unireason_lib.training.logbook import Probe


def answer_probe(
    records: Sequence[Record],
    pictures: Pictures,
    every: int,
    *,
    form: str = "full",
    max_new_tokens: int = 192,
    batch_size: int = 32,
) -> Probe:
    """A probe that asks held-out questions and reads the replies.

    Args:
        records: Questions; keep them few, they are answered in the middle of training.
        pictures: Gives the pictures of a record.
        every: Steps between measurements.
        form: In which the model is trained; only ``full`` puts regions into the reply.
        max_new_tokens, batch_size: Of the generation.

    Returns:
        A probe named ``answers``. For each dimension: ``right`` (share of right letters), ``iou`` (mean of the best
        overlap of a written box with each true one, for questions that have evidence) and ``n``.
    """
    shown = [tuple(pictures(record)) for record in records]

    def measure(model: Any, processor: Any) -> Mapping[str, Any]:
        generator = GroundedGenerator(model, processor)
        rounds = 10 if injects(form) else 0
        found: dict[str, Any] = {}
        for dimension in ("2d", "3d"):
            mine = [k for k, record in enumerate(records) if record.dimension == dimension]
            if not mine:
                continue
            requests = [request_of(records[k], shown[k]) for k in mine]
            traces = generator.generate(
                requests, max_new_tokens=max_new_tokens, max_rounds=rounds, batch_size=batch_size
            )
            right = [
                extract_choice(t.text, records[k].options) == records[k].answer
                for k, t in zip(mine, traces, strict=True)
            ]
            ious = [
                _overlap(records[k], t.boxes) for k, t in zip(mine, traces, strict=True) if records[k].boxes
            ]
            found[dimension] = {
                "right": sum(right) / len(right),
                "iou": sum(ious) / len(ious) if ious else None,
                "n": len(mine),
            }
        return found

    return Probe("answers", every, measure)


def request_of(record: Record, pictures: Sequence[Any]) -> GroundedRequest:
    """A record's question as it is put to a model."""
    return GroundedRequest(record.question, pictures, record.options, record.dimension, record.id)


def _overlap(record: Record, written: Sequence[Box2D | Box3D]) -> float:
    """Mean over the true boxes of the best intersection over union with a written one of the same kind."""
    best = [
        max((box.iou(true) for box in written if type(box) is type(true)), default=0.0)
        for true in record.boxes
    ]
    return sum(best) / len(best)
