"""Sources of NIfTI files: decathlon, TotalSegmentator and plain folders."""

import os
import re

import nibabel as nib
import numpy as np
import pytest

from tests.dataset.sources import layouts as made
from tests.dataset.sources.layouts import KIDNEY, LIVER, RAS, TUMOUR, boxes_of, painted
from unireason_lib.dataset.sources import open_source
from unireason_lib.errors import DatasetError, LabelError, ScanError, ScanWarning


def test_decathlon_tumours_are_counted_parts_of_their_organ(tmp_path):
    root = made.make_decathlon(tmp_path, "Task07_Pancreas", ("Pancreas", "cancer"))
    both = painted({1: LIVER, 2: TUMOUR})
    both[9, 9, 4] = 2
    made.save_nifti(root / "labelsTr/case_0.nii.gz", both)
    source = open_source("decathlon", root)
    first, second = source
    assert source.license == "CC-BY-SA 4.0" and source.redistributable and source.modality == "CT"
    assert first.id == first.patient == "decathlon-Task07_Pancreas-case_0"
    pancreas, tumour = first.find("pancreas"), first.find("pancreatic tumour")
    assert pancreas.box.as_tuple() == LIVER and pancreas.voxels == 400  # the hole is closed
    assert first.spacing == (3.0, 2.0, 1.0) and first.directions == "LPS"
    assert tumour.attributes == {"host": "pancreas", "components": 2}
    assert second.absent == ("pancreatic tumour",) and second.split is None


def test_mirrored_headers_are_noticed_and_put_right(tmp_path):
    # Written as if the axes ran to the right and the front, although the anatomy lies L-P-S.
    root = made.make_decathlon(tmp_path, axes=RAS)
    with pytest.warns(ScanWarning, match="liver or spleen lie on the wrong side"):
        believed = open_source("decathlon", root)[0]
    assert believed.directions == ""
    assert boxes_of(believed)["liver"] == (9, 4, 1, 19, 14, 5)
    study = open_source("decathlon", root, flip="xy")[0]
    assert boxes_of(study) == {"liver": LIVER, "liver tumour": TUMOUR}
    assert study.directions == "LPS"
    assert np.allclose(np.diag(study.scan.affine), [-1, -2, 3, 1])


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("which", ["imagesTr", "labelsTr"])
def test_directions_are_withheld_where_a_header_does_not_know_them_report_9(tmp_path, which):
    """qform and sform of two minds about sides."""
    root = made.make_decathlon(tmp_path)
    assert open_source("decathlon", root)[0].directions == "LPS"
    image = nib.load(path := root / which / "case_0.nii.gz")
    image.set_qform(np.diag([1.0, -2.0, 3.0, 1.0]), code=1)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), path)
    study = open_source("decathlon", root)[0]
    assert study.directions == "" and study.spacing == (3.0, 2.0, 1.0)


def test_channels_are_studies_of_one_patient(tmp_path):
    names = ("FLAIR", "T1w", "t1gd", "T2w")
    root = made.make_decathlon(tmp_path, "BRATS", ("edema", "non-enhancing tumor"), names)
    source = open_source("decathlon", root)
    studies = list(source)
    assert len({s.id for s in studies}) == 8 and len({s.patient for s in studies}) == 2
    assert [s.id for s in studies[:4]] == [f"decathlon-BRATS-case_0-{name}" for name in names]
    assert set(boxes_of(studies[0])) == {"brain edema", "non-enhancing tumour"}
    assert source.modality == "MRI" and studies[2].key == "imagesTr/case_0.nii.gz#2"


def test_what_is_wrong_with_one_case_costs_no_other(tmp_path):
    root = made.make_decathlon(tmp_path)
    for k in range(6):
        made.save_nifti(root / f"imagesTr/{k}.nii.gz", made.ramp(*made.SHAPE))
        made.save_nifti(root / f"labelsTr/{k}.nii.gz", painted({1: LIVER}))
    pairs = ({"image": f"imagesTr/{k}.nii.gz", "label": f"labelsTr/{k}.nii.gz"} for k in range(6))
    (root / "imagesTr/1.nii.gz").unlink()
    (root / "labelsTr/2.nii.gz").write_bytes((root / "labelsTr/2.nii.gz").read_bytes()[:90])
    made.save_nifti(root / "labelsTr/3.nii.gz", np.zeros((20, 16, 7), np.uint8))
    made.save_nifti(root / "labelsTr/4.nii.gz", painted({1: LIVER, 9: TUMOUR}))
    made.save_nifti(root / "labelsTr/5.nii.gz", painted({1: LIVER}), spacing=(1, 2, 4))
    made.make_decathlon(root, training=[*pairs, {"image": "../x.nii.gz", "label": "/etc/y.nii.gz"}])
    wrong = {"1.nii.gz": ScanError, "2.nii.gz": ScanError, "3.nii.gz": LabelError}
    wrong |= {"[9]": LabelError, "5.nii.gz": LabelError, "/etc/y": DatasetError}
    source = open_source("decathlon", root)
    assert source[0].structures
    for k, (word, kind) in enumerate(wrong.items(), start=1):
        with pytest.raises(kind, match=re.escape(word)):
            source[k]


def test_totalsegmentator_one_file_per_structure(tmp_path):
    source = open_source("totalsegmentator", made.make_totalsegmentator(tmp_path))
    study, other = source
    assert source.modality == "CT" and "CC BY" in source.license and not source.redistributable
    assert study.id == study.patient == "totalsegmentator-s0011"
    assert (study.split, other.split) == ("test", "train")
    assert boxes_of(study) == {
        "left kidney cyst": made.MASKS["kidney_cyst_left"],
        "left kidney": KIDNEY,
        "liver": LIVER,
        "vertebra L1": made.MASKS["vertebrae_L1"],
    }
    assert study.absent == ("spleen",) and study.directions == "LPS"
    assert study.spacing == (3.0, 2.0, 1.0) and study.find("left kidney").voxels == 48
    cyst = study.find("left kidney cyst")
    assert cyst.attributes == {"host": "left kidney", "components": 1}
    moved = nib.load(path := tmp_path / "s0011/segmentations/liver.nii.gz")
    moved.affine[0, 3] += 2
    nib.save(nib.Nifti1Image(np.asarray(moved.dataobj), moved.affine), path)
    with pytest.raises(LabelError, match="liver"):
        source[0]


def test_totalsegmentator_one_label_map(tmp_path):
    root = made.make_multilabel(tmp_path)
    with pytest.raises(DatasetError, match=r"label names.*names=labels\.json"):
        open_source("totalsegmentator", root)[0]
    (study,) = open_source("totalsegmentator", root, names="labels.json")
    assert boxes_of(study) == {"left kidney": KIDNEY, "liver": LIVER}
    assert study.absent == ("spleen",) and study.modality == "MRI"


def test_folder_with_a_table_of_names(tmp_path):
    root = made.make_folder(tmp_path / "clinic")
    source = open_source("folder", root)
    assert (source.name, source.modality, source.redistributable) == ("clinic", "medical", False)
    study = source[0]
    assert study.id == study.patient == "clinic-anna-visit1"
    assert boxes_of(study) == {"liver": LIVER, "liver tumour": TUMOUR}
    assert study.absent == ("left kidney",) and study.find("liver").voxels == 382
    people = {s.patient for s in open_source("folder", root, patient="(.+)-visit", title="own")}
    assert people == {"patient-anna", "patient-ben"}
    elsewhere = open_source("folder", made.make_folder(tmp_path / "b"), patient="(.+)-visit")
    assert {s.patient for s in elsewhere} == people  # in whatever folder
    with pytest.raises(DatasetError, match="patient"):
        open_source("folder", root, patient="(x+)")


@pytest.mark.parametrize("inside", [{"9": 1}, {"2": 9}])
def test_a_part_or_organ_without_a_name_is_named_report_10(tmp_path, inside):
    root = made.make_folder(tmp_path, {"names": {"1": "liver", "2": "cyst"}, "inside": inside})
    with pytest.raises(DatasetError, match=r"names\.json: .* found \[9\] in inside"):
        open_source("folder", root)


def test_a_file_name_that_is_not_utf_8_is_named_report_9(tmp_path):
    root = made.make_folder(tmp_path)
    name = os.fsencode(root / "images/ben-visit1.nii.gz")
    os.rename(name, name.replace(b"ben", b"M\xfcller"))
    with pytest.raises(DatasetError, match=r"file names in UTF-8, found 'images/M.udcfcller"):
        open_source("folder", root)


def test_folder_with_a_longer_description(tmp_path):
    about = {"names": {"liver": 1, "liver_tumor": 2, "aorta": 3}, "inside": {"2": 1}}
    about |= {"modality": "CT", "license": "CC BY 4.0", "redistributable": True}
    source = open_source("folder", made.make_folder(tmp_path, about))
    study = source[0]
    assert source.redistributable and study.license == "CC BY 4.0" and study.modality == "CT"
    assert study.find("liver").voxels == 400
    assert study.find("liver tumour").attributes == {"host": "liver", "components": 1}
    with pytest.raises(DatasetError, match=r"names\.json"):
        open_source("folder", made.make_folder(tmp_path, {**about, "names": {"1": ""}}))
