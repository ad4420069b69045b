"""The pages of the documentation: their code blocks, command lines and links."""

import re
import shlex
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGES = ROOT / "docs" / "pages"
FENCE = re.compile(r"^```(\w+)([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
ATTRIBUTE = re.compile(r'([\w-]+)="([^"]*)"')
LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True)
class Block:
    """A fenced block."""

    language: str
    attributes: dict[str, str]
    text: str
    line: int  # of its first line in the page


@dataclass(frozen=True)
class Page:
    """A Markdown file of the repository."""

    path: Path

    @property
    def name(self):
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self):
        return self.path.read_text()

    @cached_property
    def prose(self):
        """The text without fenced blocks."""
        return FENCE.sub("", self.text)

    def blocks(self, *languages):
        found = [
            Block(
                match[1], dict(ATTRIBUTE.findall(match[2])), match[3], self.text[: match.start(3)].count("\n")
            )
            for match in FENCE.finditer(self.text)
        ]
        return [block for block in found if block.language in languages]

    def command_lines(self):
        """The command lines in blocks, without `pgc3d`, as lists of words."""
        lines = "\n".join(block.text for block in self.blocks("bash")).splitlines()
        return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("pgc3d ")]

    def mentions(self):
        """The commands in the prose, likewise; arguments may be missing."""
        found = re.findall(r"`pgc3d ([^`]+)`", self.prose)
        return [shlex.split(line) for line in found if "COMMAND" not in line]


README = Page(ROOT / "README.md")
ALL = [README, *map(Page, sorted(PAGES.rglob("*.md")))]
