"""Small notebooks in a folder of their own, for tests of the rooms that run and check notebooks."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from unireason_lib.tutorial.pair import sync

CHECKOUT = Path(__file__).resolve().parents[2]

PARAMETERS = 'PROFILE = "laptop"\nSEED = 0\nOVERRIDES = ""'


@pytest.fixture
def checkout() -> Path:
    """The project's own folder."""
    return CHECKOUT


@pytest.fixture
def notebooks(tmp_path: Path) -> Path:
    """An empty folder for notebooks, with the project's pairing settings, inside a project folder of its own."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    for name in ("jupytext.toml", "ruff.toml"):
        shutil.copy(CHECKOUT / "notebooks" / name, folder)
    shutil.copy(CHECKOUT / "pyproject.toml", tmp_path)
    return folder


@pytest.fixture
def make_notebook(notebooks: Path) -> Callable[..., Path]:
    """A function that makes a pair from code cells: ``make_notebook("00_a", "x = 1", parameters=...)``."""

    def make(
        name: str, *cells: str, parameters: str = PARAMETERS, title: str = "# A title"
    ) -> Path:
        parts = ["# %% [markdown]\n" + "\n".join(f"# {line}" for line in title.split("\n"))]
        parts.append(f'# %% tags=["parameters"]\n{parameters}')
        parts += [f"# %%\n{cell}" for cell in cells]
        path = notebooks / f"{name}.py"
        path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
        sync(path, notebooks.parent)
        return path.with_suffix(".ipynb")

    return make
