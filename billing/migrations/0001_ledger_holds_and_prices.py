import django.db.models.deletion
import django.db.models.functions.datetime
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("accounts", "__first__"),
    ]

    operations = [
        migrations.CreateModel(
            name="Price",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("upload_image_hundredths", models.PositiveIntegerField()),
                ("upload_frame_hundredths", models.PositiveIntegerField()),
                ("inference_image_hundredths", models.PositiveIntegerField()),
                ("inference_frame_hundredths", models.PositiveIntegerField()),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
            ],
            options={
                "verbose_name": "price list",
            },
        ),
        migrations.CreateModel(
            name="Account",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "purpose",
                    models.CharField(
                        choices=[
                            ("available", "Available"),
                            ("held", "Held"),
                            ("issuance", "Issuance"),
                            ("revenue", "Revenue"),
                        ],
                        max_length=12,
                    ),
                ),
                ("balance_hundredths", models.BigIntegerField(null=True)),
                ("alert_below_hundredths", models.BigIntegerField(null=True)),
                (
                    "user",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="accounts",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "permissions": [("top_up", "Can top up the tokens of users")],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("balance_hundredths__isnull", True),
                            ("balance_hundredths__gte", 0),
                            _connector="OR",
                        ),
                        name="account_balance_not_negative",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("balance_hundredths__isnull", False),
                                ("purpose__in", ["available", "held"]),
                                ("user__isnull", False),
                            ),
                            models.Q(
                                ("balance_hundredths__isnull", True),
                                ("purpose__in", ["issuance", "revenue"]),
                                ("user__isnull", True),
                            ),
                            _connector="OR",
                        ),
                        name="account_is_a_users_with_balance_or_the_systems_without",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("alert_below_hundredths__isnull", True),
                            models.Q(("alert_below_hundredths__gt", 0), ("purpose", "available")),
                            _connector="OR",
                        ),
                        name="alert_is_of_available_tokens_and_positive",
                    ),
                    models.UniqueConstraint(
                        fields=("user", "purpose"),
                        name="one_account_per_user_and_purpose",
                        nulls_distinct=False,
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="Hold",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("idempotency_key", models.CharField(max_length=120)),
                (
                    "state",
                    models.CharField(
                        choices=[("open", "Open"), ("settled", "Settled")],
                        default="open",
                        max_length=8,
                    ),
                ),
                ("amount_hundredths", models.BigIntegerField()),
                ("captured_hundredths", models.BigIntegerField(default=0)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("settled_at", models.DateTimeField(null=True)),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            ("amount_hundredths__gte", 0),
                            ("captured_hundredths__gte", 0),
                            ("captured_hundredths__lte", models.F("amount_hundredths")),
                        ),
                        name="hold_captures_at_most_what_it_holds",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("captured_hundredths", 0),
                                ("settled_at__isnull", True),
                                ("state", "open"),
                            ),
                            models.Q(("settled_at__isnull", False), ("state", "settled")),
                            _connector="OR",
                        ),
                        name="hold_is_settled_once_and_dated",
                    ),
                    models.UniqueConstraint(
                        fields=("idempotency_key",), name="one_hold_per_idempotency_key"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="KeptAnswer",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("route", models.CharField(help_text="Method and path.", max_length=200)),
                ("key", models.CharField(max_length=200)),
                (
                    "fingerprint",
                    models.CharField(help_text="SHA-256 of what the request said.", max_length=64),
                ),
                ("status", models.PositiveSmallIntegerField()),
                ("body", models.JSONField()),
                ("location", models.CharField(blank=True, max_length=200)),
                (
                    "created_at",
                    models.DateTimeField(db_index=True, default=django.utils.timezone.now),
                ),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.CASCADE, to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.UniqueConstraint(
                        fields=("user", "route", "key"),
                        name="one_kept_answer_per_user_route_and_key",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="Transfer",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("amount_hundredths", models.BigIntegerField()),
                (
                    "kind",
                    models.CharField(
                        choices=[
                            ("welcome", "Welcome"),
                            ("top_up", "Top-up"),
                            ("upload", "Upload"),
                            ("hold", "Hold"),
                            ("capture", "Capture"),
                            ("release", "Release"),
                        ],
                        max_length=12,
                    ),
                ),
                ("idempotency_key", models.CharField(max_length=120)),
                ("job_id", models.BigIntegerField(null=True)),
                ("upload_id", models.BigIntegerField(null=True)),
                ("reason", models.CharField(blank=True, max_length=200)),
                (
                    "created_at",
                    models.DateTimeField(db_default=django.db.models.functions.datetime.Now()),
                ),
                (
                    "actor",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
                (
                    "destination",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="incoming",
                        to="billing.account",
                    ),
                ),
                (
                    "source",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="outgoing",
                        to="billing.account",
                    ),
                ),
            ],
            options={
                "verbose_name": "ledger entry",
                "verbose_name_plural": "ledger entries",
                "indexes": [
                    models.Index(fields=["job_id"], name="transfer_by_job"),
                    models.Index(
                        fields=["source", "created_at"], name="transfer_from_account_by_time"
                    ),
                    models.Index(
                        fields=["destination", "created_at"], name="transfer_to_account_by_time"
                    ),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("amount_hundredths__gt", 0)),
                        name="transfer_amount_is_positive",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("source", models.F("destination")), _negated=True),
                        name="transfer_moves_between_two_accounts",
                    ),
                    models.UniqueConstraint(
                        fields=("idempotency_key",), name="one_transfer_per_idempotency_key"
                    ),
                ],
            },
        ),
    ]
