"""What a worker does with a unit, with a fake detector: the network has its own tests."""

import errno
import os
import threading
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from celery.worker import state as worker_state
from django.core.files.base import ContentFile
from django.core.files.storage import FileSystemStorage, default_storage
from django.db import OperationalError
from django.utils import timezone

from billing.selectors import balance_hundredths
from datasets.media.inspection import inspect_here
from datasets.media.video import count_frames, iter_frames
from datasets.uploading import media_limits
from inference import queue, services, submission, tasks
from inference.cleaning import remove_orphaned_results
from inference.leases import LeaseKeeper
from inference.models import FrameResult, Job, JobFile, WorkUnit
from inference.pipeline.errors import DeviceUnavailableError, PipelineError, WeightsError
from inference.pipeline.types import Detections
from inference.results import annotated_zip, result_json
from inference.selectors import files_of_job
from inference.services import LeaseLostError
from inference.worker import ProcessHealth, run_unit
from tests.factories import add_media_file, dataset_id_of, make_dataset, make_user
from tests.mediafiles import write_image, write_video
from tests.pipeline_fakes import OneByOne


class FakeDetector(OneByOne):
    """Finds one car and one doubtful truck in every image."""

    class_names = ("car", "truck")

    def __init__(self, error=None):
        self.error = error
        self.calls = 0

    def detect(self, images):
        self.calls += 1
        if self.error:
            raise self.error
        return [
            Detections(
                np.array([0, 1], np.int16),
                np.array([0.9, 0.2], np.float32),
                np.array([[1, 2, 11, 12], [3, 4, 13, 14]], np.float32),
            )
            for _ in images
        ]


@pytest.fixture
def user(monkeypatch):
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
    return make_user()


def submit(user):
    return submission.submit_job(
        user=user, dataset_id=dataset_id_of(user), model_id="YOLO8", model_version="YOLO8s_FSR"
    )


def run(job, detector, **arguments):
    """Run the job's next unit; returns whether it was there to be taken, and the unit."""
    waiting = WorkUnit.objects.filter(job=job).order_by("position", "pk")
    unit = waiting.filter(state="pending").first() or waiting.first()
    taken = run_unit(
        unit_id=unit.pk, worker_name="w1", detector_of=lambda job: detector, **arguments
    )
    unit.refresh_from_db()
    job.refresh_from_db()
    return taken, unit


def add_clip(dataset, path):
    """A video of five frames, which lies at `path` too."""
    write_video(path, frames=5)
    return add_media_file(
        dataset,
        name=path.name,
        content=path,
        media_type="video",
        frame_count=5,
        image_format="mp4",
    )


@pytest.mark.django_db
def test_unit_that_is_known_to_be_anothers_stores_nothing_more(
    user, dataset, tmp_path, monkeypatch
):
    """The thread that renews the lease tells so before the database is asked."""

    def taken_away(lease):
        raise LeaseLostError("Work unit was taken away.")

    monkeypatch.setattr(LeaseKeeper, "note_progress", taken_away)
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    job = submit(user)
    _, unit = run(job, FakeDetector())
    assert (unit.state, job.state) == ("running", "Running")
    assert not FrameResult.objects.exists()


@pytest.mark.django_db
def test_image_is_detected_stored_and_drawn(user, dataset, tmp_path):
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    job = submit(user)
    taken, unit = run(job, FakeDetector())
    assert taken
    (file,) = files_of_job(job=job)
    assert (unit.state, file.state, file.frames_done) == ("completed", "completed", 1)
    assert job.state == "Completed"
    frame = FrameResult.objects.get()
    assert (frame.frame_index, frame.time_seconds) == (0, 0.0)
    assert np.frombuffer(frame.class_ids, "<i2").tolist() == [0, 1]
    assert frame.class_counts == {"car": 1}
    assert default_storage.exists(file.annotated.name)
    assert "".join(result_json(job)) == (
        f'{{"contentURI": "/inference/content/{job.pk}", "result": ['
        '{"filename": "a.png", "type": "image", "objects": [{"name": "car", "class": 0, '
        '"confidence": 0.9, "box": {"x1": 1.0, "y1": 2.0, "x2": 11.0, "y2": 12.0}}]}]}'
    )
    assert b"".join(annotated_zip(job))[:2] == b"PK"


@pytest.mark.django_db
def test_two_classes_of_one_name_are_counted_together(user, dataset, tmp_path):
    class Twice(OneByOne):
        class_names = ("car", "boat", "car")

        def detect(self, images):
            found = np.array([2, 0, 1, 0, 2], np.int16)
            confidences = np.array([0.9, 0.9, 0.9, 0.2, 0.8], np.float32)
            return [Detections(found, confidences, np.ones((5, 4), np.float32)) for _ in images]

    write_image(tmp_path / "a.png", size_wh=(64, 48))
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    run(submit(user), Twice())
    assert FrameResult.objects.get().class_counts == {"car": 3, "boat": 1}


@pytest.mark.django_db
def test_video_stores_every_frame(user, dataset, tmp_path):
    add_clip(dataset, tmp_path / "a.mp4")
    job = submit(user)
    detector = FakeDetector()
    run(job, detector)
    assert detector.calls == 5
    assert list(FrameResult.objects.values_list("frame_index", flat=True)) == [0, 1, 2, 3, 4]
    assert job.charged_hundredths == 500


@pytest.mark.django_db
def test_corrupt_file_fails_alone(user, dataset, tmp_path):
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    add_media_file(dataset, name="bad.png", content=b"no picture", image_format="png")
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    job = submit(user)
    _, unit = run(job, FakeDetector())
    assert (unit.state, unit.tries) == ("completed", 1)
    bad, good = JobFile.objects.filter(job=job)
    assert (bad.state, good.state) == ("failed", "completed")
    assert bad.error != ""
    assert (job.state, job.charged_hundredths) == ("Completed", 150)
    first = '{"filename": "bad.png", "type": "image", "error": '
    assert first in "".join(result_json(job))


@pytest.mark.django_db
def test_image_that_was_removed_from_the_storage_fails_alone(user, dataset, tmp_path):
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    for name in ("gone.png", "a.png"):
        add_media_file(dataset, name=name, content=tmp_path / "a.png", image_format="png")
    job = submit(user)
    gone, good = JobFile.objects.filter(job=job)
    default_storage.delete(gone.media_file.content.name)
    _, unit = run(job, FakeDetector())
    gone.refresh_from_db()
    good.refresh_from_db()
    assert (unit.state, unit.attempt) == ("completed", 1)
    assert (gone.state, gone.error) == ("failed", "The file is no longer in the storage.")
    assert (good.state, job.state, job.charged_hundredths) == ("completed", "Completed", 150)
    assert list(FrameResult.objects.values_list("media_file", flat=True)) == [good.media_file_id]


@pytest.mark.django_db
@pytest.mark.parametrize("options", [{}, {"tracking": True}])
def test_video_that_was_removed_from_the_storage_fails_and_costs_nothing(
    user, dataset, tmp_path, options
):
    added = add_clip(dataset, tmp_path / "a.mp4")
    job = submit(user)
    Job.objects.filter(pk=job.pk).update(options=job.options | options)
    default_storage.delete(added.content.name)
    _, unit = run(job, FakeDetector())
    assert (unit.state, unit.attempt) == ("failed", 1)
    assert (job.state, job.error) == ("Failed", "The file is no longer in the storage.")
    assert balance_hundredths(user=user) == 100_000


@pytest.mark.django_db
def test_image_of_a_storage_that_is_away_is_tried_again(user, dataset, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    job = submit(user)
    away = FileSystemStorage(tmp_path / "away")
    with monkeypatch.context() as patch:
        patch.setattr("inference.unit_work.default_storage", away)
        patch.setattr("odproject.core.files.default_storage", away)
        _, unit = run(job, FakeDetector())
    assert (unit.state, unit.tries) == ("pending", 0)
    assert JobFile.objects.get().state == "running"


@pytest.mark.django_db
def test_image_that_the_disk_does_not_give_is_tried_again(user, dataset, tmp_path, monkeypatch):
    write_image(tmp_path / "a.png", image_format="PNG")
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    job = submit(user)

    def fail(file):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr("datasets.media.images.PngImageFile.load", fail)
        _, unit = run(job, FakeDetector())
    assert (unit.state, unit.tries) == ("pending", 0)
    assert JobFile.objects.get().state == "running"
    _, unit = run(job, FakeDetector())
    assert (unit.state, JobFile.objects.get().state) == ("completed", "completed")


@pytest.mark.django_db
def test_unexpected_error_is_tried_three_times_and_costs_nothing(user, dataset, tmp_path):
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    job = submit(user)
    detector = FakeDetector(error=RuntimeError("nobody knows why"))
    for attempt in (1, 2):
        _, unit = run(job, detector)
        assert (unit.state, unit.tries) == ("pending", attempt)
    _, unit = run(job, detector)
    assert (unit.state, job.state) == ("failed", "Failed")
    assert JobFile.objects.get().error == "The file could not be processed in 3 attempts."
    assert run(job, detector)[0] is False
    assert detector.calls == 3
    assert balance_hundredths(user=user) == 100_000


def out_of_memory():
    error = PipelineError("out_of_memory", "The device's memory does not suffice for one image.")
    error.__cause__ = torch.OutOfMemoryError("CUDA error: out of memory")
    return error


def hidden_device_fault():
    error = WeightsError("weights_unreadable", "x.pt is no readable checkpoint.")
    error.__cause__ = RuntimeError("CUDA error: unspecified launch failure")
    return error


DEVICE_FAULT = torch.AcceleratorError("CUDA error: an illegal memory access was encountered")


@pytest.mark.django_db
class TestProcessThatIsLost:
    """What breaks the process fails nobody's files, and ends the process rather than the jobs."""

    @pytest.fixture
    def job(self, user, dataset, tmp_path):
        write_image(tmp_path / "a.png", size_wh=(64, 48))
        add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
        return submit(user)

    @pytest.mark.parametrize(
        "error",
        [
            DEVICE_FAULT,
            RuntimeError("CUDA error: device not ready"),
            hidden_device_fault(),
            DeviceUnavailableError("device_unavailable", "There is no device cuda here."),
        ],
        ids=["torch", "text", "behind another", "gone"],
    )
    def test_broken_device_ends_the_process_and_is_no_try(self, job, error):
        health = ProcessHealth()
        _, unit = run(job, FakeDetector(error=error), health=health)
        assert (unit.state, unit.tries, job.state) == ("pending", 0, "Running")
        assert health.is_lost
        assert JobFile.objects.get().error == ""

    def test_memory_that_does_not_suffice_is_a_try_and_the_process_goes_on(self, job):
        health = ProcessHealth()
        _, unit = run(job, FakeDetector(error=out_of_memory()), health=health)
        assert (unit.state, unit.tries) == ("pending", 1)
        assert not health.is_lost

    def test_picture_that_breaks_every_device_ends_all_the_same(self, job, user):
        detector = FakeDetector(error=DEVICE_FAULT)
        tries = [run(job, detector, health=ProcessHealth())[1].tries for _ in range(8)]
        assert tries == [0, 0, 0, 0, 0, 1, 2, 3]
        assert (job.state, detector.calls) == ("Failed", 8)
        assert JobFile.objects.get().error == "The file could not be processed in 3 attempts."
        assert balance_hundredths(user=user) == 100_000

    def test_failures_in_a_row_end_the_process_but_not_with_a_success_between(self, user, job):
        health = ProcessHealth()
        others = [submit(user) for _ in range(9)]
        for other in others[:4]:
            run(other, FakeDetector(error=ValueError("odd")), health=health)
        assert not health.is_lost
        run(job, FakeDetector(), health=health)
        assert job.state == "Completed"
        for other in others[4:8]:
            run(other, FakeDetector(error=ValueError("odd")), health=health)
        assert not health.is_lost
        run(others[8], FakeDetector(error=ValueError("odd")), health=health)
        assert health.is_lost

    def test_files_at_fault_say_nothing_about_the_process(self, user, dataset):
        health = ProcessHealth()
        for number in range(6):
            add_media_file(dataset, name=f"{number}.png", content=b"none", image_format="png")
        for _ in range(6):
            run(submit(user), FakeDetector(), health=health)
        assert Job.objects.filter(state="Failed").count() == 6
        assert (health.failures_in_a_row, health.is_lost) == (0, False)

    def test_worker_stops_with_a_failure_and_takes_no_unit_any_more(self, job, monkeypatch):
        monkeypatch.setattr(worker_state, "should_stop", None)
        monkeypatch.setattr(tasks, "health", ProcessHealth())
        monkeypatch.setattr(tasks, "close_old_connections", lambda: None)  # the test needs its own
        detector = FakeDetector(error=DEVICE_FAULT)
        monkeypatch.setattr(tasks.detectors, "for_job", lambda job: detector)
        unit = WorkUnit.objects.get()
        tasks.run_unit_task(unit.pk)
        assert worker_state.should_stop == os.EX_SOFTWARE
        tasks.run_unit_task(unit.pk)
        unit.refresh_from_db()
        assert (unit.state, unit.attempt, unit.tries, detector.calls) == ("pending", 1, 0, 1)

    @pytest.mark.parametrize(("answers", "tries"), [(True, 1), (False, 0)])
    def test_statement_that_fails_is_a_try_unless_the_database_is_away(
        self, job, monkeypatch, answers, tries
    ):
        if not answers:
            away = SimpleNamespace(is_usable=lambda: False)
            monkeypatch.setattr("inference.worker.connection", away)
        error = OperationalError("index row size exceeds the maximum")
        health = ProcessHealth()
        _, unit = run(job, FakeDetector(error=error), health=health)
        assert (unit.state, unit.tries, health.failures_in_a_row) == ("pending", tries, tries)


@pytest.mark.django_db
def test_stopping_worker_hands_the_unit_back(user, dataset, tmp_path):
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    job = submit(user)
    _, unit = run(job, FakeDetector(), should_stop=lambda: True)
    assert (unit.state, unit.tries, job.state) == ("pending", 0, "Running")
    assert not FrameResult.objects.exists()


@pytest.mark.django_db
def test_worker_that_is_told_to_stop_need_not_finish_a_picture_of_many_tiles(
    user, dataset, tmp_path
):
    write_image(tmp_path / "a.png", size_wh=(64, 48))
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    job = submit(user)
    tiles_done = []

    class TilingDetector(FakeDetector):
        def stream(self, items, image_of, *, on_progress):
            for item in items:
                for tile in range(1000):
                    tiles_done.append(tile)
                    on_progress()
                yield item, self.detect([image_of(item)])[0]

    _, unit = run(job, TilingDetector(), should_stop=lambda: len(tiles_done) == 3)
    assert (unit.state, unit.tries, len(tiles_done)) == ("pending", 0, 3)


@pytest.mark.django_db
def test_job_aborted_in_the_middle_stops_and_leaves_no_file(
    user, dataset, tmp_path, media_root, monkeypatch
):
    monkeypatch.setattr("inference.pipeline.run._REPORT_EVERY_FRAMES", 2)
    write_video(tmp_path / "a.mp4", frames=6)
    add_media_file(
        dataset,
        name="a.mp4",
        content=tmp_path / "a.mp4",
        media_type="video",
        frame_count=6,
        image_format="mp4",
    )
    job = submit(user)

    class AbortingDetector(FakeDetector):
        def detect(self, images):
            found = super().detect(images)
            if self.calls == 4:
                services.abort_job(job_id=job.pk)
            return found

    run(job, AbortingDetector())
    assert (job.state, job.charged_hundredths) == ("Aborted", 200)
    assert FrameResult.objects.filter(job=job).count() == 2
    assert not (media_root / "results").exists()


@pytest.mark.django_db
def test_unknown_unit_is_not_there_to_be_taken(user):
    assert run_unit(unit_id=10**12, worker_name="w1", detector_of=lambda v: FakeDetector()) is False


@pytest.mark.django_db
def test_job_with_no_completed_file_still_gives_an_empty_zip(user, dataset):
    add_media_file(dataset, name="bad.png", content=b"no picture", image_format="png")
    job = submit(user)
    run(job, FakeDetector())
    assert Job.objects.get().state == "Failed"
    assert b"".join(annotated_zip(job))[:4] == b"PK\x05\x06"


class TestLease:
    """A lease is kept while there is progress, with a real second connection."""

    @pytest.fixture
    def held(self, committed_db, settings, monkeypatch):
        settings.UNIT_LEASE_SECONDS = 0.4
        monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
        user = make_user()
        add_media_file(make_dataset(user))
        submit(user)
        return services.claim_unit(unit_id=WorkUnit.objects.get().pk, worker_name="w1")

    def renewed(self, held):
        before = WorkUnit.objects.get().lease_expires_at
        with LeaseKeeper(claim=held) as keeper:
            keeper.join(0.5)
        return WorkUnit.objects.get().lease_expires_at > before

    def test_long_step_keeps_its_lease(self, held):
        assert self.renewed(held)

    def test_work_that_hangs_loses_its_lease(self, held, settings):
        settings.UNIT_SILENT_SECONDS = -1
        assert not self.renewed(held)

    def test_work_that_hangs_is_told_to_whoever_can_end_the_worker(self, held, settings):
        settings.UNIT_SILENT_SECONDS = -1
        told = threading.Event()
        with LeaseKeeper(claim=held, on_hang=told.set):
            assert told.wait(30)

    def test_work_on_an_aborted_job_ends_at_its_next_step(self, held):
        """Also where it stores nothing, as while a video is drawn."""
        services.abort_job(job_id=held.job_id)
        with LeaseKeeper(claim=held) as keeper:
            keeper.note_progress()  # nobody has noticed yet
            keeper.join(30)
            with pytest.raises(LeaseLostError):
                keeper.note_progress()

    def test_unit_of_somebody_else_is_not_renewed(self, held):
        services.reclaim_units(worker_name="w1")
        services.claim_unit(unit_id=held.unit_id, worker_name="w2")
        assert not self.renewed(held)


@pytest.mark.usefixtures("committed_db")
class TestFileOfAnAttempt:
    """The annotated file stays exactly when a unit refers to it."""

    @pytest.fixture
    def job(self, user, dataset, tmp_path):
        write_image(tmp_path / "a.png", size_wh=(64, 48))
        add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
        return submit(user)

    def test_commit_whose_answer_got_lost_keeps_the_file(self, job, monkeypatch):
        complete = services.complete_unit

        def complete_and_lose_the_answer(**arguments):
            complete(**arguments)
            raise OperationalError("the connection is lost")

        monkeypatch.setattr(services, "complete_unit", complete_and_lose_the_answer)
        monkeypatch.setattr("inference.leases.DATABASE_RETRY_SECONDS", 0)
        # The second time the unit is no longer there to be completed.
        _, unit = run(job, FakeDetector())
        assert (unit.state, unit.attempt, job.state) == ("completed", 1, "Completed")
        assert default_storage.exists(JobFile.objects.get(job=job).annotated.name)

    def test_file_of_a_killed_attempt_is_removed(self, job):
        unit = WorkUnit.objects.get(job=job)
        services.claim_unit(unit_id=unit.pk, worker_name="w1")
        file = JobFile.objects.get(job=job)
        name = f"results/{job.pk}/{file.pk}-{unit.pk}-1.png"
        killed = default_storage.save(name, ContentFile(b"half"))
        services.reclaim_units(worker_name="w1")
        _, unit = run(job, FakeDetector())
        assert (unit.state, unit.attempt) == ("completed", 2)
        assert default_storage.exists(JobFile.objects.get(job=job).annotated.name)
        assert not default_storage.exists(killed)


@pytest.mark.django_db
class TestRanges:
    """A long video is looked at in ranges, by any number of workers, and joined at the end."""

    FRAMES = 40

    @pytest.fixture
    def source(self, tmp_path):
        return write_video(
            tmp_path / "a.mp4",
            frames=self.FRAMES,
            codec="libx264",
            codec_options={"g": "10", "bf": "0", "sc_threshold": "0"},
            sound="aac",
        )

    @pytest.fixture
    def job(self, user, dataset, source, settings, monkeypatch):
        settings.UNIT_MAX_FRAMES = 15
        monkeypatch.setattr("datasets.media.seeking.SPACING_FRAMES", 5)
        facts = inspect_here(source, limits=media_limits())
        assert [index for index, _ in facts.seek_plan["points"]] == [10, 20, 30]
        add_media_file(
            dataset,
            name="a.mp4",
            content=source,
            media_type="video",
            frame_count=facts.frame_count,
            image_format="mp4",
            seek_plan=facts.seek_plan,
        )
        return submit(user)

    def stored(self, media_root):
        return sorted(path.name for path in (media_root / "results").rglob("*.mp4"))

    def test_every_range_is_looked_at_once_and_all_are_joined(self, job, source, media_root):
        whole = list(iter_frames(source))
        while job.state in Job.UNFINISHED:
            run(job, FakeDetector())
        kinds = WorkUnit.objects.filter(job=job).order_by("pk").values_list("kind", flat=True)
        assert list(kinds) == ["frames"] * 4 + ["finish"]
        assert (job.state, job.charged_hundredths) == ("Completed", 100 * self.FRAMES)
        found = FrameResult.objects.order_by("frame_index")
        assert list(found.values_list("frame_index", "time_seconds")) == [
            (frame.frame_index, frame.time_seconds) for frame in whole
        ]
        (file,) = files_of_job(job=job)
        assert self.stored(media_root) == [Path(file.annotated.name).name]
        annotated = Path(file.annotated.path)
        times = [frame.time_seconds for frame in iter_frames(annotated)]
        assert times == pytest.approx([frame.time_seconds for frame in whole], abs=1e-5)
        assert count_frames(annotated).has_audio

    def test_finish_that_breaks_off_can_be_done_again(self, job, media_root, monkeypatch):
        for _ in range(4):
            run(job, FakeDetector())
        segments = self.stored(media_root)
        assert len(segments) == 4

        def break_off(**arguments):
            raise RuntimeError("the machine is on fire")

        with monkeypatch.context() as patch:
            patch.setattr(services, "complete_unit", break_off)
            _, unit = run(job, FakeDetector())
        assert (unit.kind, unit.state, unit.tries) == ("finish", "pending", 1)
        assert self.stored(media_root) == segments
        run(job, FakeDetector())
        assert job.state == "Completed"
        assert len(self.stored(media_root)) == 1

    def test_last_attempt_at_a_finish_goes_without_the_sound(self, job, monkeypatch):
        for _ in range(4):
            run(job, FakeDetector())
        finish = WorkUnit.objects.get(job=job, kind="finish")
        for _ in range(2):
            services.claim_unit(unit_id=finish.pk, worker_name="w1")
            services.reclaim_units(worker_name="w1")
        run(job, FakeDetector())
        assert job.state == "Completed"
        annotated = count_frames(Path(JobFile.objects.get(job=job).annotated.path))
        assert (annotated.frame_count, annotated.has_audio) == (self.FRAMES, False)

    def test_range_of_a_stopping_worker_is_looked_at_again(self, job):
        run(job, FakeDetector())
        _, unit = run(job, FakeDetector(), should_stop=lambda: True)
        assert (unit.state, unit.tries) == ("pending", 0)
        while job.state in Job.UNFINISHED:
            run(job, FakeDetector())
        assert FrameResult.objects.count() == self.FRAMES

    def test_segments_of_an_aborted_job_are_swept_away(self, job, media_root):
        run(job, FakeDetector())
        services.abort_job(job_id=job.pk)
        assert len(self.stored(media_root)) == 1
        later = timezone.now() + timedelta(minutes=1)
        assert remove_orphaned_results(older_than=later) == 1
        assert self.stored(media_root) == []


@pytest.mark.django_db
def test_images_of_a_batch_are_drawn_each_in_its_format(user, dataset, tmp_path, media_root):
    for name, image_format in (("a.png", "PNG"), ("b.jpg", "JPEG"), ("c.webp", "WEBP")):
        write_image(tmp_path / name, image_format=image_format)
        add_media_file(
            dataset, name=name, content=tmp_path / name, image_format=image_format.lower()
        )
    job = submit(user)
    _, unit = run(job, FakeDetector())
    assert (unit.kind, job.state, job.charged_hundredths) == ("images", "Completed", 450)
    names = [file.annotated.name for file in files_of_job(job=job)]
    assert [Path(name).suffix for name in names] == [".png", ".jpg", ".webp"]
    assert WorkUnit.objects.count() == 1
