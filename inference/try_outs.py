"""The test run of uploaded weights: how workers get to know of it, claim it, and what it says."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.db.models import F, Q, QuerySet

from inference import queue
from inference.confined import ChildLimits
from inference.model_checks import TryOutReport, try_out
from inference.models import ModelVersion
from inference.pipeline.errors import WeightsError
from inference.pipeline.options import OptionsError
from inference.planning import default_options
from inference.weights_store import local_weights
from odproject.core.clock import database_now

State = ModelVersion.State

TEST_ATTEMPTS = 3


def child_limits() -> ChildLimits:
    """What a confined process that opens weights may use."""
    return ChildLimits(
        memory_bytes=settings.MODEL_CHILD_MEMORY_BYTES,
        seconds=settings.MODEL_CHILD_SECONDS,
        cpu_seconds=settings.MODEL_CHILD_SECONDS,
        hidden=Path(settings.DATA_DIR),
    )


def enqueue_tests(*, version_id: int | None = None, now: datetime | None = None) -> int:
    """Send hints for test runs that wait, of one version or all; returns how many were sent."""
    now = now or database_now()
    waiting = _waiting_tests(now)
    stale = now - timedelta(seconds=settings.UNIT_HINT_SECONDS)
    waiting = waiting.filter(Q(test_enqueued_at=None) | Q(test_enqueued_at__lt=stale))
    if version_id is not None:
        waiting = waiting.filter(pk=version_id)
    sent = 0
    for waiting_id in waiting.order_by("pk").values_list("pk", flat=True):
        if not queue.send_model_test(waiting_id):
            break  # the broker is away; the sweeper comes again
        ModelVersion.objects.filter(pk=waiting_id).update(test_enqueued_at=now)
        sent += 1
    return sent


def next_test() -> int | None:
    """The version that has waited longest for its test run; None when none waits."""
    waiting = _waiting_tests(database_now()).order_by("test_requested_at", "pk")
    return waiting.values_list("pk", flat=True).first()


def _waiting_tests(now: datetime) -> QuerySet[ModelVersion]:
    """Versions whose test run nobody has begun, or whose worker died over it."""
    return ModelVersion.objects.filter(
        Q(test_lease_expires_at=None) | Q(test_lease_expires_at__lt=now),
        test_requested_at__isnull=False,
    )


@dataclass(frozen=True)
class TryOutClaim:
    """A worker's right to a test run; the attempt number fences."""

    version_id: int
    attempt: int


def _claim_test(version_id: int) -> TryOutClaim | None:
    """Take a test run that waits, or whose worker died; None when there is none to take."""
    now = database_now()
    lease_seconds = 2 * settings.MODEL_CHILD_SECONDS
    claimed = (
        _waiting_tests(now)
        .filter(pk=version_id)
        .update(
            test_attempt=F("test_attempt") + 1,
            test_lease_expires_at=now + timedelta(seconds=lease_seconds),
        )
    )
    if not claimed:
        return None
    attempt = ModelVersion.objects.values_list("test_attempt", flat=True).get(pk=version_id)
    return TryOutClaim(version_id, attempt)


def run_test(*, version_id: int) -> bool:
    """Try a version out in a confined process, in a worker; returns whether it was there to do.

    Weights that cannot be run, or not by their defaults, stay a draft with the reason. A worker
    that dies over it is followed by others, TEST_ATTEMPTS in all.
    """
    claim = _claim_test(version_id)
    if claim is None:
        return False
    if claim.attempt > TEST_ATTEMPTS:
        _end_test(claim=claim, error=f"The test run broke off {TEST_ATTEMPTS} times.")
        return True
    row = ModelVersion.objects.get(pk=version_id)
    try:
        report = try_out(
            local_weights(row.weights_sha256),
            sha256=row.weights_sha256,
            options=default_options(row),
            limits=child_limits(),
        )
    except WeightsError as error:
        _end_test(claim=claim, error=error.detail)
    except OptionsError as error:  # the service's or the version's defaults are out of range
        _end_test(claim=claim, error=f"The default options are not valid: {error}")
    else:
        _keep_report(claim, row, report)
    return True


def _keep_report(claim: TryOutClaim, row: ModelVersion, report: TryOutReport) -> None:
    name = f"model-tests/{row.weights_sha256[:16]}-{row.pk}-{claim.attempt}.jpg"
    saved = default_storage.save(name, ContentFile(report.picture_jpeg))
    if not _end_test(claim=claim, figures=report.figures, picture=saved):
        default_storage.delete(saved)
    elif row.test_picture:
        with contextlib.suppress(OSError):
            default_storage.delete(str(row.test_picture.name))


def _end_test(
    *,
    claim: TryOutClaim,
    error: str = "",
    figures: Mapping[str, Any] | None = None,
    picture: str = "",
) -> bool:
    """Write down how a test run ended; False when it is somebody else's by now."""
    return bool(
        ModelVersion.objects.filter(
            pk=claim.version_id,
            test_attempt=claim.attempt,
            test_requested_at__isnull=False,
            state=State.DRAFT,
        ).update(
            state=State.DRAFT if error else State.TESTED,
            test_requested_at=None,
            test_lease_expires_at=None,
            tested_at=database_now(),
            test_error=error[:500],
            test_figures=dict(figures or {}),
            test_picture=picture,
        )
    )
