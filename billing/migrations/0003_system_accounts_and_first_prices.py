"""The two accounts of the system, and the prices of the original service."""

from django.db import migrations

FIRST_PRICES_HUNDREDTHS = {
    "upload_image_hundredths": 75,
    "upload_frame_hundredths": 50,
    "inference_image_hundredths": 150,
    "inference_frame_hundredths": 100,
}


def fill(apps, schema_editor):
    account = apps.get_model("billing", "Account")
    account.objects.create(user=None, purpose="issuance")
    account.objects.create(user=None, purpose="revenue")
    apps.get_model("billing", "Price").objects.create(**FIRST_PRICES_HUNDREDTHS)


class Migration(migrations.Migration):
    dependencies = [("billing", "0002_transfers_are_append_only")]
    operations = [migrations.RunPython(fill, migrations.RunPython.noop)]
