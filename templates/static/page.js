// Small helpers for the page itself.
// Whatever comes from the service or from a file's name reaches the page as text, never as HTML.

const ADDRESS_MS = 60000; // how long a download may take to begin

export const byId = (id) => document.getElementById(id);

export function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}

export function button(text, action, className = "quiet") {
  const made = element("button", { type: "button", className, textContent: text });
  made.addEventListener("click", action);
  return made;
}

export function showAlert(id, text) {
  byId(id).textContent = text;
  byId(id).hidden = !text;
}

export function announce(text) {
  byId("announcer").textContent = text;
}

export function amount(tokens) {
  return tokens.toLocaleString("en", { maximumFractionDigits: 2 });
}

export function signedAmount(tokens) {
  if (!tokens) return "0";
  return `${tokens < 0 ? "−" : "+"}${amount(Math.abs(tokens))}`;
}

export function plural(count, word) {
  return `${count.toLocaleString("en")} ${word}${count === 1 ? "" : "s"}`;
}

export function moment(isoTime) {
  return new Date(isoTime).toLocaleString();
}

// Has the browser keep what was fetched, as a file of this name.
export function save(blob, download) {
  const href = URL.createObjectURL(blob);
  element("a", { href, download }).click();
  setTimeout(() => URL.revokeObjectURL(href), ADDRESS_MS);
}

// Something that happens, and who wants to hear of it.
export function signal() {
  const listeners = [];
  return {
    listen: (listener) => listeners.push(listener),
    tell: (...news) => listeners.forEach((listener) => listener(...news)),
  };
}

// Asks before something that costs or cannot be undone; resolves to whether the person agreed. A
// question that comes while another one is open waits for its turn.
export async function confirmed({ title, text, action, className = "danger" }) {
  const dialog = byId("confirm");
  while (dialog.open) await new Promise((done) => dialog.addEventListener("close", done, { once: true }));
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  Object.assign(byId("confirm-yes"), { textContent: action, className });
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

function isBeside(element, { clientX: x, clientY: y }) {
  const { left, right, top, bottom } = element.getBoundingClientRect();
  return x < left || x > right || y < top || y > bottom;
}

// Every dialog closes by its own buttons, by Escape and by a press beside it.
export function listenToDialogs() {
  for (const dialog of document.querySelectorAll("dialog")) {
    dialog.addEventListener("pointerdown", (event) => {
      if (event.target === dialog && isBeside(dialog, event)) dialog.close();
    });
    for (const closer of dialog.querySelectorAll("[data-closes]")) {
      closer.addEventListener("click", () => dialog.close(closer.dataset.closes));
    }
  }
}

// Runs an action for each element once it comes near the screen.
const observer = new IntersectionObserver(
  (entries) => {
    for (const entry of entries.filter((one) => one.isIntersecting)) {
      observer.unobserve(entry.target);
      entry.target.dispatchEvent(new Event("seen"));
    }
  },
  { rootMargin: "300px" },
);

export function whenSeen(target, action) {
  target.addEventListener("seen", action, { once: true });
  observer.observe(target);
}
