"""``merge``: an adapter and the model it was trained on, made one checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def merge(
    model: Annotated[
        str, typer.Option(help="Folder or hub id of the model that the adapter was trained on.")
    ],
    adapter: Annotated[str, typer.Option(help="Folder or hub id of the PEFT adapter.")],
    out: Annotated[Path, typer.Option(help="Folder for the merged checkpoint; must not exist.")],
    dtype: Annotated[
        str, typer.Option(help="auto (the model's), float32, bfloat16, float16.")
    ] = "auto",
) -> None:
    """Merge an adapter into its model: a folder in plain transformers form, that needs neither PEFT nor the adapter."""
    from unireason_lib.grounding import load_model
    from unireason_lib.training.checkpoints import merge_adapter

    loaded, processor = load_model(model, adapter=adapter, dtype=dtype, device="cpu")
    typer.echo(f"{merge_adapter(loaded, processor, out, adapter)}: the merged checkpoint")
