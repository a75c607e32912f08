//! The way between the names of a GGUF file and those of the model, in both directions.

use super::layout::LAYOUTS;
use super::{HEAD, Heads, Layout, NamedModule, Names, ROUTER, RowOrder, STACKS, View, towers};
use crate::error::{Error, Result, malformed};
use crate::open::gguf::expert;
use crate::open::{Checkpoint, Metadata};

/// Ends of names of scales that are no part of a weight's own type: a weight's values are its codes' times this.
const SCALES: &[&str] = &[".scale", ".input_scale"];

/// A file of which it is not known how it stores a model.
#[derive(Debug)]
pub(crate) struct Unknown {
    /// The file, or the tensor that tells it, in words.
    pub(crate) about: String,
    pub(crate) tensor: Option<String>,
    /// What can be done, one sentence.
    pub(crate) remedy: String,
}

/// A tensor of a weight that lies in several, or turned.
#[derive(Debug)]
pub(crate) enum Joined {
    /// It is none.
    No,
    /// The first of them.
    First(View),
    Other,
}

const ORIGINAL: &str = "merge into the safetensors checkpoint that it was made from, and turn the result into GGUF with llama.cpp's convert_hf_to_gguf.py";

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
        let is_router = |name: &str| name.split('.').any(|part| part == ROUTER);
        let names_experts =
            || checkpoint.entries.iter().any(|entry| expert(&entry.name).is_some() || is_router(&entry.name));
        let has_experts = experts.is_some_and(|experts| experts > 0) || is_adapter && names_experts();
        let mut own = LAYOUTS.iter().filter(|layout| layout.architecture == architecture).peekable();
        if own.peek().is_some() && has_experts && !own.clone().any(|layout| layout.has_experts()) {
            return Err(Unknown { about: format!("{file} with experts"), tensor: None, remedy: ORIGINAL.to_owned() });
        }
        let has = |part: &str| checkpoint.get(&format!("blk.0.{part}.weight")).is_some();
        let is_told = |key: &str| metadata.get(&format!("{architecture}.{key}")).is_some();
        let fits = |layout: &&Layout| {
            layout.has_experts() == has_experts
                && layout.only_with.is_none_or(has)
                && layout.only_told.is_none_or(is_told)
        };
        let any = own.clone().next().filter(|_| is_adapter);
        let needs_experts = own.peek().is_some() && !has_experts && own.clone().all(|layout| layout.has_experts());
        if needs_experts && any.is_none() {
            let said = experts.map_or("missing".to_owned(), |experts| format!("{experts}"));
            let about = format!("{file} without experts (`{architecture}.expert_count` is {said})");
            let remedy =
                "models of it have experts, so the file is broken: take another GGUF file of the model".to_owned();
            return Err(Unknown { about, tensor: None, remedy });
        }
        let Some(layout) = own.find(fits).or(any) else {
            let remedy = format!("{ORIGINAL}; architectures that are read: {}", Layout::architectures().join(", "));
            return Err(Unknown { about: file, tensor: None, remedy });
        };
        let is_named = |name: &str| {
            let part = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
            part.is_some_and(|(_, part)| layout.joins.iter().any(|join| join.place_of(part).is_some()))
        };
        let is_scale = |name: &str| SCALES.iter().any(|end| name.ends_with(end)) && !is_named(name);
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
            let common =
                || self.layout.common.iter().find(|(part, own)| *own == path && !self.layout.without.contains(part));
            own.or_else(common).map(|(part, _)| format!("blk.{number}.{part}"))
        };
        let path = match module.strip_prefix(self.layout.layers) {
            Some(rest) => within(rest),
            None => find(self.layout.outside).filter(|part| part != HEAD || self.layout.has_head),
        };
        let Some(path) = path else { return Ok(None) };
        // What a name is read as has to be what it was.
        Ok(self.view(&format!("{path}.{leaf}"), rows)?.filter(|view| view.name == name))
    }

    /// How the file stores the model's weight of that name and shape; `None` for one that has no place in it. Beside towers a language model's names begin otherwise.
    pub(crate) fn place(&self, name: &str, shape: &[usize], is_turned: bool) -> Result<Option<View>> {
        let view = self.place_alone(&towers::alone(name), shape, is_turned)?;
        Ok(view.map(|view| View { name: name.to_owned(), ..view }))
    }

    fn place_alone(&self, name: &str, shape: &[usize], is_turned: bool) -> Result<Option<View>> {
        let within = name.strip_prefix(self.layout.layers).and_then(|rest| rest.split_once('.'));
        if let Some((number, join)) = within.and_then(|(number, name)| Some((number, self.layout.joined(name)?))) {
            return join.view(self.layout, self.metadata, (number, name), shape, is_turned).map(Some);
        }
        // A tensor of one dimension is a column.
        let rows = shape.iter().take(shape.len().saturating_sub(1).max(1)).product();
        let own = self.stored(name, rows)?;
        // Checkpoints of the model without its head leave out what the paths of one with a head begin with.
        let Some(wrapper) = self.layout.wrapper.filter(|_| own.is_none()) else { return Ok(own) };
        Ok(self.stored(&format!("{wrapper}{name}"), rows)?.map(|view| View { name: name.to_owned(), ..view }))
    }

    /// How the model sees the tensor of that name, if it is one of a weight that lies in several, or turned: the first of them has the view, and others none. `shape_of` says
    /// what the file has under a name.
    pub(crate) fn joined<'e>(&self, stored: &str, shape_of: &dyn Fn(&str) -> Option<&'e [usize]>) -> Result<Joined> {
        let Some((number, part)) = stored.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) else {
            return Ok(Joined::No);
        };
        if number.parse::<usize>().ok().is_none_or(|parsed| parsed.to_string() != number) {
            return Ok(Joined::No);
        }
        for join in self.layout.joins {
            match join.place_of(part) {
                None => {}
                Some((0, 0)) => {
                    let Some(shape) = join.shape(number, shape_of).map_err(|error| error.in_tensor(stored))? else {
                        continue;
                    };
                    let name = format!("{}{number}.{}", self.layout.layers, join.name());
                    let view = join.view(self.layout, self.metadata, (number, &name), &shape, false)?;
                    for (tensor, wanted) in view.tensors(&shape) {
                        let found = shape_of(&tensor);
                        let fits = |found: &[usize]| {
                            found == wanted
                                || matches!((found, wanted.as_slice()), ([count], [1, cols]) if count == cols)
                        };
                        if !found.is_some_and(fits) {
                            let problem = match found {
                                Some(found) => {
                                    format!("shape {found:?}, but as a part of `{name}` it must be {wanted:?}")
                                }
                                None => format!("missing, and it is a part of `{name}`"),
                            };
                            return Err(malformed(problem)
                                .in_tensor(&tensor)
                                .with_hint("the file is broken, or of a model that is not known"));
                        }
                    }
                    return Ok(Joined::First(view));
                }
                // One that has no first beside it is not understood.
                Some((matrix, _)) if join.is_whole(number, matrix, shape_of) => return Ok(Joined::Other),
                Some(_) => {}
            }
        }
        Ok(Joined::No)
    }

    /// True if a model whose embeddings part can be stored.
    pub(crate) fn has_head(&self) -> bool {
        self.layout.has_head
    }

    /// True if the model's experts are matrices of their own, each, where it is read from a file.
    pub(crate) fn has_single_experts(&self) -> bool {
        self.layout.experts.is_some()
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
    pub(crate) fn named_module(&self, path: &str) -> Option<NamedModule> {
        let Some((module, part)) = self.module(path) else {
            let module = self.expert_of_stack(path)?;
            return Some(NamedModule { module, heads: None, is_table: false });
        };
        Some(NamedModule { module, heads: self.heads(part), is_table: part == "token_embd" })
    }

    /// The projection of an expert, of those that the model has in one stack, as adapters of single experts name it.
    fn expert_of_stack(&self, path: &str) -> Option<String> {
        let (number, part) = path.strip_prefix("blk.")?.split_once('.')?;
        let number = number.parse::<usize>().ok().filter(|parsed| parsed.to_string() == number)?;
        let weight = format!("{part}.weight");
        let joins = self.layout.joins.iter().filter(|join| join.is_stack());
        let (stack, expert) = joins.filter_map(|join| Some((join.name(), join.place_of(&weight)?.0))).next()?;
        let (above, _) = stack.strip_suffix(".weight").unwrap_or(stack).rsplit_once('.')?;
        // Granite's stacks lie in the block itself, where single experts would be below `experts`.
        let experts = above.strip_suffix("experts").map_or_else(|| format!("{above}."), str::to_owned);
        let projection = part.strip_prefix("ffn_")?.split_once("_exps.")?.0;
        if !["gate", "up", "down"].contains(&projection) {
            return None;
        }
        Some(format!("{}{number}.{experts}experts.{expert}.{projection}_proj", self.layout.layers))
    }

    /// The heads of a tensor whose rows have another order.
    fn heads(&self, part: &str) -> Option<Heads> {
        self.layout.ordered.iter().find(|(own, _)| *own == part).map(|(_, heads)| *heads)
    }

    /// How the model sees the tensor of that name, which has so many rows; `None` for one that the model does not have. Errors if heads do not fit the rows.
    pub(crate) fn view(&self, stored: &str, rows: usize) -> Result<Option<View>> {
        let Some((path, leaf)) = stored.rsplit_once('.').filter(|(_, leaf)| matches!(*leaf, "weight" | "bias")) else {
            return Ok(None);
        };
        let Some((module, part)) = self.module(path) else { return Ok(None) };
        // A matrix of one row, as a router's of one expert, lies as a list where ggml wrote it.
        let is_row = leaf == "weight" && !part.contains("norm");
        let view = View {
            name: format!("{module}.{leaf}"),
            stored: stored.to_owned(),
            order: None,
            added: 0.0,
            is_row,
            padding: 0,
            weave: None,
        };
        let adds_one = self.layout.adds_one_to_norms && leaf == "weight" && part.ends_with("norm");
        let order = self.heads(part).map(|heads| self.order(heads, rows).map_err(|error| error.in_tensor(stored)));
        Ok(Some(View { added: if adds_one { 1.0 } else { 0.0 }, order: order.transpose()?, ..view }))
    }

    /// A module's path, and the last part of its name in the file.
    fn module<'n>(&self, path: &'n str) -> Option<(String, &'n str)> {
        let find = |names: Names, part: &str| names.iter().find(|(name, _)| *name == part).map(|(_, path)| *path);
        let Some(rest) = path.strip_prefix("blk.") else {
            return Some((find(self.layout.outside, path)?.to_owned(), path));
        };
        let (number, part) = rest.split_once('.')?;
        // As it is written anew: no other name means the same layer.
        let number = number.parse::<usize>().ok().filter(|parsed| parsed.to_string() == number)?;
        if let Some((stack, expert)) = part.split_once('.').filter(|(stack, _)| STACKS.contains(stack)) {
            let (module, each) = self.layout.experts?;
            let expert = expert.parse::<usize>().ok().filter(|parsed| parsed.to_string() == expert)?;
            let name = each.get(STACKS.iter().position(|own| *own == stack)?)?;
            return Some((format!("{}{number}.{module}.{expert}.{name}", self.layout.layers), stack));
        }
        let common = || find(self.layout.common, part).filter(|_| !self.layout.without.contains(&part));
        let module = find(self.layout.inside, part).or_else(common)?;
        Some((format!("{}{number}.{module}", self.layout.layers), part))
    }

    /// The stack that an expert's module lies in, and its number, by its path below the layer.
    fn in_stack<'p>(&self, path: &'p str) -> Option<(&'static str, &'p str)> {
        let (module, each) = self.layout.experts?;
        let (number, name) = path.strip_prefix(module)?.strip_prefix('.')?.split_once('.')?;
        let at = each.iter().position(|own| *own == name)?;
        Some((STACKS.get(at)?, number))
    }

    fn order(&self, heads: Heads, rows: usize) -> Result<RowOrder> {
        let key = |key: &str| format!("{}.attention.{key}", self.layout.architecture);
        let count = |name: &str| self.metadata.integer_of_all(&key(name)).and_then(|count| usize::try_from(count).ok());
        let error = |problem: String| -> Error {
            malformed(problem)
                .with_hint("the file is broken, or of a model whose layers have different numbers of heads")
        };
        let own = count("head_count").filter(|&count| count > 0);
        let own = own.ok_or_else(|| error(format!("the key `{}` is not the number of heads", key("head_count"))))?;
        // Where a file does not say how many heads keys have, they have as many as queries.
        let of_keys =
            if self.metadata.get(&key("head_count_kv")).is_some() { count("head_count_kv") } else { Some(own) };
        let of_keys = of_keys
            .filter(|&count| count > 0)
            .ok_or_else(|| error(format!("the key `{}` is not the number of heads", key("head_count_kv"))))?;
        heads
            .order_of(rows, own, of_keys)
            .ok_or_else(|| error(format!("{rows} rows are not {}", heads.wanted(own, of_keys))))
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
        assert_eq!(
            (q.name.as_str(), q.order),
            ("model.layers.3.self_attn.q_proj.weight", Some(RowOrder::Pairs { head: 8 }))
        );
        assert_eq!(view("llama", "blk.3.attn_k.bias").unwrap().order, Some(RowOrder::Pairs { head: 16 }));
        assert_eq!(view("llama", "blk.3.attn_v.weight").unwrap().order, None);
        assert_eq!(view("qwen2", "blk.3.attn_q.weight").unwrap().order, None);
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
