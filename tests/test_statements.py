"""Statements of account: what a month opens with, what moved in it, and what it closes with."""

import csv
import io
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from unittest.mock import patch

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.django import TestCase

from accounts.models import User
from billing import ledger, statements
from billing.models import Transfer
from billing.prices import tokens_text
from billing.selectors import ledger_breaches, user_accounts
from odproject.core.text import inert
from tests.clients import client_of, client_with, key_of
from tests.factories import make_user
from tests.queries import index_plan_of
from tests.threads import in_threads

NOTHING = {f"{kind}_tokens": 0.0 for kind in Transfer.Kind}
HEADER = ",".join(statements.CSV_COLUMNS)


def utc(*moment: int) -> datetime:
    return datetime(*moment, tzinfo=UTC)


@contextmanager
def at(now: datetime) -> Iterator[None]:
    """The database's clock shows this moment, to which movements are dated."""
    dated = Transfer._meta.get_field("created_at")
    with (
        patch.object(dated, "_get_default", lambda: now),
        patch.object(statements, "database_now", lambda: now),
    ):
        yield


def top_up(user: User, amount_hundredths: int, reason: str = "") -> None:
    ledger.top_up(
        user=user, amount_hundredths=amount_hundredths, actor=user, reason=reason, key=reason
    )


def csv_text(client, month: str) -> str:
    answer = client.get(f"/api/v1/statements/{month}/csv/")
    assert answer.status_code == 200
    return b"".join(answer.streaming_content).decode()  # which closes the file


@pytest.fixture
def holder(db) -> User:
    """A gift and an upload in August, a job held to its last microsecond and settled in October."""
    user = make_user()
    with at(utc(2026, 8, 3, 10, 0, 5)):
        ledger.open_accounts(user=user)
    with at(utc(2026, 8, 31, 12)):
        ledger.charge_upload(user=user, amount_hundredths=1_250, upload_id=7)
    with at(utc(2026, 8, 31, 23, 59, 59, 999_999)):
        hold = ledger.place_hold(user=user, amount_hundredths=3_000, job_id=9)
    with at(utc(2026, 10, 1)):
        top_up(user, 50_000, reason="Bill 12, paid")
    with at(utc(2026, 10, 2, 8, 30)):
        ledger.settle_hold(hold_id=hold.pk, captured_hundredths=1_001, job_id=9)
    return user


AUGUST = {
    "month": "2026-08",
    "is_final": True,
    "opening": {"available_tokens": 0.0, "held_tokens": 0.0},
    "moved": {**NOTHING, "welcome_tokens": 1000.0, "upload_tokens": 12.5, "hold_tokens": 30.0},
    "closing": {"available_tokens": 957.5, "held_tokens": 30.0},
    "movement_count": 3,
}
SEPTEMBER = {
    "month": "2026-09",
    "is_final": True,
    "opening": {"available_tokens": 957.5, "held_tokens": 30.0},
    "moved": NOTHING,
    "closing": {"available_tokens": 957.5, "held_tokens": 30.0},
    "movement_count": 0,
}
OCTOBER = {
    "month": "2026-10",
    "is_final": False,
    "opening": {"available_tokens": 957.5, "held_tokens": 30.0},
    "moved": {
        **NOTHING,
        "top_up_tokens": 500.0,
        "capture_tokens": 10.01,
        "release_tokens": 19.99,
    },
    "closing": {"available_tokens": 1477.49, "held_tokens": 0.0},
    "movement_count": 3,
}


# -- the statements ------------------------------------------------------------------------------


def test_every_month_since_the_first_movement_has_a_statement_the_newest_first(holder):
    with at(utc(2026, 10, 5)):
        page = client_of(holder).get("/api/v1/statements/").json()
    assert page["results"] == [OCTOBER, SEPTEMBER, AUGUST]
    assert (page["count"], page["next"], page["previous"]) == (3, None, None)


def test_page_of_older_months_adds_up_from_the_balance_of_now(holder):
    client = client_of(holder)
    with at(utc(2026, 10, 5)):
        first = client.get("/api/v1/statements/", {"page_size": 1}).json()
        last = client.get("/api/v1/statements/", {"page_size": 1, "page": 3}).json()
        assert client.get("/api/v1/statements/", {"page": 4}).status_code == 404
    assert (first["count"], first["results"]) == (3, [OCTOBER])
    assert last["results"] == [AUGUST]
    assert first["next"].endswith("/api/v1/statements/?page=2&page_size=1")


def test_statement_of_one_month_is_that_of_the_list(holder):
    client = client_of(holder)
    with at(utc(2026, 10, 5)):
        for one in (AUGUST, SEPTEMBER, OCTOBER):
            assert client.get(f"/api/v1/statements/{one['month']}/").json() == one


@pytest.mark.parametrize(
    ("now", "is_final"),
    [(utc(2026, 11, 1, 0, 59, 59, 999_999), False), (utc(2026, 11, 1, 1), True)],
)
def test_statement_is_final_an_hour_after_its_month(holder, now, is_final):
    with at(now):
        october = client_of(holder).get("/api/v1/statements/2026-10/").json()
    assert october == {**OCTOBER, "is_final": is_final}


@pytest.mark.parametrize("rest", ["", "csv/"])
@pytest.mark.parametrize(
    "month", ["2026-07", "2026-11", "2026-13", "2026-00", "0000-01", "9999-12"]
)
def test_month_without_a_statement_is_not_found(holder, month, rest):
    with at(utc(2026, 10, 31, 23, 59, 59, 999_999)):
        answer = client_of(holder).get(f"/api/v1/statements/{month}/{rest}")
    assert (answer.status_code, answer.json()["code"]) == (404, "statement_not_found")
    assert answer.json()["detail"] == f"There is no statement of {month}."


@pytest.mark.parametrize("month", ["2026-1", "20261", "2026-10-01", "october", "\uff12026-10"])
def test_what_is_no_month_is_not_found(holder, month):
    for rest in ("", "csv/"):
        answer = client_of(holder).get(f"/api/v1/statements/{month}/{rest}")
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")


def test_filter_that_the_list_does_not_have_is_refused(holder):
    answer = client_of(holder).get("/api/v1/statements/", {"year": 2026})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == "year"


def test_first_statement_of_a_new_user_has_the_welcome_gift(db):
    user = make_user()
    (only,) = client_of(user).get("/api/v1/statements/").json()["results"]
    assert only["moved"] == {**NOTHING, "welcome_tokens": 1000.0}
    assert only["closing"] == {"available_tokens": 1000.0, "held_tokens": 0.0}
    assert only["is_final"] is False


def test_movements_of_others_are_in_nobodys_statement_but_theirs(holder):
    other = make_user()
    with at(utc(2026, 8, 31, 12)):
        ledger.charge_upload(user=other, amount_hundredths=100, upload_id=8)
    with at(utc(2026, 10, 5)):
        assert client_of(holder).get("/api/v1/statements/2026-08/").json() == AUGUST
        assert ",8," not in csv_text(client_of(holder), "2026-08")


def test_key_for_reading_only_reads_statements(holder):
    client = client_with(key_of(holder, is_read_only=True)[1])
    with at(utc(2026, 10, 5)):
        assert client.get("/api/v1/statements/2026-08/").json() == AUGUST
        assert csv_text(client, "2026-08").startswith(HEADER)


# -- the movements as a file ---------------------------------------------------------------------


def test_csv_has_the_movements_of_the_month_behind_what_it_opens_with(holder):
    client = client_of(holder)
    with at(utc(2026, 10, 5)):
        answer = client.get("/api/v1/statements/2026-10/csv/")
        assert b"".join(answer.streaming_content).decode() == csv_text(client, "2026-10")
        august, october = csv_text(client, "2026-08"), csv_text(client, "2026-10")
    assert answer["Content-Type"] == "text/csv"
    assert answer["Content-Disposition"] == 'attachment; filename="statement-2026-10.csv"'
    assert august.splitlines() == [
        HEADER,
        "2026-08-01 00:00:00,opening,0,0,0,0,,,",
        "2026-08-03 10:00:05,welcome,1000,0,1000,0,,,",
        "2026-08-31 12:00:00,upload,-12.5,0,987.5,0,,7,",
        "2026-08-31 23:59:59,hold,-30,30,957.5,30,9,,",
    ]
    assert october.splitlines() == [
        HEADER,
        "2026-10-01 00:00:00,opening,0,0,957.5,30,,,",
        '2026-10-01 00:00:00,top_up,500,0,1457.5,30,,,"Bill 12, paid"',
        "2026-10-02 08:30:00,release,19.99,-19.99,1477.49,10.01,9,,",
        "2026-10-02 08:30:00,capture,0,-10.01,1477.49,0,9,,",
    ]


def test_csv_of_a_month_without_movements_has_its_balances(holder):
    with at(utc(2026, 10, 5)):
        assert csv_text(client_of(holder), "2026-09").splitlines() == [
            HEADER,
            "2026-09-01 00:00:00,opening,0,0,957.5,30,,,",
        ]


def test_csv_is_read_and_written_some_rows_at_a_time(holder, monkeypatch):
    august = utc(2026, 8, 1)
    whole = b"".join(statements.statement_csv(user=holder, begins_at=august))
    monkeypatch.setattr(statements, "ROWS_AT_A_TIME", 1)
    pieces = list(statements.statement_csv(user=holder, begins_at=august))
    assert [piece.count(b"\n") for piece in pieces] == [2, 1, 1, 1]
    assert b"".join(pieces) == whole


FORMULAS = [
    "=1+1",
    "+1",
    "-1",
    "@SUM(A1)",
    "\t=1",
    "\r\n =1",
    "\ufeff=1",
    "\N{FULLWIDTH EQUALS SIGN}1",
]


@pytest.mark.parametrize("reason", FORMULAS)
def test_reason_that_looks_like_a_formula_is_a_text(reason):
    assert inert(reason) == f"'{reason}"


@pytest.mark.parametrize("reason", ["", " ", "a=1", "2026", "'=1", 'paid, "twice"\n=1'])
def test_reason_that_is_none_stays_as_it_is(reason):
    assert inert(reason) == reason


def test_reason_in_the_file_is_no_formula(holder):
    with at(utc(2026, 10, 3)):
        top_up(holder, 100, reason='=HYPERLINK("https://a.example")')
        text = csv_text(client_of(holder), "2026-10")
    *_, last = csv.DictReader(io.StringIO(text))
    assert last["reason"] == '\'=HYPERLINK("https://a.example")'


# -- what the database does for it ---------------------------------------------------------------


MOVEMENTS_OF_ANOTHER = """
    INSERT INTO billing_transfer
        (source_id, destination_id, amount_hundredths, kind, idempotency_key, reason)
    SELECT %s, %s, 1, 'top_up', 'another:' || number, '' FROM generate_series(1, 5000) AS number
"""


@pytest.mark.parametrize("path", ["", "2026-10/"])
def test_figures_come_from_one_query_that_goes_by_the_indexes(holder, path):
    client = client_of(holder)
    another = ledger.open_accounts(user=make_user()).available
    with connection.cursor() as cursor:  # of a few rows any index would do
        issuance = ledger.system_account("issuance")
        cursor.execute(MOVEMENTS_OF_ANOTHER, [issuance.pk, another.pk])
    with at(utc(2026, 10, 5)), CaptureQueriesContext(connection) as asked:
        assert client.get(f"/api/v1/statements/{path}").status_code == 200
    (sql,) = [one["sql"] for one in asked.captured_queries if "date_trunc" in one["sql"]]
    plan = index_plan_of(sql)
    # By both; where there are few accounts PostgreSQL may skip through those of one of them.
    assert "_account_by_time" in plan
    assert "Seq Scan" not in plan


def test_longer_history_asks_the_database_no_more_often(holder):
    client = client_of(holder)

    def count() -> int:
        with at(utc(2026, 12, 5)), CaptureQueriesContext(connection) as asked:
            client.get("/api/v1/statements/")
        return len(asked)

    before = count()
    with at(utc(2026, 12, 1)):
        for number in range(20):
            ledger.charge_upload(user=holder, amount_hundredths=1, upload_id=100 + number)
    assert count() == before


def test_movements_of_many_at_once_are_dated_in_the_order_of_the_balances(committed_db):
    """With the next in the order of the last, no line shows a balance that never was."""
    user = make_user()
    ledger.open_accounts(user=user)

    def move(number: int) -> None:
        if number % 2:
            top_up(user, 100_000, reason=str(number))
        else:
            ledger.charge_upload(user=user, amount_hundredths=100_000, upload_id=number)

    in_threads(40, move)
    times = list(Transfer.objects.order_by("pk").values_list("created_at", flat=True))
    assert times == sorted(times)
    (begins_at,) = statements.months_of(user=user)
    text = b"".join(statements.statement_csv(user=user, begins_at=begins_at)).decode()
    balances = [float(one["available_tokens"]) for one in csv.DictReader(io.StringIO(text))]
    assert min(balances) == 0


# -- whatever happened ---------------------------------------------------------------------------

MOVES = st.sampled_from(["top up", "upload", "hold", "settle"])
AMOUNTS = st.integers(min_value=1, max_value=40_000)
PAUSES = st.sampled_from(
    ["none", "microsecond", "to the end of the month", "to the next month", "40 days"]
)


def later(moment: datetime, pause: str) -> datetime:
    next_month = (moment.replace(day=1) + timedelta(days=31)).replace(
        day=1, hour=0, minute=0, second=0, microsecond=0
    )
    return {
        "none": moment,
        "microsecond": moment + timedelta(microseconds=1),
        "to the end of the month": next_month - timedelta(microseconds=1),
        "to the next month": next_month,
        "40 days": moment + timedelta(days=40),
    }[pause]


class TestAnyHistory(TestCase):
    """Steps of a user, each a pause and a movement, on the real ledger."""

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
    @given(steps=st.lists(st.tuples(PAUSES, MOVES, AMOUNTS), max_size=12))
    def test_statements_and_files_add_up(self, steps):
        self.user = make_user()
        now = utc(2026, 1, 31, 23, 59, 59, 999_998)
        self.holds = []
        was = []  # when, and what there was to spend and held from then on
        with at(now):
            was.append((now, *self.balances()))
        for number, (pause, move, amount) in enumerate(steps):
            now = later(now, pause)
            with at(now):
                self.move(self.user.pk * 1_000 + number, move, amount)
                was.append((now, *self.balances()))
        with at(now):
            months = statements.months_of(user=self.user)
            listed = statements.statements_of(user=self.user, months=months)
            for one in listed:
                alone = statements.statements_of(user=self.user, months=[one.begins_at])
                assert alone == [one]
        assert [one.begins_at for one in listed] == months
        assert months[-1] == utc(2026, 1, 1)
        assert sum(one.movement_count for one in listed) == self.transfer_count()
        assert both(listed[0].closing) == self.balances()
        assert both(listed[-1].opening) == (0, 0)
        for newer, older in itertools.pairwise(listed):
            assert older.closing == newer.opening
            known = [balances for when, *balances in was if when < newer.begins_at]
            assert both(older.closing) == tuple(known[-1])
        for one in listed:
            self.adds_up(one)
        assert ledger_breaches() == []

    def move(self, number: int, move: str, amount: int) -> None:
        try:
            if move == "top up":
                top_up(self.user, amount, reason=str(number))
            elif move == "upload":
                ledger.charge_upload(user=self.user, amount_hundredths=amount, upload_id=number)
            elif move == "hold":
                held = ledger.place_hold(user=self.user, amount_hundredths=amount, job_id=number)
                self.holds.append((held, number))
            elif self.holds:
                hold, job_id = self.holds.pop()
                captured = min(amount, hold.amount_hundredths)
                ledger.settle_hold(hold_id=hold.pk, captured_hundredths=captured, job_id=job_id)
        except ledger.InsufficientTokensError:
            pass

    def balances(self) -> tuple[int, int]:
        accounts = user_accounts(user=self.user)
        return accounts.available.balance_hundredths, accounts.held.balance_hundredths

    def transfer_count(self) -> int:
        return Transfer.objects.exclude(source__user=None, destination__user=None).count()

    def adds_up(self, one: statements.Statement) -> None:
        moved = one.moved_hundredths
        came_in = moved["welcome"] + moved["top_up"]
        to_held = moved["hold"] - moved["release"]
        available, held = both(one.opening)
        assert both(one.closing) == (
            available + came_in - moved["upload"] - to_held,
            held + to_held - moved["capture"],
        )
        text = b"".join(statements.statement_csv(user=self.user, begins_at=one.begins_at)).decode()
        opening, *movements = csv.DictReader(io.StringIO(text))
        assert len(movements) == one.movement_count
        assert told(opening) == tuple(map(tokens_text, both(one.opening)))
        assert told([opening, *movements][-1]) == tuple(map(tokens_text, both(one.closing)))


def both(balances: statements.Balances) -> tuple[int, int]:
    return balances.available_hundredths, balances.held_hundredths


def told(line: dict[str, str]) -> tuple[str, str]:
    return line["available_tokens"], line["held_tokens"]
