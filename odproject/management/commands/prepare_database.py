"""`manage.py prepare_database`: roles and tables of a database that is not embedded."""

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from odproject.database_roles import ensure_application_role

PATIENCE_SECONDS = 60.0
RETRY_SECONDS = 1.0


class Command(BaseCommand):
    """Reads DATABASE_URL (the application's role) and DATABASE_OWNER_URL (who owns the tables)."""

    help = "Make the application's role and bring the tables up to date, as their owner."
    requires_system_checks = []

    def handle(self, *args: Any, **options: Any) -> None:
        """Run once before the services start; again does no harm."""
        application_url = os.environ.get("DATABASE_URL", "")
        owner_url = os.environ.get("DATABASE_OWNER_URL", "") or application_url
        if not application_url:
            raise CommandError("DATABASE_URL is not set; `manage.py up` prepares embedded engines.")
        self._wait_for(owner_url)
        try:
            if ensure_application_role(owner_url=owner_url, application_url=application_url):
                self.stdout.write("The application's role is ready.")
        except psycopg.Error as error:
            raise CommandError(f"The application's role cannot be made: {error}") from error
        for step, what in (
            (["migrate", "--noinput"], "The tables could not be brought up to date."),
            (["register_models"], "The package's models could not be registered."),
        ):
            done = subprocess.run(
                [sys.executable, str(Path(settings.BASE_DIR) / "manage.py"), *step],
                env={**os.environ, "DATABASE_URL": owner_url},
                check=False,
            )
            if done.returncode:
                raise CommandError(what)

    def _wait_for(self, url: str) -> None:
        """Return when the database takes connections; a container's may be only half there."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        told = ""
        while True:
            try:
                psycopg.connect(url, connect_timeout=5).close()
                return
            except psycopg.OperationalError as error:
                if time.monotonic() > deadline:
                    raise CommandError(f"The database does not answer: {error}") from error
                if str(error) != told:
                    told = str(error)
                    self.stderr.write(f"Waiting for the database: {told}")
            time.sleep(RETRY_SECONDS)
