"""The resources of /api/v1/: what each answers, refuses and keeps from strangers."""

import io
import os
import subprocess
import sys
import zipfile
from datetime import timedelta

import numpy as np
import pytest
from django.core.files.storage import default_storage
from django.core.files.uploadedfile import SimpleUploadedFile
from django.core.management import call_command
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from PIL import Image
from rest_framework.test import APIClient
from rest_framework_simplejwt.tokens import AccessToken

from accounts.models import Session
from billing.ledger import charge_upload
from datasets.models import Dataset, MediaFile
from inference import selectors, services, submission
from inference.models import FrameResult, Job, JobFile, UnitFile, WorkUnit
from odproject.core.environ import BEGUN_AT
from tests.clients import client_of
from tests.factories import PASSWORD, add_media_file, dataset_id_of, make_dataset, make_user
from tests.mediafiles import image_bytes, noise

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_broker")]


@pytest.fixture
def client(user):
    return client_of(user)


def submit(user):
    return submission.submit_job(
        user=user, dataset_id=dataset_id_of(user), model_id="YOLO8", model_version="YOLO8s_FSR"
    )


class TestSessions:
    """Log in, refresh, log out."""

    def begin(self, user):
        anonymous = APIClient()
        response = anonymous.post("/api/v1/tokens/", {"email": user.email, "password": PASSWORD})
        assert response.status_code == 201
        return anonymous, response.json()

    def refresh(self, anonymous, token):
        return anonymous.post("/api/v1/tokens/refresh/", {"refresh": token})

    def test_new_user_registers_and_asks_who_it_is(self):
        anonymous = APIClient()
        body = {"email": "ann@example.org", "password": PASSWORD}
        created = anonymous.post("/api/v1/users/", body, format="json")
        assert created.status_code == 201
        assert set(created.json()) == {"id", "email", "is_staff", "created_at"}
        tokens = anonymous.post("/api/v1/tokens/", body).json()
        anonymous.credentials(HTTP_AUTHORIZATION=f"Bearer {tokens['access']}")
        assert anonymous.get("/api/v1/me/").json()["email"] == "ann@example.org"

    def test_refresh_token_is_exchanged_once(self, user):
        anonymous, first = self.begin(user)
        second = self.refresh(anonymous, first["refresh"])
        assert second.status_code == 201
        assert second.json()["refresh"] != first["refresh"]
        again = self.refresh(anonymous, first["refresh"])
        assert (again.status_code, again.json()["code"]) == (401, "invalid_refresh_token")
        # That was at the same moment: a race, and the winner's session goes on.
        assert self.refresh(anonymous, second.json()["refresh"]).status_code == 201

    def test_replayed_refresh_token_ends_the_whole_session(self, user):
        anonymous, first = self.begin(user)
        second = self.refresh(anonymous, first["refresh"]).json()
        Session.objects.update(refreshed_at=timezone.now() - timedelta(minutes=1))
        assert self.refresh(anonymous, first["refresh"]).status_code == 401
        assert self.refresh(anonymous, second["refresh"]).status_code == 401
        anonymous.credentials(HTTP_AUTHORIZATION=f"Bearer {second['access']}")
        assert anonymous.get("/api/v1/me/").status_code == 401

    def test_log_out_ends_access_and_refresh_of_this_session_only(self, user):
        anonymous, tokens = self.begin(user)
        other = client_of(user)
        anonymous.credentials(HTTP_AUTHORIZATION=f"Bearer {tokens['access']}")
        assert anonymous.post("/api/v1/tokens/revoke/").status_code == 204
        assert anonymous.get("/api/v1/me/").status_code == 401
        anonymous.credentials()
        assert self.refresh(anonymous, tokens["refresh"]).status_code == 401
        assert other.get("/api/v1/me/").status_code == 200

    def test_token_may_expire_while_a_request_comes_in(self, user):
        token = AccessToken(client_of(user)._credentials["HTTP_AUTHORIZATION"].split()[1])
        now = timezone.now()
        token.set_exp(from_time=now, lifetime=timedelta(minutes=-5))
        late = APIClient()
        late.credentials(HTTP_AUTHORIZATION=f"Bearer {token}")

        def status(*, minutes_ago: float) -> int:
            begun_at = (now - timedelta(minutes=minutes_ago)).timestamp()
            return late.get("/api/v1/me/", **{BEGUN_AT: begun_at}).status_code

        assert late.get("/api/v1/me/").status_code == 401
        assert status(minutes_ago=0) == 401
        assert status(minutes_ago=4.9) == 401
        assert status(minutes_ago=5.1) == 200
        assert status(minutes_ago=-10) == 401
        Session.objects.update(revoked_at=timezone.now())
        assert status(minutes_ago=5.1) == 401

    @pytest.mark.parametrize("token", ["", "x", "a.b.c", "\x00"])
    def test_what_is_no_refresh_token_is_refused(self, token):
        assert self.refresh(APIClient(), token).status_code in (400, 401)

    def test_access_token_is_no_refresh_token(self, user):
        anonymous, tokens = self.begin(user)
        assert self.refresh(anonymous, tokens["access"]).status_code == 401

    def test_refresh_token_of_a_deleted_user_is_refused(self):
        user = make_user()
        anonymous, tokens = self.begin(user)
        user.delete()
        assert self.refresh(anonymous, tokens["refresh"]).status_code == 401


class TestDatasets:
    """Create, list, change, delete."""

    def test_dataset_is_created_with_its_place(self, client):
        body = {"name": "highway", "tags": ["a", "b"]}
        created = client.post("/api/v1/datasets/", body, format="json")
        assert created.status_code == 201
        document = created.json()
        assert created["Location"] == f"/api/v1/datasets/{document['id']}/"
        assert (document["name"], document["tags"]) == ("highway", ["a", "b"])
        assert client.get(created["Location"]).json() == document

    def test_list_is_paged_filtered_and_ordered(self, client, user):
        for name in ("alpha", "beta", "gamma"):
            make_dataset(user, name)
        listed = client.get("/api/v1/datasets/", {"ordering": "name", "page_size": 2}).json()
        assert (listed["count"], [one["name"] for one in listed["results"]]) == (
            3,
            ["alpha", "beta"],
        )
        assert listed["next"] is not None
        found = client.get("/api/v1/datasets/", {"name__icontains": "AMM"}).json()
        assert [one["name"] for one in found["results"]] == ["gamma"]

    @pytest.mark.parametrize(
        "query", ["user__email=x", "user=1", "nonsense=1", "ordering=user__password"]
    )
    def test_filter_that_is_not_offered_is_refused(self, client, query):
        refused = client.get(f"/api/v1/datasets/?{query}")
        assert refused.status_code == 400
        assert refused["Content-Type"] == "application/problem+json"

    def test_dataset_is_renamed_and_deleted(self, client, dataset):
        path = f"/api/v1/datasets/{dataset.pk}/"
        assert client.patch(path, {"name": "road"}, format="json").json()["name"] == "road"
        assert client.delete(path).status_code == 204
        assert client.get(path).status_code == 404
        assert Dataset.objects.get().deleted_at is not None

    def test_taken_name_is_a_conflict(self, client, user, dataset):
        make_dataset(user, "road")
        path = f"/api/v1/datasets/{dataset.pk}/"
        assert client.patch(path, {"name": "road"}, format="json").status_code == 409


class TestMediaFiles:
    """Upload, look at, and fetch in parts."""

    def upload(self, client, dataset, content, name="a.png"):
        return client.post(
            f"/api/v1/datasets/{dataset.pk}/uploads/", {"file": SimpleUploadedFile(name, content)}
        )

    def test_upload_answers_with_its_report(self, client, dataset):
        answer = self.upload(client, dataset, image_bytes("PNG", noise((32, 24))))
        assert answer.status_code == 201
        report = answer.json()
        assert (report["cost_tokens"], report["refused"]) == (0.75, [])
        (accepted,) = report["accepted"]
        assert (accepted["name"], accepted["width"], accepted["height"]) == ("a.png", 32, 24)
        listed = client.get(f"/api/v1/datasets/{dataset.pk}/media-files/").json()
        assert listed["results"] == [accepted]
        uploads = f"/api/v1/datasets/{dataset.pk}/uploads/"
        assert answer["Location"] == f"{uploads}{report['id']}/"
        assert client.get(answer["Location"]).json() == report
        (summary,) = client.get(uploads).json()["results"]
        counts = {"accepted_count": 1, "refused_count": 0}
        shared = {key: report[key] for key in set(report) - {"accepted", "refused"}}
        assert summary == shared | counts

    def test_lists_of_uploads_do_not_grow_with_what_is_in_them(self, client, dataset):
        """A zip holds thousands of files, and a page two hundred uploads."""
        picture = image_bytes("PNG", noise((32, 24)))
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            for name, content in {"a.png": picture, "b.png": picture, "c.txt": b"no"}.items():
                archive.writestr(name, content)
        report = self.upload(client, dataset, packed.getvalue(), "all.zip").json()
        other = self.upload(client, dataset, picture).json()
        uploads = f"/api/v1/datasets/{dataset.pk}/uploads/"
        counts = [
            (one["id"], one["accepted_count"], one["refused_count"])
            for one in client.get(uploads).json()["results"]
        ]
        assert counts == [(other["id"], 1, 0), (report["id"], 2, 1)]
        files = client.get(
            f"/api/v1/datasets/{dataset.pk}/media-files/", {"upload_id": report["id"]}
        )
        assert files.json()["results"] == report["accepted"]
        assert [one["name"] for one in report["accepted"]] == ["a.png", "b.png"]

    def test_upload_of_another_dataset_is_not_found(self, client, user, dataset):
        report = self.upload(client, dataset, image_bytes("PNG", noise((32, 24)))).json()
        elsewhere = make_dataset(user, "elsewhere")
        answer = client.get(f"/api/v1/datasets/{elsewhere.pk}/uploads/{report['id']}/")
        assert (answer.status_code, answer.json()["code"]) == (404, "upload_not_found")

    def test_thumbnail_is_a_small_jpeg(self, client, dataset):
        content = image_bytes("PNG", noise((900, 600)))
        media_file = self.upload(client, dataset, content).json()["accepted"][0]
        answer = client.get(media_file["thumbnail_url"])
        assert answer["Content-Type"] == "image/jpeg"
        with Image.open(io.BytesIO(b"".join(answer.streaming_content))) as thumbnail:
            assert (thumbnail.format, thumbnail.size) == ("JPEG", (320, 213))

    def test_refused_upload_says_why(self, client, dataset):
        answer = self.upload(client, dataset, b"<html>", name="a.jpg")
        assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_media_type")
        assert answer.json()["errors"][0]["field"] == "file"
        assert not MediaFile.objects.exists()

    @pytest.mark.parametrize(
        ("wanted", "status", "part", "content_range"),
        [
            ("", 200, slice(0, None), None),
            ("bytes=0-9", 206, slice(0, 10), "bytes 0-9/{size}"),
            ("bytes=10-", 206, slice(10, None), "bytes 10-{last}/{size}"),
            ("bytes=-5", 206, slice(-5, None), "bytes {tail}-{last}/{size}"),
            ("bytes=0-999999", 206, slice(0, None), "bytes 0-{last}/{size}"),
            ("bytes=999999-", 416, slice(0, 0), "bytes */{size}"),
            ("bytes=5-2", 200, slice(0, None), None),
            ("lines=1-2", 200, slice(0, None), None),
            ("bytes=0-1,4-5", 200, slice(0, None), None),
        ],
    )
    def test_content_comes_whole_or_in_part(  # noqa: PLR0917
        self, client, dataset, wanted, status, part, content_range
    ):
        content = image_bytes("PNG", noise((32, 24)))
        media_file = self.upload(client, dataset, content).json()["accepted"][0]
        answer = client.get(media_file["content_url"], HTTP_RANGE=wanted)
        assert answer.status_code == status
        if content_range:
            size = len(content)
            expected = content_range.format(size=size, last=size - 1, tail=size - 5)
            assert answer["Content-Range"] == expected
        if status != 416:
            assert b"".join(answer.streaming_content) == content[part]
            assert answer["Content-Length"] == str(len(content[part]))
            assert answer["Content-Type"] == "image/png"
            assert answer["Content-Disposition"].startswith("attachment")
            assert "sandbox" in answer["Content-Security-Policy"]

    @pytest.mark.parametrize("what", ["content_url", "thumbnail_url"])
    def test_browser_keeps_a_file_for_the_token_that_asked(self, client, dataset, what):
        content = image_bytes("PNG", noise((32, 24)))
        media_file = self.upload(client, dataset, content).json()["accepted"][0]
        answer = client.get(media_file[what])
        answer.close()
        assert answer["Cache-Control"] == "private, max-age=3600"
        assert "Authorization" in answer["Vary"]

    @pytest.mark.parametrize("what", ["content", "thumbnail"])
    def test_file_that_somebody_removed_from_the_storage_is_not_found(self, client, dataset, what):
        accepted = self.upload(client, dataset, image_bytes("PNG", noise((32, 24)))).json()
        (row,) = MediaFile.objects.filter(pk=accepted["accepted"][0]["id"])
        default_storage.delete(getattr(row, what).name)
        answer = client.get(accepted["accepted"][0][f"{what}_url"], HTTP_RANGE="bytes=0-1")
        assert (answer.status_code, answer.json()["code"]) == (404, "stored_file_missing")


class TestJobs:
    """Submit, watch, abort, read."""

    def test_submission_is_accepted_with_its_place(self, client, dataset):
        add_media_file(dataset)
        body = {"dataset_id": dataset.pk, "model_version": "YOLO8s_FSR"}
        answer = client.post("/api/v1/jobs/", body, format="json")
        assert answer.status_code == 202
        job = answer.json()
        assert answer["Location"] == f"/api/v1/jobs/{job['id']}/"
        assert (job["state"], job["quoted_tokens"], job["charged_tokens"]) == ("Pending", 1.5, None)
        assert [(one["filename"], one["state"]) for one in job["files"]] == [("a.jpg", "pending")]
        assert client.get(answer["Location"]).json() == job
        assert client.get("/api/v1/balance/").json() == {
            "available_tokens": 998.5,
            "held_tokens": 1.5,
            "alert_below_tokens": None,
        }

    def test_short_balance_is_402_with_both_amounts(self, client, user, dataset):
        add_media_file(dataset)
        charge_upload(user=user, amount_hundredths=99_900, upload_id=1)
        body = {"dataset_id": dataset.pk, "model_version": "YOLO8s_FSR"}
        refused = client.post("/api/v1/jobs/", body, format="json")
        assert refused.status_code == 402
        assert refused.json()["needed_tokens"] == 1.5
        assert refused.json()["balance_tokens"] == 1.0
        assert not Job.objects.exists()

    def test_aborted_job_costs_what_was_done(self, client, user, dataset):
        add_media_file(dataset)
        job = submit(user)
        aborted = client.post(f"/api/v1/jobs/{job.pk}/abort/").json()
        assert (aborted["state"], aborted["charged_tokens"]) == ("Aborted", 0.0)
        assert client.post(f"/api/v1/jobs/{job.pk}/abort/").status_code == 409

    def test_list_is_filtered_by_state(self, client, user, dataset):
        add_media_file(dataset)
        first, second = submit(user), submit(user)
        services.abort_job(job_id=first.pk)
        listed = client.get("/api/v1/jobs/", {"state": "Pending"}).json()
        assert [one["id"] for one in listed["results"]] == [second.pk]

    def test_job_tells_its_first_files_and_all_come_in_pages(
        self, client, user, dataset, monkeypatch
    ):
        monkeypatch.setattr(selectors, "FIRST_FILES", 2)
        names = [f"{letter}.jpg" for letter in "edcba"]
        for name in names:
            add_media_file(dataset, name=name)
        job = submit(user)
        shown = client.get(f"/api/v1/jobs/{job.pk}/").json()
        assert shown["file_count"] == 5
        assert [one["filename"] for one in shown["files"]] == ["e.jpg", "d.jpg"]
        path = f"/api/v1/jobs/{job.pk}/files/"
        page = client.get(path, {"page_size": 3}).json()
        assert (page["count"], page["previous"]) == (5, None)
        assert page["results"][:2] == shown["files"]
        rest = client.get(page["next"]).json()
        assert rest["next"] is None
        assert [one["filename"] for one in page["results"] + rest["results"]] == names

    def test_files_of_a_job_are_filtered_by_state_and_type(self, client, user, dataset):
        add_media_file(dataset)
        add_media_file(dataset, name="b.jpg")
        job = submit(user)
        job.files.filter(position=1).update(state=JobFile.State.FAILED, error="It is damaged.")
        path = f"/api/v1/jobs/{job.pk}/files/"

        def names(**query):
            return [one["filename"] for one in client.get(path, query).json()["results"]]

        assert names(state="failed") == ["b.jpg"]
        assert names(state__in="failed,pending") == ["a.jpg", "b.jpg"]
        assert names(type="image", state="pending") == ["a.jpg"]
        assert names(type="video") == []
        assert client.get(path, {"state": "lost"}).status_code == 400
        assert client.get(path, {"ordering": "id"}).status_code == 400

    def test_frame_results_are_filtered_by_confidence_and_class(self, client, user, dataset):
        media_file = add_media_file(dataset)
        job = submit(user)
        Job.objects.filter(pk=job.pk).update(class_names=["car", "bus"])
        FrameResult.objects.create(
            job=job,
            media_file=media_file,
            frame_index=0,
            time_seconds=0,
            class_ids=np.array([0, 1, 0], "<i2").tobytes(),
            confidences=np.array([0.9, 0.5, 0.1], "<f4").tobytes(),
            boxes_xyxy=np.arange(12).astype("<f4").tobytes(),
            class_counts={"car": 1, "bus": 1},
        )
        path = f"/api/v1/jobs/{job.pk}/frame-results/"

        def confidences(**query):
            (frame,) = client.get(path, query).json()["results"]
            return [one["confidence"] for one in frame["objects"]]

        assert confidences() == [0.9, 0.5, 0.1]
        assert confidences(minimum_confidence=0.25) == [0.9, 0.5]
        assert confidences(class_name="car") == [0.9, 0.1]
        assert confidences(class_name="") == confidences()
        assert confidences(class_name=["car", "bus"]) == confidences()
        assert client.get(path, {"class_name": "tram"}).status_code == 400
        assert client.get(path, {"minimum_confidence": "nan"}).status_code == 400
        assert client.get(path, {"minimum_confidence": 2}).status_code == 400
        # With 500 objects each, a hundred frames are as much as one answer should hold.
        assert client.get(path, {"page_size": 100}).status_code == 200
        assert client.get(path, {"page_size": 101}).status_code == 400

    def test_annotated_file_has_its_type(self, client, user, dataset, media_root):
        add_media_file(dataset)
        job = submit(user)
        claim = services.claim_unit(unit_id=WorkUnit.objects.get().pk, worker_name="w")
        (media_root / "results").mkdir(parents=True)
        (media_root / "results/x.jpg").write_bytes(b"picture")
        part = UnitFile.objects.get(unit_id=claim.unit_id, job_file__position=0)
        services.complete_unit(claim=claim, annotated={part.job_file_id: "results/x.jpg"})
        (file,) = client.get(f"/api/v1/jobs/{job.pk}/").json()["files"]
        answer = client.get(file["annotated_url"])
        assert (answer["Content-Type"], b"".join(answer.streaming_content)) == (
            "image/jpeg",
            b"picture",
        )
        assert "Authorization" in answer["Vary"]
        (media_root / "results/x.jpg").unlink()
        for path in (file["annotated_url"], f"/api/v1/jobs/{job.pk}/annotated-zip/"):
            gone = client.get(path)
            assert (gone.status_code, gone.json()["code"]) == (404, "stored_file_missing")

    def test_zip_holds_what_was_annotated_before_the_job_was_aborted(
        self, client, user, dataset, media_root, settings
    ):
        settings.UNIT_MAX_IMAGES = 1
        add_media_file(dataset)
        add_media_file(dataset, name="b.jpg")
        job = submit(user)
        path = f"/api/v1/jobs/{job.pk}/annotated-zip/"
        unit = WorkUnit.objects.order_by("position")[0]
        claim = services.claim_unit(unit_id=unit.pk, worker_name="w")
        (media_root / "results").mkdir(parents=True)
        (media_root / "results/x.jpg").write_bytes(b"picture")
        part = UnitFile.objects.get(unit_id=claim.unit_id, job_file__position=0)
        services.complete_unit(claim=claim, annotated={part.job_file_id: "results/x.jpg"})
        refused = client.get(path)
        assert (refused.status_code, refused.json()["code"]) == (409, "job_not_finished")
        services.abort_job(job_id=job.pk)
        answer = client.get(path)
        assert answer["Content-Disposition"] == f'attachment; filename="job-{job.pk}.zip"'
        with zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content))) as archive:
            assert {name: archive.read(name) for name in archive.namelist()} == {
                "a.jpg": b"picture"
            }

    def test_job_names_its_dataset_also_after_the_deletion(self, client, user, dataset):
        add_media_file(dataset)
        submit(user)
        assert client.delete(f"/api/v1/datasets/{dataset.pk}/").status_code == 204
        (job,) = client.get("/api/v1/jobs/").json()["results"]
        assert (job["dataset_id"], job["dataset_name"]) == (dataset.pk, "street")


@pytest.mark.parametrize(("proxies", "scheme"), [("0", "http"), ("1", "https")])
def test_links_are_https_where_a_proxy_of_ours_says_so(proxies, scheme):
    """In a process of its own, which reads the settings anew: a client's word does not count."""
    code = (
        "from django.test import RequestFactory as Requests\n"
        "request = Requests().get('/', HTTP_HOST='a.example', HTTP_X_FORWARDED_PROTO='https')\n"
        "print(request.build_absolute_uri('/api/v1/jobs/?page=2'))"
    )
    told = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "OD_NUM_PROXIES": proxies},
        check=True,
        capture_output=True,
        text=True,
    )
    assert told.stdout == f"{scheme}://a.example/api/v1/jobs/?page=2\n"


def test_ledger_shows_every_movement_newest_first(client, user, dataset):
    add_media_file(dataset)
    job = submit(user)
    services.abort_job(job_id=job.pk)
    movements = client.get("/api/v1/ledger/").json()["results"]
    assert [(one["kind"], one["amount_tokens"]) for one in movements] == [
        ("release", 1.5),
        ("hold", -1.5),
        ("welcome", 1000.0),
    ]
    only_job = client.get("/api/v1/ledger/", {"job_id": job.pk}).json()["results"]
    assert len(only_job) == 2


@pytest.mark.parametrize("name", ["since", "seq__gt"])
def test_events_after_a_number_are_what_is_new(client, user, dataset, name):
    add_media_file(dataset)
    job = submit(user)
    services.abort_job(job_id=job.pk)
    events = client.get("/api/v1/events/", {name: 1}).json()["results"]
    assert [(one["seq"], one["kind"]) for one in events] == [(2, "job.aborted")]


def test_models_and_prices_are_listed(client):
    models = client.get("/api/v1/models/").json()["results"]
    assert [one["version"] for one in models] == ["YOLO8s_FSR", "YOLO8m_FSR"]
    assert client.get("/api/v1/prices/").json() == {
        "upload_image_tokens": 0.75,
        "upload_frame_tokens": 0.5,
        "inference_image_tokens": 1.5,
        "inference_frame_tokens": 1.0,
    }


def test_list_of_models_asks_the_workers_once(client):
    with CaptureQueriesContext(connection) as asked:
        models = client.get("/api/v1/models/").json()["results"]
    assert len(models) == 2
    assert sum("inference_workerheartbeat" in query["sql"] for query in asked) == 1


def test_nobody_reaches_what_is_anothers(user, dataset, media_root):
    media_file = add_media_file(dataset)
    job = submit(user)
    stranger, admin = client_of(make_user()), client_of(make_user(staff=True))
    owned = [
        f"/api/v1/datasets/{dataset.pk}/",
        f"/api/v1/datasets/{dataset.pk}/media-files/",
        f"/api/v1/datasets/{dataset.pk}/uploads/",
        f"/api/v1/media-files/{media_file.pk}/",
        f"/api/v1/media-files/{media_file.pk}/content/",
        f"/api/v1/media-files/{media_file.pk}/thumbnail/",
        f"/api/v1/jobs/{job.pk}/",
        f"/api/v1/jobs/{job.pk}/frame-results/",
        f"/api/v1/jobs/{job.pk}/annotated-files/1/",
        f"/api/v1/jobs/{job.pk}/annotated-zip/",
    ]
    for path in owned:
        assert APIClient().get(path).status_code == 401, path
        assert stranger.get(path).status_code == 404, path
        assert admin.get(path).status_code == 404, path
    assert stranger.post(f"/api/v1/jobs/{job.pk}/abort/").status_code == 404
    body = {"dataset_id": dataset.pk, "model_version": "YOLO8s_FSR"}
    assert stranger.post("/api/v1/jobs/", body, format="json").status_code == 404
    assert stranger.patch(owned[0], {"name": "mine now"}, format="json").status_code == 404
    assert stranger.delete(owned[0]).status_code == 404
    for path in ("datasets", "jobs", "events"):
        assert stranger.get(f"/api/v1/{path}/").json()["count"] == 0
    job.refresh_from_db()
    dataset.refresh_from_db()
    assert (job.state, dataset.name, dataset.deleted_at) == ("Pending", "street", None)


def test_openapi_document_is_made_without_a_warning(tmp_path):
    call_command("spectacular", validate=True, fail_on_warn=True, file=str(tmp_path / "api.yml"))
    assert "/api/v1/jobs/{job_id}/abort/" in (tmp_path / "api.yml").read_text()


def test_swagger_page_asks_no_other_host():
    page = APIClient().get("/api/docs/").content.decode()
    assert "swagger-ui" in page
    assert "cdn" not in page
    assert "https://" not in page.replace("https://github.com", "")
