//! What was taken of the difference between two models.

use qmerge::arithmetic::{ExtractedWeight, Extraction};

use super::figures::{all, bytes, counted, fixed};
use super::lines::{self, Stream, say};
use super::names::{Names, Place, worst_first};
use super::table::{Table, number};
use super::{BOLD, WORST, rows, warning};

pub(crate) fn extraction(found: &Extraction) {
    found.warnings.iter().for_each(|text| warning(text));
    say(&format!("{BOLD}extracted{BOLD:#} {} − {} → {BOLD}{}{BOLD:#}", found.tuned, found.base, found.output));
    if let Some(calibration) = &found.calibration {
        say(&format!("directions that count on the inputs of layers: {calibration}"));
    }
    let is_mixed = found.weights.iter().any(|weight| weight.rank != found.rank);
    let up_to = if is_mixed { "up to " } else { "" };
    say(&format!("{}, rank {up_to}{}, {}", counted(found.weights.len(), "module"), found.rank, bytes(found.bytes)));
    if !found.weights.is_empty() {
        say("");
        kept_table(found).print();
    }
    if !found.whole.is_empty() {
        say(&format!("taken whole: {}, {}", counted(found.whole.len(), "tensor"), bytes(found.whole_bytes)));
    }
    if !found.dropped.is_empty() {
        let first = &found.dropped[0];
        let more = if found.dropped.len() > 1 { " and others" } else { "" };
        let share = found.left_out.map_or_else(String::new, |share| {
            format!(", with {} % of the difference of all weights, squared", fixed(100.0 * share, 2))
        });
        let count = counted(found.dropped.len(), "tensor");
        say(&format!("left out: {count}{share}: {} ({}){more}", first.name, first.reason));
    }
    if found.unchanged > 0 {
        say(&format!(
            "{} the same in both",
            if found.unchanged == 1 { "1 tensor is".to_owned() } else { format!("{} tensors are", found.unchanged) }
        ));
    }
}

fn kept_table(found: &Extraction) -> Table {
    let names = Names::of(found.weights.iter().map(|weight| weight.module.as_str()), lines::width(Stream::Out));
    let of = match found.calibration {
        Some(_) => "the share of what the difference adds to a layer's outputs, squared, that the rank holds",
        None => "the share of the module's difference, squared, that its rank holds",
    };
    let kept = number("kept energy").means(of);
    let mut table = Table::new(names.heading("module"), vec![number("rank").leaves(1), kept]);
    let energy = |kept: Option<f64>| kept.map_or("-".into(), |kept| format!("{} %", fixed(100.0 * kept, 2)));
    let worst = worst_first(&found.weights, |weight: &ExtractedWeight| Place {
        is_right: true,
        kept: Some(weight.kept),
        error: 0.0,
        name: &weight.module,
    });
    for weight in worst.iter().take(rows(WORST)) {
        table.row(names.show(&weight.module), [weight.rank.to_string(), energy(Some(weight.kept))]);
    }
    table.more(worst.len(), WORST);
    table.row(all(found.weights.len(), "module"), [String::new(), energy(found.kept)]);
    table
}
