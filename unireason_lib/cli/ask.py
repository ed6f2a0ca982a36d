"""``infer``, ``evaluate`` and ``trace``: asking a model, and looking at its replies."""

from collections.abc import Mapping
from itertools import chain
from typing import Any

import typer

from unireason_lib.answers import printable
from unireason_lib.errors import RequestError

from .options import settings_of, values, with_options

CHECKPOINT, SCAN = "adapter dtype device device_map", "size window key volume fill"
REPLY = "max_new_tokens max_rounds temperature top_p seed"
ASKING = f"model! {CHECKPOINT} {SCAN} {REPLY}"


@with_options(f"scan! question! option_a option_b option_c option_d out quiet {ASKING}")
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
    typer.echo(printable(line["answer"] if given.quiet else _described(line)))
    if given.out:
        write_json(given.out, line)


@with_options(f"questions! out! root limit batch_size quiet {ASKING}")
def batch(given: Any) -> None:
    """Ask a file of questions; one JSON line a sample. Whatever stops it, the same command
    resumes it. Exit code 1: some samples failed; their lines say why."""
    from unireason_lib.inference import infer_file

    checkpoint, reading, settings = _asking(given)
    how = {"model": checkpoint, "reading": reading, "settings": settings}
    how |= {"dimension": given.command[:2], "max_samples": given.limit}
    how |= values(given, "root batch_size quiet")
    counts = infer_file(given.questions, given.out, **how)
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

    checkpoint = Checkpoint(given.model, **values(given, CHECKPOINT))
    trained, scan = checkpoint.serialization, values(given, SCAN)
    reading = Reading.like(trained, dimension=given.command[:2], **scan)
    return checkpoint, reading, Settings(**values(given, REPLY))


def _described(line: Mapping[str, Any]) -> str:
    """A line of results for a terminal: how the scan was read, the reply, what each box fetched and
    where it lies on the scan, the answer."""
    layout, (rows, columns, count) = line["serialization"], line["frame"]
    shape = " x ".join(map(str, layout["shape"][::-1]))
    lines = [f"{shape} pixels or voxels; the model sees {count} of {columns} x {rows} pixels"]
    if line["dimension"] == "3d" and layout["affine"] is None:
        lines.append("no geometry in the file: axes, left and right are assumed")
    lines += [*(f"warning: {text}" for text in line.get("warnings", ())), "", line["text"], ""]
    for box in line["pointings"]:
        crops = [f"{width} x {height}" for width, height in box["crops"]]
        fetched = f"{len(crops)} crops of {crops[0]} pixels" if crops else box["status"]
        lines.append(f"{box['text']}: {fetched}")
    if "other_syntax" in line:
        lines.append(f"points in another syntax (JSON), fetch nothing: {line['other_syntax']}")
    known = "boxes_image boxes_voxel boxes_mm answer choice stop own_tokens injected_tokens seconds"
    return "\n".join([*lines, *(f"{key}: {line[key]}" for key in known.split() if key in line)])


@with_options(
    "out! model adapter device dtype benchmark split limit size window option profile set control "
    "with_blank compare quiet"
)
def evaluate(given: Any) -> None:
    """Ask a model a benchmark; print accuracy, boxes and baselines with intervals. Without --model:
    report on the results in --out.

    Whatever stops a run, the same command resumes it. Exit code 1: some questions could not be
    asked; their lines say why, and the same command tries them again.
    """
    import pandas as pd

    from unireason_lib.evaluation import compare, read_table, report

    if given.model:
        _ask_benchmark(given)
    elif not given.out.is_file():
        do = f"name one, or give results as --out, not {given.out}"
        raise RequestError("--model", "a checkpoint", "none", do)
    typer.echo(printable(report(given.out)[1]))
    ours = read_table(given.out)
    if given.compare:
        theirs = pd.concat([read_table(p).assign(seed=k) for k, p in enumerate(given.compare)])
        typer.echo(printable(f"- {compare(ours, theirs).text()}"))
        if ours["iou_first"].notna().any():
            typer.echo(printable(f"- {compare(ours, theirs, 'iou_first').text('IoU', 1)}"))
    if len(failed := ours[ours["failed"] == 1]):
        first = failed.iloc[0]
        words = f"{len(failed)} questions could not be asked; first {first['id']}"
        typer.echo(printable(f"{words}: {first['error']['message']}"[:400]), err=True)
        raise typer.Exit(1)


def _ask_benchmark(given: Any) -> None:
    """Open the benchmark for the model's frame, and ask it, with blank images first if wanted."""
    from unireason_lib.evaluation import evaluate as ask
    from unireason_lib.evaluation import open_benchmark
    from unireason_lib.evaluation.table import beside
    from unireason_lib.grounding import Settings
    from unireason_lib.inference import Checkpoint

    profile = settings_of(given)
    checkpoint = Checkpoint(given.model, given.adapter, given.dtype, given.device)
    how = {"frame": checkpoint.frame(), "serialization": checkpoint.serialization}
    how |= values(given, "size window split limit") | given.option
    questions = open_benchmark(given.benchmark, **how)
    for row in questions.skipped[:5]:
        typer.echo(f"cannot be asked: {row.name}: {row.reason[:300]}", err=True)
    settings, size = Settings(**profile.generation.model_dump()), profile.evaluation.batch_size
    asking = {"settings": settings, "batch_size": size, "quiet": given.quiet}
    if given.with_blank:
        ask(questions, beside(given.out, "blank"), checkpoint, control="blank", **asking)
    ask(questions, given.out, checkpoint, control=given.control, **asking)


@with_options("results! out id root limit", limit=200)
def trace(given: Any) -> None:
    """Show results as one self-contained HTML page: images, boxes, crops and text, with filters.
    Of several files the replies to each question stand side by side."""
    from unireason_lib.display import TracePage
    from unireason_lib.evaluation import shown_results
    from unireason_lib.inference import read_results
    from unireason_lib.io import write_whole

    files = {path: {one["id"]: one for one in read_results(path)} for path in given.results}
    known = dict.fromkeys(chain.from_iterable(files.values()))
    wanted = [one for one in known if not given.id or one in given.id]
    if not wanted:
        do, found = "check the ids", given.id or "none"
        raise RequestError(given.results[0], "at least one result", found, do)
    names = {path.stem: path for path in files}
    names = names if len(names) == len(files) else {str(path): path for path in files}
    page = TracePage(" and ".join(path.name for path in files))
    for run, path in names.items():
        show, lines = shown_results(path, given.root), files[path]
        for line in (lines[one] for one in wanted[: given.limit] if one in lines):
            try:
                page.add(*((line,) if "error" in line else show(line)), run=run)
            except (OSError, LookupError, TypeError, ValueError, AttributeError) as problem:
                typer.echo(f"{line['id']}: shown without images. {problem}", err=True)
                page.add(line, run=run)
    out = given.out or given.results[0].with_suffix(".html")
    write_whole(out, page.html())
    size, count = out.stat().st_size / 1000, len(wanted[: given.limit])
    more = f" of {len(wanted)}; --limit sets how many" if count < len(wanted) else ""
    typer.echo(f"{out}: {size:,.0f} kB, {count} {'replies' if count > 1 else 'reply'}{more}")
    if page.notice:
        typer.echo(f"{page.notice} --limit and --id choose fewer replies.", err=True)
