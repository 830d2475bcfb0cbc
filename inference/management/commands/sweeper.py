"""Put back the work of dead workers and repeat lost hints, again and again."""

import logging
import signal
import threading
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand
from django.db import DatabaseError, close_old_connections

from inference.services import sweep
from odproject.core.process import die_with_parent

logger = logging.getLogger(__name__)


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
        while not stopped.wait(settings.SWEEP_INTERVAL_SECONDS):
            try:
                if moved := sweep():
                    logger.info("Moved %s units", moved)
            except DatabaseError as error:
                logger.warning("The sweeper waits for the database: %s", error)
            close_old_connections()
