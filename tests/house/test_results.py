"""Published figures: shown under the cell, collected from the notebook."""

from __future__ import annotations

import numpy as np
import pytest
from nbformat import v4

from unireason_lib.errors import UniReasonError
from unireason_lib.tutorial import publish
from unireason_lib.tutorial.results import MEDIA_TYPE, Result, collect, results_table


@pytest.fixture
def shown(monkeypatch):
    """What `display` was called with."""
    import IPython.display

    calls = []
    monkeypatch.setattr(IPython.display, "display", lambda data, raw: calls.append(data))
    return calls


def as_notebook(shown):
    outputs = [v4.new_output("display_data", data=data) for data in shown]
    return v4.new_notebook(
        cells=[v4.new_markdown_cell("x"), v4.new_code_cell("y", outputs=outputs)]
    )


def test_a_figure_goes_through_a_notebook_unchanged(shown):
    publish(
        "speed ratio", np.float64(3.4123), "x", interval=(3.1, np.float32(3.75)), note="untrained"
    )
    publish("slices", np.int64(32))
    publish("verdict", "same tokens")
    assert shown[0]["text/plain"] == "speed ratio: 3.41 x (3.1 to 3.75)  [untrained]"
    rows = collect(as_notebook(shown), "03_interface")
    assert rows == [
        Result("speed ratio", 3.4123, "x", 3.1, 3.75, "untrained", "03_interface"),
        Result("slices", 32, notebook="03_interface"),
        Result("verdict", "same tokens", notebook="03_interface"),
    ]
    table = results_table(rows).split("\n")
    assert table[0].split() == ["notebook", "result", "value", "note"]
    assert "03_interface" in table[2] and "3.41 x (3.1 to 3.75)" in table[2]
    assert len(table) == 5


def test_zero_is_a_figure_and_a_name_counts_once_with_its_last_value(shown):
    publish("errors", 7)
    publish("errors", 0)
    assert [row.value for row in collect(as_notebook(shown), "n")] == [0]
    assert shown[-1][MEDIA_TYPE] == {"name": "errors", "value": 0}


@pytest.mark.parametrize(
    "value", [float("nan"), float("inf"), np.float32("nan"), [1, 2], np.ones(2), {"a": 1}]
)
def test_what_is_no_figure_is_refused(shown, value):
    with pytest.raises(UniReasonError, match="finite number or text"):
        publish("thing", value)
    assert shown == []


def test_an_interval_must_be_finite_too(shown):
    with pytest.raises(UniReasonError):
        publish("thing", 1.0, interval=(0.0, float("inf")))
