//! A GGUF file with other types: what llama-quantize makes of a file, whose keys stay.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::gguf::{FILE, refuse_additions};
use super::{self as export, Destination, Exported, Model};
use crate::arch::gguf::mixture::{self, FileType};
use crate::arch::gguf::{File, View};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result, unsupported};
use crate::formats;
use crate::open::gguf::{HEAD_WEIGHT, Writer};

/// Keys of a file that is a part of a model.
const OF_PARTS: &[&str] = &["split.no", "split.count", "split.tensors.count"];

/// A tensor of the output.
struct Tensor<'m> {
    /// The model's name of the weight, and its number among that one's tensors.
    name: &'m str,
    number: usize,
    stored: String,
    shape: Vec<usize>,
    view: Option<View>,
    /// Its type in the base, where it is there.
    dtype: Option<Dtype>,
}

impl FileType {
    /// Decides how a model that lies in a GGUF file is stored in another.
    pub(super) fn requantized(&self, model: &Model<'_, '_>) -> Result<Exported> {
        let base = &model.inputs.base;
        refuse_additions(model, "merge into the safetensors checkpoint that the file was made from")?;
        let file = File::of(base).map_err(|unknown| unsupported(unknown.about).in_file(&base.path))?;
        let (Some(file), Some(own)) = (file, base.gguf.as_deref()) else {
            return Err(Error::new(Kind::Bug, "a GGUF file without keys").in_file(&base.path));
        };
        let mut tensors = Vec::new();
        for (name, shape) in model.weights {
            let claim = model.names.exact(name);
            let view = match claim {
                Some(claim) => claim.weight.view().cloned(),
                // A head that parts from the embedding.
                None => file.stored(name, shape.first().copied().unwrap_or(0))?,
            };
            let own = view.as_ref().map_or_else(|| vec![(name.clone(), shape.clone())], |view| view.tensors(shape));
            for (number, (stored, shape)) in own.into_iter().enumerate() {
                let dtype = claim.and_then(|claim| claim.entries.get(number)).map(|entry| entry.dtype);
                tensors.push(Tensor { name, number, stored, shape, view: view.clone(), dtype });
            }
        }
        tensors.sort_by(|one, other| mixture::order(&one.stored, &other.stored));
        let takes = |tensor: &&Tensor<'_>| tensor.view.is_some() && mixture::takes(&tensor.stored, &tensor.shape);
        let width = |tensor: &Tensor<'_>| tensor.shape.last().copied().unwrap_or(0);
        let matrices: Vec<(&str, usize)> =
            tensors.iter().filter(takes).map(|tensor| (tensor.stored.as_str(), width(tensor))).collect();
        let has_head = tensors.iter().any(|tensor| tensor.stored == HEAD_WEIGHT);
        let types = self.types(&matrices, model.about(has_head, own));
        let warning = self.said_of_narrow(&matrices, &types);
        let mut types = types.into_iter();
        let mut kinds: HashMap<&str, Vec<(usize, export::Kind)>> = HashMap::new();
        let mut changed = HashSet::new();
        for tensor in &tensors {
            let dtype = if takes(&tensor) { types.next() } else { tensor.dtype };
            let dtype = dtype.ok_or_else(|| unsupported("a tensor that has no type").in_tensor(tensor.name))?;
            if tensor.dtype != Some(dtype) {
                changed.insert(tensor.name);
            }
            let importance = match model.options.importance.as_deref().filter(|_| dtype.is_ggml_block()) {
                Some(importance) => importance.of(&tensor.stored, &tensor.shape)?,
                None => None,
            };
            kinds.entry(tensor.name).or_default().push((tensor.number, (formats::of_dtype(dtype)?, importance)));
        }
        let mut places = HashMap::new();
        for tensor in tensors.iter().filter(|tensor| tensor.number == 0) {
            let mut own = kinds.remove(tensor.name).unwrap_or_default();
            own.sort_by_key(|(number, _)| *number);
            let mut own = own.into_iter().map(|(_, kind)| kind);
            let place = match own.next().filter(|_| changed.contains(tensor.name)) {
                Some((format, importance)) => {
                    Destination::Tensor { view: tensor.view.clone(), format, importance, others: own.collect() }
                }
                None => Destination::Same,
            };
            places.insert(tensor.name.to_owned(), place);
        }
        let mut order: Vec<String> = tensors.into_iter().map(|tensor| tensor.stored).collect();
        let opaque = model.inputs.inventory.opaque.iter().filter_map(|&at| base.entries.get(at));
        order.extend(opaque.map(|entry| entry.name.clone()));
        order.sort_by(|one, other| mixture::order(one, other));
        if let Some(importance) = &model.options.importance {
            importance.refuse_other(order.iter().map(String::as_str))?;
        }
        let keys = self.of_quantize(model).behind(own, OF_PARTS);
        Ok(Exported {
            places,
            constants: Vec::new(),
            copies_rest: true,
            file: FILE.to_owned(),
            container: Arc::new(Writer::like(own.alignment()?, keys).trimmed()),
            metadata: Vec::new(),
            order: Some(order),
            config: None,
            beside: Vec::new(),
            warnings: warning.into_iter().collect(),
        })
    }
}
