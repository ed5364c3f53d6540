"""The built book in headless Chromium, page by page, over http and from file://.

It tests _build/html as it is: `make book` (or `make pages`) makes it.
"""

import contextlib
import functools
import json
import math
import re
import threading
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import BrowserContext, Page

from rctaf import curvature

ROOT = Path(__file__).resolve().parent.parent
HTML = ROOT / "_build/html"

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text())
PAGES = [TOC["root"], *(chapter["file"] for part in TOC["parts"] for chapter in part["chapters"])]

ARGUMENTS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",  # a page that asks for more must fail, not succeed
]


def source(page: str) -> str:
    """The text an author wrote for a page: Markdown, and for a notebook its code too."""
    path = ROOT / f"{page}.ipynb"
    if path.exists():
        return "\n\n".join("".join(cell["source"]) for cell in json.loads(path.read_text())["cells"])
    return (ROOT / f"{page}.md").read_text()


def prose(page: str) -> str:
    path = ROOT / f"{page}.ipynb"
    if path.exists():
        cells = json.loads(path.read_text())["cells"]
        return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    return re.sub(r"```(bash|python)\n.*?```", "", source(page), flags=re.DOTALL)


WITH_MATH = [page for page in PAGES if re.search(r"\$[^$]+\$|\{math\}", prose(page))]
WITH_WIDGET = [page for page in PAGES if page.startswith("notebooks/") and "explorer(" in source(page)]
# figure 6 draws nothing until its grid has records; whatever it draws is checked all the same
WITH_PLOTS = [page for page in PAGES if re.fullmatch(r"notebooks/figures/(figure_[1-57]|controls)", page)]


@pytest.fixture(scope="session")
def html() -> Path:
    if not (HTML / "index.html").exists():
        pytest.fail("the book is not built: run `make book` first", pytrace=False)
    return HTML


@pytest.fixture(scope="session")
def http(html: Path) -> Iterator[str]:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=html)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="session")
def chromium(browsers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BrowserContext]:
    browser, path = browsers
    context = browser.launch_persistent_context(
        tmp_path_factory.mktemp("profile"),
        executable_path=path,
        headless=True,
        args=ARGUMENTS,
        viewport={"width": 1280, "height": 900},
        color_scheme="light",
    )
    yield context
    context.close()


@pytest.fixture(scope="session")
def phone(browsers) -> Iterator[BrowserContext]:
    browser, path = browsers
    started = browser.launch(executable_path=path, headless=True, args=ARGUMENTS)
    yield started.new_context(viewport={"width": 390, "height": 800}, is_mobile=True, has_touch=True)
    started.close()


def test_how_to_cite_is_what_the_citation_file_says():
    cited = re.search(r"```bibtex\n(.*?)```", source("book/intro"), re.DOTALL)[1].replace("{", "").replace("}", "")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    (paper,) = citation["references"]
    for words in (
        citation["title"],
        citation["version"],
        citation["license"],
        str(citation["date-released"].year),
        citation["authors"][0]["name"],
        paper["title"],
        paper["url"],
    ):
        assert words in cited


@contextlib.contextmanager
def opened(context: BrowserContext, base: str, page: str) -> Iterator[Page]:
    """A page, loaded and at rest; on leaving, anything it asked for outside the book or failed at is an error."""
    bad: list[str] = []
    tab = context.new_page()
    tab.set_default_timeout(60_000)  # a loaded machine is slow, not wrong
    inside = (base, "data:", "blob:")
    tab.on("request", lambda r: None if r.url.startswith(inside) else bad.append(f"outside request {r.url}"))
    tab.on("requestfailed", lambda r: bad.append(f"failed request {r.url} {r.failure}"))
    tab.on("response", lambda r: bad.append(f"status {r.status} {r.url}") if r.status >= 400 else None)
    tab.on("console", lambda m: bad.append(f"console {m.type}: {m.text}") if m.type == "error" else None)
    tab.on("pageerror", lambda error: bad.append(f"uncaught {error}"))
    try:
        tab.goto(f"{base}/{page}.html", wait_until="load")
        if page in WITH_WIDGET:
            tab.wait_for_selector(".rctaf-explorer polyline")
            tab.wait_for_selector(".rctaf-box [role=slider][aria-label]")
        drawn = "() => [...document.querySelectorAll('.plotly-graph-div')].every(p => p.querySelector('.main-svg'))"
        tab.wait_for_function(drawn)
        tab.wait_for_function("() => [...document.querySelectorAll('.math')].every(m => m.querySelector('.katex'))")
        tab.evaluate("() => document.fonts.ready.then(() => null)")
        yield tab
        tab.wait_for_timeout(200)  # for what the last action asked for
    finally:
        tab.close()
    assert bad == []


def check_complete(tab: Page, page: str) -> None:
    """Mathematics is typeset, and every plot that the file holds is drawn."""
    if page in WITH_MATH:
        assert tab.locator(".katex").count() > 0
    assert tab.locator(".katex-error").count() == 0
    assert tab.locator(".math:not(:has(.katex math))").count() == 0  # with MathML, for those who hear the page

    plots = tab.locator(".plotly-graph-div").all()
    assert len(plots) == (HTML / f"{page}.html").read_text().count('class="plotly-graph-div"')
    assert plots or page not in WITH_PLOTS
    drawn = ".scatterlayer .trace path, .barlayer path, .heatmaplayer image, .table"
    for plot in plots:
        assert plot.locator(drawn).count() > 0, "a plot without a drawn trace"
        assert plot.locator(".modebar-btn").count() == 3  # Plotly's own bar would send the figure to its cloud
        assert re.match(r"Figure: (.+; )?axes: .", plot.get_attribute("aria-label"))
        assert plot.locator(".main-svg:not([aria-hidden=true])").count() == 0  # a hundred numbers in a row


# titles, legends, names of axes and tool bars that reach out of their figure, or into each other
CUT_OFF = """() => [...document.querySelectorAll('.plotly-graph-div')].flatMap(plot => {
  const frame = plot.getBoundingClientRect();
  const parts = [...plot.querySelectorAll('.gtitle, .legend, .xtitle, .ytitle, .modebar')];
  const boxes = parts.map(part => [part.textContent, part.getBoundingClientRect()]);
  const inside = b => b.left >= frame.left - 1 && b.right <= frame.right + 1 && b.bottom <= frame.bottom + 1;
  const out = boxes.filter(([_, box]) => !inside(box));
  const apart = (a, b) => a.right <= b.left || b.right <= a.left || a.bottom <= b.top + 1 || b.bottom <= a.top + 1;
  const over = boxes.filter(([_, a], i) => boxes.some(([_, b], j) => i < j && !apart(a, b)));
  return [...out, ...over].map(([words]) => words);
})"""


# the lines that hold a max|σ″| of which a part stands on the next one, folded tables included
BROKEN = """() => {
  document.querySelectorAll('details').forEach(fold => { fold.open = true; });
  const texts = document.createTreeWalker(document.querySelector('.bd-article'), NodeFilter.SHOW_TEXT), found = [];
  for (let text; (text = texts.nextNode());) {
    for (const { index, 0: name } of text.data.matchAll(/max\\|σ″\\|/g)) {
      const range = document.createRange();
      range.setStart(text, index);
      range.setEnd(text, index + name.length);
      const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
      if (lines.size > 1) found.push(text.data);
    }
  }
  return found;
}"""


# the short formulas within a line that the stop or bracket after them does not stand beside
PARTED = """() => [...document.querySelectorAll('.bd-article span.math')].filter(math => {
  const parts = [...math.querySelectorAll('.katex-base')], after = math.nextSibling;
  const short = parts.length === 1 || parts.length > 1 && parts.map(part => part.textContent).join('').length < 10;
  if (!short || !/^[.,;:)\\]]/.test(after?.data ?? '')) return false;
  const range = document.createRange();
  range.setStart(after, 0);
  range.setEnd(after, 1);
  return range.getBoundingClientRect().left < parts.at(-1).getBoundingClientRect().right - 5;
}).map(math => math.textContent)"""


def serious_violations(tab: Page) -> list[str]:
    """What axe finds, serious or critical, on the whole page, the theme's own parts included.

    Left out: the bibliography, where docutils writes ``doc-biblioentry`` into a list and axe wants ``listitem``.
    """
    context = {"exclude": [[".citation-list"]]}
    options = {"preload": False, "resultTypes": ["violations"]}  # preload: axe would fetch the style sheets again
    return [
        f"{violation['id']}: {node['html'][:150]}"
        for violation in Axe().run(tab, context=context, options=options).response["violations"]
        if violation["impact"] in ("serious", "critical")
        for node in violation["nodes"]
    ]


@pytest.mark.parametrize("page", [*PAGES, "genindex", "py-modindex"])
def test_page_over_http(page, http, chromium):
    with opened(chromium, http, page) as tab:
        check_complete(tab, page)
        assert serious_violations(tab) == []
        tab.set_viewport_size({"width": 400, "height": 800})  # a telephone: nothing scrolls sideways but wide tables
        tab.wait_for_function(
            "() => [...document.querySelectorAll('.plotly-graph-div')].every(p => p.dataset.narrow === 'true')"
        )
        tab.wait_for_timeout(300)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 400
        assert tab.evaluate(CUT_OFF) == []
        assert tab.evaluate(BROKEN) == []
        assert tab.evaluate(PARTED) == []
        tab.set_viewport_size({"width": 320, "height": 800})  # what is left of 1280 where all is four times larger
        assert tab.evaluate("document.documentElement.scrollWidth") <= 320


@pytest.mark.parametrize("page", PAGES)
def test_page_from_a_file(page, html, chromium):
    with opened(chromium, html.as_uri(), page) as tab:
        check_complete(tab, page)


@pytest.mark.parametrize("scheme", ["http", "file"])
@pytest.mark.parametrize("page", WITH_WIDGET)
def test_widget_answers_the_keyboard(page, scheme, http, html, chromium):
    """Without a server or a kernel: the sliders move, the curves with them, and the number is the true one."""
    with opened(chromium, http if scheme == "http" else html.as_uri(), page) as tab:
        box = tab.locator(".rctaf-box").first
        curves = box.locator(".rctaf-explorer")

        def state() -> tuple[float, int, str, list[str]]:
            data = curves.evaluate("e => ({...e.dataset})")
            lines = [line.get_attribute("points") for line in box.locator("polyline.family").all()]
            assert float(data["curvature"]) == pytest.approx(
                curvature(float(data["alpha"]), int(data["beta"])), rel=1e-9
            )
            return float(data["alpha"]), int(data["beta"]), box.locator(".number").inner_text(), lines

        def press(label: str, key: str) -> None:
            box.get_by_role("slider", name=label).focus()
            before = curves.evaluate("e => e.dataset.alpha + ' ' + e.dataset.beta")
            tab.keyboard.press(key)
            tab.wait_for_function("([e, was]) => e.dataset.alpha + ' ' + e.dataset.beta !== was", arg=[handle, before])

        handle = curves.element_handle()
        start = state()
        press("α (sharpness)", "ArrowRight")
        sharper = state()
        assert sharper[0] > start[0]
        assert sharper[1] == start[1]
        press("β (order)", "ArrowRight")
        higher = state()
        assert higher[:2] == (sharper[0], start[1] + 1)
        press("α (sharpness)", "ArrowLeft")
        press("β (order)", "ArrowLeft")
        assert state() == start
        assert len({start[2], sharper[2], higher[2]}) == 3
        assert len(start[3]) == 3
        for one, other in ((start, sharper), (sharper, higher)):
            assert all(a != b for a, b in zip(one[3], other[3], strict=True))
        box.get_by_role("combobox").select_option("ReLU")
        box.locator("polyline.baseline").first.wait_for()


@pytest.mark.parametrize("page", WITH_WIDGET)
def test_a_typed_number_is_taken_as_it_is(page, http, chromium):
    with opened(chromium, http, page) as tab:
        box = tab.locator(".rctaf-box").first
        curves, readout = box.locator(".rctaf-explorer"), box.locator(".widget-readout").first
        for typed in (28, 14, 7, 50, 0.123):
            readout.fill(str(typed))
            readout.press("Enter")
            tab.wait_for_function("([e, typed]) => +e.dataset.alpha === typed", arg=[curves.element_handle(), typed])
            assert float(readout.inner_text()) == typed
            assert box.locator(".key").first.inner_text().endswith(f"α = {typed}")
        box.get_by_role("slider", name="α (sharpness)").press("PageUp")
        assert float(curves.get_attribute("data-alpha")) == pytest.approx(0.123 * 10**0.1, rel=1e-4)


RECORDS = "notebooks/figures/records"

AT = """([p, trace, i]) => {   // where on the screen a point is
  const [x, y] = [p._fullLayout.xaxis, p._fullLayout.yaxis], box = p.getBoundingClientRect();
  return [box.x + x._offset + x.d2p(p._fullData[trace].x[i]), box.y + y._offset + y.d2p(p._fullData[trace].y[i])];
}"""


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_a_point_leads_to_its_records(scheme, http, html, chromium):
    """A click on a point of Figure 3 shows the rows of its runs, and each row has its file; so does the table below."""
    base = http if scheme == "http" else html.as_uri()
    with opened(chromium, base, "notebooks/figures/figure_3") as tab:
        plot = tab.locator(".js-plotly-plot").first
        runs = plot.evaluate("p => p.data[0].customdata[0].split(' ')")
        tab.locator("details", has_text="the records behind each").first.locator("summary").click()
        for run_id in runs:
            assert tab.locator(f"a[href='../../records/{run_id}.json']").first.is_visible()
        plot.scroll_into_view_if_needed()
        x, y = tab.evaluate(AT, [plot.element_handle(), 0, 0])
        tab.mouse.move(x, y)
        plot.locator(".hoverlayer .hovertext").first.wait_for()
        assert f"{len(runs)} seeds" in plot.locator(".hoverlayer").text_content()
        tab.mouse.click(x, y)
        tab.wait_for_url("**/records.html#*")
        tab.wait_for_function("() => scrollY > 0")  # to the rows, which the text above would keep out of view
        assert 0 < tab.locator(".records-bar").bounding_box()["y"] < 200
        assert [row.get_attribute("id") for row in tab.locator("table.records tbody tr:visible").all()] == sorted(runs)
        for run_id in runs:
            link = tab.locator(f"tr[id='{run_id}'] a").get_attribute("href")
            record = json.loads((HTML / RECORDS).parent.joinpath(link).read_text())
            assert record["id"] == run_id


def test_a_double_click_on_a_point_zooms_out_and_stays(http, chromium):
    with opened(chromium, http, "notebooks/figures/figure_3") as tab:
        plot = tab.locator(".js-plotly-plot").first
        plot.scroll_into_view_if_needed()
        shown = "p => p._fullLayout.yaxis.range"
        whole = plot.evaluate(shown)
        box = plot.bounding_box()
        tab.mouse.move(box["x"] + 100, box["y"] + 120)
        tab.mouse.down()
        tab.mouse.move(box["x"] + 500, box["y"] + 250, steps=5)
        tab.mouse.up()
        tab.wait_for_function(
            "([p, whole]) => p._fullLayout.yaxis.range[0] > whole[0]", arg=[plot.element_handle(), whole]
        )
        inside = """p => [...p._fullData[0].y.keys()].find(i => {
          const at = axis => axis.d2p(p._fullData[0][axis._id][i]), {xaxis, yaxis} = p._fullLayout;
          return [xaxis, yaxis].every(axis => at(axis) > 5 && at(axis) < axis._length - 5);
        })"""
        tab.mouse.dblclick(*tab.evaluate(AT, [plot.element_handle(), 0, plot.evaluate(inside)]))
        tab.wait_for_timeout(1000)
        assert tab.url.endswith("figure_3.html")
        assert plot.evaluate(shown) == pytest.approx(whole)


def test_one_record_is_scrolled_to(http, chromium):
    """Its id is that of its row, to which the browser jumps by itself, past the headings."""
    run_id = sorted(path.stem for path in (HTML / "records").glob("*.json"))[-1]
    with opened(chromium, http, PAGES[0]) as tab:
        tab.goto(f"{http}/{RECORDS}.html#{run_id}", wait_until="load")
        tab.wait_for_timeout(500)
        assert 0 < tab.locator(".records-bar").bounding_box()["y"] < 200


def test_on_a_phone_the_second_tap_on_a_point_opens_its_records(http, phone):
    with opened(phone, http, "notebooks/figures/figure_3") as tab:
        plot = tab.locator(".js-plotly-plot").first
        plot.scroll_into_view_if_needed()
        label = plot.locator(".hoverlayer .hovertext")
        for point in (0, 4):  # the first tap on another point opens nothing either
            tab.touchscreen.tap(*tab.evaluate(AT, [plot.element_handle(), 0, point]))
            label.first.wait_for()
            tab.wait_for_timeout(500)
            assert tab.url.endswith("figure_3.html")
        runs = plot.evaluate("p => p.data[0].customdata[4].split(' ').join(',')")
        tab.touchscreen.tap(*tab.evaluate(AT, [plot.element_handle(), 0, 4]))
        tab.wait_for_url(f"**/records.html#{runs}")
        tab.locator(".records-bar").wait_for()


def test_on_a_phone_a_finger_on_a_figure_scrolls_the_page(http, phone):
    with opened(phone, http, "notebooks/figures/figure_3") as tab:
        plot = tab.locator(".js-plotly-plot").first
        plot.scroll_into_view_if_needed()
        box, before = plot.bounding_box(), tab.evaluate("scrollY")
        x, y = box["x"] + 150, box["y"] + 300
        touch = phone.new_cdp_session(tab)
        touch.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [{"x": x, "y": y}]})
        for step in range(1, 16):
            there = {"x": x, "y": y - 12 * step}
            touch.send("Input.dispatchTouchEvent", {"type": "touchMove", "touchPoints": [there]})
        touch.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
        tab.wait_for_function("before => scrollY > before + 100", arg=before)


@pytest.mark.parametrize("page", WITH_PLOTS)
def test_on_a_phone_a_label_fits(page, http, phone):
    """Those of the first and the last point and of one between, of every line whose points name their runs."""
    outside = """async () => {
      const found = [];
      for (const plot of document.querySelectorAll('.plotly-graph-div')) {
        for (const [curveNumber, trace] of plot._fullData.entries()) {
          for (const part of trace.customdata ? [0, 0.5, 1] : []) {
            const pointNumber = Math.floor(part * (trace.x.length - 1));
            Plotly.Fx.hover(plot, [{ curveNumber, pointNumber }], trace.xaxis + trace.yaxis);
            await new Promise(resolve => setTimeout(resolve, 60));  // Plotly takes no other for 50 ms
            const frame = plot.getBoundingClientRect();
            const boxes = [...plot.querySelectorAll('.hovertext')].map(label => label.getBoundingClientRect());
            const inside = box => box.left >= frame.left - 4 && box.right <= frame.right + 4;  // but for its margin
            const fits = boxes.length > 0 && boxes.every(inside);
            if (!fits) found.push(trace.text?.[pointNumber] ?? trace.name);
          }
        }
      }
      return found;
    }"""
    with opened(phone, http, page) as tab:
        assert tab.evaluate(outside) == []


def test_a_logarithmic_axis_has_numbers_enough_of_one_size(http, chromium):
    with opened(chromium, http, "notebooks/figures/figure_7") as tab:
        axes = tab.evaluate("""() => [...document.querySelectorAll('.plotly-graph-div')]
          .filter(plot => plot._fullLayout.yaxis.type === 'log')
          .map(plot => [...plot.querySelectorAll('.ytick text')])
          .map(texts => texts.map(text => [+text.textContent, getComputedStyle(text).fontSize]))""")
        assert axes
        for numbers in axes:
            assert len(numbers) >= 3
            assert len({size for _, size in numbers}) == 1
            assert all(number > 0 for number, _ in numbers)


def test_the_table_of_records_sorts_and_filters(http, chromium):
    with opened(chromium, http, RECORDS) as tab:
        rows = tab.locator("table.records tbody tr")
        everything = rows.count()
        heads = tab.locator("table.records thead button").all_inner_texts()
        column = heads.index("clean %") + 1

        def values() -> list[float]:
            texts = tab.locator(f"table.records tbody tr:visible td:nth-child({column})").all_inner_texts()
            return [float(text) for text in texts if text != "–"]

        for order in (False, True):
            tab.get_by_role("button", name="clean %").click()
            assert values() == sorted(values(), reverse=order)
        tab.get_by_label("Show rows with").fill("relu SEED")
        assert tab.locator("table.records tbody tr:visible").count() == 0
        tab.get_by_label("Show rows with").fill("relu ResNet-8")
        visible = tab.locator("table.records tbody tr:visible").all_inner_texts()
        assert visible
        assert all("ReLU" in text and "ResNet-8" in text for text in visible)
        assert tab.locator(".records-bar output").inner_text() == f"{len(visible)} of {everything} records"
        tab.get_by_role("button", name="Show all").click()
        assert tab.locator("table.records tbody tr:visible").count() == everything

        docs = [json.loads(path.read_text()) for path in (HTML / "records").glob("*.json")]

        def largest(doc):  # ELU and GELU have their own, by their sharpness
            of_other = {"elu": 1.0, "gelu": math.sqrt(2 / math.pi)}.get(doc["config"]["activation"])
            return of_other * doc["config"].get("sharpness", 1.0) if of_other else doc["metrics"]["curvature"]

        for asked, holds in {
            "seed=3": lambda config, _: config["seed"] == 3,
            "SEED=3 max|σ″|=7": lambda config, c: config["seed"] == 3 and c == pytest.approx(7),
            "curvature=7 network=wrn": lambda config, c: config["network"].startswith("wrn") and c == pytest.approx(7),
        }.items():
            tab.get_by_label("Show rows with").fill(asked)
            found = {row.get_attribute("id") for row in tab.locator("table.records tbody tr:visible").all()}
            assert found == {doc["id"] for doc in docs if holds(doc["config"], largest(doc))}
            assert found


@pytest.mark.parametrize("width", [360, 1280])
def test_the_headings_of_the_records_and_their_filter_stay_in_view(width, http, chromium):
    with opened(chromium, http, RECORDS) as tab:
        tab.set_viewport_size({"width": width, "height": 800})
        tab.locator(".records-frame").evaluate("e => { e.scrollTo(500, 2000); e.scrollIntoView({block: 'end'}); }")
        last = tab.locator("table.records thead th").nth(7)
        for part in (tab.get_by_label("Show rows with"), last):
            box = part.bounding_box()
            assert 0 <= box["x"] <= width
            assert 0 <= box["y"] <= 800 - box["height"]
        assert tab.locator(".records-frame").evaluate("e => e.scrollTop") > 1000
        box = tab.get_by_label("Show rows with").bounding_box()
        assert box["x"] + box["width"] <= width


def test_on_a_desktop_the_results_are_in_view(http, chromium):
    """Those of Tables 1 and 2, and clean and robust accuracy in the table of records: nobody need scroll for them."""
    for page in ("table_1", "table_2"):
        with opened(chromium, http, f"notebooks/figures/{page}") as tab:
            for table in tab.locator(".output > table.table").all():
                assert table.evaluate("e => e.parentElement.scrollWidth <= e.parentElement.clientWidth")
    with opened(chromium, http, RECORDS) as tab:
        frame = tab.locator(".records-frame").bounding_box()
        for name in ("clean %", "APGD-CE + APGD-T %", "AutoAttack %"):
            head = tab.get_by_role("columnheader", name=name).bounding_box()
            assert head["x"] + head["width"] <= frame["x"] + frame["width"]


def test_on_a_phone_the_cells_of_a_verdict_stand_below_each_other(http, chromium):
    with opened(chromium, http, "notebooks/figures/summary") as tab:
        tab.set_viewport_size({"width": 400, "height": 800})
        table = tab.locator("table.verdicts").first
        table.evaluate("e => { e.closest('details').open = true; }")
        cells = [cell.bounding_box() for cell in table.locator("tbody tr").first.locator("td").all()]
        assert min(cell["width"] for cell in cells) > 300
        assert [cell["y"] for cell in cells] == sorted({cell["y"] for cell in cells})


@pytest.mark.parametrize("table", ["1", "2"])
def test_on_a_phone_the_first_column_of_a_table_stays(table, http, chromium):
    with opened(chromium, http, f"notebooks/figures/table_{table}") as tab:
        tab.set_viewport_size({"width": 400, "height": 800})
        shown = tab.locator(".output table.table").first
        cell = shown.locator("tbody td").first
        before = cell.bounding_box()
        assert shown.evaluate("e => { e.parentElement.scrollLeft = 1000; return e.parentElement.scrollLeft; }") > 50
        assert cell.bounding_box()["x"] == pytest.approx(before["x"], abs=1)
        end = shown.locator("tbody tr").first.locator("td").last.bounding_box()
        assert end["x"] + end["width"] <= 400


def test_the_numbers_of_a_table_stand_below_its_headings(http, chromium):
    with opened(chromium, http, "notebooks/explore") as tab:
        sides = tab.evaluate("""() => [...document.querySelectorAll('table.dataframe :is(td, th)')]
          .map(cell => getComputedStyle(cell).textAlign)""")
        assert sides
        assert set(sides) == {"right"}


def test_a_dark_page_is_printed_light(http, chromium):
    """Its figures too, at once: a browser does not wait when it prints."""
    with opened(chromium, http, "notebooks/figures/figure_3") as tab:
        tab.emulate_media(color_scheme="dark")
        parts = "[document.documentElement, ...document.querySelectorAll('.plotly-graph-div')]"
        dark = f"() => {parts}.every(part => part.dataset.theme === 'dark')"
        tab.wait_for_function(dark)
        note = f"window.printed = {parts}.map(part => part.dataset.theme)"
        tab.evaluate(f"() => addEventListener('beforeprint', () => {{ {note}; }})")  # the last to hear of it
        tab.pdf()
        assert set(tab.evaluate("printed")) == {"light"}
        tab.wait_for_function(dark)


@pytest.mark.parametrize("page", ["notebooks/figures/figure_3", "notebooks/explore"])
def test_figures_fit_the_sheet_and_are_as_before_after_printing(page, http, chromium):
    with opened(chromium, http, page) as tab:
        before = tab.evaluate("document.querySelector('.bd-article').outerHTML")
        tab.evaluate("() => dispatchEvent(new Event('beforeprint'))")
        tab.emulate_media(media="print")
        tab.set_viewport_size({"width": 700, "height": 1000})
        boxes = tab.evaluate("""() => [...document.querySelectorAll('.main-svg, .rctaf-explorer svg')]
          .map(svg => [svg.viewBox.baseVal, svg.getBoundingClientRect(), svg.closest('.cell_output').clientWidth])
          .filter(([, box]) => box.width)
          .map(([drawn, box, room]) => [drawn.width / drawn.height, box.width / box.height, box.width - room])""")
        assert boxes
        for drawn, shown, beyond in boxes:
            assert shown == pytest.approx(drawn, rel=0.01)  # whole
            assert beyond <= 1
        tab.set_viewport_size({"width": 1280, "height": 900})
        tab.emulate_media(media="screen")
        tab.pdf()
        tab.wait_for_timeout(1000)
        assert tab.evaluate("document.querySelector('.bd-article').outerHTML") == before


def test_the_table_of_records_is_not_printed(http, chromium):
    with opened(chromium, http, RECORDS) as tab:
        shown = tab.locator(".records-frame"), tab.get_by_text("is not printed")
        assert [part.is_visible() for part in shown] == [True, False]
        tab.emulate_media(media="print")
        assert [part.is_visible() for part in shown] == [False, True]


def test_a_handle_can_be_grabbed_beside_what_is_drawn(http, chromium):
    """24 pixels are what WCAG 2.2 asks for; the handle is drawn smaller."""
    with opened(chromium, http, "notebooks/explore") as tab:
        tab.wait_for_selector(".noUi-handle")
        grabbed = tab.evaluate("""() => { const handle = document.querySelector('.noUi-handle');
          const box = handle.getBoundingClientRect(), x = box.x + box.width / 2, y = box.y + box.height / 2;
          return [[-11.5, 0], [11.5, 0], [0, -11.5], [0, 11.5]].map(
            ([dx, dy]) => handle.contains(document.elementFromPoint(x + dx, y + dy))); }""")
        assert grabbed == [True] * 4


def test_the_place_of_the_widget_is_kept(http, chromium):
    """What stands below it is where it is before it is drawn, but for a line, and nothing is empty."""
    with opened(chromium, http, "notebooks/explore") as tab:
        for width in (390, 600, 1280):
            tab.set_viewport_size({"width": width, "height": 900})
            tab.wait_for_timeout(300)
            place, widget = (
                tab.locator(f".cell_output{name}").first for name in (":has(.rctaf-box)", " .widget-subarea")
            )
            kept = float(place.evaluate("e => getComputedStyle(e).minHeight").removesuffix("px"))
            assert 0 <= widget.bounding_box()["height"] - kept < 30


def test_a_page_says_what_is_missing_without_scripts(html, browsers):
    browser, path = browsers
    started = browser.launch(executable_path=path, headless=True, args=ARGUMENTS)
    tab = started.new_context(java_script_enabled=False).new_page()
    for page in ("notebooks/explore", "notebooks/figures/figure_4"):
        tab.goto(f"{html.as_uri()}/{page}.html")
        assert tab.locator("noscript p").is_visible()
        assert tab.locator(".plotly-graph-div:visible").count() == 0
        assert tab.locator(".math:not(:has(.katex math))").count() == 0
    started.close()


def test_index_opens_the_first_page(http, chromium):
    tab = chromium.new_page()
    tab.goto(f"{http}/index.html")
    tab.wait_for_url(f"{http}/{TOC['root']}.html")
    assert tab.title() == "Curvature and robustness"
    assert tab.locator("meta[name=description]").get_attribute("content")
    tab.close()


def luminance(colour: str) -> float:
    """Relative luminance of a CSS colour (WCAG 2)."""
    channels = [int(value) / 255 for value in re.findall(r"\d+", colour)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


BEHIND = """element => {   // the colour that an element's text stands on
  for (let e = element; e; e = e.parentElement) {
    const colour = getComputedStyle(e).backgroundColor;
    if (!/, 0\\)$/.test(colour)) return colour;
  }
}"""


@pytest.mark.parametrize("page", list(dict.fromkeys([PAGES[0], *WITH_PLOTS, *WITH_WIDGET])))
def test_dark_mode_keeps_plots_readable(page, http, chromium):
    with opened(chromium, http, page) as tab:
        for theme in ("light", "dark"):
            for _ in range(3):  # the button goes round light, dark and automatic
                if tab.evaluate("document.documentElement.dataset.theme") == theme:
                    break
                tab.locator(".theme-switch-button:visible").first.click()
            assert tab.evaluate("document.documentElement.dataset.theme") == theme
            background = tab.evaluate("getComputedStyle(document.body).backgroundColor")
            assert (luminance(background) < 0.1) == (theme == "dark")
            tab.wait_for_function(
                "t => [...document.querySelectorAll('.plotly-graph-div')].every(p => p.dataset.theme === t)", arg=theme
            )
            texts = ".plotly-graph-div .xtick text, .plotly-graph-div .gtitle, .rctaf-explorer svg text"
            for text in tab.locator(texts).all():
                colours = text.evaluate("e => getComputedStyle(e).fill"), text.evaluate(BEHIND)
                assert contrast(*colours) >= 4.5, f"{text.text_content()}: {colours} in the {theme} theme"
        tab.evaluate("localStorage.clear()")
