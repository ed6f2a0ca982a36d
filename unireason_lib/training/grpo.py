"""Outcome RL: TRL's ``GRPOTrainer`` with rollouts that box a region, see it enlarged, and answer.

What is ours is little: how replies are sampled (all rollouts of a generation in one batch, those of
one question sharing its encoding), and that the crops of a reply reach the forward pass with the
images of its prompt, while injected tokens carry neither loss nor KL. Advantages, clipping, KL,
accelerate, PEFT, checkpoints and trackers are TRL's.

    records -> questions -> GroundedGenerator -> rewards -> GRPOTrainer -> model/, rollouts.jsonl

TRL takes images into a completion only from tools, so that is what crops are to it. The private
methods that :class:`GroundedGRPOTrainer` overrides are those of TRL 1.16, which is pinned.
"""

from __future__ import annotations

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

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from unireason_lib.config import Profile
from unireason_lib.dataset.schema import Record
from unireason_lib.errors import TrainingError, UniReasonError
from unireason_lib.evaluation.parquet import record_item
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Trace
from unireason_lib.grounding.generate import end_tokens
from unireason_lib.grounding.model import base_model
from unireason_lib.grounding.replies import GroundedInterface
from unireason_lib.grounding.served import Client, ServedGenerator, connect
from unireason_lib.imaging.crops import crop_region
from unireason_lib.io import append_lines
from unireason_lib.training.callbacks import LOG, RunLog, cut_log, read_log, trim_memory
from unireason_lib.training.checkpoints import ExactResume, run, trainer_arguments
from unireason_lib.training.data import Images
from unireason_lib.training.encoding import injects
from unireason_lib.training.optim import token_scores
from unireason_lib.training.rewards import reward_functions
from unireason_lib.training.sft import freeze, lora_config


def question_of(
    record: Record, images: Images, generator: GroundedInterface, limit: int, position: int = 0
) -> tuple[GroundedRequest, dict[str, Any]]:
    """A record as it is asked, and the columns that the reward functions read.

    Args:
        record: Its reply is not looked at.
        images: Gives its images.
        generator: Gives tokenizer and frame.
        limit: Tokens of a prompt at most.
        position: In the generation. It becomes part of the request's id, from which the seed of
            sampling follows: the same question twice in a generation gets two sets of replies.

    Raises:
        UniReasonError: It cannot be asked.
        OSError: Its images cannot be read.
    """
    item, frame = record_item(record, images), generator.frame
    request = replace(item.request(item.load()), id=f"{position}/{record.id}")
    text = generator.processor.apply_chat_template(
        request.conversation(), tokenize=False, add_generation_prompt=True
    )
    tokens = sum(frame.tokens(image.height, image.width) - 1 for image in request.images)
    if (tokens := tokens + len(generator.tokenizer(text).input_ids)) > limit:
        expected = f"a prompt of at most {limit} tokens"
        raise TrainingError(record.id, expected, tokens, "raise grounding.max_prompt_length")
    height, width = request.images[0].height, request.images[0].width
    boxes = [box.as_tuple() for _, box in item.boxes_in(frame, height, width)]
    height, width = frame.size(height, width)
    return request, {
        **{"id": record.id, "truth": item.answer or "", "options": item.options, "boxes": boxes},
        **{"dimension": item.dimension, "frame": (width, height, len(request.images))},
    }


class GroundedGRPOTrainer(ExactResume, GRPOTrainer):
    """TRL's trainer whose completions are grounded replies.

    The log-probabilities that sampling records, and those of policy, old policy and reference are
    of one distribution: at the temperature, without forbidden tokens, under one autocast. A vLLM
    server must return that one too: ``--logprobs-mode processed_logprobs``, which applies
    temperature and ``logit_bias`` (TRL warns of any other mode).

    Args:
        records, images: What is asked.
        profile: All settings.
        out: Folder of the run; gets ``rollouts.jsonl`` and ``left_out.jsonl``.
    """

    def __init__(
        self, records: Sequence[Record], images: Images, profile: Profile, out: Path, **kwargs: Any
    ) -> None:
        prompts = [[{"role": "user", "content": record.question}] for record in records]
        rows = Dataset.from_dict({"row": range(len(prompts)), "prompt": prompts})
        super().__init__(train_dataset=rows, **kwargs)
        if self.is_fsdp_enabled and not self.use_vllm:
            expected = "a model that can generate replies in this process"
            do = "use zero3.yaml, which gathers weights, adapters with ddp.yaml, or a vLLM server"
            raise TrainingError("GRPO under FSDP", expected, "sharded weights", do)
        self.records, self.images, self.grounding, self.out = (
            records,
            images,
            profile.grounding,
            out,
        )
        self.tools = self._standalone_tools = [crop_region]  # only the generator calls it
        self._traces: list[Trace] = []
        self._forbidden: list[int] = []
        self._unusable: set[int] = set()
        self._client: Client | None = None

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        count, started = self.num_generations, time.perf_counter()
        columns = self._roll_out([one["row"] for one in inputs[::count]])
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
        with token_scores(self._forbidden):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    # Rollouts.

    def _roll_out(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Sample a group of replies to each question, or to another where it cannot be asked; gives
        the columns of each."""
        args, grounding = self.args, self.grounding
        first = self.accelerator.process_index * len(rows)
        seed = np.random.SeedSequence([args.seed, self.state.global_step]).generate_state(1)[0]
        with self._generator() as generator, self.accelerator.autocast():
            self._forbidden = generator.never_written
            questions = [self._open(row, generator, first + k) for k, row in enumerate(rows)]
            self._traces = generator.generate(
                [request for request, _ in questions],
                batch_size=grounding.rollout_batch_size,
                samples=self.num_generations,
                max_new_tokens=args.max_completion_length,
                max_rounds=grounding.rollout_max_rounds * injects(grounding.components),
                temperature=args.temperature,
                seed=int(seed),
            )
        return [columns for _, columns in questions]

    def _open(self, row: int, generator: GroundedInterface, position: int) -> tuple[Any, Any]:
        """A question, or another in its place. One that can never be asked is listed and not tried
        again; one whose images could not be read for a reason of the operating system is left out
        this time only."""
        draw = random.Random(f"{self.args.seed}/{self.state.global_step}/{position}")
        limit = self.grounding.max_prompt_length
        for _ in range(100):
            record = self.records[row]
            try:
                if row not in self._unusable:
                    return question_of(record, self.images, generator, limit, position)
            except (UniReasonError, OSError) as error:
                if isinstance(error, OSError) or isinstance(error.__cause__, OSError):
                    warnings.warn(f"{record.id} is left out this time: {error}", stacklevel=2)
                else:
                    self._unusable.add(row)
                    line = {"id": record.id, "why": str(error)[:500]}
                    append_lines(self.out / "left_out.jsonl", [line])
            row = draw.randrange(len(self.records))
        expected, found = "questions that can be asked", "a hundred in a row that cannot"
        raise TrainingError(self.out / "left_out.jsonl", expected, found, "see why in that file")

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

    def _record(self, inputs: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Metrics of the replies of all processes, and their lines of the rollout log."""
        step, metrics, names = (
            self.state.global_step,
            self._metrics["train"],
            self.reward_func_names,
        )
        lines = gather_object([_line(*one) for one in zip(inputs, self._traces, strict=True)])
        # TRL has gathered rewards and advantages of all processes, in the same order
        rewards, weights = self._logs["rewards"], self.reward_weights.tolist()
        for k, (line, advantage) in enumerate(zip(lines, self._logs["advantages"], strict=True)):
            parts = {f"reward {name}": rewards[name][k] for name in names}
            total = sum(w * r for w, r in zip(weights, parts.values(), strict=True))
            line |= {"step": step, **parts, "reward": total, "advantage": advantage}
        slowest = max(gather_object([seconds]))  # for which the others wait
        for name, value in {**rollout_metrics(lines), "rollout_seconds": slowest}.items():
            metrics[name].append(value)
        if self.accelerator.is_main_process:
            if self._step == 0:  # of a resumed run: what is sampled again goes
                cut_log(self.out / "rollouts.jsonl", step - 1)
            append_lines(self.out / "rollouts.jsonl", lines)


def _line(columns: Mapping[str, Any], trace: Trace) -> dict[str, Any]:
    """A reply for the rollout log; its images are those of ``id``."""
    return {
        **{name: columns[name] for name in ("id", "dimension", "truth")},
        **{"text": trace.text, "boxes": [list(box.as_tuple()) for box in trace.boxes]},
        "statuses": [pointing.status for pointing in trace.pointings],
        **{"stop": trace.stop, "rounds": trace.rounds, "own_tokens": sum(trace.own_mask)},
    }


def rollout_metrics(replies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Numbers of one generation's replies, lines of the rollout log.

    ``boxes``: well-formed ones a reply; ``boxes_answered``: proportion of all boxes, malformed ones
    included, that got their region's tokens, 0 without boxes. By dimension, NaN where nothing was
    asked: ``answer_2d``, the mean reward, and ``pointing_2d``, the proportion of replies with a
    well-formed box.
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


class FeatureCache:
    """What a frozen vision tower makes of each image: in outcome RL an image comes up in the
    prompts of a whole group, in the passes of policy and reference, and again an epoch later. A
    cache of more than 50,000 images begins anew."""

    def __init__(self) -> None:
        self.features: dict[bytes, torch.Tensor] = {}

    def attach(self, model: Any) -> None:
        """Make a ``Qwen2_5_VLForConditionalGeneration`` look here first. Policy and reference may
        share a cache, because their towers are equal."""
        encode = model.model.get_image_features

        def cached(pixel_values: torch.Tensor, image_grid_thw: torch.Tensor, **options: Any) -> Any:
            patches = torch.split(pixel_values, image_grid_thw.prod(-1).tolist())
            keys = [_key(*image) for image in zip(patches, image_grid_thw, strict=True)]
            if len(self.features) > 50_000:
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

    Arguments and return value are those of :func:`~unireason_lib.training.sft.train_sft`, with the
    section ``grpo``. With ``grpo.beta`` and without adapters, the reference is loaded from where
    the model was. The folder also gets ``rollouts.jsonl`` (every reply) and ``left_out.jsonl``
    (questions that cannot be asked).

    Raises:
        TrainingError: Settings that do not fit together, a loss that is not finite, or no question
            that can be asked.
        DatasetError: Another process trains in the folder, or it holds a run with other settings.
    """
    out, grounding = Path(out), profile.grounding
    rewards = reward_functions(grounding.reward_mode, grounding.iou_weight)
    arguments = grpo_arguments(profile, out, list(rewards.values()), progress)
    questions_a_generation = arguments.generation_batch_size // arguments.num_generations
    if len(records) < questions_a_generation:
        expected = f"{questions_a_generation} questions or more, those of one generation"
        raise TrainingError(out, expected, len(records), "give more records")

    def trainer() -> GroundedGRPOTrainer:
        freeze(model, grounding.freeze_vision)
        made = GroundedGRPOTrainer(
            *(records, images, profile, out),
            model=model,
            reward_funcs=list(rewards),
            args=arguments,
            processing_class=processor,
            peft_config=lora_config(grounding.grpo_lora_r, model, grounding),
            callbacks=[RunLog(out / LOG), *callbacks],
        )
        if grounding.feature_cache:
            cache = FeatureCache()
            cache.attach(base_model(model))
            if made.ref_model is not None:
                cache.attach(made.accelerator.unwrap_model(made.ref_model))
        return made

    # replies are no part of a checkpoint, so a run is resumed at the end of a generation
    passes = arguments.steps_per_generation * arguments.num_iterations
    every = passes // arguments.gradient_accumulation_steps
    saved = run("grpo", profile, out, model, processor, records, trainer, every)
    advise(read_log(out / LOG, "frac_reward_zero_std"))
    return saved


def grpo_arguments(
    profile: Profile, out: Path, weights: Sequence[float], progress: bool = False
) -> GRPOConfig:
    """TRL's configuration of a run; a :class:`TrainingError` when batches do not divide."""
    fixed = {"reward_weights": weights, "vllm_mode": "server", "disable_dropout": True}
    fixed["log_multimodal"] = False
    arguments = trainer_arguments(GRPOConfig, profile.grpo, out, progress, **fixed)
    replies = arguments.per_device_train_batch_size * arguments.steps_per_generation
    for name, number, whole in (
        ("steps_per_generation", arguments.steps_per_generation, "gradient_accumulation_steps"),
        ("replies of one process in a generation", replies, "num_generations"),
    ):
        if number % getattr(arguments, whole):
            expected = f"a multiple of {whole} ({getattr(arguments, whole)})"
            raise TrainingError(f"grpo: {name}", expected, number, "change the batch sizes")
    return arguments


def advise(log: Sequence[Mapping[str, float]]) -> None:
    """Warn when nearly all groups at the end of a log were zero-variance groups."""
    last = [line["frac_reward_zero_std"] for line in log[-20:]]
    if last and (proportion := fmean(last)) > 0.9:
        found = f"in {proportion:.0%} of the groups all replies earned the same: nothing is learnt"
        do = "start from an earlier model, or raise grpo.temperature or grpo.num_generations"
        warnings.warn(f"{found}; {do}", stacklevel=2)
