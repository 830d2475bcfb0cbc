"""The two model versions whose weights come with the package."""

from django.db import migrations


def fill(apps, schema_editor):
    model_version = apps.get_model("inference", "ModelVersion")
    for version in ("YOLO8s_FSR", "YOLO8m_FSR"):
        model_version.objects.create(model_id="YOLO8", version=version)


class Migration(migrations.Migration):
    dependencies = [("inference", "0001_models_jobs_and_frame_results")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
