"""What happens during training, as JSON lines: losses, rates, and probes measured while it runs.

A line holds ``step`` and either the trainer's numbers (``loss``, ``learning_rate``, ``grad_norm``, ...) or one probe's.
A run that was killed and goes on repeats the steps after its last checkpoint, and so their lines; :func:`read_log`
gives each step once, as it was last.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainerCallback


@dataclass(frozen=True)
class Probe:
    """Something measured every so many steps.

    Attributes:
        name: Key of its values in the log.
        every: Steps between measurements; it is also measured after the last step.
        measure: Called with model and processor; gives plain values.
    """

    name: str
    every: int
    measure: Callable[[Any, Any], Mapping[str, Any]]


class Logbook(TrainerCallback):
    """Writes the log of a run.

    Args:
        path: File of JSON lines; lines are added.
        processor: Handed to probes.
        probes: What to measure while training.
    """

    def __init__(self, path: Path, processor: Any, probes: Sequence[Probe] = ()) -> None:
        self.path, self.processor, self.probes = path, processor, tuple(probes)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """The trainer's numbers; of several processes the first one writes."""
        if state.is_world_process_zero:
            self._write(state.global_step, logs or {})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """The probes that are due."""
        for probe in self.probes:
            if state.global_step % probe.every == 0 or state.global_step == state.max_steps:
                # in all processes, because weights may be spread over them
                found = probe.measure(model, self.processor)
                if state.is_world_process_zero:
                    self._write(state.global_step, {probe.name: found})

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(self.path, "a+b") as lines:
            lines.seek(max(0, lines.seek(0, 2) - 1))
            torn = lines.read() not in (b"", b"\n")  # the run before was killed while it wrote
            lines.write(b"\n" * torn + json.dumps({"step": step, **values}).encode() + b"\n")


def read_log(path: str | Path, key: str = "loss") -> list[dict[str, Any]]:
    """The lines of a log that have a key, each step once, in order of steps; a torn line is passed over."""
    kept: dict[int, dict[str, Any]] = {}
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            values = json.loads(line)
        except ValueError:  # a torn line
            continue
        if key in values:
            kept[values["step"]] = values
    return [kept[step] for step in sorted(kept)]
