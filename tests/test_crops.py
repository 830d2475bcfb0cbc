"""The objects that a job found leave as small pictures, cut out by a confined child."""

import csv
import io
import os
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

import numpy as np
import pytest
from django.core.files.storage import default_storage
from PIL import Image
from rest_framework.test import APIRequestFactory

from datasets.media import fork_server
from datasets.media.fork_server import ForkServer
from datasets.media.limits import MediaLimits
from inference import confined, services
from inference.confined import (
    ChildLimits,
    ChildUnavailableError,
    ConfinedChildError,
    answer_of_child,
)
from inference.crops import crops
from inference.crops_child import LARGEST_SIDE_PIXELS, cut, windows
from inference.models import Job
from inference.selectors import Wanted
from odproject.core import files
from odproject.core.environ import CLIENT_LEFT
from tests.children import kill_once_it_is_read, take_over
from tests.clients import client_of
from tests.factories import add_media_file, make_user
from tests.mediafiles import write_image, write_video
from tests.test_exports import BUS, CAR, found, submitted

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_broker")]

RED, GREEN, BLUE, GREY = (200, 40, 40), (40, 160, 60), (40, 60, 200), (128, 128, 128)
SIZE_WH = (64, 48)


def drawn(*boxes, size_wh=SIZE_WH):
    """A grey picture with boxes of a colour: `(colour, (x1, y1, x2, y2))`."""
    picture = np.full((size_wh[1], size_wh[0], 3), GREY, np.uint8)
    for colour, (x1, y1, x2, y2) in boxes:
        picture[y1:y2, x1:x2] = colour
    return picture


def add_picture(dataset, tmp_path, picture, *, name="street.png", **options):
    source = write_image(tmp_path / "source", picture, image_format="PNG", **options)
    return add_media_file(dataset, name=name, content=source, image_format="png")


def add_video(dataset, tmp_path, paint, *, frames, name="drive.avi", **options):
    options = {"codec": "mjpeg", "codec_options": {"q": "2"}, "size_wh": SIZE_WH, **options}
    source = write_video(tmp_path / "source.avi", frames=frames, paint=paint, **options)
    return add_media_file(
        dataset,
        name=name,
        content=source,
        media_type="video",
        frame_count=frames,
        image_format="avi",
    )


def ended(job):
    services.abort_job(job_id=job.pk)  # what was found until then is exported
    job.refresh_from_db()
    return job


def path_of(job):
    return f"/api/v1/jobs/{job.pk}/exports/crops/"


def export(job, **query):
    """The pictures by their names, and the rows of the table."""
    answer = client_of(job.user).get(path_of(job), query)
    assert answer.status_code == 200, answer.content
    assert answer["Content-Type"] == "application/zip"
    assert f'filename="job-{job.pk}.crops.zip"' in answer["Content-Disposition"]
    with zipfile.ZipFile(io.BytesIO(b"".join(answer.streaming_content))) as archive:
        assert archive.testzip() is None
        assert {info.external_attr >> 16 for info in archive.infolist()} == {0o644}
        contents = {name: archive.read(name) for name in archive.namelist()}
    assert len({name.casefold() for name in contents}) == len(contents)
    rows = list(csv.DictReader(io.StringIO(contents.pop("crops.csv").decode())))
    assert [row["crop"] for row in rows if row["crop"]] == list(contents)
    return contents, rows


def pixels_of(picture_jpeg):
    with Image.open(io.BytesIO(picture_jpeg)) as picture:
        assert picture.format == "JPEG"
        return np.asarray(picture.convert("RGB")).astype(int)


def is_all(pixels, colour, tolerance=3):
    return bool((abs(pixels - np.array(colour)) <= tolerance).all())


# -- pictures ------------------------------------------------------------------------------------


def test_objects_lie_in_a_folder_of_their_class_with_their_own_pixels(user, dataset, tmp_path):
    car, bus = (8, 8, 24, 16), (32, 16, 56, 40)
    picture = add_picture(dataset, tmp_path, drawn((RED, car), (BLUE, bus)))
    job = submitted(user)
    found(job, picture, (CAR, 0.9, car), (BUS, 0.5, bus), (CAR, 0.1, bus))
    pictures, rows = export(ended(job), padding=0)
    names = [
        "car/street_frame_000000_object_001.jpg",
        "bus/street_frame_000000_object_002.jpg",
    ]
    assert list(pictures) == names
    red, blue = (pixels_of(pictures[name]) for name in names)
    assert (red.shape, blue.shape) == ((8, 16, 3), (24, 24, 3))
    assert is_all(red, RED)
    assert is_all(blue, BLUE)
    assert rows[0] == {
        "crop": names[0],
        "file": "street.png",
        "media_file_id": str(picture.pk),
        "frame_number": "0",
        "time": "0.0",
        "class": "0",
        "name": "car",
        "confidence": "0.9",
        "x1": "8.0",
        "y1": "8.0",
        "x2": "24.0",
        "y2": "16.0",
        "track_id": "",
        "problem": "",
    }
    assert [row["name"] for row in rows] == ["car", "bus"]


def test_box_grows_by_its_padding_as_far_as_the_picture_reaches(user, dataset, tmp_path):
    middle, corner = (20, 20, 40, 30), (54, 38, 64, 48)
    picture = add_picture(dataset, tmp_path, drawn((RED, middle), (BLUE, corner)))
    job = submitted(user)
    found(job, picture, (CAR, 0.9, middle), (BUS, 0.9, corner))
    job = ended(job)
    by_default, _ = export(job)
    assert [pixels_of(one).shape[:2] for one in by_default.values()] == [(12, 24), (11, 11)]
    wide, _ = export(job, padding=0.5)
    red, blue = map(pixels_of, wide.values())
    assert (red.shape[:2], blue.shape[:2]) == ((20, 40), (15, 15))
    # Where two colours meet, JPEG mixes them a little.
    assert is_all(red[5:15, 10:30], RED, tolerance=40)
    assert is_all(red[:5], GREY, tolerance=40)
    assert is_all(red[:, 30:], GREY, tolerance=40)
    assert is_all(blue[5:, 5:], BLUE, tolerance=40)
    assert is_all(blue[:5], GREY, tolerance=40)


def test_window_is_of_whole_pixels_inside_the_picture_and_never_empty():
    boxes = np.array(
        [(1.4, 1.6, 3.4, 3.6), (10.1, 10.1, 10.2, 10.2), (0, 0, 64, 48), (63.9, 47.9, 64, 48)]
    )
    told = windows(boxes, SIZE_WH, 0.0).tolist()
    assert told == [[1, 2, 3, 4], [10, 10, 11, 11], [0, 0, 64, 48], [63, 47, 64, 48]]
    assert windows(boxes, SIZE_WH, 1.0).tolist()[0] == [0, 0, 5, 6]
    outside = np.array([(100.0, 100.0, 120.0, 120.0)])  # of a file that is another one by now
    assert windows(outside, SIZE_WH, 0.0).tolist() == [[63, 47, 64, 48]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_boxes_are_cut_out_of_the_upright_picture(user, dataset, tmp_path, orientation):
    """Stored is a red quarter at the top left."""
    stored = drawn((RED, (0, 0, 32, 24)))
    upright_wh = SIZE_WH if orientation < 5 else SIZE_WH[::-1]
    right, below = orientation in (2, 3, 7, 6), orientation in (3, 4, 7, 8)
    width, height = upright_wh[0] // 2, upright_wh[1] // 2
    box = (width * right, height * below, width * (right + 1), height * (below + 1))
    picture = add_picture(dataset, tmp_path, stored, orientation=orientation)
    job = submitted(user)
    found(job, picture, (CAR, 0.9, box))
    pictures, _ = export(ended(job), padding=0)
    (pixels,) = map(pixels_of, pictures.values())
    assert pixels.shape == (height, width, 3)
    assert is_all(pixels, RED)


def test_crop_that_is_no_small_picture_is_made_smaller(tmp_path):
    source = write_image(tmp_path / "wide.png", drawn(size_wh=(3 * 2048, 30)), image_format="PNG")
    file = {"is_video": False, "seek_plan": None, "frames": [(0, [(0, 0, 3 * 2048, 30)])]}
    task = {"padding": 0, "files": [file], "media_limits": {}}
    (answer,) = cut(task, [source])
    assert LARGEST_SIDE_PIXELS == 2048
    assert pixels_of(confined.picture_of(answer)).shape == (10, 2048, 3)


# -- videos --------------------------------------------------------------------------------------


def test_crops_of_a_video_come_from_their_frames(user, dataset, tmp_path):
    colours = [RED, GREEN, BLUE, RED, GREEN, BLUE]
    box = (16, 16, 32, 32)
    video = add_video(dataset, tmp_path, lambda index: drawn((colours[index], box)), frames=6)
    job = submitted(user, tracking=True, frame_stride=2)
    found(job, video, frame_index=0)
    found(job, video, (CAR, 0.9, box), (BUS, 0.8, box), frame_index=2, tracks=[7, 0])
    found(job, video, (CAR, 0.9, box), frame_index=4, tracks=[7])
    pictures, rows = export(ended(job), padding=0)
    assert list(pictures) == [
        "car/drive_frame_000002_object_001_track_7.jpg",
        "bus/drive_frame_000002_object_002.jpg",
        "car/drive_frame_000004_object_001_track_7.jpg",
    ]
    for picture_jpeg, colour in zip(pictures.values(), (BLUE, BLUE, GREEN), strict=True):
        assert is_all(pixels_of(picture_jpeg), colour, tolerance=20)
    assert [(row["time"], row["track_id"]) for row in rows] == [
        ("0.2", "7"),
        ("0.2", ""),
        ("0.4", "7"),
    ]


def test_boxes_are_cut_out_of_the_upright_frames_of_a_turned_video(user, dataset, tmp_path):
    """A quarter at the top left is at the top right once the picture is turned clockwise."""
    source = write_video(
        tmp_path / "turned.mp4",
        frames=2,
        rotation=90,
        paint=lambda index: drawn((RED, (0, 0, 32, 24))),
    )
    video = add_media_file(
        dataset,
        name="turned.mp4",
        content=source,
        media_type="video",
        frame_count=2,
        image_format="mp4",
    )
    job = submitted(user)
    found(job, video, (CAR, 0.9, (26, 2, 46, 30)), frame_index=1)
    pictures, _ = export(ended(job), padding=0)
    (pixels,) = map(pixels_of, pictures.values())
    assert pixels.shape == (28, 20, 3)
    assert is_all(pixels, RED, tolerance=16)


# -- names ---------------------------------------------------------------------------------------


def test_names_do_not_meet_whatever_files_and_classes_are_called(user, dataset, tmp_path):
    names = ["a/car.png", "a_car.png", "A/CAR.png", "../../.x.png", "a/car_frame_000000.png"]
    box = (8, 8, 16, 16)
    media_files = [add_picture(dataset, tmp_path, drawn(), name=name) for name in names]
    media_files.append(add_video(dataset, tmp_path, lambda _: drawn(), frames=2, name="a/car.avi"))
    job = submitted(user)
    Job.objects.filter(pk=job.pk).update(class_names=["car", "Car", "../b", "crops.csv", "car"])
    for media_file in media_files:
        found(job, media_file, (CAR, 0.9, box))
    found(job, media_files[-1], *((one, 0.9, box) for one in range(1, 6)), frame_index=1)
    pictures, _ = export(ended(job))
    assert list(pictures) == [
        "car/a_car_frame_000000_object_001.jpg",
        "car/a_car (2)_frame_000000_object_001.jpg",
        "car/A_CAR (2) (2)_frame_000000_object_001.jpg",
        "car/_x_frame_000000_object_001.jpg",
        "car/a_car_frame_000000_frame_000000_object_001.jpg",
        "car/a_car (3)_frame_000000_object_001.jpg",
        "Car (2)/a_car (3)_frame_000001_object_001.jpg",
        "b/a_car (3)_frame_000001_object_002.jpg",
        "crops (2).csv/a_car (3)_frame_000001_object_003.jpg",
        "car/a_car (3)_frame_000001_object_004.jpg",
        "5/a_car (3)_frame_000001_object_005.jpg",
    ]


def test_long_name_leaves_room_for_what_follows(user, dataset, tmp_path):
    folders = "/".join(["ä" * 100] * 2)
    picture = add_picture(dataset, tmp_path, drawn(), name=f"{folders}/{'b' * 40}.png")
    job = submitted(user)
    found(job, picture, (CAR, 0.9, (8, 8, 16, 16)))
    (name,) = export(ended(job))[0]
    assert max(len(part.encode()) for part in name.split("/")) < 230
    assert name.endswith("_frame_000000_object_001.jpg")


# -- files that cannot be read -------------------------------------------------------------------


def test_file_that_is_gone_or_broken_is_told_and_the_others_are_cut(user, dataset, tmp_path):
    box = (16, 16, 32, 32)
    first, gone, broken, last = (
        add_picture(dataset, tmp_path, drawn((RED, box)), name=f"{name}.png")
        for name in ("first", "gone", "broken", "last")
    )
    default_storage.delete(gone.content.name)
    os.truncate(default_storage.path(broken.content.name), broken.size_bytes // 2)
    short = add_video(dataset, tmp_path, lambda _: drawn((RED, box)), frames=2, name="short.avi")
    job = submitted(user)
    for media_file in (first, gone, broken, last, short):
        found(job, media_file, (CAR, 0.9, box))
    found(job, short, (CAR, 0.9, box), (BUS, 0.9, box), frame_index=2)
    pictures, rows = export(ended(job), padding=0)
    assert list(pictures) == [
        f"car/{name}_frame_000000_object_001.jpg" for name in ("first", "last", "short")
    ]
    assert all(is_all(pixels_of(one), RED, tolerance=20) for one in pictures.values())
    assert [(row["file"], row["problem"]) for row in rows] == [
        ("first.png", ""),
        ("gone.png", "The file is no longer in the storage."),
        ("broken.png", "The image is damaged or incomplete: it cannot be decoded."),
        ("last.png", ""),
        ("short.avi", ""),
        ("short.avi", "The video has no such frame."),
        ("short.avi", "The video has no such frame."),
    ]


@pytest.mark.parametrize(
    "program",
    [
        "import os; os.abort()",
        "pass",
        "print('{}')",
        "print('[1]')",
        "print('x' * 9_000_000, flush=True)",
        "print('{')",
    ],
)
def test_child_that_crashes_or_babbles_costs_the_file_that_it_was_at(
    user, dataset, tmp_path, monkeypatch, program
):
    media_files = [add_picture(dataset, tmp_path, drawn(), name=f"{n}.png") for n in "ab"]
    job = submitted(user)
    for media_file in media_files:
        found(job, media_file, (CAR, 0.9, (8, 8, 16, 16)))
    take_over(monkeypatch, tmp_path, program)
    pictures, rows = export(ended(job))
    assert pictures == {}
    assert [row["problem"] for row in rows] == ["Reading the file crashed."] * 2


def test_what_is_not_reached_in_time_is_told(user, dataset, tmp_path, monkeypatch, settings):
    settings.CROPS_SECONDS = 0
    picture = add_picture(dataset, tmp_path, drawn())
    job = submitted(user)
    found(job, picture, (CAR, 0.9, (8, 8, 16, 16)))
    pictures, (row,) = export(ended(job))
    assert pictures == {}
    assert row["problem"] == "Its turn did not come within 0 seconds; choose less."


def test_files_go_to_few_children_and_large_ones_to_one_each(user, dataset, tmp_path, monkeypatch):
    media_files = [add_picture(dataset, tmp_path, drawn(), name=f"{n}.png") for n in "abcde"]
    job = submitted(user)
    for media_file in media_files:
        found(job, media_file, (CAR, 0.9, (8, 8, 16, 16)))
    job = ended(job)
    given = []

    def answers(module, task, paths, limits):
        assert module == "inference.crops_child"
        given.append(len(paths))
        yield from ({"picture": "eA=="} for _ in paths)

    monkeypatch.setattr("inference.crops.answers_of_child", answers)
    assert len(export(job)[0]) == 5
    monkeypatch.setattr("inference.crops.FILES_PER_CHILD", 2)
    assert len(export(job)[0]) == 5
    monkeypatch.setattr("inference.crops.BYTES_PER_CHILD", 1)
    assert len(export(job)[0]) == 5
    assert given == [5, 2, 2, 1, 1, 1, 1, 1, 1]


def test_child_that_cannot_be_started_is_no_fault_of_the_files(
    user, dataset, tmp_path, monkeypatch
):
    picture = add_picture(dataset, tmp_path, drawn())
    job = submitted(user)
    found(job, picture, (CAR, 0.9, (8, 8, 16, 16)))
    monkeypatch.setattr(confined, "_fork_server", ForkServer("inference.crops_child"))
    monkeypatch.setattr(fork_server, "_PYTHON", (str(tmp_path / "nothing"),))
    answer = client_of(user).get(path_of(ended(job)))
    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="nothing is forked here")
def test_child_that_is_lost_with_its_fork_server_is_no_fault_of_the_file(tmp_path, monkeypatch):
    server = ForkServer("inference.picture_child")
    with server.start("inference.picture_child") as child:
        child.stdin.close()
    monkeypatch.setattr(confined, "_fork_server", server)
    os.mkfifo(tmp_path / "hang")
    task = {"media_limits": asdict(MediaLimits()), "is_video": False}
    limits = ChildLimits(memory_bytes=4 * 1024**3, seconds=60, cpu_seconds=60)
    with ThreadPoolExecutor(1) as pool:
        opened = pool.submit(kill_once_it_is_read, server.pid, tmp_path / "hang")
        with pytest.raises(ChildUnavailableError):
            answer_of_child("inference.picture_child", task, tmp_path / "hang", limits)
        os.close(opened.result())
    server.close()


def test_child_that_does_not_take_its_task_is_ended_in_time(tmp_path, monkeypatch):
    program = f"import time; time.sleep(3); open('{tmp_path / 'woke'}', 'w')"
    take_over(monkeypatch, tmp_path, program)
    limits = ChildLimits(memory_bytes=4 * 1024**3, seconds=0.5, cpu_seconds=60)
    task = {"much": "x" * 1024**2}  # more than a pipe holds
    with pytest.raises(ConfinedChildError) as caught:
        answer_of_child("inference.crops_child", task, tmp_path / "file", limits)
    assert caught.value.code == "too_slow"
    assert not (tmp_path / "woke").exists()


# -- what is asked for ---------------------------------------------------------------------------


def test_more_crops_than_one_request_gets_are_refused_with_their_number(
    user, dataset, tmp_path, settings
):
    settings.MAX_CROPS = 3
    picture = add_picture(dataset, tmp_path, drawn())
    job = submitted(user)
    box = (8, 8, 16, 16)
    found(job, picture, *((CAR, 0.9, box) for _ in range(3)), (BUS, 0.3, box))
    job = ended(job)
    answer = client_of(user).get(path_of(job))
    assert (answer.status_code, answer.json()["code"]) == (400, "too_many_crops")
    assert answer.json()["detail"].startswith("There would be 4 crops, and 3 are the most at once;")
    fields = [one["field"] for one in answer.json()["errors"]]
    assert fields == ["minimum_confidence", "class_name"]
    assert len(export(job, minimum_confidence=0.5)[0]) == 3
    assert len(export(job, class_name="bus")[0]) == 1


def test_job_that_found_nothing_gives_a_table_of_its_columns(user, dataset, tmp_path):
    add_picture(dataset, tmp_path, drawn())
    assert export(ended(submitted(user))) == ({}, [])


@pytest.mark.parametrize(
    ("parameter", "value"),
    [
        ("padding", "-0.1"),
        ("padding", "1.1"),
        ("padding", "nan"),
        ("padding", "much"),
        ("minimum_confidence", "2"),
        ("class_name", "tram"),
        ("classes", "car"),
    ],
)
def test_parameter_that_makes_no_sense_is_refused_by_name(
    user, dataset, tmp_path, parameter, value
):
    add_picture(dataset, tmp_path, drawn())
    job = ended(submitted(user))
    answer = client_of(user).get(path_of(job), {parameter: value})
    assert answer.status_code == 400
    assert [one["field"] for one in answer.json()["errors"]] == [parameter]
    other = client_of(user).get(f"/api/v1/jobs/{job.pk}/exports/csv/", {"padding": "0.1"})
    assert other.status_code == 400


def test_job_that_goes_on_and_job_of_another_give_no_crops(user, dataset, tmp_path):
    add_picture(dataset, tmp_path, drawn())
    job = submitted(user)
    answer = client_of(user).get(path_of(job))
    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_finished")
    answer = client_of(make_user()).get(path_of(ended(job)))
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")


# -- clients that go away ------------------------------------------------------------------------


def test_download_that_is_abandoned_ends_the_child_and_leaves_nothing(
    user, dataset, tmp_path, monkeypatch
):
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    monkeypatch.setattr(files, "SPOOL_IN_MEMORY_BYTES", 1)
    children = []
    start = confined._fork_server.start
    monkeypatch.setattr(
        confined._fork_server, "start", lambda *args: children.append(start(*args)) or children[-1]
    )
    box = (8, 8, 24, 24)
    video = add_video(dataset, tmp_path, lambda _: drawn(), frames=30)
    job = submitted(user)
    for index in range(30):
        found(job, video, (CAR, 0.9, box), frame_index=index)
    left = threading.Event()
    request = APIRequestFactory().get("/", **{CLIENT_LEFT: left})
    given = []

    def pieces():
        for piece in crops(ended(job), Wanted(), padding=0.1):
            given.append(piece)
            yield piece
            left.set()  # while the second one is made

    with pytest.raises(files.NobodyWaitsError):
        files.spooled_response(request, pieces(), content_type="application/zip")
    assert len(given) == 2
    (child,) = children
    assert child.poll() is not None
    assert list(temporary.iterdir()) == []
