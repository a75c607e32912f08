//! What a cut kept of an adapter.

use qmerge::truncate::{CutWeight, Truncation};

use super::figures::{all, bytes, counted, fixed};
use super::lines::{self, Stream, say};
use super::names::{Names, Place, worst_first};
use super::table::{Table, number, word};
use super::{BOLD, WORST, rows, warning};

pub(crate) fn truncation(found: &Truncation) {
    let Truncation { rank_before, rank, bytes_before, .. } = found;
    found.warnings.iter().for_each(|text| warning(text));
    say(&format!("{BOLD}truncated{BOLD:#} {} → {BOLD}{}{BOLD:#}", found.adapter, found.output));
    say(&format!(
        "{}, rank {rank_before} → {rank}, {} of {}",
        counted(found.weights.len(), "module"),
        bytes(found.bytes),
        bytes(*bytes_before)
    ));
    if let Some(text) = &found.calibration {
        say(&format!("cut by what it adds to layers' outputs, calibrated on {text}"));
    }
    if let Some(reason) = &found.reason {
        say(reason);
    }
    say("");
    cut_table(found).print();
    if !found.copied.is_empty() {
        let (is, are) = ("that is no factor was copied as it is", "that are no factors were copied as they are");
        let were = if found.copied.len() == 1 { is } else { are };
        say(&format!("{} {were}", counted(found.copied.len(), "tensor")));
    }
    say(&format!("\n{BOLD}advice{BOLD:#}: {}", found.advice));
}

fn cut_table(found: &Truncation) -> Table {
    let names = Names::of(found.weights.iter().map(|weight| weight.module.as_str()), lines::width(Stream::Out));
    let any = found.weights.iter().any(|weight| weight.by_inputs);
    let is_mixed = any && found.weights.iter().any(|weight| !weight.by_inputs);
    let mut columns = vec![
        number("rank").leaves(1),
        number("kept energy").means(if any {
            "the share of what the adapter adds to a layer's outputs, squared, that the lower rank keeps"
        } else {
            "the share of the adapter's values, squared, that the lower rank keeps"
        }),
    ];
    columns.extend(is_mixed.then(|| word("norm")));
    let mut table = Table::new(names.heading("module"), columns);
    let energy = |kept: Option<f64>| kept.map_or("-".into(), |kept| format!("{} %", fixed(100.0 * kept, 2)));
    let worst = worst_first(&found.weights, |weight: &CutWeight| Place {
        is_right: true,
        kept: weight.kept,
        error: 0.0,
        name: &weight.module,
    });
    for weight in worst.iter().take(rows(WORST)) {
        let norm = if weight.by_inputs { "outputs" } else { "values" };
        let rank = format!("{} → {}", weight.rank_before, found.rank);
        table.row(names.show(&weight.module), [rank, energy(weight.kept), norm.to_owned()]);
    }
    table.more(worst.len(), WORST);
    let summed = found.weights.iter().filter(|weight| weight.by_inputs == any).count();
    table.row(all(summed, "module"), [String::new(), energy(found.kept)]);
    table
}
