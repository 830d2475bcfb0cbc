"""The bytes of uploads that are not whole yet: a file for each, which one request at a time holds.

They lie on a disk of the web processes, under the number of their upload. What counts is the row:
bytes that were written and not noted in it, because something died between, are written again.
"""

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from django.conf import settings

from odproject.core.errors import DomainError

_FOR_ITS_USER_ONLY = 0o600
_LOOK_SECONDS = 0.02


class UploadBusyError(DomainError):
    """Another request is at work on the upload: it adds bytes, or the file is being inspected."""

    status = 423
    code = "upload_busy"
    title = "Another request is at work on the upload"
    retry_after_seconds = 1


def root() -> Path:
    """Where they lie."""
    return Path(settings.PARTIAL_FILES_ROOT)


def path_of(number: int) -> Path:
    """The file of an upload."""
    return root() / str(number)


def size_bytes(number: int) -> int:
    """How long the file is; 0 if there is none."""
    try:
        return path_of(number).stat().st_size
    except FileNotFoundError:
        return 0


@contextlib.contextmanager
def held(number: int, *, patience_seconds: float = 0.0) -> Iterator[BinaryIO]:
    """The file of an upload, made if there is none, for nobody else until the block ends.

    Where somebody holds it, it is asked for again for so long as `patience_seconds`.

    The lock is the kernel's, on the file itself: all processes on this disk know it, and it ends
    with the process that holds it. The row is to be read after it: whoever held the file before
    may have ended the upload. Raises UploadBusyError (423) and OSError.
    """
    root().mkdir(parents=True, exist_ok=True)
    handle = os.open(path_of(number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _FOR_ITS_USER_ONLY)
    with os.fdopen(handle, "r+b") as file:
        _lock(file, until=time.monotonic() + patience_seconds)
        if not os.fstat(handle).st_nlink:  # who held it has removed it since it was opened
            raise UploadBusyError("Another request was at work on this upload.")
        try:
            yield file
        finally:
            if not os.fstat(handle).st_size:
                remove(number)


def _lock(file: BinaryIO, *, until: float) -> None:
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= until:
                raise UploadBusyError("Another request is at work on this upload.") from error
            time.sleep(_LOOK_SECONDS)
        else:
            return


def remove(number: int) -> None:
    """Remove the file, if there is one."""
    path_of(number).unlink(missing_ok=True)


def numbers() -> list[int]:
    """The uploads of which there is a file."""
    try:
        return [int(path.name) for path in root().iterdir() if path.name.isdecimal()]
    except FileNotFoundError:
        return []
