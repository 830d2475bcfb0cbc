"""Hints to listening websockets, sent on commit and allowed to get lost.

A hint says only "look again": the truth is the event stream in PostgreSQL, whose sequence numbers
tell a client what it missed. So nothing here may fail the work that it reports.
"""

import logging
from collections.abc import Mapping
from typing import Any

from asgiref.sync import async_to_sync
from channels.layers import get_channel_layer
from django.db import transaction

logger = logging.getLogger(__name__)


def user_group(user_id: int) -> str:
    """The name of the channel group of one user's sockets."""
    return f"user.{user_id}"


def publish(user_id: int, hint: Mapping[str, Any]) -> None:
    """Send a hint to the user's sockets now; a fault of Redis is logged and otherwise ignored."""
    layer = get_channel_layer()
    if layer is None:
        return
    try:
        async_to_sync(layer.group_send)(user_group(user_id), dict(hint))
    except Exception as error:  # the vendor's errors are many, and none of them matters here
        logger.warning("A hint for user %s was not published: %s", user_id, error)


def publish_on_commit(user_id: int, hint: Mapping[str, Any]) -> None:
    """Send a hint once the surrounding transaction has committed."""
    transaction.on_commit(lambda: publish(user_id, hint), robust=True)
