# %% [markdown]
# # 03 · The grounded interface: a box in a reply fetches the region's image tokens
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/03_grounded_interface.ipynb)
#
# One image token stands for a whole square of pixels, and smaller details are blurred in it. So we let the model box a region, and show it that
# region again, enlarged: a second look, within one reply. After this notebook you can
# - generate a grounded reply token by token, with crops and M-RoPE positions by hand, and reproduce the library's reply exactly;
# - measure what the injected tokens change: attention, and the answers when a crop shows the lesion of another patient;
# - put a box on a region yourself, and see how the answer depends on it.
#
# **Time** about a minute on 2 CPU cores, less on a GPU. **Needs** no other notebook; a tiny fine-tuned Qwen2.5-VL ships in
# `data/tiny-sft`. **Synthetic**: all scans are CT-like torso phantoms, not used in training. *Not for clinical use.*
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740), [Qwen2.5-VL](https://arxiv.org/abs/2502.13923), [RoPE](https://arxiv.org/abs/2104.09864),
# [M-RoPE](https://arxiv.org/abs/2409.12191); other models that look twice: [Visual CoT](https://arxiv.org/abs/2403.16999), [DeepEyes](https://arxiv.org/abs/2505.14362).

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
from copy import copy
from dataclasses import replace
from itertools import product

import torch
from transformers import DynamicCache

from unireason_lib import display
from unireason_lib.boxes import format_box, parse_boxes, scan_boxes
from unireason_lib.config import load_profile
from unireason_lib.dataset import phantom, phantom_slice
from unireason_lib.dataset.view import View
from unireason_lib.display.figures import LINE_COLORS, AltFigure
from unireason_lib.evaluation import open_benchmark, wilson
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Script, load_profile_model
from unireason_lib.notebooks import project_root, publish

profile = load_profile(PROFILE, OVERRIDES)
model, processor = load_profile_model(profile.model, project_root())
generator = GroundedGenerator(model, processor)
frame, tokenizer = generator.frame, processor.tokenizer
print(f"{profile.model.path}: {sum(p.numel() for p in model.parameters()) / 1e6:.1f} M parameters")
display.pipeline_figure("grounded interface")

# %% [markdown]
# ## 1 · A box is text, in the pixels of the processor
# Four numbers are a rectangle in an image, six a cuboid in a stack of slices, `[x1, y1, z1, x2, y2, z2]`; the second corner is exclusive. The
# parser accepts well-formed boxes, counts malformed ones, and never raises.

# %%
for inside in ("[10,12,3,60,50,7]", "[9,10,15,15]", "[9,9,3,3]", "[nan,0,1,1]"):
    scan = scan_boxes(f"The cyst at <|box_start|>{inside}<|box_end|> is round.")
    print(f"{inside:<20} boxes {[box.as_tuple() for box in scan.boxes]}, malformed {scan.malformed}")

# %% [markdown]
# The processor resizes every image: with patches of $p$ pixels, $m \times m$ of which become one token, a side of $s$ pixels becomes
# $s' = pm \cdot \mathrm{round}(s / pm)$, and both sides shrink or grow together if the area is outside the processor's limits. Boxes are written in
# the pixels **after** that resize: $x' = x \cdot w' / w$ if it changes the width $w$ to $w'$. An unconverted box is well formed but in the wrong place.

# %%
large = View(phantom_slice(1_000_027, 160), frame=frame)
lesion = next(one for one in large.study.structures if one.kind == "lesion")
boxes = {"converted to the pixels of the processor": large.box(lesion), "not converted": lesion.box}
display.show_images([frame.aligned(large.images()[0])], [boxes], columns=2)


# %% [markdown]
# The converted box encloses the lesion; the other one, in pixels of the larger scan, is too large and lies too far down and to the right.
# ## 2 · Positions: M-RoPE
# Rotary embeddings rotate queries and keys by angles proportional to the position, so attention depends on differences between positions. In
# Qwen2.5-VL every token has three positions $(t, h, w)$, each of which rotates a part of the features. With $p$ the next free position, a text
# token gets $(p, p, p)$; the token in row $r$ and column $c$ of an image gets $(p, p + r, p + c)$. After either, $p$ becomes the largest position so
# far plus one, so an image of $H \times W$ tokens advances it by $\max(H, W)$. Slices in the prompt and crops in the reply follow the same rule. We
# compute it by hand; on the prompt of a question about a volume, the result must agree with `get_rope_index` of transformers.
# > **Predict first.** An image of 4 x 4 tokens follows position 9. At which position is the text after it: 10, 14 or 26?

# %%
def mrope(ids, grids, start=0):
    """Positions (3, tokens) from `start` on, and the next free one; `grids`: sizes of images in patches."""
    positions, grids, at = [], iter(grids), start
    while len(positions) < len(ids):
        if ids[len(positions)] == generator.image_token:
            _, rows, columns = (n // frame.merge_size for n in next(grids))
            positions += [(at, at + r, at + c) for r in range(rows) for c in range(columns)]
            at += max(rows, columns)
        else:
            positions.append((at, at, at))
            at += 1
    return torch.tensor(positions).T, at


grid = (1, 4 * frame.merge_size, 4 * frame.merge_size)
example, _ = mrope([0] * 10 + [generator.image_token] * 16 + [0], [grid])
print(f"before the image {example[:, 9].tolist()}, after it {example[:, -1].tolist()}")

# %%
study = phantom(1_500_020)
view = View(study, size=study.shape, frame=frame)
lesions = {one.name: one for one in study.structures if one.kind == "lesion"}
textures = ["Horizontally striped", "Vertically striped", "Checkered", "Mottled"]
request = GroundedRequest("What texture does the lesion have?", view.images(), textures, "3d", "by-hand")
prompt, pixels, grids = generator.encode(request)
positions, at = mrope(prompt, grids)
is_image = torch.tensor([prompt]) == generator.image_token
library, _ = model.model.get_rope_index(torch.tensor([prompt]), is_image.int(), torch.tensor(grids))
assert torch.equal(positions, library[:, 0].cpu())
print(f"{len(prompt)} tokens, {is_image.sum()} of them of {len(grids)} slices; the reply starts at {at}")
{name: (view.box(one).as_tuple(), one.attributes["texture"]) for name, one in lesions.items()}


# %% [markdown]
# The text continues at 10 + max(4, 4). All tokens of a slice share one $t$, and each slice is an image of its own: the order of the slices gives $z$.
# ## 3 · One reply, token by token
# The volume has two lesions: the box in the reply decides which one is meant. `run` feeds new tokens to the model, `write` lets it continue.

# %%
def run(tokens, positions, cache=None, pixels=None, grids=(), network=model, **more):
    """The model's output for some new tokens, which the cache keeps."""
    images = {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)} if grids else {}
    inputs = {"input_ids": torch.tensor([tokens]), "position_ids": positions[:, None], **images}
    inputs = {name: value.to(network.device) for name, value in inputs.items()}
    with torch.no_grad():
        return network(**inputs, past_key_values=cache, **more)


def write(logits, at, cache, limit=200):
    """Most likely tokens up to the end of a box or turn, the logits after them, and the next position."""
    tokens, stops = [], {generator.box_end, *generator.ends}
    while not tokens or (tokens[-1] not in stops and len(tokens) < limit):
        logits[generator.never_written] = -torch.inf  # a model must not forge an image or a turn
        tokens.append(int(logits.argmax()))
        positions, at = mrope(tokens[-1:], [], at)
        logits = run(tokens[-1:], positions, cache).logits[0, -1]
    return tokens, logits, at


# %%
cache = DynamicCache(config=model.config)
logits = run(prompt, positions, cache, pixels, grids).logits[0, -1]
reply, logits, at = write(logits, at, cache)
assert reply[-1] == generator.box_end, "this model closed no box: ask another question"
print(tokenizer.decode(reply))


# %% [markdown]
# A rectangle fetches one crop, a cuboid one from every slice that it spans. The processor enlarges small crops, so a lesion gets more tokens than
# it has in the whole slice. Each crop, between `<|vision_start|>` and `<|vision_end|>`, enters the **same** assistant turn.

# %%
def inject(crops, start):
    """What crops add to a reply: tokens, positions and the next free one, pixels, grids."""
    pixels, grids = generator.encode_crops(crops)
    counts = [rows * columns // frame.merge_size**2 for _, rows, columns in grids]
    parts = [(generator.vision_start, *[generator.image_token] * n, generator.vision_end) for n in counts]
    tokens = [token for part in parts for token in part]
    return tokens, *mrope(tokens, grids, start), pixels, grids


box = parse_boxes(tokenizer.decode(reply))[-1]
crops = [frame.aligned(request.images[z]).crop(box.xy.as_tuple()) for z in range(box.z1, box.z2)]
injected, positions, after, *images = inject(crops, at)
(w, h), n, area = crops[0].size, len(crops), frame.factor**2
print(f"{box}: {n} crops of {w} x {h}, {len(injected) // n - 2} tokens each ({w * h / area:.1f} in a slice)")

# %% [markdown]
# Only the new tokens run through the model, with positions that continue from the last one. To check that nothing is lost, we encode everything
# again from the start; to see that positions matter, we also number the injected tokens one by one, like words.

# %%
everything = prompt + reply + injected
every_pixel, every_grid = torch.cat([pixels, images[0]]), grids + images[1]
whole, _ = mrope(everything, every_grid)
again = run(everything, whole, None, every_pixel, every_grid).logits[0, -1]
as_words = (at + torch.arange(len(injected))).expand(3, -1)
flat = run(injected, as_words, cache, *images).logits[0, -1]
cache.crop(-len(injected))
kept = run(injected, positions, cache, *images).logits[0, -1]
error, flat_error = ((one - again).abs().max().item() for one in (kept, flat))
print(f"largest difference of a logit: {error:.1e} with the cache, {flat_error:.1e} with positions of words")
assert torch.equal(whole[:, -len(injected) :], positions) and error < 1e-3 < flat_error

# %%
start, first = len(prompt) + len(reply), prompt.index(generator.image_token)
parts = {"prompt: text and first slice": range(first + is_image.sum() // len(grids) + 6)}
parts["reply: end of the box, crops"] = range(start - 8, min(start + 17, len(everything)))
figure = AltFigure(9, 3, "M-RoPE positions t, h, w against the index of the token: prompt and reply")
for axes, (title, part) in zip(figure.subplots(1, 2), parts.items(), strict=True):
    for name, row, color, size in zip("thw", whole, LINE_COLORS, (9, 6, 3), strict=False):
        axes.plot(part, row[list(part)], "o", color=color, ms=size, label=name)
    for k in (k for k in part if everything[k] == generator.image_token):
        axes.axvspan(k - 0.5, k + 0.5, color="#e4e8ec", zorder=0, lw=0)
    axes.set(title=title, xlabel="index of the token", ylabel="position")
    axes.locator_params(integer=True)
axes.legend()
figure

# %% [markdown]
# Outside the grey bands the markers coincide, $t = h = w$: text. Within a band (one image), $t$ is constant, $h$ rises row by row and $w$ runs through
# each row; only the first token has three equal positions. The model continues until it ends its turn. `GroundedGenerator`, which does all this for
# batches, must write the same tokens.

# %%
reply, logits, at = reply + injected, kept, after
while reply[-1] not in generator.ends and len(reply) < 1000:
    tokens, logits, at = write(logits, at, cache)
    reply += tokens
    if tokens[-1] == generator.box_end:
        crops = generator.crops_for(request, parse_boxes(tokenizer.decode(reply))[-1])
        injected, positions, at, *images = inject(crops, at)
        reply, logits = reply + injected, run(injected, positions, cache, *images).logits[0, -1]
trace = generator.generate([request], max_new_tokens=400)[0]
assert list(trace.token_ids) == reply
print(f"written by the model {sum(trace.own_mask)} tokens, injected {trace.own_mask.count(0)}\n{trace.text}")
overlap = {name: view.box(one).iou(trace.boxes[0]) for name, one in lesions.items()}
nearest = max(overlap, key=overlap.get)
truth = lesions[nearest].attributes["texture"]
verdict = f"{truth}: the answer is {'right' if truth in trace.answer.lower() else 'wrong'}"
print(f"The box overlaps the {nearest} best, with an IoU of {overlap[nearest]:.2f}. It is {verdict}.")
display.token_strip(trace, tokenizer)

# %%
display.show_trace(trace, request.images, frame=frame)


# %% [markdown]
# The model did not choose the injected tokens: they carry no loss, neither in SFT nor in RL.
# ## 4 · What do injected tokens change?
# **Attention.** With the `eager` implementation the model returns its attention weights. Over replies to questions about textures, we average the
# attention that the conclusion (the tokens after the last crop) pays to an image token of the prompt and to a crop token.

# %%
def attention_per_token(trace):
    """For each layer, attention of the conclusion to an image token and to a crop token, in %."""
    parts = [generator.encode(trace.request)[1:], *map(generator.encode_crops, filter(None, trace.crops))]
    pixels, grids = torch.cat([p for p, _ in parts]), [grid for _, one in parts for grid in one]
    ids = [*trace.prompt_ids, *trace.token_ids]
    output = run(ids, mrope(ids, grids)[0], None, pixels, grids, network=eager, output_attentions=True)
    at = [k for k, token in enumerate(ids) if token == generator.image_token]
    in_prompt = sum(k < len(trace.prompt_ids) for k in at)
    rows = [100 * layer[0].mean(0)[at[-1] + 2 :].mean(0) for layer in output.attentions]  # heads, tokens
    return [(row[at[:in_prompt]].mean().item(), row[at[in_prompt:]].mean().item()) for row in rows]


# %%
how = {"limit": 3 * profile.evaluation.control_questions, "a_patient": 1, "prior_studies": 0}
asked = open_benchmark("phantom", families=["lesion analysis"], dimension="2d", frame=frame, **how)
items = [item for item in asked if item.kind == "texture"]
settings = {**profile.generation.model_dump(), "batch_size": profile.evaluation.batch_size}
traces = generator.generate([item.request(item.load()) for item in items], **settings)
eager, _ = load_profile_model(profile.model.model_copy(update={"attention": "eager"}), project_root())
percent = torch.tensor([attention_per_token(trace) for trace in traces if any(trace.crops)]).mean(0)
names = "image tokens of the prompt", "crop tokens"
curves = {name: [(str(n + 1), x[k].item()) for n, x in enumerate(percent)] for k, name in enumerate(names)}
print("crop token / image token, by layer:", [round(x, 1) for x in (percent[:, 1] / percent[:, 0]).tolist()])
display.plot_lines(curves, "layer", "attention per token, %")


# %% [markdown]
# Ratios above 1 prove little, since crops are also nearer to the conclusion. **Answers** prove more: the image stays, but the box fetches the lesion
# of another patient (a *transplant*), whose texture is another of the options. Up to the end of the first box both replies are the same.
# > **Predict first.** Which texture will the answers name: that of the image, or that of the transplant?

# %%
def transplant(request, box):
    """Crops of the lesion of the other patient, whatever the box."""
    donor = donors[request.id]
    return generator.crops_for(replace(request, images=donor.load()), donor.truth_boxes[0][1])


texture, donors = {item.id: item.options[item.answer] for item in items}, {}
for shift in range(1, len(items)):  # the nearest patient whose texture is another of the options
    for item, other in zip(items, items[shift:] + items[:shift], strict=True):
        if texture[item.id] != texture[other.id] in item.options.values():
            donors.setdefault(item.id, other)
surgeon, own = copy(generator), [one for one in traces if one.request.id in donors]
surgeon.crops_for = transplant
replies = {"own crop": own, "transplant": surgeon.generate([one.request for one in own], **settings)}
other = {name: texture[donor.id] for name, donor in donors.items()}
named, n = {"texture of the image": {}, "texture of the transplant": {}}, len(own)
for (crop, some), (source, right) in product(replies.items(), zip(named, (texture, other), strict=True)):
    count = sum(one.request.options.get(one.choice) == right[one.request.id] for one in some)
    named[source][crop] = tuple(100 * x for x in (count / n, *wilson(count, n)))
value, *ends = named["texture of the transplant"]["transplant"]
publish("answers that follow a transplant", value, "%", interval=tuple(ends), note=f"{n} questions")
display.plot_intervals(named, "answers that name it, % (95 % Wilson interval)", reference=("chance", 25))

# %% [markdown]
# Where answers follow the transplant, against the image, they are read from the injected tokens.
# ## 5 · Your own region
# The button *Ask with this box* makes the reply begin with `<think>` and the box set by the sliders (a `Script` forces these tokens); its crops are
# injected, and the model continues freely. The method `ask` does the same from Python, for pages on which widgets do not run.
# > **Predict first.** Two boxes lie on the two lesions of the volume, the third on the spine. What will the model answer for the third?

# %%
viewer = display.SliceViewer(study.scan, window="abdomen", request=request, generator=generator, **settings)
regions = {name: view.box(one) for name, one in {**lesions, "spine": study.find("spine")}.items()}
for box in regions.values():
    viewer.ask(box)
viewer.box = next(iter(regions.values()))
viewer.slider.value = int(viewer.box.z1 + viewer.box.z2) // 2
viewer

# %%
titles = []
for (name, box), (_, one) in zip(regions.items(), viewer.traces, strict=True):
    forced = len(Script(tokenizer, (f"<think>{format_box(box)}",)))
    truth = lesions[name].attributes["texture"] if name in lesions else "no lesion"
    titles.append(f"{name} ({truth})\nanswer: {one.answer}")
    print(f"{name}: {forced} tokens given, {sum(one.own_mask) - forced} chosen by the model\n  {one.text}")
middle = [frame.aligned(request.images[int(box.z1 + box.z2) // 2]) for box in regions.values()]
display.show_images(middle, [{"box of the user": box} for box in regions.values()], titles, columns=3)

# %% [markdown]
# There is no lesion in the spine, yet the reply describes one: no option says *none*, and all boxes that it was trained on were true (notebook 01).
# ## Check yourself
# > **Predict first.** A model in training writes senseless boxes, too. Which fetch crops: partly outside, wholly outside, corners swapped, no slices?

# %%
cases = "[-9,-9,0,30,30,2] [8,8,99,40,40,120] [40,40,3,8,8,1] [1,1,4,4]".split()
scripts = [Script(tokenizer, (f"<|box_start|>{inside}<|box_end|>", 1)) for inside in cases]
replies = generator.generate([request] * len(cases), scripts=scripts, max_new_tokens=40)
assert [one.pointings[0].status for one in replies] == ["injected", "outside", "malformed", "no slice"]
assert all(sum(one.own_mask) > len(script) for one, script in zip(replies, scripts, strict=True))
print("all checks passed")

# %% [markdown]
# Of these boxes, only the one partly outside fetches crops. **Remember**: pixels of the processor, one turn, one cache. **Next**: [04](04_sft.ipynb).
# ## Exercises ([solutions](solutions/03_grounded_interface.py))
# 1. What does a cuboid over 5 slices cost, in tokens and positions, with `unireason_lib.imaging.QWEN_FRAME`, if each crop has 100 x 60 pixels?
# 2. Predict the texture of single lesions by ridge regression on the mean image token (`generator.features(*generator.encode_crops(images))`) of the
#    whole image, then of the crop of the true box (`phantom_slice(1_000_000 + k)`, 300 patients). What does the gap in accuracy say about section 4?
# 3. How much time does keeping the cache save? Compare with `GroundedGenerator(..., reuse_cache=False)` for 4, 8 and 16 slices.
