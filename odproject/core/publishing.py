"""Hints to who follows event streams, sent on commit and allowed to get lost.

A hint says only "look again": the truth is the event stream in PostgreSQL, whose sequence numbers
tell a client what it missed. So nothing here may fail the work that it reports.
"""

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import BaseChannelLayer, get_channel_layer
from django.conf import settings
from django.db import transaction

logger = logging.getLogger(__name__)
# After a failure hints are dropped for a while: a worker that waited for Redis at every batch
# would make every job as slow as Redis is.
QUIET_SECONDS = 5.0
EVERY_STREAM = "streams"  # the group of who hears of new events, whosever they are
_quiet_until = 0.0


def user_group(user_id: int) -> str:
    """The name of the channel group of one user's sockets."""
    return f"user.{user_id}"


def publish(user_id: int, hint: Mapping[str, Any], *, also_to: Sequence[str] = ()) -> None:
    """Send a hint to the user's sockets, and to other groups, now.

    A fault of Redis is logged and otherwise ignored.
    """
    global _quiet_until  # noqa: PLW0603 - one Redis for the whole process
    layer = get_channel_layer()
    if layer is None or time.monotonic() < _quiet_until:
        return
    try:
        async_to_sync(_send)(layer, [user_group(user_id), *also_to], dict(hint))
    except Exception as error:  # the vendor's errors are many, and none of them matters here
        _quiet_until = time.monotonic() + QUIET_SECONDS
        logger.warning("A hint for user %s was not published: %r", user_id, error)


async def _send(layer: BaseChannelLayer, groups: Sequence[str], hint: dict[str, Any]) -> None:
    # A Redis that takes connections and answers nothing must not hold up a request or a job.
    async with asyncio.timeout(settings.REDIS_TIMEOUT_SECONDS):
        for group in groups:
            await layer.group_send(group, hint)


def publish_on_commit(
    user_id: int, hint: Mapping[str, Any], *, also_to: Sequence[str] = ()
) -> None:
    """Send a hint once the surrounding transaction has committed."""
    transaction.on_commit(lambda: publish(user_id, hint, also_to=also_to), robust=True)
