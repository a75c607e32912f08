// Several merges side by side: one table, best first where one text tells which is best, small heat maps on one scale, and each one's details.

// Each merge: its report, its model in the comparison, or both.
function mergesOf() {
    const found = reports.map((report) => ({ report, model: modelOf(report) ?? null }));
    const taken = new Set(found.map(({ model }) => model));
    return [...found, ...merges.filter((model) => !taken.has(model)).map((model) => ({ report: null, model }))].map((entry) => {
        const path = String(entry.report?.output?.path ?? entry.model?.name ?? NONE);
        return { ...entry, path, weights: weightsOf(entry.report) };
    });
}

// What was measured of a merge: by the comparison, else by the merge itself.
function figuresOf({ report, model }) {
    if (comparison) return model ? { kl: model.kl, se: model.kl_se, gain: helps ? model.gain_kept : null, top1: model.top1, ...judged(model) } : null;
    const found = report.behaviour;
    const verdict = report.verdict ?? {};
    return found ? { kl: found.kl, top1: found.top1, severity: severityOf(verdict.effect), text: `${sentence(String(verdict.text))}.` } : null;
}

// The text that all figures are of, if there is one. Runs of one base and adapter on one text agree on how far the base is away, to the last digit.
function commonText(entries) {
    if (comparison) return String(comparison.text);
    const found = entries.map(({ report }) => report.behaviour).filter(Boolean);
    const texts = new Set(found.map((b) => JSON.stringify([b.text, b.tokens, b.kl_base])));
    return found.length > 1 && texts.size === 1 && isNumber(found[0].kl_base) ? `${integer(found[0].tokens)} tokens ${found[0].text}` : null;
}

// Least KL first; then what has none, which is broken; then what was not measured.
function ranked(entries) {
    const place = ({ figures }) => (!figures ? 2 : isNumber(figures.kl) ? 0 : 1);
    return [...entries].sort((a, b) => place(a) - place(b) || (place(a) === 0 ? a.figures.kl - b.figures.kl : 0));
}

// What became of the adapter, in one word.
const effectOf = ({ model, report }) => (comparison && model ? model.verdict : report?.verdict)?.effect;

// Where there was nothing to keep, nothing was.
const keptOf = ({ report }) => (report?.verdict?.effect === "none" ? null : report?.summary?.kept_output);

// True if all entries have the same of something that they have at all.
function agree(entries, of) {
    return new Set(entries.filter(({ report }) => report).map(({ report }) => JSON.stringify(of(report)))).size <= 1;
}

const SEVERAL_COLUMNS = [
    ["effect", (entry) => (effectOf(entry) ? el("span", { class: `dot ${severityOf(effectOf(entry))}` }, String(effectOf(entry))) : NONE), effectOf, true],
    ["KL", ({ figures }) => (figures ? [isNumber(figures.kl) ? nats(figures.kl) : "not finite", isNumber(figures.se) ? el("small", {}, ` ± ${nats(figures.se)}`) : null] : "not measured"), ({ figures }) => figures],
    ["gain kept", ({ figures }) => share(figures?.gain), ({ figures }) => isNumber(figures?.gain)],
    ["top-1", ({ figures }) => share(figures?.top1), ({ figures }) => isNumber(figures?.top1)],
    ["kept output", (entry) => figure(keptOf(entry)), (entry) => isNumber(keptOf(entry))],
    ["format", ({ report }) => report?.output?.format ?? NONE, ({ report }) => report, true],
    ["rounding", ({ report }) => report?.rounding?.method ?? NONE, ({ report }) => report?.rounding?.method, true],
    ["size", ({ report }) => bytes(report?.output?.bytes), ({ report }) => report],
    ["time", ({ report }) => seconds(report?.summary?.seconds), ({ report }) => isNumber(report?.summary?.seconds)],
    ["memory", ({ report }) => bytes(report?.summary?.peak_rss_bytes), ({ report }) => isNumber(report?.summary?.peak_rss_bytes)],
];

function mergesTable(entries, { adapters, bases, text }) {
    const columns = SEVERAL_COLUMNS.filter(([, , has]) => entries.some(has));
    const names = (report) => list(report?.adapters).map((adapter) => nameOf(adapter?.path)).join(" + ") || NONE;
    if (!adapters) columns.push(["adapter", ({ report }) => names(report), null, true]);
    if (!bases) columns.push(["base", ({ report }) => (report ? nameOf(report.base?.path) : NONE), null, true]);
    const about = ({ behaviour } = {}) => (behaviour ? `${integer(behaviour.tokens)} tokens ${behaviour.text}` : NONE);
    if (!text) columns.push(["measured on", ({ report }) => about(report ?? {}), null, true]);
    return el("table", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "merge"), columns.map(([title, , , isText]) => el("th", { scope: "col", class: isText ? "" : "number" }, title)))),
        el("tbody", {}, entries.map((entry) => el("tr", {},
            el("th", { scope: "row", title: entry.path, class: entry.name.length > LONG ? "long" : "" }, breakable(entry.name)),
            columns.map(([, cell, , isText]) => el("td", { class: isText ? "" : "number" }, cell(entry))),
        ))),
    );
}

// What the first of the ranked merges shows, and how sure its place is.
function leader(best, next, many) {
    const { severity, text } = best.figures;
    const lines = [text];
    const spread = Math.hypot(best.figures.se ?? NaN, next?.figures?.se ?? NaN);
    if (next && isNumber(next.figures?.kl) && next.figures.kl - best.figures.kl < spread) {
        lines.push(`${next.name} is so near to it that this text does not tell them apart.`);
    }
    return { head: many ? `${best.name} comes closest to the adapter kept apart` : `Only ${best.name} was measured`, severity: severity ?? "", lines: lines.filter(Boolean) };
}

function showSeveral() {
    const entries = mergesOf();
    for (const entry of entries) {
        entry.figures = figuresOf(entry);
        // Two folders of the same name are told apart by the whole path.
        entry.name = short(entries.filter((other) => lastPart(other.path) === lastPart(entry.path)).length > 1 ? entry.path : lastPart(entry.path));
    }
    const adapters = agree(entries, (report) => list(report.adapters).map((adapter) => [adapter?.sha256 || adapter?.path, adapter?.weight]));
    const bases = agree(entries, (report) => [nameOf(report.base?.path), report.base?.bytes]);
    const text = commonText(entries);
    const shown = text ? ranked(entries) : entries;
    const measured = shown.filter(({ figures }) => isNumber(figures?.kl));
    const first = reports[0];
    const of = first && adapters && bases ? subject(first) : comparison ? `merges on ${nameOf(comparison.text)}` : "merges of different models";
    const number = `${entries.length} merges`;
    if (text && measured.length) {
        const { head, severity, lines } = leader(measured[0], measured[1], measured.length > 1);
        showHead(of, head, severity, [number]);
        $("#verdict .lines").append(...lines.map((line) => el("p", {}, prose(line))));
    } else {
        showHead(of, `${entries.length} merges, not ranked`, "");
        const why = ["None of them was measured", `Only ${measured[0]?.name} was measured`][measured.length] ?? "They were not measured on the same text";
        const how = "`qmerge compare` with each of them as `--merged` measures all on one text.";
        $("#verdict .lines").append(el("p", {}, `${why}, so they stand in the order in which they were given. `, prose(how)));
    }
    $("#verdict .after").append(...[caution()].filter(Boolean));
    if (!adapters || !bases) {
        $("#warnings").append(el("ul", {}, el("li", {}, `These merges are of different ${[adapters ? null : "adapters", bases ? null : "bases"].filter(Boolean).join(" and ")}: what they keep is not of the same thing.`)));
        $("#warnings").hidden = false;
    }
    const section = $("#merges");
    $(".lead", section).textContent = text
        ? `Least KL first${comparison ? "" : `, on ${text}`}. Time and memory are those of each merge's own run.`
        : "In the order given. Time and memory are those of each merge's own run.";
    $(".scroll", section).append(mergesTable(shown, { adapters, bases, text }));
    section.hidden = false;
    sideways($(".scroll", section));
    // A comparison's own section has these bars.
    if (text && !comparison && measured.length > 1) {
        const rows = [[{ name: "base", label: "base alone" }, measured[0].report.behaviour.kl_base], ...measured.map((entry) => [{ name: entry.path }, entry.figures.kl])];
        $(".bars", section).append(bars("KL", "nats per token from the adapter kept apart; less is better", rows, nats));
    }
    showHeat(shown.filter(({ weights }) => weights.length).map(({ name, weights }) => ({ name, weights })), () => {});
    const details = $("#details");
    for (const entry of shown.filter(({ report }) => report)) details.append(mergeDetails(entry));
    details.hidden = !first;
}

// One merge's own report, folded.
function mergeDetails({ name, report, weights }) {
    const worst = worstOf(weights);
    const warnings = warningsOf(report);
    const box = worst ? el("div", { class: "scroll", role: "region", "aria-label": `Worst weights of ${name}` }, worst.table) : null;
    const details = el("details", { class: "merge" },
        el("summary", {}, el("strong", {}, name)),
        report.verdict?.text ? el("p", {}, prose(`${sentence(String(report.verdict.text))}.`)) : null,
        adviceOf(report.verdict),
        warnings.length ? [el("h3", {}, "Warnings"), warnings] : null,
        el("dl", { class: "facts" }, report.date ? fact("date", dateText(report.date)) : null, factsOf(report)),
        worst ? [el("h3", {}, "Worst weights"), el("p", { class: "quiet" }, worst.lead), box] : null,
    );
    if (box) sideways(box);
    return details;
}
