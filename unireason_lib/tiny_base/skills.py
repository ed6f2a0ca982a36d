"""Skills of the tiny base on held-out exercises: what it writes itself counts, not its loss."""

import re
from collections.abc import Sequence
from statistics import fmean, pstdev
from typing import Any

import torch

from unireason_lib.answers import extract_choice
from unireason_lib.boxes import Box2D, parse_boxes

from .exercises import HELD_OUT, Exercise, exercise

STAGES = ("text", "one image", "several images")
"""Stages whose held-out exercises are tested."""


def measure(
    model: Any, processor: Any, size: int = 1000, seed: int = 1
) -> dict[str, dict[str, float]]:
    """The skills of a model on exercises of another ``seed`` than those of training, ``size`` of
    each stage; those whose reply is left to chance do not count.

    Returns:
        Exercise -> ``n``; ``right``, the proportion of right letters, or of replies that begin as
        they must; ``iou``, the mean of the first box's IoU, and its standard error ``iou_error``;
        ``consistent``, the proportion of replies with a conclusion whose letter says the same.
    """
    asked = [exercise(stage, HELD_OUT + k, seed) for stage in STAGES for k in range(size)]
    asked = [one for one in asked if one.letter or one.answer or one.box]
    scores: dict[str, list[dict[str, float]]] = {}
    for one, text in zip(asked, replies(model, processor, asked), strict=True):
        scores.setdefault(one.name, []).append(score(one, text))
    return {name: _summary(rows) for name, rows in sorted(scores.items())}


def score(one: Exercise, text: str) -> dict[str, float]:
    """What a reply is worth: those of ``right``, ``iou`` and ``consistent`` that apply."""
    *before, last = text.strip().splitlines() or [""]
    found = {}
    if one.letter:
        choice = extract_choice(last)
        options = dict(re.findall(r"^([A-D])\. (.+)$", one.question, re.MULTILINE))
        found["right"] = float(choice == one.letter)
        if before:
            concluded = before[-1].lower().rpartition("<|box_end|>")[2].rstrip(".")
            found["consistent"] = float(concluded.endswith(options.get(choice, "\0").lower()))
    elif one.answer:
        found["right"] = float(text.startswith(one.answer))
    if one.box is not None:
        first = next(iter(parse_boxes(text)), None)
        found["iou"] = first.iou(one.box) if isinstance(first, Box2D) else 0.0
    return found


def _summary(rows: Sequence[dict[str, float]]) -> dict[str, float]:
    keys = ("right", "iou", "consistent")
    values = {key: [row[key] for row in rows if key in row] for key in keys}
    summary = {"n": len(rows)} | {key: fmean(several) for key, several in values.items() if several}
    if ious := values["iou"]:
        summary["iou_error"] = pstdev(ious) / len(ious) ** 0.5
    return summary


def replies(
    model: Any, processor: Any, exercises: Sequence[Exercise], batch_size: int = 32
) -> list[str]:
    """What the model writes, greedily, special tokens kept; exercises of alike lengths together."""
    lengths = [(len(one.images), len(one.question)) for one in exercises]
    order = sorted(range(len(exercises)), key=lengths.__getitem__)
    texts, was_training = [""] * len(exercises), model.training
    model.eval()
    padded = {"padding": True, "padding_side": "left", "return_tensors": "pt"}
    how = {"add_generation_prompt": True, "tokenize": True, "return_dict": True}
    for first in range(0, len(order), batch_size):
        part = order[first : first + batch_size]
        questions = [exercises[k].messages()[:1] for k in part]
        inputs = processor.apply_chat_template(questions, processor_kwargs=padded, **how)
        inputs = inputs.to(model.device)
        with torch.inference_mode():
            written = model.generate(**inputs, max_new_tokens=224, do_sample=False)
        written = processor.tokenizer.batch_decode(written[:, inputs["input_ids"].shape[1] :])
        for k, text in zip(part, written, strict=True):
            texts[k] = text.split("<|im_end|>")[0]
    model.train(was_training)
    return texts
