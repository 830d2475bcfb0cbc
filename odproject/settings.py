"""Every setting of the service, read from the environment (`.env.example` explains each).

`manage.py up` fills in what the embedded engines decide (DATABASE_URL, REDIS_URL); an operator
who runs PostgreSQL and Redis elsewhere sets them.
"""

import json
import math
import os
import re
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import dj_database_url
import django_stubs_ext
from django.core.exceptions import ImproperlyConfigured
from kombu import Exchange, Queue

from odproject.core import room

django_stubs_ext.monkeypatch()  # ModelAdmin[User] and its like, at run time too


_YES, _NO = {"1", "true", "yes", "on"}, {"0", "false", "no", "off"}


def env(name: str, default: str = "") -> str:
    """The variable as text; an empty one counts as unset."""
    return os.environ.get(name) or default


def env_int(name: str, default: int, *, at_least: int = 0) -> int:
    """The variable as a whole number from `at_least`; raises ImproperlyConfigured for others."""
    try:
        number = int(env(name, str(default)))
    except ValueError as error:
        raise _misspelled(name, "a whole number") from error
    if number < at_least:
        raise _misspelled(name, f"at least {at_least}")
    return number


LARGEST_NUMBER = 100_000  # as days it leads out of no calendar, whichever way one counts


def env_float(name: str, default: float) -> float:
    """The variable as a number from 0 to LARGEST_NUMBER; raises ImproperlyConfigured for others."""
    try:
        number = float(env(name, str(default)))
    except ValueError as error:
        raise _misspelled(name, "a number") from error
    if not math.isfinite(number):
        raise _misspelled(name, "a number")
    if number < 0:
        raise _misspelled(name, "at least 0")
    if number > LARGEST_NUMBER:
        raise _misspelled(name, f"at most {LARGEST_NUMBER}")
    return number


def _misspelled(name: str, wanted: str) -> ImproperlyConfigured:
    return ImproperlyConfigured(f"{name} must be {wanted}, not {env(name)!r}.")


def env_bool(name: str, default: bool) -> bool:
    """The variable as yes or no; raises ImproperlyConfigured for anything else."""
    word = env(name, str(default)).lower()
    if word not in _YES | _NO:
        raise _misspelled(name, "true or false")
    return word in _YES


def env_list(name: str, default: str) -> list[str]:
    """The variable as words separated by commas."""
    return [word.strip() for word in env(name, default).split(",") if word.strip()]


BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(env("OD_DATA_DIR", str(BASE_DIR / ".data"))).resolve()

# -- security ------------------------------------------------------------------------------------
DEBUG = env_bool("OD_DEBUG", False)
# `manage.py up` generates a secret once and keeps it in the data folder. The value below serves
# only commands that sign nothing (migrate, checks).
INSECURE_SECRET_KEY = "insecure-and-only-for-commands-that-sign-nothing"
SECRET_KEY = env("OD_SECRET_KEY", INSECURE_SECRET_KEY)
# A Host header names nothing but the links to other pages of its own answer, so any will do.
ALLOWED_HOSTS = env_list("OD_ALLOWED_HOSTS", "*")
CSRF_TRUSTED_ORIGINS = env_list("OD_CSRF_TRUSTED_ORIGINS", "")
SECURE_CONTENT_TYPE_NOSNIFF = True
X_FRAME_OPTIONS = "DENY"
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = env_bool("OD_SECURE_COOKIES", False)

# -- the project ---------------------------------------------------------------------------------
INSTALLED_APPS = [
    "unfold",  # the looks of the admin, before which it stands
    "odproject",  # before auth, one of whose commands it extends
    "django.contrib.auth",
    "accounts",
    "billing",
    "datasets",
    "inference",
    "channels",
    "rest_framework",
    "django_filters",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "django.contrib.admin",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
    "django.contrib.postgres",
]
MIDDLEWARE = [
    "odproject.core.request_id.RequestIdMiddleware",
    "odproject.health.ProbesMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "odproject.urls"
ASGI_APPLICATION = "odproject.asgi.application"
WSGI_APPLICATION = "odproject.wsgi.application"
APPEND_SLASH = False  # every route answers with and without its slash, never by a redirect
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "DIRS": [BASE_DIR / "templates"],
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_TZ = True
FORMAT_MODULE_PATH = ["odproject.formats"]
STATIC_URL = "static/"
STATICFILES_DIRS = [BASE_DIR / "templates" / "static"]
WHITENOISE_USE_FINDERS = True  # no collectstatic step and no proxy: the files are few and small
WHITENOISE_AUTOREFRESH = False

UNFOLD = {
    "SITE_TITLE": "odproject administration",
    "SITE_HEADER": "odproject",
    "SITE_SUBHEADER": "Administration, times in UTC",
    "SITE_SYMBOL": "center_focus_strong",
    "SITE_FAVICONS": [
        {"rel": "icon", "type": "image/svg+xml", "href": f"/{STATIC_URL}favicon.svg"}
    ],
    "SIDEBAR": {"navigation": "odproject.admin_menu.navigation"},
    # The hues of the page for people.
    "COLORS": {
        "primary": {
            "50": "#f0f8f9",
            "100": "#d9edf0",
            "200": "#b6dce2",
            "300": "#93d8e1",
            "400": "#6cc5d1",
            "500": "#2f98a6",
            "600": "#0f6f7d",
            "700": "#0f5f6b",
            "800": "#0a4650",
            "900": "#0a3a42",
            "950": "#06282d",
        }
    },
}


# -- engines -------------------------------------------------------------------------------------
def embedded(name: str) -> str:
    """What a running `manage.py up` over the same folder says of itself, for commands beside it."""
    try:
        return str(json.loads((DATA_DIR / "up.json").read_text()).get(name, ""))
    except (OSError, ValueError, AttributeError):
        return ""


DATABASE_URL = env("DATABASE_URL") or embedded("database_url")
REDIS_URL = env("REDIS_URL") or embedded("redis_url") or "redis://localhost:6379/0"
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
try:
    _database = dj_database_url.parse(
        DATABASE_URL or "postgresql://od_app@localhost/odproject",
        conn_max_age=None,  # a fixed pool of threads, each with its own connection
        conn_health_checks=True,
    )
except ValueError:
    _database = {}
if _database.get("ENGINE") != "django.db.backends.postgresql":
    # Not repeated here: it may hold a password.
    raise ImproperlyConfigured("DATABASE_URL must be postgresql://user:password@host:port/name.")
DATABASES: dict[str, Any] = {"default": _database}
DATABASES["default"]["OPTIONS"] = {
    **DATABASES["default"].get("OPTIONS", {}),
    "connect_timeout": 5,
    "application_name": "odproject",
    # Nothing waits for ever: a lock that is not had in time is a 503, and whoever forgets an
    # open transaction loses it.
    "options": "-c lock_timeout=15s -c idle_in_transaction_session_timeout=120s",
}


def celery_url(redis_url: str) -> str:
    """The Redis address as Celery spells it: a unix socket is redis+socket://path?virtual_host=N."""
    if not redis_url.startswith("unix:"):
        return redis_url
    parts = urlsplit(redis_url)
    database = re.search(r"db=(\d+)", parts.query)
    return f"redis+socket://{unquote(parts.path)}?virtual_host={database[1] if database else 0}"


REDIS_TIMEOUT_SECONDS = 2.0
CHANNEL_LAYERS = {
    "default": {
        "BACKEND": "odproject.core.layers.PatientRedisChannelLayer",
        "CONFIG": {
            "hosts": [
                {
                    "address": REDIS_URL,
                    "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
                    # The layer asks Redis to wait 5 s for a message, which is no timeout.
                    "socket_timeout": 10.0,
                }
            ],
            "capacity": 1000,
            "expiry": 60,
        },
    }
}
CELERY_BROKER_URL = celery_url(REDIS_URL)
CELERY_TASK_IGNORE_RESULT = True
CELERY_TASK_DEFAULT_QUEUE = "units"
# A message is a hint: what it says stands in PostgreSQL, and the sweeper repeats what gets lost.
# So it is not acknowledged at all and never redelivered by the broker. An acknowledgement that a
# hanging Redis does not take would count against the prefetch limit for ever: the worker would be
# deaf, with nothing to show for it.
CELERY_TASK_QUEUES = [Queue("units", Exchange("units"), routing_key="units", no_ack=True)]
CELERY_TASK_ACKS_LATE = False
CELERY_WORKER_PREFETCH_MULTIPLIER = 1
CELERY_WORKER_HIJACK_ROOT_LOGGER = False
CELERY_WORKER_ENABLE_REMOTE_CONTROL = False
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_BROKER_CONNECTION_MAX_RETRIES = None
# A request that submits a job waits for the broker as long as this allows, and no longer: the
# sweeper sends the hint again. A worker that lost the broker tries again for ever all the same.
CELERY_BROKER_TRANSPORT_OPTIONS = {
    "socket_timeout": REDIS_TIMEOUT_SECONDS,
    "socket_connect_timeout": REDIS_TIMEOUT_SECONDS,
    "socket_keepalive": True,
    "health_check_interval": 10,
    "max_retries": 0,
    "interval_start": 0,
}

LOGIN_REDIRECT_URL = "/admin/"  # the only page with a log-in of Django's own

# -- users and tokens of authentication ----------------------------------------------------------
AUTH_USER_MODEL = "accounts.User"
# The e-mail address is unique whatever its case, by a constraint that these checks do not see.
SILENCED_SYSTEM_CHECKS = ["auth.E003", "auth.W004"]
AUTHENTICATION_BACKENDS = ["accounts.backends.LimitedBackend"]
PASSWORD_HASHERS = [
    "accounts.passwords.FrugalArgon2PasswordHasher",
    "django.contrib.auth.hashers.PBKDF2PasswordHasher",
]
AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]
SIMPLE_JWT = {
    "ACCESS_TOKEN_LIFETIME": timedelta(hours=env_float("OD_LOGIN_TOKEN_HOURS", 24)),
    "REFRESH_TOKEN_LIFETIME": timedelta(days=env_float("OD_REFRESH_TOKEN_DAYS", 7)),
    "SIGNING_KEY": env("OD_JWT_KEY", SECRET_KEY),
    "ALGORITHM": "HS256",
    "AUTH_HEADER_TYPES": ("Bearer",),
}
V1_ACCESS_TOKEN_LIFETIME = timedelta(minutes=env_float("OD_ACCESS_TOKEN_MINUTES", 15))
REFRESH_GRACE_SECONDS = 10  # a refresh token that comes twice within this time is a race, no theft
WEBSOCKET_TICKET_SECONDS = 30
METRICS_TOKEN = env("OD_METRICS_TOKEN")  # opens /metrics

# -- API -----------------------------------------------------------------------------------------
REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["accounts.authentication.BearerAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["rest_framework.permissions.IsAuthenticated"],
    "DEFAULT_RENDERER_CLASSES": ["rest_framework.renderers.JSONRenderer"],
    "DEFAULT_PARSER_CLASSES": [
        "odproject.core.api.StrictJSONParser",
        "odproject.core.api.StrictFormParser",
        "odproject.core.api.StrictMultiPartParser",
    ],
    "DEFAULT_CONTENT_NEGOTIATION_CLASS": "odproject.core.api.LenientNegotiation",
    "EXCEPTION_HANDLER": "odproject.core.api.exception_handler",
    "UNAUTHENTICATED_USER": None,
    "DEFAULT_THROTTLE_CLASSES": ["odproject.core.throttling.UserRate"],
    "DEFAULT_SCHEMA_CLASS": "odproject.core.schema.Schema",
}
SPECTACULAR_SETTINGS = {
    "TITLE": "odproject",
    "DESCRIPTION": "Small-object detection in images and videos, paid by the token.",
    "VERSION": "1",
    "PREPROCESSING_HOOKS": ["odproject.core.schema.only_v1"],
    "SERVE_PERMISSIONS": [],
    "SERVE_AUTHENTICATION": [],
    "SERVE_INCLUDE_SCHEMA": False,
    "SWAGGER_UI_DIST": "SIDECAR",  # the page's scripts come from this server
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
    "COMPONENT_SPLIT_REQUEST": True,
    "SCHEMA_PATH_PREFIX": "/api/v1",
    "ENUM_NAME_OVERRIDES": {
        "JobState": "inference.models.Job.State",
        "JobFileState": "inference.models.JobFile.State",
        "ResumableUploadState": "datasets.models.ResumableUpload.State",
    },
}

# -- repeated requests --------------------------------------------------------------------------
IDEMPOTENCY_KEY_HOURS = env_float("OD_IDEMPOTENCY_KEY_HOURS", 24)

# -- rates: 0 is no limit -------------------------------------------------------------------------
# Wide enough for an office or a test behind one address; a guesser of passwords gets nowhere.
LOGIN_WINDOW = timedelta(minutes=env_float("OD_LOGIN_WINDOW_MINUTES", 15))
LOGINS_PER_EMAIL = env_int("OD_LOGINS_PER_EMAIL", 100)
LOGINS_PER_ADDRESS = env_int("OD_LOGINS_PER_ADDRESS", 1_000)
REGISTRATION_WINDOW = timedelta(hours=1)
REGISTRATIONS_PER_ADDRESS = env_int("OD_REGISTRATIONS_PER_ADDRESS", 1_000)
API_REQUESTS_PER_MINUTE = env_int("OD_API_REQUESTS_PER_MINUTE", 6_000)
NUM_PROXIES = env_int("OD_NUM_PROXIES", 0)
if NUM_PROXIES:  # so that links to the next page are https where requests are
    SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")

# -- quotas of one user: 0 is no limit ------------------------------------------------------------
MAX_DATASETS_PER_USER = env_int("OD_MAX_DATASETS_PER_USER", 1_000)
MAX_UNFINISHED_JOBS_PER_USER = env_int("OD_MAX_UNFINISHED_JOBS_PER_USER", 100)
MAX_STORED_BYTES_PER_USER = env_int("OD_MAX_STORED_BYTES_PER_USER", 100 * 1024**3)
MAX_UNFINISHED_UPLOADS_PER_USER = env_int("OD_MAX_UNFINISHED_UPLOADS_PER_USER", 20)
MAX_WEBHOOKS_PER_USER = env_int("OD_MAX_WEBHOOKS_PER_USER", 5)
# How long the content of what its owner has deleted stays in the storage, and counts there.
KEEP_DELETED = timedelta(days=env_float("OD_KEEP_DELETED_DAYS", 1))

# -- events --------------------------------------------------------------------------------------
# How long what happened can be read again, by whoever was away; what a webhook waits for stays.
KEEP_EVENTS = timedelta(days=env_float("OD_KEEP_EVENTS_DAYS", 30))

# -- webhooks ------------------------------------------------------------------------------------
WEBHOOK_SECONDS = env_float("OD_WEBHOOK_SECONDS", 10)  # of a message, its answer included
WEBHOOKS_AT_ONCE = env_int("OD_WEBHOOKS_AT_ONCE", 16, at_least=1)
# Whoever can name an address inside could have the service speak to what trusts it.
WEBHOOKS_ANYWHERE = env_bool("OD_WEBHOOKS_ANYWHERE", False)

# -- limits --------------------------------------------------------------------------------------
MAX_ARCHIVE_FILES = env_int("OD_MAX_ARCHIVE_FILES", 5_000)
MAX_IMAGE_PIXELS = env_int("OD_MAX_IMAGE_PIXELS", 200_000_000)
MAX_VIDEO_FRAMES = env_int("OD_MAX_VIDEO_FRAMES", 100_000)
INSPECTION_TIMEOUT_SECONDS = env_int("OD_INSPECTION_TIMEOUT_SECONDS", 300)
INSPECTION_MEMORY_BYTES = env_int("OD_INSPECTION_MEMORY_BYTES", 4 * 1024**3)
WEB_THREADS = env_int("OD_WEB_THREADS", 16, at_least=1)  # in each web process
# Threads beside them that take uploads, one at a time each; the others wait without a thread.
# Users take turns, and the last free thread is for one who has none.
CONCURRENT_INSPECTIONS = env_int("OD_CONCURRENT_INSPECTIONS", 4, at_least=1)
# The same, for pieces of resumable uploads, which are copied from disk to disk.
CONCURRENT_PIECES = env_int("OD_CONCURRENT_PIECES", 4, at_least=1)
# The same, for whole results of jobs.
CONCURRENT_RESULTS = env_int("OD_CONCURRENT_RESULTS", 2, at_least=1)
# And for crops, for which a child decodes a job's files again.
CONCURRENT_CROPS = env_int("OD_CONCURRENT_CROPS", 2, at_least=1)
MAX_CROPS = env_int("OD_MAX_CROPS", 20_000, at_least=1)  # of one request
CROPS_SECONDS = env_int("OD_CROPS_SECONDS", 480, at_least=1)  # less than clients wait
MIN_FREE_BYTES = env_int("OD_MIN_FREE_BYTES", room.MIN_FREE_BYTES)
# Of one file, however it comes; the server, which reads it for itself, limits a body by it.
MAX_UPLOAD_BYTES = env_int("OD_MAX_REQUEST_BYTES", room.MAX_REQUEST_BYTES)
# A resumable upload that gets no byte for so long is removed.
RESUMABLE_UPLOAD_HOURS = env_float("OD_RESUMABLE_UPLOAD_HOURS", 24)
# What the server reads for itself (`odproject.serve`) is named here where it makes no sense.
env_int("OD_MAX_PARSED_BYTES", 1)
env_float("OD_STALLED_READER_SECONDS", 1)
DATA_UPLOAD_MAX_MEMORY_SIZE = 1024 * 1024  # fields that are not files
DATA_UPLOAD_MAX_NUMBER_FIELDS = 1000
DATA_UPLOAD_MAX_NUMBER_FILES = 100
FILE_UPLOAD_TEMP_DIR = env("TMPDIR") or None

# -- media ---------------------------------------------------------------------------------------
MEDIA_ROOT = DATA_DIR / "media"
# Of resumable uploads, until they are whole: a disk that all web processes and the sweeper share,
# whatever the storage of media is.
PARTIAL_FILES_ROOT = DATA_DIR / "partial-files"
MEDIA_URL = "/media/"  # never served: content goes through views that check the owner
STORAGES = {
    "default": {"BACKEND": "django.core.files.storage.FileSystemStorage"},
    "staticfiles": {"BACKEND": "django.contrib.staticfiles.storage.StaticFilesStorage"},
}

# -- detection -----------------------------------------------------------------------------------
PACKAGE_WEIGHTS_DIR = BASE_DIR / "inference" / "weights"  # others are uploaded in the admin
MAX_WEIGHTS_BYTES = env_int("OD_MAX_WEIGHTS_BYTES", 512 * 1024**2)
# Of the confined process that reads or tries out weights; loading torch takes seconds of it.
MODEL_CHILD_MEMORY_BYTES = env_int("OD_MODEL_CHILD_MEMORY_BYTES", 8 * 1024**3)
MODEL_CHILD_SECONDS = env_int("OD_MODEL_CHILD_SECONDS", 180)
# Far into a long video in which decoding cannot begin anywhere it takes longer, and is refused.
COMPARISON_PICTURE_SECONDS = 30
NETWORKS_IN_MEMORY = env_int("OD_NETWORKS_IN_MEMORY", 3)  # of a worker; the idlest one goes
NETWORK_IMAGE_SIZE = env_int("OD_NETWORK_IMAGE_SIZE", 768)
CONFIDENCE_FLOOR = env_float("OD_CONFIDENCE_FLOOR", 0.05)
# A device as torch names it: then a worker that does not find it ends, instead of computing on the
# CPU without a word. Empty: the best there is.
NETWORK_DEVICE = env("OD_NETWORK_DEVICE")
NETWORK_RUNTIME = env("OD_NETWORK_RUNTIME", "auto")  # or torch, or openvino
TORCH_THREADS = env_int("OD_TORCH_THREADS", 0)  # 0: one thread for each core
NETWORK_BATCH = env_int("OD_NETWORK_BATCH", 0)  # 0: each worker measures at its start

# -- jobs ----------------------------------------------------------------------------------------
UNIT_LEASE_SECONDS = env_float("OD_UNIT_LEASE_SECONDS", 60)
UNIT_SILENT_SECONDS = env_float("OD_UNIT_SILENT_SECONDS", 900)  # no batch for so long: it hangs
UNIT_MAX_ATTEMPTS = 3
# A unit is a batch of so many images.
UNIT_MAX_IMAGES = env_int("OD_UNIT_MAX_IMAGES", 16, at_least=1)
# Or a range of so many frames of a video: of either, fewer where they are cut into tiles.
UNIT_MAX_FRAMES = env_int("OD_UNIT_MAX_FRAMES", 512, at_least=1)
UNITS_ENQUEUED_PER_JOB = 4
UNIT_HINT_SECONDS = env_float("OD_UNIT_HINT_SECONDS", 15)  # then the sweeper repeats the hint
SWEEP_INTERVAL_SECONDS = env_float("OD_SWEEP_INTERVAL_SECONDS", 2)
WORKER_HEARTBEAT_SECONDS = 3
WORKER_SILENT_SECONDS = 15  # a worker not heard of for this long does not count as ready
WORKER_MAX_MEMORY_BYTES = env_int("OD_WORKER_MAX_MEMORY_BYTES", 6 * 1024**3)
PROGRESS_INTERVAL_SECONDS = 0.5

# -- logging -------------------------------------------------------------------------------------
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {
        "line": {"format": "{asctime} {levelname} {request_id} {name}: {message}", "style": "{"}
    },
    "filters": {"request_id": {"()": "odproject.core.request_id.RequestIdFilter"}},
    "handlers": {
        "stderr": {
            "class": "logging.StreamHandler",
            "formatter": "line",
            "filters": ["request_id"],
        }
    },
    "root": {"handlers": ["stderr"], "level": env("OD_LOG_LEVEL", "INFO")},
    "loggers": {
        "django.request": {"level": "ERROR"},
        "httpx": {"level": "WARNING"},
        "celery": {"level": "WARNING"},  # two lines for every hint, most of which do nothing
    },
}
