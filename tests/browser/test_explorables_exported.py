"""The explorables of the committed notebooks, exported, with the network off: mouse, keys and a finger move them."""

from __future__ import annotations

import json
import math
import re

import nbformat
import pytest
import torch
from nbconvert import HTMLExporter
from playwright.sync_api import expect
from test_notebooks import FOLDER

from clipviz.figures.explorables import html
from clipviz.methods.microclip import dka_similarity

KINDS = {"softmax": "02_zero_shot", "prototypes": "05_dpa", "cut": "06_soap", "gamma": "07_dka",
         "anchor": "10_transduction"}  # fmt: skip


def committed(kind):
    """(cell, the numbers in it) of an explorable."""
    notebook = nbformat.read(FOLDER / f"{KINDS[kind]}.ipynb", as_version=4)
    (cell,) = [cell for cell in notebook.cells if f"explorables.{kind}(" in cell.source]
    (html,) = [output.data["text/html"] for output in cell.outputs if "text/html" in output.data]
    return cell, json.loads(re.search(r"previousElementSibling, (\{.*\})\);</script>", html)[1])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """One page of all cells that end with an explorable, and the numbers in them."""
    cells, numbers = [], {}
    for kind in KINDS:
        cell, numbers[kind] = committed(kind)
        cells.append(cell)
    exporter = HTMLExporter(template_name="lab", mathjax_url="", require_js_url="", jquery_url="")
    path = tmp_path_factory.mktemp("exported") / "page.html"
    path.write_text(exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))[0], encoding="utf-8")
    return path, numbers


def part(page, kind: str):
    """(what is said, sliders, canvas) of an explorable."""
    root = page.locator(".clipviz-explorable").nth(list(KINDS).index(kind))
    root.scroll_into_view_if_needed()
    return root.get_by_role("status"), root.get_by_role("slider"), root.locator("canvas").first


def put(slider, value: float) -> None:
    """As a drag does; a range takes the nearest of its steps."""
    slider.evaluate("(node, value) => { node.value = value; node.dispatchEvent(new Event('input')); }", value)


def test_pictures_have_made_room_and_the_softmax_is_the_softmax(opened, exported):
    path, numbers = exported
    page = opened(path)
    assert [picture.is_visible() for picture in page.locator(".jp-RenderedImage img").all()] == [False] * len(KINDS)
    said, sliders, _ = part(page, "softmax")
    names, cosines, scale = (numbers["softmax"][key] for key in ("names", "cosines", "scale"))
    probs = torch.softmax(scale * torch.tensor(cosines), 0)
    expect(said).to_contain_text(f"The label is {names[0]}, with confidence {probs[0]:.3f}")
    put(sliders.nth(1), 0.3)
    expect(said).to_contain_text(f"The label is {names[1]}")
    put(sliders.nth(2), 0)  # s = 1
    confidence = torch.softmax(torch.tensor([cosines[0], 0.3, *cosines[2:]]), 0)[1]
    near = "|".join(f"{float(confidence) + step / 1000:.3f}" for step in (-2, -1, 0, 1, 2))
    expect(said).to_contain_text(re.compile(f"with confidence ({near})"))


def test_a_slider_is_exact_until_it_is_moved(opened, tmp_path):
    """Cosines of photographs differ by less than a step, and their softmax with a scale of 100 by a lot."""
    cosines = [0.2512, 0.2526, 0.1]
    page = html("softmax", {"names": ["a", "b", "c"], "cosines": cosines, "scale": 100.0})
    (tmp_path / "page.html").write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{page}", encoding="utf-8")
    root = opened(tmp_path / "page.html")
    confidence = torch.softmax(100 * torch.tensor(cosines), 0)[1]
    expect(root.get_by_role("status")).to_contain_text(f"The label is b, with confidence {confidence:.3f}")
    put(root.get_by_role("slider").nth(0), 0.2526)
    expect(root.get_by_role("status")).to_contain_text("The label is a")


def percent(share):
    """With one digit, halves rounded up: as a page does it, and not to even, as Python does."""
    return f"{math.floor(1000 * share + 0.5) / 10:.1f}"


def test_arrow_keys_and_the_mouse_walk_over_the_cut(opened, exported):
    path, numbers = exported
    data = numbers["cut"]
    page = opened(path)
    said, sliders, canvas = part(page, "cut")
    sliders.first.focus()
    page.keyboard.press("Home")
    for t in (0, 1, 2):
        expect(said).to_contain_text(f"tau = {data['taus'][t]:.2f}")
        expect(said).to_contain_text(f"the mask has {sum(data['mask'][t]):g} of 64 patches")
        page.keyboard.press("ArrowRight")
    high, wide = data["grid"]
    chosen = (high // 2) * wide + wide // 2
    canvas.focus()
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowRight")
    chosen += 1 - wide

    def neighbors(patch):
        return sum(n > 3 for n in data["level"][patch]) - (data["level"][patch][patch] > 3)

    expect(said).to_contain_text(f"row {high // 2}, column {wide // 2 + 2}, connected with {neighbors(chosen)} patches")
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + 3, box["y"] + 24)  # the upper left patch of the first picture
    expect(said).to_contain_text(f"row 1, column 1, connected with {neighbors(0)} patches")
    expect(said).to_contain_text(f"it gets {percent(data['attention'][3][0])} % of the attention")
    page.get_by_role("combobox", name="who asks").select_option("1")
    expect(said).to_contain_text(f"it gets {percent(data['asked'][0][0])} % of the attention")


def test_the_label_flips_where_it_is_said_to_and_is_that_of_dka(opened, exported):
    path, numbers = exported
    data = numbers["gamma"]
    page = opened(path)
    said, sliders, _ = part(page, "gamma")
    first, second = (torch.tensor(data[key]) for key in ("first", "second"))
    for i in range(len(first)):
        page.get_by_role("combobox", name="image").select_option(str(i))
        for gamma in (0.0, 0.37, 1.0):
            put(sliders.first, gamma)
            label = int(dka_similarity(first[i : i + 1], second[i : i + 1], gamma).argmax())
            expect(said).to_contain_text(f"gamma = {gamma:.2f}: the pseudo-label is {data['names'][label]}")
        for at, name in re.findall(r"at (0\.\d+) to ([^,.]+)", said.inner_text()):
            before, after = (
                int(dka_similarity(first[i : i + 1], second[i : i + 1], float(at) + step).argmax())
                for step in (-1e-3, 1e-3)
            )
            assert data["names"][after] == name
            assert before != after


def test_a_finger_plays_the_prototypes_and_still_means_still(opened, exported):
    path, numbers = exported
    data = numbers["prototypes"]
    page = opened(path, width=390, has_touch=True, reduced_motion="reduce", color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    said, sliders, _ = part(page, "prototypes")
    last, label = len(data["cosines"]) - 1, data["chosen"]
    expect(said).to_contain_text(f"of {data['names'][label]} is {data['cosines'][0][label]:.3f}")
    page.get_by_role("button", name="play").tap()
    expect(said).to_contain_text(f"After epoch {last - 1}")
    expect(said).to_contain_text(f"of {data['names'][label]} is {data['cosines'][last][label]:.3f}")
    expect(sliders.first).to_have_attribute("aria-valuetext", str(last - 1))
    page.get_by_role("combobox", name="class").select_option("3")
    expect(said).to_contain_text(f"of {data['names'][3]} is {data['cosines'][last][3]:.3f}")


def test_mass_moves_with_the_anchor(opened, exported):
    path, numbers = exported
    data = numbers["anchor"]
    page = opened(path)
    said, sliders, canvas = part(page, "anchor")
    for k in (0, len(data["strengths"]) - 1):
        put(sliders.first, k)
        absent = sum(mass for mass, n in zip(data["mass"][k], data["truth"], strict=True) if not n)
        expect(said).to_contain_text(f"not there hold {absent:.1f} of the {sum(data['truth']):g} images")
        expect(said).to_contain_text(f"{data['right'][k]:.0f} % of the labels are right")
    expect(canvas).to_have_attribute("aria-label", re.compile("Bars of what each class holds. alpha = 100"))
