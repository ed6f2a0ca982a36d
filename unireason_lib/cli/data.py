"""``build``: a data set of grounded questions from scans with masks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from unireason_lib.errors import DatasetError

from .options import MODEL, OUT, named_values, option, size_of, window_of

SOURCE = "name[:path][,option=value...]; repeatable: phantom:dimension=2d, decathlon:/data/Task03."
PRIOR = "Studies of each source for the answer prior; 0: no debiasing."
WRITER = "name=value: model=gpt-4o, price_in=2.5, price_out=10, budget=20, base_url=..."


def build(
    source: Annotated[list[str], option(SOURCE)],
    out: Annotated[Path, option("Folder of the data set; a build in it goes on.", *OUT)],
    limit: Annotated[int | None, option("Most studies of each source.")] = None,
    families: Annotated[str, option("Families of questions, by commas; default: all.")] = "",
    per_family: Annotated[int, option("Questions of a study and family.")] = 1,
    prior_studies: Annotated[int, option(PRIOR)] = 2000,
    seed: Annotated[int, option("Of questions, templates, split.")] = 0,
    size: Annotated[str, option("Slices, rows, columns of a volume.")] = "32,256,256",
    window: Annotated[str | None, option("percentile, minmax, LOW,HIGH, or a CT window.")] = None,
    model: Annotated[str | None, option("In whose pixels boxes are written.", *MODEL)] = None,
    images: Annotated[str, option("Stored: licensed (where allowed), all, none.")] = "licensed",
    fractions: Annotated[str, option("Of patients: train, val, test.")] = "0.9,0.05,0.05",
    writer: Annotated[str, option("Of rationales: template or llm.")] = "template",
    writer_option: Annotated[list[str] | None, option(WRITER)] = None,
    workers: Annotated[int, option("Processes.")] = 1,
    ray: Annotated[str | None, option("Address of a Ray cluster, or local.")] = None,
    dry_run: Annotated[bool, option("Only estimate records and cost.", "--dry-run")] = False,
    override: Annotated[bool, option("Go on though settings differ.", "--override")] = False,
) -> None:
    """Build a data set of grounded questions from scans with masks.

    The same command goes on with a build that was stopped or killed, and ends with the same rows.
    Exit code 1: finished, but some studies could not be read (see the configuration "refused").
    """
    from unireason_lib.dataset import build as building
    from unireason_lib.imaging import QWEN_FRAME
    from unireason_lib.inference import Checkpoint

    config = building.BuildConfig(
        sources=tuple(map(building.SourceSpec.parse, source)),
        limit=limit,
        families=tuple(name.strip() for name in families.split(",") if name.strip()) or None,
        per_family=per_family,
        prior_studies=prior_studies,
        size=size_of(size, "--size"),
        window=window_of(window, "--window"),
        frame=QWEN_FRAME if model is None else Checkpoint(model).frame(),
        seed=seed,
        writer=writer,
        writer_options=named_values(writer_option, "--writer-option"),
        fractions=_fractions(fractions),
        images=images,
    )
    if dry_run:
        guess = building.dry_run(config)
        typer.echo(
            f"{guess.studies:,} studies; from {guess.sampled} of them: about {guess.records:,} "
            "records; nothing was written"
        )
        if guess.writer_cost is not None:
            typer.echo(f"writer: {guess.writer_cost}")
        return
    running = {"workers": workers, "ray": ray, "progress": sys.stderr.isatty()}
    report = building.build(config, out, override=override, **running)
    typer.echo("\n  ".join(_lines(report)))
    if report.unreadable:
        raise typer.Exit(1)


def _lines(report: Any) -> list[str]:
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
    made = f"{report.built:,} studies processed now" if report.built else "was finished already"
    return [*lines, f"{made}, {report.seconds:.1f} s"]


def _fractions(text: str) -> dict[str, float]:
    try:
        train, val, test = map(float, text.split(","))
    except ValueError:
        found, do = repr(text), "write 0.9,0.05,0.05"
        raise DatasetError("--fractions", "three numbers, by commas", found, do) from None
    return {"train": train, "val": val, "test": test}
