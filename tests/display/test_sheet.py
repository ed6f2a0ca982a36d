import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unireason_lib.display.sheet import (
    CHIP_PADDING,
    MONO,
    Sheet,
    Span,
    draw_runs,
    flow,
    height_rows,
    limit_rows,
    printable,
    text_width,
)

WORDS = st.text(alphabet=string.ascii_letters + " \n<>[],", max_size=120)
SPANS = st.lists(st.builds(Span, WORDS, whole=st.booleans()), max_size=8)


@settings(deadline=None)
@given(SPANS, st.integers(8, 60))
def test_text_flows_inside_its_columns_and_nothing_overlaps(spans, columns):
    runs = flow(spans, columns)
    end = {}
    for run in runs:
        room = CHIP_PADDING if run.span.whole else 0
        assert run.column - room >= end.get(run.row, 0) - 1e-9
        end[run.row] = run.column + len(run.text) + room
        assert run.column + len(run.text) <= columns + 1e-9
    rows = [run.row for run in runs]
    assert rows == sorted(rows)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=8), st.integers(8, 60))
def test_no_word_is_lost(texts, columns):
    runs = flow([Span(text) for text in texts], columns)
    assert "".join("".join(run.text for run in runs).split()) == "".join("".join(texts).split())


def test_long_texts_say_how_much_is_left_out():
    runs = flow([Span("\n".join("abcdefghij"))], 20)
    short = limit_rows(runs, 4)
    assert height_rows(short) == 4
    assert [run.text for run in short] == ["a", "b", "c", "… 7 more lines"]
    assert limit_rows(runs, 10) == runs


def test_characters_fill_the_columns_that_were_counted_for_them():
    """Chips are placed by counting characters: the drawn text must be as wide as the count says."""
    sheet = Sheet(6, 1)
    for size in (8, 9):
        runs = flow([Span("m" * 60, whole=True)], 80)
        draw_runs(sheet, 0, 0, 6, runs, size)
        axes = sheet.axes[-1]
        extent = axes.texts[0].get_window_extent(sheet._get_renderer())
        columns = extent.transformed(axes.transData.inverted()).width
        assert columns == pytest.approx(60, rel=0.015)


def test_a_sheet_shows_itself_without_pyplot_and_always_the_same():
    def drawn():
        sheet = Sheet(2, 1)
        sheet.write(0.1, 0.1, "words")
        return sheet._repr_png_()

    png = drawn()
    assert png.startswith(b"\x89PNG") and png == drawn()
    assert b"matplotlib" not in png


def test_what_the_face_cannot_draw_is_replaced():
    assert printable("a\x00\u202e漢b\n", MONO) == "a▯▯▯b\n"
    assert printable("x × y … ✓") == "x × y … ✓"


def test_width_of_text_is_close_to_what_is_drawn():
    sheet = Sheet(6, 1)
    words = "left superior frontal gyrus $x_1$"
    sheet.write(0, 0, words, 9)
    drawn = sheet.texts[0].get_window_extent(sheet._get_renderer()).width / sheet.dpi
    assert text_width(words, 9) == pytest.approx(drawn, rel=0.05)
