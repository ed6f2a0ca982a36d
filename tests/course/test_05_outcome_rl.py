"""The functions of notebook 05 as they are written there, and its solutions."""

import ast
from types import SimpleNamespace

import pytest
import torch

from tests.course.notebook import NOTEBOOKS, solutions_of
from unireason_lib.config import load_profile
from unireason_lib.dataset import phantom_slice, rationales
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.view import View
from unireason_lib.grounding import GroundedGenerator, load_model
from unireason_lib.training import rewards
from unireason_lib.training.grpo import grpo_trainer

NAME = "05_outcome_rl"
MODES = ("paper", "strict")


@pytest.fixture(scope="module")
def notebook():
    """The functions and capital constants of the notebook, without running the rest."""
    tree = ast.parse((NOTEBOOKS / f"{NAME}.py").read_text(encoding="utf-8"))
    wanted = {"reward", "advantages", "grpo_loss", "log_probabilities", "answer", "ending"}
    constants = ("FIXED", "EXAMPLES", "ONE_GROUP", "(OPTIONS, BOX)")
    tree.body = [
        node
        for node in tree.body
        if (isinstance(node, ast.FunctionDef) and node.name in wanted)
        or (isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in constants)
    ]
    names = {"torch": torch, "rewards": rewards, "rationales": rationales}
    exec(compile(tree, NAME, "exec"), names)
    return names


@pytest.fixture(scope="module")
def solutions():
    return SimpleNamespace(**solutions_of(NAME))


def test_only_honest_replies_and_contradictions_are_paid_in_full(notebook):
    paid = {
        m: {k: notebook["reward"](x, m) for k, x in notebook["EXAMPLES"].items()} for m in MODES
    }
    full = {mode: {k for k, value in one.items() if value > 0.99} for mode, one in paid.items()}
    assert full["strict"] == {"as intended", "reasoning and answer differ"}
    assert full["paper"] == full["strict"] | {"bare letter"}


def test_advantages_have_zero_mean_and_the_unit_of_the_group(notebook):
    for group in (notebook["FIXED"], [0.2, 1.0, 0.8, 0.1, 0.0]):
        found = notebook["advantages"](group)
        assert abs(found.mean()) < 1e-6 and abs(found.std() - 1) < 1e-3
    assert not notebook["advantages"]([0.8] * 4).any()


@pytest.fixture(scope="module")
def group(notebook, tiny_checkpoint, tmp_path_factory):
    """The trainer after its three updates, and the batch of its second group."""
    model, processor = load_model(tiny_checkpoint, device="cpu")
    view = View(phantom_slice(3), frame=GroundedGenerator(model, processor).frame)
    question = ask(view)[0]
    record = Record.make(view, question, rationales.TemplateWriter().write(question, view))
    how = load_profile("smoke", notebook["ONE_GROUP"] + ", grpo.max_completion_length=12")
    out = tmp_path_factory.mktemp("group")
    parts = model, processor, [record], lambda _: view.images(), out, how
    trainer = grpo_trainer(*parts, rewards={notebook["answer"]: 1.0})
    trainer.train()
    return trainer, trainer._buffered_inputs[0], how.grpo


def test_the_loss_by_hand_is_that_of_the_trainer(notebook, group):
    trainer, batch, settings = group
    policy = trainer.model.eval()
    forbidden = GroundedGenerator(policy, trainer.processing_class).never_written
    logps = notebook["log_probabilities"]
    new = logps(policy, batch, forbidden, settings.temperature)
    with policy.disable_adapter():
        reference = logps(policy, batch, forbidden, settings.temperature)
    mask, old = batch["completion_mask"] * batch["tool_mask"], batch["old_per_token_logps"]
    advantages = notebook["advantages"]([float(a > 0) for a in batch["advantages"]])
    assert torch.allclose(advantages, batch["advantages"], atol=1e-5)
    by_hand = notebook["grpo_loss"](
        new, old, reference, mask, advantages, settings.epsilon, settings.beta
    )
    assert ((new - old)[mask > 0].abs() > 1e-3).any(), "the policy has moved"
    assert by_hand.item() == pytest.approx(trainer.compute_loss(policy, batch).item(), abs=1e-5)


def test_the_gradient_of_a_first_step_is_the_policy_gradient(notebook, group):
    _, batch, settings = group
    mask, old = batch["completion_mask"] * batch["tool_mask"], batch["old_per_token_logps"]
    advantages, now = notebook["advantages"](notebook["FIXED"]), old.clone().requires_grad_()
    loss = notebook["grpo_loss"](now, old, old, mask, advantages, settings.epsilon, settings.beta)
    loss.backward()
    wanted = -mask * advantages[:, None] / len(mask) / mask.sum(1, keepdim=True)
    assert abs(loss) < 1e-6 and torch.allclose(now.grad, wanted, atol=1e-6)


def test_clipped_and_injected_tokens_get_no_gradient_from_the_reward(notebook):
    """Up for a positive advantage, down for a negative one; KL pulls at all but injected ones."""
    old = torch.zeros(2, 4)
    new = torch.tensor([[0.5, -0.5, 0.0, 0.5], [0.5, -0.5, 0.0, -0.5]], requires_grad=True)
    mask, advantages = torch.tensor([[1, 1, 1, 0]] * 2), torch.tensor([1.0, -1.0])
    notebook["grpo_loss"](new, old, old, mask, advantages, 0.2, 0.0).backward()
    assert (new.grad != 0).tolist() == [[False, True, True, False], [True, False, True, False]]
    new.grad = None
    notebook["grpo_loss"](new, old, old, mask, advantages * 0, 0.2, 0.1).backward()
    assert torch.equal(new.grad.sign(), (new.detach() * mask).sign()), "back to the reference"


def test_what_the_reasoning_ends_on(notebook):
    options = {"A": "liver", "B": "left kidney"}
    for thought, expected in {
        "It is the liver.": "another",
        "Not the liver: left kidney.": "right",
        "I see.": "none",
    }.items():
        assert notebook["ending"](f"<think>{thought}</think>B. liver", options, "B") == expected


def test_the_solutions_run(solutions):
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


def test_the_form_of_the_course():
    text = (NOTEBOOKS / f"{NAME}.py").read_text(encoding="utf-8")
    assert text.count("\n") <= 350 and text.count("# %%") <= 45
    assert text.count("**Predict first") >= 2 and "## Check yourself" in text
    links = ("colab.research.google.com", "arxiv.org/abs/2606.11740", "arxiv.org/abs/2402.03300")
    assert all(link in text for link in (*links, f"solutions/{NAME}.py"))
