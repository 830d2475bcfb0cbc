"""How busy the service is: what waits, what runs, and who is there to do it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Count, Min, QuerySet

from inference.models import Job, WorkUnit
from inference.selectors import ready_workers
from odproject.core.clock import database_now


@dataclass(frozen=True)
class Load:
    """Counts of this moment; those by state have every state, also with 0."""

    jobs: dict[str, int]
    ended_jobs: dict[str, int]
    units: dict[str, int]
    workers: int
    oldest_pending_seconds: float
    overdue_leases: int


def load_now() -> Load:
    """The load; every query looks at what is unfinished or has ended within an hour only."""
    now = database_now()
    unfinished = Job.objects.filter(state__in=Job.UNFINISHED)
    ended = Job.objects.filter(finished_at__gte=now - timedelta(hours=1))
    # Units of a job that was aborted may still say that they wait.
    units = WorkUnit.objects.filter(job__state__in=Job.UNFINISHED, state__in=WorkUnit.UNFINISHED)
    waits_since = unfinished.filter(state=Job.State.PENDING).aggregate(first=Min("created_at"))
    first = waits_since["first"]
    ended_states = tuple(state for state in Job.State if state not in Job.UNFINISHED)
    return Load(
        jobs=_by_state(unfinished, Job.UNFINISHED),
        ended_jobs=_by_state(ended, ended_states),
        units=_by_state(units, WorkUnit.UNFINISHED),
        workers=len(ready_workers()),
        oldest_pending_seconds=(now - first).total_seconds() if first else 0.0,
        overdue_leases=units.filter(lease_expires_at__lt=now).count(),
    )


def _by_state(rows: QuerySet[Any], states: Iterable[str]) -> dict[str, int]:
    counts = dict(rows.order_by().values_list("state").annotate(count=Count("pk")))
    return {str(state): counts.get(str(state), 0) for state in states}
