"""Rationales by a language model, against a server here that answers well, badly, late or never."""

import json
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from unireason_lib.dataset.annotator import BudgetSpent, EndpointError, LLMWriter, RationaleRefused
from unireason_lib.dataset.build import BuildConfig, SourceSpec, build
from unireason_lib.dataset.checks import problems_of
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.schema import Record
from unireason_lib.dataset.sources.phantom import phantom, phantom_slice
from unireason_lib.dataset.view import View
from unireason_lib.errors import DatasetError
from unireason_lib.imaging import ProcessorFrame

pytest.importorskip("openai", reason="the extra `llm` is not installed")

FRAME = ProcessorFrame(8, 2, 32 * 32, 128 * 128)
KEY = "sk-secret-0123456789"
PRICES = {"price_in": 1000.0, "price_out": 5000.0}  # an answer of 500 + 100 tokens costs 1


def good(body):
    """An answer from what a prompt states: tags of the evidence, letter and words of the answer."""
    text = body["messages"][1]["content"]
    letter, truth = re.search(r"^Right answer: ([A-D])\. (.*)$", text, re.M).groups()
    looks = " ".join(f"I see the {t} [[{t}]]." for t in re.findall(r"^\* (.*?): \[", text, re.M))
    return json.dumps({"reasoning": f"Looking. {looks} Hence: {truth}", "answer": letter})


def is_true(rationale, question, view):
    record = Record.make(view, question, rationale)
    return problems_of(record, view, question) == []


def reply(content, **changes):
    choices = [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]
    usage = {"prompt_tokens": 500, "completion_tokens": 100}
    return {"choices": choices, "usage": usage, **changes}


class Server(ThreadingHTTPServer):
    """An endpoint: ``respond(body, nth)`` gives the content of the nth answer to that body, a whole
    reply as a dictionary, ``(status, text)``, or seconds to wait before a good answer."""

    url = "http://127.0.0.1:9/v1"  # where nobody is

    def __init__(self, respond=lambda body, nth: good(body)):
        super().__init__(("127.0.0.1", 0), Handler)
        self.respond, self.bodies, self.waiting, self.most_waiting = respond, [], 0, 0
        self.url = f"http://127.0.0.1:{self.server_port}/v1"
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(BaseHTTPRequestHandler):
    protocol_version, log_message = "HTTP/1.1", lambda *_: None

    def do_POST(self):
        server = self.server
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        nth = server.bodies.count(body)
        server.bodies.append(body)
        assert self.headers["Authorization"] == f"Bearer {KEY}"
        response = server.respond(body, nth)
        if isinstance(response, float):
            server.waiting += 1
            server.most_waiting = max(server.most_waiting, server.waiting)
            time.sleep(response)
            server.waiting -= 1
            response = good(body)
        response = reply(response) if isinstance(response, str) else response
        status, text = response if isinstance(response, tuple) else (200, json.dumps(response))
        self.send_response(status)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text.encode())


@pytest.fixture(scope="module")
def items():
    studies = [*map(phantom_slice, range(6)), *map(phantom, range(3))]
    views = [View(study, (8, 64, 64), None, FRAME) for study in studies]
    return [(question, view) for view in views for question in ask(view)]


@pytest.fixture
def item(items):
    return next(item for item in items if item[1].depth and item[0].evidence)


@pytest.fixture
def writer_for(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    usual = {"model": "tester", "cache": tmp_path / "cache", "timeout": 5.0}
    return lambda server, **options: LLMWriter(**{**usual, "base_url": server.url, **options})


def test_good_answers_are_true_rationales_paid_for_once(writer_for, items, tmp_path):
    server = Server(lambda body, nth: 0.1)
    writer = writer_for(server, concurrency=6, **PRICES)
    writer.prepare(items)
    assert 2 < server.most_waiting <= 6
    for question, view in items:
        rationale = writer_for(server).write(question, view)
        assert is_true(rationale, question, view)
        assert {point.box for point in rationale.points} == {view.box(s) for s in question.evidence}
    assert len(server.bodies) == len(items) == writer.spent and writer.name == "llm:tester"
    assert all(KEY.encode() not in path.read_bytes() for path in (tmp_path / "cache").iterdir())
    writer_for(server, temperature=0.2).write(*items[0])
    assert len(server.bodies) == len(items) + 1  # it is another request


BAD = {
    "another letter": ('"answer": "."', '"answer": "E"'),
    "invented box": ("I see the .*? Hence", "At [1,2,9,9]. Hence"),
    "unknown structure": ("Looking.", "Looking at a unicorn [[unicorn]]."),
    "no conclusion": ('Hence: .*?"', '"'),
}


@pytest.mark.parametrize("flaw", BAD.values(), ids=BAD)
def test_bad_answers_are_returned_once_with_reasons_then_refused(writer_for, item, flaw):
    def bad(body, nth):
        return re.sub(*flaw, good(body))

    server = Server(lambda body, nth: bad(body, 0) if len(body["messages"]) == 2 else good(body))
    assert is_true(writer_for(server).write(*item), *item)
    messages = server.bodies[1]["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant", "user"]
    assert messages[3]["content"].startswith("This cannot be used:\n- ")
    stubborn = Server(bad)
    for _ in range(2):  # the second time from the cache
        with pytest.raises(RationaleRefused, match=r"a usable rationale, found [a-z]+: "):
            writer_for(stubborn).write(*item)
    assert len(stubborn.bodies) == 2


ODD = {
    "tokens null": lambda text: reply(text, usage={"prompt_tokens": None}),
    "list of parts": lambda text: reply([{"type": "text", "text": s} for s in text.partition(" ")]),
    "thoughts in the text": lambda text: reply(f"<think>{{so}}</think>{text}"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_reports_10_and_12_odd_replies_are_read(writer_for, item, odd):
    server = Server(lambda body, nth: odd(good(body)))
    writer = writer_for(server, **PRICES)
    assert is_true(writer.write(*item), *item)
    assert 0 < writer.spent < writer.most(server.bodies[0]) and len(server.bodies) == 1


THOUGHTS = {"content": None, "reasoning_content": "Let me think about it."}
CUT = [{"message": THOUGHTS, "finish_reason": "length"}]  # report 12


@pytest.mark.parametrize("choices", ([{"message": None}], [], {"0": 1}, None, CUT), ids=repr)
def test_report_10_replies_that_say_nothing_are_kept_and_refused(writer_for, item, choices):
    server = Server(lambda body, nth: reply(None, choices=choices))
    writer = writer_for(server, **PRICES)
    for _ in range(2):
        with pytest.raises(RationaleRefused, match=r"malformed|still thinking.*; raise it"):
            writer.write(*item)
    assert len(server.bodies) == writer.spent == 2 - (choices == CUT)


ALWAYS = [
    ("Unsupported parameter: 'max_tokens'.", 400, "max_tokens_name"),
    ("Unsupported value: 'temperature' does not support 0.7.", 400, "temperature to null"),
    ("unknown field: fast", 400, "parameters"),
    (f"no access for {KEY}", 401, "the API key"),
]


@pytest.mark.parametrize("message, status, advice", ALWAYS)
def test_report_11_what_always_fails_stops_the_run_and_says_why(
    writer_for, items, message, status, advice
):
    server = Server(lambda body, nth: (status, json.dumps({"error": {"message": message}})))
    with pytest.raises(EndpointError, match=f"{message[:9]}.*do: .*{advice}") as error:
        writer_for(server, concurrency=2, retries=0).prepare(items)
    assert KEY not in str(error.value) and len(server.bodies) <= 8
    settings = {"max_tokens_name": "max_completion_tokens", "temperature": None}
    writer_for(server := Server(), **settings, parameters={"top_k": 3}).write(*items[0])
    assert server.bodies[0].keys() == {"model", "messages", "max_completion_tokens", "top_k"}


def test_report_11_questions_that_a_filter_rejects_do_not_end_a_run(writer_for, items):
    """Once anything was answered, the parameters are good."""
    rejected = (400, json.dumps({"error": {"message": "content filter"}}))
    server = Server(lambda body, nth: rejected if 1 < len(server.bodies) < 5 else good(body))
    writer = writer_for(server, concurrency=1, retries=0)
    writer.prepare(items[:6])
    kept = [writer.kept(body)[1] is not None for body in server.bodies]
    assert kept == [True, False, False, False, True, True]


def test_b5_a_budget_holds_for_all_writers_of_a_cache(writer_for, items):
    server = Server()
    limits = {**PRICES, "budget": 30.0, "concurrency": 2}
    one, other = (writer_for(server, **limits) for _ in "ab")
    with ThreadPoolExecutor() as pool:
        runs = pool.submit(one.prepare, items[::2]), pool.submit(other.prepare, items[1::2])
    assert any(isinstance(run.exception(), BudgetSpent) for run in runs)
    assert 5 < len(server.bodies) == one.spent <= 30
    nobody = writer_for(Server, retries=0, **PRICES, budget=100)
    with pytest.raises(EndpointError, match=r"Connection.* start the server"):
        nobody.prepare(items)
    assert nobody.spent == one.spent  # where nobody is, nothing is spent


SCRIPT = """
import sys
from unireason_lib.dataset.annotator import LLMWriter
from unireason_lib.dataset.questions import ask
from unireason_lib.dataset.sources.phantom import phantom_slice
from unireason_lib.dataset.view import View
views = map(View, map(phantom_slice, range(8)))
writer = LLMWriter("tester", base_url=sys.argv[1], cache=sys.argv[2], concurrency=3)
writer.prepare([(question, view) for view in views for question in ask(view)])
"""


def test_b6_a_kill_at_any_moment_loses_no_answer_that_had_come(writer_for, tmp_path):
    def respond(body, nth):
        if len(server.bodies) == 10:
            process.kill()
        return 0.05

    server = Server(respond)
    command = [sys.executable, "-c", SCRIPT, server.url, str(tmp_path / "cache")]
    process = subprocess.Popen(command)
    assert process.wait(timeout=200) == -signal.SIGKILL
    kept = [body for body in server.bodies if writer_for(server).kept(body)[1] is not None]
    assert 7 <= len(kept) and len(server.bodies) - len(kept) <= 3  # those under way


def test_b6_ctrl_c_waits_for_requests_under_way(writer_for, items):
    def respond(body, nth):
        if len(server.bodies) == 3:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        return 0.2

    writer = writer_for(server := Server(respond), concurrency=3)
    with pytest.raises(KeyboardInterrupt):
        writer.prepare(items)
    assert 3 <= len(server.bodies) <= 6
    assert all(writer.kept(body)[1] for body in server.bodies)


def test_b3_b6_b7_a_spent_budget_stops_the_build_and_a_larger_one_ends_it(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    server, folder = Server(), tmp_path / "set"

    def config_for(server, cache="cache", **options):
        usual = {"model": "tester", "base_url": server.url, "cache": str(tmp_path / cache)}
        source = SourceSpec("phantom", None, {"dimension": "2d", "count": 6})
        settings = {"frame": FRAME, "prior_studies": 0, "images": "none", "writer": "llm"}
        return BuildConfig((source,), writer_options={**usual, **PRICES, **options}, **settings)

    with pytest.raises(BudgetSpent, match="larger budget"):
        build(config_for(server, budget=25.0), folder)
    assert 5 < len(server.bodies) <= 25 and not (folder / "manifest.json").exists()
    more = {"budget": 1000.0, "concurrency": 2, "timeout": 9.0}
    made = build(config_for(server, **more), folder)  # these do not decide the rows
    assert all(server.bodies.count(body) == 1 for body in server.bodies)  # nothing bought twice
    whole = build(config_for(Server(), "other"), tmp_path / "whole")
    assert made.manifest["content_hash"] == whole.manifest["content_hash"]
    elsewhere = {"base_url": "http://127.0.0.1:9/v2"}
    for changes in ({"max_tokens": 9}, {"model": "other"}, elsewhere):  # fault B3
        with pytest.raises(DatasetError, match=f"writer {next(iter(changes))} was"):
            build(config_for(server, **changes), folder)
    assert made.manifest["records"] == len(server.bodies) and not made.manifest["refused"]
    assert KEY not in (text := (folder / "manifest.json").read_text()) and str(tmp_path) not in text
