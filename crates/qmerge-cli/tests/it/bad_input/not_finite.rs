//! Values that are no numbers, or too large for the type that they are to have.

use super::*;

fn poke(path: &Path, tensor: &str, index: usize, value: f32) {
    change(path, |tensors| {
        let (_, _, _, bytes) = tensors.iter_mut().find(|(name, ..)| name == tensor).unwrap();
        bytes[4 * index..4 * index + 4].copy_from_slice(&value.to_le_bytes());
    });
}

#[test]
fn nan_and_infinities_in_the_adapter() {
    for (value, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        for factor in ["lora_A", "lora_B"] {
            let folder = model();
            let tensor = format!("{Q}.{factor}.weight");
            poke(&folder.join(ADAPTER), &tensor, 50, value);
            let place = if factor == "lora_A" { "[1, 2]" } else { "[6, 2]" };
            refused(&folder, &[], 2, &["adapter_model.safetensors", &tensor, word, place]);
        }
    }
}

#[test]
fn nan_in_a_magnitude() {
    let folder = model();
    change(&folder.join(ADAPTER), |tensors| {
        for layer in 0..3 {
            let name = format!("base_model.model.model.layers.{layer}.self_attn.q_proj.lora_magnitude_vector");
            tensors.push(f32s(&name, &[40], |i| if i == 7 && layer == 1 { f32::NAN } else { 1.0 }));
        }
    });
    std::fs::write(folder.join("adapter/adapter_config.json"), r#"{"peft_type": "LORA", "r": 8, "use_dora": true}"#)
        .unwrap();
    refused(&folder, &[], 2, &[&format!("{Q}.lora_magnitude_vector"), "NaN", "[7]"]);
}

#[test]
fn nan_in_the_base() {
    let folder = model();
    change(&folder.join(BASE), |tensors| tensors[2].3[100..102].copy_from_slice(&0x7fc0_u16.to_le_bytes()));
    refused(&folder, &[], 2, &["model.layers.2.self_attn.q_proj.weight", "the base itself", "NaN", "[1, 2]"]);
}

#[test]
fn overflow_in_the_output_type() {
    let folder = model();
    poke(&folder.join(ADAPTER), &format!("{Q}.lora_B.weight"), 80, 1e7);
    refused(&folder, &["--to", "f16"], 2, &["model.layers.1.self_attn.q_proj.weight", "overflows in f16", "--to bf16"]);
}

#[test]
fn overflow_in_the_sum() {
    let folder = model();
    change(&folder.join(ADAPTER), |tensors| {
        for (name, _, _, bytes) in tensors.iter_mut().filter(|(name, ..)| name.contains("layers.1")) {
            let huge: f32 = if name.contains("lora_A") { 1e30 } else { 1e20 };
            bytes[..4].copy_from_slice(&huge.to_le_bytes());
        }
    });
    refused(&folder, &[], 2, &["model.layers.1.self_attn.q_proj.weight", "inf at [0, 0]", "delta overflows"]);
}

#[test]
fn values_too_large_to_measure() {
    let folder = model();
    poke(&folder.join(ADAPTER), &format!("{Q}.lora_A.weight"), 0, 1e11);
    poke(&folder.join(ADAPTER), &format!("{Q}.lora_B.weight"), 0, 1e11);
    refused(&folder, &[], 2, &["q_proj.weight", "their squares overflow", "training diverged"]);
}

#[test]
fn nan_in_a_scale() {
    let folder = Folder::new();
    demo(folder.path());
    std::fs::rename(folder.join("base-nf4"), folder.join("base")).unwrap();
    change(&folder.join(BASE), |tensors| {
        let scale =
            tensors.iter_mut().find(|(name, ..)| name == "model.layers.1.mlp.up_proj.weight.nested_absmax").unwrap();
        scale.3[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    });
    refused(&folder, &["--rounding", "nearest"], 2, &["model.layers.1.mlp.up_proj.weight", "the base itself", "NaN"]);
    refused(&folder, &[], 2, &["model.layers.1.mlp.up_proj.weight", "the base itself", "NaN"]);
}
