"""The reserve on the disk of temporary files: the database lives there.

Knows no Django, because the server in front of Django asks too.
"""

import shutil
import tempfile

MIN_FREE_BYTES = 512 * 1024**2  # where OD_MIN_FREE_BYTES is not set
ROOM_CHECK_BYTES = 16 * 1024**2  # what grows is looked at again after so much


def has_room_for(length_bytes: int, *, min_free_bytes: int) -> bool:
    """Tell whether the disk keeps its reserve when so many bytes more are written."""
    free_bytes = shutil.disk_usage(tempfile.gettempdir()).free
    return free_bytes - length_bytes >= min_free_bytes
