"""``trace``: results as one web page that replays the replies."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from unireason_lib.errors import RequestError, UniReasonError

if TYPE_CHECKING:
    from PIL import Image

Line = Mapping[str, Any]
Loader = Callable[[Line], "Sequence[Image.Image]"]


def trace(
    results: Annotated[
        Path, typer.Argument(help="Results of infer or evaluate: .jsonl, or .json of one question.")
    ],
    out: Annotated[
        Path | None, typer.Option(help="The page; by default beside the results.")
    ] = None,
    ids: Annotated[
        list[str] | None, typer.Option("--id", help="Only this sample; may be repeated.")
    ] = None,
    image_root: Annotated[
        Path | None,
        typer.Option(
            "--image-root",
            "--data-root",
            help="Where the scans (of a benchmark: its files) are now; by default where they were. With it, "
            "nothing outside is read.",
        ),
    ] = None,
    max_samples: Annotated[int, typer.Option(help="Most samples on the page.", min=1)] = 20,
) -> None:
    """Show results as one self-contained HTML page: images, boxes, crops and text."""
    from unireason_lib.display import trace_html
    from unireason_lib.inference import read_results

    wanted = (line for line in read_results(results) if not ids or line["id"] in ids)
    lines = list(islice(wanted, max_samples))
    if not lines:
        found = f"none of {', '.join(ids)}" if ids else "none"
        raise RequestError(results, "at least one result", found, "check the ids")
    load, control = _loader(results, image_root)
    images: list[Sequence[Image.Image] | None] = []
    for line in lines:
        try:
            images.append(None if "error" in line else _aligned(line, load(line)))
        except (UniReasonError, OSError) as problem:
            typer.echo(f"{line['id']}: shown without images. {problem}", err=True)
            images.append(None)
    if control == "random-crop":  # what was put in is not what the boxes say
        lines = [_without_crops(line) for line in lines]
    out = out or results.with_suffix(".html")
    out.parent.mkdir(parents=True, exist_ok=True)
    trace_html(lines, images, path=out, title=results.name)
    count = f"{len(lines)} {'reply' if len(lines) == 1 else 'replies'}"
    more = sum(1 for _ in wanted)
    typer.echo(f"{out}: {count}" + (f"; --max-samples leaves out {more} more" if more else ""))


def _loader(results: Path, root: Path | None) -> tuple[Loader, str]:
    """What loads the images of a line, and the control under which they were shown.

    What was run stands beside the results of a batch: ``opened``, the arguments of
    :func:`unireason_lib.evaluation.open_benchmark`, or the ``root`` of the scans. Without (one question) a line names
    its scan itself.
    """
    from unireason_lib.inference.results import run_file
    from unireason_lib.io import read_json

    note = run_file(results)
    made = read_json(note, RequestError) if note.is_file() else {}
    run = made.get("run") if isinstance(made.get("run"), Mapping) else {}
    control = str(run.get("control", "none"))
    if "benchmark" in run:
        opened = made.get("opened")
        return _from_benchmark(
            opened if isinstance(opened, Mapping) else {}, root, control
        ), control
    below = root or (Path(run["root"]) if isinstance(run.get("root"), str) else None)
    return lambda line: _from_scan(line, below), control


def _from_benchmark(opened: Mapping[str, Any], root: Path | None, control: str) -> Loader:
    """Images of the items of a benchmark, opened as for the run, when the first are asked for."""

    @cache
    def items() -> tuple[Mapping[str, Any], Callable[[Any], Sequence[Image.Image]]]:
        from unireason_lib.evaluation import open_benchmark
        from unireason_lib.evaluation.run import shown_pictures
        from unireason_lib.imaging import ProcessorFrame

        how = {
            k: tuple(v) if k == "window" and isinstance(v, list) else v for k, v in opened.items()
        }
        if not isinstance(how.get("name"), str) or not isinstance(how.get("frame"), Mapping):
            raise _no_layout(
                "benchmark", "which benchmark was asked, in the run file beside the results"
            )
        how |= {"frame": ProcessorFrame(**how["frame"])} | ({"path": root} if root else {})
        benchmark = open_benchmark(how.pop("name"), how.pop("path", None), **how)
        return {item.id: item for item in benchmark}, shown_pictures(benchmark, control)

    def load(line: Line) -> Sequence[Image.Image]:
        known, shown = items()
        about = line.get("about") or {}
        name = about.get("parent", line["id"])  # of a question about a slice: that about its volume
        if name not in known:
            raise _no_layout(line["id"], "a question of the benchmark as it is now")
        images = shown(known[name])
        return [images[about["slice"]]] if "parent" in about else images

    return load


def _from_scan(line: Line, root: Path | None) -> Sequence[Image.Image]:
    """Images of the scan that a line names; below ``root``, unless its writer is the user's own question."""
    from unireason_lib.inference import Reading, read_scan, scan_below

    try:
        name, layout = (
            line["image" if line["dimension"] == "2d" else "volume"],
            line["serialization"],
        )
        names = ("size", "window", "image_size", "key", "volume", "fill")
        how = {name: layout[name] for name in names if name in layout}
        how |= {"window": layout["range"]} if "range" in layout else {}  # a percentile's values
        how = {k: tuple(v) if isinstance(v, list) else v for k, v in how.items()}
        path = Path(name) if root is None else scan_below(root, name, absolute=True)
    except (KeyError, TypeError, AttributeError) as error:
        raise _no_layout(line["id"], "how the scan was laid out") from error
    return read_scan(path, line["dimension"], Reading(**how)).images


def _aligned(line: Line, images: Sequence[Image.Image]) -> list[Image.Image]:
    """Images as the model saw them."""
    try:
        rows, columns, _ = (int(side) for side in line["frame"])
    except (KeyError, TypeError, ValueError) as error:
        raise _no_layout(line["id"], "the size of the images as the model saw them") from error
    bicubic = 3  # as processors of the Qwen family resize
    return [i if i.size == (columns, rows) else i.resize((columns, rows), bicubic) for i in images]


def _no_layout(name: str, expected: str) -> RequestError:
    do = "make the results again with infer or evaluate"
    return RequestError(f"result {name!r}", expected, "nothing of that kind", do)


def _without_crops(line: Line) -> Line:
    boxes = [
        {**box, "crops": [], "status": "a random region"} if box["crops"] else box
        for box in line["pointings"]
    ]
    return {**line, "pointings": boxes}
