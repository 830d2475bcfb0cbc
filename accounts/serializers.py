"""The shapes of requests about users, and of an event wherever it is told whole."""

from typing import Any

from rest_framework import serializers

from accounts.models import Event


class NewEmailField(serializers.EmailField):
    """The address of a new user, in printable ASCII without spaces.

    The e-mail check of Django takes letters whose other case is an ASCII one for ASCII letters,
    and lets a quoted name have spaces and control characters.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(max_length=254, validators=[_ascii, _printable], **options)


def _ascii(email: str) -> None:
    if not email.isascii():
        raise serializers.ValidationError(
            "Write the address in ASCII, an international domain as xn--...", "ascii"
        )


def _printable(email: str) -> None:
    if any(ord(character) < ord("!") or character == "\x7f" for character in email):
        raise serializers.ValidationError(
            "An address has no spaces and no control characters.", "not_printable"
        )


class RegistrationSerializer(serializers.Serializer[Any]):
    """Keys of POST /user/registration."""

    email = NewEmailField()
    password = serializers.CharField(max_length=1024, trim_whitespace=False)
    confirmPassword = serializers.CharField(max_length=1024, trim_whitespace=False)  # noqa: N815


class LoginSerializer(serializers.Serializer[Any]):
    """Keys of POST /user/."""

    email = serializers.CharField(max_length=254)
    password = serializers.CharField(max_length=1024, trim_whitespace=False)


class EventSerializer(serializers.ModelSerializer[Event]):
    """An event of the user's stream."""

    payload = serializers.DictField(read_only=True)

    class Meta:
        model = Event
        fields = ("seq", "kind", "payload", "created_at")
        read_only_fields = fields
