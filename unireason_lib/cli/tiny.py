"""``tiny``: a complete checkpoint of the true architecture in seconds, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unireason_lib.errors import ModelError


def tiny(
    folder: Annotated[Path, typer.Argument(help="Where to save it; a new folder.")],
    seed: Annotated[int, typer.Option(help="Seed of the random weights.")] = 0,
    hidden: Annotated[int, typer.Option(help="Width of the language model.")] = 128,
    layers: Annotated[int, typer.Option(help="Layers of the language model.")] = 4,
) -> None:
    """Make a tiny Qwen2.5-VL checkpoint with random weights. It knows nothing, but everything runs on it."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        found = "files in it" if folder.is_dir() else "a file"
        raise ModelError(folder, "a new folder", found, "choose another name")
    from transformers.utils import logging

    from unireason_lib.grounding import build_tiny

    logging.disable_progress_bar()
    folder.parent.mkdir(parents=True, exist_ok=True)
    build_tiny(folder, seed=seed, hidden=hidden, layers=layers)
    typer.echo(
        f"{folder}: a Qwen2.5-VL checkpoint, hidden {hidden}, {layers} layers, random weights"
    )
