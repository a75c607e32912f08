//! Which module of the base a path means.

use super::*;

#[test]
fn a_path_that_ends_alike_is_another_module() {
    for (base, module) in [
        ("model.", format!("mtp.{Q}")),
        ("model.", format!("model.mtp.{Q}")),
        ("model.", format!("model.vision_tower.vision_model.encoder.{Q}")),
        ("model.", format!("vision_tower.{Q}")),
        ("model.", format!("model.visual.{Q}")),
        ("model.", format!("talker.model.{Q}")),
        ("model.", format!("encoder.{Q}")),
        ("model.decoder.", format!("model.{Q}")),
        ("text_model.encoder.", format!("encoder.{Q}")),
        ("text_model.encoder.", format!("vision_model.encoder.{Q}")),
    ] {
        let case = Case::new(llama(base), config("llama", json!({}))).adapter(&pair(&module, WIDTH, WIDTH), json!({}));
        let error = case.error();
        assert!(error.contains("matches nothing") && error.contains(&module), "{base} {module}: {error}");
    }
}

#[test]
fn wrappers_of_a_language_model_come_and_go() {
    let prefixes = ["model.", "", "language_model.model.", "model.language_model.", "model.text_model.", "llm.model."];
    for base in prefixes {
        for adapter in prefixes {
            let tensors = pair(&format!("{adapter}{Q}"), WIDTH, WIDTH);
            let case = Case::new(llama(base), config("llama", json!({}))).adapter(&tensors, json!({}));
            let merged = case.merge();
            let name = format!("{base}{Q}.weight");
            let want = with_delta(&case.base(&name), &tensors, WIDTH, false);
            assert!(close(&merged.get(&name), &want), "{base} {adapter}");
            // One module, one name: what was merely looked up on the way is not counted.
            let renames = merged.report.warnings.iter().filter(|text| text.starts_with("1 adapter name was")).count();
            assert_eq!(renames, usize::from(base != adapter), "{:?}", merged.report.warnings);
        }
    }
}

/// What was trained whole of a layer that is some rows of a tensor takes the place of those rows.
#[test]
fn biases_of_a_part_of_a_tensor_are_its_rows() {
    let disk = |end: &str| format!("encoder.layer.0.attention.qkv_proj.{end}");
    let base = vec![f32s(&disk("weight"), &[3 * WIDTH, WIDTH]), f32s(&disk("bias"), &[3 * WIDTH])];
    let memory = |leaf: &str| format!("base_model.model.layers.0.self_attn.{leaf}");
    let keys = f32s(&memory("k_proj.base_layer.bias"), &[WIDTH]);
    let values = f32s(&memory("v_proj.weight"), &[WIDTH, WIDTH]);
    let factors = pair("layers.0.self_attn.k_proj", WIDTH, WIDTH);
    let tensors = [&factors[..], &[keys.clone(), values.clone()]].concat();
    let fields = json!({"bias": "all", "modules_to_save": ["v_proj"]});
    let case = Case::new(base.clone(), config("gte", json!({}))).adapter(&tensors, fields.clone());
    let merged = case.merge();
    let mut want = case.base(&disk("bias"));
    want[WIDTH..2 * WIDTH].copy_from_slice(&floats(&keys.3));
    assert_eq!(merged.get(&disk("bias")), want);
    let mut want = case.base(&disk("weight"));
    let rows = WIDTH * WIDTH;
    let k = with_delta(&want[rows..2 * rows], &factors, WIDTH, false);
    want[rows..2 * rows].copy_from_slice(&k);
    want[2 * rows..].copy_from_slice(&floats(&values.3));
    assert!(close(&merged.get(&disk("weight")), &want));
    let wide = [&factors[..], &[f32s(&keys.0, &[WIDTH + 1])]].concat();
    let error = Case::new(base, config("gte", json!({}))).adapter(&wide, fields).error();
    assert!(error.contains(&keys.0) && error.contains("[9]") && error.contains("[8]"), "{error}");
}

/// Rows that transformers changes places of as it loads a tower are not those of the file: an adapter on them is refused by its name.
#[test]
fn rows_that_a_loader_moves_are_no_layer_s_own() {
    for (model_type, tower, disk, memory) in [
        (
            "kimi_k25",
            "kimi_k25_vision",
            "vision_tower.encoder.blocks.0.wqkv",
            "model.vision_tower.layers.0.attn.q_proj",
        ),
        (
            "step3p7",
            "step3p5_vision",
            "vision_model.transformer.resblocks.0.attn.in_proj_weight",
            "model.vision_model.layers.0.self_attn.k_proj",
        ),
        (
            "mistral4",
            "pixtral",
            "vision_encoder.transformer.layers.0.attention.wq",
            "model.vision_tower.transformer.layers.0.attention.q_proj",
        ),
    ] {
        let disk = if disk.ends_with("weight") { disk.to_owned() } else { format!("{disk}.weight") };
        let base = [llama("model."), vec![f32s(&disk, &[3 * WIDTH, WIDTH])]].concat();
        let config = config(model_type, json!({"vision_config": {"model_type": tower, "num_attention_heads": 2}}));
        let error = Case::new(base, config).adapter(&pair(memory, WIDTH, WIDTH), json!({})).error();
        assert!(error.contains("matches nothing") && error.contains(memory), "{error}");
    }
}

#[test]
fn a_module_that_could_be_two_is_named() {
    let base = [llama("model."), llama("thinker.model.")].concat();
    let case = Case::new(base, config("x", json!({}))).adapter(&pair(Q, WIDTH, WIDTH), json!({}));
    let error = case.error();
    for word in [Q, "`model.layers", "`thinker.model.layers", "--map"] {
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn two_modules_never_end_in_one_weight() {
    let modules = [format!("model.{Q}"), format!("model.language_model.{Q}")];
    let tensors: Vec<Tensor> = modules.iter().flat_map(|module| pair(module, WIDTH, WIDTH)).collect();
    let case = Case::new(llama("model."), config("llama", json!({}))).adapter(&tensors, json!({}));
    let error = case.error();
    assert!(modules.iter().all(|module| error.contains(&format!("{module}.lora_A"))), "{error}");
    // Copies of one weight too.
    let tensors = ["model.norm.weight", "norm.weight"].map(|name| f32s(&format!("base_model.model.{name}"), &[WIDTH]));
    let base = [llama("model."), vec![f32s("model.norm.weight", &[WIDTH])]].concat();
    let error =
        Case::new(base, config("llama", json!({}))).adapter(&tensors, json!({"modules_to_save": ["norm"]})).error();
    assert!(error.contains("both mean `model.norm.weight`"), "{error}");
}

#[test]
fn a_tower_that_the_base_lacks_can_be_left_out() {
    let tensors = [
        pair(&format!("model.language_model.{Q}"), WIDTH, WIDTH),
        pair(&format!("model.vision_tower.vision_model.encoder.{Q}"), 5, 5),
    ];
    let mut case = Case::new(llama("model."), config("llama", json!({}))).adapter(&tensors.concat(), json!({}));
    assert!(case.error().contains("vision_tower"));
    case.options.allow_unused = true;
    let merged = case.merge();
    let name = format!("model.{Q}.weight");
    assert!(close(&merged.get(&name), &with_delta(&case.base(&name), &tensors[0], WIDTH, false)));
    assert_eq!((merged.report.adapters[0].merged, merged.report.adapters[0].unused), (2, 2));
}
