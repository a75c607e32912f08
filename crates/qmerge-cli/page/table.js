// The worst weights, and the table of all: sorted and filtered as a whole, shown a page at a time, so that thousands stay quick.

// What a verdict rests on stands first; a column that no weight fills, or that says the same of all, is left out.
const COLUMNS = [
    { key: "group", title: "part", text: (x) => x || NONE, words: true },
    { key: "layer", title: "layer", text: (x) => (x === null ? NONE : String(x)) },
    { key: "module", title: "module", text: (x) => x, words: true },
    { key: "kept_output", title: "kept output", text: figure, measure: true },
    { key: "noise_output", title: "output noise", text: figure, measure: true },
    { key: "survival", title: "survival", text: figure, measure: true },
    { key: "noise_to_delta", title: "noise/delta", text: figure, measure: true },
    { key: "delta_ratio", title: "delta/weight", text: ratio },
    { key: "error_ratio", title: "error/weight", text: ratio },
    { key: "changed_fraction", title: "changed", text: share },
    { key: "max_abs_error", title: "largest error", text: small },
    { key: "format", title: "format", text: (x) => x, words: true },
    { key: "rounding", title: "rounding", text: (x) => x ?? NONE, words: true },
    { key: "shape", title: "shape", text: (x) => x, by: (w) => w.elements },
];
function columnsOf(some, left_out = []) {
    const parts = new Set(some.map((w) => w.group).filter(Boolean)).size;
    const same = (key) => some.length > 1 && new Set(some.map((w) => w[key])).size === 1;
    return COLUMNS.filter(({ key }) =>
        !left_out.includes(key) && some.some((w) => w[key] !== null) && (key !== "group" || parts > 1) && !(["format", "rounding"].includes(key) && same(key)));
}

// A name stays whole unless it is longer than a line has room for; then it breaks after its dots.
const LONG = 32;
const breakable = (name) => (name.length <= LONG ? name : short(name).split(/(?<=\.)/).flatMap((part, i) => (i ? [el("wbr"), part] : [part])));

function weightRow(w, columns) {
    return el("tr", {}, columns.map((column) => {
        const text = column.text(w[column.key]);
        if (column.key === "module") return el("th", { scope: "row", class: text.length > LONG ? "long" : "", title: w.name }, breakable(text));
        const cell = el("td", { class: column.words ? "" : "number" }, text);
        if (column.measure && w[column.key] !== null) {
            cell.classList.add("tinted");
            paint(cell, MEASURES[column.key], w[column.key], 1);
        }
        return cell;
    }));
}

// Text by its words, so that layer 2 stands before layer 10; figures by size; nothing at the end either way.
const collator = new Intl.Collator("en", { numeric: true });
function compareBy(column, down) {
    const value = column.by ?? ((w) => w[column.key]);
    const sign = down ? -1 : 1;
    return (a, b) => {
        const [x, y] = [value(a), value(b)];
        if (x === null || y === null) return (x === null) - (y === null) || a.index - b.index;
        return sign * (column.words ? collator.compare(x, y) : x - y) || a.index - b.index;
    };
}

const WORST = 8;
// What a weight is judged by, in the order of the terminal: what comes out of it, else its delta, else its error.
const strength = (w) => w.kept_output ?? w.survival ?? Infinity;
const worse = (a, b) => (strength(a) === strength(b) ? (b.error_ratio ?? 0) - (a.error_ratio ?? 0) : strength(a) - strength(b));
const WORST_BY = {
    kept_output: "The weights from which the least of the adapter's effect comes out.",
    survival: "The weights in which the least of the delta survives.",
    error_ratio: "The weights with the largest error, for their size.",
};

// What is said of the worst weights, and a table of them; null where that would be all of them.
function worstOf(weights) {
    const [key] = present(Object.keys(WORST_BY), weights);
    if (!key || weights.length <= WORST) return null;
    const some = [...weights].sort(worse).slice(0, WORST);
    const columns = columnsOf(some, ["shape", "max_abs_error", "rounding"]);
    const table = el("table", {},
        el("thead", {}, el("tr", {}, columns.map((column) => el("th", { scope: "col", class: column.words ? "" : "number" }, column.title)))),
        el("tbody", {}, some.map((w) => weightRow(w, columns))),
    );
    return { lead: WORST_BY[key], table };
}

function showWorst() {
    const found = worstOf(weights);
    if (!found) return;
    const section = $("#worst");
    $(".lead", section).textContent = found.lead;
    $(".scroll", section).append(found.table);
    section.hidden = false;
    sideways($(".scroll", section));
}

// The table of all weights. Gives a function that filters it to some and brings it into view.
function showWeights() {
    if (!weights.length) return () => {};
    const section = $("#weights");
    const filter = $("#filter");
    const format = $("#formats select");
    const columns = columnsOf(weights);
    // At first by the whole name, which is the order of the model.
    const state = { sort: { key: "name", words: true }, down: false, page: 0, found: weights };

    const heads = columns.map((column) => {
        const button = el("button", { type: "button" }, column.title);
        const head = el("th", { scope: "col", class: column.words ? "" : "number", "aria-sort": "none" }, button);
        button.addEventListener("click", () => {
            state.down = state.sort === column && !state.down;
            state.sort = column;
            find();
        });
        return head;
    });
    const body = el("tbody");
    $(".scroll", section).append(el("table", { class: "all" }, el("thead", {}, el("tr", {}, heads)), body));

    const draw = () => {
        const size = Number($("#rows").value);
        const pages = Math.max(1, Math.ceil(state.found.length / size));
        state.page = Math.min(pages - 1, Math.max(0, state.page));
        const start = state.page * size;
        const rows = state.found.slice(start, start + size);
        body.replaceChildren(...rows.map((w) => weightRow(w, columns)));
        if (!rows.length) body.append(el("tr", {}, el("td", { colspan: columns.length, class: "quiet" }, "No weight has all these words in its name.")));
        const of = state.found.length === weights.length ? integer(weights.length) : `${integer(state.found.length)} (of ${integer(weights.length)})`;
        $("#shown").textContent = rows.length ? `${integer(start + 1)}–${integer(start + rows.length)} of ${of}` : `0 of ${integer(weights.length)}`;
        for (const button of section.querySelectorAll("[data-go]")) {
            button.disabled = ["first", "back"].includes(button.dataset.go) ? state.page === 0 : state.page >= pages - 1;
        }
    };
    const find = () => {
        const wanted = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
        // A number stands for itself: 1 is not in 12.
        const holds = (name, word) => (/^\d+$/.test(word) ? name.split(/\D+/).includes(word) : name.includes(word));
        state.found = weights.filter((w) => {
            const name = w.name.toLowerCase();
            return wanted.every((word) => holds(name, word)) && (!format.value || w.format === format.value);
        });
        state.found.sort(compareBy(state.sort, state.down));
        state.page = 0;
        heads.forEach((head, i) => head.setAttribute("aria-sort", state.sort !== columns[i] ? "none" : state.down ? "descending" : "ascending"));
        draw();
    };

    const formats = [...new Set(weights.map((w) => w.format))];
    $("#formats").hidden = formats.length < 2;
    format.append(el("option", { value: "" }, "all"), ...formats.map((name) => el("option", { value: name }, name)));
    filter.addEventListener("input", find);
    format.addEventListener("change", find);
    $("#rows").addEventListener("change", draw);
    $("form", section).addEventListener("submit", (event) => event.preventDefault());
    for (const button of section.querySelectorAll("[data-go]")) {
        button.addEventListener("click", () => {
            state.page = { first: 0, back: state.page - 1, next: state.page + 1, last: Infinity }[button.dataset.go];
            draw();
        });
    }
    find();
    section.hidden = false;
    sideways($(".scroll", section));
    return ({ module, layer, some, outside }) => {
        const where = outside ? "" : `${some[0].group.split(".").pop()}.${layer}.`;
        filter.value = some.length === 1 ? some[0].name : [where, ...module.split("*")].join(" ").trim();
        find();
        section.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    };
}
