"""The page in a real Chromium (page.js, page.css): sliders, keys, phones, nothing requested."""

import socketserver
import threading
from http.server import BaseHTTPRequestHandler

import pytest

import browser
import ddpm_jax
import recorded_run

pytestmark = pytest.mark.skipif(bool(browser.lack()), reason=browser.lack() or "there is one")
DESK, PHONE = {"width": 1300, "height": 900}, {"width": 360, "height": 740}


@pytest.fixture(scope="module")
def chromium():
    with browser.started() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    runs = [recorded_run.recorded(folder / name) for name in ("a", "b")]
    recorded_run.logged(folder / "c")
    return {
        "one": ddpm_jax.report(runs[0]), "two": ddpm_jax.report(runs, folder / "two.html"),
        "few": ddpm_jax.report(folder / "c"),
    }


@pytest.fixture
def opened(chromium, pages):
    """open(name) -> the page; at the end there was no error, and no request but for the file."""
    said, asked, contexts = [], [], []

    def opened(name, url=None, **settings):
        contexts.append(chromium.new_context(**{"viewport": DESK} | settings))
        page = contexts[-1].new_page()
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url or f"file://{pages[name]}")
        return page

    yield opened
    for context in contexts:
        context.close()
    assert said == []
    assert len([url for url in asked if not url.startswith("data:")]) == len(contexts)


def state(page, slider):
    """(label, number of visible frames, its place) beside a slider."""
    return page.evaluate("""id => {
        const slides = document.getElementById(id).closest(".slides");
        const frames = [...slides.querySelectorAll(".frame")];
        const visible = frames.filter(frame => frame.getClientRects().length);
        return [slides.querySelector("output").textContent, visible.length,
                frames.indexOf(visible[0])];
    }""", slider)


def test_sliders_move_by_keys_and_show_one_frame(opened):
    page = opened("one")
    assert state(page, "slider-previews") == ["step 1,500", 1, 2]
    page.focus("#slider-previews")
    page.keyboard.press("ArrowLeft")
    assert state(page, "slider-previews") == ["step 1,000", 1, 1]
    page.keyboard.press("Home")
    assert state(page, "slider-previews") == ["step 500", 1, 0]
    page.focus("#slider-chain-1")
    page.keyboard.press("Home")
    assert state(page, "slider-chain-1") == ["1,000 network calls to go", 1, 0]
    assert page.get_attribute("#slider-chain-1", "aria-valuetext") == "1,000 network calls to go"
    assert state(page, "slider-previews")[0] == "step 500"


def test_a_slider_moves_by_touch_on_a_phone(opened):
    page = opened("one", viewport=PHONE, has_touch=True, is_mobile=True, device_scale_factor=2)
    box = page.locator("#slider-chain-1").bounding_box()
    assert box["height"] >= 40  # Of a finger.
    page.locator("#slider-chain-1").scroll_into_view_if_needed()
    page.tap("#slider-chain-1", position={"x": box["width"] / 2, "y": box["height"] / 2})
    assert state(page, "slider-chain-1") == ["500 network calls to go", 1, 2]


def test_the_button_plays_to_the_end(opened):
    page = opened("one")
    button = page.locator(".slides").first.get_by_role("button")
    button.click()
    assert button.get_attribute("aria-pressed") == "true"
    page.locator(".slides").first.locator("button[aria-pressed=false]").wait_for()
    assert state(page, "slider-previews") == ["step 1,500", 1, 2]


@pytest.mark.parametrize("name", ["one", "two", "few"])
@pytest.mark.parametrize("viewport", [DESK, PHONE], ids=["desk", "phone"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_every_picture_is_there(opened, name, viewport, scheme):
    page = opened(name, viewport=viewport, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
    text, paper = page.evaluate("""() => {
        const style = getComputedStyle(document.body);
        return [style.color, style.backgroundColor].map(
            colour => colour.match(/\\d+/g).slice(0, 3).reduce((sum, x) => sum + Number(x), 0));
    }""")
    assert abs(text - paper) > 500 and (text < paper) == (scheme == "light")


def test_labels_name_the_sliders(opened):
    page = opened("two")
    assert page.get_by_role("slider").count() == page.locator("label").count() == 4
    assert page.get_by_role("slider", name="Step").count() == 2


def test_without_scripts_the_last_frames_are_shown(opened):
    page = opened("one", java_script_enabled=False)
    assert page.locator(".frame:visible").count() == 2


def test_served_over_http_nothing_else_is_asked_for(opened, pages):
    asked = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):  # noqa: N802
            asked.append(self.path)
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            with open(pages["one"], "rb") as file:
                self.wfile.write(file.read())

        def log_message(self, *_):
            pass

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        page = opened("one", url=f"http://127.0.0.1:{server.server_address[1]}/report.html")
        page.wait_for_timeout(200)
        server.shutdown()
    assert asked == ["/report.html"]


def test_its_policy_stops_every_request(chromium, pages):
    context = chromium.new_context()
    page = context.new_page()
    page.goto(f"file://{pages['one']}")
    blocked = page.evaluate("""async () => {
        const blocked = [];
        document.addEventListener("securitypolicyviolation", e => blocked.push(e.blockedURI));
        new Image().src = "http://127.0.0.1:9/x.png";
        await fetch("http://127.0.0.1:9/x").catch(() => {});
        await new Promise(resolve => setTimeout(resolve, 100));
        return blocked;
    }""")
    context.close()
    assert sorted(blocked) == ["http://127.0.0.1:9/x", "http://127.0.0.1:9/x.png"]
