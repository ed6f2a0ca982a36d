// Scrolls through the slices of a volume. Pixels arrive once, as one block of bytes; windowing and scrolling happen here.

const SIDES = ["R", "L", "A", "P"];

function make(tag, attributes = {}, ...children) {
  const svg = tag === "svg" || tag === "rect" || tag === "g";
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  node.append(...children);
  return node;
}

// A point given on edges (x, y, z) through a 3 x 4 matrix.
function through(matrix, point) {
  return matrix.map((row) => row[0] * point[0] + row[1] * point[1] + row[2] * point[2] + row[3]);
}

// World millimetres grow to the right, the front and the head.
function words(mm) {
  const letters = [["L", "R"], ["P", "A"], ["I", "S"]];
  return mm.map((value, i) => `${letters[i][value >= 0 ? 1 : 0]} ${Math.abs(value).toFixed(1)}`).join("  ");
}

function render({ model, el }) {
  const [depth, height, width] = model.get("shape");
  const raw = model.get("pixels");
  const pixels = new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength);
  const [lowest, highest] = model.get("range");
  const toVoxel = model.get("to_voxel");
  const toMm = model.get("to_mm");
  const scan = (grey) => lowest + (grey / 255) * (highest - lowest);

  const canvas = make("canvas", { width, height });
  const overlay = make("svg", { class: "boxes", viewBox: `0 0 ${width} ${height}`, preserveAspectRatio: "none" });
  const stage = make("div", { class: "stage" }, canvas, overlay);
  if (model.get("oriented")) for (const side of SIDES) stage.append(make("span", { class: `side ${side}` }, side));
  const rows = make("div", { class: "rows" });
  const readout = make("div", { class: "readout", "aria-live": "polite" });
  const legend = make("div", { class: "legend", role: "group", "aria-label": "boxes" });
  const root = make("div", { class: "slice-viewer", tabindex: "0", role: "group",
    "aria-label": `slice viewer, ${depth} slices; arrow keys change the slice` }, stage, rows, legend, readout);
  root.style.setProperty("--width", `${model.get("width")}px`);

  function slider(name, min, max, step, change) {
    const input = make("input", { type: "range", min, max, step, "aria-label": name });
    const output = make("output");
    input.addEventListener("input", () => change(Number(input.value)));
    rows.append(make("span", {}, name), input, output);
    return { input, output };
  }

  const save = (name, value) => { model.set(name, value); model.save_changes(); };
  const step = (highest - lowest) / 255;
  const slice = slider("slice", 0, depth - 1, 1, (z) => save("index", z));
  const low = slider("window from", lowest, highest, step, (from) => {
    save("window", [from, Math.max(from + step, model.get("window")[1])]);
  });
  const high = slider("window to", lowest, highest, step, (to) => {
    save("window", [Math.min(to - step, model.get("window")[0]), to]);
  });
  const number = (value) => (highest - lowest > 20 ? value.toFixed(0) : value.toFixed(2));
  const clamp = (z) => Math.max(0, Math.min(depth - 1, z));

  let under = null; // x and y of the pixel that is told about

  const context = canvas.getContext("2d");
  const image = context.createImageData(width, height);
  const painted = new Uint32Array(image.data.buffer);

  function draw() {
    const z = clamp(model.get("index"));
    const [from, to] = model.get("window");
    const colors = new Uint32Array(256);
    for (let i = 0; i < 256; i++) {
      const share = Math.max(0, Math.min(1, (scan(i) - from) / Math.max(to - from, 1e-12)));
      colors[i] = 0xff000000 + Math.round(255 * share) * 0x010101;
    }
    const offset = z * width * height;
    for (let i = 0; i < painted.length; i++) painted[i] = colors[pixels[offset + i]];
    context.putImageData(image, 0, 0);
    [slice.input.value, slice.output.textContent] = [z, `${z} of 0–${depth - 1}`];
    [low.input.value, low.output.textContent] = [from, number(from)];
    [high.input.value, high.output.textContent] = [to, number(to)];

    overlay.replaceChildren();
    model.get("boxes").forEach(({ box, color }, i) => {
      const [x1, y1, z1, x2, y2, z2] = box;
      if (z < Math.floor(z1) || z >= Math.ceil(z2)) return;
      const place = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
      const group = make("g", { class: i === model.get("chosen") ? "chosen" : "" },
        make("rect", { class: "rim", ...place }), make("rect", place));
      group.style.setProperty("--box", color);
      overlay.append(group);
    });
    tell(under);
  }

  function list() {
    legend.replaceChildren();
    model.get("boxes").forEach(({ box, name, color }, i) => {
      const button = make("button", { type: "button", "aria-pressed": String(i === model.get("chosen")),
        title: `go to slice ${Math.floor((box[2] + box[5] - 1) / 2)}` }, name);
      button.style.setProperty("--box", color);
      button.addEventListener("click", () => {
        model.set("index", clamp(Math.floor((box[2] + box[5] - 1) / 2)));
        save("chosen", i === model.get("chosen") ? -1 : i);
      });
      legend.append(button);
    });
  }

  // What lies under the pointer, by the centre of its pixel.
  function pixelAt(event) {
    const area = canvas.getBoundingClientRect();
    const x = Math.floor(((event.clientX - area.left) / area.width) * width);
    const y = Math.floor(((event.clientY - area.top) / area.height) * height);
    return x < 0 || y < 0 || x >= width || y >= height ? null : [x, y];
  }

  function tell(at) {
    under = at;
    if (!at) { readout.textContent = ""; return; }
    const [x, y] = at;
    const z = clamp(model.get("index"));
    const centre = [x + 0.5, y + 0.5, z + 0.5];
    const lines = [`pixel ${x}, ${y}  slice ${z}  value about ${number(scan(pixels[(z * height + y) * width + x]))}`];
    if (toVoxel.length) lines.push(`voxel ${through(toVoxel, centre).map((v) => (v - 0.5).toFixed(1)).join(", ")}`);
    if (toMm.length) lines.push(`mm    ${words(through(toMm, centre))}`);
    readout.textContent = lines.join("\n");
  }

  stage.addEventListener("pointermove", (event) => tell(pixelAt(event)));
  stage.addEventListener("pointerleave", () => tell(model.get("picked").length ? model.get("picked") : null));
  stage.addEventListener("click", (event) => {
    root.focus({ preventScroll: true });
    const at = pixelAt(event);
    if (at) { tell(at); save("picked", [...at, clamp(model.get("index"))]); }
  });
  stage.addEventListener("wheel", (event) => {
    // Only after a click: a notebook must go on scrolling past the viewer.
    const focused = el.getRootNode().activeElement;
    if (!focused || !root.contains(focused)) return;
    event.preventDefault();
    save("index", clamp(model.get("index") + Math.sign(event.deltaY)));
  }, { passive: false });
  root.addEventListener("keydown", (event) => {
    if (event.target !== root) return;
    const z = model.get("index");
    const to = { ArrowUp: z + 1, ArrowRight: z + 1, ArrowDown: z - 1, ArrowLeft: z - 1, PageUp: z + 5, PageDown: z - 5,
      Home: 0, End: depth - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    save("index", clamp(to));
  });

  const all = () => { list(); draw(); };
  model.on("change:index", draw);
  model.on("change:window", draw);
  model.on("change:boxes", all);
  model.on("change:chosen", all);
  el.append(root);
  all();
  return () => {
    model.off("change:index", draw);
    model.off("change:window", draw);
    model.off("change:boxes", all);
    model.off("change:chosen", all);
  };
}

export default { render };
