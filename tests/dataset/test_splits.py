"""Splits: by patient, stable, and look-alike scans never apart."""

import io

import numpy as np
import pytest
from PIL import Image

from unireason_lib.dataset.sources.phantom import PhantomConfig, phantom, phantom_slice
from unireason_lib.dataset.splits import (
    FINGERPRINT_BYTES,
    SPLITS,
    assign_splits,
    fingerprint,
    near_duplicates,
    patient_key,
    same_scan,
    split_of,
)
from unireason_lib.errors import DatasetError

NO_PRINTS = np.zeros((1, FINGERPRINT_BYTES), np.uint8)


def keys(names):
    return np.array([patient_key(name) for name in names], np.uint64)


def prints(*scans):
    return np.stack([np.frombuffer(fingerprint(scan), np.uint8) for scan in scans])


def test_a_patient_has_the_same_split_alone_and_in_any_company():
    names = [f"p{i}" for i in range(400)]
    alone = [split_of(name) for name in names]
    order = np.random.default_rng(0).permutation(len(names))
    together = assign_splits(
        keys(names)[order], NO_PRINTS.repeat(len(names), 0), np.full(len(names), -1, np.int8)
    )
    assert [SPLITS[code] for code in together.splits] == [alone[i] for i in order]
    assert together.groups == len(names) and not len(together.look_alikes)


def test_shares_are_met_and_the_salt_draws_again():
    names = [f"p{i}" for i in range(4000)]
    fractions = {"train": 0.6, "val": 0.1, "test": 0.3}
    drawn = [split_of(name, fractions) for name in names]
    for name, share in fractions.items():
        assert abs(drawn.count(name) / len(names) - share) < 0.03
    assert drawn != [split_of(name, fractions, "other") for name in names]
    assert {split_of(name, {"test": 1.0}) for name in names[:50]} == {"test"}


def test_all_studies_of_a_patient_share_a_split():
    patients = keys([f"p{i % 37}" for i in range(400)])
    splits = assign_splits(patients, NO_PRINTS.repeat(400, 0), np.full(400, -1, np.int8)).splits
    for patient in np.unique(patients):
        assert len(set(splits[patients == patient].tolist())) == 1
    assert len(set(splits.tolist())) > 1


def test_look_alikes_under_different_names_stay_together_even_through_a_third():
    scans = [phantom_slice(seed, 128).scan for seed in range(40)]
    twins = [(scan * 0.5 + 7).astype(np.float32) for scan in scans]  # other units, other type
    names = [f"a{i}" for i in range(40)] + [f"b{i}" for i in range(40)]
    found = assign_splits(
        keys(names), prints(*scans, *twins), np.full(80, -1, np.int8), {"train": 0.5, "test": 0.5}
    )
    assert sorted(map(tuple, found.look_alikes.tolist())) == [(i, i + 40) for i in range(40)]
    assert (found.splits[:40] == found.splits[40:]).all() and found.groups == 40
    assert 5 < (found.splits[:40] == 0).sum() < 35
    # a patient with two scans ties both of their twins together
    names[1] = names[0]
    tied = assign_splits(
        keys(names), prints(*scans, *twins), np.full(80, -1, np.int8), {"train": 0.5, "test": 0.5}
    )
    assert len(set(tied.splits[[0, 1, 40, 41]].tolist())) == 1 and tied.groups == 39


def test_a_split_of_the_source_is_kept_and_the_protected_one_wins_a_dispute():
    scan, other = phantom_slice(1).scan, phantom_slice(2).scan
    own = np.array([SPLITS.index("train"), SPLITS.index("test"), SPLITS.index("val")], np.int8)
    found = assign_splits(keys(["a", "b", "c"]), prints(scan, scan, other), own)
    assert [SPLITS[code] for code in found.splits] == ["test", "test", "val"]


def jpeg(scan, quality=60):
    low, high = scan.min(), scan.max()
    stream = io.BytesIO()
    Image.fromarray(((scan - low) / (high - low) * 255).astype(np.uint8)).save(
        stream, "JPEG", quality=quality
    )
    return np.asarray(Image.open(stream))


VARIED = PhantomConfig(variation=1.0)
"""Patients who differ as people do."""


@pytest.mark.parametrize(
    "change, least",
    [
        (lambda scan: scan.astype(np.float64), 60),
        (lambda scan: scan * 3 - 100, 60),
        (jpeg, 57),
        (
            lambda scan: np.asarray(
                Image.fromarray(scan.astype(np.float32)).resize((200, 200), Image.BILINEAR)
            ),
            50,
        ),
        (lambda scan: scan + np.random.default_rng(0).normal(0, 10, scan.shape), 57),
        (lambda scan: np.stack([jpeg(scan, 80)] * 3, axis=-1), 57),
    ],
    ids=["type", "linear", "jpeg", "smaller", "noise", "colour"],
)
def test_the_same_picture_in_another_dress_is_recognised(change, least):
    """Of 100 phantoms about 90 are recognised when resized, which moves the borders of the blocks; else nearly all."""
    recognised = 0
    for seed in range(60):
        scan = phantom_slice(seed, 256, config=VARIED).scan
        recognised += same_scan(fingerprint(scan), fingerprint(change(scan)))
    assert recognised >= least


def test_different_patients_are_not_taken_for_one_another():
    slices = prints(*(phantom_slice(seed).scan for seed in range(300)))
    volumes = prints(*(phantom(seed).scan.array for seed in range(100)))
    assert len(near_duplicates(slices)) == 0 and len(near_duplicates(volumes)) == 0


def test_all_pairs_within_the_tolerance_are_found_as_brute_force_finds_them():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (60, FINGERPRINT_BYTES), dtype=np.uint8)
    copies = codes.copy()
    for k, flips in enumerate(rng.integers(0, 41, 60)):
        bits = np.unpackbits(copies[k])
        bits[rng.choice(len(bits), flips, replace=False)] ^= 1
        copies[k] = np.packbits(bits)
    both = np.concatenate([codes, copies])
    distance = np.bitwise_count(both[:, None] ^ both[None]).sum(axis=2)
    expected = [(i, j) for i, j in np.argwhere(distance <= 20).tolist() if i < j]
    assert 15 < len(expected) < 45
    assert list(map(tuple, near_duplicates(both).tolist())) == expected


@pytest.mark.parametrize("scan", [np.zeros((50, 50)), np.full((4, 9, 9), 3.5), np.full((5, 5), np.nan)])
def test_a_scan_without_content_resembles_nobody(scan):
    assert fingerprint(scan) == bytes(FINGERPRINT_BYTES)
    assert len(near_duplicates(prints(scan, scan))) == 0


@pytest.mark.parametrize("shape", [(1, 1), (3, 700), (1, 40, 40), (2, 3, 4)])
def test_any_shape_has_a_fingerprint(shape):
    scan = np.random.default_rng(0).normal(size=shape)
    assert len(fingerprint(scan)) == FINGERPRINT_BYTES


@pytest.mark.parametrize("fractions", [{"train": 0.5}, {"train": 1.2, "test": -0.2}, {"training": 1.0}])
def test_impossible_shares_are_refused(fractions):
    with pytest.raises(DatasetError, match="add up to 1"):
        split_of("p", fractions)
