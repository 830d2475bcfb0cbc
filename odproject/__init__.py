"""The composition root: settings, routes, servers and supervision."""

from odproject.celery import app as celery_app

__all__ = ["celery_app"]
