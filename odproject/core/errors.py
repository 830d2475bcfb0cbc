"""The base of every error that a client may see.

A domain error is defined beside the function that raises it and rendered in one place
(`odproject.core.api.exception_handler`) as an RFC 9457 problem document.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FieldError:
    """One reason why one field of a request was refused."""

    field: str
    code: str
    detail: str


class DomainError(Exception):
    """A refusal with an HTTP status, a stable code and a sentence for the person who reads it.

    Subclasses set `status`, `code` and `title`; `name` is the class name, which is what the
    clients of the original API look at.
    """

    status: int = 400
    code: str = "bad_request"
    title: str = "Bad request"
    retry_after_seconds: int | None = None  # when it is worth to ask again

    def __init__(
        self,
        detail: str | None = None,
        *,
        errors: tuple[FieldError, ...] = (),
        fields: tuple[str, ...] = (),
        members: Mapping[str, Any] | None = None,
    ) -> None:
        """`errors`: what is wrong with each field; or `fields`: those that all of it is about."""
        self.detail = detail or self.title
        self.errors = errors or tuple(FieldError(one, self.code, self.detail) for one in fields)
        self.members = dict(members or {})  # facts for programs, beside the sentence
        super().__init__(self.detail)

    @property
    def name(self) -> str:
        """The error's name as the original API spells it, for example InsufficientTokensError."""
        return type(self).__name__


class NotFoundError(DomainError):
    """What was asked for does not exist, or is somebody else's, which is the same to the asker."""

    status = 404
    code = "not_found"
    title = "Not found"


class ConflictError(DomainError):
    """The request does not fit the state that it meets."""

    status = 409
    code = "conflict"
    title = "Conflict"


class QuotaExceededError(ConflictError):
    """The user has as much of something as one user may have."""

    code = "quota_exceeded"
    title = "Quota exceeded"

    def __init__(self, detail: str, *, quota: int) -> None:
        super().__init__(detail, members={"quota": quota})
