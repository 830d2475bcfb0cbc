"""Two jobs on one dataset side by side: numbers, pictures, and whose they are."""

import io
import itertools
import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from django.test import Client
from hypothesis import given
from hypothesis import settings as limited
from hypothesis import strategies as st
from PIL import Image
from rest_framework.test import APIClient

from datasets.media import video
from datasets.media.inspection import inspect_here
from datasets.uploading import media_limits
from inference import comparison, picture_child, submission
from inference.confined import ConfinedChildError
from inference.models import FrameResult, Job, WorkUnit
from inference.pipeline.compare import FIRST_RGB, SECOND_RGB, draw_difference, match
from inference.pipeline.types import Detections
from inference.scenes import match_boxes
from inference.worker import run_unit
from tests.clients import client_of
from tests.factories import add_media_file, dataset_id_of, make_dataset, make_user
from tests.mediafiles import write_image, write_video
from tests.pipeline_fakes import OneByOne

pytestmark = pytest.mark.usefixtures("no_broker")

CAR, TRUCK = 0, 1
LEFT, MIDDLE, RIGHT = [10, 10, 30, 30], [60, 10, 80, 30], [110, 10, 130, 30]


def detections(*rows) -> Detections:
    """Rows of class, confidence and box."""
    classes, confidences, boxes = zip(*rows, strict=True) if rows else ((), (), ())
    return Detections(
        np.array(classes, np.int16),
        np.array(confidences, np.float32),
        np.array(boxes, np.float32).reshape(-1, 4),
    )


class Finds(OneByOne):
    """A detector that finds the same in every image."""

    class_names = ("car", "truck", "bus", "minibus")

    def __init__(self, *rows) -> None:
        self._found = detections(*rows)

    def detect(self, images):
        return [self._found for _ in images]


# What the first sees on the left, the second sees a little aside and takes for a truck.
FIRST = Finds((CAR, 0.9, LEFT), (CAR, 0.8, MIDDLE), (CAR, 0.1, RIGHT))
SECOND = Finds((TRUCK, 0.9, [12, 10, 32, 30]), (CAR, 0.7, RIGHT), (CAR, 0.6, [61, 11, 81, 31]))


# -- matching ------------------------------------------------------------------------------------

SOME_BOXES = st.lists(
    st.tuples(*[st.integers(0, 20)] * 2, *[st.integers(1, 15)] * 2), max_size=12
).map(lambda rows: detections(*((CAR, 0.5, (x, y, x + w, y + h)) for x, y, w, h in rows)))


@limited(max_examples=60, deadline=None)
@given(first=SOME_BOXES, second=SOME_BOXES)
def test_each_detection_is_in_one_pair_or_left_over(first, second):
    found = match(first, second, iou=0.5)
    assert sorted([*found.pairs[:, 0], *found.only_first]) == list(range(len(first)))
    assert sorted([*found.pairs[:, 1], *found.only_second]) == list(range(len(second)))
    assert (len(found.pairs), len(found.only_second)) == match_boxes(
        first.boxes_xyxy, second.boxes_xyxy
    )
    assert len(match(second, first, iou=0.5).pairs) == len(found.pairs)


def test_greatest_overlap_is_paired_first_whatever_the_class():
    first = detections((CAR, 0.9, [0, 0, 20, 20]), (CAR, 0.8, [4, 0, 24, 20]))
    second = detections((TRUCK, 0.5, [5, 0, 25, 20]))
    found = match(first, second, iou=0.5)
    assert found.pairs.tolist() == [[1, 0]]
    assert (found.only_first.tolist(), found.only_second.tolist()) == ([0], [])


def test_picture_of_differences_tells_by_colour_and_words():
    grey = np.full((300, 800, 3), 90, np.uint8)
    picture = draw_difference(
        grey,
        both=np.array([[10, 10, 40, 40]], np.float32),
        only_first=np.array([[100, 50, 140, 90]], np.float32),
        only_second=np.zeros((0, 4), np.float32),
        names=("YOLO8s_FSR", "a version with a name of forty letters x"),
        largest_side_pixels=400,
    )
    assert picture.shape[1] == 400
    below = picture[-150:]  # without the strip of words
    colours = {tuple(one) for one in below.reshape(-1, 3).tolist()}
    assert FIRST_RGB in colours
    assert SECOND_RGB not in colours
    assert (grey == 90).all()


# -- the API -------------------------------------------------------------------------------------


@pytest.fixture
def owner(tmp_path):
    user = make_user("owner@example.org")
    dataset = make_dataset(user)
    grey = np.full((120, 160, 3), 90, np.uint8)
    write_image(tmp_path / "a.png", grey, image_format="PNG")
    write_video(tmp_path / "b.mp4", frames=3, size_wh=(160, 120), paint=lambda index: grey)
    add_media_file(dataset, name="a.png", content=tmp_path / "a.png", image_format="png")
    add_media_file(
        dataset,
        name="b.mp4",
        content=tmp_path / "b.mp4",
        media_type="video",
        frame_count=3,
        image_format="mp4",
    )
    return user


def finished_job(user, detector, version="YOLO8s_FSR", name="street") -> Job:
    job = submission.submit_job(
        user=user, dataset_id=dataset_id_of(user, name), model_id="YOLO8", model_version=version
    )
    for unit_id in WorkUnit.objects.filter(job=job).order_by("pk").values_list("pk", flat=True):
        assert run_unit(unit_id=unit_id, worker_name="w", detector_of=lambda *_: detector)
    job.refresh_from_db()
    assert job.state == "Completed"
    return job


@pytest.fixture
def pair(owner):
    return finished_job(owner, FIRST), finished_job(owner, SECOND, "YOLO8m_FSR")


def page(first, second=None, picture=False, **keys) -> str:
    given = {"with": second.pk if isinstance(second, Job) else second, **keys}
    query = "&".join(f"{key}={value}" for key, value in given.items() if value is not None)
    return f"/api/v1/jobs/{first.pk}/comparison/{'picture/' if picture else ''}?{query}"


@pytest.mark.django_db
def test_two_jobs_are_counted_matched_and_told_apart(owner, pair):
    first, second = pair
    document = client_of(owner).get(page(first, second)).json()
    assert document["first"] == {
        "job_id": first.pk,
        "model_version": "YOLO8s_FSR",
        "weights_sha256": first.weights_sha256,
        "class_counts": {"car": 8},
    }
    assert document["second"]["class_counts"] == {"car": 8, "truck": 4}
    assert (document["minimum_confidence"], document["iou"]) == (0.25, 0.5)
    totals = {
        "frames": 4,
        "matched": 8,
        "same_class": 4,
        "only_first": 0,
        "only_second": 4,
        "agreement": 0.8,
        "class_agreement": 0.5,
    }
    assert document["totals"] == totals
    assert document["is_complete"] is True
    image, video = document["files"]
    assert (image["filename"], image["type"], image["totals"]["frames"]) == ("a.png", "image", 1)
    assert (video["filename"], video["totals"]["only_second"]) == ("b.mp4", 3)
    assert video["most_different_frame_index"] == 0
    assert video["picture_url"].startswith(f"/api/v1/jobs/{first.pk}/comparison/picture/?with=")


@pytest.mark.django_db
def test_confidence_and_overlap_decide_what_is_compared(owner, pair):
    client = client_of(owner)
    low = client.get(page(*pair, minimum_confidence=0.05)).json()["totals"]
    assert (low["matched"], low["only_first"], low["only_second"]) == (12, 0, 0)
    strict = client.get(page(*pair, iou=0.95)).json()["totals"]
    assert (strict["matched"], strict["agreement"]) == (0, 0.0)
    assert strict["class_agreement"] is None
    none = client.get(page(*pair, minimum_confidence=1)).json()["totals"]
    assert (none["matched"], none["agreement"]) == (0, None)


@pytest.mark.django_db
def test_only_frames_that_both_looked_at_are_compared(owner, pair, monkeypatch):
    first, second = pair
    monkeypatch.setattr(comparison, "ROWS_PER_READ", 2)  # several slices
    FrameResult.objects.filter(job=second, frame_index=1).delete()
    FrameResult.objects.filter(job=first, frame_index=2).delete()
    document = client_of(owner).get(page(first, second)).json()
    assert [one["totals"]["frames"] for one in document["files"]] == [1, 1]
    monkeypatch.setattr(comparison, "MAX_FRAMES", 1)
    document = client_of(owner).get(page(first, second)).json()
    assert (document["is_complete"], document["totals"]["frames"]) == (False, 1)


@pytest.mark.django_db
def test_comparison_ends_when_its_time_is_over(owner, pair, monkeypatch):
    monkeypatch.setattr(comparison, "MAX_SECONDS", -1)
    document = client_of(owner).get(page(*pair)).json()
    assert (document["is_complete"], document["totals"]["frames"]) == (False, 0)


@pytest.mark.django_db
def test_time_is_over_also_while_frames_are_passed_over_that_only_one_looked_at(pair, monkeypatch):
    first, second = pair
    FrameResult.objects.filter(job=first).exclude(frame_index=2).delete()  # the last of four stays
    seconds = itertools.count()  # one for each look at the clock
    monkeypatch.setattr(comparison, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    monkeypatch.setattr(comparison, "MAX_SECONDS", 3)
    short = comparison.compare(first, second, rules=comparison.Rules())
    assert (short.is_complete, short.tally.frames) == (False, 0)
    monkeypatch.setattr(comparison, "MAX_SECONDS", 4)
    enough = comparison.compare(first, second, rules=comparison.Rules())
    assert (enough.is_complete, enough.tally.frames) == (True, 1)


@pytest.mark.django_db
@pytest.mark.parametrize("kind", ["comparison", "picture"])
def test_comparisons_leave_threads_for_others(owner, pair, monkeypatch, kind):
    client, admin = client_of(owner), browser_of(make_user(staff=True))
    address = page(*pair)
    if kind == "picture":
        address = client.get(address).json()["files"][0]["picture_url"]
    slots = threading.BoundedSemaphore(1)
    monkeypatch.setattr(comparison, f"_{kind}_slots", slots)
    monkeypatch.setattr(comparison, "WAIT_SECONDS", 0)
    with slots:
        busy = client.get(address)
        shown = admin.get(address.replace("/api/v1/jobs", "/admin/inference/job"))
    assert (busy.status_code, busy.json()["code"]) == (503, "too_many_comparisons")
    assert busy["Retry-After"] == "5"
    assert "Too many comparisons at once" in shown.content.decode()
    assert client.get(address).status_code == 200


@pytest.mark.django_db
def test_picture_shows_what_only_one_found(owner, pair):
    client = client_of(owner)
    document = client.get(page(*pair)).json()
    for file in document["files"]:
        answer = client.get(file["picture_url"])
        assert answer.status_code == 200, answer.content
        assert answer["Content-Type"] == "image/jpeg"
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert answer["Cache-Control"] == "private, max-age=3600"
        assert "Authorization" in answer["Vary"]
        picture = np.asarray(Image.open(io.BytesIO(answer.content)).convert("RGB")).astype(int)
        assert picture.shape[1] == 160
        below = picture[-120:, 105:135]  # where only the second job has found something
        assert (abs(below - np.array(SECOND_RGB)).sum(axis=2) < 90).any()
        left = picture[-120:, :50]
        assert not (abs(left - np.array(SECOND_RGB)).sum(axis=2) < 90).any()


@pytest.mark.django_db
def test_picture_far_into_a_video_is_decoded_from_the_last_point_before_it(
    owner, monkeypatch, tmp_path, settings
):
    settings.MAX_IMAGE_PIXELS = 123_456
    monkeypatch.setattr("datasets.media.seeking.SPACING_FRAMES", 10)
    source = write_video(tmp_path / "long.avi", frames=60, codec="mjpeg")
    facts = inspect_here(source, limits=media_limits())
    dataset = make_dataset(owner, "long")
    media_file = add_media_file(
        dataset,
        name="long.avi",
        content=source,
        media_type="video",
        frame_count=60,
        image_format="avi",
        seek_plan=facts.seek_plan,
    )
    first, second = (finished_job(owner, found, name="long") for found in (FIRST, SECOND))
    tasks = []
    monkeypatch.setattr(
        comparison, "answer_of_child", lambda _, task, *rest: tasks.append(task) or {"picture": ""}
    )
    comparison.difference_picture(
        first, second, media_file_id=media_file.pk, frame_index=55, rules=comparison.Rules()
    )
    (task,) = json.loads(json.dumps(tasks))
    assert task["seek_plan"] == facts.seek_plan
    assert task["media_limits"]["max_pixels"] == 123_456
    decoded = []
    check_size = video.check_size
    monkeypatch.setattr(
        video, "check_size", lambda *size: (decoded.append(size), check_size(*size))
    )
    assert picture_child.draw(task, source)["picture"]
    assert len(decoded) <= 6  # from 50 on


@pytest.mark.django_db
@pytest.mark.parametrize("picture", [False, True])
def test_jobs_of_others_do_not_exist(owner, pair, picture):
    first, second = pair
    stranger = make_user()
    mine = make_dataset(stranger, "mine")
    add_media_file(mine, name="x.png", content=b"x")
    foreign = submission.submit_job(
        user=stranger,
        dataset_id=dataset_id_of(stranger, "mine"),
        model_id="YOLO8",
        model_version="YOLO8s_FSR",
    )
    keys = {"picture": picture}
    if picture:
        keys["media_file_id"] = FrameResult.objects.filter(job=first).first().media_file_id
    for user, one, other in (
        (stranger, first, second),
        (stranger, foreign, second),
        (owner, first, foreign),
        (owner, foreign, second),
        (make_user(staff=True), first, second),
    ):
        answer = client_of(user).get(page(one, other, **keys))
        assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    assert APIClient().get(page(first, second, **keys)).status_code == 401
    assert client_of(owner).get(page(first, 10**15, **keys)).status_code == 404


@pytest.mark.django_db
def test_what_cannot_be_compared_is_refused_with_the_reason(owner, pair):
    first, second = pair
    client = client_of(owner)
    other = make_dataset(owner, "other")
    add_media_file(other, name="x.png", content=b"x")
    elsewhere = submission.submit_job(
        user=owner,
        dataset_id=dataset_id_of(owner, "other"),
        model_id="YOLO8",
        model_version="YOLO8s_FSR",
    )
    unfinished = submission.submit_job(
        user=owner, dataset_id=dataset_id_of(owner), model_id="YOLO8", model_version="YOLO8s_FSR"
    )
    assert client.get(page(first, first)).json()["code"] == "not_comparable"
    assert client.get(page(first, elsewhere)).json()["code"] == "not_comparable"
    answer = client.get(page(first, unfinished))
    assert (answer.status_code, answer.json()["code"]) == (409, "job_unfinished")
    for keys in (
        {"second": None},
        {"second": "x"},
        {"second": 0},
        {"second": second, "iou": 0},
        {"second": second, "iou": "nan"},
        {"second": second, "minimum_confidence": "nan"},
        {"second": second, "minimum_confidence": 2},
        {"second": second, "unknown": 1},
    ):
        assert client.get(page(first, **keys)).status_code == 400, keys


@pytest.mark.django_db
def test_picture_of_a_frame_that_is_not_there(owner, pair, monkeypatch):
    first, second = pair
    client = client_of(owner)
    video_id = FrameResult.objects.filter(job=first, frame_index=2).get().media_file_id
    keys = {"picture": True, "media_file_id": video_id}
    answer = client.get(page(first, second, frame_index=3, **keys))
    assert (answer.status_code, answer.json()["code"]) == (404, "frame_not_compared")
    assert client.get(page(first, second, picture=True)).status_code == 400

    def too_slow(*_):
        raise ConfinedChildError("too_slow", "Reading the file takes longer than allowed.")

    monkeypatch.setattr(comparison, "answer_of_child", too_slow)
    answer = client.get(page(first, second, frame_index=2, **keys))
    assert (answer.status_code, answer.json()["code"]) == (422, "picture_unavailable")


# -- the admin -----------------------------------------------------------------------------------


def browser_of(user) -> Client:
    browser = Client()
    browser.force_login(user)
    return browser


@pytest.mark.django_db
def test_admin_compares_and_only_some_see_pictures(pair):
    first, second = pair
    page = f"/admin/inference/job/{first.pk}/comparison/?with={second.pk}"
    root = browser_of(make_user(staff=True))
    assert page in root.get(f"/admin/inference/job/{first.pk}/change/").content.decode()
    shown = root.get(page).content.decode()
    assert "80.0%" in shown
    assert f"YOLO8m_FSR (job {second.pk})" in shown
    pictures = root.get(page).context["pictures"]
    assert [one["name"] for one in pictures] == ["a.png", "b.mp4"]
    picture = root.get(pictures[0]["picture"])
    assert (picture.status_code, picture["Content-Type"]) == (200, "image/jpeg")
    support = browser_of(make_user(role="Support"))
    assert "80.0%" in support.get(page).content.decode()
    assert support.get(page).context["pictures"] == []
    assert support.get(pictures[0]["picture"]).status_code == 403
    for role, status in (("Moderators", 403), ("none", 403), ("", 302)):
        browser = browser_of(make_user(role=role))
        assert browser.get(page).status_code == status
        assert browser.get(pictures[0]["picture"]).status_code == status


@pytest.mark.django_db
def test_admin_says_what_cannot_be_compared(pair):
    first, _ = pair
    root = browser_of(make_user(staff=True))
    for query, reason in (
        (f"with={first.pk}", "cannot be compared with itself"),
        ("with=x", "names no other job"),
        ("", "names no other job"),
        (f"with={10**12}", "There is no job"),
    ):
        page = f"/admin/inference/job/{first.pk}/comparison/?{query}"
        assert reason in root.get(page).content.decode()
        picture = page.replace("comparison/", "comparison/picture/")
        assert root.get(picture).status_code == 400
    assert root.get(f"/admin/inference/job/{10**12}/comparison/?with=1").status_code == 404


@pytest.mark.django_db
def test_jobs_of_one_version_are_told_apart_by_their_numbers(owner):
    first, second = finished_job(owner, FIRST), finished_job(owner, SECOND)
    assert comparison._label(first, second) == f"YOLO8s_FSR (job {first.pk})"
