"""Reads of users and events."""

from accounts.models import Event, EventStream, Session, User
from odproject.core.errors import NotFoundError

EVENTS_PER_READ = 200


class UserNotFoundError(NotFoundError):
    """No user has this e-mail address."""

    code = "user_not_found"
    title = "User not found"


def user_by_email(*, email: str) -> User:
    """The user of an e-mail address, whatever its case; raises UserNotFoundError (404)."""
    user = User.objects.of_email(email)
    if user is None:
        raise UserNotFoundError(f"No user has the e-mail address {email}.")
    return user


def events_since(*, user_id: int, seq: int, limit: int = EVENTS_PER_READ) -> list[Event]:
    """The user's events after number `seq`, oldest first, at most `limit` of them."""
    return list(Event.objects.filter(user_id=user_id, seq__gt=seq).order_by("seq")[:limit])


def last_event_seq(*, user_id: int) -> int:
    """The number of the user's newest event, 0 when there is none."""
    stream = EventStream.objects.filter(user_id=user_id)
    return stream.values_list("last_seq", flat=True).first() or 0


def live_session(*, session_id: int) -> Session | None:
    """A session that has not been revoked, of a user who is active, with that user."""
    return (
        Session.objects.select_related("user")
        .filter(pk=session_id, revoked_at__isnull=True, user__is_active=True)
        .first()
    )
