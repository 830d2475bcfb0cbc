import django.db.models.deletion
import django.utils.timezone
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    initial = True

    dependencies = [
        ("accounts", "__first__"),
        ("billing", "0003_system_accounts_and_first_prices"),
        ("datasets", "0001_datasets_and_media_files"),
    ]

    operations = [
        migrations.CreateModel(
            name="WorkerHeartbeat",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("name", models.CharField(max_length=100, unique=True)),
                ("loaded_weights", models.JSONField(default=list, help_text="Their SHA-256.")),
                ("device", models.CharField(blank=True, max_length=60)),
                (
                    "precisions",
                    models.JSONField(
                        default=list,
                        help_text="Arithmetic that this worker's processor has at full speed.",
                    ),
                ),
                ("last_seen_at", models.DateTimeField()),
            ],
            options={
                "verbose_name": "worker",
            },
        ),
        migrations.CreateModel(
            name="Job",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                (
                    "options",
                    models.JSONField(
                        default=dict,
                        help_text="inference.pipeline.options.DetectionOptions, every one of them.",
                    ),
                ),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("Pending", "Pending"),
                            ("Running", "Running"),
                            ("Completed", "Completed"),
                            ("Failed", "Failed"),
                            ("Aborted", "Aborted"),
                        ],
                        default="Pending",
                        max_length=10,
                    ),
                ),
                ("quoted_hundredths", models.BigIntegerField(default=0)),
                ("charged_hundredths", models.BigIntegerField(null=True)),
                (
                    "frame_count",
                    models.PositiveIntegerField(default=0, help_text="Images and video frames."),
                ),
                ("class_names", models.JSONField(default=list)),
                (
                    "weights_sha256",
                    models.CharField(
                        blank=True,
                        help_text="Those of its model version when it was submitted.",
                        max_length=64,
                    ),
                ),
                ("error", models.CharField(blank=True, max_length=500)),
                (
                    "deadline_at",
                    models.DateTimeField(
                        help_text="When it is aborted if it has not ended, by the database's clock.",
                        null=True,
                    ),
                ),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("started_at", models.DateTimeField(null=True)),
                (
                    "served_at",
                    models.DateTimeField(
                        help_text="When a worker last took a unit of it.", null=True
                    ),
                ),
                ("finished_at", models.DateTimeField(null=True)),
                (
                    "dataset",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="jobs",
                        to="datasets.dataset",
                    ),
                ),
                (
                    "hold",
                    models.OneToOneField(
                        null=True, on_delete=django.db.models.deletion.PROTECT, to="billing.hold"
                    ),
                ),
                (
                    "rerun_of",
                    models.ForeignKey(
                        help_text="The job whose files this one looks at again.",
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="reruns",
                        to="inference.job",
                    ),
                ),
                (
                    "user",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, to=settings.AUTH_USER_MODEL
                    ),
                ),
            ],
            options={
                "permissions": [
                    ("abort_job", "Can abort jobs"),
                    ("rerun_job", "Can run jobs again"),
                ],
                "indexes": [
                    models.Index(fields=["user", "-id"], name="job_by_user"),
                    models.Index(fields=["user", "served_at"], name="job_served_last"),
                    models.Index(
                        condition=models.Q(("state__in", ["Pending", "Running"])),
                        fields=["state"],
                        name="job_unfinished",
                    ),
                    models.Index(
                        condition=models.Q(("state", "Completed")),
                        fields=["-finished_at"],
                        name="job_completed_last",
                    ),
                    models.Index(
                        condition=models.Q(("finished_at__isnull", False)),
                        fields=["finished_at"],
                        name="job_ended_lately",
                    ),
                    models.Index(
                        condition=models.Q(
                            ("deadline_at__isnull", False), ("state__in", ["Pending", "Running"])
                        ),
                        fields=["deadline_at"],
                        name="job_that_has_a_deadline",
                    ),
                ],
                "constraints": [
                    models.UniqueConstraint(
                        condition=models.Q(("state__in", ["Pending", "Running"])),
                        fields=("rerun_of",),
                        name="one_unfinished_rerun_per_job",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(
                                ("charged_hundredths__isnull", True),
                                ("finished_at__isnull", True),
                                ("state__in", ["Pending", "Running"]),
                            ),
                            models.Q(
                                ("charged_hundredths__isnull", False),
                                ("finished_at__isnull", False),
                                ("state__in", ["Completed", "Failed", "Aborted"]),
                            ),
                            _connector="OR",
                        ),
                        name="job_is_charged_and_dated_when_it_ends",
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            ("charged_hundredths__isnull", True),
                            models.Q(
                                ("charged_hundredths__gte", 0),
                                ("charged_hundredths__lte", models.F("quoted_hundredths")),
                            ),
                            _connector="OR",
                        ),
                        name="job_costs_at_most_its_quote",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="JobFile",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("position", models.PositiveIntegerField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("running", "Running"),
                            ("completed", "Completed"),
                            ("failed", "Failed"),
                            ("aborted", "Aborted"),
                        ],
                        default="pending",
                        max_length=10,
                    ),
                ),
                (
                    "frame_count",
                    models.PositiveIntegerField(help_text="Frames that are looked at."),
                ),
                ("frame_price_hundredths", models.PositiveIntegerField()),
                ("error_code", models.CharField(blank=True, max_length=60)),
                ("error", models.CharField(blank=True, max_length=500)),
                ("annotated", models.FileField(blank=True, max_length=200, upload_to="")),
                (
                    "job",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="files",
                        to="inference.job",
                    ),
                ),
                (
                    "media_file",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, to="datasets.mediafile"
                    ),
                ),
            ],
            options={
                "verbose_name": "file of a job",
                "verbose_name_plural": "files of jobs",
                "ordering": ["position"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("job", "media_file"), name="one_file_per_job_and_media_file"
                    ),
                    models.UniqueConstraint(
                        fields=("job", "position"), name="one_file_per_job_position"
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="ModelVersion",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("model_id", models.CharField(max_length=40)),
                ("version", models.CharField(max_length=40)),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("draft", "draft: not tested, or its test failed"),
                            ("tested", "tested: may be offered"),
                            ("active", "active: users may choose it"),
                            ("retired", "retired: runs what was submitted, takes nothing new"),
                        ],
                        default="draft",
                        max_length=10,
                    ),
                ),
                (
                    "format",
                    models.CharField(
                        choices=[
                            ("pt", "Ultralytics checkpoint (.pt)"),
                            ("onnx", "ONNX export (.onnx)"),
                        ],
                        default="pt",
                        max_length=5,
                    ),
                ),
                ("weights_sha256", models.CharField(blank=True, max_length=64)),
                ("weights_bytes", models.PositiveBigIntegerField(default=0)),
                ("class_names", models.JSONField(default=list, help_text="By class id.")),
                (
                    "image_size",
                    models.PositiveIntegerField(
                        help_text="Side of the network's input in pixels where it is fixed.",
                        null=True,
                    ),
                ),
                (
                    "default_options",
                    models.JSONField(
                        blank=True,
                        default=dict,
                        help_text="Options of a detection that differ from the service's own, as an object.",
                    ),
                ),
                (
                    "precisions",
                    models.JSONField(default=list, help_text="Of its arithmetic, on offer."),
                ),
                ("notes", models.TextField(blank=True)),
                ("created_at", models.DateTimeField(default=django.utils.timezone.now)),
                ("test_requested_at", models.DateTimeField(null=True)),
                ("test_enqueued_at", models.DateTimeField(null=True)),
                ("test_lease_expires_at", models.DateTimeField(null=True)),
                ("test_attempt", models.PositiveIntegerField(default=0)),
                ("tested_at", models.DateTimeField(null=True)),
                ("test_error", models.CharField(blank=True, max_length=500)),
                ("test_figures", models.JSONField(default=dict)),
                ("test_picture", models.FileField(blank=True, max_length=200, upload_to="")),
                (
                    "uploaded_by",
                    models.ForeignKey(
                        null=True,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="+",
                        to=settings.AUTH_USER_MODEL,
                    ),
                ),
            ],
            options={
                "indexes": [
                    models.Index(
                        condition=models.Q(("test_requested_at__isnull", False)),
                        fields=["test_requested_at"],
                        name="model_version_to_be_tested",
                    )
                ],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("model_id", "version"), name="one_row_per_model_and_version"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("state__in", ["tested", "active"]), _negated=True),
                            models.Q(("weights_sha256", ""), _negated=True),
                            _connector="OR",
                        ),
                        name="offered_model_version_has_weights",
                    ),
                ],
            },
        ),
        migrations.AddField(
            model_name="job",
            name="model_version",
            field=models.ForeignKey(
                on_delete=django.db.models.deletion.PROTECT, to="inference.modelversion"
            ),
        ),
        migrations.CreateModel(
            name="WorkUnit",
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
                        choices=[("images", "Images"), ("frames", "Frames"), ("finish", "Finish")],
                        max_length=6,
                    ),
                ),
                ("position", models.PositiveIntegerField()),
                (
                    "state",
                    models.CharField(
                        choices=[
                            ("pending", "Pending"),
                            ("running", "Running"),
                            ("completed", "Completed"),
                            ("failed", "Failed"),
                            ("aborted", "Aborted"),
                        ],
                        default="pending",
                        max_length=10,
                    ),
                ),
                ("attempt", models.PositiveIntegerField(default=0)),
                (
                    "tries",
                    models.PositiveIntegerField(
                        default=0, help_text="Attempts that were not handed back."
                    ),
                ),
                ("worker_name", models.CharField(blank=True, max_length=100)),
                ("lease_expires_at", models.DateTimeField(null=True)),
                ("enqueued_at", models.DateTimeField(null=True)),
                (
                    "waits_until",
                    models.DateTimeField(help_text="After a failure that may pass.", null=True),
                ),
                (
                    "job",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="units",
                        to="inference.job",
                    ),
                ),
            ],
            options={
                "ordering": ["position", "pk"],
                "indexes": [
                    models.Index(
                        condition=models.Q(("state", "pending")),
                        fields=["job", "position", "id"],
                        name="work_unit_pending",
                    ),
                    models.Index(
                        condition=models.Q(("state", "running")),
                        fields=["lease_expires_at"],
                        name="work_unit_running",
                    ),
                ],
                "constraints": [
                    models.CheckConstraint(
                        condition=models.Q(
                            models.Q(("lease_expires_at__isnull", False), ("state", "running")),
                            models.Q(
                                models.Q(("state", "running"), _negated=True),
                                ("lease_expires_at__isnull", True),
                            ),
                            _connector="OR",
                        ),
                        name="work_unit_is_leased_while_it_runs",
                    )
                ],
            },
        ),
        migrations.CreateModel(
            name="UnitFile",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("first_frame_index", models.PositiveIntegerField(default=0)),
                ("end_frame_index", models.PositiveIntegerField()),
                ("frame_count", models.PositiveIntegerField()),
                ("frames_done", models.PositiveIntegerField(default=0)),
                (
                    "segment",
                    models.CharField(
                        blank=True,
                        help_text="Stored name of the annotated range, until joined.",
                        max_length=200,
                    ),
                ),
                (
                    "job_file",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="parts",
                        to="inference.jobfile",
                    ),
                ),
                (
                    "unit",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="parts",
                        to="inference.workunit",
                    ),
                ),
            ],
            options={
                "ordering": ["pk"],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("unit", "job_file"), name="one_part_per_work_unit_and_file"
                    ),
                    models.CheckConstraint(
                        condition=models.Q(("frames_done__lte", models.F("frame_count"))),
                        name="work_unit_does_at_most_the_frames_it_was_quoted_for",
                    ),
                ],
            },
        ),
        migrations.CreateModel(
            name="FrameResult",
            fields=[
                (
                    "id",
                    models.BigAutoField(
                        auto_created=True, primary_key=True, serialize=False, verbose_name="ID"
                    ),
                ),
                ("frame_index", models.PositiveIntegerField()),
                ("time_seconds", models.FloatField()),
                ("class_ids", models.BinaryField()),
                ("confidences", models.BinaryField()),
                ("boxes_xyxy", models.BinaryField()),
                (
                    "track_ids",
                    models.BinaryField(
                        help_text="Packed int32, 0 for a doubtful box of no track; null: not tracked.",
                        null=True,
                    ),
                ),
                (
                    "class_counts",
                    models.JSONField(default=dict, help_text="Detections by class, as displayed."),
                ),
                (
                    "media_file",
                    models.ForeignKey(
                        on_delete=django.db.models.deletion.PROTECT, to="datasets.mediafile"
                    ),
                ),
                (
                    "job",
                    models.ForeignKey(
                        db_index=False,
                        on_delete=django.db.models.deletion.PROTECT,
                        related_name="frame_results",
                        to="inference.job",
                    ),
                ),
            ],
            options={
                "indexes": [models.Index(fields=["job", "id"], name="frame_results_as_stored")],
                "constraints": [
                    models.UniqueConstraint(
                        fields=("job", "media_file", "frame_index"),
                        name="one_frame_result_per_job_media_file_and_frame",
                    )
                ],
            },
        ),
    ]
