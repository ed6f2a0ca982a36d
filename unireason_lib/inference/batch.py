"""Asking a model one question, or a file of them.

Files are asked in batches that read ahead and fail one by one, see :mod:`unireason_lib.inference.stream`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from unireason_lib import __version__
from unireason_lib.answers import THINK_END, THINK_START
from unireason_lib.boxes import BOX_END, BOX_START
from unireason_lib.errors import RequestError, explain
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Settings, Trace, load_model
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.inference.fingerprint import model_identity, sha256_of
from unireason_lib.inference.results import ResultsFile, read_results
from unireason_lib.inference.samples import Sample, inside, read_samples
from unireason_lib.inference.scene import Reading, Scene, read_scene
from unireason_lib.inference.stream import Asking, answer_stream, write_all


@dataclass(frozen=True)
class Checkpoint:
    """Which model, and where it runs; see :func:`unireason_lib.grounding.load_model`."""

    path: str
    adapter: str | None = None
    dtype: str = "auto"
    device: str | None = None
    device_map: str | None = None

    def generator(self) -> GroundedGenerator:
        """Load it, the first time that it is asked for."""
        return self._loaded

    @cached_property
    def _loaded(self) -> GroundedGenerator:
        return GroundedGenerator(*load_model(**asdict(self)))

    def frame(self) -> ProcessorFrame:
        """The frame of its processor, without loading the weights.

        Raises:
            ModelError: It cannot be read.
        """
        from transformers import AutoProcessor

        try:
            return ProcessorFrame.from_processor(
                AutoProcessor.from_pretrained(self.path, trust_remote_code=False)
            )
        except (OSError, ValueError, KeyError):  # loading all of it says better what is wrong
            return self.generator().frame

    def identity(self) -> dict[str, Any]:
        """What tells its replies from those of another model; not where it runs."""
        adapter = model_identity(self.adapter) if self.adapter else None
        return {"model": model_identity(self.path), "adapter": adapter, "dtype": self.dtype}


@dataclass(frozen=True)
class Summary:
    """What a file of results holds of a list of samples.

    Attributes:
        asked: Samples in the list.
        answered: Those with a reply.
        failed: Those with an error.
        judged: Replies whose truth is known.
        correct: Of these, right ones (no choice is wrong).
        chosen: Replies to questions with options that choose one.
        with_options: Replies to questions with options.
        in_format: Replies in the trained form, see :func:`in_format`.
    """

    asked: int
    answered: int = 0
    failed: int = 0
    judged: int = 0
    correct: int = 0
    chosen: int = 0
    with_options: int = 0
    in_format: int = 0

    def lines(self) -> list[str]:
        """The summary in words; every share with its count."""
        lines = [f"answered {self.answered} of {self.asked}, failed {self.failed}"]
        if self.judged:
            lines.append(f"accuracy {_share(self.correct, self.judged)}")
        if self.with_options:
            lines.append(f"chose an option {_share(self.chosen, self.with_options)}")
        if self.answered:
            lines.append(f"in format {_share(self.in_format, self.answered)}")
        return lines


def ask(
    generator: GroundedGenerator, sample: Sample, scene: Scene, settings: Settings | None = None
) -> tuple[Trace, dict[str, Any]]:
    """Ask one question.

    Args:
        generator: The model.
        sample: The question; its ``scan`` is only a name.
        scene: What it is about, see :func:`unireason_lib.inference.read_scene`.
        settings: How the reply is generated.

    Returns:
        The trace, and the record that a batch would write for it.
    """
    trace = generator.generate([_request(sample, scene)], **asdict(settings or Settings()))[0]
    return trace, record_of(sample, trace, scene, generator)


def answer_all(
    generator: GroundedGenerator,
    samples: Iterable[Sample],
    root: str | Path,
    *,
    reading: Reading | None = None,
    settings: Settings | None = None,
    batch_size: int = 1,
) -> Iterator[dict[str, Any]]:
    """Ask many questions; yields one record each as soon as it is there.

    Args:
        generator: The model.
        samples: The questions.
        root: The folder below which their scans are, see :func:`unireason_lib.inference.inside`.
        reading: How scans are read.
        settings: How replies are generated.
        batch_size: Questions generated together. At most twice as many scans are in memory.

    Returns:
        An iterator of records as of :func:`record_of`, or ``{"id", "row", ..., "error": {"type", "message"}}`` for a
        sample that failed.
    """
    reading, settings = reading or Reading(), asdict(settings or Settings())

    def prepare(sample: Sample) -> tuple[Scene, GroundedRequest]:
        if sample.problem is not None:
            raise sample.problem
        scene = read_scene(inside(root, sample.scan), sample.dimension, reading)
        generator.frame.size(scene.images[0].height, scene.images[0].width)
        return scene, _request(sample, scene)

    asking = Asking(
        prepare,
        lambda sample, scene, trace, seconds: record_of(sample, trace, scene, generator),
        lambda sample, error: _failure(sample, error, root),
    )
    return answer_stream(generator, samples, asking, settings=settings, batch_size=batch_size)


def infer_file(
    questions: str | Path,
    output: str | Path,
    *,
    dimension: str,
    model: Checkpoint | GroundedGenerator,
    root: str | Path | None = None,
    reading: Reading | None = None,
    settings: Settings | None = None,
    batch_size: int = 1,
    max_samples: int | None = None,
    quiet: bool = False,
) -> Summary:
    """Ask a file of questions and keep the replies, one JSON line each.

    Whatever stops it, calling it again goes on: what is answered stays, what failed is tried again. A larger
    ``max_samples``, another batch size or device may be given then; anything else that shapes replies may not.

    Args:
        questions: See :mod:`unireason_lib.inference.samples`.
        output: The file of results, see :mod:`unireason_lib.inference.results`.
        dimension: ``"2d"`` or ``"3d"``.
        model: What to load, once it is known that something is left to do; or a generator at hand.
        root: The folder below which the scans are; default: the folder of ``questions``.
        reading: How scans are read.
        settings: How replies are generated.
        batch_size: Questions generated together.
        max_samples: Only the first so many rows.
        quiet: No progress bar.

    Returns:
        What the file holds now of these samples.

    Raises:
        UniReasonError: Nothing could be asked: the file of questions, the output, the root or the model is not usable.
    """
    reading, settings = reading or Reading(), settings or Settings()
    root = Path(questions).parent if root is None else Path(root)
    if not root.is_dir():
        raise RequestError(
            explain(root, expected="a folder of scans", found="no folder", do="check the path")
        )
    if batch_size < 1 or (max_samples is not None and max_samples < 1):
        found = f"{batch_size} and {max_samples}"
        raise RequestError(
            explain("batch size and samples", expected="at least 1", found=found, do="correct them")
        )
    samples = read_samples(questions, dimension)[:max_samples]
    run = {
        "dimension": dimension,
        "questions": sha256_of(questions),
        "root": str(root.resolve()),
        "reading": asdict(reading),
        "settings": asdict(settings),
        "version": __version__,
        **(model.identity() if isinstance(model, Checkpoint) else {"model": model.model.name_or_path}),
    }
    with ResultsFile(output, run, retry=[sample.id for sample in samples]) as results:
        todo = [sample for sample in samples if sample.id not in results.done]
        if todo:
            generator = model.generator() if isinstance(model, Checkpoint) else model
            records = answer_all(
                generator, todo, root, reading=reading, settings=settings, batch_size=batch_size
            )
            write_all(records, results, len(samples), len(samples) - len(todo), quiet)
    return summarize(output, samples)


def summarize(output: str | Path, samples: Sequence[Sample]) -> Summary:
    """Count what a file of results holds of some samples."""
    wanted = {sample.id for sample in samples}
    found = Summary(len(samples))
    for record in read_results(output):
        if record["id"] not in wanted:
            continue
        if "error" in record:
            found = replace(found, failed=found.failed + 1)
            continue
        judged, options = record.get("truth") is not None, bool(record.get("options"))
        found = replace(
            found,
            answered=found.answered + 1,
            judged=found.judged + judged,
            correct=found.correct + bool(judged and record.get("correct")),
            with_options=found.with_options + options,
            chosen=found.chosen + bool(options and record.get("choice")),
            in_format=found.in_format + bool(record.get("in_format")),
        )
    return found


def record_of(sample: Sample, trace: Trace, scene: Scene, generator: GroundedGenerator) -> dict[str, Any]:
    """One line of results.

    Returns:
        The trace as JSON (boxes in pixels of the frame), what was asked, how the scan was laid out
        (:meth:`Scene.describe`), where the boxes lie on it (:meth:`Scene.locate`), ``in_format``, and with a known
        truth ``truth`` and ``correct``.
    """
    record = {**_name(sample), **trace.to_dict()}
    record |= scene.locate(trace.boxes, generator.frame) | scene.describe(generator.frame)
    record["in_format"] = in_format(trace)
    if sample.question_type is not None:
        record["question_type"] = sample.question_type
    if sample.truth is not None:
        record |= {"truth": sample.truth, "correct": is_correct(sample, trace)}
    return record


def is_correct(sample: Sample, trace: Trace) -> bool:
    """The right letter was chosen; without options, the answer is the truth word for word (case and marks aside)."""
    if sample.options:
        return trace.choice == sample.truth
    return _words(trace.answer) == _words(sample.truth or "")


def in_format(trace: Trace) -> bool:
    """Whether a reply has the trained form: one thought, closed, an answer after it, and only well-formed boxes."""
    text = trace.text
    thought = text.count(THINK_START) == text.count(THINK_END) == 1 and bool(trace.answer)
    paired = text.count(BOX_START) == text.count(BOX_END) == len(trace.boxes)
    return thought and paired and text.index(THINK_START) < text.index(THINK_END)


# -- one sample -----------------------------------------------------------------------------------------------------


def _request(sample: Sample, scene: Scene) -> GroundedRequest:
    return GroundedRequest(
        sample.question, scene.images, dict(sample.options), dimension=sample.dimension, id=sample.id
    )


def _name(sample: Sample) -> dict[str, Any]:
    name: dict[str, Any] = {"id": sample.id}
    if sample.row:
        name["row"] = sample.row
    return name | {"image" if sample.dimension == "2d" else "volume": sample.scan}


def _failure(sample: Sample, error: Exception, root: str | Path) -> dict[str, Any]:
    """The line of a sample that failed; the message names its scan as the file of questions does."""
    message = str(error).replace(f"{Path(root).resolve()}/", "") or type(error).__name__
    return {**_name(sample), "error": {"type": type(error).__name__, "message": message[:2000]}}


def _words(text: str) -> str:
    return " ".join("".join(c if c.isalnum() else " " for c in text.casefold()).split())


def _share(count: int, of: int) -> str:
    return f"{100 * count / of:.1f} % ({count} of {of})"
