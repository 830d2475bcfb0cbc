// The page for people. Plain JavaScript over the service's HTTP API and its websocket.
// Whatever comes from the service or from a file's name reaches the page as text, never as HTML.

const FINISHED = new Set(["Completed", "Failed", "Aborted"]);
const TOKEN_KEY = "odproject.token";
const EMAIL_KEY = "odproject.email";
const REASON_KEY = "odproject.reason"; // why the session ended, told on the page after it
const SHOWN_AT_ONCE = 24;
const LONGEST_REPORT = 500;
const BROKEN_OFF = "The connection broke off. If the price below has grown, the file did arrive.";
const LARGEST_COUNTED_FRAMES = 20000; // a result beyond that is for programs, not for this table
const LARGEST_AUTOPLAY_FRAMES = 3000; // longer videos load when asked for
const POLL_LIVE_MS = 60000; // also while the socket is up: one that died silently tells nothing
const POLL_OFFLINE_MS = 3000;
const JOBS_ASKED_AT_ONCE = 10;
const LONGEST_PAUSE_MS = 30000;
const POLICY_VIOLATION = 1008;
const SESSION_ENDED = 4001;

const byId = (id) => document.getElementById(id);

const state = {
  token: sessionStorage.getItem(TOKEN_KEY) || "",
  email: sessionStorage.getItem(EMAIL_KEY) || "",
  balance: null,
  datasets: [],
  chosen: "", // the name of the dataset on the right
  names: new Map(), // dataset id -> name
  jobs: new Map(), // job id -> what is known of it
  cards: new Map(), // job id -> its card on the page
  shownJobs: SHOWN_AT_ONCE,
  report: { accepted: 0, refused: 0, tokens: 0 }, // the uploads reported on the page, in sum
  upload: null, // the XMLHttpRequest under way
  socket: null,
  lastSeq: null,
  pauseMs: 1000,
  timers: new Set(),
};

// -- small helpers

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

function showAlert(id, text) {
  byId(id).textContent = text;
  byId(id).hidden = !text;
}

function announce(text) {
  byId("announcer").textContent = text;
}

function amount(tokens) {
  return tokens.toLocaleString("en", { maximumFractionDigits: 2 });
}

function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

function later(action, delayMs) {
  const timer = setTimeout(() => {
    state.timers.delete(timer);
    action();
  }, delayMs);
  state.timers.add(timer);
}

// -- the HTTP API

class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

function refusalOf(status, text) {
  let message = "";
  try {
    message = JSON.parse(text).message;
  } catch {
    // Not a problem document: a proxy may have answered.
  }
  return new Refusal(message || `The service answered with status ${status}.`, status);
}

async function request(path, { method = "GET", keys = null } = {}) {
  const headers = state.token ? { Authorization: `Bearer ${state.token}` } : {};
  const body = keys ? JSON.stringify(keys) : undefined;
  if (body) headers["Content-Type"] = "application/json";
  const token = state.token;
  let response;
  try {
    response = await fetch(path, { method, headers, body, cache: "no-store", credentials: "omit" });
  } catch {
    throw new Refusal("The service cannot be reached. Please try again in a moment.", 0);
  }
  if (response.ok) return response;
  const refusal = refusalOf(response.status, await response.text());
  if (response.status === 401 && token && token === state.token) {
    logOut("Your session has ended. Please log in again.");
  }
  throw refusal;
}

async function ask(path, options) {
  return (await request(path, options)).json();
}

// -- log in and out

function showLogIn() {
  byId("welcome").hidden = false;
  byId("workplace").hidden = true;
  byId("account").hidden = true;
}

function setMode(signsUp) {
  byId("log-in").dataset.signsUp = signsUp ? "yes" : "";
  byId("log-in-title").textContent = signsUp ? "Create an account" : "Log in";
  byId("log-in-submit").textContent = signsUp ? "Create account" : "Log in";
  byId("mode-question").textContent = signsUp ? "Registered already?" : "New here?";
  byId("mode").textContent = signsUp ? "Log in" : "Create an account";
  byId("confirm-part").hidden = !signsUp;
  byId("log-in-password").autocomplete = signsUp ? "new-password" : "current-password";
  showAlert("log-in-alert", "");
}

async function submitLogIn(event) {
  event.preventDefault();
  const email = byId("log-in-email").value.trim();
  const password = byId("log-in-password").value;
  const button = byId("log-in-submit");
  showAlert("log-in-alert", "");
  button.disabled = true;
  try {
    if (byId("log-in").dataset.signsUp) {
      const confirmPassword = byId("log-in-confirm").value;
      await ask("/user/registration", { method: "POST", keys: { email, password, confirmPassword } });
    }
    const { access } = await ask("/user/", { method: "POST", keys: { email, password } });
    state.token = access;
    state.email = email;
    sessionStorage.setItem(TOKEN_KEY, access);
    sessionStorage.setItem(EMAIL_KEY, email);
    byId("log-in").reset();
    setMode(false);
    enter();
  } catch (refusal) {
    showAlert("log-in-alert", refusal.message);
  } finally {
    button.disabled = false;
  }
}

function enter() {
  byId("welcome").hidden = true;
  byId("workplace").hidden = false;
  byId("account").hidden = false;
  byId("email").textContent = state.email;
  byId("workplace-title").focus();
  refreshBalance();
  refreshDatasets();
  connect();
  poll();
}

// A new page is the surest way to forget everything that the old one knew.
function logOut(reason = "") {
  state.token = "";
  sessionStorage.removeItem(TOKEN_KEY);
  sessionStorage.removeItem(EMAIL_KEY);
  sessionStorage.setItem(REASON_KEY, reason);
  state.upload?.abort();
  for (const timer of state.timers) clearTimeout(timer);
  state.socket?.close();
  location.reload();
}

// -- balance and datasets

async function refreshBalance() {
  try {
    state.balance = (await ask("/token")).tokenBalance;
    byId("balance").textContent = amount(state.balance);
    drawQuote();
  } catch (refusal) {
    announce(refusal.message);
  }
}

async function refreshDatasets() {
  try {
    state.datasets = (await ask("/datasets/")).map((entry) => entry.dataset);
  } catch (refusal) {
    showAlert("create-alert", refusal.message);
    return;
  }
  for (const dataset of state.datasets) state.names.set(dataset.dataset_id, dataset.dataset_name);
  if (!chosenDataset()) state.chosen = state.datasets.at(-1)?.dataset_name || "";
  drawDatasets();
  drawQuote();
  drawJobs();
}

function chosenDataset() {
  return state.datasets.find((dataset) => dataset.dataset_name === state.chosen);
}

function drawDatasets() {
  const focused = document.activeElement?.name === "dataset";
  const labels = state.datasets.map((dataset) => {
    const input = element("input", { type: "radio", name: "dataset", value: dataset.dataset_name });
    input.checked = dataset.dataset_name === state.chosen;
    input.addEventListener("change", () => chooseDataset(input.value));
    const details = [costText(dataset), ...dataset.dataset_tags.map((tag) => `#${tag}`)];
    const name = element("b", { textContent: dataset.dataset_name });
    return element("label", {}, input, element("span", {}, name, details.join(" · ")));
  });
  byId("datasets").replaceChildren(byId("datasets").querySelector("legend"), ...labels.reverse());
  if (focused) byId("datasets").querySelector(":checked")?.focus();
  byId("no-datasets").hidden = labels.length > 0;
  byId("dataset").hidden = labels.length === 0;
  byId("dataset-title").textContent = state.chosen;
}

function costText(dataset) {
  return dataset.token_cost ? `detection ${amount(dataset.token_cost)} tokens` : "empty";
}

function chooseDataset(name) {
  if (name !== state.chosen) clearReport();
  state.chosen = name;
  showAlert("start-alert", "");
  drawDatasets();
  drawQuote();
}

async function createDataset(event) {
  event.preventDefault();
  showAlert("create-alert", "");
  const keys = { datasetName: byId("create-name").value, tags: byId("create-tags").value };
  try {
    const { dataset } = await ask("/datasets/", { method: "POST", keys });
    byId("create").reset();
    clearReport();
    state.chosen = dataset.dataset_name;
    await refreshDatasets();
    chooseDataset(dataset.dataset_name);
    announce(`Dataset ${dataset.dataset_name} was created.`);
    byId("files").focus();
  } catch (refusal) {
    showAlert("create-alert", refusal.message);
  }
}

// -- uploads

async function uploadFiles(files) {
  const dataset = state.chosen;
  const isBusy = !byId("uploading").hidden;
  if (!files.length || !dataset || isBusy) return;
  clearReport();
  announce(`Uploading ${plural(files.length, "file")}.`);
  byId("uploading").hidden = false;
  for (const [position, file] of [...files].entries()) {
    const which = files.length > 1 ? ` (${position + 1} of ${files.length})` : "";
    try {
      addReport(file.name, await uploadOne(file, dataset, which));
    } catch (refusal) {
      addReport(file.name, { files: [{ filename: file.name, error: refusal.message }] });
      if (refusal.cancelled) break;
    }
  }
  byId("uploading").hidden = true;
  byId("files").value = "";
  refreshBalance();
  refreshDatasets();
}

// XMLHttpRequest, because fetch tells nothing about the progress of an upload.
function uploadOne(file, dataset, which) {
  const upload = new XMLHttpRequest();
  const body = new FormData();
  body.append("datasetName", dataset);
  body.append("file", file, file.name);
  state.upload = upload;
  drawUpload(`Uploading ${file.name}${which}`, 0);
  upload.upload.onprogress = (event) => {
    if (event.lengthComputable) drawUpload(`Uploading ${file.name}${which}`, event.loaded / event.total);
  };
  upload.upload.onload = () => drawUpload(`Checking ${file.name}${which}`, null);
  return new Promise((resolve, reject) => {
    upload.onload = () => {
      if (upload.status === 401) logOut("Your session has ended. Please log in again.");
      if (upload.status === 201) resolve(JSON.parse(upload.responseText));
      else reject(refusalOf(upload.status, upload.responseText));
    };
    upload.onerror = () => reject(new Refusal(BROKEN_OFF, 0));
    upload.onabort = () => reject(Object.assign(new Refusal("Cancelled.", 0), { cancelled: true }));
    upload.open("POST", "/upload/");
    upload.setRequestHeader("Authorization", `Bearer ${state.token}`);
    upload.send(body);
  }).finally(() => {
    state.upload = null;
  });
}

function drawUpload(text, share) {
  const bar = byId("upload-progress");
  const percent = share === null ? "" : ` – ${Math.floor(share * 100)}%`;
  byId("upload-label").textContent = text + percent;
  // What has arrived is charged when it is accepted; then there is nothing left to cancel.
  byId("upload-cancel").hidden = share === null;
  if (share === null) bar.removeAttribute("value");
  else bar.value = share * 100;
}

function clearReport() {
  byId("report").replaceChildren();
  state.report = { accepted: 0, refused: 0, tokens: 0 };
}

function addReport(uploadName, { files, token_cost: cost = 0 }) {
  const report = byId("report");
  if (!report.firstChild) report.append(element("h4"), element("ul"));
  const refused = files.filter((file) => !file.accepted);
  const accepted = files.filter((file) => file.accepted);
  state.report.accepted += accepted.length;
  state.report.refused += refused.length;
  state.report.tokens += cost;
  report.firstChild.textContent = reportTitle(state.report);
  // What went wrong comes first: it is what the reader can do something about.
  const shown = [...refused, ...accepted].slice(0, LONGEST_REPORT);
  report.lastChild.append(...shown.map((file) => reportLine(uploadName, file)));
  const rest = files.length - shown.length;
  if (rest) report.lastChild.append(element("li", { textContent: `and ${rest} more of ${uploadName}` }));
}

function reportTitle({ accepted, refused, tokens }) {
  const told = [];
  if (accepted) told.push(`${plural(accepted, "file")} accepted for ${amount(tokens)} tokens`);
  if (refused) told.push(`${plural(refused, "file")} refused, free of charge`);
  return told.join(", ");
}

function reportLine(uploadName, file) {
  const name = file.filename === uploadName ? uploadName : `${uploadName}: ${file.filename}`;
  const line = element("li", { className: file.accepted ? "" : "refused" }, name);
  let text = `Refused: ${file.error}`;
  if (file.accepted) {
    const what = file.type === "video" ? `Video, ${plural(file.frame_count, "frame")}` : "Image";
    text = `${what}, ${amount(file.token_cost)} tokens`;
  }
  line.append(element("span", { textContent: text }));
  return line;
}

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

// -- starting a job

function drawQuote() {
  const dataset = chosenDataset();
  const button = byId("start-submit");
  const quote = byId("quote");
  button.disabled = true;
  if (!dataset || !dataset.token_cost) {
    quote.textContent = "Add pictures or videos first; then the price stands here.";
    return;
  }
  const cost = dataset.token_cost;
  const price = element("b", { textContent: `${amount(cost)} tokens` });
  quote.replaceChildren("Price: ", price);
  if (state.balance === null) return;
  if (cost > state.balance) {
    quote.append(`. Your balance of ${amount(state.balance)} is too low; an administrator can top it up.`);
    return;
  }
  quote.append(` of your ${amount(state.balance)}. Only what is really processed is charged.`);
  button.disabled = false;
}

async function startJob(event) {
  event.preventDefault();
  const dataset = chosenDataset();
  if (!dataset || byId("start-submit").disabled) return;
  byId("start-submit").disabled = true;
  showAlert("start-alert", "");
  const modelVersion = byId("start").elements.model.value;
  const keys = { datasetName: dataset.dataset_name, modelId: "YOLO8", modelVersion };
  try {
    const { jobId } = await ask("/inference/", { method: "POST", keys });
    learn(jobId, { dataset_id: dataset.dataset_id, model_version: modelVersion, opens: true });
    state.cards.get(jobId)?.root.focus();
    announce(`Job ${jobId} waits for a worker.`);
    askAbout(jobId);
  } catch (refusal) {
    showAlert("start-alert", refusal.message);
  }
  await refreshBalance();
  drawQuote();
}

// -- what is known of jobs

// Notes what is told of a job; returns whether this ended it.
function note(id, news) {
  const job = state.jobs.get(id) || { id, state: "Pending", progress_percent: 0 };
  state.jobs.set(id, job);
  const wasFinished = FINISHED.has(job.state);
  if (wasFinished && !FINISHED.has(news.state)) return false; // old news, replayed
  Object.assign(job, news);
  return FINISHED.has(job.state) && !wasFinished;
}

function learn(id, news) {
  const hasEnded = note(id, news);
  drawJob(id);
  if (!hasEnded) return;
  const job = state.jobs.get(id);
  announce(`Job ${id} is ${job.state}.`);
  refreshBalance();
  if (job.opens && job.state === "Completed") showResults(id);
  else if (!job.finished_at) askAbout(id);
}

async function askAbout(id) {
  try {
    learn(id, await ask(`/api/v1/jobs/${id}`));
  } catch (refusal) {
    if (refusal.status) announce(refusal.message);
  }
}

// The oldest ones, because they are worked on first.
function askAboutUnfinished() {
  const unfinished = [...state.jobs.values()].filter((job) => !FINISHED.has(job.state));
  const oldest = unfinished.sort((a, b) => a.id - b.id).slice(0, JOBS_ASKED_AT_ONCE);
  return Promise.all(oldest.map((job) => askAbout(job.id)));
}

async function poll() {
  await askAboutUnfinished();
  const isLive = state.socket?.readyState === WebSocket.OPEN;
  if (state.token) later(poll, isLive ? POLL_LIVE_MS : POLL_OFFLINE_MS);
}

// -- the websocket

function showConnection(isLive) {
  const text = isLive ? "Live" : "Connecting again; asking every few seconds";
  byId("connection").classList.toggle("live", isLive);
  // Written only when it changes, because each writing is read out.
  if (byId("connection").textContent !== text) byId("connection").textContent = text;
}

async function connect() {
  try {
    const { ticket } = await ask("/api/v1/websocket-tickets", { method: "POST" });
    openSocket(ticket);
  } catch {
    reconnectLater();
  }
}

function openSocket(ticket) {
  const address = new URL("/", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.searchParams.set("ticket", ticket);
  address.searchParams.set("progress", "1");
  if (state.lastSeq !== null) address.searchParams.set("since", state.lastSeq);
  const socket = new WebSocket(address);
  state.socket = socket;
  socket.onmessage = (event) => {
    state.pauseMs = 1000;
    showConnection(true);
    hear(JSON.parse(event.data));
  };
  socket.onclose = (event) => {
    if (!state.token) return;
    if (event.code === SESSION_ENDED) logOut("Your session has ended. Please log in again.");
    else reconnectLater(event.code === POLICY_VIOLATION);
  };
}

function reconnectLater() {
  if (!state.token) return;
  showConnection(false);
  // Chance keeps a thousand browsers from coming back in the same moment.
  later(connect, state.pauseMs * (0.5 + Math.random()));
  state.pauseMs = Math.min(2 * state.pauseMs, LONGEST_PAUSE_MS);
}

function hear(message) {
  if (message.kind === "job.progress") {
    const { job_id: id, progress_percent, frames_done, frame_count } = message;
    learn(id, { state: "Running", progress_percent, frames_done, frame_count });
  } else if (message.kind) {
    const { job_id: id, state: jobState, dataset_id, error = "", seq } = message;
    state.lastSeq = seq;
    learn(id, { state: jobState, dataset_id, error });
  } else if (message.jobs) {
    hearJobs(message);
  }
}

function hearJobs({ jobs, seq }) {
  // After a reconnection the replayed events count on from the last one seen.
  state.lastSeq ??= seq;
  for (const { job_id: id, state: jobState, dataset_id } of jobs) {
    const news = { state: jobState, dataset_id };
    if (state.jobs.has(id)) learn(id, news);
    else note(id, news);
  }
  drawJobs();
  askAboutUnfinished();
}

// -- cards of jobs

function newestJobs() {
  return [...state.jobs.keys()].sort((a, b) => b - a).slice(0, state.shownJobs);
}

function drawJobs() {
  for (const id of newestJobs()) placeCard(id);
  byId("no-jobs").hidden = state.jobs.size > 0;
  byId("more-jobs").hidden = state.jobs.size <= state.shownJobs;
}

function drawJob(id) {
  if (state.cards.has(id)) updateCard(state.cards.get(id), state.jobs.get(id));
  else drawJobs();
}

// Cards are moved only when they are new: one that plays a video stays where it is.
function placeCard(id) {
  if (!state.cards.has(id)) {
    const card = makeCard(id);
    const older = [...state.cards.keys()].filter((other) => other < id).sort((a, b) => b - a)[0];
    byId("jobs").insertBefore(card.root, older ? state.cards.get(older).root : null);
    state.cards.set(id, card);
  }
  updateCard(state.cards.get(id), state.jobs.get(id));
}

function makeCard(id) {
  const card = {
    title: element("h3"),
    badge: element("span", { className: "state" }),
    bar: element("progress", { max: 100 }),
    line: element("p", { className: "aside" }),
    button: element("button", { type: "button", className: "quiet", textContent: "Show results" }),
    results: element("div", { className: "results", hidden: true }),
    milestone: 0,
  };
  card.bar.setAttribute("aria-label", `Progress of job ${id}`);
  card.button.setAttribute("aria-expanded", "false");
  card.button.addEventListener("click", () => (card.results.hidden ? showResults(id) : hideResults(card)));
  const head = element("div", { className: "job-head" }, card.title, card.badge, card.button);
  const progress = element("div", { className: "job-line" }, card.bar, card.line);
  card.root = element("article", { className: "card job" }, head, progress, card.results);
  card.root.dataset.job = id;
  card.root.tabIndex = -1;
  return card;
}

function updateCard(card, job) {
  const about = [state.names.get(job.dataset_id), job.model_version].filter(Boolean).join(" · ");
  card.title.replaceChildren(`Job ${job.id} `, element("span", { textContent: about }));
  card.badge.textContent = job.state;
  card.badge.className = `state ${job.state}`;
  card.bar.hidden = FINISHED.has(job.state);
  if (!job.progress_percent) card.bar.removeAttribute("value");
  else card.bar.value = job.progress_percent;
  card.line.textContent = jobText(job);
  card.button.hidden = job.state !== "Completed";
  announceMilestone(card, job);
}

function jobText(job) {
  if (job.state === "Pending") return "Waits for a worker.";
  if (job.state === "Running") {
    const done = job.frame_count ? `, ${job.frames_done || 0} of ${plural(job.frame_count, "frame")}` : "";
    return `${Math.round(job.progress_percent)}%${done}`;
  }
  const parts = [];
  if (job.error) parts.push(job.error);
  if (typeof job.charged_tokens === "number") parts.push(`Charged ${amount(job.charged_tokens)} tokens.`);
  if (job.finished_at) parts.push(new Date(job.finished_at).toLocaleString());
  return parts.join(" ");
}

function announceMilestone(card, job) {
  const milestone = Math.floor(job.progress_percent / 25) * 25;
  if (job.state === "Running" && milestone > card.milestone) announce(`Job ${job.id} is ${milestone}% done.`);
  card.milestone = milestone;
}

// -- results

async function showResults(id) {
  const card = state.cards.get(id);
  if (!card) return;
  card.button.disabled = true;
  try {
    const job = await ask(`/api/v1/jobs/${id}`);
    learn(id, job);
    const counted = job.frame_count <= LARGEST_COUNTED_FRAMES;
    const result = counted ? (await ask(`/inference/result?jobId=${id}`)).result : null;
    // Files of a job and entries of its result stand in the same order.
    const files = job.files.map((file, position) => ({ ...file, found: result?.[position] }));
    card.results.replaceChildren(...resultParts(job, files));
  } catch (refusal) {
    card.results.replaceChildren(element("p", { className: "alert", textContent: refusal.message }));
  }
  card.button.disabled = false;
  card.results.hidden = false;
  card.button.textContent = "Hide results";
  card.button.setAttribute("aria-expanded", "true");
}

function hideResults(card) {
  for (const link of card.results.querySelectorAll("a[href^='blob:']")) URL.revokeObjectURL(link.href);
  card.results.replaceChildren();
  card.results.hidden = true;
  card.button.textContent = "Show results";
  card.button.setAttribute("aria-expanded", "false");
}

function resultParts(job, files) {
  const rows = element("tbody");
  const gallery = element("div", { className: "gallery" });
  const more = element("button", { type: "button", className: "quiet" });
  let shown = 0;
  const showMore = () => {
    for (const file of files.slice(shown, shown + SHOWN_AT_ONCE)) {
      rows.append(fileRow(file));
      if (file.annotated_url) gallery.append(figure(file));
    }
    shown = Math.min(shown + SHOWN_AT_ONCE, files.length);
    more.hidden = shown === files.length;
    more.textContent = `Show more (${files.length - shown} left)`;
  };
  more.addEventListener("click", showMore);
  showMore();
  const titles = ["File", "Found", "Tokens"].map((text) => element("th", { scope: "col" }, text));
  titles[2].className = "number";
  const head = element("thead", {}, element("tr", {}, ...titles));
  const table = element("table", {}, element("caption", { textContent: "What was found" }), head, rows);
  return [table, element("div", { className: "actions" }, zipButton(job), more), gallery];
}

function fileRow(file) {
  const found = element("td", {}, ...foundParts(file));
  const charged = element("td", { className: "number", textContent: amount(file.charged_tokens || 0) });
  return element("tr", {}, element("th", { scope: "row", textContent: file.filename }), found, charged);
}

function foundParts({ found, error }) {
  const problem = error || found?.error;
  if (problem) return [element("span", { className: "problem", textContent: problem })];
  if (!found) return ["Too much to count here; the HTTP API gives the whole result."];
  if (found.type === "image") return chips(countByClass(found.objects));
  const frames = found.frames.map((frame) => countByClass(frame.objects));
  const note = `at most in one of ${plural(frames.length, "frame")}`;
  return [...chips(greatestCounts(frames)), element("span", { className: "aside", textContent: note })];
}

function countByClass(objects) {
  const counts = new Map();
  for (const { name } of objects) counts.set(name, (counts.get(name) || 0) + 1);
  return counts;
}

function greatestCounts(frames) {
  const greatest = new Map();
  for (const counts of frames) {
    for (const [name, count] of counts) greatest.set(name, Math.max(count, greatest.get(name) || 0));
  }
  return greatest;
}

function chips(counts) {
  if (!counts.size) return ["nothing "];
  const largestFirst = [...counts].sort((a, b) => b[1] - a[1]);
  const texts = largestFirst.map(([name, count]) => `${count} × ${name}`);
  return texts.map((textContent) => element("span", { className: "chip", textContent }));
}

// -- annotated files: fetched with the token in a header, shown from memory

const whenSeen = new IntersectionObserver((entries) => {
  for (const entry of entries.filter((one) => one.isIntersecting)) {
    whenSeen.unobserve(entry.target);
    entry.target.dispatchEvent(new Event("seen"));
  }
}, { rootMargin: "400px" });

function figure(file) {
  const frame = element("div", { className: "frame" });
  const caption = element("figcaption", {}, element("span", { textContent: file.filename }));
  const made = element("figure", {}, frame, caption);
  const load = () => loadAnnotated(file, frame, caption);
  if (file.type === "video" && file.frame_count > LARGEST_AUTOPLAY_FRAMES) {
    const text = `Load the video, ${plural(file.frame_count, "frame")}`;
    const button = element("button", { type: "button", textContent: text });
    button.addEventListener("click", load, { once: true });
    frame.append(button);
  } else {
    frame.textContent = "Loading…";
    frame.addEventListener("seen", load, { once: true });
    whenSeen.observe(frame);
  }
  return made;
}

async function loadAnnotated(file, frame, caption) {
  frame.textContent = "Loading…";
  try {
    const blob = await fetchBlob(file.annotated_url);
    const address = URL.createObjectURL(blob);
    frame.replaceChildren(file.type === "video" ? player(file, address) : picture(file, address));
    const download = annotatedName(file.filename, blob.type);
    const link = element("a", { className: "button", href: address, download, textContent: "Download" });
    link.setAttribute("aria-label", `Download annotated ${file.filename}`);
    caption.append(link);
  } catch (refusal) {
    frame.textContent = refusal.message;
  }
}

async function fetchBlob(path) {
  return (await request(path)).blob();
}

function picture(file, src) {
  return element("img", { src, alt: `${file.filename} with a box around each object found` });
}

function player(file, src) {
  const settings = { controls: true, muted: true, loop: true, playsInline: true };
  const video = element("video", { src, preload: "auto", ...settings });
  video.setAttribute("aria-label", `${file.filename} with a box around each object found`);
  return video;
}

function annotatedName(filename, type) {
  const stem = filename.split(/[\\/]/).pop().replace(/\.[a-z0-9]+$/i, "");
  return `${stem}.annotated.${type.split("/").pop().replace("jpeg", "jpg")}`;
}

function zipButton(job) {
  const text = "Download everything (zip)";
  const button = element("button", { type: "button", className: "quiet", textContent: text });
  button.addEventListener("click", async () => {
    button.disabled = true;
    button.textContent = "Packing…";
    try {
      const href = URL.createObjectURL(await fetchBlob(`/inference/content/${job.id}`));
      element("a", { href, download: `job-${job.id}.zip` }).click();
      later(() => URL.revokeObjectURL(href), 60000);
      button.textContent = text;
    } catch (refusal) {
      button.textContent = refusal.message;
    }
    button.disabled = false;
  });
  return button;
}

// -- the beginning

function listen() {
  byId("log-in").addEventListener("submit", submitLogIn);
  byId("mode").addEventListener("click", () => setMode(!byId("log-in").dataset.signsUp));
  byId("log-out").addEventListener("click", () => logOut());
  byId("create").addEventListener("submit", createDataset);
  byId("files").addEventListener("change", () => uploadFiles(byId("files").files));
  byId("upload-cancel").addEventListener("click", () => state.upload?.abort());
  byId("start").addEventListener("submit", startJob);
  byId("more-jobs").addEventListener("click", () => {
    state.shownJobs += SHOWN_AT_ONCE;
    drawJobs();
  });
  acceptDrops();
}

function begin() {
  listen();
  setMode(false);
  if (state.token) {
    enter();
    return;
  }
  showLogIn();
  showAlert("log-in-alert", sessionStorage.getItem(REASON_KEY) || "");
  sessionStorage.removeItem(REASON_KEY);
}

begin();
