"""Every write to jobs and work units after their submission.

A work unit is claimed with a lease and an attempt number. Each later write of the worker names
that number; once somebody else has the unit, or the job is aborted, such a write changes no row
and the worker stops. Locks are taken in one order: user, dataset, job, work unit, ledger, event
stream.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial

from django.conf import settings
from django.db import OperationalError, connection, transaction
from django.db.models import BigIntegerField, Exists, F, OuterRef, Q, QuerySet, Subquery, Sum
from django.db.models.functions import Cast, Now

from accounts.models import User
from accounts.services import append_event
from billing.ledger import settle_hold
from billing.prices import tokens
from datasets.models import Dataset
from datasets.services import lock_dataset, mark_blocked, record_block
from inference import queue
from inference.models import (
    FrameResult,
    Job,
    JobFile,
    UnitFile,
    WorkerHeartbeat,
    WorkUnit,
    job_payload,
    progress_percent,
)
from inference.selectors import waiting_units
from odproject.core.clock import database_now
from odproject.core.errors import ConflictError
from odproject.core.publishing import publish

logger = logging.getLogger(__name__)
UNITS_PER_SWEEP = 500
JOBS_PER_SWEEP = 100
DEADLINE_PASSED = "Aborted because its deadline has passed."


class JobFinishedError(ConflictError):
    """The job has ended already."""

    code = "job_finished"
    title = "The job has ended"


class LeaseLostError(Exception):
    """The work unit is no longer this worker's: stop, and write nothing."""


@dataclass(frozen=True)
class Claim:
    """A worker's right to a work unit: who, which, and the attempt number that fences."""

    unit_id: int
    attempt: int
    job_id: int
    user_id: int


@dataclass(frozen=True)
class FileFault:
    """Why a file cannot be processed: a stable code and a sentence for its owner."""

    code: str
    detail: str


# -- hints to workers ----------------------------------------------------------------------------


def enqueue_units(*, job_id: int | None = None, now: datetime | None = None) -> int:
    """Send hints for units that wait, of one job or all; returns how many were sent.

    Of each job only the first few waiting units are in the queue, so that one huge job does not
    stand in front of everybody else's. A hint that got lost is repeated after a while; one that
    comes late or twice does nothing, because claiming decides.
    """
    now = now or database_now()
    stale = now - timedelta(seconds=settings.UNIT_HINT_SECONDS)
    sent = 0
    for unit_id, enqueued_at in _first_waiting_units(now=now, job_id=job_id):
        if enqueued_at is not None and stale < enqueued_at <= now:
            continue
        if not queue.send_unit(unit_id):
            break  # the broker is away; the sweeper comes again
        WorkUnit.objects.filter(pk=unit_id).update(enqueued_at=now)
        sent += 1
    return sent


def _first_waiting_units(*, now: datetime, job_id: int | None) -> list[tuple[int, datetime | None]]:
    """The first few waiting units of each unfinished job, and when each was hinted last.

    One question however many jobs there are: every two seconds the sweeper asks it.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            """
            SELECT unit.id, unit.enqueued_at
            FROM inference_job job CROSS JOIN LATERAL (
                SELECT id, enqueued_at, position FROM inference_workunit
                WHERE job_id = job.id AND state = %(pending)s
                  AND (waits_until IS NULL OR waits_until <= %(now)s)
                ORDER BY position, id LIMIT %(window)s
            ) unit
            WHERE job.state = ANY(%(unfinished)s) AND (%(job)s::bigint IS NULL OR job.id = %(job)s)
            ORDER BY job.id, unit.position, unit.id
            """,
            {
                "pending": WorkUnit.State.PENDING.value,
                "now": now,
                "window": settings.UNITS_ENQUEUED_PER_JOB,
                "unfinished": [state.value for state in Job.UNFINISHED],
                "job": job_id,
            },
        )
        return list(cursor.fetchall())


def next_unit(*, now: datetime | None = None) -> int | None:
    """The waiting unit whose turn it is, or None: users take turns, and so do a user's jobs.

    It is of the user who was served longest ago, or never, and of that user's job which was; none
    is of a job whose deadline has passed. A hint says only that something waits: where units take
    longer than hints live, the ones that a worker finds are the sweeper's latest, and those begin
    with the oldest job (docs/adr/0013).
    """
    now = now or database_now()
    waiting = waiting_units(now=now)
    served = Job.objects.filter(user=OuterRef("user"), served_at__isnull=False)
    jobs = Job.objects.filter(
        Exists(waiting.filter(job=OuterRef("pk"))),
        Q(deadline_at=None) | Q(deadline_at__gt=now),
        state__in=Job.UNFINISHED,
    ).annotate(user_served_at=Subquery(served.order_by("-served_at").values("served_at")[:1]))
    job_id = (
        jobs.order_by(
            F("user_served_at").asc(nulls_first=True), F("served_at").asc(nulls_first=True), "pk"
        )
        .values_list("pk", flat=True)
        .first()
    )
    if job_id is None:
        return None
    units = waiting.filter(job_id=job_id).order_by("position", "pk")
    return units.values_list("pk", flat=True).first()


# -- the life of a work unit ---------------------------------------------------------------------


def _lease() -> timedelta:
    return timedelta(seconds=settings.UNIT_LEASE_SECONDS)


@transaction.atomic
def claim_unit(*, unit_id: int, worker_name: str) -> Claim | None:
    """Take a waiting unit; None when it is not there to be taken."""
    job = (
        Job.objects.select_for_update(no_key=True)
        .filter(units__pk=unit_id, state__in=Job.UNFINISHED)
        .first()
    )
    if job is None:
        return None
    now = database_now()
    if job.deadline_at is not None and job.deadline_at <= now:
        return None  # the sweeper is about to abort it
    claimed = WorkUnit.objects.filter(pk=unit_id, state=WorkUnit.State.PENDING).update(
        state=WorkUnit.State.RUNNING,
        attempt=F("attempt") + 1,
        tries=F("tries") + 1,
        worker_name=worker_name,
        lease_expires_at=now + _lease(),
    )
    if not claimed:
        return None
    unit = WorkUnit.objects.get(pk=unit_id)
    if unit.attempt > 1:
        _forget_frames(unit)
    JobFile.objects.filter(parts__unit=unit, state=JobFile.State.PENDING).update(
        state=JobFile.State.RUNNING
    )
    is_first = job.state == Job.State.PENDING
    job.served_at = now
    if is_first:
        job.state = Job.State.RUNNING
        job.started_at = now
    job.save(update_fields=["state", "started_at", "served_at"])
    if is_first:
        append_event(user_id=job.user_id, kind="job.started", payload=job_payload(job))
    return Claim(unit_id=unit_id, attempt=unit.attempt, job_id=job.pk, user_id=job.user_id)


def _forget_frames(unit: WorkUnit) -> None:
    """Take back what an earlier attempt did: readable, but not charged, would it be otherwise."""
    parts = UnitFile.objects.filter(unit=unit).select_related("job_file")
    for part in parts.filter(frame_count__gt=0):
        FrameResult.objects.filter(
            job_id=unit.job_id,
            media_file_id=part.job_file.media_file_id,
            frame_index__gte=part.first_frame_index,
            frame_index__lt=part.end_frame_index,
        ).delete()
    parts.update(frames_done=0)


def _own_unit(claim: Claim) -> QuerySet[WorkUnit]:
    return WorkUnit.objects.filter(
        pk=claim.unit_id, attempt=claim.attempt, state=WorkUnit.State.RUNNING
    )


def renew_lease(*, claim: Claim) -> bool:
    """Keep a unit for as long as a lease lasts from now; returns whether it is still ours."""
    return bool(_own_unit(claim).update(lease_expires_at=Now() + _lease()))


@transaction.atomic
def store_frames(
    *, claim: Claim, frames: Sequence[FrameResult], frames_done: Mapping[int, int]
) -> None:
    """Write a batch of frame results and renew the lease; raises LeaseLostError.

    `frames_done`: for each part of the unit that the batch belongs to, by the part's number, how
    many of its frames are done now. Writing the same frames again changes nothing else.
    """
    if not renew_lease(claim=claim):
        raise LeaseLostError(f"Work unit {claim.unit_id} is no longer attempt {claim.attempt}.")
    for count in set(frames_done.values()):
        part_ids = [part_id for part_id, done in frames_done.items() if done == count]
        UnitFile.objects.filter(unit_id=claim.unit_id, pk__in=part_ids).update(frames_done=count)
    FrameResult.objects.bulk_create(
        frames,
        update_conflicts=True,
        unique_fields=["job", "media_file", "frame_index"],
        update_fields=["time_seconds", "class_ids", "confidences", "boxes_xyxy", "class_counts"],
    )


@transaction.atomic
def store_track_ids(*, claim: Claim, frames: Sequence[FrameResult]) -> None:
    """Write the `track_ids` of frame results and renew the lease; raises LeaseLostError.

    Writing them again changes nothing.
    """
    if not renew_lease(claim=claim):
        raise LeaseLostError(f"Work unit {claim.unit_id} is no longer attempt {claim.attempt}.")
    FrameResult.objects.bulk_update(frames, ["track_ids"])


def publish_progress(*, claim: Claim) -> None:
    """Tell the user's sockets how far the job is; a hint that may get lost."""
    parts = UnitFile.objects.filter(unit__job_id=claim.job_id)
    done = parts.aggregate(done=Sum("frames_done"))["done"]
    frame_count = Job.objects.values_list("frame_count", flat=True).get(pk=claim.job_id)
    publish(
        claim.user_id,
        {
            "type": "progress.hint",
            "job_id": claim.job_id,
            "frames_done": done or 0,
            "frame_count": frame_count,
            "progress_percent": progress_percent(frames_done=done or 0, frame_count=frame_count),
        },
    )


@transaction.atomic
def complete_unit(
    *, claim: Claim, annotated: Mapping[int, str], faults: Mapping[int, FileFault] | None = None
) -> None:
    """End a unit that ends its files, and the job with its last unit; raises LeaseLostError.

    `annotated`: the stored name of each file that ends well, by the number of the job's file.
    `faults`: the files that cannot be processed; they cost nothing.
    """
    job, unit = _locked_own_unit(claim)
    _end_unit(unit, WorkUnit.State.COMPLETED if annotated else WorkUnit.State.FAILED)
    files = JobFile.objects.filter(job=job, state__in=JobFile.UNFINISHED)
    for file_id, name in annotated.items():
        files.filter(pk=file_id).update(state=JobFile.State.COMPLETED, annotated=name)
    for file_id, fault in (faults or {}).items():
        _fail_file(file_id, fault)
    _end_job_with_its_last_unit(job)


@transaction.atomic
def complete_range(*, claim: Claim, segment: str) -> None:
    """End one range of a video; after the last one its finish is queued. Raises LeaseLostError.

    `segment`: the stored name of the annotated range; empty where the finish draws.
    """
    job, unit = _locked_own_unit(claim)
    _end_unit(unit, WorkUnit.State.COMPLETED)
    part = UnitFile.objects.select_related("job_file").get(unit=unit)
    UnitFile.objects.filter(pk=part.pk).update(segment=segment)
    others = WorkUnit.objects.filter(parts__job_file=part.job_file, state__in=WorkUnit.UNFINISHED)
    if not others.exists():
        finish = WorkUnit.objects.create(job=job, kind=WorkUnit.Kind.FINISH, position=unit.position)
        UnitFile.objects.create(
            unit=finish, job_file=part.job_file, end_frame_index=0, frame_count=0
        )
    transaction.on_commit(lambda: enqueue_units(job_id=job.pk), robust=True)


@transaction.atomic
def fail_unit(*, claim: Claim, fault: FileFault) -> None:
    """End a unit whose file cannot be processed, and the file; raises LeaseLostError."""
    job, unit = _locked_own_unit(claim)
    _fail_unit(unit, fault)
    _end_job_with_its_last_unit(job)


def _locked_own_unit(claim: Claim) -> tuple[Job, WorkUnit]:
    """The job, under its lock, and the unit that is still the worker's; else LeaseLostError."""
    job = locked_job(claim.job_id)
    unit = _own_unit(claim).select_for_update(no_key=True).first()
    if unit is None:
        raise LeaseLostError(f"Work unit {claim.unit_id} is no longer attempt {claim.attempt}.")
    return job, unit


def _end_unit(unit: WorkUnit, state: WorkUnit.State) -> None:
    unit.state = state
    unit.lease_expires_at = None
    unit.save(update_fields=["state", "lease_expires_at"])


def _fail_unit(unit: WorkUnit, fault: FileFault) -> None:
    """Fail a unit with those of its files that have not ended; the job is locked."""
    _end_unit(unit, WorkUnit.State.FAILED)
    file_ids = JobFile.objects.filter(parts__unit=unit, state__in=JobFile.UNFINISHED)
    for file_id in list(file_ids.values_list("pk", flat=True)):
        _fail_file(file_id, fault)


def _fail_file(file_id: int, fault: FileFault) -> None:
    """Fail a file of a locked job: what was found in it goes, and it costs nothing."""
    file = JobFile.objects.get(pk=file_id)
    file.state = JobFile.State.FAILED
    file.error_code = fault.code[:60]
    file.error = fault.detail[:500]
    file.save(update_fields=["state", "error_code", "error"])
    # Its other ranges end, and are fenced by that, before their results are removed.
    WorkUnit.objects.filter(parts__job_file=file, state__in=WorkUnit.UNFINISHED).exclude(
        kind=WorkUnit.Kind.IMAGES
    ).update(state=WorkUnit.State.ABORTED, lease_expires_at=None)
    UnitFile.objects.filter(job_file=file).update(frames_done=0)
    FrameResult.objects.filter(job_id=file.job_id, media_file_id=file.media_file_id).delete()


@transaction.atomic
def hand_back_unit(*, claim: Claim, counts_as_try: bool, pause: timedelta | None = None) -> None:
    """Put a unit back in the queue: the worker stops, or something broke that may work later.

    A unit that has been tried often enough fails instead. `pause`: how long to wait before it is
    worth to be tried again. Losing the lease meanwhile is fine.
    """
    job = locked_job(claim.job_id)
    unit = _own_unit(claim).first()
    if unit is not None:
        unit.waits_until = None if pause is None else database_now() + pause
        _put_back(job, unit, counts_as_try=counts_as_try)


def locked_job(job_id: int) -> Job:
    """The job under a lock: units that end at the same time take turns, and one is the last."""
    return Job.objects.select_for_update(no_key=True).get(pk=job_id)


def _put_back(job: Job, unit: WorkUnit, *, counts_as_try: bool) -> None:
    """Return a running unit to the queue, or fail it after its last try; the job is locked."""
    if counts_as_try and unit.tries >= settings.UNIT_MAX_ATTEMPTS:
        detail = f"The file could not be processed in {unit.tries} attempts."
        _fail_unit(unit, FileFault("too_many_attempts", detail))
        _end_job_with_its_last_unit(job)
        return
    unit.state = WorkUnit.State.PENDING
    unit.lease_expires_at = None
    unit.enqueued_at = None
    unit.tries -= 0 if counts_as_try else 1
    unit.save(update_fields=["state", "lease_expires_at", "enqueued_at", "waits_until", "tries"])
    if counts_as_try and unit.kind == WorkUnit.Kind.IMAGES:
        _split_batch(unit)
    transaction.on_commit(lambda: enqueue_units(job_id=job.pk), robust=True)


def _split_batch(unit: WorkUnit) -> None:
    """Give every image of a batch that broke off a unit of its own, so that one fails alone."""
    parts = list(UnitFile.objects.filter(unit=unit).select_related("job_file")[1:])
    for part in parts:
        part.unit = WorkUnit.objects.create(
            job_id=unit.job_id,
            kind=unit.kind,
            position=part.job_file.position,
            attempt=unit.attempt,
            tries=unit.tries,
            waits_until=unit.waits_until,
        )
        part.save(update_fields=["unit"])


# -- the end of a job ----------------------------------------------------------------------------


def _end_job_with_its_last_unit(job: Job) -> None:
    """End and settle a locked job when none of its units is left to do."""
    units = WorkUnit.objects.filter(job=job)
    if units.filter(state__in=WorkUnit.UNFINISHED).exists():
        transaction.on_commit(lambda: enqueue_units(job_id=job.pk), robust=True)
        return
    files = JobFile.objects.filter(job=job)
    if files.filter(state=JobFile.State.COMPLETED).exists():
        _end_job(job, Job.State.COMPLETED)
    else:
        first_error = files.values_list("error", flat=True)[0]
        _end_job(job, Job.State.FAILED, error=first_error)


def _end_job(job: Job, state: Job.State, *, error: str = "") -> None:
    """Settle a locked job: capture what was really processed, release the rest."""
    processed = UnitFile.objects.filter(unit__job=job).aggregate(
        cost=Sum(Cast("frames_done", BigIntegerField()) * F("job_file__frame_price_hundredths"))
    )
    now = database_now()
    job.state = state
    job.error = error
    job.finished_at = now
    job.charged_hundredths = processed["cost"] or 0
    if job.hold_id is None:
        raise RuntimeError(f"Job {job.pk} has no hold.")
    settle_hold(
        hold_id=job.hold_id,
        captured_hundredths=job.charged_hundredths,
        job_id=job.pk,
        now=now,
    )
    job.save(update_fields=["state", "error", "finished_at", "charged_hundredths"])
    append_event(
        user_id=job.user_id,
        kind=f"job.{state.lower()}",
        payload=job_payload(job, charged_tokens=tokens(job.charged_hundredths), error=error),
    )


@transaction.atomic
def abort_job(*, job_id: int, reason: str = "") -> None:
    """End a job now: frames finished so far are charged and stay readable.

    Raises JobFinishedError (409) when it has ended.
    """
    job = locked_job(job_id)
    if job.state not in Job.UNFINISHED:
        raise JobFinishedError(f"Job {job_id} is {job.state} already.")
    _abort(job, reason)


def _abort(job: Job, reason: str) -> None:
    """End a locked, unfinished job."""
    WorkUnit.objects.filter(job=job, state__in=WorkUnit.UNFINISHED).update(
        state=WorkUnit.State.ABORTED, lease_expires_at=None
    )
    JobFile.objects.filter(job=job, state__in=JobFile.UNFINISHED).update(
        state=JobFile.State.ABORTED
    )
    _end_job(job, Job.State.ABORTED, error=reason)


@transaction.atomic
def block_dataset_and_abort_pending_jobs(*, dataset: Dataset, actor: User, reason: str) -> None:
    """Block a dataset; its pending jobs are aborted, its running ones finish.

    The pending jobs are locked before anything of the ledger or the event stream is, and once
    locked none of them can begin. Those that hold something end first: what costs nothing locks
    the event stream only, which comes last. Raises AlreadyModeratedError (409).
    """
    lock_dataset(dataset_id=dataset.pk)
    pending = list(
        Job.objects.select_for_update(no_key=True)
        .filter(dataset=dataset, state=Job.State.PENDING)
        .order_by("-quoted_hundredths", "pk")
    )
    mark_blocked(dataset=dataset, reason=reason)
    for job in pending:
        _abort(job, f"The dataset was blocked: {reason}")
    record_block(dataset=dataset, actor=actor, reason=reason)


def abort_overdue_jobs(*, now: datetime | None = None) -> int:
    """Abort jobs whose deadline has passed, as their owners would; returns how many.

    One by one: a job that somebody is at work on, or that cannot be aborted, is left for the next
    time and holds up no other.
    """
    overdue = Job.objects.filter(
        state__in=Job.UNFINISHED, deadline_at__lte=now or database_now()
    ).order_by("deadline_at", "pk")
    return _one_by_one(
        (f"Job {job_id}, whose deadline has passed,", user_id, partial(_abort_overdue_job, job_id))
        for job_id, user_id in list(overdue.values_list("pk", "user_id")[:JOBS_PER_SWEEP])
    )


@transaction.atomic
def _abort_overdue_job(job_id: int) -> bool:
    """Abort a job unless it has ended meanwhile, or is locked just now; returns whether it was."""
    unlocked = Job.objects.select_for_update(no_key=True, skip_locked=True)
    job = unlocked.filter(pk=job_id, state__in=Job.UNFINISHED).first()
    if job is None:
        return False
    _abort(job, DEADLINE_PASSED)
    return True


# -- recovery ------------------------------------------------------------------------------------


def sweep(*, now: datetime | None = None) -> int:
    """Put units of dead workers back, and repeat lost hints; returns how many units moved.

    Jobs whose deadline has passed are aborted before, so that none of their units moves.
    """
    now = now or database_now()
    abort_overdue_jobs(now=now)
    expired = WorkUnit.objects.filter(state=WorkUnit.State.RUNNING, lease_expires_at__lt=now)
    returned = _return_units(expired, lease_ended_before=now)
    return returned + (0 if queue.is_crowded() else enqueue_units(now=now))


def reclaim_units(*, worker_name: str) -> int:
    """Put back the units of an earlier life of this worker, without waiting for their leases.

    One process at a time runs under a worker's name, and it runs one unit at a time: what is
    still leased to the name when a worker starts belongs to a dead one.
    """
    orphaned = WorkUnit.objects.filter(state=WorkUnit.State.RUNNING, worker_name=worker_name)
    return _return_units(orphaned, lease_ended_before=None)


def _return_units(units: QuerySet[WorkUnit], *, lease_ended_before: datetime | None) -> int:
    """Put units back one by one, so that one that cannot be does not hold up the others."""
    rows = units.order_by("pk").values_list("pk", "attempt", "job_id")[:UNITS_PER_SWEEP]
    return _one_by_one(
        (
            f"Work unit {unit_id} of job {job_id}",
            job_id,
            partial(_return_unit, unit_id, attempt, job_id, lease_ended_before),
        )
        for unit_id, attempt, job_id in list(rows)
    )


def _one_by_one(tasks: Iterable[tuple[str, int, Callable[[], bool]]]) -> int:
    """Do what a sweep finds to do, and return how much was done; nothing holds up the rest.

    Of each task: what it is about, the id of the job or user whose rows it has to lock, and what
    does it in a transaction of its own. Where rows are locked one wait is enough: the other tasks
    that need them are left for the next sweep.
    """
    done = 0
    locked_ids: set[int] = set()
    for about, holder_id, act in tasks:
        if holder_id in locked_ids:
            continue
        try:
            done += act()
        except OperationalError as error:
            if not connection.is_usable():
                raise  # the database is away: the next sweep tries again
            locked_ids.add(holder_id)
            logger.warning("%s is left for later: %s", about, error)
        except Exception:
            logger.exception("%s is left for later", about)
    return done


@transaction.atomic
def _return_unit(
    unit_id: int, attempt: int, job_id: int, lease_ended_before: datetime | None
) -> bool:
    job = locked_job(job_id)
    units = WorkUnit.objects.select_for_update(no_key=True).filter(
        pk=unit_id, attempt=attempt, state=WorkUnit.State.RUNNING
    )
    if lease_ended_before is not None:  # it may have been renewed meanwhile
        units = units.filter(lease_expires_at__lt=lease_ended_before)
    unit = units.first()
    if unit is None:
        return False
    _put_back(job, unit, counts_as_try=True)
    return True


def record_heartbeat(
    *,
    worker_name: str,
    loaded_weights: Sequence[str],
    device: str,
    precisions: Sequence[str] = (),
) -> None:
    """Note that a worker is alive, what it has loaded and in which precisions it is fast."""
    WorkerHeartbeat.objects.update_or_create(
        name=worker_name,
        defaults={
            "loaded_weights": list(loaded_weights),
            "device": device,
            "precisions": list(precisions),
            "last_seen_at": database_now(),
        },
    )
