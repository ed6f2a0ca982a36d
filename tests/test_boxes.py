"""The box syntax: what is written can be read back, and no text breaks the reader."""

import math
import pickle
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from unireason_lib.boxes import (
    BOX_END,
    BOX_START,
    Box2D,
    Box3D,
    format_box,
    parse_boxes,
    scan_boxes,
)
from unireason_lib.errors import BoxError

CASES = yaml.safe_load(Path(__file__).with_name("boxes.yaml").read_text(encoding="utf-8"))
coordinate, length = st.integers(-5000, 5000), st.integers(1, 5000)
sides = coordinate, coordinate, length, length
rectangles = st.builds(lambda x, y, w, h: Box2D(x, y, x + w, y + h), *sides)
six = *[coordinate] * 3, *[length] * 3
cuboids = st.builds(lambda x, y, z, w, h, d: Box3D(x, y, z, x + w, y + h, z + d), *six)
boxes = st.one_of(rectangles, cuboids)


@given(st.lists(boxes, max_size=6), st.lists(st.text(max_size=20), min_size=7, max_size=7))
def test_format_then_parse_gives_the_boxes_back(written, between):
    between = [text.replace("<|", "") for text in between]
    pairs = zip(written, between[1:], strict=False)
    text = between[0] + "".join(format_box(box) + extra for box, extra in pairs)
    scan = scan_boxes(text)
    assert list(scan.boxes) == written == parse_boxes(text) and scan.malformed == 0
    assert [text[a:b] for a, b in scan.spans] == [format_box(box) for box in written]


@pytest.mark.parametrize("case", CASES["written"])
def test_what_is_read(case):
    for inside in case["texts"]:
        (box,) = parse_boxes(f"see {BOX_START}{inside}{BOX_END} here")
        assert list(box.as_tuple()) == case["numbers"]


@pytest.mark.parametrize("inside", [*CASES["malformed"], "[" + "9" * 5000 + "]"])
def test_malformed_boxes_are_skipped_and_counted(inside):
    """Fractions of the image were read as the box of one pixel [0,0,1,1] (report 14)."""
    scan = scan_boxes(f"{BOX_START}{inside}{BOX_END} then {format_box(Box2D(1, 2, 3, 4))}")
    assert scan.malformed == 1 and scan.boxes == (Box2D(1, 2, 3, 4),)


def test_boxes_in_another_syntax_are_reported_apart_report_14():
    text = '[{"bbox_2d": [10, 20, 30, 40], "label": "x"}, {"bbox_2d": [0.1, 0.2, 0.3, 0.4]}]'
    scan = scan_boxes(text + "{'bbox_3d':[1,2,3,4,5,6], \"bbox_2d\": [[5,6,7,8]]}")
    read = Box2D(10, 20, 30, 40), Box3D(1, 2, 3, 4, 5, 6), Box2D(5, 6, 7, 8)
    assert scan.other_syntax == read
    assert scan.boxes == () and scan.malformed == 0


def test_reading_takes_linear_time():
    started = time.perf_counter()
    assert len(parse_boxes(format_box(Box2D(1, 2, 3, 4)) * 10_000)) == 10_000
    assert scan_boxes(BOX_START * 10_000).malformed == 10_000
    assert scan_boxes(BOX_START + "[" + "1," * 1_000_000).malformed == 1
    assert not scan_boxes('"bbox_2d":' * 50_000 + " " * 1_000_000).other_syntax
    assert time.perf_counter() - started < 5


def test_iou_and_measures_by_hand():
    assert Box2D(0, 0, 4, 4).iou(Box2D(2, 0, 6, 4)) == pytest.approx(8 / 24)
    assert Box2D(0, 0, 4, 4).iou(Box2D(4, 0, 8, 4)) == 0.0  # a shared edge is no overlap
    assert Box3D(0, 0, 0, 2, 2, 2).iou(Box3D(0, 0, 1, 2, 2, 3)) == pytest.approx(4 / 12)
    assert Box2D(3, 3, 3, 3).iou(Box2D(3, 3, 3, 3)) == 0.0
    cuboid = Box3D(1, 2, 3, 4, 6, 8)
    assert (cuboid.xy, cuboid.center) == (Box2D(1, 2, 4, 6), (2.5, 4, 5.5))
    assert (cuboid.width, cuboid.height, cuboid.depth, cuboid.volume) == (3, 4, 5, 60)
    assert cuboid.xy.area == 12
    assert {pickle.loads(pickle.dumps(cuboid))} == {cuboid}
    assert Box2D(5, 5, 1, 9).is_empty and Box2D(5, 5, 1, 9).width == 0


@given(boxes, st.floats(0.05, 20), st.floats(0.05, 20), st.floats(0.05, 20))
def test_scaling_there_and_back(box, sx, sy, sz):
    factors = (sx, sy, sz)[: len(box.as_tuple()) // 2]
    back = box.scale(*factors).scale(*(1 / factor for factor in factors))
    assert back.as_tuple() == pytest.approx(box.as_tuple(), abs=1e-6) and back.round() == box
    scaled = box.scale(*factors)
    assert scaled.round(outward=True).intersection(scaled) == scaled


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, True])
def test_what_is_no_box_is_refused(bad):
    for use in (lambda: Box2D(bad, 0, 1, 1), lambda: Box3D(0, 0, bad, 1, 1, 1)):
        with pytest.raises(BoxError, match="What to do"):
            use()
    with pytest.raises(BoxError, match="What to do"):
        format_box(Box2D(3.1, 3.1, 3.2, 3.2))
