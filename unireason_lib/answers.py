"""What did the model answer? From a reply in free form to one letter, or to "no answer".

The reader takes what a person would take, and nothing more: the article in "a mass" is not option
A, options that are only repeated or ruled out are not chosen, two letters are no answer, nor is a
letter beside another option's text, and a thought that was never closed has not answered yet.
Runs of blanks are joined first, so that no text can make the patterns below slow.
"""

import re
import unicodedata
from collections.abc import Iterator, Mapping

THINK_START = "<think>"
THINK_END = "</think>"

CONTROL_TOKEN = re.compile(r"<\|[^|<>]{1,40}\|>|</?think>")
"""What a tokenizer does not read as text."""

_TAG = re.compile(rf"{CONTROL_TOKEN.pattern}|</?answer>")
_BOXED = re.compile(r"\\boxed\{\s?(?:\\[a-z]+\{)?([^{}]*)\}{1,2}")
_MARKS = re.compile(r"\*\*|__|\\[\[\]()]|[`$\"“”]")

_LETTER = r"[(\[']?\s?([A-H])\s?[)\]']?"
_LIST = r"\s?(?:or\s|and\s)?[A-H]\s?(?:[,.]|$|or\b|and\b)"  # "A, B or C" is no answer
_END = rf"(?=\s?(?:[.;:!)\]}}]|,(?!{_LIST})|$|because\b|since\b|as\b))"
# a small "a" is the article, unless a full stop or bracket behind it ends the line
_SMALL = r"(?:\(([a-h])\)|([b-h])(?=\s?[.)}]?\s?$)|(a)(?=\s?[.)}]\s?$))"
_BARE = re.compile(r"[-*\s([']*([A-Ha-h])[)\]'.!,\s]*$")
_REASON = r"\s[-–—]\s|\s?$|,?\s(?:because|since)\b"
_LEADING = re.compile(rf"\W*?{_LETTER}(?:\s?[.):]|{_REASON})(.*)$")
_BRACKETED = re.compile(r"\(([a-h])\)(.*)$")
_MAYBE = re.compile(r"([a-h](?=[.):])|[A-H](?= )).(.*)$")
_IS = r"(?i:\s(?:is|would be|should be))?\s?[:=]?\s?(?i:option\s)?"
_CORRECT = r"(?i:\sis\s(?:correct\b|the\s(?:correct|right|best)\s(?:answer|option|choice|one)\b))"
_CHINESE = r"(?:答案|选择?|選擇?)(?:应该?|應該?)?(?:是|为|為)?\s?:?\s?(?:选项)?"
_IS_CORRECT = (
    rf"(?<!\w){_LETTER}{_CORRECT}|(?<![A-Za-z0-9和或与、]){_LETTER}(?:选项|選項)是?正[确確]"
)
_CUE = rf"(?:(?i:\b(?:answer|choice)\b){_IS}|{_CHINESE})"
_STRONG = re.compile(rf"(?m:{_CUE}(?:{_LETTER}{_END}|{_SMALL})|{_IS_CORRECT})")
_SO = r"option|choose|select|pick|it is|it's|therefore|thus|hence|so"
_HENCE = rf"(?i:\b(?:{_SO})\b,?\s?(?:(?:option|is)\s)?)"
_DENYING = r"(?i:\b(?:not|than|unlike|exclud\w+|rul\w+ out)\s)"
_WEAK = re.compile(rf"(?P<no>{_DENYING})?{_HENCE}{_LETTER}{_END}", re.MULTILINE)
_NO = r"not|no|nor|neither|never|without|cannot|can t|unable|unsure|unclear|\w+n t"
_DENIED = re.compile(rf"\b(?:{_NO})\b")


def final_answer(text: str) -> str:
    """What stands after the last closed thought, without control tokens; empty in an open one."""
    _, closed, tail = text.rpartition(THINK_END)
    if not closed and THINK_START in text:
        return ""
    return _TAG.sub(" ", tail if closed else text).strip()


def extract_choice(text: str, options: Mapping[str, str] | None = None) -> str | None:
    """The letter that a reply chooses, or None when it does not choose exactly one (an abstention).

    In this order: the answer begins with ``B.``, ``(B)``, ``B:`` or is a bare ``B`` or ``b``; a cue
    such as "the answer is B"; a weaker one such as "option (B)" or a last sentence "(B)"; the last
    line is one of the first; the answer is, or names without denying it, the text of exactly one
    option. With ``options`` (letter -> text) only their letters count, and a letter that is
    followed by the text of another option chooses nothing."""
    answer = unicodedata.normalize("NFKC", final_answer(text)).replace("。", ".")
    answer = re.sub(r"[^\S\n]+", " ", _MARKS.sub("", _BOXED.sub(r"\1", answer)))
    letters = set(options) if options else set("ABCD")
    options = {letter: plain_words(option) for letter, option in (options or {}).items()}
    lines = [line.strip() for line in answer.splitlines() if line.strip()]
    repeated = {line: letter for line in lines if (letter := _repeated(line, options))}
    if len(set(repeated.values())) > 1:
        lines = [line for line in lines if line not in repeated]
        options = {}  # all their texts were written
    for reading in _readings(lines, options) if lines else ():
        chosen = reading & letters
        if chosen:
            return chosen.pop() if len(chosen) == 1 else None
    return None


def _readings(lines: list[str], options: Mapping[str, str]) -> Iterator[set[str]]:
    """The letters that each way of reading finds, the surest first."""
    answer = "\n".join(lines)
    yield _stated(lines[0], options)
    yield _cued(_STRONG, answer, options)
    yield _cued(_WEAK, answer, options) | {letter for line in lines for letter in _last(line)}
    yield _stated(lines[-1], options)
    yield _named(answer, options)


def _repeated(line: str, options: Mapping[str, str]) -> str | None:
    """The letter of the option that a line gives word for word, letter and text."""
    leading = _LEADING.match(line)
    return leading[1] if leading and plain_words(leading[2]) == options.get(leading[1]) else None


def _stated(line: str, options: Mapping[str, str]) -> set[str]:
    """The letter with which a line begins."""
    if bare := _BARE.match(line):
        return {bare[1].upper()}
    if leading := _LEADING.match(line) or _BRACKETED.match(line):
        return _chosen(leading[1].upper(), leading[2], options)
    maybe = _MAYBE.match(line)
    return _chosen(maybe[1].upper(), maybe[2], options, certain=False) if maybe else set()


def _chosen(letter: str, text: str, options: Mapping[str, str], certain: bool = True) -> set[str]:
    """The letter, and beside it those whose text it is given in place of its own."""
    owners = {other for other, words in options.items() if words and words == plain_words(text)}
    if letter in owners:
        return {letter}
    return owners | {letter} if certain or (owners and letter != "A") else set()


def _cued(cue: re.Pattern[str], answer: str, options: Mapping[str, str]) -> set[str]:
    """The letters that follow a cue which is not denied."""
    longest = 32 + 2 * max(map(len, options.values()), default=0)
    letters: set[str] = set()
    for match in cue.finditer(answer):
        if not match.groupdict().get("no"):
            rest = answer[match.end() : match.end() + longest].partition("\n")[0]
            letters |= _chosen(next(filter(None, match.groups())).upper(), rest, options)
    return letters


def _last(line: str) -> set[str]:
    """A letter that is the whole last sentence of a line: "It lies behind. (B)"."""
    *_, before, last = ["", "", *line.split(" ")]
    return {re.sub(r"\W", "", last)} & set("ABCDEFGH") if before[-1:] in {*".!?:"} else set()


def _named(answer: str, options: Mapping[str, str]) -> set[str]:
    """Letters of the options whose text the answer contains; a longer one hides one inside it."""
    whole = rest = f" {plain_words(answer)} "
    named: dict[str, str] = {}
    for letter, option in sorted(options.items(), key=lambda item: -len(item[1])):
        words = f" {option} "
        if option and words in rest:
            named[letter] = words
            rest = rest.replace(words, "  ")
    denied = len(named) == 1 and not whole.startswith(*named.values()) and _DENIED.search(rest)
    return set() if denied else set(named)


def printable(text: str) -> str:
    """The text with a mark in place of broken Unicode, control and direction characters: a terminal
    or a page would follow them."""
    text = text.encode("utf-8", "replace").decode("utf-8")
    hidden = {c for c in text if unicodedata.category(c) in ("Cc", "Cf")} - {*"\n\t\u200d"}
    return "".join("\ufffd" if c in hidden else c for c in text)


def plain_words(text: str) -> str:
    """Words and numbers in small letters; 1.5 is one number."""
    return " ".join(re.findall(r"\d+(?:\.\d+)?|[^\W\d_]+", text.casefold()))
