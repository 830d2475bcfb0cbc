"""Taking in an upload: inspect, store, charge.

Files, decoding and storage stay outside the transaction; what the transaction does not accept is
removed again. So a refusal leaves the ledger, the rows and the files as they were.
"""

import contextlib
import logging
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from django.conf import settings
from django.core.files import File
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import UploadedFile
from django.db import DatabaseError, InterfaceError, transaction

from accounts.models import User
from accounts.services import append_event, lock_user
from billing import ledger
from billing.prices import PriceList, tokens, upload_price_hundredths
from billing.selectors import balance_hundredths, current_prices
from datasets import selectors
from datasets.media.archive import ArchiveMember, extract_member, open_archive
from datasets.media.errors import MediaError
from datasets.media.inspector import Inspector, InspectorUnavailableError, MediaFacts
from datasets.media.limits import MediaLimits
from datasets.media.sniff import is_zip
from datasets.models import MediaFile, Upload
from odproject.core.errors import DomainError, FieldError, QuotaExceededError
from odproject.core.files import (
    StorageUnavailableError,
    keep_reserve,
    keep_reserve_of_storage,
    remove_orphans,
    storing,
)

Answer = TypeVar("Answer")
logger = logging.getLogger(__name__)
MAX_NAME_LENGTH = 1000
UNPAID_DECODING_HUNDREDTHS = 100_000  # decoded beyond the balance: 2000 frames at first prices

_TOO_MUCH_WASTED = (
    "Damaged files before this one have taken the time that one archive may waste; try it again "
    "without them."
)


class UnacceptableMediaError(DomainError):
    """Nothing in the upload can be accepted; status and code say why."""

    title = "The file is not accepted"

    def __init__(self, error: MediaError) -> None:
        self.status = error.status
        self.code = error.code
        super().__init__(error.detail, errors=(FieldError("file", error.code, error.detail),))


@dataclass(frozen=True)
class AcceptedFile:
    """A file that passed inspection, and where it waits to be stored."""

    name: str
    path: Path
    thumbnail_path: Path | None
    facts: MediaFacts

    @classmethod
    def inspected(cls, name: str, path: Path, facts: MediaFacts, folder: Path) -> "AcceptedFile":
        """The file, with its thumbnail put aside into `folder`, because there may be thousands."""
        thumbnail_path = None
        if facts.thumbnail_jpeg is not None:
            thumbnail_path = folder / f"{path.name}.thumbnail"
            thumbnail_path.write_bytes(facts.thumbnail_jpeg)
        return cls(name, path, thumbnail_path, replace(facts, thumbnail_jpeg=None))

    @property
    def size_bytes(self) -> int:
        """Size of the file as uploaded."""
        return self.path.stat().st_size

    def price_hundredths(self, prices: PriceList) -> int:
        """What uploading this file costs."""
        if self.facts.kind == "image":
            return upload_price_hundredths(prices, images=1, frames=0)
        return upload_price_hundredths(prices, images=0, frames=self.facts.frame_count)


@dataclass(frozen=True)
class RefusedFile:
    """A file of an archive that was not accepted, and why."""

    name: str
    error: MediaError

    def as_report(self) -> dict[str, Any]:
        """The entry of the per-file report."""
        return {
            "filename": self.name,
            "accepted": False,
            "code": self.error.code,
            "error": self.error.detail,
        }


@dataclass
class Inspection:
    """What the inspection of an upload found."""

    accepted: list[AcceptedFile] = field(default_factory=list)
    refused: list[RefusedFile] = field(default_factory=list)

    def price_hundredths(self, prices: PriceList) -> int:
        """What the accepted files cost together."""
        return sum(one.price_hundredths(prices) for one in self.accepted)


@dataclass
class Purse:
    """What the user can spend, watched while files are decoded.

    The ledger decides in the end; this only ends early what costs far more than there is. What
    costs a little more is decoded, so that the refusal names the whole price.
    """

    prices: PriceList
    balance_hundredths: int
    spent_hundredths: int = 0

    def pay(self, *, images: int = 0, frames: int = 0) -> None:
        """Count a file that was accepted; raises InsufficientTokensError (402) as `check`."""
        self.check(images=images, frames=frames)
        self.spent_hundredths += upload_price_hundredths(self.prices, images=images, frames=frames)

    def check(self, *, images: int = 0, frames: int = 0) -> None:
        """Raise InsufficientTokensError (402) if so much more is far from being paid."""
        price_hundredths = upload_price_hundredths(self.prices, images=images, frames=frames)
        needed_hundredths = self.spent_hundredths + price_hundredths
        self._compare(needed_hundredths, self.balance_hundredths + UNPAID_DECODING_HUNDREDTHS)

    def settle(self) -> None:
        """Raise InsufficientTokensError (402) if what was accepted cannot be paid."""
        self._compare(self.spent_hundredths, self.balance_hundredths)

    def _compare(self, needed_hundredths: int, limit_hundredths: int) -> None:
        if needed_hundredths > limit_hundredths:
            raise ledger.InsufficientTokensError.of(
                needed_hundredths=needed_hundredths, balance_hundredths=self.balance_hundredths
            )


class StorageQuotaError(QuotaExceededError):
    """The user stores as many bytes as one user may store."""

    code = "storage_quota_exceeded"
    title = "Too much stored"


def refuse_above_quota(*, user: User, more_bytes: int) -> None:
    """Raise StorageQuotaError (409) if the user may not store so many bytes more.

    What was deleted counts until it has left the storage. So does what unfinished uploads were
    promised.
    """
    quota = settings.MAX_STORED_BYTES_PER_USER
    if not quota:
        return
    stored_bytes = selectors.stored_bytes(user=user)
    if stored_bytes + more_bytes > quota:
        raise StorageQuotaError(
            f"One user stores at most {quota} bytes. You store {stored_bytes}, unfinished uploads "
            f"and what was deleted lately included, and this upload would add {more_bytes}.",
            quota=quota,
        )


def media_limits() -> MediaLimits:
    """The limits that the settings give."""
    return MediaLimits(
        max_pixels=settings.MAX_IMAGE_PIXELS,
        max_frames=settings.MAX_VIDEO_FRAMES,
        max_archive_files=settings.MAX_ARCHIVE_FILES,
        per_file_timeout_seconds=settings.INSPECTION_TIMEOUT_SECONDS,
        child_memory_bytes=settings.INSPECTION_MEMORY_BYTES,
    )


def upload_content(
    *,
    user: User,
    dataset_id: int,
    content: UploadedFile[Any],
    answer: Callable[[Upload], Answer],
    promised_bytes: int = 0,
) -> Answer:
    """Take in one image, one video or a zip of them, and charge what was accepted.

    It takes minutes, in which the dataset may get another name: so it is known by its number.
    `promised_bytes` of the user's quota are kept for this upload already.

    Returns what `answer` makes of the upload, in the transaction that charges it, so that an
    answer can be kept with its effect.
    Raises DatasetNotFoundError (404), DatasetBlockedError (403), UnacceptableMediaError (400,
    415 or 422), InsufficientTokensError (402), StorageQuotaError (409), StorageFullError (507)
    and StorageUnavailableError (503); none leaves a trace.
    """
    selectors.open_dataset(user=user, dataset_id=dataset_id)
    # One who has filled it waits for no decoder.
    refuse_above_quota(user=user, more_bytes=1 - promised_bytes)
    limits = media_limits()
    with storing("this upload"), contextlib.ExitStack() as stack:
        try:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="od-upload-")))
            prices = current_prices()
            purse = Purse(prices=prices, balance_hundredths=balance_hundredths(user=user))
            path = _on_disk(content, folder)
            inspection = _inspect(path, str(content.name), folder, limits, purse)
            if not inspection.accepted:
                raise _nothing_accepted(inspection)
            purse.settle()
            stored = stack.enter_context(_stored(inspection.accepted))
            with transaction.atomic():
                upload = _record(
                    user=user,
                    dataset_id=dataset_id,
                    file_name=str(content.name),
                    inspection=inspection,
                    stored=stored,
                    prices=prices,
                    promised_bytes=promised_bytes,
                )
                return answer(upload)
        except MediaError as error:
            raise UnacceptableMediaError(error) from error
        except InspectorUnavailableError as error:
            logger.exception("Uploads cannot be inspected")
            raise StorageUnavailableError("Uploads cannot be inspected now; try again.") from error


def _on_disk(content: UploadedFile[Any], folder: Path) -> Path:
    """The upload as a file; small ones arrive in memory."""
    temporary = getattr(content, "temporary_file_path", None)
    if temporary is not None:
        return Path(temporary())
    path = folder / "upload"
    with path.open("wb") as target:
        for chunk in content.chunks():
            target.write(chunk)
    return path


def _inspect(path: Path, name: str, folder: Path, limits: MediaLimits, purse: Purse) -> Inspection:
    """Inspect a file or the members of an archive.

    Raises MediaError for what fails as a whole, and InsufficientTokensError as soon as what was
    found costs far more than there is.
    """
    inspection = Inspection()
    with Inspector(limits=limits, hidden=Path(settings.DATA_DIR), shown=path) as inspector:
        # Nothing more is asked here: to tell what a file is can take long, and only the child is
        # limited.
        if not is_zip(path):
            facts = _paid_facts(inspector, path, purse)
            accepted = AcceptedFile.inspected(name or "upload", path, facts, folder)
            inspection.accepted.append(accepted)
            return inspection
        wasted_seconds = 0.0
        for position, member in enumerate(open_archive(path, limits=limits)):
            target = folder / f"{position:06}"
            member_name = member.name[-MAX_NAME_LENGTH:]
            begun_at = time.monotonic()
            try:
                if wasted_seconds > limits.per_file_timeout_seconds:
                    raise MediaError("inspection_timeout", _TOO_MUCH_WASTED, 422)
                _extract(path, member, target, limits)
                facts = _paid_facts(inspector, target, purse)
            except MediaError as error:
                target.unlink(missing_ok=True)
                inspection.refused.append(RefusedFile(member_name, error))
                wasted_seconds += time.monotonic() - begun_at
            else:
                accepted = AcceptedFile.inspected(member_name, target, facts, folder)
                inspection.accepted.append(accepted)
    return inspection


def _paid_facts(inspector: Inspector, path: Path, purse: Purse) -> MediaFacts:
    """What a file is; a video that has become too dear is not decoded to its end."""
    facts = inspector.inspect(path, on_progress=lambda frames: purse.check(frames=frames))
    is_image = facts.kind == "image"
    purse.pay(images=int(is_image), frames=0 if is_image else facts.frame_count)
    return facts


def _extract(archive: Path, member: ArchiveMember, target: Path, limits: MediaLimits) -> None:
    keep_reserve(member.size_bytes)
    extract_member(archive, member, target, limits=limits)
    if is_zip(target):
        raise MediaError("nested_archive", "An archive inside an archive is not opened.", 422)


def _nothing_accepted(inspection: Inspection) -> MediaError:
    """Why an archive without one good file is refused: its first file's reason."""
    first = inspection.refused[0]
    count = len(inspection.refused)
    return MediaError(
        first.error.code,
        f"None of the {count} files can be accepted; {first.name}: {first.error.detail}",
        first.error.status,
    )


@dataclass(frozen=True)
class StoredFile:
    """Where a file and its thumbnail went; the thumbnail's name is empty where there is none."""

    content: str
    thumbnail: str


@contextlib.contextmanager
def _stored(accepted: list[AcceptedFile]) -> Iterator[list[StoredFile]]:
    """Put the files into storage under names of our own; take them out again on an error."""
    stored: list[StoredFile] = []
    try:
        for one in accepted:
            stem = uuid.uuid4().hex
            file = StoredFile(
                content=f"uploads/{stem}.{one.facts.format}",
                thumbnail=f"thumbnails/{stem}.jpg" if one.thumbnail_path else "",
            )
            stored.append(file)
            _save(one.path, file.content)
            if one.thumbnail_path:
                _save(one.thumbnail_path, file.thumbnail)
        yield stored
    except BaseException:
        for file in stored:
            _discard_unless_kept(file)
        raise


def remove_orphaned_uploads(*, older_than: datetime) -> int:
    """Remove stored files whose upload was cut off before their rows, or their removal after.

    Returns how many.
    """
    kept = MediaFile.objects.filter(selectors.IS_STORED)

    def known_contents(names: list[str]) -> set[str]:
        return set(kept.filter(content__in=names).values_list("content", flat=True))

    def known_thumbnails(names: list[str]) -> set[str]:
        return set(kept.filter(thumbnail__in=names).values_list("thumbnail", flat=True))

    return remove_orphans(
        folder="uploads", older_than=older_than, known=known_contents
    ) + remove_orphans(folder="thumbnails", older_than=older_than, known=known_thumbnails)


def _save(path: Path, name: str) -> None:
    keep_reserve_of_storage(path.stat().st_size)
    with path.open("rb") as content:
        default_storage.save(name, File(content))


def _discard_unless_kept(file: StoredFile) -> None:
    """Remove a file that belongs to no row.

    A commit whose answer got lost looks like a failure, so the database is asked; while it
    cannot be, a file too many is better than one too few.
    """
    with contextlib.suppress(DatabaseError, InterfaceError, OSError):
        if not MediaFile.objects.filter(content=file.content).exists():
            default_storage.delete(file.content)
            if file.thumbnail:
                default_storage.delete(file.thumbnail)


def _record(
    *,
    user: User,
    dataset_id: int,
    file_name: str,
    inspection: Inspection,
    stored: list[StoredFile],
    prices: PriceList,
    promised_bytes: int,
) -> Upload:
    """The rows, the charge and the event of an upload, in the caller's transaction."""
    lock_user(user=user)
    dataset = selectors.open_dataset(user=user, dataset_id=dataset_id, locked=True)
    more_bytes = sum(one.size_bytes for one in inspection.accepted)
    refuse_above_quota(user=user, more_bytes=more_bytes - promised_bytes)
    cost_hundredths = inspection.price_hundredths(prices)
    upload = Upload.objects.create(
        dataset=dataset,
        file_name=file_name[:255],
        cost_hundredths=cost_hundredths,
        refused=[one.as_report() for one in inspection.refused],
    )
    MediaFile.objects.bulk_create(
        MediaFile(
            dataset=dataset,
            upload=upload,
            name=one.name,
            content=file.content,
            thumbnail=file.thumbnail,
            media_type=one.facts.kind,
            format=one.facts.format,
            size_bytes=one.size_bytes,
            width=one.facts.size_wh[0],
            height=one.facts.size_wh[1],
            frame_count=one.facts.frame_count,
            duration_seconds=one.facts.duration_seconds,
            seek_plan=one.facts.seek_plan,
            warning=one.facts.warning,
            cost_hundredths=one.price_hundredths(prices),
        )
        for one, file in zip(inspection.accepted, stored, strict=True)
    )
    ledger.charge_upload(user=user, amount_hundredths=cost_hundredths, upload_id=upload.pk)
    append_event(
        user_id=user.pk,
        kind="upload.accepted",
        payload={
            "upload_id": upload.pk,
            "dataset_id": dataset.pk,
            "accepted": len(inspection.accepted),
            "refused": len(inspection.refused),
            "cost_tokens": tokens(cost_hundredths),
        },
    )
    return upload
