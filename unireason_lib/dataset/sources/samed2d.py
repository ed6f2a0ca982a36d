"""SA-Med2D-20M: 2D pictures of ten modalities with one mask a structure, and the small demo of SAM-Med2D.

The large set (arXiv 2311.11969; 4.6 million pictures, of which 3.7 million are in the download) is one folder::

    SAMed2Dv1/images/ct_00--CAD_PE--001--x_0125.png        modality_sub--dataset--case--axis_slice
    SAMed2Dv1/masks/ct_00--CAD_PE--001--x_0125--0003_000.png           ... --class_instance
    SAMed2Dv1/SAMed2D_v1.json                     {"images/....png": ["masks/....png", ...], ...}
    SAMed2Dv1/SAMed2D_v1_class_mapping_id.json    {"CAD_PE": {"pulmonary_embolism": "0003", ...}, ...}

Class ids count within a data set. Plain pictures end in ``--2d_none``; ``x_ray`` and ``fundus_photography`` have no
sub-modality.

What is known and what is not:

- Slices were cut along x, y or z of arrays whose orientation differs from set to set, so **no direction in the
  patient is known**, nor any spacing. Names such as "left kidney" are the annotators'.
- Masks of another size than their picture are stretched onto it (nearest neighbour, with a note), or refused when
  the aspect differs.
- **A class without a mask need not be absent**: very small masks were left out when the set was made. Only an empty
  mask says that something is not there; ``absent="mapping"`` takes every class of the data set without a mask as
  absent.
- Classes called ``union_...`` join others and are skipped, as are nameless ones (``class1``, ``left``).

The list of masks is more than a gigabyte of JSON. It is not loaded: the file is mapped, searched once for where each
picture's entry lies (16 bytes a picture), and an entry is parsed when its picture is asked for. Processes share the
mapped file.

The demo of SAM-Med2D has another layout, ``masks/<picture>_<class name>_<instance>.png``, and no modality
(:class:`SAMMed2DSource`).
"""

from __future__ import annotations

import json
import mmap
import re
from array import array
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
from PIL import Image

from unireason_lib.dataset.sources.files import (
    FileSource,
    bad,
    count_lesions,
    existing_folder,
    inside,
    listed,
    picture_shape,
    read_mask,
    read_object,
    structure_name,
)
from unireason_lib.dataset.study import Study
from unireason_lib.errors import LabelError, explain

MODALITIES: dict[str, str] = {
    "ct": "CT",
    "mr": "MRI",
    "x_ray": "X-ray",
    "pet": "PET",
    "ultrasound": "ultrasound",
    "endoscopy": "endoscopy",
    "dermoscopy": "dermoscopy",
    "fundus_photography": "fundus photography",
    "microscopy": "microscopy",
    "histopathology": "histopathology",
}
"""Prefix of a file name -> how the modality is said."""

INVERTED = frozenset({"ichallenge_adam_task2"})
"""Sets in which some masks are 0 inside, as a public reader (torch-em) found: a mask that holds all four corners of
the picture is turned around there, with a note."""

_NAMELESS = re.compile(r"(class|label)?[ _]?\d*|left|right", re.IGNORECASE)
_TEXT = rb'"(?:[^"\\]++|\\.)*+"'
_ENTRY = re.compile(rb"\s*+(" + _TEXT + rb"\s*+:\s*+\[(?:[^\]\"]++|" + _TEXT + rb")*+\])\s*+([,}])")


@dataclass(frozen=True)
class PictureName:
    """What the name of a picture says.

    Attributes:
        modality: In words.
        sequence: Sub-modality (``"t1ce"``), or empty.
        dataset: Of which the case is.
        case: Of one patient.
        axis: ``"x"``, ``"y"``, ``"z"`` of the array, or ``"2d"``.
        index: Number of the slice; None for a plain picture.
    """

    modality: str
    sequence: str
    dataset: str
    case: str
    axis: str
    index: int | None

    @classmethod
    def parse(cls, stem: str, datasets: Container[str] = ()) -> PictureName:
        """Read ``modality_sub--dataset--case--axis_slice``.

        Args:
            stem: Name without suffix.
            datasets: Known data sets. In a name with more dashes the longest of these is meant; if none fits, the
                case is the last part.

        Raises:
            DatasetError: Another form.
        """
        prefix, *middle, plane = stem.split("--") if "--" in stem else ("", "")
        ways = [("--".join(middle[:n]), "--".join(middle[n:])) for n in range(len(middle) - 1, 0, -1)]
        dataset, case = next((way for way in ways if way[0] in datasets), ways[0] if ways else ("", ""))
        axis, _, number = plane.rpartition("_")
        if not all((prefix, dataset, case, axis)):
            raise bad(
                stem, "modality_sub--dataset--case--axis_slice", "another name", "check the list of pictures"
            )
        known = next((key for key in MODALITIES if prefix == key or prefix.startswith(key + "_")), None)
        sub = prefix.removeprefix(known or "").strip("_")
        return cls(
            MODALITIES[known] if known else prefix.removesuffix("_00").replace("_", " "),
            "" if not known or sub == "00" else sub,
            dataset,
            case,
            axis,
            int(number) if number.isdecimal() else None,
        )


@dataclass(frozen=True, eq=False)
class SAMed2DSource(FileSource):
    """Pictures of SA-Med2D-20M (see the module).

    Args:
        path: ``SAMed2Dv1``, or the folder in which it lies.
        datasets: Only these data sets: ``"CAD_PE+FLARE22"`` or a list.
        modalities: Only these prefixes of names: ``"ct"``, ``"mr_t1"``, ...
        absent: Which classes count as absent: those whose mask is empty, or (``"mapping"``) every class of the
            data set that has no mask.

    Raises:
        DatasetError: A file is missing or ill-formed, or nothing is left.
    """

    path: str | Path
    datasets: str | Sequence[str] | None = None
    modalities: str | Sequence[str] | None = None
    absent: Literal["masks", "mapping"] = "masks"

    name = "sa-med2d"
    license = "CC BY-NC-SA 4.0; parts keep the terms of their sources"
    modality = "mixed"

    def __post_init__(self) -> None:
        if self.absent not in ("masks", "mapping"):
            raise bad("absent", "masks or mapping", repr(self.absent), "choose one")
        if not len(self):
            raise bad(self._list, "pictures", "none of the chosen sets and modalities", "choose others")
        _ = self._classes

    def __len__(self) -> int:
        return len(self._spans)

    def state_files(self) -> list[Path]:
        """What stands for 28 million files when a build is taken up again: both lists, and the two folders, whose time
        of change tells that a file came or went (not that one was written anew in place)."""
        lists = (self._list, self._root / "SAMed2D_v1_class_mapping_id.json")
        return [*lists, *(path for name in ("images", "masks") if (path := self._root / name).is_dir())]

    @cached_property
    def _root(self) -> Path:
        folder = existing_folder(self.path, "SA-Med2D-20M")
        return folder / "SAMed2Dv1" if (folder / "SAMed2Dv1").is_dir() else folder

    @property
    def _list(self) -> Path:
        return self._root / "SAMed2D_v1.json"

    @cached_property
    def _data(self) -> mmap.mmap | bytes:
        try:
            with open(self._list, "rb") as file:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except (OSError, ValueError) as error:
            raise bad(self._list, "the list of pictures", str(error), "give the folder SAMed2Dv1") from error

    @cached_property
    def _spans(self) -> np.ndarray:
        """(pictures, 2) int64: where in the list the entry of each picture begins and ends."""
        data, spans = self._data, array("q")
        sets, prefixes = ({t.encode() for t in listed(o) or ()} for o in (self.datasets, self.modalities))
        opening = re.match(rb"(?:\xef\xbb\xbf)?\s*\{\s*", data)
        place, last = (opening.end(), b",") if opening else (0, b"")
        for match in _ENTRY.finditer(data, place) if opening else ():
            if match.start() != place or last != b",":
                break
            place, last = match.end(), match[2]
            if not (sets or prefixes) or _chosen(match[1], sets, prefixes):
                spans.extend(match.span(1))
        empty = opening and last == b"," and not spans and data[place : place + 1] == b"}"
        if (last != b"}" and not empty) or data[place + bool(empty) :].strip():
            raise bad(
                self._list,
                '{"images/....png": ["masks/....png", ...], ...}',
                f"something else at byte {place}",
                "download it again",
            )
        return np.frombuffer(spans, np.int64).reshape(-1, 2)

    @cached_property
    def _classes(self) -> dict[str, dict[str, str]]:
        """Data set -> class id -> name."""
        path = self._root / "SAMed2D_v1_class_mapping_id.json"
        classes: dict[str, dict[str, str]] = {}
        for dataset, mapping in read_object(path).items():
            if not isinstance(mapping, dict):
                raise bad(
                    path,
                    'class names like {"liver": "0003"}',
                    f"{dataset}: {mapping!r:.80}",
                    "download it again",
                )
            ids = classes.setdefault(dataset, {})
            for name, number in mapping.items():
                # where a union shares its id with a class, the class is meant
                if str(number) not in ids or ids[str(number)].startswith("union_"):
                    ids[str(number)] = name
        return classes

    def _study(self, k: int) -> Study:
        start, stop = self._spans[k].tolist()
        try:
            ((written, masks),) = json.loads(b"{" + self._data[start:stop] + b"}").items()
        except ValueError as error:
            raise bad(self._list, f"JSON at byte {start}", str(error)[:120], "download it again") from error
        masks = list(dict.fromkeys(map(str, masks)))
        stem = PurePosixPath(written).stem
        about = PictureName.parse(stem, self._classes)
        path = inside(self._root, written, self._list)
        named = self._named(about, masks)
        plane = {} if about.index is None else {"axis": about.axis, "slice": about.index}
        study = study_of_masks(
            path,
            [(name, inside(self._root, mask, self._list)) for name, mask in named],
            invert=about.dataset in INVERTED,
            id=f"{self.name}-{stem}",
            patient=f"{self.name}-{about.dataset}--{about.case}",
            source=self.name,
            modality=about.modality,
            license=self.license,
            details={
                "scan": path.relative_to(self.path).as_posix(),
                "dataset": about.dataset,
                **({"sequence": about.sequence} if about.sequence else {}),
                **plane,
            },
            **self._looked_for(about, named),
        )
        return study

    def _named(self, about: PictureName, masks: Sequence[str]) -> list[tuple[str, str]]:
        """(name, path) of every mask that is a structure of its own."""
        ids = [mask.rpartition("--")[2].partition("_")[0] for mask in masks]
        names = self._classes.get(about.dataset, {})
        if unknown := sorted(set(ids) - set(names)):
            raise LabelError(
                explain(
                    f"masks of {about.dataset} {about.case}",
                    expected="class ids of SAMed2D_v1_class_mapping_id.json",
                    found=f"unknown class ids {', '.join(unknown[:8])}",
                    do="check that both files are of one release",
                )
            )
        kept = [(names[i], mask) for i, mask in zip(ids, masks, strict=True) if is_structure(names[i])]
        if not kept:
            raise bad(f"{about.dataset} {about.case}", "a mask of a named structure", "none", "leave it out")
        return [(structure_name(name), mask) for name, mask in kept]

    def _looked_for(self, about: PictureName, named: Iterable[tuple[str, str]]) -> dict[str, Any]:
        if self.absent == "masks":
            return {}
        mapped = [
            structure_name(name) for name in self._classes[about.dataset].values() if is_structure(name)
        ]
        return {"vocabulary": tuple(dict.fromkeys([*(name for name, _ in named), *mapped]))}


def is_structure(name: str) -> bool:
    """Whether a class is a structure of its own with a name that says something."""
    return not name.startswith("union_") and not _NAMELESS.fullmatch(name)


def _chosen(entry: bytes, sets: set[bytes], prefixes: set[bytes]) -> bool:
    """Whether an entry of the list is of one of these data sets and modalities; an empty set allows all."""
    prefix, _, rest = entry[1 : entry.index(b'"', 1)].rpartition(b"/")[2].partition(b"--")
    return (not sets or any(rest.startswith(name + b"--") for name in sets)) and (
        not prefixes or any(prefix == p or prefix.startswith(p + b"_") for p in prefixes)
    )


@dataclass(frozen=True, eq=False)
class SAMMed2DSource(FileSource):
    """Pictures in the layout of the SAM-Med2D demo.

    ::

        images/amos_0004_75.png
        masks/amos_0004_75_inferior_vena_cava_000.png      <picture>_<class name>_<instance>
        image2label_train.json     {"data_demo/images/a.png": ["data_demo/masks/a_liver_000.png", ...]}, if there

    With a list (``image2label_<split>.json`` or ``label2image_<split>.json``) its pictures are taken, in its order;
    of its paths only the file names count. Without one, all of ``images/`` by name, and a mask belongs to the
    picture with the longest name that it begins with. Which patient: the picture's name without its last number.
    Nothing is known to be absent.

    Args:
        path: Folder with ``images`` and ``masks``.
        modality: What all pictures are; None goes by their names (AMOS and TotalSegmentator, whose slices are in
            the demo; else "medical").

    Raises:
        DatasetError: No pictures, or an ill-formed list.
    """

    path: str | Path
    modality: str | None = None

    name = "sam-med2d"
    license = "those of the data sets that the slices are of; see the SAM-Med2D repository"

    def __post_init__(self) -> None:
        if not self._pictures:
            raise bad(self.path, "pictures in images/", "none", "give the folder that holds images and masks")
        if self.modality is None:
            found = {_modality_by_name(name) for name, _, _ in self._pictures}
            object.__setattr__(self, "modality", found.pop() if len(found) == 1 else "mixed")

    def __len__(self) -> int:
        return len(self._pictures)

    @cached_property
    def _pictures(self) -> list[tuple[str, tuple[str, ...], str | None]]:
        """(file name, names of its masks, split) of every picture."""
        root = existing_folder(self.path, "SAM-Med2D pictures")
        lists = sorted([*root.glob("image2label_*.json"), *root.glob("label2image_*.json")])
        if not lists:
            images = _pngs(root / "images")
            return [(image, masks, None) for image, masks in _by_longest_name(images, _pngs(root / "masks"))]
        found: dict[str, tuple[list[str], str | None]] = {}
        for path in lists:
            split = path.stem.rpartition("_")[2]
            split = split if split in ("train", "val", "test") else None
            for key, value in read_object(path).items():
                turned = path.name.startswith("label2image")
                image, masks = (value, [key]) if turned else (key, value)
                if not (isinstance(masks, list) and all(isinstance(text, str) for text in (image, *masks))):
                    raise bad(path, "paths of pictures and masks", f"{key}: {value!r:.80}", "correct it")
                known, _ = found.setdefault(PurePosixPath(image).name, ([], split))
                known += (PurePosixPath(mask).name for mask in masks)
        return [(image, tuple(dict.fromkeys(masks)), split) for image, (masks, split) in found.items()]

    def _study(self, k: int) -> Study:
        image, masks, split = self._pictures[k]
        root, stem = Path(self.path), PurePosixPath(image).stem
        path = inside(root, f"images/{image}", "list of pictures")
        if not masks:
            raise bad(path, f"masks/{stem}_<class name>_<instance>.png", "no mask", "leave the picture out")
        named = []
        for mask in masks:
            words, _, instance = PurePosixPath(mask).stem.removeprefix(f"{stem}_").rpartition("_")
            if not mask.startswith(f"{stem}_") or not words or not instance.isdecimal():
                raise bad(mask, f"{stem}_<class name>_<instance>.png", "another name", "rename it")
            named.append((structure_name(words), inside(root, f"masks/{mask}", "list of masks")))
        return study_of_masks(
            path,
            named,
            id=f"{self.name}-{stem}",
            patient=f"{self.name}-{re.sub(r'_[0-9]+$', '', stem)}",
            source=self.name,
            modality=self.modality if self.modality != "mixed" else _modality_by_name(image),
            license=self.license,
            split=split,
            details={"scan": f"images/{image}"},
        )


def _modality_by_name(image: str) -> str:
    """AMOS counts its MRI from 501, TotalSegmentator (``s0114``) is CT."""
    if match := re.match(r"amos_(\d{4})_", image):
        return "CT" if int(match[1]) <= 500 else "MRI"
    return "CT" if re.match(r"s\d{4}_", image) else "medical"


def _pngs(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise bad(folder, "a folder of pictures", "nothing of that name", "check the path")
    return sorted(
        p.name for p in folder.iterdir() if p.suffix.lower() == ".png" and not p.name.startswith(".")
    )


def _by_longest_name(images: Sequence[str], masks: Iterable[str]) -> list[tuple[str, tuple[str, ...]]]:
    stems: dict[str, list[str]] = {PurePosixPath(image).stem: [] for image in images}
    for mask in masks:
        start = mask
        while start and start not in stems:
            start = start.rpartition("_")[0]
        if start:
            stems[start].append(mask)
    return [(image, tuple(stems[PurePosixPath(image).stem])) for image in images]


def study_of_masks(
    path: Path, named: Sequence[tuple[str, Path]], *, invert: bool = False, **about: Any
) -> Study:
    """A 2D study from a picture and one mask file a structure.

    Args:
        path: The picture; only its header is read.
        named: (name, path) of every mask; names may repeat (two nodules).
        invert: Whether a mask that holds all four corners is 0 inside.
        **about: Fields of the study; notes on what was done to masks are added to its details.

    Raises:
        ScanError: A file is missing or cannot be decoded.
        LabelError: A mask has another aspect than its picture.
    """
    shape = picture_shape(path)
    notes: list[str] = []

    def masks():
        for name, place in named:
            mask = _fitted(read_mask(place), shape, place, notes)
            if invert and mask[[0, 0, -1, -1], [0, -1, 0, -1]].all():
                mask = ~mask
                notes.append(f"{place.name}: 0 inside, turned around")
            yield name, mask

    study = Study.from_masks(masks(), scan=path, **about)
    if notes:
        study = replace(study, details={**study.details, "notes": tuple(notes)})
    return count_lesions(study, study.labels)


def _fitted(mask: np.ndarray, shape: tuple[int, int], path: Path, notes: list[str]) -> np.ndarray:
    """The mask on the grid of the picture."""
    if mask.shape == shape:
        return mask
    (height, width), (rows, columns) = shape, mask.shape
    if abs(columns * height - rows * width) > max(shape):  # more than one pixel of the mask
        raise LabelError(
            explain(
                path,
                expected=f"a mask with the aspect of its picture, {height} x {width}",
                found=f"{rows} x {columns}",
                do="check that mask and picture belong together",
            )
        )
    notes.append(f"{path.name}: stretched from {rows} x {columns} to {height} x {width}")
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))
