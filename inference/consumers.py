"""The websocket: what happens to a user's jobs and, if so wanted, balance, as it happens.

The event stream in PostgreSQL is the truth. A hint from the channel layer, or a timer when hints
get lost, makes the consumer read what is new since the last sequence number it has sent.
"""

import asyncio
import contextlib
import logging
from typing import Any
from urllib.parse import parse_qs, urlsplit

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncJsonWebsocketConsumer
from django.conf import settings
from django.db import DatabaseError, InterfaceError
from django.utils import timezone
from rest_framework.exceptions import AuthenticationFailed

from accounts.authentication import presence_of_bearer
from accounts.models import Event, User
from accounts.presence import Presence
from accounts.selectors import events_since, is_still_here, last_event_seq, oldest_event_seq
from accounts.services import redeem_websocket_ticket
from inference.selectors import jobs_of
from odproject.core.publishing import user_group
from odproject.core.websockets import POLICY_VIOLATION

logger = logging.getLogger(__name__)

SESSION_ENDED = 4001
INTERNAL_ERROR = 1011
TRY_AGAIN_LATER = 1013
REREAD_SECONDS = 5.0

JOB_SENTENCES = {
    "job.started": "has been taken in charge.",
    "job.completed": "has been completed.",
    "job.failed": "has failed.",
    "job.aborted": "was aborted.",
}
LOW_BALANCE = "balance.low"  # of those only who have set a threshold


class JobEventsConsumer(AsyncJsonWebsocketConsumer):
    """`/`: a greeting, the list of jobs, then a message for every change of a job.

    `?since=<seq>` replays what happened after that event, as far as it is kept: the greetings say
    by `oldest_seq` where that begins. `?progress=1` adds messages of the kind `job.progress`, which
    the clients of the original API do not know.
    """

    user: User
    presence: Presence
    wants_progress = False
    _reader: asyncio.Task[None] | None = None

    async def connect(self) -> None:
        """Accept, then greet or refuse; a refusal is accepted first, so that its code arrives."""
        await self.accept()
        if not self._is_from_here():
            await self.close(POLICY_VIOLATION)
            return
        query = parse_qs(self.scope["query_string"].decode("latin1"))
        presence = await self._authenticate(query.get("ticket", [""])[-1])
        if presence is None:
            await self.close(POLICY_VIOLATION)
            return
        self.presence, self.user = presence, presence.user
        self.wants_progress = query.get("progress", [""])[-1] in {"1", "true"}
        self._seq = await database_sync_to_async(last_event_seq)(user_id=self.user.pk)
        self._news = asyncio.Event()
        since = query.get("since", [""])[-1]
        if since.isdecimal() and len(since) < 19:
            # The greetings carry it too: whoever is cut off after them has missed nothing yet.
            self._seq = min(int(since), self._seq)
            self._news.set()
        self._oldest_seq = await database_sync_to_async(oldest_event_seq)(user_id=self.user.pk)
        await self._join()
        await self._greet()
        self._reader = asyncio.create_task(self._read_events())

    async def disconnect(self, code: int) -> None:
        """Stop reading and leave the group."""
        if self._reader is None:
            return
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        with contextlib.suppress(Exception):  # Redis may be away; memberships expire by themselves
            async with asyncio.timeout(settings.REDIS_TIMEOUT_SECONDS):
                await self.channel_layer.group_discard(user_group(self.user.pk), self.channel_name)

    async def receive(
        self, text_data: str | None = None, bytes_data: bytes | None = None, **kwargs: Any
    ) -> None:
        """Clients have nothing to say here; what they send is ignored."""

    def _is_from_here(self) -> bool:
        """Whether no page of another site asks; programs send no Origin."""
        headers = dict(self.scope["headers"])
        origin = headers.get(b"origin", b"").decode("latin1").lower()
        if not origin or origin in settings.CSRF_TRUSTED_ORIGINS:
            return True
        host = headers.get(b"host", b"").decode("latin1").lower()
        try:
            return bool(host) and urlsplit(origin).netloc == host
        except ValueError:  # no address at all, such as "http://[x"
            return False

    async def _authenticate(self, ticket: str) -> Presence | None:
        if ticket:
            return await database_sync_to_async(redeem_websocket_ticket)(ticket=ticket)
        header = dict(self.scope["headers"]).get(b"authorization", b"").decode("latin1")
        scheme, _, token = header.partition(" ")
        if scheme.lower() != "bearer":
            return None
        try:
            return await database_sync_to_async(presence_of_bearer)(token.strip())
        except AuthenticationFailed:
            return None

    async def _greet(self) -> None:
        email = self.user.email
        await self.send_json(
            {
                "message": f"Hello, {email}! Welcome to the Job Monitoring System. "
                "You can monitor your job statuses in real-time.",
                "seq": self._seq,
                "oldest_seq": self._oldest_seq,
            }
        )
        jobs = await database_sync_to_async(jobs_of)(user=self.user)
        await self.send_json(
            {
                "message": f"Here is a list of the jobs associated with your account ({email}).",
                "jobs": [
                    {"job_id": job.pk, "state": job.state, "dataset_id": job.dataset_id}
                    for job in jobs
                ],
                "seq": self._seq,
                "oldest_seq": self._oldest_seq,
            }
        )

    async def _join(self) -> None:
        """Join the user's group; without Redis the timer still brings every event."""
        try:
            async with asyncio.timeout(settings.REDIS_TIMEOUT_SECONDS):
                await self.channel_layer.group_add(user_group(self.user.pk), self.channel_name)
        except Exception as error:  # the vendor's errors are many
            logger.warning("A socket could not join its group: %r", error)

    async def event_hint(self, hint: dict[str, Any]) -> None:
        """Something new is in the event stream."""
        self._news.set()

    async def progress_hint(self, hint: dict[str, Any]) -> None:
        """How far a job is; passed on to those who asked for it, and never stored."""
        if not self.wants_progress:
            return
        members = {key: value for key, value in hint.items() if key != "type"}
        await self.send_json(
            {
                "kind": "job.progress",
                "message": f"{self.user.email}, your job with ID {hint['job_id']} "
                f"is {hint['progress_percent']:g}% done.",
                **members,
            }
        )

    async def _read_events(self) -> None:
        """Send what is new, at every hint and every few seconds besides."""
        while True:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), REREAD_SECONDS)
            has_news = self._news.is_set()
            self._news.clear()
            expires_at = self.presence.expires_at
            if expires_at is not None and timezone.now() >= expires_at:
                await self.close(SESSION_ENDED)
                return
            try:
                if not has_news:
                    await self._check_membership()
                if not await self._send_news():
                    await self.close(TRY_AGAIN_LATER)  # the next greeting tells of the gap
                    return
            except (DatabaseError, InterfaceError) as error:
                logger.warning("A socket waits for the database: %s", error)
            except Exception:
                # A socket that stays open and says nothing would be worse than none.
                logger.exception("A socket ends with its reader")
                await self.close(INTERNAL_ERROR)
                return

    async def session_ended(self, hint: dict[str, Any]) -> None:
        """A session or an API key has ended; if it is this one, the socket ends with it."""
        if hint["credential"] == self.presence.by.credential:
            await self.close(SESSION_ENDED)

    async def _check_membership(self) -> None:
        """In quiet moments: is the session or key alive, and does Redis still know the group?"""
        await self._join()
        if not await database_sync_to_async(is_still_here)(self.presence):
            await self.close(SESSION_ENDED)

    async def _send_news(self) -> bool:
        """Send what is new; False where the next event was removed since the socket was greeted."""
        while events := await database_sync_to_async(events_since)(
            user_id=self.user.pk, seq=self._seq
        ):
            if events[0].seq > max(self._seq + 1, self._oldest_seq):
                return False
            for event in events:
                if event.kind in JOB_SENTENCES or event.kind == LOW_BALANCE:
                    await self.send_json(self._message_of(event))
                self._seq = event.seq
        return True

    def _message_of(self, event: Event) -> dict[str, Any]:
        told = event.payload
        if event.kind == LOW_BALANCE:
            sentence = (
                f"your balance of {told['available_tokens']:,.2f} tokens is below "
                f"{told['alert_below_tokens']:,.2f}."
            )
        else:
            sentence = f"your job with ID {told['job_id']} {JOB_SENTENCES[event.kind]}"
        return {
            "message": f"{self.user.email}, {sentence}",
            "kind": event.kind,
            "seq": event.seq,
            **told,
        }
