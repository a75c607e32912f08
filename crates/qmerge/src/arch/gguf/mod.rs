//! How a model lies in a GGUF file: names, the order of rows, and what a converter adds to values.
//!
//! llama.cpp has an architecture for what transformers has a family for, and its converter changes some weights of some of them: rows of queries and keys
//! are paired by neighbours in place of halves, a norm's weight has one added. What it does belongs to the architecture, whatever the file was made from; an
//! architecture that is not listed is refused by name. Source: llama.cpp, `conversion/*.py` and gguf-py's `tensor_mapping.py`.

mod hyperparameters;
pub(crate) mod importance;
pub(crate) mod mixture;

pub(crate) use hyperparameters::{Constant, Said};

use super::Fields;
use crate::error::{Error, Result, malformed, mismatch, unsupported};
use crate::open::gguf::{Ways, expert};
use crate::open::{Checkpoint, Metadata, ModelConfig};

/// Name in GGUF and path in the model, without `.weight` or `.bias`.
type Names = &'static [(&'static str, &'static str)];

/// An architecture.
#[derive(Debug)]
pub(crate) struct Layout {
    /// `general.architecture`.
    architecture: &'static str,
    /// `model_type` of the families that are stored so.
    model_types: &'static [&'static str],
    /// The class that transformers has for a model of it.
    class: &'static str,
    /// Names in a layer that are not [`INSIDE`]'s.
    inside: Names,
    /// Experts of a layer, if there are any: the module that they lie in, and what it calls gate, up and down.
    experts: Option<(&'static str, [&'static str; 3])>,
    /// Names that [`INSIDE`] has and the architecture has not, or for something else.
    without: &'static [&'static str],
    /// True if each head's rows of queries and keys are paired by neighbours, where the model pairs halves.
    pairs_rows: bool,
    /// True if one was added to the weights of norms.
    adds_one_to_norms: bool,
    /// True if llama.cpp looks for an `output.weight`, and takes the embedding only where there is none.
    has_head: bool,
    /// How a file of it has its tokenizer.
    ways: Ways,
}

/// What llama.cpp's own architecture has, which most others are told from.
const LLAMA: Layout = Layout {
    architecture: "llama",
    model_types: &["llama", "mistral"],
    class: "LlamaForCausalLM",
    inside: &[],
    experts: None,
    without: &[],
    pairs_rows: true,
    adds_one_to_norms: false,
    has_head: true,
    ways: Ways { no_space_before: false, is_llama: true, ends_turn: None, by_flags_alone: false },
};

/// What all others but Gemma have.
const PLAIN: Ways = Ways { is_llama: false, ..LLAMA.ways };
const OF_GEMMA: Ways = Ways { no_space_before: true, ..PLAIN };

/// The norms of Gemma 2 and 3: before and after each block.
const AROUND: Names = &[
    ("ffn_norm", "pre_feedforward_layernorm"),
    ("post_attention_norm", "post_attention_layernorm"),
    ("post_ffw_norm", "post_feedforward_layernorm"),
];

const GEMMA: Layout = Layout {
    architecture: "gemma",
    model_types: &["gemma"],
    class: "GemmaForCausalLM",
    pairs_rows: false,
    adds_one_to_norms: true,
    has_head: false,
    ways: Ways { ends_turn: Some(107), ..OF_GEMMA },
    ..LLAMA
};

/// The feed-forward that all tokens go through, which layers of experts do not have.
const DENSE: &[&str] = &["ffn_gate", "ffn_up", "ffn_down"];
/// What chooses experts.
const ROUTER: (&str, &str) = ("ffn_gate_inp", "mlp.gate");
/// Stacks of experts: gate, up and down.
const STACKS: [&str; 3] = ["ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"];

const OF_QWEN_MOE: Layout = Layout {
    experts: Some(("mlp.experts", ["gate_proj", "up_proj", "down_proj"])),
    without: DENSE,
    pairs_rows: false,
    ways: PLAIN,
    ..LLAMA
};

const LAYOUTS: &[Layout] = &[
    LLAMA,
    Layout {
        architecture: "qwen2",
        model_types: &["qwen2"],
        class: "Qwen2ForCausalLM",
        pairs_rows: false,
        ways: PLAIN,
        ..LLAMA
    },
    Layout {
        architecture: "qwen3",
        model_types: &["qwen3"],
        class: "Qwen3ForCausalLM",
        pairs_rows: false,
        ways: PLAIN,
        ..LLAMA
    },
    Layout {
        model_types: &["mixtral"],
        class: "MixtralForCausalLM",
        inside: &[("ffn_gate_inp", "block_sparse_moe.gate")],
        experts: Some(("block_sparse_moe.experts", ["w1", "w3", "w2"])),
        without: DENSE,
        ..LLAMA
    },
    Layout {
        architecture: "qwen2moe",
        model_types: &["qwen2_moe"],
        class: "Qwen2MoeForCausalLM",
        inside: &[
            ROUTER,
            ("ffn_gate_inp_shexp", "mlp.shared_expert_gate"),
            ("ffn_gate_shexp", "mlp.shared_expert.gate_proj"),
            ("ffn_up_shexp", "mlp.shared_expert.up_proj"),
            ("ffn_down_shexp", "mlp.shared_expert.down_proj"),
        ],
        ..OF_QWEN_MOE
    },
    Layout {
        architecture: "qwen3moe",
        model_types: &["qwen3_moe"],
        class: "Qwen3MoeForCausalLM",
        inside: &[ROUTER],
        ..OF_QWEN_MOE
    },
    GEMMA,
    Layout {
        architecture: "gemma2",
        model_types: &["gemma2"],
        class: "Gemma2ForCausalLM",
        inside: AROUND,
        ways: OF_GEMMA,
        ..GEMMA
    },
    Layout {
        architecture: "gemma3",
        model_types: &["gemma3_text"],
        class: "Gemma3ForCausalLM",
        inside: AROUND,
        has_head: true,
        ways: OF_GEMMA,
        ..GEMMA
    },
    Layout {
        architecture: "phi3",
        model_types: &["phi3"],
        class: "Phi3ForCausalLM",
        inside: &[("attn_qkv", "self_attn.qkv_proj"), ("ffn_up", "mlp.gate_up_proj")],
        without: &["attn_q", "attn_k", "attn_v", "ffn_gate"],
        pairs_rows: false,
        ways: Ways { by_flags_alone: true, ..PLAIN },
        ..LLAMA
    },
];

impl Layout {
    /// The layout of a family; errors if no file is made of it, and names those of which one is.
    pub(crate) fn of(config: &ModelConfig) -> Result<&'static Self> {
        let model_type = config.model_type();
        LAYOUTS.iter().find(|layout| layout.model_types.contains(&model_type)).ok_or_else(|| {
            unsupported(format!("models of type `{model_type}` are not turned into GGUF"))
                .in_file(&config.path)
                .with_hint(format!(
                    "types that are: {}; for any other leave out --to, or take --to bf16 into a folder, and turn that into GGUF with llama.cpp's convert_hf_to_gguf.py",
                    Self::known_types().join(", ")
                ))
        })
    }

    /// True for Llama's architecture with experts.
    fn is_mixtral(&self) -> bool {
        self.experts.is_some() && self.architecture == LLAMA.architecture
    }

    /// The types of models that have one.
    pub(crate) fn known_types() -> Vec<&'static str> {
        LAYOUTS.iter().flat_map(|layout| layout.model_types).copied().collect()
    }

    /// `general.architecture`.
    pub(crate) fn architecture(&self) -> &'static str {
        self.architecture
    }

    /// The class that transformers has for a model of it.
    pub(crate) fn class(&self) -> &'static str {
        self.class
    }

    /// How a file of it has its tokenizer.
    pub(crate) fn ways(&self) -> Ways {
        self.ways
    }

    /// What a file says of a model with so many tokens; `file_type` is the number of its type.
    pub(crate) fn said(&self, config: &ModelConfig, tokens: usize, file_type: u32) -> Result<Said> {
        hyperparameters::said(self, &Fields::new(config), tokens, file_type)
            .map_err(|error| if error.file().is_none() { error.in_file(&config.path) } else { error })
    }
}

/// Outside the layers.
const OUTSIDE: Names = &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), (HEAD, "lm_head")];
const HEAD: &str = "output";

/// In a layer, `blk.N.` here and `model.layers.N.` in the model.
const INSIDE: Names = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Ends of names of scales that are no part of a weight's own type: a weight's values are its codes' times this.
const SCALES: &[&str] = &[".scale", ".input_scale"];

/// How the model sees a tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The name that the model has for it.
    pub(crate) name: String,
    /// The name in the file.
    pub(crate) stored: String,
    /// Rows of a head, where those are paired by neighbours: row 2i + h in the file is row i + h · (rows / 2) of the head in the model.
    pub(crate) head: Option<usize>,
    /// What was added to all values.
    pub(crate) added: f32,
    /// A matrix of one row, which a file may have as a list.
    pub(crate) is_row: bool,
}

/// Where the model has a weight of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Place {
    /// Path of its module.
    pub(crate) module: String,
    /// The heads whose rows are paired by neighbours, if they are.
    pub(crate) heads: Option<Heads>,
    /// True for the input embedding.
    pub(crate) is_table: bool,
}

/// Heads of attention, of which a model may have fewer for keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heads {
    Queries,
    Keys,
}

impl Heads {
    /// Rows of one head among those of a matrix, by the model's configuration. Errors if they are no pairs of rows.
    pub(crate) fn rows_of_one(self, config: Option<&ModelConfig>, rows: usize) -> Result<usize> {
        let count = |key: &str| config.and_then(|config| config.json.get(key)).and_then(|count| count.as_u64());
        let own = if self == Self::Keys { count("num_key_value_heads") } else { None };
        let heads = own.or_else(|| count("num_attention_heads")).and_then(|heads| usize::try_from(heads).ok());
        let heads = heads.filter(|&heads| heads > 0).ok_or_else(|| {
            malformed("the base's configuration does not say how many heads its attention has, by which the rows of this adapter are ordered")
        })?;
        let head = rows / heads;
        if head == 0 || !head.is_multiple_of(2) || head * heads != rows {
            return Err(mismatch(format!("{rows} rows, which are not {heads} heads of pairs of rows as in the base")));
        }
        Ok(head)
    }
}

impl View {
    /// True for the table of embeddings.
    pub(crate) fn is_table(&self) -> bool {
        self.stored == "token_embd.weight"
    }

    /// The same tensor as one of another name in the model: the head that parts from an embedding.
    pub(crate) fn named(&self, name: &str) -> Self {
        let stored = if name == "lm_head.weight" { format!("{HEAD}.weight") } else { name.to_owned() };
        if name == self.name { self.clone() } else { Self { name: name.to_owned(), stored, ..self.clone() } }
    }
}

/// A file of which it is not known how it stores a model.
#[derive(Debug)]
pub(crate) struct Unknown {
    /// The file, or the tensor that tells it, in words.
    pub(crate) about: String,
    pub(crate) tensor: Option<String>,
    /// What can be done, one sentence.
    pub(crate) remedy: String,
}

const ORIGINAL: &str = "merge into the safetensors checkpoint that it was made from, and turn the result into GGUF with llama.cpp's convert_hf_to_gguf.py";

/// Ends of names of tensors that a model's code makes anew.
const MADE: &[&str] = &[".attention.masked_bias", ".attention.bias", ".rotary_emb.inv_freq"];

/// True of a tensor of a GGUF file that is a part of the rope, of which `config.json` has lists.
pub(crate) fn is_rope(name: &str) -> bool {
    matches!(name, "rope_freqs.weight" | "rope_factors_short.weight" | "rope_factors_long.weight")
}

/// True of a tensor that no file holds, since it is made from the configuration.
pub(crate) fn is_made(name: &str) -> bool {
    MADE.iter().any(|end| name.ends_with(end))
}

/// A model's architecture, with what its rows depend on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct File<'c> {
    layout: &'static Layout,
    metadata: &'c Metadata,
}

impl<'c> File<'c> {
    /// That of a checkpoint; `None` for one that is not GGUF.
    pub(crate) fn of(checkpoint: &'c Checkpoint) -> std::result::Result<Option<Self>, Unknown> {
        let Some(metadata) = checkpoint.gguf.as_deref() else { return Ok(None) };
        let architecture = metadata.architecture();
        let file = format!("a GGUF file of the architecture `{architecture}`");
        let is_adapter = metadata.text("general.type") == Some("adapter");
        let experts = metadata.integer(&format!("{architecture}.expert_count"));
        // An adapter does not say whether the model has experts, unless it has factors of theirs, or of what chooses them.
        let is_router = |name: &str| name.split('.').any(|part| part == ROUTER.0);
        let names_experts =
            || checkpoint.entries.iter().any(|entry| expert(&entry.name).is_some() || is_router(&entry.name));
        let has_experts = experts.is_some_and(|experts| experts > 0) || is_adapter && names_experts();
        let mut own = LAYOUTS.iter().filter(|layout| layout.architecture == architecture).peekable();
        if own.peek().is_some() && has_experts && !own.clone().any(|layout| layout.experts.is_some()) {
            return Err(Unknown { about: format!("{file} with experts"), tensor: None, remedy: ORIGINAL.to_owned() });
        }
        let fits = |layout: &&Layout| layout.experts.is_some() == has_experts;
        let any = own.clone().next().filter(|_| is_adapter);
        let Some(layout) = own.find(fits).or(any) else {
            let known: Vec<&str> = LAYOUTS.iter().map(|layout| layout.architecture).collect();
            let remedy = format!("{ORIGINAL}; architectures that are read: {}", known.join(", "));
            return Err(Unknown { about: file, tensor: None, remedy });
        };
        let is_scale = |name: &str| SCALES.iter().any(|end| name.ends_with(end));
        if let Some(entry) = checkpoint.entries.iter().find(|entry| is_scale(&entry.name)) {
            let about = "a factor on a weight that lies beside it (NVFP4)".to_owned();
            return Err(Unknown { about, tensor: Some(entry.name.clone()), remedy: ORIGINAL.to_owned() });
        }
        Ok(Some(Self { layout, metadata }))
    }

    /// A file that is made, with the keys that it will have.
    pub(crate) fn made(layout: &'static Layout, metadata: &'c Metadata) -> Self {
        Self { layout, metadata }
    }

    /// How the file stores the model's weight of that name, which has so many rows; `None` for one that has no place in it.
    pub(crate) fn stored(&self, name: &str, rows: usize) -> Result<Option<View>> {
        let Some((module, leaf)) = name.rsplit_once('.') else { return Ok(None) };
        let find = |names: Names| names.iter().find(|(_, path)| *path == module).map(|(part, _)| (*part).to_owned());
        let within = |rest: &str| {
            let (number, path) = rest.split_once('.')?;
            if let Some((stack, expert)) = self.in_stack(path) {
                return Some(format!("blk.{number}.{stack}.{expert}"));
            }
            let own = self.layout.inside.iter().find(|(_, own)| *own == path);
            let common = || INSIDE.iter().find(|(part, own)| *own == path && !self.layout.without.contains(part));
            own.or_else(common).map(|(part, _)| format!("blk.{number}.{part}"))
        };
        let path = match module.strip_prefix("model.layers.") {
            Some(rest) => within(rest),
            None => find(OUTSIDE).filter(|part| part != HEAD || self.layout.has_head),
        };
        let Some(path) = path else { return Ok(None) };
        // What a name is read as has to be what it was.
        Ok(self.view(&format!("{path}.{leaf}"), rows)?.filter(|view| view.name == name))
    }

    /// True if a model whose embeddings part can be stored.
    pub(crate) fn has_head(&self) -> bool {
        self.layout.has_head
    }

    /// Its name in GGUF.
    pub(crate) fn architecture(&self) -> &'static str {
        self.layout.architecture
    }

    /// The types of the models that are stored in files of the architecture.
    pub(crate) fn model_types(&self) -> Vec<&'static str> {
        let own = LAYOUTS.iter().filter(|layout| layout.architecture == self.layout.architecture);
        own.flat_map(|layout| layout.model_types).copied().collect()
    }

    /// The module whose weight has that name in the file, without `.weight`.
    pub(crate) fn place(&self, path: &str) -> Option<Place> {
        let (module, part) = self.module(path)?;
        let heads = match part {
            "attn_q" if self.layout.pairs_rows => Some(Heads::Queries),
            "attn_k" if self.layout.pairs_rows => Some(Heads::Keys),
            _ => None,
        };
        Some(Place { module, heads, is_table: part == "token_embd" })
    }

    /// How the model sees the tensor of that name, which has so many rows; `None` for one that the model does not have. Errors if heads do not fit the rows.
    pub(crate) fn view(&self, stored: &str, rows: usize) -> Result<Option<View>> {
        let Some((path, leaf)) = stored.rsplit_once('.').filter(|(_, leaf)| matches!(*leaf, "weight" | "bias")) else {
            return Ok(None);
        };
        let Some((module, part)) = self.module(path) else { return Ok(None) };
        let is_row = part == "ffn_gate_inp_shexp";
        let view = View { name: format!("{module}.{leaf}"), stored: stored.to_owned(), head: None, added: 0.0, is_row };
        let adds_one = self.layout.adds_one_to_norms && leaf == "weight" && part.ends_with("norm");
        let heads = match part {
            "attn_q" if self.layout.pairs_rows => "attention.head_count",
            "attn_k" if self.layout.pairs_rows => "attention.head_count_kv",
            _ => return Ok(Some(View { added: if adds_one { 1.0 } else { 0.0 }, ..view })),
        };
        let head = self.rows_of_head(heads, rows).map_err(|error| error.in_tensor(stored))?;
        Ok(Some(View { head: Some(head), ..view }))
    }

    /// A module's path, and the last part of its name in the file.
    fn module<'n>(&self, path: &'n str) -> Option<(String, &'n str)> {
        let find = |names: Names, part: &str| names.iter().find(|(name, _)| *name == part).map(|(_, path)| *path);
        let Some(rest) = path.strip_prefix("blk.") else { return Some((find(OUTSIDE, path)?.to_owned(), path)) };
        let (number, part) = rest.split_once('.')?;
        // As it is written anew: no other name means the same layer.
        let number = number.parse::<usize>().ok().filter(|parsed| parsed.to_string() == number)?;
        if let Some((stack, expert)) = part.split_once('.') {
            let (module, each) = self.layout.experts?;
            let expert = expert.parse::<usize>().ok().filter(|parsed| parsed.to_string() == expert)?;
            let name = each.get(STACKS.iter().position(|own| *own == stack)?)?;
            return Some((format!("model.layers.{number}.{module}.{expert}.{name}"), stack));
        }
        let common = || find(INSIDE, part).filter(|_| !self.layout.without.contains(&part));
        let module = find(self.layout.inside, part).or_else(common)?;
        Some((format!("model.layers.{number}.{module}"), part))
    }

    /// The stack that an expert's module lies in, and its number, by its path below the layer.
    fn in_stack<'p>(&self, path: &'p str) -> Option<(&'static str, &'p str)> {
        let (module, each) = self.layout.experts?;
        let (number, name) = path.strip_prefix(module)?.strip_prefix('.')?.split_once('.')?;
        let at = each.iter().position(|own| *own == name)?;
        Some((STACKS.get(at)?, number))
    }

    fn rows_of_head(&self, key: &str, rows: usize) -> Result<usize> {
        let count = |key: &str| self.metadata.integer(&format!("{}.{key}", self.layout.architecture));
        // Where a file does not say how many heads keys have, they have as many as queries.
        let heads = count(key).or_else(|| count("attention.head_count"));
        let error = |problem: String| -> Error {
            malformed(problem)
                .with_hint("the file is broken, or of a model whose layers have different numbers of heads")
        };
        let heads = heads.and_then(|heads| usize::try_from(heads).ok()).filter(|&heads| heads > 0);
        let heads = heads
            .ok_or_else(|| error(format!("the key `{}.{key}` is not the number of heads", self.layout.architecture)))?;
        let head = rows / heads;
        if head == 0 || !head.is_multiple_of(2) || head * heads != rows {
            return Err(error(format!("{rows} rows are not {heads} heads of pairs of rows")));
        }
        Ok(head)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_transforms_go_by_the_architecture() {
        let metadata = Metadata::of_counts(&[("llama.attention.head_count", 4), ("llama.attention.head_count_kv", 2)]);
        let file = |architecture: &str| {
            let layout = LAYOUTS.iter().find(|layout| layout.architecture == architecture).unwrap();
            File { layout, metadata: &metadata }
        };
        let view = |architecture: &str, stored: &str| file(architecture).view(stored, 32).unwrap();
        let name = |architecture: &str, stored: &str| view(architecture, stored).map(|view| view.name);
        let q = view("llama", "blk.3.attn_q.weight").unwrap();
        assert_eq!((q.name.as_str(), q.head), ("model.layers.3.self_attn.q_proj.weight", Some(8)));
        assert_eq!(view("llama", "blk.3.attn_k.bias").unwrap().head, Some(16));
        assert_eq!(view("llama", "blk.3.attn_v.weight").unwrap().head, None);
        assert_eq!(view("qwen2", "blk.3.attn_q.weight").unwrap().head, None);
        assert_eq!(name("llama", "blk.0.ffn_norm.weight").unwrap(), "model.layers.0.post_attention_layernorm.weight");
        assert_eq!(name("gemma3", "blk.0.ffn_norm.weight").unwrap(), "model.layers.0.pre_feedforward_layernorm.weight");
        for norm in ["blk.0.attn_q_norm.weight", "blk.0.post_ffw_norm.weight", "output_norm.weight"] {
            assert_eq!(view("gemma3", norm).unwrap().added, 1.0, "{norm}");
        }
        assert_eq!(view("qwen3", "blk.0.attn_q_norm.weight").unwrap().added, 0.0);
        assert_eq!(
            name("qwen2moe", "blk.0.ffn_down_exps.12.weight").unwrap(),
            "model.layers.0.mlp.experts.12.down_proj.weight"
        );
        assert!(view("qwen2moe", "blk.0.ffn_gate_inp_shexp.weight").unwrap().is_row);
        assert_eq!(name("phi3", "blk.0.ffn_up.weight").unwrap(), "model.layers.0.mlp.gate_up_proj.weight");
        for (architecture, stored) in [
            ("llama", "rope_freqs.weight"),
            ("llama", "blk.00.attn_q.weight"),
            ("llama", "blk.0.attn_q"),
            ("llama", "blk.0.ffn_up_exps.1.weight"),
            ("qwen3moe", "blk.0.ffn_up_exps.01.weight"),
            ("qwen3moe", "blk.0.attn_q.1.weight"),
            ("qwen3moe", "blk.0.ffn_up.weight"),
            ("llama", "blk.0.post_ffw_norm.weight"),
            ("phi3", "blk.0.attn_q.weight"),
        ] {
            assert_eq!(view(architecture, stored), None, "{stored}");
        }
        for (architecture, name, stored) in [
            ("llama", "model.layers.3.self_attn.q_proj.weight", Some("blk.3.attn_q.weight")),
            ("gemma2", "model.layers.0.post_attention_layernorm.weight", Some("blk.0.post_attention_norm.weight")),
            ("qwen2", "model.layers.0.post_attention_layernorm.weight", Some("blk.0.ffn_norm.weight")),
            ("qwen3moe", "model.layers.7.mlp.experts.12.up_proj.weight", Some("blk.7.ffn_up_exps.12.weight")),
            ("qwen3moe", "model.layers.7.mlp.experts.012.up_proj.weight", None),
            ("qwen3moe", "model.layers.7.mlp.experts.1.w1.weight", None),
            ("qwen3moe", "model.layers.7.mlp.up_proj.weight", None),
            ("qwen2moe", "model.layers.7.mlp.gate.weight", Some("blk.7.ffn_gate_inp.weight")),
            ("phi3", "model.layers.0.mlp.gate_up_proj.weight", Some("blk.0.ffn_up.weight")),
            ("phi3", "model.layers.0.mlp.gate_proj.weight", None),
            ("llama", "model.layers.03.self_attn.q_proj.weight", None),
            ("llama", "model.layers.3.self_attn.q_proj.weight.absmax", None),
            ("llama", "lm_head.weight", Some("output.weight")),
            ("gemma", "lm_head.weight", None),
            ("gemma3", "model.norm.weight", Some("output_norm.weight")),
        ] {
            let found = file(architecture).stored(name, 32).unwrap().map(|view| view.stored);
            assert_eq!(found.as_deref(), stored, "{name}");
        }
        for rows in [30, 2, 4] {
            let error = file("llama").view("blk.0.attn_q.weight", rows).unwrap_err();
            assert!(error.to_string().contains("4 heads"), "{error}");
        }
    }
}
