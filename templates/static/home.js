// The page for people: plain modules over /api/v1/ and the websocket. This one puts them together.

import { showAccount, showLogIn } from "./account.js";
import { followOtherTabs, hasSession } from "./api.js";
import { choiceChanges, listenToDatasets, refreshDatasets } from "./datasets.js";
import { askAboutJobs, hearOfJobs, listenToJobs } from "./jobs.js";
import { listenToKeys } from "./keys.js";
import { hearOfBalance, listenToLedger, refreshBalance, showPrices } from "./ledger.js";
import { follow } from "./live.js";
import { listenToMedia, showMediaFiles } from "./media.js";
import { announce, byId, listenToDialogs } from "./page.js";
import { listenToStart, showModels } from "./start.js";
import { listenToUploads } from "./uploads.js";
import { listenToViewer } from "./viewer.js";

function begin() {
  followOtherTabs();
  if (hasSession()) enter();
  else showLogIn();
}

function hear(message) {
  if (!hearOfBalance(message)) hearOfJobs(message);
}

function enter() {
  listenToDialogs();
  listenToLedger();
  listenToKeys();
  listenToDatasets();
  listenToMedia();
  listenToUploads();
  listenToStart();
  listenToJobs();
  listenToViewer();
  choiceChanges.listen(showMediaFiles);
  byId("workplace").hidden = false;
  byId("workplace-title").focus();
  for (const part of [showAccount, showPrices]) part().catch(({ message }) => announce(message));
  refreshBalance();
  refreshDatasets();
  showModels();
  // Another tab may have spent something meanwhile.
  document.addEventListener("visibilitychange", () => document.hidden || refreshBalance());
  follow({ onMessage: hear, poll: askAboutJobs });
}

begin();
