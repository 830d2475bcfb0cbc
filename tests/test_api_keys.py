"""API keys: made once, shown once, and good until they expire or are revoked.

What a key may do on each route is in `test_who_may_what.py`.
"""

import hashlib
import re
import time
from datetime import timedelta

import pytest
from django.core.management import call_command
from django.db import IntegrityError, connection, transaction
from django.test import Client
from django.utils import timezone
from rest_framework.test import APIClient

from accounts import api_keys, services
from accounts.authentication import presence_of_bearer
from accounts.key_text import new_key_text, signed_key_text
from accounts.models import ApiKey, Session, User, WebsocketTicket
from accounts.presence import Presence
from accounts.services import Access, change_access, redeem_websocket_ticket, revoke_sessions
from tests.clients import client_of, client_with, key_of
from tests.factories import PASSWORD, make_user
from tests.queries import index_plan_of
from tests.threads import in_threads

PATH = "/api/v1/api-keys/"


@pytest.fixture
def user(db) -> User:
    return make_user("ann@example.org")


@pytest.fixture
def client(user) -> APIClient:
    return client_of(user)


def make(client: APIClient, name: str = "nightly", **terms):
    return client.post(PATH, {"name": name, **terms}, format="json")


def status_with(token: str) -> int:
    return client_with(token).get("/api/v1/me/").status_code


def expire(key: ApiKey) -> None:
    ApiKey.objects.filter(pk=key.pk).update(expires_at=timezone.now())


class TestMaking:
    def test_key_is_shown_once_and_kept_nowhere(self, client, user, caplog):
        answer = make(client)
        made = answer.json()
        text = made["key"]
        assert answer.status_code == 201
        assert answer["Cache-Control"] == "no-store"
        assert answer["Location"] == f"{PATH}{made['id']}/"
        assert re.fullmatch(rf"odk_{made['prefix']}_[0-9a-f]{{96}}", text)
        secret = text.rpartition("_")[2]
        row = ApiKey.objects.get()
        assert (row.user, row.digest) == (user, hashlib.sha256(secret.encode()).hexdigest())
        with connection.cursor() as cursor:
            cursor.execute("SELECT row_to_json(k)::text FROM accounts_apikey k")
            assert secret not in cursor.fetchone()[0]
        one, listed = client.get(f"{PATH}{row.pk}/"), client.get(PATH)
        assert listed.json()["results"] == [one.json()]
        assert one.json() == {name: value for name, value in made.items() if name != "key"}
        for shown in (one, listed):
            assert secret not in shown.content.decode()
            assert row.digest not in shown.content.decode()
        client_with(text + "0").get("/token")
        assert secret not in caplog.text

    def test_key_opens_both_surfaces_for_its_user(self, client, user):
        program = client_with(make(client).json()["key"])
        assert program.get("/api/v1/me/").json()["email"] == user.email
        assert program.get("/token").json() == {"tokenBalance": 1000.0}
        assert program.post("/datasets/", {"datasetName": "street"}).status_code == 201
        listed = client.get("/api/v1/datasets/").json()["results"]
        assert [one["name"] for one in listed] == ["street"]

    @pytest.mark.parametrize(
        ("terms", "field"),
        [
            ({"name": ""}, "name"),
            ({"name": " "}, "name"),
            ({"name": "x" * 61}, "name"),
            ({"name": "a\nb"}, "name"),
            ({"name": None}, "name"),
            ({"expires_at": "2020-01-01T00:00:00Z"}, "expires_at"),
            ({"expires_at": "9999-12-31T23:59:59-14:00"}, "expires_at"),
            ({"expires_at": "tomorrow"}, "expires_at"),
            ({"requests_per_minute": 0}, "requests_per_minute"),
            ({"requests_per_minute": 6_001}, "requests_per_minute"),
            ({"requests_per_minute": 10**30}, "requests_per_minute"),
            ({"is_read_only": None}, "is_read_only"),
            ({"is_readonly": True}, "is_readonly"),
        ],
    )
    def test_senseless_terms_are_refused_by_their_field_and_make_nothing(
        self, client, terms, field
    ):
        refused = make(client, **terms)
        assert refused.status_code == 400
        assert [one["field"] for one in refused.json()["errors"]] == [field]
        assert not ApiKey.objects.exists()

    def test_sixty_characters_are_a_name_without_the_spaces_around_it(self, client):
        assert make(client, f"  {'x' * 60} ").json()["name"] == "x" * 60

    def test_name_is_taken_until_its_key_is_revoked(self, client):
        key_id = make(client).json()["id"]
        refused = make(client)
        assert (refused.status_code, refused.json()["code"]) == (409, "api_key_name_taken")
        assert client.delete(f"{PATH}{key_id}/").status_code == 204
        assert make(client).status_code == 201
        assert make(client_of(make_user())).status_code == 201

    def test_expired_key_gives_back_its_name_and_its_place(self, client, user):
        old, _ = key_of(user, "nightly")
        expire(old)
        assert make(client).status_code == 201
        old.refresh_from_db()
        assert (old.revoked_at, old.revoked_by) == (old.expires_at, None)

    def test_user_has_twenty_living_keys_at_most(self, client, user):
        made = [make(client, f"key {number}").json()["id"] for number in range(20)]
        refused = make(client, "one more")
        assert (refused.status_code, refused.json()["code"]) == (409, "api_key_quota")
        assert refused.json()["quota"] == 20
        assert ApiKey.objects.count() == 20
        client.delete(f"{PATH}{made[0]}/")
        assert make(client, "one more").status_code == 201

    def test_session_that_ended_meanwhile_makes_none(self, user):
        client_of(user)
        session = Session.objects.get(user=user)
        revoke_sessions(user=user)
        with pytest.raises(api_keys.SessionEndedError):
            api_keys.create_api_key(session=session, name="late")
        assert not ApiKey.objects.exists()

    def test_database_refuses_a_ticket_of_nobody(self, user):
        with pytest.raises(IntegrityError, match="ticket_is_of_a_session_or"), transaction.atomic():
            WebsocketTicket.objects.create(digest="x", expires_at=timezone.now())


def test_twenty_places_are_twenty_whoever_asks_at_once(committed_db):
    user = make_user()
    client_of(user)
    session = Session.objects.get(user=user)

    def make_one(number: int):
        return api_keys.create_api_key(session=session, name=f"key {number}")

    outcomes = in_threads(25, make_one)
    assert sum(isinstance(one, api_keys.ApiKeyQuotaError) for one in outcomes) == 5
    assert ApiKey.objects.count() == 20


class TestText:
    """What is no key of ours is told from it without asking the database."""

    def test_scheme_has_no_case_and_spaces_around_do_not_matter(self, user):
        _, text = key_of(user)
        for header in (f"bearer {text}", f"BEARER   {text}  "):
            answer = APIClient().get("/api/v1/me/", HTTP_AUTHORIZATION=header)
            assert answer.status_code == 200, header

    def test_every_other_text_is_401(self, user, django_assert_num_queries):
        _, text = key_of(user)
        start, prefix, secret = text.split("_")
        other = str(new_key_text(user_id=user.pk)).split("_")
        mangled = [
            text.upper(),
            text[:-1],
            f"{text}0",
            f"{text}.",
            text.replace("odk_", "odk_0"),
            f"{start}_{prefix}_{other[2]}",
            f"{start}_{other[1]}_{secret}",
            f"{start}_{prefix}_{secret[:-1]}{'0' if secret[-1] != '0' else '1'}",
            f"{start}_{prefix}_{'1' if secret[0] != '1' else '2'}{secret[1:]}",
            f"{start}_{prefix}",
            "odk_",
            f"{start} {prefix} {secret}",
            f"{start}_{prefix}_{secret}\u00df",
        ]
        for one in mangled:
            with django_assert_num_queries(0):
                answer = APIClient().get("/token", HTTP_AUTHORIZATION=f"Bearer {one}")
            problem = answer.json()
            assert (answer.status_code, problem["code"]) == (401, "unauthorized"), one
            assert problem["name"] == "UnauthorizedError"
            assert answer["WWW-Authenticate"] == "Bearer"
            assert secret not in answer.content.decode()

    def test_signed_text_that_was_never_made_is_401(self, user):
        assert status_with(str(new_key_text(user_id=user.pk))) == 401

    def test_secret_is_compared_besides_the_prefix(self, user):
        key, text = key_of(user)
        ApiKey.objects.filter(pk=key.pk).update(digest="0" * 64)
        assert status_with(text) == 401

    def test_other_signing_key_makes_it_a_strangers(self, user, settings):
        _, text = key_of(user)
        settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, "SIGNING_KEY": "another"}
        assert signed_key_text(text) is None
        assert status_with(text) == 401

    def test_key_is_found_by_one_query_and_its_prefix(self, user, django_assert_num_queries):
        _, text = key_of(user)
        presence_of_bearer(text)  # notes the use
        with django_assert_num_queries(1):
            presence_of_bearer(text)
        plan = index_plan_of("SELECT * FROM accounts_apikey WHERE prefix = '1x00000000'")
        assert "one_api_key_per_prefix" in plan


class TestEnd:
    def test_revoked_key_is_401_at_once_and_stays_in_the_list(self, client, user):
        key, text = key_of(user)
        assert status_with(text) == 200
        for _ in range(2):
            assert client.delete(f"{PATH}{key.pk}/").status_code == 204
        assert status_with(text) == 401
        shown = client.get(f"{PATH}{key.pk}/").json()
        assert (shown["is_living"], shown["revoked_at"] is None) == (False, False)
        key.refresh_from_db()
        assert key.revoked_by == user

    def test_expired_key_is_401(self, client, user):
        key, text = key_of(user, expires_at=timezone.now() + timedelta(hours=1))
        assert status_with(text) == 200
        expire(key)
        assert status_with(text) == 401
        assert client.get(f"{PATH}{key.pk}/").json()["is_living"] is False

    def test_request_that_began_before_the_key_expired_counts(self, user):
        key, text = key_of(user)
        expire(key)
        begun = {"odproject.begun_at": time.time() - 60}
        assert client_with(text).get("/api/v1/me/", **begun).status_code == 200

    def test_key_of_a_user_made_inactive_is_401_and_stays_so(self, user):
        boss = make_user(staff=True)
        key, text = key_of(user)
        for is_active in (False, True):
            change_access(
                actor=boss, user=user, access=Access(is_active, False, False, frozenset())
            )
            assert status_with(text) == 401
        key.refresh_from_db()
        assert key.revoked_by == boss

    def test_key_of_an_inactive_user_opens_nothing_however_it_came_about(self, user):
        _, text = key_of(user)
        User.objects.filter(pk=user.pk).update(is_active=False)
        assert status_with(text) == 401

    def test_new_password_revokes_all_keys_and_nobody_elses(self, db):
        boss, other = make_user(staff=True), make_user()
        keys = [key_of(boss, name)[1] for name in ("one", "two")]
        kept = key_of(other)[1]
        browser = Client()
        browser.force_login(boss)
        new = "another-horse-77"
        form = {"old_password": PASSWORD, "new_password1": new, "new_password2": new}
        assert browser.post("/admin/password_change/", form).status_code == 302
        assert [status_with(text) for text in (*keys, kept)] == [401, 401, 200]

    def test_new_password_by_the_command_revokes_them_too(self, user, monkeypatch):
        _, text = key_of(user)
        monkeypatch.setattr("getpass.getpass", lambda prompt: "another-horse-77")
        call_command("changepassword", user.email, verbosity=0)
        assert status_with(text) == 401

    def test_log_out_leaves_keys_alone(self, client, user):
        _, text = key_of(user)
        assert client.post("/api/v1/tokens/revoke/").status_code == 204
        assert status_with(text) == 200


class TestList:
    def test_living_keys_come_first_and_then_the_newest(self, client, user):
        names = ("a", "b", "c", "d")
        keys = {name: key_of(user, name)[0] for name in names}
        client.delete(f"{PATH}{keys['d'].pk}/")
        expire(keys["b"])
        key_of(make_user(), "of another")
        listed = client.get(PATH).json()["results"]
        assert [(one["name"], one["is_living"]) for one in listed] == [
            ("c", True),
            ("a", True),
            ("d", False),
            ("b", False),
        ]

    def test_use_is_noted_to_the_minute(self, user):
        key, text = key_of(user)
        assert key.last_used_at is None
        assert status_with(text) == 200
        key.refresh_from_db()
        first = key.last_used_at
        assert first is not None
        assert status_with(text) == 200
        key.refresh_from_db()
        assert key.last_used_at == first
        ApiKey.objects.filter(pk=key.pk).update(last_used_at=first - timedelta(minutes=1))
        assert status_with(text) == 200
        key.refresh_from_db()
        assert key.last_used_at >= first

    def test_refused_key_is_not_in_use(self, user):
        key, text = key_of(user)
        assert status_with(text[:-1]) == 401
        key.refresh_from_db()
        assert key.last_used_at is None


class TestChange:
    def test_name_and_limits_change_and_count_at_once(self, client, user):
        key, text = key_of(user)
        changes = {"name": "weekly", "is_read_only": True, "requests_per_minute": 5}
        changed = client.patch(f"{PATH}{key.pk}/", changes, format="json")
        assert changed.status_code == 200
        assert {name: changed.json()[name] for name in changes} == changes
        assert client_with(text).post("/api/v1/datasets/", {"name": "street"}).status_code == 403
        client.patch(f"{PATH}{key.pk}/", {"requests_per_minute": None}, format="json")
        key.refresh_from_db()
        assert (key.name, key.is_read_only, key.requests_per_minute) == ("weekly", True, None)

    @pytest.mark.parametrize(
        "changes",
        [
            {"expires_at": "2099-01-01T00:00:00Z"},
            {"prefix": "1xdeadbeef"},
            {"user": 1},
            {"requests_per_minute": 6_001},
            {"name": ""},
        ],
    )
    def test_nothing_else_changes(self, client, user, changes):
        key, _ = key_of(user)
        before = ApiKey.objects.filter(pk=key.pk).values().get()
        refused = client.patch(f"{PATH}{key.pk}/", changes, format="json")
        assert refused.status_code == 400
        assert [one["field"] for one in refused.json()["errors"]] == list(changes)
        assert ApiKey.objects.filter(pk=key.pk).values().get() == before

    def test_taken_name_and_ended_key_are_409(self, client, user):
        key, _ = key_of(user, "one")
        key_of(user, "two")
        taken = client.patch(f"{PATH}{key.pk}/", {"name": "two"}, format="json")
        assert (taken.status_code, taken.json()["code"]) == (409, "api_key_name_taken")
        expire(key)
        ended = client.patch(f"{PATH}{key.pk}/", {"name": "three"}, format="json")
        assert (ended.status_code, ended.json()["code"]) == (409, "api_key_ended")


class TestRate:
    @pytest.fixture(autouse=True)
    def six_a_minute(self, settings, one_minute):
        settings.API_REQUESTS_PER_MINUTE = 6

    def test_key_has_a_rate_of_its_own_within_that_of_its_user(self, user):
        slow = client_with(key_of(user, "slow", requests_per_minute=2)[1])
        other = client_with(key_of(user, "other")[1])
        assert [slow.get("/token").status_code for _ in range(4)] == [200, 200, 429, 429]
        # What was refused to the key is not counted against the user.
        assert [other.get("/token").status_code for _ in range(5)] == [200] * 4 + [429]


class TestTickets:
    """A ticket that a key minted opens a socket as long as the key lives."""

    def mint(self, text: str) -> Presence | None:
        ticket = client_with(text).post("/api/v1/websocket-tickets/").json()["ticket"]
        return redeem_websocket_ticket(ticket=ticket)

    def test_ticket_ends_with_its_key(self, user):
        expires_at = timezone.now() + timedelta(seconds=90)
        key, text = key_of(user, "short", expires_at=expires_at)
        assert self.mint(text) == Presence(key, expires_at)
        lasting, text = key_of(user, "lasting")
        assert self.mint(text) == Presence(lasting, None)

    def test_ticket_of_a_read_only_key_carries_no_more_than_the_key(self, user):
        key, text = key_of(user, "reader", is_read_only=True)
        presence = self.mint(text)
        assert presence == Presence(key, None)
        assert presence.is_read_only

    def test_ticket_of_a_key_that_was_revoked_opens_nothing(self, user):
        key, text = key_of(user)
        ticket = client_with(text).post("/api/v1/websocket-tickets/").json()["ticket"]
        services.revoke_api_key(key_id=key.pk, by=user)
        assert redeem_websocket_ticket(ticket=ticket) is None


class TestAdmin:
    PAGE = "/admin/accounts/apikey/"

    def browser(self, **who) -> Client:
        browser = Client()
        browser.force_login(make_user(**who))
        return browser

    def test_administrator_sees_keys_and_nothing_of_their_secrets(self, user):
        key, text = key_of(user, "<b>nightly</b>")
        secret = text.rpartition("_")[2]
        for browser in (self.browser(staff=True), self.browser(role="Support")):
            for page in (self.PAGE, f"{self.PAGE}{key.pk}/change/", f"{self.PAGE}?user={user.pk}"):
                shown = browser.get(page).content.decode()
                assert key.prefix in shown
                assert user.email in shown
                assert "&lt;b&gt;nightly" in shown
                assert secret not in shown
                assert key.digest not in shown
            asked = browser.get(self.PAGE, {"digest__startswith": key.digest[:4]})
            assert asked.status_code == 400

    def test_administrator_revokes_a_key_after_a_question(self, user):
        key, text = key_of(user)
        browser, page = self.browser(staff=True), f"{self.PAGE}{key.pk}/revoke/"
        asked = browser.get(page).content.decode()
        assert f"Programs of {user.email} that use the key program are refused" in asked
        assert status_with(text) == 200
        assert browser.post(page).status_code == 302
        assert status_with(text) == 401
        key.refresh_from_db()
        assert key.revoked_by is not None
        assert key.revoked_by.is_superuser
        assert "revoked before" in browser.post(page).content.decode()
        history = browser.get(f"{self.PAGE}{key.pk}/history/").content.decode()
        assert "was revoked" in history

    def test_support_revokes_none(self, user):
        key, text = key_of(user)
        browser = self.browser(role="Support")
        assert browser.post(f"{self.PAGE}{key.pk}/revoke/").status_code == 403
        assert status_with(text) == 200


def test_key_works_while_its_use_cannot_be_noted(committed_db):
    user = make_user()
    key, text = key_of(user)
    status_with(text)  # which opens the user's accounts
    ApiKey.objects.update(last_used_at=None)
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = on")
    assert status_with(text) == 200
    with connection.cursor() as cursor:
        cursor.execute("SET default_transaction_read_only = off")
    key.refresh_from_db()
    assert key.last_used_at is None
