//! Adapters of Tinker, against its cookbook's merge.

use super::*;

#[test]
fn tinker_adapters_are_merged_as_its_cookbook_merges_them() {
    let folder = data("tinker");
    let got = merged(&folder.join("base"), &folder.join("adapter"), 1.0).unwrap();
    let want = floats(&folder.join("merged.safetensors"));
    assert_eq!(want.len(), 11);
    agrees(&got, &want, 1e-6, "tinker");
    let found = inspected(&folder.join("adapter"));
    assert_eq!((found.writer.as_str(), found.r, found.lora_alpha), ("Tinker", Some(4), Some(10.0)));
    assert_eq!(found.base_model.as_deref(), Some("someone/tiny-moe"));
}

#[test]
fn tinker_adapters_that_are_wrong_are_named() {
    const W1: &str = "base_model.model.model.layers.0.mlp.experts.w1.lora_B.weight";
    let scratch = Scratch::new("wrong-tinker");
    let base = data("tinker/base");
    let tensors = floats(&data("tinker/adapter/adapter_model.safetensors"));
    let text = std::fs::read_to_string(data("tinker/adapter/adapter_config.json")).unwrap();
    let try_with = |config: &str, change: &dyn Fn(&mut Values)| {
        let mut tensors = tensors.clone();
        change(&mut tensors);
        write(&scratch.join("adapter_model.safetensors"), &tensors);
        std::fs::write(scratch.join("adapter_config.json"), config).unwrap();
    };
    for (config, words) in [
        ("{}", "no `r`"),
        (r#"{"r": 0, "lora_alpha": 1}"#, "no `r`"),
        (r#"{"r": 4, "lora_alpha": "x"}"#, "expected a number"),
    ] {
        try_with(config, &|_| ());
        refused(&base, &scratch.0, &["adapter_config.json", words]);
    }
    try_with(&text, &|tensors| {
        tensors.insert(W1.into(), (vec![2, 16, 4], vec![0.1; 128]));
    });
    refused(&base, &scratch.0, &["3 experts of rank 4"]);
    try_with(&text, &|tensors| {
        tensors.insert(W1.replace("w1", "w3"), (vec![2, 16, 4], vec![0.1; 128]));
    });
    refused(&base, &scratch.0, &["2 matrices, but the other factor has 3"]);
    try_with(&text, &|tensors| {
        tensors.insert(W1.into(), (vec![3, 16, 5], vec![0.1; 240]));
    });
    refused(&base, &scratch.0, &["the other factor"]);
    try_with(&text, &|tensors| {
        tensors.insert(W1.into(), (vec![48, 4], vec![0.1; 192]));
    });
    refused(&base, &scratch.0, &["experts.w1", "a stack of them for experts"]);
    // A projection that the experts do not have is empty.
    try_with(&text, &|tensors| {
        for end in ["A", "B"] {
            tensors.insert(W1.replace("lora_B", &format!("lora_{end}")), (vec![3, 0, 4], vec![]));
        }
    });
    assert!(merged(&base, &scratch.0, 1.0).is_ok());
}
