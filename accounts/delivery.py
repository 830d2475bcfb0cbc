"""The process that delivers webhooks: it sends what is due, so many messages at once.

One thread asks the database and notes there what came of each message; those that send know
nothing of it. It looks when a hint comes, when a message has ended, and every second besides.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from channels.layers import get_channel_layer
from django.conf import settings
from django.db import DatabaseError, InterfaceError, close_old_connections

from accounts.signing import signed_headers
from accounts.webhooks import Delivery, claim_delivery, record_failure, record_success
from odproject.core.outbound import NotDeliveredError, UnfitUrlError, post
from odproject.core.publishing import EVERY_STREAM

logger = logging.getLogger(__name__)
LOOK_SECONDS = 1.0
REJOIN_SECONDS = 5.0  # a Redis that was flushed has forgotten who listens


@dataclass(frozen=True)
class Outcome:
    """What came of a message: the status of the answer if there was one, and why it failed."""

    status: int | None = None
    error: str = ""


def send(delivery: Delivery) -> Outcome:
    """Sign and send a message, within OD_WEBHOOK_SECONDS."""
    sent_at_seconds = int(time.time())
    headers = signed_headers(
        secrets_now=delivery.secrets,
        message_id=delivery.message_id,
        sent_at_seconds=sent_at_seconds,
        body=delivery.body,
    )
    try:
        status = post(
            delivery.url,
            body=delivery.body,
            headers={**headers, "Content-Type": "application/json", "User-Agent": "odproject"},
            anywhere=settings.WEBHOOKS_ANYWHERE,
            seconds=settings.WEBHOOK_SECONDS,
        )
    except (NotDeliveredError, UnfitUrlError) as error:
        return Outcome(error=str(error))
    except Exception:
        # One address that nobody has thought of must not keep the others from their messages.
        logger.exception("Webhook %s could not be sent to", delivery.webhook_id)
        return Outcome(error="The message could not be sent.")
    if 200 <= status < 300:
        return Outcome(status)
    told = " Redirections are not followed." if 300 <= status < 400 else ""
    return Outcome(status, f"The receiver answered {status}.{told}")


class Dispatcher:
    """Sends what is due. `step` looks once; `run` goes on until `is_stopping` is set."""

    def __init__(self, *, at_once: int, send_one: Callable[[Delivery], Outcome] = send) -> None:
        self.is_stopping = False
        self.wake = threading.Event()
        self._at_once = at_once
        self._send = send_one
        self._pool = ThreadPoolExecutor(at_once, thread_name_prefix="webhook")
        self._under_way: dict[Future[Outcome], Delivery] = {}

    def run(self) -> None:
        """Send until `is_stopping` is set; what is under way then is brought to its end."""
        while not self.is_stopping:
            self._patiently(self.step)
            self.wake.wait(LOOK_SECONDS)
            self.wake.clear()
        wait(self._under_way, timeout=settings.WEBHOOK_SECONDS)
        self._patiently(self._note_ends)
        self._pool.shutdown(wait=False, cancel_futures=True)

    def step(self) -> int:
        """Note what has come to its end, and begin with what is due as far as there are threads.

        Returns how many messages are under way. Raises DatabaseError and InterfaceError; what could
        not be noted is kept for the next time.
        """
        self._note_ends()
        while len(self._under_way) < self._at_once and (delivery := claim_delivery()):
            future = self._pool.submit(self._send, delivery)
            self._under_way[future] = delivery
            future.add_done_callback(lambda _: self.wake.set())
        return len(self._under_way)

    def _note_ends(self) -> None:
        for future in [one for one in self._under_way if one.done()]:
            delivery, outcome = self._under_way[future], future.result()
            if outcome.status is not None and not outcome.error:
                record_success(delivery=delivery, status=outcome.status)
            else:
                logger.info("Webhook %s: %s", delivery.webhook_id, outcome.error)
                record_failure(delivery=delivery, error=outcome.error, status=outcome.status)
            del self._under_way[future]

    def _patiently(self, work: Callable[[], object]) -> None:
        try:
            work()
        except (DatabaseError, InterfaceError) as error:
            logger.warning("Webhooks wait for the database: %s", error)
        close_old_connections()


def listen(wake: threading.Event) -> None:
    """Set `wake` at every hint that a stream has grown, for ever, in a thread of its own."""
    asyncio.run(_listen(wake))


async def _listen(wake: threading.Event) -> None:
    layer = get_channel_layer()
    if layer is None:
        return
    channel = await layer.new_channel()
    while True:
        try:
            async with asyncio.timeout(settings.REDIS_TIMEOUT_SECONDS):
                await layer.group_add(EVERY_STREAM, channel)
            async with asyncio.timeout(REJOIN_SECONDS):
                while True:
                    await layer.receive(channel)
                    wake.set()
        except TimeoutError:
            continue
        except Exception as error:  # the vendor's errors are many
            logger.warning("Webhooks hear no hints: %r", error)
            await asyncio.sleep(REJOIN_SECONDS)
