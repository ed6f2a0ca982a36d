"""Checkpoints of a run: which is the newest whole one, what Ctrl-C leaves, and how a finished model is saved."""

from __future__ import annotations

import json
import shutil
import signal
import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

from transformers import PrinterCallback, TrainerCallback

from unireason_lib.dataset.schema import Record
from unireason_lib.errors import DatasetError, TrainingError
from unireason_lib.grounding.model import base_model, checkpoint_serialization
from unireason_lib.imaging import Serialization
from unireason_lib.io import write_whole
from unireason_lib.training.card import merged_card


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
        plain = not (self.is_deepspeed_enabled or self.is_fsdp_enabled) and hasattr(
            model, "from_pretrained"
        )
        if not plain or not any(folder.glob("model*.safetensors")):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            return
        saved = type(model).from_pretrained(folder, dtype=model.dtype, use_safetensors=True)
        model.load_state_dict(saved.state_dict(), strict=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL's card of every checkpoint says nothing of this; a finished model gets its own (:func:`save_model`)."""


class SaveOnInterrupt(TrainerCallback):
    """Ctrl-C ends the step that is under way, saves a checkpoint and stops; a second one stops at once."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen, where signals can be listened to."""
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop, if asked."""
        control.should_save = control.should_save or self.asked
        control.should_training_stop = control.should_training_stop or self.asked

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Listen no more."""
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)


def train(trainer: Any, out: Path) -> None:
    """Train to the end, from the newest checkpoint of the run if there is one; quiet where no bar is shown.

    Raises:
        KeyboardInterrupt: Ctrl-C; a checkpoint of the step that was under way is saved.
    """
    if trainer.args.disable_tqdm:
        trainer.remove_callback(PrinterCallback)
    interrupt = SaveOnInterrupt()
    trainer.add_callback(interrupt)
    trainer.train(resume_from_checkpoint=latest(out))
    if interrupt.asked:
        raise KeyboardInterrupt(
            f"stopped at step {trainer.state.global_step}; the same call goes on from there"
        )


def latest(folder: Path) -> str | None:
    """The newest whole checkpoint of a run, or None."""
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    whole = [path for path in found if (path / "trainer_state.json").is_file()]
    return str(whole[-1]) if whole else None


def save_model(
    trainer: Any,
    processor: Any,
    folder: Path,
    card: Callable[[], str] | None = None,
    serialization: Serialization | None = None,
) -> Path:
    """Save model (or adapter), processor and serialization whole: under another name first, then renamed.

    The trainer saves, because it can gather weights that are spread over processes (DeepSpeed, FSDP); of several
    processes one writes, and all go on when the folder is there.

    Args:
        trainer: What was trained.
        processor: Saved beside it.
        folder: Where.
        card: Writes its ``README.md``.
        serialization: How scans became the images that it was trained on.
    """
    temporary = folder.with_name(folder.name + ".partial")
    if trainer.is_world_process_zero():
        shutil.rmtree(temporary, ignore_errors=True)
    trainer.accelerator.wait_for_everyone()
    trainer.save_model(str(temporary))
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        (temporary / "training_args.bin").unlink(missing_ok=True)  # a pickle: nothing here reads it
        processor.save_pretrained(temporary)
        if serialization is not None:
            serialization.save(temporary)
        if card is not None:  # in place of the one that PEFT puts beside an adapter
            write_whole(temporary / "README.md", card())
        temporary.rename(folder)
    trainer.accelerator.wait_for_everyone()
    return folder


def merge_adapter(model: Any, processor: Any, folder: Path, adapter: str | Path) -> Path:
    """Save a model with its PEFT adapter as one checkpoint: under another name first, then renamed.

    Args:
        model: With the adapter on top, not quantised: merged 4-bit weights would be rounded again.
        processor: Saved beside it.
        folder: Where; must not exist.
        adapter: Where it came from; the card that lies there is taken along, with the words for a whole checkpoint.

    Raises:
        TrainingError: The folder exists, or there is nothing to merge.
    """
    if folder.exists() or not hasattr(model, "merge_and_unload"):
        raise TrainingError(
            folder,
            "no such folder, and a model with an adapter",
            "a folder" if folder.exists() else "a model without one",
            "choose another name" if folder.exists() else "give the adapter's folder",
        )
    temporary = folder.with_name(folder.name + ".partial")
    shutil.rmtree(temporary, ignore_errors=True)
    serialization = checkpoint_serialization(base_model(model).name_or_path, adapter)
    model.merge_and_unload(safe_merge=True).save_pretrained(temporary)
    processor.save_pretrained(temporary)
    if serialization is not None:
        serialization.save(temporary)
    card = Path(adapter) / "README.md"
    if card.is_file():
        write_whole(temporary / "README.md", merged_card(card.read_text(encoding="utf-8")))
    return temporary.rename(folder)


def whole_checkpoint(path: str | Path, dtype: str = "auto") -> str:
    """Where a model is that can be trained further: the path itself, or for the folder of an adapter the checkpoint
    that it makes with its model, which lies beside it under the name ``merged`` and is made when it is not there.

    Args:
        path: Folder or hub id of a checkpoint, or folder of a PEFT adapter.
        dtype: Of the merged weights.

    Raises:
        TrainingError: It has to be made, and several processes would make it at once.
    """
    from unireason_lib.grounding.model import adapter_base, load_model
    from unireason_lib.training.settings import processes

    base = adapter_base(path)
    if base is None:
        return str(path)
    merged = Path(path).parent / "merged"
    if not merged.is_dir():
        if processes() > 1:
            raise TrainingError(
                path,
                "a whole checkpoint",
                "an adapter, and several processes",
                f"merge it first: python -m unireason_lib merge --model {base} --adapter {path} --out {merged}"
                + (f" --dtype {dtype}" if dtype != "auto" else ""),
            )
        model, processor = load_model(base, adapter=path, dtype=dtype, device="cpu")
        merge_adapter(model, processor, merged, path)
    return str(merged)


def serialization_of(records: Sequence[Record]) -> Serialization | None:
    """How scans became the images of some records: the commonest layout of their volumes, and the size of their 2D
    images where all have one. It is saved with what learns from them, and is the default of what asks it."""
    layouts, image_sizes = Counter(), Counter()
    for record in records:
        if record.dimension == "2d":
            image_sizes[record.image_size] += 1
        elif record.serialization.get("size"):
            size, window = record.serialization["size"], record.serialization["window"]
            layouts[tuple(size), window if isinstance(window, str) else tuple(window)] += 1
    image_size = next(iter(image_sizes)) if len(image_sizes) == 1 else None
    if not layouts:
        return Serialization(image_size=image_size) if image_size else None
    (size, window), _ = layouts.most_common(1)[0]
    return Serialization(size, window, image_size)


def keep_settings(out: Path, settings: Mapping[str, Any], records: Sequence[Record]) -> None:
    """Write down what a run is made of; refuse to go on with another.

    Raises:
        DatasetError: The folder holds a run with other settings or records.
    """
    digest = blake2b(digest_size=16)
    for record in records:
        digest.update(f"{record.id}\0{record.reply}\0".encode())
    now = {"settings": dict(settings), "records": len(records), "hash": digest.hexdigest()}
    path = out / "settings.json"
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        changed = [
            f"{k} was {before['settings'][k]}, is {v}"
            for k, v in now["settings"].items()
            if before["settings"].get(k, v)
            != v  # a setting that came later leaves the run as it was
        ]
        changed += ["other records"] if before["hash"] != now["hash"] else []
        if changed:
            raise DatasetError(
                out,
                "the settings and records that this run was begun with",
                "; ".join(changed),
                "undo the change to go on, or train into another folder",
            )
        return
    out.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(now, indent=1) + "\n")
