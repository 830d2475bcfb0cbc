"""Every write to datasets, except uploads (`datasets.uploading`)."""

from collections.abc import Iterable

from django.conf import settings
from django.db import IntegrityError, transaction
from django.utils import timezone

from accounts.models import User
from accounts.services import append_event, lock_user
from datasets import selectors
from datasets.models import Dataset, ModerationAction
from odproject.core.errors import ConflictError, QuotaExceededError


class DatasetNameTakenError(ConflictError):
    """Another live dataset of the user has this name."""

    code = "dataset_name_taken"
    title = "The dataset name is taken"


def parse_tags(text: str) -> list[str]:
    """Words separated by commas, in their order, each once."""
    words = (word.strip() for word in text.split(","))
    return list(dict.fromkeys(word for word in words if word))


class DatasetQuotaError(QuotaExceededError):
    """The user has as many live datasets as one user may have."""

    code = "dataset_quota_exceeded"
    title = "Too many datasets"


def create_dataset(*, user: User, name: str, tags: Iterable[str]) -> Dataset:
    """Create a dataset; raises DatasetNameTakenError and DatasetQuotaError (409)."""
    quota = settings.MAX_DATASETS_PER_USER
    try:
        with transaction.atomic():
            lock_user(user=user)
            live = Dataset.objects.filter(user=user, deleted_at__isnull=True)
            if quota and live.count() >= quota:
                detail = f"One user has at most {quota} datasets; delete one first."
                raise DatasetQuotaError(detail, quota=quota)
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


def delete_dataset(*, user: User, dataset_id: int) -> None:
    """Hide a live dataset; raises DatasetNotFoundError (404)."""
    live = Dataset.objects.filter(user=user, pk=dataset_id, deleted_at__isnull=True)
    if not live.update(deleted_at=timezone.now()):
        raise selectors.DatasetNotFoundError(f"You have no dataset {dataset_id}.")


@transaction.atomic
def delete_media_file(*, user: User, media_file_id: int) -> None:
    """Take a file out of its dataset; raises MediaFileNotFoundError (404).

    Jobs that were quoted for it run on, and what they found stays readable. Its content leaves
    the storage later (`inference.cleaning.remove_deleted_content`).
    """
    media_file = selectors.media_file_by_id(user=user, media_file_id=media_file_id)
    # A submission that has counted the file is in the books before the file is gone.
    lock_dataset(dataset_id=media_file.dataset_id)
    live = selectors.live_media_files(dataset=media_file.dataset).filter(pk=media_file_id)
    if not live.update(deleted_at=timezone.now()):
        raise selectors.MediaFileNotFoundError(f"You have no media file {media_file_id}.")


class AlreadyModeratedError(ConflictError):
    """The dataset is already what the action would make it."""

    code = "already_moderated"
    title = "Nothing to change"


@transaction.atomic
def flag_dataset(*, dataset: Dataset, actor: User, reason: str) -> None:
    """Mark a dataset for a second look. It stays in use, and its owner is not told.

    Raises AlreadyModeratedError (409) when it is flagged or blocked already.
    """
    untouched = Dataset.objects.filter(
        pk=dataset.pk, flagged_at__isnull=True, blocked_at__isnull=True
    )
    if not untouched.update(flagged_at=timezone.now()):
        raise AlreadyModeratedError(f"The dataset {dataset.name} is flagged or blocked already.")
    _record_moderation(dataset, actor, ModerationAction.Kind.FLAG, reason)


def lock_dataset(*, dataset_id: int) -> None:
    """Keep uploads and submissions waiting until the caller's transaction ends."""
    Dataset.objects.select_for_update(no_key=True).get(pk=dataset_id)


def mark_blocked(*, dataset: Dataset, reason: str) -> None:
    """Keep a dataset from uploads and new jobs.

    A part of `inference.services.block_dataset_and_abort_pending_jobs`, which knows jobs. Raises
    AlreadyModeratedError (409) when it is blocked already.
    """
    unblocked = Dataset.objects.filter(pk=dataset.pk, blocked_at__isnull=True)
    if not unblocked.update(blocked_at=timezone.now(), block_reason=reason, flagged_at=None):
        raise AlreadyModeratedError(f"The dataset {dataset.name} is blocked already.")


def record_block(*, dataset: Dataset, actor: User, reason: str) -> None:
    """Note who blocked a dataset, and tell its owner why; in the caller's transaction."""
    _record_moderation(dataset, actor, ModerationAction.Kind.BLOCK, reason)
    _tell_owner(dataset, "dataset.blocked", reason)


@transaction.atomic
def restore_dataset(*, dataset: Dataset, actor: User, reason: str = "") -> None:
    """Lift a block or a flag; the owner hears of a lifted block.

    Raises AlreadyModeratedError (409) when there is neither.
    """
    found = Dataset.objects.filter(pk=dataset.pk)
    if found.filter(blocked_at__isnull=False).update(
        blocked_at=None, block_reason="", flagged_at=None
    ):
        _tell_owner(dataset, "dataset.restored", reason)
    elif not found.filter(flagged_at__isnull=False).update(flagged_at=None):
        raise AlreadyModeratedError(f"The dataset {dataset.name} is neither blocked nor flagged.")
    _record_moderation(dataset, actor, ModerationAction.Kind.RESTORE, reason)


def _record_moderation(
    dataset: Dataset, actor: User, kind: ModerationAction.Kind, reason: str
) -> None:
    ModerationAction.objects.create(dataset=dataset, actor=actor, kind=kind, reason=reason)


def _tell_owner(dataset: Dataset, kind: str, reason: str) -> None:
    append_event(
        user_id=dataset.user_id,
        kind=kind,
        payload={"dataset_id": dataset.pk, "dataset_name": dataset.name, "reason": reason},
    )
