"""Whose unit is next: users take turns, and so do the jobs of one user."""

import errno
from datetime import timedelta

import pytest
from django.utils import timezone

from inference import queue, registry, services, tasks
from inference.models import Job, ModelVersion, UnitFile, WorkUnit
from inference.worker import ProcessHealth, run_unit
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
    return services.submit_job(
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


def test_refusal_of_the_system_counts_after_an_hour_of_longer_and_longer_pauses(tmp_path):
    """A full disk: the job is not lost, and does not go on for ever either."""
    user = make_user()
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    dataset = make_dataset(user)
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    job = services.submit_job(
        user=user, dataset_id=dataset.pk, model_id="YOLO8", model_version="YOLO8s_FSR"
    )
    unit, health, seen = WorkUnit.objects.get(), ProcessHealth(), []

    class FullDisk(FakeDetector):
        def detect(self, images):
            raise OSError(errno.ENOSPC, "No space left on device")

    while job.state in ("Pending", "Running"):
        now = timezone.now()
        run_unit(
            unit_id=unit.pk, worker_name="w", detector_of=lambda job: FullDisk(), health=health
        )
        unit.refresh_from_db()
        job.refresh_from_db()
        pause = 0 if unit.waits_until is None else (unit.waits_until - now).total_seconds()
        seen.append((unit.tries, round(pause)))
    assert seen[:10] == [
        (0, seconds) for seconds in (15, 30, 60, 120, 240, 480, 600, 600, 600, 600)
    ]
    assert seen[10:12] == [(1, 600), (2, 600)]
    assert (unit.state, unit.tries, job.state) == ("failed", 3, "Failed")
    assert not health.is_lost


def test_model_that_waits_to_be_tried_out_goes_before_every_unit(monkeypatch):
    job_of(make_user(), images=2)
    version = ModelVersion.objects.get(version="YOLO8m_FSR")
    ModelVersion.objects.filter(pk=version.pk).update(test_requested_at=timezone.now())
    done: list[str] = []

    def try_out(*, version_id):
        done.append(f"test of {version_id}")
        ModelVersion.objects.filter(pk=version_id).update(test_requested_at=None)

    monkeypatch.setattr(registry, "run_test", try_out)
    monkeypatch.setattr(tasks, "run_next_unit", lambda run: done.append("unit"))
    monkeypatch.setattr(tasks, "close_old_connections", lambda: None)  # the test needs its own
    for _ in range(2):
        tasks.run_unit_task(WorkUnit.objects.first().pk)
    assert done == [f"test of {version.pk}", "unit", "unit"]
