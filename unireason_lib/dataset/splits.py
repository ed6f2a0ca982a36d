"""Who is learnt from and who is tested on: splits by patient, with look-alike scans kept together.

A patient's split is a number computed from the patient's name, so it does not depend on who else is in the
set, on the order of the files, or on chance. Names alone are not enough: the same scan is often found under
two names. Every scan therefore gets a **fingerprint**, a coarse drawing of it as a string of bits ("is this
block brighter than the one before?"). Patients with scans whose fingerprints differ in at most 2 % of the
bits form one group, and a group never comes apart.

What a fingerprint survives: another file format or number type, any linear change of intensities, mild noise,
JPEG, and resampling of a scan that is much finer than the grid of its blocks (a picture of 64 pixels is not). What it
does not: cropping, shifting, rotation, and non-linear windows. A scan
with hardly any content has no usable fingerprint and is grouped by patient only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from unireason_lib.errors import DatasetError, explain

SPLITS = ("train", "val", "test")
FRACTIONS: Mapping[str, float] = {"train": 0.9, "val": 0.05, "test": 0.05}

FINGERPRINT_BYTES = 128
TOLERANCE = 0.02
"""Share of bits in which two fingerprints of one scan may differ. Between the 1.1 million pairs of 1,500 phantom
slices, which look alike on purpose, the smallest share seen was 3.1 %, and 3.2 % between the pairs of 600 volumes. JPEG
at quality 60 changes 0.8 % in the median slice and at most 1.8 % in 95 of 100."""

_GRIDS = {2: ((16, 17), (17, 16)), 3: ((8, 8, 9), (8, 9, 8))}
_BITS = {2: 512, 3: 1024}
_SAMPLES = 4  # a side of a block
_STEP = 0.03  # of the range: smaller differences between blocks are noise
_FEWEST_BITS = 16
_NEIGHBOURS = 32


def fingerprint(scan: np.ndarray) -> bytes:
    """A coarse drawing of a scan, to find the same one under another name.

    The scan is averaged over a grid of blocks, and each block compared with its neighbour to the left and
    above: 512 bits for a picture, 1024 for a volume. Blocks are sampled at 4 points a side, so the cost
    hardly grows with the scan.

    Args:
        scan: (Z, Y, X), (Y, X) or (Y, X, 3), any real numbers.

    Returns:
        :data:`FINGERPRINT_BYTES` bytes; zeros when the scan has too little content to be recognised.
    """
    if scan.ndim == 3 and scan.shape[-1] in (3, 4) and scan.dtype == np.uint8:
        scan = scan[..., :3].mean(axis=-1, dtype=np.float32)
    bits = []
    for axis, grid in zip((-1, -2), _GRIDS[scan.ndim], strict=True):
        blocks = _block_means(scan, grid)
        ordered = np.sort(blocks, axis=None)
        low, high = ordered[len(ordered) // 50], ordered[-1 - len(ordered) // 50]
        if not high > low:
            return bytes(FINGERPRINT_BYTES)
        bits.append((np.diff(np.clip(blocks, low, high), axis=axis) > _STEP * (high - low)).ravel())
    drawing = np.concatenate(bits)
    if np.count_nonzero(drawing) < _FEWEST_BITS:
        return bytes(FINGERPRINT_BYTES)
    # Mixed, so that every stretch of bits says something about the whole scan.
    return np.packbits(drawing[_shuffle(len(drawing))]).tobytes().ljust(FINGERPRINT_BYTES, b"\0")


def same_scan(one: bytes, other: bytes) -> bool:
    """Whether two fingerprints are of (nearly) the same scan."""
    return len(near_duplicates(np.frombuffer(one + other, np.uint8).reshape(2, -1))) > 0


def near_duplicates(fingerprints: np.ndarray) -> np.ndarray:
    """All pairs of fingerprints that differ in at most :data:`TOLERANCE` of their bits.

    Two strings that differ in at most k bits agree completely on at least one of k + 1 stretches. So for each
    stretch the fingerprints are sorted by it, and only those that agree are compared: n log n steps instead
    of n squared. Where more than 32 agree on one stretch, each is compared with the next 32.

    Args:
        fingerprints: (n, 128) uint8, as from :func:`fingerprint`.

    Returns:
        (pairs, 2) indices, the smaller first, in ascending order.
    """
    found = [np.empty((0, 2), np.int64), *_near_pairs(fingerprints)]
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0)


def _near_pairs(fingerprints: np.ndarray) -> Iterator[np.ndarray]:
    """The pairs of :func:`near_duplicates` in portions, some more than once. Where scans come in stacks of look-alikes
    (the slices of one volume, say) there are hundreds a scan, so they are not all held at a time."""
    codes = np.ascontiguousarray(fingerprints)
    known = codes.any(axis=1)
    volumes = codes[:, _BITS[2] // 8 :].any(axis=1)
    for volume in (False, True):
        yield from _near(codes, np.flatnonzero(known & (volumes == volume)), _BITS[3 if volume else 2])


def _near(codes: np.ndarray, rows: np.ndarray, bits: int) -> Iterator[np.ndarray]:
    most = int(bits * TOLERANCE)
    width = min(8, bits // 8 // (most + 1))
    for start in range(0, (most + 1) * width, width):
        key = np.zeros((len(rows), 8), np.uint8)
        key[:, :width] = codes[rows, start : start + width]
        key = key.view(np.uint64).ravel()
        order = np.argsort(key, kind="stable")
        key = key[order]
        for step in range(1, _NEIGHBOURS + 1):
            agree = np.flatnonzero(key[step:] == key[:-step])
            if not len(agree):
                break
            a, b = rows[order[agree]], rows[order[agree + step]]
            near = _distances(codes, a, b) <= most
            yield np.stack([a[near], b[near]], axis=1)


def _distances(codes: np.ndarray, a: np.ndarray, b: np.ndarray, chunk: int = 1 << 16) -> np.ndarray:
    words = codes.view(np.uint64)
    parts = [
        np.bitwise_count(words[a[k : k + chunk]] ^ words[b[k : k + chunk]]).sum(axis=1, dtype=np.int64)
        for k in range(0, len(a), chunk)
    ]
    return np.concatenate(parts)


@dataclass(frozen=True)
class Assignment:
    """What :func:`assign_splits` decided.

    Attributes:
        splits: (n,) uint8, index into :data:`SPLITS` for every study.
        groups: Number of groups of patients.
        look_alikes: (pairs, 2) studies of *different* patients that look like one scan, as many pairs as it takes to
            tie each group together.
    """

    splits: np.ndarray
    groups: int
    look_alikes: np.ndarray


def patient_key(patient: str, salt: str = "") -> int:
    """64 bits that stand for a patient; another salt draws another split."""
    digest = hashlib.blake2b(patient.encode(), digest_size=8, key=salt.encode()[:64]).digest()
    return int.from_bytes(digest, "little")


def split_of(patient: str, fractions: Mapping[str, float] = FRACTIONS, salt: str = "") -> str:
    """The split of a patient who looks like nobody else; the same in every set, whatever else is in it."""
    key = np.array([patient_key(patient, salt)], np.uint64)
    return SPLITS[int(_draw(key, check_fractions(fractions))[0])]


def assign_splits(
    patients: np.ndarray,
    fingerprints: np.ndarray,
    own: np.ndarray,
    fractions: Mapping[str, float] = FRACTIONS,
) -> Assignment:
    """Give every study a split: all studies of a patient, and of patients who look alike, get the same.

    Args:
        patients: (n,) uint64, :func:`patient_key` of each study.
        fingerprints: (n, 128) uint8; zeros where there is none.
        own: (n,) int8, index into :data:`SPLITS` where the source has a split of its own, -1 elsewhere. When
            members of a group disagree the most protected one wins, test over val over train: so nothing that
            is tested is learnt.
        fractions: Split -> share of the patients.

    Returns:
        The assignment. Memory is about 200 bytes a study, of which the fingerprint is 128; 500 more where nearly all
        scans look alike.
    """
    limits = check_fractions(fractions)
    names, member = np.unique(patients, return_inverse=True)
    group, pairs = _tied(len(names), member, _near_pairs(fingerprints))
    claimed = np.full(len(names), -1, np.int8)
    np.maximum.at(claimed, group[member], own)
    splits = np.where(claimed >= 0, claimed, _draw(names, limits)).astype(np.uint8)
    return Assignment(splits[group[member]], len(np.unique(group)), pairs)


def check_fractions(fractions: Mapping[str, float]) -> np.ndarray:
    """Upper ends of the splits in [0, 1].

    Raises:
        DatasetError: Unknown split, a negative share, or shares that do not add up to 1.
    """
    shares = np.array([fractions.get(name, 0.0) for name in SPLITS], float)
    if not set(fractions) <= set(SPLITS) or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        raise DatasetError(
            explain(
                "split fractions",
                expected=f"shares of {', '.join(SPLITS)} that add up to 1",
                found=", ".join(f"{name} {share:g}" for name, share in fractions.items()),
                do="write for instance train=0.9, val=0.05, test=0.05",
            )
        )
    return np.cumsum(shares)


def _draw(keys: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Split index by a uniform number that follows from the key (the finalizer of SplitMix64)."""
    with np.errstate(over="ignore"):
        z = (keys ^ (keys >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    uniform = ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(np.float64) / (1 << 53)
    return np.minimum(np.searchsorted(limits, uniform, side="right"), len(SPLITS) - 1)


def _tied(n: int, member: np.ndarray, portions: Iterable[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Join patients who have scans that look alike.

    Args:
        n: Number of patients.
        member: (studies,) patient of each study.
        portions: Pairs of studies that look alike, in portions.

    Returns:
        ``(n,)`` smallest member of the group of every patient, and the pairs of studies that joined two groups:
        fewer than there are patients, however many look alike.
    """
    parent = np.arange(n)

    def root(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return int(node)

    joined = []
    for pairs in portions:
        ends = parent[member[pairs]]
        apart = pairs[ends[:, 0] != ends[:, 1]]
        for one, other in apart.tolist():
            a, b = sorted((root(member[one]), root(member[other])))
            if a != b:
                parent[b] = a
                joined.append(sorted((one, other)))
        if len(apart):  # every node points at its root again
            while not np.array_equal(parent, up := parent[parent]):
                parent = up
    return parent, np.array(sorted(joined), np.int64).reshape(-1, 2)


def _block_means(scan: np.ndarray, grid: tuple[int, ...]) -> np.ndarray:
    """Means over the blocks of a grid, each from a few evenly spaced samples an axis."""
    samples = [
        np.minimum(((np.arange(n * _SAMPLES) + 0.5) * (side / (n * _SAMPLES))).astype(np.intp), side - 1)
        for side, n in zip(scan.shape, grid, strict=True)
    ]
    values = scan[np.ix_(*samples)].astype(np.float32)
    values[~np.isfinite(values)] = 0
    for axis, n in enumerate(grid):
        split = (*values.shape[:axis], n, _SAMPLES, *values.shape[axis + 1 :])
        values = values.reshape(split).mean(axis=axis + 1)
    return values


@lru_cache(maxsize=2)
def _shuffle(bits: int) -> np.ndarray:
    return np.random.default_rng(bits).permutation(bits)
