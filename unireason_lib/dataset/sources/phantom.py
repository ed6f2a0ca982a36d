"""Torso phantoms: CT-like scans of patients that never lived, whose truth is known exactly.

A **patient** is a list of numbers drawn from one seed: where each organ lies, how large, turned and bent it
is, how it takes up contrast medium, which organs were removed, what lesions it has. The anatomy is a function
of position in millimetres, so the same patient can be scanned on any grid: :func:`phantom` evaluates it on a
volume, :func:`phantom_slice` on one plane of that volume only, and both agree voxel by voxel, noise included.

    seed -> patient (blobs in mm) -> label map -> Hounsfield units -> blur -> lesion texture -> field and noise

Every organ is an ellipsoid that may be turned, tilted and bent into a bean; painting them back to front
(lungs, then the heart and the liver dome over them, ... spine) makes the concave outlines. Lesions carry four
attributes: host organ, size class, density against the host, and **texture**, a pattern of one or two pixels
at 64 x 64. The four textures have the same mean and the same variance, sum to zero over every 2 x 2 cell and
start with either shade, so that nothing of them survives averaging and no fixed template finds them: whoever
wants to know must look at the lesion up close. That is what makes looking again worth it in the study.

It is schematic on purpose: a torso of 300 mm in which organs lie where they do in a person (liver on the
patient's right, spine behind, lungs above) but are simple, and lesions large enough to show a texture on
a 64 x 64 grid. Not for any conclusion about real CT.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from unireason_lib.dataset.study import Study
from unireason_lib.errors import DatasetError, explain
from unireason_lib.imaging import Volume

BODY = "body"
ORGANS: dict[str, int] = {
    "right lung": 2,
    "left lung": 3,
    "heart": 4,
    "liver": 5,
    "stomach": 6,
    "spleen": 7,
    "left kidney": 8,
    "right kidney": 9,
    "gallbladder": 10,
    "inferior vena cava": 11,
    "aorta": 12,
    "spine": 13,
    "bowel": 14,
}
"""Label of every organ in the label maps of phantoms; the body around them has label 1."""
HOSTS = ("liver", "spleen", "left kidney", "right kidney", "heart", "stomach", "left lung", "right lung")
"""Organs that can have a lesion, at most one each; the lesion of an organ has that organ's label plus 20."""
_LUNGS = ("left lung", "right lung")  # filled with air: any lesion there is denser
REMOVABLE = ("spleen", "left kidney", "right kidney", "gallbladder", "stomach")
TEXTURES = ("vertically striped", "horizontally striped", "checkered", "mottled", "homogeneous")
SIZES: dict[str, tuple[float, float]] = {"small": (46, 54), "medium": (60, 68), "large": (76, 94)}
"""Size class -> range of the diameter in mm, with gaps in between: the class is never a matter of opinion."""

LABELS: dict[int, str] = {
    1: BODY,
    **{label: name for name, label in ORGANS.items()},
    **{ORGANS[host] + 20: f"{host} lesion" for host in HOSTS},
}
"""Every value of a phantom's label map and its name."""
INSIDE: dict[int, int] = {
    **dict.fromkeys(ORGANS.values(), 1),
    **{ORGANS[host] + 20: ORGANS[host] for host in HOSTS},
}

_MUSCLE, _INNER_FAT, _BONE = 200, 201, 202  # tissues of the body without an outline of their own


@dataclass(frozen=True)
class PhantomConfig:
    """What the phantoms look like and how hard they are.

    Args:
        shape: (Z, Y, X) of a volume; ``phantom_slice`` takes its planes from the same Z.
        field_of_view: (z, y, x) extent in mm; the voxel size follows from the shape.
        variation: How much patients differ in anatomy; 1 is a varied clinic, 0 makes all the same. The
            default is what a model of a few million parameters can learn much of in the minutes that a laptop has.
        warp: Largest smooth displacement in mm along x and along y.
        noise: Range of the standard deviation of the noise, in HU; each patient has one.
        field: Range of the amplitude of the smooth brightness field, in HU.
        uptake: Range of the share of contrast medium that a patient has taken up. Without any, organs differ by a few
            HU, which at 64 x 64 nobody sees; the default is a scan in the late arterial phase.
        absent: Probability of each removable organ to be missing (never both kidneys).
        lesion_counts: Relative frequency of 0, 1, 2, ... lesions.
        sizes: Size classes that occur, of :data:`SIZES`.
        contrast: Range of the distance in HU between the mean of a lesion and its host. Lesions of the lung are
            of soft tissue and always hyperdense.
        densities: Densities that occur, of ``"hypodense"``, ``"hyperdense"``, ``"isodense"`` (then only
            texture shows).
        textures: Textures that occur, of :data:`TEXTURES`. All but ``"homogeneous"`` have equal mean and
            variance; that one lacks the variance, and is therefore not in the default.
        texture_contrast: Half the difference in HU between the two shades of a texture.
        texture_mm: Width of one shade, in mm. The default is one pixel of a 64 x 64 picture.
        window: HU range in which to show the scans.

    Raises:
        DatasetError: A value is out of range or not one of the known names.
    """

    shape: tuple[int, int, int] = (8, 64, 64)
    field_of_view: tuple[float, float, float] = (300.0, 340.0, 340.0)
    variation: float = 0.6
    warp: float = 4.0
    noise: tuple[float, float] = (4.0, 10.0)
    field: tuple[float, float] = (0.0, 8.0)
    uptake: tuple[float, float] = (0.7, 1.0)
    absent: float = 0.1
    lesion_counts: tuple[float, ...] = (0.15, 0.45, 0.25, 0.15)
    sizes: tuple[str, ...] = ("medium", "large")
    contrast: tuple[float, float] = (80.0, 110.0)
    densities: tuple[str, ...] = ("hypodense", "hyperdense")
    textures: tuple[str, ...] = TEXTURES[:4]
    texture_contrast: float = 45.0
    texture_mm: float = 340 / 64
    window: tuple[float, float] = (-150.0, 350.0)

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, list):  # as a profile file has it
                object.__setattr__(self, name, tuple(value))
        checks = {
            "shape of three positive sizes": len(self.shape) == 3 and min(self.shape) >= 1,
            "positive field_of_view, texture_mm": min(*self.field_of_view, self.texture_mm) > 0,
            "variation, warp, texture_contrast >= 0": min(self.variation, self.warp, self.texture_contrast)
            >= 0,
            "ranges (low, high) with 0 <= low <= high": all(
                0 <= low <= high for low, high in (self.noise, self.field, self.contrast)
            ),
            "absent in [0, 1]": 0 <= self.absent <= 1,
            "one to nine lesion_counts, not all zero": 0 < len(self.lesion_counts) <= len(HOSTS) + 1
            and min(self.lesion_counts) >= 0
            and sum(self.lesion_counts) > 0,
            f"sizes of {tuple(SIZES)}": 0 < len(self.sizes) and set(self.sizes) <= set(SIZES),
            "densities of hypodense, hyperdense, isodense": 0 < len(self.densities)
            and set(self.densities) <= {"hypodense", "hyperdense", "isodense"},
            f"textures of {TEXTURES}": 0 < len(self.textures) and set(self.textures) <= set(TEXTURES),
        }
        for rule, kept in checks.items():
            if not kept:
                raise DatasetError(
                    explain("PhantomConfig", expected=rule, found=str(self), do="correct that value")
                )

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Voxel size (z, y, x) in mm."""
        return tuple(mm / n for mm, n in zip(self.field_of_view, self.shape, strict=True))


DEFAULT = PhantomConfig()


def phantom(seed: int, shape: tuple[int, int, int] | None = None, config: PhantomConfig = DEFAULT) -> Study:
    """The volume of patient ``seed``.

    Args:
        seed: Number of the patient, 0 or more. The same number gives the same study, whatever else is made.
        shape: (Z, Y, X), in place of ``config.shape``: the same patient on another grid.
        config: Looks and difficulty.

    Returns:
        A 3D study: int16 HU in L-P-S, uint8 labels, structures measured, lesions with ``host``, ``size_class``,
        ``diameter_mm``, ``density``, ``contrast_hu`` and ``texture``.
    """
    patient, lesions = _patient(seed, config)
    shape = tuple(shape or config.shape)
    labels, hu = _scan(patient, lesions, shape, range(shape[0]), config)
    return _study(patient, lesions, config, labels, Volume(hu, _affine(config, shape), source=_name(seed)))


def phantom_slice(
    seed: int,
    size: int | tuple[int, int] | None = None,
    z: int | None = None,
    config: PhantomConfig = DEFAULT,
) -> Study:
    """One axial slice of patient ``seed``, made without making the volume.

    Args:
        seed: Number of the patient.
        size: Pixels along y and x, in place of those of ``config.shape``.
        z: Index of the plane among ``config.shape[0]``. None picks one at random (fixed by the seed), through
            the core of a lesion when the patient has one.
        config: Looks and difficulty.

    Returns:
        A 2D study, equal to ``phantom(seed, ...).slice(z)``.

    Raises:
        DatasetError: There is no plane ``z``.
    """
    patient, lesions = _patient(seed, config)
    size = config.shape[1:] if size is None else (size, size) if isinstance(size, int) else tuple(size)
    shape = (config.shape[0], *size)
    z = _plane_to_show(patient, lesions, shape[0], config) if z is None else z
    if not 0 <= z < shape[0]:
        raise DatasetError(
            explain(
                _name(seed), expected=f"a plane from 0 to {shape[0] - 1}", found=str(z), do="choose another z"
            )
        )
    labels, hu = _scan(patient, lesions, shape, range(z, z + 1), config)
    return _study(patient, lesions, config, labels[0], hu[0], z)


def patients(
    start: int, count: int, dimension: Literal["2d", "3d"] = "3d", config: PhantomConfig = DEFAULT
) -> Iterator[Study]:
    """The studies of ``count`` patients from number ``start`` on, made one by one as they are asked for."""
    make = phantom if dimension == "3d" else phantom_slice
    return (make(seed, config=config) for seed in range(start, start + count))


@dataclass(frozen=True)
class PhantomSource:
    """Phantom patients as a source of studies (see :class:`unireason_lib.dataset.sources.Source`)."""

    start: int = 0
    count: int = 1000
    dimension: Literal["2d", "3d"] = "3d"
    config: PhantomConfig = DEFAULT

    name = "phantom"
    license = "generated; Apache-2.0 like this package"
    modality = "CT"
    redistributable = True

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Study:
        if not 0 <= k < self.count:
            raise IndexError(k)
        return (phantom if self.dimension == "3d" else phantom_slice)(self.start + k, config=self.config)

    def __iter__(self) -> Iterator[Study]:
        return patients(self.start, self.count, self.dimension, self.config)


# --- the patient ------------------------------------------------------------------------------------------

# Name, centre (x to the left, y to the back, z to the head; mm, z from the dome of the diaphragm), radii, turn
# in the axial plane (degrees), bend (0 is a plain ellipsoid), HU without and with contrast medium; in the
# order of painting. Proportions are those of an axial anatomy atlas, simplified; small organs are drawn
# larger than life.
_LONG = 1e6
_ANATOMY: tuple[tuple, ...] = (
    ("right lung", (-74, 2, 78), (62, 88, 108), -6, 0.0, (-840, -820)),
    ("left lung", (78, 4, 82), (58, 86, 104), 6, 0.0, (-840, -820)),
    ("heart", (22, -34, 38), (60, 46, 50), -30, 0.0, (42, 155)),
    ("liver", (4, -46, -40), (72, 34, 36), -8, 0.2, (56, 90)),
    ("liver", (-66, -2, -60), (78, 82, 74), 12, 0.0, (56, 90)),
    ("bowel", (36, -50, -116), (27, 20, 24), 10, 0.3, (32, 52)),
    ("bowel", (-14, -44, -126), (25, 18, 26), -20, -0.3, (32, 52)),
    ("bowel", (72, -8, -122), (19, 28, 30), 10, 0.3, (32, 52)),
    ("bowel", (-58, -22, -150), (30, 24, 34), 30, 0.3, (32, 52)),
    ("bowel", (22, -2, -140), (30, 17, 24), -15, 0.3, (32, 52)),
    ("stomach", (58, -38, -46), (48, 42, 50), 25, 0.25, (6, 10)),
    ("spleen", (92, 34, -42), (34, 52, 52), -18, 0.0, (48, 145)),
    ("left kidney", (64, 48, -90), (36, 38, 58), 65, 0.3, (34, 195)),
    ("right kidney", (-62, 50, -102), (36, 38, 58), 115, 0.3, (34, 195)),
    ("gallbladder", (-38, -56, -96), (19, 25, 28), 20, 0.0, (6, 8)),
    ("inferior vena cava", (-19, 32, -160), (13, 11, 175), 0, 0.0, (40, 130)),
    ("aorta", (15, 42, 0), (14, 14, _LONG), 0, 0.0, (42, 215)),
    ("spine", (0, 92, 0), (9, 17, _LONG), 0, 0.0, (280, 280)),
    ("spine", (0, 74, 0), (24, 20, _LONG), 0, 0.0, (280, 280)),
)
_GAP = 6.0  # mm of fat around the organs that lie in it, so that they stand out from their neighbours
_WRAPPED = {
    ORGANS[name]: 2 * _GAP / (radii[0] + radii[1])
    for name, _, radii, *_ in _ANATOMY
    if name in ("stomach", "spleen", "left kidney", "right kidney")
}  # label -> that thickness as a share of the organ's radius
_BODY_RADII = (154.0, 114.0)
_TILT = 0.12


@dataclass(frozen=True)
class _Lesion:
    """A lesion: its blob, its mean HU, the look of its texture, and what is said about it."""

    label: int
    blob: tuple[float, ...]
    hu: float
    shade: float  # +1 or -1: which of the two shades comes first
    cells: np.ndarray  # (n, n, 2, 2) of +1 and -1: the cells of the mottled texture
    attributes: dict[str, object]


@dataclass(frozen=True)
class _Patient:
    """What the seed decides; mm from the middle of the scan, x to the left, y to the back, z to the head."""

    seed: int
    body: tuple[float, ...]  # a blob without end, see _blob
    square: float  # 0 is an elliptic body, more is boxier
    taper: float  # relative growth of the body from the middle to the head end
    wall: tuple[float, float]  # share of the radius inside fat, and inside fat and muscle
    blobs: np.ndarray  # (organs, 10), see _blob
    labels: tuple[int, ...]
    hu: np.ndarray  # (256,) mean HU by tissue
    dome: float  # z of the diaphragm
    waves: np.ndarray  # (5, 2): wave number per mm and phase of the warps (4 rows) and of the ribs
    warp: tuple[float, float, float, float]  # mm: x along y, x along z, y along x, y along z
    noise: float
    field: float


def _name(seed: int) -> str:
    return f"phantom-{seed:06d}"


def _generator(*key: int) -> np.random.Generator:
    """A generator of its own for every key, so that nothing depends on what was drawn elsewhere."""
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(key)))


def _blob(centre, radii, turn: float, bend: float = 0.0, tilt: float = 0.0) -> tuple[float, ...]:
    """An ellipsoid as ten numbers, for :func:`_level`: turned by ``turn`` radians in the axial plane, leaning
    by ``tilt`` along its first axis and bent along its second."""
    (x, y, z), (rx, ry, rz) = centre, radii
    c, s = math.cos(turn), math.sin(turn)
    return (x, y, z, c / rx, s / rx, -s / ry, c / ry, 1 / rz, bend, tilt)


def _own_axes(blob, x, y, z):
    """Points in the blob's own axes, in units of its radii."""
    cx, cy, cz, ux, uy, vx, vy, wz, _, tilt = blob
    w = (z - cz) * wz
    return (x - cx) * ux + (y - cy) * uy + tilt * w, (x - cx) * vx + (y - cy) * vy, w


def _level(u, v, w, bend):
    """Below 1 inside a blob, from a point in its own axes."""
    u2 = u * u
    v = v - bend * (u2 - 0.3)
    return u2 + v * v + w * w


def _patient(seed: int, config: PhantomConfig) -> tuple[_Patient, list[_Lesion]]:
    if not 0 <= seed < 1 << 32:
        raise DatasetError(
            explain("phantom", expected="a seed from 0 to 2^32 - 1", found=str(seed), do="count from 0")
        )
    rng = _generator(seed)
    patient = _anatomy(seed, rng, config)
    return patient, _lesions(patient, rng, config)


def _anatomy(seed: int, rng: np.random.Generator, config: PhantomConfig) -> _Patient:
    vary = config.variation * np.clip(rng.standard_normal((len(_ANATOMY) + 2, 9)), -2, 2)
    scale, girth, depth, taper, roll, dome, *shift, square = vary[-1].tolist()
    fat, muscle = vary[-2, :2].tolist()
    uptake, bone, noise, field, *warp = rng.random(8).tolist()
    uptake = config.uptake[0] + uptake * (config.uptake[1] - config.uptake[0])
    removed = _removed(rng, config.absent)
    scale = 1 + 0.03 * scale
    girth, depth = scale * (1 + 0.03 * girth), scale * (1 + 0.05 * depth)
    roll, dome = math.radians(3) * roll, 15 + 10 * dome
    x0, y0 = 3 * shift[0], 3 * shift[1]
    c, s = math.cos(roll), math.sin(roll)
    hu = np.zeros(256, np.float32)
    hu[[0, 1, _MUSCLE, _INNER_FAT, _BONE]] = (-1000, -105, 55, -92, 180 + 150 * bone)
    blobs, labels = [], []
    for (name, (x, y, z), (rx, ry, rz), turn, bend, (plain, enhanced)), own in zip(
        _ANATOMY, vary[:-2], strict=True
    ):
        if name in removed:
            continue
        dx, dy, dz, sx, sy, sz, dturn, tilt, dhu = own.tolist()
        fixed = name in ("spine", "aorta", "inferior vena cava")
        loose = 0.0 if name == "spine" else 0.4 if fixed else 1.0
        x, y = girth * x + 6 * loose * dx, depth * y + 5 * loose * dy
        z = 0.0 if rz == _LONG else dome + scale * z + 8 * dz
        radii = (girth * rx * (1 + 0.08 * sx), depth * ry * (1 + 0.08 * sy), scale * rz * (1 + 0.08 * sz))
        turn = roll + (0.0 if fixed else math.radians(turn + 8 * dturn))
        centre = (x0 + c * x - s * y, y0 + s * x + c * y, z)
        blobs.append(_blob(centre, radii, turn, bend * (1 + 0.3 * dturn), 0.0 if fixed else _TILT * tilt))
        labels.append(ORGANS[name])
        hu[ORGANS[name]] = (
            plain + (enhanced - plain) * uptake + 5 * dhu + (80 * bone if name == "spine" else 0)
        )
    waves = rng.random((5, 2))
    waves[:, 0] = 2 * math.pi / (200 + 150 * waves[:, 0])
    waves[:, 1] *= 2 * math.pi
    return _Patient(
        seed=seed,
        body=_blob((x0, y0, 0.0), (_BODY_RADII[0] * girth, _BODY_RADII[1] * depth, _LONG), roll),
        square=0.3 + 0.1 * square,
        taper=0.02 * taper,
        wall=(0.93 - 0.018 * fat, 0.86 - 0.02 * fat - 0.005 * muscle),
        blobs=np.array(blobs),
        labels=tuple(labels),
        hu=hu,
        dome=dome,
        waves=waves,
        warp=tuple(config.warp * config.variation * (share - 0.5) for share in warp),
        noise=config.noise[0] + noise * (config.noise[1] - config.noise[0]),
        field=config.field[0] + field * (config.field[1] - config.field[0]),
    )


def _removed(rng: np.random.Generator, probability: float) -> set[str]:
    """The organs that this patient had taken out; one kidney always stays."""
    removed = {
        name
        for name, chance in zip(REMOVABLE, rng.random(len(REMOVABLE)), strict=True)
        if chance < probability
    }
    if {"left kidney", "right kidney"} <= removed:
        removed.remove("left kidney" if rng.random() < 0.5 else "right kidney")
    return removed


def _lesions(patient: _Patient, rng: np.random.Generator, config: PhantomConfig) -> list[_Lesion]:
    """Draw lesions that lie where their host is the organ in front; one that fits nowhere is left out."""
    weights = np.cumsum(config.lesion_counts)
    count = int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))
    lesions: list[_Lesion] = []
    for _ in range(count):
        density, size, texture = (
            _pick(rng, known) for known in (config.densities, config.sizes, config.textures)
        )
        diameter, contrast = rng.uniform(*SIZES[size]), rng.uniform(*config.contrast)
        others = [lesion.blob for lesion in lesions]
        for name in _possible_hosts(patient, lesions, density, rng):
            blob = _place(patient, ORGANS[name], diameter / 2, others, rng, config)
            if blob is None:
                continue
            host = float(patient.hu[ORGANS[name]])
            sign = {"hypodense": -1, "hyperdense": 1, "isodense": 0}[density]
            hu = 40.0 if name in _LUNGS else host + sign * contrast
            attributes = {
                "host": name,
                "size_class": size,
                "diameter_mm": round(diameter, 1),
                "density": density,
                "contrast_hu": round(hu - host),
                "texture": texture,
            }
            cells = _CELLS[rng.integers(0, len(_CELLS), (_CELLS_ACROSS, _CELLS_ACROSS))]
            shade = 1.0 if rng.random() < 0.5 else -1.0
            lesions.append(_Lesion(ORGANS[name] + 20, blob, hu, shade, cells, attributes))
            break
    return lesions


def _possible_hosts(patient: _Patient, lesions: list[_Lesion], density: str, rng) -> list[str]:
    """In random order, the organs that the patient has, without a lesion yet, that can have one so dense."""
    taken = {lesion.label - 20 for lesion in lesions}
    return [
        HOSTS[k]
        for k in rng.permutation(len(HOSTS)).tolist()
        if ORGANS[HOSTS[k]] in patient.labels
        and ORGANS[HOSTS[k]] not in taken
        and (HOSTS[k] not in _LUNGS or density == "hyperdense")
    ]


def _pick(rng: np.random.Generator, known: tuple[str, ...]) -> str:
    return known[int(rng.random() * len(known))]


_TRIES = 12
# Where a lesion is tried for lying in its host: middle, above and below, a ring of eight at 0.8 of the radius.
_PROBES = np.array(
    [(0, 0, 0), (0, 0, 0.7), (0, 0, -0.7)]
    + [(0.8 * math.cos(a), 0.8 * math.sin(a), 0) for a in np.arange(8) * math.pi / 4]
)


def _place(
    patient: _Patient,
    label: int,
    radius: float,
    others: list,
    rng: np.random.Generator,
    config: PhantomConfig,
) -> tuple[float, ...] | None:
    """A blob of that radius inside the organ, apart from the others; None when none of some tries fits."""
    row = max(k for k, known in enumerate(patient.labels) if known == label)  # the larger of two liver lobes
    x, y, z, ux, uy, vx, vy, wz, _, _ = patient.blobs[row]
    organ = np.array((1 / math.hypot(ux, uy), 1 / math.hypot(vx, vy), 1 / wz))
    across = max(32.0, 0.8 * radius)  # along z, so that one slice in 37.5 mm shows the lesion at full width
    stretch = rng.uniform(0.93, 1.07)
    radii = np.array((radius * stretch, radius / stretch, across))
    if min(organ[:2]) < radius or organ[2] < 0.8 * across:
        return None
    # Middles, uniformly in the smaller ellipsoid that keeps the lesion inside the organ, in the organ's axes.
    ball = rng.standard_normal((_TRIES, 3))
    ball *= (rng.random((_TRIES, 1)) ** (1 / 3)) / np.linalg.norm(ball, axis=1, keepdims=True)
    local = ball * np.maximum(organ - 0.85 * radii, 0)
    turned = np.array(((ux, uy, 0), (vx, vy, 0), (0, 0, wz))) * organ[:, None]
    middles = local @ turned + (x, y, z)
    limit = max(config.field_of_view[0] / 2 - 20, 0)
    middles[:, 2] = np.clip(middles[:, 2], -limit, limit)
    probes = middles[:, None, :] + _PROBES * radii
    front = _front(patient, probes.reshape(-1, 3)).reshape(_TRIES, -1) == label
    good = front[:, 0] & (front.mean(axis=1) >= 0.9)
    for other in others:
        gap = np.hypot(middles[:, 0] - other[0], middles[:, 1] - other[1])
        reach = radius + 1 / math.hypot(other[3], other[4]) + 8
        good &= (gap > reach) | (np.abs(middles[:, 2] - other[2]) > across + 1 / other[7])
    if not good.any():
        return None
    return _blob(middles[int(np.argmax(good))].tolist(), radii.tolist(), rng.uniform(0, math.pi))


def _front(patient: _Patient, points: np.ndarray) -> np.ndarray:
    """Label of the organ that is painted at each point (x, y, z); 0 where there is none."""
    x, y, z = points.T
    blobs = patient.blobs.T[:, :, None]
    inside = _level(*_own_axes(blobs, x, y, z), blobs[8]) < 1
    top = len(inside) - 1 - np.argmax(inside[::-1], axis=0)
    painted = inside.any(axis=0) & (_body_level(patient, x, y, z) < patient.wall[1] ** 2)
    return np.where(painted, np.array(patient.labels)[top], 0)


def _body_level(patient: _Patient, x, y, z):
    """Below 1 inside the body, whose outline is a rounded box that widens or narrows towards the head."""
    u, v, _ = _own_axes(patient.body, x, y, z)
    return _boxy(u, v, patient.square) * (1 - patient.taper * z / 150)


def _boxy(u, v, square: float):
    u2, v2 = u * u, v * v
    level = u2 + v2
    return level + square * (u2 * (u2 - 1) + v2 * (v2 - 1))


# --- the scan ---------------------------------------------------------------------------------------------


def _scan(
    patient: _Patient,
    lesions: list[_Lesion],
    shape: tuple[int, int, int],
    planes: range,
    config: PhantomConfig,
) -> tuple[np.ndarray, np.ndarray]:
    """Labels uint8 and HU int16 of some planes of a grid, (planes, Y, X)."""
    z, y, x = (
        ((np.arange(n) + 0.5) * (mm / n) - mm / 2).astype(np.float32)
        for n, mm in zip(shape, config.field_of_view, strict=True)
    )
    z = z[planes.start : planes.stop]
    tissue, boxes = _tissues(patient, lesions, x, y, z)
    means = patient.hu.copy()
    for lesion in lesions:
        means[lesion.label] = lesion.hu
    hu = _blurred(np.take(means, tissue))
    labels = tissue
    np.putmask(labels, tissue >= _MUSCLE, 1)
    for lesion, box in zip(lesions, boxes, strict=True):
        _add_texture(hu[box], labels[box] == lesion.label, lesion, y[box[1]], x[box[2]], config)
    hu += patient.field * (
        np.cos(x / 90 + patient.waves[0, 1]) + np.cos(y[:, None] / 70 + patient.waves[1, 1])
    )
    hu += patient.noise * _noise(patient.seed, shape, planes)
    return labels, np.rint(hu, out=hu).astype(np.int16)


def _noise(seed: int, shape: tuple[int, int, int], planes: range) -> np.ndarray:
    """(planes, Y, X) float32, mean 0, standard deviation 1; a plane's noise depends on no other plane.

    The sum of four random bytes is near enough to a bell curve, and several times faster than exact normal
    numbers.
    """
    pixels = shape[1] * shape[2]
    words = -(-pixels // 2)  # of 64 bit, two pixels each
    bits = np.random.PCG64(np.random.SeedSequence((seed, 2, shape[0]))).advance(planes.start * words)
    raw = bits.random_raw(len(planes) * words).view(np.uint8).reshape(len(planes), 4, 2 * words)
    total = raw[:, 0].astype(np.float32)
    for k in (1, 2, 3):
        total += raw[:, k]
    total -= 4 * 127.5
    total *= 1 / math.sqrt(4 * (256**2 - 1) / 12)
    return total[:, :pixels].reshape(len(planes), *shape[1:])


def _tissues(patient: _Patient, lesions: list[_Lesion], x, y, z) -> tuple[np.ndarray, list]:
    """What is painted at every voxel (organs and lesions by label, the body by tissue), and the lesions' boxes."""
    blobs = np.vstack([patient.body, patient.blobs, *(lesion.blob for lesion in lesions)])
    u_parts, v_parts, w, reach = _own_axes_of_grid(blobs.astype(np.float32), patient, x, y, z)
    u, v = (in_x[0] + in_y[0, :, None] + in_z[0, :, None, None] for in_x, in_y, in_z in (u_parts, v_parts))
    body = _boxy(u, v, patient.square) * (1 - patient.taper * z[:, None, None] / 150)
    ring, cavity = (body < share * share for share in patient.wall)
    depth = (body < 1).view(np.uint8) + ring.view(np.uint8) + cavity.view(np.uint8)
    tissue = np.take(np.array((0, 1, _MUSCLE, _INNER_FAT), np.uint8), depth)
    _add_ribs(tissue, ring & ~cavity, patient, x, y, z)
    labels = (*patient.labels, *(lesion.label for lesion in lesions))
    outer = np.array([1 + _WRAPPED.get(label, 0.0) for label in labels])
    boxes = _boxes(blobs[1:], outer, (z, y, x), reach)
    for k, (label, bend, box) in enumerate(zip(labels, blobs[1:, 8].tolist(), boxes, strict=True), start=1):
        in_z, in_y, in_x = box
        if in_z.start == in_z.stop:
            continue
        u, v = (
            part_x[k, in_x] + part_y[k, in_y, None] + part_z[k, in_z, None, None]
            for part_x, part_y, part_z in (u_parts, v_parts)
        )
        height = w[k, in_z, None, None]
        if label > 20:  # a lesion: nearly the same outline on all slices that it reaches
            height = height * height
        level = _level(u, v, height, bend)
        within = (ring if label == ORGANS["spine"] else cavity)[box]
        if label in _WRAPPED:
            # Only where the organ itself is cut well: a disc of fat alone would pass for a lesion.
            width = np.sqrt(np.maximum(1 - height * height, 0))
            rim = np.where(width > 0.3, (width + _WRAPPED[label]) ** 2 + height * height, 0)
            np.putmask(tissue[box], (level < rim) & within, _INNER_FAT)
        np.putmask(tissue[box], (level < 1) & within, label)
    return tissue, boxes[len(patient.labels) :]


def _own_axes_of_grid(blobs: np.ndarray, patient: _Patient, x, y, z):
    """As :func:`_own_axes` for the points of a grid, displaced by the patient's warps.

    The displaced x is ``x + f(y) + g(z)``, the displaced y is ``y + h(x) + k(z)``, waves along single axes. A
    linear function of the two, and a blob's own axes are such, is therefore a sum of three *one-dimensional*
    arrays, and costs one addition a voxel. That is where the speed of this generator comes from.

    Returns:
        Parts of u along x, y and z, (blobs, n) each; those of v; w, (blobs, Z); the largest displacement in mm.
    """
    waves, phases = patient.waves.T.tolist()
    xy, xz, yx, yz = patient.warp
    cx, cy, cz, ux, uy, vx, vy, wz, _, tilt = blobs.T[:, :, None]
    x_parts = (x, xy * np.sin(waves[0] * y + phases[0]), xz * np.sin(waves[1] * z + phases[1]) - cx)
    y_parts = (yx * np.sin(waves[2] * x + phases[2]), y, yz * np.sin(waves[3] * z + phases[3]) - cy)
    u_parts = [ux * along_x + uy * along_y for along_x, along_y in zip(x_parts, y_parts, strict=True)]
    v_parts = [vx * along_x + vy * along_y for along_x, along_y in zip(x_parts, y_parts, strict=True)]
    w = (z - cz) * wz
    u_parts[2] += tilt * w
    return u_parts, v_parts, w, max(abs(xy) + abs(xz), abs(yx) + abs(yz))


def _boxes(
    blobs: np.ndarray, outer: np.ndarray, axes: tuple[np.ndarray, ...], reach: float
) -> list[tuple[slice, slice, slice]]:
    """The voxels around every blob, ``outer`` times as wide, as slices of the axes (z, y, x); may be empty."""
    x, y, z, ux, uy, vx, vy, wz, bend, tilt = blobs.T
    ru, rv = 1 / (ux * ux + uy * uy), 1 / (vx * vx + vy * vy)  # squared radii
    slack = reach + 1 + np.abs(bend) * np.sqrt(rv) * outer**2 + np.abs(tilt) * np.sqrt(ru) * outer
    halves = (
        1 / wz,
        outer * np.hypot(uy * ru, vy * rv) + slack,
        outer * np.hypot(ux * ru, vx * rv) + slack,
    )
    edges = [
        np.searchsorted(axis, (middle - half, middle + half)).T.tolist()
        for axis, middle, half in zip(axes, (z, y, x), halves, strict=True)
    ]
    return [tuple(slice(*pair) for pair in box) for box in zip(*edges, strict=True)]


def _add_ribs(tissue, ring, patient: _Patient, x, y, z) -> None:
    """Ribs cross an axial slice obliquely: it shows them as dots, which wander from slice to slice."""
    where = np.flatnonzero(ring & (z > patient.dome - 70)[:, None, None])
    x, y = x - patient.body[0], y[:, None] - patient.body[1]
    around = 21 * y / (np.abs(x) + np.abs(y) + 1)  # grows from front to back like an angle, and is cheaper
    plane = where // around.size
    phase = around.ravel()[where - plane * around.size] + (0.12 * z + patient.waves[4, 1])[plane]
    tissue.ravel()[where[np.cos(phase) > 0.2]] = _BONE


def _blurred(hu: np.ndarray) -> np.ndarray:
    """The point spread of a scanner, in the plane: neighbours weigh 1/4, 1/2, 1/4."""
    for axis in (1, 2):
        along = np.moveaxis(hu, axis, 0)
        middle = 0.5 * along[1:-1] + 0.25 * (along[:-2] + along[2:])
        along[1:-1] = middle
    return hu


# The six ways to set two of four pixels: each cell of the mottled texture is one of them, so it sums to zero
# like the rest.
_CELLS = np.array(
    [
        [[1, 1], [-1, -1]],
        [[-1, -1], [1, 1]],
        [[1, -1], [1, -1]],
        [[-1, 1], [-1, 1]],
        [[1, -1], [-1, 1]],
        [[-1, 1], [1, -1]],
    ],
    np.int8,
)
_CELLS_ACROSS = 32


def texture_pattern(name: str, i: np.ndarray, j: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """The two shades of a texture as +1 and -1.

    Args:
        name: One of :data:`TEXTURES`.
        i: (X,) integers, position along x in widths of one shade.
        j: (Y,) the same along y.
        cells: (n, n, 2, 2) of +1 and -1, the random cells of the mottled texture.

    Returns:
        (Y, X) float32. The mean over every aligned 2 x 2 cell is 0 for all; all but ``"homogeneous"`` (0
        everywhere) are +1 or -1, so have the same variance.
    """
    i, j = i[None, :], j[:, None]
    if name == "mottled":
        n = len(cells)
        pattern = cells[(j >> 1) % n, (i >> 1) % n, j & 1, i & 1]
    elif name == "homogeneous":
        pattern = np.zeros(np.broadcast_shapes(i.shape, j.shape))
    else:
        step = {"vertically striped": i + 0 * j, "horizontally striped": j + 0 * i, "checkered": i + j}[name]
        pattern = 1 - 2 * (step & 1)
    return pattern.astype(np.float32)


def _add_texture(hu, here, lesion: _Lesion, y, x, config: PhantomConfig) -> None:
    """Add the lesion's texture to ``hu`` where it is ``here``: the same pattern on every slice."""
    i, j = (
        np.floor((axis + mm / 2) / config.texture_mm).astype(np.int64)
        for axis, mm in ((x, config.field_of_view[2]), (y, config.field_of_view[1]))
    )
    pattern = texture_pattern(lesion.attributes["texture"], i, j, lesion.cells)
    hu += (lesion.shade * config.texture_contrast) * pattern * here


def _plane_to_show(patient: _Patient, lesions: list[_Lesion], planes: int, config: PhantomConfig) -> int:
    """A plane through the core of a lesion, or any plane when there is none."""
    rng = _generator(patient.seed, 1)
    if not lesions:
        return int(rng.integers(planes))
    blob = lesions[int(rng.integers(len(lesions)))].blob
    mm = config.field_of_view[0]
    away = np.abs((np.arange(planes) + 0.5) * (mm / planes) - mm / 2 - blob[2]) * blob[7]
    core = np.flatnonzero(away <= 0.75)
    return int(rng.choice(core)) if len(core) else int(np.argmin(away))


def _affine(config: PhantomConfig, shape: tuple[int, int, int]) -> np.ndarray:
    """Voxel centres (x, y, z) to NIfTI millimetres: x and y run to the left and the back, against R+ and A+."""
    spacing = [mm / n for mm, n in zip(config.field_of_view, shape, strict=True)][::-1]
    affine = np.diag((-spacing[0], -spacing[1], spacing[2], 1.0))
    affine[:3, 3] = [
        -sign * (mm - step) / 2
        for sign, mm, step in zip((-1, -1, 1), config.field_of_view[::-1], spacing, strict=True)
    ]
    return affine


def _study(
    patient: _Patient, lesions, config: PhantomConfig, labels: np.ndarray, scan, z: int | None = None
) -> Study:
    name = _name(patient.seed)
    about = {}
    if z is not None:
        spacing = tuple(mm / n for mm, n in zip(config.field_of_view[1:], labels.shape, strict=True))
        about = {"spacing": spacing, "directions": "LP", "details": {"z": z, "volume": name}}
    return Study.from_labels(
        labels,
        LABELS,
        scan=scan,
        inside=INSIDE,
        attributes={lesion.label: lesion.attributes for lesion in lesions},
        id=name if z is None else f"{name}-z{z:03d}",
        patient=name,
        source=PhantomSource.name,
        modality=PhantomSource.modality,
        window=config.window,
        license=PhantomSource.license,
        **about,
    )
