"""Children are forked from a process that has everything loaded, and are as alone as others."""

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from datasets.media import fork_server as subject
from datasets.media.fork_server import Child, ForkedChild, ForkServer
from odproject.engines import wait_until

CHILD = "tests.children"
linux_only = pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing is forked here")


@pytest.fixture
def server():
    server = ForkServer(CHILD)
    yield server
    server.close()


def said(child: Child, line: bytes) -> bytes:
    """What a child answers to a line."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(line)
    return os.read(child.stdout.fileno(), 1000)


def end(child: Child) -> int | None:
    """Close its input, at which it ends; returns its status."""
    with child:
        pass
    return child.returncode


def is_gone(pid: int) -> bool:
    return wait_until(lambda: not psutil.pid_exists(pid), timeout_seconds=10)


def test_each_asker_has_a_child_of_the_same_server(server):
    assert server.pid is None
    with ThreadPoolExecutor(4) as pool:
        children = list(pool.map(lambda n: server.start(CHILD, "echo", str(n)), range(8)))
    assert len({child.pid for child in children}) == 8
    assert {psutil.Process(child.pid).ppid() for child in children} == {server.pid}
    for n, child in enumerate(children):
        assert said(child, b"hello\n") == f"{server.pid} ['{n}'] hello\n".encode()
        assert child.poll() is None
    assert [end(child) for child in children] == [0] * 8


@pytest.mark.parametrize(
    ("what", "status"), [(["exit", "3"], 3), (["exit", "0"], 0), (["raise"], 1)]
)
def test_status_of_a_child_is_told(server, what, status):
    child = server.start(CHILD, *what)
    assert child.wait() == status
    assert (child.poll(), child.returncode) == (status, status)
    child.kill()  # of nobody
    assert end(child) == status


@pytest.mark.parametrize("death", [signal.SIGKILL, signal.SIGSEGV])
def test_signal_that_ended_a_child_is_told(server, death):
    child = server.start(CHILD, "sleep")
    with pytest.raises(subprocess.TimeoutExpired):
        child.wait(0.01)
    os.kill(child.pid, death)
    assert end(child) == -death


@linux_only
def test_child_has_no_file_and_no_session_of_another(server):
    first = server.start(CHILD, "sleep")
    second = server.start(CHILD, "echo")
    said(second, b"\n")
    for child in (first, second):
        opened = Path(f"/proc/{child.pid}/fd").iterdir()
        assert sorted(path.name for path in opened) == ["0", "1", "2"]
        assert os.getsid(child.pid) == child.pid
    first.kill()
    assert end(first) == -signal.SIGKILL
    assert said(second, b"\n")
    assert end(second) == 0


def test_closed_pipe_of_one_child_is_seen_while_others_live(server):
    first = server.start(CHILD, "echo")
    second = server.start(CHILD, "echo")
    assert end(first) == 0
    assert end(second) == 0


@linux_only
def test_server_that_was_killed_is_replaced(server):
    child = server.start(CHILD, "sleep")
    gone = server.pid
    os.kill(gone, signal.SIGKILL)
    other = server.start(CHILD, "echo")
    assert server.pid != gone
    assert said(other, b"hello\n").endswith(b"hello\n")
    assert end(other) == 0
    child.kill()
    assert end(child) == -signal.SIGKILL


@linux_only
def test_server_that_nobody_asks_ends_and_another_takes_its_place(server, monkeypatch):
    monkeypatch.setattr(subject, "_IDLE_SECONDS", 0.2)
    child = server.start(CHILD, "echo")
    idle = server.pid
    said(child, b"\n")
    assert not wait_until(lambda: psutil.Process(idle).status() == "zombie", timeout_seconds=0.6)
    assert end(child) == 0  # it has stayed as long as a child had
    assert wait_until(lambda: psutil.Process(idle).status() == "zombie", timeout_seconds=10)
    assert end(server.start(CHILD, "exit", "0")) == 0
    assert server.pid != idle


@linux_only
def test_closing_ends_the_server_and_it_begins_anew_when_asked(server):
    server.close()
    child = server.start(CHILD, "exit", "0")
    first = server.pid
    assert end(child) == 0
    server.close()
    assert server.pid is None
    assert is_gone(first)
    assert end(server.start(CHILD, "exit", "0")) == 0


@linux_only
def test_server_that_cannot_load_its_modules_is_an_error_of_the_system():
    broken = ForkServer("no.such.module")
    with pytest.raises(OSError, match="The fork server does not start"):
        broken.start("no.such.module")
    broken.close()


@linux_only
def test_machine_that_makes_no_process_is_an_error_of_the_system(server, monkeypatch):
    def refuse(*args, **options):
        raise BlockingIOError(errno.EAGAIN, "no more processes")

    monkeypatch.setattr(subject.subprocess, "Popen", refuse)
    with pytest.raises(BlockingIOError):
        server.start(CHILD, "exit", "0")
    monkeypatch.undo()
    assert end(server.start(CHILD, "exit", "0")) == 0


FORKS = """
import os, sys
from datasets.media.fork_server import ForkServer
server = ForkServer("tests.children")
def status():
    with server.start("tests.children", "exit", "0") as child:
        pass
    return child.returncode, server.pid
first = status()
sys.stdout.flush()
if os.fork() == 0:
    print("forked", *status(), flush=True)
    server.close()
    os._exit(0)
os.wait()
print("first", *first)
print("again", *status())
"""


@linux_only
def test_process_that_was_forked_has_a_server_of_its_own():
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
    )
    told = dict(line.split(" ", 1) for line in done.stdout.splitlines())
    assert told["again"] == told["first"]
    assert told["first"].startswith("0 ")
    assert told["forked"].startswith("0 ")
    assert told["forked"] != told["first"]
    for told_of in told.values():
        assert is_gone(int(told_of.split()[1]))


def test_where_nothing_can_be_forked_a_child_is_started_by_itself(server, monkeypatch):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    child = server.start(CHILD, "echo", "x")
    assert not isinstance(child, ForkedChild)
    assert psutil.Process(child.pid).ppid() == os.getpid()
    assert server.pid is None
    with child:
        pass
    assert child.returncode is not None
