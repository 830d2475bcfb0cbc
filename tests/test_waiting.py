"""Where in the queue a job is, and when it begins."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from inference import queue, services
from inference.models import Job, WorkUnit
from inference.waiting import Wait, wait_of
from tests.clients import client_of
from tests.factories import add_media_file, dataset_id_of, make_dataset, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def no_broker(monkeypatch):
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)


@pytest.fixture
def user():
    return make_user()


@pytest.fixture
def client(user):
    return client_of(user)


@pytest.fixture
def dataset(user):
    return make_dataset(user)


def submit(user):
    return services.submit_job(
        user=user, dataset_id=dataset_id_of(user), model_id="YOLO8", model_version="YOLO8s_FSR"
    )


class TestWaiting:
    """Where in the queue a job is, and when it begins."""

    def end(self, job, *, frames, seconds):
        """Say that a job looked at so many frames in so many seconds."""
        services.abort_job(job_id=job.pk)
        now = timezone.now()
        Job.objects.filter(pk=job.pk).update(
            state="Completed",
            frame_count=frames,
            started_at=now - timedelta(seconds=seconds),
            finished_at=now,
        )

    @pytest.fixture
    def worker(self):
        services.record_heartbeat(worker_name="w", loaded_weights=["f" * 64], device="cpu")

    def test_first_job_waits_for_nobody(self, client, user, dataset):
        add_media_file(dataset)
        job = submit(user)
        shown = client.get(f"/api/v1/jobs/{job.pk}/").json()
        assert (shown["queue_position"], shown["seconds_to_start"]) == (1, None)

    def test_wait_is_what_is_ahead_at_the_pace_of_the_last_jobs(self, user, dataset, worker):
        add_media_file(dataset, name="a.mp4", media_type="video", frame_count=40)
        self.end(submit(user), frames=10, seconds=5)
        ahead, behind = submit(user), submit(user)
        assert wait_of(ahead) == Wait(jobs_ahead=0, seconds=0.0)
        assert wait_of(behind) == Wait(jobs_ahead=1, seconds=20.0)
        services.record_heartbeat(worker_name="v", loaded_weights=["f" * 64], device="cpu")
        assert wait_of(behind) == Wait(jobs_ahead=1, seconds=10.0)

    def test_jobs_of_the_past_are_not_looked_through(self, user, dataset, worker):
        """The page of a waiting job is asked again and again, however many have ended."""
        add_media_file(dataset)
        job = submit(user)
        with CaptureQueriesContext(connection) as queries:
            wait_of(job)
        of_units = next(one["sql"] for one in queries if "inference_unitfile" in one["sql"])
        assert """"inference_job"."state" IN ('Pending', 'Running')""" in of_units
        of_ended = next(one["sql"] for one in queries if "ORDER BY" in one["sql"])
        with connection.cursor() as cursor:
            cursor.execute("SET LOCAL enable_seqscan = off")
            cursor.execute(f"EXPLAIN {of_ended}")
            plan = "\n".join(line for (line,) in cursor.fetchall())
        assert "Index Scan using job_completed_last" in plan

    def test_without_a_worker_nobody_can_say(self, user, dataset):
        add_media_file(dataset)
        self.end(submit(user), frames=10, seconds=5)
        assert wait_of(submit(user)) == Wait(jobs_ahead=0, seconds=None)

    def test_job_that_has_begun_has_no_place(self, client, user, dataset):
        add_media_file(dataset)
        job = submit(user)
        services.claim_unit(unit_id=WorkUnit.objects.get().pk, worker_name="w")
        shown = client.get(f"/api/v1/jobs/{job.pk}/").json()
        assert (shown["queue_position"], shown["seconds_to_start"]) == (None, None)
