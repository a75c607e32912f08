// The headline: by behaviour where it was measured, else by the weights. The limits are those of the report's own verdict.

const LOST = 0.3;
const KEPT = 0.9;
const SEVERITY = { kept: "good", weakened: "warn", noisy: "warn", lost: "bad", none: "bad" };

// What a merge kept of the gain, in words.
function judged(merge) {
    const gain = merge.gain_kept;
    if (!isNumber(gain)) return null;
    const helps = !base || !apart || !isNumber(base.loss) || base.loss > apart.loss;
    const losses =
        base && apart ? ` (loss ${fixed(3)(merge.loss)}; base ${fixed(3)(base.loss)}, adapter kept apart ${fixed(3)(apart.loss)})` : "";
    const name = modelLabel(merge);
    if (!helps) {
        const text = `The adapter does not lower the loss on this text${losses}, so gain kept says nothing here: look at KL.`;
        return { severity: "warn", head: "The adapter does not help on this text", text, gain: null };
    }
    const text =
        gain < 0
            ? `${name} predicts the text worse than the base does${losses}.`
            : `${name} keeps ${share(gain)} of what the adapter gains${losses}.`;
    if (gain < 0) return { severity: "bad", head: "The merge is worse than the base", text, gain };
    if (gain < LOST) return { severity: "bad", head: "Most of what the adapter gains is lost", text, gain };
    if (gain < KEPT) return { severity: "warn", head: "Part of what the adapter gains is lost", text, gain };
    return { severity: "good", head: "What the adapter gains is kept", text, gain };
}

const sentence = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function tile(label, value, about, severity) {
    return el("div", { class: `tile ${severity ?? ""}` }, el("dt", {}, label), el("dd", {}, value, el("small", {}, about)));
}

// A share from 0 to 1 as a severity.
const keptSeverity = (x) => (!isNumber(x) ? "" : x < LOST ? "bad" : x < KEPT ? "warn" : "good");

function showVerdict() {
    const section = $("#verdict");
    const lines = $(".lines", section);
    const tiles = $(".tiles", section);
    const summary = report?.summary ?? {};
    const effect = report?.verdict?.effect;
    const converted = report !== null && list(report.adapters).length === 0;
    const behaviours = (thisMerge ? [thisMerge] : merges).map((m) => [m, judged(m)]).filter(([, judgement]) => judgement);
    let head;
    let severity;
    if (behaviours.length === 1 && (thisMerge || !report)) {
        [{ severity, head }] = [behaviours[0][1]];
    } else if (behaviours.length && !report) {
        const best = behaviours.reduce((a, b) => ((b[1].gain ?? -Infinity) > (a[1].gain ?? -Infinity) ? b : a));
        severity = best[1].severity;
        head = best[1].gain === null ? best[1].head : `The best of ${behaviours.length} merges keeps ${share(best[1].gain)} of the gain`;
    } else if (converted) {
        severity = "";
        head = `Converted to ${report.output?.format ?? "another format"}`;
    } else if (report) {
        severity = Object.hasOwn(SEVERITY, effect) ? SEVERITY[effect] : "";
        head = sentence(String(report.verdict?.text ?? "A merge without a verdict").split(":")[0]);
    } else {
        severity = "";
        head = merges.length ? "Merges compared" : "Base and adapter compared";
    }
    section.className = `card verdict ${severity}`;
    $("h1", section).textContent = head;
    document.title = `${head} · qmerge report`;
    for (const [, judgement] of behaviours) {
        lines.append(el("p", { class: behaviours.length > 1 ? `dot ${judgement.severity}` : "" }, judgement.text));
    }
    // Without behaviour, the headline and the figures have said it.
    if (report?.verdict?.text && !converted && behaviours.length) lines.append(el("p", {}, `In the weights, ${report.verdict.text}.`));
    // The advice to compare is met once that was done, and kept behaviour needs none.
    if (report?.verdict?.advice && !(behaviours.length && (severity === "good" || effect === "noisy"))) {
        lines.append(el("p", { class: "advice" }, el("strong", {}, "Advice: "), `${report.verdict.advice}.`));
    }
    if (report?.verdict?.beside) {
        lines.append(el("p", { class: "advice" }, el("strong", {}, "Advice: "), sentence(`${report.verdict.beside}.`).replaceAll("`", "")));
    }
    if (comparison && isNumber(comparison.windows) && comparison.windows < 8 && behaviours.length) {
        const text = `Behaviour was measured on ${integer(comparison.tokens)} tokens only: take its figures as rough.`;
        lines.append(el("p", { class: "quiet" }, text));
    }
    if (report && !comparison && !converted && !isNumber(summary.gain_kept)) {
        const text = "Behaviour was not measured. qmerge compare tells how much of the adapter's gain is left, which these figures do not.";
        lines.append(el("p", { class: "quiet" }, text));
    }
    const measured = behaviours.length === 1 && (thisMerge || !report) ? behaviours[0] : null;
    const gain = measured ? measured[1].gain : summary.gain_kept;
    const kl = measured ? measured[0].kl : summary.kl;
    if (isNumber(gain)) tiles.append(tile("gain kept", share(gain), "of what the adapter gains in loss", keptSeverity(gain)));
    if (isNumber(kl)) {
        const of = base && isNumber(base.kl) ? `nats per token from the adapter kept apart; base ${fixed(4)(base.kl)}` : "nats per token";
        tiles.append(tile("KL", fixed(4)(kl), of));
    }
    if (isNumber(summary.survival)) tiles.append(tile("survival", figure(summary.survival), "of the delta, in the weights", keptSeverity(summary.survival)));
    if (isNumber(summary.noise_to_delta)) tiles.append(tile("noise", `${figure(summary.noise_to_delta)} ×`, "the delta, in the weights"));
    if (converted && weights.length) {
        const worst = Math.max(...weights.map((w) => w.error_ratio ?? 0));
        tiles.append(tile("error", ratio(MEASURES.error_ratio.pool(weights)), `of the weights; ${ratio(worst)} in the worst`));
    }
    section.hidden = false;
}
