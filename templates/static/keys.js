// API keys: the dialog that lists, makes and revokes them.

import { ask, request } from "./api.js";
import { announce, button, byId, confirmed, element, moment, showAlert } from "./page.js";

const KEYS = "/api/v1/api-keys/"; // living ones come first, and fewer than a page has room for
const DAY_MS = 24 * 3600 * 1000;

async function showKeys() {
  showAlert("keys-alert", "");
  try {
    const { results } = await ask(KEYS);
    const living = results.filter((key) => key.is_living);
    byId("key-list").replaceChildren(...living.map(keyRow));
    byId("key-table").hidden = !living.length;
  } catch (refusal) {
    showAlert("keys-alert", refusal.message);
  }
}

function keyRow(key) {
  const about = key.is_read_only ? `odk_${key.prefix}… reading only` : `odk_${key.prefix}…`;
  const name = element("th", { scope: "row" }, key.name, element("code", { textContent: about }));
  const used = element("td", { textContent: key.last_used_at ? moment(key.last_used_at) : "never used" });
  const expires = element("td", { textContent: key.expires_at ? moment(key.expires_at) : "never" });
  const revoker = button("Revoke", () => revoke(key), "quiet danger");
  revoker.setAttribute("aria-label", `Revoke ${key.name}`);
  return element("tr", {}, name, used, expires, element("td", {}, revoker));
}

async function revoke({ id, name }) {
  const text = "Programs that use it are refused from then on. It cannot be taken back.";
  if (!(await confirmed({ title: `Revoke ${name}?`, text, action: "Revoke key" }))) return;
  try {
    await request(`${KEYS}${id}/`, { method: "DELETE" });
    announce(`The key ${name} was revoked.`);
    await showKeys();
  } catch (refusal) {
    showAlert("keys-alert", refusal.message);
  }
}

async function make(event) {
  event.preventDefault();
  showAlert("make-key-alert", "");
  forgetMadeKey();
  const days = Number(byId("key-days").value);
  const keys = {
    name: byId("key-name").value,
    is_read_only: byId("key-reads-only").checked,
    expires_at: days ? new Date(Date.now() + days * DAY_MS).toISOString() : null,
  };
  const submit = byId("make-key").querySelector("button");
  submit.disabled = true; // a second press would find the name taken
  try {
    const made = await ask(KEYS, { method: "POST", keys });
    byId("make-key").reset();
    byId("made-key-text").value = made.key;
    byId("made-key").hidden = false;
    byId("copy-key").focus();
    await showKeys();
  } catch (refusal) {
    showAlert("make-key-alert", refusal.message);
  }
  submit.disabled = false;
}

async function copy() {
  byId("made-key-text").select();
  try {
    await navigator.clipboard.writeText(byId("made-key-text").value);
    announce("The key was copied.");
    byId("copy-key").textContent = "Copied";
  } catch {
    announce("The browser does not let the page copy. The key is selected: copy it yourself.");
  }
}

// What was shown once is shown no more.
function forgetMadeKey() {
  byId("made-key-text").value = "";
  byId("made-key").hidden = true;
  byId("copy-key").textContent = "Copy";
}

export function listenToKeys() {
  byId("open-keys").addEventListener("click", () => {
    byId("keys").showModal();
    showKeys();
  });
  byId("keys").addEventListener("close", forgetMadeKey);
  byId("make-key").addEventListener("submit", make);
  byId("copy-key").addEventListener("click", copy);
}
