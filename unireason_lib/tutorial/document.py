"""A notebook as a document: read and written whole, free of traces of one machine, with a hash of its source.

What is committed must differ only when something changed: so no execution times, no widget state, no version of
the tool that saved it, cell ids that follow from the content, and progress bars reduced to their last state.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from unireason_lib.errors import UniReasonError

STAMP = "unireason"
"""Key of our entry in the metadata of a committed notebook: profile, parameters, hashes, seconds."""

WIDGET_PREFIX = "application/vnd.jupyter.widget"

_KERNEL_FILE = re.compile(r"[^\s\"'<>]*ipykernel_\d+[/\\]\d+\.py")


def read_notebook(path: str | Path) -> Any:
    """Read a notebook of format 4.

    Raises:
        UniReasonError: The file is missing or no notebook.
    """
    import nbformat

    try:
        return nbformat.read(path, as_version=4)
    except FileNotFoundError as error:
        raise UniReasonError(path, "a notebook", "no such file", "check the path") from error
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        raise UniReasonError(path, "a notebook", found, "restore it") from error


def write_whole(path: str | Path, text: str) -> None:
    """Write a file under a temporary name and rename it: a reader sees the old or the new one, never a part."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_notebook(path: str | Path, notebook: Any) -> None:
    """Write a notebook whole."""
    import nbformat

    write_whole(path, nbformat.writes(notebook).rstrip("\n") + "\n")


def is_tagged(cell: Any, tag: str) -> bool:
    """Whether a cell carries a tag."""
    return tag in cell.metadata.get("tags", [])


def code_cells(notebook: Any) -> list[Any]:
    """Code cells with something in them, in order."""
    return [cell for cell in notebook.cells if cell.cell_type == "code" and cell.source.strip()]


def source_hash(notebook: Any) -> str:
    """SHA-256 of the code, cell by cell; prose may change without making outputs stale."""
    cells = [cell for cell in code_cells(notebook) if not is_tagged(cell, "injected-parameters")]
    return hashlib.sha256("\0".join(cell.source.strip() for cell in cells).encode()).hexdigest()


def outputs_hash(notebook: Any) -> str:
    """SHA-256 of all outputs: tells outputs of a refresh from those of a run by hand."""
    outputs = [cell.get("outputs", []) for cell in code_cells(notebook)]
    return hashlib.sha256(json.dumps(outputs, sort_keys=True).encode()).hexdigest()


def parameters_of(path: str | Path) -> dict[str, Any]:
    """Names and default values of a notebook's parameters, as papermill reads them.

    Args:
        path: The notebook.

    Returns:
        Name -> default; a default that is no literal stays text.

    Raises:
        UniReasonError: No cell is tagged ``parameters``; it holds something that papermill's reader, a regular
            expression, does not see (it wants one flat literal a line, with one ``=``); or the file is no notebook.
    """
    import papermill

    from unireason_lib.profiles import parse_value

    notebook = read_notebook(path)
    tagged = [cell for cell in code_cells(notebook) if is_tagged(cell, "parameters")]
    name = Path(path).name
    if len(tagged) != 1:
        do = "tag the first code cell, and no other, 'parameters'"
        raise UniReasonError(name, "one cell tagged 'parameters'", str(len(tagged)), do)
    if not notebook.metadata.get("kernelspec", {}).get("name"):
        do = "run `make sync`, which adds it"
        raise UniReasonError(name, "a kernelspec", "none", do)
    found = papermill.inspect_notebook(str(path))
    if missed := assigned_names(tagged[0].source) - set(found):
        do = "write one flat literal a line, with one '=' in it and a plain annotation or none"
        expected = "parameters that papermill can read"
        raise UniReasonError(name, expected, ", ".join(sorted(missed)), do)
    return {name: parse_value(entry["default"]) for name, entry in found.items()}


def assigned_names(source: str) -> set[str]:
    """Names that a piece of code assigns at its top level."""
    targets = []
    for node in ast.parse(source).body:
        targets += node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return {target.id for target in targets if isinstance(target, ast.Name)}


def clean(notebook: Any, root: str | Path) -> None:
    """Remove from an executed notebook, in place, what belongs to one machine or one moment.

    Cell metadata but tags, execution times, widget state and widget views, intermediate states of progress
    bars, version numbers of the kernel; paths are written relative to the project or shortened. Ids follow from
    the content.

    Args:
        notebook: A notebook node.
        root: The project folder, which paths become relative to.
    """
    notebook.metadata = type(notebook.metadata)(
        kernelspec={"display_name": "Python 3", "language": "python", "name": "python3"},
        language_info={"name": "python"},
        **({STAMP: notebook.metadata[STAMP]} if STAMP in notebook.metadata else {}),
    )
    notebook.nbformat_minor = 5
    seen: dict[str, int] = {}
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = type(notebook.metadata)({"tags": list(tags)} if tags else {})
        digest = hashlib.sha256(f"{cell.cell_type}\0{cell.source}".encode()).hexdigest()[:12]
        seen[digest] = seen.get(digest, 0) + 1
        cell["id"] = digest if seen[digest] == 1 else f"{digest}-{seen[digest]}"
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _clean_output(output, Path(root))]


def _clean_output(output: Any, root: Path) -> bool:
    """Clean one output in place; False when nothing of it is left."""
    if output.output_type == "stream":
        output.text = without_paths(last_states(output.text), root)
        return bool(output.text)
    if output.output_type == "error":
        output.traceback = [without_paths(line, root) for line in output.traceback]
        return True
    output.metadata = {}
    views = [kind for kind in output.data if kind.startswith(WIDGET_PREFIX)]
    for kind in views:
        del output.data[kind]
    if views and set(output.data) <= {"text/plain"}:
        return False  # what is left is the widget's name, or a progress bar at 0 %
    for kind, content in output.data.items():
        if isinstance(content, str) and (kind.startswith("text/") or kind == "image/svg+xml"):
            output.data[kind] = without_paths(content, root)
    return bool(output.data)


def last_states(text: str) -> str:
    """What a terminal would show: of each line the part after its last carriage return."""
    lines = [
        re.sub(r"^.*\r(?=[^\r])", "", line.rstrip("\r"))
        for line in text.replace("\r\n", "\n").split("\n")
    ]
    return "\n".join(lines)


def without_paths(text: str, root: Path) -> str:
    """Text with this machine's folders replaced: project paths become relative, others get a short name."""
    folders = {
        f"{root}{os.sep}": "",
        str(root): ".",
        sys.prefix: "python",
        sys.base_prefix: "python",
    }
    folders[str(Path.home())] = "~"
    text = _KERNEL_FILE.sub("<cell>", text)
    for folder in sorted(folders, key=len, reverse=True):
        if len(folder) > 1:
            text = re.sub(
                re.escape(folder) + r"(?![\w-])" * (not folder.endswith(os.sep)),
                folders[folder],
                text,
            )
    return text


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
