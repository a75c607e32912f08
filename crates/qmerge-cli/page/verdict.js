// The headline and its figures: behaviour where it was measured, else what comes out of layers, else the weights.

// Shares of the effect that are left, from which on it counts as kept, and up to which as lost: those of the report's own verdict.
const LOST = 0.5;
const KEPT = 0.95;
const SEVERITY = { kept: "good", weakened: "warn", noisy: "warn", unknown: "warn", lost: "bad", none: "bad", broken: "bad" };
const severityOf = (effect) => (Object.hasOwn(SEVERITY, effect) ? SEVERITY[effect] : "");
// What stands before the figures of a verdict.
const headOf = (verdict) => sentence(String(verdict.text ?? "A merge without a verdict").split(":")[0]);

// What a merge kept, in words: its own verdict, or for documents without one what it kept of the gain.
function judged(merge) {
    if (merge.verdict?.text) {
        const text = `${sentence(String(merge.verdict.text).split("; it keeps")[0])}.`;
        return { severity: severityOf(merge.verdict.effect), head: headOf(merge.verdict), text };
    }
    const gain = merge.gain_kept;
    if (!isNumber(gain)) return null;
    const losses =
        base && apart ? ` (loss ${fixed(3)(merge.loss)}; base ${fixed(3)(base.loss)}, adapter kept apart ${fixed(3)(apart.loss)})` : "";
    const name = modelLabel(merge);
    if (!helps) {
        const text = `The adapter does not lower the loss on this text${losses}, so gain kept says nothing here: look at KL.`;
        return { severity: "warn", head: "The adapter does not help on this text", text };
    }
    const text =
        gain < 0
            ? `${name} predicts the text worse than the base does${losses}.`
            : `${name} keeps ${share(gain)} of what the adapter gains${losses}.`;
    if (gain < 0) return { severity: "bad", head: "The merge is worse than the base", text };
    if (gain < LOST) return { severity: "bad", head: "Most of what the adapter gains is lost", text };
    if (gain < KEPT) return { severity: "warn", head: "Part of what the adapter gains is lost", text };
    return { severity: "good", head: "What the adapter gains is kept", text };
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function tile(label, value, about, severity) {
    return el("div", { class: `tile ${severity ?? ""}` }, el("dt", {}, label), el("dd", {}, value, el("small", {}, about)));
}

// A share from 0 to 1 as a severity.
const keptSeverity = (x) => (!isNumber(x) ? "" : x < LOST ? "bad" : x < KEPT ? "warn" : "good");

// The figures below the headline, those that say most first. Those of the weights stand there only where nothing better is known.
function verdictTiles(measured) {
    const summary = report?.summary ?? {};
    const tiles = [];
    const add = (value, ...tileOf) => isNumber(value) && tiles.push(tile(...tileOf));
    const found = report?.behaviour ?? {};
    const kl = measured ? measured.kl : found.kl;
    const klBase = measured ? base?.kl : found.kl_base;
    const top1 = measured ? measured.top1 : found.top1;
    if (measured && helps) add(measured.gain_kept, "gain kept", share(measured.gain_kept), "of what the adapter gains in loss", keptSeverity(measured.gain_kept));
    add(kl, "KL", nats(kl), `nats per token from the adapter kept apart${isNumber(klBase) ? `; the base alone: ${nats(klBase)}` : ""}`);
    add(summary.kept_output, "kept output", figure(summary.kept_output), "strength at which layers give the adapter's outputs: 1 is all");
    add(top1, "same first choice", share(top1), "of next tokens, as with the adapter kept apart");
    if (!tiles.length) {
        add(summary.survival, "survival", figure(summary.survival), "of the delta, in the weights: 1 is all");
        add(summary.noise_to_delta, "noise", `${figure(summary.noise_to_delta)} ×`, "the delta, in the weights");
    }
    return tiles;
}

// The head of the page: what it is of, the verdict, and when the merge was made.
function showHead(of, head, severity, dates = []) {
    const section = $("#verdict");
    section.className = `card verdict ${severity}`;
    $(".of", section).append(of, ...dates.filter(Boolean).map((date) => ` · ${date}`));
    $("h1", section).textContent = head;
    document.title = `${of}: ${head.charAt(0).toLowerCase()}${head.slice(1)} · qmerge`;
    section.hidden = false;
}

const adviceOf = (verdict) => (verdict?.advice ? el("p", { class: "advice" }, el("strong", {}, "Advice: "), prose(verdict.advice), ".") : null);

// What a verdict says after its head, as a sentence; of a comparison's, what no figure below says too.
function rest(text) {
    const after = String(text ?? "").split(":").slice(1).join(":").split("; it keeps")[0].trim();
    return after ? `${sentence(after).replace(/\.$/, "")}.` : null;
}

// How rough the figures of a comparison are.
function caution() {
    if (!isNumber(comparison?.windows) || comparison.windows >= 8) return null;
    return el("p", { class: "quiet" }, `Behaviour was measured on ${integer(comparison.tokens)} tokens only: take its figures as rough.`);
}

// The page of one merge, or of a comparison with one or none.
function showVerdict() {
    const section = $("#verdict");
    const lines = $(".lines", section);
    const after = $(".after", section);
    const tiles = $(".tiles", section);
    const measured = thisMerge ?? (report ? null : merges[0]) ?? null;
    const judgement = measured ? judged(measured) : null;
    const of = report ? subject(report) : measured ? modelLabel(measured) : "base and adapter";
    const on = !report && comparison ? ` on ${nameOf(comparison.text)}` : "";
    const verdict = report?.verdict ?? {};
    if (converts) {
        showHead(of, `Converted to ${report.output?.format ?? "another format"}`, "", [dateText(report.date)]);
    } else if (judgement) {
        showHead(of + on, judgement.head, judgement.severity, [dateText(report?.date)]);
        const text = measured.verdict?.text ? rest(measured.verdict.text) : judgement.text;
        if (text) lines.append(el("p", {}, text));
    } else if (report) {
        showHead(of, headOf(verdict), severityOf(verdict.effect), [dateText(report.date)]);
        const text = rest(verdict.text);
        if (text) lines.append(el("p", {}, prose(text)));
    } else {
        showHead(of + on, "Base and adapter compared", "");
    }
    if (converts) {
        const worst = Math.max(0, ...weights.map((w) => w.error_ratio ?? 0));
        if (weights.length) tiles.append(tile("error", ratio(MEASURES.error_ratio.pool(weights)), `of the weights; ${ratio(worst)} in the worst`));
        return;
    }
    if (changesNothing) return;
    tiles.append(...verdictTiles(measured));
    // What was found kept needs no advice.
    const advice = judgement?.severity === "good" ? null : adviceOf(verdict);
    if (advice) after.append(advice);
    if (judgement) after.append(...[caution()].filter(Boolean));
    if (report && !comparison && verdict.effect !== "none") {
        const text = report.behaviour
            ? `Measured on tokens ${report.behaviour.text}. \`qmerge compare\` measures it on a text of yours.`
            : "Behaviour was not measured. `qmerge compare` tells how much of the adapter's effect is left, which these figures do not.";
        after.append(el("p", { class: "quiet" }, prose(text)));
    }
}
