"""Who is learnt from and who is tested on: splits by patient, near-duplicate scans together.

A patient's split is a number computed from the patient's name, so it depends on nobody else. The
same scan is often found under two names, though, so patients whose scans agree in one of two hashes
share a split: a **perceptual hash** (dHash: "is this block brighter than the one before?"), which
survives linear changes of intensity, noise, JPEG and resampling, not cropping or rotation; and a
**voxel hash** of the exact values, for scans with too little content for the first.
"""

import hashlib
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from unireason_lib.errors import DatasetError

SPLITS = ("train", "val", "test")
FRACTIONS: Mapping[str, float] = {"train": 0.9, "val": 0.05, "test": 0.05}

HASH_BYTES = 128
TOLERANCE = 20
"""In how many of 1024 bits perceptual hashes of one scan may differ. JPEG of quality 60 changes at
most 12, resizing from 256 to 200 pixels 10; the nearest two of 600 phantom slices differ in 52, of
300 volumes in 42."""

_GRIDS = {2: ((16, 17), (17, 16)), 3: ((8, 8, 9), (8, 9, 8))}
_STEP = 0.03  # of the range: smaller differences between blocks are noise
_FEWEST_BITS = 16
# an order of the bits in which every stretch of them says something about the whole scan
_SHUFFLED = np.random.default_rng(0).permutation(8 * HASH_BYTES)


def voxel_hash(scan: np.ndarray) -> bytes:
    """16 bytes that equal scans share, whatever their number type; any shape."""
    digest = hashlib.blake2b(repr(scan.shape).encode(), digest_size=16)
    for part in scan:
        digest.update(np.ascontiguousarray(part, np.float32).data)
    return digest.digest()


def perceptual_hash(scan: np.ndarray) -> bytes:
    """A coarse description of a scan, (Z, Y, X), (Y, X) or (Y, X, 3): each of a grid of blocks is
    compared with its neighbours. :data:`HASH_BYTES` bytes; zeros when too little is to be seen."""
    if scan.ndim == 3 and scan.shape[-1] in (3, 4) and scan.dtype == np.uint8:
        scan = scan[..., :3].mean(axis=-1, dtype=np.float32)
    most = 256 if scan.ndim == 2 else 64  # of large scans every n-th voxel is enough
    scan = scan[tuple(slice(None, None, max(1, side // most)) for side in scan.shape)]
    scan = np.where(np.isfinite(scan), scan, 0).astype(np.float32)
    bits = []
    for axis, grid in zip((-1, -2), _GRIDS[scan.ndim], strict=True):
        blocks = _block_means(scan, grid)
        ordered = np.sort(blocks, axis=None)
        low, high = ordered[len(ordered) // 50], ordered[-1 - len(ordered) // 50]
        if not high > low:
            return bytes(HASH_BYTES)
        bits.append((np.diff(np.clip(blocks, low, high), axis=axis) > _STEP * (high - low)).ravel())
    code = np.concatenate(bits)
    if np.count_nonzero(code) < _FEWEST_BITS:
        return bytes(HASH_BYTES)
    return np.packbits(np.resize(code, 8 * HASH_BYTES)[_SHUFFLED]).tobytes()


def _block_means(scan: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Means over the blocks of a grid; a voxel between two blocks counts for both, in part."""
    for axis, blocks in enumerate(grid):
        weights = _weights(scan.shape[axis], blocks)
        scan = np.moveaxis(np.tensordot(weights, scan, (1, axis)), 0, axis)
    return scan


@lru_cache
def _weights(side: int, blocks: int) -> np.ndarray:
    """(blocks, side): which part of each voxel lies in each block, of the length of a block."""
    voxels, edges = np.arange(side), np.linspace(0, side, blocks + 1)
    inside = np.minimum(edges[1:, None], voxels + 1) - np.maximum(edges[:-1, None], voxels)
    return np.clip(inside, 0, None).astype(np.float32) / np.float32(edges[1])


def _near_pairs(hashes: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of perceptual hashes within :data:`TOLERANCE`, in portions, some more than once.
    Strings that differ in at most k bits agree on one of k + 1 stretches: sorted by each, n log n
    steps."""
    rows = np.flatnonzero(hashes.any(axis=1))
    width = HASH_BYTES // (TOLERANCE + 1)
    for start in range(0, (TOLERANCE + 1) * width, width):
        key = np.zeros((len(rows), 8), np.uint8)
        key[:, :width] = hashes[rows, start : start + width]
        for pairs in _equal_pairs(key.view(np.uint64).ravel(), rows):
            distance = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]).sum(1, np.int64)
            yield pairs[distance <= TOLERANCE]


def _equal_pairs(keys: np.ndarray, rows: np.ndarray) -> Iterator[np.ndarray]:
    """Pairs of ``rows`` with equal keys, each with the next 32 of its key, in portions."""
    order = np.argsort(keys, kind="stable")
    keys, rows = keys[order], rows[order]
    for step in range(1, 33):
        agree = np.flatnonzero(keys[step:] == keys[:-step])
        if not len(agree):
            break
        yield np.stack([rows[agree], rows[agree + step]], axis=1)


class Assignment(NamedTuple):
    """What :func:`assign_splits` decides."""

    splits: np.ndarray  # (n,) uint8: index into SPLITS of every study
    groups: int  # of patients
    pairs: np.ndarray  # (k, 2): studies of different patients that look alike


def assign_splits(
    patients: np.ndarray,
    perceptual: np.ndarray,
    voxels: np.ndarray,
    own: np.ndarray,
    fractions: Mapping[str, float] = FRACTIONS,
) -> Assignment:
    """The split of each study.

    Args:
        patients: (n,) uint64, :func:`patient_key` of each study.
        perceptual, voxels: (n, 128) uint8, and (n,) uint64, the beginning of each voxel hash; or 0.
        own: (n,) int8, index into :data:`SPLITS` where the source has its own split, else -1. Where
            a group disagrees, test wins over val over train."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    names, member = np.unique(patients, return_inverse=True)
    known = np.flatnonzero(voxels)
    alike = [np.empty((0, 2), np.int64), *_equal_pairs(voxels[known], known)]
    pairs = np.sort(np.concatenate([*alike, *_near_pairs(perceptual)]), axis=1)
    pairs = np.unique(pairs[member[pairs[:, 0]] != member[pairs[:, 1]]], axis=0)
    graph = coo_array((np.ones(len(pairs), bool), member[pairs].T), shape=(len(names),) * 2)
    count, group = connected_components(graph, directed=False)
    # a group has the draw of one of its patients: not the first, since names are sorted as drawn
    order = np.argsort(names * np.uint64(0x9E3779B97F4A7C15), kind="stable")
    group = order[np.unique(group[order], return_index=True)[1]][group]
    claimed = np.full(len(names), -1, np.int8)
    np.maximum.at(claimed, group[member], own)
    uniform = (names >> np.uint64(11)).astype(np.float64) / (1 << 53)
    drawn = np.searchsorted(check_fractions(fractions)[:-1], uniform, side="right")
    splits = np.where(claimed >= 0, claimed, drawn).astype(np.uint8)
    return Assignment(splits[group[member]], count, pairs)


def patient_key(patient: str, salt: str = "") -> int:
    """64 bits that stand for a patient; another salt draws another split."""
    digest = hashlib.blake2b(patient.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "little")


def check_fractions(fractions: Mapping[str, float]) -> np.ndarray:
    """Upper ends of the splits in [0, 1]; DatasetError if the fractions do not add up to 1."""
    parts = np.array([fractions.get(name, 0.0) for name in SPLITS], float)
    if not set(fractions) <= set(SPLITS) or (parts < 0).any() or abs(parts.sum() - 1) > 1e-6:
        expected, do = f"fractions of {', '.join(SPLITS)} that add up to 1", "write 0.9, 0.05, 0.05"
        raise DatasetError("split fractions", expected, dict(fractions), do)
    return np.cumsum(parts)
