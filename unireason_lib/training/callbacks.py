"""What happens beside the steps of a training run: its log, free-running tests, and Ctrl-C.

The log is a file of JSON lines: ``step`` and either the trainer's numbers, reduced over all
processes, or under ``free_running`` what the replies were worth that the model generated then.
"""

import ctypes
import json
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

import torch
from accelerate.utils import gather_object, parse_flag_from_env
from safetensors.torch import load_file, save_file
from transformers import TrainerCallback

from unireason_lib.dataset.schema import Record
from unireason_lib.errors import TrainingError
from unireason_lib.evaluation import as_table, ask_items, record_item
from unireason_lib.grounding import GroundedGenerator, Settings
from unireason_lib.io import append_lines, read_lines, write_whole

LOG = "log.jsonl"  # in the folder of a run
BEST = "best.safetensors"  # likewise


def read_log(path: str | Path, key: str = "loss") -> list[dict[str, Any]]:
    """The lines of a log that have a key, in order of steps."""
    return [line for line in read_lines(path) if key in line]


def cut_log(path: Path, steps: int) -> None:
    """Take lines of later steps out of a log, which a resumed run writes again."""
    if path.exists():
        kept = [line for line in read_lines(path) if line["step"] <= steps]
        write_whole(path, (json.dumps(line) + "\n" for line in kept))


class RunLog(TrainerCallback):
    """Writes the trainer's numbers to the log, of all processes the first."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            cut_log(Path(args.output_dir) / LOG, state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            line = {"step": state.global_step, **kwargs["logs"]}
            append_lines(Path(args.output_dir) / LOG, [line])


class FreeRunning(TrainerCallback):
    """Replies that the model generates during training, judged and logged after every ``every``
    steps and the last: the loss on given text looks fine long before the letter is right.

    Logged by dimension: ``n``, ``accuracy`` (``failed`` replies count as wrong), ``iou`` (mean over
    the true boxes; None without any), ``format`` and ``followed`` (proportions of compliant
    replies, and of rationales that the answer follows from). With ``best``, a dimension, the run
    ends with the weights of the test in which that had its highest accuracy (the first of equal
    ones). ``say`` gets a line about each test. Not under FSDP, whose sharded weights cannot
    generate in one process."""

    def __init__(
        self,
        questions: Sequence[Record],
        every: int,
        images: Callable[[Record], Sequence[Any]],
        settings: Settings,
        best: str | None = None,
        say: Callable[[str], object] | None = None,
    ) -> None:
        self.items = [record_item(record, images) for record in questions]
        self.every, self.settings, self.best, self.say = every, settings, best, say
        if best and (sharding() or best not in {item.dimension for item in self.items}):
            expected = f"questions in {best}, and weights that are not sharded"
            found, do = f"{len(self.items)} questions, {sharding()}", "set grounding.keep_best=null"
            raise TrainingError("grounding.keep_best", expected, found, do)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The test, if it is due: in all processes, because weights may be sharded over them."""
        due = state.global_step % self.every == 0 or state.global_step == state.max_steps
        if due and self.items:
            kind = torch.bfloat16 if args.bf16 else torch.float16  # as in training
            with torch.autocast(args.device.type, kind, enabled=args.bf16 or args.fp16):
                found = self.measure(kwargs["model"], kwargs["processing_class"])
            if state.is_world_process_zero:
                log = Path(args.output_dir) / LOG
                if self.best:
                    lines = [line["free_running"] for line in read_log(log, "free_running")]
                    before = [line[self.best]["accuracy"] for line in lines]
                    if found[self.best]["accuracy"] > max(before, default=-1):
                        learnt = kwargs["model"].named_parameters()
                        learnt = {n: p.detach().contiguous() for n, p in learnt if p.requires_grad}
                        save_file(learnt, log.with_name("best.partial"))
                        log.with_name("best.partial").replace(log.with_name(BEST))
                append_lines(log, [{"step": state.global_step, "free_running": found}])
                if self.say:
                    parts = [f"{d} accuracy {part['accuracy']:.0%}" for d, part in found.items()]
                    self.say(f"step {state.global_step}: {', '.join(parts)}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.best and state.global_step == state.max_steps:
            best = load_file(Path(args.output_dir) / BEST)
            kwargs["model"].load_state_dict(best, strict=False)

    def measure(self, model: Any, processor: Any) -> dict[str, dict[str, Any]]:
        """Ask all questions now; gives dimension -> numbers."""
        generator = GroundedGenerator(model, processor)
        table = as_table(ask_items(generator, self.items, settings=self.settings, batch_size=32))
        table = table.rename(columns={"correct": "accuracy", "iou_all": "iou"})
        found = {}
        for dimension, part in table.groupby("dimension"):
            found[str(dimension)] = {"n": len(part), "failed": int(part["failed"].sum())}
            for name in ("accuracy", "iou", "format", "followed"):
                values = part[name].dropna()
                found[str(dimension)][name] = float(values.mean()) if len(values) else None
        return found


def balanced(records: Sequence[Record], size: int) -> list[Record]:
    """The first of some records in random order: at most ``size``, as many about slices as about
    volumes where there are both."""
    parts = [[one for one in records if one.dimension == d] for d in ("2d", "3d")]
    each = size // max(1, sum(map(bool, parts)))
    return [one for part in parts for one in part[:each]]


class SaveOnInterrupt(TrainerCallback):
    """Ctrl-C in the block of a ``with`` ends the step under way, saves a checkpoint and stops; a
    second one stops at once. However the block ends, the signal's handler is what it was before.
    A run can be resumed exactly after ``every`` steps: to save and to stop waits for such a step.
    """

    def __init__(self, every: int = 1) -> None:
        self.every, self.asked, self.save = every, False, False
        self._before: Any = None

    def __enter__(self) -> Self:
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
        self.asked = any(gather_object([self.asked]))
        self.save |= self.asked or control.should_save
        control.should_save = False
        if state.global_step % self.every == 0 or state.global_step >= state.max_steps:
            control.should_save, self.save = self.save, False
            control.should_training_stop |= self.asked


def sharding() -> str | None:
    """What shards weights over processes, as ``accelerate launch`` says: ``"deepspeed"``,
    ``"fsdp"`` or None."""
    names = ("deepspeed", "fsdp")
    return next((n for n in names if parse_flag_from_env(f"ACCELERATE_USE_{n.upper()}")), None)


def trim_memory() -> None:
    """Hand memory that nobody uses back to the system: tensors of many sizes leave holes behind,
    gigabytes in a long RL run on a CPU. Only glibc can."""
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)
