"""Replies through a server: the protocol of vLLM, spoken by a stand-in that has the tiny model behind it."""

from __future__ import annotations

import base64
import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image

from unireason_lib.errors import RequestError
from unireason_lib.evaluation import open_benchmark
from unireason_lib.grounding import GroundedGenerator, Script, load_model
from unireason_lib.grounding.served import ServedGenerator, connect

from .vllm_protocol import GenerateRequest, GenerateResponse, Rendered

SFT = Path(__file__).parents[2] / "data" / "tiny-sft"
HOW = {"max_new_tokens": 120, "max_rounds": 3}


class StandIn:
    """What a vLLM server does with these requests, slowly: no cache, one request at a time."""

    def __init__(self, model, processor):
        self.model, self.processor = model, processor
        self.pictures: dict[str, Image.Image] = {}
        self.asked: list[dict] = []
        self.drop_stop = False
        self.lock = threading.Lock()

    def models(self):
        return {"data": [{"id": "tiny"}]}

    def render(self, body):
        """Processed pictures: hashes, places in a conversation that is thrown away, data."""
        hashes = []
        for part in body["messages"][0]["content"]:
            head, _, data = part["image_url"]["url"].partition(",")
            assert head == "data:image/png;base64"
            raw = base64.b64decode(data)
            name = f"{len(self.pictures)}"
            self.pictures[name] = Image.open(io.BytesIO(raw)).convert("RGB")
            hashes.append(name)
        places = [{"offset": 4 + 9 * k, "length": 4} for k in range(len(hashes))]
        features = {
            "mm_hashes": {"image": hashes},
            "mm_placeholders": {"image": places},
            "kwargs_data": {"image": ["..." for _ in hashes]},
        }
        return Rendered(request_id="r", token_ids=[0], features=features).model_dump()

    def generate(self, body):
        request = GenerateRequest.model_validate(body)
        params, ids, features = body["sampling_params"], list(body["token_ids"]), body["features"]
        assert request.model == "tiny" and request.sampling_params.output_kind == 2
        self.asked.append(body)
        images = [self.pictures[name] for name in features["mm_hashes"]["image"]]
        pixels = self.processor.image_processor(images=images, return_tensors="pt")
        token = self.model.config.image_token_id
        for place, grid in zip(features["mm_placeholders"]["image"], pixels["image_grid_thw"], strict=True):
            assert place["length"] == grid.prod() // 4
            assert set(ids[place["offset"] : place["offset"] + place["length"]]) == {token}
        choices = []
        for sample in range(params["n"]):
            draw = torch.Generator().manual_seed(len(self.asked) * 100 + sample)
            written, told = [], []
            while len(written) < params["max_tokens"]:
                now = torch.tensor([ids + written])
                with torch.inference_mode():
                    logits = self.model(
                        input_ids=now,
                        attention_mask=torch.ones_like(now),
                        mm_token_type_ids=(now == token).int(),
                        **pixels,
                    ).logits[0, -1]
                logps = (logits.float() / (params["temperature"] or 1.0)).log_softmax(-1)
                allowed = logps.clone()
                for name, bias in params["logit_bias"].items():
                    allowed[int(name)] += bias
                chosen = (
                    allowed.argmax()
                    if not params["temperature"]
                    else torch.multinomial(allowed.exp(), 1, generator=draw)
                )
                written.append(int(chosen))
                told.append(
                    {
                        "token": f"token_id:{int(chosen)}",
                        "logprob": float(logps[int(chosen)]),
                        "top_logprobs": [],
                    }
                )
                if written[-1] in params["stop_token_ids"]:
                    if self.drop_stop:
                        written.pop(), told.pop()
                    break
            choices.append({"index": sample, "token_ids": written, "logprobs": {"content": told}})
        return GenerateResponse(request_id=request.request_id, choices=choices).model_dump()


@pytest.fixture(scope="module")
def served():
    """``(stand-in, client of TRL, model, processor)``."""
    model, processor = load_model(SFT, device="cpu")
    stand_in = StandIn(model, processor)

    class Handler(BaseHTTPRequestHandler):
        def answer(self, found, status=200):
            data = json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_GET(self):
            self.answer(stand_in.models() if self.path == "/v1/models" else {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            ways = {
                "/v1/chat/completions/render": stand_in.render,
                "/inference/v1/generate": stand_in.generate,
            }
            try:
                with stand_in.lock:
                    self.answer(ways[self.path](body))
            except (AssertionError, ValueError) as error:  # pydantic's errors are ValueErrors
                self.answer({"error": str(error)}, 400)

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with pytest.MonkeyPatch.context() as patch:
        # the client asks for vLLM to be installed, but over HTTP needs none of it
        patch.setattr("trl.generation.vllm_client.is_vllm_available", lambda *a, **k: True)
        yield stand_in, connect(f"http://127.0.0.1:{server.server_port}", 5), model, processor
    server.shutdown()


@pytest.fixture
def requests(served):
    """Questions about slices and volumes to which the model points."""
    frame = GroundedGenerator(*served[2:]).frame
    items = open_benchmark("phantom", limit=6, size=(4, 64, 64), frame=frame, census=0)
    return [item.request(item.load()) for item in items]


def test_a_served_model_replies_as_one_in_this_process(served, requests):
    stand_in, client, model, processor = served
    expected = GroundedGenerator(model, processor).generate(requests, **HOW)
    stand_in.asked.clear()
    found = ServedGenerator(client, processor).generate(requests, **HOW)
    assert {trace.request.dimension for trace in found} == {"2d", "3d"}
    assert sum(bool(crops) for trace in found for crops in trace.crops) >= 3
    for one, other in zip(found, expected, strict=True):
        for name in ("text", "token_ids", "own_mask", "prompt_ids", "stop", "rounds", "boxes"):
            assert getattr(one, name) == getattr(other, name), name
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-3)
        assert [[c.size for c in crops] for crops in one.crops] == [
            [c.size for c in crops] for crops in other.crops
        ]
    # what is sent after a box begins with what was sent before: the server's prefix cache holds it
    for body in stand_in.asked:
        earlier = [b for b in stand_in.asked if b["token_ids"] == body["token_ids"][: len(b["token_ids"])]]
        assert earlier


def test_samples_share_the_first_request(served, requests):
    stand_in, client, _, processor = served
    stand_in.asked.clear()
    found = ServedGenerator(client, processor).generate(requests[:2], samples=3, temperature=1.0, **HOW)
    assert [trace.request.id for trace in found] == [request.id for request in requests[:2] for _ in range(3)]
    assert sorted(body["sampling_params"]["n"] for body in stand_in.asked)[-2:] == [3, 3]
    assert len({trace.text for trace in found}) > 2
    for trace in found:
        own = [lp for lp, mine in zip(trace.logprobs, trace.own_mask, strict=True) if mine]
        assert all(lp <= 0 for lp in own) and sum(own) < 0


def test_greedy_replies_are_asked_for_once(served, requests):
    """vLLM refuses to make several continuations greedily; they would be the same."""
    stand_in, client, model, processor = served
    generator = ServedGenerator(client, processor, [model.generation_config.eos_token_id[0]])
    stand_in.asked.clear()
    traces = generator.generate(requests[:1], samples=3, temperature=0.0, **HOW)
    assert len({trace.text for trace in traces}) == 1 and len(traces) == 3
    assert {body["sampling_params"]["n"] for body in stand_in.asked} == {1}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"token_ids": []}, "token_ids"),
        ({"sampling_params": {"stop": ["x"]}}, "stop"),
        ({"features": {"mm_hashes": {"image": ["a"]}, "mm_placeholders": {"image": []}}}, "mm_placeholders"),
    ],
)
def test_the_stand_in_refuses_what_vllm_refuses(change, said):
    body = {"request_id": "r", "token_ids": [1, 2], "sampling_params": {"n": 1}}
    GenerateRequest.model_validate(body)
    with pytest.raises(ValueError, match=said):
        GenerateRequest.model_validate(body | change)


def test_token_budgets_are_kept(served, requests):
    _, client, model, processor = served
    for tokens in (1, 9, 30):
        found = ServedGenerator(client, processor).generate(requests[:3], max_new_tokens=tokens, max_rounds=1)
        expected = GroundedGenerator(model, processor).generate(
            requests[:3], max_new_tokens=tokens, max_rounds=1
        )
        assert [trace.token_ids for trace in found] == [trace.token_ids for trace in expected]
        assert all(sum(trace.own_mask) <= tokens for trace in found)


def test_what_cannot_be_done_is_said(served, requests):
    stand_in, client, _, processor = served
    generator = ServedGenerator(client, processor)
    with pytest.raises(RequestError, match="no scripts"):
        generator.generate(requests[:1], scripts=[Script(processor.tokenizer, ("A",))])
    stand_in.drop_stop = True
    try:
        with pytest.raises(RequestError, match="the one that stopped it included"):
            generator.generate(requests[:1], **HOW)
    finally:
        stand_in.drop_stop = False
    with pytest.raises(RequestError, match=r"127\.0\.0\.1:9.*a vLLM server.*vllm serve"):
        connect("http://127.0.0.1:9", 0.0)
