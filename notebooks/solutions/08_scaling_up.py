"""Solutions of notebook 08. Run it, ``python notebooks/solutions/08_scaling_up.py``, or import its
functions."""

from unireason_lib.config import load_profile
from unireason_lib.errors import PlanError
from unireason_lib.planning import KNOWN, estimate, language_flops, samples_of, shaped_model


def fewest_gpus(kind: str = "H100") -> tuple[int, str]:
    """Exercise 1: the smallest number of GPUs that fine-tune the 7B model in full, and the part of
    the memory that decides. Only what is sharded shrinks with the number: at first that is nearly
    all, 16 bytes for each parameter that learns."""
    for count in range(1, 129):
        sharding = "zero3" if count > 1 else "ddp"
        try:
            plan = estimate(
                load_profile("gpu"), f"{count}x{kind}", sharding=sharding, stages=("sft",)
            )
        except PlanError:
            continue
        return count, plan.memory.iloc[:, 0].idxmax()
    raise PlanError(kind, "a GPU on which 128 suffice", "none", "choose a larger GPU")


def updates_per_fine_tuning() -> tuple[float, float]:
    """Exercise 2: FLOPs of the updates of outcome RL over those of fine-tuning, counted, and as
    predicted: every question is learnt from once per reply and epoch. The remaining difference comes
    from volumes, which are longer, and a larger part of the questions of RL than of the records."""
    gpu = load_profile("gpu")
    work = estimate(gpu, "8xH100").work
    counted = work.FLOPs.iloc[-1] / work.FLOPs.iloc[0]
    replies = gpu.grpo.num_generations * gpu.grpo.num_train_epochs * sum(KNOWN["grpo"].values())
    return counted, replies / (gpu.sft.num_train_epochs * sum(KNOWN["sft"].values()))


def cost_of_slices(side: int, slices: int = 32) -> tuple[int, float]:
    """Exercise 3: tokens of the prompt about a volume whose slices have this side in pixels, and
    FLOPs of a forward pass of the 7B model. Twice the side gives four times the image tokens; FLOPs
    grow faster, because those of attention grow with the square of the tokens."""
    volume = samples_of((slices, side, side)).loc["3d"]
    flops = language_flops(shaped_model("7b"), int(volume.tokens), int(volume.generated))
    return int(volume.prompt), flops


if __name__ == "__main__":
    for kind in ("A100", "H200"):
        print("1. {0} x {kind}; the largest part: {1}".format(*fewest_gpus(kind), kind=kind))
    print("2. {:.2f} times the FLOPs; predicted {:.2f}".format(*updates_per_fine_tuning()))
    (tokens, flops), (more, higher) = cost_of_slices(256), cost_of_slices(512)
    print(f"3. {tokens} tokens become {more}; FLOPs grow {higher / flops:.2f} times")
