"""Rewards of outcome RL: for answer and format of a reply, none for where its boxes lie.

A reward is a number between 0 and 1 for a reply as text (control tokens kept). Two modes:

- ``"paper"``: the arithmetic of the authors' release, for comparison. The choice is the first
  letter from A to D that stands alone outside of closed thoughts; the format is half for as many
  ``<think>`` as ``</think>``, half for as many opened as closed boxes. A model can exploit that:
  "This shows a mass, so the answer is B." is read as A, and "lorem ipsum" has no tags, as many
  opened as closed, and earns the whole format reward.
- ``"strict"``: what a reader would grant. An article is no answer and two answers are none; the
  format is one thought that is opened, filled and closed before an answer, and boxes that can be
  read, lie in the image and are no lines.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from math import inf
from statistics import fmean
from typing import Literal

from unireason_lib.answers import THINK_END, THINK_START, extract_choice, final_answer
from unireason_lib.boxes import BOX_END, BOX_START, Box, Box3D, parse_boxes, scan_boxes
from unireason_lib.dataset.rationales import MAX_ROUNDS
from unireason_lib.dataset.schema import box_of
from unireason_lib.errors import RequestError
from unireason_lib.imaging.frame import in_pixels

Mode = Literal["strict", "paper"]
Frame = tuple[int, int, int]  # width, height and slices of what was shown, in the processor's frame

WEIGHTS: Mapping[str, float] = {"answer": 0.8, "format": 0.2}  # in the sum of rewards (paper)
MIN_SIDE = 2  # pixels: a box with a shorter side is a line
_THOUGHT = re.compile(r"<think>.*?</think>", re.IGNORECASE | re.DOTALL)
_LONE_LETTER = re.compile(r"\b[A-D]\b", re.IGNORECASE)


def answer_reward(
    text: str, truth: str, mode: Mode = "strict", options: Mapping[str, str] | None = None
) -> float:
    """1 for a reply with the letter of ``truth`` (``"B"``, ``"B. liver"``), otherwise 0. With
    ``options`` (letter -> text), ``"strict"`` recognises their texts as well, and a letter with the
    text of another option is no choice. A :class:`RequestError` for an unknown mode."""
    if _is_strict(mode):
        return float(extract_choice(text, options) == truth.strip()[:1].upper())
    right = _released_choice(truth)
    return float(right is not None and _released_choice(text) == right)


def format_reward(
    text: str,
    mode: Mode = "strict",
    *,
    dimension: str | None = None,
    frame: Frame | None = None,
    scale: int | None = None,
    rounds: int = MAX_ROUNDS,
) -> float:
    """Half for the thought, half for the boxes.

    ``"strict"`` pays 0.5 for a thought in order, and 0.5 more when there is one and every box in it
    is sound, 1 to ``rounds`` of them: of four or six numbers as the ``dimension`` says (``"2d"``,
    ``"3d"``; None takes either), and in the ``frame`` that was shown (None does not look).
    ``scale``: of the :class:`~unireason_lib.imaging.ProcessorFrame` for which they are written.
    ``"paper"`` pays 0.5 for each kind of tags that pair up, 0 for an empty reply."""
    if _is_strict(mode):
        sound = _boxes_are_sound(text, dimension, frame, scale, rounds)
        return 0.5 + 0.5 * sound if _has_thought(text) else 0.0
    lower, pairs = text.lower(), text.count(BOX_START) == text.count(BOX_END)
    thoughts = lower.count(THINK_START) == lower.count(THINK_END)
    return 0.5 * thoughts + 0.5 * pairs if text else 0.0


def iou_reward(
    text: str, boxes: Sequence[Box], frame: Frame | None = None, scale: int | None = None
) -> float:
    """Mean over the true boxes, in pixels, of the best overlap (IoU) with a written one; 0 without
    true boxes; ``frame`` and ``scale`` as for :func:`format_reward`. The paper does without; for an
    ablation only."""
    written = _read(parse_boxes(text), frame, scale)
    best = [
        max((box.iou(one) for one in written if type(one) is type(box)), default=0.0)
        for box in boxes
    ]
    return fmean(best) if best else 0.0


def reward_functions(
    mode: Mode = "strict", iou_weight: float = 0.0, rounds: int = MAX_ROUNDS
) -> dict[Callable[..., list[float]], float]:
    """The rewards of a run as TRL's reward functions, each with its weight; 0 leaves the optional
    one out. They read the columns ``truth`` (a letter), ``options`` (letter -> text),
    ``dimension``, ``frame``, ``boxes`` (the true ones, as numbers) and ``scale``, of the model."""

    def answer(completions, *, truth, options, **columns) -> list[float]:
        replies = zip(completions, truth, options, strict=True)
        return [answer_reward(one[0]["content"], right, mode, of) for one, right, of in replies]

    def format(completions, *, dimension, frame, scale=(None,), **columns) -> list[float]:
        replies = zip(completions, dimension, frame, strict=True)
        return [
            format_reward(
                one[0]["content"], mode, dimension=d, frame=shown, scale=scale[0], rounds=rounds
            )
            for one, d, shown in replies
        ]

    def iou(completions, *, boxes, frame, scale=(None,), **columns) -> list[float]:
        replies = zip(completions, boxes, frame, strict=True)
        return [
            iou_reward(one[0]["content"], list(map(box_of, true)), shown, scale[0])
            for one, true, shown in replies
        ]

    weights = {answer: WEIGHTS["answer"], format: WEIGHTS["format"], iou: iou_weight}
    return {function: weight for function, weight in weights.items() if weight}


def _is_strict(mode: str) -> bool:
    if mode not in ("strict", "paper"):
        raise RequestError("reward", "mode strict or paper", repr(mode), "choose one")
    return mode == "strict"


def _released_choice(text: str) -> str | None:
    letter = _LONE_LETTER.search(_THOUGHT.sub(" ", text))
    return letter[0].upper() if letter else None


def _has_thought(text: str) -> bool:
    """One thought, at the beginning, with words in it, closed, and an answer after it."""
    once = text.count(THINK_START) == text.count(THINK_END) == 1
    if not once or not text.lstrip().startswith(THINK_START):
        return False
    thought = text.partition(THINK_START)[2].partition(THINK_END)[0]
    words = re.sub(rf"{re.escape(BOX_START)}.*?{re.escape(BOX_END)}", "", thought, flags=re.DOTALL)
    return bool(re.search(r"\w", words)) and bool(final_answer(text))


def _read(boxes: Sequence[Box], frame: Frame | None, scale: int | None) -> list[Box]:
    """Written boxes in pixels, as far as the frame is known."""
    return [in_pixels(box, *frame[:2], scale) for box in boxes] if frame else list(boxes)


def _boxes_are_sound(
    text: str, dimension: str | None, frame: Frame | None, scale: int | None, rounds: int
) -> bool:
    """Whether there are boxes in the thought, none after it and no more than ``rounds``, and all of
    them can be read, have the right dimension, lie in what was shown, and are no lines."""
    thought, boxes = text.partition(THINK_END)[0], scan_boxes(text.partition(THINK_END)[0]).boxes
    opened, closed = text.count(BOX_START), text.count(BOX_END)
    in_thought = opened == thought.count(BOX_START) and closed == thought.count(BOX_END)
    readable = in_thought and 1 <= opened <= rounds and opened == closed == len(boxes)
    return readable and all(_is_sound(b, dimension, frame) for b in _read(boxes, frame, scale))


def _is_sound(box: Box, dimension: str | None, frame: Frame | None) -> bool:
    sides = 3 if isinstance(box, Box3D) else 2
    if dimension not in (None, f"{sides}d") or box.is_empty:
        return False
    wide = min(box.width, box.height) >= MIN_SIDE
    return wide and box.clip(*(frame or (inf,) * 3)[:sides]) == box
