"""A database that is read only, or has no room: requests that write get 503, others an answer."""

import pytest
from django.db import InternalError, connection
from django.test import Client
from rest_framework.test import APIClient

from accounts.models import User
from billing.models import Transfer
from datasets.models import Dataset
from inference import leases, queue, services, submission
from inference.models import WorkUnit
from inference.worker import run_unit
from tests.clients import client_of
from tests.factories import PASSWORD, add_media_file, make_dataset, make_user
from tests.mediafiles import write_image
from tests.pipeline_fakes import FakeDetector

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


def test_administrator_is_told_so_as_well(client):
    _execute("SET default_transaction_read_only = off")
    browser = Client(raise_request_exception=False)
    browser.force_login(make_user(staff=True))
    _execute("SET default_transaction_read_only = on")
    user = User.objects.order_by("pk")[0]
    form = {"amount": "5", "reason": "because", "key": "k"}
    answer = browser.post(f"/admin/accounts/user/{user.pk}/top-up/", form)
    assert (answer.status_code, answer["Retry-After"]) == (503, "2")
    assert answer.json()["code"] == "service_unavailable"
    assert browser.get(f"/admin/accounts/user/{user.pk}/change/").status_code == 200
    assert not Transfer.objects.filter(kind="top_up").exists()


def test_worker_waits_for_a_database_that_takes_no_writes_and_loses_no_try(
    client, monkeypatch, tmp_path
):
    """While it is read only nothing can be stored or handed back; then the unit goes on."""
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
    monkeypatch.setattr(leases, "DATABASE_RETRY_SECONDS", 0.01)
    _execute("SET default_transaction_read_only = off")
    user, dataset = User.objects.get(), Dataset.objects.get()
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    job = submission.submit_job(
        user=user, dataset_id=dataset.pk, model_id="YOLO8", model_version="YOLO8s_FSR"
    )
    refused = []

    def store_frames(**batch):
        if not refused:
            _execute("SET default_transaction_read_only = on")
        try:
            stored(**batch)
        except InternalError:
            refused.append(True)
            if len(refused) == 3:
                _execute("SET default_transaction_read_only = off")
            raise

    stored = services.store_frames
    monkeypatch.setattr(services, "store_frames", store_frames)
    unit = WorkUnit.objects.get()
    assert run_unit(unit_id=unit.pk, worker_name="w", detector_of=lambda job: FakeDetector())
    unit.refresh_from_db()
    job.refresh_from_db()
    assert (len(refused), unit.state, unit.tries, job.state) == (3, "completed", 1, "Completed")
