//! Into a GGUF file: what llama.cpp's converter and llama-quantize make of a folder.

use std::collections::HashMap;
use std::sync::Arc;

use super::general::general;
use super::{Constant, Destination, Export, Exported, Kind, Model, lost};
use crate::arch;
use crate::arch::gguf::mixture::{self, FileType};
use crate::arch::gguf::{File, Layout, Said, View, is_made, predicts_further, towers};
use crate::dtype::Dtype;
use crate::error::{Result, mismatch, unsupported};
use crate::formats::{self, GPT_OSS};
use crate::open::Store;
use crate::open::gguf::{Field, HEAD_WEIGHT, Keys, Metadata, Writer, expert, vocabulary};
use crate::plan::Tokenizer;
use crate::plan::fits;
use crate::plan::quantized::is_reversed;

/// Name of the file in a folder.
pub(super) const FILE: &str = "model.gguf";
/// That of ggml's quantization formats.
const QUANTIZATION_VERSION: u32 = 2;

/// All file types.
pub(super) static ALL: &[&dyn Export] = &[
    &mixture::F32,
    &mixture::F16,
    &mixture::BF16,
    &mixture::Q8_0,
    &mixture::Q6_K,
    &mixture::Q5_K_M,
    &mixture::Q5_K_S,
    &mixture::Q5_1,
    &mixture::Q5_0,
    &mixture::Q4_K_M,
    &mixture::Q4_K_S,
    &mixture::Q4_1,
    &mixture::Q4_0,
    &mixture::IQ4_NL,
    &mixture::IQ4_XS,
    &mixture::Q3_K_L,
    &mixture::Q3_K_M,
    &mixture::Q3_K_S,
    &mixture::Q2_K,
];

impl Export for FileType {
    fn id(&self) -> &'static str {
        self.id
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn ending(&self) -> &'static str {
        ".gguf"
    }

    fn quantizes(&self) -> bool {
        self.is_quantized()
    }

    fn export(&self, model: &Model<'_, '_>) -> Result<Exported> {
        let base = &model.inputs.base;
        if base.is_self_contained() {
            return self.requantized(model);
        }
        let whole = arch::config(base)?;
        let (config, layout) = towers::stored(whole)?;
        let config = &*config;
        refuse(model)?;
        let embed = model.names.embed().map(|claim| claim.weight.name());
        let tokens = model.weights.iter().find(|(name, _)| Some(name.as_str()) == embed);
        let tokens = tokens.and_then(|(_, shape)| shape.first().copied());
        let stored = &model.inputs.inventory.weights;
        if !layout.takes_mlx() {
            fits::refuse_mlx(base, stored)?;
        }
        fits::check(base, stored)?;
        fits::refuse_further_layers(base, stored)?;
        let tokens = tokens.ok_or_else(|| mismatch("the model has no table of embeddings").in_file(&base.path))?;
        let Said { first, keys: own, constants, .. } = layout.said(config, tokens, self.number)?;
        let mut keys = Keys::default();
        keys.set("general.architecture", Field::Text(layout.architecture().to_owned()));
        keys.append(first);
        let padding = model.weights.iter().map(|(name, shape)| {
            layout.padding(name, shape, tokens).saturating_mul(shape.iter().skip(1).product::<usize>())
        });
        let beside = padding.fold(0, usize::saturating_add)
            + constants.iter().map(|constant| constant.values.len()).sum::<usize>();
        keys.append(general(model, beside)?);
        keys.append(own);
        keys.set("general.quantization_version", Field::Count(QUANTIZATION_VERSION));
        let adapters = model.inputs.adapters.iter().map(|adapter| &*adapter.tensors.store);
        let adapters = adapters.filter(|_| model.options.tokenizer == Tokenizer::Adapter);
        let folders: Vec<&dyn Store> = adapters.chain([&*base.store]).collect();
        keys.append(vocabulary(&folders, whole, tokens, layout.ways())?);
        if self.is_quantized() {
            keys.append_last(self.of_quantize(model));
        }
        let metadata = keys.finish();
        let file = File::made(layout, &metadata);
        // As the file has them: a Conv1D's dimensions change places.
        let shape = |(name, shape): &(String, Vec<usize>)| match model.names.exact(name) {
            Some(claim) if is_reversed(model.names, claim.weight.as_ref(), false) => {
                shape.iter().rev().copied().collect()
            }
            _ => shape.clone(),
        };
        let shapes: Vec<Vec<usize>> = model.weights.iter().map(shape).collect();
        let mut views: Vec<(&str, &[usize], Option<View>)> = Vec::new();
        for ((name, _), shape) in model.weights.iter().zip(&shapes) {
            let is_turned = model.names.exact(name).is_some_and(|claim| claim.weight.has_family_order())
                && model.names.stacks_inputs_as_rows();
            let view = if model.is_left_out(name) { None } else { file.place(name, shape, is_turned)? };
            let view = view.map(|view| View { padding: layout.padding(name, shape, tokens), ..view });
            views.push((name, shape, view));
        }
        let constants: Vec<Constant> = constants
            .into_iter()
            .map(|constant| Constant { name: constant.name.to_owned(), values: constant.values.into() })
            .collect();
        let tensors = |(_, shape, view): &(&str, &[usize], Option<View>)| view.as_ref().map(|view| view.tensors(shape));
        let named: Vec<(String, Vec<usize>)> = views.iter().filter_map(tensors).flatten().collect();
        let warning = lost::warning(config, &metadata, &constants, &named);
        let unmet = layout.unmet(&metadata, &named);
        let writer = Writer::anew(metadata);
        let writer = if self.is_quantized() { writer.trimmed() } else { writer };
        let exported = self.place(model, layout, views, constants, writer)?;
        let warnings = unmet
            .into_iter()
            .chain(warning)
            .chain(model.says_what_is_left_out())
            .chain(model.inputs.says_towers_left_out())
            .chain(exported.warnings)
            .collect();
        Ok(Exported { warnings, ..exported })
    }
}

impl FileType {
    /// Finds a place for each weight, whose view is known.
    fn place(
        &self,
        model: &Model<'_, '_>,
        layout: &Layout,
        views: Vec<(&str, &[usize], Option<View>)>,
        constants: Vec<Constant>,
        writer: Writer,
    ) -> Result<Exported> {
        let mut places: HashMap<String, Destination> = HashMap::new();
        for (name, ..) in views.iter().filter(|(.., view)| view.is_none()) {
            if !is_made(name) && !is_copy(model, name) && !model.is_left_out(name) {
                return Err(unsupported("a tensor that has no place in a GGUF file of this architecture")
                    .in_file(&model.inputs.base.path)
                    .in_tensor(name));
            }
            places.insert((*name).to_owned(), Destination::Nowhere);
        }
        let mut tensors: Vec<Placed<'_>> = Vec::new();
        for ((name, shape, view), place) in views.iter().zip(places_in_base(model, layout, &views)) {
            for (number, (stored, shape)) in view.iter().flat_map(|view| view.tensors(shape)).enumerate() {
                let slot = view.as_ref().and_then(|view| Some(view.weave.as_ref()?.slot(number)));
                let place = PlaceInBase { tensor: slot.unwrap_or(number), ..place.clone() };
                tensors.push(Placed { name, number, stored, shape, place });
            }
        }
        if self.is_quantized() {
            tensors.sort_by(|one, other| mixture::order(&one.stored, &other.stored));
        } else {
            tensors.sort_by(|one, other| one.place.cmp(&other.place));
        }
        let takes = |tensor: &&Placed<'_>| mixture::takes(&tensor.stored, &tensor.shape);
        let width = |tensor: &Placed<'_>| tensor.shape.last().copied().unwrap_or(0);
        let matrices: Vec<(&str, usize)> =
            tensors.iter().filter(takes).map(|tensor| (tensor.stored.as_str(), width(tensor))).collect();
        let has_head = tensors.iter().any(|tensor| tensor.stored == HEAD_WEIGHT);
        let types = self.types(&matrices, model.about(has_head, writer.metadata()));
        let warning = self.said_of_narrow(&matrices, &types);
        let mut types = types.into_iter();
        let mut order: Vec<String> = constants.iter().map(|constant| constant.name.clone()).collect();
        let mut kinds: HashMap<(&str, usize), Kind> = HashMap::new();
        for tensor in &tensors {
            let dtype = if takes(&tensor) { types.next() } else { None };
            let dtype = dtype.unwrap_or_else(|| self.untaken(&tensor.stored));
            // gpt-oss' codes stay what they are in a file of floats.
            let is_code = || model.names.exact(tensor.name).is_some_and(|claim| claim.weight.format() == GPT_OSS);
            let dtype = if !self.is_quantized() && is_code() { Dtype::MXFP4 } else { dtype };
            order.push(tensor.stored.clone());
            let importance = match model.options.importance.as_deref().filter(|_| dtype.is_ggml_block()) {
                Some(importance) => importance.of(&tensor.stored, &tensor.shape)?,
                None => None,
            };
            kinds.insert((tensor.name, tensor.number), (formats::of_dtype(dtype)?, importance));
        }
        for (name, _, view) in views.iter().filter(|(.., view)| view.is_some()) {
            let Some((format, importance)) = kinds.remove(&(*name, 0)) else { continue };
            let others = (1..).map_while(|number| kinds.remove(&(*name, number))).collect();
            places.insert((*name).to_owned(), Destination::Tensor { view: view.clone(), format, importance, others });
        }
        if self.is_quantized() {
            order.sort_by(|one, other| mixture::order(one, other));
        }
        if let Some(importance) = &model.options.importance {
            importance.refuse_other(order.iter().map(String::as_str))?;
        }
        Ok(Exported {
            places,
            constants,
            copies_rest: false,
            file: FILE.to_owned(),
            container: Arc::new(writer),
            metadata: Vec::new(),
            order: Some(order),
            config: None,
            beside: Vec::new(),
            warnings: warning.into_iter().collect(),
        })
    }

    /// What llama-quantize says of a file, behind all else: its type, and the importance matrix that its codes were chosen with.
    pub(super) fn of_quantize(&self, model: &Model<'_, '_>) -> Keys {
        let mut keys = Keys::default();
        keys.set("general.quantization_version", Field::Count(QUANTIZATION_VERSION));
        keys.set("general.file_type", Field::Count(self.number));
        if let Some(importance) = &model.options.importance {
            keys.set("quantize.imatrix.file", Field::Text(importance.file.clone()));
            if let Some(text) = &importance.text {
                keys.set("quantize.imatrix.dataset", Field::Text(text.clone()));
            }
            let count = u32::try_from(importance.len()).unwrap_or(u32::MAX);
            keys.set("quantize.imatrix.entries_count", Field::Count(count));
        }
        keys
    }

    /// What to know of matrices whose rows are no whole blocks of this type; nothing where there are none. `types` are those that they have.
    pub(super) fn said_of_narrow(&self, matrices: &[(&str, usize)], types: &[Dtype]) -> Option<String> {
        let block = self.dtype.block().0 as usize;
        let narrow: Vec<_> =
            matrices.iter().zip(types).filter(|((_, width), _)| !width.is_multiple_of(block)).collect();
        let ((first, width), dtype) = narrow.first()?;
        Some(format!(
            "{} of {} matrices have rows that are no whole blocks of {block} values, and take other types than {}, as with llama-quantize: the file is larger than its name says; first `{first}`, rows of {width} in {dtype}",
            narrow.len(),
            matrices.len(),
            self.id
        ))
    }
}

impl Model<'_, '_> {
    /// True of a tensor of what predicts further tokens, behind the model's own layers.
    pub(super) fn predicts_further(&self, name: &str) -> bool {
        let layers = self.inputs.base.config.as_ref().and_then(|config| config.find("num_hidden_layers")?.as_u64());
        layers.is_some_and(|layers| predicts_further(name, usize::try_from(layers).unwrap_or(usize::MAX)))
    }

    /// True of a tensor that llama.cpp takes from another file, or not at all.
    pub(super) fn is_left_out(&self, name: &str) -> bool {
        self.predicts_further(name) || self.inputs.tower_of(name).is_some()
    }

    /// That it does not come along, where there is something of it.
    pub(super) fn says_what_is_left_out(&self) -> Option<String> {
        let (first, _) = self.weights.iter().find(|(name, _)| self.predicts_further(name))?;
        Some(format!(
            "the layers that predict further tokens are left out, as transformers leaves them; first `{first}`"
        ))
    }

    /// Experts of a layer, of which some act on a token; 0 for none.
    pub(super) fn experts(&self) -> usize {
        let config = self.inputs.base.config.as_ref();
        let count = |key: &str| config.and_then(|config| config.find(key)?.as_u64());
        let keys = ["num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"];
        keys.iter().find_map(|key| count(key)).unwrap_or(0) as usize
    }

    /// What types depend on, for a file with those keys that has a head of its own or not.
    pub(super) fn about(&self, has_head: bool, metadata: &Metadata) -> mixture::Model {
        let config = self.inputs.base.config.as_ref();
        let architecture = metadata.architecture();
        // llama-quantize looks at the first layer.
        let count = |key: &str| metadata.first_integer(&format!("{architecture}.{key}")).map(|count| count as usize);
        let (layers, heads) = (count("block_count").unwrap_or(0), count("attention.head_count").unwrap_or(0));
        let kv_heads = count("attention.head_count_kv").unwrap_or(heads);
        let layout = config.and_then(|config| towers::stored(config).ok()).map(|(_, layout)| layout);
        mixture::Model {
            layers,
            shared: heads.checked_div(kv_heads).unwrap_or(0),
            is_large: layout.is_some_and(|layout| layout.is_large(layers, heads, kv_heads)),
            has_head,
            experts: self.experts(),
            has_importance: self.options.importance.is_some(),
            is_falcon: architecture == "falcon",
        }
    }
}

/// Refuses what an adapter brings that no file has a place for.
fn refuse(model: &Model<'_, '_>) -> Result<()> {
    refuse_additions(model, "merge it into a folder, without --to")?;
    let opaque = model.inputs.inventory.opaque.iter().filter_map(|&at| model.inputs.base.entries.get(at));
    match opaque.into_iter().find(|entry| !is_made(&entry.name) && model.inputs.tower_of(&entry.name).is_none()) {
        Some(entry) => Err(unsupported(format!("a tensor of {} that has no place in a GGUF file", entry.dtype))
            .in_file(&model.inputs.base.path)
            .in_tensor(&entry.name)),
        None => Ok(()),
    }
}

pub(super) fn refuse_additions(model: &Model<'_, '_>, hint: &str) -> Result<()> {
    if !model.has_additions {
        return Ok(());
    }
    let problem = "the adapter brings layers that the model does not have, which a GGUF file has no names for";
    Err(unsupported(problem).in_file(&model.inputs.base.path).with_hint(hint))
}

/// True of a head that is stored beside the embedding it is tied to, in an architecture that has no head.
pub(super) fn is_copy(model: &Model<'_, '_>, name: &str) -> bool {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    model.names.is_head(module) && model.names.ties_stored() && !model.change.untie
}

/// A tensor of the file.
struct Placed<'m> {
    /// The model's name of the weight, and its number among that one's tensors.
    name: &'m str,
    number: usize,
    stored: String,
    shape: Vec<usize>,
    place: PlaceInBase,
}

/// Where a tensor stands in a file that the converter writes.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct PlaceInBase {
    /// The base's file and the name there.
    file: usize,
    read: String,
    /// Of a stack the model's name for the projection, and the expert.
    projection: (usize, String),
    expert: usize,
    /// Of several its number.
    tensor: usize,
}

/// Files of the base in their order, and names in each: the order in which the converter reads them. Stacks come where the last of the layer's experts is met.
fn places_in_base(
    model: &Model<'_, '_>,
    layout: &Layout,
    views: &[(&str, &[usize], Option<View>)],
) -> Vec<PlaceInBase> {
    let read = |name: &str| {
        let claim = model.names.exact(name);
        let file = claim.and_then(|claim| claim.entries.first()).map_or(usize::MAX, |entry| entry.file);
        (file, name.to_owned())
    };
    let in_stack = |view: &Option<View>| expert(&view.as_ref().filter(|view| view.weave.is_none())?.stored);
    let layer = |stack: &str| stack.split('.').take(2).collect::<Vec<_>>().join(".");
    let mut last: HashMap<String, (usize, String)> = HashMap::new();
    for (name, _, view) in views {
        if let Some((stack, _)) = in_stack(view) {
            let own = last.entry(layer(&stack)).or_default();
            *own = read(name).max(std::mem::take(own));
        }
    }
    let place = |(name, _, view): &(&str, &[usize], Option<View>)| match in_stack(view) {
        Some((stack, expert)) => {
            let (file, read) = last.get(&layer(&stack)).cloned().unwrap_or_default();
            let projection = layout.rank(name.rsplit('.').nth(1).unwrap_or_default());
            PlaceInBase { file, read, projection, expert, tensor: 0 }
        }
        None => {
            let (file, read) = read(name);
            PlaceInBase { file, read, ..PlaceInBase::default() }
        }
    };
    views.iter().map(place).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_type_has_a_name_of_its_own() {
        let mut names: Vec<&str> = ALL.iter().map(|export| export.id()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), ALL.len());
    }
}
