# %% [markdown]
# # 02 · Slice serialization: from a scan file to the images that a model reads
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/02_slice_serialization.ipynb)
#
# A mirrored patient, a wrong window or a skipped lesion raises no error: the model just learns from wrong images. After this notebook you can
# - read a scan in any orientation, tell from its affine where the patient's left is, and detect an affine that is wrong;
# - choose an intensity window, resample a volume to slices, and say what is lost on the way;
# - convert a box from voxels to serialized pixels, to the pixels of the model and to millimetres, and back.
#
# **Time** about a minute on 2 CPU cores; a GPU changes nothing. **Needs** no other notebook. **Real**: the brain MRI (MNI152
# template, an average of 152 people). **Synthetic**: the CT-like torso phantoms. *Not for clinical use.*
#
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740) (slices and window); [Qwen2-VL](https://arxiv.org/abs/2409.12191),
# [Qwen2.5-VL](https://arxiv.org/abs/2502.13923) (image sizes, tokens); [SynthSeg](https://arxiv.org/abs/2107.09559) (contrast of
# the phantoms); [coordinate systems and affines](https://nipy.org/nibabel/coordinate_systems.html) in the manual of nibabel.

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
# ## 1 · Directions: what the affine says and the array does not
# A NIfTI file stores an array and an affine, $(x, y, z)^\top = M\,(i, j, k)^\top + t$. It maps the index of a voxel's centre to coordinates in
# millimetres that increase towards the patient's **R**ight, front (**A**nterior) and head (**S**uperior); the opposite directions are **L**eft,
# **P**osterior and **I**nferior. Each column of $M$ is the step in millimetres when one index grows by 1, so the entry with the largest absolute
# value names the direction of that axis (for a tilted scan, the nearest direction; the tilt itself stays in the affine).

# %%
import tempfile
from pathlib import Path

import nibabel as nib
import numpy as np

from unireason_lib.dataset import brain_study


def axis_codes(affine):
    """The direction in which each index of an array grows, as letters like RAS."""
    largest = [(np.abs(column).argmax(), column) for column in affine[:3, :3].T]
    return "".join(("LR", "PA", "IS")[axis][int(column[axis] > 0)] for axis, column in largest)


brain, folder = brain_study(), Path(tempfile.mkdtemp())
image = nib.Nifti1Image(brain.scan.array.transpose(2, 1, 0), brain.scan.affine)
stored = {}
for codes in ("RAS", "LAS", "PSR"):  # one brain, stored as three scanners might
    wanted, now = nib.orientations.axcodes2ornt(codes), nib.io_orientation(image.affine)
    turned = image.as_reoriented(nib.orientations.ornt_transform(now, wanted))
    nib.save(turned, folder / f"{codes}.nii")
    stored[codes] = nib.load(folder / f"{codes}.nii")
    assert axis_codes(stored[codes].affine) == "".join(nib.aff2axcodes(stored[codes].affine)) == codes

# %% [markdown]
# **Predict first.** The figure shows `array[:, :, middle]` of each file. Cover the letters, which come from the affine: in
# which of the first two images is the patient's left at the top?

# %%
from unireason_lib.display import show_images
from unireason_lib.imaging import to_grey

OPPOSITE = dict(zip("RLAPSI", "LRPAIS", strict=True))


def edge_letters(codes):
    """Directions at the left, right, upper and lower edge of array[:, :, k], rows being index 0."""
    return OPPOSITE[codes[1]] + codes[1] + OPPOSITE[codes[0]] + codes[0]


arrays = {codes: np.asarray(file.dataobj) for codes, file in stored.items()}
similarity = np.corrcoef(arrays["RAS"].ravel(), arrays["LAS"].ravel())[0, 1]
print(f"correlation of the arrays stored as RAS and as LAS: {similarity:.3f}")
show_images(
    [to_grey(array[:, :, array.shape[2] // 2], "minmax") for array in arrays.values()],
    titles=[f"stored as {codes}" for codes in arrays],
    letters=[edge_letters(codes) for codes in arrays],
)

# %% [markdown]
# The first two images are mirror images of each other, and a brain is nearly symmetric: without the letters nobody could say which is which. Which
# side is left **cannot be told from the array alone; the affine says it**. In the third file the last index runs from left to right, so the same
# expression shows a *sagittal* slice (the patient from the side) in place of an *axial* one.
# ## 2 · One arrangement for every file
# The library keeps all scans as `(z, y, x)` with x increasing towards the patient's **L**eft, y to the back (**P**) and z to the head (**S**).
# Axes are permuted and flipped; nothing is interpolated. Flipping an axis of $n$ voxels turns $i$ into $n - 1 - i$, so its column $m$ of $M$
# changes sign and $t$ becomes $t + (n - 1)\,m$: every voxel keeps its place in millimetres, which still increase towards R, A and S, as in
# NIfTI. (In DICOM and ITK they increase towards L, P and S: whoever mixes up the two conventions rotates the patient by 180 degrees.)

# %%
from unireason_lib.imaging import load_volume


def to_lps(array, affine):
    """An array (i, j, k) as (z, y, x) that grow to S, P and L, and the affine of (x, y, z)."""
    codes = axis_codes(affine)
    order = [next(k for k, code in enumerate(codes) if code in pair) for pair in ("LR", "PA", "IS")]
    array, affine = array.transpose(order), affine[:, [*order, 3]].copy()
    for axis, letter in enumerate("LPS"):
        if axis_codes(affine)[axis] != letter:
            array = np.flip(array, axis)
            affine[:3, 3] += (array.shape[axis] - 1) * affine[:3, axis]
            affine[:3, axis] *= -1
    return array.transpose(2, 1, 0), affine


for codes, file in stored.items():
    volume, (by_hand, affine) = load_volume(folder / f"{codes}.nii"), to_lps(arrays[codes], file.affine)
    assert np.array_equal(by_hand, volume.array) and np.allclose(affine, volume.affine)
    assert np.array_equal(volume.array, brain.scan.array), "three files, one array"

# %% [markdown]
# ## 3 · An affine that is wrong
# A slice displayed as it lies in this array is in the radiological convention: the patient is seen from the feet, with the right on the left of
# the image. But software that drops the sign of an axis writes a file that opens without any error and shows the patient mirrored. We store two
# torso phantoms as NIfTI with label maps; the affine of **one** has the wrong sign along x.

# %%
import json

from unireason_lib.dataset import phantom
from unireason_lib.dataset.sources.phantom import INSIDE, LABELS

scans = folder / "scans"
for kind in ("images", "labels"):
    (scans / kind).mkdir(parents=True)
(scans / "names.json").write_text(json.dumps({"names": LABELS, "inside": INSIDE, "modality": "CT"}))
for letter, number, sign in (("a", 904, 1), ("b", 901, -1)):
    study = phantom(number, shape=(16, 128, 128))
    affine = np.diag([sign, 1, 1, 1]) @ study.scan.affine
    for kind, array in (("images", study.scan.array), ("labels", study.labels)):
        nib.save(nib.Nifti1Image(array.T, affine), scans / kind / f"{letter}.nii")

# %% [markdown]
# **Predict first.** The letters below are what each file claims. Which of the two patients is shown mirrored, and how do you
# know? (The liver, the largest organ of the abdomen, lies on the patient's right, the spleen on the left.)

# %%
from unireason_lib.imaging import serialize

opened = {letter: load_volume(scans / f"images/{letter}.nii") for letter in "ab"}
planes = {letter: serialize(v, (16, 128, 128), "abdomen").pixels[6:11:2] for letter, v in opened.items()}
titles = [f"patient {letter}, slice {z}" for letter in "ab" for z in (6, 8, 10)]
show_images([*planes["a"], *planes["b"]], None, titles, columns=3, letters=["RLAP"] * 6)

# %% [markdown]
# The library checks the positions of liver and spleen whenever it reads a labelled scan (a *study*, notebook 01) that has either of them:

# %%
import warnings

from unireason_lib.dataset.sources import open_source

source, studies = open_source("folder", scans), {}
for letter, entry in zip("ab", source.index(), strict=True):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        studies[letter] = source.study(entry.key)
    liver, spleen = (studies[letter].find(name).centroid[0] for name in ("liver", "spleen"))
    print(f"patient {letter}: liver at x = {liver:.0f}, spleen at {spleen:.0f}; x grows to the left")
    print("  ", *[one.message for one in caught] or ["no warning"])
assert (studies["a"].directions, studies["b"].directions) == ("LPS", "")

# %% [markdown]
# Patient b is mirrored. The study keeps its scan and loses its directions, so no question about left and right is asked. The check has limits: it
# needs a segmented liver or spleen, so a mirrored brain passes; a wrong sign along y or z passes, too; in the rare people whose organs really are
# mirrored (situs inversus) the warning is wrong, which costs questions but causes no wrong answer.
# ## 4 · Windows: which values become black and white
# A window $(a, b)$ maps a value $v$ to the grey level $g(v) = \min\big(1, \max\big(0, \frac{v - a}{b - a}\big)\big)$; radiologists state its level
# $(a + b)/2$ and width $b - a$. The paper takes the 1st and 99th percentile of each volume, which also suits MRI, whose intensities have no unit; but
# then the grey of a tissue depends on what else is in the volume. CT has a unit, the Hounsfield unit (HU: air -1000, water 0), and therefore named
# windows with fixed limits. The phantom below has a lesion in a kidney and one in a lung.
#
# **Predict first.** In which of these windows is the kidney lesion hardest to see? Is it the same one for the lung lesion?

# %%
torso = phantom(902, shape=(16, 128, 128))
names = ("percentile", "lung", "abdomen", "bone")
stacks = {name: serialize(torso.scan, torso.shape, name) for name in names}
low, high = stacks["abdomen"].range
by_hand = np.clip((torso.scan.array - low) / (high - low), 0, 1)
assert np.allclose(by_hand, stacks["abdomen"].values, atol=1e-6)
tiles, titles = [], []
for lesion in torso.lesions:
    host = torso.find(lesion.attributes["host"])
    inside, around = torso.mask(lesion), torso.mask(host) & ~torso.mask(lesion)
    for name, windowed in stacks.items():
        difference = windowed.pixels[inside].mean() - windowed.pixels[around].mean()
        tiles.append(windowed.pixels[int(lesion.centroid[2])])
        limits = "[{:.0f}, {:.0f}]".format(*windowed.range)
        titles.append(f"{name} {limits}, {host.name}\nlesion minus organ: {difference:+.0f}")
boxes = [[lesion.box] for lesion in torso.lesions for _ in names]
show_images(tiles, boxes, titles, letters=["RLAP"] * len(tiles))

# %% [markdown]
# The titles give the difference of the mean grey levels (out of 255). The kidney lesion is hardest to see in the lung window, where all soft tissue
# is nearly white; the bone window, so wide that soft tissues look alike, leaves little more of it. The lung lesion stands out in all four, least in
# the bone window. But its pattern, which these means do not measure, is clearest in the abdomen window: in the lung window the lesion is nearly white.
# The window with which an image is stored decides which questions it can answer.
# ## 5 · Resampling to slices
# The model reads a fixed number of slices of a fixed size. With the half-pixel convention the **edges** of the old and the new grid coincide: with
# $n'$ new pixels over $n$ old ones, the centre of pixel $i'$ lies at the old index $c = (i' + \frac12)\,\frac{n}{n'} - \frac12$, and its value is
# interpolated linearly between the two old pixels beside $c$.

# %%
import torch


def resample(values, new, axis):
    """Linear interpolation of an array to ``new`` pixels along an axis, over the same extent."""
    old = values.shape[axis]
    centres = np.clip((np.arange(new) + 0.5) * old / new - 0.5, 0, old - 1)
    first = centres.astype(int)
    second = np.minimum(first + 1, old - 1)
    weights = np.expand_dims(centres - first, [k for k in range(values.ndim) if k != axis])
    return (1 - weights) * values.take(first, axis) + weights * values.take(second, axis)


size = tuple(profile.serialization.size)
stack = serialize(brain.scan, size=size, window="percentile")
low, high = np.percentile(brain.scan.array, (1, 99))
by_hand = windowed = np.clip((brain.scan.array - low) / (high - low), 0, 1)
for axis, new in enumerate(size):
    by_hand = resample(by_hand, new, axis)
batch = torch.from_numpy(windowed)[None, None]
reference = torch.nn.functional.interpolate(batch, size, mode="trilinear", align_corners=False)[0, 0]
apart = float(np.abs(stack.values - reference.numpy()).max())
assert np.allclose(by_hand, stack.values, atol=1e-5) and apart < 1e-5
publish("serialize against PyTorch's trilinear: largest difference", apart, note="values in [0, 1]")

# %% [markdown]
# **Predict first.** Each new slice is interpolated from two scanned slices: how many of the scanned slices contribute at all? Resampling the
# identity matrix counts them. Also, the scan is longer along y than along x, but both get the same number of pixels: the model sees the brain
# squashed. Figures of a stack keep the patient's proportions, as the image on the right does.

# %%
depth, across = brain.scan.shape[0], stack.spacing[1] / stack.spacing[2]
used = np.count_nonzero(resample(np.eye(depth), size[0], axis=0).any(axis=0))
print(f"{used} of {depth} scanned slices contribute to the {size[0]} that are shown")
print("pixels: {1:.2f} mm high, {2:.2f} mm wide;".format(*stack.spacing), f"squashed by {1 - 1 / across:.0%}")
planes, titles = [stack.pixels[size[0] // 2]] * 2, ["as the model sees it", "in the patient's proportions"]
show_images(planes, titles=titles, letters=["RLAP"] * 2, aspects=[1, across])

# %% [markdown]
# Two for each new slice. All others are skipped, without any smoothing: a lesion that lies only in skipped slices leaves no trace (exercise 2).
# ## 6 · Boxes there and back
# Because edges coincide, an edge $e$ on $n$ voxels lies at $e' = e\,n'/n$ on $n'$ pixels: one factor per axis, no shift, no rounding. In
# millimetres it lies at $M\,(e - \tfrac12) + t$, half a voxel before the centre of voxel $e$.

# %%
from unireason_lib.display import show_slices

regions = {name: brain.find(name).box for name in ("left thalamus", "right thalamus", "brain stem")}
for name, box in regions.items():
    edges = np.reshape(box.as_tuple(), (2, 3))  # two corners, each (x, y, z)
    serialized = stack.from_voxel(box)
    assert np.allclose((edges * size[::-1] / brain.scan.shape[::-1]).ravel(), serialized.as_tuple())
    corners = (edges - 0.5) @ brain.scan.affine[:3, :3].T + brain.scan.affine[:3, 3]
    assert np.allclose(corners, stack.to_mm(serialized))
    assert np.allclose(stack.to_voxel(serialized).as_tuple(), box.as_tuple())
    print(f"{name}: x from {corners[0, 0]:.1f} to {corners[1, 0]:.1f} mm (the patient's right is positive)")
show_slices(stack, {name: stack.from_voxel(box) for name, box in regions.items()})

# %% [markdown]
# Slices run from the feet to the head; the last ones lie above the brain. The box on the left thalamus lies on the side of the letter L in every slice
# that it spans: affine, atlas and resampling agree.
# ## 7 · From slices to the model's pixels and tokens
# Qwen's processor resizes each slice to $H' \times W'$ pixels, both multiples of 28, the side of one token (2 x 2 patches of 14 pixels). A volume of
# $D$ slices costs $T = D\,(H'W'/28^2 + 2)$ tokens, where 2 counts the delimiters around a slice. Boxes are written in *these* pixels, as integers;
# notebook 01 measures what rounding costs.

# %%
from unireason_lib.imaging import QWEN_FRAME

for depth, side in ((8, 64), (16, 128), (32, 256), (32, 512)):
    resized = round(side / 28) * 28
    assert QWEN_FRAME.size(side, side) == (resized, resized)
    tokens = depth * (resized**2 // 28**2 + 2)
    print(f"{depth:>3} slices of {side} x {side}: resized to {resized} x {resized}, {tokens:>6} tokens")

# %% [markdown]
# The third row has the paper's size. Twice the side costs about four times the tokens; a crop shows one region in detail for far fewer (notebook 03).
# ## 8 · Are the slices in order?
# Neighbouring slices of a body look alike, so the correlation of each slice with the next reveals slices that were shuffled or repeated. It does
# not reveal missing slices, two neighbours that were swapped, or a reversed order. (`body` leaves out slices that are empty or nearly so.)

# %%
from unireason_lib.display import plot_lines
from unireason_lib.imaging import slice_order_report

body = brain.scan.array[20:150]
cases = {"in order": body, "shuffled": np.random.default_rng(SEED).permutation(body)}
cases["slice 70 repeated"] = np.concatenate([body[:70], body[69:]])
reports = {name: slice_order_report(case) for name, case in cases.items()}
for name, report in reports.items():
    print(f"{name}: {'; '.join(report.messages) or 'nothing to report'}")
curves = {name: list(enumerate(reports[name].correlations)) for name in ("in order", "shuffled")}
plot_lines(curves, xlabel="slice", ylabel="correlation with the next slice")

# %% [markdown]
# In order, the curve stays close to 1; after shuffling, neighbours are as unlike as any two slices of this brain.
# ## Check yourself

# %%
assert reports["shuffled"].looks_shuffled and reports["slice 70 repeated"].duplicates == (70,)
assert axis_codes(opened["a"].affine) == axis_codes(opened["b"].affine) == "LPS", "both claim the same"
assert stack.from_voxel(regions["left thalamus"]).x1 > stack.from_voxel(regions["right thalamus"]).x1
assert stack.pixels.dtype == np.uint8 and stack.pixels.shape == size
print("all checks passed")

# %% [markdown]
# ## Exercises
# 1. With `align_corners=True` the centres of the outermost pixels coincide. By how many voxels would a box at the border be off (182 slices to 16)?
# 2. Average blocks of slices instead of interpolating. A lesion spans 3 of the 192 slices of a volume that is resampled to 16. How much of its
#    contrast is left with each method, depending on where it lies?
# 3. Repair the affine of patient b, and show that the library no longer warns.
#
# Solutions: [`solutions/02_slice_serialization.py`](solutions/02_slice_serialization.py). **Next**: [03](03_grounded_interface.ipynb), how a model
# boxes a region of these slices and gets its tokens back.
