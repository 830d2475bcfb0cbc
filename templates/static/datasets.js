// The list of datasets: create, choose, change, delete.

import { ask, nextPath, request } from "./api.js";
import { announce, byId, confirmed, element, showAlert, signal } from "./page.js";
import { contentText, deletions } from "./media.js";

const PATH = "/api/v1/datasets/";
const PAGE_SIZE = 50;

// Another dataset is chosen, or the chosen one may be another now.
export const choiceChanges = signal();

const state = { datasets: [], chosenId: null, asked: PAGE_SIZE, more: false, version: 0 };

export function chosenDataset() {
  return state.datasets.find((dataset) => dataset.id === state.chosenId);
}

// An answer that was asked for earlier and comes later knows nothing of a dataset created since.
export async function refreshDatasets() {
  const version = ++state.version;
  try {
    const newest = await newestDatasets();
    if (version !== state.version) return;
    Object.assign(state, newest);
  } catch (refusal) {
    if (version !== state.version) return;
    showAlert("datasets-alert", refusal.message);
    choiceChanges.tell(chosenDataset());
    return;
  }
  showAlert("datasets-alert", "");
  if (!chosenDataset()) state.chosenId = state.datasets[0]?.id ?? null;
  draw();
  choiceChanges.tell(chosenDataset());
}

async function newestDatasets() {
  const datasets = [];
  let path = `${PATH}?page_size=${PAGE_SIZE}`;
  while (path && datasets.length < state.asked) {
    const page = await ask(path);
    datasets.push(...page.results);
    path = nextPath(path, page);
  }
  return { datasets, more: Boolean(path) };
}

function draw() {
  const focused = document.activeElement?.name === "dataset";
  const labels = state.datasets.map(label);
  byId("datasets").replaceChildren(byId("datasets").querySelector("legend"), ...labels);
  if (focused) byId("datasets").querySelector(":checked")?.focus();
  byId("no-datasets").hidden = labels.length > 0;
  if (!labels.length) byId("creation").open = true;
  byId("creation").hidden = false; // not before, or it would open under somebody's finger
  byId("more-datasets").hidden = !state.more;
  drawChosen(chosenDataset());
}

function label(dataset) {
  const input = element("input", { type: "radio", name: "dataset", value: dataset.id });
  input.checked = dataset.id === state.chosenId;
  input.addEventListener("change", () => choose(dataset.id));
  const name = element("b", { textContent: dataset.name });
  const about = element("span", { className: "about", textContent: aboutText(dataset) });
  const parts = [input, element("span", {}, name, about)];
  if (dataset.is_blocked) parts.push(element("span", { className: "state Failed", textContent: "blocked" }));
  return element("label", {}, ...parts);
}

function aboutText(dataset) {
  return [contentText(dataset), ...dataset.tags.map((tag) => `#${tag}`)].join(" · ");
}

function drawChosen(dataset) {
  byId("dataset").hidden = !dataset;
  if (!dataset) return;
  byId("dataset-title").textContent = dataset.name;
  byId("dataset-about").textContent = aboutText(dataset);
  const reason = dataset.block_reason ? ` The reason: ${dataset.block_reason}` : "";
  showAlert("blocked", dataset.is_blocked ? `An administrator has blocked this dataset.${reason}` : "");
  byId("files").disabled = dataset.is_blocked;
  byId("drop").hidden = dataset.is_blocked;
}

function choose(id) {
  state.chosenId = id;
  draw();
  choiceChanges.tell(chosenDataset());
}

// -- create, change, delete

function tagsIn(text) {
  const words = text.split(",").map((word) => word.trim());
  return [...new Set(words.filter(Boolean))];
}

async function create(event) {
  event.preventDefault();
  showAlert("create-alert", "");
  const keys = { name: byId("create-name").value, tags: tagsIn(byId("create-tags").value) };
  try {
    const dataset = await ask(PATH, { method: "POST", keys });
    byId("create").reset();
    byId("creation").open = false;
    state.chosenId = dataset.id;
    await refreshDatasets();
    announce(`Dataset ${dataset.name} was created.`);
    byId("files").focus();
  } catch (refusal) {
    showAlert("create-alert", refusal.message);
  }
}

function openChange() {
  const dataset = chosenDataset();
  byId("change-name").value = dataset.name;
  byId("change-tags").value = dataset.tags.join(", ");
  showAlert("change-alert", "");
  byId("change").showModal();
}

async function change(event) {
  event.preventDefault();
  showAlert("change-alert", "");
  const keys = { name: byId("change-name").value, tags: tagsIn(byId("change-tags").value) };
  try {
    const dataset = await ask(`${PATH}${state.chosenId}/`, { method: "PATCH", keys });
    byId("change").close();
    announce(`Dataset ${dataset.name} was changed.`);
    await refreshDatasets();
  } catch (refusal) {
    showAlert("change-alert", refusal.message);
  }
}

async function remove() {
  const { id, name } = chosenDataset();
  const text = "Its files can no longer be used. Its jobs and their results stay. This cannot be undone.";
  if (!(await confirmed({ title: `Delete ${name}?`, text, action: "Delete dataset" }))) return;
  try {
    await request(`${PATH}${id}/`, { method: "DELETE" });
    announce(`Dataset ${name} was deleted.`);
  } catch (refusal) {
    showAlert("datasets-alert", refusal.message);
    return;
  }
  await refreshDatasets();
  (byId("datasets").querySelector(":checked") || byId("create-name")).focus();
}

export function listenToDatasets() {
  byId("create").addEventListener("submit", create);
  byId("change-dataset").addEventListener("click", openChange);
  byId("change-form").addEventListener("submit", change);
  byId("delete-dataset").addEventListener("click", remove);
  byId("more-datasets").addEventListener("click", () => {
    state.asked += PAGE_SIZE;
    refreshDatasets();
  });
  deletions.listen(refreshDatasets);
}
