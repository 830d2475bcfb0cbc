// One picture as large as the window, or at its own size: small objects want to be looked at.

import { byId } from "./page.js";

const state = { files: [], place: 0, partsOf: null, asked: 0 };

// `partsOf` makes what is shown of a file: a picture, and perhaps boxes over it.
export function openViewer(view, file, partsOf) {
  state.files = view.files.filter((one) => one.type === "image" && one.annotated_url);
  state.place = state.files.indexOf(file);
  state.partsOf = partsOf;
  byId("viewer").showModal();
  show();
}

async function show() {
  const file = state.files[state.place];
  const asked = ++state.asked;
  const several = state.files.length > 1;
  byId("viewer-title").textContent = file.filename;
  byId("viewer-place").textContent = several ? `${state.place + 1} of ${state.files.length}` : "";
  for (const id of ["viewer-previous", "viewer-next"]) byId(id).hidden = !several;
  setZoom(false);
  byId("viewer-picture").textContent = "Loading…"; // not the last picture under this one's name
  try {
    const parts = await state.partsOf(file);
    if (asked === state.asked) byId("viewer-picture").replaceChildren(...parts);
  } catch (refusal) {
    if (asked === state.asked) byId("viewer-picture").textContent = refusal.message;
  }
}

function turn(step) {
  state.place = (state.place + step + state.files.length) % state.files.length;
  show();
}

function setZoom(isFull) {
  byId("viewer").classList.toggle("full", isFull);
  byId("viewer-zoom").textContent = isFull ? "Fit" : "Full size";
}

function zoom(event) {
  const stage = byId("viewer-stage");
  const { left, top, width, height } = byId("viewer-picture").getBoundingClientRect();
  const isPress = event.currentTarget === stage && event.clientX;
  const [x, y] = isPress ? [(event.clientX - left) / width, (event.clientY - top) / height] : [0.5, 0.5];
  setZoom(!byId("viewer").classList.contains("full"));
  // What was pressed stays in the middle.
  stage.scrollTo(x * stage.scrollWidth - stage.clientWidth / 2, y * stage.scrollHeight - stage.clientHeight / 2);
}

export function listenToViewer() {
  byId("viewer-previous").addEventListener("click", () => turn(-1));
  byId("viewer-next").addEventListener("click", () => turn(1));
  byId("viewer-zoom").addEventListener("click", zoom);
  byId("viewer-stage").addEventListener("click", zoom);
  byId("viewer").addEventListener("keydown", ({ key }) => {
    if (byId("viewer").classList.contains("full")) return; // the keys scroll
    if (key === "ArrowLeft") turn(-1);
    if (key === "ArrowRight") turn(1);
  });
  byId("viewer").addEventListener("close", () => {
    state.asked += 1; // what is still on its way is of no use any more
    byId("viewer-picture").replaceChildren();
  });
}
