"""Real scans, where there are some."""

import json

import nibabel as nib
import numpy as np
import pytest

from unireason_lib.imaging import (
    check_same_grid,
    label_boxes,
    load_image,
    load_volume,
    serialize,
    slice_order_report,
)


@pytest.fixture(scope="module")
def abdomen(real_scans):
    names = json.loads((real_scans / "abdomen_seg_labels.json").read_text())
    scan, labels = (
        load_volume(real_scans / "abdomen_ct.nii.gz"),
        load_volume(real_scans / "abdomen_seg.nii.gz"),
    )
    boxes = {names[str(label)]: box for label, box in label_boxes(labels).items()}
    return scan, labels, boxes


def test_left_is_left(abdomen):
    scan, labels, boxes = abdomen
    check_same_grid(scan, labels)
    assert nib.aff2axcodes(scan.affine) == ("L", "P", "S")
    middle = scan.shape[2] / 2
    assert boxes["liver"].center[0] < middle < boxes["spleen"].center[0]  # the patient's right is on the left
    assert boxes["kidney_right"].center[0] < boxes["kidney_left"].center[0]
    assert boxes["aorta"].center[0] > boxes["inferior_vena_cava"].center[0]
    assert boxes["vertebrae_L1"].center[1] > boxes["liver"].center[1]  # the spine is at the back
    assert scan.array[:, :5].mean() < -500  # air in front of the patient


def test_the_liver_is_liver(abdomen, real_scans):
    scan, labels, boxes = abdomen
    code = next(
        int(k)
        for k, name in json.loads((real_scans / "abdomen_seg_labels.json").read_text()).items()
        if name == "liver"
    )
    inside = scan.array[labels.array == code]
    assert 30 < np.median(inside) < 180
    stack = serialize(scan, window="abdomen")
    box = stack.from_voxel(boxes["liver"])
    assert box.clip(256, 256, 32) == box
    assert stack.from_mm(stack.to_mm(box)).as_tuple() == pytest.approx(box.as_tuple(), abs=1e-6)


def test_slices_are_in_order(abdomen):
    assert not slice_order_report(abdomen[0].array).suspicious


def test_demo_pictures_and_masks_share_a_grid(samed2d_demo):
    for image in (samed2d_demo / "images").iterdir():
        picture = load_image(image)
        masks = list((samed2d_demo / "masks").glob(f"{image.stem}_*.png"))
        assert masks
        for mask in masks:
            array = np.asarray(load_image(mask))[..., 0]
            assert array.shape == (picture.height, picture.width)
            assert label_boxes(array > 0)
