//! Parts of a plan, each for a process of its own.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use super::{Action, Plan, Step};
use crate::round::Detail;

/// One of so many parts of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// From 1.
    number: usize,
    of: usize,
}

/// Most parts: nobody has more machines, and each has a folder.
const MOST: usize = 4096;

impl Part {
    /// Part `number`, from 1, of `of`; `None` if there is none.
    pub fn new(number: usize, of: usize) -> Option<Self> {
        ((1..=MOST).contains(&of) && (1..=of).contains(&number)).then_some(Self { number, of })
    }

    /// All of so many parts.
    pub fn all(of: usize) -> impl Iterator<Item = Self> {
        (1..=of).filter_map(move |number| Self::new(number, of))
    }

    /// Its number, from 1.
    pub fn number(self) -> usize {
        self.number
    }

    /// How many there are.
    pub fn of(self) -> usize {
        self.of
    }
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.number, self.of)
    }
}

impl FromStr for Part {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers = text.split_once('/').and_then(|(number, of)| Some((number.parse().ok()?, of.parse().ok()?)));
        numbers
            .and_then(|(number, of)| Self::new(number, of))
            .ok_or_else(|| format!("it is no part of a merge: 1/4 to 4/4 are the parts of 4, and {MOST} are the most"))
    }
}

/// Nanoseconds that a byte takes to be copied, and a value to be decoded, edited and encoded, about.
const COPY: f64 = 0.8;
const STREAM: f64 = 5.0;

/// Nanoseconds that a step takes, about. They depend on the plan alone, so that all parts agree on where they are cut.
fn cost(step: &Step) -> u64 {
    match &step.action {
        Action::Copy { entry } => (COPY * entry.bytes as f64) as u64,
        Action::Constant(constant) => constant.len(),
        Action::Recode(recode) => {
            let each = recode
                .rounding
                .whole()
                .map_or(STREAM, |method| method.nanoseconds(recode.inputs(), recode.begins_at_base(), Detail::Full));
            (each * recode.from.weight.geometry().elements() as f64) as u64
        }
    }
}

/// The layer of a weight's name: all up to its first number. What has no number stands alone.
fn layer(name: &str) -> &str {
    let mut end = 0;
    for word in name.split('.') {
        end += word.len();
        if !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_digit()) {
            return &name[..end];
        }
        end += 1;
    }
    name
}

impl Plan {
    /// The steps of a part: neighbours, and whole layers, since the weights of a layer share the moments of their inputs. The parts together are all steps, and
    /// take about equally long; some may be empty.
    pub(crate) fn steps_of(&self, part: Part) -> Range<usize> {
        let mut places = vec![(0, 0_u128)];
        let mut total = 0_u128;
        for (number, step) in self.steps.iter().enumerate() {
            total += u128::from(cost(step)).max(1);
            let next = self.steps.get(number + 1);
            if next.is_none_or(|next| layer(&next.name) != layer(&step.name)) {
                places.push((number + 1, total));
            }
        }
        let cut = |parts: usize| {
            let wanted = total * parts as u128 / part.of as u128;
            places.iter().min_by_key(|(_, upto)| upto.abs_diff(wanted)).map_or(0, |(place, _)| *place)
        };
        cut(part.number - 1)..cut(part.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_one_of_those_that_there_are() {
        for (text, part) in [("1/1", Part::new(1, 1)), ("3/7", Part::new(3, 7)), ("4096/4096", Part::new(4096, 4096))] {
            assert_eq!(text.parse().ok(), part);
            assert_eq!(part.unwrap().to_string(), text);
        }
        for text in ["", "1", "0/3", "4/3", "1/0", "-1/3", "1/3/3", "a/b", "1/4097", "1/99999999999999999999"] {
            text.parse::<Part>().unwrap_err();
        }
        assert_eq!(Part::all(3).map(Part::number).collect::<Vec<_>>(), [1, 2, 3]);
    }

    #[test]
    fn a_layer_ends_with_the_first_number() {
        for (name, want) in [
            ("model.layers.12.mlp.experts.3.up_proj.weight", "model.layers.12"),
            ("blk.0.attn_q.weight", "blk.0"),
            ("h.3", "h.3"),
            ("lm_head.weight", "lm_head.weight"),
            ("", ""),
        ] {
            assert_eq!(layer(name), want);
        }
    }
}
