"""SA-Med2D-20M and the SAM-Med2D demo: made folders in exactly their layouts, and the demo itself when it is there."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unireason_lib.boxes import Box2D
from unireason_lib.dataset.ledger import source_state
from unireason_lib.dataset.plan import SourceSpec
from unireason_lib.dataset.sources import IndexedSource, open_source
from unireason_lib.dataset.sources.samed2d import PictureName, SAMed2DSource, SAMMed2DSource
from unireason_lib.errors import DatasetError, LabelError, ScanError, UniReasonError

CLASSES = {
    "FLARE22": {
        "liver": "0000",
        "right_kidney": "0001",
        "kidney_tumor": "0002",
        "union_all_kidney_tumor_right_kidney": "0003",
        "class4": "0004",
        "spleen": "0005",
    },
    "CRASS": {"clavicle": "0000"},
    "ichallenge_adam_task2": {"optic_disc": "0000"},
}


def picture(path: Path, shape=(40, 60), seed=0, mode="L") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (*shape, 3), np.uint8)
    Image.fromarray(values).convert(mode).save(path)


def mask(path: Path, *boxes, shape=(40, 60), value=255) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.zeros(shape, np.uint8)
    for x1, y1, x2, y2 in boxes:
        values[y1:y2, x1:x2] = value
    Image.fromarray(values).save(path)


class Made:
    """A folder in the layout of SA-Med2D-20M that grows by one picture after the other."""

    def __init__(self, root: Path):
        self.root, self.entries = root / "SAMed2Dv1", {}
        self.root.mkdir(parents=True)

    def add(self, stem: str, masks: dict, shape=(40, 60), mode="L", value=255) -> str:
        """``masks``: class_instance -> box, or (box, shape of the mask)."""
        picture(self.root / "images" / f"{stem}.png", shape, mode=mode)
        for suffix, box in masks.items():
            box, size = box if isinstance(box, tuple) and isinstance(box[0], tuple) else (box, shape)
            boxes = [box] if box else []
            mask(self.root / "masks" / f"{stem}--{suffix}.png", *boxes, shape=size, value=value)
        self.entries[f"images/{stem}.png"] = [f"masks/{stem}--{suffix}.png" for suffix in masks]
        return stem

    def open(self, indent=None, classes=CLASSES, **options) -> SAMed2DSource:
        (self.root / "SAMed2D_v1.json").write_text(json.dumps(self.entries, indent=indent))
        (self.root / "SAMed2D_v1_class_mapping_id.json").write_text(json.dumps(classes))
        return open_source("sa-med2d", self.root.parent, **options)


@pytest.fixture
def made(tmp_path) -> Made:
    return Made(tmp_path / "data")


# --- SA-Med2D-20M -----------------------------------------------------------------------------------------------------


def test_names_boxes_and_what_is_said_about_a_picture(made):
    made.add(
        "ct_00--FLARE22--Case_00011--x_0040",
        {"0000_000": (10, 5, 30, 25), "0001_000": (40, 8, 50, 20), "0002_000": (42, 10, 46, 14)},
    )
    made.add("x_ray--CRASS--JPCLN--001--2d_none", {"0000_000": (1, 1, 9, 9)}, mode="RGB", value=1)
    made.add("mr_t1ce--FLARE22--Case_00011--z_0007", {"0000_000": (0, 0, 60, 40)})
    source = made.open(indent=2)
    assert isinstance(source, IndexedSource) and len(source) == 3
    assert source.name == "sa-med2d" and "NC-SA" in source.license and not source.redistributable
    ct, xray, mr = source
    assert ct.id == "sa-med2d-ct_00--FLARE22--Case_00011--x_0040" and ct.dimension == "2d"
    assert ct.patient == mr.patient == "sa-med2d-FLARE22--Case_00011" != xray.patient
    assert [s.modality for s in (ct, xray, mr)] == ["CT", "X-ray", "MRI"]
    assert ct.shape == (40, 60) and ct.scan.shape == (40, 60, 3) and xray.scan.shape == (40, 60, 3)
    assert {s.name: s.box for s in ct.structures} == {
        "liver": Box2D(10, 5, 30, 25),
        "right kidney": Box2D(40, 8, 50, 20),
        "kidney tumour": Box2D(42, 10, 46, 14),
    }
    tumour = ct.find("kidney tumour")
    assert tumour.kind == "lesion" and tumour.attributes == {"components": 1}
    assert ct.find("right kidney").voxels == 120  # masks overlap: the kidney keeps what the tumour covers
    assert ct.directions == mr.directions == "" and ct.spacing is None
    assert ct.absent == () and ct.license == source.license
    assert ct.details == {
        "scan": "SAMed2Dv1/images/ct_00--FLARE22--Case_00011--x_0040.png",
        "dataset": "FLARE22",
        "axis": "x",
        "slice": 40,
    }
    assert mr.details["sequence"] == "t1ce" and mr.details["axis"] == "z"
    assert xray.find("clavicle").box == Box2D(1, 1, 9, 9)  # 0/1 masks like 0/255
    assert "axis" not in xray.details and xray.details["dataset"] == "CRASS"
    assert xray.patient == "sa-med2d-CRASS--JPCLN--001"


@pytest.mark.parametrize(
    "stem, expected",
    [
        ("ct_00--CAD_PE--001--x_0125", PictureName("CT", "", "CAD_PE", "001", "x", 125)),
        ("mr_t1gd--MSD--a_b-c--z_0001", PictureName("MRI", "t1gd", "MSD", "a_b-c", "z", 1)),
        ("x_ray--covid--p1--2d_none", PictureName("X-ray", "", "covid", "p1", "2d", None)),
        (
            "fundus_photography--gamma--7--2d_none",
            PictureName("fundus photography", "", "gamma", "7", "2d", None),
        ),
        ("ct_tmax--ISLES2018--case--y_0003", PictureName("CT", "tmax", "ISLES2018", "case", "y", 3)),
        ("oct_00--set--9--2d_none", PictureName("oct", "", "set", "9", "2d", None)),
    ],
)
def test_names_of_pictures(stem, expected):
    assert PictureName.parse(stem) == expected


@pytest.mark.parametrize(
    "stem", ["amos_0004_75", "ct_00--FLARE22--x_0001", "--a--b--c_1", "ct_00--a--b--0001"]
)
def test_other_names_are_refused(stem):
    with pytest.raises(DatasetError, match="modality_sub--dataset--case--axis_slice"):
        PictureName.parse(stem)


def test_unions_and_nameless_classes_are_skipped_and_instances_stay_apart(made):
    masks = {
        "0002_000": (1, 1, 5, 5),
        "0002_001": (20, 20, 30, 30),
        "0003_000": (0, 0, 40, 40),
        "0004_000": (2, 2, 9, 9),
    }
    made.add("ct_00--FLARE22--1--z_0001", masks)
    study = made.open()[0]
    assert [(s.name, s.box) for s in study.structures] == [
        ("kidney tumour", Box2D(1, 1, 5, 5)),
        ("kidney tumour", Box2D(20, 20, 30, 30)),
    ]
    assert study.vocabulary == ("kidney tumour",)


def test_an_id_shared_with_a_union_is_the_class(made):
    made.add("ct_00--FLARE22--1--z_0001", {"0001_000": (1, 1, 5, 5)})
    classes = {"FLARE22": {"union_left_right_kidney": "0001", "right_kidney": "0001"}}
    assert made.open(classes=classes)[0].structures[0].name == "right kidney"


def test_a_change_is_seen_without_a_look_at_every_file(made, monkeypatch):
    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (1, 1, 9, 9)})
    spec = SourceSpec("sa-med2d", str(made.root.parent))
    monkeypatch.setattr("unireason_lib.dataset.ledger._listing", None)  # would be called for every file
    states = [source_state(spec, made.open())]
    assert source_state(spec, open_source("sa-med2d", made.root.parent)) == states[0]
    made.add("ct_00--FLARE22--1--z_0002", {"0000_000": (1, 1, 9, 9)})
    states.append(source_state(spec, open_source("sa-med2d", made.root.parent)))  # not in the list yet
    states.append(source_state(spec, made.open()))
    assert len({state["state"] for state in states}) == 3
    assert states[0]["files"] == states[1]["files"] != states[2]["files"]


def test_a_picture_without_a_named_structure_is_refused(made):
    made.add("ct_00--FLARE22--1--z_0001", {"0003_000": (0, 0, 40, 40)})
    with pytest.raises(DatasetError, match="named structure"):
        made.open()[0]


def test_empty_masks_mean_absent_and_the_mapping_can_be_believed(made):
    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (1, 1, 9, 9), "0005_000": None})
    assert made.open()[0].absent == ("spleen",)
    assert made.open(absent="mapping")[0].absent == ("spleen", "right kidney", "kidney tumour")
    with pytest.raises(DatasetError, match="masks or mapping"):
        made.open(absent="yes")


def test_border_one_pixel_and_all_empty(made):
    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (0, 0, 60, 40), "0002_000": (59, 39, 60, 40)})
    made.add("ct_00--FLARE22--1--z_0002", {"0000_000": None})
    source = made.open()
    whole = source[0]
    assert whole.find("liver").box == Box2D(0, 0, 60, 40)
    assert whole.find("kidney tumour").voxels == 1 and whole.find("kidney tumour").box == Box2D(
        59, 39, 60, 40
    )
    assert source[1].structures == () and source[1].absent == ("liver",)


def test_masks_of_another_size_are_stretched_with_a_note_or_refused(made):
    half = ((5, 2, 15, 12), (20, 30))
    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": half})
    made.add("ct_00--FLARE22--1--z_0002", {"0000_000": ((5, 2, 15, 12), (60, 40))})
    made.add(
        "ct_00--FLARE22--1--z_0003", {"0000_000": ((5, 2, 15, 12), (27, 41))}
    )  # 27.33 rows would be exact
    source = made.open()
    study = source[0]
    assert study.find("liver").box == Box2D(10, 4, 30, 24)
    assert study.details["notes"] == (
        "ct_00--FLARE22--1--z_0001--0000_000.png: stretched from 20 x 30 to 40 x 60",
    )
    with pytest.raises(LabelError, match=r"z_0002--0000_000\.png.*40 x 60, found 60 x 40"):
        source[1]
    assert source[2].find("liver").box == Box2D(7, 3, 22, 18)


def test_masks_that_are_0_inside_are_turned_around_in_the_set_where_they_occur(made):
    stem = made.add("fundus_photography--ichallenge_adam_task2--1--2d_none", {"0000_000": (0, 0, 60, 40)})
    hole = np.ones((40, 60), np.uint8)
    hole[10:20, 30:45] = 0
    Image.fromarray(hole).save(made.root / "masks" / f"{stem}--0000_000.png")
    made.add("fundus_photography--ichallenge_adam_task2--2--2d_none", {"0000_000": (30, 10, 45, 20)})
    studies = list(made.open())
    assert [s.find("optic disc").box for s in studies] == [Box2D(30, 10, 45, 20)] * 2
    assert "turned around" in studies[0].details["notes"][0] and "notes" not in studies[1].details


def test_unknown_classes_and_data_sets_are_named(made):
    made.add(
        "ct_00--FLARE22--1--z_0001", {"0000_000": (1, 1, 5, 5), "0077_000": (1, 1, 5, 5), "0099_000": None}
    )
    made.add("ct_00--Unheard--1--z_0001", {"0000_000": (1, 1, 5, 5)})
    source = made.open()
    with pytest.raises(LabelError, match=r"FLARE22 1: .*unknown class ids 0077, 0099"):
        source[0]
    with pytest.raises(LabelError, match=r"Unheard 1: .*unknown class ids 0000"):
        source[1]


def test_what_is_wrong_with_one_picture_costs_no_other(made):
    for k in range(6):
        made.add(f"ct_00--FLARE22--{k}--z_0001", {"0000_000": (1, 1, 5, 5)})
    (made.root / "images" / "ct_00--FLARE22--1--z_0001.png").unlink()
    (made.root / "images" / "ct_00--FLARE22--2--z_0001.png").write_bytes(b"not a picture")
    (made.root / "masks" / "ct_00--FLARE22--3--z_0001--0000_000.png").unlink()
    broken = made.root / "masks" / "ct_00--FLARE22--4--z_0001--0000_000.png"
    broken.write_bytes(broken.read_bytes()[:-30])
    source = made.open()
    studies, errors = [], []
    stream = iter(source)
    for _ in range(6):
        try:
            studies.append(next(stream).id[-9:])
        except UniReasonError as error:
            errors.append(error)
    assert studies == ["0--z_0001", "5--z_0001"]
    assert [type(e) for e in errors] == [ScanError] * 4
    for k, error in enumerate(errors, start=1):
        assert f"FLARE22--{k}--z_0001" in str(error)
    # the pixels of a picture are read when they are asked for, not before
    image = made.root / "images" / "ct_00--FLARE22--5--z_0001.png"
    image.write_bytes(image.read_bytes()[:200])
    with pytest.raises(ScanError, match="FLARE22--5"):
        _ = source[5].scan


@pytest.mark.parametrize(
    "written", ["../secret.png", "/etc/passwd", "images/../../x.png", "C:/x.png", "images\\..\\x.png"]
)
def test_paths_never_leave_the_folder(made, written):
    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (1, 1, 5, 5)})
    stem = "ct_00--FLARE22--2--z_0001"
    made.entries[f"images/{stem}.png"] = [f"{written[:-4]}/{stem}--0000_000.png"]
    made.entries[f"{written[:-4]}/{stem}.png"] = [f"masks/{stem}--0000_000.png"]
    source = made.open()
    assert source[0].structures
    picture(made.root / "images" / f"{stem}.png")
    for k in (1, 2):
        with pytest.raises(DatasetError, match=r"below its own folder|axis_slice"):
            source[k]


def test_a_picture_listed_twice_appears_twice_under_one_id(made):
    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (1, 1, 5, 5)})
    source = made.open()
    text = (made.root / "SAMed2D_v1.json").read_text()
    (made.root / "SAMed2D_v1.json").write_text(text[:-1] + ", " + text[1:])
    source = SAMed2DSource(made.root)
    assert [s.id for s in source] == ["sa-med2d-ct_00--FLARE22--1--z_0001"] * 2


def test_choosing_data_sets_and_modalities_keeps_the_order_of_the_list(made):
    for stem in ("mr_t1--B--2--z_0001", "ct_00--A--1--z_0001", "ct_00--C--1--z_0001", "mr_t2--A--1--x_0001"):
        made.add(stem, {"0000_000": (1, 1, 5, 5)})
    classes = {name: {"liver": "0000"} for name in "ABC"}

    def chosen(**options):
        return [s.id.removeprefix("sa-med2d-") for s in made.open(classes=classes, **options)]

    assert chosen(datasets="A+C") == ["ct_00--A--1--z_0001", "ct_00--C--1--z_0001", "mr_t2--A--1--x_0001"]
    assert chosen(modalities="mr") == ["mr_t1--B--2--z_0001", "mr_t2--A--1--x_0001"]
    assert chosen(modalities=["mr_t2"], datasets=["A"]) == ["mr_t2--A--1--x_0001"]
    with pytest.raises(DatasetError, match="chosen sets"):
        made.open(classes=classes, datasets="D")


@pytest.mark.parametrize(
    "text", ["", "[]", "{", "nonsense", '{"a": 1}', '{"a": ["b"]', '{"a": ["b"]} {', '{"a": ["b",}']
)
def test_a_damaged_list_is_refused_when_the_source_is_opened(made, text):
    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (1, 1, 5, 5)})
    made.open()
    (made.root / "SAMed2D_v1.json").write_text(text)
    with pytest.raises(DatasetError, match=r"SAMed2D_v1\.json"):
        SAMed2DSource(made.root)


def test_the_list_may_be_written_in_any_json(made):
    made.add("ct_00--FLARE22--a]b--z_0001", {"0000_000": (1, 1, 5, 5)})
    made.add("ct_00--FLARE22--ü--z_0002", {"0000_000": (2, 2, 6, 6)})
    ids = [s.id for s in made.open()]
    assert ids == ["sa-med2d-ct_00--FLARE22--a]b--z_0001", "sa-med2d-ct_00--FLARE22--ü--z_0002"]
    text = json.dumps(made.entries, indent=4, ensure_ascii=False).replace("/", "\\/")
    (made.root / "SAMed2D_v1.json").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [s.id for s in SAMed2DSource(made.root)] == ids


def test_an_entry_that_is_no_json_costs_that_picture_only(made):
    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (1, 1, 5, 5)})
    made.add("ct_00--FLARE22--2--z_0001", {"0000_000": (1, 1, 5, 5)})
    made.open()
    path = made.root / "SAMed2D_v1.json"
    path.write_text(path.read_text().replace("images/ct_00--FLARE22--1", "images/ct_00--FLARE22--1\\q"))
    source = SAMed2DSource(made.root)
    with pytest.raises(DatasetError, match=r"JSON at byte 1"):
        source[0]
    assert source[1].structures


def test_a_mask_listed_twice_counts_once(made):
    stem = made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (1, 1, 5, 5)})
    made.entries[f"images/{stem}.png"] *= 2
    assert len(made.open()[0].structures) == 1


def test_missing_files_and_folders(tmp_path, made):
    with pytest.raises(DatasetError, match="SA-Med2D-20M"):
        open_source("sa-med2d", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match=r"SAMed2D_v1\.json"):
        open_source("sa-med2d", tmp_path)
    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (1, 1, 5, 5)})
    made.open()
    (made.root / "SAMed2D_v1_class_mapping_id.json").write_text('{"FLARE22": ["liver"]}')
    with pytest.raises(DatasetError, match="class_mapping_id"):
        SAMed2DSource(made.root)


def test_a_long_list_takes_little_memory(made):
    import tracemalloc

    made.add("ct_00--FLARE22--1--z_0001", {"0000_000": (1, 1, 5, 5)})
    made.open()
    entries = {
        f"images/ct_00--FLARE22--{k:06d}--x_0001.png": ["masks/m--0000_000.png"] * 4 for k in range(20_000)
    }
    made.entries.update(entries)
    made.open()
    tracemalloc.start()
    source = SAMed2DSource(made.root)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(source) == 20_001
    assert kept < 40 * 20_000  # bytes; the names alone are 6 times as much
    with pytest.raises(ScanError, match="FLARE22--019999"):
        source[20_000]


# --- the demo of SAM-Med2D --------------------------------------------------------------------------------------------


@pytest.fixture
def demo(tmp_path) -> Path:
    """Two slices of one case, one whose name begins like the other's, and a slice of TotalSegmentator."""
    root = tmp_path / "data_demo"
    for stem in ("amos_0507_31", "amos_0507_31_2", "s0619_32"):
        picture(root / "images" / f"{stem}.png", (30, 50), mode="RGB")
    for name, box in {
        "amos_0507_31_inferior_vena_cava_000": (5, 5, 9, 9),
        "amos_0507_31_2_liver_000": (1, 2, 20, 22),
        "s0619_32_hip_left_000": (1, 1, 9, 9),
        "s0619_32_hip_left_001": (20, 1, 29, 9),
        "s0619_32_vertebrae_T9_000": (30, 10, 40, 20),
    }.items():
        mask(root / "masks" / f"{name}.png", box, shape=(30, 50))
    return root


def test_demo_by_the_names_of_its_files(demo):
    source = open_source("sam-med2d", demo)
    assert isinstance(source, IndexedSource) and len(source) == 3 and source.modality == "mixed"
    first, second, third = source
    assert [s.id for s in source] == [
        f"sam-med2d-{s}" for s in ("amos_0507_31", "amos_0507_31_2", "s0619_32")
    ]
    assert [s.name for s in first.structures] == ["inferior vena cava"]
    assert [s.name for s in second.structures] == ["liver"] and second.find("liver").box == Box2D(
        1, 2, 20, 22
    )
    assert [s.name for s in third.structures] == ["left hip", "left hip", "vertebra T9"]
    assert (first.modality, third.modality) == ("MRI", "CT") and third.patient == "sam-med2d-s0619"
    assert first.patient == "sam-med2d-amos_0507" and first.split is None and first.directions == ""
    assert first.details == {"scan": "images/amos_0507_31.png"} and third.scan.shape == (30, 50, 3)
    assert {s.modality for s in SAMMed2DSource(demo, modality="CT")} == {"CT"}


def test_demo_by_its_lists(demo):
    (demo / "image2label_train.json").write_text(
        json.dumps({"data_demo/images/s0619_32.png": ["data_demo/masks/s0619_32_vertebrae_T9_000.png"]})
    )
    (demo / "label2image_test.json").write_text(
        json.dumps({"data_demo/masks/amos_0507_31_2_liver_000.png": "data_demo/images/amos_0507_31_2.png"})
    )
    studies = list(SAMMed2DSource(demo))
    assert [(s.id, s.split, [x.name for x in s.structures]) for s in studies] == [
        ("sam-med2d-s0619_32", "train", ["vertebra T9"]),
        ("sam-med2d-amos_0507_31_2", "test", ["liver"]),
    ]
    (demo / "label2image_test.json").write_text('{"masks/a.png": 3}')
    with pytest.raises(DatasetError, match=r"label2image_test\.json"):
        SAMMed2DSource(demo)


def test_demo_items_that_are_wrong_are_named(demo):
    (demo / "image2label_train.json").write_text(
        json.dumps(
            {
                "images/s0619_32.png": ["masks/amos_0507_31_2_liver_000.png"],
                "images/..": ["masks/.._liver_000.png"],
                "images/amos_0507_31.png": [],
                "images/gone_1.png": ["masks/gone_1_liver_000.png"],
            }
        )
    )
    source = SAMMed2DSource(demo)
    for k, words in enumerate(["amos_0507_31_2_liver_000", "below its own folder", "no mask", "gone_1.png"]):
        with pytest.raises((DatasetError, ScanError), match=words):
            source[k]
    shutil.rmtree(demo / "images")
    (demo / "image2label_train.json").unlink()
    with pytest.raises(DatasetError, match="images"):
        SAMMed2DSource(demo)


def test_real_demo(samed2d_demo):
    abdomen, thorax = open_source("sam-med2d", samed2d_demo)
    assert [s.name for s in abdomen.structures] == ["aorta", "inferior vena cava", "liver"]
    assert abdomen.find("aorta").box == Box2D(289, 203, 316, 230) and abdomen.scan.shape == (512, 512, 3)
    assert thorax.modality == "CT" and thorax.shape == (181, 258) and len(thorax.structures) == 15
    assert "right lung middle lobe" in {s.name for s in thorax.structures}
