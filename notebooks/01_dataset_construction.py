# %% [markdown]
# # 01 · Dataset construction: from masks to questions, grounded reasoning and Parquet
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/01_dataset_construction.ipynb)
#
# After this notebook you can
# - turn any scan with a mask into multiple-choice questions of six families whose answers are certain;
# - write reasoning that points at its evidence with true boxes, and refuse reasoning that does not;
# - build a data set that splits by patient, is the same on every machine, and can't be answered with closed eyes.
#
# **Where we stand.** This is the first step of the pipeline: what is built here is what notebooks 04 to 07 learn from and are
# measured on.
#
# **Time** about two minutes on 2 CPU cores, no GPU needed. **Needs** nothing from earlier notebooks. The brain MRI is real (the
# MNI152 template, an average of 152 people, with the Harvard-Oxford labels); the torsos are made phantoms whose truth is known
# exactly. *Nothing here is for clinical use.*

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
pipeline_figure("dataset construction")

# %% [markdown]
# ## 1 · A study: a scan and what is in it
#
# A **source** yields studies one at a time: a scan, a label map, and the structures that were measured from it. Eight readers
# ship (phantoms, MNI brain, SA-Med2D-20M, M3D-Seg, TotalSegmentator, the Medical Segmentation Decathlon, plain folders);
# whatever they read becomes the same `Study`. First the real brain:

# %%
from unireason_lib.dataset.sources import SOURCES, open_source

print("sources:", ", ".join(SOURCES))
brain = next(iter(open_source("brain")))
print(f"{brain.id}: {brain.modality}, {brain.scan.shape} voxels, {len(brain.structures)} structures")
for structure in brain.structures[:4]:
    print(f"  {structure.name:<22}{structure.side or '-':<7}box {structure.box.as_tuple()}")

# %% [markdown]
# Then two made torsos: one slice of one patient, and the volume of another. A phantom is a function of a seed, so everybody has
# the same patients. Its lesions have an attribute that matters later: a **texture** one pixel wide.

# %%
from unireason_lib.dataset import phantom, phantom_slice

flat = next(s for k in range(SEED, SEED + 50) if len((s := phantom_slice(k)).lesions) == 1)
deep = next(s for k in range(SEED + 900, SEED + 950) if len((s := phantom(k)).lesions) == 2)
for study in (flat, deep):
    lesion = study.lesions[0]
    print(f"{study.id}: {len(study.structures)} structures; {lesion.name}: {dict(lesion.attributes)}")

# %% [markdown]
# A **mask** says which voxels belong to what. Here are picture and mask side by side, both as they lie in the file.

# %%
import numpy as np

from unireason_lib.dataset.view import View
from unireason_lib.display import show_pictures
from unireason_lib.imaging import ProcessorFrame

FRAME = ProcessorFrame(patch_size=8, merge_size=2, min_pixels=32 * 32, max_pixels=128 * 128)
size = tuple(profile.dataset.size)
views = {study.id: View(study, size, None, FRAME) for study in (flat, deep)}


# %%
def mask_picture(labels):
    """A label map in grey levels that differ from neighbour to neighbour."""
    return (np.asarray(labels, np.uint8) * 89 % 251).astype(np.uint8)


middle = deep.scan.shape[0] // 2
scans = [views[flat.id].images()[0], views[deep.id].images()[middle]]
masks = [mask_picture(flat.labels), mask_picture(np.asarray(deep.labels)[middle])]
show_pictures(
    [scans[0], masks[0], scans[1], masks[1]],
    titles=["slice", "its mask", f"volume, slice {middle}", "its mask"],
)

# %% [markdown]
# And the real brain, laid out as 8 slices:

# %%
views[brain.id] = View(brain, (8, 128, 128), None, FRAME)
here = (3, 5)
planes = [int((k + 0.5) / 8 * brain.scan.shape[0]) for k in here]
shown = [views[brain.id].images()[k] for k in here]
labelled = [mask_picture(np.asarray(brain.labels)[z]) for z in planes]
show_pictures(
    [shown[0], labelled[0], shown[1], labelled[1]],
    titles=[f"brain, slice {here[0]}", "its mask", f"slice {here[1]}", "its mask"],
)

# %% [markdown]
# ## 2 · From mask to box, in the pixels that the model sees
#
# A box is the smallest rectangle (or cuboid) around a structure's voxels. Once by hand:

# %%
name = flat.lesions[0].name
rows, columns = np.nonzero(np.asarray(flat.labels) == flat.find(name).label)
by_hand = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
assert by_hand == flat.find(name).box.as_tuple()
print(f"{name}: x {by_hand[0]} to {by_hand[2]}, y {by_hand[1]} to {by_hand[3]} (half open)")

# %% [markdown]
# The model does not see voxels. A volume is resampled to slices, and the processor resizes every picture once more; a box must be
# written in **those** pixels, or it points at the wrong place. A `View` owns that path. By hand it is two scalings:

# %%
big = View(phantom(SEED + 900, (24, 200, 160)), (8, 100, 80), None, FRAME)
box = big.study.structures[3].box
voxels = np.array(big.study.scan.shape[::-1])  # x, y, z
serialized = np.array((80, 100, 8))
shown = FRAME.size(100, 80)
factor = serialized / voxels * (shown[1] / 80, shown[0] / 100, 1)
corners = [np.array(box.as_tuple()[k : k + 3]) * factor for k in (0, 3)]
written = big.box(big.study.structures[3])
print(f"voxels {box.as_tuple()} -> shown at {shown[1]} x {shown[0]} -> written {written.as_tuple()}")
assert np.abs(np.concatenate(corners) - written.as_tuple()).max() <= 0.5 + 1e-9  # rounded to whole pixels

# %%
from unireason_lib.display import show_slices

drawn = {s.name: views[deep.id].box(s) for s in (*deep.lesions, deep.find("liver"))}
show_slices(views[deep.id].images(), list(drawn.values()), names=list(drawn), columns=4)

# %%
names = ["left thalamus", "right thalamus", "brain stem", "left hippocampus"]
drawn = {name: views[brain.id].box(brain.find(name)) for name in names}
show_slices(views[brain.id].images(), list(drawn.values()), names=names, columns=4, orientation=True)

# %% [markdown]
# ## 3 · Six families of questions
#
# From boxes, volumes, centroids and attributes follow questions whose answer needs no opinion. `ask` draws them; the same study
# gives the same questions whatever else is built beside it. One of each family, about the slice:

# %%
from unireason_lib.dataset.questions import FAMILIES, ask


def one_of_each(make, start):
    """The first question of every family, from as many patients as it takes."""
    found = {}
    for k in range(start, start + 60):
        study = make(k)
        view = View(study, size, None, FRAME)
        for question in ask(study, view=view, seed=SEED):
            found.setdefault(question.family, (question, view))
        if len(found) == len(FAMILIES):
            break
    return [found[family] for family in FAMILIES]


in_2d, in_3d = one_of_each(phantom_slice, SEED), one_of_each(phantom, SEED + 900)


# %%
def words(question):
    """A question as a person reads it, the right option marked."""
    options = [
        f"  {'>' if k == question.answer else ' '} {k}. {text}" for k, text in question.options.items()
    ]
    return "\n".join([f"{question.family}: {question.text}", *options])


print("\n\n".join(words(question) for question, _ in in_2d))

# %% [markdown]
# Their evidence is what the reasoning will have to point at (a question about something absent has none):

# %%
show_pictures(
    [view.images()[0] for _, view in in_2d],
    [[view.box(s) for s in question.evidence] for question, view in in_2d],
    titles=[question.family for question, _ in in_2d],
    columns=3,
)

# %% [markdown]
# And about volumes. Directions are the patient's, sizes are physical (mm, cm³), near-ties are left out.

# %%
print("\n\n".join(words(question) for question, _ in in_3d))

# %%
question, view = next((q, v) for q, v in in_3d if len(q.evidence) == 2)
show_slices(
    view.images(),
    [view.box(s) for s in question.evidence],
    names=[s.name for s in question.evidence],
    columns=4,
)

# %% [markdown]
# And about the real brain (it has no lesions and nothing is missing, so two families have nothing to ask):

# %%
of_brain = {q.family: q for q in ask(brain, view=views[brain.id], seed=SEED)}
print("\n\n".join(words(question) for question in of_brain.values()))

# %% [markdown]
# ## 4 · Could it be answered with closed eyes?
#
# The liver is on the right and larger than a kidney. A question about such facts teaches reading, not looking. The **blind
# audit** trains a classifier on nothing but the words and tests it on other patients. On questions as they come it does well:

# %%
from unireason_lib.dataset.audit import blind_audit
from unireason_lib.dataset.questions import take_census

patients = [phantom_slice(k) for k in range(profile.dataset.patients_2d)]


def asked(census):
    """Questions about all patients."""
    return [
        q for s in patients for q in ask(s, per_family=profile.dataset.per_family, seed=SEED, census=census)
    ]


plain = asked(None)
as_they_come = blind_audit(plain)
score = as_they_come["all"]
print(f"{score.questions} questions; with closed eyes {score.accuracy:.2f}, chance {score.chance:.2f}")

# %% [markdown]
# A **census** counts over some patients how often each claim is true, and keeps a question with just the probability that makes all
# four options equally likely, given the words. (Where an answer is nearly certain, nothing is left.)

# %%
from unireason_lib.display import plot_bars

census = take_census(patients[: profile.dataset.census], seed=SEED)
thinned = asked(census)
audited = blind_audit(thinned)
print(f"{len(thinned)} of {len(plain)} questions are asked")
bars, spans = {}, {}
for label, scores in (("as they come", as_they_come), ("with a census", audited)):
    for family, s in sorted(scores.items()):
        bars[f"{family}, {label}"] = 100 * s.accuracy
        spans[f"{family}, {label}"] = (
            100 * (s.accuracy - 1.96 * s.error),
            100 * (s.accuracy + 1.96 * s.error),
        )
plot_bars(bars, "answered right without the picture, % (chance is 25)", intervals=spans, unit=" %")

# %%
publish("blind reader, questions as they come", 100 * as_they_come["all"].accuracy, "%", note="chance 25 %")
publish("blind reader, with a census", 100 * audited["all"].accuracy, "%", note="chance 25 %")

# %% [markdown]
# ## 5 · Grounded reasoning
#
# A **writer** turns question and view into a thought that points. The embedded one composes templates; no coordinates come from
# anywhere but the view. Where the boxes point, the regions' pictures will be put into the reply:

# %%
from unireason_lib.boxes import format_box
from unireason_lib.dataset.rationales import TemplateWriter
from unireason_lib.dataset.records import Record
from unireason_lib.display import show_trace

writer = TemplateWriter(length="short", seed=SEED)


def recorded(question, view):
    """Question and reasoning together."""
    return Record.make(view, question, writer.write(question, view), writer=writer.name, seed=SEED)


def drawn(record, view):
    """The record as the reply that a model should give."""
    told = {"question": record.question, "options": record.options, "text": record.reply}
    told |= {"dimension": record.dimension, "truth": record.answer, "choice": record.answer}
    told["pointings"] = [
        {"text": format_box(box), "box": box.as_tuple(), "status": "injected"} for box in record.boxes
    ]
    return show_trace(told, view.images())


# %%
def about_texture(make, start):
    """The first question about a lesion's texture."""
    for k in range(start, start + 200):
        view = View(make(k), size, None, FRAME)
        for question in ask(view.study, families=["lesion analysis"], per_family=4, view=view, seed=SEED):
            if question.facts["kind"] == "texture":
                return question, view


question, view = about_texture(phantom_slice, SEED)
drawn(recorded(question, view), view)

# %%
question, view = next((q, v) for q, v in in_3d if q.family == "spatial relationship")
drawn(recorded(question, view), view)

# %% [markdown]
# The same writer on the real brain:

# %%
question = of_brain["spatial relationship"]
drawn(recorded(question, views[brain.id]), views[brain.id])

# %% [markdown]
# Lesion textures are one pixel wide. The vision tower makes one token of 16 x 16 such pixels; the enlarged crop spends several
# tokens on the lesion alone. That is what looking again is for.
#
# The same question in many words, so that no single sentence can be learnt by heart:

# %%
question, view = about_texture(phantom_slice, SEED + 200)
for seed in range(4):
    told = Record.make(
        view, question, TemplateWriter(length="short", seed=seed).write(question, view), writer="template"
    )
    print(told.reply.split("</think>")[0].removeprefix("<think>"), "\n")

# %% [markdown]
# The other writer asks a language model behind any OpenAI-compatible endpoint (`--writer llm`). It is told to point with tags such
# as `[[liver lesion]]`, and gets no chance to invent coordinates: what it writes is **anchored**. A number that is not the true box
# of the structure named before it is repaired, and reported:

# %%
from unireason_lib.dataset.rationales import anchor

lesion = question.evidence[0]
true = view.box(lesion)
wrong = f"The {lesion.name} is at <|box_start|>[1,2,3,4]<|box_end|>. Looking again at [[{lesion.name}]], it is patterned."
repaired = anchor(wrong, {lesion.name: (lesion.name, true)})
text = "".join(part if isinstance(part, str) else format_box(part.box) for part in repaired.parts)
print(wrong, text, sep="\n\n")
assert "[1,2,3,4]" not in text and text.count(format_box(true)) == 2

# %% [markdown]
# ## 6 · Nothing bad passes, nothing vanishes
#
# Every record is checked, whoever wrote it; what fails is refused with a reason, counted, and written to `refused.jsonl`. We break a
# good record in five ways:

# %%
from dataclasses import replace

from unireason_lib.dataset.checks import check_record

good = recorded(question, view)
assert check_record(good) is None
other = next(k for k in good.options if k != good.answer)
broken = {
    "a box moved by two pixels": replace(
        good, reply=good.reply.replace(f"[{int(true.x1)},", f"[{int(true.x1) + 2},", 1)
    ),
    "a tag left open": replace(good, reply=good.reply.replace("<|box_end|>", "", 1)),
    "another letter": replace(good, reply=good.reply.replace(f"</think>{good.answer}.", f"</think>{other}.")),
    "the thought left open": replace(good, reply=good.reply.replace("</think>", "")),
    "the answer in the question": replace(
        good, question=f"{good.question} (It is {good.options[good.answer]}.)"
    ),
}
for what, record in broken.items():
    print(f"{what:<28}-> {check_record(record)}")
assert all(check_record(record) for record in broken.values())

# %% [markdown]
# Test patients must be strangers. The split follows from the patient's name alone; and because the same scan is often found under
# two names, every scan has a fingerprint, and look-alikes are kept together:

# %%
from unireason_lib.dataset.splits import fingerprint, same_scan, split_of

scan = deep.scan.array
noise = np.random.default_rng(SEED).normal(0, 5, scan.shape)
copies = {
    "brighter": scan * 1.5 + 40,
    "noisier": scan + noise,
    "another patient": phantom(SEED + 77).scan.array,
}
for what, copy in copies.items():
    print(f"{what:<16}same scan: {same_scan(fingerprint(scan), fingerprint(copy))}")
print({f"patient {k}": split_of(f"patient {k}") for k in range(6)})

# %% [markdown]
# ## 7 · The whole build
#
# What you saw, for all studies of any number of sources, by any number of processes, and resumable at any moment. The same from a
# shell: `python -m unireason_lib build --source phantom:dimension=2d --source phantom --out DIR`.

# %%
import shutil

from unireason_lib.dataset.build import BuildConfig, SourceSpec, build

made = profile.dataset
config = BuildConfig(
    sources=(
        SourceSpec("phantom", None, {"dimension": "2d", "count": made.patients_2d}),
        SourceSpec("phantom", None, {"dimension": "3d", "start": 500_000, "count": made.patients_3d}),
    ),
    size=size,
    frame=FRAME,
    per_family=made.per_family,
    census=made.census,
    seed=SEED,
    fractions={"train": 0.8, "val": 0.1, "test": 0.1},
)
folder = project_root() / "runs" / f"dataset-{PROFILE}"
shutil.rmtree(folder, ignore_errors=True)  # to show it; without this line, a finished set is taken as it is
report = build(config, folder)
print(
    f"{report.manifest['records']} records, {report.manifest['pictures']} pictures, refused: {report.manifest['refused']}"
)
assert build(config, folder).built == 0

# %% [markdown]
# `manifest.json` says what is in it (and hashes every file); the Parquet has the columns of the released UniMed-CoT.

# %%
import pyarrow.parquet as pq

for form in ("sft", "rl", "images"):
    path = sorted((folder / form).glob("*.parquet"))[0]
    print(
        f"{form + '/' + path.name:<30}{pq.read_metadata(path).num_rows:>6} rows: {', '.join(pq.read_schema(path).names)}"
    )
row = pq.read_table(sorted((folder / "sft").glob("train*.parquet"))[0]).slice(0, 1).to_pylist()[0]
for message in row["messages"]:
    print(f"\n{message['role']}: {message['content']}")

# %% [markdown]
# Reading gives back the records, with their pictures:

# %%
from unireason_lib.dataset.parquet import ImageStore, pictures_of, read_records

records = list(read_records(folder))
store = ImageStore(folder)
record = next(r for r in records if r.dimension == "3d" and r.split == "train")
messages = record.load(pictures_of(record, store))
kinds = [part["type"] for part in messages[1]["content"]]
print(f"{record.id}: {len(record.image_ids)} slices; the reply alternates {kinds}")

# %% [markdown]
# ## 8 · Statistics of the set

# %%
from collections import Counter

families = Counter(f"{r.family}, {r.dimension}" for r in records)
plot_bars(dict(sorted(families.items())), "records")

# %%
letters = Counter(r.answer for r in records)
splits = Counter(r.split for r in records)
split_by_patient = {(r.patient, r.split) for r in records}
assert len(split_by_patient) == len({r.patient for r in records})  # each in one split only
lengths = [len(r.reply.split()) for r in records]
shares = [box.area / 64**2 for r in records if r.dimension == "2d" for box in r.boxes]
print("letters", dict(sorted(letters.items())), "| splits", dict(splits))
print(
    f"words a reply: median {np.median(lengths):.0f}, longest {max(lengths)}; distinct replies {len({r.reply for r in records}) / len(records):.0%}"
)
print(f"boxes cover {np.median(shares):.1%} of a slice in the median, {max(shares):.0%} at most")

# %% [markdown]
# The paper mixes 170K questions about pictures with 50K about volumes. A **mixture** says so by count or weight and draws it
# reproducibly, whatever the parts hold:

# %%
from unireason_lib.dataset.mixture import PAPER, Mixture

have = dict(Counter(r.dimension for r in records))
mixture = Mixture.by_weight(have, PAPER, seed=SEED)
print(f"we have {have}; an epoch in the paper's ratio: {dict(mixture.counts)}")
print("its beginning:", [part for part, _ in mixture.epoch(0)][:12])

# %% [markdown]
# And the audit once more, on the set as it was written, both dimensions, by family:

# %%
final = blind_audit(records)
rows = {family: 100 * s.accuracy for family, s in sorted(final.items())}
spans = {
    f: (100 * (s.accuracy - 1.96 * s.error), 100 * (s.accuracy + 1.96 * s.error)) for f, s in final.items()
}
plot_bars(rows, "answered right without the picture, % (chance is 25)", intervals=spans, unit=" %")

# %%
publish(
    "records built", report.manifest["records"], note=f"{report.manifest['studies']['patients']} patients"
)
publish(
    "blind reader on the built set",
    100 * final["all"].accuracy,
    "%",
    note=f"majority letter {100 * final['all'].majority:.0f} %",
)

# %% [markdown]
# ## Check yourself

# %%
assert set(letters) <= set("ABCD") and {r.family for r in records} <= set(FAMILIES)
assert all(check_record(r) is None for r in records)
assert all(r.boxes == [type(b)(*c) for b, (_, c) in zip(r.boxes, r.evidence, strict=True)] for r in records)
assert abs(final["all"].accuracy - final["all"].chance) < max(0.08, 4 * final["all"].error)
assert same_scan(fingerprint(scan), fingerprint(copies["noisier"]))
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. Build a set from the brain with `SourceSpec("brain")` and run the audit on it. Why is it so much worse?
# 2. Write a source of your own: put two NIfTI scans with label maps and a `labels.json` into a folder and open it with
#    `open_source("folder", path)`.
# 3. Build only `size comparison` questions. Which kinds does the census remove most, and why?
# 4. Start any OpenAI-compatible server and build with `--writer llm --writer-option base_url=... --dry-run` first: what would it cost?
#
# <details><summary>Solutions</summary>
#
# 1. There is one brain, and everything about it can be known by heart: no census can help, and a reader of words learns the answers.
#    It is good for looking at, not for training or measuring.
# 2. `unireason_lib/dataset/sources/folder.py` opens with the layout; studies come out with boxes, sides and sizes measured.
# 3. Pass `families=("size comparison",)` to `BuildConfig`, with and without `census=0`, and compare the counts by `question.facts["kind"]`.
#    Pairs whose order hardly varies (liver and kidney) disappear.
# 4. The dry run works off a few studies and prints the estimate; nothing is bought before the build, and no answer twice.
#
# </details>
