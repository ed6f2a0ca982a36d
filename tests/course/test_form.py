"""The form of the course, which all notebooks share."""

import nbformat
import pytest

from tests.course.notebook import NOTEBOOKS

PAPERS = {"04_sft": "arxiv.org/abs/2106.09685", "05_outcome_rl": "arxiv.org/abs/2402.03300"}

every_notebook = pytest.mark.parametrize(
    "name", sorted(path.stem for path in NOTEBOOKS.glob("*.py"))
)


@every_notebook
def test_a_notebook_is_short_asks_and_links(name):
    text = (NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8")
    assert text.count("\n") <= 350 and text.count("# %%") <= 45
    assert text.count("**Predict first") >= 2 and "## Check yourself" in text
    links = ("colab.research.google.com", "arxiv.org/abs/2606.11740", f"solutions/{name}.py")
    assert all(link in text for link in (*links, PAPERS.get(name, "")))


@every_notebook
def test_every_figure_has_a_text_for_screen_readers(name):
    """(pandas' own plots bring pyplot in, whose pictures in a notebook have none.)"""
    cells = nbformat.read(NOTEBOOKS / f"{name}.ipynb", 4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    figures = [one for one in outputs if "image/png" in one.get("data", ())]
    assert all(figure.metadata["image/png"]["alt"] for figure in figures)
