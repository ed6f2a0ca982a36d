"""Benchmarks by name.

===================  ===========================================================================
``phantom``          held-out phantom patients, made when they are asked about
``parquet``          a data set as our build or the authors' release has it (``sft/``, ``rl/``)
``m3d-vqa``          M3D-VQA, volumes held by the user; ``open=True`` asks without the choices
``3d-rad``           3D-RAD, volumes of CT-RATE held by the user
``vqa-rad``          VQA-RAD, ``slake`` SLAKE, ``pathvqa`` PathVQA: open and yes-or-no questions
``pmc-vqa``          PMC-VQA, ``omnimedvqa`` OmniMedVQA: multiple choice about images
any source           of :mod:`unireason_lib.dataset.sources`: questions about its structures
===================  ===========================================================================
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unireason_lib.errors import DatasetError
from unireason_lib.evaluation.items import Benchmark
from unireason_lib.imaging import QWEN_FRAME
from unireason_lib.inference import Reading

if TYPE_CHECKING:
    from unireason_lib.imaging import ProcessorFrame, Serialization


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
        name: See the module; ``name:path`` gives the path as well, and the folder of a data set
            (with ``sft/`` or ``rl/``) alone is enough.
        path: Its file or folder, where it has one.
        split: Of those that know splits.
        limit: At most so many questions, the first ones.
        frame: Processor of the model that will be asked; generated boxes are written for it.
        size: Slices, rows and columns of a volume; None: the benchmark's own, else the paper's.
        window: How scans are shown; None: the benchmark's own.
        serialization: Of the checkpoint that will be asked: the default of ``size`` and ``window``.
            Another one given by hand is a :class:`~unireason_lib.errors.ScanWarning`; Parquet says
            itself how it is shown.
        options: Of :func:`~.studies.study_benchmark`, :func:`~.parquet.parquet_benchmark` or
            :func:`~.tables.table_benchmark`.

    Raises:
        DatasetError: An unknown name, option or split, or nothing usable behind the path.
    """
    from unireason_lib.dataset.sources import SOURCES
    from unireason_lib.evaluation import parquet, studies, tables

    makers = dict.fromkeys(["phantom", *SOURCES], studies.study_benchmark)
    makers |= dict.fromkeys(tables.LAYOUTS, tables.table_benchmark)
    makers |= {"parquet": parquet.parquet_benchmark}
    if path is None and any((Path(name) / form).is_dir() for form in ("sft", "rl")):
        name, path = "parquet", name
    elif path is None:
        name, _, path = name.partition(":")
    if name not in makers:
        do = "name one of them, as name:path where it needs files, or a folder with sft/ or rl/"
        raise DatasetError("benchmark", f"one of {', '.join(makers)}", repr(name), do)
    if serialization is not None and name != "parquet":
        dimension = tables.LAYOUTS[name].dimension if name in tables.LAYOUTS else "3d"
        reading = Reading.like(serialization, dimension=dimension, size=size, window=window)
        size, window = reading.size, reading.window
        if name in tables.LAYOUTS:
            options.setdefault("image_size", serialization.image_size)
    if limit is not None and limit < 1:
        raise DatasetError("limit", "1 or more", limit, "correct it")
    make, path = makers[name], path or None
    given = {"split": split, "limit": limit, "frame": frame, "size": size, "window": window}
    given |= options
    try:
        inspect.signature(make).bind(name, path, **given)
    except TypeError as error:
        expected = f"options of {', '.join([*inspect.signature(make).parameters][2:])}"
        do = "correct or remove them"
        raise DatasetError(f"benchmark {name}", expected, error, do) from error
    opened = {**given, "name": name, "frame": asdict(frame)}
    opened["path"] = str(Path(path).resolve()) if path else None
    return replace(make(name, path, **given), opened=opened)
