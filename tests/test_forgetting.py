"""What is over for long is forgotten, and whoever comes back for it is told so."""

import asyncio
import json
from datetime import timedelta
from typing import Any

import pytest
from channels.db import database_sync_to_async
from channels.testing import WebsocketCommunicator
from django.db import connections, transaction
from django.utils import timezone

from accounts import cleaning, webhooks
from accounts.cleaning import forget_ended_api_keys, forget_ended_sessions, forget_old_events
from accounts.models import ApiKey, Event, Session, User, WebsocketTicket
from accounts.presence import Presence
from accounts.services import append_event, issue_websocket_ticket
from accounts.webhooks import claim_delivery, record_success
from inference.consumers import JobEventsConsumer
from inference.management.commands import sweeper
from tests.clients import client_of, client_with, key_of
from tests.factories import make_user
from tests.threads import in_threads

OLD = timedelta(days=31)
KEPT = timedelta(days=30)


def happen(user: User, count: int, *, ago: timedelta = timedelta(0)) -> None:
    """Events of the user that happened so long ago."""
    for number in range(count):
        with transaction.atomic():
            event = append_event(user_id=user.pk, kind="job.started", payload={"job_id": number})
        Event.objects.filter(pk=event.pk).update(created_at=timezone.now() - ago)


def forget() -> int:
    return forget_old_events(happened_before=timezone.now() - KEPT)


def numbers_of(user: User) -> list[int]:
    return list(Event.objects.filter(user=user).order_by("seq").values_list("seq", flat=True))


def make_webhook(user: User, number: int = 1, **terms: Any):
    return webhooks.create_webhook(user=user, url=f"https://8.8.8.8/{number}", **terms)


@pytest.mark.django_db
class TestEvents:
    def test_old_ones_go_and_younger_ones_and_those_of_others_stay(self, user):
        other = make_user()
        happen(user, 3, ago=OLD)
        happen(user, 2, ago=KEPT - timedelta(minutes=1))
        happen(other, 2)
        assert forget() == 3
        assert numbers_of(user) == [4, 5]
        assert numbers_of(other) == [1, 2]
        assert forget() == 0

    def test_numbers_are_not_given_again(self, user):
        happen(user, 3, ago=OLD)
        assert forget() == 3
        assert numbers_of(user) == []
        happen(user, 1)
        assert numbers_of(user) == [4]

    def test_stream_keeps_no_gap_where_clocks_disagreed(self, user):
        happen(user, 1, ago=OLD)
        happen(user, 1)
        happen(user, 1, ago=OLD)
        assert forget() == 1
        assert numbers_of(user) == [2, 3]

    def test_many_go_in_several_transactions_and_not_more_than_so_many(self, user, monkeypatch):
        monkeypatch.setattr(cleaning, "ROWS_AT_A_TIME", 2)
        monkeypatch.setattr(cleaning, "ROWS_PER_CLEANING", 4)
        happen(user, 7, ago=OLD)
        assert forget() == 4
        assert numbers_of(user) == [5, 6, 7]
        assert forget() == 3

    def test_list_says_where_it_begins(self, user):
        client = client_of(user)
        happen(user, 3, ago=OLD)
        happen(user, 2)
        assert client.get("/api/v1/events/?since=1").json()["oldest_seq"] == 1
        forget()
        page = client.get("/api/v1/events/?since=1").json()
        assert page["oldest_seq"] == 4
        assert [event["seq"] for event in page["results"]] == [4, 5]

    def test_who_turns_pages_skips_none_when_the_beginning_is_forgotten_meanwhile(self, user):
        client = client_of(user)
        happen(user, 2, ago=OLD)
        happen(user, 3)
        page = client.get("/api/v1/events/?kind=job.started&page_size=2").json()
        read = [event["seq"] for event in page["results"]]
        forget()
        while page["next"]:
            page = client.get(page["next"]).json()
            read += [event["seq"] for event in page["results"]]
        assert read == [1, 2, 3, 4, 5]

    def test_list_without_events_begins_with_the_next_one(self, user):
        client = client_of(user)
        assert client.get("/api/v1/events/").json()["oldest_seq"] == 1
        happen(user, 2, ago=OLD)
        forget()
        assert client.get("/api/v1/events/").json()["oldest_seq"] == 3


@pytest.mark.django_db
def test_sweeper_forgets_once_an_hour_what_is_older_than_the_settings_say(user, settings):
    settings.KEEP_EVENTS = timedelta(days=40)
    for days in (41, 39):
        happen(user, 1, ago=timedelta(days=days))
    for days in (91, 89):
        key, _ = key_of(user, f"revoked {days} days ago")
        ApiKey.objects.filter(pk=key.pk).update(revoked_at=timezone.now() - timedelta(days=days))
        client_of(user)
        session = Session.objects.filter(revoked_at__isnull=True)
        session.update(revoked_at=timezone.now() - timedelta(days=days))
    sweeper._clean()
    assert numbers_of(user) == [2]
    assert ApiKey.objects.get().name == "revoked 89 days ago"
    assert Session.objects.filter(revoked_at__lt=timezone.now() - timedelta(days=90)).count() == 0
    assert Session.objects.count() == 2


@pytest.mark.django_db
class TestEventsOfWebhooks:
    def test_what_has_not_been_delivered_stays_until_it_was(self, user):
        make_webhook(user)
        happen(user, 3, ago=OLD)
        record_success(delivery=claim_delivery(), status=200)
        assert forget() == 1
        assert numbers_of(user) == [2, 3]
        for seq in (2, 3):
            message = claim_delivery()
            assert message.seq == seq
            record_success(delivery=message, status=200)
        assert forget() == 2

    def test_slowest_of_them_counts(self, user):
        make_webhook(user, 1)
        happen(user, 2, ago=OLD)
        make_webhook(user, 2)  # begins after these
        assert forget() == 0
        assert numbers_of(user) == [1, 2]

    def test_one_that_is_off_and_that_of_another_keep_nothing(self, user):
        webhook = make_webhook(user)
        make_webhook(make_user())
        happen(user, 2, ago=OLD)
        webhooks.change_webhook(webhook=webhook, is_active=False)
        assert forget() == 2

    def test_switched_on_again_it_goes_on_with_what_is_kept(self, user):
        webhook = make_webhook(user)
        happen(user, 2, ago=OLD)
        webhooks.change_webhook(webhook=webhook, is_active=False)
        forget()
        happen(user, 1)
        webhooks.change_webhook(webhook=webhook, is_active=True)
        assert claim_delivery().seq == 3

    def test_one_of_a_user_who_may_come_back_keeps_them(self, user):
        make_webhook(user)
        happen(user, 1, ago=OLD)
        User.objects.filter(pk=user.pk).update(is_active=False)
        assert forget() == 0


def test_two_who_forget_at_once_remove_each_event_once(committed_db):
    user = make_user()
    happen(user, 30, ago=OLD)
    happen(user, 1)
    assert sum(in_threads(2, lambda _: forget())) == 30
    assert numbers_of(user) == [31]


class TestSockets:
    @pytest.fixture
    def user(self, committed_db) -> User:
        return make_user()

    def watch(self, user: User, query: str, told: int, *, meanwhile: Any = None) -> list[Any]:
        """So many messages of a socket, and the code that it closes with where it does.

        `meanwhile` happens after the greetings were sent and before anything else was read.
        """
        key, _ = key_of(user, f"key {query}")
        ticket = issue_websocket_ticket(presence=Presence(key, None))

        class Consumer(JobEventsConsumer):
            async def _greet(self) -> None:
                await super()._greet()
                if meanwhile is not None:
                    await database_sync_to_async(meanwhile)()

        async def talk() -> list[Any]:
            socket = WebsocketCommunicator(Consumer.as_asgi(), f"/?ticket={ticket}&{query}")
            await socket.connect(timeout=10)
            heard = [await socket.receive_output(timeout=10) for _ in range(told)]
            await socket.disconnect()
            await database_sync_to_async(connections.close_all)()  # of the thread that was asked
            return heard

        return asyncio.run(talk())

    def greeting_and_rest(self, user: User, query: str, told: int) -> tuple[Any, list[int]]:
        heard = [json.loads(one["text"]) for one in self.watch(user, query, told)]
        assert heard[0]["oldest_seq"] == heard[1]["oldest_seq"]
        return heard[0], [message["seq"] for message in heard[2:]]

    def test_who_comes_back_too_late_is_told_where_the_stream_begins(self, user):
        happen(user, 3, ago=OLD)
        happen(user, 2)
        forget()
        greeting, replayed = self.greeting_and_rest(user, "since=1", 4)
        assert (greeting["seq"], greeting["oldest_seq"], replayed) == (1, 4, [4, 5])

    def test_who_missed_nothing_is_told_so_too(self, user):
        happen(user, 3, ago=OLD)
        happen(user, 1)
        forget()
        greeting, replayed = self.greeting_and_rest(user, "since=3", 3)
        assert (greeting["seq"], greeting["oldest_seq"], replayed) == (3, 4, [4])

    def test_who_comes_when_all_is_forgotten_is_told_too(self, user):
        happen(user, 3, ago=OLD)
        forget()
        greeting, _ = self.greeting_and_rest(user, "since=1", 2)
        assert (greeting["seq"], greeting["oldest_seq"]) == (1, 4)

    def test_what_is_forgotten_after_the_greeting_ends_the_socket(self, user):
        happen(user, 3, ago=OLD)
        happen(user, 1)
        heard = self.watch(user, "since=1", 3, meanwhile=forget)
        assert heard[2] == {"type": "websocket.close", "code": 1013}


@pytest.mark.django_db
class TestSessions:
    def session_of(self, user: User, **changes: Any) -> Session:
        client_of(user)
        session = Session.objects.latest("pk")
        Session.objects.filter(pk=session.pk).update(**changes)
        return session

    def test_those_that_ended_long_ago_go_and_the_others_stay(self, user, settings):
        now = timezone.now()
        before = now - timedelta(days=90)
        life = settings.SIMPLE_JWT["REFRESH_TOKEN_LIFETIME"]
        minute = timedelta(minutes=1)
        self.session_of(user, revoked_at=before - minute)
        self.session_of(user, refreshed_at=before - life - minute)
        kept = [
            self.session_of(user, revoked_at=before + minute),
            self.session_of(user, refreshed_at=before - life + minute),
            self.session_of(user, created_at=before - life - minute),
        ]
        assert forget_ended_sessions(ended_before=before) == 2
        assert list(Session.objects.order_by("pk")) == kept

    def test_longest_token_of_a_session_counts(self, user, settings):
        now = timezone.now()
        year = timedelta(days=365)
        settings.SIMPLE_JWT = {**settings.SIMPLE_JWT, "ACCESS_TOKEN_LIFETIME": year}
        self.session_of(user, refreshed_at=now - timedelta(days=300))
        assert forget_ended_sessions(ended_before=now - timedelta(days=1)) == 0

    def test_token_of_a_forgotten_session_is_refused_as_before(self, user):
        client = client_of(user)
        Session.objects.update(revoked_at=timezone.now() - timedelta(days=91))
        assert client.get("/api/v1/me/").status_code == 401
        assert forget_ended_sessions(ended_before=timezone.now() - timedelta(days=90)) == 1
        assert client.get("/api/v1/me/").status_code == 401


@pytest.mark.django_db
class TestApiKeys:
    def test_those_that_ended_long_ago_go_with_their_tickets_and_the_others_stay(self, user):
        now = timezone.now()
        before = now - timedelta(days=90)
        minute = timedelta(minutes=1)
        ended = {
            "revoked": {"revoked_at": before - minute},
            "expired": {"expires_at": before - minute},
            "revoked of late": {"revoked_at": before + minute},
            "expired of late": {"expires_at": before + minute},
            "living": {"created_at": before - minute},
            "will expire": {"expires_at": now + minute},
        }
        texts = {}
        for name, changes in ended.items():
            key, texts[name] = key_of(user, name)
            issue_websocket_ticket(presence=Presence(key, None))
            ApiKey.objects.filter(pk=key.pk).update(**changes)
        assert forget_ended_api_keys(ended_before=before) == 2
        assert set(ApiKey.objects.values_list("name", flat=True)) == {
            *("revoked of late", "expired of late", "living", "will expire")
        }
        assert WebsocketTicket.objects.count() == 4
        assert client_with(texts["revoked"]).get("/api/v1/me/").status_code == 401
        assert client_with(texts["living"]).get("/api/v1/me/").status_code == 200

    def test_many_go_some_at_a_time_and_not_more_than_so_many(self, user, monkeypatch):
        monkeypatch.setattr(cleaning, "ROWS_AT_A_TIME", 2)
        monkeypatch.setattr(cleaning, "ROWS_PER_CLEANING", 4)
        for number in range(5):
            key_of(user, f"key {number}")
        ApiKey.objects.update(revoked_at=timezone.now() - timedelta(days=1))
        assert forget_ended_api_keys(ended_before=timezone.now()) == 4
        assert ApiKey.objects.count() == 1
