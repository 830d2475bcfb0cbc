"""The Celery application: it carries hints to workers."""

import os

from celery import Celery

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "odproject.settings")

app = Celery("odproject")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()
