"""The site is complete, needs no network, and works in a real browser."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import click
import pytest
from playwright.sync_api import Browser

from optimizer.cli import commands
from optimizer.space_file.schema import json_schema
from tests.browser import WIDTHS, Opened, browser, opened, screenshot
from tests.docs.blocks import PAGES, ROOT
from tests.e2e.test_pages import serious

SEEN = ("index.html", "how-to/own-model.html", "reference/commands.html")
SOURCES = (*PAGES, ROOT / "CONTRIBUTING.md")
GENERATED = "<!-- generated -->"
ALSO_WIDE = ("reference/space-file.html", "how-to/instance-types.html", "tutorial/real-run.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site as `make docs` does."""
    folder = tmp_path_factory.mktemp("site")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "--quiet", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert built.returncode == 0, built.stderr
    return folder


@cache
def text_of(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def test_every_page_is_there_and_nothing_else(site: Path) -> None:
    pages = {page.relative_to(ROOT / "docs") for page in PAGES if page.name != "README.md"}
    assert {(site / page).with_suffix(".html").exists() for page in pages} == {True}
    assert not (site / "hooks").exists()
    assert not list(site.rglob("*.py"))


def test_nothing_is_fetched_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        text = text_of(page)
        assert not re.findall(r"""<(?:script|img|iframe)[^>]* src=["']?(?:https?:)?//""", text), (
            page
        )
        assert not re.findall(r"""<link[^>]* rel=["']?(?:stylesheet|preconnect)[^>]*//""", text), (
            page
        )


def every_command(group: click.Group, path: str = "") -> Iterator[tuple[str, click.Command]]:
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{path}{name}", command
        if isinstance(command, click.Group):
            yield from every_command(command, f"{path}{name} ")


def test_the_reference_has_every_command_and_option(site: Path) -> None:
    page = text_of(site / "reference" / "commands.html")
    for name, command in every_command(commands):
        _, _, rest = page.partition(f'id="{name.replace(" ", "-")}"')
        section = rest.partition("<h2")[0]
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert parameter.opts[0] in section, f"{name} {parameter.opts[0]}"


def keys(schema: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    sections = {"": schema, **schema["$defs"]}
    for name, section in sections.items():
        for key, value in section.get("properties", {}).items():
            yield name, key, value


def test_the_reference_has_every_key_of_the_space_file_and_its_meaning(site: Path) -> None:
    page = text_of(site / "reference" / "space-file.html")
    for name, key, value in keys(json_schema()):
        assert f"<code>{key}</code>" in page, f"{name} {key}"
        assert value.get("description"), f"{name} {key}"


def headings(page: Path) -> set[str]:
    """Return the anchors of a page's headings, as GitHub and MkDocs both make them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere_in_the_source_too(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)", page.read_text(encoding="utf-8")):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        # The anchors of generated parts exist on the site alone; its strict build checks them.
        if anchor and GENERATED not in target.read_text(encoding="utf-8"):
            assert anchor in headings(target), link


def test_the_architecture_names_files_that_exist() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:optimizer|tests)/[\w./]*)`", text):
        assert (ROOT / path).exists(), path
    folders = {
        path.name for path in (ROOT / "optimizer").iterdir() if (path / "__init__.py").exists()
    }
    listed = text.partition("## Folders")[2].partition("## ")[0]
    assert folders == set(re.findall(r"^\| `(\w+)/` \|", listed, re.MULTILINE)) - {"data"}


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    with browser() as launched:
        yield launched


def assert_sound(loaded: Opened) -> None:
    assert loaded.console == []
    assert [url for url in loaded.requests if not url.startswith("file:")] == []
    assert loaded.page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")


@pytest.mark.slow
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("path", [*SEEN, *ALSO_WIDE])
def test_a_page_opens_from_a_folder(chromium: Browser, site: Path, path: str, width: int) -> None:
    loaded = opened(chromium, (site / path).as_uri(), width)
    loaded.page.wait_for_timeout(500)
    assert_sound(loaded)
    screenshot(loaded.page, f"docs-{path.replace('/', '-').removesuffix('.html')}-{width}")


@pytest.mark.slow
@pytest.mark.parametrize("path", SEEN)
def test_a_page_can_be_used_by_anybody(chromium: Browser, site: Path, path: str) -> None:
    page = opened(chromium, (site / path).as_uri()).page
    page.wait_for_timeout(500)
    assert serious(page) == []


@pytest.mark.slow
def test_the_search_finds_without_a_network(chromium: Browser, site: Path) -> None:
    loaded = opened(chromium, (site / "index.html").as_uri())
    box = loaded.page.get_by_role("textbox", name="Search")
    box.click()
    # Text that is pasted at once may arrive before the search listens.
    box.press_sequentially("headroom", delay=50)
    results = loaded.page.locator(".md-search-result__item")
    results.first.wait_for(timeout=10_000)
    assert "headroom" in results.first.inner_text().lower()
    assert_sound(loaded)
