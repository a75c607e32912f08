//! What a verification found.

use anstyle::{AnsiColor, Style};
use qmerge::formats;
use qmerge::verify::{Answer, State, Verification};

use super::figures::{all, figure, share};
use super::lines::{self, Stream, say};
use super::names::{Names, Place, worst_first};
use super::table::{Table, number, word};
use super::{BOLD, WORST, colour, rows};

pub(crate) fn verification(found: &Verification) {
    let sources = format!("{} + {}", found.base.path, found.adapters.join(" + "));
    say(&format!("{BOLD}{}{BOLD:#} ({}), against {sources}", found.merged.path, found.merged.format));
    say("");
    verified_table(found).print();
    say("");
    let (style, word) = match found.answer {
        Answer::Yes => (colour(AnsiColor::Green), "yes"),
        Answer::No => (colour(AnsiColor::Red), "no"),
        Answer::Undecided => (colour(AnsiColor::Yellow), "undecided"),
    };
    say(&format!("{style}{word}{style:#}: {}", found.text));
}

fn verified_table(found: &Verification) -> Table {
    let names = Names::of(found.weights.iter().map(|weight| weight.name.as_str()), lines::width(Stream::Out));
    let columns = [
        word("found"),
        number("survival").means("the share of the adapter's delta that is in the weight"),
        number("±").leaves(2).means("its standard error"),
        number("noise/delta")
            .leaves(4)
            .means("how far the weight is from base and adapter, 1 being the size of the delta"),
        number("changed").leaves(1),
        word("format").leaves(3),
    ];
    let mut table = Table::new(names.heading("weight"), columns);
    let worst = worst_first(&found.weights, |weight| Place {
        is_right: is_right(weight.state),
        kept: weight.survival,
        error: weight.noise_to_delta.unwrap_or(0.0),
        name: &weight.name,
    });
    for weight in worst.iter().take(rows(WORST)) {
        let cells = [
            state(weight.state).to_owned(),
            figure(weight.survival),
            figure(weight.survival_se),
            figure(weight.noise_to_delta),
            share(weight.changed_fraction),
            weight.format.clone(),
        ];
        table.coloured(state_style(weight.state), names.show(&weight.name), cells);
    }
    table.more(worst.len(), WORST);
    let summary = &found.summary;
    table.row(
        all(summary.weights, "weight"),
        [
            String::new(),
            figure(summary.survival),
            figure(summary.survival_se),
            figure(summary.noise_to_delta),
            share(summary.changed_fraction),
            formats::phrase(found.weights.iter().map(|weight| weight.format.as_str())),
        ],
    );
    table
}

fn is_right(state: State) -> bool {
    matches!(state, State::Applied | State::Moved | State::Replaced | State::NoDelta)
}

fn state_style(state: State) -> Style {
    match state {
        State::Undecided => Style::new().fg_color(Some(AnsiColor::Yellow.into())),
        state if is_right(state) => Style::new(),
        _ => Style::new().fg_color(Some(AnsiColor::Red.into())),
    }
}

fn state(state: State) -> &'static str {
    match state {
        State::Applied => "applied",
        State::Moved => "moved",
        State::Lost => "lost to rounding",
        State::Erased => "no trace left",
        State::Scaled => "other strength",
        State::Differs => "other values",
        State::Absent => "absent",
        State::Undecided => "undecided",
        State::NoDelta => "zero delta",
        State::Replaced => "replaced",
        State::NotReplaced => "not replaced",
    }
}
