"""The widget: its Python half, and its drawing in a real browser against the exact curvature. The whole chain with the
widget manager, as published, is tested with the book."""

import re

import pytest
import torch
from ipywidgets.embed import dependency_state

from rctaf import explorer, rctaf
from rctaf.symbolic import BASELINES


def parts(box):
    return {type(child).__name__: child for child in box.children}


def test_sliders_are_linked_in_the_browser():
    """The state the static page is made from holds a link from each control to the drawing, and its start values."""
    box = explorer.explorer(alpha=10, beta=2)
    found = parts(box)
    state = dependency_state([box], drop_defaults=False)
    links = [model["state"] for model in state.values() if model["model_name"] == "LinkModel"]
    ends = {(link["source"][0], link["source"][1], link["target"][0], link["target"][1]) for link in links}
    curves = f"IPY_MODEL_{found['Curves'].model_id}"
    assert ends == {
        (f"IPY_MODEL_{found[control].model_id}", value, curves, trait)
        for control, value, trait in [
            ("FloatLogSlider", "value", "alpha"),
            ("IntSlider", "value", "beta"),
            ("Dropdown", "index", "baseline"),
        ]
    }
    drawing = state[found["Curves"].model_id]["state"]
    assert (drawing["alpha"], drawing["beta"], drawing["baseline"]) == (10, 2, 0)
    assert (found["IntSlider"].min, found["IntSlider"].max) == (0, 4)


def test_choices_and_formulas_are_in_one_order():
    options = parts(explorer.explorer())["Dropdown"].options
    assert options == ("none", *(explorer.LABELS[name] for name in BASELINES))


@pytest.mark.parametrize("bad", [{"alpha": 0.05}, {"alpha": 101}, {"beta": 5}, {"beta": -1}])
def test_values_outside_the_sliders_are_refused(bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=f"{name} must .* got {value}"):
        explorer.explorer(**bad)


PAGE = """<!doctype html><meta charset="utf-8"><body><div class="rctaf-box" style="width:700px">
<div class="widget-slider"><label class="widget-label">α (sharpness)</label><div role="slider"></div>
<div class="widget-readout"></div></div>
<div class="widget-slider"><label class="widget-label">β (order)</label><div role="slider"></div>
<div class="widget-readout"></div></div><div id="here"></div></div></body>"""

# A stand-in for the widget manager's model: values and change events, nothing else.
START = """async (source) => {
  const url = URL.createObjectURL(new Blob([source], {type: "text/javascript"}));
  const widget = (await import(url)).default, values = {alpha: 1, beta: 1, baseline: 0}, listeners = {};
  const model = {get: (name) => values[name], on: (name, f) => { listeners[name] = f; }};
  widget.render({model, el: document.getElementById("here")});
  globalThis.change = (name, value) => { values[name] = value; listeners["change:" + name](); };
}"""


@pytest.fixture(scope="module")
def page(browsers):
    chromium, path = browsers
    browser = chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
    page = browser.new_page(viewport={"width": 1000, "height": 800})
    errors = []
    page.on("pageerror", lambda error: errors.append(error))
    page.set_content(PAGE)
    page.evaluate(START, explorer.source())
    yield page
    browser.close()
    assert errors == []


def change(page, **values):
    for name, value in values.items():
        page.evaluate("([name, value]) => change(name, value)", [name, value])
    return page.evaluate("() => ({...document.querySelector('.rctaf-explorer').dataset})")


def drawn_peak(page):
    """max|σ″| read from the pixels of the third panel: the top of the curve against two tick labels."""
    return page.evaluate("""() => {
      const svg = document.querySelectorAll('.panels svg')[2];
      const ticks = [...svg.querySelectorAll('text[text-anchor=end]')];
      const [[v0, y0], [v1, y1]] = [ticks[0], ticks.at(-1)].map(
        (tick) => [+tick.textContent.replace('−', '-'), +tick.getAttribute('y') - 4]);
      const points = svg.querySelector('polyline.family').getAttribute('points').split(' ');
      const top = Math.min(...points.map((point) => +point.split(',')[1]));
      return v0 + (top - y0) / (y1 - y0) * (v1 - v0);
    }""")


@pytest.mark.parametrize("beta", range(5))
@pytest.mark.parametrize("alpha", [0.1, 1.0, 14.0, 100.0])
def test_number_zone_and_curve(page, alpha, beta):
    data = change(page, alpha=alpha, beta=beta, baseline=0)
    curvature = alpha * 2.0 ** (beta - 2)
    assert float(data["curvature"]) == pytest.approx(curvature, rel=1e-12)
    assert data["zone"] == ("below" if curvature < 4 else "above" if curvature > 10 else "inside")
    assert f"{float(f'{curvature:.3g}'):g}" in page.locator("[aria-live=polite]").inner_text()
    # a tenth of a pixel in a panel of 167, over an axis at most 5 times the peak
    assert drawn_peak(page) == pytest.approx(curvature, rel=0.01)


def test_baselines_are_drawn_and_named(page):
    for index, name in enumerate(BASELINES, start=1):
        data = change(page, baseline=index)
        assert data["baseline"] == name
        assert page.locator(".panels polyline.baseline").count() == 3
        assert explorer.LABELS[name] in page.locator(".key.other").inner_text()
    assert change(page, baseline=0)["baseline"] == "none"
    assert page.locator("polyline.baseline").count() == 0


def test_a_kink_lies_beyond_the_end_of_the_scale(page):
    """The mark of a baseline: on the scale where max|σ″| is finite, right of its end for a kink, and no number."""
    place = """() => {
      const gauge = document.querySelector('.gauge'), line = gauge.querySelector('line.zero').getBoundingClientRect();
      return [gauge.querySelector('path').getBoundingClientRect().left, line.right, gauge.textContent];
    }"""
    names = list(BASELINES)
    change(page, alpha=1.0, beta=1, baseline=1 + names.index("relu"))
    mark, end, text = page.evaluate(place)
    assert mark > end
    assert "∞" not in text
    change(page, baseline=1 + names.index("mish"))
    mark, end, _ = page.evaluate(place)
    assert mark < end
    change(page, baseline=0)


def test_controls_have_names_and_values(page):
    change(page, alpha=7.0, beta=3)
    page.wait_for_function("document.querySelector('[role=slider]').getAttribute('aria-valuetext') === '7'")
    sliders = page.locator("[role=slider]")
    assert [s.get_attribute("aria-label") for s in sliders.all()] == ["α (sharpness)", "β (order)"]
    assert sliders.nth(1).get_attribute("aria-valuetext") == "3"
    assert page.locator(".widget-readout:not([aria-label])").count() == 0
    assert page.locator("svg[role=img]:not([aria-label])").count() == 0


def test_a_finger_reads_both_curves_and_the_reading_stays(page):
    change(page, alpha=14.0, beta=1, baseline=1 + list(BASELINES).index("relu"))
    panel = page.locator(".panels svg").first
    box, name = panel.bounding_box(), panel.locator(".title").text_content()
    there = {"clientX": box["x"] + box["width"] * 0.7, "clientY": box["y"] + 90, "pointerType": "touch"}
    panel.dispatch_event("pointerdown", there)
    panel.dispatch_event("pointerleave", there)
    at, own, other = map(float, re.findall(r"\d+\.\d+", panel.locator(".title").text_content()))
    assert (own, other) == (
        pytest.approx(float(rctaf(torch.tensor(at), 14.0, 1)), abs=0.02),
        pytest.approx(at, abs=0.02),
    )
    panel.dispatch_event("pointerleave", there | {"pointerType": "mouse"})
    assert panel.locator(".title").text_content() == name
    change(page, baseline=0)


def test_redraw_is_fast(page):
    """Under 50 ms, the median of 20: the drawing must follow a slider that is being dragged."""
    times = page.evaluate("""() => Array.from({length: 20}, (_, i) => {
      const start = performance.now();
      change('alpha', 1 + i);
      return performance.now() - start;
    }).sort((a, b) => a - b)""")
    assert times[10] < 50
