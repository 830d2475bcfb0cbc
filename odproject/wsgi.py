"""HTTP, as the thread pool behind `odproject.asgi` runs it."""

import os

from django.core.wsgi import get_wsgi_application

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "odproject.settings")

_django = get_wsgi_application()

# Not before Django is set up.
from odproject.core.content_types import refusing_odd_types  # noqa: E402

application = refusing_odd_types(_django)
