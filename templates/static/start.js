// Starting detection: the models, the price, the button.

import { ask } from "./api.js";
import { choiceChanges, chosenDataset } from "./datasets.js";
import { openNewJob } from "./jobs.js";
import { availableTokens, balanceChanges, refreshBalance } from "./ledger.js";
import { amount, byId, element, showAlert } from "./page.js";

const NOTES = { YOLO8s_FSR: "smaller, faster", YOLO8m_FSR: "larger, slower" };

export async function showModels() {
  try {
    const { results } = await ask("/api/v1/models/?page_size=100");
    byId("models").replaceChildren(byId("models").querySelector("legend"), ...results.map(choice));
  } catch (refusal) {
    showAlert("start-alert", refusal.message);
  }
  drawQuote();
}

function choice(model, position) {
  const input = element("input", { type: "radio", name: "model", value: model.version });
  input.checked = position === 0;
  input.dataset.modelId = model.model_id;
  const name = element("b", { textContent: model.version });
  const note = model.notes || NOTES[model.version] || "";
  return element("label", {}, input, element("span", {}, name, note));
}

function chosenModel() {
  return byId("models").querySelector(":checked");
}

function drawQuote() {
  const cost = chosenDataset()?.inference_cost_tokens;
  const available = availableTokens();
  const quote = byId("quote");
  byId("start-submit").disabled = true;
  if (chosenDataset()?.is_blocked) {
    quote.textContent = "No job can be started on a blocked dataset.";
    return;
  }
  if (!cost) {
    quote.textContent = "Add pictures or videos first; then the price stands here.";
    return;
  }
  quote.replaceChildren("Price: ", element("b", { textContent: `${amount(cost)} tokens` }));
  if (available === null) return;
  if (cost > available) {
    quote.append(`. Your balance of ${amount(available)} is too low; an administrator can top it up.`);
    return;
  }
  quote.append(` of your ${amount(available)}. Only what is really processed is charged.`);
  byId("start-submit").disabled = !chosenModel();
}

async function start(event) {
  event.preventDefault();
  if (byId("start-submit").disabled) return;
  byId("start-submit").disabled = true;
  showAlert("start-alert", "");
  const { value: model_version, dataset } = chosenModel();
  const keys = { dataset_id: chosenDataset().id, model_id: dataset.modelId, model_version };
  try {
    openNewJob(await ask("/api/v1/jobs/", { method: "POST", keys }));
  } catch (refusal) {
    showAlert("start-alert", refusal.message);
  }
  await refreshBalance();
  drawQuote();
}

export function listenToStart() {
  byId("start").addEventListener("submit", start);
  choiceChanges.listen(() => {
    showAlert("start-alert", "");
    drawQuote();
  });
  balanceChanges.listen(drawQuote);
}
