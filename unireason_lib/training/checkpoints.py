"""Checkpoints of a run: which is the newest whole one, and how a finished model is saved."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any


class ExactResume:
    """Mixin for trainers: a checkpoint's weights are really loaded when a run goes on.

    transformers saves Qwen2.5-VL under the names of its hub checkpoints (``visual.*``, ``model.layers.*``), but
    ``Trainer`` loads the file by the names of the class in memory (``model.visual.*``,
    ``model.language_model.layers.*``) with ``strict=False``: nothing fits, nothing is loaded, and the run goes on
    from whatever weights it was begun with, with a warning at most. Here the model's own loader reads the file.
    """

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        model = model if model is not None else self.model
        folder = Path(resume_from_checkpoint)
        plain = not (self.is_deepspeed_enabled or self.is_fsdp_enabled) and hasattr(model, "from_pretrained")
        if not plain or not any(folder.glob("model*.safetensors")):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
        model.load_state_dict(saved.state_dict(), strict=True)


def latest(folder: Path) -> str | None:
    """The newest whole checkpoint of a run, or None."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in found if (path / "trainer_state.json").is_file()]
    return str(whole[-1]) if whole else None


def save_model(model: Any, processor: Any, folder: Path) -> Path:
    """Save model (or adapter) and processor whole: under another name first, then renamed."""
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    model.save_pretrained(temporary)
    processor.save_pretrained(temporary)
    return temporary.rename(folder)
