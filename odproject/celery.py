"""The Celery application: it carries hints to workers."""

import os
from typing import Any

from celery import Celery, signals

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "odproject.settings")

app = Celery("odproject")
app.config_from_object("django.conf:settings", namespace="CELERY")
app.autodiscover_tasks()


@signals.setup_logging.connect
def keep_logging(**_: Any) -> None:
    """Leave logging to the settings: Celery would silence what our workers tell of their work."""
