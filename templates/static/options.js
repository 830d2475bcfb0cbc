// The options of a detection: a form of what the API offers for the chosen model. Only what differs
// from the model's own values is sent.

import { byId, element, signal } from "./page.js";

const IMAGE_SIZES = [640, 768, 960, 1280, 1536, 2048];
const CUSTOM = "custom";
const TILE = { tile: 768, overlap: 0.2 };

export const optionsChanges = signal();
export const usualChanges = signal(); // it is known what is usual, or something else is

const state = { defaults: null, classNames: [] };
const fields = new Map(); // the name of an option -> { read, write }

// -- parts of the form

function labelled(text, hint, control) {
  const id = `option-${text.toLowerCase().replaceAll(/\W+/g, "-")}`;
  control.id = id;
  const about = element("span", { className: "aside", id: `${id}-hint`, textContent: hint });
  control.setAttribute("aria-describedby", about.id);
  return element("div", {}, element("label", { htmlFor: id, textContent: text }), control, about);
}

function select(name, text, hint, choices) {
  const control = element("select");
  for (const [value, shown] of choices) control.append(element("option", { value, textContent: shown }));
  fields.set(name, {
    read: () => (typeof state.defaults[name] === "number" ? Number(control.value) : control.value),
    write: (value) => {
      control.value = value;
      if (control.selectedIndex >= 0) return;
      control.append(element("option", { value, textContent: value })); // newer than this page
      control.value = value;
    },
  });
  return labelled(text, hint, control);
}

function number(name, text, hint, { min, max, step }) {
  const control = element("input", { type: "number", min, max, step, required: true });
  fields.set(name, { read: () => control.valueAsNumber, write: (value) => (control.value = value) });
  return labelled(text, hint, control);
}

function tick(name, text, hint) {
  const control = element("input", { type: "checkbox" });
  fields.set(name, { read: () => control.checked, write: (value) => (control.checked = value) });
  const about = element("span", { className: "aside", textContent: hint });
  return element("div", {}, element("label", { className: "tick" }, control, text), about);
}

function tiling() {
  const choice = element("select");
  const choices = [["off", "Whole picture only"], ["auto", "Tiles where the picture is large"], [CUSTOM, "Tiles of my size"]];
  for (const [value, text] of choices) choice.append(element("option", { value, textContent: text }));
  const tile = element("input", { type: "number", min: 160, max: 2048, step: 1, value: TILE.tile });
  const overlap = element("input", { type: "number", min: 0, max: 0.5, step: 0.05, value: TILE.overlap });
  const own = element(
    "div",
    { className: "pair" },
    element("label", {}, "Tile in pixels", tile),
    element("label", {}, "Overlap, of 1", overlap),
  );
  const showOwn = () => (own.hidden = choice.value !== CUSTOM);
  choice.addEventListener("change", showOwn);
  fields.set("tiling", {
    read: () =>
      choice.value === CUSTOM ? { tile: tile.valueAsNumber, overlap: overlap.valueAsNumber } : choice.value,
    write: (value) => {
      choice.value = typeof value === "string" ? value : CUSTOM;
      if (typeof value !== "string") [tile.value, overlap.value] = [value.tile, value.overlap];
      showOwn();
    },
  });
  const made = labelled("Tiles", "For objects of a few pixels; takes several times as long.", choice);
  made.append(own);
  return made;
}

function classes(names) {
  const inputs = names.map((name) => element("input", { type: "checkbox", value: name }));
  fields.set("class_names", {
    read: () => {
      const ticked = inputs.filter((one) => one.checked).map((one) => one.value);
      return ticked.length === inputs.length ? null : ticked;
    },
    write: (value) => inputs.forEach((one) => (one.checked = !value || value.includes(one.value))),
  });
  const labels = inputs.map((one) => element("label", { className: "tick" }, one, one.value));
  const all = element("div", { className: "ticks" }, ...labels);
  return element("fieldset", { className: "wide" }, element("legend", { textContent: "Classes" }), all);
}

function precisionChoices(offered) {
  const texts = { auto: "automatic", fp32: "fp32, the reference", int8: "int8, the fastest" };
  return offered.map((value) => [value, texts[value] || value]);
}

function formOf(model) {
  const { image_size: usual } = state.defaults;
  const sizes = [...new Set([...IMAGE_SIZES, usual])].sort((a, b) => a - b);
  const parts = [
    tiling(),
    select("image_size", "Network input", "Longer side in pixels; larger finds smaller objects, slower.", sizes.map((size) => [size, `${size} px`])),
    number("frame_stride", "Every n-th frame", "Of videos; only these frames are looked at and charged.", { min: 1, max: 10000, step: 1 }),
    tick("tracking", "Track objects", "An object of a video keeps its number from frame to frame."),
    number("confidence_floor", "Lowest confidence", "What lies below is not kept at all.", { min: 0.01, max: 0.99, step: 0.01 }),
    number("max_detections", "Most objects in a frame", "The most confident are kept.", { min: 1, max: 500, step: 1 }),
    tick("one_class_per_object", "One class for each object", "Otherwise a box of each class may stay."),
    number("iou", "Overlap of one object", "Boxes that overlap by more are one object.", { min: 0.05, max: 1, step: 0.05 }),
    select("metric", "Overlap is measured over", "Over the smaller box joins parts cut off by a tile.", [["iou", "the union of two boxes"], ["ios", "the smaller box"]]),
    select("merge", "Boxes of one object", "Automatic takes their mean in tiled pictures.", [["auto", "automatic"], ["nms", "the most confident stays"], ["nmm", "they are joined"], ["vote", "their mean is taken"]]),
  ];
  if (model.precisions?.length > 1) {
    parts.push(select("precision", "Precision", "Automatic is the fastest that costs no accuracy; int8 may lose a little.", precisionChoices(model.precisions)));
  }
  if (model.class_names?.length > 1) parts.push(classes(model.class_names));
  return parts;
}

// -- the form as a whole

// Shows the form for a model; hidden where the API offers no options.
export function showOptions(model) {
  const chosen = state.defaults ? chosenOptions() : {};
  state.defaults = model?.default_options || null;
  byId("options").hidden = !state.defaults;
  fields.clear();
  usualChanges.tell();
  if (!state.defaults) return;
  byId("option-fields").replaceChildren(...formOf(model));
  for (const [name, field] of fields) field.write(chosen[name] ?? state.defaults[name]);
  tellChosen();
}

// What differs from the model's own values.
export function chosenOptions() {
  const chosen = {};
  for (const [name, { read }] of fields) {
    const value = read();
    if (JSON.stringify(value) !== JSON.stringify(state.defaults[name])) chosen[name] = value;
  }
  return chosen;
}

const TEXTS = {
  tiling: (value) => (typeof value === "string" ? `tiles ${value}` : `tiles of ${value.tile} px`),
  image_size: (value) => `${value} px`,
  frame_stride: (value) => `every ${value}${["th", "st", "nd", "rd"][value % 100 > 10 && value % 100 < 14 ? 0 : value % 10] || "th"} frame`,
  tracking: (value) => (value ? "tracked" : "not tracked"),
  class_names: (value) => (value ? value.join(", ") : "all classes"),
  precision: (value) => value,
  confidence_floor: (value) => `from ${Math.round(value * 100)}%`,
};

// Options as a few words, only those that are not the usual ones.
export function optionsText(options) {
  const told = [];
  if (!state.defaults) return "";
  for (const [name, text] of Object.entries(TEXTS)) {
    const usual = state.defaults[name];
    if (!(name in options) || JSON.stringify(options[name]) === JSON.stringify(usual)) continue;
    told.push(text(options[name]));
  }
  return told.join(" · ");
}

function tellChosen() {
  const chosen = chosenOptions();
  const count = Object.keys(chosen).length;
  byId("options-chosen").textContent = optionsText(chosen) || (count ? `${count} changed` : "");
}

export function listenToOptions() {
  byId("option-fields").addEventListener("change", () => {
    tellChosen();
    optionsChanges.tell();
  });
}
