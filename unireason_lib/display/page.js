// Replays grounded replies. All data is in the document; nothing is fetched.
"use strict";
const images = JSON.parse(document.getElementById("images").textContent);
const articles = [...document.querySelectorAll("article")];

function fill(root) {
  // Images are kept once, however often they are shown.
  for (const image of root.querySelectorAll("[data-image]")) {
    const attribute = image.tagName.toLowerCase() === "img" ? "src" : "href";
    image.setAttribute(attribute, images[image.dataset.image]);
    image.removeAttribute("data-image");
  }
}

function start(article) {
  const all = (selector) => [...article.querySelectorAll(selector)];
  const stage = article.querySelector(".stage");
  const slider = article.querySelector(".scroll input");
  const slices = stage ? stage.dataset.slices.split(" ") : [];
  let pinned = null;

  function showSlice(z) {
    if (!stage) return;
    stage.querySelector("image").setAttribute("href", images[slices[z]]);
    for (const place of all(".place")) {
      place.toggleAttribute("hidden", z < +place.dataset.from || z >= +place.dataset.to);
      place.style.display = place.hasAttribute("hidden") ? "none" : "";
    }
    if (!slider) return;
    slider.value = z;
    slider.setAttribute("aria-valuetext", `slice ${z}`);
    article.querySelector(".scroll output").textContent = `slice ${z}`;
    article.querySelector(".spans .now").setAttribute("x", z);
  }

  function activate(number) {
    for (const one of all("[data-box]")) one.classList.toggle("active", one.dataset.box === number);
    if (stage) stage.classList.toggle("some-active", stage.querySelector(".place.active") !== null);
  }

  function visit(number) {
    // Shows a box: highlights it, and moves to a slice on which it lies.
    activate(number);
    const place = all(".place").find((one) => one.dataset.box === number);
    if (!place || !slider) return;
    const [from, to] = [+place.dataset.from, +place.dataset.to];
    const now = +slider.value;
    if (now < from || now >= to) showSlice(Math.floor((from + to - 1) / 2));
  }

  function pin(number) {
    pinned = pinned === number ? null : number;
    for (const button of all("button.box")) {
      button.setAttribute("aria-pressed", String(button.dataset.box === pinned));
    }
    if (pinned) visit(pinned); else activate(null);
  }

  for (const button of all("button.box")) {
    button.addEventListener("click", () => pin(button.dataset.box));
    for (const name of ["mouseenter", "focus"]) button.addEventListener(name, () => activate(button.dataset.box));
    for (const name of ["mouseleave", "blur"]) button.addEventListener(name, () => activate(pinned));
  }
  for (const place of all(".place")) {
    place.addEventListener("click", () => pin(place.dataset.box));
    place.addEventListener("mouseenter", () => activate(place.dataset.box));
    place.addEventListener("mouseleave", () => activate(pinned));
  }
  if (slider) slider.addEventListener("input", () => showSlice(+slider.value));

  // Step by step: what was written so far, and where it pointed last.
  const steps = all(".step");
  const controls = article.querySelector(".steps");
  let step = steps.length;

  function goTo(next) {
    step = Math.max(1, Math.min(steps.length, next));
    steps.forEach((one, i) => one.classList.toggle("later", i >= step));
    controls.querySelector("output").textContent = `step ${step} of ${steps.length}`;
    controls.querySelector(".back").disabled = step <= 1;
    controls.querySelector(".on").disabled = step >= steps.length;
    const box = steps[step - 1].querySelector("button.box");
    pinned = null;
    pin(box ? box.dataset.box : null);
  }

  if (controls) {
    controls.hidden = false;
    controls.querySelector("output").textContent = `step ${step} of ${step}`;
    controls.querySelector(".begin").addEventListener("click", () => goTo(1));
    controls.querySelector(".back").addEventListener("click", () => goTo(step - 1));
    controls.querySelector(".on").addEventListener("click", () => goTo(step + 1));
    controls.querySelector(".end").addEventListener("click", () => goTo(steps.length));
    controls.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (by) { event.preventDefault(); goTo(step + by); }
    });
  }

  fill(article);
  if (stage) showSlice(slider ? +slider.value : 0);
}

const started = new Set();

function show(index) {
  articles.forEach((article, i) => { article.hidden = i !== index; });
  if (!started.has(index)) { started.add(index); start(articles[index]); }
}

const nav = document.querySelector("nav");
if (nav) {
  const select = nav.querySelector("select");
  const turn = (index) => {
    const to = Math.max(0, Math.min(articles.length - 1, index));
    select.value = to;
    nav.querySelector(".previous").disabled = to === 0;
    nav.querySelector(".next").disabled = to === articles.length - 1;
    history.replaceState(null, "", `#trace-${to + 1}`);
    show(to);
  };
  nav.hidden = false;
  select.addEventListener("change", () => turn(+select.value));
  nav.querySelector(".previous").addEventListener("click", () => turn(+select.value - 1));
  nav.querySelector(".next").addEventListener("click", () => turn(+select.value + 1));
  const asked = () => Math.max(0, (parseInt(location.hash.replace("#trace-", ""), 10) || 1) - 1);
  addEventListener("hashchange", () => turn(asked()));
  turn(asked());
} else if (articles.length) {
  show(0);
}
