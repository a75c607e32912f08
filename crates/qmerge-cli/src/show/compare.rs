//! Models side by side.

use qmerge_run::compare::Comparison;

use super::figures::{counted, fixed, share};
use super::lines::say;
use super::table::{Table, number};
use super::{BOLD, DIM, effect_style};

pub(crate) fn comparison(found: &Comparison) {
    say(&format!(
        "{BOLD}{}{BOLD:#}: {} of {}, {}",
        found.text,
        counted(found.windows, "window"),
        counted(found.context, "token"),
        counted(found.tokens, "prediction")
    ));
    say("");
    figures(found).print();
    let count = found.models.iter().map(|model| model.generations.len()).max().unwrap_or(0);
    for number in 0..count {
        let prompt = found.prompts.get(number).map_or("", String::as_str);
        say(&format!("\n{BOLD}continuation {}{BOLD:#} of “{}”", number + 1, in_a_line(prompt)));
        for model in &found.models {
            let text = model.generations.get(number).map_or("", String::as_str);
            say(&format!("{DIM}{}:{DIM:#} {}", model.name, in_a_line(text)));
        }
    }
    say("");
    verdicts(found);
}

fn figures(found: &Comparison) -> Table {
    let columns = [
        number("loss"),
        number("perplexity").leaves(1),
        number("KL").means("how far its predictions are from those of the adapter kept apart"),
        number("±").leaves(2),
        number("top-1").leaves(4).means("how often both find the same token most likely"),
        number("gain kept").means("the share of what the adapter gains in loss"),
        number("same tokens").leaves(3).means(
            "how many tokens its continuations share with those of the adapter kept apart before they part, on average",
        ),
    ];
    let has_continuations = found.models.iter().any(|model| model.first_divergence.is_some());
    let columns: Vec<_> = columns.into_iter().take(if has_continuations { 7 } else { 6 }).collect();
    let mut table = Table::new("model", columns);
    for model in &found.models {
        let cells = [
            fixed(model.loss, 4),
            fixed(model.perplexity, 3),
            fixed(model.kl, 4),
            model.kl_se.map_or("-".into(), |se| fixed(se, 4)),
            share(model.top1),
            model.gain_kept.map_or("-".into(), share),
            model.first_divergence.map_or("-".into(), |n| fixed(n, 1)),
        ];
        table.row(model.name.as_str(), cells);
    }
    table
}

/// A text without its line breaks.
fn in_a_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// A verdict on each model that was compared, or on the adapter where there was none.
fn verdicts(found: &Comparison) {
    let judged: Vec<_> = found.models.iter().filter_map(|model| Some((model, model.verdict.as_ref()?))).collect();
    for (model, verdict) in &judged {
        let style = effect_style(verdict.effect);
        let name = if judged.len() > 1 { format!("{}: ", model.name) } else { String::new() };
        say(&format!("{style}verdict{style:#}: {name}{}", verdict.text));
    }
    let of = |name: &str| found.models.iter().find(|model| model.name == name);
    if let (true, Some(base), Some(apart)) = (judged.is_empty(), of("base"), of("apart")) {
        let verb = if apart.loss < base.loss { "lowers" } else { "does not lower" };
        say(&format!(
            "{BOLD}verdict{BOLD:#}: the adapter {verb} the loss on this text ({} with it, {} without), and --merged compares what a merge keeps of that",
            fixed(apart.loss, 4),
            fixed(base.loss, 4)
        ));
    }
}
