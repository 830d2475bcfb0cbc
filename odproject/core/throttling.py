"""How many requests a user may send in a minute, counted in Redis.

The count protects the service from a client that runs wild. It is no part of anybody's rights,
so while Redis is away nobody is refused and nobody waits.
"""

import logging
import time
from functools import lru_cache
from typing import Any

import redis
from django.conf import settings
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

logger = logging.getLogger(__name__)
WINDOW_SECONDS = 60
REDIS_TIMEOUT_SECONDS = 0.25
QUIET_SECONDS = 5.0  # after a failure Redis is not asked for so long


@lru_cache(maxsize=1)
def _client(redis_url: str) -> redis.Redis:
    """Connections that are kept, because every request asks."""
    return redis.Redis.from_url(
        redis_url,
        socket_timeout=REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=REDIS_TIMEOUT_SECONDS,
    )


class UserRate(BaseThrottle):
    """Requests of one user in one minute of the clock, over all processes."""

    quiet_until = 0.0

    def allow_request(self, request: Request, view: Any) -> bool:
        """Whether the request is within the user's rate, and that of the API key if it has one."""
        user_id = getattr(request.user, "pk", None)
        if user_id is None:
            return True
        # What an API key's own rate refuses is not counted against its user.
        whose, limit = getattr(request.auth, "own_rate", ("", 0))
        return self._is_within(whose, limit) and self._is_within(
            str(user_id), settings.API_REQUESTS_PER_MINUTE
        )

    def wait(self) -> float:
        """Seconds until the next window begins."""
        return WINDOW_SECONDS - time.time() % WINDOW_SECONDS

    def _is_within(self, whose: str, limit: int) -> bool:
        """Count a request, unless there is no limit (0), and tell whether it is within it."""
        if not limit:
            return True
        window = int(time.time()) // WINDOW_SECONDS
        return self._count(f"od:rate:{whose}:{window}") <= limit

    def _count(self, key: str) -> int:
        """Count a request under a key; 0 while Redis does not answer."""
        if time.monotonic() < UserRate.quiet_until:
            return 0
        try:
            with _client(settings.REDIS_URL).pipeline(transaction=False) as pipeline:
                pipeline.incr(key)
                pipeline.expire(key, WINDOW_SECONDS)
                return int(pipeline.execute()[0])
        except (redis.RedisError, OSError) as error:
            UserRate.quiet_until = time.monotonic() + QUIET_SECONDS
            logger.warning("Requests are not counted: %r", error)
            return 0
