"""Create the administrator named in the environment, once."""

import os
import secrets
from typing import Any

from django.core.management.base import BaseCommand

from accounts.services import ensure_administrator


class Command(BaseCommand):
    """Reads OD_ADMIN_EMAIL and OD_ADMIN_PASSWORD; without a password one is made up."""

    help = "Create the administrator if missing; a generated password is printed once."

    def handle(self, *args: Any, **options: Any) -> None:
        """Create the administrator, and say so only when that happened."""
        email = os.environ.get("OD_ADMIN_EMAIL") or "admin@localhost.localdomain"
        given = os.environ.get("OD_ADMIN_PASSWORD", "")
        password = given or secrets.token_urlsafe(12)
        if not ensure_administrator(email=email, password=password):
            return
        shown = "the password of OD_ADMIN_PASSWORD" if given else f"password {password}"
        self.stdout.write(f"Administrator {email} created, {shown}")
