import django.db.models.deletion
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
            name="Dataset",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=40)),
                ("tags", models.JSONField(default=list)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("deleted_at", models.DateTimeField(blank=True, null=True)),
                ("blocked_at", models.DateTimeField(blank=True, null=True)),
                ("block_reason", models.CharField(blank=True, max_length=300)),
                (
                    "flagged_at",
                    models.DateTimeField(blank=True, help_text="Wants a second look.", null=True),
                ),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="datasets",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "permissions": [("moderate_dataset", "Can flag, block and restore datasets")],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("deleted_at__isnull", True)),
                        fields=("user", "name"),
                        name="one_live_dataset_per_user_and_name",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="ModerationAction",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "kind",
                    models.CharField(
                        choices=[("flag", "Flag"), ("block", "Block"), ("restore", "Restore")],
                        max_length=8,
                    ),
                ),
                ("reason", models.CharField(blank=True, max_length=300)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "actor",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, to=settings.AUTH_USER_MODEL
                    ),
                ),
                (
                    "dataset",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="moderation",
                        to="datasets.dataset",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="Upload",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("file_name", models.CharField(max_length=255)),
                ("cost_hundredths", models.BigIntegerField(default=0)),
                ("refused", models.JSONField(default=list)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "dataset",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="uploads",
                        to="datasets.dataset",
                    ),
                ),
            ],
        ),
        migrations.CreateModel(
            name="ResumableUpload",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("file_name", models.CharField(max_length=255)),
                (
                    "metadata",
                    models.CharField(
                        blank=True, help_text="As its client sent it.", max_length=4096
                    ),
                ),
                ("length_bytes", models.BigIntegerField()),
                (
                    "offset_bytes",
                    models.BigIntegerField(default=0, help_text="So many have arrived."),
                ),
                ("expires_at", models.DateTimeField(db_index=True)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                (
                    "dataset",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="resumable_uploads",
                        to="datasets.dataset",
                    ),
                ),
                (
                    "upload",
                    models.OneToOneField(
                        null=True, on_delete=django.db.models.deletion.PROTECT, to="datasets.upload"
                    ),
                ),
            ],
            options={
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(("length_bytes__gte", 1)),
                        name="resumable_upload_is_not_empty",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("offset_bytes__gte", 0),
                            ("offset_bytes__lte", models.F("length_bytes")),
                        ),
                        name="resumable_upload_offset_lies_within_its_length",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("upload__isnull", True),
                            ("offset_bytes", models.F("length_bytes")),
                            _connector="OR",
                        ),
                        name="resumable_upload_is_accepted_only_when_it_is_whole",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="MediaFile",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "name",
                    models.CharField(
                        help_text="As the user calls it; never a path.", max_length=1000
                    ),
                ),
                ("content", models.FileField(max_length=200, upload_to="")),
                (
                    "thumbnail",
                    models.FileField(
                        blank=True,
                        help_text="JPEG, 320 pixels at most.",
                        max_length=200,
                        upload_to="",
                    ),
                ),
                (
                    "media_type",
                    models.CharField(
                        choices=[("image", "Image"), ("video", "Video")], max_length=5
                    ),
                ),
                ("format", models.CharField(max_length=20)),
                ("size_bytes", models.BigIntegerField()),
                ("width", models.PositiveIntegerField(help_text="Pixels of the upright picture.")),
                ("height", models.PositiveIntegerField(help_text="Pixels of the upright picture.")),
                ("frame_count", models.PositiveIntegerField(default=1)),
                ("duration_seconds", models.FloatField(null=True)),
                ("seek_plan", models.JSONField(null=True)),
                (
                    "warning",
                    models.CharField(
                        blank=True,
                        help_text="What is wrong with a file that was accepted.",
                        max_length=300,
                    ),
                ),
                ("cost_hundredths", models.BigIntegerField()),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("deleted_at", models.DateTimeField(blank=True, null=True)),
                (
                    "removed_at",
                    models.DateTimeField(
                        blank=True,
                        help_text="When its content left the storage, for good.",
                        null=True,
                    ),
                ),
                (
                    "dataset",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="media_files",
                        to="datasets.dataset",
                    ),
                ),
                (
                    "upload",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="media_files",
                        to="datasets.upload",
                    ),
                ),
            ],
            options={
                "ordering": ["pk"],
                "indexes": [
                    models.Index(fields=["content"], name="media_file_by_content"),
                    models.Index(fields=["thumbnail"], name="media_file_by_thumbnail"),
                ],
            },
        ),
    ]
