"""The page in a real Chromium, over an engine on a tiny model: what a person does, by mouse, finger and keyboard."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from api_fixtures import CountingFront, listening, served_chat
from export_fixtures import tiny_export

from orchestrator.data.tokens.chat import CHATML
from orchestrator.export.prove import load_proven
from orchestrator.serve.api.models import OneModel
from orchestrator.serve.api.routes import build_app
from orchestrator.serve.engine.batching import Engine

webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser: pip install selenium")
from selenium.webdriver.common.by import By  # noqa: E402 - after the skip
from selenium.webdriver.common.keys import Keys  # noqa: E402

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER), reason="needs chromium and chromedriver: apt install chromium-driver"
    ),
]
_WAIT_S = 10.0


class Page:
    """The page as a person has it before them."""

    def __init__(self, driver: Any, url: str, shots: Path | None) -> None:
        self.driver, self._shots = driver, shots
        driver.get(url)
        self.until(lambda: self.find("#model option"))

    def find(self, css: str) -> list[Any]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)  # type: ignore[no-any-return]

    def one(self, css: str) -> Any:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def set(self, css: str, value: str) -> None:
        field = self.one(css)
        field.clear()
        field.send_keys(value)

    def until(self, true: Callable[[], Any]) -> None:
        deadline = time.monotonic() + _WAIT_S
        while not true():
            assert time.monotonic() < deadline, self.one("body").text
            time.sleep(0.02)

    def send(self) -> None:
        self.one("#send").click()
        self.answered()

    def answered(self) -> None:
        self.until(lambda: self.one("#send").is_enabled() and "tokens" in self.one("#status").text)

    def shot(self, name: str) -> None:
        if self._shots is not None:
            self.driver.save_screenshot(str(self._shots / f"{name}.png"))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, CountingFront]]:
    export = tiny_export(tmp_path_factory.mktemp("page"), chat_template=CHATML)
    proven = load_proven(export)
    engine, front = Engine(proven, threads=1), CountingFront()
    with listening(build_app(OneModel(served_chat(proven, export, engine)), front)) as port:
        yield port, front
    engine.close()


@pytest.fixture
def open_page(service: tuple[int, CountingFront]) -> Iterator[Callable[..., Page]]:
    """Opens the page with the key as HTTP Basic's password. SLIPWAY_SHOTS names a folder for screenshots."""
    drivers = []

    def open_it(*, width: int = 1200, height: int = 900, dark: bool = False, key: str = "right") -> Page:
        options = webdriver.ChromeOptions()
        options.binary_location = str(CHROMIUM)
        for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", f"--window-size={width},{height}"):
            options.add_argument(argument)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
        drivers.append(driver)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        if dark:
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        shots = os.environ.get("SLIPWAY_SHOTS")
        return Page(driver, f"http://any:{key}@127.0.0.1:{service[0]}/", Path(shots) if shots else None)

    yield open_it
    for driver in drivers:
        driver.quit()


def test_a_prompt_is_gone_on_with_and_every_token_tells_its_probability(open_page: Callable[..., Page]) -> None:
    page = open_page()
    assert page.one("#key").text == "key laptop"
    page.set("#text", "def add(a, b)")
    page.set("#max_tokens", "24")
    page.set("#seed", "1")
    page.send()
    assert page.one("#version").text == "version 7"
    assert "24 tokens" in page.one("#status").text
    first = page.one("#out .tok")
    webdriver.ActionChains(page.driver).move_to_element(first).perform()
    page.until(lambda: page.one("#tip").is_displayed())
    rows = page.one("#tip").text.splitlines()
    assert len(rows) >= 5
    assert all(row.endswith("%") for row in rows)
    page.shot("prompt")
    page.one("#tint").click()
    page.shot("tint")
    assert page.complaints() == []


def test_the_same_seed_gives_the_same_text(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.set("#text", "def ")
    page.set("#seed", "3")
    page.send()
    once = page.one("#out").text
    page.send()
    assert page.one("#out").text == once != ""


def test_a_chat_goes_on_and_takes_feedback(open_page: Callable[..., Page], service: tuple[int, CountingFront]) -> None:
    page = open_page()
    page.one("#tab-chat").click()
    page.set("#max_tokens", "6")
    page.set("#message", "hi")
    page.send()
    assert [turn.text.splitlines()[0] for turn in page.find(".turn")] == ["user", "assistant"]
    page.one("#down").click()
    page.set("#correction", "ahoy")
    page.one("#consent").click()
    page.shot("chat")
    page.one("#give").click()
    page.until(lambda: page.one("#thanks").text == "Thank you.")
    opinion = service[1].opinions[-1]
    assert (opinion.rating, opinion.correction, opinion.consent) == ("down", "ahoy", True)
    assert opinion.id.startswith("chatcmpl-")
    page.set("#message", "ok")
    page.send()
    assert len(page.find(".turn")) == 4
    assert page.complaints() == []


def test_it_is_usable_by_keyboard_alone(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.one("#text").send_keys("def ", Keys.CONTROL, Keys.ENTER)
    page.answered()
    page.driver.execute_script("document.querySelector('#out .tok').focus()")
    focused = page.driver.switch_to.active_element
    page.until(lambda: page.one("#tip").is_displayed())
    focused.send_keys(Keys.ARROW_RIGHT)
    assert page.driver.switch_to.active_element != focused
    page.one("#tab-prompt").send_keys(Keys.ARROW_RIGHT)
    assert page.driver.switch_to.active_element.get_attribute("id") == "tab-chat"
    assert page.one("#chat").is_displayed()
    reached = set()
    for _ in range(30):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        reached.add(page.driver.switch_to.active_element.get_attribute("id"))
    assert {"message", "send", "clear", "temperature", "seed", "model"} <= reached


def test_what_the_service_refuses_is_shown(open_page: Callable[..., Page]) -> None:
    page = open_page()
    page.set("#text", "x " * 200)
    page.one("#send").click()
    page.until(lambda: "maximum context length" in page.one("#error").text)
    page.until(lambda: page.one("#send").is_enabled() and not page.one("#answer").is_displayed())
    page.shot("error")


@pytest.mark.parametrize("dark", [False, True])
def test_it_fits_on_a_phone(open_page: Callable[..., Page], dark: bool) -> None:
    page = open_page(width=390, height=844, dark=dark)
    wide = "return document.documentElement.scrollWidth <= innerWidth"
    assert page.driver.execute_script(wide)
    page.set("#text", "def ")
    page.send()
    page.one("#out .tok").click()
    page.until(lambda: page.one("#tip").is_displayed())
    page.shot(f"phone-{'dark' if dark else 'light'}")
    page.one("#settings summary").click()
    assert page.driver.execute_script(wide)
    page.one("#tab-chat").click()
    page.set("#max_tokens", "8")
    page.set("#message", "a longer message of mine")
    page.send()
    assert page.driver.execute_script(wide)
    page.shot(f"phone-chat-{'dark' if dark else 'light'}")


def test_the_documentation_lists_the_routes(open_page: Callable[..., Page], service: tuple[int, CountingFront]) -> None:
    page = open_page(dark=True)
    page.shot("dark")
    page.driver.get(f"http://any:right@127.0.0.1:{service[0]}/docs")
    page.until(lambda: "/v1/chat/completions" in page.one("#routes").text)
    for route in page.find("summary"):
        route.click()
    assert "temperature" in page.one("#routes").text
    page.shot("docs")
    assert page.complaints() == []
