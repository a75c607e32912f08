// Models side by side: bars, the table, and continuations with the place where they part.

// Values this many times as large as others need a logarithmic axis.
const SPREAD = 30;

// Where bars begin and end, so that differences are seen. A share goes from nothing to the whole; what has no natural zero begins near its least
// value. `about` says what is not as usual.
function axisOf(values, kind) {
    const high = Math.max(...values, kind === "share" ? 1 : 0);
    const positive = values.filter((x) => x > 0);
    const least = Math.min(...positive);
    const low = Math.min(...values);
    if (!positive.length) return { low: 0, high: 1, part: () => 0, about: "" };
    if (kind === "share") return { low: 0, high, part: (x) => x / high, about: "" };
    if (high / least > SPREAD) {
        const [start, end] = [10 ** Math.floor(Math.log10(least) - 1e-9), 10 ** Math.ceil(Math.log10(high))];
        return { low: start, high: end, part: (x) => (x > 0 ? Math.log(x / start) / Math.log(end / start) : 0), about: "logarithmic axis" };
    }
    if (kind === "relative" && high > low) {
        const start = low - 0.2 * (high - low);
        return { low: start, high, part: (x) => (x - start) / (high - start), about: "the axis does not begin at zero" };
    }
    return { low: 0, high, part: (x) => x / high, about: "" };
}

// Horizontal bars.
function bars(title, about, rows, text, kind) {
    const filled = rows.filter(([, value]) => isNumber(value));
    if (!filled.length) return null;
    const axis = axisOf(filled.map(([, value]) => value), kind);
    return el("div", { class: "chart" },
        el("h3", {}, title),
        el("p", { class: "quiet" }, [about, axis.about].filter(Boolean).join("; ")),
        el("ul", {}, filled.map(([model, value, more]) => el("li", { title: model.name },
            el("span", { class: "label" }, model.label ?? modelLabel(model)),
            el("span", { class: "value" }, text(value), more ? el("small", {}, ` ${more}`) : null),
            el("span", { class: `bar ${model === base || model === apart || model.label ? "" : "own"}`, "--w": `${(100 * clamp(axis.part(value))).toFixed(2)}%` }),
        ))),
        el("div", { class: "ends", "aria-hidden": true }, el("span", {}, text(axis.low)), el("span", {}, text(axis.high))),
    );
}

const MODEL_COLUMNS = [
    ["loss", fixed(4)], ["perplexity", fixed(3)], ["kl", nats, "KL"], ["kl_se", nats, "±"], ["top1", share, "top-1"],
    ["gain_kept", share, "gain kept"], ["first_divergence", fixed(1), "tokens before a difference"],
];

function modelTable() {
    const columns = MODEL_COLUMNS.filter(([key]) => models.some((m) => isNumber(m[key])));
    return el("table", {},
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "model"), columns.map(([key, , title]) => el("th", { scope: "col", class: "number" }, title ?? key)))),
        el("tbody", {}, [base, apart, ...merges].filter(Boolean).map((m) => el("tr", {},
            el("th", { scope: "row", title: m.name }, modelLabel(m)),
            columns.map(([key, text]) => el("td", { class: "number" }, text(m[key]))),
        ))),
    );
}

// Where two texts part, at the start of a word: the number of characters that they share.
function shared(a, b) {
    if (a === b) return a.length;
    let at = 0;
    while (at < a.length && at < b.length && a[at] === b[at]) at += 1;
    // Inside a word, the whole word differs.
    while (at > 0 && /\S/.test(a[at - 1]) && /\S/.test((a[at] ?? "") + (b[at] ?? ""))) at -= 1;
    return at;
}

const words = (text) => text.split(/\s+/).filter((word) => /[\p{L}\p{N}]/u.test(word)).length;

function continuation(model, text, reference) {
    const whole = model === apart || reference === null;
    const at = whole ? text.length : shared(text, reference);
    const same = at === text.length && (whole || text.length === reference.length);
    const kept = words(text.slice(0, at));
    // Space is not worth a mark.
    const rest = at + (text.length - at - text.slice(at).trimStart().length);
    // What is the same may be a comma.
    const beginning = text.slice(0, at).trim();
    const after = kept > 0 ? `after ${kept} word${kept === 1 ? "" : "s"}` : beginning ? `after “${beginning}”` : "from the first word";
    const note = whole ? "reference" : same ? "the same to the end" : `differs ${after}`;
    return el("div", { class: "continuation" },
        el("h4", { title: model.name }, modelLabel(model), el("small", { class: whole || same ? "" : "differs" }, note)),
        el("p", {}, text.slice(0, rest), same || whole ? null : el("mark", {}, text.slice(rest) || "(ends here)")),
    );
}

function generations() {
    const inOrder = [apart, ...merges, base].filter(Boolean);
    const number = Math.max(0, ...inOrder.map((m) => list(m.generations).length));
    const prompts = list(comparison.prompts);
    return Array.from({ length: number }, (_, i) => {
        const reference = apart ? String(list(apart.generations)[i] ?? "") : null;
        return el("details", { open: i < 2 },
            el("summary", {}, `Continuation ${i + 1}`, prompts[i] ? el("q", {}, String(prompts[i]).trim()) : null),
            el("div", { class: "side" }, inOrder.map((m) => continuation(m, String(list(m.generations)[i] ?? ""), reference))),
        );
    });
}

function showBehaviour() {
    if (!models.length) return;
    const section = $("#behaviour");
    const { windows, context, tokens, text } = comparison;
    const many = (n, word) => `${integer(n)} ${word}${n === 1 ? "" : "s"}`;
    $(".lead", section).append("On ", path(text), ` (${many(windows, "window")} of ${integer(context)} tokens, ${many(tokens, "prediction")}). `,
        "The adapter kept apart is exact, and the reference.");
    const inOrder = [base, apart, ...merges].filter(Boolean);
    const rows = (key) => inOrder.map((m) => [m, m[key]]);
    $(".bars", section).append(...[
        helps ? bars("Gain kept", "of the loss that the adapter saves; more is better", rows("gain_kept"), share, "share") : null,
        bars("KL", "nats per token from the adapter kept apart; less is better", inOrder.filter((m) => m !== apart).map((m) => [m, m.kl, isNumber(m.kl_se) ? `± ${nats(m.kl_se)}` : ""]), nats),
        bars("Perplexity", "less is better", rows("perplexity"), fixed(3), "relative"),
    ].filter(Boolean));
    $(".scroll", section).append(modelTable());
    sideways($(".scroll", section));
    const found = generations();
    if (found.length) {
        $(".generations", section).append(el("h3", {}, "Continuations"),
            el("p", { class: "quiet" }, "The most likely token at each step. What differs from the adapter kept apart is marked, from the first word that does."), ...found);
    }
    section.hidden = false;
}
