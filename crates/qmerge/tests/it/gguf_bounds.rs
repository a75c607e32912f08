//! Figures of a configuration that contradict each other, and those that llama.cpp alone does not take. What it does with each was tried (release b11739).

use qmerge::error::Kind;
use serde_json::{Value, json};

use crate::gguf_loads::{Tensors, changed, ones, set, warnings};

/// No program runs such a model: file, key and cause are told.
#[test]
fn figures_that_contradict_each_other_are_refused() {
    let cases: &[(&str, &str, Value, &[&str])] = &[
        ("qwen3moe", "num_experts_per_tok", json!(13), &["`num_experts_per_tok` is 13", "12 experts"]),
        ("gptoss", "num_experts_per_tok", json!(13), &["`num_experts_per_tok` is 13"]),
        ("ernie4_5moe", "moe_k", json!(13), &["`moe_k` is 13"]),
        ("llama-pieces", "num_key_value_heads", json!(3), &["`num_attention_heads` is 4", "`num_key_value_heads`"]),
        ("llama-pieces", "num_attention_heads", json!(64), &["`num_attention_heads` is 64", "`hidden_size`"]),
        ("qwen3", "head_dim", json!(63), &["63 features", "in pairs", "`head_dim`"]),
        ("qwen3", "rms_norm_eps", json!(-1e-6), &["`rms_norm_eps`", "negative"]),
        ("deepseek3", "n_group", json!(3), &["3 groups (`n_group`)"]),
        (
            "qwen2vlsees",
            "rope_scaling",
            json!({"type": "mrope", "mrope_section": [1, 1, 1]}),
            &["`mrope_section` sum up to 3", "4 pairs"],
        ),
    ];
    for (model, field, value, told) in cases {
        let folder = changed(model, set(field, value.clone()));
        let error = warnings(&folder).expect_err(model);
        let text = error.to_string();
        assert!(told.iter().all(|part| text.contains(part)), "{model} {field}: {text}");
        assert!(error.kind() == Kind::Malformed && error.hint().is_some(), "{model} {field}: {text}");
        assert!(text.contains(&*folder.to_string_lossy()) && text.contains("config.json"), "{text}");
    }
}

/// A head has as many rows as the embedding has.
#[test]
fn a_head_of_other_tokens_is_refused() {
    for rows in [3_i64, -3] {
        let folder = changed("gptneox", |config, tensors| {
            config["vocab_size"] = json!(200);
            let (table, head) = (tensors["gpt_neox.embed_in.weight"].0.clone(), "embed_out.weight");
            tensors.insert(head.into(), ones(&[(table[0] as i64 + rows) as usize, table[1]]));
        });
        let text = warnings(&folder).unwrap_err().to_string();
        assert!(text.contains("`embed_out.weight`") && text.contains("has 274"), "{text}");
    }
}

/// transformers runs such a model, or qmerge does.
#[test]
fn figures_that_llama_cpp_does_not_take_are_told_of() {
    let told = |model: &str, change: &dyn Fn(&mut Value, &mut Tensors), what: &str| {
        let said = warnings(&changed(model, change)).unwrap();
        let is_told =
            |text: &String| text.starts_with("llama.cpp does not load the file, or stops") && text.contains(what);
        assert_eq!(said.iter().filter(|text| is_told(text)).count(), 1, "{model} {what}: {said:?}");
    };
    let set = |key: &'static str, value: Value| move |config: &mut Value, _: &mut Tensors| config[key] = value.clone();
    told(
        "gpt2",
        &set("n_positions", json!(32)),
        "`position_embd.weight` has 64 rows, and the model's positions are 32",
    );
    told("deepseek3", &set("topk_group", json!(2)), "`deepseek2.expert_group_count` is 2, of which 2 serve");
    told("gptneox", &set("rotary_pct", json!(0.2)), "`gptneox.rope.dimension_count` is 3");
    let sections = |section: Value| {
        move |config: &mut Value, _: &mut Tensors| {
            let mut rope = json!({"rope_type": "default", "rope_theta": 5e6});
            rope["mrope_section"] = section.clone();
            config["text_config"]["rope_scaling"] = rope.clone();
            config["text_config"]["rope_parameters"] = rope;
        }
    };
    let of = "the numbers of `qwen3vl.rope.dimension_sections` sum up to ";
    told("qwen3vlsees", &sections(Value::Null), &format!("{of}64, and a head has 16 features"));
    told("qwen3vlsees", &sections(json!([0, 0, 0])), &format!("{of}0,"));
    let deepstack = |count: usize| {
        move |config: &mut Value, _: &mut Tensors| {
            config["vision_config"]["deepstack_visual_indexes"] = json!((0..count).collect::<Vec<_>>());
        }
    };
    told("qwen3vlsees", &deepstack(2), "`qwen3vl.n_deepstack_layers` is 2");
    told("qwen3vlmoesees", &deepstack(3), "`qwen3vlmoe.n_deepstack_layers` is 3");
    let kernel = |config: &mut Value, tensors: &mut Tensors| {
        config["conv_L_cache"] = json!(1);
        let kernels = tensors.iter_mut().filter(|(name, _)| name.ends_with("conv.conv.weight"));
        kernels.for_each(|(_, tensor)| *tensor = ones(&[tensor.0[0], 1, 1]));
    };
    told("lfm2", &kernel, "`lfm2.shortconv.l_cache` is 1");
    // What is within the bounds is not told of.
    let said = warnings(&changed("qwen3vlsees", deepstack(1))).unwrap();
    assert!(said.iter().all(|text| !text.starts_with("llama.cpp does not load")), "{said:?}");
}

/// llama.cpp takes the biases of queries, keys and values where they are there, and does without.
#[test]
fn qwen_2_without_biases_loads() {
    for bias in ["q_proj.bias", "_proj.bias"] {
        let folder = changed("qwen2", |_, tensors| tensors.retain(|name, _| !name.ends_with(bias)));
        assert_eq!(warnings(&folder).unwrap(), Vec::<String>::new(), "{bias}");
    }
}

/// The cause is told, and not a type that the tokenizer does not have.
#[test]
fn an_emptied_tokenizer_is_told_of() {
    let with = |change: &dyn Fn(&mut Value)| {
        let folder = changed("qwen3", |_, _| {});
        let path = folder.join("tokenizer.json");
        let mut document: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        change(&mut document);
        std::fs::write(&path, document.to_string()).unwrap();
        warnings(&folder)
    };
    let emptied: [&dyn Fn(&mut Value); 4] = [
        &|document| document["model"]["vocab"] = json!({}),
        &|document| document["model"]["vocab"] = json!([]),
        &|document| document["model"] = json!({}),
        &|document| *document = json!({}),
    ];
    for change in emptied {
        let error = with(change).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("tokenizer.json: `model.vocab` has no tokens") && error.hint().is_some(), "{text}");
    }
    let error = with(&|document| document["model"]["type"] = json!("Unigram")).unwrap_err();
    assert!(error.to_string().contains("the type `Unigram`"), "{error}");
    let said = with(&|document| document["model"]["merges"] = json!([])).unwrap();
    assert!(said.len() == 1 && said[0].contains("`model.merges` of tokenizer.json has no pairs"), "{said:?}");
    let said = with(&|document| {
        let vocab = document["model"]["vocab"].as_object_mut().unwrap();
        vocab.retain(|_, id| id.as_u64() < Some(5));
    });
    let said = said.unwrap();
    assert!(said.len() == 1 && said[0].starts_with("tokenizer.json has "), "{said:?}");
}
