"""Which model is asked, and what tells it from others: results of two are never mixed in a file."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.imaging import ProcessorFrame

if TYPE_CHECKING:  # torch takes seconds, which nobody waits for who only reads results
    from unireason_lib.grounding import GroundedGenerator
    from unireason_lib.imaging import Serialization

WHOLE, PIECE, PIECES = 8 * 2**20, 2**16, 64  # bytes hashed at the beginning, and behind it
_SUFFIXES = (".json", ".safetensors", ".jinja", ".txt", ".model")


@dataclass(frozen=True)
class Checkpoint:
    """Which model, and where it runs; see :func:`unireason_lib.grounding.load_model`."""

    path: str
    adapter: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None

    def generator(self) -> GroundedGenerator:
        """Load it, the first time that it is asked for."""
        from unireason_lib.grounding import GroundedGenerator, load_model

        if "loaded" not in vars(self):
            vars(self)["loaded"] = GroundedGenerator(*load_model(**asdict(self)))
        return vars(self)["loaded"]

    @cached_property
    def serialization(self) -> Serialization | None:
        """How scans became images when it was trained; None when it does not say."""
        from unireason_lib.grounding import checkpoint_serialization

        return checkpoint_serialization(self.path, self.adapter)

    def frame(self) -> ProcessorFrame:
        """The frame of its processor, without loading the weights."""
        from transformers import AutoProcessor

        try:
            processor = AutoProcessor.from_pretrained(self.path, trust_remote_code=False)
            return ProcessorFrame.from_processor(processor)
        except (OSError, ValueError, KeyError):  # loading all of it says better what is wrong
            return self.generator().frame

    def identity(self) -> dict[str, Any]:
        """What tells its replies from those of another model; not where it runs."""
        adapter = model_identity(self.adapter) if self.adapter else None
        return {"model": model_identity(self.path), "adapter": adapter, "dtype": self.dtype}


def model_identity(path: str) -> dict[str, Any]:
    """The name of a folder with a checkpoint or adapter, and a digest of its configuration,
    tokenizer and weights (of large files size, beginning and pieces of the rest: training moves all
    weights at once). For a hub id its commit, if it can be known."""
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
