"""SA-Med2D-20M and the SAM-Med2D demo."""

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.dataset.sources.layouts import SAMed2D, make_demo
from unireason_lib.boxes import Box2D
from unireason_lib.dataset.sources import open_source
from unireason_lib.errors import DatasetError, LabelError, ScanError, ScanWarning


@pytest.fixture
def made(tmp_path) -> SAMed2D:
    return SAMed2D(tmp_path / "data")


def test_what_is_known_about_an_image(made):
    masks = {"0000_000": (10, 5, 30, 25), "0001_000": (40, 8, 50, 20), "0002_000": (42, 10, 46, 14)}
    made.add("ct_00--FLARE22--Case_00011--x_0040", masks)
    made.add("x_ray--CRASS--JPCLN--001--2d_none", {"0000_000": (1, 1, 9, 9)}, "RGB", 1)
    made.add("mr_t1ce--FLARE22--Case_00011--z_0007", {"0000_000": (0, 0, 60, 40)})
    ct, xray, mr = made.open()
    assert ct.id == "sa-med2d-ct_00--FLARE22--Case_00011--x_0040" and "NC-SA" in ct.license
    assert ct.patient == mr.patient == "sa-med2d-FLARE22--Case_00011"
    assert xray.patient == "sa-med2d-CRASS--JPCLN--001"
    assert [s.modality for s in (ct, xray, mr)] == ["CT", "X-ray", "MRI"]
    assert {s.name: s.box.as_tuple() for s in ct.structures} == {
        "liver": (10, 5, 30, 25),
        "right kidney": (40, 8, 50, 20),  # keeps what the tumour covers
        "kidney tumour": (42, 10, 46, 14),
    }
    assert ct.find("kidney tumour").attributes == {"components": 1}
    assert ct.directions == "" and ct.spacing is None and ct.absent == ()
    assert xray.find("clavicle").box == Box2D(1, 1, 9, 9)  # 0/1 masks like 0/255


def test_masks_of_another_size_are_stretched_with_a_warning_or_refused(made):
    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (5, 2, 15, 12)}, size=(20, 30))
    made.add("ct_00--FLARE22--1--z_0002", {"0000_000": (5, 2, 15, 12)}, size=(60, 40))
    source = made.open()
    with pytest.warns(ScanWarning, match=r"0000_000\.png: stretched from 20 x 30 to 40 x 60"):
        assert source[0].find("liver").box == Box2D(10, 4, 30, 24)
    with pytest.raises(LabelError, match=r"z_0002--0000_000\.png.*40 x 60, found 60 x 40"):
        source[1]


def test_an_image_that_its_masks_do_not_turn_with_is_refused_report_7(made):
    stem = made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (5, 5, 20, 15)})
    path, turned = made.root / f"images/{stem}.png", Image.Exif()
    turned[ExifTags.Base.Orientation] = 3
    Image.open(path).save(path, exif=turned)
    with pytest.raises(ScanError, match="an upright image, found EXIF orientation 3"):
        made.open()[0]


def test_what_is_wrong_with_one_image_costs_no_other(made):
    stems = [made.add(f"ct_00--FLARE22--{k}--z_0001", {"0000_000": (1, 1, 5, 5)}) for k in range(6)]
    images, masks = made.root / "images", made.root / "masks"
    (images / f"{stems[1]}.png").unlink()
    (images / f"{stems[2]}.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    (masks / f"{stems[3]}--0000_000.png").unlink()
    broken = masks / f"{stems[4]}--0000_000.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    made.entries["images/amos_0004_75.png"] = ["masks/x--0000_000.png"]
    made.entries["images/ct_00--FLARE22--9--z_1.png"] = ["masks/x--0077_000.png"]
    made.entries[f"../{stems[0]}.png"] = [f"masks/{stems[0]}--0000_000.png"]
    source = made.open()
    assert source[0].structures and source[5].structures and len(list(source.index())) == 9
    for k in range(1, 5):  # 2: no other decoder than those named is asked (B8)
        with pytest.raises(ScanError, match=f"FLARE22--{k}--z_0001"):
            source[k]
    for k, words in {6: "unknown class", 7: "unknown class ids .'0077'", 8: "inside"}.items():
        with pytest.raises((DatasetError, LabelError), match=words):
            source[k]


def test_demo(tmp_path):
    root = make_demo(tmp_path)
    first, second, third = source = open_source("sam-med2d", root)
    stems = ("amos_0507_31", "amos_0507_31_2", "s0619_32")
    assert [s.id for s in source] == [f"sam-med2d-{stem}" for stem in stems]
    assert [s.name for s in first.structures] == ["inferior vena cava"]
    assert second.find("liver").box == Box2D(1, 2, 20, 22)
    assert [s.name for s in third.structures] == ["left hip", "left hip"]
    assert third.patient == "sam-med2d-s0619" and np.ptp(third.scan) > 0
