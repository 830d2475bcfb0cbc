"""The service starts with one command and is ready to work."""

import json

import pytest

pytestmark = pytest.mark.service


def test_ready_service_names_its_address_and_its_children(service):
    assert service.get("/readyz") == (200, b'{"status": "ready"}')
    assert service.base_url == service.up["url"]
    assert service.ws_url == f"ws://127.0.0.1:{service.up['port']}"
    children = {"postgres", "redis", "web-1", "worker-1", "sweeper", "webhooks"}
    assert set(service.up["children"]) == children


def test_page_may_load_nothing_from_elsewhere_and_run_nothing_inline(service):
    status, body = service.get("/")
    assert status == 200
    assert b"<script" not in body.replace(b'<script src="/static/home.js"', b"")
    assert b"<style" not in body
    assert b"style=" not in body
    for scheme in (b"http://", b"https://", b'"//'):
        assert scheme not in body


def test_unknown_address_is_a_problem_document(service):
    status, body = service.get("/nowhere")
    assert (status, json.loads(body)["code"]) == (404, "not_found")
