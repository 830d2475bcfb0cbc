"""The house keeps its own rules: imports go one way, and the web process stays light."""

import os
import subprocess
import sys
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent


def run(*command, secret="s" * 40):
    return subprocess.run(
        [sys.executable, *command],
        cwd=REPOSITORY,
        env={**os.environ, "OD_SECRET_KEY": secret},
        capture_output=True,
        text=True,
        check=False,
    )


def test_imports_go_one_way():
    checked = run("-c", "from importlinter.cli import lint_imports_command; lint_imports_command()")
    assert "0 broken" in checked.stdout, checked.stdout + checked.stderr
    assert checked.returncode == 0


def test_web_process_loads_no_network():
    loaded = run(
        "-c",
        "import sys, odproject.asgi\n"
        "print(sorted({'torch', 'ultralytics', 'cv2', 'av'} & set(sys.modules)))",
    )
    assert loaded.stdout.strip() == "[]", loaded.stderr


def test_server_refuses_the_default_secret():
    refused = run("-c", "import odproject.asgi", secret="")
    assert refused.returncode != 0
    assert "OD_SECRET_KEY is not set" in refused.stderr
