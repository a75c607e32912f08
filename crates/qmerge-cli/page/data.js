// The documents, and what is derived from them. Any may be absent, and so may every field.

const { reports, comparison } = JSON.parse($("#data").textContent);
// The page of one merge has its report, if there is one.
const report = reports.length === 1 ? reports[0] : null;

const list = (x) => (Array.isArray(x) ? x : []);
const number = (x) => (isNumber(x) ? x : null);
const root = (x) => (x === null ? null : Math.sqrt(x));
const over = (a, b) => (isNumber(a) && isNumber(b) && b > 0 ? a / b : null);

// `model.layers.12.mlp.down_proj.weight` stands in group `model.layers`, layer 12, module `mlp.down_proj`.
function place(name) {
    const parts = name.split(".");
    const at = parts.findIndex((part, i) => i > 0 && /^\d+$/.test(part));
    if (at < 0) return { group: "", layer: null, module: name.replace(/\.weight$/, "").replace(/^model\.(?=.)/, "") };
    const rest = parts.slice(at + 1);
    if (rest.length > 1 && rest[rest.length - 1] === "weight") rest.pop();
    return { group: parts.slice(0, at).join("."), layer: Number(parts[at]), module: rest.join(".") || "weight" };
}

// A report without an adapter is that of a conversion.
const isConversion = (report) => report !== null && list(report.adapters).length === 0;
const converts = isConversion(report);

const weightsOf = (report) => list(report?.weights).map((w, index) => {
    const converts = isConversion(report);
    // Of a delta that is zero nothing can be kept or lost.
    const ofDelta = (x) => (w.delta_rms === 0 ? null : number(x));
    const name = String(w.name ?? `weight ${index}`);
    const shape = list(w.shape).filter(isNumber);
    return {
        index,
        name,
        ...place(name),
        format: w.from === w.to ? String(w.to ?? NONE) : `${w.from ?? "?"} → ${w.to ?? "?"}`,
        shape: shape.join(" × "),
        elements: shape.reduce((a, b) => a * b, 1),
        rounding: w.rounding === undefined || w.rounding === null ? null : String(w.rounding),
        delta_rms: number(w.delta_rms),
        weight_rms: number(w.weight_rms),
        error_rms: number(w.error_rms),
        // Without an adapter there is no delta, and what changed is the error.
        delta_ratio: converts ? null : over(w.delta_rms, w.weight_rms),
        error_ratio: over(w.error_rms, w.weight_rms),
        survival: ofDelta(w.survival),
        noise_to_delta: ofDelta(w.noise_to_delta),
        changed_fraction: converts ? null : number(w.changed_fraction),
        max_abs_error: number(w.max_abs_error),
        kept_output: ofDelta(w.kept_output),
        // The document has energies; sizes are what other figures are.
        noise_output: root(ofDelta(w.noise_output)),
    };
});
const weights = weightsOf(report);
// A merge without any change has nothing to draw.
const changesNothing = report?.verdict?.effect === "none" && weights.every((w) => !(w.delta_rms > 0));

// A weighted mean over weights that have the value; null if none has.
function mean(some, value, by) {
    let sum = 0;
    let all = 0;
    for (const w of some) {
        const [x, k] = [value(w), by(w)];
        if (x === null || !isNumber(k) || k <= 0) continue;
        sum += x * k;
        all += k;
    }
    return all > 0 ? sum / all : null;
}

const square = (x) => (x === null ? null : x * x);
const clamp = (x) => Math.min(1, Math.max(0, x));
// ‖D‖², ‖W‖² of a weight.
const deltaEnergy = (w) => w.elements * (w.delta_rms ?? 0) ** 2;
const weightEnergy = (w) => w.elements * (w.weight_rms ?? 0) ** 2;

// What can be drawn of a weight. `pool` is the figure of several weights together, as the summary has it. `good` maps a value to 0 (bad) … 1
// (good); measures without it are neither, and are drawn from nothing to the largest.
const keptScale = { good: clamp, ticks: [[0, "0 gone"], [0.5, "0.5"], [1, "1 kept"]], text: figure };
// x / (1 + x): the delta's own size is the middle, and no noise is too large.
const noiseScale = {
    good: (x) => 1 - x / (1 + x),
    ticks: [[0, "∞"], [0.2, "4"], [0.5, "1 × the delta"], [0.8, "0.25"], [1, "0"]],
    text: figure,
};
const MEASURES = {
    kept_output: {
        label: "Kept output",
        about: "How much of the adapter's effect on the layer's output is kept, on the calibration text: 1 is all.",
        pool: (some) => mean(some, (w) => w.kept_output, deltaEnergy),
        ...keptScale,
    },
    survival: {
        label: "Survival",
        about: "How much of the adapter's delta is in the weights: 1 is kept on average, 0 is gone. What comes out of layers can be kept with less.",
        pool: (some) => mean(some, (w) => w.survival, deltaEnergy),
        ...keptScale,
    },
    noise_to_delta: {
        label: "Noise / delta",
        about: "The size of what rounding added, in units of the adapter's delta. A merge that changes nothing has 1.",
        pool: (some) => root(mean(some, (w) => square(w.noise_to_delta), deltaEnergy)),
        ...noiseScale,
    },
    noise_output: {
        label: "Output noise",
        about: "The size of what rounding adds to the layer's output on the calibration text, in units of the adapter's effect on it.",
        pool: (some) => root(mean(some, (w) => square(w.noise_output), deltaEnergy)),
        ...noiseScale,
    },
    error_ratio: {
        label: "Error / weight",
        about: "The size of the rounding error in units of the weight.",
        pool: (some) => root(mean(some, (w) => square(w.error_ratio), weightEnergy)),
        text: ratio,
    },
    delta_ratio: {
        label: "Delta / weight",
        about: "The size of the adapter's delta in units of the weight. Below some percent, rounding to four bits erases it.",
        pool: (some) => root(mean(some, (w) => square(w.delta_ratio), weightEnergy)),
        text: ratio,
    },
    changed_fraction: {
        label: "Changed",
        about: "Share of elements whose decoded value differs from the base's.",
        pool: (some) => mean(some, (w) => w.changed_fraction, (w) => w.elements),
        text: share,
    },
};

// The measures, of those named, that some weight has.
const present = (names, some = weights) => names.filter((name) => some.some((w) => w[name] !== null));
const labels = (names) => Object.fromEntries(names.map((name) => [name, MEASURES[name].label]));

// The models of a comparison by their part in it, and the one that the report is about.
const models = list(comparison?.models).map((m) => ({ ...m, name: String(m.name ?? "?") }));
const base = models.find((m) => m.name === "base");
const apart = models.find((m) => m.name === "apart");
const merges = models.filter((m) => m !== base && m !== apart);
// Several merges have a page of their own kind, best first.
const several = reports.length > 1 || (reports.length === 0 && merges.length > 1);
if (several) merges.sort((a, b) => (isNumber(a.kl) ? a.kl : Infinity) - (isNumber(b.kl) ? b.kl : Infinity) || 0);
// On a text that the adapter makes no better, gain kept says nothing.
const helps = !base || !apart || !isNumber(base.loss) || base.loss > apart.loss;
const thisMerge = report ? ofReport() : undefined;

// By its path, by the last part of it (the two commands may have run in different folders), or because there is no other.
function ofReport() {
    return modelOf(report) ?? (merges.length === 1 ? merges[0] : undefined);
}

function modelOf(report) {
    const trimmed = (path) => String(path ?? "").replace(/[\\/]+$/, "");
    const output = trimmed(report.output?.path);
    const alike = merges.filter((m) => lastPart(m.name) === lastPart(output));
    const one = alike.length === 1 && reports.filter((other) => lastPart(other.output?.path) === lastPart(output)).length === 1;
    return merges.find((m) => trimmed(m.name) === output) ?? (one ? alike[0] : undefined);
}

function modelLabel(model) {
    if (model === base) return "base alone";
    if (model === apart) return "adapter kept apart";
    // Two folders of the same name are told apart by the whole path.
    const last = lastPart(model.name);
    return short(merges.filter((m) => lastPart(m.name) === last).length > 1 ? model.name : last);
}

// What a folder is called: a hub's snapshot by its repository, a trainer's checkpoint with the run it is of.
function nameOf(path) {
    const text = String(path ?? "").replace(/[\\/]+$/, "");
    const hub = text.match(/models--([^\\/]+?)--([^\\/]+)[\\/]snapshots[\\/]/);
    if (hub) return `${hub[1]}/${hub[2]}`;
    const run = text.match(/([^\\/]+)[\\/](checkpoint-\d+)$/);
    return short(run ? `${run[1]}/${run[2]}` : lastPart(text) || text || NONE);
}

// What a report is of, in a few words.
function subject(report) {
    const adapters = list(report.adapters).map((adapter) => nameOf(adapter?.path));
    const base = nameOf(report.base?.path);
    if (!adapters.length) return `${base} in ${report.output?.format ?? "another format"}`;
    const names = adapters.length > 3 ? `${adapters.length} adapters` : adapters.join(" + ");
    return `${names} merged into ${base}`;
}
