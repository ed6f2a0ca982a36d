"""Outcome RL: what TRL computes on grounded replies is what they are."""

import errno
from dataclasses import replace

import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import LoraLayer

from unireason_lib.config import load_profile
from unireason_lib.errors import DatasetError, ScanError, TrainingError
from unireason_lib.grounding import GroundedGenerator, load_model
from unireason_lib.grounding.replies import Script
from unireason_lib.io import open_image, read_lines
from unireason_lib.training import grpo, rewards
from unireason_lib.training.callbacks import read_log
from unireason_lib.training.grpo import GroundedGRPOTrainer, question_of, train_grpo

from .conftest import FAMILIES, At, crash, interrupt

SMALL = {
    "grpo.generation_batch_size": 8,  # two questions, four replies each
    "grpo.num_generations": 4,
    "grpo.per_device_train_batch_size": 4,
    "grpo.gradient_accumulation_steps": 2,
    "grpo.max_steps": 2,
    "grpo.learning_rate": 1e-4,
    "grpo.lr_scheduler_type": "constant",
    "grpo.warmup_steps": 0.0,
    "grpo.max_completion_length": 24,
    "grpo.bf16": False,
    "grpo.save_steps": 1,
    "grounding.rollout_max_rounds": 4,
    "grounding.feature_cache": False,
}


def profile(changes=(), **grpo_section):
    """A small profile; keywords are settings of its section grpo."""
    more = {f"grpo.{name}": value for name, value in grpo_section.items()}
    return load_profile("smoke", {**SMALL, **more, **dict(changes)})


@pytest.fixture
def paid(monkeypatch):
    """What replies are paid differs within a group."""
    monkeypatch.setattr(rewards, "answer_reward", lambda text, *_: float(len(text) % 2))


@pytest.fixture
def scripted(paid, monkeypatch):
    """Replies hold no, one or three boxes by turns, and then six tokens of the model's choice."""
    plain = GroundedGenerator.generate

    def generate(self, requests, **how):
        scripts = []
        for k, one in enumerate(requests):
            box = "[8,8,24,40]" if one.dimension == "2d" else "[8,8,1,24,40,3]"
            boxes = [f"<|box_start|>{box}<|box_end|>"] * (0, 1, 3)[k % 3]
            parts = "<think>Look", *boxes, "</think>B.", 6, self.tokenizer.eos_token
            scripts.append(Script(self.tokenizer, parts))
        how["max_new_tokens"] = 200  # enough for all of it
        return plain(self, requests, scripts=scripts, **how)

    monkeypatch.setattr(GroundedGenerator, "generate", generate)


@pytest.fixture
def generations(monkeypatch):
    """The trainer and, of each generation, TRL's tensors."""
    seen, plain = [], GroundedGRPOTrainer._generate_and_score_completions

    def watched(self, inputs):
        output = plain(self, inputs)
        seen.append((self, {**output}))
        return output

    monkeypatch.setattr(GroundedGRPOTrainer, "_generate_and_score_completions", watched)
    return seen


def some(study, count=8):
    """Records of both dimensions by turns."""
    parts = [[r for r in study.records if r.dimension == d] for d in ("2d", "3d")]
    return [record for pair in zip(*parts, strict=False) for record in pair][:count]


@pytest.fixture
def train(study, tiny_checkpoint, tmp_path):
    """Trains a fresh model; gives the folder of the run."""

    def run(settings, folder="run", model=None, records=None, images=None, callbacks=()):
        loaded = model or load_model(tiny_checkpoint, device="cpu")
        given = records or some(study), images or study.images, tmp_path / folder, settings
        return train_grpo(*loaded, *given, callbacks=callbacks).parent

    return run


def rollouts(out):
    return read_lines(out / "rollouts.jsonl")


def weights_of(folder):
    return load_model(folder, device="cpu")[0].state_dict()


@FAMILIES
def test_log_probabilities_are_those_of_the_sampled_distribution(
    train, families, family, scripted, generations, tmp_path
):
    """2D and 3D, no, one and three boxes in one batch: of sampling, policy, old and reference.
    Tokens that may not be sampled have no probability, however likely the model finds them. The
    loss does not depend on what is predicted at injected positions."""
    checkpoint, study = families[family]
    model, processor = load_model(checkpoint, device="cpu")
    forbidden = GroundedGenerator(model, processor).never_written
    with torch.no_grad():
        model.get_output_embeddings().weight[forbidden] *= 6
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model, processor = load_model(tmp_path / "base", device="cpu")
    one_step = {"gradient_accumulation_steps": 1, "max_steps": 1, "learning_rate": 0.0}
    six_questions = {"generation_batch_size": 12, "num_generations": 2}
    settings = profile(**one_step, **six_questions, temperature=0.7, beta=0.1)
    train(settings, model=(model, processor), records=some(study))
    ((trainer, output),) = generations
    assert {trace.request.dimension for trace in trainer.traces} == {"2d", "3d"}
    assert {len(trace.crops) for trace in trainer.traces} == {0, 1, 3}
    ids = torch.cat([output["prompt_ids"], output["completion_ids"]], 1)
    mask = torch.cat([output["prompt_mask"], output["completion_mask"]], 1)
    names = ("pixel_values", "image_grid_thw", "num_images", "mm_token_type_ids")
    inputs, length = {name: output[name] for name in names}, output["completion_ids"].size(1)
    with torch.no_grad():
        policy, *others = trainer._get_per_token_logps_and_entropies(
            model, ids, mask, length, compute_entropy=True, **inputs
        )
        inputs.pop("num_images")
        logits = model(input_ids=ids, attention_mask=mask, **inputs).logits[:, -length - 1 : -1]
    logits[..., forbidden] = -torch.inf
    by_hand = (logits / 0.7).log_softmax(-1).gather(2, output["completion_ids"][..., None])[..., 0]
    own = (output["completion_mask"] * output["tool_mask"]).bool()
    for logps in policy, by_hand, output["old_per_token_logps"], output["ref_per_token_logps"]:
        assert (logps - output["sampling_per_token_logps"])[own].abs().max() < 1e-4
    for row, trace in enumerate(trainer.traces):  # the model-generated tokens are trained on
        written = [t for t, mine in zip(trace.token_ids, trace.own_mask, strict=True) if mine]
        assert output["completion_ids"][row][own[row]].tolist() == written
    policy.requires_grad_()
    trainer._get_per_token_logps_and_entropies = lambda *_, **__: (policy, *others)
    output["advantages"] = torch.linspace(-1, 1, len(output["advantages"]))
    trainer.current_gradient_accumulation_steps = 1
    trainer._compute_loss(model, output).backward()
    assert (policy.grad[~own] == 0).all() and (policy.grad[own] != 0).any()
    assert (~own & output["completion_mask"].bool()).any()  # there are injected ones


def test_rollouts_and_trainer_use_one_autocast(train, monkeypatch, generations):
    """Else log-probabilities in bfloat16 differ by up to 0.1 before anything is learnt."""
    types, plain = [], GroundedGenerator.generate

    def generate(self, *args, **how):
        types.append(torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu"))
        return plain(self, *args, **how)

    monkeypatch.setattr(GroundedGenerator, "generate", generate)
    train(profile(bf16=True, max_steps=1, gradient_accumulation_steps=1, learning_rate=0.0))
    ((_, output),) = generations
    own = (output["completion_mask"] * output["tool_mask"]).bool()
    difference = (output["old_per_token_logps"] - output["sampling_per_token_logps"])[own].abs()
    assert types == [torch.bfloat16] and difference.mean() < 5e-3


def test_a_known_preference_is_learnt(train, fresh_model, study, monkeypatch):
    """A bandit of two arms: only two tokens can be written, and one of them is paid."""
    tokenizer, plain = fresh_model[1].tokenizer, GroundedGenerator.__init__
    arms = [tokenizer(letter).input_ids[0] for letter in "AB"]

    def init(self, model, *args, **kwargs):
        plain(self, model, *args, **kwargs)
        vocabulary = range(model.config.text_config.vocab_size)
        self.never_written = [k for k in vocabulary if k not in arms]

    monkeypatch.setattr(GroundedGenerator, "__init__", init)
    monkeypatch.setattr(rewards, "answer_reward", lambda text, *_: float(text == "A"))
    bandit = {"max_steps": 8, "learning_rate": 2e-3, "max_completion_length": 1, "save_steps": 50}
    bandit |= {"num_generations": 8, "generation_batch_size": 16, "beta": 0.0}
    settings = profile(**bandit, per_device_train_batch_size=8)
    out = train(settings, model=fresh_model, records=some(study, 4)[::2])
    earned = [line["rewards/answer/mean"] for line in read_log(out / "log.jsonl", "reward")]
    assert 0.1 < earned[0] < 0.9 and sum(earned[-3:]) / 3 > 0.9, earned


def test_a_run_leaves_what_it_should(train, fresh_model, paid):
    start = {name: weight.clone() for name, weight in fresh_model[0].state_dict().items()}
    out = train(profile(), model=fresh_model)
    lines = read_log(out / "log.jsonl", "reward")
    assert [line["step"] for line in lines] == [1, 2]
    names = "kl entropy boxes boxes_answered answer_2d pointing_3d rewards/format/mean"
    names += " completions/clipped_ratio frac_reward_zero_std rollout_seconds"
    assert all(name in line for line in lines for name in names.split())
    replies = rollouts(out)
    assert len(replies) == 2 * 8
    for k in range(0, len(replies), 4):  # advantages by hand, group by group
        group = replies[k : k + 4]
        assert len({line["id"] for line in group}) == 1
        earned = torch.tensor([line["reward"] for line in group])
        by_hand = (earned - earned.mean()) / (earned.std() + 1e-4)
        assert by_hand.tolist() == pytest.approx([x["advantage"] for x in group], abs=1e-3)
    for line in replies:
        parts = 0.8 * line["reward answer"] + 0.2 * line["reward format"]
        assert line["reward"] == pytest.approx(parts, abs=1e-6)
    now = weights_of(out / "model")
    changed = {name for name in now if not torch.equal(now[name], start[name])}
    assert changed and not any("visual" in name for name in changed)
    # the same call finds the run finished; with other settings it is refused
    assert train(profile()) == out and rollouts(out) == replies
    with pytest.raises(DatasetError, match="beta"):
        train(profile(beta=0.5))


TWO_STEPS = {"gradient_accumulation_steps": 1, "max_steps": 6, "max_completion_length": 8}
"""Two optimizer steps a generation, three generations, two epochs."""


def test_a_run_goes_on_exactly_after_ctrl_c_inside_a_generation(train, study, paid):
    """It is saved at the next boundary, and kills go back to one; no line of a log comes twice."""
    settings, records = profile(**TWO_STEPS), some(study, 4)
    with pytest.raises(KeyboardInterrupt, match="step 4"):  # asked in the second generation
        train(settings, "broken", records=records, callbacks=[At(3, interrupt)])
    with pytest.raises(ZeroDivisionError):  # in the third
        train(settings, "broken", records=records, callbacks=[At(6, crash)])
    broken, whole = (train(settings, name, records=records) for name in ("broken", "whole"))
    assert {p.name for p in broken.glob("checkpoint-*")} == {"checkpoint-4", "checkpoint-6"}
    one, other = weights_of(whole / "model"), weights_of(broken / "model")
    assert all(torch.allclose(one[name], other[name], atol=1e-6) for name in one)
    assert rollouts(whole) == rollouts(broken)
    for name, steps in (("loss", range(1, 7)), ("kl", range(1, 7)), ("reward", range(1, 7, 2))):
        logs = [read_log(out / "log.jsonl", name) for out in (whole, broken)]
        assert [[line["step"] for line in log] for log in logs] == [list(steps)] * 2
        one, other = ([line[name] for line in log] for log in logs)
        assert one == pytest.approx(other, abs=1e-6)


def test_what_cannot_be_asked_is_named_and_left_out(train, study, fresh_model, tmp_path):
    """A missing, damaged or too long one for good; one that could not be read just then is asked
    later, whoever says so."""
    records, generator = some(study, 6), GroundedGenerator(*fresh_model)
    asked = [question_of(record, study.images, generator, 10_000)[0] for record in records]
    tokens = {r.id[2:]: len(generator.encode(r)[0]) for r in asked}
    lost, damaged, *unlucky, longest = sorted(tokens, key=tokens.get)
    stale, failures = OSError(errno.ESTALE, "Stale file handle"), []

    def images(record):
        if record.id == lost:
            open_image(tmp_path / "lost.png")
        if record.id == damaged:
            open_image(b"no image", "damaged.png")
        if record.id in unlucky and record.id not in failures:
            failures.append(record.id)
            if len(failures) == 1:
                raise stale
            raise ScanError("slow.png: Stale file handle") from stale
        return study.images(record)

    limit = {"grounding.max_prompt_length": tokens[longest] - 1}
    with pytest.warns(UserWarning, match="left out this time: .*Stale file handle"):
        settings = profile(limit, max_steps=6, max_completion_length=2)
        out = train(settings, model=fresh_model, records=records, images=images)
    listed = {line["id"]: line["why"] for line in read_lines(out / "left_out.jsonl")}
    assert set(listed) == {lost, damaged, longest} and "damaged.png" in listed[damaged]
    assert f"tokens, found {tokens[longest]}" in listed[longest]
    asked = {line["id"] for line in rollouts(out)}
    assert set(failures) == set(unlucky) <= asked and not asked & set(listed)


def test_questions_are_what_the_records_say(study, fresh_model):
    """Ours of both dimensions, and a released row, which has words of its own and no frame."""
    ours, generator = some(study, 2), GroundedGenerator(*fresh_model)
    plain = next(r for r in study.records if r.evidence and "[" not in f"{r.question}{r.options}")
    records = [*ours, replace(plain, id="released", asked="Where?", serialization={}), plain]
    questions = [question_of(one, study.images, generator, 10_000, 3) for one in records]
    for record, (request, columns) in zip(records, questions, strict=True):
        assert request.id == f"3/{record.id}" and columns["truth"] == record.answer
        assert columns["frame"] == (64, 64, 1 if record.dimension == "2d" else 4)
        assert (columns["dimension"], columns["options"]) == (record.dimension, record.options)
        assert [len(box) for box in columns["boxes"]] == [len(box) for _, box in record.evidence]
    request, released = questions[2]
    assert request.messages[0]["content"][-1]["text"] == "Where?"
    assert released["boxes"] != questions[3][1]["boxes"]  # they were written in Qwen's own frame


def test_the_same_question_twice_in_a_generation_gets_two_groups(train, study):
    with pytest.warns(UserWarning, match="nothing is learnt"):  # all of them earn nothing
        lines = rollouts(train(profile(max_steps=1), records=some(study, 1) * 4))
    groups = {tuple(line["text"] for line in lines[k : k + 4]) for k in range(0, 8, 4)}
    assert len({line["id"] for line in lines}) == 1 and len(groups) == 2


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"grpo.num_generations": 3}, "divisible"),
        ({"grpo.gradient_accumulation_steps": 4}, "whole optimizer steps"),
        ({"grpo.generation_batch_size": 40}, "10 questions or more"),
        ({"grounding.max_prompt_length": 3}, r"a hundred.*at most 3 tokens"),
    ],
)
def test_runs_that_cannot_be_are_refused(train, change, name):
    with pytest.raises(TrainingError, match=name):
        train(profile(change))


def test_metrics_of_rollouts_are_there_when_nobody_points():
    """Malformed boxes are neither boxes of a reply nor answered; proportions are by dimension."""

    def metrics(*replies):
        names = "dimension", "boxes", "statuses", "reward answer"
        found = grpo.rollout_metrics([dict(zip(names, reply, strict=True)) for reply in replies])
        names = "boxes boxes_answered answer_2d pointing_2d answer_3d pointing_3d"
        return [found[name] for name in names.split()]

    box, nan = [0, 0, 4, 4], pytest.approx(float("nan"), nan_ok=True)  # no such question
    assert metrics(("2d", [], [], 0.0), ("2d", [], [], 0.0)) == [0, 0, 0, 0, nan, nan]
    two = ("2d", [box], ["injected", "malformed"], 1.0), ("2d", [], ["malformed"], 0.0)
    deep = ("3d", [box, box], ["injected", "outside"], 1.0), ("3d", [box], ["injected"], 1.0)
    assert metrics(*two, *deep) == [1.0, 0.5, 0.5, 0.5, 1.0, 1.0]


def test_adapters_learn_against_their_base(train, paid):
    settings = profile({"grounding.grpo_lora_r": 4}, beta=0.1, learning_rate=1e-2)
    out = train(settings)
    made = out / "model"
    assert (made / "adapter_config.json").exists() and not list(made.glob("model*.safetensors"))
    kl = [line["kl"] for line in read_log(out / "log.jsonl", "kl")]
    assert kl[0] == pytest.approx(0, abs=1e-5) and kl[-1] > kl[0]


def test_rollouts_have_adapters_within_the_weights(fresh_model):
    """Which then are what they were, to the bit: a resumed run starts from the base's."""
    model = get_peft_model(fresh_model[0], LoraConfig(target_modules=["q_proj"]))
    layer = next(one for one in model.modules() if isinstance(one, LoraLayer))
    torch.nn.init.normal_(layer.lora_B["default"].weight)
    layer.base_layer.weight.data *= 1 / 3
    tokens, before = torch.arange(5)[None], layer.base_layer.weight.detach().clone()
    apart = model(input_ids=tokens).logits
    with pytest.raises(KeyboardInterrupt), grpo.merged(model):
        assert layer.merged and not torch.equal(layer.base_layer.weight, before)
        torch.testing.assert_close(model(input_ids=tokens).logits, apart, atol=1e-4, rtol=1e-4)
        raise KeyboardInterrupt
    assert not layer.merged and torch.equal(layer.base_layer.weight, before)


@pytest.mark.parametrize(
    "address", [{"base_url": "http://here:8000"}, {"host": "here", "port": 8000}]
)
def test_rollouts_of_a_server(train, fresh_model, paid, monkeypatch, address):
    """What a server would have to do is asked of the trainer's own model: weights go over before
    every generation, and replies come back with processed log-probabilities."""
    model = fresh_model[0]
    sent, asked = [], []

    class Generation:
        def __init__(self, **given):
            self.vllm_client, self.served = self, given["model"]

        def get_server_info(self):
            return {"model_config": {"logprobs_mode": "processed_logprobs"}}

        def sync_weights(self):
            sent.append(self.served.get_input_embeddings().weight.clone())

    class Served(GroundedGenerator):
        def __init__(self, client, processor, ends=()):
            assert client == "client of http://here:8000" and ends
            super().__init__(model, processor)

        def generate(self, requests, **how):
            asked.append(len(requests))
            return super().generate(requests, **how)

    monkeypatch.setattr("trl.trainer.grpo_trainer.VLLMGeneration", Generation)
    monkeypatch.setattr(grpo, "connect", lambda address: f"client of {address}")
    monkeypatch.setattr(grpo, "ServedGenerator", Served)
    server = {"use_vllm": True, **{f"vllm_server_{name}": x for name, x in address.items()}}
    out = train(profile(**server, learning_rate=1e-3), model=fresh_model)
    assert asked == [2] * 2 and len(sent) == 2 and not torch.equal(*sent)
    lines = read_log(out / "log.jsonl", "reward")
    assert all(line["sampling/sampling_logp_difference/max"] < 1e-4 for line in lines)
