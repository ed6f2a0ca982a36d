"""How the tiny base learns: a plan of stages, one loop, checkpoints, and tests of its skills on held-out exercises.

Tying an option's text to its letter is a skill of its own, and it does not come by itself in the time that a laptop
has. So it is taught first, on text alone, while a few attention heads are shown where to look
(:mod:`unireason_lib.training.base.guidance`). Beside it the vision tower learns what its tokens cover
(:mod:`unireason_lib.training.base.seeing`). Pointing follows, then everything together.
The loop is transformers' ``Trainer``: batches are numbered, every one follows from its number, so a run that is killed
goes on exactly where its last checkpoint was.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainingArguments

from unireason_lib.training.base.guidance import WEIGHT, Guide, Hops, collate_hops, find_hops
from unireason_lib.training.base.seeing import (
    collate_sights,
    find_looks,
    find_sights,
    picture_tokens,
)
from unireason_lib.training.base.skills import measure
from unireason_lib.training.base.tasks import UNASKED, Exercise, exercise
from unireason_lib.training.checkpoints import ExactResume, save_model, train
from unireason_lib.training.encoding import IGNORED, Collator, Encoded, Encoder
from unireason_lib.training.logbook import Logbook, Probe
from unireason_lib.training.loss import fast_bfloat16, own_token_loss
from unireason_lib.training.muon import muon_factory

Groups = tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Plan:
    """What is learnt when.

    Attributes:
        stages: (Share of the steps, groups of every step in that stage as (stage of exercises, how many)). Every
            step has the same number of groups; one group is one forward pass, so that short samples are not
            padded to the length of long ones.
        steps: Optimizer steps in all.
        learning_rate: Highest rate, reached after ``warmup`` steps, then falling along a cosine to a tenth.
        muon: The same for the matrices of the layers, which :mod:`unireason_lib.training.muon` teaches.
        warmup: Steps.
        seed: Of the exercises.
    """

    stages: tuple[tuple[float, Groups], ...] = (
        (0.05, (("words", 24), ("words", 24), ("shapes", 64))),
        (0.13, (("letters", 24), ("letters", 24), ("shapes", 64))),
        (0.14, (("text", 24), ("text", 24), ("shapes", 64))),
        (0.20, (("pointing", 32), ("pointing", 32), ("text", 16))),
        (0.48, (("one picture", 40), ("several pictures", 12), ("text", 16))),
    )
    steps: int = 3300
    learning_rate: float = 1.3e-3
    muon: float = 3e-3
    warmup: int = 50
    seed: int = 0

    def groups(self, step: int) -> Groups:
        """The groups of a step."""
        end = 0.0
        for share, groups in self.stages:
            end += share * self.steps
            if step < round(end):
                return groups
        return self.stages[-1][1]

    @property
    def per_step(self) -> int:
        """Groups of a step."""
        return len(self.stages[0][1])


class Shown(NamedTuple):
    """An exercise, encoded, and what is shown with it: hops of attention, and sights of its picture tokens."""

    name: str
    encoded: Encoded
    hops: Hops
    sights: np.ndarray


class Batches(Dataset):
    """Numbered groups of encoded exercises."""

    def __init__(self, plan: Plan, processor: Any) -> None:
        self.plan, self.encode = plan, Encoder(processor)
        self.image_token = processor.tokenizer.convert_tokens_to_ids(processor.image_token)

    def __len__(self) -> int:
        return self.plan.steps * self.plan.per_step

    def __getitem__(self, index: int) -> list[Shown]:
        step, place = divmod(index, self.plan.per_step)
        groups = self.plan.groups(step)
        stage, count = groups[place]
        first = 1000 * step + sum(count for _, count in groups[:place])
        return [self._shown(exercise(stage, first + k, self.plan.seed)) for k in range(count)]

    def _shown(self, one: Exercise) -> Shown:
        encoded = self.encode(one.messages)
        words = self.encode.tokenizer.batch_decode(encoded.ids[:, None])
        hops = find_hops(words, encoded.own)
        truth = [part["truth"] for part in one.messages[0]["content"] if part["type"] == "image"]
        grids = [
            (p.shape[0] // self.encode.frame.factor, p.shape[1] // self.encode.frame.factor)
            for p in encoded.pictures
        ]
        places = picture_tokens(encoded.ids, self.image_token, grids)
        sights = find_sights(places, grids, truth)
        for name, more in find_looks(words, encoded.own, sights, places, truth).items():
            hops[name] += more
        return Shown(one.name, encoded, hops, sights)


class BaseTrainer(ExactResume, Trainer):
    """``Trainer`` whose loss looks at labelled tokens only; it also logs the share of tokens, and of letters
    in guided exercises, that are the likeliest."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shares: dict[str, list[float]] = {"right": [], "letter": []}
        self.guide = Guide(self.model, self.processing_class.tokenizer)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """Mean cross entropy of the step's labelled tokens, and the guidance."""
        hops, sights = inputs.pop("hops", None), inputs.pop("sights", None)
        if hops is None:  # pictures without a question
            with self.accelerator.autocast():
                found = model.model.get_image_features(
                    inputs["pixel_values"], inputs["image_grid_thw"], return_dict=True
                )
            seen = self.guide.sights.loss(
                torch.cat(found.pooler_output)[None], **sights, relative=True
            )
            return WEIGHT * seen
        self.guide.watch(True)
        with self.accelerator.autocast():
            loss, right = own_token_loss(model, inputs, num_items_in_batch)
        self.shares["right"].append(right.float().mean().item())
        due = _flags(right, inputs["labels"])[*hops["option"][:, :2].T]
        self.shares["letter"] += [due.float().mean().item()] if len(due) else []
        shown = self.guide.loss(hops, inputs["input_ids"], sights)
        self.guide.watch(False)
        return loss + shown  # the trainer divides both by the groups of a step

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """The trainer's numbers, and the shares."""
        if "loss" in logs:
            logs.update({name: fmean(values) for name, values in self.shares.items() if values})
            self.shares = {name: [] for name in self.shares}
        super().log(logs, *args, **kwargs)


def _flags(right: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Flags of labelled tokens, at the positions that predict them: ``(rows, tokens - 1)``, False elsewhere."""
    kept = labels[:, 1:] != IGNORED
    return torch.zeros_like(kept).masked_scatter(kept, right)


def _collated(collate: Collator, items: list[list[Shown]]) -> dict[str, Any]:
    group = items[0]
    batch = dict(collate([one.encoded for one in group]))
    if all(
        one.name in UNASKED for one in group
    ):  # all that is left are the pictures, their tokens one after the other
        sights = np.concatenate([one.sights for one in group])
        sights[:, 0] = np.arange(len(sights))
        kept = ("pixel_values", "image_grid_thw")
        labels = torch.full_like(batch["labels"], IGNORED)
        return {
            **{name: batch[name] for name in kept},
            "labels": labels,
            "sights": collate_sights([sights]),
        }
    batch["hops"] = collate_hops([one.hops for one in group])
    pictured = any(len(one.sights) for one in group)
    return {**batch, "sights": collate_sights([one.sights for one in group])} if pictured else batch


class StopAt(TrainerCallback):
    """Ends a run early: rates and exercises stay those of the whole plan."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Is it time?"""
        control.should_training_stop = (
            control.should_training_stop or state.global_step >= self.step
        )


def pretrain(
    start: str | Path,
    out: str | Path,
    plan: Plan | None = None,
    *,
    save_steps: int = 100,
    measure_steps: int = 340,
    measure_size: int = 48,
    workers: int = 1,
    until: int | None = None,
    progress: bool = False,
) -> Path:
    """Train a fresh tiny checkpoint on generic exercises; a run that was stopped goes on.

    Args:
        start: A checkpoint of :func:`unireason_lib.grounding.build_tiny`.
        out: Folder of the run: ``checkpoint-*``, ``log.jsonl``, at the end ``model/``.
        plan: What is learnt when.
        save_steps: Steps between checkpoints; two are kept.
        measure_steps: Steps between tests of the skills.
        measure_size: Held-out exercises of each test.
        workers: Processes that make exercises beside the training.
        until: Stop after so many steps of the plan, without a finished model; the folder can be gone on with.
        progress: Whether to show a bar.

    Returns:
        Folder of the finished model, or of the run when it was stopped before.
    """
    from unireason_lib.grounding import load_model

    plan, out = plan or Plan(), Path(out)
    if (out / "model").is_dir():
        return out / "model"
    model, processor = load_model(start, dtype="float32", device="cpu")
    model.requires_grad_(True)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=plan.steps,
        per_device_train_batch_size=1,  # one item is a whole group
        gradient_accumulation_steps=plan.per_step,
        train_sampling_strategy="sequential",
        learning_rate=plan.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.1},
        warmup_steps=plan.warmup,
        max_grad_norm=1.0,
        logging_steps=10,
        save_steps=save_steps,
        save_total_limit=2,
        dataloader_num_workers=workers,
        dataloader_prefetch_factor=4 if workers else None,
        dataloader_persistent_workers=workers > 0,
        remove_unused_columns=False,
        use_cpu=True,
        bf16=fast_bfloat16(),
        seed=plan.seed,
        report_to="none",
        disable_tqdm=not progress,
    )
    skills = Probe("skills", measure_steps, partial(measure, size=measure_size))
    collate = Collator(processor)
    trainer = BaseTrainer(
        model=model,
        args=arguments,
        train_dataset=Batches(plan, processor),
        data_collator=partial(_collated, collate),
        processing_class=processor,
        callbacks=[
            Logbook(out / "log.jsonl", processor, [skills]),
            *([] if until is None else [StopAt(until)]),
        ],
        optimizer_cls_and_kwargs=(
            muon_factory,
            {
                "lr": plan.learning_rate,
                "muon_lr": plan.muon,
                "weight_decay": 0.01,
                "betas": (0.9, 0.98),
            },
        ),
    )
    train(trainer, out)
    if trainer.state.global_step < plan.steps:
        return out
    return save_model(trainer, processor, out / "model")
