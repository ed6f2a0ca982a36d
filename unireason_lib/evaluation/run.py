"""A benchmark and a model -> a file with one JSON line for every question.

The file is the result: metrics and reports are computed from it, at any time and without a model. It survives being
killed, and the same call goes on with it (see :mod:`unireason_lib.inference.results`).

**Controls** ask whether the model looks. A model that answers as well when its pictures are blanked has learnt the
answers of the questions; one that answers as well when its crops come from a random place does not use its crops.

================  ====================================================================================================
``none``          the pictures as they are
``blank``         all pictures mid grey: the blind baseline
``noise``         all pictures random pixels
``other``         the pictures of another patient, in the same size
``random-crop``   the pictures as they are, but a box fetches a random region of its size that overlaps it little
``no-crop``       the pictures as they are, and boxes fetch nothing
================  ====================================================================================================
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from unireason_lib import __version__
from unireason_lib.boxes import Box
from unireason_lib.errors import RequestError
from unireason_lib.evaluation.items import Benchmark, Item
from unireason_lib.evaluation.metrics import crop_share, overlaps, same_words
from unireason_lib.grounding import GroundedGenerator, Settings, Trace
from unireason_lib.grounding.elsewhere import RandomCrops
from unireason_lib.grounding.trace import GroundedRequest
from unireason_lib.inference import Checkpoint, ResultsFile, answer_stream, write_all
from unireason_lib.inference.batch import error_of

if TYPE_CHECKING:
    from PIL import Image

CONTROLS = ("none", "blank", "noise", "other", "random-crop", "no-crop")

_GROUPED = 16  # batches whose questions are sorted by length together


def evaluate(
    benchmark: Benchmark,
    out: str | Path,
    model: Checkpoint | GroundedGenerator,
    *,
    settings: Settings | None = None,
    batch_size: int = 16,
    control: str = "none",
    quiet: bool = False,
) -> Path:
    """Ask a benchmark and keep the replies.

    Whatever stops it, calling it again goes on: what is answered stays, what failed is tried again. The benchmark
    may be longer then, and batch size and device others; anything else that shapes replies may not change.

    Args:
        benchmark: The questions.
        out: File of JSON lines.
        model: What to load, once it is known that something is left to do; or a generator at hand.
        settings: How replies are generated.
        batch_size: Questions generated together.
        control: One of :data:`CONTROLS`.
        quiet: No progress bar.

    Returns:
        The file.

    Raises:
        RequestError: An unknown control or batch size, or the file belongs to another run.
    """
    if control not in CONTROLS or batch_size < 1:
        raise RequestError(
            "evaluation",
            f"a control of {', '.join(CONTROLS)} and a batch size of 1 or more",
            f"{control!r} and {batch_size}",
            "correct it",
        )
    settings = settings or Settings()
    if control == "no-crop":
        settings = replace(settings, max_rounds=0)
    run = {
        "benchmark": dict(benchmark.identity),
        "control": control,
        "settings": asdict(settings),
        "version": __version__,
        **(
            model.identity()
            if isinstance(model, Checkpoint)
            else {"model": model.model.name_or_path}
        ),
    }
    names = [item.id for item in benchmark]
    with ResultsFile(out, run, retry=names, opened=benchmark.opened) as results:
        todo = [item for item in benchmark if item.id not in results.done]
        if todo:
            generator = model.generator() if isinstance(model, Checkpoint) else model
            if control == "random-crop":
                generator = RandomCrops(generator.model, generator.processor, generator.reuse_cache)
            pictures = shown_pictures(benchmark, control)
            lines = ask_items(generator, todo, pictures, settings=settings, batch_size=batch_size)
            write_all(lines, results, len(benchmark), len(benchmark) - len(todo), quiet)
    return Path(out)


def ask_items(
    generator: GroundedGenerator,
    items: Sequence[Item],
    pictures: Callable[[Item], Sequence[Image.Image]] = lambda item: item.load(),
    *,
    settings: Settings | None = None,
    batch_size: int = 16,
) -> Iterator[dict[str, Any]]:
    """Ask items; yields a line for each, in the order in which they are done.

    Args:
        generator: The model.
        items: What is asked.
        pictures: Gives the pictures that are shown.
        settings: How replies are generated.
        batch_size: Items generated together. Batches are filled with items of like length.
    """

    def prepare(item: Item) -> tuple[Seen, GroundedRequest]:
        shown = list(pictures(item))
        width, height = shown[0].size
        frame_height, frame_width = generator.frame.size(height, width)
        truth = item.boxes_in(generator.frame, height, width)
        return (truth, (frame_height, frame_width, len(shown))), item.request(shown)

    def failure(item: Item, error: Exception) -> dict[str, Any]:
        return {**item.to_dict(), **error_of(error)}

    return answer_stream(
        generator,
        by_length(items, batch_size),
        prepare=prepare,
        line=line_of,
        failure=failure,
        settings=asdict(settings or Settings()),
        batch_size=batch_size,
    )


Seen = tuple[tuple[tuple[str, Box], ...], tuple[int, int, int]]
"""The truth boxes in the frame of the model, and the frame: height, width, pictures."""


def line_of(item: Item, seen: Seen, trace: Trace, seconds: float) -> dict[str, Any]:
    """One line of results.

    Args:
        item: What was asked.
        seen: Truth boxes and frame.
        trace: The reply.
        seconds: Time that it took, as a share of its batch.

    Returns:
        The item (see :meth:`Item.to_dict`), the reply (see :meth:`unireason_lib.grounding.Trace.to_dict`) and:
        ``prediction`` (letter, or the words of an open answer; None is an abstention), ``correct`` (None when the truth
        is unknown), ``truth_boxes``, ``frame`` (height, width, pictures), ``iou_first``, ``iou_best``, ``iou_all`` (see
        :func:`unireason_lib.evaluation.metrics.overlaps`; None without truth), ``crop_share``, ``seconds``.
    """
    truth, frame = seen
    prediction = trace.choice if item.options else trace.answer or None
    correct = None
    if item.answer is not None:
        right = (
            prediction == item.answer if item.options else same_words(prediction or "", item.answer)
        )
        correct = bool(right)
    return {
        **trace.to_dict(),
        **item.to_dict(),
        "prediction": prediction,
        "correct": correct,
        "truth_boxes": [
            [name, [round(float(n), 2) for n in box.as_tuple()]] for name, box in truth
        ],
        "frame": list(frame),
        **overlaps(trace.boxes, [box for _, box in truth]),
        "crop_share": crop_share(
            [crop.size for p in trace.pointings for crop in p.crops], _injections(trace), frame
        ),
        "seconds": round(seconds, 4),
    }


def _injections(trace: Trace) -> int:
    return sum(bool(pointing.crops) for pointing in trace.pointings)


def by_length(items: Sequence[Item], batch_size: int) -> Iterator[Item]:
    """Items in an order that puts those of like length into one batch.

    A batch is padded to its longest prompt, so a volume in it makes every picture pay. Items are sorted within a
    stretch of some batches only: what is finished when a run is stopped then is a fair sample of the benchmark. The
    words of a question about a volume matter little beside its slices; there the order stays, and questions about one
    scan, which is slow to read, come together.
    """

    def length(item: Item) -> int:
        words = len(item.asked or item.question) + sum(map(len, item.options.values()))
        return words if item.dimension == "2d" else 0

    for stretch in _alternating(items, batch_size):
        yield from sorted(stretch, key=length)


def _alternating(items: Sequence[Item], batch_size: int) -> Iterator[list[Item]]:
    """Stretches of whole batches of one dimension, 2D and 3D by turns."""
    parts = {
        d: [item for item in items if item.dimension == d]
        for d in sorted({i.dimension for i in items})
    }
    step = batch_size * _GROUPED
    for first in range(0, max((len(part) for part in parts.values()), default=0), step):
        for part in parts.values():
            yield part[first : first + step]


# -- controls -------------------------------------------------------------------------------------------------------


def shown_pictures(benchmark: Benchmark, control: str) -> Callable[[Item], Sequence[Image.Image]]:
    """What a model is shown of an item under a control."""
    if control == "blank":
        return lambda item: [_filled(picture, None) for picture in item.load()]
    if control == "noise":
        return lambda item: [
            _filled(picture, zlib.crc32(f"{item.id}/{number}".encode()))
            for number, picture in enumerate(item.load())
        ]
    if control == "other":
        partner = partners(benchmark.items)
        return lambda item: fitted(partner[item.id].load(), item.load())
    return lambda item: item.load()


def _filled(picture: Image.Image, seed: int | None) -> Image.Image:
    """A picture of the same size in mid grey, or of random grey pixels."""
    from PIL import Image

    if seed is None:
        return Image.new("RGB", picture.size, (128, 128, 128))
    pixels = np.random.default_rng(seed).integers(0, 256, picture.size[::-1], dtype=np.uint8)
    return Image.fromarray(pixels).convert("RGB")


def partners(items: Sequence[Item]) -> dict[str, Item]:
    """For each item one of another patient and the same dimension: the last one before it, for the first patient the
    first one after. A longer benchmark gives the earlier items the same partners.

    Raises:
        RequestError: A dimension has one patient only.
    """
    found: dict[str, Item] = {}
    for dimension in {item.dimension for item in items}:
        mine = [item for item in items if item.dimension == dimension]
        if len({item.patient for item in mine}) < 2:
            raise RequestError(
                "control 'other'",
                f"two patients or more in {dimension}",
                "one",
                "ask a longer benchmark, or take another control",
            )
        first_other = next(item for item in mine if item.patient != mine[0].patient)
        before, current = None, mine[0]  # the last item of another patient, the one just seen
        for item in mine:
            if item.patient != current.patient:
                before = current
            found[item.id] = first_other if before is None else before
            current = item
    return found


def fitted(pictures: Sequence[Image.Image], like: Sequence[Image.Image]) -> list[Image.Image]:
    """Pictures in the number and sizes of others."""
    rows = [round((k + 0.5) * len(pictures) / len(like) - 0.5) for k in range(len(like))]
    chosen = [pictures[min(max(row, 0), len(pictures) - 1)] for row in rows]
    return [
        one if one.size == other.size else one.convert("RGB").resize(other.size)
        for one, other in zip(chosen, like, strict=True)
    ]
