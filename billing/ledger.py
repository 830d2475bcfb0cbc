"""The ledger: every movement of tokens, each one function, each once per idempotency key.

Three rules keep it right under concurrency. A balance changes only by a conditional UPDATE, whose
row count says whether the money was there; the rows of one transfer are locked in the order of
their ids, so that two transfers never wait for each other in a circle; and they are locked before
the transfer is written, which is when the database dates it. So the times of the transfers of an
account, and their ids, are in the order in which its balance changed.

The same UPDATE tells what a balance was and has become. So of all who spend at once the one who
takes it below the threshold that its user has set knows it, and appends an event.
"""

from dataclasses import dataclass
from datetime import datetime

from django.db import IntegrityError, connection, transaction
from django.utils import timezone

from accounts.models import User
from accounts.services import append_event
from billing.models import Account, Hold, Transfer
from billing.prices import tokens, tokens_text
from odproject.core.errors import ConflictError, DomainError

WELCOME_HUNDREDTHS = 100_000
TOP_UP_MAX_HUNDREDTHS = 2_000_000
ALERT_MAX_HUNDREDTHS = 100_000_000

_CHANGE_BALANCE = """
    UPDATE billing_account SET balance_hundredths = balance_hundredths + %(change)s
    WHERE id = %(account_id)s AND balance_hundredths + %(change)s >= 0
    RETURNING balance_hundredths, alert_below_hundredths
"""


class InsufficientTokensError(DomainError):
    """The balance does not cover what is asked for."""

    status = 402
    code = "insufficient_tokens"
    title = "Insufficient tokens"

    @classmethod
    def of(cls, *, needed_hundredths: int, balance_hundredths: int) -> "InsufficientTokensError":
        """The refusal with both amounts, as a sentence and as members of the document."""
        needed, balance = tokens_text(needed_hundredths), tokens_text(balance_hundredths)
        return cls(
            f"{needed} tokens are needed, the balance is {balance}.",
            members={
                "needed_tokens": tokens(needed_hundredths),
                "balance_tokens": tokens(balance_hundredths),
            },
        )


class InvalidAmountError(DomainError):
    """The amount is not one that may be moved."""

    code = "invalid_amount"
    title = "Invalid amount"


class HoldSettledError(ConflictError):
    """The hold was settled before."""

    code = "hold_settled"
    title = "The hold is settled"


class IdempotencyConflictError(DomainError):
    """The idempotency key was used for something else."""

    status = 422
    code = "idempotency_key_reused"
    title = "The idempotency key was used for something else"


@dataclass(frozen=True)
class UserAccounts:
    """The two accounts of a user."""

    available: Account
    held: Account


def system_account(purpose: str) -> Account:
    """The system's account for a purpose (issuance or revenue)."""
    return Account.objects.get(user=None, purpose=purpose)


@transaction.atomic
def open_accounts(*, user: User) -> UserAccounts:
    """The user's accounts, opened with the welcome grant on first use; runs safely at once."""
    found = {a.purpose: a for a in Account.objects.filter(user=user)}
    if len(found) < 2:
        purposes = (Account.Purpose.AVAILABLE, Account.Purpose.HELD)
        Account.objects.bulk_create(
            [Account(user=user, purpose=p, balance_hundredths=0) for p in purposes],
            ignore_conflicts=True,
        )
        found = {a.purpose: a for a in Account.objects.filter(user=user)}
        _transfer(
            key=f"welcome:{user.pk}",
            kind=Transfer.Kind.WELCOME,
            source=system_account(Account.Purpose.ISSUANCE),
            destination=found[Account.Purpose.AVAILABLE],
            amount_hundredths=WELCOME_HUNDREDTHS,
        )
        found = {a.purpose: a for a in Account.objects.filter(user=user)}
    return UserAccounts(found[Account.Purpose.AVAILABLE], found[Account.Purpose.HELD])


def top_up(
    *, user: User, amount_hundredths: int, actor: User, reason: str, key: str
) -> tuple[Transfer, bool]:
    """Grant tokens to a user, recorded with the administrator's name.

    Returns the transfer and whether it is new: the same key again moves nothing.
    Raises InvalidAmountError (400) unless 0 < amount <= 20000 tokens.
    """
    if not 0 < amount_hundredths <= TOP_UP_MAX_HUNDREDTHS:
        most = tokens_text(TOP_UP_MAX_HUNDREDTHS)
        raise InvalidAmountError(f"A top-up is more than 0 and at most {most} tokens.")
    with transaction.atomic():
        accounts = open_accounts(user=user)
        return _transfer(
            key=f"top-up:{key}",
            kind=Transfer.Kind.TOP_UP,
            source=system_account(Account.Purpose.ISSUANCE),
            destination=accounts.available,
            amount_hundredths=amount_hundredths,
            actor=actor,
            reason=reason,
        )


def charge_upload(*, user: User, amount_hundredths: int, upload_id: int) -> None:
    """Charge an upload; nothing to pay is no transfer. Raises InsufficientTokensError (402)."""
    with transaction.atomic():
        accounts = open_accounts(user=user)
        if not amount_hundredths:
            return
        _transfer(
            key=f"upload:{upload_id}",
            kind=Transfer.Kind.UPLOAD,
            source=accounts.available,
            destination=system_account(Account.Purpose.REVENUE),
            amount_hundredths=amount_hundredths,
            upload_id=upload_id,
        )


def place_hold(*, user: User, amount_hundredths: int, job_id: int) -> Hold:
    """Set tokens aside for a job; raises InsufficientTokensError (402)."""
    with transaction.atomic():
        accounts = open_accounts(user=user)
        hold, created = Hold.objects.get_or_create(
            idempotency_key=f"job:{job_id}",
            defaults={"user": user, "amount_hundredths": amount_hundredths},
        )
        if not created:
            if (hold.user_id, hold.amount_hundredths) != (user.pk, amount_hundredths):
                raise IdempotencyConflictError(f"Job {job_id} holds another amount already.")
            return hold
        if amount_hundredths:
            _transfer(
                key=f"hold:{job_id}",
                kind=Transfer.Kind.HOLD,
                source=accounts.available,
                destination=accounts.held,
                amount_hundredths=amount_hundredths,
                job_id=job_id,
            )
        return hold


def settle_hold(
    *, hold_id: int, captured_hundredths: int, job_id: int, now: datetime | None = None
) -> Hold:
    """Capture a part of a hold and release the rest, once.

    Raises InvalidAmountError above the hold and HoldSettledError the second time.
    """
    with transaction.atomic():
        hold = Hold.objects.select_related("user").get(pk=hold_id)
        if not 0 <= captured_hundredths <= hold.amount_hundredths:
            raise InvalidAmountError("A capture is at most what is held.")
        settled = Hold.objects.filter(pk=hold_id, state=Hold.State.OPEN).update(
            state=Hold.State.SETTLED,
            captured_hundredths=captured_hundredths,
            settled_at=now or timezone.now(),
        )
        if not settled:
            raise HoldSettledError(f"Hold {hold_id} was settled before.")
        accounts = open_accounts(user=hold.user)
        released_hundredths = hold.amount_hundredths - captured_hundredths
        # Release first: it locks the available account, whose id is the lower one.
        if released_hundredths:
            _transfer(
                key=f"release:{job_id}",
                kind=Transfer.Kind.RELEASE,
                source=accounts.held,
                destination=accounts.available,
                amount_hundredths=released_hundredths,
                job_id=job_id,
            )
        if captured_hundredths:
            _transfer(
                key=f"capture:{job_id}",
                kind=Transfer.Kind.CAPTURE,
                source=accounts.held,
                destination=system_account(Account.Purpose.REVENUE),
                amount_hundredths=captured_hundredths,
                job_id=job_id,
            )
        hold.refresh_from_db()
        return hold


def _transfer(
    *,
    key: str,
    kind: Transfer.Kind,
    source: Account,
    destination: Account,
    amount_hundredths: int,
    job_id: int | None = None,
    upload_id: int | None = None,
    actor: User | None = None,
    reason: str = "",
) -> tuple[Transfer, bool]:
    """Append a transfer and move its amount; returns it and whether it is new.

    The same key again returns the first transfer and moves nothing. Raises
    InsufficientTokensError, and IdempotencyConflictError when the key was used for another
    transfer.
    """
    own_ids = [one.pk for one in (source, destination) if one.user_id is not None]
    own = Account.objects.filter(pk__in=own_ids).order_by("pk")
    list(own.select_for_update(no_key=True).values_list("pk"))
    try:
        # The insert comes first: a key that was used moves nothing.
        with transaction.atomic():
            transfer = Transfer.objects.create(
                source=source,
                destination=destination,
                amount_hundredths=amount_hundredths,
                kind=kind,
                idempotency_key=key,
                job_id=job_id,
                upload_id=upload_id,
                actor=actor,
                reason=reason,
            )
    except IntegrityError:
        first = Transfer.objects.filter(idempotency_key=key).first()
        if first is None:
            raise
        wanted = (source.pk, destination.pk, amount_hundredths)
        if (first.source_id, first.destination_id, first.amount_hundredths) != wanted:
            raise IdempotencyConflictError(
                f"The key {key} was used for another transfer."
            ) from None
        return first, False
    changes = [(source, -amount_hundredths), (destination, amount_hundredths)]
    low_balance: dict[str, float] | None = None
    for account, change_hundredths in sorted(changes, key=lambda change: change[0].pk):
        if account.user_id is not None:
            low_balance = _change_balance(account, change_hundredths) or low_balance
    if low_balance and source.user_id is not None:  # the stream is locked after both accounts
        append_event(user_id=source.user_id, kind="balance.low", payload=low_balance)
    return transfer, True


def _change_balance(account: Account, change_hundredths: int) -> dict[str, float] | None:
    """Add to a balance, if it stays at least 0; raises InsufficientTokensError.

    Returns what its user is to be told if that took it below the threshold, else None.
    """
    with connection.cursor() as cursor:
        values = {"account_id": account.pk, "change": change_hundredths}
        cursor.execute(_CHANGE_BALANCE, values)
        changed = cursor.fetchone()
    if changed is None:
        balance_hundredths = Account.objects.values_list("balance_hundredths", flat=True).get(
            pk=account.pk
        )
        raise InsufficientTokensError.of(
            needed_hundredths=-change_hundredths, balance_hundredths=balance_hundredths or 0
        )
    after, threshold = changed
    if threshold is None or not after < threshold <= after - change_hundredths:
        return None
    return {"available_tokens": tokens(after), "alert_below_tokens": tokens(threshold)}
