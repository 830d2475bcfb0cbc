"""The deadline of a job: what has not ended by then is aborted, as its owner would."""

from datetime import timedelta

import pytest
from django.utils import timezone

from accounts.models import Event
from billing.models import Hold, Transfer
from billing.selectors import balance_hundredths, ledger_breaches
from inference import queue, services, submission
from inference.models import FrameResult, Job, UnitFile, WorkUnit
from inference.selectors import settlement_breaches
from inference.submission import MAX_DEADLINE_SECONDS, MIN_DEADLINE_SECONDS
from odproject.core.clock import database_now
from tests.clients import client_of
from tests.factories import add_media_file, make_dataset, make_user
from tests.threads import in_threads

PASSED = "Aborted because its deadline has passed."


@pytest.fixture(autouse=True)
def no_hints(monkeypatch):
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
    monkeypatch.setattr(queue, "is_crowded", lambda: False)


def submit(user, *, images=1, deadline_seconds=60):
    dataset = make_dataset(user, f"street {Job.objects.count()}")
    for number in range(images):
        add_media_file(dataset, name=f"{number}.jpg")
    return submission.submit_job(
        user=user,
        dataset_id=dataset.pk,
        model_id="YOLO8",
        model_version="YOLO8s_FSR",
        deadline_seconds=deadline_seconds,
    )


def in_two_minutes():
    return database_now() + timedelta(minutes=2)


def let_deadline_pass(job):
    Job.objects.filter(pk=job.pk).update(deadline_at=database_now() - timedelta(seconds=1))


def claim(job):
    unit = WorkUnit.objects.filter(job=job).first()
    return services.claim_unit(unit_id=unit.pk, worker_name="w1")


def look_at_first_image(job):
    """Begin with the job, and store what was found in one of its images."""
    held = claim(job)
    part = UnitFile.objects.filter(unit_id=held.unit_id).select_related("job_file").first()
    frame = FrameResult(
        job=job,
        media_file_id=part.job_file.media_file_id,
        frame_index=0,
        time_seconds=0,
        class_ids=b"",
        confidences=b"",
        boxes_xyxy=b"",
    )
    services.store_frames(claim=held, frames=[frame], frames_done={part.pk: 1})
    return held


def told(job):
    job.refresh_from_db()
    return job.state, job.error


def kinds(user):
    return list(Event.objects.filter(user=user).order_by("seq").values_list("kind", flat=True))


def assert_sound():
    assert ledger_breaches() + settlement_breaches() == []


@pytest.mark.django_db
class TestAsking:
    """What `deadline_seconds` may be, and where it is told."""

    @pytest.fixture
    def keys(self, user):
        dataset = make_dataset(user)
        add_media_file(dataset)
        return {"dataset_id": dataset.pk, "model_version": "YOLO8s_FSR"}

    @pytest.mark.parametrize("seconds", [MIN_DEADLINE_SECONDS, MAX_DEADLINE_SECONDS])
    def test_deadline_is_kept_as_a_time_of_the_database(self, user, keys, seconds, monkeypatch):
        wrong = timezone.now() + timedelta(days=3)
        before = database_now()
        with monkeypatch.context() as patched:
            patched.setattr(timezone, "now", lambda: wrong)
            job = submission.submit_job(
                user=user, model_id="YOLO8", deadline_seconds=seconds, **keys
            )
        lifetime = timedelta(seconds=seconds)
        assert before + lifetime <= job.deadline_at <= database_now() + lifetime

    def test_job_tells_its_deadline_and_one_without_tells_none(self, user, keys):
        client = client_of(user)
        answer = client.post("/api/v1/jobs/", {**keys, "deadline_seconds": 600}, format="json")
        assert answer.status_code == 202
        job = Job.objects.get()
        written = job.deadline_at.isoformat().replace("+00:00", "Z")
        assert answer.json()["deadline_at"] == written
        assert client.get(answer["Location"]).json()["deadline_at"] == written
        (listed,) = client.get("/api/v1/jobs/").json()["results"]
        assert listed["deadline_at"] == written
        assert client.post("/api/v1/jobs/", keys, format="json").json()["deadline_at"] is None

    @pytest.mark.parametrize(
        "seconds",
        [9, MAX_DEADLINE_SECONDS + 1, 0, -60, 60.5, "soon", "", None, True, [60], 10**400],
    )
    def test_anything_else_is_refused_and_starts_nothing(self, user, keys, seconds):
        body = {**keys, "deadline_seconds": seconds}
        answer = client_of(user).post("/api/v1/jobs/", body, format="json")
        assert answer.status_code == 400
        assert [error["field"] for error in answer.json()["errors"]] == ["deadline_seconds"]
        assert not Job.objects.exists()
        assert not Hold.objects.exists()
        assert balance_hundredths(user=user) == 100_000

    def test_key_that_was_used_with_another_deadline_is_refused(self, user, keys):
        client = client_of(user)

        def status(seconds):
            body = {**keys, "deadline_seconds": seconds}
            headers = {"Idempotency-Key": "k"}
            return client.post("/api/v1/jobs/", body, format="json", headers=headers).status_code

        assert [status(60), status(60), status(61)] == [202, 202, 422]
        assert Job.objects.count() == 1

    def test_quote_and_the_original_api_know_no_deadline(self, user, keys):
        client = client_of(user)
        body = {**keys, "deadline_seconds": 60}
        assert client.post("/api/v1/quotes/", body, format="json").status_code == 400
        what = {"datasetName": "street", "modelId": "YOLO8", "modelVersion": "YOLO8s_FSR"}
        body = {**what, "deadline_seconds": 60}
        assert client.post("/inference/", body, format="json").status_code == 200
        assert Job.objects.get().deadline_at is None

    def test_job_that_an_administrator_runs_again_has_none(self, user):
        job = submit(user)
        services.abort_job(job_id=job.pk)
        assert submission.rerun_job(job_id=job.pk).deadline_at is None

    def test_administrators_see_it(self, client, user):
        job = submit(user)
        client.force_login(make_user(staff=True))
        page = client.get(f"/admin/inference/job/{job.pk}/change/")
        assert "Deadline at" in page.content.decode()


@pytest.mark.django_db
class TestPassing:
    """What the sweeper does once it has passed."""

    def test_pending_job_costs_nothing(self, user):
        job = submit(user)
        services.sweep(now=in_two_minutes())
        assert told(job) == ("Aborted", PASSED)
        assert (job.charged_hundredths, balance_hundredths(user=user)) == (0, 100_000)
        assert kinds(user) == ["job.submitted", "job.aborted"]
        payload = Event.objects.filter(user=user).latest("seq").payload
        assert (payload["state"], payload["error"]) == ("Aborted", PASSED)
        assert_sound()

    def test_what_a_running_job_has_done_is_charged_and_stays_readable(self, user):
        job = submit(user, images=3)
        held = look_at_first_image(job)
        services.sweep(now=in_two_minutes())
        assert told(job) == ("Aborted", PASSED)
        assert job.charged_hundredths == 150
        assert balance_hundredths(user=user) == 100_000 - 150
        found = client_of(user).get(f"/api/v1/jobs/{job.pk}/frame-results/").json()["results"]
        assert len(found) == 1
        with pytest.raises(services.LeaseLostError):
            services.complete_unit(claim=held, annotated={})
        assert set(job.files.values_list("state", flat=True)) == {"aborted"}
        assert kinds(user) == ["job.submitted", "job.started", "job.aborted"]
        assert_sound()

    def test_job_is_aborted_once_however_often_the_sweeper_comes(self, user):
        job = submit(user)
        assert services.abort_overdue_jobs(now=in_two_minutes()) == 1
        ended_at = Job.objects.get().finished_at
        assert services.abort_overdue_jobs(now=in_two_minutes()) == 0
        job.refresh_from_db()
        assert job.finished_at == ended_at
        assert kinds(user).count("job.aborted") == 1
        assert_sound()

    def test_jobs_before_their_deadline_without_one_and_ended_ones_stay_as_they_are(self, user):
        waiting, without, ended = submit(user), submit(user, deadline_seconds=None), submit(user)
        held = look_at_first_image(ended)
        (part,) = UnitFile.objects.filter(unit_id=held.unit_id)
        services.complete_unit(claim=held, annotated={part.job_file_id: "results/x.jpg"})
        assert services.abort_overdue_jobs() == 0
        Job.objects.filter(pk=waiting.pk).update(deadline_at=in_two_minutes())
        services.sweep(now=database_now() + timedelta(seconds=90))
        assert told(waiting) == told(without) == ("Pending", "")
        assert told(ended) == ("Completed", "")

    def test_unit_is_not_claimed_any_more_and_has_no_turn(self, user):
        late, other = submit(user), submit(user)
        let_deadline_pass(late)
        assert claim(late) is None
        assert told(late) == ("Pending", "")
        assert services.next_unit() == WorkUnit.objects.get(job=other).pk
        assert claim(other) is not None
        assert kinds(user) == ["job.submitted", "job.submitted", "job.started"]

    def test_none_of_its_units_is_put_back_or_hinted_at(self, user, monkeypatch):
        sent = []
        monkeypatch.setattr(queue, "send_unit", lambda unit_id: sent.append(unit_id) or True)
        claimed, waiting = submit(user), submit(user)
        claim(claimed)
        WorkUnit.objects.filter(job=claimed).update(lease_expires_at=timezone.now())
        assert services.sweep(now=in_two_minutes()) == 0
        assert (told(claimed), told(waiting)) == (("Aborted", PASSED), ("Aborted", PASSED))
        assert sent == []

    def test_one_that_cannot_be_aborted_holds_up_no_other(self, user, monkeypatch, caplog):
        broken, other = submit(user), submit(user)
        settle = services.settle_hold

        def break_down(*, job_id, **terms):
            if job_id == broken.pk:
                raise RuntimeError("no such hold")
            settle(job_id=job_id, **terms)

        monkeypatch.setattr(services, "settle_hold", break_down)
        assert services.abort_overdue_jobs(now=in_two_minutes()) == 1
        assert (told(broken), told(other)) == (("Pending", ""), ("Aborted", PASSED))
        assert f"Job {broken.pk}, whose deadline has passed, is left for later" in caplog.text
        assert set(WorkUnit.objects.filter(job=broken).values_list("state", flat=True)) == {
            "pending"
        }
        assert_sound()

    def test_so_many_are_aborted_at_a_time_those_first_that_are_late_the_longest(
        self, user, monkeypatch
    ):
        monkeypatch.setattr(services, "JOBS_PER_SWEEP", 2)
        jobs = [submit(user, deadline_seconds=seconds) for seconds in (70, 60, 80)]
        assert services.abort_overdue_jobs(now=in_two_minutes()) == 2
        assert [told(job)[0] for job in jobs] == ["Aborted", "Aborted", "Pending"]
        assert services.abort_overdue_jobs(now=in_two_minutes()) == 1


def test_abort_of_its_owner_and_its_deadline_end_a_job_once(committed_db):
    user = make_user()
    job = submit(user)
    later = in_two_minutes()

    def end(number):
        if number % 2:
            services.abort_job(job_id=job.pk, reason="Aborted by its owner.")
            return 1
        return services.abort_overdue_jobs(now=later)

    outcomes = in_threads(6, end)
    refused = [one for one in outcomes if isinstance(one, services.JobFinishedError)]
    assert sum(one for one in outcomes if one not in refused) == 1
    state, error = told(job)
    assert state == "Aborted"
    assert error in {PASSED, "Aborted by its owner."}
    assert kinds(user) == ["job.submitted", "job.aborted"]
    assert Transfer.objects.filter(job_id=job.pk, kind="release").count() == 1
    assert balance_hundredths(user=user) == 100_000
    assert_sound()
