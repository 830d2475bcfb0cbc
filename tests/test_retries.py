"""Another try: a new job on the files that failed in one, or were not finished in it."""

import pytest
from django.utils import timezone

from accounts.models import Event
from billing.ledger import charge_upload
from billing.models import Hold, Price
from billing.selectors import balance_hundredths, ledger_breaches
from datasets.models import Dataset, MediaFile
from datasets.selectors import DatasetNotFoundError
from datasets.services import delete_dataset, delete_media_file
from inference import services, submission
from inference.models import Job, ModelVersion, WorkUnit
from inference.selectors import settlement_breaches
from inference.services import FileFault
from tests.clients import client_of
from tests.factories import add_media_file, make_dataset, make_user
from tests.threads import in_threads

pytestmark = pytest.mark.usefixtures("no_broker")


@pytest.fixture(autouse=True)
def one_image_per_unit(settings):
    settings.UNIT_MAX_IMAGES = 1


@pytest.fixture
def dataset(user):
    """Two pictures and a video of ten frames: 1.5 + 1.5 + 10 tokens."""
    made = make_dataset(user)
    for name in ("a.jpg", "b.jpg"):
        add_media_file(made, name=name)
    add_media_file(made, name="c.mp4", media_type="video", frame_count=10)
    return made


def submit(dataset, **terms):
    return submission.submit_job(
        user=dataset.user,
        dataset_id=dataset.pk,
        model_id="YOLO8",
        model_version="YOLO8s_FSR",
        **terms,
    )


def end_file(job, position, fault=None):
    """End the file of this position, without a frame: only who pays for what is a subject here."""
    unit = WorkUnit.objects.get(job=job, position=position)
    held = services.claim_unit(unit_id=unit.pk, worker_name="w1")
    if fault is not None:
        services.fail_unit(claim=held, fault=fault)
        return
    for part in unit.parts.all():
        services.store_frames(claim=held, frames=[], frames_done={part.pk: part.frame_count})
        services.complete_unit(claim=held, annotated={part.job_file_id: "results/x.jpg"})


def ended_job(dataset, *, failed=(1, 2), **terms):
    """A job that has ended, in which the files of these positions have failed."""
    job = submit(dataset, **terms)
    for position in range(job.files.count()):
        end_file(job, position, FileFault("broken", "No.") if position in failed else None)
    job.refresh_from_db()
    return job


def path_of(job):
    return f"/api/v1/jobs/{job.pk}/retry/"


def retry(user, job, *, key=None, **keys):
    headers = {} if key is None else {"Idempotency-Key": key}
    return client_of(user).post(path_of(job), keys, format="json", headers=headers)


def names_in(job):
    return [file.media_file.name for file in job.files.all()]


def assert_sound():
    assert ledger_breaches() + settlement_breaches() == []


@pytest.mark.django_db
class TestNewJob:
    """What it looks at, and what it costs."""

    def test_files_that_failed_are_tried_again_at_their_own_price(self, user, dataset):
        job = ended_job(dataset)
        assert (job.state, job.charged_hundredths) == ("Completed", 150)
        answer = retry(user, job)
        again = Job.objects.latest("pk")
        assert (answer.status_code, answer["Location"]) == (202, f"/api/v1/jobs/{again.pk}/")
        told = answer.json()
        assert (told["id"], told["rerun_of_id"], told["state"]) == (again.pk, job.pk, "Pending")
        assert (told["quoted_tokens"], told["frame_count"]) == (11.5, 11)
        assert [file["filename"] for file in told["files"]] == ["b.jpg", "c.mp4"]
        assert balance_hundredths(user=user) == 100_000 - 150 - 1_150
        assert Event.objects.filter(user=user).latest("seq").kind == "job.submitted"

        end_file(again, 0)
        end_file(again, 1)
        again.refresh_from_db()
        assert (again.state, again.charged_hundredths) == ("Completed", 1_150)
        assert balance_hundredths(user=user) == 100_000 - 150 - 1_150
        assert client_of(user).get(f"/api/v1/jobs/{job.pk}/").json()["rerun_of_id"] is None
        assert_sound()

    def test_files_that_an_abort_left_unfinished_are_tried_again(self, user, dataset):
        job = submit(dataset)
        end_file(job, 0)
        end_file(job, 1, FileFault("broken", "No."))
        services.abort_job(job_id=job.pk)
        assert retry(user, job).status_code == 202
        assert names_in(Job.objects.latest("pk")) == ["b.jpg", "c.mp4"]
        assert_sound()

    def test_failed_job_is_tried_again_as_a_whole(self, user, dataset):
        job = ended_job(dataset, failed=(0, 1, 2))
        assert job.state == "Failed"
        assert retry(user, job).status_code == 202
        assert names_in(Job.objects.latest("pk")) == ["a.jpg", "b.jpg", "c.mp4"]

    def test_version_and_options_are_those_of_the_first(self, user, dataset):
        job = ended_job(dataset, options={"frame_stride": 3, "confidence_floor": 0.2})
        told = retry(user, job).json()
        again = Job.objects.latest("pk")
        assert again.options == job.options
        assert (again.model_version, again.weights_sha256) == (
            job.model_version,
            job.weights_sha256,
        )
        assert told["quoted_tokens"] == 1.5 + 4

    def test_prices_are_those_of_now(self, user, dataset):
        job = ended_job(dataset)
        Price.objects.create(
            upload_image_hundredths=0,
            upload_frame_hundredths=0,
            inference_image_hundredths=201,
            inference_frame_hundredths=99,
        )
        assert client_of(user).get(path_of(job)).json()["quoted_tokens"] == 11.91
        assert retry(user, job).json()["quoted_tokens"] == 11.91
        assert balance_hundredths(user=user) == 100_000 - 150 - 1_191

    def test_files_deleted_or_added_since_are_left_out(self, user, dataset):
        job = ended_job(dataset)
        delete_media_file(user=user, media_file_id=MediaFile.objects.get(name="b.jpg").pk)
        add_media_file(dataset, name="later.jpg")
        assert retry(user, job).status_code == 202
        assert names_in(Job.objects.latest("pk")) == ["c.mp4"]

    def test_retry_can_be_tried_again(self, user, dataset):
        job = ended_job(dataset)
        retry(user, job)
        again = Job.objects.latest("pk")
        end_file(again, 0)
        services.abort_job(job_id=again.pk)
        assert retry(user, again).json()["rerun_of_id"] == again.pk
        assert names_in(Job.objects.latest("pk")) == ["c.mp4"]
        assert_sound()

    def test_what_was_done_since_is_not_paid_again(self, user, dataset):
        job = ended_job(dataset)
        retry(user, job)
        second = Job.objects.latest("pk")
        end_file(second, 0)
        end_file(second, 1, FileFault("broken", "No."))
        assert client_of(user).get(path_of(job)).json()["quoted_tokens"] == 10
        assert retry(user, job).status_code == 202
        third = Job.objects.latest("pk")
        assert names_in(third) == ["c.mp4"]
        end_file(third, 0)
        for one in (job, second):
            for answer in (client_of(user).get(path_of(one)), retry(user, one)):
                assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_retry")
        assert balance_hundredths(user=user) == 100_000 - 150 - 150 - 1_000
        assert_sound()

    def test_what_was_done_with_other_options_or_before_is_tried_again(self, user, dataset):
        ended_job(dataset, failed=())
        job = ended_job(dataset)
        ended_job(dataset, failed=(), options={"confidence_floor": 0.2})
        assert retry(user, job).status_code == 202
        assert names_in(Job.objects.latest("pk")) == ["b.jpg", "c.mp4"]

    def test_what_another_try_has_done_is_not_tried_and_paid_a_second_time(self, user, dataset):
        job = ended_job(dataset)
        retry(user, job)
        again = Job.objects.latest("pk")
        end_file(again, 0)
        end_file(again, 1, FileFault("broken", "No."))
        assert retry(user, job).status_code == 202
        last = Job.objects.latest("pk")
        assert names_in(last) == ["c.mp4"]
        assert retry(user, again).json()["code"] == "nothing_to_retry"  # the last one is at it
        end_file(last, 0)
        for one in (job, again):
            answer = retry(user, one)
            assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_retry")
        assert balance_hundredths(user=user) == 100_000 - 150 - 150 - 1_000
        assert_sound()

    def test_file_that_fails_when_all_is_run_again_may_be_tried_again(self, user, dataset):
        again = submission.rerun_job(job_id=ended_job(dataset).pk)
        for position in range(3):
            end_file(again, position, FileFault("broken", "No.") if position == 0 else None)
        assert retry(user, again).status_code == 202
        assert names_in(Job.objects.latest("pk")) == ["a.jpg"]

    def test_deadline_is_its_own(self, user, dataset):
        job = ended_job(dataset, deadline_seconds=600)
        first = retry(user, job).json()
        assert first["deadline_at"] is None
        services.abort_job(job_id=first["id"])
        assert retry(user, job, deadline_seconds=600).json()["deadline_at"] is not None


@pytest.mark.django_db
class TestQuote:
    """What it would cost, before it is started."""

    def test_quote_tells_price_and_files_and_changes_nothing(self, user, dataset):
        job = ended_job(dataset)
        balance = balance_hundredths(user=user)
        answer = client_of(user).get(path_of(job))
        assert answer.status_code == 200
        b, c = MediaFile.objects.filter(name__in=("b.jpg", "c.mp4")).order_by("pk")
        assert answer.json() == {
            "image_count": 1,
            "frame_count": 10,
            "quoted_tokens": 11.5,
            "available_tokens": 998.5,
            "is_covered": True,
            "options": job.options,
            "file_count": 2,
            "files": [
                {"media_file_id": b.pk, "filename": "b.jpg", "type": "image", "frame_count": 1},
                {"media_file_id": c.pk, "filename": "c.mp4", "type": "video", "frame_count": 10},
            ],
        }
        assert Job.objects.count() == Hold.objects.count() == 1
        assert balance_hundredths(user=user) == balance

    def test_price_beyond_the_balance_is_told(self, user, dataset):
        job = ended_job(dataset)
        charge_upload(user=user, amount_hundredths=99_850 - 1_149, upload_id=1)
        told = client_of(user).get(path_of(job)).json()
        assert (told["available_tokens"], told["is_covered"]) == (11.49, False)


def charge_all(user, dataset):
    charge_upload(user=user, amount_hundredths=99_850 - 1_149, upload_id=1)


def block(user, dataset):
    services.block_dataset_and_abort_pending_jobs(
        dataset=dataset, actor=make_user(staff=True), reason="plates"
    )


def delete(user, dataset):
    delete_dataset(user=user, dataset_id=dataset.pk)


def delete_files(user, dataset):
    MediaFile.objects.exclude(name="a.jpg").update(deleted_at=timezone.now())


def retire(user, dataset):
    ModelVersion.objects.update(state="retired")


def fill_quota(user, dataset):
    submit(dataset, options={"confidence_floor": 0.2})


@pytest.mark.django_db
class TestRefusal:
    """What may stand against it; it then leaves nothing behind."""

    @pytest.mark.parametrize(
        ("hinder", "refusal"),
        [
            (charge_all, (402, "insufficient_tokens")),
            (block, (403, "dataset_blocked")),
            (delete, (404, "dataset_not_found")),
            (delete_files, (409, "nothing_to_retry")),
            (retire, (400, "unknown_model")),
            (fill_quota, (409, "job_quota_exceeded")),
        ],
    )
    def test_what_refuses_a_job_refuses_a_retry(self, user, dataset, settings, hinder, refusal):
        settings.MAX_UNFINISHED_JOBS_PER_USER = 1
        job = ended_job(dataset)
        hinder(user, dataset)
        jobs, balance = Job.objects.count(), balance_hundredths(user=user)
        answer = retry(user, job)
        assert (answer.status_code, answer.json()["code"]) == refusal
        quote = client_of(user).get(path_of(job))
        # A quote is told also to who cannot start the job now.
        assert quote.status_code == 200 or quote.json()["code"] == refusal[1]
        assert (quote.status_code == 200) == (hinder in {charge_all, fill_quota})
        assert (Job.objects.count(), balance_hundredths(user=user)) == (jobs, balance)

    def test_job_without_a_failed_file_has_nothing_to_try_again(self, user, dataset):
        job = ended_job(dataset, failed=())
        for answer in (client_of(user).get(path_of(job)), retry(user, job)):
            assert (answer.status_code, answer.json()["code"]) == (409, "nothing_to_retry")
        assert Job.objects.count() == 1

    def test_unfinished_job_is_not_tried_again(self, user, dataset):
        job = submit(dataset)
        end_file(job, 1, FileFault("broken", "No."))
        for answer in (client_of(user).get(path_of(job)), retry(user, job)):
            assert (answer.status_code, answer.json()["code"]) == (409, "job_unfinished")
        assert Job.objects.count() == 1

    def test_job_of_somebody_else_is_not_found(self, dataset):
        job = ended_job(dataset)
        for other in (make_user(), make_user(staff=True)):
            for answer in (client_of(other).get(path_of(job)), retry(other, job)):
                assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
        assert Job.objects.count() == 1

    def test_retry_that_costs_more_than_was_seen_is_not_started(self, user, dataset):
        job = ended_job(dataset)
        answer = retry(user, job, maximum_tokens="11.49")
        assert (answer.status_code, answer.json()["code"]) == (409, "quote_exceeded")
        assert Job.objects.count() == 1
        assert retry(user, job, maximum_tokens="11.5").status_code == 202

    @pytest.mark.parametrize(
        "keys",
        [{"maximum_tokens": -1}, {"deadline_seconds": 9}, {"options": {}}, {"dataset_id": 1}],
    )
    def test_what_is_wrong_in_it_is_named(self, user, dataset, keys):
        job = ended_job(dataset)
        answer = retry(user, job, **keys)
        assert answer.status_code == 400
        assert [error["field"] for error in answer.json()["errors"]] == list(keys)
        assert Job.objects.count() == 1

    def test_job_that_is_tried_again_already_is_not_a_second_time(self, user, dataset):
        job = ended_job(dataset)
        first = retry(user, job).json()
        answer = retry(user, job)
        assert (answer.status_code, answer.json()["code"]) == (409, "rerun_unfinished")
        assert f"Job {first['id']} is running job {job.pk} again" in answer.json()["detail"]
        assert client_of(user).get(path_of(job)).json()["code"] == "rerun_unfinished"
        with pytest.raises(submission.RerunUnfinishedError):
            submission.rerun_job(job_id=job.pk)
        assert Job.objects.count() == 2


@pytest.mark.django_db
def test_request_sent_again_under_its_key_starts_one_job(user, dataset):
    job, other = ended_job(dataset), ended_job(dataset, options={"confidence_floor": 0.2})
    first, again = retry(user, job, key="k"), retry(user, job, key="k")
    assert (again.status_code, again.json()) == (202, first.json())
    assert again["Location"] == first["Location"]
    assert again["Idempotency-Replayed"] == "true"
    answer = retry(user, job, key="k", maximum_tokens=50)
    assert (answer.status_code, answer.json()["code"]) == (422, "idempotency_key_reused")
    assert Job.objects.filter(rerun_of=job).count() == 1
    # A key belongs to its address.
    assert retry(user, other, key="k").json()["rerun_of_id"] == other.pk
    assert_sound()


@pytest.fixture
def failed_job(committed_db):
    """A job whose only file has failed, committed."""
    dataset = make_dataset(make_user())
    add_media_file(dataset)
    return ended_job(dataset, failed=(0,))


def test_two_at_once_start_one_job(failed_job):
    user, job = failed_job.user, failed_job
    outcomes = in_threads(4, lambda number: submission.retry_job(user=user, job_id=job.pk))
    started = [one for one in outcomes if isinstance(one, Job)]
    refused = [one for one in outcomes if isinstance(one, submission.RerunUnfinishedError)]
    assert (len(started), len(refused)) == (1, 3)
    assert Job.objects.filter(rerun_of=job).count() == 1
    assert balance_hundredths(user=user) == 100_000 - 150
    assert_sound()


def test_job_and_another_try_of_it_tried_again_at_once_start_one_job(failed_job):
    user, job = failed_job.user, failed_job
    again = submission.retry_job(user=user, job_id=job.pk)
    services.abort_job(job_id=again.pk)
    either = (job.pk, again.pk)
    outcomes = in_threads(
        4, lambda number: submission.retry_job(user=user, job_id=either[number % 2])
    )
    assert sum(isinstance(one, Job) for one in outcomes) == 1
    refusals = (submission.RerunUnfinishedError, submission.NothingToRetryError)
    assert sum(isinstance(one, refusals) for one in outcomes) == 3
    assert balance_hundredths(user=user) == 100_000 - 150
    assert_sound()


def test_retry_beside_the_deletion_of_its_dataset_starts_a_job_or_is_refused(failed_job):
    user, job = failed_job.user, failed_job

    def act(number):
        if number:
            return submission.retry_job(user=user, job_id=job.pk)
        return delete_dataset(user=user, dataset_id=job.dataset_id)

    deleted, outcome = in_threads(2, act)
    assert deleted is None
    assert isinstance(outcome, Job | DatasetNotFoundError)
    assert Dataset.objects.get().deleted_at is not None
    held = 150 * Job.objects.filter(rerun_of=job).count()
    assert balance_hundredths(user=user) == 100_000 - held
    assert_sound()
