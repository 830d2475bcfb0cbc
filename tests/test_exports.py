"""What a job found leaves in the formats of the trade, as other tools read them."""

import contextlib
import csv
import errno
import io
import json
import tempfile
import zipfile
from dataclasses import replace
from pathlib import PurePosixPath
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from pycocotools.coco import COCO

from inference import services, submission
from inference.evaluation.read import read_data
from inference.exports import EXPORTS
from inference.models import FrameResult, Job
from inference.selectors import Wanted
from odproject.core import files, room
from tests.clients import client_of
from tests.factories import add_media_file, dataset_id_of, make_user

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_broker")]

CAR, BUS = 0, 1


def found(job, media_file, *objects, frame_index=0, tracks=None):
    """A stored frame: objects are class, confidence and box."""
    return FrameResult.objects.create(
        job=job,
        media_file=media_file,
        frame_index=frame_index,
        time_seconds=frame_index / 10,
        class_ids=np.array([one[0] for one in objects], "<i2").tobytes(),
        confidences=np.array([one[1] for one in objects], "<f4").tobytes(),
        boxes_xyxy=np.array([one[2] for one in objects], "<f4").tobytes(),
        track_ids=None if tracks is None else np.array(tracks, "<i4").tobytes(),
    )


def submitted(user, **options):
    job = submission.submit_job(
        user=user,
        dataset_id=dataset_id_of(user),
        model_id="YOLO8",
        model_version="YOLO8s_FSR",
        options=options,
    )
    Job.objects.filter(pk=job.pk).update(class_names=["car", "bus"])
    return job


def aborted_job(user, media_files, *objects):
    """A job that found the same in each of its files until it was aborted."""
    job = submitted(user)
    for media_file in media_files:
        found(job, media_file, *objects)
    services.abort_job(job_id=job.pk)
    return job


@pytest.fixture
def ended_job(user, dataset):
    """A picture with a car and a doubtful bus, and a video of two frames with a car in one."""
    picture = add_media_file(dataset, name="street.jpg")
    video = add_media_file(dataset, name="street.mp4", media_type="video", frame_count=2)
    job = submitted(user)
    found(job, picture, (CAR, 0.9, (64, 48, 128, 96)), (BUS, 0.1, (0, 0, 320, 240)))
    found(job, video, frame_index=0)
    found(job, video, (CAR, 0.5, (320, 240, 640, 480)), frame_index=1)
    services.abort_job(job_id=job.pk)  # what was found until then is exported
    return job


def export(job, kind, **query):
    answer = client_of(job.user).get(f"/api/v1/jobs/{job.pk}/exports/{kind}/", query)
    assert answer.status_code == 200
    assert answer["Content-Type"].startswith(EXPORTS[kind].content_type)
    assert f'filename="job-{job.pk}{EXPORTS[kind].suffix}"' in answer["Content-Disposition"]
    return b"".join(answer.streaming_content)


def texts_of(archive):
    with zipfile.ZipFile(io.BytesIO(archive)) as opened:
        assert opened.testzip() is None
        assert {info.external_attr >> 16 for info in opened.infolist()} <= {0o644}
        names = opened.namelist()
        assert len({name.casefold() for name in names}) == len(names)
        return {name: opened.read(name).decode() for name in names}


def test_coco_document_loads_in_pycocotools(ended_job, tmp_path):
    (tmp_path / "coco.json").write_bytes(export(ended_job, "coco"))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "coco.json"))
    images = {image["id"]: image["file_name"] for image in coco.loadImgs(coco.getImgIds())}
    assert list(images.values()) == [
        "street.jpg",
        "street/frame_000000.jpg",
        "street/frame_000001.jpg",
    ]
    cars = coco.loadAnns(coco.getAnnIds(catIds=coco.getCatIds(catNms=["car"])))
    assert [(images[one["image_id"]], one["bbox"], one["area"]) for one in cars] == [
        ("street.jpg", [64, 48, 64, 48], 3072),
        ("street/frame_000001.jpg", [320, 240, 320, 240], 76800),
    ]
    assert [one["score"] for one in cars] == [0.9, 0.5]
    assert coco.getAnnIds(catIds=coco.getCatIds(catNms=["bus"])) == []


def test_doubtful_detections_are_exported_for_the_asking(ended_job):
    document = json.loads(export(ended_job, "coco", minimum_confidence=0.05))
    assert [one["score"] for one in document["annotations"]] == [0.9, 0.1, 0.5]
    document = json.loads(export(ended_job, "coco", minimum_confidence=1))
    assert document["annotations"] == []
    assert len(document["images"]) == 3


def test_yolo_labels_say_which_picture_they_belong_to(ended_job):
    texts = texts_of(export(ended_job, "yolo"))
    settings = yaml.safe_load(texts.pop("data.yaml"))
    assert settings == {"path": ".", "train": "images", "val": "images", "names": ["car", "bus"]}
    assert "\r" not in texts["files.csv"]
    rows = list(csv.DictReader(io.StringIO(texts.pop("files.csv"))))
    assert [(row["image"], row["file"], row["frame_number"]) for row in rows] == [
        ("images/street.jpg", "street.jpg", "0"),
        ("images/street/frame_000000.jpg", "street.mp4", "0"),
        ("images/street/frame_000001.jpg", "street.mp4", "1"),
    ]
    assert texts == {
        "labels/street.txt": "0 0.150000 0.150000 0.100000 0.100000\n",
        "labels/street/frame_000000.txt": "",
        "labels/street/frame_000001.txt": "0 0.750000 0.750000 0.500000 0.500000\n",
    }


def test_yolo_settings_name_classes_in_any_letters(ended_job):
    names = ["car \U0001f697", 'größe "L": 車, \\']
    Job.objects.filter(pk=ended_job.pk).update(class_names=names)
    assert yaml.safe_load(texts_of(export(ended_job, "yolo"))["data.yaml"])["names"] == names


def test_pictures_have_names_that_readers_of_a_yolo_folder_take(user, dataset):
    """Uploads may be called anything; readers know pictures by extension and pass over dots."""
    names = ["noext", "photo.v1", "street.txt", ".jpg", "..jpg", ".hidden/a.PNG", "b.TIFF"]
    pictures = [add_media_file(dataset, name=name) for name in names]
    job = aborted_job(user, pictures, (CAR, 0.9, (64, 48, 128, 96)))
    texts = texts_of(export(job, "yolo"))
    rows = {row["file"]: row["image"] for row in csv.DictReader(io.StringIO(texts["files.csv"]))}
    assert rows == {
        "noext": "images/noext.jpeg",
        "photo.v1": "images/photo.jpeg",
        "street.txt": "images/street.jpeg",
        ".jpg": "images/_jpg.jpeg",
        "..jpg": "images/_.jpg",
        ".hidden/a.PNG": "images/_hidden/a.PNG",
        "b.TIFF": "images/b.TIFF",
    }
    labels = {PurePosixPath(name).with_suffix("") for name in texts if name.endswith(".txt")}
    images = {PurePosixPath(name.replace("images/", "labels/", 1)) for name in rows.values()}
    assert labels == {name.with_suffix("") for name in images}


@pytest.mark.parametrize("kind", EXPORTS)
@pytest.mark.parametrize("parameter", ["classes", "min_confidence", "page_size"])
def test_parameter_that_an_export_does_not_know_is_refused(ended_job, kind, parameter):
    path = f"/api/v1/jobs/{ended_job.pk}/exports/{kind}/"
    answer = client_of(ended_job.user).get(path, {parameter: "0.5"})
    assert answer.status_code == 400
    assert answer.json()["errors"][0]["field"] == parameter


def test_classes_can_be_chosen_in_every_format(ended_job):
    wanted = {"minimum_confidence": 0, "class_name": ["bus"]}
    document = json.loads(export(ended_job, "coco", **wanted))
    assert [one["category_id"] for one in document["annotations"]] == [BUS + 1]
    assert document["info"]["class_names"] == ["bus"]
    # Numbers of classes stay, and so do frames in which nothing of the chosen is.
    assert [one["name"] for one in document["categories"]] == ["car", "bus"]
    assert len(document["images"]) == 3
    lines = export(ended_job, "jsonl", **wanted).splitlines()
    assert [[one["name"] for one in json.loads(line)["objects"]] for line in lines] == [
        ["bus"],
        [],
        [],
    ]
    rows = list(csv.DictReader(io.StringIO(export(ended_job, "csv", **wanted).decode())))
    assert [row["name"] for row in rows] == ["bus"]
    labels = texts_of(export(ended_job, "yolo", **wanted))
    assert labels["labels/street.txt"].split()[0] == str(BUS)
    assert labels["labels/street/frame_000001.txt"] == ""
    both = export(ended_job, "csv", minimum_confidence=0, class_name=["bus", "car"])
    assert both == export(ended_job, "csv", minimum_confidence=0)


def test_class_is_chosen_by_what_it_is_shown_as(user, dataset):
    """Weights of before may have a name twice; a class without a name is shown by its number."""
    picture = add_media_file(dataset)
    job = submitted(user)
    Job.objects.filter(pk=job.pk).update(class_names=["car", "bus", "car"])
    found(job, picture, *((class_id, 0.9, (0, 0, 9, 9)) for class_id in range(4)))
    services.abort_job(job_id=job.pk)
    for name, class_ids in (("car", [0, 2]), ("bus", [1]), ("3", [3])):
        lines = export(job, "jsonl", class_name=name).splitlines()
        assert [one["class"] for one in json.loads(lines[0])["objects"]] == class_ids
    assert json.loads(export(job, "coco", class_name="3"))["info"]["class_names"] == ["3"]
    assert export(job, "csv", class_name="") == export(job, "csv")
    path = f"/api/v1/jobs/{job.pk}/exports/csv/"
    for name in ("2", "03", "99999", "9" * 5000):
        assert client_of(user).get(path, {"class_name": name}).status_code == 400


@pytest.mark.parametrize("names", [["tram"], ["car", "tram"], ["Car"]])
def test_class_that_the_job_does_not_have_is_refused(ended_job, names):
    """An export without a box would look like a job that found none."""
    path = f"/api/v1/jobs/{ended_job.pk}/exports/csv/"
    answer = client_of(ended_job.user).get(path, {"class_name": names})
    assert answer.status_code == 400
    assert answer.json()["errors"] == [
        {
            "field": "class_name",
            "code": "unknown_class",
            "detail": f"The job has no class {names[-1]!r}; it has car, bus.",
        }
    ]


def test_files_of_one_base_name_do_not_overwrite_each_other(user, dataset):
    names = ["a/car.jpg", "b/car.jpg", "a/car.png", "A/CAR.jpg", "car/x.jpg", "../../car.jpg"]
    pictures = [add_media_file(dataset, name=name) for name in names]
    videos = [
        add_media_file(dataset, name=name, media_type="video") for name in ("car.mp4", "car.avi")
    ]
    job = aborted_job(user, (*pictures, *videos))
    texts = texts_of(export(job, "yolo"))
    assert sorted(texts) == sorted(
        [
            "data.yaml",
            "files.csv",
            "labels/a/car.txt",
            "labels/b/car.txt",
            "labels/a/car (2).txt",
            "labels/A/CAR (3).txt",
            "labels/car/x.txt",
            "labels/car.txt",
            "labels/car (2)/frame_000000.txt",
            "labels/car (3)/frame_000000.txt",
        ]
    )
    images = [row["image"] for row in csv.DictReader(io.StringIO(texts["files.csv"]))]
    assert images[:4] == [
        "images/a/car.jpg",
        "images/b/car.jpg",
        "images/a/car (2).png",
        "images/A/CAR (3).jpg",
    ]


def test_labels_are_found_of_pictures_that_lie_in_folders_called_images(user, dataset, tmp_path):
    names = ["images/car.jpg", "images_/car.jpg", "a/images/val/images.jpg", "images.mp4"]
    kinds = ["image", "image", "image", "video"]
    media_files = [
        add_media_file(dataset, name=name, media_type=kind)
        for name, kind in zip(names, kinds, strict=True)
    ]
    job = submitted(user)
    for class_id, media_file in enumerate(media_files):
        found(job, media_file, (class_id, 0.9, (64, 48, 128, 96)))
    services.abort_job(job_id=job.pk)
    texts = texts_of(export(job, "yolo"))
    assert sorted(texts) == [
        "data.yaml",
        "files.csv",
        "labels/a/images_/val/images.txt",
        "labels/images_ (2)/frame_000000.txt",
        "labels/images_/car (2).txt",
        "labels/images_/car.txt",
    ]
    images = {row["image"]: row["file"] for row in csv.DictReader(io.StringIO(texts["files.csv"]))}
    assert images == {
        "images/images_/car.jpg": "images/car.jpg",
        "images/images_/car (2).jpg": "images_/car.jpg",
        "images/a/images_/val/images.jpg": "a/images/val/images.jpg",
        "images/images_ (2)/frame_000000.jpg": "images.mp4",
    }
    for name, content in (texts | dict.fromkeys(images, "")).items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    read = {str(one.path.relative_to(tmp_path)): one for one in read_data(tmp_path).images}
    assert {images[name]: one.class_ids.tolist() for name, one in read.items()} == {
        name: [class_id] for class_id, name in enumerate(names)
    }
    (original, *_) = json.loads(export(job, "coco"))["images"]
    assert original["file_name"] == "images/car.jpg"  # nothing is looked for beside it


def test_picture_whose_name_ends_a_line_has_a_path_without(user, dataset):
    job = aborted_job(user, [add_media_file(dataset, name="a.png\n")])
    (image,) = json.loads(export(job, "coco"))["images"]
    assert (image["file_name"], image["original_name"]) == ("a.jpeg", "a.png\n")
    assert "images/a.jpeg," in texts_of(export(job, "yolo"))["files.csv"]


def test_csv_has_a_row_for_every_detection(ended_job):
    FrameResult.objects.filter(job=ended_job, frame_index=1).update(time_seconds=1 / 30)
    text = export(ended_job, "csv").decode()
    assert "\r" not in text
    rows = list(csv.DictReader(io.StringIO(text)))
    assert rows[0] == {
        "file": "street.jpg",
        "media_file_id": rows[0]["media_file_id"],
        "frame_number": "0",
        "time": "0.0",
        "class": "0",
        "name": "car",
        "confidence": "0.9",
        "x1": "64.0",
        "y1": "48.0",
        "x2": "128.0",
        "y2": "96.0",
        "track_id": "",
    }
    assert [(row["file"], row["frame_number"], row["time"]) for row in rows[1:]] == [
        ("street.mp4", "1", "0.033333")
    ]


def test_json_lines_have_a_line_for_every_frame(ended_job):
    FrameResult.objects.filter(job=ended_job, frame_index=1).update(time_seconds=1 / 30)
    lines = [json.loads(line) for line in export(ended_job, "jsonl").splitlines()]
    told = [(one["file"], one["frame_number"], one["time"], len(one["objects"])) for one in lines]
    assert told == [
        ("street.jpg", 0, 0.0, 1),
        ("street.mp4", 0, 0.0, 0),
        ("street.mp4", 1, 0.033333, 1),
    ]
    assert lines[0]["objects"] == [
        {
            "name": "car",
            "class": 0,
            "confidence": 0.9,
            "box": {"x1": 64.0, "y1": 48.0, "x2": 128.0, "y2": 96.0},
        }
    ]


def test_mot_texts_have_the_tracks_of_each_video(user, dataset):
    add_media_file(dataset, name="still.jpg")
    first = add_media_file(dataset, name="a/drive.mp4", media_type="video", frame_count=9)
    second = add_media_file(dataset, name="b.mp4", media_type="video", frame_count=9)
    job = submitted(user, tracking=True, frame_stride=4)
    box = (10, 20, 30, 50)
    found(job, first, (CAR, 0.9, box), (CAR, 0.5, box), (CAR, 0.3, box), tracks=[2, 1, 0])
    found(job, first, (CAR, 0.8, box), (CAR, 0.2, box), frame_index=4, tracks=[1, 2])
    found(job, second, (CAR, 0.9, box))  # the job was aborted before this one was tracked
    services.abort_job(job_id=job.pk)
    assert texts_of(export(job, "mot")) == {
        "a_drive.txt": (
            "1,2,10.00,20.00,20.00,30.00,0.90000,-1,-1,-1\n"
            "1,1,10.00,20.00,20.00,30.00,0.50000,-1,-1,-1\n"
            "5,1,10.00,20.00,20.00,30.00,0.80000,-1,-1,-1\n"
        ),
        "b.txt": "",
    }
    lines = [json.loads(line) for line in export(job, "jsonl").splitlines()]
    assert [one["track_id"] for one in lines[0]["objects"]] == [2, 1, None]


def test_mot_of_a_job_without_tracking_is_a_conflict(ended_job):
    answer = client_of(ended_job.user).get(f"/api/v1/jobs/{ended_job.pk}/exports/mot/")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_tracked")


def test_job_that_goes_on_is_not_exported(user, dataset):
    add_media_file(dataset)
    job = submitted(user)
    answer = client_of(user).get(f"/api/v1/jobs/{job.pk}/exports/csv/")
    assert (answer.status_code, answer.json()["code"]) == (409, "job_not_finished")


@pytest.mark.parametrize("confidence", ["nan", "-0.1", "1.1", "half", ""])
def test_confidence_that_is_none_is_refused(ended_job, confidence):
    answer = client_of(ended_job.user).get(
        f"/api/v1/jobs/{ended_job.pk}/exports/csv/", {"minimum_confidence": confidence}
    )
    assert answer.status_code == 400
    assert [one["field"] for one in answer.json()["errors"]] == ["minimum_confidence"]


@pytest.mark.parametrize("path", ["exports/coco/", "annotated-zip/"])
def test_download_that_the_disk_does_not_take_is_a_507(ended_job, monkeypatch, path):
    """It is put together on disk, so that a reader of one byte a second holds no thread."""

    class FullDisk(io.BytesIO):
        def write(self, data):
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "SpooledTemporaryFile", lambda max_size: FullDisk())
    answer = client_of(ended_job.user).get(f"/api/v1/jobs/{ended_job.pk}/{path}")
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")


def test_download_that_would_take_the_reserve_of_the_disk_is_a_507(
    ended_job, monkeypatch, settings
):
    assert files.ROOM_CHECK_BYTES == 16 * 1024**2
    monkeypatch.setattr(files, "ROOM_CHECK_BYTES", 10)
    piece, free_bytes, taken = b"x" * 10, [], []

    def pieces(job, minimum_confidence):
        for _ in range(9):
            taken.append(True)
            yield piece

    def disk_usage(folder):
        assert str(folder) == tempfile.gettempdir()
        return SimpleNamespace(free=free_bytes.pop())

    settings.MIN_FREE_BYTES = 1000
    monkeypatch.setattr(room.shutil, "disk_usage", disk_usage)
    monkeypatch.setitem(EXPORTS, "csv", replace(EXPORTS["csv"], write=pieces))
    free_bytes[:] = [1009, 1010, 5000]  # the last one is asked first
    path = f"/api/v1/jobs/{ended_job.pk}/exports/csv/"
    answer = client_of(ended_job.user).get(path)
    assert (answer.status_code, answer.json()["code"]) == (507, "storage_full")
    assert (len(taken), free_bytes) == (3, [])
    free_bytes[:] = [5000] * 9
    answer = client_of(ended_job.user).get(path)
    assert (answer.status_code, answer["Content-Length"]) == (200, "90")
    answer.close()


@pytest.mark.parametrize("kind", [*EXPORTS, "xml"])
def test_strangers_job_and_unknown_format_are_not_found(ended_job, kind):
    answer = client_of(make_user()).get(f"/api/v1/jobs/{ended_job.pk}/exports/{kind}/")
    assert (answer.status_code, answer.json()["code"]) == (404, "job_not_found")
    answer = client_of(ended_job.user).get(f"/api/v1/jobs/{ended_job.pk}/exports/xml/")
    assert (answer.status_code, answer.json()["code"]) == (404, "export_not_found")


@pytest.mark.parametrize("kind", EXPORTS)
def test_job_that_found_nothing_exports_an_empty_document(user, dataset, kind):
    add_media_file(dataset)
    job = submitted(user, tracking=True)
    Job.objects.filter(pk=job.pk).update(class_names=[])
    services.abort_job(job_id=job.pk)
    exported = export(job, kind)
    if kind == "coco":
        assert json.loads(exported)["images"] == []
    elif kind in ("yolo", "mot"):
        texts_of(exported)
    else:
        assert exported.count(b"\n") == (1 if kind == "csv" else 0)


def test_long_video_is_exported_slice_by_slice(user, dataset, django_assert_max_num_queries):
    video = add_media_file(dataset, name="v.mp4", media_type="video", frame_count=900)
    job = submitted(user)
    one = found(job, video, (CAR, 0.9, (1, 2, 3, 4)))
    FrameResult.objects.bulk_create(
        FrameResult(
            job=job,
            media_file=video,
            frame_index=index,
            time_seconds=0,
            class_ids=one.class_ids,
            confidences=one.confidences,
            boxes_xyxy=one.boxes_xyxy,
        )
        for index in range(1, 900)
    )
    services.abort_job(job_id=job.pk)
    with django_assert_max_num_queries(6):
        pieces = list(EXPORTS["jsonl"].write(job, Wanted(0.25)))
    assert [json.loads(piece)["frame_number"] for piece in pieces] == list(range(900))
    assert max(map(len, pieces)) < 1000
