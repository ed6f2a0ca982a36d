import subprocess
import sys
import warnings

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.patches import Rectangle
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.display import show_box, show_masks, show_pictures, show_slices
from unireason_lib.display.colors import BOX_COLORS, box_color
from unireason_lib.display.figures import pictures_of
from unireason_lib.display.sheet import WIDTH
from unireason_lib.errors import RequestError
from unireason_lib.imaging import Volume, serialize


def outlines(axes):
    """The boxes of a picture: left, top, width, height and colour."""
    from matplotlib.colors import to_hex

    return [
        (*patch.get_xy(), patch.get_width(), patch.get_height(), to_hex(patch.get_edgecolor()))
        for patch in axes.patches
        if isinstance(patch, Rectangle)
        and not patch.get_fill()
        and patch.get_transform() != axes.transAxes
    ]


def rendered(figure):
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].astype(int)


def is_color(pixels, color, slack=40):
    wanted = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
    return (abs(pixels - wanted) <= slack).all(axis=-1)


def test_a_half_open_box_encloses_its_pixels_and_no_other():
    """The bright pixels of the picture lie inside the drawn line, dark ones outside, on all four sides."""
    picture = np.zeros((12, 12), np.uint8)
    picture[4:9, 3:7] = 255
    figure = show_box(picture, Box2D(3, 4, 7, 9))
    axes = figure.axes[0]
    assert outlines(axes)[0][:4] == (2.5, 3.5, 4, 5)
    pixels = rendered(figure)
    rows, columns = np.nonzero(is_color(pixels, box_color(0)))
    top, bottom, left, right = rows.min(), rows.max(), columns.min(), columns.max()
    middle_row, middle_column = (top + bottom) // 2, (left + right) // 2
    rim = 12  # more than half of the line with its rim, less than half a picture pixel
    for y, x, inward in (
        (top, middle_column, (1, 0)),
        (bottom, middle_column, (-1, 0)),
        (middle_row, left, (0, 1)),
        (middle_row, right, (0, -1)),
    ):
        inside = pixels[y + rim * inward[0], x + rim * inward[1]]
        outside = pixels[y - rim * inward[0], x - rim * inward[1]]
        assert inside.min() > 250 and outside.max() < 5


def test_a_cuboid_is_drawn_on_its_slices_only(slices):
    figure = show_slices(slices, [Box3D(4, 5, 2, 20, 21, 5), Box3D(0, 0, 6, 48, 40, 7)])
    drawn = [len(outlines(axes)) for axes in figure.axes[:8]]
    assert drawn == [0, 0, 1, 1, 1, 0, 1, 0]
    assert outlines(figure.axes[6])[0] == (-0.5, -0.5, 48, 40, box_color(1))


def test_a_rectangle_means_the_first_picture(slices):
    figure = show_slices(slices, [Box2D(4, 5, 20, 21)])
    assert [len(outlines(axes)) for axes in figure.axes[:8]] == [1] + [0] * 7


def test_a_box_keeps_its_colour_on_every_slice(slices):
    boxes = {"first": Box3D(1, 1, 0, 9, 9, 2), "second": Box3D(11, 1, 1, 19, 9, 3)}
    figure = show_slices(slices, boxes)
    colors = [[outline[4] for outline in outlines(axes)] for axes in figure.axes[:4]]
    first, second = BOX_COLORS[:2]
    assert colors == [[first], [first, second], [second], []]
    assert [text.get_text() for text in figure.texts] == ["first", "second"]


def test_every_only_and_columns_choose_the_slices(slices):
    def shown(**options):
        return [axes.texts[0].get_text() for axes in show_slices(slices, **options).axes]

    assert shown(every=3) == ["0", "3", "6"]
    assert shown(only=[6, 1]) == ["6", "1"]
    one_row, two_rows = show_slices(slices, columns=8), show_slices(slices, columns=4)
    assert one_row.get_size_inches()[0] == two_rows.get_size_inches()[0] == pytest.approx(WIDTH)
    assert two_rows.get_size_inches()[1] > 3 * one_row.get_size_inches()[1]


@pytest.mark.parametrize(
    "options",
    [
        {"only": [8]},
        {"only": [-1]},
        {"only": []},
        {"columns": 0},
        {"boxes": ["[1,2,3,4]"]},
        {"boxes": [Box2D(0, 0, 1, 1)], "names": []},
    ],
)
def test_what_cannot_be_drawn_is_refused(slices, options):
    if options.get("names") == []:
        options = options | {"names": ["a", "b"]}
    with pytest.raises(RequestError, match="expected"):
        show_slices(slices, **options)


def test_left_is_left():
    """A bright spot on the patient's left is drawn on the side that says L, one in front on the side that says A."""
    array = np.zeros((2, 40, 40), np.float32)
    array[:, 4:12, 26:36] = 100  # x grows to the left, y to the back
    stack = serialize(
        Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0])), size=(2, 40, 40), window=(0, 100)
    )
    figure = show_slices(stack)
    axes = figure.axes[0]
    places = {text.get_text(): text.get_position() for text in axes.texts}
    grey = axes.images[0].get_array()
    rows, columns = np.nonzero(grey > 128)
    bright_right, bright_top = columns.mean() > 20, rows.mean() < 20
    assert bright_right and places["L"][0] > 0.5 > places["R"][0]
    assert bright_top and places["A"][1] > 0.5 > places["P"][1]
    assert not axes.yaxis_inverted() or axes.get_ylim()[0] > axes.get_ylim()[1]


def test_no_letters_where_directions_are_unknown(slices):
    array = np.arange(2 * 40 * 40, dtype=np.float32).reshape(2, 40, 40)
    stack = serialize(
        Volume(array, np.diag([-1.0, -1.0, 1.0, 1.0]), has_affine=False), size=(2, 40, 40)
    )
    for figure in (show_slices(stack), show_slices(slices)):
        assert {text.get_text() for text in figure.axes[0].texts} == {"0"}
    assert "R" in {text.get_text() for text in show_slices(slices, orientation=True).axes[0].texts}


def test_numbers_of_boxes_do_not_cover_each_other(clean_layout):
    picture = np.full((64, 64), 128, np.uint8)
    boxes = [
        Box2D(0, 0, 30, 30),
        Box2D(0, 0, 20, 20),
        Box2D(0, 0, 64, 64),
        Box2D(44, 44, 64, 64),
        Box2D(0, 0, 30, 30),
    ]
    figure = show_box(
        picture, boxes, names=[f"a name of some length, number {i}" for i in range(5)]
    )
    assert [text.get_text() for text in figure.axes[0].texts] == ["1", "2", "3", "4", "5"]
    clean_layout(figure)


def test_text_of_others_is_only_text(slices):
    """Names may hold mathematics, control characters or other scripts: no error, no warning."""
    names = ["$\\frac{", "a\x00b\u202ec", "漢字 🧠", "x" * 500]
    boxes = [Box3D(i, i, 0, i + 9, i + 9, 8) for i in range(4)]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        show_slices(slices, boxes, names, title="100% $ _ ^ {")._repr_png_()
        show_box(
            slices[0], {name: box.xy for name, box in zip(names, boxes, strict=True)}
        )._repr_png_()
        show_pictures(slices[:4], titles=names)._repr_png_()


def test_pictures_side_by_side_have_boxes_of_their_own(slices, clean_layout):
    wide = Image.new("RGB", (90, 30))
    figure = show_pictures(
        [slices[0], wide, slices[2]],
        [[], [Box2D(1, 2, 3, 4)], [Box2D(0, 0, 9, 9)] * 2],
        ["one", "two " * 40, "three"],
    )
    pictures = [axes for axes in figure.axes if axes.images]
    assert [len(outlines(axes)) for axes in pictures] == [0, 1, 2]
    clean_layout(figure)


def test_pictures_in_any_form():
    grey = np.arange(24, dtype=np.uint8).reshape(1, 4, 6)
    stack = serialize(Volume(grey.astype(np.float32), np.eye(4)), size=(1, 4, 6))
    assert np.array_equal(pictures_of(stack)[0], stack.pixels[0])
    assert pictures_of(grey)[0].shape == (4, 6)
    assert pictures_of([Image.new("I;16", (6, 4)), Image.new("RGBA", (6, 4))])[1].shape == (4, 6, 3)
    for wrong in (
        [],
        [np.zeros((4, 6))],
        [np.zeros((2, 4, 6, 3), np.uint8)],
        np.zeros((0, 4, 6), np.uint8),
    ):
        with pytest.raises(RequestError):
            pictures_of(wrong)


def test_nothing_is_left_behind_in_pyplot():
    code = """
import sys
import matplotlib
import numpy as np
from unireason_lib.display import pipeline_figure, plot_lines, show_slices

settings = lambda: [matplotlib.rcParams[name] for name in sorted(matplotlib.rcParams) if name != "backend"]
before = settings()
for figure in (
    show_slices(np.zeros((2, 8, 8), np.uint8)),
    plot_lines({"a": [(0, 1), (1, 2)]}, "x", "y"),
    pipeline_figure("SFT"),
):
    assert figure._repr_png_()
assert settings() == before
assert not {"matplotlib.pyplot", "torch"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_masks_are_tinted_and_outlined_where_they_are_and_nowhere_else(clean_layout):
    picture = np.full((10, 12), 100, np.uint8)
    labels = np.zeros((10, 12), np.uint8)
    labels[2:5, 3:9], labels[7:9, 1:3], labels[0, 0] = 4, 9, 2
    figure = show_masks(
        [picture, picture], [labels * 0, labels], {4: "liver", 9: "spleen"}, columns=2
    )
    plain, tinted = figure.axes[:2]
    assert len(plain.images) == 1 and len(tinted.images) == 3
    for image, value in zip(tinted.images[1:], (4, 9), strict=True):
        assert np.array_equal(image.get_array()[..., 3] > 0, labels == value)
    outline = (
        tinted.collections[0].get_paths()[0].vertices
    )  # of the first name: pixel edges of rows 2-4, columns 3-8
    assert (outline.min(axis=0), outline.max(axis=0)) == (
        pytest.approx([2.5, 1.5]),
        pytest.approx([8.5, 4.5]),
    )
    assert [text.get_text() for text in figure.texts] == ["liver", "spleen"]
    clean_layout(figure)
    with pytest.raises(RequestError, match="of its size"):
        show_masks([picture], [labels[:5]], {4: "liver"})
    with pytest.raises(RequestError, match="of its size"):
        show_masks([picture, picture], [labels], {4: "liver"})
