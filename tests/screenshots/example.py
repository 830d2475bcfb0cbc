"""A drawn example of the service in use: people, datasets in every state, jobs in every state.

Everything is made over HTTP, as people and administrators make it, from drawn streets only.
"""

import contextlib
import os
import signal
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from inference.pipeline.encode import VideoWriter
from inference.scenes import draw_video_scene
from tests.browser import PASSWORD, drawn_image
from tests.service import Service

OWNER, COLLEAGUE, MODERATOR, SUPPORT, NEWCOMER = (
    f"{name}@example.org" for name in ("ann", "ben", "moderator", "support", "newcomer")
)
TIMEOUT_SECONDS = 300.0


class Person:
    """A registered user of /api/v1/; every refusal is an error."""

    def __init__(self, base_url: str, email: str) -> None:
        self._client = httpx.Client(base_url=f"{base_url}/api/v1", timeout=120)
        keys = {"email": email, "password": PASSWORD}
        self.ask("POST", "/users/", json=keys)
        access = self.ask("POST", "/tokens/", json=keys)["access"]
        self._client.headers["Authorization"] = f"Bearer {access}"

    def ask(self, method: str, path: str, **content: Any) -> Any:
        """What the service answers; raises httpx.HTTPStatusError when it refuses."""
        answer = self._client.request(method, path, **content)
        answer.raise_for_status()
        return answer.json() if answer.content else None

    def add_dataset(self, name: str, tags: list[str], *paths: Path) -> int:
        """The number of a new dataset with these files in it."""
        dataset_id = self.ask("POST", "/datasets/", json={"name": name, "tags": tags})["id"]
        for path in paths:
            self.upload(dataset_id, path)
        return int(dataset_id)

    def upload(self, dataset_id: int, path: Path) -> None:
        """Put a file into a dataset."""
        files = {"file": (path.name, path.read_bytes())}
        self.ask("POST", f"/datasets/{dataset_id}/uploads/", files=files)

    def start(self, dataset_id: int, model_version: str = "YOLO8s_FSR") -> int:
        """The number of a new job."""
        keys = {"dataset_id": dataset_id, "model_version": model_version}
        return int(self.ask("POST", "/jobs/", json=keys)["id"])

    def wait_for(self, job_id: int, *states: str) -> None:
        """Return when the job is in one of these states."""
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            job = self.ask("GET", f"/jobs/{job_id}/")
            if job["state"] in states and (job["state"] != "Running" or job["frames_done"]):
                return
            time.sleep(0.2)
        raise TimeoutError(f"Job {job_id} is not {states}, but {job['state']}: {job['error']}")


@dataclass(frozen=True)
class Example:
    """The numbers of what was made: rows that the pages are about."""

    owner_id: int
    flight_id: int
    blocked_id: int
    flagged_id: int
    completed_id: int
    failed_id: int
    aborted_id: int
    running_id: int
    pending_id: int
    email: str = OWNER


class Media:
    """Drawn files, each drawn when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def picture(self, seed: int) -> Path:
        return drawn_image(self._folder / f"street-{seed}.jpg", seed)

    def video(
        self, name: str, frame_count: int, size_wh: tuple[int, int] = (960, 540), rate_fps: int = 10
    ) -> Path:
        """A drawn street on which vehicles drive."""
        path = self._folder / name
        with VideoWriter(path, size_wh) as writer:
            scenes = draw_video_scene(11, frame_count, size_wh, 9, frames_per_second=rate_fps)
            for index, scene in enumerate(scenes):
                writer.write(scene.image, index / rate_fps)
        return path

    def archive(self) -> Path:
        """A zip as people make them: pictures, and a file that is none."""
        path = self._folder / "flight.zip"
        with zipfile.ZipFile(path, "w") as archive:
            for seed in (7, 8, 9):
                archive.write(self.picture(seed), f"street-{seed}.jpg")
            archive.writestr("flight-log.txt", "take-off 09:14")
        return path


def make_example(service: Service, media: Media) -> Example:
    """Fill a new service; the job `running_id` runs, `pending_id` waits behind it."""
    owner = Person(service.base_url, OWNER)
    colleague = Person(service.base_url, COLLEAGUE)
    for email in (MODERATOR, SUPPORT, NEWCOMER):
        Person(service.base_url, email)

    flight = owner.add_dataset(
        "Morning flight", ["drone", "junction"], media.video("junction.mp4", 40), media.archive()
    )
    completed = owner.start(flight)
    owner.wait_for(completed, "Completed")
    damaged = owner.add_dataset("Night bus lane", ["night"])
    failed = _job_on_lost_file(owner, damaged, media.picture(21), service)
    road = owner.add_dataset("Ring road cameras", ["road", "fixed camera"], media.picture(31))
    aborted = owner.start(road, "YOLO8m_FSR")
    with contextlib.suppress(httpx.HTTPStatusError):  # it may have been quick
        owner.ask("POST", f"/jobs/{aborted}/abort/")
    blocked = owner.add_dataset("School street", ["school"], media.picture(41), media.picture(42))
    flagged = colleague.add_dataset("Harbour at noon", ["harbour"], media.picture(51))

    owner.upload(road, media.video("a film of an hour.mp4", 500, (320, 180)))
    running = owner.start(road)
    pending = owner.start(flight, "YOLO8m_FSR")
    owner.wait_for(running, "Running")
    return Example(
        owner_id=int(owner.ask("GET", "/me/")["id"]),
        flight_id=flight,
        blocked_id=blocked,
        flagged_id=flagged,
        completed_id=completed,
        failed_id=failed,
        aborted_id=aborted,
        running_id=running,
        pending_id=pending,
    )


def _job_on_lost_file(owner: Person, dataset_id: int, path: Path, service: Service) -> int:
    """A failed job: its only file is damaged on the disk after it was accepted."""
    stored = set(_stored_files(service))
    owner.upload(dataset_id, path)
    for damaged in set(_stored_files(service)) - stored:
        damaged.write_bytes(damaged.read_bytes()[:300])
    job_id = owner.start(dataset_id)
    owner.wait_for(job_id, "Failed")
    return job_id


def _stored_files(service: Service) -> list[Path]:
    """Uploaded files, without their thumbnails."""
    media = service.data_dir / "media"
    return [path for path in media.rglob("*") if path.is_file() and "thumb" not in str(path)]


@contextlib.contextmanager
def paused_workers(service: Service) -> Iterator[None]:
    """Stop the workers for the block, so that a job that runs goes on running for the pictures."""
    children = service.up["children"].items()
    pids = [pid for name, pid in children if name.startswith("worker")]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
