"""The application of the port: websockets to Channels, HTTP to Django through a pool of threads."""

import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "odproject.settings")

from odproject.wsgi import application as wsgi_application  # noqa: I001 - sets Django up first
from inference.consumers import JobEventsConsumer
from odproject.bridge import http_application
from odproject.core.websockets import RefusedPath

if settings.SECRET_KEY == settings.INSECURE_SECRET_KEY and not settings.DEBUG:
    raise ImproperlyConfigured(
        "OD_SECRET_KEY is not set. `manage.py up` makes one; elsewhere give a long random text."
    )

application = ProtocolTypeRouter(
    {
        "http": http_application(wsgi_application),
        "websocket": URLRouter(
            [re_path(r"^$", JobEventsConsumer.as_asgi()), re_path(r"", RefusedPath.as_asgi())]
        ),
    }
)
