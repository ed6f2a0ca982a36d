"""What the commands that train share: options, and what has to be there before the first step."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import typer

Data = Annotated[
    str,
    typer.Option(
        help="Data set (folder with sft/, rl/, images/; build makes one), or the authors' release."
    ),
]
Out = Annotated[Path, typer.Option(help="Folder of the run; a run in it is gone on with.")]
M3DRoot = Annotated[
    Path | None,
    typer.Option(
        "--m3d-root", help="Folder of the M3D volumes that you hold, for the authors' release."
    ),
]
Volumes = Annotated[
    Path | None,
    typer.Option(help="Table of rows of the release and their volumes: CSV id,volume, or JSON."),
]
Model = Annotated[
    str,
    typer.Option(help="Checkpoint to start from, a folder or hub id; an adapter is merged first."),
]
ProfileName = Annotated[str, typer.Option("--profile", help="smoke, laptop, t4 or gpu.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Change a setting: sft.learning_rate=2e-5; repeatable."),
]
Seed = Annotated[int, typer.Option(help="Of selection, order and everything random.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="No progress bars.")]


class Ready(NamedTuple):
    """What a training run begins with.

    Attributes:
        model, processor: The checkpoint to start from.
        records: What is learnt from.
        held_out: Records of other patients.
        pictures: Gives the pictures of a record.
    """

    model: Any
    processor: Any
    records: Sequence[Any]
    held_out: Sequence[Any]
    pictures: Any


def prepare(
    stage: Literal["sft", "rl"],
    data: str,
    model: str,
    profile: str,
    change: Sequence[str] | None,
    seed: int,
    m3d_root: Path | None = None,
    volumes: Path | None = None,
) -> tuple[Any, Any, Ready]:
    """The profile, its section for a stage, and everything that a run of it begins with."""
    from unireason_lib.errors import DatasetError
    from unireason_lib.profiles import load_profile

    settings = load_profile(profile, "\n".join(change or ()))

    import torch

    from unireason_lib.grounding import load_profile_model
    from unireason_lib.training.checkpoints import whole_checkpoint
    from unireason_lib.training.data import images_from, training_records
    from unireason_lib.training.probes import probe_records
    from unireason_lib.training.settings import spread_by

    section = settings[stage]
    counts = {"2d": section.counts_2d, "3d": section.counts_3d}
    where = {"form": stage, "m3d_root": m3d_root, "volumes": volumes, "seed": seed}
    records = training_records(data, counts, **where)
    try:
        held_out = probe_records(training_records(data, split="val", **where), section.probe_size)
    except DatasetError:  # a small set, or one that keeps nobody apart
        held_out = []
    device = None
    if spread_by() == "fsdp":
        device = "cpu"  # each process takes its part from there
    elif (
        settings.model.device in ("auto", "cuda")
        and "LOCAL_RANK" in os.environ
        and torch.cuda.is_available()
    ):
        device = f"cuda:{os.environ['LOCAL_RANK']}"  # each process on a GPU of its own
    model = whole_checkpoint(model, settings.model.dtype)
    loaded, processor = load_profile_model(settings.model, Path.cwd(), model, device=device)
    typer.echo(
        f"{len(records):,} records to learn from, {len(held_out)} of other patients to look after it"
    )
    return (
        settings,
        section,
        Ready(loaded, processor, records, held_out, images_from(data, m3d_root=m3d_root)),
    )
