"""The shapes of requests about users."""

from typing import Any

from rest_framework import serializers


class NewEmailField(serializers.EmailField):
    """The address of a new user, in ASCII.

    The e-mail check of Django takes letters whose other case is an ASCII one for ASCII letters.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(max_length=254, validators=[_ascii], **options)


def _ascii(email: str) -> None:
    if not email.isascii():
        raise serializers.ValidationError(
            "Write the address in ASCII, an international domain as xn--...", "ascii"
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
