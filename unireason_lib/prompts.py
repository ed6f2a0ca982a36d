"""The user's turn: one wording for training data, evaluation, the command line and rollouts.

A model that is asked in other words than it was trained with answers worse for no medical reason, so every part of the
package asks through :func:`chat`. The pictures come first (one image, or the slices of a volume from foot to head),
then the question, its options, and what form the reply should take.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from unireason_lib.errors import RequestError, explain

LETTERS = "ABCDEFGH"
"""Option letters, in order."""

_CHOOSE = "Reason about what you see, point with boxes, then answer with one option."
_TELL = "Reason about what you see, point with boxes, then give a short answer."
_CONTROL = re.compile(r"<\|[a-z_]+\|>|</?think>")


def plain_text(text: str, what: str) -> str:
    """Check that a text from outside contains no control token of the model.

    Args:
        text: A question or an option.
        what: What it is, for the message.

    Returns:
        The text, stripped.

    Raises:
        RequestError: The text is empty, or has something like ``<|image_pad|>`` in it, which would be read as a
            control token and not as text.
    """
    found = _CONTROL.search(text)
    if found or not text.strip():
        raise RequestError(
            explain(
                what,
                expected="plain text",
                found=f"the control token {found[0]}" if found else "nothing",
                do="remove it from the text" if found else "write it",
            )
        )
    return text.strip()


def question_text(question: str, options: Mapping[str, str] | None = None, slices: int | None = None) -> str:
    """The words of the user's turn.

    Args:
        question: The question.
        options: Letter -> text of the option; None or empty asks for a short free answer.
        slices: Number of slices when the pictures are a volume, None for a 2D image.

    Raises:
        RequestError: Question or options are empty or contain control tokens; letters are not A, B, C, ...
    """
    options = options or {}
    if list(options) != list(LETTERS[: len(options)]) or len(options) == 1:
        raise RequestError(
            explain(
                "options",
                expected="none, or two and more with the letters A, B, C, ... in order",
                found=", ".join(options),
                do="give --option-a, --option-b, ... without gaps",
            )
        )
    lines = (
        [f"These are {slices} axial slices of one volume, from foot to head."] if slices is not None else []
    )
    lines.append(plain_text(question, "the question"))
    lines += [f"{letter}. {plain_text(text, f'option {letter}')}" for letter, text in options.items()]
    lines.append(_CHOOSE if options else _TELL)
    return "\n".join(lines)


def chat(
    question: str, images: Sequence[Any], options: Mapping[str, str] | None = None, volume: bool = False
) -> list[dict[str, Any]]:
    """The conversation up to the model's turn, in the chat form of transformers.

    Args:
        question: The question.
        images: The pictures, or whatever stands for them (paths, ids); one for a 2D image, the slices for a volume.
        options: Letter -> text of the option.
        volume: Whether the pictures are the slices of a volume.

    Returns:
        One user message whose content lists the pictures in order, then the text.
    """
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    text = question_text(question, options, slices=len(images) if volume else None)
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
