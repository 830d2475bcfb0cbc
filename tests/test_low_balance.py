"""A user who wants to know is told, once, when the balance falls below a threshold."""

from decimal import Decimal

import pytest
from django.db import IntegrityError, transaction

from accounts.models import Event, User
from billing import ledger
from billing.models import Account
from billing.selectors import balance_hundredths, ledger_breaches
from billing.services import set_low_balance_alert
from tests.clients import client_of
from tests.factories import make_user
from tests.threads import in_threads

BALANCE = "/api/v1/balance/"


@pytest.fixture
def user(db) -> User:
    """A user with 1000 tokens, who wants to know when there are fewer than 900."""
    user = make_user()
    tell_below(user, 900)
    return user


def tell_below(user: User, tokens: int | None) -> None:
    threshold = None if tokens is None else Decimal(tokens)
    set_low_balance_alert(user=user, alert_below_tokens=threshold)


def alerts_of(user: User) -> list[tuple[float, float]]:
    """Balance and threshold of every alert, in order."""
    events = Event.objects.filter(user=user, kind="balance.low").order_by("seq")
    return [(one.payload["available_tokens"], one.payload["alert_below_tokens"]) for one in events]


def spend(user: User, tokens: float, number: int = 1) -> None:
    ledger.charge_upload(user=user, amount_hundredths=round(tokens * 100), upload_id=number)


def hold(user: User, tokens: float, number: int = 1) -> int:
    amount_hundredths = round(tokens * 100)
    return ledger.place_hold(user=user, amount_hundredths=amount_hundredths, job_id=number).pk


def top_up(user: User, tokens: float) -> None:
    boss = make_user(staff=True)
    ledger.top_up(
        user=user, amount_hundredths=round(tokens * 100), actor=boss, reason="", key=f"{boss.pk}"
    )


class TestFall:
    def test_balance_at_the_threshold_is_not_below_it(self, user):
        spend(user, 100)
        assert alerts_of(user) == []
        spend(user, 0.01, 2)
        assert alerts_of(user) == [(899.99, 900.0)]

    def test_hold_of_a_job_tells_as_an_upload_does(self, user):
        hold(user, 100.5)
        assert alerts_of(user) == [(899.5, 900.0)]

    def test_further_spending_tells_nothing_more(self, user):
        hold(user, 200)
        spend(user, 300)
        hold(user, 100, 2)
        assert alerts_of(user) == [(800.0, 900.0)]

    def test_capture_of_what_was_held_is_no_fall(self, user):
        hold_id = hold(user, 100)
        ledger.settle_hold(hold_id=hold_id, captured_hundredths=10_000, job_id=1)
        assert alerts_of(user) == []

    def test_release_that_lifts_it_above_arms_it_again(self, user):
        hold_id = hold(user, 200)
        ledger.settle_hold(hold_id=hold_id, captured_hundredths=10_000, job_id=1)
        spend(user, 0.5)
        assert alerts_of(user) == [(800.0, 900.0), (899.5, 900.0)]

    def test_release_that_leaves_it_below_does_not(self, user):
        hold_id = hold(user, 200)
        ledger.settle_hold(hold_id=hold_id, captured_hundredths=10_001, job_id=1)
        spend(user, 0.5)
        assert alerts_of(user) == [(800.0, 900.0)]

    def test_top_up_arms_it_again(self, user):
        spend(user, 150)
        top_up(user, 50)
        spend(user, 1, 2)
        assert alerts_of(user) == [(850.0, 900.0), (899.0, 900.0)]

    def test_request_that_comes_again_tells_nothing_again(self, user):
        for _ in range(2):
            hold(user, 200)
            spend(user, 50)
        assert alerts_of(user) == [(800.0, 900.0)]

    def test_refused_spending_and_what_is_taken_back_tell_nothing(self, user):
        with pytest.raises(ledger.InsufficientTokensError):
            spend(user, 1000.01)
        with transaction.atomic():
            spend(user, 500)
            transaction.set_rollback(True)
        assert alerts_of(user) == []
        assert balance_hundredths(user=user) == 100_000

    def test_nobody_else_is_told(self, user):
        other = make_user()
        spend(other, 999, 7)
        hold(user, 200)
        assert not Event.objects.filter(user=other).exists()

    def test_threshold_that_is_set_above_the_balance_waits_for_the_next_fall(self, user):
        spend(user, 50)
        tell_below(user, 960)
        spend(user, 10, 2)
        assert alerts_of(user) == []
        top_up(user, 100)
        spend(user, 90, 3)
        assert alerts_of(user) == [(950.0, 960.0)]

    def test_threshold_that_was_taken_away_tells_nothing(self, user):
        tell_below(user, None)
        spend(user, 500)
        assert alerts_of(user) == []


class TestThreshold:
    def test_it_is_set_and_taken_away_at_the_balance(self, db):
        client = client_of(make_user())
        assert client.get(BALANCE).json()["alert_below_tokens"] is None
        for threshold in (50, 0.01, 1_000_000, None):
            changed = client.patch(BALANCE, {"alert_below_tokens": threshold}, format="json")
            assert changed.status_code == 200
            assert changed.json() == {
                "available_tokens": 1000.0,
                "held_tokens": 0.0,
                "alert_below_tokens": threshold,
            }
            assert client.get(BALANCE).json() == changed.json()

    @pytest.mark.parametrize(
        "threshold", [0, -1, 0.001, 1_000_000.01, 10**30, "NaN", "Infinity", "much", True, [1]]
    )
    def test_any_other_is_refused_by_its_field_and_changes_nothing(self, user, threshold):
        refused = client_of(user).patch(BALANCE, {"alert_below_tokens": threshold}, format="json")
        assert refused.status_code == 400
        assert [one["field"] for one in refused.json()["errors"]] == ["alert_below_tokens"]
        account = Account.objects.get(user=user, purpose="available")
        assert account.alert_below_hundredths == 90_000

    def test_empty_field_of_a_form_is_none(self, user):
        changed = client_of(user).patch(BALANCE, {"alert_below_tokens": ""}, format="multipart")
        assert changed.json()["alert_below_tokens"] is None

    @pytest.mark.parametrize("keys", [{}, {"available_tokens": 5_000}])
    def test_it_must_be_named_and_nothing_else_is_for_users_to_set(self, user, keys):
        assert client_of(user).patch(BALANCE, keys, format="json").status_code == 400
        assert balance_hundredths(user=user) == 100_000

    @pytest.mark.parametrize(("purpose", "threshold"), [("available", 0), ("held", 5)])
    def test_database_refuses_one_that_makes_no_sense(self, user, purpose, threshold):
        account = Account.objects.filter(user=user, purpose=purpose)
        with pytest.raises(IntegrityError, match="alert_is_of_available_tokens_and_positive"):
            account.update(alert_below_hundredths=threshold)


def test_of_fifty_who_spend_at_once_one_is_told(committed_db):
    user = make_user()
    tell_below(user, 900)

    def spend_ten(number: int) -> None:
        if number % 2:
            hold(user, 10, number)
        else:
            spend(user, 10, number)

    assert in_threads(50, spend_ten) == [None] * 50
    assert alerts_of(user) == [(890.0, 900.0)]
    assert ledger_breaches() == []


def test_jobs_that_end_while_others_begin_wait_for_nobody_in_a_circle(committed_db):
    """Every one of them may have something to tell, and all of them change both balances."""
    user = make_user()
    tell_below(user, 995)
    holds = [hold(user, 10, number) for number in range(20)]

    def begin_or_end(number: int) -> None:
        if number < 20:
            ledger.settle_hold(hold_id=holds[number], captured_hundredths=500, job_id=number)
        else:
            hold(user, 10, number)

    assert in_threads(40, begin_or_end) == [None] * 40
    assert balance_hundredths(user=user) == 70_000
    assert ledger_breaches() == []
