"""The pictures and videos that came with the original system, through the whole service.

They are not part of this repository: without OD_SHARED_DIR, or a folder `shared` beside the
repository, these tests skip.
"""

import io
import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from inference.scenes import match_boxes
from tests.contract.client import Api
from tests.contract.conftest import anonymous  # noqa: F401 - fixtures

SHARED = Path(os.environ.get("OD_SHARED_DIR") or Path(__file__).resolve().parents[2] / "shared")
SAMPLES = SHARED / "data" / "original_samples"
VEHICLES = SHARED / "data" / "aerial_vehicles"
PHOTOGRAPHS = [f"image_test_{number}.jpg" for number in range(1, 7)]
VIDEO, VIDEO_FRAMES = "video_test_1.mp4", 46
STREET_FRAMES = range(155, 180)
CYCLIST = 4

pytestmark = [
    pytest.mark.service,
    pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no samples in {SAMPLES}"),
]


@pytest.fixture(scope="module")
def owner(anonymous: Api) -> Api:  # noqa: F811
    return anonymous.new_customer()


@pytest.fixture(scope="module")
def samples(owner: Api):
    """The job on the six photographs and the video: the balance after it, its result and zip."""
    dataset = owner.new_dataset("original samples")
    for name in [*PHOTOGRAPHS, VIDEO]:
        answer = owner.upload(dataset, (SAMPLES / name).read_bytes(), name)
        assert answer.status_code == 201, answer.text
    assert owner.balance() == 1000.0 - 6 * 0.75 - VIDEO_FRAMES * 0.5
    assert owner.datasets()[dataset]["token_cost"] == 6 * 1.5 + VIDEO_FRAMES * 1.0
    job_id = owner.submit(dataset, "YOLO8s_FSR")
    assert owner.state_at_the_end(job_id) == "Completed"
    return owner.balance(), owner.result(job_id)["result"], owner.content(job_id)


def test_every_sample_has_its_entry(samples):
    _, entries, _ = samples
    assert [entry["filename"] for entry in entries] == [*PHOTOGRAPHS, VIDEO]
    assert all("error" not in entry for entry in entries)


def test_something_is_seen_on_the_photographs_and_in_the_video(samples):
    """How much is a matter of the weights: the cars are distant, and nothing here labels them."""
    _, entries, _ = samples
    counts = {entry["filename"]: len(entry["objects"]) for entry in entries[:-1]}
    in_video = sum(len(frame["objects"]) for frame in entries[-1]["frames"])
    print(f"objects found: {counts}, in the video {in_video}")
    assert sum(counts.values()) > 0


def test_boxes_lie_on_the_pictures(samples):
    _, entries, _ = samples
    for entry in entries[:-1]:
        with Image.open(SAMPLES / entry["filename"]) as image:
            width, height = ImageOps.exif_transpose(image).size
        for one in entry["objects"]:
            assert 0 <= one["box"]["x1"] < one["box"]["x2"] <= width
            assert 0 <= one["box"]["y1"] < one["box"]["y2"] <= height
            assert one["confidence"] >= 0.25


def test_video_has_every_frame_in_the_result_and_in_the_annotated_file(samples):
    _, entries, archive = samples
    frames = entries[-1]["frames"]
    assert [frame["frame_number"] for frame in frames] == list(range(VIDEO_FRAMES))
    times = [frame["time"] for frame in frames]
    assert times == sorted(set(times))
    with av.open(io.BytesIO(archive.read(VIDEO))) as container:
        stream = container.streams.video[0]
        assert (stream.width, stream.height) == (1920, 1080)
        assert len(list(container.decode(stream))) == VIDEO_FRAMES


def test_annotated_photographs_have_the_size_of_the_originals(samples):
    _, _, archive = samples
    assert archive.namelist() == [*PHOTOGRAPHS, VIDEO]
    for name in PHOTOGRAPHS:
        with Image.open(SAMPLES / name) as original:
            size_wh = ImageOps.exif_transpose(original).size
        with Image.open(io.BytesIO(archive.read(name))) as annotated:
            annotated.load()
            assert annotated.size == size_wh


def test_whole_job_costs_what_the_list_said(samples):
    balance, _, _ = samples
    upload, inference = 6 * 0.75 + VIDEO_FRAMES * 0.5, 6 * 1.5 + VIDEO_FRAMES * 1.0
    assert balance == 1000.0 - upload - inference


def test_larger_model_reads_a_photograph_too(owner):
    dataset = owner.new_dataset("one photograph")
    owner.upload(dataset, (SAMPLES / PHOTOGRAPHS[1]).read_bytes(), PHOTOGRAPHS[1])
    job_id = owner.submit(dataset, "YOLO8m_FSR")
    assert owner.state_at_the_end(job_id) == "Completed"
    (entry,) = owner.result(job_id)["result"]
    assert set(entry) == {"filename", "type", "objects"}


def labelled_vehicles(name: str, size_wh: tuple[int, int]) -> np.ndarray:
    """The boxes xyxy in pixels of a YOLO label file (class cx cy w h, relative), no cyclists."""
    rows = np.loadtxt(VEHICLES / "labels" / f"{name}.txt", ndmin=2)
    rows = rows[rows[:, 0] != CYCLIST]
    centre, half = rows[:, 1:3] * size_wh, rows[:, 3:5] * size_wh / 2
    return np.hstack([centre - half, centre + half])


@pytest.mark.skipif(not VEHICLES.is_dir(), reason=f"no labelled street in {VEHICLES}")
def test_most_vehicles_of_the_labelled_street_are_found(owner):
    dataset = owner.new_dataset("labelled street")
    video = VEHICLES / "street_25_frames.mp4"
    assert owner.upload(dataset, video.read_bytes(), video.name).status_code == 201
    with av.open(str(video)) as container:
        size_wh = (container.streams.video[0].width, container.streams.video[0].height)
    job_id = owner.submit(dataset, "YOLO8s_FSR")
    assert owner.state_at_the_end(job_id) == "Completed"
    (entry,) = owner.result(job_id)["result"]
    assert len(entry["frames"]) == len(STREET_FRAMES)
    found = total = false = 0
    for number, frame in zip(STREET_FRAMES, entry["frames"], strict=True):
        truth = labelled_vehicles(f"MOS{number}", size_wh)
        boxes = [[one["box"][key] for key in ("x1", "y1", "x2", "y2")] for one in frame["objects"]]
        hit, miss = match_boxes(truth, np.array(boxes, float).reshape(-1, 4))
        found, total, false = found + hit, total + len(truth), false + miss
    print(f"{found} of {total} labelled vehicles found, {false} boxes beside them")
    assert found >= 0.7 * total
