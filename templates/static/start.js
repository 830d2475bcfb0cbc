// Starting detection: the models, the price, the button.

import { ask } from "./api.js";
import { choiceChanges, chosenDataset } from "./datasets.js";
import { openNewJob } from "./jobs.js";
import { availableTokens, balanceChanges, refreshBalance } from "./ledger.js";
import { chosenOptions, listenToOptions, optionsChanges, showOptions } from "./options.js";
import { contentText } from "./media.js";
import { jobStarter } from "./once.js";
import { amount, byId, element, showAlert } from "./page.js";
import { uploadEnds } from "./uploads.js";

const NOTES = { YOLO8s_FSR: "smaller, faster", YOLO8m_FSR: "larger, slower" };
const DOUBLE_CLICK_MS = 700;

const starter = jobStarter();
const state = {
  models: new Map(), // version -> what the API tells of it
  quote: null, // what a job as it is chosen now would cost at most, once that is known
  quoteProblem: "",
  asked: 0,
  isStarting: false,
  areModelsMissing: false, // they were asked for in vain
};

export async function showModels() {
  try {
    const { results } = await ask("/api/v1/models/?page_size=100");
    if (state.areModelsMissing) showAlert("start-alert", "");
    state.areModelsMissing = false;
    state.models = new Map(results.map((model) => [model.version, model]));
    byId("models").replaceChildren(byId("models").querySelector("legend"), ...results.map(choice));
    showOptions(state.models.get(chosenModel()?.value));
  } catch (refusal) {
    state.areModelsMissing = true;
    showAlert("start-alert", refusal.message);
  }
  refreshQuote();
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

// Its price does not tell: detection may be free.
function hasContent(dataset) {
  return Boolean(dataset && dataset.image_count + dataset.frame_count);
}

// The price is none any more, nor is one that is still on its way.
function forgetQuote() {
  state.asked += 1;
  state.quote = null;
  state.quoteProblem = "";
  drawQuote();
}

// Asks for the price of what is chosen; an answer that comes late is of something else.
async function refreshQuote() {
  forgetQuote();
  const { asked } = state;
  if (!hasContent(chosenDataset()) || chosenDataset().is_blocked || !chosenModel()) return;
  try {
    const quote = await ask("/api/v1/quotes/", { method: "POST", keys: jobKeys() });
    if (asked === state.asked) state.quote = quote;
  } catch (refusal) {
    if (asked === state.asked) state.quoteProblem = refusal.message;
  }
  if (asked === state.asked) drawQuote();
}

function drawQuote() {
  const available = availableTokens();
  const quote = byId("quote");
  byId("start-submit").disabled = true;
  quote.classList.remove("stale");
  if (chosenDataset()?.is_blocked) {
    quote.textContent = "No job can be started on a blocked dataset.";
  } else if (!hasContent(chosenDataset())) {
    quote.textContent = "Add pictures or videos first; then the price stands here.";
  } else if (state.areModelsMissing) {
    quote.textContent = "The models are not known yet, and so no price.";
  } else if (state.quoteProblem) {
    quote.textContent = state.quoteProblem;
  } else if (state.quote && available !== null) {
    drawPrice(quote, state.quote, available);
  } else {
    quote.classList.add("stale"); // what stands there is read out, so it waits for the answer
  }
}

function drawPrice(quote, { quoted_tokens: price, image_count: images, frame_count: frames }, available) {
  const content = contentText({ image_count: images, frame_count: frames });
  quote.replaceChildren("Price: ", element("b", { textContent: `${amount(price)} tokens` }), ` for ${content}`);
  if (price > available) {
    quote.append(`. Your balance of ${amount(available)} is too low; an administrator can top it up.`);
    return;
  }
  quote.append(`, of your ${amount(available)}. Only what is really processed is charged.`);
  byId("start-submit").disabled = state.isStarting;
}

function jobKeys() {
  const { value: model_version, dataset } = chosenModel();
  const keys = { dataset_id: chosenDataset().id, model_id: dataset.modelId, model_version };
  const options = chosenOptions();
  return Object.keys(options).length ? { ...keys, options } : keys;
}

async function start(event) {
  event.preventDefault();
  if (byId("start-submit").disabled) return;
  byId("start-submit").disabled = state.isStarting = true;
  showAlert("start-alert", "");
  try {
    const keys = { ...jobKeys(), maximum_tokens: state.quote.quoted_tokens };
    openNewJob(await starter.start("/api/v1/jobs/", keys));
  } catch (refusal) {
    showAlert("start-alert", refusal.message);
  }
  // The second click of a double click is no second job.
  await Promise.all([refreshBalance(), new Promise((done) => setTimeout(done, DOUBLE_CLICK_MS))]);
  state.isStarting = false;
  refreshQuote();
}

export function listenToStart() {
  listenToOptions();
  byId("start").addEventListener("submit", start);
  byId("models").addEventListener("change", () => {
    showOptions(state.models.get(chosenModel().value));
    refreshQuote();
  });
  optionsChanges.listen(refreshQuote);
  // What the dataset holds now is being asked for. Were the price asked for before that is known, it
  // would be twice, and a press of the button between the two would be lost.
  uploadEnds.listen(forgetQuote);
  choiceChanges.listen(() => {
    if (state.areModelsMissing) showModels();
    else showAlert("start-alert", "");
    refreshQuote();
  });
  balanceChanges.listen(drawQuote);
}
