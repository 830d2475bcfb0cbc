"""The options of a job, and the precisions that a worker offers."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("inference", "0004_work_units_as_slices")]

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
