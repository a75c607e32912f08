// What went in and what came out.

function fact(term, ...lines) {
    const filled = lines.flat().filter((line) => line !== null && line !== undefined && line !== "");
    if (!filled.length) return [];
    return [el("div", {}, el("dt", {}, term), filled.map((line) => el("dd", {}, line)))];
}

const joined = (...words) => words.filter((word) => word && word !== NONE).join(", ");
const quiet = (text) => (text ? el("span", { class: "quiet" }, text) : null);
const path = (text) => el("code", {}, String(text ?? NONE));

// A list that is long only when asked for.
function folded(title, items) {
    return items.length ? el("details", {}, el("summary", {}, title), el("ul", {}, items.map((item) => el("li", {}, item)))) : null;
}

function adapterFact(adapter, many, i) {
    const weight = isNumber(adapter.weight) && adapter.weight !== 1 ? ` × ${adapter.weight}` : "";
    const parts = ["merged", "replaced", "unused"].filter((key) => adapter[key] > 0).map((key) => `${integer(adapter[key])} ${key}`);
    const ignored = list(adapter.ignored);
    const unused = list(adapter.unused_tensors);
    return fact(
        many ? `adapter ${i + 1}` : "adapter",
        [path(adapter.path), weight].filter(Boolean).length ? el("span", {}, path(adapter.path), weight) : null,
        quiet(joined(adapter.peft_type, isNumber(adapter.tensors) ? `${integer(adapter.tensors)} tensors: ${parts.join(", ") || "none merged"}` : "")),
        adapter.base_model ? quiet(`trained on ${adapter.base_model}`) : null,
        adapter.sha256 ? el("span", { class: "quiet", title: String(adapter.sha256) }, `sha256 ${String(adapter.sha256).slice(0, 16)}…`) : null,
        folded(`${unused.length} matched nothing`, unused.map(String)),
        folded(`${ignored.length} not needed`, ignored.map((entry) => `${entry?.tensor}: ${entry?.reason}`)),
    );
}

function roundingFact({ method, reason, calibration, seed }) {
    // The text of a calibration names its seed.
    const drawn = isNumber(seed) && !String(calibration ?? "").includes(`seed ${seed}`) ? `seed ${seed}` : null;
    return fact("rounding", method ? String(method) : null,
        reason ? el("span", { class: "quiet" }, prose(sentence(String(reason)))) : null,
        calibration ? quiet(`calibrated on ${calibration}`) : null,
        quiet(drawn));
}

// The facts of a report, for a list of them.
function factsOf(report) {
    const weights = list(report.weights);
    const summary = report.summary ?? {};
    const adapters = list(report.adapters);
    const model = (name, entry) => fact(name, path(entry?.path), quiet(joined(entry?.format, bytes(entry?.bytes))));
    const wide = (nodes) => nodes.map((node) => (node.classList.add("wide"), node));
    return [
        ...model("base", report.base),
        ...adapters.flatMap((adapter, i) => adapterFact(adapter, adapters.length > 1, i)),
        ...model("output", report.output),
        ...roundingFact(report.rounding ?? {}),
        ...fact(
            "weights",
            adapters.length ? `${integer(summary.weights_merged ?? weights.length)} merged` : `${integer(weights.length)} converted`,
            adapters.length === 0 ? null : quiet(joined(isNumber(summary.elements) && `${count(summary.elements)} elements`, isNumber(summary.changed_fraction) && `${share(summary.changed_fraction)} changed`)),
            summary.nonfinite > 0 ? `${integer(summary.nonfinite)} NaN or infinite` : null,
        ),
        ...fact("time and memory",
            joined(isNumber(summary.seconds) && seconds(summary.seconds), isNumber(summary.peak_rss_bytes) && bytes(summary.peak_rss_bytes)),
            quiet(joined(isNumber(summary.bytes_read) && `${bytes(summary.bytes_read)} read`, isNumber(summary.bytes_written) && `${bytes(summary.bytes_written)} written`)),
        ),
        ...wide(fact("command", report.command ? path(report.command) : null)),
    ];
}

// Many are a list that is long only when asked for.
const FEW = 5;
function warningsOf(report) {
    const items = list(report.warnings).map((text) => el("li", {}, prose(text)));
    const more = items.splice(FEW);
    return [
        items.length ? el("ul", {}, items) : null,
        more.length ? el("details", {}, el("summary", {}, `${more.length} more`), el("ul", {}, more)) : null,
    ].filter(Boolean);
}

function showDone() {
    if (!report) return;
    $("#done .facts").append(...factsOf(report));
    $("#done").hidden = false;
    const warnings = warningsOf(report);
    $("#warnings").append(...warnings);
    $("#warnings").hidden = warnings.length === 0;
}
