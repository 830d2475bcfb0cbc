"""What people do with tokens, on top of the ledger."""

from dataclasses import asdict
from decimal import Decimal

from django.db import transaction

from accounts.models import User
from accounts.services import append_event
from billing import ledger
from billing.models import Account, Price, Transfer
from billing.prices import PriceList, hundredths, tokens, tokens_text
from odproject.core.errors import DomainError


class AdministratorsOnlyError(DomainError):
    """Only administrators may do this."""

    status = 403
    code = "administrators_only"
    title = "Administrators only"


def require_administrator(*, actor: User) -> None:
    """Raise AdministratorsOnlyError (403) unless the actor may top up tokens.

    The original lets every administrator do so, and so may whoever has been given no role. A role
    narrows that to what it is for: the group Support tops up, Moderators do not.
    """
    if not actor.is_staff or not (actor.has_perm("billing.top_up") or not _has_role(actor)):
        raise AdministratorsOnlyError("Only administrators may top up tokens.")


def _has_role(actor: User) -> bool:
    return actor.groups.exists() or actor.user_permissions.exists()


def top_up_tokens(
    *, actor: User, user: User, amount_tokens: Decimal, reason: str, key: str
) -> tuple[Transfer, bool]:
    """Add tokens to a user's balance, on behalf of an administrator, once for each key.

    Returns the transfer and whether it is new. Raises AdministratorsOnlyError (403),
    InvalidAmountError (400) and IdempotencyConflictError (422).
    """
    require_administrator(actor=actor)
    try:
        amount_hundredths = hundredths(amount_tokens)
    except ValueError as error:
        raise ledger.InvalidAmountError(str(error)) from error
    with transaction.atomic():
        transfer, is_new = ledger.top_up(
            user=user, amount_hundredths=amount_hundredths, actor=actor, reason=reason, key=key
        )
        if is_new:
            append_event(
                user_id=user.pk,
                kind="balance.topped_up",
                payload={"amount_tokens": tokens(amount_hundredths), "reason": reason},
            )
    return transfer, is_new


def set_low_balance_alert(*, user: User, alert_below_tokens: Decimal | None) -> None:
    """Have a user told when the balance falls below so many tokens; None: never.

    A balance that is below already is told of when it has been above and falls again. Raises
    ledger.InvalidAmountError (400) unless 0 < tokens <= 1000000.
    """
    threshold_hundredths = None
    if alert_below_tokens is not None:
        try:
            threshold_hundredths = hundredths(alert_below_tokens)
        except ValueError as error:
            raise ledger.InvalidAmountError(str(error)) from error
        if not 0 < threshold_hundredths <= ledger.ALERT_MAX_HUNDREDTHS:
            most = tokens_text(ledger.ALERT_MAX_HUNDREDTHS)
            raise ledger.InvalidAmountError(f"A threshold is above 0 and at most {most} tokens.")
    with transaction.atomic():
        available = ledger.open_accounts(user=user).available
        Account.objects.filter(pk=available.pk).update(alert_below_hundredths=threshold_hundredths)


def publish_prices(*, prices: PriceList) -> Price:
    """Have a new price list count for everything that is quoted from now on.

    What was quoted before keeps its price.
    """
    return Price.objects.create(**asdict(prices))
