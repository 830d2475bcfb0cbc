// What a job found, read once: the slider and the class filter then choose from it without asking
// again, and never run anything again, because the service keeps every detection with its own
// confidence.

import { ask, nextPath } from "./api.js";

export const DRAWN_PERCENT = 25; // what annotated files show
const FRAMES_ASKED_AT_ONCE = 100; // as many as the service gives
// The colours of the classes in annotated files, so that boxes drawn here look the same.
const COLOURS = [
  "#ffcd1e", "#ff69b4", "#28dcff", "#be96ff", "#96ff5a", "#ff963c", "#5aaaff", "#f5f5f5",
];

// Reads every frame of the job into `files[].frames`, which are in order of time; `onFrames` is given
// the files that have more.
export async function readFrames(view, onFrames) {
  const filesById = new Map(view.files.map((file) => [file.media_file_id, file]));
  let path = `/api/v1/jobs/${view.job.id}/frame-results/?page_size=${FRAMES_ASKED_AT_ONCE}`;
  while (path && view.isOpen) {
    const page = await ask(path);
    const changed = new Set();
    for (const { media_file_id: id, frame_index: index, time_seconds: time, objects } of page.results) {
      const file = filesById.get(id);
      if (!file) continue;
      file.frames.push({ index, time, objects });
      changed.add(file);
      for (const one of objects) view.classes.set(one.name, one.class);
    }
    // They come in the order in which they were stored: several workers share a video.
    for (const { frames } of changed) frames.sort((one, other) => one.index - other.index);
    path = nextPath(path, page);
    view.isComplete = !path;
    onFrames(view.isComplete ? view.files : changed);
  }
}

// Boxes as annotated files have them: then those are shown as they are.
export function isAsDrawn(view) {
  return view.percent === DRAWN_PERCENT && !view.hiddenClasses.size;
}

export function shownObjects(view, { objects }) {
  const least = view.percent / 100;
  return objects.filter((one) => one.confidence >= least && !view.hiddenClasses.has(one.name));
}

export function countByClass(objects) {
  const counts = new Map();
  for (const { name } of objects) counts.set(name, (counts.get(name) || 0) + 1);
  return counts;
}

// Of each class the most in one frame.
export function greatestCounts(view, frames) {
  const greatest = new Map();
  for (const frame of frames) {
    for (const [name, count] of countByClass(shownObjects(view, frame))) {
      greatest.set(name, Math.max(count, greatest.get(name) || 0));
    }
  }
  return greatest;
}

export function largestFirst(counts) {
  return [...counts].sort((a, b) => b[1] - a[1]);
}

// The place of the frame that is seen at a time of the video.
export function frameAt(frames, seconds) {
  let [low, high] = [0, frames.length - 1];
  while (low < high) {
    const middle = Math.ceil((low + high) / 2);
    if (frames[middle].time <= seconds + 0.001) low = middle;
    else high = middle - 1;
  }
  return low;
}

// -- boxes over a picture

const SVG = "http://www.w3.org/2000/svg";

// An empty drawing that lies over a picture of this size.
export function boxLayer(width, height) {
  const layer = document.createElementNS(SVG, "svg");
  layer.setAttribute("viewBox", `0 0 ${width} ${height}`);
  layer.setAttribute("preserveAspectRatio", "none"); // it covers the picture whatever its shape
  layer.setAttribute("aria-hidden", "true");
  return layer;
}

export function drawBoxes(layer, objects) {
  layer.replaceChildren(...objects.map(boxOf));
}

function boxOf({ name, class: classId, confidence, box, track_id: track }) {
  const made = document.createElementNS(SVG, "rect");
  const place = { x: box.x1, y: box.y1, width: box.x2 - box.x1, height: box.y2 - box.y1 };
  for (const [key, value] of Object.entries(place)) made.setAttribute(key, value);
  made.setAttribute("stroke", colourOf(classId));
  made.dataset.class = name;
  const title = document.createElementNS(SVG, "title");
  const number = track === undefined || track === null ? "" : ` ${track}`;
  title.textContent = `${name}${number}, ${Math.round(confidence * 100)}%`;
  made.append(title);
  return made;
}

export function colourOf(classId) {
  return COLOURS[classId % COLOURS.length];
}
