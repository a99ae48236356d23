"""Headless Chromium for tests: the distribution's packages, never a download, and out of reach of other machines."""

from __future__ import annotations

import base64
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

ARTIFACTS_VARIABLE = "DISTMETRIC_TEST_ARTIFACTS"
PHONE, DESKTOP = 390, 1280
SECONDS = 60  # for one command of the browser, or one page


@contextmanager
def chromium(folder: Path) -> Iterator[Chrome]:
    """A browser of its own, its profile in `folder`; the test is skipped where it is not installed."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        pytest.skip("needs Chromium and its driver: apt-get install chromium chromium-driver")
    options = ChromeOptions()
    options.binary_location = browser
    for argument in (
        "--headless=new",
        f"--user-data-dir={folder / 'profile'}",
        "--disable-dev-shm-usage",
        "--disable-gpu",
        "--hide-scrollbars",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        # Names of other machines do not exist here: a test depends on nobody, and tells nobody.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
        *(["--no-sandbox"] if os.geteuid() == 0 else []),
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(executable_path=driver, log_output=str(folder / "chromedriver.log"))
    page = Chrome(options=options, service=service)
    ours = _family(service.process.pid)
    try:
        page.command_executor.client_config.timeout = SECONDS
        page.set_page_load_timeout(SECONDS)
        page.set_script_timeout(SECONDS)
        yield page
    finally:
        ours |= _family(service.process.pid)
        with suppress(WebDriverException, OSError):
            page.quit()
        end(ours)


def end(processes: set[psutil.Process]) -> None:
    """End processes that are still there, by their ids."""
    _, alive = psutil.wait_procs(processes, timeout=5)
    for process in alive:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=5)


def _family(pid: int) -> set[psutil.Process]:
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return {process, *process.children(recursive=True)}
    return set()


def wait_until(condition: Callable[[], Any], seconds: float = SECONDS, what: str = "") -> Any:
    """The first true value of a condition."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s for {what or condition}"
        time.sleep(0.2)
    return found


def free_port() -> int:
    """A port of this machine that nobody listens at."""
    with closing(socket.socket()) as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def show(page: Chrome, width: int, scheme: str = "light", height: int = 900) -> None:
    """Look at the page on a screen of a width in pixels, in a light or dark color scheme."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width <= PHONE}
    page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    page.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    # Pictures of the other scheme are decoded now, not when somebody scrolls there.
    page.execute_async_script(
        "const done = arguments[0];"
        "Promise.allSettled([...document.images].map(image => image.decode())).then(() => done());"
    )


def bad_images(page: Chrome) -> list[str]:
    """What is wrong with the images of the page: nothing to see, or no text in its place."""
    return page.execute_script(
        "return [...document.images].filter(image => !image.naturalWidth || !image.alt.trim())"
        ".map(image => `${image.naturalWidth} wide, alt '${image.alt}': ${image.currentSrc.slice(0, 60)}`)"
    )


def requests(page: Chrome) -> list[str]:
    """Addresses of what the page has asked for, beside itself and what is written in it."""
    found = page.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)")
    return [address for address in found if not address.startswith("data:")]


def wider_than_screen(page: Chrome) -> list[str]:
    """Parts that make the page scroll sideways; the page itself comes first."""
    return page.execute_script(
        """
        const width = document.documentElement.clientWidth;
        if (document.documentElement.scrollWidth <= width) return [];
        return ['page of ' + document.documentElement.scrollWidth].concat(
            [...document.body.querySelectorAll('*')]
                .filter(part => part.getBoundingClientRect().right > width + 0.5)
                .map(part => `<${part.tagName.toLowerCase()} class="${part.className}">`));
        """
    )


def background(page: Chrome) -> str:
    """Color that the page is drawn on."""
    return page.execute_script("return getComputedStyle(document.body).backgroundColor")


def complaints(page: Chrome) -> list[str]:
    """What the browser has logged since it was asked last, as warnings or worse."""
    return [
        f"{entry['level']} {entry['message']}"
        for entry in page.get_log("browser")
        if entry["level"] in ("WARNING", "SEVERE")
    ]


def keep_screenshot(page: Chrome, name: str) -> Path:
    """Keep a picture of what is on the screen among the artifacts of the tests."""
    folder = Path(os.environ.get(ARTIFACTS_VARIABLE) or Path(__file__).parents[1] / "test-artifacts")
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.png"
    path.write_bytes(
        base64.b64decode(page.execute_cdp_cmd("Page.captureScreenshot", {"format": "png"})["data"])
    )
    KEPT.append(path)
    return path


KEPT: list[Path] = []
"""Artifacts of this session of tests; pytest lists them at its end."""
