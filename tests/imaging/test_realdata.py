"""Real scans, where there are some."""

import json

import numpy as np

from unireason_lib.imaging import check_same_grid, label_boxes, load_volume, serialize
from unireason_lib.imaging.order import slice_order_report


def test_a_real_ct_and_its_labels(real_scans):
    names = json.loads((real_scans / "abdomen_seg_labels.json").read_text())
    scan = load_volume(real_scans / "abdomen_ct.nii.gz")
    labels = load_volume(real_scans / "abdomen_seg.nii.gz")
    check_same_grid(scan, labels)
    boxes = {names[str(label)]: box for label, box in label_boxes(labels).items()}
    liver, middle = boxes["liver"], scan.shape[2] / 2
    # the patient's right is on the left
    assert liver.center[0] < middle < boxes["spleen"].center[0]
    assert boxes["kidney_right"].center[0] < boxes["kidney_left"].center[0]
    assert boxes["vertebrae_L1"].center[1] > liver.center[1]  # the spine is at the back
    code = next(int(key) for key, name in names.items() if name == "liver")
    assert 30 < np.median(scan.array[labels.array == code]) < 180
    stack = serialize(scan, window="abdomen")
    assert stack.from_voxel(liver).clip(256, 256, 32) == stack.from_voxel(liver)
    assert not slice_order_report(scan).messages
