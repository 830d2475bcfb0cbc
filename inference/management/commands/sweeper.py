"""Put back the work of dead workers and repeat lost hints, again and again."""

import logging
import signal
import threading
import time
from datetime import timedelta
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management import call_command
from django.core.management.base import BaseCommand
from django.db import DatabaseError, InterfaceError, close_old_connections
from django.utils import timezone

from accounts.cleaning import (
    forget_ended_api_keys,
    forget_ended_sessions,
    forget_old_events,
)
from accounts.limits import forget_old_attempts
from billing.idempotency import forget_old_answers
from datasets.resumable import remove_expired_uploads
from datasets.uploading import remove_orphaned_uploads
from inference.cleaning import (
    forget_silent_workers,
    remove_deleted_content,
    remove_orphaned_results,
)
from inference.services import sweep
from inference.try_outs import enqueue_tests
from odproject.core.clock import database_now
from odproject.core.process import die_with_parent

CLEANING_INTERVAL_SECONDS = 3600
ORPHAN_AGE = timedelta(hours=1)
SILENT_WORKER_AGE = timedelta(days=1)
ENDED_LOGIN_AGE = timedelta(days=90)  # of sessions and API keys, which their users may look up

logger = logging.getLogger(__name__)


def _clean() -> None:
    """Remove what was deleted, files without a row, and rows that nobody needs any more."""
    if gone := remove_deleted_content(deleted_before=database_now() - settings.KEEP_DELETED):
        logger.info("Removed the content of %s deleted files", gone)
    older_than = timezone.now() - ORPHAN_AGE
    removed = remove_orphaned_uploads(older_than=older_than)
    removed += remove_orphaned_results(older_than=older_than)
    removed += remove_expired_uploads()
    forget_silent_workers(before=database_now() - SILENT_WORKER_AGE)
    forget_old_answers()
    forget_old_attempts()
    forget_old_events(happened_before=database_now() - settings.KEEP_EVENTS)
    ended_before = database_now() - ENDED_LOGIN_AGE
    forget_ended_sessions(ended_before=ended_before)
    forget_ended_api_keys(ended_before=ended_before)
    call_command("clearsessions")
    if removed:
        logger.info("Removed %s files without a use", removed)


class Command(BaseCommand):
    """A process rather than a task: it works while Redis is away and while every worker is busy."""

    help = "Sweep every few seconds until stopped."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Sweep until SIGTERM or SIGINT."""
        die_with_parent()
        stopped = threading.Event()

        def stop(signal_number: int, frame: FrameType | None) -> None:
            stopped.set()

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        # The first time at once: services that never run for an hour have crashes, too.
        next_cleaning = time.monotonic()
        while not stopped.wait(settings.SWEEP_INTERVAL_SECONDS):
            try:
                if moved := sweep():
                    logger.info("Moved %s units", moved)
                enqueue_tests()
                if time.monotonic() >= next_cleaning:
                    next_cleaning = time.monotonic() + CLEANING_INTERVAL_SECONDS
                    _clean()
            except (DatabaseError, InterfaceError) as error:
                logger.warning("The sweeper waits for the database: %s", error)
            except OSError:
                logger.exception("The sweeper cannot clean up and goes on")
            close_old_connections()
