//! Embeddings that are tied: what parts them, and what changes both ends.

use super::*;

/// Family, embedding, head: rows of transformers' `_tied_weights_keys`.
const FAMILIES: &[(&str, &str, &str)] = &[
    ("llama", "model.embed_tokens", "lm_head"),
    ("gpt2", "transformer.wte", "lm_head"),
    ("mamba", "backbone.embeddings", "lm_head"),
    ("gpt_neox", "gpt_neox.embed_in", "embed_out"),
    ("opt", "model.decoder.embed_tokens", "lm_head"),
    ("whisper", "model.decoder.embed_tokens", "proj_out"),
    ("bert", "bert.embeddings.word_embeddings", "cls.predictions.decoder"),
    ("roberta", "roberta.embeddings.word_embeddings", "lm_head.decoder"),
    ("esm", "esm.embeddings.word_embeddings", "lm_head.decoder"),
    ("modernbert", "model.embeddings.tok_embeddings", "decoder"),
    ("smolvlm", "model.text_model.embed_tokens", "lm_head"),
    ("llava", "language_model.model.embed_tokens", "language_model.lm_head"),
    ("bloom", "transformer.word_embeddings", "lm_head"),
];

/// An adapter on one end parts the two, whether the head is stored or not, under the names of each family.
#[test]
fn an_adapter_on_one_end_parts_tied_embeddings() {
    for (model_type, embed, head) in FAMILIES {
        let [embed_weight, head_weight] = [embed, head].map(|module| format!("{module}.weight"));
        let table = f32s(&embed_weight, &[TOKENS, WIDTH]);
        for stored in [false, true] {
            let mut base = vec![table.clone()];
            base.extend(stored.then(|| renamed(&table, &head_weight)));
            let tied = config(model_type, json!({"tie_word_embeddings": true}));
            let check = |tensors: [Tensor; 2], is_embedding: bool| {
                let case = Case::new(base.clone(), tied.clone()).adapter(&tensors, json!({}));
                let merged = case.merge();
                let before = case.base(&embed_weight);
                let after = with_delta(&before, &tensors, WIDTH, is_embedding);
                let (edited, kept) =
                    if is_embedding { (&embed_weight, &head_weight) } else { (&head_weight, &embed_weight) };
                assert!(close(&merged.get(edited), &after), "{model_type} {edited}");
                assert_eq!(merged.get(kept), before, "{model_type} {kept}");
                assert_eq!(merged.config["tie_word_embeddings"], false, "{model_type}");
                assert!(merged.report.warnings.iter().any(|text| text.contains(&head_weight)), "{model_type}");
            };
            check(embedding_pair(embed), true);
            check(pair(head, TOKENS, WIDTH), false);
        }
        // Trained whole.
        for (own, other) in [(embed, &head_weight), (head, &embed_weight)] {
            let whole = f32s(&format!("base_model.model.{own}.weight"), &[TOKENS, WIDTH]);
            let case = Case::new(vec![table.clone()], config(model_type, json!({"tie_word_embeddings": true})))
                .adapter(std::slice::from_ref(&whole), json!({"modules_to_save": [own]}));
            let merged = case.merge();
            assert_eq!(merged.get(&format!("{own}.weight")), floats(&whole.3), "{model_type}");
            assert_eq!(merged.get(other), case.base(&embed_weight), "{model_type}");
            assert_eq!(merged.config["tie_word_embeddings"], false);
        }
    }
}

/// BERT ties its head's bias by the same flag: parted, the bias is stored under the head's name too, as the adapter leaves it.
#[test]
fn the_bias_of_a_parted_head_comes_along() {
    let base =
        vec![f32s("bert.embeddings.word_embeddings.weight", &[TOKENS, WIDTH]), f32s("cls.predictions.bias", &[TOKENS])];
    let tensors = embedding_pair("bert.embeddings.word_embeddings");
    let case = Case::new(base.clone(), config("bert", json!({}))).adapter(&tensors, json!({}));
    let merged = case.merge();
    assert_eq!(merged.get("cls.predictions.decoder.bias"), case.base("cls.predictions.bias"));
    let trained = f32s("base_model.model.cls.predictions.bias", &[TOKENS]);
    let tensors = [&tensors[..], std::slice::from_ref(&trained)].concat();
    let merged = Case::new(base, config("bert", json!({}))).adapter(&tensors, json!({"bias": "all"})).merge();
    for name in ["cls.predictions.bias", "cls.predictions.decoder.bias"] {
        assert_eq!(merged.get(name), floats(&trained.3), "{name}");
    }
}

/// Trained tokens mean both ends: every stored copy gets the rows, and so does one that is stored from now on.
#[test]
fn trained_tokens_change_both_ends_of_a_tie() {
    let table = f32s("model.embed_tokens.weight", &[TOKENS, WIDTH]);
    let name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta";
    let rows = f32s(name, &[2, WIDTH]);
    let want = |case: &Case| {
        let mut want = case.base("model.embed_tokens.weight");
        for (row, at) in floats(&rows.3).chunks(WIDTH).zip([3, 5]) {
            want[at * WIDTH..(at + 1) * WIDTH].copy_from_slice(row);
        }
        want
    };
    let indices = json!({"trainable_token_indices": {"embed_tokens": [3, 5]}});
    let both = vec![table.clone(), renamed(&table, "lm_head.weight")];
    let case = Case::new(both, config("llama", json!({"tie_word_embeddings": true})))
        .adapter(std::slice::from_ref(&rows), indices.clone());
    let merged = case.merge();
    assert_eq!(merged.get("model.embed_tokens.weight"), want(&case));
    assert_eq!(merged.get("lm_head.weight"), want(&case));
    assert_eq!(merged.config["tie_word_embeddings"], true);
    // With a LoRA on the head, which parts it.
    let head = pair("lm_head", TOKENS, WIDTH);
    let case = Case::new(vec![table], config("llama", json!({"tie_word_embeddings": true})))
        .adapter(&[std::slice::from_ref(&rows), &head[..]].concat(), indices);
    let merged = case.merge();
    assert_eq!(merged.get("model.embed_tokens.weight"), want(&case));
    assert!(close(&merged.get("lm_head.weight"), &with_delta(&want(&case), &head, WIDTH, false)));
    assert_eq!(merged.config["tie_word_embeddings"], false);
}

/// An adapter that was trained tied changes both ends alike; a method that draws rounds each copy on its own, and then the flag is false.
#[test]
fn the_flag_says_whether_stored_copies_are_equal() {
    let table = f32s("model.embed_tokens.weight", &[TOKENS, WIDTH]);
    let [a, b] = embedding_pair("model.embed_tokens");
    let turned = |tensor: &Tensor, name: &str| {
        let (rows, cols, values) = (tensor.2[0], tensor.2[1], floats(&tensor.3));
        let bytes = (0..rows * cols).flat_map(|i| values[i % rows * cols + i / rows].to_le_bytes()).collect();
        (format!("base_model.model.lm_head.lora_{name}.weight"), Dtype::F32, vec![cols, rows], bytes)
    };
    let head = [turned(&b, "A"), turned(&a, "B")];
    let mut case = Case::new(
        vec![table.clone(), renamed(&table, "lm_head.weight")],
        config("llama", json!({"tie_word_embeddings": true})),
    )
    .adapter(
        &[&[a, b][..], &head[..]].concat(),
        json!({"ensure_weight_tying": true, "target_modules": ["embed_tokens"]}),
    );
    let merged = case.merge();
    assert_eq!(merged.get("lm_head.weight"), merged.get("model.embed_tokens.weight"));
    assert!(merged.get("lm_head.weight") != case.base("lm_head.weight"));
    assert_eq!(merged.config["tie_word_embeddings"], true);
    case.options.rounding = qmerge::plan::Method::Named(qmerge::round::by_id("stochastic").unwrap());
    assert_eq!(case.merge().config["tie_word_embeddings"], false);
}

/// The flag is true and both are stored, but differ: transformers 5 takes them for two tensors, and so does the merge.
#[test]
fn a_stored_head_that_differs_is_a_tensor_of_its_own() {
    let base = vec![f32s("model.embed_tokens.weight", &[TOKENS, WIDTH]), f32s("lm_head.weight", &[TOKENS, WIDTH])];
    let tensors = embedding_pair("model.embed_tokens");
    let case = Case::new(base, config("llama", json!({"tie_word_embeddings": true}))).adapter(&tensors, json!({}));
    let merged = case.merge();
    assert_eq!(merged.get("lm_head.weight"), case.base("lm_head.weight"));
    assert_eq!(merged.config["tie_word_embeddings"], false);
    assert!(merged.report.warnings.iter().any(|text| text.contains("differ")), "{:?}", merged.report.warnings);
}

/// BART has four names for one tensor; parted, each is stored.
#[test]
fn all_names_of_a_shared_embedding_are_stored_once_they_part() {
    let table = f32s("model.shared.weight", &[TOKENS, WIDTH]);
    let tensors = embedding_pair("model.decoder.embed_tokens");
    let case = Case::new(vec![table], config("bart", json!({}))).adapter(&tensors, json!({}));
    let merged = case.merge();
    let before = case.base("model.shared.weight");
    for name in ["model.shared.weight", "model.encoder.embed_tokens.weight", "lm_head.weight"] {
        assert_eq!(merged.get(name), before, "{name}");
    }
    let want = with_delta(&before, &tensors, WIDTH, true);
    assert!(close(&merged.get("model.decoder.embed_tokens.weight"), &want));
    assert_eq!(merged.config["tie_word_embeddings"], false);
    // T5's flag scales the output too, so no flag describes the parted model.
    let case = Case::new(vec![f32s("shared.weight", &[TOKENS, WIDTH])], config("t5", json!({})))
        .adapter(&embedding_pair("shared"), json!({}));
    assert!(case.error().contains("scaled"), "{}", case.error());
}

#[test]
fn an_embedding_whose_head_is_unknown_is_not_edited() {
    let base = vec![f32s("trunk.table.weight", &[TOKENS, WIDTH])];
    for (more, refused) in [
        (json!({}), true),
        (json!({"tie_word_embeddings": true}), true),
        (json!({"tie_word_embeddings": false}), false),
        (json!({"architectures": ["NewModel"]}), false),
    ] {
        let case = Case::new(base.clone(), config("unheard_of", more.clone()))
            .adapter(&embedding_pair("trunk.table"), json!({}));
        match case.plan() {
            Ok(_) => assert!(!refused, "{more}"),
            Err(error) => assert!(refused && error.to_string().contains("unheard_of"), "{more}: {error}"),
        }
    }
}

/// What transformers ties by default, where the file does not say.
#[test]
fn a_family_s_default_ties_a_stored_head() {
    for (model_type, embed, tied) in [("gpt2", "transformer.wte", true), ("llama", "model.embed_tokens", false)] {
        let table = f32s(&format!("{embed}.weight"), &[TOKENS, WIDTH]);
        let base = vec![table.clone(), renamed(&table, "lm_head.weight")];
        let case = Case::new(base, config(model_type, json!({}))).adapter(&embedding_pair(embed), json!({}));
        assert_eq!(case.merge().config.get("tie_word_embeddings"), tied.then_some(&json!(false)), "{model_type}");
    }
}
