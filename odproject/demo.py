"""The main job as a client does it: register, upload, detect, watch, download.

Everything goes over HTTP and the websocket, to a service that the demo starts in a throw-away
folder and stops again.
"""

import collections
import contextlib
import io
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

import httpx
import numpy as np
from tqdm import tqdm
from websockets.sync.client import connect

from inference.pipeline.encode import VideoWriter, write_image
from inference.scenes import Boxes, draw_scene, draw_video_scene, match_boxes
from odproject.client.tables import aligned, plain_number

DATASET = "demo"
MODEL_VERSION = "YOLO8s_FSR"
ADMIN_EMAIL = "admin@demo.example.org"
START_TIMEOUT_SECONDS = 180
LARGEST_TOP_UP = 20_000.0
BAR = {"bar_format": "{desc}: {percentage:3.0f}%|{bar}| {elapsed}"}

SCENE_SEEDS = (11, 12, 13, 14)
VIDEO_SEED = 15
VIDEO_FRAMES = 20
VIDEO_RATE_FPS = 10.0


class DemoError(Exception):
    """The demo cannot go on; the text says why."""


@dataclass
class DrawnMedia:
    """Files to upload and, where the demo drew them, the true boxes of each frame."""

    files: list[Path]
    true_boxes_xyxy: dict[str, list[Boxes]] = field(default_factory=dict)


def draw_media(folder: Path) -> DrawnMedia:
    """Draw street scenes, four images and a video, whose vehicles are known."""
    media = DrawnMedia(files=[])
    for number, seed in enumerate(SCENE_SEEDS, 1):
        scene = draw_scene(seed)
        path = folder / f"street_{number}.jpg"
        write_image(path, scene.image)
        media.files.append(path)
        media.true_boxes_xyxy[path.name] = [scene.boxes_xyxy]
    path = folder / "driving.mp4"
    frames = list(draw_video_scene(VIDEO_SEED, VIDEO_FRAMES, frames_per_second=VIDEO_RATE_FPS))
    height, width = frames[0].image.shape[:2]
    with VideoWriter(path, (width, height)) as writer:
        for frame_index, frame in enumerate(frames):
            writer.write(frame.image, frame_index / VIDEO_RATE_FPS)
    media.files.append(path)
    media.true_boxes_xyxy[path.name] = [frame.boxes_xyxy for frame in frames]
    return media


def keep_drawn(media: DrawnMedia, folder: Path) -> None:
    """Leave the drawn files as they were uploaded, to try the service on."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in media.files:
        shutil.copyfile(path, folder / path.name)


def find_media(folder: Path) -> DrawnMedia:
    """The user's own files: everything in the folder, by name."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name[0] != ".")
    if not files:
        raise DemoError(f"There is no file in {folder}.")
    return DrawnMedia(files=files)


@contextlib.contextmanager
def running_service(data_dir: Path, out: TextIO) -> Iterator[tuple[str, str]]:
    """Start the service on a free port; yields its address and the administrator's password."""
    password = secrets.token_urlsafe(16)
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in {"DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL", "OD_SECRET_KEY"}
    }
    environment.update(
        OD_DATA_DIR=str(data_dir),
        OD_HTTP_PORT="0",
        OD_HTTP_HOST="127.0.0.1",
        OD_ADMIN_EMAIL=ADMIN_EMAIL,
        OD_ADMIN_PASSWORD=password,
        OD_DIE_WITH_PARENT=str(os.getpid()),
    )
    log_path = data_dir / "up.log"
    with log_path.open("wb") as log:
        service = subprocess.Popen(
            [sys.executable, "manage.py", "up"],
            cwd=Path(__file__).resolve().parent.parent,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield _wait_until_ready(service, data_dir, log_path, out), password
    finally:
        service.send_signal(signal.SIGTERM)
        try:
            service.wait(60)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()


def _wait_until_ready(
    service: "subprocess.Popen[bytes]", data_dir: Path, log_path: Path, out: TextIO
) -> str:
    print("Starting the service in a throw-away folder", file=out, flush=True)
    with tqdm(file=out, bar_format="  {elapsed}", leave=False, disable=None) as bar:
        deadline = time.monotonic() + START_TIMEOUT_SECONDS
        while time.monotonic() < deadline and service.poll() is None:
            time.sleep(0.5)
            bar.update()
            with contextlib.suppress(OSError, ValueError, KeyError, httpx.HTTPError):
                url = str(json.loads((data_dir / "up.json").read_text())["url"])
                if httpx.get(f"{url}/readyz").status_code == 200:
                    return url
    log = log_path.read_text(errors="replace")
    raise DemoError(f"The service did not get ready. It said:\n{log[-2000:]}")


class Client:
    """A user of the original API."""

    def __init__(self, base_url: str, *, admin_password: str, out: TextIO) -> None:
        self._http = httpx.Client(base_url=base_url, timeout=600)
        self._base_url = base_url
        self._admin_password = admin_password
        self._out = out
        self.email = "visitor@demo.example.org"

    def say(self, line: str = "") -> None:
        """Print a line."""
        print(line, file=self._out, flush=True)

    def register_and_log_in(self) -> None:
        """Become a user, with the welcome grant."""
        password = secrets.token_urlsafe(12)
        body = {"email": self.email, "password": password}
        self._ask("POST", "/user/registration", json={**body, "confirmPassword": password})
        token = self._ask("POST", "/user/", json=body)["access"]
        self._http.headers["Authorization"] = f"Bearer {token}"
        self.say(f"Registered {self.email}: {plain_number(self.balance())} tokens")

    def balance(self) -> float:
        """Tokens to spend."""
        return float(self._ask("GET", "/token")["tokenBalance"])

    def upload(self, files: list[Path]) -> int:
        """Upload each file; says what is refused, and returns how many were accepted."""
        self._ask("POST", "/datasets/", data={"datasetName": DATASET, "tags": "demo"})
        accepted = 0
        for path in tqdm(files, file=self._out, desc="Uploading", unit="file", disable=None):
            report = self._upload_one(path)
            if report is None:
                continue
            accepted += report["accepted"]
            for entry in report["files"]:
                if not entry["accepted"]:
                    self.say(f"  refused {entry['filename']}: {entry['error']}")
        self.say(f"Uploaded {accepted} files: {plain_number(self.balance())} tokens are left")
        return accepted

    def _upload_one(self, path: Path) -> dict[str, Any] | None:
        while True:
            with path.open("rb") as content:
                response = self._http.post(
                    "/upload/", data={"datasetName": DATASET}, files={"file": (path.name, content)}
                )
            document = response.json()
            if response.status_code == 201:
                return dict(document)
            if response.status_code != 402:
                self.say(f"  refused {path.name}: {document['message']}")
                return None
            self.top_up(document["needed_tokens"] - document["balance_tokens"])

    def top_up(self, lacking: float) -> None:
        """Add what the balance lacks, as the administrator."""
        admin = {"email": ADMIN_EMAIL, "password": self._admin_password}
        token = self._ask("POST", "/user/", json=admin)["access"]
        while lacking > 0:
            amount = min(lacking, LARGEST_TOP_UP)
            self._ask(
                "PATCH",
                "/token",
                json={"topUpUserEmail": self.email, "topUpAmount": f"{amount:.2f}"},
                headers={"Authorization": f"Bearer {token}"},
            )
            self.say(f"  the administrator tops up {plain_number(amount)} tokens")
            lacking -= amount

    def detect(self) -> int:
        """Run a job and show its progress as the websocket tells it; returns the job's number."""
        cost = self._ask("GET", "/datasets/")[0]["dataset"]["token_cost"]
        self.top_up(cost - self.balance())
        websocket_url = self._base_url.replace("http", "ws", 1) + "/?progress=1"
        headers = {"Authorization": self._http.headers["Authorization"]}
        with connect(websocket_url, additional_headers=headers) as socket:
            for _ in range(2):
                self.say(f"  < {json.loads(socket.recv())['message']}")
            body = {"datasetName": DATASET, "modelId": "YOLO8", "modelVersion": MODEL_VERSION}
            job_id = int(self._ask("POST", "/inference/", json=body)["jobId"])
            self.say(f"Job {job_id}: {MODEL_VERSION}, at most {plain_number(cost)} tokens")
            with tqdm(file=self._out, total=100, desc="Detecting", disable=None, **BAR) as bar:
                for raw in socket:
                    message = json.loads(raw)
                    if message.get("job_id") != job_id:
                        continue
                    if message["kind"] == "job.progress":
                        bar.update(message["progress_percent"] - bar.n)
                        continue
                    bar.write(f"  < {message['message']}", file=self._out)
                    if message["kind"] == "job.completed":
                        bar.update(100 - bar.n)
                    if message["kind"] != "job.started":
                        break
        return job_id

    def result(self, job_id: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What the job found in each file, and what each file cost."""
        state = self._ask("GET", "/inference/state", params={"jobId": job_id})["jobState"]
        if state != "Completed":
            raise DemoError(f"The job ended as {state}.")
        found = self._ask("GET", "/inference/result", params={"jobId": job_id})
        return found["result"], self._all_files(job_id)

    def _all_files(self, job_id: int) -> list[dict[str, Any]]:
        files: list[dict[str, Any]] = []
        page: dict[str, Any] = {"next": f"/api/v1/jobs/{job_id}/files/?page_size=200"}
        while page["next"]:
            page = self._ask("GET", page["next"])
            files += page["results"]
        return files

    def download(self, job_id: int, folder: Path) -> list[Path]:
        """Unpack the annotated files into a folder."""
        uri = self._ask("GET", "/inference/result", params={"jobId": job_id})["contentURI"]
        response = self._http.get(uri)
        response.raise_for_status()
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(io.BytesIO(response.content)) as archive:
            archive.extractall(folder)
            return [folder / name for name in archive.namelist()]

    def _ask(self, method: str, path: str, **request: Any) -> Any:
        response = self._http.request(method, path, **request)
        document = response.json()
        if response.is_error:
            raise DemoError(f"{method} {path}: {response.status_code} {document['message']}")
        return document


def frames_of(entry: dict[str, Any]) -> list[list[dict[str, Any]]]:
    """The objects of each frame of a file; an image has one frame, a failed file none."""
    if "error" in entry:
        return []
    if entry["type"] == "image":
        return [entry["objects"]]
    return [frame["objects"] for frame in entry["frames"]]


def table(entries: list[dict[str, Any]], files: list[dict[str, Any]], media: DrawnMedia) -> str:
    """A line for each file: detections by class, tokens and, if known, how many were found."""
    rows = [("file", "frames", "detections", "tokens", "true vehicles found")]
    for entry, file in zip(entries, files, strict=True):
        frames = frames_of(entry)
        counts = collections.Counter(one["name"] for frame in frames for one in frame)
        found = ", ".join(f"{count} {name}" for name, count in counts.most_common()) or "-"
        true_boxes_xyxy = media.true_boxes_xyxy.get(entry["filename"])
        score = ""
        if true_boxes_xyxy is not None:
            score = "{} of {}, {} false".format(*_score(frames, true_boxes_xyxy))
        tokens = plain_number(file["charged_tokens"])
        rows.append((entry["filename"], str(len(frames)), entry.get("error", found), tokens, score))
    if not media.true_boxes_xyxy:
        rows = [(*row[:4], "") for row in rows]
    lines = aligned(rows)
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def _score(
    frames: list[list[dict[str, Any]]], true_boxes_xyxy: list[Boxes]
) -> tuple[int, int, int]:
    """Over all frames: vehicles found at IOU 0.5, vehicles there were, and false boxes."""
    found = false = 0
    for objects, true_xyxy in zip(frames, true_boxes_xyxy, strict=True):
        boxes = [[one["box"][key] for key in ("x1", "y1", "x2", "y2")] for one in objects]
        matched, unmatched = match_boxes(true_xyxy, np.array(boxes, np.float32).reshape(-1, 4))
        found += matched
        false += unmatched
    return found, sum(len(boxes) for boxes in true_boxes_xyxy), false


def run_demo(*, media_folder: Path | None, output_folder: Path, out: TextIO = sys.stdout) -> None:
    """The whole tour; raises DemoError when something does not work."""
    with tempfile.TemporaryDirectory(prefix="od-demo-") as folder:
        scenes = Path(folder) / "scenes"
        data_dir = Path(folder) / "data"
        scenes.mkdir()
        data_dir.mkdir()
        media = find_media(media_folder) if media_folder else draw_media(scenes)
        with running_service(data_dir, out) as (url, admin_password):
            client = Client(url, admin_password=admin_password, out=out)
            client.register_and_log_in()
            if not client.upload(media.files):
                raise DemoError("None of the files was accepted.")
            job_id = client.detect()
            entries, files = client.result(job_id)
            paths = client.download(job_id, output_folder)
            if media_folder is None:
                keep_drawn(media, output_folder / "drawn")
            client.say()
            client.say(table(entries, files, media))
            client.say()
            charged = sum(file["charged_tokens"] for file in files)
            spent, left = plain_number(charged), plain_number(client.balance())
            client.say(f"Charged {spent} tokens; {left} are left.")
            client.say(f"{len(paths)} annotated files are in {output_folder}/")
