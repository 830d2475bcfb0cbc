"""Which object of a video a detection belongs to."""

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("inference", "0004_job_options")]

    operations = [
        migrations.AddField(
            model_name="frameresult",
            name="track_ids",
            field=models.BinaryField(
                help_text="Packed int32, 0 for a doubtful box of no track; null: not tracked.",
                null=True,
            ),
        ),
    ]
