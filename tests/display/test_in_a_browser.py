"""The script of the page in a real browser: a script clicks and writes down what it sees."""

import html
import json
import re
import shutil
import subprocess

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
