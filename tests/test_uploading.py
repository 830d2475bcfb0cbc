"""Taking in an upload: all that is accepted is stored and charged, all else leaves no trace."""

import zipfile
from datetime import timedelta
from io import BytesIO
from types import SimpleNamespace

import pytest
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.utils import timezone

from accounts.models import Event
from billing.ledger import InsufficientTokensError, charge_upload
from billing.models import Transfer
from billing.selectors import balance_hundredths, ledger_breaches
from datasets.media.archive import extract_member
from datasets.media.inspector import Inspector
from datasets.models import MediaFile, Upload
from datasets.selectors import DatasetBlockedError, DatasetNotFoundError
from datasets.services import change_dataset, delete_dataset, mark_blocked
from datasets.uploading import (
    UnacceptableMediaError,
    remove_orphaned_uploads,
    upload_content,
)
from odproject.core import room
from odproject.core.files import StorageFullError
from tests.clients import client_of
from tests.factories import dataset_id_of, make_dataset, make_user
from tests.mediafiles import image_bytes, noise, packet_spans, write_gif, write_video

pytestmark = pytest.mark.django_db


def upload(user, content, name="a.jpg", dataset_id=None):
    return upload_content(
        answer=lambda upload: upload,
        user=user,
        dataset_id=dataset_id or dataset_id_of(user),
        content=SimpleUploadedFile(name, content),
    )


def make_zip(**members):
    target = BytesIO()
    with zipfile.ZipFile(target, "w") as archive:
        for name, content in members.items():
            archive.writestr(name.replace("__", "."), content)
    return target.getvalue()


def assert_nothing_happened(user, media_root):
    assert balance_hundredths(user=user) == 100_000
    assert not Transfer.objects.filter(kind="upload").exists()
    assert not Upload.objects.exists()
    assert not MediaFile.objects.exists()
    assert not Event.objects.filter(kind="upload.accepted").exists()
    assert [path for path in media_root.rglob("*") if path.is_file()] == []


def test_image_is_stored_under_a_name_of_our_own_and_charged(user, dataset, media_root):
    upload(user, image_bytes("JPEG", noise((64, 48))), name="my photo.png")
    media_file = MediaFile.objects.get()
    assert (media_file.name, media_file.media_type, media_file.format) == (
        "my photo.png",
        "image",
        "jpeg",
    )
    assert (media_file.width, media_file.height, media_file.frame_count) == (64, 48, 1)
    assert "photo" not in media_file.content.name
    assert default_storage.size(media_file.content.name) == media_file.size_bytes
    assert balance_hundredths(user=user) == 100_000 - 75
    event = Event.objects.get(kind="upload.accepted")
    assert event.payload["cost_tokens"] == 0.75
    assert ledger_breaches() == []


def test_video_is_charged_by_the_frames_that_decode(user, dataset, tmp_path):
    write_video(tmp_path / "a.mp4", frames=7)
    upload(user, (tmp_path / "a.mp4").read_bytes(), name="a.mp4")
    assert MediaFile.objects.get().frame_count == 7
    assert balance_hundredths(user=user) == 100_000 - 350


def test_bad_file_in_a_zip_is_reported_and_free(user, dataset):
    good = image_bytes("PNG", noise((32, 32)))
    content = make_zip(a__png=good, notes__txt=b"hello", b__png=good)
    report = upload(user, content, name="all.zip")
    assert [one.name for one in report.media_files.all()] == ["a.png", "b.png"]
    assert [(one["filename"], one["code"]) for one in report.refused] == [
        ("notes.txt", "unsupported_media_type")
    ]
    assert balance_hundredths(user=user) == 100_000 - 150


def test_damaged_files_of_a_zip_waste_only_so_much_time(user, dataset, settings, monkeypatch):
    """They cost nothing, so nothing else would end a zip of thousands of them."""
    settings.INSPECTION_TIMEOUT_SECONDS = 20
    ticks = iter(range(0, 1000, 8))
    clock = SimpleNamespace(monotonic=lambda: next(ticks))
    monkeypatch.setattr("datasets.uploading.time", clock)
    good, bad = image_bytes(), b"not an image"
    members = {"1.jpg": bad, "2.jpg": bad, "3.jpg": good, "4.jpg": bad, "5.jpg": good}
    taken = upload(user, make_zip(**members), "a.zip")
    assert [one.name for one in taken.media_files.order_by("pk")] == ["3.jpg"]
    reasons = [(one["filename"], one["code"]) for one in taken.refused]
    assert reasons == [
        ("1.jpg", "unsupported_media_type"),
        ("2.jpg", "unsupported_media_type"),
        ("4.jpg", "unsupported_media_type"),
        ("5.jpg", "inspection_timeout"),
    ]
    assert balance_hundredths(user=user) == 100_000 - 75


def test_zip_without_one_good_file_is_refused(user, dataset, media_root):
    with pytest.raises(UnacceptableMediaError) as refusal:
        upload(user, make_zip(a__txt=b"hello", b__txt=b"world"), name="all.zip")
    assert (refusal.value.status, refusal.value.code) == (415, "unsupported_media_type")
    assert_nothing_happened(user, media_root)


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b"", 400),
        (b"<html><body>hello</body></html>", 415),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", 415),
        (image_bytes("JPEG", noise((64, 48)))[:200], 400),
        (make_zip(), 422),
    ],
    ids=["empty", "html", "svg", "truncated", "empty zip"],
)
def test_refused_file_leaves_no_trace(user, dataset, media_root, content, status):
    with pytest.raises(UnacceptableMediaError) as refusal:
        upload(user, content)
    assert refusal.value.status == status
    assert_nothing_happened(user, media_root)


def test_zip_that_the_balance_cannot_cover_is_refused_as_a_whole(user, dataset, media_root):
    charge_upload(user=user, amount_hundredths=99_900, upload_id=1)
    good = image_bytes("PNG", noise((32, 32)))
    with pytest.raises(InsufficientTokensError) as refusal:
        upload(user, make_zip(a__png=good, b__png=good), name="all.zip")
    assert refusal.value.members == {"needed_tokens": 1.5, "balance_tokens": 1.0}
    assert balance_hundredths(user=user) == 100
    assert not MediaFile.objects.exists()
    assert not (media_root / "uploads").exists()


def test_balance_spent_during_the_upload_is_found_out_and_leaves_no_file(
    user, dataset, media_root, monkeypatch
):
    save = default_storage.save

    def spend_then_save(name, content):
        charge_upload(user=user, amount_hundredths=99_950, upload_id=1)
        return save(name, content)

    monkeypatch.setattr(default_storage, "save", spend_then_save)
    with pytest.raises(InsufficientTokensError):
        upload(user, image_bytes("PNG", noise((32, 32))))
    assert balance_hundredths(user=user) == 50
    assert not Upload.objects.exists()
    assert list((media_root / "uploads").iterdir()) == []


def test_full_disk_is_told_and_leaves_no_trace(user, dataset, media_root, monkeypatch):
    save = default_storage.save
    saved = []

    def save_one(name, content):
        if saved:
            raise OSError(28, "No space left on device")
        saved.append(save(name, content))
        return saved[0]

    monkeypatch.setattr(default_storage, "save", save_one)
    good = image_bytes("PNG", noise((32, 32)))
    with pytest.raises(StorageFullError) as refusal:
        upload(user, make_zip(a__png=good, b__png=good), name="all.zip")
    assert refusal.value.status == 507
    assert len(saved) == 1
    assert_nothing_happened(user, media_root)


@pytest.mark.usefixtures("dataset")
@pytest.mark.parametrize("disk", ["temporary", "media"])
def test_what_an_archive_unpacks_to_leaves_the_disks_their_reserve(
    user, media_root, monkeypatch, settings, disk
):
    """However small it is itself: the database may live on the same disk."""
    settings.MIN_FREE_BYTES = 1000
    good = image_bytes("PNG", noise((32, 32)))
    room_for_one = 1000 + len(good) * 3 // 2
    unpacked, saved = [], []
    save = default_storage.save

    def disk_usage(folder):
        is_media = folder.is_relative_to(media_root.parent)
        written = len(good) * len(saved if is_media else unpacked)
        is_small = is_media == (disk == "media")
        return SimpleNamespace(free=room_for_one - written if is_small else 10**12)

    def unpack(*arguments, **limits):
        unpacked.append(extract_member(*arguments, **limits))

    def save_one(name, content):
        if name.startswith("uploads/"):
            saved.append(name)
        return save(name, content)

    monkeypatch.setattr(room.shutil, "disk_usage", disk_usage)
    monkeypatch.setattr("datasets.uploading.extract_member", unpack)
    monkeypatch.setattr(default_storage, "save", save_one)
    with pytest.raises(StorageFullError) as refusal:
        upload(user, make_zip(a__png=good, b__png=good), name="all.zip")
    assert refusal.value.status == 507
    assert (len(unpacked), len(saved)) == ((1, 0) if disk == "temporary" else (2, 1))
    assert_nothing_happened(user, media_root)


def test_dataset_deleted_during_the_upload_takes_nothing_in(user, dataset, media_root, monkeypatch):
    save = default_storage.save

    def delete_then_save(name, content):
        delete_dataset(user=user, dataset_id=dataset_id_of(user))
        return save(name, content)

    monkeypatch.setattr(default_storage, "save", delete_then_save)
    with pytest.raises(DatasetNotFoundError):
        upload(user, image_bytes("PNG", noise((32, 32))))
    assert_nothing_happened(user, media_root)


def rename_during_the_inspection(monkeypatch, *renamings):
    inspect = Inspector.inspect

    def rename_then_inspect(self, path, **options):
        for dataset, name in renamings:
            change_dataset(dataset=dataset, new_name=name)
        return inspect(self, path, **options)

    monkeypatch.setattr(Inspector, "inspect", rename_then_inspect)


@pytest.mark.parametrize("surface", ["v1", "contract"])
def test_dataset_renamed_during_the_upload_takes_it_in(user, dataset, monkeypatch, surface):
    rename_during_the_inspection(monkeypatch, (dataset, "avenue"))
    keys = {"file": SimpleUploadedFile("a.png", image_bytes("PNG", noise((32, 32))))}
    path = f"/api/v1/datasets/{dataset.pk}/uploads/"
    if surface == "contract":
        path, keys = "/upload/", keys | {"datasetName": "street"}
    answer = client_of(user).post(path, keys, format="multipart")
    assert answer.status_code == 201, answer.content
    assert MediaFile.objects.get().dataset_id == dataset.pk
    assert balance_hundredths(user=user) == 100_000 - 75


def test_upload_stays_out_of_a_dataset_that_has_taken_the_name(user, dataset, monkeypatch):
    other = make_dataset(user, "other")
    rename_during_the_inspection(
        monkeypatch, (dataset, "between"), (other, "street"), (dataset, "other")
    )
    upload(user, image_bytes("PNG", noise((32, 32))))
    assert (dataset_id_of(user, "street"), dataset_id_of(user, "other")) == (other.pk, dataset.pk)
    assert MediaFile.objects.get().dataset_id == dataset.pk
    event = Event.objects.get(kind="upload.accepted")
    assert event.payload["dataset_id"] == dataset.pk
    assert not Upload.objects.filter(dataset=other).exists()


def test_blocked_dataset_takes_nothing_in_and_says_why(user, dataset, media_root):
    mark_blocked(dataset=dataset, reason="licence plates")
    with pytest.raises(DatasetBlockedError, match="licence plates"):
        upload(user, image_bytes("PNG", noise((32, 32))))
    assert_nothing_happened(user, media_root)


def test_somebody_elses_dataset_is_not_found(dataset, media_root):
    stranger = make_user()
    with pytest.raises(DatasetNotFoundError):
        upload(stranger, image_bytes("PNG", noise((32, 32))), dataset_id=dataset.pk)
    assert_nothing_happened(stranger, media_root)


def test_files_without_a_row_are_removed_when_they_are_old_enough(user, dataset, media_root):
    upload(user, image_bytes("PNG", noise((32, 32))))
    kept = MediaFile.objects.get()
    for folder in ("uploads", "thumbnails"):
        (media_root / folder / "orphan").write_bytes(b"left by a crash")
    now = timezone.now()
    assert remove_orphaned_uploads(older_than=now - timedelta(hours=1)) == 0
    assert remove_orphaned_uploads(older_than=now + timedelta(minutes=1)) == 2
    files = sorted(str(p.relative_to(media_root)) for p in media_root.rglob("*") if p.is_file())
    assert files == [kept.thumbnail.name, kept.content.name]


def test_video_that_becomes_too_dear_is_not_decoded_to_its_end(
    user, dataset, tmp_path, monkeypatch
):
    charge_upload(user=user, amount_hundredths=99_940, upload_id=1)  # leaves one frame's price
    write_video(tmp_path / "a.mp4", frames=3)
    seen = []

    def inspect(self, path, *, on_progress):
        for frames in (1, 2_001, 2_002, 90_000):
            seen.append(frames)
            on_progress(frames)

    monkeypatch.setattr(Inspector, "inspect", inspect)
    with pytest.raises(InsufficientTokensError):
        upload(user, (tmp_path / "a.mp4").read_bytes(), name="a.mp4")
    assert seen == [1, 2_001, 2_002]
    assert not MediaFile.objects.exists()


@pytest.mark.parametrize("packed", [False, True])
def test_gif_is_walked_over_by_the_child_alone_which_has_limits(
    user, dataset, tmp_path, monkeypatch, packed
):
    def walk(path):
        raise AssertionError("This process has no limit of time.")

    monkeypatch.setattr("datasets.media.sniff._is_animated_gif", walk)
    gif = write_gif(tmp_path / "a.gif", frames=2, size_wh=(16, 16)).read_bytes()
    upload(user, make_zip(a__gif=gif) if packed else gif, name="a.gif")
    media_file = MediaFile.objects.get()
    assert (media_file.media_type, media_file.frame_count) == ("video", 2)


def test_upload_notes_where_decoding_of_a_long_video_can_begin(user, dataset, tmp_path):
    path = write_video(
        tmp_path / "a.mp4",
        frames=270,
        codec="libx264",
        codec_options={"g": "30", "bf": "0", "sc_threshold": "0"},
        paint=lambda index: noise((64, 48), seed=index // 90),
    )
    upload(user, path.read_bytes(), name="a.mp4")
    media_file = MediaFile.objects.get()
    assert (media_file.frame_count, media_file.warning) == (270, "")
    assert media_file.seek_indexes == [150]


def test_damaged_video_is_charged_by_what_decodes_and_says_what_is_missing(user, dataset, tmp_path):
    path = write_video(
        tmp_path / "a.mp4", frames=20, codec="mjpeg", options={"movflags": "faststart"}
    )
    path.write_bytes(path.read_bytes()[: sorted(packet_spans(path))[7][1]])
    upload(user, path.read_bytes(), name="a.mp4")
    media_file = MediaFile.objects.get()
    assert media_file.frame_count == 8
    assert media_file.warning == ("The video is damaged: 12 of its 20 frames could not be decoded.")
    assert balance_hundredths(user=user) == 100_000 - 8 * 50
