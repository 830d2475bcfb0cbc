"""The application of the port: websockets to Channels, HTTP to Django through a pool of threads."""

import math
import os
import re

from channels.routing import ProtocolTypeRouter, URLRouter
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.urls import re_path
from rest_framework_simplejwt.exceptions import TokenError

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "odproject.settings")

from odproject.wsgi import application as wsgi_application  # noqa: I001 - sets Django up first
from accounts.key_text import signed_key_text
from datasets.v1_resumable import PIECE_BYTES
from inference.consumers import JobEventsConsumer
from odproject.bridge import Bridge, Scope
from odproject.core.passes import has_upload_pass
from odproject.core.websockets import RefusedPath

from rest_framework_simplejwt.settings import api_settings
from rest_framework_simplejwt.tokens import AccessToken

if settings.SECRET_KEY == settings.INSECURE_SECRET_KEY and not settings.DEBUG:
    raise ImproperlyConfigured(
        "OD_SECRET_KEY is not set. `manage.py up` makes one; elsewhere give a long random text."
    )

_UPLOADS = re.compile(r"/upload/?|/api/v1/datasets/[0-9]+/uploads/?|/api/v1/models/?", re.ASCII)
_PIECES = re.compile(r"/api/v1/datasets/[0-9]+/resumable-uploads/[0-9]+/?", re.ASCII)
_FORMS = re.compile(r"/admin/inference/modelversion/add/")
_CROPS = re.compile(r"/api/v1/jobs/[0-9]+/exports/crops/?", re.ASCII)
_WHOLE_RESULTS = re.compile(
    r"/inference/(result|content/[0-9]+)/?|/api/v1/jobs/[0-9]+/(exports/[a-z]+|annotated-zip)/?"
    r"|/api/v1/statements/[0-9-]+/csv/?",
    re.ASCII,
)


def refuses_large_body(path: str, authorization: str, cookies: str) -> int:
    """Why a large body is not wanted, as a status: 413, 401, or 0 when it is.

    Only an upload may be large, and only by somebody whose token, API key, or pass to a form, we
    signed. Looks into no database; whether the session or key still lives is asked when the body
    is there.
    """
    if _FORMS.fullmatch(path):
        return 0 if has_upload_pass(cookies, path=path) else 401
    if not (_UPLOADS.fullmatch(path) or _PIECES.fullmatch(path)):
        return 413
    return 401 if _signed_user_id(authorization) is None else 0


def takes_broken_bodies(method: str, path: str) -> bool:
    """Whether what has come of a body counts, when its connection breaks before the end."""
    return method == "PATCH" and _PIECES.fullmatch(path) is not None


def _signed_user_id(authorization: str) -> str | None:
    """Whose living access token, or API key, of ours an Authorization header holds, if it does."""
    scheme, _, text = authorization.strip().partition(" ")
    if scheme.lower() != "bearer":
        return None
    if key := signed_key_text(text.strip()):
        return str(key.user_id)
    try:
        token = AccessToken(text.strip())  # type: ignore[arg-type]
    except TokenError:
        return None
    return str(token.get(api_settings.USER_ID_CLAIM))


def slow_kind(scope: Scope) -> str | None:
    """Of a request that takes up to minutes: decoding files, or all that a job or a month has.

    A piece of a large upload waits for disks only; so it has threads beside those that decode.
    """
    method, path = scope["method"], scope["path"]
    if takes_broken_bodies(method, path):
        return "piece" if _announced_bytes(scope) >= PIECE_BYTES else None
    if method == "POST" and (_UPLOADS.fullmatch(path) or _FORMS.fullmatch(path)):
        return "upload"
    if method not in ("GET", "HEAD"):
        return None
    if _CROPS.fullmatch(path):
        return "crops"
    return "result" if _WHOLE_RESULTS.fullmatch(path) else None


def _announced_bytes(scope: Scope) -> float:
    """How long a body says that it is; one that does not may have any length."""
    length = dict(scope["headers"]).get(b"content-length", b"")
    return int(length) if length.isdigit() else math.inf


def asker(scope: Scope) -> str:
    """Whose turn a slow request takes: the user of its token; all that show none share one."""
    authorization = b"".join(v for name, v in scope["headers"] if name == b"authorization")
    return _signed_user_id(authorization.decode("latin-1")) or ""


_http = Bridge(
    wsgi_application,
    settings.WEB_THREADS,
    slow_threads={
        "upload": settings.CONCURRENT_INSPECTIONS,
        "piece": settings.CONCURRENT_PIECES,
        "result": settings.CONCURRENT_RESULTS,
        "crops": settings.CONCURRENT_CROPS,
    },
    slow_kind=slow_kind,
    asker=asker,
    outlasts_client=lambda scope: takes_broken_bodies(scope["method"], scope["path"]),
)
application = ProtocolTypeRouter(
    {
        "http": _http,
        "websocket": URLRouter(
            [re_path(r"^$", JobEventsConsumer.as_asgi()), re_path(r"", RefusedPath.as_asgi())]
        ),
    }
)
