"""Rationales by a language model, against a real HTTP server that answers well, badly, slowly or not at all."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unireason_lib.boxes import format_box
from unireason_lib.dataset.endpoint import AnswerStore, characters_of, key_of
from unireason_lib.dataset.llm import (
    BudgetSpent,
    Endpoint,
    EndpointError,
    LLMWriter,
    RationaleRefused,
    prompt_for,
    tags_of,
)
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.rationales import verify
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import ProcessorFrame

pytest.importorskip("openai", reason="the extra `llm` is not installed")

FRAME = ProcessorFrame(8, 2, 32 * 32, 128 * 128)
KEY = "sk-secret-0123456789"


class Server:
    """An endpoint on this machine. ``reply(body, nth)`` gives what is sent back to the nth request of that body: the
    text of the answer, ``(status, headers, text)`` for anything else, or seconds to wait before a good answer."""

    def __init__(self, reply):
        self.reply, self.bodies, self.headers, self.times = reply, [], [], []
        self.running = self.most_running = 0
        self._lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with outer._lock:
                    nth = sum(key_of(b) == key_of(body) for b in outer.bodies)
                    outer.bodies.append(body)
                    outer.headers.append({name.lower(): value for name, value in self.headers.items()})
                    outer.times.append(time.monotonic())
                    outer.running += 1
                    outer.most_running = max(outer.most_running, outer.running)
                try:
                    outer.send(self, body, outer.reply(body, nth))
                except (BrokenPipeError, ConnectionResetError):
                    pass  # the client had given up
                finally:
                    with outer._lock:
                        outer.running -= 1

            def log_message(self, *_):
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def send(self, handler, body, reply):
        if isinstance(reply, int | float):
            time.sleep(reply)
            reply = good(body)
        status, headers, text = reply if isinstance(reply, tuple) else (200, {}, None)
        if text is None:
            usage = {"prompt_tokens": 500, "completion_tokens": 100, "total_tokens": 600}
            message = {"role": "assistant", "content": reply}
            choice = {"index": 0, "message": message, "finish_reason": "stop"}
            answer = {"id": "a", "object": "chat.completion", "created": 1, "model": body["model"]}
            text = json.dumps({**answer, "choices": [choice], "usage": usage})
        data = text.encode()
        handler.send_response(status)
        for name, value in {
            "Content-Type": "application/json",
            "Content-Length": str(len(data)),
            **headers,
        }.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(data)

    def close(self):
        self._server.shutdown()
        self._server.server_close()


def asked_for(body):
    """What a prompt says: evidence tags, letter and words of the right answer."""
    content = body["messages"][1]["content"]
    text = content if isinstance(content, str) else content[-1]["text"]
    letter, truth = re.search(r"^Right answer: ([A-D])\. (.*)$", text, re.M).groups()
    return re.findall(r"^\* (.*?): \[", text, re.M), letter, truth


def good(body, letter=None, extra=""):
    tags, right, truth = asked_for(body)
    looks = " ".join(f"I see the {tag} [[{tag}]]." for tag in tags)
    return json.dumps({"reasoning": f"Looking. {looks}{extra} Hence: {truth}", "answer": letter or right})


@pytest.fixture
def serve():
    servers = []

    def start(reply=lambda body, nth: good(body)):
        servers.append(Server(reply))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


@pytest.fixture(scope="module")
def items():
    found = []
    for k in range(8):
        for study in (phantom_slice(k), phantom(k)):
            view = View(study, (8, 64, 64), None, FRAME)
            found += [(question, view) for question in ask(study, view=view)]
    return found


@pytest.fixture
def writer_for(tmp_path, key):
    """Makes writers with quick pauses; all are closed in the end."""
    writers = []

    def make(server, **options):
        options = {"first_pause": 0.02, "timeout": 5.0, "cache": tmp_path / "cache", **options}
        writers.append(LLMWriter("tester", base_url=server.url, **options))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()


# --- good answers -------------------------------------------------------------------------------------------------


def test_good_answers_become_true_rationales_in_order(serve, writer_for, items):
    server = serve()
    writer = writer_for(server, concurrency=6)
    outcomes = list(writer.write_all(items))
    assert [o.question.id for o in outcomes] == [q.id for q, _ in items]
    for outcome, (question, view) in zip(outcomes, items, strict=True):
        assert verify(outcome.rationale, question, view) == [] and outcome.bought == 1
        for point in outcome.rationale.points:
            assert point.box in [view.box(s) for s in question.evidence]
    assert len(server.bodies) == len(items) and writer.name == "llm:tester"
    assert all(h["authorization"] == f"Bearer {KEY}" for h in server.headers)


def test_prompt_says_what_is_known_and_sends_no_pixels_unasked(serve, writer_for, items):
    question, view = next(item for item in items if item[0].dimension == "3d" and item[0].evidence)
    text = prompt_for(question, view)[1]["content"]
    assert "CT, a volume of 8 axial slices of 64 x 64 pixels. Voxel size 5.31 x 5.31 x 37.5 mm." in text
    for structure in question.evidence:
        numbers = ",".join(map(str, view.box(structure).as_tuple()))
        assert f"* {structure.name}: [{numbers}]" in text
    assert all(f"{letter}. {option}" in text for letter, option in question.options.items())
    assert question.text in text and f"Right answer: {question.answer}. {question.truth}" in text
    server = serve()
    writer_for(server).write(question, view)
    assert "image" not in json.dumps(server.bodies[0]["messages"])
    writer = writer_for(server, pictures=True)
    writer.write(question, view)
    kinds = Counter(part["type"] for part in server.bodies[1]["messages"][1]["content"])
    assert kinds == {"image_url": 8, "text": 1}
    assert server.bodies[1]["messages"][1]["content"][0]["image_url"]["url"].startswith(
        "data:image/png;base64,"
    )
    assert characters_of(server.bodies[1]) == characters_of(server.bodies[0]) + 8 * 4000


def test_structures_of_one_name_get_tags_of_their_own():
    import numpy as np

    from unireason_lib.dataset.study import Study

    first, second = np.zeros((2, 64, 64), bool)
    first[5:20, 5:20], second[40:50, 30:50] = True, True
    study = Study.from_masks(
        [("nodule", first), ("nodule", second), ("lung", first | second)],
        scan=np.zeros((64, 64)),
        id="s",
        patient="p",
        source="made",
        modality="X-ray",
    )
    assert list(tags_of(View(study, frame=FRAME))) == ["nodule 1", "nodule 2", "lung"]


def test_parameters_of_the_request(serve, writer_for, items):
    server = serve()
    writer_for(server, parameters={"max_tokens": None, "max_completion_tokens": 90, "seed": 3}).write(
        *items[0]
    )
    body = server.bodies[0]
    assert "max_tokens" not in body and (body["max_completion_tokens"], body["seed"], body["model"]) == (
        90,
        3,
        "tester",
    )


# --- bad answers --------------------------------------------------------------------------------------------------

BAD = {
    "no json": lambda body: "The liver is fine.",
    "half a json": lambda body: good(body)[:-20],
    "a list": lambda body: '["reasoning", "answer"]',
    "no text": lambda body: json.dumps({"reasoning": {"a": 1}, "answer": "A"}),
    "empty": lambda body: "",
    "another letter": lambda body: good(body, letter="ABCD"[("ABCD".index(asked_for(body)[1]) + 1) % 4]),
    "the letter inside": lambda body: good(body, extra=" So the answer is B."),
    "invented box": lambda body: good(body, extra=" There is more at [1,2,9,9].").replace(
        "I see the", "I see"
    ),
    "unknown structure": lambda body: good(body, extra=" Also a unicorn [[unicorn]]."),
    "control token": lambda body: good(body, extra=" <|im_end|>"),
    "no conclusion": lambda body: (
        good(body).replace("Hence: ", "Hence not ").replace(asked_for(body)[2], "that")
    ),
}


@pytest.mark.parametrize("flaw", BAD)
def test_bad_answers_are_returned_once_with_reasons_then_refused(serve, writer_for, items, flaw):
    item = next(i for i in items if i[0].evidence)
    server = serve(lambda body, nth: BAD[flaw](body) if len(body["messages"]) == 2 else good(body))
    (outcome,) = writer_for(server).write_all([item])
    assert outcome.rationale is not None and outcome.bought == 2
    complaint = server.bodies[1]["messages"]
    assert [m["role"] for m in complaint] == ["system", "user", "assistant", "user"]
    assert complaint[3]["content"].startswith("This cannot be used:\n- ")
    stubborn = serve(lambda body, nth: BAD[flaw](body))
    writer = writer_for(stubborn, temperature=0.1)
    (outcome,) = writer.write_all([item])
    assert outcome.rationale is None and outcome.reasons and len(stubborn.bodies) == 2
    with pytest.raises(RationaleRefused, match="usable rationale") as refused:
        writer.write(*item)
    assert refused.value.reasons == outcome.reasons and len(stubborn.bodies) == 2  # from the cache


def test_cut_answers_are_refused(serve, writer_for, items):
    def cut(body, nth):
        text = json.dumps({"reasoning": "Looking", "answer": "A"})
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
        return (
            200,
            {},
            json.dumps(
                {"id": "a", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice]}
            ),
        )

    (outcome,) = writer_for(serve(cut), attempts=1).write_all(items[:1])
    assert outcome.reasons == ("cut: the answer ended before its end",)


def test_wrong_coordinates_are_put_right_by_name(serve, writer_for, items):
    def altered(body, nth):
        tags, letter, truth = asked_for(body)
        boxes = ["<|box_start|>[1,2,3,4]<|box_end|>", "(1, 2, 3, 4, 5, 6)", "[7,7,8,8]"]
        looks = " ".join(f"I see the {tag} {box}." for tag, box in zip(tags, boxes, strict=False))
        return json.dumps({"reasoning": f"{looks} Therefore {truth}", "answer": f"{letter}. {truth}"})

    some = [item for item in items if item[0].evidence][:20]
    for outcome, (question, view) in zip(writer_for(serve(altered)).write_all(some), some, strict=True):
        assert len(outcome.repairs) == len(question.evidence) and outcome.bought == 1
        assert [p.box for p in outcome.rationale.points] == [
            view.box(s) for s in _in_prompt_order(question, view)
        ]
        assert all(format_box(view.box(s)) in outcome.rationale.text for s in question.evidence)


def _in_prompt_order(question, view):
    return [s for s in view.study.structures if s in question.evidence]


# --- failures -----------------------------------------------------------------------------------------------------

ERROR = json.dumps({"error": {"message": "try later", "type": "x", "code": None}})


@pytest.mark.parametrize(
    "failure",
    [
        (429, {}, ERROR),
        (500, {}, ERROR),
        (503, {}, "no json at all"),
        (200, {}, "{broken"),
        (200, {"Content-Type": "text/html"}, "<html>proxy</html>"),
        (200, {}, json.dumps({"error": {"message": "overloaded"}})),
        (200, {"Content-Length": "5000"}, "cut off"),
    ],
    ids=["429", "500", "503", "broken json", "html", "error in 200", "hang-up"],
)
def test_failures_are_repeated_with_growing_pauses(serve, writer_for, items, failure):
    server = serve(lambda body, nth: failure if nth < 2 else good(body))
    writer = writer_for(server, first_pause=0.1, timeout=0.7)
    (outcome,) = writer.write_all(items[:1])
    assert outcome.rationale is not None and len(server.bodies) == 3
    first, second = (b - a for a, b in zip(server.times, server.times[1:], strict=False))
    assert first >= 0.05 and second >= 0.1  # half to one and a half times 0.1 s, then 0.2 s


def test_slow_answers_time_out_and_are_asked_for_again(serve, writer_for, items):
    server = serve(lambda body, nth: 1.5 if nth == 0 else good(body))
    (outcome,) = writer_for(server, timeout=0.3).write_all(items[:1])
    assert outcome.rationale is not None and len(server.bodies) == 2


@pytest.mark.parametrize("as_date", [False, True])
def test_retry_after_is_honoured_by_all_requests(serve, writer_for, items, as_date):
    from email.utils import formatdate

    def reply(body, nth):
        wait = formatdate(time.time() + 2.0, usegmt=True) if as_date else "1"
        return (429, {"Retry-After": wait}, ERROR) if len(server.bodies) == 1 else good(body)

    server = serve(reply)
    assert all(o.rationale for o in writer_for(server, concurrency=1).write_all(items[:3]))
    assert server.times[1] - server.times[0] >= 0.95 and len(server.bodies) == 4


def test_hopeless_requests_cost_one_question_and_not_the_run(serve, writer_for, items):
    def reply(body, nth):
        _, letter, _ = asked_for(body)
        return (
            (400, {}, json.dumps({"error": {"message": f"filtered {KEY}"}})) if letter == "A" else good(body)
        )

    server = serve(reply)
    outcomes = list(writer_for(server).write_all(items[:24]))
    refused = [o for o in outcomes if o.rationale is None]
    assert {o.question.answer for o in refused} == {"A"} and len(refused) < len(outcomes)
    assert all("unanswered: status 400" in o.reasons[0] and KEY not in o.reasons[0] for o in refused)
    dead = serve(lambda body, nth: (500, {}, ERROR))
    (outcome,) = writer_for(dead, retries=2, temperature=0.0).write_all(items[:1])
    assert "3 tries" in outcome.reasons[0] and len(dead.bodies) == 3


@pytest.mark.parametrize(
    "status, code", [(401, None), (403, None), (404, "model_not_found"), (429, "insufficient_quota")]
)
def test_an_endpoint_that_refuses_everything_stops_the_run(serve, writer_for, items, status, code):
    message = {"error": {"message": f"no access for {KEY}", "code": code}}
    server = serve(lambda body, nth: (status, {}, json.dumps(message)))
    with pytest.raises(EndpointError, match=f"status {status}") as error:
        list(writer_for(server, concurrency=2).write_all(items))
    assert KEY not in str(error.value) and len(server.bodies) <= 4


def test_nobody_at_home(writer_for, items):
    class Nobody:
        url = "http://127.0.0.1:9/v1"

    (outcome,) = writer_for(Nobody, retries=1).write_all(items[:1])
    assert outcome.rationale is None and "APIConnectionError" in outcome.reasons[0]


# --- speed --------------------------------------------------------------------------------------------------------


def test_requests_run_at_once_up_to_the_limit(serve, writer_for, items):
    server = serve(lambda body, nth: 0.15)
    began = time.monotonic()
    outcomes = list(writer_for(server, concurrency=8).write_all(items[:32]))
    assert all(o.rationale for o in outcomes)
    assert time.monotonic() - began < 0.5 * 32 * 0.15
    assert 4 <= server.most_running <= 8


def test_items_are_read_only_as_far_as_needed(serve, writer_for, items):
    taken = []

    def lazily():
        for item in items:
            taken.append(item)
            yield item

    outcomes = writer_for(serve(), concurrency=2).write_all(lazily())
    next(outcomes)
    assert len(taken) <= 4
    outcomes.close()


@pytest.mark.parametrize("limit", [{"requests_per_minute": 600.0}, {"tokens_per_minute": 600_000.0}])
def test_rate_limits_are_kept(serve, writer_for, items, limit):
    server = serve()
    list(writer_for(server, concurrency=8, **limit).write_all(items[:10]))
    gaps = [b - a for a, b in zip(server.times, server.times[1:], strict=False)]
    tokens = [characters_of(body) / 4 + 400 for body in server.bodies]
    least = 0.1 * 9 if "requests_per_minute" in limit else sum(tokens[:-1]) / 600_000 * 60
    assert sum(gaps) >= 0.95 * least


# --- money --------------------------------------------------------------------------------------------------------

PRICES = {"price_in": 1000.0, "price_out": 5000.0}  # an answer of 500 + 100 tokens costs 1.0


def test_no_answer_is_bought_twice(serve, writer_for, items, tmp_path):
    server = serve()
    first = list(writer_for(server, **PRICES).write_all(items))
    assert len(server.bodies) == len(items)
    again = writer_for(server, **PRICES)
    second = list(again.write_all(reversed(items)))
    assert len(server.bodies) == len(items) and {o.bought for o in second} == {0}
    assert {o.question.id: o.rationale for o in first} == {o.question.id: o.rationale for o in second}
    assert again.store.spent == pytest.approx(len(items))
    log = [json.loads(line) for line in (tmp_path / "cache" / "usage.jsonl").read_text().splitlines()]
    assert len(log) == len(items) and {entry["cost"] for entry in log} == {1.0}
    everything = "".join(p.read_text() for p in (tmp_path / "cache").rglob("*") if p.is_file())
    assert KEY not in everything and not list((tmp_path / "cache").rglob("*.partial"))
    list(writer_for(server, temperature=0.2).write_all(items[:2]))  # another request is another purchase
    assert len(server.bodies) == len(items) + 2


def test_equal_requests_under_way_are_bought_once(serve, writer_for, items):
    server = serve(lambda body, nth: 0.3)
    outcomes = list(writer_for(server).write_all([items[0]] * 5))
    assert len(server.bodies) == 1 and len({o.rationale for o in outcomes}) == 1


def test_damaged_answers_are_bought_again(serve, writer_for, items, tmp_path):
    server = serve()
    list(writer_for(server).write_all(items[:2]))
    files = sorted((tmp_path / "cache").glob("*/*.json"))
    files[0].write_text("{torn")
    (tmp_path / "cache" / "usage.jsonl").open("a").write('{"key": "torn')
    writer = writer_for(server, **PRICES)
    assert all(o.rationale for o in writer.write_all(items[:2])) and len(server.bodies) == 3
    assert json.loads(files[0].read_text())["answer"]["cost"] == 1.0


def test_estimate_before_the_run(serve, writer_for, items):
    server = serve()
    writer = writer_for(server, **PRICES, requests_per_minute=6000.0)
    before = writer.estimate(items)
    assert server.bodies == [] and (before.questions, before.cached) == (len(items), 0)
    assert 0 < before.cost < before.most and before.minutes == pytest.approx(len(items) / 6000)
    assert before.cost == pytest.approx(
        (before.prompt_tokens * 1000 + before.completion_tokens * 5000) / 1e6, rel=0.01
    )
    list(writer.write_all(items[:4]))
    after = writer.estimate(items)
    assert after.cached == 4 and after.cost < before.cost
    assert writer.estimate(items, scale=10).questions == 10 * len(items)
    assert "answered already" in str(after)


def test_estimate_needs_neither_key_nor_connection(monkeypatch, tmp_path, items):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    writer = LLMWriter("tester", cache=tmp_path, **PRICES)
    assert writer.estimate(items[:3]).questions == 3
    with pytest.raises(DatasetError, match="OPENAI_API_KEY"):
        writer.write(*items[0])


def test_budget_stops_the_run_and_a_larger_one_goes_on(serve, writer_for, items, tmp_path):
    server = serve(lambda body, nth: 0.02)
    writer = writer_for(server, **PRICES, budget=12.0, concurrency=4)
    done = []
    with pytest.raises(BudgetSpent, match="of 12"):
        for outcome in writer.write_all(items):
            done.append(outcome)
    assert 5 <= writer.store.spent <= 12 and all(o.rationale for o in done)
    assert len(server.bodies) == round(writer.store.spent)
    with pytest.raises(BudgetSpent):
        list(writer_for(server, **PRICES, budget=12.0).write_all(items))  # counts what other runs have spent
    assert writer.store.spent <= 12
    bought = len(server.bodies)
    outcomes = list(writer_for(server, **PRICES, budget=1000.0).write_all(items))
    assert sum(o.bought for o in outcomes) == len(items) - bought == len(server.bodies) - bought


def test_prepare_asks_at_once_and_write_hands_out(serve, writer_for, items):
    server = serve(lambda body, nth: 0.1)
    writer = writer_for(server, concurrency=8)
    writer.prepare(items[:16])
    assert len(server.bodies) == 16 and server.most_running > 3
    assert [verify(writer.write(*item), *item) for item in items[:16]] == [[]] * 16
    assert len(server.bodies) == 16


def test_leaving_early_loses_no_paid_answer(serve, writer_for, items, tmp_path):
    server = serve(lambda body, nth: 0.3)
    writer = writer_for(server, concurrency=4)
    outcomes = writer.write_all(items)
    next(outcomes)
    time.sleep(0.1)  # the next ones are under way
    outcomes.close()
    writer.close()
    store = AnswerStore(tmp_path / "cache")
    assert len(server.bodies) > 1 and all(store.has(key_of(body)) for body in server.bodies)
    assert len(server.bodies) <= 8


def test_kill_loses_no_answer_that_had_come(serve, items, tmp_path, key):
    """A process is killed without warning in the middle; the next one buys only what had not arrived."""
    server = serve(lambda body, nth: 0.05)
    script = f"""
from unireason_lib.dataset.llm import LLMWriter
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.sources.phantom import phantom_slice
from unireason_lib.dataset.view import View
from unireason_lib.imaging import ProcessorFrame
ProcessorFrame.size = lambda self, height, width: (height, width)  # saves importing transformers twice
frame = ProcessorFrame(8, 2, 32 * 32, 128 * 128)
views = [View(phantom_slice(k), (8, 64, 64), None, frame) for k in range(100, 108)]
writer = LLMWriter("tester", base_url={server.url!r}, cache={str(tmp_path / "cache")!r},
                   concurrency=2, price_in=1000, price_out=5000)
print("made", flush=True)
for outcome in writer.write_all((q, v) for v in views for q in ask(v.study, view=v)):
    pass
print("done", flush=True)
"""

    def start():
        return subprocess.Popen(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=os.environ
        )

    process = start()
    assert process.stdout.readline() == "made\n"
    until = time.monotonic() + 20
    while len(server.bodies) < 12 and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.1)
    files = list((tmp_path / "cache").glob("*/*.json"))
    kept = {path.stem for path in files}
    before = [key_of(body) for body in server.bodies]
    assert len(kept) >= 8 and len(before) - len(kept) <= 2  # at most those that were under way
    for path in files:
        assert set(json.loads(path.read_text())) == {"request", "answer"}
    process = start()
    assert process.communicate(timeout=60)[0] == "made\ndone\n"
    after = Counter(key_of(body) for body in server.bodies[len(before) :])
    assert not kept & set(after) and set(after.values()) == {1}
    store = AnswerStore(tmp_path / "cache")
    assert store.spent == pytest.approx(len(list((tmp_path / "cache").glob("*/*.json"))))


# --- settings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "bad",
    [{"concurrency": 0}, {"budget": 5.0}, {"timeout": 0.0}, {"price_in": -1.0}, {"requests_per_minute": 0.0}],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(DatasetError, match="Endpoint"):
        Endpoint("tester", **bad)


def test_unknown_options_are_named(tmp_path):
    with pytest.raises(DatasetError, match="speed"):
        LLMWriter("tester", cache=tmp_path, speed=9)


def test_without_the_package_one_is_told_what_to_install(monkeypatch, tmp_path, items):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(DatasetError, match=r"pip install -e '\.\[llm\]'"):
        LLMWriter("tester", base_url="http://127.0.0.1:9/v1", cache=tmp_path).write(*items[0])
