"""Reads of balances, prices and the ledger."""

from collections.abc import Mapping
from dataclasses import dataclass

from django.db import connection
from django.db.models import Q, QuerySet

from accounts.models import User
from billing.ledger import UserAccounts, open_accounts
from billing.models import Account, Price, Transfer
from billing.prices import PriceList


def balance_hundredths(*, user: User) -> int:
    """What the user can spend now: tokens held for running jobs are not in it."""
    return open_accounts(user=user).available.balance_hundredths or 0


def user_accounts(*, user: User) -> UserAccounts:
    """Both accounts of the user, opened if this is their first use."""
    return open_accounts(user=user)


def transfers_of(*, user: User) -> QuerySet[Transfer]:
    """Transfers from or to the user's accounts."""
    accounts = open_accounts(user=user)
    own = [accounts.available.pk, accounts.held.pk]
    return Transfer.objects.filter(Q(source_id__in=own) | Q(destination_id__in=own)).select_related(
        "source", "destination"
    )


def available_change_hundredths(transfer: Transfer) -> int:
    """What a transfer added to its user's available tokens; negative when it took some."""
    if transfer.destination.purpose == Account.Purpose.AVAILABLE:
        return transfer.amount_hundredths
    if transfer.source.purpose == Account.Purpose.AVAILABLE:
        return -transfer.amount_hundredths
    return 0


def current_prices() -> PriceList:
    """The price list that counts now: the newest one."""
    price = Price.objects.order_by("-pk")[0]
    return PriceList(
        upload_image_hundredths=price.upload_image_hundredths,
        upload_frame_hundredths=price.upload_frame_hundredths,
        inference_image_hundredths=price.inference_image_hundredths,
        inference_frame_hundredths=price.inference_frame_hundredths,
    )


@dataclass(frozen=True)
class Breach:
    """A broken invariant of the ledger, and the rows that break it."""

    invariant: str
    rows: list[tuple[object, ...]]


# Each query answers the rows that break its invariant. What concerns uploads and jobs is asked by
# the apps that know them: datasets.selectors.charge_breaches and
# inference.selectors.settlement_breaches.
INVARIANTS: dict[str, str] = {
    "every balance equals its transfers": """
        SELECT account.id, account.balance_hundredths, coalesce(sum(move.amount), 0)
        FROM billing_account account
        LEFT JOIN (
            SELECT destination_id AS account_id, amount_hundredths AS amount FROM billing_transfer
            UNION ALL
            SELECT source_id, -amount_hundredths FROM billing_transfer
        ) move ON move.account_id = account.id
        WHERE account.user_id IS NOT NULL
        GROUP BY account.id
        HAVING account.balance_hundredths <> coalesce(sum(move.amount), 0)
    """,
    "what users own and what was earned equals what was issued": """
        SELECT issued.total, owned.total, earned.total
        FROM (SELECT coalesce(sum(t.amount_hundredths), 0) AS total FROM billing_transfer t
              JOIN billing_account a ON a.id = t.source_id AND a.purpose = 'issuance') issued,
             (SELECT coalesce(sum(balance_hundredths), 0) AS total FROM billing_account) owned,
             (SELECT coalesce(sum(t.amount_hundredths), 0) AS total FROM billing_transfer t
              JOIN billing_account a ON a.id = t.destination_id AND a.purpose = 'revenue') earned
        WHERE issued.total <> owned.total + earned.total
    """,
    "what is held equals the open holds": """
        SELECT account.user_id, account.balance_hundredths, coalesce(sum(hold.amount_hundredths), 0)
        FROM billing_account account
        LEFT JOIN billing_hold hold ON hold.user_id = account.user_id AND hold.state = 'open'
        WHERE account.purpose = 'held'
        GROUP BY account.id
        HAVING account.balance_hundredths <> coalesce(sum(hold.amount_hundredths), 0)
    """,
    "every transfer is between two accounts of its kind and of one user": """
        SELECT transfer.id, transfer.kind, source.user_id, source.purpose,
               destination.user_id, destination.purpose
        FROM billing_transfer transfer
        JOIN billing_account source ON source.id = transfer.source_id
        JOIN billing_account destination ON destination.id = transfer.destination_id
        WHERE source.user_id <> destination.user_id
           OR (transfer.kind, source.purpose, destination.purpose) NOT IN (
               ('welcome', 'issuance', 'available'), ('top_up', 'issuance', 'available'),
               ('upload', 'available', 'revenue'), ('hold', 'available', 'held'),
               ('capture', 'held', 'revenue'), ('release', 'held', 'available'))
    """,
}


def ledger_breaches() -> list[Breach]:
    """The invariants of the ledger that do not hold; an empty list is good news."""
    return breaches_of(INVARIANTS)


def breaches_of(invariants: Mapping[str, str]) -> list[Breach]:
    """Those of these invariants whose query answers rows."""
    breaches = []
    with connection.cursor() as cursor:
        for invariant, query in invariants.items():
            cursor.execute(query)
            if rows := cursor.fetchall():
                breaches.append(Breach(invariant, rows))
    return breaches
