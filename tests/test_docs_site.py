"""The documentation site: built without a warning, complete, and without a request to another server."""

import html.parser
import json
import posixpath
import re
from dataclasses import fields, is_dataclass
from urllib.parse import unquote, urlsplit

import pytest
import typer
import yaml
from build_site import build
from documentation import PAGES, ROOT
from reference_pages import comments, sections
from test_docs import COMMANDS

from pgc3d.cli.config_commands import config_app


class Links(html.parser.HTMLParser):
    """The names of a page's elements, and the addresses that it links to and loads."""

    def __init__(self, path):
        super().__init__()
        self.names, self.links, self.loaded = set(), set(), set()
        self.feed(path.read_text())

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.names |= {values[name] for name in ("id", "name") if values.get(name)}
        if tag == "a" and values.get("href"):
            self.links.add(values["href"])
        if tag == "link" and values.get("rel") not in ("canonical", "next", "prev"):
            self.loaded.add(values.get("href", ""))
        if tag in ("img", "script", "iframe", "source", "video") and values.get("src"):
            self.loaded.add(values["src"])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    return build(tmp_path_factory.mktemp("docs") / "out")


@pytest.fixture(scope="module")
def pages(site):
    return {path.relative_to(site).as_posix(): Links(path) for path in site.rglob("*.html")}


def test_every_page_is_in_the_navigation():
    def files(entry):
        if isinstance(entry, str):
            return [entry]
        children = entry.values() if isinstance(entry, dict) else entry
        return [file for child in children for file in files(child)]

    named = files(yaml.safe_load((ROOT / "docs" / "mkdocs.yml").read_text())["nav"])
    written = {path.relative_to(PAGES).as_posix() for path in PAGES.rglob("*.md")}
    assert set(named) - {"commands/", "settings/", "changelog.md"} == written
    assert len(named) == len(set(named))


def test_links_and_images_exist(site, pages):
    assert len(pages) > 60
    for name, page in pages.items():
        for address in page.links | page.loaded:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc or name == "404.html":
                continue
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path)))
            target = name if not parts.path else target
            assert (site / target).is_file(), f"{name}: {address}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].names, f"{name}: {address}"


def test_nothing_is_loaded_from_another_server(site, pages):
    for name, page in pages.items():
        assert not [address for address in page.loaded if re.match(r"(https?:)?//", address)], name
    for path in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)[\s\"']*(https?:)?//", path.read_text()), path


def test_the_search_finds_settings_and_tutorials(site):
    texts = json.dumps(json.loads((site / "search.json").read_text()))
    for word in ("guidance_scale", "--low-memory", "Refine a texture", "clip_pixelwise"):
        assert word in texts, word
    assert (site / "search.js").is_file()  # for pages that are opened from a folder


def commands(command, words=()):
    if not hasattr(command, "commands"):
        yield words, command
        return
    for name, child in command.commands.items():
        yield from commands(child, (*words, name))


def test_every_option_of_every_command_has_its_page(site):
    found = dict(commands(COMMANDS))
    assert {("text",), ("config", "show")} <= found.keys()
    assert len(found) > len(typer.main.get_command(config_app).commands)
    for words, command in found.items():
        text = (site / "commands" / f"{'-'.join(words)}.html").read_text()
        for parameter in (item for item in command.params if not getattr(item, "hidden", False)):
            for name in parameter.opts if parameter.param_type_name == "option" else [parameter.metavar]:
                assert name in text, (words, name)


def test_every_setting_has_a_description(pages):
    for kind, section in sections().items():
        assert section.anchor in pages[f"settings/{section.page}.html"].names
        described = comments(kind)
        for item in fields(kind):
            default = item.default_factory() if callable(item.default_factory) else item.default
            plain = item.name != "kind" and not is_dataclass(default) and "Config" not in str(item.type)
            assert not plain or described[item.name], f"{kind.__name__}.{item.name} needs a comment"
