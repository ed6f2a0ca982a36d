"""Torso phantoms: CT-like scans of patients that never lived, whose truth is known exactly.

A **patient** is a list of numbers drawn from one seed. The anatomy is a function of position in mm,
so a volume (:func:`phantom`) and one plane of it (:func:`phantom_slice`) agree voxel by voxel:

    seed -> patient (ellipsoids in mm) -> tissues -> HU -> blur -> lesion texture -> field and noise

``anatomy.yaml`` is the table of an average adult. **Appearance is randomized** as in SynthSeg
(Billot et al., arXiv 2107.09559): contrast phase, mean of every tissue (in some patients without
regard to anatomy), noise, blur, brightness field, fat, field of view, scanned range.

Lesions have a host organ, a size class, a density against the host, and a **texture** of single
pixels at 64 x 64, which sums to zero over every aligned 2 x 2 cell: nothing of it survives
averaging, which makes a second, closer look worth it.

**Liberties**: the textures do not exist in patients; lesions are large (:data:`SIZES`), stand out
equally in every phase, at most one an organ; slices of an 8-slice volume lie 16 to 25 mm apart and
are thin; organs are smooth and uniform; pancreas and muscles are painted but not outlined."""

import math
from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Literal, NamedTuple, Self

import numpy as np
import yaml

from unireason_lib.dataset.sources.base import Entry, LazyIndex, Source
from unireason_lib.dataset.study import Study
from unireason_lib.errors import DatasetError, raising
from unireason_lib.imaging import Volume

_TABLE = yaml.safe_load(Path(__file__).with_name("anatomy.yaml").read_text("utf-8"))
ORGANS: dict[str, int] = {name: label for label, name in enumerate(_TABLE["organs"], start=2)}
"""Label of every organ in the label maps of phantoms; the body around them has label 1."""
HOSTS: dict[str, float] = _TABLE["hosts"]
"""Organs that can have a lesion -> how often each is tried first; its label is the organ's + 20."""
_LUNGS = ("left lung", "right lung")  # filled with air: any lesion there is denser
REMOVABLE = ("spleen", "left kidney", "right kidney", "gallbladder", "stomach")
TEXTURES = ("vertically striped", "horizontally striped", "checkered", "mottled", "homogeneous")
SIZES: dict[str, tuple[float, float]] = {"small": (22, 32), "medium": (42, 50), "large": (58, 72)}
"""Size class -> range of the diameter in mm, with gaps: the class is never a matter of opinion."""
_SIGNS = {"hypodense": -1, "hyperdense": 1, "isodense": 0}

LABELS: dict[int, str] = {
    1: "body",
    **{label: name for name, label in ORGANS.items()},
    **{ORGANS[host] + 20: f"{host} lesion" for host in HOSTS},
}
"""Every value of a phantom's label map and its name."""
INSIDE: dict[int, int] = {
    **dict.fromkeys(ORGANS.values(), 1),
    **{ORGANS[host] + 20: ORGANS[host] for host in HOSTS},
}
Range = tuple[float, float]


@dataclass(frozen=True)
class PhantomConfig:
    """What the phantoms look like and how hard they are. A patient draws one value from each range.
    A :class:`DatasetError` names what is out of range."""

    shape: tuple[int, int, int] = (8, 64, 64)  # slices, rows, columns
    length: Range = (130.0, 200.0)  # mm of body in a volume; its slices lie that / Z apart
    top: Range = (-10.0, 40.0)  # mm by which it begins above the dome of the diaphragm
    field_of_view: Range = (280.0, 400.0)  # limits in mm of a slice, which is fitted to the body
    fat: Range = (5.0, 25.0)  # mm under the skin; thin is commoner than thick
    variation: float = 0.7  # of anatomy; 1 is a varied clinic, 0 makes all the same
    phases: tuple[float, float, float] = (0.3, 0.3, 0.4)  # frequency: native, arterial, venous
    random_contrast: float = 0.1  # probability of soft tissues without regard to anatomy
    noise: Range = (4.0, 20.0)  # standard deviation in HU
    field: Range = (0.0, 12.0)  # amplitude in HU of the smooth brightness field
    blur: Range = (0.2, 0.7)  # standard deviation in pixels within slices, 0.7 at most
    absent: float = 0.1  # probability that an organ of REMOVABLE is missing (never both kidneys)
    lesion_counts: tuple[float, ...] = (0.15, 0.45, 0.25, 0.15)  # frequency of 0, 1, 2, ... lesions
    sizes: tuple[str, ...] = ("medium", "large")  # of SIZES
    contrast: Range = (60.0, 110.0)  # HU between the means of a lesion and its host (not the lung)
    densities: tuple[str, ...] = ("hypodense", "hyperdense")  # or isodense: only texture shows
    textures: tuple[str, ...] = TEXTURES[:4]  # the fifth lacks the variance of the others
    texture_contrast: float = 45.0  # half the HU between the two shades of a texture
    shades: int = 64  # across a slice: one pixel each at 64 x 64
    window: Range = (-150.0, 350.0)  # HU to be shown

    def __post_init__(self) -> None:
        tuples = {name: tuple(v) for name, v in vars(self).items() if isinstance(v, list)}
        vars(self).update(tuples)  # a file has lists
        ranges = (self.length, self.field_of_view, self.fat, self.noise, self.field, self.blur)
        ranges = (*ranges, self.contrast)
        amounts = (self.variation, self.texture_contrast, *(low for low, *_ in ranges))
        positive = (*self.shape, *self.length, *self.field_of_view, self.shades)
        chances, weights = (self.absent, self.random_contrast), (self.phases, self.lesion_counts)
        names = ((self.sizes, SIZES), (self.densities, _SIGNS), (self.textures, TEXTURES))
        rules = {
            "three of shape, three phases": len(self.shape) == len(self.phases) == 3,
            "positive shape, length, field_of_view, shades": min(positive) > 0,
            "ranges (low, high)": all(len(r) == 2 and r[0] <= r[1] for r in (*ranges, self.top)),
            "amounts of 0 or more, blur of 0.7 at most": min(amounts) >= 0 and self.blur[1] <= 0.7,
            "probabilities from 0 to 1": 0 <= min(chances) <= max(chances) <= 1,
            "weights, one positive": all(sum(w) > 0 <= min(w) for w in weights),
            "at most one lesion a host": len(self.lesion_counts) <= len(HOSTS) + 1,
            "known names": all(some and set(some) <= set(known) for some, known in names),
        }
        if broken := [rule for rule, kept in rules.items() if not kept]:
            raise DatasetError("PhantomConfig", broken[0], str(self), "correct that value")


DEFAULT = PhantomConfig()


def phantom(
    seed: int, shape: tuple[int, int, int] | None = None, config: PhantomConfig = DEFAULT
) -> Study:
    """The volume of patient ``seed``: a 3D study of int16 HU in L-P-S with uint8 labels; lesions
    have ``host``, ``size_class``, ``diameter_mm``, ``density``, ``contrast_hu`` and ``texture``.
    ``shape`` (Z, Y, X) replaces ``config.shape``: the same patient and range on another grid."""
    return _study(*_patient(seed, config), config, tuple(shape or config.shape))


def phantom_slice(seed: int, size: int | None = None, config: PhantomConfig = DEFAULT) -> Study:
    """One axial slice of patient ``seed``, equal to ``phantom(seed, ...).slice(z)``, made without
    making the volume; ``size`` replaces rows and columns of ``config.shape``. The seed picks the
    plane, through the core of a lesion when the patient has one."""
    patient, lesions = _patient(seed, config)
    depth, rng = config.shape[0], np.random.Generator(np.random.SFC64((seed, 1)))
    if lesions:
        lesion = lesions[rng.integers(len(lesions))]
        away = np.abs(patient.axes((depth, 1, 1))[0] - lesion.centre[2])
        core = np.flatnonzero(away <= max(lesion.attributes["diameter_mm"] / 4, away.min()))
        z = int(rng.choice(core))
    else:
        z = int(rng.integers(depth))
    plane = (size, size) if size else config.shape[1:]
    return _study(patient, lesions, config, (depth, *plane), z)


@dataclass(frozen=True)
class PhantomSource(Source):
    """Phantom patients; the key of a study is the patient's number, from ``start`` on ``count``. As
    volumes, or (``"2d"``) one slice of each. ``config`` may be a mapping of what differs."""

    start: int = 0
    count: int = 1000
    dimension: Literal["2d", "3d"] = "3d"
    config: PhantomConfig = DEFAULT

    name = registered = "phantom"
    license = "generated; Apache-2.0 like this package"
    modality = "CT"
    redistributable = True
    path = None
    chooses = frozenset({"start", "count"})

    def __post_init__(self) -> None:
        if isinstance(self.config, Mapping):
            what = "fields of PhantomConfig"
            with raising(DatasetError, "phantom config", what, "correct them"):
                object.__setattr__(self, "config", PhantomConfig(**self.config))

    def index(self) -> Sequence[Entry]:
        numbers = range(self.start, self.start + self.count)
        return LazyIndex(numbers, lambda number: Entry(str(number), f"phantom-{number:06d}"))

    def study(self, key: str) -> Study:
        """The study of patient ``key``, with its scan, which comes with the labels."""
        if not key.isdecimal():
            raise DatasetError("phantom", "the number of a patient", repr(key), "correct the key")
        make = phantom if self.dimension == "3d" else phantom_slice
        return replace(make(int(key), config=self.config), key=key)

    def scan(self, key: str) -> Volume | np.ndarray:
        return self.study(key).scan


class _Parts(NamedTuple):
    """Ellipsoids of tissue in the order of painting, n of them."""

    codes: np.ndarray  # (n,) tissues
    frames: np.ndarray  # (n, 3, 4): from the unit ball to mm; columns are half axes and centre
    to_ball: np.ndarray  # (n, 3, 4): from mm (x, y, z, 1) to (u, v, w)
    bends: np.ndarray  # (n,): inside is u^2 + (v - bend u^2)^2 + w^2 < 1

    @classmethod
    def of(cls, codes, centre, radii, turn, bends, lean) -> Self:
        """Turned by radians in the axial plane, then leaning."""
        c, s, (to_x, to_y), n = np.cos(turn), np.sin(turn), lean.T, len(turn)
        axes, back = np.zeros((n, 3, 3)), np.zeros((n, 3, 3))  # back: the inverse of the axes
        axes[:, 0] = np.stack([c, -s, to_x], axis=1)
        axes[:, 1] = np.stack([s, c, to_y], axis=1)
        back[:, 0] = np.stack([c, s, -c * to_x - s * to_y], axis=1)
        back[:, 1] = np.stack([-s, c, s * to_x - c * to_y], axis=1)
        axes[:, 2, 2] = back[:, 2, 2] = 1
        axes *= radii[:, None]
        back /= radii[:, :, None]
        origin = -back @ centre[:, :, None]
        origin[:, 1, 0] += 0.3 * bends  # so that a bean keeps its middle
        frames = np.concatenate([axes, centre[:, :, None]], axis=2)
        return cls(codes, frames, np.concatenate([back, origin], axis=2), bends)


_FAR_AWAY = 1e5  # mm: where organs are put that were taken out
_IN_WALL = 128  # tissues from this code on are seen in the wall of the trunk, too
_CODE = {name: row[0] for name, row in _TABLE["tissues"].items()}
_LABEL = np.arange(256, dtype=np.uint8)  # of every tissue; a lesion has it as its code
_HU, _DEVIATION = np.zeros((3, 256)), np.zeros(256)  # means by phase, and between patients
for _code, _label, _means, _deviation in _TABLE["tissues"].values():
    _LABEL[_code], _HU[:, _code], _DEVIATION[_code] = _label, _means, _deviation
_SOFT = np.flatnonzero((_DEVIATION > 0) & (abs(_HU[0] - 25) < 75))
_INNER_FAT = _CODE["inner fat"]
_WALL = np.array([_CODE[name] for name in ("air", "fat", "muscle", "rib")], np.uint8)
_tissues_of, _CENTRE, _RADII, _TURN, _BEND, _LEAN, _groups_of = (
    np.array(column) for column in zip(*_TABLE["parts"], strict=True)
)
_CODES = np.array([_CODE[name] for name in _tissues_of])
_LAST = {code: n for n, code in enumerate(_CODES.tolist())}  # the part painted last of a tissue
_BEHIND = np.array([_INNER_FAT, *_CODES])  # tissue of a part from 1, and of none
_GROUPS = [*dict.fromkeys(_groups_of)]
_GROUP = np.array([_GROUPS.index(name) for name in _groups_of])
_LOOSE = np.array([_TABLE["loose"].get(name, 1.0) for name in _groups_of])


class _Lesion(NamedTuple):
    label: int
    centre: np.ndarray  # (x, y, z) in mm
    hu: float
    pattern: np.ndarray  # (n, n) of +1 and -1, repeated along y and x: its texture
    attributes: dict[str, object]


@dataclass(frozen=True)
class _Patient:
    """What the seed decides; mm as in ``anatomy.yaml``, but x and y from the middle of the scan."""

    seed: int
    parts: _Parts  # the lesions last
    trunk: np.ndarray  # (2, 3): from (x, y, 1) to the axes of the cavity, in units of its half axes
    square: float  # 0 is an elliptic trunk, more is boxier
    wall: tuple[float, float, float]  # levels at which cavity, muscle and fat end
    hu: np.ndarray  # (256,) mean by tissue
    extent: tuple[float, float, float]  # mm of the scan along z, y, x
    middle: float  # z of its middle
    phases: tuple[float, ...]  # radians: of the brightness field along x and y, of the ribs
    looks: tuple[float, float, float]  # noise and field in HU, blur in pixels

    def axes(self, shape: tuple[int, ...]) -> list[np.ndarray]:
        """Voxel centres in mm along z, y and x of a grid over the scan."""
        z, y, x = (
            ((np.arange(n) + 0.5) * (mm / n) - mm / 2).astype(np.float32)
            for n, mm in zip(shape, self.extent, strict=True)
        )
        return [z + np.float32(self.middle), y, x]


def _patient(seed: int, config: PhantomConfig) -> tuple[_Patient, list[_Lesion]]:
    """Draw body, organs, looks and range of the scan, then the lesions."""
    if not 0 <= seed < 1 << 32:
        raise DatasetError("phantom", "a seed from 0 to 2^32 - 1", str(seed), "count from 0")
    rng = np.random.Generator(np.random.SFC64((seed,)))
    vary = rng.standard_normal((len(_GROUPS) + 1, 9)).clip(-2, 2) * config.variation
    scale, girth, depth, roll, x0, y0, square, wall, _ = vary[-1].tolist()
    length, top, noise, field, blur = (
        low + (high - low) * rng.random()
        for low, high in (config.length, config.top, config.noise, config.field, config.blur)
    )
    fat = config.fat[0] + (config.fat[1] - config.fat[0]) * rng.random() ** 1.5
    scale, muscle, roll = 1 + 0.04 * scale, 11 * (1 + 0.2 * wall), math.radians(3 * roll)
    roomy = scale * (0.96 + 0.002 * fat)  # who is fat is so between the organs, too
    around = np.array((roomy * (1 + 0.03 * girth), roomy * (1 + 0.04 * depth), scale))
    cavity = around[:2] * _TABLE["cavity"]
    radius = float(cavity.mean())
    across = 2 * (cavity[0] + muscle + fat) * rng.uniform(1.02, 1.18)
    across = min(max(across, config.field_of_view[0]), config.field_of_view[1])
    rotation = np.array(((math.cos(roll), math.sin(roll)), (-math.sin(roll), math.cos(roll))))
    origin = (8 * x0, 8 * y0)
    own = vary[_GROUP]  # of every part, equal within a group
    centre = _CENTRE * around + own[:, :3] * _LOOSE[:, None] * (5, 5, 8)
    centre[:, :2] = centre[:, :2] @ rotation + origin
    removed = {name for name in REMOVABLE if rng.random() < config.absent}
    if {"left kidney", "right kidney"} <= removed:  # one always stays
        removed.remove("left kidney" if rng.random() < 0.5 else "right kidney")
    for name in removed:
        centre[_GROUP == _GROUPS.index(name), 2] = _FAR_AWAY
    growth = scale * (1 + 0.07 * own[:, 3:4] + 0.04 * own[:, 4:7])
    turn = roll + np.radians(_TURN + 7 * own[:, 7] * _LOOSE)
    bends, lean = _BEND * (1 + 0.3 * own[:, 7]), _LEAN * (1 + 0.3 * own[:, 8:]) @ rotation
    parts = _Parts.of(_CODES, centre, _RADII * growth, turn, bends, lean)
    patient = _Patient(
        seed=seed,
        parts=parts,
        trunk=np.column_stack([rotation, -rotation @ origin]) / cavity[:, None],
        square=0.3 + 0.15 * square,
        wall=tuple((1 + mm / radius) ** 2 for mm in (0, muscle, muscle + fat)),
        hu=_brightness(rng, config),
        extent=(length, across, across),
        middle=top - length / 2,
        phases=tuple(rng.uniform(0, 2 * math.pi, 3).tolist()),
        looks=(noise, field, blur),
    )
    return _with_lesions(patient, rng, config)


def _brightness(rng: np.random.Generator, config: PhantomConfig) -> np.ndarray:
    """(256,) mean HU of the tissues: a phase with some of another, or soft tissues at random."""
    phase, other = _weighted(rng, config.phases), _weighted(rng, config.phases)
    hu = _HU[phase] + 0.4 * rng.random() * (_HU[other] - _HU[phase])
    hu += _DEVIATION * rng.standard_normal(256).clip(-2, 2)
    if rng.random() < config.random_contrast:
        hu[_SOFT] = rng.uniform(-20, 230, len(_SOFT))
    return hu.astype(np.float32)


def _weighted(rng: np.random.Generator, weights: tuple[float, ...]) -> int:
    return bisect(list(accumulate(weights)), rng.random() * sum(weights))


def _with_lesions(
    patient: _Patient, rng: np.random.Generator, config: PhantomConfig
) -> tuple[_Patient, list[_Lesion]]:
    """Draw lesions and find a host for each; one that fits nowhere is left out."""
    lesions: list[_Lesion] = []
    for _ in range(_weighted(rng, config.lesion_counts)):
        density, size, texture = (
            known[rng.integers(len(known))]
            for known in (config.densities, config.sizes, config.textures)
        )
        diameter = round(rng.uniform(*SIZES[size]), 1)
        contrast = rng.uniform(*config.contrast)
        taken = [lesion.attributes["host"] for lesion in lesions]
        keys = (rng.exponential(size=len(HOSTS)) / tuple(HOSTS.values())).tolist()
        for _, host in sorted(zip(keys, HOSTS, strict=True)):  # in weighted random order
            if host in taken or (host in _LUNGS and density != "hyperdense"):
                continue
            centre = _place(patient, ORGANS[host], diameter / 2, lesions, rng)
            if centre is None:
                continue
            around = float(patient.hu[ORGANS[host]])
            hu = 40.0 if host in _LUNGS else around + _SIGNS[density] * contrast
            attributes = {
                "host": host,
                "size_class": size,
                "diameter_mm": diameter,
                "density": density,
                "contrast_hu": round(hu - around),
                "texture": texture,
            }
            pattern = texture_pattern(texture, rng)
            lesions.append(_Lesion(ORGANS[host] + 20, centre, hu, pattern, attributes))
            break
    if not lesions:
        return patient, lesions
    labels, centres = (np.array(column) for column in list(zip(*lesions, strict=True))[:2])
    radius = np.array([[lesion.attributes["diameter_mm"] / 2] for lesion in lesions])
    radii, zero = radius * rng.uniform(0.92, 1.08, (len(lesions), 3)), np.zeros(len(lesions))
    balls = _Parts.of(labels, centres, radii, zero, zero, np.zeros((len(lesions), 2)))
    parts = _Parts(*map(np.concatenate, zip(patient.parts, balls, strict=True)))
    return replace(patient, parts=parts), lesions


_TRIES = 8
# Where it is tried whether a lesion lies well, in its radii: middle, above, below, on four sides.
_PROBES = np.array([(0, 0, 0), *(0.9 * axis for one in (1, -1) for axis in one * np.eye(3))])


def _place(
    patient: _Patient, code: int, radius: float, others: list[_Lesion], rng: np.random.Generator
) -> np.ndarray | None:
    """A middle for a lesion mostly in that organ, bulging at most into fat; None if no try fits."""
    frame = patient.parts.frames[_LAST[code]]
    radii = np.sqrt((frame[:, :3] ** 2).sum(axis=0))
    ball = rng.uniform(-0.9, 0.9, (_TRIES, 3)) * np.maximum(1 - 0.7 * radius / radii, 0.25)
    middles = ball @ frame[:, :3].T + frame[:, 3]
    reach = max(patient.extent[0] / 2 - 10, 0)
    middles[:, 2] = middles[:, 2].clip(patient.middle - reach, patient.middle + reach)
    x, y, z = (middles[:, None, :] + _PROBES * radius).reshape(-1, 3).T
    ball = patient.parts.to_ball.reshape(-1, 4) @ np.stack([x, y, z, np.ones(len(x))])
    u, v, w = ball.reshape(-1, 3, len(x)).transpose(1, 0, 2)
    u2 = u * u
    covers = u2 + (v - patient.parts.bends[:, None] * u2) ** 2 + w * w < 1
    front = (covers * np.arange(1, len(covers) + 1)[:, None]).max(axis=0)  # 0: no part
    tissue = _BEHIND[front]
    tissue *= _trunk_level(patient, x, y) < patient.wall[0]  # 0: outside the cavity
    tissue = tissue.reshape(_TRIES, -1)
    inside = tissue == code
    good = (inside | (tissue == _INNER_FAT)).all(axis=1)
    good &= inside[:, 0] & (inside.mean(axis=1) >= 0.6)
    for other in others:
        gap = np.linalg.norm(middles - other.centre, axis=1)
        good &= gap > radius + other.attributes["diameter_mm"] / 2 + 8
    return middles[np.argmax(good)] if good.any() else None


def _trunk_level(patient: _Patient, x, y):
    """Grows outwards, 1 at the outline of the cavity, which is a rounded box."""
    (ux, uy, u0), (vx, vy, v0) = patient.trunk.tolist()
    u2, v2 = (ux * x + uy * y + u0) ** 2, (vx * x + vy * y + v0) ** 2
    return u2 + v2 + patient.square * (u2 * (u2 - 1) + v2 * (v2 - 1))


# The cells of 2 x 2 pixels of which a texture is made: one of these, or mottled all of them mixed.
_CELLS = np.array([[[1, -1], [1, -1]], [[1, 1], [-1, -1]], [[1, -1], [-1, 1]]])


def texture_pattern(name: str, rng: np.random.Generator) -> np.ndarray:
    """(n, n) of +1 and -1 (homogeneous: 0), n even, to be tiled; aligned 2 x 2 cells sum to 0."""
    if name == "homogeneous":
        return np.zeros((2, 2), int)
    if name != "mottled":
        return _CELLS[TEXTURES.index(name)] * (1 - 2 * rng.integers(2))
    cells = _CELLS[rng.integers(3, size=(32, 32))] * (1 - 2 * rng.integers(2, size=(32, 32, 1, 1)))
    return cells.transpose(0, 2, 1, 3).reshape(64, 64)


def _study(patient: _Patient, lesions: list[_Lesion], config, shape, z: int | None = None) -> Study:
    """The patient scanned on a grid (Z, Y, X), or on its plane ``z`` alone."""
    planes = range(shape[0]) if z is None else range(z, z + 1)
    labels, scan = _scan(patient, lesions, shape, planes, config)
    name = f"phantom-{patient.seed:06d}"
    spacing = tuple(mm / n for mm, n in zip(patient.extent, shape, strict=True))
    if z is None:
        # x runs to the left and y to the back, against the axes of NIfTI.
        affine = np.diag((-spacing[2], -spacing[1], spacing[0], 1.0))
        affine[:3, 3] = [(n - 1) / 2 * mm for n, mm in zip(shape, spacing, strict=True)][::-1]
        affine[2, 3] = patient.middle - affine[2, 3]
        scan, about = Volume(scan, affine, source=name), {"id": name}
    else:
        labels, scan = labels[0], scan[0]
        about = {"id": f"{name}-z{z:03d}", "spacing": spacing[1:], "directions": "LP"}
        about["details"] = {"z": z, "volume": name}
    about |= {"patient": name, "source": PhantomSource.name, "license": PhantomSource.license}
    about |= {"modality": PhantomSource.modality, "window": config.window, "all_lesions": True}
    about["attributes"] = {lesion.label: lesion.attributes for lesion in lesions}
    return Study.from_labels(labels, LABELS, scan=scan, inside=INSIDE, **about)


def _scan(patient: _Patient, lesions: list[_Lesion], shape, planes: range, config: PhantomConfig):
    """Labels uint8 and HU int16 of some planes of a grid, (planes, Y, X)."""
    z, y, x = patient.axes(shape)
    tissue, boxes = _tissues(patient, x, y, z[planes.start : planes.stop])
    means = patient.hu.copy()
    means[[lesion.label for lesion in lesions]] = [lesion.hu for lesion in lesions]
    hu = np.take(means, tissue)
    noise, field, blur = patient.looks
    w = blur**2 / 2  # weights w, 1 - 2w, w along y, then x, have the variance 2w
    for along in (np.moveaxis(hu, 1, 0), np.moveaxis(hu, 2, 0)):
        sides = along[:-2] + along[2:]
        along[1:-1] *= 1 - 2 * w
        along[1:-1] += np.multiply(sides, w, out=sides)
    for lesion, box in zip(lesions, boxes[len(boxes) - len(lesions) :], strict=True):
        j, i = (
            (2 * np.arange(n)[part] + 1) * config.shades // (2 * n) % len(lesion.pattern)
            for part, n in zip(box[1:], shape[1:], strict=True)
        )
        here = tissue[box] == lesion.label
        hu[box] += config.texture_contrast * lesion.pattern[j[:, None], i] * here
    in_x, in_y, _ = patient.phases
    hu += field * (np.cos(x / 90 + in_x) + np.cos(y[:, None] / 70 + in_y))
    hu += _noise(patient.seed, noise, shape, planes)
    return np.take(_LABEL, tissue), np.rint(hu, out=hu).astype(np.int16)


def _noise(seed: int, deviation: float, shape, planes: range) -> np.ndarray:
    """(planes, Y, X) float32 HU; a plane's depends on no other. Three random bytes make a bell."""
    pixels = shape[1] * shape[2]
    words = -(-3 * pixels // 8)  # of 64 bit, for a plane
    bits = np.random.PCG64(np.random.SeedSequence((seed, 2, shape[0])))
    raw = bits.advance(planes.start * words).random_raw(len(planes) * words).view(np.uint8)
    raw = raw.reshape(len(planes), -1)[:, : 3 * pixels].reshape(len(planes), 3, *shape[1:])
    total = raw[:, 0].astype(np.float32)
    total += raw[:, 1]
    total += raw[:, 2]
    total -= 3 * 127.5
    total *= deviation / math.sqrt(3 * (256**2 - 1) / 12)
    return total


def _tissues(patient: _Patient, x, y, z) -> tuple[np.ndarray, list]:
    """The tissue of every voxel (a lesion's is its label), and the box around every part.

    A point's place in a unit ball is linear in x, y and z: a sum of three *one-dimensional* arrays,
    which costs two additions a voxel. That is where the speed of this generator comes from.
    """
    parts = patient.parts
    to_ball = parts.to_ball.astype(np.float32)[..., None]
    along_x, along_y = to_ball[:, :2, 0] * x, to_ball[:, :2, 1] * y
    along_z = to_ball[:, :2, 2] * z + to_ball[:, :2, 3]
    limits = 1 - (to_ball[:, 2, 2] * z + to_ball[:, 2, 3]) ** 2
    boxes = _boxes(parts, (x, y, z))
    painted = np.full((len(z), len(y), len(x)), _INNER_FAT, np.uint8)
    columns = (parts.codes.tolist(), parts.bends.tolist(), boxes)
    for n, (code, bend, box) in enumerate(zip(*columns, strict=True)):
        in_z, in_y, in_x = box
        if in_z.start == in_z.stop:
            continue
        in_plane = along_x[n, :, None, in_x] + along_y[n, :, in_y, None]
        u, v = in_plane[:, None] + along_z[n, :, in_z, None, None]
        u *= u  # in place: fresh memory costs more than the sums
        if bend:
            v -= bend * u
        v *= v
        u += v
        np.copyto(painted[box], code, where=u < limits[n, in_z, None, None])
    return _in_trunk(patient, painted, x, y, z), boxes


def _boxes(parts: _Parts, axes) -> list[tuple[slice, slice, slice]]:
    """The voxels (z, y, x) around every part."""
    half = np.sqrt((parts.frames[:, :, :3] ** 2).sum(axis=2)) + 1
    half += np.abs(parts.bends[:, None] * parts.frames[:, :, 1])
    x, y, z = (
        list(map(slice, *np.searchsorted(axis, (mid - way, mid + way)).tolist()))
        for axis, mid, way in zip(axes, parts.frames[:, :, 3].T, half.T, strict=True)
    )
    return list(zip(z, y, x, strict=True))


def _in_trunk(patient: _Patient, painted: np.ndarray, x, y, z) -> np.ndarray:
    """Organs as far as the cavity reaches; around it muscle with ribs, then fat, then air."""
    x, y, z = x, y[:, None], z[:, None, None]
    level = _trunk_level(patient, x, y)
    cavity, muscle, body = (level < limit for limit in patient.wall)
    # Ribs cross an axial slice obliquely: it shows them as dots, which wander from slice to slice.
    angle = 21 * y / (np.abs(x) + np.abs(y) + 1)  # grows as an angle does, and is cheaper
    turn = 0.12 * z + patient.phases[2]
    dots = np.cos(angle) * np.cos(turn) - np.sin(angle) * np.sin(turn) > 0.4  # cos(angle + turn)
    tissue = np.take(_WALL, body.view(np.uint8) + muscle + (dots & muscle & (z > -150)))
    np.copyto(tissue, painted, where=cavity | (muscle & (painted >= _IN_WALL)))
    return tissue
