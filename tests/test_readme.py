"""The README's journeys, run word for word against the running service.

Only the address is another one: tests serve on a free port.
"""

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.browser import chromium, drawn_image

pytestmark = pytest.mark.service

REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
ADDRESS = "localhost:8080"
TELL_TOKEN = '\necho "TOKEN $token"\n'
SECONDS = 120


def code_after(heading: str, language: str) -> list[str]:
    """The code blocks of a language in one section."""
    section = re.search(rf"^## {re.escape(heading)}$(.*?)(?=^## |\Z)", README, re.M | re.S)[1]
    return re.findall(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)


def at(service, code: str) -> str:
    """The code with the address of the running service."""
    assert ADDRESS in code
    return code.replace(ADDRESS, service.base_url.removeprefix("http://"))


@pytest.fixture(scope="module")
def journey(service, tmp_path_factory) -> tuple[str, str, Path]:
    """Both curl blocks in one shell: the token, what they printed, and where they ran."""
    folder = tmp_path_factory.mktemp("journey")
    (folder / "demo-output/drawn").mkdir(parents=True)
    drawn_image(folder / "demo-output/drawn/street_1.jpg")
    (first,) = code_after("A journey with curl", "sh")
    (second,) = code_after("Two surfaces", "sh")
    done = subprocess.run(
        ["bash", "-euc", at(service, first) + second + TELL_TOKEN],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout.rpartition("TOKEN ")[2].strip(), done.stdout, folder


def start_another_job(service, token: str) -> int:
    keys = {"datasetName": "street", "modelId": "YOLO8", "modelVersion": "YOLO8s_FSR"}
    headers = {"Authorization": f"Bearer {token}"}
    answer = httpx.post(f"{service.base_url}/inference/", json=keys, headers=headers)
    return int(answer.raise_for_status().json()["jobId"])


def test_journey_with_curl_ends_with_annotated_pictures(journey):
    _, told, folder = journey
    assert '{"tokenBalance": 999.25}'.replace(" ", "") in told.replace(" ", "")
    assert '"name": "car"' in told or '"name":"car"' in told
    assert '"detail"' not in told  # as every problem document has
    with zipfile.ZipFile(folder / "demo-output/annotated.zip") as archive:
        assert archive.namelist() == ["street_1.jpg"]
        assert archive.testzip() is None


def test_python_client_hears_of_a_job(service, journey):
    token, _, _ = journey
    (code,) = code_after("A journey with curl", "python")
    heard: list[str] = []
    is_greeted, is_over = threading.Event(), threading.Event()

    def listen(lines) -> None:
        for line in lines:
            heard.append(line)
            if "list of the jobs" in line:
                is_greeted.set()
            if "has been completed" in line:
                is_over.set()

    client = subprocess.Popen(
        [sys.executable, "-uc", at(service, code)],
        env={**os.environ, "token": token},
        stdout=subprocess.PIPE,
        text=True,
    )
    reader = threading.Thread(target=listen, args=(client.stdout,))
    reader.start()
    try:
        assert is_greeted.wait(SECONDS), heard
        start_another_job(service, token)
        assert is_over.wait(SECONDS), heard
    finally:
        client.terminate()
        client.wait()
        reader.join()
        client.stdout.close()
    assert "Hello, ann@example.org!" in heard[0]


def kinds_and_jobs(events: list[dict[str, Any]]) -> list[tuple[str, int]]:
    return [(event["kind"], event["payload"]["job_id"]) for event in events]


def test_python_receiver_hears_of_a_job_and_believes_nobody_else(service, journey):
    token, _, _ = journey
    (code,) = code_after("Webhooks", "python")
    place = '("localhost", 8000)'
    assert place in code
    with socket.create_server(("localhost", 0)) as listener:  # whose port is free then
        port = listener.getsockname()[1]
    url = f"http://localhost:{port}/"
    with contextlib.ExitStack() as opened:
        headers = {"Authorization": f"Bearer {token}"}
        client = opened.enter_context(
            httpx.Client(base_url=f"{service.base_url}/api/v1", headers=headers)
        )
        webhook = client.post("/webhooks/", json={"url": url}).raise_for_status().json()
        opened.callback(client.delete, f"/webhooks/{webhook['id']}/")
        receiver = opened.enter_context(
            subprocess.Popen(
                [sys.executable, "-uc", code.replace(place, f'("localhost", {port})')],
                env={**os.environ, "secret": webhook["secret"]},
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
        )
        opened.callback(receiver.kill)
        killer = threading.Timer(SECONDS, receiver.kill)  # which ends the lines below
        killer.start()
        opened.callback(killer.cancel)
        job_id = start_another_job(service, token)
        events, ended = [], ("job.completed", job_id)
        while ended not in kinds_and_jobs(events):
            events.append(json.loads(receiver.stdout.readline()))
        forged = {"webhook-id": "a", "webhook-timestamp": str(int(time.time()))}
        forged["webhook-signature"] = "v1,Zm9yZ2Vk"
        assert httpx.post(url, json=events[0], headers=forged).status_code == 401
        listed = client.get(f"/events/?since={events[0]['seq'] - 1}").json()["results"]
        receiver.kill()
        assert receiver.stdout.read() == ""
    # The last job of the journey may still be at work.
    kinds = [kind for kind, job in kinds_and_jobs(events) if job == job_id]
    assert kinds == ["job.submitted", "job.started", "job.completed"]
    assert events == listed[: len(events)]


def test_command_line_ends_with_annotated_pictures(service, tmp_path):
    (code,) = code_after("From the command line", "sh")
    (tmp_path / "demo-output/drawn").mkdir(parents=True)
    drawn_image(tmp_path / "demo-output/drawn/street_1.jpg")
    assert code.count(".venv/bin/python") == code.count("od download 1") == 1
    newest = """$(od jobs --json | grep -o '"id": [0-9]*' | head -1 | cut -d ' ' -f 2)"""
    here = code.replace(".venv/bin/python", f"PYTHONPATH={REPOSITORY} {sys.executable}")
    done = subprocess.run(
        ["bash", "-euc", here.replace("od download 1", f"od download {newest} --to found")],
        cwd=tmp_path,
        env={**os.environ, "OD_SERVICE": service.base_url, "XDG_CONFIG_HOME": str(tmp_path)},
        input="correct-horse-7\n",
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert f"Logged in at {service.base_url} as bob@example.org\n" in done.stdout
    assert "1 file accepted for 0.75 tokens\n" in done.stdout
    assert "1 image and 0 video frames: at most 1.5 tokens\n" in done.stderr
    assert done.stdout.endswith("\nfound/street_1.jpg\n")
    with Image.open(tmp_path / "found/street_1.jpg") as picture:
        assert picture.size == (1280, 720)


def test_javascript_client_hears_of_a_job(service, journey):
    token, _, _ = journey
    (code,) = code_after("A journey with curl", "js")
    with chromium() as browser:
        page = browser.new_page()
        page.goto(service.base_url)
        with page.expect_console_message(lambda one: "list of the jobs" in one.text):
            page.evaluate(f"async (token) => {{ {code} }}", token)
        with page.expect_console_message(
            lambda one: "has been completed" in one.text, timeout=SECONDS * 1000
        ):
            start_another_job(service, token)


def test_every_link_of_the_readme_leads_somewhere():
    targets = re.findall(r"\]\(([^)#\s]+)\)", README)
    assert "docs/images/page-results.png" in targets
    own = [target for target in targets if not target.startswith("http")]
    assert [target for target in own if not (REPOSITORY / target).exists()] == []


def test_pictures_of_the_readme_load_quickly():
    pictures = list((REPOSITORY / "docs/images").iterdir())
    shown = {Path(target).name for target in re.findall(r"!\[[^\]]*\]\(([^)]+)\)", README)}
    assert {picture.name for picture in pictures} == shown
    assert [picture.name for picture in pictures if picture.stat().st_size > 250_000] == []


def test_commands_of_the_readme_exist():
    known = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.M))
    assert set(re.findall(r"(?:`|^)make ([a-z-]+)", README, re.M)) <= known
