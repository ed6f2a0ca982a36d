"""How every notebook opens: a Colab badge in its first cell, and one set-up cell that does nothing elsewhere.

Both name the public repository and a release, which ``pyproject.toml`` and the package's version hold in one place.
``make sync`` writes them into the notebooks, and the gate compares, so no copy can go astray.
"""

from __future__ import annotations

import re
from typing import Any

from unireason_lib.errors import UniReasonError
from unireason_lib.tutorial.project import declared

SETUP_TAG = "setup"

_BADGE = re.compile(r"\[!\[Open in Colab\]\([^)]*\)\]\([^)]*\)")

_SETUP = """\
# Set-up. On Colab: fetch and install the project; elsewhere: only check the installed versions.
import os
import subprocess
import sys

if "google.colab" in sys.modules and not os.path.exists("../unireason_lib"):
    address = "{repository}"
    clone = ["git", "clone", "--quiet", "--depth=1", "--branch={tag}"]
    subprocess.run([*clone, address, "unireason-lab"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "./unireason-lab"], check=True)
    os.chdir("unireason-lab/notebooks")

from unireason_lib.tutorial import check_versions

print(check_versions())"""


def badge(name: str) -> str:
    """The badge of a notebook, Markdown that links to it on Colab at this release.

    Args:
        name: File name without ending, like ``00_quickstart``.
    """
    declaration = declared()
    path = declaration.repository.removeprefix("https://github.com/")
    address = f"https://colab.research.google.com/github/{path}/blob/v{declaration.version}/notebooks/{name}.ipynb"
    return (
        f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({address})"
    )


def setup_source() -> str:
    """The code of the set-up cell."""
    declaration = declared()
    return _SETUP.format(repository=declaration.repository, tag=f"v{declaration.version}")


def write_opening(notebook: Any, name: str) -> None:
    """Put the present badge and set-up code where they belong, adding what is missing.

    The badge goes below the heading of the first cell, the set-up cell after the parameters.

    Args:
        notebook: A notebook node, changed in place.
        name: File name without ending.

    Raises:
        UniReasonError: The first cell is not Markdown, or no cell is tagged ``parameters``.
    """
    from nbformat.v4 import new_code_cell

    first = notebook.cells[0] if notebook.cells else None
    if first is None or first.cell_type != "markdown":
        found = "no cell" if first is None else f"a {first.cell_type} cell"
        raise UniReasonError(
            f"{name}, first cell", "Markdown with the title", found, "open with a title"
        )
    if _BADGE.search(first.source):
        first.source = _BADGE.sub(lambda _: badge(name), first.source)
    else:
        title, _, rest = first.source.partition("\n")
        first.source = f"{title}\n\n{badge(name)}\n\n{rest.lstrip()}".rstrip()
    tagged = [cell for cell in notebook.cells if SETUP_TAG in cell.metadata.get("tags", [])]
    if tagged:
        tagged[0].source = setup_source()
        return
    positions = [
        index
        for index, cell in enumerate(notebook.cells)
        if "parameters" in cell.metadata.get("tags", [])
    ]
    if not positions:
        expected, do = "a code cell tagged 'parameters'", 'add one: # %% tags=["parameters"]'
        raise UniReasonError(name, expected, "none", do)
    cell = new_code_cell(setup_source(), metadata={"tags": [SETUP_TAG]})
    notebook.cells.insert(positions[0] + 1, cell)
