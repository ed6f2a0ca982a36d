"""The page of replies, and the viewer in JupyterLab, in a real browser that is driven as by a hand."""

import base64
import json
import os
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

from unireason_lib.display import TracePage, trace_html

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="NOT TESTED in a browser: needs Chromium or Chrome on the path"
)
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
OPTIONS = (
    "--headless --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage --disable-sync"
)


PAGE_STATE = """
window.texts = (selector) => all(selector).map((each) => each.textContent);
window.listed = () => items.filter((item) => !item.hidden).length;
window.active = () => all("[data-box].active", article).map((each) => each.tagName + each.dataset.box);
window.look = () => ({
    id: one("h2").textContent.split(" ")[0], slice: texts(".scroll output"), kept: state.kept,
    pressed: all(".box[aria-pressed=true]").length, places: texts(".stage .place text"),
    href: one(".stage image").getAttribute("href") === "data:image/png;base64," +
        data.images[state.row.replies[0].slices[one(".stage").dataset.at]],
});
"""


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


class Browser:
    """A browser that is driven by its own protocol, as by a hand on mouse and keyboard."""

    def __init__(self):
        self.processes, self.socket, self.sent = [], None, 0

    def open(self, folder, address, size="1100,1500"):
        from websocket import create_connection

        profile = folder / "profile"
        command = [BROWSER, *OPTIONS.split(), f"--window-size={size}", "--remote-debugging-port=0"]
        command += ["--remote-allow-origins=*", f"--user-data-dir={profile}", address]
        self.processes.append(subprocess.Popen(command, cwd=folder, **SILENT))
        debug = self.until((profile / "DevToolsActivePort").read_text, "the browser").split()[0]

        def target():
            with urllib.request.urlopen(f"http://127.0.0.1:{debug}/json") as answer:
                return next(one for one in json.load(answer) if one["type"] == "page")

        self.socket = create_connection(self.until(target, "a page")["webSocketDebuggerUrl"])
        return self

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

    def mouse(self, selector, click=False):
        """Move the mouse to the middle of an element, and perhaps click."""
        middle = "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        x, y = self.js(f"{middle}(document.querySelector({selector!r}).getBoundingClientRect())")
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            how = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **how)

    def look(self, name):
        """A screenshot into the folder SCREENSHOTS, for a human."""
        if (folder := os.environ.get("SCREENSHOTS")) and self.socket:
            shot = base64.b64decode(self.send("Page.captureScreenshot")["data"])
            Path(folder, f"{name}.png").write_bytes(shot)

    def close(self):
        for process in reversed(self.processes):
            process.terminate()
            process.wait(20)


class Lab(Browser):
    """JupyterLab on a notebook of one cell."""

    def start(self, folder, cell):
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
        lab = [sys.executable, "-m", "jupyterlab", *options]
        self.processes.append(subprocess.Popen(lab, cwd=folder, env=os.environ | own, **SILENT))
        address = f"http://127.0.0.1:{port}"
        self.until(lambda: urllib.request.urlopen(f"{address}/api?token={token}"), "the server")
        self.open(folder, f"{address}/lab/tree/page.ipynb?token={token}")

    def write(self, readout, text):
        """Type into the number beside a slider."""
        self.js(f"all('.widget-readout')[{readout}].focus(); document.execCommand('selectAll')")
        self.send("Input.insertText", text=text)
        self.key("Enter", 13)


@pytest.fixture
def visit(tmp_path):
    """A function that opens a page, in light or dark, at a width; its policy holds."""
    pytest.importorskip("websocket", reason="NOT TESTED in a browser: needs websocket")
    one = Browser()

    def opened(html, scheme="light", width=1400):
        path = tmp_path / "page.html"
        path.write_text(html, encoding="utf-8")
        if not one.socket:
            one.open(tmp_path, "about:blank")
        scheme = [{"name": "prefers-color-scheme", "value": scheme}]
        one.send("Emulation.setEmulatedMedia", features=scheme)
        how = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        one.send("Emulation.setDeviceMetricsOverride", **how)
        one.send("Page.navigate", url="about:blank")
        one.send("Page.navigate", url=path.as_uri())
        one.until(lambda: one.js("document.readyState") == "complete", "the page")
        one.until(lambda: one.js("!!document.querySelector('article h2')"), "a reply")
        one.js(PAGE_STATE)
        return one

    try:
        yield opened
    finally:
        one.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_filters_steps_and_links_text_to_boxes(
    volume_trace, image_trace, slices, visit, scheme
):
    volume, image = (one.to_dict() for one in (volume_trace, image_trace))
    more = {"truth": "A", "truth_boxes": [["cyst", [10, 8, 0, 26, 24, 3]]], "iou_first": 0.3}
    lines = [volume | {"family": "where"} | more, image | {"truth": "A", "family": "what"}, image]
    html = trace_html(lines, [slices, slices[:1], slices[:1]])
    page = visit(html, scheme)
    look = lambda: page.js("look()")  # noqa: E731
    background = page.js("getComputedStyle(document.body).backgroundColor")
    assert background == {"light": "rgb(255, 255, 255)", "dark": "rgb(13, 17, 23)"}[scheme]
    begin = {"id": "volume", "slice": ["slice 3 (0–7)"], "kept": None, "pressed": 0}
    assert look() == begin | {"places": ["1"], "href": True}
    assert page.js("one('#count').textContent") == "3 of 3 shown; 1 of 2 right. "
    assert page.js("all('nav .place').length") == 3, "boxes in the list, too"

    page.key("ArrowUp", 38)
    assert (
        look()["slice"] == ["slice 4 (0–7)"] and look()["places"] == ["1", "3"] and look()["href"]
    )
    assert not page.js("all('.stage .truth').length"), "not on this slice"
    for _ in range(3):
        page.key("ArrowDown", 40)
    assert look()["slice"] == ["slice 1 (0–7)"] and page.js("all('.stage .truth').length") == 1
    page.key("t", 84)
    assert page.js("getComputedStyle(one('.stage .truth')).display") == "none"

    page.mouse(".box[data-box='0.1']")  # hover: as long as the mouse is there
    assert look()["slice"] == ["slice 3 (0–7)"] and look()["kept"] is None
    crops = ["svg0.1"] * 3
    assert sorted(page.js("active()")) == ["BUTTON0.1", "SPAN0.1", "g0.1", "rect0.1", *crops]
    page.mouse("h2")
    assert look()["slice"] == ["slice 1 (0–7)"] and page.js("active()") == []
    page.mouse(".box[data-box='0.3']", click=True)
    page.mouse("h2")
    assert look()["slice"] == ["slice 5 (0–7)"] and look()["kept"] == "0.3"
    page.mouse(".crops svg[data-z='7']", click=True)
    assert look()["slice"] == ["slice 7 (0–7)"] and look()["pressed"] == 1
    page.key("Escape", 27)
    page.key("ArrowDown", 40)
    page.key("b", 66)
    assert look()["kept"] == "0.1" and look()["slice"] == ["slice 3 (0–7)"]
    page.key("Escape", 27)
    page.mouse(".stage .place .tag", click=True)  # on the image: the text is highlighted
    assert {"BUTTON0.1", "g0.1"} <= set(page.js("active()")) and look()["pressed"] == 1
    page.look(f"page-{scheme}")

    page.key("j", 74)
    assert look()["id"] == "image" and look()["slice"] == [] and look()["places"] == ["1"]
    page.key("ArrowLeft", 37)
    assert look()["id"] == "volume"
    page.key("k", 75)
    assert look()["id"] == "volume", "the first one stays"
    page.key("/", 191)
    page.send("Input.insertText", text="B. RIGHT")
    assert page.js("listed()") == 2 and look()["id"] == "image"
    page.send("Input.insertText", text="j")
    assert page.js("listed()") == 0 and "No reply passes" in page.js("article.textContent")
    page.mouse("button[type=reset]", click=True)
    page.until(lambda: page.js("listed()") == 3, "all replies")
    for select, value, count in ((0, "wrong", 1), (1, "where", 1), (2, "3d", 1)):
        pick = f"const s = all('#pickers select')[{select}]; s.value = {{}}; "
        pick += "s.dispatchEvent(new Event('input', {{bubbles: true}}))"
        page.js("{" + pick.format(repr(value)) + "}")
        assert page.js("listed()") == count
        page.js("{" + pick.format("''") + "}")
    page.js("one('[name=low]').value = 0.31; filter()")
    assert page.js("listed()") == 0
    page.js("one('[name=low]').value = 0.2; one('[name=high]').value = 0.3; filter()")
    assert page.js("listed()") == 1

    page.mouse("#theme", click=True)
    assert page.js("getComputedStyle(document.body).backgroundColor") != background
    page.mouse("h1", click=True)
    page.key("?", 191)
    assert page.js("dialog.open")
    page.mouse("dialog button", click=True)
    assert not page.js("dialog.open")
    page = visit(html, scheme, 420)
    width = page.js("document.documentElement.scrollWidth")
    assert width <= 420 and not page.js("one('details').open")


def test_two_runs_stand_side_by_side(volume_trace, image_trace, slices, visit):
    other = volume_trace.to_dict() | {"choice": "B", "truth": "A"}
    page = TracePage()
    page.add(volume_trace.to_dict() | {"truth": "A"}, slices, run="first")
    page.add(other, slices, run="second")
    page.add(image_trace.to_dict(), slices[:1], run="first")
    page.add(image_trace.to_dict(), slices[:1], run="second")
    page = visit(page.html())
    assert page.js("texts('h3')") == ["first right", "second wrong"]
    assert page.js("texts('article li')") == ["A. left ← first", "B. right ← second"]
    boxes = "all('.stage').map((each) => each.getBoundingClientRect().top)"
    assert len(set(page.js(boxes))) == 1, "side by side"
    assert page.js("listed()") == 2
    page.mouse("[name=differ]", click=True)
    assert page.js("listed()") == 1
    page.key("ArrowUp", 38)
    assert page.js("texts('.scroll output')") == ["slice 4 (0–7)"] * 2, "slices go together"
    page.mouse(".box[data-box='1.3']", click=True)
    assert page.js("active().every((each) => each.endsWith('1.3'))")
    page.look("runs")


def test_markup_of_others_stays_text(slices, visit):
    """Where it comes from a reply, as text; where somebody edits the page, the policy stops it."""
    bad = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 1\">"
    box = "<|box_start|>[1,2,9,9]<|box_end|>"
    names = dict.fromkeys(["id", "question", "choice", "truth", "family", "error", "patient"], bad)
    line = names | {"options": {bad: bad, "B": "</li></ul>"}, "text": bad + box + bad}
    line["pointings"] = [{"text": box, "box": [1, 2, 9, 9], "status": bad, "crops": []}]
    page = TracePage("intact")
    page.add(line, slices[:1], run=bad)
    page.add(line, slices[:1], run="<b>")
    page.add({"id": "other", "family": "other", "text": "nothing"}, run="<b>")
    html = page.html()
    page = visit(html)
    assert page.js("document.title") == "intact" and page.js("all('img, script[src]').length") == 0
    assert page.js("all('script').length") == 2
    for where in (".question", ".text", "article li", "nav", ".error", "option", "h3", "h2"):
        assert bad in page.js(f"texts({where!r}).join()"), where
    page.js("location.hash = '#<img src=x onerror=alert(1)>'; 1")
    page = visit(html.replace("<main>", bad.removeprefix("</script>") + "<main>"))
    assert page.js("document.title") == "intact" and page.js("all('.stage image').length") == 2


@pytest.fixture
def lab(tmp_path):
    for name in ("jupyterlab", "websocket"):
        pytest.importorskip(name, reason=f"NOT TESTED in JupyterLab: needs {name}")
    one = Lab()
    try:
        one.start(tmp_path, CELL)
        yield one
        one.look("viewer")
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
