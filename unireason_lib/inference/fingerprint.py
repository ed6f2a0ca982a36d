"""A digest of a checkpoint that changes when its weights do: of large files the size, the beginning
(the table of tensors) and pieces spread over the rest, as training moves all weights at once.
"""

from __future__ import annotations

import hashlib
from contextlib import suppress
from pathlib import Path
from typing import Any

WHOLE, PIECE, PIECES = 8 * 2**20, 2**16, 64  # bytes hashed at the beginning, and behind it
_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")


def model_identity(path: str) -> dict[str, Any]:
    """What tells a checkpoint or adapter from others: its folder's name and a digest of
    configuration, tokenizer and weights; for a hub id its commit, as far as it can be known."""
    folder, digest, commit = Path(path), hashlib.sha256(), None
    if not folder.is_dir():
        from transformers import AutoConfig

        with suppress(Exception):  # an adapter, no network, no such model: loading will say so
            commit = AutoConfig.from_pretrained(path, trust_remote_code=False)._commit_hash
        return {"name": path, "commit": commit}
    for file in sorted(folder.iterdir()):
        # what was measured of a model (skills) does not make it another one
        if file.suffix in _SUFFIXES and file.name != "skills.json":
            size = file.stat().st_size
            digest.update(f"{file.name}\0{size}\0".encode())
            with file.open("rb") as stream:
                digest.update(stream.read(WHOLE))
                for piece in range(PIECES if size > WHOLE else 0):
                    stream.seek(WHOLE + (size - WHOLE) * piece // PIECES)
                    digest.update(stream.read(PIECE))
    return {"name": folder.resolve().name, "sha256": digest.hexdigest()}
