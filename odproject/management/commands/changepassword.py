"""`manage.py changepassword EMAIL`: Django's own, which also logs the user out everywhere."""

from typing import Any

from django.contrib.auth.management.commands import changepassword
from django.db import transaction

from accounts.selectors import user_by_email
from accounts.services import revoke_sessions


class Command(changepassword.Command):
    """Asks for the new password twice."""

    def handle(self, *args: Any, **options: Any) -> str | None:
        """Change it and end the user's sessions, or neither."""
        with transaction.atomic():
            told: str | None = super().handle(*args, **options)
            revoke_sessions(user=user_by_email(email=options["username"]))
        return told
