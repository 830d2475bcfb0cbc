"""Uploads that arrive piece by piece: the protocol of tus, and that bytes and tokens stay right."""

import base64
import contextlib
from datetime import timedelta
from types import SimpleNamespace

import pytest
from django.db import IntegrityError, transaction
from django.utils import timezone
from django.utils.http import parse_http_date
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rest_framework.test import APIClient

from accounts.models import Event
from billing.ledger import charge_upload, top_up
from billing.models import Transfer
from billing.selectors import balance_hundredths
from datasets import partial_files, resumable, v1_resumable
from datasets.models import MediaFile, ResumableUpload, Upload
from datasets.services import delete_dataset, mark_blocked
from datasets.v1_resumable import PIECE_BYTES
from odproject.core import room
from odproject.core.environ import LATER
from odproject.core.throttling import UserRate
from tests.clients import client_of
from tests.factories import add_media_file, make_dataset, make_user
from tests.mediafiles import image_bytes, noise
from tests.threads import in_threads

PICTURE = image_bytes("PNG", noise((32, 32)))
LENGTH = len(PICTURE)
NO_UPLOAD = 10**9  # no row will have this number
VERSION = {"Tus-Resumable": "1.0.0"}
STREAM = "application/offset+octet-stream"


def metadata(**values):
    pairs = (f"{key} {base64.b64encode(value.encode()).decode()}" for key, value in values.items())
    return ",".join(pairs)


class Tus:
    """A client of the protocol, and the user and dataset that it works for."""

    def __init__(self, user=None, name="street"):
        self.user = user or make_user()
        self.dataset = make_dataset(self.user, name)
        self.http = client_of(self.user)
        self.list = f"/api/v1/datasets/{self.dataset.pk}/resumable-uploads/"

    def create(self, length, **headers):
        sent = {**VERSION, "Upload-Length": str(length), **headers}
        return self.http.post(self.list, headers=sent)

    def begun(self, length=LENGTH, name="a.png"):
        answer = self.create(length, **{"Upload-Metadata": metadata(filename=name)})
        assert answer.status_code == 201, answer.content
        return answer["Location"]

    def patch(self, place, offset, content, *, later=None, **headers):
        sent = {**VERSION, "Upload-Offset": str(offset), **headers}
        kind = sent.pop("Content-Type", STREAM)
        environ = {} if later is None else {LATER: later}  # as the server sets it
        return self.http.patch(place, content, content_type=kind, headers=sent, **environ)

    def head(self, place):
        return self.http.head(place, headers=VERSION)

    def offset(self, place):
        return int(self.head(place)["Upload-Offset"])

    def delete(self, place):
        return self.http.delete(place, headers=VERSION)


@pytest.fixture
def tus(db):
    return Tus()


def files():
    return sorted(path.name for path in partial_files.root().glob("*"))


def number_of(place):
    return int(place.rstrip("/").rpartition("/")[2])


def row_of(place):
    return ResumableUpload.objects.get(pk=number_of(place))


def assert_refused(answer, status, code, words=""):
    document = answer.json()
    assert (answer.status_code, document["code"]) == (status, code)
    assert words in document["detail"]
    assert answer["Content-Type"] == "application/problem+json"
    assert answer["Tus-Resumable"] == "1.0.0"


def give_a_token(user):
    actor = make_user(staff=True)
    top_up(user=user, amount_hundredths=100, actor=actor, reason="more", key="a")


def assert_nothing_was_taken(user):
    assert balance_hundredths(user=user) == 100_000
    assert not Transfer.objects.filter(kind="upload").exists()
    assert not Upload.objects.exists()
    assert not MediaFile.objects.exists()
    assert not Event.objects.filter(kind="upload.accepted").exists()


class TestProtocol:
    def test_options_tell_what_is_supported_to_who_is_logged_in(self, tus, settings):
        settings.MAX_UPLOAD_BYTES = 12345
        for place in (tus.list, f"{tus.list}1/"):
            answer = tus.http.options(place)
            assert answer.status_code == 204
            assert answer["Tus-Resumable"] == "1.0.0"
            assert answer["Tus-Version"] == "1.0.0"
            assert answer["Tus-Extension"] == "creation,expiration,termination"
            assert answer["Tus-Max-Size"] == "12345"
            assert APIClient().options(place).status_code == 401

    def test_file_in_two_pieces_is_taken_in_and_charged_once(self, tus, media_root):
        answer = tus.create(LENGTH, **{"Upload-Metadata": metadata(filename="my photo.png")})
        assert answer.status_code == 201
        assert answer["Tus-Resumable"] == "1.0.0"
        place = answer["Location"]
        assert place == f"{tus.list}{ResumableUpload.objects.get().pk}/"
        left_seconds = parse_http_date(answer["Upload-Expires"]) - timezone.now().timestamp()
        assert 86_000 < left_seconds <= 86_400
        assert_nothing_was_taken(tus.user)

        answer = tus.patch(place, 0, PICTURE[:100])
        assert (answer.status_code, answer.content) == (204, b"")
        assert answer["Upload-Offset"] == "100"
        assert answer["Tus-Resumable"] == "1.0.0"
        assert "Upload-Expires" in answer
        assert "Location" not in answer
        assert_nothing_was_taken(tus.user)

        answer = tus.patch(place, 100, PICTURE[100:])
        upload = Upload.objects.get()
        assert answer.status_code == 204
        assert answer["Upload-Offset"] == str(LENGTH)
        assert answer["Location"] == f"/api/v1/datasets/{tus.dataset.pk}/uploads/{upload.pk}/"
        report = tus.http.get(answer["Location"]).json()
        assert [one["name"] for one in report["accepted"]] == ["my photo.png"]
        assert report["cost_tokens"] == 0.75
        stored = media_root / MediaFile.objects.get().content.name
        assert stored.read_bytes() == PICTURE
        assert balance_hundredths(user=tus.user) == 100_000 - 75
        assert Event.objects.filter(kind="upload.accepted").count() == 1
        assert files() == []

    def test_head_tells_offset_length_and_metadata_and_is_not_kept(self, tus):
        sent = metadata(filename="a.png", relativePath="x/a.png") + ",is_private"
        place = tus.create(LENGTH, **{"Upload-Metadata": sent})["Location"]
        tus.patch(place, 0, PICTURE[:7])
        answer = tus.head(place)
        assert (answer.status_code, answer.content) == (200, b"")
        assert answer["Upload-Offset"] == "7"
        assert answer["Upload-Length"] == str(LENGTH)
        assert answer["Upload-Metadata"] == sent
        assert answer["Cache-Control"] == "no-store"
        assert answer["Tus-Resumable"] == "1.0.0"

    def test_json_tells_how_far_it_is_and_then_where_the_report_is(self, tus):
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:7])
        shown = tus.http.get(place).json()
        assert (shown["state"], shown["offset_bytes"], shown["upload_url"]) == (
            "receiving",
            7,
            None,
        )
        assert (shown["file_name"], shown["length_bytes"]) == ("a.png", LENGTH)
        assert tus.http.get(tus.list).json()["results"] == [shown]
        report = tus.patch(place, 7, PICTURE[7:])["Location"]
        shown = tus.http.get(place).json()
        assert (shown["state"], shown["offset_bytes"]) == ("accepted", LENGTH)
        assert shown["upload_url"] == report
        assert tus.http.get(tus.list).json()["results"] == []

    def test_given_up_upload_is_gone_with_its_bytes(self, tus):
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:7])
        answer = tus.delete(place)
        assert (answer.status_code, answer["Tus-Resumable"]) == (204, "1.0.0")
        assert not ResumableUpload.objects.exists()
        assert files() == []
        assert tus.head(place).status_code == 404
        assert tus.patch(place, 7, PICTURE[7:]).status_code == 404

    def test_accepted_file_cannot_be_given_up(self, tus):
        """Whoever cancels too late learns so, and does not pay for a second one."""
        place = tus.begun()
        report = tus.patch(place, 0, PICTURE)["Location"]
        assert_refused(tus.delete(place), 409, "upload_accepted", "in the dataset")
        assert tus.http.get(place).json()["upload_url"] == report

    @pytest.mark.parametrize("version", [{}, {"Tus-Resumable": "0.2.2"}, {"Tus-Resumable": ""}])
    def test_another_version_is_412_and_changes_nothing(self, tus, version):
        place = tus.begun()
        headers = {**version, "Upload-Length": "5", "Upload-Offset": "0"}
        answers = [
            tus.http.post(tus.list, headers=headers),
            tus.http.head(place, headers=headers),
            tus.http.patch(place, PICTURE, content_type=STREAM, headers=headers),
            tus.http.delete(place, headers=headers),
        ]
        for answer in answers:
            assert (answer.status_code, answer["Tus-Version"]) == (412, "1.0.0")
        assert_refused(answers[0], 412, "unsupported_tus_version", "1.0.0")
        assert ResumableUpload.objects.count() == 1
        assert tus.offset(place) == 0

    def test_name_is_shown_without_folders_and_control_characters(self, tus):
        names = {
            "../../etc/passwd": "passwd",
            "C:\\Users\\ann\\a.mp4": "a.mp4",
            "a\r\nSet-Cookie: b.mp4": "a__Set-Cookie: b.mp4",
            "nul\x00.mp4": "nul_.mp4",
            "улица.mp4": "улица.mp4",
            "..": "upload",
            "": "upload",
            "x" * 300 + ".mp4": "x" * 251 + ".mp4",
        }
        for sent, shown in names.items():
            assert row_of(tus.begun(name=sent)).file_name == shown
        assert row_of(tus.create(5)["Location"]).file_name == "upload"

    def test_creation_sent_again_under_its_key_gives_the_same_upload(self, tus):
        key = {"Idempotency-Key": "abc"}
        first, again = (tus.create(5, **key) for _ in range(2))
        assert first["Location"] == again["Location"]
        assert again["Idempotency-Replayed"] == "true"
        assert_refused(tus.create(6, **key), 422, "idempotency_key_reused")
        assert ResumableUpload.objects.count() == 1


class TestHostileRequests:
    @pytest.mark.parametrize(
        "length", ["-1", "NaN", "1e3", "0x10", "٣", "", " ", "1.5", "9" * 19, "+5", "5,5"]
    )
    def test_length_that_is_no_number_of_bytes_is_400(self, tus, length):
        assert_refused(tus.create(length), 400, "invalid_header", "Upload-Length: ")
        assert not ResumableUpload.objects.exists()

    def test_missing_deferred_empty_and_too_large_lengths_are_told_apart(self, tus, settings):
        settings.MAX_UPLOAD_BYTES = 100
        missing = tus.http.post(tus.list, headers=VERSION)
        assert_refused(missing, 400, "invalid_header", "Upload-Length: The header is missing")
        deferred = tus.http.post(tus.list, headers={**VERSION, "Upload-Defer-Length": "1"})
        assert_refused(deferred, 400, "invalid_header", "not supported")
        assert deferred.json()["errors"][0]["field"] == "Upload-Defer-Length"
        assert_refused(tus.create(0), 400, "invalid_header", "empty")
        assert_refused(tus.create(101), 413, "upload_too_large", "100")
        assert tus.create(100).status_code == 201

    @pytest.mark.parametrize(
        "sent",
        [
            "filename not-base64!",
            "filename /w==",  # the byte FF
            "filename YQ==,filename YQ==",
            "filename YQ==,,b YQ==",
            ",",
            "naïve YQ==",
            "a" * 4097,
        ],
    )
    def test_metadata_that_cannot_be_read_are_400(self, tus, sent):
        answer = tus.create(5, **{"Upload-Metadata": sent})
        assert_refused(answer, 400, "invalid_header", "Upload-Metadata: ")
        assert not ResumableUpload.objects.exists()

    @pytest.mark.parametrize("offset", ["-1", "NaN", "1e0", "", "9" * 30, "0 0"])
    def test_offset_that_is_no_number_is_400(self, tus, offset):
        place = tus.begun()
        assert_refused(tus.patch(place, offset, b"x"), 400, "invalid_header", "Upload-Offset: ")
        assert tus.offset(place) == 0

    def test_missing_offset_is_400(self, tus):
        place = tus.begun()
        answer = tus.http.patch(place, b"x", content_type=STREAM, headers=VERSION)
        assert_refused(answer, 400, "invalid_header", "Upload-Offset: The header is missing")

    @pytest.mark.parametrize("offset", [0, 9, 11, 10**17])
    def test_another_offset_is_409_and_tells_the_right_one(self, tus, offset):
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        answer = tus.patch(place, offset, PICTURE[10:])
        assert_refused(answer, 409, "upload_offset_conflict", "10 bytes have arrived")
        assert answer.json()["offset_bytes"] == 10
        assert tus.offset(place) == 10
        assert partial_files.path_of(number_of(place)).read_bytes() == PICTURE[:10]
        assert_nothing_was_taken(tus.user)

    @pytest.mark.parametrize("kind", ["application/json", "text/plain", "multipart/form-data"])
    def test_another_content_type_is_415(self, tus, kind):
        place = tus.begun()
        answer = tus.patch(place, 0, b"{}", **{"Content-Type": kind})
        assert_refused(answer, 415, "unsupported_media_type", STREAM)
        assert tus.offset(place) == 0

    def test_more_bytes_than_the_length_are_413_and_none_of_them_counts(self, tus):
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        answer = tus.patch(place, 10, PICTURE[10:] + b"x")
        assert_refused(answer, 413, "upload_too_large", "too many")
        assert tus.offset(place) == 10
        assert tus.patch(place, 10, PICTURE[10:])["Upload-Offset"] == str(LENGTH)

    def test_what_is_anothers_is_404_whatever_is_asked(self, tus):
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        other = Tus()
        elsewhere = f"{other.list}{number_of(place)}/"
        for foreign in (place, elsewhere, f"{tus.list}999999/"):
            assert other.head(foreign).status_code == 404
            assert other.http.get(foreign).status_code == 404
            assert other.patch(foreign, 10, PICTURE[10:]).status_code == 404
            assert other.delete(foreign).status_code == 404
        assert (
            other.http.post(tus.list, headers={**VERSION, "Upload-Length": "5"}).status_code == 404
        )
        assert tus.offset(place) == 10
        assert_nothing_was_taken(tus.user)

    def test_upload_of_another_dataset_of_the_same_user_is_404(self, tus):
        place = tus.begun()
        other = Tus(tus.user, "other")
        assert other.head(f"{other.list}{number_of(place)}/").status_code == 404

    def test_pieces_are_not_counted_as_requests_and_all_else_is(self, tus, settings, monkeypatch):
        counted = []
        monkeypatch.setattr(UserRate, "_count", lambda self, key: counted.append(key) or 1)
        settings.API_REQUESTS_PER_MINUTE = 1
        place = tus.begun(length=10 * PIECE_BYTES)
        assert len(counted) == 1
        for number in range(4):
            sent = tus.patch(place, number * PIECE_BYTES, b"x" * PIECE_BYTES)
            assert sent.status_code == 204
        assert len(counted) == 1
        tus.patch(place, 4 * PIECE_BYTES, b"x" * (PIECE_BYTES - 1))
        tus.patch(place, 5 * PIECE_BYTES - 1, b"")
        tus.head(place)
        assert len(counted) == 4

    def test_last_bytes_are_taken_in_although_the_user_may_ask_nothing_more(
        self, tus, settings, monkeypatch
    ):
        settings.API_REQUESTS_PER_MINUTE = 1
        place = tus.begun()
        monkeypatch.setattr(UserRate, "_count", lambda self, key: 2)
        assert tus.head(place).status_code == 429
        monkeypatch.setattr("datasets.v1_resumable.PIECE_BYTES", LENGTH)
        put_off = tus.patch(place, 0, PICTURE, later="")
        assert put_off.wsgi_request.META[LATER] == "upload"
        assert not Upload.objects.exists()
        # The server calls again with the same head, and nothing to read.
        answer = tus.patch(place, 0, b"", later="upload")
        assert (answer.status_code, answer["Upload-Offset"]) == (204, str(LENGTH))
        assert answer["Location"].endswith(f"/uploads/{Upload.objects.get().pk}/")


class TestRefusalsOfTheWholeFile:
    def test_bytes_stay_until_there_are_tokens(self, tus):
        charge_upload(user=tus.user, amount_hundredths=99_950, upload_id=NO_UPLOAD)
        place = tus.begun()
        assert_refused(tus.patch(place, 0, PICTURE), 402, "insufficient_tokens")
        assert balance_hundredths(user=tus.user) == 50
        assert not MediaFile.objects.exists()
        told = tus.http.get(place).json()
        assert (told["state"], told["offset_bytes"]) == ("received", LENGTH)
        assert_refused(tus.patch(place, LENGTH, b""), 402, "insufficient_tokens")
        give_a_token(tus.user)
        assert tus.patch(place, LENGTH, b"").status_code == 204
        assert balance_hundredths(user=tus.user) == 75
        assert files() == []

    def test_client_that_knows_tus_only_tries_again_with_the_last_byte(self, tus):
        """To it the full length is the end."""
        charge_upload(user=tus.user, amount_hundredths=99_950, upload_id=NO_UPLOAD)
        place = tus.begun()
        assert_refused(tus.patch(place, 0, PICTURE), 402, "insufficient_tokens")
        assert tus.offset(place) == LENGTH - 1
        assert_refused(tus.patch(place, LENGTH - 1, PICTURE[-1:]), 402, "insufficient_tokens")
        assert_refused(tus.patch(place, LENGTH - 2, PICTURE[-2:]), 409, "upload_offset_conflict")
        assert_refused(tus.patch(place, LENGTH - 1, b"ab"), 413, "upload_too_large")
        give_a_token(tus.user)
        assert tus.patch(place, LENGTH - 1, PICTURE[-1:]).status_code == 204
        assert tus.offset(place) == LENGTH
        with MediaFile.objects.get().content.open() as content:
            assert content.read() == PICTURE
        assert balance_hundredths(user=tus.user) == 75
        assert files() == []

    def test_file_that_is_at_fault_goes_with_its_bytes(self, tus):
        place = tus.begun(5, "a.png")
        assert_refused(tus.patch(place, 0, b"hello"), 415, "unsupported_media_type")
        assert tus.head(place).status_code == 404
        assert not ResumableUpload.objects.exists()
        assert files() == []
        assert_nothing_was_taken(tus.user)

    def test_bytes_stay_while_the_disk_is_full(self, tus, media_root, monkeypatch):
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        with monkeypatch.context() as full:
            full.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=0))
            answer = tus.patch(place, 10, PICTURE[10:])
            assert_refused(answer, 507, "storage_full")
            assert tus.offset(place) == 10
        assert tus.patch(place, 10, PICTURE[10:]).status_code == 204

    def test_blocked_dataset_takes_no_more_bytes_and_keeps_those_that_it_has(self, tus):
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        mark_blocked(dataset=tus.dataset, reason="licence plates")
        assert_refused(tus.patch(place, 10, PICTURE[10:]), 403, "dataset_blocked", "plates")
        assert_refused(tus.create(5), 403, "dataset_blocked", "plates")
        assert tus.offset(place) == 10
        assert_nothing_was_taken(tus.user)

    def test_deleted_dataset_has_no_uploads_any_more(self, tus):
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        delete_dataset(user=tus.user, dataset_id=tus.dataset.pk)
        assert tus.patch(place, 10, PICTURE[10:]).status_code == 404
        assert tus.head(place).status_code == 404
        assert_nothing_was_taken(tus.user)

    def test_file_that_was_accepted_gives_the_same_report_again(self, tus):
        place = tus.begun()
        report = tus.patch(place, 0, PICTURE)["Location"]
        again = tus.patch(place, LENGTH, b"")
        assert (again.status_code, again["Location"]) == (204, report)
        assert_refused(tus.patch(place, 0, PICTURE), 409, "upload_offset_conflict")
        assert Upload.objects.count() == 1
        assert balance_hundredths(user=tus.user) == 100_000 - 75
        assert files() == []


class TestBounds:
    def test_unfinished_uploads_of_one_user_are_counted(self, tus, settings):
        settings.MAX_UNFINISHED_UPLOADS_PER_USER = 2
        done, open_ = tus.begun(), tus.begun()
        answer = tus.create(5)
        assert_refused(answer, 409, "unfinished_uploads_quota_exceeded", "at most 2")
        assert answer.json()["quota"] == 2
        tus.patch(done, 0, PICTURE)
        assert tus.create(5).status_code == 201
        assert tus.create(5).status_code == 409
        assert tus.delete(open_).status_code == 204
        assert tus.create(5).status_code == 201

    def test_promised_bytes_count_as_stored(self, tus, settings):
        settings.MAX_STORED_BYTES_PER_USER = 2 * LENGTH
        add_media_file(tus.dataset, content=PICTURE)
        place = tus.begun()
        assert_refused(tus.create(1), 409, "storage_quota_exceeded")
        assert tus.patch(place, 0, PICTURE).status_code == 204  # its own promise is no hindrance
        assert MediaFile.objects.count() == 2
        assert_refused(tus.create(1), 409, "storage_quota_exceeded")

    def test_bytes_of_a_deleted_dataset_count_until_they_have_left_the_disk(self, tus, settings):
        settings.MAX_STORED_BYTES_PER_USER = LENGTH
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        delete_dataset(user=tus.user, dataset_id=tus.dataset.pk)
        again = Tus(tus.user, "again")
        assert_refused(again.create(1), 409, "storage_quota_exceeded")
        assert files() == [str(number_of(place))]
        assert resumable.remove_expired_uploads() == 1
        assert again.create(LENGTH).status_code == 201

    def test_promised_bytes_leave_the_disk_its_reserve(self, tus, settings, monkeypatch):
        settings.MIN_FREE_BYTES = 1000
        monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1100))
        assert_refused(tus.create(101), 507, "storage_full")
        assert tus.create(60).status_code == 201
        assert_refused(tus.create(41), 507, "storage_full")
        assert tus.create(40).status_code == 201

    def test_promises_of_one_user_keep_no_other_from_the_disk(self, tus, settings, monkeypatch):
        settings.MIN_FREE_BYTES = 1000
        monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1100))
        assert tus.create(100).status_code == 201
        other = Tus()
        place = other.begun(100)
        assert other.patch(place, 0, PICTURE[:60]).status_code == 204
        monkeypatch.setattr(room.shutil, "disk_usage", lambda folder: SimpleNamespace(free=1030))
        assert_refused(other.patch(place, 60, PICTURE[60:100]), 507, "storage_full")
        assert other.offset(place) == 60

    def test_upload_without_a_byte_for_a_day_is_gone(self, tus):
        old, young = tus.begun(), tus.begun()
        tus.patch(old, 0, PICTURE[:10])
        tus.patch(young, 0, PICTURE[:10])
        ResumableUpload.objects.filter(pk=number_of(old)).update(expires_at=timezone.now())
        assert tus.head(old).status_code == 404
        assert tus.patch(old, 10, PICTURE[10:]).status_code == 404
        assert tus.http.get(tus.list).json()["count"] == 1
        assert resumable.remove_expired_uploads() == 1
        assert [row.pk for row in ResumableUpload.objects.all()] == [number_of(young)]
        assert files() == [str(number_of(young))]
        assert resumable.remove_expired_uploads(now=timezone.now() + timedelta(hours=25)) == 1
        assert not ResumableUpload.objects.exists()
        assert files() == []

    def test_each_byte_gives_another_day_and_a_question_gives_none(self, tus):
        place = tus.begun()
        soon = timezone.now() + timedelta(minutes=1)
        ResumableUpload.objects.update(expires_at=soon)
        tus.head(place)
        tus.patch(place, 0, b"")
        assert row_of(place).expires_at == soon
        tus.patch(place, 0, PICTURE[:1])
        assert row_of(place).expires_at > timezone.now() + timedelta(hours=23)

    def test_files_without_a_row_and_rows_of_deleted_datasets_are_removed(self, tus):
        other = Tus(tus.user, "other")
        kept, left = tus.begun(), other.begun()
        tus.patch(kept, 0, PICTURE[:10])
        other.patch(left, 0, PICTURE[:10])
        (partial_files.root() / "999999").write_bytes(b"left by a crash")
        delete_dataset(user=tus.user, dataset_id=other.dataset.pk)
        assert resumable.remove_expired_uploads() == 2
        assert files() == [str(number_of(kept))]
        assert [row.pk for row in ResumableUpload.objects.all()] == [number_of(kept)]
        assert tus.patch(kept, 10, PICTURE[10:]).status_code == 204

    def test_row_whose_file_is_gone_begins_anew_and_expires_like_any(self, tus):
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        partial_files.remove(number_of(place))
        assert tus.offset(place) == 0
        assert tus.http.get(place).json()["offset_bytes"] == 0
        assert tus.patch(place, 0, PICTURE[:5])["Upload-Offset"] == "5"
        partial_files.remove(number_of(place))
        assert resumable.remove_expired_uploads(now=timezone.now() + timedelta(hours=25)) == 1
        assert not ResumableUpload.objects.exists()


class TestCrashes:
    def test_bytes_that_the_row_does_not_count_are_written_again(self, tus, media_root):
        """As after a crash between the two: the file is longer, the row is the truth."""
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        with partial_files.path_of(number_of(place)).open("ab") as file:
            file.write(b"of a request that died")
        assert tus.offset(place) == 10
        assert tus.patch(place, 10, PICTURE[10:]).status_code == 204
        assert (media_root / MediaFile.objects.get().content.name).read_bytes() == PICTURE

    def test_request_that_dies_before_the_row_is_written_counts_for_nothing(self, tus, monkeypatch):
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        with monkeypatch.context() as crash:
            crash.setattr(resumable, "_change", lambda *a, **k: (_ for _ in ()).throw(OSError(5)))
            assert tus.patch(place, 10, PICTURE[10:20]).status_code == 503
        assert partial_files.size_bytes(number_of(place)) == 20
        assert tus.offset(place) == 10
        assert tus.patch(place, 10, PICTURE[10:]).status_code == 204

    def test_whole_file_whose_request_died_is_taken_in_by_the_next(self, tus, monkeypatch):
        place = tus.begun()
        with monkeypatch.context() as crash:
            crash.setattr(
                resumable, "upload_content", lambda **k: (_ for _ in ()).throw(OSError(5))
            )
            assert tus.patch(place, 0, PICTURE).status_code == 503
        assert_nothing_was_taken(tus.user)
        assert tus.patch(place, LENGTH, b"").status_code == 204
        assert balance_hundredths(user=tus.user) == 100_000 - 75

    def test_file_that_a_crash_left_after_its_acceptance_is_removed(self, tus, monkeypatch):
        place = tus.begun()
        with monkeypatch.context() as crash:
            crash.setattr(partial_files, "remove", lambda number: None)
            tus.patch(place, 0, PICTURE)
        assert files() == [str(number_of(place))]
        assert resumable.remove_expired_uploads() == 1
        assert files() == []
        assert tus.http.get(place).json()["state"] == "accepted"


class TestInvariants:
    @pytest.mark.parametrize(
        ("changes", "name"),
        [
            ({"length_bytes": 0, "offset_bytes": 0}, "is_not_empty"),
            ({"offset_bytes": 6}, "lies_within_its_length"),
            ({"offset_bytes": -1}, "lies_within_its_length"),
            ({"upload": True}, "accepted_only_when_it_is_whole"),
        ],
    )
    def test_database_refuses_what_cannot_be(self, tus, changes, name):
        tus.begun(5)
        if changes.get("upload"):
            changes = {"upload": Upload.objects.create(dataset=tus.dataset, file_name="a")}
        with pytest.raises(IntegrityError, match=name), transaction.atomic():
            ResumableUpload.objects.update(**changes)


class TestAtTheSameMoment:
    def test_pieces_for_one_place_are_taken_once_and_never_mixed(self, committed_db):
        tus = Tus()
        place = tus.begun(200_000)
        pieces = [bytes([number]) * 100_000 for number in range(6)]
        answers = in_threads(6, lambda n: client_patch(tus, place, 0, pieces[n]))
        assert sorted({answer.status_code for answer in answers} - {204}) in (
            [409],
            [423],
            [409, 423],
        )
        assert [answer.status_code for answer in answers].count(204) == 1
        winner = next(n for n, answer in enumerate(answers) if answer.status_code == 204)
        assert partial_files.path_of(number_of(place)).read_bytes() == pieces[winner]
        assert tus.offset(place) == 100_000

    def test_whole_file_is_charged_once_however_many_finish_it(self, committed_db, monkeypatch):
        tus = Tus()
        place = tus.begun()
        with monkeypatch.context() as later:
            later.setattr(resumable, "upload_content", lambda **k: (_ for _ in ()).throw(OSError))
            tus.patch(place, 0, PICTURE)
        answers = in_threads(5, lambda n: client_patch(tus, place, LENGTH, b""))
        statuses = [answer.status_code for answer in answers]
        assert 204 in statuses
        assert set(statuses) <= {204, 423}
        for answer in answers:
            if answer.status_code == 423:
                assert answer["Retry-After"] == "1"
        assert tus.patch(place, LENGTH, b"").status_code == 204
        assert Upload.objects.count() == 1
        assert balance_hundredths(user=tus.user) == 100_000 - 75

    def test_who_looks_at_a_whole_file_for_a_moment_keeps_nobody_from_finishing_it(
        self, committed_db, monkeypatch
    ):
        tus = Tus()
        place = tus.begun()
        with contextlib.ExitStack() as other:

            def hold(**request):
                other.enter_context(partial_files.held(number_of(place)))
                return finish(**request)

            finish = resumable.finish_resumable_upload
            monkeypatch.setattr(v1_resumable, "finish_resumable_upload", hold)
            monkeypatch.setattr(partial_files.time, "sleep", lambda seconds: other.close())
            assert tus.patch(place, 0, PICTURE).status_code == 204
        assert Upload.objects.count() == 1
        assert files() == []

    def test_upload_that_somebody_is_at_work_on_is_not_removed(self, committed_db):
        tus = Tus()
        place = tus.begun()
        tus.patch(place, 0, PICTURE[:10])
        with partial_files.held(number_of(place)):
            assert tus.delete(place).status_code == 423
            assert_refused(tus.patch(place, 10, PICTURE[10:]), 423, "upload_busy")
            later = timezone.now() + timedelta(hours=25)
            assert resumable.remove_expired_uploads(now=later) == 0
            assert tus.offset(place) == 10
        assert tus.delete(place).status_code == 204


def client_patch(tus, place, offset, content):
    """From a thread of its own, as `in_threads` wants it."""
    client = APIClient()
    client.credentials(**tus.http._credentials)
    headers = {**VERSION, "Upload-Offset": str(offset)}
    return client.patch(place, content, content_type=STREAM, headers=headers)


@given(
    cuts=st.lists(st.integers(1, LENGTH - 1), unique=True, max_size=6).map(sorted),
    noises=st.lists(st.tuples(st.integers(0, 6), st.integers(0, LENGTH + 5)), max_size=6),
)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_way_a_file_is_cut_it_is_the_same_file_for_one_charge(
    db, media_root, cuts, noises
):
    """Between its pieces come others, repeated or from a wrong place, which change nothing."""
    with transaction.atomic():
        tus = Tus()
        place = tus.begun()
        pieces = list(zip([0, *cuts], [*cuts, LENGTH], strict=True))
        for number, (begin, end) in enumerate(pieces):
            for before, wrong in noises:
                if before == number and wrong != begin:
                    assert tus.patch(place, wrong, b"noise").status_code == 409
                    assert tus.offset(place) == begin
            assert tus.patch(place, begin, PICTURE[begin:end])["Upload-Offset"] == str(end)
            assert tus.patch(place, begin, PICTURE[begin:end]).status_code == 409
        media_file = MediaFile.objects.get()
        assert (media_root / media_file.content.name).read_bytes() == PICTURE
        assert balance_hundredths(user=tus.user) == 100_000 - 75
        assert files() == []
        transaction.set_rollback(True)
