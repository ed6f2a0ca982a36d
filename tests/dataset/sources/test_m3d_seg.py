"""M3D-Seg in its two layouts: as it is downloaded, and as its authors' script prepares it."""

import tracemalloc

import numpy as np
import pytest

from tests.dataset.sources import layouts as made
from tests.dataset.sources.layouts import M3D_CYST, M3D_KIDNEY, M3D_TUMOUR, channels
from unireason_lib.dataset.sources import open_source
from unireason_lib.errors import DatasetError, LabelError, ScanError, ScanWarning

pytestmark = pytest.mark.filterwarnings("ignore::unireason_lib.errors.ScanWarning")


def test_raw(tmp_path):
    source = open_source("m3d-seg", made.make_m3d(tmp_path))
    with pytest.warns(ScanWarning, match="left and right"):
        first, second = source
    assert not source.redistributable and source.modality == "CT"
    assert first.id == first.patient == "m3d-seg-0004-case_0"
    whole = (1, 1, 0, 12, 10, 5)  # the kidney with both lesions, which are holes in its mask
    boxes = {"kidney": whole, "kidney tumour": M3D_TUMOUR, "kidney cyst": M3D_CYST}
    assert made.boxes_of(first) == boxes
    expected = channels(M3D_KIDNEY, M3D_TUMOUR, M3D_CYST).any(axis=0).T
    assert (first.mask(first.find("kidney")) == expected).all()
    assert first.find("kidney tumour").attributes == {"host": "kidney", "components": 1}
    assert first.shape == made.M3D_SHAPE[::-1] and first.directions == "" and first.spacing is None
    assert not first.scan.has_affine
    assert second.absent == ("kidney tumour", "kidney cyst")
    assert (first.split, second.split) == ("train", "test")


@pytest.mark.parametrize("zeros, prefix", [(True, ""), (False, "/another/machine/M3D_Seg_npy/")])
def test_prepared(tmp_path, zeros, prefix):
    raw = made.make_m3d(tmp_path / "raw")
    source = open_source("m3d-seg", made.prepare_m3d(raw, tmp_path / "npy", zeros, prefix))
    for study, old in zip(source, open_source("m3d-seg", raw), strict=True):
        assert (study.id, study.key, study.split) == (old.id, old.key, old.split)
        assert study.structures == old.structures and (study.labels == old.labels).all()
        assert (study.scan.array == old.scan.array).all()


def test_what_is_wrong_with_one_case_costs_no_other(tmp_path):
    names = ("ok", "gone", "broken", "shape", "turned", "named")
    entries = [made.add_m3d(tmp_path, f"0008/{name}", channels(M3D_CYST)) for name in names]
    folder = tmp_path / "0008"
    (folder / "gone/image.npy").unlink()
    (mask,) = (folder / "broken").glob("mask_*")
    mask.write_bytes(mask.read_bytes()[:-60])
    np.save(folder / "shape/image.npy", np.zeros((1, 12, 10, 7), np.float32))
    (mask,) = (folder / "turned").glob("mask_*")
    mask.rename(folder / "turned/mask_(1, 10, 12, 6).npz")
    entries[4]["label"] = "0008/turned/mask_(1, 10, 12, 6).npz"
    entries[5]["image"] = "../elsewhere/image.npy"
    made.list_m3d(tmp_path, "0008", ["pancreas"], entries)
    wrong = {"gone/image.npy": ScanError, "broken/mask_": ScanError, "shape/mask_": LabelError}
    wrong |= {"turned/mask_": LabelError, "elsewhere/image.npy": DatasetError}
    source = open_source("m3d-seg", tmp_path)
    assert source[0].structures
    for k, (words, kind) in enumerate(wrong.items(), start=1):
        with pytest.raises(kind, match=words):
            source[k]


def test_a_small_archive_cannot_make_us_allocate_gigabytes(tmp_path):
    """B9: what the headers of a sparse mask promise is compared with the scan first."""
    entry = made.add_m3d(tmp_path, "0007/one", channels(M3D_CYST, M3D_KIDNEY))
    made.list_m3d(tmp_path, "0007", ("spleen", "liver"), [entry])
    path, source = tmp_path / entry["label"], open_source("m3d-seg", tmp_path)
    arrays = dict(np.load(path))
    assert made.boxes_of(source[0]) == {"spleen": M3D_CYST, "liver": M3D_KIDNEY}
    n = 1_000_000
    huge = {"indptr": np.array([0, n, n]), "indices": np.zeros(n, np.int32), "data": np.ones(n)}
    beyond, pickled = {"indices": arrays["indices"] + 10**6}, {"data": np.array([{}], object)}
    for changes, words in ((huge, "promised for 2 masks"), (beyond, "CSR"), (pickled, "CSR")):
        np.savez_compressed(path, **{**arrays, **changes})
        tracemalloc.start()
        with pytest.raises(ScanError, match=f"one/mask_.*{words}"):
            source[0]
        assert tracemalloc.get_traced_memory()[1] < 5_000_000 and path.stat().st_size < 200_000
        tracemalloc.stop()
