"""The life of a job: quoted, held, run unit by unit, settled once."""

from datetime import timedelta

import numpy as np
import pytest
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from accounts.models import Event
from billing.ledger import InsufficientTokensError, charge_upload
from billing.models import Hold, Price, Transfer
from billing.selectors import balance_hundredths, ledger_breaches
from datasets.models import Dataset, MediaFile
from datasets.services import delete_dataset
from inference import queue, services, submission
from inference.models import FrameResult, Job, JobFile, ModelVersion, UnitFile, WorkUnit
from inference.selectors import settlement_breaches
from inference.services import FileFault, LeaseLostError
from tests.factories import add_media_file, dataset_id_of, make_dataset, make_user

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def sent_hints(monkeypatch):
    """The units for which a hint was sent, instead of a broker."""
    sent: list[int] = []
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: sent.append(unit_id) or True)
    monkeypatch.setattr(queue, "is_crowded", lambda: False)
    return sent


def submit(user, *, images=0, videos=(), name="street"):
    """A job over so many images and videos of so many frames."""
    dataset = make_dataset(user, name)
    for number in range(images):
        add_media_file(dataset, name=f"{number}.jpg")
    for number, frame_count in enumerate(videos):
        add_media_file(dataset, name=f"{number}.mp4", media_type="video", frame_count=frame_count)
    return submission.submit_job(
        user=user,
        dataset_id=dataset_id_of(user, name),
        model_id="YOLO8",
        model_version="YOLO8s_FSR",
    )


@pytest.fixture(autouse=True)
def one_image_per_unit(settings):
    """Most of what is said of units needs no batch; TestSlices has them."""
    settings.UNIT_MAX_IMAGES = 1


def claim(job, position=0, worker="w1"):
    unit = WorkUnit.objects.filter(job=job, position=position, state="pending").first()
    return services.claim_unit(unit_id=unit.pk, worker_name=worker) if unit else None


def parts_of(held):
    return list(UnitFile.objects.filter(unit_id=held.unit_id).select_related("job_file"))


def store(held, *frame_indexes, done=None, part=0):
    """Store an empty frame result for each index."""
    part = parts_of(held)[part]
    frames = [
        FrameResult(
            job_id=held.job_id,
            media_file_id=part.job_file.media_file_id,
            frame_index=index,
            time_seconds=index / 10,
            class_ids=np.zeros(0, "<i2").tobytes(),
            confidences=b"",
            boxes_xyxy=b"",
        )
        for index in frame_indexes
    ]
    services.store_frames(claim=held, frames=frames, frames_done={part.pk: done or len(frames)})


def end(held, name="results/x.jpg"):
    """End a unit that ends its files."""
    files = {part.job_file_id: f"{name}" for part in parts_of(held)}
    services.complete_unit(claim=held, annotated=files)


def complete(job, position=0, frames=1):
    held = claim(job, position)
    store(held, *range(frames))
    end(held)


def fail(held, code, detail):
    services.fail_unit(claim=held, fault=FileFault(code, detail))


def kinds(user):
    return list(Event.objects.filter(user=user).order_by("seq").values_list("kind", flat=True))


def unit_states(job):
    return list(WorkUnit.objects.filter(job=job).values_list("state", flat=True))


def file_states(job):
    return list(JobFile.objects.filter(job=job).values_list("state", flat=True))


def assert_sound():
    assert ledger_breaches() == []
    assert settlement_breaches() == []


def test_submission_quotes_holds_and_makes_a_unit_per_file(user):
    job = submit(user, images=2, videos=[10])
    assert (job.state, job.frame_count) == ("Pending", 12)
    assert job.quoted_hundredths == 2 * 150 + 10 * 100
    assert balance_hundredths(user=user) == 100_000 - 1_300
    assert Hold.objects.get().amount_hundredths == 1_300
    assert unit_states(job) == ["pending"] * 3
    assert kinds(user) == ["job.submitted"]
    assert_sound()


def test_submission_beyond_the_balance_leaves_nothing_behind(user):
    charge_upload(user=user, amount_hundredths=99_900, upload_id=1)
    with pytest.raises(InsufficientTokensError) as refusal:
        submit(user, images=1)
    assert refusal.value.members == {"needed_tokens": 1.5, "balance_tokens": 1.0}
    assert not Job.objects.exists()
    assert not WorkUnit.objects.exists()
    assert not Hold.objects.exists()
    assert kinds(user) == []


def test_files_added_after_submission_are_not_in_the_job(user):
    job = submit(user, images=1)
    add_media_file(Dataset.objects.get(), name="late.jpg")
    assert JobFile.objects.filter(job=job).count() == 1
    assert WorkUnit.objects.filter(job=job).count() == 1


def test_only_the_first_units_of_a_huge_job_are_in_the_queue(
    user, sent_hints, django_capture_on_commit_callbacks
):
    with django_capture_on_commit_callbacks(execute=True):
        job = submit(user, images=9)
    first = list(WorkUnit.objects.filter(job=job).values_list("pk", flat=True)[:4])
    assert sent_hints == first

    with django_capture_on_commit_callbacks(execute=True):
        complete(job, position=0)
    assert sent_hints == [*first, first[-1] + 1]


def test_claimed_unit_is_claimed_once_and_starts_the_job(user):
    job = submit(user, images=2)
    assert claim(job).attempt == 1
    assert claim(job, worker="w2") is None
    job.refresh_from_db()
    assert job.state == "Running"
    claim(job, position=1)
    assert kinds(user) == ["job.submitted", "job.started"]


def test_last_unit_settles_the_job(user):
    job = submit(user, images=1, videos=[3])
    complete(job, 0)
    job.refresh_from_db()
    assert (job.state, job.charged_hundredths) == ("Running", None)
    complete(job, 1, frames=3)
    job.refresh_from_db()
    assert (job.state, job.charged_hundredths) == ("Completed", 450)
    assert balance_hundredths(user=user) == 100_000 - 450
    assert kinds(user) == ["job.submitted", "job.started", "job.completed"]
    assert_sound()


def test_failed_file_costs_nothing_and_leaves_the_others(user):
    job = submit(user, images=1, videos=[3])
    complete(job, 0)
    held = claim(job, 1)
    store(held, 0, 1)
    fail(held, "corrupt_file", "The video is damaged.")
    job.refresh_from_db()
    assert (job.state, job.charged_hundredths) == ("Completed", 150)
    assert FrameResult.objects.filter(job=job).count() == 1
    assert balance_hundredths(user=user) == 100_000 - 150
    assert_sound()


def test_failed_job_returns_the_whole_hold(user):
    job = submit(user, images=1)
    fail(claim(job), "corrupt_file", "No picture.")
    job.refresh_from_db()
    assert (job.state, job.charged_hundredths, job.error) == ("Failed", 0, "No picture.")
    assert balance_hundredths(user=user) == 100_000
    assert not Transfer.objects.filter(kind="capture").exists()
    assert kinds(user)[-1] == "job.failed"
    assert_sound()


def test_expired_lease_gives_the_unit_to_another_worker_and_fences_the_first(user):
    job = submit(user, videos=[3])
    first = claim(job)
    store(first, 0)
    assert services.sweep(now=timezone.now() + timedelta(seconds=3600)) >= 1
    second = claim(job, worker="w2")
    assert second.attempt == 2
    with pytest.raises(LeaseLostError):
        store(first, 1, 2, done=3)
    with pytest.raises(LeaseLostError):
        end(first)
    store(second, 0, 1, 2)
    end(second)
    job.refresh_from_db()
    assert (job.state, job.charged_hundredths) == ("Completed", 300)
    assert list(FrameResult.objects.values_list("frame_index", flat=True)) == [0, 1, 2]
    assert_sound()


def test_living_lease_is_left_alone_by_the_sweeper(user):
    job = submit(user, images=1)
    claim(job)
    services.sweep()
    assert unit_states(job) == ["running"]


@pytest.mark.parametrize("hours", [-2, 2])
def test_host_whose_clock_is_wrong_takes_no_unit_from_another_and_loses_none(
    user, monkeypatch, hours
):
    right, wrong = timezone.now(), timezone.now() + timedelta(hours=hours)
    job = submit(user, images=2)
    claim(job, 0, worker="right")
    monkeypatch.setattr(timezone, "now", lambda: wrong)
    claim(job, 1, worker="wrong")
    services.sweep()
    assert unit_states(job) == ["running", "running"]
    monkeypatch.setattr(timezone, "now", lambda: right)
    services.sweep()
    assert unit_states(job) == ["running", "running"]


def test_unit_that_kills_three_workers_fails(user):
    job = submit(user, images=1)
    for _ in range(3):
        assert claim(job) is not None
        services.reclaim_units(worker_name="w1")
    job.refresh_from_db()
    assert job.state == "Failed"
    assert job.error == "The file could not be processed in 3 attempts."
    assert claim(job) is None
    assert balance_hundredths(user=user) == 100_000
    assert_sound()


def test_unit_handed_back_by_a_stopping_worker_keeps_its_tries(user):
    job = submit(user, images=1)
    for _ in range(5):
        services.hand_back_unit(claim=claim(job), counts_as_try=False)
    unit = WorkUnit.objects.get(job=job)
    assert (unit.state, unit.tries, unit.attempt) == ("pending", 0, 5)


def test_worker_takes_back_only_its_own_units(user):
    job = submit(user, images=2)
    claim(job, 0, worker="w1")
    claim(job, 1, worker="w2")
    assert services.reclaim_units(worker_name="w1") == 1
    assert unit_states(job) == ["pending", "running"]


def test_lost_hint_is_repeated_and_a_fresh_one_is_not(user, sent_hints):
    submit(user, images=1)
    services.enqueue_units()
    services.sweep()
    assert len(sent_hints) == 1
    services.sweep(now=timezone.now() + timedelta(seconds=30))
    assert len(sent_hints) == 2


def test_hint_of_a_clock_that_was_ahead_is_repeated(user, sent_hints):
    submit(user, images=1)
    WorkUnit.objects.update(enqueued_at=timezone.now() + timedelta(hours=1))
    assert services.sweep() == 1
    assert len(sent_hints) == 1


@pytest.mark.parametrize("jobs", [1, 5])
def test_sweeper_asks_once_for_what_to_hint_however_many_jobs_there_are(sent_hints, jobs):
    for _ in range(jobs):
        submit(make_user(), images=2)
    services.enqueue_units()
    sent_hints.clear()
    with CaptureQueriesContext(connection) as queries:
        assert services.enqueue_units() == 0
    assert len(queries) == 2  # what time it is, and what waits
    assert sent_hints == []


def test_no_hint_is_repeated_while_the_queue_is_crowded(user, sent_hints, monkeypatch):
    submit(user, images=1)
    monkeypatch.setattr(queue, "is_crowded", lambda: True)
    assert services.sweep() == 0
    assert sent_hints == []


def test_hint_that_the_broker_refuses_is_sent_by_the_next_sweep(user, sent_hints, monkeypatch):
    refused: list[int] = []
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: bool(refused.append(unit_id)))
    job = submit(user, images=2)
    units = list(WorkUnit.objects.filter(job=job).values_list("pk", flat=True))
    assert services.enqueue_units() == 0
    assert refused == units[:1]  # who is away is not asked again at once
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: sent_hints.append(unit_id) or True)
    assert services.sweep() == 2
    assert sent_hints == units


def test_aborted_job_charges_the_frames_that_are_done_and_keeps_them(user):
    job = submit(user, videos=[10])
    held = claim(job)
    store(held, 0, 1, 2, 3)
    services.abort_job(job_id=job.pk, reason="enough")
    job.refresh_from_db()
    assert (job.state, job.charged_hundredths) == ("Aborted", 400)
    assert balance_hundredths(user=user) == 100_000 - 400
    assert FrameResult.objects.filter(job=job).count() == 4
    with pytest.raises(LeaseLostError):
        store(held, 4, done=5)
    assert FrameResult.objects.filter(job=job).count() == 4
    with pytest.raises(services.JobFinishedError):
        services.abort_job(job_id=job.pk)
    assert kinds(user)[-1] == "job.aborted"
    assert_sound()


def test_aborted_job_leaves_other_jobs_as_they_were(user):
    other, job = submit(user, images=1), submit(user, images=1, name="bridge")
    services.abort_job(job_id=job.pk)
    assert (unit_states(job), file_states(job)) == (["aborted"], ["aborted"])
    assert (unit_states(other), file_states(other)) == (["pending"], ["pending"])
    complete(other)
    other.refresh_from_db()
    assert (other.state, other.charged_hundredths, file_states(other)) == (
        "Completed",
        150,
        ["completed"],
    )
    assert_sound()


def test_blocked_dataset_aborts_pending_jobs_and_lets_running_ones_finish(user):
    admin = make_user(staff=True)
    pending = submit(user, images=1)
    dataset = Dataset.objects.get()
    running = submission.submit_job(
        user=user, dataset_id=dataset_id_of(user), model_id="YOLO8", model_version="YOLO8s_FSR"
    )
    claim(running)
    services.block_dataset_and_abort_pending_jobs(dataset=dataset, actor=admin, reason="faces")
    pending.refresh_from_db()
    running.refresh_from_db()
    assert (pending.state, pending.charged_hundredths) == ("Aborted", 0)
    assert pending.error == "The dataset was blocked: faces"
    assert running.state == "Running"
    with pytest.raises(Exception, match="blocked: faces"):
        submission.submit_job(
            user=user, dataset_id=dataset_id_of(user), model_id="YOLO8", model_version="YOLO8s_FSR"
        )
    assert_sound()


def test_block_locks_the_money_of_a_user_before_their_event_stream(user):
    """As who submits a job does, or each of the two would wait for the other."""
    free = Price.objects.create(
        upload_image_hundredths=0,
        upload_frame_hundredths=0,
        inference_image_hundredths=0,
        inference_frame_hundredths=0,
    )
    submit(user, images=1)
    free.delete()
    keys = {"dataset_id": dataset_id_of(user), "model_id": "YOLO8"}
    submission.submit_job(user=user, model_version="YOLO8s_FSR", **keys)
    with CaptureQueriesContext(connection) as queries:
        services.block_dataset_and_abort_pending_jobs(
            dataset=Dataset.objects.get(), actor=make_user(staff=True), reason="faces"
        )
    asked = [query["sql"] for query in queries.captured_queries]
    money = [n for n, sql in enumerate(asked) if "billing_account" in sql and "FOR NO KEY" in sql]
    stream = [n for n, sql in enumerate(asked) if 'UPDATE "accounts_eventstream"' in sql]
    assert money[0] < stream[0]
    assert set(Job.objects.values_list("state", flat=True)) == {"Aborted"}
    assert_sound()


def test_job_of_a_deleted_dataset_runs_on(user):
    job = submit(user, images=1)
    delete_dataset(user=user, dataset_id=dataset_id_of(user))
    complete(job)
    job.refresh_from_db()
    assert job.state == "Completed"


def test_same_frames_written_twice_stay_one_row_each(user):
    job = submit(user, videos=[2])
    held = claim(job)
    store(held, 0, 1)
    store(held, 0, 1)
    assert FrameResult.objects.filter(job=job).count() == 2


def test_check_ledger_finds_a_job_whose_money_does_not_fit(user, capsys):
    job = submit(user, images=1)
    complete(job)
    call_command("check_ledger")
    Job.objects.filter(pk=job.pk).update(charged_hundredths=0)
    with pytest.raises(Exception, match="1 invariants are broken"):
        call_command("check_ledger")


def test_check_ledger_finds_a_hold_whose_job_is_gone(user):
    """Its tokens would be held for ever: nobody is left to settle it."""
    submit(user, images=1)
    for model in (UnitFile, WorkUnit, JobFile, Job):
        model.objects.all().delete()
    (breach,) = settlement_breaches()
    assert breach.rows == [(None, None, "open", None, 0, Hold.objects.get().idempotency_key)]
    with pytest.raises(Exception, match="1 invariants are broken"):
        call_command("check_ledger")


def test_check_ledger_finds_a_job_that_somebody_else_pays(user):
    job = submit(user, images=1)
    complete(job)
    Job.objects.filter(pk=job.pk).update(user=make_user())
    with pytest.raises(Exception, match="1 invariants are broken"):
        call_command("check_ledger")


class TestSlices:
    """A unit is a batch of images, or a range of a video; what fails, fails by files."""

    @pytest.fixture(autouse=True)
    def small_units(self, settings):
        settings.UNIT_MAX_IMAGES = 2
        settings.UNIT_MAX_FRAMES = 10

    def submit(self, user, *, images=0, videos=(), size_wh=(640, 480), **options):
        """Videos can be decoded from every fifth frame."""
        dataset = make_dataset(user)
        for number in range(images):
            add_media_file(dataset, name=f"{number}.jpg")
        for number, frame_count in enumerate(videos):
            plan = {"first_pts": 0, "points": [[i, i] for i in range(5, frame_count, 5)]}
            add_media_file(
                dataset,
                name=f"{number}.mp4",
                media_type="video",
                frame_count=frame_count,
                seek_plan=plan,
            )
        MediaFile.objects.filter(dataset=dataset).update(width=size_wh[0], height=size_wh[1])
        return submission.submit_job(
            user=user,
            dataset_id=dataset_id_of(user),
            model_id="YOLO8",
            model_version="YOLO8s_FSR",
            options=options,
        )

    def claim_next(self, job):
        unit = WorkUnit.objects.filter(job=job, state="pending").order_by("position", "pk").first()
        return services.claim_unit(unit_id=unit.pk, worker_name="w1")

    def do_range(self, job):
        """Look at all frames of the next range."""
        held = self.claim_next(job)
        (part,) = parts_of(held)
        store(held, *range(part.first_frame_index, part.end_frame_index))
        services.complete_range(claim=held, segment=f"results/{part.pk}.mp4")
        return part

    def test_images_share_units_and_videos_are_cut(self, user):
        job = self.submit(user, images=3, videos=[23])
        units = WorkUnit.objects.filter(job=job).order_by("position", "pk")
        assert [
            (
                unit.kind,
                [
                    (part.job_file.position, part.first_frame_index, part.end_frame_index)
                    for part in unit.parts.all()
                ],
            )
            for unit in units
        ] == [
            ("images", [(0, 0, 1), (1, 0, 1)]),
            ("images", [(2, 0, 1)]),
            ("frames", [(3, 0, 10)]),
            ("frames", [(3, 10, 20)]),
            ("frames", [(3, 20, 23)]),
        ]
        assert (job.frame_count, job.quoted_hundredths) == (26, 3 * 150 + 23 * 100)

    def test_tiles_make_units_smaller_so_that_others_have_their_turn(self, user, settings):
        settings.UNIT_MAX_IMAGES = 16
        settings.UNIT_MAX_FRAMES = 20
        seven_parts = {"tiling": {"tile": 768}, "size_wh": (1920, 1080)}
        job = self.submit(user, images=5, videos=[30], **seven_parts)
        units = WorkUnit.objects.filter(job=job).order_by("position", "pk")
        sizes = [(unit.kind, sum(part.frame_count for part in unit.parts.all())) for unit in units]
        assert sizes == [("images", 2), ("images", 2), ("images", 1)] + [("frames", 5)] * 6
        assert job.quoted_hundredths == 5 * 150 + 30 * 100

    @pytest.mark.parametrize(("fixed_size", "images"), [(None, [5]), (768, [2, 2, 1])])
    def test_unit_of_a_fixed_input_counts_what_it_is_padded_to(
        self, user, settings, fixed_size, images
    ):
        settings.UNIT_MAX_IMAGES = 16
        settings.UNIT_MAX_FRAMES = 20
        seven_parts = {"tiling": {"tile": 768}, "size_wh": (1920, 1080), "image_size": 384}
        ModelVersion.objects.filter(version="YOLO8s_FSR").update(image_size=fixed_size)
        job = self.submit(user, images=5, **seven_parts)
        units = WorkUnit.objects.filter(job=job).order_by("position", "pk")
        assert [unit.parts.count() for unit in units] == images

    def test_picture_of_more_tiles_than_a_unit_has_is_a_unit_of_its_own(self, user, settings):
        settings.UNIT_MAX_IMAGES = 16
        settings.UNIT_MAX_FRAMES = 6
        job = self.submit(user, images=3, tiling="auto", size_wh=(1920, 1080))
        assert [unit.parts.count() for unit in WorkUnit.objects.filter(job=job)] == [1, 1, 1]

    def test_bad_image_of_a_batch_fails_alone(self, user):
        job = self.submit(user, images=2)
        held = self.claim_next(job)
        bad, good = parts_of(held)
        store(held, 0, part=1)
        services.complete_unit(
            claim=held,
            annotated={good.job_file_id: "results/1.jpg"},
            faults={bad.job_file_id: FileFault("corrupt_file", "No picture.")},
        )
        job.refresh_from_db()
        assert (job.state, job.charged_hundredths) == ("Completed", 150)
        assert file_states(job) == ["failed", "completed"]
        assert JobFile.objects.get(pk=bad.job_file_id).error == "No picture."
        assert_sound()

    def test_batch_that_kills_its_worker_is_split_so_that_one_image_fails_alone(self, user):
        job = self.submit(user, images=2)
        first = self.claim_next(job)
        store(first, 0)
        services.reclaim_units(worker_name="w1")
        assert unit_states(job) == ["pending", "pending"]
        for _ in range(2):  # the one at fault kills its worker again and again
            self.claim_next(job)
            assert not FrameResult.objects.filter(job=job).exists()
            services.reclaim_units(worker_name="w1")
        assert file_states(job) == ["failed", "running"]
        held = self.claim_next(job)
        store(held, 0)
        end(held)
        job.refresh_from_db()
        assert (job.state, job.charged_hundredths) == ("Completed", 150)
        assert file_states(job) == ["failed", "completed"]
        assert FrameResult.objects.filter(job=job).count() == 1
        assert_sound()

    def test_stopping_worker_hands_back_a_batch_as_it_was(self, user):
        job = self.submit(user, images=2)
        services.hand_back_unit(claim=self.claim_next(job), counts_as_try=False)
        assert WorkUnit.objects.filter(job=job).count() == 1

    def test_last_range_queues_the_finish_which_ends_the_file(self, user):
        job = self.submit(user, videos=[23])
        parts = [self.do_range(job) for _ in range(2)]
        assert not WorkUnit.objects.filter(job=job, kind="finish").exists()
        parts.append(self.do_range(job))
        job.refresh_from_db()
        assert (job.state, file_states(job)) == ("Running", ["running"])
        assert [part.first_frame_index for part in parts] == [0, 10, 20]
        held = self.claim_next(job)
        assert WorkUnit.objects.get(pk=held.unit_id).kind == "finish"
        end(held, "results/whole.mp4")
        job.refresh_from_db()
        assert (job.state, job.charged_hundredths) == ("Completed", 2_300)
        assert JobFile.objects.get(job=job).annotated.name == "results/whole.mp4"
        assert FrameResult.objects.filter(job=job).count() == 23
        assert_sound()

    def test_second_attempt_at_a_range_takes_back_its_own_frames_only(self, user):
        job = self.submit(user, videos=[20])
        self.do_range(job)
        held = self.claim_next(job)
        store(held, 10, 11, 12)
        services.reclaim_units(worker_name="w1")
        self.claim_next(job)
        found = FrameResult.objects.filter(job=job).order_by("frame_index")
        assert list(found.values_list("frame_index", flat=True)) == list(range(10))
        services.abort_job(job_id=job.pk)
        job.refresh_from_db()
        assert job.charged_hundredths == 1_000
        assert_sound()

    def test_second_attempt_at_the_first_range_leaves_the_frames_of_the_next_one(self, user):
        job = self.submit(user, videos=[20])
        first, second = self.claim_next(job), self.claim_next(job)
        store(first, 0, 1, 2)
        store(second, *range(10, 20))
        services.complete_range(claim=second, segment="results/2.mp4")
        services.hand_back_unit(claim=first, counts_as_try=False)
        self.claim_next(job)
        found = FrameResult.objects.filter(job=job).order_by("frame_index")
        assert list(found.values_list("frame_index", flat=True)) == list(range(10, 20))
        services.abort_job(job_id=job.pk)
        job.refresh_from_db()
        assert job.charged_hundredths == 1_000
        assert_sound()

    def test_range_that_fails_fails_its_video_and_fences_the_others(self, user):
        job = self.submit(user, images=1, videos=[20])
        complete(job, 0)
        first, second = self.claim_next(job), self.claim_next(job)
        store(first, 0, 1, 2)
        store(second, 10, 11)
        fail(second, "corrupt_file", "The video is damaged.")
        job.refresh_from_db()
        assert (job.state, job.charged_hundredths) == ("Completed", 150)
        assert file_states(job) == ["completed", "failed"]
        with pytest.raises(LeaseLostError):
            store(first, 3, done=4)
        with pytest.raises(LeaseLostError):
            services.complete_range(claim=first, segment="x")
        assert FrameResult.objects.filter(job=job).count() == 1
        assert_sound()

    def test_finish_that_kills_three_workers_fails_the_video(self, user):
        job = self.submit(user, videos=[20])
        self.do_range(job)
        self.do_range(job)
        for _ in range(3):
            self.claim_next(job)
            services.reclaim_units(worker_name="w1")
        job.refresh_from_db()
        assert (job.state, job.charged_hundredths) == ("Failed", 0)
        assert not FrameResult.objects.filter(job=job).exists()
        assert balance_hundredths(user=user) == 100_000
        assert_sound()

    def test_abort_while_a_video_waits_for_its_finish_charges_its_frames(self, user):
        job = self.submit(user, videos=[20])
        self.do_range(job)
        self.do_range(job)
        services.abort_job(job_id=job.pk)
        job.refresh_from_db()
        assert (job.state, job.charged_hundredths) == ("Aborted", 2_000)
        assert file_states(job) == ["aborted"]
        assert unit_states(job) == ["completed", "completed", "aborted"]
        assert_sound()
