"""The functions of notebook 05 as they are written there, and its solutions."""

import pytest
import torch

from tests.course.notebook import functions_of, solutions_of
from unireason_lib.config import load_profile
from unireason_lib.training import rewards

NAME = "05_outcome_rl"
MODES = ("paper", "strict")
REWARDS = [1.0, 1.0, 0.0, 0.0]


@pytest.fixture(scope="module")
def notebook():
    """The functions and some constants of the notebook."""
    names = {"torch": torch, "rewards": rewards}
    names |= {"SEED": 0, "profile": load_profile("smoke")}
    constants = ("EXAMPLES", "(OPTIONS, BOX)")
    return functions_of(NAME, constants, **names)


def test_only_honest_replies_and_contradictions_are_paid_in_full(notebook):
    paid = {m: {k: notebook.reward(x, m) for k, x in notebook.EXAMPLES.items()} for m in MODES}
    full = {mode: {k for k, value in one.items() if value > 0.99} for mode, one in paid.items()}
    assert full["strict"] == {"as intended", "reasoning and answer differ"}
    assert full["paper"] == full["strict"] | {"bare letter"}


def test_a_policy_gradient_finds_the_rewarded_answer_unless_it_is_never_sampled(notebook):
    torch.manual_seed(0)
    assert notebook.policy_gradient(0.25)[-1][1] > 0.9
    assert notebook.policy_gradient(1e-7)[-1][1] < 0.01


def test_the_gradient_of_a_first_step_is_the_policy_gradient(notebook):
    mask, old = torch.tensor([[1, 1, 0, 1]] * 3 + [[1, 0, 0, 0]]), -torch.arange(16.0).view(4, 4)
    advantages, now = notebook.advantages(REWARDS), old.clone().requires_grad_()
    loss = notebook.grpo_loss(now, old, old, mask, advantages, 0.2, 0.1)
    loss.backward()
    wanted = -mask * advantages[:, None] / len(mask) / mask.sum(1, keepdim=True)
    assert abs(loss) < 1e-6 and torch.allclose(now.grad, wanted, atol=1e-6)


def test_clipped_and_injected_tokens_get_no_gradient_from_the_reward(notebook):
    """Up for a positive advantage, down for a negative one; KL pulls at all but injected ones."""
    old = torch.zeros(2, 4)
    new = torch.tensor([[0.5, -0.5, 0.0, 0.5], [0.5, -0.5, 0.0, -0.5]], requires_grad=True)
    mask, advantages = torch.tensor([[1, 1, 1, 0]] * 2), torch.tensor([1.0, -1.0])
    notebook.grpo_loss(new, old, old, mask, advantages, 0.2, 0.0).backward()
    assert (new.grad != 0).tolist() == [[False, True, True, False], [True, False, True, False]]
    new.grad = None
    notebook.grpo_loss(new, old, old, mask, advantages * 0, 0.2, 0.1).backward()
    assert torch.equal(new.grad.sign(), (new.detach() * mask).sign()), "back to the reference"


def test_the_solutions_run():
    solutions = solutions_of(NAME)
    scaled, plain = solutions.both_advantages([1, 1, 1, 0.2])
    assert scaled == pytest.approx([0.5] * 3 + [-1.5], abs=1e-3)
    assert plain == pytest.approx([0.2] * 3 + [-0.6])
    truth, found = solutions.kl_estimators([0.6, 0.25, 0.15], [0.55, 0.25, 0.2])
    assert found["k1"][0] == pytest.approx(truth, abs=2e-3)
    assert found["k3"][0] == pytest.approx(truth, abs=5e-4) and found["k3"][1] < found["k1"][1] / 3
    options = {"A": "heart", "B": "liver"}
    for thought, paid in {"So: liver.": 1, "So: heart.": 0, "I see.": 1}.items():
        reply = f"<think>{thought}</think>B. liver"
        assert solutions.consistent_answer_reward(reply, "B", options) == paid
