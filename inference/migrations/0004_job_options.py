"""The options of a job, and the precisions that a worker offers."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("inference", "0003_roles_of_administrators")]

    operations = [
        migrations.AddField(
            model_name="job",
            name="options",
            field=models.JSONField(
                default=dict,
                help_text="inference.pipeline.options.DetectionOptions, every one of them.",
            ),
        ),
        migrations.AddField(
            model_name="workerheartbeat",
            name="precisions",
            field=models.JSONField(
                default=list,
                help_text="Arithmetic that this worker's processor has at full speed.",
            ),
        ),
    ]
