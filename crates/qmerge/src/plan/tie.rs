//! Embeddings that are one tensor: what becomes of them when an adapter edits one end.
//!
//! The configuration says that they are tied; whether the checkpoint stores the tensor once or under each of its names says nothing. Afterwards
//! the flag says whether the tensors are equal: transformers 4 and vLLM skip a stored head while it is true.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::BTreeSet;

use super::steps::{ConfigChange, Wanted};
use super::{Inputs, Options};
use crate::adapters::{Names, PlannedEdit};
use crate::arch::Tie;
use crate::error::{Result, unsupported};

/// A weight that must be stored on its own now.
pub(super) struct Parted {
    /// The stored weight whose values it begins with.
    pub(super) source: String,
    /// Its name.
    pub(super) name: String,
}

/// Settles what is wanted of tied embeddings: edits of all of them, or of each on its own.
pub(super) fn settle(
    inputs: &Inputs,
    options: &Options,
    names: &Names<'_>,
    wanted: &mut Wanted,
    config: &mut ConfigChange,
    warnings: &mut Vec<String>,
) -> Result<Vec<Parted>> {
    let Some(tie) = names.tie else {
        refuse_unknown(inputs, options, names, wanted)?;
        return Ok(Vec::new());
    };
    let all: Vec<String> = tie.members.iter().map(|member| format!("{member}.weight")).collect();
    let head = format!("{}.weight", tie.head());
    if !all.iter().any(|member| wanted.touches(member)) {
        return Ok(Vec::new());
    }
    let Some(source) = all.iter().find(|name| names.exact(name).is_some()).cloned() else { return Ok(Vec::new()) };
    let members = same_tensor(names, tie, &source, config, warnings)?;
    if members.len() < 2 {
        return Ok(Vec::new());
    }
    let group = Group { inputs, first: tie.members.first().copied().unwrap_or_default(), members: &members };
    if !members.iter().any(|member| group.parts(wanted, member)) {
        if group.is_seen_twice(wanted) {
            if options.read.peft_bugs {
                group.gather(names, wanted);
                return Ok(Vec::new());
            }
            warnings.push(
                "the adapter was trained on tied embeddings: its delta is added to the one tensor once, where PEFT's merge adds it twice (--peft-bugs)"
                    .into(),
            );
        }
        group.share(names, wanted);
        part_if_drawn(options, names, wanted, &members, config, warnings);
        return Ok(Vec::new());
    }
    let only_low_rank = members
        .iter()
        .all(|member| wanted.replacements.get(member).is_none_or(|(_, replacement)| !replacement.trained));
    if options.read.peft_bugs && only_low_rank {
        group.refuse_mapped_twice(wanted, &source)?;
        warnings.push(
            "the embeddings are tied and stay so, as PEFT leaves them: the delta of one end changes the other too"
                .into(),
        );
        group.gather(names, wanted);
        return Ok(Vec::new());
    }
    // T5 and its kin scale the decoder's output while the flag is true, so no flag says what the parted model is.
    if tie.members.first() == Some(&"shared") {
        return Err(unsupported(format!(
            "the adapter parts the embeddings, and in this family tie_word_embeddings decides how the output of the decoder is scaled too: \
             without `{head}` tied, the model is another"
        ))
        .in_tensor(&source)
        .with_hint("train it anew without the embeddings, or say --peft-bugs: then they stay tied, and all ends change"));
    }
    group.refuse_lone(wanted, &source)?;
    group.spread(wanted);
    let skipped = |name: &String| *name == head && !names.has_head() && !wanted.touches(name);
    let parted = members
        .iter()
        .filter(|name| names.exact(name).is_none() && !skipped(name))
        .map(|name| Parted { source: source.clone(), name: name.clone() })
        .collect();
    config.untie = true;
    warnings.push(parted_warning(&members, &head));
    Ok(parted)
}

/// What becomes of the head's bias where the family keeps it beside the head: one tensor as long as the embeddings are tied, and one of its own where they have parted.
pub(super) fn settle_bias(
    names: &Names<'_>,
    wanted: &mut Wanted,
    config: &ConfigChange,
    parted: &mut Vec<Parted>,
) -> Result<()> {
    let Some((name, source)) = names.tie.and_then(Tie::bias) else { return Ok(()) };
    if names.tied_bias(&name).is_none() {
        return Ok(());
    }
    if config.untie {
        wanted.copy(&source, &name);
        parted.push(Parted { source, name });
        return Ok(());
    }
    wanted.rename(&name, &source)
}

/// The names of the tie that stand for one tensor in the base: `source`, and those that are not stored or have its bytes.
fn same_tensor(
    names: &Names<'_>,
    tie: &Tie,
    source: &str,
    config: &mut ConfigChange,
    warnings: &mut Vec<String>,
) -> Result<Vec<String>> {
    let mut members = Vec::new();
    for member in tie.members {
        let name = format!("{member}.weight");
        if names.same_as_first(member)?.is_some() {
            members.push(name);
        } else if names.exact(&name).is_some() && names.ties_stored() {
            warnings.push(format!(
                "the configuration ties `{name}` to `{source}`, but both are stored and differ: they are two tensors, and \
                 tie_word_embeddings is false now"
            ));
            config.untie = true;
        }
    }
    Ok(members)
}

/// A method that draws rounds each stored copy by its own name, so that they are two tensors afterwards.
fn part_if_drawn(
    options: &Options,
    names: &Names<'_>,
    wanted: &Wanted,
    members: &[String],
    config: &mut ConfigChange,
    warnings: &mut Vec<String>,
) {
    let stored: Vec<&String> = members.iter().filter(|member| names.exact(member).is_some()).collect();
    let is_rounded = |member: &&String| {
        let edits = wanted.edits.get(*member).map_or(&[][..], Vec::as_slice);
        edits.iter().any(|(_, edit)| !edit.plan.is_tokens())
    };
    if options.rounding.draws_plain(&options.data) && stored.len() > 1 && stored.iter().any(is_rounded) {
        config.untie = true;
        warnings.push(format!(
            "the embeddings are stored {} times, and the rounding draws for each on its own: tie_word_embeddings is false now",
            stored.len()
        ));
    }
}

fn parted_warning(members: &[String], head: &str) -> String {
    if members.len() == 2 {
        format!(
            "the input and output embeddings were one tensor and are two now: `{head}` is stored on its own, and \
             tie_word_embeddings is false"
        )
    } else {
        format!(
            "the embeddings were one tensor and are {} now, each stored on its own; tie_word_embeddings is false",
            members.len()
        )
    }
}

/// Tensors that are one in the base.
struct Group<'a> {
    inputs: &'a Inputs,
    /// The module that is the model's input embedding.
    first: &'a str,
    members: &'a [String],
}

impl Group<'_> {
    /// True if the adapter of that number was trained with the embeddings tied.
    fn shares(&self, number: usize) -> bool {
        self.inputs.adapters.get(number).is_some_and(|adapter| adapter.config.ensure_weight_tying)
    }

    /// True for an edit of one end that means all of them: trained tokens of the input embedding, sums that were trained tied. What multiplies, as a DoRA, has numbers
    /// of its own at each end all the same.
    fn is_shared(&self, member: &str, (number, edit): &(usize, PlannedEdit)) -> bool {
        let is_first = member.strip_suffix(".weight") == Some(self.first);
        edit.plan.is_tokens() && is_first || self.shares(*number) && (edit.plan.is_additive() || edit.plan.is_tokens())
    }

    /// True if what is wanted of one member is meant for it alone.
    fn parts(&self, wanted: &Wanted, member: &str) -> bool {
        let edits = wanted.edits.get(member).map_or(&[][..], Vec::as_slice);
        edits.iter().any(|edit| !self.is_shared(member, edit))
            || wanted
                .replacements
                .get(member)
                .is_some_and(|(number, replacement)| replacement.trained && !self.shares(*number))
    }

    /// The numbers of the adapters that edit a member by more than tokens.
    fn editors<'w>(&self, wanted: &'w Wanted, member: &str) -> impl Iterator<Item = &'w (usize, PlannedEdit)> {
        wanted.edits.get(member).into_iter().flatten().filter(|(_, edit)| !edit.plan.is_tokens())
    }

    /// True if an adapter that was trained tied has its delta at more than one member.
    fn is_seen_twice(&self, wanted: &Wanted) -> bool {
        let numbers =
            |member: &String| self.editors(wanted, member).map(|(number, _)| *number).collect::<BTreeSet<_>>();
        let all: Vec<usize> = self.members.iter().flat_map(numbers).collect();
        all.iter().collect::<BTreeSet<_>>().len() < all.len()
    }

    /// Errors if more than one end is multiplied: which of PEFT's merges into the one tensor comes first decides what becomes of it.
    fn refuse_mapped_twice(&self, wanted: &Wanted, source: &str) -> Result<()> {
        let multiplied = |member: &&String| self.editors(wanted, member).any(|(_, edit)| !edit.plan.is_additive());
        match self.members.iter().filter(multiplied).count() {
            0 | 1 => Ok(()),
            _ => Err(unsupported("the embeddings are one tensor, and the adapter multiplies both ends: what PEFT's merge makes of that is not written by this version")
                .in_tensor(source)
                .with_hint("leave out --peft-bugs: then each end is a tensor of its own")),
        }
    }

    /// Errors if a DoRA that was trained tied has magnitudes for one end only: PEFT multiplies the other too, with numbers that the file lacks.
    fn refuse_lone(&self, wanted: &Wanted, source: &str) -> Result<()> {
        let multiplies = |number: usize, member: &String| {
            self.editors(wanted, member).any(|(own, edit)| *own == number && !edit.plan.is_additive())
        };
        let tied = (0..self.inputs.adapters.len()).filter(|number| self.shares(*number));
        for number in tied {
            let ends = self.members.iter().filter(|member| multiplies(number, member)).count();
            if let Some(adapter) = self.inputs.adapters.get(number)
                && (1..self.members.len()).contains(&ends)
            {
                return Err(unsupported(
                    "it is a DoRA that was trained on tied embeddings, and holds the magnitudes of one end only, while PEFT multiplies both",
                )
                .in_file(adapter.file())
                .in_tensor(source)
                .with_hint("let PEFT save it with both ends among its `target_modules`, or train it without `ensure_weight_tying`"));
            }
        }
        Ok(())
    }

    /// All members stay one tensor: each stored copy takes the same edits. A second edit by the same adapter is the first seen from the other end.
    fn share(&self, names: &Names<'_>, wanted: &mut Wanted) {
        let mut edits: Vec<(usize, PlannedEdit)> = Vec::new();
        let mut replacement = None;
        for member in self.members {
            let before: Vec<usize> = edits.iter().map(|(number, _)| *number).collect();
            let more = wanted.edits.remove(member).unwrap_or_default();
            edits.extend(more.into_iter().filter(|(number, _)| !before.contains(number)));
            let own = wanted.replacements.remove(member);
            replacement = replacement.or(own);
        }
        for member in self.members.iter().filter(|member| names.exact(member).is_some()) {
            if !edits.is_empty() {
                wanted.edits.insert(member.clone(), edits.clone());
            }
            if let Some((number, replacement)) = &replacement {
                wanted.replace(member, *number, replacement);
            }
        }
    }

    /// All edits on the one tensor, as PEFT's merge does it.
    fn gather(&self, names: &Names<'_>, wanted: &mut Wanted) {
        let edits: Vec<_> =
            self.members.iter().flat_map(|member| wanted.edits.remove(member).unwrap_or_default()).collect();
        let found: Vec<_> = self.members.iter().filter_map(|member| wanted.replacements.remove(member)).collect();
        for member in self.members.iter().filter(|member| names.exact(member).is_some()) {
            if !edits.is_empty() {
                wanted.edits.insert(member.clone(), edits.clone());
            }
            if let Some((number, replacement)) = found.first() {
                wanted.replace(member, *number, replacement);
            }
        }
    }

    /// Each member is a tensor of its own: what meant all of them goes to those that lack it.
    fn spread(&self, wanted: &mut Wanted) {
        let kind = |(number, edit): &(usize, PlannedEdit)| (*number, edit.plan.is_tokens());
        let mut shared: Vec<(usize, PlannedEdit)> = Vec::new();
        for member in self.members {
            let before: Vec<(usize, bool)> = shared.iter().map(kind).collect();
            let edits = wanted.edits.get(member).map_or(&[][..], Vec::as_slice);
            let is_new = |edit: &&(usize, PlannedEdit)| self.is_shared(member, edit) && !before.contains(&kind(edit));
            shared.extend(edits.iter().filter(is_new).cloned());
        }
        let common = self.members.iter().find_map(|member| {
            let (number, replacement) = wanted.replacements.get(member)?;
            (!replacement.trained || self.shares(*number)).then(|| (*number, replacement.clone()))
        });
        for member in self.members {
            let edits = wanted.edits.remove(member).unwrap_or_default();
            // Rows of tokens that a member has of an adapter are all that this adapter means for it.
            let has = |(number, is_tokens): (usize, bool)| {
                edits
                    .iter()
                    .any(|edit| kind(edit) == (number, is_tokens) && (is_tokens || self.is_shared(member, edit)))
            };
            let mut own: Vec<_> = shared.iter().filter(|edit| !has(kind(edit))).cloned().collect();
            own.extend(edits);
            if !own.is_empty() {
                wanted.edits.insert(member.clone(), own);
            }
            if let Some((number, replacement)) = &common
                && !wanted.replacements.contains_key(member)
            {
                wanted.replace(member, *number, replacement);
            }
        }
    }
}

/// Errors if an input embedding is edited whose model may tie it to a head of unknown name: the head would change without a word.
fn refuse_unknown(inputs: &Inputs, options: &Options, names: &Names<'_>, wanted: &Wanted) -> Result<()> {
    if options.read.peft_bugs || !names.may_tie() || !names.has_head() {
        return Ok(());
    }
    let Some(config) = &inputs.base.config else { return Ok(()) };
    let tokens = config.find("vocab_size").and_then(serde_json::Value::as_u64);
    let own = |number: &usize| inputs.adapters.get(*number).is_some_and(|adapter| !adapter.config.ensure_weight_tying);
    let edited = wanted
        .edits
        .iter()
        .filter(|(_, edits)| edits.iter().any(|(number, edit)| own(number) && !edit.plan.is_tokens()));
    let replaced = wanted.replacements.iter().filter(|(_, (number, replacement))| own(number) && replacement.trained);
    let mut targets: Vec<&String> = edited.map(|(name, _)| name).chain(replaced.map(|(name, _)| name)).collect();
    targets.sort();
    for name in targets {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let is_table = names.exact(name).is_some_and(|claim| {
            let shape = claim.weight.shape();
            shape.len() == 2 && shape.first().copied().map(|rows| rows as u64) == tokens
        });
        if is_table && !names.is_head(module) {
            return Err(unsupported(format!(
                "it has a row for each token, and the model (`{}`) may tie it to its output embedding, whose name is not known for this \
                 family: a merge into it could change the output too",
                config.model_type()
            ))
            .in_file(&config.path)
            .in_tensor(name)
            .with_hint(
                "if they are two tensors, set tie_word_embeddings to false in the base's config.json; if they are one and both may change, say \
                 --peft-bugs",
            ));
        }
    }
    Ok(())
}
