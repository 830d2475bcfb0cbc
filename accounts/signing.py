"""How a webhook's messages are signed, by the Standard Webhooks specification.

The HMAC-SHA256 over `id.timestamp.body` under the secret's bytes, in base64, behind `v1,`. Whoever
has rotated a secret is sent the signatures of both, with a space between them.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence

_PREFIX = "whsec_"
_SECRET_BYTES = 32  # of 24 to 64 that the specification allows


def new_secret() -> str:
    """A secret as its owner gets it."""
    return _PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def signature(*, secret: str, message_id: str, sent_at_seconds: int, body: bytes) -> str:
    """One signature; the time is in seconds since the epoch."""
    key = base64.b64decode(secret.removeprefix(_PREFIX))
    signed = f"{message_id}.{sent_at_seconds}.".encode() + body
    digest = hmac.new(key, signed, hashlib.sha256).digest()
    return f"v1,{base64.b64encode(digest).decode()}"


def signed_headers(
    *, secrets_now: Sequence[str], message_id: str, sent_at_seconds: int, body: bytes
) -> dict[str, str]:
    """The three headers of a message, with a signature for each of the secrets."""
    signatures = (
        signature(secret=secret, message_id=message_id, sent_at_seconds=sent_at_seconds, body=body)
        for secret in secrets_now
    )
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(sent_at_seconds),
        "webhook-signature": " ".join(signatures),
    }
