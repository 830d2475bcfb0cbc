// Uploads by a choice of files or by drag and drop, with progress and a report file by file.

import { newIdempotencyKey, sessionEnds, uploadFile } from "./api.js";
import { choiceChanges, chosenDataset, refreshDatasets } from "./datasets.js";
import { refreshBalance } from "./ledger.js";
import { amount, announce, button, byId, element, plural } from "./page.js";

const LONGEST_REPORT = 500;
const DOUBTFUL_KEY = "odproject.doubtful";

const state = {
  current: null, // the XMLHttpRequest under way
  isBusy: false,
  reportedId: null, // the dataset that the report is about
  report: newReport(),
  doubtful: keptDoubts(), // keys of uploads that nobody knows the end of: none is paid twice
};

function newReport() {
  return { accepted: 0, refused: 0, doubtful: 0, tokens: 0 };
}

// What this tab knew before the page was loaded again, perhaps in the middle of an upload.
function keptDoubts() {
  try {
    return new Map(JSON.parse(sessionStorage.getItem(DOUBTFUL_KEY)));
  } catch {
    return new Map(); // not ours
  }
}

function keepDoubts(...more) {
  sessionStorage.setItem(DOUBTFUL_KEY, JSON.stringify([...state.doubtful, ...more]));
}

async function uploadFiles(files) {
  const dataset = chosenDataset();
  if (!files.length || !dataset || dataset.is_blocked || state.isBusy) return;
  state.isBusy = true;
  clearReport(dataset.id);
  announce(`Uploading ${plural(files.length, "file")}.`);
  byId("uploading").hidden = false;
  for (const [position, file] of [...files].entries()) {
    const which = files.length > 1 ? ` (${position + 1} of ${files.length})` : "";
    if (!(await reportOne(uploadOf(file, dataset.id), which))) break;
  }
  byId("files").value = "";
  endUpload();
}

function endUpload() {
  byId("uploading").hidden = true;
  state.isBusy = false;
  refreshBalance();
  refreshDatasets();
}

// The upload of a file. One in doubt keeps its key, also when the file is chosen anew: with the
// same key it is taken, and paid, once.
function uploadOf(file, datasetId) {
  const id = JSON.stringify([datasetId, file.name, file.size, file.lastModified]);
  const idempotencyKey = state.doubtful.get(id) || newIdempotencyKey();
  return { id, file, datasetId, idempotencyKey };
}

// Uploads a file and reports it; resolves to whether to go on with the next one.
async function reportOne(one, which = "") {
  const filename = one.file.name;
  keepDoubts([one.id, one.idempotencyKey]); // in case that the page goes before the answer comes
  try {
    addReport(filename, await uploadOne(one, which));
    state.doubtful.delete(one.id);
  } catch (refusal) {
    const { message: error, cancelled } = refusal;
    if (refusal.isInDoubt || (state.doubtful.has(one.id) && refusal.keepsDoubt)) {
      state.doubtful.set(one.id, one.idempotencyKey);
      addReport(filename, { doubtful: [{ filename, error }] });
      offerRetry(one, "doubtful");
    } else {
      state.doubtful.delete(one.id);
      addReport(filename, { refused: [{ filename, error }] });
      if (refusal.status >= 500) offerRetry(one, "refused");
    }
    return !cancelled;
  } finally {
    keepDoubts();
  }
  return true;
}

function offerRetry(one, kind) {
  const retry = button("Try again", async () => {
    if (state.isBusy) return;
    state.isBusy = true;
    retry.parentElement.remove();
    state.report[kind] -= 1;
    byId("uploading").hidden = false;
    await reportOne(one);
    endUpload();
  });
  byId("report").querySelector("li:last-child").append(retry);
}

function uploadOne({ file, datasetId, idempotencyKey }, which) {
  const draw = (share) => {
    const verb = share === null ? "Checking" : "Uploading";
    drawProgress(`${verb} ${file.name}${which}`, share);
  };
  draw(0);
  const onStart = (upload) => (state.current = upload);
  const path = `/api/v1/datasets/${datasetId}/uploads/`;
  const settings = { onStart, onProgress: draw, idempotencyKey };
  return uploadFile(path, file, settings).finally(() => {
    state.current = null;
  });
}

function drawProgress(text, share) {
  const bar = byId("upload-progress");
  const percent = share === null ? "" : ` – ${Math.floor(share * 100)}%`;
  byId("upload-label").textContent = text + percent;
  // What has arrived is charged when it is accepted; then there is nothing left to cancel.
  byId("upload-cancel").hidden = share === null;
  if (share === null) bar.removeAttribute("value");
  else bar.value = share * 100;
}

// -- the report

function clearReport(datasetId) {
  byId("report").replaceChildren();
  state.reportedId = datasetId;
  state.report = newReport();
}

function addReport(uploadName, { accepted = [], refused = [], doubtful = [], cost_tokens: cost = 0 }) {
  if (!byId("report").firstChild) byId("report").append(element("h4"), element("ul"));
  const [title, list] = byId("report").children;
  state.report.accepted += accepted.length;
  state.report.refused += refused.length;
  state.report.doubtful += doubtful.length;
  state.report.tokens += cost;
  title.textContent = reportTitle(state.report);
  // What went wrong comes first: it is what the reader can do something about.
  const lines = [
    ...doubtful.map((file) => line(uploadName, file.filename, doubtText(file), "doubtful")),
    ...refused.map((file) => line(uploadName, file.filename, `Refused: ${file.error}`, "refused")),
    ...accepted.map((file) => line(uploadName, file.name, acceptedText(file))),
  ];
  list.append(...lines.slice(0, LONGEST_REPORT));
  const rest = lines.length - LONGEST_REPORT;
  if (rest > 0) list.append(element("li", { textContent: `and ${rest} more of ${uploadName}` }));
}

function reportTitle({ accepted, refused, doubtful, tokens }) {
  const told = [];
  if (accepted) told.push(`${plural(accepted, "file")} accepted for ${amount(tokens)} tokens`);
  if (refused) told.push(`${plural(refused, "file")} refused, free of charge`);
  if (doubtful) told.push(`${plural(doubtful, "file")} perhaps accepted and charged`);
  return told.join(", ");
}

function doubtText({ error }) {
  return `Nobody knows yet whether it was accepted: ${error} Try again; it is charged once at most.`;
}

function acceptedText({ media_type: type, frame_count: frames, cost_tokens: cost, warning }) {
  const what = type === "video" ? `Video, ${plural(frames, "frame")}` : "Image";
  return [`${what}, ${amount(cost)} tokens`, warning].filter(Boolean).join(". ");
}

function line(uploadName, fileName, text, className = "") {
  const name = fileName === uploadName ? uploadName : `${uploadName}: ${fileName}`;
  return element("li", { className }, name, element("span", { textContent: text }));
}

// -- what starts an upload

function acceptDrops() {
  const zone = byId("drop");
  // A file dropped beside the zone would otherwise replace the page.
  for (const kind of ["dragover", "drop"]) window.addEventListener(kind, (event) => event.preventDefault());
  zone.addEventListener("dragover", () => zone.classList.add("over"));
  zone.addEventListener("dragleave", () => zone.classList.remove("over"));
  zone.addEventListener("drop", (event) => {
    zone.classList.remove("over");
    uploadFiles(event.dataTransfer.files);
  });
}

export function listenToUploads() {
  byId("files").addEventListener("change", () => uploadFiles(byId("files").files));
  byId("upload-cancel").addEventListener("click", () => state.current?.abort());
  choiceChanges.listen((dataset) => {
    if (dataset?.id !== state.reportedId && !state.isBusy) clearReport(null);
  });
  sessionEnds.listen(() => {
    state.isBusy = false;
    state.current?.abort();
  });
  window.addEventListener("beforeunload", (event) => {
    if (state.isBusy) event.preventDefault(); // the browser asks whether to leave
  });
  acceptDrops();
}
