"""Children are forked from a process that has everything loaded, and are as alone as others."""

import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest

from datasets.media import fork_server as subject
from datasets.media.fork_server import SERVER_HAS_ENDED, Child, ForkedChild, ForkServer
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


def opened_by(pid: int) -> set[int]:
    """The descriptors of a process."""
    listed = list(Path(f"/proc/{pid}/fd").iterdir())  # with the one that lists, if it is our own
    return {int(path.name) for path in listed if path.is_symlink()}


@contextlib.contextmanager
def room_for(files: int, pid: int) -> Iterator[None]:
    """Within the block a process can open only so many files more."""
    before = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    opened = opened_by(pid)
    free = [number for number in range(1000) if number not in opened]
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[files], before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, before)


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
    first.stdin.close()
    assert first.stdout.read() == b""
    assert end(first) == 0
    assert end(second) == 0


@linux_only
@pytest.mark.parametrize(
    ("who", "room"), [("asker", 0), ("asker", 1), ("asker", 6), ("server", 0), ("server", 2)]
)
def test_child_that_no_file_is_left_for_costs_no_other_child(server, who, room):
    first = server.start(CHILD, "echo")
    kept = server.pid
    opened = opened_by(kept)
    with room_for(room, pid=kept if who == "server" else os.getpid()):
        with pytest.raises(OSError, match="Too many open files"):
            server.start(CHILD, "echo")
        assert first.poll() is None
    assert end(server.start(CHILD, "exit", "0")) == 0
    assert server.pid == kept
    assert wait_until(lambda: opened_by(kept) == opened, timeout_seconds=10)
    assert said(first, b"hello\n")
    assert end(first) == 0


@linux_only
def test_answer_that_would_come_too_late_is_for_nobody(server, monkeypatch):
    monkeypatch.setattr(subject, "_START_TIMEOUT_SECONDS", 0.001)
    with pytest.raises(OSError, match="The fork server does not start"):
        server.start(CHILD, "exit", "1")
    assert server.pid is None
    monkeypatch.undo()
    assert end(server.start(CHILD, "exit", "3")) == 3


@linux_only
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_whole_group_lets_what_runs_finish(server, number):
    child = server.start(CHILD, "echo")
    kept = server.pid
    os.kill(kept, number)
    assert end(server.start(CHILD, "exit", "0")) == 0
    assert server.pid == kept
    assert said(child, b"hello\n")
    assert end(child) == 0


@linux_only
def test_status_is_told_to_an_asker_that_ignores_the_end_of_its_children(server):
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        child = server.start(CHILD, "exit", "3")
    finally:
        signal.signal(signal.SIGCHLD, before)
    assert end(child) == 3


@linux_only
def test_programs_that_the_asker_starts_get_no_descriptor_of_a_child(server):
    before = opened_by(os.getpid())
    child = server.start(CHILD, "echo")
    opened = opened_by(os.getpid()) - before
    assert len(opened) > 3
    assert not any(map(os.get_inheritable, opened))
    assert end(child) == 0


@linux_only
@pytest.mark.parametrize("death", [signal.SIGSEGV, signal.SIGABRT])
def test_server_whose_child_has_crashed_forks_no_other_and_ends_with_the_last(server, death):
    crashing, going_on = server.start(CHILD, "sleep"), server.start(CHILD, "echo")
    first = psutil.Process(server.pid)
    os.kill(crashing.pid, death)
    assert end(crashing) == -death
    following = server.start(CHILD, "echo")
    assert server.pid not in (None, first.pid)
    assert said(following, b"hello\n").startswith(f"{server.pid} ".encode())
    assert said(going_on, b"hello\n").startswith(f"{first.pid} ".encode())
    assert end(going_on) == 0
    assert wait_until(lambda: first.status() == "zombie", timeout_seconds=10)
    assert end(following) == 0
    assert end(server.start(CHILD, "exit", "0")) == 0
    assert not first.is_running()


@linux_only
def test_closing_ends_servers_that_wait_for_their_last_child(server):
    crashing, going_on = server.start(CHILD, "sleep"), server.start(CHILD, "sleep")
    first = server.pid
    os.kill(crashing.pid, signal.SIGSEGV)
    assert end(crashing) == -signal.SIGSEGV
    server.close()
    assert end(going_on) == subject.SERVER_HAS_ENDED
    assert is_gone(first)


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
    assert end(child) == SERVER_HAS_ENDED


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


def refused_by_the_kernel(pid: int) -> int:
    raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))


@pytest.mark.parametrize("pidfd_open", [None, refused_by_the_kernel])
def test_where_nothing_can_be_forked_a_child_is_started_by_itself(server, monkeypatch, pidfd_open):
    monkeypatch.delattr(os, "pidfd_open", raising=False)
    if pidfd_open is not None:
        monkeypatch.setattr(os, "pidfd_open", pidfd_open, raising=False)
    child = server.start(CHILD, "echo", "x")
    assert not isinstance(child, ForkedChild)
    assert psutil.Process(child.pid).ppid() == os.getpid()
    assert server.pid is None
    with child:
        pass
    assert child.returncode is not None
