"""Rationales written by a language model behind any OpenAI-style endpoint.

The model gets what is known (structures with boxes, modality, resolution, question and answer) and writes the
reasoning. It is told to point with tags, ``[[left kidney]]``, and never to write coordinates: those are put
in here, true by construction (:func:`unireason_lib.dataset.rationales.anchor`). What comes back is checked
like every rationale; an answer that can't be used is returned once with the reasons, then refused. How
answers are bought is in :mod:`unireason_lib.dataset.endpoint`.

Pixels leave this machine only when ``pictures=True``.
"""

from __future__ import annotations

import base64
import io
import json
import math
import os
import re
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from unireason_lib.boxes import Box
from unireason_lib.dataset.endpoint import (
    AnswerStore,
    BudgetSpent,
    Endpoint,
    EndpointError,
    Line,
    Unanswered,
    characters_of,
    key_of,
    most_tokens,
)
from unireason_lib.dataset.questions import Question
from unireason_lib.dataset.rationales import Rationale, anchor, verify
from unireason_lib.dataset.study import Structure
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError, explain

__all__ = ["BudgetSpent", "Endpoint", "EndpointError", "Estimate", "LLMWriter", "Outcome", "RationaleRefused"]

MOST_STRUCTURES = 24
"""Structures besides the evidence that a prompt lists."""


class RationaleRefused(DatasetError):
    """No usable rationale came for one question; ``reasons`` says why."""

    def __init__(self, question: Question, reasons: Sequence[str]) -> None:
        self.reasons = tuple(reasons)
        super().__init__(
            explain(
                question.id,
                expected="a usable rationale",
                found="; ".join(self.reasons),
                do="leave the question out, or let templates write it",
            )
        )


@dataclass(frozen=True)
class Estimate:
    """What a run will take, before it.

    Attributes:
            questions: All of them.
            cached: Those whose answer has been bought already.
            prompt_tokens, completion_tokens: Of the others, about: 4 characters a token, answers of 40 % of
                ``max_tokens``.
            cost: Of these tokens.
            most: Cost if every answer were as long as allowed and had to be asked for again as often as allowed.
            minutes: Least time by the limits on requests and tokens; 0 without limits.
    """

    questions: int
    cached: int
    prompt_tokens: int
    completion_tokens: int
    cost: float
    most: float
    minutes: float

    def __str__(self) -> str:
        return (
            f"{self.questions:,} questions, {self.cached:,} of them answered already; "
            f"about {self.prompt_tokens:,} tokens to read and {self.completion_tokens:,} to write, "
            f"cost about {self.cost:,.2f}, at most {self.most:,.2f}"
            + (f"; at least {self.minutes:,.0f} minutes by the limits" if self.minutes else "")
        )


@dataclass(frozen=True)
class Outcome:
    """What became of one question.

    Attributes:
        question: The question.
        rationale: Its rationale, None when it was refused.
        reasons: Why it was refused.
        repairs: Coordinates that were put right.
        bought: How many answers had to be asked for (0: all from the cache).
    """

    question: Question
    rationale: Rationale | None
    reasons: tuple[str, ...] = ()
    repairs: tuple[str, ...] = ()
    bought: int = 0


# --- the prompt ---------------------------------------------------------------------------------------------------

_SYSTEM = """\
You write the reasoning of a careful radiologist who looks at a scan and answers a multiple-choice question.
You are given what is truly there. Write as if you saw it yourself.

Rules:
- Reply with one JSON object and nothing else: {"reasoning": "...", "answer": "<letter>"}.
- 25 to 80 words of plain prose. First find what the question is about, then say what you see there, then
  conclude.
- Right after the words for a structure that you look at, write its tag in double square brackets, exactly as
  listed, for example: the spleen [[spleen]]. Look at every structure that is marked with *, once. Tags become
  pictures, so write none for anything else.
- Never write coordinates. Never mention options by letter inside the reasoning.
- End the reasoning with the words of the right option, as they are given.
- Left and right are the patient's."""


def tags_of(view: View) -> dict[str, Structure]:
    """Tag -> structure: the name, with a number where several share it."""
    structures = view.study.structures
    names = [structure.name for structure in structures]
    counted: dict[str, int] = {}
    tags = {}
    for structure in structures:
        counted[structure.name] = counted.get(structure.name, 0) + 1
        several = names.count(structure.name) > 1
        tags[f"{structure.name} {counted[structure.name]}" if several else structure.name] = structure
    return tags


def prompt_for(question: Question, view: View, pictures: bool = False) -> list[dict[str, Any]]:
    """The messages of a request.

    Args:
        question: With its options, answer and facts.
        view: Gives the boxes, in the pixels in which they will be written.
        pictures: Whether to attach the pictures, as PNG.
    """
    study = view.study
    height, width = view.picture_size
    shown_height, shown_width = view.frame.size(height, width)
    size = f"{shown_width} x {shown_height} pixels"
    shown = f"picture of {size}" if view.depth is None else f"volume of {view.depth} axial slices of {size}"
    marked = {structure.label for structure in question.evidence}
    tags = tags_of(view)
    order = sorted(tags, key=lambda tag: tags[tag].label not in marked)
    lines = [
        f"{study.modality}, a {shown}." + (f" Voxel size {_mm(study.spacing)} mm." if study.spacing else ""),
        "Structures (tag: box" + (" [x1,y1,x2,y2])" if view.depth is None else " [x1,y1,z1,x2,y2,z2])"),
    ]
    for tag in order[: len(marked) + MOST_STRUCTURES]:
        structure = tags[tag]
        star = "* " if structure.label in marked else "  "
        known = ", ".join(f"{key} {value}" for key, value in structure.attributes.items())
        numbers = ",".join(str(int(n)) for n in view.box(structure).as_tuple())
        lines.append(f"{star}{tag}: [{numbers}]{'; ' + known if known else ''}")
    lines += ["", f"Question: {question.text}"]
    lines += [f"{letter}. {text}" for letter, text in question.options.items()]
    lines += [f"Right answer: {question.answer}. {question.truth}"]
    lines += [f"Measured: {json.dumps(dict(question.facts), ensure_ascii=False, sort_keys=True)}"]
    text = "\n".join(lines)
    content: str | list[dict[str, Any]] = text
    if pictures:
        images = [{"type": "image_url", "image_url": {"url": _data_url(image)}} for image in view.images()]
        content = [*images, {"type": "text", "text": text}]
    return [{"role": "system", "content": _SYSTEM}, {"role": "user", "content": content}]


def _mm(spacing: Sequence[float]) -> str:
    return " x ".join(f"{step:.3g}" for step in spacing[::-1])


def _data_url(image: Any) -> str:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


# --- reading an answer --------------------------------------------------------------------------------------------


def read_answer(
    content: str, finish: str, question: Question, view: View
) -> tuple[Rationale | None, list[str], tuple]:
    """A rationale from what the model wrote.

    Returns:
        The rationale or None; what is wrong with it; which coordinates were repaired.
    """
    if finish == "length":
        return None, ["cut: the answer ended before its end"], ()
    try:
        start = content.index("{")
        reply, _ = json.JSONDecoder(strict=False).raw_decode(content[start:])
        reasoning, said = reply["reasoning"], str(reply["answer"])
    except (ValueError, KeyError, TypeError):
        return None, ['malformed: not a JSON object with "reasoning" and "answer"'], ()
    if not isinstance(reasoning, str):
        return None, ["malformed: the reasoning is not a text"], ()
    boxes: dict[str, tuple[str, Box]] = {
        tag: (structure.name, view.box(structure)) for tag, structure in tags_of(view).items()
    }
    anchored = anchor(reasoning.strip(), boxes, quotes=question.options.values())
    problems = list(anchored.problems)
    letter = re.match(r"\W*([A-Z])(?!\w)", said)
    if letter is None or letter[1] != question.answer:
        problems.append(f"answer: it says {said[:40]!r} where {question.answer!r} is right")
    rationale = Rationale(anchored.parts)
    problems += verify(rationale, question, view)
    return (None if problems else rationale), problems, anchored.repairs


# --- the writer ---------------------------------------------------------------------------------------------------


def default_cache() -> Path:
    """The user's folder of bought answers."""
    root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(root).expanduser() / "unireason-lab" / "rationales"


class LLMWriter:
    """Writes rationales through an endpoint.

        Several processes may share a cache folder. Each sees what the others have spent, but not what they have
        under way, so that together they can pass a budget by that much.

    Args:
            model: Name of the model.
            cache: Folder of bought answers; made when missing. Keep it: it is worth what was paid. By default one
                folder for this user and all data sets.
            **options: Everything else of :class:`~unireason_lib.dataset.endpoint.Endpoint`.

        Raises:
            DatasetError: An unknown or impossible option.
    """

    def __init__(self, model: str, *, cache: str | Path | None = None, **options: Any) -> None:
        names = [f.name for f in fields(Endpoint)]
        if unknown := ", ".join(sorted(set(options) - set(names))):
            raise DatasetError(
                explain("writer", expected=f"options of {', '.join(names)}", found=unknown, do="correct it")
            )
        self.endpoint = Endpoint(model, **options)
        self.store = AnswerStore(Path(cache) if cache else default_cache())
        self._line: Line | None = None
        self._ready: dict[str, Outcome] = {}

    @property
    def name(self) -> str:
        """``"llm:<model>"``."""
        return f"llm:{self.endpoint.model}"

    def __enter__(self) -> LLMWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; see :meth:`Line.close`."""
        if self._line is not None:
            self._line.close()
            self._line = None

    def write(self, question: Question, view: View) -> Rationale:
        """The rationale of one question. For many, :meth:`prepare` first: that asks for several at a time.

        Raises:
            RationaleRefused: No usable one came.
            BudgetSpent, EndpointError: See :meth:`write_all`.
        """
        outcome = self._ready.pop(question.id, None) or next(self.write_all([(question, view)]))
        if outcome.rationale is None:
            raise RationaleRefused(question, outcome.reasons)
        return outcome.rationale

    def prepare(self, items: Iterable[tuple[Question, View]]) -> None:
        """Ask about all of these at once; :meth:`write` will have the outcomes at hand.

        Raises:
            BudgetSpent, EndpointError: See :meth:`write_all`. All answers so far are kept on disk.
        """
        self._ready = {outcome.question.id: outcome for outcome in self.write_all(items)}

    def write_all(self, items: Iterable[tuple[Question, View]]) -> Iterator[Outcome]:
        """Write many rationales, several at a time.

        Args:
                    items: Questions with the view of their study; read only as far ahead as there are requests to
                        send.

                Yields:
                    Outcomes, in the order of the items.

        Raises:
                    BudgetSpent: At the first item that cannot be had for what is left; those before it have been
                        yielded.
                    EndpointError: The endpoint refuses everything.
        """
        items = iter(items)
        self._line = line = self._line or Line(self.endpoint, self.store)
        waiting: deque[Future[Outcome]] = deque()
        try:
            while True:
                while len(waiting) < 2 * self.endpoint.concurrency:
                    if (item := next(items, None)) is None:
                        break
                    waiting.append(line.run(self._outcome(line, *item, self._body(*item))))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    async def _outcome(self, line: Line, question: Question, view: View, body: dict[str, Any]) -> Outcome:
        """Ask until an answer can be used, or the attempts are used up."""
        reasons: list[str] = []
        bought = 0
        for _ in range(self.endpoint.attempts):
            try:
                answer, was_bought = await line.answer(body)
            except Unanswered as failure:
                return Outcome(question, None, (f"unanswered: {failure}",), bought=bought)
            bought += was_bought
            content = answer["content"]
            rationale, reasons, repairs = read_answer(content, answer["finish"], question, view)
            if rationale is not None:
                return Outcome(question, rationale, (), repairs, bought)
            complaint = "This cannot be used:\n- " + "\n- ".join(reasons) + "\nWrite the JSON object again."
            turns = [{"role": "assistant", "content": content}, {"role": "user", "content": complaint}]
            body = {**body, "messages": [*body["messages"], *turns]}
        return Outcome(question, None, tuple(reasons), bought=bought)

    def estimate(self, items: Iterable[tuple[Question, View]], scale: float = 1.0) -> Estimate:
        """What a run would take. Nothing is sent, and no key is needed.

        Args:
            items: What would be asked, or a sample of it.
            scale: How many times more there will be.
        """
        endpoint = self.endpoint
        questions = cached = prompt = 0
        most = 0.0
        for question, view in items:
            body = self._body(question, view)
            questions += 1
            if self.store.has(key_of(body)):
                cached += 1
                continue
            characters = characters_of(body)
            prompt += math.ceil(characters / 4)
            for attempt in range(endpoint.attempts):
                longest = characters + attempt * (4 * endpoint.max_tokens + 400)
                most += endpoint.cost(most_tokens(longest), endpoint.max_tokens)
        new = questions - cached
        completion = 0.4 * endpoint.max_tokens * new
        minutes = max(
            new / (endpoint.requests_per_minute or math.inf),
            (prompt + completion) / (endpoint.tokens_per_minute or math.inf),
        )
        counts = (round(scale * count) for count in (questions, cached, prompt, completion))
        return Estimate(*counts, scale * endpoint.cost(prompt, completion), scale * most, scale * minutes)

    def _body(self, question: Question, view: View) -> dict[str, Any]:
        body = {
            "model": self.endpoint.model,
            "messages": prompt_for(question, view, self.endpoint.pictures),
            "temperature": self.endpoint.temperature,
            "max_tokens": self.endpoint.max_tokens,
            **self.endpoint.parameters,
        }
        return {key: value for key, value in body.items() if value is not None}
