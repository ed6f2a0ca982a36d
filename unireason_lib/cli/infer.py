"""``infer``: ask a model about an image, a volume, or a file of questions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from unireason_lib.cli.options import (
    ImageOptions,
    ModelOptions,
    ReplyOptions,
    VolumeOptions,
    grouped,
    printable,
    warnings_as_lines,
)
from unireason_lib.errors import RequestError
from unireason_lib.prompts import LETTERS, question_text

infer = typer.Typer(
    no_args_is_help=True, help="Ask a model about an image, a volume, or a file of questions."
)
_ask = partial(typer.Option, rich_help_panel="Question")
_table = partial(typer.Option, rich_help_panel="Questions")
_out = partial(typer.Option, rich_help_panel="Output")


@dataclass(frozen=True)
class QuestionOptions:
    """One question."""

    question: Annotated[str, _ask(help="The question.")]
    option_a: Annotated[
        str | None, _ask(help="Text of option A; leave all out for a free answer.")
    ] = None
    option_b: Annotated[str | None, _ask(help="Text of option B.")] = None
    option_c: Annotated[str | None, _ask(help="Text of option C.")] = None
    option_d: Annotated[str | None, _ask(help="Text of option D.")] = None
    output: Annotated[Path | None, _out(help="Also write the reply as JSON.")] = None
    quiet: Annotated[bool, _out("--quiet", help="Print only the answer.")] = False

    def options(self) -> dict[str, str]:
        """Letter -> text of those that were given, checked."""
        texts = (self.option_a, self.option_b, self.option_c, self.option_d)
        options = {
            letter: text for letter, text in zip(LETTERS, texts, strict=False) if text is not None
        }
        question_text(self.question, options)
        return options


@dataclass(frozen=True)
class TableOptions:
    """A file of questions and the file of their results."""

    output: Annotated[
        Path,
        _out(
            help="Results, one JSON line a sample. If it exists, the run goes on; what failed is tried again."
        ),
    ]
    input: Annotated[
        Path | None, _table(help="Questions: .jsonl, .json (a list of objects) or .csv.")
    ] = None
    input_csv: Annotated[
        Path | None, _table(help="Questions: a table, with the columns of M3D-VQA or like them.")
    ] = None
    root: Annotated[
        Path | None,
        _table(
            "--image-root",
            "--data-root",
            help="Folder of the scans; default: that of the questions. Nothing outside it is read.",
        ),
    ] = None
    max_samples: Annotated[int | None, _table(help="Only the first so many rows.")] = None
    batch_size: Annotated[int, _table(help="Questions generated together.")] = 1
    quiet: Annotated[bool, _out("--quiet", help="No progress bar and no summary.")] = False

    def questions(self) -> Path:
        """The file that was given.

        Raises:
            RequestError: None, or two.
        """
        if (self.input is None) == (self.input_csv is None):
            found = "neither" if self.input is None else "both"
            expected = "--input or --input-csv"
            raise RequestError("questions", expected, found, "give one of them")
        return self.input or self.input_csv


@infer.command("2d")
@grouped
def infer_2d(
    image: Annotated[Path, _ask(help="PNG, JPEG, BMP, TIFF, WebP or a DICOM file with one frame.")],
    question: QuestionOptions,
    model: ModelOptions,
    scan: ImageOptions,
    reply: ReplyOptions,
) -> None:
    """Ask about one image."""
    _one("2d", image, question, model, scan, reply)


@infer.command("3d")
@grouped
def infer_3d(
    volume: Annotated[Path, _ask(help="NIfTI, DICOM folder or file, .npy or .npz.")],
    question: QuestionOptions,
    model: ModelOptions,
    scan: VolumeOptions,
    reply: ReplyOptions,
) -> None:
    """Ask about one volume, which the model sees as axial slices from foot to head."""
    _one("3d", volume, question, model, scan, reply)


@infer.command("2d-batch")
@grouped
def infer_2d_batch(
    table: TableOptions, model: ModelOptions, scan: ImageOptions, reply: ReplyOptions
) -> None:
    """Ask a file of questions about images; resumable, one JSON line a sample."""
    _batch("2d", table, model, scan, reply)


@infer.command("3d-batch")
@grouped
def infer_3d_batch(
    table: TableOptions, model: ModelOptions, scan: VolumeOptions, reply: ReplyOptions
) -> None:
    """Ask a file of questions about volumes; resumable, one JSON line a sample."""
    _batch("3d", table, model, scan, reply)


def _one(
    dimension: str,
    path: Path,
    question: QuestionOptions,
    model: ModelOptions,
    scan: ImageOptions | VolumeOptions,
    reply: ReplyOptions,
) -> None:
    """Check what is cheap to check, read the scan, load the model, ask."""
    options = question.options()
    checkpoint, settings = model.checkpoint(), reply.settings()
    _hush(question.quiet)
    from unireason_lib.inference import Sample, ask, read_scan
    from unireason_lib.inference.results import run_file
    from unireason_lib.io import write_json

    if question.output is not None and run_file(question.output).exists():
        do = "choose another --output"
        raise RequestError(question.output, "a file for one reply", "results of a batch", do)
    with warnings_as_lines():
        reading = scan.reading(checkpoint)
    images = read_scan(path, dimension, reading)
    sample = Sample(path.name, dimension, str(path), question.question, options)
    _, line = ask(checkpoint.generator(), sample, images, settings)
    typer.echo(printable(line["answer"]) if question.quiet else describe(line))
    if question.output is not None:
        write_json(question.output, line)


def _batch(
    dimension: str,
    table: TableOptions,
    model: ModelOptions,
    scan: ImageOptions | VolumeOptions,
    reply: ReplyOptions,
) -> None:
    """Ask, then say what is there; exit code 1 when a sample failed."""
    questions, checkpoint, settings = table.questions(), model.checkpoint(), reply.settings()
    _hush(table.quiet)
    from unireason_lib.inference import infer_file

    with warnings_as_lines():
        reading = scan.reading(checkpoint)
    try:
        counts = infer_file(
            questions,
            table.output,
            dimension=dimension,
            model=checkpoint,
            root=table.root,
            reading=reading,
            settings=settings,
            batch_size=table.batch_size,
            max_samples=table.max_samples,
            quiet=table.quiet,
        )
    except KeyboardInterrupt:
        typer.echo(
            f"interrupted; what is finished is in {table.output}, the same command goes on",
            err=True,
        )
        raise typer.Exit(130) from None
    if not table.quiet:
        typer.echo(f"{table.output}: {_summary(counts)}")
    if counts["failed"]:
        do = "the lines with 'error' say why, the same command tries them again"
        typer.echo(f"{counts['failed']} of {counts['asked']} samples failed: {do}", err=True)
        raise typer.Exit(1)


def _summary(counts: Mapping[str, int]) -> str:
    """Numbers of a batch in words; every percentage with its counts."""
    parts = [f"answered {counts['answered']} of {counts['asked']}, failed {counts['failed']}"]
    for words, part, whole in (
        ("accuracy", "correct", "judged"),
        ("in format", "in_format", "answered"),
    ):
        if total := counts[whole]:
            percent = 100 * counts[part] / total
            parts.append(f"{words} {percent:.1f} % ({counts[part]} of {total})")
    return ", ".join(parts)


def describe(line: Mapping[str, Any]) -> str:
    """A line of results for a terminal: scan, question, the thought with what each box fetched and where it lies, answer."""
    number, rest = 0, line["text"]
    reply = []
    for pointing in line["pointings"]:
        before, box, after = rest.partition(pointing["text"])
        if box:
            reply, rest = [*reply, before + box, f"    -> {_fate(line, pointing, number)}"], after
        number += pointing["box"] is not None
    cut = " (cut off by --max-new-tokens)" if line["stop"] == "length" else ""
    lines = [
        *_layout(line),
        "",
        line["question"],
        *(f"  {letter}. {text}" for letter, text in line["options"].items()),
        "",
        *reply,
        *([rest] if rest.strip() else []),
        "",
        f"answer: {line['answer'] or '(none)'}",
        *([f"choice: {line['choice'] or 'none'}"] if line["options"] else []),
        f"{line['prompt_tokens']} prompt tokens, {line['own_tokens']} written{cut}, {line['injected_tokens']} put in, "
        f"round {line['rounds']}, {line['seconds']:.1f} s",
    ]
    return printable("\n".join(lines))


def _layout(line: Mapping[str, Any]) -> list[str]:
    """How the scan became images, and what is suspicious about it."""
    layout, (rows, columns, count) = line["serialization"], line["frame"]
    shape = " x ".join(map(str, layout["shape"][::-1]))
    lines = [f"{line.get('image')}: {shape} pixels"]
    if line["dimension"] == "3d":
        size, (low, high) = layout["size"], layout["range"]
        how = f"{count} slices of {size[2]} x {size[1]}, window {low:g} to {high:g}"
        lines = [f"{line['volume']}: {shape} voxels as {how}"]
        if layout["affine"] is None:
            lines.append(
                "no geometry in the file: taken as (z, y, x) in L-P-S directions, left and right are assumed"
            )
    lines[0] += f", the model sees {columns} x {rows} pixels"
    return lines + [f"warning: {warning}" for warning in line.get("warnings", ())]


def _fate(line: Mapping[str, Any], pointing: Mapping[str, Any], number: int) -> str:
    """What became of a box, and where the ``number``-th well-formed one lies."""
    if pointing["box"] is None:
        return "not a box: nothing put in"
    words = f"nothing put in: {pointing['status']}"
    if crops := pointing["crops"]:
        width, height = crops[0]
        words = f"{len(crops)} crop{'s' * (len(crops) > 1)} of {width} x {height} pixels put in"
    for key in ("boxes_image", "boxes_voxel", "boxes_mm"):
        if (place := line.get(key, [None] * (number + 1))[number]) is not None:
            words += f"; {key.removeprefix('boxes_')} {place}"
    return words


def _hush(quiet: bool) -> None:
    """Without progress wanted, transformers shows none either."""
    if quiet:
        from transformers.utils import logging

        logging.disable_progress_bar()
