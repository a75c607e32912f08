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
        const text = `${modelLabel(merge)}: ${merge.verdict.text}.`;
        return { severity: severityOf(merge.verdict.effect), head: headOf(merge.verdict), text, kept: number(merge.verdict.kept) };
    }
    const gain = merge.gain_kept;
    if (!isNumber(gain)) return null;
    const helps = !base || !apart || !isNumber(base.loss) || base.loss > apart.loss;
    const losses =
        base && apart ? ` (loss ${fixed(3)(merge.loss)}; base ${fixed(3)(base.loss)}, adapter kept apart ${fixed(3)(apart.loss)})` : "";
    const name = modelLabel(merge);
    if (!helps) {
        const text = `The adapter does not lower the loss on this text${losses}, so gain kept says nothing here: look at KL.`;
        return { severity: "warn", head: "The adapter does not help on this text", text, kept: null };
    }
    const text =
        gain < 0
            ? `${name} predicts the text worse than the base does${losses}.`
            : `${name} keeps ${share(gain)} of what the adapter gains${losses}.`;
    if (gain < 0) return { severity: "bad", head: "The merge is worse than the base", text, kept: gain };
    if (gain < LOST) return { severity: "bad", head: "Most of what the adapter gains is lost", text, kept: gain };
    if (gain < KEPT) return { severity: "warn", head: "Part of what the adapter gains is lost", text, kept: gain };
    return { severity: "good", head: "What the adapter gains is kept", text, kept: gain };
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function tile(label, value, about, severity) {
    return el("div", { class: `tile ${severity ?? ""}` }, el("dt", {}, label), el("dd", {}, value, el("small", {}, about)));
}

// A share from 0 to 1 as a severity.
const keptSeverity = (x) => (!isNumber(x) ? "" : x < LOST ? "bad" : x < KEPT ? "warn" : "good");

// The figures below the headline. Those of the weights stand there only where nothing better is known.
function verdictTiles(measured) {
    const summary = report?.summary ?? {};
    const tiles = [];
    const add = (value, ...tileOf) => isNumber(value) && tiles.push(tile(...tileOf));
    const found = report?.behaviour ?? {};
    const kl = measured ? measured.kl : number(found.kl);
    const klBase = measured ? number(base?.kl) : number(found.kl_base);
    const lost = measured ? number(measured.kl_share) : number(found.kl_share);
    const top1 = measured ? measured.top1 : number(found.top1);
    add(lost, "effect kept", share(isNumber(lost) ? 1 - lost : null), "of what the adapter changes in predictions", isNumber(lost) ? keptSeverity(1 - lost) : "");
    if (measured) add(measured.gain_kept, "gain kept", share(measured.gain_kept), "of what the adapter gains in loss", keptSeverity(measured.gain_kept));
    add(kl, "KL", fixed(4)(kl), `nats per token from the adapter kept apart${isNumber(klBase) ? `; base ${fixed(4)(klBase)}` : ""}`);
    if (!measured) add(top1, "same first choice", share(top1), "of next tokens, as with the adapter kept apart");
    add(summary.kept_output, "kept output", figure(summary.kept_output), "strength at which layers give the adapter's outputs");
    if (!tiles.length) {
        add(summary.survival, "survival", figure(summary.survival), "of the delta, in the weights");
        add(summary.noise_to_delta, "noise", `${figure(summary.noise_to_delta)} ×`, "the delta, in the weights");
    }
    return tiles;
}

function showVerdict() {
    const section = $("#verdict");
    const lines = $(".lines", section);
    const after = $(".after", section);
    const effect = report?.verdict?.effect;
    const behaviours = (thisMerge ? [thisMerge] : merges).map((m) => [m, judged(m)]).filter(([, judgement]) => judgement);
    let head;
    let severity;
    if (behaviours.length === 1 && (thisMerge || !report)) {
        [{ severity, head }] = [behaviours[0][1]];
    } else if (behaviours.length && !report) {
        const best = behaviours.reduce((a, b) => ((b[1].kept ?? -Infinity) > (a[1].kept ?? -Infinity) ? b : a));
        severity = best[1].severity;
        head = best[1].kept === null ? best[1].head : `The best of ${behaviours.length} merges keeps ${share(best[1].kept)}`;
    } else if (converts) {
        severity = "";
        head = `Converted to ${report.output?.format ?? "another format"}`;
    } else if (report) {
        severity = severityOf(effect);
        head = headOf(report.verdict ?? {});
    } else {
        severity = "";
        head = merges.length ? "Merges compared" : "Base and adapter compared";
    }
    section.className = `card verdict ${severity}`;
    $("h1", section).textContent = head;
    document.title = `${head} · qmerge report`;
    for (const [, judgement] of behaviours) {
        // The headline has said the beginning of a single one.
        const text = behaviours.length > 1 ? judgement.text : judgement.text.replace(`: ${judgement.head.charAt(0).toLowerCase()}${judgement.head.slice(1)}:`, ":");
        lines.append(el("p", { class: behaviours.length > 1 ? `dot ${judgement.severity}` : "" }, text));
    }
    // What the report says beside a comparison is of another text.
    const own = behaviours.length ? null : String(report?.verdict?.text ?? "").split(":").slice(1).join(":").trim();
    if (own && !converts) lines.append(el("p", {}, `${sentence(own)}.`));
    const measured = behaviours.length === 1 && (thisMerge || !report) ? behaviours[0][0] : null;
    const tiles = $(".tiles", section);
    if (!converts) tiles.append(...verdictTiles(measured));
    // The advice to compare is met once that was done, and kept behaviour needs none.
    if (report?.verdict?.advice && !(behaviours.length && severity === "good")) {
        after.append(el("p", { class: "advice" }, el("strong", {}, "Advice: "), `${report.verdict.advice}.`));
    }
    if (comparison && isNumber(comparison.windows) && comparison.windows < 8 && behaviours.length) {
        const text = `Behaviour was measured on ${integer(comparison.tokens)} tokens only: take its figures as rough.`;
        after.append(el("p", { class: "quiet" }, text));
    }
    if (report && !comparison && !converts) {
        const text = report.behaviour
            ? `Measured on ${integer(report.behaviour.tokens)} tokens ${report.behaviour.text}. qmerge compare measures it on a text of yours.`
            : "Behaviour was not measured. qmerge compare tells how much of the adapter's effect is left, which these figures do not.";
        after.append(el("p", { class: "quiet" }, text));
    }
    if (converts && weights.length) {
        const worst = Math.max(...weights.map((w) => w.error_ratio ?? 0));
        tiles.append(tile("error", ratio(MEASURES.error_ratio.pool(weights)), `of the weights; ${ratio(worst)} in the worst`));
    }
    section.hidden = false;
}
