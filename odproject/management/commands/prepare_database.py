"""`manage.py prepare_database`: roles and tables of a database that is not embedded."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psycopg
from django.conf import settings
from django.core.management.base import BaseCommand, CommandError

from odproject.database_roles import ensure_application_role


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
