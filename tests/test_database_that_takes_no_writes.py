"""A database that is read only, or has no room: requests that write get 503, others an answer."""

import pytest
from django.db import connection
from rest_framework.test import APIClient

from accounts.models import User
from datasets.models import Dataset
from tests.clients import client_of
from tests.factories import PASSWORD, make_dataset, make_user

pytestmark = pytest.mark.usefixtures("committed_db")


@pytest.fixture
def client(committed_db):
    user = make_user()
    make_dataset(user, "kept")
    reader = client_of(user)
    reader.get("/api/v1/datasets/")
    _execute("SET default_transaction_read_only = on")
    yield reader
    _execute("SET default_transaction_read_only = off")


def _execute(statement):
    with connection.cursor() as cursor:
        cursor.execute(statement)


def test_reading_goes_on(client):
    shown = client.get("/api/v1/datasets/").json()["results"]
    assert [one["name"] for one in shown] == ["kept"]


@pytest.mark.parametrize(
    ("path", "keys"),
    [
        ("/api/v1/datasets/", {"name": "new"}),
        ("/user/", {"email": "new@example.com", "password": PASSWORD, "confirmPassword": PASSWORD}),
    ],
)
def test_writing_is_a_503_that_may_be_tried_again(client, path, keys):
    writer = client if path.startswith("/api") else APIClient()
    answer = writer.post(path, keys, format="json")
    assert (answer.status_code, answer["Retry-After"]) == (503, "2")
    assert answer.json()["code"] == "service_unavailable"
    assert (Dataset.objects.count(), User.objects.count()) == (1, 1)
