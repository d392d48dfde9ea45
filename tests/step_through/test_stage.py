"""The stage in a real browser: where it stands, what can be changed on it, and that it shows the engine's numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from axe_playwright_python.sync_playwright import Axe

import gimli_core as gimli
from gimli_core.step_through.lessons.index import save_pages
from gimli_core.step_through.lessons.lesson import KINDS
from gimli_core.step_through.page.experiments import Experiments
from gimli_core.step_through.page.trace import Trace
from tests.problems import failing, network
from tests.step_through.pages import Open, Pages, lesson, settled

WIDE, PHONE = {"width": 1366, "height": 768}, {"width": 390, "height": 844}
NARROW = {"width": 320, "height": 640}
PARTS = ["map", "step", "strip", "now", "controls"]
QUICK = ["momentum"]  # the others are among the long tests
LESSONS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.long) for name in gimli.lessons.LESSONS]
VIOLATIONS = {"resultTypes": ["violations"]}  # all rules apply; what passes is not described: two fifths of the time
RECTANGLES = """ids => ids.map(id => { const b = document.getElementById(id).getBoundingClientRect();
    return [b.x, b.y, b.right, b.bottom].map(Math.round); })"""
UNDER_A_BOX = """() => { const at = e => e.getBoundingClientRect();
    const rects = [...document.querySelectorAll('#step .box rect')].map(at);
    return [...document.querySelectorAll('#step .label.lit text')].filter(e => e.textContent).filter(e => {
      const a = e.getBoundingClientRect(), y = (a.top + a.bottom) / 2;
      return rects.some(b => y > b.top && y < b.bottom
        && Math.min(a.right, b.right) - Math.max(a.left, b.left) > 2);
    }).map(e => e.textContent); }"""


def go(page: Any, address: str) -> None:
    """To an address within the page; back once the page has followed it."""
    page.evaluate(
        """address => new Promise(done => { addEventListener('hashchange', () => setTimeout(done, 0), {once: true});
           setTimeout(done, 500); location.hash = address; })""",
        address,
    )


def overlap(a: list[int], b: list[int]) -> bool:
    return min(a[2], b[2]) - max(a[0], b[0]) > 1 and min(a[3], b[3]) - max(a[1], b[1]) > 1


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("name", LESSONS)
def test_the_stage_fills_the_first_screen_and_never_moves(
    opened: Open, lesson_page: Pages, name: str, viewport: dict[str, int]
) -> None:
    page = opened(lesson_page(name), viewport=viewport)
    first = page.evaluate(RECTANGLES, [*PARTS, "cards"])
    *stage, cards = first
    assert all(x >= 0 and y >= 0 and r <= viewport["width"] and b <= viewport["height"] for x, y, r, b in stage)
    assert cards[1] + 64 <= viewport["height"]  # on a phone a long line of the algorithm leaves them their beginning
    assert not any(overlap(a, b) for n, a in enumerate(first) for b in first[:n])
    for _ in range(int(page.get_attribute("#slider", "max"))):
        page.keyboard.press("ArrowRight")
    assert page.evaluate(RECTANGLES, [*PARTS, "cards"]) == first
    seen = page.evaluate(
        """([ids, rectangles]) => { const slider = document.getElementById('slider'), seen = new Set();
           for (let i = 0; i <= Number(slider.max); i++) { slider.value = i; slider.dispatchEvent(new Event('input'));
             seen.add(JSON.stringify(eval(rectangles)(ids))); } return [...seen]; }""".replace(
            "eval(rectangles)", f"({RECTANGLES})"
        ),
        [[*PARTS, "cards"], ""],
    )
    assert [json.loads(text) for text in seen] == [first]
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]


def test_the_next_line_is_written_before_its_key_is_pressed(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("momentum"), "#line=13&j=5", viewport=PHONE)
    settled(page)
    changes = page.evaluate(
        """() => { const watch = new MutationObserver(() => {});
           watch.observe(document.getElementById('formula'), {subtree: true, childList: true, characterData: true,
             attributes: true});
           document.getElementById('next').click();
           return watch.takeRecords().map(r => [r.type, r.attributeName, r.target.classList.contains('sheet')]); }"""
    )
    assert {tuple(change) for change in changes} == {
        ("attributes", "class", True),
        ("attributes", "aria-hidden", True),
    }
    assert page.locator(".sheet:not([aria-hidden])").count() == 1
    assert page.text_content(".current h2") == "Line 14, step 5backward"


def test_a_change_of_layout_leaves_the_moments_numbers(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("momentum"), "#line=14&j=5", viewport=WIDE)
    before = page.text_content("#formula .current")
    page.keyboard.press("p")
    page.set_viewport_size(PHONE)
    assert page.text_content("#formula .current") == before


@pytest.mark.parametrize("viewport", [WIDE, PHONE, NARROW], ids=["wide", "phone", "narrow"])
@pytest.mark.parametrize("name", LESSONS)
def test_the_line_is_shown_whole(opened: Open, lesson_page: Pages, name: str, viewport: dict[str, int]) -> None:
    page = opened(lesson_page(name), viewport=viewport)
    cut = page.evaluate(
        """() => { const slider = document.getElementById('slider'), cut = {};
           const parts = () => document.querySelectorAll('#formula, .current .line-text');
           for (let i = 0; i <= Number(slider.max); i++) { slider.value = i; slider.dispatchEvent(new Event('input'));
             if ([...parts()].some((f) => f.scrollHeight > f.clientHeight + 1 || f.scrollWidth > f.clientWidth + 1))
               cut[document.getElementById('where').textContent.split(' · ')[0]] = true; }
           return Object.keys(cut); }"""
    )
    assert cut == []


@pytest.mark.parametrize("name", LESSONS)
def test_no_drawing_has_a_bare_underscore(opened: Open, lesson_page: Pages, name: str) -> None:
    page = opened(lesson_page(name), "#line=14&j=1", viewport=WIDE)
    settled(page)
    labels = page.locator("svg text").all_text_contents()
    assert "step j" in labels
    assert [text for text in labels if "_" in text] == []


def test_presenting_begins_at_the_top_and_needs_no_scrolling(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("momentum"), viewport=WIDE)
    page.evaluate("scrollTo(0, 400)")
    page.keyboard.press("p")
    assert page.evaluate("scrollY") == 0
    assert page.evaluate("document.documentElement.scrollHeight") <= WIDE["height"]
    page.keyboard.press("Escape")
    assert not page.evaluate("document.documentElement.classList.contains('presentation')")


def test_the_whole_path_stands_on_the_map_from_the_start(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("quadratic"), viewport=WIDE)
    assert page.locator("#map .rest").get_attribute("d").count("L") == 8
    assert page.locator("#map title", has_text="where the run ends").count() == 1
    page.keyboard.press("End")
    assert page.locator("#map .rest").count() == 0


@pytest.mark.parametrize("viewport", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("name", ["momentum", "exploding"])
def test_what_an_arrow_carries_is_not_under_a_box(
    opened: Open, lesson_page: Pages, name: str, viewport: dict[str, int]
) -> None:
    page = opened(lesson_page(name), viewport=viewport)
    for address in ("line=11&j=4", "line=14&j=4"):
        go(page, address)
        assert page.evaluate(UNDER_A_BOX) == []


@pytest.mark.parametrize("viewport", [PHONE, NARROW], ids=["phone", "narrow"])
def test_nothing_covers_anything_at_any_scroll_position_on_a_phone(
    opened: Open, lesson_page: Pages, viewport: dict[str, int]
) -> None:
    page = opened(lesson_page("momentum"), viewport=viewport)
    settled(page)
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    covered = page.evaluate(
        """() => { const all = () => [...document.querySelectorAll('.top, .panel, #cards, .more > *')]
             .filter(e => e.offsetParent).map(e => e.getBoundingClientRect());
           const height = document.documentElement.scrollHeight - innerHeight, bad = [];
           for (let k = 0; k < 100; k++) { scrollTo(0, height * k / 99); const boxes = all();
             boxes.forEach((a, n) => boxes.slice(0, n).forEach(b => {
               if (Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                   && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1) bad.push(k); })); }
           return bad; }"""
    )
    assert covered == []


@pytest.mark.parametrize(
    ("viewport", "scheme"),
    [(WIDE, "light"), (PHONE, "dark"), (WIDE, "dark"), (PHONE, "light"), (NARROW, "light")],
    ids=str,
)
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "momentum" else pytest.mark.long) for n in gimli.lessons.LESSONS]
)
def test_axe_finds_nothing_serious(
    opened: Open, lesson_page: Pages, name: str, viewport: dict[str, int], scheme: str
) -> None:
    if name == "momentum" and (viewport, scheme) in ((WIDE, "dark"), (PHONE, "light")):
        pytest.skip("the other three combinations are enough for a quick run; the long lessons have all five")
    page = opened(lesson_page(name), viewport=viewport, color_scheme=scheme)
    for address in ("card=6&closed=curvature&line=11&j=1", "card=2&line=14&j=2"):
        go(page, address)
        settled(page)
        violations = Axe().run(page, options=VIOLATIONS).response["violations"]
        found = [(v["id"], v["nodes"][0]["html"]) for v in violations if v["impact"] in ("serious", "critical")]
        assert found == []


@pytest.mark.parametrize("name", gimli.lessons.LESSONS)
def test_a_lessons_page_is_small(lesson_page: Pages, name: str) -> None:
    assert lesson_page(name).stat().st_size <= 250_000


@pytest.mark.parametrize("name", gimli.lessons.LESSONS)
def test_every_lesson_walks_and_ends_in_agreement(opened: Open, lesson_page: Pages, name: str) -> None:
    made, page = lesson(name), opened(lesson_page(name))
    assert page.title() == made.title
    assert [part["kind"] for part in made.sections] == list(KINDS)
    for n, part in enumerate(made.sections):
        page.click(f"#tabs button:nth-child({n + 1})")
        assert page.locator(".page-card:visible h2").count() == 1
        for button, (_, line, j) in zip(page.locator(".go:visible button").all(), part["go"], strict=True):
            button.click()
            where = page.text_content("#where")
            assert where.startswith(f"Line {line} · " + ("the result" if line == 16 else f"step {j} "))
    verdicts = page.locator("#checks-body tbody tr td:first-child").all_text_contents()
    assert verdicts == ["✓ agrees"] * len(made.verification)
    assert "gave the recorded run again" in page.text_content(".page-card:visible .try")


def changed(arguments: Mapping[str, Any], name: str, x: float) -> dict[str, Any]:
    """A lesson's call with one varied number set."""
    if name in arguments["phi_opt"]:
        return {**arguments, "phi_opt": {**arguments["phi_opt"], name: x}}
    key, _, index = name.partition("[")
    value = arguments["phi_loss"][key].clone()
    value.view(-1)[int(index.rstrip("]") or 0)] = x
    return {**arguments, "phi_loss": {**arguments["phi_loss"], key: value}}


def slope(result: gimli.MetaGradient, name: str) -> float:
    key, _, index = name.partition("[")
    leaf = result.A_opt[key] if key in result.A_opt else result.A_loss[key].view(-1)[int(index.rstrip("]") or 0)]
    return float(leaf)


@pytest.mark.parametrize("name", LESSONS)
def test_the_twin_is_the_engine_at_random_settings(opened: Open, lesson_page: Pages, name: str) -> None:
    made, page = lesson(name), opened(lesson_page(name))
    assert made.experiments is not None
    vary, random = made.experiments.vary, np.random.default_rng(5)
    curved = next(iter(vary))
    for _ in range(10):
        # Chaos leaves no two roundings together: there the setting stays where the run is not yet chaotic.
        settings = {k: float(random.uniform(v[0], 1.55 if name == "exploding" else v[-1])) for k, v in vary.items()}
        go(page, "card=1&" + "&".join(f"set.{k}={x!r}" for k, x in settings.items()) + "&line=5&j=0")
        arguments = dict(made.arguments)
        for key, x in settings.items():
            arguments = changed(arguments, key, x)
        result = gimli.meta_gradient(**arguments, check=False)
        said = page.locator(".page-card:visible .said[data-val]")
        assert float(said.get_attribute("data-val")) == pytest.approx(result.val_loss.item(), rel=1e-12, abs=1e-15)
        mine = float(said.get_attribute("data-slope"))
        assert mine == pytest.approx(slope(result, curved), rel=1e-11, abs=1e-14)


@pytest.mark.parametrize("name", LESSONS)
def test_a_nudge_is_what_the_engine_says(opened: Open, lesson_page: Pages, name: str) -> None:
    made, page = lesson(name), opened(lesson_page(name))
    theta_0 = made.arguments["theta_0"]
    sizes, random = [t.numel() for t in theta_0.values()], np.random.default_rng(3)
    flat = 1e-3 * random.standard_normal(sum(sizes))
    tasks = made.arguments.get("tasks")  # whose page has an entry for each; what they share is nudged in all
    shown = flat.tolist() * (1 if tasks is None else tasks.count)
    go(page, f"card=2&nudge=0,{','.join(map(repr, shown))}&line=14&j=0")
    parts = torch.split(torch.tensor(flat), sizes)
    moved = {k: t + d.view(t.shape) for (k, t), d in zip(theta_0.items(), parts, strict=True)}
    expected = gimli.meta_gradient(**{**made.arguments, "theta_0": moved}, check=False).val_loss
    exact = gimli.meta_gradient(**made.arguments)
    priced = sum(
        float((exact.B_0[k] * d.view(t.shape)).sum()) for (k, t), d in zip(theta_0.items(), parts, strict=True)
    )
    said = page.locator(".page-card:visible .said[data-moved]")
    if name != "exploding":  # the nudge of a chaotic run is another run
        assert float(said.get_attribute("data-moved")) == pytest.approx(float(expected - exact.val_loss), abs=1e-13)
    assert float(said.get_attribute("data-says")) == pytest.approx(priced, rel=1e-12)


def test_a_slider_takes_no_key_but_those_that_move_it(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("quadratic"), viewport=WIDE)
    page.locator(".page-card:visible input[data-vary=lr]").focus()
    page.keyboard.press("ArrowRight")
    assert page.text_content("#where").startswith("Line 5 · step 0")
    page.keyboard.press("]")
    assert page.is_visible("#card2")
    page.keyboard.press("]")
    page.keyboard.press("]")
    answer = page.locator(".page-card:visible input[type=text]")
    answer.focus()
    page.keyboard.type("[0.1] p")
    assert answer.input_value() == "[0.1] p"
    assert page.is_visible("#card4")


def test_closed_roads_are_the_engines_approximations(opened: Open, lesson_page: Pages) -> None:
    page, arguments = opened(lesson_page("momentum")), lesson("momentum").arguments
    page.select_option("#digits", "all")
    ways = {"curvature": gimli.FirstOrder(), "state": gimli.ThetaOnly(), "early": gimli.Truncated(6)}
    for names in (["curvature"], ["state"], ["early"], ["curvature", "state", "early"]):
        go(page, f"card=6&closed={','.join(names)}&line=14&j=0")
        approximation = ways[names[0]]
        for key in names[1:]:
            approximation = approximation & ways[key]
        result = gimli.meta_gradient(**arguments, approximation=approximation)
        for key in ("lr", "momentum"):
            cell = page.text_content(f'.page-card:visible [data-closed="A of {key}"]')
            assert float(cell.replace("−", "-")) == result.A_opt[key].item()
        cell = page.text_content('.page-card:visible [data-closed="B_0, θ[0]"]')
        assert float(cell.replace("−", "-")) == result.B_0["θ"][0].item()


def tampered(name: str) -> Trace:
    """A lesson's page whose twin has a wrong formula."""
    page = lesson(name).page()
    experiments = json.loads(json.dumps(page.data["experiments"]))
    experiments["twin"]["loss"]["H"][0][0] += 1e-9
    return Trace(page.title, {**page.data, "experiments": experiments}, page.result, None, page.notes)


def test_a_twin_that_differs_hides_its_handles_and_says_why(opened: Open, tmp_path: Path) -> None:
    page = opened(tampered("quadratic").save(tmp_path / "page.html"), "#card=2&nudge=4,0,-0.1&line=14&j=4")
    assert "differ from the engine by" in page.text_content(".page-card:visible .try")
    assert page.locator(".handle, #map .ghost").count() == 0
    # The recorded runs stay: the slider goes from one to the next.
    page.click("#tabs button:nth-child(1)")
    slider = page.locator(".page-card:visible input[data-vary=lr]")
    slider.focus()
    page.keyboard.press("ArrowRight")
    said, vary = (
        page.locator(".page-card:visible .said[data-val]"),
        lesson("quadratic").page().data["experiments"]["vary"],
    )
    k = vary[0]["val"].index(float(said.get_attribute("data-val")))
    assert vary[0]["at"][k] == pytest.approx(0.11)
    assert float(said.get_attribute("data-slope")) == vary[0]["A"][k]
    assert "recorded run of the engine" in said.text_content()


def test_a_run_without_a_twin_says_so_and_shows_its_recorded_runs(opened: Open, tmp_path: Path) -> None:
    experiments = Experiments(vary={"lr": [0.02, 0.05, 0.08]}, roads=True)
    trace = gimli.trace(gimli.step_through(**network()), experiments=experiments)
    page = opened(trace.save(tmp_path / "page.html"))
    kinds = [page.get_attribute(f"#card{n + 1}", "data-kind") for n in range(page.locator(".page-card").count())]
    assert kinds == ["ask", "roads", "turn", "back", "close", "say"]
    page.locator("input[data-vary=lr]:visible").focus()
    page.keyboard.press("Home")
    expected = gimli.meta_gradient(**{**network(), "phi_opt": {**network()["phi_opt"], "lr": 0.02}}).val_loss.item()
    assert float(page.get_attribute(".said[data-val]:visible", "data-val")) == expected
    page.click("#tabs button:last-child")
    assert "the page knows no formula for this loss" in page.text_content(".page-card:visible .try")
    assert page.locator(".handle").count() == 0


def test_a_run_that_fails_keeps_what_can_be_shown(opened: Open, tmp_path: Path) -> None:
    trace = gimli.trace(gimli.step_through(**failing(7)), experiments=Experiments(roads=True))
    page = opened(trace.save(tmp_path / "page.html"))
    assert page.text_content("#where") == "Line 6 · step 6 · forward"
    assert trace.data["experiments"]["roads"] == {}


def test_line_14_adds_up_before_the_readers_eyes(opened: Open, lesson_page: Pages) -> None:
    for name in ("quadratic", "momentum", "maml"):
        page, steps = opened(lesson_page(name)), lesson(name).arguments["steps"]
        for j in range(steps):
            go(page, f"line=14&j={j}")
            text = page.locator("#formula .current .numbers .equation").first.text_content().replace("−", "-")
            text = re.sub(r"^.*:", "", text)
            whole, _, rest = text.partition("=")
            numbers = [[Decimal(x) for x in part.strip("() \u00a0").split(",")] for part in [whole, *rest.split("+")]]
            assert numbers[0] == [sum(column) for column in zip(*numbers[1:], strict=True)], text


def test_symbols_explain_themselves(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("quadratic"), has_touch=True)
    go(page, "line=14&j=4&card=2")
    page.locator("#formula .current msub[data-symbol=V]").first.tap()
    assert "gradient G" in page.text_content("#tip:visible")
    page.hover(".page-card:visible .symbol-word[data-symbol=B]")
    assert "the price of a nudge" in page.text_content("#tip:visible")
    page.mouse.move(2, 2)
    assert page.is_hidden("#tip")
    page.focus(".page-card:visible .symbol-word[data-symbol=θ][tabindex]")
    assert "the parameters" in page.text_content("#tip:visible")
    page.keyboard.press("Escape")
    assert page.is_hidden("#tip")


def test_a_link_leads_to_a_moment_and_the_address_follows(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("momentum"), "#line=14&j=4&card=6&set.lr=0.1&closed=state")
    assert page.text_content("#where") == "Line 14 · step 4 · backward"
    assert page.is_checked(".page-card:visible input[data-road=state]")
    assert page.locator("#map .ghost").count() == 1
    page.keyboard.press("ArrowLeft")
    page.wait_for_timeout(200)
    assert page.evaluate("location.hash") == "#line=13&j=4&card=6&set.lr=0.1&closed=state"
    # What is no number of this run is passed over.
    go(page, "line=14&j=2&card=99&set.lr=x&nudge=1,NaN&closed=<b>&unknown=1")
    assert page.text_content("#where") == "Line 14 · step 2 · backward"
    assert page.locator("#map .ghost").count() == 0


def test_the_cards_by_keyboard_alone(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("quadratic"), reduced_motion="reduce")
    page.keyboard.press("]")
    page.keyboard.press("]")
    assert page.text_content(".page-card:visible h2") == "Two roads lead to θj+1"
    assert page.locator("#map .arrow.straight, #map .arrow.bent").count() == 2
    page.keyboard.press("]")
    page.locator("input[type=text]:visible").focus()
    asked = page.text_content(".page-card:visible .said").replace("−", "-")
    direct, curvature = (float(x) for x in re.findall(r"(-?[\d.]+) (?:arrives|through)", asked))
    page.keyboard.type(f"{direct + curvature:.4f}")
    page.keyboard.press("Enter")
    assert "Right." in page.text_content(".page-card:visible .try")
    page.focus("#step [data-edge=curvature]")
    assert "Hessian" in page.text_content("#edge")
    page.keyboard.press("p")
    assert page.is_hidden("#cards")
    page.keyboard.press("Escape")
    assert page.is_visible("#cards")
    moving = (
        "[...document.querySelectorAll('*')].filter(e => parseFloat(getComputedStyle(e).transitionDuration) > 0).length"
    )
    assert page.evaluate(moving) == 0


def test_a_handle_is_dragged(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("quadratic"), "#card=2&nudge=4,0,-0.1&line=14&j=4", viewport=WIDE)
    box = page.locator("#map .handle").bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2 + 30, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    said = page.locator(".page-card:visible .said[data-moved]")
    exact = lesson("quadratic").page().data["q"]["B"]["cells"][4][0]["v"]
    page.wait_for_timeout(200)
    nudge = [float(x) for x in re.search(r"nudge=([^&]*)", page.evaluate("location.hash"))[1].split(",")]
    assert nudge[0] == 4
    assert nudge[1] > 0.2
    assert float(said.get_attribute("data-says")) == pytest.approx(exact[0] * nudge[1] + exact[1] * nudge[2], rel=1e-12)


def test_without_script_the_text_stands(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("quadratic"), java_script_enabled=False)
    text = page.inner_text("body")
    for part in lesson("quadratic").sections:
        assert part["heading"].replace("_", "").replace("₊₁", "+1") in text
    assert "V<sub>j</sub> ← B<sub>j+1</sub>·∂θ'/∂G" in page.inner_html("#algorithm")
    assert not re.search(r"[BSVGθℓφL]_[a-zJ0]", text)
    with_script = opened(lesson_page("quadratic"))
    for text_of in (".page-card h2", ".words", ".why summary", "#summary"):  # the same with a script
        assert with_script.locator(text_of).all_text_contents() == page.locator(text_of).all_text_contents()
    assert page.locator("button:visible, input:visible").count() == 0
    assert page.locator("#run-table tbody tr").count() == 8 + 1 + 1
    assert f"{gimli.meta_gradient(**lesson('quadratic').arguments).A_opt['lr'].item():.6g}" in text


def test_print_has_the_text_and_the_stage_at_four_moments(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("quadratic"))
    page.emulate_media(media="print")
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.locator("#snapshots figure:visible").count() == 4
    assert page.locator(".page-card:visible").count() == 7
    assert page.is_visible("#summary")
    assert all(
        height > 20 for height in page.evaluate("[...document.querySelectorAll('.why p')].map((p) => p.clientHeight)")
    )
    assert page.is_visible("#run-table")
    assert page.is_visible("#algorithm")
    assert page.is_hidden("#controls")
    boxes = page.evaluate(RECTANGLES, ["cards", "listing", "run-table", "snapshots"])
    assert not any(overlap(a, b) for n, a in enumerate(boxes) for b in boxes[:n])


def test_text_follows_the_readers_font_size(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("quadratic"))
    read = "parseFloat(getComputedStyle(document.querySelector('.page-card .words')).fontSize)"
    before = page.evaluate(read)
    page.add_style_tag(content="html { font-size: 24px; }")
    assert page.evaluate(read) == pytest.approx(1.5 * before)
    assert page.evaluate("document.documentElement.scrollWidth") <= 1240


def test_lessons_lead_from_one_to_the_next(opened: Open, tmp_path: Path) -> None:
    names = ("quadratic", "copied")
    paths = save_pages({name: lambda name=name: lesson(name) for name in names}, tmp_path / "lessons")
    assert [path.name for path in paths] == ["index.html", "quadratic.html", "copied.html"]
    page = opened(paths[0])
    assert page.locator("h2 a").all_text_contents() == [lesson(name).title for name in names]
    assert page.locator("#crumb").count() == 0
    first = opened(paths[1])
    assert first.get_attribute("#crumb a:last-child", "href") == "copied.html"
    assert opened(paths[2]).locator("#crumb a").count() == 1
    with pytest.raises(gimli.errors.ArgumentError, match="a directory that can be written"):
        save_pages({}, paths[0])
