"""Hints to workers: which work unit waits. Nothing is lost when one of them is."""

import logging

import redis
from celery import current_app
from django.conf import settings
from kombu.exceptions import OperationalError

from odproject.core.redis_client import impatient_redis

logger = logging.getLogger(__name__)
MOST_WAITING_HINTS = 1000
RUN_UNIT = "inference.run_unit"
TEST_MODEL = "inference.test_model"


def is_crowded() -> bool:
    """Whether so many hints wait that more would only fill Redis."""
    try:
        with impatient_redis() as client:
            return client.llen(settings.CELERY_TASK_DEFAULT_QUEUE) > MOST_WAITING_HINTS
    except (redis.RedisError, OSError):
        return False  # sending will find out


def send_unit(unit_id: int) -> bool:
    """Send the hint that a unit waits; False when the broker does not take it."""
    return _send(RUN_UNIT, unit_id)


def send_model_test(version_id: int) -> bool:
    """Send the hint that a model version waits to be tried out; False as for `send_unit`."""
    return _send(TEST_MODEL, version_id)


def _send(task: str, row_id: int) -> bool:
    """Name the task rather than import it, because importing it would load the network.

    The hint outlives its repetition a little, so that a busy queue is never without one.
    """
    expires_seconds = settings.UNIT_HINT_SECONDS + 5 * settings.SWEEP_INTERVAL_SECONDS
    try:
        current_app.send_task(task, args=[row_id], expires=expires_seconds, retry=False)
    except (OperationalError, OSError) as error:
        logger.warning("The broker did not take the hint %s(%s): %s", task, row_id, error)
        return False
    return True
