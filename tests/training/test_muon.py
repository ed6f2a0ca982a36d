"""Two optimizers in one: who learns what, one schedule, one state."""

import pytest
import torch
from torch import nn

from unireason_lib.training import sft
from unireason_lib.training.muon import MuonWithAdamW, muon_factory
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
    assert len(whole) >= 8 and whole[:8].max() / whole[:8].min() < 2  # the gradient's own differ far more


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


@pytest.mark.parametrize("change, muon", [({}, True), ({"muon": 0.0}, False), ({"lora_rank": 4}, False)])
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
