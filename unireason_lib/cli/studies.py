"""``ablate``, ``plan``, ``tutorial`` and ``trace``: studies, their cost, and looking at replies."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Annotated, Any

import typer

from unireason_lib.errors import RequestError, UniReasonError

from .options import MODEL, OUT, ROOT, Change, ProfileName, named_values, option

Line = Mapping[str, Any]
Seeds = Annotated[int | None, typer.Option(min=1, help="So many of the grid's seeds.")]
Workers = Annotated[int, typer.Option(min=1, help="Notebooks at a time.")]


def ablate(
    grid: Annotated[Path, typer.Argument(help="Grid in YAML; see data/ablations.")],
    profile: Annotated[str | None, option("The study at another size: smoke, ...")] = None,
    change: Change = None,
    seeds: Seeds = None,
    only: Annotated[list[str] | None, option("This condition; repeatable.")] = None,
    workers: Workers = 1,
    keep: Annotated[Path | None, option("Folder for tables; tests in it are not redone.")] = None,
    look: Annotated[bool, option("Show results of a part, too.", "--look")] = False,
    dry_run: Annotated[bool, option("Only show runs, cost and commands.", "--dry-run")] = False,
) -> None:
    """Run the conditions of a grid with every seed; what several share is made once.

    Each run is a notebook in runs/ablation/NAME. A run that fails stops only what builds on it, and
    the same command goes on where it was stopped. Results are shown when all conditions and seeds
    are there: a study that may stop when its numbers please proves nothing.
    """
    from unireason_lib.ablation import load_grid, run_study
    from unireason_lib.notebooks import project_root

    study = run_study(
        load_grid(grid).at(profile, "\n".join(change or ())),
        project_root(),
        seeds=seeds,
        only=only or (),
        workers=workers,
        keep=keep,
        look=look,
        dry_run=dry_run,
        command="python -m unireason_lib " + shlex.join(["ablate", *sys.argv[2:]]),
        say=typer.echo,
    )
    if study.failed or study.skipped:
        raise typer.Exit(1)


def plan(
    gpus: Annotated[str, option("Number and name of the GPUs: 8xH100, A100, 2xL4.")],
    profile: ProfileName = "gpu",
    change: Change = None,
    model: Annotated[str | None, option("3b, 7b, or a folder with a config.json.", *MODEL)] = None,
    sharding: Annotated[str | None, option("ddp, fsdp or zero3.")] = None,
    stage: Annotated[list[str] | None, option("sft or grpo; default: both.")] = None,
    price: Annotated[float | None, option("US dollars for an hour of one GPU.")] = None,
    out: Annotated[Path | None, option("Also write it as JSON.", "--json")] = None,
) -> None:
    """What a profile takes in memory, hours and money, before anything is rented.

    Parameters and FLOPs are counted on the model's shapes; the rest is assumed in
    configs/planning.yaml, so hours are a range. A set-up that cannot fit is refused, with the
    nearest ones that can.
    """
    from unireason_lib.config import load_profile
    from unireason_lib.io import write_json
    from unireason_lib.planning import STAGES, Cluster, estimate

    made = estimate(
        load_profile(profile, "\n".join(change or ())),
        Cluster.named(gpus, price),
        model=model,
        sharding=sharding,
        stages=stage or STAGES,
    )
    typer.echo(made.to_markdown())
    if out is not None:
        write_json(out, made.to_dict())


def tutorial(
    notebooks: Annotated[list[str] | None, typer.Argument(help="Numbers or names: 00 03.")] = None,
    profile: ProfileName = "laptop",
    more: Annotated[list[str] | None, option("NAME=VALUE.", "-p", "--parameter")] = None,
    out: Annotated[str, option("Folder for the executed notebooks.", *OUT)] = "runs/tutorial",
    workers: Workers = 1,
) -> None:
    """Run the notebooks headlessly; in a run of all, 04 and 05, which train long, run as smoke."""
    from unireason_lib.notebooks import run

    rows = run(notebooks or (), profile, named_values(more, "-p"), out, workers)
    if any(row["status"] != "passed" for row in rows):
        raise typer.Exit(1)


def trace(
    results: Annotated[Path, typer.Argument(help="Results of infer or evaluate.")],
    out: Annotated[Path | None, option("The page; default: beside the results.", *OUT)] = None,
    ids: Annotated[list[str] | None, option("This sample; repeatable.", "--id")] = None,
    root: Annotated[
        Path | None, option("Where the scans are now; no others are read.", *ROOT)
    ] = None,
    max_samples: Annotated[int, typer.Option(min=1, help="Most samples on the page.")] = 20,
) -> None:
    """Show results as one self-contained HTML page: images, boxes, crops and text."""
    from unireason_lib.display import trace_html
    from unireason_lib.inference import read_results
    from unireason_lib.inference.results import run_file
    from unireason_lib.io import read_json

    wanted = (line for line in read_results(results) if not ids or line["id"] in ids)
    lines = list(islice(wanted, max_samples))
    if not lines:
        found = f"none of {', '.join(ids)}" if ids else "none"
        raise RequestError(results, "at least one result", found, "check the ids")
    note = run_file(results)  # beside the results of a batch; a single reply names its scan itself
    made = read_json(note, RequestError) if note.is_file() else {}
    run, images = made.get("run") or {}, []
    for line in lines:
        try:
            if "benchmark" in run:
                loaded = _of_benchmark(line, made["opened"], run["control"], root)
            elif "error" not in line:
                loaded = _of_scan(line, root or run.get("root"))
            images.append(None if "error" in line else _as_seen(line, loaded))
        except (UniReasonError, OSError, LookupError, TypeError, AttributeError) as problem:
            typer.echo(f"{line['id']}: shown without images. {problem}", err=True)
            images.append(None)
    if run.get("control") == "random-crop":  # what was injected is not what the boxes say
        for box in (box for line in lines for box in line.get("pointings", ()) if box["crops"]):
            box |= {"crops": [], "status": "a random region"}
    out = out or results.with_suffix(".html")
    out.parent.mkdir(parents=True, exist_ok=True)
    trace_html(lines, images, path=out, title=results.name)
    more = sum(1 for _ in wanted)
    count = f"{len(lines)} {'reply' if len(lines) == 1 else 'replies'}"
    typer.echo(f"{out}: {count}" + (f"; --max-samples leaves out {more} more" if more else ""))


def _of_benchmark(line: Line, opened: Line, control: str, root: Path | None) -> Sequence[Any]:
    """Images of an item of a benchmark, which is opened as for the run."""
    items, images_of = _items(json.dumps([opened, control, root and str(root)]))
    about = line.get("about") or {}
    images = images_of(
        items[about.get("parent", line["id"])]
    )  # a question about a slice has a parent
    return [images[about["slice"]]] if "parent" in about else images


@cache
def _items(key: str) -> tuple[Mapping[str, Any], Callable[[Any], Sequence[Any]]]:
    from unireason_lib.evaluation import open_benchmark
    from unireason_lib.evaluation.controls import shown_images
    from unireason_lib.imaging import ProcessorFrame

    opened, control, root = json.loads(key)
    how = {name: tuple(v) if isinstance(v, list) else v for name, v in opened.items()}
    how |= {"frame": ProcessorFrame(**how["frame"])} | ({"path": root} if root else {})
    benchmark = open_benchmark(how.pop("name"), how.pop("path", None), **how)
    return {item.id: item for item in benchmark}, shown_images(benchmark, control)


def _of_scan(line: Line, root: Path | None) -> Sequence[Any]:
    """Images of the scan that a line names; below ``root`` unless it is the user's own question."""
    from unireason_lib.inference import Reading, read_scan, scan_below

    name = line["image" if line["dimension"] == "2d" else "volume"]
    layout = line["serialization"]
    names = ("size", "window", "image_size", "key", "volume", "fill")
    how = {name: layout[name] for name in names if name in layout}
    how |= {"window": layout["range"]} if "range" in layout else {}  # the values of a percentile
    how = {k: tuple(v) if isinstance(v, list) else v for k, v in how.items()}
    path = Path(name) if root is None else scan_below(Path(root), name, absolute=True)
    return read_scan(path, line["dimension"], Reading(**how)).images


def _as_seen(line: Line, images: Sequence[Any]) -> list[Any]:
    """Images in the size in which the model saw them."""
    rows, columns, _ = line["frame"]
    bicubic = 3  # as processors of the Qwen family resize
    return [i if i.size == (columns, rows) else i.resize((columns, rows), bicubic) for i in images]
