"""M3D-Seg: CT volumes of 25 public data sets with their masks, as arrays without geometry.

Raw, as it is downloaded, or prepared, as the authors' script writes it (see ``LAYOUTS.md``); each
case shows which of the two it is. Lost are **spacing, Hounsfield units and directions** (some
sets are mirrored against others), so nothing is asked about sides; that z is the last axis of a raw
array is assumed. Masks are never read as pickles, and what they promise is compared with the scan
before anything is allocated."""

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unireason_lib.dataset.sources import base
from unireason_lib.dataset.sources.base import Entry, names_table, well_formed
from unireason_lib.dataset.study import Study
from unireason_lib.errors import LabelError, ScanError, ScanWarning, raising
from unireason_lib.imaging import Volume, load_volume, npz_headers
from unireason_lib.io import read_json

WARNING = "array without geometry: spacing, units and directions (left and right) are unknown"
_BYTES = 16  # the most that SciPy stores for a voxel inside: an index and a value of 8 bytes

Masks = tuple[list[int], Callable[[int], np.ndarray]]  # labels, and what reads a mask (Z, Y, X)


@dataclass(frozen=True, eq=False)
class M3DSegSource(base.FileSource):
    """Cases of M3D-Seg; a key begins with the code of the data set."""

    path: str | Path
    title: str | None = None

    registered = "m3d-seg"
    license = "those of the 25 data sets that it is made of; see the card of M3D-Seg"
    modality = "CT"

    @cached_property
    def about(self) -> dict[str, dict[str, Any]]:
        """Code -> content of its JSON file."""
        codes = sorted(folder.name for folder in self.root.glob("[0-9]" * 4))
        return {code: read_json(self.root / code / f"{code}.json") for code in codes}

    @cached_property
    def cases(self) -> Mapping[str, Entry]:
        masks: dict[str, str] = {}
        splits: dict[str, list[str]] = {}
        for code, table in self.about.items():
            with well_formed(f"{code}.json", "train and test: lists of image and label"):
                for split in ("train", "val", "test"):
                    for entry in table.get(split, ()):  # in prepared lists one for each mask
                        key = base.from_part(entry["image"], code)
                        masks[key] = base.from_part(entry["label"], code)
                        splits.setdefault(key, []).append(split)
        cases = {}
        for key, split in base.strictest(splits, self.name).items():
            code, _, folder = PurePosixPath(key).parent.as_posix().partition("/")
            name, labels = f"{self.name}-{code}-{folder}", (masks[key],)
            cases[key] = Entry(key, name, split, id=name, modality=self.modality, labels=labels)
        return cases

    def _names(self, code: str) -> dict[int, str | None]:
        """Label -> readable name; a name that two labels share means neither."""
        known = names_table(self.registered)["names"].get(code, {})
        names = base.value_names(self.about[code].get("labels"), f"{code}.json", known)
        often = Counter(names.values())
        return {label: name if often[name] == 1 else None for label, name in names.items()}

    def scan(self, key: str) -> Volume:
        """The image of a case as (Z, Y, X), mapped from its file."""
        path = self.scan_file(key)
        volume, prepared = load_volume(path), (path.parent / "masks").is_dir()
        return volume if prepared else replace(volume, array=volume.array.T)

    def study(self, key: str) -> Study:
        case, folder, shape = self.case(key), self.scan_file(key).parent, self.scan(key).shape
        code, tables = key.partition("/")[0], names_table(self.registered)
        names = self._names(code)
        warnings.warn(f"{case.id}: {WARNING}", ScanWarning, stacklevel=2)
        if (folder / "masks").is_dir():
            there, mask = _prepared_masks(folder / "masks", shape)
        else:
            there, mask = _sparse_masks(self.file(case.labels[0]), shape, max(names, default=0))
        if unknown := sorted(set(there) - set(names)):
            expected, do = f"labels of {code}.json", "use masks and lists of one release"
            raise LabelError(f"masks of {key}", expected, unknown, do)
        hosts = tables["hosts"].get(code, {})
        inside = base.parts_of(names, hosts)

        def masks() -> Iterator[tuple[str, np.ndarray]]:
            for label in filter(names.get, names):
                # the mask of an organ has holes where its lesions are
                parts = [label, *(part for part, organ in inside.items() if organ == label)]
                yield names[label], np.logical_or.reduce([mask(part) for part in parts])

        study = self.measured(key, Study.from_masks, masks(), hosts=hosts)
        if code in tables["partial"]:
            study = replace(study, vocabulary=tuple({s.name: 0 for s in study.structures}))
        return study


def _sparse_masks(path: Path, shape: tuple[int, int, int], largest: int) -> Masks:
    """Those of a raw case, a CSR matrix with at most ``largest`` rows; shape is (Z, Y, X)."""
    from scipy import sparse

    voxels = math.prod(shape)
    expected = "a sound CSR matrix of SciPy that fits the scan"
    with raising(ScanError, path, expected, "download it again"):
        headers = npz_headers(path).values()
        size = sum(math.prod(shape) * dtype.itemsize for shape, dtype in headers)
        if size > largest * (voxels + 1) * _BYTES + 10_000:  # and what is the same for all
            raise ValueError(f"{size} bytes promised for {largest} masks of {voxels} voxels")
        matrix = sparse.load_npz(path)  # allows no pickles
        if matrix.format != "csr":
            raise ValueError(f"format {matrix.format}")
        matrix.check_format(full_check=True)
    written = [int(n) for n in re.findall(r"\d+", path.name)]
    if matrix.shape[1] != voxels or written[-4:] != [matrix.shape[0], *shape[::-1]]:
        expected, found = f"masks of (X, Y, Z) = {shape[::-1]}", f"a matrix {matrix.shape}"
        raise LabelError(path, expected, found, "give the masks of this scan")

    def mask(label: int) -> np.ndarray:
        inside = np.zeros(voxels, bool)
        if label <= matrix.shape[0]:
            own = slice(*matrix.indptr[label - 1 : label + 1])
            inside[matrix.indices[own]] = matrix.data[own] != 0  # zeros can be stored
        return inside.reshape(shape[::-1]).T

    return list(range(1, matrix.shape[0] + 1)), mask


def _prepared_masks(folder: Path, shape: tuple[int, int, int]) -> Masks:
    """Those of a prepared case, one file per label that is there."""
    matches = ((re.fullmatch(r"mask_(\d+)\.npy", file.name), file) for file in folder.iterdir())
    files = {int(match[1]) + 1: file for match, file in matches if match}

    def mask(label: int) -> np.ndarray:
        array = load_volume(files[label]).array if label in files else np.zeros(1)
        if array.size == 1 and not array.any():  # what the script writes for an empty mask
            return np.zeros(shape, bool)
        if array.shape != shape:
            expected = f"shape {(1, *shape)}, or (1, 1, 1, 1) when absent"
            raise LabelError(files[label], expected, (1, *array.shape), "prepare the case again")
        return array != 0

    return sorted(files), mask
