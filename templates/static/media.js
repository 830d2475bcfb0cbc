// The files of the chosen dataset, as thumbnails.

import { ask, fetchBlob, nextPath } from "./api.js";
import { amount, byId, element, plural, showAlert, whenSeen } from "./page.js";

const SHOWN_FIRST = 12;
const SHOWN_MORE = 48;
const ICONS = {
  image: new URL("./picture.svg", import.meta.url).href,
  video: new URL("./video.svg", import.meta.url).href,
};

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
  const made = element("li", { tabIndex: -1 }, picture, name, about);
  if (file.thumbnail_url) whenSeen(made, () => loadThumbnail(picture, file.thumbnail_url));
  return made;
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
