"""Tests of the tiny base's skills on held-out exercises, free-running: what it writes counts, not its loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, pstdev
from typing import Any

import torch

from unireason_lib.answers import extract_choice
from unireason_lib.boxes import Box2D, parse_boxes
from unireason_lib.evaluation.statistics import wilson
from unireason_lib.grounding import GroundedGenerator, GroundedRequest
from unireason_lib.training.base.tasks import HELD_OUT, Exercise, exercise

TESTS = ("text", "one picture", "several pictures")
"""Stages of exercises whose held-out ones are tested."""

MOST_TOKENS = 160
"""Longest reply of an exercise."""


def measure(
    model: Any, processor: Any, size: int = 200, seed: int = 1
) -> dict[str, dict[str, float]]:
    """Shares of right answers.

    Args:
        model, processor: What is tested.
        size: Exercises of each stage; those that have no right answer are left out.
        seed: Of the exercises; training uses another.

    Returns:
        Exercise -> ``n``, ``right`` (share of right letters, or of replies that begin as they must) where there is an
        answer, ``iou`` (mean intersection over union of the first box written) and ``iou_error`` (its standard error)
        where there is a box.
    """
    found: dict[str, dict[str, list[float]]] = {}
    for stage in TESTS:
        exercises = [exercise(stage, HELD_OUT + k, seed) for k in range(size)]
        exercises = [one for one in exercises if one.letter or one.answer or one.box]
        for one, text in zip(exercises, replies(model, processor, exercises), strict=True):
            scores = found.setdefault(one.name, {"right": [], "iou": []})
            if one.letter:
                scores["right"].append(float(_letter(text) == one.letter))
            elif one.answer:
                scores["right"].append(float(text.startswith(one.answer)))
            if one.box is not None and not one.letter:
                boxes = parse_boxes(text)
                scores["iou"].append(
                    boxes[0].iou(one.box) if boxes and isinstance(boxes[0], Box2D) else 0.0
                )
    return {
        name: {key: fmean(values) for key, values in scores.items() if values}
        | ({"iou_error": pstdev(ious) / len(ious) ** 0.5} if (ious := scores["iou"]) else {})
        | {"n": max(len(values) for values in scores.values())}
        for name, scores in sorted(found.items())
    }


def summary(skills: Mapping[str, Mapping[str, float]]) -> dict[str, tuple[float, float, float]]:
    """The three skills that fine-tuning stands on, each with a 95 % interval.

    Args:
        skills: From :func:`measure`.

    Returns:
        Skill -> value, low, high: Wilson's interval for shares, 1.96 standard errors for the mean IoU.
    """
    found = {}
    for title, name in (
        ("letter given text", "letter"),
        ("which of several pictures", "which picture"),
    ):
        if name in skills:
            right, n = skills[name]["right"], skills[name]["n"]
            found[title] = (right, *wilson(right * n, n))
    if "point" in skills:
        iou, error = skills["point"]["iou"], skills["point"]["iou_error"]
        found["IoU on plain shapes"] = (iou, iou - 1.96 * error, iou + 1.96 * error)
    return found


def replies(
    model: Any, processor: Any, exercises: Sequence[Exercise], batch_size: int = 32
) -> list[str]:
    """What the model writes, greedily and with nothing put in between, special tokens kept."""
    pictured = [k for k, one in enumerate(exercises) if len(one.messages[0]["content"]) > 1]
    found = [""] * len(exercises)
    generator = GroundedGenerator(model, processor)
    requests = [_request(exercises[k]) for k in pictured]
    traces = generator.generate(
        requests, max_new_tokens=MOST_TOKENS, max_rounds=0, batch_size=batch_size
    )
    for k, trace in zip(pictured, traces, strict=True):
        found[k] = trace.text
    without = [k for k in range(len(exercises)) if k not in set(pictured)]
    for first in range(0, len(without), batch_size):
        part = without[first : first + batch_size]
        for k, text in zip(
            part, _without_pictures(model, processor, [exercises[k] for k in part]), strict=True
        ):
            found[k] = text
    return found


def _request(one: Exercise) -> GroundedRequest:
    content = one.messages[0]["content"]
    pictures = tuple(part["image"] for part in content[:-1])
    return GroundedRequest(content[-1]["text"], pictures, messages=one.messages[:1])


def _without_pictures(model: Any, processor: Any, exercises: Sequence[Exercise]) -> list[str]:
    tokenizer = processor.tokenizer
    prompts = [
        processor.apply_chat_template(one.messages[:1], tokenize=False, add_generation_prompt=True)
        for one in exercises
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        written = model.generate(**inputs, max_new_tokens=MOST_TOKENS, do_sample=False)
    model.train(was_training)
    own = written[:, inputs["input_ids"].shape[1] :]
    return [
        text.split("<|im_end|>")[0]
        for text in tokenizer.batch_decode(own, skip_special_tokens=False)
    ]


def _letter(text: str) -> str | None:
    return extract_choice(text.strip().splitlines()[-1]) if text.strip() else None
