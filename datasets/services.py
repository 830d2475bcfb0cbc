"""Every write to datasets, except uploads (`datasets.uploading`)."""

from collections.abc import Iterable

from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.models import User
from accounts.services import append_event
from datasets import selectors
from datasets.models import Dataset, ModerationAction
from odproject.core.errors import ConflictError


class DatasetNameTakenError(ConflictError):
    """Another live dataset of the user has this name."""

    code = "dataset_name_taken"
    title = "The dataset name is taken"


def parse_tags(text: str) -> list[str]:
    """Words separated by commas, in their order, each once."""
    words = (word.strip() for word in text.split(","))
    return list(dict.fromkeys(word for word in words if word))


def create_dataset(*, user: User, name: str, tags: Iterable[str]) -> Dataset:
    """Create a dataset; raises DatasetNameTakenError (409)."""
    try:
        with transaction.atomic():
            return Dataset.objects.create(user=user, name=name, tags=list(tags))
    except IntegrityError as error:
        raise DatasetNameTakenError(f"You have a dataset named {name} already.") from error


def change_dataset(
    *, dataset: Dataset, new_name: str | None = None, new_tags: list[str] | None = None
) -> None:
    """Give a live dataset another name, other tags or both.

    Raises DatasetNotFoundError (404) when it was deleted meanwhile, and DatasetNameTakenError
    (409).
    """
    changes: dict[str, object] = {}
    if new_name is not None:
        changes["name"] = new_name
    if new_tags is not None:
        changes["tags"] = new_tags
    live = Dataset.objects.filter(pk=dataset.pk, deleted_at__isnull=True)
    try:
        with transaction.atomic():
            changed = live.update(**changes) if changes else live.count()
    except IntegrityError as error:
        raise DatasetNameTakenError(f"You have a dataset named {new_name} already.") from error
    if not changed:
        raise selectors.DatasetNotFoundError(f"You have no dataset named {dataset.name}.")


def delete_dataset(*, user: User, name: str) -> None:
    """Hide a live dataset; raises DatasetNotFoundError (404)."""
    live = Dataset.objects.filter(user=user, name=name, deleted_at__isnull=True)
    if not live.update(deleted_at=timezone.now()):
        raise selectors.DatasetNotFoundError(f"You have no dataset named {name}.")


@transaction.atomic
def block_dataset(*, dataset: Dataset, actor: User, reason: str) -> bool:
    """Keep a dataset from uploads and new jobs; returns whether it was not blocked before.

    The caller aborts the dataset's pending jobs (`inference.services.block_dataset`).
    """
    now = timezone.now()
    blocked = Dataset.objects.filter(pk=dataset.pk, blocked_at__isnull=True).update(
        blocked_at=now, block_reason=reason
    )
    if blocked:
        _record_moderation(dataset, actor, ModerationAction.Kind.BLOCK, reason)
    return bool(blocked)


@transaction.atomic
def restore_dataset(*, dataset: Dataset, actor: User, reason: str = "") -> bool:
    """Lift a block; returns whether there was one."""
    restored = Dataset.objects.filter(pk=dataset.pk, blocked_at__isnull=False).update(
        blocked_at=None, block_reason=""
    )
    if restored:
        _record_moderation(dataset, actor, ModerationAction.Kind.RESTORE, reason)
    return bool(restored)


def _record_moderation(
    dataset: Dataset, actor: User, kind: ModerationAction.Kind, reason: str
) -> None:
    ModerationAction.objects.create(dataset=dataset, actor=actor, kind=kind, reason=reason)
    append_event(
        user_id=dataset.user_id,
        kind=f"dataset.{kind.value}ed" if kind == "block" else "dataset.restored",
        payload={"dataset_id": dataset.pk, "dataset_name": dataset.name, "reason": reason},
    )
