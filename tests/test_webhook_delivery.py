"""Events on their way to webhooks: in order, at least once, and none of them lost."""

import asyncio
import base64
import contextlib
import hashlib
import hmac
import json
import random
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from django.db import OperationalError, connection, transaction
from django.utils import timezone

from accounts import delivery, webhooks
from accounts.delivery import Dispatcher, Outcome, send
from accounts.models import User, Webhook
from accounts.services import append_event
from accounts.signing import new_secret, signed_headers
from accounts.webhooks import (
    FIRST_PAUSE_SECONDS,
    LONGEST_PAUSE_SECONDS,
    claim_delivery,
    record_failure,
    record_success,
)
from tests.clients import client_of
from tests.factories import make_user
from tests.threads import in_threads

ADDRESS = "https://8.8.8.8/hook"
OTHER_ADDRESS = "https://8.8.4.4/hook"
TAKEN = Outcome(status=200)
LOST = Outcome(error="There was no answer within 10 seconds.")
LONG_AGO = datetime(2020, 1, 1, tzinfo=UTC)
PATIENCE_SECONDS = 60


def happen(user: User, count: int = 1, kind: str = "job.started", **payload) -> None:
    """So many events of the user."""
    for number in range(count):
        with transaction.atomic():
            append_event(user_id=user.pk, kind=kind, payload={"number": number, **payload})


def make_webhook(user: User, url: str = ADDRESS, **options) -> Webhook:
    return webhooks.create_webhook(user=user, url=url, **options)


def told(webhook: Webhook) -> Webhook:
    """The row as it is now."""
    return Webhook.objects.get(pk=webhook.pk)


def make_due() -> None:
    """Pauses and leases are over."""
    Webhook.objects.update(next_attempt_at=LONG_AGO)
    Webhook.objects.filter(leased_until__isnull=False).update(leased_until=LONG_AGO)


class Receiver:
    """Answers each message with what is next on its list, and with 200 then; keeps all of them."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = iter(outcomes)
        self.messages: list[webhooks.Delivery] = []

    def __call__(self, message: webhooks.Delivery) -> Outcome:
        self.messages.append(message)
        return next(self._outcomes, TAKEN)

    @property
    def seqs(self) -> list[int | None]:
        return [message.seq for message in self.messages]


def deliver(receiver, *, at_once: int = 4) -> None:
    """Deliver until nothing is due."""
    dispatcher = Dispatcher(at_once=at_once, send_one=receiver)
    while dispatcher.step():
        assert dispatcher.wake.wait(PATIENCE_SECONDS)
        dispatcher.wake.clear()


@pytest.fixture
def user() -> User:
    return make_user()


class TestSignature:
    """By the Standard Webhooks specification."""

    def test_known_message_has_the_known_signature(self):
        assert signed_headers(
            secrets_now=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"],
            message_id="msg_p5jXN8AQM9LWM0D4loKWxJek",
            sent_at_seconds=1614265330,
            body=b'{"test": 2432232314}',
        ) == {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        }

    def test_secret_is_of_a_length_that_the_specification_allows(self):
        secret = new_secret()
        assert secret.startswith("whsec_")
        assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
        assert secret != new_secret()

    @pytest.mark.django_db
    def test_after_a_rotation_both_secrets_sign_for_a_day(self, user):
        webhook = make_webhook(user)
        webhooks.rotate_secret(webhook=webhook)
        rotated = told(webhook)
        assert rotated.former_secret == webhook.secret != rotated.secret
        happen(user, 2)
        message = claim_delivery()
        assert message.secrets == (rotated.secret, webhook.secret)
        record_success(delivery=message, status=200)
        left = rotated.former_secret_ends_at - timezone.now()
        assert timedelta(hours=23) < left < timedelta(hours=25)
        Webhook.objects.update(former_secret_ends_at=timezone.now() - timedelta(seconds=1))
        assert claim_delivery().secrets == (rotated.secret,)

    @pytest.mark.django_db
    def test_message_does_not_tell_its_secrets_to_a_log(self, user):
        webhook = make_webhook(user)
        happen(user)
        assert webhook.secret not in repr(claim_delivery())


@pytest.mark.django_db
class TestOrder:
    def test_events_come_in_their_order_as_the_api_tells_them(self, user):
        happen(user)  # before there was a webhook
        webhook = make_webhook(user)
        happen(user, 3, job_id=7)
        receiver = Receiver()
        deliver(receiver)
        assert receiver.seqs == [2, 3, 4]
        assert [message.message_id for message in receiver.messages] == [
            f"msg_{user.pk}_{seq}" for seq in (2, 3, 4)
        ]
        listed = client_of(user).get("/api/v1/events/?since=1").json()["results"]
        assert [json.loads(message.body) for message in receiver.messages] == listed
        after = told(webhook)
        assert (after.cursor_seq, after.last_status, after.last_error) == (4, 200, "")
        assert after.leased_until is None

    def test_cursor_moves_when_a_message_was_taken_and_not_before(self, user):
        webhook = make_webhook(user)
        happen(user, 2)
        message = claim_delivery()
        assert (message.seq, told(webhook).cursor_seq) == (1, 0)
        record_failure(delivery=message, error="no", status=500)
        assert told(webhook).cursor_seq == 0
        assert claim_delivery() is None  # it pauses
        make_due()
        again = claim_delivery()
        assert (again.seq, again.message_id, again.body) == (1, message.message_id, message.body)
        record_success(delivery=again, status=204)
        assert told(webhook).cursor_seq == 1

    def test_only_kinds_that_are_asked_for_are_sent(self, user):
        webhook = make_webhook(user, kinds=["job.failed", "job.completed"])
        for kind in ("job.started", "job.completed", "upload.accepted", "job.failed"):
            happen(user, kind=kind)
        happen(user, 3, kind="job.submitted")
        receiver = Receiver()
        deliver(receiver)
        assert receiver.seqs == [2, 4]
        assert told(webhook).cursor_seq == 7

    def test_events_of_others_are_not_sent(self, user):
        webhook = make_webhook(user)
        happen(make_user(), 2)
        receiver = Receiver()
        deliver(receiver)
        assert (receiver.messages, told(webhook).cursor_seq) == ([], 0)

    def test_each_webhook_of_a_user_has_a_place_of_its_own(self, user):
        first = make_webhook(user)
        happen(user)
        second = make_webhook(user, OTHER_ADDRESS)
        happen(user)
        receiver = Receiver()
        deliver(receiver)
        of = {first.pk: [1, 2], second.pk: [2]}
        for pk, seqs in of.items():
            assert [one.seq for one in receiver.messages if one.webhook_id == pk] == seqs
        # What happened is one thing, wherever it is told.
        ids = {one.message_id for one in receiver.messages}
        assert ids == {f"msg_{user.pk}_1", f"msg_{user.pk}_2"}

    @pytest.mark.parametrize("seed", range(6))
    def test_whatever_fails_nothing_is_lost_and_only_what_was_under_way_is_repeated(
        self, user, seed
    ):
        """Receivers that refuse, answers that get lost, processes that die at any point."""
        chance = random.Random(seed)
        make_webhook(user)
        arrived: list[int] = []
        while len(set(arrived)) < 12:
            if chance.random() < 0.5:
                happen(user, chance.randrange(4))
            make_due()
            message = claim_delivery()
            if message is None:
                continue
            match chance.choice(["taken", "taken", "refused", "answer lost", "killed", "late"]):
                case "taken":
                    arrived.append(message.seq)
                    record_success(delivery=message, status=200)
                case "refused":
                    record_failure(delivery=message, error="no", status=503)
                case "answer lost":
                    arrived.append(message.seq)
                    record_failure(delivery=message, error="no answer")
                case "killed":
                    arrived.append(message.seq)
                case "late":  # a process that slept while another took its work
                    make_due()
                    other = claim_delivery()
                    assert other.seq == message.seq
                    arrived += [message.seq, other.seq]
                    record_success(delivery=other, status=200)
                    record_success(delivery=message, status=200)
        repeated_in_place = all(
            later in {earlier, earlier + 1}
            for earlier, later in zip([0, *arrived], arrived, strict=False)
        )
        assert repeated_in_place, arrived


@pytest.mark.django_db
class TestLeases:
    def test_message_of_a_killed_process_waits_for_its_lease_and_comes_again(self, user):
        webhook = make_webhook(user)
        happen(user, 2)
        killed = claim_delivery()
        assert claim_delivery() is None
        assert told(webhook).leased_until > timezone.now() + timedelta(seconds=10)
        make_due()
        successor = claim_delivery()
        assert successor.message_id == killed.message_id

    def test_what_a_process_says_after_it_lost_its_lease_does_not_count(self, user):
        webhook = make_webhook(user)
        happen(user, 2)
        late = claim_delivery()
        make_due()
        successor = claim_delivery()
        record_success(delivery=late, status=200)
        assert (told(webhook).cursor_seq, told(webhook).last_status) == (0, None)
        record_failure(delivery=late, error="no", status=410)
        after = told(webhook)
        assert (after.consecutive_failures, after.off_since) == (0, None)
        assert after.leased_until is not None
        record_success(delivery=successor, status=200)
        assert told(webhook).cursor_seq == 1

    def test_deleted_webhook_needs_no_word_of_its_message(self, user):
        webhook = make_webhook(user)
        happen(user)
        message = claim_delivery()
        webhooks.delete_webhook(webhook=webhook)
        record_success(delivery=message, status=200)
        record_failure(delivery=message, error="no")
        assert not Webhook.objects.exists()

    def test_other_address_is_not_kept_from_its_events_by_the_former_one(self, user):
        webhook = make_webhook(user)
        happen(user)
        former = claim_delivery()
        webhooks.change_webhook(webhook=webhook, url=OTHER_ADDRESS)
        record_failure(delivery=former, error="no", status=410)
        now_sent = claim_delivery()
        assert (now_sent.seq, now_sent.url) == (1, OTHER_ADDRESS)
        assert told(webhook).off_since is None


def test_two_dispatchers_never_hold_the_same_message(committed_db):
    user = make_user()
    owned = [make_webhook(user, f"https://8.8.8.8/{number}") for number in range(5)]
    happen(user, 2)
    claimed = [one for one in in_threads(8, lambda _: claim_delivery()) if one is not None]
    assert sorted(one.webhook_id for one in claimed) == [one.pk for one in owned]
    assert {one.seq for one in claimed} == {1}


@pytest.mark.django_db
class TestTurns:
    def test_users_take_turns_however_many_events_and_webhooks_they_have(self, user):
        for number in range(5):
            make_webhook(user, f"https://8.8.8.8/{number}")
        happen(user, 50)
        other = make_user()
        make_webhook(other)
        happen(other, 3)
        owners = []
        for _ in range(6):
            message = claim_delivery()
            owners.append(Webhook.objects.get(pk=message.webhook_id).user_id)
            record_success(delivery=message, status=200)
        assert owners == [user.pk, other.pk] * 3

    def test_webhooks_of_a_user_take_turns_too(self, user):
        owned = [make_webhook(user, f"https://8.8.8.8/{number}").pk for number in range(3)]
        happen(user, 2)
        served = []
        while message := claim_delivery():
            served.append(message.webhook_id)
            record_success(delivery=message, status=200)
        assert served == owned * 2

    def test_receiver_that_hangs_delays_nobody_else(self, user):
        make_webhook(user)
        quick = make_webhook(make_user(), OTHER_ADDRESS)
        happen(user, 3)
        happen(quick.user, 20)
        is_over = threading.Event()
        arrived = []

        def receive(message):
            if message.url == ADDRESS:
                is_over.wait(PATIENCE_SECONDS)
                return LOST
            arrived.append(message.seq)
            return TAKEN

        dispatcher = Dispatcher(at_once=2, send_one=receive)
        try:
            while dispatcher.step() > 1 or len(arrived) < 20:
                assert dispatcher.wake.wait(PATIENCE_SECONDS)
                dispatcher.wake.clear()
            assert arrived == list(range(1, 21))
            assert not is_over.is_set()
        finally:
            is_over.set()


@pytest.mark.django_db
class TestFailures:
    def test_pauses_double_up_to_hours_and_nobody_comes_back_at_the_same_moment(self, user):
        webhook = make_webhook(user)
        happen(user)
        pauses = []
        for number in range(14):
            make_due()
            before = timezone.now()
            record_failure(
                delivery=claim_delivery(), error="no", chance=lambda number=number: number % 2
            )
            pauses.append((told(webhook).next_attempt_at - before).total_seconds())
        steps = [
            min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS) for number in range(14)
        ]
        expected = [step if number % 2 else step / 2 for number, step in enumerate(steps)]
        assert pauses == pytest.approx(expected, abs=5)
        assert (steps[:3], steps[-1]) == ([5, 10, 20], 4 * 3600)
        assert told(webhook).consecutive_failures == 14

    def test_failure_is_told_and_a_success_ends_it(self, user):
        webhook = make_webhook(user)
        happen(user)
        deliver(Receiver(LOST))
        failed = told(webhook)
        assert (failed.last_status, failed.last_error) == (None, LOST.error)
        assert (failed.consecutive_failures, failed.off_since) == (1, None)
        assert failed.failing_since == failed.last_attempt_at < failed.next_attempt_at
        make_due()
        deliver(Receiver())
        after = told(webhook)
        assert (after.consecutive_failures, after.failing_since, after.last_error) == (0, None, "")

    def test_after_three_days_without_a_success_it_is_switched_off(self, user):
        webhook = make_webhook(user)
        happen(user)
        deliver(Receiver(LOST))
        make_due()
        almost = timedelta(days=3) - timedelta(minutes=5)
        Webhook.objects.update(failing_since=timezone.now() - almost)
        deliver(Receiver(LOST))
        assert told(webhook).off_since is None
        make_due()
        Webhook.objects.update(failing_since=timezone.now() - timedelta(days=3, seconds=1))
        deliver(Receiver(LOST))
        after = told(webhook)
        assert after.off_since is not None
        assert after.off_reason == f"Nothing was taken for 3 days. {LOST.error}"
        make_due()
        assert claim_delivery() is None

    def test_receiver_that_is_gone_is_switched_off_at_once(self, user):
        webhook = make_webhook(user)
        happen(user, 2)
        deliver(Receiver(Outcome(status=410, error="The receiver answered 410.")))
        after = told(webhook)
        assert (after.cursor_seq, after.off_reason) == (0, "The receiver answered 410: it is gone.")
        make_due()
        assert claim_delivery() is None

    def test_switched_on_again_it_goes_on_where_it_was(self, user):
        webhook = make_webhook(user)
        happen(user, 3)
        receiver = Receiver(TAKEN, Outcome(status=410, error="gone"))
        deliver(receiver)
        webhooks.change_webhook(webhook=webhook, is_active=True)
        after = told(webhook)
        assert (after.off_since, after.off_reason, after.consecutive_failures) == (None, "", 0)
        deliver(receiver)
        assert receiver.seqs == [1, 2, 2, 3]

    def test_on_request_it_goes_on_from_now(self, user):
        webhook = make_webhook(user)
        happen(user, 3)
        receiver = Receiver(Outcome(status=410, error="gone"))
        deliver(receiver)
        webhooks.change_webhook(webhook=webhook, is_active=True, from_now=True)
        happen(user)
        deliver(receiver)
        assert receiver.seqs == [1, 4]

    def test_passing_over_what_waits_is_not_undone_by_the_message_under_way(self, user):
        webhook = make_webhook(user)
        happen(user, 3)
        message = claim_delivery()
        webhooks.change_webhook(webhook=webhook, from_now=True)
        record_success(delivery=message, status=200)
        assert told(webhook).cursor_seq == 3

    def test_webhook_of_a_deactivated_user_rests_and_loses_nothing(self, user):
        make_webhook(user)
        happen(user)
        User.objects.filter(pk=user.pk).update(is_active=False)
        assert claim_delivery() is None
        User.objects.filter(pk=user.pk).update(is_active=True)
        assert claim_delivery().seq == 1

    def test_message_that_cannot_even_be_tried_stops_nobody_else(self, user, monkeypatch, caplog):
        make_webhook(user)
        make_webhook(make_user(), OTHER_ADDRESS)
        happen(user)
        happen(User.objects.last())

        def post(url, **options):
            if url == ADDRESS:
                raise RuntimeError("a fault of ours")
            return 200

        monkeypatch.setattr(delivery, "post", post)
        deliver(send)
        failed, taken = Webhook.objects.order_by("pk")
        assert (failed.cursor_seq, failed.last_error) == (0, "The message could not be sent.")
        assert (taken.cursor_seq, taken.last_error) == (1, "")
        assert failed.secret not in caplog.text

    def test_end_that_could_not_be_noted_is_noted_later_and_nothing_is_sent_twice(
        self, user, monkeypatch
    ):
        webhook = make_webhook(user)
        happen(user)
        receiver = Receiver()
        dispatcher = Dispatcher(at_once=1, send_one=receiver)
        dispatcher.step()
        assert dispatcher.wake.wait(PATIENCE_SECONDS)

        def away(**_):
            raise OperationalError("the server closed the connection unexpectedly")

        with monkeypatch.context() as patch:
            patch.setattr(delivery, "record_success", away)
            with pytest.raises(OperationalError):
                dispatcher.step()
        assert dispatcher.step() == 0
        assert (receiver.seqs, told(webhook).cursor_seq) == ([1], 1)


@pytest.mark.django_db
class TestRunning:
    @pytest.fixture(autouse=True)
    def one_transaction(self, monkeypatch):
        """Which a renewed connection would end."""
        monkeypatch.setattr(delivery, "close_old_connections", lambda: None)

    def test_stop_brings_what_is_under_way_to_its_end_and_begins_nothing(self, user):
        webhook = make_webhook(user)
        happen(user, 2)
        begun = []

        def receive(message):
            begun.append(message.seq)
            dispatcher.is_stopping = True
            return TAKEN

        dispatcher = Dispatcher(at_once=1, send_one=receive)
        dispatcher.run()
        after = told(webhook)
        assert (begun, after.cursor_seq, after.leased_until) == ([1], 1, None)

    def test_database_that_is_away_is_waited_for(self, user, monkeypatch):
        webhook = make_webhook(user)
        happen(user)
        claims = []

        def claim():
            claims.append(1)
            if len(claims) == 1:
                dispatcher.wake.set()  # so that it looks again at once
                raise OperationalError("the server closed the connection unexpectedly")
            return claim_delivery()

        def receive(message):
            dispatcher.is_stopping = True
            return TAKEN

        monkeypatch.setattr(delivery, "claim_delivery", claim)
        dispatcher = Dispatcher(at_once=1, send_one=receive)
        dispatcher.run()
        assert told(webhook).cursor_seq == 1


@pytest.mark.django_db
class TestMessagesToTry:
    def test_test_is_sent_next_and_moves_nothing(self, user):
        webhook = make_webhook(user)
        happen(user)
        webhooks.request_test(webhook=webhook)
        asked_at = told(webhook).test_requested_at
        webhooks.request_test(webhook=webhook)  # one that waits is enough
        assert told(webhook).test_requested_at == asked_at
        receiver = Receiver()
        deliver(receiver)
        assert receiver.seqs == [None, 1]
        message = receiver.messages[0]
        assert message.message_id == f"msg_test_{webhook.pk}_{round(asked_at.timestamp() * 1000)}"
        body = json.loads(message.body)
        assert (body["kind"], body["seq"]) == ("webhook.test", None)
        assert body["payload"] == {"webhook_id": webhook.pk}
        assert told(webhook).test_requested_at is None

    def test_failed_test_is_told_and_counts_for_nothing(self, user):
        webhook = make_webhook(user)
        webhooks.request_test(webhook=webhook)
        deliver(Receiver(Outcome(status=410, error="The receiver answered 410.")))
        after = told(webhook)
        assert (after.last_status, after.last_error) == (410, "The receiver answered 410.")
        assert (after.consecutive_failures, after.off_since) == (0, None)
        assert claim_delivery() is None  # a test is sent once

    def test_test_reaches_a_webhook_that_is_off_and_what_waits_follows_a_pause_no_more(self, user):
        webhook = make_webhook(user)
        happen(user)
        deliver(Receiver(LOST))
        webhooks.change_webhook(webhook=webhook, is_active=False)
        webhooks.request_test(webhook=webhook)
        receiver = Receiver()
        deliver(receiver)
        assert receiver.seqs == [None]
        webhooks.change_webhook(webhook=webhook, is_active=True)
        deliver(Receiver(LOST))
        webhooks.request_test(webhook=webhook)
        deliver(receiver)
        assert receiver.seqs == [None, None, 1]


@pytest.mark.django_db
class TestOnTheWire:
    """A real receiver on this machine, which has to be permitted."""

    @pytest.fixture
    def receiver(self, settings):
        settings.WEBHOOKS_ANYWHERE = True
        heard: list[tuple[dict[str, str], bytes]] = []
        statuses = [500, 302, 204]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                heard.append((dict(self.headers), body))
                self.send_response(statuses.pop(0))
                self.end_headers()

            def log_message(self, *_):
                """Nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/hook", heard
        server.shutdown()
        thread.join()
        server.server_close()

    def test_receiver_gets_a_signed_message_again_until_it_takes_it(self, user, receiver):
        url, heard = receiver
        webhook = make_webhook(user, url)
        happen(user, job_id=5)
        sentences = []
        for _ in range(3):
            make_due()
            deliver(send)
            sentences.append(told(webhook).last_error)
        assert sentences == [
            "The receiver answered 500.",
            "The receiver answered 302. Redirections are not followed.",
            "",
        ]
        assert {body for _, body in heard} == {heard[0][1]}
        key = base64.b64decode(webhook.secret.removeprefix("whsec_"))
        for headers, body in heard:
            assert headers["webhook-id"] == f"msg_{user.pk}_1"
            assert headers["Content-Type"] == "application/json"
            signed = f"msg_{user.pk}_1.{headers['webhook-timestamp']}.".encode() + body
            digest = base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
            assert headers["webhook-signature"] == f"v1,{digest}"

    def test_address_that_is_permitted_no_more_is_not_sent_to(self, user, receiver, settings):
        url, heard = receiver
        webhook = make_webhook(user, url.replace("http:", "https:"))
        happen(user)
        settings.WEBHOOKS_ANYWHERE = False
        deliver(send)
        assert told(webhook).last_error == "127.0.0.1 leads to no public address."
        assert heard == []


def test_new_event_wakes_who_delivers(committed_db):
    user = make_user()
    wake = threading.Event()

    def tell() -> None:
        happen(user)
        connection.close()

    async def hear() -> None:
        listening = asyncio.create_task(delivery._listen(wake))
        while not wake.is_set():  # the first may come before it listens
            await asyncio.to_thread(tell)
        listening.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await listening

    asyncio.run(asyncio.wait_for(hear(), PATIENCE_SECONDS))
    assert wake.is_set()


@pytest.mark.django_db
def test_event_that_nobody_could_ask_for_is_a_mistake(user):
    with pytest.raises(RuntimeError, match=r"kind job\.misspelled"), transaction.atomic():
        append_event(user_id=user.pk, kind="job.misspelled", payload={})
