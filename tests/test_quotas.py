"""What one user may have at most, and that a refusal leaves everything as it was."""

import psycopg
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection
from django.utils import timezone

from billing.selectors import balance_hundredths
from datasets import uploading
from datasets.models import Dataset, MediaFile
from datasets.services import DatasetQuotaError, create_dataset
from inference import services
from inference.cleaning import remove_deleted_content
from inference.models import Job
from tests.clients import client_of
from tests.conftest import TEST_DATABASE
from tests.factories import add_media_file, make_dataset, make_user
from tests.mediafiles import image_bytes, noise
from tests.threads import in_threads

pytestmark = pytest.mark.usefixtures("no_broker")

PICTURE = image_bytes("PNG", noise((16, 12)))


def assert_above_quota(answer, code, quota):
    document = answer.json()
    assert (answer.status_code, document["code"], document["quota"]) == (409, code, quota)
    assert str(quota) in document["detail"]


@pytest.mark.django_db
class TestDatasets:
    def test_live_datasets_of_one_user_are_counted(self, settings):
        settings.MAX_DATASETS_PER_USER = 2
        user = make_user()
        client = client_of(user)
        make_dataset(make_user(), "another user's")
        first = make_dataset(user, "first")
        make_dataset(user, "second")
        for path, key in (("/api/v1/datasets/", "name"), ("/datasets", "datasetName")):
            answer = client.post(path, {key: "third"}, format="json")
            assert_above_quota(answer, "dataset_quota_exceeded", 2)
        assert Dataset.objects.filter(user=user).count() == 2
        assert client.delete(f"/api/v1/datasets/{first.pk}/").status_code == 204
        assert client.post("/datasets", {"datasetName": "third"}).status_code == 201

    def test_zero_is_no_limit(self, settings):
        settings.MAX_DATASETS_PER_USER = 0
        assert make_dataset(make_user())


def test_datasets_made_at_the_same_moment_are_counted_too(committed_db, settings):
    settings.MAX_DATASETS_PER_USER = 5
    user = make_user()
    outcomes = in_threads(20, lambda n: create_dataset(user=user, name=f"street {n}", tags=[]))
    assert sum(isinstance(outcome, DatasetQuotaError) for outcome in outcomes) == 15
    assert Dataset.objects.count() == 5


@pytest.mark.django_db
class TestJobs:
    def test_unfinished_jobs_of_one_user_are_counted(self, settings):
        settings.MAX_UNFINISHED_JOBS_PER_USER = 2
        user = make_user()
        client = client_of(user)
        dataset = make_dataset(user)
        add_media_file(dataset)
        bodies = {
            "/api/v1/jobs/": {"dataset_id": dataset.pk, "model_version": "YOLO8s_FSR"},
            "/inference": {
                "datasetName": "street",
                "modelId": "YOLO8",
                "modelVersion": "YOLO8s_FSR",
            },
        }
        for path, body in bodies.items():
            assert client.post(path, body, format="json").status_code in {200, 202}
        balance = balance_hundredths(user=user)
        for path, body in bodies.items():
            answer = client.post(path, body, format="json")
            assert_above_quota(answer, "job_quota_exceeded", 2)
        assert Job.objects.count() == 2
        assert balance_hundredths(user=user) == balance
        services.abort_job(job_id=Job.objects.order_by("pk")[0].pk)
        assert client.post("/inference", bodies["/inference"]).status_code == 200


@pytest.mark.django_db
class TestStorage:
    @pytest.fixture(autouse=True)
    def room_for_two(self, settings):
        settings.MAX_STORED_BYTES_PER_USER = 2 * len(PICTURE) + 5

    def upload(self, client, path):
        body = {"file": SimpleUploadedFile("a.png", PICTURE), "datasetName": "street"}
        return client.post(path, body, format="multipart")

    def test_stored_bytes_of_one_user_are_counted(self, media_root):
        user = make_user()
        client = client_of(user)
        dataset = make_dataset(user)
        for path in (f"/api/v1/datasets/{dataset.pk}/uploads/", "/upload"):
            assert self.upload(client, path).status_code == 201
        balance = balance_hundredths(user=user)
        stored = sorted(media_root.rglob("*"))
        for path in (f"/api/v1/datasets/{dataset.pk}/uploads/", "/upload"):
            answer = self.upload(client, path)
            assert_above_quota(answer, "storage_quota_exceeded", 2 * len(PICTURE) + 5)
        assert MediaFile.objects.count() == 2
        assert balance_hundredths(user=user) == balance
        assert sorted(media_root.rglob("*")) == stored

    def test_the_last_byte_may_be_filled_and_then_nothing_more_is_decoded(
        self, settings, monkeypatch
    ):
        settings.MAX_STORED_BYTES_PER_USER = len(PICTURE)
        user = make_user()
        make_dataset(user)
        assert self.upload(client_of(user), "/upload").status_code == 201
        monkeypatch.setattr(uploading, "Inspector", None)
        assert self.upload(client_of(user), "/upload").status_code == 409

    def test_files_of_a_deleted_dataset_count_until_their_content_is_removed(self):
        user = make_user()
        client = client_of(user)
        make_dataset(user)
        for _ in range(2):
            assert self.upload(client, "/upload").status_code == 201
        assert client.delete("/datasets", {"datasetName": "street"}).status_code == 200
        make_dataset(user)
        assert self.upload(client, "/upload").status_code == 409
        assert remove_deleted_content(deleted_before=timezone.now()) == 2
        assert self.upload(client, "/upload").status_code == 201


def test_upload_waits_for_whatever_else_counts_what_its_user_stores(
    committed_db, engines, media_root
):
    """Into two datasets at the same moment they would each see room for one."""
    user = make_user()
    dataset = make_dataset(user)
    database = psycopg.connect(engines.database_url, dbname=TEST_DATABASE)
    with database as somebody, connection.cursor() as cursor:
        somebody.execute("SELECT FROM accounts_user WHERE id = %s FOR NO KEY UPDATE", [user.pk])
        cursor.execute("SET lock_timeout = '100ms'")
        try:
            with pytest.raises(OperationalError, match="lock timeout"):
                uploading.upload_content(
                    user=user,
                    dataset_id=dataset.pk,
                    content=SimpleUploadedFile("a.png", PICTURE),
                    answer=lambda upload: upload,
                )
        finally:
            cursor.execute("RESET lock_timeout")
    assert not MediaFile.objects.exists()
    assert [path for path in media_root.rglob("*") if path.is_file()] == []
    assert balance_hundredths(user=user) == 100_000
