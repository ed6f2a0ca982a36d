"""``infer``: ask a model about an image, a volume, or a file of questions."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import typer

from unireason_lib.errors import ModelError, RequestError

from .options import MODEL, OUT, ROOT, Command, printable, size_of, warnings_as_lines, window_of

infer = typer.Typer(
    no_args_is_help=True, help="Ask a model about an image, a volume, or a file of questions."
)
Group = dict[str, tuple[Any, Any]]
"""Name of a parameter -> its type, and its option with the default."""


def _option(default: Any, help: str, *names: str) -> Any:
    return typer.Option(default, *names, help=help)


QUESTION: Group = {
    "question": (str, _option(..., "The question.")),
    **{f"option_{x}": (str | None, _option(None, f"Text of {x.upper()}.")) for x in "abcd"},
    "out": (Path | None, _option(None, "Also write the reply as JSON.", *OUT)),
    "quiet": (bool, _option(False, "Print the answer alone.", "--quiet")),
}
TABLE: Group = {
    "questions": (Path, _option(..., "A .jsonl, .json or .csv file.", "--input", "--input-csv")),
    "out": (Path, _option(..., "JSON lines, one a sample; a run in it goes on.", *OUT)),
    "root": (Path | None, _option(None, "Folder of the scans; nothing outside is read.", *ROOT)),
    "max_samples": (int | None, _option(None, "Only the first so many rows.")),
    "batch_size": (int, _option(1, "Questions generated together.")),
    "quiet": (bool, _option(False, "No progress bar and no summary.", "--quiet")),
}
NORMALIZE = "Window: percentile, minmax, LOW,HIGH, or for CT lung, abdomen, liver, bone, brain, ..."
IMAGE: Group = {"normalize": (str | None, _option(None, NORMALIZE))}
VOLUME: Group = {
    "normalize": (str | None, _option(None, f"{NORMALIZE} Default: as trained.")),
    "target_size": (str | None, _option(None, "Slices, rows, columns; default: as trained.")),
    "key": (str | None, _option(None, "Which array of an .npz with several.")),
    "frame": (int | None, _option(None, "Which volume of a 4D file, from 0.")),
    "fill_nonfinite": (float | None, _option(None, "In place of NaN and infinities.")),
}
CHECKPOINT: Group = {
    "model": (str, _option("", "Checkpoint folder or hub id (Qwen2.5-VL).", *MODEL)),
    "adapter": (str | None, _option(None, "PEFT adapter to put on top.")),
    "device": (str | None, _option(None, "cpu, cuda, ...; default: a GPU if there is one.")),
    "device_map": (str | None, _option(None, "Spread over devices ('auto'); not with --device.")),
    "dtype": (str, _option("auto", "float32, bfloat16, float16.", "--dtype", "--torch-dtype")),
}
REPLY: Group = {
    "max_new_tokens": (int, _option(1024, "Most tokens that the model writes.")),
    "max_rounds": (int, _option(10, "Boxes after so many rounds fetch nothing.")),
    "temperature": (float, _option(0.0, "0 is greedy.")),
    "top_p": (float, _option(1.0, "Nucleus of sampling.")),
    "seed": (int, _option(0, "Seed of sampling.")),
}


def _add(name: str, help: str, run: Callable[..., None], *groups: Group) -> None:
    """Register a command whose options are those of the groups."""
    given = [(key, *one) for group in groups for key, one in group.items()]
    keyword = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(k, keyword, default=d, annotation=t) for k, t, d in given]

    def command(**values: Any) -> None:
        run(values, dimension=name[:2])

    command.__signature__ = inspect.Signature(parameters)
    infer.command(name, help=help, cls=Command)(command)


def _one(values: dict[str, Any], dimension: str) -> None:
    """Check what is cheap to check, read the scan, load the model, ask."""
    from unireason_lib.inference import Sample, ask, read_scan
    from unireason_lib.inference.results import run_file
    from unireason_lib.io import write_json
    from unireason_lib.prompts import question_text

    texts = {letter: values[f"option_{letter.lower()}"] for letter in "ABCD"}
    options = {letter: text for letter, text in texts.items() if text is not None}
    question_text(values["question"], options)  # refuses what cannot be asked
    checkpoint, settings, out = _checkpoint(values), _settings(values), values["out"]
    if out is not None and run_file(out).exists():
        raise RequestError(out, "a file for one reply", "results of a batch", "choose another file")
    path = values["image" if dimension == "2d" else "volume"]
    scan = read_scan(path, dimension, _reading(values, checkpoint, dimension))
    sample = Sample(path.name, dimension, str(path), values["question"], options)
    line = ask(checkpoint.generator(), sample, scan, settings)
    typer.echo(printable(line["answer"] if values["quiet"] else describe(line)))
    if out is not None:
        write_json(out, line)


def _batch(values: dict[str, Any], dimension: str) -> None:
    """Ask, then say what is there; exit code 1 when a sample failed."""
    from unireason_lib.inference import infer_file

    checkpoint = _checkpoint(values)
    reading, settings = _reading(values, checkpoint, dimension), _settings(values)
    how = {name: values[name] for name in ("root", "batch_size", "max_samples", "quiet")}
    how |= {"model": checkpoint, "reading": reading, "settings": settings}
    counts = infer_file(values["questions"], values["out"], dimension=dimension, **how)
    if not values["quiet"]:
        text = f"answered {counts['answered']} of {counts['asked']}, failed {counts['failed']}"
        pairs = ("accuracy", "correct", "judged"), ("format compliance", "in_format", "answered")
        for words, part, whole in pairs:
            if total := counts[whole]:
                percent = 100 * counts[part] / total
                text += f", {words} {percent:.1f} % ({counts[part]} of {total})"
        typer.echo(f"{values['out']}: {text}")
    if counts["failed"]:
        do = "the lines with 'error' say why, the same command tries them again"
        typer.echo(f"{counts['failed']} of {counts['asked']} samples failed: {do}", err=True)
        raise typer.Exit(1)


def _checkpoint(values: Mapping[str, Any]) -> Any:
    from unireason_lib.inference import Checkpoint

    if not values["model"]:
        expected = "a checkpoint folder, or a hub id like Qwen/Qwen2.5-VL-7B-Instruct"
        raise ModelError("--model-path", expected, "nothing", "name one; data/tiny-sft ships")
    names = ("adapter", "dtype", "device", "device_map")
    return Checkpoint(values["model"], **{name: values[name] for name in names})


def _settings(values: Mapping[str, Any]) -> Any:
    from unireason_lib.grounding import Settings

    return Settings(**{name: values[name] for name in REPLY})


def _reading(values: Mapping[str, Any], checkpoint: Any, dimension: str) -> Any:
    """How scans are read; what is not given is as the checkpoint was trained."""
    from unireason_lib.inference import Reading

    size = size_of(values.get("target_size"), "--target-size")
    window = window_of(values["normalize"], "--normalize")
    names = {"key": "key", "volume": "frame", "fill": "fill_nonfinite"}
    given = {name: values.get(option) for name, option in names.items()}
    given |= {"size": size, "window": window}
    with warnings_as_lines():
        return Reading.like(checkpoint.serialization, dimension=dimension, **given)


def describe(line: Mapping[str, Any]) -> str:
    """A line of results for a terminal: how the scan was read, the reply, what each box fetched and
    where it lies on the scan, the answer."""
    layout, (rows, columns, count) = line["serialization"], line["frame"]
    shape = " x ".join(map(str, layout["shape"][::-1]))
    lines = [f"{shape} pixels or voxels; the model sees {count} of {columns} x {rows} pixels"]
    if line["dimension"] == "3d":
        lines[0] += ", window {:g} to {:g}".format(*layout["range"])
        if layout["affine"] is None:
            lines.append("no geometry in the file: axes, left and right are assumed")
    lines += [*(f"warning: {text}" for text in line.get("warnings", ())), "", line["text"], ""]
    places = [line.get(key, ()) for key in ("boxes_image", "boxes_voxel", "boxes_mm")]
    boxes = iter(zip(*filter(None, places), strict=False))
    for one in line["pointings"]:
        crops = [f"{width} x {height}" for width, height in one["crops"]]
        fetched = f"{len(crops)} crops of {crops[0]} pixels" if crops else one["status"]
        where = f"; on the scan {next(boxes, '')}" if one["box"] is not None else ""
        lines.append(f"{one['text']}: {fetched}{where}")
    cut = ", cut off by --max-new-tokens" if line["stop"] == "length" else ""
    lines += [f"answer: {line['answer'] or '(none)'}", f"choice: {line['choice'] or 'none'}"]
    tokens = "{prompt_tokens} prompt tokens, {own_tokens} generated, {injected_tokens} injected"
    return "\n".join([*lines, f"{tokens.format(**line)}{cut}; {line['seconds']:.1f} s"])


for _dimension, _what, _formats, _group in (
    ("2d", "image", "PNG, JPEG, BMP, TIFF, WebP or DICOM.", IMAGE),
    ("3d", "volume", "NIfTI, DICOM folder or file, .npy or .npz.", VOLUME),
):
    _scan: Group = {_what: (Path, _option(..., _formats))}
    _add(_dimension, f"Ask about one {_what}.", _one, _scan, QUESTION, CHECKPOINT, _group, REPLY)
    _help = f"Ask a file of questions about {_what}s; resumable, one JSON line a sample."
    _add(f"{_dimension}-batch", _help, _batch, TABLE, CHECKPOINT, _group, REPLY)
