"""The application of the port: websockets to Channels, HTTP to Django through a pool of threads."""

import os

from channels.routing import ProtocolTypeRouter, URLRouter
from django.urls import re_path

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "odproject.settings")

from odproject.wsgi import application as wsgi_application  # noqa: I001 - sets Django up first
from inference.consumers import JobEventsConsumer
from odproject.bridge import http_application
from odproject.core.websockets import RefusedPath

application = ProtocolTypeRouter(
    {
        "http": http_application(wsgi_application),
        "websocket": URLRouter(
            [re_path(r"^$", JobEventsConsumer.as_asgi()), re_path(r"", RefusedPath.as_asgi())]
        ),
    }
)
