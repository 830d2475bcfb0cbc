"""Children that begin with everything loaded: forked from a process that has done nothing else.

A new interpreter that loads the decoders takes a third of a second of processor time, many times
what looking at a photograph takes. So each process that has strangers' files decoded keeps one more
beside it, which loads the same once (`datasets.media.fork_server_process`), opens no file of
anybody's, and forks a child for each asker. The child confines itself (`datasets.media.sandbox`)
before it opens anything, as one that was started by itself does.
"""

import atexit
import contextlib
import errno
import functools
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

_ROOT = Path(__file__).resolve().parents[2]
# Nothing of the service's environment (passwords, addresses) reaches a child. One thread for
# numeric libraries and two arenas keep its address space, which is limited, for the pictures.
CHILD_ENVIRONMENT: Mapping[str, str] = {
    "PYTHONPATH": str(_ROOT),
    "LC_ALL": "C.UTF-8",
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
_PYTHON = (sys.executable, "-P", "-s", "-B", "-Wignore", "-m")
_IDLE_SECONDS = 600.0
_MAX_MESSAGE_BYTES = 64 * 1024
_START_TIMEOUT_SECONDS = 60.0
_STATUS_TIMEOUT_SECONDS = 5.0
_END_TIMEOUT_SECONDS = 5.0
_CRASHES = {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGILL, signal.SIGSYS}
# The status of a child that ended because its server did, or whose end nobody has told: a fault of
# the service's and not of what the child was doing. No process ends with it.
SERVER_HAS_ENDED = 256


class _ServerEndedError(Exception):
    """The fork server is gone, or has been ended because it did not answer."""


class Child(Protocol):
    """What the askers of a child do with it; `subprocess.Popen` offers it too."""

    pid: int
    stdin: IO[bytes] | None
    stdout: IO[bytes] | None

    @property
    def returncode(self) -> int | None:
        """Its exit status, negative for the signal that ended it; None until it is known.

        SERVER_HAS_ENDED where it was lost.
        """

    def poll(self) -> int | None:
        """The exit status, None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end (seconds); raises `subprocess.TimeoutExpired`."""

    def kill(self) -> None:
        """End it at once."""

    def __enter__(self) -> Self:
        """The child."""

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the pipes and wait for its end."""


def start_child(module: str, arguments: Sequence[str], environment: Mapping[str, str]) -> Child:
    """Start `python -m module <this process> *arguments`; raises OSError."""
    return subprocess.Popen(
        [*_PYTHON, module, str(os.getpid()), *arguments],
        bufsize=0,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd="/",
        env=environment,
        start_new_session=True,
    )


class ForkedChild:
    """A child of the fork server's; see `Child`."""

    def __init__(
        self,
        pid: int,
        pid_fd: int,
        *,
        stdin_fd: int,
        stdout_fd: int,
        status_fd: int,
        on_crash: Callable[[], None],
    ) -> None:
        self.pid = pid
        self._on_crash = on_crash
        self.returncode: int | None = None
        self.stdin: IO[bytes] | None = os.fdopen(stdin_fd, "wb", buffering=0)
        self.stdout: IO[bytes] | None = os.fdopen(stdout_fd, "rb", buffering=0)
        self._pid_fd, self._status_fd = pid_fd, status_fd

    def poll(self) -> int | None:
        """See `Child`."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.wait(timeout=0)
        return None

    def wait(self, timeout: float | None = None) -> int:
        """See `Child`."""
        if self.returncode is None:
            if not is_ready(self._pid_fd, selectors.EVENT_READ, timeout):
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            # The server tells; where it has ended, the kernel has ended its children.
            told = b""
            if is_ready(self._status_fd, selectors.EVENT_READ, _STATUS_TIMEOUT_SECONDS):
                told = os.read(self._status_fd, 16)
            self.returncode = int(told or SERVER_HAS_ENDED)
            os.close(self._pid_fd)
            os.close(self._status_fd)
            if -self.returncode in _CRASHES:
                self._on_crash()
        return self.returncode

    def kill(self) -> None:
        """See `Child`."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pid_fd, signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for pipe in (self.stdout, self.stdin):
            if pipe is not None:
                pipe.close()
        self.wait()


@dataclass(frozen=True, eq=False)
class _Server:
    """The process that forks, and our end of the socket over which it is asked."""

    process: subprocess.Popen[bytes]
    control: socket.socket

    def end(self) -> None:
        """Have it end, and its children with it."""
        self.control.close()
        try:
            self.process.wait(_END_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


class ForkServer:
    """Forks children that run the `main` of one of `modules`; for any number of threads.

    The process behind it is started by the first asker, ends by itself when nobody has asked for
    long, and ends with this process, however that ends. Where there are no process file
    descriptors (not Linux, or a container that forbids them), children are started by themselves.
    """

    def __init__(self, *modules: str) -> None:
        self.modules = modules
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._retired: list[_Server] = []
        self._owner_pid = 0

    @property
    def pid(self) -> int | None:
        """The process that forks, if it has been started."""
        return None if self._server is None else self._server.process.pid

    def start(self, module: str, *arguments: str) -> Child:
        """A child that runs `module.main()`; its `sys.argv` are its parent's id and `arguments`.

        Raises OSError where none can be made; those that run go on.
        """
        if not _has_process_descriptors():
            return start_child(module, arguments, CHILD_ENVIRONMENT)
        with self._lock:
            if self._owner_pid != os.getpid():  # what a parent forked is the parent's
                self._server = None
                self._retired.clear()
            self._forget_retired()
            if self._server is not None:
                with contextlib.suppress(_ServerEndedError):
                    return self._ask(self._server, module, arguments)
            self._begin()
            assert self._server is not None
            try:
                return self._ask(self._server, module, arguments)
            except _ServerEndedError as error:
                raise OSError("The fork server does not start.") from error

    def close(self) -> None:
        """End the process behind it and its children; another `start` starts a new one."""
        with self._lock:
            if self._owner_pid == os.getpid():
                self._end()
                while self._retired:
                    self._retired.pop().end()

    def _retire(self, server: _Server) -> None:
        """Let a server end with the last of its children; the next asker gets another one.

        All that it forks have their memory at the same addresses. What a file learns from a crash
        shall be of no use to the next.
        """
        with self._lock:
            if server is not self._server:
                return
            with contextlib.suppress(OSError):  # it has ended
                server.control.send(b"null")
            self._retired.append(server)
            self._server = None

    def _forget_retired(self) -> None:
        for server in list(self._retired):
            if server.process.poll() is not None:
                server.control.close()
                self._retired.remove(server)

    def _begin(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            try:
                process = subprocess.Popen(
                    [
                        *(*_PYTHON, f"{__name__}_process"),
                        *(str(theirs.fileno()), str(_IDLE_SECONDS)),
                        *self.modules,
                    ],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    cwd="/",
                    env=CHILD_ENVIRONMENT,
                    pass_fds=[theirs.fileno()],
                )
            except BaseException:
                ours.close()
                raise
        ours.settimeout(_START_TIMEOUT_SECONDS)
        if self._owner_pid != os.getpid():
            atexit.register(self.close)
        self._server, self._owner_pid = _Server(process, ours), os.getpid()

    def _end(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            server.end()

    def _ask(self, server: _Server, module: str, arguments: Sequence[str]) -> ForkedChild:
        """A child from the server; raises _ServerEndedError, or OSError where it can make none."""
        with contextlib.ExitStack() as theirs, contextlib.ExitStack() as ours:
            stdin_fd, their_stdin_fd = reversed(_pipe(theirs, ours))
            stdout_fd, their_stdout_fd = _pipe(ours, theirs)
            status_fd, their_status_fd = _pipe(ours, theirs)
            request = json.dumps([module, *arguments]).encode()
            fds = [their_stdin_fd, their_stdout_fd, their_status_fd]
            answer, pid_fd = self._exchange(server.control, request, fds)
            ours.pop_all()
            return ForkedChild(
                int(answer),
                pid_fd,
                stdin_fd=stdin_fd,
                stdout_fd=stdout_fd,
                status_fd=status_fd,
                on_crash=functools.partial(self._retire, server),
            )

    def _exchange(
        self, control: socket.socket, request: bytes, fds: Sequence[int]
    ) -> tuple[bytes, int]:
        """What the server answers, and the descriptor of the child; raises as `_ask`."""
        try:
            socket.send_fds(control, [request], fds)
            answer, pid_fds, flags, _ = socket.recv_fds(control, _MAX_MESSAGE_BYTES, 1)
            if not answer:
                raise EOFError
        except (OSError, EOFError) as error:
            self._end()
            raise _ServerEndedError from error
        except BaseException:
            self._end()  # or its answer, come late, would be taken for that to the next asker
            raise
        if flags & socket.MSG_CTRUNC:  # the child ends, because its pipes are closed
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        if not pid_fds:
            raise OSError(answer.decode(errors="replace"))
        os.set_inheritable(pid_fds[0], False)
        return answer, pid_fds[0]


def _has_process_descriptors() -> bool:
    try:
        os.close(os.pidfd_open(os.getpid()))
    except (AttributeError, OSError):
        return False
    return True


def _pipe(reader: contextlib.ExitStack, writer: contextlib.ExitStack) -> tuple[int, int]:
    """The ends of a new pipe, to read from and to write to; each closes with its stack."""
    read_fd, write_fd = os.pipe()
    reader.callback(os.close, read_fd)
    writer.callback(os.close, write_fd)
    return read_fd, write_fd


def is_ready(pipe: IO[bytes] | int, event: int, timeout_seconds: float | None) -> bool:
    """Wait until there is something to read (`selectors.EVENT_READ`), or room to write."""
    # select() knows only the first 1024 files, and epoll takes one more.
    with selectors.PollSelector() as selector:
        selector.register(pipe, event)
        return bool(selector.select(timeout_seconds))
