"""The page for people."""

from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from odproject.core.api import only_read

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)


@only_read
def home(request: HttpRequest) -> HttpResponse:
    """Log in, upload, start a job, watch it and see what it found."""
    response = render(request, "home.html")
    response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response
