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


def lock_dataset(*, dataset_id: int) -> None:
    """Keep uploads and submissions waiting until the caller's transaction ends."""
    Dataset.objects.select_for_update(no_key=True).get(pk=dataset_id)


def mark_blocked(*, dataset: Dataset, reason: str) -> bool:
    """Keep a dataset from uploads and new jobs; returns whether it was not blocked before.

    A part of `inference.services.block_dataset_and_abort_pending_jobs`, which knows jobs.
    """
    unblocked = Dataset.objects.filter(pk=dataset.pk, blocked_at__isnull=True)
    return bool(unblocked.update(blocked_at=timezone.now(), block_reason=reason))


@transaction.atomic
def restore_dataset(*, dataset: Dataset, actor: User, reason: str = "") -> bool:
    """Lift a block; returns whether there was one."""
    restored = Dataset.objects.filter(pk=dataset.pk, blocked_at__isnull=False).update(
        blocked_at=None, block_reason=""
    )
    if restored:
        record_moderation(
            dataset=dataset, actor=actor, kind=ModerationAction.Kind.RESTORE, reason=reason
        )
    return bool(restored)


def record_moderation(
    *, dataset: Dataset, actor: User, kind: ModerationAction.Kind, reason: str
) -> None:
    """Note who did what to a dataset and why, and tell its owner; in the caller's transaction."""
    ModerationAction.objects.create(dataset=dataset, actor=actor, kind=kind, reason=reason)
    append_event(
        user_id=dataset.user_id,
        kind=f"dataset.{kind.value}ed" if kind == "block" else "dataset.restored",
        payload={"dataset_id": dataset.pk, "dataset_name": dataset.name, "reason": reason},
    )
