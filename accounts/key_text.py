"""The text of an API key: `odk_<prefix>_<secret>`, which tells by itself that we made it.

Whether somebody may send a large body, and whose turn a slow request takes, is decided before the
database is asked (`odproject.asgi`). So the prefix begins with the number of the user, and the
secret, 32 random bytes, ends with our signature. Whether the key still lives, the database knows.
"""

import hashlib
import re
import secrets
from dataclasses import dataclass

from django.conf import settings
from django.utils.crypto import constant_time_compare, salted_hmac

SECRET_BYTES = 32
_SIGNATURE_DIGITS = 32
_START = "odk_"
_KEY = re.compile(
    r"odk_(?P<prefix>(?P<user_id>[1-9][0-9]{0,18})x[0-9a-f]{8})_"
    rf"(?P<random>[0-9a-f]{{{2 * SECRET_BYTES}}})(?P<signature>[0-9a-f]{{{_SIGNATURE_DIGITS}}})",
    re.ASCII,
)


@dataclass(frozen=True)
class KeyText:
    """The parts of a key's text."""

    user_id: int
    prefix: str
    secret: str

    def __str__(self) -> str:
        return f"{_START}{self.prefix}_{self.secret}"

    @property
    def digest(self) -> str:
        """What is kept of the secret."""
        return hashlib.sha256(self.secret.encode()).hexdigest()


def looks_like_a_key(text: str) -> bool:
    """Whether it was meant to be a key: a JSON web token never begins so."""
    return text.startswith(_START)


def new_key_text(*, user_id: int) -> KeyText:
    """The text of a new key, which nobody can guess."""
    prefix = f"{user_id}x{secrets.token_hex(4)}"
    random = secrets.token_hex(SECRET_BYTES)
    return KeyText(user_id, prefix, random + _signature(prefix, random))


def signed_key_text(text: str) -> KeyText | None:
    """The parts of a text that we have made, None of any other."""
    found = _KEY.fullmatch(text)
    if found is None:
        return None
    prefix, random, signature = found["prefix"], found["random"], found["signature"]
    if not constant_time_compare(signature, _signature(prefix, random)):
        return None
    return KeyText(int(found["user_id"]), prefix, random + signature)


def _signature(prefix: str, random: str) -> str:
    key = str(settings.SIMPLE_JWT["SIGNING_KEY"])
    signed = salted_hmac("accounts.api_key", f"{prefix}_{random}", secret=key, algorithm="sha256")
    return signed.hexdigest()[:_SIGNATURE_DIGITS]
