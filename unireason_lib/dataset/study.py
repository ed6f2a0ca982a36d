"""One scan with its ground truth: what every source delivers and every question is asked about.

A :class:`Study` is a 3D volume or a 2D picture together with the structures that somebody (an annotator, an
atlas, a generator) outlined in it. The outlines are kept as one **label map**: an integer array of the scan's
shape whose values say what lies at each voxel. One voxel can belong to several structures, a tumour *is* also
liver, so a structure owns a *set* of values:

    value 0   background
    value 5   liver tissue                      liver  = {5, 41}
    value 41  tissue of the tumour in it        tumour = {41}

In the label map the tumour replaces liver voxels, and still the liver's box, volume and centroid are those of
the whole organ, tumour included. ``inside={41: 5}`` says so to :meth:`Study.from_labels`;
:meth:`Study.from_masks` finds out by itself, giving a value of its own to every overlap that occurs.

Space: arrays are (z, y, x), or (y, x) for pictures; boxes are half open in voxels of that array; a centroid is
given in the same coordinates as the boxes, so voxel 3 spans 3 to 4 and its middle is 3.5. ``directions`` names
the patient direction in which x, y and z grow: ``"LPS"`` for every oriented volume, ``"LP"`` for its axial
slices, ``""`` when nobody can know, and then no question about left or right may be asked.

Scans are often large, so a study may hold a path or a callable instead of pixels. They are read on access and
not kept: streaming a million studies takes the memory of one.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from unireason_lib.boxes import Box, Box2D, Box3D
from unireason_lib.errors import DatasetError, LabelError, explain
from unireason_lib.imaging import Volume, check_same_grid, load_image, load_volume
from unireason_lib.imaging.window import Window

Side = Literal["left", "right"]
Kind = Literal["organ", "lesion"]
ScanSource = Volume | np.ndarray | str | Path | Callable[[], Any]
LabelSource = np.ndarray | str | Path | Callable[[], Any]

DIRECTION_WORDS = {
    "L": ("left", "right"),
    "R": ("right", "left"),
    "P": ("posterior", "anterior"),
    "A": ("anterior", "posterior"),
    "S": ("superior", "inferior"),
    "I": ("inferior", "superior"),
}
"""Letter of a growing axis -> (word towards which it grows, its opposite), in patient terms."""

_LESION_WORDS = re.compile(
    r"\b(lesions?|tumou?rs?|nodules?|cysts?|mass(es)?|metastas[ei]s|\w*carcinoma|cancer|o?edema|infarct(ion)?|ha?emorrhage)\b",
    re.IGNORECASE,
)
_SIDE_TOKENS = {"left": "left", "lt": "left", "right": "right", "rt": "right"}


@dataclass(frozen=True)
class Structure:
    """One outlined thing: an organ, a part of one, or a lesion.

    Attributes:
        name: Readable name, side first (``"left kidney"``). Two structures of a study may share a name (two
            nodules).
        label: Its own value in the label map, unique in the study.
        box: Smallest half-open box around it, whole voxels of the study's grid.
        centroid: Mean position ``(x, y[, z])`` in box coordinates (the middle of voxel i is i + 0.5).
        voxels: How many voxels (pixels) belong to it.
        size: Volume in mm3, or area in mm2 in a picture; None when the spacing is unknown.
        side: Side in the patient's terms when the name says one.
        kind: ``"organ"`` or ``"lesion"``.
        attributes: What else is known, e.g. of a lesion ``host``, ``density``, ``texture``, ``size_class``.
        values: All values of the label map that belong to it, its own first.
    """

    name: str
    label: int
    box: Box
    centroid: tuple[float, ...]
    voxels: int
    size: float | None = None
    side: Side | None = None
    kind: Kind = "organ"
    attributes: Mapping[str, Any] = field(default_factory=dict)
    values: tuple[int, ...] = ()


@dataclass(frozen=True, eq=False)
class Study:
    """A scan with what was outlined in it. Build one with :meth:`from_labels` or :meth:`from_masks`.

    Attributes:
        id: Unique among all studies of all sources.
        patient: Who was scanned; splits are made by patient, so every study of one person must carry one name.
        source: Name of the data set.
        modality: ``"CT"``, ``"MR"``, ``"X-ray"`` ... as it is said in a question.
        dimension: ``"2d"`` or ``"3d"``.
        shape: (Z, Y, X) or (Y, X) of scan and labels.
        scan_source: The scan, or a path or callable that gives it (see :attr:`scan`).
        labels_source: The label map likewise, or None when there is none.
        structures: What is there, in the order of the label names.
        vocabulary: All names that were looked for. What is in here and not among the structures is truly
            absent.
        spacing: Voxel size in mm in the order of the array's axes; None when unknown.
        directions: Patient directions in which x, y (and z) grow, e.g. ``"LPS"``; empty when unknown.
        window: How to show the scan, as for :func:`unireason_lib.imaging.serialize`.
        license: Terms of the source, as short as can be.
        split: ``"train"``, ``"val"`` or ``"test"`` when the source has its own.
        details: Anything else worth keeping (position of a slice, file names, ...).
    """

    id: str
    patient: str
    source: str
    modality: str
    dimension: Literal["2d", "3d"]
    shape: tuple[int, ...]
    scan_source: ScanSource
    labels_source: LabelSource | None = None
    structures: tuple[Structure, ...] = ()
    vocabulary: tuple[str, ...] = ()
    spacing: tuple[float, ...] | None = None
    directions: str = ""
    window: Window = "percentile"
    license: str = ""
    split: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def from_labels(
        cls,
        labels: np.ndarray | Volume,
        names: Mapping[int, str | None],
        *,
        scan: ScanSource,
        inside: Mapping[int, int] | None = None,
        attributes: Mapping[int, Mapping[str, Any]] | None = None,
        labels_source: LabelSource | None = None,
        **about: Any,
    ) -> Study:
        """Build a study from a label map, measuring every structure.

        Args:
            labels: (Z, Y, X) or (Y, X) whole numbers, 0 is background.
            names: Value -> readable name. Values mapped to None are left out on purpose. Names whose value
                does not occur become :attr:`vocabulary` only: they are known to be absent.
            scan: The scan, or a path or callable that gives it.
            inside: Value of a part -> value of the structure around it (tumour -> organ). May be nested.
            attributes: Value -> what is known of that structure; ``"kind"`` there overrides the guess from the
                name.
            labels_source: Path or callable to read the labels from later; by default the array itself is kept.
            **about: Other fields of :class:`Study`: ``id``, ``patient``, ``source``, ``modality`` are required;
                ``spacing`` and ``directions`` are taken from ``scan`` when that is an oriented volume.

        Raises:
            LabelError: The map is not of whole numbers in 2D or 3D, lies on another grid than the scan, or
                holds values without a name; ``inside`` runs in a circle.
        """
        if isinstance(labels, Volume) and isinstance(scan, Volume):
            check_same_grid(scan, labels)
        labels = _checked_labels(labels)
        if not set(measured := _measure(labels)) <= set(names):
            unknown = sorted(set(measured) - set(names))
            raise _label_error(
                about.get("id"),
                "a name for every value of the label map",
                f"{len(unknown)} values without one: {unknown[:8]}",
                "add them to `names` (None leaves a value out on purpose)",
            )
        values = _values_of(names, inside or {})
        return cls._assemble(labels, names, values, measured, scan, attributes or {}, labels_source, about)

    @classmethod
    def from_masks(
        cls,
        masks: Iterable[tuple[str, np.ndarray]],
        *,
        scan: ScanSource,
        attributes: Mapping[int, Mapping[str, Any]] | None = None,
        **about: Any,
    ) -> Study:
        """Build a study from one mask a structure; masks may overlap, repeat a name, or be empty.

        Args:
            masks: (name, mask) one after the other, all of one shape; anything but 0 is inside. Read as a
                stream, so only one mask and the label map are in memory. Structure k (from 1) gets label k; a
                mask that is empty only says that its name is absent.
            scan, attributes, **about: As in :meth:`from_labels`; ``attributes`` goes by k.

        Raises:
            LabelError: Masks differ in shape, or there are none.
        """
        codes: np.ndarray | None = None
        overlap = 65536  # values of overlaps count down from here
        members: dict[int, tuple[int, ...]] = {0: ()}  # value of the label map -> structures that own it
        names: dict[int, str] = {}
        for label, (name, mask) in enumerate(masks, start=1):
            mask = np.asarray(mask) != 0
            if codes is None:
                codes = np.zeros(mask.shape, np.uint16)
            if mask.shape != codes.shape:
                raise _label_error(
                    f"mask of {name}",
                    f"shape {codes.shape} as the others",
                    str(mask.shape),
                    "resample it first",
                )
            names[label] = name
            for below in np.flatnonzero(np.bincount(codes[mask])).tolist():
                overlap -= below != 0
                code = label if below == 0 else overlap
                members[code] = (*members[below], label)
                codes[mask & (codes == below)] = code
            if label >= overlap:
                raise _label_error(
                    f"mask of {name}", "at most 65535 structures and overlaps", "more", "split the study"
                )
        if codes is None:
            raise _label_error(
                about.get("id"), "at least one mask", "none", "leave studies without masks out"
            )
        labels = _checked_labels(codes)
        values = {
            label: (label, *(c for c in members if c != label and label in members[c])) for label in names
        }
        return cls._assemble(labels, names, values, _measure(labels), scan, attributes or {}, None, about)

    @classmethod
    def _assemble(cls, labels, names, values, measured, scan, attributes, labels_source, about) -> Study:
        volume = scan if isinstance(scan, Volume) else None
        grid = scan.array if volume is not None else scan if isinstance(scan, np.ndarray) else None
        if grid is not None and grid.shape[: labels.ndim] != labels.shape:
            raise _label_error(
                about.get("id"),
                f"labels of the scan's shape {grid.shape}",
                str(labels.shape),
                "resample the labels onto the scan's grid",
            )
        if volume is not None and volume.has_affine:
            about = {"spacing": tuple(float(s) for s in volume.spacing), "directions": "LPS", **about}
        spacing = about.get("spacing")
        voxel = None if spacing is None else math.prod(spacing)
        structures = [
            _structure(label, name, values[label], measured, voxel, attributes.get(label, {}))
            for label, name in names.items()
            if name is not None and any(value in measured for value in values[label])
        ]
        vocabulary = dict.fromkeys(name for name in names.values() if name is not None)
        return cls(
            dimension="3d" if labels.ndim == 3 else "2d",
            shape=labels.shape,
            scan_source=scan,
            labels_source=labels if labels_source is None else labels_source,
            structures=tuple(structures),
            vocabulary=about.pop("vocabulary", tuple(vocabulary)),
            **about,
        )

    @property
    def scan(self) -> Volume | np.ndarray:
        """The scan, read now if it is not in memory: a Volume in 3D, (Y, X) or (Y, X, 3) in 2D.

        Raises:
            DatasetError: What was read has another shape than the study says.
        """
        scan = _read(self.scan_source, load_volume if self.dimension == "3d" else load_image)
        scan = scan if isinstance(scan, Volume) else np.asarray(scan)
        self._check_shape("scan", scan.shape)
        return scan

    @property
    def labels(self) -> np.ndarray | None:
        """The label map, (Z, Y, X) or (Y, X) integers, read now if it is not in memory; None without one."""
        if self.labels_source is None:
            return None
        labels = _checked_labels(_read(self.labels_source, load_volume))
        self._check_shape("label map", labels.shape)
        return labels

    @property
    def absent(self) -> tuple[str, ...]:
        """Names that were looked for and are not there."""
        present = {structure.name for structure in self.structures}
        return tuple(name for name in self.vocabulary if name not in present)

    @property
    def lesions(self) -> tuple[Structure, ...]:
        """The structures that are lesions."""
        return tuple(structure for structure in self.structures if structure.kind == "lesion")

    def _check_shape(self, what: str, shape: tuple[int, ...]) -> None:
        if shape[: len(self.shape)] != self.shape:
            raise DatasetError(
                explain(
                    f"{what} of {self.id}",
                    expected=f"shape {self.shape}",
                    found=str(shape),
                    do="check that scan and labels belong together",
                )
            )

    def find(self, name: str) -> Structure:
        """The (first) structure of that name.

        Raises:
            DatasetError: There is none; the message lists the names.
        """
        for structure in self.structures:
            if structure.name == name:
                return structure
        raise DatasetError(
            explain(
                self.id,
                expected=f"a structure called {name!r}",
                found=", ".join(structure.name for structure in self.structures) or "no structure",
                do="ask for one of these",
            )
        )

    def mask(self, structure: Structure) -> np.ndarray:
        """All voxels of a structure, parts inside it included, as booleans of the study's shape.

        Raises:
            DatasetError: The study has no label map.
        """
        if (labels := self.labels) is None:
            raise DatasetError(
                explain(self.id, expected="a label map", found="boxes only", do="use structure.box instead")
            )
        return np.isin(labels, structure.values)

    def offset(self, structure: Structure, reference: Structure | None = None) -> dict[str, float]:
        """How far a structure lies from another one, in patient terms.

        Args:
            structure: What is located, by its centroid.
            reference: Seen from which centroid; None is the middle of the grid.

        Returns:
            ``{"left": 12.5, "posterior": -30.0, ...}``: one signed distance for every axis whose direction is
            known, in mm (in voxels when the spacing is unknown). Negative means the opposite of the word.
        """
        origin = tuple(n / 2 for n in self.shape[::-1]) if reference is None else reference.centroid
        scale = (self.spacing or (1.0,) * len(self.shape))[::-1]
        return {
            DIRECTION_WORDS[letter][0]: (a - b) * mm
            for letter, a, b, mm in zip(self.directions, structure.centroid, origin, scale, strict=False)
        }

    def location(
        self, structure: Structure, reference: Structure | None = None, margin: float = 0.0
    ) -> tuple[str, ...]:
        """The same in words: ``("right", "anterior")``; axes along which the two differ by ``margin`` mm or
        less say nothing."""
        opposite = dict(DIRECTION_WORDS.values())
        offsets = self.offset(structure, reference).items()
        return tuple(word if mm > 0 else opposite[word] for word, mm in offsets if abs(mm) > margin)

    def slice(self, z: int) -> Study:
        """One axial slice of a volume, as a 2D study of the same patient.

        Structures are measured again on the slice; what does not reach it is absent from it. Attributes (such
        as the size class of a lesion) stay those of the whole structure. A lazy scan stays lazy.

        Args:
            z: Index of the slice, 0 at the feet.

        Raises:
            DatasetError: The study is 2D or has no labels, or ``z`` is not one of its slices.
        """
        if self.dimension != "3d" or self.labels_source is None or not 0 <= z < self.shape[0]:
            raise DatasetError(
                explain(
                    self.id,
                    expected="a labelled 3D study and a slice index inside it",
                    found=f"a {self.dimension} study of shape {self.shape}, z={z}",
                    do="choose z from 0 to the number of slices - 1",
                )
            )
        plane = np.ascontiguousarray(self.labels[z])
        measured = _measure(plane)
        spacing = self.spacing and self.spacing[1:]
        pixel = spacing and math.prod(spacing)
        structures = (
            _structure(s.label, s.name, s.values, measured, pixel, {**s.attributes, "kind": s.kind})
            for s in self.structures
            if any(value in measured for value in s.values)
        )
        in_memory = isinstance(self.scan_source, Volume)
        return replace(
            self,
            id=f"{self.id}-z{z:03d}",
            dimension="2d",
            shape=plane.shape,
            scan_source=self.scan.array[z] if in_memory else partial(_plane_of, self.scan_source, z),
            labels_source=plane,
            structures=tuple(structures),
            spacing=spacing,
            directions=self.directions[:2],
            details={**self.details, "z": z, "volume": self.id},
        )


def readable_name(name: str) -> str:
    """A name as one says it: lower case, no underscores, the side first.

    ``"kidney_left"``, ``"Left Kidney"`` and ``"Kidney_L"`` all become ``"left kidney"``; vertebra ``"L1"``
    stays.
    """
    side, words = _split_side(name)
    words = [word if re.fullmatch(r"[A-Z]+\d+", word) else word.lower() for word in words]
    return " ".join([side, *words] if side else words)


@lru_cache(maxsize=4096)
def side_of(name: str) -> Side | None:
    """The patient's side that a name states (``"kidney_left"``, ``"Precentral_R"``), or None."""
    return _split_side(name)[0]


@lru_cache(maxsize=4096)
def kind_of(name: str) -> Kind:
    """``"lesion"`` when the name speaks of a tumour, nodule, cyst ..., else ``"organ"``."""
    return "lesion" if _LESION_WORDS.search(name.replace("_", " ")) else "organ"


def _split_side(name: str) -> tuple[Side | None, list[str]]:
    """The side in a name and its other words; a lone capital L or R counts at the end only."""
    tokens = [token for token in re.split(r"[\s_\-/]+", name.strip()) if token]
    if len(tokens) > 1 and tokens[-1] in ("L", "R"):
        return ("left" if tokens[-1] == "L" else "right"), tokens[:-1]
    found = {_SIDE_TOKENS[token.lower()] for token in tokens if token.lower() in _SIDE_TOKENS}
    if len(found) != 1:  # none, or both ("left and right lung")
        return None, tokens
    return found.pop(), [token for token in tokens if token.lower() not in _SIDE_TOKENS]


@dataclass(frozen=True)
class _Extent:
    """Box corners, voxel count and sum of positions, all in the order x, y, z: what can be added up over
    values."""

    low: list[int]
    high: list[int]
    voxels: int
    total: list[float]


def _measure(labels: np.ndarray, chunk_voxels: int = 1 << 20) -> dict[int, _Extent]:
    """Extent of every value of a label map.

    One pass counts voxels by value and position along each axis; box, voxel count and centroid all follow from
    these three histograms. Works through the map in chunks of slices, so temporary memory does not grow with
    the volume.
    """
    stack = labels.reshape(-1, *labels.shape[-2:])
    depth, height, width = stack.shape
    values = _values_in(stack)
    n = len(values)
    dense = n == values[-1] + 1
    along_x, along_y = np.zeros((n, width), np.int64), np.zeros((n, height), np.int64)
    along_z = np.zeros((n, depth), np.int64)
    step = max(1, chunk_voxels // (height * width))
    for start in range(0, depth, step):
        chunk = stack[start : start + step].ravel()
        d = min(step, depth - start)
        where = np.flatnonzero(chunk)
        row = chunk[where].astype(np.int64) if dense else np.searchsorted(values, chunk[where])
        zy = where // width
        x = where - zy * width
        along_x += np.bincount(row * width + x, minlength=n * width).reshape(n, width)
        counts = np.bincount(row * (d * height) + zy, minlength=n * d * height).reshape(n, d, height)
        along_y += counts.sum(axis=1)
        along_z[:, start : start + d] = counts.sum(axis=2)
    kept = np.flatnonzero((values > 0) & along_x.any(axis=1))
    axes = [histogram[kept] for histogram in (along_x, along_y, along_z)[: labels.ndim]]
    low = np.stack([np.argmax(counts > 0, axis=1) for counts in axes], axis=1)
    high = np.stack([counts.shape[1] - np.argmax(counts[:, ::-1] > 0, axis=1) for counts in axes], axis=1)
    total = np.stack([counts @ (np.arange(counts.shape[1]) + 0.5) for counts in axes], axis=1)
    found = zip(low.tolist(), high.tolist(), axes[0].sum(axis=1).tolist(), total.tolist(), strict=True)
    return {value: _Extent(*extent) for value, extent in zip(values[kept].tolist(), found, strict=True)}


def _values_in(stack: np.ndarray) -> np.ndarray:
    """Ascending values that can occur: all up to the largest when that is small, else those that do occur."""
    if (largest := int(stack.max())) < 256:
        return np.arange(largest + 1)
    if largest >= 1 << 20:
        return np.unique(stack)
    seen = np.zeros(largest + 1, bool)
    for plane in stack:
        seen[plane] = True
    return np.flatnonzero(seen)


def _structure(label, name, values, measured, voxel_size, attributes) -> Structure:
    """Add up the extents of a structure's values."""
    parts = [measured[value] for value in values if value in measured]
    low, high, voxels, total = parts[0].low, parts[0].high, parts[0].voxels, parts[0].total
    for part in parts[1:]:
        low = list(map(min, low, part.low))
        high = list(map(max, high, part.high))
        total = list(map(float.__add__, total, part.total))
        voxels += part.voxels
    attributes = dict(attributes)
    return Structure(
        name=name,
        label=label,
        box=(Box3D if len(low) == 3 else Box2D)(*low, *high),
        centroid=tuple(axis / voxels for axis in total),
        voxels=voxels,
        size=None if voxel_size is None else voxels * voxel_size,
        side=side_of(name),
        kind=attributes.pop("kind", None) or kind_of(name),
        attributes=attributes,
        values=values,
    )


def _values_of(names: Mapping[int, str | None], inside: Mapping[int, int]) -> dict[int, tuple[int, ...]]:
    """For every label the values that belong to it: its own and those of the parts inside it, however deep."""
    values = {label: [label] for label in names}
    for part in inside:
        around, steps = inside[part], 0
        while around is not None:
            if (steps := steps + 1) > len(inside) or around not in values:
                raise _label_error(
                    "inside",
                    "parts in named structures, without circles",
                    f"{part} -> {around}",
                    "correct `inside`",
                )
            values[around].append(part)
            around = inside.get(around)
    return {label: tuple(own) for label, own in values.items()}


def _checked_labels(labels: np.ndarray | Volume) -> np.ndarray:
    """The label map as an array of integers (files often store them as floats)."""
    labels = labels.array if isinstance(labels, Volume) else np.asarray(labels)
    found = f"{labels.dtype} of shape {labels.shape}"
    if labels.dtype.kind == "f" and np.isfinite(labels).all() and (labels == np.rint(labels)).all():
        labels = labels.astype(np.int64)
    if labels.ndim not in (2, 3) or not labels.size or labels.dtype.kind not in "iub":
        raise _label_error(
            "label map",
            "whole numbers in 2D or 3D",
            found,
            "round it, or give one mask a structure to Study.from_masks",
        )
    if labels.dtype.kind == "i" and (lowest := int(labels.min())) < 0:
        raise _label_error(
            "label map", "values of 0 and more", f"{lowest}", "give the structures positive values"
        )
    return labels.view(np.uint8) if labels.dtype.kind == "b" else labels


def _label_error(subject: object, expected: str, found: str, do: str) -> LabelError:
    return LabelError(explain(subject or "study", expected=expected, found=found, do=do))


def _read(source: Any, load: Callable[[Path], Any]) -> Any:
    if isinstance(source, str | Path):
        return load(Path(source))
    return source() if callable(source) else source


def _plane_of(scan_source: ScanSource, z: int) -> np.ndarray:
    return np.asarray(_read(scan_source, load_volume).array[z])
