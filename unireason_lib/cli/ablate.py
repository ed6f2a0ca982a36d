"""``ablate``: a grid of conditions and seeds, run as notebooks, and what it says of the claims."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

GridFile = Annotated[Path, typer.Argument(help="Grid in YAML; see data/ablations.")]
ProfileName = Annotated[
    str | None, typer.Option("--profile", help="The study at another size: smoke, laptop, t4, gpu.")
]
Change = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting of all runs: sft.steps=3000; may be repeated."),
]
Seeds = Annotated[
    int | None, typer.Option(min=1, help="Only so many of the grid's seeds, or more; default: all.")
]
Workers = Annotated[int, typer.Option(min=1, help="Notebooks at a time on this machine.")]
Only = Annotated[list[str] | None, typer.Option(help="Only this condition; may be repeated.")]
DryRun = Annotated[
    bool,
    typer.Option("--dry-run", help="Only show the plan, its cost, and the command of each run."),
]
Retries = Annotated[int, typer.Option(min=0, help="How often a run that fails is begun again.")]
Ray = Annotated[str | None, typer.Option(help='Address of a Ray cluster, or "local".')]
Mixed = Annotated[
    bool, typer.Option("--mixed", help="Keep runs of other code or from another base.")
]
Look = Annotated[
    bool, typer.Option("--look", help="Show what came out of a part of the study, too.")
]
Keep = Annotated[
    Path | None, typer.Option(help="Folder that the tables are copied to, such as data/results.")
]
Parts = Annotated[
    Path | None,
    typer.Option(
        help="Folder that an earlier part of this study was kept in: its tests are not run again."
    ),
]


def ablate(
    grid: GridFile,
    profile: ProfileName = None,
    change: Change = None,
    seeds: Seeds = None,
    workers: Workers = 1,
    only: Only = None,
    dry_run: DryRun = False,
    retries: Retries = 1,
    ray: Ray = None,
    mixed: Mixed = False,
    keep: Keep = None,
    parts: Parts = None,
    look: Look = False,
) -> None:
    """Run the conditions of a grid with every seed; what several share is made once.

    Each run is a notebook; executed ones, the ledger and the table of all answers are in runs/ablation/NAME. A run that
    fails stops only what builds on it. The same command goes on where it was stopped or killed. What came out is told
    when all conditions and seeds of the grid have been run: if one may stop when the figures please, they mean nothing.
    """
    import shlex
    import sys
    import time
    from dataclasses import replace

    from unireason_lib.ablation.claims import judge
    from unireason_lib.ablation.grid import load_grid
    from unireason_lib.ablation.ledger import Ledger, estimate
    from unireason_lib.ablation.plan import check_made_by, last_jobs, made_by, plan
    from unireason_lib.ablation.report import table_of_claims, table_of_conditions
    from unireason_lib.ablation.results import (
        Results,
        collect,
        read_kept,
        still_needed,
        write_results,
    )
    from unireason_lib.ablation.runner import finished, folder_of, run_jobs
    from unireason_lib.errors import GridError, UniReasonError
    from unireason_lib.tutorial.project import project_root
    from unireason_lib.tutorial.results import aligned

    root, study = project_root(), load_grid(grid)
    study = study.at(profile or study.profile, "\n".join(change or ()))
    chosen = study.seeds if seeds is None else study.first_seeds(seeds)
    if len(chosen) > len(study.seeds):
        study = replace(study, seeds=chosen)
    whole = plan(study)
    planned = plan(study, seeds=chosen, only=only or ())
    before = Results() if parts is None else read_kept(parts, study.name)
    folder = folder_of(study, root)
    ledger, keys = Ledger(folder / "ledger.jsonl"), {job.key for job in whole}
    if not mixed:
        here = made_by(study, root)
        for lines, where in ((before.lines, parts), (ledger.passed(), ledger.path)):
            check_made_by([line for key, line in lines.items() if key in keys], here, where)
    jobs = still_needed(planned, before)
    done = finished(jobs, ledger, root)
    strange = len(ledger.passed().keys() - keys)
    left = [job for job in jobs if job.key not in done]

    def cost() -> str:
        remaining = [job for job in jobs if job.key not in finished(jobs, ledger, root)]
        minutes = estimate(remaining, ledger.minutes(study.minutes))
        if minutes is None:
            return ""
        if ray is not None:
            return f", about {minutes:.0f} min of runs"
        return f", about {minutes / workers:.0f} min with {workers} at a time"

    if dry_run:
        lines = [("run", "shared by", "seed", "needs")]
        lines += [
            (job.name, ", ".join(job.conditions), str(job.seed), job.needs or "-")
            for job in jobs
            if job in left
        ]
        typer.echo(aligned(lines) + "\n")
        for job in left:
            typer.echo(job.command())
    kept = f"{len(planned) - len(jobs)} kept in {parts}, " if parts else ""
    typer.echo(
        f"{study.name}: {len(planned)} runs, {kept}{len(done)} finished before, {len(left)} to go{cost()}"
    )
    if strange:
        typer.echo(
            f"{strange} finished runs in {ledger.path.relative_to(root)} are of another form of this grid: left alone"
        )
    if dry_run:
        return
    if keep is not None:
        lost = read_kept(keep, study.name).tests - before.tests - finished(whole, ledger, root)
        if lost:
            raise GridError(
                keep / f"{study.name}.json",
                "nothing that would be lost",
                f"{len(lost)} tests that this study does not have",
                f"keep it elsewhere, or go on from them with --parts {keep}",
            )
    began = time.monotonic()
    command = "python -m unireason_lib " + shlex.join(["ablate", *sys.argv[2:]])

    def found_so_far() -> Results:
        return collect(study, root, ledger, command, before)

    def told(job, outcome, count, total) -> None:
        status, seconds, error = outcome
        typer.echo(
            f"  {count:3d} of {total}  {job.name}  {seconds:7.1f} s  {status}{': ' + error if error else ''}{cost()}"
        )
        if keep is not None and job.stage == "test" and status == "passed":
            try:  # so that this machine may be lost
                write_results(study, found_so_far(), keep, judged=False)
            except (OSError, UniReasonError) as problem:  # the study goes on
                typer.echo(f"  not kept: {problem}")

    result = run_jobs(
        jobs, study, root, workers=workers, retries=retries, ray=ray, mixed=mixed, on_end=told
    )
    found = found_so_far()
    missing = len(found.missing(study))
    ended = not result.interrupted and not missing and len(planned) == len(whole)
    for place in (keep, folder):
        if place is not None:
            write_results(study, found, place, judged=ended)
    if missing:
        typer.echo(f"\n{missing} of {len(last_jobs(whole))} tests of the study are missing")
    if not ended and not look:
        typer.echo("what came out is told when it has ended, or with --look")
    elif found.rows:
        shown = [told for name in study.conditions for told in (name, f"{name}, blind")]
        typer.echo("\n" + aligned(table_of_conditions(found.rows, shown)))
        if study.claims:
            typer.echo("\n" + aligned(table_of_claims(judge(found.rows, study.claims))))
    typer.echo(
        f"\n{len(result.passed)} passed, {len(result.failed)} failed, {len(result.skipped)} not begun; "
        f"{(time.monotonic() - began) / 60:.1f} min; {folder.relative_to(root)}/{study.name}.csv.gz holds all answers"
    )
    if result.interrupted:
        raise typer.Exit(130)
    if result.failed or result.skipped:
        raise typer.Exit(1)
