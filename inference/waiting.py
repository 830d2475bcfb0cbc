"""How long a job that has not begun will wait: roughly, from what workers did lately."""

from dataclasses import dataclass
from datetime import datetime

from django.db.models import Count, F, Min, OuterRef, Subquery, Sum

from accounts.models import User
from inference.models import Job, UnitFile, WorkUnit
from inference.selectors import ready_workers, waiting_units
from odproject.core.clock import database_now

JOBS_LOOKED_AT = 20


@dataclass(frozen=True)
class Wait:
    """How many units are taken before a job's first one, and the seconds until it begins.

    `seconds` is None where nobody can say: no worker is there, or none has finished a job yet.
    """

    turns_ahead: int
    seconds: float | None


@dataclass(frozen=True)
class _Queue:
    """What a user has waiting: units, their images and frames together, and the last turn."""

    user_id: int
    units: int
    frames: int
    first_job_id: int
    served_at: datetime | None

    @property
    def place(self) -> tuple[float, int]:
        """Whose turn comes first: of whom was served longest ago, or never."""
        return (self.served_at.timestamp() if self.served_at else 0.0, self.first_job_id)


def wait_of(job: Job) -> Wait | None:
    """The wait of a pending job; None for one that has begun.

    Users take turns unit by unit, and so do the jobs of one user, of which those that never had
    one come first (`services.next_unit`). So each of the user's earlier pending jobs takes a turn,
    and meanwhile every other user as many, and one more if theirs comes before.
    """
    if job.state != Job.State.PENDING:
        return None
    queues = {queue.user_id: queue for queue in _queues()}
    own = queues.pop(job.user_id, None)
    if own is None:  # it has begun, or ended, in this moment
        return None
    earlier = Job.objects.filter(user_id=job.user_id, state=Job.State.PENDING, pk__lt=job.pk)
    turns = {own: earlier.count()}
    for other in queues.values():
        turns[other] = min(other.units, turns[own] + int(other.place < own.place))
    frames = _frames_being_looked_at() + sum(
        count * queue.frames / queue.units for queue, count in turns.items() if count
    )
    rate = _frames_per_second()
    return Wait(
        turns_ahead=sum(turns.values()), seconds=None if rate is None else round(frames / rate, 1)
    )


def _queues() -> list[_Queue]:
    """What waits, user by user."""
    waiting = list(
        # That the jobs are unfinished too spares the units of all that ever were.
        UnitFile.objects.filter(
            unit__job__state__in=Job.UNFINISHED, unit__in=waiting_units(now=database_now())
        )
        .order_by()
        .values(user_id=F("unit__job__user"))
        .annotate(
            units=Count("unit", distinct=True),
            frames=Sum("frame_count"),
            first_job_id=Min("unit__job"),
        )
    )
    served = Job.objects.filter(user=OuterRef("pk"), served_at__isnull=False)
    users = User.objects.filter(pk__in=[row["user_id"] for row in waiting]).annotate(
        served_at=Subquery(served.order_by("-served_at").values("served_at")[:1])
    )
    served_at = dict(users.values_list("pk", "served_at"))
    return [_Queue(**row, served_at=served_at[row["user_id"]]) for row in waiting]


def _frames_being_looked_at() -> int:
    """Images and frames that workers have begun with and not finished."""
    running = UnitFile.objects.filter(
        unit__job__state__in=Job.UNFINISHED, unit__state=WorkUnit.State.RUNNING
    )
    left = running.aggregate(left=Sum(F("frame_count") - F("frames_done")))["left"]
    return left or 0


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
