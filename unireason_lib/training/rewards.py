"""Rewards of outcome RL: the answer and the form of a reply, never where its boxes lie.

Each reward is a function of its own, from a reply as text (control tokens kept) to a number between 0 and 1, so that
each is logged apart. Two modes:

- ``"paper"``: the arithmetic of the authors' release, for comparison. The answer is the first letter from a to d that
  stands alone; the form is half for as many ``<think>`` as ``</think>``, half for as many opened as closed boxes. It
  can be gamed: "This shows a mass, so the answer is B." is read as A, "lorem ipsum" has no tags, as many opened
  as closed, and earns the whole format reward. An empty reply earns nothing.
- ``"strict"``: what a reader would grant. An article is no answer and two answers are none; form is earned by one
  thought that is opened, filled and closed before an answer, and by boxes that can be read, lie in the picture and are
  no lines.

The paper weighs answer and format 0.8 to 0.2 (:data:`WEIGHTS`). :func:`iou_reward` is the contrast that it does
without, :func:`area_penalty` an optional price of large crops. A fourth, "contrast", needs the model and is therefore
the trainer's: it is earned by a right answer that is no longer right when the boxes fetch random regions
(:func:`unireason_lib.grounding.elsewhere.repeat_elsewhere`). :func:`audit` shows what made-up replies earn.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from unireason_lib.answers import THINK_END, THINK_START, extract_choice, final_answer
from unireason_lib.boxes import BOX_END, BOX_START, Box, Box2D, Box3D, parse_boxes, scan_boxes
from unireason_lib.dataset.rationales import MAX_ROUNDS
from unireason_lib.errors import RequestError

Mode = Literal["strict", "paper"]
MODES = ("strict", "paper")

WEIGHTS: Mapping[str, float] = {"answer": 0.8, "format": 0.2}
"""Of the rewards in the sum (paper)."""

LEAST_SIDE = 2
"""Pixels of the sides of a box that is a region and not a line."""

_LONE = re.compile(r"\b([a-d])\b", re.IGNORECASE)


@dataclass(frozen=True)
class Asked:
    """What a reply is held against.

    Attributes:
        truth: The right letter.
        options: Letter -> text.
        dimension: ``"2d"`` or ``"3d"``: boxes have four or six numbers.
        frame: Width, height and number of slices of what was shown, in pixels of the processor's frame.
        boxes: True boxes of what the question is about; empty where nothing is to be pointed at.
    """

    truth: str
    options: Mapping[str, str] | None = None
    dimension: str | None = None
    frame: tuple[int, int, int] | None = None
    boxes: tuple[Box, ...] = ()


def _check(mode: str) -> None:
    if mode not in MODES:
        raise RequestError("reward", f"mode {' or '.join(MODES)}", repr(mode), "choose one")


def answer_reward(
    text: str, truth: str, mode: Mode = "strict", options: Mapping[str, str] | None = None
) -> float:
    """1 for the right letter, otherwise 0.

    Args:
        text: The reply, control tokens kept.
        truth: The right letter.
        mode: See the module. ``"paper"`` looks at what stands behind the last ``</think>``, or at all of a reply
            without one.
        options: Letter -> text, for ``"strict"``: texts of options are recognised as well.

    Raises:
        RequestError: An unknown mode.
    """
    _check(mode)
    if mode == "strict":
        return float(extract_choice(text, options) == truth)
    found = _LONE.search(text.rpartition(THINK_END)[2])
    return float(found is not None and found[1].upper() == truth.upper())


def format_reward(
    text: str,
    mode: Mode = "strict",
    *,
    dimension: str | None = None,
    frame: tuple[int, int, int] | None = None,
) -> float:
    """Half for the thought, half for the boxes.

    Args:
        text: The reply, control tokens kept.
        mode: See the module.
        dimension: ``"2d"`` or ``"3d"``, for ``"strict"``: boxes must have four or six numbers; None takes either.
        frame: Width, height and slices of what was shown: boxes must lie in it; None does not look.

    Returns:
        ``"strict"``: 0.5 for a thought in order, and 0.5 more when there is one and every box in it is sound, at least
        one of them. Who writes no tags earns nothing, and neither do boxes without a thought.

    Raises:
        RequestError: An unknown mode.
    """
    _check(mode)
    if mode == "paper":
        if not text.strip():
            return 0.0
        pairs = ((THINK_START, THINK_END), (BOX_START, BOX_END))
        return sum(0.5 * (text.count(opening) == text.count(closing)) for opening, closing in pairs)
    if not thought_in_order(text):
        return 0.0
    return 0.5 + 0.5 * boxes_are_sound(text, dimension, frame)


def thought_in_order(text: str) -> bool:
    """One thought, at the beginning, with words in it, closed, and an answer behind it."""
    once = text.count(THINK_START) == text.count(THINK_END) == 1
    if not once or not text.lstrip().startswith(THINK_START):
        return False
    thought = text.partition(THINK_START)[2].partition(THINK_END)[0]
    words = re.sub(rf"{re.escape(BOX_START)}.*?{re.escape(BOX_END)}", "", thought, flags=re.DOTALL)
    return bool(re.search(r"\w", words)) and bool(final_answer(text))


def boxes_are_sound(
    text: str, dimension: str | None = None, frame: tuple[int, int, int] | None = None
) -> bool:
    """Whether there are boxes in the thought, none outside of it and no more than are answered with their region
    (:data:`~unireason_lib.dataset.rationales.MAX_ROUNDS`), and all of them can be read, have the dimension of what was
    asked, lie in it, and are no lines (:data:`LEAST_SIDE`)."""
    thought, _, behind = text.partition(THINK_END)
    opened, closed = thought.count(BOX_START), thought.count(BOX_END)
    boxes = scan_boxes(thought).boxes
    if not 1 <= opened <= MAX_ROUNDS or not opened == closed == len(boxes):
        return False
    if BOX_START in behind or BOX_END in behind:
        return False
    return all(_is_sound(box, dimension, frame) for box in boxes)


def _is_sound(box: Box, dimension: str | None, frame: tuple[int, int, int] | None) -> bool:
    if dimension is not None and isinstance(box, Box3D) != (dimension == "3d"):
        return False
    corners, n = box.as_tuple(), 3 if isinstance(box, Box3D) else 2
    sides = [corners[k + n] - corners[k] for k in range(n)]
    if min(sides[:2]) < LEAST_SIDE:
        return False
    limits = (frame or (float("inf"),) * 3)[:n]
    return all(corners[k] >= 0 and corners[k + n] <= limits[k] for k in range(n))


def iou_reward(text: str, boxes: Sequence[Box]) -> float:
    """Mean over the true boxes of the best overlap with a written one; 0 where nothing is to be pointed at.

    The reward that the paper does without; a contrast for ablations only.
    """
    written = parse_boxes(text)
    if not boxes:
        return 0.0
    return fmean(
        max((box.iou(one) for one in written if type(one) is type(box)), default=0.0)
        for box in boxes
    )


def area_penalty(text: str, frame: tuple[int, int, int]) -> float:
    """Minus the share of the picture, or of the volume, that an average box of the reply takes; 0 without boxes."""
    shares = []
    for box in parse_boxes(text):
        clipped = box.clip(*frame[:2]) if isinstance(box, Box2D) else box.clip(*frame)
        whole = frame[0] * frame[1] * (1 if isinstance(box, Box2D) else frame[2])
        shares.append((clipped.area if isinstance(clipped, Box2D) else clipped.volume) / whole)
    return -fmean(shares) if shares else 0.0


Reward = Callable[[str, Asked], float]


def rewards(
    mode: Mode = "strict", iou: float = 0.0, area: float = 0.0
) -> dict[str, tuple[Reward, float]]:
    """The named rewards of a run, each with its weight.

    Args:
        mode: Of answer and format.
        iou, area: Weights of the optional ones; 0 leaves them out.
    """
    _check(mode)
    found: dict[str, tuple[Reward, float]] = {
        "answer": (
            lambda text, asked: answer_reward(text, asked.truth, mode, asked.options),
            WEIGHTS["answer"],
        ),
        "format": (
            lambda text, asked: format_reward(
                text, mode, dimension=asked.dimension, frame=asked.frame
            ),
            WEIGHTS["format"],
        ),
    }
    if iou:
        found["iou"] = lambda text, asked: iou_reward(text, asked.boxes), iou
    if area:
        found["area"] = lambda text, asked: area_penalty(text, asked.frame), area
    return found


def total(text: str, asked: Asked, mode: Mode = "strict") -> float:
    """Answer and format in the paper's weights."""
    return sum(weight * reward(text, asked) for reward, weight in rewards(mode).values())


GAMES: Mapping[str, str] = {
    "honest": f"{THINK_START}The liver is at {BOX_START}[8,8,30,40]{BOX_END}. So: liver.{THINK_END}B. Liver",
    "honest but wrong": f"{THINK_START}It is at {BOX_START}[8,8,30,40]{BOX_END}.{THINK_END}C. Spleen",
    "empty": "",
    "lorem ipsum": "lorem ipsum",
    "bare letter": "B",
    "all letters": "B A C D",
    "an article": "This shows a mass, so the answer is B.",
    "no answer": f"{THINK_START}I look.{THINK_END}I cannot tell.",
    "tags only": f"{THINK_START}{THINK_END}B",
    "empty box": f"{THINK_START}I look at {BOX_START}{BOX_END}.{THINK_END}B",
    "box of no size": f"{THINK_START}I look at {BOX_START}[5,5,5,5]{BOX_END}.{THINK_END}B",
    "box outside": f"{THINK_START}I look at {BOX_START}[900,900,990,990]{BOX_END}.{THINK_END}B",
    "other dimension": f"{THINK_START}I look at {BOX_START}[8,8,0,30,40,4]{BOX_END}.{THINK_END}B",
    "closed before opened": f"{THINK_END}B{THINK_START}",
    "thought never closed": f"{THINK_START}It is B. B. B.",
    "fifty boxes": f"{THINK_START}I look: {f'{BOX_START}[8,8,30,40]{BOX_END} ' * 50}.{THINK_END}B. Liver",
}
"""Made-up replies to a question about one picture whose right answer is B."""


def audit(
    games: Mapping[str, str] | None = None, asked: Asked | None = None
) -> list[dict[str, Any]]:
    """What each mode pays for made-up replies.

    Args:
        games: Name -> reply; by default :data:`GAMES`.
        asked: What they answer; by default a picture of 64 x 64 pixels whose right answer is B.

    Returns:
        A row a reply: ``reply`` and, for each mode, ``answer``, ``format`` and ``total``.
    """
    options = {"A": "Heart", "B": "Liver", "C": "Spleen", "D": "Aorta"}
    asked = asked or Asked("B", options, "2d", (64, 64, 1), (Box2D(8, 8, 30, 40),))
    rows = []
    for name, text in (games or GAMES).items():
        row: dict[str, Any] = {"reply": name}
        for mode in MODES:
            parts = {key: reward(text, asked) for key, (reward, _) in rewards(mode).items()}
            row |= {f"{mode} {key}": value for key, value in parts.items()}
            row[f"{mode} total"] = total(text, asked, mode)
        rows.append(row)
    return rows
