"""What the fault tests share: a user with a job that takes a while, an observer, and the verdict.

The verdict is always the same: whatever broke on the way, the job ended once. Each frame is in the
result once, the user paid once, and the websocket told of each step once. `check_ledger` then says
the same of every job that a service has ever run.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx
import psutil
import psycopg
from websockets.exceptions import WebSocketException
from websockets.sync.client import connect

from inference.pipeline.encode import VideoWriter
from inference.scenes import draw_video_scene
from tests.service import REPOSITORY, Service, running_service

PASSWORD = "correct horse battery"
MODEL = {"modelId": "YOLO8", "modelVersion": "YOLO8s_FSR"}
ENDED = {"Completed", "Failed", "Aborted"}
WELCOME_TOKENS = 1000.0
# A small network input on one core: many short steps, so that a fault meets a job in the middle
# on a slow machine and on a fast one.
FAST_NETWORK = {
    "CUDA_VISIBLE_DEVICES": "",
    "OD_NETWORK_IMAGE_SIZE": "320",
    "OD_TORCH_THREADS": "1",
    "OMP_NUM_THREADS": "1",
}
FRAME_COUNT = 80
SHORT_FRAME_COUNT = 4
PATIENCE_SECONDS = 180.0

_numbers = itertools.count(1)
Found = TypeVar("Found")


def eventually(
    look: Callable[[], Found], what: str, *, timeout_seconds: float = PATIENCE_SECONDS
) -> Found:
    """What `look` finds, once it is true; fails with `what` when that takes too long."""
    deadline = time.monotonic() + timeout_seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"Not within {timeout_seconds:g} s: {what}; last seen {found!r}.")
        time.sleep(0.1)


def draw_street_video(path: Path, *, frame_count: int) -> Path:
    """A small street with driving cars; each drawn picture is shown for five frames."""
    size_wh = (320, 192)
    with VideoWriter(path, size_wh, preset="ultrafast") as writer:
        scenes = draw_video_scene(3, -(-frame_count // 5), size_wh, vehicle_count=2)
        shown = itertools.chain.from_iterable(itertools.repeat(scene.image, 5) for scene in scenes)
        for frame_index, image in enumerate(itertools.islice(shown, frame_count)):
            writer.write(image, frame_index / 25)
    return path


@contextlib.contextmanager
def faulty_service(folder: Path, **overrides: str) -> Iterator[Service]:
    """A service with a fast network, whose parts are there to be killed."""
    folder.mkdir(parents=True, exist_ok=True)
    with running_service(folder, **{**FAST_NETWORK, **overrides}) as service:
        yield service


# -- breaking things -----------------------------------------------------------------------------


def child_pid(service: Service, name: str) -> int:
    """The process id of a child, once the supervisor names it."""

    def look() -> int | None:
        with contextlib.suppress(OSError, ValueError):
            return service.up["children"].get(name)
        return None

    return int(eventually(look, f"{name} runs") or 0)


def kill(service: Service, name: str) -> int:
    """Kill a child with SIGKILL; returns the process id that it had."""

    def strike() -> int | None:
        pid = child_pid(service, name)
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # the list of children still has one that has died since
            return None
        return pid

    return int(eventually(strike, f"{name} is killed"))


def wait_for_successor(service: Service, name: str, old_pid: int) -> int:
    """Wait until the supervisor has started a child again."""

    def look() -> int | None:
        pid = child_pid(service, name)
        return pid if pid != old_pid else None

    return int(eventually(look, f"{name} is started again") or 0)


def kill_until_it_stays_away(service: Service, name: str) -> None:
    """Kill a child again and again, until the supervisor waits for seconds before the next try."""
    for _ in range(4):
        kill(service, name)
    eventually(lambda: name not in service.up["children"], f"{name} is away")


def processes_left(service: Service) -> list[str]:
    """The command lines of the service's processes that still run."""
    left = []
    for process in service.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                left.append(" ".join(process.cmdline()))
    return left


@contextlib.contextmanager
def stopped(pid: int) -> Iterator[None]:
    """Hold a process still for the block, as a machine does that swaps or is suspended."""
    process = psutil.Process(pid)
    process.suspend()
    try:
        yield
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.resume()


# -- looking behind the API ----------------------------------------------------------------------


def query(service: Service, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Rows from the service's database."""
    with psycopg.connect(service.up["database_url"], connect_timeout=5) as connection:
        return connection.execute(statement, values).fetchall()


def check_ledger(service: Service) -> None:
    """Run `manage.py check_ledger` against the service's database."""
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "manage.py"), "check_ledger"],
        env={**os.environ, "DATABASE_URL": service.up["database_url"]},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


# -- a user and what it sees ---------------------------------------------------------------------


@dataclass
class Observer:
    """A websocket client that comes back after every disconnect and says what it has seen."""

    service: Service
    token: str
    messages: list[dict[str, Any]] = field(default_factory=list)
    connections: int = 0

    def __post_init__(self) -> None:
        self._last_seq: int | None = None
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="observer", daemon=True)

    def __enter__(self) -> "Observer":
        self._thread.start()
        eventually(lambda: self.connections, "the websocket is open")
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(30)
        assert not self._thread.is_alive()

    def kinds(self, job_id: int) -> list[str]:
        """The kinds of messages about a job, in the order of their arrival."""
        return [one["kind"] for one in self.messages if one.get("job_id") == job_id]

    def _run(self) -> None:
        while not self._stopped.is_set():
            # A service that is coming back refuses, resets or closes; the client tries again.
            with contextlib.suppress(OSError, WebSocketException, EOFError, ValueError, KeyError):
                self._listen()
            self._stopped.wait(0.3)

    def _listen(self) -> None:
        since = "" if self._last_seq is None else f"?since={self._last_seq}"
        headers = {"Authorization": f"Bearer {self.token}"}
        url = f"{self.service.ws_url}/{since}"
        with connect(url, additional_headers=headers, open_timeout=15, close_timeout=1) as socket:
            while not self._stopped.is_set():
                with contextlib.suppress(TimeoutError):
                    self._take(json.loads(socket.recv(timeout=0.2)))

    def _take(self, message: dict[str, Any]) -> None:
        if "kind" in message:
            self.messages.append(message)
            self._last_seq = message["seq"]
        elif "jobs" in message:  # the second half of the greeting
            self.connections += 1
            if self._last_seq is None:
                self._last_seq = message["seq"]


@dataclass
class Customer:
    """A registered user whose dataset `street` holds one video."""

    service: Service
    email: str
    token: str
    frame_count: int

    def request(
        self, method: str, path: str, *, timeout_seconds: float = 60.0, **arguments: Any
    ) -> httpx.Response:
        """A request of this user; the address is looked up each time."""
        headers = {"Authorization": f"Bearer {self.token}"} if self.token else {}
        url = f"{self.service.base_url}{path}"
        return httpx.request(method, url, headers=headers, timeout=timeout_seconds, **arguments)

    def submit(self, **arguments: Any) -> int:
        """Submit a job on the dataset; its number."""
        response = self.request(
            "POST", "/inference/", json={"datasetName": "street", **MODEL}, **arguments
        )
        assert response.status_code == 200, response.text
        return int(response.json()["jobId"])

    def job(self, job_id: int) -> dict[str, Any]:
        """The job's document, or an empty one while nobody answers."""
        try:
            response = self.request("GET", f"/api/v1/jobs/{job_id}")
        except httpx.HTTPError:
            return {}
        return dict(response.json()) if response.status_code == 200 else {}

    def wait_until_it_runs(self, job_id: int, *, frames: int = 8) -> int:
        """Return when the job is in its middle: the number of frames done."""

        def look() -> int | None:
            job = self.job(job_id)
            assert job.get("state") not in ENDED, f"The job ended before the fault: {job}"
            return job["frames_done"] if job.get("frames_done", 0) >= frames else None

        return int(eventually(look, f"{frames} frames of job {job_id} are done") or 0)

    def wait_for_end(self, job_id: int) -> dict[str, Any]:
        """The job's document once it has ended."""

        def look() -> dict[str, Any] | None:
            job = self.job(job_id)
            return job if job.get("state") in ENDED else None

        try:
            return eventually(look, f"job {job_id} ends") or {}
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.service.logs()}") from None

    def balance(self) -> float:
        """The user's tokens."""
        return float(self.request("GET", "/token").json()["tokenBalance"])


def assert_new_hints_arrive(service: Service, short_video: Path) -> None:
    """A job submitted now is run: the worker hears of it."""
    customer = new_customer(service, short_video, frame_count=SHORT_FRAME_COUNT)
    assert customer.wait_for_end(customer.submit())["state"] == "Completed"


def new_customer(service: Service, video: Path, *, frame_count: int) -> Customer:
    """Register somebody and upload the video."""
    email = f"customer{next(_numbers)}-{os.getpid()}@example.org"
    credentials = {"email": email, "password": PASSWORD}
    customer = Customer(service, email, "", frame_count=frame_count)
    answer = customer.request(
        "POST", "/user/registration", json={**credentials, "confirmPassword": PASSWORD}
    )
    assert answer.status_code == 201, answer.text
    customer.token = customer.request("POST", "/user/", json=credentials).json()["access"]
    answer = customer.request("POST", "/datasets/", json={"datasetName": "street", "tags": "x"})
    assert answer.status_code == 201, answer.text
    with video.open("rb") as content:
        answer = customer.request(
            "POST", "/upload/", data={"datasetName": "street"}, files={"file": content}
        )
    assert answer.status_code == 201, answer.text
    return customer


# -- the verdict ---------------------------------------------------------------------------------


def assert_completed_once(customer: Customer, job_id: int, observer: Observer) -> None:
    """The job ended well: every frame once, paid once, told once."""
    job = customer.wait_for_end(job_id)
    assert (job["state"], job["error"]) == ("Completed", "")
    assert job["charged_tokens"] == customer.frame_count
    [entry] = customer.request("GET", f"/inference/result?jobId={job_id}").json()["result"]
    assert [f["frame_number"] for f in entry["frames"]] == list(range(customer.frame_count))
    assert customer.balance() == WELCOME_TOKENS - 1.5 * customer.frame_count
    assert ledger_kinds(customer.service, job_id) == ["capture", "hold"]
    annotated = customer.request("GET", job["files"][0]["annotated_url"])
    assert (annotated.status_code, annotated.content[4:8]) == (200, b"ftyp")
    assert_told_once(customer, job_id, observer, end="job.completed")


def assert_told_once(customer: Customer, job_id: int, observer: Observer, *, end: str) -> None:
    """The websocket told that the job was taken in charge and how it ended, each once."""
    eventually(lambda: end in observer.kinds(job_id), f"the websocket tells {end}")
    assert observer.kinds(job_id) == ["job.started", end]
    rows = query(
        customer.service,
        "SELECT kind FROM accounts_event WHERE (payload->>'job_id')::bigint = %s ORDER BY seq",
        job_id,
    )
    assert [kind for (kind,) in rows] == ["job.submitted", "job.started", end]


def ledger_kinds(service: Service, job_id: int) -> list[str]:
    """The kinds of a job's transfers, in alphabetical order."""
    rows = query(
        service, "SELECT kind FROM billing_transfer WHERE job_id = %s ORDER BY kind", job_id
    )
    return [kind for (kind,) in rows]


def tries_of(service: Service, job_id: int) -> list[tuple[int, int]]:
    """For each unit of a job, how often it was claimed, and how many of these count as tries."""
    return query(
        service,
        "SELECT attempt, tries FROM inference_workunit WHERE job_id = %s ORDER BY position",
        job_id,
    )
