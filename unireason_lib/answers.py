"""What did the model answer? From a reply in free form to one letter, or to "no answer".

A trained model ends with ``LETTER. option text`` after ``</think>``. Other models, and half-trained ones, write
"The answer is (B).", repeat an option's text, or never come to a conclusion. The reader below takes what a person would
take, and nothing more: the article in "a mass" is not option A, options that are only repeated or ruled out are not
chosen, two different letters are no answer, and a thought that was never closed has not answered yet.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping

THINK_START = "<think>"
THINK_END = "</think>"

_CONTROL = re.compile(r"<\|[a-z_]+\|>|</?think>|</?answer>")
_BOXED = re.compile(r"\\boxed\{(?:\\text\{)?([^{}]*)\}{1,2}")
_MARKS = re.compile(r"\*\*|__|[`$\"“”]")

_LETTER = r"[(\[']?\s*([A-H])\s*[)\]']?"
_LIST = r"\s*(?:or\s+|and\s+)?[A-H]\s*(?:[,.]|$|or\b|and\b)"  # "A, B or C" is no answer
_END = rf"(?=\s*(?:[.;:!)\]]|,(?!{_LIST})|$|\n|because\b|since\b|as\b))"
# a small "a" is the article, unless a full stop or bracket behind it ends the line
_SMALL = r"(?:\(([a-h])\)|([b-h])(?=[.)]?\s*$)|(a)(?=[.)]\s*$))"
_BARE = re.compile(r"^[-*\s([']*([A-Ha-h])[)\]'.!,\s]*$")
_LEADING = re.compile(rf"^\W*?{_LETTER}(?:\s*[.):]|\s+[-–—]\s|\s*$|,?\s+(?:because|since)\b)(.*)$", re.DOTALL)
_SMALL_LEADING = re.compile(r"^\(([a-h])\)|^([a-h])[.):]")
_IS = r"(?i:\s+(?:is|would be|should be))?\s*[:=]?\s*(?i:option\s+)?"
_CORRECT = r"(?i:\s+is\s+(?:correct\b|the\s+(?:correct|right|best)\s+(?:answer|option|choice|one)\b))"
_STRONG = re.compile(
    rf"(?i:\b(?:answer|choice)\b){_IS}(?:{_LETTER}{_END}|{_SMALL})|(?<!\w){_LETTER}{_CORRECT}", re.MULTILINE
)
_HENCE = (
    r"(?i:\b(?:option|choose|select|pick|it is|it's|therefore|thus|hence|so)\b,?\s*(?:(?:option|is)\s+)?)"
)
_DENYING = r"(?i:\b(?:not|than|unlike|exclud\w+|rul\w+ out)\s+)"
_LAST_WORD = r"[.!?:]\s+(?=\W*[A-H]\W*$)"
_WEAK = re.compile(rf"(?P<no>{_DENYING})?(?:{_HENCE}|{_LAST_WORD}){_LETTER}{_END}", re.MULTILINE)
_DENIED = re.compile(r"\b(?:not|no|nor|neither|never|without|cannot|can t|unable|unsure|unclear|\w+n t)\b")


def final_answer(text: str) -> str:
    """What stands after the last closed thought, without control tokens; empty while the thought is still open."""
    _, closed, tail = text.rpartition(THINK_END)
    if not closed and THINK_START in text:
        return ""
    return _CONTROL.sub(" ", tail if closed else text).strip()


def extract_choice(text: str, options: Mapping[str, str] | None = None) -> str | None:
    """The letter that a reply chooses.

    Forms that count, in this order: the answer begins with ``B.``, ``(B)``, ``B:`` or is a bare ``B`` or ``b``; a cue
    such as "the answer is B" or "B is correct"; a weaker one such as "option (B)" or "so B."; the last line is one of
    the first forms; the answer is, or names without denying it, the text of exactly one option. Lines that repeat
    several options as they were given are passed over.

    Args:
        text: The whole reply, or the part after the thought.
        options: Letter -> text of the option. When given, only these letters count and option texts are recognised.

    Returns:
        A capital letter, or None when the reply does not choose exactly one (an abstention).
    """
    answer = _plain(final_answer(text))
    letters = set(options) if options else set("ABCD")
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    repeated = {letter for line in lines if (letter := _repeated(line, options))}
    if len(repeated) > 1:
        lines = [line for line in lines if not _repeated(line, options)]
        options = None  # their texts were all said
    if not lines:
        return None
    answer = "\n".join(lines)
    for found in (
        _stated(lines[0], options),
        _cued(_STRONG, answer),
        _cued(_WEAK, answer),
        _stated(lines[-1], options),
        _named(answer, options),
    ):
        chosen = found & letters
        if len(chosen) == 1:
            return chosen.pop()
        if len(chosen) > 1:
            return None
    return None


def _plain(answer: str) -> str:
    """Without what only sets the answer in type: bold, quotes, boxes of formulas, wide brackets and stops."""
    return _MARKS.sub("", _BOXED.sub(r"\1", unicodedata.normalize("NFKC", answer).replace("。", ".")))


def _repeated(line: str, options: Mapping[str, str] | None) -> str | None:
    """The letter of the option that a line gives word for word, letter and text."""
    leading = _LEADING.match(line)
    letter = leading[1] if leading else None
    return letter if options and letter in options and _words(leading[2]) == _words(options[letter]) else None


def _stated(line: str, options: Mapping[str, str] | None) -> set[str]:
    bare = _BARE.match(line)
    if bare:
        return {bare[1].upper()}
    leading = _LEADING.match(line)
    if leading:
        return {leading[1]}
    small = _SMALL_LEADING.match(line)
    letter = (small[1] or small[2]).upper() if small else ""
    if small and (small[1] or _words(line[2:]) == _words((options or {}).get(letter, ""))):
        return {letter}
    return {
        letter
        for letter, option in (options or {}).items()
        if line.startswith(f"{letter} ") and _words(line[2:]) == _words(option)
    }


def _cued(cue: re.Pattern[str], answer: str) -> set[str]:
    found = (match for match in cue.finditer(answer) if not match.groupdict().get("no"))
    return {group.upper() for match in found for group in match.groups() if group}


def _named(answer: str, options: Mapping[str, str] | None) -> set[str]:
    """Letters of the options whose text the answer contains; a longer option hides a shorter one inside it. An option
    that the answer does not begin with counts only where nothing is denied."""
    if not options:
        return set()
    whole = said = f" {_words(answer)} "
    found: dict[str, str] = {}
    for letter, option in sorted(options.items(), key=lambda item: -len(_words(item[1]))):
        words = f" {_words(option)} "
        if words.strip() and words in said:
            found[letter] = words
            said = said.replace(words, "  ")
    if len(found) == 1 and _DENIED.search(said) and not whole.startswith(*found.values()):
        return set()
    return set(found)


def _words(text: str) -> str:
    """Words and numbers in small letters; 1.5 is one number."""
    return " ".join(re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", text.casefold()))
