// Jobs: what is known of them, and a card for each.

import { ask, nextPath } from "./api.js";
import { refreshBalance } from "./ledger.js";
import { contentText } from "./media.js";
import { jobStarter } from "./once.js";
import { optionsText, usualChanges } from "./options.js";
import { amount, announce, button, byId, confirmed, element, moment, plural, showAlert } from "./page.js";
import { clearResults, fillResults } from "./results.js";

const PATH = "/api/v1/jobs/";
const PAGE_SIZE = 24;
const FINISHED = new Set(["Completed", "Failed", "Aborted"]);
const ASKED_AT_ONCE = 10;
const FILES_ASKED_AT_ONCE = 200; // as many as the service gives
const NAMES_SHOWN = 3;

const state = {
  jobs: new Map(), // job id -> what is known of it
  cards: new Map(), // job id -> its card on the page
  isListed: false, // whether a list has come; single jobs may be heard of before
  more: "", // where older jobs are
  retried: new Set(), // ids of jobs that are being tried again just now
};

// -- what is known

// Takes in news of a job, which may be old: the socket, polls and replies overtake each other.
function learn(id, news, { opens = false } = {}) {
  const job = state.jobs.get(id) || { id, state: "Pending", progress_percent: 0 };
  const isKnown = state.jobs.has(id);
  state.jobs.set(id, job);
  if (opens) job.opens = true;
  const wasFinished = FINISHED.has(job.state);
  if (isStale(job, news)) return;
  Object.assign(job, news);
  place(id);
  if (isKnown && FINISHED.has(job.state) && !wasFinished) end(job);
}

function isStale(job, news) {
  if (FINISHED.has(job.state)) return !FINISHED.has(news.state);
  if (job.state === "Running" && news.state === "Pending") return true;
  return news.state === "Running" && news.frames_done < (job.frames_done || 0);
}

function end(job) {
  announce(`Job ${job.id} is ${job.state}.`);
  refreshBalance();
  if (job.opens && job.state === "Completed") showResults(job.id);
  else if (!job.finished_at) askAbout(job.id);
}

async function askAbout(id) {
  try {
    learn(id, await ask(`${PATH}${id}/`));
  } catch (refusal) {
    if (refusal.status) announce(refusal.message);
  }
}

// The newest jobs in one request; older unfinished ones in one each, the oldest first, because
// they are worked on first.
export async function askAboutJobs() {
  try {
    const page = await ask(`${PATH}?page_size=${PAGE_SIZE}`);
    if (!state.isListed) state.more = nextPath(PATH, page);
    state.isListed = true;
    for (const job of page.results) learn(job.id, job);
    const told = new Set(page.results.map((job) => job.id));
    const unfinished = [...state.jobs.values()].filter((job) => !FINISHED.has(job.state));
    const older = unfinished.map((job) => job.id).filter((id) => !told.has(id)).sort((a, b) => a - b);
    await Promise.all(older.slice(0, ASKED_AT_ONCE).map(askAbout));
    showWhatThereIs();
  } catch {
    // The line about the connection tells it, and the next time comes soon.
  }
}

async function showOlder() {
  byId("more-jobs").disabled = true;
  showAlert("jobs-alert", "");
  try {
    const page = await ask(state.more);
    state.more = nextPath(PATH, page);
    for (const job of page.results) learn(job.id, job);
  } catch (refusal) {
    showAlert("jobs-alert", refusal.message);
  }
  byId("more-jobs").disabled = false;
  showWhatThereIs();
}

function showWhatThereIs() {
  byId("no-jobs").hidden = state.jobs.size > 0;
  byId("more-jobs").hidden = !state.more;
}

// What the websocket tells.
export function hearOfJobs({ kind, job_id: id, jobs, ...news }) {
  if (jobs) askAboutJobs(); // something may have been missed before this greeting
  if (!kind) return;
  const isNew = !state.jobs.has(id);
  if (kind === "job.progress") {
    const { progress_percent, frames_done, frame_count } = news;
    learn(id, { state: "Running", progress_percent, frames_done, frame_count });
  } else {
    learn(id, { state: news.state, error: news.error || "" });
  }
  if (isNew) askAbout(id); // another tab or program has started it
}

export function openNewJob(job) {
  learn(job.id, job, { opens: true });
  state.cards.get(job.id).root.focus();
  announce(`Job ${job.id} waits for a worker.`);
  showWhatThereIs();
}

async function abort(id) {
  const text = "What is done by then is charged and stays readable; the rest of the price comes back.";
  if (!(await confirmed({ title: `Abort job ${id}?`, text, action: "Abort job" }))) return;
  showAlert(alertOf(id), "");
  try {
    learn(id, await ask(`${PATH}${id}/abort/`, { method: "POST" }));
  } catch (refusal) {
    showAlert(alertOf(id), refusal.message);
    askAbout(id);
  }
  state.cards.get(id).root.focus();
}

// A press while a first one is being answered does nothing. What may have been started already has
// been agreed to, and is asked for again without another question.
async function retry(id) {
  const { starter } = state.cards.get(id);
  if (state.retried.has(id)) return;
  state.retried.add(id);
  showAlert(alertOf(id), "");
  try {
    const keys = starter.keysInDoubt() || (await agreedPrice(id));
    if (keys) openNewJob(await starter.start(`${PATH}${id}/retry/`, keys));
  } catch (refusal) {
    showAlert(alertOf(id), refusal.message);
  }
  state.retried.delete(id);
  refreshBalance();
}

// What another try may cost at most, once its user has seen it and agreed; else null.
async function agreedPrice(id) {
  const quote = await ask(`${PATH}${id}/retry/`);
  const [price, available] = [quote.quoted_tokens, quote.available_tokens].map(amount);
  if (!quote.is_covered) {
    showAlert(alertOf(id), `Another try costs ${price} tokens; your balance of ${available} is too low.`);
    return null;
  }
  const names = quote.files.slice(0, NAMES_SHOWN).map((file) => file.filename);
  if (quote.file_count > names.length) names.push(`${quote.file_count - names.length} more`);
  const text =
    `A new job looks at what failed or was not finished: ${names.join(", ")} (${contentText(quote)}). ` +
    `It costs at most ${price} tokens, of your ${available}. Only what is really processed is charged.`;
  const title = `Try job ${id} again?`;
  const agreed = await confirmed({ title, text, action: "Start job", className: "primary" });
  return agreed ? { maximum_tokens: quote.quoted_tokens } : null;
}

// -- cards

const alertOf = (id) => `job-${id}-alert`;

// Cards are moved only when they are new: one that plays a video stays where it is.
function place(id) {
  if (!state.cards.has(id)) {
    const card = makeCard(id);
    const older = [...state.cards.keys()].filter((other) => other < id).sort((a, b) => b - a)[0];
    byId("jobs").insertBefore(card.root, older ? state.cards.get(older).root : null);
    state.cards.set(id, card);
  }
  update(state.cards.get(id), state.jobs.get(id));
  const first = state.jobs.get(state.jobs.get(id).rerun_of_id);
  if (first) update(state.cards.get(first.id), first);
}

function makeCard(id) {
  const card = {
    title: element("h3"),
    badge: element("span", { className: "state" }),
    bar: element("progress", { max: 100 }),
    line: element("p", { className: "aside" }),
    toggle: button("Show results", () => (card.results.hidden ? showResults(id) : hideResults(card))),
    abort: button("Abort", () => abort(id)),
    retry: button("Try again", () => retry(id)),
    starter: jobStarter(),
    alert: element("p", { id: alertOf(id), className: "alert", hidden: true }),
    results: element("div", { className: "results", hidden: true }),
    milestone: 0,
  };
  card.bar.setAttribute("aria-label", `Progress of job ${id}`);
  card.abort.setAttribute("aria-label", `Abort job ${id}`);
  card.retry.setAttribute("aria-label", `Try again: job ${id}`);
  card.toggle.setAttribute("aria-expanded", "false");
  card.alert.setAttribute("role", "alert");
  const head = element("div", { className: "job-head" }, card.title, card.badge, card.abort, card.retry, card.toggle);
  const progress = element("div", { className: "job-line" }, card.bar, card.line);
  const parts = [head, progress, card.alert, card.results];
  card.root = element("article", { className: "card job", tabIndex: -1 }, ...parts);
  card.root.dataset.job = id;
  return card;
}

function update(card, job) {
  const isFinished = FINISHED.has(job.state);
  const of = job.rerun_of_id ? `job ${job.rerun_of_id} again` : "";
  const about = [job.dataset_name, job.model_version, optionsText(job.options || {}), of].filter(Boolean).join(" · ");
  card.title.replaceChildren(`Job ${job.id} `, element("span", { textContent: about }));
  card.badge.textContent = job.state;
  card.badge.className = `state ${job.state}`;
  card.bar.hidden = isFinished;
  if (!job.progress_percent) card.bar.removeAttribute("value");
  else card.bar.value = job.progress_percent;
  card.line.textContent = textOf(job);
  card.abort.hidden = isFinished;
  card.retry.hidden = !hasUndoneFiles(job) || (isTriedAgain(job.id) && !card.starter.keysInDoubt());
  // What an aborted or failed job had done before stays readable.
  card.toggle.hidden = !isFinished || (job.state !== "Completed" && !job.frames_done);
  announceMilestone(card, job);
}

// A job that completed lacks only frames of files that failed. What is told of one without the time of
// its end may be older than that.
function hasUndoneFiles(job) {
  return Boolean(job.finished_at) && (job.state !== "Completed" || job.frames_done < job.frame_count);
}

// What the later job leaves undone is offered there.
function isTriedAgain(id) {
  return [...state.jobs.values()].some((job) => job.rerun_of_id === id);
}

function textOf(job) {
  const most = job.quoted_tokens ? ` Costs ${amount(job.quoted_tokens)} tokens at most.` : "";
  if (job.state === "Pending") return `Waits for a worker.${most}`;
  if (job.state === "Running") {
    const done = job.frame_count ? `, ${job.frames_done || 0} of ${plural(job.frame_count, "frame")}` : "";
    if (job.frame_count && job.frames_done === job.frame_count) {
      return `All frames are done; the annotated files are finished now.${most}`;
    }
    return `${Math.round(job.progress_percent)}%${done}.${most}`;
  }
  const parts = [];
  if (job.error) parts.push(job.error);
  if (typeof job.charged_tokens === "number") parts.push(`Charged ${amount(job.charged_tokens)} tokens.`);
  if (job.finished_at) parts.push(moment(job.finished_at));
  return parts.join(" ");
}

function announceMilestone(card, job) {
  const milestone = Math.floor(job.progress_percent / 25) * 25;
  if (job.state === "Running" && milestone > card.milestone) announce(`Job ${job.id} is ${milestone}% done.`);
  card.milestone = milestone;
}

// -- results

// The job comes with its first files; all of them come in pages.
async function filesOf(job) {
  if (job.file_count === job.files.length) return job.files;
  const files = [];
  let path = `${PATH}${job.id}/files/?page_size=${FILES_ASKED_AT_ONCE}`;
  while (path) {
    const page = await ask(path);
    files.push(...page.results);
    path = nextPath(path, page);
  }
  return files;
}

async function showResults(id) {
  const card = state.cards.get(id);
  card.toggle.disabled = true;
  try {
    const job = await ask(`${PATH}${id}/`);
    learn(id, job);
    fillResults(card.results, job, await filesOf(job));
  } catch (refusal) {
    card.results.replaceChildren(element("p", { className: "alert", textContent: refusal.message }));
  }
  card.toggle.disabled = false;
  drawToggle(card, true);
}

function hideResults(card) {
  clearResults(card.results);
  drawToggle(card, false);
}

function drawToggle(card, isOpen) {
  card.results.hidden = !isOpen;
  card.toggle.textContent = isOpen ? "Hide results" : "Show results";
  card.toggle.setAttribute("aria-expanded", String(isOpen));
}

export function listenToJobs() {
  byId("more-jobs").addEventListener("click", showOlder);
  usualChanges.listen(() => {
    for (const [id, card] of state.cards) update(card, state.jobs.get(id));
  });
}
