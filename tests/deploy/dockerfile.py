"""The Dockerfile as a list of instructions, and the part of it that runs without Docker."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from tests.deploy.tools import ROOT

PATH = ROOT / "deploy" / "Dockerfile"


class Instruction(NamedTuple):
    """`RUN`, and the rest of its lines."""

    name: str
    text: str


def stages() -> list[list[Instruction]]:
    """The instructions of each stage, the first of which is its `FROM`."""
    text = re.sub(r"^\s*#.*\n", "", PATH.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found: list[list[Instruction]] = []
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name == "FROM":
            found.append([])
        if name:
            found[-1].append(Instruction(name, rest.strip()))
    return found


def texts(stage: list[Instruction], name: str) -> list[str]:
    """What all instructions of a name say."""
    return [instruction.text for instruction in stage if instruction.name == name]


def variables(stage: list[Instruction], name: str = "ENV") -> dict[str, str]:
    """Of `ENV`, or of `ARG`."""
    return dict(pair.split("=", 1) for text in texts(stage, name) for pair in shlex.split(text))


def listed(text: str) -> Any:
    """The JSON list of an instruction in exec form."""
    return json.loads(text[text.index("[") :])


def context(folder: Path, stage: list[Instruction]) -> None:
    """What the stage copies, laid out in a folder; as far as .dockerignore lets it through."""
    admitted = {
        line[1:].rstrip("/")
        for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
        if line.startswith("!")
    }
    for text in texts(stage, "COPY"):
        *sources, target = text.split()
        for source in sources:
            assert source in admitted, f".dockerignore keeps {source} away, which the Dockerfile copies"
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, folder / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, folder / target)
