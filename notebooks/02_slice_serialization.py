# %% [markdown]
# # 02 · Slice serialization: from a scan file to pictures that a model can read
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/02_slice_serialization.ipynb)
#
# After this notebook you can
# - read a scan in any orientation and say, from the array alone, where the patient's left is;
# - choose a window and a size, and resample as PyTorch does;
# - carry a box from voxels to serialized pixels to millimetres and back without losing anything.
#
# **Where we stand.** Notebook 01 builds questions from labelled scans. Here the scans themselves become slices.
#
# **Time** half a minute on 2 CPU cores, no GPU needed. **Needs** nothing from earlier notebooks. The brain MRI is real (the MNI152
# template, an average of 152 people); the torso is a made phantom. *Nothing here is for clinical use.*

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0

# %% tags=["setup"]
# Set-up. On Colab: fetch and install the project; elsewhere: only check the installed versions.
import os
import subprocess
import sys

if "google.colab" in sys.modules and not os.path.exists("../unireason_lib"):
    address = "https://github.com/unireason-lab/unireason-lab"
    clone = ["git", "clone", "--quiet", "--depth=1", "--branch=v0.1.0"]
    subprocess.run([*clone, address, "unireason-lab"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", "./unireason-lab"], check=True)
    os.chdir("unireason-lab/notebooks")

from unireason_lib.notebooks import check_versions

print(check_versions())

# %%
from unireason_lib.config import load_profile
from unireason_lib.display import pipeline_figure
from unireason_lib.notebooks import publish

profile = load_profile(PROFILE, OVERRIDES)
pipeline_figure("slice serialization")

# %% [markdown]
# ## 1 · Which way is left?
#
# A NIfTI file stores its axes in any order and direction; the affine says which. We take the brain and store it in three
# ways, as three scanners would. The same indices then show three different things:

# %%
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from unireason_lib.dataset import brain_study

brain = brain_study()
folder = Path(tempfile.mkdtemp())
original = nib.Nifti1Image(brain.scan.array.transpose(2, 1, 0), brain.scan.affine)
for codes in ("RAS", "ALI", "PSR"):
    change = nib.orientations.ornt_transform(
        nib.io_orientation(original.affine), nib.orientations.axcodes2ornt(tuple(codes))
    )
    nib.save(original.as_reoriented(change), folder / f"{codes}.nii.gz")

# %%
from unireason_lib.display import show_images


def grey(plane):
    """A float plane as 8-bit grey."""
    return np.clip(plane / brain.scan.array.max() * 255, 0, 255).astype(np.uint8)


raw = {codes: np.asarray(nib.load(folder / f"{codes}.nii.gz").dataobj) for codes in ("RAS", "ALI", "PSR")}
show_images(
    [grey(array[:, :, array.shape[2] // 2]) for array in raw.values()],
    titles=[f"array[:, :, middle] of a file in {codes}" for codes in raw],
)

# %% [markdown]
# `load_volume` turns every file into one arrangement: arrays are `(z, y, x)` with x growing to the patient's **L**eft, y to
# the back (**P**osterior), z to the head (**S**uperior). Nothing is interpolated, axes are only swapped and flipped.

# %%
from unireason_lib.imaging import load_volume

volumes = {codes: load_volume(folder / f"{codes}.nii.gz") for codes in raw}
assert all(np.array_equal(volume.array, brain.scan.array) for volume in volumes.values())
assert all(nib.aff2axcodes(volume.affine) == ("L", "P", "S") for volume in volumes.values())
show_images(
    [grey(volume.array[90]) for volume in volumes.values()],
    titles=[f"slice 90, read from {codes}" for codes in volumes],
)

# %% [markdown]
# What cannot be read is refused with a message that names the file, what was expected, what was found, and what to do.

# %%
from unireason_lib.errors import ScanError

(folder / "torn.nii.gz").write_bytes((folder / "RAS.nii.gz").read_bytes()[:5000])
(folder / "picture.nii.gz").write_bytes(b"\x89PNG and more")
np.save(folder / "flat.npy", np.zeros((5, 5)))
for name in ("torn.nii.gz", "picture.nii.gz", "flat.npy"):
    try:
        load_volume(folder / name)
    except ScanError as error:
        print(str(error).replace(f"{folder}/", ""), end="\n\n")

# %% [markdown]
# ## 2 · Windows: which values become black and white
#
# The paper scales between the 1st and 99th percentile. Percentiles of the whole volume, exactly: a histogram of the
# integers gives them without sorting millions of voxels.

# %%
from unireason_lib.imaging import percentiles, window_range

array = brain.scan.array
low, high = percentiles(array, (1, 99))
assert np.allclose((low, high), np.percentile(array, (1, 99)))
print(f"values from {array.min()} to {array.max()}; 1st and 99th percentile: {low:g}, {high:g}")

# %% [markdown]
# CT values mean something (Hounsfield units: air -1000, water 0, bone 1000), so CT has named windows. The phantom shows
# what each of them reveals.

# %%
from unireason_lib.dataset import phantom
from unireason_lib.imaging import serialize

torso = phantom(SEED, shape=(8, 128, 128))
named = ("percentile", "lung", "abdomen", "bone")
shown = [serialize(torso.scan, size=(8, 128, 128), window=name).images()[4] for name in named]
ranges = [window_range(torso.scan.array, name) for name in named]
show_images(shown, titles=[f"{n}: {a:g} to {b:g} HU" for n, (a, b) in zip(named, ranges, strict=True)])


# %% [markdown]
# ## 3 · Resampling, once by hand
#
# A new grid over the same extent. With the half-pixel convention the **edges** of both grids coincide: new pixel `i` has its
# centre at `(i + 1/2) * old / new - 1/2` on the old grid. In one dimension, in plain code:

# %%
def resample_line(values, new):
    """Linear interpolation of a line onto ``new`` pixels over the same extent."""
    old = len(values)
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    first = np.floor(centres).astype(int)
    second = np.minimum(first + 1, old - 1)
    return values[first] + (centres - first) * (values[second] - values[first])


line = np.array([0.0, 10.0, 20.0, 0.0])
print(resample_line(line, 8), resample_line(line, 2), sep="\n")

# %% [markdown]
# `serialize` does this along all three axes, after windowing, and only on the slices that it needs. It must agree with
# PyTorch's `interpolate(mode="trilinear", align_corners=False)`:

# %%
import torch

size = tuple(profile.serialization.size)
stack = serialize(brain.scan, size=size, window="percentile")
windowed = torch.from_numpy(np.clip((array.astype(np.float64) - low) / (high - low), 0, 1))[None, None]
reference = torch.nn.functional.interpolate(windowed, size, mode="trilinear", align_corners=False)[
    0, 0
].numpy()
apart = np.abs(stack.values - reference).max()
assert apart < 1e-5
publish("serialize against PyTorch's trilinear: largest difference", float(apart), note="values in [0, 1]")

# %% [markdown]
# ## 4 · Boxes there and back
#
# Because edges map to edges, a box needs one factor an axis and no rounding. We take the smallest box of some structures, on
# the voxels of the scan, and draw it on the slices.

# %%
from unireason_lib.display import show_slices

names = ["left thalamus", "right thalamus", "brain stem"]
boxes = [brain.find(name).box for name in names]
show_slices(stack, {name: stack.from_voxel(box) for name, box in zip(names, boxes, strict=True)})

# %%
for name, box in zip(names, boxes, strict=True):
    serialized = stack.from_voxel(box)
    assert np.allclose(stack.to_voxel(serialized).as_tuple(), box.as_tuple())
    corners = stack.to_mm(serialized)
    assert np.allclose(stack.from_voxel(stack.geometry.from_mm(corners)).as_tuple(), serialized.as_tuple())
    print(f"{name}: voxels {box.as_tuple()}, mm from {corners[0].round(1)} to {corners[1].round(1)}")
left, right = (np.mean(stack.to_mm(stack.from_voxel(box)), axis=0) for box in boxes[:2])
assert left[0] < 0 < right[0]  # in MNI space, x grows to the patient's right

# %% [markdown]
# ## 5 · From slices to tokens
#
# The processor has the last word: it resizes each slice to multiples of its patch and merge size, and boxes are written in
# *those* pixels. What a volume costs, for the true Qwen2.5-VL processor and the shapes of this project:

# %%
from unireason_lib.imaging import QWEN_FRAME

for depth, side in ((8, 64), (16, 128), (32, 256), (32, 512)):
    height, width = QWEN_FRAME.size(side, side)
    tokens = depth * (QWEN_FRAME.tokens(side, side) + 2)
    print(
        f"{depth:>3} slices of {side} x {side}: shown at {width} x {height}, {tokens:>6} tokens with delimiters"
    )

# %% [markdown]
# ## 6 · Are the slices in order?
#
# A common fault of collected data: shuffled or repeated slices. Neighbours in a body look alike, so the
# correlation of each slice with the next shows it.

# %%
from unireason_lib.display import plot_lines
from unireason_lib.imaging import slice_order_report

body = array[20:160]
shuffled = body[np.random.default_rng(SEED).permutation(len(body))]
repeated = body.copy()
repeated[70] = repeated[69]
cases = {"in order": body, "shuffled": shuffled, "slice 70 repeated": repeated}
reports = {name: slice_order_report(case) for name, case in cases.items()}
for name, report in reports.items():
    print(f"{name:<20}looks shuffled: {report.looks_shuffled!s:<7}duplicates: {report.duplicates}")
plot_lines(
    {name: list(enumerate(reports[name].correlations)) for name in ("in order", "shuffled")},
    xlabel="slice",
    ylabel="correlation with the next slice",
)

# %% [markdown]
# ## Check yourself

# %%
assert not reports["in order"].messages
assert reports["shuffled"].looks_shuffled
assert reports["slice 70 repeated"].duplicates == (70,)
assert stack.pixels.dtype == np.uint8 and stack.pixels.shape == size
assert QWEN_FRAME.tokens(256, 256) == 81
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. Serialize the brain with `align_corners=True` in mind: by how many voxels would a box at the border move?
# 2. Which window hides the phantom's lesions completely?
# 3. A coronal series has y as its slice axis. What does `load_volume` do with it, and what does that cost in resolution?
#
# <details><summary>Solutions</summary>
#
# 1. With `align_corners=True` the centres of the first and last voxels coincide instead of the edges: the border moves by half
#    an old voxel minus half a new one, and the factor differs from `new / old`.
# 2. Try them all with `serialize(torso.scan, window=name)`; a window that ends below the tissue's values makes it all white.
# 3. It becomes L-P-S like everything else; the coarse axis is then y, so every axial slice is coarse along its rows.
#
# </details>
