"""``evaluate``: ask a model a benchmark, and say what its replies are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from unireason_lib.errors import DatasetError, RequestError

from .options import (
    MODEL,
    OUT,
    Change,
    ProfileName,
    Quiet,
    named_values,
    option,
    printable,
    size_of,
    warnings_as_lines,
    window_of,
)

Paths = list[Path] | None
BENCHMARK = """phantom; folder of a data set with sft/ or rl/; or name:path of m3d-vqa, 3d-rad,
vqa-rad, slake, pathvqa, pmc-vqa, omnimedvqa, or of a source of scans (folder, decathlon, ...)."""
CONTROL = "Does it look? blank, noise, other (patient), random-crop, no-crop."
SLICES = "Ask for each box in a volume on every slice it spans, into OUT.slices.jsonl."


def evaluate(
    out: Annotated[Path, option("JSON lines, one a question; a run in it goes on.", *OUT)],
    model: Annotated[str | None, option("Checkpoint; none: report on --out.", *MODEL)] = None,
    adapter: Annotated[str | None, option("PEFT adapter on top.")] = None,
    device: Annotated[str | None, option("cpu, cuda, ...; default: a GPU if any.")] = None,
    dtype: Annotated[
        str, option("float32, bfloat16, float16.", "--dtype", "--torch-dtype")
    ] = "auto",
    benchmark: Annotated[str, option(BENCHMARK)] = "phantom",
    split: Annotated[str, option("train, val or test.")] = "test",
    limit: Annotated[int | None, option("At most so many questions.")] = None,
    size: Annotated[str | None, option("Slices, rows, columns; default: its own.")] = None,
    window: Annotated[str | None, option("percentile, minmax, LOW,HIGH or a CT window.")] = None,
    more: Annotated[list[str] | None, option("name=value for the benchmark.", "--option")] = None,
    profile: ProfileName = "laptop",
    change: Change = None,
    control: Annotated[str, option(CONTROL)] = "none",
    with_blank: Annotated[
        bool, option("Blank images, too: OUT.blank.jsonl.", "--with-blank")
    ] = False,
    slices: Annotated[bool, option(SLICES, "--slices")] = False,
    compare: Annotated[Paths, option("Results of another run; one a seed, repeatable.")] = None,
    also: Annotated[Paths, option("With --compare: other seeds of --out; repeatable.")] = None,
    paired_seeds: Annotated[bool, option("The k-th runs have one seed.", "--paired-seeds")] = False,
    table: Annotated[Path | None, option("Also write the report as JSON.", "--json")] = None,
    quiet: Quiet = False,
) -> None:
    """Ask a model a benchmark; print accuracy, boxes and baselines with intervals.

    Whatever stops a run, the same command goes on with it. Exit code 1: some questions could not be
    asked; their lines say why, and the same command tries them again.
    """
    from unireason_lib.config import load_profile

    if (also or paired_seeds) and not compare:
        do = "name what to compare with"
        raise RequestError("--also, --paired-seeds", "--compare", "none", do)
    settings = load_profile(profile, "\n".join(change or ()))
    if model is not None:
        from unireason_lib.inference import Checkpoint

        how = {"name": benchmark, "split": split, "limit": limit, "size": size_of(size, "--size")}
        how |= {"window": window_of(window, "--window"), **named_values(more, "--option")}
        controls = [control, *(["blank"] if with_blank and control != "blank" else [])]
        checkpoint = Checkpoint(model, adapter, dtype, device)
        _ask(checkpoint, how, out, settings, controls, slices, quiet)
    elif not out.is_file():
        do = f"name one, or give results as --out, not {out}"
        raise RequestError("--model", "a checkpoint", "none", do)
    _print(out, compare or [], also or [], paired_seeds, table)


def _ask(checkpoint, how, out, profile, controls, slices, quiet) -> None:
    """Open the benchmark for the model's frame, load the model once, ask."""
    from unireason_lib.evaluation import evaluate as ask
    from unireason_lib.evaluation import open_benchmark, slice_benchmark
    from unireason_lib.evaluation.table import beside
    from unireason_lib.grounding import Settings
    from unireason_lib.inference import read_results

    frame, trained = checkpoint.frame(), checkpoint.serialization
    with warnings_as_lines():
        questions = open_benchmark(frame=frame, serialization=trained, **how)
    if questions.skipped:
        typer.echo(f"{len(questions.skipped)} rows of {questions.name} cannot be asked:", err=True)
        for row in questions.skipped[:5]:
            typer.echo(f"  {row.name}: {row.reason[:300]}", err=True)
    asking: dict[str, Any] = {"settings": Settings(**profile.generation.model_dump())}
    asking |= {"batch_size": profile.evaluation.batch_size, "quiet": quiet}
    for control, path in zip(controls, (out, beside(out, "blank")), strict=False):
        ask(questions, path, checkpoint, control=control, **asking)
    if slices:
        try:
            raised = slice_benchmark(questions, read_results(out))
        except DatasetError as nothing:  # no error: a model may not write boxes at all
            typer.echo(str(nothing), err=True)
        else:
            ask(raised, beside(out, "slices"), checkpoint, **asking)


def _print(out: Path, others: list[Path], also: list[Path], paired_seeds: bool, table) -> None:
    """The report of what there is now; exit code 1 when questions failed."""
    import pandas as pd

    from unireason_lib.evaluation import compare, mean, read_table, report
    from unireason_lib.evaluation.statistics import plain
    from unireason_lib.evaluation.table import beside, consistency
    from unireason_lib.inference import read_results
    from unireason_lib.io import write_json

    rows, words = report(out)
    typer.echo(printable(words))
    content = {"name": out.name, "rows": json.loads(rows.to_json(orient="records"))}
    if beside(out, "slices").is_file():
        cuboids = consistency(read_results(beside(out, "slices")))
        overlap = mean(cuboids, "overlap")
        found = f"IoU {overlap.text(1)} over {len(cuboids)} cuboids" if overlap else "cannot tell"
        typer.echo(f"slice-volume consistency: {found}")
        content["consistency"] = plain(overlap)
    if others:
        ours, theirs = (
            pd.concat([read_table(path).assign(seed=k) for k, path in enumerate(paths)])
            for paths in ([out, *also], others)
        )
        content["comparison"] = {}
        for value, name in {
            "correct": "accuracy",
            "iou_first": "IoU",
            "iou_best": "IoU best",
        }.items():
            if ours[value].notna().any():
                found = compare(ours, theirs, value, paired_seeds)
                typer.echo(printable(f"- {found.text(name, 100 if value == 'correct' else 1)}"))
                content["comparison"][value] = plain(found)
    if table is not None:
        write_json(table, content)
    results = read_table(out)
    failed = results[results["failed"] == 1]
    if len(failed):
        first = failed.iloc[0]
        words = f"{len(failed)} questions could not be asked; first {first['id']}"
        typer.echo(printable(f"{words}: {first['error']['message']}"[:400]), err=True)
        raise typer.Exit(1)
