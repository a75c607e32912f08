//! Files that become folders again.

use super::*;

/// What the language model alone calls a weight of a model that sees; `None` for one of a tower.
fn in_language_model(name: &str) -> Option<String> {
    let towers = ["vision", "visual", "audio", "projector", "connector", "image_newline"];
    let is_tower = towers.iter().any(|part| name.contains(part));
    let name = name.replace("model.language_model.", "model.").replace("language_model.", "");
    let name = name.replace("text_model.", "");
    (!is_tower).then_some(name)
}

/// A matrix of a stack with inputs as rows as it is by itself: the gate or what stands beside it, or what leads out.
fn matrix_of_stack(name: &str, stack: &[f32], shape: &[usize], number: usize, projection: &str) -> Vec<f32> {
    let &[_, inputs, outputs] = shape else { panic!("{name}") };
    let one = &stack[number * inputs * outputs..][..inputs * outputs];
    let first = if projection == "up_proj" { outputs / 2 } else { 0 };
    let rows = if projection == "down_proj" { outputs } else { outputs / 2 };
    (first..first + rows).flat_map(|row| (0..inputs).map(move |column| one[column * outputs + row])).collect()
}

/// Into a file and back into a folder, all values are what they were, under the names that they had.
#[test]
fn a_folder_comes_back_from_the_file() {
    for model in &models() {
        let base = Path::new(MADE).join(model);
        let (file, back) = (place(&format!("back-{model}.gguf")), place(&format!("back-{model}")));
        let run = RunOptions::default();
        write(&base, &Options { export: Some(export("bf16")), ..Options::default() }, &file, &run).unwrap();
        let to = Some(formats::by_id("bf16").unwrap());
        write(&file, &Options { to, ..Options::default() }, &back, &run).unwrap();
        let (before, after) = (Checkpoint::open(&base).unwrap(), Checkpoint::open(&back).unwrap());
        let (weights, found) = (formats::inventory(&before).unwrap(), formats::inventory(&after).unwrap());
        for claim in &weights.weights {
            let Some(name) = &in_language_model(claim.weight.name()) else { continue };
            let Some(own) = found.weights.iter().find(|own| own.weight.name() == name) else {
                if model == "qwen3vlmoesees" {
                    // Stacked there, and one by one in Qwen 3's own mixtures.
                    let (module, last) = name.rsplit_once('.').unwrap();
                    let (mut stack, shape) = (Vec::new(), claim.weight.shape());
                    Reader::new(&before, claim).unwrap().rows(&(0..claim.weight.geometry().rows), &mut stack).unwrap();
                    for number in 0..shape[0] {
                        for projection in
                            if last == "down_proj" { &["down_proj"][..] } else { &["gate_proj", "up_proj"] }
                        {
                            let own = format!("{module}.{number}.{projection}.weight");
                            let own = found.weights.iter().find(|claim| claim.weight.name() == own).expect(&own);
                            let mut values = Vec::new();
                            let rows = 0..own.weight.geometry().rows;
                            Reader::new(&after, own).unwrap().rows(&rows, &mut values).unwrap();
                            assert_eq!(values, matrix_of_stack(name, &stack, shape, number, projection), "{name}");
                        }
                    }
                    continue;
                }
                assert_eq!((model.as_str(), name.as_str()), ("gemma", "lm_head.weight"), "missing");
                continue;
            };
            let rows = 0..claim.weight.geometry().rows;
            let (mut one, mut other) = (Vec::new(), Vec::new());
            Reader::new(&before, claim).unwrap().rows(&rows, &mut one).unwrap();
            let rows = 0..own.weight.geometry().rows;
            Reader::new(&after, own).unwrap().rows(&rows, &mut other).unwrap();
            if model == "gemma3npadded" && name.ends_with("embed_tokens_per_layer.weight") {
                // Zeros stand for the tokens that it has none for.
                assert!(other.len() > one.len() && other.drain(one.len()..).all(|x| x == 0.0));
            }
            assert_eq!(one, other, "{model}: {name}");
        }
        let config = after.config.as_ref().unwrap();
        let spec = |checkpoint: &Checkpoint| qmerge::arch::spec_of(checkpoint.config.as_ref().unwrap()).unwrap();
        let layers = |checkpoint: &Checkpoint| format!("{:?}", spec(checkpoint).layers);
        assert_eq!(layers(&before), layers(&after), "{model}");
        let head = |checkpoint: &Checkpoint| {
            let config = qmerge::arch::language_model(checkpoint.config.as_ref().unwrap()).unwrap();
            config.json.get("head_dim").cloned()
        };
        // Classes of transformers that have a width of heads take it where nothing is said.
        assert!(head(&before).is_none_or(|head_dim| head(&after) == Some(head_dim)), "{model}: {:?}", head(&after));
        let class = config.json["architectures"][0].as_str().unwrap();
        assert!(class.ends_with("ForCausalLM") || class.ends_with("LMHeadModel"), "{class}");
        assert!(back.join("tokenizer.json").is_file() && back.join("tokenizer_config.json").is_file(), "{model}");
        std::fs::remove_dir_all(&back).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::remove_file(qmerge::write::path_beside(&file)).unwrap();
    }
}

/// What a class of transformers takes where nothing is said is no figure of the model: a folder out of a file says it.
#[test]
fn what_is_left_out_means_what_it_meant() {
    type Json = serde_json::Value;
    let back = |model: &str, change: &dyn Fn(&mut serde_json::Map<String, Json>)| -> Json {
        let base = changed(model, "config.json", |text| {
            let mut config: Json = serde_json::from_str(&text).unwrap();
            change(config.as_object_mut().unwrap());
            config.to_string()
        });
        let [file, out] = ["gguf", "folder"].map(|end| base.with_extension(end));
        let run = RunOptions::default();
        write(&base, &Options { export: Some(export("f32")), ..Options::default() }, &file, &run).unwrap();
        let to = Some(formats::by_id("f32").unwrap());
        write(&file, &Options { to, ..Options::default() }, &out, &run).unwrap();
        let config = std::fs::read_to_string(out.join("config.json")).unwrap();
        std::fs::remove_dir_all(&base).unwrap();
        std::fs::remove_dir_all(&out).unwrap();
        std::fs::remove_file(&file).unwrap();
        std::fs::remove_file(qmerge::write::path_beside(&file)).unwrap();
        serde_json::from_str(&config).unwrap()
    };
    // Saved by transformers, DeepSeek 3's configuration has no word for its only way to score experts.
    let found = back("deepseek3", &|config| drop(config.remove("scoring_func")));
    assert_eq!((&found["model_type"], &found["scoring_func"]), (&json!("deepseek_v3"), &json!("sigmoid")));
    // gpt-oss' class stretches the rope.
    let found = back("gptoss", &|config| drop(config.remove("rope_scaling")));
    assert_eq!(found["rope_parameters"], json!({ "rope_type": "default", "rope_theta": 150_000.0 }));
    // Classes have a token to fill up with that lies beyond a small vocabulary, where the file has none.
    let found = back("llama-pieces", &|_| {});
    assert_eq!(found.get("pad_token_id"), Some(&Json::Null));
}
