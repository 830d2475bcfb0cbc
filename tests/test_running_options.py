"""A worker does with a unit what the job's options say, and follows objects when all is found."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from django.core.files.storage import default_storage

from datasets.media.inspection import inspect_here
from datasets.media.video import count_frames, iter_frames
from datasets.models import MediaFile
from datasets.uploading import media_limits
from inference import queue, services, submission
from inference.exports import mot
from inference.models import FrameResult, JobFile, WorkUnit
from inference.networks import Detectors
from inference.pipeline.draw import draw
from inference.pipeline.options import DetectionOptions, FieldFault, OptionsError
from inference.pipeline.types import Detections
from inference.results import result_json
from inference.selectors import Wanted
from inference.services import LeaseLostError
from inference.tracking import track_video
from inference.worker import run_unit
from tests.factories import add_media_file, make_dataset, make_user
from tests.mediafiles import write_video
from tests.pipeline_fakes import OneByOne

pytestmark = pytest.mark.django_db


class CarAndDoubtfulBus(OneByOne):
    """Finds them at the same places in every image."""

    class_names = ("car", "bus")
    sha256 = "f" * 64

    def detect(self, images):
        return [
            Detections(
                np.array([0, 1], np.int16),
                np.array([0.9, 0.2], np.float32),
                np.array([[4, 8, 24, 20], [40, 8, 60, 40]], np.float32),
            )
            for _ in images
        ]


@pytest.fixture
def dataset(monkeypatch, tmp_path):
    """A video of ten frames, 64 x 48."""
    monkeypatch.setattr(queue, "send_unit", lambda unit_id: True)
    write_video(tmp_path / "a.mp4", frames=10)
    dataset = make_dataset(make_user())
    add_media_file(
        dataset,
        name="a.mp4",
        content=tmp_path / "a.mp4",
        media_type="video",
        frame_count=10,
        image_format="mp4",
    )
    return dataset


def submit(dataset, **options):
    return submission.submit_job(
        user=dataset.user,
        dataset_id=dataset.pk,
        model_id="YOLO8",
        model_version="YOLO8s_FSR",
        options=options,
    )


def run_next(job, detector_of=lambda job: CarAndDoubtfulBus(), **arguments):
    """Run the job's next waiting unit and return it."""
    unit = WorkUnit.objects.filter(job=job, state="pending").order_by("position", "pk")[0]
    assert run_unit(unit_id=unit.pk, worker_name="w", detector_of=detector_of, **arguments)
    unit.refresh_from_db()
    job.refresh_from_db()
    return unit


def results_of(job):
    return json.loads("".join(result_json(job)))["result"]


def track_ids():
    return [
        None if frame.track_ids is None else np.frombuffer(frame.track_ids, "<i4").tolist()
        for frame in FrameResult.objects.order_by("frame_index")
    ]


def test_every_third_frame_is_looked_at_drawn_and_charged(dataset):
    job = submit(dataset, frame_stride=3)
    run_next(job)
    assert (job.state, job.charged_hundredths) == ("Completed", 400)
    (entry,) = results_of(job)
    assert [frame["frame_number"] for frame in entry["frames"]] == [0, 3, 6, 9]
    assert set(entry["frames"][0]["objects"][0]) == {"name", "class", "confidence", "box"}
    drawn = Path(default_storage.path(JobFile.objects.get().annotated.name))
    assert count_frames(drawn).frame_count == 4
    seconds = [frame.time_seconds for frame in iter_frames(drawn)]
    assert seconds == pytest.approx([frame["time"] for frame in entry["frames"]], abs=0.001)


def test_worker_that_is_told_to_stop_need_not_decode_up_to_the_next_frame_of_a_stride(
    dataset, tmp_path
):
    MediaFile.objects.filter(dataset=dataset).delete()
    add_media_file(
        dataset,
        name="b.mp4",
        content=write_video(tmp_path / "b.mp4", frames=120),
        media_type="video",
        frame_count=120,
        image_format="mp4",
    )
    job = submit(dataset, frame_stride=110)
    asked_by = []

    def should_stop():
        asked_by.append(threading.current_thread().name)
        return asked_by[-1] == "decode"

    unit = run_next(job, should_stop=should_stop)
    assert (unit.state, unit.tries, job.state) == ("pending", 0, "Running")
    assert asked_by.count("decode") == 1
    assert not FrameResult.objects.filter(frame_index=110).exists()


def test_tracked_video_is_followed_and_drawn_when_all_of_it_is_found(dataset):
    job = submit(dataset, tracking=True, frame_stride=2)
    found = run_next(job)
    assert (found.kind, job.state, track_ids()) == ("frames", "Running", [None] * 5)
    followed = run_next(job)
    assert (followed.kind, job.state, job.charged_hundredths) == ("finish", "Completed", 500)
    assert track_ids() == [[1, 0]] * 5
    (entry,) = results_of(job)
    assert [one["track_id"] for frame in entry["frames"] for one in frame["objects"]] == [1] * 5
    drawn = Path(default_storage.path(JobFile.objects.get().annotated.name))
    assert count_frames(drawn).frame_count == 5
    assert b"".join(mot(job, Wanted(0.25)))[:2] == b"PK"


def test_pass_that_is_broken_off_is_made_again_with_the_same_ids(dataset, monkeypatch):
    job = submit(dataset, tracking=True)
    run_next(job)
    monkeypatch.setattr("inference.selectors.FRAMES_PER_READ", 4)
    answers = iter([False] * 4 + [True])
    handed_back = run_next(job, should_stop=lambda: next(answers))
    assert (handed_back.state, handed_back.tries, job.state) == ("pending", 0, "Running")
    assert track_ids() == [[1, 0]] * 4 + [None] * 6
    run_next(job)
    assert (job.state, track_ids()) == ("Completed", [[1, 0]] * 10)


def test_progress_of_tracking_is_told_for_each_frame_of_a_slice(dataset):
    """Half a thousand crowded frames may take longer than silence is borne."""
    job = submit(dataset, tracking=True)
    run_next(job)
    unit = WorkUnit.objects.get(job=job, kind="finish")
    claim = services.claim_unit(unit_id=unit.pk, worker_name="w")
    told = []
    track_video(
        claim=claim,
        job=job,
        media_file=MediaFile.objects.get(),
        on_progress=lambda: told.append(track_ids()),
    )
    assert told == [[None] * 10] * 10  # all of them before the only slice is written
    assert track_ids() == [[1, 0]] * 10


def test_ranges_that_end_in_any_order_are_followed_as_one_video(
    dataset, settings, monkeypatch, tmp_path
):
    MediaFile.objects.filter(dataset=dataset).delete()
    settings.UNIT_MAX_FRAMES = 4
    monkeypatch.setattr("datasets.media.seeking.SPACING_FRAMES", 5)
    every_tenth_is_a_key = {"g": "10", "bf": "0", "sc_threshold": "0"}
    source = write_video(
        tmp_path / "b.mp4", frames=40, codec="libx264", codec_options=every_tenth_is_a_key
    )
    add_media_file(
        dataset,
        name="b.mp4",
        content=source,
        media_type="video",
        frame_count=40,
        image_format="mp4",
        seek_plan=inspect_here(source, limits=media_limits()).seek_plan,
    )
    job = submit(dataset, tracking=True, frame_stride=3)
    units = list(WorkUnit.objects.filter(job=job).order_by("-pk"))
    assert len(units) == 4
    for unit in units:
        run_unit(unit_id=unit.pk, worker_name="w", detector_of=lambda job: CarAndDoubtfulBus())
    run_next(job)
    assert (job.state, job.charged_hundredths) == ("Completed", 1400)
    assert track_ids() == [[1, 0]] * 14
    frames = results_of(job)[0]["frames"]
    assert [frame["frame_number"] for frame in frames] == list(range(0, 40, 3))


def test_worker_that_lost_its_lease_writes_no_ids(dataset):
    job = submit(dataset, tracking=True)
    run_next(job)
    unit = WorkUnit.objects.get(job=job, kind="finish")
    first = services.claim_unit(unit_id=unit.pk, worker_name="w1")
    services.reclaim_units(worker_name="w1")
    services.claim_unit(unit_id=unit.pk, worker_name="w2")
    frames = list(FrameResult.objects.all())
    for frame in frames:
        frame.track_ids = np.array([9, 9], "<i4").tobytes()
    with pytest.raises(LeaseLostError):
        services.store_track_ids(claim=first, frames=frames)
    assert track_ids() == [None] * 10


def test_class_that_the_model_turns_out_not_to_know_fails_the_file_at_once(dataset):
    job = submit(dataset)

    def detector_of(job):
        detail = "The model knows no class tram, only car."
        raise OptionsError([FieldFault("class_names", "unknown", detail)])

    unit = run_next(job, detector_of)
    assert (unit.state, unit.tries) == ("failed", 1)
    assert (job.state, job.charged_hundredths) == ("Failed", 0)
    assert job.error == "The model knows no class tram, only car."


class Network:
    """What a loaded network says of itself."""

    class_names = ("car", "bus")
    device, runtime, precision, sha256 = "cpu", "none", "fp32", "f" * 64

    def tune(self, input_wh, *, batch_size=0):
        self.tuned_for = input_wh


def test_jobs_with_different_options_share_a_network_of_one_precision(dataset):
    loaded = []
    detectors = Detectors(
        load=lambda path, **how: loaded.append(how["precision"]) or Network(),
    )
    first = detectors.for_job(submit(dataset, iou=0.7))
    second = detectors.for_job(submit(dataset, image_size=320, class_names=["bus"]))
    third = detectors.for_job(submit(dataset, precision="fp32"))
    assert first.network is second.network is not third.network
    assert loaded == ["auto", "fp32"]
    assert (first.options.iou, second.options.image_size) == (0.7, 320)
    assert first.options == DetectionOptions(iou=0.7)
    job = submit(dataset)
    assert detectors.loaded_weights == [job.weights_sha256]
    job.options["class_names"] = ["tram"]
    with pytest.raises(OptionsError, match="tram"):
        detectors.for_job(job)


def test_number_of_the_track_is_drawn():
    boxes = np.array([[40, 60, 80, 90]], np.float32)
    picture = np.full((200, 300, 3), 128, np.uint8)

    def drawn(*ids):
        tracks = None if not ids else np.array(ids, np.int32)
        confidence = np.array([0.9], np.float32)
        return draw(picture, Detections(np.zeros(1, np.int16), confidence, boxes, tracks), ["car"])

    assert (drawn() == drawn(0)).all()
    assert (drawn(1) != drawn()).any()
    assert (drawn(1) != drawn(7)).any()
