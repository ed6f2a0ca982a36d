"""The one owner of the box scale agrees with the processor, whatever the processor's version."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.errors import ModelError, ScanError
from unireason_lib.imaging.frame import ProcessorFrame

QWEN = ProcessorFrame(14, 2, 56 * 56, 28 * 28 * 1280)
sides = st.integers(8, 1200)


@pytest.fixture(scope="module")
def qwen_processor():
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    return Qwen2VLImageProcessor()


def test_the_papers_slices():
    assert QWEN.size(256, 256) == (252, 252)
    assert QWEN.tokens(256, 256) == 81


@settings(max_examples=25, deadline=None)
@given(height=sides, width=sides)
def test_sizes_are_the_processors(qwen_processor, height, width):
    frame = ProcessorFrame.from_processor(qwen_processor)
    assert frame == QWEN
    grid = qwen_processor(images=[Image.new("RGB", (width, height))], return_tensors="pt")["image_grid_thw"][
        0
    ]
    assert frame.size(height, width) == (int(grid[1]) * 14, int(grid[2]) * 14)
    assert frame.tokens(height, width) == int(grid.prod()) // 4


@settings(max_examples=400, deadline=None)
@given(
    height=st.integers(1, 4000),
    width=st.integers(1, 4000),
    patch=st.sampled_from((8, 14, 16)),
    low=st.integers(1, 200_000),
    room=st.integers(0, 3_000_000),
)
def test_the_rule_is_transformers_smart_resize(height, width, patch, low, room):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    frame = ProcessorFrame(patch, 2, low, low + room)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ScanError, match="aspect ratio"):
            frame.size(height, width)
    else:
        assert frame.size(height, width) == smart_resize(height, width, 2 * patch, low, low + room)


def test_aligned_pictures_are_what_the_processor_shows(qwen_processor):
    draw = np.random.default_rng(0)
    picture = Image.fromarray(draw.integers(0, 256, (100, 160, 3), dtype=np.uint8))
    aligned = QWEN.aligned(picture)
    assert (aligned.height, aligned.width) == QWEN.size(100, 160)
    shown = qwen_processor(images=[picture], return_tensors="pt")["pixel_values"]
    again = qwen_processor(images=[aligned], return_tensors="pt")["pixel_values"]
    assert shown.shape == again.shape
    assert (shown - again).abs().mean() < 0.02  # two bicubic implementations round alike, not identically


@pytest.mark.parametrize(
    "attributes",
    [
        {"size": {"shortest_edge": 3136, "longest_edge": 1003520}},
        {"size": SimpleNamespace(shortest_edge=3136, longest_edge=1003520)},
        {"size": {"min_pixels": 3136, "max_pixels": 1003520}},
        {"min_pixels": 3136, "max_pixels": 1003520},
        {"size": {"shortest_edge": 3136, "longest_edge": 1003520}, "min_pixels": 1, "max_pixels": 2},
    ],
)
def test_limits_are_found_under_every_name(attributes):
    old = SimpleNamespace(patch_size=14, merge_size=2, resample=3, **attributes)
    assert ProcessorFrame.from_processor(SimpleNamespace(image_processor=old)) == QWEN


def test_a_processor_of_another_family_is_refused():
    with pytest.raises(ModelError, match="Qwen2-VL"):
        ProcessorFrame.from_processor(SimpleNamespace(size={"height": 224, "width": 224}))
    with pytest.raises(ModelError, match="min_pixels"):
        ProcessorFrame(14, 2, 100, 10)


@given(sides, sides, st.data())
def test_boxes_go_there_and_back(height, width, data):
    if max(height, width) > 200 * min(height, width):
        return
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    box = Box3D(x1, y1, 2, data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height)), 5)
    there = QWEN.to_frame(box, height, width)
    assert QWEN.from_frame(there, height, width).as_tuple() == pytest.approx(box.as_tuple(), abs=1e-6)
    written = QWEN.written(box, height, width, depth=8)
    new_height, new_width = QWEN.size(height, width)
    assert not written.is_empty and written.clip(new_width, new_height, 8) == written
    assert all(isinstance(value, int) for value in written.as_tuple())
    if min(there.width, there.height) >= 1:
        assert all(abs(a - b) <= 1 for a, b in zip(written.as_tuple(), there.as_tuple(), strict=True))


def test_a_vanishing_side_keeps_a_pixel():
    frame = ProcessorFrame(8, 2, 16 * 16, 64 * 64)
    assert frame.written(Box2D(100, 100, 101, 101), 512, 512) == Box2D(12, 12, 13, 13)
    assert frame.written(Box2D(511, 511, 512, 512), 512, 512) == Box2D(63, 63, 64, 64)


def test_a_box_outside_the_picture_cannot_be_written():
    with pytest.raises(ScanError, match="overlaps"):
        QWEN.written(Box2D(300, 0, 310, 10), 256, 256)


def test_pictures_that_no_processor_takes():
    with pytest.raises(ScanError, match="aspect"):
        QWEN.size(10, 4000)
    with pytest.raises(ScanError, match="pixel"):
        QWEN.size(0, 10)
