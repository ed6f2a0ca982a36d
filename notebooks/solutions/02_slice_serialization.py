"""Solutions of notebook 02. Run it, ``python notebooks/solutions/02_slice_serialization.py``, or
import its functions."""

import tempfile
import warnings
from pathlib import Path

import nibabel as nib
import numpy as np

from unireason_lib.dataset import phantom
from unireason_lib.dataset.sources import open_source
from unireason_lib.dataset.sources.phantom import INSIDE, LABELS
from unireason_lib.imaging import Volume, serialize
from unireason_lib.io import write_json


def border_shift(old: int, new: int) -> float:
    """Exercise 1: by how many voxels the first edge of the new grid lies outside the scan when the
    centres of the outermost pixels coincide. That edge has the new index -1/2, which is the old
    index -1/2 * (old - 1) / (new - 1); the edge of the scan has the old index -1/2."""
    return 0.5 * (old - 1) / (new - 1) - 0.5


def contrast_left(first: int, thick: int = 3, old: int = 192, new: int = 16) -> tuple[float, float]:
    """Exercise 2: the highest value that a lesion on slices ``first`` to ``first + thick - 1`` has on
    any of ``new`` slices, by interpolation and by the mean of blocks; 1 is its full contrast.
    Interpolation shows it in full, at half its contrast, or not at all, depending on where it starts;
    the mean always shows it, but pale."""
    lesion = np.zeros((old, 4, 4), np.float32)
    lesion[first : first + thick] = 1
    volume = Volume(lesion, np.diag([-1.0, -1.0, 1.0, 1.0]))
    interpolated = serialize(volume, (new, 4, 4), window=(0, 1)).values
    averaged = lesion.reshape(new, old // new, 4, 4).mean(axis=1)
    return float(interpolated.max()), float(averaged.max())


def repaired(affine: np.ndarray) -> np.ndarray:
    """Exercise 3: the affine of patient b with the sign along x corrected. The sign of the whole
    first row changes, so that x = 0 stays where it is."""
    return np.diag([-1.0, 1.0, 1.0, 1.0]) @ affine


def warnings_of(affine: np.ndarray, folder: Path) -> list[str]:
    """The library's warnings about phantom 901 (patient b) when it is stored with an affine."""
    study = phantom(901, shape=(16, 64, 64))
    write_json(folder / "names.json", {"names": LABELS, "inside": INSIDE, "modality": "CT"})
    for kind, array in (("images", study.scan.array), ("labels", study.labels)):
        (folder / kind).mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(array.T, affine), folder / kind / "b.nii")
    source = open_source("folder", folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        source.study(source.index()[0].key)
    return [str(warning.message) for warning in caught]


if __name__ == "__main__":
    print(f"1. The border moves by {border_shift(182, 16):.2f} voxels along z.")
    pairs = np.array([contrast_left(first) for first in range(189)])
    seen = (pairs > 0).mean(axis=0)
    print(f"2. Interpolated, it is seen from {seen[0]:.0%} of places, with", *np.unique(pairs[pairs[:, 0] > 0, 0].round(2)))
    print(f"   averaged, from {seen[1]:.0%}, with {pairs.min(0)[1]:.2f} to {pairs.max(0)[1]:.2f}.")
    folder = Path(tempfile.mkdtemp())
    wrong = repaired(phantom(901, shape=(16, 64, 64)).scan.affine)
    print("3. Before:", *warnings_of(wrong, folder))
    print("   After: ", warnings_of(repaired(wrong), folder) or "no warning")
