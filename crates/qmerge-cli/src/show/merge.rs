//! What a merge or a conversion did and what it cost.

use anstyle::{AnsiColor, Style};
use qmerge::formats;
use qmerge::report::{Report, Verdict, WeightReport};

use super::figures::{all, bytes, change, counted, figure, fixed, ratio, seconds, share};
use super::lines::{self, Stream, say};
use super::names::{Names, Place, worst_first};
use super::table::{Column, Table, number, word};
use super::{BOLD, WORST, effect_style, rows};

const KEPT_OUTPUT: Column =
    number("kept output").means("the strength at which the adapter comes out of the layer, 1 being all of it");
const SURVIVAL: Column = number("survival").means("the same of its delta in the weight");
const NOISE: Column =
    number("noise/delta").leaves(4).means("the size of what rounding added, 1 being that of the delta");
const FORMAT: Column = word("format").leaves(3);

/// What a merge did and what it cost.
pub(crate) fn report(report: &Report) {
    let summary = &report.summary;
    let is_merge = !report.adapters.is_empty();
    let adapters = report.adapters.iter().map(|adapter| {
        if adapter.weight == 1.0 { adapter.path.clone() } else { format!("{} × {}", adapter.path, adapter.weight) }
    });
    let sources = std::iter::once(report.base.path.clone()).chain(adapters).collect::<Vec<_>>().join(" + ");
    let verb = if is_merge { "merged" } else { "converted" };
    say(&format!("{BOLD}{verb}{BOLD:#} {sources} → {BOLD}{}{BOLD:#}", report.output.path));
    let weights = if is_merge { summary.weights_merged } else { report.weights.len() };
    let memory = summary.peak_rss_bytes.map_or(String::new(), |rss| format!(", {} of memory", bytes(rss)));
    let before = summary.bytes_before.map_or(String::new(), |before| {
        format!(" of {}, of which an interrupted run had the rest", bytes(before + summary.bytes_written))
    });
    say(&format!(
        "{}, {} → {}, rounding {}, {} written{before} in {}{memory}",
        counted(weights, "weight"),
        report.base.format,
        report.output.format,
        report.rounding.method,
        bytes(summary.bytes_written),
        seconds(summary.seconds),
    ));
    if let Some(reason) = &report.rounding.reason {
        let calibration =
            report.rounding.calibration.as_ref().map_or(String::new(), |text| format!(", calibrated on {text}"));
        say(&format!("rounding {}: {reason}{calibration}", report.rounding.method));
    }
    if !report.weights.is_empty() {
        say("");
        if is_merge { merged_table(report) } else { converted_table(report) }.print();
    }
    if !report.promoted.is_empty() {
        say(&format!("{} took a wider type: {}", counted(report.promoted.len(), "weight"), types(report)));
    }
    residual(report);
    let replaced: usize = report.adapters.iter().map(|adapter| adapter.replaced).sum();
    if replaced > 0 {
        let were = if replaced == 1 {
            "was taken from the adapter as it is"
        } else {
            "were taken from the adapter as they are"
        };
        say(&format!("{} {were}", counted(replaced, "tensor")));
    }
    say("");
    verdict(&report.verdict, report.measured());
}

/// What types promoted weights had and took, each pair once, with their number.
fn types(report: &Report) -> String {
    let mut pairs: Vec<((&str, &str), usize)> = Vec::new();
    for weight in report.weights.iter().filter(|weight| report.promoted.contains(&weight.name)) {
        let pair = (weight.from.as_str(), weight.to.as_str());
        match pairs.iter_mut().find(|(known, _)| *known == pair) {
            Some((_, number)) => *number += 1,
            None => pairs.push((pair, 1)),
        }
    }
    let words = pairs.iter().map(|((from, to), number)| format!("{number} from {from} to {to}"));
    words.collect::<Vec<_>>().join(", ")
}

fn residual(report: &Report) {
    let Some(residual) = &report.residual else { return };
    let kept =
        residual.kept.map_or(String::new(), |kept| format!(", {} of what rounding left on average", share(kept)));
    say(&format!(
        "{}: rank {}, {}, of {}{kept}",
        residual.path,
        residual.rank,
        bytes(residual.bytes),
        counted(residual.weights, "weight")
    ));
    if let Some(first) = residual.without.first() {
        let are = if residual.without.len() == 1 { "is" } else { "are" };
        say(&format!(
            "{} {are} not in it, first {}: {}",
            counted(residual.without.len(), "weight"),
            first.weight,
            first.reason
        ));
    }
}

/// The names of a report's weights, for its table.
fn names(report: &Report) -> Names {
    Names::of(report.weights.iter().map(|weight| weight.name.as_str()), lines::width(Stream::Out))
}

fn relative_error(weight: &WeightReport) -> f64 {
    weight.error_rms / weight.weight_rms.max(1e-30)
}

fn merged_table(report: &Report) -> Table {
    // Where the inputs are known, what comes out of a layer says more than what stands in its weight.
    let outputs = report.summary.kept_output.is_some();
    let names = names(report);
    let delta = number("delta/weight").leaves(1);
    let changed = number("changed").leaves(2);
    let columns = match outputs {
        true => [KEPT_OUTPUT, SURVIVAL.leaves(5), NOISE, delta, changed, FORMAT],
        false => [
            SURVIVAL.means("the share of the adapter's delta that is left in the weight"),
            NOISE,
            delta,
            number("error/weight").leaves(5),
            changed,
            FORMAT,
        ],
    };
    let mut table = Table::new(names.heading("weight"), columns);
    let kept = |weight: &WeightReport| weight.kept_output.or(weight.survival);
    let worst = worst_first(&report.weights, |weight| Place {
        is_right: true,
        kept: kept(weight),
        error: relative_error(weight),
        name: &weight.name,
    });
    for weight in worst.iter().take(rows(WORST)) {
        let (survival, noise) = (figure(weight.survival), figure(weight.noise_to_delta));
        let delta = ratio(weight.delta_rms, weight.weight_rms);
        let (changed, format) = (share(weight.changed_fraction), change(&weight.from, &weight.to));
        let cells = match outputs {
            true => [figure(weight.kept_output), survival, noise, delta, changed, format],
            false => [survival, noise, delta, ratio(weight.error_rms, weight.weight_rms), changed, format],
        };
        table.coloured(row_style(kept(weight)), names.show(&weight.name), cells);
    }
    table.more(worst.len(), WORST);
    let summary = &report.summary;
    let edited = report.weights.iter().filter(|weight| weight.survival.is_some());
    let formats = formats::phrase(edited.map(|weight| weight.to.as_str()));
    let (survival, noise) = (figure(summary.survival), figure(summary.noise_to_delta));
    let (changed, none) = (share(summary.changed_fraction), String::new());
    let cells = match outputs {
        true => [figure(summary.kept_output), survival, noise, none, changed, formats],
        false => [survival, noise, none.clone(), none, changed, formats],
    };
    table.row(all(summary.weights_merged, "merged weight"), cells);
    table
}

/// Without an adapter there is an error and no delta.
fn converted_table(report: &Report) -> Table {
    let names = names(report);
    let columns = [
        number("error/weight").means("the size of what rounding changed, as a share of the weight"),
        number("largest error").leaves(1),
        word("format").leaves(2),
    ];
    let mut table = Table::new(names.heading("weight"), columns);
    let worst = worst_first(&report.weights, |weight| Place {
        is_right: true,
        kept: None,
        error: relative_error(weight),
        name: &weight.name,
    });
    for weight in worst.iter().take(rows(WORST)) {
        let error = format!("{} %", fixed(100.0 * relative_error(weight), 2));
        let cells = [error, format!("{:.1e}", weight.max_abs_error), change(&weight.from, &weight.to)];
        table.row(names.show(&weight.name), cells);
    }
    table.more(worst.len(), WORST);
    table
}

/// The colour of a row by what is kept of the adapter there: red where more than half of its effect is lost, which goes with the square of the strength.
fn row_style(kept: Option<f64>) -> Style {
    let lost = kept.map_or(0.0, |kept| (1.0 - kept) * (1.0 - kept));
    match lost {
        ..=0.05 => Style::new(),
        ..=0.5 => Style::new().fg_color(Some(AnsiColor::Yellow.into())),
        _ => Style::new().fg_color(Some(AnsiColor::Red.into())),
    }
}

fn verdict(verdict: &Verdict, measured: Option<String>) {
    let style = effect_style(verdict.effect);
    say(&format!("{style}verdict{style:#}: {}", verdict.text));
    if let Some(measured) = measured {
        say(&format!("{BOLD}measured{BOLD:#}: {measured}"));
    }
    if let Some(advice) = &verdict.advice {
        say(&format!("{BOLD}advice{BOLD:#}: {advice}"));
    }
}
