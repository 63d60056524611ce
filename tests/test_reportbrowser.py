"""The page of `jitkit report` in a real browser: complete, readable, and without requests.

Skipped without Chromium: `apt-get install chromium`.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, chromium
from reportruns import GUIDANCE, make_run, write_scores, write_sweep

from jitkit.report.page import write_report

pytestmark = pytest.mark.skipif(
    chromium() is None, reason="no Chromium is installed: apt-get install chromium"
)

LONG = "a_name_without_any_space_to_break_it_that_is_wider_than_the_window_of_a_mobile_phone"

CONTRAST = """(() => {
  const brush = Object.assign(document.createElement("canvas"), {width: 1, height: 1})
    .getContext("2d", {willReadFrequently: true});
  const rgba = (colour) => {
    brush.clearRect(0, 0, 1, 1);
    brush.fillStyle = colour;
    brush.fillRect(0, 0, 1, 1);
    return [...brush.getImageData(0, 0, 1, 1).data];
  };
  const luminance = (colour) => {
    const [r, g, b] = rgba(colour).slice(0, 3).map((v) => v / 255)
      .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = (element) => {
    for (let node = element; node; node = node.parentElement) {
      const colour = getComputedStyle(node).backgroundColor;
      if (rgba(colour)[3] === 255) return colour;
    }
    return "white";
  };
  const ratio = (a, b) => {
    const [low, high] = [luminance(a), luminance(b)].sort((x, y) => x - y);
    return (high + 0.05) / (low + 0.05);
  };
  for (const each of document.querySelectorAll("details")) each.open = true;
  const texts = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
    && [...e.childNodes].some((n) => n.nodeType === Node.TEXT_NODE && n.data.trim()));
  const lines = [...document.querySelectorAll("svg .line")];
  return {
    texts: texts.map((e) =>
      [ratio(getComputedStyle(e).color, background(e)), e.textContent.trim()]),
    lines: lines.map((e) => [ratio(getComputedStyle(e).stroke, background(e)), e.outerHTML]),
  };
})()"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = chromium()
    assert program is not None
    with Browser(program, tmp_path_factory.mktemp("browser") / "profile") as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page on one run with every part, and one on nine runs."""
    folder = tmp_path_factory.mktemp("runs")
    run = make_run(folder / "digits")
    write_scores(run)
    write_sweep(run, "a", {"sample.guidance": GUIDANCE})
    write_sweep(run, "b", {"sample.guidance": GUIDANCE, "ema": [f"0.9{k}" for k in range(9)]})
    names = [*"abcdefg", LONG]
    runs = [make_run(folder / name, {"train.seed": 1}, steps=60) for name in names]
    runs[0] = make_run(folder / "long", steps=1000)  # "1,000" is at the edge of the window
    return {"one": write_report([run]), "nine": write_report([run, *runs], folder / "nine.html")}


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("name", ["one", "nine"])
def test_a_page_loads_completely_and_fits_its_window(
    browser: Browser, pages: dict[str, Path], name: str, width: int
) -> None:
    browser.open(pages[name], width=width)
    assert browser.errors() == []
    assert browser.requests() == [pages[name].resolve().as_uri()]
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    browser.evaluate(
        "document.querySelectorAll('details').forEach((each) => { each.open = true; })"
    )
    assert browser.evaluate("document.scrollingElement.scrollWidth") <= width
    script = "Promise.all([...document.images].map((i) => i.decode().then(() => i.naturalWidth)))"
    widths = browser.evaluate(script)
    assert widths and min(widths) > 0
    assert browser.evaluate("document.compatMode") == "CSS1Compat"


@pytest.mark.parametrize("width", [390, 1280])
def test_tick_labels_do_not_overlap(browser: Browser, pages: dict[str, Path], width: int) -> None:
    browser.open(pages["one"], width=width)
    overlapping = browser.evaluate("""[...document.querySelectorAll(".ticks")].flatMap((axis) => {
      const boxes = [...axis.children].map((e) => [e.textContent, e.getBoundingClientRect()]);
      return boxes.flatMap(([a, p], i) => boxes.slice(i + 1).filter(([b, q]) =>
        p.left < q.right && q.left < p.right && p.top < q.bottom && q.top < p.bottom)
        .map(([b]) => [a, b]));
    })""")
    assert overlapping == []


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("name", ["one", "nine"])
def test_text_and_lines_have_contrast_in_light_and_dark_mode(
    browser: Browser, pages: dict[str, Path], name: str, dark: bool
) -> None:
    browser.open(pages[name], dark=dark)
    contrast = browser.evaluate(CONTRAST)
    assert len(contrast["texts"]) > 100 and len(contrast["lines"]) > 20
    assert not [pair for pair in contrast["texts"] if pair[0] < 4.5]  # WCAG 2.2, 1.4.3
    assert not [pair for pair in contrast["lines"] if pair[0] < 3]  # WCAG 2.2, 1.4.11
    background = browser.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark


@pytest.mark.parametrize("width", [390, 1280])
def test_a_chart_shows_the_values_under_the_pointer(
    browser: Browser, pages: dict[str, Path], width: int
) -> None:
    browser.open(pages["one"], width=width)
    area = browser.evaluate("""(() => {
      const area = document.querySelector("#curves ~ .charts .area");
      area.scrollIntoView({block: "center"});
      const box = area.getBoundingClientRect();
      return {left: box.left, top: box.top, width: box.width, height: box.height};
    })()""")
    for share, shown in ((0.01, "step 503.5"), (0.7, "step 3001"), (0.99, "step 4002")):
        browser.point(area["left"] + share * area["width"], area["top"] + area["height"] / 2)
        assert tip(browser)["text"] == shown
        assert tip(browser)["left"] >= 0 and tip(browser)["right"] <= width
    browser.point(area["left"], area["top"] - 30)
    assert tip(browser)["hidden"]


def test_a_chart_shows_its_values_by_the_keyboard(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one"])
    browser.evaluate("document.querySelector('#curves ~ .charts .area').focus()")
    for key, shown in (("Home", "step 503.5"), ("ArrowRight", "step 1003"), ("End", "step 4002")):
        browser.key(key)
        assert tip(browser)["text"] == shown
    browser.key("Escape")
    assert tip(browser)["hidden"]


def tip(browser: Browser) -> dict[str, Any]:
    """The tooltip of the first chart of the curves."""
    return dict(
        browser.evaluate("""(() => {
      const tip = document.querySelector("#curves ~ .charts .tip");
      const box = tip.getBoundingClientRect();
      return {text: tip.textContent, hidden: tip.hidden, left: box.left, right: box.right};
    })()""")
    )


def test_an_image_grows_when_it_is_clicked(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one"])
    width = "document.querySelector('.image img').getBoundingClientRect().width"
    before = browser.evaluate(width)
    browser.evaluate("document.querySelector('.enlarge').click()")
    assert browser.evaluate(width) > 2 * before
    pressed = "document.querySelector('.enlarge').getAttribute('aria-pressed')"
    assert browser.evaluate(pressed) == "true"


def test_the_page_sends_no_request_even_with_injected_code(
    browser: Browser, pages: dict[str, Path]
) -> None:
    requested: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requested.append(self.path)
            self.send_response(204)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        browser.open(pages["one"])
        browser.evaluate(f"""(async () => {{
          const image = new Image();
          const ended = new Promise((done) => {{ image.onload = image.onerror = done; }});
          image.src = "{address}/image";
          await ended;
          await fetch("{address}/fetch").catch(() => null);
          document.body.insertAdjacentHTML("beforeend", '<b onclick="window.ran = 1">b</b>');
          document.body.lastChild.click();
        }})()""")
        assert browser.evaluate("window.ran") is None
        server.shutdown()
    assert requested == []
    assert len(browser.errors()) >= 3  # reports of the page's content security policy


def test_a_page_prints_on_a4_with_everything_open(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["one"], dark=True)
    closed = "document.querySelectorAll('details:not([open], .values)').length"
    assert browser.evaluate(closed) > 0
    browser.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert browser.evaluate(closed) == 0
    browser.evaluate("dispatchEvent(new Event('afterprint'))")
    assert browser.evaluate(closed) > 0
    data = browser.pdf()
    sizes = re.findall(rb"/MediaBox \[0 0 ([\d.]+) ([\d.]+)\]", data)
    assert data.startswith(b"%PDF") and 4 <= len(sizes) <= 20
    assert {(round(float(w)), round(float(h))) for w, h in sizes} == {(595, 842)}
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert (
        browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    )
