"""``sft``, ``rl``, ``merge`` and ``base``: commands that make checkpoints."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from .options import MODEL, OUT, Change, ProfileName, Quiet, option

Data = Annotated[
    str, option("Folder with sft/, rl/, images/ (see build), or the authors' release.")
]
Out = Annotated[Path, option("Folder of the run; a run in it goes on.", *OUT)]
Start = Annotated[str, option("Where to start: folder or hub id; an adapter is merged.", *MODEL)]
M3DRoot = Annotated[Path | None, option("Folder of the M3D volumes that you hold.", "--m3d-root")]
Volumes = Annotated[Path | None, option("Rows of the release and volumes: CSV id,volume, or JSON.")]


def sft(
    data: Data,
    out: Out,
    model: Start,
    profile: ProfileName = "laptop",
    change: Change = None,
    m3d_root: M3DRoot = None,
    volumes: Volumes = None,
    quiet: Quiet = False,
) -> None:
    """Fine-tune a model on grounded records: loss on the tokens it generates, vision tower frozen.

    A run that was stopped or killed goes on from its last checkpoint. Losses and free-running
    accuracy are in log.jsonl; the finished model, or its adapter (grounding.sft_lora_r), in model/.
    """
    _train("sft", data, out, model, profile, change, quiet, m3d_root=m3d_root, volumes=volumes)


def rl(
    data: Data,
    out: Out,
    model: Start,
    profile: ProfileName = "laptop",
    change: Change = None,
    m3d_root: M3DRoot = None,
    volumes: Volumes = None,
    quiet: Quiet = False,
) -> None:
    """Train a fine-tuned model by GRPO: rewards for answer and format, none for boxes.

    A run that was stopped or killed goes on from its last checkpoint. Rewards, KL and lengths are
    in log.jsonl, every reply in rollouts.jsonl; the finished model, or its adapter
    (grounding.grpo_lora_r), in model/.
    """
    _train("grpo", data, out, model, profile, change, quiet, m3d_root=m3d_root, volumes=volumes)


def _train(
    stage: str,
    data: str,
    out: Path,
    model: str,
    profile: str,
    change: list[str] | None,
    quiet: bool,
    **where: Any,
) -> None:
    """Records, model, training; ``where``: the volumes of the release."""
    from unireason_lib.config import load_profile

    settings = load_profile(profile, "\n".join(change or ()))
    section, ours = getattr(settings, stage), settings.grounding

    from unireason_lib.errors import DatasetError
    from unireason_lib.grounding import Settings, load_profile_model
    from unireason_lib.training.callbacks import FreeRunning, balanced, sharding
    from unireason_lib.training.checkpoints import whole_checkpoint
    from unireason_lib.training.data import images_from, training_records
    from unireason_lib.training.encoding import injects

    wanted = getattr(settings, f"{stage}_data")
    where |= {"seed": section.seed, "form": {"sft": "sft", "grpo": "rl"}[stage]}
    counts = {"2d": wanted.records_2d, "3d": wanted.records_3d}
    records = training_records(data, counts, **where)
    try:
        held_out = training_records(data, split="val", **where)
    except DatasetError:  # a small data set, or one that keeps no patient apart
        held_out = []
    held_out = balanced(held_out, ours.free_running_questions)
    images = images_from(data, m3d_root=where["m3d_root"])
    path = whole_checkpoint(model, settings.model.dtype)
    loaded = load_profile_model(settings.model, Path.cwd(), path, device=_device())
    typer.echo(f"{len(records):,} records to learn from, {len(held_out)} of other patients")
    if stage == "sft":
        from unireason_lib.training.sft import train_sft as train

        limits = (settings.generation.max_new_tokens, settings.generation.max_rounds)
    else:
        from unireason_lib.training.grpo import train_grpo as train

        limits = (section.max_completion_length, ours.rollout_max_rounds)
    how = Settings(limits[0], limits[1] * injects(ours.components))
    tests = FreeRunning(held_out, ours.free_running_steps, images, how)
    more = {
        "callbacks": [tests] if held_out and sharding() != "fsdp" else [],
        "progress": not quiet,
    }
    made = train(*loaded, records, images, out, settings, **more)
    if int(os.environ.get("RANK", 0)) == 0:
        typer.echo(f"{made}: the model; {out / 'log.jsonl'}: how it went")


def _device() -> str | None:
    """Where a process of a launcher puts its model: on a GPU of its own; with FSDP, which shards it
    from there, on the CPU. None: as the profile says."""
    import torch

    from unireason_lib.training.callbacks import sharding

    local = "LOCAL_RANK" in os.environ and torch.cuda.is_available()
    return "cpu" if sharding() == "fsdp" else f"cuda:{os.environ['LOCAL_RANK']}" if local else None


def merge(
    model: Annotated[str, option("The model that the adapter was trained on.", *MODEL)],
    adapter: Annotated[str, option("Folder or hub id of the PEFT adapter.")],
    out: Annotated[Path, option("Folder of the merged checkpoint; must not exist.", *OUT)],
    dtype: Annotated[str, option("auto, float32, bfloat16, float16.")] = "auto",
) -> None:
    """Merge an adapter into its model: a folder in plain transformers form."""
    from unireason_lib.training.checkpoints import merge_adapter

    typer.echo(f"{merge_adapter(model, adapter, out, dtype)}: the merged checkpoint")


def base(
    out: Out = Path("runs/tiny-base"),
    steps: Annotated[int | None, option("Optimizer steps in all.")] = None,
    seed: Annotated[int, option("Of the weights and the exercises.")] = 0,
    measure: Annotated[Path | None, option("Only measure the skills of this one.")] = None,
    size: Annotated[int, option("Held-out exercises of each stage.")] = 1000,
    quiet: Quiet = False,
) -> None:
    """Pre-train the tiny base on generic exercises: letters, boxes, choosing among images.

    A run that was stopped or killed goes on from its last checkpoint. The finished model is in
    model/, with its log and its skills on held-out exercises beside the weights.
    """
    from unireason_lib import tiny_base
    from unireason_lib.grounding import load_model
    from unireason_lib.io import read_json

    if measure is None:
        plan = tiny_base.Plan(seed=seed, **({} if steps is None else {"steps": steps}))
        made = tiny_base.pretrain(out, plan, final_size=size, progress=not quiet)
        typer.echo(f"{made}: the tiny base; {out / 'log.jsonl'}: how it went")
        skills = read_json(made / "skills.json")
    else:
        skills = tiny_base.measure(*load_model(measure, dtype="float32", device="cpu"), size)
    for name, scores in skills.items():
        values = (f"{key} {value:.3f}" for key, value in scores.items() if key != "n")
        typer.echo(f"{name:18} {', '.join(values)} (n={scores['n']:.0f})")
