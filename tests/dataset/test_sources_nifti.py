"""Sources of NIfTI files: decathlon, TotalSegmentator and plain folders, in made folders of exactly their layouts."""

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from unireason_lib.dataset.sources import IndexedSource, open_source
from unireason_lib.errors import DatasetError, LabelError, ScanError, UniReasonError
from unireason_lib.imaging import Volume

SHAPE = (20, 16, 6)  # x, y, z
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
RAS = np.eye(4)


def save(
    path: Path, array: np.ndarray, axes: np.ndarray = LPS, spacing=(1.0, 2.0, 3.0), codes=(1, 1)
) -> Path:
    """Write (x, y, z[, channel]) with axes in these directions; ``codes`` of 0 and 0 name no orientation."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nib.Nifti1Image(array, axes @ np.diag([*spacing, 1.0]))
    image.set_sform(image.affine, code=codes[0])
    image.set_qform(image.affine, code=codes[1])
    nib.save(image, path)
    return path


def painted(boxes: dict, dtype=np.uint8) -> np.ndarray:
    """A label map: value -> (x1, y1, z1, x2, y2, z2), later ones over earlier ones."""
    labels = np.zeros(SHAPE, dtype)
    for value, (x1, y1, z1, x2, y2, z2) in boxes.items():
        labels[x1:x2, y1:y2, z1:z2] = value
    return labels


def ramp(*shape: int) -> np.ndarray:
    return (np.arange(np.prod(shape)).reshape(shape) % 3001 - 1000).astype(np.int16)


def boxes_of(study) -> dict:
    return {structure.name: structure.box.as_tuple() for structure in study.structures}


# --- Medical Segmentation Decathlon -----------------------------------------------------------------------------------

LIVER, TUMOUR = (1, 2, 1, 11, 12, 5), (4, 5, 2, 7, 8, 4)


@pytest.fixture
def decathlon(tmp_path):
    """Makes a task and returns its folder."""

    def make(name, names, cases, channels=("CT",), axes=LPS, codes=(1, 1), **changes) -> Path:
        root = tmp_path / f"Task_{name}"
        for case, boxes in cases.items():
            shape = SHAPE if len(channels) == 1 else (*SHAPE, len(channels))
            save(root / f"imagesTr/{case}.nii.gz", ramp(*shape), axes, codes=codes)
            save(root / f"labelsTr/{case}.nii.gz", painted(boxes), axes, codes=codes)
        about = {
            "name": name,
            "description": "made",
            "licence": "CC-BY-SA 4.0",
            "tensorImageSize": "3D" if len(channels) == 1 else "4D",
            "modality": {str(k): channel for k, channel in enumerate(channels)},
            "labels": {"0": "background", **{str(k): name for k, name in enumerate(names, start=1)}},
            "numTraining": len(cases),
            "training": [
                {"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in cases
            ],
            "test": ["./imagesTs/never_read.nii.gz"],
            **changes,
        }
        (root / "dataset.json").write_text(json.dumps(about))
        return root

    return make


def test_decathlon_tumours_are_part_of_their_organ(decathlon):
    root = decathlon("Liver", ["liver", "cancer"], {"liver_0": {1: LIVER, 2: TUMOUR}, "liver_1": {1: LIVER}})
    source = open_source("decathlon", root)
    assert isinstance(source, IndexedSource) and len(source) == 2 and source.modality == "CT"
    assert source.license == "CC-BY-SA 4.0" and source.redistributable
    first, second = source
    assert first.id == first.patient == "decathlon-Liver-liver_0" and first.source == "decathlon"
    assert first.details == {"scan": "imagesTr/liver_0.nii.gz", "task": "Liver"}
    assert boxes_of(first) == {"liver": LIVER, "liver tumour": TUMOUR}
    liver, tumour = first.find("liver"), first.find("liver tumour")
    assert liver.voxels == 400 and liver.centroid == (6.0, 7.0, 3.0)  # the hole of the tumour is closed
    assert liver.size == 400 * 6.0 and first.spacing == (3.0, 2.0, 1.0) and first.directions == "LPS"
    assert tumour.kind == "lesion" and tumour.attributes == {"host": "liver", "components": 1}
    assert first.absent == () and second.absent == ("liver tumour",) and first.split is None
    assert isinstance(first.scan, Volume) and first.scan.array[2, 5, 3] == ramp(*SHAPE)[3, 5, 2]
    assert first.mask(tumour).sum() == 18 and first.slice(2).find("liver tumour").voxels == 9


def test_decathlon_parts_of_a_lesion_are_counted(decathlon):
    labels = {1: LIVER, 2: TUMOUR}
    root = decathlon("Pancreas", ["pancreas", "cancer"], {"pancreas_1": labels})
    both = painted(labels)
    both[9, 9, 4] = 2
    save(root / "labelsTr/pancreas_1.nii.gz", both)
    study = open_source("decathlon", root)[0]
    assert study.find("pancreatic tumour").attributes == {"host": "pancreas", "components": 2}


def test_decathlon_scans_in_any_orientation_have_the_same_boxes(decathlon):
    # The same anatomy in a file whose axes run to the right, the front and the head.
    root = decathlon("Liver", ["liver", "cancer"], {"liver_0": {1: LIVER, 2: TUMOUR}})
    expected = boxes_of(open_source("decathlon", root)[0])
    for folder in ("imagesTr", "labelsTr"):
        array = np.asarray(nib.load(root / folder / "liver_0.nii.gz").dataobj)
        save(root / folder / "liver_0.nii.gz", array[::-1, ::-1], RAS)
    study = open_source("decathlon", root)[0]
    assert boxes_of(study) == expected and study.directions == "LPS"
    assert study.scan.array[2, 5, 3] == ramp(*SHAPE)[3, 5, 2]


def test_decathlon_mirrored_headers_are_noticed_and_put_right(decathlon):
    # Written as if the axes ran to the right and the front, although the anatomy lies L-P-S.
    root = decathlon("Liver", ["liver", "cancer"], {"liver_0": {1: LIVER, 2: TUMOUR}}, axes=RAS)
    believed = open_source("decathlon", root)[0]
    assert believed.directions == "" and "liver" in believed.details["warning"]
    assert boxes_of(believed)["liver"] == (9, 4, 1, 19, 14, 5)
    source = open_source("decathlon", root, flip="xy")
    study = source[0]
    assert boxes_of(study) == {"liver": LIVER, "liver tumour": TUMOUR}
    assert study.directions == "LPS" and "warning" not in study.details
    assert study.location(study.find("liver"), margin=1) == ("right", "anterior")
    assert (
        study.scan.array[2, 5, 3] == ramp(*SHAPE)[3, 5, 2]
        and (study.labels == painted({1: LIVER, 2: TUMOUR}).T).all()
    )
    assert np.allclose(np.diag(study.scan.affine), [-1, -2, 3, 1])
    with pytest.raises(DatasetError, match="flip"):
        open_source("decathlon", root, flip="left")


@pytest.mark.parametrize(
    "spleen, settled",
    [((2, 2, 1, 6, 6, 4), False), ((14, 2, 1, 18, 6, 4), True), ((8, 2, 1, 11, 6, 4), True)],
)
def test_the_spleen_is_on_the_left(decathlon, spleen, settled):
    study = open_source("decathlon", decathlon("Spleen", ["spleen"], {"spleen_2": {1: spleen}}))[0]
    assert (study.directions == "LPS") == settled and ("warning" in study.details) != settled


def test_headers_that_name_no_orientation_give_no_directions(decathlon, recwarn):
    root = decathlon("Liver", ["liver", "cancer"], {"liver_0": {1: LIVER}}, codes=(0, 0))
    study = open_source("decathlon", root)[0]
    assert study.directions == "" and study.scan.shape == study.shape and study.labels.any()
    assert not [w for w in recwarn if "orientation" in str(w.message)]


def test_decathlon_channels_are_studies_of_one_patient(decathlon):
    channels = ("FLAIR", "T1w", "t1gd", "T2w")
    labels = ["edema", "non-enhancing tumor", "enhancing tumour"]
    cases = {"BRATS_001": {1: LIVER, 2: TUMOUR}, "BRATS_002": {3: TUMOUR}}
    root = decathlon("BRATS", labels, cases, channels)
    source = open_source("decathlon", root)
    assert len(source) == 8 and source.modality == "MRI"
    studies = list(source)
    assert len({s.id for s in studies}) == 8 and len({s.patient for s in studies}) == 2
    assert (
        studies[1].id == "decathlon-BRATS-BRATS_001-T1w" and studies[4].patient == "decathlon-BRATS-BRATS_002"
    )
    assert [s.details["sequence"] for s in studies[:4]] == list(channels) and studies[0].modality == "MRI"
    for k, study in enumerate(studies[:4]):
        assert study.scan.array[2, 5, 3] == ramp(*SHAPE, 4)[3, 5, 2, k] and study.shape == SHAPE[::-1]
    assert set(boxes_of(studies[0])) == {"brain edema", "non-enhancing tumour"}
    assert studies[0].absent == ("enhancing tumour",) and all(
        s.kind == "lesion" for s in studies[0].structures
    )

    def chosen(channels):
        return [s.details["sequence"] for s in open_source("decathlon", root, channels=channels)][:2]

    assert (
        chosen("FLAIR+t1gd") == ["FLAIR", "t1gd"]
        and chosen(3) == ["T2w", "T2w"]
        and chosen([1, "flair"]) == ["T1w", "FLAIR"]
    )
    for wrong in ("PET", 4, "-1", ""):
        with pytest.raises(DatasetError, match="FLAIR, T1w"):
            open_source("decathlon", root, channels=wrong)


@pytest.mark.parametrize(
    "task, labels, names",
    [
        ("Lung", ["cancer"], ["lung tumour"]),
        ("HepaticVessel", ["Vessel", "Tumour"], ["hepatic vessels", "liver tumour"]),
        ("Colon", ["colon cancer primaries"], ["colon tumour"]),
        ("Hippocampus", ["Anterior", "Posterior"], ["anterior hippocampus", "posterior hippocampus"]),
        ("PROSTATE", ["PZ", "TZ"], ["peripheral zone of the prostate", "transition zone of the prostate"]),
        ("LeftAtrium", ["left atrium"], ["left atrium"]),
        ("Own_set", ["kidney_left", "renal_tumor"], ["left kidney", "renal tumour"]),
    ],
)
def test_decathlon_names(decathlon, task, labels, names):
    boxes = dict(enumerate([(11, 2, 1, 15, 6, 4), (11, 7, 1, 15, 12, 4)][: len(labels)], start=1))
    study = open_source("decathlon", decathlon(task, labels, {"case": boxes}))[0]
    assert list(boxes_of(study)) == names and study.find(names[0]).voxels == 48


def test_decathlon_hosts_of_ones_own(decathlon):
    root = decathlon("Kidneys", ["kidney", "tumor"], {"k1": {1: LIVER, 2: TUMOUR}})
    assert open_source("decathlon", root)[0].find("kidney").voxels == 400 - 18
    for hosts in ("2:1", {2: 1}):
        study = open_source("decathlon", root, hosts=hosts)[0]
        assert study.find("kidney").voxels == 400 and study.find("tumour").attributes["host"] == "kidney"
    for wrong in ("2:7", "tumour", 3):
        with pytest.raises(DatasetError, match="hosts"):
            open_source("decathlon", root, hosts=wrong)


def test_decathlon_what_is_wrong_with_one_case_costs_no_other(decathlon):
    root = decathlon("Liver", ["liver", "cancer"], {f"liver_{k}": {1: LIVER} for k in range(8)})
    (root / "imagesTr/liver_1.nii.gz").unlink()
    (root / "labelsTr/liver_2.nii.gz").write_bytes((root / "labelsTr/liver_2.nii.gz").read_bytes()[:90])
    save(root / "labelsTr/liver_3.nii.gz", np.zeros((20, 16, 7), np.uint8))
    save(root / "labelsTr/liver_4.nii.gz", painted({1: LIVER, 9: TUMOUR}))
    save(root / "labelsTr/liver_5.nii.gz", painted({1: LIVER}), spacing=(1, 2, 4))
    save(root / "labelsTr/liver_6.nii.gz", painted({1: LIVER}).astype(np.float32) / 2)
    (root / "imagesTr/liver_7.nii.gz").write_bytes(b"no scan at all")
    about = json.loads((root / "dataset.json").read_text())
    about["training"] += [
        {"image": "../x.nii.gz", "label": "/etc/y.nii.gz"},
        "imagesTr/liver_0.nii.gz",
        about["training"][0],
    ]
    (root / "dataset.json").write_text(json.dumps(about))
    source, found = open_source("decathlon", root), {}
    stream = iter(source)
    for k in range(len(source)):
        try:
            found[k] = next(stream).id
        except UniReasonError as error:
            found[k] = error
    assert found[0] == found[10] == "decathlon-Liver-liver_0"  # the build refuses the second of one id
    expected = {
        1: (ScanError, "liver_1"),
        2: (ScanError, "liver_2"),
        3: (LabelError, "liver_3"),
        4: (LabelError, r"[9]"),
        5: (LabelError, "liver_5"),
        6: (LabelError, "whole numbers"),
        7: (ScanError, "liver_7"),
        8: (DatasetError, "../x.nii.gz"),
        9: (DatasetError, "dataset.json"),
    }
    for k, (kind, words) in expected.items():
        assert isinstance(found[k], kind) and words in str(found[k]), found[k]


def test_decathlon_border_one_voxel_and_empty(decathlon):
    cases = {"a": {1: (0, 0, 0, 20, 16, 6), 2: (19, 15, 5, 20, 16, 6)}, "b": {}}
    whole, empty = open_source("decathlon", decathlon("Pancreas", ["pancreas", "cancer"], cases))
    assert boxes_of(whole) == {"pancreas": (0, 0, 0, 20, 16, 6), "pancreatic tumour": (19, 15, 5, 20, 16, 6)}
    assert whole.find("pancreatic tumour").voxels == 1
    assert empty.structures == () and empty.absent == ("pancreas", "pancreatic tumour")


@pytest.mark.parametrize(
    "change",
    [
        {"labels": ["liver"]},
        {"labels": {"1": 2, "x": 2}},
        {"labels": {"1": "liver", "one": "cancer"}},
        {"modality": {}},
        {"modality": {"1": "CT"}},
        {"training": []},
        {"training": "imagesTr"},
    ],
)
def test_decathlon_ill_formed_descriptions(decathlon, change):
    root = decathlon("Liver", ["liver"], {"a": {1: LIVER}}, **change)
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        open_source("decathlon", root)


def test_decathlon_missing_description_and_other_terms(decathlon, tmp_path):
    with pytest.raises(DatasetError, match=r"dataset\.json"):
        open_source("decathlon", tmp_path)
    (tmp_path / "dataset.json").write_text("{")
    with pytest.raises(DatasetError, match="JSON object"):
        open_source("decathlon", tmp_path)
    for terms, free in {
        "CC BY 4.0": True,
        "CC0": True,
        "CC-BY-NC-SA 4.0": False,
        "": False,
        "ask us": False,
    }.items():
        source = open_source("decathlon", decathlon("Liver", ["liver"], {"a": {1: LIVER}}, licence=terms))
        assert source.redistributable is free and source[0].license == source.license != ""


# --- TotalSegmentator -------------------------------------------------------------------------------------------------

META = (
    "\ufeffimage_id;age;gender;institute;study_type;split;manufacturer;scanner_model;kvp;pathology;pathology_location\r\n"
    "s0011;66.0;m;C;ct abdomen;test;siemens;;120.0;tumor;kidney\r\n"
    "s0012;;f;A;ct thorax;train;ge;;120.0;no_pathology;\r\n"
)
MASKS = {
    "kidney_left": (13, 9, 1, 17, 13, 4),
    "kidney_cyst_left": (16, 9, 2, 18, 11, 3),
    "liver": LIVER,
    "rib_left_9": (18, 3, 3, 20, 4, 5),
    "vertebrae_L1": (8, 12, 0, 12, 16, 3),
    "spleen": None,
    "autochthon_right": (5, 13, 0, 7, 15, 6),
}


@pytest.fixture
def totalsegmentator(tmp_path):
    """Two cases of one file a structure, with ``meta.csv``."""
    root = tmp_path / "Totalsegmentator_dataset_v201"
    for case in ("s0012", "s0011"):
        save(root / case / "ct.nii.gz", ramp(*SHAPE), RAS, (1.5, 1.5, 1.5))
        for name, box in MASKS.items():
            values = painted({1: box} if box else {})[
                ::-1, ::-1
            ]  # the boxes above are L-P-S, the files R-A-S
            save(root / case / "segmentations" / f"{name}.nii.gz", values, RAS, (1.5, 1.5, 1.5))
    (root / "meta.csv").write_text(META, encoding="utf-8", newline="")
    return root


def test_totalsegmentator_one_file_a_structure(totalsegmentator):
    source = open_source("totalsegmentator", totalsegmentator)
    assert isinstance(source, IndexedSource) and len(source) == 2 and source.modality == "CT"
    assert "CC BY" in source.license and not source.redistributable
    study, other = source
    assert (study.id, study.patient, other.id) == (*["totalsegmentator-s0011"] * 2, "totalsegmentator-s0012")
    assert boxes_of(study) == {
        "right deep back muscle": MASKS["autochthon_right"],
        "left kidney cyst": MASKS["kidney_cyst_left"],
        "left kidney": MASKS["kidney_left"],
        "liver": LIVER,
        "left rib 9": MASKS["rib_left_9"],
        "vertebra L1": MASKS["vertebrae_L1"],
    }
    assert study.absent == ("spleen",) and study.directions == "LPS" and study.spacing == (1.5, 1.5, 1.5)
    assert (
        study.find("left kidney").voxels == 48 and study.find("left kidney").side == "left"
    )  # overlaps the cyst
    cyst = study.find("left kidney cyst")
    assert cyst.kind == "lesion" and cyst.attributes == {"host": "left kidney", "components": 1}
    assert (study.split, other.split) == ("test", "train")
    assert study.details == {
        "scan": "s0011/ct.nii.gz",
        "age": "66.0",
        "gender": "m",
        "study_type": "ct abdomen",
        "pathology": "tumor",
        "pathology_location": "kidney",
    }
    assert "age" not in other.details
    assert study.scan.array[2, 5, 3] == ramp(*SHAPE)[::-1, ::-1][3, 5, 2]


def test_totalsegmentator_some_structures_of_one_split(totalsegmentator):
    # Other masks are not even opened.
    (totalsegmentator / "s0011/segmentations/spleen.nii.gz").write_bytes(b"broken")
    for labels in ("liver+kidney_left", ["left kidney", "Liver"]):
        source = open_source("totalsegmentator", totalsegmentator, labels=labels, split="test")
        assert len(source) == 1 and set(boxes_of(source[0])) == {"left kidney", "liver"}
        assert source[0].vocabulary == ("left kidney", "liver")
    with pytest.raises(DatasetError, match="no femur"):
        open_source("totalsegmentator", totalsegmentator, labels="liver+femur")[0]
    with pytest.raises(DatasetError, match="split val"):
        open_source("totalsegmentator", totalsegmentator, split="val")


def test_totalsegmentator_what_is_wrong_with_one_case_costs_no_other(totalsegmentator):
    case = totalsegmentator / "s0012"
    (case / "ct.nii.gz").rename(totalsegmentator / "kept")
    source = open_source("totalsegmentator", totalsegmentator)
    with pytest.raises(DatasetError, match=r"s0012.*0 scans"):
        source[1]
    assert source[0].structures
    (totalsegmentator / "kept").rename(case / "ct.nii.gz")
    (case / "segmentations/spleen.nii.gz").write_bytes(b"broken")
    with pytest.raises(ScanError, match=r"s0012.*spleen\.nii\.gz"):
        source[1]
    save(case / "segmentations/spleen.nii.gz", np.zeros((20, 16, 7), np.uint8), RAS, (1.5, 1.5, 1.5))
    with pytest.raises(LabelError, match=r"s0012.*spleen\.nii\.gz"):
        source[1]
    for path in (case / "segmentations").iterdir():
        path.unlink()
    with pytest.raises(LabelError, match=r"totalsegmentator-s0012.*at least one mask"):
        source[1]


def test_totalsegmentator_without_a_table_and_with_a_wrong_one(totalsegmentator):
    (totalsegmentator / "meta.csv").write_text("image_id,age\ns0011,66\n")
    with pytest.raises(DatasetError, match=r"meta\.csv.*semicolons"):
        open_source("totalsegmentator", totalsegmentator)
    (totalsegmentator / "meta.csv").unlink()
    source = open_source("totalsegmentator", totalsegmentator, redistributable=True, terms="CC BY 4.0")
    assert source[0].split is None and source[0].details == {"scan": "s0011/ct.nii.gz"}
    assert source.redistributable and source[0].license == "CC BY 4.0"
    with pytest.raises(DatasetError, match="redistributable"):
        open_source("totalsegmentator", totalsegmentator, redistributable="no")
    with pytest.raises(DatasetError, match=r"s0011/ct\.nii\.gz"):
        open_source("totalsegmentator", totalsegmentator / "s0011" / "segmentations")


@pytest.fixture
def multilabel(tmp_path):
    """One MRI and one CT whose label map carries its names in the header; of the MRI it does not."""
    root = tmp_path / "segmented"
    labels = painted({5: LIVER, 3: (13, 9, 1, 17, 13, 4)})
    save(root / "a/mri.nii.gz", ramp(*SHAPE))
    save(root / "a/segmentations.nii.gz", labels)
    save(root / "b/ct.nii.gz", ramp(*SHAPE))
    image = nib.load(save(root / "b/segmentations.nii.gz", labels))
    table = "".join(
        f'<Label Key="{k}" Red="0.0" Green="1.0" Blue="0.0" Alpha="1"><![CDATA[{name}]]></Label>\n'
        for k, name in {1: "spleen", 3: "kidney_left", 5: "liver"}.items()
    )
    text = f'<?xml version="1.0"?> <CaretExtension> <LabelTable>\n{table}</LabelTable></CaretExtension>'
    image.header.extensions.append(nib.nifti1.Nifti1Extension(0, text.encode()))
    image = nib.Nifti1Image(np.asarray(image.dataobj), image.affine, image.header)
    nib.save(image, root / "b/segmentations.nii.gz")
    (root / "labels.json").write_text('{"1": "spleen", "3": "kidney_left", "5": "liver"}')
    return root


def test_totalsegmentator_one_label_map(multilabel):
    source = open_source("totalsegmentator", multilabel)
    assert len(source) == 2 and source.modality == "mixed"
    with pytest.raises(DatasetError, match=r"a/segmentations\.nii\.gz.*label names.*names=labels\.json"):
        source[0]
    expected = {"left kidney": (13, 9, 1, 17, 13, 4), "liver": LIVER}
    assert boxes_of(source[1]) == expected and source[1].absent == ("spleen",)
    both = list(open_source("totalsegmentator", multilabel, names="labels.json"))
    assert [boxes_of(study) for study in both] == [expected] * 2 and [s.modality for s in both] == [
        "MRI",
        "CT",
    ]
    (some,) = list(open_source("totalsegmentator", multilabel, names="labels.json", labels="liver+spleen"))[
        :1
    ]
    assert boxes_of(some) == {"liver": LIVER} and some.absent == ("spleen",)
    (multilabel / "labels.json").write_text('{"1": "spleen", "5": "liver"}')
    with pytest.raises(LabelError, match=r"\[3\]"):
        open_source("totalsegmentator", multilabel, names="labels.json")[0]
    for names in ("../labels.json", "/labels.json", "none.json"):
        with pytest.raises(DatasetError, match=r"names|none"):
            open_source("totalsegmentator", multilabel, names=names)


# --- plain folders ----------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "clinic"
    for case in ("anna-visit1", "anna-visit2", "ben-visit1"):
        save(root / f"images/{case}.nii.gz", ramp(*SHAPE))
        save(root / f"labels/{case}.nii.gz", painted({1: LIVER, 2: TUMOUR, 3: (15, 2, 1, 19, 6, 3)}))
    (root / "names.json").write_text(
        '{"0": "background", "1": "Liver", "2": "liver_tumor", "3": null, "4": "Kidney_L"}'
    )
    return root


def test_folder_with_a_table_of_names(folder):
    source = open_source("folder", folder)
    assert isinstance(source, IndexedSource) and len(source) == 3
    assert (source.name, source.modality) == ("clinic", "medical") and not source.redistributable
    study = source[0]
    assert study.id == study.patient == "clinic-anna-visit1" and study.source == "clinic"
    assert boxes_of(study) == {"liver": LIVER, "liver tumour": TUMOUR} and study.absent == ("left kidney",)
    assert study.find("liver").voxels == 382 and study.find("liver tumour").attributes == {"components": 1}
    assert study.details == {"scan": "images/anna-visit1.nii.gz"} and study.directions == "LPS"
    assert study.scan.array.shape == study.labels.shape == study.shape
    persons = {s.patient for s in open_source("folder", folder, patient="(.+)-visit", title="house")}
    assert persons == {"house-anna", "house-ben"}
    with pytest.raises(DatasetError, match="fits"):
        open_source("folder", folder, patient="(x+)")[0]
    for wrong in ("(", "anna"):
        with pytest.raises(DatasetError, match="patient"):
            open_source("folder", folder, patient=wrong)


def test_folder_with_a_longer_description(folder):
    about = {
        "names": {"liver": 1, "liver_tumor": 2, "aorta": 3},
        "inside": {"2": 1},
        "modality": "CT",
        "license": "CC BY 4.0",
        "redistributable": True,
    }
    (folder / "names.json").write_text(json.dumps(about))
    source = open_source("folder", folder)
    study = source[0]
    assert (
        source.redistributable and study.license == source.license == "CC BY 4.0" and study.modality == "CT"
    )
    assert study.find("liver").voxels == 400
    assert study.find("liver tumour").attributes == {"host": "liver", "components": 1}
    assert open_source("folder", folder, modality="PET")[0].modality == "PET"
    for wrong in (
        {"inside": ["2"]},
        {"inside": {"b": 1}},
        {"licence": "x"},
        {"names": {"1": ""}},
        {"names": {"1": 2, "2": 2}},
    ):
        (folder / "names.json").write_text(json.dumps({**about, **wrong}))
        with pytest.raises(DatasetError, match=r"names\.json"):
            open_source("folder", folder)
    (folder / "names.json").write_text(json.dumps({**about, "inside": {"2": 1, "1": 2}}))
    with pytest.raises(LabelError, match="inside"):
        open_source("folder", folder)[0]


def test_folder_with_files_side_by_side(tmp_path):
    for case in ("b", "a"):
        save(tmp_path / f"{case}_image.nii.gz", ramp(*SHAPE))
        save(tmp_path / f"{case}_label.nii", painted({1: LIVER}))
    (tmp_path / "names.json").write_text('{"1": "liver"}')
    assert [s.id for s in open_source("folder", tmp_path, title="t")] == ["t-a", "t-b"]
    (tmp_path / "masks").mkdir()
    for case in "ab":
        (tmp_path / f"{case}_label.nii").rename(tmp_path / "masks" / f"seg-{case}-final.nii")
    source = open_source("folder", tmp_path, image="*_image", label="masks/seg-*-final")
    assert [boxes_of(s) for s in source] == [{"liver": LIVER}] * 2
    for wrong in (
        {"image": "*_image"},
        {"image": "*_*", "label": "*"},
        {"image": "*/x", "label": "*/y"},
        {"image": "../*", "label": "*"},
    ):
        with pytest.raises(DatasetError):
            open_source("folder", tmp_path, **wrong)


def test_folder_cases_that_are_incomplete_or_twofold_are_named(folder):
    (folder / "labels/anna-visit2.nii.gz").unlink()
    (folder / "images/ben-visit1.nii.gz").unlink()
    save(folder / "images/anna-visit1.nii", ramp(*SHAPE))
    (folder / "images/notes.txt").write_text("not a scan")
    (folder / "images/._anna-visit1.nii.gz").write_bytes(b"left by a Mac")
    source = open_source("folder", folder)
    assert len(source) == 3
    for k, words in enumerate(
        ["anna-visit1: .*one scan.*anna-visit1.nii, anna", "anna-visit2: .*label map", "ben-visit1: .*scan"]
    ):
        with pytest.raises(DatasetError, match=words):
            source[k]


def test_folder_without_scans_or_names(tmp_path):
    with pytest.raises(DatasetError, match=r"names\.json"):
        open_source("folder", tmp_path)
    (tmp_path / "names.json").write_text('{"1": "liver"}')
    with pytest.raises(DatasetError, match=r"images/\*\.nii\.gz"):
        open_source("folder", tmp_path)


# --- the registry -----------------------------------------------------------------------------------------------------


def test_sources_by_name(tmp_path):
    assert open_source("phantom", count=3, dimension="2d")[2].dimension == "2d"
    assert open_source("phantom", config={"shape": [4, 32, 32]})[0].shape == (4, 32, 32)
    assert open_source("brain", dimension="2d", every_mm=60).name == "mni-brain"
    for name, path, options, words in [
        ("nowhere", None, {}, "totalsegmentator"),
        ("decathlon", None, {}, "decathlon:FOLDER"),
        ("phantom", tmp_path, {}, "no path"),
        ("phantom", None, {"colour": 1}, "options of start, count.*found colour"),
        ("phantom", None, {"config": {"colour": 1}}, "PhantomConfig"),
        ("folder", tmp_path / "none", {}, "found nothing"),
    ]:
        with pytest.raises(DatasetError, match=words):
            open_source(name, path, **options)


def test_a_build_names_what_it_could_not_read_and_goes_on(decathlon, tmp_path):
    from unireason_lib.dataset.build import BuildConfig, SourceSpec, build
    from unireason_lib.dataset.parquet import read_records

    labels = ["liver", "spleen", "aorta", "stomach"]
    places = {1: LIVER, 2: (15, 8, 1, 19, 12, 5), 3: (9, 12, 0, 12, 15, 6), 4: (12, 2, 1, 16, 6, 4)}
    root = decathlon("Upper", labels, {f"case_{k}": places for k in range(4)})
    (root / "imagesTr/case_2.nii.gz").write_bytes(b"broken")
    source = SourceSpec.parse(f"decathlon:{root},channels=0")
    report = build(BuildConfig((source,), census=0, size=(6, 32, 32)), tmp_path / "set")
    assert report.unreadable == 1 and report.manifest["studies"]["offered"] == 4
    (refused,) = (json.loads(line) for line in (tmp_path / "set/refused.jsonl").read_text().splitlines())
    assert "case_2.nii.gz" in refused["detail"] and refused["source"] == "decathlon"
    records = list(read_records(tmp_path / "set"))
    assert {r.study for r in records} == {f"decathlon-Upper-case_{k}" for k in (0, 1, 3)}
    assert report.manifest["pictures"] > 0  # CC BY-SA


# --- a real scan ------------------------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path, real_scans):
    for name, there in {"ct": "abdomen_ct", "segmentations": "abdomen_seg"}.items():
        (tmp_path / "s0001").mkdir(exist_ok=True)
        (tmp_path / f"s0001/{name}.nii.gz").symlink_to(real_scans / f"{there}.nii.gz")
    (tmp_path / "labels.json").symlink_to(real_scans / "abdomen_seg_labels.json")
    return tmp_path


def test_real_label_map_by_its_header_and_by_a_table(real, real_scans):
    (study,) = open_source("totalsegmentator", real)
    (again,) = open_source("totalsegmentator", real, names="labels.json")
    assert study.structures == again.structures
    values = set(np.unique(np.asarray(nib.load(real_scans / "abdomen_seg.nii.gz").dataobj)).tolist()) - {0}
    assert {s.label for s in study.structures} == values and len(values) > 40
    assert len(study.vocabulary) == 117 and study.directions == "LPS"
    assert (
        study.shape == (30, 101, 122) and study.spacing == (3.0, 3.0, 3.0) and "warning" not in study.details
    )
    side = {
        s.name: study.location(s)[0] for s in study.structures if s.name in ("liver", "spleen", "left kidney")
    }
    assert side["liver"] == "right" and side["left kidney"] == "left"
    assert study.scan.shape == study.shape


def test_real_folder(real_scans):
    source = open_source(
        "folder", real_scans, image="*_ct", label="*_seg", names="abdomen_seg_labels.json", modality="CT"
    )
    assert [s.id for s in source] == [f"{real_scans.name}-abdomen"] and len(source[0].structures) > 40
