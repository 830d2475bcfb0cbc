"""What a monitor learns at /metrics, and who learns nothing."""

from datetime import timedelta

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from prometheus_client.parser import text_string_to_metric_families
from rest_framework.test import APIClient

from accounts.models import Webhook
from accounts.webhooks import (
    claim_delivery,
    create_webhook,
    record_failure,
    record_success,
    switch_off_webhook,
)
from inference import queue, services, submission
from inference.models import Job, WorkerHeartbeat, WorkUnit
from tests.clients import client_of
from tests.factories import add_media_file, dataset_id_of, make_dataset, make_user
from tests.queries import index_plan_of

pytestmark = pytest.mark.django_db
TOKEN = "a-monitor's token"


@pytest.fixture(autouse=True)
def monitored(settings, monkeypatch):
    settings.METRICS_TOKEN = TOKEN
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)


def ask(authorization: str = f"Bearer {TOKEN}"):
    return APIClient().get("/metrics", HTTP_AUTHORIZATION=authorization)


def figures() -> dict[str, float]:
    """Every sample by its name, with its state where it has one."""
    answer = ask()
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith("text/plain; version=")
    return {
        " ".join([sample.name.removeprefix("odproject_"), *sample.labels.values()]): sample.value
        for family in text_string_to_metric_families(answer.content.decode())
        for sample in family.samples
    }


def submit(user) -> Job:
    return submission.submit_job(
        user=user, dataset_id=dataset_id_of(user), model_id="YOLO8", model_version="YOLO8s_FSR"
    )


@pytest.fixture
def user():
    user = make_user()
    add_media_file(make_dataset(user))
    return user


class TestFigures:
    def test_service_without_work_shows_every_figure_as_zero(self):
        found = figures()
        assert found.pop("storage_free_bytes") > 0
        assert found == {
            "jobs pending": 0,
            "jobs running": 0,
            "jobs_ended_last_hour completed": 0,
            "jobs_ended_last_hour failed": 0,
            "jobs_ended_last_hour aborted": 0,
            "work_units pending": 0,
            "work_units running": 0,
            "workers": 0,
            "oldest_pending_job_seconds": 0,
            "overdue_leases": 0,
            "webhooks_waiting": 0,
            "webhooks_failing": 0,
        }

    def test_work_is_counted_by_its_state(self, user):
        running, waiting, _ = submit(user), submit(user), submit(user)
        services.claim_unit(unit_id=WorkUnit.objects.get(job=running).pk, worker_name="w")
        before = timezone.now() - timedelta(seconds=90)
        Job.objects.filter(pk__in=(running.pk, waiting.pk)).update(created_at=before)
        found = figures()
        assert (found["jobs pending"], found["jobs running"]) == (2, 1)
        assert (found["work_units pending"], found["work_units running"]) == (2, 1)
        assert 90 <= found["oldest_pending_job_seconds"] < 150
        assert found["overdue_leases"] == 0

    def test_units_that_an_abort_left_behind_are_no_work(self, user):
        services.abort_job(job_id=submit(user).pk)
        found = figures()
        assert (found["work_units pending"], found["jobs_ended_last_hour aborted"]) == (0, 1)

    def test_job_that_ended_long_ago_is_forgotten(self, user):
        job = submit(user)
        services.abort_job(job_id=job.pk)
        Job.objects.filter(pk=job.pk).update(finished_at=timezone.now() - timedelta(minutes=61))
        assert figures()["jobs_ended_last_hour aborted"] == 0

    def test_lease_that_nobody_took_back_is_overdue(self, user):
        unit = WorkUnit.objects.get(job=submit(user))
        services.claim_unit(unit_id=unit.pk, worker_name="w")
        WorkUnit.objects.update(lease_expires_at=timezone.now() - timedelta(seconds=1))
        assert figures()["overdue_leases"] == 1

    def test_worker_counts_when_it_has_a_model_and_was_heard_of(self):
        now = timezone.now()
        for name, weights, seen in [
            ("ready", ["a" * 64], now),
            ("without a model", [], now),
            ("silent", ["a" * 64], now - timedelta(hours=1)),
        ]:
            WorkerHeartbeat.objects.create(name=name, loaded_weights=weights, last_seen_at=seen)
        assert figures()["workers"] == 1

    def test_webhooks_that_wait_or_fail_are_counted_until_they_are_switched_off(self, user):
        for number in range(3):
            create_webhook(user=user, url=f"https://8.8.8.8/{number}")
        create_webhook(user=make_user(), url="https://8.8.8.8/")
        submit(user)
        record_success(delivery=claim_delivery(), status=200)
        record_failure(delivery=claim_delivery(), error="no")
        found = figures()
        assert (found["webhooks_waiting"], found["webhooks_failing"]) == (2, 1)
        for webhook in Webhook.objects.all():
            switch_off_webhook(actor=user, webhook=webhook, reason="enough")
        found = figures()
        assert (found["webhooks_waiting"], found["webhooks_failing"]) == (0, 0)

    def test_jobs_of_the_past_are_not_looked_through(self):
        with CaptureQueriesContext(connection) as queries:
            figures()
        of_ended = next(one["sql"] for one in queries if '"finished_at" >=' in one["sql"])
        assert "job_ended_lately" in index_plan_of(of_ended)


class TestWhoMayAsk:
    @pytest.mark.parametrize(
        "authorization",
        ["", "Bearer", "Bearer ", "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer t\u00f6ken"],
    )
    def test_monitor_without_the_token_is_told_to_bring_it(self, authorization):
        answer = ask(authorization)
        assert (answer.status_code, answer["WWW-Authenticate"]) == (401, "Bearer")
        assert answer["Content-Type"] == "application/problem+json"
        assert b"odproject_" not in answer.content

    def test_scheme_has_no_case(self):
        assert ask(f"bearer {TOKEN}").status_code == 200

    def test_administrators_session_is_no_token_of_a_monitor(self):
        assert client_of(make_user(staff=True)).get("/metrics").status_code == 401

    def test_nothing_is_there_without_a_token_in_the_settings(self, settings):
        settings.METRICS_TOKEN = ""
        for authorization in ("", "Bearer ", f"Bearer {TOKEN}"):
            answer = ask(authorization)
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
