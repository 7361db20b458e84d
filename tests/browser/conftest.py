"""A real JupyterLab on the loopback interface and a real Chromium that looks at it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import forked
import pytest

sync_api = pytest.importorskip("playwright.sync_api")
from server import CLOSE, OPEN, READY, Lab, browsing, open_and_run, run_notebook, serving  # noqa: E402

LOCAL = ("http://127.0.0.1:", "ws://127.0.0.1:", "data:", "blob:")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(item.fspath).parent == Path(__file__).parent:
            item.add_marker(pytest.mark.browser)


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    with serving(tmp_path_factory.mktemp("lab"), forked.lab) as lab:
        yield lab


@pytest.fixture(scope="session")
def chromium() -> Iterator[sync_api.Browser]:
    sync_api.expect.set_options(timeout=60_000)
    with browsing() as browser:
        yield browser


def is_error(message: sync_api.ConsoleMessage) -> bool:
    # What ipywidgets says of a widget that no kernel has; the test that has such widgets looks at what is shown. And
    # what JupyterLab says of a tab that was closed before its debugger had asked for breakpoints.
    expected = ("widget model not found", "Could not restore the debugger state: Canceled future")
    return message.type == "error" and not any(text in message.text for text in expected)


@contextmanager
def watched(page: sync_api.Page) -> Iterator[None]:
    """Fails on any console error and on any request that leaves the machine."""
    errors: list[str] = []
    listeners = {
        "console": lambda message: errors.append(message.text) if is_error(message) else None,
        "pageerror": lambda error: errors.append(error.stack or str(error)),
        "dialog": lambda dialog: (errors.append(f"dialog: {dialog.message}"), dialog.dismiss()),
        "request": lambda request: errors.append(request.url) if not request.url.startswith(LOCAL) else None,
    }
    for event, listener in listeners.items():
        page.on(event, listener)
    yield
    for event, listener in listeners.items():
        page.remove_listener(event, listener)
    assert errors == []


def photograph(page: sync_api.Page, name: str) -> None:
    folder = os.environ.get("CLIPVIZ_SCREENSHOTS")
    if folder:
        page.screenshot(path=Path(folder) / f"{name}.png", timeout=60_000)


@pytest.fixture(scope="session")
def desk(lab: Lab, chromium: sync_api.Browser) -> Iterator[sync_api.Page]:
    """JupyterLab and a kernel, for one notebook after the other."""
    page = chromium.new_page(viewport={"width": 1400, "height": 1500})
    page.set_default_timeout(90_000)
    with watched(page):
        open_and_run(page, lab.write("desk.ipynb", "import preloaded"))
    yield page
    page.close()


@pytest.fixture
def put_on_desk(desk: sync_api.Page, request: pytest.FixtureRequest) -> Iterator[Callable[[str], sync_api.Page]]:
    """Closes the notebook on the desk, opens another of the folder, and gives the page.

    It gets the same kernel, in which no name and no widget of an older one is left. What JupyterLab says while it
    closes that one, whose views may still be at work, is no error of the new one.
    """
    with ExitStack() as stack:

        def put(name: str) -> sync_api.Page:
            stack.close()
            kernel = desk.evaluate(CLOSE)
            stack.enter_context(watched(desk))
            desk.evaluate(OPEN, [name, kernel])
            desk.wait_for_function(READY, arg=name, timeout=180_000)
            return desk

        yield put
        photograph(desk, request.node.name)


@pytest.fixture
def run_cells(lab: Lab, put_on_desk: Callable[[str], sync_api.Page]) -> Callable[..., sync_api.Page]:
    """Runs cells in a new notebook on the desk, and gives the page."""

    def run(*cells: str) -> sync_api.Page:
        name = f"{len(list(lab.root.glob('*.ipynb')))}.ipynb"
        lab.write(name, *cells)
        page = put_on_desk(name)
        run_notebook(page, name)
        return page

    return run


@pytest.fixture(scope="session")
def offline(chromium: sync_api.Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Any]]:
    """Opens files in tabs without a network, all in one process and from one address.

    By these Chromium finds again what it has compiled: plotly's script, which takes it a second.
    """
    context, address = chromium.new_context(offline=True), tmp_path_factory.mktemp("opened") / "page.html"

    def new_tab(path: Path, **options: Any) -> tuple[sync_api.Page, str]:
        """A tab for it, which may have options of a context's own, and where it lies now."""
        room = chromium.new_context(offline=True, **options) if options else context
        return room.new_page(), Path(shutil.copyfile(path, address)).as_uri()

    yield new_tab
    context.close()


@contextmanager
def opening(offline: Callable[..., Any]) -> Iterator[Callable[..., sync_api.Page]]:
    """Opens files; their pages must stay silent and ask for nothing but themselves."""
    tabs, said, asked = [], [], []

    def open_page(
        path: Path, width: int = 1280, address: str = "", color_scheme: Any = "light", **options: Any
    ) -> sync_api.Page:
        tab, place = offline(path, **options)
        tabs.append(tab)
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(color_scheme=color_scheme)
        tab.set_default_timeout(120_000)
        tab.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("dialog", lambda dialog: (said.append(f"dialog: {dialog.message}"), dialog.dismiss()))
        tab.on("request", lambda request: asked.append(request.url))
        tab.goto(place + address)
        if tab.locator(".explorer").count():
            sync_api.expect(tab.locator(".explorer")).to_be_visible()
        return tab

    yield open_page
    assert said == []
    assert all(url.startswith(("file:", "data:", "blob:")) for url in asked)
    assert len([url for url in asked if url.startswith("file:")]) == len(tabs)
    for tab in tabs:
        tab.close()


@pytest.fixture
def opened(offline: Callable[..., Any]) -> Iterator[Callable[..., sync_api.Page]]:
    """Opens a file for one test."""
    with opening(offline) as open_page:
        yield open_page


@pytest.fixture(scope="module")
def opened_once(offline: Callable[..., Any]) -> Iterator[Callable[..., sync_api.Page]]:
    """Opens a file for all tests of a module."""
    with opening(offline) as open_page:
        yield open_page
