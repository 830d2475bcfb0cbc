"""Is the process alive, and is the service ready to work?"""

from collections.abc import Callable

import redis
from django.db import DatabaseError, InterfaceError, connection
from django.http import HttpRequest, HttpResponseBase, JsonResponse

from inference.selectors import ready_workers
from odproject.core.api import only_read
from odproject.core.redis_client import impatient_redis
from odproject.metrics import metrics


@only_read
def livez(request: HttpRequest) -> JsonResponse:
    """200 when this process answers."""
    return JsonResponse({"status": "alive"})


@only_read
def readyz(request: HttpRequest) -> JsonResponse:
    """200 when database, Redis and a worker with a loaded model answer; else 503 and why not."""
    reasons = {
        name: reason
        for name, reason in (
            ("database", _database_reason()),
            ("redis", _redis_reason()),
        )
        if reason
    }
    if "database" not in reasons and (reason := _worker_reason()):
        reasons["workers"] = reason
    if not reasons:
        return JsonResponse({"status": "ready"})
    return JsonResponse({"status": "not ready", "reasons": reasons}, status=503)


def _database_reason() -> str:
    try:
        with connection.cursor() as cursor:
            cursor.execute("SELECT 1")
    except (DatabaseError, InterfaceError):
        return "The database does not answer."
    return ""


def _redis_reason() -> str:
    try:
        with impatient_redis() as client:
            client.ping()
    except (redis.RedisError, OSError):
        return "Redis does not answer."
    return ""


def _worker_reason() -> str:
    try:
        return "" if ready_workers() else "No worker with a loaded model has been heard of lately."
    except (DatabaseError, InterfaceError):
        return "The workers' heartbeats cannot be read."


class ProbesMiddleware:
    """Answers probes before anybody asks under which name they came: monitors use an address."""

    VIEWS = {
        path: view
        for name, view in {"/livez": livez, "/readyz": readyz, "/metrics": metrics}.items()
        for path in (name, f"{name}/")
    }

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponseBase]) -> None:
        self._get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a probe, or pass on what is none."""
        return self.VIEWS.get(request.path_info, self._get_response)(request)
