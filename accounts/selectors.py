"""Reads of users, their sessions and keys, events and webhooks."""

from datetime import datetime

from django.db.models import BooleanField, Case, Count, F, Q, QuerySet, Value, When
from django.db.models.functions import Coalesce
from django.utils import timezone

from accounts.models import ApiKey, Event, EventStream, Session, User, Webhook
from accounts.presence import Presence
from odproject.core.errors import NotFoundError

EVENTS_PER_READ = 200


class UserNotFoundError(NotFoundError):
    """No user has this e-mail address."""

    code = "user_not_found"
    title = "User not found"


class ApiKeyNotFoundError(NotFoundError):
    """The user has no API key of this number."""

    code = "api_key_not_found"
    title = "API key not found"


def user_by_email(*, email: str) -> User:
    """The user of an e-mail address, whatever its case; raises UserNotFoundError (404)."""
    user = User.objects.of_email(email)
    if user is None:
        raise UserNotFoundError(f"No user has the e-mail address {email}.")
    return user


def events_since(*, user_id: int, seq: int, limit: int = EVENTS_PER_READ) -> list[Event]:
    """The user's events after number `seq`, oldest first, at most `limit` of them."""
    return list(Event.objects.filter(user_id=user_id, seq__gt=seq).order_by("seq")[:limit])


def oldest_event_seq(*, user_id: int) -> int:
    """The number of the user's oldest event that is kept, or of the next one where none is.

    Whoever has read less far than to the one before it has missed some for good.
    """
    last_seq = last_event_seq(user_id=user_id)  # first: an event that comes meanwhile is next
    events = Event.objects.filter(user_id=user_id).order_by("seq")
    return events.values_list("seq", flat=True).first() or last_seq + 1


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


def is_living(*, now: datetime) -> Q:
    """The condition on an API key that it is neither revoked nor expired."""
    return Q(revoked_at__isnull=True) & (Q(expires_at__isnull=True) | Q(expires_at__gt=now))


def living_api_keys(*, now: datetime) -> QuerySet[ApiKey]:
    """Keys that open something at a time: living ones, of users who are active."""
    return ApiKey.objects.filter(is_living(now=now), user__is_active=True)


def is_still_here(presence: Presence) -> bool:
    """Whether neither the session or key was ended meanwhile, nor its user made inactive."""
    if presence.api_key is None:
        return live_session(session_id=presence.by.pk) is not None
    return living_api_keys(now=timezone.now()).filter(pk=presence.by.pk).exists()


def api_keys_of(*, user: User) -> QuerySet[ApiKey]:
    """The user's keys with `is_living`: living ones first, then the newest."""
    living = Case(
        When(is_living(now=timezone.now()), then=Value(True)),
        default=Value(False),
        output_field=BooleanField(),
    )
    keys = ApiKey.objects.filter(user=user).annotate(is_living=living)
    return keys.order_by("-is_living", "-pk")


def api_key_by_id(*, user: User, key_id: int) -> ApiKey:
    """The user's key of this number, with `is_living`; raises ApiKeyNotFoundError (404)."""
    key = api_keys_of(user=user).filter(pk=key_id).first()
    if key is None:
        raise ApiKeyNotFoundError(f"You have no API key {key_id}.")
    return key


class WebhookNotFoundError(NotFoundError):
    """The user has no webhook of this number."""

    code = "webhook_not_found"
    title = "Webhook not found"


def webhooks_of(*, user: User) -> QuerySet[Webhook]:
    """The user's webhooks, each with the number of the newest event (`last_seq`)."""
    return with_last_seq(Webhook.objects.filter(user=user))


def webhook_by_id(*, user: User, webhook_id: int) -> Webhook:
    """One of them; raises WebhookNotFoundError (404)."""
    webhook = webhooks_of(user=user).filter(pk=webhook_id).first()
    if webhook is None:
        raise WebhookNotFoundError(f"You have no webhook {webhook_id}.")
    return webhook


def waiting_and_failing_webhooks() -> tuple[int, int]:
    """Of the webhooks that are on: how many have events to send, how many failed the last time."""
    on = with_last_seq(Webhook.objects.filter(off_since__isnull=True, user__is_active=True))
    counts = on.aggregate(
        waiting=Count("pk", filter=Q(last_seq__gt=F("cursor_seq"))),
        failing=Count("pk", filter=Q(consecutive_failures__gt=0)),
    )
    return counts["waiting"], counts["failing"]


def with_last_seq(webhooks: QuerySet[Webhook]) -> QuerySet[Webhook]:
    """Webhooks with the number of their user's newest event, 0 when there is none.

    And with `backlog`: how many events come after the last one that was delivered.
    """
    return webhooks.annotate(
        last_seq=Coalesce(F("user__eventstream__last_seq"), 0),
        backlog=F("last_seq") - F("cursor_seq"),
    )
