//! Experts that lie in a stack in one of two checkpoints, and one by one in the other, are held against each other by `verify`.

use std::path::{Path, PathBuf};

use qmerge::adapters::Adapter;
use qmerge::merge::{self, RunOptions};
use qmerge::open::Checkpoint;
use qmerge::plan::{EXPORTS, Inputs, Options, Plan};
use qmerge::progress::Silent;
use qmerge::verify::{Answer, State, Verification, VerifyOptions, verify};
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::json;

use crate::folder::Folder;
use crate::gguf_of_mlx::of_mlx;
use crate::written::{self, Tensor, f32s};

const BASE: &str = "testdata/gguf/made/qwen3vlmoesees";
const LAYERS: &str = "model.language_model.layers";

/// Numbers that look random, about so large.
fn noise(len: usize, size: f32) -> impl Iterator<Item = f32> {
    let mut state = 7_u64;
    let next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * size
    };
    std::iter::repeat_with(next).take(len)
}

/// An adapter of stacks of experts, as PEFT writes one with `target_parameters`, or of queries alone.
fn adapter(folder: &Folder, name: &str, of_experts: bool) -> PathBuf {
    let to = folder.join(name);
    let (field, targets) = match of_experts {
        true => ("target_parameters", json!(["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])),
        false => ("target_modules", json!(["q_proj"])),
    };
    let mut config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": []});
    config[field] = targets;
    let shapes: &[(&str, [usize; 2])] = match of_experts {
        true => &[
            ("mlp.experts.base_layer.lora_A", [4, 32]),
            ("mlp.experts.base_layer.lora_B", [48, 4]),
            ("mlp.experts.lora_A", [4, 24]),
            ("mlp.experts.lora_B", [32, 4]),
        ],
        false => &[("self_attn.q_proj.lora_A", [1, 32]), ("self_attn.q_proj.lora_B", [64, 1])],
    };
    let mut all = Vec::new();
    for layer in 0..2 {
        for (name, shape) in shapes {
            let name = format!("base_model.model.{LAYERS}.{layer}.{name}.weight");
            all.push(f32s(name, shape, noise(shape.iter().product(), 0.3)));
        }
    }
    written::adapter(&to, config, &all);
    to
}

fn inputs(base: &Path, adapters: &[&Path]) -> Inputs {
    let adapters = adapters.iter().map(|adapter| Adapter::open(adapter, 1.0).unwrap()).collect();
    Inputs::new(Checkpoint::open(base).unwrap(), adapters).unwrap()
}

/// A merge into a folder, or into a file of that type.
fn merged(base: &Path, adapters: &[&Path], to: Option<&str>, output: PathBuf) -> PathBuf {
    let inputs = inputs(base, adapters);
    let export = EXPORTS.iter().copied().find(|export| Some(export.id()) == to);
    let plan = Plan::new(&inputs, &Options { export, ..Options::default() }).unwrap();
    merge::run(&inputs, &plan, None, &output, &RunOptions::default(), &Silent).unwrap();
    output
}

fn verified(base: &Path, adapter: &Path, merged: &Path) -> Verification {
    let inputs = inputs(base, &[adapter]);
    let plan = Plan::new(&inputs, &Options::default()).unwrap();
    verify(&inputs, &plan, &Checkpoint::open(merged).unwrap(), &VerifyOptions::default(), &Silent).unwrap()
}

/// The base as transformers saves it: outputs as rows.
fn turned(folder: &Folder) -> PathBuf {
    let to = folder.join("turned");
    written::copy(BASE.as_ref(), &to);
    let bytes = std::fs::read(to.join("model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let turn = |view: &TensorView<'_>| match *view.shape() {
        [experts, rows, columns] => {
            let at = |expert, row, column| 2 * ((expert * rows + row) * columns + column);
            let order = (0..experts).flat_map(|e| (0..columns).flat_map(move |c| (0..rows).map(move |r| at(e, r, c))));
            (vec![experts, columns, rows], order.flat_map(|at| [view.data()[at], view.data()[at + 1]]).collect())
        }
        _ => (view.shape().to_vec(), view.data().to_vec()),
    };
    let own = |(name, view): (String, TensorView<'_>)| {
        let is_turned = name.contains(".experts.");
        let (shape, data) = if is_turned { turn(&view) } else { (view.shape().to_vec(), view.data().to_vec()) };
        (name, Dtype::BF16, shape, data)
    };
    let all: Vec<Tensor> = tensors.tensors().into_iter().map(own).collect();
    written::tensors(&to.join("model.safetensors"), &all);
    to
}

/// How many stacks, or experts of them, there are in a state.
fn count(found: &Verification, state: State) -> usize {
    found.weights.iter().filter(|weight| weight.name.contains(".experts.") && weight.state == state).count()
}

#[test]
fn stacks_are_held_against_experts_of_a_file() {
    let folder = Folder::new();
    let adapter = adapter(&folder, "adapter", true);
    for (base, order) in [(PathBuf::from(BASE), "published"), (turned(&folder), "saved")] {
        for to in ["f32", "q8_0", "q4_0"] {
            let name = |what: &str| folder.join(format!("{order}-{what}-{to}.gguf"));
            let found = verified(&base, &adapter, &merged(&base, &[&adapter], Some(to), name("merged")));
            assert_eq!((found.answer, count(&found, State::Applied)), (Answer::Yes, 4), "{order} {to}: {}", found.text);
            let found = verified(&base, &adapter, &merged(&base, &[], Some(to), name("plain")));
            // Rows of 24 are no whole blocks, and have their values in f16.
            let told = count(&found, State::Absent) + count(&found, State::Erased);
            assert_eq!((found.answer, told), (Answer::No, 4), "{order} {to}: {}", found.text);
        }
    }
}

/// The file is the base, and the merge a folder.
#[test]
fn experts_of_a_file_are_held_against_stacks() {
    let folder = Folder::new();
    let adapter = adapter(&folder, "adapter", true);
    for (base, order) in [(PathBuf::from(BASE), "published"), (turned(&folder), "saved")] {
        let file = merged(&base, &[], Some("f32"), folder.join(format!("{order}.gguf")));
        let found =
            verified(&file, &adapter, &merged(&base, &[&adapter], None, folder.join(format!("{order}-merged"))));
        // Two layers of four experts, of three matrices each.
        assert_eq!((found.answer, count(&found, State::Applied)), (Answer::Yes, 24), "{order}: {}", found.text);
        let found = verified(&file, &adapter, &base);
        assert_eq!((found.answer, count(&found, State::Absent)), (Answer::No, 24), "{order}: {}", found.text);
    }
}

/// One value of an expert that nothing edits is enough, in either order.
#[test]
fn an_expert_that_was_changed_is_found() {
    let folder = Folder::new();
    let adapter = adapter(&folder, "adapter", false);
    for (base, order) in [(PathBuf::from(BASE), "published"), (turned(&folder), "saved")] {
        let file = merged(&base, &[&adapter], Some("bf16"), folder.join(format!("{order}.gguf")));
        let found = verified(&base, &adapter, &file);
        assert_eq!((found.answer, found.altered.len()), (Answer::Yes, 0), "{order}: {}", found.text);
        let opened = Checkpoint::open_weights(&file).unwrap();
        let expert = opened.get("blk.1.ffn_up_exps.2.weight").unwrap();
        let at = (expert.start + expert.bytes - 1) as usize;
        let mut bytes = std::fs::read(&file).unwrap();
        bytes[at] ^= 0x80;
        std::fs::write(&file, bytes).unwrap();
        let found = verified(&base, &adapter, &file);
        let name = format!("{LAYERS}.1.mlp.experts.gate_up_proj");
        assert_eq!((found.answer, &found.altered), (Answer::No, &vec![name]), "{order}: {}", found.text);
    }
}

/// What PEFT trained of a stacked parameter goes into the stacks that mlx_lm has of its projections.
#[test]
fn parameters_go_into_stacks_of_mlx() {
    let (folder, plain) = (Folder::new(), Path::new("testdata/gguf/made/qwen3moe"));
    let (base, adapter) = (of_mlx(&folder, "qwen3moe"), folder.join("of-experts"));
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": [],
                        "target_parameters": ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]});
    let factors =
        [("base_layer.lora_A", [12, 32]), ("base_layer.lora_B", [64, 12]), ("lora_A", [12, 32]), ("lora_B", [32, 12])];
    let factors = factors.map(|(name, shape)| {
        let name = format!("base_model.model.model.layers.1.mlp.experts.{name}.weight");
        f32s(name, &shape, noise(shape.iter().product(), 0.3))
    });
    written::adapter(&adapter, config, &factors);
    let stacks = merged(&base, &[&adapter], Some("f32"), folder.join("stacks.gguf"));
    let apart = merged(plain, &[&adapter], Some("f32"), folder.join("apart.gguf"));
    let [stacks_file, apart_file] = [&stacks, &apart].map(|file| Checkpoint::open(file).unwrap());
    let read = |file: &Checkpoint, name: &str| file.read_small(file.get(name).unwrap(), 1 << 20).unwrap();
    for entry in &apart_file.entries {
        assert!(read(&apart_file, &entry.name) == read(&stacks_file, &entry.name), "{}", entry.name);
    }
    let found = verified(&base, &adapter, &apart);
    assert_eq!((found.answer, found.altered.len()), (Answer::Yes, 0), "{}", found.text);
    assert_eq!(found.summary.weights, 3);
    let in_place = merged(&base, &[&adapter], None, folder.join("in-place"));
    let found = verified(plain, &adapter, &in_place);
    assert_eq!((found.answer, found.altered.len()), (Answer::Yes, 0), "{}", found.text);
}

/// The stacks of mlx_lm, one for each projection, against those of a file and the other way.
#[test]
fn stacks_of_mlx_are_held_against_experts_of_a_file() {
    let folder = Folder::new();
    let (base, adapter) = (of_mlx(&folder, "qwen3moe"), folder.join("of-queries"));
    let config = json!({"peft_type": "LORA", "r": 1, "lora_alpha": 1, "target_modules": ["q_proj"]});
    let factor = |part: &str, shape: [usize; 2]| {
        let name = format!("base_model.model.model.layers.0.self_attn.q_proj.{part}.weight");
        f32s(name, &shape, noise(shape[0] * shape[1], 0.3))
    };
    written::adapter(&adapter, config, &[factor("lora_A", [1, 32]), factor("lora_B", [64, 1])]);
    let file = merged(&base, &[&adapter], Some("f32"), folder.join("merged.gguf"));
    let found = verified(&base, &adapter, &file);
    assert_eq!((found.answer, found.altered.len()), (Answer::Yes, 0), "{}", found.text);
    let plain = merged(&base, &[], Some("f32"), folder.join("plain.gguf"));
    let back = merged(&base, &[&adapter], None, folder.join("back"));
    let found = verified(&plain, &adapter, &back);
    assert_eq!((found.answer, found.altered.len()), (Answer::Yes, 0), "{}", found.text);
}
