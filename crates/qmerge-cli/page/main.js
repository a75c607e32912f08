// Light and dark, printing, and the start.

const toggle = $("#theme");

// A page that was opened as a file may have no storage.
function remembered(theme) {
    try {
        if (theme) localStorage.setItem("qmerge-theme", theme);
        return localStorage.getItem("qmerge-theme");
    } catch {
        return null;
    }
}

function setTheme(theme) {
    document.documentElement.dataset.theme = theme;
    toggle.textContent = theme === "dark" ? "Light" : "Dark";
    toggle.setAttribute("aria-pressed", String(theme === "dark"));
    toggle.setAttribute("aria-label", `Switch to ${theme === "dark" ? "light" : "dark"} colours`);
    redraw();
}

const system = matchMedia("(prefers-color-scheme: dark)");
const preferred = () => remembered() ?? (system.matches ? "dark" : "light");
toggle.addEventListener("click", () => {
    const theme = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
    remembered(theme);
    setTheme(theme);
});
system.addEventListener("change", () => setTheme(preferred()));
// Paper is white, and nothing on it can be opened.
const opened = [];
addEventListener("beforeprint", () => {
    document.documentElement.dataset.theme = "light";
    redraw();
    opened.push(...document.querySelectorAll("#behaviour details:not([open]), #details details:not([open])"));
    for (const details of opened) details.open = true;
});
addEventListener("afterprint", () => {
    setTheme(preferred());
    for (const details of opened.splice(0)) details.open = false;
});

setTheme(preferred());
if (several) {
    showSeveral();
    showBehaviour();
} else {
    showVerdict();
    showDone();
    showBehaviour();
    const pick = showWeights();
    if (!changesNothing) {
        showCharts();
        showWorst();
        showHeat([{ name: null, weights }], pick);
    }
}
// What is said of deltas is not for a conversion.
for (const element of document.querySelectorAll("#about .of-delta")) element.hidden = converts;
$("#tool").textContent = `Written by ${[...new Set(reports.map(({ tool }) => [tool?.name ?? "qmerge", tool?.version].filter(Boolean).join(" ")))].join(", ") || "qmerge"}.`;
$("#contents").append(...[...document.querySelectorAll("main > section[id]:not([hidden])")]
    .filter((section) => !["verdict", "warnings"].includes(section.id))
    .map((section) => el("a", { href: `#${section.id}` }, $("h2", section).textContent)));
