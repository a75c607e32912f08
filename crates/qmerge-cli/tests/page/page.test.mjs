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

// Full names of the weights that are shown, and a column of them.
const names = (page) => page.locator("#weights tbody th").evaluateAll((all) => all.map((head) => head.title));
const column = (page, number) => page.locator(`#weights tbody tr > :nth-child(${number})`).allTextContents();
const shown = (page, selector) => page.locator(selector).isVisible();

test("a real merge with its comparison", async () => {
    await open(demo(), async (page) => {
        for (const id of ["verdict", "done", "behaviour", "heat", "charts", "worst", "weights", "about"]) assert.ok(await shown(page, `#${id}`), id);
        assert.match(await page.title(), /^adapter merged into base-nf4: the adapter's effect is kept · qmerge$/);
        assert.match(await page.textContent("#verdict .of"), /^adapter merged into base-nf4 · \d{4}-\d\d-\d\d \d\d:\d\d UTC$/);
        // Behaviour and what comes out of layers; the figures that mislead are further below.
        assert.match(await page.textContent("#verdict .tiles"), /^gain kept.*%.*KL.*kept output.*same first choice/s);
        assert.doesNotMatch(await page.textContent("#verdict"), /survival|noise/);
        assert.match(await page.textContent("#verdict .lines"), /^[0-9.]+ ± [0-9.]+ % of it is left in what the model predicts, on \d+ tokens\.$/);
        assert.match(await page.textContent("#done"), /demo\/base-nf4.*demo\/adapter.*LORA.*rounding.*adapter.*28 merged/s);
        assert.equal(await page.textContent("#done .wide code"), "qmerge merge --base demo/base-nf4 --adapter demo/adapter -o demo/merged-nf4");
        // A seed is said once, and no key is shown raw.
        assert.equal((await page.textContent("#done")).match(/seed/g).length, 1);
        assert.match(await page.textContent("#done"), /Goes by what comes out of the layers/);
        assert.equal(await page.locator("#heat td").count(), 28);
        assert.equal(await page.locator("#behaviour .continuation").count(), 12);
        assert.ok((await page.locator("#behaviour mark").count()) > 0);
        // The figures are those of the document.
        const { reports: [report], comparison } = JSON.parse(await page.textContent("#data"));
        assert.ok((await page.textContent("#verdict .tiles")).includes(report.summary.kept_output.toFixed(3)));
        assert.ok((await page.textContent("#behaviour table")).includes(comparison.models[2].kl.toFixed(4)));
        assert.equal(await page.textContent("#shown"), "1–25 of 28");
    });
});

test("the table sorts and filters, by mouse and keyboard", async () => {
    await open(demo(), async (page) => {
        const head = page.locator("#weights th[aria-sort]").nth(2);
        const button = head.getByRole("button");
        await button.click();
        assert.equal(await head.getAttribute("aria-sort"), "ascending");
        const up = (await column(page, 3)).map(Number);
        assert.deepEqual(up, [...up].sort((a, b) => a - b));
        await button.focus();
        await page.keyboard.press("Enter");
        assert.equal(await head.getAttribute("aria-sort"), "descending");
        const down = (await column(page, 3)).map(Number);
        assert.deepEqual(down, [...down].sort((a, b) => b - a));
        assert.ok(down[0] > up[0]);
        await page.fill("#filter", "2 down_proj");
        assert.deepEqual(await names(page), ["model.layers.2.mlp.down_proj.weight"]);
        assert.deepEqual([await column(page, 1), await column(page, 2)], [["2"], ["mlp.down_proj"]]);
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
        assert.equal((await names(page)).length, 1);
        assert.match((await names(page))[0], /\.layers\.1\./);
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
        assert.deepEqual((await names(page)).sort(), both.sort());
        await page.locator("#heat .map").first().locator("tbody tr", { hasText: "up_proj" }).locator("td").nth(9).click();
        assert.equal(await page.textContent("#shown"), "1–25 of 54 (of 10,000)");
        assert.ok((await names(page)).every((name) => /^model\.layers\.9\.mlp\.experts\.\d+\.up_proj/.test(name)));
        await page.selectOption("#formats select", "bf16");
        await page.fill("#filter", "");
        assert.deepEqual(await names(page), ["model.embed_tokens.weight"]);
    });
});

test("hostile names stay text", async () => {
    await open(render("hostile", documents.hostile(), documents.compared()), async (page) => {
        const found = await names(page);
        for (const name of documents.HOSTILE) assert.ok(found.includes(name), name);
        assert.equal(await page.locator("img").count(), 0);
        assert.equal(await page.locator("script").count(), 3);
        // The report is of neither merge that was compared, and its effect is no known one.
        assert.equal((await page.getAttribute("#verdict", "class")).trim(), "card verdict");
    });
});

test("fields to come are shown, missing ones are not", async () => {
    await open(render("growing", documents.growing()), async (page) => {
        assert.match(await page.textContent("#verdict .tiles"), /^KL0\.0123.*the base alone: 0\.3500.*same first choice93\.0 %/s);
        assert.match(await page.textContent("#verdict .after"), /tokens that the model wrote/);
        // Where nothing was to be kept, nothing was.
        assert.match(await page.locator("#weights tbody tr", { hasText: "still" }).textContent(), /^4still––/);
        const heads = await page.locator("#weights thead th").allTextContents();
        for (const head of ["kept output", "output noise", "rounding"]) assert.ok(heads.some((text) => text.startsWith(head)), head);
        assert.ok((await page.locator("#heat .switch").textContent()).includes("Kept output"));
        assert.ok(await page.locator("#heat .switch input").first().isChecked());
        assert.match(await page.textContent("#done"), /shaped.*--fast: no data.*calibrated on text\.txt.*seed 7/s);
        assert.doesNotMatch(await page.textContent("#done"), /reason|`/);
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
        assert.doesNotMatch(await page.locator("#about").innerText(), /adapter|survival/);
    });
    await open(render("untrained", documents.untrained()), async (page) => {
        assert.equal(await page.textContent("h1"), "The adapter changes nothing");
        assert.equal(await page.textContent("#verdict .lines"), "Its delta is zero.");
        // Nothing was kept at a strength of 1, and nothing is drawn.
        for (const id of ["heat", "charts", "worst"]) assert.ok(!(await shown(page, `#${id}`)), id);
        assert.doesNotMatch(await page.locator("main").innerText(), /1\.000/);
        assert.ok(await shown(page, "#weights"));
    });
});

test("comparisons alone", async () => {
    await open(render("compared", documents.compared()), async (page) => {
        assert.match(await page.textContent("h1"), /^a-rather-long-name.* comes closest to the adapter kept apart$/);
        assert.match(await page.textContent("#verdict .lines"), /keeps 96\.0 % of what the adapter gains/);
        assert.deepEqual(await page.locator("#merges tbody tr td:nth-child(2)").allTextContents(), ["0.0100 ± 0.0005", "0.5000 ± 0.0250"]);
        const marks = await page.locator("#behaviour mark").allTextContents();
        assert.deepEqual(marks, ["beginnings", "a dog", "z", "(ends here)", "(ends here)"]);
        assert.ok(!(await shown(page, "#weights")));
    });
    await open(render("unhelpful", documents.unhelpful()), async (page) => {
        assert.match(await page.textContent("h1"), /does not help/);
        assert.match(await page.textContent("#verdict .lines"), /look at KL/);
        // What it keeps of a gain that there is not, is not shown.
        assert.doesNotMatch(await page.textContent("#verdict .tiles"), /gain/);
        assert.equal(await page.locator("#behaviour .bars").getByText("Gain kept").count(), 0);
    });
});

test("bars show differences, and say where they begin", async () => {
    await open(demo(), async (page) => {
        const chart = page.locator("#behaviour .chart", { hasText: "Perplexity" });
        assert.match(await chart.textContent(), /the axis does not begin at zero/);
        const widths = await chart.locator(".bar").evaluateAll((all) => all.map((bar) => parseFloat(bar.style.getPropertyValue("--w"))));
        // The base is worst, and the merge near the adapter kept apart: on so little text it may be on either side.
        assert.ok(widths[0] === 100 && widths.slice(1).every((width) => width > 5 && width < 40), widths.join());
        const [low, high] = (await chart.locator(".ends span").allTextContents()).map(Number);
        assert.ok(low > 5 && high > low);
        const kl = page.locator("#behaviour .chart", { hasText: "KL" });
        assert.match(await kl.textContent(), /logarithmic axis/);
    });
});

test("the worst weights are in the terminal's order", async () => {
    await open(demo(), async (page) => {
        const { reports: [report] } = JSON.parse(await page.textContent("#data"));
        const order = [...report.weights].sort((a, b) => a.kept_output - b.kept_output).map((w) => w.name);
        const found = await page.locator("#worst tbody th").evaluateAll((all) => all.map((head) => head.title));
        assert.deepEqual(found, order.slice(0, found.length));
    });
});

const merges = (page) => page.locator("#merges tbody th").allTextContents();

test("several merges, best first where one text tells", async () => {
    const { merged } = documents;
    const better = merged("better", {}, { kl: 0.004 });
    const worse = merged("worse", { verdict: { effect: "weakened", text: "the adapter's effect is weakened: 80 % of it is left" } }, { kl: 0.1 });
    const unmeasured = merged("unmeasured", { behaviour: undefined });
    const broken = merged("broken", { verdict: { effect: "broken", text: "the merged model is broken: its predictions are not finite numbers" } }, { kl: null });
    await open(render("ranked", unmeasured, worse, broken, better), async (page) => {
        assert.deepEqual(await merges(page), ["better", "worse", "broken", "unmeasured"]);
        assert.equal(await page.textContent("h1"), "better comes closest to the adapter kept apart");
        assert.equal(await page.textContent("#verdict .of"), "run/checkpoint-100 merged into base-nf4 · 4 merges");
        assert.match(await page.getAttribute("#verdict", "class"), /good/);
        assert.match(await page.textContent("#merges .lead"), /Least KL first, on 560 tokens that the model wrote\./);
        assert.deepEqual(await page.locator("#merges tbody tr td:nth-child(3)").allTextContents(), ["0.0040", "0.1000", "not finite", "not measured"]);
        assert.match(await page.locator("#merges .chart").textContent(), /base alone0\.5000.*better0\.0040.*worse0\.1000/);
        // Small maps on one scale, and what each merge says of itself.
        assert.deepEqual(await page.locator("#heat .one h3").evaluateAll((all) => all.map((h) => h.firstChild.data)), ["better", "worse", "broken", "unmeasured"]);
        assert.equal(await page.locator("#heat td[tabindex]").count(), 4 * 60);
        assert.equal(await page.locator("#heat .legend .ramp").count(), 1);
        assert.equal(await page.locator("#details details.merge").count(), 4);
        assert.ok(!(await page.locator("#details .facts").first().isVisible()));
        await page.locator("#details summary").first().click();
        assert.match(await page.locator("#details .merge").first().innerText(), /98\.0 ± 0\.1 % of it is left.*2026-01-31 12:34 UTC.*'my lora' -o runs\/better.*Worst weights/s);
        for (const id of ["done", "charts", "worst", "weights", "behaviour"]) assert.ok(!(await shown(page, `#${id}`)), id);
    });
    // Another text, or another adapter: no ranking.
    const elsewhere = merged("elsewhere", {}, { kl: 0.001, kl_base: 0.4 });
    await open(render("unranked", worse, elsewhere, better), async (page) => {
        assert.deepEqual(await merges(page), ["worse", "elsewhere", "better"]);
        assert.match(await page.textContent("h1"), /3 merges, not ranked/);
        assert.match(await page.textContent("#verdict .lines"), /not measured on the same text.*in which they were given.*qmerge compare/s);
        assert.equal((await page.getAttribute("#verdict", "class")).trim(), "card verdict");
        assert.equal(await page.locator("#merges thead").getByText("measured on").count(), 1);
        assert.equal(await page.locator("#merges .chart").count(), 0);
    });
    await open(render("single-measured", better, unmeasured), async (page) => {
        assert.match(await page.textContent("#verdict .lines"), /Only better was measured/);
    });
    const other = merged("other", { adapters: [{ path: "other-lora", sha256: "ef".repeat(32), weight: 1 }] }, { kl_base: 0.4 });
    await open(render("mixed", better, other), async (page) => {
        assert.match(await page.textContent("#warnings"), /of different adapters/);
        assert.match(await page.textContent("#merges thead"), /adapter/);
    });
});

test("several merges and what a comparison says of them", async () => {
    const compared = documents.compared();
    const reports = compared.models.slice(2).map((m) => documents.merged(m.name.split("/").pop(), { output: { path: m.name } }, { kl_base: Math.random() }));
    const absent = documents.merged("absent");
    await open(render("several", ...reports.toReversed(), absent, compared), async (page) => {
        // The comparison's text ranks, whatever the merges measured themselves.
        assert.deepEqual((await merges(page)).map((name) => name.slice(0, 6)), ["a-rath", "worse", "absent"]);
        assert.equal(await page.locator("#merges tbody td:nth-child(3)").last().textContent(), "not measured");
        assert.equal(await page.locator("#behaviour .continuation").count(), 2 * 4);
        assert.equal(await page.locator("#details details.merge").count(), 3);
        assert.equal(await page.locator("#merges .chart").count(), 0);
    });
    // The measured figure is in view on a phone, however long the names.
    await open(join(files, "several.html"), async (page) => {
        const box = await page.locator("#merges thead th", { hasText: "KL" }).boundingBox();
        assert.ok(box.x + box.width <= 400, box.x + box.width);
    }, { width: 400, height: 800 });
    // The program makes that page by itself where all merges have reports.
    demo();
    run("compare", "--base", "demo/base-nf4", "--adapter", "demo/adapter", "--merged", "demo/merged-nf4", "--merged", "demo/merged-as-peft", "--text", "demo/eval.txt",
        "--context", "64", "--windows", "4", "--continuation", "4", "--report", "both.html");
    await open(join(files, "both.html"), async (page) => {
        assert.deepEqual(await merges(page), ["merged-nf4", "merged-as-peft"]);
        assert.equal(await page.textContent("#verdict .of"), "adapter merged into base-nf4 · 2 merges");
    });
    assert.throws(() => render("two", compared, compared), /two comparisons/);
});

test("a phone shows what the verdict rests on", async () => {
    const long = documents.merged("phone");
    for (const [name, file, heads] of [["one", render("phone", long), ["layer", "module", "kept output"]], ["demo", demo(), ["layer", "module", "kept output", "output noise"]]]) {
        await open(file, async (page) => {
            for (const head of heads) {
                const box = await page.locator("#worst thead th", { hasText: head }).first().boundingBox();
                assert.ok(box.x >= 0 && box.x + box.width <= 400, `${name}: ${head}`);
            }
            assert.ok(await page.locator("#weights .sideways").isVisible());
            // Names do not break, and all of the navigation is in view.
            const heights = await page.locator("#worst tbody th").evaluateAll((all) => all.map((head) => head.getClientRects().length && head.offsetHeight));
            assert.ok(heights.every((height) => height < 40), heights.join());
            for (const link of await page.locator("#contents a").all()) {
                const { x, width } = await link.boundingBox();
                assert.ok(x >= 0 && x + width <= 400);
            }
        }, { width: 400, height: 800 });
        await open(file, async (page) => assert.ok(!(await page.locator("#weights .sideways").isVisible())), { width: 1280, height: 800 });
    }
});

test("every page fits a phone and a desk, light and dark, and is accessible", async () => {
    const pages = { demo: demo() };
    for (const name of ["large", "hostile", "growing", "converted", "untrained", "extreme", "compared", "unhelpful", "empty"]) pages[name] = render(name, documents[name]());
    pages.several = render("several", documents.merged("one"), documents.merged("two", { behaviour: undefined }), documents.hostile(), documents.untrained(), documents.compared());
    for (const [name, file] of Object.entries(pages)) {
        // A phone and a desk, one light and one dark, have all that axe looks at, which takes it seconds; then each is looked at in another way.
        for (const [first, second] of [[[400, "light"], [400, "dark"]], [[1280, "dark"], [800, "light"]]]) {
            await open(file, async (page) => {
                await page.evaluate(axe);
                const { violations, passes } = await page.evaluate(() => axe.run());
                assert.ok(passes.length > 10);
                const found = violations.map((v) => `${v.id}: ${v.nodes.slice(0, 3).map((node) => `${node.html} ${node.any[0]?.message ?? ""}`).join("\n")}`);
                assert.deepEqual(found, [], `${name} ${first}`);
                for (const [width, colorScheme] of [first, second]) {
                    await page.setViewportSize({ width, height: 900 });
                    await page.emulateMedia({ colorScheme });
                    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
                    assert.ok(wide <= width, `${name} is ${wide} wide on ${width}`);
                    if (shots) await page.screenshot({ path: join(work, `${name}-${width}-${colorScheme}.png`), fullPage: true });
                }
            }, { width: first[0], scheme: first[1] });
        }
    }
});
