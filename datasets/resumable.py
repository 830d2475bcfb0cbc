"""Uploads that arrive piece by piece, and go on after whatever broke them off.

How many bytes there are is told by the row and the file together: bytes are on the disk before
the row counts them. The whole file then goes the way of every upload (`datasets.uploading`).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import transaction
from django.db.models import F, Q, Sum
from django.utils import timezone

from accounts.models import User
from accounts.services import lock_user
from datasets import partial_files, selectors
from datasets.models import ResumableUpload, Upload
from datasets.partial_files import UploadBusyError
from datasets.uploading import UnacceptableMediaError, refuse_above_quota, upload_content
from odproject.core.errors import ConflictError, DomainError, QuotaExceededError
from odproject.core.files import keep_reserve, storing

COPIED_BYTES = 1024 * 1024
# Who sends bytes to the wrong place, or asks too soon, holds the file for a moment only.
FINISHING_PATIENCE_SECONDS = 2.0
Read = Callable[[int], bytes]


class UploadTooLargeError(DomainError):
    """The file is larger than any may be, or more bytes came than its length."""

    status = 413
    code = "upload_too_large"
    title = "Too many bytes"


class UnfinishedUploadsQuotaError(QuotaExceededError):
    """The user has begun as many uploads as one user may have unfinished."""

    code = "unfinished_uploads_quota_exceeded"
    title = "Too many unfinished uploads"


class OffsetConflictError(ConflictError):
    """The bytes do not begin where those that are there end."""

    code = "upload_offset_conflict"
    title = "Not the offset of the upload"


class UploadAcceptedError(ConflictError):
    """There is nothing to give up: the file was accepted, and paid."""

    code = "upload_accepted"
    title = "The upload was accepted"


def create_resumable_upload(
    *, user: User, dataset_id: int, length_bytes: int, file_name: str, metadata: str
) -> ResumableUpload:
    """Promise room for a file of so many bytes.

    What is promised counts as stored, for the user's quota. The disk must have room beside its
    reserve for all that the user's uploads still miss. Others' promises do not count: they cost
    nothing, and a few of them would keep everybody out. The bytes meet the reserve as they come.
    Raises DatasetNotFoundError (404), DatasetBlockedError (403), UploadTooLargeError (413),
    UnfinishedUploadsQuotaError and StorageQuotaError (409), StorageFullError (507) and
    StorageUnavailableError (503).
    """
    if length_bytes > settings.MAX_UPLOAD_BYTES:
        raise UploadTooLargeError(f"A file has at most {settings.MAX_UPLOAD_BYTES} bytes.")
    with storing("this upload"):
        keep_reserve(_missing_bytes(user) + length_bytes, folder=partial_files.root())
    with transaction.atomic():
        lock_user(user=user)
        dataset = selectors.open_dataset(user=user, dataset_id=dataset_id, locked=True)
        quota = settings.MAX_UNFINISHED_UPLOADS_PER_USER
        if quota and selectors.unfinished_uploads(user=user).count() >= quota:
            detail = f"One user has at most {quota} unfinished uploads; give one up first."
            raise UnfinishedUploadsQuotaError(detail, quota=quota)
        refuse_above_quota(user=user, more_bytes=length_bytes)
        return ResumableUpload.objects.create(
            dataset=dataset,
            file_name=file_name,
            metadata=metadata,
            length_bytes=length_bytes,
            expires_at=_expiry(),
        )


def append_bytes(
    *,
    user: User,
    dataset_id: int,
    resumable_upload_id: int,
    offset_bytes: int,
    length_bytes: int,
    read: Read,
) -> ResumableUpload:
    """Add `length_bytes` bytes from `read`, which begin at `offset_bytes` of the file.

    Raises DatasetNotFoundError and ResumableUploadNotFoundError (404), DatasetBlockedError (403),
    OffsetConflictError (409), UploadTooLargeError (413), UploadBusyError (423), StorageFullError
    (507) and StorageUnavailableError (503); then none of the bytes counts.
    """
    selectors.open_dataset(user=user, dataset_id=dataset_id)
    with _held(user, dataset_id, resumable_upload_id) as (found, file):
        there_bytes = selectors.received_bytes(found)
        if offset_bytes == selectors.next_offset_bytes(found):
            there_bytes = offset_bytes  # the last byte of a whole file may come again
        _refuse_misplaced(found, there_bytes, offset_bytes, length_bytes)
        found.offset_bytes = there_bytes
        if not length_bytes:
            return found
        keep_reserve(length_bytes, folder=partial_files.root())
        file.truncate(there_bytes)
        file.seek(there_bytes)
        while piece := read(COPIED_BYTES):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())  # the row may outlive what the kernel has not written
        found.offset_bytes, found.expires_at = file.tell(), _expiry()
        _change(found, offset_bytes=found.offset_bytes, expires_at=found.expires_at)
    return found


def _refuse_misplaced(
    found: ResumableUpload, there_bytes: int, offset_bytes: int, more_bytes: int
) -> None:
    if offset_bytes != there_bytes:
        raise OffsetConflictError(
            f"{there_bytes} bytes have arrived, so the next ones cannot begin at {offset_bytes}.",
            members={"offset_bytes": there_bytes},
        )
    if there_bytes + more_bytes > found.length_bytes:
        raise UploadTooLargeError(
            f"The file has {found.length_bytes} bytes, of which {there_bytes} have arrived: "
            f"{more_bytes} more are too many."
        )


def finish_resumable_upload(
    *, user: User, dataset_id: int, resumable_upload_id: int
) -> ResumableUpload:
    """Take in the file that is whole, as every upload, once; that of an accepted one is told again.

    Raises ResumableUploadNotFoundError (404), OffsetConflictError (409) while bytes are missing,
    UploadBusyError (423), and what `upload_content` raises. The bytes stay for another try, unless
    UnacceptableMediaError (400, 415 or 422) says that it would be in vain.
    """
    patience_seconds = FINISHING_PATIENCE_SECONDS
    with _held(user, dataset_id, resumable_upload_id, patience_seconds) as (found, _):
        if found.upload_id is not None:
            return found
        there_bytes = selectors.received_bytes(found)
        if there_bytes < found.length_bytes:
            raise OffsetConflictError(
                f"Of {found.length_bytes} bytes {there_bytes} have arrived.",
                members={"offset_bytes": there_bytes},
            )

        def accept(upload: Upload) -> None:
            found.upload, found.expires_at = upload, _expiry()
            _change(found, upload=upload, expires_at=found.expires_at)

        try:
            upload_content(
                user=user,
                dataset_id=dataset_id,
                content=_WholeFile(partial_files.path_of(found.pk), found),
                answer=accept,
                promised_bytes=found.length_bytes,
            )
        except UnacceptableMediaError:
            ResumableUpload.objects.filter(pk=found.pk).delete()
            partial_files.remove(found.pk)
            raise
        partial_files.remove(found.pk)
    return found


class _WholeFile(UploadedFile[Any]):
    """The file as `upload_content` takes one that the server has spooled."""

    def __init__(self, path: Path, of: ResumableUpload) -> None:
        super().__init__(name=of.file_name, size=of.length_bytes)
        self._path = path

    def temporary_file_path(self) -> str:
        """Where it is."""
        return str(self._path)


def give_up_resumable_upload(*, user: User, dataset_id: int, resumable_upload_id: int) -> None:
    """Forget an upload and what has arrived of it.

    Raises ResumableUploadNotFoundError (404), UploadAcceptedError (409), UploadBusyError (423) and
    StorageUnavailableError (503).
    """
    with _held(user, dataset_id, resumable_upload_id) as (found, _):
        if found.upload_id is not None:
            raise UploadAcceptedError("The file was accepted, and is in the dataset.")
        found.delete()
        partial_files.remove(resumable_upload_id)


def remove_expired_uploads(*, now: datetime | None = None) -> int:
    """Remove uploads that got no byte for long, and files that belong to none; returns how many.

    Those of deleted datasets go too: they take no more bytes. One that a request is at work on is
    left for the next time.
    """
    ended = Q(expires_at__lte=now or timezone.now()) | Q(dataset__deleted_at__isnull=False)
    files = set(partial_files.numbers())  # before the rows, which are there first
    numbers = set(ResumableUpload.objects.filter(ended).values_list("pk", flat=True))
    numbers |= files - _unfinished_among(files)
    removed = 0
    for number in numbers:
        with contextlib.suppress(UploadBusyError), partial_files.held(number):
            ResumableUpload.objects.filter(ended, pk=number).delete()
            if not _unfinished_among({number}):
                partial_files.remove(number)
                removed += 1
    return removed


def _unfinished_among(numbers: set[int]) -> set[int]:
    rows = ResumableUpload.objects.filter(pk__in=numbers, upload__isnull=True)
    return set(rows.values_list("pk", flat=True))


@contextlib.contextmanager
def _held(
    user: User, dataset_id: int, resumable_upload_id: int, patience_seconds: float = 0.0
) -> Iterator[tuple[ResumableUpload, BinaryIO]]:
    """An upload as it is while nobody else changes it, and its file.

    Raises ResumableUploadNotFoundError (404), UploadBusyError (423) and, for an OSError of the
    block too, StorageFullError (507) and StorageUnavailableError (503).
    """

    def find() -> ResumableUpload:
        return selectors.resumable_upload_by_id(
            user=user, dataset_id=dataset_id, resumable_upload_id=resumable_upload_id
        )

    holding = partial_files.held(find().pk, patience_seconds=patience_seconds)
    with storing("this upload"), holding as file:
        yield find(), file


def _change(found: ResumableUpload, **changes: Any) -> None:
    """Note what has become of an unfinished upload.

    Raises ResumableUploadNotFoundError (404) when it has ended meanwhile, which takes the effect
    of the caller's transaction back.
    """
    unfinished = ResumableUpload.objects.filter(pk=found.pk, upload__isnull=True)
    if not unfinished.update(**changes):
        raise selectors.ResumableUploadNotFoundError("The upload has ended meanwhile.")


def _missing_bytes(user: User) -> int:
    """What has been promised to the user and has not arrived yet."""
    missing = selectors.unfinished_uploads(user=user)
    total = missing.aggregate(total=Sum(F("length_bytes") - F("offset_bytes")))["total"]
    return int(total or 0)


def _expiry() -> datetime:
    return timezone.now() + timedelta(hours=settings.RESUMABLE_UPLOAD_HOURS)
