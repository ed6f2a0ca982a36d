"""Figures of how the tiny base learnt: curves with stages, look-ups and attention, exercises as cards."""

import pytest
from matplotlib.colors import to_hex
from matplotlib.patches import FancyArrowPatch, Rectangle
from PIL import Image

from unireason_lib.boxes import Box2D, format_box
from unireason_lib.display import (
    Look,
    plot_bars,
    plot_stages,
    show_attention,
    show_exercises,
    show_hops,
    show_picture_tokens,
)
from unireason_lib.display.colors import ACTIVE, BOX_COLORS, LINE_COLORS, tint
from unireason_lib.errors import RequestError
from unireason_lib.training.base.tasks import STAGES, Exercise, exercise

STEPS = [("words", 0, 40), ("pointing, text", 40, 100)]


def test_stages_are_shaded_in_turns_and_curves_are_the_numbers_given(clean_layout):
    curves = {
        "loss": {"loss": [(10, 9.0), (50, 2.0), (100, 1.0)]},
        "share": {"letters": [(10, 0.2), (50, 0.9)]},
    }
    figure = plot_stages(
        curves, STEPS, "step", bands={"letters": [(0.1, 0.3), (0.8, 1.0)]}, levels={"share": [0.25]}
    )
    loss, share = [axes for axes in figure.axes if axes.get_ylabel()]
    assert [axes.get_ylabel() for axes in (loss, share)] == ["loss", "share"]
    assert loss.lines[0].get_xydata().tolist() == [[10, 9], [50, 2], [100, 1]]
    level, letters = share.lines
    assert level.get_ydata() == [0.25, 0.25] and letters.get_xydata().tolist() == [
        [10, 0.2],
        [50, 0.9],
    ]
    assert to_hex(letters.get_color()) == LINE_COLORS[1] and len(share.collections) == 1
    for axes in (loss, share):
        spans = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches]
        assert spans == [(0, 40), (40, 100)] and axes.get_xlim() == loss.get_xlim()
        assert len({to_hex(patch.get_facecolor()) for patch in axes.patches}) == 2
    assert [text.get_text() for text in loss.texts] == ["1", "2"]
    assert "1  words      2  pointing, text" in [text.get_text() for text in figure.texts]
    assert share.get_xlabel() == "step" and not loss.get_xlabel()
    clean_layout(figure)


def test_stages_that_are_not_reached_yet_have_no_number(clean_layout):
    figure = plot_stages({"loss": {"loss": [(1, 2.0), (30, 1.0)]}}, STEPS, "step")
    (axes,) = figure.axes
    assert [text.get_text() for text in axes.texts] == ["1"] and axes.get_xlim()[1] < 40
    clean_layout(figure)
    clean_layout(plot_stages({"loss": {"loss": [(10, 2.0)]}}, [], "step"))


@pytest.mark.parametrize(
    "panels, bands", [({}, {}), ({"y": {}}, {}), ({"y": {"a": [(0, 1)]}}, {"a": []})]
)
def test_stages_without_points_are_refused(panels, bands):
    with pytest.raises(RequestError):
        plot_stages(panels, STEPS, "step", bands=bands)


def test_long_words_beside_bars_stay_on_the_sheet(clean_layout):
    values = {"letter given text": 0.9321, "which of several pictures": 0.1}
    figure = plot_bars(
        values,
        "share",
        targets=dict.fromkeys(values, 0.99),
        intervals={
            "letter given text": (0.9123, 0.9512),
            "which of several pictures": (0.0512, 0.1623),
        },
    )
    clean_layout(figure)


WORDS = [
    "A",
    ".",
    " left",
    " side",
    "\n",
    "B",
    ".",
    " right",
    "\n",
    "So",
    ":",
    " left",
    " side",
    ".",
    "\n",
    "A",
    ".",
]
HOPS = {
    "phrase": [(3, 3), (3, 2)],
    "mark": [(2, 0), (3, 0), (7, 5)],
    "said": [(14, 12)],
    "option": [(14, 3)],
}


def test_arrows_go_from_the_tokens_that_look(clean_layout):
    figure = show_hops(
        WORDS, HOPS, [k > 8 for k in range(len(WORDS))], legend={"said": "what was said"}
    )
    texts = next(axes for axes in figure.axes if axes.texts)
    arrows = [
        to_hex(patch.get_edgecolor())
        for patch in texts.patches
        if isinstance(patch, FancyArrowPatch)
    ]
    assert [arrows.count(color) for color in LINE_COLORS[:4]] == [
        1,
        3,
        1,
        1,
    ]  # none for the token that sees itself
    assert [text.get_text() for text in texts.texts] == [
        w.strip(" ").replace("\n", "↵") for w in WORDS
    ]
    rows = [text.get_position()[1] for text in texts.texts]
    assert (
        rows[4] < rows[5] and rows[8] < rows[9] == rows[14] < rows[15]
    )  # a line ends behind its line break
    assert [text.get_text() for text in figure.texts] == [
        "phrase",
        "mark",
        "what was said",
        "option",
    ]
    clean_layout(figure)


def test_the_darkest_token_is_the_one_most_looked_at(clean_layout):
    weights = [0.0] * len(WORDS)
    weights[12], weights[2] = 0.7, 0.2
    figure = show_attention(
        WORDS, {"said": Look(14, weights, [12]), "nothing": Look(3, [0.0] * len(WORDS))}
    )
    assert [text.get_text() for text in figure.texts] == ["said: 70%", "nothing: 0%"]
    said = figure.axes[0]
    chips = [p for p in said.patches if not isinstance(p, Rectangle)]
    fills = [to_hex(patch.get_facecolor()) for patch in chips]
    assert (
        fills[12] == tint(ACTIVE, 0.7)
        and fills[2] == tint(ACTIVE, 0.2)
        and set(fills[3:12]) == {"#ffffff"}
    )
    frames = [patch for patch in said.patches if isinstance(patch, Rectangle)]
    assert len(frames) == 2 and to_hex(frames[1].get_edgecolor()) == LINE_COLORS[1]
    clean_layout(figure)


def test_positions_and_weights_that_do_not_fit_are_refused():
    with pytest.raises(RequestError, match="positions"):
        show_hops(WORDS, {"said": [(99, 1)]})
    with pytest.raises(RequestError):
        show_hops([], {})
    with pytest.raises(RequestError, match="weights"):
        show_attention(WORDS, {"said": Look(3, [1.0])})
    with pytest.raises(RequestError):
        show_attention(WORDS, {})


WIDE = Image.new("L", (48, 32), 90)


def test_words_stand_on_their_tokens_and_wrong_ones_are_marked(clean_layout):
    said = ["a", "nothing", "dark\nring", "nothing", "bar", "f"]
    right = ["a", "nothing", "dark\ncross", "nothing", "nothing", "f"]
    figure = show_picture_tokens(
        [WIDE],
        [(2, 3)],
        [said],
        right=[right],
        boxes=[[(2, Box2D(16, 0, 40, 32))]],
        titles=["read off"],
    )
    (axes,) = (axes for axes in figure.axes if axes.images)
    lines = {text.get_text(): (text.xy, text.get_color()) for text in axes.texts}
    assert set(lines) == {"a", "nothing", "dark", "✗ ring", "✗ bar", "f"}
    assert lines["a"][0] == (7.5, 7.5) and lines["dark"][0] == lines["✗ ring"][0] == (39.5, 7.5)
    assert lines["✗ bar"][0] == (23.5, 23.5) and lines["f"][0] == (39.5, 23.5)
    assert lines["✗ ring"][1] == lines["✗ bar"][1] != lines["dark"][1] == "white"
    (box,) = (patch for patch in axes.patches if not patch.get_fill())
    assert (box.get_x(), box.get_width(), box.get_height()) == (15.5, 24, 32)
    assert to_hex(box.get_edgecolor()) == BOX_COLORS[2]
    assert len(axes.lines) == 3  # two lines down, one across
    clean_layout(figure)


def test_the_strongest_token_of_all_pictures_has_the_strongest_colour(clean_layout):
    weights = [[0.5, 0.004, 0, 0, 0, 0.25], [0.1] * 6]
    figure = show_picture_tokens(
        [WIDE, WIDE], [(2, 3), (2, 3)], weights=weights, titles=["one", "two"]
    )
    one, two = (axes for axes in figure.axes if axes.images)
    fills = [patch.get_alpha() for patch in one.patches]
    assert fills[0] == max(fills) and fills[5] == pytest.approx(fills[0] / 2) and fills[2] == 0
    assert all(patch.get_alpha() == pytest.approx(fills[0] / 5) for patch in two.patches)
    assert [text.get_text() for text in one.texts if text.get_text()] == ["50%", "25%"]
    assert [text.get_text() for text in two.texts] == ["10%"] * 6
    clean_layout(figure)


@pytest.mark.parametrize(
    "values",
    [
        {"grids": [(2, 3), (2, 3)]},
        {"words": [["a"] * 5]},
        {"weights": [[0.1] * 6, [0.1] * 6]},
        {"boxes": []},
    ],
)
def test_values_for_other_tokens_are_refused(values):
    with pytest.raises(RequestError, match="row by row"):
        show_picture_tokens([WIDE], **{"grids": [(2, 3)]} | values)


def talk(pictures, asked, reply):
    content = [*({"type": "image", "image": p} for p in pictures), {"type": "text", "text": asked}]
    replied = [{"type": "text", "text": reply}]
    return Exercise(
        "named", [{"role": "user", "content": content}, {"role": "assistant", "content": replied}]
    )


def test_boxes_are_drawn_on_the_picture_that_the_reply_names(clean_layout):
    pictures = [Image.new("RGB", (32, 32), (90, 90, 90)) for _ in range(3)]
    here, there = Box2D(2, 3, 12, 13), Box2D(5, 6, 20, 22)
    figure = show_exercises(
        [
            talk(pictures, "Point at the ring.", f"Picture 3, {format_box(here)}"),
            talk(pictures[:1], f"What is at {format_box(there)}?", "A dark ring."),
        ],
        ["several", "one"],
    )
    shown = [axes for axes in figure.axes if axes.images]
    boxes = [
        [
            (p.get_width(), p.get_height())
            for p in axes.patches
            if isinstance(p, Rectangle) and not p.get_fill()
        ]
        for axes in shown
    ]
    assert boxes == [[], [], [(10, 10)], [(15, 16)]]
    words = " ".join(text.get_text() for axes in figure.axes for text in axes.texts)
    assert "1 [2,3,12,13]" in words and "several" in words and "A dark ring." in words
    clean_layout(figure)


def test_every_stage_has_a_card_and_none_is_refused(clean_layout):
    clean_layout(show_exercises([exercise(stage, k) for stage in STAGES for k in range(3)]))
    with pytest.raises(RequestError):
        show_exercises([])
    with pytest.raises(RequestError):
        show_exercises([exercise("words", 0)], ["one", "two"])
