// What a job found: a table of counts, and the annotated files. A slider shows detections from
// another confidence on without a new run, because the service keeps every detection with its own.

import { ask, fetchBlob, nextPath } from "./api.js";
import { amount, button, element, plural } from "./page.js";

const SHOWN_AT_ONCE = 24;
const LARGEST_COUNTED_FRAMES = 20000; // a result beyond that is for programs, not for this table
const LARGEST_AUTOPLAY_FRAMES = 3000; // longer videos load when asked for
const FRAMES_ASKED_AT_ONCE = 500;
const DRAWN_PERCENT = 25; // what annotated files show
const ZIP_ADDRESS_MS = 60000;
const SVG = "http://www.w3.org/2000/svg";

const views = new WeakMap(); // the element with a job's results -> what is known of them

// -- the whole

export function fillResults(root, job) {
  const files = job.files.map((file) => ({ ...file, frames: [], shows: () => {} }));
  const view = { job, files, percent: DRAWN_PERCENT, isOpen: true, addresses: new Set() };
  view.isCounted = job.frame_count <= LARGEST_COUNTED_FRAMES;
  view.isComplete = false;
  view.observer = observerOf(view);
  views.set(root, view);
  const table = tableOf(view);
  const slider = view.isCounted ? [sliderOf(view)] : [];
  root.replaceChildren(...slider, table.root, table.actions, table.gallery);
  if (view.isCounted) readFrames(view);
}

export function clearResults(root) {
  const view = views.get(root);
  if (view) {
    view.isOpen = false;
    view.observer.disconnect();
    for (const address of view.addresses) URL.revokeObjectURL(address);
    views.delete(root);
  }
  root.replaceChildren();
}

function tableOf(view) {
  const rows = element("tbody");
  const gallery = element("div", { className: "gallery" });
  let shown = 0;
  const more = button("", showMore);
  function showMore() {
    for (const file of view.files.slice(shown, shown + SHOWN_AT_ONCE)) {
      rows.append(rowOf(view, file));
      if (file.annotated_url) gallery.append(figureOf(view, file));
    }
    shown = Math.min(shown + SHOWN_AT_ONCE, view.files.length);
    more.hidden = shown === view.files.length;
    more.textContent = `Show more (${view.files.length - shown} left)`;
  }
  showMore();
  const titles = ["File", "Found", "Tokens"].map((text) => element("th", { scope: "col" }, text));
  titles[2].className = "number";
  const head = element("thead", {}, element("tr", {}, ...titles));
  const root = element("table", {}, element("caption", { textContent: "What was found" }), head, rows);
  const hasAnnotated = view.files.some((file) => file.annotated_url);
  const zip = hasAnnotated ? [zipButton(view.job)] : [];
  return { root, gallery, actions: element("div", { className: "actions" }, ...zip, more) };
}

function sliderOf(view) {
  const input = element("input", { type: "range", min: 5, max: 95, step: 5 });
  input.value = view.percent;
  const shown = element("output", { textContent: `${view.percent}%` });
  input.addEventListener("input", () => {
    view.percent = Number(input.value);
    shown.textContent = `${view.percent}%`;
    for (const file of view.files) showFile(view, file);
  });
  const title = element("span", {}, "Show detections of at least ", shown, " confidence");
  const text = `Annotated videos and downloads always show ${DRAWN_PERCENT}% and more.`;
  return element("label", { className: "slider" }, title, input, element("span", { className: "aside" }, text));
}

// -- detections

async function readFrames(view) {
  const filesById = new Map(view.files.map((file) => [file.media_file_id, file]));
  let path = `/api/v1/jobs/${view.job.id}/frame-results/?page_size=${FRAMES_ASKED_AT_ONCE}`;
  try {
    while (path && view.isOpen) {
      const page = await ask(path);
      const changed = new Set();
      for (const { media_file_id: id, objects } of page.results) {
        filesById.get(id)?.frames.push(objects);
        changed.add(filesById.get(id));
      }
      path = nextPath(path, page);
      view.isComplete = !path;
      for (const file of view.isComplete ? view.files : changed) showFile(view, file);
    }
  } catch (refusal) {
    view.problem = refusal.message;
    for (const file of view.files) showFile(view, file);
  }
}

function showFile(view, file) {
  file.cell?.replaceChildren(...foundParts(view, file));
  file.shows();
}

function isShown(view, { confidence }) {
  return confidence * 100 >= view.percent;
}

function countByClass(view, objects) {
  const counts = new Map();
  for (const one of objects) {
    if (isShown(view, one)) counts.set(one.name, (counts.get(one.name) || 0) + 1);
  }
  return counts;
}

function greatestCounts(view, frames) {
  const greatest = new Map();
  for (const objects of frames) {
    for (const [name, count] of countByClass(view, objects)) {
      greatest.set(name, Math.max(count, greatest.get(name) || 0));
    }
  }
  return greatest;
}

function rowOf(view, file) {
  file.cell = element("td", {}, ...foundParts(view, file));
  const charged = element("td", { className: "number", textContent: amount(file.charged_tokens || 0) });
  return element("tr", {}, element("th", { scope: "row", textContent: file.filename }), file.cell, charged);
}

function foundParts(view, file) {
  const problem = file.error || view.problem;
  if (problem) return [element("span", { className: "problem", textContent: problem })];
  if (!view.isCounted) return ["Too much to count here; the HTTP API gives the whole result."];
  if (!file.frames.length) return [view.isComplete ? "not processed" : "counting…"];
  const found = chips(greatestCounts(view, file.frames));
  if (file.type === "image") return found;
  const note = `at most in one of ${plural(file.frames.length, "frame")}`;
  return [...found, element("span", { className: "aside", textContent: note })];
}

function chips(counts) {
  if (!counts.size) return ["nothing "];
  const largestFirst = [...counts].sort((a, b) => b[1] - a[1]);
  const texts = largestFirst.map(([name, count]) => `${count} × ${name}`);
  return texts.map((textContent) => element("span", { className: "chip", textContent }));
}

// -- annotated files: fetched with the token in a header, shown from memory

// Tells each figure whether it is near the screen; only such ones load anything.
function observerOf(view) {
  return new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const file = view.files.find((one) => one.figure === target);
        file.isNear = isIntersecting;
        file.shows();
      }
    },
    { rootMargin: "400px" },
  );
}

function figureOf(view, file) {
  const frame = element("div", { className: "frame", textContent: "Loading…" });
  const caption = element("figcaption", {}, element("span", { textContent: file.filename }));
  file.figure = element("figure", {}, frame, caption);
  const parts = { frame, caption };
  if (file.type === "image") {
    file.shows = () => file.isNear && showPicture(view, file, parts);
  } else if (file.frame_count > LARGEST_AUTOPLAY_FRAMES) {
    const text = `Load the video, ${plural(file.frame_count, "frame")}`;
    frame.replaceChildren(button(text, () => showVideo(view, file, parts), ""));
  } else {
    file.shows = () => file.isNear && showVideo(view, file, parts);
  }
  view.observer.observe(file.figure);
  return file.figure;
}

// The address of a file in memory, fetched once; a failed attempt may be repeated.
function addressOf(view, file, path) {
  file.fetched ??= new Map();
  if (!file.fetched.has(path)) {
    const fetched = fetchBlob(path).then((blob) => {
      const address = URL.createObjectURL(blob);
      if (view.isOpen) view.addresses.add(address);
      else URL.revokeObjectURL(address);
      return { address, type: blob.type };
    });
    fetched.catch(() => file.fetched.delete(path));
    file.fetched.set(path, fetched);
  }
  return file.fetched.get(path);
}

async function showVideo(view, file, { frame, caption }) {
  if (file.hasPlayer) return;
  file.hasPlayer = true;
  frame.textContent = "Loading…";
  try {
    const { address, type } = await addressOf(view, file, file.annotated_url);
    const settings = { controls: true, muted: true, loop: true, playsInline: true };
    const video = element("video", { src: address, preload: "auto", ...settings });
    video.setAttribute("aria-label", describe(file));
    frame.replaceChildren(video);
    addDownload(file, caption, address, type);
  } catch (refusal) {
    frame.textContent = refusal.message;
    file.hasPlayer = false;
  }
}

// The annotated picture; with another confidence the original under boxes drawn here.
async function showPicture(view, file, { frame, caption }) {
  const percent = view.percent;
  if (file.drawnPercent === percent) return;
  file.drawnPercent = percent;
  try {
    const { address, type } = await addressOf(view, file, file.annotated_url);
    addDownload(file, caption, address, type);
    const drawn = percent === DRAWN_PERCENT ? null : await drawnBoxes(view, file);
    if (view.percent !== percent) return; // the slider has moved on
    frame.replaceChildren(...(drawn || [picture(file, address)]));
  } catch (refusal) {
    frame.textContent = refusal.message;
    file.drawnPercent = null;
  }
}

function picture(file, src) {
  return element("img", { src, alt: describe(file) });
}

function describe({ filename }) {
  return `${filename} with a box around each object found`;
}

// The original and its boxes; null where the browser cannot show the original's format.
async function drawnBoxes(view, file) {
  const content = `/api/v1/media-files/${file.media_file_id}/content/`;
  const { address } = await addressOf(view, file, content);
  const original = picture(file, address);
  try {
    await original.decode();
  } catch {
    return null;
  }
  const boxes = document.createElementNS(SVG, "svg");
  boxes.setAttribute("viewBox", `0 0 ${original.naturalWidth} ${original.naturalHeight}`);
  boxes.setAttribute("aria-hidden", "true");
  const objects = file.frames.flat().filter((one) => isShown(view, one));
  boxes.append(...objects.map(boxOf));
  return [original, boxes];
}

function boxOf({ name, confidence, box }) {
  const made = document.createElementNS(SVG, "rect");
  const place = { x: box.x1, y: box.y1, width: box.x2 - box.x1, height: box.y2 - box.y1 };
  for (const [key, value] of Object.entries(place)) made.setAttribute(key, value);
  made.dataset.class = name;
  const title = document.createElementNS(SVG, "title");
  title.textContent = `${name}, ${Math.round(confidence * 100)}%`;
  made.append(title);
  return made;
}

function addDownload(file, caption, href, type) {
  if (caption.querySelector("a")) return;
  const download = annotatedName(file.filename, type);
  const link = element("a", { className: "button", href, download, textContent: "Download" });
  link.setAttribute("aria-label", `Download annotated ${file.filename}`);
  caption.append(link);
}

function annotatedName(filename, type) {
  const stem = filename.split(/[\\/]/).pop().replace(/\.[a-z0-9]+$/i, "");
  return `${stem}.annotated.${type.split("/").pop().replace("jpeg", "jpg")}`;
}

function zipButton(job) {
  const text = "Download everything (zip)";
  const made = button(text, async () => {
    made.disabled = true;
    made.textContent = "Packing…";
    try {
      const href = URL.createObjectURL(await fetchBlob(`/api/v1/jobs/${job.id}/annotated-zip/`));
      element("a", { href, download: `job-${job.id}.zip` }).click();
      setTimeout(() => URL.revokeObjectURL(href), ZIP_ADDRESS_MS);
      made.textContent = text;
    } catch (refusal) {
      made.textContent = refusal.message;
    }
    made.disabled = false;
  });
  return made;
}
