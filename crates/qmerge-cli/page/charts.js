// Histogram and scatter plot, drawn by uPlot on a canvas: so colours are read from the style sheet, and a change of theme draws anew.

function quantile(sorted, q) {
    return sorted[Math.min(sorted.length - 1, Math.floor(q * sorted.length))];
}

// Round numbers between two ends, about `wanted` of them.
function roundSteps(low, high, wanted) {
    const raw = (high - low) / wanted;
    const power = 10 ** Math.floor(Math.log10(raw));
    const step = power * [1, 2, 5, 10].find((n) => n * power >= raw);
    const ticks = [];
    for (let x = Math.ceil(low / step) * step; x <= high + step * 1e-9; x += step) ticks.push(Math.abs(x) < step * 1e-9 ? 0 : x);
    return ticks;
}

// 1, 2, 5 of every power of ten between two ends, given as logarithms, thinned to what has room.
function logTicks(low, high) {
    const ticks = [];
    const few = high - low > 3;
    for (let power = Math.floor(low); power <= high; power += 1) {
        for (const digit of few ? [1] : [1, 2, 5]) ticks.push(Math.log10(digit) + power);
    }
    return ticks.filter((x) => x >= low - 1e-9 && x <= high + 1e-9);
}

// Values spread over powers of ten are counted on a logarithmic axis.
function histogram(values) {
    const low = Math.min(...values);
    const high = Math.max(...values);
    const log = low > 0 && high / low > 50;
    const [to, from] = log ? [Math.log10, (x) => 10 ** x] : [(x) => x, (x) => x];
    let start = log ? to(low) : Math.min(0, low);
    let end = to(high);
    if (!(end > start)) [start, end] = [start - 0.5, start + 0.5];
    // Enough to show a shape, and not so many that most are empty.
    const bins = Math.min(40, Math.max(8, Math.ceil(2 * Math.sqrt(values.length))));
    const width = (end - start) / bins;
    const counts = new Array(bins).fill(0);
    for (const value of values) counts[Math.min(bins - 1, Math.max(0, Math.floor((to(value) - start) / width)))] += 1;
    const centres = counts.map((_, i) => start + (i + 0.5) * width);
    return { counts, centres, start, end, width, log, from };
}

function colours() {
    const style = getComputedStyle(document.body);
    // A custom property is text; only a real property gives a colour that a canvas knows.
    const probe = document.body.appendChild(el("span", { hidden: true }));
    const read = (name) => {
        probe.style.color = `var(${name})`;
        return getComputedStyle(probe).color;
    };
    const found = { text: read("--quiet"), grid: read("--line"), bar: read("--accent"), point: read("--point"), font: `12px ${style.fontFamily}` };
    probe.remove();
    return found;
}

function axes(colour, x, y) {
    const shape = { stroke: colour.text, font: colour.font, grid: { stroke: colour.grid, width: 1 }, ticks: { stroke: colour.grid, width: 1, size: 4 }, labelFont: colour.font, labelSize: 18 };
    return [
        { ...shape, size: 26, ...x },
        { ...shape, size: 44, ...y },
    ];
}

const HEIGHT = 240;
const plots = [];

// A plot that is drawn anew when `draw` of `redraw` is called; `options` is asked for colours each time.
function plot(place, data, options) {
    const entry = {
        draw() {
            entry.made?.destroy();
            const width = Math.max(200, place.clientWidth);
            entry.made = new uPlot({ width, height: HEIGHT, legend: { show: false }, ...options(colours()) }, data, place);
        },
    };
    entry.draw();
    plots.push(entry);
    let last = place.clientWidth;
    new ResizeObserver(() => {
        if (Math.abs(place.clientWidth - last) < 2) return;
        last = place.clientWidth;
        entry.made.setSize({ width: Math.max(200, last), height: HEIGHT });
    }).observe(place);
    place.addEventListener("pointerleave", () => tip.hide());
    return entry;
}

function redraw() {
    for (const entry of plots) entry.draw();
}

// A hook that shows lines for the point that is nearest to the cursor.
function cursorTip(lines) {
    return (u) => {
        const { left, top, event } = u.cursor;
        const found = left >= 0 && event ? lines(u, left, top) : null;
        if (found) tip.show(found, event.clientX, event.clientY);
        else tip.hide();
    };
}

function showHistogram() {
    const names = present(["kept_output", "survival", "noise_output", "noise_to_delta", "error_ratio"]);
    if (!names.length) return;
    const section = $("#histogram");
    const place = $(".plot", section);
    let entry = null;
    const choose = (name) => {
        const measure = MEASURES[name];
        const values = weights.map((w) => w[name]).filter((x) => x !== null).sort((a, b) => a - b);
        const h = histogram(values);
        if (entry) {
            entry.made.destroy();
            plots.splice(plots.indexOf(entry), 1);
            place.replaceChildren();
        }
        const short = (x) => (measure.text === ratio ? `${Number((100 * x).toPrecision(2))} %` : String(Number(x.toPrecision(2))));
        entry = plot(place, [h.centres, h.counts], (colour) => ({
            scales: { x: { time: false, range: [h.start, h.end] }, y: { range: (u, low, high) => [0, high * 1.08 || 1] } },
            axes: axes(colour,
                { grid: { show: false }, splits: () => (h.log ? logTicks(h.start, h.end) : roundSteps(h.start, h.end, 5)), values: (u, ticks) => ticks.map((x) => short(h.from(x))) },
                { label: "weights", incrs: [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000] }),
            series: [{}, { fill: colour.bar, stroke: colour.bar, width: 0, points: { show: false }, paths: uPlot.paths.bars({ size: [0.9, Infinity], align: 0 }) }],
            cursor: { y: false, drag: { x: false, y: false }, points: { show: false } },
            hooks: { setCursor: [cursorTip((u) => {
                const i = u.cursor.idx;
                if (i === null || i === undefined) return null;
                const [low, high] = [h.centres[i] - h.width / 2, h.centres[i] + h.width / 2].map((x) => measure.text(h.from(x)));
                return [`${integer(h.counts[i])} of ${integer(values.length)} weights`, `${measure.label.toLowerCase()} ${low} to ${high}`];
            })] },
        }));
        const text = `${measure.label}: median ${measure.text(quantile(values, 0.5))}, nine of ten between ${measure.text(quantile(values, 0.05))} and ${measure.text(quantile(values, 0.95))}.`;
        place.setAttribute("aria-label", `Histogram over ${values.length} weights. ${text}`);
        $("figcaption", section).textContent = text;
    };
    segmented($(".switch", section), "histogram", labels(names), names[0], choose);
    choose(names[0]);
}

// Why a weight lost its delta: deltas that are small beside the weight are rounded away.
function showScatter() {
    const points = weights.filter((w) => w.delta_ratio > 0 && w.survival !== null).sort((a, b) => a.delta_ratio - b.delta_ratio);
    if (points.length < 3) return;
    const section = $("#scatter");
    section.hidden = false;
    const place = $(".plot", section);
    const xs = points.map((w) => Math.log10(w.delta_ratio));
    const ys = points.map((w) => w.survival);
    const [low, high] = [xs[0] - 0.05, xs[xs.length - 1] + 0.05];
    const entry = plot(place, [xs, ys], (colour) => ({
        scales: { x: { time: false, range: [low, high] }, y: { range: (u, least, most) => [Math.min(0, least) - 0.03, Math.max(1, most) + 0.03] } },
        axes: axes(colour,
            { label: "delta / weight", size: 26, splits: () => logTicks(low, high), values: (u, ticks) => ticks.map((x) => `${Number((100 * 10 ** x).toPrecision(1))} %`) },
            { label: "survival", values: (u, ticks) => ticks.map((x) => String(Number(x.toFixed(2)))) }),
        series: [{}, { paths: () => null, points: { show: true, space: 0, size: points.length > 2000 ? 3 : 6, width: 0, fill: colour.point } }],
        cursor: { drag: { x: false, y: false }, points: { show: false } },
        hooks: { setCursor: [cursorTip((u, left, top) => {
            let best = 400;
            let found = null;
            // Points near the cursor's column only: thousands must stay quick.
            const from = u.posToVal(left - 20, "x");
            const to = u.posToVal(left + 20, "x");
            for (let i = xs.findIndex((x) => x >= from); i >= 0 && i < xs.length && xs[i] <= to; i += 1) {
                const distance = (u.valToPos(xs[i], "x") - left) ** 2 + (u.valToPos(ys[i], "y") - top) ** 2;
                if (distance < best) [best, found] = [distance, points[i]];
            }
            return found && [found.name, `delta / weight ${ratio(found.delta_ratio)}`, `survival ${figure(found.survival)}`];
        })] },
    }));
    const text = "Each point is a weight. What is small beside the weight's own steps is rounded away.";
    place.setAttribute("aria-label", `Scatter plot of ${points.length} weights: survival against delta over weight, ${ratio(points[0].delta_ratio)} to ${ratio(points[points.length - 1].delta_ratio)}.`);
    $("figcaption", section).textContent = text;
    return entry;
}

function showCharts() {
    if (weights.length < 2 || !present(["error_ratio", "noise_to_delta", "survival"]).length) return;
    // Visible first: a plot is as wide as its place.
    $("#charts").hidden = false;
    $("#scatter").hidden = !weights.some((w) => w.delta_ratio > 0 && w.survival !== null);
    showHistogram();
    showScatter();
}
