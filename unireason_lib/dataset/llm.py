# ruff: noqa: E501
"""Rationales written by a language model behind any OpenAI-style endpoint.

The model gets what is known (structures with boxes, modality, resolution, question and answer) and writes the reasoning. It is
told to point with tags, ``[[left kidney]]``, and never to write coordinates: those are put in here, true by construction
(:func:`unireason_lib.dataset.rationales.anchor`). What comes back is checked like every rationale; an answer that can't be used is
returned once with the reasons, then refused.

Money and time are treated with care:

- every answer is on disk, under a hash of the whole request, before anything else happens to it: none is bought twice, also after
  a crash, a kill or a changed question order;
- many requests run at once, below limits of requests and tokens a minute, and failed ones are repeated after a pause that doubles,
  with some randomness, or that the server asks for;
- :meth:`LLMWriter.estimate` says beforehand what a run will cost, ``budget`` is never exceeded, and a log has every purchase.

Pixels leave this machine only when ``pictures=True``. The API key is read from the environment, and neither stored nor shown.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import math
import os
import random
import re
import threading
import time
from collections import deque
from collections.abc import AsyncIterator, Coroutine, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.boxes import Box
from unireason_lib.dataset.questions import Question
from unireason_lib.dataset.rationales import Rationale, anchor, verify
from unireason_lib.dataset.study import Structure
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError, explain

if TYPE_CHECKING:
    import openai

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


class BudgetSpent(DatasetError):
    """The next answer could cost more than is left of the budget. What was bought is kept."""


class EndpointError(DatasetError):
    """The endpoint refuses everything: a wrong key, model or address, or no credit."""


@dataclass(frozen=True)
class Endpoint:
    """Where to ask, how fast, and for how much.

    Args:
        model: Name of the model.
        base_url: Address of an OpenAI-style API (``http://localhost:8000/v1``); None is OpenAI's own.
        key_variable: Environment variable that holds the key. A server at ``base_url`` may need none.
        price_in, price_out: Price of a million tokens read and written, in whatever currency.
        budget: Most that may be spent, by all runs with one cache folder together; None for no limit.
        concurrency: Requests at a time.
        requests_per_minute, tokens_per_minute: Limits of the account; None for none.
        timeout: Seconds until a request counts as lost.
        retries: How often a request that failed is sent again.
        first_pause, longest_pause: Seconds before the first repetition, and at most.
        attempts: Answers asked for before a question is refused.
        max_tokens: Longest answer.
        temperature: Of sampling.
        parameters: More parameters of the request (``{"reasoning_effort": "low"}``); None as a value removes one.
        pictures: Whether to send the pictures too.
    """

    model: str
    base_url: str | None = None
    key_variable: str = "OPENAI_API_KEY"
    price_in: float = 0.0
    price_out: float = 0.0
    budget: float | None = None
    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 60.0
    retries: int = 5
    first_pause: float = 1.0
    longest_pause: float = 60.0
    attempts: int = 2
    max_tokens: int = 400
    temperature: float = 0.7
    parameters: Mapping[str, Any] = field(default_factory=dict)
    pictures: bool = False

    def __post_init__(self) -> None:
        limits = (self.requests_per_minute, self.tokens_per_minute)
        rules = {
            "concurrency, attempts, max_tokens of at least 1": min(
                self.concurrency, self.attempts, self.max_tokens
            )
            >= 1,
            "positive timeout, first_pause and limits": min(
                self.timeout, self.first_pause, *(1 if limit is None else limit for limit in limits)
            )
            > 0,
            "prices of 0 and more": min(self.price_in, self.price_out) >= 0,
            "prices, when there is a budget": self.budget is None or self.price_in + self.price_out > 0,
        }
        for rule, kept in rules.items():
            if not kept:
                raise DatasetError(explain("Endpoint", expected=rule, found=str(self), do="correct it"))

    def cost(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Price of one answer."""
        return (prompt_tokens * self.price_in + completion_tokens * self.price_out) / 1e6


@dataclass(frozen=True)
class Estimate:
    """What a run will take, before it.

    Attributes:
        questions: All of them.
        cached: Those whose answer has been bought already.
        prompt_tokens, completion_tokens: Of the others, about: 4 characters a token, answers of 40 % of ``max_tokens``.
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

_SYSTEM = """You write the reasoning of a careful radiologist who looks at a scan and answers a multiple-choice question. \
You are given what is truly there. Write as if you saw it yourself.

Rules:
- Reply with one JSON object and nothing else: {"reasoning": "...", "answer": "<letter>"}.
- 25 to 80 words of plain prose. First find what the question is about, then say what you see there, then conclude.
- Right after the words for a structure that you look at, write its tag in double square brackets, exactly as listed, for \
example: the spleen [[spleen]]. Look at every structure that is marked with *, once. Tags become pictures, so write none for \
anything else.
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


class LLMWriter:
    """Writes rationales through an endpoint.

    Args:
        endpoint: Where to ask.
        cache: Folder of bought answers; made when missing. Keep it: it is worth what was paid.

    Use it as a context manager, or call :meth:`close`.

    Raises:
        DatasetError: The package ``openai`` is not installed, or OpenAI's own endpoint is asked without a key.
    """

    def __init__(self, endpoint: Endpoint, cache: str | Path) -> None:
        self.endpoint = endpoint
        self.store = AnswerStore(Path(cache))
        self._client = _client(endpoint)
        self._pace = _Pace(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._budget = _Budget(endpoint.budget, self.store)
        self._places = asyncio.Semaphore(endpoint.concurrency)
        self._pending: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._sent: set[str] = set()
        self._stopping = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="rationales", daemon=True)
        self._thread.start()

    @property
    def name(self) -> str:
        """``"llm:<model>"``."""
        return f"llm:{self.endpoint.model}"

    @property
    def spent(self) -> float:
        """What all runs with this cache have cost."""
        return self.store.spent

    def __enter__(self) -> LLMWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. Requests that are under way are waited for, so that no paid answer is lost."""
        if self._loop.is_closed():
            return
        self._stopping = True
        self._run(self._finish()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        await self._client.close()

    def write(self, question: Question, view: View) -> Rationale:
        """The rationale of one question; for many use :meth:`write_all`, which asks for several at a time.

        Raises:
            RationaleRefused: No usable one came.
            BudgetSpent, EndpointError: See :meth:`write_all`.
        """
        outcome = next(self.write_all([(question, view)]))
        if outcome.rationale is None:
            raise RationaleRefused(question, outcome.reasons)
        return outcome.rationale

    def write_all(self, items: Iterable[tuple[Question, View]]) -> Iterator[Outcome]:
        """Write many rationales at once.

        Args:
            items: Questions with the view of their study; read only as far as there are requests to send.

        Yields:
            Outcomes, in the order of the items.

        Raises:
            BudgetSpent: At the first item that cannot be had for what is left; those before it have been yielded.
            EndpointError: The endpoint refuses everything.
        """
        items = iter(items)
        waiting: deque[Future[Outcome]] = deque()
        try:
            while True:
                while len(waiting) < 2 * self.endpoint.concurrency:
                    if (item := next(items, None)) is None:
                        break
                    waiting.append(self._run(self._outcome(*item, self._body(*item))))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    async def _outcome(self, question: Question, view: View, body: dict[str, Any]) -> Outcome:
        """Ask until an answer can be used, or the attempts are used up."""
        reasons: list[str] = []
        bought = 0
        for _ in range(self.endpoint.attempts):
            try:
                answer, was_bought = await self._answer(body)
            except _Unanswered as failure:
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

    def estimate(self, items: Iterable[tuple[Question, View]]) -> Estimate:
        """What a run over these items would take. Nothing is sent."""
        endpoint = self.endpoint
        questions = cached = prompt = 0
        most = 0.0
        for question, view in items:
            body = self._body(question, view)
            questions += 1
            if self.store.has(key_of(body)):
                cached += 1
                continue
            characters = _characters(body)
            prompt += math.ceil(characters / 4)
            for attempt in range(endpoint.attempts):
                longest = characters + attempt * (4 * endpoint.max_tokens + 400)
                most += endpoint.cost(_most_tokens(longest), endpoint.max_tokens)
        completion = round(0.4 * endpoint.max_tokens * (questions - cached))
        minutes = max(
            (questions - cached) / (endpoint.requests_per_minute or math.inf),
            (prompt + completion) / (endpoint.tokens_per_minute or math.inf),
        )
        cost = endpoint.cost(prompt, completion)
        return Estimate(questions, cached, prompt, completion, cost, most, minutes)

    def _run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def _body(self, question: Question, view: View) -> dict[str, Any]:
        body = {
            "model": self.endpoint.model,
            "messages": prompt_for(question, view, self.endpoint.pictures),
            "temperature": self.endpoint.temperature,
            "max_tokens": self.endpoint.max_tokens,
            **self.endpoint.parameters,
        }
        return {key: value for key, value in body.items() if value is not None}

    async def _answer(self, body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The answer to a request, from the cache or bought; equal requests under way are bought once."""
        key = key_of(body)
        if (known := self.store.get(key)) is not None:
            return known, False
        if (task := self._pending.get(key)) is None:
            task = self._pending[key] = asyncio.create_task(self._buy(key, body))
            task.add_done_callback(lambda done: self._bought(key, done))
        try:
            # Whoever waits may give up; what has been sent is paid for, so it is received and stored all the same.
            return await asyncio.shield(task), True
        except asyncio.CancelledError:
            if key not in self._sent:
                task.cancel()
            raise

    def _bought(self, key: str, task: asyncio.Task[dict[str, Any]]) -> None:
        del self._pending[key]
        if not task.cancelled():
            task.exception()  # whoever waits is told; if nobody does, there is nobody to tell

    async def _buy(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        endpoint = self.endpoint
        characters = _characters(body)
        async with (
            self._places,
            self._budget.room(endpoint.cost(_most_tokens(characters), endpoint.max_tokens)),
        ):
            start = time.monotonic()
            response = await self._send(key, body, math.ceil(characters / 4) + endpoint.max_tokens)
            choice, usage = response.choices[0], response.usage
            content = choice.message.content or ""
            tokens_in = usage.prompt_tokens if usage else math.ceil(characters / 4)
            tokens_out = usage.completion_tokens if usage else math.ceil(len(content) / 4)
            answer = {
                "content": content,
                "finish": choice.finish_reason or "",
                "model": response.model,
                "prompt_tokens": tokens_in,
                "completion_tokens": tokens_out,
                "cost": endpoint.cost(tokens_in, tokens_out),
                "seconds": round(time.monotonic() - start, 3),
            }
            self.store.put(key, body, answer)
            return answer

    async def _send(self, key: str, body: dict[str, Any], tokens: int) -> Any:
        """One request, repeated while there is hope."""
        import openai

        endpoint = self.endpoint
        pause = endpoint.first_pause
        failure: Exception | None = None
        for attempt in range(endpoint.retries + 1):
            if attempt:
                asked_for = _retry_after(failure)
                # Randomness keeps many clients that failed together from coming back together.
                await asyncio.sleep(asked_for if asked_for is not None else pause * random.uniform(0.5, 1.5))
                pause = min(2 * pause, endpoint.longest_pause)
            await self._pace.wait(tokens)
            if self._stopping:
                raise _Unanswered("the writer was closed")
            self._sent.add(key)
            try:
                response = await self._client.chat.completions.create(**body)
                if getattr(response, "choices", None):
                    return response
                failure = ValueError("a reply without choices")
            except openai.APIStatusError as error:
                failure = error
                if error.status_code in (401, 403, 404) or error.code == "insufficient_quota":
                    raise EndpointError(
                        explain(
                            endpoint.base_url or "OpenAI",
                            expected=f"the model {endpoint.model} for the key in {endpoint.key_variable}",
                            found=f"status {error.status_code}: {self._safe(error.message)}",
                            do="correct the model, address or key, or see to the account; what was bought is kept",
                        )
                    ) from None
                if error.status_code < 500 and error.status_code not in (408, 409, 429):
                    raise _Unanswered(f"status {error.status_code}: {self._safe(error.message)}") from None
                if error.status_code == 429 and (seconds := _retry_after(error)) is not None:
                    self._pace.hold(seconds)
            except (
                openai.APIError,
                ValueError,
            ) as error:  # no connection, a time-out, a reply that is no JSON
                failure = error
            finally:
                self._sent.discard(key)
        said = f"{type(failure).__name__}: {self._safe(str(failure))}"
        raise _Unanswered(f"{endpoint.retries + 1} tries, the last: {said}")

    def _safe(self, message: str) -> str:
        """A message from outside, short and without the key."""
        key = os.environ.get(self.endpoint.key_variable)
        return (message.replace(key, "***") if key else message)[:300]


class _Unanswered(Exception):
    """One request came to nothing; others may."""


def _client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    try:
        import openai
    except ImportError:
        raise DatasetError(
            explain(
                "rationales by a language model",
                expected="the package openai",
                found="no such package",
                do="pip install 'unireason-lab[llm]'",
            )
        ) from None
    key = os.environ.get(endpoint.key_variable)
    if not key and endpoint.base_url is None:
        raise DatasetError(
            explain(
                "rationales by a language model",
                expected=f"an API key in the environment variable {endpoint.key_variable}",
                found="none",
                do="set it, or give base_url for a server of your own",
            )
        )
    return openai.AsyncOpenAI(
        api_key=key or "none", base_url=endpoint.base_url, timeout=endpoint.timeout, max_retries=0
    )


def _characters(body: Mapping[str, Any]) -> int:
    """Characters of text in a request; a picture counts as 4,000 (about a thousand tokens)."""
    total = 0
    for message in body["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            total += len(part["text"].encode()) if part["type"] == "text" else 4000
    return total


def _most_tokens(characters: int) -> int:
    """More tokens than a text of that many bytes has in practice: boxes take one a digit."""
    return math.ceil(characters / 2)


def _retry_after(error: Exception | None) -> float | None:
    """Seconds for which the server asked us to wait (``Retry-After``: seconds or a date), None when it did not."""
    response = getattr(error, "response", None)
    value = response.headers.get("retry-after") if response is not None else None
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def key_of(body: Mapping[str, Any]) -> str:
    """Hash of a whole request."""
    text = json.dumps(body, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class AnswerStore:
    """Bought answers in a folder: one file an answer, named by the hash of its request, and a log of what each cost.

    A file is written beside its place, flushed to disk and renamed, so it is there whole or not at all. The log is what the
    total is read from; an answer that a kill kept from the log is added to it when it is used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "usage.jsonl"
        self._logged: set[str] = set()
        self.spent = 0.0
        for line in self._log.read_text(encoding="utf-8").splitlines() if self._log.exists() else ():
            try:
                entry = json.loads(line)
                self._logged.add(entry["key"])
                self.spent += entry["cost"]
            except (ValueError, KeyError, TypeError):
                continue  # the end of a line that a kill cut off

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def has(self, key: str) -> bool:
        """Whether the answer has been bought."""
        return self._path(key).exists()

    def get(self, key: str) -> dict[str, Any] | None:
        """A bought answer, or None."""
        try:
            answer = json.loads(self._path(key).read_text(encoding="utf-8"))["answer"]
        except FileNotFoundError:
            return None
        except (ValueError, KeyError):
            return None  # damaged by others; it will be bought again and replaced
        self._enter(key, answer)
        return answer

    def put(self, key: str, body: Mapping[str, Any], answer: dict[str, Any]) -> None:
        """Keep an answer."""
        path = self._path(key)
        path.parent.mkdir(exist_ok=True)
        partial = path.with_name(f".{key}.{os.getpid()}.partial")
        with partial.open("w", encoding="utf-8") as stream:
            json.dump({"request": body, "answer": answer}, stream, ensure_ascii=False)
            stream.flush()
            os.fsync(stream.fileno())
        partial.replace(path)
        self._enter(key, answer)

    def _enter(self, key: str, answer: Mapping[str, Any]) -> None:
        if key in self._logged:
            return
        self._logged.add(key)
        self.spent += answer["cost"]
        kept = ("model", "prompt_tokens", "completion_tokens", "cost", "seconds")
        entry = {"key": key, "time": round(time.time(), 3), **{name: answer[name] for name in kept}}
        line = json.dumps(entry) + "\n"
        with self._log.open("a+b") as stream:
            if stream.tell() and not _ends_a_line(stream):
                line = "\n" + line
            stream.write(line.encode())


def _ends_a_line(stream: Any) -> bool:
    stream.seek(-1, os.SEEK_END)
    return stream.read(1) == b"\n"


class _Pace:
    """Spaces requests so that neither limit is passed, and holds all of them when the server asks for it."""

    def __init__(self, requests: float | None, tokens: float | None) -> None:
        self._per_request = 60 / requests if requests else 0.0
        self._per_token = 60 / tokens if tokens else 0.0
        self._next = self._held = 0.0

    async def wait(self, tokens: int) -> None:
        start = max(time.monotonic(), self._next)
        self._next = start + max(self._per_request, self._per_token * tokens)
        while (seconds := max(start, self._held) - time.monotonic()) > 0:
            await asyncio.sleep(seconds)

    def hold(self, seconds: float) -> None:
        self._held = max(self._held, time.monotonic() + seconds)


class _Budget:
    """Money: reserved at its most while a request is under way."""

    def __init__(self, limit: float | None, store: AnswerStore) -> None:
        self._limit, self._store = limit, store
        self._open: list[float] = []
        self._changed = asyncio.Condition()

    @asynccontextmanager
    async def room(self, most: float) -> AsyncIterator[None]:
        """Wait until this much is free, and keep it free.

        Raises:
            BudgetSpent: It will not be, also when all that are under way have come in.
        """
        if self._limit is None:
            yield
            return
        async with self._changed:
            while self._store.spent + sum(self._open) + most > self._limit:
                if not self._open:
                    raise BudgetSpent(
                        explain(
                            "budget",
                            expected=f"room for an answer of at most {most:.4g}",
                            found=f"{self._store.spent:.4g} of {self._limit:.4g} spent",
                            do="go on with a larger budget; what was bought is kept and not bought again",
                        )
                    )
                await self._changed.wait()
            self._open.append(most)
        try:
            yield
        finally:
            async with self._changed:
                self._open.remove(most)
                self._changed.notify_all()
