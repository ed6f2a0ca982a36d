"""What all readers of published data sets share: safe paths, names as one says them, and two doubts.

A reader turns the k-th entry of a folder or list into a :class:`~unireason_lib.dataset.study.Study`. It reads label
maps and masks, because boxes come from them, and only the *header* of the scan: pixels are read when somebody asks
for ``study.scan``. What is wrong with one entry is raised for that entry, by its file name, and costs no other.

Two things that files say are doubted:

- **Sides.** A header can be mirrored against the anatomy, and then every "left" is wrong. The liver lies on the right
  and the spleen on the left in nearly everybody; where a study shows the opposite, :func:`settle_sides` withdraws its
  directions, and nothing is asked about sides.
- **One lesion.** A label "tumour" often covers several tumours. :func:`count_lesions` counts the connected parts, so
  that nobody calls them *the* lesion.
"""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image

from unireason_lib.dataset.study import Structure, Study, kind_of, readable_name
from unireason_lib.errors import DatasetError, ScanError, explain
from unireason_lib.imaging import Volume, check_same_grid, label_boxes, load_volume
from unireason_lib.imaging.volume import orient

NIFTI = (".nii.gz", ".nii")

_WORDS = {
    "vertebrae": "vertebra",
    "autochthon": "deep back muscle",
    "clavicula": "clavicle",
    "heart atrium": "atrium",
    "heart myocardium": "myocardium",
    "iliac vena": "iliac vein",
    "gall bladder": "gallbladder",
    "postcava": "inferior vena cava",
    "tumor": "tumour",
    "tumors": "tumours",
    "oedema": "edema",
    "non enhancing": "non-enhancing",
}
"""Words that data sets use -> those that all our questions use, so that one thing has one name across sources."""

_SIDE_OF_ORGAN = {"liver": "right", "hepatic vessels": "right", "spleen": "left"}


class FileSource:
    """A source whose k-th study is made by ``_study(k)``; a study that cannot be read ends no iteration.

    Subclasses have ``name``, ``license``, ``modality``, ``path`` and, when the terms let scans be passed on with a
    data set made from them, ``redistributable = True``.
    """

    redistributable = False

    def __len__(self) -> int:
        raise NotImplementedError

    def _study(self, k: int) -> Study:
        raise NotImplementedError

    def __getitem__(self, k: int) -> Study:
        if not 0 <= k < len(self):
            raise IndexError(k)
        return self._study(k)

    def __iter__(self) -> Iterator[Study]:
        return map(self.__getitem__, range(len(self)))  # unlike a generator, goes on after an exception


def bad(subject: object, expected: str, found: str, do: str) -> DatasetError:
    """A data set that is not in the expected form."""
    return DatasetError(explain(subject, expected=expected, found=found, do=do))


def existing_folder(path: str | Path, what: str) -> Path:
    """The folder of a data set.

    Raises:
        DatasetError: There is none.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise bad(path, f"the folder of {what}", "a file" if folder.exists() else "nothing", "check the path")
    return folder


def inside(root: Path, written: str, where: object) -> Path:
    """A path that a file of the data set names, below its folder.

    Args:
        root: Folder of the data set.
        written: Relative path with slashes, as in the file; a leading ``./`` is allowed.
        where: The file that names it, for the message.

    Raises:
        DatasetError: The path is absolute or leads out of the folder. (Links that lie in the folder are followed: who
            made them meant it.)
    """
    relative = PurePosixPath(written)
    strange = "\\" in written or "\0" in written or re.match(r"[A-Za-z]:", written)
    if not relative.parts or relative.is_absolute() or ".." in relative.parts or strange:
        raise bad(where, "paths below its own folder", repr(written), "correct or remove that entry")
    return root / relative


def read_object(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        DatasetError: Missing, no JSON, or no object.
    """
    try:
        value = json.loads(path.read_bytes().decode("utf-8-sig"))
    except FileNotFoundError:
        raise bad(path, "this file of the data set", "nothing of that name", "check the path") from None
    except (OSError, ValueError, RecursionError) as error:
        raise bad(path, "a JSON object", str(error)[:160], "download it again") from error
    if not isinstance(value, dict):
        raise bad(path, "a JSON object", f"a {type(value).__name__}", "check that it is the right file")
    return value


def value_names(table: object, where: object) -> dict[int, str | None]:
    """Label value -> name, of ``{"1": "liver"}`` or the other way round, ``{"liver": 1}``; 0 (background) is left out.

    Raises:
        DatasetError: Not such a table, or two names for one value.
    """
    names: dict[int, str | None] = {}
    try:
        for key, value in table.items():
            turned = isinstance(value, int) and not isinstance(value, bool)
            number, name = (value, key) if turned else (int(key), value)
            if (
                number in names
                or number < 0
                or not (name is None or (isinstance(name, str) and name.strip()))
            ):
                raise ValueError(f"{key!r}: {value!r}")
            names[number] = name
    except (AttributeError, TypeError, ValueError) as error:
        raise bad(
            where, 'a table of label names like {"1": "liver"}', str(error)[:120], "correct it"
        ) from error
    names.pop(0, None)
    return names


def listed(chosen: str | Sequence[Any] | int | None) -> tuple[str, ...] | None:
    """An option that names several things: ``"liver+spleen"`` or a list; None chooses all."""
    if chosen is None:
        return None
    return (
        tuple(chosen.split("+"))
        if isinstance(chosen, str)
        else tuple(map(str, chosen if isinstance(chosen, Sequence) else [chosen]))
    )


def structure_name(name: str) -> str:
    """A name as one says it (see :func:`readable_name`), in the words that all sources share."""
    words = f" {readable_name(name)} "
    for old, new in _WORDS.items():
        words = words.replace(f" {old} ", f" {new} ")
    return words.strip()


def case_name(path: str | Path) -> str:
    """File name without folders and without ``.nii``, ``.nii.gz`` or another suffix."""
    name = PurePosixPath(path).name
    return next((name[: -len(end)] for end in NIFTI if name.endswith(end)), PurePosixPath(name).stem)


# --- pictures ---------------------------------------------------------------------------------------------------------


def picture_shape(path: Path) -> tuple[int, int]:
    """(Y, X) of a picture, from its header.

    Raises:
        ScanError: It is missing or no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture.size[::-1]
    except Exception as error:  # decoders of damaged files raise many kinds
        raise _no_picture(path, error) from error


def read_mask(path: Path) -> np.ndarray:
    """(Y, X) booleans of a mask picture: every value but 0 (0/1 and 0/255 alike) is inside.

    Raises:
        ScanError: It is missing or cannot be decoded.
    """
    try:
        with Image.open(path) as picture:
            if picture.mode in ("RGB", "RGBA", "LA", "PA", "CMYK"):  # transparency says nothing
                return np.asarray(picture.convert("RGB")).any(axis=2)
            return np.asarray(picture) != 0
    except Exception as error:
        raise _no_picture(path, error) from error


def _no_picture(path: Path, error: Exception) -> ScanError:
    gone = isinstance(error, FileNotFoundError)
    found = (
        "nothing of that name" if gone else f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    )
    return ScanError(explain(path, expected="a picture", found=found, do="download or export it again"))


# --- volumes ----------------------------------------------------------------------------------------------------------


def grid_of(path: Path) -> tuple[Volume, bool]:
    """The grid of a NIfTI scan from its header alone.

    Returns:
        A volume of the scan's shape (of a 4D file: of one frame) and affine in the house arrangement, whose voxels
        take no memory and are all 0; and whether the header names an orientation at all.

    Raises:
        ScanError: The file is missing, no NIfTI file, not 3D or 4D, or has no usable affine.
    """
    import nibabel as nib

    try:
        image = nib.load(path)
        shape, affine, header = image.shape, image.affine, image.header
        known = header["sform_code"] > 0 or header["qform_code"] > 0
    except Exception as error:  # parsers of damaged files raise many kinds
        gone = isinstance(error, FileNotFoundError)
        found = (
            "nothing of that name"
            if gone
            else f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
        )
        raise ScanError(
            explain(path, expected="a NIfTI file", found=found, do="download it again")
        ) from error
    if len(shape) not in (3, 4) or not all(shape):
        raise ScanError(explain(path, expected="a 3D or 4D scan", found=f"shape {shape}", do="convert it"))
    return orient(np.broadcast_to(np.uint8(0), shape[:3]), affine, str(path)), bool(known)


def space_of(grid: Volume, known: bool) -> dict[str, Any]:
    """Spacing and directions of a study on this grid; directions only when the header really named them."""
    return {"spacing": tuple(float(s) for s in grid.spacing), "directions": "LPS" if known else ""}


def read_volume(path: Path, frame: int | None = None, flip: str = "") -> Volume:
    """A NIfTI volume, mirrored when asked (see :func:`mirrored`).

    That a header names no orientation is not warned of here: studies made from it have no directions.

    Raises:
        ScanError: See :func:`unireason_lib.imaging.load_volume`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*names no orientation", category=UserWarning)
        return mirrored(load_volume(path, frame=frame), flip)


def mirrored(volume: Volume, flip: str) -> Volume:
    """The same scan with a header that was wrong along some axes put right.

    Args:
        volume: As its header has it.
        flip: World axes, of ``x``, ``y``, ``z``, that run the other way in truth. ``"xy"`` is the usual mistake: the
            affine is written for L-P-S coordinates where NIfTI means R-A-S.

    Returns:
        The volume in the house arrangement by the corrected affine; its array is a view.
    """
    if not flip:
        return volume
    signs = np.diag([-1.0 if axis in flip else 1.0 for axis in "xyz"] + [1.0])
    return orient(volume.array.transpose(2, 1, 0), signs @ volume.affine, volume.source, volume.has_affine)


def study_of_labels(
    scan: Path,
    labels: Path,
    names: Mapping[int, str | None],
    *,
    hosts: Mapping[int, int] | None = None,
    frame: int | None = None,
    flip: str = "",
    **about: Any,
) -> Study:
    """A 3D study from a NIfTI scan and its label map: the labels are read and measured, of the scan only the header.

    Args:
        scan, labels: The files. They must lie on one grid.
        names: Value -> readable name; None leaves a value out on purpose.
        hosts: Value of a lesion -> value of the organ that it is part of.
        frame: Which volume of a 4D scan.
        flip: See :func:`mirrored`; the same for both.
        **about: Other fields of the study.

    Raises:
        ScanError: A file is missing or unreadable.
        LabelError: The two lie on different grids, or a value has no name.
    """
    grid, known = grid_of(scan)
    grid, volume = mirrored(grid, flip), read_volume(labels, flip=flip)
    check_same_grid(grid, volume)
    study = Study.from_labels(
        volume,
        names,
        scan=partial(read_volume, scan, frame, flip),
        inside=hosts,
        attributes=hosted(names, hosts or {}),
        labels_source=partial(read_volume, labels, None, flip),
        **space_of(grid, known),
        **about,
    )
    return settle_sides(count_lesions(study, volume.array))


# --- doubts -----------------------------------------------------------------------------------------------------------


def settle_sides(study: Study) -> Study:
    """Withdraw the directions of a study whose liver lies on the left or whose spleen lies on the right.

    With both, the spleen must lie to the left of the liver; one alone must not lie beyond the middle of the grid by
    more than a tenth of its width. (A person whose organs really are mirrored loses these questions, too.)

    Returns:
        The study, or one without directions and with a ``"warning"`` in its details.
    """
    if not study.directions.startswith("L"):
        return study
    found = {s.name: s.centroid[0] for s in study.structures if s.name in _SIDE_OF_ORGAN}
    middle, slack = study.shape[-1] / 2, study.shape[-1] / 10
    if "liver" in found and "spleen" in found:
        wrong = ["liver", "spleen"] if found["spleen"] < found["liver"] else []
    else:
        signs = {
            name: (x - middle) * (1 if _SIDE_OF_ORGAN[name] == "left" else -1) for name, x in found.items()
        }
        wrong = [name for name, left in signs.items() if left < -slack]
    if not wrong:
        return study
    warning = f"by the header the {' and the '.join(wrong)} would lie on the wrong side: left and right are not used"
    return replace(study, directions="", details={**study.details, "warning": warning})


def count_lesions(study: Study, labels: np.ndarray) -> Study:
    """Write into every lesion of how many connected parts it consists.

    Args:
        study: Any study.
        labels: Its label map.

    Returns:
        The study, with ``"components"`` among the attributes of its lesions.
    """

    def counted(structure: Structure) -> Structure:
        numbers = structure.box.as_tuple()
        half = len(numbers) // 2
        cut = tuple(slice(a, b) for a, b in zip(numbers[:half], numbers[half:], strict=True))[::-1]
        parts = label_boxes(np.isin(labels[cut], structure.values), components=True)
        return replace(structure, attributes={**structure.attributes, "components": len(parts[1])})

    lesions = study.lesions
    if not lesions:
        return study
    return replace(study, structures=tuple(counted(s) if s.kind == "lesion" else s for s in study.structures))


def hosted(names: Mapping[int, str | None], hosts: Mapping[int, int]) -> dict[int, dict[str, Any]]:
    """Attributes of lesions that lie in a named organ: value of the lesion -> ``{"host": name of the organ}``."""
    lesions = {value for value, name in names.items() if name and kind_of(name) == "lesion"}
    return {
        part: {"host": names[organ]} for part, organ in hosts.items() if part in lesions and names.get(organ)
    }
