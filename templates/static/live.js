// What happens to jobs, as it happens: by the websocket, and by asking while there is none.

import { ask, hasSession } from "./api.js";
import { byId } from "./page.js";

const POLL_LIVE_MS = 60000; // also while the socket is up: one that died silently tells nothing
const POLL_OFFLINE_MS = 3000;
const SHORTEST_PAUSE_MS = 1000;
const LONGEST_PAUSE_MS = 30000;
const SESSION_ENDED = 4001;

const state = { socket: null, lastSeq: null, pauseMs: SHORTEST_PAUSE_MS };
let hear = () => {};
let askForNews = async () => {};

// `onMessage` is given what the socket tells; `poll` asks the service for news instead.
export function follow({ onMessage, poll }) {
  hear = onMessage;
  askForNews = poll;
  connect();
  keepAsking();
}

async function keepAsking() {
  await askForNews();
  const isLive = state.socket?.readyState === WebSocket.OPEN;
  if (hasSession()) setTimeout(keepAsking, isLive ? POLL_LIVE_MS : POLL_OFFLINE_MS);
}

function showConnection(isLive) {
  const text = isLive ? "Live" : "Connecting again; asking every few seconds";
  byId("connection").classList.toggle("live", isLive);
  // Written only when it changes, because each writing is read out.
  if (byId("connection").textContent !== text) byId("connection").textContent = text;
}

async function connect() {
  try {
    const { ticket } = await ask("/api/v1/websocket-tickets/", { method: "POST" });
    open(ticket);
  } catch {
    connectLater();
  }
}

// A ticket is good for one socket and half a minute, so it may stand in an address.
function open(ticket) {
  const address = new URL("/", location.href);
  address.protocol = location.protocol === "https:" ? "wss:" : "ws:";
  address.searchParams.set("ticket", ticket);
  address.searchParams.set("progress", "1");
  if (state.lastSeq !== null) address.searchParams.set("since", state.lastSeq);
  state.socket = new WebSocket(address);
  state.socket.onmessage = ({ data }) => {
    state.pauseMs = SHORTEST_PAUSE_MS;
    showConnection(true);
    receive(JSON.parse(data));
  };
  state.socket.onclose = ({ code }) => {
    // The access token's time is over, and the next one opens the next socket. Or the whole session
    // has ended: then the request for a ticket finds that out.
    if (code === SESSION_ENDED) setTimeout(connect, SHORTEST_PAUSE_MS * Math.random());
    else connectLater();
  };
}

function receive(message) {
  // After a reconnection the replayed events count on from the last one seen.
  if (message.kind && message.seq) state.lastSeq = message.seq;
  else state.lastSeq ??= message.seq ?? null;
  hear(message);
}

function connectLater() {
  if (!hasSession()) return;
  showConnection(false);
  // Chance keeps a thousand browsers from coming back in the same moment.
  setTimeout(connect, state.pauseMs * (0.5 + Math.random()));
  state.pauseMs = Math.min(2 * state.pauseMs, LONGEST_PAUSE_MS);
}
