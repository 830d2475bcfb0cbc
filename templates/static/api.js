// The HTTP API: the session and its tokens, requests, and refusals.
//
// All tabs of a browser share one session, kept in localStorage. An access token lasts minutes; a
// refresh token is good for one exchange, and the service ends the session of one that comes again
// later. So tabs exchange in turn, and always look first whether another tab was quicker.

import { signal } from "./page.js";

const SESSION_KEY = "odproject.session";
const REASON_KEY = "odproject.reason"; // why the session ended, told on the page after it
const ENDED = "Your session has ended. Please log in again.";
const RENEW_AFTER = 0.8; // of an access token's life
const TURN_NAME = "odproject.renewal";
const OTHER_TAB_MS = 3000;
const FIRST_LOOK_MS = 1000;
const LAST_LOOK_MS = 15000;
const UNREACHABLE = "The service cannot be reached. Please try again in a moment.";
const BROKEN_OFF = "The connection broke off.";
const LARGE_BYTES = 16 * 2 ** 20; // from here on a file is sent in pieces
const PIECE_BYTES = 8 * 2 ** 20;
const PASSING_MS = 1000;
const MOST_TRIES = 5; // to give up what is at work
const TUS = { "Tus-Resumable": "1.0.0" };
const PASSING = new Set(["upload_busy", "upload_offset_conflict"]);
const KEPT = new Set([402, 403, 409, 503, 507]); // then the service keeps the pieces that it has
const GONE = "What had arrived of it is gone. Choose the file again, and it begins anew.";
const UNREADABLE =
  "The browser cannot read it. A folder? Zip it first. A file may have been moved, changed or deleted since.";

export const sessionEnds = signal();

// Refusals without a status or of 500 and above that come before anything is done, or take it back.
const WITHOUT_EFFECT = new Set(["storage_full", "storage_unavailable", "unreadable", "cancelled"]);

export class Refusal extends Error {
  constructor(message, status = 0, code = "") {
    super(message);
    this.status = status;
    this.code = code;
    this.isCertain = false; // of an upload in pieces, which an earlier try cannot have ended
  }

  // Whether what was asked for may be done all the same, or be under way: a proxy that does not
  // wait, like a connection that breaks, tells nothing about the service behind it.
  get isInDoubt() {
    if (WITHOUT_EFFECT.has(this.code)) return false;
    return !this.status || this.status >= 500 || this.code === "idempotency_key_in_use";
  }

  // Whether an earlier request under the same key stays in doubt: this one never came to it.
  get keepsDoubt() {
    if (this.isCertain) return false;
    return this.isInDoubt || !this.status || this.status >= 500 || [401, 429].includes(this.status);
  }

  // Whether the service keeps the pieces that it has: the same file goes on there.
  get keepsBytes() {
    return this.isCertain && KEPT.has(this.status);
  }
}

function pause(milliseconds) {
  return new Promise((resolve) => setTimeout(resolve, milliseconds));
}

function certain(refusal) {
  refusal.isCertain = !refusal.isInDoubt && ![401, 429].includes(refusal.status);
  return refusal;
}

function refusalOf(status, text) {
  let problem = {};
  try {
    problem = JSON.parse(text) || {};
  } catch {
    // Not a problem document: a proxy may have answered.
  }
  const message = problem.detail || `The service answered with status ${status}.`;
  return new Refusal(message, status, problem.code);
}

// -- the session

function stored() {
  try {
    return JSON.parse(localStorage.getItem(SESSION_KEY));
  } catch {
    return null; // not ours
  }
}

// Whose page this is. Another tab may log in as somebody else: then this page is at an end.
const owner = stored()?.email || "";
let isLeaving = false;

function session() {
  const now = stored();
  return now && now.email === owner ? now : null;
}

export function hasSession() {
  return session() !== null;
}

function keep({ access, refresh }, email) {
  const [, payload] = access.split(".");
  const { iat, exp } = JSON.parse(atob(payload.replaceAll("-", "+").replaceAll("_", "/")));
  // Counted from now, by this computer's clock, because that may differ from the service's.
  const renewAt = Date.now() + (exp - iat) * 1000 * RENEW_AFTER;
  localStorage.setItem(SESSION_KEY, JSON.stringify({ access, refresh, renewAt, email }));
}

// A new page is the surest way to forget everything that the old one knew.
function turnPage(reason) {
  if (isLeaving) return;
  isLeaving = true;
  sessionEnds.tell();
  sessionStorage.setItem(REASON_KEY, reason);
  location.reload();
}

function endSession(reason) {
  if (session()) localStorage.removeItem(SESSION_KEY);
  turnPage(reason);
}

export function takeReason() {
  const reason = sessionStorage.getItem(REASON_KEY) || "";
  sessionStorage.removeItem(REASON_KEY);
  return reason;
}

export function followOtherTabs() {
  window.addEventListener("storage", ({ key }) => {
    if (key !== SESSION_KEY && key !== null) return;
    const now = stored()?.email || "";
    if (now !== owner) turnPage(now ? "" : "You have logged out in another tab.");
  });
}

export async function register(email, password) {
  const keys = { email, password };
  await accepted(await send("/api/v1/users/", { method: "POST", keys }));
}

export async function logIn(email, password) {
  const keys = { email, password };
  const answer = await accepted(await send("/api/v1/tokens/", { method: "POST", keys }));
  keep(await answer.json(), email);
  location.reload();
}

export async function logOut() {
  let reason = "";
  try {
    await request("/api/v1/tokens/revoke/", { method: "POST" });
  } catch (refusal) {
    if (refusal.status !== 401) reason = "You are logged out here, but the service was not reached.";
  }
  endSession(reason);
}

// -- renewal of tokens

// Without a secure address a browser has no locks. Then two tabs may exchange at once: the service
// bears that, one of them is refused, and finds the other one's new tokens.
const inTurn = navigator.locks
  ? (work) => navigator.locks.request(TURN_NAME, work)
  : (work) => work();
let renewing = null;

function renew(staleAccess) {
  renewing ??= inTurn(() => exchange(staleAccess)).finally(() => {
    renewing = null;
  });
  return renewing;
}

async function exchange(staleAccess) {
  const now = session();
  if (!now || now.access !== staleAccess) return; // ended, or another tab was quicker
  const keys = { refresh: now.refresh };
  const answer = await send("/api/v1/tokens/refresh/", { method: "POST", keys });
  if (answer.ok) {
    const tokens = await answer.json();
    if (session()?.refresh === now.refresh) keep(tokens, now.email); // nobody logged out meanwhile
  } else if (answer.status !== 401) {
    throw refusalOf(answer.status, await answer.text().catch(() => ""));
  } else if (navigator.locks || !(await renewedElsewhere(staleAccess))) {
    endSession(ENDED);
  }
}

async function renewedElsewhere(staleAccess) {
  const deadline = Date.now() + OTHER_TAB_MS;
  while (Date.now() < deadline) {
    if (session()?.access !== staleAccess) return true;
    await pause(100);
  }
  return false;
}

// An access token to work with; renewed before its time is over.
async function freshAccess() {
  const now = session();
  if (now && Date.now() >= now.renewAt) {
    await renew(now.access).catch(() => {}); // the old one may still do
  }
  const { access } = session() || {};
  if (access) return access;
  endSession(ENDED);
  throw new Refusal(ENDED, 401);
}

// Tries with a token, and once more with a new one if the service refuses the first.
async function withAccess(attempt) {
  const access = await freshAccess();
  const answer = await attempt(access);
  if (answer.status !== 401 || isLeaving) return answer;
  await renew(access);
  const again = await attempt(await freshAccess());
  if (again.status === 401) endSession(ENDED);
  return again;
}

// -- requests

// Waits until the service answers anything at all; false when `abortSignal` ends the wait first.
export async function connectionIsBack(abortSignal) {
  for (let pauseMs = FIRST_LOOK_MS; !abortSignal.aborted; pauseMs = Math.min(2 * pauseMs, LAST_LOOK_MS)) {
    await new Promise((resolve) => {
      setTimeout(resolve, pauseMs);
      abortSignal.addEventListener("abort", resolve, { once: true });
    });
    const answer = await fetch("/livez", { cache: "no-store", signal: abortSignal }).catch(() => null);
    if (answer) return true;
  }
  return false;
}

// A key for one intention: what is sent again with the same one happens once.
export function newIdempotencyKey() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function send(path, { method = "GET", keys = null, idempotencyKey = "", more = {} } = {}, access = "") {
  const headers = access ? { ...more, Authorization: `Bearer ${access}` } : { ...more };
  if (idempotencyKey) headers["Idempotency-Key"] = idempotencyKey;
  const body = keys ? JSON.stringify(keys) : undefined;
  if (body) headers["Content-Type"] = "application/json";
  try {
    return await fetch(path, { method, headers, body, cache: "no-store", credentials: "omit" });
  } catch {
    throw new Refusal(UNREACHABLE);
  }
}

async function accepted(answer) {
  if (answer.ok) return answer;
  throw refusalOf(answer.status, await answer.text().catch(() => ""));
}

export async function request(path, options) {
  return accepted(await withAccess((access) => send(path, options, access)));
}

// An answer that breaks off tells as little as none: what was asked for may be done all the same.
export async function ask(path, options) {
  const answer = await request(path, options);
  return answer.json().catch(() => {
    throw new Refusal(BROKEN_OFF);
  });
}

export async function fetchBlob(path) {
  return (await request(path)).blob();
}

// Where a list goes on, or "". Only the query of `next` counts: a proxy may know us by another name.
export function nextPath(path, { next }) {
  return next ? path.split("?")[0] + new URL(next, location.href).search : "";
}

// What cannot be read is found out before it is sent: a request that fails over it looks like a
// connection that broke. A folder that is dropped is such a file.
async function tryToRead(file) {
  try {
    await file.slice(0, 1).arrayBuffer();
  } catch {
    throw new Refusal(UNREADABLE, 0, "unreadable");
  }
}

// Uploads a file, in one piece or, if it is large, in several. `onProgress` is given the share that
// was sent, and null when all was, `onArrival` how many bytes the service has, as far as it tells;
// `abortSignal` ends it, also before it is sent.
export async function uploadFile(datasetPath, file, options) {
  await tryToRead(file);
  if (file.size >= LARGE_BYTES) return uploadInPieces(`${datasetPath}resumable-uploads/`, file, options);
  const { idempotencyKey, abortSignal, onProgress } = options;
  const body = new FormData();
  body.append("file", file, file.name);
  const { status, text } = await sendBody("POST", `${datasetPath}uploads/`, body, {
    headers: { "Idempotency-Key": idempotencyKey },
    abortSignal,
    onShare: onProgress,
    onSent: () => onProgress(null),
  });
  if (status === 201) return JSON.parse(text);
  throw refusalOf(status, text);
}

// By the protocol tus. The key leads to the same upload again, which goes on where it was.
async function uploadInPieces(path, file, { idempotencyKey, ...options }) {
  const name = btoa(String.fromCharCode(...new TextEncoder().encode(file.name)));
  const more = { ...TUS, "Upload-Length": file.size, "Upload-Metadata": `filename ${name}` };
  const begun = await request(path, { method: "POST", more, idempotencyKey });
  const place = begun.headers.get("Location");
  try {
    for (;;) {
      const reportPath = await sendPiece(place, file, options);
      if (reportPath) return await ask(reportPath);
    }
  } catch (refusal) {
    if (refusal.code === "cancelled") await giveUp(place);
    throw refusal.code === "cancelled" ? certain(refusal) : refusal;
  }
}

// What the service does not give up it may have had all of, and accepted.
async function giveUp(place) {
  for (let tries = 1; ; tries++) {
    try {
      return await request(place, { method: "DELETE", more: TUS });
    } catch (refusal) {
      if (refusal.code !== "upload_busy" || tries === MOST_TRIES) throw new Refusal(BROKEN_OFF);
    }
    await pause(PASSING_MS); // the piece that was cancelled is still on its way into the file
  }
}

// Sends what comes next by what the service has, and returns where the report is after the last one.
async function sendPiece(place, file, { abortSignal, onProgress, onArrival }) {
  const { headers: known } = await request(place, { method: "HEAD", more: TUS }).catch((refusal) => {
    throw refusal.status === 404 ? certain(new Refusal(GONE, 404)) : refusal;
  });
  const offset = Number(known.get("Upload-Offset"));
  onArrival(offset);
  const piece = file.slice(offset, offset + PIECE_BYTES);
  const isLast = offset + piece.size === file.size;
  if (!piece.size) onProgress(null); // all is there, and waits to be taken in
  const headers = { ...TUS, "Upload-Offset": offset, "Content-Type": "application/offset+octet-stream" };
  const answer = await sendBody("PATCH", place, piece, {
    headers,
    abortSignal,
    onShare: (share) => onProgress((offset + share * piece.size) / file.size),
    onSent: () => isLast && onProgress(null),
    mayBeCancelled: !isLast,
  });
  if (answer.status === 204) return answer.location;
  const refusal = refusalOf(answer.status, answer.text);
  // What a connection that broke has left may still be on its way into the file.
  if (!PASSING.has(refusal.code)) throw certain(refusal);
  await pause(PASSING_MS);
  return null;
}

// XMLHttpRequest, because fetch tells nothing about the progress of an upload.
function sendBody(method, path, body, { headers, abortSignal, onShare, onSent, mayBeCancelled = false }) {
  return withAccess(
    (access) =>
      new Promise((resolve, reject) => {
        let isSent = false; // then nobody can take it back: the service may have it
        const cancel = () => {
          const isInDoubt = isSent && !mayBeCancelled;
          reject(isInDoubt ? new Refusal(BROKEN_OFF) : new Refusal("Cancelled.", 0, "cancelled"));
        };
        if (abortSignal.aborted) return cancel();
        const upload = new XMLHttpRequest();
        upload.upload.onprogress = (event) => {
          if (event.lengthComputable) onShare(event.loaded / event.total);
        };
        upload.upload.onload = () => {
          isSent = true;
          onSent();
        };
        upload.onload = () => {
          const location = upload.getResponseHeader("Location");
          resolve({ status: upload.status, text: upload.responseText, location });
        };
        upload.onerror = () => reject(new Refusal(BROKEN_OFF));
        upload.onabort = cancel;
        abortSignal.addEventListener("abort", () => upload.abort());
        upload.open(method, path);
        for (const [name, value] of Object.entries(headers)) upload.setRequestHeader(name, value);
        upload.setRequestHeader("Authorization", `Bearer ${access}`);
        upload.send(body);
      }),
  );
}
