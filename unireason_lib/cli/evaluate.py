"""``evaluate``: ask a model a benchmark, and say what its replies are worth."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unireason_lib.cli.options import named_value, printable, size_of, warnings_as_lines, window_of
from unireason_lib.errors import DatasetError, RequestError
from unireason_lib.profiles import load_profile

if TYPE_CHECKING:
    from unireason_lib.evaluation import Benchmark
    from unireason_lib.grounding import Settings
    from unireason_lib.inference import Checkpoint
    from unireason_lib.profiles import Profile


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


def evaluate(
    out: Annotated[
        Path,
        _option(
            "--out", panel="Output", help="One JSON line a question; a run in it is gone on with."
        ),
    ],
    model: Annotated[
        str | None,
        _option(
            "--model", panel="Model", help="Checkpoint folder or hub id; none: report on --out."
        ),
    ] = None,
    adapter: Annotated[
        str | None, _option("--adapter", panel="Model", help="PEFT adapter on top.")
    ] = None,
    device: Annotated[
        str | None,
        _option("--device", panel="Model", help="cpu, cuda, ...; default: a GPU if any."),
    ] = None,
    dtype: Annotated[
        str,
        _option(
            "--dtype", panel="Model", help="auto (the checkpoint's), float32, bfloat16, float16."
        ),
    ] = "auto",
    benchmark: Annotated[
        str,
        _option(
            "--benchmark",
            panel="Questions",
            help="phantom; the folder of a data set with sft/ or rl/; or name:path of m3d-vqa, 3d-rad, vqa-rad, "
            "slake, pathvqa, pmc-vqa, omnimedvqa, or of a source of scans (folder, totalsegmentator, ...).",
        ),
    ] = "phantom",
    split: Annotated[
        str, _option("--split", panel="Questions", help="train, val or test.")
    ] = "test",
    limit: Annotated[
        int | None, _option("--limit", panel="Questions", help="At most so many questions.")
    ] = None,
    size: Annotated[
        str | None,
        _option(
            "--size",
            panel="Questions",
            help="Slices, rows, columns of a volume; default: the benchmark's.",
        ),
    ] = None,
    window: Annotated[
        str | None,
        _option(
            "--window",
            panel="Questions",
            help="percentile, minmax, LOW,HIGH or a CT window; default: its own.",
        ),
    ] = None,
    option: Annotated[
        list[str] | None,
        _option(
            "--option",
            panel="Questions",
            help="name=value for the benchmark, repeatable: seed=1, open=true.",
        ),
    ] = None,
    profile: Annotated[
        str,
        _option(
            "--profile",
            panel="Replies",
            help="smoke, laptop, t4 or gpu: token budgets, rounds, batch size.",
        ),
    ] = "laptop",
    change: Annotated[
        list[str] | None,
        _option(
            "--set",
            panel="Replies",
            help="Change a setting of the profile: generation.max_rounds=3; repeatable.",
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        _option(
            "--batch-size",
            panel="Replies",
            help="Questions generated together; default: the profile's.",
        ),
    ] = None,
    blank: Annotated[
        bool,
        _option("--blank", panel="Controls", help="Blank all pictures: short for --control blank."),
    ] = False,
    control: Annotated[
        str,
        _option(
            "--control",
            panel="Controls",
            help="Does it look? blank, noise, other (another patient's pictures), random-crop, no-crop.",
        ),
    ] = "none",
    with_blank: Annotated[
        bool,
        _option(
            "--with-blank",
            panel="Controls",
            help="Also ask with blanked pictures, into OUT.blank.jsonl, and show it beside.",
        ),
    ] = False,
    slices: Annotated[
        bool,
        _option(
            "--slices",
            panel="Controls",
            help="Also ask for each box in a volume where the structure lies on every slice it spans, into "
            "OUT.slices.jsonl: does the model point at the same place in 2D and 3D?",
        ),
    ] = False,
    other: Annotated[
        list[Path] | None,
        _option(
            "--compare",
            panel="Output",
            help="Results of another run: paired differences. Repeatable: one a seed of another way of training.",
        ),
    ] = None,
    also: Annotated[
        list[Path] | None,
        _option(
            "--also",
            panel="Output",
            help="With --compare: results beside --out, of the same training with other seeds; repeatable.",
        ),
    ] = None,
    paired_seeds: Annotated[
        bool,
        _option(
            "--paired-seeds",
            panel="Output",
            help="The k-th results of both sides come from the same seed.",
        ),
    ] = False,
    table: Annotated[
        Path | None, _option("--json", panel="Output", help="Also write the table as JSON.")
    ] = None,
    quiet: Annotated[bool, _option("--quiet", panel="Output", help="No progress bar.")] = False,
) -> None:
    """Ask a model a benchmark; print accuracy, boxes and baselines with intervals.

    Whatever stops a run, the same command goes on with it. Exit code 1: some questions could not be asked; their
    lines say why, and the same command tries them again.
    """
    if blank and control not in ("none", "blank"):
        raise RequestError("--blank", "no other --control", control, "leave one out")
    if (also or paired_seeds) and not other:
        raise RequestError(
            "--also, --paired-seeds", "--compare", "none", "name what to compare with"
        )
    control = "blank" if blank else control
    settings = load_profile(profile, "\n".join(change or ()))
    if model is not None:
        _run(
            _checkpoint(model, adapter, device, dtype),
            {
                "name": benchmark,
                "split": split,
                "limit": limit,
                "size": None if size is None else size_of(size, "--size"),
                "window": window_of(window, "--window"),
                **dict(named_value(text, "--option") for text in option or ()),
            },
            out,
            settings,
            settings.evaluation.batch_size if batch_size is None else batch_size,
            control,
            with_blank and control != "blank",
            slices,
            quiet,
        )
    elif not out.is_file():
        raise RequestError(
            "--model", "a checkpoint", "none", f"name one, or give results as --out, not {out}"
        )
    samples = settings.evaluation.samples
    _print(out, other or [], also or [], paired_seeds, table, samples)


def _run(
    checkpoint: Checkpoint,
    asked: dict[str, Any],
    out: Path,
    profile: Profile,
    batch_size: int,
    control: str,
    with_blank: bool,
    slices: bool,
    quiet: bool,
) -> None:
    """Open the benchmark for the model's frame, load the model once, ask."""
    from unireason_lib.evaluation import evaluate as ask
    from unireason_lib.evaluation import open_benchmark
    from unireason_lib.evaluation.consistency import slices_file
    from unireason_lib.evaluation.report import blank_file

    with warnings_as_lines():
        questions = open_benchmark(
            **asked, frame=checkpoint.frame(), serialization=checkpoint.serialization
        )
    _tell_skipped(questions)
    how = {"settings": _generation(profile), "batch_size": batch_size, "quiet": quiet}
    try:
        ask(questions, out, checkpoint, control=control, **how)
        if with_blank:
            ask(questions, blank_file(out), checkpoint, control="blank", **how)
        if slices and (raised := _slices(questions, out)) is not None:
            ask(raised, slices_file(out), checkpoint, **how)
    except KeyboardInterrupt:
        typer.echo(f"interrupted; what is finished is in {out}, the same command goes on", err=True)
        raise typer.Exit(130) from None


def _slices(questions: Benchmark, out: Path) -> Benchmark | None:
    """The questions about slices that the replies raise; none is no error, the model may not point at all."""
    from unireason_lib.evaluation import slice_benchmark
    from unireason_lib.inference.results import read_results

    try:
        return slice_benchmark(questions, read_results(out))
    except DatasetError as nothing:
        typer.echo(str(nothing), err=True)
        return None


def _print(
    out: Path,
    other: list[Path],
    also: list[Path],
    paired_seeds: bool,
    table: Path | None,
    samples: int,
) -> None:
    """The report of what there is now; exit code 1 when questions failed."""
    from unireason_lib.evaluation import Report, read_consistency
    from unireason_lib.evaluation.consistency import slices_file

    report = Report.from_file(out, samples=samples)
    typer.echo(printable(report.text()))
    told = report.to_dict()
    if slices_file(out).is_file():
        agreement = read_consistency(out, samples)
        typer.echo(f"slice-volume consistency: {agreement.text()}")
        told["consistency"] = agreement.to_dict()
    if other:
        theirs, ours = (
            [Report.from_file(path, samples=samples) for path in paths] for paths in (other, also)
        )
        how = {"also": ours, "paired_seeds": paired_seeds}
        typer.echo("\n" + printable(report.comparison(theirs, **how)))
        compared = report.comparisons(theirs, **how)
        told["comparison"] = {value: found.to_dict() for value, found in compared.items()}
    if table is not None:
        from unireason_lib.io import write_whole

        table.parent.mkdir(parents=True, exist_ok=True)
        write_whole(table, json.dumps(told, ensure_ascii=False, indent=1) + "\n")
    if report.failed:
        first = report.failed[0]
        found = f"first {first['id']}: {first['error']['message'][:300]}"
        typer.echo(
            printable(f"{len(report.failed)} questions could not be asked; {found}"), err=True
        )
        raise typer.Exit(1)


def _checkpoint(model: str, adapter: str | None, device: str | None, dtype: str) -> Checkpoint:
    from unireason_lib.cli.options import ModelOptions

    return ModelOptions(
        model_path=model, adapter=adapter, device=device, torch_dtype=dtype
    ).checkpoint()


def _generation(profile: Profile) -> Settings:
    """How replies are generated by a profile."""
    from unireason_lib.grounding import Settings

    names = ("max_new_tokens", "max_rounds", "temperature", "top_p")
    return Settings(**{name: profile.generation[name] for name in names})


def _tell_skipped(questions: Benchmark) -> None:
    if not questions.skipped:
        return
    typer.echo(f"{len(questions.skipped)} rows of {questions.name} cannot be asked:", err=True)
    for row in questions.skipped[:5]:
        typer.echo(f"  {row.name}: {row.reason[:300]}", err=True)
