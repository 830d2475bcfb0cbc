"""What the sweeper takes away once an hour: events, log-ins and keys that are over for long."""

from datetime import datetime
from typing import Any

from django.conf import settings
from django.db import connection
from django.db.models import Q, QuerySet

from accounts.models import ApiKey, Session

ROWS_PER_CLEANING = 100_000
ROWS_AT_A_TIME = 5_000
# Of each stream that begins with an old event: how far it may go. That is reckoned once for a
# stream, where a condition on events would be reckoned for each of them.
_FORGET_SOME = """
    WITH stream AS MATERIALIZED (
        SELECT user_id, least(
            last_seq,
            (SELECT seq - 1 FROM accounts_event young
             WHERE young.user_id = own.user_id AND created_at >= %(before)s
             ORDER BY seq LIMIT 1),
            (SELECT min(cursor_seq) FROM accounts_webhook webhook
             WHERE webhook.user_id = own.user_id AND off_since IS NULL)
        ) AS ends_seq
        FROM accounts_eventstream own
        WHERE (SELECT created_at FROM accounts_event first
               WHERE first.user_id = own.user_id ORDER BY seq LIMIT 1) < %(before)s
    )
    DELETE FROM accounts_event WHERE id IN (
        SELECT id FROM stream JOIN accounts_event event USING (user_id)
        WHERE seq <= ends_seq ORDER BY user_id, seq LIMIT %(most)s
    )
"""


def forget_old_events(*, happened_before: datetime) -> int:
    """Remove from each stream the events that are older, from its beginning on and without gaps.

    What a webhook that is on has not delivered yet stays, and all that came after it. Numbers are
    not given again: the stream knows its last one. Returns how many were removed, at most
    ROWS_PER_CLEANING, some at a time, each time in a transaction of its own.
    """
    removed = 0
    with connection.cursor() as cursor:
        while removed < ROWS_PER_CLEANING:
            cursor.execute(_FORGET_SOME, {"before": happened_before, "most": ROWS_AT_A_TIME})
            removed += cursor.rowcount
            if cursor.rowcount < ROWS_AT_A_TIME:
                break
    return removed


def forget_ended_sessions(*, ended_before: datetime) -> int:
    """Remove log-ins that ended before then: revoked, or none of their tokens counts any more.

    Returns how many, at most ROWS_PER_CLEANING.
    """
    lifetimes: dict[str, Any] = settings.SIMPLE_JWT
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
