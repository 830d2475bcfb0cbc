"""The server of the port: bodies, readers and sockets within limits, over real connections."""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import resource
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from odproject.bridge import Bridge
from odproject.core.environ import CLIENT_LEFT, LATER
from odproject.engines import wait_until
from odproject.fair_threads import FairThreads

REPOSITORY = Path(__file__).resolve().parent.parent
PATIENCE_SECONDS = 30.0
MEBIBYTE = 1024 * 1024
MAX_REQUEST_BYTES = 60 * MEBIBYTE
MAX_PARSED_BYTES = MEBIBYTE
WEB_THREADS = 2
# Socket buffers on both sides hold some megabytes of a response that nobody reads.
SOCKET_BUFFERS_BYTES = 24 * MEBIBYTE


class Web:
    """A web process with the small application, and how to talk to it."""

    def __init__(self, tmp_path: Path, **environment: str) -> None:
        self.tmp_path = tmp_path
        self.file = tmp_path / "large-file"
        with self.file.open("wb") as stream:
            stream.truncate(80 * MEBIBYTE)
        with socket.create_server(("127.0.0.1", 0)) as listener:
            self.port = listener.getsockname()[1]
            self.log = tmp_path / "serve.log"
            with self.log.open("wb") as log:
                command = [sys.executable, "-m", "odproject.serve", "--fd", str(listener.fileno())]
                self.process = subprocess.Popen(
                    [*command, "--application", "tests.small_application:application"],
                    cwd=REPOSITORY,
                    env={
                        **os.environ,
                        "TMPDIR": str(tmp_path),
                        "TEST_FILE": str(self.file),
                        "OD_MAX_REQUEST_BYTES": str(MAX_REQUEST_BYTES),
                        "OD_MAX_PARSED_BYTES": str(MAX_PARSED_BYTES),
                        "OD_WEB_THREADS": str(WEB_THREADS),
                        **environment,
                    },
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    pass_fds=[listener.fileno()],
                )
        assert self.get("/counts")[0] == 200

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=PATIENCE_SECONDS)

    def exchange(self, *parts: bytes) -> tuple[int, dict[str, str], bytes]:
        """Send the parts, read to the end; status, headers and (dechunked) body."""
        with self.connect() as connection:
            with contextlib.suppress(ConnectionError):  # a refusal may come before the end
                for part in parts:
                    connection.sendall(part)
            return parsed(read_all(connection))

    def get(self, path: str, *headers: str) -> tuple[int, dict[str, str], bytes]:
        return self.exchange(head("GET", path, "Connection: close", *headers))

    def counts(self) -> dict[str, int]:
        return json.loads(self.get("/counts")[2])

    def peak_memory_bytes(self) -> int:
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024

    def spool_files(self) -> list[int]:
        """How many bytes each of them has."""
        sizes = []
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            with contextlib.suppress(FileNotFoundError):
                name = str(entry.readlink())
                if name.startswith(str(self.tmp_path)) and "(del" in name:
                    sizes.append(entry.stat().st_size)
        return sizes

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(PATIENCE_SECONDS)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Web]:
    running = Web(tmp_path_factory.mktemp("web"))
    yield running
    assert running.process.poll() is None, running.log.read_text()
    running.stop()


@pytest.fixture
def own_web(tmp_path: Path) -> Iterator[Callable[..., Web]]:
    running: list[Web] = []

    def start(**environment: str) -> Web:
        running.append(Web(tmp_path, **environment))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.wait()


def head(method: str, path: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: test", *headers, "", ""]).encode()


def read_all(connection: socket.socket) -> bytes:
    received = bytearray()
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
    return bytes(received)


def parsed(answer: bytes) -> tuple[int, dict[str, str], bytes]:
    start, _, rest = answer.partition(b"\r\n\r\n")
    if start.startswith(b"HTTP/1.1 100"):
        start, _, rest = rest.partition(b"\r\n\r\n")
    first, *lines = start.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    if headers.get("transfer-encoding") == "chunked":
        rest = b"".join(chunks(rest))
    return int(first.split()[1]), headers, rest


def chunks(body: bytes) -> Iterator[bytes]:
    at = 0
    while (end := body.find(b"\r\n", at)) >= 0:
        size = int(body[at:end], 16)
        yield body[end + 2 : end + 2 + size]
        at = end + 2 + size + 2


def chunked(piece: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(piece), piece)


MULTIPART = "Content-Type: multipart/form-data; boundary=b"


# -- bodies


def test_body_reaches_the_application_whole_and_never_through_memory(web):
    piece, number = os.urandom(MEBIBYTE), 50
    before = web.peak_memory_bytes()
    announced = head("POST", "/a?b=c", MULTIPART, f"Content-Length: {number * len(piece)}")
    status, _, body = web.exchange(
        announced.replace(b"Host", b"Connection: close\r\nHost"), *[piece] * number
    )
    assert status == 200
    facts = json.loads(body)
    assert facts.pop("begun_at") > 0
    assert facts == {
        "length": number * MEBIBYTE,
        "announced": str(number * MEBIBYTE),
        "sha256": hashlib.sha256(piece * number).hexdigest(),
        "path": "/a",
        "script_name": "",
        "query": "b=c",
        "thread": "web",
        "in_memory": False,
    }
    assert web.peak_memory_bytes() - before < 16 * MEBIBYTE
    assert web.spool_files() == []


def test_chunked_body_is_announced_to_the_application_with_its_length(web):
    _, _, body = web.exchange(
        head("POST", "/", MULTIPART, "Transfer-Encoding: chunked", "Connection: close"),
        *[chunked(b"abc")] * 3,
        b"0\r\n\r\n",
    )
    facts = json.loads(body)
    assert (facts["length"], facts["announced"]) == (9, "9")
    assert facts["sha256"] == hashlib.sha256(b"abcabcabc").hexdigest()


@pytest.mark.parametrize("framing", ["announced", "chunked"])
@pytest.mark.parametrize(("method", "counts"), [("PATCH", True), ("POST", False)])
def test_what_has_come_of_a_body_counts_where_the_application_says_so(
    own_web, framing, method, counts
):
    web = own_web()
    is_chunked = framing == "chunked"
    length = "Transfer-Encoding: chunked" if is_chunked else "Content-Length: 1000000"
    kind = "Content-Type: application/offset+octet-stream"
    piece = os.urandom(300_000)
    with web.connect() as connection:
        connection.sendall(head(method, "/broken", kind, length))
        connection.sendall(chunked(piece) if is_chunked else piece)
    assert wait_until(lambda: web.spool_files() == [], timeout_seconds=PATIENCE_SECONDS)
    expected = 300_000 if counts else 0
    assert wait_until(
        lambda: web.counts()["broken_bytes"] == expected, timeout_seconds=PATIENCE_SECONDS
    )


def test_refused_body_does_not_count_however_it_ends(own_web):
    web = own_web()
    too_long = f"Content-Length: {MAX_REQUEST_BYTES + 2 * MEBIBYTE}"
    kind = "Content-Type: application/offset+octet-stream"
    assert web.exchange(head("PATCH", "/broken", kind, too_long), b"x" * 1000)[0] == 413
    assert web.counts()["broken_bytes"] == 0


@pytest.mark.parametrize("length", ["-1", "1e3", "9" * 5000])  # Python reads no number that long
def test_length_that_is_none_is_refused(web, length):
    status, _, body = web.exchange(head("POST", "/", MULTIPART, f"Content-Length: {length}"))
    assert (status, json.loads(body)["code"]) == (400, "bad_request")


def test_request_that_turns_out_to_take_long_is_run_again_by_threads_for_that(web):
    answer = web.exchange(
        head("POST", "/later", MULTIPART, "Content-Length: 3", "Connection: close"), b"abc"
    )
    facts = json.loads(answer[2])
    assert (answer[0], facts["length"], facts["announced"]) == (200, 0, "0")
    assert facts["thread"] == "waiting"


def test_what_was_put_off_is_done_although_its_client_has_left():
    calls: list[str] = []
    is_free, done = threading.Event(), threading.Event()

    def application(environ, start_response):
        start_response("200 OK", [])
        calls.append(threading.current_thread().name.partition("_")[0])
        if not environ[LATER]:
            environ[LATER] = "slow"
        else:
            done.set()
        return []

    bridge = Bridge(application, 1, slow_threads={"slow": 1}, slow_kind=lambda scope: None)
    bridge.slow_threads["slow"].submit("somebody", is_free.wait)
    leave_while_it_waits(bridge, bridge.slow_threads["slow"])
    is_free.set()
    assert done.wait(PATIENCE_SECONDS)
    assert calls == ["web", "slow"]


def test_what_counts_in_part_is_written_down_although_its_client_left_before_its_turn():
    is_free, done = threading.Event(), threading.Event()
    threads_of: list[str] = []

    def application(environ, start_response):
        start_response("200 OK", [])
        threads_of.append(threading.current_thread().name.partition("_")[0])
        done.set()
        return []

    bridge = Bridge(
        application,
        1,
        slow_threads={"piece": 1},
        slow_kind=lambda scope: "piece",
        outlasts_client=lambda scope: True,
    )
    bridge.slow_threads["piece"].submit("somebody", is_free.wait)
    leave_while_it_waits(bridge, bridge.slow_threads["piece"])
    is_free.set()
    assert done.wait(PATIENCE_SECONDS)
    assert threads_of == ["piece"]


def leave_while_it_waits(bridge: Bridge, threads: FairThreads) -> None:
    """Begin a request and give it up as soon as it waits for one of these threads."""
    scope = {"type": "http", "method": "PATCH", "path": "/", "query_string": b"", "headers": []}
    scope |= {"server": ("localhost", 80), "scheme": "http", "http_version": "1.1"}

    async def nothing(*_: Any) -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def leave() -> None:
        request = asyncio.create_task(bridge(scope, nothing, nothing))
        while not threads._waiting:
            await asyncio.sleep(0.01)
        request.cancel()
        await asyncio.wait([request])

    asyncio.run(leave())


def test_body_of_a_client_that_would_like_http2_is_taken(web):
    _, _, body = web.exchange(
        head("POST", "/", MULTIPART, "Connection: close", "Upgrade: h2c", "Content-Length: 3"),
        b"abc",
    )
    assert json.loads(body)["length"] == 3


def test_application_knows_when_a_request_began_however_long_its_body_takes(web):
    with web.connect() as connection:
        before = time.time()
        connection.sendall(head("POST", "/", MULTIPART, "Connection: close", "Content-Length: 3"))
        time.sleep(0.5)
        sent = time.time()
        connection.sendall(b"abc")
        _, _, body = parsed(read_all(connection))
    assert before <= json.loads(body)["begun_at"] < sent


def test_body_announced_too_long_is_refused_before_it_is_sent(web):
    calls = web.counts()["calls"]
    length = MAX_REQUEST_BYTES + MEBIBYTE + 1
    status, headers, body = web.exchange(
        head("POST", "/", MULTIPART, f"Content-Length: {length}", "Expect: 100-continue")
    )
    assert status == 413
    assert headers["content-type"] == "application/problem+json"
    assert headers["connection"] == "close"
    detail = f"The request's body is longer than the {length - 1} bytes allowed for its kind."
    problem = json.loads(body)
    assert problem.pop("title")
    assert problem == {
        "type": "about:blank",
        "status": 413,
        "detail": detail,
        "code": "request_too_large",
        "name": "RequestTooLargeError",
        "message": detail,
    }
    assert web.counts()["calls"] == calls


def test_refused_client_that_sends_on_regardless_still_reads_the_answer(web):
    length = MAX_REQUEST_BYTES * 2
    status, _, _ = web.exchange(
        head("POST", "/", MULTIPART, f"Content-Length: {length}"),
        *[b"x" * MEBIBYTE] * 20,
    )
    assert status == 413


def test_chunked_body_is_refused_when_it_has_become_too_long_and_its_disk_is_freed(web):
    calls = web.counts()["calls"]
    status, headers, body = web.exchange(
        head("POST", "/", MULTIPART, "Transfer-Encoding: chunked"),
        *[chunked(b"x" * MEBIBYTE)] * 70,
    )
    assert (status, headers["connection"]) == (413, "close")
    assert json.loads(body)["code"] == "request_too_large"
    assert web.counts()["calls"] == calls
    assert web.spool_files() == []


@pytest.mark.parametrize(
    "kind", ["application/json", "application/x-www-form-urlencoded", "application/vnd.x+json"]
)
def test_body_that_would_be_parsed_in_memory_has_a_smaller_limit(web, kind):
    headers = [f"Content-Type: {kind}", "Connection: close"]
    fits = b"1" * MAX_PARSED_BYTES
    status, _, _ = web.exchange(head("POST", "/", *headers, f"Content-Length: {len(fits)}"), fits)
    assert status == 200
    status, _, _ = web.exchange(head("POST", "/", *headers, f"Content-Length: {len(fits) + 1}"))
    assert status == 413


def test_client_that_asks_first_is_told_to_continue(web):
    with web.connect() as connection:
        connection.sendall(
            head(
                "POST",
                "/",
                MULTIPART,
                "Content-Length: 3",
                "Expect: 100-continue",
                "Connection: close",
            )
        )
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        connection.sendall(b"abc")
        status, _, body = parsed(read_all(connection))
    assert (status, json.loads(body)["length"]) == (200, 3)


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET /\xc3\xa9 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET /?\xff HTTP/1.1\r\nHost: a\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nbad name: 1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: multipart/x\r\n"
        b"Transfer-Encoding: chunked\r\n\r\nxyz\r\n",
    ],
)
def test_request_that_is_no_http_gets_a_problem_document(web, request_bytes):
    calls = web.counts()["calls"]
    status, headers, body = web.exchange(request_bytes)
    assert (status, headers["content-type"]) == (400, "application/problem+json")
    assert json.loads(body)["code"] == "bad_request"
    assert web.counts()["calls"] == calls


def test_head_that_trickles_is_ended_with_408(own_web):
    web = own_web(OD_STALLED_READER_SECONDS="2")
    with web.connect() as connection:
        for byte in head("GET", "/", "Connection: close", f"X: {'y' * 400}"):
            connection.sendall(bytes([byte]))
            if select.select([connection], [], [], 0.05)[0]:
                break
        status, headers, body = parsed(read_all(connection))
    assert (status, headers["content-type"]) == (408, "application/problem+json")
    assert json.loads(body)["code"] == "request_timeout"
    assert web.counts()["calls"] == 0


def test_connection_may_rest_between_two_requests(own_web):
    web = own_web(OD_STALLED_READER_SECONDS="1")
    with web.connect() as connection:
        connection.sendall(head("GET", "/first"))
        first = connection.recv(65536)
        time.sleep(2)
        connection.sendall(head("GET", "/second", "Connection: close"))
        status, _, body = parsed(read_all(connection))
    assert first.startswith(b"HTTP/1.1 200 ")
    assert (status, json.loads(body)["path"]) == (200, "/second")


@pytest.mark.parametrize(
    ("target", "path", "query"),
    [
        (b"http://test/a/b?c=1", "/a/b", "c=1"),
        (b"HTTPS://test:443/", "/", ""),
        (b"http://test", "/", ""),
        (b"http://test?c=/d", "/", "c=/d"),
        (b"/a?next=http://test/b", "/a", "next=http://test/b"),
    ],
)
def test_whole_address_names_the_same_as_its_path(web, target, path, query):
    line = b"GET " + target + b" HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n"
    status, _, body = web.exchange(line)
    facts = json.loads(body)
    assert (status, facts["path"], facts["query"]) == (200, path, query)


@pytest.mark.parametrize(
    "head_bytes", [b"GET /%s HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nX: %s\r\n\r\n"]
)
def test_head_that_is_too_long_is_431(web, head_bytes):
    status, _, body = web.exchange(head_bytes % (b"x" * 40000))
    assert (status, json.loads(body)["code"]) == (431, "head_too_large")


def test_client_cannot_move_the_application_to_another_path(web):
    _, _, body = web.get("/x", "Daphne-Root-Path: /elsewhere")
    assert json.loads(body)["script_name"] == ""


# -- answers


def test_answer_names_no_server(web):
    assert "server" not in web.get("/")[1]


def test_connection_serves_one_request_after_another_even_after_head(web):
    with web.connect() as connection:
        connection.sendall(head("HEAD", "/stream?1000000"))
        connection.sendall(head("GET", "/", "Connection: close"))
        answer = read_all(connection)
    first, second = answer.split(b"HTTP/1.1 200 OK\r\n")[1:]
    assert first.endswith(b"\r\n\r\n")
    assert b"x" not in first.partition(b"\r\n\r\n")[2]
    assert json.loads(b"".join(chunks(second.partition(b"\r\n\r\n")[2])))["path"] == "/"


def test_failure_of_the_application_is_a_problem_document(web):
    status, headers, body = web.get("/fail")
    assert (status, headers["content-type"]) == (500, "application/problem+json")
    assert json.loads(body)["code"] == "internal_server_error"
    assert b"at once" not in body


def test_answer_that_fails_half_way_does_not_look_complete(web):
    with web.connect() as connection:
        connection.sendall(head("GET", "/fail-half-way"))
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 200 OK")
    assert not answer.endswith(b"0\r\n\r\n")


# -- readers


def test_reader_sets_the_pace_of_an_answer(web):
    total = 160 * MEBIBYTE
    memory, produced = web.peak_memory_bytes(), web.counts()["produced_bytes"]
    with web.connect() as connection:
        connection.sendall(head("GET", f"/stream?{total}", "Connection: close"))
        first = connection.recv(1000)
        assert _settled(lambda: web.counts()["produced_bytes"]) - produced < SOCKET_BUFFERS_BYTES
        status, _, body = parsed(first + read_all(connection))
    assert (status, len(body)) == (200, total)
    assert web.peak_memory_bytes() - memory < 16 * MEBIBYTE


def _settled(read: Callable[[], int]) -> int:
    """Read until the value stays the same for ten readings."""
    readings = [-1]

    def same() -> bool:
        readings.append(read())
        return len(set(readings[-10:])) == 1 and len(readings) > 10

    assert wait_until(same, timeout_seconds=PATIENCE_SECONDS)
    return readings[-1]


CHECKS = """
import asyncio, json, logging, sys, time
from types import SimpleNamespace
logging.basicConfig(stream=sys.stderr, level=logging.INFO)
from odproject import serve
serve.reactor = SimpleNamespace(callLater=lambda seconds, what: print(seconds, what.__name__))

async def sleep():
    await asyncio.sleep(600)

async def fail():
    raise ValueError

def begin(coroutine):
    task = asyncio.ensure_future(coroutine)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())
    return task

async def main():
    server = serve.Server(None, [], serve.Limits())
    now, long_ago = time.time(), time.time() - 60
    connections = {
        "at work": {"application_instance": begin(sleep())},
        "left now": {"application_instance": begin(sleep()), "disconnected": now},
        "left long ago": {"application_instance": begin(sleep()), "disconnected": long_ago},
        "left and failed": {"application_instance": begin(fail()), "disconnected": now},
        "failed": {"application_instance": begin(fail())},
        "left and answered": {"disconnected": now},
    }
    await asyncio.sleep(0)
    server.connections = connections
    server.application_checker()
    print(*connections, sep=", ")
    await asyncio.sleep(0)
    server.application_checker()
    print(*connections, sep=", ")
    print(*(name for name, one in connections.items() if "application_instance" in one), sep=", ")

asyncio.run(main())
"""


def test_connections_that_are_over_are_forgotten_without_a_word():
    done = subprocess.run(
        [sys.executable, "-c", CHECKS],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines() == [
        "1 application_checker",
        "at work, left now, left long ago, failed",
        "1 application_checker",
        "at work, left now, failed",
        "at work, left now",
    ]
    assert done.stderr == ""


def test_readers_who_leave_give_the_threads_back_and_end_their_answers(web):
    closed = web.counts()["closed"]
    for _ in range(3 * WEB_THREADS):
        with web.connect() as connection:
            connection.sendall(head("GET", f"/stream?{160 * MEBIBYTE}"))
            connection.recv(1000)
    assert web.get("/")[0] == 200
    assert wait_until(
        lambda: web.counts()["closed"] == closed + 3 * WEB_THREADS,
        timeout_seconds=PATIENCE_SECONDS,
    )


def test_file_is_sent_without_a_thread_and_without_memory(web):
    memory = web.peak_memory_bytes()
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(web.connect()) for _ in range(WEB_THREADS + 1)]
        for connection in stalled:
            connection.sendall(head("GET", "/file", "Connection: close"))
        for connection in stalled:
            assert connection.recv(15) == b"HTTP/1.1 200 OK"
        # More readers than threads do nothing, and others are served.
        assert web.get("/")[0] == 200
        _, _, body = parsed(b"HTTP/1.1 200 OK" + read_all(stalled[0]))
    assert len(body) == web.file.stat().st_size
    assert web.peak_memory_bytes() - memory < 16 * MEBIBYTE
    # A closed file is the end of Django's request, too.
    assert wait_until(
        lambda: str(web.file) not in _open_files(web.process.pid),
        timeout_seconds=PATIENCE_SECONDS,
    )


def _open_files(pid: int) -> set[str]:
    found = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            found.add(str(entry.readlink()))
    return found


def test_many_idle_clients_keep_nobody_out_though_a_shell_allows_few_files(own_web):
    allowed, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, most))
    try:
        web = own_web()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, most))
    with contextlib.ExitStack() as stack:
        for _ in range(300):
            stack.enter_context(web.connect())
        assert web.get("/counts")[0] == 200


def test_what_takes_long_waits_for_its_like_and_holds_up_nothing_else(own_web):
    web = own_web()
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(web.connect()) for _ in range(4 * WEB_THREADS)]
        for connection in slow:
            connection.sendall(head("POST", "/wait", "Connection: close", "Content-Length: 0"))
        # One of them has its thread and the others wait, without the threads of the rest.
        assert wait_until(lambda: web.counts()["calls"] == 1, timeout_seconds=PATIENCE_SECONDS)
        assert web.get("/")[0] == 200
        assert web.counts()["calls"] == 2
        assert web.get("/release")[0] == 200
        assert [parsed(read_all(one))[2] for one in slow] == [b"waited"] * len(slow)


def test_view_hears_that_nobody_waits_for_its_answer_any_more():
    begun, heard = threading.Event(), threading.Event()

    def wsgi(environ, start_response):
        begun.set()
        if environ[CLIENT_LEFT].wait(PATIENCE_SECONDS):
            heard.set()
        start_response("200 OK", [])
        return []

    async def ask_and_leave():
        bridge = Bridge(wsgi, 1, slow_threads={}, slow_kind=lambda scope: None)
        scope = {"type": "http", "method": "GET", "path": "/", "headers": [], "query_string": b""}
        scope |= {"http_version": "1.1", "scheme": "http", "root_path": ""}
        asking = asyncio.create_task(bridge(scope, asyncio.Queue().get, lambda message: None))
        assert await asyncio.to_thread(begun.wait, PATIENCE_SECONDS)
        assert not heard.is_set()
        asking.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asking

    asyncio.run(ask_and_leave())
    assert heard.wait(PATIENCE_SECONDS)


def test_reader_without_progress_is_cut_off_and_the_thread_is_free_again(own_web):
    web = own_web(OD_STALLED_READER_SECONDS="0.5")
    with contextlib.ExitStack() as stack:
        stalled = [stack.enter_context(web.connect()) for _ in range(WEB_THREADS)]
        for connection in stalled:
            connection.sendall(head("GET", f"/stream?{160 * MEBIBYTE}"))
        assert web.get("/")[0] == 200
        assert wait_until(
            lambda: web.counts()["closed"] == WEB_THREADS, timeout_seconds=PATIENCE_SECONDS
        )
        for connection in stalled:
            assert len(read_all(connection)) < SOCKET_BUFFERS_BYTES


# -- websockets


def test_websocket_message_of_one_mebibyte_passes_and_one_of_two_is_1009(web):
    with connect(f"ws://127.0.0.1:{web.port}/") as client:
        client.send("x" * MEBIBYTE)
        assert client.recv() == str(MEBIBYTE)
        client.send("x" * 2 * MEBIBYTE)
        with pytest.raises(ConnectionClosed) as closed:
            client.recv()
    assert closed.value.rcvd.code == 1009


@pytest.mark.parametrize("code", [1000, 1008, 4001])
def test_websocket_is_closed_with_the_code_that_the_application_gives(web, code):
    with connect(f"ws://127.0.0.1:{web.port}/") as client:
        client.send(f"close {code}")
        with pytest.raises(ConnectionClosed) as closed:
            client.recv()
    assert closed.value.rcvd.code == code


def test_websocket_whose_subprotocol_is_not_ascii_is_refused_with_400(web):
    upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    upgrade.append("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
    opened = web.counts()["websockets_ended"]
    with web.connect() as connection:
        request = head("GET", "/", *upgrade, "Sec-WebSocket-Protocol: jwt, name")
        connection.sendall(request.replace(b"name", b"n\xc3\xa4me"))
        answer = read_all(connection)
    assert answer.startswith(b"HTTP/1.1 400 Sec-WebSocket-Protocol is not ASCII\r\n")
    assert web.counts()["websockets_ended"] == opened


def test_websocket_client_who_floods_a_busy_application_is_closed(web):
    with connect(f"ws://127.0.0.1:{web.port}/") as client:
        client.send("sleep")
        with pytest.raises(ConnectionClosed) as closed:
            for _ in range(2000):
                client.send("x")
            client.recv()
    assert closed.value.rcvd.code == 1008


def _flooded(connection: socket.socket) -> None:
    """Open a websocket and ask for 200 MB, of which nothing is read."""
    upgrade = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Version: 13"]
    connection.sendall(head("GET", "/", *upgrade, "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="))
    assert connection.recv(1000).startswith(b"HTTP/1.1 101")
    connection.sendall(b"\x81\x85\x00\x00\x00\x00flood")


def test_websocket_reader_who_stalls_costs_no_memory(web):
    memory, produced = web.peak_memory_bytes(), web.counts()["produced_bytes"]
    with web.connect() as connection:
        _flooded(connection)
        assert _settled(lambda: web.counts()["produced_bytes"]) - produced < SOCKET_BUFFERS_BYTES
    assert web.peak_memory_bytes() - memory < 16 * MEBIBYTE


def test_websocket_reader_who_stalls_for_long_is_cut_off(own_web):
    web = own_web(OD_STALLED_READER_SECONDS="0.5")
    with web.connect() as connection:
        _flooded(connection)
        assert wait_until(
            lambda: web.counts()["websockets_ended"] == 1, timeout_seconds=PATIENCE_SECONDS
        )
        assert len(read_all(connection)) < SOCKET_BUFFERS_BYTES


# -- the end


def test_stop_lets_a_running_request_finish_and_says_good_bye_to_websockets(own_web):
    web = own_web()
    with web.connect() as waiting, connect(f"ws://127.0.0.1:{web.port}/") as client:
        waiting.sendall(head("GET", "/wait", "Connection: close"))
        assert wait_until(lambda: web.counts()["calls"] == 1, timeout_seconds=PATIENCE_SECONDS)
        with web.connect() as releasing:
            releasing.sendall(b"GET /release HTTP/1.1\r\nHost: test\r\n")  # not yet complete
            client.send("x")
            assert client.recv() == "1"
            web.process.send_signal(signal.SIGTERM)
            with pytest.raises(ConnectionClosed) as closed:
                client.recv()
            assert closed.value.rcvd.code == 1001
            releasing.sendall(b"Connection: close\r\n\r\n")
            status, _, body = parsed(read_all(waiting))
    assert (status, body) == (200, b"waited")
    assert web.process.wait(PATIENCE_SECONDS) == 0


def test_stop_breaks_a_body_off_that_counts_in_part_and_lets_it_be_written_down(own_web, tmp_path):
    web = own_web()
    kind = "Content-Type: application/offset+octet-stream"
    noted = tmp_path / "noted"
    with web.connect() as connection:
        connection.sendall(head("PATCH", f"/broken?{noted}", kind, "Content-Length: 1000000"))
        connection.sendall(b"x" * 300_000)
        assert wait_until(lambda: sum(web.spool_files()) > 0, timeout_seconds=PATIENCE_SECONDS)
        there_bytes = sum(web.spool_files())
        assert web.stop() == 0
    assert there_bytes <= int(noted.read_text()) <= 300_000
