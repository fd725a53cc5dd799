"""The page in a real browser: headless Chromium, driven by Playwright. Screenshots go to out/page.

Chromium is Debian's (`make browser`); where there is none, these tests are skipped.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

import lorashear
from lorashear import models
from lorashear.viewer.content import content
from lorashear.viewer.page import BUILT, page
from lorashear_ir.groups import Groups
from tools.pictures import PICTURES

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium: `make browser` installs Debian's")
ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "tools" / "page"
SHOTS = ROOT / "out" / "page"
SIZE = {"width": 1280, "height": 720}
TINY: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 8, "vocab_size": 96}


def made(name: str) -> tuple[Any, Any]:
    """A model without weights, and its inputs where it does not know them itself."""
    if name == "adapter":
        small = LlamaForCausalLM(LlamaConfig(num_hidden_layers=2, num_key_value_heads=4, **TINY))
        return get_peft_model(small, LoraConfig(r=4, target_modules=["q_proj", "down_proj"])).eval(), None
    if name == "net":
        ends = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
        net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3), *ends)
        return net.eval(), torch.zeros(2, 3, 12, 12)
    config = {
        "grouped": LlamaConfig(num_hidden_layers=2, num_key_value_heads=4, **TINY),
        "experts": MixtralConfig(num_hidden_layers=3, num_key_value_heads=4, **TINY),
        "seven": LlamaConfig(),  # its defaults are those of 7B: 32 layers, 4096 channels, 11008 of the MLP
    }[name]
    with torch.device("meta"):
        return (MixtralForCausalLM if name == "experts" else LlamaForCausalLM)(config).eval(), None


class Shown:
    """A model's page as a file, and its groups."""

    def __init__(self, name: str, folder: Path) -> None:
        model, inputs = made(name)
        self.groups: Groups = models.groups(model, inputs)
        removed = {n: range(0, g.size, 4) for n, g in self.groups.items() if g.prunable and g.kind in ("head", "ffn")}
        self.content = content(model, inputs, plan={n: list(indices) for n, indices in removed.items()})
        self.file = folder / f"{name}.html"
        self.file.write_text(page(self.content), encoding="utf-8")


@pytest.fixture(scope="module")
def shown(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder, known = tmp_path_factory.mktemp("pages"), dict[str, Shown]()
    return lambda name: known.setdefault(name, known.get(name) or Shown(name, folder))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])  # root has no sandbox
        yield found
        found.close()


@pytest.fixture
def opened(browser: Any, shown: Any) -> Iterator[Any]:
    """Opens the page of a model; at the end, nothing may have been said on the console, and nothing asked of a network."""
    said: list[str] = []
    contexts = []

    def go(name: str, at: str = "", dark: bool = False) -> Any:
        context = browser.new_context(viewport=SIZE, color_scheme="dark" if dark else "light")
        contexts.append(context)
        tab = context.new_page()
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.on("request", lambda request: None if request.url.startswith("file:") else said.append(request.url))
        tab.goto(f"file://{shown(name).file}{at}")
        tab.wait_for_selector("[data-box]", state="attached")
        return tab

    yield go
    for context in contexts:
        context.close()
    assert not said, "\n".join(said)


def shoot(tab: Any, name: str) -> None:
    SHOTS.mkdir(parents=True, exist_ok=True)
    tab.screenshot(path=str(SHOTS / f"{name}.png"))


def boxes(tab: Any) -> dict[str, Any]:
    """Where each box is on the screen, by what is written in it."""
    found = tab.eval_on_selector_all(
        "[data-box]",
        "all => all.map(one => [one.dataset.box, one.querySelector('.face').getBoundingClientRect().toJSON()])",
    )
    return dict(found)


def labels(tab: Any) -> list[str]:
    """What the charts say of themselves."""
    return tab.locator('[role="img"]:visible').evaluate_all("all => all.map(one => one.getAttribute('aria-label'))")


def box(tab: Any, name: str) -> Any:
    return tab.locator(f'[data-box="{name}"] > .face')


@needs_browser
def test_seven_billion_parameters_open_at_once_and_can_be_read(browser: Any, shown: Any, opened: Any) -> None:
    assert shown("seven").file.stat().st_size < 3_000_000
    tab = opened("seven")
    found = boxes(tab)
    assert len(found) < 20
    for name, at in found.items():
        assert at["left"] >= 0 and at["right"] <= SIZE["width"] and at["bottom"] <= SIZE["height"], name
        assert at["height"] > 20
    assert tab.locator('[data-box="model.layers.0-31"]').get_by_text("32 alike").is_visible()
    shoot(tab, "seven")
    seconds = []
    for _ in range(3):
        begun = time.perf_counter()
        tab.reload()
        tab.wait_for_selector("[data-box]")
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 2


@needs_browser
def test_boxes_open_down_to_operators_and_close(opened: Any) -> None:
    tab = opened("grouped")
    box(tab, "model.layers.0-1").click()
    assert {"model.layers.0", "model.layers.0.self_attn", "model.layers.1"} <= boxes(tab).keys()
    mlp = next(name for name in boxes(tab) if "gated_mlp" in box(tab, name).get_attribute("aria-label"))
    box(tab, mlp).click()
    inner = tab.eval_on_selector_all(f'[data-box="{mlp}"] [data-box]', "all => all.map(one => one.dataset.box)")
    assert len(inner) == 5  # gate, silu, up, their product, down
    shoot(tab, "grouped-open")
    box(tab, mlp).locator("text.head").dispatch_event("click")
    assert not tab.query_selector_all(f'[data-box="{mlp}"] [data-box]')
    box(tab, "model.layers.0").locator("text.head").dispatch_event("click")
    assert "model.layers.0-1" in boxes(tab)


@needs_browser
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # peft asks for it
@pytest.mark.parametrize("name", ["grouped", "experts", "adapter", "net"])
def test_a_group_lights_up_exactly_its_weights_and_operators(name: str, shown: Any, opened: Any) -> None:
    tab, groups = opened(name), shown(name).groups
    standing: dict[str, set[str]] = {group: set() for group in groups}
    for each in shown(name).content["program"]["operators"]:
        for group in each["groups"]:
            standing[group].add(each["name"])
    for group in groups.values():
        tab.evaluate("at => { location.hash = at }", f"group={quote(group.name)}")
        tab.wait_for_selector(f'[data-selected="{group.name}"]')
        for structure in dict.fromkeys((0, group.size // 2, group.size - 1)):
            tab.locator("#structure").fill(str(structure))
            lit = tab.eval_on_selector_all("[data-weight]", "all => all.map(w => [w.dataset.weight, w.dataset.slices])")
            found = [(weight, dim, indices) for weight, slots in lit for dim, indices in json.loads(slots)]
            assert sorted(found) == sorted(group.slices(structure)), group.name
        seen = tab.eval_on_selector_all(
            "[data-box]:not(.open)", "all => all.map(b => [b.dataset.box, b.classList.contains('lit')])"
        )
        operators = {box for box, _ in seen if box.startswith("%")} & {n for s in standing.values() for n in s}
        assert {box for box, is_lit in seen if is_lit} & operators == standing[group.name] & operators, group.name
    last = [each for each in groups.values() if each.prunable][-1]
    tab.evaluate("at => { location.hash = at }", f"group={quote(last.name)}")
    tab.wait_for_selector(f'[data-selected="{last.name}"]')
    tab.locator("#structure").fill("2")
    shoot(tab, f"{name}-group")


@needs_browser
def test_marks_are_where_the_indices_are(shown: Any, opened: Any) -> None:
    tab = opened("grouped", "#group=model.layers.0.self_attn.head")
    tab.locator("#structure").fill("3")
    whole, marks = (
        tab.eval_on_selector_all(
            f'[data-weight="model.layers.0.self_attn.o_proj.weight"] .{what}',
            "all => all.map(one => one.getBBox()).map(b => [b.x, b.width, b.height])",
        )
        for what in ("whole", "mark")
    )
    [[_, width, height]], [[x, wide, high]] = whole, marks
    indices = shown("grouped").groups["model.layers.0.self_attn.head"].slices(3)[-1][2]
    assert x == pytest.approx(width * indices[0] / 32) and wide == pytest.approx(width * len(indices) / 32)
    assert high == pytest.approx(height)


@needs_browser
def test_an_overlap_has_both_colours(opened: Any) -> None:
    tab = opened("grouped", "#group=model.layers.0.mlp.ffn")
    mlp = next(name for name in boxes(tab) if "gated_mlp" in box(tab, name).get_attribute("aria-label"))
    stripes = tab.locator(f'[data-box="{mlp}"] > .face .stripe')
    assert stripes.count() == 1
    tab.locator("button.back").click()
    tab.evaluate("at => { location.hash = at }", "group=model.layers.0.mlp.ffn")
    tab.wait_for_selector("[data-selected]")
    box(tab, mlp).hover()
    colours = stripes.evaluate_all("all => all.map(one => getComputedStyle(one).fill)")
    assert len(set(colours)) == 2  # hidden channels beside those of the MLP
    shoot(tab, "grouped-overlap")


@needs_browser
def test_search_finds_modules_parameters_and_groups(opened: Any) -> None:
    tab = opened("experts")
    tab.locator("#search").fill("layers.2 o_proj.weight")
    tab.keyboard.press("Enter")
    assert "o_proj" in tab.locator(".box.selected > .face").get_attribute("aria-label")
    tab.locator("#search").fill("layers.1 expert")
    assert tab.locator("#found li").count() >= 3
    tab.get_by_role("option").filter(has_text="group").first.dispatch_event("pointerdown")
    assert tab.locator("[data-selected]").get_attribute("data-selected") == "model.layers.1.mlp.expert"
    tab.locator("#search").fill("nothing of that name")
    assert tab.get_by_text("nothing has such a name").is_visible()
    shoot(tab, "experts-search")


@needs_browser
def test_a_link_opens_where_it_says(opened: Any, shown: Any) -> None:
    tab = opened("seven", "#at=model.layers.17.mlp")
    assert {"model.layers.0-16", "model.layers.17", "model.layers.18-31"} <= boxes(tab).keys()
    at = tab.locator(".box.selected > .face").bounding_box()
    assert 0 < at["x"] < 880 and 0 < at["y"] < SIZE["height"]
    shoot(tab, "seven-linked")
    tab = opened("seven", "#group=model.layers.5.mlp.ffn")
    assert tab.locator("[data-selected]").get_attribute("data-selected") == "model.layers.5.mlp.ffn"
    assert "model.layers.5" in boxes(tab)
    tab.locator("button.back").click()
    assert tab.url.endswith("seven.html")


@needs_browser
def test_all_can_be_done_by_keyboard(opened: Any) -> None:
    tab = opened("grouped")
    box(tab, "model.layers.0-1").focus()
    tab.keyboard.press("Enter")
    assert "model.layers.0.self_attn" in boxes(tab)
    before = boxes(tab)["model"]["left"]
    tab.locator("svg.graph").focus()
    tab.keyboard.press("ArrowLeft")
    assert boxes(tab)["model"]["left"] > before
    tab.keyboard.press("-")
    assert boxes(tab)["model"]["width"] < 880
    reached = set()
    tab.locator("#search").focus()
    for _ in range(60):
        tab.keyboard.press("Tab")
        reached.add(
            tab.evaluate(
                "document.activeElement.closest('[data-box]')?.dataset.box ?? document.activeElement.dataset.group"
            )
        )
    assert "model.layers.0.self_attn" in reached and any(name and name.endswith("hidden") for name in reached)


@needs_browser
def test_dark_and_light(opened: Any) -> None:
    papers = []
    for dark in (False, True):
        tab = opened("experts", dark=dark)
        papers.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
        shoot(tab, f"experts-{'dark' if dark else 'light'}")
    assert papers == ["rgb(255, 255, 255)", "rgb(22, 24, 29)"]


@needs_browser
def test_the_cut_shows_what_goes(shown: Any, opened: Any) -> None:
    tab = opened("seven", "#side=cut")
    cut = shown("seven").content["cut"]
    rows = " ".join(tab.locator("table.figures tr").all_inner_texts())
    assert "6.74 B" in rows and "1.05 MB" in rows
    charts = labels(tab)
    assert any("ffn" in each for each in charts) and any("head" in each for each in charts)
    width = cut["widths"]["model.layers.0.mlp.ffn"]
    assert tab.get_by_text(f"{width['before']:,} → {width['after']:,}").first.is_visible()
    said = tab.locator(".charts-side:visible").inner_text()
    assert "axis ffn.0 11008 ffn" in said and f"axis ffn.0 {width['after']} ffn" in said
    assert "same for layers 1 to 31" in said
    shoot(tab, "seven-cut")
    tab.get_by_role("button", name="layer 3", exact=True).first.click()
    assert tab.locator("[data-selected]").get_attribute("data-selected") == "model.layers.3.self_attn.head"


@needs_browser
def test_strips_show_which_structures_stay(shown: Any, opened: Any) -> None:
    tab = opened("grouped", "#side=cut")
    width = shown("grouped").content["cut"]["widths"]["model.layers.1.mlp.ffn"]
    assert any("layers.1.mlp.ffn" in each and str(width["after"]) in each for each in labels(tab)), labels(tab)


@needs_browser
def test_what_was_measured(browser: Any, tmp_path: Path, folder: Path, text: Path) -> None:
    """Made of a real run: knowledge, training, recovery, an evaluation."""
    small = tmp_path / "small"
    texts = {"first": [str(text)], "second": [str(text)]}
    lorashear.compile(folder, 0.2, small, text=texts, tokens=640, context=16, windows=8, distill=0.0, per_layer=True)
    lorashear.evaluate([folder, small], text=[str(text)], context=16, limit=8).save(tmp_path / "eval.json")
    lorashear.view(folder, tmp_path / "page.html", plan=small, reports=[small, tmp_path / "eval.json"])
    rise = json.loads((small / "lorashear" / "report.json").read_text())["knowledge"]["groups"][
        "model.layers.1.mlp.ffn"
    ]["rise"]
    for dark in (False, True):
        tab = browser.new_context(viewport=SIZE, color_scheme="dark" if dark else "light").new_page()
        said: list[str] = []
        tab.on("console", lambda message: said.append(message.text))
        tab.on("pageerror", lambda error: said.append(str(error)))
        tab.goto(f"file://{tmp_path}/page.html#side=measured")
        tab.wait_for_selector(".charts-side:visible svg")
        seen = tab.locator(".charts-side:visible").inner_text()
        for title in ("What each group is worth", "Widths chosen", "Training", "Recovery", "perplexity"):
            assert title in seen, title
        assert "NaN" not in seen and "undefined" not in seen
        tab.locator('.charts-side:visible input[type="range"]').fill("100")
        heat = tab.locator(".charts-side:visible svg").first.text_content()
        assert f"{rise[-1]:.2g}" in heat or f"{rise[-1]:.3f}" in heat or f"{rise[-1]:.2f}" in heat, (rise, heat)
        shoot(tab, f"measured-{'dark' if dark else 'light'}")
        tab.mouse.move(640, 400)
        tab.mouse.wheel(0, 5000)
        tab.wait_for_timeout(200)
        shoot(tab, f"measured-end-{'dark' if dark else 'light'}")
        tab.context.close()
        assert not said, said


def test_what_only_python_can_make(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(
        "import torch\n\ndef made():\n    return torch.nn.Linear(4, 3), torch.zeros(2, 4)\n"
    )

    def visualize(*arguments: object) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join(str(ROOT / part) for part in ("", "ir", "passes"))
        command = [sys.executable, str(ROOT / "tools/visualize.py"), *map(str, arguments)]
        return subprocess.run(command, env={**os.environ, "PYTHONPATH": paths}, capture_output=True, text=True)

    assert visualize(f"{tmp_path}/net.py:made", "--out", tmp_path / "net.html").returncode == 0
    assert '"name":"Linear"' in (tmp_path / "net.html").read_text()
    for asked, said in (
        (f"{tmp_path}/net.py:none", "has no function none"),
        (f"{tmp_path}/no.py:made", "there is no file"),
        (f"{tmp_path}/net.py:made", "exists; choose another one"),
    ):
        done = visualize(asked, "--out", tmp_path / "net.html")
        assert done.returncode == 1 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr


@pytest.mark.skipif(
    not (SOURCES / "node_modules").is_dir(), reason="no node_modules in tools/page: `make page` installs them"
)
def test_what_is_built_is_built_of_these_sources(tmp_path: Path) -> None:
    subprocess.run(["node", "build.mjs", str(tmp_path)], cwd=SOURCES, check=True)
    for each in sorted(BUILT.iterdir()):
        assert (tmp_path / each.name).read_text() == each.read_text(), f"{each.name} is old: make page"


def test_the_pictures_of_the_documents_are_small_and_told_in_words() -> None:
    held = {path.stem: path for path in (ROOT / "docs" / "pictures").glob("*.png")}
    assert held.keys() == PICTURES.keys()
    assert all(path.stat().st_size < 200_000 for path in held.values())
    said = (ROOT / "docs" / "analysis.md").read_text(encoding="utf-8")
    for name in PICTURES:
        [words] = re.findall(rf"!\[(.*)\]\(pictures/{name}\.png\)\n\n\S", said)
        assert len(words) > 40
