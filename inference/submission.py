"""Jobs are quoted, held for and queued: on a dataset, or again on the files of another job.

Locks are taken in the order that `services` tells.
"""

from collections.abc import Mapping, Sequence
from datetime import timedelta
from decimal import Decimal
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import Exists, OuterRef, QuerySet

from accounts.models import User
from accounts.services import append_event, lock_user
from billing.ledger import place_hold
from billing.prices import hundredths, tokens_text
from billing.selectors import current_prices
from datasets.models import Dataset, MediaFile
from datasets.selectors import live_media_files, open_dataset, reopened_dataset
from inference.models import Job, JobFile, ModelVersion, UnitFile, WorkUnit, job_payload
from inference.planning import JobPlan, plan_job
from inference.registry import active_version
from inference.selectors import user_job
from inference.services import enqueue_units, locked_job
from inference.slicing import frame_ranges, network_looks
from odproject.core.clock import database_now
from odproject.core.errors import ConflictError, DomainError, QuotaExceededError

MIN_DEADLINE_SECONDS = 10
MAX_DEADLINE_SECONDS = 7 * 24 * 3600


class EmptyDatasetError(DomainError):
    """The dataset holds nothing to look at."""

    code = "empty_dataset"
    title = "The dataset is empty"


class JobUnfinishedError(ConflictError):
    """The job has not ended yet."""

    code = "job_unfinished"
    title = "The job has not ended"


class QuoteExceededError(ConflictError):
    """The job costs more than the user has agreed to: prices or files are others now."""

    code = "quote_exceeded"
    title = "The price has changed"


class RerunUnfinishedError(ConflictError):
    """The job is being run again already."""

    code = "rerun_unfinished"
    title = "The job is being run again"


class NothingToRetryError(ConflictError):
    """Every file of the job was done, is a later job's, or is not there any more."""

    code = "nothing_to_retry"
    title = "There is nothing to try again"


class JobQuotaError(QuotaExceededError):
    """The user has as many unfinished jobs as one user may have."""

    code = "job_quota_exceeded"
    title = "Too many unfinished jobs"


def _refuse_above_quota(user: User) -> None:
    """Raise JobQuotaError (409) if the user has as many unfinished jobs as allowed."""
    lock_user(user=user)
    quota = settings.MAX_UNFINISHED_JOBS_PER_USER
    unfinished = Job.objects.filter(user=user, state__in=Job.UNFINISHED)
    if quota and unfinished.count() >= quota:
        detail = f"One user has at most {quota} unfinished jobs; wait for one or abort it."
        raise JobQuotaError(detail, quota=quota)


@transaction.atomic
def submit_job(
    *,
    user: User,
    dataset_id: int,
    model_id: str,
    model_version: str,
    options: Mapping[str, Any] | None = None,
    maximum_tokens: Decimal | None = None,
    deadline_seconds: int | None = None,
) -> Job:
    """Quote, hold and queue detection on everything in a dataset.

    `options`: what DetectionOptions.parse reads; the model version's for those left out.
    `maximum_tokens`: a quote that the user has seen. `deadline_seconds`: after so many from now the
    job is aborted if it has not ended. Raises UnknownModelError, EmptyDatasetError,
    InvalidOptionsError, PrecisionNotAvailableError and TooManyTilesError (400),
    InsufficientTokensError (402), DatasetBlockedError (403), DatasetNotFoundError (404),
    JobQuotaError and QuoteExceededError (409).
    """
    _refuse_above_quota(user)
    version = active_version(model_id=model_id, version=model_version)
    dataset = open_dataset(user=user, dataset_id=dataset_id, locked=True)
    plan = _plan(version, dataset, options or {})
    _refuse_above_quote(plan, maximum_tokens)
    return _queue_job(user=user, dataset=dataset, plan=plan, deadline_seconds=deadline_seconds)


def _refuse_above_quote(plan: JobPlan, maximum_tokens: Decimal | None) -> None:
    """Raise QuoteExceededError (409) if a plan costs more than the user has agreed to."""
    if maximum_tokens is not None and plan.quoted_hundredths > hundredths(maximum_tokens):
        now = f"{tokens_text(plan.quoted_hundredths)} tokens"
        raise QuoteExceededError(f"The job would cost {now} now, more than it was quoted for.")


def quote_job(
    *,
    user: User,
    dataset_id: int,
    model_id: str,
    model_version: str,
    options: Mapping[str, Any] | None = None,
) -> JobPlan:
    """What `submit_job` would hold now for the same arguments; writes nothing.

    Raises what `submit_job` does but for InsufficientTokensError and JobQuotaError.
    """
    version = active_version(model_id=model_id, version=model_version)
    dataset = open_dataset(user=user, dataset_id=dataset_id)
    return _plan(version, dataset, options or {})


def _plan(version: ModelVersion, dataset: Dataset, chosen: Mapping[str, Any]) -> JobPlan:
    media_files = list(live_media_files(dataset=dataset).order_by("pk"))
    if not media_files:
        raise EmptyDatasetError(f"The dataset {dataset.name} holds no file to look at.")
    return plan_job(
        version=version, media_files=media_files, chosen=chosen, prices=current_prices()
    )


@transaction.atomic
def rerun_job(*, job_id: int) -> Job:
    """Look at the files of a job again, as a new job of the same owner, version and options.

    What its owner has deleted since is left out. It is quoted at the prices of now and its price is
    held: the owner pays for it. It has no deadline. Raises what `_plan_again` does, and
    EmptyDatasetError (400) when all was deleted, and InsufficientTokensError (402).
    """
    first = Job.objects.get(pk=job_id)
    plan = _plan_again(first, first.files.all(), locked=True)
    if not plan.files:
        raise EmptyDatasetError(f"The owner has deleted every file of job {job_id}.")
    return _queue_job(user=first.user, dataset=first.dataset, plan=plan, rerun_of=first)


@transaction.atomic
def retry_job(
    *,
    user: User,
    job_id: int,
    maximum_tokens: Decimal | None = None,
    deadline_seconds: int | None = None,
) -> Job:
    """Look again at the files that failed in a job, or were not finished when it was aborted.

    That is a new job, with the version and options of the first one, at the prices of now. What a
    later job with the same ones has done, or is at, is left out: it is paid there. The other
    arguments are those of `submit_job`. Raises what `quote_retry` does, InsufficientTokensError
    (402), JobQuotaError and QuoteExceededError (409).
    """
    first = user_job(user=user, job_id=job_id)
    _refuse_above_quota(user)
    plan = _plan_retry(first, locked=True)
    _refuse_above_quote(plan, maximum_tokens)
    return _queue_job(
        user=user,
        dataset=first.dataset,
        plan=plan,
        rerun_of=first,
        deadline_seconds=deadline_seconds,
    )


def quote_retry(*, user: User, job_id: int) -> JobPlan:
    """What `retry_job` would look at and hold now; writes nothing.

    Raises JobNotFoundError (404), NothingToRetryError (409) and what `_plan_again` does.
    """
    return _plan_retry(user_job(user=user, job_id=job_id), locked=False)


def _plan_retry(first: Job, *, locked: bool) -> JobPlan:
    plan = _plan_again(first, _undone_files(first), locked=locked)
    if not plan.files:
        raise NothingToRetryError(
            f"Every file of job {first.pk} was done, is a later job's, or was deleted since."
        )
    return plan


def _undone_files(first: Job) -> QuerySet[JobFile]:
    """Files that failed in a job, or were not finished, and that no later one has done, or is at.

    Alike, that is: with the same version and options.
    """
    later = JobFile.objects.filter(
        media_file=OuterRef("media_file"),
        job__gt=first,
        job__model_version=first.model_version,
        job__options=first.options,
    ).exclude(state__in=JobFile.UNDONE)
    return first.files.filter(~Exists(later), state__in=JobFile.UNDONE)


def _plan_again(first: Job, job_files: QuerySet[JobFile], *, locked: bool) -> JobPlan:
    """A plan over these files of an ended job, but for those that were deleted since.

    With `locked` it holds until the transaction ends. Raises JobUnfinishedError and
    RerunUnfinishedError (409), UnknownModelError and PrecisionNotAvailableError (400) when that is
    not offered any more, DatasetBlockedError (403) and DatasetNotFoundError (404).
    """
    version = active_version(
        model_id=first.model_version.model_id, version=first.model_version.version
    )
    dataset = reopened_dataset(dataset_id=first.dataset_id, locked=locked)
    if (locked_job(first.pk) if locked else first).state in Job.UNFINISHED:
        raise JobUnfinishedError(f"Job {first.pk} has not ended yet.")
    # The lock on the job makes two who want it again take turns, so the second sees the first.
    again = Job.objects.filter(rerun_of=first, state__in=Job.UNFINISHED).first()
    if again is not None:
        raise RerunUnfinishedError(f"Job {again.pk} is running job {first.pk} again already.")
    files = live_media_files(dataset=dataset).filter(jobfile__in=job_files)
    return plan_job(
        version=version,
        media_files=list(files.order_by("jobfile__position")),
        chosen=first.options,
        prices=current_prices(),
    )


def _queue_job(
    *,
    user: User,
    dataset: Dataset,
    plan: JobPlan,
    rerun_of: Job | None = None,
    deadline_seconds: int | None = None,
) -> Job:
    """Hold the price of a plan and queue it as a job, in the caller's transaction."""
    files = [
        JobFile(
            media_file=file.media_file,
            position=position,
            frame_count=file.frame_count,
            frame_price_hundredths=file.frame_price_hundredths,
        )
        for position, file in enumerate(plan.files)
    ]
    deadline_at = None
    if deadline_seconds is not None:
        deadline_at = database_now() + timedelta(seconds=deadline_seconds)
    job = Job.objects.create(
        user=user,
        dataset=dataset,
        model_version=plan.version,
        # What the version is now: a job keeps its weights, whatever becomes of the version.
        weights_sha256=plan.version.weights_sha256,
        class_names=plan.version.class_names,
        options=plan.options.as_json(),
        rerun_of=rerun_of,
        deadline_at=deadline_at,
        quoted_hundredths=plan.quoted_hundredths,
        frame_count=plan.frame_count,
    )
    job.hold = place_hold(user=user, amount_hundredths=plan.quoted_hundredths, job_id=job.pk)
    job.save(update_fields=["hold"])
    for file in files:
        file.job = job
    _make_units(job, JobFile.objects.bulk_create(files), plan=plan)
    append_event(user_id=user.pk, kind="job.submitted", payload=job_payload(job))
    transaction.on_commit(lambda: enqueue_units(job_id=job.pk), robust=True)
    return job


def _make_units(job: Job, files: Sequence[JobFile], *, plan: JobPlan) -> None:
    """Cut the files of a new job into work units, in the order of the files.

    However much the network does for a picture, it does about as much for a unit, so that others
    soon have their turn. A video is cut no finer than at its seek points, which lie at least
    `seeking.SPACING_FRAMES` apart: that bounds the number of units.
    """
    units: list[WorkUnit] = []
    parts: list[UnitFile] = []
    batch: WorkUnit | None = None
    images_in_batch = looks_in_batch = 0

    def add_unit(kind: WorkUnit.Kind, file: JobFile) -> WorkUnit:
        units.append(WorkUnit(job=job, kind=kind, position=file.position))
        return units[-1]

    for file in files:
        size_wh = file.media_file.width, file.media_file.height
        looks = network_looks(size_wh, plan.options, fixed_size=plan.version.image_size)
        if file.media_file.media_type == MediaFile.MediaType.IMAGE:
            is_full = (
                images_in_batch == settings.UNIT_MAX_IMAGES
                or looks_in_batch + looks > settings.UNIT_MAX_FRAMES
            )
            if batch is None or is_full:
                batch = add_unit(WorkUnit.Kind.IMAGES, file)
                images_in_batch = looks_in_batch = 0
            images_in_batch += 1
            looks_in_batch += looks
            parts.append(UnitFile(unit=batch, job_file=file, end_frame_index=1, frame_count=1))
            continue
        for one in frame_ranges(
            frame_count=file.media_file.frame_count,
            seek_indexes=file.media_file.seek_indexes,
            max_frames=max(1, settings.UNIT_MAX_FRAMES // looks),
            stride=plan.options.frame_stride,
        ):
            unit = add_unit(WorkUnit.Kind.FRAMES, file)
            parts.append(
                UnitFile(
                    unit=unit,
                    job_file=file,
                    first_frame_index=one.first_frame_index,
                    end_frame_index=one.end_frame_index,
                    frame_count=one.frame_count,
                )
            )
    WorkUnit.objects.bulk_create(units)
    UnitFile.objects.bulk_create(parts)
