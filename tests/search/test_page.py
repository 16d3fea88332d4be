"""The page in a real browser: searches, pictures as queries, labels, the keyboard, and what it must not do.

One server and one browser serve all tests. The library draws its pictures; nothing is embedded.
"""

import io
import re
import threading
import time
from pathlib import Path

import pytest
from drawn_library import HOSTILE, DrawnLibrary
from PIL import Image

pytestmark = pytest.mark.backend_free

uvicorn = pytest.importorskip("uvicorn")
sync_playwright = pytest.importorskip("playwright.sync_api").sync_playwright

from keras_clip.search.queries import parse  # noqa: E402
from keras_clip.search.server import create_application  # noqa: E402

CHROMIUM = Path("/usr/bin/chromium")
AXE = Path(__file__).with_name("vendor") / "axe.min.js"
PICTURES = 100_000
# What a browser says when a server has stopped or a file is missing, which tests cause.
EXPECTED = re.compile(r"Failed to load resource|net::ERR_(CONNECTION|EMPTY|ABORTED|SOCKET)")


class Server:
    """Serves the application in a thread, so that it can stop and come back at the same port."""

    def __init__(self, library):
        self._library, self.port = library, 0
        self.start()

    def start(self):
        config = uvicorn.Config(
            create_application(self._library), host="127.0.0.1", port=self.port, log_level="error", lifespan="off",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        self._thread.start()
        while not self._server.started:
            time.sleep(0.01)
        self.port = self._server.servers[0].sockets[0].getsockname()[1]

    def stop(self):
        self._server.should_exit = True
        self._thread.join()


@pytest.fixture(scope="module")
def library():
    return DrawnLibrary(PICTURES)


@pytest.fixture(scope="module")
def server(library):
    server = Server(library)
    yield server
    server.stop()


@pytest.fixture(scope="module")
def browser():
    if not CHROMIUM.exists():
        pytest.skip(f"no browser: {CHROMIUM} does not exist")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, server, library):
    """A page of a new person; at its end, nothing may have come from elsewhere or violated the policy."""
    library.saved.clear()
    library.said.clear()
    library.removed.clear()
    context = browser.new_context(viewport={"width": 1200, "height": 800}, accept_downloads=True)
    # Long enough for a machine that runs other tests at the same time.
    context.set_default_timeout(30000)
    context.add_init_script(
        """window.violations = [];
        addEventListener("securitypolicyviolation", (event) => violations.push(event.violatedDirective));"""
    )
    page, faults, addresses = context.new_page(), [], []
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("dialog", lambda dialog: (faults.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("console", lambda line: EXPECTED.search(line.text) or faults.append(line.text))
    context.on("request", lambda request: addresses.append(request.url))
    page.base = f"http://127.0.0.1:{server.port}"
    yield page
    faults += page.evaluate("window.violations")
    context.close()
    assert faults == []
    assert [url for url in addresses if not url.startswith((page.base, "blob:", "data:"))] == []


def open_page(page, address="/"):
    page.goto(page.base + address)
    page.wait_for_function("() => document.querySelector('.grid').getAttribute('aria-busy') === 'false'")


def names(page, number=3):
    page.wait_for_selector(".tile .caption", state="attached")
    return page.locator(".tile .caption").all_text_contents()[:number]


def wait_for_text(page, selector, text):
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)", arg=[selector, text]
    )


def eventually(page, condition):
    for _ in range(600):
        if condition():
            return
        page.wait_for_timeout(50)
    raise AssertionError("The condition did not become true in 30 s.")


def search(page, text):
    page.keyboard.press("/")
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def picture(colour, size=(40, 30)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def test_search_by_text_and_the_back_button(page):
    open_page(page)
    wait_for_text(page, ".count", "100,000 pictures")
    search(page, "red circle - green")
    wait_for_text(page, ".count", "clear matches in 100,000 pictures")
    assert all("red circle" in name or name in HOSTILE for name in names(page, 12))
    assert "q=red+circle+-+green" in page.url
    page.keyboard.press("Escape")
    assert page.locator(".chips .text").all_text_contents() == ["red circle", "green"]
    page.locator(".chips .remove").nth(1).click()
    assert page.url.endswith("/?q=red+circle")
    page.go_back()
    assert page.locator(".chips .text").all_text_contents() == ["red circle", "green"]
    page.go_back()
    wait_for_text(page, ".count", "100,000 pictures")
    assert page.locator(".chips li").count() == 0


def until(page, condition):
    """Waits for a request of the page, which may come after its address has changed."""
    for _ in range(600):
        if condition():
            return
        page.wait_for_timeout(50)
    assert condition()


def test_weight_of_a_term(page, library):
    open_page(page, "/?q=red+circle+%2B+0.5*blue")
    page.locator(".term").nth(1).focus()
    page.keyboard.press("ArrowUp")
    page.wait_for_url("**q=red+circle+%2B+0.75*blue*")
    page.locator(".term").first.click()
    page.locator(".chip-editor [type=text]").fill("green square")
    page.locator(".chip-editor select").select_option("-1")
    page.keyboard.press("Enter")
    page.wait_for_url("**q=-+green+square+%2B+0.75*blue*")
    until(
        page,
        lambda: (
            [(term["text"], term["weight"]) for term in library.requests[-1].terms]
            == [("green square", -1), ("blue", 0.75)]
        ),
    )


def test_error_in_a_query_is_shown(page):
    open_page(page)
    search(page, "red + ")
    wait_for_text(page, "#hint", "after the last plus or minus")


QUERIES = [
    "red car at night", "red car - night + picture:17", '2*"red car" + dog -snow', "- snow", "t-shirt", "C++ code",
    "at -5 degrees", "-0.5*night + day", '"Paris - the city"', '"say \\"cheese\\""', "0,5*sea", "vélo − neige ＋ 雪",
    "a + 1.5*b", "「赤い - 車」", 'the "red - blue" flag', "  red   ", "", "+ red", '5" screen', "x +5 y",
]  # fmt: skip
FAULTS = ["red +", "a + - b", '"open', "2*", "0*red", "picture:x", '""', "picture:3 car"]


def test_syntax_is_that_of_python(page):
    open_page(page)
    read = page.evaluate(
        """async (queries) => {
            const { parse, write } = await import("/page/query.js");
            const read = (text) => { try { return parse(text); } catch { return null; } };
            return queries.map((text) => [read(text), read(text) && read(write(read(text)))]);
        }""",
        QUERIES + FAULTS,
    )
    for text, (terms, again) in zip(QUERIES, read, strict=False):
        expected = [
            {name: value for name in ("text", "picture", "weight") if (value := getattr(term, name)) is not None}
            for term in parse(text).terms
        ]
        assert terms == expected, text
        assert again == terms, text
    for text, (terms, _) in zip(FAULTS, read[len(QUERIES) :], strict=True):
        assert terms is None, text
        with pytest.raises(ValueError):
            parse(text)


def test_picture_as_query(page):
    open_page(page, "/?q=square")
    page.locator("input.file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": picture("blue")})
    page.wait_for_url("**q=upload*")
    page.wait_for_function("() => document.querySelector('.tile .caption')?.textContent.startsWith('blue')")
    page.wait_for_function("() => document.querySelector('.term img').naturalWidth > 0")
    for event in ("paste", "drop"):
        page.evaluate(
            """([event, bytes]) => {
                const transfer = new DataTransfer();
                transfer.items.add(new File([new Uint8Array(bytes)], "b.png", { type: "image/png" }));
                const target = document.querySelector(event === "drop" ? ".search" : ".grid");
                const options = { bubbles: true, cancelable: true, dataTransfer: transfer, clipboardData: transfer };
                const made = event === "drop" ? new DragEvent(event, options) : new ClipboardEvent(event, options);
                target.dispatchEvent(made);
            }""",
            [event, list(picture("green"))],
        )
        # A drop on the field joins the terms that are there; a paste elsewhere replaces them.
        page.wait_for_function(
            "n => document.querySelectorAll('.chips li').length === n", arg=1 if event == "paste" else 2
        )
        page.wait_for_function("() => document.querySelectorAll('.tile .caption')[1]?.textContent.startsWith('green')")
    page.locator("input.file").set_input_files({"name": "a.png", "mimeType": "image/png", "buffer": b"no image"})
    page.wait_for_function("() => document.querySelector('#hint').textContent.length > 20")
    assert page.locator(".chips li").count() == 2


def test_filters(page, library):
    open_page(page, "/?q=red+circle")
    page.locator("[data-panel=filters]").click()
    page.locator("[name=folder]").select_option("0:2024/sea")
    page.locator("[name=min_width]").fill("800")
    page.locator("[name=taken_after]").fill("2024-02-03")
    page.locator("#collapse").check()
    wait_for_text(page, ".active-filters", "near-duplicates once")
    page.wait_for_url("**collapse=0.95**")
    filters = {"folder": "0:2024/sea", "min_width": 800, "taken_after": "2024-02-03"}
    until(page, lambda: (library.requests[-1].filters, library.requests[-1].collapse) == (filters, 0.95))
    page.wait_for_selector(".copies", state="attached")
    page.locator(".active-filters .remove").first.click()
    page.wait_for_function("() => !document.querySelector('.active-filters').textContent.includes('sea')")
    page.locator("[name=words]").fill("no such word")
    page.keyboard.press("Enter")
    wait_for_text(page, ".message", "No picture passes these filters.")
    page.locator(".message button").click()
    wait_for_text(page, ".count", "clear matches")


def test_keyboard(page):
    open_page(page, "/?q=red+circle")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.className") == "draft"
    page.keyboard.press("ArrowDown")
    focused = "Number(document.activeElement.dataset.index)"
    columns = page.evaluate("Number(document.querySelector('.grid').getAttribute('aria-colcount'))")
    for key, place in [("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0)]:
        page.keyboard.press(key)
        assert page.evaluate(focused) == place
    page.keyboard.press("PageDown")
    assert page.evaluate(focused) >= 2 * columns
    page.keyboard.press("Home")
    page.keyboard.press("x")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Shift+X")
    wait_for_text(page, ".selection", f"{columns + 1} selected")
    page.keyboard.press("Escape")
    assert page.locator(".selection").is_hidden()
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog.detail[open]")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("() => document.querySelector('#detail-name').textContent.includes('red circle')")
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('dialog[open]')")
    assert page.evaluate(focused) == columns + 1
    assert "picture=" not in page.url
    page.keyboard.press("?")
    page.wait_for_selector(".help-dialog[open]")
    page.keyboard.press("Escape")
    page.wait_for_function("() => !document.querySelector('dialog[open]')")


def test_picture_more_like_it_and_its_address(page):
    open_page(page, "/?q=red+circle&picture=42")
    wait_for_text(page, "#detail-name", "red circle 42.jpg")
    page.wait_for_function("() => document.querySelector('.stage img').naturalWidth === 1200")
    page.keyboard.press("m")
    page.wait_for_url("**?q=picture%3A42")
    wait_for_text(page, ".count", "clear matches")
    page.go_back()
    wait_for_text(page, "#detail-name", "red circle 42.jpg")
    page.goto(page.base + "/?picture=123456789")
    wait_for_text(page, ".facts", "not in the index any more")


def test_labels_by_hand(page, library):
    open_page(page, "/?q=red+circle&panel=classes")
    page.locator(".add input").fill("round")
    page.locator(".add button").click()
    page.wait_for_selector("[data-class]")
    page.locator("[data-class] .tool").first.click()
    page.wait_for_selector(".labelling:not([hidden])")
    page.wait_for_function("() => document.querySelector('.grid').getAttribute('aria-busy') === 'false'")
    page.locator(".tile").first.focus()
    for key in "yny":
        page.keyboard.press(key)
    page.keyboard.press("Enter")
    page.wait_for_function("() => document.querySelector('#detail-name')?.textContent.length > 8")
    page.wait_for_selector(".verdicts .current")
    page.keyboard.press("n")
    page.wait_for_function("() => location.search.includes('picture=4')")
    page.wait_for_selector(".verdicts .current")
    page.keyboard.press("s")
    page.wait_for_function("() => location.search.includes('picture=5')")
    page.keyboard.press("Escape")
    wait_for_text(page, ".labelling .number", "4 by hand")
    eventually(page, lambda: [library.said[i, 1] for i in range(4)] == [True, False, True, False])
    assert page.locator(".tile").nth(1).get_attribute("data-mark") == "no"
    page.locator(".tile").first.focus()
    page.keyboard.press("u")
    wait_for_text(page, ".labelling .number", "3 by hand")
    page.locator(".train").click()
    wait_for_text(page, ".probe", "90 % correct (80 % to 95 %), on 40 pictures labelled by hand.")
    # First those that the probe is least certain about, then those whose label it contradicts.
    assert page.locator(".suggestions").evaluate_all("lists => lists.map(each => each.children.length)") == [2, 4]
    assert page.locator(".suggestions").first.locator("button").first.get_attribute("aria-label").endswith("54 %?")
    page.locator(".suggestions").nth(1).locator("button").nth(1).click()
    page.wait_for_selector("dialog.detail .verdicts .current")
    page.keyboard.press("y")
    page.wait_for_function("() => location.search.includes('picture=7')")
    eventually(page, lambda: library.said.get((4, 1)) is True)


def test_export(page, library):
    open_page(page, "/?q=red+circle")
    page.locator(".tile .pick").nth(1).click()
    page.locator(".tile").nth(3).click(modifiers=["Shift"])
    page.locator(".selection summary").click()
    with page.expect_download() as download:
        page.locator(".selection [data-format=csv]").click()
    ids = [int(page.locator(".tile").nth(i).get_attribute("data-id")) for i in (1, 2, 3)]
    assert download.value.suggested_filename == "pictures.csv"
    assert Path(download.value.path()).read_text() == f"csv {ids} None"
    assert library.exports[-1] == ("csv", ids, None)


def test_hundred_thousand_results(page):
    open_page(page)
    page.locator(".tile").first.focus()
    page.keyboard.press("End")
    page.wait_for_function("() => document.activeElement.dataset.id === '99999'")
    assert page.evaluate("document.activeElement.querySelector('.caption').textContent").endswith(" 99999.jpg")
    page.evaluate("scrollTo(0, 0.4 * document.documentElement.scrollHeight)")
    page.wait_for_function(
        "() => [...document.querySelectorAll('.tile')].some((t) => t.dataset.id > 30000 && t.dataset.id < 50000)"
    )
    assert page.locator(".tile").count() < 150
    assert page.evaluate("document.querySelectorAll('*').length") < 1500
    # Nothing moves after it has been placed.
    box = page.locator(".tile").nth(20).bounding_box()
    page.wait_for_timeout(200)
    assert page.locator(".tile").nth(20).bounding_box() == box


def test_hostile_names_are_text(page, library):
    open_page(page)
    assert names(page, len(HOSTILE)) == list(HOSTILE)
    library.add_class("<script>alert(3)</script>", ["red"], None)
    page.goto(page.base + "/?picture=0&class=1&q=%3Cimg+src%3Dx+onerror%3Dalert(4)%3E")
    wait_for_text(page, "#detail-name", HOSTILE[0])
    wait_for_text(page, ".words", "<i>drawn</i>")
    wait_for_text(page, ".labelling strong", "<script>alert(3)</script>")
    assert page.locator("main img[src=x], main script, .facts i").count() == 0


@pytest.mark.parametrize("address", ["/nowhere", "/a/b/c.html"])
def test_missing_page(page, address):
    page.goto(page.base + address)
    wait_for_text(page, ".message", "There is nothing at this address.")
    page.locator(".message a").click()
    wait_for_text(page, ".count", "pictures")


def test_server_stops_and_comes_back(page, server):
    open_page(page)
    server.stop()
    try:
        search(page, "blue square")
        wait_for_text(page, ".offline", "The server does not answer.")
    finally:
        server.start()
    wait_for_text(page, ".count", "clear matches")
    assert page.locator(".offline").is_hidden()
    page.wait_for_function("() => document.querySelector('.tile img').naturalWidth > 0")


def test_expired_cursor_repeats_the_search(page, library):
    open_page(page)
    library.version += 1
    page.evaluate("scrollTo(0, 60000)")
    wait_for_text(page, "#live", "The search was repeated.")
    page.wait_for_function("() => document.querySelectorAll('.tile:not([aria-busy])').length > 20")
    assert page.evaluate("scrollY") == pytest.approx(60000, abs=50)


VIEWS = {
    "all": "/",
    "search": "/?q=red+circle+-+0.5*green&collapse=0.95",
    "no clear match": "/?q=weather",
    "filters": "/?q=red+circle&panel=filters&words=red",
    "labels": "/?q=red+circle&panel=classes&class=1",
    "picture": "/?q=red+circle&picture=21&class=1",
    "nothing": "/?words=no+such+word",
    "missing": "/nowhere",
}


def test_axe_finds_nothing_serious(page, library):
    library.add_class("round", ["circle"], 0.5)
    page.emulate_media(color_scheme="light", reduced_motion="reduce")
    # Few tiles: each is like the others.
    page.set_viewport_size({"width": 800, "height": 500})
    found = {}
    for name, address in VIEWS.items():
        page.goto(page.base + address)
        page.wait_for_load_state("networkidle")
        if name == "search":
            page.locator(".tile").first.focus()
            page.keyboard.press("x")
        page.evaluate(AXE.read_text())
        for theme in ("light", "dark"):
            page.emulate_media(color_scheme=theme)
            # Colours are all that the theme changes.
            results = page.evaluate("axe.run(%s)" % ("" if theme == "light" else '{runOnly: ["color-contrast"]}'))
            found[name, theme] = [
                (rule["id"], rule["nodes"][0]["html"][:200])
                for rule in results["violations"]
                if rule["impact"] in ("serious", "critical")
            ]
        page.emulate_media(color_scheme="light")
    assert {view: faults for view, faults in found.items() if faults} == {}


def test_theme_is_remembered(page):
    open_page(page)
    page.locator(".theme").click()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.reload()
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == dark == "rgb(17, 17, 17)"
