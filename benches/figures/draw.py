"""Draws the book's pictures from numbers.json and smollm2.json into docs/src/images: python3 benches/figures/draw.py. Needs nothing but Python."""

import json
import math
import os
from html import escape

HERE = os.path.dirname(os.path.abspath(__file__))
IMAGES = os.path.join(HERE, "..", "..", "docs", "src", "images")

# Colours that can be read on white and on dark grey. Text and axes have one of their own, from the middle between both.
INK = "#7d8590"
COLOURS = {"nearest": "#d1495b", "keep": "#a0737d", "gptq": "#9467bd", "descent": "#2a86d8", "stochastic": "#d08a17", "adapter": "#2e9e5b"}


class Drawing:
    def __init__(self, width, height, title):
        self.size, self.title, self.items = (width, height), title, []

    def line(self, x1, y1, x2, y2, colour=INK, width=1.0, dash=""):
        dashes = f' stroke-dasharray="{dash}"' if dash else ""
        self.items.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{dashes}/>')

    def rect(self, x, y, width, height, colour, opacity=1.0):
        self.items.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}" fill-opacity="{opacity}"/>')

    def dot(self, x, y, colour, radius=4.0, opacity=0.75):
        self.items.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}" fill-opacity="{opacity}"/>')

    def text(self, x, y, text, colour=INK, anchor="middle", size=13, weight="normal"):
        self.items.append(
            f'<text x="{x:.1f}" y="{y:.1f}" fill="{colour}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">{escape(text)}</text>'
        )

    def arrow(self, x1, x2, y, colour):
        self.line(x1, y, x2, y, colour, 2)
        head = math.copysign(min(5, abs(x2 - x1)), x1 - x2)
        self.items.append(f'<path d="M{x2:.1f} {y:.1f} l{head:.1f} -4 v8 z" fill="{colour}"/>')

    def save(self, name):
        width, height = self.size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
            f'font-family="system-ui, sans-serif">\n<title>{escape(self.title)}</title>\n'
        )
        with open(os.path.join(IMAGES, name), "w", encoding="utf-8") as file:
            file.write(head + "\n".join(self.items) + "\n</svg>\n")


def percent(share):
    return f"{100 * share:.1f} %"


def boundary(block):
    """A value of a block between its neighbours, and how far its delta moves it."""
    drawing = Drawing(720, 290, "The levels of an NF4 block, a value, its delta, and the boundary that it does not reach")
    levels, code, delta = block["levels"], block["code"], block["delta"]
    value = levels[code]

    def axis(y, low, high, first, last):
        scale = (660 - 60) / (high - low)
        drawing.line(40, y, 680, y)
        for level in levels[first:last]:
            x = 60 + (level - low) * scale
            drawing.line(x, y - 8, x, y + 8, INK, 2)
        return lambda level: 60 + (level - low) * scale

    drawing.text(40, 22, f"{block['weight']}, row {block['row']}, column {block['column']}: its block's 16 levels", anchor="start")
    place = axis(60, levels[0], levels[-1], 0, 16)
    drawing.dot(place(value), 60, COLOURS["descent"], 6, 1)
    drawing.text(place(levels[0]), 86, f"{levels[0]:.3f}")
    drawing.text(place(levels[-1]), 86, f"{levels[-1]:.3f}")
    drawing.text(place(value), 86, f"{value:.4f}", COLOURS["descent"])
    near = (levels[code - 1], levels[code + 1])
    margin = 0.1 * (near[1] - near[0])
    zoom = axis(190, near[0] - margin, near[1] + margin, code - 1, code + 2)
    for end, x in ((near[0], 40), (near[1], 680)):
        drawing.line(place(end), 70, zoom(end), 178, INK, 0.7, "3 4")
    for level in (*near, value):
        drawing.text(zoom(level), 218, f"{level:.4f}")
    middles = ((near[0] + value) / 2, (value + near[1]) / 2)
    for middle in middles:
        drawing.line(zoom(middle), 150, zoom(middle), 230, COLOURS["nearest"], 1.5, "5 4")
    drawing.rect(zoom(middles[0]), 184, zoom(middles[1]) - zoom(middles[0]), 12, COLOURS["descent"], 0.18)
    drawing.dot(zoom(value), 190, COLOURS["descent"], 6, 1)
    drawing.arrow(zoom(value), zoom(value + delta), 170, COLOURS["adapter"])
    drawing.text(zoom(value + delta), 158, f"delta {delta:+.4f}", COLOURS["adapter"])
    reach = middles[1] - value if delta > 0 else value - middles[0]
    drawing.text(zoom(middles[0]), 248, "boundary", COLOURS["nearest"])
    drawing.text(zoom(middles[1]), 248, "boundary", COLOURS["nearest"])
    drawing.text(360, 278, f"Rounded to the nearest level it is where it was: the delta goes {percent(abs(delta) / reach)} of the way to the boundary.")
    drawing.save("boundary.svg")


def half_steps(numbers):
    """Histograms of |delta| over the distance to the boundary."""
    drawing = Drawing(720, 300, "How far deltas go towards the boundary of the next code")
    left, right, top, bottom = 50, 690, 40, 240
    demo, large = numbers["demo_half_steps"], numbers["large_half_steps"]
    highest = max(demo["shares"][1:] + large["shares"][1:]) * 1.05

    def x_of(log):
        return left + (log + 5) / 6 * (right - left)

    for name, found, colour in (("SmolLM2-135M", large, COLOURS["descent"]), ("demo", demo, COLOURS["stochastic"])):
        # The first bin holds what has no level beyond it: the ends of the range, where the delta points outwards.
        for i, share in list(enumerate(found["shares"]))[1:]:
            height = share / highest * (bottom - top)
            x = x_of(found["first"] + i * found["bin"])
            drawing.rect(x, bottom - height, x_of(found["first"] + (i + 1) * found["bin"]) - x, height, colour, 0.5)
    drawing.line(left, bottom, right, bottom)
    for log in range(-5, 2):
        drawing.line(x_of(log), bottom, x_of(log), bottom + 5)
        drawing.text(x_of(log), bottom + 22, f"{10.0**log:g}")
    drawing.line(x_of(0), top - 8, x_of(0), bottom, COLOURS["nearest"], 1.5, "5 4")
    drawing.text(x_of(0) + 6, top + 6, "crosses", COLOURS["nearest"], "start")
    drawing.text(x_of(0) + 6, top + 24, "over it", COLOURS["nearest"], "start")
    drawing.text((left + right) / 2, bottom + 46, "|delta| / distance to the boundary of the next code")
    drawing.text(left, 22, f"SmolLM2-135M: {large['crossed']} of {large['total']:,} values cross", COLOURS["descent"], "start")
    drawing.text(left + 340, 22, f"demo: {demo['crossed']:,} of {demo['total']:,}", COLOURS["stochastic"], "start")
    drawing.save("half-steps.svg")


def survival_output(numbers):
    """Survival against kept output, a dot per weight."""
    drawing = Drawing(720, 440, "Survival and kept output of the demo model's weights by rounding method")
    left, right, top, bottom = 70, 560, 30, 380
    found = numbers["demo_losses"]

    def x_of(survival):
        return left + (survival + 0.05) / 1.15 * (right - left)

    def y_of(kept):
        return bottom - (kept + 0.05) / 1.15 * (bottom - top)

    drawing.line(left, bottom, right, bottom)
    drawing.line(left, top, left, bottom)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        drawing.line(x_of(tick), bottom, x_of(tick), bottom + 5)
        drawing.text(x_of(tick), bottom + 22, f"{tick:g}")
        drawing.line(left - 5, y_of(tick), left, y_of(tick))
        drawing.text(left - 10, y_of(tick) + 4, f"{tick:g}", anchor="end")
    drawing.line(x_of(0), y_of(0), x_of(1), y_of(1), INK, 0.8, "3 4")
    order = [method for method in ("nearest", "gptq", "descent", "stochastic", "adapter") if method in found]
    for number, method in enumerate(order):
        for weight in found[method]:
            drawing.dot(x_of(weight["survival"]), y_of(weight["kept_output"]), COLOURS[method])
        noise = sum(weight["noise_output"] for weight in found[method]) / len(found[method])
        drawing.dot(right + 25, top + 20 + 46 * number, COLOURS[method], 5, 1)
        drawing.text(right + 37, top + 25 + 46 * number, method, COLOURS[method], "start", weight="bold")
        drawing.text(right + 37, top + 42 + 46 * number, f"noise output {noise:.2f}", anchor="start", size=12)
    drawing.text((left + right) / 2, bottom + 46, "survival (in the weights)")
    drawing.text(left, 18, "kept output (what comes out of the layer)", anchor="start")
    drawing.save("survival-output.svg")


def gain(data):
    """Bars of gain kept."""
    words = {"nearest": "nearest (as PEFT)", "stochastic": "stochastic", "fast": "adapter (--fast)", "default": "adapter (default)"}
    colours = dict(COLOURS, fast=COLOURS["adapter"], default=COLOURS["adapter"])
    order = [name for name in ("nearest", "gptq", "stochastic", "descent", "fast", "default") if name in data["rows"]]
    title = "share of the adapter's gain that is left after a merge into NF4"
    drawing = Drawing(720, 40 + 34 * len(order), f"{title}: {data['title']}")
    drawing.text(190, 20, title, anchor="start")
    for number, name in enumerate(order):
        y, share = 34 + 34 * number, data["rows"][name]["gain_kept"]
        drawing.text(180, y + 17, words.get(name, name), anchor="end")
        drawing.rect(190, y, 440, 24, INK, 0.15)
        drawing.rect(190, y, 440 * max(share, 0), 24, colours[name])
        drawing.text(640, y + 17, percent(share), colours[name], "start", weight="bold")
    drawing.save("gain.svg")


def main():
    with open(os.path.join(HERE, "numbers.json"), encoding="utf-8") as file:
        numbers = json.load(file)
    boundary(numbers["block"])
    half_steps(numbers)
    survival_output(numbers)
    with open(os.path.join(HERE, "smollm2.json"), encoding="utf-8") as file:
        gain(json.load(file))


if __name__ == "__main__":
    main()
