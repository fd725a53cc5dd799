"""The pictures of docs/pictures: pages of `lorashear view` in a headless Chromium, each in a state that the documents explain.

python tools/pictures.py [--out docs/pictures] [NAME ...]

Playwright drives the Chromium of the system (`make browser` installs Debian's); neither is asked for anything else.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import MixtralConfig, MixtralForCausalLM

import lorashear

ROOT = Path(__file__).resolve().parent.parent
SHIPPED = ROOT / "examples" / "stdlib-llama-2.8m"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
LAYER = "model.layers.0"


@dataclass(frozen=True)
class Picture:
    """A page, the address in it, its size in pixels, and what is done before it is taken."""

    page: str
    at: str
    size: tuple[int, int]
    act: Callable[[Any], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(PICTURES)}; by default all")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "pictures")
    asked = parser.parse_args()
    unknown = [name for name in asked.names if name not in PICTURES]
    if unknown:
        raise SystemExit(f"pictures: there is no picture {unknown[0]}; there are {', '.join(PICTURES)}")
    take(asked.names or list(PICTURES), asked.out)


def take(names: list[str], out: Path) -> None:
    """Make pictures by their names, as PNG files in the folder ``out``."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, browser() as chromium:
        for name in names:
            picture = PICTURES[name]
            file = Path(scratch) / f"{picture.page}.html"
            if not file.exists():
                PAGES[picture.page](file)
            width, height = picture.size
            tab = chromium.new_page(viewport={"width": width, "height": height}, color_scheme="light")
            tab.goto(f"file://{file}{picture.at}")
            tab.wait_for_selector("[data-box]", state="attached")
            picture.act(tab)
            tab.screenshot(path=str(out / f"{name}.png"))
            tab.close()
            print(f"{out / name}.png  {(out / f'{name}.png').stat().st_size:,} bytes")


@contextmanager
def browser() -> Iterator[Any]:
    """The system's Chromium, without a window."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise SystemExit("pictures: there is no playwright: pip install playwright") from None
    path = next(filter(None, map(shutil.which, CHROMIUM)), None)
    if path is None:
        raise SystemExit("pictures: there is no Chromium: `make browser` installs Debian's, where you are root")
    with sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])  # root has no sandbox
        yield found
        found.close()


# ---- the pages


def shipped_page(file: Path) -> None:
    """The shipped model, and what a compile without text would take of it."""
    with tempfile.TemporaryDirectory() as folder:
        lorashear.compile(SHIPPED, 0.3, Path(folder) / "smaller", one_shot=True)
        lorashear.view(SHIPPED, file, plan=Path(folder) / "smaller")


def experts_page(file: Path) -> None:
    """A mixture of experts of Mixtral's class, without weights."""
    sizes: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "vocab_size": 512}
    with torch.device("meta"):
        config = MixtralConfig(num_hidden_layers=2, num_key_value_heads=4, num_local_experts=8, **sizes)
        model = MixtralForCausalLM(config).eval()
    lorashear.view(model, file)


PAGES = {"shipped": shipped_page, "experts": experts_page}


# ---- what is done to them


def face(tab: Any, box: str) -> Any:
    return tab.locator(f'[data-box="{box}"] > .face')


def fit(tab: Any) -> None:
    """Fits the graph into the window."""
    tab.locator("svg.graph").press("0")
    settle(tab)


def settle(tab: Any) -> None:
    """Takes the focus and the pointer away, so that neither is in the picture."""
    tab.evaluate("document.activeElement?.blur()")
    tab.mouse.move(1, 1)


def opened(tab: Any) -> None:
    """The first layer out of the stack of those that are alike."""
    face(tab, "model.layers.0-5").click()
    tab.evaluate("location.hash = 'at=model.layers.0'")
    tab.wait_for_selector(f'[data-box="{LAYER}.self_attn"]')
    settle(tab)


def one_head(tab: Any) -> None:
    """The second head in its weights; the norm, under the pointer, lights up the hidden channels."""
    tab.locator("#structure").fill("1")
    tab.evaluate("document.activeElement?.blur()")
    tab.locator('[data-box] > .face[aria-label*="input_layernorm"]').hover()


def one_expert(tab: Any) -> None:
    """The third expert in its weights, and in the graph what routes to it and what it computes."""
    tab.locator("#structure").fill("2")
    tab.locator("svg.graph").press("-")
    for _ in range(5):
        tab.locator("svg.graph").press("ArrowDown")
    settle(tab)


PICTURES = {
    "folded": Picture("shipped", "", (1180, 560), fit),
    "layer": Picture("shipped", "", (1340, 880), opened),
    "head": Picture("shipped", f"#group={LAYER}.self_attn.head", (1280, 800), one_head),
    "cut": Picture("shipped", "#side=cut", (1180, 960), settle),
    "experts": Picture("experts", f"#group={LAYER}.mlp.expert", (1280, 800), one_expert),
}


if __name__ == "__main__":
    main()
