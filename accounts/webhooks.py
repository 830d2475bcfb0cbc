"""Every write to webhooks: by their owners, by administrators, and by who delivers.

Who delivers takes one message at a time: under a lock the webhook gets a lease and a new number,
the message is sent outside of any transaction, and what came of it counts if the number is still
the same. So an event is delivered at least once and in order, and a process that dies on the way
leaves nothing but a lease, which runs out.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.conf import settings
from django.db import transaction
from django.db.models import DateTimeField, F, OuterRef, Q, QuerySet, Subquery
from django.db.models.functions import Coalesce
from rest_framework.renderers import JSONRenderer

from accounts.models import Event, User, Webhook
from accounts.selectors import WebhookNotFoundError, last_event_seq, with_last_seq
from accounts.serializers import EventSerializer
from accounts.services import lock_user
from accounts.signing import new_secret
from odproject.core.clock import database_now
from odproject.core.errors import ConflictError, QuotaExceededError
from odproject.core.outbound import require_public

TEST_KIND = "webhook.test"
FORMER_SECRET_LIFE = timedelta(days=1)
# What is left of a lease after a message is what the database may take to note its end.
LEASE_SLACK_SECONDS = 20.0
FIRST_PAUSE_SECONDS = 5.0
LONGEST_PAUSE_SECONDS = 4 * 3600.0
PATIENCE = timedelta(days=3)  # without anything delivered
GONE = 410
BY_OWNER = "Its owner switched it off."
_SENTENCE_LENGTH = 300


class WebhookQuotaError(QuotaExceededError):
    """The user has as many webhooks as one user may have."""

    code = "webhook_quota_exceeded"
    title = "Too many webhooks"


class AlreadyOffError(ConflictError):
    """The webhook is switched off already."""

    code = "already_off"
    title = "Nothing to change"


class NotSwitchedOffError(ConflictError):
    """No administrator has switched the webhook off."""

    code = "not_switched_off"
    title = "Nothing to change"


class OffByAdministratorError(ConflictError):
    """An administrator has switched the webhook off, and only administrators switch it on again."""

    code = "off_by_administrator"
    title = "An administrator has switched the webhook off"

    def __init__(self, reason: str) -> None:
        super().__init__(f"An administrator has to switch the webhook on again: {reason}")


# -- by their owners -----------------------------------------------------------------------------


def create_webhook(*, user: User, url: str, kinds: Sequence[str] = ()) -> Webhook:
    """Have the user's events sent to an address, from the next one on; no kinds are all.

    Raises UnfitUrlError (400) and WebhookQuotaError (409).
    """
    _judge(url)
    quota = settings.MAX_WEBHOOKS_PER_USER
    with transaction.atomic():
        lock_user(user=user)
        if quota and Webhook.objects.filter(user=user).count() >= quota:
            detail = f"One user has at most {quota} webhooks; delete one first."
            raise WebhookQuotaError(detail, quota=quota)
        return Webhook.objects.create(
            user=user,
            url=url,
            kinds=_in_order(kinds),
            secret=new_secret(),
            cursor_seq=last_event_seq(user_id=user.pk),
            next_attempt_at=database_now(),
        )


def change_webhook(
    *,
    webhook: Webhook,
    url: str | None = None,
    kinds: Sequence[str] | None = None,
    is_active: bool | None = None,
    from_now: bool = False,
) -> None:
    """Give a webhook another address or other kinds, switch it on or off.

    It goes on after the last event that was delivered; `from_now` passes over those that wait.
    Raises UnfitUrlError (400), WebhookNotFoundError (404) when it was deleted meanwhile, and
    OffByAdministratorError (409) when it would be switched on against an administrator's will.
    """
    if url is not None:
        _judge(url)
    with transaction.atomic():
        locked = _locked(webhook)
        if is_active and locked.off_by_id is not None:
            raise OffByAdministratorError(locked.off_reason)
        now = database_now()
        leads_elsewhere = url is not None and url != locked.url
        if url is not None:
            locked.url = url
        if kinds is not None:
            locked.kinds = _in_order(kinds)
        if from_now:
            locked.cursor_seq = last_event_seq(user_id=locked.user_id)
        if leads_elsewhere or from_now:
            _take_back(locked)
        if is_active and locked.off_since is not None:
            _switch_on(locked, now=now)
        elif is_active is False and locked.off_since is None:
            locked.off_since, locked.off_reason = now, BY_OWNER
        if leads_elsewhere:
            _try_anew(locked, now=now)
        locked.save()


def delete_webhook(*, webhook: Webhook) -> None:
    """Send nothing more there; raises WebhookNotFoundError (404) when it was deleted meanwhile."""
    if not Webhook.objects.filter(pk=webhook.pk).delete()[0]:
        raise WebhookNotFoundError(f"You have no webhook {webhook.pk}.")


@transaction.atomic
def rotate_secret(*, webhook: Webhook) -> None:
    """Give a webhook another secret. For a day messages are signed with the one before it too.

    Raises WebhookNotFoundError (404) when the webhook was deleted meanwhile.
    """
    locked = _locked(webhook)
    locked.former_secret, locked.secret = locked.secret, new_secret()
    locked.former_secret_ends_at = database_now() + FORMER_SECRET_LIFE
    locked.save(update_fields=["secret", "former_secret", "former_secret_ends_at"])


@transaction.atomic
def request_test(*, webhook: Webhook) -> None:
    """Have a test message sent next, also where its owner has it off or it waits after a failure.

    One that waits already is enough. Raises WebhookNotFoundError (404), and OffByAdministratorError
    (409) where an administrator has it off.
    """
    locked = _locked(webhook)
    if locked.off_by_id is not None:
        raise OffByAdministratorError(locked.off_reason)
    locked.test_requested_at = locked.test_requested_at or database_now()
    locked.save(update_fields=["test_requested_at"])


# -- by administrators ---------------------------------------------------------------------------


def switch_off_webhook(*, actor: User, webhook: Webhook, reason: str) -> None:
    """Switch off another's webhook, until an administrator switches it on; the owner reads why.

    Also one that is off already, so that its owner does not switch it on. Raises AlreadyOffError
    (409) where an administrator has done that.
    """
    found = Webhook.objects.filter(pk=webhook.pk, off_by__isnull=True)
    off_since = Coalesce("off_since", database_now(), output_field=DateTimeField())
    if not found.update(
        off_since=off_since, off_reason=_cut(reason), off_by=actor, test_requested_at=None
    ):
        raise AlreadyOffError(f"The webhook {webhook.pk} is switched off already.")


@transaction.atomic
def switch_on_webhook(*, webhook: Webhook) -> None:
    """Switch on what an administrator has switched off; it goes on after the last delivered event.

    Raises NotSwitchedOffError (409).
    """
    rows = Webhook.objects.select_for_update(no_key=True)
    locked = rows.filter(pk=webhook.pk, off_by__isnull=False).first()
    if locked is None:
        raise NotSwitchedOffError(f"No administrator has switched the webhook {webhook.pk} off.")
    _switch_on(locked, now=database_now())
    locked.save()


def _switch_on(webhook: Webhook, *, now: datetime) -> None:
    webhook.off_since, webhook.off_reason, webhook.off_by = None, "", None
    _try_anew(webhook, now=now)


def _try_anew(webhook: Webhook, *, now: datetime) -> None:
    """What failed before counts no more, and nothing waits for another try."""
    webhook.consecutive_failures, webhook.failing_since = 0, None
    webhook.next_attempt_at = now


def _judge(url: str) -> None:
    require_public(url, anywhere=settings.WEBHOOKS_ANYWHERE)


def _in_order(kinds: Sequence[str]) -> list[str]:
    return sorted(set(kinds))


def _locked(webhook: Webhook) -> Webhook:
    """The row as it is now, kept from changing until the caller's transaction ends."""
    found = Webhook.objects.select_for_update(no_key=True).filter(pk=webhook.pk).first()
    if found is None:
        raise WebhookNotFoundError(f"You have no webhook {webhook.pk}.")
    return found


def _take_back(webhook: Webhook) -> None:
    """What comes of a message that is under way counts no more, and nobody waits for it."""
    webhook.lease_number += 1
    webhook.leased_until = None


# -- by who delivers -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Delivery:
    """A message to send, and the number of the lease under which what comes of it counts.

    `seq` is the number of its event in the user's stream; a test has none.
    """

    webhook_id: int
    lease_number: int
    url: str
    message_id: str
    body: bytes
    secrets: tuple[str, ...] = field(repr=False)
    seq: int | None


def claim_delivery() -> Delivery | None:
    """Take the message whose turn it is, or None: users take turns, and so do their webhooks.

    It goes to a webhook of the user who was served longest ago, or never. Where nothing that waits
    is of a kind that is asked for, the webhook passes over it.
    """
    while True:
        with transaction.atomic():
            now = database_now()
            due = _due(now).select_for_update(of=("self",), no_key=True, skip_locked=True)
            webhook = due.first()
            if webhook is None:
                return None
            event = _next_message(webhook)
            if event is not None:
                webhook.lease_number += 1
                webhook.leased_until = now + _lease()
                webhook.served_at = now
            webhook.save(update_fields=["cursor_seq", "lease_number", "leased_until", "served_at"])
        if event is not None:
            return _delivery(webhook, event, now)


def record_success(*, delivery: Delivery, status: int) -> None:
    """Move the cursor past a message that was taken, unless the lease has been lost.

    A test moves nothing; but what waited after a failure is tried again at once.
    """
    now = database_now()
    changes: dict[str, Any] = {"test_requested_at": None}
    if delivery.seq is not None:
        changes = {
            "cursor_seq": delivery.seq,
            "consecutive_failures": 0,
            "failing_since": None,
        }
    _held(delivery).update(
        leased_until=None,
        next_attempt_at=now,
        last_attempt_at=now,
        last_status=status,
        last_error="",
        **changes,
    )


@transaction.atomic
def record_failure(
    *,
    delivery: Delivery,
    error: str,
    status: int | None = None,
    chance: Callable[[], float] = random.random,
) -> None:
    """Note why a message was not taken, unless the lease has been lost.

    It is tried again after a pause that doubles with every failure. After days without anything
    delivered, and at once where the receiver says that it is gone, the webhook is switched off.
    """
    webhook = _held(delivery).select_for_update(no_key=True).first()
    if webhook is None:
        return
    now = database_now()
    webhook.leased_until = None
    webhook.last_attempt_at, webhook.last_status = now, status
    webhook.last_error = _cut(error)
    if delivery.seq is None:
        webhook.test_requested_at = None
    else:
        webhook.consecutive_failures += 1
        webhook.failing_since = webhook.failing_since or now
        webhook.next_attempt_at = now + _pause(webhook.consecutive_failures, chance)
        reason = _why_off(webhook, now)
        if reason and webhook.off_since is None:
            webhook.off_since, webhook.off_reason = now, reason
    webhook.save()


def _why_off(webhook: Webhook, now: datetime) -> str:
    """Why a webhook that failed is given up; empty while it is not."""
    if webhook.last_status == GONE:
        return f"The receiver answered {GONE}: it is gone."
    if webhook.failing_since is not None and now - webhook.failing_since >= PATIENCE:
        return _cut(f"Nothing was taken for {PATIENCE.days} days. {webhook.last_error}")
    return ""


def _pause(failures: int, chance: Callable[[], float]) -> timedelta:
    """Between half and all of it, so that those who failed together do not come back together."""
    doublings = min(failures - 1, 30)
    seconds = min(FIRST_PAUSE_SECONDS * 2**doublings, LONGEST_PAUSE_SECONDS)
    return timedelta(seconds=seconds * (1 + chance()) / 2)


def _lease() -> timedelta:
    return timedelta(seconds=settings.WEBHOOK_SECONDS + LEASE_SLACK_SECONDS)


def _held(delivery: Delivery) -> QuerySet[Webhook]:
    return Webhook.objects.filter(pk=delivery.webhook_id, lease_number=delivery.lease_number)


def _due(now: datetime) -> QuerySet[Webhook]:
    """Webhooks with something to send now that nobody sends, in the order of their turns."""
    waits = Q(off_since__isnull=True, next_attempt_at__lte=now, last_seq__gt=F("cursor_seq"))
    of_user = Webhook.objects.filter(user=OuterRef("user"), served_at__isnull=False)
    user_served_at = of_user.order_by("-served_at").values("served_at")[:1]
    return (
        with_last_seq(Webhook.objects.filter(user__is_active=True))
        .filter(waits | Q(test_requested_at__isnull=False))
        .filter(Q(leased_until__isnull=True) | Q(leased_until__lt=now))
        .annotate(user_served_at=Subquery(user_served_at))
        .order_by(
            F("user_served_at").asc(nulls_first=True), F("served_at").asc(nulls_first=True), "pk"
        )
    )


def _next_message(webhook: Webhook) -> Event | None:
    """A test that was asked for, or the next event that is; the cursor goes to just before it."""
    if webhook.test_requested_at is not None:
        return Event(
            user_id=webhook.user_id,
            kind=TEST_KIND,
            payload={"webhook_id": webhook.pk},
            created_at=webhook.test_requested_at,
        )
    last_seq: int = webhook.last_seq  # type: ignore[attr-defined]
    events = Event.objects.filter(
        user_id=webhook.user_id, seq__gt=webhook.cursor_seq, seq__lte=last_seq
    )
    if webhook.kinds:
        events = events.filter(kind__in=webhook.kinds)
    event = events.order_by("seq").first()
    webhook.cursor_seq = last_seq if event is None else event.seq - 1
    return event


def _delivery(webhook: Webhook, event: Event, now: datetime) -> Delivery:
    ends_at = webhook.former_secret_ends_at
    former = (webhook.former_secret,) if ends_at is not None and now < ends_at else ()
    # The same however often it is sent: what happened is told by the user and the number.
    name = f"{event.user_id}_{event.seq}"
    if event.seq is None:
        name = f"test_{webhook.pk}_{round(event.created_at.timestamp() * 1000)}"
    return Delivery(
        webhook_id=webhook.pk,
        lease_number=webhook.lease_number,
        url=webhook.url,
        message_id=f"msg_{name}",
        body=JSONRenderer().render(EventSerializer(event).data),
        secrets=(webhook.secret, *former),
        seq=event.seq,
    )


def _cut(sentence: str) -> str:
    return sentence[:_SENTENCE_LENGTH]
