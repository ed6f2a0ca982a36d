"""The model card of a run: what it is, what it learnt from, how, and what was measured, from the run's own files."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from unireason_lib.grounding.model import base_model
from unireason_lib.training.logbook import read_log

STAGES = {
    "sft": (
        "supervised fine-tuning",
        "loss on the assistant's own tokens; boxes fetch their region's tokens",
    ),
    "rl": ("outcome RL (GRPO)", "paid for the answer and for the form of the reply"),
}

OPTIONAL = ("iou", "area", "contrast")
"""Rewards that are paid only where the settings say so."""

_USE = """```python
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, load_model

model, processor = load_model({load})
request = GroundedRequest("Where does the lesion lie?", pictures, {{"A": "left", "B": "right"}}, dimension="2d")
print(GroundedGenerator(model, processor).generate([request])[0].text)
```"""

_PLAIN = """
The folder is in plain transformers form: `Qwen2_5_VLForConditionalGeneration.from_pretrained` and
`AutoProcessor.from_pretrained` load it. `generate` alone writes a reply without looking at what it points at; the
grounded interface stops after each `<|box_end|>`, crops the region and puts its tokens into the reply.
"""


def model_card(out: Path, stage: str, model: Any, parameters: tuple[int, int]) -> str:
    """The card of a finished run.

    Args:
        out: Folder of the run (``settings.json``, ``log.jsonl``).
        stage: ``"sft"`` or ``"rl"``.
        model: What was trained; it knows where it was loaded from (of a folder only the name is shown), and whether it
            is a PEFT adapter.
        parameters: How many learnt, and how many were frozen.

    Returns:
        Markdown with the header that hubs read.
    """
    kept = json.loads((out / "settings.json").read_text(encoding="utf-8"))
    what, how = STAGES[stage]
    if stage == "rl":
        extra = [
            f"{name} (weight {kept['settings'][name]:g})"
            for name in OPTIONAL
            if kept["settings"].get(name)
        ]
        how += f", and for {', '.join(extra)}" if extra else ", not for boxes"
    base, adapter = base_model(model).name_or_path, base_model(model) is not model
    name = Path(base).name if Path(base).is_dir() else base
    head = {
        "library_name": "peft" if adapter else "transformers",
        "pipeline_tag": "image-text-to-text",
    }
    head |= {"base_model": name} if "/" in name else {}
    lines = ["---", *(f"{key}: {value}" for key, value in head.items()), "tags:"]
    lines += [f"- {tag}" for tag in ("medical", "grounded-reasoning", "unireason-lab", stage)]
    lines += [
        "---",
        "",
        f"# {out.name}",
        "",
        f"{what.capitalize()} of `{name}` with UniReason-Lab: {how}. The method is that of",
    ]
    lines += ["UniReason-Med (arXiv 2606.11740). **For research, not for clinical use.**", ""]
    lines += [
        "## Use",
        "",
        _USE.format(load=f'"{name}", adapter="THIS_FOLDER"' if adapter else '"THIS_FOLDER"'),
    ]
    lines += [] if adapter else [_PLAIN.rstrip()]
    lines += ["", "## Learnt from", "", f"{kept['records']:,} records (digest `{kept['hash']}`)."]
    lines += [
        "",
        "## Training",
        "",
        f"{parameters[0]:,} parameters learnt, {parameters[1]:,} frozen.",
        "",
    ]
    lines += ["| setting | value |", "| --- | --- |"]
    lines += [f"| {key} | {value} |" for key, value in kept["settings"].items()]
    lines += ["", *_outcome(out), "", "## Versions", ""]
    packages = ("torch", "transformers", "trl", "peft", "accelerate")
    return "\n".join(
        [*lines, ", ".join(f"{package} {version(package)}" for package in packages), ""]
    )


def merged_card(card: str) -> str:
    """The card of an adapter, for the checkpoint that it was merged into."""
    card = re.sub(
        r'load_model\("[^"]*", adapter="THIS_FOLDER"\)', 'load_model("THIS_FOLDER")', card
    )
    card = card.replace("library_name: peft", "library_name: transformers")
    return card.replace("```\n\n## Learnt from", "```\n" + _PLAIN + "\n## Learnt from")


def _outcome(out: Path) -> list[str]:
    """What the log says of the end: time, last numbers, and free-running answers on patients kept apart."""
    log = out / "log.jsonl"
    found: list[tuple[str, Any]] = []
    if not log.exists():
        return ["## Measured", "", "Nothing: the run has no log."]
    for line in read_log(log, "train_runtime")[-1:]:
        found.append(("minutes since the last start", f"{line['train_runtime'] / 60:.1f}"))
    for key in ("loss", "reward", "rewards/answer/mean", "rewards/format/mean", "kl"):
        for line in read_log(log, key)[-1:]:
            found.append((f"last {key} (step {line['step']})", f"{line[key]:.4g}"))
    for line in read_log(log, "answers")[-1:]:
        for dimension, seen in line["answers"].items():
            if isinstance(seen, Mapping) and seen.get("n"):
                said = f"{100 * seen['right']:.0f} % of {seen['n']} questions"
                found.append((f"right answers in {dimension.upper()}, patients kept apart", said))
    lines = ["## Measured", "", "| what | value |", "| --- | --- |"]
    lines += [f"| {what} | {value} |" for what, value in found]
    return [
        *lines,
        "",
        "A few dozen questions say little; `evaluate` measures with intervals and a blind baseline.",
    ]
