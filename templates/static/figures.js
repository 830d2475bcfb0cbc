// Annotated files of a job: fetched with the token in a header, shown from memory. With another
// confidence or fewer classes than they were annotated with, the original under boxes drawn here.

import { ask, fetchBlob } from "./api.js";
import { boxLayer, drawBoxes, frameAt, isAsDrawn, shownObjects } from "./detections.js";
import { button, element, plural } from "./page.js";
import { timelineOf } from "./timeline.js";
import { openViewer } from "./viewer.js";

const LARGEST_AUTOPLAY_FRAMES = 3000; // longer videos load when asked for
const KEPT = "The original cannot be shown here, so the boxes stay those of the download.";

// Tells each figure whether it is near the screen; only such ones load anything.
export function figureObserver(view) {
  return new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const file = view.files.find((one) => one.figure === target);
        file.isNear = isIntersecting;
        file.shows();
      }
    },
    { rootMargin: "400px" },
  );
}

export function figureOf(view, file) {
  const frame = element("div", { className: "frame", textContent: "Loading…" });
  const caption = element("figcaption", {}, element("span", { textContent: file.filename }));
  file.figure = element("figure", {}, frame, caption);
  const note = element("p", { className: "aside", hidden: true, textContent: KEPT });
  file.figure.insertBefore(note, caption);
  file.parts = { frame, caption, note };
  if (file.type === "image") setUpPicture(view, file);
  else setUpVideo(view, file);
  view.observer.observe(file.figure);
  return file.figure;
}

// The address of a file in memory, fetched once; a failed attempt may be repeated.
function addressOf(view, file, path) {
  file.fetched ??= new Map();
  if (!file.fetched.has(path)) {
    const fetched = fetchBlob(path).then((blob) => {
      const address = URL.createObjectURL(blob);
      if (view.isOpen) view.addresses.add(address);
      else URL.revokeObjectURL(address);
      return { address, type: blob.type };
    });
    fetched.catch(() => file.fetched.delete(path));
    file.fetched.set(path, fetched);
  }
  return file.fetched.get(path);
}

// The original, or null where it cannot be had: of a deleted dataset only the results stay.
async function originalOf(view, file) {
  if (file.isGone) return null;
  try {
    file.content ??= await ask(`/api/v1/media-files/${file.media_file_id}/`);
    return await addressOf(view, file, file.content.content_url);
  } catch (refusal) {
    file.isGone = refusal.status === 404; // else it may be had the next time
    return null;
  }
}

function describe({ filename }) {
  return `${filename} with a box around each object found`;
}

// -- pictures

function setUpPicture(view, file) {
  const { frame, caption } = file.parts;
  const enlarge = button("Enlarge", () => openViewer(view, file, (one) => pictureParts(view, one)));
  enlarge.setAttribute("aria-label", `Enlarge ${file.filename}`);
  caption.append(enlarge);
  frame.classList.add("enlargeable");
  frame.addEventListener("click", () => enlarge.click());
  file.shows = () => file.isNear && showPicture(view, file);
}

async function showPicture(view, file) {
  const { frame, caption, note } = file.parts;
  const version = view.version;
  // Boxes that are drawn here may be read after the picture was shown.
  const shown = isAsDrawn(view) ? `${version}` : `${version} of ${file.frames.length} frames`;
  if (file.shownVersion === shown) return;
  file.shownVersion = shown;
  try {
    const { address, type } = await addressOf(view, file, file.annotated_url);
    addDownload(file, caption, address, type);
    const parts = await pictureParts(view, file);
    if (file.shownVersion !== shown) return; // the slider has moved on
    note.hidden = isAsDrawn(view) || parts.length > 1;
    frame.replaceChildren(...parts);
  } catch (refusal) {
    frame.textContent = refusal.message;
    file.shownVersion = null;
  }
}

// The annotated picture, or the original and its boxes where the browser can show its format.
async function pictureParts(view, file) {
  const annotated = await addressOf(view, file, file.annotated_url);
  const asDrawn = element("img", { src: annotated.address, alt: describe(file) });
  if (isAsDrawn(view)) return [asDrawn];
  const found = await originalOf(view, file);
  if (!found) return [asDrawn];
  const original = element("img", { src: found.address, alt: describe(file) });
  try {
    await original.decode();
  } catch {
    return [asDrawn];
  }
  const layer = boxLayer(original.naturalWidth, original.naturalHeight);
  drawBoxes(layer, file.frames.flatMap((one) => shownObjects(view, one)));
  return [original, layer];
}

// -- videos

function setUpVideo(view, file) {
  const { frame, note } = file.parts;
  file.timeline = timelineOf(view, file, (seconds) => seek(view, file, seconds));
  file.figure.insertBefore(file.timeline.root, note);
  const isLong = file.frame_count > LARGEST_AUTOPLAY_FRAMES;
  if (isLong) {
    const text = `Load the video, ${plural(file.frame_count, "frame")}`;
    frame.replaceChildren(button(text, () => loadVideo(view, file), ""));
  }
  file.shows = () => {
    if (!file.isNear) return;
    if (!isLong || file.video) loadVideo(view, file);
    file.drawAgain?.(); // what was read since
    file.timeline.draw();
  };
}

async function seek(view, file, seconds) {
  await loadVideo(view, file);
  if (file.video) file.video.currentTime = seconds;
}

function loadVideo(view, file) {
  const version = view.version;
  if (file.video && file.shownVersion === version) return file.loading;
  file.shownVersion = version;
  file.loading = putVideo(view, file, version);
  return file.loading;
}

async function putVideo(view, file, version) {
  const { frame, caption, note } = file.parts;
  if (!file.video) frame.textContent = "Loading…";
  try {
    const annotated = await addressOf(view, file, file.annotated_url);
    addDownload(file, caption, annotated.address, annotated.type);
    file.video ??= newVideo(file, annotated.address);
    const original = isAsDrawn(view) ? null : await playableOriginal(view, file);
    if (view.version !== version) return;
    note.hidden = isAsDrawn(view) || Boolean(original);
    changeSource(file.video, original?.address || annotated.address);
    file.layer?.remove();
    file.layer = original ? boxLayer(original.width, original.height) : null;
    if (file.video.parentElement !== frame) frame.replaceChildren(file.video);
    if (file.layer) frame.append(file.layer);
    followFrames(view, file, version);
  } catch (refusal) {
    frame.textContent = refusal.message;
    file.video = null;
  }
}

function newVideo(file, src) {
  const settings = { controls: true, muted: true, loop: true, playsInline: true };
  const video = element("video", { src, preload: "auto", ...settings });
  video.setAttribute("aria-label", describe(file));
  video.addEventListener("timeupdate", () => file.timeline.follow(video.currentTime));
  video.addEventListener("seeking", () => file.timeline.follow(video.currentTime));
  return video;
}

// Another source, at the same place and playing if the old one did.
function changeSource(video, address) {
  if (video.src === address) return;
  const { currentTime, paused } = video;
  video.src = address;
  video.currentTime = currentTime;
  if (!paused) video.play().catch(() => {});
}

// Where the original is and how large, once the browser has proved that it plays it; or null.
function playableOriginal(view, file) {
  file.original ??= originalOf(view, file).then((found) => {
    if (!found && !file.isGone) file.original = null; // asked for again the next time
    return found && playable(found.address, file.content);
  });
  return file.original;
}

// Boxes are in stored pixels, which need not be square: the browser's own size would not do.
function playable(address, { width, height }) {
  return new Promise((resolve) => {
    const trial = element("video", { src: address, preload: "metadata", muted: true });
    trial.addEventListener("error", () => resolve(null), { once: true });
    trial.addEventListener(
      "loadedmetadata",
      () => resolve(trial.videoWidth ? { address, width, height } : null),
      { once: true },
    );
  });
}

// Boxes over the original, of the frame that is on the screen.
function followFrames(view, file, version) {
  const { video, layer } = file;
  file.drawAgain = layer && (() => draw(video.currentTime));
  if (!layer) return;
  const draw = (seconds) => {
    if (!file.frames.length) return; // not read yet
    const frame = file.frames[frameAt(file.frames, seconds)];
    drawBoxes(layer, shownObjects(view, frame));
  };
  const next = (now, { mediaTime }) => {
    if (view.version !== version || !view.isOpen) return;
    draw(mediaTime);
    video.requestVideoFrameCallback(next);
  };
  draw(video.currentTime);
  if ("requestVideoFrameCallback" in video) video.requestVideoFrameCallback(next);
  else video.addEventListener("timeupdate", () => layer.isConnected && draw(video.currentTime));
}

// -- downloads

function addDownload(file, caption, href, type) {
  if (caption.querySelector("a")) return;
  const download = annotatedName(file.filename, type);
  const link = element("a", { className: "button", href, download, textContent: "Download" });
  link.setAttribute("aria-label", `Download annotated ${file.filename}`);
  caption.append(link);
}

function annotatedName(filename, type) {
  const stem = filename.split(/[\\/]/).pop().replace(/\.[a-z0-9]+$/i, "");
  return `${stem}.annotated.${type.split("/").pop().replace("jpeg", "jpg")}`;
}
