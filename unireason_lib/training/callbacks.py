"""What happens beside the steps of a training run: its log, free-running tests, and Ctrl-C.

The log is a file of JSON lines. A line holds ``step`` and either the trainer's numbers, which it
has reduced over all processes (``loss``, ``learning_rate``, ``grad_norm``, ...), or under
``free_running`` what the replies were worth that the model generated at that step.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from transformers import TrainerCallback

from unireason_lib.dataset.schema import Record
from unireason_lib.io import append_lines, read_lines, write_whole
from unireason_lib.training.encoding import injects

LOG = "log.jsonl"
"""Name of the log in the folder of a run."""


def read_log(path: str | Path, key: str = "loss") -> list[dict[str, Any]]:
    """The lines of a log that have a key, in order of steps."""
    return sorted((one for one in read_lines(path) if key in one), key=lambda one: one["step"])


class RunLog(TrainerCallback):
    """Writes the log of a run. One that is resumed continues it from its checkpoint: lines of later
    steps, which are now done again, are taken out.

    Args:
        path: File of JSON lines.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take out what will be written again."""
        if state.is_world_process_zero and self.path.exists():
            kept = [line for line in read_lines(self.path) if line["step"] <= state.global_step]
            write_whole(self.path, (json.dumps(line) + "\n" for line in kept))

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The trainer's numbers, already reduced; one process writes them."""
        if state.is_world_process_zero:
            append_lines(self.path, [{"step": state.global_step, **(logs or {})}])


class FreeRunning(TrainerCallback):
    """Replies that the model generates during training, judged and logged: the loss on given text
    looks fine long before the letter is right.

    Logged by dimension: ``n``, ``accuracy`` (failed replies count as wrong), ``iou`` (mean over the
    true boxes; None without any), ``format`` (proportion of compliant replies), ``followed``
    (rationale-answer consistency) and ``failed``.

    Args:
        questions: Records of held-out patients; keep them few (:func:`balanced`).
        every: Steps between tests; there is one after the last step too.
        images: Gives the images of a record.
        components: That are trained; only ``full`` gets regions.
        settings: Of generation, :class:`~unireason_lib.grounding.Settings`.
        batch_size: Questions whose replies are generated together.
    """

    def __init__(
        self,
        questions: Sequence[Record],
        every: int,
        images: Any,
        *,
        components: str = "full",
        settings: Any = None,
        batch_size: int = 32,
    ) -> None:
        from unireason_lib.evaluation.benchmarks import record_item
        from unireason_lib.grounding import Settings

        self.items = [record_item(record, images) for record in questions]
        self.every, self.batch_size = every, batch_size
        self.settings = settings or Settings(max_new_tokens=192)
        if not injects(components):
            self.settings = Settings(**{**vars(self.settings), "max_rounds": 0})

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """FSDP shards weights in a way in which this process cannot generate."""
        if sharding() == "fsdp" and self.items:
            warnings.warn("no free-running tests while FSDP shards the weights", stacklevel=2)
            self.items = []

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The test, if it is due: in all processes, because weights may be sharded over them."""
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and self.items:
            found = self.measure(kwargs["model"], kwargs["processing_class"])
            if state.is_world_process_zero:
                line = {"step": state.global_step, "free_running": found}
                append_lines(Path(args.output_dir) / LOG, [line])

    def measure(self, model: Any, processor: Any) -> dict[str, dict[str, Any]]:
        """Ask all questions now; gives dimension -> numbers."""
        from unireason_lib.evaluation import as_table, ask_items
        from unireason_lib.grounding import GroundedGenerator

        generator, how = GroundedGenerator(model, processor), {"batch_size": self.batch_size}
        table = as_table(ask_items(generator, self.items, settings=self.settings, **how))
        columns = {"accuracy": "correct", "iou": "iou_all", "format": "format"}
        columns["followed"] = "followed"
        return {
            str(dimension): {
                "n": len(part),
                **{
                    name: float(part[column].mean()) if part[column].notna().any() else None
                    for name, column in columns.items()
                },
                "failed": int(part["failed"].sum()),
            }
            for dimension, part in table.groupby("dimension")
        }


def balanced(records: Sequence[Record], size: int) -> list[Record]:
    """The first of some records in random order: at most ``size``, as many about slices as about
    volumes where there are both."""
    parts = [[one for one in records if one.dimension == d] for d in ("2d", "3d")]
    each = size // max(1, sum(map(bool, parts)))
    return [one for part in parts for one in part[:each]]


class SaveOnInterrupt(TrainerCallback):
    """Ctrl-C in the block of a ``with`` ends the step under way, saves a checkpoint and stops; a
    second one stops at once. However the block ends, the signal's handler is what it was before."""

    def __init__(self) -> None:
        self.asked = False
        self._before: Any = None

    def __enter__(self) -> SaveOnInterrupt:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, number: int, frame: Any) -> None:
        self.asked = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Save and stop after the same step in all processes, if one was asked to."""
        self.asked = in_any_process(self.asked, args.device)
        control.should_save = control.should_save or self.asked
        control.should_training_stop = control.should_training_stop or self.asked


def in_any_process(flag: bool, device: Any = "cpu") -> bool:
    """Whether a flag is set in any process of a run. A process that stops or raises alone leaves
    the others waiting for it for ever, so that is decided together."""
    if not (distributed.is_available() and distributed.is_initialized()):
        return flag
    number = torch.tensor(float(flag), device=device)
    distributed.all_reduce(number, op=distributed.ReduceOp.MAX)
    return bool(number)


def sharding() -> str | None:
    """What shards weights over processes, as ``accelerate launch`` says: ``"deepspeed"``,
    ``"fsdp"`` or None."""
    for name in ("deepspeed", "fsdp"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() in ("true", "1"):
            return name
    return None


def trim_memory() -> bool:
    """Hand memory that nobody uses back to the system: tensors of many sizes leave holes behind,
    gigabytes in a long RL run on a CPU. False where the C library cannot (not glibc)."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        return bool(ctypes.CDLL(None).malloc_trim(0))
    except AttributeError:  # musl
        return False
