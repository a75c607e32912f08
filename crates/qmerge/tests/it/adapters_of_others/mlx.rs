//! Adapters of MLX, against what MLX fuses.

use super::*;

#[test]
fn mlx_adapters_are_merged_as_mlx_fuses_them() {
    // mlx-lm rounds the delta, and where the base is bf16 the sum too.
    for (case, tolerance) in [
        ("lora", 1e-6),
        ("lora-4bit", 1.0 / 128.0),
        ("embedding", 1e-6),
        ("dora", 2e-6),
        ("full", 0.0),
        ("experts", 1e-6),
        ("experts-4bit", 1e-6),
    ] {
        let folder = data("mlx").join(case);
        let want = floats(&folder.join("fused.safetensors"));
        let before = floats(&folder.join("base/model.safetensors"));
        for adapter in ["adapter", "adapter/adapters.safetensors"] {
            let got = merged(&folder.join("base"), &folder.join(adapter), 1.0).unwrap();
            agrees(&got, &want, tolerance, case);
            for (name, values) in before.iter().filter(|(name, _)| !want.contains_key(*name)) {
                assert!(got.get(name).is_none_or(|got| got == values), "{case}: {name} changed");
            }
        }
    }
}

#[test]
fn half_of_an_mlx_adapter_is_half_of_its_change() {
    let folder = data("mlx/lora");
    let base = floats(&folder.join("base/model.safetensors"));
    let mut want = floats(&folder.join("fused.safetensors"));
    for (name, (_, values)) in &mut want {
        values.iter_mut().zip(&base[name].1).for_each(|(new, old)| *new = (*new + old) / 2.0);
    }
    agrees(&merged(&folder.join("base"), &folder.join("adapter"), 0.5).unwrap(), &want, 1e-6, "half");
    let full = data("mlx/full");
    let error = merged(&full.join("base"), &full.join("adapter"), 0.5).unwrap_err().to_string();
    assert!(error.contains("the weight 0.5 has no meaning"), "{error}");
}

/// The hub's checkpoint of a mixture has a tensor per expert where MLX has a stack.
#[test]
fn an_mlx_adapter_of_experts_goes_onto_single_experts() {
    let scratch = Scratch::new("single");
    let folder = data("mlx/experts");
    let single = |tensors: &Values| -> Values {
        let mut found = Values::new();
        for (name, (shape, values)) in tensors {
            let Some((before, after)) = name.split_once(".switch_mlp.") else {
                found.insert(name.clone(), (shape.clone(), values.clone()));
                continue;
            };
            for (expert, values) in values.chunks_exact(shape[1] * shape[2]).enumerate() {
                found.insert(format!("{before}.experts.{expert}.{after}"), (shape[1..].to_vec(), values.to_vec()));
            }
        }
        found
    };
    write(&scratch.join("base/model.safetensors"), &single(&floats(&folder.join("base/model.safetensors"))));
    std::fs::copy(folder.join("base/config.json"), scratch.join("base/config.json")).unwrap();
    let got = merged(&scratch.join("base"), &folder.join("adapter"), 1.0).unwrap();
    agrees(&got, &single(&floats(&folder.join("fused.safetensors"))), 1e-6, "single experts");
}

#[test]
fn an_inspection_says_who_wrote_it() {
    let found = inspected(&data("mlx/lora/adapter"));
    assert_eq!((found.writer.as_str(), found.peft_type.as_str(), found.r), ("MLX", "LORA", Some(4)));
    assert_eq!(found.base_model.as_deref(), Some("someone/tiny"));
    assert!((found.lora_alpha.unwrap() - 4.0 * 3.7).abs() < 1e-6);
    assert_eq!(found.targets.iter().map(|target| target.count).sum::<usize>(), 14);
    assert!(found.targets.iter().any(|target| target.module == "q_proj" && target.shapes == [[4, 32]]));
    let found = inspected(&data("mlx/dora/adapter/adapters.safetensors"));
    assert_eq!((found.writer.as_str(), found.variants.as_slice()), ("MLX", &["dora".to_owned()][..]));
    let found = inspected(&data("mlx/full/adapter"));
    assert_eq!((found.peft_type.as_str(), found.r, found.tensors), ("FULL", None, 9));
}

#[test]
fn mlx_adapters_that_are_wrong_are_named() {
    const A: &str = "model.layers.0.mlp.down_proj.lora_a";
    let base = data("mlx/lora/base");
    let refused_after = |words: &[&str], change: &dyn Fn(&mut Values, &mut Value)| {
        refused(&base, &changed("mlx/lora", change).0, words);
    };
    refused_after(&["adapter_config.json", "the scale is unknown"], &|_, config| *config = Value::Null);
    refused_after(&["adapter_config.json", "no `scale`"], &|_, config| config["lora_parameters"] = json!({"rank": 4}));
    refused_after(&["adapter_config.json", "no `lora_parameters`"], &|_, config| {
        *config = json!({"peft_type": "LORA"})
    });
    refused_after(&["`fine_tune_type` is \"ia3\""], &|_, config| config["fine_tune_type"] = json!("ia3"));
    refused_after(&["both `scale` and `alpha`", "early"], &|_, config| config["lora_parameters"]["alpha"] = json!(16));
    refused_after(&["use_dora", "no magnitude"], &|_, config| config["fine_tune_type"] = json!("dora"));
    refused_after(&[A, "partner", "missing"], &|tensors, _| {
        tensors.remove("model.layers.0.mlp.down_proj.lora_b");
    });
    refused_after(&["the other factor of `model.layers.0.mlp.down_proj`"], &|tensors, _| {
        tensors.insert(A.into(), (vec![64, 5], vec![0.0; 320]));
    });
    refused_after(&["no rank"], &|tensors, _| {
        tensors.retain(|name, _| name.contains("layers.0.mlp.down_proj"));
        tensors.insert(A.into(), (vec![64, 0], vec![]));
        tensors.insert(A.replace("_a", "_b"), (vec![0, 32], vec![]));
    });
    refused_after(&[A, "expected a matrix"], &|tensors, _| {
        tensors.get_mut(A).unwrap().0 = vec![256];
    });
    refused_after(&["down_proj", "[32, 32]"], &|tensors, _| {
        tensors.insert(A.into(), (vec![32, 4], vec![0.5; 128]));
    });
    refused_after(&[A, "NaN"], &|tensors, _| tensors.get_mut(A).unwrap().1[3] = f32::NAN);
    refused_after(&["model.layers.7.mlp", "matches nothing"], &|tensors, _| {
        for end in ["_a", "_b"] {
            let name = A.replace("_a", end);
            let tensor = tensors[&name].clone();
            tensors.insert(name.replace("layers.0", "layers.7"), tensor);
        }
    });
    refused_after(&["model.extra.weight", "matches nothing"], &|tensors, _| {
        tensors.insert("model.extra.weight".into(), (vec![2], vec![1.0; 2]));
    });
    // A DoRA's magnitudes of an embedding are of another kind.
    let embedding = changed("mlx/embedding", |_, config| config["fine_tune_type"] = json!("dora"));
    refused(&data("mlx/embedding/base"), &embedding.0, &["embed_tokens", "DoRA of an embedding"]);
}
