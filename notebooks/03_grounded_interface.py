# %% [markdown]
# # 03 · The grounded interface: write, point, look, write on
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/03_grounded_interface.ipynb)
#
# After this notebook you can
# - write and read the boxes of the shared syntax, and say in which pixels they live;
# - put a region's image tokens into a running reply by hand, and show that keeping the cache changes nothing;
# - read off what the kept cache saves, and what becomes of a box that makes no sense.
#
# **Where we stand.** Slices and pictures come out of notebook 02 as pictures for the processor. Here the model gets its
# pointing finger; notebook 04 teaches it to use it.
#
# **Time** about one minute on 2 CPU cores, less on a GPU. **Needs** nothing from earlier notebooks: the real brain MRI
# comes with a Python package, and the tiny model ships in `data/tiny-sft`. It has the true architecture and was trained on
# torso phantoms; a brain it **has never seen**. So that we choose what is pointed at, a script makes it write the boxes, and
# everything that happens then is real. *Nothing here is for clinical use.*

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
from unireason_lib.grounding import load_profile_model
from unireason_lib.notebooks import project_root, publish

profile = load_profile(PROFILE, OVERRIDES)
model, processor = load_profile_model(profile.model, project_root())
millions = sum(p.numel() for p in model.parameters()) / 1e6
print(f"{profile.model.path}: {type(model).__name__}, {millions:.1f} M parameters")

# %%
from unireason_lib.display import pipeline_figure

pipeline_figure("grounded interface")

# %% [markdown]
# ## 1 · A box is a piece of text
#
# Four numbers are a rectangle in a picture, six a cuboid in a stack of slices. The second corner is not included, as in a
# Python slice. What a model writes is untrusted: the reader takes what is well formed, counts what is not, and never
# fails.

# %%
from unireason_lib.boxes import Box2D, Box3D, format_box, parse_boxes, scan_boxes

mass, organ = Box2D(98, 107, 153, 154), Box3D(10, 12, 3, 60, 50, 7)
print(format_box(mass), format_box(organ), sep="\n")
assert parse_boxes(f"The mass at {format_box(mass)} lies in {format_box(organ)}.") == [mass, organ]

# %%
hostile = [
    "<|box_start|>[1e999,0,1,1]<|box_end|>",
    "<|box_start|>[nan,0,1,1]<|box_end|>",
    "<|box_start|>[9,9,3,3]<|box_end|>",
    "<|box_start|>[1,2,3]<|box_end|>",
    "<|box_start|>[1,2,3,4",
    "<|box_start|>(1,2,30,40)<|box_end|>",
]
for text in hostile:
    scan = scan_boxes(text)
    print(f"{text:<42} boxes {list(scan.boxes)}, malformed {scan.malformed}")

# %% [markdown]
# ## 2 · In which pixels?
#
# The processor resizes every picture: sides become multiples of patch times merge size, the area stays within two limits.
# Boxes are written in the pixels **after** that resize. Forgetting it is the most common mistake in grounded models: the
# box looks plausible and points elsewhere. One object owns the scale, and reads it from the processor in use.

# %%
from unireason_lib.imaging import QWEN_FRAME, ProcessorFrame

frame = ProcessorFrame.from_processor(processor)
for height, width in ((256, 256), (512, 512), (480, 640), (40, 40)):
    for name, shown in (("Qwen2.5-VL", QWEN_FRAME), ("this checkpoint", frame)):
        size, tokens = shown.size(height, width)[::-1], shown.tokens(height, width)
        print(f"{width} x {height}: {name} shows {size} in {tokens} tokens")
assert QWEN_FRAME.size(256, 256) == (252, 252) and QWEN_FRAME.tokens(256, 256) == 81

# %% [markdown]
# A real scan to point at: the MNI152 brain, an average of 152 people, with the structures of a labelled atlas. We take the
# slices that the profile asks for, and one structure as the thing to look at.

# %%
from unireason_lib.dataset import brain_study
from unireason_lib.imaging import serialize

study = brain_study()
stack = serialize(study.scan, size=tuple(profile.serialization.size), window=profile.serialization.window)
structure = study.find("left thalamus")
slices = stack.images()
height, width = stack.pixels.shape[1:]
target = frame.written(stack.from_voxel(structure.box), height, width, depth=len(slices))
print(f"{structure.name}: voxels {structure.box.as_tuple()} -> frame {target.as_tuple()}")

# %%
from unireason_lib.display import show_images

middle = (target.z1 + target.z2) // 2
print(f"the scan's slices have {study.shape[:0:-1]} pixels, the model sees {frame.size(height, width)[::-1]}")
boxes = {"written in the model's pixels": target, "voxel numbers, unconverted: elsewhere": structure.box}
show_images([frame.aligned(slices[middle])], [boxes], columns=2)

# %% [markdown]
# ## 3 · What a box fetches
#
# A rectangle fetches one crop, a cuboid the same rectangle from each slice that it spans. Crops are cut from the picture
# as the model sees it, clamped to it, and widened to at least 4 pixels a side.

# %%
from unireason_lib.display import show_slices
from unireason_lib.grounding import crop_region

aligned = [frame.aligned(image) for image in slices]
crops = crop_region(aligned, target)
tokens = [frame.tokens(crop.height, crop.width) for crop in crops]
print(f"{len(crops)} crops of {crops[0].size} pixels; each becomes {tokens[0]} tokens in the reply")
assert len(crops) == target.depth
show_slices(crops, columns=8)

# %% [markdown]
# ## 4 · Injection, once by hand
#
# The reply so far ends with `<|box_end|>`. Behind it we put, for every crop, `<|vision_start|>`, as many image tokens as the
# crop has, and `<|vision_end|>`, in the **same** assistant turn. First the plain way: encode everything from the start.

# %%
import torch

from unireason_lib.grounding import GroundedGenerator, GroundedRequest

options = {"A": "left thalamus", "B": "right thalamus", "C": "left cuneus", "D": "right cuneus"}
request = GroundedRequest("Which structure do you see?", slices, options, dimension="3d", id="by-hand")
generator = GroundedGenerator(model, processor)
prompt, pixels, grids = generator.encode(request)
said = processor.tokenizer(f"<think>I look at {format_box(target)}").input_ids
print(
    f"prompt {len(prompt)} tokens, of which {prompt.count(generator.image_token)} are the {len(slices)} slices"
)

# %%
looked = processor.image_processor(images=crops, return_tensors="pt")
crop_grids = looked["image_grid_thw"].tolist()
injected = []
for t, h, w in crop_grids:
    count = t * h * w // frame.merge_size**2
    injected += [generator.vision_start, *[generator.image_token] * count, generator.vision_end]
whole = torch.tensor([prompt + said + injected])


def positions_of(ids, grid):
    """Three rotary positions a token (time, height, width), by the model's own rule."""
    types = (ids == generator.image_token).int()
    return model.model.get_rope_index(ids, mm_token_type_ids=types, image_grid_thw=torch.tensor(grid))[0]


with torch.inference_mode():
    everything = model(
        input_ids=whole,
        pixel_values=torch.cat([pixels, looked["pixel_values"]]),
        image_grid_thw=torch.tensor(grids + crop_grids),
        position_ids=positions_of(whole, grids + crop_grids),
    ).logits[0, -1]

# %% [markdown]
# Now the way that keeps what was computed. The first pass leaves a key-value cache of prompt and thought. The second pass
# runs **only the new tokens**, with the tail of the positions of the whole sequence.

# %%
from transformers import DynamicCache

cache = DynamicCache(config=model.config)
before = torch.tensor([prompt + said])
with torch.inference_mode():
    model(
        input_ids=before,
        pixel_values=pixels,
        image_grid_thw=torch.tensor(grids),
        position_ids=positions_of(before, grids),
        past_key_values=cache,
        use_cache=True,
    )
    kept = model(
        input_ids=torch.tensor([injected]),
        pixel_values=looked["pixel_values"],
        image_grid_thw=torch.tensor(crop_grids),
        position_ids=positions_of(whole, grids + crop_grids)[:, :, -len(injected) :],
        past_key_values=cache,
        use_cache=True,
    ).logits[0, -1]
difference = (kept - everything).abs().max().item()
print(f"largest difference of any logit: {difference:.1e}")
assert difference < 1e-3

# %% [markdown]
# The positions matter. Number the injected tokens one after the other, as if they were words, and nothing fails, but the
# model reads a picture whose rows and columns are gone:

# %%
cache.crop(-len(injected))
last = positions_of(before, grids).max()
with torch.inference_mode():
    flat = model(
        input_ids=torch.tensor([injected]),
        pixel_values=looked["pixel_values"],
        image_grid_thw=torch.tensor(crop_grids),
        position_ids=(last + 1 + torch.arange(len(injected))).expand(3, 1, -1),
        past_key_values=cache,
        use_cache=True,
    ).logits[0, -1]
wrong = (flat - everything).abs().max().item()
print(f"largest difference with flat positions: {wrong:.1e}")
assert wrong > 10 * difference

# %% [markdown]
# ## 5 · The same, from the library
#
# `GroundedGenerator` does this for whole batches. A `Script` makes the model write our words; where the script has a number,
# the model is free to write that many tokens of its own, only no end and no box. The reply must go on with the token that we
# just computed by hand.

# %%
from unireason_lib.grounding import Script

script = Script(
    processor.tokenizer, (f"<think>I look at {format_box(target)}", 12, "</think>A. left thalamus<|im_end|>")
)
trace = generator.generate([request], scripts=[script], max_new_tokens=len(script))[0]
next_token = trace.token_ids[len(said) + len(injected)]
free = everything.clone()
free[[*generator.never_written, *generator.ends, generator.box_start, generator.box_end]] = -torch.inf
assert next_token == int(free.argmax())
print(trace.text)

# %% [markdown]
# Every token knows who wrote it. Training needs that: injected tokens carry no loss, in SFT as in RL.

# %%
from unireason_lib.display import token_strip

own = sum(trace.own_mask)
print(f"prompt {len(trace.prompt_ids)}, generated {own}, injected {len(trace.own_mask) - own}")
token_strip(trace, processor.tokenizer)

# %%
from unireason_lib.display import show_trace

show_trace(trace, aligned)

# %% [markdown]
# ## 6 · Many at once
#
# Requests of a batch have different lengths and point at different times. Shorter rows are padded inside the cache, hidden
# from attention, and carry no position, so nobody's reply depends on the neighbours.

# %%
picture = GroundedRequest("What is this?", [slices[middle]], {}, id="picture")
pointing_2d = Script(processor.tokenizer, (3, format_box(target.xy), 6))
both = generator.generate([request, picture], scripts=[script, pointing_2d], max_new_tokens=64)
alone = generator.generate([picture], scripts=[pointing_2d], max_new_tokens=64)[0]
assert both[1].token_ids == alone.token_ids
assert both[0].token_ids == trace.token_ids
print("together as alone, token by token")

# %% [markdown]
# ## 7 · What the kept cache saves
#
# Without it, every box costs the encoding of all slices, the prompt and the reply so far. With it, a box costs its own crop.

# %%
import time
from statistics import median

AGAIN, KEPT = "everything encoded again", "cache kept"
generators = {AGAIN: GroundedGenerator(model, processor, reuse_cache=False), KEPT: generator}


def seconds(images, boxes):
    """Median seconds of a reply that writes so many boxes, one slice each; both generators by turns."""
    box = "<|box_start|>[{0},{0},{1},{2},{2},{3}]<|box_end|>"
    places = [(k % 8, k % len(images), k % 8 + 16, k % len(images) + 1) for k in range(boxes)]
    script = Script(processor.tokenizer, tuple(part for place in places for part in (1, box.format(*place))))
    asked = GroundedRequest("Where is the lesion?", images, {"A": "left", "B": "right"}, "3d")
    taken = {name: [] for name in generators}
    for _ in range(profile.notebook.repeats):
        for name, one in generators.items():
            start = time.perf_counter()
            one.generate([asked], scripts=[script], max_new_tokens=len(script), max_rounds=boxes)
            taken[name].append(time.perf_counter() - start)
    return {name: median(values) for name, values in taken.items()}


# %%
from unireason_lib.display import plot_lines

counts = profile.notebook.box_counts
measured = {boxes: seconds(slices, boxes) for boxes in counts}
curves = {name: [(boxes, measured[boxes][name]) for boxes in counts] for name in generators}
plot_lines(curves, f"boxes in the reply ({len(slices)} slices)", "seconds a reply")

# %%
ratio = curves[AGAIN][-1][1] / curves[KEPT][-1][1]
name = f"kept cache, {counts[-1]} boxes, {len(slices)} slices"
publish(name, ratio, "x", note="time of encoding again / time with the cache")

# %% [markdown]
# And what **one more** box costs, against the number of slices. Without the cache it grows with the volume. With it, the crop
# and the tokens of the box are all that is computed; each of them still attends to every slice, a small part of the cost.

# %%
curves = {name: [] for name in generators}
for count in profile.notebook.slice_counts:
    volume = [slices[k % len(slices)] for k in range(count)]
    few, many = seconds(volume, 1), seconds(volume, 5)
    for name, curve in curves.items():
        curve.append((count, (many[name] - few[name]) / 4))
plot_lines(curves, "slices of the volume", "seconds one more box costs")

# %% [markdown]
# At 32 slices and a larger model the gain is larger: `make bench` measures it on the shape that the paper uses.
#
# ## 8 · What becomes of boxes that make no sense
#
# A model in training writes all of these. None stops the reply, none is answered with pixels that were not asked for.

# %%
cases = {
    "a fair box": "[8,8,1,40,40,3]",
    "partly outside": "[-20,-20,0,30,30,2]",
    "outside the picture": "[900,900,0,999,999,2]",
    "beyond the last slice": "[8,8,99,40,40,120]",
    "reversed": "[40,40,3,8,8,1]",
    "four numbers for a volume": "[8,8,40,40]",
    "not a number": "[nan,8,1,40,40,3]",
}
plans = [Script(processor.tokenizer, (f"<|box_start|>{inside}<|box_end|>", 1)) for inside in cases.values()]
replies = generator.generate([request] * len(plans), scripts=plans, max_new_tokens=40)
for name, reply in zip(cases, replies, strict=True):
    pointing = reply.pointings[0]
    print(f"{name:<28}{pointing.status:<12}{len(pointing.crops)} crops")

# %% [markdown]
# ## Check yourself

# %%
assert [reply.pointings[0].status for reply in replies[:2]] == ["injected", "injected"]
assert replies[5].pointings[0].status == "no slice"
assert trace.choice == "A"
assert Box2D(0, 0, 4, 4).iou(Box2D(2, 0, 6, 4)) == 8 / 24
assert all(len(reply.token_ids) == len(reply.own_mask) for reply in replies)
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. How many tokens does a cuboid over 5 slices cost with Qwen2.5-VL's processor, if each crop has 100 x 60 pixels?
# 2. Why is a box that covers the whole picture still worth something in the tiny checkpoint, and less in the large one?
# 3. Two boxes overlap by half along x and are equal otherwise. What is their IoU? Check with `Box2D.iou`.
#
# <details><summary>Solutions</summary>
#
# 1. `QWEN_FRAME.tokens(60, 100)` tokens a crop, plus the two delimiters, times five.
# 2. The tokens are repeated closer to the answer, which helps a model that attends locally; the pixels are the same. Only
#    a small box is *enlarged*: the processor scales small crops up to its smallest area, which spends more tokens a
#    pixel.
# 3. Intersection 1/2, union 3/2: IoU 1/3, whatever the size.
#
# </details>
