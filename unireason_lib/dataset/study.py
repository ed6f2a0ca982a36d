"""One scan with its ground truth: what every source delivers and every question is asked about.

The outlined structures are one **label map**, integers on the scan's grid. A voxel can belong to
several (a tumour *is* also liver), so a structure owns a *set* of values: with tumour 41 inside
liver 5, liver = {5, 41}, and its box, volume and centroid are those of the whole organ. Arrays are
(z, y, x) or (y, x), boxes half open in voxels; the middle of voxel 3 is 3.5.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any, Literal, Self

import numpy as np

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.errors import DatasetError, LabelError
from unireason_lib.imaging import Volume, Window, check_same_grid, label_places, whole_labels
from unireason_lib.imaging.summary import table_html, thumbnails

Kind = Literal["organ", "lesion"]
ScanSource = Volume | np.ndarray | Callable[[], Any]

_PAIRS = {"L": ("left", "right"), "P": ("posterior", "anterior"), "S": ("superior", "inferior")}
DIRECTION_WORDS = {**_PAIRS, **{pair[1][0].upper(): pair[::-1] for pair in _PAIRS.values()}}
"""Letter of a growing axis -> (word towards which it grows, its opposite), in patient terms."""

_LESION_WORDS = re.compile(
    r"(?i)\b(lesions?|tumou?rs?|nodules?|cysts?|mass(es)?|metastas[ei]s|\w*carcinoma|cancer|o?edema"
    r"|infarct(ion)?|ha?emorrhage)\b"
)
_SIDES = {"left": "left", "lt": "left", "right": "right", "rt": "right"}
MAX_LISTED = 12  # structures that a notebook lists
_MAX_LABEL = 1 << 20
_MAX_CODES = 65535  # structures and overlaps of masks, in 16 bits


@dataclass(frozen=True)
class Structure:
    """One outlined thing: an organ, a part of one, or a lesion."""

    name: str  # readable, side first ("left kidney"); two nodules may share one
    label: int  # its own value in the label map, unique in the study
    box: Box  # the smallest half-open one, in whole voxels
    centroid: tuple[float, ...]  # mean position (x, y[, z]) in box coordinates
    voxels: int  # how many belong to it
    kind: Kind = "organ"
    attributes: Mapping[str, Any] = field(default_factory=dict)  # of a lesion: host, components ...
    values: tuple[int, ...] = ()  # all of the label map that belong to it, its own first


@dataclass(frozen=True, eq=False)
class Study:
    """A scan with what was outlined in it; see :meth:`from_labels` and :meth:`from_masks`."""

    id: str  # unique among all studies of all sources
    patient: str  # who was scanned; all studies of one person get one split
    source: str  # name of the data set
    modality: str  # as a question says it: "CT", "MRI", "X-ray" ...
    dimension: Literal["2d", "3d"]
    shape: tuple[int, ...]  # (Z, Y, X) or (Y, X) of scan and labels
    scan_source: ScanSource | None  # the scan, or what gives it; that is not kept
    labels: np.ndarray | None = None  # (Z, Y, X) or (Y, X) integers; None: none (any more)
    structures: tuple[Structure, ...] = ()  # what is there
    vocabulary: tuple[str, ...] = ()  # what was looked for; what has no structure is truly absent
    all_lesions: bool = False  # whether every lesion is outlined: without an outline there is none
    spacing: tuple[float, ...] | None = None  # mm a voxel, in the order of the array's axes
    directions: str = ""  # where x, y (and z) grow in the patient ("LPS"); empty when nobody knows,
    # and then nothing may be asked about left or right
    window: Window = "percentile"  # how to show the scan
    license: str = ""
    split: str | None = None  # "train", "val" or "test" when the source has its own
    details: Mapping[str, Any] = field(default_factory=dict)  # position of a slice, a warning, ...
    key: str = ""  # its name inside its source: `source.scan(key)` reads the scan again

    @classmethod
    def from_labels(
        cls,
        labels: np.ndarray | Volume,
        names: Mapping[int, str | None],
        *,
        scan: ScanSource,
        inside: Mapping[int, int] | None = None,
        attributes: Mapping[int, Mapping[str, Any]] | None = None,
        **about: Any,
    ) -> Self:
        """Build a study from a label map, measuring every structure.

        Args:
            labels: (Z, Y, X) or (Y, X) whole numbers, 0 is background; else a LabelError.
            names: Value -> readable name, or None to leave it out. What does not occur is absent.
            scan: The scan, or a callable that gives it.
            inside: Value of a part -> value of the structure around it (tumour -> organ).
            attributes: Value -> what is known of it; ``"kind"`` overrides the guess from the name.
            **about: Other fields; ``id``, ``patient``, ``source``, ``modality`` are required."""
        if isinstance(labels, Volume) and isinstance(scan, Volume):
            check_same_grid(scan, labels)
        values = _values_of(names, inside or {})
        return cls._measured(whole_labels(labels), names, values, scan, attributes or {}, about)

    @classmethod
    def from_masks(
        cls, masks: Iterable[tuple[str, np.ndarray]], *, scan: ScanSource, **about: Any
    ) -> Self:
        """Build a study from one mask per structure; masks may overlap, repeat a name, or be empty
        (its name is absent). ``masks`` is a stream of (name, mask) of one shape; structure k (from
        1) gets label k. Other arguments as in :meth:`from_labels`."""
        codes, names = np.zeros(0, np.uint16), {}
        owners: dict[int, tuple[int, ...]] = {0: ()}  # label value -> structures that own it
        overlap = _MAX_CODES  # values of overlaps count down from here
        for label, (name, mask) in enumerate(masks, start=1):
            mask, names[label] = np.asarray(mask) != 0, name
            codes = codes if codes.size else np.zeros(mask.shape, np.uint16)
            _check_shape(f"mask of {name}", mask.shape, codes.shape)
            for below in np.flatnonzero(np.bincount(codes[mask])).tolist():
                code = overlap if below else label
                overlap -= below != 0
                owners[code] = (*owners[below], label)
                codes[mask & (codes == below)] = code
            if label >= overlap:
                raise LabelError(name, "65535 structures and overlaps", "more", "split the study")
        if not names:
            raise LabelError(about.get("id"), "at least one mask", "none", "leave the study out")
        values = {
            label: (label, *(code for code in owners if code != label and label in owners[code]))
            for label in names
        }
        return cls._measured(codes, names, values, scan, {}, about)

    @classmethod
    def _measured(cls, labels, names, values, scan, attributes, about) -> Self:
        subject = about.get("id", "study")
        if not labels.size or labels.min() < 0 or labels.max() >= _MAX_LABEL:
            expected, found = f"values of 0 and more, below {_MAX_LABEL}", f"shape {labels.shape}"
            raise LabelError(subject, expected, f"others, or none, in {found}", "number them anew")
        measured = _measure(labels)
        if unknown := sorted(set(measured).difference(*values.values())):
            found, do = f"{len(unknown)} values without one: {unknown[:8]}", "name them"
            raise LabelError(subject, "a name for every label value", found, do)
        if isinstance(scan, Volume | np.ndarray):
            _check_shape(f"labels of {subject}", labels.shape, scan.shape[: labels.ndim])
        space = space_of(scan) if isinstance(scan, Volume) else {}
        names = {label: name for label, name in names.items() if name is not None}
        rows = [(k, name, values[k], attributes.get(k, {})) for k, name in names.items()]
        about = {"vocabulary": tuple(dict.fromkeys(names.values())), **space, **about}
        structures = _structures(measured, rows)
        space = {"dimension": f"{labels.ndim}d", "shape": labels.shape}
        return cls(scan_source=scan, labels=labels, structures=structures, **space, **about)

    @property
    def scan(self) -> Volume | np.ndarray:
        """The scan, read now unless it is in memory: a Volume, or (Y, X) or (Y, X, 3) in 2D."""
        scan = self.scan_source() if callable(self.scan_source) else self.scan_source
        scan = scan if isinstance(scan, Volume) else np.asarray(scan)
        _check_shape(f"scan of {self.id}", scan.shape[: len(self.shape)], self.shape)
        return scan

    @property
    def absent(self) -> tuple[str, ...]:
        """Names that were looked for and are not there."""
        present = {s.name for s in self.structures}
        return tuple(name for name in self.vocabulary if name not in present)

    def _repr_html_(self) -> str:
        """A notebook shows what is known, the structures, and a scan that is in memory."""
        scan = self.scan_source.array if isinstance(self.scan_source, Volume) else self.scan_source
        shown, more = self.structures[:MAX_LISTED], len(self.structures) - MAX_LISTED
        found = [f"{s.name} ({s.kind}, {s.voxels} voxels, {[*s.box.as_tuple()]})" for s in shown]
        rows = {
            "patient, source": f"{self.patient}, {self.source} ({self.license or 'no licence'})",
            "scan": f"{self.modality}, {self.dimension}, shape {self.shape}",
            "spacing, mm": " x ".join(f"{mm:.3g}" for mm in self.spacing or ()) or "unknown",
            "directions": self.directions or "unknown",
            "structures": "\n".join([*found, *[f"and {more} more"] * (more > 0)]) or "none",
            "absent": ", ".join(self.absent[:MAX_LISTED]) or "nothing that was looked for",
        }
        if self.dimension == "3d" and isinstance(scan, np.ndarray):
            rows["middle planes"] = thumbnails(scan, self.spacing)
        return table_html(f"Study {self.id}", rows)

    @property
    def lesions(self) -> tuple[Structure, ...]:
        """The structures that are lesions."""
        return tuple(s for s in self.structures if s.kind == "lesion")

    def find(self, name: str) -> Structure:
        """The (first) structure of that name, or :class:`DatasetError` with the names there are."""
        names = [s.name for s in self.structures]
        if name in names:
            return self.structures[names.index(name)]
        raise DatasetError(self.id, f"a structure called {name!r}", names, "ask for one of these")

    def mask(self, structure: Structure) -> np.ndarray:
        """All voxels of a structure, parts inside it included, as booleans of the study's shape."""
        if self.labels is None:
            raise DatasetError(self.id, "a label map", "boxes only", "use structure.box instead")
        return np.isin(self.labels, structure.values)

    def slice(self, z: int) -> Self:
        """Axial slice ``z`` (0 at the feet) of a volume as a 2D study of the same patient,
        structures measured again; what does not reach it is absent. Attributes stay those of the
        whole structure, a lazy scan stays lazy. A :class:`DatasetError` when there is no such
        slice."""
        if self.dimension != "3d" or self.labels is None or not 0 <= z < self.shape[0]:
            found = f"slice {z} of a {self.dimension} study of shape {self.shape}"
            raise DatasetError(self.id, "a slice of a labelled volume", found, "choose another z")
        plane, spacing = np.ascontiguousarray(self.labels[z]), self.spacing and self.spacing[1:]
        rows = [
            (s.label, s.name, s.values, {**s.attributes, "kind": s.kind}) for s in self.structures
        ]
        scan = partial(_plane_of, replace(self, labels=None), z)  # can be sent to a process
        return replace(
            self,
            id=f"{self.id}-z{z:03d}",
            dimension="2d",
            shape=plane.shape,
            scan_source=scan() if isinstance(self.scan_source, Volume | np.ndarray) else scan,
            labels=plane,
            structures=_structures(_measure(plane), rows),
            spacing=spacing,
            directions=self.directions[:2],
            details={**self.details, "z": z, "volume": self.id},
            key="",  # the source knows the volume only
        )


def _plane_of(study: Study, z: int) -> np.ndarray:
    scan = study.scan
    return np.asarray((scan.array if isinstance(scan, Volume) else scan)[z])


def space_of(grid: Volume) -> dict[str, Any]:
    """Spacing and directions of a study on this grid, as far as the volume knows them."""
    if not grid.has_affine:
        return {}
    return {"spacing": grid.spacing, "directions": "LPS" if grid.sides_certain else ""}


def slices_of(box: Box) -> tuple[slice, ...]:
    """The index of a box of whole voxels in an array (z, y, x) or (y, x)."""
    corners = box.as_tuple()
    half = len(corners) // 2
    return tuple(map(slice, corners[:half], corners[half:]))[::-1]


def readable_name(name: str) -> str:
    """A name as one says it: ``"kidney_left"``, ``"Kidney_L"`` -> ``"left kidney"``; "L1" stays,
    and a lone capital L or R counts at the end only."""
    words = [word for word in re.split(r"[\s_\-/]+", name.strip()) if word]
    sides = {_SIDES[word.lower()] for word in words if word.lower() in _SIDES}
    if len(words) > 1 and words[-1] in ("L", "R"):
        words = ["left" if words[-1] == "L" else "right", *words[:-1]]
    elif len(sides) == 1:  # not "left and right lung"
        words = [*sides, *(word for word in words if word.lower() not in _SIDES)]
    return " ".join(w if re.fullmatch(r"[A-Z]+\d+", w) else w.lower() for w in words)


@lru_cache(maxsize=4096)
def kind_of(name: str) -> Kind:
    """``"lesion"`` when the name speaks of a tumour, nodule, cyst ..., else ``"organ"``."""
    return "lesion" if _LESION_WORDS.search(name.replace("_", " ")) else "organ"


def _measure(labels: np.ndarray) -> dict[int, tuple]:
    """Value -> (low corner, high corner, voxels, sum of positions), in the order x, y[, z]."""
    measured = {}
    for value, place in label_places(labels).items():
        low, high = zip(*((axis.start, axis.stop) for axis in reversed(place)), strict=True)
        here = labels[place] == value
        plane, by_slice = here.view(np.uint8), []
        if here.ndim == 3:  # summed in the smallest type that holds the sums
            plane = plane.sum(axis=0, dtype=np.uint8 if len(here) < 256 else np.int32)
            by_slice = [np.array([np.count_nonzero(part) for part in here])]
        along = [plane.sum(axis=0, dtype=int), plane.sum(axis=1, dtype=int), *by_slice]
        pairs = zip(along, low, strict=True)
        total = [float(n @ np.arange(start + 0.5, start + len(n))) for n, start in pairs]
        measured[value] = low, high, int(along[0].sum()), total
    return measured


def _structures(measured, rows: Iterable[tuple]) -> tuple[Structure, ...]:
    """Structures of what was measured of their values; ``rows``: label, name, values, attributes.
    Those that are not there are left out."""
    structures = []
    for label, name, values, attributes in rows:
        if not (parts := [measured[value] for value in values if value in measured]):
            continue
        low, high, voxels, total = zip(*parts, strict=True)
        low, high = map(min, zip(*low, strict=True)), map(max, zip(*high, strict=True))
        voxels, attributes = sum(voxels), dict(attributes)
        structure = Structure(
            name=name,
            label=label,
            box=(Box2D if len(total[0]) == 2 else Box3D)(*low, *high),
            centroid=tuple(sum(axis) / voxels for axis in zip(*total, strict=True)),
            voxels=voxels,
            kind=attributes.pop("kind", None) or kind_of(name),
            attributes=attributes,
            values=values,
        )
        structures.append(structure)
    return tuple(structures)


def _values_of(labels: Iterable[int], inside: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """For every label its own value and those of the parts inside it, however deep."""
    values = {label: (label,) for label in labels}
    for part in inside:
        around, passed = part, set()
        while (around := inside.get(around)) is not None:
            if around in passed or around not in values:
                raise LabelError("inside", "named parts without circles", inside, "correct it")
            passed.add(around)
            values[around] += (part,)
    return values


def _check_shape(subject: str, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    if shape != expected:
        raise LabelError(subject, f"shape {expected}", shape, "resample the labels")
