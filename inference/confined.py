"""One task for a child process that can hurt nobody, and its answers.

For what opens a stranger's file outside the inspector of uploads: weights, which are code in
disguise, and media of which a picture is drawn in the web process's stead.
"""

import base64
import binascii
import contextlib
import json
import logging
import os
import selectors
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from datasets.media.fork_server import (
    CHILD_ENVIRONMENT,
    SERVER_HAS_ENDED,
    Child,
    ForkServer,
    is_ready,
    start_child,
)

logger = logging.getLogger(__name__)

_MAX_ANSWER_BYTES = 8 * 1024**2  # a picture may be in it
# A graphics card's address space is larger than any limit.
_ENVIRONMENT = {**CHILD_ENVIRONMENT, "CUDA_VISIBLE_DEVICES": ""}
# What loads weights takes seconds and a gigabyte to load, and is seldom wanted.
_fork_server = ForkServer("inference.crops_child", "inference.picture_child")


@dataclass(frozen=True)
class ChildLimits:
    """What the child may use; `seconds` of real time include some for loading libraries.

    Of what is in the folder `hidden` it can read nothing but the files of its task.
    """

    memory_bytes: int
    seconds: float
    cpu_seconds: int
    hidden: Path | None = None


class ConfinedChildError(Exception):
    """The task failed by the file's fault.

    `code` is the child's own, or `too_slow` or `crashed`; `detail` is a sentence.
    """

    def __init__(self, code: str, detail: str) -> None:
        self.code = code
        self.detail = detail
        super().__init__(detail)


class ChildUnavailableError(OSError):
    """No child could be started, or it was lost: the service's fault and not the file's."""


def answer_of_child(
    module: str, task: dict[str, Any], path: Path, limits: ChildLimits
) -> dict[str, Any]:
    """Have the `main` of a module, which calls `confined_child.serve`, do a task with a file.

    Raises ConfinedChildError and ChildUnavailableError.
    """
    deadline = time.monotonic() + limits.seconds
    with _child_at_work(module, task, [path], limits, deadline) as child:
        line = _bounded_output(child, deadline)
    return _parsed(line, child.returncode)


def answers_of_child(
    module: str, task: dict[str, Any], paths: Sequence[Path], limits: ChildLimits
) -> Iterator[dict[str, Any]]:
    """As `answer_of_child`, of a module that calls `serve_each`: its answers as it gives them.

    They end when the child has ended, of whatever. Closing the iterator ends the child.
    """
    deadline = time.monotonic() + limits.seconds
    with _child_at_work(module, task, paths, limits, deadline) as child:
        received = b""
        while data := _some_output(child, deadline):
            received += data
            while b"\n" in received:
                line, _, received = received.partition(b"\n")
                yield _parsed(line, child.returncode)
            _check_size(received)


@contextlib.contextmanager
def _child_at_work(
    module: str,
    task: dict[str, Any],
    paths: Sequence[Path],
    limits: ChildLimits,
    deadline: float,
) -> Iterator[Child]:
    """A child that was given its task; it does not outlive the block."""
    with tempfile.TemporaryDirectory(prefix="od-child-") as folder:
        full_task = {
            **task,
            "paths": [str(path.absolute()) for path in paths],
            "folder": folder,
            "memory_bytes": limits.memory_bytes,
            "cpu_seconds": limits.cpu_seconds,
            "hidden": None if limits.hidden is None else str(limits.hidden),
        }
        try:
            if module in _fork_server.modules:
                child = _fork_server.start(module)
            else:
                child = start_child(module, [], {**_ENVIRONMENT, "TMPDIR": folder})
        except OSError as error:
            raise ChildUnavailableError(f"No child could be started: {error}") from error
        with child:
            try:
                _hand_over(child, full_task, deadline)
                yield child
            finally:
                child.kill()
        if child.returncode == SERVER_HAS_ENDED:
            raise ChildUnavailableError("The child was lost with its fork server.")


def picture_of(answer: dict[str, Any]) -> bytes:
    """The JPEG in an answer; raises ConfinedChildError when there is none."""
    try:
        return base64.b64decode(answer["picture"], validate=True)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise crashed("it sent no picture") from error


def crashed(reason: str) -> ConfinedChildError:
    """What is said of a child that did not do its task; the reason goes to the log."""
    logger.warning("A confined child failed: %s.", reason)
    return ConfinedChildError("crashed", "Reading the file crashed.")


def _hand_over(child: Child, task: dict[str, Any], deadline: float) -> None:
    """Give a child its task; raises ConfinedChildError for too late."""
    assert child.stdin is not None
    os.set_blocking(child.stdin.fileno(), False)
    try:
        left = memoryview(json.dumps(task).encode())
        while left:
            _wait_for(child.stdin, selectors.EVENT_WRITE, deadline)
            left = left[child.stdin.write(left) or 0 :]
        child.stdin.close()
    except BrokenPipeError:
        pass  # it has ended, and its output tells no answer


def _bounded_output(child: Child, deadline: float) -> bytes:
    """All that the child says; raises ConfinedChildError for too late or too much."""
    received = b""
    while data := _some_output(child, deadline):
        received += data
        _check_size(received)
    return received


def _some_output(child: Child, deadline: float) -> bytes:
    """What the child says next, nothing at its end; raises ConfinedChildError for too late."""
    assert child.stdout is not None
    _wait_for(child.stdout, selectors.EVENT_READ, deadline)
    return os.read(child.stdout.fileno(), _MAX_ANSWER_BYTES)


def _wait_for(pipe: IO[bytes], event: int, deadline: float) -> None:
    left_seconds = deadline - time.monotonic()
    if left_seconds <= 0 or not is_ready(pipe, event, left_seconds):
        raise ConfinedChildError("too_slow", "Reading the file takes longer than allowed.")


def _check_size(received: bytes) -> None:
    if len(received) > _MAX_ANSWER_BYTES:
        raise crashed("it said too much")


def _parsed(line: bytes, status: int | None) -> dict[str, Any]:
    try:
        answer = json.loads(line)
        if not isinstance(answer, dict):
            raise ValueError(answer)
        code, detail = answer.get("error") or ("", "")
    except (ValueError, TypeError, RecursionError) as error:
        raise crashed(f"it ended with status {status}") from error
    if code:
        if "cause" in answer:
            logger.warning("A file could not be read: %s", answer["cause"])
        raise ConfinedChildError(str(code), str(detail))
    return answer
