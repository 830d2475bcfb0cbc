"""The reserve on the disks of temporary and of stored files: the database may live there.

Knows no Django, because the server in front of Django asks too.
"""

import shutil
import tempfile
from pathlib import Path

MIN_FREE_BYTES = 512 * 1024**2  # where OD_MIN_FREE_BYTES is not set
MAX_REQUEST_BYTES = 2 * 1024**3  # where OD_MAX_REQUEST_BYTES is not set
ROOM_CHECK_BYTES = 16 * 1024**2  # what grows is looked at again after so much


def has_room_for(length_bytes: int, *, min_free_bytes: int, folder: Path | None = None) -> bool:
    """Tell whether the disk keeps its reserve when so many bytes more are written.

    The disk is that of `folder`, or of temporary files.
    """
    place = Path(tempfile.gettempdir()) if folder is None else folder
    return free_bytes(place) - length_bytes >= min_free_bytes


def free_bytes(folder: Path) -> int:
    """Room on the disk of a folder, which may still have to be made."""
    while not folder.exists():
        folder = folder.parent
    return shutil.disk_usage(folder).free
