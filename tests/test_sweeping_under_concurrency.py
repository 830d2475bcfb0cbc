"""The sweeper beside others who hold what it wants to change."""

from contextlib import contextmanager
from datetime import timedelta

import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from inference import queue, services, submission
from inference.models import Job, WorkUnit
from odproject.core.clock import database_now
from tests.conftest import TEST_DATABASE
from tests.factories import add_media_file, make_dataset, make_user


@pytest.fixture
def claimed_units(committed_db, monkeypatch) -> list[WorkUnit]:
    """The units of two jobs, both of a worker whose leases are over."""
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
    monkeypatch.setattr(queue, "is_crowded", lambda: False)
    user = make_user()
    dataset = make_dataset(user)
    add_media_file(dataset)
    units = []
    for _ in range(2):
        job = submission.submit_job(
            user=user, dataset_id=dataset.pk, model_id="YOLO8", model_version="YOLO8s_FSR"
        )
        units.append(WorkUnit.objects.get(job=job))
        services.claim_unit(unit_id=units[-1].pk, worker_name="w1")
    WorkUnit.objects.update(lease_expires_at=timezone.now() - timedelta(hours=1))
    return units


LOCK_JOB = "SELECT FROM inference_job WHERE id = %s FOR UPDATE"
LOCK_MONEY = "SELECT FROM billing_account WHERE user_id = %s FOR UPDATE"


@contextmanager
def locked_by_somebody(number, engines, lock=LOCK_JOB):
    """Nobody waits long for the lock, for as long as it is held."""
    database = psycopg.connect(engines.database_url, dbname=TEST_DATABASE)
    with database as somebody, connection.cursor() as cursor:
        somebody.execute(lock, [number])
        cursor.execute("SET lock_timeout = '100ms'")
        try:
            yield
        finally:
            cursor.execute("RESET lock_timeout")


def test_units_of_one_locked_job_are_waited_for_once(claimed_units, engines, caplog):
    """The wait is that of the lock's timeout, seconds in which nothing else is put back."""
    first = claimed_units[0]
    first.refresh_from_db()
    for position in (1, 2):
        first.pk, first.position = None, position
        first.save(force_insert=True)
    with locked_by_somebody(first.job_id, engines):
        assert services.reclaim_units(worker_name="w1") == 1
    assert caplog.text.count("is left for later") == 1
    running = WorkUnit.objects.filter(state=WorkUnit.State.RUNNING)
    assert set(running.values_list("job_id", flat=True)) == {first.job_id}
    assert running.count() == 3


def states(units: list[WorkUnit]) -> list[str]:
    return [WorkUnit.objects.get(pk=unit.pk).state for unit in units]


@pytest.mark.parametrize(
    "put_back", [services.sweep, lambda: services.reclaim_units(worker_name="w1")]
)
def test_job_that_somebody_keeps_locked_holds_up_no_other(claimed_units, engines, put_back):
    first = claimed_units[0]
    with locked_by_somebody(first.job_id, engines):
        assert put_back() >= 1
        assert states(claimed_units) == ["running", "pending"]
    assert put_back() >= 1
    assert states(claimed_units) == ["pending", "pending"]


def job_that_is_overdue(user):
    dataset = make_dataset(user, f"street {Job.objects.count()}")
    add_media_file(dataset)
    job = submission.submit_job(
        user=user, dataset_id=dataset.pk, model_id="YOLO8", model_version="YOLO8s_FSR"
    )
    Job.objects.filter(pk=job.pk).update(deadline_at=database_now())
    return job


@pytest.fixture
def overdue_jobs(committed_db, monkeypatch) -> list[Job]:
    """Two of one user, and one of another."""
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
    user = make_user()
    return [job_that_is_overdue(owner) for owner in (user, user, make_user())]


def states_of(jobs: list[Job]) -> list[str]:
    return [Job.objects.get(pk=job.pk).state for job in jobs]


def test_overdue_job_that_somebody_has_locked_is_not_waited_for(overdue_jobs, engines, caplog):
    with locked_by_somebody(overdue_jobs[0].pk, engines):
        assert services.abort_overdue_jobs() == 2
    assert states_of(overdue_jobs) == ["Pending", "Aborted", "Aborted"]
    assert caplog.text == ""
    assert services.abort_overdue_jobs() == 1


def test_balance_that_somebody_has_locked_is_waited_for_once(overdue_jobs, engines, caplog):
    with locked_by_somebody(overdue_jobs[0].user_id, engines, LOCK_MONEY):
        assert services.abort_overdue_jobs() == 1
    assert states_of(overdue_jobs) == ["Pending", "Pending", "Aborted"]
    assert caplog.text.count("is left for later") == 1
    assert services.abort_overdue_jobs() == 2
