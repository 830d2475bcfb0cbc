"""What owners do with their webhooks in /api/v1/, and what is never told of them."""

import logging

import pytest
from django.db import IntegrityError, transaction
from django.db.models import F
from django.utils import timezone

from accounts import webhooks
from accounts.models import EVENT_KINDS, User, Webhook
from accounts.services import append_event
from accounts.webhooks import claim_delivery, record_failure, record_success
from tests.clients import client_of
from tests.factories import make_user

pytestmark = pytest.mark.django_db
ADDRESS = "https://8.8.8.8/hook"


@pytest.fixture
def user() -> User:
    return make_user()


@pytest.fixture
def client(user):
    return client_of(user)


@pytest.fixture
def webhook(user) -> Webhook:
    return webhooks.create_webhook(user=user, url=ADDRESS)


def happen(user: User, count: int = 1) -> None:
    for _ in range(count):
        with transaction.atomic():
            append_event(user_id=user.pk, kind="job.started", payload={})


def path(webhook: Webhook, action: str = "") -> str:
    return f"/api/v1/webhooks/{webhook.pk}/{action}"


def change(client, webhook: Webhook, **keys):
    return client.patch(path(webhook), keys, format="json")


def fields_of(answer) -> list[str]:
    return [error["field"] for error in answer.json()["errors"]]


class TestMaking:
    def test_new_webhook_tells_its_secret_once(self, client, user):
        happen(user, 2)
        answer = client.post("/api/v1/webhooks/", {"url": ADDRESS, "kinds": ["job.completed"]})
        assert answer.status_code == 201
        made = answer.json()
        assert answer["Location"] == f"/api/v1/webhooks/{made['id']}/"
        secret = made.pop("secret")
        assert secret == Webhook.objects.get().secret
        assert {name: made[name] for name in ("url", "kinds", "active", "backlog")} == {
            "url": ADDRESS,
            "kinds": ["job.completed"],
            "active": True,
            "backlog": 0,
        }
        (listed,) = client.get("/api/v1/webhooks/").json()["results"]
        assert client.get(answer["Location"]).json() == listed == made
        assert made["last_attempt_at"] is made["last_status"] is made["off_since"] is None

    @pytest.mark.parametrize(
        ("keys", "field"),
        [
            ({}, "url"),
            ({"url": ""}, "url"),
            ({"url": None}, "url"),
            ({"url": "http://8.8.8.8/"}, "url"),
            ({"url": "https://localhost/"}, "url"),
            ({"url": "https://169.254.169.254/latest/meta-data/"}, "url"),
            ({"url": "https://[::ffff:10.0.0.1]/"}, "url"),
            ({"url": "https://8.8.8.8:6379/" + "a" * 500}, "url"),
            ({"url": "https://8.8.8.8/\x00"}, "url"),
            ({"url": ["https://8.8.8.8/"]}, "url"),
            ({"url": ADDRESS, "kinds": ["job.exploded"]}, "kinds.0"),
            ({"url": ADDRESS, "kinds": "job.completed"}, "kinds"),
            ({"url": ADDRESS, "kinds": ["job.completed"] * 20}, "kinds"),
            ({"url": ADDRESS, "kinds": [{}]}, "kinds.0"),
            ({"url": ADDRESS, "secret": "whsec_of-my-own"}, "secret"),
        ],
    )
    def test_what_makes_no_sense_is_refused_with_its_field(self, client, keys, field):
        answer = client.post("/api/v1/webhooks/", keys, format="json")
        assert (answer.status_code, fields_of(answer)) == (400, [field])
        assert not Webhook.objects.exists()

    def test_user_has_five_at_most(self, client, user):
        for number in range(5):
            webhooks.create_webhook(user=user, url=f"{ADDRESS}/{number}")
        answer = client.post("/api/v1/webhooks/", {"url": ADDRESS})
        assert answer.status_code == 409
        assert (answer.json()["code"], answer.json()["quota"]) == ("webhook_quota_exceeded", 5)
        client.delete(path(Webhook.objects.first()))
        assert client.post("/api/v1/webhooks/", {"url": ADDRESS}).status_code == 201
        assert Webhook.objects.count() == 5

    def test_every_kind_can_be_asked_for_once_however_often_it_is_named(self, client):
        answer = client.post(
            "/api/v1/webhooks/", {"url": ADDRESS, "kinds": ["job.failed", "job.failed"]}
        )
        assert answer.json()["kinds"] == ["job.failed"]
        keys = {"url": ADDRESS, "kinds": EVENT_KINDS}
        assert client.post("/api/v1/webhooks/", keys).json()["kinds"] == sorted(EVENT_KINDS)


class TestChanging:
    def test_address_and_kinds_change_and_the_rest_stays(self, client, user, webhook):
        happen(user, 3)
        answer = change(client, webhook, url="https://8.8.4.4/", kinds=["job.failed"])
        assert answer.status_code == 200
        told = answer.json()
        assert (told["url"], told["kinds"]) == ("https://8.8.4.4/", ["job.failed"])
        assert (told["active"], told["backlog"]) == (True, 3)
        assert change(client, webhook, kinds=[]).json()["kinds"] == []
        assert Webhook.objects.get().secret == webhook.secret

    def test_owner_switches_off_and_on(self, client, user, webhook):
        off = change(client, webhook, active=False).json()
        assert (off["active"], off["off_reason"]) == (False, "Its owner switched it off.")
        happen(user, 2)
        assert claim_delivery() is None
        again = change(client, webhook, active=False).json()
        assert again["off_since"] == off["off_since"]
        on = change(client, webhook, active=True).json()
        assert (on["active"], on["off_since"], on["off_reason"]) == (True, None, "")
        assert (on["backlog"], claim_delivery().seq) == (2, 1)

    def test_what_waits_is_passed_over_on_request(self, client, user, webhook):
        happen(user, 4)
        assert change(client, webhook, from_now=False).json()["backlog"] == 4
        assert change(client, webhook, from_now=True).json()["backlog"] == 0
        assert claim_delivery() is None

    def test_other_address_is_tried_at_once(self, client, user, webhook):
        happen(user)
        record_failure(delivery=claim_delivery(), error="no", status=500)
        assert claim_delivery() is None
        told = change(client, webhook, url="https://8.8.4.4/").json()
        assert told["consecutive_failures"] == 0
        assert claim_delivery().url == "https://8.8.4.4/"

    @pytest.mark.parametrize(
        ("keys", "field"),
        [
            ({"url": "https://10.0.0.1/"}, "url"),
            ({"url": None}, "url"),
            ({"active": "perhaps"}, "active"),
            ({"kinds": ["all"]}, "kinds.0"),
            ({"actve": False}, "actve"),
            ({"cursor_seq": 0}, "cursor_seq"),
        ],
    )
    def test_what_makes_no_sense_changes_nothing(self, client, webhook, keys, field):
        answer = change(client, webhook, **{"kinds": ["job.failed"], **keys})
        assert (answer.status_code, fields_of(answer)) == (400, [field])
        assert Webhook.objects.get().kinds == []

    def test_webhook_that_was_deleted_meanwhile_is_not_found(self, webhook):
        webhooks.delete_webhook(webhook=webhook)
        for act in (webhooks.delete_webhook, webhooks.rotate_secret, webhooks.request_test):
            with pytest.raises(webhooks.WebhookNotFoundError):
                act(webhook=webhook)
        with pytest.raises(webhooks.WebhookNotFoundError):
            webhooks.change_webhook(webhook=webhook, is_active=False)
        assert not Webhook.objects.exists()


class TestOffByAnAdministrator:
    @pytest.fixture
    def off(self, webhook) -> Webhook:
        actor = make_user(staff=True)
        webhooks.switch_off_webhook(actor=actor, webhook=webhook, reason="It floods.")
        return webhook

    @pytest.mark.parametrize("keys", [{}, {"url": "https://8.8.4.4/", "from_now": True}])
    def test_owner_reads_why_and_cannot_switch_it_on(self, client, user, off, keys):
        happen(user)
        before = Webhook.objects.values().get()
        refused = change(client, off, active=True, **keys)
        problem = refused.json()
        assert (refused.status_code, problem["code"]) == (409, "off_by_administrator")
        assert (
            problem["detail"] == "An administrator has to switch the webhook on again: It floods."
        )
        assert Webhook.objects.values().get() == before
        told = client.get(path(off)).json()
        assert (told["active"], told["off_by_administrator"]) == (False, True)
        assert claim_delivery() is None

    def test_owner_still_changes_and_deletes_it(self, client, off):
        changed = change(client, off, kinds=["job.failed"], active=False).json()
        assert (changed["kinds"], changed["off_reason"]) == (["job.failed"], "It floods.")
        assert changed["off_by_administrator"] is True
        assert client.delete(path(off)).status_code == 204

    def test_no_test_is_sent_to_it_either(self, client, webhook):
        client.post(path(webhook, "test/"))
        actor = make_user(staff=True)
        webhooks.switch_off_webhook(actor=actor, webhook=webhook, reason="It floods.")
        assert claim_delivery() is None
        refused = client.post(path(webhook, "test/"))
        assert (refused.status_code, refused.json()["code"]) == (409, "off_by_administrator")
        assert Webhook.objects.get().test_requested_at is None

    def test_one_that_its_owner_has_off_is_locked_too(self, client, webhook):
        since = change(client, webhook, active=False).json()["off_since"]
        actor = make_user(staff=True)
        webhooks.switch_off_webhook(actor=actor, webhook=webhook, reason="It floods.")
        refused = change(client, webhook, active=True)
        assert refused.status_code == 409
        told = client.get(path(webhook)).json()
        assert (told["off_since"], told["off_reason"]) == (since, "It floods.")

    def test_switched_on_by_an_administrator_it_goes_on_and_is_the_owners_again(
        self, client, user, off
    ):
        happen(user, 2)
        webhooks.switch_on_webhook(webhook=off)
        told = client.get(path(off)).json()
        assert (told["active"], told["off_by_administrator"]) == (True, False)
        assert claim_delivery().seq == 1
        change(client, off, active=False)
        with pytest.raises(webhooks.NotSwitchedOffError):
            webhooks.switch_on_webhook(webhook=off)
        assert change(client, off, active=True).json()["active"] is True

    def test_failures_of_a_message_under_way_do_not_make_it_the_owners(self, client, user, webhook):
        happen(user)
        message = claim_delivery()
        actor = make_user(staff=True)
        webhooks.switch_off_webhook(actor=actor, webhook=webhook, reason="It floods.")
        record_failure(delivery=message, error="gone", status=410)
        row = Webhook.objects.get()
        assert (row.off_by, row.off_reason) == (actor, "It floods.")


class TestTelling:
    def test_failure_is_told_until_a_success(self, client, user, webhook):
        happen(user)
        record_failure(delivery=claim_delivery(), error="The receiver answered 500.", status=500)
        told = client.get(path(webhook)).json()
        assert (told["last_status"], told["last_error"]) == (500, "The receiver answered 500.")
        assert (told["consecutive_failures"], told["backlog"]) == (1, 1)
        assert told["last_attempt_at"] < told["next_attempt_at"]
        Webhook.objects.update(next_attempt_at=timezone.now())
        record_success(delivery=claim_delivery(), status=200)
        told = client.get(path(webhook)).json()
        assert (told["last_status"], told["last_error"], told["backlog"]) == (200, "", 0)

    def test_test_is_asked_for_and_accepted(self, client, webhook):
        answer = client.post(path(webhook, "test/"))
        assert (answer.status_code, answer.json()["id"]) == (202, webhook.pk)
        assert claim_delivery().seq is None

    def test_rotation_tells_the_new_secret(self, client, webhook):
        answer = client.post(path(webhook, "rotate-secret/"))
        assert answer.status_code == 200
        row = Webhook.objects.get()
        assert answer.json()["secret"] == row.secret != webhook.secret == row.former_secret
        client.post(path(webhook, "rotate-secret/"))
        assert Webhook.objects.get().former_secret == row.secret

    def test_secrets_are_told_nowhere_else(self, client, user, webhook, caplog):
        caplog.set_level(logging.DEBUG)
        client.post(path(webhook, "rotate-secret/"))
        row = Webhook.objects.get()
        happen(user)
        told = [
            client.get("/api/v1/webhooks/"),
            client.get(path(webhook)),
            change(client, webhook, active=True),
            change(client, webhook, url="https://127.0.0.1/"),
            client.post(path(webhook, "test/")),
            client.get("/api/v1/events/"),
        ]
        record_failure(delivery=claim_delivery(), error="no")
        texts = [answer.content.decode() for answer in told] + [caplog.text, str(row), repr(row)]
        for secret in (row.secret, row.former_secret):
            assert [text for text in texts if secret in text] == []

    def test_nobody_sees_or_changes_what_is_anothers(self, webhook):
        stranger = client_of(make_user(staff=True))
        assert stranger.get("/api/v1/webhooks/").json()["count"] == 0
        answers = [
            stranger.get(path(webhook)),
            change(stranger, webhook, active=False),
            stranger.delete(path(webhook)),
            stranger.post(path(webhook, "rotate-secret/")),
            stranger.post(path(webhook, "test/")),
        ]
        assert [answer.status_code for answer in answers] == [404] * 5
        assert Webhook.objects.values().get() == {
            **{field.attname: getattr(webhook, field.attname) for field in Webhook._meta.fields}
        }

    def test_webhooks_go_with_their_user(self, user, webhook):
        user.delete()
        assert not Webhook.objects.exists()


@pytest.mark.parametrize(
    ("changes", "constraint"),
    [
        ({"off_reason": "why"}, "webhook_is_off_for_a_reason"),
        ({"off_since": timezone.now()}, "webhook_is_off_for_a_reason"),
        ({"off_by": F("user")}, "webhook_is_switched_off_by_somebody_at_a_time"),
        ({"consecutive_failures": 1}, "webhook_fails_since_its_first_failure"),
        ({"former_secret": "whsec_"}, "former_secret_of_a_webhook_ends"),
    ],
)
def test_database_refuses_what_makes_no_sense(webhook, changes, constraint):
    with pytest.raises(IntegrityError, match=constraint), transaction.atomic():
        Webhook.objects.filter(pk=webhook.pk).update(**changes)
