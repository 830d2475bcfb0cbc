"""How long a job that has not begun will wait: roughly, from what workers did lately."""

from dataclasses import dataclass

from django.db.models import Count, F, Sum

from inference.models import Job, UnitFile, WorkUnit
from inference.selectors import ready_workers

JOBS_LOOKED_AT = 20


@dataclass(frozen=True)
class Wait:
    """How many unfinished jobs came before, and the seconds until this one begins.

    `seconds` is None where nobody can say: no worker is there, or none has finished a job yet.
    """

    jobs_ahead: int
    seconds: float | None


def wait_of(job: Job) -> Wait | None:
    """The wait of a pending job; None for one that has begun."""
    if job.state != Job.State.PENDING:
        return None
    ahead = Job.objects.filter(state__in=Job.UNFINISHED, pk__lt=job.pk)
    frames_ahead, rate = _frames_ahead(job), _frames_per_second()
    return Wait(
        jobs_ahead=ahead.count(), seconds=None if rate is None else round(frames_ahead / rate, 1)
    )


def _frames_ahead(job: Job) -> float:
    """Images and frames that are looked at before the job's turn comes.

    Jobs take turns (`services.next_unit`), so of each one that came before a unit is waited for.
    """
    # That the jobs are unfinished too spares the units of all that ever were.
    waiting = (
        UnitFile.objects.filter(
            unit__job__lt=job.pk,
            unit__job__state__in=Job.UNFINISHED,
            unit__state__in=WorkUnit.UNFINISHED,
        )
        .order_by()
        .values("unit__job_id")
        .annotate(
            units=Count("unit", distinct=True), frames=Sum(F("frame_count") - F("frames_done"))
        )
    )
    return sum(row["frames"] / row["units"] for row in waiting)


def _frames_per_second() -> float | None:
    """What all workers together did lately; None when nobody knows."""
    lately = Job.objects.filter(state=Job.State.COMPLETED).order_by("-finished_at")
    frames, seconds = 0, 0.0
    for job in lately[:JOBS_LOOKED_AT]:
        if job.started_at and job.finished_at:
            frames += job.frame_count
            seconds += (job.finished_at - job.started_at).total_seconds()
    workers = len(ready_workers())
    return workers * frames / seconds if frames and seconds > 0 and workers else None
