"""Outcome RL: TRL's ``GRPOTrainer`` with rollouts that point, look again and answer.

What is ours is little: how replies come about (:class:`~unireason_lib.grounding.GroundedGenerator`, all rollouts of a
step in one batch, those of one prompt sharing its encoding), and that the crops of a reply reach the forward pass with
the pictures of the prompt, while injected tokens carry neither loss nor KL. Advantages, clipping, KL to the reference,
accelerate, PEFT, checkpoints and trackers are TRL's.

    records -> Questions -> [GroundedGenerator] -> rewards -> GRPOTrainer -> model/, log.jsonl, rollouts.jsonl

What depends on the installed TRL is in :class:`GroundedGRPOTrainer` alone: the tuple of the private ``_generate``, and
that pictures in a completion are taken as those of a tool. :func:`check_trl` refuses versions this was not tried with.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

import datasets
import numpy as np
import torch
import trl
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from unireason_lib.dataset.schema import Record
from unireason_lib.errors import TrainingError, UniReasonError
from unireason_lib.evaluation.items import Item
from unireason_lib.evaluation.parquet import record_item
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Trace
from unireason_lib.grounding.elsewhere import repeat_elsewhere
from unireason_lib.grounding.generate import end_tokens
from unireason_lib.grounding.model import base_model
from unireason_lib.grounding.replies import GroundedInterface
from unireason_lib.grounding.served import Client, ServedGenerator, connect
from unireason_lib.training.card import model_card
from unireason_lib.training.checkpoints import (
    ExactResume,
    keep_settings,
    save_model,
    serialization_of,
    train,
)
from unireason_lib.training.examples import Images
from unireason_lib.training.logbook import Logbook, Probe, append_lines, read_lines
from unireason_lib.training.memory import give_back
from unireason_lib.training.remember import SeenImages
from unireason_lib.training.rewards import Asked, Reward, rewards
from unireason_lib.training.settings import RunSettings, processes, spread_by
from unireason_lib.training.sft import count_parameters, freeze, full_precision, lora

TESTED_TRL = ("1.16",)
"""Versions of TRL whose private interface this was tried with."""


def check_trl(version: str = trl.__version__) -> None:
    """Refuse a TRL whose private interface may be another.

    Raises:
        TrainingError: It is not one of :data:`TESTED_TRL`.
    """
    if ".".join(version.split(".")[:2]) not in TESTED_TRL:
        raise TrainingError(
            "trl",
            " or ".join(f"{tested}.x" for tested in TESTED_TRL),
            version,
            "install that version (the lock file names it); outcome RL relies on private parts of TRL",
        )


@dataclass(frozen=True, kw_only=True)
class RLSettings(RunSettings):
    """How to train; the paper's values are in ``gpu.yaml``. See :class:`RunSettings` for the rest.

    Attributes:
        mode: Of the rewards, ``"strict"`` or ``"paper"``; see :mod:`unireason_lib.training.rewards`.
        iou, area, contrast: Weights of the optional rewards; 0 leaves them out, as the paper does.
        prompts: Questions of one generation.
        rollouts: Replies to each of them.
        mini_batch: Questions of one optimizer step; a divisor of ``prompts``.
        generated_together: Questions whose replies are written in one batch on one device; None: all that it has. What
            memory for keys and values allows; see ``plan``.
        micro_batch: Replies of one forward pass on one device.
        kl: Weight of the KL divergence to the model at the start (estimator k3, of low variance).
        clip: Of the ratio of probabilities.
        reply_temperature, reply_tokens, reply_rounds: Of the sampling; ``temperature``, ``max_new_tokens`` and
            ``max_rounds`` of :class:`~unireason_lib.grounding.replies.Settings`.
        max_prompt_tokens: Longest prompt; questions with a longer one are left out and listed.
        replace_flat: How many times a group whose rewards are all equal, from which nothing can be learnt, is replaced
            by another question before its step; 0 keeps it.
        keep_features: Encode no picture twice (:mod:`unireason_lib.training.remember`), with a frozen vision tower.
        vllm: Address of a vLLM server that makes the rollouts (``http://host:port``); empty: the trainer's own model.
        patience: Logged steps after which a collapse (see :class:`Collapse`) ends the run; 0 never does.
    """

    epochs: float = 3.0
    learning_rate: float = 1e-6
    schedule: str = "constant"
    warmup: float = 0.0
    save_steps: int = 20
    log_steps: int = 1
    mode: str = "strict"
    iou: float = 0.0
    area: float = 0.0
    contrast: float = 0.0
    prompts: int = 128
    rollouts: int = 16
    mini_batch: int = 64
    micro_batch: int = 8
    generated_together: int | None = None
    kl: float = 0.01
    clip: float = 0.2
    reply_temperature: float = 1.0
    reply_tokens: int = 8192
    reply_rounds: int = 10
    max_prompt_tokens: int = 60_000
    replace_flat: int = 0
    keep_features: bool = False
    vllm: str = ""
    patience: int = 20

    def __post_init__(self) -> None:
        whole = self.rollouts >= 2 and self.prompts % self.mini_batch == 0
        if not whole or (self.mini_batch * self.rollouts) % self.micro_batch:
            raise TrainingError(
                "settings of RL",
                "two rollouts or more, mini_batch a divisor of prompts, and micro_batch one of "
                "mini_batch x rollouts",
                f"prompts {self.prompts}, mini_batch {self.mini_batch}, rollouts {self.rollouts}, "
                f"micro_batch {self.micro_batch}",
                "correct them",
            )
        if self.vllm and self.contrast:
            raise TrainingError(
                "contrast",
                "rollouts of the trainer's own model",
                f"vllm={self.vllm}",
                "leave one of them out: a server can not be made to repeat a reply",
            )
        if self.keep_features and not self.freeze_vision:
            raise TrainingError(
                "keep_features",
                "a frozen vision tower",
                "freeze_vision: false",
                "freeze the tower, or do not keep features",
            )


class Questions:
    """The questions of a run: how each is put, and what its replies are held against.

    Args:
        records: What is asked.
        pictures: Gives the pictures of a record.
        max_prompt_tokens: Longest prompt.
        left_out: File of JSON lines that names the questions which cannot be asked, and why.

    A question is looked at when its turn comes. One whose pictures are missing, or whose prompt is too long, is named
    in ``left_out`` and never asked again.
    """

    def __init__(
        self, records: Sequence[Record], pictures: Images, max_prompt_tokens: int, left_out: Path
    ) -> None:
        self.items: list[Item] = [record_item(record, pictures) for record in records]
        self.max_prompt_tokens, self.left_out = max_prompt_tokens, left_out
        self._unusable = {
            line["row"] for line in (read_lines(left_out) if left_out.exists() else ())
        }

    def __len__(self) -> int:
        return len(self.items)

    def put(self, row: int, generator: GroundedInterface) -> tuple[GroundedRequest, Asked] | None:
        """A question with its pictures, and what a reply is held against; None when it cannot be asked."""
        if row in self._unusable:
            return None
        item = self.items[row]
        try:
            shown = list(item.load())
            request = item.request(shown)
            tokens = prompt_tokens(generator, request)
            if tokens > self.max_prompt_tokens:
                raise TrainingError(
                    f"prompt of {tokens} tokens, longer than {self.max_prompt_tokens}"
                )
            height, width = shown[0].height, shown[0].width
            boxes = tuple(box for _, box in item.boxes_in(generator.frame, height, width))
        except (UniReasonError, OSError) as error:
            self._unusable.add(row)
            append_lines(self.left_out, [{"row": row, "id": item.id, "why": str(error)[:500]}])
            return None
        height, width = generator.frame.size(height, width)
        frame = (width, height, len(shown))
        return request, Asked(item.answer or "", dict(item.options), item.dimension, frame, boxes)


def prompt_tokens(generator: GroundedInterface, request: GroundedRequest) -> int:
    """Tokens of a prompt, counted without looking at its pixels."""
    text = generator.processor.apply_chat_template(
        request.conversation(), tokenize=False, add_generation_prompt=True
    )
    shown = sum(generator.frame.tokens(image.height, image.width) for image in request.images)
    return len(generator.tokenizer(text).input_ids) + shown - len(request.images)


@dataclass(frozen=True)
class Rollout:
    """One reply and what it earned.

    Attributes:
        row: Which question.
        trace: The reply.
        asked: What it was held against.
        parts: Reward -> value, not weighted.
        reward: Their weighted sum.
    """

    row: int
    trace: Trace
    asked: Asked
    parts: Mapping[str, float]
    reward: float

    def line(self, **more: Any) -> dict[str, Any]:
        """As JSON: the reply in words, what became of its boxes, what it earned. Its pictures are those of ``id``."""
        trace = self.trace
        return {
            **more,
            "row": self.row,
            "id": trace.request.id,
            "dimension": trace.request.dimension,
            "truth": self.asked.truth,
            "text": trace.text,
            "boxes": [list(box.as_tuple()) for box in trace.boxes],
            "statuses": [pointing.status for pointing in trace.pointings],
            "stop": trace.stop,
            "rounds": trace.rounds,
            "own_tokens": sum(trace.own_mask),
            **{f"reward {name}": value for name, value in self.parts.items()},
            "reward": self.reward,
        }


class GroundedGRPOTrainer(ExactResume, GRPOTrainer):
    """TRL's trainer whose completions are grounded replies.

    Args:
        questions: What is asked; ``train_dataset`` holds their numbers in its column ``row``.
        settings: How.
        diary: File of JSON lines to which every reply is added; None keeps none.
    """

    def __init__(
        self,
        *args: Any,
        questions: Questions,
        settings: RLSettings,
        diary: Path | None = None,
        **kwargs: Any,
    ) -> None:
        check_trl()
        self.questions, self.settings, self.diary = questions, settings, diary
        self.named: dict[str, tuple[Reward, float]] = rewards(
            settings.mode, settings.iou, settings.area
        )
        names = [*self.named, *(["contrast"] if settings.contrast else [])]
        super().__init__(*args, reward_funcs=[self._as_trl(name) for name in names], **kwargs)
        # TRL takes pictures into a completion only from tools; none is ever called by name
        self.tools = self._standalone_tools = [look_again]
        self._now: list[Rollout] = []
        self._client: Client | None = None

    def _as_trl(self, name: str) -> Any:
        def reward(completions: Sequence[Any], **kwargs: Any) -> list[float]:
            return [rollout.parts[name] for rollout in self._now]

        reward.__name__ = name
        return reward

    def _get_train_sampler(self, dataset: Any = None) -> torch.utils.data.Sampler:
        """TRL's sampler, whose order follows from seed and epoch alone: a run that goes on in its second epoch sees
        what it would have seen."""
        sampler = super()._get_train_sampler(dataset)
        return EpochOrder(sampler, self.args.seed, lambda: int((self.state.epoch or 0) + 1e-6))

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        mode = "train" if self.model.training else "eval"
        count = self.num_generations if mode == "train" else self.num_generations_eval
        rows = [one["row"] for one in inputs]
        if any(len(set(rows[first : first + count])) > 1 for first in range(0, len(rows), count)):
            raise TrainingError(
                "rollouts",
                "all replies to a question on one device",
                f"{len(rows)} replies a device, {count} a question",
                "make micro_batch x forward passes of a generation a multiple of rollouts",
            )
        started = time.perf_counter()
        self._now = self._roll_out(rows[::count], count, mode)
        self._metrics[mode]["rollout_seconds"].append(time.perf_counter() - started)
        self._note(mode)
        inputs = [
            {**one, "row": rollout.row} for one, rollout in zip(inputs, self._now, strict=True)
        ]
        output = super()._generate_and_score_completions(inputs)
        if "pixel_values" not in output:  # TRL would go on, blind
            raise TrainingError(
                "rollouts",
                "as many picture tokens as the pictures have features",
                "another number",
                "check that model and processor belong together",
            )
        if self.diary is not None and mode == "train":
            step, given = self.state.global_step, output["advantages"].tolist()
            lines = [
                rollout.line(step=step, advantage=advantage)
                for rollout, advantage in zip(self._now, given, strict=True)
            ]
            append_lines(self.diary, lines)
        give_back()
        return output

    def _generate(self, prompts: list[Any]) -> tuple[Any, ...]:
        """What TRL asks for of the replies that were just made. The order is that of TRL's own method."""
        traces = [rollout.trace for rollout in self._now]
        crops = [[crop for p in trace.pointings for crop in p.crops] for trace in traces]
        pictures = [[one.convert("RGB") for one in trace.request.images] for trace in traces]
        for trace, mine, fetched in zip(traces, pictures, crops, strict=True):
            self._check_tokens(trace, len(mine) + len(fetched))
        mode = "train" if self.model.training else "eval"
        lengths = torch.tensor([[len(t.prompt_ids), sum(t.own_mask)] for t in traces])
        lengths = self.accelerator.gather(lengths.to(self.accelerator.device))
        if mode == "train":
            self.state.num_input_tokens_seen += int(lengths.sum())
        self._metrics[mode]["num_tokens"] = [self.state.num_input_tokens_seen]
        own = lengths[:, 1].float()
        for name, value in (("mean", own.mean()), ("min", own.min()), ("max", own.max())):
            self._metrics[mode][f"completions/{name}_length"].append(value.item())
        return (
            [list(trace.prompt_ids) for trace in traces],
            [list(trace.token_ids) for trace in traces],
            [list(trace.own_mask) for trace in traces],
            [[{"role": "assistant", "content": trace.text}] for trace in traces],
            [list(trace.logprobs) for trace in traces],
            {},
            [mine + fetched for mine, fetched in zip(pictures, crops, strict=True)],
            # as if all were a tool's, also when nothing was fetched: only then TRL counts picture tokens itself
            [mine + fetched for mine, fetched in zip(pictures, crops, strict=True)],
        )

    def _get_per_token_logps_and_entropies(
        self,
        model: Any,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        batch_size: int | None = None,
        **more: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """TRL's own, on replies of like length together and without the padding that they do not need: a batch of
        slices and volumes has much of it. What stood at the padding is zero; the loss does not look there."""
        rows = input_ids.shape[0]
        size = batch_size if batch_size is not None and batch_size < rows else -(-rows // 2)
        prompt = input_ids.shape[1] - logits_to_keep
        order = attention_mask.sum(dim=1).argsort(descending=True, stable=True)
        parts: list[list[torch.Tensor]] = []
        for chosen in order.split(size):
            used = attention_mask[chosen].any(dim=0)
            left = int(used[:prompt].int().argmax())
            kept = max(1, int(used[prompt:].sum()))  # completions are padded on the right
            span = slice(left, prompt + kept)
            found = super()._get_per_token_logps_and_entropies(
                model,
                input_ids[chosen][:, span],
                attention_mask[chosen][:, span],
                kept,
                **_of_rows(more, chosen, span),
            )
            padding = (0, logits_to_keep - kept)
            parts.append(
                [torch.nn.functional.pad(one, padding) for one in found[:2] if one is not None]
            )
        back = order.argsort()
        joined = [torch.cat(some)[back] for some in zip(*parts, strict=True)]
        return joined[0], joined[1] if len(joined) > 1 else None, None

    def _check_tokens(self, trace: Trace, pictures: int) -> None:
        tokens = (*trace.prompt_ids, *trace.token_ids)
        starts = tokens.count(self._tokenizer.convert_tokens_to_ids("<|vision_start|>"))
        if starts != pictures:
            raise TrainingError(
                trace.request.id or "a reply",
                f"{pictures} pictures in its tokens",
                str(starts),
                "check that the processor's template shows every picture once",
            )

    # -- rollouts -----------------------------------------------------------------------------------------------

    def _roll_out(self, rows: Sequence[int], count: int, mode: str) -> list[Rollout]:
        """Replies to some questions, ``count`` each; questions that cannot be asked are replaced, and those with equal
        rewards too, as often as the settings say."""
        draw = random.Random(
            f"{self.settings.seed}/{self.state.global_step}/{self.accelerator.process_index}"
        )
        with self._generator() as generator:
            groups = self._ask(rows, count, generator, draw, 0)
            flat = [k for k, group in enumerate(groups) if _is_flat(group)]
            self._metrics[mode]["flat_groups"].append(len(flat) / len(groups))
            for attempt in range(self.settings.replace_flat if mode == "train" else 0):
                if not flat:
                    break
                others = [draw.randrange(len(self.questions)) for _ in flat]
                for k, group in zip(
                    flat, self._ask(others, count, generator, draw, attempt + 1), strict=True
                ):
                    groups[k] = group
                flat = [k for k in flat if _is_flat(groups[k])]
            self._metrics[mode]["flat_groups_kept"].append(len(flat) / len(groups))
        return [rollout for group in groups for rollout in group]

    @contextmanager
    def _generator(self) -> Iterator[GroundedInterface]:
        """What makes replies: the model as it is now, here or behind a server that is given its weights first."""
        if not self.settings.vllm:
            with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
                yield GroundedGenerator(model, self.processing_class)
            return
        if self.state.global_step != self._last_loaded_step:
            self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step
        self._client = self._client or connect(
            self.settings.vllm
        )  # every process asks for its own questions
        ends = end_tokens(base_model(self.accelerator.unwrap_model(self.model)), self._tokenizer)
        yield ServedGenerator(self._client, self.processing_class, ends)

    def _ask(
        self,
        rows: Sequence[int],
        count: int,
        generator: GroundedInterface,
        draw: random.Random,
        attempt: int,
    ) -> list[list[Rollout]]:
        chosen, put = [], []
        for row in rows:
            for _ in range(100):
                if (found := self.questions.put(row, generator)) is not None:
                    break
                row = draw.randrange(len(self.questions))
            else:
                raise TrainingError(
                    self.questions.left_out,
                    "questions that can be asked",
                    "a hundred in a row that can not",
                    "see why in that file",
                )
            chosen.append(row)
            put.append(found)
        settings, requests = self.settings, [request for request, _ in put]
        together = settings.generated_together or len(requests)
        traces: list[Trace] = []
        for first in range(0, len(requests), together):
            traces += generator.generate(
                requests[first : first + together],
                max_new_tokens=settings.reply_tokens,
                max_rounds=settings.reply_rounds,
                temperature=settings.reply_temperature,
                samples=count,
                seed=hash_of(settings.seed, self.state.global_step, attempt, first),
            )
        groups = []
        for k, (row, (_, asked)) in enumerate(zip(chosen, put, strict=True)):
            mine = traces[k * count : (k + 1) * count]
            groups.append([self._scored(row, trace, asked) for trace in mine])
        return self._contrasted(groups, generator) if settings.contrast else groups

    def _contrasted(
        self, groups: Sequence[Sequence[Rollout]], generator: GroundedGenerator
    ) -> list[list[Rollout]]:
        """The same with a reward for right answers that are no longer right when the boxes fetch random regions."""
        flat = [rollout for group in groups for rollout in group]
        again = repeat_elsewhere(
            generator,
            [rollout.trace for rollout in flat],
            max_new_tokens=self.settings.reply_tokens,
            max_rounds=self.settings.reply_rounds,
        )
        answer, _ = self.named["answer"]
        told = []
        for rollout, other in zip(flat, again, strict=True):
            depends = other is not None and rollout.parts["answer"] > answer(
                other.text, rollout.asked
            )
            parts = {**rollout.parts, "contrast": float(depends)}
            told.append(
                replace(
                    rollout, parts=parts, reward=rollout.reward + self.settings.contrast * depends
                )
            )
        first = iter(told)
        return [[next(first) for _ in group] for group in groups]

    def _scored(self, row: int, trace: Trace, asked: Asked) -> Rollout:
        parts = {name: float(reward(trace.text, asked)) for name, (reward, _) in self.named.items()}
        total = sum(weight * parts[name] for name, (_, weight) in self.named.items())
        return Rollout(row, trace, asked, parts, total)

    def _note(self, mode: str) -> None:
        """Numbers of the replies for the log: rounds, boxes, and how the two dimensions fare."""
        traces = [rollout.trace for rollout in self._now]
        statuses = [pointing.status for trace in traces for pointing in trace.pointings]
        noted = {
            "rounds": fmean(trace.rounds for trace in traces),
            "boxes": len(statuses) / len(traces),
            "cut_off": fmean(trace.stop == "length" for trace in traces),
        }
        if statuses:
            noted["boxes_answered"] = statuses.count("injected") / len(statuses)
        for d in ("2d", "3d"):
            mine = [r.parts["answer"] for r in self._now if r.trace.request.dimension == d]
            noted |= {f"answer_{d}": fmean(mine)} if mine else {}
        for name, value in noted.items():
            self._metrics[mode][name].append(value)

    def training_step(
        self, model: Any, inputs: Any, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One forward and backward pass; a loss that is no number ends the run before it can spoil the weights."""
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss).all():
            raise TrainingError(
                f"step {self.state.global_step}",
                "a finite loss",
                str(loss.item()),
                "lower the learning rate and call again: the run goes on from its last checkpoint",
            )
        return loss


class EpochOrder(torch.utils.data.Sampler):
    """A sampler with a ``generator``, seeded anew for each epoch.

    Args:
        sampler: What gives the order.
        seed: Of the first epoch.
        epoch: Tells the epoch that begins.
    """

    def __init__(self, sampler: Any, seed: int, epoch: Callable[[], int]) -> None:
        self.sampler, self.seed, self.epoch = sampler, seed, epoch

    def __iter__(self) -> Iterator[int]:
        self.sampler.generator.manual_seed(self.seed + self.epoch())
        return iter(self.sampler)

    def __len__(self) -> int:
        return len(self.sampler)


def _of_rows(inputs: Mapping[str, Any], chosen: torch.Tensor, span: slice) -> dict[str, Any]:
    """What TRL hands to the forward pass beside the tokens, for some replies and a stretch of their tokens."""
    found = dict(inputs)
    if inputs.get("image_grid_thw") is not None:
        grids, counts = inputs["image_grid_thw"], inputs["num_images"]
        pixels = torch.split(inputs["pixel_values"], grids.prod(dim=-1).tolist())
        firsts = np.cumsum([0, *counts])
        images = [k for row in chosen.tolist() for k in range(firsts[row], firsts[row + 1])]
        found["image_grid_thw"] = grids[images]
        found["pixel_values"] = torch.cat([pixels[k] for k in images])
        found["num_images"] = [counts[row] for row in chosen.tolist()]
    for name in ("token_type_ids", "mm_token_type_ids"):
        if inputs.get(name) is not None:
            found[name] = inputs[name][chosen][:, span]
    return found


def look_again() -> None:
    """Stands for the crops of a reply, which TRL knows only as the pictures of a tool."""


def _is_flat(group: Sequence[Rollout]) -> bool:
    return pstdev(rollout.reward for rollout in group) < 1e-6


def hash_of(*numbers: int) -> int:
    """A seed that follows from some numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1)[0])


class Collapse(TrainerCallback):
    """Ends a run whose replies have stopped meaning anything, and says what collapsed.

    Looked at over the last ``patience`` logged steps: all rewards equal; less than half of the form reward that there
    was at the beginning; replies of a few tokens; a KL divergence beyond ``most_kl``.

    Args:
        patience: Logged steps.
        most_kl: Nats a token.
    """

    def __init__(self, patience: int, most_kl: float = 10.0) -> None:
        self.patience, self.most_kl = patience, most_kl
        self.seen: list[Mapping[str, float]] = []
        self.found: str | None = None

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Look at the last steps."""
        if not logs or "reward" not in logs:
            return
        self.seen.append(logs)
        if self.patience and len(self.seen) > self.patience:
            self.found = self.verdict(self.seen[: self.patience], self.seen[-self.patience :])
            control.should_training_stop = control.should_training_stop or self.found is not None

    def verdict(
        self, first: Sequence[Mapping[str, float]], last: Sequence[Mapping[str, float]]
    ) -> str | None:
        """What collapsed, or None."""

        def mean(lines: Sequence[Mapping[str, float]], key: str) -> float:
            known = [line[key] for line in lines if key in line and not math.isnan(line[key])]
            return fmean(known) if known else math.nan

        form, before = (mean(lines, "rewards/format/mean") for lines in (last, first))
        if all(line.get("reward_std", 1.0) < 1e-6 for line in last):
            return f"all rewards were equal for {len(last)} steps: nothing can be learnt from them"
        if form < 0.5 * before:
            return f"the form of replies: its reward fell from {before:.2f} to {form:.2f}"
        if (length := mean(last, "completions/mean_length")) < 4:
            return f"the length of replies: {length:.1f} tokens on average"
        if (kl := mean(last, "kl")) > self.most_kl:
            return f"the policy left its reference: KL {kl:.1f} a token"
        return None


def reinforce(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    pictures: Images,
    out: str | Path,
    settings: RLSettings | None = None,
    *,
    probes: Sequence[Probe] = (),
    progress: bool = False,
) -> Path:
    """Train a fine-tuned model on outcomes; a run that was stopped goes on from its last checkpoint.

    Args:
        model, processor: From :func:`unireason_lib.grounding.load_model`. The model is changed in place; with a KL term
            and without adapters, its reference is loaded from where the model was.
        records: What is asked. Their replies are not looked at.
        pictures: Gives the pictures of a record.
        out: Folder of the run: ``settings.json``, ``log.jsonl``, ``rollouts.jsonl`` (every reply), ``left_out.jsonl``
            (questions that could not be asked), ``checkpoint-*``, and at the end ``model/``.
        settings: How.
        probes: Measured now and then while training, into the log.
        progress: Whether to show bars.

    Returns:
        ``out/model``: a checkpoint in plain transformers form, or a PEFT adapter.

    Raises:
        TrainingError: An untried TRL, a loss that is no number, a collapse, or no question that can be asked.
        DatasetError: The folder holds a run with other settings.
    """
    check_trl()
    settings, out = settings or RLSettings(), Path(out)
    if not records:
        raise TrainingError(out, "questions", "none", "give more records")
    if spread_by() == "fsdp" and not settings.vllm:
        raise TrainingError(
            "outcome RL under FSDP",
            "a model that can write replies in this process",
            "weights that are spread over processes",
            "use zero3.yaml, which gathers them, adapters with ddp.yaml, or a vLLM server (rl.vllm)",
        )
    arguments = _arguments(settings, out, len(records), progress)
    with arguments.main_process_first(local=False, desc="settings"):
        keep_settings(out, asdict(settings), records)
    if (out / "model").is_dir():
        return out / "model"
    freeze(model, settings.freeze_vision)
    questions = Questions(records, pictures, settings.max_prompt_tokens, out / "left_out.jsonl")
    collapse = Collapse(settings.patience)
    trainer = GroundedGRPOTrainer(
        model=model,
        args=arguments,
        train_dataset=datasets.Dataset.from_list(
            [
                {"row": row, "prompt": [{"role": "user", "content": item.question}]}
                for row, item in enumerate(questions.items)
            ]
        ),
        processing_class=processor,
        peft_config=lora(settings, model),
        callbacks=[Logbook(out / "log.jsonl", processor, probes), collapse],
        questions=questions,
        settings=settings,
        diary=out / "rollouts.jsonl",
    )
    if settings.keep_features:
        seen = SeenImages()
        seen.attach(base_model(model))
        if trainer.ref_model is not None:
            seen.attach(base_model(trainer.ref_model.requires_grad_(False)))
    full_precision(trainer.model, settings)
    counted = count_parameters(trainer.model)
    train(trainer, out)
    if collapse.found is not None:
        raise TrainingError(
            out,
            "replies that go on being worth learning from",
            f"a collapse at step {trainer.state.global_step}: {collapse.found}",
            "look at rollouts.jsonl; lower the learning rate or raise the KL weight in another folder",
        )
    card = partial(model_card, out, "rl", trainer.model, counted)
    return save_model(trainer, processor, out / "model", card, serialization_of(records))


def _arguments(settings: RLSettings, out: Path, questions: int, progress: bool) -> GRPOConfig:
    together = settings.micro_batch * processes()
    accumulation, rest = divmod(settings.mini_batch * settings.rollouts, together)
    if rest:
        raise TrainingError(
            "settings of RL",
            "mini_batch x rollouts a multiple of micro_batch x processes",
            f"{settings.mini_batch} x {settings.rollouts} and {settings.micro_batch} x {processes()}",
            "change micro_batch or the number of processes",
        )
    each = settings.prompts // settings.mini_batch  # optimizer steps of a generation
    return GRPOConfig(
        **settings.arguments(out, progress),
        max_steps=settings.steps
        or max(1, round(settings.epochs * questions / settings.prompts)) * each,
        per_device_train_batch_size=settings.micro_batch,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation * each,
        num_generations=settings.rollouts,
        max_completion_length=settings.reply_tokens,
        temperature=settings.reply_temperature,
        beta=settings.kl,
        epsilon=settings.clip,
        loss_type="grpo",
        reward_weights=[
            *(weight for _, weight in rewards(settings.mode, settings.iou, settings.area).values()),
            *([settings.contrast] if settings.contrast else []),
        ],
        use_vllm=bool(settings.vllm),
        vllm_mode="server",
        vllm_server_base_url=settings.vllm or None,
        disable_dropout=True,
        log_completions=settings.report_to in ("wandb", "trackio"),  # which show them as tables
        num_completions_to_print=1,
    )
