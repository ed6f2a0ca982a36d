"""``trace``: results as one web page that replays the replies."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unireason_lib.errors import RequestError, UniReasonError, explain

if TYPE_CHECKING:
    from PIL import Image

    from unireason_lib.inference import Reading


def trace(
    results: Annotated[
        Path, typer.Argument(help="Results of infer: .jsonl of a batch, .json of one question.")
    ],
    out: Annotated[Path | None, typer.Option(help="The page; by default beside the results.")] = None,
    ids: Annotated[list[str] | None, typer.Option("--id", help="Only this sample; may be repeated.")] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(
            "--image-root",
            "--data-root",
            help="Where the scans are; by default as in the run, for one question the current folder.",
        ),
    ] = None,
    max_samples: Annotated[int, typer.Option(help="Most samples on the page.", min=1)] = 20,
) -> None:
    """Show results as one self-contained HTML page: pictures, boxes, crops and text."""
    from unireason_lib.display import trace_html
    from unireason_lib.inference import read_results

    wanted = (record for record in read_results(results) if not ids or record["id"] in ids)
    records = list(islice(wanted, max_samples))
    if not records:
        found = f"none of {', '.join(ids)}" if ids else "none"
        raise RequestError(explain(results, expected="at least one result", found=found, do="check the ids"))
    root = image_root or _root_of(results)
    shown, pictures = [], []
    for record in records:
        error = record.get("error")
        shown.append({**record, "error": error.get("message", "") if isinstance(error, Mapping) else error})
        try:
            pictures.append(None if error else _pictures(record, root))
        except (UniReasonError, OSError) as problem:
            typer.echo(f"{record['id']}: shown without pictures. {problem}", err=True)
            pictures.append(None)
    out = out or results.with_suffix(".html")
    out.parent.mkdir(parents=True, exist_ok=True)
    trace_html(shown, pictures, path=out, title=results.name)
    more = sum(1 for _ in wanted)
    typer.echo(f"{out}: {len(shown)} replies" + (f"; --max-samples leaves out {more} more" if more else ""))


def _root_of(results: Path) -> Path:
    """Where the scans of a batch were, as it is noted beside the results; else the current folder."""
    from unireason_lib.inference.results import run_file

    try:
        return Path(json.loads(run_file(results).read_text(encoding="utf-8"))["run"]["root"])
    except (OSError, ValueError, KeyError, TypeError):
        return Path(".")


def _pictures(record: Mapping[str, Any], root: Path) -> list[Image.Image]:
    """The pictures of a result as the model saw them, read again from the scan."""
    from unireason_lib.inference import inside, read_scene

    try:
        size = int(record["frame"]["width"]), int(record["frame"]["height"])
        dimension = "3d" if "serialization" in record else "2d"
        name = str(record["volume" if dimension == "3d" else "image"])
        reading = _reading(record)
    except (KeyError, TypeError, AttributeError) as error:
        raise RequestError(
            explain(
                f"result {record['id']!r}",
                expected="how the scan was laid out",
                found=f"{type(error).__name__} {error}",
                do="make the results again with infer",
            )
        ) from error
    scene = read_scene(inside(root, name, absolute=True), dimension, reading)
    bicubic = 3  # as processors of the Qwen family resize
    return [image if image.size == size else image.resize(size, bicubic) for image in scene.images]


def _reading(record: Mapping[str, Any]) -> Reading:
    from unireason_lib.inference import Reading

    layout = record.get("serialization")
    if layout is None:
        window = record["picture"]["window"]
        return Reading(window=tuple(window) if isinstance(window, list) else window)
    window = tuple(layout["range"])  # the same values, also if the window was a percentile
    return Reading(tuple(layout["size"]), window, layout.get("key"), layout.get("frame"), layout.get("fill"))
