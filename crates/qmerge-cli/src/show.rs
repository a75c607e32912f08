//! What a person reads: tables on standard output, errors on standard error. Colour only on a terminal, and never with NO_COLOR.

use std::sync::atomic::{AtomicBool, Ordering};

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};
use qmerge::inspect::{AdapterInspection, CalibrationInspection, Inspection, ModelInspection};
use qmerge::report::{Behaviour, Report, Verdict, WeightReport};
use qmerge::truncate::{CutWeight, Truncation};
use qmerge::verify::{Answer, State, Verification, VerifiedWeight};
use qmerge_run::compare::Comparison;

use crate::args::Color;

/// Whether tables show every row.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Takes the choices that go for all of what is printed.
pub(crate) fn choose(color: Color, verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
    match color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
}

/// Rows of a table that are shown, of so many that usually are.
fn rows(usually: usize) -> usize {
    if VERBOSE.load(Ordering::Relaxed) { usize::MAX } else { usually }
}

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

fn colour(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(colour.into())).bold()
}

/// One JSON document on standard output.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    anstream::println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// `error: …`, then `hint: …`.
pub(crate) fn error(error: &anyhow::Error) {
    let red = colour(AnsiColor::Red);
    let Some(known) = error.downcast_ref::<qmerge::error::Error>() else {
        return anstream::eprintln!("{red}error{red:#}: {error:#}");
    };
    // Its text holds the cause already.
    anstream::eprintln!("{red}error{red:#}: {known}");
    if let Some(hint) = known.hint() {
        let cyan = colour(AnsiColor::Cyan);
        anstream::eprintln!("{cyan}hint{cyan:#}: {hint}");
    }
}

/// A line on standard error.
pub(crate) fn warning(text: &str) {
    let yellow = colour(AnsiColor::Yellow);
    anstream::eprintln!("{yellow}warning{yellow:#}: {text}");
}

/// A remark on standard error.
pub(crate) fn note(text: &str) {
    anstream::eprintln!("{DIM}{text}{DIM:#}");
}

/// Models side by side.
pub(crate) fn comparison(found: &Comparison) {
    anstream::println!(
        "{BOLD}{}{BOLD:#}: {} windows of {} tokens, {} predictions",
        found.text,
        found.windows,
        found.context,
        found.tokens
    );
    anstream::println!();
    let mut table = table(&["model", "loss", "perplexity", "KL", "±", "top-1", "gain kept", "same tokens"]);
    for model in &found.models {
        table.add_row([
            model.name.clone(),
            fixed(model.loss, 4),
            fixed(model.perplexity, 3),
            fixed(model.kl, 4),
            model.kl_se.map_or("-".into(), |se| fixed(se, 4)),
            share(model.top1),
            model.gain_kept.map_or("-".into(), share),
            model.first_divergence.map_or("-".into(), |n| fixed(n, 1)),
        ]);
    }
    print(&table);
    let count = found.models.iter().map(|model| model.generations.len()).max().unwrap_or(0);
    if count > 0 {
        anstream::println!(
            "{DIM}same tokens: how many tokens its continuations share with those of the adapter kept apart before they part, on average{DIM:#}"
        );
    }
    for number in 0..count {
        let prompt = found.prompts.get(number).map_or("", String::as_str);
        anstream::println!("\n{BOLD}continuation {}{BOLD:#} of “{}”", number + 1, in_a_line(prompt));
        for model in &found.models {
            let text = model.generations.get(number).map_or("", String::as_str);
            anstream::println!("{DIM}{}:{DIM:#} {}", model.name, in_a_line(text));
        }
    }
    anstream::println!();
    compared(found);
}

/// A text without its line breaks.
fn in_a_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A verdict on each model that was compared, or on the adapter where there was none.
fn compared(found: &Comparison) {
    let judged: Vec<_> = found.models.iter().filter_map(|model| Some((model, model.verdict.as_ref()?))).collect();
    for (model, verdict) in &judged {
        let style = effect_style(verdict.effect);
        let name = if judged.len() > 1 { format!("{}: ", model.name) } else { String::new() };
        anstream::println!("{style}verdict{style:#}: {name}{}", verdict.text);
    }
    let of = |name: &str| found.models.iter().find(|model| model.name == name);
    if let (true, Some(base), Some(apart)) = (judged.is_empty(), of("base"), of("apart")) {
        let verb = if apart.loss < base.loss { "lowers" } else { "does not lower" };
        anstream::println!(
            "{BOLD}verdict{BOLD:#}: the adapter {verb} the loss on this text ({} with it, {} without), and --merged compares what a merge keeps of that",
            fixed(apart.loss, 4),
            fixed(base.loss, 4)
        );
    }
}

fn table(header: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.to_vec());
    for (i, column) in table.column_iter_mut().enumerate() {
        column.set_padding((if i == 0 { 0 } else { 2 }, 0));
        if i > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The table without the spaces that alignment leaves at the ends of lines.
fn print(table: &Table) {
    for line in table.to_string().lines() {
        anstream::println!("{}", line.trim_end());
    }
}

fn left(table: &mut Table, column: usize) {
    if let Some(column) = table.column_mut(column) {
        column.set_cell_alignment(CellAlignment::Left);
    }
}

pub(crate) fn count(n: u64) -> String {
    match n {
        0..10_000 => n.to_string(),
        10_000..1_000_000 => format!("{:.1} k", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} M", n as f64 / 1e6),
        _ => format!("{:.2} G", n as f64 / 1e9),
    }
}

pub(crate) fn bytes(n: u64) -> String {
    match n {
        0..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}

fn seconds(s: f64) -> String {
    if s < 0.1 { format!("{:.0} ms", 1e3 * s) } else { format!("{s:.2} s") }
}

/// With so many digits behind the point; nothing where it is not a number, and no sign before zero.
fn fixed(x: f64, digits: usize) -> String {
    if !x.is_finite() {
        return "-".into();
    }
    let text = format!("{x:.digits$}");
    match text.strip_prefix('-') {
        Some(positive) if positive.chars().all(|c| matches!(c, '0' | '.')) => positive.to_owned(),
        _ => text,
    }
}

fn share(x: f64) -> String {
    if x.is_finite() { format!("{} %", fixed(100.0 * x, 1)) } else { "-".into() }
}

fn figure(x: Option<f64>) -> String {
    x.map_or("-".into(), |x| fixed(x, if x.abs() < 9.9995 { 3 } else { 1 }))
}

/// Words that differ, in the order of their first appearance.
fn distinct<'t>(words: impl Iterator<Item = &'t str>) -> String {
    let mut found: Vec<&str> = Vec::new();
    for word in words {
        if !found.contains(&word) {
            found.push(word);
        }
    }
    found.join(" + ")
}

/// Rows of the table of worst weights.
const WORST: usize = 6;

/// What a merge did and what it cost.
pub(crate) fn report(report: &Report) {
    let summary = &report.summary;
    let adapters: Vec<String> = report
        .adapters
        .iter()
        .map(|adapter| {
            if adapter.weight == 1.0 { adapter.path.clone() } else { format!("{} × {}", adapter.path, adapter.weight) }
        })
        .collect();
    let sources = std::iter::once(report.base.path.clone()).chain(adapters).collect::<Vec<_>>().join(" + ");
    let verb = if report.adapters.is_empty() { "converted" } else { "merged" };
    anstream::println!("{BOLD}{verb}{BOLD:#} {sources} → {BOLD}{}{BOLD:#}", report.output.path);
    let weights = if report.adapters.is_empty() { report.weights.len() } else { summary.weights_merged };
    let memory = summary.peak_rss_bytes.map_or(String::new(), |rss| format!(", {} of memory", bytes(rss)));
    anstream::println!(
        "{weights} weights, {} → {}, rounding {}, {} written in {}{memory}",
        report.base.format,
        report.output.format,
        report.rounding.method,
        bytes(summary.bytes_written),
        seconds(summary.seconds),
    );
    if let Some(reason) = &report.rounding.reason {
        let calibration =
            report.rounding.calibration.as_ref().map_or(String::new(), |text| format!(", calibrated on {text}"));
        anstream::println!("rounding {}: {reason}{calibration}", report.rounding.method);
    }
    if !report.weights.is_empty() {
        anstream::println!();
        print(&if report.adapters.is_empty() { recoded_table(report) } else { weights_table(report) });
    }
    if let Some(residual) = &report.residual {
        let kept =
            residual.kept.map_or(String::new(), |kept| format!(", {} of what rounding left on average", share(kept)));
        anstream::println!(
            "{}: rank {}, {}, of {} weights{kept}",
            residual.path,
            residual.rank,
            bytes(residual.bytes),
            residual.weights
        );
        if let Some(first) = residual.without.first() {
            anstream::println!(
                "{} weights are not in it, first {}: {}",
                residual.without.len(),
                first.weight,
                first.reason
            );
        }
    }
    let replaced: usize = report.adapters.iter().map(|adapter| adapter.replaced).sum();
    if replaced > 0 {
        anstream::println!("{replaced} tensors were taken from the adapter as they are");
    }
    if !report.adapters.is_empty() {
        anstream::println!();
        verdict(&report.verdict, report.behaviour.as_ref());
    }
}

/// The command that a merge is followed by.
pub(crate) fn next(line: &str) {
    anstream::println!("{BOLD}next{BOLD:#}: {line}");
}

fn weights_table(report: &Report) -> Table {
    // Where the inputs are known, what comes out of a layer says more than what stands in its weight.
    let outputs = report.summary.kept_output.is_some();
    let kept = if outputs { "kept output" } else { "error/weight" };
    let mut table = table(&["weight", "format", "delta/weight", "survival", "noise/delta", kept, "changed"]);
    left(&mut table, 1);
    let ratio = |x: f64, of: f64| if of > 0.0 { format!("{:.2} %", 100.0 * x / of) } else { "-".into() };
    let mut worst: Vec<&WeightReport> = report.weights.iter().collect();
    // Least survival first; where there is no delta, the largest error.
    worst.sort_by(|a, b| {
        let key = |weight: &WeightReport| {
            (
                weight.kept_output.or(weight.survival).unwrap_or(f64::INFINITY),
                -weight.error_rms / weight.weight_rms.max(1e-30),
            )
        };
        key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal)
    });
    for weight in worst.iter().take(rows(WORST)) {
        let format =
            if weight.from == weight.to { weight.to.clone() } else { format!("{} → {}", weight.from, weight.to) };
        table.add_row([
            weight.name.clone(),
            format,
            ratio(weight.delta_rms, weight.weight_rms),
            figure(weight.survival),
            figure(weight.noise_to_delta),
            if outputs { figure(weight.kept_output) } else { ratio(weight.error_rms, weight.weight_rms) },
            share(weight.changed_fraction),
        ]);
    }
    if worst.len() > rows(WORST) {
        table.add_row([format!("… and {} more (--verbose shows all)", worst.len() - WORST)]);
    }
    if !report.adapters.is_empty() {
        let summary = &report.summary;
        table.add_row([
            format!("all {} merged weights", summary.weights_merged),
            distinct(report.weights.iter().filter(|weight| weight.survival.is_some()).map(|weight| weight.to.as_str())),
            String::new(),
            figure(summary.survival),
            figure(summary.noise_to_delta),
            summary.kept_output.map_or(String::new(), |kept| figure(Some(kept))),
            share(summary.changed_fraction),
        ]);
    }
    table
}

/// Without an adapter there is an error and no delta.
fn recoded_table(report: &Report) -> Table {
    let mut table = table(&["weight", "format", "error/weight", "largest error"]);
    left(&mut table, 1);
    let relative = |weight: &WeightReport| weight.error_rms / weight.weight_rms.max(1e-30);
    let mut worst: Vec<&WeightReport> = report.weights.iter().collect();
    worst.sort_by(|a, b| relative(b).total_cmp(&relative(a)));
    for weight in worst.iter().take(rows(WORST)) {
        table.add_row([
            weight.name.clone(),
            format!("{} → {}", weight.from, weight.to),
            format!("{:.2} %", 100.0 * relative(weight)),
            format!("{:.1e}", weight.max_abs_error),
        ]);
    }
    if worst.len() > rows(WORST) {
        table.add_row([format!("… and {} more (--verbose shows all)", worst.len() - WORST)]);
    }
    table
}

fn verdict(verdict: &Verdict, behaviour: Option<&Behaviour>) {
    let style = effect_style(verdict.effect);
    anstream::println!("{style}verdict{style:#}: {}", verdict.text);
    if let Some(behaviour) = behaviour {
        anstream::println!("{BOLD}measured{BOLD:#}: {}", behaviour.in_words());
    }
    if let Some(advice) = &verdict.advice {
        anstream::println!("{BOLD}advice{BOLD:#}: {advice}");
    }
}

fn effect_style(effect: &str) -> Style {
    match effect {
        "kept" | "converted" => colour(AnsiColor::Green),
        "lost" | "none" | "broken" => colour(AnsiColor::Red),
        _ => colour(AnsiColor::Yellow),
    }
}

/// What a cut kept of an adapter.
pub(crate) fn truncation(found: &Truncation) {
    let Truncation { rank_before, rank, bytes_before, .. } = found;
    found.warnings.iter().for_each(|text| warning(text));
    anstream::println!("{BOLD}truncated{BOLD:#} {} → {BOLD}{}{BOLD:#}", found.adapter, found.output);
    anstream::println!(
        "{} modules, rank {rank_before} → {rank}, {} of {}",
        found.weights.len(),
        bytes(found.bytes),
        bytes(*bytes_before)
    );
    if let Some(text) = &found.calibration {
        anstream::println!("cut by what it adds to layers' outputs, calibrated on {text}");
    }
    if let Some(reason) = &found.reason {
        anstream::println!("{reason}");
    }
    anstream::println!();
    let mut table = table(&["module", "rank", "kept energy"]);
    let mut worst: Vec<&CutWeight> = found.weights.iter().collect();
    let kept = |weight: &CutWeight| weight.kept.unwrap_or(f64::INFINITY);
    worst.sort_by(|a, b| kept(a).total_cmp(&kept(b)));
    let energy = |kept: Option<f64>| kept.map_or("-".into(), |kept| format!("{:.2} %", 100.0 * kept));
    let any = found.weights.iter().any(|weight| weight.by_inputs);
    for weight in worst.iter().take(rows(WORST)) {
        let plain = if any && !weight.by_inputs { " (plain norm)" } else { "" };
        table.add_row([
            format!("{}{plain}", weight.module),
            format!("{} → {rank}", weight.rank_before),
            energy(weight.kept),
        ]);
    }
    if worst.len() > rows(WORST) {
        table.add_row([format!("… and {} more (--verbose shows all)", worst.len() - WORST)]);
    }
    let counted = found.weights.iter().filter(|weight| weight.by_inputs == any).count();
    table.add_row([format!("all {counted} modules"), String::new(), energy(found.kept)]);
    print(&table);
    if !found.copied.is_empty() {
        anstream::println!("{} tensors that are no factors were copied as they are", found.copied.len());
    }
    anstream::println!("\n{BOLD}advice{BOLD:#}: {}", found.advice);
}

fn shapes(shapes: &[Vec<usize>]) -> String {
    let words: Vec<String> =
        shapes.iter().take(2).map(|shape| shape.iter().map(usize::to_string).collect::<Vec<_>>().join(" × ")).collect();
    let more = if shapes.len() > 2 { format!(", … ({})", shapes.len()) } else { String::new() };
    words.join(", ") + &more
}

/// A model or an adapter at a glance.
pub(crate) fn inspection(inspection: &Inspection) {
    match inspection {
        Inspection::Model(model) => self::model(model),
        Inspection::Adapter(adapter) => self::adapter(adapter),
        Inspection::Calibration(calibration) => self::calibration(calibration),
    }
}

fn calibration(calibration: &CalibrationInspection) {
    anstream::println!("{BOLD}{}{BOLD:#}: a calibration, for --calibration", calibration.path);
    anstream::println!("taken from {}", calibration.taken_from);
    anstream::println!(
        "second moments of {} inputs of {} weights in {} layers, {}",
        calibration.inputs,
        calibration.weights,
        calibration.layers,
        bytes(calibration.bytes)
    );
}

fn model(model: &ModelInspection) {
    let family = if model.model_type.is_empty() { "model" } else { &model.model_type };
    anstream::println!("{BOLD}{}{BOLD:#}: {family}, {}", model.path, model.format);
    let tied = if model.tied { ", tied embeddings" } else { "" };
    let parameters =
        model.parameters.map_or(String::new(), |parameters| format!("{} parameters in ", count(parameters)));
    anstream::println!(
        "{parameters}{} tensors, {} in {} file{}{tied}",
        model.tensors,
        bytes(model.bytes),
        model.files,
        if model.files == 1 { "" } else { "s" },
    );
    if let Some(unsupported) = &model.unsupported {
        anstream::println!();
        let place = match &unsupported.tensor {
            Some(tensor) => format!("`{tensor}`"),
            None => unsupported.file.display().to_string(),
        };
        let yellow = colour(AnsiColor::Yellow);
        anstream::println!("{yellow}not supported{yellow:#}: {place}: {}", unsupported.about);
        anstream::println!(
            "this version reads no such weights, and every other command refuses them; {}",
            unsupported.remedy
        );
        return;
    }
    anstream::println!();
    let mut table = table(&["module", "format", "count", "shape", "parameters", "bytes"]);
    for column in [1, 3] {
        left(&mut table, column);
    }
    for group in &model.groups {
        let details = if group.details.is_empty() { String::new() } else { format!(" ({})", group.details) };
        table.add_row([
            group.module.clone(),
            format!("{}{details}", group.format),
            group.count.to_string(),
            shapes(&group.shapes),
            count(group.parameters),
            bytes(group.bytes),
        ]);
    }
    print(&table);
    if !model.opaque.is_empty() {
        anstream::println!(
            "{DIM}{} tensors of other types are copied as they are, first {}{DIM:#}",
            model.opaque.len(),
            model.opaque[0]
        );
    }
    if model.merged_by_qmerge {
        anstream::println!("an adapter was merged into it: see {}", qmerge::report::FILE_NAME);
    }
    if model.converted_by_qmerge {
        anstream::println!("it was converted: see {}", qmerge::report::FILE_NAME);
    }
}

fn adapter(adapter: &AdapterInspection) {
    let variants =
        if adapter.variants.is_empty() { String::new() } else { format!(" ({})", adapter.variants.join(", ")) };
    let rank = adapter.r.map_or(String::new(), |rank| format!(", rank {rank}"));
    let alpha = adapter.lora_alpha.map_or(String::new(), |alpha| format!(", alpha {alpha}"));
    anstream::println!("{BOLD}{}{BOLD:#}: {}{variants}{rank}{alpha}", adapter.path, adapter.peft_type);
    anstream::println!(
        "{} parameters in {} tensors, {}",
        count(adapter.parameters),
        adapter.tensors,
        bytes(adapter.bytes)
    );
    if let Some(base) = &adapter.base_model {
        anstream::println!("trained on {base}");
    }
    if let Some(refused) = &adapter.refused {
        let remedy = refused.remedy.as_ref().map_or(String::new(), |remedy| format!("; {remedy}"));
        let yellow = colour(AnsiColor::Yellow);
        anstream::println!("{yellow}cannot be merged{yellow:#}: {}{remedy}", refused.reason);
    }
    anstream::println!();
    let mut table = table(&["module", "count", if adapter.peft_type == "LORA" { "shape of A" } else { "shape" }]);
    left(&mut table, 2);
    for target in &adapter.targets {
        table.add_row([target.module.clone(), target.count.to_string(), shapes(&target.shapes)]);
    }
    print(&table);
    if !adapter.modules_to_save.is_empty() {
        anstream::println!("trained whole: {}", adapter.modules_to_save.join(", "));
    }
}

/// What a verification found.
pub(crate) fn verification(found: &Verification) {
    anstream::println!(
        "{BOLD}{}{BOLD:#} ({}), against {} + {}",
        found.merged.path,
        found.merged.format,
        found.base.path,
        found.adapters.join(" + ")
    );
    anstream::println!();
    let mut table = table(&["weight", "format", "found", "survival", "±", "noise/delta", "changed"]);
    for column in [1, 2] {
        left(&mut table, column);
    }
    let mut weights: Vec<_> = found.weights.iter().collect();
    // What is wrong first, and of that the least survival.
    weights.sort_by(|a, b| {
        let key = |weight: &VerifiedWeight| {
            (matches!(weight.state, State::Applied | State::Replaced), weight.survival.unwrap_or(f64::INFINITY))
        };
        key(a).partial_cmp(&key(b)).unwrap_or(std::cmp::Ordering::Equal)
    });
    for weight in weights.iter().take(rows(WORST)) {
        table.add_row([
            weight.name.clone(),
            weight.format.clone(),
            state(weight.state).to_owned(),
            figure(weight.survival),
            figure(weight.survival_se),
            figure(weight.noise_to_delta),
            share(weight.changed_fraction),
        ]);
    }
    if weights.len() > rows(WORST) {
        table.add_row([format!("… and {} more (--verbose shows all)", weights.len() - WORST)]);
    }
    table.add_row([
        format!("all {} weights", found.summary.weights),
        distinct(found.weights.iter().map(|weight| weight.format.as_str())),
        String::new(),
        figure(found.summary.survival),
        figure(found.summary.survival_se),
        figure(found.summary.noise_to_delta),
        share(found.summary.changed_fraction),
    ]);
    print(&table);
    anstream::println!();
    let (style, word) = match found.answer {
        Answer::Yes => (colour(AnsiColor::Green), "yes"),
        Answer::No => (colour(AnsiColor::Red), "no"),
        Answer::Undecided => (colour(AnsiColor::Yellow), "undecided"),
    };
    anstream::println!("{style}{word}{style:#}: {}", found.text);
}

fn state(state: State) -> &'static str {
    match state {
        State::Applied => "applied",
        State::Moved => "moved",
        State::Lost => "lost to rounding",
        State::Erased => "no trace left",
        State::Scaled => "other strength",
        State::Absent => "absent",
        State::Undecided => "undecided",
        State::NoDelta => "zero delta",
        State::Replaced => "replaced",
        State::NotReplaced => "not replaced",
    }
}

/// What a merge would do.
pub(crate) fn plan(plan: &qmerge::plan::PlanSummary) -> anyhow::Result<()> {
    anstream::println!(
        "{BOLD}would write{BOLD:#} {} ({}, {}), nothing was written",
        plan.output.path,
        plan.output.format,
        bytes(plan.output.bytes)
    );
    anstream::println!(
        "{} weights merged, {} recoded or replaced, {} tensors copied",
        plan.merged,
        plan.recoded,
        plan.copied,
    );
    let reason = plan.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    let threads = if plan.threads == 1 { "1 thread".into() } else { format!("{} threads", plan.threads) };
    anstream::println!(
        "rounding {}{reason}: {} of memory, about {} on {threads}",
        plan.rounding,
        bytes(plan.memory_bytes),
        seconds(plan.seconds),
    );
    anstream::println!();
    let mut table = table(&["weight", "from", "to", "shape", "scale", "adapters"]);
    for column in [1, 2, 3] {
        left(&mut table, column);
    }
    const ROWS: usize = 12;
    for weight in plan.weights.iter().take(rows(ROWS)) {
        let scales: Vec<String> = weight.scales.iter().map(|scale| format!("{scale}")).collect();
        let adapters: Vec<String> = weight.adapters.iter().map(|number| (number + 1).to_string()).collect();
        table.add_row([
            weight.name.clone(),
            weight.from.clone(),
            weight.to.clone(),
            shapes(std::slice::from_ref(&weight.shape)),
            scales.join(", "),
            adapters.join(", "),
        ]);
    }
    if plan.weights.len() > rows(ROWS) {
        table.add_row([format!("… and {} more (--verbose shows all)", plan.weights.len() - ROWS)]);
    }
    print(&table);
    for text in &plan.warnings {
        warning(text);
    }
    Ok(())
}
