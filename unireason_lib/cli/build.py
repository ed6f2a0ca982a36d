"""``build``: a data set of grounded questions from scans with masks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unireason_lib.cli.options import named_value, size_of, window_of
from unireason_lib.errors import DatasetError, explain

if TYPE_CHECKING:
    from unireason_lib.dataset.build import BuildReport, Estimate
    from unireason_lib.imaging import ProcessorFrame


def _option(*names: str, panel: str, help: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


Sources = Annotated[
    list[str],
    _option(
        "--source",
        panel="What",
        help="name[:path][,option=value...], repeatable: phantom, phantom:dimension=2d,count=5000, "
        "decathlon:/data/Task03_Liver, ...",
    ),
]
Out = Annotated[
    Path, _option("--out", panel="What", help="Folder of the data set; a build in it is gone on with.")
]
Limit = Annotated[
    int | None, _option("--limit", panel="What", help="At most so many studies of each source.")
]
Families = Annotated[
    str, _option("--families", panel="Questions", help="Families, separated by commas; all by default.")
]
PerFamily = Annotated[int, _option("--per-family", panel="Questions", help="Questions a study and family.")]
CensusSize = Annotated[
    int,
    _option(
        "--census",
        panel="Questions",
        help="Studies of each source from which is learnt what can be known without looking; such questions are "
        "thinned out. 0 keeps all, and is faster.",
    ),
]
Seed = Annotated[int, _option("--seed", panel="Questions", help="Of questions, templates and split.")]
Size = Annotated[
    str,
    _option("--size", panel="Pictures", help="Slices, rows, columns of a volume: 32,256,256 or 32x256x256."),
]
Window = Annotated[
    str | None,
    _option(
        "--window",
        panel="Pictures",
        help="percentile, minmax, LOW,HIGH or a CT window; default: each source's.",
    ),
]
Model = Annotated[
    str | None,
    _option(
        "--model", panel="Pictures", help="Write boxes for this checkpoint's processor; default: Qwen2.5-VL."
    ),
]
Frame = Annotated[
    str | None,
    _option(
        "--frame", panel="Pictures", help="The same in numbers: patch size, merge size, fewest, most pixels."
    ),
]
Pictures = Annotated[
    str,
    _option(
        "--pictures",
        panel="Pictures",
        help="licensed: stored where the licence allows; all: always, for my own use; none: text and paths only.",
    ),
]
Fractions = Annotated[
    str, _option("--fractions", panel="Split", help="Shares of train, val and test, by patient.")
]
NearDuplicates = Annotated[
    bool,
    _option(
        "--near-duplicates/--no-near-duplicates",
        panel="Split",
        help="Keep one scan under two names in one split.",
    ),
]
Writer = Annotated[str, _option("--writer", panel="Reasoning", help="template or llm.")]
WriterOptions = Annotated[
    list[str] | None,
    _option(
        "--writer-option",
        panel="Reasoning",
        help="name=value for the writer, repeatable: model=gpt-4o, price_in=2.5 and price_out=10 (a million tokens), "
        "budget=20, base_url=http://..., concurrency=8.",
    ),
]
Workers = Annotated[
    int, _option("--workers", panel="Running", help="Processes. The result is the same for any number.")
]
Ray = Annotated[
    str | None,
    _option("--ray", panel="Running", help="Address of a Ray cluster that shares the folders, or local."),
]
DryRun = Annotated[
    bool,
    _option(
        "--dry-run", panel="Running", help="Only estimate counts, size, time and cost, from a few studies."
    ),
]
Quiet = Annotated[bool, _option("--quiet", panel="Running", help="No progress bar.")]


def build(
    source: Sources,
    out: Out,
    limit: Limit = None,
    families: Families = "",
    per_family: PerFamily = 1,
    census: CensusSize = 2000,
    seed: Seed = 0,
    size: Size = "32,256,256",
    window: Window = None,
    model: Model = None,
    frame: Frame = None,
    pictures: Pictures = "licensed",
    fractions: Fractions = "0.9,0.05,0.05",
    near_duplicates: NearDuplicates = True,
    writer: Writer = "template",
    writer_option: WriterOptions = None,
    workers: Workers = 1,
    ray: Ray = None,
    dry_run: DryRun = False,
    quiet: Quiet = False,
) -> None:
    """Build a data set of grounded questions from scans with masks: sources, questions, reasoning, checks, Parquet.

    A build that was stopped or killed goes on where it was when the same command is run again, and ends with the same
    bytes. Exit code 1: finished, but some studies could not be read (refused.jsonl names them).
    """
    from unireason_lib.dataset.build import BuildConfig, BuildStopped, SourceSpec
    from unireason_lib.dataset.build import build as run
    from unireason_lib.dataset.build import dry_run as estimate
    from unireason_lib.dataset.splits import SPLITS
    from unireason_lib.dataset.view import QWEN_FRAME

    shares = _numbers(fractions, float, 3, "--fractions")
    config = BuildConfig(
        sources=tuple(SourceSpec.parse(text) for text in source),
        limit=limit,
        families=tuple(name.strip() for name in families.split(",") if name.strip()) or None,
        per_family=per_family,
        census=census,
        size=size_of(size, "--size"),
        window=window_of(window, "--window"),
        frame=_frame(model, frame) or QWEN_FRAME,
        seed=seed,
        writer=writer,
        writer_options=dict(named_value(text, "--writer-option") for text in writer_option or ()),
        fractions=dict(zip(SPLITS, shares, strict=True)),
        near_duplicates=near_duplicates,
        pictures=pictures,
    )
    if dry_run:
        typer.echo(estimate_text(estimate(config, workers=workers)))
        return
    try:
        report = run(config, out, workers=workers, ray=ray, progress=not quiet)
    except BuildStopped as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(130) from stopped
    typer.echo(report_text(report))
    if report.unreadable:
        raise typer.Exit(1)


def report_text(report: BuildReport) -> str:
    """What a finished build says."""
    manifest = report.manifest
    counts = manifest["counts"]
    lines = [
        f"{report.folder}: {manifest['records']:,} records and {manifest['pictures']:,} pictures from "
        f"{manifest['studies']['read']:,} studies of {manifest['studies']['patients']:,} patients",
        "  " + ", ".join(f"{name} {counts['split'].get(name, 0):,}" for name in ("train", "val", "test")),
        *(f"  {name} {count:,}" for name, count in counts["family and dimension"].items()),
    ]
    if manifest["refused"]:
        refused = ", ".join(f"{reason} {count:,}" for reason, count in manifest["refused"].items())
        lines.append(f"  left out: {refused} (see refused.jsonl)")
    if manifest["notices"]:
        lines.append(f"  {manifest['notices']:,} notices (see notices.jsonl)")
    if report.unreadable:
        lines += [f"  could not be read: {name}" for name in _unreadable(report.folder / "refused.jsonl", 5)]
    made = f"{report.built:,} studies worked off now" if report.built else "was finished already"
    return "\n".join([*lines, f"  {made}, {report.seconds:.1f} s"])


def estimate_text(estimate: Estimate) -> str:
    """What a dry run says."""
    hours, rest = divmod(round(estimate.seconds), 3600)
    lines = [
        f"{estimate.studies:,} studies, {estimate.looked_at} of them worked off for this estimate:",
        f"  about {estimate.records:,} records and {estimate.pictures:,} pictures, {estimate.megabytes:,.1f} MB",
        f"  about {hours}:{rest // 60:02d}:{rest % 60:02d} with {estimate.workers} "
        f"worker{'s' if estimate.workers > 1 else ''}",
    ]
    if estimate.unreadable:
        lines.append(f"  {estimate.unreadable} of {estimate.looked_at} could not be read")
    if estimate.refused:
        lines.append("  refused: " + ", ".join(f"{reason} {n}" for reason, n in estimate.refused.items()))
    if estimate.writer_cost is not None:
        lines.append(f"  writer: {estimate.writer_cost}")
    return "\n".join([*lines, "nothing was written"])


def _unreadable(path: Path, most: int) -> list[str]:
    found = []
    with open(path, encoding="utf-8") as lines:
        for line in lines:
            refusal = json.loads(line)
            if refusal["reason"] == "unreadable":
                found.append(f"{refusal['study']}: {refusal['detail']}")
                if len(found) == most:
                    break
    return found


def _frame(model: str | None, numbers: str | None) -> ProcessorFrame | None:
    from unireason_lib.imaging import ProcessorFrame

    if numbers is not None:
        return ProcessorFrame(*_numbers(numbers, int, 4, "--frame"))
    if model is None:
        return None
    from unireason_lib.inference.batch import Checkpoint

    return Checkpoint(model).frame()


def _numbers(text: str, kind: type[int] | type[float], count: int, name: str) -> list:
    try:
        found = [kind(piece) for piece in text.replace("x", ",").split(",")]
    except ValueError:
        found = []
    if len(found) != count:
        raise DatasetError(
            explain(name, expected=f"{count} numbers separated by commas", found=repr(text), do="correct it")
        )
    return found
