"""A real JupyterLab on the loopback interface and a real Chromium that looks at it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sync_api = pytest.importorskip("playwright.sync_api")
from server import Lab, browsing, open_and_run, serving  # noqa: E402

LOCAL = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with serving(tmp_path_factory.mktemp("lab")) as lab:
        yield lab


@pytest.fixture(scope="session")
def chromium() -> Iterator[sync_api.Browser]:
    sync_api.expect.set_options(timeout=60_000)
    with browsing() as browser:
        yield browser


def is_error(message: sync_api.ConsoleMessage) -> bool:
    # What ipywidgets says of a widget whose kernel is gone; the test that has such widgets looks at what is shown.
    return message.type == "error" and "widget model not found" not in message.text


@pytest.fixture
def page(chromium: sync_api.Browser, request: pytest.FixtureRequest) -> Iterator[sync_api.Page]:
    """A page that fails its test on any console error and on any request that leaves the machine."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1500})
    page.set_default_timeout(90_000)
    errors: list[str] = []
    page.on("console", lambda message: errors.append(message.text) if is_error(message) else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("dialog", lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda r: errors.append(r.url) if not r.url.startswith(LOCAL) else None)
    try:
        yield page
        assert errors == []
    finally:
        folder = os.environ.get("CLIPVIZ_SCREENSHOTS")
        if folder:
            page.screenshot(path=Path(folder) / f"{request.node.name}.png", timeout=60_000)
        page.close()


@pytest.fixture
def opened(chromium: sync_api.Browser) -> Iterator[Callable[..., sync_api.Page]]:
    """Opens a file without a network; the page must stay silent and ask for nothing but itself."""
    contexts, said, asked = [], [], []

    def open_page(path: Path, width: int = 1280, address: str = "", **options: Any) -> sync_api.Page:
        context = chromium.new_context(viewport={"width": width, "height": 900}, offline=True, **options)
        contexts.append(context)
        tab = context.new_page()
        tab.set_default_timeout(120_000)
        tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(path.as_uri() + address)
        if tab.locator(".explorer").count():
            sync_api.expect(tab.locator(".explorer")).to_be_visible()
        return tab

    yield open_page
    assert said == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert len([url for url in asked if url.startswith("file:")]) == len(contexts)
    for context in contexts:
        context.close()


@pytest.fixture
def run_all(page: sync_api.Page) -> Callable[[str], None]:
    """Open a notebook and run all its cells."""
    return partial(open_and_run, page)
