"""The page for people, and what they read in the administration where a page is refused."""

from django.contrib import admin
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render

from odproject.core import api

CONTENT_SECURITY_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; "
    "connect-src 'self' ws: wss:; frame-ancestors 'none'; base-uri 'none'; form-action 'self'"
)


@api.only_read
def home(request: HttpRequest) -> HttpResponse:
    """Log in, upload, start a job, watch it and see what it found."""
    response = render(request, "home.html")
    response["Content-Security-Policy"] = CONTENT_SECURITY_POLICY
    return response


def permission_denied(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler403: a page for an administrator, for everybody else a problem document."""
    if _is_read_by_an_administrator(request):
        return _refused(request, 403, "Not offered", "This page is not offered to you.")
    return api.permission_denied(request, exception)


def page_not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Django's handler404: a page for an administrator, for everybody else a problem document."""
    if _is_read_by_an_administrator(request):
        return _refused(request, 404, "Not found", "There is nothing at this address.")
    return api.page_not_found(request, exception)


def _is_read_by_an_administrator(request: HttpRequest) -> bool:
    is_page = request.path.startswith("/admin/") and request.accepts("text/html")
    return is_page and admin.site.has_permission(request)


def _refused(request: HttpRequest, status: int, title: str, detail: str) -> HttpResponse:
    context = {**admin.site.each_context(request), "title": title, "detail": detail}
    return render(request, "admin/refused.html", context, status=status)
