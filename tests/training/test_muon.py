"""Two optimizers in one: who learns what, one schedule, one state."""

import pytest
import torch
from torch import nn

from unireason_lib.training import sft
from unireason_lib.training.muon import FloatMuon, MuonWithAdamW, muon_factory, orthogonal
from unireason_lib.training.sft import SFTSettings, fine_tune, freeze


def parts(model, **rates):
    both = MuonWithAdamW(model, **{"lr": 1e-3, "muon_lr": 1e-2, **rates})
    muon, adamw = both.parts
    return both, muon.param_groups[0]["params"], [group["params"] for group in adamw.param_groups]


def test_every_parameter_that_learns_has_one_teacher(fresh_model):
    model, _ = fresh_model
    freeze(model)
    _, matrices, (wide, vectors) = parts(model)
    learns = [p for p in model.parameters() if p.requires_grad]
    taught = [*matrices, *wide, *vectors]
    assert len({id(p) for p in taught}) == len(taught) == len(learns)
    names = {id(p): name for name, p in model.named_parameters()}
    assert all("layers" in names[id(p)] and p.ndim == 2 for p in matrices)
    assert [names[id(p)] for p in wide] == [
        "model.language_model.embed_tokens.weight"
    ]  # tied: the output layer too
    assert all(p.ndim == 1 for p in vectors) and not any("visual" in names[id(p)] for p in taught)


def test_a_step_of_a_matrix_is_orthogonal():
    torch.manual_seed(0)

    class Net(nn.Linear):
        def get_input_embeddings(self):
            return None

        get_output_embeddings = get_input_embeddings

    net = Net(16, 16)
    both, before = parts(net, muon_lr=1.0)[0], net.weight.detach().clone()
    net(torch.randn(8, 16)).square().sum().backward()
    both.step()
    sizes = torch.linalg.svdvals((before - net.weight).detach())
    whole = sizes[sizes > 0.01 * sizes[0]]
    assert (
        len(whole) >= 8 and whole[:8].max() / whole[:8].min() < 2
    )  # the gradient's own differ far more


def test_in_float32_the_steps_are_those_of_pytorch():
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in ((32, 32), (16, 48), (48, 16), (32, 32))]
    gradients = [[torch.randn_like(one) for one in start] for _ in range(5)]
    ends, states = [], []
    for kind in (torch.optim.Muon, FloatMuon):
        mine = [nn.Parameter(one.clone()) for one in start]
        optimizer = kind(
            [*mine, nn.Parameter(torch.ones(2, 2))],
            lr=0.1,
            weight_decay=0.1,
            adjust_lr_fn="match_rms_adamw",
        )
        for step in gradients:
            for parameter, gradient in zip(mine, step, strict=True):
                parameter.grad = gradient.clone()
            optimizer.step()
        ends.append(mine)
        states.append(optimizer.state_dict()["state"])
    for before, theirs, ours in zip(start, *ends, strict=True):
        moved = (theirs - before).norm()
        assert moved > 1 and (theirs - ours).norm() < 0.02 * moved  # the rounding of bfloat16
    torch.testing.assert_close(states[0], states[1])  # either can go on with the other's


def test_newton_schulz_brings_singular_values_near_one():
    torch.manual_seed(0)
    wide = torch.randn(8, 24)
    for one in (wide, wide.T):
        sizes = torch.linalg.svdvals(orthogonal(one, (3.4445, -4.7750, 2.0315), 5, 1e-7))
        assert sizes.min() > 0.6 and sizes.max() < 1.3
    assert not orthogonal(
        torch.zeros(4, 4), (3.4445, -4.7750, 2.0315), 5, 1e-7
    ).any()  # nothing to learn


@pytest.mark.parametrize("fast, kind", [(True, torch.optim.Muon), (False, FloatMuon)])
def test_the_arithmetic_is_what_the_machine_does_fast(fresh_model, monkeypatch, fast, kind):
    monkeypatch.setattr("unireason_lib.training.muon.fast_bfloat16", lambda: fast)
    both = MuonWithAdamW(fresh_model[0], lr=1e-3, muon_lr=1e-2)
    assert type(both.parts[0]) is kind
    other = MuonWithAdamW(
        fresh_model[0], lr=1e-3, muon_lr=1e-2, bf16=not fast
    )  # what a run was told
    assert type(other.parts[0]) is not kind


def test_one_schedule_moves_both_and_a_state_comes_back(fresh_model):
    model, _ = fresh_model
    both = muon_factory()(model, lr=1e-3, muon_lr=1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(both, lambda step: 0.5**step)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 0.1)
    both.step()
    schedule.step()
    assert [group["lr"] for group in both.param_groups] == pytest.approx([5e-3, 5e-4, 5e-4])
    assert [group["lr"] for part in both.parts for group in part.param_groups] == pytest.approx(
        [5e-3, 5e-4, 5e-4]
    )
    state = both.state_dict()
    other = MuonWithAdamW(model, lr=7.0, muon_lr=7.0)
    other.load_state_dict(state)
    assert [group["lr"] for group in other.param_groups] == pytest.approx([5e-3, 5e-4, 5e-4])
    assert all(part.state for part in other.parts)
    assert other.param_groups[0] is other.parts[0].param_groups[0]


@pytest.mark.parametrize(
    "change, muon", [({}, True), ({"muon": 0.0}, False), ({"lora_rank": 4}, False)]
)
def test_adapters_are_for_adamw(study, fresh_model, monkeypatch, tmp_path, change, muon):
    seen = []
    plain = sft.GroundedSFTTrainer.create_optimizer

    def create(self, *given):
        made = plain(self, *given)
        seen.append(self.optimizer)
        return made

    monkeypatch.setattr(sft.GroundedSFTTrainer, "create_optimizer", create)
    settings = SFTSettings(**{"steps": 1, "muon": 1e-3, "bf16": False, **change})
    fine_tune(*fresh_model, study.records[:8], study.pictures, tmp_path, settings)
    assert isinstance(seen[0], MuonWithAdamW) == muon
    assert not muon or isinstance(seen[0].parts[0], FloatMuon)  # as bf16 says
