"""Puts annotated ranges of a video behind each other, without encoding again, with its sound."""

from __future__ import annotations

import heapq
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from datasets.media.sound import ChangedSoundError, Sound, SoundError, opened_sound
from inference.pipeline.encode import (
    LONGEST_STEP_TICKS,
    MP4_OPTIONS,
    TICKS_PER_SECOND,
    whole_file,
)
from inference.pipeline.errors import DrawingError

logger = logging.getLogger(__name__)
_PROGRESS_EVERY_PACKETS = 256
# Of sound after the last picture. A file of some KB can claim hours, which would all be encoded.
_LONGEST_CODA_SECONDS = 600.0


def join_segments(
    segments: Sequence[Path],
    path: Path,
    *,
    sound_from: Path | None = None,
    on_progress: Callable[[], None] = lambda: None,
) -> None:
    """Write one MP4 of the pictures of `segments`, in their order, and the sound of `sound_from`.

    The segments come from `VideoWriter` with one size: their frames have the times of the whole
    video already, and each begins with a key frame, so the packets are copied as they are. Sound
    is copied where MP4 can hold its coding and its changes, else encoded to AAC; it ends some
    minutes after the pictures at the latest, and sound that cannot be read is left out. The file
    appears under its name only when it is whole. `on_progress` is called now and then; what it
    raises ends the work and leaves nothing. Raises DrawingError (`segment_unfit`) for a segment
    without a frame or of another coding.
    """
    with whole_file(path) as partial:
        if sound_from and _write_with_sound(partial, segments, sound_from, on_progress):
            return
        _write(partial, segments, None, on_progress)


def _write_with_sound(
    path: Path, segments: Sequence[Path], sound_from: Path, on_progress: Callable[[], None]
) -> bool:
    """Write the file with its sound; False where it has none that can be kept."""
    for may_copy in (True, False):
        with opened_sound(sound_from, may_copy=may_copy, on_progress=on_progress) as sound:
            if sound is None:
                return False
            try:
                _write(path, segments, sound, on_progress)
                return True
            except ChangedSoundError:
                continue
            except SoundError as error:
                logger.info("An annotated video goes without its sound: %s", error)
                return False
    return False


def _write(
    path: Path, segments: Sequence[Path], sound: Sound | None, on_progress: Callable[[], None]
) -> None:
    with av.open(str(path), "w", format="mp4", options=MP4_OPTIONS) as output:
        with av.open(str(segments[0])) as first:
            template = first.streams.video[0]
            extradata = template.codec_context.extradata
            pictures: Any = output.add_stream_from_template(template, opaque=True)
        pictures.time_base = Fraction(1, TICKS_PER_SECOND)
        ending = _Ending(_pictures(segments, pictures, extradata))
        tracks: list[Iterable[tuple[float, Any]]] = [ending]
        if sound is not None:
            tracks.append(_timed(sound.packets(sound.add_stream(output))))
            _begin(output)
        merged = heapq.merge(*tracks, key=lambda item: item[0])
        for count, (seconds, packet) in enumerate(merged):
            if ending.seconds is not None and seconds > ending.seconds + _LONGEST_CODA_SECONDS:
                break
            _mux(output, packet, is_sound=packet.stream is not pictures)
            if count % _PROGRESS_EVERY_PACKETS == 0:
                on_progress()


class _Ending:
    """Packets with their times; `seconds` is that of the last one, once it has been given."""

    def __init__(self, packets: Iterable[tuple[float, Any]]) -> None:
        self._packets = packets
        self.seconds: float | None = None

    def __iter__(self) -> Iterator[tuple[float, Any]]:
        last = 0.0
        for last, packet in self._packets:
            yield last, packet
        self.seconds = last


def _begin(output: Any) -> None:
    """Write the head of a file with sound, which alone can be what MP4 does not hold."""
    try:
        output.start_encoding()
    except (av.FFmpegError, ValueError) as error:
        raise SoundError(str(error)) from error


def _mux(output: Any, packet: Any, *, is_sound: bool) -> None:
    try:
        output.mux(packet)
    except (av.FFmpegError, ValueError) as error:
        if is_sound:
            raise SoundError(str(error)) from error
        raise


def _timed(packets: Iterable[Any]) -> Iterator[tuple[float, Any]]:
    """Packets with the time at which each is decoded, in seconds."""
    for packet in packets:
        yield float(packet.dts * packet.time_base), packet


def _pictures(
    segments: Sequence[Path], stream: Any, extradata: bytes | None
) -> Iterator[tuple[float, Any]]:
    """The packets of the segments; a frame is shown until the next one, over seams as well."""
    held: Any = None
    cut_ticks = 0
    for packet in _packets(segments, extradata):
        packet.stream = stream
        if held is not None:
            tick = packet.dts - cut_ticks
            cut_ticks += max(tick - held.dts - LONGEST_STEP_TICKS, 0)
            tick = min(max(tick, held.dts + 1), held.dts + LONGEST_STEP_TICKS)
            packet.pts = packet.dts = tick
            held.duration = packet.dts - held.dts
            yield float(held.dts * held.time_base), held
        held = packet
    yield float(held.dts * held.time_base), held


def _packets(segments: Sequence[Path], extradata: bytes | None) -> Iterator[Any]:
    for segment in segments:
        with av.open(str(segment)) as source:
            stream = next(iter(source.streams.video), None)
            packets = (packet for packet in source.demux(stream) if packet.size)
            first = next(packets, None) if stream is not None else None
            if stream is None or first is None or stream.codec_context.extradata != extradata:
                raise DrawingError("segment_unfit", "A part of the annotated video is missing.")
            yield first
            yield from packets
