"""The original API's registration and log-in."""

from rest_framework.permissions import AllowAny
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from accounts import services
from accounts.serializers import LoginSerializer, RegistrationSerializer
from odproject.core.api import client_address, validated


class RegistrationView(APIView):
    """POST /user/registration."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    def post(self, request: Request) -> Response:
        """Create a user."""
        keys = validated(RegistrationSerializer, request)
        services.register_user(
            email=keys["email"],
            password=keys["password"],
            confirm_password=keys["confirmPassword"],
            client_address=client_address(request),
        )
        return Response({"message": "User created!"}, status=201)


class LoginView(APIView):
    """POST /user/."""

    authentication_classes = ()
    permission_classes = (AllowAny,)

    def post(self, request: Request) -> Response:
        """Hand out tokens."""
        tokens = services.log_in(
            **validated(LoginSerializer, request), client_address=client_address(request)
        )
        return Response(
            {
                "message": f"Log in completed! User token: {tokens.access}",
                "access": tokens.access,
                "refresh": tokens.refresh,
                "jwt_token": tokens.access,
            }
        )
