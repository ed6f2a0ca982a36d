"""Questions in, one line of results each out: batches that read ahead, and fail one by one.

While the model generates, one thread prepares the next batch (reads scans, cuts slices), and no more than that, so
memory does not grow with the number of questions. Each question fails alone: one that cannot be prepared never reaches
the model, and when a batch breaks inside the model its questions are asked one by one.

What a question is, and what its line holds, is the caller's: the command line asks samples of a file, evaluation asks
items of a benchmark.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Trace
    from unireason_lib.inference.results import ResultsFile

Question = TypeVar("Question")
Seen = TypeVar("Seen")


@dataclass(frozen=True)
class Asking(Generic[Question, Seen]):
    """What the stream needs to know about its questions.

    Args:
        prepare: Question -> what it is about, and the request; may raise whatever readers of foreign files raise. Runs
            in the reading thread.
        line: Question, what it is about, trace and seconds (its share of the time of its batch) -> a line of results.
        failure: Question and error -> the line of a question that failed.
    """

    prepare: Callable[[Question], tuple[Seen, GroundedRequest]]
    line: Callable[[Question, Seen, Trace, float], dict[str, Any]]
    failure: Callable[[Question, Exception], dict[str, Any]]


def answer_stream(
    generator: GroundedGenerator,
    questions: Iterable[Question],
    asking: Asking[Question, Seen],
    *,
    settings: Mapping[str, Any],
    batch_size: int = 1,
) -> Iterator[dict[str, Any]]:
    """Ask many questions; yields a line for each as soon as it is there.

    Args:
        generator: The model.
        questions: Of any type.
        asking: What to do with them.
        settings: Arguments of :meth:`GroundedGenerator.generate`.
        batch_size: Questions generated together. At most twice as many are prepared.
    """
    ahead: deque[tuple[Question, Future]] = deque()
    rest = iter(questions)
    with ThreadPoolExecutor(1, thread_name_prefix="reader") as reader:

        def read_ahead() -> None:
            for question in islice(rest, batch_size):
                ahead.append((question, reader.submit(asking.prepare, question)))

        try:
            read_ahead()
            while ahead:
                batch = [ahead.popleft() for _ in range(len(ahead))]
                ready = []
                for question, prepared in batch:
                    try:
                        ready.append((question, *prepared.result()))
                    except Exception as error:  # whatever a reader raises is this question's, and only its
                        yield asking.failure(question, error)
                read_ahead()
                yield from _answer(generator, ready, asking, settings)
        finally:
            reader.shutdown(cancel_futures=True)


def _answer(
    generator: GroundedGenerator,
    ready: Sequence[tuple[Any, Any, GroundedRequest]],
    asking: Asking,
    settings: Mapping[str, Any],
) -> Iterator[dict[str, Any]]:
    if not ready:
        return
    started = time.perf_counter()
    try:
        traces = generator.generate([request for _, _, request in ready], **settings)
        seconds = (time.perf_counter() - started) / len(ready)
        lines = [
            asking.line(question, seen, trace, seconds)
            for (question, seen, _), trace in zip(ready, traces, strict=True)
        ]
    except Exception as error:  # out of memory, or a picture that the processor refuses: ask one by one
        broken = error.with_traceback(None)  # lets go of the tensors of the attempt
        lines = [asking.failure(ready[0][0], broken)] if len(ready) == 1 else None
    if lines is None:
        for one in ready:
            yield from _answer(generator, [one], asking, settings)
    else:
        yield from lines


def write_all(
    lines: Iterator[dict[str, Any]], results: ResultsFile, total: int, done: int, quiet: bool
) -> None:
    """Append every line as it comes, under a progress bar.

    Args:
        lines: Of :func:`answer_stream`; closed when this returns or is interrupted.
        results: The open file.
        total: Lines that the file will have.
        done: Lines that it has.
        quiet: No bar.
    """
    from tqdm import tqdm

    failed = 0
    with closing(lines), tqdm(total=total, initial=done, unit="sample", disable=quiet) as bar:
        for line in lines:
            results.append(line)
            failed += "error" in line
            bar.set_postfix(failed=failed, refresh=False)
            bar.update()
