"""Many threads at once, each with its own connection, really committing."""

from billing import ledger
from billing.models import Account, Hold, Transfer
from billing.selectors import balance_hundredths, ledger_breaches
from tests.factories import make_user
from tests.threads import in_threads


def _held(user):
    return Account.objects.get(user=user, purpose="held").balance_hundredths


def test_funds_for_forty_pay_exactly_forty_of_eighty_holds(committed_db):
    user = make_user()
    ledger.charge_upload(user=user, amount_hundredths=96_000, upload_id=1)  # leaves 4000

    def hold(number):
        return ledger.place_hold(user=user, amount_hundredths=100, job_id=number)

    outcomes = in_threads(80, hold)
    refused = [o for o in outcomes if isinstance(o, ledger.InsufficientTokensError)]
    assert len(refused) == 40
    assert sum(isinstance(outcome, Hold) for outcome in outcomes) == 40
    assert (balance_hundredths(user=user), _held(user)) == (0, 4_000)
    assert ledger_breaches() == []


def test_one_key_from_twenty_threads_has_one_effect(committed_db):
    user, admin = make_user(), make_user(staff=True)

    def top_up(number):
        return ledger.top_up(user=user, amount_hundredths=500, actor=admin, reason="", key="same")[
            0
        ].pk

    outcomes = in_threads(20, top_up)
    assert len(set(outcomes)) == 1
    assert balance_hundredths(user=user) == 100_500


def test_accounts_opened_from_twenty_threads_get_one_welcome_grant(committed_db):
    user = make_user()
    assert in_threads(20, lambda _: balance_hundredths(user=user)) == [100_000] * 20
    assert Transfer.objects.filter(kind="welcome").count() == 1


def test_hold_settled_from_ten_threads_is_settled_once(committed_db):
    user = make_user()
    hold = ledger.place_hold(user=user, amount_hundredths=1_000, job_id=1)

    def settle(number):
        return ledger.settle_hold(hold_id=hold.pk, captured_hundredths=number, job_id=1)

    outcomes = in_threads(10, settle)
    assert sum(isinstance(outcome, Hold) for outcome in outcomes) == 1
    assert sum(isinstance(o, ledger.HoldSettledError) for o in outcomes) == 9
    assert ledger_breaches() == []
