"""Reads of datasets, their uploads and media files."""

from dataclasses import dataclass

from django.db.models import (
    Aggregate,
    Count,
    F,
    Func,
    IntegerField,
    Q,
    QuerySet,
    Sum,
)
from django.db.models.functions import Coalesce
from django.utils import timezone

from accounts.models import User
from billing.selectors import Breach, breaches_of
from datasets import partial_files
from datasets.models import Dataset, MediaFile, ResumableUpload, Upload
from odproject.core.aggregates import figure_of
from odproject.core.errors import DomainError, NotFoundError

IS_IMAGE = Q(media_type=MediaFile.MediaType.IMAGE)
IS_VIDEO = Q(media_type=MediaFile.MediaType.VIDEO)
IS_LIVE = Q(deleted_at__isnull=True)
IS_STORED = Q(removed_at__isnull=True)


class DatasetNotFoundError(NotFoundError):
    """The user has no live dataset of this name."""

    code = "dataset_not_found"
    title = "Dataset not found"


class MediaFileNotFoundError(NotFoundError):
    """The user has no media file of this number."""

    code = "media_file_not_found"
    title = "Media file not found"


class UploadNotFoundError(NotFoundError):
    """The user's dataset has no upload of this number."""

    code = "upload_not_found"
    title = "Upload not found"


class ResumableUploadNotFoundError(NotFoundError):
    """The user's dataset has no resumable upload of this number, or it has expired."""

    code = "resumable_upload_not_found"
    title = "Resumable upload not found"


class DatasetBlockedError(DomainError):
    """An administrator has blocked the dataset."""

    status = 403
    code = "dataset_blocked"
    title = "The dataset is blocked"


@dataclass(frozen=True)
class DatasetSummary:
    """A dataset and how much is in it."""

    dataset: Dataset
    image_count: int
    frame_count: int


def live_dataset(*, user: User, name: str) -> Dataset:
    """The user's dataset of this name; raises DatasetNotFoundError (404)."""
    dataset = Dataset.objects.filter(user=user, name=name, deleted_at__isnull=True).first()
    if dataset is None:
        raise DatasetNotFoundError(f"You have no dataset named {name}.")
    return dataset


def open_dataset(*, user: User, dataset_id: int, locked: bool = False) -> Dataset:
    """The user's live dataset of this number, which takes uploads and jobs.

    With `locked` it is neither deleted nor blocked before the transaction ends. Raises
    DatasetNotFoundError (404) and DatasetBlockedError (403).
    """
    rows = Dataset.objects.filter(user=user, pk=dataset_id, deleted_at__isnull=True)
    dataset = (rows.select_for_update(no_key=True) if locked else rows).first()
    if dataset is None:
        raise DatasetNotFoundError(f"You have no dataset {dataset_id}.")
    _refuse_blocked(dataset)
    return dataset


def reopened_dataset(*, dataset_id: int, locked: bool = False) -> Dataset:
    """The dataset of an earlier job, if it still takes jobs.

    With `locked` it is neither deleted nor blocked before the transaction ends. Raises
    DatasetNotFoundError (404) when it was deleted, and DatasetBlockedError (403).
    """
    rows = Dataset.objects.filter(pk=dataset_id, deleted_at__isnull=True)
    dataset = (rows.select_for_update(no_key=True) if locked else rows).first()
    if dataset is None:
        raise DatasetNotFoundError("The dataset was deleted by its owner.")
    _refuse_blocked(dataset)
    return dataset


def _refuse_blocked(dataset: Dataset) -> None:
    if dataset.blocked_at is not None:
        raise DatasetBlockedError(f"The dataset {dataset.name} is blocked: {dataset.block_reason}")


def with_counts(datasets: QuerySet[Dataset]) -> QuerySet[Dataset]:
    """Annotate `image_count` and `frame_count` (frames of videos only)."""
    return datasets.annotate(
        image_count=_of_files(Count("pk"), IS_LIVE & IS_IMAGE),
        frame_count=_of_files(Sum("frame_count"), IS_LIVE & IS_VIDEO),
    )


def with_sizes(datasets: QuerySet[Dataset]) -> QuerySet[Dataset]:
    """`with_counts` and `file_count`, `stored_bytes`, `upload_hundredths` (paid for uploads).

    What was deleted is stored for some time, and paid for ever.
    """
    return with_counts(datasets).annotate(
        file_count=_of_files(Count("pk"), IS_LIVE),
        stored_bytes=_of_files(Sum("size_bytes"), IS_STORED),
        upload_hundredths=_of_files(Sum("cost_hundredths")),
    )


def _of_files(figure: Aggregate, condition: Q | None = None) -> Coalesce:
    files = MediaFile.objects.filter(condition or Q())
    return figure_of(files, owner="dataset", figure=figure)


def live_datasets_of(*, user: User) -> QuerySet[Dataset]:
    """The user's live datasets with `image_count` and `frame_count`."""
    return with_counts(Dataset.objects.filter(user=user, deleted_at__isnull=True))


def live_datasets(*, user: User) -> list[DatasetSummary]:
    """The user's live datasets in the order of their making, and how much is in each."""
    return [
        DatasetSummary(dataset, dataset.image_count, dataset.frame_count)  # type: ignore[attr-defined]
        for dataset in live_datasets_of(user=user).order_by("pk")
    ]


def dataset_by_id(*, user: User, dataset_id: int) -> Dataset:
    """The user's live dataset with its counts; raises DatasetNotFoundError (404)."""
    dataset = live_datasets_of(user=user).filter(pk=dataset_id).first()
    if dataset is None:
        raise DatasetNotFoundError(f"You have no dataset {dataset_id}.")
    return dataset


def live_media_files(*, dataset: Dataset) -> QuerySet[MediaFile]:
    """The files of a dataset that were not deleted."""
    return MediaFile.objects.filter(IS_LIVE, dataset=dataset)


def media_file_by_id(*, user: User, media_file_id: int) -> MediaFile:
    """A live file of one of the user's live datasets; raises MediaFileNotFoundError (404)."""
    media_file = MediaFile.objects.filter(
        IS_LIVE, pk=media_file_id, dataset__user=user, dataset__deleted_at__isnull=True
    ).first()
    if media_file is None:
        raise MediaFileNotFoundError(f"You have no media file {media_file_id}.")
    return media_file


def uploads_with_counts(*, dataset: Dataset) -> QuerySet[Upload]:
    """The uploads of a dataset with `accepted_count` and `refused_count`, without the reports."""
    return (
        Upload.objects.filter(dataset=dataset)
        .defer("refused")
        .annotate(
            accepted_count=Count("media_files"),
            refused_count=Func(
                F("refused"), function="jsonb_array_length", output_field=IntegerField()
            ),
        )
    )


def upload_by_id(*, user: User, dataset_id: int, upload_id: int) -> Upload:
    """An upload into one of the user's live datasets; raises UploadNotFoundError (404)."""
    upload = Upload.objects.filter(
        pk=upload_id,
        dataset_id=dataset_id,
        dataset__user=user,
        dataset__deleted_at__isnull=True,
    ).first()
    if upload is None:
        raise UploadNotFoundError(f"You have no upload {upload_id} in a dataset {dataset_id}.")
    return upload


def _resumable_uploads(*, user: User) -> QuerySet[ResumableUpload]:
    return ResumableUpload.objects.filter(
        dataset__user=user, dataset__deleted_at__isnull=True, expires_at__gt=timezone.now()
    )


def resumable_upload_by_id(
    *, user: User, dataset_id: int, resumable_upload_id: int
) -> ResumableUpload:
    """An upload by pieces into one of the user's live datasets, which has not expired.

    Raises ResumableUploadNotFoundError (404).
    """
    rows = _resumable_uploads(user=user)
    found = rows.filter(pk=resumable_upload_id, dataset_id=dataset_id).first()
    if found is None:
        raise ResumableUploadNotFoundError(
            f"You have no resumable upload {resumable_upload_id} in a dataset {dataset_id}."
        )
    return found


def unfinished_uploads(*, user: User) -> QuerySet[ResumableUpload]:
    """The uploads by pieces into the user's live datasets that were not accepted yet."""
    return _resumable_uploads(user=user).filter(upload__isnull=True)


def received_bytes(resumable_upload: ResumableUpload) -> int:
    """How much of an upload is there: as the row says, unless its disk has lost some of it."""
    noted_bytes = resumable_upload.offset_bytes
    if resumable_upload.upload_id is not None:
        return noted_bytes
    return min(noted_bytes, partial_files.size_bytes(resumable_upload.pk))


def next_offset_bytes(resumable_upload: ResumableUpload) -> int:
    """Where its client goes on: behind what is there, or before the last byte of a whole file.

    To a client of tus the full length is the end, and one whose file was not accepted, for want of
    tokens or because the connection broke, would never ask again.
    """
    there_bytes = received_bytes(resumable_upload)
    asks_again = resumable_upload.upload_id is None and (
        there_bytes == resumable_upload.length_bytes
    )
    return there_bytes - 1 if asks_again else there_bytes


def stored_bytes(*, user: User) -> int:
    """What the user's files take, and what unfinished uploads were promised.

    What was deleted or has expired is included until it has left the disk, thumbnails are not.
    """
    files = MediaFile.objects.filter(IS_STORED, dataset__user=user)
    taken = files.aggregate(total=Sum("size_bytes"))
    uploads = ResumableUpload.objects.filter(dataset__user=user, upload__isnull=True)
    promised = uploads.aggregate(total=Sum("length_bytes"))
    return (taken["total"] or 0) + (promised["total"] or 0)


def flagged_dataset_count() -> int:
    """How many datasets wait for a moderator's second look."""
    return Dataset.objects.filter(flagged_at__isnull=False).count()


CHARGE_INVARIANT = "every upload was charged what it cost"
CHARGE_QUERY = """
    SELECT charge.upload_id, upload.id, upload.cost_hundredths, charge.total
    FROM datasets_upload upload FULL JOIN (
        SELECT upload_id, sum(amount_hundredths) AS total FROM billing_transfer
        WHERE upload_id IS NOT NULL GROUP BY upload_id
    ) charge ON charge.upload_id = upload.id
    WHERE upload.id IS NULL OR upload.cost_hundredths <> coalesce(charge.total, 0)
"""


def charge_breaches() -> list[Breach]:
    """Uploads whose charge is another, or charges without an upload; an empty list is good news."""
    return breaches_of({CHARGE_INVARIANT: CHARGE_QUERY})
