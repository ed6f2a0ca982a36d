"""SA-Med2D-20M: images of ten modalities with one mask per structure, and the demo of SAM-Med2D.

The large set (arXiv 2311.11969; 3.7 million images) is one folder, as in ``LAYOUTS.md``. Slices
were cut from arrays whose orientation differs, so **no direction in the patient is known**, nor any
spacing; and **a class without a mask need not be absent** (very small masks were left out; an empty
mask says so). Masks of another size are stretched with a warning, or refused when the aspect
differs. Classes called ``union_...`` and nameless ones are skipped."""

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import ExifTags, Image

from unireason_lib.dataset.sources import base
from unireason_lib.dataset.sources.base import Entry, names_table, well_formed
from unireason_lib.dataset.study import Study
from unireason_lib.errors import DatasetError, LabelError, ScanError, ScanWarning
from unireason_lib.imaging import load_image
from unireason_lib.io import open_image, read_json

_NAMELESS = re.compile(r"union_.*|(class|label)?[ _]?\d*|left|right", re.IGNORECASE)


class _Images(base.FileSource):
    """A source of images with one mask file per structure."""

    def scan(self, key: str) -> np.ndarray:
        return np.asarray(load_image(self.scan_file(key)))

    def _study(self, key: str, names: Sequence[str]) -> Study:
        """A study of an image; ``names`` are those of its masks, not all of which mean anything."""
        image = open_image(self.scan_file(key))
        if (turn := image.getexif().get(ExifTags.Base.Orientation, 1)) != 1:  # masks have none
            do = "save it as it is to be seen, and its masks likewise"
            raise ScanError(self.scan_file(key), "an upright image", f"EXIF orientation {turn}", do)
        shape = image.size[::-1]
        pairs = zip(names, self.case(key).labels, strict=True)
        masks = [
            (base.structure_name(name), _read_mask(self.file(path), shape))
            for name, path in pairs
            if name and not _NAMELESS.fullmatch(name)
        ]
        return self.measured(key, Study.from_masks, masks, hosts={})


def _read_mask(path: Path, shape: tuple[int, int]) -> np.ndarray:
    """(Y, X) booleans on the grid of the image: all values but 0 are inside."""
    image = open_image(path)
    colour = image.mode in ("RGB", "RGBA", "LA", "PA", "CMYK")  # transparency says nothing
    mask = np.asarray(image.convert("RGB")).any(axis=2) if colour else np.asarray(image) != 0
    if mask.shape == shape:
        return mask
    (height, width), (rows, columns) = shape, mask.shape
    if abs(columns * height - rows * width) > max(shape):  # more than one pixel of the mask
        expected = f"the aspect of its image, {height} x {width}"
        raise LabelError(path, expected, f"{rows} x {columns}", "give the mask of this image")
    text = f"{path.name}: stretched from {rows} x {columns} to {height} x {width}"
    warnings.warn(text, ScanWarning, stacklevel=2)
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST))


@dataclass(frozen=True, eq=False)
class SAMed2DSource(_Images):
    """Images of SA-Med2D-20M."""

    path: str | Path  # of SAMed2Dv1
    title: str | None = None

    registered = "sa-med2d"
    license = "CC BY-NC-SA 4.0; parts keep the terms of their sources"
    modality = "mixed"

    @cached_property
    def cases(self) -> Mapping[str, list[str]]:
        """Image -> its masks; they are millions, so entries are made on access."""
        path = self.root / "SAMed2D_v1.json"
        masks = read_json(path)
        if not all(isinstance(own, list) for own in masks.values()):
            raise DatasetError(path, "lists of masks", "other values", "download it again")
        return masks

    @cached_property
    def _classes(self) -> dict[str, dict[str, str]]:
        """Data set -> class id -> name; where a union shares its id with a class, that is meant."""
        path = self.root / "SAMed2D_v1_class_mapping_id.json"
        with well_formed(path, 'names of every data set like {"liver": "0003"}'):
            return {
                dataset: {str(ids[n]): n for n in sorted(ids, key=lambda n: n[:6] != "union_")}
                for dataset, ids in read_json(path).items()
            }

    @cached_property
    def _entries(self) -> Sequence[Entry]:
        return base.LazyIndex(list(self.cases), self.case)

    def case(self, key: str) -> Entry:
        """What the name ``modality_sub--dataset--case--axis_slice`` of an image says."""
        masks = super().case(key)
        prefix, dataset, rest = [*PurePosixPath(key).stem.split("--", 2), "", ""][:3]
        kinds = names_table(self.registered)["modalities"].items()
        modality = next((m for kind, m in kinds if f"{prefix}_".startswith(kind)), "medical")
        name = f"{self.name}-{key.removeprefix('images/').removesuffix('.png')}"
        labels = tuple(dict.fromkeys(map(str, masks)))
        patient = f"{self.name}-{dataset}--{rest.rpartition('--')[0]}"
        return Entry(key, patient, id=name, modality=modality, labels=labels)

    def study(self, key: str) -> Study:
        classes = self._classes.get(key.partition("--")[2].partition("--")[0], {})
        ids = [mask.rpartition("--")[2].partition("_")[0] for mask in self.case(key).labels]
        if unknown := sorted(set(ids) - set(classes)):
            found, do = f"unknown class ids {unknown}", "use lists of one release"
            raise LabelError(f"masks of {key}", "classes of the mapping", found, do)
        return self._study(key, [classes[number] for number in ids])


@dataclass(frozen=True, eq=False)
class SAMMed2DSource(_Images):
    """Images in the layout of the SAM-Med2D demo: ``images/amos_0507_31.png`` with masks
    ``masks/<image>_<class name>_<instance>.png``. A mask belongs to the image with the longest name
    that it begins with; the patient is that name without its last number. Nothing is known to be
    absent, and the lists of the demo, which name no patients, are not read."""

    path: str | Path
    title: str | None = None

    registered = "sam-med2d"
    license = "those of the data sets that the slices are of; see the SAM-Med2D repository"

    @cached_property
    def cases(self) -> Mapping[str, Entry]:
        masks: dict[str, list[str]] = {image: [] for image in self._names_in("images")}
        for mask in self._names_in("masks"):
            image = mask
            while image and image not in masks:
                image = image.rpartition("_")[0]
            if image:
                masks[image].append(f"masks/{mask}.png")
        cases = {}
        for image, own in masks.items():
            key, name = f"images/{image}.png", f"{self.name}-{image}"
            patient = re.sub(r"_[0-9]+$", "", name)
            cases[key] = Entry(key, patient, id=name, modality="medical", labels=tuple(own))
        return cases

    def _names_in(self, folder: str) -> list[str]:
        place = self.root / folder
        paths = (path.relative_to(place) for path in place.rglob("[!.]*.png"))
        return sorted(path.with_suffix("").as_posix() for path in paths)

    def study(self, key: str) -> Study:
        start = f"masks/{key.removeprefix('images/').removesuffix('.png')}_"
        words = (mask.removeprefix(start) for mask in self.case(key).labels)
        return self._study(key, [name.rpartition("_")[0] for name in words])
