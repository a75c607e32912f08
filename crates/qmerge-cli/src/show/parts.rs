//! Parts of a merge, planned and done.

use qmerge::merge::{PartDone, PartEstimate};

use super::figures::{bytes, counted, roughly};
use super::lines::say;
use super::table::{Table, number, word};
use super::{BOLD, note, rows};

/// Rows of its table.
const ROWS: usize = 12;

/// What each part takes; nothing where there are none. `beside` are the bytes that each reads from stores besides.
pub(crate) fn parts(parts: &[PartEstimate], beside: Option<u64>) {
    if parts.is_empty() {
        return;
    }
    say("");
    let columns = [
        number("tensors").leaves(4),
        number("reads"),
        number("writes").leaves(3),
        number("about"),
        word("from").leaves(2),
        word("to").leaves(1),
    ];
    let mut table = Table::new("part", columns);
    for part in parts.iter().take(rows(ROWS)) {
        let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "nothing".into());
        let cells = [
            part.steps.to_string(),
            bytes(part.bytes_read),
            bytes(part.bytes_written),
            roughly(part.seconds),
            name(&part.first),
            name(&part.last),
        ];
        table.row(format!("{} of {}", part.part, parts.len()), cells);
    }
    table.more(parts.len(), ROWS);
    table.print();
    note("each takes at most as much memory as the whole");
    if let Some(beside) = beside.filter(|beside| *beside > 0) {
        note(&format!(
            "each reads {} besides: headers, small tensors and adapters; and the model, where it is run for it",
            bytes(beside)
        ));
    }
}

/// A part that is done.
pub(crate) fn part(part: &PartDone) {
    say(&format!(
        "{BOLD}part {} of {} {}{BOLD:#}: {}, {} written in {}",
        part.part,
        part.of,
        if part.was_complete { "was complete already" } else { "is done" },
        counted(part.steps, "tensor"),
        bytes(part.bytes_written),
        roughly(part.seconds)
    ));
    say(&format!("it waits in {}", part.folder));
    note("once all parts are done: the same command with finish in place of merge, without --part");
}
