"""The one owner of the box scale agrees with the processor; boxes fetch what they should."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D
from unireason_lib.errors import ScanError
from unireason_lib.imaging import ProcessorFrame, crop_rectangle, crop_region
from unireason_lib.imaging.crops import MAX_ASPECT, MIN_SIDE

QWEN = ProcessorFrame(14, 2, 56 * 56, 28 * 28 * 1280)
SIDES = st.integers(16, 999)
ANY = st.integers(-300, 300)


@settings(max_examples=150, deadline=None)
@given(*[st.integers(1, 4000)] * 2, st.sampled_from((8, 14, 16)), *[st.integers(1, 3_000_000)] * 2)
def test_the_rule_is_transformers_smart_resize(height, width, patch, low, more):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    frame = ProcessorFrame(patch, 2, low, low + more)
    if max(height, width) > 200 * min(height, width):
        with pytest.raises(ScanError, match="aspect ratio"):
            frame.size(height, width)
    else:
        assert frame.size(height, width) == smart_resize(height, width, 2 * patch, low, low + more)


def test_aligned_images_are_what_the_processor_shows():
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(min_pixels=56 * 56, max_pixels=28 * 28 * 1280)
    assert ProcessorFrame.from_processor(processor) == QWEN
    noise = np.random.default_rng(0).integers(0, 256, (100, 160, 3), dtype=np.uint8)
    image = Image.fromarray(noise)
    both = image, QWEN.aligned(image)
    shown, again = (processor(images=[each], return_tensors="pt") for each in both)
    rows, columns = (14 * side for side in shown["image_grid_thw"][0].tolist()[1:])
    assert QWEN.size(100, 160) == (rows, columns) == QWEN.aligned(image).size[::-1]
    assert QWEN.tokens(100, 160) == shown["image_grid_thw"].prod() // 4
    assert (shown["pixel_values"] - again["pixel_values"]).abs().mean() < 0.02  # two bicubics
    assert QWEN.size(256, 256) == (252, 252) and QWEN.tokens(256, 256) == 81  # the paper's slices


@st.composite
def images_with_boxes(draw):
    """Height and width of an image, and a box of whole pixels on three slices."""
    height, width = draw(SIDES), draw(SIDES)
    x1, y1 = draw(st.integers(0, width - 1)), draw(st.integers(0, height - 1))
    x2, y2 = draw(st.integers(x1 + 1, width)), draw(st.integers(y1 + 1, height))
    return height, width, Box3D(x1, y1, 2, x2, y2, 5)


@given(images_with_boxes())
def test_boxes_go_there_and_back(image):
    height, width, box = image
    (rows, columns) = QWEN.size(height, width)
    there = box.scale(columns / width, rows / height)
    back = QWEN.from_frame(there, height, width).as_tuple()
    assert back == pytest.approx(box.as_tuple(), abs=1e-6)
    written = QWEN.written(box, height, width, depth=8)
    assert not written.is_empty and written.clip(*QWEN.size(height, width)[::-1], 8) == written
    assert all(isinstance(value, int) for value in written.as_tuple())
    if min(there.width, there.height) >= 1:
        assert np.abs(np.subtract(written.as_tuple(), there.as_tuple())).max() <= 1


@given(images_with_boxes())
def test_thousandths_go_there_and_back_in_every_pixel(image):
    """What a model of the other scale writes is the same place: a thousandth is less than a pixel."""
    height, width, box = image
    frame = ProcessorFrame(1, 1, 1, 999 * 999, scale=1000)
    written = frame.written(box, height, width, depth=8)
    assert written.clip(*frame.extent(height, width), 8) == written and written.z1 == 2
    assert np.allclose(
        written.as_tuple()[:2], (1000 * box.x1 / width, 1000 * box.y1 / height), atol=0.51
    )
    assert frame.pixels(written, height, width) == box and frame.unit == "thousandths"


def test_a_side_finer_than_the_scale_keeps_one_and_a_box_outside_is_refused():
    pixels, fine = (
        ProcessorFrame(8, 2, 16 * 16, 64 * 64),
        ProcessorFrame(8, 2, 256, 2**24, scale=1000),
    )
    assert pixels.written(Box2D(100, 100, 101, 101), 512, 512) == Box2D(12, 12, 13, 13)
    assert pixels.written(Box2D(511, 511, 512, 512), 512, 512) == Box2D(63, 63, 64, 64)
    assert fine.pixels(Box2D(999, 0, 1000, 1), 64, 64) == Box2D(63, 0, 64, 1)
    assert fine.written(Box2D(2047, 0, 2048, 1), 2048, 2048) == Box2D(999, 0, 1000, 1)
    assert fine.pixels(Box2D(-1000, 2000, -900, 2100), 64, 64) == Box2D(-64, 128, -58, 134)
    with pytest.raises(ScanError, match="overlaps"):
        QWEN.written(Box2D(300, 0, 310, 10), 256, 256)


@example(20, 5, 21, 300, 30, 300)  # narrow and long
@given(*[ANY] * 4, *[st.integers(4, 900)] * 2)
def test_a_crop_is_inside_the_image_large_enough_and_not_too_long(x1, y1, x2, y2, width, height):
    box = Box2D(x1, y1, x2, y2)
    cut = crop_rectangle(box, width, height)
    overlap = None if box.is_empty else box.intersection(Box2D(0, 0, width, height))
    assert (cut is None) == (overlap is None)
    if cut is not None:
        assert cut.clip(width, height) == cut and min(cut.width, cut.height) >= MIN_SIDE
        assert cut.intersection(overlap) == overlap
        if max(width, height) <= MAX_ASPECT * min(width, height):
            assert max(cut.width, cut.height) <= MAX_ASPECT * min(cut.width, cut.height)


@pytest.mark.parametrize(
    ("z1", "z2", "count", "slices"),
    [(2, 5, 6, [2, 3, 4]), (-4, 2, 6, [0, 1]), (4, 99, 6, [4, 5]), (6, 9, 6, []), (17, 19, 1, [0])],
)
def test_a_box_fetches_its_rectangle_from_its_slices_in_order(z1, z2, count, slices):
    images = [Image.new("RGB", (40, 30), (10 * i, 0, 0)) for i in range(count)]
    assert [crop.size for crop in crop_region(images, Box2D(5, 5, 15, 25))] == [(10, 20)]
    assert not crop_region(images, Box2D(-20, -20, 0, 0))
    crops = crop_region(images, Box3D(5, 5, z1, 15, 25, z2))
    cut = [(crop.size, crop.getpixel((0, 0))[0] // 10) for crop in crops]
    assert cut == [((10, 20), i) for i in slices]
