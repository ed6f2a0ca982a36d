"""What a training run takes in memory, hours and money, before a GPU is rented.

Parameters and floating-point operations (FLOPs) are counted on the model itself: on PyTorch's meta
device every tensor has its shape and no memory, and ``FlopCounterMode`` adds up what each operation
would cost. (It counts all of the attention square; kernels that skip the masked half save 7 % at
3,000 tokens.) Weights, gradients and optimizer are accelerate's estimate; activations, keys and
values, and sharding are estimated here. How well GPUs are used is not known before a run, so hours
are a range. All assumptions are in ``configs/planning.yaml``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from unireason_lib.errors import ModelError, PlanError
from unireason_lib.imaging.frame import QWEN_FRAME, ProcessorFrame

KNOWN = yaml.safe_load((Path(__file__).parent / "configs/planning.yaml").read_text("utf-8"))
"""Published models, GPUs, and assumptions."""

STAGES = ("sft", "grpo")
SHARDING = ("ddp", "fsdp", "zero3")
"""Every GPU holds the model; or weights, gradients and optimizer are sharded, by PyTorch's FSDP2 or
by DeepSpeed (ZeRO-3, arXiv 1910.02054)."""

DELIMITERS = 2  # tokens around an image
LOGITS_CHUNK = 1024  # tokens whose logits exist at once: TRL computes losses in chunks
CUDA_CONTEXT = 1.5e9  # bytes of CUDA, its libraries and communication


# --- models without weights ------------------------------------------------------------------


@cache
def shaped_model(path: str) -> Any:
    """A ``Qwen2_5_VLForConditionalGeneration`` on the meta device: every shape and no weights.

    Args:
        path: A folder with a ``config.json``; or ``3b``, ``7b`` or the hub id of a published model,
            whose configuration ships.

    Raises:
        ModelError: It is neither, or another architecture.
    """
    import torch
    from transformers import AutoConfig, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    if path in KNOWN["models"]:
        config = Qwen2_5_VLConfig(**KNOWN["models"][path])
    elif (Path(path) / "config.json").is_file():
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
    else:
        expected = f"a folder with a config.json, or one of {', '.join(KNOWN['models'])}"
        raise ModelError(path, expected, "neither", "download its config.json into a folder")
    if config.model_type != "qwen2_5_vl":
        raise ModelError(path, "qwen2_5_vl", config.model_type, "plan for a Qwen2.5-VL model")
    with torch.device("meta"):
        return Qwen2_5_VLForConditionalGeneration(config)


def parameters(model: Any) -> tuple[int, int]:
    """Parameters of the language model, and of the vision tower with its merger."""
    vision = sum(p.numel() for p in model.model.visual.parameters())
    return sum(p.numel() for p in model.parameters()) - vision, vision


def lora_parameters(model: Any, r: int) -> int:
    """Parameters of adapters of rank ``r`` on every matrix of the language layers."""
    return sum(r * sum(matrix.shape) for _, matrix in _matrices(model))


@cache
def language_flops(model: Any, tokens: int, logits: int = 1, learns: str = "") -> float:
    """FLOPs of the language model over one sequence, with logits for ``logits`` of its tokens; its
    layers are alike, so one is counted.

    ``learns``: "" (forward pass alone), "all" (and backward, with gradients of every matrix), or
    "adapters" (backward through frozen matrices).
    """
    import torch

    language = model.model.language_model.requires_grad_(learns == "all")
    width, layers = language.config.hidden_size, language.config.num_hidden_layers
    hidden = torch.empty(1, tokens, width, device="meta", requires_grad=bool(learns))
    positions = torch.zeros(3, 1, tokens, dtype=torch.long, device="meta")

    def run() -> None:
        rotary = language.rotary_emb(hidden, positions)
        out = language.layers[0](hidden, position_embeddings=rotary)
        if learns:
            out.sum().backward()

    passes = {"": 1, "adapters": 2, "all": 3}[learns]  # backward: inputs, and matrices
    return layers * _count(run) + 2.0 * passes * model.lm_head.weight.numel() * logits


@cache
def image_flops(model: Any, rows: int, columns: int) -> float:
    """FLOPs of the vision tower over an image of ``rows`` x ``columns`` tokens."""
    import torch

    vision = model.config.vision_config
    high, wide = rows * vision.spatial_merge_size, columns * vision.spatial_merge_size
    patch = 3 * vision.temporal_patch_size * vision.patch_size**2
    pixels = torch.empty(high * wide, patch, device="meta")
    positions = torch.zeros(high * wide, 2, dtype=torch.long, device="meta")
    grid = torch.tensor([[1, high, wide]])
    return _count(lambda: model.model.visual(pixels, grid_thw=grid, position_ids=positions))


def vision_flops(model: Any, sample: Sample) -> tuple[float, float]:
    """FLOPs of the vision tower over the images of a sample's prompt, and over its crops."""
    images = sample.images * image_flops(model, *sample.image)
    return images, sample.crops * image_flops(model, *sample.crop)


def _count(run: Callable[[], Any]) -> float:
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        run()
    return float(counter.get_total_flops())


def _matrices(model: Any) -> list[tuple[str, Any]]:
    """Matrices of the language layers: what adapters sit on, and what is quantized."""
    named = [(name, p) for name, p in model.named_parameters() if p.dim() == 2]
    return [(name, p) for name, p in named if name.startswith("model.language_model.layers.")]


# --- samples and GPUs ------------------------------------------------------------------------


@dataclass(frozen=True)
class Sample:
    """A typical question with its reply; images are given as rows and columns of tokens."""

    images: int  # of the prompt
    image: tuple[int, int]
    crops: int  # images that boxes inject
    crop: tuple[int, int]
    question: int  # tokens of its words
    generated: int  # tokens of the model's own

    @property
    def prompt(self) -> int:
        """Tokens of the prompt."""
        return self.question + self.images * (math.prod(self.image) + DELIMITERS)

    @property
    def injected(self) -> int:
        """Tokens of the crops."""
        return self.crops * (math.prod(self.crop) + DELIMITERS)

    @property
    def tokens(self) -> int:
        """All of it."""
        return self.prompt + self.injected + self.generated


def samples_of(
    shape: Sequence[int], image: int | None = None, frame: ProcessorFrame = QWEN_FRAME
) -> dict[str, Sample]:
    """Typical samples, ``"2d"`` and ``"3d"``, for volumes of ``shape`` (slices, rows, columns) and
    images of ``image`` x ``image`` pixels (None: as a slice)."""
    assumed, found = KNOWN["sample"], {}
    spanned = max(1, round(shape[0] * assumed["slices"]))
    for name, count, slices in (("2d", 1, 1), ("3d", shape[0], spanned)):
        size = frame.size(*((image, image) if image and name == "2d" else shape[1:]))
        crop = frame.size(*(max(4, round(side * assumed["region"] ** 0.5)) for side in size))
        grids = [tuple(side // frame.factor for side in one) for one in (size, crop)]
        crops, generated = assumed["boxes"] * slices, assumed["generated"][name]
        found[name] = Sample(count, grids[0], crops, grids[1], assumed["question"], generated)
    return found


@dataclass(frozen=True)
class Cluster:
    """GPUs of one kind, with what their maker says of one."""

    gpu: str
    count: int
    memory: float  # bytes
    peak: float  # FLOP/s, dense, 16 bits
    bandwidth: float  # bytes/s
    bf16: bool
    price: tuple[float, float]  # US dollars an hour

    @classmethod
    def named(cls, text: str, price: float | None = None) -> Cluster:
        """``8xH100``: eight of them; a :class:`PlanError` names the GPUs that are known."""
        names = {name.lower(): name for name in KNOWN["gpus"]}
        match = re.fullmatch(r"(?:([1-9]\d*)\s*x)?\s*([\w-]+)", text.strip().lower())
        if match is None or match[2] not in names:
            expected = "a number, x and one of " + ", ".join(KNOWN["gpus"])
            raise PlanError("--gpus", expected, repr(text), "write it like 8xH100")
        one = KNOWN["gpus"][name := names[match[2]]]
        sizes = one["memory"] * 1e9, one["peak"] * 1e12, one["bandwidth"] * 1e9, one["bf16"]
        return cls(name, int(match[1] or 1), *sizes, (price, price) if price else one["price"])

    def __str__(self) -> str:
        return f"{self.count}x{self.gpu}"


# --- one stage of training on some GPUs ------------------------------------------------------


@dataclass(frozen=True)
class Stage:
    """A training stage of a profile on GPUs: what it holds, and how long it takes."""

    name: str  # of STAGES
    settings: Any  # the profile's section of that name, and its section "grounding"
    grounding: Any
    lora_r: int | None  # None: the language model learns in full
    four_bit: bool  # whether frozen matrices are quantized
    model: Any  # see shaped_model
    cluster: Cluster
    sharding: str  # of SHARDING
    samples: Mapping[str, Sample]  # "2d", "3d"

    def memory(self) -> dict[str, float]:
        """Part -> bytes on one GPU, at most.

        A parameter that learns costs 16 bytes: weight, gradient and both moments of AdamW in
        float32. Activations are what a layer keeps for its backward pass (arXiv 2205.05198); with
        checkpointing that is its input alone.
        """
        import torch
        from accelerate.commands.estimate import estimate_training_usage
        from accelerate.utils import CustomDtype, calculate_maximum_sizes, compute_module_sizes

        model, text, settings = self.model, self.model.config.text_config, self.settings
        (language, vision), whole = parameters(model), self.lora_r is None
        learns = language if whole else lora_parameters(model, self.lora_r)
        shards = 1 if self.sharding == "ddp" else self.cluster.count
        four_bit = [name for name, _ in _matrices(model)] if self.four_bit else []
        special = dict.fromkeys(four_bit, CustomDtype.INT4)
        in_16_bits = compute_module_sizes(model, torch.bfloat16)[""]
        frozen = compute_module_sizes(model, torch.bfloat16, special_dtypes=special)[""]
        if whole:  # DDP and FSDP keep a model that learns in float32 throughout
            frozen = (2 if self.sharding == "zero3" else 4) * vision
        optimized = max(estimate_training_usage(4 * learns, "float32").values())
        parts = {"frozen weights": frozen / shards}
        parts["weights, gradients, optimizer"] = optimized / shards
        generates = self.name == "grpo" and not settings.use_vllm
        if self.name == "grpo" and settings.beta and whole:
            parts["reference model"] = in_16_bits / shards
        if shards > 1:
            # two layers at a time; to generate in the same process, the whole model
            two_layers = calculate_maximum_sizes(model)[1][0]  # as many bytes as one in float32
            parts["gathered weights"] = in_16_bits if generates else two_layers
        elif whole:
            parts["16-bit copies"] = 2.0 * learns  # of autocast
        tokens = settings.per_device_train_batch_size * self._longest
        per_layer = 2 * (6 * text.hidden_size + 2 * self._keys + 4 * text.intermediate_size)
        kept = text.num_hidden_layers * per_layer  # bytes a token
        if settings.gradient_checkpointing:
            kept = 2 * per_layer + text.num_hidden_layers * 2 * text.hidden_size
        parts["activations"] = float(tokens * kept)
        parts["logits"] = 12.0 * min(tokens, LOGITS_CHUNK) * text.vocab_size
        parts["keys and values"] = self._cache if generates else 0.0
        parts["CUDA context"] = CUDA_CONTEXT
        return parts

    @property
    def fits(self) -> bool:
        """Whether a GPU holds it, also before DeepSpeed has sharded what it loaded."""
        needed = sum(self.memory().values())
        if self.sharding == "zero3":
            needed = max(needed, 2 * sum(parameters(self.model)) + CUDA_CONTEXT)
        return needed <= KNOWN["utilization"]["memory"] * self.cluster.memory

    def sft(self, counts: Mapping[str, int]) -> list[dict[str, Any]]:
        """Rows of :attr:`Estimate.work` for fine-tuning on so many records of each dimension."""
        total, steps = sum(counts.values()), self.settings.max_steps
        passes = steps * self._step / total if steps > 0 else self.settings.num_train_epochs
        flops = sum(n * self._learning(self.samples[d], passes) for d, n in counts.items())
        return [self._row(f"{passes:.3g} passes over {total:,} records", flops, "training")]

    def grpo(self, counts: Mapping[str, int]) -> list[dict[str, Any]]:
        """Rows of :attr:`Estimate.work` for outcome RL on so many questions of each dimension."""
        grpo, model, total = self.settings, self.model, sum(counts.values())
        group, replies = grpo.num_generations, self._replies
        steps = max(1, replies // self._step) * grpo.num_iterations  # of one generation
        epochs = grpo.num_train_epochs * total * group / replies
        generations = grpo.max_steps / steps if grpo.max_steps > 0 else epochs
        prefill = scored = learnt = 0.0
        for dimension, count in counts.items():
            sample, prompts = self.samples[dimension], generations * replies / group * count / total
            images, crops = vision_flops(model, sample)
            prompt = language_flops(model, sample.prompt)
            injected = language_flops(model, sample.prompt + sample.injected) - prompt
            prefill += prompts * (images + prompt + group * (crops + injected))
            read = language_flops(model, sample.tokens, sample.generated)
            scored += prompts * group * (images + crops + read)
            learnt += prompts * self._learning(sample, group * grpo.num_iterations)
        scored *= (grpo.beta > 0) + (steps > 1 or grpo.use_vllm)  # by the reference, by the policy
        # A step of generation reads weights and cache, or takes what launching it takes; the
        # longest reply of a batch is waited for.
        read = 2.0 * parameters(model)[0] + self._cache
        read = read / (self.cluster.bandwidth * self._reached("bandwidth"))
        token = np.maximum(read, KNOWN["token_step_vllm" if grpo.use_vllm else "token_step"])
        longest = 1.5 * max(sample.generated for sample in self.samples.values())
        batches = generations * replies / self.cluster.count / self._together
        what = f"rollouts: {generations:,.0f} x {replies // group} questions x {group} replies"
        return [
            self._row(what, prefill, "forward", batches * longest * token),
            self._row("log-probabilities", scored, "forward"),
            self._row("updates", learnt, "training"),
        ]

    def refusal(self) -> PlanError:
        """What does not fit, and the nearest set-ups that do."""
        more = [replace(self.cluster, count=self.cluster.count * 2**k) for k in range(1, 7)]
        larger = [Cluster.named(f"{self.cluster.count}x{gpu}") for gpu in KNOWN["gpus"]]
        near = [(f"--sharding {way}", replace(self, sharding=way)) for way in SHARDING]
        lora = replace(self, lora_r=16, sharding="ddp")
        near.append((f"--set grounding.{self.name}_lora_r=16", lora))
        near += [(f"--gpus {c}", replace(self, cluster=c, sharding="zero3")) for c in more]
        near += [(f"--gpus {c}", replace(self, cluster=c)) for c in larger]
        fitting = [text for text, stage in near if stage.fits]
        parts, limit = self.memory(), KNOWN["utilization"]["memory"] * self.cluster.memory
        found = f"{sum(parts.values()) / 1e9:.1f} GB ({_largest(parts)})"
        do = "; or ".join([*fitting[:3], "a smaller batch, or shorter samples"])
        subject = f"{self.name}, {self.sharding} on {self.cluster}"
        return PlanError(subject, f"at most {limit / 1e9:.1f} GB on a GPU", found, do)

    def _learning(self, sample: Sample, passes: float) -> float:
        """FLOPs of learning from a sample; the frozen vision tower goes forward only."""
        learns = "all" if self.lora_r is None else "adapters"
        flops = language_flops(self.model, sample.tokens, sample.generated, learns)
        if self.settings.gradient_checkpointing:
            flops += language_flops(self.model, sample.tokens, sample.generated)
        seen = 1 if self.grounding.feature_cache else passes
        return passes * flops + seen * sum(vision_flops(self.model, sample))

    def _row(self, what: str, flops: float, kind: str, more: Any = 0.0) -> dict[str, Any]:
        """FLOPs on all GPUs as hours and dollars; ``more``: seconds besides."""
        speed = self.cluster.peak * self.cluster.count * self._reached(kind)
        hours = (flops / speed + more) / 3600
        served = self.name == "grpo" and self.settings.use_vllm  # by as many GPUs again
        usd = hours * self.cluster.count * (2 if served else 1) * np.array(self.cluster.price)
        return {"stage": self.name, "what": what, "flops": flops, "hours": [*hours], "usd": [*usd]}

    def _reached(self, kind: str) -> np.ndarray:
        """Proportions of the peak, from good to bad use."""
        known = KNOWN["utilization"]
        kind = "adapters" if kind == "training" and self.lora_r is not None else kind
        return np.array(known[kind]) * (known["four_bit"] if self.four_bit else 1)

    @property
    def _longest(self) -> int:
        return max(sample.tokens for sample in self.samples.values())

    @property
    def _step(self) -> int:
        """Samples, or replies, of an optimizer step."""
        batch = self.settings.per_device_train_batch_size * self.cluster.count
        return batch * self.settings.gradient_accumulation_steps

    @property
    def _replies(self) -> int:
        """Replies of one generation of GRPO, on all GPUs."""
        return self.settings.generation_batch_size or self._step

    @property
    def _together(self) -> int:
        """Replies that one GPU generates in one batch."""
        replies = math.ceil(self._replies / self.cluster.count)
        prompts = self.grounding.rollout_batch_size or replies
        return min(replies, prompts * self.settings.num_generations)

    @property
    def _keys(self) -> int:
        """Width of the keys, and of the values, of a layer."""
        text = self.model.config.text_config
        return text.hidden_size // text.num_attention_heads * text.num_key_value_heads

    @property
    def _cache(self) -> float:
        """Bytes of keys and values of the replies that are generated together, in 16 bits."""
        layers = self.model.config.text_config.num_hidden_layers
        return 4.0 * self._together * self._longest * layers * self._keys


# --- the estimate ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What the stages of a profile take on GPUs."""

    cluster: Cluster
    sharding: Mapping[str, str]  # stage -> of SHARDING
    samples: Mapping[str, Sample]
    memory: Mapping[str, Mapping[str, float]]  # stage -> part -> bytes on one GPU
    work: Sequence[Mapping[str, Any]]  # parts of stages: stage, what, flops, hours and usd (ranges)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    def to_markdown(self) -> str:
        """Samples, memory and work, as three tables."""
        import pandas as pd

        total = {name: np.sum([row[name] for row in self.work], 0) for name in ("hours", "usd")}
        rows = [*self.work, {"stage": "all", "what": "", **total}]
        tables = (
            [{f"tokens on {self.cluster}": d, "prompt": s.prompt, "injected": s.injected,
              "generated": s.generated, "all": s.tokens} for d, s in self.samples.items()],
            [{"stage": stage, "sharding": self.sharding[stage],
              "GB a GPU": f"{sum(parts.values()) / 1e9:.1f}", "largest parts": _largest(parts)}
             for stage, parts in self.memory.items()],
            [{"stage": row["stage"], "what": row["what"], "hours": _range(row["hours"]),
              "USD": _range(row["usd"])} for row in rows],
        )  # fmt: skip
        return "\n\n".join(pd.DataFrame(table).to_markdown(index=False) for table in tables)


def estimate(
    profile: Any,
    gpus: str | Cluster = "8xH100",
    *,
    model: str | None = None,
    sharding: str | None = None,
    stages: Sequence[str] = STAGES,
    samples: Mapping[str, Sample] | None = None,
    counts: Mapping[str, Mapping[str, int]] | None = None,
) -> Estimate:
    """Memory, hours and price of the training stages of a profile.

    Args:
        profile: All settings; ``grpo.use_vllm`` means a server on as many GPUs again.
        gpus: ``"8xH100"``, or a cluster.
        model: See :func:`shaped_model`; None: the profile's base.
        sharding: Of :data:`SHARDING`; None: ZeRO-3 for a whole model on several GPUs, else DDP.
        stages: Of :data:`STAGES`.
        samples: See :func:`samples_of`; None: for the profile's volumes.
        counts: Stage -> dimension -> records or questions; None: the paper's in the profile
            ``gpu``, else those of the phantoms that the profile makes.

    Raises:
        PlanError: An unknown name, settings that do not run on these GPUs, or a stage that
            does not fit; the message names the nearest set-ups that do.
    """
    cluster = gpus if isinstance(gpus, Cluster) else Cluster.named(gpus)
    shapes = shaped_model(str(model or profile.model.base))
    samples = samples or samples_of(profile.dataset.shape, 512 if profile.name == "gpu" else None)
    ways, held, work = {}, {}, []
    for name in stages:
        if name not in STAGES or sharding not in (None, *SHARDING):
            expected = f"a stage of {STAGES}, sharding of {SHARDING}"
            raise PlanError("plan", expected, f"{name} and {sharding}", "choose from these")
        settings, r = getattr(profile, name), getattr(profile.grounding, f"{name}_lora_r")
        ways[name] = sharding or ("zero3" if r is None and cluster.count > 1 else "ddp")
        learnt = (settings, profile.grounding, r, profile.model.quantization == "4bit")
        stage = Stage(name, *learnt, shapes, cluster, ways[name], samples)
        if settings.bf16 and not cluster.bf16:
            do = f"--profile t4, or --set {name}.bf16=false --set {name}.fp16=true"
            raise PlanError(f"{name} on {cluster}", "a GPU with bfloat16", f"{name}.bf16: true", do)
        if not stage.fits:
            raise stage.refusal()
        held[name] = stage.memory()
        work += getattr(stage, name)((counts or {}).get(name) or _counts(profile, name))
    return Estimate(cluster, ways, samples, held, work)


def _counts(profile: Any, stage: str) -> dict[str, int]:
    """Records or questions by dimension: the paper's, or of the phantoms that a profile makes."""
    data, counts = getattr(profile, f"{stage}_data"), KNOWN[stage]
    if profile.name != "gpu":
        each = profile.dataset.per_family / 2
        phantom = KNOWN["phantom"].items()
        counts = {d: round(getattr(data, f"patients_{d}") * n * each) for d, n in phantom}
    chosen = {d: getattr(data, f"records_{d}") for d in counts}
    return {d: n if chosen[d] is None else chosen[d] for d, n in counts.items()}


def _largest(parts: Mapping[str, float]) -> str:
    largest = sorted(parts.items(), key=lambda item: -item[1])[:3]
    return ", ".join(f"{name} {value / 1e9:.1f}" for name, value in largest)


def _range(values: Sequence[float]) -> str:
    texts = [f"{value:,.0f}" if value >= 10 else f"{value:.2g}" for value in values]
    return "-".join(dict.fromkeys(texts))
