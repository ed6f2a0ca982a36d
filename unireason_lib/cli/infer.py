"""``infer``: ask a model about a picture, a volume, or a file of questions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from unireason_lib.cli.options import ModelOptions, PictureOptions, ReplyOptions, VolumeOptions, grouped
from unireason_lib.errors import RequestError, explain
from unireason_lib.prompts import LETTERS, question_text

infer = typer.Typer(
    no_args_is_help=True, help="Ask a model about a picture, a volume, or a file of questions."
)
_ask = partial(typer.Option, rich_help_panel="Question")
_table = partial(typer.Option, rich_help_panel="Questions")
_out = partial(typer.Option, rich_help_panel="Output")


@dataclass(frozen=True)
class QuestionOptions:
    """One question."""

    question: Annotated[str, _ask(help="The question.")]
    option_a: Annotated[str | None, _ask(help="Text of option A; leave all out for a free answer.")] = None
    option_b: Annotated[str | None, _ask(help="Text of option B.")] = None
    option_c: Annotated[str | None, _ask(help="Text of option C.")] = None
    option_d: Annotated[str | None, _ask(help="Text of option D.")] = None
    output: Annotated[Path | None, _out(help="Also write the reply as JSON.")] = None
    quiet: Annotated[bool, _out("--quiet", help="Print only the answer.")] = False

    def options(self) -> dict[str, str]:
        """Letter -> text of those that were given, checked."""
        texts = (self.option_a, self.option_b, self.option_c, self.option_d)
        options = {letter: text for letter, text in zip(LETTERS, texts, strict=False) if text is not None}
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
    input: Annotated[Path | None, _table(help="Questions: .jsonl, .json (a list of objects) or .csv.")] = None
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
            raise RequestError(explain("questions", expected=expected, found=found, do="give one of them"))
        return self.input or self.input_csv


@infer.command("2d")
@grouped
def infer_2d(
    image: Annotated[Path, _ask(help="PNG, JPEG, BMP, TIFF, WebP or a DICOM file with one frame.")],
    question: QuestionOptions,
    model: ModelOptions,
    scan: PictureOptions,
    reply: ReplyOptions,
) -> None:
    """Ask about one picture."""
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
    table: TableOptions, model: ModelOptions, scan: PictureOptions, reply: ReplyOptions
) -> None:
    """Ask a file of questions about pictures; resumable, one JSON line a sample."""
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
    scan: PictureOptions | VolumeOptions,
    reply: ReplyOptions,
) -> None:
    """Check what is cheap to check, read the scan, load the model, ask."""
    options = question.options()
    checkpoint, reading, settings = model.checkpoint(), scan.reading(), reply.settings()
    _hush(question.quiet)
    from unireason_lib.inference import Sample, ask, describe_reply, read_scene, write_whole
    from unireason_lib.inference.results import run_file

    if question.output is not None and run_file(question.output).exists():
        do = "choose another --output"
        raise RequestError(
            explain(question.output, expected="a file for one reply", found="results of a batch", do=do)
        )
    scene = read_scene(path, dimension, reading)
    sample = Sample(path.name, dimension, str(path), question.question, options)
    _, record = ask(checkpoint.generator(), sample, scene, settings)
    typer.echo(record["answer"] if question.quiet else describe_reply(record))
    if question.output is not None:
        question.output.parent.mkdir(parents=True, exist_ok=True)
        write_whole(question.output, json.dumps(record, ensure_ascii=False, indent=2) + "\n")


def _batch(
    dimension: str,
    table: TableOptions,
    model: ModelOptions,
    scan: PictureOptions | VolumeOptions,
    reply: ReplyOptions,
) -> None:
    """Ask, then say what is there; exit code 1 when a sample failed."""
    questions, checkpoint = table.questions(), model.checkpoint()
    reading, settings = scan.reading(), reply.settings()
    _hush(table.quiet)
    from unireason_lib.inference import infer_file

    try:
        summary = infer_file(
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
        typer.echo(f"interrupted; what is finished is in {table.output}, the same command goes on", err=True)
        raise typer.Exit(130) from None
    if not table.quiet:
        typer.echo("\n".join([f"{table.output}:", *(f"  {line}" for line in summary.lines())]))
    if summary.failed:
        do = "the lines with 'error' say why, the same command tries them again"
        typer.echo(f"{summary.failed} of {summary.asked} samples failed: {do}", err=True)
        raise typer.Exit(1)


def _hush(quiet: bool) -> None:
    """Without progress wanted, transformers shows none either."""
    if quiet:
        from transformers.utils import logging

        logging.disable_progress_bar()
