// Tokens: the balance in the page's head, and the dialog with prices, statements and movements.

import { ask, nextPath } from "./api.js";
import { amount, announce, byId, element, moment, showAlert, signal, signedAmount } from "./page.js";
import { listenToStatements, showStatements } from "./statements.js";

const ASK_AGAIN_MS = 5000;
const BALANCE = "/api/v1/balance/";
const MOVEMENTS = "/api/v1/ledger/?page_size=25";
const KINDS = {
  welcome: () => "Welcome gift",
  top_up: () => "Top-up",
  upload: ({ upload_id }) => `Upload ${upload_id}`,
  hold: ({ job_id }) => `Held for job ${job_id}`,
  capture: ({ job_id }) => `Spent on job ${job_id}`,
  release: ({ job_id }) => `Came back from job ${job_id}`,
};

export const balanceChanges = signal();

const state = { available: null, more: "", version: 0, listVersion: 0 };

export function availableTokens() {
  return state.available;
}

// An answer that was asked for earlier and comes later is of what was there before.
export async function refreshBalance() {
  const version = ++state.version;
  try {
    const balance = await ask(BALANCE);
    if (version !== state.version) return;
    show(balance);
  } catch (refusal) {
    if (version !== state.version) return;
    announce(refusal.message);
    // Nothing can be started before it is known.
    if (state.available === null && refusal.status !== 401) setTimeout(refreshBalance, ASK_AGAIN_MS);
    return;
  }
  balanceChanges.tell();
  if (!byId("tokens").open) return;
  showNewestMovements();
  showStatements();
}

function show({ available_tokens: available, held_tokens: held, alert_below_tokens: threshold }) {
  state.available = available;
  byId("balance").textContent = amount(available);
  byId("available-tokens").textContent = amount(available);
  byId("held-tokens").textContent = amount(held);
  if (!byId("tokens").open) byId("threshold-tokens").value = threshold ?? "";
  const isLow = threshold !== null && available < threshold;
  const told = isLow ? `Your balance of ${amount(available)} tokens is below ${amount(threshold)}.` : "";
  // Written only when it changes, because each writing is read out.
  if (byId("low-balance").textContent !== told) showAlert("low-balance", told);
}

// Whether a message of the websocket was about the balance.
export function hearOfBalance({ kind }) {
  if (kind !== "balance.low") return false;
  refreshBalance();
  return true;
}

async function saveThreshold(event) {
  event.preventDefault();
  showAlert("threshold-alert", "");
  const threshold = byId("threshold-tokens").value.trim();
  const version = ++state.version;
  try {
    const balance = await ask(BALANCE, { method: "PATCH", keys: { alert_below_tokens: threshold || null } });
    if (version === state.version) show(balance);
    announce(threshold ? `You are told below ${threshold} tokens.` : "You are not told any more.");
  } catch (refusal) {
    showAlert("threshold-alert", refusal.message);
  }
}

export async function showPrices() {
  const prices = await ask("/api/v1/prices/");
  const image = amount(prices.upload_image_tokens);
  const frame = amount(prices.upload_frame_tokens);
  byId("upload-price").textContent = `${image} tokens a picture, ${frame} a video frame`;
  byId("price-list").replaceChildren(
    ...priceRow("Upload", image, frame),
    ...priceRow("Detection", amount(prices.inference_image_tokens), amount(prices.inference_frame_tokens)),
  );
}

function priceRow(what, image, frame) {
  const term = element("dt", { textContent: what });
  return [term, element("dd", { textContent: `${image} a picture, ${frame} a video frame` })];
}

// -- movements

async function showNewestMovements() {
  state.more = MOVEMENTS;
  await showMovements((rows) => byId("movements").replaceChildren(...rows));
}

async function showMovements(place) {
  const version = ++state.listVersion;
  showAlert("movements-alert", "");
  byId("more-movements").disabled = true; // a page that is asked for twice would stand there twice
  try {
    const page = await ask(state.more);
    if (version !== state.listVersion) return;
    state.more = nextPath(MOVEMENTS, page);
    place(page.results.map(movementRow));
  } catch (refusal) {
    if (version !== state.listVersion) return;
    showAlert("movements-alert", refusal.message);
  }
  byId("more-movements").disabled = false;
  byId("more-movements").hidden = !state.more;
}

function movementRow(movement) {
  const what = KINDS[movement.kind]?.(movement) || movement.kind;
  const about = element("th", { scope: "row" }, what);
  const note = noteOf(movement);
  if (note) about.append(element("span", { className: "aside", textContent: note }));
  const sign = Math.sign(movement.amount_tokens);
  const className = `number ${["taken", "", "given"][sign + 1]}`;
  const change = element("td", { className, textContent: signedAmount(movement.amount_tokens) });
  const time = element("td", { className: "aside", textContent: moment(movement.created_at) });
  const row = element("tr", {}, about, time, change);
  row.dataset.kind = movement.kind;
  return row;
}

function noteOf({ kind, moved_tokens: moved, reason }) {
  if (kind === "capture") return `${amount(moved)} of the tokens held before`;
  return kind === "top_up" ? reason : "";
}

export function listenToLedger() {
  listenToStatements();
  byId("threshold").addEventListener("submit", saveThreshold);
  byId("open-tokens").addEventListener("click", () => {
    byId("tokens").showModal();
    refreshBalance();
  });
  byId("more-movements").addEventListener("click", () => {
    showMovements((rows) => byId("movements").append(...rows));
  });
}
