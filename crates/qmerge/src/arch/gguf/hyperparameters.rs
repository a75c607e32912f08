//! The keys of a model's hyperparameters, from its `config.json`, and tensors that say what a file has no keys for.
//!
//! What follows is what architectures have in common. Keys, their types and their order are those of llama.cpp's converter, `conversion/*.py`; fields that a file leaves out have the defaults of transformers. `open/gguf/config.rs` is
//! the way back.

use serde_json::{Map, Value};

use super::layout::{Defaults, Head, Layout, Local};
use crate::arch::Fields;
use crate::arch::fields::MOST;
use crate::error::{Result, unsupported};
use crate::open::gguf::{FACTORS, Field, Keys};

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
    /// What most keys begin with.
    architecture: &'static str,
}

impl Said {
    /// Nothing yet.
    pub(super) fn of(architecture: &'static str) -> Self {
        Self { architecture, ..Self::default() }
    }

    fn set(&mut self, key: &str, field: Field) {
        self.keys.set(format!("{}.{key}", self.architecture), field);
    }

    /// Sets a key behind the architecture's name.
    pub(super) fn count(&mut self, key: &str, count: usize) {
        // No field of a configuration is larger (`arch::Fields`).
        self.set(key, Field::Count(u32::try_from(count).unwrap_or(u32::MAX)));
    }

    /// Sets a key behind the architecture's name.
    pub(super) fn float(&mut self, key: &str, number: f64) {
        self.set(key, Field::Float(number as f32));
    }

    /// The same, behind all that were said.
    pub(super) fn last(&mut self, key: &str, count: usize) {
        let count = Field::Count(u32::try_from(count).unwrap_or(u32::MAX));
        self.keys.set_last(&format!("{}.{key}", self.architecture), count);
    }

    /// Sets a key behind the architecture's name, in front of all others.
    pub(super) fn float_first(&mut self, key: &str, number: f64) {
        self.first.set(format!("{}.{key}", self.architecture), Field::Float(number as f32));
    }

    /// Sets a key behind the architecture's name, of which each layer has its own.
    pub(super) fn floats(&mut self, key: &str, numbers: Vec<f32>) {
        self.set(key, Field::Floats(numbers));
    }

    /// Sets a key behind the architecture's name.
    pub(super) fn flag(&mut self, key: &str, flag: bool) {
        self.set(key, Field::Flag(flag));
    }

    /// Sets a key behind the architecture's name.
    pub(super) fn text(&mut self, key: &str, text: &str) {
        self.set(key, Field::Text(text.to_owned()));
    }

    /// Sets a key behind the architecture's name, of which each layer has its own.
    pub(super) fn flags(&mut self, key: &str, flags: Vec<bool>) {
        self.set(key, Field::Flags(flags));
    }

    /// Sets a key behind the architecture's name, of which each layer has its own.
    pub(super) fn counts(&mut self, key: &str, counts: &[usize]) {
        let counts = counts.iter().map(|count| i32::try_from(*count).unwrap_or(i32::MAX));
        self.set(key, Field::Numbers(counts.collect()));
    }

    /// Whether texts begin with a token of their own, where a tokenizer does not say.
    pub(super) fn begins(&mut self, begins: bool) {
        self.keys.set("tokenizer.ggml.add_bos_token", Field::Flag(begins));
    }

    /// The number of the file's type.
    pub(super) fn file_type(&mut self, model: &Model<'_>) {
        self.keys.set("general.file_type", Field::Count(model.file_type));
    }

    /// What most families say, in the converter's order.
    pub(super) fn common(&mut self, model: &Model<'_>) -> Result<()> {
        self.count("block_count", model.layers);
        self.count("context_length", model.positions);
        self.count("embedding_length", model.hidden);
        if model.width > 0 {
            self.count("feed_forward_length", model.width);
        }
        self.count("attention.head_count", model.heads);
        self.count("attention.head_count_kv", model.kv_heads);
        self.scaling(&model.rope);
        if let Some(sections) = model.rope.sections() {
            self.counts("rope.dimension_sections", &sections);
        }
        self.float("rope.freq_base", model.rope.theta);
        if let Some(theta) = model.rope.local {
            self.float("rope.freq_base_swa", theta);
        }
        self.float(model.eps_key, model.eps);
        if model.has_experts {
            self.count(
                "expert_count",
                model.fields.count_of(&["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"])?,
            );
            const USED: &[&str] = &["num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk"];
            let key = USED.iter().find(|key| model.fields.get(key).is_some()).unwrap_or(&"num_experts_per_tok");
            let used = alike(&model.fields, key)?.ok_or_else(|| model.fields.missing(key))?;
            if used == 0 {
                return Err(model.fields.bad(key, &used.into(), "it must be above zero"));
            }
            self.count("expert_used_count", used);
            self.routing(model)?;
        }
        if let Some(head_dim) = model.head_dim {
            self.count("attention.key_length", head_dim);
            self.count("attention.value_length", head_dim);
        }
        self.file_type(model);
        Ok(())
    }

    /// Groups of experts, and how scores are made.
    fn routing(&mut self, model: &Model<'_>) -> Result<()> {
        let (groups, kept) = model.groups;
        for (field, key, default) in
            [("n_group", "expert_group_count", groups), ("topk_group", "expert_group_used_count", kept)]
        {
            if let Some(count) = model.fields.count_if(field)?.or(default) {
                self.count(key, count);
            }
        }
        match model.fields.get("scoring_func") {
            None => {}
            Some(value) if value == "softmax" => self.count("expert_gating_func", 1),
            Some(value) if value == "sigmoid" => self.count("expert_gating_func", 2),
            Some(value) => return Err(model.fields.unsaid("scoring_func", value)),
        }
        Ok(())
    }

    /// Widths of experts, of families that have a field for them.
    pub(super) fn experts(&mut self, model: &Model<'_>) -> Result<()> {
        let widths = [
            ("moe_intermediate_size", "expert_feed_forward_length"),
            ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
        ];
        for (field, key) in widths.into_iter().filter(|_| model.has_experts) {
            if let Some(width) = model.fields.count_if(field)? {
                self.count(key, width);
            }
        }
        Ok(())
    }

    /// How the rope is stretched.
    pub(super) fn scaling(&mut self, rope: &Rope<'_>) {
        let text = |said: &mut Self, kind: &str| said.text("rope.scaling.type", kind);
        match (rope.kind(), rope.number("factor")) {
            (Some("linear"), Some(factor)) => {
                text(self, "linear");
                self.float("rope.scaling.factor", factor);
            }
            (Some("yarn"), Some(factor)) => {
                text(self, "yarn");
                self.float("rope.scaling.factor", factor);
                if let Some(original) = rope.number("original_max_position_embeddings") {
                    self.count("rope.scaling.original_context_length", original as usize);
                }
                let more = [
                    ("extrapolation_factor", "ext_factor"),
                    ("attention_factor", "attn_factor"),
                    ("beta_fast", "beta_fast"),
                    ("beta_slow", "beta_slow"),
                ];
                for (field, key) in more {
                    if let Some(number) = rope.number(field) {
                        self.float(&format!("rope.scaling.yarn_{key}"), number);
                    }
                }
            }
            (Some("longrope" | "su"), _) => text(self, "longrope"),
            _ => {}
        }
    }

    /// Factors on wavelengths, which Llama 3 has by their length.
    pub(super) fn llama3_factors(&mut self, model: &Model<'_>) -> Result<()> {
        let rope = &model.rope;
        let Some(given) = rope.full.filter(|_| rope.kind() == Some("llama3")) else { return Ok(()) };
        let number = |key: &str, default: f64| match given.get(key) {
            None => Ok(default),
            Some(value) => match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(x) => Ok(x),
                None => Err(model.fields.bad(key, value, "it must be a number above zero")),
            },
        };
        let (factor, low) = (number("factor", 8.0)? as f32, number("low_freq_factor", 1.0)?);
        let (high, original) = (number("high_freq_factor", 4.0)?, number("original_max_position_embeddings", 8192.0)?);
        let dims = model.head_dim();
        // f32 where the converter has tensors of it, f64 where it has Python's numbers.
        let one = |pair: usize| {
            let exponent = (2 * pair) as f32 / dims as f32;
            let frequency = 1.0 / (libm::pow(rope.theta, f64::from(exponent)) as f32);
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
        self.constants.push(Constant { name: FACTORS, values: (0..dims.div_ceil(2)).map(one).collect() });
        Ok(())
    }
}

/// Fields whose key is that of norms by the mean square, and keys of an epsilon by what norms divide by.
const RMS: &[&str] = &["rms_norm_eps", "norm_eps"];
const RMS_EPS: &str = "attention.layer_norm_rms_epsilon";
pub(super) const LAYER_EPS: &str = "attention.layer_norm_epsilon";

/// What families call the number of heads, and the width of the residual stream.
const HEADS: &[&str] = &["num_attention_heads", "n_head"];
const HIDDEN: &[&str] = &["hidden_size", "n_embd"];

/// What a file is made from: the fields that all families have.
pub(super) struct Model<'f> {
    pub(super) fields: Fields<'f>,
    /// Groups of experts and how many are kept, of families that have a default for them.
    groups: (Option<usize>, Option<usize>),
    /// Rows of the embedding.
    pub(super) tokens: usize,
    /// The number of the file's type.
    file_type: u32,
    has_experts: bool,
    pub(super) positions: usize,
    pub(super) hidden: usize,
    pub(super) layers: usize,
    pub(super) width: usize,
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    /// Where a file says it.
    head_dim: Option<usize>,
    /// The share of a head's features that turns, where nothing is said.
    share: f64,
    pub(super) eps: f64,
    /// The key that says it: of norms by the mean square, or by the variance.
    pub(super) eps_key: &'static str,
    pub(super) rope: Rope<'f>,
}

/// A count, or that of a list that has the same for each layer.
pub(super) fn alike(fields: &Fields<'_>, key: &str) -> Result<Option<usize>> {
    let Some(list) = fields.get(key).and_then(Value::as_array) else { return fields.count_if(key) };
    let first = list.first().filter(|first| list.iter().all(|own| own == *first)).and_then(Value::as_u64);
    let count = first.and_then(|count| usize::try_from(count).ok()).filter(|count| (1..=MOST).contains(count));
    count.map(Some).ok_or_else(|| fields.unsaid(key, &Value::Array(list.clone())))
}

/// The width of feed-forwards; the first layer's, where each has its own.
fn width(fields: &Fields<'_>, by_layer: bool) -> Result<Option<usize>> {
    const KEY: &str = "intermediate_size";
    match fields.get(KEY).and_then(Value::as_array) {
        None => fields.positive_if(KEY),
        Some(list) if by_layer => {
            let first = list.first().and_then(Value::as_u64).and_then(|width| usize::try_from(width).ok());
            Ok(first.filter(|width| (1..=MOST).contains(width)))
        }
        Some(_) => alike(fields, KEY),
    }
}

/// A rope as converters see it.
pub(super) struct Rope<'f> {
    /// Parameters of the layers that see everything.
    pub(super) full: Option<&'f Map<String, Value>>,
    pub(super) theta: f64,
    /// Base of the frequencies in layers with a window.
    local: Option<f64>,
}

impl<'f> Model<'f> {
    /// Errors if a field is missing or cannot be said.
    pub(super) fn read(layout: &Layout, fields: Fields<'f>, tokens: usize, file_type: u32) -> Result<Self> {
        let heads = fields.count_of(HEADS)?;
        let hidden = fields.count_of(HIDDEN)?;
        let head_dim = match (fields.positive_if("head_dim")?, layout.defaults.head) {
            (_, Head::Never) | (None, Head::Unsaid) => None,
            (Some(given), _) => Some(given),
            (None, Head::Share) => Some(fields.share("hidden_size", "num_attention_heads")?),
            (None, Head::Of(features)) => Some(features),
        };
        Ok(Self {
            fields,
            tokens,
            file_type,
            has_experts: layout.has_experts(),
            groups: layout.defaults.groups.map_or((None, None), |(groups, kept)| (Some(groups), Some(kept))),
            positions: match layout.defaults.positions {
                Some(positions) => fields.positive_if("max_position_embeddings")?.unwrap_or(positions),
                None => fields.count_of(&["max_position_embeddings", "n_positions"])?,
            },
            hidden,
            layers: fields.layers(if fields.get("n_layer").is_some() { "n_layer" } else { "num_hidden_layers" })?,
            width: match width(&fields, layout.defaults.widths_by_layer)?
                .map_or_else(|| fields.positive_if("block_ff_dim"), |width| Ok(Some(width)))?
            {
                Some(width) => width,
                None if layout.defaults.is_four_times_as_wide => 4 * hidden,
                // All layers have experts.
                None if fields.get("moe_intermediate_size").is_some() => 0,
                None => return Err(fields.missing("intermediate_size")),
            },
            heads,
            kv_heads: fields.positive_if("num_key_value_heads")?.unwrap_or(heads),
            share: layout.defaults.share,
            head_dim,
            eps: fields.number(layout.defaults.eps_field, layout.defaults.eps)?,
            eps_key: if RMS.contains(&layout.defaults.eps_field) { RMS_EPS } else { LAYER_EPS },
            rope: Rope::read(&layout.defaults, fields)?,
        })
    }

    /// The share of a head's features that the rope turns.
    pub(super) fn share(&self) -> Result<f64> {
        match self.rope.number("partial_rotary_factor") {
            Some(share) => Ok(share),
            None => self.fields.fraction("partial_rotary_factor", self.share),
        }
    }

    /// Features of a head that turn, where heads share the residual stream.
    pub(super) fn turned(&self) -> Result<usize> {
        Ok((self.share()? * self.hidden as f64) as usize / self.heads.max(1))
    }

    /// The same, where a head has a width of its own.
    pub(super) fn turned_of_head(&self) -> Result<usize> {
        Ok((self.share()? * self.head_dim() as f64) as usize)
    }

    /// The layers with a window, of which the others come every so many.
    pub(super) fn sliding(&self, every: usize) -> Result<Vec<bool>> {
        match self.fields.sliding(self.layers)? {
            Some(sliding) => Ok(sliding),
            None => self.fields.sliding_but_every(self.layers, every),
        }
    }

    /// The width of a head.
    pub(super) fn head_dim(&self) -> usize {
        self.head_dim.unwrap_or(self.hidden / self.heads.max(1))
    }
}

impl<'f> Rope<'f> {
    fn read(defaults: &Defaults, fields: Fields<'f>) -> Result<Self> {
        let given = fields.get("rope_parameters").or_else(|| fields.get("rope_scaling")).and_then(Value::as_object);
        let part = |kind: &str| given.and_then(|rope| rope.get(kind)?.as_object());
        let full = part("full_attention").or(given);
        let theta = match full.and_then(|rope| rope.get("rope_theta")) {
            Some(value) => match value.as_f64().filter(|x| x.is_finite() && *x > 0.0) {
                Some(theta) => theta,
                None => return Err(fields.bad("rope_theta", value, "it must be a number above zero")),
            },
            None => fields.above_zero("rope_theta", defaults.theta)?,
        };
        let own = part("sliding_attention").and_then(|rope| rope.get("rope_theta")?.as_f64());
        let local = match (own, defaults.local) {
            (None, Local::Own(theta)) => Some(fields.above_zero("rope_local_base_freq", theta)?),
            (None, Local::Same) => Some(theta),
            (own, _) => own,
        };
        let rope = Self { full, theta, local };
        match rope.kind() {
            None | Some("default" | "linear" | "yarn" | "longrope" | "su" | "llama3") => Ok(rope),
            own if own.is_some() && own == defaults.rope => Ok(rope),
            Some(other) => Err(unsupported(format!("a rope of the type `{other}`, which a GGUF file does not say"))
                .in_file(&fields.config().path)),
        }
    }

    /// The way in which it is stretched.
    pub(super) fn kind(&self) -> Option<&'f str> {
        self.full?.get("rope_type").or_else(|| self.full?.get("type"))?.as_str()
    }

    /// How many features each of several positions turns, with none for a fourth.
    pub(super) fn sections(&self) -> Option<Vec<usize>> {
        let list = self.full?.get("mrope_section")?.as_array()?;
        let counts: Option<Vec<usize>> = list.iter().map(|count| usize::try_from(count.as_u64()?).ok()).collect();
        let mut counts = counts?;
        counts.resize(4, 0);
        Some(counts)
    }

    /// One of its parameters.
    pub(super) fn number(&self, key: &str) -> Option<f64> {
        self.full?.get(key)?.as_f64()
    }
}
