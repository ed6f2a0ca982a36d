"""Every source reads a scan in one place: what was built is what is read again, from spec and key."""

import pickle

import numpy as np
import pytest

from tests.dataset.sources import layouts as made
from unireason_lib.dataset.sources import SourceSpec, open_source
from unireason_lib.errors import DatasetError, ScanWarning
from unireason_lib.imaging import Volume

pytestmark = pytest.mark.filterwarnings("ignore::unireason_lib.errors.ScanWarning")
BRATS = {"channels": ("FLAIR", "T1w", "t1gd", "T2w"), "names": ("edema", "tumor")}


def prepared(root):
    return made.prepare_m3d(made.make_m3d(root / "raw"), root / "npy")


def samed2d(root):
    source = made.SAMed2D(root)
    source.add("ct_00--FLARE22--1--x_0040", {"0000_000": (10, 5, 30, 25)})
    source.add("x_ray--CRASS--2--2d_none", {"0000_000": (1, 1, 9, 9)}, mode="RGB")
    return source.open().path


WAYS = {
    "phantom": ("phantom:count=3", None),
    "phantom slices": ("phantom:dimension=2d,start=7,count=3", None),
    "phantom config": ('phantom:config={"noise": [0, 0], "shape": [4, 32, 32]},count=2', None),
    "brain": ("brain", None),
    "decathlon": ("decathlon", made.make_decathlon),
    "decathlon mirrored": ("decathlon:flip=xy", lambda r: made.make_decathlon(r, axes=made.RAS)),
    "BRATS": ("decathlon", lambda r: made.make_decathlon(r, "BRATS", **BRATS)),
    "folder": ("folder", made.make_folder),
    "totalsegmentator": ("totalsegmentator", made.make_totalsegmentator),
    "label map": ("totalsegmentator:names=labels.json", made.make_multilabel),
    "m3d-seg raw": ("m3d-seg", made.make_m3d),
    "m3d-seg prepared": ("m3d-seg", prepared),
    "sa-med2d": ("sa-med2d", samed2d),
    "sam-med2d": ("sam-med2d", made.make_demo),
}


@pytest.mark.parametrize("text, make", list(WAYS.values()), ids=list(WAYS))
def test_a_scan_read_again_is_that_of_the_study(text, make, tmp_path):
    """B1: a record that keeps spec and key gets the scan on which its boxes were measured."""
    root = make(tmp_path / "set") if make else None
    source = open_source(text, root)
    again = open_source(source.spec, root)
    assert again.spec == source.spec and len(source) > 0
    for entry, study in zip(source.index(), source, strict=True):
        known = (study.key, study.patient, study.split)
        assert known == (entry.key, entry.patient, entry.split) and study.source == source.name
        sent = pickle.loads(pickle.dumps(study))  # as between processes
        scans = study.scan, sent.scan, again.scan(study.key)
        first, *others = (s.array if isinstance(s, Volume) else s for s in scans)
        assert all(np.array_equal(first, other) for other in others)
        assert first.shape[: len(study.shape)] == study.shape == study.labels.shape


def test_labels_and_scan_lie_on_the_same_voxels(tmp_path):
    """B1: each layout's own reading (mirrored, X Y Z, one of four channels) applies to the scan."""
    x, y, z = 3, 5, 2  # a voxel of the file, in L-P-S
    mirrored = made.make_decathlon(tmp_path / "a", axes=made.RAS)
    flipped = open_source("decathlon", mirrored, flip="xy")
    assert flipped[0].scan.array[z, y, x] == made.ramp(*made.SHAPE)[x, y, z]
    brats = open_source("decathlon", made.make_decathlon(tmp_path / "b", "BRATS", **BRATS))
    for k in range(4):
        assert brats[k].scan.array[z, y, x] == made.ramp(*made.SHAPE, 4)[x, y, z, k]
    raw = open_source("m3d-seg", made.make_m3d(tmp_path / "c"))
    image = np.load(tmp_path / "c/0004/case_0/image.npy")
    assert raw[0].scan.array[z, y, x] == image[0, x, y, z]
    masks = open_source("totalsegmentator", made.make_totalsegmentator(tmp_path / "d"))
    assert masks[0].scan.array[z, y, x] == made.ramp(*made.SHAPE)[::-1, ::-1][x, y, z]


@pytest.mark.parametrize(
    "text, spec",
    [
        ("phantom", SourceSpec("phantom")),
        ("a:/x,y,flip=xy,n=3", SourceSpec("a", "/x,y", {"flip": "xy", "n": 3})),
        ('a:c={"s": [1, 2]},d=null', SourceSpec("a", None, {"c": {"s": [1, 2]}, "d": None})),
        ('a:codes="23"', SourceSpec("a", None, {"codes": "23"})),
        ('a:c={"t": "u,v\\u003dw"}', SourceSpec("a", None, {"c": {"t": "u,v=w"}})),
    ],
)
def test_specifications_are_read_and_written(text, spec):
    assert SourceSpec.parse(text) == spec and SourceSpec.parse(str(spec)) == spec


def test_sources_by_name(tmp_path):
    for name, words in {
        "nowhere": "totalsegmentator",
        "phantom:colour=1": "start, count.*colour",
        f"m3d-seg:{tmp_path}": "folder with cases of m3d-seg",
    }.items():
        with pytest.raises(DatasetError, match=words):
            open_source(name)


def test_two_folders_of_one_base_name_have_two_ids(tmp_path):
    """B15, in every source whose files can lie deeper than one level."""
    msd, m3d, demo = (tmp_path / name for name in ("d", "m", "s"))
    pairs = []
    for f in "ab":
        image, label = f"{f}/imagesTr/x.nii.gz", f"{f}/labelsTr/x.nii.gz"
        made.save_nifti(msd / image, made.ramp(*made.SHAPE))
        made.save_nifti(msd / label, made.painted({1: made.LIVER}))
        pairs.append({"image": image, "label": label})
        made.save_image(demo / f"images/{f}/x_1.png")
        made.save_mask(demo / f"masks/{f}/x_1_liver_000.png", (1, 1, 9, 9))
    made.make_decathlon(msd, training=pairs)
    cases = [made.add_m3d(m3d, f"0004/{f}/case", made.channels(made.M3D_CYST)) for f in "ab"]
    made.list_m3d(m3d, "0004", ["liver"], cases)
    for name, path in {"decathlon": msd, "m3d-seg": m3d, "sam-med2d": demo}.items():
        studies = list(open_source(name, path))
        assert len({s.id for s in studies}) == len({s.key for s in studies}) == 2, name
        assert len({s.patient for s in studies}) == 2, name


def test_the_most_protected_split_wins_with_a_warning(tmp_path):
    """B4: a case in both lists must not become training data."""
    root = tmp_path / "m"
    case = made.add_m3d(root, "0004/case", made.channels(made.M3D_CYST))
    made.list_m3d(root, "0004", ["liver"], [case], [case])
    with pytest.warns(ScanWarning, match=r"1 cases.*0004/case/image\.npy"):
        source = open_source("m3d-seg", root)
    assert [entry.split for entry in source.index()] == ["test"]


def test_a_folder_is_listed_once(tmp_path):
    """A study is asked for by its number in the index, which was made anew for each of them."""
    source = open_source("folder", made.make_folder(tmp_path))
    assert source.index() is source.index()
