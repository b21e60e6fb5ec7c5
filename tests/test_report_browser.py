"""The report in headless Chromium: both widths, light and dark, keyboard, accessibility."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import made_up_report as made_up

from supcon_tf.report import content, page

pytestmark = pytest.mark.slow
WIDTHS = (390, 1440)


def reason_to_skip():
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if missing:
        return f"no {' and '.join(missing)}: apt-get install chromium chromium-driver"
    if importlib.util.find_spec("selenium") is None:
        return "no selenium: pip install supcon-tf[browser]"
    return None


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """A driver that shows a page with every section."""
    if reason := reason_to_skip():
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    try:
        path = tmp_path_factory.mktemp("report") / "index.html"
        path.write_text(page.create_report(whole_report()), encoding="utf-8")
        driver.report = path.as_uri()
        yield driver
    finally:
        driver.quit()


def whole_report():
    image = made_up.made_up_images(1)[0]
    finding = content.Finding(
        "leak", made_up.NASTY, "test", "0.99", "b.png", "the same pixels", "", image, image
    )
    runs = [
        content.OtherRun(
            f"runs/{name}", ["--temperature=0.2"], made_up.made_up_figures(predictions),
            predictions, made_up.made_up_lines(), 3.0,
        )
        for name, predictions in (
            ("a", made_up.made_up_predictions()), ("b", made_up.made_up_predictions(seed=1)),
        )
    ]  # fmt: skip
    inspection = content.Inspection({"leak": 1}, [finding], {}, "inspect/issues.csv")
    return made_up.made_up_report(inspection=inspection, comparison=runs)


def show(browser, width, scheme):
    browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    features = [
        {"name": "prefers-color-scheme", "value": scheme},
        {"name": "prefers-reduced-motion", "value": "reduce"},
    ]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get_log("performance")
    browser.get_log("browser")
    browser.get(browser.report)


@pytest.fixture(params=[(w, s) for w in WIDTHS for s in ("light", "dark")], ids=str, scope="module")
def shown(request, browser):
    show(browser, *request.param)
    return browser, *request.param


def test_the_page_is_whole_and_quiet(shown):
    browser, width, scheme = shown
    assert [entry["message"] for entry in browser.get_log("browser")] == []
    messages = [json.loads(e["message"])["message"] for e in browser.get_log("performance")]
    urls = [
        message["params"]["request"]["url"]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    ]
    assert urls and all(url.startswith(("file:", "data:")) for url in urls)
    sections = browser.execute_script(
        "return [...document.querySelectorAll('section')].filter(s => s.offsetHeight > 100)"
        ".map(s => s.id)"
    )
    assert sections == [*made_up.SECTIONS, "inspection", "comparison"]
    # Nothing but tables and commands scrolls sideways.
    assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    broken = browser.execute_script(
        "return [...document.images].filter(i => !i.complete || !i.naturalWidth).length"
    )
    assert broken == 0
    background = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    shades = [int(x) for x in background.strip("rgb()").split(",")]
    assert (np.mean(shades) > 128) == (scheme == "light")


def test_axe_finds_nothing_serious(shown):
    spec = importlib.util.find_spec("axe_core_python")
    if spec is None:
        pytest.skip("no axe-core: pip install supcon-tf[browser]")
    browser, *_ = shown
    browser.execute_script(
        "document.querySelectorAll('details').forEach(details => details.open = true)"
    )
    script = Path(spec.submodule_search_locations[0]) / "axe.min.js"
    browser.execute_script(script.read_text(encoding="utf-8"))
    browser.set_script_timeout(300)
    found = browser.execute_async_script(
        "const done = arguments[arguments.length - 1]; axe.run().then(done, e => done(String(e)))"
    )
    serious = {
        violation["id"]: [node["target"] for node in violation["nodes"]]
        for violation in found["violations"]
        if violation["impact"] in ("serious", "critical")
    }
    assert serious == {}


def test_the_maps_can_be_explored(browser):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    show(browser, 1440, "light")
    text, slider = (browser.find_element(By.ID, f"explorer-{name}") for name in ("text", "slider"))
    first = text.text
    assert made_up.NASTY in first  # As text: nothing of it ran.
    slider.send_keys(Keys.ARROW_RIGHT)
    second = text.text
    assert second != first and made_up.CLASS_NAMES[1] in second
    assert slider.get_attribute("aria-valuetext").split(",")[0] in second
    # The pointer selects the image under it on both maps.
    embedding = json.loads(
        browser.execute_script("return document.getElementById('explorer-data').textContent")
    )
    drawn = browser.find_element(By.CSS_SELECTOR, "svg[data-map=tsne]")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", drawn)
    x, y = embedding["tsne"][17]
    scale = drawn.size["width"] / 800
    offset = (x - 400) * scale, (y - 300) * scale
    ActionChains(browser).move_to_element_with_offset(drawn, *map(round, offset)).perform()
    near = np.argsort(np.sum((np.array(embedding["tsne"]) - [x, y]) ** 2, axis=1))[:4]
    assert any(embedding["names"][i] in text.text for i in near)
    rings = browser.find_elements(By.CSS_SELECTOR, ".selected")
    assert all(float(ring.get_attribute("cx")) > 0 for ring in rings) and len(rings) == 2
    # Only the mistakes.
    number = browser.find_element(By.ID, "explorer-number")
    browser.find_element(By.ID, "explorer-errors").click()
    wrong = int(np.sum(~made_up.made_up_predictions().is_correct()))
    assert number.text == f"1 of {wrong}" and "(wrong)" in text.text


def test_every_scrolling_area_and_control_takes_the_focus(browser):
    show(browser, 390, "light")
    unreachable = browser.execute_script(
        "return [...document.querySelectorAll('pre, .scroll')]"
        ".filter(e => e.scrollWidth > e.clientWidth && e.tabIndex < 0).length"
    )
    assert unreachable == 0


def test_printing_leaves_out_what_paper_cannot_do(browser):
    show(browser, 1440, "dark")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    hidden, color = browser.execute_script(
        "return [['nav', '.explorer', '.skip'].map(s => "
        "getComputedStyle(document.querySelector(s)).display), "
        "getComputedStyle(document.body).backgroundColor]"
    )
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
    assert hidden == ["none"] * 3 and color == "rgb(255, 255, 255)"
