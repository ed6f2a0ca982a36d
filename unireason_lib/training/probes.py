"""Free-running answers while training: the loss on text looks fine long before the letter is right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from unireason_lib.dataset.schema import Record
from unireason_lib.evaluation.parquet import record_item
from unireason_lib.evaluation.run import ask_items
from unireason_lib.grounding import GroundedGenerator, Settings
from unireason_lib.training.examples import Images
from unireason_lib.training.forms import injects
from unireason_lib.training.logbook import Probe


def probe_records(records: Sequence[Record], size: int) -> list[Record]:
    """The first of some records, as many of slices as of volumes where there are both.

    Args:
        records: Held-out ones, in random order.
        size: How many at most.
    """
    kinds = [[one for one in records if one.dimension == d] for d in ("2d", "3d")]
    half = size // max(1, sum(map(bool, kinds)))
    return [one for kind in kinds for one in kind[:half]]


def answer_probe(
    records: Sequence[Record],
    pictures: Images,
    every: int,
    *,
    form: str = "full",
    settings: Settings | None = None,
    batch_size: int = 32,
) -> Probe:
    """A probe that asks held-out questions as an evaluation does, and reads the replies.

    Args:
        records: Questions; keep them few, they are answered in the middle of training.
        pictures: Gives the pictures of a record.
        every: Steps between measurements.
        form: In which the model is trained; only ``full`` puts regions into the reply.
        settings: How replies are generated.
        batch_size: Questions answered together.

    Returns:
        A probe named ``answers``. For each dimension: ``n``, ``right`` (share of right letters), ``iou`` (mean over the
        true boxes of the best overlap with a written one, None where nothing is to be pointed at), ``in_format``, and
        ``failed`` (questions that could not be asked; they count as wrong).
    """
    items = [record_item(record, pictures) for record in records]
    settings = settings or Settings(max_new_tokens=192)
    if not injects(form):
        settings = Settings(**{**vars(settings), "max_rounds": 0})

    def measure(model: Any, processor: Any) -> Mapping[str, Any]:
        lines = list(
            ask_items(
                GroundedGenerator(model, processor), items, settings=settings, batch_size=batch_size
            )
        )
        dimensions = sorted({line["dimension"] for line in lines})
        return {d: _summary([line for line in lines if line["dimension"] == d]) for d in dimensions}

    return Probe("answers", every, measure)


def _summary(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    overlaps = [line["iou_all"] for line in lines if line.get("iou_all") is not None]
    return {
        "n": len(lines),
        "right": mean(float(bool(line.get("correct"))) for line in lines),
        "iou": mean(overlaps) if overlaps else None,
        "in_format": mean(float(bool(line.get("in_format"))) for line in lines),
        "failed": sum("error" in line for line in lines),
    }
