"""`manage.py deliver_webhooks`: send users' events to their webhooks until stopped."""

import signal
import threading
from types import FrameType
from typing import Any

from django.conf import settings
from django.core.management.base import BaseCommand

from accounts.delivery import Dispatcher, listen
from odproject.core.process import die_with_parent


class Command(BaseCommand):
    """A process rather than a task: receivers are slow, and workers have other work."""

    help = "Deliver webhooks until stopped."
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Deliver until SIGTERM or SIGINT."""
        die_with_parent()
        dispatcher = Dispatcher(at_once=settings.WEBHOOKS_AT_ONCE)

        def stop(signal_number: int, frame: FrameType | None) -> None:
            dispatcher.is_stopping = True  # seen within a second

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        threading.Thread(target=listen, args=(dispatcher.wake,), name="hints", daemon=True).start()
        dispatcher.run()
