"""The channel layer of Redis, made to outlive an absence of Redis."""

import asyncio
import logging
from typing import Any

from channels_redis.core import RedisChannelLayer

logger = logging.getLogger(__name__)
RETRY_SECONDS = 1.0


class PatientRedisChannelLayer(RedisChannelLayer):
    """While Redis is away, a listening socket waits rather than ends.

    Nothing is lost by it: messages of this layer are hints, and consumers read what they missed
    from the event stream.
    """

    async def receive(self, channel: str) -> dict[str, Any]:
        """The next message of a channel, however long it takes."""
        while True:
            try:
                return await super().receive(channel)
            except Exception as error:  # the vendor's errors are many
                logger.warning("The channel layer waits for Redis: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
