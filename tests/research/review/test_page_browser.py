"""The project's page in a real Chromium: nothing is loaded, nothing overflows, light and dark."""

import pytest
from chromium import Chromium, needs_chromium
from research.review.reviewed import ran

from rankwise.research.page import write_page
from rankwise.research.review import review

pytestmark = [pytest.mark.slow, pytest.mark.figures, needs_chromium]


@pytest.fixture(scope="module")
def browser():
    with Chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    project = ran(tmp_path_factory.mktemp("page"))
    review(project)
    return write_page(project).as_uri()


@pytest.mark.parametrize(("width", "height"), [(360, 800), (1280, 900)])
@pytest.mark.parametrize("dark", [False, True])
def test_it_is_whole_at_every_size(browser, page, width, height, dark):
    browser.open(page, width, height, dark=dark)
    assert browser.troubles() == []
    assert browser.requests() == [page]
    browser.run("document.querySelectorAll('details').forEach(one => one.open = true)")
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert browser.run("document.querySelectorAll('.card').length") == 4
    assert browser.run("document.querySelectorAll('.card svg').length") == 3
    links = browser.run("[...document.querySelectorAll('nav a')].every(one => document.querySelector(one.hash))")
    assert links
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (background == "rgb(255, 255, 255)") is not dark
