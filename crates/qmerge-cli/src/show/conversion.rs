//! What an adapter became as a LoRA.

use qmerge::arithmetic::{Conversion, ConvertedWeight};

use super::figures::{all, bytes, counted, fixed};
use super::lines::{self, Stream, say};
use super::names::{Names, Place, worst_first};
use super::table::{Table, number};
use super::{BOLD, WORST, rows, warning};

pub(crate) fn conversion(found: &Conversion) {
    found.warnings.iter().for_each(|text| warning(text));
    say(&format!("{BOLD}converted{BOLD:#} {} → {BOLD}{}{BOLD:#}", found.adapter, found.output));
    let is_mixed = found.weights.iter().any(|weight| weight.rank != found.rank);
    let up_to = if is_mixed { "up to " } else { "" };
    say(&format!(
        "{} → {}, {}, rank {up_to}{}, {}",
        found.method,
        if found.format == "peft" { "LORA" } else { "LoRA of llama.cpp" },
        counted(found.weights.len(), "module"),
        found.rank,
        bytes(found.bytes)
    ));
    say("");
    kept_table(found).print();
    if !found.copied.is_empty() {
        let (is, are) = (
            "that is no part of the method was copied as it is",
            "that are no part of the method were copied as they are",
        );
        let were = if found.copied.len() == 1 { is } else { are };
        say(&format!("{} {were}", counted(found.copied.len(), "tensor")));
    }
    if let Some(first) = found.dropped.first() {
        let more = if found.dropped.len() > 1 { " and others" } else { "" };
        say(&format!(
            "left out: what it does to {}: {} ({}){more}",
            counted(found.dropped.len(), "weight"),
            first.name,
            first.reason
        ));
    }
}

fn kept_table(found: &Conversion) -> Table {
    let names = Names::of(found.weights.iter().map(|weight| weight.module.as_str()), lines::width(Stream::Out));
    let kept = number("kept energy").means("the share of what the adapter adds, squared, that the rank holds");
    let mut table = Table::new(names.heading("module"), vec![number("rank").leaves(1), kept]);
    let energy = |kept: Option<f64>| kept.map_or("-".into(), |kept| format!("{} %", fixed(100.0 * kept, 2)));
    let worst = worst_first(&found.weights, |weight: &ConvertedWeight| Place {
        is_right: true,
        kept: weight.kept,
        error: 0.0,
        name: &weight.module,
    });
    for weight in worst.iter().take(rows(WORST)) {
        table.row(names.show(&weight.module), [weight.rank.to_string(), energy(weight.kept)]);
    }
    table.more(worst.len(), WORST);
    table.row(all(found.weights.len(), "module"), [String::new(), energy(found.kept)]);
    table
}
