"""Benchmarks by name.

===================  ==========================================================================================
``phantom``          held-out phantom patients, made on the fly
``parquet``          a data set in the form of our build or of the authors' release (``sft/`` or ``rl/``)
``m3d-vqa``          M3D-VQA CSV, volumes held by the user; ``open=true`` asks without the choices
``3d-rad``           3D-RAD CSV, volumes of CT-RATE held by the user
``vqa-rad``          VQA-RAD, ``slake`` SLAKE, ``pathvqa`` PathVQA: open and yes-or-no questions about pictures
``pmc-vqa``          PMC-VQA CSV, ``omnimedvqa`` OmniMedVQA JSON: multiple choice about pictures
any source           of :mod:`unireason_lib.dataset.sources`: its outlines are asked about (``brain``, ``folder``, ...)
===================  ==========================================================================================

A folder that holds ``sft/`` or ``rl/`` can be named directly.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.items import Benchmark
from unireason_lib.imaging import QWEN_FRAME
from unireason_lib.inference import Reading

if TYPE_CHECKING:
    from unireason_lib.imaging import ProcessorFrame, Serialization

BENCHMARKS: Mapping[str, tuple[str, str]] = {
    "phantom": ("studies", "phantom_benchmark"),
    "parquet": ("parquet", "parquet_benchmark"),
    **dict.fromkeys(("m3d-vqa", "3d-rad"), ("tables", "table_benchmark")),
    **dict.fromkeys(
        ("vqa-rad", "slake", "pathvqa", "pmc-vqa", "omnimedvqa"), ("tables", "table_benchmark")
    ),
}
"""Name -> module of this package and function in it."""


def open_benchmark(
    name: str,
    path: str | Path | None = None,
    *,
    split: str = "test",
    limit: int | None = None,
    frame: ProcessorFrame = QWEN_FRAME,
    size: Sequence[int] | None = None,
    window: Any = None,
    serialization: Serialization | None = None,
    **options: Any,
) -> Benchmark:
    """Open a benchmark.

    Args:
        name: See the module; ``name:path`` gives the path as well, and the path of a data set alone is enough.
        path: Its file or folder, where it has one.
        split: Of those that know splits.
        limit: At most so many questions, the first ones.
        frame: Processor of the model that will be asked: generated questions and boxes are written for it.
        size: Slices, rows and columns of a volume; None takes the benchmark's own, else the paper's.
        window: How scans are shown; None takes the benchmark's own.
        serialization: Of the checkpoint that will be asked: the default of ``size`` and ``window``. Another one given
            by hand is a :class:`~unireason_lib.errors.ScanWarning`; a data set in Parquet says itself how it is shown.
        options: Of the benchmark, see its function.

    Raises:
        DatasetError: An unknown name, option or split, or nothing usable behind the path.
    """
    if path is None:
        name, path = _name_and_path(name)
    make = _maker(name)
    known = inspect.signature(make).parameters
    if serialization is not None and name != "parquet":
        reading = Reading.like(serialization, size=size, window=window)
        size, window = reading.size, reading.window
        if "image_size" in known:
            options.setdefault("image_size", serialization.image_size)
    given: dict[str, Any] = {
        "limit": limit,
        "frame": frame,
        "size": size,
        "window": window,
        **options,
    }
    given |= {"split": split} if "split" in known else {}
    if "name" in known:
        given["name"] = name
    if "path" in known:
        given["path"] = path
    elif path is not None:
        raise _bad(name, "no path, it needs none", repr(str(path)), f"write {name} alone")
    open_ended = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    unknown = [] if open_ended else sorted(set(given) - set(known))
    if unknown:
        takes = ", ".join(option for option in known if option not in ("name", "path"))
        raise _bad(
            f"benchmark {name}", f"options of {takes}", ", ".join(unknown), "correct or remove them"
        )
    if limit is not None and limit < 1:
        raise _bad("limit", "1 or more", str(limit), "correct it")
    opened = {**given, "name": name, "split": split, "frame": asdict(frame)}
    opened["path"] = None if path is None else str(Path(path).resolve())
    return replace(make(**given), opened=opened)


def _name_and_path(text: str) -> tuple[str, str | None]:
    if text in BENCHMARKS:
        return text, None
    folder = Path(text)
    if any((folder / form).is_dir() for form in ("sft", "rl")):
        return "parquet", text
    name, colon, path = text.partition(":")
    return (name, path or None) if colon else (text, None)


def _maker(name: str) -> Callable[..., Benchmark]:
    from unireason_lib.dataset.sources import SOURCES

    if name not in BENCHMARKS and name not in SOURCES:
        every = ", ".join([*BENCHMARKS, *(source for source in SOURCES if source != "phantom")])
        do = "name one of them, as name:path where it needs files, or the folder of a data set with sft/ or rl/"
        raise _bad("benchmark", f"one of {every}", repr(name), do)
    module, function = BENCHMARKS.get(name, ("studies", "study_benchmark"))
    return getattr(import_module(f"unireason_lib.evaluation.{module}"), function)


def _bad(subject: object, expected: str, found: str, do: str) -> DatasetError:
    return DatasetError(subject, expected, found, do)
