//! What a person reads: tables on standard output, errors on standard error. Colour only on a terminal, and never with NO_COLOR.

use anstyle::{AnsiColor, Style};
use comfy_table::{CellAlignment, Table, presets};
use qmerge::inspect::{AdapterInspection, Inspection, ModelInspection};
use qmerge::report::{Report, Verdict, WeightReport};
use qmerge::truncate::{CutWeight, Truncation};
use qmerge::verify::{Answer, State, Verification};
use qmerge_run::compare::Comparison;

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
    let mut table = table(&["model", "loss", "perplexity", "KL", "±", "top-1", "gain kept", "same tokens", "tokens/s"]);
    for model in &found.models {
        table.add_row([
            model.name.clone(),
            format!("{:.4}", model.loss),
            format!("{:.3}", model.perplexity),
            format!("{:.4}", model.kl),
            model.kl_se.map_or("-".into(), |se| format!("{se:.4}")),
            share(model.top1),
            model.gain_kept.map_or("-".into(), share),
            model.first_divergence.map_or("-".into(), |n| format!("{n:.1}")),
            model.tokens_per_second.map_or("-".into(), |speed| format!("{speed:.1}")),
        ]);
    }
    print(&table);
    let count = found.models.iter().map(|model| model.generations.len()).max().unwrap_or(0);
    for number in 0..count {
        anstream::println!("\n{BOLD}continuation {}{BOLD:#}", number + 1);
        for model in &found.models {
            let text = model.generations.get(number).map_or("", String::as_str).replace('\n', " ");
            anstream::println!("{DIM}{}:{DIM:#} {}", model.name, text.trim());
        }
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

/// A prediction, as fine as it is true.
fn roughly(s: f64) -> String {
    match s {
        ..1.0 => "less than a second".into(),
        ..90.0 => format!("{s:.0} s"),
        ..5400.0 => format!("{:.0} min", s / 60.0),
        _ => format!("{:.1} h", s / 3600.0),
    }
}

fn share(x: f64) -> String {
    format!("{:.1} %", 100.0 * x)
}

fn figure(x: Option<f64>) -> String {
    x.map_or("-".into(), |x| if x.abs() < 9.9995 { format!("{x:.3}") } else { format!("{x:.1}") })
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
        verdict(&report.verdict);
    }
}

/// Where a report was written that was asked for.
pub(crate) fn written(path: Option<&std::path::Path>) {
    if let Some(path) = path {
        note(&format!("the report is in {}", path.display()));
    }
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
    for weight in worst.iter().take(WORST) {
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
    if worst.len() > WORST {
        table.add_row([format!("… and {} more", worst.len() - WORST)]);
    }
    if !report.adapters.is_empty() {
        let summary = &report.summary;
        table.add_row([
            format!("all {} merged weights", summary.weights_merged),
            report.output.format.clone(),
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
    for weight in worst.iter().take(WORST) {
        table.add_row([
            weight.name.clone(),
            format!("{} → {}", weight.from, weight.to),
            format!("{:.2} %", 100.0 * relative(weight)),
            format!("{:.1e}", weight.max_abs_error),
        ]);
    }
    if worst.len() > WORST {
        table.add_row([format!("… and {} more", worst.len() - WORST)]);
    }
    table
}

fn verdict(verdict: &Verdict) {
    let style = match verdict.effect {
        "kept" => colour(AnsiColor::Green),
        "lost" | "none" => colour(AnsiColor::Red),
        _ => colour(AnsiColor::Yellow),
    };
    anstream::println!("{style}verdict{style:#}: {}", verdict.text);
    for advice in verdict.advice.as_deref().into_iter().chain(verdict.beside) {
        anstream::println!("{BOLD}advice{BOLD:#}: {advice}");
    }
}

/// What a cut kept of an adapter.
pub(crate) fn truncation(found: &Truncation) {
    let Truncation { rank_before, rank, bytes_before, .. } = found;
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
    for weight in worst.iter().take(WORST) {
        let plain = if any && !weight.by_inputs { " (plain norm)" } else { "" };
        table.add_row([
            format!("{}{plain}", weight.module),
            format!("{} → {rank}", weight.rank_before),
            energy(weight.kept),
        ]);
    }
    if worst.len() > WORST {
        table.add_row([format!("… and {} more", worst.len() - WORST)]);
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
    }
}

fn model(model: &ModelInspection) {
    let family = if model.model_type.is_empty() { "model" } else { &model.model_type };
    anstream::println!("{BOLD}{}{BOLD:#}: {family}, {}", model.path, model.format);
    let tied = if model.tied { ", tied embeddings" } else { "" };
    anstream::println!(
        "{} parameters in {} tensors, {} in {} file{}{tied}",
        count(model.parameters),
        model.tensors,
        bytes(model.bytes),
        model.files,
        if model.files == 1 { "" } else { "s" },
    );
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
}

fn adapter(adapter: &AdapterInspection) {
    let variants =
        if adapter.variants.is_empty() { String::new() } else { format!(" ({})", adapter.variants.join(", ")) };
    anstream::println!(
        "{BOLD}{}{BOLD:#}: {}{variants}, rank {}, alpha {}",
        adapter.path,
        adapter.peft_type,
        adapter.r,
        adapter.lora_alpha
    );
    anstream::println!(
        "{} parameters in {} tensors, {}",
        count(adapter.parameters),
        adapter.tensors,
        bytes(adapter.bytes)
    );
    if let Some(base) = &adapter.base_model {
        anstream::println!("trained on {base}");
    }
    anstream::println!();
    let mut table = table(&["module", "count", "shape of A"]);
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
    weights.sort_by_key(|weight| matches!(weight.state, State::Applied | State::Replaced));
    for weight in weights.iter().take(WORST) {
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
    if weights.len() > WORST {
        table.add_row([format!("… and {} more", weights.len() - WORST)]);
    }
    table.add_row([
        format!("all {} weights", found.summary.weights),
        found.merged.format.clone(),
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
        "rounding {}{reason}: about {} of memory and {} on {threads}",
        plan.rounding,
        bytes(plan.memory_bytes),
        roughly(plan.seconds),
    );
    anstream::println!();
    let mut table = table(&["weight", "from", "to", "shape", "scale", "adapters"]);
    for column in [1, 2, 3] {
        left(&mut table, column);
    }
    const ROWS: usize = 12;
    for weight in plan.weights.iter().take(ROWS) {
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
    if plan.weights.len() > ROWS {
        table.add_row([format!("… and {} more (see --json)", plan.weights.len() - ROWS)]);
    }
    print(&table);
    for text in &plan.warnings {
        warning(text);
    }
    Ok(())
}
