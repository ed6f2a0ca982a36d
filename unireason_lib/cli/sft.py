"""``sft``: supervised fine-tuning on a data set of grounded records."""

from __future__ import annotations

import os

import typer

from unireason_lib.cli.training import (
    Data,
    M3DRoot,
    Model,
    Out,
    ProfileName,
    Quiet,
    Seed,
    Set,
    Volumes,
    prepare,
)


def sft(
    data: Data,
    out: Out,
    model: Model,
    profile: ProfileName = "laptop",
    change: Set = None,
    seed: Seed = 0,
    m3d_root: M3DRoot = None,
    volumes: Volumes = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on grounded records: loss on its own words only, vision tower frozen.

    A run that was stopped or killed goes on from its last checkpoint. Losses and free-running answers are in
    log.jsonl and, in the end, drawn in curves.png; the finished model is in model/.
    """
    from unireason_lib.display import show_learning
    from unireason_lib.grounding import Settings
    from unireason_lib.training.logbook import read_log
    from unireason_lib.training.probes import answer_probe
    from unireason_lib.training.sft import SFTSettings, fine_tune

    settings, section, ready = prepare("sft", data, model, profile, change, seed, m3d_root, volumes)
    probe = answer_probe(
        ready.held_out,
        ready.pictures,
        section.probe_steps,
        form=section.form,
        settings=Settings(
            max_new_tokens=settings.generation.max_new_tokens,
            max_rounds=settings.generation.max_rounds,
        ),
    )
    made = fine_tune(
        ready.model,
        ready.processor,
        ready.records,
        ready.pictures,
        out,
        SFTSettings.from_profile(section, seed=seed),
        probes=[probe] if ready.held_out else [],
        progress=not quiet,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        if read_log(out / "log.jsonl"):  # a run shorter than log_steps has nothing to draw
            show_learning(out / "log.jsonl").savefig(out / "curves.png", dpi=150)
        typer.echo(f"{made}: the fine-tuned model; {out / 'log.jsonl'} and curves.png: how it went")
