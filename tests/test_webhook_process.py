"""`manage.py deliver_webhooks` as a process: killed in the middle of a message, and stopped."""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.db import transaction

from accounts.models import Webhook
from accounts.services import append_event
from accounts.webhooks import create_webhook
from tests.conftest import TEST_DATABASE
from tests.factories import make_user
from tests.service import REPOSITORY

PATIENCE_SECONDS = 60


class Receiver(ThreadingHTTPServer):
    """Keeps what it hears; the second message it answers when it is let go."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.heard: queue.Queue[int] = queue.Queue()
        self.count = 0
        self.let_go = threading.Event()


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        event = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.count += 1
        self.server.heard.put(event["seq"])
        if self.server.count == 2:
            self.server.let_go.wait(PATIENCE_SECONDS)
        with contextlib.suppress(OSError):  # who asked may be dead
            self.send_response(204)
            self.end_headers()

    def log_message(self, *_) -> None:
        """Nothing."""


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.let_go.set()
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def delivering(engines) -> Iterator["subprocess.Popen[bytes]"]:
    """The process, on the database of the tests; killed in the end if it still runs."""
    database_url = f"{engines.database_url.rpartition('/')[0]}/{TEST_DATABASE}"
    process = subprocess.Popen(
        [sys.executable, "manage.py", "deliver_webhooks"],
        cwd=REPOSITORY,
        env={
            **os.environ,
            "DATABASE_URL": database_url,
            "REDIS_URL": engines.redis_url,
            "OD_WEBHOOKS_ANYWHERE": "true",
        },
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def test_killed_process_has_its_message_sent_again_and_no_other(
    engines, committed_db, settings, receiver
):
    settings.WEBHOOKS_ANYWHERE = True
    user = make_user()
    create_webhook(user=user, url=f"http://127.0.0.1:{receiver.server_port}/")
    for _ in range(3):
        with transaction.atomic():
            append_event(user_id=user.pk, kind="job.started", payload={})
    with delivering(engines):
        before = [receiver.heard.get(timeout=PATIENCE_SECONDS) for _ in range(2)]
    receiver.let_go.set()
    assert (before, Webhook.objects.get().cursor_seq) == ([1, 2], 1)
    Webhook.objects.update(leased_until=datetime(2020, 1, 1, tzinfo=UTC))  # half a minute later
    with delivering(engines) as successor:
        after = [receiver.heard.get(timeout=PATIENCE_SECONDS) for _ in range(2)]
        successor.send_signal(signal.SIGTERM)
        assert successor.wait(PATIENCE_SECONDS) == 0
    assert after == [2, 3]
    stopped = Webhook.objects.get()
    assert (stopped.cursor_seq, stopped.leased_until, stopped.last_status) == (3, None, 204)
