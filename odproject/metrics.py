"""What a monitor draws and warns of, in the text format of Prometheus.

Every figure is read from the database when it is asked for, so each web process tells the same.
"""

import secrets
from collections.abc import Iterator
from pathlib import Path

from django.conf import settings
from django.core.files.storage import FileSystemStorage, default_storage
from django.http import HttpRequest, HttpResponse
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from accounts.selectors import waiting_and_failing_webhooks
from inference.load import Load, load_now
from odproject.core.api import only_read, plain_problem
from odproject.core.room import free_bytes


@only_read
def metrics(request: HttpRequest) -> HttpResponse:
    """The figures for who sends `OD_METRICS_TOKEN` as a bearer token: 401 without it.

    Where that is not set there is nothing to see (404).
    """
    if not settings.METRICS_TOKEN:
        return plain_problem(404)
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    is_right = secrets.compare_digest(token.strip().encode(), settings.METRICS_TOKEN.encode())
    if scheme.lower() != "bearer" or not is_right:
        refusal = plain_problem(401)
        refusal["WWW-Authenticate"] = "Bearer"
        return refusal
    registry = CollectorRegistry()
    registry.register(_Figures())
    return HttpResponse(generate_latest(registry), content_type=CONTENT_TYPE_LATEST)


class _Figures(Collector):
    def collect(self) -> Iterator[Metric]:
        """Every figure, asked for now."""
        load = load_now()
        yield _by_state("jobs", "Jobs that have not ended.", load.jobs)
        yield _by_state("jobs_ended_last_hour", "Jobs that ended within an hour.", load.ended_jobs)
        yield _by_state("work_units", "Work units of such jobs that are left.", load.units)
        yield from _gauges(load)
        waiting, failing = waiting_and_failing_webhooks()
        yield _gauge("webhooks_waiting", "Webhooks with events that wait to be sent.", waiting)
        yield _gauge("webhooks_failing", "Webhooks that failed at their last attempt.", failing)
        if isinstance(default_storage, FileSystemStorage):
            room = free_bytes(Path(default_storage.location))
            yield _gauge("storage_free_bytes", "Room on the disk of uploads and results.", room)


def _gauges(load: Load) -> Iterator[Metric]:
    yield _gauge("workers", "Workers heard of lately that have a model loaded.", load.workers)
    yield _gauge(
        "oldest_pending_job_seconds",
        "How long the oldest job has waited that no worker has begun with; 0 without one.",
        load.oldest_pending_seconds,
    )
    yield _gauge(
        "overdue_leases",
        "Work units whose worker is silent and that nobody has taken back: the sweeper's work.",
        load.overdue_leases,
    )


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"odproject_{name}", text, value=value)


def _by_state(name: str, text: str, counts: dict[str, int]) -> Metric:
    family = GaugeMetricFamily(f"odproject_{name}", text, labels=["state"])
    for state, count in counts.items():
        family.add_metric([state.lower()], count)
    return family
