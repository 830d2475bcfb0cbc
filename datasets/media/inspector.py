"""Inspects files in a child process, so that a hostile one can hurt nothing but that child."""

import json
import logging
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from datasets.media.errors import MediaError, refused
from datasets.media.facts import MediaFacts
from datasets.media.fork_server import SERVER_HAS_ENDED, Child, ForkServer, is_ready
from datasets.media.limits import DEFAULT_LIMITS, MediaLimits

logger = logging.getLogger(__name__)

_START_TIMEOUT_SECONDS = 60.0
_MAX_ANSWER_BYTES = 256 * 1024  # a thumbnail is in it
_CHILD = "datasets.media.inspector_child"
_fork_server = ForkServer(_CHILD)


class InspectorUnavailableError(RuntimeError):
    """No child could be started; this is the service's fault and not the file's."""


class _ChildGoneError(Exception):
    """The child ended or talks nonsense."""


class _DeadlineError(Exception):
    """The child did not answer in time."""


class Inspector:
    """Inspects many files one after another in one child, which is replaced when it dies.

    A context manager for use by one thread at a time. The child starts with the first file, lives
    until the block ends, and dies at once with this process. Of what is in the folder `hidden` it
    can read nothing but temporary files and the one that is `shown`.
    """

    def __init__(
        self,
        *,
        limits: MediaLimits = DEFAULT_LIMITS,
        hidden: Path | None = None,
        shown: Path | None = None,
    ) -> None:
        self._limits = limits
        # As the child takes them: what is hidden, then what of it is not.
        folders = [] if hidden is None else [hidden, Path(tempfile.gettempdir()), shown]
        self._folders = [str(one) for one in folders if one is not None]
        self._child: Child | None = None
        self._received = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc_value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    @property
    def child_pid(self) -> int | None:
        """The process id of the child, if one has been started and not been given up."""
        return None if self._child is None else self._child.pid

    def inspect(
        self, path: Path, *, on_progress: Callable[[int], None] | None = None
    ) -> MediaFacts:
        """Decode the file wholly and tell what it is.

        `on_progress` gets the number of frames of a video so far; what it raises ends the
        inspection. Raises MediaError: everything that `probe_image` and `count_frames` raise, 422
        `inspection_timeout` beyond the limit of time, 422 `decoder_crashed` when the child dies or
        runs out of memory. Raises OSError if the file cannot be read, and
        InspectorUnavailableError.
        """
        child = self._running_child()
        answered = False
        try:
            self._send(child, path)
            answer = self._final_answer(child, on_progress)
            # A child that ran out of memory is ending; it must not meet the next file.
            answered = "out_of_memory" not in answer
            return self._outcome(answer, path)
        except _ChildGoneError:
            raise self._crashed(child) from None
        finally:
            if not answered:
                # The child is gone, or in the middle of a file that nobody waits for any more.
                self.close()

    def close(self) -> None:
        """End the child; another `inspect` would start a new one."""
        child, self._child, self._received = self._child, None, b""
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()

    # -- the child

    def _running_child(self) -> Child:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self.close()
        try:
            limits = json.dumps(asdict(self._limits))
            child = self._child = _fork_server.start(_CHILD, limits, *self._folders)
        except OSError as error:
            raise InspectorUnavailableError(f"No child could be started: {error}") from error
        try:
            self._receive(child, time.monotonic() + _START_TIMEOUT_SECONDS)
        except (_ChildGoneError, _DeadlineError) as error:
            self.close()
            raise InspectorUnavailableError(
                f"The inspector's child did not start (exit status {child.returncode})."
            ) from error
        except BaseException:
            self.close()
            raise
        return child

    def _send(self, child: Child, path: Path) -> None:
        assert child.stdin is not None
        try:
            child.stdin.write(json.dumps({"path": str(path.absolute())}).encode() + b"\n")
        except BrokenPipeError as error:
            raise _ChildGoneError from error

    def _final_answer(
        self, child: Child, on_progress: Callable[[int], None] | None
    ) -> dict[str, Any]:
        """Wait for what is not progress. Raises MediaError 422 when the time is over."""
        deadline = time.monotonic() + self._limits.per_file_timeout_seconds
        while True:
            try:
                answer = self._receive(child, deadline)
            except _DeadlineError:
                raise refused(
                    "inspection_timeout",
                    "The file was not decoded within "
                    f"{self._limits.per_file_timeout_seconds:g} seconds, the limit.",
                ) from None
            if "progress" not in answer:
                return answer
            if on_progress is not None:
                on_progress(int(answer["progress"]))

    def _receive(self, child: Child, deadline: float) -> dict[str, Any]:
        """The next answer. Raises _DeadlineError at the deadline (of the monotonic clock)."""
        assert child.stdout is not None
        while b"\n" not in self._received:
            left_seconds = deadline - time.monotonic()
            if left_seconds <= 0 or not is_ready(child.stdout, selectors.EVENT_READ, left_seconds):
                raise _DeadlineError
            data = os.read(child.stdout.fileno(), _MAX_ANSWER_BYTES)
            self._received += data
            if not data or len(self._received) > _MAX_ANSWER_BYTES:
                raise _ChildGoneError
        line, _, self._received = self._received.partition(b"\n")
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise _ChildGoneError from error
        if not isinstance(answer, dict):
            raise _ChildGoneError
        return answer

    def _outcome(self, answer: dict[str, Any], path: Path) -> MediaFacts:
        try:
            if "facts" in answer:
                return MediaFacts.from_dict(answer["facts"])
            if "os_error" in answer:
                number, text = answer["os_error"]
                raise OSError(number, text, str(path))
            code, detail, status = answer["error"]
        except (KeyError, TypeError, ValueError) as error:
            raise _ChildGoneError from error
        if "cause" in answer:
            logger.warning("A decoder failed on %s: %s", path.name, answer["cause"])
        raise MediaError(str(code), str(detail), int(status))

    def _crashed(self, child: Child) -> MediaError:
        """Clear the child away and say how it ended; raises InspectorUnavailableError."""
        try:
            status: int | None = child.wait(timeout=1.0)
        except subprocess.TimeoutExpired:
            status = None  # It still runs and talked nonsense.
        self.close()
        if status == SERVER_HAS_ENDED:
            raise InspectorUnavailableError("The inspector's child was lost with its fork server.")
        logger.warning("The inspector's child ended with status %s.", status)
        if status == -signal.SIGXCPU:
            return refused(
                "inspection_timeout",
                "The file was not decoded within "
                f"{self._limits.child_cpu_seconds} seconds of processor time, the limit.",
            )
        return refused("decoder_crashed", "The decoder crashed on the file.")


__all__ = ["Inspector", "InspectorUnavailableError", "MediaError", "MediaFacts"]
