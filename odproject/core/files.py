"""Stored files over HTTP: whole or in part, never as something that a browser runs."""

import contextlib
import errno
import logging
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from django.conf import settings
from django.core.files.storage import FileSystemStorage, default_storage
from django.http import FileResponse, HttpRequest, HttpResponse
from django.utils.cache import patch_vary_headers
from rest_framework.request import Request
from rest_framework.response import Response

from odproject.core.api import PROBLEM_CONTENT_TYPE, framework_problem
from odproject.core.environ import CLIENT_LEFT
from odproject.core.errors import DomainError, NotFoundError
from odproject.core.room import ROOM_CHECK_BYTES, has_room_for
from odproject.core.text import printable

logger = logging.getLogger(__name__)
SPOOL_IN_MEMORY_BYTES = 1024 * 1024
NAMES_AT_A_TIME = 1000
_RANGE = re.compile(r"bytes=(\d*)-(\d*)", re.ASCII)


class StorageUnavailableError(DomainError):
    """Nothing can be stored or looked at now, for a reason that is not the client's."""

    status = 503
    code = "storage_unavailable"
    title = "Not possible now"


class StorageFullError(DomainError):
    """The disk has no room."""

    status = 507
    code = "storage_full"
    title = "No room to store it"


class StoredFileMissingError(NotFoundError):
    """Somebody has removed from the storage what there is a row of."""

    code = "stored_file_missing"
    title = "The file is gone"


class NobodyWaitsError(DomainError):
    """The client has gone away; this is told to the log only."""

    status = 499
    code = "nobody_waits"
    title = "Nobody waits for the answer"


def open_stored(stored_name: str) -> BinaryIO:
    """A stored file to read; raises StoredFileMissingError (404)."""
    try:
        content: BinaryIO = default_storage.open(stored_name)  # type: ignore[assignment]
    except FileNotFoundError as error:
        logger.error("%s is not in the storage any more", stored_name)
        raise StoredFileMissingError("The file is no longer in the storage.") from error
    return content


@contextlib.contextmanager
def storing(what: str) -> Iterator[None]:
    """Tell that something cannot be dealt with for want of a disk or a process; `what` names it.

    Raises StorageFullError (507) and StorageUnavailableError (503) for an OSError of the block.
    """
    try:
        yield
    except OSError as error:
        logger.exception("No place for %s", what)
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            raise StorageFullError(f"The service has no room for {what} now.") from error
        raise StorageUnavailableError(
            f"The service cannot handle {what} now; try again."
        ) from error


def spooled_response(
    request: Request | HttpRequest,
    pieces: Iterator[bytes],
    *,
    content_type: str,
    file_name: str = "",
) -> FileResponse:
    """What an iterator makes, through a temporary file, in constant memory.

    The file is sent at the reader's pace without holding the thread that made it, so that slow
    readers do not keep others from an answer. Where the client goes away the iterator is closed
    and nothing is left. Raises StorageFullError (507), also before it takes the reserve of the
    disk, and StorageUnavailableError (503).
    """
    client_left = request.META.get(CLIENT_LEFT)  # not where tests ask Django itself
    written_bytes, check_at_bytes = 0, ROOM_CHECK_BYTES
    # The response closes it.
    spooled = tempfile.SpooledTemporaryFile(max_size=SPOOL_IN_MEMORY_BYTES)  # noqa: SIM115
    try:
        with contextlib.closing(pieces):  # type: ignore[type-var]
            for piece in pieces:
                if client_left is not None and client_left.is_set():
                    raise NobodyWaitsError
                written_bytes += len(piece)
                with storing("so large an answer"):
                    if written_bytes >= check_at_bytes:
                        check_at_bytes = written_bytes + ROOM_CHECK_BYTES
                        keep_reserve(ROOM_CHECK_BYTES)
                    spooled.write(piece)
        with storing("so large an answer"):
            length_bytes = spooled.tell()
            spooled.seek(0)
    except BaseException:
        spooled.close()
        raise
    response = FileResponse(
        spooled, content_type=content_type, as_attachment=bool(file_name), filename=file_name
    )
    response["Content-Length"] = str(length_bytes)
    return response


def keep_reserve(length_bytes: int, *, folder: Path | None = None) -> None:
    """Raise OSError (ENOSPC) before so many bytes more take the reserve of a disk.

    The disk is that of `folder`, or of temporary files.
    """
    if not has_room_for(length_bytes, min_free_bytes=settings.MIN_FREE_BYTES, folder=folder):
        raise OSError(errno.ENOSPC, "What is left on the disk is its reserve")


def keep_reserve_of_storage(length_bytes: int) -> None:
    """`keep_reserve` for what is to be stored; a storage that is no disk of ours has none."""
    if isinstance(default_storage, FileSystemStorage):
        keep_reserve(length_bytes, folder=Path(default_storage.location))


class Slice:
    """The part of a file from its current position on, so many bytes long."""

    def __init__(self, file: Any, length_bytes: int) -> None:
        self._file = file
        self._left_bytes = length_bytes

    def read(self, size: int = -1) -> bytes:
        """At most `size` bytes of what is left."""
        wanted = self._left_bytes if size < 0 else min(size, self._left_bytes)
        chunk: bytes = self._file.read(wanted)
        self._left_bytes -= len(chunk)
        return chunk

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def requested_range(header: str, size_bytes: int) -> tuple[int, int] | None:
    """First and last byte that a Range header asks for (RFC 9110, 14.1.2).

    None when the whole file is to be sent: no header, another unit, several ranges or nonsense.
    Raises ValueError when the range lies outside the file.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if not first:
        if int(last) == 0 or size_bytes == 0:
            raise ValueError("An empty range.")
        return max(0, size_bytes - int(last)), size_bytes - 1
    begin, end = int(first), int(last) if last else size_bytes - 1
    if begin >= size_bytes:
        raise ValueError("The range begins behind the end.")
    return (begin, min(end, size_bytes - 1)) if end >= begin else None


def stored_file_response(
    request: Request, *, stored_name: str, file_name: str, content_type: str
) -> FileResponse | Response:
    """A file from storage, or the part that a Range header asks for (206, 416).

    It is an attachment of a type that we chose, in a sandbox: nothing in it runs in our pages.
    Raises StoredFileMissingError (404).
    """
    content: BinaryIO | Slice = open_stored(stored_name)
    size_bytes = default_storage.size(stored_name)
    try:
        wanted = requested_range(request.headers.get("Range", ""), size_bytes)
    except ValueError:
        content.close()
        return Response(
            framework_problem(416, f"The file has {size_bytes} bytes."),
            status=416,
            headers={"Content-Range": f"bytes */{size_bytes}"},
            content_type=PROBLEM_CONTENT_TYPE,
        )
    length_bytes = size_bytes
    if wanted is not None:
        begin, end = wanted
        length_bytes = end - begin + 1
        content.seek(begin)  # type: ignore[union-attr]
        content = Slice(content, length_bytes)
    response = FileResponse(
        content,
        status=206 if wanted else 200,
        as_attachment=True,
        filename=printable(file_name),  # it is a stranger's: Django lets a last newline through
        content_type=content_type,
    )
    response["Content-Length"] = str(length_bytes)
    response["Accept-Ranges"] = "bytes"
    if wanted is not None:
        response["Content-Range"] = f"bytes {wanted[0]}-{wanted[1]}/{size_bytes}"
    _keep_to_its_asker(response)
    return response


def drawn_picture_response(picture_jpeg: bytes) -> HttpResponse:
    """A JPEG that we have drawn, for its asker only."""
    response = HttpResponse(picture_jpeg, content_type="image/jpeg")
    _keep_to_its_asker(response)
    return response


def _keep_to_its_asker(response: HttpResponse | FileResponse) -> None:
    """Have a browser run nothing of it, and give what it keeps to no other token, or none.

    One browser serves several people, and what it keeps it gives without asking us.
    """
    response["Content-Security-Policy"] = "sandbox; default-src 'none'"
    response["X-Content-Type-Options"] = "nosniff"
    response["Cache-Control"] = "private, max-age=3600"
    patch_vary_headers(response, ["Authorization"])


@contextlib.contextmanager
def local_copy(stored_name: str) -> Iterator[Path]:
    """A stored file itself where storage is a folder, else a temporary copy."""
    try:
        path = Path(default_storage.path(stored_name))
    except NotImplementedError:
        path = None
    if path is not None:
        yield path
        return
    with tempfile.NamedTemporaryFile(prefix="od-media-") as target:
        with default_storage.open(stored_name) as source:
            shutil.copyfileobj(source, target)
        target.flush()
        yield Path(target.name)


def remove_orphans(
    *, folder: str, older_than: datetime, known: Callable[[list[str]], set[str]]
) -> int:
    """Remove files of a storage folder that no row knows; returns how many.

    Files younger than `older_than` may belong to a transaction that has not committed yet.
    `known` answers which of some names have a row.
    """
    try:
        names = [f"{folder}/{name}" for name in default_storage.listdir(folder)[1]]
    except FileNotFoundError:
        return 0
    removed = 0
    for start in range(0, len(names), NAMES_AT_A_TIME):
        some = names[start : start + NAMES_AT_A_TIME]
        for name in set(some) - known(some):
            with contextlib.suppress(OSError):  # somebody else removed it meanwhile
                if default_storage.get_modified_time(name) < older_than:
                    default_storage.delete(name)
                    removed += 1
    return removed
