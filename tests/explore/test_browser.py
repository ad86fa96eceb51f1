"""The page in headless Chromium: clicked, typed in, at both widths, with nothing on the console."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from commands.made import Made
from explore.browser import CHROMIUM, Page, chromium
from explore.conftest import TOKEN
from explore.served import served_here

from engram_cli.commands.requests.explore import ExploreRequest

pytest.importorskip("websockets")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium binary on this machine")

ENTER = ("Enter", 13)
GRAM = "␣the␣horse"  # without the gap between its tokens
HOSTILE = "<img src=x onerror=window.bad=1><script>window.bad=1</script> &amp; \"' the horse"
DETAIL = "document.querySelector('#detail h2')?.textContent"


@pytest.fixture(scope="module")
def address(explored: Made) -> Iterator[str]:
    """Where the table is explored."""
    with served_here(ExploreRequest(path=explored.table), TOKEN) as own:
        yield own


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """One browser for all tests."""
    with chromium(tmp_path_factory.mktemp("profile")) as page:
        yield page


@pytest.fixture
def page(browser: Page, address: str) -> Iterator[Page]:
    """A fresh page of the table, in a wide window; nothing may complain or ask elsewhere."""
    browser.console.clear()
    browser.requests.clear()
    browser.look(1280, 900)
    browser.open(address)
    yield browser
    assert browser.console == []
    assert all(url.startswith(address) for url in browser.requests), browser.requests


def state(page: Page) -> dict[str, str]:
    """What the address says."""
    return {
        name: own[0] for name, own in parse_qs(urlsplit(page.run("location.href")).query).items()
    }


def look_up(page: Page, text: str) -> None:
    """Type a text and look it up by the keyboard."""
    page.click("#text")
    page.type(text)
    page.key(*ENTER, ctrl=True)
    page.wait("document.querySelectorAll('.token').length > 0")


def test_a_text_an_n_gram_a_row_and_back(page: Page) -> None:
    look_up(page, "tame the horse Bucephalus")
    assert state(page)["text"] == "tame the horse Bucephalus"
    page.click(".gram", GRAM)
    assert GRAM in page.wait(DETAIL)
    ngram = state(page)["at"]
    assert ngram.startswith("n:")
    page.click(".heads .follow", "row")
    assert page.wait(f"{DETAIL}?.startsWith('Row ') && {DETAIL}")
    assert state(page)["at"].startswith("r:")
    assert page.run("document.querySelectorAll('.strip rect').length") == 6
    page.click("#detail td .follow")
    page.wait(f"{DETAIL}?.includes('-gram')")
    page.run("history.go(-2)")
    page.wait(f"{DETAIL}?.includes('{GRAM}')")
    assert state(page)["at"] == ngram
    page.click("#detail button", "Close")
    page.wait("document.querySelector('#detail').childElementCount === 0")


def test_a_link_shows_the_same_view(page: Page) -> None:
    look_up(page, "tame the horse")
    page.click(".gram", GRAM)
    page.wait(DETAIL)
    link, main = page.run("location.href"), page.run("document.querySelector('main').textContent")
    page.open(link)
    page.wait(DETAIL)
    assert page.run("document.querySelector('main').textContent") == main
    assert page.run("document.querySelector('#text').value") == "tame the horse"
    found = page.run("fetch(document.querySelector('#json').href).then((own) => own.json())")
    assert found["ngram"]["ngram"] == "␣the ␣horse"


def test_two_texts_side_by_side(page: Page) -> None:
    look_up(page, "tame the horse")
    page.click("#compare")
    page.wait("document.activeElement.id === 'against'")
    page.type("see the horse")
    page.click("#text-form button", "Look up")
    page.wait("document.querySelectorAll('#tokens-b .token').length > 0")
    assert state(page)["against"] == "see the horse"
    assert page.run("document.querySelectorAll('#tokens-a .sq.both').length") > 0
    left, right = (
        page.run(f"document.querySelector('#tokens-{side}').getBoundingClientRect().x")
        for side in "ab"
    )
    assert left < right
    page.click("#compare")
    page.wait("document.querySelector('#tokens-b') === null")


def test_a_search_is_typed_and_followed(page: Page) -> None:
    page.click("#to-search")
    page.wait("document.querySelectorAll('#view tbody tr').length > 20")
    page.click("#query")
    page.type("horse")
    page.key(*ENTER, text="\r")
    page.wait("document.querySelector('#view').textContent.includes('with “horse”')")
    assert state(page) == {"view": "search", "q": "horse"}
    rows = page.run(
        "[...document.querySelectorAll('#view tbody tr')].map((own) => own.textContent)"
    )
    assert rows
    assert all("horse" in row for row in rows)
    page.click("#view .follow")
    assert "horse" in page.wait(DETAIL)
    page.run("history.go(-2)")
    page.click("#view button", "Show ")
    page.wait("document.querySelectorAll('#view tbody tr').length > 50")


def test_hostile_texts_are_texts(page: Page) -> None:
    look_up(page, HOSTILE)
    page.click("#to-search")
    page.click("#query")
    page.type(HOSTILE)
    page.key(*ENTER, text="\r")
    page.wait("document.querySelector('#view').textContent.includes('onerror')")
    assert page.run("window.bad") is None
    assert page.run("document.querySelectorAll('#view img, #view script').length") == 0


def test_errors_are_said_on_the_page(page: Page, address: str) -> None:
    page.open(f"{address}?text=a&at=r:2.0.99999999")
    assert "has no row" in page.wait("document.querySelector('#detail .error')?.textContent")
    page.console.clear()  # the browser notes the status of the answer
    page.open(address)


def test_tokens_are_reached_by_the_keyboard(page: Page) -> None:
    look_up(page, "tame the horse")
    for _ in range(30):
        page.key("Tab", 9)
        if page.run("document.activeElement.classList.contains('gram')"):
            break
    page.key(*ENTER, text="\r")
    assert page.wait(DETAIL)
    assert page.run("document.activeElement.id") == "detail"


@pytest.mark.parametrize(
    "query",
    ["", "?text=tame+the+horse+Bucephalus,+afraid+of+its+shadow&at=r:2.0.1",
     "?text=tame+the+horse&against=see+the+horse", "?view=search"],
)  # fmt: skip
def test_nothing_is_cut_off(page: Page, address: str, query: str) -> None:
    for width, dark in ((390, False), (390, True), (1280, False)):
        page.look(width, 900, dark=dark)
        page.open(f"{address}{query}")
        page.wait("document.querySelector('#view').childElementCount > 0")
        assert page.run("document.documentElement.scrollWidth <= innerWidth")
        cut = """[...document.querySelectorAll('body *')].filter((own) => {
          const box = own.getBoundingClientRect();
          return box.width > 1 && !own.closest('.skip') &&
            (box.right > innerWidth + 1 || box.left < -1);
        }).map((own) => own.outerHTML.slice(0, 80))"""
        assert page.run(cut) == []


def test_gates_are_shown_next_to_the_tokens(browser: Page, checkpoint: Path) -> None:
    with served_here(ExploreRequest(model=checkpoint), TOKEN) as own:
        browser.console.clear()
        browser.open(f"{own}?text=An+apple+fell")
        browser.wait("document.querySelectorAll('.traced .bar').length > 0")
        text = browser.run("document.querySelector('main').textContent")
        assert "gate" in text
        assert "Mean loss of this text" in text
        assert browser.run("document.querySelectorAll('#view select option').length") == 3
        assert browser.console == []


@pytest.mark.parametrize(
    "query", ["", "?text=tame+the+horse&against=see+the+horse&at=r:2.0.1", "?view=search&q=horse"]
)
def test_axe_finds_nothing_serious(page: Page, address: str, query: str) -> None:
    found = find_spec("axe_core_python")
    if found is None or found.origin is None:
        pytest.skip("axe-core-python is not installed")
    axe = (Path(found.origin).parent / "axe.min.js").read_text(encoding="utf-8")
    for width, dark in ((390, True), (1280, False)):
        page.look(width, 900, dark=dark)
        page.open(f"{address}{query}")
        page.run(f"{axe}; 0")
        script = "axe.run().then((all) => [all.passes.length, all.violations.map((own) => own.id)])"
        passed, violated = page.run(script)
        assert passed > 10
        assert violated == []
