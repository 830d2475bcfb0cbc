"""Media files are deleted by their owners, and their content leaves the storage some time later."""

from datetime import timedelta
from pathlib import Path

import pytest
from django.core.files.base import ContentFile
from django.core.files.storage import default_storage
from django.utils import timezone

from billing.selectors import balance_hundredths
from datasets.models import MediaFile
from datasets.selectors import MediaFileNotFoundError, live_datasets, stored_bytes
from datasets.services import delete_dataset, delete_media_file, flag_dataset, restore_dataset
from datasets.uploading import remove_orphaned_uploads
from inference import services, submission
from inference.cleaning import remove_deleted_content
from inference.models import Job, JobFile
from tests.clients import client_of
from tests.factories import add_media_file, make_dataset, make_user

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_broker")]

PICTURE = b"not decoded here"


def add_with_thumbnail(dataset, name):
    media_file = add_media_file(dataset, name=name, content=PICTURE)
    media_file.thumbnail = default_storage.save("thumbnails/test.jpg", ContentFile(b"small"))
    media_file.save()
    return media_file


def submit(user, dataset):
    return submission.submit_job(
        user=user, dataset_id=dataset.pk, model_id="YOLO8", model_version="YOLO8s_FSR"
    )


def in_a_minute():
    return timezone.now() + timedelta(minutes=1)


def stored_files(media_root: Path) -> list[str]:
    return sorted(path.parent.name for path in media_root.rglob("*") if path.is_file())


def test_deleted_file_is_in_no_list_and_no_price_any_more(user, dataset):
    kept = add_media_file(dataset, name="kept.jpg", content=PICTURE)
    video = add_media_file(dataset, name="a.mp4", media_type="video", frame_count=7)
    client = client_of(user)
    balance = balance_hundredths(user=user)

    assert client.delete(f"/api/v1/media-files/{video.pk}/").status_code == 204

    listed = client.get(f"/api/v1/datasets/{dataset.pk}/media-files/").json()["results"]
    assert [one["id"] for one in listed] == [kept.pk]
    about = client.get(f"/api/v1/datasets/{dataset.pk}/").json()
    assert (about["image_count"], about["frame_count"]) == (1, 0)
    assert about["inference_cost_tokens"] == 1.5
    assert [(one.image_count, one.frame_count) for one in live_datasets(user=user)] == [(1, 0)]
    body = {"dataset_id": dataset.pk, "model_version": "YOLO8s_FSR"}
    quote = client.post("/api/v1/quotes/", body, format="json").json()
    assert quote["quoted_tokens"] == 1.5
    assert [file.media_file for file in submit(user, dataset).files.all()] == [kept]
    assert balance_hundredths(user=user) == balance - 150
    for path in ("", "content/", "thumbnail/"):
        assert client.get(f"/api/v1/media-files/{video.pk}/{path}").status_code == 404


def test_report_of_its_upload_still_names_it_and_says_when_it_was_deleted(user, dataset):
    media_file = add_media_file(dataset)
    delete_media_file(user=user, media_file_id=media_file.pk)
    path = f"/api/v1/datasets/{dataset.pk}/uploads/{media_file.upload_id}/"
    [accepted] = client_of(user).get(path).json()["accepted"]
    assert accepted["name"] == "a.jpg"
    assert accepted["deleted_at"] is not None


def test_dataset_of_which_all_was_deleted_is_empty_to_a_job(user, dataset):
    delete_media_file(user=user, media_file_id=add_media_file(dataset).pk)
    balance = balance_hundredths(user=user)
    with pytest.raises(submission.EmptyDatasetError):
        submit(user, dataset)
    assert balance_hundredths(user=user) == balance


def test_file_is_deleted_once_and_by_its_owner_only(user, dataset):
    media_file = add_media_file(dataset)
    with pytest.raises(MediaFileNotFoundError):
        delete_media_file(user=make_user(), media_file_id=media_file.pk)
    assert MediaFile.objects.get().deleted_at is None
    delete_media_file(user=user, media_file_id=media_file.pk)
    with pytest.raises(MediaFileNotFoundError):
        delete_media_file(user=user, media_file_id=media_file.pk)


def test_job_that_is_run_again_looks_only_at_what_is_left(user, dataset):
    gone, kept = (add_media_file(dataset, name=name) for name in ("gone.jpg", "kept.jpg"))
    job = submit(user, dataset)
    services.abort_job(job_id=job.pk)
    delete_media_file(user=user, media_file_id=gone.pk)
    again = submission.rerun_job(job_id=job.pk)
    assert [file.media_file for file in again.files.all()] == [kept]
    assert balance_hundredths(user=user) == 100_000 - 150

    services.abort_job(job_id=again.pk)
    delete_media_file(user=user, media_file_id=kept.pk)
    with pytest.raises(submission.EmptyDatasetError):
        submission.rerun_job(job_id=job.pk)
    assert balance_hundredths(user=user) == 100_000
    assert not Job.objects.filter(state__in=Job.UNFINISHED).exists()


class TestContent:
    def test_it_is_removed_when_its_time_has_come_and_not_before(self, user, dataset, media_root):
        gone, kept = (add_with_thumbnail(dataset, name) for name in ("gone.jpg", "kept.jpg"))
        delete_media_file(user=user, media_file_id=gone.pk)
        assert stored_bytes(user=user) == 2 * len(PICTURE)

        assert remove_deleted_content(deleted_before=timezone.now() - timedelta(days=1)) == 0
        assert stored_files(media_root) == ["thumbnails"] * 2 + ["uploads"] * 2

        assert remove_deleted_content(deleted_before=in_a_minute()) == 1
        assert stored_files(media_root) == ["thumbnails", "uploads"]
        assert default_storage.exists(kept.content.name)
        assert stored_bytes(user=user) == len(PICTURE)
        gone.refresh_from_db()
        assert gone.removed_at is not None
        assert remove_deleted_content(deleted_before=in_a_minute()) == 0

    def test_that_of_a_deleted_dataset_goes_the_same_way(self, user, dataset, media_root):
        add_with_thumbnail(dataset, "a.jpg")
        delete_dataset(user=user, dataset_id=dataset.pk)
        assert remove_deleted_content(deleted_before=timezone.now() - timedelta(days=1)) == 0
        assert remove_deleted_content(deleted_before=in_a_minute()) == 1
        assert stored_files(media_root) == []

    def test_it_stays_for_a_job_that_has_not_ended(self, user, dataset, media_root):
        media_file = add_media_file(dataset, content=PICTURE)
        job = submit(user, dataset)
        delete_media_file(user=user, media_file_id=media_file.pk)
        assert remove_deleted_content(deleted_before=in_a_minute()) == 0
        assert stored_files(media_root) == ["uploads"]

        services.abort_job(job_id=job.pk)
        assert remove_deleted_content(deleted_before=in_a_minute()) == 1
        assert stored_files(media_root) == []
        assert JobFile.objects.get(job=job).media_file == media_file

    def test_it_stays_while_moderators_have_to_look_at_it(self, user, dataset, media_root):
        add_media_file(dataset, content=PICTURE)
        moderator = make_user(staff=True)
        flag_dataset(dataset=dataset, actor=moderator, reason="faces")
        delete_dataset(user=user, dataset_id=dataset.pk)
        assert remove_deleted_content(deleted_before=in_a_minute()) == 0
        restore_dataset(dataset=dataset, actor=moderator)
        assert remove_deleted_content(deleted_before=in_a_minute()) == 1
        assert stored_files(media_root) == []

    def test_it_stays_when_they_come_while_other_content_is_removed(
        self, user, dataset, media_root, monkeypatch
    ):
        add_media_file(dataset, content=PICTURE)
        other = make_dataset(user, "other")
        add_media_file(other, content=PICTURE)
        for one in (dataset, other):
            delete_dataset(user=user, dataset_id=one.pk)
        monkeypatch.setattr("inference.cleaning.FILES_AT_A_TIME", 1)
        storage = type(default_storage._wrapped)
        delete = storage.delete

        def delete_and_flag(self, name):
            delete(self, name)
            flag_dataset(dataset=other, actor=make_user(staff=True), reason="faces")

        monkeypatch.setattr(storage, "delete", delete_and_flag)
        assert remove_deleted_content(deleted_before=in_a_minute()) == 1
        assert stored_files(media_root) == ["uploads"]
        assert MediaFile.objects.get(removed_at__isnull=True).dataset == other

    def test_what_a_crash_left_of_it_is_an_orphan_and_goes(self, user, dataset, media_root):
        media_file = add_with_thumbnail(dataset, "a.jpg")
        add_with_thumbnail(dataset, "b.jpg")
        MediaFile.objects.filter(pk=media_file.pk).update(removed_at=timezone.now())
        assert remove_orphaned_uploads(older_than=in_a_minute()) == 2
        assert stored_files(media_root) == ["thumbnails", "uploads"]

    def test_it_goes_a_few_at_a_time_and_the_rest_the_next_time(
        self, user, dataset, media_root, monkeypatch
    ):
        monkeypatch.setattr("inference.cleaning.FILES_AT_A_TIME", 2)
        monkeypatch.setattr("inference.cleaning.FILES_PER_CLEANING", 4)
        for number in range(5):
            add_media_file(dataset, name=f"{number}.jpg", content=PICTURE)
        delete_dataset(user=user, dataset_id=dataset.pk)
        assert [remove_deleted_content(deleted_before=in_a_minute()) for _ in range(3)] == [4, 1, 0]
        assert stored_files(media_root) == []

    def test_storage_that_is_away_is_asked_again_by_way_of_orphans(
        self, user, dataset, media_root, monkeypatch
    ):
        media_file = add_media_file(dataset, content=PICTURE)
        delete_media_file(user=user, media_file_id=media_file.pk)

        def fail(name):
            raise OSError("the storage is away")

        with monkeypatch.context() as away:
            away.setattr(type(default_storage._wrapped), "delete", lambda self, name: fail(name))
            assert remove_deleted_content(deleted_before=in_a_minute()) == 1
        assert stored_files(media_root) == ["uploads"]
        assert remove_orphaned_uploads(older_than=in_a_minute()) == 1
        assert stored_files(media_root) == []
