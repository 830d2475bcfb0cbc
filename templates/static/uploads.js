// Uploads by a choice of files or by drag and drop, with progress and a report file by file.

import { connectionIsBack, newIdempotencyKey, sessionEnds, uploadFile } from "./api.js";
import { choiceChanges, chosenDataset, refreshDatasets } from "./datasets.js";
import { refreshBalance } from "./ledger.js";
import { amount, announce, button, byId, element, plural, signal } from "./page.js";

const LONGEST_REPORT = 500;
const MOST_TRIES = 3;
const DOUBTFUL_KEY = "odproject.doubtful";

export const uploadEnds = signal(); // nothing waits any more, and a dataset may hold more than before

const state = {
  waiting: [], // uploads whose turn has not come yet
  begun: 0, // how many had their turn since the last rest
  current: null, // an AbortController for the upload under way
  isSent: false, // all of it: then nobody can take it back
  isBusy: false,
  drawAgain: () => {}, // the progress, when more waits than it tells
  reportedIds: new Set(), // the datasets that the report is about
  report: newReport(),
  retries: new Map(), // id of an upload -> its line in the report, while it may be tried again
  // Keys of uploads that nobody knows the end of, or that go on where they were: none is paid twice.
  doubtful: keptDoubts(),
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

// Files go to the dataset that is chosen now, also if their turn comes when another one is.
function uploadFiles(files) {
  const dataset = chosenDataset();
  if (!files.length || !dataset || dataset.is_blocked) return;
  if (!state.isBusy) clearReport();
  state.reportedIds.add(dataset.id);
  enqueue([...files].map((file) => uploadOf(file, dataset.id)));
}

function enqueue(uploads) {
  state.waiting.push(...uploads);
  const files = plural(uploads.length, "file");
  announce(state.isBusy ? `Waiting to be uploaded: ${files}.` : `Uploading ${files}.`);
  if (state.isBusy) state.drawAgain();
  else uploadWaiting();
}

async function uploadWaiting() {
  state.isBusy = true;
  state.begun = 0;
  byId("uploading").hidden = false;
  while (state.waiting.length) {
    state.begun += 1;
    await reportOne(state.waiting.shift());
  }
  uploadEnds.tell();
  byId("uploading").hidden = true;
  state.isBusy = false;
  announce(reportTitle(state.report));
  refreshBalance();
  refreshDatasets();
}

// What waits and, as long as it can be taken back, what is under way.
function cancel() {
  const left = state.waiting.splice(0);
  if (left.length) announce(`Not uploaded: ${plural(left.length, "waiting file")}.`);
  if (!state.isSent) state.current?.abort();
  state.drawAgain();
}

function uploadOf(file, datasetId) {
  const id = JSON.stringify([datasetId, file.name, file.size, file.lastModified]);
  return { id, file, datasetId, idempotencyKey: "", arrivedBytes: 0 };
}

// Uploads a file and reports it. One in doubt keeps its key, also when the file is chosen anew, even
// before the doubt: with the same key it is taken, and paid, once.
async function reportOne(one) {
  const filename = one.file.name;
  withdrawLine(one.id);
  one.idempotencyKey ||= state.doubtful.get(one.id) || newIdempotencyKey();
  keepDoubts([one.id, one.idempotencyKey]); // in case that the page goes before the answer comes
  try {
    addReport(filename, await uploadOne(one));
    state.doubtful.delete(one.id);
  } catch (refusal) {
    const { message: error } = refusal;
    if (refusal.isInDoubt || (state.doubtful.has(one.id) && refusal.keepsDoubt)) {
      state.doubtful.set(one.id, one.idempotencyKey);
      addReport(filename, { doubtful: [{ filename, error }] });
      offerRetry(one, "doubtful");
    } else {
      if (refusal.keepsBytes) state.doubtful.set(one.id, one.idempotencyKey);
      else state.doubtful.delete(one.id);
      addReport(filename, { refused: [{ filename, error }] });
      if (refusal.status >= 500) offerRetry(one, "refused");
    }
  } finally {
    keepDoubts();
  }
}

function offerRetry(one, kind) {
  const item = byId("report").querySelector("li:last-child");
  state.retries.set(one.id, { item, kind });
  const retry = () => {
    if (!state.waiting.some(({ id }) => id === one.id)) enqueue([one]);
  };
  item.append(button("Try again", retry));
}

// Not before an upload has its turn once more: what waits for that may be cancelled.
function withdrawLine(id) {
  if (!state.retries.has(id)) return;
  const { item, kind } = state.retries.get(id);
  state.retries.delete(id);
  state.report[kind] -= 1;
  item.remove();
}

// A connection that breaks fails neither the file nor what waits behind it: the same is sent again,
// under the same key, once the service can be reached.
async function uploadOne(one) {
  state.current = new AbortController();
  const { signal } = state.current;
  try {
    for (let tries = 1; ; tries++) {
      const { arrivedBytes } = one;
      try {
        return await send(one, signal);
      } catch (refusal) {
        if (one.arrivedBytes > arrivedBytes) tries = 1; // it has come further, however often it breaks
        if (refusal.status || !refusal.isInDoubt || tries === MOST_TRIES) throw refusal;
        state.doubtful.set(one.id, one.idempotencyKey);
        const isSent = false; // nobody waits for an answer, so this may be cancelled
        const label = () => `${one.file.name} waits for the connection${whichText()}`;
        draw(() => drawProgress(label(), null, isSent));
        if (!(await connectionIsBack(signal))) throw refusal;
      }
    }
  } finally {
    state.current = null;
    state.drawAgain = () => {};
  }
}

function send(one, abortSignal) {
  const { file, datasetId, idempotencyKey } = one;
  const onProgress = (share) => {
    const verb = share === null ? "Checking" : "Uploading";
    draw(() => drawProgress(`${verb} ${file.name}${whichText()}`, share));
  };
  onProgress(0);
  const onArrival = (bytes) => {
    one.arrivedBytes = bytes;
  };
  const path = `/api/v1/datasets/${datasetId}/`;
  return uploadFile(path, file, { abortSignal, onProgress, onArrival, idempotencyKey });
}

function draw(drawing) {
  drawing();
  state.drawAgain = drawing;
}

function whichText() {
  const count = state.begun + state.waiting.length;
  return count > 1 ? ` (${state.begun} of ${count})` : "";
}

function drawProgress(text, share, isSent = share === null) {
  const bar = byId("upload-progress");
  const percent = share === null ? "" : ` – ${Math.floor(share * 100)}%`;
  byId("upload-label").textContent = text + percent;
  // What has arrived is charged when it is accepted; only what waits is left to cancel then.
  state.isSent = isSent;
  byId("upload-cancel").hidden = isSent && !state.waiting.length;
  if (share === null) bar.removeAttribute("value");
  else bar.value = share * 100;
}

// -- the report

function clearReport() {
  byId("report").replaceChildren();
  state.reportedIds.clear();
  state.report = newReport();
  state.retries.clear();
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
  byId("files").addEventListener("change", () => {
    uploadFiles(byId("files").files);
    byId("files").value = ""; // or the same files, chosen again, would be no change
  });
  byId("upload-cancel").addEventListener("click", cancel);
  let lastId = null;
  choiceChanges.listen((dataset) => {
    const isOther = dataset?.id !== lastId; // news of the same one are no reason to lose the report
    lastId = dataset?.id;
    if (isOther && !state.reportedIds.has(lastId) && !state.isBusy) clearReport();
  });
  sessionEnds.listen(() => {
    state.isBusy = false;
    state.waiting = [];
    state.current?.abort();
  });
  window.addEventListener("beforeunload", (event) => {
    if (state.isBusy) event.preventDefault(); // the browser asks whether to leave
  });
  acceptDrops();
}
