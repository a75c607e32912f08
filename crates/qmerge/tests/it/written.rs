//! Folders that tests write: models and adapters of a few tensors, and copies to change.

use std::fmt::Display;
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};

/// A tensor by name, type, shape and bytes.
pub(crate) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

pub(crate) fn f32s(name: impl Into<String>, shape: &[usize], values: impl IntoIterator<Item = f32>) -> Tensor {
    (name.into(), Dtype::F32, shape.to_vec(), values.into_iter().flat_map(f32::to_le_bytes).collect())
}

/// A file of tensors.
pub(crate) fn tensors<'t>(path: &Path, tensors: impl IntoIterator<Item = &'t Tensor>) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let view = |(name, dtype, shape, bytes): &'t Tensor| (name, TensorView::new(*dtype, shape.clone(), bytes).unwrap());
    let views: Vec<_> = tensors.into_iter().map(view).collect();
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// A model's folder.
pub(crate) fn model<'t>(folder: &Path, config: impl Display, all: impl IntoIterator<Item = &'t Tensor>) {
    tensors(&folder.join("model.safetensors"), all);
    std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
}

/// An adapter's folder, as PEFT writes it.
pub(crate) fn adapter<'t>(folder: &Path, config: impl Display, all: impl IntoIterator<Item = &'t Tensor>) {
    tensors(&folder.join("adapter_model.safetensors"), all);
    std::fs::write(folder.join("adapter_config.json"), config.to_string()).unwrap();
}

/// A copy of a folder's files.
pub(crate) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
}
