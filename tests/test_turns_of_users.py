"""Whose unit is next: users take turns, and so do the jobs of one user."""

import errno
from datetime import timedelta
from types import SimpleNamespace

import psycopg
import pytest
from django.db import connection
from django.utils import timezone

from inference import queue, services, submission, tasks, try_outs, unit_work
from inference.models import Job, ModelVersion, UnitFile, WorkUnit
from inference.worker import ProcessHealth, run_unit
from odproject.core import room
from tests.factories import add_media_file, make_dataset, make_user
from tests.mediafiles import write_image
from tests.pipeline_fakes import FakeDetector

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def hints(monkeypatch):
    """The units that were hinted to workers."""
    sent: list[int] = []
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: sent.append(unit_id) or True)
    return sent


@pytest.fixture(autouse=True)
def one_image_a_unit(settings):
    settings.UNIT_MAX_IMAGES = 1


def job_of(user, *, images: int) -> Job:
    dataset = make_dataset(user, f"street {Job.objects.count()}")
    for number in range(images):
        add_media_file(dataset, name=f"{number}.jpg")
    return submission.submit_job(
        user=user, dataset_id=dataset.pk, model_id="YOLO8", model_version="YOLO8s_FSR"
    )


def work() -> Job | None:
    """Run the unit whose turn it is to its end; returns its job, None when nothing waits."""
    unit_id = services.next_unit()
    if unit_id is None:
        return None
    claim = services.claim_unit(unit_id=unit_id, worker_name="w")
    (part,) = UnitFile.objects.filter(unit_id=unit_id)
    services.complete_unit(claim=claim, annotated={part.job_file_id: "results/a.jpg"})
    return Job.objects.get(pk=claim.job_id)


def turns(names: dict[int, str]) -> str:
    """The names of the jobs whose units are run, until nothing waits."""
    return "".join(names[job.pk] for job in iter(work, None))


def test_small_job_does_not_wait_for_the_end_of_a_huge_one():
    huge = job_of(make_user(), images=6)
    work()
    small = job_of(make_user(), images=1)
    assert turns({huge.pk: "h", small.pk: "s"}) == "shhhhh"


def test_users_take_turns_however_many_jobs_they_have():
    one, other = make_user(), make_user()
    many = {job_of(one, images=2).pk: name for name in "abc"}
    few = job_of(other, images=3)
    assert turns({**many, few.pk: "x"}) == "axbxcxabc"


def test_job_whose_units_are_all_at_work_has_no_turn():
    busy, waiting = job_of(make_user(), images=1), job_of(make_user(), images=1)
    unit_of = {job.pk: WorkUnit.objects.get(job=job).pk for job in (busy, waiting)}
    services.claim_unit(unit_id=unit_of[busy.pk], worker_name="w")
    Job.objects.update(served_at=None)
    assert services.next_unit() == unit_of[waiting.pk]


def test_unit_that_pauses_is_nobodys_turn_until_then(hints):
    job = job_of(make_user(), images=1)
    unit = WorkUnit.objects.get()
    claim = services.claim_unit(unit_id=unit.pk, worker_name="w")
    now = timezone.now()
    later = now + timedelta(minutes=6)
    services.hand_back_unit(claim=claim, counts_as_try=False, pause=timedelta(minutes=5))
    assert services.next_unit(now=now) is None
    services.sweep(now=now)
    assert hints == []
    assert services.next_unit(now=later) == unit.pk
    services.sweep(now=later)
    assert hints == [unit.pk]
    services.abort_job(job_id=job.pk)
    assert services.next_unit(now=later) is None


@pytest.fixture
def job_of_a_picture(tmp_path, monkeypatch):
    """Its pauses are told by a clock that stands still."""
    now = timezone.now()
    monkeypatch.setattr(services, "database_now", lambda: now)
    user = make_user()
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    dataset = make_dataset(user)
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    return submission.submit_job(
        user=user, dataset_id=dataset.pk, model_id="YOLO8", model_version="YOLO8s_FSR"
    )


def run_once(job: Job, health: ProcessHealth, detector=FakeDetector) -> tuple[int, float]:
    """Run the job's only unit once; the tries it has by then, and the seconds that it pauses."""
    now = services.database_now()
    unit = WorkUnit.objects.get(job=job)
    run_unit(unit_id=unit.pk, worker_name="w", detector_of=lambda job: detector(), health=health)
    unit.refresh_from_db()
    job.refresh_from_db()
    pause = timedelta() if unit.waits_until is None else unit.waits_until - now
    return unit.tries, pause.total_seconds()


def test_refusal_of_the_system_counts_after_an_hour_of_longer_and_longer_pauses(job_of_a_picture):
    """A full disk: the job is not lost, and does not go on for ever either."""
    job, health, seen = job_of_a_picture, ProcessHealth(), []

    class FullDisk(FakeDetector):
        def detect(self, images):
            raise OSError(errno.ENOSPC, "No space left on device")

    while job.state in ("Pending", "Running"):
        seen.append(run_once(job, health, FullDisk))
    assert seen[:10] == [
        (0, seconds) for seconds in (15, 30, 60, 120, 240, 480, 600, 600, 600, 600)
    ]
    assert seen[10:12] == [(1, 600), (2, 600)]
    assert (WorkUnit.objects.get().state, seen[-1][0], job.state) == ("failed", 3, "Failed")
    assert not health.is_lost


@pytest.mark.parametrize("sqlstate", ["53100", "58030", "25006"])
def test_disk_of_the_database_that_is_full_or_fails_costs_no_try_either(
    job_of_a_picture, monkeypatch, sqlstate
):
    def refuse(**batch):
        with connection.wrap_database_errors:
            raise psycopg.errors.lookup(sqlstate)("could not extend file")

    monkeypatch.setattr(services, "store_frames", refuse)
    monkeypatch.setattr(unit_work, "while_database_is_away", lambda store: store())
    health = ProcessHealth()
    assert [run_once(job_of_a_picture, health) for _ in range(3)] == [(0, 15), (0, 30), (0, 60)]
    assert job_of_a_picture.state == "Running"
    assert health.failures_in_a_row == 0


def test_statement_that_the_database_refuses_for_itself_is_the_units_fault(
    job_of_a_picture, monkeypatch
):
    def refuse(**batch):
        with connection.wrap_database_errors:
            raise psycopg.errors.ProgramLimitExceeded("row is too big")

    monkeypatch.setattr(services, "store_frames", refuse)
    monkeypatch.setattr(unit_work, "while_database_is_away", lambda store: store())
    health = ProcessHealth()
    assert [run_once(job_of_a_picture, health) for _ in range(3)] == [(1, 0), (2, 0), (3, 0)]
    assert job_of_a_picture.state == "Failed"


def test_unit_waits_rather_than_take_the_reserve_of_a_disk(job_of_a_picture, monkeypatch):
    class Untouched(FakeDetector):
        def detect(self, images):
            raise AssertionError("It was begun.")

    usage = room.shutil.disk_usage
    monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
    assert run_once(job_of_a_picture, ProcessHealth(), Untouched) == (0, 15)
    monkeypatch.setattr(room.shutil, "disk_usage", usage)
    assert run_once(job_of_a_picture, ProcessHealth()) == (1, 15)
    assert job_of_a_picture.state == "Completed"


def test_model_that_waits_to_be_tried_out_goes_before_every_unit(monkeypatch):
    job_of(make_user(), images=2)
    version = ModelVersion.objects.get(version="YOLO8m_FSR")
    ModelVersion.objects.filter(pk=version.pk).update(test_requested_at=timezone.now())
    done: list[str] = []

    def try_out(*, version_id):
        done.append(f"test of {version_id}")
        ModelVersion.objects.filter(pk=version_id).update(test_requested_at=None)

    monkeypatch.setattr(try_outs, "run_test", try_out)
    monkeypatch.setattr(tasks, "run_next_unit", lambda run: done.append("unit"))
    monkeypatch.setattr(tasks, "close_old_connections", lambda: None)  # the test needs its own
    for _ in range(2):
        tasks.run_unit_task(WorkUnit.objects.first().pk)
    assert done == [f"test of {version.pk}", "unit", "unit"]
