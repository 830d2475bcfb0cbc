"""POST /user/registration and POST /user/, and what a token is good for."""

from datetime import UTC, datetime, timedelta

import jwt
import pytest

from tests.contract.client import EVERY_WAY, PASSWORD, Api, Way, assert_problem, new_email

pytestmark = pytest.mark.service


def registration(email: str, password: str = PASSWORD, confirmation: str | None = None):
    confirmation = password if confirmation is None else confirmation
    return {"email": email, "password": password, "confirmPassword": confirmation}


@EVERY_WAY
def test_registration_answers_201_and_its_message(anonymous, way):
    answer = anonymous.call("POST", "/user/registration", registration(new_email()), way)
    assert answer.status_code == 201
    assert answer.json() == {"message": "User created!"}


@EVERY_WAY
def test_log_in_answers_the_token_in_its_message_and_beside_it(anonymous, customer, way):
    keys = {"email": customer.email, "password": PASSWORD}
    answer = anonymous.call("POST", "/user/", keys, way)
    assert answer.status_code == 200
    body = answer.json()
    assert set(body) == {"message", "access", "refresh", "jwt_token"}
    assert body["message"] == f"Log in completed! User token: {body['access']}"
    assert body["jwt_token"] == body["access"]
    assert body["refresh"] != body["access"]
    assert Api(anonymous.http, "", token=body["access"]).balance() == 1000.0


def test_token_lasts_24_hours(customer):
    claims = jwt.decode(customer.token, options={"verify_signature": False})
    assert claims["exp"] - claims["iat"] == 24 * 60 * 60


def test_new_user_owns_1000_tokens(newcomer):
    assert newcomer.send("GET", "/token").json() == {"tokenBalance": 1000.0}


def test_email_is_one_whatever_its_case(anonymous):
    email = new_email()
    assert anonymous.call("POST", "/user/registration", registration(email)).status_code == 201
    shouted = anonymous.call("POST", "/user/registration", registration(email.upper()))
    assert_problem(shouted, 409, "EmailTakenError")
    assert anonymous.log_in(email.upper()).balance() == 1000.0


def test_second_registration_is_409_and_keeps_the_first_password(anonymous, newcomer):
    keys = registration(newcomer.email, "another horse battery")
    assert_problem(anonymous.call("POST", "/user/registration", keys), 409)
    assert anonymous.log_in(newcomer.email).balance() == 1000.0


@pytest.mark.parametrize(
    "keys",
    [
        registration("differs@example.org", PASSWORD, PASSWORD + "x"),
        registration("differs@example.org", PASSWORD, PASSWORD.upper()),
        registration("differs@example.org", PASSWORD, ""),
        registration("short@example.org", "b7!kQ"),
        registration("common@example.org", "password123"),
        registration("digits@example.org", "83650274916"),
        registration("stefan.mueller@example.org", "stefan.mueller"),
        registration("not-an-address"),
        registration("two@signs@example.org"),
        registration(""),
        registration("a" * 250 + "@example.org"),
        {"email": "half@example.org", "password": PASSWORD},
        {"password": PASSWORD, "confirmPassword": PASSWORD},
        {},
    ],
    ids=lambda keys: keys.get("email", "no email")[:20] + f"-{len(keys)}",
)
def test_unfit_registration_is_400_and_makes_no_user(anonymous, keys):
    problem = assert_problem(anonymous.call("POST", "/user/registration", keys), 400)
    assert problem["errors"]
    assert keys.get("password", "never said") not in problem["message"]
    attempt = {"email": keys.get("email", ""), "password": keys.get("password", "")}
    assert anonymous.call("POST", "/user/", attempt).status_code in {400, 401}


def test_registration_cannot_make_an_administrator_or_a_rich_user(anonymous):
    email = new_email()
    keys = registration(email) | {"is_staff": True, "is_superuser": True, "balance": 5, "id": 1}
    assert anonymous.call("POST", "/user/registration", keys).status_code == 201
    user = anonymous.log_in(email)
    assert user.balance() == 1000.0
    top_up = user.call("PATCH", "/token", {"topUpUserEmail": email, "topUpAmount": 5})
    assert_problem(top_up, 403)


def test_password_keeps_its_spaces_and_its_unicode(anonymous):
    email, password = new_email(), "  snow \N{SNOWMAN} and spaces  "
    assert (
        anonymous.call("POST", "/user/registration", registration(email, password)).status_code
        == 201
    )
    assert anonymous.log_in(email, password).balance() == 1000.0
    stripped = {"email": email, "password": password.strip()}
    assert_problem(anonymous.call("POST", "/user/", stripped), 401)


def test_unknown_email_and_wrong_password_give_the_same_401(anonymous, customer):
    unknown = {"email": "nobody@example.org", "password": PASSWORD}
    wrong = {"email": customer.email, "password": PASSWORD + "x"}
    answers = [anonymous.call("POST", "/user/", keys) for keys in (unknown, wrong)]
    assert_problem(answers[0], 401, "InvalidCredentialsError")
    assert answers[0].json() == answers[1].json()
    names = [{k for k in a.headers if k not in {"date", "content-length"}} for a in answers]
    assert names[0] == names[1]


@pytest.mark.parametrize("missing", ["email", "password"])
def test_log_in_without_a_key_is_400(anonymous, missing):
    keys = {"email": "a@example.org", "password": PASSWORD}
    del keys[missing]
    problem = assert_problem(anonymous.call("POST", "/user/", keys), 400)
    assert [error["field"] for error in problem["errors"]] == [missing]


# -- tokens that are none


def resigned(token: str, key: str, algorithm: str = "HS256", **changes: object) -> str:
    claims = jwt.decode(token, options={"verify_signature": False}) | changes
    return jwt.encode(claims, key, algorithm=algorithm)


@pytest.fixture(scope="module")
def signing_key(service) -> str:
    return (service.data_dir / "secret_key").read_text().strip()


@pytest.fixture(scope="module")
def bad_tokens(anonymous, customer, signing_key) -> dict[str, str]:
    login = {"email": customer.email, "password": PASSWORD}
    past = datetime.now(UTC) - timedelta(seconds=1)
    head, claims, _ = customer.token.split(".")
    return {
        "refresh": anonymous.call("POST", "/user/", login).json()["refresh"],
        "expired": resigned(customer.token, signing_key, exp=past),
        "wrong key": resigned(customer.token, "x" * 64),
        "empty key": f"{head}.{claims}.",
        "another algorithm": resigned(customer.token, signing_key, "HS512"),
        "none": resigned(customer.token, "", "none"),
        "deleted user": resigned(customer.token, signing_key, user_id="999999999"),
        "huge user": resigned(customer.token, signing_key, user_id="9" * 30),
        "user of letters": resigned(customer.token, signing_key, user_id="admin"),
        "user with NUL": resigned(customer.token, signing_key, user_id="1\0"),
        "user as a list": resigned(customer.token, signing_key, user_id=[1]),
        "not a token": "abc",
        "three dots": "a.b.c",
        "very long": "a" * 7000,
    }


def test_resigning_with_the_services_key_is_what_the_service_does(anonymous, customer, signing_key):
    """Or else the refusals below would say nothing."""
    token = resigned(customer.token, signing_key)
    assert Api(anonymous.http, "", token=token).balance() == customer.balance()


@pytest.mark.parametrize(
    "kind",
    [
        "refresh",
        "expired",
        "wrong key",
        "empty key",
        "another algorithm",
        "none",
        "deleted user",
        "huge user",
        "user of letters",
        "user with NUL",
        "user as a list",
        "not a token",
        "three dots",
        "very long",
    ],
)
def test_bad_token_is_401(anonymous, bad_tokens, kind):
    answer = Api(anonymous.http, "", token=bad_tokens[kind]).send("GET", "/token")
    assert_problem(answer, 401)
    assert answer.headers["WWW-Authenticate"] == "Bearer"


@pytest.mark.parametrize("header", ["Bearer", "Basic YTpi", "Token {}", "{}", "Bearer {} {}"])
def test_other_authorization_is_401(anonymous, customer, header):
    header = header.replace("{}", customer.token)
    assert_problem(anonymous.send("GET", "/token", headers={"Authorization": header}), 401)


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER"])
def test_name_of_the_scheme_has_no_case(anonymous, customer, scheme):
    header = {"Authorization": f"{scheme} {customer.token}"}
    assert anonymous.send("GET", "/token", headers=header).status_code == 200


ROUTES = [
    ("GET", "/datasets"),
    ("POST", "/datasets"),
    ("DELETE", "/datasets"),
    ("PATCH", "/datasets"),
    ("GET", "/token"),
    ("PATCH", "/token"),
    ("POST", "/inference"),
    ("GET", "/inference/state"),
    ("GET", "/inference/result"),
    ("GET", "/inference/content/1"),
    ("POST", "/upload"),
]


@pytest.mark.parametrize(("method", "path"), ROUTES, ids=[" ".join(route) for route in ROUTES])
def test_route_without_a_token_is_401_before_its_keys_are_looked_at(anonymous, method, path):
    for way in (Way("json"), Way("form", slash=True), Way("multipart")):
        assert_problem(anonymous.call(method, path, {"jobId": "x"}, way), 401)
    assert_problem(anonymous.send(method, path), 401)
