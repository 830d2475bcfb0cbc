"""How often somebody may try to log in or register, counted in the database.

The counts are shared by all processes, and hold while Redis is away: nobody guesses passwords
then, and nobody is locked out either.
"""

import hashlib
import math
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import F
from django.utils import timezone

from accounts.models import AttemptCount
from odproject.core.errors import DomainError

# One statement, so that of those who try at the same moment each is counted. The count stops
# just above the limit: it says "too many" and nothing else.
_COUNT = """
    INSERT INTO accounts_attemptcount AS counted (subject, attempts, window_ends_at)
    VALUES (%(subject)s, 1, %(end)s)
    ON CONFLICT (subject) DO UPDATE SET
        attempts = CASE WHEN counted.window_ends_at <= %(now)s THEN 1
                        ELSE least(counted.attempts, %(limit)s) + 1 END,
        window_ends_at = CASE WHEN counted.window_ends_at <= %(now)s THEN excluded.window_ends_at
                              ELSE counted.window_ends_at END
    RETURNING attempts, window_ends_at
"""


class TooManyAttemptsError(DomainError):
    """Somebody tries too often."""

    status = 429
    code = "too_many_attempts"
    title = "Too many attempts"

    def __init__(self, *, wait_seconds: int) -> None:
        self.retry_after_seconds = wait_seconds
        super().__init__(f"Too many attempts; please try again in {wait_seconds} seconds.")


@dataclass(frozen=True)
class AttemptLimit:
    """So many attempts of a subject (an address of whatever kind) in a window of time.

    A limit of 0 limits nothing, and neither does a subject that is not known.
    """

    purpose: str
    subject: str
    limit: int
    window: timedelta

    def take(self) -> None:
        """Count an attempt before it is made; raises TooManyAttemptsError (429)."""
        if not self._counts:
            return
        now = timezone.now()
        values: dict[str, Any] = {
            "subject": self._digest,
            "now": now,
            "end": now + self.window,
            "limit": self.limit,
        }
        with connection.cursor() as cursor:
            cursor.execute(_COUNT, values)
            attempts, window_ends_at = cursor.fetchone()
        if attempts > self.limit:
            wait_seconds = math.ceil((window_ends_at - now).total_seconds())
            raise TooManyAttemptsError(wait_seconds=max(1, wait_seconds))

    def give_back(self) -> None:
        """Do not count an attempt that was right."""
        if self._counts:
            rows = AttemptCount.objects.filter(subject=self._digest, attempts__gt=0)
            rows.update(attempts=F("attempts") - 1)

    def forget(self) -> None:
        """Begin to count anew."""
        if self._counts:
            AttemptCount.objects.filter(subject=self._digest).delete()

    @property
    def _counts(self) -> bool:
        return self.limit > 0 and bool(self.subject)

    @property
    def _digest(self) -> str:
        """Which row counts; a hash, because the table needs nobody's address."""
        return hashlib.sha256(f"{self.purpose} {self.subject}".encode()).hexdigest()


def login_by_email(email: str) -> AttemptLimit:
    """Wrong passwords for one e-mail address, known or not, in whatever case it is written."""
    return AttemptLimit(
        "login-email", email.strip().lower(), settings.LOGINS_PER_EMAIL, settings.LOGIN_WINDOW
    )


def login_by_address(client_address: str) -> AttemptLimit:
    """Wrong log-ins from one network address."""
    return AttemptLimit(
        "login-address", client_address, settings.LOGINS_PER_ADDRESS, settings.LOGIN_WINDOW
    )


def registration_by_address(client_address: str) -> AttemptLimit:
    """Registrations from one network address."""
    return AttemptLimit(
        "registration",
        client_address,
        settings.REGISTRATIONS_PER_ADDRESS,
        settings.REGISTRATION_WINDOW,
    )


def forget_old_attempts(*, now: datetime | None = None) -> int:
    """Remove counts whose window has ended; returns how many."""
    return AttemptCount.objects.filter(window_ends_at__lt=now or timezone.now()).delete()[0]
