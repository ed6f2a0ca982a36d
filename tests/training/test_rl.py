"""Outcome RL: what TRL computes on grounded replies is what they are."""

import json
from collections import Counter
from dataclasses import replace

import pytest
import torch

from unireason_lib.errors import DatasetError, TrainingError
from unireason_lib.grounding import GroundedGenerator, load_model
from unireason_lib.grounding.replies import Script
from unireason_lib.training import rl
from unireason_lib.training.logbook import read_lines, read_log
from unireason_lib.training.rl import Collapse, Questions, RLSettings, check_trl, reinforce

SMALL = RLSettings(
    prompts=4,
    rollouts=4,
    mini_batch=4,
    micro_batch=8,
    steps=2,
    learning_rate=1e-4,
    reply_tokens=24,
    reply_rounds=4,
    bf16=False,
    save_steps=1,
    patience=0,
)


def pointing(tokenizer, dimension, boxes):
    """What a reply is made to write: a thought with some boxes, then six tokens of its own choice."""
    box = "[8,8,24,40]" if dimension == "2d" else "[8,8,1,24,40,3]"
    parts = ["<think>I look", *[f" <|box_start|>{box}<|box_end|>"] * boxes, ".</think>B. ", 6]
    return Script(tokenizer, tuple(parts))


@pytest.fixture
def scripted(monkeypatch):
    """Replies of every request point none, once or three times by turns."""
    plain = GroundedGenerator.generate

    def generate(self, requests, scripts=None, **how):
        scripts = scripts or [
            pointing(self.tokenizer, request.dimension, (0, 1, 3)[k % 3])
            for k, request in enumerate(requests)
        ]
        how["max_new_tokens"] = 200
        return plain(self, requests, scripts=scripts, **how)

    monkeypatch.setattr(GroundedGenerator, "generate", generate)


def caught(monkeypatch):
    """What the trainer makes of its generations, and itself."""
    seen = []
    plain = rl.GroundedGRPOTrainer._generate_and_score_completions

    def watched(self, inputs):
        output = plain(self, inputs)
        seen.append((self, list(self._now), {**output}))
        return output

    monkeypatch.setattr(rl.GroundedGRPOTrainer, "_generate_and_score_completions", watched)
    return seen


def some(study, count=8):
    """Records of both dimensions by turns."""
    parts = [[r for r in study.records if r.dimension == d] for d in ("2d", "3d")]
    return [record for pair in zip(*parts, strict=False) for record in pair][:count]


def test_log_probabilities_are_those_of_the_sampling(
    study, fresh_model, scripted, monkeypatch, tmp_path
):
    """2D and 3D, no, one and three boxes in one batch; and picture tokens are as many as features."""
    seen = caught(monkeypatch)
    model, processor = fresh_model
    settings = replace(
        SMALL, prompts=8, mini_batch=8, steps=1, learning_rate=0.0, reply_temperature=0.7
    )
    reinforce(model, processor, some(study), study.pictures, tmp_path, settings)
    ((trainer, rollouts, output),) = seen
    assert {r.trace.request.dimension for r in rollouts} == {"2d", "3d"}
    assert {len(r.trace.crops) for r in rollouts} == {0, 1, 3}
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    with torch.no_grad():
        logps, _, _ = trainer._get_per_token_logps_and_entropies(
            model,
            ids,
            mask,
            output["completion_ids"].size(1),
            **{name: output[name] for name in names},
        )
    own = (output["completion_mask"] * output["tool_mask"]).bool()
    assert (logps - output["sampling_per_token_logps"])[own].abs().max() < 1e-4
    features = (output["image_grid_thw"].prod(-1) // 4).sum()
    assert (ids == model.config.image_token_id).sum() == features
    # without the padding, and short ones apart: the same numbers and gradients as TRL's own, with all of it
    inputs = {name: output[name] for name in names}
    found = []
    for whose in (trainer, super(type(trainer), trainer)):
        model.zero_grad()
        logps, entropies, _ = whose._get_per_token_logps_and_entropies(
            model, ids, mask, own.shape[1], compute_entropy=True, **inputs
        )
        logps[own].sum().backward()
        gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        found.append((logps[own].detach(), entropies[own].detach(), gradient))
    (ours, spread, gradient), (theirs, their_spread, their_gradient) = found
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(spread, their_spread, rtol=1e-4, atol=1e-4)
    assert gradient.keys() == their_gradient.keys()
    for name in gradient:
        torch.testing.assert_close(gradient[name], their_gradient[name], rtol=1e-3, atol=1e-3)
    # what is trained on are the model's own tokens, one by one
    for row, rollout in enumerate(rollouts):
        written = [
            token
            for token, mine in zip(rollout.trace.token_ids, rollout.trace.own_mask, strict=True)
            if mine
        ]
        assert output["completion_ids"][row][own[row]].tolist() == written


def test_injected_positions_have_no_gradient(study, fresh_model, scripted, monkeypatch, tmp_path):
    """The loss does not depend on what is predicted there."""
    seen = caught(monkeypatch)
    model, processor = fresh_model
    settings = replace(SMALL, steps=1, kl=0.1, learning_rate=0.0)
    reinforce(model, processor, some(study), study.pictures, tmp_path, settings)
    trainer, _, output = seen[0]
    output["advantages"] = torch.linspace(-1, 1, len(output["advantages"]))
    kept = {}
    plain = trainer._get_per_token_logps_and_entropies

    def watched(*args, **kwargs):
        logps, *rest = plain(*args, **kwargs)
        logps = logps.detach().requires_grad_()
        kept["logps"] = logps
        return logps, *rest

    monkeypatch.setattr(trainer, "_get_per_token_logps_and_entropies", watched)
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(model, output).backward()
    own = (output["completion_mask"] * output["tool_mask"]).bool()
    assert (kept["logps"].grad[~own] == 0).all() and (kept["logps"].grad[own] != 0).any()
    assert (~own & output["completion_mask"].bool()).any()  # there are injected ones


def test_advantages_are_those_of_the_groups(study, fresh_model, scripted, monkeypatch, tmp_path):
    """By hand: reward minus the group's mean, divided by its standard deviation."""
    seen = caught(monkeypatch)
    reinforce(*fresh_model, some(study), study.pictures, tmp_path, replace(SMALL, steps=1))
    ((_, rollouts, output),) = seen
    rewards = torch.tensor([r.reward for r in rollouts]).view(-1, SMALL.rollouts)
    by_hand = (rewards - rewards.mean(1, keepdim=True)) / (rewards.std(1, keepdim=True) + 1e-4)
    assert torch.allclose(output["advantages"].view_as(by_hand), by_hand, atol=1e-4)
    for group in range(0, len(rollouts), SMALL.rollouts):
        assert len({r.row for r in rollouts[group : group + SMALL.rollouts]}) == 1


def test_a_known_preference_is_learnt(study, fresh_model, monkeypatch, tmp_path):
    """A bandit of two arms: only two tokens can be written, and one of them is paid. The reward rises."""
    model, processor = fresh_model
    arms = [processor.tokenizer(letter).input_ids[0] for letter in "AB"]
    plain = GroundedGenerator.__init__

    def init(self, *args, **kwargs):
        plain(self, *args, **kwargs)
        self.never_written = [
            k for k in range(model.config.text_config.vocab_size) if k not in arms
        ]

    def scored(self, row, trace, asked):
        value = float(trace.token_ids[0] == arms[0])
        return rl.Rollout(row, trace, asked, {"answer": value, "format": 0.0}, value)

    monkeypatch.setattr(GroundedGenerator, "__init__", init)
    monkeypatch.setattr(rl.GroundedGRPOTrainer, "_scored", scored)
    settings = replace(
        SMALL, steps=10, kl=0.0, learning_rate=1e-3, reply_tokens=1, rollouts=8, save_steps=50
    )
    reinforce(model, processor, some(study, 4), study.pictures, tmp_path, settings)
    got = [line["reward"] for line in read_log(tmp_path / "log.jsonl", "reward")]
    assert 0.2 < got[0] / 0.8 < 0.8 and sum(got[-3:]) / 3 > 0.9 * 0.8, (
        got
    )  # the answer's weight is 0.8


def test_a_run_leaves_what_it_should(study, fresh_model, scripted, tmp_path):
    out = reinforce(*fresh_model, some(study), study.pictures, tmp_path, SMALL)
    assert out == tmp_path / "model"
    model, _ = load_model(out, device="cpu")
    lines = read_log(tmp_path / "log.jsonl", "reward")
    assert [line["step"] for line in lines] == [1, 2]
    for key in (
        "kl",
        "entropy",
        "rounds",
        "boxes",
        "rewards/answer/mean",
        "rewards/format/mean",
        "rollout_seconds",
    ):
        assert all(key in line for line in lines), key
    replies = read_lines(tmp_path / "rollouts.jsonl")
    assert len(replies) == 2 * SMALL.prompts * SMALL.rollouts
    known = {record.id for record in study.records}
    for line in replies:
        assert (
            line["id"] in known
            and abs(line["reward"] - 0.8 * line["reward answer"] - 0.2 * line["reward format"])
            < 1e-6
        )
        assert len(line["boxes"]) <= len(line["statuses"])
    frozen, start = (
        model.state_dict(),
        load_model(fresh_model[0].config._name_or_path, device="cpu")[0].state_dict(),
    )
    changed = {name for name in frozen if not torch.equal(frozen[name], start[name])}
    assert changed and not any("visual" in name for name in changed)


def test_a_killed_run_goes_on_to_the_same_weights(
    study, tiny_checkpoint, scripted, monkeypatch, tmp_path
):
    def run(out, die_at=None):
        model, processor = load_model(tiny_checkpoint, device="cpu")
        settings = replace(SMALL, steps=4, learning_rate=1e-3)
        if die_at:
            plain = rl.GroundedGRPOTrainer.training_step

            def step(self, *args, **kwargs):
                if self.state.global_step == die_at:
                    raise SystemExit
                return plain(self, *args, **kwargs)

            with monkeypatch.context() as patch:
                patch.setattr(rl.GroundedGRPOTrainer, "training_step", step)
                with pytest.raises(SystemExit):
                    reinforce(model, processor, some(study), study.pictures, out, settings)
            model, processor = load_model(tiny_checkpoint, device="cpu")
        return reinforce(model, processor, some(study), study.pictures, out, settings)

    whole, gone_on = run(tmp_path / "a"), run(tmp_path / "b", die_at=2)
    one, other = (load_model(folder, device="cpu")[0].state_dict() for folder in (whole, gone_on))
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    losses = [
        [line["reward"] for line in read_log(tmp_path / x / "log.jsonl", "reward")] for x in "ab"
    ]
    assert losses[0] == pytest.approx(losses[1])


def test_pictures_seen_once_change_nothing(study, tiny_checkpoint, scripted, tmp_path):
    """The same losses, KL and weights with and without the memory of the frozen tower."""
    made = {}
    for keep in (False, True):
        model, processor = load_model(tiny_checkpoint, device="cpu")
        settings = replace(SMALL, keep_features=keep, learning_rate=1e-3, kl=0.1)
        out = reinforce(
            model, processor, some(study), study.pictures, tmp_path / str(keep), settings
        )
        lines = read_log(tmp_path / str(keep) / "log.jsonl", "reward")
        weights = load_model(out, device="cpu")[0].state_dict()
        made[keep] = [(line["loss"], line["kl"], line["reward"]) for line in lines], weights
    for one, other in zip(made[False][0], made[True][0], strict=True):
        assert one == pytest.approx(other, abs=1e-6)
    assert all(
        torch.allclose(made[False][1][n], made[True][1][n], atol=1e-6) for n in made[True][1]
    )
    with pytest.raises(TrainingError, match="frozen vision tower"):
        replace(SMALL, keep_features=True, freeze_vision=False)


def test_a_loss_that_is_no_number_keeps_the_last_checkpoint(
    study, fresh_model, scripted, monkeypatch, tmp_path
):
    plain = rl.GroundedGRPOTrainer._compute_loss
    monkeypatch.setattr(
        rl.GroundedGRPOTrainer,
        "_compute_loss",
        lambda self, *a: plain(self, *a) * (float("nan") if self.state.global_step == 1 else 1.0),
    )
    with pytest.raises(TrainingError, match=r"step 1.*finite.*last checkpoint"):
        reinforce(*fresh_model, some(study), study.pictures, tmp_path, SMALL)
    assert (tmp_path / "checkpoint-1").is_dir() and not (tmp_path / "model").exists()


def test_groups_without_spread_are_replaced(study, fresh_model, monkeypatch, tmp_path):
    """Only one question has replies of different worth; it takes the place of the others."""
    good = some(study)[3].id

    def scored(self, row, trace, asked):
        spread = trace.request.id == good
        value = float(trace.token_ids[0] % 2) if spread else 0.0
        return rl.Rollout(row, trace, asked, {"answer": value, "format": 0.0}, value)

    monkeypatch.setattr(rl.GroundedGRPOTrainer, "_scored", scored)
    seen = caught(monkeypatch)
    settings = replace(SMALL, steps=1, replace_flat=40, rollouts=8, reply_tokens=2)
    reinforce(*fresh_model, some(study), study.pictures, tmp_path, settings)
    rows = Counter(r.trace.request.id for r in seen[0][1])
    assert rows[good] > 8
    (line,) = read_log(tmp_path / "log.jsonl", "flat_groups")
    assert line["flat_groups"] > line["flat_groups_kept"]


def test_the_contrast_pays_answers_that_depend_on_the_crops(
    study, fresh_model, scripted, monkeypatch, tmp_path
):
    """Every second repetition is made to be right: those replies do not depend on what was fetched."""
    plain, repeated = rl.repeat_elsewhere, []

    def repeat(generator, traces, **how):
        again = plain(generator, traces, **how)
        for k, (trace, other) in enumerate(zip(traces, again, strict=True)):
            assert (other is None) == (not any(trace.crops))
            if other is not None:
                answered = sum(map(bool, trace.crops))  # a stray end of a box may follow
                kept = "<|box_end|>".join(trace.text.split("<|box_end|>")[:answered])
                assert other.text.startswith(kept) and len(other.crops) == len(trace.crops)
                assert [c.size for c in other.crops[0]] == [c.size for c in trace.crops[0]]
                assert other.boxes == trace.boxes
                text = trace.text if k % 2 else "nothing"
                again[k] = replace(other, text=text)
        repeated.extend(again)
        return again

    monkeypatch.setattr(rl, "repeat_elsewhere", repeat)
    settings = replace(SMALL, steps=1, contrast=0.5)
    records = [record for record in study.records if record.answer == "B"][
        :8
    ]  # what the script says
    reinforce(*fresh_model, records, study.pictures, tmp_path, settings)
    lines = read_lines(tmp_path / "rollouts.jsonl")
    assert len(lines) == len(repeated)
    for k, (line, other) in enumerate(zip(lines, repeated, strict=True)):
        depends = other is not None and line["reward answer"] == 1 and not k % 2
        assert line["reward contrast"] == depends
        parts = (
            0.8 * line["reward answer"]
            + 0.2 * line["reward format"]
            + 0.5 * line["reward contrast"]
        )
        assert line["reward"] == pytest.approx(parts)
    assert any(line["reward contrast"] for line in lines)
    (logged,) = read_log(tmp_path / "log.jsonl", "rewards/contrast/mean")
    assert logged["rewards/contrast/mean"] == pytest.approx(
        sum(r["reward contrast"] for r in lines) / len(lines)
    )


@pytest.mark.parametrize(
    "reply", ["", "<think>" + "Look <|box_start|>[8,8,24,40]<|box_end|> " * 50 + "</think>B. "]
)
def test_an_empty_reply_and_one_of_fifty_boxes_are_replies(
    study, fresh_model, monkeypatch, tmp_path, reply
):
    """The one ends at once, the other gets its first four regions and earns nothing for its form."""
    plain = GroundedGenerator.generate

    def generate(self, requests, **how):
        script = Script(self.tokenizer, (reply + self.tokenizer.eos_token,))
        how |= {"max_new_tokens": 1000, "scripts": [script] * len(requests)}
        return plain(self, requests, **how)

    monkeypatch.setattr(GroundedGenerator, "generate", generate)
    flat = [record for record in study.records if record.dimension == "2d"][:4]
    settings = replace(SMALL, steps=1, kl=0.1)
    reinforce(*fresh_model, flat, study.pictures, tmp_path, settings)
    for line in read_lines(tmp_path / "rollouts.jsonl"):
        assert line["stop"] == "end" and line["reward format"] == (0 if not reply else 0.5)
        assert len(line["boxes"]) == (50 if reply else 0)
        assert line["statuses"].count("injected") == (settings.reply_rounds if reply else 0)
    assert (tmp_path / "model").is_dir()


def test_what_cannot_be_asked_is_named_and_left_out(study, fresh_model, scripted, tmp_path):
    records = some(study)
    lost, long = (
        records[0].id,
        max((r for r in records if r.dimension == "3d"), key=lambda r: len(r.question)).id,
    )

    def pictures(record):
        if record.id == lost:
            raise DatasetError("volume.nii.gz: expected a file, found none. What to do: fetch it.")
        return study.pictures(record)

    encode = GroundedGenerator(*fresh_model).encode
    tokens = {
        r.id: len(encode(rl.record_item(r, study.pictures).request(study.pictures(r)))[0])
        for r in records
    }
    settings = replace(SMALL, steps=4, max_prompt_tokens=max(tokens.values()) - 1)
    too_long = {name for name, count in tokens.items() if count > settings.max_prompt_tokens}
    assert long in tokens
    reinforce(*fresh_model, records, pictures, tmp_path, settings)
    named = {line["id"]: line["why"] for line in read_lines(tmp_path / "left_out.jsonl")}
    assert set(named) == {lost} | too_long
    assert "volume.nii.gz" in named[lost] and all("longer than" in named[name] for name in too_long)
    asked = {line["id"] for line in read_lines(tmp_path / "rollouts.jsonl")}
    assert asked and not asked & set(named)


def test_when_nothing_can_be_asked_it_says_so(study, fresh_model, tmp_path):
    with pytest.raises(TrainingError, match=r"left_out\.jsonl.*a hundred"):
        reinforce(
            *fresh_model, some(study), study.pictures, tmp_path, replace(SMALL, max_prompt_tokens=3)
        )
    with pytest.raises(TrainingError, match="found none"):
        reinforce(*fresh_model, [], study.pictures, tmp_path / "other", SMALL)


def test_a_run_with_other_settings_is_refused(study, fresh_model, scripted, tmp_path):
    reinforce(*fresh_model, some(study), study.pictures, tmp_path, replace(SMALL, steps=1))
    with pytest.raises(DatasetError, match=r"kl was 0\.01, is 0\.5"):
        reinforce(
            *fresh_model, some(study), study.pictures, tmp_path, replace(SMALL, steps=1, kl=0.5)
        )


def test_an_untried_trl_is_refused():
    check_trl("1.16.3")
    for version in ("1.15.0", "1.17.0", "2.0.0"):
        with pytest.raises(TrainingError, match=f"trl: expected 1.16.x, found {version}"):
            check_trl(version)


@pytest.mark.parametrize(
    "change", [{"rollouts": 1}, {"prompts": 6}, {"micro_batch": 5}, {"mini_batch": 3}]
)
def test_batches_that_do_not_divide_are_refused(change):
    with pytest.raises(TrainingError, match="divisor"):
        replace(SMALL, **change)


def test_processes_share_a_step(monkeypatch, tmp_path):
    """Before they have met, the launcher says how many they are: the step stays as large as it is."""
    for count, accumulation in (("1", 4), ("2", 2), ("4", 1)):
        monkeypatch.setenv("WORLD_SIZE", count)
        with monkeypatch.context() as patch:
            made = {}
            patch.setattr(rl, "GRPOConfig", lambda made=made, **given: made.update(given))
            rl._arguments(
                replace(SMALL, prompts=16, mini_batch=8, micro_batch=8), tmp_path, 100, False
            )
        assert made["gradient_accumulation_steps"] == accumulation
        assert made["steps_per_generation"] == 2 * accumulation
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(TrainingError, match="8 x 3"):
        rl._arguments(replace(SMALL, prompts=16, mini_batch=8, micro_batch=8), tmp_path, 100, False)


def test_collapses_are_told():
    watch = Collapse(patience=3)
    fine = {
        "reward": 0.5,
        "reward_std": 0.3,
        "rewards/format/mean": 0.9,
        "completions/mean_length": 40,
        "kl": 0.1,
    }
    for change, said in (
        ({"reward_std": 0.0}, "rewards were equal"),
        ({"rewards/format/mean": 0.3}, "fell from 0.90 to 0.30"),
        ({"completions/mean_length": 2}, "2.0 tokens"),
        ({"kl": 30.0}, "KL 30.0"),
        ({}, None),
    ):
        found = watch.verdict([fine] * 3, [{**fine, **change}] * 3)
        assert (found is None) if said is None else said in found


def test_a_collapse_ends_the_run(study, fresh_model, monkeypatch, tmp_path):
    """A fresh model is never right: all rewards are equal."""
    settings = replace(SMALL, steps=8, patience=2, kl=0.0, reply_tokens=2)
    with pytest.raises(
        TrainingError, match="collapse at step 3: all rewards were equal for 2 steps"
    ):
        reinforce(*fresh_model, some(study), study.pictures, tmp_path, settings)
    assert not (tmp_path / "model").exists()


def test_adapters_learn_against_their_base(study, fresh_model, scripted, tmp_path):
    settings = replace(SMALL, lora_rank=4, kl=0.1, learning_rate=1e-2)
    out = reinforce(*fresh_model, some(study), study.pictures, tmp_path, settings)
    assert (out / "adapter_config.json").exists() and not list(out.glob("model*.safetensors"))
    kl = [line["kl"] for line in read_log(tmp_path / "log.jsonl", "kl")]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[-1] > kl[0]


def test_rollouts_of_a_server(study, fresh_model, monkeypatch, tmp_path):
    """What a server would have to do is asked of the trainer's own model: weights go over before every step, replies
    come back with their log-probabilities, and the correction for the mismatch of the two is TRL's."""
    model, processor = fresh_model
    sent, asked = [], []

    class Generation:
        def __init__(self, **given):
            self.given = given
            self.vllm_client = self
            self.served = given["model"]

        def get_server_info(self):
            return {"model_config": {"logprobs_mode": "processed_logprobs"}}

        def sync_weights(self):
            sent.append({name: weight.clone() for name, weight in self.served.state_dict().items()})

    class Served(GroundedGenerator):
        def __init__(self, client, processor, ends=()):
            assert client == "client of http://here:8000" and ends
            super().__init__(model, processor)

        def generate(self, requests, **how):
            asked.append(len(requests))
            return super().generate(requests, **how)

    def scored(self, row, trace, asked):
        value = float(trace.token_ids[0] % 2)
        return rl.Rollout(row, trace, asked, {"answer": value, "format": 0.0}, 0.8 * value)

    monkeypatch.setattr(rl.GroundedGRPOTrainer, "_scored", scored)
    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Generation)
    monkeypatch.setattr(rl, "connect", lambda address: f"client of {address}")
    monkeypatch.setattr(rl, "ServedGenerator", Served)
    settings = replace(SMALL, vllm="http://here:8000", learning_rate=1e-3, steps=3)
    reinforce(model, processor, some(study), study.pictures, tmp_path, settings)
    assert asked == [SMALL.prompts] * 3 and len(sent) == 3
    moved = [not torch.equal(sent[0][name], sent[2][name]) for name in sent[0] if "layers" in name]
    assert any(moved)
    lines = read_log(tmp_path / "log.jsonl", "reward")
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-3 for line in lines)
    with pytest.raises(TrainingError, match="can not be made to repeat"):
        replace(settings, contrast=0.1)


def test_settings_of_a_profile():
    section = json.loads(
        json.dumps({"prompts": 8, "mini_batch": 4, "kl": 0.02, "patients_2d": 100})
    )
    assert RLSettings.from_profile(section, seed=3) == RLSettings(
        prompts=8, mini_batch=4, kl=0.02, seed=3
    )


def test_questions_are_what_the_records_say(study, fresh_model, tmp_path):
    records = some(study)
    questions = Questions(records, study.pictures, 10_000, tmp_path / "left_out.jsonl")
    generator = GroundedGenerator(*fresh_model)
    for row, record in enumerate(records):
        request, asked = questions.put(row, generator)
        assert (request.id, asked.truth, asked.dimension) == (
            record.id,
            record.answer,
            record.dimension,
        )
        assert rl.prompt_tokens(generator, request) == len(generator.encode(request)[0])
        assert asked.frame == (64, 64, 1 if record.dimension == "2d" else 4)
        assert len(asked.boxes) == len(record.evidence)
    assert len(questions) == len(records) and not (tmp_path / "left_out.jsonl").exists()
