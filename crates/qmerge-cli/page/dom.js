// Elements, numbers as text, and the one tooltip.

const $ = (selector, root = document) => root.querySelector(selector);

// An element. Strings become text nodes, so that nothing in a report can become markup.
function el(tag, attributes = {}, ...children) {
    const element = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
        if (value === undefined || value === null || value === false) continue;
        if (name === "class") element.className = value;
        else if (name.startsWith("--")) element.style.setProperty(name, value);
        else element.setAttribute(name, value === true ? "" : String(value));
    }
    element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
    return element;
}

const isNumber = (x) => typeof x === "number" && Number.isFinite(x);
const NONE = "–";

// The forms that the terminal uses. Zero has no sign.
const digitsOf = (x, digits) => x.toFixed(digits).replace(/^-(?=[0.]+$)/, "");
const figure = (x) => (isNumber(x) ? digitsOf(x, Math.abs(x) < 9.9995 ? 3 : 1) : NONE);
const share = (x) => (isNumber(x) ? `${digitsOf(100 * x, 1)} %` : NONE);
const ratio = (x) => (isNumber(x) ? `${(100 * x).toPrecision(3)} %` : NONE);
const small = (x) => (isNumber(x) ? (x === 0 ? "0" : x.toExponential(1)) : NONE);
const fixed = (digits) => (x) => (isNumber(x) ? digitsOf(x, digits) : NONE);
// Nats: four digits, or what they would not show.
const nats = (x) => (isNumber(x) && x > 0 && x < 5e-5 ? small(x) : fixed(4)(x));
const integer = (x) => (isNumber(x) ? x.toLocaleString("en-US") : NONE);

// From `least` on, in units of `size`.
function scaled(x, steps) {
    if (!isNumber(x)) return NONE;
    const [, size, unit, digits] = steps.find(([least]) => Math.abs(x) >= least);
    return `${(x / size).toFixed(digits)} ${unit}`.trim();
}
const bytes = (x) => scaled(x, [[1e9, 1e9, "GB", 2], [1e6, 1e6, "MB", 1], [0, 1e3, "kB", 1]]);
const count = (x) => scaled(x, [[1e9, 1e9, "G", 2], [1e6, 1e6, "M", 1], [1e4, 1e3, "k", 1], [0, 1, "", 0]]);
const seconds = (x) => (!isNumber(x) ? NONE : x < 0.1 ? `${(1e3 * x).toFixed(0)} ms` : x < 120 ? `${x.toFixed(2)} s` : `${(x / 60).toFixed(1)} min`);
const lastPart = (path) => String(path).replace(/[\\/]+$/, "").split(/[\\/]/).pop();

// "2026-01-31T12:00:00Z" as a person writes it.
const dateText = (text) => (text ? String(text).replace(/^([\d-]+)T(\d\d:\d\d).*Z$/, "$1 $2 UTC") : null);

// Text with what is typed set as code: what stands between backticks, options with their value, and commands.
const TYPED = /(`[^`]+`|--[a-z][\w-]*(?: (?:auto|nearest|bf16|int8)\b)?|\bqmerge (?:merge|compare|truncate|verify|calibrate|report)\b)/;
const prose = (text) => String(text).split(TYPED).map((part, i) => (i % 2 ? el("code", {}, part.replaceAll("`", "")) : part));

// A name that no line has room for, without its middle.
const MOST = 90;
const short = (text) => (text.length > MOST ? `${text.slice(0, MOST / 2)}…${text.slice(-MOST / 2)}` : text);

// Shows lines near a point of the window, and keeps them inside it.
const tip = {
    element: $("#tip"),
    show(lines, x, y) {
        this.element.replaceChildren(...lines.map((line, i) => el(i === 0 ? "strong" : "div", {}, line)));
        this.element.hidden = false;
        const box = this.element.getBoundingClientRect();
        const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
        const top = y + 14 + box.height > innerHeight ? y - 14 - box.height : y + 14;
        this.element.style.left = `${Math.max(4, left)}px`;
        this.element.style.top = `${Math.max(4, top)}px`;
    },
    hide() {
        this.element.hidden = true;
    },
};

// A box that scrolls sideways where its content is wider, and says so.
function sideways(box, what = "columns") {
    const note = el("p", { class: "sideways", hidden: true }, `More ${what} to the right: scroll sideways.`);
    box.before(note);
    const look = () => {
        const wider = box.scrollWidth > box.clientWidth + 1;
        note.hidden = !wider;
        // Only what scrolls is a stop on the way through the page.
        if (wider) box.tabIndex = 0;
        else box.removeAttribute("tabindex");
    };
    const observer = new ResizeObserver(look);
    for (const element of [box, ...box.children]) observer.observe(element);
    look();
}

// Radio buttons in a row. `choices` maps values to labels.
function segmented(fieldset, name, choices, chosen, change) {
    for (const [value, label] of Object.entries(choices)) {
        const input = el("input", { type: "radio", name, value, checked: value === chosen });
        input.addEventListener("change", () => change(value));
        fieldset.append(el("label", {}, input, el("span", {}, label)));
    }
    fieldset.hidden = Object.keys(choices).length < 2;
}
