"""A short question to Redis, with a bounded wait for the answer."""

from collections.abc import Iterator
from contextlib import contextmanager

import redis
from django.conf import settings


@contextmanager
def impatient_redis() -> Iterator[redis.Redis]:
    """A client that gives up after `REDIS_TIMEOUT_SECONDS`; its calls raise redis.RedisError."""
    client = redis.Redis.from_url(
        settings.REDIS_URL,
        socket_timeout=settings.REDIS_TIMEOUT_SECONDS,
        socket_connect_timeout=settings.REDIS_TIMEOUT_SECONDS,
    )
    try:
        yield client
    finally:
        client.close()
