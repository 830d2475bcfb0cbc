"""Statements of account: what a user had, got, spent and held in each calendar month, in UTC.

A statement is reckoned back from the balance of now, in one query, so that its figures are of one
moment: opening, movements and closing add up exactly, and a month closes with what the next one
opens with. A movement belongs to the month in which the database dated it, which begins with its
first microsecond.

A movement is seen when its transaction commits, shortly after it was dated. One of the last seconds
of a month may so be seen in the next month; an hour after its end a statement is final, as
transactions that wait for longer than minutes are ended (`DATABASES` in the settings).
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db import connection
from django.db.models import Min
from django.http import FileResponse, HttpRequest
from rest_framework.request import Request

from accounts.models import User
from billing.ledger import open_accounts
from billing.models import Transfer
from billing.prices import tokens_text
from odproject.core.clock import database_now
from odproject.core.errors import NotFoundError
from odproject.core.files import spooled_response
from odproject.core.text import inert

FINAL_AFTER = timedelta(hours=1)
OPENING = "opening"
CSV_COLUMNS = (
    "time_utc",
    "kind",
    "available_change_tokens",
    "held_change_tokens",
    "available_tokens",
    "held_tokens",
    "job_id",
    "upload_id",
    "reason",
)
ROWS_AT_A_TIME = 2000

# Everything since the first of the months: the balance of now without it is what they open with.
_SINCE = """
    WITH movement AS (
        SELECT id, created_at, kind, job_id, upload_id, reason, amount_hundredths AS amount,
               amount_hundredths * ((destination_id = %(available_id)s)::int
                                    - (source_id = %(available_id)s)::int) AS available,
               amount_hundredths * ((destination_id = %(held_id)s)::int
                                    - (source_id = %(held_id)s)::int) AS held
        FROM billing_transfer
        WHERE created_at >= %(since)s
          AND (source_id IN (%(available_id)s, %(held_id)s)
               OR destination_id IN (%(available_id)s, %(held_id)s))
    ), balance AS (
        SELECT available.balance_hundredths AS available, held.balance_hundredths AS held
        FROM billing_account available, billing_account held
        WHERE available.id = %(available_id)s AND held.id = %(held_id)s
    )
"""
_SUMS_BY_KIND = ", ".join(
    f"coalesce(sum(amount) FILTER (WHERE kind = '{kind}'), 0)::bigint" for kind in Transfer.Kind
)
_STATEMENTS = f"""{_SINCE}, moved AS (
        SELECT date_trunc('month', created_at, 'UTC') AS begins_at, count(*) AS movement_count,
               sum(available) AS available, sum(held) AS held, ARRAY[{_SUMS_BY_KIND}] AS sums
        FROM movement GROUP BY 1
    )
    SELECT begins_at,
           (balance.available - sum(coalesce(moved.available, 0)) OVER back)::bigint,
           (balance.held - sum(coalesce(moved.held, 0)) OVER back)::bigint,
           coalesce(moved.available, 0)::bigint, coalesce(moved.held, 0)::bigint,
           coalesce(movement_count, 0), coalesce(sums, %(no_sums)s::bigint[])
    FROM balance, unnest(%(months)s::timestamptz[]) AS month (begins_at)
    FULL JOIN moved USING (begins_at)
    WINDOW back AS (ORDER BY begins_at DESC)
    ORDER BY begins_at DESC
"""
_MOVEMENTS = f"""{_SINCE}
    SELECT 0 AS id, %(since)s AS created_at, '{OPENING}' AS kind,
           (balance.available - coalesce(sum(movement.available), 0))::bigint AS available,
           (balance.held - coalesce(sum(movement.held), 0))::bigint AS held,
           NULL::bigint AS job_id, NULL::bigint AS upload_id, '' AS reason
    FROM balance LEFT JOIN movement ON true GROUP BY balance.available, balance.held
    UNION ALL
    SELECT id, created_at, kind, available, held, job_id, upload_id, reason
    FROM movement WHERE created_at < %(until)s
    ORDER BY created_at, id
"""


class StatementNotFoundError(NotFoundError):
    """The month is before the user's first movement, has not begun, or is none."""

    code = "statement_not_found"
    title = "Statement not found"


@dataclass(frozen=True)
class Balances:
    """What there is to spend, and what is held for jobs."""

    available_hundredths: int
    held_hundredths: int


@dataclass(frozen=True)
class Statement:
    """A month of a user's account; `moved_hundredths` has the sum of each kind, without a sign."""

    begins_at: datetime
    is_final: bool
    opening: Balances
    moved_hundredths: Mapping[str, int]
    closing: Balances
    movement_count: int

    @property
    def month(self) -> str:
        """As 2026-11."""
        return month_name(self.begins_at)


def month_name(begins_at: datetime) -> str:
    """The name of a month by its beginning: 2026-11."""
    return f"{begins_at:%Y-%m}"


def months_of(*, user: User) -> list[datetime]:
    """The beginnings of the months since the user's first movement, that of now first.

    That one is the welcome gift, with which the accounts are opened.
    """
    available = open_accounts(user=user).available
    first = Transfer.objects.filter(destination=available).aggregate(at=Min("created_at"))
    months = [_month_of(first["at"])]
    this_month = _month_of(database_now())
    while months[-1] < this_month:
        months.append(_month_after(months[-1]))
    return months[::-1]


def month_named(*, user: User, name: str) -> datetime:
    """The beginning of one of the user's months; raises StatementNotFoundError (404)."""
    for begins_at in months_of(user=user):
        if month_name(begins_at) == name:
            return begins_at
    raise StatementNotFoundError(f"There is no statement of {name}.")


def statements_of(*, user: User, months: Sequence[datetime]) -> list[Statement]:
    """The statements of some months without a gap, the newest first, as `months` are."""
    if not months:
        return []
    values = {
        **_accounts_since(user, months[-1]),
        "months": list(months),
        "no_sums": [0 for _ in Transfer.Kind],
    }
    now = database_now()
    with connection.cursor() as cursor:
        cursor.execute(_STATEMENTS, values)
        return [_statement(row, now=now) for row in cursor.fetchall() if row[0] <= months[0]]


def statement_csv(*, user: User, begins_at: datetime) -> Iterator[bytes]:
    """The movements of a month as CSV in UTF-8, oldest first, piece by piece.

    A line before them has what the month opens with, and each one the balances after it, so that
    the last line has what the month closes with. Amounts are tokens, exactly; times are UTC.
    """
    values = {**_accounts_since(user, begins_at), "until": _month_after(begins_at)}
    available, held = 0, 0
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(CSV_COLUMNS)
    with connection.chunked_cursor() as cursor:
        cursor.execute(_MOVEMENTS, values)
        while rows := cursor.fetchmany(ROWS_AT_A_TIME):
            for _, created_at, kind, to_available, to_held, *about, reason in rows:
                available, held = available + to_available, held + to_held
                is_opening = kind == OPENING
                changes = (0, 0) if is_opening else (to_available, to_held)
                amounts = map(tokens_text, (*changes, available, held))
                time = f"{created_at.astimezone(UTC):%Y-%m-%d %H:%M:%S}"
                table.writerow((time, kind, *amounts, *about, inert(reason)))
            yield text.getvalue().encode()
            text.seek(0)
            text.truncate()


def statement_csv_response(
    request: Request | HttpRequest, *, user: User, begins_at: datetime
) -> FileResponse:
    """The CSV of a month to download; raises what `spooled_response` raises (503, 507)."""
    return spooled_response(
        request,
        statement_csv(user=user, begins_at=begins_at),
        content_type="text/csv",
        file_name=f"statement-{month_name(begins_at)}.csv",
    )


def _statement(row: tuple[Any, ...], *, now: datetime) -> Statement:
    begins_at, available, held, to_available, to_held, movement_count, sums = row
    return Statement(
        begins_at=begins_at,
        is_final=now >= _month_after(begins_at) + FINAL_AFTER,
        opening=Balances(available, held),
        moved_hundredths=dict(zip(Transfer.Kind.values, sums, strict=True)),
        closing=Balances(available + to_available, held + to_held),
        movement_count=movement_count,
    )


def _accounts_since(user: User, since: datetime) -> dict[str, Any]:
    accounts = open_accounts(user=user)
    return {"available_id": accounts.available.pk, "held_id": accounts.held.pk, "since": since}


def _month_of(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)


def _month_after(begins_at: datetime) -> datetime:
    return _month_of(begins_at + timedelta(days=31))
