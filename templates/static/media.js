// The files of the chosen dataset, as thumbnails.

import { ask, fetchBlob, nextPath, request } from "./api.js";
import { amount, announce, button, byId, confirmed, element, plural, showAlert, signal, whenSeen } from "./page.js";

const SHOWN_FIRST = 12;
const SHOWN_MORE = 48;
const ICONS = {
  image: new URL("./picture.svg", import.meta.url).href,
  video: new URL("./video.svg", import.meta.url).href,
};

export const deletions = signal(); // a dataset has a file less

const state = { datasetId: null, more: "", version: 0 };

const listPath = (datasetId) => `/api/v1/datasets/${datasetId}/media-files/`;

// Shows a dataset's newest files; whatever was asked for another dataset comes too late.
export async function showMediaFiles(dataset) {
  const version = ++state.version;
  if (dataset?.id !== state.datasetId) byId("media-files").replaceChildren();
  state.datasetId = dataset?.id ?? null;
  byId("media").hidden = !dataset || !(dataset.image_count || dataset.frame_count);
  if (byId("media").hidden) return;
  state.more = `${listPath(dataset.id)}?ordering=-id&page_size=${SHOWN_FIRST}`;
  await showPage(version, (tiles) => byId("media-files").replaceChildren(...tiles));
}

export function contentText({ image_count: images, frame_count: frames }) {
  const told = [];
  if (images) told.push(plural(images, "picture"));
  if (frames) told.push(plural(frames, "frame"));
  return told.join(", ") || "Empty";
}

async function showPage(version, place) {
  showAlert("media-alert", "");
  try {
    const page = await ask(state.more);
    if (version !== state.version) return;
    place(page.results.map(tile));
    state.more = nextPath(state.more, page);
    const left = page.count - byId("media-files").children.length;
    byId("more-media").hidden = !state.more;
    byId("more-media").textContent = `Show more (${left.toLocaleString("en")} left)`;
  } catch (refusal) {
    if (version === state.version) showAlert("media-alert", refusal.message);
  }
}

// Pages of another size would not fit together, so the second one begins anew.
async function showMore() {
  const shown = byId("media-files").children.length;
  byId("more-media").disabled = true; // a page that is asked for twice would stand there twice
  if (shown === SHOWN_FIRST) {
    state.more = `${listPath(state.datasetId)}?ordering=-id&page_size=${SHOWN_MORE}`;
    await showPage(state.version, (tiles) => byId("media-files").append(...tiles.slice(SHOWN_FIRST)));
  } else {
    await showPage(state.version, (tiles) => byId("media-files").append(...tiles));
  }
  byId("more-media").disabled = false;
  byId("media-files").children[shown]?.focus();
}

function tile(file) {
  const picture = element("img", { src: ICONS[file.media_type], alt: "", className: "icon" });
  const name = element("span", { className: "name", textContent: file.name, title: file.name });
  const details = [`${file.width} × ${file.height}`];
  if (file.media_type === "video") details.push(plural(file.frame_count, "frame"));
  const about = element("span", { className: "aside", textContent: details.join(", ") });
  about.title = `${amount(file.cost_tokens)} tokens`;
  const made = element("li", { tabIndex: -1 }, picture, name, about, deletion(file));
  if (file.thumbnail_url) whenSeen(made, () => loadThumbnail(picture, file.thumbnail_url));
  return made;
}

function deletion(file) {
  const made = button("\u00d7", () => remove(file), "quiet delete");
  made.title = "Delete this file";
  made.setAttribute("aria-label", `Delete ${file.name}`);
  return made;
}

async function remove({ id, name }) {
  const text = "What it cost is not paid back. What jobs found in it stays. This cannot be undone.";
  if (!(await confirmed({ title: `Delete ${name}?`, text, action: "Delete file" }))) return;
  try {
    await request(`/api/v1/media-files/${id}/`, { method: "DELETE" });
  } catch (refusal) {
    showAlert("media-alert", refusal.message);
    return;
  }
  announce(`File ${name} was deleted.`);
  deletions.tell();
}

// Fetched with the token in a header. The picture is kept by its element alone: its address is
// given back as soon as it is decoded.
async function loadThumbnail(picture, path) {
  try {
    const address = URL.createObjectURL(await fetchBlob(path));
    const giveBack = () => URL.revokeObjectURL(address);
    picture.addEventListener("load", giveBack, { once: true });
    picture.addEventListener("error", giveBack, { once: true });
    picture.className = "";
    picture.src = address;
  } catch {
    // The icon stays.
  }
}

export function listenToMedia() {
  byId("more-media").addEventListener("click", showMore);
}
