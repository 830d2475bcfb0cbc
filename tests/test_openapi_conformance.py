"""Every operation of the OpenAPI document answers as documented, whatever it is asked.

Schemathesis makes the requests, from the document alone: right ones and wrong ones. They go to
the application in this process, as the owner of what the path names, as a stranger and as
nobody. A new operation is tested as soon as it is in the document; a new kind of thing that a
path names needs a line in `tests.things`.
"""

import json
from dataclasses import asdict
from datetime import timedelta

import pytest
import schemathesis
from django.core import signals
from django.core.wsgi import get_wsgi_application
from django.db import close_old_connections, transaction
from drf_spectacular.generators import SchemaGenerator
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from accounts.services import log_in
from inference import queue, registry
from inference.pipeline.errors import WeightsError
from tests.factories import PASSWORD, make_user
from tests.things import Things, make_things

# Not among them: that everything outside the document is refused. A form has only texts, and an
# empty filter is none.
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
pytestmark = pytest.mark.django_db
EXAMPLES = 10  # of each operation and asker
_django = get_wsgi_application()


def application(environ, start_response):
    """The service, with the files that it sends read and closed."""
    response = _django(environ, start_response)
    try:
        return [b"".join(response)]
    finally:
        response.close()


document = json.loads(json.dumps(SchemaGenerator().get_schema(request=None, public=True)))
schema = schemathesis.openapi.from_dict(document)
schema.app = application
schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
# The cases that are counted out one by one are hundreds where a body has options.
schema.config.phases.coverage.enabled = False


@pytest.fixture(autouse=True)
def no_broker(monkeypatch, settings):
    def no_weights(path, limits):
        raise WeightsError("weights_unreadable", "The file is no ONNX model.")

    monkeypatch.setattr(registry, "read_facts", no_weights)  # else a process for each upload
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
    settings.PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]


@pytest.fixture(autouse=True)
def one_transaction():
    """A request would end the connection, whose transaction is that of the test."""
    signals.request_started.disconnect(close_old_connections)
    signals.request_finished.disconnect(close_old_connections)
    yield
    signals.request_started.connect(close_old_connections)
    signals.request_finished.connect(close_old_connections)


@pytest.fixture
def owner():
    return make_user()


@pytest.fixture
def things(owner, media_root) -> Things:
    return make_things(owner, media_root)


@pytest.fixture
def askers(owner) -> dict[str, dict[str, str]]:
    """The headers by which each asker is known; the stranger is an administrator."""
    headers = {"nobody": {}}
    for name, user in (("owner", owner), ("stranger", make_user(staff=True))):
        tokens = log_in(email=user.email, password=PASSWORD, access_lifetime=timedelta(hours=1))
        headers[name] = {"Authorization": f"Bearer {tokens.access}"}
    return headers


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_operation_answers_as_documented(case, askers, things):
    known = {name: str(value) for name, value in asdict(things).items()}
    # Model versions are everybody's, and of each month everybody has a statement.
    names_a_thing = bool(set(case.path_parameters or {}) - {"version_id", "month"})
    case.path_parameters = {name: known[name] for name in case.path_parameters or {}}
    for asker, headers in askers.items():
        with transaction.atomic():  # every request meets the same state
            response = case.call(headers=headers)
            transaction.set_rollback(True)
        case.validate_response(response, checks=CHECKS)
        if asker == "nobody" and case.operation.definition.raw.get("security"):
            assert response.status_code == 401
        # OPTIONS, which tells of the route and not of a thing, is anybody's.
        if asker == "stranger" and names_a_thing and case.method.upper() != "OPTIONS":
            assert response.status_code >= 400
