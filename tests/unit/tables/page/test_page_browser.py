"""The page in a real browser: it draws, sorts and filters without an error, and asks for nothing."""

import csv
import io

import pytest

from harness.record import Outcome
from harness.tables.papers import lookup
from harness.tables.report import build as report
from harness.tables.report import render
from tests.support import browser as browsers
from tests.unit.tables.page.test_page import ROOT, hostile, made, records
from tests.unit.tables.report.test_report import fabricate

pytest.importorskip("plotly")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(browsers.program() is None, reason="no chromium on this machine"),
]

SCROLL = """(async () => {
  for (let y = 0; y < document.body.scrollHeight; y += 400) {
    scrollTo(0, y); await new Promise((done) => setTimeout(done, 40));
  }
  scrollTo(0, 0);
  for (let wait = 0; wait < 100 && document.querySelectorAll('.chart:not(.js-plotly-plot)').length; wait++)
    await new Promise((done) => setTimeout(done, 50));
})()"""


def until(condition):
    """Waits until something in the page is true, for at most ten seconds."""
    return (
        f"(async () => {{ for (let wait = 0; wait < 200 && !({condition}); wait++)"
        " await new Promise((done) => setTimeout(done, 50)); })()"
    )


PEAK = "[...document.querySelectorAll('table.sortable')].find((t) => t.textContent.includes('peak'))"
#: The rows that can be seen in that table, with the figure that the peak is sorted by.
SEEN = f"""[...{PEAK}.tBodies[0].rows].filter((row) => row.offsetParent !== null).map(
  (row) => [row.cells[0].textContent,
            row.querySelector('[data-key="peak_allocated_bytes_mean"]').dataset.value ?? null])"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    found = browsers.Browser(tmp_path_factory.mktemp("profile"))
    yield found
    found.close()


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A page with a row that failed and one that did so in part."""
    partly = [
        fabricate("partly", 0, peak=80.0),
        fabricate(
            "partly", 1, peak=80.0, outcome=Outcome(status="diverged", phase="train", message="loss is nan")
        ),
    ]
    long = [fabricate("a label of several words that goes on and on for quite a while", peak=70.0)]
    file = tmp_path_factory.mktemp("page") / "page.html"
    found = [*records(), *partly, *long]
    for record in found:
        if record.training:
            record.training.loss = [3.0, 2.0, 1.5]
        if record.parameters:
            record.parameters.ranks = {f"layers.{n}.self_attn.{k}": n + 3 for n in range(4) for k in "qkv"}
    file.write_text(made(found), encoding="utf-8")
    table = render.texts(report.build(found, baseline="full"))["csv"]
    return file, {line["method"]: line for line in csv.DictReader(io.StringIO(table))}


def opened(browser, path, width=1280, *, phone=False, dark=False):
    browser.size(width, 900, phone=phone)
    browser.dark(dark)
    browser.open(path[0])
    browser.run(SCROLL)


def test_every_chart_is_drawn_without_an_error_and_nothing_is_loaded(browser, path) -> None:
    opened(browser, path)
    places, drawn = browser.run(
        "['.chart', '.chart svg.main-svg'].map((s) => document.querySelectorAll(s).length)"
    )
    assert places > 6
    assert drawn >= places
    assert browser.errors == []
    assert [url for url in browser.loaded if not url.startswith("data:")] == [path[0].as_uri()]


def test_charts_are_drawn_when_they_come_near_and_all_of_them_on_one_press(browser, path) -> None:
    browser.size(1280, 500)
    browser.dark(False)
    browser.open(path[0])
    drawn, charts = (f"document.querySelectorAll('{one}').length" for one in (".js-plotly-plot", ".chart"))
    browser.run(until("document.querySelector('.chart .main-svg')"))
    browser.run("new Promise((done) => setTimeout(done, 500))")
    assert 0 < browser.run(drawn) < browser.run(charts)
    last = "[...document.querySelectorAll('.chart')].at(-1)"
    assert not browser.run(f"{last}.matches('.js-plotly-plot')")
    browser.run(f"{last}.scrollIntoView()")
    browser.run(until(f"{last}.querySelector('.main-svg')"))
    browser.run("new Promise((done) => setTimeout(done, 500))")
    assert browser.run(f"{last}.matches('.js-plotly-plot')")
    assert browser.run(drawn) < browser.run(charts)
    browser.run("document.getElementById('draw-all').focus()")
    browser.press("Enter", "\r")
    browser.run(until("document.getElementById('draw-all').disabled"))
    assert browser.run(drawn) == browser.run(charts)
    assert browser.errors == []


def test_the_table_of_the_browser_holds_the_numbers_of_the_csv(browser, path) -> None:
    opened(browser, path)
    for name, value in browser.run(SEEN):
        expected = path[1][name]["peak_allocated_bytes_mean"]
        assert (value is None) == (expected == "")
        assert value is None or float(value) == float(expected)


def test_a_heading_sorts_by_keyboard_and_says_so_and_failed_rows_stay_last(browser, path) -> None:
    opened(browser, path)
    suite = browser.run(SEEN)
    column = f"{PEAK}.querySelector('td[data-key=\"peak_allocated_bytes_mean\"]').cellIndex"
    head = f"{PEAK}.tHead.rows[0].cells[{column}]"
    browser.run(f"{head}.querySelector('button').focus()")
    outline = browser.run("getComputedStyle(document.activeElement).outlineStyle")
    for order, reverse in (("ascending", False), ("descending", True)):
        browser.press("Enter", "\r")
        assert browser.run(f"{head}.getAttribute('aria-sort')") == order
        values = [value for _, value in browser.run(SEEN)]
        numbers = [float(value) for value in values if value is not None]
        assert numbers == sorted(numbers, reverse=reverse)
        assert values[-1] is None
    assert browser.run("document.querySelectorAll('[aria-sort=descending]').length") == 1
    browser.press("Enter", "\r")
    assert browser.run(SEEN) == suite
    browser.press("Tab")
    assert browser.run("getComputedStyle(document.activeElement).outlineStyle") == "solid", outline


def test_the_filter_keeps_rows_with_all_words_and_those_that_failed(browser, path) -> None:
    opened(browser, path)

    def names(text, ending=""):
        browser.run(
            "((text, ending) => {"
            " const [t, e] = ['filter-text', 'filter-ending'].map((n) => document.getElementById(n));"
            " t.value = text; e.value = ending; t.dispatchEvent(new Event('input')); })"
            f"({text!r}, {ending!r})"
        )
        return [name for name, _ in browser.run(SEEN)]

    assert len(names("")) == 6
    assert names("SMALL") == ["small"]
    assert names("out memory") == ["broken"]
    assert sorted(names("", "failed")) == ["broken", "partly"]
    assert names("partly", "all") == []
    assert browser.run("document.getElementById('filter-count').textContent") == "0 of 6 rows"


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_scrolls_in_one_direction_and_wide_tables_in_their_box(browser, path, dark) -> None:
    opened(browser, path, 390, phone=True, dark=dark)
    assert browser.run("document.documentElement.scrollWidth") <= 390
    boxes = browser.run(
        "[...document.querySelectorAll('.box')].map((b) => [b.scrollWidth > b.clientWidth, b.tabIndex])"
    )
    assert any(wide for wide, _ in boxes)
    assert all(reached == 0 for _, reached in boxes)
    assert (
        browser.run("Math.max(...[...document.querySelectorAll('.chart')].map((c) => c.scrollWidth))") <= 390
    )


def test_text_and_charts_follow_light_and_dark(browser, path) -> None:
    opened(browser, path)
    colour = "getComputedStyle(document.querySelector('.chart .xtick text')).fill"
    ground = "getComputedStyle(document.body).backgroundColor"
    light = browser.run(f"[{ground}, {colour}]")
    browser.dark(True)
    browser.run("new Promise((done) => setTimeout(done, 500))")
    dark = browser.run(f"[{ground}, {colour}]")
    assert light == ["rgb(255, 255, 255)", "rgb(27, 31, 36)"]
    assert dark == ["rgb(20, 23, 27)", "rgb(230, 233, 237)"]


def test_legends_stand_below_the_title_of_the_axis(browser, path) -> None:
    opened(browser, path, 390, phone=True)
    gaps = browser.run(
        "[...document.querySelectorAll('.chart')].filter((c) => c.querySelector('.legend')).map((c) =>"
        " c.querySelector('.legend').getBoundingClientRect().top"
        " - c.querySelector('.xtitle').getBoundingClientRect().bottom)"
    )
    assert gaps
    assert min(gaps) >= -1


@pytest.mark.parametrize("width", [390, 1440])
def test_titles_of_axes_stand_clear_of_tick_labels(browser, path, width) -> None:
    opened(browser, path, width, phone=width < 600)
    checked, met = browser.run(
        """(() => {
          const box = (text) => text.getBoundingClientRect();
          const meet = (a, b) => a.left < b.right && b.left < a.right && a.top < b.bottom && b.top < a.bottom;
          let checked = 0; const met = [];
          for (const chart of document.querySelectorAll('.chart')) for (const axis of 'xy')
            for (const title of chart.querySelectorAll(`.${axis}title`))
              for (const tick of chart.querySelectorAll('.xtick text, .ytick text')) {
                checked += 1;
                if (meet(box(title), box(tick))) met.push([chart.id, title.textContent, tick.textContent]);
              }
          return [checked, met]; })()"""
    )
    assert checked > 50
    assert met == []


@pytest.mark.parametrize("width", [390, 1440])
def test_names_in_the_first_chart_stand_inside_it_and_not_on_one_another(browser, path, width) -> None:
    opened(browser, path, width, phone=width < 600)
    browser.run(until("document.querySelectorAll('#tradeoff-0 .annotation-text').length"))
    names = browser.run(
        "[...document.querySelectorAll('#tradeoff-0 .annotation-text')].map((t) => {"
        " const b = t.getBoundingClientRect(); return [t.textContent, b.left, b.right, b.top, b.bottom]; })"
    )
    left, right = browser.run(
        "(({ left, right }) => [left, right])(document.getElementById('tradeoff-0').getBoundingClientRect())"
    )
    assert sorted(name for name, *_ in names) == [
        "a label of several words…",
        "full",
        "partly",
        "poor",
        "small",
    ]
    for number, (name, l1, r1, t1, b1) in enumerate(names):
        assert left <= l1 < r1 <= right, name
        for other, l2, r2, t2, b2 in names[:number]:
            assert not (l1 < r2 and l2 < r1 and t1 < b2 and t2 < b1), (name, other)


def test_the_first_table_fits_a_desktop_and_shows_its_first_value_on_a_phone(browser, path) -> None:
    opened(browser, path, 1440)
    first = "document.querySelector('#results .box')"
    assert browser.run("document.documentElement.scrollWidth") <= 1440
    assert browser.run(f"{first}.scrollWidth <= {first}.clientWidth")
    assert browser.run(f"[...{first}.querySelectorAll('thead th')].slice(-2).map((h) => h.textContent)") == [
        "status",
        "seeds",
    ]
    opened(browser, path, 390, phone=True)
    values = browser.run(
        f"[...{first}.querySelectorAll('tbody td:nth-child(2)')].map((cell) =>"
        " [cell.dataset.key, cell.getBoundingClientRect().right])"
    )
    assert all(key == "perplexity_world-b_mean" and right <= 390 for key, right in values)
    # The names stay in their place when the others are scrolled.
    names = f"[...{first}.querySelectorAll('tbody th')].map((cell) => cell.getBoundingClientRect().left)"
    before = browser.run(names)
    browser.run(f"{first}.scrollLeft = 200")
    assert browser.run(names) == before


def test_printing_opens_the_commands_and_draws_in_light_colours(browser, path, tmp_path) -> None:
    browser.size(1280, 900)
    browser.dark(True)
    browser.open(path[0])
    browser.run(
        "window.seen = []; addEventListener('beforeprint', () => seen.push("
        "document.querySelectorAll('details:not([open])').length,"
        "document.querySelectorAll('.chart:not(.js-plotly-plot)').length,"
        "getComputedStyle(document.body).backgroundColor))"
    )
    browser.call("Emulation.setEmulatedMedia", media="print")
    assert browser.run("[...document.querySelectorAll('.ending')].every((said) => said.checkVisibility())")
    browser.dark(True)
    browser.printed(tmp_path / "page.pdf")
    assert browser.run("seen") == [0, 0, "rgb(255, 255, 255)"]
    assert (tmp_path / "page.pdf").read_bytes().startswith(b"%PDF")
    assert browser.run("document.querySelectorAll('details[open]').length") == 0
    assert browser.errors == []


def test_hostile_text_runs_nothing(browser, tmp_path) -> None:
    file = tmp_path / "hostile.html"
    file.write_text(made(hostile(), baseline=None), encoding="utf-8")
    browser.size(1280, 900)
    browser.open(file)
    browser.run(SCROLL)
    assert browser.errors == []
    assert browser.run("document.querySelectorAll('img:not([src^=\"data:\"]), .chart a').length") == 0
    assert browser.run("document.querySelector('h1').textContent").startswith("</script><script>alert(1)")
    # What was injected after the fact is refused by the policy of the page.
    browser.run("document.body.insertAdjacentHTML('beforeend', '<img src=x onerror=\"window.hit = 1\">')")
    browser.run(
        "{ const s = document.createElement('script'); s.textContent = 'window.hit = 1';"
        " document.body.append(s); }"
    )
    browser.run("new Promise((done) => setTimeout(done, 300))")
    assert browser.run("window.hit") is None
    assert any("Content Security Policy" in error for error in browser.errors)


def test_published_figures_are_filtered_by_words_and_verdict_and_stay_apart_from_rows(
    browser, tmp_path
) -> None:
    file = tmp_path / "published.html"
    found = records()
    for record in found:
        record.config["method"] = [{"name": "galore"}]
    file.write_text(made(found, published=lookup.sources(ROOT)), encoding="utf-8")
    browser.size(1280, 900)
    browser.open(file)

    def left(text, verdict=""):
        browser.run(
            "((text, verdict) => {"
            " const [t, v] = ['published-text', 'published-verdict'].map((n) => document.getElementById(n));"
            " t.value = text; v.value = verdict; t.dispatchEvent(new Event('input')); })"
            f"({text!r}, {verdict!r})"
        )
        return browser.run(
            "[[...document.querySelectorAll('tr[data-verdict]')].filter((r) => r.checkVisibility()).length,"
            " document.getElementById('published-count').textContent,"
            " document.querySelectorAll('details.cells[open]').length]"
        )

    all_of_them = browser.run("document.querySelectorAll('tr[data-verdict]').length")
    assert all_of_them > 60
    assert left("") == [0, f"{all_of_them} of {all_of_them} numbers", 0]
    some, said, opened_now = left("c4", "needs data")
    assert 0 < some < all_of_them
    assert said == f"{some} of {all_of_them} numbers"
    assert opened_now >= 1
    assert left("nowhere to be found")[0] == 0
    assert left("") == [0, f"{all_of_them} of {all_of_them} numbers", 0]
    assert browser.run("document.getElementById('filter-count').textContent") == "4 of 4 rows"
    assert browser.errors == []
