# %% [markdown]
# # 05 · Outcome RL: rewarded for the answer, free to look where it likes
#
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/05_outcome_rl.ipynb)
#
# After this notebook you can
# - say what is rewarded and what is not, and what a careless reward would pay for;
# - compute the advantages of a group of replies by hand, and say which tokens they teach;
# - train with GRPO on replies that fetch their own evidence, and read the curves.
#
# **Where we stand.** The last step of training. Fine-tuning (04) taught the model to write what a writer wrote: it was told
# where to point. Now it is told nothing but whether the answer was right. It samples several replies to a question, each
# of which points, gets its regions, and answers; those that did better than their group become likelier. Boxes earn nothing by
# themselves. The paper's third claim is that this improves the answers, and that boxes stay sensible.
#
# **Time** about forty minutes on 2 CPU cores, 25 of them RL. **Needs** a shorter fine-tuning and data sets of phantoms,
# which it makes itself when they are not there. **Synthetic**: patients are phantoms. *Nothing here is for clinical use.*

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0
MODEL = ""  # what to start from, a folder or hub id; empty: a shorter fine-tuning, made here
DATA = ""  # data set or the authors' release with the questions, a folder or hub id; empty: phantoms
M3D_ROOT = ""  # with the release: folder of the M3D volumes that you hold
RUN = ""  # folder below runs/rl, of a run for a study; empty: named after what decides the outcome

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
from transformers.utils import logging

from unireason_lib.config import load_profile
from unireason_lib.display import pipeline_figure
from unireason_lib.notebooks import project_root, publish

profile, root = load_profile(PROFILE, OVERRIDES, **{"grpo.seed": SEED}), project_root()
logging.set_verbosity_error()  # what libraries tell one another is not for readers
pipeline_figure("outcome RL")

# %% [markdown]
# ## 1 · What is rewarded
#
# Two things, weighed 0.8 and 0.2 as in the paper: the letter is right; the reply has its format (a thought, boxes that can be
# read, an answer after it). Each is a function from a reply to a number. A reward is what the model will become good at, so
# the first question about one is: **what else earns it?** Some made-up replies to a question whose right answer is B, and
# what they earn from the arithmetic of the authors' release (`paper`) and from ours (`strict`):

# %%
import pandas as pd

from unireason_lib.training.rewards import WEIGHTS, answer_reward, format_reward

BOX = "<|box_start|>[8,8,30,40]<|box_end|>"
made_up = {
    "honest": f"<think>The liver is at {BOX}. So: liver.</think>B. Liver",
    "honest but wrong": f"<think>It is at {BOX}.</think>C. Spleen",
    "empty": "",
    "lorem ipsum": "lorem ipsum",
    "bare letter": "B",
    "an article": "This shows a mass, so the answer is B.",
    "letter and text differ": f"<think>It is at {BOX}.</think>B. Heart",
    "tags only": "<think></think>B",
    "box outside": "<think>I look at <|box_start|>[900,900,990,990]<|box_end|>.</think>B",
    "thought never closed": "<think>It is B. B. B.",
}

# %%
options = {"A": "Heart", "B": "Liver", "C": "Spleen", "D": "Aorta"}
earned = pd.DataFrame(index=list(made_up))
for mode in ("paper", "strict"):
    answers = [answer_reward(text, "B", mode, options) for text in made_up.values()]
    forms = [format_reward(text, mode, dimension="2d", frame=(64, 64, 1)) for text in made_up.values()]
    earned[f"{mode}: answer"], earned[f"{mode}: format"] = answers, forms
    totals = WEIGHTS["answer"] * earned[f"{mode}: answer"] + WEIGHTS["format"] * earned[f"{mode}: format"]
    earned[f"{mode}: total"] = totals
earned

# %% [markdown]
# In the release's arithmetic a lone letter earns all there is, and so does a thought without a word in it; an *article* is
# read as option A. A model that is trained long enough finds that out. The strict rewards grant the format to nobody who did
# not reason and refer to a region.

# %%
gamed = {m: earned.index[earned[f"{m}: total"] > 0.99].drop("honest") for m in ("paper", "strict")}
for mode, names in gamed.items():
    print(f"earn everything though they are not honest, {mode}: {', '.join(names) or 'none'}")
assert not len(gamed["strict"])

# %% [markdown]
# ## 2 · Where it starts
#
# A model that has learnt all that its examples teach answers alike whenever it is asked, and where all replies to a question earn
# the same, nothing is learnt. RL therefore often starts from an earlier stage of fine-tuning. So does this notebook: it fine-tunes
# as notebook 04 does, but for fewer passes over the data (`grounding.grpo_start_epochs` of the profile; the schedule shrinks with them). With
# `MODEL` it starts from whatever you name, `data/tiny-sft` for instance.

# %%
import hashlib
import json
from dataclasses import asdict

from unireason_lib import __version__
from unireason_lib.dataset.build import phantom_set
from unireason_lib.grounding import GroundedGenerator, load_profile_model
from unireason_lib.imaging import ProcessorFrame
from unireason_lib.inference import model_identity
from unireason_lib.training.checkpoints import whole_checkpoint
from unireason_lib.training.data import data_folder, images_from, training_records
from unireason_lib.training.sft import train_sft


# %%
def short_hash(*parts):
    """Eight digits that change when anything in the parts does."""
    return hashlib.blake2b(json.dumps(parts, sort_keys=True).encode(), digest_size=4).hexdigest()


def phantoms(section, name, first=0):
    """Folder of a data set of phantoms, made when it is not there; of the same settings it is that of notebook 04."""
    patients = section.patients_2d, section.patients_3d
    made_of = short_hash(
        patients, *([first] if first else []), profile.dataset.model_dump(), asdict(frame), __version__
    )
    place = root / "runs" / "data" / f"{name}-{PROFILE}-{made_of}"
    return phantom_set(place, *patients, frame, profile.dataset, first=first, workers=2).folder


# %%
given, epochs = MODEL or profile.model.path, profile.grounding.grpo_start_epochs
start = whole_checkpoint(root / given if (root / given).is_dir() else given)
if epochs is not None and not MODEL:
    base, processor = load_profile_model(profile.model, root, profile.model.base)
    frame = ProcessorFrame.from_processor(processor)
    shorter = {"sft.seed": 0, "sft.num_train_epochs": epochs, "sft.max_steps": -1}
    how = load_profile(PROFILE, OVERRIDES, **shorter)
    examples = phantoms(profile.sft_data, "phantoms")
    counts = {"2d": profile.sft_data.records_2d, "3d": profile.sft_data.records_3d}
    taught = training_records(examples, counts, seed=0)
    replies = [(record.id, record.reply) for record in taught]
    decides = how.sft.model_dump(), how.grounding.model_dump(), replies
    name = f"{PROFILE}-start-{short_hash(*decides, model_identity(base.name_or_path))}"
    start = str(train_sft(base, processor, taught, images_from(examples), root / "runs" / "sft" / name, how))


# %%
def load_start():
    """The model to start from with its processor."""
    return load_profile_model(profile.model, root, start)


model, processor = load_start()
model_path = model.name_or_path
frame = ProcessorFrame.from_processor(processor)
print("starts from", model_path.replace(f"{root}/", ""))

# %% [markdown]
# ## 3 · A group of replies
#
# The questions are about **other patients** than fine-tuning had: of those it knows answers by heart. No reply is written for these
# questions; all that is known of each is the letter.

# %%
first = max(profile.sft_data.patients_2d, profile.sft_data.patients_3d)  # behind those of fine-tuning
folder = data_folder(DATA) if DATA else phantoms(profile.grpo_data, "phantoms-rl", first)
counts = {"2d": profile.grpo_data.records_2d, "3d": profile.grpo_data.records_3d}
held = M3D_ROOT or None
records = training_records(
    folder, counts, seed=SEED, form="rl", kinds=profile.grpo_data.kinds.split(), m3d_root=held
)
images = images_from(folder, m3d_root=held)
number = {d: sum(record.dimension == d for record in records) for d in ("2d", "3d")}
print(
    f"{str(folder).replace(f'{root}/', '')}: {number['2d']:,} questions about slices, {number['3d']:,} about volumes"
)

# %% [markdown]
# One question, sampled several times at temperature 1. All replies share the encoding of the prompt; each goes its own way from
# the first token on. We take the first question whose replies do not all earn the same.

# %%
from unireason_lib.training.grpo import question_of

longest = profile.grounding.max_prompt_length
generator = GroundedGenerator(model, processor)
limits = {
    "max_new_tokens": profile.grpo.max_completion_length,
    "max_rounds": profile.grounding.rollout_max_rounds,
}


# %%
def roll_out(row):
    """Sampled replies to a question, the columns that its rewards read, and what each reply earns."""
    request, columns = question_of(records[row], images, generator, longest)
    how = {"samples": profile.grpo.num_generations, "temperature": profile.grpo.temperature}
    traces = generator.generate([request], seed=SEED, **how, **limits)
    shown = {name: columns[name] for name in ("dimension", "frame", "scale")}
    parts = [
        (
            answer_reward(trace.text, columns["truth"], options=columns["options"]),
            format_reward(trace.text, **shown),
        )
        for trace in traces
    ]
    return request, columns, traces, parts


# %%
for row in range(min(40, len(records))):
    request, columns, traces, parts = roll_out(row)
    if len(set(parts)) > 1:
        break
print(request.question, request.options, "right:", columns["truth"], "\n")
for trace, (answer, form) in zip(traces, parts, strict=True):
    print(f"answer {answer:g}, format {form:g}: {trace.text}\n")

# %%
from unireason_lib.boxes import Box3D
from unireason_lib.display import show_images


def shown(trace):
    """The slice that a reply's first box begins in, or the first one, and the boxes in it."""
    slices = [frame.aligned(image) for image in request.images]
    boxes = trace.boxes
    at = int(boxes[0].z1) if boxes and isinstance(boxes[0], Box3D) else 0
    flat = [box.xy if isinstance(box, Box3D) else box for box in boxes]
    return slices[min(at, len(slices) - 1)], flat


drawn = [shown(trace) for trace in traces]
titles = [f"answer {answer:g}, format {form:g}" for answer, form in parts]
show_images([image for image, _ in drawn], [boxes for _, boxes in drawn], titles=titles)

# %% [markdown]
# ### The advantage, by hand
#
# A reply is not good or bad in itself, but better or worse than its group: reward minus the group's mean, divided by its
# standard deviation. Every token that the model wrote in a reply gets the reply's advantage. The mean over a group is zero, so a
# question that is always answered right, or always wrong, teaches nothing.

# %%
from statistics import fmean, stdev

rewards = [WEIGHTS["answer"] * answer + WEIGHTS["format"] * form for answer, form in parts]
mean, spread = fmean(rewards), stdev(rewards)
advantages = [(reward - mean) / (spread + 1e-4) for reward in rewards]
print(f"mean {mean:.3f}, standard deviation {spread:.3f}")
for reward, advantage in zip(rewards, advantages, strict=True):
    print(f"reward {reward:.2f}  advantage {advantage:+.2f}")
assert abs(sum(advantages)) < 1e-6 * len(advantages) + 1e-6

# %% [markdown]
# ### Which tokens learn
#
# Those that the model wrote. The regions were put in: they are read, and carry neither loss nor KL.

# %%
from unireason_lib.display import token_strip

token_strip(max(traces, key=lambda trace: len(trace.own_mask)), processor.tokenizer)

# %% [markdown]
# ## 4 · Training
#
# The trainer is TRL's `GRPOTrainer`; ours are the rollouts and that their crops reach the forward pass. The loss is that of GRPO
# with clipping, and a KL term (estimator k3) that keeps the model near to where it started.

# %%
sections = {**profile.grpo.model_dump(), **profile.grounding.model_dump()}
names = "generation_batch_size num_generations max_steps learning_rate grpo_lora_r beta epsilon temperature"
print("\n".join(f"{name:<23}{sections[name]}" for name in names.split()))

# %%
from unireason_lib.io import read_lines
from unireason_lib.training.callbacks import read_log
from unireason_lib.training.checkpoints import run_settings
from unireason_lib.training.grpo import train_grpo

decides = run_settings(profile, "grpo"), [record.id for record in records]
run = RUN or f"{PROFILE}-seed{SEED}-{short_hash(*decides, model_identity(model_path))}"
out = root / "runs" / "rl" / run
print(f"runs/rl/{run}:", "finished before" if (out / "model").is_dir() else "trains now")
trained_path = train_grpo(load_start()[0], processor, records, images, out, profile)
spent = read_log(out / "log.jsonl", "train_runtime")[-1]["train_runtime"] / 60
print(f"{trained_path.relative_to(root)}: {spent:.1f} min since its last start")

# %% [markdown]
# The same from the command line:

# %%
import shlex

command = ["rl", "--data", str(folder), "--model", model_path, "--out", str(out)]
command += ["--profile", PROFILE, "--seed", str(SEED)] + (["--set", OVERRIDES] if OVERRIDES else [])
command += ["--m3d-root", M3D_ROOT] if M3D_ROOT else []
print("python -m unireason_lib", shlex.join(command).replace(f"{root}/", ""))

# %% [markdown]
# First the check of the last section, on all groups of the run: advantages by hand, from the rewards of each reply, against
# those that the trainer used.

# %%
replies = read_lines(out / "rollouts.jsonl")
size = profile.grpo.num_generations
groups = [replies[first : first + size] for first in range(0, len(replies), size)]
off = []
for group in groups:
    earned_here = [line["reward"] for line in group]
    mean, spread = fmean(earned_here), stdev(earned_here)
    off += [abs((line["reward"] - mean) / (spread + 1e-4) - line["advantage"]) for line in group]
print(f"{len(groups)} groups, {len(replies)} replies; largest difference {max(off):.1e}")
flat = fmean(len({round(line["reward"], 6) for line in group}) == 1 for group in groups)
print(f"zero-variance groups, from which nothing is learnt: {flat:.0%}")
assert max(off) < 1e-3

# %% [markdown]
# The curves, each point the mean of the last five steps. Rewards are of *sampled* replies; greedy ones are better.

# %%
from IPython.display import display

from unireason_lib.display import plot_lines

log = read_log(out / "log.jsonl", "reward")


def curve(key, width=5):
    """A value of the log, the mean of some steps."""
    found = [(line["step"], line[key]) for line in log if line.get(key) is not None]
    return [
        (found[k][0], fmean(value for _, value in found[max(0, k - width + 1) : k + 1]))
        for k in range(len(found))
    ]


# %%
panels = {
    "reward": {
        "answer, 2D": curve("answer_2d"),
        "answer, 3D": curve("answer_3d"),
        "format": curve("rewards/format/mean"),
    },
    "nats a token": {"KL to the start": curve("kl"), "entropy": curve("entropy")},
    "tokens a reply": {"generated by the model": curve("completions/mean_length")},
    "boxes a reply": {"boxes": curve("boxes")},
    "proportion": {
        "replies with a box, 2D": curve("pointing_2d"),
        "replies with a box, 3D": curve("pointing_3d"),
        "boxes answered": curve("boxes_answered"),
        "zero-variance groups": curve("frac_reward_zero_std"),
    },
}
for unit, lines in panels.items():
    display(plot_lines({name: points for name, points in lines.items() if points}, "step", unit))

# %%
seconds = {key: sum(line[key] for line in log if key in line) for key in ("rollout_seconds", "step_time")}
looking = seconds["rollout_seconds"] / seconds["step_time"]
print(f"{looking:.0%} of the time went into rollouts, the rest into rewards and updates")

# %% [markdown]
# ## 5 · Before and after
#
# Held-out patients, the same questions to both, greedy. Intervals count patients, not questions; the difference is paired.

# %%
from unireason_lib.display import plot_intervals
from unireason_lib.evaluation import compare, evaluate, open_benchmark, read_table, summary
from unireason_lib.grounding import Settings
from unireason_lib.inference import Checkpoint

shape, prior_studies = profile.dataset.shape, min(300, profile.dataset.prior_studies)
asked = {"split": "test", "limit": profile.grounding.test_questions, "frame": frame}
if DATA:
    test = open_benchmark(str(folder), m3d_root=held, **asked)
else:
    test = open_benchmark("phantom", size=shape, prior_studies=prior_studies, **asked)
device = None if profile.model.device == "auto" else profile.model.device
adapted = (trained_path / "adapter_config.json").is_file()
after = (model_path, str(trained_path)) if adapted else (str(trained_path), None)
models = {
    "before": Checkpoint(model_path, dtype=profile.model.dtype, device=device),
    "after": Checkpoint(*after, dtype=profile.model.dtype, device=device),
}

# %%
how = Settings(max_new_tokens=profile.generation.max_new_tokens, max_rounds=profile.generation.max_rounds)
reports, files = {}, {}
for name, checkpoint in models.items():
    files[name] = file = out / f"test-{name}-{short_hash(asdict(how))}.jsonl"
    evaluate(test, file, checkpoint, settings=how, batch_size=profile.evaluation.batch_size, quiet=True)
    reports[name] = read_table(file)
chance = sum(1 / len(item.options) for item in test) / len(test)


def measured(name, measure, scale=1):
    """Dimension -> value and interval of a measure, where it applies."""
    table = summary(reports[name])
    cells = table[(table["family"] == "all") & (table["dimension"] != "all")].set_index("dimension")
    columns = [measure, f"{measure}_low", f"{measure}_high"]
    known = cells[columns].dropna() if measure in cells else cells.iloc[:0]
    return {d.upper(): tuple(scale * known.loc[d, c] for c in columns) for d in known.index}


right = {name: measured(name, "accuracy", 100) for name in reports}
plot_intervals(right, f"right of {len(test)} questions, %", reference=("chance", 100 * chance))

# %%
overlaps = {name: measured(name, "iou_first") for name in reports}
plot_intervals(overlaps, "IoU of the first box")

# %%
gain = compare(reports["before"], reports["after"])
d = gain.difference
publish(
    "RL: after against before",
    100 * d.value,
    "points",
    interval=(100 * d.low, 100 * d.high),
    note=f"{gain.questions} questions on held-out phantoms, one seed",
)
for name in overlaps["after"]:
    moved = overlaps["after"][name][0] - overlaps["before"][name][0]
    publish(f"RL: change of the IoU in {name}", moved, note="no reward is paid for boxes")

# %% [markdown]
# ### Three seeds, and more questions
#
# One run is an anecdote. The profile's run was made with three seeds, from the same model and on the same questions. For the
# answers that left open which way it went (first lines below), so 3,600 questions about other held-out patients were put to the
# same four models, once. A test that is enlarged because its first result was open cannot be added up as if it had been planned:
# the lines "others" decide, and the lines "all" are only there to be seen. The answers, without their words, are kept in
# the repository. Each run was made by
#
# ```
# python -m unireason_lib tutorial 05 -p SEED=1        # and 0, and 2
# python -m unireason_lib evaluate --model START --adapter RUN --limit 4800 --size 8,64,64 --option prior_studies=300 --batch-size 50 --out FILE
# ```
#
# and the table by `pooled` and `write_pooled` of `unireason_lib.evaluation.table`. The intervals count patients *and* seeds. What
# follows from them is printed, not typed.

# %%
from itertools import product

from unireason_lib.evaluation.table import read_pooled, select

kept = root / "data" / "results" / "rl-laptop.csv.gz"
rows = read_pooled(kept) if kept.exists() else pd.DataFrame({"id": []})
first = {item.id for item in test}
comparable = len(rows) > 0 and first <= set(rows["id"]) and not MODEL


def over_seeds(rows, value, d, **where):
    """Before and after over all seeds, paired."""
    before, rewarded = (select(rows, name, dimension=d, **where) for name in ("SFT", "SFT+RL"))
    start = pd.concat([before.assign(seed=seed) for seed in rewarded["seed"].unique()])
    return compare(start, rewarded, value, paired_seeds=True)


# %%
MEASURES = {"right answers": ("correct", 100, "points"), "IoU of the first box": ("iou_first", 1, "")}
sets = {
    "the first": rows[rows["id"].isin(first)],
    "others": rows[~rows["id"].isin(first)],
    "all": rows,
}

# %%
lines, gains = [], {}
for which, d, name in product(sets if comparable else (), ("2d", "3d"), MEASURES):
    value, scale, _ = MEASURES[name]
    gains[which, d, name] = gain = over_seeds(sets[which], value, d)
    low, mean, high = (scale * x for x in (gain.difference.low, gain.difference.value, gain.difference.high))
    verdict = "better" if low > 0 else "worse" if high < 0 else "inconclusive"
    line = {"questions": f"{which}, {gain.questions} in {d.upper()}", "measure": name, "seeds": gain.seeds[1]}
    line |= {"before": scale * gain.a, "after": scale * gain.b}
    lines.append(line | {"change (95 %)": f"{mean:+.3g} ({low:+.3g} to {high:+.3g})", "verdict": verdict})
pd.DataFrame(lines).round(3) if lines else "no comparison: another model or other questions than kept"

# %%
for (which, d, name), gain in gains.items():
    if which != "the first":
        _, scale, unit = MEASURES[name]
        interval = (scale * gain.difference.low, scale * gain.difference.high)
        note = f"{gain.questions} questions, {gain.seeds[1]} seeds"
        publish(
            f"RL, {d.upper()}, {which}: change of {name}",
            scale * gain.difference.value,
            unit,
            interval=interval,
            note=note,
        )
if comparable:
    by_condition = rows.groupby("condition")["format"].mean()
    publish(
        "RL: format compliance",
        100 * by_condition["SFT+RL"],
        "%",
        note=f"all questions and seeds; before {100 * by_condition['SFT']:.1f} %",
    )

# %% [markdown]
# Did all kinds of questions change alike? This was asked after the fact, of all questions, so it is a hint to follow and not
# a result; p-values are corrected (Holm) for the number of kinds looked at, those with 100 questions or more.

# %%
from unireason_lib.evaluation import holm

asked_often = rows[rows["condition"] == "SFT"].groupby(["dimension", "kind"]).size() if comparable else {}
kinds = sorted(key for key, n in dict(asked_often).items() if n >= 100)
by_kind = {key: over_seeds(rows, "correct", key[0], kind=key[1]) for key in kinds}
corrected = dict(zip(kinds, holm([gain.p for gain in by_kind.values()]), strict=True))
lines = [
    {
        "kind": f"{d.upper()} {kind}",
        "questions": gain.questions,
        "before, %": 100 * gain.a,
        "after, %": 100 * gain.b,
        "p, Holm": corrected[d, kind],
    }
    for (d, kind), gain in by_kind.items()
]
pd.DataFrame(lines).round(3) if lines else "no comparison"

# %%
if comparable:
    changed = {"2D": {}, "3D": {}}
    for (d, kind), gain in by_kind.items():
        change = gain.difference
        changed[d.upper()][kind] = tuple(100 * x for x in (change.value, change.low, change.high))
    display(plot_intervals(changed, "change of right answers, points", reference=("none", 0)))

# %% [markdown]
# A kind that changes without getting anywhere deserves a look at its replies. "Are there a spleen and a gallbladder?" has the options
# *both*, *neither*, *only the spleen* and *only the gallbladder*. What is answered, in the test of this notebook?

# %%
from collections import Counter


def answers(name, key):
    """First word of an option -> how often it is what `key` says, among the questions about pairs in slices."""
    pairs = [x for x in read_lines(files[name]) if (x["dimension"], x["kind"]) == ("2d", "pair")]
    return dict(Counter(x["options"].get(x[key], "none").split()[0] for x in pairs).most_common())


print("right ", answers("before", "truth"))
for name in files:
    print(f"{name:<6}", answers(name, "prediction"))

# %% [markdown]
# Where nearly all questions get one answer, before and after, the answer does not depend on the picture. Rewards then say
# nothing of when which answer is right; they move the model from one constant to another, and whether that costs or brings
# points is chance. RL needs a start that can do a little of everything that it is asked.

# %% [markdown]
# ## 6 · A reward is what you get
#
# Section 1 priced made-up replies. Does it matter to a model? Two short runs from the same start, alike in everything but
# the reward: the release's arithmetic, and ours. To have something to learn, sampling is hot, so that many replies are
# out of form: a thought that is not closed, a box that is none, words behind the end. Both rewards know the right letter. What
# is plotted is the same for both: the proportion of sampled replies that a *reader* would grant the form.

# %%
prompts, replies_each = 2 if PROFILE == "smoke" else 8, profile.grpo.num_generations
hot = {
    "grpo.seed": SEED,
    "grpo.generation_batch_size": prompts * replies_each,
    "grpo.per_device_train_batch_size": prompts * replies_each,
    "grpo.gradient_accumulation_steps": 1,
    "grpo.max_steps": 4 if PROFILE == "smoke" else 20,
    "grpo.temperature": 1.6,
    "grpo.beta": 0.0,
    "grpo.save_steps": 1000,
}
flat_only = [record for record in records if record.dimension == "2d"]


# %%
flat_ids = {record.id: record for record in flat_only}


def frame_of(name):
    """Width, height and number of the images of a question, as the model sees them."""
    height, width = flat_ids[name].image_size or images(flat_ids[name])[0].size[::-1]
    return (*frame.size(height, width)[::-1], 1)


formed, paid = {}, {}
for mode in () if RUN or not flat_only else ("paper", "strict"):  # a run for a study leaves this out
    short = load_profile(PROFILE, OVERRIDES, **hot, **{"grounding.reward_mode": mode})
    decides = run_settings(short, "grpo"), [record.id for record in flat_only]
    name = f"{PROFILE}-hot-{mode}-{short_hash(*decides, model_identity(model_path))}"
    train_grpo(load_start()[0], processor, flat_only, images, root / "runs" / "rl" / name, short)
    steps = {}
    for line in read_lines(root / "runs" / "rl" / name / "rollouts.jsonl"):
        form = format_reward(line["text"], dimension="2d", frame=frame_of(line["id"]), scale=frame.scale)
        steps.setdefault(line["step"] + 1, []).append((form, line["reward format"]))
    formed[mode] = [(step, fmean(form for form, _ in found)) for step, found in steps.items()]
    paid[mode] = [(step, fmean(pay for _, pay in found)) for step, found in steps.items()]


# %%
def smooth(points, width=4):
    """Means of some steps."""
    return [
        (points[k][0], fmean(value for _, value in points[max(0, k - width + 1) : k + 1]))
        for k in range(len(points))
    ]


if formed:
    curves = {f"trained on {mode}": smooth(points) for mode, points in formed.items()}
    display(plot_lines(curves, "step", "form as a reader sees it"))

# %%
for mode, points in formed.items():
    begin, end = (fmean(value for _, value in part) for part in (points[:4], points[-4:]))
    price = fmean(value for _, value in paid[mode][:4])
    print(f"{mode:7} form {begin:.2f} -> {end:.2f}; at the beginning it paid {price:.2f} for it")

# %% [markdown]
# The same replies are worth more to the release's arithmetic, because it counts tags only: a reply with none, or with as many closed
# as opened ones, has its form. What each *pays for* can be told from the first step. What each *teaches* cannot be told from twenty
# steps: compare what is printed above with how much the curves move from one step to the next.

# %% [markdown]
# ## Check yourself

# %%
assert [line["step"] for line in log] == list(range(1, log[-1]["step"] + 1))
assert {line["id"] for line in replies} <= {record.id for record in records}
assert all(0 <= line[f"reward {part}"] <= 1 for line in replies for part in ("answer", "format"))
print("all checks passed")

# %% [markdown]
# ## Exercises
#
# 1. A group of four earns 1, 1, 1 and 0.2. What are the advantages, and what would they be without dividing by the standard
#    deviation? When does that matter?
# 2. Write a reply that earns full marks from the strict rewards without reasoning. How would you forbid it?
# 3. Train with `OVERRIDES="grounding.iou_weight=0.5"`. Do boxes fit better? Do answers?
#
# <details><summary>Solutions</summary>
#
# 1. Mean 0.8, standard deviation 0.4: +0.5 three times and -1.5; without division +0.2 and -0.6. Dividing makes a group in
#    which one reply of sixteen is wrong as loud as one that is split in halves.
# 2. One word and any sound box: `<think>Hm <|box_start|>[1,1,9,9]<|box_end|></think>B`. Only the answer can tell, and it does,
#    if looking pays: that is why the form has a fifth of the weight.
# 3. The paper does without. Compare with intervals, and over several seeds (notebook 07).
#
# </details>
