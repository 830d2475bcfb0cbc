// How much was found over the length of a video: a chart over which a slider lies, so that a press
// or an arrow key goes to that place.

import { countByClass, frameAt, largestFirst, shownObjects } from "./detections.js";
import { element } from "./page.js";

const SVG = "http://www.w3.org/2000/svg";
const MOST_COLUMNS = 400;
const HEIGHT = 40;

// `seek` is given the seconds to go to.
export function timelineOf(view, file, seek) {
  const chart = document.createElementNS(SVG, "svg");
  chart.setAttribute("preserveAspectRatio", "none");
  chart.setAttribute("aria-hidden", "true");
  const slider = element("input", { type: "range", min: 0, max: 0, step: "any", value: 0 });
  slider.setAttribute("aria-label", `Place in ${file.filename}`);
  const told = element("output", { className: "aside", ariaLive: "off" });
  const bars = element("div", { className: "bars" }, chart, slider);
  const root = element("div", { className: "timeline", hidden: true }, bars, told);

  function tell() {
    const seconds = Number(slider.value);
    const objects = shownObjects(view, file.frames[frameAt(file.frames, seconds)]);
    const counts = largestFirst(countByClass(objects)).map(([name, count]) => `${count} ${name}`);
    const text = `${clock(seconds)}: ${counts.join(", ") || "nothing"}`;
    told.textContent = text;
    slider.setAttribute("aria-valuetext", text);
  }

  function draw() {
    root.hidden = file.frames.length < 2;
    if (root.hidden) return;
    const counts = file.frames.map((frame) => shownObjects(view, frame).length);
    drawColumns(chart, counts);
    slider.max = file.frames.at(-1).time;
    tell();
  }

  function follow(seconds) {
    slider.value = seconds;
    if (!root.hidden) tell();
  }

  slider.addEventListener("input", () => {
    tell();
    seek(Number(slider.value));
  });
  return { root, draw, follow };
}

// A column for each frame; of a long video the most of neighbouring ones.
function drawColumns(chart, counts) {
  const perColumn = Math.ceil(counts.length / MOST_COLUMNS);
  const columns = [];
  for (let at = 0; at < counts.length; at += perColumn) {
    columns.push(Math.max(...counts.slice(at, at + perColumn)));
  }
  const highest = Math.max(1, ...columns);
  chart.setAttribute("viewBox", `0 0 ${columns.length} ${HEIGHT}`);
  const path = document.createElementNS(SVG, "path");
  const steps = columns.map((count, place) => {
    const top = HEIGHT - (count / highest) * (HEIGHT - 2);
    return `L${place} ${top}L${place + 1} ${top}`;
  });
  path.setAttribute("d", `M0 ${HEIGHT}${steps.join("")}L${columns.length} ${HEIGHT}Z`);
  chart.replaceChildren(path);
}

function clock(seconds) {
  const minutes = Math.floor(seconds / 60);
  return `${minutes}:${(seconds - 60 * minutes).toFixed(1).padStart(4, "0")}`;
}
