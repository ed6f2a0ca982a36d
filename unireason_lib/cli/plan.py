"""``plan``: the bill before it is paid."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from unireason_lib.errors import PlanError


def plan(
    gpus: Annotated[str, typer.Option(help="Number and name of the GPUs: 8xH100, A100, 2xL4, ...")],
    profile: Annotated[str, typer.Option(help="smoke, laptop, t4 or gpu.")] = "gpu",
    change: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a setting: sft.batch_size=1; repeatable."),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(help="3b, 7b, a folder with a config.json; default: the profile's base."),
    ] = None,
    strategy: Annotated[
        str | None,
        typer.Option(help="ddp, zero3, fsdp2, lora or qlora; default: what the profile asks for."),
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="sft, rl or test; repeatable; default: all.")
    ] = None,
    data: Annotated[
        str | None,
        typer.Option(
            help="Data set with sft/ and rl/ whose rows are counted; default: the paper's numbers with gpu, else "
            "the phantoms that the profile's notebooks make."
        ),
    ] = None,
    records: Annotated[
        str | None, typer.Option(help="Records of fine-tuning in 2D and 3D: 170000,50000.")
    ] = None,
    questions: Annotated[
        str | None, typer.Option(help="Questions of RL in 2D and 3D: 8000,4000.")
    ] = None,
    picture: Annotated[
        int | None,
        typer.Option(
            min=28, help="Side of a 2D picture in pixels; default: 512 with gpu, else a slice's."
        ),
    ] = None,
    served: Annotated[
        bool, typer.Option("--served", help="Rollouts from a vLLM server on as many GPUs again.")
    ] = False,
    price: Annotated[float | None, typer.Option(help="US dollars for an hour of one GPU.")] = None,
    grid: Annotated[
        list[Path] | None,
        typer.Option(help="Also the cost of this ablation grid at the profile; repeatable."),
    ] = None,
    out: Annotated[Path | None, typer.Option("--json", help="Also write it as JSON.")] = None,
) -> None:
    """What a profile takes in memory, hours and money, before anything is rented.

    From formulas and assumptions (planning/work.py, memory.py, machines.yaml), not from a run: hours are a range, from
    good to bad use of the GPUs. A set-up that cannot fit is refused, with the nearest that can.
    """
    from unireason_lib.planning import Cluster, bill, samples_of, shape_of
    from unireason_lib.planning.counts import phantom_rows
    from unireason_lib.planning.grids import grid_hours
    from unireason_lib.planning.launch import launch_command
    from unireason_lib.planning.report import table
    from unireason_lib.profiles import load_profile
    from unireason_lib.tutorial.results import aligned

    settings = load_profile(profile, "\n".join(change or ()))
    shape = shape_of(model or settings.model.base)
    cluster = Cluster.named(gpus, price)
    picture = picture or (512 if profile == "gpu" else None)
    sizes = samples_of(_frame(model or settings.model.base), settings.dataset.shape, picture)
    counts = _counted(data) if data else {} if profile == "gpu" else phantom_rows(settings)
    counts |= {
        k: _pair(k, v) for k, v in (("records", records), ("questions", questions)) if v is not None
    }
    made = bill(
        settings,
        shape,
        cluster,
        sizes,
        strategy=strategy,
        stages=tuple(stage) if stage else ("sft", "rl", "test"),
        served=served,
        **counts,
    )
    typer.echo(table(made))
    typer.echo("")
    for name, way in made.strategies.items():
        if name != "test":
            typer.echo(
                launch_command(name, settings, cluster, way, changes=change or (), served=served)
            )
    told: dict[str, Any] = made.to_dict()
    for path in grid or ():
        lines = grid_hours(path, profile, made, "\n".join(change or ()))
        typer.echo(f"\n{path}\n" + aligned(lines.table()))
        told.setdefault("grids", {})[str(path)] = lines.to_dict()
    if out is not None:
        from unireason_lib.io import write_whole

        out.parent.mkdir(parents=True, exist_ok=True)
        write_whole(out, json.dumps(told, indent=1) + "\n")


def _frame(model: str) -> Any:
    """How the model's processor resizes pictures; a hub id has the frame of Qwen2.5-VL."""
    from unireason_lib.imaging import ProcessorFrame
    from unireason_lib.imaging.frame import QWEN_FRAME

    if not any(
        (Path(model) / name).is_file()
        for name in ("processor_config.json", "preprocessor_config.json")
    ):
        return QWEN_FRAME
    from transformers import AutoProcessor

    return ProcessorFrame.from_processor(
        AutoProcessor.from_pretrained(model, trust_remote_code=False)
    )


def _counted(data: str) -> dict[str, dict[str, int]]:
    """Rows of a data set by dimension, without its pictures."""
    from unireason_lib.planning.counts import count_rows

    return {
        name: count_rows(data, part) for name, part in (("records", "sft"), ("questions", "rl"))
    }


def _pair(name: str, text: str) -> dict[str, int]:
    parts: Sequence[str] = text.replace("_", "").split(",")
    if (
        len(parts) != 2
        or not all(part.strip().isdigit() for part in parts)
        or not sum(map(int, parts))
    ):
        raise PlanError(
            f"--{name}", "two numbers, 2D and 3D: 170000,50000", repr(text), "correct it"
        )
    return {"2d": int(parts[0]), "3d": int(parts[1])}
