"""Every route asked by nobody, by another user, by the owner and by an administrator.

A route that is not in the table fails a test, and so does a refusal that changes a row. To add a
route, add a line: method, path with the owner's numbers in it, the four statuses, and the body.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.contrib import admin
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import connection, transaction
from django.test import override_settings
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.test import APIClient

from accounts.models import AttemptCount, User
from accounts.services import log_in
from inference import queue, registry
from inference.pipeline.errors import WeightsError
from odproject.health import ProbesMiddleware
from tests.clients import client_with, key_of
from tests.factories import PASSWORD, make_user
from tests.mediafiles import image_bytes, noise
from tests.things import make_things

pytestmark = pytest.mark.django_db
ASKERS = ("nobody", "another user", "owner", "administrator")
OWNER, NEWCOMER = "owner@example.org", "newcomer@example.org"
ADMINISTRATOR = "root@example.org"
PICTURE = image_bytes("PNG", noise((16, 12)))
MODEL = {"modelId": "YOLO8", "modelVersion": "YOLO8s_FSR"}


@dataclass(frozen=True)
class Row:
    """What one route answers to each asker, in the order of ASKERS."""

    method: str
    path: str
    statuses: tuple[int, int, int, int]
    body: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


ANYBODY = (200, 200, 200, 200)
ANYBODY_MAKES = (201, 201, 201, 201)
USERS = (401, 200, 200, 200)
USERS_MAKE = (401, 201, 201, 201)
ITS_OWNER = (401, 404, 200, 404)
ADMINISTRATORS = (302, 302, 302, 200)  # others are sent to the log-in page
PIECES = "/api/v1/datasets/{dataset_id}/resumable-uploads"
TUS = {"Tus-Resumable": "1.0.0", "Upload-Length": "5", "Upload-Offset": "0"}
STREAM = {"Content-Type": "application/offset+octet-stream"}
CREDENTIALS = {"email": OWNER, "password": PASSWORD}
TABLE = [
    # Pages, health and documents.
    Row("GET", "/", ANYBODY),
    Row("GET", "/livez", ANYBODY),
    Row("GET", "/readyz", (503, 503, 503, 503)),  # no worker runs here
    Row("GET", "/metrics", (404, 404, 404, 404)),  # a monitor's, by a token of its own
    Row("GET", "/api/schema", ANYBODY),
    Row("GET", "/api/docs", ANYBODY),
    # The original API.
    Row(
        "POST",
        "/user/registration",
        ANYBODY_MAKES,
        {"email": NEWCOMER, "password": PASSWORD, "confirmPassword": PASSWORD},
    ),
    Row("POST", "/user", ANYBODY, CREDENTIALS),
    Row("GET", "/token", USERS),
    Row("PATCH", "/token", (401, 403, 403, 200), {"topUpUserEmail": OWNER, "topUpAmount": 5}),
    Row("GET", "/datasets", USERS),
    Row("POST", "/datasets", USERS_MAKE, {"datasetName": "new street"}),
    Row("PATCH", "/datasets", ITS_OWNER, {"datasetName": "street", "newTags": "a,b"}),
    Row("DELETE", "/datasets", ITS_OWNER, {"datasetName": "street"}),
    Row("POST", "/upload", (401, 404, 201, 404), {"datasetName": "street", "file": PICTURE}),
    Row("POST", "/inference", ITS_OWNER, {"datasetName": "street", **MODEL}),
    Row("GET", "/inference/state?jobId={job_id}", ITS_OWNER),
    Row("GET", "/inference/result?jobId={job_id}", ITS_OWNER),
    Row("GET", "/inference/content/{job_id}", ITS_OWNER),
    # /api/v1/: users and sessions.
    Row("POST", "/api/v1/users", ANYBODY_MAKES, {"email": NEWCOMER, "password": PASSWORD}),
    Row("GET", "/api/v1/me", USERS),
    Row("POST", "/api/v1/tokens", ANYBODY_MAKES, CREDENTIALS),
    Row("POST", "/api/v1/tokens/refresh", ANYBODY_MAKES, {"refresh": "{refresh}"}),
    Row("POST", "/api/v1/tokens/revoke", (401, 204, 204, 204)),
    Row("GET", "/api/v1/api-keys", USERS),
    Row("POST", "/api/v1/api-keys", USERS_MAKE, {"name": "nightly"}),
    Row("GET", "/api/v1/api-keys/{key_id}", ITS_OWNER),
    Row("PATCH", "/api/v1/api-keys/{key_id}", ITS_OWNER, {"name": "weekly"}),
    Row("DELETE", "/api/v1/api-keys/{key_id}", (401, 404, 204, 404)),
    Row("GET", "/api/v1/events", USERS),
    Row("POST", "/api/v1/websocket-tickets", USERS_MAKE),
    # /api/v1/: webhooks.
    Row("GET", "/api/v1/webhooks", USERS),
    Row("POST", "/api/v1/webhooks", USERS_MAKE, {"url": "https://8.8.8.8/hook"}),
    Row("GET", "/api/v1/webhooks/{webhook_id}", ITS_OWNER),
    Row("PATCH", "/api/v1/webhooks/{webhook_id}", ITS_OWNER, {"active": False}),
    Row("DELETE", "/api/v1/webhooks/{webhook_id}", (401, 404, 204, 404)),
    Row("POST", "/api/v1/webhooks/{webhook_id}/rotate-secret", ITS_OWNER),
    Row("POST", "/api/v1/webhooks/{webhook_id}/test", (401, 404, 202, 404)),
    # /api/v1/: tokens to spend.
    Row("GET", "/api/v1/balance", USERS),
    Row("PATCH", "/api/v1/balance", USERS, {"alert_below_tokens": 50}),
    Row("GET", "/api/v1/ledger", USERS),
    Row("GET", "/api/v1/statements", USERS),
    Row("GET", "/api/v1/statements/{month}", USERS),  # one's own, which begin with this month
    Row("GET", "/api/v1/statements/{month}/csv", USERS),
    Row("GET", "/api/v1/prices", USERS),
    Row("POST", "/api/v1/top-ups", (401, 403, 403, 201), {"email": OWNER, "amount_tokens": 5}),
    # /api/v1/: datasets and media files.
    Row("GET", "/api/v1/datasets", USERS),
    Row("POST", "/api/v1/datasets", USERS_MAKE, {"name": "new street"}),
    Row("GET", "/api/v1/datasets/{dataset_id}", ITS_OWNER),
    Row("PATCH", "/api/v1/datasets/{dataset_id}", ITS_OWNER, {"name": "road"}),
    Row("DELETE", "/api/v1/datasets/{dataset_id}", (401, 404, 204, 404)),
    Row("GET", "/api/v1/datasets/{dataset_id}/media-files", ITS_OWNER),
    Row("GET", "/api/v1/datasets/{dataset_id}/uploads", ITS_OWNER),
    Row("POST", "/api/v1/datasets/{dataset_id}/uploads", (401, 404, 201, 404), {"file": PICTURE}),
    Row("GET", "/api/v1/datasets/{dataset_id}/uploads/{upload_id}", ITS_OWNER),
    Row("GET", PIECES, ITS_OWNER),
    Row("POST", PIECES, (401, 404, 201, 404), headers=TUS),
    Row("GET", PIECES + "/{resumable_upload_id}", ITS_OWNER),
    Row("PATCH", PIECES + "/{resumable_upload_id}", (401, 404, 204, 404), headers=TUS | STREAM),
    Row("DELETE", PIECES + "/{resumable_upload_id}", (401, 404, 204, 404), headers=TUS),
    Row("GET", "/api/v1/media-files/{media_file_id}", ITS_OWNER),
    Row("DELETE", "/api/v1/media-files/{media_file_id}", (401, 404, 204, 404)),
    Row("GET", "/api/v1/media-files/{media_file_id}/content", ITS_OWNER),
    Row("GET", "/api/v1/media-files/{media_file_id}/thumbnail", ITS_OWNER),
    # /api/v1/: models, jobs and results.
    Row("GET", "/api/v1/models", USERS),
    Row("POST", "/api/v1/models", (401, 403, 403, 400)),  # with nothing in it
    Row("GET", "/api/v1/models/{version_id}", USERS),
    Row("GET", "/api/v1/jobs", USERS),
    Row(
        "POST",
        "/api/v1/jobs",
        (401, 404, 202, 404),
        {"dataset_id": "{dataset_id}", "model_version": "YOLO8s_FSR"},
    ),
    Row(
        "POST",
        "/api/v1/quotes",
        ITS_OWNER,
        {"dataset_id": "{dataset_id}", "model_version": "YOLO8s_FSR"},
    ),
    Row("GET", "/api/v1/jobs/{job_id}", ITS_OWNER),
    Row("GET", "/api/v1/jobs/{job_id}/files", ITS_OWNER),
    Row("POST", "/api/v1/jobs/{pending_job_id}/abort", ITS_OWNER),
    Row("GET", "/api/v1/jobs/{other_job_id}/retry", ITS_OWNER),
    Row("POST", "/api/v1/jobs/{other_job_id}/retry", (401, 404, 202, 404)),
    Row("GET", "/api/v1/jobs/{job_id}/frame-results", ITS_OWNER),
    Row("GET", "/api/v1/jobs/{job_id}/annotated-files/{file_id}", ITS_OWNER),
    Row("GET", "/api/v1/jobs/{job_id}/comparison?with={other_job_id}", ITS_OWNER),
    Row(
        "GET",
        "/api/v1/jobs/{job_id}/comparison/picture"
        "?with={other_job_id}&media_file_id={media_file_id}&frame_index=0",
        ITS_OWNER,
    ),
    Row("GET", "/api/v1/jobs/{job_id}/exports/{export_format}", ITS_OWNER),
    Row("GET", "/api/v1/jobs/{job_id}/exports/crops", ITS_OWNER),
    Row("GET", "/api/v1/jobs/{job_id}/annotated-zip", ITS_OWNER),
    # The other job has not ended; that is for its owner to know.
    Row("GET", "/api/v1/jobs/{job_id}/comparison?with={pending_job_id}", (401, 404, 409, 404)),
    Row(
        "GET",
        "/api/v1/jobs/{job_id}/comparison/picture?with={pending_job_id}&media_file_id=1",
        (401, 404, 409, 404),
    ),
    # The admin: its index and its lists; its pages and actions have tests of their own.
    Row("GET", "/admin", ADMINISTRATORS),
    Row("GET", "/admin/", ADMINISTRATORS),
    *(
        Row("GET", f"/admin/{model._meta.app_label}/{model._meta.model_name}/", ADMINISTRATORS)
        for model in admin.site._registry
    ),
]


@dataclass(frozen=True)
class World:
    """What the askers know and the owner has; every test takes back what it changes."""

    media_root: Path
    values: Mapping[str, Any]
    tokens: Mapping[str, str]
    sessions: Mapping[str, SimpleCookie]


def _without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_weights(path, limits):
        raise WeightsError("weights_unreadable", "The file is no ONNX model.")

    monkeypatch.setattr(registry, "read_facts", no_weights)  # which would start a process
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)


@pytest.fixture(scope="module")
def world(kept_db, tmp_path_factory) -> World:
    """The askers and the owner's things, made once: there are more than a hundred tests."""
    media_root = tmp_path_factory.mktemp("media")
    hashers = ["django.contrib.auth.hashers.MD5PasswordHasher"]
    with (
        override_settings(MEDIA_ROOT=media_root, PASSWORD_HASHERS=hashers),
        pytest.MonkeyPatch.context() as monkeypatch,
    ):
        _without_workers(monkeypatch)
        users = {
            "another user": make_user(),
            "owner": make_user(OWNER),
            "administrator": make_user(ADMINISTRATOR, staff=True),
        }
        tokens, sessions = {}, {}
        for name, user in users.items():
            pair = log_in(email=user.email, password=PASSWORD, access_lifetime=timedelta(hours=1))
            tokens[name] = pair.access
            browser = APIClient()
            browser.force_login(user)
            sessions[name] = browser.cookies
        values = asdict(make_things(users["owner"], media_root))
        values["refresh"] = log_in(email=OWNER, password=PASSWORD).refresh
        return World(media_root, values, tokens, sessions)


@pytest.fixture(autouse=True)
def no_broker(monkeypatch):
    _without_workers(monkeypatch)


@pytest.fixture(autouse=True)
def media_root(settings, world) -> Path:
    """Where the owner's files are."""
    settings.MEDIA_ROOT = world.media_root
    return world.media_root


@pytest.fixture
def clients(world) -> dict[str, APIClient]:
    """Each asker with an access token and, for pages, a session."""
    made = {"nobody": APIClient()}
    for name, token in world.tokens.items():
        made[name] = client_with(token)
        made[name].cookies = SimpleCookie(world.sessions[name].output(header="", sep=";"))
    return made


@pytest.fixture
def values(world) -> dict[str, Any]:
    """What stands in braces in paths and bodies."""
    return dict(world.values)


def client_with_key_of(email: str, **terms: Any) -> APIClient:
    """A client whose key was in use a moment ago, which is not noted again."""
    client = client_with(key_of(User.objects.of_email(email), "another", **terms)[1])
    assert client.get("/api/v1/me/").status_code == 200
    return client


def filled(value: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(value, bytes):
        return SimpleUploadedFile("a.png", value)
    return value.format(**values) if isinstance(value, str) else value


def all_rows() -> dict[str, tuple[int, str]]:
    """How many rows each table has, and a digest of what they say.

    Left out is the count of attempts, which a refused log-in is there to change.
    """
    tables = {model._meta.db_table for model in apps.get_models(include_auto_created=True)}
    tables -= {AttemptCount._meta.db_table}
    digests = [
        f"SELECT '{table}', count(*), coalesce(md5(string_agg(t::text, '|' ORDER BY t::text)), '') "
        f'FROM "{table}" t'
        for table in sorted(tables)
    ]
    with connection.cursor() as cursor:
        cursor.execute(" UNION ALL ".join(digests))
        return {name: (count, digest) for name, count, digest in cursor.fetchall()}


def ask(client: APIClient, row: Row, path: str, body: dict[str, Any]) -> Any:
    has_file = any(isinstance(value, SimpleUploadedFile) for value in body.values())
    call = getattr(client, row.method.lower())
    if row.method == "GET":
        return call(path)
    kind = row.headers.get("Content-Type")
    if kind is not None:
        return call(path, b"", content_type=kind, headers=row.headers)
    return call(path, body, format="multipart" if has_file else "json", headers=row.headers)


@pytest.mark.parametrize("row", TABLE, ids=str)
def test_each_asker_gets_the_status_that_is_theirs(row, clients, values):
    before = all_rows()
    statuses = []
    for asker in ASKERS:
        body = {name: filled(value, values) for name, value in row.body.items()}
        with transaction.atomic():
            answer = ask(clients[asker], row, row.path.format(**values), body)
            statuses.append(answer.status_code)
            if answer.status_code >= 400:
                assert all_rows() == before, asker
            transaction.set_rollback(True)
        if answer.streaming:
            b"".join(answer.streaming_content)  # which closes the file
        assert answer["X-Request-ID"]
        if 400 <= answer.status_code < 500:
            assert answer["Content-Type"] == "application/problem+json"
    assert tuple(statuses) == row.statuses


@pytest.mark.parametrize(
    "row", [row for row in TABLE if row.method == "GET" and row.statuses == ITS_OWNER], ids=str
)
def test_what_is_anothers_is_refused_as_what_does_not_exist(row, clients, values):
    absent = {name: 10**9 if isinstance(value, int) else value for name, value in values.items()}
    foreign = clients["another user"].get(row.path.format(**values)).json()
    unknown = clients["another user"].get(row.path.format(**absent)).json()
    numbers = re.compile(r"\d+")
    assert {k: numbers.sub("N", str(v)) for k, v in foreign.items()} == {
        k: numbers.sub("N", str(v)) for k, v in unknown.items()
    }


# What concerns the account itself, which programs with a key leave alone.
OF_SESSIONS = ("/api/v1/api-keys", "/api/v1/tokens/revoke", "/api/v1/webhooks")
FOR_KEYS = [row for row in TABLE if row.statuses[0] == 401]


def status_with(client: APIClient, row: Row, values: Mapping[str, Any]) -> tuple[int, str]:
    """Status and code of an answer, whose effect is taken back; a refusal must have had none."""
    before = all_rows()
    body = {name: filled(value, values) for name, value in row.body.items()}
    with transaction.atomic():
        answer = ask(client, row, row.path.format(**values), body)
        if answer.status_code >= 400:
            assert all_rows() == before
        transaction.set_rollback(True)
    if answer.streaming:
        b"".join(answer.streaming_content)
    is_refused = answer.status_code >= 400
    return answer.status_code, answer.json()["code"] if is_refused else ""


@pytest.mark.parametrize(
    ("whose", "as_good_as"), [(OWNER, "owner"), (ADMINISTRATOR, "another user")]
)
def test_key_does_what_a_user_does_but_for_the_account_itself(clients, values, whose, as_good_as):
    client = client_with_key_of(whose)
    for row in FOR_KEYS:
        status, code = status_with(client, row, values)
        if row.path.startswith(OF_SESSIONS):
            assert (status, code) == (403, "session_needed"), row
        else:
            assert status == row.statuses[ASKERS.index(as_good_as)], row


# What is asked by POST and changes nothing of the user's.
OF_READERS = {"/api/v1/quotes": 200, "/api/v1/websocket-tickets": 201}


def test_read_only_key_reads_and_writes_nothing(clients, values):
    client = client_with_key_of(OWNER, is_read_only=True)
    posted = {}
    for row in FOR_KEYS:
        if row.method == "POST" and row.path in OF_READERS:
            posted[row.path] = status_with(client, row, values)[0]
        elif row.method != "GET":
            assert status_with(client, row, values) == (403, "read_only_key"), row
    assert posted == OF_READERS


def routes(patterns: list[Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Method and path of every route but the admin's, with the names of its numbers in braces."""
    for pattern in patterns:
        place = prefix + str(pattern.pattern)
        if place.startswith("admin/"):
            continue
        if isinstance(pattern, URLResolver):
            yield from routes(pattern.url_patterns, place)
            continue
        assert isinstance(pattern, URLPattern)
        path = re.sub(r"\(\?P<(\w+)>[^)]*\)", r"{\1}", place)
        path = "/" + path.removeprefix("^").removesuffix("$").removesuffix("/?")
        view = getattr(pattern.callback, "cls", None)
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            if hasattr(view, method.lower()) if view else method == "GET":
                yield method, path


def test_every_route_is_in_the_table():
    listed = {
        (row.method, re.sub(r"\w+_job_id", "job_id", row.path.partition("?")[0]))
        for row in TABLE
        if not row.path.startswith("/admin/")
    }
    assert {path for _, path in listed} >= {path.rstrip("/") for path in ProbesMiddleware.VIEWS}
    listed -= {("GET", path) for path in ProbesMiddleware.VIEWS}
    assert listed == set(routes(get_resolver().url_patterns))
