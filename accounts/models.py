"""Users, their sessions and API keys, their event streams, who is told of them, and tickets."""

from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models
from django.db.models.functions import Upper
from django.utils import timezone

SESSION_CLAIM = "sid"  # of every token: the number of the log-in that it belongs to
# What an event can be. Webhooks choose among them, so a new kind stands here first.
EVENT_KINDS = (
    "job.submitted",
    "job.started",
    "job.completed",
    "job.failed",
    "job.aborted",
    "upload.accepted",
    "dataset.blocked",
    "dataset.restored",
    "balance.topped_up",
    "balance.low",
)


class UserManager(BaseUserManager["User"]):
    """Finds users by e-mail whatever its case."""

    def of_email(self, email: str) -> "User | None":
        """The user of an e-mail address, whatever its case.

        Only ASCII is compared: beyond it letters exist whose other case is an ASCII one (dotless
        i, long s, the Kelvin sign), so that one user would answer to several addresses.
        """
        return self.filter(email__iexact=email).first() if email.isascii() else None

    def get_by_natural_key(self, username: str | None) -> "User":
        """The user of an e-mail address; raises User.DoesNotExist."""
        user = self.of_email(username or "")
        if user is None:
            raise User.DoesNotExist
        return user

    def create_superuser(self, email: str, password: str, **fields: Any) -> "User":
        """An administrator with every permission (for `createsuperuser`)."""
        user = self.model(email=email, is_staff=True, is_superuser=True, **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user


class User(AbstractBaseUser, PermissionsMixin):
    """A person or program that owns datasets, jobs and tokens; known by an e-mail address."""

    email = models.EmailField(max_length=254)
    is_staff = models.BooleanField(
        "administrator",
        default=False,
        help_text="May enter the admin. Groups say what for; without one, to top up by the API.",
    )
    is_active = models.BooleanField("active", default=True, help_text="May log in.")
    created_at = models.DateTimeField(default=timezone.now, editable=False)

    USERNAME_FIELD = "email"
    objects: ClassVar[UserManager] = UserManager()

    class Meta:
        constraints = [
            # Upper, because that is what `email__iexact` compares, so one index serves both.
            models.UniqueConstraint(Upper("email"), name="one_user_per_email_whatever_its_case"),
            models.CheckConstraint(
                condition=models.Q(email__regex=r"^[!-~]+$"), name="email_is_printable_ascii"
            ),
        ]

    def __str__(self) -> str:
        return self.email


class EventStream(models.Model):
    """The number of a user's newest event.

    A row of its own, so that nothing that saves a user can set the number back.
    """

    user = models.OneToOneField(User, on_delete=models.CASCADE, primary_key=True)
    last_seq = models.PositiveBigIntegerField(default=0)

    def __str__(self) -> str:
        return f"stream of user {self.user_id}"


class Event(models.Model):
    """Something that happened to what a user owns, numbered without gaps for that user.

    Old ones are removed from the beginning of the stream on (`accounts.cleaning`).
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="events")
    seq = models.PositiveBigIntegerField()
    kind = models.CharField(max_length=40)
    payload = models.JSONField(default=dict)
    created_at = models.DateTimeField(default=timezone.now)

    class Meta:
        constraints = [
            models.UniqueConstraint(fields=["user", "seq"], name="one_event_per_user_and_seq")
        ]

    def __str__(self) -> str:
        return f"{self.user_id}/{self.seq} {self.kind}"


class Webhook(models.Model):
    """An address that is sent a user's events: a reader of their stream that keeps its place.

    Of each event nothing is kept here. Whoever delivers holds a lease with a number, and what came
    of a message counts only under the number that it was taken with (`accounts.webhooks`).
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="webhooks")
    url = models.CharField("address", max_length=500)
    kinds = models.JSONField(default=list, help_text="Kinds of events; none are all.")
    created_at = models.DateTimeField(default=timezone.now)
    # As they are, because they have to sign: the service keeps nothing encrypted (docs/adr/0014).
    secret = models.CharField(max_length=100)
    former_secret = models.CharField(max_length=100, blank=True)
    former_secret_ends_at = models.DateTimeField(null=True)
    cursor_seq = models.PositiveBigIntegerField(
        help_text="The number of the last event that was delivered or is not asked for."
    )
    off_since = models.DateTimeField(null=True)
    off_reason = models.CharField(max_length=300, blank=True, help_text="Its owner reads it.")
    off_by = models.ForeignKey(
        User,
        on_delete=models.PROTECT,
        null=True,
        related_name="+",
        verbose_name="switched off by",
        help_text="The administrator without whom its owner does not switch it on again.",
    )
    last_attempt_at = models.DateTimeField("last attempt", null=True)
    last_status = models.PositiveSmallIntegerField(null=True)
    last_error = models.CharField(max_length=300, blank=True)
    consecutive_failures = models.PositiveIntegerField("failures in a row", default=0)
    failing_since = models.DateTimeField(null=True)
    next_attempt_at = models.DateTimeField("next attempt", default=timezone.now)
    test_requested_at = models.DateTimeField(null=True)
    served_at = models.DateTimeField(null=True, help_text="When a message was last taken.")
    leased_until = models.DateTimeField(null=True)
    lease_number = models.PositiveBigIntegerField(default=0)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(off_since__isnull=True, off_reason="")
                | (models.Q(off_since__isnull=False) & ~models.Q(off_reason="")),
                name="webhook_is_off_for_a_reason",
            ),
            models.CheckConstraint(
                condition=models.Q(off_by__isnull=True) | models.Q(off_since__isnull=False),
                name="webhook_is_switched_off_by_somebody_at_a_time",
            ),
            models.CheckConstraint(
                condition=models.Q(failing_since__isnull=True, consecutive_failures=0)
                | models.Q(failing_since__isnull=False, consecutive_failures__gt=0),
                name="webhook_fails_since_its_first_failure",
            ),
            models.CheckConstraint(
                condition=models.Q(former_secret_ends_at__isnull=True, former_secret="")
                | (models.Q(former_secret_ends_at__isnull=False) & ~models.Q(former_secret="")),
                name="former_secret_of_a_webhook_ends",
            ),
        ]
        permissions = [("switch_off_webhook", "Can switch off a webhook")]

    def __str__(self) -> str:
        return f"webhook {self.pk} of user {self.user_id}"


class Session(models.Model):
    """A log-in: the family of all tokens that follow from it, which end together.

    Of the refresh tokens of a session only the newest counts; it is exchanged by a conditional
    UPDATE of `refresh_jti`, so of two who try one wins.
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="sessions")
    refresh_jti = models.CharField(max_length=64)
    refreshed_at = models.DateTimeField(default=timezone.now)
    created_at = models.DateTimeField(default=timezone.now)
    revoked_at = models.DateTimeField(null=True)

    def __str__(self) -> str:
        return f"session {self.pk} of user {self.user_id}"

    @property
    def credential(self) -> str:
        """What sockets that it has opened know it by."""
        return f"session {self.pk}"


class ApiKey(models.Model):
    """A key by which a program works for a user, until it expires or is revoked.

    Of its text (`accounts.key_text`) only the prefix and the hash of the secret are kept, so
    reading this table lets nobody in. The secret is random: a plain hash does.
    """

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="api_keys")
    name = models.CharField(max_length=60)
    prefix = models.CharField(max_length=32)
    digest = models.CharField(max_length=64, help_text="SHA-256 of the secret.")
    is_read_only = models.BooleanField("read only", default=False)
    requests_per_minute = models.PositiveIntegerField(null=True)
    created_at = models.DateTimeField(default=timezone.now)
    expires_at = models.DateTimeField(null=True)
    last_used_at = models.DateTimeField(null=True, help_text="To the minute.")
    revoked_at = models.DateTimeField(null=True)
    revoked_by = models.ForeignKey(User, on_delete=models.SET_NULL, null=True, related_name="+")

    class Meta:
        verbose_name = "API key"
        constraints = [
            models.UniqueConstraint(fields=["prefix"], name="one_api_key_per_prefix"),
            models.UniqueConstraint(
                fields=["user", "name"],
                condition=models.Q(revoked_at__isnull=True),
                name="one_unrevoked_api_key_per_user_and_name",
            ),
            models.CheckConstraint(condition=~models.Q(name=""), name="api_key_has_a_name"),
            models.CheckConstraint(
                condition=models.Q(requests_per_minute__isnull=True)
                | models.Q(requests_per_minute__gte=1),
                name="api_key_allows_a_request_a_minute",
            ),
            models.CheckConstraint(
                condition=models.Q(revoked_by__isnull=True) | models.Q(revoked_at__isnull=False),
                name="api_key_is_revoked_by_somebody_at_a_time",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.name} ({self.prefix})"

    @property
    def credential(self) -> str:
        """What sockets that it has opened know it by."""
        return f"API key {self.pk}"


class AttemptCount(models.Model):
    """How often a subject has tried something in the window that ends then (`accounts.limits`)."""

    subject = models.CharField(max_length=64, unique=True, help_text="A SHA-256.")
    attempts = models.PositiveIntegerField()
    window_ends_at = models.DateTimeField(db_index=True)

    def __str__(self) -> str:
        return f"{self.attempts} attempts of {self.subject[:8]}"


class WebsocketTicket(models.Model):
    """A single-use pass for a browser, which cannot send a header when it opens a websocket.

    Only the hash is kept, so reading this table lets nobody in.
    """

    digest = models.CharField(max_length=64, unique=True)
    session = models.ForeignKey(Session, on_delete=models.CASCADE, null=True)
    api_key = models.ForeignKey(ApiKey, on_delete=models.CASCADE, null=True)
    expires_at = models.DateTimeField()
    socket_expires_at = models.DateTimeField(null=True)

    class Meta:
        constraints = [
            models.CheckConstraint(
                condition=models.Q(session__isnull=False, api_key__isnull=True)
                | models.Q(session__isnull=True, api_key__isnull=False),
                name="ticket_is_of_a_session_or_of_an_api_key",
            )
        ]

    def __str__(self) -> str:
        return f"ticket {self.pk}"
