"""Roles that a superuser can give to an administrator, as groups.

Support reads accounts, the ledger and jobs, tops up and switches off webhooks; it sees no picture
of a user.
Moderators see datasets with their pictures, flag, block and restore them; they see no money.

Django makes permissions only after all migrations have run, so the ones of the roles are made
here, under the names that Django would give them.
"""

from django.db import migrations

# Role -> (application, model, permissions of the model)
ROLES = {
    "Support": (
        ("accounts", "user", ("view_user",)),
        ("accounts", "apikey", ("view_apikey",)),
        ("accounts", "webhook", ("view_webhook", "switch_off_webhook")),
        ("billing", "account", ("top_up",)),
        ("billing", "transfer", ("view_transfer",)),
        ("billing", "hold", ("view_hold",)),
        ("billing", "price", ("view_price",)),
        ("datasets", "dataset", ("view_dataset",)),
        ("datasets", "moderationaction", ("view_moderationaction",)),
        ("inference", "job", ("view_job",)),
        ("inference", "jobfile", ("view_jobfile",)),
        ("inference", "workunit", ("view_workunit",)),
        ("inference", "modelversion", ("view_modelversion",)),
        ("inference", "workerheartbeat", ("view_workerheartbeat",)),
    ),
    "Moderators": (
        ("datasets", "dataset", ("view_dataset", "moderate_dataset")),
        ("datasets", "mediafile", ("view_mediafile",)),
        ("datasets", "moderationaction", ("view_moderationaction",)),
    ),
}


def make_roles(apps, schema_editor):
    content_type = apps.get_model("contenttypes", "ContentType")
    permission = apps.get_model("auth", "Permission")
    group = apps.get_model("auth", "Group")
    for role, models in ROLES.items():
        members = []
        for app_label, model_name, codenames in models:
            options = apps.get_model(app_label, model_name)._meta
            names = dict(options.permissions)
            kind, _ = content_type.objects.get_or_create(app_label=app_label, model=model_name)
            for codename in codenames:
                name = names.get(codename, f"Can view {options.verbose_name_raw}")
                found, _ = permission.objects.get_or_create(
                    content_type=kind, codename=codename, defaults={"name": name}
                )
                members.append(found)
        made, _ = group.objects.get_or_create(name=role)
        made.permissions.add(*members)


class Migration(migrations.Migration):
    dependencies = [
        ("inference", "0002_model_versions_of_the_package"),
        ("datasets", "0001_datasets_and_media_files"),
        ("billing", "0003_system_accounts_and_first_prices"),
        ("accounts", "0001_users_sessions_and_events"),
        ("auth", "0012_alter_user_first_name_max_length"),
        ("contenttypes", "0002_remove_content_type_name"),
    ]
    operations = [migrations.RunPython(make_roles, migrations.RunPython.noop)]
