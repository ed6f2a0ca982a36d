"""What a box fetches."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from unireason_lib.boxes import Box2D, Box3D, BoxError
from unireason_lib.imaging.crops import MAX_ASPECT, MIN_SIDE, crop_rectangle, crop_region

any_number = st.integers(-3000, 3000)


def slices(count, size=(40, 30)):
    return [Image.new("RGB", size, (10 * i, 0, 0)) for i in range(count)]


@given(any_number, any_number, any_number, any_number, st.integers(4, 2500), st.integers(4, 2500))
def test_a_crop_is_inside_the_picture_large_enough_and_not_too_long(x1, y1, x2, y2, width, height):
    box = Box2D(x1, y1, x2, y2)
    cut = crop_rectangle(box, width, height)
    overlap = None if box.is_empty else box.intersection(Box2D(0, 0, width, height))
    assert (cut is None) == (overlap is None)
    if cut is not None:
        assert 0 <= cut.x1 and cut.x2 <= width and 0 <= cut.y1 and cut.y2 <= height
        assert min(cut.width, cut.height) >= MIN_SIDE
        assert max(cut.width, cut.height) <= MAX_ASPECT * min(cut.width, cut.height)
        if max(width, height) <= MAX_ASPECT * min(width, height):
            assert cut.intersection(overlap) == overlap


def test_a_picture_too_narrow_to_widen_in_is_shortened():
    assert crop_rectangle(Box2D(0, 0, 1, 721), 4, 721) == Box2D(0, 0, 4, 720)
    assert crop_rectangle(Box2D(0, 0, 1000, 1), 1000, 4) == Box2D(140, 0, 860, 4)


def test_a_large_enough_box_is_cut_exactly():
    assert crop_rectangle(Box2D(3, 4, 20, 25), 40, 30) == Box2D(3, 4, 20, 25)


def test_a_thin_box_is_widened_around_its_centre_and_kept_inside():
    assert crop_rectangle(Box2D(10, 5, 11, 20), 40, 30) == Box2D(9, 5, 13, 20)
    assert crop_rectangle(Box2D(39, 5, 40, 20), 40, 30) == Box2D(36, 5, 40, 20)
    assert crop_rectangle(Box2D(0, 0, 1000, 4), 1000, 1000).as_tuple() == (0, 0, 1000, 6)


def test_pictures_smaller_than_a_crop_are_given_whole():
    assert crop_rectangle(Box2D(0, 0, 1, 1), 3, 2) == Box2D(0, 0, 3, 2)


def test_a_rectangle_fetches_one_crop_of_the_first_picture():
    crops = crop_region(slices(3), Box2D(5, 5, 15, 25))
    assert [crop.size for crop in crops] == [(10, 20)]
    assert crops[0].getpixel((0, 0)) == (0, 0, 0)


def test_a_cuboid_fetches_the_same_rectangle_of_each_slice_in_order():
    crops = crop_region(slices(6), Box3D(5, 5, 2, 15, 25, 5))
    assert [crop.getpixel((0, 0))[0] for crop in crops] == [20, 30, 40]
    assert {crop.size for crop in crops} == {(10, 20)}


@pytest.mark.parametrize(
    ("box", "count"),
    [
        (Box3D(5, 5, -4, 15, 25, 2), 2),
        (Box3D(5, 5, 4, 15, 25, 99), 2),
        (Box3D(5, 5, 6, 15, 25, 9), 0),
        (Box3D(5, 5, -9, 15, 25, 0), 0),
        (Box3D(50, 50, 0, 60, 60, 6), 0),
        (Box2D(-20, -20, 0, 0), 0),
    ],
)
def test_boxes_that_leave_the_volume(box, count):
    assert len(crop_region(slices(6), box)) == count


def test_a_cuboid_on_a_single_picture_is_its_rectangle():
    assert [crop.size for crop in crop_region(slices(1), Box3D(5, 5, 17, 15, 25, 19))] == [(10, 20)]


def test_crops_hold_the_pixels_of_the_region():
    picture = Image.new("RGB", (40, 30))
    picture.putpixel((12, 7), (255, 1, 2))
    (crop,) = crop_region([picture], Box2D(10, 5, 20, 15))
    assert crop.getpixel((2, 2)) == (255, 1, 2)


def test_something_else_than_a_box_is_refused():
    with pytest.raises(BoxError, match="parse"):
        crop_region(slices(1), (1, 2, 3, 4))
