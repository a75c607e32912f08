// The heat map: a table of modules (rows) by layers (columns), coloured by a measure. One map for each group of layers, so that a vision tower
// stands beside its language model.

// Beyond this many rows, modules that differ in a number only (experts) share one.
const ROWS = 40;

// The colour of a cell: how far from the middle, and on which side. The colours are the style sheet's, so that they follow the theme.
function paint(cell, measure, value, largest) {
    cell.classList.remove("good", "bad", "plain", "void");
    let strength = 0;
    let side = "void";
    if (value !== null && measure.good) {
        const good = measure.good(value);
        side = good < 0.5 ? "bad" : "good";
        strength = Math.abs(2 * good - 1);
    } else if (value !== null) {
        side = "plain";
        strength = largest > 0 ? clamp(value / largest) : 0;
    }
    cell.classList.add(side);
    cell.style.setProperty("--p", `${(100 * strength).toFixed(1)}%`);
}

// Groups of weights that stand in layers, each with its modules and layers in order of appearance.
function heatGroups(weights) {
    const groups = new Map();
    for (const w of weights) {
        if (!groups.has(w.group)) groups.set(w.group, []);
        groups.get(w.group).push(w);
    }
    return [...groups].map(([name, members]) => {
        const distinct = new Set(members.map((w) => w.module)).size;
        const fold = distinct > ROWS ? (module) => module.replace(/(^|\.)\d+(?=\.|$)/g, "$1*") : (module) => module;
        const cells = new Map();
        for (const w of members) {
            const module = fold(w.module);
            if (!cells.has(module)) cells.set(module, new Map());
            const row = cells.get(module);
            if (!row.has(w.layer)) row.set(w.layer, []);
            row.get(w.layer).push(w);
        }
        const layers = [...new Set(members.map((w) => w.layer))].sort((a, b) => a - b);
        return { name, layers, cells };
    });
}

function heatTable({ name, layers, cells }, cellsOut, of, alone) {
    const outside = name === "";
    // So many columns share a heading that it has room.
    const step = [1, 2, 4, 5, 8, 10, 16, 20].find((n) => layers.length / n <= 16) ?? 32;
    const headings = [];
    for (let at = 0; at < layers.length; at += step) {
        headings.push(el("th", { scope: "colgroup", colspan: Math.min(step, layers.length - at) }, String(layers[at])));
    }
    // Where there is little room, the last part of a module's name is enough if it is the only one.
    const last = (module) => module.slice(module.lastIndexOf(".") + 1);
    const lasts = [...cells.keys()].map(last);
    const label = (module) => {
        const far = module.slice(0, module.length - last(module).length);
        return far && lasts.filter((other) => other === last(module)).length === 1 ? [el("span", { class: "far" }, far), last(module)] : module;
    };
    const rows = [...cells].map(([module, row]) => el("tr", {},
        el("th", { scope: "row", title: module }, label(module)),
        layers.map((layer) => {
            const some = row.get(layer);
            if (!some) return el("td", { class: "absent" });
            const cell = el("td", { tabindex: -1 });
            cellsOut.set(cell, { module, layer, some, outside });
            return cell;
        }),
    ));
    return el("div", { class: "scroll", role: "region", "aria-label": `Heat map of ${[outside ? "what is outside the layers" : name, of].filter(Boolean).join(", ")}` },
        el("table", { class: `map ${outside ? "outside" : ""}`, "--layers": layers.length, role: "grid" },
            alone ? null : el("caption", {}, outside ? "Outside the layers" : el("code", {}, name)),
            outside ? null : el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "layer"), headings)),
            el("tbody", {}, rows),
        ),
    );
}

// The lines of the tooltip, and of the cell's label.
function heatLines({ module, layer, some, outside }, names) {
    const where = outside ? module : `layer ${layer}, ${module}`;
    const title = some.length === 1 ? where : `${where}: ${some.length} weights together`;
    const figures = names.map((name) => `${MEASURES[name].label.toLowerCase()} ${MEASURES[name].text(MEASURES[name].pool(some))}`);
    return [title, ...figures, ...(some.length === 1 ? [`${some[0].shape}, ${some[0].format}`] : [])];
}

function heatLegend(measure, largest) {
    const ticks = measure.ticks ?? [[0, measure.text(0)], [1, measure.text(largest)]];
    return [
        el("div", { class: `ramp ${measure.good ? "" : "plain"}` }),
        el("div", { class: "ticks" }, ticks.map(([at, text]) => el("span", { "--at": `${100 * at}%`, class: at < 0.1 ? "start" : at > 0.9 ? "end" : "" }, text))),
    ];
}

// Heat maps of one merge, or of several on one scale, each with its name. `pick` is told of the cell that was chosen.
function showHeat(maps, pick) {
    const all = maps.flatMap(({ weights }) => weights);
    // Of several, first what is known of each.
    const known = (name) => maps.filter(({ weights }) => present([name], weights).length).length;
    const names = present(["kept_output", "survival", "noise_output", "noise_to_delta", "error_ratio", "delta_ratio", "changed_fraction"], all);
    const first = names.find((name) => known(name) === maps.length) ?? names[0];
    if (!names.length || !all.some((w) => w.group !== "")) return;
    const section = $("#heat");
    const cells = new Map();
    const place = $(".maps", section);
    const unknown = new Map();
    for (const { name, weights } of maps) {
        const groups = heatGroups(weights).sort((a, b) => (a.name === "") - (b.name === ""));
        const tables = groups.map((group) => heatTable(group, cells, name, groups.length === 1));
        if (name) {
            const missing = el("small", { hidden: true }, " not known");
            unknown.set(missing, weights);
            place.append(el("div", { class: "one" }, el("h3", {}, name, missing), tables));
        } else place.append(...tables);
    }
    place.classList.toggle("side", maps.length > 1);

    const choose = (name) => {
        const measure = MEASURES[name];
        const values = new Map([...cells].map(([cell, entry]) => [cell, measure.pool(entry.some)]));
        const largest = Math.max(0, ...[...values.values()].filter(isNumber));
        for (const [cell, value] of values) {
            paint(cell, measure, value, largest);
            cell.setAttribute("aria-label", heatLines(cells.get(cell), [name]).slice(0, 2).join(", "));
        }
        for (const [missing, weights] of unknown) missing.hidden = present([name], weights).length > 0;
        $(".lead", section).textContent = known(name) < maps.length ? `${measure.about} It is not known of every merge.` : measure.about;
        $(".legend", section).replaceChildren(...heatLegend(measure, largest));
    };
    segmented($(".switch", section), "heat", labels(names), first, choose);
    choose(first);

    const entry = (event) => cells.get(event.target.closest?.("td"));
    place.addEventListener("pointermove", (event) => {
        const found = entry(event);
        if (found) tip.show(heatLines(found, names), event.clientX, event.clientY);
        else tip.hide();
    });
    place.addEventListener("pointerleave", () => tip.hide());
    place.addEventListener("focusin", (event) => {
        const found = entry(event);
        if (!found) return;
        const box = event.target.getBoundingClientRect();
        tip.show(heatLines(found, names), box.right, box.bottom);
    });
    place.addEventListener("focusout", () => tip.hide());
    place.addEventListener("click", (event) => {
        const found = entry(event);
        if (found && matchMedia("(hover: hover)").matches) pick(found);
    });
    // One cell of each map takes the focus; arrows move it.
    for (const table of place.querySelectorAll("table")) $("td[tabindex]", table).tabIndex = 0;
    place.addEventListener("keydown", (event) => {
        const cell = event.target.closest("td");
        if (!cell) return;
        if (event.key === "Enter") return void pick(cells.get(cell));
        const steps = { ArrowLeft: [0, -1], ArrowRight: [0, 1], ArrowUp: [-1, 0], ArrowDown: [1, 0] }[event.key];
        if (!steps) return;
        event.preventDefault();
        const row = cell.parentElement;
        const next = row.parentElement.rows[row.sectionRowIndex + steps[0]]?.cells[cell.cellIndex + steps[1]];
        if (!next || next.tagName !== "TD" || !cells.has(next)) return;
        cell.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
    });
    section.hidden = false;
    for (const box of place.querySelectorAll(".scroll")) sideways(box, "layers");
}
