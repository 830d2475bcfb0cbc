"""What the sweeper takes away once an hour: events, log-ins and keys that are over for long."""

from datetime import datetime
from itertools import takewhile
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import OuterRef, Q, QuerySet, Subquery

from accounts.models import ApiKey, Event, EventStream, Session, Webhook

ROWS_PER_CLEANING = 100_000
ROWS_AT_A_TIME = 1_000


def forget_old_events(*, happened_before: datetime) -> int:
    """Remove from each stream the events that are older, from its beginning on and without gaps.

    What a webhook that is on has not delivered yet stays, and all that came after it. Numbers are
    not given again: the stream knows its last one. Returns how many were removed, about
    ROWS_PER_CLEANING at most.
    """
    oldest = Event.objects.filter(user=OuterRef("user")).order_by("seq")
    streams = EventStream.objects.annotate(begins_at=Subquery(oldest.values("created_at")[:1]))
    old = streams.filter(begins_at__lt=happened_before).order_by("begins_at")
    removed = 0
    for user_id in list(old.values_list("user_id", flat=True)):
        while removed < ROWS_PER_CLEANING and (gone := _forget_some(user_id, happened_before)):
            removed += gone
    return removed


@transaction.atomic
def _forget_some(user_id: int, happened_before: datetime) -> int:
    """Remove some of a stream's events from its beginning; returns how many."""
    # Locked, so that none is switched on in between and finds that its next event has gone.
    webhooks = Webhook.objects.select_for_update(no_key=True).filter(user_id=user_id)
    cursors = [webhook.cursor_seq for webhook in webhooks if webhook.off_since is None]
    events = Event.objects.filter(user_id=user_id)
    if cursors:
        events = events.filter(seq__lte=min(cursors))
    first = events.order_by("seq").values_list("seq", "created_at")[:ROWS_AT_A_TIME]
    old = [seq for seq, _ in takewhile(lambda one: one[1] < happened_before, first)]
    return events.filter(seq__lte=old[-1]).delete()[0] if old else 0


def forget_ended_sessions(*, ended_before: datetime) -> int:
    """Remove log-ins that ended before then: revoked, or none of their tokens counts any more.

    Returns how many, at most ROWS_PER_CLEANING.
    """
    lifetimes = settings.SIMPLE_JWT
    longest = max(
        lifetimes["REFRESH_TOKEN_LIFETIME"],
        lifetimes["ACCESS_TOKEN_LIFETIME"],
        settings.V1_ACCESS_TOKEN_LIFETIME,
    )
    over = Q(revoked_at__lt=ended_before) | Q(refreshed_at__lt=ended_before - longest)
    return _remove(Session.objects.filter(over))


def forget_ended_api_keys(*, ended_before: datetime) -> int:
    """Remove API keys that were revoked, or expired, before then.

    Returns how many, at most ROWS_PER_CLEANING. Who shows one is refused as before.
    """
    over = Q(revoked_at__lt=ended_before) | Q(expires_at__lt=ended_before)
    return _remove(ApiKey.objects.filter(over))


def _remove(rows: QuerySet[Any]) -> int:
    """Remove rows, some at a time, each time in a transaction of its own."""
    removed = 0
    while removed < ROWS_PER_CLEANING and (some := list(rows.values("pk")[:ROWS_AT_A_TIME])):
        rows.filter(pk__in=[row["pk"] for row in some]).delete()
        removed += len(some)
    return removed
