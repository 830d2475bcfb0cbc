"""Who is here, by what, and until when."""

from dataclasses import dataclass
from datetime import datetime

from accounts.models import ApiKey, Session, User


@dataclass(frozen=True)
class Presence:
    """A user who is logged in by a session, or whose program has shown an API key.

    Without `expires_at` it ends only when the key is revoked.
    """

    by: Session | ApiKey
    expires_at: datetime | None

    @property
    def user(self) -> User:
        """Whose session or key it is."""
        return self.by.user

    @property
    def session(self) -> Session | None:
        """The session, unless it is a key."""
        return self.by if isinstance(self.by, Session) else None

    @property
    def api_key(self) -> ApiKey | None:
        """The key, unless it is a session."""
        return self.by if isinstance(self.by, ApiKey) else None

    @property
    def is_read_only(self) -> bool:
        """Whether it is a key that is for reading only."""
        return self.api_key is not None and self.api_key.is_read_only

    @property
    def own_rate(self) -> tuple[str, int]:
        """Under which name its own requests are counted, and how many a minute; 0 is no limit."""
        key = self.api_key
        return self.by.credential, (key.requests_per_minute or 0) if key else 0
