"""Outcome RL: TRL's ``GRPOTrainer`` with rollouts that box a region, see it enlarged, and answer.

What is ours is little: how replies are sampled (all rollouts of a generation in one batch, those of
one question sharing its encoding), and that the crops of a reply reach the forward pass with the
images of its prompt, while injected tokens carry neither loss nor KL. TRL takes images into a
completion only from tools, so that is what crops are to it. The private methods that are overridden
here are those of TRL 1.16, which is pinned.

    records -> questions -> GroundedGenerator -> rewards -> GRPOTrainer -> model/, rollouts.jsonl
"""

import math
import random
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from errno import ENOENT
from itertools import compress
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from datasets import Dataset
from peft.tuners.lora import LoraLayer
from transformers import PrinterCallback, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from trl.models import unwrap_model_for_generation

from unireason_lib.config import Profile
from unireason_lib.dataset.schema import Record
from unireason_lib.errors import TrainingError, UniReasonError
from unireason_lib.evaluation.benchmarks import record_item
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
from unireason_lib.training.encoding import FeatureCache, injects
from unireason_lib.training.optim import token_scores
from unireason_lib.training.rewards import MAX_ROUNDS, reward_functions
from unireason_lib.training.sft import freeze, lora_config


def question_of(
    record: Record, images: Images, generator: GroundedInterface, limit: int, position: int = 0
) -> tuple[GroundedRequest, dict[str, Any]]:
    """A record as it is asked, and the columns that the reward functions read. An error of ours if
    it cannot be asked, for instance with a prompt of more tokens than the ``limit``; an ``OSError``
    if its images cannot be read. The ``position`` in the generation becomes part of the request's
    id, from which the seed of sampling follows: a question that comes twice gets two groups."""
    item, frame = record_item(record, images), generator.frame
    request = replace(item.request(item.load()), id=f"{position}/{record.id}")
    if (tokens := len(generator.encode(request)[0])) > limit:
        expected = f"a prompt of at most {limit} tokens"
        raise TrainingError(record.id, expected, tokens, "raise grounding.max_prompt_length")
    height, width = request.images[0].height, request.images[0].width
    boxes = [box.as_tuple() for _, box in item.boxes_in(frame, height, width)]
    height, width = frame.size(height, width)
    return request, {
        **{"id": record.id, "truth": item.answer or "", "options": item.options, "boxes": boxes},
        **{"dimension": item.dimension, "frame": (width, height, len(request.images))},
        "scale": frame.scale,
    }


class GroundedGRPOTrainer(ExactResume, GRPOTrainer):
    """TRL's trainer whose completions are grounded replies.

    The log-probabilities that sampling records, and those of policy, old policy and reference are
    of one distribution: at the temperature, without forbidden tokens, under one autocast. A vLLM
    server must return that one too: ``--logprobs-mode processed_logprobs`` (TRL warns otherwise).
    """

    def __init__(
        self, records: Sequence[Record], images: Images, profile: Profile, out: Path, **kwargs: Any
    ) -> None:
        prompts = [[{"role": "user", "content": record.question}] for record in records]
        rows = Dataset.from_dict({"row": range(len(prompts)), "prompt": prompts})
        super().__init__(train_dataset=rows, **kwargs)
        if self.is_fsdp_enabled and not self.use_vllm:
            do = "use zero3.yaml, which gathers weights, adapters with ddp.yaml, or a vLLM server"
            raise TrainingError("GRPO under FSDP", "a model that can generate", "a part of one", do)
        self.records, self.images, self.out = records, images, out
        self.grounding = profile.grounding
        self.tools = self._standalone_tools = [crop_region]  # only the generator calls it
        self.traces: list[Trace] = []  # replies of the last generation, groups in order
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
            expected, do = "an image token a feature", "use the processor of this model"
            raise TrainingError("rollouts", expected, "another number of them", do)
        self._record(inputs, seconds)
        trim_memory()
        return output

    # What TRL asks for of the replies that were just sampled.

    def _tokenize_prompts(self, prompts: list[Any]) -> tuple[Any, ...]:
        return [list(trace.prompt_ids) for trace in self.traces], None, {}

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        tokens = [list(trace.token_ids) for trace in self.traces]
        return tokens, [list(trace.logprobs) for trace in self.traces]

    def _tool_call_loop(self, prompts, prompt_ids, tokens, completions, logprobs, *_):
        completions = [[{"role": "assistant", "content": trace.text}] for trace in self.traces]
        statuses = [p.status for trace in self.traces for p in trace.pointings]
        failures = len(statuses) - statuses.count("injected")
        # images of the prompt too: only for a tool's images TRL marks image tokens by their id
        images = [
            [*trace.request.images, *(crop for p in trace.pointings for crop in p.crops)]
            for trace in self.traces
        ]
        masks = [list(trace.own_mask) for trace in self.traces]
        return masks, completions, tokens, logprobs, len(statuses), failures, images

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
        with token_scores(self._forbidden):
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)

    def _roll_out(self, rows: Sequence[int]) -> list[dict[str, Any]]:
        """Sample a group of replies to each question, or to another where it cannot be asked; gives
        the columns of each."""
        args, grounding, step = self.args, self.grounding, self.state.global_step
        first = self.accelerator.process_index * len(rows)
        with self._generator() as generator, self.accelerator.autocast():
            self._forbidden = generator.never_written
            questions = [self._open(row, generator, first + k) for k, row in enumerate(rows)]
            self.traces = generator.generate(
                [request for request, _ in questions],
                batch_size=grounding.rollout_batch_size,
                samples=self.num_generations,
                max_new_tokens=args.max_completion_length,
                max_rounds=grounding.rollout_max_rounds * injects(grounding.components),
                temperature=args.temperature,
                seed=int(np.random.SeedSequence([args.seed, step]).generate_state(1)[0]),
            )
        return [columns for _, columns in questions]

    def _open(self, row: int, generator: GroundedInterface, position: int) -> tuple[Any, Any]:
        """A question, or another in its place. One that can never be asked is listed and not tried
        again; one whose images are there, but could not be read, is left out this time only."""
        draw = random.Random(f"{self.args.seed}/{self.state.global_step}/{position}")
        limit, listed = self.grounding.max_prompt_length, self.out / "left_out.jsonl"
        problem: object = f"listed in {listed.name}"
        for _ in range(100):
            record = self.records[row]
            try:
                if row not in self._unusable:
                    return question_of(record, self.images, generator, limit, position)
            except (UniReasonError, OSError) as error:
                problem = error
                cause = error if isinstance(error, OSError) else error.__cause__
                # the system gives a number; Pillow and NiBabel, about a damaged file, give none
                if getattr(cause, "errno", None) not in (None, ENOENT):
                    warnings.warn(f"{record.id} is left out this time: {error}", stacklevel=2)
                else:
                    self._unusable.add(row)
                    append_lines(listed, [{"id": record.id, "why": str(error)[:500]}])
            row = draw.randrange(len(self.records))
        found = f"a hundred in a row that cannot; the last one: {problem}"
        raise TrainingError(self.out, "questions that can be asked", found, "correct that")

    @contextmanager
    def _generator(self) -> Iterator[GroundedInterface]:
        """What samples: the model in this process, or a server that is given its weights first."""
        if not self.use_vllm:
            whole = unwrap_model_for_generation(self.model_wrapped, self.accelerator)
            with whole as model, merged(model):
                yield GroundedGenerator(model, self.processing_class)
            return
        if self.state.global_step != self._last_loaded_step:
            self.vllm_generation.sync_weights()
            self._last_loaded_step = self.state.global_step
        # every process asks its own questions
        url = f"http://{self.args.vllm_server_host}:{self.args.vllm_server_port}"
        self._client = self._client or connect(self.args.vllm_server_base_url or url)
        ends = end_tokens(base_model(self.accelerator.unwrap_model(self.model)), self._tokenizer)
        yield ServedGenerator(self._client, self.processing_class, ends)

    def _record(self, inputs: Sequence[Mapping[str, Any]], seconds: float) -> None:
        """Metrics of the replies of all processes, and their lines of the rollout log."""
        step, names = self.state.global_step, self.reward_func_names
        lines = gather_object([_line(*one) for one in zip(inputs, self.traces, strict=True)])
        # TRL has gathered rewards and advantages of all processes, in the same order
        columns = self._logs["advantages"], *(self._logs["rewards"][name] for name in names)
        for line, advantage, *parts in zip(lines, *columns, strict=True):
            line |= {"step": step, "advantage": advantage}
            line |= {f"reward {name}": part for name, part in zip(names, parts, strict=True)}
            line["reward"] = float(np.dot(self.reward_weights.tolist(), parts))
        slowest = max(gather_object([seconds]))  # for which the others wait
        for name, value in {**rollout_metrics(lines), "rollout_seconds": slowest}.items():
            self._metrics["train"][name].append(value)
        if self.accelerator.is_main_process:
            if self._step == 0:  # of a resumed run: what is sampled again goes
                cut_log(self.out / "rollouts.jsonl", step - 1)
            append_lines(self.out / "rollouts.jsonl", lines)


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """On a CPU adapters are within the weights (of float32), which saves two products in each layer
    for each token; afterwards the weights are what they were, to the bit."""
    layers = [layer for layer in model.modules() if isinstance(layer, LoraLayer)]
    weights = [layer.get_base_layer().weight for layer in layers]
    here = [weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights]
    layers, weights = (list(compress(parts, here)) for parts in (layers, weights))
    before = [weight.detach().clone() for weight in weights]
    try:
        for layer in layers:
            layer.merge()
        yield
    finally:
        for layer, weight, value in zip(layers, weights, before, strict=True):
            layer.unmerge()
            weight.data.copy_(value)


def _line(columns: Mapping[str, Any], trace: Trace) -> dict[str, Any]:
    """A reply for the rollout log; its images are those of ``id``."""
    return {
        **{name: columns[name] for name in ("id", "dimension", "truth")},
        **{"text": trace.text, "boxes": [list(box.as_tuple()) for box in trace.boxes]},
        "statuses": [pointing.status for pointing in trace.pointings],
        **{"stop": trace.stop, "rounds": trace.rounds, "own_tokens": sum(trace.own_mask)},
    }


def rollout_metrics(replies: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Numbers of one generation's replies, lines of the rollout log: well-formed ``boxes`` a reply;
    ``boxes_answered``, the proportion of all boxes, malformed ones included, that got their
    region's tokens (0 without boxes). By dimension, NaN where nothing was asked: ``answer_2d``, the
    mean reward, and ``pointing_2d``, the proportion of replies with a well-formed box."""
    statuses = Counter(status for reply in replies for status in reply["statuses"])
    metrics = {"boxes": fmean(len(reply["boxes"]) for reply in replies)}
    metrics["boxes_answered"] = statuses["injected"] / max(1, statuses.total())
    for dimension in ("2d", "3d"):
        asked = [reply for reply in replies if reply["dimension"] == dimension]
        metrics[f"answer_{dimension}"] = fmean([r["reward answer"] for r in asked] or [math.nan])
        metrics[f"pointing_{dimension}"] = fmean([bool(r["boxes"]) for r in asked] or [math.nan])
    return metrics


def grpo_trainer(
    model: Any,
    processor: Any,
    records: Sequence[Record],
    images: Images,
    out: str | Path,
    profile: Profile,
    *,
    rewards: Mapping[Callable[..., list[float]], float] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
    progress: bool = False,
) -> GroundedGRPOTrainer:
    """The trainer of :func:`train_grpo`, to look at its steps one by one. ``rewards``: TRL's reward
    functions with their weights, one of them named ``answer``; None: those of the profile."""
    out, grounding = Path(out), profile.grounding
    rounds = grounding.rollout_max_rounds or MAX_ROUNDS
    rewards = rewards or reward_functions(grounding.reward_mode, grounding.iou_weight, rounds)
    args = _arguments(profile, out, progress)
    args.reward_weights = list(rewards.values())
    freeze(model)
    made = GroundedGRPOTrainer(
        *(records, images, profile, out),
        model=model,
        reward_funcs=list(rewards),
        args=args,
        processing_class=processor,
        peft_config=lora_config(grounding.grpo_lora_r, model, grounding),
        callbacks=list(callbacks),
    )
    if not progress:
        made.remove_callback(PrinterCallback)
    if grounding.feature_cache:
        cache = FeatureCache(base_model(model))
        cache.attach(base_model(model))
        if made.ref_model is not None:
            cache.attach(made.accelerator.unwrap_model(made.ref_model))
    return made


def _arguments(profile: Profile, out: Path, progress: bool) -> GRPOConfig:
    fixed = {"vllm_mode": "server", "disable_dropout": True, "log_multimodal": False}
    return trainer_arguments(GRPOConfig, profile.grpo, out, progress, **fixed)


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
    """Train a fine-tuned model on outcomes; a stopped run resumes from its last checkpoint.

    Arguments, return value and errors are those of :func:`~unireason_lib.training.sft.train_sft`,
    with the section ``grpo``. With ``grpo.beta`` and without adapters, the reference is loaded from
    where the model was. The folder also gets ``rollouts.jsonl`` (every reply) and
    ``left_out.jsonl`` (questions that cannot be asked)."""
    out = Path(out)
    args = _arguments(profile, out, progress)
    # replies are no part of a checkpoint, so a run is resumed at the end of a generation
    passes, replies = args.steps_per_generation, args.per_device_train_batch_size
    if passes % args.gradient_accumulation_steps or replies * passes % args.num_generations:
        expected = "whole optimizer steps, and in every process whole groups"
        found, do = f"{passes} forward passes of {replies} replies", "change the batch sizes"
        raise TrainingError("grpo: a generation", expected, found, do)
    every = passes * args.num_iterations // args.gradient_accumulation_steps
    if len(records) < (questions := args.generation_batch_size // args.num_generations):
        expected, do = f"{questions} questions or more", "give as many as a generation has"
        raise TrainingError(out, expected, len(records), do)

    def trainer() -> GroundedGRPOTrainer:
        how = {"callbacks": [RunLog(), *callbacks], "progress": progress}
        return grpo_trainer(model, processor, records, images, out, profile, **how)

    saved = run("grpo", profile, out, model, processor, records, trainer, every)
    key = "frac_reward_zero_std"
    last = [line[key] for line in read_log(out / LOG, key)[-20:]]
    if last and (proportion := fmean(last)) > 0.9:
        found = f"in {proportion:.0%} of the groups all replies earned the same: nothing is learnt"
        do = "start from an earlier model, or raise grpo.temperature or grpo.num_generations"
        warnings.warn(f"{found}; {do}", stacklevel=2)
    return saved
