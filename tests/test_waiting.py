"""Where in the queue a job is, and when it begins."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from inference import services, submission
from inference.models import Job, UnitFile, WorkUnit
from inference.waiting import Wait, wait_of
from tests.clients import client_of
from tests.factories import add_media_file, dataset_id_of, make_dataset, make_user
from tests.queries import index_plan_of

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_broker")]


@pytest.fixture
def client(user):
    return client_of(user)


def submit(user):
    return submission.submit_job(
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
        assert wait_of(ahead) == Wait(turns_ahead=0, seconds=0.0)
        assert wait_of(behind) == Wait(turns_ahead=1, seconds=20.0)
        services.record_heartbeat(worker_name="v", loaded_weights=["f" * 64], device="cpu")
        assert wait_of(behind) == Wait(turns_ahead=1, seconds=10.0)

    def test_others_take_a_turn_each_however_many_jobs_they_have(self, user, dataset, worker):
        add_media_file(dataset, name="a.mp4", media_type="video", frame_count=40)
        self.end(submit(user), frames=10, seconds=5)
        Job.objects.update(served_at=None)
        many = [submit(user) for _ in range(5)]
        newcomer = make_user()
        add_media_file(make_dataset(newcomer), name="b.jpg")
        first, second = submit(newcomer), submit(newcomer)
        # Both were never served: the older job is next, then the newcomer's, in turns.
        assert wait_of(many[0]) == Wait(turns_ahead=0, seconds=0.0)
        assert wait_of(first) == Wait(turns_ahead=1, seconds=20.0)
        assert wait_of(many[1]) == Wait(turns_ahead=2, seconds=20.5)
        assert wait_of(second) == Wait(turns_ahead=3, seconds=40.5)
        assert wait_of(many[4]) == Wait(turns_ahead=6, seconds=81.0)
        # Whose turn it really is:
        order = [many[0], first, many[1], second, many[2], many[3], many[4]]
        for turn, job in enumerate(order):
            assert services.next_unit() == WorkUnit.objects.get(job=job).pk
            services.claim_unit(unit_id=services.next_unit(), worker_name="w")
            assert wait_of(Job.objects.get(pk=job.pk)) is None
            assert [wait_of(later).turns_ahead for later in order[turn + 1 :]] == list(
                range(len(order) - turn - 1)
            )

    def test_unit_that_pauses_is_not_ahead(self, user, dataset):
        add_media_file(dataset)
        paused = submit(user)
        claim = services.claim_unit(unit_id=WorkUnit.objects.get().pk, worker_name="w")
        pause = timedelta(minutes=10)
        services.hand_back_unit(claim=claim, counts_as_try=False, pause=pause)
        newcomer = make_user()
        add_media_file(make_dataset(newcomer), name="b.jpg")
        first, second = submit(newcomer), submit(newcomer)
        assert [wait_of(job).turns_ahead for job in (first, second)] == [0, 1]
        assert services.next_unit() == WorkUnit.objects.get(job=first).pk
        assert wait_of(Job.objects.get(pk=paused.pk)) is None  # it has begun before

    def test_what_is_being_looked_at_is_waited_for(self, user, dataset, worker):
        add_media_file(dataset, name="a.mp4", media_type="video", frame_count=40)
        self.end(submit(user), frames=10, seconds=5)
        services.claim_unit(unit_id=WorkUnit.objects.get(job=submit(user)).pk, worker_name="w")
        UnitFile.objects.filter(unit__state="running").update(frames_done=30)
        assert wait_of(submit(user)) == Wait(turns_ahead=0, seconds=5.0)

    def test_jobs_of_the_past_are_not_looked_through(self, user, dataset, worker):
        """The page of a waiting job is asked again and again, however many have ended."""
        add_media_file(dataset)
        job = submit(user)
        with CaptureQueriesContext(connection) as queries:
            wait_of(job)
        of_units = next(one["sql"] for one in queries if "inference_unitfile" in one["sql"])
        assert """"inference_job"."state" IN ('Pending', 'Running')""" in of_units
        of_ended = next(one["sql"] for one in queries if "finished_at" in one["sql"])
        assert "Index Scan using job_completed_last" in index_plan_of(of_ended)

    def test_without_a_worker_nobody_can_say(self, user, dataset):
        add_media_file(dataset)
        self.end(submit(user), frames=10, seconds=5)
        assert wait_of(submit(user)) == Wait(turns_ahead=0, seconds=None)

    def test_job_that_has_begun_has_no_place(self, client, user, dataset):
        add_media_file(dataset)
        job = submit(user)
        services.claim_unit(unit_id=WorkUnit.objects.get().pk, worker_name="w")
        shown = client.get(f"/api/v1/jobs/{job.pk}/").json()
        assert (shown["queue_position"], shown["seconds_to_start"]) == (None, None)
