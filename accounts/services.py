"""Every write to users, sessions, events and tickets; `api_keys` makes and changes keys."""

import hashlib
import secrets
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.conf import settings
from django.contrib.auth.hashers import make_password
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone
from rest_framework_simplejwt.exceptions import TokenError
from rest_framework_simplejwt.tokens import RefreshToken

from accounts import limits
from accounts.models import (
    EVENT_KINDS,
    SESSION_CLAIM,
    ApiKey,
    Event,
    EventStream,
    Session,
    User,
    WebsocketTicket,
)
from accounts.presence import Presence
from accounts.selectors import is_still_here
from odproject.core.errors import ConflictError, DomainError, FieldError
from odproject.core.publishing import EVERY_STREAM, publish_on_commit


class EmailTakenError(ConflictError):
    """Somebody has registered this e-mail address already."""

    code = "email_taken"
    title = "The e-mail address is taken"


class PasswordMismatchError(DomainError):
    """The password and its confirmation differ."""

    code = "passwords_differ"
    title = "The passwords differ"


class WeakPasswordError(DomainError):
    """The password breaks a rule."""

    code = "weak_password"
    title = "The password is too weak"


class InvalidCredentialsError(DomainError):
    """The e-mail address or the password is wrong; which of the two is not told."""

    status = 401
    code = "invalid_credentials"
    title = "Wrong e-mail address or password"


def register_user(
    *, email: str, password: str, confirm_password: str, client_address: str = ""
) -> User:
    """Create a user.

    Raises PasswordMismatchError, WeakPasswordError (400), EmailTakenError (409) and, when this
    network address has registered many, TooManyAttemptsError (429).
    """
    limits.registration_by_address(client_address).take()
    if password != confirm_password:
        raise PasswordMismatchError(
            "The password and its confirmation differ.",
            errors=(FieldError("confirm_password", "mismatch", "Differs from the password."),),
        )
    user = User(email=User.objects.normalize_email(email))
    try:
        validate_password(password, user)
    except ValidationError as error:
        raise WeakPasswordError(
            " ".join(error.messages),
            errors=tuple(
                FieldError("password", one.code or "invalid", " ".join(one.messages))
                for one in error.error_list
            ),
        ) from error
    user.set_password(password)
    try:
        with transaction.atomic():
            user.save()
    except IntegrityError as error:
        raise EmailTakenError(f"A user with the e-mail address {email} exists already.") from error
    return user


class InvalidRefreshTokenError(DomainError):
    """The refresh token is not one, has expired, was used or belongs to an ended session."""

    status = 401
    code = "invalid_refresh_token"
    title = "Invalid refresh token"


@dataclass(frozen=True)
class LoginTokens:
    """What a log-in hands out: an access token and a refresh token, both JWTs."""

    access: str
    refresh: str


def verified_user(*, email: str, password: str, client_address: str = "") -> User:
    """The active user of these credentials.

    Raises InvalidCredentialsError (401) and, after many wrong ones for this e-mail address or
    from this network address, TooManyAttemptsError (429). An unknown address costs as much time
    as a wrong password and has a limit too, so that neither the answer nor its delay tells who
    is registered. An attempt is counted before the password is looked at, so that many at once
    are no way around the limits.
    """
    by_email, by_address = limits.login_by_email(email), limits.login_by_address(client_address)
    by_address.take()  # first: whoever is shut out here can shut nobody else out any more
    by_email.take()
    user = User.objects.of_email(email)
    if user is None:
        make_password(password)
        raise InvalidCredentialsError("Wrong e-mail address or password.")
    if not user.check_password(password) or not user.is_active:
        raise InvalidCredentialsError("Wrong e-mail address or password.")
    by_email.forget()
    by_address.give_back()
    return user


def log_in(
    *,
    email: str,
    password: str,
    access_lifetime: timedelta | None = None,
    client_address: str = "",
) -> LoginTokens:
    """Check the credentials as `verified_user` does, which says what is raised; begin a session."""
    user = verified_user(email=email, password=password, client_address=client_address)
    User.objects.filter(pk=user.pk).update(last_login=timezone.now())
    session = Session.objects.create(user=user, refresh_jti=_new_jti())
    return _tokens(session, session.refresh_jti, access_lifetime)


def refresh_session(*, raw_refresh_token: str, access_lifetime: timedelta) -> LoginTokens:
    """Exchange a refresh token for new tokens, once.

    Of two exchanges at the same time one wins. A token that comes again later has been stolen
    from somebody, so its whole session ends. Raises InvalidRefreshTokenError (401).
    """
    try:
        token = RefreshToken(raw_refresh_token)  # type: ignore[arg-type]
    except TokenError as error:
        raise InvalidRefreshTokenError("The refresh token is not valid, or has expired.") from error
    now, new_jti = timezone.now(), _new_jti()
    session_id = token.get(SESSION_CLAIM)
    sessions = Session.objects.filter(pk=session_id if isinstance(session_id, int) else 0)
    living = sessions.filter(revoked_at__isnull=True)
    # The update looks at columns of the session alone. With a join it would be a subquery, which
    # PostgreSQL does not ask again after waiting for another exchange: then both would win.
    if sessions.filter(user__is_active=True).exists() and living.filter(
        refresh_jti=token["jti"]
    ).update(refresh_jti=new_jti, refreshed_at=now):
        return _tokens(sessions.get(), new_jti, access_lifetime)
    replayed_before = now - timedelta(seconds=settings.REFRESH_GRACE_SECONDS)
    if stolen := living.filter(refreshed_at__lt=replayed_before).first():
        revoke_session(session_id=stolen.pk)
    raise InvalidRefreshTokenError("The refresh token was used before, or its session has ended.")


def revoke_session(*, session_id: int) -> bool:
    """Log out: every token of the session ends and its websockets close.

    Returns whether the session was living.
    """
    with transaction.atomic():
        living = Session.objects.filter(pk=session_id, revoked_at__isnull=True)
        revoked = living.update(revoked_at=timezone.now())
        if revoked:
            _close_sockets_of(Session.objects.get(pk=session_id))
    return bool(revoked)


def revoke_api_key(*, key_id: int, by: User) -> bool:
    """End an API key for ever, and its websockets; returns whether it was unrevoked."""
    with transaction.atomic():
        unrevoked = ApiKey.objects.filter(pk=key_id, revoked_at__isnull=True)
        revoked = unrevoked.update(revoked_at=timezone.now(), revoked_by=by)
        if revoked:
            _close_sockets_of(ApiKey.objects.get(pk=key_id))
    return bool(revoked)


def _close_sockets_of(ended: Session | ApiKey) -> None:
    hint = {"type": "session.ended", "credential": ended.credential}
    publish_on_commit(ended.user_id, hint)


@transaction.atomic
def revoke_sessions(*, user: User, by: User | None = None) -> None:
    """Log a user out everywhere, API keys included; `by` is who does it, if not the user."""
    living = Session.objects.filter(user=user, revoked_at__isnull=True)
    for session_id in living.order_by("pk").values_list("pk", flat=True):
        revoke_session(session_id=session_id)
    unrevoked = ApiKey.objects.filter(user=user, revoked_at__isnull=True)
    for key_id in unrevoked.order_by("pk").values_list("pk", flat=True):
        revoke_api_key(key_id=key_id, by=by or user)


def _new_jti() -> str:
    return uuid.uuid4().hex


def _tokens(session: Session, jti: str, access_lifetime: timedelta | None) -> LoginTokens:
    refresh = RefreshToken.for_user(session.user)
    refresh[SESSION_CLAIM] = session.pk
    refresh["jti"] = jti
    access = refresh.access_token
    if access_lifetime is not None:
        access.set_exp(lifetime=access_lifetime)
    return LoginTokens(access=str(access), refresh=str(refresh))


def ensure_administrator(*, email: str, password: str) -> bool:
    """Create the administrator if no user has this address; an existing user stays as it is.

    Returns whether the user was created.
    """
    if User.objects.of_email(email) is not None:
        return False
    try:
        with transaction.atomic():
            User.objects.create_superuser(email=email, password=password)
    except IntegrityError:
        return False
    return True


def lock_user(*, user: User) -> None:
    """Have transactions that count what a user has take turns, until the caller's ends.

    The first of all locks: before dataset, job, work unit, ledger and event stream.
    """
    User.objects.select_for_update(no_key=True).get(pk=user.pk)


class OwnAccessError(ConflictError):
    """Nobody changes what they themselves may do."""

    code = "own_access"
    title = "Your own access"


@dataclass(frozen=True)
class Access:
    """What a user may do: log in, enter the admin, everything, and what their groups may."""

    is_active: bool
    is_staff: bool
    is_superuser: bool
    group_ids: frozenset[int]


@transaction.atomic
def change_access(*, actor: User, user: User, access: Access) -> None:
    """Let a user do more or less; one who is made inactive is logged out everywhere, keys included.

    Raises OwnAccessError (409): an administrator who locks himself out has to ask somebody else.
    """
    if actor.pk == user.pk:
        raise OwnAccessError("Nobody changes their own access; ask another superuser.")
    User.objects.filter(pk=user.pk).update(
        is_active=access.is_active, is_staff=access.is_staff, is_superuser=access.is_superuser
    )
    user.groups.set(access.group_ids)
    if not access.is_active:
        revoke_sessions(user=user, by=actor)


def append_event(*, user_id: int, kind: str, payload: Mapping[str, Any]) -> Event:
    """Append an event to the user's stream, in the caller's transaction, and hint on commit.

    Numbering updates the stream's row, whose lock is held until the commit: so numbers become
    visible in their order, and a reader that has seen number n never finds n-1 later.
    """
    if not transaction.get_connection().in_atomic_block:
        raise RuntimeError("An event belongs to the transaction of what it reports.")
    if kind not in EVENT_KINDS:
        raise RuntimeError(f"Nobody could ask for events of the kind {kind}.")
    EventStream.objects.bulk_create([EventStream(user_id=user_id)], ignore_conflicts=True)
    stream = EventStream.objects.filter(user_id=user_id)
    stream.update(last_seq=F("last_seq") + 1)
    seq = stream.values_list("last_seq", flat=True).get()
    event = Event.objects.create(user_id=user_id, seq=seq, kind=kind, payload=dict(payload))
    publish_on_commit(user_id, {"type": "event.hint", "seq": seq}, also_to=[EVERY_STREAM])
    return event


def issue_websocket_ticket(*, presence: Presence) -> str:
    """A ticket that opens one websocket within half a minute; the socket ends with the presence."""
    ticket = secrets.token_urlsafe(32)
    now = timezone.now()
    WebsocketTicket.objects.filter(expires_at__lt=now).delete()
    WebsocketTicket.objects.create(
        digest=_digest(ticket),
        session=presence.session,
        api_key=presence.api_key,
        expires_at=now + timedelta(seconds=settings.WEBSOCKET_TICKET_SECONDS),
        socket_expires_at=presence.expires_at,
    )
    return ticket


def redeem_websocket_ticket(*, ticket: str) -> Presence | None:
    """Who the ticket was given to, once; None when unknown, used or expired."""
    row = (
        WebsocketTicket.objects.select_related("session__user", "api_key__user")
        .filter(digest=_digest(ticket))
        .first()
    )
    if row is None:
        return None
    deleted, _ = WebsocketTicket.objects.filter(pk=row.pk).delete()
    by = row.session or row.api_key
    if not deleted or row.expires_at < timezone.now() or by is None:
        return None
    presence = Presence(by, row.socket_expires_at)
    return presence if is_still_here(presence) else None


def _digest(ticket: str) -> str:
    return hashlib.sha256(ticket.encode()).hexdigest()
