"""A complete checkpoint in miniature: the true classes, a trained tokenizer, random weights. The
profile model ``tiny`` and every test load one; ``unireason_lib.tiny_base`` trains it.
"""

import random
from collections.abc import Iterator
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from unireason_lib.backbones import Backbone, backbone_of
from unireason_lib.errors import ModelError
from unireason_lib.io import whole_folder

_QWEN = "endoftext im_start im_end object_ref_start object_ref_end box_start box_end quad_start "
_QWEN += "quad_end vision_start vision_end vision_pad image_pad video_pad"
SPECIAL_TOKENS = (*(f"<|{name}|>" for name in _QWEN.split()), "<think>", "</think>")
"""Qwen2.5-VL's special tokens in its order, then the two that the paper adds for the thought."""

_CODE = "fim_prefix fim_middle fim_suffix fim_pad repo_name file_sep"
ADDED_TOKENS = ("<tool_call>", "</tool_call>", *(f"<|{name}|>" for name in _CODE.split()))
"""Tokens that Qwen2.5-VL adds without the flag ``special``."""


def build_tiny(
    folder: str | Path, family: str = "qwen2_5_vl", *, seed: int = 0, **sizes: int
) -> Path:
    """Make a tiny checkpoint of a family with random weights and save it as transformers would.

    ``folder`` is new or empty; ``family`` of :data:`~unireason_lib.backbones.BACKBONES`; ``seed``
    is that of the weights, not of the tokenizer; ``sizes`` replace those in ``tiny.yaml``:
    ``hidden, layers, vision_hidden, vision_layers, patch_size, min_pixels, max_pixels``. A
    :class:`ModelError` for a folder in use, an unknown family or size."""
    import torch
    from transformers import Qwen2VLImageProcessor, Qwen2VLVideoProcessor, Qwen3VLVideoProcessor

    folder, constants = Path(folder), yaml.safe_load(_text("tiny.yaml"))
    if folder.exists() and any(folder.iterdir()):
        raise ModelError(folder, "no such folder, or an empty one", "files", "choose another name")
    if unknown := ", ".join(sizes.keys() - constants["sizes"].keys()):
        raise ModelError("build_tiny", ", ".join(constants["sizes"]), unknown, "correct the name")
    backbone, tokenizer = backbone_of(family, "build_tiny"), tiny_tokenizer()
    sizes = constants["sizes"] | constants["of_families"].get(family, {}) | sizes
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = _config(backbone, sizes, constants, tokenizer)
        model = backbone.of_transformers("ForConditionalGeneration")(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    limits = {"shortest_edge": sizes["min_pixels"], "longest_edge": sizes["max_pixels"]}
    images = constants["images"] | {"patch_size": sizes["patch_size"], "size": limits}
    videos = Qwen3VLVideoProcessor if family == "qwen3_vl" else Qwen2VLVideoProcessor
    processor = backbone.of_transformers("Processor")(
        image_processor=Qwen2VLImageProcessor(**images),
        tokenizer=tokenizer,
        video_processor=videos(**images),
        chat_template=backbone.template(),
    )
    with suppress(OSError):  # none, or another process was quicker
        folder.rmdir()
    with whole_folder(folder) as temporary:
        for part in (model, processor):
            part.save_pretrained(temporary)
    return folder


def _config(
    backbone: Backbone, sizes: dict[str, int], constants: dict[str, Any], tokenizer: Any
) -> Any:
    """The configuration, with tied embeddings as in the smaller published models."""
    hidden, vision, text = sizes["hidden"], constants["vision"], constants["text"]
    pad, heads = tokenizer.pad_token_id, max(1, hidden // 64)
    pairs, qwen3 = hidden // heads // 2, backbone.family == "qwen3_vl"
    # rotated pairs of a head: time, height and width get 2 : 3 : 3, in Qwen3-VL 6 : 5 : 5 by turns
    side = (5 if qwen3 else 6) * pairs // 16
    text["rope_parameters"] |= {"mrope_section": [pairs - 2 * side, side, side]}
    if qwen3:
        text["head_dim"], text["rope_parameters"]["mrope_interleaved"] = 2 * pairs, True
    text |= {"hidden_size": hidden, "intermediate_size": 4 * hidden, "vocab_size": len(tokenizer)}
    text |= {"num_attention_heads": heads, "num_key_value_heads": heads}
    text |= {"bos_token_id": pad, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": pad}
    text["num_hidden_layers"] = sizes["layers"]
    width, layers, patch = (sizes[k] for k in ("vision_hidden", "vision_layers", "patch_size"))
    vision |= {"hidden_size": width, "intermediate_size": 4 * width, "num_heads": width // 32}
    vision |= {"depth": layers, "patch_size": patch, "out_hidden_size": hidden}
    if qwen3:
        vision |= {"deepstack_visual_indexes": list(range(max(1, layers // 2)))}
        vision["num_position_embeddings"] = 64  # a grid of 8 x 8, resampled to that of an image
    else:
        vision |= {"fullatt_block_indexes": list(range(1, layers, 2)) or [0]}
        vision["window_size"] = 8 * patch
    names = {"image": "image_pad", "video": "video_pad"}
    names |= {name: name for name in ("vision_start", "vision_end")}
    ids = tokenizer.convert_tokens_to_ids([f"<|{name}|>" for name in names.values()])
    tokens = {f"{name}_token_id": n for name, n in zip(names, ids, strict=True)}
    return backbone.of_transformers("Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=True, **tokens
    )


def tiny_tokenizer(vocabulary: int = 3584) -> Any:
    """Train Qwen's kind of tokenizer (byte-level BPE, digits one by one) on the tutorials' words,
    the same everywhere; ``vocabulary`` entries at most, special tokens not counted."""
    from tokenizers import AddedToken
    from transformers import Qwen2Tokenizer

    roles = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    empty = Qwen2Tokenizer(**roles, model_max_length=131072, padding_side="left")
    tokenizer = empty.train_new_from_iterator(_corpus(4000), vocabulary, show_progress=False)
    for tokens, special in ((SPECIAL_TOKENS, True), (ADDED_TOKENS, False)):
        tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in tokens])
    return tokenizer


def _corpus(count: int) -> Iterator[str]:
    """Every word of ``vocabulary.txt``, often enough to become a token, then random sentences."""
    words = _text("vocabulary.txt").split()
    patterns = [line.replace("\\n", "\n") for line in _text("sentences.txt").splitlines()]
    for word in words:
        yield from (f" {word}", f" {word.capitalize()}", word.capitalize(), word) * 4
    draw, numbers = random.Random(0), [str(number) for number in range(256)]
    for _ in range(count):
        sentence = draw.choice(patterns)
        for mark, choices in (("{w}", words), ("{n}", numbers), ("{l}", "ABCD")):
            while mark in sentence:
                sentence = sentence.replace(mark, draw.choice(choices), 1)
        yield sentence


def _text(name: str) -> str:
    return (files("unireason_lib.grounding") / name).read_text(encoding="utf-8")
