//! The configuration of a LoRA, and what of it cannot be merged, cut or combined.

use crate::adapters::ReadOptions;
use crate::adapters::config::AdapterConfig;
use crate::adapters::patterns::Patterns;
use crate::error::{Result, malformed, mismatch, unsupported};

/// The fields that decide what a LoRA does.
#[derive(Clone, Debug)]
pub(in crate::adapters) struct LoraConfig {
    /// What all configurations have.
    pub(super) common: AdapterConfig,
    /// Rank.
    r: u64,
    /// Numerator of the scaling.
    lora_alpha: f64,
    /// Scaling by `1/√r` instead of `1/r`.
    use_rslora: bool,
    /// Weight-decomposed: a trained magnitude per output.
    pub(super) use_dora: bool,
    /// Ranks of modules that differ, in file order: the first pattern that matches decides.
    rank_pattern: Patterns,
    /// Alphas of modules that differ, in file order.
    alpha_pattern: Patterns,
    /// `init_lora_weights` where it is a string ("pissa").
    pub(super) init: Option<String>,
    /// BD-LoRA, which keeps one factor block-diagonal.
    diagonal: Option<DiagonalConfig>,
}

/// Fields of a LoRA's configuration: those that are read here, those that [`LoraConfig::refuse`] goes by, and those without a meaning for who merges.
const FIELDS: &[&str] = &[
    "r",
    "lora_alpha",
    "use_rslora",
    "use_dora",
    "rank_pattern",
    "alpha_pattern",
    "init_lora_weights",
    "lora_bias",
    "target_parameters",
    "trainable_token_indices",
    "ensure_weight_tying",
    "use_bdlora",
    "alora_invocation_tokens",
    "arrow_config",
    "use_qalora",
    "qalora_group_size",
    "kasa_config",
    "layer_replication",
    "lora_dropout",
    "megatron_config",
    "megatron_core",
    "loftq_config",
    "eva_config",
    "corda_config",
    "lora_ga_config",
    "velora_config",
    "monteclora_config",
];

/// Initialisations by name that leave the base as it was, or that [`LoraConfig::refuse`] goes by.
const INITIALISATIONS: &[&str] = &["gaussian", "eva", "orthogonal", "mica", "olora", "loftq", "lora_ga"];

/// `use_bdlora`: parts of the paths of modules whose A or whose B is block-diagonal, and in how many blocks.
#[derive(Clone, Debug)]
struct DiagonalConfig {
    a: Vec<String>,
    b: Vec<String>,
    blocks: usize,
}

/// One factor stored as the diagonal blocks of a larger matrix (BD-LoRA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Diagonal {
    A(usize),
    B(usize),
}

impl LoraConfig {
    /// Reads the fields. Missing ones take PEFT's defaults.
    pub(in crate::adapters) fn read(config: &AdapterConfig) -> Result<Self> {
        let fields = config.fields();
        let r = fields.number("r")?.unwrap_or(8.0);
        if r.fract() != 0.0 || !(0.0..=1e6).contains(&r) {
            return Err(malformed(format!("`r` is {r}, expected a whole number")));
        }
        fields.flag("lora_bias")?;
        Ok(Self {
            r: r as u64,
            lora_alpha: fields.number("lora_alpha")?.unwrap_or(8.0),
            use_rslora: fields.flag("use_rslora")?,
            use_dora: fields.flag("use_dora")?,
            rank_pattern: Patterns::new(fields.numbers("rank_pattern")?),
            alpha_pattern: Patterns::new(fields.numbers("alpha_pattern")?),
            init: config.json.get("init_lora_weights").and_then(|init| init.as_str()).map(str::to_owned),
            diagonal: DiagonalConfig::read(config),
            common: config.clone(),
        })
    }

    /// Rank and scaling of a module after patterns.
    pub(in crate::adapters) fn scaling(&self, name: &str) -> Result<(usize, f64)> {
        let in_file = |error: crate::error::Error| error.in_file(&self.common.path);
        let rank = self.rank_pattern.lookup(name).map_err(in_file)?.unwrap_or(self.r as f64);
        let alpha = self.alpha_pattern.lookup(name).map_err(in_file)?.unwrap_or(self.lora_alpha);
        if rank < 1.0 || rank.fract() != 0.0 {
            return Err(in_file(mismatch(format!("rank {rank} for `{name}`"))));
        }
        Ok((rank as usize, if self.use_rslora { alpha / rank.sqrt() } else { alpha / rank }))
    }

    /// Which factor of a module is block-diagonal: decided by substrings of its path.
    pub(super) fn diagonal(&self, module: &str) -> Result<Option<Diagonal>> {
        let Some(DiagonalConfig { a, b, blocks }) = &self.diagonal else { return Ok(None) };
        let listed = |list: &[String]| list.iter().any(|item| module.contains(item.as_str()));
        match (listed(a), listed(b)) {
            (true, true) => {
                Err(mismatch(format!("`use_bdlora` lists `{module}` for both factors")).in_file(&self.common.path))
            }
            (true, false) => Ok(Some(Diagonal::A(*blocks))),
            (false, true) => Ok(Some(Diagonal::B(*blocks))),
            (false, false) => Ok(None),
        }
    }

    /// The initialisation, if it moved a part of the base into the adapter.
    pub(super) fn moves_base(&self) -> Option<&str> {
        let moves = |init: &&str| init.starts_with("pissa") || matches!(*init, "olora" | "corda" | "loftq" | "lora_ga");
        self.init.as_deref().filter(moves)
    }

    /// Fields that this version does not know, and an initialisation that it does not: PEFT passes over the former too, and a later one may not.
    pub(super) fn doubts(&self) -> Vec<String> {
        let fields =
            self.common.unknown(FIELDS).map(|key| format!("`{key}`, which is no field that this version knows"));
        let known =
            |init: &&str| init.starts_with("pissa") || init.starts_with("corda") || INITIALISATIONS.contains(init);
        let init = self.init.as_deref().filter(|init| !known(init));
        let init = init.map(|init| format!("`init_lora_weights` \"{init}\", which this version does not know"));
        let doubts = fields.chain(init);
        doubts
            .map(|doubt| format!("adapter_config.json sets {doubt}: it is passed over, and if it changes what the adapter does, the merge is wrong"))
            .collect()
    }

    /// Refuses the variants whose effect is not a fixed change of the stored base.
    pub(in crate::adapters) fn refuse(&self, options: &ReadOptions) -> Result<()> {
        if self.common.is_set("alora_invocation_tokens") {
            return Err(unsupported(
                "an aLoRA acts only behind its invocation tokens, so no fixed weight can hold its effect",
            )
            .with_hint("serve the base with the adapter kept apart"));
        }
        if self.common.is_set("arrow_config") {
            return Err(unsupported(
                "an Arrow router mixes adapters anew for every token, so no fixed weight can hold its effect",
            ));
        }
        if self.common.is_set("use_qalora") {
            return Err(unsupported("a QA-LoRA pools its inputs by group; merging it is not supported (nor by PEFT)"));
        }
        if self.common.is_set("kasa_config") {
            return Err(unsupported(
                "KaSA cuts small singular values out of the base before adding; that is not supported by this version",
            ));
        }
        if self.common.is_set("layer_replication") {
            return Err(unsupported(
                "layer_replication lets several layers share one base weight, and each has its own adapter",
            )
            .with_hint("build the replicated model first and merge into that"));
        }
        if let Some(init) = self.moves_base().filter(|_| !options.base_is_residual) {
            return Err(unsupported(format!(
                "`init_lora_weights` is \"{init}\": training began by moving a part of the base into the adapter, so adding the \
                 adapter to the original base would count that part twice"
            ))
            .with_hint(match self.use_dora {
                // PEFT's conversion leaves the magnitudes out.
                true => "merge it into the residual model that training used, and say so with --base-is-residual",
                false => {
                    "if --base already is the residual model that training used, say so with --base-is-residual; else convert the \
                     adapter with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…)"
                }
            }));
        }
        Ok(())
    }

    /// Refuses what no other factors can stand for: those that something else of the adapter depends on.
    pub(super) fn refuse_other_factors(&self, options: &ReadOptions) -> Result<()> {
        if self.use_dora {
            return Err(unsupported(
                "a DoRA divides by the norms of base + A and B's product: other factors change those norms, and with them the part of the output that is not \
                 the adapter's, so what it does is neither cut nor added factor by factor",
            )
            .with_hint("serve it as it is, merge it (a merge holds its whole effect), or make a LoRA of it for one base with `qmerge convert-adapter`"));
        }
        let others = [
            ("use_bdlora", "BD-LoRA keeps one factor block-diagonal, and new factors are not"),
            ("use_qalora", "QA-LoRA pools its inputs by group before A"),
            ("kasa_config", "KaSA scales its directions by values that stand outside A and B"),
            ("arrow_config", "Arrow routes by the singular vectors of A and B, which other factors change"),
        ];
        if let Some((_, reason)) = others.iter().find(|(key, _)| self.common.is_set(key)) {
            return Err(unsupported(*reason).with_hint("merge it: a merge holds its whole effect"));
        }
        let patterns = !self.rank_pattern.is_empty() || !self.alpha_pattern.is_empty();
        if patterns && self.common.target_parameters.iter().any(|target| !target.contains('.')) {
            return Err(unsupported(
                "`target_parameters` that do not name their module, with a rank_pattern or alpha_pattern: which parameter a factor belongs to does not stand in \
                 the file",
            )
            .with_hint("write them with their module, as mlp.experts.gate_up_proj"));
        }
        if let Some(init) = self.moves_base().filter(|_| !options.base_is_residual) {
            return Err(unsupported(format!(
                "`init_lora_weights` is \"{init}\": the adapter holds a part of the base, which other factors would take away from the base too"
            ))
            .with_hint(
                "convert it with PEFT's save_pretrained(path_initial_model_for_weight_conversion=…), or, if it is served beside the residual model that \
                 training used, say so with --base-is-residual",
            ));
        }
        Ok(())
    }
}

impl DiagonalConfig {
    fn read(config: &AdapterConfig) -> Option<Self> {
        let json = config.json.get("use_bdlora").filter(|value| value.is_object())?;
        let texts = |key: &str| {
            let items = json.get(key).and_then(|list| list.as_array()).into_iter().flatten();
            items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
        };
        Some(Self {
            a: texts("target_modules_bd_a"),
            b: texts("target_modules_bd_b"),
            blocks: json.get("nblocks").and_then(|n| n.as_u64()).unwrap_or(1).clamp(1, 1 << 20) as usize,
        })
    }
}

/// Looks a name up in all patterns of a configuration.
#[cfg(feature = "internals")]
pub(crate) fn try_patterns(config: &AdapterConfig, name: &str) {
    if let Ok(config) = LoraConfig::read(config) {
        let _ = config.scaling(name);
        let _ = config.alpha_pattern.lookup(name);
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::adapters::config::parse;

    fn read(text: &str) -> Result<LoraConfig> {
        LoraConfig::read(&parse(text, Path::new("x"))?)
    }

    #[test]
    fn missing_fields_take_the_defaults_of_peft() {
        let config = read(r#"{"peft_type": "LORA"}"#).unwrap();
        assert_eq!((config.r, config.lora_alpha, config.use_rslora), (8, 8.0, false));
    }

    #[test]
    fn wrong_types_are_named() {
        for (text, field) in [
            (r#"{"peft_type": "LORA", "r": "8"}"#, "`r`"),
            (r#"{"peft_type": "LORA", "r": 2.5}"#, "`r`"),
            (r#"{"peft_type": "LORA", "lora_alpha": 1e999}"#, "lora_alpha"),
            (r#"{"peft_type": "LORA", "alpha_pattern": {"q": "x"}}"#, "alpha_pattern"),
            (r#"{"peft_type": "LORA", "use_dora": 1}"#, "use_dora"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }
}
