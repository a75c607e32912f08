//! The keys of a model's hyperparameters, from its `config.json`, and tensors that say what a file has no keys for.
//!
//! Keys, their types and their order are those of llama.cpp's converter, `conversion/*.py`; fields that a file leaves out have the defaults of transformers. `open/gguf/config.rs` is
//! the way back.

use serde_json::{Map, Value};

use super::Layout;
use crate::arch::Fields;
use crate::error::{Result, unsupported};
use crate::open::gguf::{Field, Keys};

/// A tensor of f32 that is no weight of the model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Constant {
    pub(crate) name: &'static str,
    pub(crate) values: Vec<f32>,
}

/// What a file says of a model.
#[derive(Debug, Default)]
pub(crate) struct Said {
    /// Keys that come in front of all others but the architecture.
    pub(crate) first: Keys,
    pub(crate) keys: Keys,
    pub(crate) constants: Vec<Constant>,
}

/// Reads a configuration for a layout; `tokens` are the rows of the embedding, and `file_type` is the number of the file's type. Errors if a field is missing or cannot be said.
pub(super) fn said(layout: &Layout, fields: &Fields<'_>, tokens: usize, file_type: u32) -> Result<Said> {
    let model = Model::read(layout, fields)?;
    let mut said = Said::default();
    let mut keys = Of { name: layout.architecture, keys: Keys::default() };
    match layout.architecture {
        "gemma" | "gemma2" => gemma(&mut keys, fields, &model, file_type)?,
        "phi3" => phi3(&mut keys, &mut said, fields, &model, file_type)?,
        _ => {
            common(&mut keys, &model, fields, layout, file_type)?;
            if layout.architecture == "llama" {
                keys.count("vocab_size", tokens);
                keys.count("rope.dimension_count", model.head_dim.unwrap_or(model.share()));
            }
            let widths = [
                ("moe_intermediate_size", "expert_feed_forward_length"),
                ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
            ];
            for (field, key) in widths.into_iter().filter(|_| layout.experts.is_some()) {
                if let Some(width) = fields.count_if(field)? {
                    keys.count(key, width);
                }
            }
            if layout.architecture == "gemma3" {
                gemma3(&mut keys, fields)?;
            }
            said.constants.extend(model.llama3_factors(fields)?);
        }
    }
    said.keys = keys.keys;
    Ok(said)
}

/// Keys behind an architecture's name.
struct Of {
    name: &'static str,
    keys: Keys,
}

impl Of {
    fn set(&mut self, key: &str, field: Field) {
        self.keys.set(format!("{}.{key}", self.name), field);
    }

    fn count(&mut self, key: &str, count: usize) {
        // No field of a configuration is larger (`arch::Fields`).
        self.set(key, Field::Count(u32::try_from(count).unwrap_or(u32::MAX)));
    }

    fn float(&mut self, key: &str, number: f64) {
        self.set(key, Field::Float(number as f32));
    }
}

/// Fields that all families have.
struct Model<'f> {
    positions: usize,
    hidden: usize,
    layers: usize,
    width: usize,
    heads: usize,
    kv_heads: usize,
    /// Where the family's configuration has one.
    head_dim: Option<usize>,
    eps: f64,
    rope: Rope<'f>,
}

/// A rope as converters see it.
struct Rope<'f> {
    /// Parameters of the layers that see everything.
    full: Option<&'f Map<String, Value>>,
    theta: f64,
    /// Base of the frequencies in layers with a window.
    local: Option<f64>,
}

impl<'f> Model<'f> {
    fn read(layout: &Layout, fields: &Fields<'f>) -> Result<Self> {
        let heads = fields.count("num_attention_heads")?;
        let hidden = fields.count("hidden_size")?;
        let is_gemma = layout.architecture.starts_with("gemma");
        let is_mixtral = layout.is_mixtral();
        // transformers' defaults.
        let head_dim = match (fields.positive_if("head_dim")?, layout.architecture) {
            (Some(given), _) => Some(given),
            (None, "llama") if !is_mixtral => Some(fields.share("hidden_size", "num_attention_heads")?),
            (None, "qwen3" | "qwen3moe") => Some(128),
            (None, _) if is_gemma => Some(256),
            (None, _) => None,
        };
        Ok(Self {
            positions: fields.count("max_position_embeddings")?,
            hidden,
            layers: fields.layers("num_hidden_layers")?,
            width: fields.count("intermediate_size")?,
            heads,
            kv_heads: fields.positive_if("num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            eps: fields
                .number("rms_norm_eps", if layout.architecture == "phi3" || is_mixtral { 1e-5 } else { 1e-6 })?,
            rope: Rope::read(layout, fields)?,
        })
    }

    fn share(&self) -> usize {
        self.hidden / self.heads.max(1)
    }

    /// Factors on wavelengths, which Llama 3 has by their length.
    fn llama3_factors(&self, fields: &Fields<'_>) -> Result<Option<Constant>> {
        let Some(rope) = self.rope.full.filter(|_| self.rope.kind() == Some("llama3")) else { return Ok(None) };
        let number = |key: &str, default: f64| match rope.get(key) {
            None => Ok(default),
            Some(value) => match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(x) => Ok(x),
                None => Err(fields.bad(key, value, "it must be a number above zero")),
            },
        };
        let (factor, low) = (number("factor", 8.0)? as f32, number("low_freq_factor", 1.0)?);
        let (high, original) = (number("high_freq_factor", 4.0)?, number("original_max_position_embeddings", 8192.0)?);
        let dims = self.head_dim.unwrap_or(self.share());
        // f32 where the converter has tensors of it, f64 where it has Python's numbers.
        let one = |pair: usize| {
            let exponent = (2 * pair) as f32 / dims as f32;
            let frequency = 1.0 / (libm::pow(self.rope.theta, f64::from(exponent)) as f32);
            let wavelength = (std::f64::consts::TAU as f32) / frequency;
            if wavelength < (original / high) as f32 {
                1.0
            } else if wavelength > (original / low) as f32 {
                factor
            } else {
                let smooth = (original as f32 / wavelength - low as f32) / (high - low) as f32;
                1.0 / ((1.0 - smooth) / factor + smooth)
            }
        };
        Ok(Some(Constant { name: "rope_freqs.weight", values: (0..dims.div_ceil(2)).map(one).collect() }))
    }
}

impl<'f> Rope<'f> {
    fn read(layout: &Layout, fields: &Fields<'f>) -> Result<Self> {
        let given = fields.get("rope_parameters").or_else(|| fields.get("rope_scaling")).and_then(Value::as_object);
        let part = |kind: &str| given.and_then(|rope| rope.get(kind)?.as_object());
        let full = part("full_attention").or(given);
        let is_gemma3 = layout.architecture == "gemma3";
        let by_default = if is_gemma3 || layout.is_mixtral() { 1_000_000.0 } else { 10_000.0 };
        let theta = match full.and_then(|rope| rope.get("rope_theta")) {
            Some(value) => match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(theta) => theta,
                None => return Err(fields.bad("rope_theta", value, "it must be a number above zero")),
            },
            None => fields.above_zero("rope_theta", by_default)?,
        };
        let own = part("sliding_attention").and_then(|rope| rope.get("rope_theta")?.as_f64());
        let local = match own {
            Some(own) => Some(own),
            None if is_gemma3 => Some(fields.above_zero("rope_local_base_freq", 10_000.0)?),
            None => None,
        };
        let rope = Self { full, theta, local };
        match rope.kind() {
            None | Some("default" | "linear" | "yarn" | "longrope" | "su" | "llama3") => Ok(rope),
            Some(other) => Err(unsupported(format!("a rope of the type `{other}`, which a GGUF file does not say"))
                .in_file(&fields.config().path)),
        }
    }

    fn kind(&self) -> Option<&'f str> {
        self.full?.get("rope_type").or_else(|| self.full?.get("type"))?.as_str()
    }

    fn number(&self, key: &str) -> Option<f64> {
        self.full?.get(key)?.as_f64()
    }
}

/// What most families say, in the converter's order.
fn common(keys: &mut Of, model: &Model<'_>, fields: &Fields<'_>, layout: &Layout, file_type: u32) -> Result<()> {
    keys.count("block_count", model.layers);
    keys.count("context_length", model.positions);
    keys.count("embedding_length", model.hidden);
    keys.count("feed_forward_length", model.width);
    keys.count("attention.head_count", model.heads);
    keys.count("attention.head_count_kv", model.kv_heads);
    scaling(keys, &model.rope);
    keys.float("rope.freq_base", model.rope.theta);
    if let Some(theta) = model.rope.local {
        keys.float("rope.freq_base_swa", theta);
    }
    keys.float("attention.layer_norm_rms_epsilon", model.eps);
    if layout.experts.is_some() {
        keys.count("expert_count", fields.count_of(&["num_local_experts", "num_experts"])?);
        keys.count("expert_used_count", fields.count("num_experts_per_tok")?);
    }
    if let Some(head_dim) = model.head_dim {
        keys.count("attention.key_length", head_dim);
        keys.count("attention.value_length", head_dim);
    }
    keys.keys.set("general.file_type", Field::Count(file_type));
    Ok(())
}

fn scaling(keys: &mut Of, rope: &Rope<'_>) {
    let text = |keys: &mut Of, kind: &str| keys.set("rope.scaling.type", Field::Text(kind.to_owned()));
    match (rope.kind(), rope.number("factor")) {
        (Some("linear"), Some(factor)) => {
            text(keys, "linear");
            keys.float("rope.scaling.factor", factor);
        }
        (Some("yarn"), Some(factor)) => {
            text(keys, "yarn");
            keys.float("rope.scaling.factor", factor);
            if let Some(original) = rope.number("original_max_position_embeddings") {
                keys.count("rope.scaling.original_context_length", original as usize);
            }
            let more = [
                ("extrapolation_factor", "ext_factor"),
                ("attention_factor", "attn_factor"),
                ("beta_fast", "beta_fast"),
                ("beta_slow", "beta_slow"),
            ];
            for (field, key) in more {
                if let Some(number) = rope.number(field) {
                    keys.float(&format!("rope.scaling.yarn_{key}"), number);
                }
            }
        }
        (Some("longrope" | "su"), _) => text(keys, "longrope"),
        _ => {}
    }
}

/// Gemma 1 and 2, whose rope has no key.
fn gemma(keys: &mut Of, fields: &Fields<'_>, model: &Model<'_>, file_type: u32) -> Result<()> {
    keys.count("context_length", model.positions);
    keys.count("embedding_length", model.hidden);
    keys.count("block_count", model.layers);
    keys.count("feed_forward_length", model.width);
    keys.count("attention.head_count", model.heads);
    keys.count("attention.head_count_kv", model.kv_heads);
    keys.float("attention.layer_norm_rms_epsilon", model.eps);
    for key in ["attention.key_length", "attention.value_length"] {
        keys.count(key, model.head_dim.unwrap_or(model.share()));
    }
    keys.keys.set("general.file_type", Field::Count(file_type));
    if keys.name == "gemma2" {
        keys.float("attn_logit_softcapping", fields.number("attn_logit_softcapping", 50.0)?);
        keys.float("final_logit_softcapping", fields.number("final_logit_softcapping", 30.0)?);
        keys.count("attention.sliding_window", fields.positive_if("sliding_window")?.unwrap_or(4096));
    }
    if model.rope.theta != 10_000.0 {
        keys.float("rope.freq_base", model.rope.theta);
    }
    Ok(())
}

fn gemma3(keys: &mut Of, fields: &Fields<'_>) -> Result<()> {
    if let Some(value) = fields.get("attn_logit_softcapping") {
        return Err(fields.unsupported("attn_logit_softcapping", value));
    }
    if let Some(cap) = fields.number_if("final_logit_softcapping")?.filter(|cap| *cap != 0.0) {
        keys.float("final_logit_softcapping", cap);
    }
    keys.count("attention.sliding_window", fields.positive_if("sliding_window")?.unwrap_or(4096));
    Ok(())
}

fn phi3(keys: &mut Of, said: &mut Said, fields: &Fields<'_>, model: &Model<'_>, file_type: u32) -> Result<()> {
    let share = model.rope.number("partial_rotary_factor");
    let share = share.map_or_else(|| fields.fraction("partial_rotary_factor", 1.0), Ok)?;
    let dims = (share * model.hidden as f64) as usize / model.heads.max(1);
    let original = match model.rope.number("original_max_position_embeddings") {
        Some(original) => original as usize,
        None => fields.positive_if("original_max_position_embeddings")?.unwrap_or(4096),
    };
    keys.count("context_length", model.positions);
    keys.count("rope.scaling.original_context_length", original);
    keys.count("embedding_length", model.hidden);
    keys.count("feed_forward_length", model.width);
    keys.count("block_count", model.layers);
    keys.count("attention.head_count", model.heads);
    keys.count("attention.head_count_kv", model.kv_heads);
    keys.float("attention.layer_norm_rms_epsilon", model.eps);
    keys.count("rope.dimension_count", dims);
    keys.float("rope.freq_base", model.rope.theta);
    keys.keys.set("general.file_type", Field::Count(file_type));
    keys.count("attention.sliding_window", fields.count_if("sliding_window")?.unwrap_or(0));
    let list = |key: &str| model.rope.full.and_then(|rope| rope.get(key)).filter(|list| !list.is_null());
    let Some(long) = list("long_factor") else { return Ok(()) };
    let stretch = model.positions as f64 / (original.max(1)) as f64;
    let factor = match model.rope.kind() {
        _ if stretch <= 1.0 => 1.0,
        Some("yarn") => 0.1 * libm::log(stretch) + 1.0,
        _ => (1.0 + libm::log(stretch) / libm::log(original as f64)).sqrt(),
    };
    said.first.set("phi3.rope.scaling.attn_factor", Field::Float(factor as f32));
    let factors = |key: &str, value: &Value| -> Result<Vec<f32>> {
        let all = value.as_array().filter(|all| all.len() * 2 == dims);
        let all = all.and_then(|all| all.iter().map(|x| x.as_f64().map(|x| x as f32)).collect());
        all.ok_or_else(|| fields.bad(key, value, &format!("it must be a list of {} numbers", dims / 2)))
    };
    let short = list("short_factor").ok_or_else(|| fields.missing("short_factor"))?;
    said.constants = vec![
        Constant { name: "rope_factors_long.weight", values: factors("long_factor", long)? },
        Constant { name: "rope_factors_short.weight", values: factors("short_factor", short)? },
    ];
    Ok(())
}
