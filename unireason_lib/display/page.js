// Shows grounded replies. All data is in the document and nothing is fetched. What models and data
// sets wrote gets into the page as text nodes only.
"use strict";
const one = (selector, root = document) => root.querySelector(selector);
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const data = JSON.parse(one("#data").textContent);
const [list, article, form, dialog] = ["ol", "article", "form", "dialog"].map((name) => one(name));
const drawn = new Set(["svg", "g", "rect", "image", "text", "title"]), SVG = one("svg").namespaceURI;
const several = data.runs.length > 1;
const state = { row: null, z: 0, kept: null }; // the box that was clicked: "run.number"

function make(tag, attributes = {}, ...children) {
  const made = drawn.has(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children.filter((child) => child !== null));
  return made;
}

function colored(number, made) {
  made.style.setProperty("--box", data.colors[(number - 1) % data.colors.length]);
  return made;
}

const rect = (name, [x, y, width, height], more) => make("rect", { class: name, x, y, width, height, ...more });
const replies = (row) => data.runs.map((_, run) => row.replies[run]).filter(Boolean);
const boxes = (reply) => reply.pieces.filter((piece) => piece.place);
const first = (reply) => { // the middle slice of the first box, or of the volume
  const { from, to } = boxes(reply)[0]?.place ?? { from: 0, to: reply.slices.length };
  return (from + to - 1) >> 1;
};
const verdict = (reply) => !reply ? "not in this run" : reply.error ? "failed" : !reply.choice ? "no answer"
  : { true: "right", false: "wrong" }[reply.right] ?? "not judged";
const badge = (reply) => make("span", { class: `badge ${verdict(reply).replaceAll(" ", "-")}` }, verdict(reply));

function image(reply, z) {
  const [width, height] = reply.size, href = `data:image/png;base64,${data.images[reply.slices[z]]}`;
  return make("image", { width, height, preserveAspectRatio: "none", href });
}

function layers(reply, z, run) { // a slice, and the boxes that lie on it
  const side = Math.max(...reply.size) * 0.05, here = (place) => place.from <= z && z < place.to;
  const outlines = ({ at }) => [rect("rim", at), rect("outline", at)];
  const truths = reply.truths.filter(([, place]) => here(place)).map(([name, place]) =>
    make("g", { class: "truth" }, make("title", {}, `true box: ${name}`), ...outlines(place)));
  return [image(reply, z), ...truths, ...boxes(reply).filter(({ place }) => here(place)).map(({ number, words, place }) => {
    const [x, y, width] = place.at, left = number % 2 ? x : x + width - side; // two on one place stay apart
    const tag = make("g", { class: "tag", transform: `translate(${left} ${y}) scale(${side})` },
      rect("", [0, 0, 1, 1]), make("text", { x: 0.5, y: 0.55 }, number));
    const about = make("title", {}, `box ${number} ${words}`);
    return colored(number, make("g", { class: "place", "data-box": `${run}.${number}` }, about, ...outlines(place), tag));
  })];
}

function stage(reply, run) {
  const count = reply.slices.length, places = boxes(reply), rows = Math.max(1, places.length);
  if (!count) return make("p", { class: "muted" }, "No images.");
  const view = { viewBox: `0 0 ${reply.size.join(" ")}`, role: "img", "aria-label": `image with ${places.length} boxes` };
  const figure = make("figure", {}, make("svg", { class: "stage", ...view }));
  if (count === 1) return figure;
  const slider = make("input", { type: "range", min: 0, max: count - 1, "aria-label": "slice" });
  slider.addEventListener("input", () => { state.z = +slider.value; paint(state.z); });
  const spans = make("svg", { class: "spans", viewBox: `0 0 ${count} ${rows}`, preserveAspectRatio: "none", "aria-hidden": true });
  spans.style.height = `${rows / 2}rem`;
  spans.append(...places.map(({ number, place: { from, to } }, i) =>
    colored(number, rect("", [from, i + 0.15, to - from, 0.7], { "data-box": `${run}.${number}` }))), rect("now", [0, 0, 1, rows]));
  figure.append(make("div", { class: "scroll" }, make("output"), slider, spans));
  return figure;
}

function crop(reply, place, z, more) { // cut from the slice, as the model got it
  const name = `crop of slice ${z}`, view = { viewBox: place.cut.join(" "), role: "img", "aria-label": name, "data-z": z, ...more };
  const made = make("svg", view, make("title", {}, name), image(reply, z));
  made.style.aspectRatio = `${place.cut[2]} / ${place.cut[3]}`;
  return made;
}

function written(reply, run) { // the text, and in it the boxes with their crops
  const parts = reply.pieces.flatMap((piece) => {
    if (typeof piece === "string") return [piece];
    const { number, words, status, place, crops } = piece, box = { "data-box": `${run}.${number}` };
    if (!number) return [make("span", { class: "lost" }, `${words} ${status}`)];
    const count = place ? place.to - place.from : 0, last = count > 1 ? `s ${place.from}–${place.to - 1}` : ` ${place?.from}`;
    const slices = make("small", {}, count && reply.slices.length > 1 ? ` slice${last}` : "");
    const cut = Array.from({ length: crops ? count : 0 }, (_, i) => crop(reply, place, place.from + i, box));
    return [colored(number, make("button", { type: "button", class: "box", ...box }, `${number} ${words}`, slices)),
      status && make("span", { class: "lost" }, status),
      crops && make("span", { class: "crops", ...box }, ...(cut.length ? cut : [`${crops} crops`]))].filter(Boolean);
  });
  return make("p", { class: "text", dir: "auto" }, ...(parts.length || reply.error ? parts : ["(nothing written)"]));
}

function section(row, run) {
  const reply = row.replies[run], name = several ? `${data.runs[run]} ` : "";
  const answer = reply?.choice && !row.options.length ? ` ${reply.choice}` : "";
  const heading = make("h3", { dir: "auto" }, name, badge(reply), answer);
  if (!reply) return make("section", {}, heading);
  const error = reply.error ? make("p", { class: "error" }, reply.error) : null;
  const words = make("div", {}, error, written(reply, run), make("p", { class: "muted" }, reply.facts));
  return make("section", { "data-run": run }, heading, make("div", { class: "board" }, stage(reply, run), words));
}

function show(row) {
  Object.assign(state, { row, kept: null });
  items.forEach((item, i) => one("button", item).setAttribute("aria-current", data.rows[i] === row));
  if (!row) return article.replaceChildren(make("p", { class: "muted" }, "No reply passes these filters."));
  const options = row.options.map(([letter, words]) => {
    const by = data.runs.filter((_, run) => row.replies[run]?.choice === letter);
    const chosen = by.length ? make("span", { class: "muted" }, ` ← ${several ? by.join(", ") : "chosen"}`) : null;
    return make("li", { dir: "auto", class: letter === row.truth ? "true" : "" }, `${letter}. ${words}`, chosen);
  });
  if (row.truth && !options.length) options.push(make("li", { dir: "auto", class: "true" }, row.truth));
  const index = data.rows.indexOf(row);
  article.replaceChildren(
    make("h2", { dir: "auto" }, [row.id || `reply ${index + 1}`, row.dimension, row.family].filter(Boolean).join(" · ")),
    make("p", { class: "question", dir: "auto" }, row.question || "(no question)"), make("ul", {}, ...options),
    make("div", { class: several ? "runs" : "" }, ...data.runs.map((_, run) => section(row, run))));
  one("button", items[index]).scrollIntoView({ block: "nearest", inline: "nearest" });
  history.replaceState(null, "", `#${index + 1}`);
  article.scrollTop = 0;
  paint(state.z = first(replies(row)[0]));
}

function paint(z, active = state.kept) { // this slice on every image, a box highlighted wherever it stands
  for (const part of all("[data-run]", article).filter((each) => one(".stage", each))) {
    const run = part.dataset.run, reply = state.row.replies[run], svg = one(".stage", part), scroll = one(".scroll", part);
    const now = String(Math.min(z, reply.slices.length - 1));
    if (svg.dataset.at !== now) svg.replaceChildren(...layers(reply, +now, run));
    svg.dataset.at = now;
    if (!scroll) continue;
    one("input", scroll).value = now;
    one("output", scroll).textContent = `slice ${now} (0–${reply.slices.length - 1})`;
    one(".now", scroll).setAttribute("x", now);
  }
  for (const each of all("[data-box]", article)) each.classList.toggle("active", each.dataset.box === active);
  for (const each of all(".box", article)) each.setAttribute("aria-pressed", each.dataset.box === state.kept);
  for (const each of all(".stage", article)) each.classList.toggle("dim", one(".active", each) !== null);
}

function sliceOf({ dataset }) { // of the crop; of a box the present slice, or its middle one
  const [run, number] = dataset.box.split("."), found = boxes(state.row.replies[run]).find((piece) => piece.number === +number);
  const { from, to } = found?.place ?? { from: state.z, to: state.z + 1 };
  return +(dataset.z ?? (from <= state.z && state.z < to ? state.z : (from + to - 1) >> 1));
}

function keep(target) { // click a box to keep it highlighted, again to let go
  state.z = target ? sliceOf(target) : state.z;
  state.kept = target && (target.dataset.box !== state.kept || target.dataset.z) ? target.dataset.box : null;
  paint(state.z);
  if (state.kept) one(`.box[data-box="${state.kept}"]`, article).scrollIntoView({ block: "nearest" });
}

for (const [name, act] of Object.entries({
  click: keep, pointerover: (box) => paint(sliceOf(box), box.dataset.box), pointerout: () => paint(state.z),
})) article.addEventListener(name, (event) => { const box = event.target.closest("[data-box]"); if (box) act(box); });

// -- all replies: list, filters, keys ---------------------------------------------------------------
const items = data.rows.map((row) => {
  const reply = replies(row).find(({ slices }) => slices.length), size = reply?.size.join(" ") ?? "1 1";
  const button = make("button", { type: "button" },
    make("svg", { viewBox: `0 0 ${size}`, "aria-hidden": true }, ...(reply ? layers(reply, first(reply), "") : [])),
    make("span", {}, ...data.runs.map((_, run) => badge(row.replies[run])), make("b", { dir: "auto" }, row.family || row.id),
      make("span", { dir: "auto" }, row.question)));
  button.addEventListener("click", () => show(row));
  return make("li", {}, button);
});
list.append(...items);

const pickers = [
  ...data.runs.map((name, run) => [several ? name : "Answer", (row) => verdict(row.replies[run])]),
  ["Family", (row) => row.family], ["Dimension", (row) => row.dimension],
].map(([label, read]) => {
  const values = [...new Set(data.rows.map(read))].filter(Boolean).sort();
  const select = make("select", {}, ...["", ...values].map((value) => make("option", { value }, value || "all")));
  if (values.length > 1) one("#pickers").append(make("label", {}, `${label} `, select));
  return (row) => !select.value || read(row) === select.value;
});
one("#iou").hidden = !data.rows.some((row) => replies(row).some(({ iou }) => iou !== null));
one("#difference").hidden = !several;
one("#key").hidden = !data.rows.some((row) => replies(row).some(({ truths }) => truths.length));
const text = data.rows.map((row) => [row.id, row.question, row.options, replies(row).map(({ error, choice, pieces }) => [
  error, choice, pieces.map((piece) => piece.words ?? piece).join("")])].flat(9).join("\n").toLowerCase());
let visible = [];

function filter() {
  const { words, low, high, differ, truths } = form.elements, wanted = words.value.trim().toLowerCase();
  const fits = ({ iou }) => iou !== null && iou >= (low.value || 0) && iou <= (high.value || 1);
  visible = data.rows.filter((row, i) => text[i].includes(wanted) && pickers.every((passes) => passes(row))
    && (!(low.value || high.value) || replies(row).some(fits))
    && (!differ.checked || new Set(data.runs.map((_, run) => row.replies[run]?.choice)).size > 1));
  items.forEach((item, i) => { item.hidden = !visible.includes(data.rows[i]); });
  const right = data.runs.map((name, run) => {
    const judged = visible.map((row) => row.replies[run]).filter((reply) => reply && reply.right !== null);
    return judged.length ? `; ${several ? `${name} ` : ""}${judged.filter((reply) => reply.right).length} of ${judged.length} right` : "";
  });
  one("#count").textContent = `${visible.length} of ${data.rows.length} shown${right.join("")}. ${data.notice}`;
  document.body.classList.toggle("no-truths", !truths.checked);
  if (!visible.includes(state.row)) show(visible[0] ?? null);
}

const step = (by) => show(visible[visible.indexOf(state.row) + by] ?? state.row); // to another reply

function slide(by) { // to another slice
  const count = state.row ? Math.max(...replies(state.row).map(({ slices }) => slices.length)) : 0;
  if (count > 1) paint(state.z = Math.max(0, Math.min(count - 1, state.z + by)));
  return count > 1;
}

function nextBox(by) {
  const buttons = all(".box", article), now = buttons.findIndex((each) => each.dataset.box === state.kept);
  if (buttons.length) keep(buttons[(now + (now < 0 && by < 0 ? 0 : by) + buttons.length) % buttons.length]);
}

function theme() {
  const { dataset } = document.documentElement, dark = matchMedia("(prefers-color-scheme: dark)").matches;
  dataset.theme = (dataset.theme ?? (dark ? "dark" : "light")) === "dark" ? "light" : "dark";
}

const keys = {
  j: () => step(1), ArrowRight: () => step(1), k: () => step(-1), ArrowLeft: () => step(-1),
  ArrowUp: () => slide(1), ArrowDown: () => slide(-1), b: () => nextBox(1), B: () => nextBox(-1), d: theme,
  t: () => form.elements.truths.click(), Escape: () => keep(null), "?": () => dialog.showModal(),
  "/": () => { one("details").open = true; form.elements.words.focus(); },
};
addEventListener("keydown", (event) => {
  const { key, target } = event, typing = target.matches("[type=search], [type=number], select");
  if (typing && key === "Escape") target.blur();
  if (typing || dialog.open || event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(keys, key)) return;
  if (target.type === "range" && key.startsWith("Arrow")) return; // moves the slider itself
  if (keys[key]() !== false) event.preventDefault();
});
form.addEventListener("input", filter);
form.addEventListener("submit", (event) => event.preventDefault());
form.addEventListener("reset", () => setTimeout(filter));
one("#theme").addEventListener("click", theme);
one("#help").addEventListener("click", () => dialog.showModal());
one("details").open = !matchMedia("(max-width: 60rem)").matches;
const asked = () => { const row = data.rows[parseInt(location.hash.slice(1), 10) - 1]; if (row) show(row); };
addEventListener("hashchange", asked);
asked();
filter();
