"""Runs a detector over images and videos, hands results over as they come and draws them.

Three steps stand side by side with short queues between them: a thread decodes ahead, the
detector's lanes run the network, a thread draws and encodes. Memory is bounded by the queues,
whatever the length of a video.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from datasets.media.container import DECODER_THREADS
from datasets.media.errors import MediaError
from datasets.media.images import colour_profile, read_image
from datasets.media.limits import DEFAULT_LIMITS, MediaLimits
from datasets.media.seeking import SeekPlan
from datasets.media.video import VideoFrame, iter_frames
from inference.pipeline.annotate import AnnotatedVideo
from inference.pipeline.channel import Channel, ChannelClosedError
from inference.pipeline.detector import HELD_BYTES, Detector
from inference.pipeline.draw import draw
from inference.pipeline.encode import write_image
from inference.pipeline.errors import DrawingError
from inference.pipeline.types import Detections, FrameDetections, Image, MediaSummary

Item = TypeVar("Item")
Source = TypeVar("Source")

OnFrames = Callable[[list[FrameDetections]], None]

_FRAMES_AHEAD = 8
# Results are handed over together: each time costs the caller a transaction.
_REPORT_EVERY_FRAMES = 16
_REPORT_EVERY_SECONDS = 1.0
_IMAGES_BEING_DRAWN = 2
# Beside a graphics card, at most; on a CPU the network has the cores.
_MOST_DECODER_THREADS, _MOST_PREPARING_THREADS = 8, 4


@dataclass(frozen=True)
class ImageTask:
    """An image to look at; `annotated`: where its drawn copy goes, None for no copy."""

    source: Path
    annotated: Path | None = None


@dataclass(frozen=True)
class ImageOutcome:
    """What became of a task: its detections and its size, or the error that the file is at fault
    for (a MediaError, or a DrawingError when the copy cannot be written).
    """

    detections: Detections
    summary: MediaSummary | None = None
    error: MediaError | DrawingError | None = None


def process_images(
    tasks: Iterable[ImageTask],
    detector: Detector,
    *,
    on_progress: Callable[[], None] = lambda: None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> Generator[ImageOutcome, None, None]:
    """Detects in many images, which share batches; one outcome per task, in order.

    A file that cannot be read fails alone. Each outcome comes when its copy is written. Closing
    the iterator ends the work; a copy may be there whose outcome was not taken. `on_progress` is
    called as by `Detector.stream`.
    """

    def read(task: ImageTask) -> _LoadedImage:
        try:
            return _LoadedImage(task, read_image(task.source, limits=limits))
        except MediaError as error:
            return _LoadedImage(task, None, error)

    with contextlib.ExitStack() as stack:
        images = _made_in_order(tasks, read, _cores_to_spare(detector, _MOST_PREPARING_THREADS))
        loaded = stack.enter_context(_read_ahead(images, _image_bytes))
        found = stack.enter_context(
            contextlib.closing(
                detector.stream(loaded, lambda one: one.image, on_progress=on_progress)
            )
        )
        painters = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="paint"))
        drawn: deque[Future[ImageOutcome]] = deque()
        for one, detections in found:
            drawn.append(painters.submit(_finish_image, one, detections, detector.class_names))
            # Beside a large image, and the copy that is drawn on, no other one waits.
            behind = 0 if _image_bytes(one) > HELD_BYTES // 4 else _IMAGES_BEING_DRAWN
            del one
            while len(drawn) > behind or (drawn and drawn[0].done()):
                yield drawn.popleft().result()
        while drawn:
            yield drawn.popleft().result()


@dataclass(frozen=True, eq=False)
class _LoadedImage:
    task: ImageTask
    image: Image | None
    error: MediaError | None = None


def _image_bytes(loaded: _LoadedImage) -> int:
    return 0 if loaded.image is None else loaded.image.nbytes


def _finish_image(
    loaded: _LoadedImage, detections: Detections, class_names: Sequence[str]
) -> ImageOutcome:
    if loaded.image is None:
        return ImageOutcome(Detections.empty(), error=loaded.error)
    path = loaded.task.annotated
    if path is not None:
        try:
            write_image(
                path,
                draw(loaded.image, detections, class_names),
                colour_profile=colour_profile(loaded.task.source),
            )
        except DrawingError as error:
            return ImageOutcome(detections, error=error)
    height, width = loaded.image.shape[:2]
    return ImageOutcome(detections, MediaSummary(1, (width, height), path is not None))


def process_video(
    source: Path,
    detector: Detector,
    *,
    annotated: Path | None,
    on_frames: OnFrames,
    first_frame_index: int = 0,
    max_frames: int | None = None,
    frame_stride: int = 1,
    seek_plan: SeekPlan | None = None,
    on_progress: Callable[[], None] = lambda: None,
    limits: MediaLimits = DEFAULT_LIMITS,
    is_damaged: bool = False,
) -> MediaSummary:
    """Detects in the frames of a video and writes the drawn copy as MP4.

    `on_frames` is called in the caller's thread with some frames at a time, in their order; what
    it raises ends the work at once: threads are joined, no annotated file is left.
    `first_frame_index` and `max_frames` choose a range, `frame_stride` every n-th frame of it;
    `seek_plan` says where decoding may begin for it. `on_progress` is called as by
    `Detector.stream`, and now and then by the thread that decodes, also while it passes over
    frames; what it raises there ends the work as well, and is raised here. `is_damaged` says that
    `count_frames` warned of the video: then it is decoded exactly as there, if more slowly.
    Raises MediaError for a file that is no sound video or has no frame in the range,
    DrawingError when the copy cannot be written.
    """
    frames = iter_frames(
        source,
        first_frame_index=first_frame_index,
        max_frames=max_frames,
        frame_stride=frame_stride,
        seek_plan=seek_plan,
        limits=limits,
        on_progress=lambda _: on_progress(),
        decoder_threads=DECODER_THREADS
        if is_damaged
        else max(DECODER_THREADS, _cores_to_spare(detector, _MOST_DECODER_THREADS)),
    )
    return process_frames(
        frames, detector, annotated=annotated, on_frames=on_frames, on_progress=on_progress
    )


def draw_video(
    source: Path,
    found: Iterable[FrameDetections],
    class_names: Sequence[str],
    *,
    annotated: Path,
    frame_stride: int = 1,
    on_progress: Callable[[], None] = lambda: None,
    limits: MediaLimits = DEFAULT_LIMITS,
) -> None:
    """Writes the drawn copy of a video whose detections are known, in the order of its frames.

    Frames without an entry in `found` are left out, and so are entries without a frame.
    `on_progress` is called after each frame, and as by `process_video` while frames are decoded;
    it ends the work by what it raises. Raises MediaError and DrawingError as `process_video` does.
    """
    with contextlib.ExitStack() as stack:
        frames = iter_frames(
            source,
            frame_stride=frame_stride,
            limits=limits,
            on_progress=lambda _: on_progress(),
        )
        ahead = stack.enter_context(_read_ahead(frames, lambda frame: frame.held_bytes))
        painter = stack.enter_context(_Painter(annotated, class_names))
        known = iter(found)
        next_known = next(known, None)
        for frame in ahead:
            while next_known is not None and next_known.frame_index < frame.frame_index:
                next_known = next(known, None)
            if next_known is None:
                break
            if frame.frame_index == next_known.frame_index:
                painter.put(frame, next_known.detections)
                next_known = next(known, None)
            on_progress()
            del frame


def process_frames(
    frames: Iterator[VideoFrame],
    detector: Detector,
    *,
    annotated: Path | None,
    on_frames: OnFrames,
    on_progress: Callable[[], None] = lambda: None,
) -> MediaSummary:
    """As `process_video`, over frames from anywhere; closes `frames` when it can be closed."""
    with contextlib.ExitStack() as stack:
        threads = _cores_to_spare(detector, _MOST_PREPARING_THREADS)
        painted = _made_in_order(frames, _painted, threads)
        ahead = iter(stack.enter_context(_read_ahead(painted, lambda frame: frame.held_bytes)))
        first = next(ahead, None)
        if first is None:
            raise MediaError("no_frames", "Not a single frame of the video could be decoded.", 422)
        size_wh = first.image.shape[1], first.image.shape[0]
        painter = None
        if annotated is not None:
            painter = stack.enter_context(_Painter(annotated, detector.class_names))
        report = _Report(on_frames)
        found = stack.enter_context(
            contextlib.closing(
                detector.stream(chain([first], ahead), _frame_image, on_progress=on_progress)
            )
        )
        del first  # a frame lives only as long as something works on it
        for frame, detections in found:
            report.add(FrameDetections(frame.frame_index, frame.time_seconds, detections))
            if painter is not None:
                painter.put(frame, detections)
            del frame
        report.hand_over()
    return MediaSummary(report.frame_count, size_wh, annotated is not None)


def _frame_image(frame: VideoFrame) -> Image:
    return frame.image


def _painted(frame: VideoFrame) -> VideoFrame:
    _ = frame.image  # made here, and not where it is first looked at
    return frame


def _cores_to_spare(detector: Detector, most: int) -> int:
    """How many threads may decode beside the detector."""
    if getattr(detector, "device", "cpu") == "cpu":
        return 1
    return max(1, min(most, len(os.sched_getaffinity(0)) // 2))


def _made_in_order(
    sources: Iterable[Source], make: Callable[[Source], Item], threads: int
) -> Generator[Item, None, None]:
    """What `make` makes of each, in order, some ahead where there is more than one thread.

    What `sources` raises comes after what was made of those before. Closing it closes `sources`
    when that can be closed.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
    under_way: deque[Future[Item]] = deque()
    error: Exception | None = None
    try:
        remaining = iter(sources)
        while True:
            try:
                source = next(remaining)
            except StopIteration:
                break
            except Exception as raised:
                error = raised
                break
            if threads == 1:
                yield make(source)
                continue
            under_way.append(pool.submit(make, source))
            del source
            if len(under_way) > threads:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
        if error is not None:
            raise error
    finally:
        pool.shutdown(cancel_futures=True)
        close = getattr(sources, "close", None)
        if close is not None:
            close()


class _Report:
    """Hands results over some at a time, and at the latest after a second."""

    def __init__(self, on_frames: OnFrames) -> None:
        self.frame_count = 0
        self._on_frames = on_frames
        self._frames: list[FrameDetections] = []
        self._handed_over_at = time.monotonic()

    def add(self, frame: FrameDetections) -> None:
        self.frame_count += 1
        self._frames.append(frame)
        waited = time.monotonic() - self._handed_over_at
        if len(self._frames) >= _REPORT_EVERY_FRAMES or waited >= _REPORT_EVERY_SECONDS:
            self.hand_over()

    def hand_over(self) -> None:
        frames, self._frames = self._frames, []
        if frames:
            self._on_frames(frames)
        self._handed_over_at = time.monotonic()


@contextlib.contextmanager
def _read_ahead(items: Iterable[Item], bytes_of: Callable[[Item], int]) -> Iterator[Iterable[Item]]:
    """The same items, made by a thread that is a few ahead, fewer when they are large."""
    channel: Channel[Item] = Channel(_FRAMES_AHEAD, bytes_of, HELD_BYTES)

    def read() -> None:
        try:
            for item in items:
                channel.put(item)
                del item
        except ChannelClosedError:
            pass
        except BaseException as error:
            channel.finish(error)
        else:
            channel.finish()
        finally:
            close = getattr(items, "close", None)
            if close is not None:
                close()

    thread = threading.Thread(target=read, name="decode", daemon=True)
    thread.start()
    try:
        yield channel
    finally:
        channel.abandon()
        thread.join()


class _Painter:
    """Draws and encodes in a thread of its own; leaving the block waits for the last frame."""

    def __init__(
        self,
        path: Path,
        class_names: Sequence[str],
    ) -> None:
        self._path = path
        self._class_names = class_names
        self._channel: Channel[tuple[VideoFrame, Detections]] = Channel(
            _FRAMES_AHEAD, lambda one: one[0].held_bytes, HELD_BYTES
        )
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._paint, name="paint", daemon=True)

    def __enter__(self) -> _Painter:
        self._thread.start()
        return self

    def put(self, frame: VideoFrame, detections: Detections) -> None:
        """Queues a frame; raises what the drawing thread failed with."""
        if frame.planes is not None:
            frame.release_image()
        try:
            self._channel.put((frame, detections))
        except ChannelClosedError:
            self._thread.join()
            raise self._error or RuntimeError("the drawing thread has ended") from None

    def __exit__(self, kind: type[BaseException] | None, error: Any, trace: Any) -> None:
        # With an error under way the writer is told, so that it leaves no file behind.
        if kind is None:
            self._channel.finish()
        else:
            self._channel.stop(_StoppedError())
        self._thread.join()
        if kind is None and self._error is not None:
            raise self._error

    def _paint(self) -> None:
        try:
            with AnnotatedVideo(self._path, self._class_names) as video:
                for frame, detections in self._channel:
                    video.write(frame, detections)
                    del frame, detections
        except _StoppedError:
            pass
        except BaseException as error:
            self._error = error
        finally:
            self._channel.abandon()


class _StoppedError(Exception):
    """The work was ended from outside, so the file is not to be kept."""
