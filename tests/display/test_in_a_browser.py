"""The script of the page, and the viewer in JupyterLab, in a real browser: a script clicks and
writes down what it sees."""

import base64
import html
import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from unireason_lib.display import trace_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="NOT TESTED in a browser: needs Chromium or Chrome on the path"
)
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage --disable-sync"
)


def visit(folder, page):
    """The document in the end."""
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    options = [*OPTIONS.split(), f"--user-data-dir={folder / 'profile'}", "--dump-dom"]
    command = [BROWSER, *options, "--virtual-time-budget=4000", path.as_uri()]
    return subprocess.run(command, capture_output=True, encoding="utf-8", timeout=80).stdout


def drive(folder, page, script):
    """What a script wrote into ``seen``; the policy of the page, which forbids it, is off."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    start = "const seen = {}; addEventListener('error', (e) => { seen.error = e.message; });"
    end = (
        'const pre = document.createElement("pre"); pre.id = "seen";'
        "pre.textContent = JSON.stringify(seen); document.body.append(pre);"
    )
    page = page.replace("<main>", f"<script>{start}</script><main>")
    document = visit(folder, page.replace("</body>", f"<script>{script}{end}</script></body>"))
    return json.loads(html.unescape(re.search('<pre id="seen">(.*?)</pre>', document, re.S)[1]))


def test_the_page_moves_between_slices_boxes_and_steps(volume_trace, slices, tmp_path):
    script = """
    const article = document.querySelector("article");
    const one = (selector) => article.querySelector(selector);
    const all = (selector) => [...article.querySelectorAll(selector)];
    const slider = one(".scroll input");
    const button = (n) => one(`button.box[data-box="${n}"]`);
    const active = () => all(".active").map((e) => e.tagName.toLowerCase() + e.dataset.box);
    const now = () => {
      const key = one(".stage").dataset.slices.split(" ")[slider.value];
      const places = all(".place").filter((p) => p.style.display !== "none");
      return [slider.value, places.map((p) => p.dataset.box).join(),
              one(".stage image").getAttribute("href") === images[key]];
    };
    const move = (z) => { slider.value = z; slider.dispatchEvent(new Event("input")); };
    seen.begin = now();
    move(0); seen.first = now();
    move(4); seen.four = now();
    button(1).dispatchEvent(new MouseEvent("mouseenter")); seen.hover = active().sort();
    button(1).dispatchEvent(new MouseEvent("mouseleave")); seen.left = active();
    move(0); button(3).click(); seen.clicked = now(); seen.pressed = active().includes("g3");
    seen.crops = all("img").filter((i) => i.src.startsWith("data:image/png;")).length;
    const later = () => all(".step").map((s) => s.classList.contains("later"));
    one(".begin").click(); seen.step1 = later();
    one(".steps").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    seen.step2 = later(); one(".end").click(); seen.end = later();
    """
    assert drive(tmp_path, trace_html([volume_trace], [slices]), script) == {
        "begin": ["3", "1", True],
        "first": ["0", "", True],
        "four": ["4", "1,3", True],
        "hover": ["button1", "g1", "rect1", "span1"],
        "left": [],
        "clicked": ["5", "3", True],
        "pressed": True,
        "crops": 7,
        "step1": [False, True, True, True],
        "step2": [False, False, True, True],
        "end": [False] * 4,
    }


def test_the_policy_of_the_page_stops_a_script_of_others(volume_trace, slices, tmp_path):
    other = "document.title = 'taken'"
    other = f'<script>{other}</script><img src=x onerror="{other}">'
    page = trace_html([volume_trace], [slices], title="intact").replace("<main>", other + "<main>")
    document = visit(tmp_path, page)
    assert "<title>intact</title>" in document
    assert re.search('<image [^>]*href="data:image/png', document), "its own script must run"


CELL = """
from unireason_lib.dataset import phantom
from unireason_lib.display import SliceViewer
from unireason_lib.grounding import GroundedGenerator, GroundedRequest, load_model
from unireason_lib.imaging import serialize

scan = phantom(1_500_020).scan  # a striped lesion in the liver, a checkered one in the spleen
images = serialize(scan, scan.shape, (-150, 350)).images()
textures = [f"{name} striped".capitalize() for name in ("horizontally", "vertically")]
options = [*textures, "Checkered", "Mottled"]
request = GroundedRequest("What texture does the lesion have?", images, options, "3d")
generator = GroundedGenerator(*load_model("data/tiny-sft", device="cpu"))
SliceViewer(scan, request=request, generator=generator, window=(-150, 350), max_new_tokens=120)
"""
PAGE = """
window.all = (selector) => [...document.querySelectorAll(selector)];
window.readouts = () => all(".widget-readout").map((e) => e.textContent);
window.state = () => ({
    readouts: readouts(), image: all(".widget-image").map((e) => e.src).join(),
    answers: all(".jupyter-widgets tr").map((e) => e.innerText).filter((t) => /^[0-9]+[.]/.test(t)),
});
"""


class Lab:
    """JupyterLab on a notebook of one cell, in a browser that is driven by its own protocol."""

    def __init__(self):
        self.processes, self.socket, self.sent = [], None, 0

    def start(self, folder, cell):
        from websocket import create_connection

        root = Path(__file__).parents[2]
        (folder / "data").symlink_to(root / "data")
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell)])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        nbformat.write(notebook, folder / "page.ipynb")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        token, names = secrets.token_hex(16), ("CONFIG_DIR", "DATA_DIR", "RUNTIME_DIR")
        own = {f"JUPYTER_{name}": str(folder / name) for name in names}
        own |= {"PYTHONPATH": str(root), "JUPYTER_PREFER_ENV_PATH": "1"}
        options = [f"--ServerApp.port={port}", f"--IdentityProvider.token={token}"]
        options += ["--no-browser", "--allow-root", "--LabApp.expose_app_in_browser=True"]
        options += [
            f"--LabApp.{name}_dir={folder / name}" for name in ("workspaces", "user_settings")
        ]
        options += [f"--ServerApp.root_dir={folder}"]
        quiet = {"cwd": folder, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        lab = [sys.executable, "-m", "jupyterlab", *options]
        self.processes.append(subprocess.Popen(lab, env=os.environ | own, **quiet))
        address = f"http://127.0.0.1:{port}"
        self.until(lambda: urllib.request.urlopen(f"{address}/api?token={token}"), "the server")
        profile, page = folder / "profile", f"{address}/lab/tree/page.ipynb?token={token}"
        command = [
            BROWSER,
            *OPTIONS.split(),
            "--remote-debugging-port=0",
            "--window-size=1100,1500",
        ]
        command += ["--remote-allow-origins=*", f"--user-data-dir={profile}", page]
        self.processes.append(subprocess.Popen(command, **quiet))
        debug = self.until((profile / "DevToolsActivePort").read_text, "the browser").split()[0]

        def target():
            with urllib.request.urlopen(f"http://127.0.0.1:{debug}/json") as answer:
                return next(one for one in json.load(answer) if one["type"] == "page")

        self.socket = create_connection(self.until(target, "a page")["webSocketDebuggerUrl"])

    def until(self, probe, what, seconds=120):
        """What a function gives as soon as that is something."""
        end, error = time.monotonic() + seconds, None
        while time.monotonic() < end:
            try:
                if found := probe():
                    return found
            except (OSError, StopIteration, AssertionError) as not_yet:
                error = not_yet
            time.sleep(0.2)
        raise AssertionError(f"{what} did not come in {seconds} s: {error}")

    def send(self, method, **parameters):
        self.sent += 1
        self.socket.send(json.dumps({"id": self.sent, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.sent:
            pass
        return answer.get("result", {})

    def js(self, expression):
        how = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        result = self.send("Runtime.evaluate", **how)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def key(self, name, code):
        for kind in ("rawKeyDown", "keyUp"):
            how = {"key": name, "code": name, "windowsVirtualKeyCode": code}
            self.send("Input.dispatchKeyEvent", type=kind, **how)

    def write(self, readout, text):
        """Type into the number beside a slider."""
        self.js(f"all('.widget-readout')[{readout}].focus(); document.execCommand('selectAll')")
        self.send("Input.insertText", text=text)
        self.key("Enter", 13)

    def close(self):
        if (folder := os.environ.get("SCREENSHOTS")) and self.socket:  # to look at
            shot = base64.b64decode(self.send("Page.captureScreenshot")["data"])
            Path(folder, "viewer.png").write_bytes(shot)
        for process in reversed(self.processes):
            process.terminate()
            process.wait(20)


@pytest.fixture
def lab(tmp_path):
    for name in ("jupyterlab", "websocket"):
        pytest.importorskip(name, reason=f"NOT TESTED in JupyterLab: needs {name}")
    one = Lab()
    try:
        one.start(tmp_path, CELL)
        yield one
    finally:
        one.close()


def test_in_jupyterlab_the_answer_changes_with_the_box_of_the_user(lab, tmp_path):
    kernel = "window.jupyterapp?.shell.currentWidget?.context?.sessionContext.session?.kernel"
    lab.until(lambda: lab.js(f"{kernel}?.status === 'idle'"), "the kernel")
    lab.js(PAGE + "jupyterapp.commands.execute('notebook:run-all-cells'); 1")
    lab.until(lambda: lab.js("readouts().length === 4 && state().image !== ''"), "the viewer")

    before = lab.js("state()")
    lab.js("document.querySelector('.noUi-handle').focus()")
    lab.key("ArrowRight", 39)
    moved = lab.until(
        lambda: lab.js("state().image") != before["image"] and lab.js("state()"), "a slice"
    )
    assert (before["readouts"][0], moved["readouts"][0]) == ("4", "5")

    for number, sides in enumerate(
        (("15 – 22", "32 – 39", "2 – 4"), ("42 – 52", "32 – 41", "1 – 4"))
    ):
        for readout, text in enumerate(sides, start=1):
            lab.write(readout, text)
        lab.until(lambda sides=sides: lab.js("readouts().slice(1)") == list(sides), "the box")
        lab.js("all('button.mod-primary').at(-1).click()")
        lab.until(lambda n=number: len(lab.js("state().answers")) > n, "an answer")
    first, second = lab.js("state().answers")
    assert "[15, 32, 2, 22, 39, 5]" in first and "[42, 32, 1, 52, 41, 5]" in second
    assert "Horizontally striped" in first and "Checkered" in second
