import django.db.models.deletion
import django.db.models.functions.text
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("auth", "0012_alter_user_first_name_max_length"),
    ]

    operations = [
        migrations.CreateModel(
            name="User",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("password", models.CharField(max_length=128, verbose_name="password")),
                (
                    "last_login",
                    models.DateTimeField(blank=True, null=True, verbose_name="last login"),
                ),
                (
                    "is_superuser",
                    models.BooleanField(
                        default=False,
                        help_text="Designates that this user has all permissions without explicitly assigning them.",
                        verbose_name="superuser status",
                    ),
                ),
                ("email", models.EmailField(max_length=254)),
                (
                    "is_staff",
                    models.BooleanField(
                        default=False,
                        help_text="May enter the admin. Groups say what for; without one, to top up by the API.",
                        verbose_name="administrator",
                    ),
                ),
                (
                    "is_active",
                    models.BooleanField(
                        default=True, help_text="May log in.", verbose_name="active"
                    ),
                ),
                (
                    "created_at",
                    models.DateTimeField(default=django.utils.timezone.now, editable=False),
                ),
                (
                    "groups",
                    models.ManyToManyField(
                        blank=True,
                        help_text="The groups this user belongs to. A user will get all permissions granted to each of their groups.",
                        related_name="user_set",
                        related_query_name="user",
                        to="auth.group",
                        verbose_name="groups",
                    ),
                ),
                (
                    "user_permissions",
                    models.ManyToManyField(
                        blank=True,
                        help_text="Specific permissions for this user.",
                        related_name="user_set",
                        related_query_name="user",
                        to="auth.permission",
                        verbose_name="user permissions",
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        django.db.models.functions.text.Upper("email"),
                        name="one_user_per_email_whatever_its_case",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("email__regex", "^[!-~]+$")),
                        name="email_is_printable_ascii",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="AttemptCount",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("subject", models.CharField(help_text="A SHA-256.", max_length=64, unique=True)),
                ("attempts", models.PositiveIntegerField()),
                ("window_ends_at", models.DateTimeField(db_index=True)),
            ],
        ),
        migrations.CreateModel(
            name="EventStream",
            fields=[
                (
                    "user",
                    models.OneToOneField(
                        on_delete=django.db.models.deletion.CASCADE,
                        primary_key=True,
                        serialize=False,
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                ("last_seq", models.PositiveBigIntegerField(default=0)),
            ],
        ),
        migrations.CreateModel(
            name="Event",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("seq", models.PositiveBigIntegerField()),
                ("kind", models.CharField(max_length=40)),
                ("payload", models.JSONField(default=dict)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="events",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("user", "seq"), name="one_event_per_user_and_seq"
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Webhook",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("url", models.CharField(max_length=500, verbose_name="address")),
                (
                    "kinds",
                    models.JSONField(default=list, help_text="Kinds of events; none are all."),
                ),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("secret", models.CharField(max_length=100)),
                ("former_secret", models.CharField(blank=True, max_length=100)),
                ("former_secret_ends_at", models.DateTimeField(null=True)),
                (
                    "cursor_seq",
                    models.PositiveBigIntegerField(
                        help_text="The number of the last event that was delivered or is not asked for."
                    ),
                ),
                ("off_since", models.DateTimeField(null=True)),
                (
                    "off_reason",
                    models.CharField(blank=True, help_text="Its owner reads it.", max_length=300),
                ),
                (
                    "off_by",
                    models.ForeignKey(
                        help_text="The administrator without whom its owner does not switch it on again.",
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                        verbose_name="switched off by",
                    ),
                ),
                ("last_attempt_at", models.DateTimeField(null=True, verbose_name="last attempt")),
                ("last_status", models.PositiveSmallIntegerField(null=True)),
                ("last_error", models.CharField(blank=True, max_length=300)),
                (
                    "consecutive_failures",
                    models.PositiveIntegerField(default=0, verbose_name="failures in a row"),
                ),
                ("failing_since", models.DateTimeField(null=True)),
                (
                    "next_attempt_at",
                    models.DateTimeField(
                        default=django.utils.timezone.now, verbose_name="next attempt"
                    ),
                ),
                ("test_requested_at", models.DateTimeField(null=True)),
                (
                    "served_at",
                    models.DateTimeField(help_text="When a message was last taken.", null=True),
                ),
                ("leased_until", models.DateTimeField(null=True)),
                ("lease_number", models.PositiveBigIntegerField(default=0)),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="webhooks",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "permissions": [("switch_off_webhook", "Can switch off a webhook")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("off_reason", ""), ("off_since__isnull", True)),
                            models.Q(
                                ("off_since__isnull", False),
                                models.Q(("off_reason", ""), _negated=True),
                            ),
                            _connector="OR",
                        ),
                        name="webhook_is_off_for_a_reason",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("off_by__isnull", True), ("off_since__isnull", False), _connector="OR"
                        ),
                        name="webhook_is_switched_off_by_somebody_at_a_time",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("consecutive_failures", 0), ("failing_since__isnull", True)),
                            models.Q(
                                ("consecutive_failures__gt", 0), ("failing_since__isnull", False)
                            ),
                            _connector="OR",
                        ),
                        name="webhook_fails_since_its_first_failure",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("former_secret", ""), ("former_secret_ends_at__isnull", True)
                            ),
                            models.Q(
                                ("former_secret_ends_at__isnull", False),
                                models.Q(("former_secret", ""), _negated=True),
                            ),
                            _connector="OR",
                        ),
                        name="former_secret_of_a_webhook_ends",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Session",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("refresh_jti", models.CharField(max_length=64)),
                ("refreshed_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("revoked_at", models.DateTimeField(null=True)),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="sessions",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="ApiKey",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=60)),
                ("prefix", models.CharField(max_length=32)),
                ("digest", models.CharField(help_text="SHA-256 of the secret.", max_length=64)),
                ("is_read_only", models.BooleanField(default=False, verbose_name="read only")),
                ("requests_per_minute", models.PositiveIntegerField(null=True)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("expires_at", models.DateTimeField(null=True)),
                ("last_used_at", models.DateTimeField(help_text="To the minute.", null=True)),
                ("revoked_at", models.DateTimeField(null=True)),
                (
                    "revoked_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.SET_NULL,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE,
                        related_name="api_keys",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "verbose_name": "API key",
                "constraints": [
                    models.UniqueConstraint(fields=("prefix",), name="one_api_key_per_prefix"),
                    models.UniqueConstraint(
                        condition=models.Q(("revoked_at__isnull", True)),
                        fields=("user", "name"),
                        name="one_unrevoked_api_key_per_user_and_name",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("name", ""), _negated=True), name="api_key_has_a_name"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("requests_per_minute__isnull", True),
                            ("requests_per_minute__gte", 1),
                            _connector="OR",
                        ),
                        name="api_key_allows_a_request_a_minute",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("revoked_by__isnull", True),
                            ("revoked_at__isnull", False),
                            _connector="OR",
                        ),
                        name="api_key_is_revoked_by_somebody_at_a_time",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="WebsocketTicket",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("digest", models.CharField(max_length=64, unique=True)),
                ("expires_at", models.DateTimeField()),
                ("socket_expires_at", models.DateTimeField(null=True)),
                (
                    "session",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.CASCADE,
                        to="accounts.session",
                    ),
                ),
                (
                    "api_key",
                    models.ForeignKey(
                        null=True, on_delete=django.db.models.deletion.CASCADE, to="accounts.apikey"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("api_key__isnull", True), ("session__isnull", False)),
                            models.Q(("api_key__isnull", False), ("session__isnull", True)),
                            _connector="OR",
                        ),
                        name="ticket_is_of_a_session_or_of_an_api_key",
                    )
                ],
            },
        ),
    ]
