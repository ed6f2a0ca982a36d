"""``sft``: supervised fine-tuning on a data set of grounded records."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

Data = Annotated[Path, typer.Option(help="Folder of the data set (sft/, rl/, images/); build makes one.")]
Out = Annotated[Path, typer.Option(help="Folder of the run; a run in it is gone on with.")]
Model = Annotated[str, typer.Option(help="Checkpoint to start from, a folder or hub id.")]
ProfileName = Annotated[str, typer.Option("--profile", help="smoke, laptop or gpu.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", help="Change a setting: sft.learning_rate=2e-5; repeatable.")
]
Seed = Annotated[int, typer.Option(help="Of selection, order and everything random.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


def sft(
    data: Data,
    out: Out,
    model: Model,
    profile: ProfileName = "laptop",
    change: Set = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on grounded records: loss on its own words only, vision tower frozen.

    A run that was stopped or killed goes on from its last checkpoint. Losses and free-running answers are in
    log.jsonl and, in the end, drawn in curves.png; the finished model is in model/.
    """
    from unireason_lib.profiles import load_profile

    settings = load_profile(profile, "\n".join(change or ()))

    import torch

    from unireason_lib.display import show_learning
    from unireason_lib.grounding import Settings, load_model
    from unireason_lib.training.data import pictures_from, training_records
    from unireason_lib.training.probes import answer_probe, probe_records
    from unireason_lib.training.sft import SFTSettings, fine_tune

    section = settings.sft
    counts = {"2d": section.counts_2d, "3d": section.counts_3d}
    records = training_records(data, counts, seed=seed)
    held_out = probe_records(training_records(data, split="val", seed=seed), section.probe_size)
    pictures = pictures_from(data)
    device = None if settings.model.device == "auto" else settings.model.device
    if device in (None, "cuda") and "LOCAL_RANK" in os.environ and torch.cuda.is_available():
        device = f"cuda:{os.environ['LOCAL_RANK']}"  # each process on a GPU of its own
    loaded, processor = load_model(model, dtype=settings.model.dtype, device=device)
    probe = answer_probe(
        held_out,
        pictures,
        section.probe_steps,
        form=section.form,
        settings=Settings(
            max_new_tokens=settings.generation.max_new_tokens, max_rounds=settings.generation.max_rounds
        ),
    )
    typer.echo(f"{len(records):,} records to learn from, {len(held_out)} of other patients to look after it")
    made = fine_tune(
        loaded,
        processor,
        records,
        pictures,
        out,
        SFTSettings.from_profile(section, seed=seed),
        probes=[probe] if held_out else [],
        progress=not quiet,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        show_learning(out / "log.jsonl").savefig(out / "curves.png", dpi=150)
        typer.echo(f"{made}: the fine-tuned model; {out / 'log.jsonl'} and curves.png: how it went")
