"""Inspects a file in this process; the service does this in a child only."""

from collections.abc import Callable
from pathlib import Path

from datasets.media.errors import unsupported_type
from datasets.media.facts import MediaFacts
from datasets.media.images import probe_image
from datasets.media.limits import MediaLimits
from datasets.media.sniff import sniff
from datasets.media.video import count_frames


def inspect_here(
    path: Path, *, limits: MediaLimits, on_progress: Callable[[int], None] | None = None
) -> MediaFacts:
    """Inspect the file in this process, without protection against crashes and hangs.

    `on_progress` gets the number of video frames so far. Raises MediaError, and MemoryError where
    memory is limited.
    """
    sniffed = sniff(path)
    if sniffed.kind == "archive":
        raise unsupported_type("The file is an archive, neither an image nor a video.")
    if sniffed.kind == "image":
        image = probe_image(path, limits=limits)
        return MediaFacts(
            kind="image",
            format=image.format,
            size_wh=image.size_wh,
            frame_count=1,
            thumbnail_jpeg=image.thumbnail_jpeg,
        )
    video = count_frames(path, format=sniffed.format, limits=limits, on_progress=on_progress)
    return MediaFacts(
        kind="video",
        format=video.container,
        size_wh=video.size_wh,
        frame_count=video.frame_count,
        duration_seconds=video.duration_seconds,
        average_rate_fps=video.average_rate_fps,
        codec=video.codec,
        rotation_degrees=video.rotation_degrees,
        has_audio=video.has_audio,
        warning=video.warning,
        seek_plan=video.seek_plan.to_json() if video.seek_plan else None,
        thumbnail_jpeg=video.thumbnail_jpeg,
    )
