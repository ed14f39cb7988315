"""Everything on the status page can be told from its background, in light and in dark mode.

As WCAG 2 has it: the contrast of text is 4.5:1 at least, of lines and marks 3:1. The page takes its
colours from its own variables: two of them are backgrounds, all others are what stands on these.
"""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

PAGE = files("shmstream.registry.ops").joinpath("page.html").read_text(encoding="utf-8")
[STYLE] = re.findall(r"<style>(.*?)</style>", PAGE, re.DOTALL)
[LIGHT, DARK] = re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
RULES = STYLE.replace(LIGHT, "").replace(DARK, "")
BACKGROUNDS = ("--back", "--card")
SCHEMES = {"light": LIGHT, "dark": DARK}
Colour = tuple[float, float, float]


def colours(scheme: str) -> dict[str, Colour]:
    found = re.findall(r"(--[\w-]+): (#[0-9a-f]{6});", SCHEMES[scheme])
    return {name: colour(text) for name, text in found}


def colour(text: str) -> Colour:
    red, green, blue = (int(text[each : each + 2], 16) / 255 for each in (1, 3, 5))
    return red, green, blue


def luminance(of: Colour) -> float:
    red, green, blue = (
        each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in of
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: Colour, two: Colour) -> float:
    dark, light = sorted((luminance(one), luminance(two)))
    return (light + 0.05) / (dark + 0.05)


def over(front: Colour, share: float, back: Colour) -> Colour:
    """The colour of a layer that hides only a share of what is behind it."""
    red, green, blue = (
        share * one + (1 - share) * two for one, two in zip(front, back, strict=True)
    )
    return red, green, blue


def used(properties: str) -> set[str]:
    """The variables that these properties have in the rules."""
    declarations = re.findall(rf"[{{;\s](?:{properties}): ([^;}}]+)", RULES)
    return set(re.findall(r"var\((--[\w-]+)\)", " ".join(declarations)))


def test_the_formula() -> None:
    """Values that are known."""
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast(colour("#767676"), (1, 1, 1)) == pytest.approx(4.54, abs=0.01)
    assert contrast(colour("#777777"), (1, 1, 1)) == pytest.approx(4.48, abs=0.01)


def test_every_colour_is_a_variable() -> None:
    """So that nothing escapes the other tests; and nothing is made paler by other means."""
    names = {*colours("light"), "--shadow"}
    assert {*colours("dark"), "--shadow"} == names
    assert set(re.findall(r"var\((--[\w-]+)\)", RULES)) == names, "all of them, and no other one"
    assert re.findall(r"#[0-9a-f]{3,8}\b|rgb|hsl|color-mix", RULES) == []
    assert re.findall(r"[\s;{](opacity|filter|mix-blend-mode):", RULES) == []
    body = PAGE.replace(STYLE, "")
    assert set(re.findall(r'(?:fill|stroke)="(#\w+)"', body)) == {"#0d7c86", "#fff"}, "the logo"
    surfaces = re.findall(r"^(?:body|\.card)\b[^}]*background: var\((--\w+)\)", RULES, re.MULTILINE)
    assert set(surfaces) == set(BACKGROUNDS)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("background", BACKGROUNDS)
def test_contrast(scheme: str, background: str) -> None:
    values = colours(scheme)
    back = values[background]
    texts = used("color")
    assert {"--ink", "--soft"} <= texts
    found = {name: contrast(values[name], back) for name in values if name not in BACKGROUNDS}
    assert {name: ratio for name, ratio in found.items() if ratio < 3} == {}
    assert {name: ratio for name, ratio in found.items() if name in texts and ratio < 4.5} == {}
    logo = colour("#0d7c86")
    assert contrast(logo, back) >= 3
    assert contrast(logo, (1, 1, 1)) >= 3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_lines_of_the_chart_on_its_area(scheme: str) -> None:
    """The area below the line of bytes to clients is tinted."""
    values = colours(scheme)
    [share] = re.findall(r"fill-opacity: (\.\d+)", RULES)
    area = over(values["--accent-2"], float(share), values["--card"])
    lines = used("stroke")
    assert len(lines) == 3
    assert {each for each in lines if contrast(values[each], area) < 3} == set()
