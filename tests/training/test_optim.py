"""Two optimizers in one: who learns what, one schedule, one state."""

import pytest
import torch
from torch import nn

from unireason_lib.training.optim import FloatMuon, MuonWithAdamW
from unireason_lib.training.sft import freeze


def test_every_parameter_that_learns_has_one_optimizer(fresh_model):
    model, _ = fresh_model
    freeze(model)
    muon, adamw = MuonWithAdamW(model, lr=1e-3, muon_lr=1e-2).parts
    matrices = muon.param_groups[0]["params"]
    wide, vectors = (group["params"] for group in adamw.param_groups)
    names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(names) == sorted(map(id, [*matrices, *wide, *vectors]))
    assert all("layers" in names[id(p)] and p.ndim == 2 for p in matrices)
    # tied: the output layer too
    assert [names[id(p)] for p in wide] == ["model.language_model.embed_tokens.weight"]
    assert all(p.ndim == 1 for p in vectors)


def test_in_float32_the_steps_are_those_of_pytorch():
    ends = []
    for kind in (torch.optim.Muon, FloatMuon):
        draw = torch.Generator().manual_seed(0)
        shapes = (32, 32), (16, 48), (48, 16)
        weights = [nn.Parameter(torch.randn(shape, generator=draw)) for shape in shapes]
        start = [weight.detach().clone() for weight in weights]
        optimizer = kind(weights, lr=0.1, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
        for _ in range(5):
            for weight in weights:
                weight.grad = torch.randn(weight.shape, generator=draw)
            optimizer.step()
        ends.append((weights, optimizer.state_dict()["state"]))
    (theirs, state), (ours, other) = ends
    for before, a, b in zip(start, theirs, ours, strict=True):  # the rounding of bfloat16
        assert 0 < (a - b).norm() < 0.02 * (a - before).norm() and (a - before).norm() > 1
    torch.testing.assert_close(state, other)  # either can go on with the other's


def test_one_schedule_moves_both_and_a_state_comes_back(fresh_model):
    model, _ = fresh_model
    both = MuonWithAdamW(model, lr=1e-3, muon_lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(both, lambda step: 0.5**step)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    both.step()
    schedule.step()
    other = MuonWithAdamW(model, lr=7.0, muon_lr=7.0)
    other.load_state_dict(both.state_dict())
    for one in (both, other):
        rates = [group["lr"] for part in one.parts for group in part.param_groups]
        assert rates == pytest.approx([5e-3, 5e-4, 5e-4]) and all(part.state for part in one.parts)
        assert one.param_groups[0] is one.parts[0].param_groups[0]
