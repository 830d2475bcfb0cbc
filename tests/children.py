"""Children for tests: one that does as it is told, and any that a file has taken over."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from datasets.media import fork_server
from inference import confined
from odproject.core.process import die_with_parent


def main() -> None:
    """Do what the first argument says; a child of a fork server runs this."""
    parent_pid, what, *rest = sys.argv[1:]
    die_with_parent(parent_pid=int(parent_pid))
    if what == "sleep":
        time.sleep(600)
    elif what == "exit":
        sys.exit(int(rest[0]))
    elif what == "raise":
        raise RuntimeError
    for line in sys.stdin.buffer:
        sys.stdout.buffer.write(f"{parent_pid} {rest} ".encode() + line)
        sys.stdout.buffer.flush()


def kill_once_it_is_read(pid: int, pipe: Path) -> int:
    """Kill a process when another one opens a pipe; returns its other end, to be closed."""
    pipe_fd = os.open(pipe, os.O_WRONLY)  # which waits for the reader
    os.kill(pid, signal.SIGKILL)
    return pipe_fd


def take_over(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str) -> None:
    """Have every confined child be this program, as if a file had taken it over."""
    fake = folder / "python"
    fake.write_text(f'#!/bin/sh\nexec {sys.executable} -c "{program}"\n')
    fake.chmod(0o755)
    monkeypatch.setattr(confined, "_fork_server", fork_server.ForkServer())  # which knows no module
    monkeypatch.setattr(fork_server, "_PYTHON", (str(fake),))
