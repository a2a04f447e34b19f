"""The Dockerfile and .dockerignore, read as Docker reads them: for tests/unit/test_dockerfile.py and for tools/image_check.py.

What a step means: https://docs.docker.com/reference/dockerfile. .dockerignore:
https://docs.docker.com/build/concepts/context/#dockerignore-files.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

from dockerfile_parse import DockerfileParser  # type: ignore[import-untyped]

from ourvidz_sdxl.local import ROOT

FILE = ROOT / "Dockerfile"
IGNORE = ROOT / ".dockerignore"


@dataclass(frozen=True, kw_only=True)
class Step:
    command: str
    values: tuple[str, ...]
    exec_form: bool  # a JSON list, started without a shell
    line: int

    def __str__(self) -> str:
        return f"{self.command} {' '.join(self.values)}"


@dataclass(frozen=True, kw_only=True)
class Ignore:
    """Says what Docker's builder never gets to see."""

    rules: tuple[tuple[re.Pattern[str], bool], ...]  # the pattern, and whether it brings back

    def __contains__(self, path: str) -> bool:
        """Whether a file or folder (its path from the root) is kept out: the last rule for it, or for a folder above it, holds."""
        parents = ["/".join(path.split("/")[: n + 1]) for n in range(path.count("/") + 1)]
        out = False
        for pattern, back in self.rules:
            if any(pattern.fullmatch(name) for name in parents):
                out = not back
        return out


def steps(file: Path = FILE) -> list[Step]:
    parsed = DockerfileParser(str(file)).structure
    return [
        _step(one["instruction"].upper(), one["value"], one["startline"] + 1) for one in parsed if one["instruction"] != "COMMENT"
    ]


def _step(command: str, text: str, line: int) -> Step:
    exec_form = text.startswith("[")
    if exec_form:
        values = json.loads(text)
    elif command == "RUN":
        values = [text]  # the shell's to take apart
    elif command == "ENV":
        values = [part for pair in shlex.split(text) for part in pair.split("=", 1)]
    else:
        values = shlex.split(text)
    return Step(command=command, values=tuple(values), exec_form=exec_form, line=line)


def ignore(text: str) -> Ignore:
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return Ignore(rules=tuple((_pattern(line.removeprefix("!").strip("/")), line.startswith("!")) for line in lines))


def _pattern(glob: str) -> re.Pattern[str]:
    """`*` and `?` stay inside a name, `**` spans any number of folders."""
    parts = {"**/": "(?:.*/)?", "/**": "(?:/.*)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    tokens = re.split(r"(\*\*/|/\*\*|\*\*|\*|\?)", glob)
    return re.compile("".join(parts.get(token) or re.escape(token) for token in tokens))


def sent(source: str, ignored: Ignore, root: Path = ROOT) -> Iterator[Path]:
    """The files under `source` that the builder gets, from the working tree as it lies there, tracked or not."""
    path = root / source
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file() and file.relative_to(root).as_posix() not in ignored:
            yield file


def expand(text: str, variables: Mapping[str, str]) -> str:
    """$NAME and ${NAME}, as in every step but RUN, where the shell does it. Raises KeyError where Docker would put nothing."""
    return Template(text).substitute(variables)


def pairs(values: Sequence[str]) -> dict[str, str]:
    return dict(zip(values[::2], values[1::2], strict=True))


def copies(all_steps: Sequence[Step]) -> Iterator[tuple[str, str]]:
    """Each source with its destination."""
    for step in all_steps:
        if step.command == "COPY":
            *sources, destination = step.values
            yield from ((source, destination) for source in sources)


def target(source: Path, file: Path, destination: str) -> str:
    """Where a file of a source lands: a folder's content goes into the destination, as does a file where that ends with a slash."""
    if source.is_file():
        return destination + source.name if destination.endswith("/") else destination
    return f"{destination.rstrip('/')}/{file.relative_to(source).as_posix()}"
