"""Reads the Dockerfile and the compose files as their tools read them."""

import json
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parent.parent.parent
VARIABLE = re.compile(r"\$\{(?P<name>[A-Z0-9_]+)(?:(?P<operator>:-|:\?)(?P<text>[^}]*))?\}")


class MissingVariableError(Exception):
    """A variable that the compose file demands is not set; the text names it."""


@dataclass(frozen=True)
class Step:
    """One instruction of the Dockerfile with what stands after it."""

    instruction: str
    text: str

    @property
    def words(self) -> list[str]:
        """The words of the exec form (a JSON list), or those of the shell."""
        if self.text.startswith("["):
            return [str(word) for word in json.loads(self.text)]
        return shlex.split(self.text)


def dockerfile_steps(text: str | None = None) -> list[Step]:
    """The instructions in order, without comments, each on one line."""
    if text is None:
        text = (REPOSITORY / "Dockerfile").read_text()
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    told = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [Step(name.upper(), rest.strip()) for name, _, rest in told]


def interpolated(value: Any, variables: Mapping[str, str]) -> Any:
    """A part of a compose file with `${NAME:-default}` and `${NAME:?why}` filled in.

    As with Docker an empty variable counts as unset. Raises MissingVariableError.
    """
    if isinstance(value, dict):
        return {key: interpolated(one, variables) for key, one in value.items()}
    if isinstance(value, list):
        return [interpolated(one, variables) for one in value]
    if not isinstance(value, str):
        return value

    def fill_in(match: "re.Match[str]") -> str:
        name, operator, text = match.group("name", "operator", "text")
        if found := variables.get(name):
            return found
        if operator == ":?":
            raise MissingVariableError(f"{name}: {text}")
        return text or ""

    return VARIABLE.sub(fill_in, value)


def compose_text(name: str) -> str:
    return (REPOSITORY / name).read_text()


def read_compose(variables: Mapping[str, str], name: str = "docker-compose.yml") -> dict[str, Any]:
    """A compose file with its anchors and variables filled in. Raises MissingVariableError."""
    return dict(interpolated(yaml.safe_load(compose_text(name)), variables))
