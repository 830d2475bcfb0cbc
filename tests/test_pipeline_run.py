"""Videos run through the pipeline in bounded memory and end cleanly, whatever happens."""

import gc
import threading
import time
import weakref
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image as PilImage
from PIL import ImageCms

from datasets.media.errors import MediaError
from datasets.media.video import VideoFrame, count_frames, iter_frames
from inference.pipeline import run
from inference.pipeline.encode import VideoWriter
from inference.pipeline.errors import DrawingError
from inference.pipeline.run import (
    ImageTask,
    draw_video,
    process_frames,
    process_images,
    process_video,
)
from inference.pipeline.types import FrameDetections, MediaSummary
from inference.scenes import draw_scene, draw_video_scene, match_boxes
from tests.pipeline_fakes import FakeDetector, grey_frames, one_car, real_detector


class StopError(Exception):
    """What a test's callback raises."""


@pytest.fixture(autouse=True)
def no_thread_is_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


@pytest.fixture(params=[1, 3], ids=["cpu", "beside a card"])
def spare_cores(request, monkeypatch):
    """How many threads decode and make pictures beside the detector."""
    monkeypatch.setattr(run, "_cores_to_spare", lambda detector, most: request.param)


def write_video(path: Path, frames) -> Path:
    frames = list(frames)
    size_wh = frames[0].image.shape[1], frames[0].image.shape[0]
    with VideoWriter(path, size_wh, preset="ultrafast") as writer:
        for frame in frames:
            writer.write(frame.image, frame.time_seconds)
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("spare_cores")
def test_every_frame_is_detected_once_in_order(tmp_path):
    source = write_video(tmp_path / "in.mp4", grey_frames(10))
    detector, calls = FakeDetector(), []
    summary = process_video(
        source, detector, annotated=tmp_path / "out.mp4", on_frames=calls.append
    )
    assert summary == MediaSummary(frame_count=10, size_wh=(64, 48), annotated=True)
    assert detector.image_count == 10
    frames = [frame for call in calls for frame in call]
    assert [frame.frame_index for frame in frames] == list(range(10))
    assert [frame.time_seconds for frame in frames] == pytest.approx([i / 25 for i in range(10)])
    greys = [float(frame.detections.confidences[0]) * 255 for frame in frames]
    assert greys == pytest.approx([40 + i for i in range(10)], abs=3)


@pytest.mark.usefixtures("spare_cores")
def test_range_of_frames_keeps_its_numbers_and_times(tmp_path):
    source = write_video(tmp_path / "in.mp4", grey_frames(10))
    calls = []
    summary = process_video(
        source,
        FakeDetector(),
        annotated=None,
        on_frames=calls.append,
        first_frame_index=3,
        max_frames=5,
    )
    assert summary == MediaSummary(frame_count=5, size_wh=(64, 48), annotated=False)
    assert [frame.frame_index for call in calls for frame in call] == [3, 4, 5, 6, 7]
    assert calls[0][0].time_seconds == pytest.approx(3 / 25)


def test_every_third_frame_keeps_its_number_and_time(tmp_path):
    source = write_video(tmp_path / "in.mp4", grey_frames(10))
    detector, frames = FakeDetector(), []
    summary = process_video(
        source,
        detector,
        annotated=tmp_path / "out.mp4",
        on_frames=frames.extend,
        first_frame_index=1,
        frame_stride=3,
    )
    assert [frame.frame_index for frame in frames] == [3, 6, 9]
    assert summary.frame_count == detector.image_count == 3
    assert [frame.time_seconds for frame in frames] == pytest.approx([3 / 25, 6 / 25, 9 / 25])
    assert count_frames(tmp_path / "out.mp4").frame_count == 3


def test_results_are_handed_over_some_at_a_time():
    calls = []
    process_frames(grey_frames(40), FakeDetector(), annotated=None, on_frames=calls.append)
    assert [len(call) for call in calls] == [16, 16, 8]


def test_annotated_video_keeps_varying_frame_times_and_plays_in_browsers(tmp_path):
    times = [0.0, 0.04, 0.2, 0.21, 1.0, 1.5]
    images = [frame.image for frame in grey_frames(6)]
    frames = [
        VideoFrame(i, t, image) for i, (t, image) in enumerate(zip(times, images, strict=True))
    ]
    out = tmp_path / "out.mp4"
    process_frames(iter(frames), FakeDetector(), annotated=out, on_frames=lambda _: None)
    written = list(iter_frames(out))
    assert [frame.time_seconds for frame in written] == pytest.approx(times, abs=1e-4)
    assert count_frames(out).duration_seconds == pytest.approx(2.0, abs=1e-3)
    with av.open(str(out)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert stream.codec_context.codec_tag == "avc1"
    data = out.read_bytes()
    # The index stands before the pictures, so that a player can begin before it has them all.
    assert data.index(b"moov") < data.index(b"mdat")
    assert files_in(tmp_path) == ["out.mp4"]


def test_times_that_stand_still_are_nudged_on(tmp_path):
    frames = [VideoFrame(i, 0.5, frame.image) for i, frame in enumerate(grey_frames(4))]
    out = write_video(tmp_path / "out.mp4", frames)
    assert count_frames(out).frame_count == 4


@pytest.mark.parametrize("size_wh", [(65, 48), (64, 49), (33, 17), (2, 3)])
def test_odd_sizes_lose_their_last_row_or_column(tmp_path, size_wh):
    out = tmp_path / "out.mp4"
    summary = process_frames(
        grey_frames(3, size_wh), FakeDetector(), annotated=out, on_frames=lambda _: None
    )
    assert summary.size_wh == size_wh
    facts = count_frames(out)
    assert facts.size_wh == (size_wh[0] // 2 * 2, size_wh[1] // 2 * 2)
    assert facts.frame_count == 3


def test_video_of_one_pixel_has_results_and_a_clear_refusal_to_draw(tmp_path):
    frames = grey_frames(2, (1, 1))
    with pytest.raises(DrawingError) as caught:
        process_frames(
            frames, FakeDetector(), annotated=tmp_path / "out.mp4", on_frames=lambda _: None
        )
    assert caught.value.code == "video_too_small"
    assert files_in(tmp_path) == []
    calls = []
    process_frames(grey_frames(2, (1, 1)), FakeDetector(), annotated=None, on_frames=calls.append)
    assert len(calls[0]) == 2


def test_written_colours_are_the_drawn_ones(tmp_path):
    colours = [(200, 40, 40), (40, 160, 60), (50, 70, 200), (230, 230, 230)]
    frames = [
        VideoFrame(i, i / 25, np.full((64, 64, 3), colour, np.uint8))
        for i, colour in enumerate(colours)
    ]
    out = write_video(tmp_path / "out.mp4", frames)
    for colour, frame in zip(colours, iter_frames(out), strict=True):
        np.testing.assert_allclose(frame.image.mean((0, 1)), colour, atol=6)


@pytest.mark.usefixtures("spare_cores")
@pytest.mark.parametrize("failing_call", [1, 3])
def test_callback_that_raises_ends_everything_and_leaves_no_file(tmp_path, failing_call):
    source = write_video(tmp_path / "in.mp4", grey_frames(60))
    calls = []

    def stop(frames):
        calls.append(len(frames))
        if len(calls) == failing_call:
            raise StopError

    with pytest.raises(StopError):
        process_video(source, FakeDetector(), annotated=tmp_path / "out.mp4", on_frames=stop)
    assert calls == [16] * failing_call
    assert files_in(tmp_path) == ["in.mp4"]


@pytest.mark.usefixtures("spare_cores")
@pytest.mark.parametrize("thread", ["decode", "other"])
def test_work_is_ended_as_well_while_frames_are_passed_over(tmp_path, thread):
    """What is raised where nobody waits for a frame arrives as itself, and leaves no file."""
    source = write_video(tmp_path / "in.mp4", grey_frames(150))
    detector = FakeDetector()

    def stop():
        if (threading.current_thread().name == "decode") == (thread == "decode"):
            raise StopError

    with pytest.raises(StopError):
        process_video(
            source,
            detector,
            annotated=tmp_path / "out.mp4",
            on_frames=lambda _: None,
            first_frame_index=1,
            frame_stride=120,
            on_progress=stop,
        )
    assert detector.image_count == (0 if thread == "decode" else 1)
    assert files_in(tmp_path) == ["in.mp4"]


def test_drawing_what_is_known_is_ended_as_well_while_frames_are_passed_over(tmp_path):
    source = write_video(tmp_path / "in.mp4", grey_frames(150))
    drawn = tmp_path / "out.mp4"

    def stop():
        if threading.current_thread().name == "decode":
            raise StopError

    found = [FrameDetections(120, 4.8, one_car())]
    with pytest.raises(StopError):
        draw_video(source, found, ("car",), annotated=drawn, frame_stride=120, on_progress=stop)
    assert files_in(tmp_path) == ["in.mp4"]


@pytest.mark.usefixtures("spare_cores")
def test_detector_that_raises_ends_everything_and_leaves_no_file(tmp_path):
    def fail():
        raise StopError

    with pytest.raises(StopError):
        process_frames(
            grey_frames(1000),
            FakeDetector(on_detect=fail),
            annotated=tmp_path / "out.mp4",
            on_frames=lambda _: None,
        )
    assert files_in(tmp_path) == []


@pytest.mark.usefixtures("spare_cores")
def test_decoder_that_fails_midway_is_reported_and_leaves_no_file(tmp_path):
    closed = []

    def failing():
        try:
            yield from grey_frames(9)
            raise MediaError("corrupt_file", "damaged", 400)
        finally:
            closed.append(True)

    calls = []
    with pytest.raises(MediaError) as caught:
        process_frames(
            failing(), FakeDetector(), annotated=tmp_path / "out.mp4", on_frames=calls.append
        )
    assert caught.value.code == "corrupt_file"
    assert calls == []
    assert closed == [True]
    assert files_in(tmp_path) == []


def test_drawing_that_fails_is_reported_and_does_not_hang(tmp_path, monkeypatch):
    def fail(*_args):
        raise StopError

    monkeypatch.setattr("inference.pipeline.annotate.draw", fail)
    with pytest.raises(StopError):
        process_frames(
            grey_frames(1000),
            FakeDetector(),
            annotated=tmp_path / "out.mp4",
            on_frames=lambda _: None,
        )
    assert files_in(tmp_path) == []


def test_folder_that_does_not_exist_is_reported(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        process_frames(
            grey_frames(9),
            FakeDetector(),
            annotated=tmp_path / "none" / "out.mp4",
            on_frames=lambda _: None,
        )


def test_frames_alive_stay_bounded_however_long_the_video(tmp_path):
    alive, most_alive = set(), 0

    def counted(count):
        nonlocal most_alive
        for frame in grey_frames(count):
            key = frame.frame_index
            alive.add(key)
            weakref.finalize(frame.image, alive.discard, key)
            most_alive = max(most_alive, len(alive))
            yield frame

    summary = process_frames(
        counted(400), FakeDetector(), annotated=tmp_path / "out.mp4", on_frames=lambda _: None
    )
    assert summary.frame_count == 400
    # Eight decoded ahead, eight waiting to be drawn, and one or two in each thread's hands.
    assert 8 < most_alive <= 8 + 8 + 5
    gc.collect()
    assert alive == set()


def test_corrupt_video_is_refused_and_leaves_nothing(tmp_path):
    source = tmp_path / "in.mp4"
    source.write_bytes(b"\0\0\0\x18ftypisom" + b"junk" * 100)
    calls = []
    with pytest.raises(MediaError):
        process_video(
            source, FakeDetector(), annotated=tmp_path / "out.mp4", on_frames=calls.append
        )
    assert calls == []
    assert files_in(tmp_path) == ["in.mp4"]


def test_range_beyond_the_end_has_no_frames(tmp_path):
    source = write_video(tmp_path / "in.mp4", grey_frames(3))
    with pytest.raises(MediaError) as caught:
        process_video(
            source,
            FakeDetector(),
            annotated=None,
            on_frames=lambda _: None,
            first_frame_index=3,
        )
    assert caught.value.code == "no_frames"


def test_image_is_detected_upright_and_drawn(tmp_path):
    scene = draw_scene(5, (640, 360), 5)
    lying = PilImage.fromarray(np.rot90(scene.image, 1))
    exif = PilImage.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    lying.save(tmp_path / "in.png", exif=exif)
    tasks = [ImageTask(tmp_path / "in.png", tmp_path / "out.png")]
    (outcome,) = process_images(tasks, real_detector())
    assert outcome.summary == MediaSummary(frame_count=1, size_wh=(640, 360), annotated=True)
    found, false = match_boxes(scene.boxes_xyxy, outcome.detections.above(0.25).boxes_xyxy)
    assert found >= 4
    assert false <= 1
    with PilImage.open(tmp_path / "out.png") as drawn:
        assert drawn.size == (640, 360)
        assert (np.asarray(drawn) != scene.image).any(axis=2).mean() < 0.1


@pytest.mark.usefixtures("spare_cores")
@pytest.mark.parametrize(
    ("mode", "suffix", "is_kept"),
    [
        ("RGB", "jpg", True),
        ("RGB", "png", True),
        ("RGBA", "png", True),
        ("RGB", "webp", True),
        ("RGB", "tif", True),
        ("L", "jpg", False),  # a profile of greys says nothing about RGB
        ("CMYK", "jpg", False),
    ],
)
def test_annotated_photograph_keeps_the_colour_profile_of_its_numbers(
    tmp_path, mode, suffix, is_kept
):
    """Phones write Display P3; the same numbers taken for sRGB would be paler."""
    source, annotated = tmp_path / f"a.{suffix}", tmp_path / f"annotated.{suffix}"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    PilImage.new(mode, (64, 48), 128).save(source, icc_profile=profile)
    (outcome,) = process_images([ImageTask(source, annotated)], FakeDetector())
    assert outcome.error is None
    with PilImage.open(annotated) as copy:
        assert copy.info.get("icc_profile") == (profile if is_kept else None)


def test_images_that_cannot_be_read_or_drawn_fail_alone(tmp_path):
    for name in ("first.png", "broken.png", "last.png"):
        PilImage.new("RGB", (64, 48), "red").save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes((tmp_path / "broken.png").read_bytes()[:60])
    tasks = [
        ImageTask(tmp_path / "first.png", tmp_path / "first.jpg"),
        ImageTask(tmp_path / "broken.png", tmp_path / "broken.jpg"),
        ImageTask(tmp_path / "first.png", tmp_path / "first.unknown"),
        ImageTask(tmp_path / "last.png"),
    ]
    detector = FakeDetector()
    outcomes = list(process_images(tasks, detector))
    assert [len(outcome.detections) for outcome in outcomes] == [1, 0, 1, 1]
    assert [getattr(outcome.error, "code", None) for outcome in outcomes] == [
        None,
        "corrupt_file",
        "image_format_unknown",
        None,
    ]
    assert [outcome.summary is not None for outcome in outcomes] == [True, False, False, True]
    assert detector.image_count == 3
    assert files_in(tmp_path) == ["broken.png", "first.jpg", "first.png", "last.png"]


def test_only_a_graphics_card_leaves_cores_to_spare(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    detector = FakeDetector()
    assert run._cores_to_spare(detector, 4) == 1
    detector.device = "cuda:0"
    assert run._cores_to_spare(detector, 4) == 4
    assert run._cores_to_spare(detector, 32) == 8
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    assert run._cores_to_spare(detector, 4) == 1


@pytest.mark.parametrize(("is_damaged", "threads"), [(False, 3), (True, 2)])
def test_damaged_video_is_decoded_as_it_was_when_it_was_counted(
    tmp_path, monkeypatch, is_damaged, threads
):
    source = write_video(tmp_path / "in.mp4", grey_frames(4))
    asked = []

    def frames(path, *, decoder_threads, **options):
        asked.append(decoder_threads)
        return iter_frames(path, decoder_threads=decoder_threads, **options)

    monkeypatch.setattr(run, "iter_frames", frames)
    monkeypatch.setattr(run, "_cores_to_spare", lambda detector, most: 3)
    process_video(
        source, FakeDetector(), annotated=None, on_frames=lambda _: None, is_damaged=is_damaged
    )
    assert asked == [threads]


def test_frames_made_by_several_threads_come_in_their_order():
    def make(number):
        time.sleep(0.02 if number % 3 == 0 else 0)  # the first of three is the last to be ready
        return number

    assert list(run._made_in_order(range(20), make, 3)) == list(range(20))


def test_large_images_are_in_memory_a_few_at_a_time(tmp_path, monkeypatch):
    """One is being read, one waits to be looked at, and one is being drawn."""
    alive, most_alive = set(), [0]

    def read(path, *, limits):
        image = np.zeros((48, 64, 3), np.uint8)
        alive.add(path)
        weakref.finalize(image, alive.discard, path)
        most_alive.append(len(alive))
        return image

    monkeypatch.setattr("inference.pipeline.run.read_image", read)
    monkeypatch.setattr("inference.pipeline.run.HELD_BYTES", 64 * 48 * 3)
    monkeypatch.setattr("inference.pipeline.run.colour_profile", lambda path: None)
    monkeypatch.setattr(
        "inference.pipeline.run.write_image", lambda path, image, **profile: time.sleep(0.01)
    )
    tasks = [ImageTask(Path(f"{number}.png"), tmp_path / "out.png") for number in range(20)]
    assert len(list(process_images(tasks, FakeDetector()))) == 20
    assert max(most_alive) <= 3


def test_drawing_goes_on_where_a_known_frame_is_missing(tmp_path):
    source = write_video(tmp_path / "in.mp4", grey_frames(6))
    found = [FrameDetections(index, index / 25, one_car()) for index in (0, 1, 3, 4, 7)]
    out = tmp_path / "out.mp4"
    draw_video(source, found, ("car",), annotated=out, frame_stride=2)  # 0, 2 and 4
    assert [frame.time_seconds for frame in iter_frames(out)] == pytest.approx([0, 4 / 25])


@pytest.mark.usefixtures("spare_cores")
def test_images_whose_outcomes_are_not_wanted_any_more_end_at_once(tmp_path):
    PilImage.new("RGB", (64, 48), "red").save(tmp_path / "in.png")
    detector = FakeDetector()
    outcomes = process_images([ImageTask(tmp_path / "in.png")] * 1000, detector)
    next(outcomes)
    outcomes.close()
    assert detector.image_count < 10


def test_driving_vehicles_are_found_through_a_whole_video(tmp_path):
    scenes = list(draw_video_scene(6, 6, (640, 360), 6, frames_per_second=5))
    frames = [VideoFrame(i, i / 5, scene.image) for i, scene in enumerate(scenes)]
    source = write_video(tmp_path / "in.mp4", frames)
    results = []
    process_video(source, real_detector(), annotated=tmp_path / "out.mp4", on_frames=results.extend)
    matches = [
        match_boxes(scene.boxes_xyxy, result.detections.above(0.25).boxes_xyxy)
        for scene, result in zip(scenes, results, strict=True)
    ]
    true_count = sum(len(scene.boxes_xyxy) for scene in scenes)
    assert sum(found for found, _ in matches) >= 0.85 * true_count
    assert sum(false for _, false in matches) <= 0.1 * true_count
    assert count_frames(tmp_path / "out.mp4").frame_count == 6
