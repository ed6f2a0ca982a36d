"""How a run of fine-tuning went: its loss, and what it answered and pointed at meanwhile."""

from __future__ import annotations

from pathlib import Path

from unireason_lib.display.charts import plot_stages
from unireason_lib.display.sheet import Sheet

_MEASURES = {"right": "right answers", "iou": "IoU of boxes", "in_format": "in format"}


def show_learning(log: str | Path, probe: str = "answers") -> Sheet:
    """Draw the log of a run.

    Args:
        log: ``log.jsonl`` of a run, finished or not.
        probe: Name of the probe that asks held-out questions
            (:func:`unireason_lib.training.probes.answer_probe`); what it never measured is not drawn.

    Returns:
        A figure: the loss, and below it the probe's shares for slices and volumes, over the optimizer steps.

    Raises:
        RequestError: No step was logged yet.
    """
    from unireason_lib.training.logbook import read_log

    panels = {
        "loss": {"loss in training": [(line["step"], line["loss"]) for line in read_log(log)]}
    }
    asked = read_log(log, probe)
    for key, title in _MEASURES.items():
        series = {
            f"{d.upper()}, held out": [
                (line["step"], line[probe][d][key])
                for line in asked
                if line[probe].get(d, {}).get(key) is not None
            ]
            for d in ("2d", "3d")
        }
        series = {name: points for name, points in series.items() if points}
        panels |= {title: series} if series else {}
    levels = {"right answers": [0.25]} if "right answers" in panels else {}
    return plot_stages(panels, [], "optimizer step", levels=levels)
