"""What the sweeper takes away once an hour: what nobody needs any more."""

import contextlib
import functools
from datetime import datetime, timedelta

from django.core.files.storage import default_storage
from django.db import transaction
from django.db.models import Exists, OuterRef, Q

from datasets.models import MediaFile
from inference.models import Job, JobFile, WorkerHeartbeat
from odproject.core.clock import database_now
from odproject.core.files import remove_orphans

ORPHAN_WINDOW = timedelta(days=2)  # jobs that ended longer ago have been looked through before
FILES_PER_CLEANING = 10_000
FILES_AT_A_TIME = 100


def remove_orphaned_results(*, older_than: datetime) -> int:
    """Remove annotated files of attempts that were cut off, and segments of ended videos.

    Returns how many.
    """

    def known_results(job_id: int, names: list[str]) -> set[str]:
        rows = JobFile.objects.filter(job_id=job_id, annotated__in=names)
        return set(rows.values_list("annotated", flat=True))

    finished = Job.objects.filter(
        finished_at__lt=older_than, finished_at__gte=older_than - ORPHAN_WINDOW
    )
    return sum(
        remove_orphans(
            folder=f"results/{job_id}",
            older_than=older_than,
            known=functools.partial(known_results, job_id),
        )
        for job_id in finished.values_list("pk", flat=True)
    )


def remove_deleted_content(*, deleted_before: datetime) -> int:
    """Remove from the storage what was deleted before then, or whose dataset was.

    Not while a job that was quoted for it is unfinished, nor while moderators have flagged or
    blocked its dataset: it may be what they have to look at. The row stays, and with it what jobs
    found. Returns how many files were removed, about FILES_PER_CLEANING at most.
    """
    removed = 0
    # A few at a time: moderators may come while those before are removed.
    while removed < FILES_PER_CLEANING and (some := _given_up(deleted_before=deleted_before)):
        removed += len(some)
        for media_file in some:
            for name in filter(None, (media_file.content.name, media_file.thumbnail.name)):
                with contextlib.suppress(OSError):
                    default_storage.delete(name)
    return removed


@transaction.atomic
def _given_up(*, deleted_before: datetime) -> list[MediaFile]:
    """Some files whose content nobody needs any more; their rows say from now on that it is gone.

    What a crash leaves behind of it is an orphan then, and goes.
    """
    still_needed = JobFile.objects.filter(media_file=OuterRef("pk"), job__state__in=Job.UNFINISHED)
    deleted = MediaFile.objects.filter(
        Q(deleted_at__lt=deleted_before) | Q(dataset__deleted_at__lt=deleted_before),
        ~Exists(still_needed),
        removed_at__isnull=True,
        dataset__flagged_at__isnull=True,
        dataset__blocked_at__isnull=True,
    )
    locked = deleted.select_for_update(of=("self",), no_key=True).only("content", "thumbnail")
    some = list(locked[:FILES_AT_A_TIME])
    numbers = [media_file.pk for media_file in some]
    MediaFile.objects.filter(pk__in=numbers).update(removed_at=database_now())
    return some


def forget_silent_workers(*, before: datetime) -> int:
    """Remove workers that were last heard of long ago; returns how many."""
    return WorkerHeartbeat.objects.filter(last_seen_at__lt=before).delete()[0]
