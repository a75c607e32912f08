//! What a merge would do.

use qmerge::open::model_order;
use qmerge::report::{PlanSummary, PlannedWeight};

use super::figures::{bytes, counted, roughly, shapes};
use super::lines::{self, Stream, say};
use super::names::Names;
use super::table::{Table, number, word};
use super::{BOLD, rows, warning};

/// Rows of its table.
const ROWS: usize = 12;

pub(crate) fn plan(plan: &PlanSummary) {
    say(&format!(
        "{BOLD}would write{BOLD:#} {} ({}, {}), nothing was written",
        plan.output.path,
        plan.output.format,
        bytes(plan.output.bytes)
    ));
    say(&format!(
        "{} merged, {} recoded or replaced, {} copied",
        counted(plan.merged, "weight"),
        plan.recoded,
        counted(plan.copied, "tensor"),
    ));
    let reason = plan.reason.as_ref().map_or(String::new(), |reason| format!(" ({reason})"));
    say(&format!(
        "rounding {}{reason}: about {} of memory and {} on {}",
        plan.rounding,
        bytes(plan.memory_bytes),
        roughly(plan.seconds),
        counted(plan.threads, "thread"),
    ));
    say("");
    let names = Names::of(plan.weights.iter().map(|weight| weight.name.as_str()), lines::width(Stream::Out));
    let columns = [
        word("from").leaves(3),
        word("to"),
        word("shape").leaves(4),
        number("scale").leaves(2),
        number("adapters").leaves(1),
    ];
    let mut table = Table::new(names.heading("weight"), columns);
    let mut weights: Vec<&PlannedWeight> = plan.weights.iter().collect();
    weights.sort_by(|a, b| model_order(&a.name, &b.name));
    for weight in weights.iter().take(rows(ROWS)) {
        let scales: Vec<String> = weight.scales.iter().map(|scale| format!("{scale}")).collect();
        let adapters: Vec<String> = weight.adapters.iter().map(|number| (number + 1).to_string()).collect();
        let shape = shapes(std::slice::from_ref(&weight.shape));
        let cells = [weight.from.clone(), weight.to.clone(), shape, scales.join(", "), adapters.join(", ")];
        table.row(names.show(&weight.name), cells);
    }
    table.more(weights.len(), ROWS);
    table.print();
    for text in &plan.warnings {
        warning(text);
    }
}
