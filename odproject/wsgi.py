"""HTTP, as the thread pool behind `odproject.asgi` runs it."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "odproject.settings")

application = get_wsgi_application()
