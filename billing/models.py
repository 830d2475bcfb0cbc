"""Double-entry accounts, append-only transfers, holds and prices.

Amounts are whole hundredths of a token. A transfer moves an amount from one account to another;
nothing else ever changes a balance.
"""

from django.conf import settings
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils import timezone

from billing.prices import readable_tokens


class Account(models.Model):
    """A user's tokens for one purpose, or one of the two system accounts.

    A user account keeps its balance on the row; a system account has none, because a row that
    every transfer of every user updates would make them wait for each other.
    """

    class Purpose(models.TextChoices):
        AVAILABLE = "available"
        HELD = "held"
        ISSUANCE = "issuance"
        REVENUE = "revenue"

    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="accounts"
    )
    purpose = models.CharField(max_length=12, choices=Purpose.choices)
    balance_hundredths = models.BigIntegerField(null=True)
    # Its user is told when the balance falls from there or above to below it; null: never.
    alert_below_hundredths = models.BigIntegerField(null=True)

    class Meta:
        permissions = [("top_up", "Can top up the tokens of users")]
        constraints = [
            models.CheckConstraint(
                condition=Q(balance_hundredths__isnull=True) | Q(balance_hundredths__gte=0),
                name="account_balance_not_negative",
            ),
            models.CheckConstraint(
                condition=Q(
                    user__isnull=False,
                    balance_hundredths__isnull=False,
                    purpose__in=["available", "held"],
                )
                | Q(
                    user__isnull=True,
                    balance_hundredths__isnull=True,
                    purpose__in=["issuance", "revenue"],
                ),
                name="account_is_a_users_with_balance_or_the_systems_without",
            ),
            models.CheckConstraint(
                condition=Q(alert_below_hundredths__isnull=True)
                | Q(alert_below_hundredths__gt=0, purpose="available"),
                name="alert_is_of_available_tokens_and_positive",
            ),
            models.UniqueConstraint(
                fields=["user", "purpose"],
                name="one_account_per_user_and_purpose",
                nulls_distinct=False,
            ),
        ]

    def __str__(self) -> str:
        return f"{self.user or 'system'}: {self.purpose}"


class Transfer(models.Model):
    """An amount moved from one account to another, once, for ever.

    Triggers refuse UPDATE, DELETE and TRUNCATE (migration 0002).
    """

    class Kind(models.TextChoices):
        WELCOME = "welcome"
        TOP_UP = "top_up", "Top-up"
        UPLOAD = "upload"
        HOLD = "hold"
        CAPTURE = "capture"
        RELEASE = "release"

    # Both have an index below, with the time behind them.
    source = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="outgoing", db_index=False
    )
    destination = models.ForeignKey(
        Account, on_delete=models.PROTECT, related_name="incoming", db_index=False
    )
    amount_hundredths = models.BigIntegerField()
    kind = models.CharField(max_length=12, choices=Kind.choices)
    idempotency_key = models.CharField(max_length=120)
    # What the transfer is about, by id: the ledger knows no app above it.
    job_id = models.BigIntegerField(null=True)
    upload_id = models.BigIntegerField(null=True)
    actor = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.PROTECT, null=True, related_name="+"
    )
    reason = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(db_default=Now())  # one clock, whatever the hosts' say

    class Meta:
        verbose_name = "ledger entry"
        verbose_name_plural = "ledger entries"
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_hundredths__gt=0), name="transfer_amount_is_positive"
            ),
            models.CheckConstraint(
                condition=~Q(source=F("destination")), name="transfer_moves_between_two_accounts"
            ),
            models.UniqueConstraint(
                fields=["idempotency_key"], name="one_transfer_per_idempotency_key"
            ),
        ]
        indexes = [
            models.Index(fields=["job_id"], name="transfer_by_job"),
            models.Index(fields=["source", "created_at"], name="transfer_from_account_by_time"),
            models.Index(fields=["destination", "created_at"], name="transfer_to_account_by_time"),
        ]

    def __str__(self) -> str:
        return f"{self.get_kind_display()} of {readable_tokens(self.amount_hundredths)} tokens"


class Hold(models.Model):
    """Tokens set aside for a job, settled once: a part captured, the rest released."""

    class State(models.TextChoices):
        OPEN = "open"
        SETTLED = "settled"

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.PROTECT)
    idempotency_key = models.CharField(max_length=120)
    state = models.CharField(max_length=8, choices=State.choices, default=State.OPEN)
    amount_hundredths = models.BigIntegerField()
    captured_hundredths = models.BigIntegerField(default=0)
    created_at = models.DateTimeField(default=timezone.now)
    settled_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=Q(amount_hundredths__gte=0)
                & Q(captured_hundredths__gte=0)
                & Q(captured_hundredths__lte=F("amount_hundredths")),
                name="hold_captures_at_most_what_it_holds",
            ),
            models.CheckConstraint(
                condition=Q(state="open", settled_at__isnull=True, captured_hundredths=0)
                | Q(state="settled", settled_at__isnull=False),
                name="hold_is_settled_once_and_dated",
            ),
            models.UniqueConstraint(
                fields=["idempotency_key"], name="one_hold_per_idempotency_key"
            ),
        ]

    def __str__(self) -> str:
        return f"hold of {readable_tokens(self.amount_hundredths)} tokens ({self.state})"


class KeptAnswer(models.Model):
    """What was answered to a request under an Idempotency-Key, to be answered again."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    route = models.CharField(max_length=200, help_text="Method and path.")
    key = models.CharField(max_length=200)
    fingerprint = models.CharField(max_length=64, help_text="SHA-256 of what the request said.")
    status = models.PositiveSmallIntegerField()
    body = models.JSONField()
    location = models.CharField(max_length=200, blank=True)
    created_at = models.DateTimeField(default=timezone.now, db_index=True)

    class Meta:
        constraints = [
            models.UniqueConstraint(
                fields=["user", "route", "key"], name="one_kept_answer_per_user_route_and_key"
            )
        ]

    def __str__(self) -> str:
        return f"{self.route} {self.key}"


class Price(models.Model):
    """The current price list: the newest row counts, older ones stay as history."""

    upload_image_hundredths = models.PositiveIntegerField()
    upload_frame_hundredths = models.PositiveIntegerField()
    inference_image_hundredths = models.PositiveIntegerField()
    inference_frame_hundredths = models.PositiveIntegerField()
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        verbose_name = "price list"

    def __str__(self) -> str:
        return f"price list {self.pk}"
