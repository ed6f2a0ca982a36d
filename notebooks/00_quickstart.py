# %% [markdown]
# # 00 · Quickstart: a model that points, looks again, and answers
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/00_quickstart.ipynb)
#
# After this notebook you can
# - ask a question about a real 3D scan and about a 2D picture;
# - follow a reply that writes a box, receives the boxed region's image tokens, and goes on;
# - run the same from the command line, and hand a trace to somebody as one HTML page.
#
# **Where we stand.** This is the whole pipeline seen from its end; each later notebook opens one of its steps.
#
# **Time** half a minute on 2 CPU cores, no GPU needed. **Needs** nothing: the brain MRI comes with a Python package, and a tiny
# checkpoint is built on first use.
#
# The tiny checkpoint has the true architecture (`Qwen2_5_VLForConditionalGeneration`) and **random weights**: it has learnt
# nothing, so its own words are noise and its answers are worth nothing. To show the mechanism, a *script* makes it write
# what a trained model would; cropping, encoding and injection are real. *Nothing here is for clinical use.*

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

from unireason_lib.tutorial import check_versions

print(check_versions())

# %%
from unireason_lib.display import pipeline_figure
from unireason_lib.profiles import load_profile
from unireason_lib.tutorial import project_root, publish

profile = load_profile(PROFILE, OVERRIDES)
pipeline_figure()

# %% [markdown]
# ## 1 · A model and a scan
#
# `load_model` takes any checkpoint of the Qwen2.5-VL family, a folder or a hub id. Here the profile asks for the tiny one.

# %%
from unireason_lib.grounding import GroundedGenerator, load_profile_model

model, processor = load_profile_model(profile.model, project_root())
generator = GroundedGenerator(model, processor)
print(
    f"{type(model).__name__}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters, untrained"
)

# %% [markdown]
# The scan is the MNI152 template: a real brain MRI, averaged over 152 people, with the structures of an anatomical atlas.
# `serialize` lays the volume out as slices, from foot to head. Patient right is on the left of each picture, as in
# radiology.

# %%
from unireason_lib.dataset import brain_study
from unireason_lib.display import show_slices
from unireason_lib.imaging import serialize

brain = brain_study()
stack = serialize(brain.scan, size=tuple(profile.serialization.size), window=profile.serialization.window)
slices = stack.images()
hippocampus = brain.find("right hippocampus")
print(
    f"{brain.scan.shape} voxels of {brain.scan.spacing} mm -> {len(slices)} slices of {slices[0].size} pixels"
)
show_slices(slices, [stack.from_voxel(hippocampus.box)], names=[hippocampus.name], orientation=True)

# %% [markdown]
# ## 2 · A question about the volume
#
# The model reads the slices and the question. Left alone, the untrained model writes noise:

# %%
from unireason_lib.grounding import GroundedRequest

options = {"A": "right hippocampus", "B": "left hippocampus", "C": "right putamen", "D": "brain stem"}
question = "Which structure lies at the medial temporal lobe of the patient's right side?"
ask_volume = GroundedRequest(question, slices, options, dimension="3d", id="brain-3d")
noise = generator.generate([ask_volume], max_new_tokens=24)[0]
print(repr(noise.text), "-> choice:", noise.choice)

# %% [markdown]
# A trained model points. The script below makes this one write a box around the hippocampus, in the pixels of the frame in
# which the processor shows the slices. At `<|box_end|>` the generator stops, cuts the rectangle from each slice that the
# cuboid spans, and puts the crops' tokens into the reply.

# %%
from unireason_lib.boxes import format_box
from unireason_lib.grounding import Script

height, width = stack.pixels.shape[1:]
box = generator.frame.written(stack.from_voxel(hippocampus.box), height, width, depth=len(slices))
words = (
    f"<think>The medial temporal lobe on the right lies at {format_box(box)}",
    " This is the right hippocampus.</think>A. right hippocampus<|im_end|>",
)
trace = generator.generate([ask_volume], scripts=[Script(processor.tokenizer, words)])[0]
print(f"answer: {trace.answer}   crops: {len(trace.crops[0])}   injected tokens: {trace.own_mask.count(0)}")

# %%
from unireason_lib.display import show_trace

show_trace(trace, slices, frame=generator.frame)

# %% [markdown]
# ## 3 · A question about a picture
#
# The same checkpoint, the same call; a box has four numbers. The picture is a slice of a torso phantom, whose lesion has a
# texture that is hard to see in the whole picture and easy in the enlarged crop.

# %%
from unireason_lib.dataset import phantom_slice
from unireason_lib.dataset.view import View

patient = next(p for p in (phantom_slice(seed) for seed in range(SEED, SEED + 100)) if p.lesions)
view = View(patient, size=None, window=patient.window, frame=generator.frame)
lesion = patient.lesions[0]
picture = view.images()
textures = {"A": "vertically striped", "B": "horizontally striped", "C": "checkered", "D": "mottled"}
ask_picture = GroundedRequest("What is the texture of the lesion?", picture, textures, id="phantom-2d")
words = (f"<think>I look at the lesion at {format_box(view.box(lesion))}", " It is", 1, ".</think>")
trace_2d = generator.generate([ask_picture], scripts=[Script(processor.tokenizer, words)], max_new_tokens=60)[
    0
]
show_trace(trace_2d, picture, frame=generator.frame)

# %% [markdown]
# The truth is known here, because the phantom was made: the lesion is

# %%
print(lesion.attributes["texture"], "- and an untrained model does not see it:", repr(trace_2d.answer[:40]))

# %% [markdown]
# ## 4 · Who wrote what
#
# Prompt, the model's own tokens, and the injected ones. Only the own ones will carry a loss in training.

# %%
from unireason_lib.display import token_strip

token_strip(trace_2d, processor.tokenizer)

# %% [markdown]
# ## 5 · How good is it?
#
# An honest figure belongs beside every demonstration: free-running, without a script, on questions about which it could
# only guess. The untrained model does not even choose a letter.

# %%
asked = []
for seed in range(SEED, SEED + profile.notebook.questions):
    study = phantom_slice(seed)
    images = View(study, size=None, window=study.window, frame=generator.frame).images()
    asked.append(GroundedRequest("What is the texture of the lesion?", images, textures, id=study.id))
replies = generator.generate(asked, max_new_tokens=32)
chosen = sum(reply.choice is not None for reply in replies)
publish(
    "quickstart: replies that choose a letter",
    f"{chosen} of {len(replies)}",
    note="random weights, free-running",
)

# %% [markdown]
# ## 6 · The same from the command line, and as a page
#
# ```bash
# python -m unireason_lib infer 3d --model-path <folder or hub id> --volume scan.nii.gz --question "..." \
#     --option-a "..." --option-b "..." --option-c "..." --option-d "..."
# ```
#
# A trace becomes one self-contained HTML page: pictures, boxes, crops and text, without any network.

# %%
from unireason_lib.display import trace_html

page = project_root() / "runs" / "quickstart" / "traces.html"
page.parent.mkdir(parents=True, exist_ok=True)
trace_html([trace, trace_2d], path=page, frame=generator.frame)
print(f"{page.relative_to(project_root())}: {page.stat().st_size / 1024:.0f} KiB")

# %% [markdown]
# And as one picture: this is the figure at the head of the README.

# %%
from unireason_lib.display import hero_figure

figure = hero_figure(trace, slices, processor.tokenizer, frame=generator.frame)
figure.savefig(page.with_name("hero.png"), dpi=150)
figure

# %% [markdown]
# ## Check yourself

# %%
assert trace.choice == "A" and trace.stop == "end"
assert len(trace.crops[0]) == box.depth
assert trace_2d.own_mask.count(0) > 0
assert trace.boxes == [box]
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. Make the script point twice: first at the right, then at the left hippocampus. How many tokens are injected?
# 2. Point at a slice that does not exist. What does `trace.pointings[0].status` say?
# 3. Give your own scan to `infer 3d`. Which window suits it?
#
# <details><summary>Solutions</summary>
#
# 1. Put a second `format_box(...)` with `brain.find("left hippocampus")` into the words; `trace.own_mask.count(0)`.
# 2. `"outside"`: nothing is injected and the reply goes on.
# 3. `percentile` for MRI; for CT a named window such as `abdomen` or `lung`, or a range in HU like `--normalize=-150,250`.
#
# </details>
