"""`manage.py worker_alive`: exit with 1 unless a worker with a loaded model beats."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError

from inference.selectors import ready_workers


class Command(BaseCommand):
    """A health check for a worker's container."""

    help = "Fails unless a worker with a loaded model has been heard of lately."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask for heartbeats."""
        if not ready_workers():
            raise CommandError("No worker with a loaded model has been heard of lately.")
