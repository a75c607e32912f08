//! What several adapters were made into.

use qmerge::arithmetic::{Combination, CombinedWeight};

use super::figures::{all, bytes, counted, fixed};
use super::lines::{self, Stream, say};
use super::names::{Names, Place, worst_first};
use super::table::{Table, number};
use super::{BOLD, WORST, rows, warning};

pub(crate) fn combination(found: &Combination) {
    found.warnings.iter().for_each(|text| warning(text));
    let parts: Vec<String> = found.parts.iter().map(|part| format!("{} · {}", part.weight, part.adapter)).collect();
    say(&format!("{BOLD}combined{BOLD:#} {} → {BOLD}{}{BOLD:#}", parts.join(" + "), found.output));
    let density =
        found.density.map_or(String::new(), |density| format!(" of {} % of the values", fixed(100.0 * density, 1)));
    if let Some(calibration) = &found.calibration {
        say(&format!("directions that count on the inputs of layers: {calibration}"));
    }
    let seed = found.seed.map_or(String::new(), |seed| format!(", drawn with seed {seed}"));
    say(&format!(
        "{}{density}{seed}, {}, rank {}, {}",
        found.method,
        counted(found.weights.len(), "module"),
        found.rank,
        bytes(found.bytes)
    ));
    if found.kept.is_some() {
        say("");
        kept_table(found).print();
    }
    if !found.copied.is_empty() {
        let (is, are) = ("that is no factor was copied as it is", "that are no factors were copied as they are");
        let were = if found.copied.len() == 1 { is } else { are };
        say(&format!("{} {were}", counted(found.copied.len(), "tensor")));
    }
}

fn kept_table(found: &Combination) -> Table {
    let names = Names::of(found.weights.iter().map(|weight| weight.module.as_str()), lines::width(Stream::Out));
    let of = match found.calibration {
        Some(_) => "the share of what the sum adds to a layer's outputs, squared, that the rank keeps",
        None => "the share of the sum's values, squared, that the rank keeps",
    };
    let kept = number("kept energy").means(of);
    let mut table = Table::new(names.heading("module"), vec![number("rank").leaves(1), kept]);
    let energy = |kept: Option<f64>| kept.map_or("-".into(), |kept| format!("{} %", fixed(100.0 * kept, 2)));
    let worst = worst_first(&found.weights, |weight: &CombinedWeight| Place {
        is_right: true,
        kept: weight.kept,
        error: 0.0,
        name: &weight.module,
    });
    for weight in worst.iter().take(rows(WORST)) {
        let rank = format!("{} → {}", weight.rank_before, found.rank);
        table.row(names.show(&weight.module), [rank, energy(weight.kept)]);
    }
    table.more(worst.len(), WORST);
    table.row(all(found.weights.len(), "module"), [String::new(), energy(found.kept)]);
    table
}
