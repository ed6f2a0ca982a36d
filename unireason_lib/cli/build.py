"""``build``: a data set of grounded questions from scans with masks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unireason_lib.cli.options import named_value, size_of, window_of
from unireason_lib.errors import DatasetError

if TYPE_CHECKING:
    from unireason_lib.dataset.build import BuildReport


def _option(name: str, panel: str, help: str) -> Any:
    return typer.Option(name, help=help, rich_help_panel=panel)


SOURCE = (
    "name[:path][,option=value...], repeatable: phantom, phantom:dimension=2d,count=5000, "
    "decathlon:/data/Task03_Liver, ..."
)
PRIOR = (
    "Studies of each source from which is learnt what can be known without looking; 0 keeps all."
)
WINDOW = "percentile, minmax, LOW,HIGH, a CT window; or the source's."
MODEL = "Checkpoint in whose pixels boxes are written; or Qwen2.5-VL."
IMAGES = "licensed: stored where the licence allows; all: for my own use; none: never."
WRITER_OPTION = (
    "name=value for the writer, repeatable: model=gpt-4o, price_in=2.5 and price_out=10 (a million "
    "tokens), budget=20, base_url=http://..., concurrency=8."
)
NEAR = _option(
    "--near-duplicates/--no-near-duplicates", "Split", "One scan under two names: one split."
)
RAY = _option("--ray", "Running", "Address of a Ray cluster that shares the folders, or local.")
DRY_RUN = _option("--dry-run", "Running", "Only estimate records, time and cost.")
OVERRIDE = _option("--override", "Running", "Go on though settings, sources or version differ.")


def build(
    source: Annotated[list[str], _option("--source", "What", SOURCE)],
    out: Annotated[Path, _option("--out", "What", "Folder of the set; a build in it goes on.")],
    limit: Annotated[int | None, _option("--limit", "What", "Most studies of each source.")] = None,
    families: Annotated[str, _option("--families", "Questions", "By commas; or all.")] = "",
    per_family: Annotated[int, _option("--per-family", "Questions", "A study and family.")] = 1,
    prior_studies: Annotated[int, _option("--prior-studies", "Questions", PRIOR)] = 2000,
    seed: Annotated[int, _option("--seed", "Questions", "Of questions, templates, split.")] = 0,
    size: Annotated[str, _option("--size", "Images", "Of a volume.")] = "32,256,256",
    window: Annotated[str | None, _option("--window", "Images", WINDOW)] = None,
    model: Annotated[str | None, _option("--model", "Images", MODEL)] = None,
    images: Annotated[str, _option("--images", "Images", IMAGES)] = "licensed",
    fractions: Annotated[
        str, _option("--fractions", "Split", "Of the patients: train, val, test.")
    ] = "0.9,0.05,0.05",
    near_duplicates: Annotated[bool, NEAR] = True,
    writer: Annotated[str, _option("--writer", "Reasoning", "template or llm.")] = "template",
    writer_option: Annotated[
        list[str] | None, _option("--writer-option", "Reasoning", WRITER_OPTION)
    ] = None,
    workers: Annotated[int, _option("--workers", "Running", "Processes.")] = 1,
    ray: Annotated[str | None, RAY] = None,
    dry_run: Annotated[bool, DRY_RUN] = False,
    override: Annotated[bool, OVERRIDE] = False,
) -> None:
    """Build a data set of grounded questions from scans with masks.

    The same command goes on with a build that was stopped or killed, and ends with the same rows.
    Exit code 1: finished, but some studies could not be read (see the configuration "refused").
    """
    from unireason_lib.dataset import build as building
    from unireason_lib.imaging import QWEN_FRAME

    frame = QWEN_FRAME
    if model is not None:
        from unireason_lib.inference import Checkpoint

        frame = Checkpoint(model).frame()
    config = building.BuildConfig(
        sources=tuple(map(building.SourceSpec.parse, source)),
        limit=limit,
        families=tuple(name.strip() for name in families.split(",") if name.strip()) or None,
        per_family=per_family,
        prior_studies=prior_studies,
        size=size_of(size, "--size"),
        window=window_of(window, "--window"),
        frame=frame,
        seed=seed,
        writer=writer,
        writer_options=dict(named_value(text, "--writer-option") for text in writer_option or ()),
        fractions=_fractions(fractions),
        near_duplicates=near_duplicates,
        images=images,
    )
    if dry_run:
        guess = building.dry_run(config, workers=workers)
        hours, rest = divmod(round(guess.seconds), 3600)
        typer.echo(
            f"{guess.studies:,} studies; from {guess.sampled} of them: about {guess.records:,} "
            f"records in {hours}:{rest // 60:02d}:{rest % 60:02d} with --workers {workers}"
        )
        if guess.writer_cost is not None:
            typer.echo(f"  writer: {guess.writer_cost}")
        typer.echo("  nothing was written")
        return
    running = {"workers": workers, "ray": ray, "progress": sys.stderr.isatty()}
    try:
        report = building.build(config, out, override=override, **running)
    except building.BuildStopped as stopped:
        typer.echo(str(stopped), err=True)
        raise typer.Exit(130) from stopped
    typer.echo("\n  ".join(_lines(report)))
    if report.unreadable:
        raise typer.Exit(1)


def _lines(report: BuildReport) -> list[str]:
    """What a finished build says."""
    manifest, counts = report.manifest, report.manifest["counts"]
    studies, warned = manifest["studies"], manifest["warnings"]["studies"]
    lines = [
        f"{report.folder}: {manifest['records']:,} records and {manifest['images']:,} images from "
        f"{studies['read']:,} studies of {studies['patients']:,} patients",
        ", ".join(f"{name} {count:,}" for name, count in counts["split"].items()),
        *(f"{name} {count:,}" for name, count in counts["family and dimension"].items()),
    ]
    if manifest["refused"]:
        refused = (f"{reason} {count:,}" for reason, count in manifest["refused"].items())
        lines.append(f"left out: {', '.join(refused)} (see the configuration refused)")
    if warned:
        lines.append(f"{warned:,} studies with warnings (see manifest.json)")
    if report.unreadable:
        from unireason_lib.dataset.hub import load_set

        rows = load_set(report.folder, "refused", "train")
        rows = rows.filter(lambda reason: reason == "unreadable", input_columns="reason").take(5)
        lines += [f"could not be read: {row['study']}: {row['detail']}" for row in rows]
    made = f"{report.built:,} studies worked off now" if report.built else "was finished already"
    return [*lines, f"{made}, {report.seconds:.1f} s"]


def _fractions(text: str) -> dict[str, float]:
    try:
        train, val, test = map(float, text.split(","))
    except ValueError:
        found, do = repr(text), "write 0.9,0.05,0.05"
        raise DatasetError("--fractions", "three numbers, by commas", found, do) from None
    return {"train": train, "val": val, "test": test}
