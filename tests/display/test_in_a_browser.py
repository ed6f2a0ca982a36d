"""The scripts of the page and of the viewer, run in a real browser.

Each test writes a page that drives itself: after everything is set up, a few lines of script click, move and type, and
write what they see into the document, which the browser then prints. They need Chromium or Chrome on the path.
"""

import base64
import functools
import html
import json
import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pytest

from unireason_lib.boxes import Box3D
from unireason_lib.display import SliceViewer, trace_html
from unireason_lib.imaging import Volume, serialize

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium or Chrome on the path")

OPTIONS = (
    "--headless --no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run --disable-dev-shm-usage --virtual-time-budget=4000 --window-size=1000,900"
).split()


def visit(folder, page: str) -> str:
    """The document as the browser has it at the end.

    A browser that does not come up on a busy machine says nothing about the page: it is started again, twice.
    """
    path = folder / "page.html"
    path.write_text(page, encoding="utf-8")
    for attempt in range(3):
        profile = f"--user-data-dir={folder / f'profile{attempt}'}"
        browser = subprocess.Popen(
            [BROWSER, *OPTIONS, profile, "--dump-dom", path.as_uri()],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
            start_new_session=True,
        )
        try:
            document, _ = browser.communicate(timeout=40)
            return document
        except subprocess.TimeoutExpired:
            os.killpg(browser.pid, signal.SIGKILL)  # its helper processes as well
            browser.communicate()
    pytest.fail(f"{BROWSER} did not finish loading a page, three times")


def seen(document: str) -> dict:
    """What the driving script wrote down."""
    found = re.search(r'<pre id="seen">(.*?)</pre>', document, flags=re.S)
    assert found, document[-2000:]
    return json.loads(html.unescape(found[1]))


DRIVE = """
const seen = {};
const report = () => {
  const pre = document.createElement("pre");
  pre.id = "seen";
  pre.textContent = JSON.stringify(seen);
  document.body.append(pre);
};
addEventListener("error", (event) => { seen.error = event.message; });
"""


def driven(page: str, script: str) -> str:
    """The page with a driving script; its own policy, which would forbid that, is taken out."""
    page = re.sub(
        r'<meta http-equiv="Content-Security-Policy"[^>]*>', f"<script>{DRIVE}</script>", page
    )
    return page.replace("</body>", f"<script>{script}\nreport();</script></body>")


def test_the_page_moves_between_slices_boxes_and_steps(volume_trace, slices, tmp_path):
    script = """
    const article = document.querySelector("article");
    const one = (selector) => article.querySelector(selector);
    const slider = one(".scroll input");
    const visible = () => [...article.querySelectorAll(".place")].filter((p) => p.style.display !== "none")
      .map((p) => p.dataset.box);
    const key = () => one(".stage").dataset.slices.split(" ")[slider.value];
    const shown = () => one(".stage image").getAttribute("href") === pictures[key()];
    const button = (n) => one(`button.box[data-box="${n}"]`);
    const active = () => [...article.querySelectorAll(".active")].map((e) => e.tagName.toLowerCase() + e.dataset.box);
    const words = () => one(".scroll output").textContent;
    const now = () => ({ slice: slider.value, words: words(), visible: visible(), shown: shown() });
    const pressed = () => button(3).getAttribute("aria-pressed");
    const move = (z) => { slider.value = z; slider.dispatchEvent(new Event("input")); };

    seen.begin = now();
    move(0); seen.first = now();
    move(4); seen.four = now();
    button(1).dispatchEvent(new MouseEvent("mouseenter")); seen.hover = active();
    button(1).dispatchEvent(new MouseEvent("mouseleave")); seen.left = active();
    move(0); button(3).click(); seen.clicked = { ...now(), active: active(), pressed: pressed() };
    button(3).click(); seen.again = { active: active(), pressed: pressed() };
    seen.crops = [...article.querySelectorAll("img")].map((image) => image.getAttribute("src").slice(0, 15));

    const later = () => [...article.querySelectorAll(".step")].map((s) => s.classList.contains("later"));
    one(".begin").click(); seen.step1 = { later: later(), active: active() };
    one(".steps").dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
    seen.step2 = { later: later(), words: one(".steps output").textContent };
    one(".end").click(); seen.end = { later: later(), on: one(".on").disabled };
    """
    found = seen(visit(tmp_path, driven(trace_html(volume_trace, slices), script)))
    assert "error" not in found
    assert found["begin"] == {"slice": "3", "words": "slice 3", "visible": ["1"], "shown": True}
    assert found["first"] == {"slice": "0", "words": "slice 0", "visible": [], "shown": True}
    assert found["four"]["visible"] == ["1", "3"] and found["four"]["shown"]
    assert sorted(found["hover"]) == ["button1", "g1", "rect1", "span1"] and found["left"] == []
    assert found["clicked"]["slice"] == "5" and found["clicked"]["pressed"] == "true"
    assert "g3" in found["clicked"]["active"]
    assert found["clicked"]["visible"] == ["3"], "slice 5 is the first one after box 1"
    assert found["again"] == {"active": [], "pressed": "false"}
    assert found["crops"] == ["data:image/png;"] * 7
    assert (
        found["step1"]["later"] == [False, True, True, True]
        and "button1" in found["step1"]["active"]
    )
    assert found["step2"] == {"later": [False, False, True, True], "words": "step 2 of 4"}
    assert found["end"] == {"later": [False] * 4, "on": True}


def test_the_page_turns_from_reply_to_reply(volume_trace, picture_trace, slices, tmp_path):
    script = """
    const now = () => [...document.querySelectorAll("article")].map((a) => !a.hidden);
    seen.begin = now();
    document.querySelector(".next").click(); seen.next = now(); seen.hash = location.hash;
    const second = document.querySelectorAll("article")[1];
    seen.picture = second.querySelector(".stage image").getAttribute("href").slice(0, 21);
    const select = document.querySelector("nav select");
    select.value = 0; select.dispatchEvent(new Event("change")); seen.back = now();
    """
    page = trace_html([volume_trace, picture_trace], [slices, slices[:1]])
    found = seen(visit(tmp_path, driven(page, script)))
    assert found == {
        "begin": [True, False],
        "next": [False, True],
        "hash": "#trace-2",
        "picture": "data:image/png;base64",
        "back": [True, False],
    }


def test_the_policy_of_the_page_stops_a_smuggled_script(volume_trace, slices, tmp_path):
    smuggled = "<script>document.title = 'smuggled'</script><img src=x onerror=\"document.title = 'smuggled'\">"
    page = trace_html(volume_trace, slices, title="intact").replace("<main>", smuggled + "<main>")
    document = visit(tmp_path, page)
    assert "<title>intact</title>" in document
    assert re.search(r'<image [^>]*href="data:image/png', document), (
        "the page's own script must run"
    )


@functools.cache
def stack():
    array = np.arange(10 * 30 * 20, dtype=np.float32).reshape(10, 30, 20)
    affine = np.array([[-0.7, 0, 0, 20], [0, -0.9, 0, 30], [0, 0, 3, -40], [0, 0, 0, 1]])
    return serialize(Volume(array, affine), size=(8, 40, 48), window=(0, 6000))


def mounted(viewer, script: str) -> str:
    """A page that mounts the widget's module with a model of the few methods that it may use."""
    names = "shape range to_voxel to_mm oriented boxes width index window chosen picked".split()
    state = json.dumps({name: getattr(viewer, name) for name in names})
    module = base64.b64encode(viewer._esm.encode()).decode()
    return f"""<!DOCTYPE html><html><head><meta charset="utf-8"><style>{viewer._css}</style></head>
    <body><div id="host"></div><script>{DRIVE}</script><script type="module">
    import widget from "data:text/javascript;base64,{module}";
    const state = {state};
    const bytes = atob("{base64.b64encode(viewer.pixels).decode()}");
    state.pixels = new DataView(Uint8Array.from(bytes, (c) => c.charCodeAt(0)).buffer);
    const listeners = {{}};
    let saved = 0;
    const model = {{
      get: (name) => state[name],
      set: (name, value) => {{ state[name] = value; (listeners["change:" + name] ?? []).forEach((f) => f()); }},
      save_changes: () => {{ saved += 1; }},
      on: (name, f) => (listeners[name] ??= []).push(f),
      off: (name, f) => {{ listeners[name] = (listeners[name] ?? []).filter((g) => g !== f); }},
    }};
    const host = document.getElementById("host");
    const stop = widget.render({{ model, el: host }});
    const one = (selector) => host.querySelector(selector);
    const canvas = one("canvas");
    const grey = (x, y) => canvas.getContext("2d").getImageData(x, y, 1, 1).data[0];
    const at = (type, x, y) => {{
      const area = canvas.getBoundingClientRect();
      const clientX = area.left + ((x + 0.5) / canvas.width) * area.width;
      const clientY = area.top + ((y + 0.5) / canvas.height) * area.height;
      return new MouseEvent(type, {{ clientX, clientY, bubbles: true }});
    }};
    const key = (name) => {{
      const event = new KeyboardEvent("keydown", {{ key: name, bubbles: true, cancelable: true }});
      one(".slice-viewer").dispatchEvent(event);
    }};
    const numbers = (rect) => ["x", "y", "width", "height"].map((name) => +rect.getAttribute(name));
    const rects = () => [...host.querySelectorAll("svg.boxes rect:not(.rim)")].map(numbers);
    {script}
    report();
    </script></body></html>"""


def test_the_viewer_shows_pixels_boxes_and_places(tmp_path):
    viewer = SliceViewer(
        stack(), {"one": Box3D(4, 6, 2, 20, 30, 5), "two <b>": Box3D(0, 0, 6, 9, 9, 8)}
    )
    script = """
    seen.begin = { index: state.index, rects: rects(), grey: [grey(0, 0), grey(30, 20), grey(47, 39)] };
    one(".stage").dispatchEvent(at("pointermove", 13, 7)); seen.place = one(".readout").textContent;
    key("ArrowUp"); seen.follows = one(".readout").textContent; key("ArrowDown");
    one(".stage").dispatchEvent(at("click", 30, 20)); seen.picked = state.picked;
    seen.sides = [...host.querySelectorAll(".side")].map((s) => s.textContent);
    seen.focus = document.activeElement === one(".slice-viewer");
    const wheel = new WheelEvent("wheel", { deltaY: 100, bubbles: true, cancelable: true });
    one(".stage").dispatchEvent(wheel); seen.wheel = [state.index, wheel.defaultPrevented];
    document.activeElement.blur();
    const other = new WheelEvent("wheel", { deltaY: 100, bubbles: true, cancelable: true });
    one(".stage").dispatchEvent(other); seen.unfocused = [state.index, other.defaultPrevented];
    """
    found = seen(visit(tmp_path, mounted(viewer, script)))
    pixels = stack().pixels
    assert found["begin"]["index"] == 3 and found["begin"]["rects"] == [[4, 6, 16, 24]]
    assert found["begin"]["grey"] == [int(pixels[3, y, x]) for x, y in ((0, 0), (30, 20), (47, 39))]
    centre = np.array([13.5, 7.5, 3.5, 1])
    voxel, mm = np.array(viewer.to_voxel) @ centre - 0.5, np.array(viewer.to_mm) @ centre
    letters = [pair[int(value >= 0)] for pair, value in zip(("LR", "PA", "IS"), mm, strict=True)]
    lines = found["place"].splitlines()
    assert lines[0].startswith("pixel 13, 7  slice 3  value about ")
    assert abs(float(lines[0].split()[-1]) - stack().values[3, 7, 13] * 6000) < 6000 / 255
    assert lines[1] == "voxel " + ", ".join(f"{value:.1f}" for value in voxel)
    assert lines[2].split() == [
        "mm",
        *(w for pair in zip(letters, (f"{abs(v):.1f}" for v in mm), strict=True) for w in pair),
    ]
    assert found["follows"].startswith("pixel 13, 7  slice 4 ")
    assert found["picked"] == [30, 20, 3]
    assert found["sides"] == ["R", "L", "A", "P"]
    assert found["focus"] and found["wheel"] == [4, True] and found["unfocused"] == [4, False]


def test_the_viewer_obeys_keys_sliders_legend_and_python(tmp_path):
    viewer = SliceViewer(
        stack(), {"one": Box3D(4, 6, 2, 20, 30, 5), "two <b>": Box3D(0, 0, 6, 9, 9, 8)}
    )
    script = """
    key("ArrowUp"); key("ArrowUp"); key("ArrowUp"); seen.keys = { index: state.index, rects: rects(), saved };
    key("End"); key("ArrowUp"); seen.end = state.index;
    key("Home"); key("PageUp"); seen.page = state.index;
    const slider = one('input[aria-label="slice"]');
    slider.value = 1; slider.dispatchEvent(new Event("input")); seen.slider = [state.index, one("output").textContent];
    const [first, second] = host.querySelectorAll(".legend button");
    seen.names = [first.textContent, second.textContent];
    second.click(); seen.legend = [state.index, state.chosen, host.querySelector(".chosen") !== null];
    model.set("index", 3); seen.python = rects();
    model.set("window", [1000, 1001]); seen.window = [grey(0, 0), grey(47, 39)];
    const low = one('input[aria-label="window from"]');
    low.value = 5000; low.dispatchEvent(new Event("input"));
    seen.pushed = state.window[0] < state.window[1];
    stop(); model.set("index", 0); seen.stopped = rects();
    """
    found = seen(visit(tmp_path, mounted(viewer, script)))
    pixels = stack().pixels
    assert found["keys"] == {"index": 6, "rects": [[0, 0, 9, 9]], "saved": 3}
    assert (found["end"], found["page"]) == (7, 5)
    assert found["slider"] == [1, "1 of 0–7"]
    assert found["names"] == ["one", "two <b>"]
    assert found["legend"] == [6, 1, True]
    assert found["python"] == [[4, 6, 16, 24]]
    assert found["window"] == [
        255 * int(6000 / 255 * pixels[3, y, x] >= 1001) for x, y in ((0, 0), (47, 39))
    ]
    assert found["pushed"]
    assert found["stopped"] == [[4, 6, 16, 24]], "a removed view no longer draws"
