"""The page in a real headless Chromium: every control, every lesson, and nothing that leaves it."""

from __future__ import annotations

import re
from decimal import ROUND_HALF_UP, Context, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import gimli_core as gimli
from gimli_core.memory import StoreStates
from gimli_core.step_through.page.experiments import Experiments
from gimli_core.step_through.page.trace import Trace
from gimli_core.step_through.page.worst_steps import worst_steps
from tests.problems import failing, network
from tests.step_through.pages import Open, Pages, lesson, settled


def traced(**changed: Any) -> Trace:
    memory = changed.pop("memory", None)
    return gimli.trace(gimli.step_through(**network(**changed), memory=memory), title="A small network")


def where(page: Any) -> str:
    text: str = page.text_content("#where")
    return text


def go(page: Any, line: int, j: int) -> None:
    """To a moment, by the slider."""
    number = page.evaluate(
        """([line, j]) => { const e = JSON.parse(document.getElementById('data').textContent).events;
           return e.line.findIndex((l, i) => l === line && e.j[i] === j && !(e.replay[i] && line === 5)); }""",
        [line, j],
    )
    page.eval_on_selector(
        "#slider", "(s, v) => { s.value = v; s.dispatchEvent(new Event('input', {bubbles: true})); }", str(number)
    )
    assert where(page).startswith(f"Line {line} · step {j}")


def printed(x: float, digits: int) -> str:
    """x as the page prints it: rounded half up to so many digits, as ECMAScript's toPrecision does."""
    if x == 0:
        return "0"
    if digits >= 17:
        text = repr(x).removesuffix(".0")
        assert "e" not in text
        return text.replace("-", "−")
    rounded = Context(prec=digits, rounding=ROUND_HALF_UP).create_decimal(Decimal(x))
    exponent = rounded.adjusted()
    if -7 < exponent < digits:
        text = format(rounded, "f")
        text = text.rstrip("0").rstrip(".") if "." in text else text
    else:
        mantissa = format(rounded.scaleb(-exponent), "f").rstrip("0").rstrip(".")
        text = f"{mantissa}e{exponent}"
    return text.replace("-", "−")


def shown(page: Any, name: str, j: int) -> list[str]:
    """The numbers in a quantity's card."""
    settled(page)
    card = f'.quantity[data-name="{name}"][data-j="{j}"]'
    texts: list[str] = page.locator(f"{card} td.n").all_text_contents()
    return texts


@pytest.mark.parametrize("digits", [3, 6, 17])
def test_the_numbers_on_the_page_are_the_engines(opened: Open, tmp_path: Path, digits: int) -> None:
    page = opened(traced().save(tmp_path / "page.html"))
    page.select_option("#digits", "all" if digits == 17 else str(digits))
    result = gimli.meta_gradient(**network())
    go(page, 14, 0)
    flat = [*result.B_0["w"].tolist(), result.B_0["b"].item()]
    assert shown(page, "B", 0) == [printed(x, digits) for x in flat]
    S_0 = result.S_0["exp_avg"]
    assert shown(page, "S.exp_avg", 0) == [printed(x, digits) for x in [*S_0["w"].tolist(), S_0["b"].item()]]
    page.keyboard.press("End")
    formula = page.text_content("#formula .current").replace(" ", "").replace("\n", "")
    for value in (result.A_opt["lr"], result.A_opt["beta2"], result.A_loss["decay"]):
        assert printed(value.item(), digits) in formula
    settled(page)
    growth = page.text_content("#growth")
    assert f"A = {printed(result.A_opt['lr'].item(), digits)}" in growth
    go(page, 5, 2)
    assert printed(result.train_losses[2].item(), digits) in page.text_content("#formula .current")


def test_buttons_step_forwards_and_backwards(opened: Open, tmp_path: Path) -> None:
    page = opened(traced().save(tmp_path / "page.html"))
    assert where(page) == "Line 5 · step 0 · forward"
    assert page.locator("#algorithm li[aria-current=step]").get_attribute("data-line") == "5"
    assert page.is_disabled("#back")
    page.click("#next")
    assert where(page) == "Line 6 · step 0 · forward"
    assert page.locator("#algorithm li[aria-current=step]").get_attribute("data-line") == "6"
    page.click("#last")
    assert where(page) == "Line 16 · the result · the end"
    assert page.is_disabled("#next")
    page.click("#back")
    assert where(page) == "Line 14 · step 0 · backward"
    page.click("#first")
    assert where(page) == "Line 5 · step 0 · forward"


def test_the_keyboard_does_all_of_it(opened: Open, tmp_path: Path) -> None:
    page = opened(traced().save(tmp_path / "page.html"))
    for key, expected in [
        ("ArrowRight", "Line 6 · step 0 · forward"),
        ("Shift+ArrowRight", "Line 6 · step 1 · forward"),
        ("ArrowLeft", "Line 5 · step 1 · forward"),
        ("End", "Line 16 · the result · the end"),
        ("ArrowLeft", "Line 14 · step 0 · backward"),
        ("Shift+ArrowLeft", "Line 14 · step 1 · backward"),
        ("Home", "Line 5 · step 0 · forward"),
    ]:
        page.keyboard.press(key)
        assert where(page) == expected
    # By Tab alone: the skip links, the tools, the stage from left to right.
    reached = []
    while "next" not in reached and len(reached) < 40:
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.className"))
    assert reached[:5] == ["skip", "skip", "digits", "unfold", "present"]
    assert reached[-2:] == ["play", "next"]
    page.keyboard.press("Enter")
    assert where(page) == "Line 6 · step 0 · forward"


def test_a_step_lays_the_page_out_once_a_frame(opened: Open, lesson_page: Pages) -> None:
    # A size or a place that is asked for between two changes lays the whole page out on the spot, at every step.
    page = opened(lesson_page("momentum"))
    settled(page)
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")

    def layouts() -> float:
        metrics = session.send("Performance.getMetrics")["metrics"]
        return next(float(m["value"]) for m in metrics if m["name"] == "LayoutCount")

    before = layouts()
    key = "new KeyboardEvent('keydown', {key: 'ArrowRight', bubbles: true})"
    page.evaluate(f"for (let k = 0; k < 30; k++) document.dispatchEvent({key})")
    assert layouts() - before <= 3


def test_play_and_pause(opened: Open, tmp_path: Path) -> None:
    page = opened(traced(steps=2).save(tmp_path / "page.html"))
    page.select_option("#speed", "fast")
    page.click("#play")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    page.locator("#where", has_text="backward").wait_for()
    page.click("#play")
    stopped = where(page)
    assert page.get_attribute("#play", "aria-label") == "Play"
    page.wait_for_timeout(300)
    assert where(page) == stopped
    page.click("h1")
    page.keyboard.press(" ")
    page.locator("#where", has_text="the end").wait_for()
    page.locator("#play[aria-label=Play]").wait_for()


def test_the_slider_and_the_time_line(opened: Open, tmp_path: Path) -> None:
    page = opened(traced().save(tmp_path / "page.html"))
    page.focus("#slider")
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    assert where(page) == "Line 6 · step 1 · forward"
    assert page.get_attribute("#slider", "aria-valuetext") == "Line 6 · step 1 · forward"
    box = page.locator("#timeline svg").bounding_box()
    page.mouse.click(box["x"] + box["width"] - 14, box["y"] + 0.75 * box["height"])
    assert where(page) == "Line 9 · step 4 · backward"


def test_an_algorithm_line_can_be_chosen(opened: Open, tmp_path: Path) -> None:
    page = opened(traced().save(tmp_path / "page.html"))
    assert page.is_hidden("#algorithm")
    page.click("#unfold")
    page.click("#algorithm li[data-line='13'] button")
    assert where(page) == "Line 13 · step 0 · backward"
    assert page.is_disabled("#algorithm li[data-line='4'] button")


def test_a_screen_reader_is_told(opened: Open, tmp_path: Path) -> None:
    page = opened(traced().save(tmp_path / "page.html"))
    page.click("#next")
    settled(page)
    said = page.text_content("#live")
    assert said.startswith("Line 6 · step 0 · forward: the optimizer's step.")
    assert "norm of θ 1" in said
    unnamed = page.evaluate(
        """[...document.querySelectorAll('button, select, input, svg[role=img], canvas')].filter(e => !(
           e.getAttribute('aria-label') || e.textContent.trim() || e.closest('label'))).map(e => e.outerHTML)"""
    )
    assert unnamed == []
    assert page.evaluate("document.documentElement.lang") == "en"
    heads = page.eval_on_selector_all("h1, h2, h3", "hs => hs.filter(h => h.offsetParent).map(h => +h.tagName[1])")
    assert heads[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(heads))


def test_the_formula_is_mathml_with_the_moments_numbers(opened: Open, lesson_page: Pages) -> None:
    page = opened(lesson_page("quadratic"))
    go(page, 6, 0)
    assert page.locator("#formula .current math").count() >= 2
    numbers = page.locator("#formula .current .numbers mn").all_text_contents()
    # θ_1 = θ_0 − 0.1·Hθ_0 with θ_0 = (2, −1), H = [[3, 1], [1, 2]]
    assert numbers == ["1.5", "1", "2", "1", "0.1", "5", "0"]


def test_one_parameter_can_be_followed(opened: Open, tmp_path: Path) -> None:
    page = opened(traced().save(tmp_path / "page.html"))
    settled(page)
    page.select_option("#follow", label="w[2]")
    result = gimli.meta_gradient(**network())
    page.keyboard.press("End")
    settled(page)
    text = page.text_content("#follow-body")
    assert f"B₀ = {printed(result.B_0['w'][2].item(), 6)}" in text
    assert f"θ₄ = {printed(result.theta_J['w'][2].item(), 6)}" in text


def test_replays_and_what_is_held_are_shown(opened: Open, tmp_path: Path) -> None:
    page = opened(traced(memory=StoreStates()).save(tmp_path / "page.html"))
    settled(page)
    assert "3 gradients were computed again" in page.text_content("#schedule")
    assert page.locator('#timeline svg g path[fill="var(--soft)"]').count() == 1
    go(page, 9, 4)
    assert page.locator('#timeline svg g path[fill="var(--soft)"]').count() == 3
    go(page, 11, 1)
    assert "replay" in where(page)
    assert page.locator('#timeline svg g path[fill="var(--soft)"]').count() == 1


def luminance(page: Any, selector: str, what: str) -> float:
    colour = page.eval_on_selector(selector, f"e => getComputedStyle(e).{what}")
    parts = [int(x) / 255 for x in re.findall(r"\d+", colour)[:3]]
    linear = [x / 12.92 if x <= 0.03928 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_can_be_read(opened: Open, lesson_page: Pages, scheme: str) -> None:
    page = opened(lesson_page("momentum"), color_scheme=scheme)
    paper = luminance(page, "body", "backgroundColor")
    assert (paper < 0.05) == (scheme == "dark")
    card = luminance(page, "#now", "backgroundColor")
    for selector in (".current h2", "#facts", ".quantity .what", ".tag.backward, .tag.forward", ".ok"):
        ink = luminance(page, selector, "color")
        light, dark = max(ink, card), min(ink, card)
        assert (light + 0.05) / (dark + 0.05) >= 4.5, selector  # WCAG 2.1, 1.4.3


NASTY = ("<script>alert(1)</script>\"'&", "</script><img src=x onerror=alert(2)> 名前 \u2028 ‮")


def test_names_with_markup_are_text(opened: Open, tmp_path: Path) -> None:
    trace = gimli.trace(gimli.step_through(**network(names=NASTY)), title=f"<b>{NASTY[0]}</b>{NASTY[1]}")
    page = opened(trace.save(tmp_path / "page.html"))
    assert page.text_content("h1") == f"<b>{NASTY[0]}</b>{NASTY[1]}"
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 2
    settled(page)
    assert NASTY[0] in page.text_content("#quantities")
    assert page.locator("#follow option").first.text_content() == f"{NASTY[0]}[0]"
    page.keyboard.press("End")
    for key in ("phi_loss", "phi_opt"):
        assert key not in page.text_content("#formula .current")


@pytest.mark.parametrize("names", [("__proto__", "constructor"), ("x" * 600, "a\nb"), ("w[0]", "B_0")])
def test_names_that_mean_something_elsewhere_are_text(opened: Open, tmp_path: Path, names: tuple[str, str]) -> None:
    page = opened(gimli.trace(gimli.step_through(**network(names=names))).save(tmp_path / "page.html"))
    settled(page)
    assert page.locator("#follow option").all_text_contents() == [*(f"{names[0]}[{i}]" for i in range(3)), names[1]]
    page.keyboard.press("End")
    settled(page)
    assert all(name in page.text_content("#quantities") for name in names)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def test_a_meta_parameter_called_proto_can_be_moved(opened: Open, tmp_path: Path) -> None:
    name, slope = "__proto__", torch.tensor([1.0, -0.5])

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (theta["w"] ** 2).sum() / 2 + phi[name] * (slope @ theta["w"])

    def val_loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return (theta["w"] ** 2).sum() / 2

    problem, theta_0 = gimli.Problem(loss, val_loss, gimli.optimizers.SGD(lr=0.1)), {"w": torch.tensor([1.0, 2.0])}

    def called(x: float) -> dict[str, Any]:
        phi_loss = {name: torch.tensor(x)}
        return {"train_batches": lambda j: None, "val_batch": None, "steps": 3, "phi_loss": phi_loss}

    unit = [[1.0, 0.0], [0.0, 1.0]]
    twin = {
        "loss": {"kind": "quadratic", "H": unit, "linear": {name: slope.tolist()}},
        "val": {"kind": "quadratic", "H": unit},
        "phi": {name: [0.3]},
    }
    walk = gimli.step_through(problem, theta_0, **called(0.3))
    made = gimli.trace(walk, experiments=Experiments(vary={name: [0.1, 0.3, 0.9]}, twin=twin))
    page = opened(made.save(tmp_path / "page.html"), f"#card=1&set.{name}=0.7")
    said = page.locator(".page-card:visible .said[data-val]")
    expected = gimli.meta_gradient(problem, theta_0, **called(0.7))
    assert float(said.get_attribute("data-val")) == pytest.approx(expected.val_loss.item(), rel=1e-12)
    assert float(said.get_attribute("data-slope")) == pytest.approx(expected.A_loss[name].item(), rel=1e-12)


def test_markup_in_an_error_is_text(opened: Open, tmp_path: Path) -> None:
    trace = gimli.trace(gimli.step_through(**failing(7)))
    page = opened(trace.save(tmp_path / "page.html"))
    banner = page.text_content("#banner")
    assert banner.startswith("The run ended after line 6 of step 6: RuntimeError: the <b>disk</b> is full")
    assert where(page) == "Line 6 · step 6 · forward"
    assert page.locator("#banner b").count() == 0
    page.keyboard.press("Home")
    assert where(page) == "Line 5 · step 0 · forward"


def test_a_run_that_fails_at_once(opened: Open, tmp_path: Path) -> None:
    page = opened(gimli.trace(gimli.step_through(**failing(0))).save(tmp_path / "page.html"))
    assert page.text_content("#banner").startswith("The run ended before the first line: RuntimeError")


def test_an_intervention_is_labelled(opened: Open, tmp_path: Path) -> None:
    def change(moment: Any) -> None:
        if moment.line == 9:
            moment.change("B", {"b": torch.tensor(3.0)})

    trace = gimli.trace(gimli.step_through(**network()), intervene=change)
    page = opened(trace.save(tmp_path / "page.html"))
    assert page.text_content("#banner") == "Not the exact meta-gradient: B changed at line 9 of step 4."


def test_an_intervention_stands_beside_the_run_without_it(opened: Open, tmp_path: Path) -> None:
    problem = network()
    exact = gimli.trace(gimli.step_through(**problem))

    def change(moment: Any) -> None:
        if (moment.line, moment.j) == (11, 2):
            moment.change("V", {k: torch.zeros_like(v) for k, v in moment.values["V"].items()})

    assert exact.data["unchanged"] is None
    assert gimli.trace(gimli.step_through(**problem), intervene=lambda moment: None).data["unchanged"] is None
    trace = gimli.trace(gimli.step_through(**problem), intervene=change)
    B = exact.data["q"]["B"]["norm"]
    assert trace.data["unchanged"]["B"] == [B[j] for j in sorted(B)]
    assert trace.data["unchanged"]["val"] == exact.data["val"]["loss"]
    finals = {leaf["label"]: leaf["final"] for leaf in exact.data["A"]}
    for label, value in trace.data["unchanged"]["A"].items():
        assert value == (finals[label]["v"][0] if len(finals[label].get("v", ())) == 1 else finals[label]["n"])
    page = opened(trace.save(tmp_path / "page.html"))
    settled(page)
    rows = page.locator("[data-unchanged] tbody tr")
    assert rows.count() == 2 + len(finals)
    assert "without the change" in page.inner_text("#terms")


def test_one_moment_stands_in_a_cell(opened: Open, tmp_path: Path, lesson_page: Pages) -> None:
    trace = lesson("momentum").page()
    (tmp_path / "cell.html").write_text(f"<body>{trace.cell(14, 4, height=400)._repr_html_()}</body>")
    frame = opened(tmp_path / "cell.html").frame_locator("iframe")
    frame.locator("body[data-settled=yes]").wait_for()
    assert frame.locator("#where").inner_text().startswith("Line 14 · step 4")
    assert frame.locator("#cards").is_hidden()
    assert frame.locator("#more").is_hidden()
    assert frame.locator("body").evaluate("b => b.scrollHeight <= innerHeight")
    frame.locator("#next").click()
    frame.locator("body").press("Escape")
    assert frame.locator("#cards").is_hidden()


def test_values_that_are_not_finite(opened: Open, tmp_path: Path) -> None:
    def change(moment: Any) -> None:
        if (moment.line, moment.j) == (14, 2):
            moment.change("B", {"w": torch.tensor([float("inf"), float("nan"), 1.0])})

    trace = gimli.trace(gimli.step_through(**network()), intervene=change)
    page = opened(trace.save(tmp_path / "page.html"))
    go(page, 14, 2)
    assert shown(page, "B", 2)[:3] == ["∞", "nan", "1"]
    page.keyboard.press("End")
    assert where(page).startswith("Line 16")


def test_a_larger_model_is_summarised(opened: Open, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(200, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 2)).double()
    x = torch.randn(16, 200)

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return torch.func.functional_call(net, theta, (x,)).square().mean()

    problem = gimli.Problem(loss, loss, gimli.optimizers.Adam(lr=1e-2))
    walk = gimli.step_through(
        problem, dict(net.named_parameters()), lambda j: None, None, steps=6, phi_opt={"lr": 1e-2}
    )
    trace = gimli.trace(walk, follow=["0.weight[3, 5]"])
    page = opened(trace.save(tmp_path / "page.html"))
    go(page, 14, 3)
    page.select_option("#tensor", label="0.weight")
    settled(page)
    card = page.locator('.quantity[data-name="B"]')
    assert card.locator("canvas").count() == 1
    assert "norm" in card.text_content()
    assert page.is_hidden("#matrices")
    page.select_option("#follow", label="0.weight[3, 5]")
    assert "B₃" in page.text_content("#follow-body")
    card.locator("summary").click()
    index, value = trace.data["q"]["B"]["cells"][3][0]["top"][0]
    assert f"[{index // 200}, {index % 200}]" in card.text_content()
    assert printed(value, 6) in card.text_content()


def test_a_larger_run_says_where_its_adjoint_grows(opened: Open, tmp_path: Path) -> None:
    x, y = torch.randn(8, 30), torch.randint(2, (8,))
    x[:, ::3] = 0  # Adam's first step follows a gradient of 0 by lr/eps
    net = nn.Sequential(nn.Linear(30, 8), nn.Tanh(), nn.Linear(8, 2)).double()

    def loss(theta: dict[str, Tensor], phi: dict[str, Tensor], batch: Any) -> Tensor:
        return nn.functional.cross_entropy(torch.func.functional_call(net, theta, (x,)), y)

    problem = gimli.Problem(loss, loss, gimli.optimizers.Adam(lr=3e-2))
    lr = torch.tensor(3e-2)
    walk = gimli.step_through(problem, dict(net.named_parameters()), lambda j: None, None, steps=6, phi_opt={"lr": lr})
    trace = gimli.trace(walk)
    page = opened(trace.save(tmp_path / "page.html"))
    settled(page)
    panel, worst = page.locator("#where-it-grows"), [step for step in worst_steps(trace) if step.factor > 1]
    assert worst
    assert panel.locator("[data-worst]").count() == len(worst)
    first = panel.locator("tbody tr").first.inner_text()
    assert f"step {worst[0].j}" in first
    assert f"×{worst[0].factor:.3g}" in first
    assert worst[0].cause in first
    assert "O reaches −3" in panel.inner_text() or "less than eps" in first
    panel.locator("[data-worst]").first.click()
    assert where(page).startswith(f"Line 14 · step {worst[0].j}")
    map_ = panel.locator("canvas")
    map_.hover()
    assert "‖B‖ = " in panel.locator(".facts").first.inner_text()
    panel.locator("#map-of").select_option("S.exp_avg")
    assert "S.exp_avg" in str(panel.locator("canvas").get_attribute("aria-label"))
    small = opened(gimli.trace(gimli.step_through(**network())).save(tmp_path / "small.html"))
    settled(small)
    assert small.locator("#where-it-grows").is_hidden()


def test_no_steps_at_all(opened: Open, tmp_path: Path) -> None:
    page = opened(traced(steps=0).save(tmp_path / "page.html"))
    assert where(page).startswith("Line 8")
    page.keyboard.press("End")
    assert where(page).startswith("Line 16")


def test_the_notebook_frame_works(opened: Open, tmp_path: Path) -> None:
    shell = tmp_path / "notebook.html"
    shell.write_text(
        f"<!doctype html><meta charset=utf-8><link rel=icon href='data:,'>{traced()._repr_html_()}", encoding="utf-8"
    )
    page = opened(shell)
    frame = page.frame_locator("iframe")
    frame.locator("#next").click()
    assert frame.locator("#where").inner_text() == "Line 6 · step 0 · forward"


def test_trouble_is_noticed(opened: Open, tmp_path: Path) -> None:
    """The watch over console and network, which ends every test here, can fail."""
    planted = tmp_path / "planted.html"
    planted.write_text("<script>console.log('here'); nowhere()</script><img src='http://127.0.0.1:9/a.png'>", "utf-8")
    opened(planted)
    found = {text.split(":")[0] for text in opened.trouble}  # type: ignore[attr-defined]
    assert found == {"console", "error", "request"}
    opened.trouble.clear()  # type: ignore[attr-defined]


def test_the_policy_stops_a_planted_script(opened: Open, tmp_path: Path) -> None:
    text = traced(steps=1).html().replace("</body>", "<script>document.title = 'taken'</script></body>")
    (tmp_path / "page.html").write_text(text, "utf-8")
    page = opened(tmp_path / "page.html")
    assert page.title() == "A small network"
    assert any("Content Security Policy" in text for text in opened.trouble)  # type: ignore[attr-defined]
    opened.trouble.clear()  # type: ignore[attr-defined]
