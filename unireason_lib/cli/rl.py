"""``rl``: outcome RL of a fine-tuned model, on the questions of a data set."""

from __future__ import annotations

import os

import typer

from unireason_lib.cli.sft import Data, Model, Out, ProfileName, Quiet, Seed, Set


def rl(
    data: Data,
    out: Out,
    model: Model,
    profile: ProfileName = "laptop",
    change: Set = None,
    seed: Seed = 0,
    quiet: Quiet = False,
) -> None:
    """Train a fine-tuned model on outcomes: GRPO with a reward for answer and form, none for boxes.

    A run that was stopped or killed goes on from its last checkpoint. Rewards, KL and lengths are in log.jsonl, every
    reply in rollouts.jsonl, questions that could not be asked in left_out.jsonl; the finished model is in model/.
    """
    from unireason_lib.profiles import load_profile

    settings = load_profile(profile, "\n".join(change or ()))

    from unireason_lib.grounding import Settings, load_model
    from unireason_lib.training.data import pictures_from, training_records
    from unireason_lib.training.probes import answer_probe, probe_records
    from unireason_lib.training.rl import RLSettings, reinforce

    section = settings.rl
    counts = {"2d": section.counts_2d, "3d": section.counts_3d}
    records = training_records(data, counts, seed=seed)
    held_out = probe_records(training_records(data, split="val", seed=seed), section.probe_size)
    pictures = pictures_from(data)
    device = None if settings.model.device == "auto" else settings.model.device
    loaded, processor = load_model(model, dtype=settings.model.dtype, device=device)
    limits = Settings(max_new_tokens=section.reply_tokens, max_rounds=section.reply_rounds)
    probe = answer_probe(held_out, pictures, section.probe_steps, settings=limits)
    typer.echo(
        f"{len(records):,} questions to learn from, {len(held_out)} of other patients to look after it"
    )
    made = reinforce(
        loaded,
        processor,
        records,
        pictures,
        out,
        RLSettings.from_profile(section, seed=seed),
        probes=[probe] if held_out else [],
        progress=not quiet,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        typer.echo(f"{made}: the model; {out / 'log.jsonl'} and rollouts.jsonl: how it went")
