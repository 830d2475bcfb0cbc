"""GET and PATCH /token."""

import json

import pytest

from tests.contract.client import EVERY_WAY, Way, assert_problem

pytestmark = pytest.mark.service


@pytest.fixture(scope="module")
def saver(anonymous):
    """Whoever gets the tokens."""
    return anonymous.new_customer()


@EVERY_WAY
def test_balance_is_a_float(customer, way):
    answer = customer.call("GET", "/token", {}, way)
    assert answer.status_code == 200
    assert answer.json() == {"tokenBalance": 1000.0}
    assert type(answer.json()["tokenBalance"]) is float


@EVERY_WAY
def test_top_up_is_added_to_the_balance(administrator, saver, way):
    balance = saver.balance()
    keys = {"topUpUserEmail": saver.email, "topUpAmount": 12.25}
    for expected in (balance + 12.25, balance + 24.5):
        answer = administrator.call("PATCH", "/token", keys, way)
        assert answer.status_code == 200
        assert answer.json() == {"updatedTokenBalance": expected}
        assert saver.balance() == expected


def test_email_of_a_top_up_has_no_case(administrator, saver):
    before = saver.balance()
    keys = {"topUpUserEmail": saver.email.upper(), "topUpAmount": 1}
    answer = administrator.call("PATCH", "/token", keys)
    assert answer.json() == {"updatedTokenBalance": before + 1}


@pytest.mark.parametrize("amount", ["20000", "20000.00", "2e4", "0.01", "20000.000", "0.0100"])
def test_greatest_and_smallest_amount_are_taken(administrator, saver, amount):
    before = saver.balance()
    keys = {"topUpUserEmail": saver.email, "topUpAmount": amount}
    assert administrator.call("PATCH", "/token", keys, Way("form")).status_code == 200
    assert round(saver.balance() - before, 2) == float(amount)


AMOUNTS = ["NaN", "Infinity", "-Infinity", "1e400", "-1", "0", "-0.0", "0.001", "20000.01"]


@pytest.mark.parametrize("amount", [*AMOUNTS, "true", "null", "[5]", '{"a": 5}', '"five"', '""'])
def test_unfit_amount_in_json_is_400_and_adds_nothing(administrator, customer, amount):
    before = customer.balance()
    body = f'{{"topUpUserEmail": {json.dumps(customer.email)}, "topUpAmount": {amount}}}'
    headers = {"Content-Type": "application/json"}
    answer = administrator.send("PATCH", "/token", content=body.encode(), headers=headers)
    assert_problem(answer, 400)
    assert customer.balance() == before


TOO_FINE = "0.01" + 40 * "0" + "1"  # which a number in JSON cannot tell from 0.01


@pytest.mark.parametrize(
    "amount", [*AMOUNTS, TOO_FINE, "sNaN", "five", "", "1,5", "0x10", "9" * 5000]
)
def test_unfit_amount_in_a_form_is_400_and_adds_nothing(administrator, customer, amount):
    before = customer.balance()
    keys = {"topUpUserEmail": customer.email, "topUpAmount": amount}
    assert_problem(administrator.call("PATCH", "/token", keys, Way("form")), 400)
    assert customer.balance() == before


@EVERY_WAY
def test_top_up_by_anybody_else_is_403_and_adds_nothing(customer, way):
    before = customer.balance()
    keys = {"topUpUserEmail": customer.email, "topUpAmount": 5}
    assert_problem(customer.call("PATCH", "/token", keys, way), 403, "AdministratorsOnlyError")
    assert customer.balance() == before


@pytest.mark.parametrize("email", ["nobody@example.org", "nobody", "*", "%", "x' OR '1'='1"])
def test_top_up_of_an_unknown_user_is_404(administrator, email):
    keys = {"topUpUserEmail": email, "topUpAmount": 5}
    assert_problem(administrator.call("PATCH", "/token", keys), 404, "UserNotFoundError")


@pytest.mark.parametrize("missing", ["topUpUserEmail", "topUpAmount"])
def test_top_up_without_a_key_is_400(administrator, customer, missing):
    keys = {"topUpUserEmail": customer.email, "topUpAmount": 5}
    del keys[missing]
    problem = assert_problem(administrator.call("PATCH", "/token", keys), 400)
    assert [error["field"] for error in problem["errors"]] == [missing]


def test_extra_keys_of_a_top_up_are_ignored(administrator, saver):
    before = saver.balance()
    keys = {"topUpUserEmail": saver.email, "topUpAmount": 1, "balance": 9, "is_staff": True}
    assert administrator.call("PATCH", "/token", keys).status_code == 200
    assert round(saver.balance() - before, 2) == 1.0
    assert_problem(saver.call("PATCH", "/token", keys), 403)


def test_keys_of_a_top_up_do_not_come_from_the_query(administrator, customer):
    query = {"topUpUserEmail": customer.email, "topUpAmount": "5"}
    before = customer.balance()
    assert_problem(administrator.send("PATCH", "/token", params=query), 400)
    assert customer.balance() == before
