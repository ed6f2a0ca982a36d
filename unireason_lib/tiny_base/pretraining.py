"""How the tiny base learns: a plan of stages, one loop, a checkpoint.

Tying an option's text to its letter is a skill of its own and is taught first, on text alone;
beside it the vision tower learns what its tokens cover. Boxes follow, then everything together.
Exercises and rates follow from the number of the step, so a run that was killed resumes from its
checkpoint to the same weights.
"""

import json
import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from pathlib import Path
from statistics import fmean
from time import monotonic
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from unireason_lib import io
from unireason_lib.answers import THINK_END, THINK_START
from unireason_lib.errors import TrainingError
from unireason_lib.grounding import build_tiny, load_model
from unireason_lib.training.encoding import IGNORED, Collator, Encoder
from unireason_lib.training.optim import MuonWithAdamW, fast_bfloat16

from .exercises import Exercise, exercise
from .guidance import Guide, Targets, collate_targets, find_targets
from .skills import measure


@dataclass(frozen=True)
class Plan:
    """What is learnt when.

    Attributes:
        stages: (proportion of the steps, groups of each of them as (stage of exercises, how many)).
            One group is one forward pass, so that short exercises are not padded to long ones.
        learning_rate: Highest rate of AdamW (embeddings, norms, biases), reached after ``warmup``
            steps, then falling along a cosine to a tenth; ``muon``: that of Muon (matrices).
        seed, sizes: Of weights and exercises; of the model (:func:`~.grounding.build_tiny`).
        guidance: Whether the auxiliary targets of :mod:`~unireason_lib.tiny_base.guidance` are
            learnt too; the stage "shapes" then trains the vision tower alone.
    """

    stages: tuple[tuple[float, tuple[tuple[str, int], ...]], ...] = (
        (0.02, (("words", 24), ("words", 24), ("shapes", 64))),
        (0.06, (("letters", 24), ("letters", 24), ("shapes", 64))),
        (0.07, (("text", 24), ("text", 24), ("shapes", 64))),
        (0.15, (("pointing", 32), ("pointing", 32), ("text", 16))),
        (0.70, (("one image", 40), ("several images", 12), ("text", 16))),
    )
    steps: int = 13200
    learning_rate: float = 1.3e-3
    muon: float = 3e-3
    warmup: int = 50
    seed: int = 0
    guidance: bool = True
    sizes: dict[str, int] = field(default_factory=dict)

    def groups(self, step: int) -> tuple[tuple[str, int], ...]:
        """The groups of a step."""
        ends = accumulate(proportion for proportion, _ in self.stages)
        stage = sum(step >= round(end * self.steps) for end in ends)
        return self.stages[min(stage, len(self.stages) - 1)][1]

    def rate(self, step: int) -> float:
        """The rate of a step, as a proportion of the highest."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        done = (step - self.warmup) / max(1, self.steps - self.warmup)
        return 0.1 + 0.45 * (1 + math.cos(math.pi * done))


class Steps(Dataset):
    """Step -> its groups: stage, the model's arguments, and the auxiliary targets if wanted."""

    def __init__(self, plan: Plan, processor: Any) -> None:
        self.plan, self.tokenizer = plan, processor.tokenizer
        self.encode, self.collate = Encoder(processor), Collator(processor)
        self.merge = processor.image_processor.merge_size

    def __getitem__(self, step: int) -> list[tuple[str, dict[str, torch.Tensor], Targets | None]]:
        made, number = [], 1000 * step
        for stage, count in self.plan.groups(step):
            group = [exercise(stage, number + k, self.plan.seed) for k in range(count)]
            batch = dict(self.collate([self.encode(one.messages()) for one in group]))
            made.append((stage, batch, self.targets(group, batch) if self.plan.guidance else None))
            number += count
        return made

    def targets(self, group: Sequence[Exercise], batch: dict[str, torch.Tensor]) -> Targets:
        """The auxiliary targets of a batch."""
        patches = batch.get("image_grid_thw", torch.zeros(0, 3))
        grids, found = iter((patches[:, 1:] // self.merge).tolist()), []
        for one, ids in zip(group, batch["input_ids"], strict=True):
            words = self.tokenizer.batch_decode(ids[:, None])
            found.append(find_targets(one, words, [next(grids) for _ in one.images]))
        return collate_targets(found)


class Learner:
    """Model, optimizer and guidance of a run."""

    def __init__(self, plan: Plan, model: Any, processor: Any) -> None:
        self.plan, self.model = plan, model.requires_grad_(True)
        rates = {"lr": plan.learning_rate, "muon_lr": plan.muon}
        self.optimizer = MuonWithAdamW(model, **rates, weight_decay=0.01, betas=(0.9, 0.98))
        self.highest = [group["lr"] for group in self.optimizer.param_groups]
        self.guide = Guide(model, processor.tokenizer) if plan.guidance else None
        self.seen = torch.zeros(model.config.text_config.vocab_size, dtype=torch.bool)
        marks = [processor.tokenizer(mark).input_ids[0] for mark in "ABCD."]
        self.marks = torch.tensor(marks, device=model.device)

    def step(self, number: int, groups: list) -> Iterator[tuple[str, float]]:
        """One optimizer step; names and values for the log."""
        for group, rate in zip(self.optimizer.param_groups, self.highest, strict=True):
            group["lr"] = rate * self.plan.rate(number)
        for stage, batch, targets in groups:
            self.seen[batch["input_ids"].unique()] = True
            batch = {name: value.to(self.model.device) for name, value in batch.items()}
            with torch.autocast(self.model.device.type, torch.bfloat16, enabled=fast_bfloat16()):
                loss, values = self.loss(stage, batch, targets)
            (loss / len(groups)).backward()
            yield from {"loss": loss.item(), f"loss of {stage}": loss.item(), **values}.items()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        if not norm.isfinite():
            raise TrainingError(f"step {number}", "a finite gradient", str(norm), "lower the rates")
        self.optimizer.step()
        self.optimizer.zero_grad()

    def loss(
        self, stage: str, batch: dict[str, Any], targets: Targets | None
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """The loss of a group, and the proportions of its tokens, and of its letters, that were the
        likeliest. Logits are made of tokens with loss only: in a small model they cost most."""
        labels, ids = batch.pop("labels")[:, 1:], batch["input_ids"]
        if targets is not None:
            targets = Targets(*(part.to(ids.device) for part in targets))
            if stage == "shapes":
                return self.guide.tower_loss(batch, targets), {}
            batch |= {"output_attentions": True, "output_hidden_states": True}
        output, kept = self.model.model(**batch, use_cache=False), labels != IGNORED
        logits = self.model.lm_head(output.last_hidden_state[:, :-1][kept]).float()
        loss, right = cross_entropy(logits, labels[kept]), logits.argmax(-1) == labels[kept]
        letters = torch.isin(ids, self.marks[:4]) & (ids.roll(-1, 1) == self.marks[4])
        letters = right[letters[:, 1:][kept]]
        loss = loss if targets is None else loss + self.guide.loss(output, ids, targets)
        values = {"right": right, **({"letter": letters} if len(letters) else {})}
        return loss, {name: value.float().mean().item() for name, value in values.items()}


def pretrain(
    out: str | Path,
    plan: Plan | None = None,
    *,
    start: str | Path | None = None,
    until: int | None = None,
    save_steps: int = 100,
    measure_steps: int = 330,
    measure_size: int = 48,
    final_size: int = 1000,
    workers: int = 1,
    progress: bool = False,
) -> Path:
    """Train a tiny checkpoint on exercises; a run that was stopped or killed is resumed.

    Args:
        out: Folder of the run: ``log.jsonl``, ``checkpoint.pt``, and at the end ``model/``.
        start: A checkpoint to begin with; default: random weights of the plan's sizes and seed.
        until: Stop after so many steps; exercises and rates stay those of the whole plan.
        save_steps, measure_steps: Steps between checkpoints, and between tests of the skills.
        measure_size, final_size: Held-out exercises of each stage in such a test, and in the last.
        workers, progress: Processes that make exercises; whether to show a bar.

    Returns ``out/model``, with log and ``skills.json``; ``out`` if it was stopped before its end.
    Raises a :class:`TrainingError` when the folder holds a run of another plan or the gradient is
    not finite, a :class:`DatasetError` when another process trains into it or the disk is full.
    """
    plan, out = plan or Plan(), Path(out)
    log, end = out / "log.jsonl", min(until or plan.steps, plan.steps)
    with io.locked(out / ".lock", f"the run {out}"):
        _keep_plan(out / "plan.json", {**asdict(plan), "start": start and str(start)})
        if (out / "model").is_dir():
            return out / "model"
        if start is None and not (out / "start").is_dir():
            build_tiny(out / "start", seed=plan.seed, **plan.sizes)
        model, processor = load_model(start or out / "start", dtype="float32")
        learner = Learner(plan, model, processor)
        first = _resume(out / "checkpoint.pt", learner)
        # what came after the checkpoint comes again
        done = [line for line in io.read_lines(log) if line["step"] <= first]
        io.write_whole(log, "".join(f"{json.dumps(line)}\n" for line in done))
        prefetch = {"prefetch_factor": 4} if workers else {}
        steps = Subset(Steps(plan, processor), range(first, end))
        loader = DataLoader(steps, batch_size=None, num_workers=workers, **prefetch)
        bar, seen, began = tqdm(initial=first, total=end, disable=not progress), {}, monotonic()
        for step, groups in enumerate(loader, first + 1):
            for name, value in learner.step(step - 1, groups):
                seen.setdefault(name, []).append(value)
            bar.update()
            if step % 10 == 0 or step == end:
                line = {"step": step, **{name: fmean(values) for name, values in seen.items()}}
                line["learning_rate"] = plan.learning_rate * plan.rate(step - 1)
                io.append_lines(log, [{**line, "seconds": round(monotonic() - began, 2)}])
                seen, began = {}, monotonic()
            if step % measure_steps == 0 or step == plan.steps:
                skills = measure(model, processor, measure_size)
                io.append_lines(log, [{"step": step, "skills": skills}])
            if step % save_steps == 0 or step == end:
                state = {"model": model.state_dict(), "optimizer": learner.optimizer.state_dict()}
                with io.whole_file(out / "checkpoint.pt") as file:
                    torch.save({"step": step, "seen": learner.seen, **state}, file)
        if end < plan.steps:
            return out
        draw_unseen(model, processor.tokenizer, learner.seen, plan.seed)
        skills = measure(model, processor, final_size)
        with io.whole_folder(out / "model") as temporary:
            model.save_pretrained(temporary)
            processor.save_pretrained(temporary)
            io.write_json(temporary / "skills.json", skills)
            shutil.copy(log, temporary)
        return out / "model"


def draw_unseen(model: Any, tokenizer: Any, seen: torch.Tensor, seed: int) -> None:
    """Prepare the rows of tokens that were never ``seen``, (vocabulary,), for fine-tuning: the
    softmax has pushed them all the same way, so that new words look alike and no skill applies to
    them. They keep 0.3 of that and get a part of their own, with the covariance of the other rows;
    ``<think>`` and ``</think>`` begin as the line break, which ends reasoning in the exercises."""
    rows, generator = model.get_input_embeddings().weight, torch.Generator().manual_seed(seed)
    known, unseen = rows.detach()[seen].cpu(), rows.detach()[~seen]
    spread = torch.linalg.cholesky(known.T.cov() + 1e-6 * torch.eye(rows.shape[1]))
    drawn = torch.randn(unseen.shape, generator=generator) @ spread.T
    with torch.no_grad():
        rows[~seen] = 0.3 * unseen.mean(0) + drawn.to(rows)
        line_break = rows[tokenizer("\n").input_ids[-1]].clone()
        rows[tokenizer.convert_tokens_to_ids([THINK_START, THINK_END])] = line_break


def _keep_plan(path: Path, plan: dict[str, Any]) -> None:
    plan = json.loads(json.dumps(plan))  # lists in place of tuples, as in the file
    if path.exists() and io.read_json(path, TrainingError) != plan:
        do = "give the same plan to resume it, or train into another folder"
        raise TrainingError(path, "the plan of this run", "another plan", do)
    io.write_json(path, plan)


def _resume(path: Path, learner: Learner) -> int:
    """Load a checkpoint, if there is one; the number of its step."""
    if not path.exists():
        return 0
    state = torch.load(path, weights_only=True, map_location=learner.model.device)
    learner.model.load_state_dict(state["model"])
    learner.optimizer.load_state_dict(state["optimizer"])
    learner.seen = state["seen"]
    return state["step"]
