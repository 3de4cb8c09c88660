"use strict";
(() => {
const data = JSON.parse(document.getElementById("content").textContent);
const at = id => document.getElementById(id);
const served = location.protocol.startsWith("http");
const given = new Map(data.given);
const order = data.given.map(([pair]) => pair);  // pairs in the order they were voted on
const saved = [];  // lines of the file that is saved where nobody serves the page
let now = -1, busy = false, kept = true;

// Clips: blobs of what the page holds.

const addresses = new Map();
function address(film) {
  if (!addresses.has(film)) {
    const held = at("film-" + film), text = atob(held.textContent), bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    const type = bytes[0] === 0x1a && bytes[1] === 0x45 ? "video/webm" : "video/mp4";
    addresses.set(film, URL.createObjectURL(new Blob([bytes], {type})));
    held.remove();
  }
  return addresses.get(film);
}

/* Both clips play from the start together; who is done first waits for the other. */
let videos = [];
function play() {
  const turn = videos;
  for (const video of turn) { video.pause(); video.currentTime = 0; }
  for (const video of turn) video.play().catch(() => {});
}
function place(side, film) {
  const video = document.createElement("video"), box = at(side);
  video.muted = true;
  video.playsInline = true;
  video.disablePictureInPicture = true;
  video.preload = "auto";
  video.setAttribute("aria-label", side + " clip");
  video.addEventListener("error", () => { if (videos.includes(video)) box.textContent = "this browser cannot play it"; ready(); });
  video.addEventListener("loadeddata", ready);
  video.addEventListener("ended", () => { if (videos.every(one => one.ended || one.error)) play(); });
  video.src = address(film);
  box.replaceChildren(video);
  return video;
}
function ready() {
  if (!videos.length || document.body.dataset.state !== "loading") return;
  if (videos.every(one => one.error || one.readyState > 1)) { tell("voting"); play(); }
}
function tell(state) {
  document.body.dataset.state = state;
  document.body.dataset.pair = now;
}

// One pair after the other.

function show(pair) {
  now = pair;
  const {prompt} = data.pairs[pair];
  at("end").hidden = true;
  at("pair").hidden = false;
  at("prompt").textContent = prompt;
  videos = [];
  tell("loading");
  videos = [place("left", 2 * pair), place("right", 2 * pair + 1)];
  count();
  ready();
}
function count() {
  at("progress").value = given.size + " of " + data.pairs.length + " voted on";
  at("bar").max = data.pairs.length;
  at("bar").value = given.size;
  at("undo").disabled = !order.length;
}
function next() {
  const open = data.pairs.findIndex((_, pair) => !given.has(pair));
  if (open >= 0) return show(open);
  now = -1;
  videos = [];
  for (const side of ["left", "right"]) at(side).replaceChildren();
  at("pair").hidden = true;
  at("end").hidden = false;
  at("said").textContent = "All pairs are voted on.";
  at("finish").textContent = served ? "Finish" : "Save the votes as a file";
  at("finish").hidden = false;
  count();
  tell("end");
}

// Votes go to who serves the page, or into a file.

function post(path, body) {
  return fetch(path + location.search, {method: "POST", headers: {"Content-Type": "application/json"}, body: JSON.stringify(body)});
}
async function send(pair, choice) {
  if (!served) {
    saved.push({kind: "vote", sheet: data.sheet, pair, choice, timestamp_ms: Date.now()});
    kept = false;
    return;
  }
  const answer = await post("vote", {pair, choice});
  if (!answer.ok) throw new Error("answer " + answer.status);
}
async function cast(pair, choice) {
  if (busy) return false;
  busy = true;
  try {
    await send(pair, choice);
    at("problem").textContent = "";
    return true;
  } catch (_) {
    at("problem").textContent = "This vote was not kept: is opusclip ab still running, and the disk not full?";
    return false;
  } finally {
    busy = false;
  }
}
async function vote(choice) {
  const pair = now;
  if (document.body.dataset.state !== "voting" || !await cast(pair, choice)) return;
  given.set(pair, choice);
  order.push(pair);
  next();
}
async function undo() {
  const pair = order[order.length - 1];
  if (pair === undefined || document.body.dataset.state === "closed" || !await cast(pair, "undone")) return;
  order.pop();
  given.delete(pair);
  show(pair);
}
async function finish() {
  if (document.body.dataset.state !== "end" || busy) return;
  if (served) {
    busy = true;
    try { await post("finish", {}); } catch (_) { /* it has ended already */ }
    busy = false;
    order.length = 0;
    at("said").textContent = "Thank you: your votes are kept, and this window can be closed.";
    at("finish").hidden = true;
    tell("closed");
  } else {
    save();
  }
  count();
}
function save() {
  const text = saved.map(one => JSON.stringify(one) + "\n").join(""), link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], {type: "application/x-ndjson"}));
  link.download = "votes-" + data.sheet + ".jsonl";
  link.click();
  kept = true;
  at("said").textContent = "Thank you: send the file that was saved to who gave you this page.";
}

const keys = {1: () => vote("left"), 2: () => vote("right"), 0: () => vote("tie"), u: undo, Backspace: undo, r: play, Enter: finish};
addEventListener("keydown", event => {
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey || event.altKey || event.repeat || !Object.hasOwn(keys, key)) return;
  if (key === "Enter" && event.target.closest("button")) return;
  event.preventDefault();
  keys[key]();
});
addEventListener("beforeunload", event => { if (!kept) event.preventDefault(); });
for (const choice of ["left", "right", "tie"]) at("vote-" + choice).addEventListener("click", () => vote(choice));
at("undo").addEventListener("click", undo);
at("replay").addEventListener("click", play);
at("finish").addEventListener("click", finish);
at("panel").textContent = data.panel;
next();
})();
