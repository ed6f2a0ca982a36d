# %% [markdown]
# # 04 · Supervised fine-tuning: imitate grounded reasoning
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/04_sft.ipynb)
#
# After this notebook you can
# - say for each token of a grounded reply whether it carries loss, and compute that loss by hand as the trainer does;
# - fine-tune a model on slices and volumes, stop and resume the run, and judge it by the replies that it generates itself;
# - compare answers, boxes and reasoning before and after training, with intervals and with baselines that never look at an image.
#
# **Time** about 20 minutes on 2 CPU cores, nearly all in one cell that can be stopped and resumed; hours on GPUs for a 7B model (profile `gpu`).
# **Needs** no other notebook: the base is in `data/tiny-base`, data are built here. **Synthetic**: all patients are phantoms. *Not for clinical use.*
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740), [Qwen2.5-VL](https://arxiv.org/abs/2502.13923), [LoRA](https://arxiv.org/abs/2106.09685).

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0
COMPONENTS = "full"  # of a reply, or fewer of them: no regions, no boxes, answer
RECORDS_2D = None  # records of slices to learn from; None takes those of the profile, 0 none
RECORDS_3D = None  # records of volumes
BASE = ""  # checkpoint to start from; empty takes that of the profile
DATA = ""  # data set or the authors' release, a folder or hub id; empty makes phantoms
M3D_ROOT = ""  # with the release: folder of the M3D volumes that you hold
RUN = ""  # folder of the run in runs/sft; empty derives it from the settings

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
import tempfile
import warnings
from dataclasses import asdict

import numpy as np
import pandas as pd
import torch
from IPython.display import display as show

from unireason_lib import __version__, display
from unireason_lib.config import load_profile
from unireason_lib.dataset.build import phantom_set
from unireason_lib.evaluation import as_table, compare, evaluate, open_benchmark, summary
from unireason_lib.grounding import Settings, load_profile_model
from unireason_lib.inference import Checkpoint, model_identity, read_results
from unireason_lib.notebooks import project_root, publish, short_hash
from unireason_lib.training import callbacks, checkpoints, data, encoding, sft

display.pipeline_figure("SFT")

# %% [markdown]
# ## 1 · Two stages, and the data of the first
# **Stage 1, SFT** (this notebook): the model imitates written replies whose boxes are true. **Stage 2, outcome RL** (notebook 05): it generates
# replies itself and is rewarded for the right answer and the format. RL can only reinforce what the model already does now and then, so SFT comes
# first. The paper starts from Qwen2.5-VL-7B. The base here has the same architecture and was trained on plain shapes: it can choose a letter and box
# a shape, but knows neither the format of a reply nor any anatomy (its vision tower: section 4). The data set is built as in notebook 01, but larger.

# %%
root, held = project_root(), {"m3d_root": M3D_ROOT or None}
changes = [f"sft.seed={SEED}", *([f"grounding.components={COMPONENTS}"] if COMPONENTS != "full" else [])]
counts = {"records_2d": RECORDS_2D, "records_3d": RECORDS_3D}
changes += [f"sft_data.{name}={count}" for name, count in counts.items() if count is not None]
profile = load_profile(PROFILE, "\n".join([OVERRIDES, *changes]))
ours, wanted = profile.grounding, profile.sft_data
base, processor = load_profile_model(profile.model, root, BASE or profile.model.base, tower=not BASE)
encoder, tokenizer, base_path = encoding.Encoder(processor), processor.tokenizer, base.name_or_path
frame = encoder.frame
patients = wanted.patients_2d, wanted.patients_3d
made_of = short_hash(patients, profile.dataset.model_dump(), asdict(frame), __version__)
folder = data.data_folder(DATA) if DATA else root / "runs" / "data" / f"phantoms-{PROFILE}-{made_of}"
if not DATA:  # a finished set is taken as it is, and a stopped build goes on
    phantom_set(folder, *patients, frame, profile.dataset, workers=2)

# %%
limits = {"2d": wanted.records_2d, "3d": wanted.records_3d}
records = data.training_records(folder, limits, seed=SEED, temperature=wanted.mixing_temperature, **held)
images = data.images_from(folder, **held)
validation = data.training_records(folder, split="val", seed=SEED, **held)
validation = callbacks.balanced(validation, ours.free_running_questions)
print(f"{len(records):,} records to learn from, {len(validation)} of validation patients")
ranked = sorted(records[:500], key=lambda one: (len(one.boxes) > 0, one.family == "lesion analysis"))
examples = {one.dimension: one for one in ranked}  # the last of each dimension: about a lesion if possible
flat, deep = examples[min(examples)], examples[max(examples)]
display.show_record(deep, images(deep))


# %% [markdown]
# One training record: the slices that its box spans, and the reply that the model learns to write, with the true box.
# ## 2 · Which tokens carry the loss
# A grounded reply is **one** assistant turn in which text and images alternate. The model generates the text and the token `<|im_end|>` that ends
# the turn: these carry loss (blue in the strip). The question, the injected crops with their delimiters and the line break after the turn are given
# and carry none. We build this mask by hand; the library uses markers in the chat template, and must agree on every token.
# > **Predict first.** The strip below shows a question about one slice. What fraction of the tokens carries loss if the question is about a volume?

# %%
def encode_by_hand(messages):
    """Token ids of a conversation, and for each whether the model generates it, so that it carries loss."""
    before = processor.apply_chat_template([{"role": "user", "content": ""}], tokenize=False)
    parts = [(before.partition("<|im_start|>user")[0], False)]  # the system's turn
    for message in messages:
        generated = message["role"] == "assistant"
        parts.append((f"<|im_start|>{message['role']}\n", False))
        for part in message["content"]:
            if part["type"] == "image":
                width, height = frame.aligned(part["image"]).size
                count = (width // frame.factor) * (height // frame.factor)
                parts.append((f"<|vision_start|>{'<|image_pad|>' * count}<|vision_end|>", False))
            else:
                parts.append((part["text"], generated))
        parts += [("<|im_end|>", generated), ("\n", False)]
    ids, mask = zip(*[(token, own) for text, own in parts for token in tokenizer.encode(text)], strict=True)
    return encoding.Encoded(np.array(ids), np.array(mask), ())


taught = {"2d": ours.components_2d or ours.components, "3d": ours.components}
messages = {d: encoding.conversation(one, images(one), taught[d], frame) for d, one in examples.items()}
display.token_strip(encode_by_hand(messages[flat.dimension]), tokenizer)

# %%
encoded = {d: encoder(one) for d, one in messages.items()}
for d, one in encoded.items():
    by_hand = encode_by_hand(messages[d])
    assert np.array_equal(one.ids, by_hand.ids) and np.array_equal(one.loss_mask, by_hand.loss_mask)
    print(f"{d.upper()}: {len(one)} tokens, {one.loss_mask.mean():.0%} of them with loss")
display.token_strip(encoded[deep.dimension], tokenizer)


# %% [markdown]
# For a volume the fraction is smaller: every slice and every crop adds tokens that are given, while the text is about as long.
# ## 3 · The loss
# Let $y_1, \dots, y_T$ be the tokens of a conversation, $v$ its images, $m_t \in \{0, 1\}$ the loss mask, and $p_\theta$ the model with weights
# $\theta$. SFT minimizes the mean cross entropy
# $$\mathcal L(\theta) = -\,\frac{\sum_{t} m_t \, \log p_\theta(y_t \mid y_{<t},\, v)}{\sum_{t} m_t} ,$$
#
# where the output at position $t - 1$ predicts token $t$. The tokens before $t$ are those of the **written** reply, even where the model would have
# chosen others (*teacher forcing*). In a batch both sums run over all conversations.
# > **Predict first.** Which tokens does the base predict worst: words, boxes, or the letter of the answer?

# %%
def token_losses(model, batch):
    """The masked tokens of a batch, and of each its -log p given all tokens before it."""
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits[:, :-1]
    targets = batch["labels"][:, 1:]  # the output at t - 1 predicts token t; labels are -100 without loss
    kept = targets != -100
    log_p = logits[kept].float().log_softmax(-1)
    return targets[kept], -log_p.gather(1, targets[kept][:, None])[:, 0]


batch = encoding.Collator(processor)([encoded[flat.dimension]]).items()
batch = {name: value.to(base.device) for name, value in batch}
targets, losses = token_losses(base, batch)
torch.testing.assert_close(losses.mean(), base(**batch).loss.float(), rtol=1e-3, atol=1e-3)

# %%
words = np.array([tokenizer.decode([token]).strip() for token in targets])
kinds = np.where(np.cumsum((words == "<|box_start|>") * 1 - (words == "<|box_end|>")), "boxes ", "words ")
kinds[np.flatnonzero(words == "</think>") + 1] = "letter"
nats = pd.Series(losses.tolist())
figure = display.figures.AltFigure(9, 2.4, "Loss of each generated token of one reply under the base")
axes = figure.subplots()
for kind, color in zip(("words ", "boxes ", "letter"), display.figures.LINE_COLORS, strict=False):
    axes.bar(nats.index[kinds == kind], nats[kinds == kind], color=color)
axes.set_xticks(nats.index, words, rotation=90, fontsize=6)
axes.set(title="-log p in nats (blue: words, orange: boxes, green: letter)", xlim=(-1, len(words)))
print(nats.groupby(kinds).agg(["count", "mean", "sum"]).round(2))
print(f"guessing: {np.log(len(tokenizer)):.1f} nats; digits: {nats[np.char.isdigit(words)].mean():.1f}")
figure

# %% [markdown]
# Words cost most, more than a guess among all tokens of the vocabulary (the logarithm of their number): the base expects other words. Nor does it
# expect a letter after `</think>`, which is new to it. Once a box is opened, its digits cost little. The letter decides the answer but is one token
# among many, so the mean loss says little about the accuracy.
# ## 4 · What is trained
# As in the paper, the vision tower and the merger (the projector to the language model) stay frozen. The paper's tower has seen many images, that of
# the tiny base only plain shapes. So the tower of the shipped model (`model.tower`) takes its place. It was trained on slices and replies of these
# patients, validation included, but of no test patient: the validation curves of section 5 are therefore optimistic, the test of section 6 is not.
#
# **Aside: LoRA.** Training a 7B model in full needs several large GPUs. LoRA freezes each weight matrix $W$ and trains two small ones of rank $r$:
# $W' = W + \tfrac{\alpha}{r} B A$, with $B$ of size $d_\text{out} \times r$, $A$ of size $r \times d_\text{in}$ and a constant $\alpha$.
# $B$ starts at zero, so the first loss is that of the base. One step of the real trainer (`train_sft`, on TRL's `SFTTrainer`) with $r = 8$ therefore
# checks two numbers: the count of trained parameters, and our loss by hand.

# %%
trained, frozen = sft.freeze(base, ours.freeze_vision)
token_losses(base, batch)[1].mean().backward()
assert frozen == base.model.visual.num_parameters() * ours.freeze_vision
assert all((p.grad is not None) == p.requires_grad for p in base.parameters())
layers = [m for m in base.model.language_model.modules() if isinstance(m, torch.nn.Linear)]
small = "grounding.sft_lora_r=8, sft.max_steps=1, sft.logging_steps=1, sft.bf16=False"
one_step = load_profile(PROFILE, "\n".join([OVERRIDES, *changes, small]))
with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings(action="ignore"):
    sft.train_sft(base, processor, [flat], images, scratch, one_step)
    (line,) = callbacks.read_log(f"{scratch}/log.jsonl")
adapters = sum(p.numel() for p in base.parameters() if p.requires_grad)
assert adapters == sum(8 * (m.in_features + m.out_features) for m in layers)
assert abs(line["loss"] - losses.mean()) < (1e-3 if base.dtype == torch.float32 else 2e-2)
print(f"{trained:,} parameters learn, {adapters:,} with LoRA; {frozen:,} are frozen")
print(f"loss of the first step: trainer {line['loss']:.4f}, by hand {losses.mean():.4f}")

# %% [markdown]
# ## 5 · Training
# The loss takes the written reply as given, but a user gives none. So at intervals, questions about **validation** patients are asked *free-running*:
# the model generates a whole reply, with its own boxes and their injected crops, and answer and boxes are scored. The cell loads a finished run and
# resumes a stopped one; otherwise it trains. *Interrupt kernel* saves a checkpoint first. (A 7B model is trained by `python -m unireason_lib sft`
# under `accelerate launch`; give the folder of its run as `RUN`.) Muon updates the matrices, AdamW the rest (notebook 90).
# > **Predict first.** Which ends lowest: token accuracy with the reply given, IoU of free-running boxes, or accuracy of free-running answers?

# %%
settings, rounds = checkpoints.run_settings(profile, "sft"), profile.generation.max_rounds
start = [model_identity(str(path)) for path in (base_path, root / (profile.model.tower or base_path))]
decides = short_hash(settings, [(one.id, one.reply) for one in records], start)
out = root / "runs" / "sft" / (RUN or f"{PROFILE}-{ours.components.replace(' ', '-')}-seed{SEED}-{decides}")
how = Settings(profile.generation.max_new_tokens, rounds * encoding.injects(ours.components))
print(f"{out.relative_to(root)}:", "finished before" if (out / "model").is_dir() else "trains now")
base, _ = load_profile_model(profile.model, root, base_path, tower=not BASE)
names = "num_train_epochs", "per_device_train_batch_size", "learning_rate"
print({name: getattr(profile.sft, name) for name in names}, "Muon:", ours.muon_learning_rate)
tests = callbacks.FreeRunning(validation, ours.free_running_steps, images, how, ours.keep_best, print)
tuned_path = sft.train_sft(base, processor, records, images, out, profile, callbacks=[tests])

# %%
log, free = (callbacks.read_log(out / "log.jsonl", key) for key in ("loss", "free_running"))
curves = {"loss / first loss": [(one["step"], one["loss"] / log[0]["loss"]) for one in log]}
curves |= {"training tokens, reply given": [(one["step"], one["mean_token_accuracy"]) for one in log]}
for key, label in {"accuracy": "accuracy, free-running", "iou": "IoU, free-running"}.items():
    for d in free[-1]["free_running"]:
        points = [(one["step"], one["free_running"][d][key]) for one in free]
        curves |= {f"{d.upper()} {label}": points} if points[-1][1] is not None else {}
print("at the end:", {name: round(points[-1][1], 2) for name, points in curves.items()})
chance = np.mean([1 / len(one.options) for one in validation])
display.plot_lines(curves, "step", "proportion, IoU", reference=("answers by chance", chance))

# %% [markdown]
# Token accuracy ends highest: it is measured on training replies, with the right tokens before each one; free-running, an early error misleads all
# that follows ([exposure bias](https://arxiv.org/abs/1506.03099)). In 2D the answers end lowest, in 3D the boxes, though IoU and accuracy have
# different floors. With so few questions intervals are wide (curves can touch chance and leave it again), so a larger test follows.
# ## 6 · Before and after, and the shipped model
# The base, this run, and the model of the profile (*shipped*: trained likewise for longer, finally with its tower; `data/README.md`) are asked
# about patients of the **test** split. The base has its own tower, this run the shipped one: they differ in tower **and** fine-tuning.
# Two baselines never look: chance, and *question-only*, the option that was most often right in training for this kind of question.
# *Format compliance*: one closed thought, valid boxes, an answer. *Rationale-answer consistency*: among replies whose reasoning names an option, the
# proportion that answers with the last one named; such a reply can still be wrong. Intervals are 95 %, over patients.

# %%
size, prior_studies = profile.dataset.shape, min(300, profile.dataset.prior_studies)
more = held if DATA else {"size": size, "prior_studies": prior_studies}
test = open_benchmark(str(folder) if DATA else "phantom", limit=ours.test_questions, frame=frame, **more)
shipped = root / profile.model.path  # a folder of the project, else a hub id
paths = {"base": base_path, "this run": str(checkpoints.whole_checkpoint(tuned_path))}
paths["shipped"] = str(shipped) if shipped.is_dir() else profile.model.path
lines, tables = {}, {}
for name, path in paths.items():
    model = Checkpoint(path, dtype=profile.model.dtype, device=profile.model.device)
    file = out / f"test-{short_hash(dict(test.identity), asdict(how), model.identity())}.jsonl"
    evaluate(test, file, model, settings=how, batch_size=profile.evaluation.batch_size, quiet=True)
    lines[name] = {line["id"]: line for line in read_results(file)}
    tables[name] = as_table(lines[name][item.id] for item in test)


# %%
def measured(name, measure, label, scale=100):
    """Row of a figure -> mean of a measure and the ends of its interval, by dimension where it applies."""
    means = summary(tables[name]).query("family == 'all' and dimension != 'all'").set_index("dimension")
    means = means[[measure, f"{measure}_low", f"{measure}_high"]].dropna(how="all")
    return {f"{d.upper()} {label}": tuple(scale * row) for d, row in means.iterrows()}


percent = {"question-only baseline": measured("base", "question_only", "accuracy")}
for name in tables:
    percent[name] = measured(name, "accuracy", "accuracy") | measured(name, "format", "format")
    percent[name] |= measured(name, "followed", "consistency")
for a, b in (("base", "this run"), ("this run", "shipped")):
    for d, before in tables[a].groupby("dimension"):
        print(f"{d.upper()}, {b} against {a}: {compare(before, tables[b].query('dimension == @d')).text()}")
chance = 100 * np.mean([1 / len(item.options) for item in test])
display.plot_intervals(percent, f"% of {len(test)} questions", reference=("chance (accuracy)", chance))

# %% [markdown]
# If the printed interval of a difference contains 0, this test cannot tell the two models apart. A model whose interval lies above that of the
# question-only baseline probably uses the images (notebook 06 tests it); the base often names no option, so it can be below chance. The floor of the
# IoU is that of the *average box*, the mean of a structure's boxes in other patients.

# %%
overlap = {"average box (floor)": measured("base", "iou_average_box", "IoU", 1)}
overlap |= {name: measured(name, "iou_all", "IoU", 1) for name in tables}
for name in ("this run", "shipped"):
    for row, (value, *ends) in {**percent[name], **overlap[name]}.items():
        publish(f"SFT, {name}: {row}", value, "" if "IoU" in row else "%", interval=tuple(ends))
display.plot_intervals(overlap, f"IoU with the true boxes, {tables['base']['iou_all'].count()} questions")


# %% [markdown]
# ## 7 · Replies, right and wrong
# The base and this run answer the first lesion question in 2D and in 3D, not chosen by outcome; the last reply shown is this run's first wrong one.
# *No slice*: a rectangle in a volume fetches nothing. Only text in `<think>` counts as reasoning; the base writes none. Read the reasoning:
# consistency checks only the last option that it names, not its logic.
# > **Predict first.** Which right answer below cannot come from its box? Which reasoning contradicts its own finding?

# %%
def comment(row):
    """Whether a reply is right, how well its boxes fit, and whether it answers what its reasoning ends on."""
    chosen = row["prediction"] if pd.notna(row["prediction"]) else "no option"
    text = f"Right: {chosen}." if row["correct"] else f"Wrong: {chosen}, not {row['truth']}."
    text += f" IoU with the true boxes: {row['iou_all']:.2f}." if pd.notna(row["iou_all"]) else ""
    ends = {1.0: "The reasoning ends on it.", 0.0: "The reasoning ends on another option."}
    return f"{text} {ends.get(row['followed'], 'The reasoning names no option.')}"


wrong = tables["this run"].query("correct == 0")
consistent = (wrong["followed"] == 1).sum()
print(f"this run: {len(wrong)} of {len(test)} answers are wrong; {consistent} of them follow their reasoning")
lesions_first = sorted(test, key=lambda item: item.family != "lesion analysis")
firsts = [next(i for i in lesions_first if i.dimension == d) for d in sorted({i.dimension for i in test})]
replies = [(name, item) for item in firsts for name in ("base", "this run")]
replies += [("this run", item) for item in test if item.id in set(wrong["id"])][:1]
for name, item in replies:
    print(f"{name}, {item.dimension.upper()}. {comment(tables[name].set_index('id').loc[item.id])}")
    show(display.show_trace(lines[name][item.id], item.load(), frame=frame))

# %% [markdown]
# A right answer with an IoU near 0 was luck: the box shows something else. Reasoning that finds *brighter* and ends on *hypodense* (darker)
# contradicts itself, though it agrees with its answer. **Next**: can a reward for the answer repair this? [Notebook 05](05_outcome_rl.ipynb).
# ## Check yourself

# %%
assert all(tokenizer.decode(one.ids[one.loss_mask]).endswith("<|im_end|>") for one in encoded.values())
assert free[-1]["step"] >= log[-1]["step"], "the last free-running test is of the finished model"
assert not set(records.rows["patient"]) & {one.patient for one in (*validation, *test) if one.patient}
if PROFILE != "smoke" and (OVERRIDES, changes, BASE, DATA) == ("", ["sft.seed=0"], "", ""):
    assert percent["this run"]["2D accuracy"][0] > percent["base"]["2D accuracy"][0]
print("all checks passed")

# %% [markdown]
# ## Exercises ([solutions](solutions/04_sft.py))
# 1. Include the injected tokens in the loss by mistake, and train some steps on one record with many crops. How does the reported loss compare? Why?
# 2. Give the model the written reasoning up to `</think>`. How often is the next token the right letter? Compare with the free-running accuracy.
# 3. The loss is a mean over all tokens of a batch. How much more does the longest reply weigh than the shortest? What changes if all weigh the same?
