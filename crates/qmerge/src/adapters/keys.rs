//! Adapter tensor names: which module a tensor belongs to, and what it is there.
//!
//! PEFT writes `base_model.model.<module path>.<what>`; in the wild the prefix may be missing, wrappers of torch.compile and
//! FSDP leave infixes, and some writers keep the adapter's name after `lora_A`. Which components mark a tensor of a method's own, the methods say.

use super::{ADAPTERS, Markers};

/// What a tensor is to its module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Role {
    /// A tensor of the method's own: its marker, and whether it is a bias.
    Own(&'static str, bool),
    /// A tensor that all modules share, by its name from the marker on.
    Shared(String),
    /// Replacement rows for trained tokens.
    Tokens,
    /// The embedding that they are rows of, as it was when they were trained: the base's own, or resized.
    TokensOf,
    /// A base parameter, by its own name ("weight").
    Parameter(String),
    /// What is added to a base parameter of that name.
    Added(&'static str),
    /// A part of a training-time variant that the merge does not need.
    TrainingOnly,
    /// The untrained original of a module in `modules_to_save`.
    Original,
    /// What the program that wrote it passes over, and why.
    PassedOver(&'static str),
}

/// A parsed name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Module path in the base model ("model.layers.0.mlp.up_proj").
    pub(super) module: String,
    /// How many wrappers lie around the tensor (`base_layer` at the end of the path): nested parameter targets.
    pub(super) depth: usize,
    /// Its role.
    pub(super) role: Role,
    /// True if the name passes through `base_layer` or `modules_to_save`: not the plain parameter of a module trained whole.
    pub(super) wrapped: bool,
    /// True if the method says that it is a parameter that was trained whole.
    pub(super) whole: bool,
}

impl Key {
    /// A tensor of a module that nothing wraps.
    pub(super) fn of(module: &str, role: Role) -> Self {
        Self { module: module.to_owned(), depth: 0, role, wrapped: false, whole: false }
    }
}

/// Components that wrappers insert anywhere.
const INFIXES: &[&str] = &["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

pub(super) fn parse(name: &str) -> Key {
    let mut path: Vec<&str> = name.split('.').filter(|component| !INFIXES.contains(component)).collect();
    for prefix in [["base_model", "model"].as_slice(), &["module"], &["base_model", "model"], &["module"]] {
        if path.starts_with(prefix) && path.len() > prefix.len() + 1 {
            path.drain(..prefix.len());
        }
    }
    let whole = path.iter().any(|component| is_whole(component));
    let (mut module, role, mut wrapped) = split(&path);
    let depth = module.iter().rev().take_while(|component| **component == "base_layer").count();
    let before = module.len();
    module.retain(|component| *component != "base_layer");
    wrapped |= module.len() != before;
    Key { module: module.join("."), depth, role, wrapped, whole }
}

impl Key {
    /// The name under which PEFT would write the tensor.
    pub(super) fn as_peft_writes(&self) -> String {
        let Self { module, role, .. } = self;
        match role {
            Role::Own(marker, true) => format!("base_model.model.{module}.{marker}.bias"),
            Role::Own(marker @ ("lora_A" | "lora_B"), false) => format!("base_model.model.{module}.{marker}.weight"),
            Role::Own(marker, false) => format!("base_model.model.{module}.{marker}"),
            Role::Parameter(parameter) => format!("base_model.model.{module}.{parameter}"),
            Role::Added(parameter) => format!("base_model.model.{module}.{parameter}"),
            Role::Shared(_)
            | Role::Tokens
            | Role::TokensOf
            | Role::TrainingOnly
            | Role::Original
            | Role::PassedOver(_) => {
                format!("base_model.model.{module}")
            }
        }
    }
}

/// The name under which PEFT would write a tensor: with the prefix, without wrappers' infixes, and without the adapter's own name behind a factor.
pub(crate) fn as_peft_writes(name: &str) -> String {
    let mut path: Vec<&str> = name.split('.').filter(|component| !INFIXES.contains(component)).collect();
    for prefix in [["module"].as_slice(), &["base_model", "model"], &["module"]] {
        if path.starts_with(prefix) && path.len() > prefix.len() + 1 {
            path.drain(..prefix.len());
        }
    }
    if let Some(at) = path.iter().position(|component| component.starts_with("lora_")) {
        let last = path.last().copied().filter(|last| matches!(*last, "weight" | "bias"));
        path.truncate(at + 1);
        path.extend(last);
    }
    format!("base_model.model.{}", path.join("."))
}

/// Separates the module path from what stands behind it.
fn split<'a>(path: &[&'a str]) -> (Vec<&'a str>, Role, bool) {
    let plain = |wrapped| {
        let (last, module) = path.split_last().unwrap_or((&"", &[]));
        (module.to_vec(), Role::Parameter((*last).to_owned()), wrapped)
    };
    let found = (0..path.len()).find_map(|at| Some((at, marker(path.get(at..)?)?)));
    let Some((at, mark)) = found else { return plain(false) };
    let (module, behind) = path.split_at(at);
    let (Some(component), Some(last)) = (behind.first(), behind.last()) else { return plain(false) };
    let role = match mark {
        Mark::Own(marker) => Role::Own(marker, *last == "bias" && behind.len() > 1),
        Mark::Shared => Role::Shared(behind.join(".")),
        Mark::TrainingOnly => Role::TrainingOnly,
        // `<module>.ln_tuning_layers[.<adapter>].<param>`.
        Mark::Whole => return (module.to_vec(), Role::Parameter((*last).to_owned()), false),
        Mark::Everyones if *component == "original_module" => Role::Original,
        // `<module>.modules_to_save[.<adapter>].<param>`.
        Mark::Everyones if *component == "modules_to_save" => {
            return (module.to_vec(), Role::Parameter((*last).to_owned()), true);
        }
        // `<module>.token_adapter.base_layer.weight`.
        Mark::Everyones if behind.contains(&"base_layer") => return (module.to_vec(), Role::TokensOf, true),
        Mark::Everyones => Role::Tokens,
    };
    (module.to_vec(), role, false)
}

/// Markers that adapters of all methods may have.
const EVERYONES: &[&str] = &["token_adapter", "trainable_tokens_delta", "original_module", "modules_to_save"];

/// What a component says of the tensor whose name it is in.
enum Mark {
    Own(&'static str),
    Shared,
    TrainingOnly,
    Whole,
    Everyones,
}

/// True for what stands before the parameters of a module that the method trains whole.
fn is_whole(component: &str) -> bool {
    ADAPTERS.iter().any(|method| method.markers().whole.contains(&component))
}

/// What the first component of the rest of a path says.
fn marker(behind: &[&str]) -> Option<Mark> {
    let (component, rest) = behind.split_first()?;
    if EVERYONES.contains(component) {
        return Some(Mark::Everyones);
    }
    // A marker of two components may have the adapter's name between them.
    let is = |marker: &str| match marker.split_once('.') {
        None => marker == *component,
        Some((first, second)) => first == *component && rest.contains(&second),
    };
    ADAPTERS.iter().find_map(|method| {
        let Markers { own, shared, training_only, whole } = method.markers();
        let own = own.iter().find(|marker| is(marker)).map(|marker| Mark::Own(marker));
        own.or_else(|| shared.contains(component).then_some(Mark::Shared))
            .or_else(|| training_only.iter().any(|marker| is(marker)).then_some(Mark::TrainingOnly))
            .or_else(|| whole.contains(component).then_some(Mark::Whole))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> (String, Role, usize) {
        let key = parse(name);
        (key.module, key.role, key.depth)
    }

    #[test]
    fn names_become_those_that_peft_writes() {
        let want = "base_model.model.model.layers.0.q_proj.lora_A.weight";
        for name in [
            want,
            "model.layers.0.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.q_proj.lora_A.default.weight",
            "module.base_model.model._orig_mod.model.layers.0._fsdp_wrapped_module.q_proj.lora_A.weight",
        ] {
            assert_eq!(as_peft_writes(name), want, "{name}");
        }
        for name in [
            "base_model.model.model.embed_tokens.lora_embedding_A",
            "base_model.model.mlp.experts.base_layer.lora_B.weight",
            "base_model.model.a.q.lora_B.bias",
            "base_model.model.score.weight",
        ] {
            assert_eq!(as_peft_writes(name), name);
        }
        assert_eq!(as_peft_writes("embed.lora_embedding_B.default"), "base_model.model.embed.lora_embedding_B");
    }

    #[test]
    fn names_in_the_wild_are_understood() {
        let q = "model.layers.0.self_attn.q_proj".to_owned();
        for name in [
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight",
            "model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model._orig_mod.model.layers.0.self_attn.q_proj.lora_A.weight",
            "module.base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
            "base_model.model.module.model.layers.0._fsdp_wrapped_module.self_attn.q_proj.lora_A.weight",
        ] {
            assert_eq!(key(name), (q.clone(), Role::Own("lora_A", false), 0), "{name}");
        }
        assert_eq!(key("base_model.model.a.q.lora_B.bias").1, Role::Own("lora_B", true));
        assert_eq!(
            key("base_model.model.a.q.lora_magnitude_vector.default.weight").1,
            Role::Own("lora_magnitude_vector", false)
        );
        assert_eq!(key("base_model.model.embed.lora_embedding_A").1, Role::Own("lora_embedding_A", false));
        assert_eq!(
            key("base_model.model.embed.token_adapter.trainable_tokens_delta"),
            ("embed".into(), Role::Tokens, 0)
        );
        assert_eq!(
            key("base_model.model.mlp.experts.base_layer.lora_A.weight"),
            ("mlp.experts".into(), Role::Own("lora_A", false), 1)
        );
        assert_eq!(
            key("base_model.model.mha.base_layer.out_proj.lora_A.weight"),
            ("mha.out_proj".into(), Role::Own("lora_A", false), 0)
        );
        assert_eq!(key("base_model.model.lm_head.weight"), ("lm_head".into(), Role::Parameter("weight".into()), 0));
        assert_eq!(key("base_model.model.q.base_layer.bias"), ("q".into(), Role::Parameter("bias".into()), 1));
        assert_eq!(
            key("base_model.model.score.modules_to_save.default.weight"),
            ("score".into(), Role::Parameter("weight".into()), 0)
        );
        assert_eq!(key("base_model.model.score.original_module.bias").1, Role::Original);
    }
}
