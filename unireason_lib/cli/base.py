"""``base``: pre-train the tiny base on generic exercises, or measure the skills of one."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Out = Annotated[Path, typer.Option(help="Folder of the run; a run in it is gone on with.")]
Steps = Annotated[
    int | None, typer.Option(min=1, help="Optimizer steps in all; default: the plan's.")
]
Seed = Annotated[int, typer.Option(help="Of the weights and the exercises.")]
Measure = Annotated[
    Path | None,
    typer.Option(help="Only measure the skills of this checkpoint, on held-out exercises."),
]
Size = Annotated[int, typer.Option(min=1, help="Held-out exercises of each of three stages.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def base(
    out: Out = Path("runs/tiny-base"),
    steps: Steps = None,
    seed: Seed = 0,
    measure: Measure = None,
    size: Size = 1000,
    quiet: Quiet = False,
) -> None:
    """Pre-train the tiny base: letters, pointing, choosing among pictures; nothing of the study.

    A run that was stopped or killed goes on from its last checkpoint. Losses and skills are in log.jsonl, the finished
    model in model/, with its log and its skills on held-out exercises (log.jsonl, skills.json) beside the weights.
    """
    import json

    from unireason_lib.grounding import build_tiny, load_model
    from unireason_lib.io import write_whole
    from unireason_lib.training.base.pretrain import Plan, pretrain
    from unireason_lib.training.base.skills import measure as measured

    made = measure
    if made is None:
        start = out / "start"
        if not start.is_dir():
            build_tiny(start, seed=seed)
        plan = Plan(seed=seed) if steps is None else Plan(seed=seed, steps=steps)
        made = pretrain(start, out, plan, progress=not quiet)
        typer.echo(f"{made}: the tiny base; {out / 'log.jsonl'}: how it went")
    model, processor = load_model(made, dtype="float32", device="cpu")
    skills = measured(model, processor, size)
    for name, scores in skills.items():
        words = ", ".join(
            f"{key} {value:.3f}" for key, value in scores.items() if key not in ("n", "iou_error")
        )
        typer.echo(f"{name:18} {words} (n={scores['n']:.0f})")
    if measure is None:
        write_whole(made / "log.jsonl", (out / "log.jsonl").read_text(encoding="utf-8"))
        write_whole(made / "skills.json", json.dumps(skills, indent=1) + "\n")
