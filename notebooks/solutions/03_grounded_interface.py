"""Solutions of notebook 03. Run it, ``python notebooks/solutions/03_grounded_interface.py``, or
import its functions."""

import time

import torch
from PIL import Image

from unireason_lib.boxes import Box3D, format_box
from unireason_lib.dataset import phantom_slice
from unireason_lib.dataset.view import View
from unireason_lib.grounding import (
    GroundedGenerator,
    GroundedRequest,
    Script,
    crop_region,
    load_profile_model,
)
from unireason_lib.imaging import QWEN_FRAME


def cost_of_cuboid(width: int, height: int, slices: int) -> tuple[int, int]:
    """Exercise 1: the tokens that a cuboid costs with Qwen2.5-VL, and by how much the position
    advances. Every crop has two delimiters; its image advances the position by its longer side."""
    rows, columns = (side // QWEN_FRAME.factor for side in QWEN_FRAME.size(height, width))
    return slices * (rows * columns + 2), slices * (max(rows, columns) + 2)


def texture_probe(
    generator: GroundedGenerator, patients: int = 300, first: int = 1_000_000
) -> tuple[dict[str, float], int]:
    """Exercise 2: accuracy of a linear classifier of the texture on features of the vision tower,
    from the whole image and from the crop of the true box, and the number of test slices. The
    classifier is ridge regression on one-hot classes, fitted on even slices, tested on odd ones.
    """
    features, textures = {"whole image": [], "crop": []}, []
    for patient in range(first, first + patients):
        view = View(phantom_slice(patient), frame=generator.frame)
        lesions = [one for one in view.study.structures if one.kind == "lesion"]
        if len(lesions) != 1:  # of two, the image would not say which one is meant
            continue
        image = generator.frame.aligned(view.images()[0])
        crops = crop_region([image], view.box(lesions[0]))
        for name, images in (("whole image", [image]), ("crop", crops)):
            with torch.inference_mode():
                (tokens,) = generator.features(*generator.encode_crops(images))
            features[name].append(tokens[0].mean(0).double().cpu())
        textures.append(lesions[0].attributes["texture"])
    classes = torch.tensor([sorted(set(textures)).index(one) for one in textures])
    accuracy = {}
    for name, rows in features.items():
        x = torch.stack(rows)
        x = torch.cat([(x - x[::2].mean(0)) / x[::2].std(0), torch.ones(len(x), 1)], dim=1)
        y = torch.nn.functional.one_hot(classes).double()
        ridge = x[::2].T @ x[::2] + 10 * torch.eye(x.shape[1])
        predicted = (x[1::2] @ torch.linalg.solve(ridge, x[::2].T @ y[::2])).argmax(1)
        accuracy[name] = (predicted == classes[1::2]).double().mean().item()
    return accuracy, len(classes[1::2])


def seconds_saved(generator: GroundedGenerator, slices: int, boxes: int = 6) -> tuple[float, float]:
    """Exercise 3: seconds for a reply with some boxes about so many slices, if everything is encoded
    again after each box, and with the cache. The first grows with the volume, the second hardly."""
    images = [Image.new("RGB", (64, 64), (40 * k % 256,) * 3) for k in range(slices)]
    request = GroundedRequest("Where is the lesion?", images, {"A": "left", "B": "right"}, "3d")
    cuboids = (Box3D(k, k, k % slices, k + 16, k + 16, k % slices + 1) for k in range(boxes))
    script = Script(generator.tokenizer, map(format_box, cuboids))
    seconds = []
    for reuse in (False, True):
        one = GroundedGenerator(generator.model, generator.processor, reuse_cache=reuse)
        start = time.perf_counter()
        one.generate([request], scripts=[script], max_new_tokens=len(script), max_rounds=boxes)
        seconds.append(time.perf_counter() - start)
    return tuple(seconds)


if __name__ == "__main__":
    from unireason_lib.config import load_profile
    from unireason_lib.notebooks import project_root

    tokens, positions = cost_of_cuboid(100, 60, slices=5)
    print(f"1. {tokens} tokens, {positions} positions")
    generator = GroundedGenerator(*load_profile_model(load_profile().model, project_root()))
    accuracy, count = texture_probe(generator)
    for name, value in accuracy.items():
        print(f"2. texture from the {name}: {100 * value:.0f} % right of {count} slices")
    for slices in (4, 8, 16):
        again, kept = seconds_saved(generator, slices)
        print(f"3. {slices} slices: {again:.2f} s encoded again, {kept:.2f} s with the cache")
