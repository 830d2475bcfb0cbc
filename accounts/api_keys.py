"""Making, changing and using API keys; `services` revokes them, as it ends sessions."""

import logging
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import DatabaseError, IntegrityError, InterfaceError, transaction
from django.db.models import F, Q
from django.utils import timezone

from accounts.key_text import new_key_text
from accounts.models import ApiKey, Session, User
from accounts.selectors import ApiKeyNotFoundError, live_session
from accounts.services import lock_user
from odproject.core.errors import ConflictError, DomainError, QuotaExceededError

logger = logging.getLogger(__name__)
MOST_LIVING_KEYS = 20
LAST_USE_STEP = timedelta(minutes=1)


class SessionEndedError(DomainError):
    """The session ended while it asked for a key."""

    status = 401
    code = "session_ended"
    title = "The session has ended"


class InvalidKeyTermsError(DomainError):
    """The key would expire before it is made, or allow more than its user may do."""

    code = "invalid_key_terms"
    title = "Invalid terms of an API key"


class ApiKeyQuotaError(QuotaExceededError):
    """The user has as many living keys as one user may have."""

    code = "api_key_quota"
    title = "Too many API keys"


class ApiKeyNameTakenError(ConflictError):
    """Another living key of the user has this name."""

    code = "api_key_name_taken"
    title = "The name is taken"


class ApiKeyEndedError(ConflictError):
    """The key was revoked, or has expired."""

    code = "api_key_ended"
    title = "The API key has ended"


def create_api_key(
    *,
    session: Session,
    name: str,
    expires_at: datetime | None = None,
    is_read_only: bool = False,
    requests_per_minute: int | None = None,
) -> tuple[ApiKey, str]:
    """Make a key of the user whose session asks; returns it and its text, which nobody keeps.

    Raises InvalidKeyTermsError (400), SessionEndedError (401), ApiKeyNameTakenError and
    ApiKeyQuotaError (409).
    """
    user = session.user
    _refuse_rate_above_users(requests_per_minute)
    text = new_key_text(user_id=user.pk)
    key = ApiKey(
        user=user,
        name=name,
        prefix=text.prefix,
        digest=text.digest,
        is_read_only=is_read_only,
        requests_per_minute=requests_per_minute,
        expires_at=expires_at,
    )
    with transaction.atomic():
        lock_user(user=user)
        # A new password ends every session and key: one that asks meanwhile must make no other.
        if live_session(session_id=session.pk) is None:
            raise SessionEndedError("The session of this token has ended.")
        if expires_at is not None and expires_at <= timezone.now():
            raise InvalidKeyTermsError("A key expires in the future.", fields=("expires_at",))
        _retire_expired_keys(user)
        if ApiKey.objects.filter(user=user, revoked_at__isnull=True).count() >= MOST_LIVING_KEYS:
            detail = f"One user has at most {MOST_LIVING_KEYS} API keys; revoke one that is unused."
            raise ApiKeyQuotaError(detail, quota=MOST_LIVING_KEYS)
        try:
            with transaction.atomic():
                key.save()
        except IntegrityError as error:
            raise _name_taken(name) from error
    return key, str(text)


def change_api_key(*, user: User, key_id: int, changes: Mapping[str, Any]) -> None:
    """Change `name`, `is_read_only` or `requests_per_minute` of a living key.

    When it expires stays as it was made. Raises InvalidKeyTermsError (400), ApiKeyNotFoundError
    (404), ApiKeyNameTakenError and ApiKeyEndedError (409).
    """
    if "requests_per_minute" in changes:
        _refuse_rate_above_users(changes["requests_per_minute"])
    mine = ApiKey.objects.filter(user=user, pk=key_id)
    with transaction.atomic():
        lock_user(user=user)
        _retire_expired_keys(user)
        unrevoked = mine.filter(revoked_at__isnull=True)
        try:
            with transaction.atomic():
                changed = unrevoked.update(**changes) if changes else unrevoked.count()
        except IntegrityError as error:
            raise _name_taken(changes.get("name")) from error
        if changed:
            return
        if mine.exists():
            raise ApiKeyEndedError("The key was revoked or has expired; make a new one.")
        raise ApiKeyNotFoundError(f"You have no API key {key_id}.")


def note_use(*, key: ApiKey) -> None:
    """Write down that a key is in use, once a minute; a key works also where that cannot be."""
    before = timezone.now() - LAST_USE_STEP
    if key.last_used_at is not None and key.last_used_at > before:
        return
    unnoted = ApiKey.objects.filter(
        Q(last_used_at__isnull=True) | Q(last_used_at__lte=before), pk=key.pk
    )
    try:
        with transaction.atomic():
            unnoted.update(last_used_at=timezone.now())
    except (DatabaseError, InterfaceError) as error:
        logger.warning("The use of API key %s was not noted: %s", key.prefix, error)


def _retire_expired_keys(user: User) -> None:
    """An expired key gives back its name and its place."""
    expired = ApiKey.objects.filter(
        user=user, revoked_at__isnull=True, expires_at__lte=timezone.now()
    )
    expired.update(revoked_at=F("expires_at"))


def _refuse_rate_above_users(requests_per_minute: int | None) -> None:
    most = settings.API_REQUESTS_PER_MINUTE
    if requests_per_minute and most and requests_per_minute > most:
        detail = f"At most {most}, which is what a user may send in a minute."
        raise InvalidKeyTermsError(detail, fields=("requests_per_minute",))


def _name_taken(name: object) -> ApiKeyNameTakenError:
    return ApiKeyNameTakenError(f"You have an API key named {name} already.")
