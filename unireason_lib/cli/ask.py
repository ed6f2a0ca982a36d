"""``infer``, ``evaluate`` and ``trace``: asking a model, and looking at its replies."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import typer

from unireason_lib.errors import ModelError, RequestError, UniReasonError

from .options import named_values, printable, size_of, window_of, with_options

CHECKPOINT, SCAN = "model adapter dtype device device_map ", "size window key frame fill_nonfinite "
REPLY = "max_new_tokens max_rounds temperature top_p seed "


@with_options(
    "scan! question! option_a option_b option_c option_d out quiet " + CHECKPOINT + SCAN + REPLY
)
def one(given: Any) -> None:
    """Ask about one image or volume. Size and window are by default as the model was trained."""
    from unireason_lib.inference import Sample, ask, read_scan
    from unireason_lib.inference.results import run_file
    from unireason_lib.io import write_json
    from unireason_lib.prompts import question_text

    texts = {letter: getattr(given, f"option_{letter.lower()}") for letter in "ABCD"}
    options = {letter: text for letter, text in texts.items() if text is not None}
    question_text(given.question, options)  # refuses what cannot be asked
    checkpoint, reading, settings = _asking(given)
    if given.out and run_file(given.out).exists():
        do, found = "choose another file", "results of a batch"
        raise RequestError(given.out, "a file for one reply", found, do)
    dimension, path = given.command[:2], given.scan
    scan = read_scan(path, dimension, reading)
    sample = Sample(path.name, dimension, str(path), given.question, options)
    line = ask(checkpoint.generator(), sample, scan, settings)
    typer.echo(printable(line["answer"] if given.quiet else describe(line)))
    if given.out:
        write_json(given.out, line)


@with_options("questions! out! root limit batch_size quiet " + CHECKPOINT + SCAN + REPLY)
def batch(given: Any) -> None:
    """Ask a file of questions; one JSON line a sample. Whatever stops it, the same command goes on.
    Exit code 1: some samples failed; their lines say why."""
    from unireason_lib.inference import infer_file

    checkpoint, reading, settings = _asking(given)
    how = {"model": checkpoint, "reading": reading, "settings": settings, "root": given.root}
    how |= {"batch_size": given.batch_size, "max_samples": given.limit, "quiet": given.quiet}
    counts = infer_file(given.questions, given.out, dimension=given.command[:2], **how)
    if not given.quiet:
        typer.echo(f"{given.out}: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    if counts["failed"]:
        do = "the lines with 'error' say why, the same command tries them again"
        typer.echo(f"{counts['failed']} of {counts['asked']} samples failed: {do}", err=True)
        raise typer.Exit(1)


def _asking(given: Any) -> tuple[Any, Any, Any]:
    """The checkpoint, how scans are read (what is not given: as it was trained), and settings."""
    from unireason_lib.grounding import Settings
    from unireason_lib.inference import Checkpoint, Reading

    if not given.model:
        expected = "a checkpoint folder, or a hub id like Qwen/Qwen2.5-VL-7B-Instruct"
        raise ModelError("--model-path", expected, "nothing", "name one; data/tiny-sft ships")
    checkpoint = Checkpoint(*(getattr(given, name) for name in CHECKPOINT.split()))
    how = {"size": size_of(given.size), "window": window_of(given.window), "key": given.key}
    how |= {"volume": given.frame, "fill": given.fill_nonfinite}
    reading = Reading.like(checkpoint.serialization, dimension=given.command[:2], **how)
    return checkpoint, reading, Settings(**{name: getattr(given, name) for name in REPLY.split()})


def describe(line: Mapping[str, Any]) -> str:
    """A line of results for a terminal: how the scan was read, the reply, what each box fetched and
    where it lies on the scan, the answer."""
    layout, (rows, columns, count) = line["serialization"], line["frame"]
    shape = " x ".join(map(str, layout["shape"][::-1]))
    lines = [f"{shape} pixels or voxels; the model sees {count} of {columns} x {rows} pixels"]
    if line["dimension"] == "3d" and layout["affine"] is None:
        lines.append("no geometry in the file: axes, left and right are assumed")
    lines += [*(f"warning: {text}" for text in line.get("warnings", ())), "", line["text"], ""]
    for pointing in line["pointings"]:
        crops = [f"{width} x {height}" for width, height in pointing["crops"]]
        fetched = f"{len(crops)} crops of {crops[0]} pixels" if crops else pointing["status"]
        lines.append(f"{pointing['text']}: {fetched}")
    known = "boxes_image boxes_voxel boxes_mm answer choice stop prompt_tokens own_tokens".split()
    lines += [
        f"{key}: {line[key]}" for key in (*known, "injected_tokens", "seconds") if key in line
    ]
    return "\n".join(lines)


@with_options(
    "out! model adapter device dtype benchmark split limit size window option profile set control "
    "with_blank compare json quiet"
)
def evaluate(given: Any) -> None:
    """Ask a model a benchmark; print accuracy, boxes and baselines with intervals. Without --model:
    report on the results in --out.

    Whatever stops a run, the same command goes on with it. Exit code 1: some questions could not be
    asked; their lines say why, and the same command tries them again.
    """
    import pandas as pd

    from unireason_lib.config import load_profile
    from unireason_lib.evaluation import compare, read_table, report
    from unireason_lib.evaluation.statistics import plain
    from unireason_lib.evaluation.table import beside
    from unireason_lib.io import write_json

    profile = load_profile(given.profile, "\n".join(given.set or ()))
    if given.model:
        blank = {"blank": beside(given.out, "blank")} if given.with_blank else {}
        _ask(given, profile, blank | {given.control: given.out})
    elif not given.out.is_file():
        do = f"name one, or give results as --out, not {given.out}"
        raise RequestError("--model", "a checkpoint", "none", do)
    rows, words = report(given.out)
    typer.echo(printable(words))
    content = {"name": given.out.name, "rows": json.loads(rows.to_json(orient="records"))}
    ours = read_table(given.out).assign(seed=0)
    for value, name in (("correct", "accuracy"), ("iou_first", "IoU")):
        if given.compare and ours[value].notna().any():
            theirs = pd.concat([read_table(p).assign(seed=k) for k, p in enumerate(given.compare)])
            found = compare(ours, theirs, value)
            typer.echo(printable(f"- {found.text(name, 100 if value == 'correct' else 1)}"))
            content.setdefault("comparison", {})[value] = plain(found)
    if given.json:
        write_json(given.json, content)
    if len(failed := ours[ours["failed"] == 1]):
        first = failed.iloc[0]
        words = f"{len(failed)} questions could not be asked; first {first['id']}"
        typer.echo(printable(f"{words}: {first['error']['message']}"[:400]), err=True)
        raise typer.Exit(1)


def _ask(given: Any, profile: Any, files: Mapping[str, Path]) -> None:
    """Open the benchmark for the model's frame, and ask it into a file for each control."""
    from unireason_lib.evaluation import evaluate as ask
    from unireason_lib.evaluation import open_benchmark
    from unireason_lib.grounding import Settings
    from unireason_lib.inference import Checkpoint

    checkpoint = Checkpoint(given.model, given.adapter, given.dtype, given.device)
    how = {"frame": checkpoint.frame(), "serialization": checkpoint.serialization}
    how |= {"size": size_of(given.size), "window": window_of(given.window)}
    how |= {"split": given.split, "limit": given.limit, **named_values(given.option, "--option")}
    questions = open_benchmark(given.benchmark, **how)
    for row in questions.skipped[:5]:
        typer.echo(f"cannot be asked: {row.name}: {row.reason[:300]}", err=True)
    asking = {"settings": Settings(**profile.generation.model_dump()), "quiet": given.quiet}
    asking["batch_size"] = profile.evaluation.batch_size
    for control, path in files.items():
        ask(questions, path, checkpoint, control=control, **asking)


@with_options("results! out id root limit", limit=20)
def trace(given: Any) -> None:
    """Show results as one self-contained HTML page: images, boxes, crops and text."""
    from unireason_lib.display import trace_html
    from unireason_lib.inference import read_results
    from unireason_lib.inference.results import run_file
    from unireason_lib.io import read_json

    results, root = given.results, given.root
    wanted = (one for one in read_results(results) if not given.id or one["id"] in given.id)
    lines = list(islice(wanted, given.limit))
    if not lines:
        raise RequestError(results, "at least one result", given.id or "none", "check the ids")
    note = run_file(results)  # beside the results of a batch; a single reply names its scan itself
    made = read_json(note, RequestError) if note.is_file() else {}
    run, images = made.get("run") or {}, []
    for line in lines:
        try:
            if "benchmark" in run:
                loaded = _of_benchmark(line, made["opened"], run["control"], root)
            elif "error" not in line:
                loaded = _of_scan(line, root or run.get("root"))
            images.append(None if "error" in line else _as_seen(line, loaded))
        except (UniReasonError, OSError, LookupError, TypeError, AttributeError) as problem:
            typer.echo(f"{line['id']}: shown without images. {problem}", err=True)
            images.append(None)
    if run.get("control") == "random-crop":  # what was injected is not what the boxes say
        for box in (box for line in lines for box in line.get("pointings", ()) if box["crops"]):
            box |= {"crops": [], "status": "a random region"}
    out = given.out or results.with_suffix(".html")
    trace_html(lines, images, path=out, title=results.name)
    typer.echo(f"{out}: {len(lines)} {'replies' if lines[1:] else 'reply'}")


def _of_benchmark(line: Any, opened: Any, control: str, root: Path | None) -> Sequence[Any]:
    """Images of an item of a benchmark, which is opened as for the run."""
    items, images_of = _items(json.dumps([opened, control, root and str(root)]))
    about = line.get("about") or {}  # a question about a slice has a parent
    images = images_of(items[about.get("parent", line["id"])])
    return [images[about["slice"]]] if "parent" in about else images


@cache
def _items(key: str) -> tuple[Mapping[str, Any], Any]:
    from unireason_lib.evaluation import open_benchmark
    from unireason_lib.evaluation.controls import shown_images
    from unireason_lib.imaging import ProcessorFrame

    opened, control, root = json.loads(key)
    how = _with_tuples(opened) | ({"path": root} if root else {})
    how["frame"] = ProcessorFrame(**how["frame"])
    benchmark = open_benchmark(how.pop("name"), how.pop("path", None), **how)
    return {item.id: item for item in benchmark}, shown_images(benchmark, control)


def _of_scan(line: Any, root: Path | None) -> Sequence[Any]:
    """Images of the scan that a line names; below ``root`` unless it is the user's own question."""
    from unireason_lib.inference import Reading, read_scan, scan_below

    name, layout = line["image" if line["dimension"] == "2d" else "volume"], line["serialization"]
    names = ("size", "window", "image_size", "key", "volume", "fill")
    how = {name: layout[name] for name in names if name in layout}
    how |= {"window": layout["range"]} if "range" in layout else {}  # the values of a percentile
    path = Path(name) if root is None else scan_below(Path(root), name, absolute=True)
    return read_scan(path, line["dimension"], Reading(**_with_tuples(how))).images


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    """JSON knows lists only."""
    return {name: tuple(v) if isinstance(v, list) else v for name, v in values.items()}


def _as_seen(line: Any, images: Sequence[Any]) -> list[Any]:
    """Images in the size in which the model saw them; 3 is bicubic, as the processor resizes."""
    rows, columns, _ = line["frame"]
    return [i if i.size == (columns, rows) else i.resize((columns, rows), 3) for i in images]
