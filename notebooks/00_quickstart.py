# %% [markdown]
# # 00 · Quickstart: ask about an image and about a volume
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/00_quickstart.ipynb)
#
# After this notebook you can
# - ask a grounded model about an image or a volume, and check its boxes and its answer against the truth;
# - box a region yourself, and let the model continue from it;
# - measure how often the model is right, and how often it would be right without any image.
#
# **Time** half a minute on 2 CPU cores, less on a GPU. **Needs** no other notebook; a tiny fine-tuned Qwen2.5-VL ships in
# `data/tiny-sft`. **Synthetic**: all scans are CT-like torso phantoms, not used in training. *Not for clinical use.*
#
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740), [Qwen2.5-VL](https://arxiv.org/abs/2502.13923); another model that crops while it
# reasons: [DeepEyes](https://arxiv.org/abs/2505.14362); the interval: [Wilson 1927](https://doi.org/10.1080/01621459.1927.10502953).

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
import json
import shlex
from contextlib import chdir

import nibabel as nib
import numpy as np

from unireason_lib import display
from unireason_lib.boxes import parse_boxes
from unireason_lib.cli import app
from unireason_lib.config import load_profile
from unireason_lib.dataset import PhantomConfig, phantom
from unireason_lib.dataset.view import View
from unireason_lib.evaluation import ask_items, open_benchmark, wilson
from unireason_lib.evaluation.controls import shown_images
from unireason_lib.grounding import GroundedGenerator, Settings, load_profile_model
from unireason_lib.notebooks import project_root, publish

profile, root = load_profile(PROFILE, OVERRIDES), project_root()
display.pipeline_figure()

# %% [markdown]
# An answer by itself does not show whether a model looked at the image. *Grounded* reasoning can be checked: the model writes a box while it reasons,
# the image tokens of the boxed region are put into its reply, and it continues from them. The model used here has been through the first steps in the
# figure, up to SFT; each of the following notebooks looks into one step.
#
# ## 1 · A model and two questions
#
# The *profile*, a set of settings chosen by `PROFILE` above, names the checkpoint: a folder or a hub id. The tiny model has the architecture of the
# paper's 7B model.

# %%
model, processor = load_profile_model(profile.model, root)
generator = GroundedGenerator(model, processor)
frame, shape = generator.frame, profile.dataset.shape
limits = {name: getattr(profile.generation, name) for name in ("max_new_tokens", "max_rounds")}
print(f"{profile.model.path}: {type(model).__name__}, {model.num_parameters() / 1e6:.1f} M parameters")


# %% [markdown]
# Both questions are about **held-out patients**. Each is the first test question of its kind, one about an image and one about a volume; they were
# chosen before any reply was generated, so the replies may be wrong.

# %%
def first_question(dimension, family, kind):
    """The first held-out question of its kind."""
    about = {"dimension": dimension, "families": (family,), "prior_studies": 0, "a_patient": 1}
    about |= {"config": {"shape": shape}, "seed": SEED, "frame": frame}
    return next(item for item in open_benchmark("phantom", limit=40, **about) if item.kind == kind)


item_2d = first_question("2d", "spatial localization", "host")
item_3d = first_question("3d", "lesion analysis", "texture")
for item in (item_2d, item_3d):
    print(item.dimension, item.patient, item.question, *map(". ".join, item.options.items()), sep="\n  ")

# %% [markdown]
# ## 2 · An image
#
# Decoding is greedy. The model writes a box into its reasoning. After `<|box_end|>` the generator stops, crops the region from the image and inserts
# the image tokens of the crop into the same reply; then the model continues.

# %%
requests = [item.request(item.load()) for item in (item_2d, item_3d)]
trace_2d, trace_3d = generator.generate(requests, batch_size=1, **limits)
display.show_trace(trace_2d.to_dict() | {"truth": item_2d.answer}, requests[0].images, frame=frame)


# %% [markdown]
# A phantom is synthetic, so the right answer and the true boxes are known exactly. A reply with the right answer can still contain a wrong sentence, or
# a box on another structure than its sentence names: compare what the reply says at each box with the structure that the box fits best, printed below.
# The overlap of two boxes is their intersection over union (IoU), from 0 to 1, with $|A|$ the number of pixels in a rectangle, or of voxels in a
# cuboid; here it is computed by hand and by the library:
#
# $$\mathrm{IoU}(A, B) = \frac{|A \cap B|}{|A \cup B|}$$

# %%
def iou(a, b):
    """Intersection over union of two half-open boxes, rectangles or cuboids."""
    a, b = (np.array(box.as_tuple(), float).reshape(2, -1) for box in (a, b))
    sides = np.minimum(a[1], b[1]) - np.maximum(a[0], b[0])
    overlap = np.clip(sides, 0, None).prod()
    return overlap / ((a[1] - a[0]).prod() + (b[1] - b[0]).prod() - overlap)


truth_2d = dict(item_2d.truth_boxes)
assert all(np.isclose(iou(b, true), b.iou(true)) for b in trace_2d.boxes for true in truth_2d.values())


# %%
def remarks(options, answer, trace, structures):
    """What is right and what is wrong in a reply: its answer, and its boxes on the `structures`."""
    chosen, right = options.get(trace.choice, "none"), trace.choice == answer
    lines = [f"Answer: {chosen} ({'right' if right else 'wrong'})", f"Truth:  {options[answer]}"]
    overlaps = [{name: iou(box, true) for name, true in structures.items()} for box in trace.boxes]
    for number, one in enumerate(overlaps, 1):
        best = max(one, key=one.get)
        lines.append(
            f"Box {number}: IoU {one[best]:.2f}" + f" with the {best}, the highest" * bool(one[best])
        )
    missed = not any(max(one.values()) for one in overlaps)
    return "\n".join(lines + ["Right, although no crop showed it."] * (right and missed))


print(remarks(item_2d.options, item_2d.answer, trace_2d, truth_2d))
boxes = {f"truth: {name}": box for name, box in truth_2d.items()}
boxes |= {f"box {number} of the reply": box for number, box in enumerate(trace_2d.boxes, 1)}
display.show_images([frame.aligned(requests[0].images[0])], [boxes], columns=2)

# %% [markdown]
# Where boxes coincide, only the one drawn last is visible. If a sentence says that its box shows an organ, but the box fits the lesion in it better,
# the sentence is wrong even where the answer is right: a reward for answers alone (notebook 05) does not notice that.
#
# ## 3 · A volume
#
# The checkpoint and the call are the same. A volume is a list of axial slices, ordered from the feet to the head, with the patient's right on the
# left of the image (letters R, L; A is front, P is back). A box has six numbers, and fetches one crop from every slice that it spans.
#
# > **Predict first.** The model reads tokens, not pixels. Does the lesion fill one token of a slice? How many tokens does its crop have?

# %%
study = phantom(int(item_3d.patient.removeprefix("phantom-")), config=PhantomConfig(shape=tuple(shape)))
view = View(study, size=tuple(shape), frame=frame)
spine = view.box(study.find("spine"))
display.show_trace(trace_3d.to_dict() | {"truth": item_3d.answer}, requests[1].images, frame=frame)

# %%
(lesion_name, lesion), *_ = item_3d.truth_boxes
print(remarks(item_3d.options, item_3d.answer, trace_3d, {lesion_name: lesion}))
boxes = {f"truth: {lesion_name}": lesion}
boxes |= {f"box {number} of the reply": box for number, box in enumerate(trace_3d.boxes, 1)}
display.show_slices([frame.aligned(image) for image in requests[1].images], boxes, letters="RLAP")

# %% [markdown]
# The processor resizes an image to $H' \times W'$ pixels, both multiples of $f$, the side of the square that becomes one token; small images are
# enlarged. An image has $H' W' / f^2$ tokens; the fraction of them that falls on the lesion is the lesion's fraction of the area:

# %%
slice_size, crop_size = frame.size(*view.image_size), frame.size(lesion.height, lesion.width)
of_slice, of_crop = (np.prod(size) // frame.factor**2 for size in (slice_size, crop_size))
assert of_crop == frame.tokens(lesion.height, lesion.width)
on_lesion = of_slice * lesion.width * lesion.height / np.prod(slice_size)
print(f"slice: {of_slice} tokens, {on_lesion:.2f} of them on the lesion;", end=" ")
print(f"its crop: {of_crop} tokens, {of_crop / on_lesion:.0f} times as many")

# %% [markdown]
# A crop gives the lesion many times the tokens that it has in the slice; notebook 06 measures whether this helps.
#
# ## 4 · Your own region
#
# Set the box and press *Ask with this box*: the reply then begins with your box, its crops are inserted, and the model continues freely. `viewer.ask`
# does the same from Python, for pages on which widgets do not run.
#
# > **Predict first.** We try three boxes: the model's own, the true box of the lesion, one on the spine. For which of them would a right answer be
# > more than chance?

# %%
viewer = display.SliceViewer(study.scan, window="abdomen", request=requests[1], generator=generator, **limits)
regions = {"box of the model": None, "box on the lesion": lesion, "box on the spine": spine}
for box in regions.values():
    viewer.ask(box)
viewer.box = lesion
viewer.slider.value = int(lesion.z1 + lesion.z2) // 2
viewer

# %%
print("truth:", item_3d.options[item_3d.answer])
for name, (_, trace) in zip(regions, viewer.traces, strict=True):
    verdict = "right" if trace.choice == item_3d.answer else "wrong"
    print(f"{name:<20}{trace.answer or 'no answer':<28}{verdict}")
answers = {trace.choice for _, trace in viewer.traces}
print("Here the answer", "depends on the region." if len(answers) > 1 else "is the same for all regions.")

# %% [markdown]
# Only the crops of a box on the lesion show its texture, so only there is a right answer more than chance; with a box elsewhere (IoU 0) it is luck.
# Where the model's own box nearly coincides with the true one, the first two replies are one test, not two. You may see the texture in the slices;
# the model gets fewer tokens there, and without crops it answers such questions hardly better than chance (notebooks 03 and 06).
#
# ## 5 · How often is it right?
#
# We ask one question about each of several held-out patients, half of them about images, and then the same questions with every image **blanked**,
# that is, replaced by grey. If $k$ of $n$ answers are right, $\hat p = k/n$ estimates the accuracy; Wilson's 95 % interval contains the accuracies
# compatible with it ($z = 1.96$):
#
# $$\frac{1}{1 + z^2/n} \left( \hat p + \frac{z^2}{2n} \pm z \sqrt{\frac{\hat p (1 - \hat p)}{n} + \frac{z^2}{4n^2}} \right)$$
#
# > **Predict first.** All questions have four options. How many answers are right when the model sees only grey images?

# %%
count = 8 * profile.notebook.questions
about = {"limit": count, "frame": frame, "seed": SEED, "config": {"shape": shape}, "a_patient": 1}
benchmark = open_benchmark("phantom", split="test", **about)
how = {"settings": Settings(**limits), "batch_size": min(profile.evaluation.batch_size, count // 2)}
lines = {
    control: list(ask_items(generator, benchmark.items, shown_images(benchmark, control), **how))
    for control in ("none", "blank")
}


# %%
def wilson_by_hand(k, n):
    """Wilson's 95 % interval of a proportion."""
    p, z = k / n, 1.96
    half = z * (p * (1 - p) / n + z**2 / (4 * n**2)) ** 0.5
    return tuple((p + z**2 / (2 * n) + sign * half) / (1 + z**2 / n) for sign in (-1, 1))


accuracy = {}
for control, name in {"none": "with images", "blank": "with blank images"}.items():
    for dimension in ("2d", "3d"):
        right = [line["correct"] for line in lines[control] if line["dimension"] == dimension]
        k, n = sum(right), len(right)
        assert np.allclose(wilson_by_hand(k, n), wilson(k, n), atol=1e-4)
        accuracy.setdefault(name, {})[dimension.upper()] = tuple(100 * x for x in (k / n, *wilson(k, n)))
display.plot_intervals(accuracy, f"right of {count // 2}, % (95 % interval)", reference=("chance", 25))

# %%
for dimension in ("2D", "3D"):
    (value, low, high), blank = (accuracy[name][dimension] for name in accuracy)
    word = "above" if low > 25 else "below" if high < 25 else "not distinguishable from"
    note = f"{word} chance, 25 %; with blank images {blank[0]:.0f} ({blank[1]:.0f} to {blank[2]:.0f}) %"
    publish(f"quickstart: right answers {dimension}", value, "%", interval=(low, high), note=note)

# %% [markdown]
# On grey images one right answer in four is expected: an interval wholly above 25 % would mean that the wording gives answers away. The benchmark
# leaves out most questions that knowledge of anatomy alone would answer (notebook 01 shows how). With images, an interval wholly above both 25 % and
# the interval for grey images shows that looking helps. Notebook 06 asks more questions and compares runs question by question, which is more precise.
#
# ## 6 · From the command line
#
# We save the volume as a NIfTI file and run the command that asks about it here, inside the notebook. In its output, `boxes_voxel` has the
# boxes in voxels of the file, `boxes_mm` in the scanner's coordinates (notebook 02). The command `trace` makes a web page.

# %%
(out := root / "runs" / "quickstart").mkdir(parents=True, exist_ok=True)
nib.save(nib.Nifti1Image(study.scan.array.transpose(2, 1, 0), study.scan.affine), out / "phantom.nii.gz")
with chdir(root):
    words = {"--model": profile.model.path, "--volume": "runs/quickstart/phantom.nii.gz"}
    words |= {"--size": ",".join(map(str, shape)), "--window": "{:g},{:g}".format(*study.window)}
    words["--question"] = item_3d.question
    words |= {f"--option-{letter.lower()}": text for letter, text in item_3d.options.items()}
    words |= {f"--{name.replace('_', '-')}": str(value) for name, value in limits.items()}
    words |= {"--device": str(model.device), "--dtype": str(model.dtype).removeprefix("torch.")}
    words["--out"] = "runs/quickstart/reply.json"
    print("python -m unireason_lib infer 3d", *(f"{k} {shlex.quote(v)}" for k, v in words.items()), "\n")
    app(["infer", "3d", *(f"{k}={v}" for k, v in words.items())], standalone_mode=False)

# %% [markdown]
# ## Check yourself
#
# The command line gives the same reply as the notebook, and a reply in the viewer begins with the user's box.

# %%
assert json.loads((out / "reply.json").read_text(encoding="utf-8"))["text"] == trace_3d.text
assert all(box in (None, parse_boxes(trace.text)[0]) for box, trace in viewer.traces)
assert sum(trace_3d.own_mask) <= limits["max_new_tokens"]
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. If 40 of 100 answers are right, which accuracies does Wilson's interval contain? How many questions make it 6 points wide?
# 2. Ask a texture question (found as in `first_question`) about each of 20 patients, then ask again but let boxes fetch nothing (`max_rounds=0`). How
#    many answers change, and how many are right with crops and without?
# 3. Mirror the images of 20 questions of the family *spatial localization* from left to right (`ImageOps.mirror`) and ask again. In how many replies is
#    the first box mirrored, too? What would a model do that knows only where organs usually lie?
#
# Solutions: [`solutions/00_quickstart.py`](solutions/00_quickstart.py). **Next**: [01](01_dataset_construction.ipynb), how questions and replies are
# made, or skip ahead to [03](03_grounded_interface.ipynb), how a box fetches tokens.
