"""Costly work in a web process: so much at a time, and little that waits for its turn.

Whoever waits holds a thread of the pool that also answers log-ins and readiness probes.
"""

import contextlib
import threading
from collections.abc import Iterator

from django.conf import settings

from odproject.core.errors import DomainError

# Of one process, whatever they wait for: the kinds of costly work share one pool of threads.
_waiters = threading.BoundedSemaphore(max(1, settings.WEB_THREADS // 4))


@contextlib.contextmanager
def turn(
    slots: threading.BoundedSemaphore, *, wait_seconds: float, refusal: DomainError
) -> Iterator[None]:
    """Hold one of the slots for the block.

    Raises `refusal` when none becomes free in time, and at once when enough others wait.
    """
    if not slots.acquire(blocking=False):
        _wait_for(slots, wait_seconds, refusal)
    try:
        yield
    finally:
        slots.release()


def _wait_for(slots: threading.BoundedSemaphore, seconds: float, refusal: DomainError) -> None:
    if not _waiters.acquire(blocking=False):
        raise refusal
    try:
        if not slots.acquire(timeout=seconds):
            raise refusal
    finally:
        _waiters.release()
