"""Who made these results? A digest of a checkpoint that changes when its weights do.

Hashing tens of gigabytes before a run would cost minutes, so of large files their size, their beginning (for
safetensors the table of tensors) and pieces spread over the rest are hashed. Training moves all weights at once, so the
pieces tell two checkpoints apart.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

WHOLE = 8 * 2**20
"""Files up to this many bytes are hashed whole."""

PIECE, PIECES = 2**16, 64
"""Of larger ones so many pieces of so many bytes, besides the first :data:`WHOLE`."""

_PARTS = (".json", ".safetensors", ".jinja", ".txt", ".model")
_REPORTS = ("skills.json",)  # what was measured of a checkpoint does not make it another one


def sha256_of(path: str | Path) -> str:
    """The digest of a whole file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def model_identity(path: str) -> dict[str, Any]:
    """What tells a checkpoint or adapter from others.

    Args:
        path: A local folder, or a hub id.

    Returns:
        The folder's name and a digest of its configuration, tokenizer and weights; for a hub id the id and its commit,
        as far as that can be known.
    """
    folder = Path(path)
    if folder.is_dir():
        return {"name": folder.resolve().name, "sha256": _digest(folder)}
    return {"name": path, "commit": _commit(path)}


def _digest(folder: Path) -> str:
    total = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix in _PARTS and file.name not in _REPORTS and file.is_file():
            size = file.stat().st_size
            total.update(f"{file.name}\0{size}\0".encode())
            with file.open("rb") as stream:
                total.update(stream.read(WHOLE))
                for piece in range(PIECES if size > WHOLE else 0):
                    stream.seek(WHOLE + (size - WHOLE) * piece // PIECES)
                    total.update(stream.read(PIECE))
    return total.hexdigest()


def _commit(name: str) -> str | None:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(name, trust_remote_code=False)._commit_hash
    except Exception:  # an adapter, no network, no such model: loading will say so
        return None
