// The worst weights, and the table of all: sorted and filtered as a whole, shown a page at a time, so that thousands stay quick.

// A column that no weight fills is left out.
const COLUMNS = [
    { key: "name", title: "weight", text: (x) => x, words: true },
    { key: "kept_output", title: "kept at output", text: figure, measure: true },
    { key: "noise_output", title: "noise at output", text: figure, measure: true },
    { key: "survival", title: "survival", text: figure, measure: true },
    { key: "noise_to_delta", title: "noise/delta", text: figure, measure: true },
    { key: "delta_ratio", title: "delta/weight", text: ratio },
    { key: "error_ratio", title: "error/weight", text: ratio },
    { key: "changed_fraction", title: "changed", text: share },
    { key: "max_abs_error", title: "largest error", text: small },
    { key: "format", title: "format", text: (x) => x, words: true },
    { key: "rounding", title: "rounding", text: (x) => x ?? NONE, words: true },
    { key: "shape", title: "shape", text: (x) => x, by: (w) => w.elements },
].filter(({ key }) => weights.some((w) => w[key] !== null));

// A name breaks after its dots.
const breakable = (name) => name.split(/(?<=\.)/).flatMap((part, i) => (i ? [el("wbr"), part] : [part]));

function weightRow(w, columns) {
    return el("tr", {}, columns.map((column) => {
        const text = column.text(w[column.key]);
        if (column.key === "name") return el("th", { scope: "row" }, breakable(text));
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

// What a weight is judged by: what comes out of it, where that is known of all.
const WORST_BY = {
    kept_output: [1, "The weights from which the least of the adapter's effect comes out."],
    survival: [1, "The weights in which the least of the delta survives."],
    error_ratio: [-1, "The weights with the largest error, for their size."],
};

function showWorst() {
    const key = ["kept_output", "survival"].find((name) => weights.some((w) => w[name] !== null)) ?? "error_ratio";
    const [sign, lead] = WORST_BY[key];
    const some = weights.filter((w) => w[key] !== null).sort((a, b) => sign * (a[key] - b[key])).slice(0, 8);
    if (!some.length || weights.length <= some.length) return;
    const columns = COLUMNS.filter((column) => !["shape", "max_abs_error", "rounding"].includes(column.key));
    const section = $("#worst");
    $(".lead", section).textContent = lead;
    $(".scroll", section).append(el("table", {},
        el("thead", {}, el("tr", {}, columns.map((column) => el("th", { scope: "col", class: column.words ? "" : "number" }, column.title)))),
        el("tbody", {}, some.map((w) => weightRow(w, columns))),
    ));
    section.hidden = false;
}

// The table of all weights. Gives a function that filters it to some and brings it into view.
function showWeights() {
    if (!weights.length) return () => {};
    const section = $("#weights");
    const filter = $("#filter");
    const format = $("#formats select");
    const state = { sort: COLUMNS[0], down: false, page: 0, found: weights };

    const heads = COLUMNS.map((column) => {
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
        body.replaceChildren(...rows.map((w) => weightRow(w, COLUMNS)));
        if (!rows.length) body.append(el("tr", {}, el("td", { colspan: COLUMNS.length, class: "quiet" }, "No weight has all these words in its name.")));
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
        heads.forEach((head, i) => head.setAttribute("aria-sort", state.sort !== COLUMNS[i] ? "none" : state.down ? "descending" : "ascending"));
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
    return ({ module, layer, some, outside }) => {
        const where = outside ? "" : `${some[0].group.split(".").pop()}.${layer}.`;
        filter.value = some.length === 1 ? some[0].name : [where, ...module.split("*")].join(" ").trim();
        find();
        section.scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    };
}
