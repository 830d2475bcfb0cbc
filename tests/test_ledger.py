"""Tokens: what moves, what is refused, and what nobody can change afterwards."""

from decimal import Decimal

import pytest
from django.core.management import call_command
from django.core.management.base import CommandError
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.utils import timezone

from accounts.models import Event
from billing import ledger
from billing.models import Account, Hold, Transfer
from billing.selectors import INVARIANTS, balance_hundredths, ledger_breaches
from billing.services import AdministratorsOnlyError, top_up_tokens
from datasets.models import Upload
from tests.factories import add_media_file, make_dataset, make_user

pytestmark = pytest.mark.django_db

BALANCES, ISSUED, HELD, FITTING = INVARIANTS


def _held(user):
    return Account.objects.get(user=user, purpose="held").balance_hundredths


def _kinds():
    return list(Transfer.objects.order_by("pk").values_list("kind", "amount_hundredths"))


def test_first_use_opens_the_accounts_with_a_thousand_tokens_once():
    user = make_user()
    assert not Account.objects.filter(user=user).exists()
    assert balance_hundredths(user=user) == 100_000
    assert balance_hundredths(user=user) == 100_000
    assert _kinds() == [("welcome", 100_000)]


def test_hold_sets_tokens_aside_and_settlement_captures_a_part():
    user = make_user()
    hold = ledger.place_hold(user=user, amount_hundredths=1_000, job_id=7)
    assert (balance_hundredths(user=user), _held(user)) == (99_000, 1_000)

    settled = ledger.settle_hold(hold_id=hold.pk, captured_hundredths=400, job_id=7)

    assert (balance_hundredths(user=user), _held(user)) == (99_600, 0)
    assert (settled.state, settled.captured_hundredths) == (Hold.State.SETTLED, 400)
    assert _kinds()[1:] == [("hold", 1_000), ("release", 600), ("capture", 400)]
    assert ledger_breaches() == []


def test_hold_above_the_balance_is_refused_and_changes_nothing():
    user = make_user()
    with pytest.raises(ledger.InsufficientTokensError) as refusal:
        ledger.place_hold(user=user, amount_hundredths=100_001, job_id=7)
    assert refusal.value.status == 402
    assert refusal.value.detail == "1000.01 tokens are needed, the balance is 1000."
    assert not Hold.objects.exists()
    assert balance_hundredths(user=user) == 100_000


def test_hold_of_another_amount_or_user_for_the_same_job_is_refused_and_moves_nothing():
    user, other = make_user(), make_user()
    ledger.place_hold(user=user, amount_hundredths=500, job_id=7)
    for payer, amount in ((user, 501), (other, 500)):
        with pytest.raises(ledger.IdempotencyConflictError, match="Job 7 holds"):
            ledger.place_hold(user=payer, amount_hundredths=amount, job_id=7)
    assert (balance_hundredths(user=user), _held(user)) == (99_500, 500)
    assert balance_hundredths(user=other) == 100_000
    assert Hold.objects.get().amount_hundredths == 500


def test_upload_of_a_negative_price_is_refused_and_gives_nothing():
    user = make_user()
    with pytest.raises(IntegrityError, match="amount"), transaction.atomic():
        ledger.charge_upload(user=user, amount_hundredths=-1, upload_id=1)
    assert balance_hundredths(user=user) == 100_000
    assert _kinds() == [("welcome", 100_000)]


def test_second_settlement_is_refused_and_moves_nothing():
    user = make_user()
    hold = ledger.place_hold(user=user, amount_hundredths=500, job_id=7)
    ledger.settle_hold(hold_id=hold.pk, captured_hundredths=500, job_id=7)
    with pytest.raises(ledger.HoldSettledError):
        ledger.settle_hold(hold_id=hold.pk, captured_hundredths=0, job_id=7)
    assert balance_hundredths(user=user) == 99_500
    assert len(_kinds()) == 3


@pytest.mark.parametrize("captured_hundredths", [-1, 501])
def test_capture_outside_the_hold_is_refused(captured_hundredths):
    user = make_user()
    hold = ledger.place_hold(user=user, amount_hundredths=500, job_id=7)
    with pytest.raises(ledger.InvalidAmountError):
        ledger.settle_hold(hold_id=hold.pk, captured_hundredths=captured_hundredths, job_id=7)
    hold.refresh_from_db()
    assert hold.state == Hold.State.OPEN
    assert _held(user) == 500


def test_free_job_is_held_and_settled_without_a_transfer():
    user = make_user()
    hold = ledger.place_hold(user=user, amount_hundredths=0, job_id=7)
    ledger.settle_hold(hold_id=hold.pk, captured_hundredths=0, job_id=7)
    assert _kinds() == [("welcome", 100_000)]


def test_free_upload_is_charged_without_a_transfer():
    user = make_user()
    ledger.charge_upload(user=user, amount_hundredths=0, upload_id=1)
    assert _kinds() == [("welcome", 100_000)]


def test_same_idempotency_key_has_one_effect():
    user, admin = make_user(), make_user(staff=True)
    for _ in range(3):
        ledger.top_up(user=user, amount_hundredths=500, actor=admin, reason="", key="once")
    assert balance_hundredths(user=user) == 100_500
    with pytest.raises(ledger.IdempotencyConflictError) as refusal:
        ledger.top_up(user=user, amount_hundredths=501, actor=admin, reason="", key="once")
    assert refusal.value.status == 422
    assert balance_hundredths(user=user) == 100_500


def test_top_up_names_the_administrator_and_the_reason_and_tells_the_user():
    user, admin = make_user(), make_user(staff=True)
    top_up_tokens(actor=admin, user=user, amount_tokens=Decimal("2.25"), reason="gift", key="k")
    transfer = Transfer.objects.get(kind="top_up")
    assert (transfer.actor, transfer.reason, transfer.amount_hundredths) == (admin, "gift", 225)
    event = Event.objects.get(user=user)
    assert (event.seq, event.kind) == (1, "balance.topped_up")
    assert event.payload == {"amount_tokens": 2.25, "reason": "gift"}


def test_top_up_of_twenty_thousand_tokens_is_the_largest():
    user, admin = make_user(), make_user(staff=True)
    top_up_tokens(actor=admin, user=user, amount_tokens=Decimal(20_000), reason="", key="k")
    assert balance_hundredths(user=user) == 2_100_000


def test_top_up_repeated_under_its_key_is_told_once():
    user, admin = make_user(), make_user(staff=True)
    for _ in range(2):
        top_up_tokens(actor=admin, user=user, amount_tokens=Decimal(5), reason="", key="k")
    assert Event.objects.filter(user=user).count() == 1


def test_top_up_by_a_user_is_refused():
    user = make_user()
    with pytest.raises(AdministratorsOnlyError) as refusal:
        top_up_tokens(actor=user, user=user, amount_tokens=Decimal(5), reason="", key="k")
    assert (refusal.value.status, refusal.value.code) == (403, "administrators_only")
    assert not Transfer.objects.filter(kind="top_up").exists()


@pytest.mark.parametrize("amount", ["0", "-1", "0.001", "20000.01", "NaN", "Infinity"])
def test_top_up_of_an_impossible_amount_is_refused(amount):
    user, admin = make_user(), make_user(staff=True)
    with pytest.raises(ledger.InvalidAmountError):
        top_up_tokens(actor=admin, user=user, amount_tokens=Decimal(amount), reason="", key="k")
    assert not Transfer.objects.filter(kind="top_up").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE billing_transfer SET amount_hundredths = 1",
        "DELETE FROM billing_transfer",
        "TRUNCATE billing_transfer",
        "ALTER TABLE billing_transfer DISABLE TRIGGER ALL",
        "DROP TRIGGER transfers_are_never_changed ON billing_transfer",
        "SET session_replication_role = replica",
    ],
)
def test_application_cannot_change_what_was_transferred(statement):
    balance_hundredths(user=make_user())
    with pytest.raises(DatabaseError), transaction.atomic(), connection.cursor() as cursor:
        cursor.execute(statement)
    assert _kinds() == [("welcome", 100_000)]


def test_database_itself_refuses_a_negative_balance():
    user = make_user()
    balance_hundredths(user=user)
    with pytest.raises(IntegrityError, match="account_balance_not_negative"), transaction.atomic():
        Account.objects.filter(user=user).update(balance_hundredths=-1)


def test_check_ledger_finds_a_balance_that_no_transfer_explains(capsys):
    user = make_user()
    balance_hundredths(user=user)
    call_command("check_ledger")
    assert "BROKEN" not in capsys.readouterr().out
    Account.objects.filter(user=user, purpose="available").update(balance_hundredths=1)
    with pytest.raises(CommandError, match="2 invariants are broken"):
        call_command("check_ledger")
    assert "BROKEN  every balance equals its transfers" in capsys.readouterr().out


def test_check_ledger_finds_an_upload_that_was_not_charged(capsys):
    user = make_user()
    upload_id = add_media_file(make_dataset(user)).upload_id
    Upload.objects.filter(pk=upload_id).update(cost_hundredths=75)
    with pytest.raises(CommandError, match="1 invariants are broken"):
        call_command("check_ledger")
    assert "BROKEN  every upload was charged what it cost" in capsys.readouterr().out
    ledger.charge_upload(user=user, amount_hundredths=75, upload_id=upload_id)
    call_command("check_ledger")
    ledger.charge_upload(user=user, amount_hundredths=75, upload_id=upload_id + 1)
    with pytest.raises(CommandError, match="1 invariants are broken"):
        call_command("check_ledger")


def test_check_ledger_finds_tokens_that_went_from_user_to_user(capsys):
    giver, taker = (ledger.open_accounts(user=make_user()).available for _ in range(2))
    for account, balance in ((giver, 99_999), (taker, 100_001)):
        Account.objects.filter(pk=account.pk).update(balance_hundredths=balance)
    Transfer.objects.create(
        source=giver, destination=taker, amount_hundredths=1, kind="release", idempotency_key="x"
    )
    with pytest.raises(CommandError, match="1 invariants are broken"):
        call_command("check_ledger")
    told = "BROKEN  every transfer is between two accounts of its kind and of one user"
    assert told in capsys.readouterr().out


def _broken():
    return [breach.invariant for breach in ledger_breaches()]


def test_tokens_that_nobody_issued_are_found_with_the_account_that_has_them():
    user = make_user()
    account = ledger.open_accounts(user=user).available
    Account.objects.filter(pk=account.pk).update(balance_hundredths=100_001)
    balances, issued = ledger_breaches()
    assert (balances.invariant, balances.rows) == (BALANCES, [(account.pk, 100_001, 100_000)])
    assert (issued.invariant, issued.rows) == (ISSUED, [(100_000, 100_001, 0)])


@pytest.mark.parametrize(
    "change", [{"amount_hundredths": 299}, {"state": "settled", "settled_at": timezone.now()}]
)
def test_tokens_that_are_held_for_no_open_hold_are_found(change):
    user = make_user()
    ledger.place_hold(user=user, amount_hundredths=300, job_id=7)
    ledger.charge_upload(user=user, amount_hundredths=75, upload_id=1)
    assert _broken() == []
    Hold.objects.update(**change)
    assert _broken() == [HELD]


@pytest.mark.parametrize(("kind", "is_another"), [("hold", True), ("release", False)])
def test_transfer_to_another_user_or_of_another_kind_is_found_by_itself(kind, is_another):
    source = ledger.open_accounts(user=make_user())
    taker = ledger.open_accounts(user=make_user()) if is_another else source
    for account, balance in ((source.available, 99_999), (taker.held, 1)):
        Account.objects.filter(pk=account.pk).update(balance_hundredths=balance)
    Transfer.objects.create(
        source=source.available,
        destination=taker.held,
        amount_hundredths=1,
        kind=kind,
        idempotency_key="x",
    )
    assert _broken() == [HELD, FITTING]
