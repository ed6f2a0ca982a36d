"""Buying answers from an OpenAI-style endpoint: many at once, each only once, and within a budget.

- Every answer is on disk, under a hash of the whole request, before anything else happens to it: none is
  bought twice, also after a crash, a kill or a changed order of questions.
- Many requests run at once, below limits of requests and tokens a minute. Those that fail are repeated after
  a pause that doubles, with some randomness, or that the server asks for.
- A budget is never exceeded: before a request is sent, the most that it can cost is set aside.

The API key is read from the environment, and neither stored nor shown.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
import random
import threading
import time
from collections.abc import AsyncIterator, Coroutine, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.errors import DatasetError, explain

if TYPE_CHECKING:
    import openai


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
            parameters: More parameters of the request (``{"reasoning_effort": "low"}``); None as a value removes
                one.
            pictures: Whether to send the pictures too.

        Raises:
            DatasetError: A value that cannot be, or a budget without prices.
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


class Unanswered(Exception):
    """One request came to nothing; others may not."""


class Line:
    """A line to an endpoint: an event loop in a thread of its own, so that it also works inside a notebook.

        Args:
            endpoint: Where to ask.
            store: Where answers are kept.

    Raises:
            DatasetError: The package ``openai`` is not installed, or OpenAI's own endpoint is asked without a key.
    """

    def __init__(self, endpoint: Endpoint, store: AnswerStore) -> None:
        self.endpoint, self.store = endpoint, store
        self._client = _client(endpoint)
        self._pace = _Pace(endpoint.requests_per_minute, endpoint.tokens_per_minute)
        self._budget = _Budget(endpoint.budget, store)
        self._places = asyncio.Semaphore(endpoint.concurrency)
        self._pending: dict[str, asyncio.Task[dict[str, Any]]] = {}
        self._sent: set[str] = set()
        self._closing = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoint", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, Any]) -> Future[Any]:
        """Start something in the line's thread."""
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def close(self) -> None:
        """Hang up. Requests that are under way are waited for, so that no paid answer is lost."""
        self._closing = True
        self.run(self._finish()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _finish(self) -> None:
        await asyncio.gather(*self._pending.values(), return_exceptions=True)
        await self._client.close()

    async def answer(self, body: dict[str, Any]) -> tuple[dict[str, Any], bool]:
        """The answer to a request, and whether it had to be bought. Equal requests under way are bought once.

        Raises:
            Unanswered: This request came to nothing.
            BudgetSpent, EndpointError: No request can be sent any more.
        """
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
        characters = characters_of(body)
        async with (
            self._places,
            self._budget.room(endpoint.cost(most_tokens(characters), endpoint.max_tokens)),
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
            if self._closing:
                raise Unanswered("the writer was closed")
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
                    raise Unanswered(f"status {error.status_code}: {self._safe(error.message)}") from None
                if error.status_code == 429 and (seconds := _retry_after(error)) is not None:
                    self._pace.hold(seconds)
            except (openai.APIError, ValueError) as error:
                failure = error  # no connection, a time-out, a reply that is no JSON
            finally:
                self._sent.discard(key)
        said = f"{type(failure).__name__}: {self._safe(str(failure))}"
        raise Unanswered(f"{endpoint.retries + 1} tries, the last: {said}")

    def _safe(self, message: str) -> str:
        """A message from outside, short and without the key."""
        key = os.environ.get(self.endpoint.key_variable)
        return (message.replace(key, "***") if key else message)[:300]


def _client(endpoint: Endpoint) -> openai.AsyncOpenAI:
    try:
        import openai
    except ImportError:
        raise DatasetError(
            explain(
                "asking a language model",
                expected="the package openai",
                found="no such package",
                do="pip install -e '.[llm]'",
            )
        ) from None
    key = os.environ.get(endpoint.key_variable)
    if not key and endpoint.base_url is None:
        raise DatasetError(
            explain(
                "asking a language model",
                expected=f"an API key in the environment variable {endpoint.key_variable}",
                found="none",
                do="set it, or give base_url for a server of your own",
            )
        )
    return openai.AsyncOpenAI(
        api_key=key or "none", base_url=endpoint.base_url, timeout=endpoint.timeout, max_retries=0
    )


def characters_of(body: Mapping[str, Any]) -> int:
    """Characters of text in a request; a picture counts as 4,000 (about a thousand tokens)."""
    total = 0
    for message in body["messages"]:
        content = message["content"]
        for part in [{"type": "text", "text": content}] if isinstance(content, str) else content:
            total += len(part["text"].encode()) if part["type"] == "text" else 4000
    return total


def most_tokens(characters: int) -> int:
    """More tokens than a text of that many bytes has in practice: boxes take one a digit."""
    return math.ceil(characters / 2)


def _retry_after(error: Exception | None) -> float | None:
    """Seconds for which the server asked us to wait (``Retry-After``: seconds or a date), None when it did
    not."""
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
    """Bought answers in a folder: one file an answer, named by the hash of its request, and a log of what
    each cost.

    A file is written beside its place, flushed to disk and renamed, so it is there whole or not at all. Each
    purchase is a line of ``usage.jsonl``, to which several processes may append; an answer that a kill kept
    from the log is entered when it is used.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._log = folder / "usage.jsonl"
        self._read = 0  # bytes of the log
        self._logged: set[str] = set()
        self._spent = 0.0

    @property
    def spent(self) -> float:
        """What all answers have cost, those of other processes included."""
        if self._log.exists() and self._log.stat().st_size > self._read:
            with self._log.open("rb") as stream:
                stream.seek(self._read)
                lines, _, _ = stream.read().rpartition(b"\n")
            self._read += len(lines) + bool(lines)
            for line in lines.splitlines():
                try:
                    entry = json.loads(line)
                    self._count(entry["key"], float(entry["cost"]))
                except (ValueError, KeyError, TypeError):
                    continue  # a line that a kill cut off
        return self._spent

    def _count(self, key: str, cost: float) -> bool:
        if key in self._logged:
            return False
        self._logged.add(key)
        self._spent += cost
        return True

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"

    def has(self, key: str) -> bool:
        """Whether the answer has been bought."""
        return self._path(key).exists()

    def get(self, key: str) -> dict[str, Any] | None:
        """A bought answer, or None."""
        try:
            answer = json.loads(self._path(key).read_text(encoding="utf-8"))["answer"]
            self._enter(key, answer)
        except FileNotFoundError:
            return None
        except (ValueError, KeyError, TypeError):
            return None  # damaged from outside; it will be bought again and replaced
        return answer

    def put(self, key: str, body: Mapping[str, Any], answer: Mapping[str, Any]) -> None:
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
        """Write a purchase to the log, unless it is there."""
        if key in self._logged:
            return
        _ = self.spent  # another process may have entered it
        if not self._count(key, answer["cost"]):
            return
        kept = ("model", "prompt_tokens", "completion_tokens", "cost", "seconds")
        entry = {"key": key, "time": round(time.time(), 3), **{name: answer[name] for name in kept}}
        with self._log.open("ab+") as stream:
            whole = stream.tell() == 0 or _last_byte(stream) == b"\n"
            stream.write((b"" if whole else b"\n") + json.dumps(entry).encode() + b"\n")


def _last_byte(stream: Any) -> bytes:
    stream.seek(-1, os.SEEK_END)
    return stream.read(1)


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
