//! From a module path in an adapter to a weight of the base.
//!
//! The rule is that names are equal. Where they are not, in this order: the user's `--map`; equality behind the wrappers that models
//! carry or lack (`model.`, `language_model.`); what transformers renames as it loads; and the family's renames. All of these are positive lists:
//! that two paths end alike says nothing. Every name that needed help is remembered, so that the report can say so.

use std::cell::{OnceCell, RefCell};
use std::collections::{HashMap, HashSet};
use std::ops::Range;

use fancy_regex::Regex;

use super::patterns;
use crate::arch::{self, Arch, Experts, Tie};
use crate::error::{Result, mismatch, usage};
use crate::formats::{Claim, Weight, arch_of, experts_of};
use crate::open::{self, Checkpoint};

/// The names of a base model.
#[derive(Debug)]
pub struct Names<'a> {
    /// The base.
    pub checkpoint: &'a Checkpoint,
    /// Its weights.
    pub weights: &'a [Claim],
    /// Its family.
    pub arch: &'static Arch,
    /// How it has its experts.
    pub experts: Option<Experts>,
    /// The modules that are one tensor where the model's embeddings are tied, if their names are known.
    pub tie: Option<&'static Tie>,
    /// The model's type, and those of the models that it is made of, by the fields that say so; "" for its own.
    pub(crate) parts: Vec<(&'a str, &'a str)>,
    by_name: HashMap<&'a str, usize>,
    /// What the family puts before its own path in a model with a head ("bert").
    prefix: String,
    maps: Vec<(Regex, String)>,
    /// The numbers of those that a name was translated by.
    used: RefCell<HashSet<usize>>,
    renamed: RefCell<Renamed>,
    bare: OnceCell<HashMap<&'a str, Vec<usize>>>,
}

/// Renames in the order of their first use, each once.
#[derive(Debug, Default)]
struct Renamed {
    all: Vec<Rename>,
    seen: HashSet<(String, String)>,
}

/// A name of the adapter that stands for another in the base.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rename {
    /// As the adapter says.
    pub from: String,
    /// As the base says.
    pub to: String,
}

impl<'a> Names<'a> {
    /// Indexes a base's weights. `maps` are the user's `regex=>replacement` rules, tried in order on whole names.
    pub fn new(checkpoint: &'a Checkpoint, weights: &'a [Claim], maps: &[String]) -> Result<Self> {
        let model_type = checkpoint.config.as_ref().map_or("", |config| config.model_type());
        let parts = checkpoint.config.as_ref().map_or_else(Vec::new, |config| config.parts());
        let maps = maps
            .iter()
            .map(|map| {
                let (pattern, replacement) = map.split_once("=>").ok_or_else(|| {
                    usage(format!("`--map {map}` has no `=>`")).with_hint("write --map 'regex=>replacement'")
                })?;
                let regex = patterns::compile(pattern)
                    .map_err(|cause| usage(format!("`--map {map}` is not a regular expression: {cause}")))?;
                Ok((regex, replacement.to_owned()))
            })
            .collect::<Result<_>>()?;
        let by_name: HashMap<&str, usize> =
            weights.iter().enumerate().map(|(i, claim)| (claim.weight.name(), i)).collect();
        let arch = arch_of(model_type, checkpoint.config.as_ref(), weights);
        Ok(Self {
            checkpoint,
            weights,
            arch,
            experts: experts_of(arch, checkpoint.config.as_ref(), weights),
            tie: arch::find_tie(model_type, |module| by_name.contains_key(format!("{module}.weight").as_str())),
            parts,
            by_name,
            prefix: arch::base_prefix(model_type),
            maps,
            used: RefCell::default(),
            renamed: RefCell::default(),
            bare: OnceCell::new(),
        })
    }

    /// The weight of exactly that name.
    pub fn exact(&self, name: &str) -> Option<&'a Claim> {
        self.by_name.get(name).and_then(|&i| self.weights.get(i))
    }

    /// The weight that an adapter means by `name` (module path and parameter).
    ///
    /// Errors if more than one weight could be meant.
    pub fn find(&self, name: &str) -> Result<Option<&'a Claim>> {
        let found = self.candidates(name)?;
        if let Some(claim) = found
            && claim.weight.name() != name
        {
            self.remember(name, claim.weight.name());
        }
        Ok(found)
    }

    fn remember(&self, from: &str, to: &str) {
        let (from, to) = (from.to_owned(), to.to_owned());
        let mut renamed = self.renamed.borrow_mut();
        if renamed.seen.insert((from.clone(), to.clone())) {
            renamed.all.push(Rename { from, to });
        }
    }

    /// What [`Names::find`] and [`Names::within`] had to rename so far, each pair once. Some of it may have been looked up and then not used.
    pub fn renamed(&self) -> Vec<Rename> {
        self.renamed.borrow().all.clone()
    }

    /// The numbers of the user's rules that translated no name so far.
    pub(crate) fn idle_maps(&self) -> Vec<usize> {
        let used = self.used.borrow();
        (0..self.maps.len()).filter(|number| !used.contains(number)).collect()
    }

    /// What the first rule of the user's that holds makes of a name.
    fn mapped(&self, name: &str) -> Option<String> {
        let is_meant = |(regex, _): &(Regex, String)| regex.is_match(name).unwrap_or(false);
        let number = self.maps.iter().position(is_meant)?;
        let (regex, replacement) = self.maps.get(number)?;
        self.used.borrow_mut().insert(number);
        Some(regex.replace(name, replacement.as_str()).into_owned())
    }

    /// The layers in memory of a module on disk that is several, rows of one tensor; none of any other.
    pub(crate) fn layers_within(&self, module: &str) -> Option<Vec<String>> {
        arch::fused_layers(&self.parts, module)
    }

    /// True for a layer in memory that is some rows of the tensor that has its name on disk, and not known which.
    pub(crate) fn is_part_of_its_own(&self, module: &str) -> bool {
        self.layers_within(module).is_some_and(|layers| layers.iter().any(|layer| layer == module))
    }

    fn candidates(&self, name: &str) -> Result<Option<&'a Claim>> {
        if let Some(mapped) = self.mapped(name) {
            return Ok(self.exact(&mapped));
        }
        if let Some(claim) = self.exact(name) {
            return Ok(Some(claim));
        }
        if let Some(claim) = self.behind_wrappers(name, name)? {
            return Ok(Some(claim));
        }
        let on_disk = arch::on_disk(&self.parts, name);
        for renamed in on_disk.into_iter().chain(renames(self.arch, name)) {
            if let Some(claim) = self.behind_wrappers(name, &renamed)? {
                return Ok(Some(claim));
            }
        }
        Ok(None)
    }

    /// The weight that has the layer of this name (`….q_proj.weight`) in some of its rows, and which.
    ///
    /// Errors if its rows do not divide as the model's layers do, or if more than one weight could be meant.
    pub fn within(&self, name: &str) -> Result<Option<(&'a Claim, Range<usize>)>> {
        let mapped = self.mapped(name);
        let Some(layer) = arch::FusedLayer::find(&self.parts, mapped.as_deref().unwrap_or(name)) else {
            return Ok(None);
        };
        let Some(claim) = self.behind_wrappers(name, &layer.tensor)? else { return Ok(None) };
        let number = |key| usize::try_from(self.checkpoint.config.as_ref()?.find(key)?.as_u64()?).ok();
        let queries = number("num_attention_heads");
        let heads = queries.map(|queries| (queries, number("num_key_value_heads").unwrap_or(queries)));
        if layer.goes_by_heads() && heads.is_none() {
            return Err(mismatch(format!(
                "`{name}` is a part of it, and the configuration has no `num_attention_heads`"
            ))
            .in_tensor(claim.weight.name()));
        }
        let all = claim.weight.shape().first().copied().unwrap_or(0);
        let rows = layer.rows(all, heads).ok_or_else(|| {
            mismatch(format!(
                "its {all} rows are not those of {} layers, of which `{name}` is number {}",
                layer.count,
                layer.number + 1
            ))
            .in_tensor(claim.weight.name())
        })?;
        self.remember(name, claim.weight.name());
        Ok(Some((claim, rows)))
    }

    /// What the model in memory calls a module or parameter of the base.
    pub fn in_memory(&self, name: &str) -> String {
        let moved = arch::in_memory(&self.parts, name).unwrap_or_else(|| name.to_owned());
        arch::begun(self.model_type(), self.is_headless(), &moved).unwrap_or(moved)
    }

    /// The weight whose path is that of `spelled` once wrappers are taken off either or both.
    fn behind_wrappers(&self, name: &str, spelled: &str) -> Result<Option<&'a Claim>> {
        let bare = self.bare.get_or_init(|| {
            let mut bare: HashMap<&str, Vec<usize>> = HashMap::new();
            for (i, claim) in self.weights.iter().enumerate() {
                for path in self.unwrapped(claim.weight.name()) {
                    bare.entry(path).or_default().push(i);
                }
            }
            bare
        });
        let claims = |path: &str| bare.get(path).into_iter().flatten().filter_map(|&i| self.weights.get(i));
        for path in self.unwrapped(spelled) {
            let mut found = claims(path);
            match (found.next(), found.next()) {
                (None, _) => {}
                (Some(one), None) => return Ok(Some(one)),
                (Some(one), Some(two)) => {
                    let (one, two) = (one.weight.name(), two.weight.name());
                    return Err(mismatch(format!("`{name}` could be `{one}` or `{two}`"))
                        .with_hint("say which with --map 'regex=>replacement'"));
                }
            }
        }
        Ok(None)
    }

    /// The name, and what remains as the wrappers in front are taken off, longest first.
    fn unwrapped<'n>(&self, name: &'n str) -> impl Iterator<Item = &'n str> {
        std::iter::successors(Some(name), |path| {
            let (first, rest) = path.split_once('.')?;
            let next = rest.split('.').next().unwrap_or(rest);
            // CLIP and its kin have a `text_model` too, beside a `vision_model` with the same names below.
            let another = first == "text_model" && matches!(next, "encoder" | "embeddings" | "final_layer_norm");
            let wraps = self.arch.wrappers.contains(&first) || !first.is_empty() && first == self.prefix;
            (wraps && rest.contains('.') && !another).then_some(rest)
        })
    }

    /// True for a base of a family that has a row of its own.
    pub(crate) fn is_known(&self) -> bool {
        !self.arch.model_types.is_empty()
    }

    /// True where stacks of experts lie as (experts, inputs, outputs), as the family stores them.
    pub(crate) fn stacks_inputs_as_rows(&self) -> bool {
        self.experts.is_some_and(|experts| experts.in_out)
    }

    /// True of a stack of experts whose matrices have inputs as rows where it lies: what is plain does, where the family has it so.
    pub(crate) fn is_turned_stack(&self, weight: &dyn Weight) -> bool {
        weight.shape().len() == 3 && weight.has_family_order() && self.stacks_inputs_as_rows()
    }

    /// The base's `model_type`.
    pub fn model_type(&self) -> &'a str {
        self.checkpoint.config.as_ref().map_or("", |config| config.model_type())
    }

    /// The input embedding's weight.
    pub fn embed(&self) -> Option<&'a Claim> {
        self.tie.and_then(|tie| self.first(tie.inputs()))
    }

    /// The output embedding's weight, where it is stored.
    pub fn head(&self) -> Option<&'a Claim> {
        self.arch.heads(self.tie).find_map(|module| self.weight_of(module))
    }

    fn first(&self, modules: &[&str]) -> Option<&'a Claim> {
        modules.iter().find_map(|module| self.weight_of(module))
    }

    fn weight_of(&self, module: &str) -> Option<&'a Claim> {
        self.exact(&format!("{module}.weight"))
    }

    /// True if the path names the output embedding of this family.
    pub fn is_head(&self, module: &str) -> bool {
        self.arch.heads(self.tie).any(|head| self.same_path(head, module))
    }

    /// True if two paths are equal behind wrappers.
    fn same_path(&self, a: &str, b: &str) -> bool {
        let (a, b) = (format!("{a}.weight"), format!("{b}.weight"));
        self.unwrapped(&a).any(|a| self.unwrapped(&b).any(|b| a == b))
    }

    /// True if the output embedding is not stored because it is the input embedding.
    pub(crate) fn is_tied(&self) -> bool {
        self.head().is_none() && self.embed().is_some() && self.flag() != Some(false)
    }

    /// True if a tensor that is stored beside the embedding it is tied to is that embedding: what the configuration says, else its class.
    pub(crate) fn ties_stored(&self) -> bool {
        self.flag().or_else(|| self.default_flag()).unwrap_or(false)
    }

    /// False if the model is known to keep its embeddings apart; a family that is not known may tie them.
    pub(crate) fn may_tie(&self) -> bool {
        self.flag().or_else(|| self.default_flag()).unwrap_or(true)
    }

    fn flag(&self) -> Option<bool> {
        self.checkpoint.config.as_ref().and_then(|config| config.tied())
    }

    fn default_flag(&self) -> Option<bool> {
        arch::tied_by_default(self.checkpoint.config.as_ref()?.model_type())
    }

    /// The place of a module among those whose weights are one tensor where the model's embeddings are tied, the input embedding first.
    pub(crate) fn member(&self, module: &str) -> Option<usize> {
        let members = self.tie?.members;
        let called = |name: &str| members.iter().position(|member| self.same_path(member, name));
        // A head may have another name in memory than in the file.
        called(module).or_else(|| {
            let path = format!("{module}.");
            renames(self.arch, &path).find_map(|name| called(name.strip_suffix('.').unwrap_or(&name)))
        })
    }

    /// The same of one that is the tensor that is stored for all of them: not stored itself, or stored with the same bytes.
    pub(crate) fn same_as_first(&self, module: &str) -> Result<Option<usize>> {
        let (Some(tie), Some(number)) = (self.tie, self.member(module)) else { return Ok(None) };
        let own = tie.members.get(number).and_then(|member| self.weight_of(member));
        let is_same = match (own, self.first(tie.members)) {
            (Some(own), Some(first)) if own.weight.name() == first.weight.name() => true,
            (Some(own), Some(first)) if self.ties_stored() => match (&own.entries[..], &first.entries[..]) {
                ([own], [first]) => open::same_bytes((self.checkpoint, own), (self.checkpoint, first))?,
                _ => false,
            },
            (Some(_), _) => false,
            (None, _) => self.tied_to(module).is_some(),
        };
        Ok(is_same.then_some(number))
    }

    /// For a module that is tied and not stored: the name that its weight has, and the weight that it is.
    pub(crate) fn tied_to(&self, module: &str) -> Option<(String, &'a Claim)> {
        let tie = self.tie.filter(|_| self.flag() != Some(false))?;
        let member = tie.members.get(self.member(module)?)?;
        let name = format!("{member}.weight");
        if self.exact(&name).is_some() {
            return None;
        }
        // A head under another name is a tensor of its own.
        if *member == tie.head() && self.head().is_some() {
            return None;
        }
        Some((name, self.first(tie.members)?))
    }

    /// For a head's bias that is not stored by itself: the tensor that it is while the model is tied.
    pub(crate) fn tied_bias(&self, name: &str) -> Option<&'a Claim> {
        let (own, source) = self.tie.filter(|_| self.flag() != Some(false))?.bias()?;
        self.exact(&source).filter(|_| own == name && self.exact(&own).is_none())
    }

    /// True of a model that is the inside of others, as its class says.
    fn is_headless(&self) -> bool {
        let class = self.checkpoint.config.as_ref().and_then(|config| config.class());
        class.is_some_and(|class| {
            class.ends_with("Model") && !class.ends_with("HeadModel") && !class.ends_with("HeadsModel")
        })
    }

    /// True if the model has an output embedding, as far as its `architectures` say.
    pub(crate) fn has_head(&self) -> bool {
        let class = self.checkpoint.config.as_ref().and_then(|config| config.class());
        let Some(class) = class else { return true };
        let headless = self.is_headless();
        let tasks = ["SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice"];
        !headless && !tasks.iter().any(|task| class.ends_with(task))
    }
}

/// Other spellings of a name, one rule at a time.
fn renames<'n>(arch: &'static Arch, name: &'n str) -> impl Iterator<Item = String> + 'n {
    arch.renames.iter().filter_map(move |(from, to)| {
        let at = name.match_indices(from).map(|(at, _)| at).find(|&at| at == 0 || name[..at].ends_with('.'))?;
        Some(format!("{}{to}{}", &name[..at], &name[at + from.len()..]))
    })
}
