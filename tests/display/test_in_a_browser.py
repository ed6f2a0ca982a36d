"""The page of replies, and the viewer in JupyterLab, in a real browser that is driven as by a hand."""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

from unireason_lib.display import TracePage

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="NOT TESTED in a browser: needs Chromium or Chrome on the path"
)
ROOT = Path(__file__).parents[2]
SILENT = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
OPTIONS = """--headless --no-sandbox --disable-gpu --no-first-run --disable-dev-shm-usage
    --disable-sync --window-size=1100,1500 --remote-debugging-port=0 --remote-allow-origins=*"""
LAB_OPTIONS = """--no-browser --allow-root --LabApp.expose_app_in_browser=True
    --LabApp.extension_manager=readonly"""
LIGHT, DARK = "rgb(255, 255, 255)", "rgb(13, 17, 23)"
PAGE_STATE = """
window.texts = (selector) => all(selector).map((each) => each.textContent);
window.listed = () => items.filter((item) => !item.hidden).length;
window.active = () => all("[data-box].active", article).map((each) => each.tagName + each.dataset.box);
window.background = () => getComputedStyle(document.body).backgroundColor;
window.pick = (picker, value) => {
    const select = all("#pickers select")[picker];
    select.value = value;
    select.dispatchEvent(new Event("input", { bubbles: true }));
    return listed();
};
window.iou = (low, high) => {
    Object.assign(form.elements.low, { value: low });
    Object.assign(form.elements.high, { value: high });
    filter();
    return listed();
};
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
LAB_STATE = """
window.all = (selector) => [...document.querySelectorAll(selector)];
window.readouts = () => all(".widget-readout").map((e) => e.textContent);
window.image = () => all(".widget-image").map((e) => e.src).join();
window.answers = () => all(".jupyter-widgets tr").map((e) => e.innerText).filter((t) => /^[0-9]+[.]/.test(t));
"""


class Browser:
    """A browser that is driven by its own protocol, as by a hand on mouse and keyboard."""

    def __init__(self, folder, address="about:blank"):
        from websocket import create_connection

        profile, self.sent = folder / "profile", 0
        command = [BROWSER, *OPTIONS.split(), f"--user-data-dir={profile}", address]
        self.process = subprocess.Popen(command, cwd=folder, **SILENT)
        debug = until((profile / "DevToolsActivePort").read_text, "the browser").split()[0]

        def target():
            with urllib.request.urlopen(f"http://127.0.0.1:{debug}/json") as answer:
                return next(one for one in json.load(answer) if one["type"] == "page")

        self.socket = create_connection(until(target, "a page")["webSocketDebuggerUrl"])

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

    def visit(self, html, path, scheme="light", width=1400):
        """Open a page, in light or dark, at a width."""
        path.write_text(html, encoding="utf-8")
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.send("Emulation.setEmulatedMedia", features=features)
        how = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **how)
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=path.as_uri())
        until(lambda: self.js("document.readyState") == "complete", "the page")
        until(lambda: self.js("!!document.querySelector('article h2')"), "a reply")
        self.js(PAGE_STATE)

    def key(self, name, code):
        for kind in ("rawKeyDown", "keyUp"):
            how = {"key": name, "code": name, "windowsVirtualKeyCode": code}
            self.send("Input.dispatchKeyEvent", type=kind, **how)

    def write(self, text):
        self.send("Input.insertText", text=text)

    def mouse(self, selector, click=False):
        """Move the mouse to the middle of an element, and perhaps click."""
        middle = "(({left, top, width, height}) => [left + width / 2, top + height / 2])"
        x, y = self.js(f"{middle}(document.querySelector({selector!r}).getBoundingClientRect())")
        for kind in ("mouseMoved", *(("mousePressed", "mouseReleased") if click else ())):
            how = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **how)

    def screenshot(self, name):
        """A screenshot into the folder SCREENSHOTS, for a human."""
        if folder := os.environ.get("SCREENSHOTS"):
            shot = base64.b64decode(self.send("Page.captureScreenshot")["data"])
            Path(folder, f"{name}.png").write_bytes(shot)


def until(probe, what, seconds=300):
    """What a function gives as soon as that is something."""
    end, error = time.monotonic() + seconds, None
    while time.monotonic() < end:
        try:
            if found := probe():
                return found
        except (OSError, ValueError, StopIteration, AssertionError) as not_yet:
            error = not_yet
        time.sleep(0.1)
    raise AssertionError(f"{what} did not come in {seconds} s: {error}")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    pytest.importorskip("websocket", reason="NOT TESTED in a browser: needs websocket")
    browser = Browser(tmp_path_factory.mktemp("browser"))
    yield browser
    browser.process.terminate()
    browser.process.wait(20)


def test_the_page_filters_steps_and_links_text_to_boxes(
    volume_trace, image_trace, slices, page, tmp_path
):
    volume, image = (one.to_dict() for one in (volume_trace, image_trace))
    volume |= {"truth_boxes": [["cyst", [10, 8, 0, 26, 24, 3]]], "iou_first": 0.3}
    made = TracePage()
    made.add(volume | {"family": "where", "truth": "A"}, slices)
    made.add(image | {"family": "what", "truth": "A"}, slices[:1])
    made.add(image, slices[:1])
    html, path = made.html(), tmp_path / "page.html"
    page.visit(html, path, "dark", 420)
    width = page.js("document.documentElement.scrollWidth")
    assert width <= 420 and not page.js("one('details').open") and page.js("background()") == DARK
    page.visit(html, path)
    look = lambda: page.js("look()")  # noqa: E731
    begin = {"id": "volume", "slice": ["slice 3 (0–7)"], "kept": None, "pressed": 0}
    assert look() == begin | {"places": ["1"], "href": True} and page.js("background()") == LIGHT
    assert page.js("one('#count').textContent") == "3 of 3 shown; 1 of 2 right. "
    assert page.js("all('nav .place').length") == 3, "boxes in the list, too"

    page.key("ArrowUp", 38)
    there = {"slice": ["slice 4 (0–7)"], "places": ["1", "3"], "href": True}
    assert look() == begin | there and not page.js("all('.stage .truth').length")
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
    page.screenshot("page")

    page.key("j", 74)
    assert look()["id"] == "image" and look()["slice"] == [] and look()["places"] == ["1"]
    for name, code in (("ArrowLeft", 37), ("k", 75)):  # the first one stays
        page.key(name, code)
        assert look()["id"] == "volume"
    page.key("/", 191)
    page.write("B. RIGHT")
    assert page.js("listed()") == 2 and look()["id"] == "image"
    page.write("j")
    assert page.js("listed()") == 0 and "No reply passes" in page.js("article.textContent")
    page.mouse("button[type=reset]", click=True)
    until(lambda: page.js("listed()") == 3, "all replies")
    for picker, value in enumerate(("wrong", "where", "3d")):
        assert page.js(f"pick({picker}, {value!r})") == 1 and page.js(f"pick({picker}, '')") == 3
    assert page.js("iou(0.31, '')") == 0 and page.js("iou(0.2, 0.3)") == 1

    page.mouse("#theme", click=True)
    assert page.js("background()") == DARK
    page.mouse("h1", click=True)
    page.key("?", 191)
    assert page.js("dialog.open")
    page.mouse("dialog button", click=True)
    assert not page.js("dialog.open")


def test_two_runs_stand_side_by_side(volume_trace, image_trace, slices, page, tmp_path):
    volume, image = volume_trace.to_dict() | {"truth": "A"}, image_trace.to_dict()
    made = TracePage()
    for run, other in (("first", {}), ("second", {"choice": "B"})):
        made.add(volume | other, slices, run=run)
        made.add(image, slices[:1], run=run)
    page.visit(made.html(), tmp_path / "page.html")
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
    page.screenshot("runs")


def test_markup_of_others_stays_text(slices, page, tmp_path):
    """Where it comes from a reply, as text; where somebody edits the page, the policy stops it."""
    bad = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title = 1\">"
    box = "<|box_start|>[1,2,9,9]<|box_end|>"
    names = dict.fromkeys(["id", "question", "choice", "truth", "family", "error", "patient"], bad)
    line = names | {"options": {bad: bad, "B": "</li></ul>"}, "text": bad + box + bad}
    line["pointings"] = [{"text": box, "box": [1, 2, 9, 9], "status": bad, "crops": []}]
    made = TracePage("intact")
    made.add(line, slices[:1], run=bad)
    made.add(line, slices[:1], run="<b>")
    made.add({"id": "other", "family": "other", "text": "nothing"}, run="<b>")
    html, path = made.html(), tmp_path / "page.html"
    page.visit(html, path)
    assert page.js("document.title") == "intact" and page.js("all('img, script[src]').length") == 0
    assert page.js("all('script').length") == 2
    for where in (".question", ".text", "article li", "nav", ".error", "option", "h3", "h2"):
        assert bad in page.js(f"texts({where!r}).join()"), where
    page.js("location.hash = '#<img src=x onerror=alert(1)>'; 1")
    page.visit(html.replace("<main>", bad.removeprefix("</script>") + "<main>"), path)
    assert page.js("document.title") == "intact" and page.js("all('.stage image').length") == 2


@pytest.fixture
def lab(tmp_path):
    """JupyterLab on a notebook of one cell, whose kernel starts while the page is loaded."""
    for name in ("jupyterlab", "websocket"):
        pytest.importorskip(name, reason=f"NOT TESTED in JupyterLab: needs {name}")
    (tmp_path / "data").symlink_to(ROOT / "data")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(CELL)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "page.ipynb")
    own = {f"JUPYTER_{name}_DIR": str(tmp_path / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {"PYTHONPATH": str(ROOT), "JUPYTER_PREFER_ENV_PATH": "1"}
    command = [sys.executable, "-m", "jupyterlab", *LAB_OPTIONS.split()]
    processes = [subprocess.Popen(command, cwd=tmp_path, env=os.environ | own, **SILENT)]
    session = {"path": "page.ipynb", "name": "", "type": "notebook", "kernel": {"name": "python3"}}

    def server():
        about = next((tmp_path / "RUNTIME").glob("jpserver-*.json"))
        url, token = (json.loads(about.read_text())[name] for name in ("url", "token"))
        headers, body = {"Authorization": f"token {token}"}, json.dumps(session).encode()
        urllib.request.urlopen(urllib.request.Request(f"{url}api/sessions", body, headers))
        return f"{url}lab/tree/page.ipynb?token={token}"

    try:
        browser = Browser(tmp_path, until(server, "the server"))
        processes.append(browser.process)
        yield browser
        browser.screenshot("viewer")
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            process.wait(20)


def test_in_jupyterlab_the_answer_changes_with_the_box_of_the_user(lab):
    kernel = "window.jupyterapp?.shell.currentWidget?.context?.sessionContext.session?.kernel"
    until(lambda: lab.js(f"{kernel}?.status === 'idle'"), "the kernel")
    lab.js(LAB_STATE + "jupyterapp.commands.execute('notebook:run-all-cells'); 1")
    until(lambda: lab.js("readouts().length === 4 && image() !== ''"), "the viewer")

    image, slice_ = lab.js("image()"), lab.js("readouts()[0]")
    lab.js("document.querySelector('.noUi-handle').focus()")
    lab.key("ArrowRight", 39)
    until(lambda: lab.js("image()") != image, "a slice")
    assert (slice_, lab.js("readouts()[0]")) == ("4", "5")

    for number, sides in enumerate(
        (["15 – 22", "32 – 39", "2 – 4"], ["42 – 52", "32 – 41", "1 – 4"]), start=1
    ):
        for readout, text in enumerate(sides, start=1):  # typed into the number beside a slider
            lab.js(f"all('.widget-readout')[{readout}].focus(); document.execCommand('selectAll')")
            lab.write(text)
            lab.key("Enter", 13)
        until(lambda sides=sides: lab.js("readouts().slice(1)") == sides, "the box")
        lab.js("all('button.mod-primary').at(-1).click()")
        until(lambda n=number: len(lab.js("answers()")) == n, "an answer")
    first, second = lab.js("answers()")
    assert "[15, 32, 2, 22, 39, 5]" in first and "[42, 32, 1, 52, 41, 5]" in second
    assert "Horizontally striped" in first and "Checkered" in second
