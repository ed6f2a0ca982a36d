"""What may be committed: notebooks whose outputs are fresh, whole, and free of traces of one machine.

Every check answers with a sentence that says what is wrong; :func:`problems` gathers them for one notebook.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from unireason_lib.errors import UniReasonError
from unireason_lib.tutorial.document import (
    STAMP,
    WIDGET_PREFIX,
    code_cells,
    is_tagged,
    outputs_hash,
    parameters_of,
    read_notebook,
    source_hash,
)
from unireason_lib.tutorial.opening import SETUP_TAG, badge, setup_source
from unireason_lib.tutorial.pair import twin_differences

MAX_CELL_LINES = 25
MAX_BYTES = 3_000_000
COMMITTED_PROFILE = "laptop"
PENDING = (
    "00_quickstart",
    "04_sft",
    "05_outcome_rl",
    "06_evaluation",
    "08_scaling_up",
)
"""Notebooks whose outputs wait for a run of hours: they must have none, rather than those of other code."""

_FOLDERS = (
    "home|Users|root|tmp|private|var|opt|mnt|media|srv|usr|work|workspace|workspaces|builds|content"
)
MACHINE_PATH = re.compile(
    rf"(?:(?<![\w.~/<])|(?<=file://))/(?:{_FOLDERS})/[\w.-]+|\b[A-Za-z]:\\+(?:Users|Documents)\b|ipykernel_\d+"
)
"""An absolute path as one machine has it; addresses and relative paths do not match."""


def problems(path: str | Path) -> list[str]:
    """All that keeps a notebook from being committed, one sentence each; empty when it may.

    Args:
        path: The notebook; its text twin and ``jupytext.toml`` lie beside it.
    """
    path = Path(path)
    try:
        notebook = read_notebook(path)
        found = [
            *_form(path, notebook),
            *_twin(path),
            *_outputs(path, notebook),
            *_traces(notebook),
        ]
        parameters = parameters_of(path)
    except UniReasonError as error:
        return [str(error)]
    if parameters.get("PROFILE") != COMMITTED_PROFILE:
        found.append(f'its parameters do not say PROFILE = "{COMMITTED_PROFILE}"')
    if "SEED" in parameters and not isinstance(parameters["SEED"], int):
        found.append("SEED is not a whole number")
    return found


def _form(path: Path, notebook: Any) -> Iterator[str]:
    """The shape of the file: size, opening, length of cells."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        yield f"it has {size / 1e6:.1f} MB; smaller or fewer pictures bring it under {MAX_BYTES / 1e6:.0f}"
    code = code_cells(notebook)
    if not code or not is_tagged(code[0], "parameters"):
        yield "its first code cell is not tagged 'parameters'"
    first = notebook.cells[0].source if notebook.cells else ""
    setups = [cell.source for cell in code if is_tagged(cell, SETUP_TAG)]
    if badge(path.stem) not in first or setups != [setup_source()]:
        yield "its badge or set-up cell is not the present one: make sync"
    for number, cell in enumerate(code, start=1):
        lines = len(cell.source.splitlines())
        if lines > MAX_CELL_LINES:
            yield f"code cell {number} has {lines} lines, more than {MAX_CELL_LINES}: {cell.source.splitlines()[0]!r}"


def _twin(path: Path) -> Iterator[str]:
    if difference := twin_differences(path):
        shown = "\n      ".join(difference[:12])
        yield f"it differs from its text twin (the twin -, the notebook +): make sync\n      {shown}"


def _outputs(path: Path, notebook: Any) -> Iterator[str]:
    """Outputs are there, belong to this source, and come from a refresh in the committed profile."""
    stamp = notebook.metadata.get(STAMP)
    code = code_cells(notebook)
    if path.stem in PENDING:
        if any(cell.outputs for cell in code):
            yield "its outputs are of earlier code: clear them, or run it (make notebooks) and take it off PENDING"
        return
    if not stamp:
        yield "it has no record of how its outputs were made: make notebooks"
        return
    if stamp.get("profile") != COMMITTED_PROFILE:
        yield f"its outputs are from profile {stamp.get('profile')!r}, not {COMMITTED_PROFILE!r}: make notebooks"
    if stamp.get("source_sha256") != source_hash(notebook):
        yield "its code changed after its outputs were made: make notebooks"
    elif stamp.get("outputs_sha256") != outputs_hash(notebook):
        yield "its outputs are not those of the last refresh (run by hand since?): make notebooks"
    waiting = sum(cell.execution_count is None for cell in code)
    if waiting or not any(cell.outputs for cell in code):
        yield f"{waiting} of {len(code)} code cells were not executed, or nothing shows: make notebooks"
    for number, cell in enumerate(code, start=1):
        for output in cell.outputs:
            if output.output_type == "error":
                yield f"code cell {number} ended with an error: {output.ename}: {output.evalue.splitlines()[:1]}"


def _traces(notebook: Any) -> Iterator[str]:
    """No path of one machine, no widget state, no metadata that changes with every save."""
    extra = sorted(set(notebook.metadata) - {"kernelspec", "language_info", STAMP})
    extra += sorted({key for cell in notebook.cells for key in cell.metadata if key != "tags"})
    extra += [key for key in notebook.metadata.get("language_info", {}) if key != "name"]
    if extra:
        yield f"it carries metadata of one run or editor ({', '.join(extra[:5])}): make sync"
    for place, text in _texts(notebook):
        if match := MACHINE_PATH.search(text):
            yield f"{place} has a path of one machine: {match.group(0)!r}; show paths relative to the project"
    kinds = {
        kind
        for cell in code_cells(notebook)
        for output in cell.outputs
        for kind in output.get("data", {})
    }
    if any(kind.startswith(WIDGET_PREFIX) for kind in kinds):
        yield "it has widget views, which show nothing without their state: make sync"


def _texts(notebook: Any) -> Iterator[tuple[str, str]]:
    """Everything in a notebook that a reader sees as text, with the place it stands in."""
    yield "its metadata", str(dict(notebook.metadata))
    for number, cell in enumerate(notebook.cells):
        yield f"cell {number}", cell.source
        for output in cell.get("outputs", []):
            yield (
                f"the output of cell {number}",
                output.get("text", "") + "".join(output.get("traceback", [])),
            )
            for kind, content in output.get("data", {}).items():
                if isinstance(content, str) and (
                    kind.startswith("text/") or kind == "image/svg+xml"
                ):
                    yield (
                        f"the output of cell {number}",
                        re.sub(r"base64,[A-Za-z0-9+/=\s]+", "", content),
                    )
