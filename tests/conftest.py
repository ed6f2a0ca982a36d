"""Shared fixtures: one tiny checkpoint for the whole test session."""

import signal
from pathlib import Path

import pytest


def pytest_configure():
    """A shell in the background ignores Ctrl-C for all it starts, so commands under test would not hear it either."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory) -> Path:
    """The folder of a tiny checkpoint with random weights."""
    from unireason_lib.grounding import build_tiny

    return build_tiny(tmp_path_factory.mktemp("checkpoint") / "tiny")


@pytest.fixture(scope="session")
def tiny_model(tiny_checkpoint):
    """``(model, processor)`` of the tiny checkpoint, on the CPU."""
    from unireason_lib.grounding import load_model

    return load_model(tiny_checkpoint, device="cpu")


@pytest.fixture(scope="session")
def generator(tiny_model):
    """What lets the tiny model reply."""
    from unireason_lib.grounding import GroundedGenerator

    return GroundedGenerator(*tiny_model)


@pytest.fixture(scope="session")
def checkpoint(tiny_checkpoint):
    """The tiny checkpoint as commands open it, loaded once."""
    from unireason_lib.inference import Checkpoint

    return Checkpoint(str(tiny_checkpoint), device="cpu")


@pytest.fixture(scope="session")
def tiny_qwen3(tmp_path_factory):
    """``(model, processor)`` of a Qwen3-VL that is smaller still, with deepstack features."""
    from unireason_lib.grounding import build_tiny, load_model

    sizes = {"hidden": 64, "layers": 2, "vision_hidden": 32, "vision_layers": 2}
    folder = build_tiny(tmp_path_factory.mktemp("checkpoint") / "qwen3", "qwen3_vl", **sizes)
    return load_model(folder, device="cpu")


@pytest.fixture
def scripted(monkeypatch):
    """A function that makes the model write a text, or what a function of the request gives."""
    from unireason_lib.grounding import GroundedGenerator, Script

    plain = GroundedGenerator.generate

    def write(text):
        def generate(self, requests, **settings):
            requests = list(requests)
            parts = [text(one) if callable(text) else (text,) for one in requests]
            scripts = [Script(self.tokenizer, one) for one in parts]
            return plain(self, requests, scripts=scripts, **settings)

        monkeypatch.setattr(GroundedGenerator, "generate", generate)

    return write
