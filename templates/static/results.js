// What a job found: a slider and a class filter over a table of counts and the annotated files.

import { fetchBlob, request } from "./api.js";
import { colourOf, countByClass, DRAWN_PERCENT, greatestCounts, isAsDrawn, largestFirst, readFrames, shownObjects } from "./detections.js";
import { figureObserver, figureOf } from "./figures.js";
import { amount, button, element, plural, save } from "./page.js";

const SHOWN_AT_ONCE = 24;
const LARGEST_COUNTED_FRAMES = 20000; // a result beyond that is for programs, not for this table
const LOWEST_PERCENT = 5;
const HIGHEST_PERCENT = 95;
const STEP_PERCENT = 5;
const FORMATS = { coco: "COCO", yolo: "YOLO", csv: "CSV", jsonl: "JSON lines", mot: "MOTChallenge", crops: "Crops" };

const views = new WeakMap(); // the element with a job's results -> what is known of them

export function fillResults(root, job, jobFiles) {
  const files = jobFiles.map((file) => ({ ...file, frames: [], shows: () => {} }));
  const view = { job, files, percent: DRAWN_PERCENT, isOpen: true, addresses: new Set() };
  view.isCounted = job.frame_count <= LARGEST_COUNTED_FRAMES;
  view.isComplete = false;
  view.classes = new Map(); // name -> number, of all that was found
  view.hiddenClasses = new Set();
  view.version = 0; // of what is to be shown
  view.observer = figureObserver(view);
  views.set(root, view);
  const table = tableOf(view);
  const controls = view.isCounted ? [controlsOf(view)] : [];
  root.replaceChildren(...controls, table.root, table.actions, table.gallery);
  if (view.isCounted) read(view);
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

async function read(view) {
  const show = (files) => {
    for (const file of files) showFile(view, file);
    view.drawClasses();
  };
  try {
    await readFrames(view, show);
  } catch (refusal) {
    view.problem = refusal.message;
    show(view.files);
  }
}

// Something else is to be shown: another confidence, other classes.
function change(view) {
  view.version += 1;
  for (const file of view.files) showFile(view, file);
  view.drawClasses();
}

function showFile(view, file) {
  file.cell?.replaceChildren(...foundParts(view, file));
  file.shows();
}

// -- slider and class filter

function controlsOf(view) {
  const note = element("p", { className: "aside" });
  const classes = element("fieldset", { className: "classes", hidden: true });
  classes.append(element("legend", { textContent: "Show" }));
  view.drawClasses = () => {
    drawClasses(view, classes);
    note.textContent = isAsDrawn(view)
      ? "Pictures and videos are shown as they are downloaded."
      : `Boxes are drawn anew here; downloads always show ${DRAWN_PERCENT}% and more.`;
  };
  view.drawClasses();
  return element("div", { className: "controls" }, sliderOf(view), classes, note);
}

// The first step of the slider from the confidence on that the job has kept; rounded, because
// 100 * 0.55 is a little more than 55. A step at 100% would hide everything.
function lowestPercent(floor) {
  const percent = Math.round(floor * 1e6) / 1e4;
  const step = Math.ceil(percent / STEP_PERCENT) * STEP_PERCENT;
  return Math.min(Math.max(step, LOWEST_PERCENT), HIGHEST_PERCENT);
}

function sliderOf(view) {
  const min = lowestPercent(view.job.options?.confidence_floor ?? 0);
  const input = element("input", { type: "range", min, max: HIGHEST_PERCENT, step: STEP_PERCENT });
  view.percent = Math.max(min, DRAWN_PERCENT);
  input.value = view.percent;
  // No output element: the label would name that instead of the slider.
  const shown = element("b", { textContent: `${view.percent}%` });
  input.addEventListener("input", () => {
    view.percent = Number(input.value);
    shown.textContent = `${view.percent}%`;
    change(view);
  });
  const title = element("span", {}, "Confidence at least ", shown);
  return element("label", { className: "slider" }, title, input);
}

// A switch for each class with what is shown of it; drawn again only when classes are new.
function drawClasses(view, fieldset) {
  const totals = new Map();
  for (const { frames } of view.files) {
    for (const { objects } of frames) {
      for (const [name, count] of countByClass(objects.filter((one) => one.confidence * 100 >= view.percent))) {
        totals.set(name, (totals.get(name) || 0) + count);
      }
    }
  }
  for (const [name, classId] of [...view.classes].sort((a, b) => a[1] - b[1])) {
    const known = fieldset.querySelector(`[data-class="${CSS.escape(name)}"]`);
    const label = known || classSwitch(view, name, classId);
    if (!known) fieldset.append(label);
    label.querySelector("output").textContent = (totals.get(name) || 0).toLocaleString("en");
  }
  fieldset.hidden = !view.classes.size;
}

function classSwitch(view, name, classId) {
  const input = element("input", { type: "checkbox", checked: true });
  input.addEventListener("change", () => {
    if (input.checked) view.hiddenClasses.delete(name);
    else view.hiddenClasses.add(name);
    change(view);
  });
  const swatch = element("span", { className: "swatch" });
  swatch.style.background = colourOf(classId);
  const label = element("label", {}, input, swatch, `${name} `, element("output", { ariaLive: "off" }));
  label.dataset.class = name;
  return label;
}

// -- table

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
  const downloads = hasAnnotated ? [zipButton(view.job)] : [];
  // An aborted job has boxes, which were paid for, but perhaps no file that was annotated to its end.
  if (hasAnnotated || view.job.frames_done) downloads.push(...exportParts(view));
  return { root, gallery, actions: element("div", { className: "actions" }, ...downloads, more) };
}

function rowOf(view, file) {
  file.cell = element("td", {}, ...foundParts(view, file));
  const charged = element("td", { className: "number", textContent: amount(file.charged_tokens || 0) });
  const name = element("th", { scope: "row" }, file.filename);
  if (file.warning) name.append(element("span", { className: "warning", textContent: file.warning }));
  return element("tr", {}, name, file.cell, charged);
}

function foundParts(view, file) {
  const problem = file.error || view.problem;
  if (problem) return [element("span", { className: "problem", textContent: problem })];
  if (!view.isCounted) return ["Too much to count here; the HTTP API gives the whole result."];
  if (!file.frames.length) return [view.isComplete ? "not processed" : "counting…"];
  if (file.type === "image") {
    return chips(countByClass(file.frames.flatMap((frame) => shownObjects(view, frame))));
  }
  const note = `at most in one of ${plural(file.frames.length, "frame")}`;
  return [...chips(greatestCounts(view, file.frames)), element("span", { className: "aside", textContent: note })];
}

function chips(counts) {
  if (!counts.size) return ["nothing "];
  const texts = largestFirst(counts).map(([name, count]) => `${count} × ${name}`);
  return texts.map((textContent) => element("span", { className: "chip", textContent }));
}

// -- downloads

function zipButton(job) {
  return downloadButton("Download everything (zip)", "Packing…", async () => {
    save(await fetchBlob(`/api/v1/jobs/${job.id}/annotated-zip/`), `job-${job.id}.zip`);
  });
}

// The boxes in a format of the trade: those that slider and switches show.
function exportParts(view) {
  const { id, options } = view.job;
  const offered = Object.entries(FORMATS).filter(([name]) => name !== "mot" || options?.tracking);
  const choices = offered.map(([value, textContent]) => element("option", { value, textContent }));
  const format = element("select", {}, ...choices);
  format.setAttribute("aria-label", "Format of the boxes");
  const made = downloadButton("Download boxes", "Writing…", async () => {
    const answer = await request(`/api/v1/jobs/${id}/exports/${format.value}/?${shownQuery(view)}`);
    const [, name] = answer.headers.get("Content-Disposition")?.match(/filename="?([^";]+)/) || [];
    save(await answer.blob(), name || `job-${id}.${format.value}`);
  });
  return [element("span", { className: "export" }, format, made)];
}

function shownQuery(view) {
  const query = new URLSearchParams({ minimum_confidence: view.percent / 100 });
  if (!view.hiddenClasses.size) return query;
  if (!view.isComplete) throw new Error(view.problem || "Wait until all is read");
  const shown = [...view.classes.keys()].filter((name) => !view.hiddenClasses.has(name));
  if (!shown.length) throw new Error("Every class is hidden");
  for (const name of shown) query.append("class_name", name);
  return query;
}

function downloadButton(text, meanwhile, download) {
  const made = button(text, async () => {
    made.disabled = true;
    made.textContent = meanwhile;
    try {
      await download();
      made.textContent = text;
    } catch (refusal) {
      made.textContent = refusal.message;
    }
    made.disabled = false;
  });
  return made;
}
