"""The shapes of requests about users."""

from typing import Any

from rest_framework import serializers


class RegistrationSerializer(serializers.Serializer[Any]):
    """Keys of POST /user/registration."""

    email = serializers.EmailField(max_length=254)
    password = serializers.CharField(max_length=1024, trim_whitespace=False)
    confirmPassword = serializers.CharField(max_length=1024, trim_whitespace=False)  # noqa: N815


class LoginSerializer(serializers.Serializer[Any]):
    """Keys of POST /user/."""

    email = serializers.CharField(max_length=254)
    password = serializers.CharField(max_length=1024, trim_whitespace=False)
