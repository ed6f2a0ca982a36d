"""Replies through a server: vLLM's protocol, spoken by a stand-in with the tiny model behind it."""

import base64
import io
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from PIL import Image
from requests import Response
from requests.adapters import HTTPAdapter

from unireason_lib.boxes import Box3D, format_box
from unireason_lib.errors import RequestError
from unireason_lib.evaluation import open_benchmark
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, Script, load_model
from unireason_lib.grounding.served import ServedGenerator, connect

SFT = Path(__file__).parents[2] / "data" / "tiny-sft"
HOW = {"max_new_tokens": 100, "max_rounds": 3}
# fields of vLLM 0.31 (scale_out/token_in_token_out/protocol.py, sampling_params.py); what a server
# does not know it passes over unnoticed
BODY = {"request_id", "model", "token_ids", "features", "sampling_params"}
SAMPLING = "n repetition_penalty temperature top_p top_k min_p max_tokens logprobs "
SAMPLING += "structured_outputs stop_token_ids skip_special_tokens output_kind logit_bias"


class StandIn:
    """What a vLLM server does with these requests, one at a time."""

    def __init__(self, model, processor):
        self.model, self.processor = model, processor
        self.images, self.requests = [], []
        self.drop_stop, self.lock = False, threading.Lock()
        self.scripts = {}  # number of images so far -> tokens that are written then

    def render(self, body):
        """Processed images: hashes, places in a conversation that is thrown away, data."""
        urls = [part["image_url"]["url"] for part in body["messages"][0]["content"]]
        hashes = [str(len(self.images) + k) for k in range(len(urls))]
        for url in urls:
            data = base64.b64decode(url.removeprefix("data:image/png;base64,"))
            self.images.append(Image.open(io.BytesIO(data)).convert("RGB"))
        places = [{"offset": 4 + 9 * k, "length": 4} for k in range(len(hashes))]
        parts = {"mm_hashes": hashes, "mm_placeholders": places, "kwargs_data": hashes}
        features = {name: {"image": values} for name, values in parts.items()}
        return {"request_id": "r", "token_ids": [0], "features": features}

    def generate(self, body):
        params, ids, features = body["sampling_params"], list(body["token_ids"]), body["features"]
        assert body.keys() <= BODY and params.keys() <= {*SAMPLING.split()}
        assert body["model"] == "tiny" and params["output_kind"] == 2 and ids
        assert params["temperature"] > 0 or params["n"] == 1, "greedy sampling takes n = 1"
        assert len({len(part["image"]) for part in features.values() if part}) == 1
        self.requests.append(body)
        images = [self.images[int(name)] for name in features["mm_hashes"]["image"]]
        pixels = self.processor.image_processor(images=images, return_tensors="pt")
        token, places = self.model.config.image_token_id, features["mm_placeholders"]["image"]
        for place, grid in zip(places, pixels["image_grid_thw"], strict=True):
            assert place["length"] == grid.prod() // 4
            assert set(ids[place["offset"] : place["offset"] + place["length"]]) == {token}
        choices = [
            {"index": k, **self.continuation(ids, params, pixels, k)} for k in range(params["n"])
        ]
        return {"request_id": body["request_id"], "choices": choices}

    @torch.inference_mode()
    def continuation(self, ids, params, pixels, sample):
        draw = torch.Generator().manual_seed(len(self.requests) * 100 + sample)
        written, logprobs, cache, now = [], [], None, torch.tensor([ids])
        kinds = {"mm_token_type_ids": (now == self.model.config.image_token_id).int()}
        grids, inputs = pixels["image_grid_thw"], {**pixels, **kinds}
        places, _ = self.model.model.get_rope_index(now, image_grid_thw=grids, **kinds)
        script = iter(self.scripts.get(len(grids), ()))
        while len(written) < params["max_tokens"]:
            how = {"position_ids": places, "past_key_values": cache, "use_cache": True}
            output = self.model(now, **how, **inputs)
            cache, logits = output.past_key_values, output.logits[0, -1].float().clone()
            for name, bias in params["logit_bias"].items():
                logits[int(name)] += bias
            # --logprobs-mode processed_logprobs: after bias and temperature
            scores = (logits / (params["temperature"] or 1.0)).log_softmax(-1)
            choice = int(scores.argmax())
            if params["temperature"]:
                choice = int(torch.multinomial(scores.exp(), 1, generator=draw))
            choice = next(script, choice)
            written.append(choice)
            now, inputs, places = torch.tensor([[choice]]), {}, places.max().expand(3, 1, 1) + 1
            about = {"token": f"token_id:{choice}", "logprob": float(scores[choice])}
            logprobs.append(about | {"top_logprobs": []})
            if choice in params["stop_token_ids"]:
                end = len(written) - self.drop_stop
                written, logprobs = written[:end], logprobs[:end]
                break
        return {"token_ids": written, "logprobs": {"content": logprobs}}


@contextmanager
def serving(model, processor):
    """``(stand-in, client of TRL, model, processor)``."""
    stand_in, send = StandIn(model, processor), HTTPAdapter.send
    answers = {
        "/health": lambda body: {},
        "/v1/models": lambda body: {"data": [{"id": "tiny"}]},
        "/v1/chat/completions/render": stand_in.render,
        "/inference/v1/generate": stand_in.generate,
    }

    def answer(adapter, request, **how):
        if not request.url.startswith("http://vllm/"):
            return send(adapter, request, **how)
        response = Response()
        with stand_in.lock:
            content = answers[request.path_url](json.loads(request.body or "{}"))
        response.status_code, response._content = 200, json.dumps(content).encode()
        return response

    with pytest.MonkeyPatch.context() as patch:
        # the client asks for vLLM to be installed, but over HTTP needs none of it
        patch.setattr("trl.generation.vllm_client.is_vllm_available", lambda *a, **k: True)
        patch.setattr(HTTPAdapter, "send", answer)
        yield stand_in, connect("http://vllm", 5), model, processor


@pytest.fixture(scope="module")
def served():
    """The model that ships, which writes boxes by itself."""
    with serving(*load_model(SFT, device="cpu")) as served:
        yield served


@pytest.fixture(scope="module")
def requests(served):
    """Questions about slices and volumes in which the model writes boxes."""
    frame = GroundedGenerator(*served[2:]).frame
    how = {"limit": 6, "size": (4, 64, 64), "prior_studies": 0, "frame": frame}
    items = open_benchmark("phantom", **how)
    return [item.request(item.load()) for item in items]


def test_a_served_model_replies_as_one_in_this_process(served, requests):
    stand_in, client, model, processor = served
    expected = GroundedGenerator(model, processor).generate(requests, **HOW)
    stand_in.requests.clear()
    traces = ServedGenerator(client, processor).generate(requests, **HOW)
    assert {trace.request.dimension for trace in traces} == {"2d", "3d"}
    assert sum(bool(crops) for trace in traces for crops in trace.crops) >= 2
    for one, other in zip(traces, expected, strict=True):
        for name in ("text", "token_ids", "own_mask", "prompt_ids", "stop", "rounds", "boxes"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert [p.to_dict() for p in one.pointings] == [p.to_dict() for p in other.pointings]
    # what is sent after a box begins with what was sent before: the prefix cache holds it
    sent, prompts = [b["token_ids"] for b in stand_in.requests], [t.prompt_ids for t in traces]
    assert all(any(tuple(ids[: len(p)]) == p for p in prompts) for ids in sent)
    assert len(sent) > len(prompts)


def test_qwen3_is_served(tiny_qwen3):
    """Boxes in the scale of its family, and crops, reach the server as they do the model."""
    images = [Image.linear_gradient("L").resize((64, 64)).rotate(90 * k) for k in range(3)]
    question = GroundedRequest("Where?", images, {"A": "left", "B": "right"}, "3d")
    with serving(*tiny_qwen3) as (stand_in, client, model, processor):
        inside, generator = GroundedGenerator(model, processor), ServedGenerator(client, processor)
        box = format_box(generator.frame.written(Box3D(5, 5, 0, 60, 60, 2), 64, 64, depth=3))
        texts = f"<think>See {box}", "</think>A. left<|im_end|>"
        parts = [processor.tokenizer(text).input_ids for text in texts]
        stand_in.scripts = {3: parts[0], 5: parts[1]}
        (expected,) = inside.generate([question], scripts=[Script(None, map(tuple, parts))], **HOW)
        (trace,) = generator.generate([question], **HOW)
    assert trace.boxes == [Box3D(5, 5, 0, 60, 60, 2)] and len(trace.crops[0]) == 2
    assert (trace.token_ids, trace.own_mask) == (expected.token_ids, expected.own_mask)
    assert trace.logprobs == pytest.approx(expected.logprobs, abs=1e-4)
    assert trace.in_format and trace.to_dict().get("scale") == inside.frame.scale


@pytest.mark.parametrize("temperature, n", [(1.0, 3), (0.0, 1)])  # vLLM refuses 3 greedily
def test_samples_share_the_first_request(served, requests, temperature, n):
    stand_in, client, model, processor = served
    generator = ServedGenerator(client, processor, [model.generation_config.eos_token_id[0]])
    stand_in.requests.clear()
    traces = generator.generate(requests[:1], samples=3, temperature=temperature, **HOW)
    assert max(body["sampling_params"]["n"] for body in stand_in.requests) == n
    assert len(traces) == 3 and (len({trace.text for trace in traces}) > 1) == (n > 1)
    for trace in traces:
        own = [lp for lp, mask in zip(trace.logprobs, trace.own_mask, strict=True) if mask]
        assert all(lp <= 0 for lp in own) and (sum(own) < 0 or n == 1)


def test_what_cannot_be_done_is_refused(served, requests, monkeypatch):
    stand_in, client, _, processor = served
    generator = ServedGenerator(client, processor)
    with pytest.raises(RequestError, match="no scripts"):
        generator.generate(requests[:1], scripts=[Script(processor.tokenizer, ("A",))])
    monkeypatch.setattr(stand_in, "drop_stop", True)
    with pytest.raises(RequestError, match="the one that stopped it included"):
        generator.generate(requests, **HOW)
    with pytest.raises(RequestError, match=r"127\.0\.0\.1:9.*a vLLM server.*vllm serve"):
        connect("http://127.0.0.1:9", 0.0)
