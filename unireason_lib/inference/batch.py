"""Asking a model one question, or a file of them: while it generates, one thread reads the scans of
the next batch and no more. Each question fails alone.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib import __version__
from unireason_lib.answers import plain_words
from unireason_lib.errors import RequestError
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.inference.checkpoint import Checkpoint
from unireason_lib.inference.results import complete_results, read_results
from unireason_lib.inference.samples import Sample, read_samples
from unireason_lib.inference.scan import Reading, Scan, read_scan, scan_below
from unireason_lib.io import sha256_of

if TYPE_CHECKING:  # torch takes seconds, which nobody waits for who only reads results
    from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Settings, Trace

Line = dict[str, Any]


def ask(model: GroundedGenerator, sample: Sample, scan: Scan, settings: Settings) -> Line:
    """Ask one question about a scan: the line that a batch would write."""
    (trace,) = model.generate([_request(sample, scan)], **asdict(settings))
    return _line(model.frame, sample, scan, trace)


def infer_file(
    questions: str | Path,
    output: str | Path,
    *,
    dimension: str,
    model: Checkpoint,
    reading: Reading,
    settings: Settings,
    root: str | Path | None = None,
    batch_size: int = 1,
    max_samples: int | None = None,
    quiet: bool = False,
) -> Counter[str]:
    """Ask a file of questions about scans below ``root`` (default: its folder) and keep the replies
    in ``output``, one JSON line each. Called again it resumes: what is answered stays, what failed
    is tried again. Gives the numbers of samples ``asked, answered, failed, judged`` (truth known),
    ``correct, in_format``."""
    root = Path(questions).parent if root is None else Path(root)
    if not root.is_dir():
        raise RequestError(root, "a folder of scans", "no folder", "check the path")
    if batch_size < 1:
        raise RequestError("batch size", "at least 1", batch_size, "correct it")
    samples = read_samples(questions, dimension)[:max_samples]
    run = {"dimension": dimension, "questions": sha256_of(questions), "root": str(root.resolve())}
    run |= {"reading": asdict(reading), "settings": asdict(settings), "version": __version__}
    run |= model.identity()

    def prepare(sample: Sample) -> tuple[Scan, GroundedRequest]:
        if sample.problem:
            raise sample.problem
        scan = read_scan(scan_below(root, sample.scan), dimension, reading)
        first = scan.images[0]
        model.generator().frame.size(first.height, first.width)  # may refuse it
        return scan, _request(sample, scan)

    def lines_of(todo: list[Sample]) -> Iterator[Line]:
        frame = model.generator().frame
        return answer_stream(
            model.generator(),
            todo,
            prepare=prepare,
            line=lambda sample, scan, trace, _: _line(frame, sample, scan, trace),
            failure=lambda sample, error: {**_name(sample), **error_of(error, root)},
            settings=asdict(settings),
            batch_size=batch_size,
        )

    complete_results(output, run, samples, lines_of, quiet=quiet)
    names, counts = {sample.id for sample in samples}, Counter(asked=len(samples))
    for line in (line for line in read_results(output) if line["id"] in names):
        counts["failed" if "error" in line else "answered"] += 1
        counts["judged"] += "correct" in line
        counts["correct"] += bool(line.get("correct"))
        counts["in_format"] += bool(line.get("in_format"))
    return counts


def answer_stream(
    generator: GroundedGenerator,
    questions: Iterable[Any],
    *,
    prepare: Callable[[Any], tuple[Any, GroundedRequest]],
    line: Callable[[Any, Any, Trace, float], Line],
    failure: Callable[[Any, Exception], Line],
    settings: Mapping[str, Any],
    batch_size: int = 1,
) -> Iterator[Line]:
    """Ask questions of any type, ``batch_size`` together, and yield a line for each. ``prepare``
    (question -> what it is about, and the request) runs in the reading thread; ``line`` gets
    question, what it is about, trace and its part of the seconds of its batch, ``failure`` question
    and error; ``settings`` are those of ``generate``. When a batch breaks inside the model, its
    questions are asked one by one."""
    rest, reader = iter(questions), ThreadPoolExecutor(1)

    def read_ahead() -> list[tuple[Any, Any]]:
        return [(one, reader.submit(prepare, one)) for one in islice(rest, batch_size)]

    def answer(ready: Sequence[tuple[Any, Any, GroundedRequest]]) -> Iterator[Line]:
        started = time.perf_counter()
        try:
            traces = generator.generate([request for *_, request in ready], **settings)
            seconds = (time.perf_counter() - started) / len(ready)
            pairs = zip(ready, traces, strict=True)
            lines = [line(one, about, trace, seconds) for (one, about, _), trace in pairs]
        except Exception as error:  # out of memory, or an image that the processor refuses
            error.with_traceback(None)  # lets go of the tensors of the attempt
            lines = chain.from_iterable(answer([one]) for one in ready)
            lines = lines if len(ready) > 1 else [failure(ready[0][0], error)]
        yield from lines

    try:
        following = read_ahead()
        while batch := following:
            ready, following = [], read_ahead()
            for one, future in batch:
                try:
                    ready.append((one, *future.result()))
                except Exception as error:  # whatever a reader raises is this question's only
                    yield failure(one, error)
            yield from answer(ready) if ready else ()
    finally:
        reader.shutdown(cancel_futures=True)


def error_of(error: Exception, root: Path | None = None) -> Line:
    """What the line of a failed question says, with paths as they are below ``root``."""
    message, kind = str(error), type(error).__name__
    message = message.replace(f"{root.resolve()}/", "") if root else message
    return {"error": {"type": kind, "message": (message or kind)[:2000]}}


def _line(frame: ProcessorFrame, sample: Sample, scan: Scan, trace: Trace) -> Line:
    """What was asked, the trace, :meth:`Scan.record`, and with a known truth ``correct``."""
    line = _name(sample) | trace.to_dict() | scan.record(trace.boxes, frame)
    if sample.truth is not None:
        same_words = plain_words(trace.answer) == plain_words(sample.truth)
        right = trace.choice == sample.truth if sample.options else same_words
        line |= {"truth": sample.truth, "correct": right}
    return line


def _name(sample: Sample) -> Line:
    return {"id": sample.id, "image" if sample.dimension == "2d" else "volume": sample.scan}


def _request(sample: Sample, scan: Scan) -> GroundedRequest:
    from unireason_lib.grounding import GroundedRequest

    options = dict(sample.options)
    return GroundedRequest(sample.question, scan.images, options, sample.dimension, sample.id)
