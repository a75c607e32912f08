//! The list of layers that a loader is to keep plain.

use super::*;

/// A folder with a checkpoint of zeros in BF16, but for int8 weights that `coded` names.
fn zeros(config: &str, names: &[&str], coded: &[&str]) -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let folder = std::env::temp_dir().join(format!("qmerge-zeros-{}-{number}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let bytes = vec![0_u8; 8192];
    let plain = names.iter().map(|name| (format!("{name}.weight"), Dtype::BF16, vec![64, 64], 8192));
    let packed = coded.iter().flat_map(|name| {
        let codes = (format!("{name}.weight"), Dtype::I8, vec![64, 64], 4096);
        [codes, (format!("{name}.SCB"), Dtype::F32, vec![64], 256)]
    });
    let views = plain
        .chain(packed)
        .map(|(name, dtype, shape, size)| (name, TensorView::new(dtype, shape, &bytes[..size]).unwrap()));
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    std::fs::write(folder.join("config.json"), config).unwrap();
    folder
}

/// What a conversion of such a folder stores as codes, whatever stays as it is, and the list for loaders.
fn converted(folder: &Path, format: &str) -> (BTreeSet<String>, Value, Vec<String>) {
    let plan = plan(folder, format).unwrap();
    std::fs::remove_dir_all(folder).unwrap();
    let coded = plan.steps.iter().filter(|step| match &step.action {
        Action::Recode(recode) => !recode.to.is_plain(),
        Action::Copy { entry } => !entry.dtype.is_plain_float(),
        Action::Constant(_) => false,
    });
    let coded = coded.filter_map(|step| step.name.strip_suffix(".weight")).map(str::to_owned).collect();
    let quantization = plan.config.map(|config| config.json["quantization_config"].clone()).unwrap_or_default();
    (coded, quantization["llm_int8_skip_modules"].clone(), plan.warnings)
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// An entry of the list is taken for the end of a path too, so it may reach a layer of another name: that one stays plain with it.
#[test]
fn what_an_entry_reaches_stays_plain() {
    let folder = zeros(r#"{"model_type": "llama"}"#, &["layers.0.fc_in", "layers.0.k", "layers.0.fc1"], &[]);
    assert_eq!(converted(&folder, "int8").0, set(&["layers.0.fc_in", "layers.0.k", "layers.0.fc1"]));
    // A matrix `in`, of which nothing is known, is named; so is what its entry is the end of.
    let folder = zeros(r#"{"model_type": "llama"}"#, &["in", "layers.0.fc_in", "layers.0.k", "layers.0.fc1"], &[]);
    let (coded, skipped, _) = converted(&folder, "int8");
    assert_eq!(coded, set(&["layers.0.k", "layers.0.fc1"]));
    assert_eq!(skipped, serde_json::json!(["in", "layers.0.fc_in", "lm_head"]));
}

/// Where what is reached is stored as codes already, the entry is bound to its own module.
#[test]
fn an_entry_does_not_reach_what_is_quantized_already() {
    let folder = zeros(r#"{"model_type": "distilbert"}"#, &["classifier"], &["pre_classifier", "layer.0.lin1"]);
    let (coded, skipped, _) = converted(&folder, "nf4");
    assert_eq!(coded, set(&["pre_classifier", "layer.0.lin1"]));
    let skipped: Vec<String> = serde_json::from_value(skipped).unwrap();
    assert_eq!(skipped, ["^classifier$", "lm_head"]);
    assert!(converts("pre_classifier", &skipped) && !converts("classifier", &skipped));
}

/// A base in bitsandbytes' formats may keep layers plain on purpose: they stay so, and are named in full.
#[test]
fn layers_that_the_base_keeps_plain_stay_plain() {
    let config = |list: &str| {
        format!(
            r#"{{"model_type": "llama", "quantization_config": {{"quant_method": "bitsandbytes", "load_in_8bit": true, "llm_int8_skip_modules": {list}}}}}"#
        )
    };
    let plain = ["model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "lm_head"];
    let coded = ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"];
    for (list, kept) in [
        (r#"["lm_head", "mlp"]"#, &plain[..]),
        (r#"["lm_head", "model.layers.1"]"#, &plain[1..]),
        (r#"["lm_head", "up_proj"]"#, &plain[..]),
    ] {
        let (now, skipped, _) = converted(&zeros(&config(list), &plain, &coded), "nf4");
        let want: BTreeSet<&str> = coded.iter().chain(&plain).copied().filter(|name| !kept.contains(name)).collect();
        assert_eq!(now, want.into_iter().map(str::to_owned).collect(), "{list}");
        let skipped: Vec<String> = serde_json::from_value(skipped).unwrap();
        assert_eq!(skipped.into_iter().collect::<BTreeSet<_>>(), set(kept), "{list}");
    }
}

/// What is copied as codes counts as codes, whatever its type.
#[test]
fn a_head_that_stays_quantized_is_not_named() {
    let folder = zeros(
        r#"{"model_type": "llama", "tie_word_embeddings": false}"#,
        &["model.layers.0.mlp.up_proj"],
        &["lm_head"],
    );
    let (coded, skipped, _) = converted(&folder, "int8");
    assert_eq!(coded, set(&["lm_head", "model.layers.0.mlp.up_proj"]));
    assert_eq!(skipped, serde_json::json!([]));
}

#[test]
fn a_family_that_was_not_looked_at_is_said_to_be_so() {
    let names = ["model.layers.0.self_attn.q_proj", "model.layers.0.mystery", "lm_head"];
    let (coded, skipped, warnings) = converted(&zeros(r#"{"model_type": "unheard_of"}"#, &names, &[]), "nf4");
    assert_eq!(coded, set(&["model.layers.0.self_attn.q_proj"]));
    assert_eq!(skipped, serde_json::json!(["lm_head", "model.layers.0.mystery"]));
    let text = warnings.join("\n");
    assert!(text.contains("`unheard_of`") && text.contains("`model.layers.0.mystery`"), "{text}");
    let (.., warnings) = converted(&zeros(r#"{"model_type": "llama"}"#, &[names[0], names[2]], &[]), "nf4");
    assert!(warnings.is_empty(), "{warnings:?}");
}

/// A head that is stored as codes is no layer that the loader may keep plain, as it does by default.
#[test]
fn a_quantized_head_is_quantized_for_the_loader() {
    let folder = std::env::temp_dir().join(format!("qmerge-packed-head-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let plan = |to: &str| {
        let inputs = Inputs::new(Checkpoint::open(&folder).unwrap(), Vec::new()).unwrap();
        Plan::new(&inputs, &Options { to: Some(formats::by_id(to).unwrap()), ..Options::default() }).unwrap()
    };
    let skipped =
        |plan: &Plan| plan.config.as_ref().unwrap().json["quantization_config"]["llm_int8_skip_modules"].clone();
    let write = |head: &[Tensor]| {
        let layer = ("model.layers.0.mlp.up_proj.weight".to_owned(), Dtype::BF16, vec![64, 64], vec![0; 8192]);
        let config = r#"{"model_type": "llama", "tie_word_embeddings": false}"#;
        written::model(&folder, config, head.iter().chain([&layer]));
    };
    write(&[("lm_head.weight".to_owned(), Dtype::BF16, vec![64, 64], vec![0; 8192])]);
    assert_eq!(skipped(&plan("nf4")), Value::Null, "the loader's default");
    write(&[
        ("lm_head.weight".to_owned(), Dtype::I8, vec![64, 64], vec![1; 4096]),
        f32s("lm_head.SCB", &[64], [1.0; 64]),
    ]);
    let plan = plan("nf4");
    assert!(plan.steps.iter().any(|step| step.name == "lm_head.weight" && matches!(&step.action, Action::Recode(_))));
    assert_eq!(skipped(&plan), serde_json::json!([]));
    std::fs::remove_dir_all(&folder).unwrap();
}
