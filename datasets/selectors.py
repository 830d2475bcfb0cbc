"""Reads of datasets and media files."""

from dataclasses import dataclass

from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import Coalesce

from accounts.models import User
from datasets.models import Dataset, MediaFile
from odproject.core.errors import DomainError, NotFoundError

IS_IMAGE = Q(media_files__media_type=MediaFile.MediaType.IMAGE)
IS_VIDEO = Q(media_files__media_type=MediaFile.MediaType.VIDEO)


class DatasetNotFoundError(NotFoundError):
    """The user has no live dataset of this name."""

    code = "dataset_not_found"
    title = "Dataset not found"


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


def open_dataset(*, user: User, name: str, locked: bool = False) -> Dataset:
    """A live dataset that takes uploads and jobs; raises DatasetBlockedError (403) besides.

    With `locked` it is neither deleted nor blocked before the transaction ends.
    """
    dataset = live_dataset(user=user, name=name)
    if locked:
        rows = Dataset.objects.select_for_update(no_key=True)
        dataset = rows.filter(pk=dataset.pk, deleted_at__isnull=True).first()  # type: ignore[assignment]
        if dataset is None:
            raise DatasetNotFoundError(f"You have no dataset named {name}.")
    if dataset.blocked_at is not None:
        raise DatasetBlockedError(f"The dataset {name} is blocked: {dataset.block_reason}")
    return dataset


def with_counts(datasets: QuerySet[Dataset]) -> QuerySet[Dataset]:
    """Annotate `image_count` and `frame_count` (frames of videos only)."""
    return datasets.annotate(
        image_count=Count("media_files", filter=IS_IMAGE),
        frame_count=Coalesce(Sum("media_files__frame_count", filter=IS_VIDEO), 0),
    )


def live_datasets(*, user: User) -> list[DatasetSummary]:
    """The user's live datasets in the order of their making, and how much is in each."""
    found = with_counts(Dataset.objects.filter(user=user, deleted_at__isnull=True)).order_by("pk")
    return [
        DatasetSummary(dataset, dataset.image_count, dataset.frame_count)  # type: ignore[attr-defined]
        for dataset in found
    ]
