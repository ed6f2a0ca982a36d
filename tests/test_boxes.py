"""The box syntax: what is written can be read back, and nothing that a model writes can break the reader."""

import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unireason_lib.boxes import (
    BOX_END,
    BOX_START,
    Box2D,
    Box3D,
    BoxError,
    format_box,
    parse_boxes,
    read_box,
    scan_boxes,
)

coordinate = st.integers(-5000, 5000)
length = st.integers(1, 5000)
rectangles = st.builds(lambda x, y, w, h: Box2D(x, y, x + w, y + h), coordinate, coordinate, length, length)
cuboids = st.builds(lambda r, z, d: Box3D.from_xy(r, z, z + d), rectangles, coordinate, length)
boxes = st.one_of(rectangles, cuboids)


@given(st.lists(boxes, max_size=6), st.lists(st.text(max_size=20), min_size=7, max_size=7))
def test_format_then_parse_gives_the_boxes_back(found, between):
    between = [text.replace("<|", "") for text in between]
    text = between[0] + "".join(
        format_box(box) + extra for box, extra in zip(found, between[1:], strict=False)
    )
    scan = scan_boxes(text)
    assert list(scan.boxes) == found == parse_boxes(text)
    assert scan.malformed == 0
    assert [text[a:b] for a, b in scan.spans] == [format_box(box) for box in found]


def test_the_written_form_is_the_papers():
    assert format_box(Box2D(98, 107, 153, 154)) == "<|box_start|>[98,107,153,154]<|box_end|>"
    assert format_box(Box3D(1, 2, 3, 4, 5, 6)) == "<|box_start|>[1,2,3,4,5,6]<|box_end|>"


@pytest.mark.parametrize(
    ("inside", "box"),
    [
        ("[1,2,3,4]", Box2D(1, 2, 3, 4)),
        ("(1,2,3,4)", Box2D(1, 2, 3, 4)),
        (" [ 1 , 2 , 3 , 4 ] ", Box2D(1, 2, 3, 4)),
        ("[1,2,0,4,5,6]", Box3D(1, 2, 0, 4, 5, 6)),
        ("(1,2,0,4,5,6)", Box3D(1, 2, 0, 4, 5, 6)),
        ("[-5,-6,3,4]", Box2D(-5, -6, 3, 4)),
        ("[1.4,2.5,30.0,40.6]", Box2D(1, 3, 30, 41)),
    ],
)
def test_what_is_read(inside, box):
    assert parse_boxes(f"see {BOX_START}{inside}{BOX_END} here") == [box]


@pytest.mark.parametrize(
    "inside",
    [
        "",
        "[]",
        "[1,2,3]",
        "[1,2,3,4,5]",
        "[1,2,3,4,5,6,7]",
        "[1e999,0,1,1]",
        "[1e3,0,2000,1]",
        "[NaN,0,1,1]",
        "[inf,0,1,1]",
        "[5,5,1,1]",
        "[1,1,1,5]",
        "[1,2,5,4,5,5]",
        "[1,2,3,4)",
        "1,2,3,4",
        "[99999999,0,199999999,4]",
        "[" + "9" * 5000 + ",0,1,1]",
        "[1,2,3,4]]",
        "[a,b,c,d]",
        "[1,,2,3,4]",
        "[١,٢,٣,٤]",
    ],
)
def test_malformed_boxes_are_skipped_and_counted(inside):
    text = f"{BOX_START}{inside}{BOX_END} then {format_box(Box2D(1, 2, 3, 4))}"
    scan = scan_boxes(text)
    assert scan.malformed == 1
    assert scan.boxes == (Box2D(1, 2, 3, 4),)


def test_boxes_that_never_close():
    assert scan_boxes(BOX_START + "[1,2,3,4]").malformed == 1
    scan = scan_boxes(BOX_START + BOX_START + "[1,2,3,4]" + BOX_END + BOX_END)
    assert scan.malformed == 1
    assert scan.boxes == (Box2D(1, 2, 3, 4),)


pieces = st.sampled_from([BOX_START, BOX_END, "[", "]", "(", ")", "1", "2", ",", "-", ".", "e", " ", "<|"])


@given(st.lists(pieces, max_size=40).map("".join))
def test_no_text_breaks_the_reader(text):
    scan = scan_boxes(text)
    assert len(scan.boxes) + scan.malformed == text.count(BOX_START)


def test_ten_thousand_boxes_and_ten_thousand_openings_take_linear_time():
    started = time.perf_counter()
    assert len(parse_boxes(format_box(Box2D(1, 2, 3, 4)) * 10_000)) == 10_000
    assert scan_boxes(BOX_START * 10_000).malformed == 10_000
    assert scan_boxes(BOX_START + "[" + "1," * 1_000_000).malformed == 1
    assert time.perf_counter() - started < 5


@given(boxes, boxes)
def test_iou_is_a_symmetric_share(one, other):
    if type(one) is not type(other):
        with pytest.raises(BoxError, match="xy"):
            one.iou(other)
        return
    assert one.iou(one) == 1.0
    assert one.iou(other) == other.iou(one)
    assert 0.0 <= one.iou(other) <= 1.0


def test_iou_by_hand():
    assert Box2D(0, 0, 4, 4).iou(Box2D(2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert Box2D(0, 0, 4, 4).iou(Box2D(4, 0, 8, 4)) == 0.0  # a shared edge is no overlap
    assert Box3D(0, 0, 0, 2, 2, 2).iou(Box3D(0, 0, 1, 2, 2, 3)) == pytest.approx(4 / 12)
    assert Box2D(3, 3, 3, 3).iou(Box2D(3, 3, 3, 3)) == 0.0


@given(boxes, st.integers(1, 3000), st.integers(1, 3000), st.integers(1, 300))
def test_clip_stays_inside_and_is_idempotent(box, width, height, depth):
    limits = (width, height) if isinstance(box, Box2D) else (width, height, depth)
    clipped = box.clip(*limits)
    whole = Box2D(0, 0, *limits) if isinstance(box, Box2D) else Box3D(0, 0, 0, *limits)
    assert clipped.clip(*limits) == clipped
    assert all(0 <= value <= high for value, high in zip(clipped.as_tuple(), limits * 2, strict=True))
    common = box.intersection(whole)
    assert clipped.is_empty if common is None else clipped == common


@given(boxes, st.floats(0.05, 20), st.floats(0.05, 20), st.floats(0.05, 20))
def test_scaling_there_and_back(box, sx, sy, sz):
    factors = (sx, sy) if isinstance(box, Box2D) else (sx, sy, sz)
    back = box.scale(*factors).scale(*(1 / factor for factor in factors))
    assert back.as_tuple() == pytest.approx(box.as_tuple(), abs=1e-6)
    assert back.round() == box
    around = box.scale(*factors).round(outward=True)
    assert around.intersection(box.scale(*factors)).as_tuple() == box.scale(*factors).as_tuple()


def test_projection_and_lifting():
    cuboid = Box3D(1, 2, 3, 4, 5, 6)
    assert cuboid.xy == Box2D(1, 2, 4, 5)
    assert Box3D.from_xy(cuboid.xy, 3, 6) == cuboid
    assert (cuboid.width, cuboid.height, cuboid.depth, cuboid.volume) == (3, 3, 3, 27)
    assert cuboid.center == (2.5, 3.5, 4.5)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, True])
def test_boxes_of_no_number_are_refused(bad):
    with pytest.raises(BoxError):
        Box2D(bad, 0, 1, 1)
    with pytest.raises(BoxError):
        Box3D(0, 0, bad, 1, 1, 1)


def test_an_empty_box_cannot_be_written():
    with pytest.raises(BoxError, match="outward"):
        format_box(Box2D(3.1, 3.1, 3.2, 3.2))
    with pytest.raises(BoxError):
        format_box("[1,2,3,4]")


def test_read_box_alone():
    assert read_box("[1,2,3,4]") == Box2D(1, 2, 3, 4)
    assert read_box("nothing") is None
