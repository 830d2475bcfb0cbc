"""GET /inference/result, and the zip of annotated files behind its contentURI."""

import io
import json
import zipfile

import av
import numpy as np
import pytest
from PIL import Image

from inference.scenes import match_boxes
from tests import mediafiles
from tests.contract.client import EVERY_WAY, Way, assert_problem
from tests.contract.story import DATASET, EMOJI, GIF_FRAMES, LONG, RATE_FPS, VIDEO_FRAMES

pytestmark = pytest.mark.service

ORDER = ["street.jpg", "turned.jpg", "clip.mp4", "same.jpg", "same.jpg", EMOJI]
ORDER += ["still.gif", "moving.gif", LONG, "doomed.tiff"]


@pytest.fixture(scope="module")
def archive(story) -> zipfile.ZipFile:
    return story.customer.content(story.job_id)


def boxes(objects) -> np.ndarray:
    found = [[one["box"][key] for key in ("x1", "y1", "x2", "y2")] for one in objects]
    return np.array(found, float).reshape(-1, 4)


def every_object(result):
    for entry in result["result"]:
        for holder in entry.get("frames", [entry]):
            yield from holder.get("objects", [])


@EVERY_WAY
def test_result_has_the_path_of_the_content_and_the_entries(story, way):
    answer = story.customer.call("GET", "/inference/result", {"jobId": story.job_id}, way)
    assert answer.status_code == 200
    assert answer.headers["Content-Type"].partition(";")[0] == "application/json"
    assert set(answer.json()) == {"contentURI", "result"}
    assert answer.json()["contentURI"].startswith("/")
    assert answer.json() == story.result


def test_number_of_the_job_may_stand_in_the_query(story):
    answer = story.customer.send("GET", "/inference/result/", params={"jobId": story.job_id})
    assert answer.json() == story.result


def test_entries_come_in_the_order_of_the_upload(story):
    assert [entry["filename"] for entry in story.result["result"]] == ORDER


def test_members_of_entries_are_exactly_those_of_the_contract(story):
    for entry in story.result["result"]:
        if entry["filename"] == "doomed.tiff":
            assert set(entry) == {"filename", "type", "error"}
            assert isinstance(entry["error"], str)
            assert entry["error"]
        elif entry["filename"] in {"clip.mp4", "moving.gif"}:
            assert set(entry) == {"filename", "type", "frames"}
            assert entry["type"] == "video"
        else:
            assert set(entry) == {"filename", "type", "objects"}
            assert entry["type"] == "image"


def test_objects_have_the_members_and_types_of_the_contract(story):
    objects = list(every_object(story.result))
    assert len(objects) > 30
    for one in objects:
        assert set(one) == {"name", "class", "confidence", "box"}
        assert type(one["name"]) is str
        assert type(one["class"]) is int
        assert type(one["confidence"]) is float
        assert set(one["box"]) == {"x1", "y1", "x2", "y2"}
        assert all(type(value) is float for value in one["box"].values())
        assert 0 <= one["box"]["x1"] < one["box"]["x2"] <= 1280
        assert 0 <= one["box"]["y1"] < one["box"]["y2"] <= 720


def test_only_confidences_of_a_quarter_and_above_are_shown(story):
    confidences = [one["confidence"] for one in every_object(story.result)]
    assert min(confidences) >= 0.25
    assert max(confidences) <= 1.0


def test_frames_are_numbered_from_0_and_timed_in_seconds(story):
    frames = story.entry("clip.mp4")["frames"]
    assert [frame["frame_number"] for frame in frames] == list(range(VIDEO_FRAMES))
    assert [frame["time"] for frame in frames] == pytest.approx(
        [number / RATE_FPS for number in range(VIDEO_FRAMES)], abs=0.001
    )
    assert all(set(frame) == {"frame_number", "time", "objects"} for frame in frames)
    frames = story.entry("moving.gif")["frames"]
    assert [frame["frame_number"] for frame in frames] == list(range(GIF_FRAMES))
    assert [frame["time"] for frame in frames] == pytest.approx([0.0, 0.1, 0.2], abs=0.001)


def test_drawn_cars_are_found_where_they_were_drawn(story):
    found, false = match_boxes(story.still.boxes_xyxy, boxes(story.entry("street.jpg")["objects"]))
    assert found >= 8
    assert false <= 2


def test_boxes_of_a_turned_photograph_lie_on_the_upright_picture(story):
    found, false = match_boxes(story.still.boxes_xyxy, boxes(story.entry("turned.jpg")["objects"]))
    assert found >= 8
    assert false <= 2


def test_drawn_cars_are_found_in_every_frame_of_the_video(story):
    for scene, frame in zip(story.moving, story.entry("clip.mp4")["frames"], strict=True):
        found, _ = match_boxes(scene.boxes_xyxy, boxes(frame["objects"]))
        assert found >= 0.7 * len(scene.boxes_xyxy)


# -- the zip


def test_zip_holds_one_file_for_each_processed_one_in_their_order(archive):
    names = archive.namelist()
    assert len(names) == len(set(names)) == len(ORDER) - 1
    assert names[:4] == ["street.jpg", "turned.jpg", "clip.mp4", "same.jpg"]
    assert names[4].startswith("same")
    assert names[5].startswith("fo/lder/\N{GRINNING FACE}")
    assert names[6].startswith("still.gif")
    assert names[7].startswith("moving.gif")
    assert archive.testzip() is None


def test_zip_unpacks_into_its_folder_on_any_file_system(archive, folder):
    archive.extractall(folder / "out")
    unpacked = [p for p in (folder / "out").rglob("*") if p.is_file()]
    assert len(unpacked) == len(ORDER) - 1
    assert len(list(folder.iterdir())) == 1
    assert all(len(p.encode()) <= 255 for name in archive.namelist() for p in name.split("/"))


def test_annotated_pictures_open_and_show_the_boxes(archive, story):
    for name in ("street.jpg", "turned.jpg"):
        with Image.open(io.BytesIO(archive.read(name))) as picture:
            assert picture.size == (1280, 720)
            assert picture.getexif().get(0x0112, 1) == 1
            shown = np.asarray(picture.convert("RGB")).astype(int)
        changed = np.abs(shown - story.still.image.astype(int)).max(axis=2) > 40
        for x1, y1, x2, y2 in boxes(story.entry(name)["objects"]).round().astype(int):
            edge = changed[y1 : y2 + 1, max(x1 - 3, 0) : x1 + 3]
            assert edge.any(axis=1).mean() > 0.5, (name, x1, y1, x2, y2)
        assert changed.mean() < 0.2


def test_every_annotated_file_decodes(archive):
    for name in archive.namelist():
        if name.endswith(".mp4"):
            continue
        with Image.open(io.BytesIO(archive.read(name))) as picture:
            picture.load()


def test_annotated_videos_have_every_frame(archive):
    videos = [name for name in archive.namelist() if name.endswith(".mp4")]
    assert len(videos) == 2
    for name, frames in zip(videos, (VIDEO_FRAMES, GIF_FRAMES), strict=True):
        with av.open(io.BytesIO(archive.read(name))) as container:
            stream = container.streams.video[0]
            assert stream.codec_context.name == "h264"
            assert len(list(container.decode(stream))) == frames


@pytest.mark.parametrize("slash", [False, True])
@pytest.mark.parametrize("accept", ["*/*", "application/zip", "text/html"])
def test_zip_is_had_with_and_without_slash_whatever_is_accepted(story, slash, accept):
    path = Way(slash=slash).path(story.result["contentURI"])
    answer = story.customer.send("GET", path, headers={"Accept": accept})
    assert answer.status_code == 200
    assert answer.headers["Content-Type"] == "application/zip"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert zipfile.is_zipfile(io.BytesIO(answer.content))


# -- who and when


def test_result_of_a_failed_job_is_400(failed_story):
    customer, job_id = failed_story.customer, failed_story.job_id
    result = customer.call("GET", "/inference/result", {"jobId": job_id})
    assert_problem(result, 400, "JobNotCompletedError")
    assert_problem(customer.send("GET", f"/inference/content/{job_id}"), 400)


def test_result_of_an_unfinished_job_is_400(customer):
    dataset = customer.new_dataset()
    tiny = mediafiles.image_bytes("PNG", mediafiles.noise((16, 16)))
    for _ in range(4):
        assert customer.upload(dataset, tiny).status_code == 201
    job_id = customer.submit(dataset)
    result = customer.call("GET", "/inference/result", {"jobId": job_id})
    assert_problem(result, 400, "JobNotCompletedError")
    assert customer.state_at_the_end(job_id) == "Completed"
    assert len(customer.result(job_id)["result"]) == 4


def test_job_of_somebody_else_is_404_everywhere(story):
    keys = {"jobId": story.job_id}
    for path in ("/inference/state", "/inference/result"):
        assert_problem(story.outsider.call("GET", path, keys), 404, "JobNotFoundError")
        assert_problem(story.outsider.send("GET", path, params=keys), 404)
    assert_problem(story.outsider.send("GET", story.result["contentURI"]), 404)


def test_job_is_404_for_an_administrator_too(story, administrator):
    answer = administrator.call("GET", "/inference/result", {"jobId": story.job_id})
    assert_problem(answer, 404)
    assert_problem(administrator.send("GET", story.result["contentURI"]), 404)


def test_content_needs_a_token(story, anonymous):
    assert_problem(anonymous.send("GET", story.result["contentURI"]), 401)
    query = {"token": story.customer.token, "access": story.customer.token}
    assert_problem(anonymous.send("GET", story.result["contentURI"], params=query), 401)


@pytest.mark.parametrize("number", ["0", "abc", "-1", "9" * 18, "9" * 40, "1/../2", "%00"])
def test_content_of_no_job_is_404(customer, number):
    assert_problem(customer.send("GET", f"/inference/content/{number}"), 404)


def test_jobs_of_a_deleted_dataset_stay_readable(customer):
    dataset = customer.new_dataset()
    tiny = mediafiles.image_bytes("PNG", mediafiles.noise((16, 16)))
    customer.upload(dataset, tiny, "kept.png")
    job_id = customer.submit(dataset)
    assert customer.call("DELETE", "/datasets", {"datasetName": dataset}).status_code == 200
    assert customer.state_at_the_end(job_id) == "Completed"
    assert [entry["filename"] for entry in customer.result(job_id)["result"]] == ["kept.png"]
    assert customer.content(job_id).namelist() == ["kept.png"]
    with customer.watch() as socket:
        socket.recv(timeout=10)
        jobs = json.loads(socket.recv(timeout=10))["jobs"]
    assert job_id in [job["job_id"] for job in jobs]
    assert DATASET not in customer.datasets()
