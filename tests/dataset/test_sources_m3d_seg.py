"""M3D-Seg in made folders of exactly its two layouts: as it is downloaded, and as its authors' script prepares it."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from scipy import sparse

from unireason_lib.dataset.sources import IndexedSource, open_source
from unireason_lib.errors import DatasetError, LabelError, ScanError, UniReasonError

SHAPE = (12, 10, 6)  # X, Y, Z
KIDNEY, TUMOUR, CYST = (1, 1, 1, 6, 7, 5), (2, 2, 2, 5, 5, 4), (8, 8, 0, 12, 10, 2)
LABELS = ["kidney", "kidney tumor", "kidney cyst"]


def channels(*boxes, shape=SHAPE) -> np.ndarray:
    """(C, X, Y, Z), 1 inside of each box; later boxes are cut out of earlier ones, like values of one label map."""
    stack = np.zeros((len(boxes), *shape), np.int32)
    for k, box in enumerate(boxes):
        if box:
            x1, y1, z1, x2, y2, z2 = box
            stack[:, x1:x2, y1:y2, z1:z2] = 0
            stack[k, x1:x2, y1:y2, z1:z2] = 1
    return stack


def image(shape=SHAPE) -> np.ndarray:
    return np.random.default_rng(5).normal(size=(1, *shape)).astype(np.float32)


def add_raw(root: Path, code: str, case: str, masks: np.ndarray) -> dict:
    """One case as the authors' ``m3d_seg_data_preprocess`` writes it, and its entry in the list."""
    folder = root / code / case
    folder.mkdir(parents=True)
    np.save(folder / "image.npy", image())
    sparse.save_npz(folder / f"mask_{masks.shape}", sparse.csr_matrix(masks.reshape(len(masks), -1)))
    return {"image": f"{code}/{case}/image.npy", "label": f"{code}/{case}/mask_{masks.shape}.npz"}


def add_list(root: Path, code: str, labels: list[str], train=(), test=()) -> None:
    about = {
        "name": f"{code} Dataset",
        "description": f"{code} Dataset",
        "tensorImageSize": "4D",
        "modality": {"0": "CT"},
        "labels": {"0": "background", **{str(k): name for k, name in enumerate(labels, start=1)}},
        "numTrain": len(train),
        "numTest": len(test),
        "train": list(train),
        "test": list(test),
    }
    (root / code / f"{code}.json").write_text(json.dumps(about, indent=2))


@pytest.fixture
def raw(tmp_path) -> Path:
    root = tmp_path / "M3D_Seg"
    train = [add_raw(root, "0004", "case_00000", channels(KIDNEY, TUMOUR, CYST))]
    test = [add_raw(root, "0004", "case_00001", channels(KIDNEY, None, None))]
    add_list(root, "0004", LABELS, train, test)
    add_list(root, "0023", ["spleen"], [add_raw(root, "0023", "spleen_2", channels(CYST))])
    return root


def boxes_of(study) -> dict:
    return {structure.name: structure.box.as_tuple() for structure in study.structures}


def test_raw(raw):
    source = open_source("m3d-seg", raw)
    assert isinstance(source, IndexedSource) and len(source) == 3 and source.modality == "CT"
    assert not source.redistributable
    first, second, third = source
    assert (first.id, first.patient, first.source) == (*["m3d-seg-0004-case_00000"] * 2, "m3d-seg")
    assert boxes_of(first) == {"kidney": (1, 1, 0, 12, 10, 5), "kidney tumour": TUMOUR, "kidney cyst": CYST}
    assert first.find("kidney").voxels == 5 * 6 * 4 + 4 * 2 * 2  # the whole, with both lesions
    assert first.find("kidney tumour").voxels == 18
    assert first.find("kidney tumour").attributes == {"host": "kidney", "components": 1}
    assert first.shape == SHAPE[::-1] and first.directions == "" and first.spacing is None
    assert (
        "left and right" in first.details["warning"] and first.details["scan"] == "0004/case_00000/image.npy"
    )
    assert second.absent == ("kidney tumour", "kidney cyst") and boxes_of(second) == {"kidney": KIDNEY}
    assert (first.split, second.split, third.split) == ("train", "test", "train")
    assert third.find("spleen").box.as_tuple() == CYST
    scan = first.scan
    assert not scan.has_affine and scan.shape == first.shape
    assert scan.array[3, 7, 2] == image()[0, 2, 7, 3]  # (x, y, z) became (z, y, x)
    assert [s.id for s in open_source("m3d-seg", raw, codes="23")] == ["m3d-seg-0023-spleen_2"]


def test_the_organ_with_its_lesions(raw):
    study = open_source("m3d-seg", raw)[0]
    kidney = study.mask(study.find("kidney"))
    expected = channels(KIDNEY, TUMOUR, CYST).any(axis=0).T
    assert (kidney == expected).all()


def prepare(raw: Path, target: Path, zeros: bool, prefix: str) -> Path:
    """What ``m3d_seg_data_prepare`` makes of raw cases (without the resizing), in its two versions."""
    for code in ("0004", "0023"):
        about = json.loads((raw / code / f"{code}.json").read_text())
        for split in ("train", "test"):
            entries = []
            for pair in about[split]:
                folder = (target / pair["image"]).parent
                (folder / "masks").mkdir(parents=True)
                stack = np.swapaxes(np.load(raw / pair["image"]), -1, -3)
                np.save(folder / "image.npy", (stack - stack.min()) / (stack.max() - stack.min()))
                count = len(about["labels"]) - 1
                flat = sparse.load_npz(raw / pair["label"]).toarray().reshape(count, *SHAPE)
                for k, mask in enumerate(np.swapaxes(flat, -1, -3).astype(bool)):
                    name = f"masks/mask_{k}.npy"
                    if mask.any():
                        np.save(folder / name, mask[None])
                    elif zeros:
                        np.save(folder / name, np.zeros((1, 1, 1, 1), np.int8))
                    else:
                        continue
                    where = f"{prefix}{Path(pair['image']).parent}"
                    entries.append({"image": f"{where}/image.npy", "label": f"{where}/{name}"})
            about[split] = entries
        (target / code / f"{code}.json").write_text(json.dumps(about))
    return target


@pytest.mark.parametrize("zeros, prefix", [(True, ""), (False, "/another/machine/M3D_Seg_npy/")])
def test_prepared(raw, tmp_path, zeros, prefix):
    source = open_source("m3d-seg", prepare(raw, tmp_path / "M3D_Seg_npy", zeros, prefix))
    before = list(open_source("m3d-seg", raw))
    assert len(source) == 3
    for study, old in zip(source, before, strict=True):
        assert (study.id, study.split, study.vocabulary) == (old.id, old.split, old.vocabulary)
        assert study.structures == old.structures and (study.labels == old.labels).all()
        assert study.directions == "" and study.details == old.details
        assert study.scan.shape == study.shape and 0 <= study.scan.array.min() < study.scan.array.max() <= 1


def test_what_is_wrong_with_one_case_costs_no_other(raw):
    cases = {
        name: channels(CYST) for name in ("ok", "gone", "broken", "shape", "many", "turned", "flat", "named")
    }
    entries = [add_raw(raw, "0008", name, masks) for name, masks in cases.items()]
    folder = raw / "0008"
    (folder / "gone/image.npy").unlink()
    for path in (folder / "broken").glob("mask_*"):
        path.write_bytes(path.read_bytes()[:-60])
    np.save(folder / "shape/image.npy", np.zeros((1, 12, 10, 7), np.float32))
    entries[4] = {**entries[4], "label": add_raw(raw, "0008", "two", channels(CYST, KIDNEY))["label"]}
    np.save(folder / "flat/image.npy", np.zeros((12, 10, 6), np.float32))
    (path,) = (folder / "turned").glob("mask_*")
    path.rename(folder / "turned/mask_(1, 10, 12, 6).npz")
    entries[5]["label"] = "0008/turned/mask_(1, 10, 12, 6).npz"
    entries[7]["image"] = "elsewhere/image.npy"
    entries += [
        {"image": "0008/../../0008/x/../image.npy", "label": "x"},
        {"image": "/0008/../image.npy", "label": "x"},
    ]
    add_list(raw, "0008", ["pancreas"], entries)
    source = open_source("m3d-seg", raw, codes="0008")
    found = {}
    stream = iter(source)
    for k in range(len(source)):
        try:
            found[k] = next(stream).id
        except UniReasonError as error:
            found[k] = error
    assert found[0] == "m3d-seg-0008-ok"
    expected = {
        1: (ScanError, "gone/image.npy"),
        2: (ScanError, "broken/mask_"),
        3: (LabelError, "shape/mask_"),
        4: (LabelError, "unknown label ids 2"),
        5: (LabelError, "turned/mask_"),
        6: (ScanError, "flat/image.npy"),
        7: (DatasetError, "elsewhere/image.npy"),
        8: (DatasetError, "below its own folder"),
        9: (DatasetError, "below its own folder"),
    }
    for k, (kind, words) in expected.items():
        assert isinstance(found[k], kind) and words in str(found[k]), found[k]


def write_csr(path: Path, **changes) -> None:
    """A matrix as SciPy saves it, with some of its arrays replaced."""
    matrix = sparse.csr_matrix(channels(CYST, KIDNEY).reshape(2, -1))
    arrays = {
        "indices": matrix.indices,
        "indptr": matrix.indptr,
        "format": np.array(b"csr"),
        "shape": np.array(matrix.shape),
        "data": matrix.data,
    }
    np.savez(path, **{**arrays, **changes})


@pytest.mark.parametrize(
    "changes",
    [
        {"indices": np.array([10**6] * 136)},
        {"indices": np.array([-1] * 136)},
        {"indptr": np.array([0, 500, 136])},
        {"indptr": np.array([0, 136])},
        {"format": np.array(b"csc")},
        {"shape": np.array([2, 700])},
        {"shape": np.array(3)},
        {"indices": np.array([0.5] * 136)},
    ],
)
def test_unsound_matrices_are_refused(tmp_path, changes):
    root = tmp_path / "M3D_Seg"
    entry = add_raw(root, "0007", "one", channels(CYST, KIDNEY))
    add_list(root, "0007", ["spleen", "liver"], [entry])
    write_csr(root / entry["label"])
    assert boxes_of(open_source("m3d-seg", root)[0]) == {"spleen": CYST, "liver": KIDNEY}
    write_csr(root / entry["label"], **changes)
    with pytest.raises((ScanError, LabelError), match=r"one/mask_\(2, 12, 10, 6\)\.npz"):
        open_source("m3d-seg", root)[0]


def test_pickles_are_never_loaded(tmp_path, monkeypatch):
    root = tmp_path / "M3D_Seg"
    entry = add_raw(root, "0007", "one", channels(CYST, KIDNEY))
    add_list(root, "0007", ["spleen", "liver"], [entry])
    fired = []

    class Trap:
        def __reduce__(self):
            return fired.append, (1,)

    write_csr(root / entry["label"], data=np.array([Trap()], dtype=object))
    with pytest.raises(ScanError, match=r"mask_.*[Oo]bject arrays"):
        open_source("m3d-seg", root)[0]
    np.save(root / "0007/one/image.npy", np.array([Trap()], dtype=object), allow_pickle=True)
    with pytest.raises(ScanError, match=r"image\.npy"):
        open_source("m3d-seg", root)[0]
    (root / "0007/one/image.npy").write_bytes(pickle.dumps("not an array"))
    with pytest.raises(ScanError, match=r"image\.npy"):
        open_source("m3d-seg", root)[0]
    assert not fired


def test_a_header_that_promises_too_much_is_that_cases_error(tmp_path):
    root = tmp_path / "M3D_Seg"
    entry = add_raw(root, "0007", "one", channels(CYST, KIDNEY))
    add_list(root, "0007", ["spleen", "liver"], [entry])
    header = b"{'descr': '<i4', 'fortran_order': False, 'shape': (999999999999999,), }"
    head = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    with zipfile.ZipFile(root / entry["label"], "w") as file:
        for name in ("indices", "indptr", "data", "shape", "format"):
            file.writestr(f"{name}.npy", head + bytes(64))
    with pytest.raises(ScanError, match="mask_"):
        open_source("m3d-seg", root)[0]


def test_stored_zeros_are_not_inside(tmp_path):
    root = tmp_path / "M3D_Seg"
    entry = add_raw(root, "0007", "one", channels(CYST, KIDNEY))
    add_list(root, "0007", ["spleen", "liver"], [entry])
    count = int(channels(CYST, KIDNEY)[0].sum())
    data = np.ones(136, np.int32)
    data[:count] = 0
    write_csr(root / entry["label"], data=data)
    study = open_source("m3d-seg", root)[0]
    assert study.absent == ("spleen",) and boxes_of(study) == {"liver": KIDNEY}


def test_names_that_two_labels_share_mean_neither(tmp_path):
    root = tmp_path / "M3D_Seg"
    entry = add_raw(root, "0014", "one", channels(CYST, KIDNEY, TUMOUR))
    add_list(root, "0014", ["lumbar spine L1", "lumbar spine L1", "lumbar spine L3"], [entry])
    study = open_source("m3d-seg", root)[0]
    assert study.vocabulary == ("lumbar spine L3",) and boxes_of(study) == {"lumbar spine L3": TUMOUR}


def test_where_each_case_has_its_own_list_nothing_is_absent(tmp_path):
    root = tmp_path / "M3D_Seg"
    entry = add_raw(root, "0009", "one", channels(CYST, None))
    add_list(root, "0009", ["liver cyst", "liver kyst"], [entry])
    assert open_source("m3d-seg", root)[0].vocabulary == ("liver cyst",)


def test_border_one_voxel_and_all_empty(tmp_path):
    root = tmp_path / "M3D_Seg"
    whole, last = (0, 0, 0, *SHAPE), (11, 9, 5, 12, 10, 6)
    entries = [
        add_raw(root, "0017", "a", channels(whole, last)),
        add_raw(root, "0017", "b", channels(None, None)),
    ]
    add_list(root, "0017", ["pancreas", "pancreatic lesion"], entries)
    full, empty = open_source("m3d-seg", root)
    assert boxes_of(full) == {"pancreas": whole, "pancreatic lesion": last}
    assert full.find("pancreas").voxels == 720 and full.find("pancreatic lesion").voxels == 1
    assert empty.structures == () and empty.absent == ("pancreas", "pancreatic lesion")


def test_ill_formed_lists(raw, tmp_path):
    with pytest.raises(DatasetError, match="0000/0000"):
        open_source("m3d-seg", tmp_path)
    with pytest.raises(DatasetError, match="folders 0099"):
        open_source("m3d-seg", raw, codes="99")
    path = raw / "0023/0023.json"
    about = json.loads(path.read_text())
    for wrong in ({"train": "all"}, {"train": ["a"]}, {"test": [{"image": 3, "label": "x"}]}):
        path.write_text(json.dumps({**about, **wrong}))
        with pytest.raises(DatasetError, match=r"0023\.json"):
            open_source("m3d-seg", raw)
    path.unlink()
    with pytest.raises(DatasetError, match=r"0023\.json"):
        open_source("m3d-seg", raw)
