import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


def keep_what_was_withdrawn(apps, schema_editor):
    """Rows that were offered become so again when the package's models are registered."""
    model_version = apps.get_model("inference", "ModelVersion")
    model_version.objects.filter(is_active=False).update(state="retired")


class Migration(migrations.Migration):
    dependencies = [
        ("inference", "0005_track_ids"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.AddField(
            model_name="modelversion",
            name="state",
            field=models.CharField(
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
        migrations.RunPython(keep_what_was_withdrawn, migrations.RunPython.noop),
        migrations.RemoveField(
            model_name="modelversion",
            name="is_active",
        ),
        migrations.RemoveField(
            model_name="workerheartbeat",
            name="loaded_versions",
        ),
        migrations.AddField(
            model_name="modelversion",
            name="class_names",
            field=models.JSONField(default=list, help_text="By class id."),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="default_options",
            field=models.JSONField(
                blank=True,
                default=dict,
                help_text="Options of a detection that differ from the service's own, as an object.",
            ),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="format",
            field=models.CharField(
                choices=[("pt", "Ultralytics checkpoint (.pt)"), ("onnx", "ONNX export (.onnx)")],
                default="pt",
                max_length=5,
            ),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="image_size",
            field=models.PositiveIntegerField(
                help_text="Side of the network's input in pixels where it is fixed.", null=True
            ),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="precisions",
            field=models.JSONField(default=list, help_text="Of its arithmetic, on offer."),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="test_attempt",
            field=models.PositiveIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="test_enqueued_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="test_error",
            field=models.CharField(blank=True, max_length=500),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="test_figures",
            field=models.JSONField(default=dict),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="test_lease_expires_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="test_picture",
            field=models.FileField(blank=True, max_length=200, upload_to=""),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="test_requested_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="tested_at",
            field=models.DateTimeField(null=True),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="uploaded_by",
            field=models.ForeignKey(
                null=True,
                on_delete=django.db.models.deletion.PROTECT,
                related_name="+",
                to=settings.AUTH_USER_MODEL,
            ),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="weights_bytes",
            field=models.PositiveBigIntegerField(default=0),
        ),
        migrations.AddField(
            model_name="modelversion",
            name="weights_sha256",
            field=models.CharField(blank=True, max_length=64),
        ),
        migrations.AddField(
            model_name="workerheartbeat",
            name="loaded_weights",
            field=models.JSONField(default=list, help_text="Their SHA-256."),
        ),
        migrations.AlterField(
            model_name="job",
            name="class_names",
            field=models.JSONField(default=list),
        ),
        migrations.AlterField(
            model_name="job",
            name="weights_sha256",
            field=models.CharField(
                blank=True,
                help_text="Those of its model version when it was submitted.",
                max_length=64,
            ),
        ),
        migrations.AddIndex(
            model_name="modelversion",
            index=models.Index(
                condition=models.Q(("test_requested_at__isnull", False)),
                fields=["test_requested_at"],
                name="model_version_to_be_tested",
            ),
        ),
        migrations.AddConstraint(
            model_name="modelversion",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    models.Q(("state__in", ["tested", "active"]), _negated=True),
                    models.Q(("weights_sha256", ""), _negated=True),
                    _connector="OR",
                ),
                name="offered_model_version_has_weights",
            ),
        ),
    ]
