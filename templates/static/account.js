// Signing up, logging in, logging out.

import { ask, logIn, logOut, register, takeReason } from "./api.js";
import { byId, showAlert } from "./page.js";

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

async function submit(event) {
  event.preventDefault();
  const email = byId("log-in-email").value.trim();
  const password = byId("log-in-password").value;
  const signsUp = byId("log-in").dataset.signsUp;
  showAlert("log-in-alert", "");
  if (signsUp && password !== byId("log-in-confirm").value) {
    showAlert("log-in-alert", "The password and its confirmation differ.");
    return;
  }
  byId("log-in-submit").disabled = true;
  try {
    if (signsUp) {
      await register(email, password);
      setMode(false); // whatever happens now, the account is there
    }
    await logIn(email, password);
  } catch (refusal) {
    showAlert("log-in-alert", refusal.message);
    byId("log-in-submit").disabled = false;
  }
}

export function showLogIn() {
  setMode(false);
  byId("welcome").hidden = false;
  byId("log-in").addEventListener("submit", submit);
  byId("mode").addEventListener("click", () => setMode(!byId("log-in").dataset.signsUp));
  showAlert("log-in-alert", takeReason());
}

export async function showAccount() {
  takeReason();
  byId("log-out").addEventListener("click", logOut);
  byId("account").hidden = false;
  byId("email").textContent = (await ask("/api/v1/me/")).email;
}
