"""Rationales written by a language model behind any OpenAI-style chat endpoint.

The model refers to structures by tags, ``[[left kidney]]``, in whose place the true boxes are put.
A text that cannot be used is returned once with the reasons, then refused. Answers cost money, so
one SQLite file holds the requests of all processes. A reply is kept as it came before anyone reads
it, and before a request is sent, the most that it can cost is set aside: nothing is paid for twice,
and a budget is never exceeded (a kill or time-out may be billed).
"""

import hashlib
import json
import math
import os
import re
import sqlite3
import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from unireason_lib.dataset.checks import problems_of
from unireason_lib.dataset.questions import Question
from unireason_lib.dataset.rationales import Point, Rationale
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.study import Structure
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError

PROMPT = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
MAX_STRUCTURES = 24  # besides the evidence, in a prompt
_TAG = re.compile(r"\[\[\s*([^\[\]]{1,120}?)\s*\]\]")
_COORDINATES = re.compile(r"[\[(]\s*[-+.\d]+(?:\s*,\s*[-+.\d]+){3,5}\s*[\])]")
STOP_AFTER = 3  # requests in a row that fail alike: the fault is not in the questions


class BudgetSpent(DatasetError):
    """The next answer could cost more than is left of the budget. All answers so far are kept."""


class EndpointError(DatasetError):
    """The endpoint fails whatever is asked: a wrong key, model or parameter, or nobody there."""


class RationaleRefused(DatasetError):
    """No usable rationale came for one question; the message says why."""


def tags_of(view: View) -> dict[str, Structure]:
    """Tag -> structure: its name, with a number where several share it."""
    total, count, tags = Counter(s.name for s in view.study.structures), Counter(), {}
    for structure in view.study.structures:
        count[name := structure.name] += 1
        tags[f"{name} {count[name]}" if total[name] > 1 else name] = structure
    return tags


def prompt_for(question: Question, view: View) -> list[dict[str, Any]]:
    """The messages of a request. They are text: no pixel leaves this machine."""
    marked = {structure.label for structure in question.evidence}
    rows = {"*": [], " ": []}
    for tag, structure in tags_of(view).items():
        mark = "*" if structure.label in marked else " "
        box = ",".join(str(int(value)) for value in view.box(structure).as_tuple())
        details = "".join(f"; {key} {value}" for key, value in structure.attributes.items())
        rows[mark].append(f"{mark} {tag}: [{box}]{details}")
    height, width = view.frame.extent(*view.image_size)
    spacing = " x ".join(f"{step:.3g}" for step in (view.study.spacing or ())[::-1])
    text = PROMPT["user"].format(
        modality=view.study.modality,
        layout=f"{view.depth or 1} {'axial slices' if view.depth else 'image'}",
        size=f"{width} x {height}",
        unit=view.frame.unit,
        spacing=f"voxels of {spacing} mm" if spacing else "spacing unknown",
        structures="\n".join(rows["*"] + rows[" "][:MAX_STRUCTURES]),
        names=", ".join(question.names),
        question=question.text,
        options="\n".join(f"{letter}. {option}" for letter, option in question.options.items()),
        answer=f"{question.answer}. {question.truth}",
        facts=json.dumps(dict(question.facts), sort_keys=True, ensure_ascii=False, default=str),
    )
    turns = {"system": PROMPT["system"], "user": text}
    return [{"role": role, "content": content} for role, content in turns.items()]


def read_reply(data: bytes) -> tuple[str, str, list[float | None]] | None:
    """Text of a reply, why it ended, tokens read and written; None when it is no answer. Anything
    may be missing in it, null, or of another type: it has been paid for all the same."""
    try:
        reply = json.loads(data)
    except (ValueError, RecursionError):
        return None
    choice, usage = _get(reply, "choices", 0), _get(reply, "usage")
    if not choice and not usage:
        return None
    content = _get(choice, "message", "content")
    parts = content if isinstance(content, list) else [content]
    texts = [part if isinstance(part, str) else _get(part, "text") for part in parts]
    text = "".join(text for text in texts if isinstance(text, str)).rpartition("</think>")[2]
    text = text.encode("utf-8", "replace").decode()  # halves of surrogate pairs
    counts = (_get(usage, "prompt_tokens"), _get(usage, "completion_tokens"))
    tokens = [n if isinstance(n, int | float) and 0 <= n < 1e9 else None for n in counts]
    return text, str(_get(choice, "finish_reason")), tokens


def _get(value: Any, *path: str | int) -> Any:
    """What lies at a path of keys and numbers; None where it ends early."""
    for step in path:
        try:
            value = value[step]
        except (LookupError, TypeError):
            return None
    return value


def read_answer(
    text: str, finish: str, question: Question, view: View
) -> tuple[Rationale | None, list[str]]:
    """A rationale from an answer, or None and what is wrong with it."""
    if finish == "length":
        what = "the answer ended" if text.strip() else "the model was still thinking"
        return None, [f"cut: {what} at max_tokens; raise it, or ask for less reasoning"]
    try:
        values, _ = json.JSONDecoder(strict=False).raw_decode(text[text.index("{") :])
        reasoning, letter = values["reasoning"].strip(), str(values["answer"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None, ['malformed: not a JSON object with the texts "reasoning" and "answer"']
    written = [c for c in _COORDINATES.findall(reasoning) if c not in question.options.values()]
    problems = [f"coordinates: {text!r} was written, and no tag" for text in written]
    if not re.match(rf"\W*{question.answer}(?!\w)", letter):
        problems.append(f"answer: {letter[:40]!r} where {question.answer!r} is right")
    parts, tags = [*_TAG.split(reasoning)], tags_of(view)
    for k, tag in enumerate(parts[1::2]):
        if (structure := tags.get(tag)) in question.evidence:
            parts[2 * k + 1] = Point(structure.name, view.box(structure))
        else:  # all else may be invisible
            problems.append(f"tag: {tag!r} is no structure that is marked with *")
    rationale = Rationale(tuple(filter(None, parts)))
    record = Record.make(view, question, rationale)
    problems += [f"{reason}: {detail}" for reason, detail in problems_of(record, view, question)]
    return (None if problems else rationale), problems


_TABLE = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS requests (id INTEGER PRIMARY KEY, key TEXT, reply BLOB, cost REAL);
CREATE INDEX IF NOT EXISTS by_key ON requests (key);
CREATE INDEX IF NOT EXISTS by_cost ON requests (cost);
COMMIT;
"""
_RESERVE = """
INSERT INTO requests (key, cost) SELECT :key, :most
WHERE (SELECT total(cost) FROM requests) + :most <= :budget RETURNING id
"""


@dataclass(eq=False)
class LLMWriter:
    """Writes rationales with an endpoint whose answers are paid for once. Threads may share it,
    processes its cache. The API key is in the environment variable ``OPENAI_API_KEY``."""

    model: str
    base_url: str = "https://api.openai.com/v1"
    cache: str | Path = "~/.cache/unireason-lab/rationales"  # folder of the answers
    price_in: float = 0.0  # of a million tokens read, in any currency
    price_out: float = 0.0  # of a million tokens written
    budget: float = math.inf  # for all runs with this cache together
    concurrency: int = 8  # requests at a time, of each process
    timeout: float = 60.0  # seconds until a request counts as lost
    retries: int = 5  # after errors that may pass
    max_tokens: int = 400  # of an answer with its thinking
    max_tokens_name: str = "max_tokens"  # what the model calls that
    temperature: float | None = 0.7  # None leaves it out, as some models demand
    parameters: Mapping[str, Any] = field(default_factory=dict)  # further fields of the request

    def __post_init__(self) -> None:
        least = min(self.concurrency, self.max_tokens, self.timeout)
        priced = self.budget == math.inf or self.cost(1, 1) > 0
        own = {"model", "messages", "temperature", "max_tokens", "max_completion_tokens", "n"}
        if least <= 0 or not priced or own & {*self.parameters} or re.search("[@?]", self.base_url):
            rules = "limits above 0, prices for a budget, a plain base_url, no setting as parameter"
            raise DatasetError("LLM writer", rules, self, "correct it")
        self.name = f"llm:{self.model}"  # stored with every record
        self._lock = threading.Lock()
        self._counts = Counter()  # of failures in a row, and whether there was an answer

    def settings(self) -> dict[str, Any]:
        """Everything that decides an answer, in plain values; nothing secret."""
        names = "model base_url temperature max_tokens max_tokens_name parameters".split()
        prompt = [PROMPT[part] for part in ("system", "user", "again")]
        return {"prompt": prompt, **{name: getattr(self, name) for name in names}}

    def prepare(self, items: Iterable[tuple[Question, View]]) -> None:
        """Ask about all of these, several at a time; :meth:`write` then reads the answers kept.
        However this ends, also by Ctrl-C, requests under way are waited for. ``BudgetSpent``: the
        next answer could cost more than is left; ``EndpointError``: it fails whatever is asked."""
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            for future in as_completed([pool.submit(self.write, *item) for item in items]):
                error = future.exception()
                if error is not None and not isinstance(error, RationaleRefused):
                    raise error
        finally:
            pool.shutdown(cancel_futures=True)

    def write(self, question: Question, view: View) -> Rationale:
        """The rationale of one question; for many, :meth:`prepare` first, which raises the same.
        RationaleRefused: No usable one came for this question."""
        messages = prompt_for(question, view)
        for _ in range(2):
            key, reply = self.kept(body := self.request(messages))
            text, finish, _ = read_reply(reply or self._buy(key, body))
            self._counts = Counter(answers=1)
            rationale, reasons = read_answer(text, finish, question, view)
            if rationale is not None:
                return rationale
            if finish == "length":
                break
            again = PROMPT["again"].format(reasons="\n- ".join(reasons))
            messages.append({"role": "assistant", "content": text or "(nothing)"})
            messages.append({"role": "user", "content": again})
        do = "leave the question out, or let templates write it"
        raise RationaleRefused(question.id, "a usable rationale", "; ".join(reasons), do)

    def request(self, messages: list[dict[str, Any]]) -> dict[str, Any]:
        """The body of a request."""
        body = {"model": self.model, "messages": messages, "temperature": self.temperature}
        body |= {self.max_tokens_name: self.max_tokens, **self.parameters}
        return {name: value for name, value in body.items() if value is not None}

    def cost(self, tokens_in: float, tokens_out: float) -> float:
        """Price of one answer."""
        return (tokens_in * self.price_in + tokens_out * self.price_out) / 1e6

    def most(self, body: Mapping[str, Any]) -> float:
        """The most that a request can cost: a token has at least one byte."""
        return self.cost(_bytes_of(body), self.max_tokens)

    def most_for(self, items: Iterable[tuple[Question, View]]) -> float:
        """The most that these can cost. Nothing is sent, and no key is needed."""
        bodies = (self.request(prompt_for(*item)) for item in items)
        again = self.cost(4 * self.max_tokens, 0)  # the second attempt repeats the first answer
        return sum(2 * self.most(b) + again for b in bodies if self.kept(b)[1] is None)

    @property
    def spent(self) -> float:
        """Cost of all answers, and the most that requests without an answer can have cost."""
        return self._sql("SELECT total(cost) FROM requests")[0]

    def kept(self, body: Mapping[str, Any]) -> tuple[str, bytes | None]:
        """The hash of a request, and the reply to it when that has been paid for."""
        text = json.dumps([self.base_url, body], sort_keys=True)
        key = hashlib.sha256(text.encode()).hexdigest()
        found = "SELECT reply FROM requests WHERE key = :key AND reply NOT NULL"
        return key, (self._sql(found, key=key) or [None])[0]

    @cached_property
    def _database(self) -> sqlite3.Connection:
        path = Path(self.cache).expanduser() / "requests.sqlite"
        path.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(path, 60, isolation_level=None, check_same_thread=False)
        database.executescript(_TABLE)
        return database

    def _sql(self, statement: str, **values: Any) -> tuple | None:
        """The first row that an SQL statement gives; each is a transaction of its own."""
        try:
            with self._lock:
                return next(iter(self._database.execute(statement, values).fetchall()), None)
        except sqlite3.Error as error:
            do = "free space, or give another folder as cache"
            raise DatasetError(self.cache, "a cache of answers", error, do) from error

    def _buy(self, key: str, body: Mapping[str, Any]) -> bytes:
        """Send a request, and keep the reply before anything else."""
        create = self._openai.chat.completions.with_raw_response.create
        from openai import OpenAIError

        reserved = self._sql(_RESERVE, key=key, most=self.most(body), budget=self.budget)
        if reserved is None:
            expected = f"{self.most(body):.4g} for the next answer"
            found = f"{self.spent:.4g} of {self.budget:.4g} spent or set aside"
            do = "continue with a larger budget; all answers are kept"
            raise BudgetSpent("budget", expected, found, do)
        try:
            fields = {name: body[name] for name in body.keys() - {"model", "messages"}}
            data = create(model=self.model, messages=body["messages"], extra_body=fields).content
        except OpenAIError as error:
            status = getattr(error, "status_code", 0)
            unsent = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
            if status or unsent:  # else nobody knows whether it costs something
                self._sql("DELETE FROM requests WHERE id = :id", id=reserved[0])
            code = getattr(error, "code", None) or type(error).__name__
            raise self._failure(status, f"{error} ({code})") from None
        if (reply := read_reply(data)) is None:
            raise self._failure(200, f"no answer in {data[:300]!r}")
        guesses = (_bytes_of(body) / 2, min(len(data) / 2, self.max_tokens))
        tokens = (g if n is None else n for n, g in zip(reply[2], guesses, strict=True))
        keep = "UPDATE requests SET reply = :reply, cost = :cost WHERE id = :id"
        self._sql(keep, reply=data, cost=self.cost(*tokens), id=reserved[0])
        return data

    @cached_property
    def _openai(self) -> Any:
        try:
            from openai import OpenAI
        except ImportError:
            do = "pip install -e '.[llm]'"
            raise DatasetError("LLM writer", "the package openai", "no such package", do) from None
        key = os.environ.get("OPENAI_API_KEY") or "none"  # a server of one's own may need none
        settings = {"timeout": self.timeout, "max_retries": self.retries}
        return OpenAI(api_key=key, base_url=self.base_url, **settings)

    def _failure(self, status: int, message: str) -> DatasetError:
        """What a failed request means: one question without an answer, or the end of the run."""
        message = message.replace(os.environ.get("OPENAI_API_KEY") or "\0", "***")[:400]
        rejected = 400 <= status < 500 and status not in (408, 409, 429)
        self._counts[rejected] += 1
        # once anything was answered, the parameters are good, and a rejection is about a question
        alike = self._counts[rejected] >= STOP_AFTER and not (rejected and self._counts["answers"])
        if alike or status in (401, 402, 403, 404) or "insufficient_quota" in message:
            advice = next(text for word, text in PROMPT["advice"].items() if word in message)
            expected = f"answers of {self.model} with the API key of OPENAI_API_KEY"
            return EndpointError(self.base_url, expected, message, advice)
        return RationaleRefused("request", "an answer", message, "ask again later")


def _bytes_of(body: Mapping[str, Any]) -> int:
    return len(json.dumps(body["messages"], ensure_ascii=False).encode())
