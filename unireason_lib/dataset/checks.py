"""What every record must pass before it is written, whoever wrote its reasoning.

A wrong coordinate or a contradiction does more harm than a missing record. So each is checked alone
and against its study; what fails is kept in the configuration ``refused``, with its reason.
"""

import re
from collections.abc import Iterator, Mapping

from unireason_lib.answers import CONTROL_TOKEN, THINK_END, THINK_START, extract_choice
from unireason_lib.boxes import BOX_END, BOX_START, scan_boxes
from unireason_lib.dataset.questions import Question
from unireason_lib.dataset.rationales import MAX_ROUNDS, conclusion
from unireason_lib.dataset.schema import Record, box_of
from unireason_lib.dataset.view import View
from unireason_lib.errors import RequestError
from unireason_lib.imaging.crops import MAX_ASPECT, crop_rectangle, slice_range

Problem = tuple[str, str]
"""A reason in a word or two, and what exactly was found."""

# What steers a model, placeholders of images included: in no question, option or reasoning.
_STEERING = re.compile(rf"{CONTROL_TOKEN.pattern}|<image>|<video>")
_LETTER = re.compile(
    r"(?i:\b(?:answer|option|choice|letter)s?\b(?:\s+(?:is|are|would be|must be))?)"
    r"\s*[:=]?\s*\(?\"?[A-D]\b(?!\w|'|-)"
    r"|(?<![\w(])\(?[A-D]\)"
)


def problems_of(
    record: Record, view: View | None = None, question: Question | None = None
) -> list[Problem]:
    """All that is wrong with a record. Alone: options, tokens, format, box tags and crops, and
    whether the reasoning concludes with the right option and says no letter. With the view and the
    question from which it was made also against the study: each box is, number by number, that of a
    structure of the stated name, and whatever the question is about has a box."""
    problems = list(_problems(record))
    if view is not None:
        names, boxes = ({entry[k] for entry in record.evidence} for k in (0, 1))
        named = (s for s in view.study.structures if s.name in names)
        true = {(s.name, view.box(s).as_tuple()) for s in named}
        untrue = (entry for entry in record.evidence if entry not in true)
        problems += [("untrue box", f"{name} is not at {list(box)}") for name, box in untrue]
        missing = (s.name for s in question.evidence if view.box(s).as_tuple() not in boxes)
        problems += [("evidence", f"no box on {name}") for name in missing]
    return problems


def leaked(question: str, options: Mapping[str, str], answer: str) -> bool:
    """Whether a question has the right option's words and no other's."""

    def words(text: str) -> str:
        return f" {' '.join(re.findall(r'[a-z0-9]+', text.lower()))} "

    stated = words(question)
    return [k for k, option in options.items() if words(option) in stated] == [answer]


def _problems(record: Record) -> Iterator[Problem]:
    texts = {" ".join(text.casefold().split()) for text in record.options.values()}
    if record.answer not in record.options or len(texts) < max(2, len(record.options)):
        yield "options", f"answer {record.answer!r} of {dict(record.options)}"
        return
    try:
        user_text = record.user_text
    except RequestError as error:
        yield ("options" if str(error).startswith("options") else "control token"), str(error)
        return
    if control := _STEERING.search(user_text):
        yield "control token", f"{control[0]} in the question"
    if leaked(record.question, record.options, record.answer):
        yield "answer leak", f"the question contains {record.options[record.answer]!r}"
    thought, ending = record.reply.removeprefix(THINK_START), f"{THINK_END}{record.truth}"
    whole = thought != record.reply and thought.endswith(ending)
    thought = thought.removesuffix(ending)
    if not whole or THINK_START in thought or THINK_END in thought or not thought.strip():
        yield "format", f"expected {THINK_START}...{ending}, found ...{record.reply[-60:]!r}"
        return
    yield from _thought_problems(record, thought)
    if record.image_size is not None and record.serialization.get("frame"):
        yield from _crop_problems(record)


def _thought_problems(record: Record, thought: str) -> Iterator[Problem]:
    scan = scan_boxes(thought)
    ends = [0, *(place for span in scan.spans for place in span), len(thought)]
    prose = "".join(thought[a:b] for a, b in zip(ends[::2], ends[1::2], strict=True))
    if scan.malformed or BOX_START in prose or BOX_END in prose:
        opened, closed = thought.count(BOX_START), thought.count(BOX_END)
        yield "tags", f"{opened} opened, {closed} closed, {scan.malformed} malformed"
    if control := _STEERING.search(prose):
        yield "control token", f"{control[0]} in the reasoning"
    written = [box.as_tuple() for box in scan.boxes]
    evidence = [tuple(box) for _, box in record.evidence]
    if written != evidence:
        yield "boxes", f"text {written}, evidence {evidence}"
    flat = record.dimension == "2d"
    if len(evidence) > MAX_ROUNDS or any((len(box) == 4) != flat for box in evidence):
        yield "rounds", f"{len(evidence)} boxes in a {record.dimension} record"
    if letter := _LETTER.search(prose):
        yield "letter", f"the reasoning says {letter[0].strip()!r}"
    if (letter := conclusion(prose, record.options)) != record.answer:
        found = "no option" if letter is None else repr(record.options[letter])
        yield "contradiction", f"the reasoning concludes with {found}, not {record.truth!r}"
    if extract_choice(record.reply, record.options) != record.answer:
        yield "contradiction", f"another answer than {record.answer} is read"


def _crop_problems(record: Record) -> Iterator[Problem]:
    frame, depth = record.frame, len(record.image_ids)
    height, width = frame.size(*record.image_size)
    for _, coordinates in record.evidence:
        box = frame.pixels(box_of(coordinates), *record.image_size)
        slices = slice_range(box, depth)
        inside = box is box.xy or (0 <= box.z1 and box.z2 <= depth and len(slices))
        cut = crop_rectangle(box.xy, width, height)
        if cut is None or box.xy.clip(width, height) != box.xy or not inside:
            yield "crop", f"{list(coordinates)} in {width} x {height} x {depth}"
        elif max(cut.width, cut.height) > MAX_ASPECT * min(cut.width, cut.height):
            yield "crop", f"{list(coordinates)} is too long and thin"
