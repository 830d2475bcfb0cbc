// Statements of account: in the dialog of tokens, the sums of a month and its movements as a file.

import { ask, fetchBlob } from "./api.js";
import { amount, byId, element, save, showAlert } from "./page.js";

const STATEMENTS = "/api/v1/statements/";
const MOST_MONTHS = 200;

const state = { version: 0, shown: [] };

export async function showStatements() {
  const version = ++state.version;
  showAlert("statement-alert", "");
  try {
    const { results } = await ask(`${STATEMENTS}?page_size=${MOST_MONTHS}`);
    if (version !== state.version) return;
    state.shown = results;
    const chosen = byId("statement-month").value;
    byId("statement-month").replaceChildren(...results.map(monthOption));
    if (results.some(({ month }) => month === chosen)) byId("statement-month").value = chosen;
    byId("statement-download").disabled = false;
    showSums();
  } catch (refusal) {
    if (version === state.version) showAlert("statement-alert", refusal.message);
  }
}

// Months are those of UTC, whatever the reader's clock says.
function monthOption({ month }) {
  const told = { month: "long", year: "numeric", timeZone: "UTC" };
  const textContent = new Date(`${month}-01T00:00:00Z`).toLocaleString("en", told);
  return element("option", { value: month, textContent });
}

function showSums() {
  const { opening, moved, closing, is_final: isFinal } = state.shown[byId("statement-month").selectedIndex];
  const rows = [
    ["It began with", balances(opening)],
    ["Came in", amount(moved.welcome_tokens + moved.top_up_tokens)],
    ["Spent", `${amount(moved.upload_tokens)} on uploads, ${amount(moved.capture_tokens)} on jobs`],
    [isFinal ? "It ended with" : "So far", balances(closing)],
  ];
  const list = element("dl", { className: "prices" }, ...rows.flatMap(sumRow));
  // Written only when it changes, because each writing is read out.
  const shown = byId("statement-sums");
  if (shown.textContent !== list.textContent) shown.replaceChildren(list);
}

function balances({ available_tokens: available, held_tokens: held }) {
  return `${amount(available)} to spend, ${amount(held)} held`;
}

function sumRow([what, told]) {
  return [element("dt", { textContent: what }), element("dd", { textContent: told })];
}

async function download(event) {
  event.preventDefault();
  showAlert("statement-alert", "");
  const month = byId("statement-month").value;
  byId("statement-download").disabled = true;
  try {
    save(await fetchBlob(`${STATEMENTS}${month}/csv/`), `statement-${month}.csv`);
  } catch (refusal) {
    showAlert("statement-alert", refusal.message);
  }
  byId("statement-download").disabled = false;
}

export function listenToStatements() {
  byId("statement").addEventListener("submit", download);
  byId("statement-month").addEventListener("change", showSums);
}
