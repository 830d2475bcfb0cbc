"""Refuses a Content-Type that Django cannot make a request of."""

import codecs
import json
import uuid
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

from django.utils.http import parse_header_parameters

from odproject.core.api import PROBLEM_CONTENT_TYPE, framework_problem

_CHARSETS = {"utf-8", "utf-8-sig", "ascii", "iso8859-1", "iso8859-15", "cp1252", "utf-16"}
WSGIApplication = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


def refusing_odd_types(application: WSGIApplication) -> WSGIApplication:
    """The application behind a look at each Content-Type: 400 where it cannot be read.

    Django parses it before any handler of errors stands, and decodes with any codec that Python
    knows, those between bytes and bytes included. A charset that Python does not know is ignored
    there and here.
    """

    def answer(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if _is_readable(environ.get("CONTENT_TYPE", "")):
            return application(environ, start_response)
        document = framework_problem(400, "The Content-Type of the request cannot be read.")
        body = json.dumps(document).encode()
        headers = [
            ("Content-Type", PROBLEM_CONTENT_TYPE),
            ("Content-Length", str(len(body))),
            ("X-Request-ID", uuid.uuid4().hex),
        ]
        start_response(f"400 {HTTPStatus(400).phrase}", headers)
        return [body]

    return answer


def _is_readable(content_type: str) -> bool:
    try:
        charset = parse_header_parameters(content_type)[1].get("charset")
    except (ValueError, LookupError):
        return False
    try:
        return charset is None or codecs.lookup(charset).name in _CHARSETS
    except (LookupError, ValueError):
        return True
