"""``rl``: outcome RL of a fine-tuned model, on the questions of a data set."""

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


def rl(
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
    """Train a fine-tuned model on outcomes: GRPO with a reward for answer and form, none for boxes.

    A run that was stopped or killed goes on from its last checkpoint. Rewards, KL and lengths are in log.jsonl, every
    reply in rollouts.jsonl, questions that could not be asked in left_out.jsonl; the finished model, or its adapter
    (rl.lora_rank), is in model/.
    """
    from unireason_lib.grounding import Settings
    from unireason_lib.training.probes import answer_probe
    from unireason_lib.training.rl import RLSettings, reinforce

    _, section, ready = prepare("rl", data, model, profile, change, seed, m3d_root, volumes)
    limits = Settings(max_new_tokens=section.reply_tokens, max_rounds=section.reply_rounds)
    probe = answer_probe(ready.held_out, ready.pictures, section.probe_steps, settings=limits)
    made = reinforce(
        ready.model,
        ready.processor,
        ready.records,
        ready.pictures,
        out,
        RLSettings.from_profile(section, seed=seed),
        probes=[probe] if ready.held_out else [],
        progress=not quiet,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        typer.echo(f"{made}: the model; {out / 'log.jsonl'} and rollouts.jsonl: how it went")
