# %% [markdown]
# # 05 · Outcome RL: GRPO with rewards for answer and format
# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)](https://colab.research.google.com/github/unireason-lab/unireason-lab/blob/v0.1.0/notebooks/05_outcome_rl.ipynb)
#
# After this notebook you can
# - say what a reward pays for besides what it was meant to reward, and measure whether RL has anything to improve;
# - compute the loss of GRPO by hand, with clipping, KL and the mask of injected tokens, and get the value of the trainer;
# - train on slices and volumes, tell a healthy reward curve from a collapse, and say with intervals what changed.
#
# **Time** half an hour on 2 CPU cores, most of it training; what was trained before is loaded. **Needs** no other notebook: it starts
# from the fine-tuned model in `data/tiny-sft`. **Synthetic**: all patients are phantoms. *Not for clinical use.*
# **Reading** [UniReason-Med](https://arxiv.org/abs/2606.11740), [GRPO](https://arxiv.org/abs/2402.03300), [PPO](https://arxiv.org/abs/1707.06347), [KL estimators](http://joschu.net/blog/kl-approx.html), [LoRA](https://arxiv.org/abs/2106.09685), [what RL adds](https://arxiv.org/abs/2504.13837).

# %% tags=["parameters"]
PROFILE = "laptop"
OVERRIDES = ""
SEED = 0
MODEL = ""  # what to start from, a folder or hub id; empty: the model of the profile
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
from dataclasses import asdict
from functools import partial

import numpy as np
import pandas as pd
import torch
from transformers.utils import logging

from unireason_lib import __version__, display, evaluation, grounding, inference
from unireason_lib.config import load_profile
from unireason_lib.dataset import build, rationales
from unireason_lib.evaluation.table import read_pooled, select
from unireason_lib.notebooks import project_root, publish, short_hash
from unireason_lib.training import callbacks, checkpoints, data, grpo, rewards

profile, root = load_profile(PROFILE, OVERRIDES, **{"grpo.seed": SEED}), project_root()
logging.set_verbosity_error()  # silence the libraries' warnings
display.pipeline_figure("outcome RL")


# %% [markdown]
# ## 1 · What is rewarded
# The reward of a reply is $R = 0.8\,a + 0.2\,f$, as in the paper: $a$ is 1 for the right letter, $f$ is the format (`strict`: half for one closed
# thought, `<think>...</think>`, before an answer; half for boxes that are all valid). The position of a box earns nothing. The mode `paper` is the
# arithmetic of the authors' release (the first lone letter counts, tags must pair). A model learns whatever earns $R$, so we first ask what else does.
# > **Predict first.** The right answer is B, liver. Which of the replies below earn the full reward in each mode?

# %%
def reward(text, mode):
    """The reward of a reply to the question above, about an image of 64 x 64 pixels."""
    form = rewards.format_reward(text, mode, dimension="2d", frame=(64, 64, 1))
    return 0.8 * rewards.answer_reward(text, "B", mode, OPTIONS) + 0.2 * form


OPTIONS, BOX = {"A": "Heart", "B": "Liver", "C": "Spleen"}, "<|box_start|>[8,8,30,40]<|box_end|>"
EXAMPLES = {
    "as intended": f"<think>The liver is at {BOX}. So: liver.</think>B. Liver",
    "bare letter": "B",
    "an article": "This shows a mass, so the answer is B.",
    "reasoning and answer differ": f"<think>It is at {BOX}. So: spleen.</think>B. Liver",
}
pd.DataFrame({mode: {k: reward(text, mode) for k, text in EXAMPLES.items()} for mode in ("paper", "strict")})


# %% [markdown]
# `paper` pays in full for a bare letter and reads *a mass* as answer A. `strict` pays in full only for reasoning with a box inside the image. One
# unwanted reply still earns it all: reasoning for one option, answering another. Letter and format cannot reveal it; section 6 counts such replies.
# ## 2 · From the policy gradient to the loss of GRPO
# A reply $o$ to a question $q$ is sampled token by token from the policy $\pi_\theta$. The gradient of the expected reward is
#
# $$\nabla_\theta\, \mathbb{E}[R] = \mathbb{E}_{o \sim \pi_\theta} \Big[ A \sum_t \nabla_\theta \log \pi_\theta(o_t \mid q, o_{<t}) \Big], \quad A = R - b ,$$
# since $\nabla p = p \nabla \log p$, for every baseline $b$ that does not depend on the reply. GRPO samples a group of $G$ replies to one question. The
# mean reward of the group is the baseline (it contains $R_i$, which only scales the gradient by $\frac{G-1}{G}$), and the sample standard
# deviation (with $G - 1$) is the unit of the **advantage** $A_i = (R_i - \mathrm{mean}(R)) / (\mathrm{std}(R) + 10^{-4})$.

# %%
def advantages(rewards):
    """Advantages of the replies of one group, from their rewards."""
    rewards = torch.tensor(rewards)
    return (rewards - rewards.mean()) / (rewards.std() + 1e-4)


def policy_gradient(start, steps=150, rate=0.5, size=8):
    """The smallest policy, a softmax over four answers: probability of the rewarded one, by step."""
    logits, curve = torch.tensor([start, *[(1 - start) / 3] * 3]).log().requires_grad_(), []
    for step in range(steps):
        log_p = logits.log_softmax(0)
        curve.append((step, log_p[0].exp().item()))
        replies = torch.multinomial(log_p.exp(), size, replacement=True)
        loss = -(advantages([float(o == 0) for o in replies]) * log_p[replies]).mean()
        logits = (logits - rate * torch.autograd.grad(loss, logits)[0]).detach().requires_grad_()
    return curve


torch.manual_seed(SEED)
groups = [1.0, 1, 0, 0], [1.0, 0, 0, 0], [1.0, 1, 1, 1]
print(*(f"{group} -> {advantages(group).numpy().round(2)}" for group in groups), sep="\n")
curves = {f"{p:.1%} at the start": policy_gradient(p) for p in (0.25, 0.02, 0.002)}
display.plot_lines(curves, "step", "probability of the rewarded answer", reference=("chance", 0.25))


# %% [markdown]
# Advantages have **zero mean** in every group; the rarer a success, the more it counts. In a **zero-variance group** all replies earn the same, all
# advantages are zero, and nothing is learnt: an answer that is hardly ever sampled is found late or never. For several updates with one group, the
# loss needs the importance ratio $r = \pi_\theta / \pi_\mathrm{old}$ of a token's probabilities now and when sampled, clipped at $1 \pm \varepsilon$.
# A KL penalty (weight $\beta$) keeps the policy near the reference; k3 estimates it: $k = \rho - \log \rho - 1$, $\rho = \pi_\mathrm{ref} / \pi_\theta$.
#
# $$L = -\frac1G \sum_{i=1}^{G} \frac1{|o_i|} \sum_t m_{i,t} \big[ \min\big(r_{i,t} A_i,\ \mathrm{clip}(r_{i,t}, 1-\varepsilon, 1+\varepsilon)\, A_i\big) - \beta\, k_{i,t} \big] .$$
# The **mask** $m$ is 1 for tokens that the model generated and 0 for injected ones; $|o_i| = \sum_t m_{i,t}$. Log-probabilities come from the logits
# one position earlier, at the sampling temperature; crops enter at the positions where they were injected.

# %%
def grpo_loss(new, old, reference, mask, advantages, epsilon, beta):
    """Loss of a group from log-probabilities and mask, each (replies, tokens)."""
    ratio, advantages = (new - old).exp(), advantages[:, None]
    gain = torch.minimum(ratio * advantages, ratio.clamp(1 - epsilon, 1 + epsilon) * advantages)
    k3 = (reference - new).exp() - (reference - new) - 1
    return -((mask * (gain - beta * k3)).sum(1) / mask.sum(1)).mean()


def log_probabilities(network, batch, forbidden, temperature):
    """Log-probability (replies, tokens) of every token of the replies, given all before it."""
    ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    present = torch.cat([batch["prompt_mask"], batch["completion_mask"]], 1)
    images = {name: batch[name] for name in ("pixel_values", "image_grid_thw", "mm_token_type_ids")}
    with torch.no_grad():
        logits = network(input_ids=ids, attention_mask=present, **images).logits.float() / temperature
    logits[..., forbidden] = -1e4  # never sampled: probability 0
    tokens = batch["completion_ids"][..., None]
    return logits[:, -tokens.shape[1] - 1 : -1].log_softmax(-1).gather(2, tokens)[..., 0]


# %%
def questions(kinds="", most=None, seed=SEED):
    """Questions of some kinds (empty: all), at most so many of each dimension, in the order of a seed."""
    counts = {"2d": most, "3d": most} if most else {"2d": wanted.records_2d, "3d": wanted.records_3d}
    return data.training_records(folder, counts, seed=seed, form="rl", kinds=kinds.split(), m3d_root=m3d)


given, m3d, wanted = MODEL or profile.model.path, M3D_ROOT or None, profile.grpo_data
start = checkpoints.whole_checkpoint(root / given if (root / given).is_dir() else given)
load_start = partial(grounding.load_profile_model, profile.model, root, start)
model, processor = load_start()
patients = wanted.patients_2d, wanted.patients_3d
frame = grounding.GroundedGenerator(model, processor).frame
made_of = short_hash(patients, profile.dataset.model_dump(), asdict(frame), __version__)
folder = data.data_folder(DATA) if DATA else root / f"runs/data/phantoms-rl-{PROFILE}-{made_of}"
if not DATA:  # numbers that no patient of fine-tuning has
    build.phantom_set(folder, *patients, frame, profile.dataset, first=200_000, workers=2)
images = data.images_from(folder, m3d_root=m3d)


# %% [markdown]
# The questions are about **other patients** than those of fine-tuning. With our rollouts, TRL's `GRPOTrainer` makes two updates on a first group and
# one on a second, which we inspect. Rate and $\beta$ are high, so ratios leave 1 and KL matters; rewards are $[1, 1, 0, 0]$ whatever the replies say.

# %%
def answer(completions, **columns):
    """Takes the place of the reward of the answer."""
    return [1.0, 1.0, 0.0, 0.0]


ONE_GROUP = """grpo.num_generations=4, grpo.generation_batch_size=4, grpo.per_device_train_batch_size=4
grpo.gradient_accumulation_steps=1, grpo.num_iterations=2, grpo.max_steps=3, grpo.learning_rate=3e-3, grpo.bf16=false
grpo.beta=1.0, grpo.max_completion_length=192, grpo.save_strategy=no, grpo.use_vllm=false, grounding.grpo_lora_r=8"""
how, out = load_profile(PROFILE, f"{OVERRIDES}\n{ONE_GROUP}"), root / "runs" / "rl" / "one-group"
record = next((r for r in questions() if (r.dimension, r.kind) == ("2d", "texture")), questions()[0])
trainer = grpo.grpo_trainer(model, processor, [record], images, out, how, rewards={answer: 1.0})
trainer.train()
print(record.question, *(f"- {trace.text}" for trace in trainer.traces), sep="\n")

# %%
policy, (batch,) = trainer.model.eval(), trainer._buffered_inputs  # TRL keeps the group for its next update
tokens, old = grounding.GroundedGenerator(policy, processor), batch["old_per_token_logps"]
injected = torch.tensor([tokens.vision_start, tokens.vision_end, tokens.image_token], device=old.device)
present, forbidden = batch["completion_mask"], tokens.never_written
mask = present * ~torch.isin(batch["completion_ids"], injected)  # which the model cannot generate
assert torch.equal(mask, present * batch["tool_mask"]), "TRL has the same mask"
A = advantages([float(a > 0) for a in batch["advantages"]]).to(old)  # TRL has shuffled the replies
new, epsilon = log_probabilities(policy, batch, forbidden, how.grpo.temperature), how.grpo.epsilon
with policy.disable_adapter():  # without its adapter, the model is the one that training started from
    reference = log_probabilities(policy, batch, forbidden, how.grpo.temperature)
by_hand = grpo_loss(new, old, reference, mask, A, epsilon, how.grpo.beta)
by_trainer, no_kl = trainer.compute_loss(policy, batch).item(), grpo_loss(new, old, new, mask, A, epsilon, 0)
print(f"loss: {by_hand:.6f} by hand, {by_trainer:.6f} by TRL; without KL {no_kl:.6f}")
assert abs(by_hand - by_trainer) < (1e-4 if model.dtype == torch.float32 else 0.1)
print("first step:", {k: round(abs(trainer.state.log_history[0][k]), 3) for k in ("loss", "grad_norm")})
for i in (A.argmax(), A.argmin()):
    ratio = (new[i] - old[i]).exp()[mask[i] > 0]
    clipped = (ratio > 1 + epsilon) if A[i] > 0 else (ratio < 1 - epsilon)
    ends = f"{ratio.min():.2f} to {ratio.max():.2f}"
    print(f"A = {A[i]:+.2f}: ratios {ends}, {clipped.sum()} of {len(ratio)} tokens are clipped")

# %% [markdown]
# A token is clipped above $1 + \varepsilon$ where $A > 0$, and below $1 - \varepsilon$ where $A < 0$: the reward does not push it any further. With
# `num_iterations=1` all ratios of a run are 1. In the first step the loss is 0, because advantages have zero mean, but its gradient with respect to
# $\log \pi_\theta(o_{i,t})$ is that of the policy gradient, $-m_{i,t} A_i / (G |o_i|)$. So watch the reward, not the loss.
# ## 3 · Is there anything to improve?
# RL makes more likely what the model already samples. **pass@1** is the fraction of right replies, **pass@8** the fraction of questions with at
# least one right reply among eight. Only **mixed groups**, with right and wrong replies, teach which answer is right.
# > **Predict first.** What is pass@8 of guessing among four options, and what fraction of groups of eight guesses is mixed?

# %%
size, teaches, mixed = profile.grpo.num_generations, not RUN, {}  # a study's run leaves out what only teaches
probes = questions(most=profile.grounding.test_questions // 2) if teaches else []
how = {"max_new_tokens": profile.grpo.max_completion_length, "temperature": profile.grpo.temperature}
how |= {"max_rounds": profile.grounding.rollout_max_rounds, "seed": SEED, "batch_size": 24}
generator, limit = grounding.GroundedGenerator(*load_start()), profile.grounding.max_prompt_length
requests = [grpo.question_of(one, images, generator, limit)[0] for one in probes]
replies = iter(generator.generate(requests, samples=size, **how))
right = [sum(next(replies).choice == one.answer for _ in range(size)) / size for one in probes]
rows = [(x.dimension.upper(), x.kind, r, r > 0, 0 < r < 1) for x, r in zip(probes, right, strict=True)]
headroom = pd.DataFrame(rows, columns=["dimension", "kind", "pass@1", f"pass@{size}", "mixed"])
for (d, kind), part in headroom.groupby(["dimension", "kind"])["mixed"]:
    values = part.mean(), *evaluation.wilson(part.sum(), len(part))
    mixed.setdefault(d, {}).update({kind: tuple(100 * x for x in values)} if len(part) >= 10 else {})
print(f"guessing: pass@8 {1 - 0.75**8:.0%}, mixed groups of 8 {1 - 0.75**8 - 0.25**8:.0%}")
percent = 100 * headroom.groupby(["kind", "dimension"]).mean().unstack()
print(percent.to_string(float_format="{:.0f}".format, na_rep=""))
display.plot_intervals(mixed, "mixed groups, % (95 % Wilson interval)") if any(mixed.values()) else None

# %% [markdown]
# RL can improve kinds whose pass@1 is above guessing and whose groups are often mixed; where the model only guesses, RL can only change its guess.
# The run asks about `grpo_data.kinds`: *box* (which is right), *extent* (longer side), *offset* (distance of centres), *pair* (which structures are
# there), *relation* (direction), *span* (width), and *count* (of lesions), an exception: its groups are mixed, but only by guessing.
# ## 4 · A stable run and one that collapses
# Both runs have the same start, questions, seed and rewards; the one that collapses has 30 times the learning rate, and few steps.

# %%
KEYS = {"answer 2D": "answer_2d", "answer 3D": "answer_3d", "format": "rewards/format/mean"}
rate, steps = 30 * profile.grpo.learning_rate, 2 if PROFILE == "smoke" else 10
runs = {"30 times the rate": {"grpo.learning_rate": rate, "grpo.max_steps": steps}} if teaches else {}
records, curves, identity = questions(wanted.kinds), {}, inference.model_identity(start)
for name, changes in {**runs, "the run": {}}.items():
    settings = load_profile(PROFILE, OVERRIDES, **{"grpo.seed": SEED}, **changes)
    decides = checkpoints.run_settings(settings, "grpo"), identity, [r.id for r in records]
    out = root / "runs" / "rl" / (RUN or f"{PROFILE}-seed{SEED}-{short_hash(decides)}")
    grpo.train_grpo(load_start()[0], processor, records, images, out, settings)
    lines = callbacks.read_log(out / "rollouts.jsonl", "reward")
    log = pd.DataFrame(callbacks.read_log(out / "log.jsonl", "reward")).set_index("step")
    k = max(1, len(log) // 2)
    for part, key in {"reward": "reward", **(KEYS if name == "the run" else {})}.items():
        if len(values := log[key].astype(float).dropna()):
            (first, last), var = (values[:k].mean(), values[-k:].mean()), values[:k].var() + values[-k:].var()
            smooth = values.rolling(min(10, k), 1).mean()
            curves[f"{name}: {part}"] = list(smooth.items())
            change = f"{last - first:+.3f} ± {1.96 * (var / k) ** 0.5:.3f} in the last"
            print(f"{name}: {part}: {first:.2f} in the first {k} steps, {change} {k}")
    about = f"learning rate {settings.grpo.learning_rate:g}, last KL {log['kl'].iloc[-1]:.2g}"
    print(f"{name}: {about}, last reply: {lines[-1]['text'][:60]!r}\n")
print(log[["kl", "frac_reward_zero_std", "rollout_seconds", "step_time"]].rolling(k).mean().iloc[[k - 1, -1]])
display.plot_lines(curves, "step", "mean of the sampled replies (moving average)")

# %% [markdown]
# Look for three things: the format holds, KL stays small, and the reward rises by more than its ± (95 % interval over steps). The run shown meets the
# first two; its rise is about as large as the error, so it is not established. Every step has other questions: if a few are asked again and again,
# the reward rises more, which may be memorization (exercise 4). The other run starts the same way; then KL explodes, and its replies turn to gibberish.
# ## 5 · What changed
# The same held-out questions are asked before and after (greedy decoding); intervals are paired, over patients. Of ten, one may exclude zero by
# chance, so the last lines add answers and IoU for three seeds (`data/results/rl.csv.gz`; there a reply without a box counts as IoU 0).
# > **Predict first.** Nothing is paid for boxes, but the crops come from them. Will their IoU rise, stay, or fall? (In the paper they stay sensible.)

# %%
phantoms = {"size": profile.dataset.shape, "prior_studies": min(300, profile.dataset.prior_studies)}
source = {"name": str(folder), "m3d_root": m3d} if DATA else {"name": "phantom", **phantoms}
test = evaluation.open_benchmark(**source, limit=profile.grounding.test_questions, frame=frame)
how = grounding.Settings(profile.generation.max_new_tokens, profile.generation.max_rounds)
more = {"settings": how, "batch_size": profile.evaluation.batch_size, "quiet": True}
replies = {"before": start, "after": checkpoints.whole_checkpoint(out / "model")}
for name, path in replies.items():
    checkpoint = inference.Checkpoint(path, dtype=profile.model.dtype, device=profile.model.device)
    file = out / f"test-{name}-{short_hash(asdict(how), dict(test.identity))}.jsonl"
    rows = evaluation.read_table(evaluation.evaluate(test, file, checkpoint, **more))
    replies[name] = rows.assign(iou=rows["iou_first"].where(rows["boxes"].str.len() > 0))

# %%
MEASURES = {"right answers": "correct", "right conclusions": "concluded", "format compliance": "format"}
MEASURES |= {"rationale-answer consistency": "followed", "100 x IoU of the first box": "iou"}
changes = {"2D": {}, "3D": {}}
for d, name, value in ((d, *one) for d in changes for one in MEASURES.items()):
    pair = [one[one["dimension"] == d.lower()].dropna(subset=value) for one in replies.values()]
    if not pair[0]["id"].isin(pair[1]["id"]).any():
        continue  # nothing to measure
    gain = evaluation.compare(*pair, value)
    change, *ends = (100 * x for x in (gain.difference.value, gain.difference.low, gain.difference.high))
    changes[d] |= {name: (change, *ends)} if ends[0] == ends[0] else {}  # nan where all replies are alike
    note = f"{100 * gain.a:.1f} before, {100 * gain.b:.1f} after, {gain.questions} questions"
    publish(f"RL, {d}: change of {name}", change, "points", interval=ends, note=note)
kept = read_pooled(root / "data" / "results" / "rl.csv.gz")
for value, d in ((value, d) for value in ("correct", "iou_first") for d in ("2d", "3d")):
    pair = [select(kept, name, dimension=d) for name in ("before", "after")]
    before, after = (100 * one.groupby("seed")[value].mean() for one in pair)
    gain = evaluation.compare(*pair, value, paired_seeds=True).difference.text(100, "+")
    print(f"three seeds, {d.upper()} {value}: {gain} points; each {(after - before).round(1).tolist()}")
display.plot_intervals(changes, "points gained", reference=("none", 0)) if any(changes.values()) else None

# %% [markdown]
# Three seeds leave open whether answers improve. The IoU in volumes, though, falls in all of them: a reward for answers does not protect boxes.
# ## 6 · Replies that conclude one thing and answer another
# The reward reads the letter, not the reasoning. For every reply sampled in training: does the reasoning end on the right option?

# %%
options = {r.id: r.options for r in records}  # `lines`: rollouts of the run
table = pd.DataFrame(lines)[["id", "text", "truth", "reward"]]
thoughts = table["text"].str.partition("</think>")[0]
ends = [rationales.conclusion(text, options[i]) for text, i in zip(thoughts, table["id"], strict=True)]
table["ends on"] = np.select([pd.isna(ends), table["truth"] == ends], ["no option", "right"], "another")
table["reply"] = pd.cut(table["reward"], [-1, 0.5, 0.999, 2], labels=["wrong", "partly", "full reward"])
paid = table[table["reply"] == "full reward"]
odd = paid[paid["ends on"] == "another"]
publish("RL: full reward, reasoning ends on another option", len(odd), note=f"of {len(paid):,}")
print(*(f"{options[one['id']]}\n{one['text']}" for _, one in odd.tail(2).iterrows()), sep="\n\n", end="")
pd.crosstab(table["reply"], table["ends on"])

# %% [markdown]
# *Partly*: right letter, incomplete format. *Full reward* with *another*: a rewarded contradiction, rare here after fine-tuning on consistent replies.
# **Remember**: RL shifts what is already sampled; measure answers, boxes and reasoning separately. **Next**: does it look? [06](06_evaluation.ipynb).
# ## Check yourself

# %%
R, A = (torch.tensor([line[k] for line in lines]).view(-1, size) for k in ("reward", "advantage"))
assert torch.allclose(torch.stack([advantages(group) for group in R.tolist()]), A, atol=1e-3)
print("all checks passed")

# %% [markdown]
# ## Exercises ([solutions](solutions/05_outcome_rl.py))
# 1. Compare advantages of 1, 1, 1, 0.2 and of 1, 1, 0.2, 0.2, with and without division by std ([Dr. GRPO](https://arxiv.org/abs/2503.20783)).
# 2. Sample from two distributions over three tokens. Which of k1 $= -\log \rho$, k2 $= (\log \rho)^2 / 2$, k3 are unbiased, which never negative?
# 3. Write an answer reward that is not paid when the reasoning ends on another option. What could a model learn from it?
# 4. Train on few questions (`OVERRIDES="grpo_data.records_2d=80, grpo_data.records_3d=80"`). Compare the reward's rise with the accuracy in section 5.
