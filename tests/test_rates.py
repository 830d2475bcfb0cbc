"""Log-ins, registrations and requests that come too often; and who is not to be refused."""

from collections import Counter
from datetime import timedelta

import pytest
from django.test import Client, RequestFactory
from django.utils import timezone
from rest_framework.test import APIClient

from accounts import limits
from accounts.models import AttemptCount, Session, User
from accounts.services import InvalidCredentialsError, verified_user
from odproject.core.api import client_address
from tests.clients import client_of
from tests.factories import PASSWORD, make_user
from tests.threads import in_threads

EMAIL = "ann@example.org"


@pytest.fixture(autouse=True)
def narrow_limits(settings):
    settings.LOGINS_PER_EMAIL = 3
    settings.LOGINS_PER_ADDRESS = 6
    settings.REGISTRATIONS_PER_ADDRESS = 2


def log_in(email=EMAIL, password="wrong", path="/api/v1/tokens/", **headers):
    return APIClient().post(path, {"email": email, "password": password}, format="json", **headers)


def assert_too_many(answer):
    assert (answer.status_code, answer.json()["code"]) == (429, "too_many_attempts")
    assert answer["Content-Type"] == "application/problem+json"
    assert 0 < int(answer["Retry-After"]) <= 3600


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/api/v1/tokens/", "/user/"])
class TestLogIn:
    """Both surfaces have the same limits, and share them."""

    @pytest.mark.parametrize("known", [True, False])
    def test_too_many_wrong_passwords_end_in_429_known_or_not(self, path, known):
        if known:
            make_user(EMAIL)
        assert [log_in(path=path).status_code for _ in range(3)] == [401, 401, 401]
        assert_too_many(log_in(path=path))

    def test_right_password_is_refused_too_until_the_window_ends(self, path):
        make_user(EMAIL)
        for _ in range(4):
            log_in(path=path)
        assert_too_many(log_in(path=path, password=PASSWORD))
        assert not Session.objects.exists()
        AttemptCount.objects.update(window_ends_at=timezone.now())
        assert log_in(path=path, password=PASSWORD).status_code in {200, 201}

    def test_case_spaces_and_client_do_not_change_the_address(self, path):
        make_user(EMAIL)
        for number, email in enumerate((EMAIL, EMAIL.upper(), f" {EMAIL} ")):
            answer = log_in(email, path=path, REMOTE_ADDR=f"192.0.2.{number}")
            assert answer.status_code == 401
        assert_too_many(log_in(path=path, REMOTE_ADDR="192.0.2.99"))

    def test_right_password_begins_the_count_anew(self, path):
        make_user(EMAIL)
        for _ in range(2):
            assert [log_in(path=path).status_code for _ in range(2)] == [401, 401]
            assert log_in(path=path, password=PASSWORD).status_code in {200, 201}

    def test_right_password_of_somebody_else_gives_nothing_back(self, path):
        make_user(EMAIL)
        other = make_user().email
        for _ in range(3):
            assert log_in(path=path).status_code == 401
            right = log_in(other, PASSWORD, path=path, REMOTE_ADDR="192.0.2.7")
            assert right.status_code in {200, 201}
        assert_too_many(log_in(path=path))

    def test_many_log_ins_of_one_address_that_are_right_are_fine(self, path):
        emails = [make_user().email for _ in range(4)]
        for email in emails * 2:
            assert log_in(email, PASSWORD, path=path).status_code in {200, 201}

    def test_one_address_tries_many_users_in_vain(self, path):
        statuses = [log_in(f"u{n}@example.org", path=path).status_code for n in range(7)]
        assert statuses == [401] * 6 + [429]
        other = log_in("u9@example.org", path=path, REMOTE_ADDR="192.0.2.7")
        assert other.status_code == 401

    def test_address_that_has_tried_too_often_shuts_nobody_else_out(self, path):
        make_user(EMAIL)
        for number in range(6):
            log_in(f"u{number}@example.org", path=path)
        counted = AttemptCount.objects.count()
        for _ in range(4):
            assert_too_many(log_in(path=path))
        assert AttemptCount.objects.count() == counted
        own = log_in(path=path, password=PASSWORD, REMOTE_ADDR="192.0.2.7")
        assert own.status_code in {200, 201}

    def test_zero_is_no_limit(self, path, settings):
        settings.LOGINS_PER_EMAIL = settings.LOGINS_PER_ADDRESS = 0
        assert {log_in(path=path).status_code for _ in range(10)} == {401}
        assert not AttemptCount.objects.exists()


@pytest.mark.django_db
def test_both_surfaces_count_together():
    assert log_in(path="/user").status_code == 401
    assert log_in(path="/api/v1/tokens").status_code == 401
    assert log_in(path="/user/").status_code == 401
    assert_too_many(log_in())


@pytest.mark.django_db
class TestAdminsPage:
    """The admin's log-in page is no way around the limits."""

    def enter(self, password):
        return Client().post("/admin/login/", {"username": EMAIL, "password": password})

    def test_too_many_wrong_passwords_shut_the_page_to_the_right_one(self):
        make_user(EMAIL, staff=True)
        assert [self.enter("wrong").status_code for _ in range(4)] == [200] * 4
        assert self.enter(PASSWORD).status_code == 200  # the form again, not the admin
        assert_too_many(log_in(password=PASSWORD))
        AttemptCount.objects.update(window_ends_at=timezone.now())
        assert self.enter(PASSWORD).status_code == 302

    def test_user_who_is_inactive_does_not_enter(self):
        user = make_user(EMAIL, staff=True)
        User.objects.filter(pk=user.pk).update(is_active=False)
        assert self.enter(PASSWORD).status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize("path", ["/api/v1/users/", "/user/registration"])
def test_one_address_registers_so_many_users(path):
    def register(number, **headers):
        body = {"email": f"new{number}@example.org", "password": PASSWORD}
        body["confirmPassword"] = PASSWORD
        return APIClient().post(path, body, format="json", **headers)

    assert [register(number).status_code for number in range(2)] == [201, 201]
    assert_too_many(register(2))
    assert register(3, REMOTE_ADDR="192.0.2.1").status_code == 201
    assert User.objects.count() == 3


def test_guesses_at_the_same_moment_are_all_counted(committed_db):
    make_user(EMAIL)

    def guess(_):
        return verified_user(email=EMAIL, password="wrong")

    outcomes = Counter(type(outcome) for outcome in in_threads(20, guess))
    assert outcomes == {InvalidCredentialsError: 3, limits.TooManyAttemptsError: 17}


@pytest.mark.django_db
def test_counts_whose_window_has_ended_are_forgotten():
    log_in()
    assert limits.forget_old_attempts() == 0
    assert limits.forget_old_attempts(now=timezone.now() + timedelta(hours=1)) == 2


class TestClientAddress:
    """Whose requests are counted together."""

    @pytest.mark.parametrize(
        ("proxies", "remote", "forwarded", "address"),
        [
            (0, "192.0.2.1", "", "192.0.2.1"),
            (0, "192.0.2.1", "198.51.100.9", "192.0.2.1"),  # a client may write what it likes
            (1, "192.0.2.1", "198.51.100.9", "198.51.100.9"),
            (1, "192.0.2.1", "203.0.113.5, 198.51.100.9", "198.51.100.9"),
            (2, "192.0.2.1", "203.0.113.5, 198.51.100.9", "203.0.113.5"),
            (2, "192.0.2.1", "1.1.1.1, 203.0.113.5, 198.51.100.9", "203.0.113.5"),
            (2, "192.0.2.1", "198.51.100.9", "198.51.100.9"),
            (1, "192.0.2.1", "", "192.0.2.1"),
            (0, "2001:db8:1:2:3:4:5:6", "", "2001:db8:1:2::/64"),
            (0, "::ffff:192.0.2.1", "", "192.0.2.1"),
            (1, "192.0.2.1", "198.51.100.9:4711", "198.51.100.9"),
            (1, "192.0.2.1", "[2001:db8:1:2:3:4:5:6]:4711", "2001:db8:1:2::/64"),
            (1, "192.0.2.1", "nonsense", "nonsense"),
            (0, "", "", ""),
        ],
    )
    def test_address_is_the_last_one_that_nobody_else_wrote(
        self, settings, proxies, remote, forwarded, address
    ):
        settings.NUM_PROXIES = proxies
        headers = {"REMOTE_ADDR": remote}
        if forwarded:
            headers["HTTP_X_FORWARDED_FOR"] = forwarded
        assert client_address(RequestFactory().get("/", **headers)) == address


@pytest.mark.django_db
class TestUserRate:
    """Requests of one user in a minute."""

    @pytest.fixture(autouse=True)
    def three_a_minute(self, settings, one_minute):
        settings.API_REQUESTS_PER_MINUTE = 3

    def test_request_above_the_rate_is_429_and_says_when_to_come_again(self):
        first, second = client_of(make_user()), client_of(make_user())
        assert [first.get("/api/v1/me/").status_code for _ in range(2)] == [200, 200]
        assert first.get("/token").status_code == 200
        refused = first.get("/api/v1/me/")
        assert (refused.status_code, refused.json()["code"]) == (429, "too_many_requests")
        assert refused["Content-Type"] == "application/problem+json"
        assert 0 < int(refused["Retry-After"]) <= 60
        assert second.get("/api/v1/me/").status_code == 200

    def test_zero_is_no_limit(self, settings):
        settings.API_REQUESTS_PER_MINUTE = 0
        client = client_of(make_user())
        assert {client.get("/api/v1/me/").status_code for _ in range(9)} == {200}

    def test_without_redis_nobody_is_refused_and_it_is_not_asked_again_at_once(
        self, settings, caplog
    ):
        settings.REDIS_URL = "redis://127.0.0.1:1/0"
        client = client_of(make_user())
        assert {client.get("/api/v1/me/").status_code for _ in range(9)} == {200}
        told = [one for one in caplog.records if "not counted" in one.getMessage()]
        assert len(told) == 1
