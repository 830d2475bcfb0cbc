"""What can go wrong for a client."""

import httpx

# Of requests that come before another one has ended.
PASSING_CODES = {"idempotency_key_in_use", "upload_offset_conflict"}


class ClientError(Exception):
    """What was asked for did not happen; the text says why."""


class SessionEndedError(ClientError):
    """The tokens on disk are good for nothing any more."""


class InterruptedCommandError(ClientError):
    """Somebody pressed Ctrl-C; the text says what was done all the same."""


class RefusalError(ClientError):
    """The service refused; the text is its sentence and what it says of fields beyond that."""

    def __init__(self, response: httpx.Response) -> None:
        try:
            problem = response.json()
        except ValueError:
            problem = None  # not a problem document: a proxy may have answered
        if not isinstance(problem, dict):
            problem = {}
        self.status = response.status_code
        self.code = str(problem.get("code", ""))
        seconds = response.headers.get("Retry-After", "")
        self.retry_after_seconds = float(seconds) if seconds.isdecimal() else 0.0
        elsewhere = response.headers.get("Location") if response.is_redirect else None
        said = problem.get("detail") or f"The service answered with status {self.status}" + (
            f": it is at {elsewhere}" if elsewhere else "."
        )
        fields = [
            f"  {one['field']}: {one['detail']}"
            for one in problem.get("errors") or []
            if one.get("field") and one["detail"] != said
        ]
        super().__init__("\n".join([said, *fields]))

    @property
    def may_pass(self) -> bool:
        """Whether the same request may be accepted a little later."""
        return self.status in {423, 429, 502, 503, 504} or self.code in PASSING_CODES
