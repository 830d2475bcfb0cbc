"""One key, one effect: a request sent again under its `Idempotency-Key` gets its answer again.

The answer is kept in the transaction of the effect, so that there is never one without the
other: who lost the answer of a request that took effect asks again and gets it. What was refused
had no effect; it is not kept, and its key may be used again.

While a request under a key is at work another one under the same key is refused (409). That is
an advisory lock of the database session: it ends with the process that holds it, however that
dies, and needs no row before there is an effect. Should it fail, the unique constraint still
lets one effect commit.
"""

import contextlib
import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, cast

from django.conf import settings
from django.core.files.uploadedfile import UploadedFile
from django.db import DatabaseError, IntegrityError, InterfaceError, connection, transaction
from django.db.models import QuerySet
from django.utils import timezone
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.models import User
from billing.ledger import IdempotencyConflictError
from billing.models import KeptAnswer
from odproject.core.api import request_keys
from odproject.core.errors import ConflictError, DomainError

HEADER = "Idempotency-Key"
_KEY = re.compile(r"[!-~]{1,200}", re.ASCII)
Keep = Callable[[Response], Response]


class InvalidIdempotencyKeyError(DomainError):
    """The header does not hold a key."""

    code = "invalid_idempotency_key"
    title = "Invalid idempotency key"


class IdempotencyKeyInUseError(ConflictError):
    """A request under this key is still at work."""

    code = "idempotency_key_in_use"
    title = "The idempotency key is in use"
    retry_after_seconds = 1


@dataclass(frozen=True)
class KeyedRequest:
    """A request under a key: whose, where to, and the SHA-256 of what it says."""

    user_id: int
    route: str
    key: str
    fingerprint: str

    def keep(self, response: Response) -> Response:
        """Keep the answer, in the transaction of what it tells; returns it.

        Raises IdempotencyKeyInUseError (409), which takes the effect back, when the answer of
        another request is kept already: then the lock has not kept the two apart.
        """
        if not transaction.get_connection().in_atomic_block:
            raise RuntimeError("An answer is kept in the transaction of its effect.")
        self._rows().filter(created_at__lt=_oldest_kept()).delete()
        body = json.loads(JSONRenderer().render(response.data))
        try:
            with transaction.atomic():
                KeptAnswer.objects.create(
                    user_id=self.user_id,
                    route=self.route,
                    key=self.key,
                    fingerprint=self.fingerprint,
                    status=response.status_code,
                    body=body,
                    location=response.headers.get("Location", ""),
                )
        except IntegrityError as error:
            raise IdempotencyKeyInUseError("Another request under this key was first.") from error
        return response

    def kept_response(self) -> Response | None:
        """The answer of an earlier request; raises IdempotencyConflictError (422) for another."""
        kept = self._rows().filter(created_at__gte=_oldest_kept()).first()
        if kept is None:
            return None
        if kept.fingerprint != self.fingerprint:
            raise IdempotencyConflictError("The key was used for a request that said other things.")
        headers = {"Idempotency-Replayed": "true"}
        if kept.location:
            headers["Location"] = kept.location
        return Response(kept.body, status=kept.status, headers=headers)

    def _rows(self) -> QuerySet[KeptAnswer]:
        return KeptAnswer.objects.filter(user_id=self.user_id, route=self.route, key=self.key)


def answered_once(
    request: Request, act: Callable[[], Response], *, said: Mapping[str, Any] | None = None
) -> Response:
    """What `act` answers in a transaction, or what it answered to the same key before.

    `said` is what the request says, where that is not in its body.

    Raises InvalidIdempotencyKeyError (400), IdempotencyKeyInUseError (409) and
    IdempotencyConflictError (422), and what `act` raises.
    """

    def act_and_keep(keep: Keep) -> Response:
        with transaction.atomic():
            return keep(act())

    return kept_by_act(request, act_and_keep, said=said)


def kept_by_act(
    request: Request, act: Callable[[Keep], Response], *, said: Mapping[str, Any] | None = None
) -> Response:
    """As `answered_once`, for work that opens its transaction itself and keeps the answer there."""
    keyed = _keyed(request, said)
    if keyed is None:
        return act(lambda response: response)
    with _alone(f"{keyed.user_id} {keyed.route} {keyed.key}"):
        return keyed.kept_response() or act(keyed.keep)


def forget_old_answers(*, now: datetime | None = None) -> int:
    """Remove answers that are not given again; returns how many."""
    return KeptAnswer.objects.filter(created_at__lt=_oldest_kept(now)).delete()[0]


def _oldest_kept(now: datetime | None = None) -> datetime:
    return (now or timezone.now()) - timedelta(hours=settings.IDEMPOTENCY_KEY_HOURS)


def _keyed(request: Request, said: Mapping[str, Any] | None) -> KeyedRequest | None:
    key = request.headers.get(HEADER)
    if key is None:
        return None
    if not _KEY.fullmatch(key):
        raise InvalidIdempotencyKeyError(f"{HEADER} has 1 to 200 printable ASCII characters.")
    return KeyedRequest(
        user_id=cast(User, request.user).pk,
        route=f"{request.method} {request.path.rstrip('/')}",
        key=key,
        fingerprint=_fingerprint(request_keys(request) if said is None else said),
    )


def _fingerprint(keys: Mapping[str, Any]) -> str:
    """The SHA-256 of a request's keys, and of the content of its files."""

    def described(value: Any) -> Any:
        if not isinstance(value, UploadedFile):
            return str(value)
        digest = hashlib.sha256()
        for chunk in value.chunks():
            digest.update(chunk)
        return [value.name, digest.hexdigest()]

    text = json.dumps(keys, sort_keys=True, default=described)
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def _alone(name: str) -> Iterator[None]:
    """Be the only one at work under a name; raises IdempotencyKeyInUseError (409)."""
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_try_advisory_lock(hashtextextended(%s, 0))", [name])
        if not cursor.fetchone()[0]:
            raise IdempotencyKeyInUseError("The first request under this key is still at work.")
    try:
        yield
    finally:
        try:
            with connection.cursor() as cursor:
                cursor.execute("SELECT pg_advisory_unlock(hashtextextended(%s, 0))", [name])
        except (DatabaseError, InterfaceError):
            connection.close()  # the lock ends with the session
