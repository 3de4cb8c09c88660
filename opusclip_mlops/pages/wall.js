"use strict";
(() => {
const data = JSON.parse(document.getElementById("content").textContent);
const at = id => document.getElementById(id);
const MOST_COLUMNS = Math.max(2, Math.min(6, Math.floor((innerWidth - 230) / 236)));
const LATE_S = 0.25, SEEK_MS = 2000, LOAD_MARGIN = "300px";

function make(tag, attributes, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null) made.setAttribute(name, value);
  }
  made.append(...children.filter(one => one !== null && one !== ""));
  return made;
}

// Films: blobs of what the page holds.

const addresses = new Map();
function address(film) {
  if (!addresses.has(film)) {
    const held = at("film-" + film), text = atob(held.textContent);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const type = bytes[0] === 0x1a && bytes[1] === 0x45 ? "video/webm" : "video/mp4";
    addresses.set(film, URL.createObjectURL(new Blob([bytes], {type})));
    held.remove();
  }
  return addresses.get(film);
}

const sizes = data.columns.flatMap(one => one.cells).filter(one => one.size).map(one => one.size);
const rates = new Map();
for (const [, fps] of sizes) rates.set(fps, (rates.get(fps) || 0) + 1);
const FPS = [...rates].sort((a, b) => b[1] - a[1] || b[0] - a[0]).map(one => one[0])[0] || 8;
const LENGTH_S = Math.max(0, ...sizes.map(([frames, fps]) => frames / fps));
const FRAMES = Math.max(1, Math.round(LENGTH_S * FPS));

/* A clip on the wall. It has a <video> only while it is near to what can be seen. */
class Player {
  constructor(cell, box, label) {
    [this.frames, this.fps] = cell.size;
    this.film = cell.film;
    this.box = box;
    this.label = label;
    this.video = null;
    this.frame = -1;
    this.jumped = 0;
    box.player = this;
  }
  get length() { return this.frames / this.fps; }
  open() {
    const video = make("video", {playsinline: true, preload: "auto", "aria-label": this.label, disablepictureinpicture: true});
    video.muted = true;
    video.src = address(this.film);
    video.addEventListener("error", () => {
      if (this.video === video && !this.box.querySelector(".why")) this.box.append(make("span", {class: "why"}, "this browser cannot play it"));
    });
    this.video = video;
    this.box.prepend(video);
    if (video.requestVideoFrameCallback) {
      const note = (_, shown) => {
        this.frame = Math.round(shown.mediaTime * this.fps);
        if (this.video === video) video.requestVideoFrameCallback(note);
      };
      video.requestVideoFrameCallback(note);
    }
  }
  close() {
    if (!this.video) return;
    this.video.pause();
    this.video.removeAttribute("src");
    this.video.load();
    this.video.remove();
    this.video = null;
    this.frame = -1;
  }
  /* The middle of the frame that is shown at a time: no rounding leads to its neighbour. */
  middle(time) {
    const frame = Math.min(this.frames - 1, Math.max(0, Math.floor(time * this.fps + 1e-6)));
    return (frame + 0.5) / this.fps;
  }
  seek(time) {
    const video = this.video, wanted = this.middle(time);
    if (!video || video.error) return Promise.resolve();
    if (!video.seeking && video.readyState > 1 && Math.abs(video.currentTime - wanted) < 1e-4) return Promise.resolve();
    return new Promise(done => {
      const end = () => { clearTimeout(timer); video.removeEventListener("seeked", end); video.removeEventListener("error", end); done(); };
      const timer = setTimeout(end, SEEK_MS);
      video.addEventListener("seeked", end);
      video.addEventListener("error", end);
      video.currentTime = wanted;
    });
  }
  /* Keep to the clock: a little faster or slower for little, a jump for much. */
  follow(time) {
    const video = this.video;
    if (!video || video.seeking || video.readyState < 2) return;
    if (time >= this.length) {
      if (!video.paused || Math.abs(video.currentTime - this.middle(this.length)) > 1e-3) {
        video.pause();
        video.currentTime = this.middle(this.length);
      }
      return;
    }
    if (video.paused) { video.currentTime = this.middle(time); video.play().catch(() => {}); return; }
    const ahead = video.currentTime - time, now = performance.now();
    if (Math.abs(ahead) > Math.max(LATE_S, 2 / this.fps) && now - this.jumped > 400) {
      this.jumped = now;
      video.currentTime = Math.min(time + 0.02, this.length - 0.01);
      return;
    }
    const bend = Math.abs(ahead) < 0.15 / this.fps ? 0 : Math.max(-0.3, Math.min(0.3, 3 * ahead));
    const rate = Math.max(0.0625, Math.min(8, clock.speed * (1 - bend)));
    if (Math.abs(video.playbackRate - rate) > 0.004) video.playbackRate = rate;
  }
}

// The one clock, in seconds of the clips.

const clock = {
  base: 0, since: 0, speed: 1, playing: false, held: false, turn: 0,
  time() {
    const runs = this.playing && !this.held;
    return this.base + (runs ? (performance.now() - this.since) / 1000 * this.speed : 0);
  },
  frame() { return Math.min(FRAMES - 1, Math.max(0, Math.floor(this.time() * FPS + 1e-6))); },
};
const shown = new Set();  // players near to what can be seen

/* Bring all to one frame, and go on from there together. */
async function goTo(frame) {
  const turn = ++clock.turn, time = (frame + 0.5) / FPS;
  clock.held = true;
  clock.base = time;
  tell("seeking");
  for (const one of shown) if (one.video) one.video.pause();
  await Promise.all([...shown].map(one => one.seek(time)));
  if (turn !== clock.turn) return;
  if (clock.playing) {
    for (const one of shown) if (one.video && time < one.length) { one.video.playbackRate = clock.speed; one.video.play().catch(() => {}); }
    clock.since = performance.now();
  }
  clock.held = false;
  tell(clock.playing ? "playing" : "paused");
}
function tell(state) {
  document.body.dataset.state = state;
  document.body.dataset.frame = clock.frame();
  document.body.dataset.turn = clock.turn;
}
function play(goes) {
  const frame = clock.frame();
  clock.playing = goes;
  const word = goes ? "❚❚ Pause" : "▶ Play";
  at("play").textContent = word;
  return goTo(goes && frame >= FRAMES - 1 ? 0 : frame);
}
function scrubTo(frame) {
  if (clock.playing) { clock.playing = false; at("play").textContent = "▶ Play"; }
  return goTo(Math.min(FRAMES - 1, Math.max(0, frame)));
}

const watcher = new IntersectionObserver(entries => {
  let changed = false;
  for (const entry of entries) {
    const player = entry.target.player;
    if (!player) continue;
    if (entry.isIntersecting && !player.video) { player.open(); shown.add(player); changed = true; }
    if (!entry.isIntersecting && player.video) { shown.delete(player); player.close(); }
  }
  if (changed && !(clock.playing && !clock.held)) goTo(clock.frame());
}, {rootMargin: LOAD_MARGIN});

// The columns that are shown, and the two that are compared.

const view = {columns: [], how: "", a: 0, b: 0, gain: 2, split: 0.5};
const runs = [...new Set(data.columns.map(one => one.run))];
const several = runs.length > 1;
const nameOf = column => (several ? column.run + ", " : "") + "step " + column.step.toLocaleString("en");

function evenly(count, of) {
  if (of <= count) return [...Array(of).keys()];
  return [...new Set(Array.from({length: count}, (_, i) => Math.round(i * (of - 1) / (count - 1))))];
}
const of = run => data.columns.flatMap((one, index) => one.run === run ? [index] : []);
const ends = own => [...new Set([own[0], own[own.length - 1]])];
function first() {
  // Of each run the last, the first, what is marked, then what lies between; the runs in turn.
  const queues = runs.map(run => {
    const own = of(run), marked = own.filter(index => data.columns[index].marks.length);
    const between = evenly(Math.max(2, MOST_COLUMNS - marked.length), own.length).map(at => own[at]);
    return [...new Set([...ends(own).reverse(), ...marked, ...between])];
  });
  const picked = [];
  for (let turn = 0; queues.some(queue => turn < queue.length); turn++)
    for (const queue of queues) if (turn < queue.length && picked.length < MOST_COLUMNS) picked.push(queue[turn]);
  return picked.sort((a, b) => a - b);
}

// The table.

const results = [];  // canvases of the comparison
function draw() {
  for (const one of shown) one.close();
  shown.clear();
  watcher.disconnect();
  results.length = 0;
  const columns = view.how ? [view.a, view.b] : view.columns;
  const head = make("tr", {}, make("th", {scope: "col"}, make("span", {class: "of"}, "Prompt")));
  columns.forEach((index, place) => head.append(heading(data.columns[index], view.how ? "AB"[place] : "")));
  if (view.how) head.append(make("th", {scope: "col"}, make("span", {class: "at"}, at("how").selectedOptions[0].textContent)));
  at("wall").tHead.replaceChildren(head);
  const wanted = at("find").value.trim().toLowerCase();
  const rows = data.rows.flatMap((row, number) => row.prompt.toLowerCase().includes(wanted) ? [rowOf(row, number, columns)] : []);
  at("wall").tBodies[0].replaceChildren(...rows);
  for (const box of at("wall").querySelectorAll(".film")) if (box.player) watcher.observe(box);
  for (const chip of at("chips").querySelectorAll("[data-column]")) chip.setAttribute("aria-pressed", columns.includes(+chip.dataset.column));
}
function heading(column, letter) {
  const marks = column.marks.map(one => make("span", {class: "mark"}, one));
  const title = make("span", {class: "at"}, (letter ? letter + "  " : "") + "step " + column.step.toLocaleString("en"), ...marks);
  const facts = column.about.map(one => make("span", {class: "fact", title: one}, one));
  return make("th", {scope: "col"}, title, several ? make("span", {class: "of"}, column.run) : null, ...facts);
}
function rowOf(row, number, columns) {
  const prompt = make("div", {class: "prompt", tabindex: row.prompt.length > 160 ? 0 : null, title: row.prompt}, row.prompt);
  const made = make("tr", {}, make("th", {scope: "row"}, prompt, make("div", {class: "seed"}, "seed " + row.seed)));
  const boxes = columns.map(index => {
    const cell = data.columns[index].cells[number];
    const card = make("div", {class: "card"}, picture(cell, row, data.columns[index]), scores(cell), about(cell));
    made.append(make("td", {"data-row": number, "data-column": index}, card));
    return card.firstChild;
  });
  if (view.how) made.append(make("td", {"data-row": number, "data-column": "result"}, result(boxes)));
  return made;
}
function picture(cell, row, column) {
  if (cell.film === undefined) return make("div", {class: "hole"}, make("span", {class: "why"}, cell.missing));
  const box = make("div", {class: "film"});
  box.style.aspectRatio = cell.size[2] + " / " + cell.size[3];
  new Player(cell, box, row.prompt + ", seed " + row.seed + ", " + nameOf(column));
  if (box.player.length < LENGTH_S - 0.5 / FPS) box.append(make("span", {class: "short"}, cell.size[0] + " frames"));
  return box;
}
function scores(cell) {
  if (!cell.scores.length) return "";
  return make("ul", {class: "scores", "aria-label": "Scores"}, ...cell.scores.map(([name, value, measured, given]) =>
    make("li", {tabindex: measured.length ? 0 : null, class: given ? null : "found"}, name + " ", make("b", {}, value),
      measured.length ? make("span", {class: "tip", role: "tooltip"}, measured.join("\n")) : null)));
}
function about(cell) {
  if (!cell.about.length) return "";
  const facts = cell.about.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]);
  return make("details", {class: "about"}, make("summary", {}, "origin"), make("dl", {}, ...facts));
}
function result(boxes) {
  const [a, b] = boxes.map(one => one.player);
  if (!a || !b) return make("div", {class: "card"}, make("div", {class: "hole"}, make("span", {class: "why"}, "nothing to compare")));
  const canvas = make("canvas", {role: "img", "aria-label": "Both clips compared"}), said = make("div", {class: "apart"}, " ");
  const box = make("div", {class: "film"}, canvas);
  box.style.aspectRatio = boxes[0].style.aspectRatio;
  results.push({a, b, canvas, said, told: 0});
  return make("div", {class: "card"}, box, said);
}

// The comparison, drawn from pictures of one frame only.

const small = make("canvas", {width: 64, height: 64});
function compare(one, now) {
  const a = one.a.video, b = one.b.video;
  if (!a || !b || a.seeking || b.seeking || a.readyState < 2 || b.readyState < 2) return;
  if (one.a.fps === one.b.fps && one.a.frames === one.b.frames && one.a.frame !== one.b.frame) return;
  const {canvas} = one, w = a.videoWidth, h = a.videoHeight;
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const pen = canvas.getContext("2d"), put = (how, what, alpha = 1) => { pen.globalCompositeOperation = how; pen.globalAlpha = alpha; pen.drawImage(what, 0, 0, w, h); };
  if (view.how === "blink") put("copy", Math.floor(now / 500) % 2 ? b : a);
  else if (view.how === "split") {
    put("copy", a);
    const x = Math.round(view.split * w);
    pen.globalCompositeOperation = "source-over";
    if (x < w) pen.drawImage(b, x * b.videoWidth / w, 0, (w - x) * b.videoWidth / w, b.videoHeight, x, 0, w - x, h);
    pen.fillStyle = "#fff";
    pen.fillRect(x - 1, 0, 2, h);
  } else {
    put("copy", a);
    put("difference", b);
    measure(one, now);
    for (let i = 0; i < view.gain; i++) put("lighter", canvas);
    if (view.how === "over") put("lighter", a, 0.35);
  }
}
function measure(one, now) {
  if (now - one.told < 400) return;
  one.told = now;
  const pen = small.getContext("2d", {willReadFrequently: true});
  pen.imageSmoothingQuality = "high";
  pen.globalCompositeOperation = "copy";
  pen.drawImage(one.canvas, 0, 0, 64, 64);
  const pixels = pen.getImageData(0, 0, 64, 64).data;
  let sum = 0;
  for (let i = 0; i < pixels.length; i += 4) sum += pixels[i] + pixels[i + 1] + pixels[i + 2];
  one.said.textContent = "mean difference " + (sum / 64 / 64 / 3).toFixed(2) + " of 255, frame " + (one.a.frame + 1);
}

// Each picture of the screen.

let last = "";
function tick(now) {
  requestAnimationFrame(tick);
  if (LENGTH_S && clock.playing && !clock.held) {
    const time = clock.time();
    if (time >= LENGTH_S) goTo(0);
    else for (const one of shown) one.follow(time);
  }
  const frame = clock.frame(), text = "frame " + (frame + 1) + " of " + FRAMES + ", " + (frame / FPS).toFixed(2) + " s";
  if (text !== last) {
    last = text;
    at("frame").value = text;
    at("scrub").value = frame;
    document.body.dataset.frame = frame;
  }
  if (view.how) for (const one of results) compare(one, now);
}

// What people do.

function show(columns) {
  view.columns = columns.length ? [...columns].sort((a, b) => a - b) : [data.columns.length - 1];
  draw();
}
function chip(text, action, attributes) {
  const made = make("button", {type: "button", class: "chip", ...attributes}, text);
  made.addEventListener("click", action);
  return made;
}
function begin() {
  at("name").textContent = data.name;
  at("subtitle").textContent = [data.rows.length + (data.rows.length === 1 ? " cell" : " cells"), ...(several ? [] : runs.map(one => "run " + one)), ...data.sampler, "panel " + data.digest.slice(0, 12)].join("  ·  ");
  if (data.notes.length) {
    at("notes").hidden = false;
    at("notes").open = data.notes.length < 3;
    at("notes").firstElementChild.textContent = data.notes.length === 1 ? "One note" : data.notes.length + " notes";
    at("notes").lastElementChild.append(...data.notes.map(one => make("li", {}, one)));
  }
  const all = [...data.columns.keys()];
  at("chips").append(...data.columns.map((column, index) => chip(
    (several ? column.run + " " : "") + column.step.toLocaleString("en") + (column.marks.length ? " " + column.marks.join(", ") : ""),
    () => { leave(); show(view.columns.includes(index) ? view.columns.filter(one => one !== index) : [...view.columns, index]); },
    {"data-column": index, "aria-label": nameOf(column)})));
  if (all.length > 2) at("chips").append(chip("first and last", () => { leave(); show(runs.flatMap(run => ends(of(run)))); }, {}), chip("all", () => { leave(); show(all); }, {}));
  at("window").hidden = all.length <= MOST_COLUMNS;
  at("from").max = Math.max(0, all.length - MOST_COLUMNS);
  at("steps").hidden = all.length < 2;
  at("versus").hidden = all.length < 2;
  for (const [id, chosen] of [["a", 0], ["b", all.length - 1]]) {
    at(id).append(...data.columns.map((column, index) => make("option", {value: index, selected: index === chosen}, nameOf(column))));
    view[id] = chosen;
    at(id).addEventListener("change", () => { view[id] = +at(id).value; draw(); });
  }
  at("scrub").max = FRAMES - 1;
  listen();
  show(first());
  requestAnimationFrame(tick);
  play(!matchMedia("(prefers-reduced-motion: reduce)").matches);
}
function leave() { if (view.how) { at("how").value = ""; choose(); } }
function choose() {
  view.how = at("how").value;
  at("pair").hidden = !view.how;
  at("louder").hidden = !["difference", "over"].includes(view.how);
  at("where").hidden = view.how !== "split";
  draw();
}
function listen() {
  at("play").addEventListener("click", () => play(!clock.playing));
  at("back").addEventListener("click", () => scrubTo(clock.frame() - 1));
  at("forth").addEventListener("click", () => scrubTo(clock.frame() + 1));
  at("scrub").addEventListener("input", () => scrubTo(+at("scrub").value));
  at("speed").addEventListener("change", () => {
    const frame = clock.frame();
    clock.speed = +at("speed").value;
    goTo(frame);
  });
  at("size").addEventListener("input", () => document.documentElement.style.setProperty("--clip", at("size").value + "px"));
  at("find").addEventListener("input", draw);
  at("from").addEventListener("input", () => { leave(); show([...Array(MOST_COLUMNS).keys()].map(one => one + +at("from").value)); });
  at("how").addEventListener("change", choose);
  at("gain").addEventListener("change", () => { view.gain = +at("gain").value; });
  at("split").addEventListener("input", () => { view.split = at("split").value / 100; });
  addEventListener("keydown", event => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea")) return;
    const of = {ArrowLeft: () => scrubTo(clock.frame() - 1), ArrowRight: () => scrubTo(clock.frame() + 1), Home: () => scrubTo(0), End: () => scrubTo(FRAMES - 1)};
    if (!event.target.closest("button, summary")) of[" "] = () => play(!clock.playing);
    if (data.columns.length > 1) of.d = () => { at("how").value = view.how ? "" : "difference"; choose(); };
    if (!of[event.key]) return;
    event.preventDefault();
    of[event.key]();
  });
}
begin();
})();
