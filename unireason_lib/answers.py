"""What did the model answer? From a reply in free form to one letter, or to "no answer".

A trained model ends with ``LETTER. option text`` after ``</think>``. Other models, and half-trained ones, write
"The answer is (B).", repeat an option's text, or never come to a conclusion. The reader below takes what a person would
take, and nothing more: the article in "a mass" is not option A, two different letters are no answer, and a thought that
was never closed has not answered yet.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

THINK_START = "<think>"
THINK_END = "</think>"

_CONTROL = re.compile(r"<\|[a-z_]+\|>|</?think>|</?answer>")
_LETTER = r"\(?\s*(?:\*\*)?\[?([A-H])\]?(?:\*\*)?\s*\)?"
_ENDING = r"(?=\s*(?:[.,;:!)\]]|$|\n|because\b|since\b|as\b))"
_LEADING = re.compile(rf"^\W*?{_LETTER}(?:\s*[.):]|\s+-\s|\s*$)")
_BARE = re.compile(rf"^{_LETTER}[.!]?$")
_CUE = re.compile(
    rf"(?i:\b(?:answer|option|choice)\b)(?i:\s+(?:is|would be|should be))?\s*[:=]?\s*(?i:option\s+)?{_LETTER}{_ENDING}",
    re.MULTILINE,
)


def final_answer(text: str) -> str:
    """What stands after the last closed thought, without control tokens; empty while the thought is still open."""
    _, closed, tail = text.rpartition(THINK_END)
    if not closed and THINK_START in text:
        return ""
    return _CONTROL.sub(" ", tail if closed else text).strip()


def extract_choice(text: str, options: Mapping[str, str] | None = None) -> str | None:
    """The letter that a reply chooses.

    Forms that count, in this order: the answer begins with ``B.``, ``(B)``, ``B:`` or is a bare ``B``; a cue such as
    "the answer is B" or "option (B)"; the last line is one of the first forms; the answer is, or names, the text of
    exactly one option.

    Args:
        text: The whole reply, or the part after the thought.
        options: Letter -> text of the option. When given, only these letters count and option texts are recognised.

    Returns:
        A capital letter, or None when the reply does not choose exactly one (an abstention).
    """
    answer = final_answer(text)
    letters = set(options) if options else set("ABCD")
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    if not lines:
        return None
    for found in (
        _stated(lines[0], options),
        _cued(answer),
        _stated(lines[-1], options),
        _named(answer, options),
    ):
        chosen = found & letters
        if len(chosen) == 1:
            return chosen.pop()
        if len(chosen) > 1:
            return None
    return None


def _stated(line: str, options: Mapping[str, str] | None) -> set[str]:
    bare = _BARE.match(line)
    if bare:
        return {bare[1]}
    leading = _LEADING.match(line)
    if leading:
        return {leading[1]}
    return {
        letter
        for letter, option in (options or {}).items()
        if line.startswith(f"{letter} ") and _words(line[2:]) == _words(option)
    }


def _cued(answer: str) -> set[str]:
    return set(_CUE.findall(answer))


def _named(answer: str, options: Mapping[str, str] | None) -> set[str]:
    """Letters of the options whose text the answer contains; a longer option hides a shorter one inside it."""
    if not options:
        return set()
    said = f" {_words(answer)} "
    found: set[str] = set()
    for letter, option in sorted(options.items(), key=lambda item: -len(_words(item[1]))):
        words = f" {_words(option)} "
        if words.strip() and words in said:
            found.add(letter)
            said = said.replace(words, "  ")
    return found


def _words(text: str) -> str:
    return " ".join(re.findall(r"[a-z0-9]+", text.lower()))
