"""Reads of jobs, results and workers."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
from django.conf import settings
from django.db.models import Count, Q, QuerySet, Sum
from django.db.models.functions import Coalesce, Now

from accounts.models import User
from billing.selectors import Breach, breaches_of
from datasets.models import MediaFile
from inference.models import (
    FrameResult,
    Job,
    JobFile,
    ModelVersion,
    UnitFile,
    WorkerHeartbeat,
    WorkUnit,
)
from inference.pipeline.options import PRECISIONS
from inference.pipeline.types import Detections
from odproject.core.aggregates import figure_of
from odproject.core.errors import DomainError, NotFoundError

FRAMES_PER_READ = 500
FIRST_FILES = 100  # of a job, told with it
LARGEST_CLASS_ID = np.iinfo(np.int16).max


class JobNotFoundError(NotFoundError):
    """The user has no job of this number."""

    code = "job_not_found"
    title = "Job not found"


class JobNotCompletedError(DomainError):
    """The job has no result to give (yet)."""

    code = "job_not_completed"
    title = "The job is not completed"


class UnknownClassError(DomainError):
    """The job's model does not know a class of this name."""

    code = "unknown_class"
    title = "Unknown class"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, fields=("class_name",))


def user_job(*, user: User, job_id: int) -> Job:
    """The user's job; raises JobNotFoundError (404)."""
    job = Job.objects.filter(user=user, pk=job_id).first()
    if job is None:
        raise JobNotFoundError(f"You have no job {job_id}.")
    return job


def completed_job(*, user: User, job_id: int) -> Job:
    """The user's job with its result; raises JobNotCompletedError (400) besides."""
    job = user_job(user=user, job_id=job_id)
    if job.state != Job.State.COMPLETED:
        raise JobNotCompletedError(f"Job {job_id} is {job.state}, not Completed.")
    return job


def jobs_of(*, user: User) -> list[Job]:
    """The user's jobs, oldest first, with what a list of all of them tells."""
    return list(Job.objects.filter(user=user).only("state", "dataset_id").order_by("pk"))


def with_frames_done(jobs: QuerySet[Job]) -> QuerySet[Job]:
    """Annotate `frames_done`: images and video frames of a job that have a result."""
    return jobs.annotate(frames_done=_frames_done("job_file__job"))


def files_with_frames_done(files: QuerySet[JobFile]) -> QuerySet[JobFile]:
    """Annotate `frames_done`: images and video frames of a file that have a result."""
    return files.annotate(frames_done=_frames_done("job_file"))


def _frames_done(owner: str) -> Coalesce:
    return figure_of(UnitFile.objects.all(), owner=owner, figure=Sum("frames_done"))


def jobs_with_progress(*, user: User) -> QuerySet[Job]:
    """The user's jobs with `frames_done`, their dataset and their model version."""
    jobs = Job.objects.filter(user=user).select_related("model_version", "dataset")
    return with_frames_done(jobs)


def job_with_files(*, user: User, job_id: int) -> Job:
    """The user's job with `frames_done`, `file_count` and its `first_files`, in upload order.

    A dataset has as many files as people upload; how many more there are, the count tells.
    Raises JobNotFoundError (404).
    """
    job = jobs_with_progress(user=user).filter(pk=job_id).first()
    if job is None:
        raise JobNotFoundError(f"You have no job {job_id}.")
    job.file_count = job.files.count()  # type: ignore[attr-defined]
    job.first_files = list(files_of_job(job=job)[:FIRST_FILES])  # type: ignore[attr-defined]
    for file in job.first_files:  # type: ignore[attr-defined]
        file.job = job
    return job


def files_of_job(*, job: Job) -> QuerySet[JobFile]:
    """The job's files in upload order, with `frames_done` and their media files."""
    files = JobFile.objects.filter(job=job).select_related("media_file").order_by("position")
    return files_with_frames_done(files)


def frame_results(*, job: Job, media_file: MediaFile) -> Iterator[FrameResult]:
    """The results of one file, frame by frame, read in slices of constant size."""
    for frames in frame_result_slices(job=job, media_file=media_file):
        yield from frames


def frame_result_slices(*, job: Job, media_file: MediaFile) -> Iterator[list[FrameResult]]:
    """The results of one file in the order of its frames, so many at a time."""
    next_index = 0
    while True:
        rows = list(
            FrameResult.objects.filter(
                job=job, media_file=media_file, frame_index__gte=next_index
            ).order_by("frame_index")[:FRAMES_PER_READ]
        )
        if rows:
            yield rows
        if len(rows) < FRAMES_PER_READ:
            return
        next_index = rows[-1].frame_index + 1


def stored_detections(frame: FrameResult) -> Detections:
    """The detections of a frame result, all that are kept, with their tracks if it is tracked."""
    return Detections(
        np.frombuffer(frame.class_ids, "<i2"),
        np.frombuffer(frame.confidences, "<f4"),
        np.frombuffer(frame.boxes_xyxy, "<f4").reshape(-1, 4),
        None if frame.track_ids is None else np.frombuffer(frame.track_ids, "<i4"),
    )


@dataclass(frozen=True)
class Wanted:
    """Which of the stored detections are asked for; nothing is detected again for it."""

    minimum_confidence: float = 0.0
    class_ids: frozenset[int] | None = None  # None: of every class

    def names_among(self, class_names: list[str]) -> list[str]:
        """Those of a job's classes that are wanted."""
        ids = range(len(class_names)) if self.class_ids is None else sorted(self.class_ids)
        return [class_name(class_names, class_id) for class_id in ids]

    def among(self, frame: FrameResult) -> Detections:
        """Those of a frame, in the same order."""
        found = stored_detections(frame).above(self.minimum_confidence)
        return found if self.class_ids is None else found.of_classes(self.class_ids)


def class_ids_named(*, job: Job, names: Collection[str]) -> frozenset[int] | None:
    """The classes of a job that are shown so; None, which is all of them, for no name.

    Raises UnknownClassError (400).
    """
    class_ids: set[int] = set()
    for name in filter(None, names):
        # Weights that were taken in before names had to differ may have one twice.
        ids = [class_id for class_id, known in enumerate(job.class_names) if known == name]
        if not ids and name in map(str, range(len(job.class_names), LARGEST_CLASS_ID + 1)):
            ids = [int(name)]  # nobody has named it
        if not ids:
            known = ", ".join(job.class_names) or "none that has a name"
            raise UnknownClassError(f"The job has no class {name!r}; it has {known}.")
        class_ids.update(ids)
    return frozenset(class_ids) or None


def displayed_objects(
    frame: FrameResult, class_names: list[str], wanted: Wanted
) -> list[dict[str, Any]]:
    """The detections of a frame that are wanted, as the original API spells them.

    Where the frame was tracked, each has its `track_id` besides, null for a doubtful one.
    """
    found = wanted.among(frame)
    objects: list[dict[str, Any]] = [
        {
            "name": class_name(class_names, class_id),
            "class": class_id,
            "confidence": round(confidence, 5),
            "box": {
                "x1": round(x1, 2),
                "y1": round(y1, 2),
                "x2": round(x2, 2),
                "y2": round(y2, 2),
            },
        }
        for class_id, confidence, (x1, y1, x2, y2) in zip(
            # Python's own numbers, which are several times faster one by one.
            found.class_ids.tolist(),
            found.confidences.tolist(),
            found.boxes_xyxy.tolist(),
            strict=True,
        )
    ]
    if found.track_ids is not None:
        for one, track_id in zip(objects, found.track_ids.tolist(), strict=True):
            one["track_id"] = track_id or None
    return objects


def class_name(class_names: list[str], class_id: int) -> str:
    """What a job's class is called; its number if nobody has said."""
    return class_names[class_id] if class_id < len(class_names) else str(class_id)


def waiting_units(*, now: datetime) -> QuerySet[WorkUnit]:
    """Units that a worker may take: they wait, and do not pause."""
    pauses_no_more = Q(waits_until=None) | Q(waits_until__lte=now)
    return WorkUnit.objects.filter(pauses_no_more, state=WorkUnit.State.PENDING)


def _is_heard_of_lately() -> Q:
    return Q(last_seen_at__gte=Now() - timedelta(seconds=settings.WORKER_SILENT_SECONDS))


def with_liveness(workers: QuerySet[WorkerHeartbeat]) -> QuerySet[WorkerHeartbeat]:
    """Annotate `is_alive`: whether a worker was heard of lately."""
    return workers.annotate(is_alive=_is_heard_of_lately())


def ready_workers() -> list[WorkerHeartbeat]:
    """Workers heard of lately that have a model loaded."""
    alive = WorkerHeartbeat.objects.filter(_is_heard_of_lately())
    return [worker for worker in alive if worker.loaded_weights]


def ready_precisions() -> set[str]:
    """The precisions that workers offer now, and those that need no offer."""
    return {"auto", "fp32"}.union(*(worker.precisions for worker in ready_workers()))


def offered_precisions(version: ModelVersion, *, ready: Collection[str] | None = None) -> list[str]:
    """The precisions in which a job with this model version would be run now.

    `ready`: what `ready_precisions` said, for whoever asks about several versions.
    """
    offered = ready_precisions() if ready is None else ready
    return [name for name in PRECISIONS if name in offered and name in version.precisions]


def version_names(*, weights: list[str]) -> list[str]:
    """What weights of these digests are called; the beginning of a digest that has no name."""
    rows = ModelVersion.objects.filter(weights_sha256__in=weights).order_by("pk")
    names: dict[str, list[str]] = {}
    for sha256, version in rows.values_list("weights_sha256", "version"):
        names.setdefault(sha256, []).append(version)
    return [name for one in weights for name in names.get(one, [one[:12]])]


def file_counts(*, job: Job) -> dict[str, int]:
    """How many files of a job are in each state."""
    states = JobFile.objects.filter(job=job).order_by("state").values("state")
    return {row["state"]: row["count"] for row in states.annotate(count=Count("pk"))}


SETTLEMENT_INVARIANT = "every finished job has exactly one settlement, every other one none"
# The other way round as well: a hold whose job is gone would keep its tokens for ever.
SETTLEMENT_QUERY = """
    SELECT job.id, job.state, hold.state, job.charged_hundredths, hold.captured_hundredths,
           hold.idempotency_key
    FROM inference_job job FULL JOIN billing_hold hold ON hold.id = job.hold_id
    WHERE hold.id IS NULL OR job.id IS NULL OR hold.user_id <> job.user_id
       OR (job.finished_at IS NULL) <> (hold.state = 'open')
       OR (job.finished_at IS NOT NULL AND job.charged_hundredths <> hold.captured_hundredths)
       OR job.quoted_hundredths <> hold.amount_hundredths
       OR (SELECT coalesce(sum(t.amount_hundredths), 0) FROM billing_transfer t
           WHERE t.job_id = job.id AND t.kind = 'capture') <> coalesce(job.charged_hundredths, 0)
       OR (SELECT coalesce(sum(t.amount_hundredths), 0) FROM billing_transfer t
           WHERE t.job_id = job.id AND t.kind IN ('capture', 'release'))
          <> CASE WHEN job.finished_at IS NULL THEN 0 ELSE job.quoted_hundredths END
"""


def settlement_breaches() -> list[Breach]:
    """Jobs whose money does not fit their state, and holds of no job; empty is good news."""
    return breaches_of({SETTLEMENT_INVARIANT: SETTLEMENT_QUERY})
