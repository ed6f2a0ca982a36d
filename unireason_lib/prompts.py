"""The user's turn: one wording everywhere, as a model that is asked in other words than it was
trained with answers worse for no medical reason. First the image, or the slices of a volume from
foot to head, then the question, its options, and how to reply.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from unireason_lib.answers import CONTROL_TOKEN
from unireason_lib.errors import RequestError

LETTERS = "ABCDEFGH"  # of the options, in order

_CHOOSE = "Reason about what you see, point with boxes, then answer with one option."
_TELL = "Reason about what you see, point with boxes, then give a short answer."


def plain_text(text: str, what: str) -> str:
    """A text from outside, stripped; a :class:`RequestError` when ``what`` is empty or holds a
    control token like ``<|image_pad|>``, which the tokenizer would not read as text."""
    if token := CONTROL_TOKEN.search(text):
        raise RequestError(what, "plain text", f"the control token {token[0]}", "remove it")
    if not text.strip():
        raise RequestError(what, "plain text", "nothing", "write it")
    return text.strip()


def question_text(
    question: str, options: Mapping[str, str] | None = None, slices: int | None = None
) -> str:
    """The words of the user's turn: question, options (letter -> text; none asks for a short free
    answer), and for a volume its number of slices. A :class:`RequestError` when they are empty or
    hold control tokens, or the letters are not A, B, C, ..."""
    options = options or {}
    if list(options) != list(LETTERS[: len(options)]) or len(options) == 1:
        expected = "none, or two and more with the letters A, B, C, ... in order"
        do = "give --option-a, --option-b, ... without gaps"
        raise RequestError("options", expected, ", ".join(options), do)
    count = f"These are {slices} axial slices of one volume, from foot to head."
    choices = (f"{key}. {plain_text(text, f'option {key}')}" for key, text in options.items())
    lines = [plain_text(question, "the question"), *choices, _CHOOSE if options else _TELL]
    return "\n".join(lines if slices is None else [count, *lines])


def chat(
    question: str,
    images: Sequence[Any],
    options: Mapping[str, str] | None = None,
    volume: bool = False,
) -> list[dict[str, Any]]:
    """The conversation up to the model's turn, as transformers' chat templates take it: one user
    message whose content lists the images (or their paths, ids) in order, then the text. ``volume``
    says that they are the slices of one."""
    content: list[dict[str, Any]] = [{"type": "image", "image": image} for image in images]
    text = question_text(question, options, slices=len(images) if volume else None)
    return [{"role": "user", "content": [*content, {"type": "text", "text": text}]}]
