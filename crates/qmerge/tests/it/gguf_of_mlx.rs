//! Mixtures as mlx_lm writes them: a stack of experts for each projection. The file is the one that llama.cpp makes of the published folder.

use std::path::{Path, PathBuf};

use qmerge::inspect::not_run;
use qmerge::merge::RunOptions;
use qmerge::open::Checkpoint;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};

use crate::folder::Folder;
use crate::gguf_made::{expected, hash, made};
use crate::written::{self, Tensor};

/// The folder of a model with its experts stacked, under the published one's name.
pub(crate) fn of_mlx(folder: &Folder, model: &str) -> PathBuf {
    let (from, to) = (Path::new("testdata/gguf/made").join(model), folder.join(model));
    std::fs::create_dir_all(&to).unwrap();
    for file in std::fs::read_dir(&from).unwrap() {
        let file = file.unwrap().path();
        std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
    }
    let bytes = std::fs::read(from.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let mut all: Vec<Tensor> = Vec::new();
    for (name, view) in tensors.tensors() {
        let Some((module, rest)) = name.split_once(".experts.0.") else {
            if !name.contains(".experts.") {
                all.push((name, Dtype::BF16, view.shape().to_vec(), view.data().to_vec()));
            }
            continue;
        };
        let projection = match rest {
            "w1.weight" => "gate_proj.weight",
            "w2.weight" => "down_proj.weight",
            "w3.weight" => "up_proj.weight",
            other => other,
        };
        let matrices: Vec<TensorView<'_>> =
            (0..).map_while(|number| tensors.tensor(&format!("{module}.experts.{number}.{rest}")).ok()).collect();
        let shape = [&[matrices.len()], view.shape()].concat();
        let data = matrices.iter().flat_map(|view| view.data().iter().copied()).collect();
        all.push((format!("{module}.switch_mlp.{projection}"), Dtype::BF16, shape, data));
    }
    written::tensors(&to.join("model.safetensors"), &all);
    to
}

#[test]
fn stacks_of_mlx_become_the_same_file() {
    let (folder, expected) = (Folder::new(), expected());
    for model in ["qwen3moe", "qwen2moe", "mixtral", "olmoe"] {
        let base = of_mlx(&folder, model);
        // Files of codes have their tensors in one order, wherever they were read.
        for to in ["q8_0", "q4_k_m"] {
            let file = made(&base, to, None, &RunOptions::default()).unwrap();
            assert_eq!(hash(&file), expected[model][to], "{model} {to}");
        }
        assert!(not_run(&Checkpoint::open(&base).unwrap()).is_some_and(|why| why.contains("MLX's own name")));
    }
}

/// mlx_lm changes more of other families than their experts.
#[test]
fn stacks_of_mlx_of_other_families_are_refused() {
    let folder = Folder::new();
    for model in ["deepseek3", "qwen35moe", "glm4moe"] {
        let error = made(&of_mlx(&folder, model), "q8_0", None, &RunOptions::default()).unwrap_err();
        assert!(error.to_string().contains("MLX's own name") && error.hint().is_some(), "{model}: {error}");
    }
}

/// Stacks of codes are decoded as those of their values.
#[test]
fn stacks_of_codes_become_the_file_of_their_values() {
    let folder = Folder::new();
    let plain = of_mlx(&folder, "qwen3moe");
    let bytes = std::fs::read(plain.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    // Four bits in groups of 32: code · 2⁻⁶ − 2⁻³, which bf16 has exactly.
    let code = |at: usize| (at * 7 + at / 32 * 5) as u32 % 16;
    let bf16 = |x: f32| (x.to_bits() >> 16).to_le_bytes()[..2].to_vec();
    let (mut values, mut codes) = (Vec::<Tensor>::new(), Vec::<Tensor>::new());
    for (name, view) in tensors.tensors() {
        let (shape, len) = (view.shape().to_vec(), view.shape().iter().product::<usize>());
        let Some(module) = name.strip_suffix(".weight").filter(|_| name.contains(".switch_mlp.")) else {
            let own = (name, Dtype::BF16, shape, view.data().to_vec());
            values.push(own.clone());
            codes.push(own);
            continue;
        };
        let words = (0..len / 8).map(|word| (0..8).fold(0, |all, at| all | code(8 * word + at) << (4 * at)));
        let of_groups = |x: f32| bf16(x).repeat(len / 32);
        let cut = |each: usize| vec![shape[0], shape[1], shape[2] / each];
        codes.push((name.clone(), Dtype::U32, cut(8), words.flat_map(u32::to_le_bytes).collect()));
        codes.push((format!("{module}.scales"), Dtype::BF16, cut(32), of_groups(1.0 / 64.0)));
        codes.push((format!("{module}.biases"), Dtype::BF16, cut(32), of_groups(-1.0 / 8.0)));
        let own = (0..len).flat_map(|at| bf16(code(at) as f32 / 64.0 - 1.0 / 8.0)).collect();
        values.push((name, Dtype::BF16, shape, own));
    }
    let written = |own: &str, all: &[Tensor], quantization: &str| {
        let to = folder.join(own).join("qwen3moe");
        written::copy(&plain, &to);
        let config = std::fs::read_to_string(to.join("config.json")).unwrap();
        std::fs::write(to.join("config.json"), config.replacen('{', &format!("{{{quantization}"), 1)).unwrap();
        written::tensors(&to.join("model.safetensors"), all);
        made(&to, "q8_0", None, &RunOptions::default()).unwrap()
    };
    let quantization = r#""quantization": {"group_size": 32, "bits": 4, "mode": "affine"},"#;
    assert!(written("codes", &codes, quantization) == written("values", &values, ""));
}
