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

    def on_step_end(
        self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any
    ) -> None:
        """The probes that are due."""
        for probe in self.probes:
            if state.global_step % probe.every == 0 or state.global_step == state.max_steps:
                # in all processes, because weights may be spread over them
                found = probe.measure(model, self.processor)
                if state.is_world_process_zero:
                    self._write(state.global_step, {probe.name: found})

    def _write(self, step: int, values: Mapping[str, Any]) -> None:
        append_lines(self.path, [{"step": step, **values}])


def read_lines(path: str | Path) -> list[dict[str, Any]]:
    """The whole lines of a file of JSON lines; torn ones are passed over."""
    found = []
    for line in Path(path).read_text(encoding="utf-8").splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:  # torn by a kill
            continue
    return found


def append_lines(path: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    """Add JSON lines to a file in one piece; what a kill tore off before is ended first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a+b") as file:
        file.seek(max(0, file.seek(0, 2) - 1))
        torn = file.read() not in (b"", b"\n")
        file.write(b"\n" * torn + b"".join(json.dumps(line).encode() + b"\n" for line in lines))


def read_log(path: str | Path, key: str = "loss") -> list[dict[str, Any]]:
    """The lines of a log that have a key, each step once, in order of steps; a torn line is passed over."""
    kept = {values["step"]: values for values in read_lines(path) if key in values}
    return [kept[step] for step in sorted(kept)]
