"""How passwords are kept, and what a new one ends."""

from typing import Any

from django.contrib.auth.hashers import Argon2PasswordHasher

from accounts.models import User
from accounts.services import revoke_sessions


class FrugalArgon2PasswordHasher(Argon2PasswordHasher):
    """Argon2id with 19 MiB, two passes and one lane, the least that OWASP recommends.

    Django's 100 MiB a hash let forty log-ins without any credentials take gigabytes from the
    workers. Hashes made before are made anew at their user's next log-in.
    Source: OWASP Password Storage Cheat Sheet, Argon2id.
    """

    time_cost = 2
    memory_cost = 19 * 1024  # KiB
    parallelism = 1


class NewPasswordEndsSessions:
    """A validator that Django tells of every changed password, whoever changes it and where.

    Who has stolen a token of the old times is logged out with everybody else.
    """

    def validate(self, password: str, user: Any = None) -> None:
        """Every password is fine here."""

    def get_help_text(self) -> str:
        """What the form says of it."""
        return "With a new password you are logged out of the API and the page, everywhere."

    def password_changed(self, password: str, user: Any = None) -> None:
        """End the user's sessions."""
        if isinstance(user, User) and user.pk:
            revoke_sessions(user=user)
