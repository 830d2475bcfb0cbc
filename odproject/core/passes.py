"""Signed cookies that let a browser send a large body; the server looks into no database."""

from django.conf import settings
from django.http import HttpRequest, HttpResponseBase, parse_cookie

_COOKIE = "odproject.upload"
_SECONDS = 12 * 3600


def give_upload_pass(response: HttpResponseBase, *, path: str) -> None:
    """Have a page's form send a large body to `path`; for pages that only the entitled see."""
    response.set_signed_cookie(
        _COOKIE,
        path,
        max_age=_SECONDS,
        path=path,
        secure=settings.SESSION_COOKIE_SECURE,
        httponly=True,
        samesite="Strict",
    )


def has_upload_pass(cookies: str, *, path: str) -> bool:
    """Whether a Cookie header holds a pass for `path` that we gave within twelve hours."""
    request = HttpRequest()
    request.COOKIES = parse_cookie(cookies)
    return request.get_signed_cookie(_COOKIE, default="", max_age=_SECONDS) == path
