# %% [markdown]
# # 01 · Dataset construction: from segmentation masks to questions, grounded reasoning and Parquet
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/01_dataset_construction.ipynb)
#
# Scans with masks are plentiful, reasoning with boxes is scarce: this notebook computes the latter from the former. After it you can
# - turn a scan with a mask into multiple-choice questions of six families whose answers are measured;
# - measure how many of them can be answered without any image, and remove what makes that possible;
# - write reasoning whose boxes are true, refuse reasoning whose boxes are not, and build a data set split by patient.
#
# **Time** about a minute on 2 CPU cores; a GPU changes nothing. **Needs** no other notebook. **Real**: the brain MRI (MNI152
# template, an average of 152 people) with the Harvard-Oxford atlas. **Synthetic**: the torso phantoms, whose truth is known
# exactly, and all questions and reasoning. *Not for clinical use.*
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740) (the data set that this one follows);
# [SynthSeg](https://arxiv.org/abs/2107.09559) (how the phantoms are randomized); [VQA v2](https://arxiv.org/abs/1612.00837) and
# [hypothesis-only baselines](https://arxiv.org/abs/1805.01042) (answers without looking).

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
pipeline_figure("dataset construction")

# %% [markdown]
# ## 1 · A scan and its masks
# A mask says for every voxel which structure it belongs to. A *source* reads the layout of one collection
# ([TotalSegmentator](https://arxiv.org/abs/2208.05868), Medical Segmentation Decathlon, your own folder, ...) into a `Study`: scan, label map,
# measured structures. Look at the masks over their scan first: a shifted or mirrored mask spoils all later steps.

# %%
import numpy as np

from unireason_lib.dataset import brain_study, phantom, phantom_slice
from unireason_lib.dataset.view import View
from unireason_lib.display import show_images

brain, torso = brain_study(), phantom(902, shape=(16, 128, 128)).slice(10)
print(f"{brain.id}: {brain.scan.shape} voxels, structures: {len(brain.structures)}")
plane, overlay = (np.array(View(torso).images()[0]) for _ in range(2))
for name, color in {"liver": (0, 114, 178), "spine": (230, 159, 0), "aorta": (204, 0, 120)}.items():
    mask = torso.mask(torso.find(name))
    overlay[mask] = (overlay[mask] + np.array(color)) // 2
show_images([plane, overlay], titles=["scan", "liver blue, spine orange, aorta pink"], letters=["RLAP"] * 2)

# %% [markdown]
# The masks fit. The letters are directions in the patient: R right and L left, A front (anterior), P back (posterior). The liver lies on the right. A
# lesion is *hyperdense* if it is brighter than its *host*, the organ that it lies in, *hypodense* if darker, *isodense* if alike.
# ## 2 · From a mask to a box in the text
# A box is the smallest cuboid around a structure, half open like a Python slice. The model sees slices of a chosen size, which its processor
# resizes once more, and a box must be written in **those** pixels: $x' = \operatorname{round}(x\, \frac{n'}{n} \frac{n''}{n'})$ for an axis with
# $n$ voxels, $n'$ pixels in the slice and $n''$ after the processor ($n'' = n'$ along z). **Predict first:** on which axis does rounding cost most?

# %%
from unireason_lib.boxes import Box3D
from unireason_lib.imaging import QWEN_FRAME, label_boxes

thalamus, size = brain.find("left thalamus"), tuple(profile.serialization.size)
voxels = np.nonzero(brain.labels == thalamus.label)[::-1]  # along x, y, z
edges = np.array([[axis.min() for axis in voxels], [axis.max() + 1 for axis in voxels]])
assert Box3D(*edges.ravel()) == label_boxes(brain.labels)[thalamus.label] == thalamus.box
factors = np.divide([size[0], *QWEN_FRAME.size(*size[1:])], brain.shape)[::-1]
written = View(brain, size, frame=QWEN_FRAME).box(thalamus)
assert Box3D(*(edges * factors).ravel()).round() == written
overlap = written.scale(*(1 / factors)).iou(thalamus.box)
print(f"voxels {edges.ravel().tolist()}, written {written.as_tuple()}; IoU after rounding {overlap:.2f}")

# %% [markdown]
# On z (the third and sixth numbers): rounding moves an edge by up to half a slice, and the structure spans only a few. Small structures lose most.
# ## 3 · Six families of questions
# Questions are answered by measurement, from boxes, extents, centroids and attributes: exactly one option is true, near ties are never asked
# about, and left and right are the patient's. Below, ✓ marks the answer, and the boxes show what the reasoning has to refer to. The slice of a
# phantom passes through a lesion if the phantom has one, so lesions are more frequent here than in slices of real patients.

# %%
from unireason_lib.dataset.questions import FAMILIES, ask
from unireason_lib.imaging import ProcessorFrame

FRAME = ProcessorFrame(patch_size=profile.model.patch_size, merge_size=2, min_pixels=32**2, max_pixels=128**2)
small = tuple(profile.dataset.shape)
patients = [View(phantom_slice(k), small, frame=FRAME) for k in range(profile.dataset.patients_2d)]
pairs = [(view, question) for view in patients[:12] for question in ask(view, seed=SEED) if question.evidence]
examples = {question.family: (view, question) for view, question in reversed(pairs)}  # the first of each
titles = []
for family in FAMILIES:
    question = examples[family][1]
    options = [f"{letter}. {o}{' ✓' * (letter == question.answer)}" for letter, o in question.options.items()]
    titles.append("\n".join([family.upper(), question.text, *options]))
images = [FRAME.aligned(examples[family][0].images()[0]) for family in FAMILIES]
boxes = [[view.box(one) for one in question.evidence] for view, question in map(examples.get, FAMILIES)]
show_images(images, boxes, titles, columns=3, letters=["RLAP"] * len(images))

# %% [markdown]
# ## 4 · How many can be answered without any image?
# In nearly everybody the liver is on the right: whoever knows that can answer without looking, and a model that learns from such questions learns
# to read, not to see. The **question-only baseline** never sees an image. It scores option $o_k$ of question $q$ by features of the words,
# $p_k \propto \exp(w \cdot f(q, o_k))$; it learns $w$ on some patients and answers for the others. **Predict first:** with four options, how often
# does it choose the right one?

# %%
from unireason_lib.dataset.questions import learn_prior, question_only_baseline


def ask_all(prior, per_family=profile.dataset.per_family):
    """Questions about all patients, each kept or dropped by an answer prior."""
    return [q for view in patients for q in ask(view, per_family=per_family, seed=SEED, prior=prior)]


plain = ask_all(None)
scores = {"as they come": question_only_baseline(plain)}
before = scores["as they come"]["all"]
print(f"{before.questions} questions about {len(set(before.patients))} patients, {before.accuracy:.1%} right")

# %% [markdown]
# Far more than one in four, without any image. How precise is this number? Patients are sampled, not questions, and answers about one patient may
# be right or wrong together. With $e_i$ the deviation of answer $i$ (1 or 0) from the mean $\bar y$ of all $n$, summed within each of $G$ patients,
# $$\mathrm{SE}^2 = \frac{G}{G - 1}\, \frac{1}{n^2} \sum_{g=1}^{G} \Big(\sum_{i \in g} e_i\Big)^2,$$
# and Wilson's interval (notebook 00) is computed for $\bar y(1 - \bar y)/\mathrm{SE}^2$ independent questions, the number that would give the same
# error, with the quantile of Student's $t$ for $G - 1$ degrees of freedom in place of $z = 1.96$.

# %%
from unireason_lib.evaluation.statistics import interval, wilson


def by_patient(score):
    """Accuracy of a question-only score with its 95 % interval over patients, in percent."""
    result = interval(score.correct[None], score.patients)
    return tuple(100 * x for x in (result.value, result.low, result.high))


mean, n, (names, group) = before.accuracy, before.questions, np.unique(before.patients, return_inverse=True)
groups, sums = len(names), np.bincount(group, before.correct - mean)
error = np.sqrt(groups / (groups - 1) * (sums**2).sum()) / n
worth = min(n, mean * (1 - mean) / error**2)
assert np.allclose(by_patient(before)[1:], 100 * np.array(wilson(mean * worth, worth, groups - 1)))
print("{:.1f} %, 95 % interval by patient {:.1f} to {:.1f} %".format(*by_patient(before)))

# %% [markdown]
# ### Debiasing with an answer prior
# An **answer prior** counts, over many patients, how often each value of a fact (such as the direction between two organs) is true. If the four options
# of a question are true in proportions $P_1 \dots P_4$ of the patients and option $k$ is the right one, the question is kept with probability
# $$\text{keep}(k) = \frac{\min_j P_j}{P_k} \quad\Rightarrow\quad P(k \mid \text{kept}) \propto P_k \cdot \frac{\min_j P_j}{P_k} = \min_j P_j$$
# which is the same for every $k$: given the words, all options are equally likely. A fact whose rarest value hardly ever occurs is never asked
# about. **Predict first:** with $P = (0.55, 0.25, 0.15, 0.05)$, what fraction of the questions is kept?

# %%
from unireason_lib.dataset.questions import Fact, keep_probability

P, rng = np.array([0.55, 0.25, 0.15, 0.05]), np.random.default_rng(SEED)
truths = rng.choice(4, 20_000, p=P)
kept = truths[rng.random(len(truths)) < P.min() / P[truths]]
assert all(keep_probability([P[k], *np.delete(P, k)]) == P.min() / P[k] for k in range(4))
print(f"kept: {len(kept) / len(truths):.1%}, by the formula {4 * P.min():.0%};", end=" ")
print("truths among those kept:", (np.bincount(kept) / len(kept)).round(2))
prior = learn_prior(patients[: profile.dataset.prior_studies], seed=SEED)
for pair in (("the liver", "the spleen"), ("the aorta", "the lesion")):
    print(" seen from ".join(pair), prior.counts.get(Fact("relation", "2d", (0, 1), pair)))

# %% [markdown]
# The two signs are directions along x and y: with `-`, the centre of the first lies further to the patient's right, or further to the front. For the
# liver and the spleen they are the same in nearly everybody; for a lesion one has to look. We ask again, with the prior of these and of other patients:

# %%
from unireason_lib.display import plot_intervals

others = (View(phantom_slice(10_000 + k), small, frame=FRAME) for k in range(profile.dataset.prior_studies))
priors = {"prior of the same patients": prior, "prior of other patients": learn_prior(others, seed=SEED)}
for name, learned in priors.items():
    debiased = ask_all(learned)
    scores[name] = question_only_baseline(debiased)
    print(f"{name}: {len(debiased)} of {len(plain)} questions are kept")
percent = {name: {row: by_patient(one) for row, one in part.items()} for name, part in scores.items()}
for name, values in percent.items():
    print(f"{name}: above chance are", [row for row, (_, low, _) in values.items() if low > 25])
    value, *ends = values["all"]
    publish(f"question-only baseline, {name}", value, "%", interval=tuple(ends), note="chance is 25 %")
plot_intervals(percent, "right without the image, % (95 % intervals by patient)", reference=("chance", 25))

# %% [markdown]
# From the words alone, the questions as they come are answered far better than by chance. With the prior of other patients, an interval that contains
# 25 % gives no sign that the baseline learnt anything; a stronger one might. The price: many questions are dropped, and in the rest rare anatomy is
# more frequent than in patients. A score below chance is no skill: a prior fitted to the same patients balances their answers, so that what the
# baseline learns from some of them is reversed in the others. A family that stays above chance with the other prior (which counts another number of
# patients) may owe that to values that hardly occurred among those, to facts treated as independent, or to chance, as there are seven intervals.
# ## 5 · Reasoning with boxes
# A *writer* turns a question into reasoning: it names structures; the coordinates are filled in from the masks, never by the writer. The built-in
# writer composes sentences from templates. Question and reasoning together are a *record*: text and references, no pixels.

# %%
from unireason_lib.dataset.rationales import TemplateWriter
from unireason_lib.dataset.schema import Record
from unireason_lib.display import show_record

writer, volume = TemplateWriter(seed=SEED), View(phantom(902), small, frame=FRAME)
view, question = examples["lesion analysis"]
record = Record.make(view, question, writer.write(question, view), writer=writer.name, seed=SEED)
(question_3d,) = ask(volume, families=["spatial relationship"], seed=SEED)
written_3d = writer.write(question_3d, volume)
show_record(Record.make(volume, question_3d, written_3d, writer=writer.name, seed=SEED), volume.images())

# %% [markdown]
# In a volume a box is a cuboid, and each slice that it spans gives one crop (at most six are shown). The reply states edges and middles, so each step
# can be checked: y grows to the back and z to the head, so the structure with the smaller middle lies further anterior (y) or inferior (z).
# **A language model as annotator** (`--writer llm`; the authors used GPT-4o) writes more freely. It is told what is true, and it refers to structures
# by tags, never by coordinates. A refused reply is sent back once with the reasons; if that fails, its record is refused and counted. Nothing is sent
# here; below are a prompt and two replies that we made up.

# %%
import json

from unireason_lib.dataset.annotator import prompt_for, read_answer

print(prompt_for(question, view)[-1]["content"], "\n")
lesion, wrong = question.evidence[0].name, next(o for o in question.options.values() if o != question.truth)
good = f"There is the {lesion} [[{lesion}]]. Looking closely, the finding is: {question.truth}."
for reasoning in (good, f"Something at [50,50,60,60] looks odd. The finding is: {wrong}."):
    reply = json.dumps({"reasoning": reasoning, "answer": question.answer})
    rationale, problems = read_answer(reply, "stop", question, view)
    print(f"accepted: {rationale.text}" if rationale else "refused: " + "; ".join(problems))

# %% [markdown]
# ## 6 · Checks
# Every record is checked, whoever wrote it: alone, and against its study, because a box can be consistent with its record and still be wrong. We
# break a good record in four ways.

# %%
from dataclasses import replace

from unireason_lib.boxes import format_box
from unireason_lib.dataset.checks import problems_of

box, (label, _) = record.boxes[0], record.evidence[0]
moved = replace(box, x1=box.x1 + 2)
other = next(letter for letter in record.options if letter != record.answer)
untrue = replace(record, reply=record.reply.replace(format_box(box), format_box(moved)))
broken = {
    "box moved in the text": untrue,
    "box moved everywhere": replace(untrue, evidence=((label, moved.as_tuple()),)),
    "tag left open": replace(record, reply=record.reply.replace("<|box_end|>", "", 1)),
    "another letter": replace(record, reply=record.reply.replace(f">{record.answer}.", f">{other}.")),
}
assert not problems_of(record, view, question)
for name, one in broken.items():
    alone, with_study = ([reason for reason, _ in problems_of(one, *more)] for more in ((), (view, question)))
    print(f"{name}: alone {alone or 'it passes'}, with its study {with_study}")

# %% [markdown]
# The lists name the reasons for refusal. A box that is wrong both in the text and in the record's evidence passes alone: only the mask exposes it.
# ## 7 · Splits by patient, and copies under another name
# If slices of one person were in both training and test, the test would measure memorization. So **patients** are split, by a hash of their
# name. The same scan may appear under two names, so each scan gets a **perceptual hash**: one bit for each pair of neighbouring blocks, which is 1
# where the mean of the second is clearly higher. Scans that differ in at most `TOLERANCE` bits stay in one split. **Predict first:** which of
# these modified copies of one brain will be recognized?

# %%
from unireason_lib.dataset.splits import TOLERANCE, perceptual_hash

original = brain.scan.array.astype(np.float32)
noise = rng.normal(0, 0.02 * original.max(), original.shape)
copies = {"brighter, noisier": 1.5 * original + 40 + noise, "half the voxels": original[:, ::2, ::2]}
copies |= {"moved by a voxel": np.roll(original, 1, axis=2), "border cut off": original[:, 12:-12, 12:-12]}
copies |= {"mirrored": original[:, :, ::-1], "a torso": phantom(902).scan.array}
first, *codes = (np.frombuffer(perceptual_hash(scan), np.uint8) for scan in (original, *copies.values()))
distance = {name: np.bitwise_count(first ^ code).sum() for name, code in zip(copies, codes, strict=True)}
other_torso = np.frombuffer(perceptual_hash(phantom(903).scan.array), np.uint8)
distance["two torsos"] = np.bitwise_count(codes[-1] ^ other_torso).sum()
print(f"a copy: at most {TOLERANCE} bits")
for name, bits in distance.items():
    print(f"{name}: {bits} of {8 * len(first)} bits differ", "-> a copy" * bool(bits <= TOLERANCE))

# %% [markdown]
# A hash finds copies but cannot prove that there are none: a cropped copy is missed because all its blocks have moved. A mirrored one is
# missed only narrowly, since a brain is nearly symmetric. A larger tolerance would find more copies, but could also join scans of different patients.
# ## 8 · The whole build
# In a shell: `python -m unireason_lib build --source phantom --out DIR`; it resumes if killed. `DIR` then holds Parquet files like the authors'.

# %%
import shutil

from unireason_lib.dataset.build import BuildConfig, build
from unireason_lib.dataset.sources import SourceSpec

counts, folder = profile.dataset, project_root() / "runs" / f"dataset-{PROFILE}"
flat = SourceSpec("phantom", None, {"dimension": "2d", "count": counts.patients_2d})
deep = SourceSpec("phantom", None, {"dimension": "3d", "start": 500_000, "count": counts.patients_3d})
how = {"size": small, "frame": FRAME, "per_family": counts.per_family, "prior_studies": counts.prior_studies}
config = BuildConfig((flat, deep), **how, seed=SEED, fractions={"train": 0.8, "val": 0.1, "test": 0.1})
shutil.rmtree(folder, ignore_errors=True)  # a finished set would be taken as it is
manifest = build(config, folder).manifest
print(manifest["records"], "records:", manifest["counts"]["split"], "refused:", manifest["refused"])

# %%
from collections import Counter

from datasets import load_dataset

rows = load_dataset(str(folder), "sft")
print(rows["train"][0]["messages"][-1]["content"])
records = [Record.from_row(row) for part in rows.values() for row in part]
built = question_only_baseline(records)["all"]
value, *ends = by_patient(built)
publish("records built", manifest["records"], note=f"{len({r.patient for r in records})} phantom patients")
publish("question-only baseline, built set", value, "%", interval=tuple(ends), note="chance is 25 %")
for name in ("answer", "family", "dimension"):  # right letters must be even
    print(name, dict(sorted(Counter(getattr(r, name) for r in records).items())))

# %% [markdown]
# Splits are only roughly 80 : 10 : 10, because the hash of each patient decides. Letters are about equally frequent, so always choosing one gains
# nothing; families are not, as the prior drops more of some (exercise 2). The reply has no crops: training cuts them from the image (notebook 04).
# ## Check yourself

# %%
assert {r.family for r in records} <= set(FAMILIES) and not any(map(problems_of, records))
assert len({(r.patient, r.split) for r in records}) == len({r.patient for r in records})  # one split each
assert [name for name, bits in distance.items() if bits <= TOLERANCE] == list(copies)[:3]
assert ends[0] < 30, "without images the built set is hardly answered better than by chance"
assert PROFILE == "smoke" or percent["as they come"]["all"][1] > 40
print("all checks passed")

# %% [markdown]
# **Next**: [02](02_slice_serialization.ipynb) turns scan files into the slices that a model reads.
# ## Exercises ([solutions](solutions/01_dataset_construction.py))
# 1. Write a question-only baseline of your own: of the options, take the one that was right most often for other patients in questions of the same
#    kind that name the same structures. Use only `q.kind`, `q.text` and `q.options`, since `q.names` and `q.evidence` depend on the answer. How close
#    does it come to ours, before and after debiasing?
# 2. Of which kinds of questions does the prior remove most, and why?
# 3. Put NIfTI scans of your own into `images/`, label maps into `labels/` and a `names.json` beside them (or store two phantoms, as in section 3 of
#    notebook 02), and generate questions about them.
