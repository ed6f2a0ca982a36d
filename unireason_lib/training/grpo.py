"""Outcome RL: TRL's ``GRPOTrainer`` with rollouts that box a region, see it enlarged, and answer.

What is ours is little: how replies are sampled (all rollouts of a generation in one batch, those of
one question sharing its encoding), and that the crops of a reply reach the forward pass with the
images of its prompt, while injected tokens carry neither loss nor KL. Advantages, clipping, KL,
accelerate, PEFT, checkpoints and trackers are TRL's.

    records -> Questions -> GroundedGenerator -> rewards -> GRPOTrainer -> model/, rollouts.jsonl

TRL takes images into a completion only from tools, so that is what crops are to it. The private
methods that :class:`GroundedGRPOTrainer` overrides are those of TRL 1.16, which is pinned.
"""

from __future__ import annotations

import json
import math
import random
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import datasets
import numpy as np
import torch
import trl.trainer.utils
from accelerate.utils import gather_object
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from unireason_lib.config import Grounding, Profile
from unireason_lib.dataset.schema import Record
from unireason_lib.errors import TrainingError, UniReasonError
from unireason_lib.evaluation.benchmarks import record_item
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Trace
from unireason_lib.grounding.generate import end_tokens
from unireason_lib.grounding.model import base_model
from unireason_lib.grounding.replies import GroundedInterface
from unireason_lib.grounding.served import Client, ServedGenerator, connect
from unireason_lib.imaging.crops import crop_region
from unireason_lib.io import append_lines, read_lines, write_whole
from unireason_lib.training.callbacks import LOG, RunLog, trim_memory
from unireason_lib.training.checkpoints import (
    ExactResume,
    open_run,
    run_settings,
    save_model,
    train,
    trainer_arguments,
)
from unireason_lib.training.data import Images, list_once
from unireason_lib.training.encoding import injects
from unireason_lib.training.rewards import reward_functions
from unireason_lib.training.sft import freeze, keep_full_precision, lora_config

FORBIDDEN_LOGIT = -1e4
"""Added to the logits of tokens that are never sampled; their probability is then 0 in any type."""


class Questions:
    """The questions of a run, opened when their turn comes.

    Args:
        records: What is asked; their replies are not looked at.
        images: Gives the images of a record.
        max_prompt_length: In tokens.
        left_out: JSON lines that name the questions which can never be asked, and why.
    """

    def __init__(
        self, records: Sequence[Record], images: Images, max_prompt_length: int, left_out: Path
    ) -> None:
        self.records, self.images = records, images
        self.max_prompt_length, self.left_out = max_prompt_length, left_out
        self._unusable: set[int] = set()

    def dataset(self) -> datasets.Dataset:
        """What TRL draws from: a row a question; all other columns come from :meth:`open`."""
        prompts = [[{"role": "user", "content": record.question}] for record in self.records]
        return datasets.Dataset.from_dict({"row": range(len(prompts)), "prompt": prompts})

    def open(
        self, row: int, generator: GroundedInterface, position: int
    ) -> tuple[GroundedRequest, dict[str, Any]] | None:
        """A question as it is asked; None when it cannot be.

        One that can never be asked is listed and not tried again; one whose images could not be
        read for a reason of the operating system is left out this time only.

        Args:
            row: Which.
            generator: Gives tokenizer and frame.
            position: In the generation. It becomes part of the request's id, from which the seed of
                sampling follows: the same question twice in a generation gets two sets of replies.

        Returns:
            The request, and the columns that the reward functions read.
        """
        if row in self._unusable:
            return None
        name, frame = self.records[row].id, generator.frame
        try:
            item = record_item(self.records[row], self.images)
            request = replace(item.request(item.load()), id=f"{position}/{name}")
            if (tokens := prompt_tokens(generator, request)) > self.max_prompt_length:
                expected = f"a prompt of at most {self.max_prompt_length} tokens"
                raise TrainingError(name, expected, tokens, "raise max_prompt_length")
            height, width = request.images[0].height, request.images[0].width
            boxes = [box.as_tuple() for _, box in item.boxes_in(frame, height, width)]
        except (UniReasonError, OSError) as error:
            if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
                warnings.warn(f"{name} is left out this time: {error}", stacklevel=2)
                return None
            self._unusable.add(row)
            list_once(self.left_out, {"id": name, "why": str(error)[:500]})
            return None
        height, width = frame.size(height, width)
        return request, {
            **{"id": name, "truth": item.answer or "", "options": item.options},
            **{"dimension": item.dimension, "frame": (width, height, len(request.images))},
            "boxes": boxes,
        }


def prompt_tokens(generator: GroundedInterface, request: GroundedRequest) -> int:
    """Tokens of a prompt, counted without looking at its pixels."""
    text = generator.processor.apply_chat_template(
        request.conversation(), tokenize=False, add_generation_prompt=True
    )
    images = sum(generator.frame.tokens(image.height, image.width) for image in request.images)
    return len(generator.tokenizer(text).input_ids) + images - len(request.images)


class GroundedGRPOTrainer(ExactResume, GRPOTrainer):
    """TRL's trainer whose completions are grounded replies.

    The log-probabilities that sampling records, and those of policy, old policy and reference are
    of one distribution: at the temperature, without forbidden tokens, under one autocast. A vLLM
    server must return that one too: ``--logprobs-mode processed_logprobs``, which applies
    temperature and ``logit_bias`` (TRL warns of any other mode).

    Args:
        questions: What is asked; ``train_dataset`` is their :meth:`Questions.dataset`.
        grounding: The profile's section.
        rollout_log: File of JSON lines that gets every reply; None writes none.
    """

    def __init__(
        self,
        *args: Any,
        questions: Questions,
        grounding: Grounding,
        rollout_log: Path | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.is_fsdp_enabled and not self.use_vllm:
            expected = "a model that can generate replies in this process"
            do = "use zero3.yaml, which gathers weights, adapters with ddp.yaml, or a vLLM server"
            raise TrainingError("GRPO under FSDP", expected, "sharded weights", do)
        self.questions, self.grounding, self.rollout_log = questions, grounding, rollout_log
        self.tools = self._standalone_tools = [crop_region]  # only the generator calls it
        self._traces: list[Trace] = []
        self._forbidden: list[int] = []
        self._client: Client | None = None
        self._save_due = self._stop_due = False  # asked for inside a generation

    def _get_train_sampler(self, dataset: Any = None) -> torch.utils.data.Sampler:
        self._sampler = super()._get_train_sampler(dataset)
        return self._sampler

    def _run_epoch(self, *args: Any, epoch: int, **kwargs: Any) -> None:
        """The order follows from seed and epoch alone: a run that is resumed in its second epoch
        sees what it would have seen."""
        self._sampler.generator.manual_seed(self.args.seed + epoch)
        super()._run_epoch(*args, epoch=epoch, **kwargs)

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        count, started = self.num_generations, time.perf_counter()
        columns = self._roll_out([one["row"] for one in inputs[::count]], count)
        seconds = time.perf_counter() - started
        opened = [one for one in columns for _ in range(count)]
        inputs = [one | more for one, more in zip(inputs, opened, strict=True)]
        output = super()._generate_and_score_completions(inputs)
        if "pixel_values" not in output:  # TRL would go on without any image
            expected = "as many image tokens as the images have features"
            do = "check that model and processor belong together"
            raise TrainingError("rollouts", expected, "another number", do)
        self._record(inputs, seconds)
        trim_memory()
        return output

    # What TRL asks for of the replies that were just sampled.

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, ...]:
        return [list(trace.prompt_ids) for trace in self._traces], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        tokens = [list(trace.token_ids) for trace in self._traces]
        return tokens, [list(trace.logprobs) for trace in self._traces]

    def _tool_call_loop(self, prompts, prompt_ids, tokens, completions, logprobs, *_):
        completions = [[{"role": "assistant", "content": trace.text}] for trace in self._traces]
        statuses = [p.status for trace in self._traces for p in trace.pointings]
        failures = len(statuses) - statuses.count("injected")
        # images of the prompt too: only for a tool's images TRL marks image tokens by their id
        images = [
            [*trace.request.images, *(crop for p in trace.pointings for crop in p.crops)]
            for trace in self._traces
        ]
        masks = [list(trace.own_mask) for trace in self._traces]
        return masks, completions, tokens, logprobs, len(statuses), failures, images

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        with forbidden(self._forbidden):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    # Rollouts.

    def _roll_out(self, rows: Sequence[int], count: int) -> list[dict[str, Any]]:
        """Sample ``count`` replies to each question, or to another where it cannot be asked.

        Returns:
            The columns of each question.
        """
        args, grounding = self.args, self.grounding
        first = self.accelerator.process_index * len(rows)
        seed = np.random.SeedSequence([args.seed, self.state.global_step]).generate_state(1)[0]
        with self._generator() as generator, self.accelerator.autocast():
            self._forbidden = generator.never_written
            questions = [self._open(row, generator, first + k) for k, row in enumerate(rows)]
            self._traces = generator.generate(
                [request for request, _ in questions],
                batch_size=grounding.rollout_batch_size,
                samples=count,
                max_new_tokens=args.max_completion_length,
                max_rounds=grounding.rollout_max_rounds * injects(grounding.components),
                temperature=args.temperature,
                seed=int(seed),
            )
        return [columns for _, columns in questions]

    def _open(self, row: int, generator: GroundedInterface, position: int) -> tuple[Any, Any]:
        draw = random.Random(f"{self.args.seed}/{self.state.global_step}/{position}")
        for _ in range(100):
            if (question := self.questions.open(row, generator, position)) is not None:
                return question
            row = draw.randrange(len(self.questions.records))
        expected, found = "questions that can be asked", "a hundred in a row that cannot"
        raise TrainingError(self.questions.left_out, expected, found, "see why in that file")

    @contextmanager
    def _generator(self) -> Iterator[GroundedInterface]:
        """What samples: the model in this process, or a server that is given its weights first."""
        if not self.use_vllm:
            with unwrap_model_for_generation(self.model_wrapped, self.accelerator) as model:
                yield GroundedGenerator(model, self.processing_class)
            return
        if self.state.global_step != self._last_loaded_step:
            self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step
        # every process asks its own questions
        self._client = self._client or connect(self.args.vllm_server_base_url)
        ends = end_tokens(base_model(self.accelerator.unwrap_model(self.model)), self._tokenizer)
        yield ServedGenerator(self._client, self.processing_class, ends)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Save and stop only between generations, whose replies are no part of a checkpoint: a run
        can be resumed exactly there and nowhere else. What is asked for in between (``save_steps``,
        Ctrl-C) waits."""
        control, step, arguments = self.control, self.state.global_step, self.args
        passes = arguments.steps_per_generation * self.num_iterations
        inside = step % (passes // arguments.gradient_accumulation_steps) != 0
        self._save_due |= control.should_save
        self._stop_due |= control.should_training_stop
        if inside and step < self.state.max_steps:
            control.should_save = control.should_training_stop = False
        else:
            control.should_save, control.should_training_stop = self._save_due, self._stop_due
            self._save_due = self._stop_due = False
        super()._maybe_log_save_evaluate(*args, **kwargs)

    # Logs.

    def _record(self, inputs: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Metrics of the replies of all processes, and their lines of the rollout log."""
        step, metrics = self.state.global_step, self._metrics["train"]
        lines = [_line(*reply) for reply in zip(inputs, self._traces, strict=True)]
        # TRL has gathered rewards and advantages of all processes, in the same order
        names = self.reward_func_names
        values = [*(self._logs["rewards"][name] for name in names), self._logs["advantages"]]
        replies = []
        for line, *earned, advantage in zip(gather_object(lines), *values, strict=True):
            total = sum(w * r for w, r in zip(self.reward_weights.tolist(), earned, strict=True))
            parts = {f"reward {name}": r for name, r in zip(names, earned, strict=True)}
            replies.append({"step": step, **line, **parts, "reward": total, "advantage": advantage})
        slowest = max(gather_object([seconds]))  # for which the others wait
        for name, value in {**rollout_metrics(replies), "rollout_seconds": slowest}.items():
            metrics[name].append(value)
        if self.rollout_log is not None and self.accelerator.is_main_process:
            if self._step == 0:  # of a resumed run: what is sampled again goes
                kept = [line for line in read_lines(self.rollout_log) if line["step"] < step]
                write_whole(self.rollout_log, (json.dumps(line) + "\n" for line in kept))
            append_lines(self.rollout_log, replies)


@contextmanager
def forbidden(tokens: Sequence[int]) -> Iterator[None]:
    """Within it, TRL's log-probabilities and entropies are of a distribution without ``tokens``.

    TRL computes them in one fused function of hidden states and output layer, which takes a bias.
    On a CPU it scores the prompt too, unless told to score only what is asked for, as on a GPU: a
    tiny model trains twice as fast.
    """
    module = trl.trainer.utils
    fused, on_gpu = module._ChunkedLogProbFunction, module._use_triton

    def apply(hidden: torch.Tensor, weight: torch.Tensor, bias: Any, *rest: Any) -> Any:
        bias = weight.new_zeros(weight.shape[0], requires_grad=False)
        bias[list(tokens)] = FORBIDDEN_LOGIT
        bias.ds_status = getattr(weight, "ds_status", None)  # ZeRO-3 need not gather it
        return fused.apply(hidden, weight, bias, *rest)

    module._ChunkedLogProbFunction = SimpleNamespace(apply=apply)
    module._use_triton = lambda device: True
    try:
        yield
    finally:
        module._ChunkedLogProbFunction, module._use_triton = fused, on_gpu


def rollout_metrics(replies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Numbers of one generation's replies, lines of the rollout log.

    Returns:
        ``boxes``: well-formed ones a reply; ``boxes_answered``: proportion of all boxes, malformed
        ones included, that got their region's tokens, 0 without boxes. By dimension, NaN where
        nothing was asked: ``answer_2d``, the mean reward, and ``pointing_2d``, the proportion of
        replies with a well-formed box.
    """
    statuses = Counter(status for reply in replies for status in reply["statuses"])
    metrics = {"boxes": fmean(len(reply["boxes"]) for reply in replies)}
    metrics["boxes_answered"] = statuses["injected"] / max(1, statuses.total())
    for dimension in ("2d", "3d"):
        asked = [reply for reply in replies if reply["dimension"] == dimension]
        answers, points = [r["reward answer"] for r in asked], [bool(r["boxes"]) for r in asked]
        metrics[f"answer_{dimension}"] = fmean(answers) if asked else math.nan
        metrics[f"pointing_{dimension}"] = fmean(points) if asked else math.nan
    return metrics


def _line(columns: Mapping[str, Any], trace: Trace) -> dict[str, Any]:
    """A reply for the rollout log; its images are those of ``id``."""
    return {
        **{name: columns[name] for name in ("id", "dimension", "truth")},
        **{"text": trace.text, "boxes": [list(box.as_tuple()) for box in trace.boxes]},
        "statuses": [pointing.status for pointing in trace.pointings],
        **{"stop": trace.stop, "rounds": trace.rounds, "own_tokens": sum(trace.own_mask)},
    }


class FeatureCache:
    """What a frozen vision tower makes of each image: in outcome RL an image comes up in the
    prompts of a whole group, in the passes of policy and reference, and again an epoch later.

    Args:
        size: Images that are kept; a cache that is full begins anew.
    """

    def __init__(self, size: int = 50_000) -> None:
        self.size, self.features = size, {}

    def attach(self, model: Any) -> None:
        """Make a ``Qwen2_5_VLForConditionalGeneration`` look here first. Policy and reference may
        share a cache, because their towers are equal."""
        encode = model.model.get_image_features

        def cached(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **options: Any) -> Any:
            patches = torch.split(pixel_values, image_grid_thw.prod(-1).tolist())
            keys = [_key(*image) for image in zip(patches, image_grid_thw, strict=True)]
            if len(self.features) > self.size:
                self.features.clear()
            new = {key: k for k, key in enumerate(keys) if key not in self.features}
            if rows := list(new.values()):
                # rollouts run in inference mode, whose tensors no later backward pass may use
                with torch.inference_mode(False), torch.no_grad():
                    pixels = torch.cat([patches[k] for k in rows]).clone()
                    made = encode(pixels, image_grid_thw[rows].clone(), **options).pooler_output
                    self.features |= {key: x.clone() for key, x in zip(new, made, strict=True)}
            return SimpleNamespace(pooler_output=tuple(self.features[key] for key in keys))

        model.model.get_image_features = cached


def _key(patches: torch.Tensor, grid: torch.Tensor) -> bytes:
    content = patches.detach().cpu().contiguous().view(torch.uint8).numpy()
    return blake2b(content, digest_size=16, person=str(grid.tolist()).encode()[:16]).digest()


def train_grpo(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    images: Images,
    out: str | Path,
    profile: Profile,
    *,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = False,
) -> Path:
    """Train a fine-tuned model on outcomes; a stopped run goes on from its last checkpoint.

    Args:
        model, processor: From :func:`unireason_lib.grounding.load_model`. The model is changed in
            place; with ``grpo.beta`` and without adapters, its reference is loaded from where the
            model was.
        records: What is asked. Their replies are not looked at.
        images: Gives the images of a record.
        out: Folder of the run (:mod:`unireason_lib.training.checkpoints`), with ``rollouts.jsonl``
            (every reply) and ``left_out.jsonl`` (questions that cannot be asked).
        profile: All settings: sections ``grpo`` and ``grounding``.
        callbacks: Of the trainer, such as ``FreeRunning``.
        progress: Whether to show bars.

    Returns:
        ``out/model``: a checkpoint in plain transformers form, or a PEFT adapter.

    Raises:
        TrainingError: Settings that do not fit together, a loss that is not finite, or no question
            that can be asked.
        DatasetError: Another process trains in the folder, or it holds a run with other settings.
    """
    out, grounding = Path(out), profile.grounding
    rewards = reward_functions(grounding.reward_mode, grounding.iou_weight, grounding.area_weight)
    arguments = grpo_arguments(profile, out, list(rewards.values()), progress)
    questions_a_generation = arguments.generation_batch_size // arguments.num_generations
    if len(records) < questions_a_generation:
        expected = f"{questions_a_generation} questions or more, those of one generation"
        raise TrainingError(out, expected, len(records), "give more records")
    with open_run(out, run_settings(profile, "grpo"), model, records):
        if (out / "model").is_dir():
            return out / "model"
        freeze(model, grounding.freeze_vision)
        questions = Questions(records, images, grounding.max_prompt_length, out / "left_out.jsonl")
        trainer = GroundedGRPOTrainer(
            model=model,
            reward_funcs=list(rewards),
            args=arguments,
            train_dataset=questions.dataset(),
            processing_class=processor,
            peft_config=lora_config(grounding.grpo_lora_r, model, grounding),
            callbacks=[RunLog(out / LOG), *callbacks],
            questions=questions,
            grounding=grounding,
            rollout_log=out / "rollouts.jsonl",
        )
        if grounding.feature_cache:
            cache = FeatureCache()
            cache.attach(base_model(model))
            if trainer.ref_model is not None:
                cache.attach(trainer.accelerator.unwrap_model(trainer.ref_model))
        keep_full_precision(trainer)
        train(trainer, out)
        advise(trainer.state.log_history)
        return save_model(trainer, processor, out / "model", records)


def grpo_arguments(
    profile: Profile, out: Path, weights: Sequence[float], progress: bool = False
) -> GRPOConfig:
    """TRL's configuration of a run.

    Raises:
        TrainingError: Batches that do not divide, or settings that rollouts do not have.
    """
    section = {"log_multimodal": False, **profile.grpo.model_dump()}
    fixed = {"reward_weights": list(weights), "vllm_mode": "server", "disable_dropout": True}
    arguments = trainer_arguments(GRPOConfig, section, out, progress, **fixed)
    replies = arguments.per_device_train_batch_size * arguments.steps_per_generation
    for name, number, whole in (
        ("steps_per_generation", arguments.steps_per_generation, "gradient_accumulation_steps"),
        ("replies of one process in a generation", replies, "num_generations"),
    ):
        if number % getattr(arguments, whole):
            expected = f"a multiple of {whole} ({getattr(arguments, whole)})"
            raise TrainingError(f"grpo: {name}", expected, number, "change the batch sizes")
    return arguments


def advise(log: Sequence[Mapping[str, float]], lines: int = 20) -> None:
    """Warn when nearly all groups at the end of a run were zero-variance groups."""
    last = [line["frac_reward_zero_std"] for line in log if "frac_reward_zero_std" in line]
    if last and (proportion := fmean(last[-lines:])) > 0.9:
        found = f"in {proportion:.0%} of the groups all replies earned the same: nothing is learnt"
        do = "start from an earlier model, or raise grpo.temperature or grpo.num_generations"
        warnings.warn(f"{found}; {do}", stacklevel=2)
