"""`manage.py worker_alive`: exit with 1 unless a worker with a loaded model beats."""

import socket
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from inference.selectors import ready_workers


class Command(BaseCommand):
    """A health check for a worker's container, which asks for the worker that is `--here`."""

    help = "Fails unless a worker with a loaded model has been heard of lately."
    requires_system_checks = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        """Which workers count."""
        parser.add_argument("--here", action="store_true", help="one of this host, or container")

    def handle(self, *args: Any, **options: Any) -> None:
        """Ask for heartbeats."""
        place = f"{socket.gethostname()}:" if options["here"] else ""
        if not any(worker.name.startswith(place) for worker in ready_workers()):
            raise CommandError("No worker with a loaded model has been heard of lately.")
