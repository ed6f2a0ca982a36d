"""A benchmark and a model -> a file with one JSON line for every question, from which all measures
are computed. It survives being killed, and the same call resumes it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib import __version__
from unireason_lib.answers import plain_words
from unireason_lib.boxes import Box
from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.evaluation.benchmarks import open_benchmark, slice_benchmark
from unireason_lib.evaluation.controls import CONTROLS, OTHER_CROPS, other_crops, shown_images
from unireason_lib.evaluation.items import Benchmark, Item
from unireason_lib.evaluation.table import beside, consistency
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.inference import Checkpoint, Reading, answer_stream, read_scan, scan_below
from unireason_lib.inference.batch import error_of
from unireason_lib.inference.results import complete_results, read_results, run_note
from unireason_lib.io import MAX_IMAGE_PIXELS

if TYPE_CHECKING:  # torch takes seconds, which nobody waits for who only reads results
    import pandas as pd
    from PIL import Image

    from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Settings, Trace

_GROUPED = 16  # batches whose questions are sorted by length together


def evaluate(
    benchmark: Benchmark,
    out: str | Path,
    checkpoint: Checkpoint,
    *,
    settings: Settings,
    batch_size: int = 16,
    control: str = "none",
    quiet: bool = False,
) -> Path:
    """Ask a benchmark, under one of :data:`~.controls.CONTROLS`, ``batch_size`` questions together,
    and keep the replies in the file ``out`` of JSON lines (:func:`line_of`), which is returned.

    Whatever stops it, calling it again resumes it: what is answered stays, what failed is tried
    again. The benchmark may be longer or shorter then (lines of other questions stay), and batch
    size and device others; for anything else that shapes replies a ``RequestError`` asks for
    another file.
    """
    if control not in CONTROLS or batch_size < 1:
        expected = f"a control of {', '.join(CONTROLS)} and a batch size of 1 or more"
        raise RequestError("evaluation", expected, f"{control!r} and {batch_size}", "correct it")
    if control == "no-crop":
        settings = replace(settings, max_rounds=0)
    run = {"benchmark": dict(benchmark.identity), "control": control}
    run |= {"settings": asdict(settings), "version": __version__, **checkpoint.identity()}

    def lines_of(todo: list[Item]) -> Iterator[dict[str, Any]]:
        generator = other_crops(checkpoint.generator(), control, benchmark)
        images = shown_images(benchmark, control)
        return ask_items(generator, todo, images, settings=settings, batch_size=batch_size)

    complete_results(out, run, benchmark.items, lines_of, opened=benchmark.opened, quiet=quiet)
    return Path(out)


def slice_consistency(
    benchmark: Benchmark, out: str | Path, checkpoint: Checkpoint, **how: Any
) -> pd.DataFrame | None:
    """Show each slice of the cuboids that a run (``out``) wrote alone, keep the replies beside it,
    and compare both (:func:`~.table.consistency`); None where no cuboid was written. ``how`` as for
    :func:`evaluate`."""
    try:
        slices = slice_benchmark(benchmark, read_results(out))
    except DatasetError:
        return None
    return consistency(read_results(evaluate(slices, beside(out, "slices"), checkpoint, **how)))


def ask_items(
    generator: GroundedGenerator,
    items: Sequence[Item],
    images: Callable[[Item], Sequence[Image.Image]] = lambda item: item.load(),
    *,
    settings: Settings | None = None,
    batch_size: int = 16,
) -> Iterator[dict[str, Any]]:
    """Ask items, ``batch_size`` together, and yield the line of each (:func:`line_of`), in the
    order in which they are done; ``images`` gives what is shown of an item."""

    def prepare(item: Item) -> tuple[tuple, GroundedRequest]:
        shown = list(images(item))
        width, height = shown[0].size
        frame = *generator.frame.size(height, width), len(shown)
        return (item.boxes_in(generator.frame, height, width), frame), item.request(shown)

    return answer_stream(
        generator,
        by_length(items, batch_size),
        prepare=prepare,
        line=line_of,
        failure=lambda item, error: {**item.to_dict(), **error_of(error)},
        settings=asdict(settings) if settings else {},
        batch_size=batch_size,
    )


def line_of(item: Item, layout: tuple, trace: Trace, seconds: float) -> dict[str, Any]:
    """One line of results. ``layout``: the truth boxes in the frame of the model, and the frame
    (height, width, number of images).

    The line is the item (:meth:`Item.to_dict`), the reply (``Trace.to_dict``), ``prediction``
    (letter, or the words of an open answer; None is an abstention), ``correct`` (None when the
    truth is unknown), ``truth_boxes``, ``frame``, those of :func:`overlaps` (None where the
    question states boxes, which would only be copied), ``crop_fraction`` (mean fraction of image
    or volume that a box fetched, if any did) and ``seconds``, the reply's part of its batch's.
    """
    truth, frame = layout
    prediction = trace.choice if item.options else trace.answer or None
    right = prediction == item.answer
    if not item.options and item.answer is not None:
        right = plain_words(prediction or "") == plain_words(item.answer) != ""
    fetched = [pointing.crops for pointing in trace.pointings if pointing.crops]
    pixels = sum(math.prod(crop.size) for crops in fetched for crop in crops)
    return {
        **trace.to_dict(),
        **item.to_dict(),
        "prediction": prediction,
        "correct": None if item.answer is None else right,
        "truth_boxes": [[name, [round(float(n), 2) for n in b.as_tuple()]] for name, b in truth],
        "frame": list(frame),
        **overlaps(trace.boxes, [box for _, box in truth if not item.states_boxes]),
        "crop_fraction": round(pixels / math.prod(frame) / len(fetched), 6) if fetched else None,
        "seconds": round(seconds, 4),
    }


def overlaps(written: Sequence[Box], truth: Sequence[Box]) -> dict[str, float | None]:
    """Intersection over union of written boxes with the true ones; of a rectangle and a cuboid 0.
    ``iou_first``: of the first box with the true one that it fits best; ``iou_best``: of the best
    pair; ``iou_all``: mean over the true boxes of their best. None when there is no truth."""
    if not truth:
        return {"iou_first": None, "iou_best": None, "iou_all": None}
    table = [
        [one.iou(true) if type(one) is type(true) else 0.0 for true in truth] for one in written
    ] or [[0.0] * len(truth)]
    best_of_each = [max(column) for column in zip(*table, strict=True)]
    values = {"iou_first": max(table[0]), "iou_best": max(best_of_each)}
    values["iou_all"] = sum(best_of_each) / len(truth)
    return {name: round(value, 6) for name, value in values.items()}


def by_length(items: Sequence[Item], batch_size: int) -> Iterator[Item]:
    """Items with those of like length in one batch, which is padded to its longest prompt: sorted
    some batches at a time, so that what a stopped run finished is a fair sample. Questions about
    one volume, which is slow to read, stay together."""

    def length(item: Item) -> tuple[str, int]:
        words = len(item.asked or item.question) + sum(map(len, item.options.values()))
        return item.dimension, words if item.dimension == "2d" else 0

    for first in range(0, len(items), batch_size * _GROUPED):
        yield from sorted(items[first : first + batch_size * _GROUPED], key=length)


def shown_results(
    path: str | Path, root: str | Path | None = None
) -> Callable[[Mapping[str, Any]], tuple[dict[str, Any], list[Image.Image]]]:
    """A function that gives a line of a file of results, of ``infer`` or ``evaluate``, with its
    images as the model saw them: of its benchmark, opened again (at ``root``, if that is given), or
    of the scan that the line names, which lies below ``root`` unless it was the user's own
    question. Crops that were not those of the boxes (a control) are left out of the line.
    """
    note = run_note(path)
    run, opened = note.get("run") or {}, note.get("opened") or {}
    control, root = run.get("control", "none"), root or run.get("root")

    @cache
    def benchmark() -> tuple[dict[str, Item], Callable[[Item], Sequence[Image.Image]]]:
        how = opened | {"frame": ProcessorFrame(**opened["frame"])}
        how["path"] = root or how["path"]
        made = open_benchmark(**how)
        return {item.id: item for item in made}, shown_images(made, control)

    def show(line: Mapping[str, Any]) -> tuple[dict[str, Any], list[Image.Image]]:
        about = line.get("about") or {}
        if "benchmark" in run:  # a question about a slice has a parent
            items, images_of = benchmark()
            images = images_of(items[about.get("parent", line["id"])])
            images = [images[about["slice"]]] if "parent" in about else images
        else:
            images = _scan_of(line, root)
        rows, columns, _ = line["frame"]  # 3 is bicubic, as the processor resizes
        if not 0 < rows * columns <= MAX_IMAGE_PIXELS:
            expected = f"at most {MAX_IMAGE_PIXELS:,} pixels"
            raise RequestError(line["id"], expected, f"{rows} x {columns}", "correct its frame")
        images = [i if i.size == (columns, rows) else i.resize((columns, rows), 3) for i in images]
        boxes = line["pointings"]
        if control in OTHER_CROPS:
            elsewhere = {"crops": [], "status": "not the region of the box"}
            boxes = [box | elsewhere if box["crops"] else box for box in boxes]
        return {**line, "pointings": boxes}, images

    return show


def _scan_of(line: Mapping[str, Any], root: str | Path | None) -> Sequence[Image.Image]:
    name, layout = line["image" if line["dimension"] == "2d" else "volume"], line["serialization"]
    layout = layout | ({"window": layout["range"]} if "range" in layout else {})
    how = {one.name: layout[one.name] for one in fields(Reading) if one.name in layout}
    path = scan_below(Path(root), name, absolute=True) if root else Path(name)
    return read_scan(path, line["dimension"], Reading(**how)).images
