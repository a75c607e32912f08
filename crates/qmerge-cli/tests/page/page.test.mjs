// The report's page in Chromium: it shows what the documents hold, sorts, filters, follows the theme, fits a phone, and is quick with 10,000 weights.

import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { mkdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { pathToFileURL } from "node:url";

import * as documents from "./documents.mjs";

const { PAGE_WORK: work, QMERGE: qmerge, CHROMIUM: executablePath, SHOTS: shots } = process.env;
const require = createRequire(join(work, "node_modules/"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");
const files = join(work, "files");

let browser;
before(async () => {
    rmSync(files, { recursive: true, force: true });
    mkdirSync(files, { recursive: true });
    browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
});
after(() => browser?.close());

const run = (...args) => execFileSync(qmerge, args, { cwd: files, stdio: ["ignore", "pipe", "pipe"] });

// A page of documents; the last argument is its name.
function render(name, ...found) {
    const paths = found.map((document, i) => {
        const path = `${name}-${i}.json`;
        writeFileSync(join(files, path), JSON.stringify(document));
        return path;
    });
    run("report", ...paths, "-o", `${name}.html`);
    return join(files, `${name}.html`);
}

let demoPage;
// A real merge and its comparison, as a user makes them.
function demo() {
    if (!demoPage) {
        run("demo", "--output", "demo");
        run("compare", "--base", "demo/base-nf4", "--adapter", "demo/adapter", "--merged", "demo/merged-nf4", "--text", "demo/eval.txt",
            "--context", "128", "--windows", "8", "--continuation", "24", "--report", "demo.html");
        demoPage = join(files, "demo.html");
    }
    return demoPage;
}

// Opens a page, gives it to `check`, and fails if anything went wrong in it or it asked for anything.
async function open(file, check, { width = 1200, height = 900, scheme = "light" } = {}) {
    const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme });
    try {
        const page = await context.newPage();
        const wrong = [];
        page.on("console", (message) => ["error", "warning"].includes(message.type()) && wrong.push(message.text()));
        page.on("pageerror", (error) => wrong.push(error.stack));
        const url = pathToFileURL(file).href;
        page.on("request", (request) => request.url() !== url && wrong.push(`asked for ${request.url()}`));
        await page.goto(url);
        await check(page);
        assert.deepEqual(wrong, []);
        assert.equal(await page.evaluate(() => window.hacked), undefined);
    } finally {
        await context.close();
    }
}

const column = (page, number) => page.locator(`#weights tbody tr > :nth-child(${number})`).allTextContents();
const shown = (page, selector) => page.locator(selector).isVisible();

test("a real merge with its comparison", async () => {
    await open(demo(), async (page) => {
        for (const id of ["verdict", "done", "behaviour", "heat", "charts", "worst", "weights", "about"]) assert.ok(await shown(page, `#${id}`), id);
        assert.match(await page.title(), /qmerge report/);
        // Behaviour and what comes out of layers; the figures that mislead are further below.
        assert.match(await page.textContent("#verdict .tiles"), /effect kept.*%.*gain kept.*%.*KL.*kept output/s);
        assert.doesNotMatch(await page.textContent("#verdict"), /survival|noise/);
        assert.match(await page.textContent("#verdict .lines"), /merged-nf4: [0-9.]+ ± [0-9.]+ % of it is left.*keeps [0-9.]+ % of what the adapter gains/);
        assert.match(await page.textContent("#done"), /demo\/base-nf4.*demo\/adapter.*LORA.*rounding.*adapter.*28 merged/s);
        assert.equal(await page.locator("#heat td").count(), 28);
        assert.equal(await page.locator("#behaviour .continuation").count(), 12);
        assert.ok((await page.locator("#behaviour mark").count()) > 0);
        // The figures are those of the document.
        const { report, comparison } = JSON.parse(await page.textContent("#data"));
        assert.ok((await page.textContent("#verdict .tiles")).includes(report.summary.kept_output.toFixed(3)));
        assert.ok((await page.textContent("#behaviour table")).includes(comparison.models[2].kl.toFixed(4)));
        assert.equal(await page.textContent("#shown"), "1–25 of 28");
    });
});

test("the table sorts and filters, by mouse and keyboard", async () => {
    await open(demo(), async (page) => {
        const head = page.locator("#weights th[aria-sort]").nth(1);
        const button = head.getByRole("button");
        await button.click();
        assert.equal(await head.getAttribute("aria-sort"), "ascending");
        const up = (await column(page, 2)).map(Number);
        assert.deepEqual(up, [...up].sort((a, b) => a - b));
        await button.focus();
        await page.keyboard.press("Enter");
        assert.equal(await head.getAttribute("aria-sort"), "descending");
        const down = (await column(page, 2)).map(Number);
        assert.deepEqual(down, [...down].sort((a, b) => b - a));
        assert.ok(down[0] > up[0]);
        await page.fill("#filter", "2 down_proj");
        assert.deepEqual(await column(page, 1), ["model.layers.2.mlp.down_proj.weight"]);
        assert.equal(await page.textContent("#shown"), "1–1 of 1 (of 28)");
        await page.fill("#filter", "nothing like it");
        assert.match((await column(page, 1))[0], /No weight/);
        await page.fill("#filter", "");
        await page.click("[data-go=last]");
        assert.equal(await page.textContent("#shown"), "26–28 of 28");
        assert.ok(await page.isDisabled("[data-go=next]"));
    });
});

test("the heat map switches measures, shows figures, and leads to the weight", async () => {
    await open(demo(), async (page) => {
        const cells = page.locator("#heat td[tabindex]");
        const colours = () => cells.evaluateAll((all) => all.map((cell) => getComputedStyle(cell).backgroundColor).join());
        const before = await colours();
        await page.locator("#heat .switch").getByText("Noise / delta").click();
        assert.notEqual(await colours(), before);
        await cells.nth(5).hover();
        assert.match(await page.textContent("#tip"), /layer \d, .*survival -?\d.*noise \/ delta \d.*changed/s);
        await page.mouse.move(0, 0);
        assert.ok(!(await shown(page, "#tip")));
        await cells.nth(0).focus();
        assert.ok(await shown(page, "#tip"));
        await page.keyboard.press("ArrowRight");
        await page.keyboard.press("ArrowDown");
        const label = await page.evaluate(() => document.activeElement.getAttribute("aria-label"));
        assert.match(label, /^layer 1, .*noise \/ delta/);
        await page.keyboard.press("Enter");
        assert.equal((await column(page, 1)).length, 1);
        assert.match((await column(page, 1))[0], /\.layers\.1\./);
    });
});

// How many different colours a canvas holds.
const inks = (page, selector) => page.locator(`${selector} canvas`).evaluate((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
});

test("charts are drawn, and follow the theme", async () => {
    await open(demo(), async (page) => {
        assert.ok((await inks(page, "#histogram")) > 3 && (await inks(page, "#scatter")) > 3);
        const caption = await page.textContent("#histogram figcaption");
        await page.locator("#histogram .switch").getByText("Survival").click();
        assert.notEqual(await page.textContent("#histogram figcaption"), caption);
        assert.equal(await page.locator("#histogram canvas").count(), 1);
        const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
        const light = await ground();
        const drawn = () => page.locator("#histogram canvas").evaluate((canvas) => canvas.toDataURL());
        const plot = await drawn();
        await page.click("#theme");
        assert.notEqual(await ground(), light);
        assert.notEqual(await drawn(), plot);
        assert.equal(await page.getAttribute("#theme", "aria-pressed"), "true");
        await page.reload();
        assert.notEqual(await ground(), light);
        await page.click("#theme");
        assert.equal(await ground(), light);
        // Paper is white whatever the screen is.
        await page.click("#theme");
        await page.emulateMedia({ media: "print" });
        assert.equal(await ground(), "rgb(255, 255, 255)");
        assert.ok((await page.pdf({ format: "A4" })).length > 20000);
    });
});

test("10,000 weights are quick", async () => {
    const file = render("large", documents.large());
    await open(file, async (page) => {
        const ready = await page.evaluate(() => performance.getEntriesByType("navigation")[0].domContentLoadedEventEnd);
        assert.ok(ready < 8000, `${ready} ms until drawn`);
        assert.ok((await page.locator("#weights tbody tr").count()) <= 200);
        // Experts share rows.
        assert.equal(await page.locator("#heat .map").first().locator("tbody tr").count(), 7);
        assert.equal(await page.locator("#heat .map").count(), 4);
        const times = await page.evaluate(async () => {
            const timed = (work) => {
                const start = performance.now();
                work();
                return performance.now() - start;
            };
            const filter = document.querySelector("#filter");
            return [
                timed(() => document.querySelectorAll("#weights th button")[1].click()),
                timed(() => {
                    filter.value = "31 experts 7 gate";
                    filter.dispatchEvent(new Event("input"));
                }),
                timed(() => document.querySelectorAll("#heat .switch input")[1].click()),
            ];
        });
        assert.ok(times.every((time) => time < 1000), `${times} ms to sort, filter, switch`);
        console.log(`10,000 weights: drawn after ${ready.toFixed(0)} ms, sorted, filtered and recoloured in ${times.map((time) => time.toFixed(0))} ms`);
        // Words in any order, numbers whole.
        const both = ["model.layers.7.mlp.experts.31.gate_proj.weight", "model.layers.31.mlp.experts.7.gate_proj.weight"];
        assert.deepEqual((await column(page, 1)).sort(), both.sort());
        await page.locator("#heat .map").first().locator("tbody tr", { hasText: "up_proj" }).locator("td").nth(9).click();
        assert.equal(await page.textContent("#shown"), "1–25 of 54 (of 10,000)");
        assert.ok((await column(page, 1)).every((name) => /^model\.layers\.9\.mlp\.experts\.\d+\.up_proj/.test(name)));
        await page.selectOption("#formats select", "bf16");
        await page.fill("#filter", "");
        assert.deepEqual(await column(page, 1), ["model.embed_tokens.weight"]);
    });
});

test("hostile names stay text", async () => {
    await open(render("hostile", documents.hostile(), documents.compared()), async (page) => {
        const names = await column(page, 1);
        for (const name of documents.HOSTILE) assert.ok(names.includes(name), name);
        assert.equal(await page.locator("img").count(), 0);
        assert.equal(await page.locator("script").count(), 3);
        // The report is of neither merge that was compared, and its effect is no known one.
        assert.equal((await page.getAttribute("#verdict", "class")).trim(), "card verdict");
    });
});

test("fields to come are shown, missing ones are not", async () => {
    await open(render("growing", documents.growing()), async (page) => {
        assert.match(await page.textContent("#verdict .tiles"), /effect kept96\.5 %.*KL0\.0123.*same first choice/s);
        assert.match(await page.textContent("#verdict .after"), /752 tokens that the model wrote/);
        const heads = await page.locator("#weights thead th").allTextContents();
        for (const head of ["kept at output", "noise at output", "rounding"]) assert.ok(heads.some((text) => text.startsWith(head)), head);
        assert.ok((await page.locator("#heat .switch").textContent()).includes("Kept at the output"));
        assert.match(await page.textContent("#done"), /shaped.*seed 7.*calibration text\.txt/s);
    });
    await open(render("empty", documents.empty()), async (page) => {
        for (const id of ["heat", "charts", "worst", "weights", "behaviour"]) assert.ok(!(await shown(page, `#${id}`)), id);
    });
    await open(render("converted", documents.converted()), async (page) => {
        assert.match(await page.textContent("h1"), /Converted to nf4/);
        assert.ok(!(await shown(page, "#scatter")));
        assert.match(await page.textContent("#worst .lead"), /largest error/);
        // Nothing is said of a delta that there was not.
        assert.doesNotMatch(await page.textContent("#verdict"), /delta|adapter/);
        assert.doesNotMatch(await page.textContent("#done"), /elements|changed/);
        assert.equal(await page.locator(".switch").getByText("Delta / weight").count(), 0);
    });
});

test("comparisons alone", async () => {
    await open(render("compared", documents.compared()), async (page) => {
        assert.match(await page.textContent("h1"), /best of 2 merges keeps 96\.0 %/);
        assert.match(await page.textContent("#verdict .lines"), /worse predicts the text worse than the base/);
        const marks = await page.locator("#behaviour mark").allTextContents();
        assert.deepEqual(marks, ["beginnings", "a dog", "z", "(ends here)", "(ends here)"]);
        assert.ok(!(await shown(page, "#weights")));
    });
    await open(render("unhelpful", documents.unhelpful()), async (page) => {
        assert.match(await page.textContent("h1"), /does not help/);
        assert.match(await page.textContent("#verdict .lines"), /look at KL/);
    });
});

test("every page fits a phone and a desk, light and dark, and is accessible", async () => {
    const pages = { demo: demo() };
    for (const name of ["large", "hostile", "growing", "converted", "compared", "unhelpful", "empty"]) pages[name] = render(name, documents[name]());
    for (const [name, file] of Object.entries(pages)) {
        for (const [width, height] of [[390, 844], [1200, 900]]) {
            for (const scheme of ["light", "dark"]) {
                await open(file, async (page) => {
                    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
                    assert.ok(wide <= width, `${name} is ${wide} wide on ${width}`);
                    if (shots) await page.screenshot({ path: join(work, `${name}-${width}-${scheme}.png`), fullPage: true });
                    await page.evaluate(axe);
                    const { violations, passes } = await page.evaluate(() => axe.run({ runOnly: ["wcag2a", "wcag2aa", "wcag21aa"] }));
                    assert.ok(passes.length > 10);
                    const found = violations.map((v) => `${v.id}: ${v.nodes.slice(0, 3).map((node) => `${node.html} ${node.any[0]?.message ?? ""}`).join("\n")}`);
                    assert.deepEqual(found, [], `${name} ${width} ${scheme}`);
                }, { width, height, scheme });
            }
        }
    }
});
