"""Solutions of notebook 05. Run it, ``python notebooks/solutions/05_outcome_rl.py``, or import its
functions.

Exercise 4, by the command ``python -m unireason_lib tutorial 05`` with ``-p SEED=0`` and 1: from the
first twenty steps to the last, the reward rose from 0.73 to 0.80 and from 0.77 to 0.84, but test
accuracy changed by -2.7 and -3.0 points in 2D and +1.7 and +1.3 in 3D, not clearly different from
zero: the model may have memorized answers to its 160 questions."""

from collections.abc import Mapping, Sequence

import torch

from unireason_lib.answers import THINK_END
from unireason_lib.dataset.rationales import conclusion
from unireason_lib.training.rewards import answer_reward


def both_advantages(rewards: Sequence[float]) -> tuple[list[float], list[float]]:
    """Exercise 1: advantages with and without division by the standard deviation. With it, the
    squared advantages of every group have the same sum, G - 1: a group in which one reply of eight
    fails counts as much as one that is split in half, though without it 0.88 against 2. It matters where questions
    differ in difficulty, and where rewards differ by little: 0.2 for the format alone becomes as
    large as 0.8 for the answer."""
    rewards = torch.tensor(rewards)
    plain = rewards - rewards.mean()
    return (plain / (rewards.std() + 1e-4)).tolist(), plain.tolist()


def kl_estimators(
    policy: Sequence[float], reference: Sequence[float], samples: int = 100_000, seed: int = 0
) -> tuple[float, dict[str, tuple[float, float]]]:
    """Exercise 2: the KL divergence of two distributions over tokens, and for each estimator its
    mean and standard deviation over samples of the policy. k1 has the right mean, but is negative
    half of the time and scatters; k2 scatters less but is biased; k3 has the right mean, is never
    negative, and scatters less than k1 while the two distributions are close."""
    p, q = torch.tensor(policy), torch.tensor(reference)
    generator = torch.Generator().manual_seed(seed)
    log_rho = (q / p).log()[torch.multinomial(p, samples, True, generator=generator)]
    values = {"k1": -log_rho, "k2": log_rho**2 / 2, "k3": log_rho.exp() - log_rho - 1}
    truth = (p * (p / q).log()).sum().item()
    return truth, {name: (k.mean().item(), k.std().item()) for name, k in values.items()}


def consistent_answer_reward(text: str, truth: str, options: Mapping[str, str]) -> float:
    """Exercise 3: the answer is paid unless the reasoning ends on another option. A model may learn
    to name no option in its reasoning, or the answer before it has looked: neither is forbidden."""
    named = conclusion(text.partition(THINK_END)[0], options)
    return answer_reward(text, truth, options=options) * (named in (None, truth))


if __name__ == "__main__":
    for group in ([1, 1, 1, 0.2], [1, 1, 0.2, 0.2]):
        scaled, plain = both_advantages(group)
        print(f"1. {group}: {scaled[0]:+.2f} and {scaled[-1]:+.2f}, without division", end=" ")
        print(f"{plain[0]:+.2f} and {plain[-1]:+.2f}")
    for reference in ([0.55, 0.25, 0.2], [0.1, 0.2, 0.7]):
        truth, found = kl_estimators([0.6, 0.25, 0.15], reference)
        print(f"2. KL {truth:.4f}:", end=" ")
        print(", ".join(f"{name} {mean:.4f} ± {std:.4f}" for name, (mean, std) in found.items()))
    options = {"A": "heart", "B": "liver"}
    for thought in ("So: liver.", "So: heart.", "I see."):
        reply = f"<think>{thought}</think>B. liver"
        print(f"3. {reply!r}: {consistent_answer_reward(reply, 'B', options):g}")
