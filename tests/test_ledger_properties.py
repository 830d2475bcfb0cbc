"""Whatever people do and in whatever order, the ledger agrees with a few lines of arithmetic."""

from decimal import Decimal

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from accounts.models import Event
from billing import ledger
from billing.models import Account
from billing.prices import tokens
from billing.selectors import balance_hundredths, ledger_breaches
from billing.services import set_low_balance_alert
from tests.factories import make_user

AMOUNTS = st.integers(min_value=0, max_value=60_000)


class Ledger(RuleBasedStateMachine):
    """One user; holds, uploads and top-ups against a plain model of a few numbers.

    Two are what there is to spend and what is held; the others, below what balance the user wants
    to be told, and what each alert told.
    """

    holds = Bundle("holds")

    def __init__(self):
        super().__init__()
        self.user = make_user()
        self.admin = make_user(staff=True)
        self.available = 100_000
        self.held = 0
        self.threshold = None
        self.alerts = []
        self.next_id = 0

    def _new_id(self):
        self.next_id += 1
        return self.user.pk * 1_000 + self.next_id

    @rule(amount=AMOUNTS)
    def upload(self, amount):
        arguments = {"user": self.user, "amount_hundredths": amount, "upload_id": self._new_id()}
        if amount > self.available:
            self._refused(ledger.charge_upload, arguments)
            return
        ledger.charge_upload(**arguments)
        self._spend(amount)

    @rule(target=holds, amount=AMOUNTS)
    def hold(self, amount):
        job_id = self._new_id()
        arguments = {"user": self.user, "amount_hundredths": amount, "job_id": job_id}
        if amount > self.available:
            self._refused(ledger.place_hold, arguments)
            return None
        self._spend(amount)
        self.held += amount
        placed = ledger.place_hold(**arguments)
        assert ledger.place_hold(**arguments).pk == placed.pk  # the same request again
        return placed.pk, job_id, amount

    @rule(placed=consumes(holds), share=st.floats(min_value=0, max_value=1))
    def settle(self, placed, share):
        if placed is None:
            return
        hold_id, job_id, amount = placed
        captured = int(amount * share)
        arguments = {"hold_id": hold_id, "job_id": job_id}
        ledger.settle_hold(**arguments, captured_hundredths=captured)
        self.held -= amount
        self.available += amount - captured
        try:
            ledger.settle_hold(**arguments, captured_hundredths=0)
        except ledger.HoldSettledError:
            return
        raise AssertionError("a hold was settled twice")

    @rule(amount=st.integers(min_value=1, max_value=2_000_000), repeats=st.integers(1, 3))
    def top_up(self, amount, repeats):
        key = str(self._new_id())
        for _ in range(repeats):
            ledger.top_up(
                user=self.user, amount_hundredths=amount, actor=self.admin, reason="", key=key
            )
        self.available += amount

    @rule(threshold=st.none() | st.integers(min_value=1, max_value=150_000))
    def set_threshold(self, threshold):
        wanted = None if threshold is None else Decimal(threshold) / 100
        set_low_balance_alert(user=self.user, alert_below_tokens=wanted)
        self.threshold = threshold

    def _spend(self, amount):
        before, self.available = self.available, self.available - amount
        if self.threshold is not None and self.available < self.threshold <= before:
            self.alerts.append((tokens(self.available), tokens(self.threshold)))

    @invariant()
    def every_fall_below_the_threshold_was_told_once(self):
        events = Event.objects.filter(user=self.user, kind="balance.low").order_by("seq")
        told = [
            (one["available_tokens"], one["alert_below_tokens"])
            for one in events.values_list("payload", flat=True)
        ]
        assert told == self.alerts

    @invariant()
    def ledger_agrees_with_the_model(self):
        assert balance_hundredths(user=self.user) == self.available
        held = Account.objects.get(user=self.user, purpose="held").balance_hundredths
        assert held == self.held

    def _refused(self, operation, arguments):
        try:
            operation(**arguments)
        except ledger.InsufficientTokensError:
            return
        raise AssertionError("an overdraft was allowed")

    def teardown(self):
        assert ledger_breaches() == []


class TestLedgerAgainstAModel(TestCase, Ledger.TestCase):
    settings = settings(
        max_examples=25,
        stateful_step_count=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
