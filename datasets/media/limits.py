"""A limit on everything that a hostile file could make grow."""

from dataclasses import dataclass

_MIB = 1024**2
_GIB = 1024**3


@dataclass(frozen=True)
class MediaLimits:
    """What one uploaded file may cost at most; the defaults suit a machine with 8 GiB.

    `max_gif_frames` is lower than `max_frames` because a GIF packs a frame into some 20 bytes.
    A member of an archive may unpack to `max_archive_ratio` times its packed size, or to
    `archive_ratio_floor_bytes`, whichever is more: plain bitmaps and blank frames pack very well.
    Its refused members, which cost nothing, may take the time of one file together.
    """

    max_pixels: int = 200_000_000
    max_frame_pixels: int = 64_000_000
    max_frames: int = 100_000
    max_gif_frames: int = 20_000
    max_archive_files: int = 5_000
    max_archive_uncompressed_bytes: int = 8 * _GIB
    max_archive_ratio: int = 200
    archive_ratio_floor_bytes: int = 64 * _MIB
    max_member_bytes: int = 2 * _GIB
    per_file_timeout_seconds: float = 300.0
    child_memory_bytes: int = 4 * _GIB
    child_cpu_seconds: int = 600


DEFAULT_LIMITS = MediaLimits()
