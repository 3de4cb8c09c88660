"use strict";
(() => {
const every = (what, inside = document) => [...inside.querySelectorAll(what)];
const SVG = "http://www.w3.org/2000/svg";
const MOST_NAMES = 12;

function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const tools = document.getElementById("tools");
const wanted = matchMedia("(prefers-reduced-motion: no-preference)").matches;

// What is looked for: all that has a key, charts and rows of tables.

const keyed = every("main [data-key]").filter(one => !one.parentElement.closest("[data-key]"));
if (keyed.length > 1) {
  const count = make("output", {});
  const find = make("input", {type: "search", id: "find", placeholder: "all", size: "18"});
  find.addEventListener("input", () => {
    const text = find.value.trim().toLowerCase();
    for (const one of keyed) one.hidden = !one.dataset.key.toLowerCase().includes(text);
    const names = new Set(keyed.filter(one => !one.hidden).map(one => one.dataset.key));
    count.textContent = text ? names.size + " found" : "";
  });
  tools.append(make("label", {}, "Metrics ", find, count));
}

// Curves by step or by time: both are on the page, one is shown.

const axes = [...new Set(every("[data-axis]").map(one => one.dataset.axis))].sort();
if (axes.length > 1) {
  const shown = every("[data-axis]").find(one => !one.hidden);
  const group = make("span", {role: "group", "aria-label": "Curves over"});
  for (const axis of axes) {
    const button = make("button", {type: "button", "aria-pressed": shown && shown.dataset.axis === axis, "data-shows": axis}, "by " + axis);
    button.addEventListener("click", () => {
      for (const one of every("[data-axis]")) one.hidden = one.dataset.axis !== axis;
      for (const one of every("button", group)) one.setAttribute("aria-pressed", one === button);
    });
    group.append(button, " ");
  }
  tools.append(group);
}

// Clips play while they can be seen; those that stand in one row begin together.

const clips = every("main video");
if (clips.length) {
  let plays = wanted;
  const seen = new Set();
  const button = make("button", {type: "button", id: "play"});
  const say = () => { button.textContent = plays ? "Pause clips" : "Play clips"; };
  const start = clip => { if (plays) clip.play().catch(() => {}); };
  const together = clip => {
    const row = clip.closest("tr, .media-row");
    for (const one of row ? every("video", row) : [clip]) {
      if (!seen.has(one)) continue;
      one.currentTime = 0;
      start(one);
    }
  };
  const watch = new IntersectionObserver(found => {
    for (const {target, isIntersecting} of found) {
      if (isIntersecting) { target.preload = "auto"; seen.add(target); together(target); } else { seen.delete(target); target.pause(); }
    }
  }, {rootMargin: "80px"});
  for (const clip of clips) watch.observe(clip);
  button.addEventListener("click", () => {
    plays = !plays;
    for (const one of seen) if (plays) together(one); else one.pause();
    say();
  });
  say();
  tools.append(button);
}
tools.hidden = !tools.children.length;

// What stands under the pointer.

const known = new WeakMap();
function data(chart) {
  if (!known.has(chart)) known.set(chart, JSON.parse(chart.querySelector("script").textContent));
  return known.get(chart);
}

/* The place in rising numbers that is nearest to one; of equal ones the last, which counts. */
function nearest(numbers, to) {
  let low = 0, high = numbers.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (numbers[middle] < to) low = middle + 1; else high = middle;
  }
  if (low && to - numbers[low - 1] < numbers[low] - to) return low - 1;
  while (numbers[low + 1] === numbers[low]) low += 1;
  return low;
}

const part = (value, [low, high]) => (value / 2 - low / 2) / (high / 2 - low / 2);
const text = value => Number.isSafeInteger(value) ? value.toLocaleString("en") : String(value);

function leave(chart) {
  for (const one of every(".dot, .tip", chart)) one.remove();
}

/* Of each line the point nearest to the pointer; of lines that end elsewhere none. */
function under(held, x) {
  const [left, , right] = held.box, reach = (held.x[1] / 2 - held.x[0] / 2) * 2 / (right - left) * 12;
  const found = held.lines.filter(one => one.x.length).map(one => ({line: one, at: nearest(one.x, x)}));
  const best = Math.min(...found.map(({line, at}) => Math.abs(line.x[at] - x)));
  return found.filter(({line, at}) => Math.abs(line.x[at] - x) <= best + reach);
}

const look = line => "c" + line.colour + (line.dash ? " d" + line.dash : "");

function move(chart, event) {
  leave(chart);
  const held = data(chart), svg = chart.querySelector("svg"), size = svg.getBoundingClientRect();
  const [left, top, right, bottom] = held.box;
  const here = (event.clientX - size.left) / size.width * svg.viewBox.baseVal.width;
  if (here < left - 6 || here > right + 6) return;
  const share = (here - left) / (right - left);
  const found = under(held, held.x[0] * (1 - share) + held.x[1] * share);
  if (!found.length) return;
  const tip = make("div", {class: "tip", role: "status"});
  for (const {line, at} of found) {
    const x = left + (right - left) * part(line.x[at], held.x);
    const dot = document.createElementNS(SVG, "circle");
    const place = {class: "dot " + look(line), r: 4, cx: x, cy: bottom - (bottom - top) * part(line.y[at], held.y)};
    for (const [name, one] of Object.entries(place)) dot.setAttribute(name, one);
    svg.append(dot);
  }
  for (const {line, at} of found.slice(0, MOST_NAMES)) {
    const where = text(line.x[at]) + (held.unit ? " " + held.unit : "");
    tip.append(make("div", {class: look(line)}, line.label + ": " + text(line.y[at]) + " at " + where));
  }
  if (found.length > MOST_NAMES) tip.append(make("div", {}, "and " + (found.length - MOST_NAMES) + " more"));
  chart.append(tip);
  const box = chart.getBoundingClientRect(), room = box.width - tip.offsetWidth - 8;
  tip.style.left = Math.max(4, Math.min(event.clientX - box.left + 14, room)) + "px";
  tip.style.top = Math.max(4, event.clientY - box.top - tip.offsetHeight - 12) + "px";
}

for (const chart of every("figure.chart:has(svg)")) {
  const svg = chart.querySelector("svg");
  svg.addEventListener("pointermove", event => move(chart, event));
  svg.addEventListener("pointerleave", () => leave(chart));
}
})();
