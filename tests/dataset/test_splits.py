"""Splits: by patient, stable, and scans that look alike never apart."""

import io

import numpy as np
from PIL import Image

from unireason_lib.dataset.sources.phantom import phantom_slice
from unireason_lib.dataset.splits import (
    HASH_BYTES,
    SPLITS,
    TOLERANCE,
    assign_splits,
    patient_key,
    perceptual_hash,
    voxel_hash,
)

HALVES = {"train": 0.5, "test": 0.5}


def assigned(names, scans=None, own=None, **more):
    """Splits of scans of the named patients; without scans nobody looks alike."""
    count = len(names)
    perceptual, voxels = np.zeros((count, HASH_BYTES), np.uint8), np.zeros(count, np.uint64)
    if scans is not None:
        perceptual = np.stack([np.frombuffer(perceptual_hash(s), np.uint8) for s in scans])
        voxels = np.array([int.from_bytes(voxel_hash(scan)[:8]) for scan in scans], np.uint64)
    keys = np.array([patient_key(name) for name in names], np.uint64)
    own = np.full(count, -1) if own is None else np.array([SPLITS.index(split) for split in own])
    return assign_splits(keys, perceptual, voxels, own.astype(np.int8), **more)


def test_a_patient_has_the_same_split_alone_and_in_any_company():
    names = [f"p{i}" for i in range(200)]
    order = np.random.default_rng(0).permutation(len(names))
    together = assigned([names[i] for i in order])
    alone = [assigned([names[i]]).splits[0] for i in order]
    assert together.splits.tolist() == alone and {*alone} == {0, 1, 2}
    assert together.groups == len(names) and not len(together.pairs)


def test_look_alikes_under_different_names_stay_together_even_through_a_third():
    scans = [phantom_slice(seed, 128).scan for seed in range(40)]
    copies = [(scan * 0.5 + 7).astype(np.float32) for scan in scans]  # other units, other type
    names = [f"p{i}" for i in range(80)]
    made = assigned(names, scans + copies, fractions=HALVES)
    assert {(i, i + 40) for i in range(40)} <= set(map(tuple, made.pairs.tolist()))
    assert (made.splits[:40] == made.splits[40:]).all() and made.groups == 40
    assert 5 < (made.splits[:40] == 0).sum() < 35
    names[1] = names[0]  # a patient with two scans ties both of their copies together
    tied = assigned(names, scans + copies, fractions=HALVES)
    assert len(set(tied.splits[[0, 1, 40, 41]].tolist())) == 1 and tied.groups == 39


def test_groups_fall_into_the_splits_as_single_patients_do_report_3():
    """They had the least of their draws, so groups of three were never held out."""
    names = np.array([patient_key(f"p{i}") for i in range(6000)], np.uint64)
    alike = np.repeat(np.arange(1, 2001, dtype=np.uint64), 3)
    hashes, own = np.zeros((6000, HASH_BYTES), np.uint8), np.full(6000, -1, np.int8)
    made = assign_splits(names, hashes, alike, own)
    shares = np.bincount(made.splits, minlength=3) / 6000
    single = np.bincount(assign_splits(names, hashes, 0 * alike, own).splits, minlength=3) / 6000
    assert made.groups == 2000 and np.abs(shares - single).max() < 0.03


def test_a_split_of_the_source_is_kept_and_the_protected_one_wins_a_dispute():
    scan, other = phantom_slice(1).scan, phantom_slice(2).scan
    made = assigned("abc", [scan, scan, other], ["train", "test", "val"])
    assert [SPLITS[code] for code in made.splits] == ["test", "test", "val"]


def test_a_scan_is_recognised_after_noise_and_as_a_jpeg_in_colour():
    def jpeg(scan):
        low, high = scan.min(), scan.max()
        grey = Image.fromarray(((scan - low) / (high - low) * 255).astype(np.uint8))
        grey.convert("RGB").save(stream := io.BytesIO(), "JPEG", quality=60)
        return np.asarray(Image.open(stream))

    scans = [phantom_slice(seed, 256).scan for seed in range(30)]
    noise = [scan + np.random.default_rng(0).normal(0, 10, scan.shape) for scan in scans]
    for others in (noise, list(map(jpeg, scans))):
        made = assigned([f"p{k}" for k in range(60)], scans + others)
        assert sum(j == i + 30 for i, j in made.pairs) >= 27


def test_all_pairs_within_the_tolerance_are_found_as_brute_force_finds_them():
    rng = np.random.default_rng(3)
    codes = rng.integers(0, 256, (60, HASH_BYTES), dtype=np.uint8)
    copies = np.unpackbits(codes, axis=1)
    for bits, flips in zip(copies, rng.integers(0, 41, 60), strict=True):
        bits[rng.choice(len(bits), flips, replace=False)] ^= 1
    both = np.concatenate([codes, np.packbits(copies, axis=1)])
    distance = np.bitwise_count(both[:, None] ^ both[None]).sum(axis=2)
    expected = [(i, j) for i, j in np.argwhere(distance <= TOLERANCE).tolist() if i < j]
    keys = np.arange(120, dtype=np.uint64) << np.uint64(40)
    pairs = assign_splits(keys, both, np.zeros(120, np.uint64), np.full(120, -1, np.int8)).pairs
    assert 15 < len(expected) < 45 and list(map(tuple, pairs.tolist())) == expected
