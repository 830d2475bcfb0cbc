"""Keeps a set of child processes running on one machine and leaves nothing behind.

One thread and one loop, which sleeps until a signal arrives or something is due. Children start
stage by stage, each stage when the one before it is ready, and stop in the opposite order. A child
that dies is started again after a pause that doubles from 0.5 s to 10 s. Every child has a session
of its own and asks the kernel to be killed when the supervisor dies, so that even SIGKILL leaves
no orphan.
"""

import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from odproject.core.process import SAME_IDENTITY, Identity, launcher_argv
from odproject.engines import EngineError

FIRST_BACKOFF_SECONDS = 0.5
MAX_BACKOFF_SECONDS = 10.0
HEALTHY_AFTER_SECONDS = 30.0
READY_TIMEOUT_SECONDS = 180.0
READY_POLL_SECONDS = 0.05
MAX_START_FAILURES = 6
LOG_CHECK_SECONDS = 60.0
MAX_LOG_BYTES = 10 * 1024 * 1024
LISTEN_BACKLOG = 1024

_STOP_SIGNALS = frozenset({signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
_WATCHED_SIGNALS = _STOP_SIGNALS | {signal.SIGCHLD}


class SupervisorError(Exception):
    """The service cannot be started; the text is for the person at the terminal."""


@dataclass(frozen=True, kw_only=True)
class ChildSpec:
    """How one child is run.

    `stage`: stages start in ascending and stop in descending order. `once`: a step that has to
    end with status 0 before the next stage starts, rather than a process to keep alive.
    `to_terminal`: its output goes to the supervisor's own, not to its log file. `is_ready` is
    asked until it says so before the next stage starts; `before_start` runs before every start.
    `may_take_long`: whoever lives is waited for as long as it takes, as a step always is: a
    database recovers, or is migrated, at its own pace, and would begin anew if it were ended.
    """

    name: str
    argv: Sequence[str]
    stage: int = 0
    env: Mapping[str, str] | None = None
    cwd: Path | None = None
    identity: Identity = SAME_IDENTITY
    stop_signal: signal.Signals = signal.SIGTERM
    die_signal: signal.Signals = signal.SIGKILL
    grace_seconds: float = 10.0
    once: bool = False
    may_take_long: bool = False
    to_terminal: bool = False
    pass_fds: tuple[int, ...] = ()
    before_start: Callable[[], None] | None = None
    is_ready: Callable[[], bool] | None = None


@dataclass
class _Child:
    spec: ChildSpec
    process: "subprocess.Popen[bytes] | None" = None
    started_at: float = 0.0
    start_due_at: float | None = None
    backoff_seconds: float = FIRST_BACKOFF_SECONDS
    failures: int = 0
    ready: bool = False
    is_late: bool = False
    kill_at: float | None = None


@dataclass
class Supervisor:
    """Runs `specs` until it is told to stop.

    `state` is written, with the supervisor's and the children's process ids, to
    `<data_dir>/up.json` so that tools and tests find them. `report` prints one line.
    """

    specs: Sequence[ChildSpec]
    data_dir: Path
    report: Callable[[str], None]
    state: Mapping[str, Any] = field(default_factory=dict)
    on_ready: Callable[[], None] | None = None

    def __post_init__(self) -> None:
        self._children = [_Child(spec) for spec in self.specs]
        self._stop_requests = 0
        self._next_log_check_at = 0.0
        self.log_dir = self.data_dir / "logs"

    def run(self) -> int:
        """Run until SIGINT, SIGTERM or SIGHUP; return the exit status.

        Returns 0 after an orderly stop, 1 when a step failed or a child could not be started at
        all, which has then been reported.
        """
        self.log_dir.mkdir(parents=True, exist_ok=True)
        # Blocked signals wait until the loop takes them, so that none is lost in between.
        previous_mask = signal.pthread_sigmask(signal.SIG_BLOCK, _WATCHED_SIGNALS)
        try:
            return self._run_until_stopped()
        finally:
            self._stop_all()
            self._state_file.unlink(missing_ok=True)
            signal.pthread_sigmask(signal.SIG_SETMASK, previous_mask)

    def _run_until_stopped(self) -> int:
        try:
            for stage in sorted({spec.stage for spec in self.specs}):
                if not self._start_stage(stage):
                    return 0
            if self.on_ready is not None:
                with contextlib.suppress(OSError):
                    self.on_ready()
            while not self._stop_requests:
                self._pause(self._seconds_until_due())
                self._start_due()
                self._bound_logs()
        except (SupervisorError, EngineError) as error:
            self._report(str(error))
            return 1
        return 0

    # -- starting

    def _start_stage(self, stage: int) -> bool:
        """Start a stage and wait until it is ready; False when told to stop meanwhile."""
        children = [child for child in self._children if child.spec.stage == stage]
        for child in children:
            self._start(child)
        deadline = time.monotonic() + READY_TIMEOUT_SECONDS
        while not self._stop_requests:
            self._start_due()
            for child in children:
                self._check_ready(child)
            if all(child.ready for child in children):
                return True
            for child in children:
                if child.failures >= MAX_START_FAILURES:
                    raise SupervisorError(self._failure_text(child))
                if not child.ready and time.monotonic() > deadline:
                    self._note_lateness(child)
            self._pause(READY_POLL_SECONDS)
        return False

    def _note_lateness(self, child: _Child) -> None:
        """Say once that a child takes long; raises SupervisorError where it must not."""
        if not (child.spec.once or child.spec.may_take_long):
            raise SupervisorError(self._failure_text(child))
        if not child.is_late:
            child.is_late = True
            self._report(f"{child.spec.name} is still at work (log: {self._log_path(child.spec)})")

    def _start(self, child: _Child) -> None:
        spec = child.spec
        if spec.before_start is not None:
            spec.before_start()
        log_path = self._log_path(spec)
        _bound_log(log_path)
        with contextlib.ExitStack() as stack:
            output = None
            if not spec.to_terminal:
                # A step's log tells of its last run only.
                mode = "wb" if spec.once else "ab"
                output = stack.enter_context(log_path.open(mode))
            child.process = subprocess.Popen(
                launcher_argv(spec.argv, die_signal=spec.die_signal, identity=spec.identity),
                env=None if spec.env is None else dict(spec.env),
                cwd=spec.cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=None if output is None else subprocess.STDOUT,
                pass_fds=spec.pass_fds,
                start_new_session=True,
            )
        child.started_at = time.monotonic()
        child.start_due_at = None
        child.ready = False
        self._write_state()

    def _check_ready(self, child: _Child) -> None:
        if child.ready or child.process is None or child.spec.once:
            return
        child.ready = child.spec.is_ready is None or child.spec.is_ready()

    def _start_due(self) -> None:
        for child in self._children:
            if child.start_due_at is not None and child.start_due_at <= time.monotonic():
                self._start_again(child)

    def _start_again(self, child: _Child) -> None:
        """Start a child that died; a disk that is full now may have room a little later."""
        try:
            self._start(child)
        except OSError as error:
            child.start_due_at = time.monotonic() + MAX_BACKOFF_SECONDS
            self._report(f"{child.spec.name} cannot be started ({error}); trying again")

    def _failure_text(self, child: _Child) -> str:
        path = self._log_path(child.spec)
        lines = path.read_text(errors="replace").splitlines()[-20:] if path.exists() else []
        told = "\n".join(f"    {line}" for line in lines)
        verb = "failed" if child.spec.once else "does not start"
        return f"{child.spec.name} {verb}. The end of {path}:\n{told}"

    # -- watching

    def _pause(self, seconds: float) -> None:
        """Sleep until a signal arrives, at most `seconds`, and note what happened."""
        received = signal.sigtimedwait(_WATCHED_SIGNALS, max(seconds, 0.0))
        if received is not None and received.si_signo in _STOP_SIGNALS:
            self._stop_requests += 1
        for child in self._children:
            if child.process is not None and _has_ended(child.process.pid):
                self._note_end(child, child.process)
        if os.getpid() == 1:
            _reap_strangers({child.process.pid for child in self._children if child.process})

    def _note_end(self, child: _Child, process: "subprocess.Popen[bytes]") -> None:
        # Until the child is waited for, its process group cannot be anybody else's.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        status = process.wait()
        child.process = None
        child.kill_at = None
        if self._stop_requests:
            return
        if child.spec.once:
            if status != 0:
                raise SupervisorError(self._failure_text(child))
            child.ready = True
            return
        if time.monotonic() - child.started_at >= HEALTHY_AFTER_SECONDS:
            child.backoff_seconds = FIRST_BACKOFF_SECONDS
            child.failures = 0
        pause_seconds = child.backoff_seconds
        child.backoff_seconds = min(2 * child.backoff_seconds, MAX_BACKOFF_SECONDS)
        child.failures += 1
        child.start_due_at = time.monotonic() + pause_seconds
        self._write_state()
        self._report(
            f"{child.spec.name} {_ending(status)}; starting it again in {pause_seconds:g} s "
            f"(log: {self._log_path(child.spec)})"
        )

    def _seconds_until_due(self) -> float:
        now = time.monotonic()
        due = [child.start_due_at for child in self._children if child.start_due_at is not None]
        return min([at - now for at in due] + [LOG_CHECK_SECONDS])

    # -- stopping

    def _stop_all(self) -> None:
        """Stop what runs, the last stage first; each further stop signal hurries one stage."""
        self._stop_requests = max(self._stop_requests, 1)
        for stage in sorted({spec.stage for spec in self.specs}, reverse=True):
            running = [child for child in self._children if child.spec.stage == stage]
            for child in running:
                if child.process is not None:
                    child.kill_at = time.monotonic() + child.spec.grace_seconds
                    _signal(child.process, child.spec.stop_signal)
            requests_seen = self._stop_requests
            while any(child.process for child in running):
                self._pause(READY_POLL_SECONDS)
                hurried = self._stop_requests > requests_seen
                self._kill_overdue(running, hurried=hurried)

    def _kill_overdue(self, children: Sequence[_Child], *, hurried: bool) -> None:
        for child in children:
            if child.process is None or child.kill_at is None:
                continue
            if hurried or time.monotonic() >= child.kill_at:
                self._report(f"{child.spec.name} did not stop in time and is killed")
                child.kill_at = None
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(child.process.pid, signal.SIGKILL)

    # -- files

    def _report(self, line: str) -> None:
        with contextlib.suppress(OSError):  # standard output may lie on the disk that is full
            self.report(line)

    @property
    def _state_file(self) -> Path:
        return self.data_dir / "up.json"

    def _log_path(self, spec: ChildSpec) -> Path:
        return self.log_dir / f"{spec.name}.log"

    def _write_state(self) -> None:
        children = {
            child.spec.name: child.process.pid
            for child in self._children
            if child.process is not None and not child.spec.once
        }
        content = {"pid": os.getpid(), **self.state, "children": children}
        try:
            write_private(self._state_file, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            self._report(f"{self._state_file} cannot be written ({error})")

    def _bound_logs(self) -> None:
        if time.monotonic() >= self._next_log_check_at:
            self._next_log_check_at = time.monotonic() + LOG_CHECK_SECONDS
            for child in self._children:
                _bound_log(self._log_path(child.spec))


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _reap_strangers(known_pids: set[int]) -> None:
    """As process 1 of a container, wait for orphans that the kernel handed over."""
    with contextlib.suppress(ChildProcessError):
        while ended := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            if ended.si_pid in known_pids:
                return
            os.waitpid(ended.si_pid, 0)


def _signal(process: "subprocess.Popen[bytes]", signum: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signum)


def _ending(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    with contextlib.suppress(ValueError):
        return f"was ended by {signal.Signals(-status).name}"
    return f"was ended by signal {-status}"


def _bound_log(path: Path) -> None:
    """Keep a log below its limit: the full one becomes `<name>.1`, and the file starts anew.

    The file is emptied in place, because its writer keeps it open (for appending). Where there is
    no room for the copy, the full one is given up: a disk that is full fills logs, too.
    """
    with contextlib.suppress(OSError):
        if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
            kept = path.with_name(path.name + ".1")
            try:
                shutil.copyfile(path, kept)
            except OSError:
                kept.unlink(missing_ok=True)
            os.truncate(path, 0)


def write_private(path: Path, text: str) -> None:
    """Replace a file by one that only its owner can read, in one step."""
    handle, unfinished = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(unfinished).replace(path)
    except BaseException:
        Path(unfinished).unlink(missing_ok=True)
        raise


@contextlib.contextmanager
def folder_lock(data_dir: Path, *, timeout_seconds: float = 15.0) -> Iterator[None]:
    """Hold `<data_dir>/up.lock` for the block.

    A predecessor that is still dying is waited for. Raises SupervisorError when somebody else
    keeps the folder. The kernel releases the lock with the process, however it ends.
    """
    path = data_dir / "up.lock"
    with path.open("a+", encoding="ascii") as stream:
        deadline = time.monotonic() + timeout_seconds
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                stream.seek(0)
                owner = stream.read().strip()
                if time.monotonic() >= deadline:
                    raise SupervisorError(
                        f"Process {owner} already runs the service over {data_dir}; stop it "
                        "first, or set OD_DATA_DIR to another folder."
                    ) from None
            time.sleep(0.1)
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def bind_sockets(host: str, port: int) -> list[socket.socket]:
    """Return listening TCP sockets for `host` and `port`; port 0 means a free one.

    The empty host means this machine only: 127.0.0.1, and ::1 where there is IPv6. Raises
    SupervisorError with one sentence when the address cannot be had.
    """
    if host:
        return [_listen(host, port)]
    first = _listen("127.0.0.1", port)
    sockets = [first]
    try:
        sockets.append(_listen("::1", first.getsockname()[1]))
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            first.close()
            raise
    except SupervisorError:
        first.close()
        raise
    return sockets


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise SupervisorError(f"OD_HTTP_HOST={host} is no address of this machine.") from error
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # The IPv4 address has a socket of its own, except where one serves all addresses.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
        listener.bind(address)
        listener.listen(LISTEN_BACKLOG)
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise SupervisorError(
                f"Port {port} on {host} is in use; stop what uses it, or set OD_HTTP_PORT."
            ) from error
        if error.errno == errno.EACCES:
            raise SupervisorError(f"Port {port} is reserved for root; set OD_HTTP_PORT.") from error
        if host != "::1" and error.errno == errno.EADDRNOTAVAIL:
            raise SupervisorError(f"OD_HTTP_HOST={host} is no address of this machine.") from error
        raise
    return listener
