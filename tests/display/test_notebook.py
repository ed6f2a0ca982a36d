"""What shows itself in a notebook: objects as tables."""

import numpy as np

from unireason_lib.dataset import Study
from unireason_lib.imaging import Volume

AFFINE = np.diag([-1.0, -2.0, 3.0, 1.0])  # spacing (3, 2, 1) mm
SCRIPT = "<script>alert(1)</script>"


def volume(**more):
    array = np.tile(np.arange(10.0)[:, None, None] * 100 - 900, (1, 20, 30))
    return Volume(array, AFFINE, SCRIPT, **more)


def test_objects_show_themselves_without_the_markup_of_others(volume_trace):
    html = volume()._repr_html_()
    assert "10 x 20 x 30" in html and "3 x 2 x 1" in html and "L-P-S" in html
    assert html.count("data:image/png;base64,") == 3
    assert "assumed" in volume(has_affine=False)._repr_html_()
    labels = np.zeros((10, 20, 30), int)
    labels[2:4, 5:9, 6:9] = 1
    about = {"id": SCRIPT, "patient": SCRIPT, "source": "test", "modality": "CT"}
    study = Study.from_labels(labels, {1: SCRIPT, 2: "spleen"}, scan=volume(), **about)
    shown_study, shown_trace = study._repr_html_(), volume_trace._repr_html_()
    assert "24 voxels" in shown_study and "spleen" in shown_study
    assert shown_trace.count("<img") == 7 and "&lt;think&gt;It lies at" in shown_trace
    assert "outside" in shown_trace and "56 injected" in shown_trace
    assert "<script" not in html + shown_study + shown_trace
