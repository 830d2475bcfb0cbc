"""The whole service as a child of the tests, started as `make up` starts it."""

import contextlib
import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

REPOSITORY = Path(__file__).resolve().parent.parent
READY_SECONDS = 300.0
STOP_SECONDS = 90.0
ADMIN_EMAIL = "admin@example.com"
ADMIN_PASSWORD = "an-administrator-of-the-tests"


class ServiceError(Exception):
    """The service did not start or stop as it should; the text ends with what its logs say."""


@dataclass
class Service:
    """A running service.

    `data_dir` is its OD_DATA_DIR, `log_path` keeps what the supervisor printed, `overrides` were
    added to its environment. The addresses have no trailing slash.
    """

    process: "subprocess.Popen[bytes]"
    data_dir: Path
    log_path: Path
    overrides: Mapping[str, str] = field(default_factory=dict)
    admin_email: str = ADMIN_EMAIL
    admin_password: str = ADMIN_PASSWORD

    @property
    def up(self) -> dict[str, Any]:
        """What up.json says now: `pid`, `port`, `url`, `database_url`, `children` and more."""
        return json.loads((self.data_dir / "up.json").read_text())

    @property
    def base_url(self) -> str:
        return str(self.up["url"])

    @property
    def ws_url(self) -> str:
        return "ws" + self.base_url.removeprefix("http")

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body of a GET without credentials; raises OSError where nobody answers."""
        client = http.client.HTTPConnection(urlsplit(self.base_url).netloc, timeout=30)
        with contextlib.closing(client):
            client.request("GET", path)
            response = client.getresponse()
            return response.status, response.read()

    def wait_until_ready(self, timeout_seconds: float = READY_SECONDS) -> None:
        """Return when /readyz answers 200; raises ServiceError when it does not in time."""
        deadline = time.monotonic() + timeout_seconds
        answer: object = "nothing"
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise ServiceError(f"`up` ended with {self.process.returncode}.\n{self.logs()}")
            try:
                status, body = self.get("/readyz")
            except (OSError, ValueError, KeyError, http.client.HTTPException) as error:
                answer = error
            else:
                if status == 200:
                    return
                answer = body.decode(errors="replace")
            time.sleep(0.2)
        raise ServiceError(
            f"The service is not ready after {timeout_seconds:g} s; the last answer: {answer}\n"
            f"{self.logs()}"
        )

    def logs(self, lines: int = 40) -> str:
        """The end of every log, for the message of a failure."""
        told = []
        for path in [self.log_path, *sorted((self.data_dir / "logs").glob("*.log"))]:
            if path.exists():
                tail = path.read_text(errors="replace").splitlines()[-lines:]
                told.append(f"--- {path.name}\n" + "\n".join(tail))
        return "\n".join(told)

    def processes(self) -> list[psutil.Process]:
        """Every process of the service but the supervisor: its descendants, and strays."""
        found = {}
        with contextlib.suppress(psutil.NoSuchProcess):
            found = {p.pid: p for p in psutil.Process(self.process.pid).children(recursive=True)}
        for candidate in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                mine = candidate.environ().get("OD_DATA_DIR") == str(self.data_dir)
                mine = mine or any(str(self.data_dir) in word for word in candidate.cmdline())
                if mine and candidate.pid not in (self.process.pid, os.getpid()):
                    found[candidate.pid] = candidate
        return list(found.values())

    def start_again(self) -> None:
        """Start it over the same folder, after it has ended in whatever way."""
        self.process = start_up(self.data_dir, self.log_path, self.overrides)
        self.wait_until_ready()

    def stop(self) -> None:
        """Stop it with SIGTERM; raises ServiceError unless it ends well and leaves no process."""
        before = self.processes()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise ServiceError(f"`up` did not stop in time.\n{self.logs()}") from None
        left = [p for p in {*before, *self.processes()} if _runs(p)]
        told = [_described(p) for p in left]
        for process in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        if left or status != 0:
            raise ServiceError(f"`up` ended with {status} and left {told}.\n{self.logs()}")


def _runs(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def _described(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return f"{process.pid} {' '.join(process.cmdline())[:200]}"
    return str(process.pid)


def service_environment(data_dir: Path, overrides: Mapping[str, str]) -> dict[str, str]:
    """The environment of a service that knows nothing of the caller's own settings."""
    engines = {"DATABASE_URL", "DATABASE_OWNER_URL", "REDIS_URL"}
    inherited = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith("OD_") and key not in engines
    }
    return inherited | {
        "OD_DATA_DIR": str(data_dir),
        "OD_HTTP_PORT": "0",
        "OD_WEB_PROCESSES": "1",
        "OD_NETWORK_BATCH": "1",  # workers that start often need not measure each time
        "OD_ADMIN_EMAIL": ADMIN_EMAIL,
        "OD_ADMIN_PASSWORD": ADMIN_PASSWORD,
        "OD_WEBHOOKS_ANYWHERE": "true",  # receivers of tests are on this machine
        # Tests that are killed take the service with them.
        "OD_DIE_WITH_PARENT": str(os.getpid()),
        **overrides,
    }


def start_up(
    data_dir: Path, log_path: Path, overrides: Mapping[str, str]
) -> "subprocess.Popen[bytes]":
    """Start `manage.py up` over a folder; what it prints is added to the log."""
    with log_path.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, str(REPOSITORY / "manage.py"), "up"],
            env=service_environment(data_dir, overrides),
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


@contextlib.contextmanager
def running_service(folder: Path, **overrides: str) -> Iterator[Service]:
    """Run the service over `folder`/data for the block; `overrides` go into its environment.

    Raises ServiceError when it does not become ready, does not stop or leaves a process.
    """
    data_dir = folder / "data"
    log_path = folder / "up.log"
    service = Service(start_up(data_dir, log_path, overrides), data_dir, log_path, overrides)
    try:
        service.wait_until_ready()
        yield service
    finally:
        service.stop()
