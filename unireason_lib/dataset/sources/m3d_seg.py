"""M3D-Seg: CT volumes of 25 public data sets with their masks, as arrays without geometry.

Raw, as it is downloaded::

    0004/0004.json                                   labels, and lists of {image, label} for train and test
    0004/case_00000/image.npy                        (1, X, Y, Z), foreground scaled to mean 0 and deviation 1
    0004/case_00000/mask_(3, 512, 512, 611).npz      SciPy CSR of shape (C, X*Y*Z); channel i is label i + 1

Prepared, what the authors' script makes of it (``M3D_Seg_npy``)::

    0004/case_00000/image.npy                        (1, 32, 256, 256) as (Z, Y, X), 0 to 1
    0004/case_00000/masks/mask_0.npy                 (1, 32, 256, 256) booleans of channel 0; where that is empty,
                                                     zeros of shape (1, 1, 1, 1) or no file

Which of the two it is, each case shows by itself.

What is lost in this form: **spacing, Hounsfield units and directions**. Arrays lie as their files did, which differs
from set to set; in some the patient is mirrored against others. So a study has no directions, says so among its
details, and nothing is asked about sides; that z is the last axis of a raw array is an assumption, too. In prepared
arrays small structures may have vanished in the resizing.

Masks are sparse matrices in ``.npz`` files. They are read as plain arrays, never as pickles, and checked before use;
a channel is unpacked when its turn comes, so one mask is in memory at a time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from unireason_lib.dataset.sources.files import (
    FileSource,
    bad,
    count_lesions,
    existing_folder,
    hosted,
    inside,
    listed,
    read_object,
    structure_name,
    value_names,
)
from unireason_lib.dataset.study import Study
from unireason_lib.errors import LabelError, ScanError, explain
from unireason_lib.imaging import Volume
from unireason_lib.imaging.volume import UNKNOWN_AFFINE

WARNING = (
    "array without geometry: directions, spacing and units are unknown, left and right cannot be settled"
)

NAMES: dict[str, dict[str, str]] = {
    "0005": {"tumor": "kidney tumour"},
    "0018": {"colon cancer": "colon tumour"},
    "0019": {"tumour": "liver tumour"},
    "0020": {"tumour": "liver tumour"},
    "0021": {"lung tumours": "lung tumour"},
    "0022": {"tumour": "pancreatic tumour"},
}
"""Code of a data set -> label as written -> what it is called here."""

HOSTS: dict[str, dict[str, str]] = {
    "0004": {"kidney tumour": "kidney", "kidney cyst": "kidney"},
    "0006": {"kidney tumour": "kidney"},
    "0017": {"pancreatic lesion": "pancreas"},
    "0020": {"liver tumour": "liver"},
    "0022": {"pancreatic tumour": "pancreas"},
}
"""Code -> lesion -> organ of which it is part: its voxels are added to the organ's, in whose mask they are a hole."""

PARTIAL = frozenset({"0009"})
"""Sets whose cases were outlined each to another list of structures: an empty mask there does not mean absent."""


@dataclass(frozen=True)
class _Case:
    code: str
    image: str
    labels: tuple[str, ...]
    split: str


@dataclass(frozen=True, eq=False)
class M3DSegSource(FileSource):
    """Cases of M3D-Seg, raw or prepared (see the module).

    Args:
        path: The folder with ``0000``, ``0001``, ...
        codes: Only these data sets: ``"0003+0013"`` or a list.

    Raises:
        DatasetError: A data set that was asked for is not there, or a list of cases is ill-formed.
    """

    path: str | Path
    codes: str | Sequence[str] | None = None

    name = "m3d-seg"
    license = "those of the 25 data sets that it is made of; see the card of M3D-Seg"
    modality = "CT"

    def __post_init__(self) -> None:
        if not self._cases:
            raise bad(self.path, "data sets like 0000/0000.json with cases", "none", "check the path")

    def __len__(self) -> int:
        return len(self._cases)

    @cached_property
    def _tables(self) -> dict[str, dict[str, Any]]:
        """Code -> content of its JSON file."""
        root = existing_folder(self.path, "M3D-Seg")
        chosen = None if self.codes is None else [c.zfill(4) for c in listed(self.codes)]
        found = sorted(f.name for f in root.iterdir() if re.fullmatch(r"\d{4}", f.name) and f.is_dir())
        if missing := set(chosen or ()) - set(found):
            raise bad(
                root, f"folders {', '.join(sorted(missing))}", ", ".join(found) or "none", "correct codes"
            )
        return {code: read_object(root / code / f"{code}.json") for code in chosen or found}

    @cached_property
    def _cases(self) -> list[_Case]:
        cases: dict[tuple[str, str], _Case] = {}
        for code, table in self._tables.items():
            for split in ("train", "test"):
                entries = table.get(split, [])
                if not isinstance(entries, list) or not all(map(_is_pair, entries)):
                    raise bad(
                        f"{code}.json",
                        f"{split}: a list of image and label",
                        f"{entries!r:.80}",
                        "correct it",
                    )
                for entry in entries:  # the prepared lists name an image once for each of its masks
                    before = cases.get((code, entry["image"]))
                    labels = (*(before.labels if before else ()), entry["label"])
                    cases[code, entry["image"]] = _Case(
                        code, entry["image"], labels, before.split if before else split
                    )
        return list(cases.values())

    @cached_property
    def _names(self) -> dict[str, dict[int, str | None]]:
        """Code -> label id -> readable name; None where two labels have one name, which then means neither."""
        return {
            code: _readable(code, value_names(t.get("labels"), f"{code}.json"))
            for code, t in self._tables.items()
        }

    def _study(self, k: int) -> Study:
        case = self._cases[k]
        image = self._place(case, case.image)
        names = self._names[case.code]
        values = {name: value for value, name in names.items() if name}
        pairs = HOSTS.get(case.code, {}).items()
        hosts = {values[part]: values[organ] for part, organ in pairs if part in values and organ in values}
        prepared = (image.parent / "masks").is_dir()
        shape = _shape(image, prepared)
        channels = (
            _prepared_masks(image.parent / "masks", shape) if prepared else self._sparse(case, image, shape)
        )
        self._check_channels(case, names, channels)
        labels = [value for value, name in names.items() if name is not None]

        def masks() -> Iterator[tuple[str, np.ndarray]]:
            for label in labels:
                mask = np.zeros(shape, bool)
                for value in (label, *(part for part, organ in hosts.items() if organ == label)):
                    channels.add(value - 1, mask)
                yield names[label], mask

        attributes = hosted(names, hosts)
        name = f"{self.name}-{case.code}-{image.parent.name}"
        study = Study.from_masks(
            masks(),
            scan=image if prepared else partial(_raw_scan, image),
            attributes={k: attributes[v] for k, v in enumerate(labels, start=1) if v in attributes},
            id=name,
            patient=name,
            source=self.name,
            modality=self.modality,
            license=self.license,
            split=case.split,
            details={
                "scan": image.relative_to(self.path).as_posix(),
                "dataset": case.code,
                "warning": WARNING,
            },
        )
        if case.code in PARTIAL:
            study = replace(study, vocabulary=tuple(dict.fromkeys(s.name for s in study.structures)))
        return count_lesions(study, study.labels)

    def _place(self, case: _Case, written: str) -> Path:
        """Where a file of a case lies; the authors' lists begin with ``<code>/`` or with a path of another machine."""
        parts = PurePosixPath(written).parts
        if case.code not in parts:
            raise bad(
                f"{case.code}.json", f"paths with {case.code}/<case>/", repr(written), "correct that entry"
            )
        start = len(parts) - 1 - parts[::-1].index(case.code)
        return inside(Path(self.path), "/".join(parts[start:]), f"{case.code}.json")

    def _sparse(self, case: _Case, image: Path, shape: tuple[int, int, int]) -> _SparseMasks:
        return _SparseMasks.load(self._place(case, case.labels[0]), shape)

    def _check_channels(self, case: _Case, names: Mapping[int, str | None], channels: Any) -> None:
        if unknown := sorted(set(channels.values) - set(names)):
            raise LabelError(
                explain(
                    f"masks of {case.code} {case.image}",
                    expected=f"label ids of {case.code}.json",
                    found=f"unknown label ids {', '.join(map(str, unknown[:8]))}",
                    do="check that masks and list are of one release",
                )
            )


@dataclass(frozen=True)
class _SparseMasks:
    """Masks of a raw case: for channel i the flat positions ``indices[starts[i]:starts[i + 1]]`` in (X, Y, Z)."""

    indices: np.ndarray
    starts: np.ndarray
    shape: tuple[int, int, int]

    @property
    def values(self) -> range:
        """Label ids that have a channel."""
        return range(1, len(self.starts))

    def add(self, channel: int, mask: np.ndarray) -> None:
        """Set the voxels of a channel in a mask (Z, Y, X); a channel that is not there has none."""
        if channel + 1 < len(self.starts):
            depth, height, _ = self.shape
            xy, z = np.divmod(self.indices[self.starts[channel] : self.starts[channel + 1]], depth)
            x, y = np.divmod(xy, height)
            mask[z, y, x] = True

    @classmethod
    def load(cls, path: Path, shape: tuple[int, int, int]) -> _SparseMasks:
        """Read a CSR matrix as ``scipy.sparse.save_npz`` writes it, without pickles.

        Args:
            path: ``mask_(C, X, Y, Z).npz``.
            shape: (Z, Y, X) of the scan.

        Raises:
            ScanError: Unreadable, or no CSR matrix that is sound in itself.
            LabelError: Of another shape than the scan.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                arrays = [file[name] for name in ("indices", "indptr", "data")]
                rows, voxels = (int(number) for number in file["shape"])
                kind = file["format"].item()
        except (
            Exception,
            MemoryError,
        ) as error:  # zip archives and array headers that are damaged raise many kinds
            raise _unreadable(path, "a sparse matrix of SciPy", error) from error
        indices, starts, data = arrays
        sound = (
            kind in (b"csr", "csr")
            and all(array.ndim == 1 for array in arrays)
            and indices.dtype.kind == starts.dtype.kind == "i"
            and data.dtype.kind in "iufb"
            and len(starts) == rows + 1 > 1
            and len(indices) == len(data) == starts[-1]
            and starts[0] == 0
            and (np.diff(starts) >= 0).all()
            and (not len(indices) or (indices.min() >= 0 and indices.max() < voxels))
        )
        if not sound:
            raise ScanError(
                explain(
                    path,
                    expected="a sound CSR matrix (channels, voxels)",
                    found=f"{kind!r} of shape ({rows}, {voxels}) that contradicts itself",
                    do="download it again",
                )
            )
        named = re.search(r"\(([\d, ]+)\)", path.name)
        said = (
            [int(number) for number in named[1].split(",") if number.strip()]
            if named
            else [rows, *shape[::-1]]
        )
        if said != [rows, *shape[::-1]] or voxels != np.prod(shape, dtype=np.int64):
            raise LabelError(
                explain(
                    path,
                    expected=f"masks of the scan's shape (X, Y, Z) = {shape[::-1]}",
                    found=f"{said[1:]} in its name, a matrix {rows} x {voxels}",
                    do="check that scan and masks belong together",
                )
            )
        if not data.all():  # stored zeros
            filled = np.concatenate([[0], np.cumsum(data != 0)])
            indices, starts = indices[data != 0], filled[starts]
        return cls(indices.astype(np.int64), starts, shape)


@dataclass(frozen=True)
class _MaskFiles:
    """Masks of a prepared case: one file a channel, for those that are not empty."""

    files: Mapping[int, Path]
    shape: tuple[int, int, int]

    @property
    def values(self) -> list[int]:
        """Label ids that have a file."""
        return [channel + 1 for channel in self.files]

    def add(self, channel: int, mask: np.ndarray) -> None:
        """Set the voxels of a channel in a mask (Z, Y, X).

        Raises:
            ScanError: The file cannot be read.
            LabelError: It has another shape than the scan.
        """
        if channel not in self.files:
            return
        path = self.files[channel]
        array = _array(path)
        if array.size == 1 and not array.any():
            return
        if array.shape != (1, *self.shape):
            raise LabelError(
                explain(
                    path,
                    expected=f"shape {(1, *self.shape)}, or (1, 1, 1, 1) when absent",
                    found=str(array.shape),
                    do="prepare the case again",
                )
            )
        mask |= array[0] != 0


def _prepared_masks(folder: Path, shape: tuple[int, int, int]) -> _MaskFiles:
    found = ((re.fullmatch(r"mask_(\d+)\.npy", path.name), path) for path in folder.iterdir())
    return _MaskFiles(dict(sorted((int(match[1]), path) for match, path in found if match)), shape)


def _shape(image: Path, prepared: bool) -> tuple[int, int, int]:
    """(Z, Y, X) of a scan, from the header of its file."""
    array = _array(image)
    if array.ndim != 4 or array.shape[0] != 1 or not array.size:
        form = "(1, Z, Y, X)" if prepared else "(1, X, Y, Z)"
        raise ScanError(
            explain(image, expected=f"shape {form}", found=str(array.shape), do="download it again")
        )
    return array.shape[1:] if prepared else array.shape[:0:-1]


def _raw_scan(path: Path) -> Volume:
    """A raw scan (1, X, Y, Z) as (Z, Y, X), mapped from its file."""
    return Volume(_array(path)[0].T, UNKNOWN_AFFINE, str(path), has_affine=False)


def _array(path: Path) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "iufb":
            raise ValueError("no array of numbers")
    except Exception as error:  # array headers that are damaged raise many kinds
        raise _unreadable(path, "an array of numbers", error) from error
    return array


def _unreadable(path: Path, expected: str, error: BaseException) -> ScanError:
    gone = isinstance(error, FileNotFoundError)
    found = (
        "nothing of that name" if gone else f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    )
    return ScanError(explain(path, expected=expected, found=found, do="download it again"))


def _is_pair(entry: object) -> bool:
    return isinstance(entry, dict) and all(isinstance(entry.get(key), str) for key in ("image", "label"))


def _readable(code: str, names: Mapping[int, str | None]) -> dict[int, str | None]:
    known = NAMES.get(code, {})
    words = {value: name and known.get(name.lower(), structure_name(name)) for value, name in names.items()}
    often = Counter(words.values())
    return {value: name if often[name] == 1 else None for value, name in words.items()}
