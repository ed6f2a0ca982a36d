"""How the tiny base learns: a plan of stages, one loop, a checkpoint.

Tying an option's text to its letter is a skill of its own and is taught first, on text alone;
beside it the vision tower learns what its tokens cover. Boxes follow, then everything together.
Exercises and rates follow from the number of the step, so a run that was killed goes on from its
checkpoint to the same weights.
"""

from __future__ import annotations

import json
import math
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

from unireason_lib.errors import TrainingError
from unireason_lib.grounding import load_model
from unireason_lib.grounding.tiny import build_tiny
from unireason_lib.io import locked, read_json, whole_file, write_json, write_whole
from unireason_lib.training.encoding import IGNORED, Collator, Encoder
from unireason_lib.training.loss import fast_bfloat16
from unireason_lib.training.muon import MuonWithAdamW

from .exercises import exercise
from .guidance import Guide, Targets, collate_targets, find_targets
from .skills import measure


@dataclass(frozen=True)
class Plan:
    """What is learnt when.

    Attributes:
        stages: (proportion of the steps, groups of each of them as (stage of exercises, how many)).
            One group is one forward pass, so that short exercises are not padded to long ones.
        steps: Optimizer steps in all.
        learning_rate: Highest rate of AdamW (embeddings, norms, biases), reached after ``warmup``
            steps, then falling along a cosine to a tenth; ``muon``: that of Muon (matrices).
        seed: Of weights and exercises.
        guidance: Whether the auxiliary targets of :mod:`~unireason_lib.tiny_base.guidance` are
            learnt too; the stage "shapes" then trains the vision tower alone.
        sizes: Of the model, see :func:`unireason_lib.grounding.build_tiny`.
    """

    stages: tuple[tuple[float, tuple[tuple[str, int], ...]], ...] = (
        (0.05, (("words", 24), ("words", 24), ("shapes", 64))),
        (0.13, (("letters", 24), ("letters", 24), ("shapes", 64))),
        (0.14, (("text", 24), ("text", 24), ("shapes", 64))),
        (0.20, (("pointing", 32), ("pointing", 32), ("text", 16))),
        (0.48, (("one image", 40), ("several images", 12), ("text", 16))),
    )
    steps: int = 3300
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

    def targets(self, group: list, batch: dict[str, torch.Tensor]) -> Targets:
        """The auxiliary targets of a batch."""
        grids = iter((batch.get("image_grid_thw", torch.zeros(0, 3)) // self.merge)[:, 1:].tolist())
        words = (self.tokenizer.batch_decode(ids[:, None]) for ids in batch["input_ids"])
        pairs = zip(group, words, strict=True)
        return collate_targets(
            [find_targets(e, w, [next(grids) for _ in e.images]) for e, w in pairs]
        )


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
    """Train a tiny checkpoint on exercises; a run that was stopped or killed goes on.

    Args:
        out: Folder of the run: ``log.jsonl``, ``checkpoint.pt``, at the end ``model/`` (with the
            log and ``skills.json`` beside the weights).
        plan: What is learnt when.
        start: A checkpoint to begin with; default: random weights of the plan's sizes and seed.
        until: Stop after so many steps; exercises and rates stay those of the whole plan.
        save_steps: Steps between checkpoints: a run that is killed loses no more.
        measure_steps, measure_size: Steps between tests of the skills, and held-out exercises of
            each stage in one; ``final_size``: of the last one.
        workers: Processes that make exercises beside the training.
        progress: Whether to show a bar.

    Returns:
        ``out/model``, or ``out`` if the run was stopped before its end.

    Raises:
        TrainingError: The folder holds a run of another plan, or the gradient is not finite.
        DatasetError: Another process trains into the folder, or the disk is full.
    """
    plan, out = plan or Plan(), Path(out)
    log, checkpoint, finished = out / "log.jsonl", out / "checkpoint.pt", out / "model"
    with locked(out / ".lock", f"the run {out}"):
        _check_plan(out / "plan.json", {**asdict(plan), "start": start and str(start)})
        if finished.is_dir():
            return finished
        if start is None and not (out / "start").is_dir():
            build_tiny(out / "start", seed=plan.seed, **plan.sizes)
        model, processor = load_model(start or out / "start", dtype="float32")
        model.requires_grad_(True)
        guide = Guide(model, processor.tokenizer) if plan.guidance else None
        rates = {"lr": plan.learning_rate, "muon_lr": plan.muon}
        optimizer = MuonWithAdamW(model, **rates, weight_decay=0.01, betas=(0.9, 0.98))
        highest, first, end = [g["lr"] for g in optimizer.param_groups], 0, until or plan.steps
        if checkpoint.exists():
            state = torch.load(checkpoint, weights_only=True, map_location=model.device)
            model.load_state_dict(state["model"])
            optimizer.load_state_dict(state["optimizer"])
            first = state["step"]
        kept = [line for line in read_log(log) if line["step"] <= first] if log.exists() else []
        write_whole(log, (json.dumps(line) + "\n" for line in kept))  # the others come again
        loader = DataLoader(
            Subset(Steps(plan, processor), range(first, end)),
            batch_size=None,
            num_workers=workers,
            prefetch_factor=4 if workers else None,
        )
        marks = torch.tensor([processor.tokenizer(mark).input_ids[0] for mark in "ABCD."])
        seen, began = {}, monotonic()
        for step, groups in enumerate(tqdm(loader, initial=first, total=end, disable=not progress)):
            step += first
            for group, rate in zip(optimizer.param_groups, highest, strict=True):
                group["lr"] = rate * plan.rate(step)
            for stage, batch, targets in groups:
                loss, values = _loss(model, guide, marks.to(model.device), stage, batch, targets)
                (loss / len(groups)).backward()
                values |= {"loss": loss.item(), f"loss of {stage}": loss.item()}
                for name, value in values.items():
                    seen.setdefault(name, []).append(value)
            if not (norm := torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)).isfinite():
                raise TrainingError(
                    f"step {step}", "a finite gradient", f"{norm}", "lower the rates"
                )
            optimizer.step()
            optimizer.zero_grad()
            step += 1
            line: dict[str, Any] = {}
            if step % 10 == 0 or step == end:
                line = {name: fmean(values) for name, values in seen.items()}
                line |= {"learning_rate": plan.learning_rate * plan.rate(step - 1)}
                line |= {"seconds": round(monotonic() - began, 2)}
            if step % measure_steps == 0 or step == plan.steps:
                line["skills"] = measure(model, processor, measure_size)
            if line:
                with log.open("a", encoding="utf-8") as file:
                    file.write(json.dumps({"step": step, **line}) + "\n")
                seen, began = ({}, monotonic()) if "loss" in line else (seen, began)
            if step % save_steps == 0 or step == end:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                with whole_file(checkpoint) as file:
                    torch.save({"step": step, **state}, file)
        if end < plan.steps:
            return out
        temporary = out / "model.partial"
        write_json(temporary / "skills.json", measure(model, processor, final_size))
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
        write_whole(temporary / "log.jsonl", log.read_text(encoding="utf-8"))
        return temporary.rename(finished)


def _loss(
    model: Any,
    guide: Guide | None,
    marks: torch.Tensor,
    stage: str,
    batch: dict[str, Any],
    targets: Targets | None,
) -> tuple[torch.Tensor, dict[str, float]]:
    """The loss of a group; the proportions of its tokens, and of its letters, that were the
    likeliest. ``marks`` are the tokens A, B, C, D and the full stop behind them."""
    batch = {name: value.to(model.device) for name, value in batch.items()}
    labels, ids = batch.pop("labels")[:, 1:], batch["input_ids"]
    with torch.autocast(model.device.type, torch.bfloat16, enabled=fast_bfloat16()):
        if guide is not None:
            targets = Targets(*(part.to(model.device) for part in targets))
            if stage == "shapes":
                return guide.tower_loss(batch, targets), {}
            batch |= {"output_attentions": True, "output_hidden_states": True}
        output, kept = model.model(**batch, use_cache=False), labels != IGNORED
        logits = model.lm_head(output.last_hidden_state[:, :-1][kept]).float()  # of no other tokens
        loss = cross_entropy(logits, labels[kept])
        loss = loss + guide.loss(output, ids, targets) if guide is not None else loss
    right = (logits.argmax(-1) == labels[kept]).float()
    letters = (torch.isin(ids[:, 1:], marks[:4]) & (ids.roll(-2, 1)[:, :-1] == marks[4]))[kept]
    values = {"right": right.mean().item()}
    return loss, values | ({"letter": right[letters].mean().item()} if letters.any() else {})


def _check_plan(path: Path, settings: dict[str, Any]) -> None:
    settings = json.loads(json.dumps(settings))
    if path.exists() and read_json(path, TrainingError) != settings:
        do = "give the same plan to go on, or train into another folder"
        raise TrainingError(path, "the plan of this run", "another plan", do)
    write_json(path, settings)


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a log: ``step``, means over the steps since the last line, ``skills``."""
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]
