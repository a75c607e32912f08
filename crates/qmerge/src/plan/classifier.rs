//! What `config.json` says of a head that a classification adapter brings.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use serde_json::{Map, Value, json};

use super::Step;
use super::steps::{ConfigChange, Labels};
use crate::adapters::Task;
use crate::error::{Result, mismatch};
use crate::open::ModelConfig;

/// Names of classes that a language model's is cut to before a task's is put behind.
const CLASSES: &[&str] =
    &["ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining", "Model"];

/// Components of the paths of layers whose rows are labels.
const LABELLED: &[&str] = &["classifier", "score", "qa_outputs"];

/// The task and its number of labels, told by the heads that adapters bring. Errors if two of them disagree.
pub(super) fn labels(heads: &[(Option<Task>, String)], steps: &[Step], config: &mut ConfigChange) -> Result<()> {
    for (task, target) in heads {
        let Some(module) = target.rsplit_once('.').map(|(module, _)| module.to_owned()) else { continue };
        if !config.added.contains(&module) {
            config.added.push(module.clone());
        }
        let (Some(task), Some(_)) = (task, target.strip_suffix(".weight")) else { continue };
        // A head of several layers: its last is called out_proj, or it is the only one.
        let is_before = module
            .strip_suffix("dense")
            .is_some_and(|path| heads.iter().any(|(_, other)| other.strip_prefix(path) == Some("out_proj.weight")));
        // Beside the head other parts may be trained whole, as a pooler.
        let is_labelled = module.split('.').any(|part| LABELLED.contains(&part))
            || !matches!(task, Task::Class(_)) && !module.ends_with("dense");
        if is_before || !is_labelled {
            continue;
        }
        let shape = steps.iter().find(|step| step.name == *target).map(Step::shape).unwrap_or_default();
        let &[number, _, ..] = shape else { continue };
        let labels = Labels { task: task.clone(), number };
        match &config.labels {
            Some(before) if *before != labels => {
                return Err(
                    mismatch(format!("{number} labels, but another head has {}", before.number)).in_tensor(target)
                );
            }
            _ => config.labels = Some(labels),
        }
    }
    Ok(())
}

/// Names the class and its labels, as transformers writes them. Returns the class.
pub(super) fn describe(config: &mut ModelConfig, labels: &Labels) -> Option<String> {
    let class = config.json.get("architectures").and_then(|classes| classes.get(0)).and_then(Value::as_str);
    let class = class.map(|class| {
        if let Task::Class(whole) = &labels.task {
            return whole.clone();
        }
        let family = CLASSES.iter().find_map(|ending| class.strip_suffix(ending));
        let is_it = class.ends_with(labels.task.class());
        if is_it { class.to_owned() } else { format!("{}{}", family.unwrap_or(class), labels.task.class()) }
    });
    if let Some(class) = &class {
        config.json.insert("architectures".into(), json!([class]));
    }
    if !labels.task.has_labels() {
        return class;
    }
    // The number of labels is the number of names; two are the default, which transformers does not write.
    let named = config.json.get("id2label").and_then(Value::as_object).map_or(2, Map::len);
    if named != labels.number {
        let name = |label: usize| format!("LABEL_{label}");
        let names: Map<String, Value> =
            (0..labels.number).map(|label| (label.to_string(), json!(name(label)))).collect();
        let numbers: Map<String, Value> = (0..labels.number).map(|label| (name(label), json!(label))).collect();
        config.json.insert("id2label".into(), Value::Object(names));
        config.json.insert("label2id".into(), Value::Object(numbers));
    }
    class
}

/// Keeps a new plain layer out of what a loader takes for quantized, where the base's configuration lists what is not.
pub(super) fn skip(config: &mut ModelConfig, added: &[String]) {
    let Some(Value::Object(quantization)) = config.json.get_mut("quantization_config") else { return };
    let Some(Value::Array(modules)) = quantization.get_mut("llm_int8_skip_modules") else { return };
    for module in added {
        if !modules.iter().any(|skipped| skipped.as_str() == Some(module.as_str())) {
            modules.push(json!(module));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_language_model_becomes_a_classifier() {
        let mut config = ModelConfig {
            path: Default::default(),
            text: String::new(),
            json: serde_json::from_str(r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}"#).unwrap(),
            is_of_gguf: false,
            unread: None,
        };
        let class = describe(&mut config, &Labels { task: Task::Sequence, number: 3 });
        assert_eq!(class.as_deref(), Some("LlamaForSequenceClassification"));
        let want = json!({
            "architectures": ["LlamaForSequenceClassification"],
            "model_type": "llama",
            "id2label": {"0": "LABEL_0", "1": "LABEL_1", "2": "LABEL_2"},
            "label2id": {"LABEL_0": 0, "LABEL_1": 1, "LABEL_2": 2},
        });
        assert_eq!(Value::Object(config.json.clone()), want);
        for (class, task, want) in [
            ("GPT2LMHeadModel", Task::Token, "GPT2ForTokenClassification"),
            ("BertModel", Task::Sequence, "BertForSequenceClassification"),
            ("BertForMaskedLM", Task::Answer, "BertForQuestionAnswering"),
            ("Qwen2ForSequenceClassification", Task::Sequence, "Qwen2ForSequenceClassification"),
            ("ViTModel", Task::Class("ViTForImageClassification".into()), "ViTForImageClassification"),
        ] {
            config.json.insert("architectures".into(), json!([class]));
            assert_eq!(describe(&mut config, &Labels { task, number: 3 }).as_deref(), Some(want));
        }
        // Two labels are what transformers takes where the file says nothing.
        config.json.shift_remove("id2label");
        config.json.shift_remove("label2id");
        describe(&mut config, &Labels { task: Task::Sequence, number: 2 });
        assert!(!config.json.contains_key("id2label"));
    }
}
