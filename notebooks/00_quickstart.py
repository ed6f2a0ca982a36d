# %% [markdown]
# # 00 · Quickstart: a model that points, looks again, and answers
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/00_quickstart.ipynb)
#
# After this notebook you can
# - ask a model about a picture and about a volume, and read its reply: where it pointed, what it got back, what it said;
# - say how often it is right, how often it would be without looking, and what it does on a scan unlike any it has seen;
# - run the same from the command line, and hand a trace to somebody as one HTML page.
#
# **Where we stand.** This is the whole pipeline seen from its end; each later notebook opens one of its steps.
#
# **Time** about half a minute on 2 CPU cores, no GPU needed. **Needs** nothing: the model ships in `data/tiny-sft`, the brain
# MRI comes with a Python package, and the phantoms are made on the spot.
#
# The model is tiny, but of the true architecture (`Qwen2_5_VLForConditionalGeneration`), and it was fine-tuned on torso
# **phantoms**: CT-like scans of patients that never lived. It writes everything below by itself, and all patients are new
# to it. What it has learnt is worth nothing outside this world. *Nothing here is for clinical use.*

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
from unireason_lib.notebooks import project_root, publish

profile = load_profile(PROFILE, OVERRIDES)
pipeline_figure()

# %% [markdown]
# ## 1 · A model and two questions
#
# `load_model` takes any checkpoint of the Qwen2.5-VL family, a folder or a hub id. Here the profile names it.

# %%
from unireason_lib.grounding import GroundedGenerator, load_profile_model

model, processor = load_profile_model(profile.model, project_root())
generator = GroundedGenerator(model, processor)
frame = generator.frame
millions = sum(p.numel() for p in model.parameters()) / 1e6
print(f"{profile.model.path}: {type(model).__name__}, {millions:.1f} M parameters")

# %% [markdown]
# The questions come from a benchmark of **held-out patients**: training counts phantoms from 0, the test from 1,000,000. We
# take the first of them who can be asked what we want to show, before any reply is seen. So what follows is not a choice of
# good replies, and may well contain a wrong one.

# %%
from unireason_lib.evaluation import open_benchmark

shape = list(profile.dataset.shape)


def first_question(dimension, family, kind):
    """The first held-out question of its kind."""
    about = {"dimension": dimension, "families": (family,), "prior_studies": 0, "a_patient": 1}
    asked = open_benchmark(
        "phantom", split="test", limit=40, frame=frame, seed=SEED, config={"shape": shape}, **about
    )
    return next(item for item in asked if item.kind == kind)


asked_2d = first_question("2d", "lesion analysis", "texture")
asked_3d = first_question("3d", "spatial localization", "host")
for item in (asked_2d, asked_3d):
    print(item.patient, item.dimension, item.question, *map(". ".join, item.options.items()), sep="\n  ")

# %% [markdown]
# ## 2 · A picture: point, look again, answer
#
# No script, no hint, greedy decoding. The model writes a box into its thought. At `<|box_end|>` the generator stops, cuts the
# region out of the picture, and puts its image tokens into the reply; the model reads them and goes on.

# %%
from unireason_lib.display import show_trace

limits = {name: getattr(profile.generation, name) for name in ("max_new_tokens", "max_rounds")}
pictures = {item.id: item.load() for item in (asked_2d, asked_3d)}
requests = [item.request(pictures[item.id]) for item in (asked_2d, asked_3d)]
trace_2d, trace_3d = generator.generate(requests, batch_size=1, **limits)
show_trace(trace_2d.to_dict() | {"truth": asked_2d.answer}, pictures[asked_2d.id], frame=frame)

# %% [markdown]
# The phantom was made, so the truth is known exactly: the answer, and the box.

# %%
from unireason_lib.display import show_images


def boxes_beside(item, trace):
    """True boxes and the first written one, by name."""
    boxes = {f"truth: {name}": box for name, box in item.truth_boxes}
    if trace.boxes:
        boxes["first box of the reply"] = trace.boxes[0]
    return boxes


def verdict(item, trace):
    """One line: what was answered, and what is true."""
    truth = f"{item.answer}. {item.options[item.answer]}"
    return f"{item.patient}: answered {trace.choice or 'nothing'}, truth {truth}"


print(verdict(asked_2d, trace_2d))
show_images([frame.aligned(pictures[asked_2d.id][0])], [boxes_beside(asked_2d, trace_2d)], columns=2)

# %% [markdown]
# Why looking again pays: the model sees tokens, not pixels. In the whole picture one token is a square of many pixels, and a
# texture of one or two pixels drowns in it. A small crop is enlarged before it becomes tokens, so the same lesion gets more
# of them.

# %%
lesion = asked_2d.truth_boxes[0][1]
height, width = frame.size(*pictures[asked_2d.id][0].size[::-1])
whole = frame.tokens(height, width)
in_picture = whole * lesion.area / (height * width)
in_crop = frame.tokens(lesion.height, lesion.width)
print(f"whole picture: {width} x {height} pixels in {whole} tokens, {in_picture:.1f} of them for the lesion")
print(f"its crop:      {lesion.width} x {lesion.height} pixels in {in_crop} tokens")

# %% [markdown]
# ## 3 · A volume: the same interface
#
# The same checkpoint, the same call. The volume is read as slices from foot to head, patient right on the left of each
# picture, as in radiology. A box has six numbers now, and fetches one crop from each slice that it spans.

# %%
show_trace(trace_3d.to_dict() | {"truth": asked_3d.answer}, pictures[asked_3d.id], frame=frame)

# %%
from unireason_lib.display import show_slices

print(verdict(asked_3d, trace_3d))
show_slices([frame.aligned(image) for image in pictures[asked_3d.id]], boxes_beside(asked_3d, trace_3d))

# %% [markdown]
# ## 4 · Who wrote what
#
# Prompt, the tokens that the model generated, and the injected ones. Only the generated ones carry a loss in training.

# %%
from unireason_lib.display import token_strip

token_strip(trace_2d, processor.tokenizer)

# %% [markdown]
# ## 5 · How good is it?
#
# An honest figure belongs beside every demonstration. The benchmark below asks held-out patients one question each, of all
# six families, half of them about images and half about volumes. What can be known without looking is taken out of the
# questions beforehand (notebook 01), and then we check that: the same questions again with **blanked images**.

# %%
from unireason_lib.evaluation import ask_items
from unireason_lib.evaluation.controls import shown_images
from unireason_lib.grounding import Settings

count = 8 * profile.notebook.questions
benchmark = open_benchmark(
    "phantom", split="test", limit=count, frame=frame, seed=SEED, config={"shape": shape}, a_patient=1
)
batch = min(profile.evaluation.batch_size, count // 2)
lines = {}
for control in ("none", "blank"):
    shown = shown_images(benchmark, control)
    lines[control] = list(
        ask_items(generator, benchmark.items, shown, settings=Settings(**limits), batch_size=batch)
    )

# %% [markdown]
# Each share has a Wilson interval: what the true share may be, seen from so few questions. Notebook 06 asks many more.

# %%
from unireason_lib.display import plot_intervals
from unireason_lib.evaluation import wilson


def share(control, dimension=None):
    """Right answers in percent, with the interval."""
    right = [line["correct"] for line in lines[control] if dimension in (None, line["dimension"])]
    low, high = wilson(sum(right), len(right))
    return 100 * sum(right) / len(right), 100 * low, 100 * high


NAMES = {"none": "pictures shown", "blank": "pictures blanked"}
shares = {words: {d.upper(): share(control, d) for d in ("2d", "3d")} for control, words in NAMES.items()}
plot_intervals(shares, f"right answers in %, {count // 2} questions a row", reference=("chance", 25))

# %%
for name, (value, *interval) in {
    "right answers 2D": share("none", "2d"),
    "right answers 3D": share("none", "3d"),
    "right answers, blanked pictures": share("blank"),
}.items():
    publish(f"quickstart: {name}", value, "%", interval=interval, note="held-out phantoms, chance is 25 %")

# %% [markdown]
# ## 6 · A real scan
#
# The MNI152 template is a real brain MRI, averaged over 152 people, with the structures of an anatomical atlas. We lay it out
# as the phantoms were, and ask. The model **has never seen a brain**, nor MRI. It does not say so, because no example that it
# learnt from ever did: it replies as it comes.

# %%
from unireason_lib.dataset import brain_study
from unireason_lib.dataset.view import View
from unireason_lib.grounding import GroundedRequest

brain = brain_study()
view = View(brain, size=tuple(shape), frame=frame)
hippocampus = brain.find("right hippocampus")
options = {"A": "Left hippocampus", "B": "Right putamen", "C": "Right hippocampus", "D": "Brain stem"}
question = "Which structure lies at the medial temporal lobe of the patient's right side?"
ask_brain = GroundedRequest(question, view.images(), options, dimension="3d", id="brain")
print(f"{brain.scan.shape} voxels of {brain.scan.spacing} mm, shown as {view.depth} slices")
show_slices([frame.aligned(image) for image in ask_brain.images], {hippocampus.name: view.box(hippocampus)})

# %%
trace_brain = generator.generate([ask_brain], **limits)[0]
show_trace(trace_brain.to_dict() | {"truth": "C"}, ask_brain.images, frame=frame)

# %% [markdown]
# Right or wrong, this is no evidence of anything: one question, about things that the model never met. For real scans take a
# full-size checkpoint; the code stays the same (profile `gpu`).
#
# ## 7 · The same from the command line, and as a page
#
# The volume of above, as a NIfTI file like any other scan:

# %%
import nibabel as nib

from unireason_lib.dataset import PhantomConfig, phantom

out = project_root() / "runs" / "quickstart"
out.mkdir(parents=True, exist_ok=True)
looks = PhantomConfig(shape=tuple(shape))
scan = phantom(int(asked_3d.patient.removeprefix("phantom-")), config=looks).scan
nib.save(nib.Nifti1Image(scan.array.transpose(2, 1, 0), scan.affine), out / "phantom.nii.gz")
print(f"{(out / 'phantom.nii.gz').relative_to(project_root())}: {scan.shape} voxels of {scan.spacing} mm")

# %% [markdown]
# In a terminal one types the line that is printed first. Here the same command runs inside the notebook's process, which
# saves the seconds that importing PyTorch takes. Size and window are those the model was trained with; only a checkpoint
# that does not say which needs them as options.

# %%
import shlex
from contextlib import chdir

from unireason_lib.cli import app
from unireason_lib.inference import Checkpoint

layout = {"--target-size": ",".join(map(str, shape)), "--normalize": "{:g},{:g}".format(*looks.window)}
with chdir(project_root()):
    layout = {} if Checkpoint(profile.model.path).serialization else layout
typed = {
    "--model-path": profile.model.path,
    "--device": str(model.device),
    "--torch-dtype": str(model.dtype).removeprefix("torch."),
    "--volume": "runs/quickstart/phantom.nii.gz",
    **layout,
    "--question": asked_3d.question,
    **{f"--option-{letter.lower()}": text for letter, text in asked_3d.options.items()},
    **{f"--{name.replace('_', '-')}": str(value) for name, value in limits.items()},
    "--output": "runs/quickstart/reply.json",
}
words = [f"{name}={value}" for name, value in typed.items()]
print(" \\\n    ".join(["python -m unireason_lib infer 3d", *map(shlex.quote, words)]), "\n")
with chdir(project_root()):
    app(["infer", "3d", *words], standalone_mode=False)

# %% [markdown]
# Traces become one self-contained HTML page: images, boxes, crops and text, without any network.

# %%
from unireason_lib.display import trace_html

traces, truths = [trace_2d, trace_3d, trace_brain], [asked_2d.answer, asked_3d.answer, "C"]
results = [trace.to_dict() | {"truth": truth} for trace, truth in zip(traces, truths, strict=True)]
page = out / "traces.html"
trace_html(results, [trace.request.images for trace in traces], frame=frame, path=page)
print(f"{page.relative_to(project_root())}: {page.stat().st_size / 1024:.0f} KiB")

# %% [markdown]
# And the reply about the volume as one figure, which stands at the head of the README: slices, boxes, crops and text.

# %%
figure = show_trace(trace_3d, frame=frame)
figure.savefig(out / "hero.png", dpi=150)
figure

# %% [markdown]
# ## Check yourself
#
# The command line gave the reply that the notebook got: one code path. Nearly all replies of the shipped model follow the
# format, and most of them look at a region again. How often they are right is the figure of section 5, as it came out.

# %%
import json

from unireason_lib.evaluation.benchmarks import FIRST_PATIENT

assert json.loads((out / "reply.json").read_text(encoding="utf-8"))["text"] == trace_3d.text
assert all(sum(trace.own_mask) <= limits["max_new_tokens"] for trace in traces)
assert all(int(line["patient"].removeprefix("phantom-")) >= FIRST_PATIENT["test"] for line in lines["none"])
if PROFILE == "laptop":
    replies = lines["none"]
    assert sum(line["in_format"] for line in replies) > 0.9 * count
    assert sum(any(p["status"] == "injected" for p in line["pointings"]) for line in replies) > 0.5 * count
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. Ask the question about the texture again, but let boxes fetch nothing (`max_rounds=0`). What does the model do without
#    its second look? One reply says little: do it for twenty patients.
# 2. Flip the picture left to right (`ImageOps.mirror`) and ask where a lesion lies. Does the answer follow?
# 3. Give your own scan to `infer 3d`. Which window suits it?
#
# <details><summary>Solutions</summary>
#
# 1. `generator.generate(requests, max_rounds=0, max_new_tokens=...)`; `trace.pointings[0].status` is `"rounds used up"`. The
#    benchmark has this as a control: `evaluate --control no-crop`.
# 2. Left and right should swap, because the model has only the image to go by. One that knows where livers lie may not follow.
# 3. `percentile` for MRI; for CT a named window such as `abdomen` or `lung`, or a range in HU like `--normalize=-150,250`.
#
# </details>
