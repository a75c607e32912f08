//! What `config.json` says of a head that a classification adapter brings.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use serde_json::{Map, Value, json};

use super::Step;
use super::steps::{ConfigChange, Labels};
use crate::adapters::Task;
use crate::error::{Result, mismatch};
use crate::open::{ModelConfig, model_order};

/// Names of classes that a language model's is cut to before a task's is put behind.
const CLASSES: &[&str] =
    &["ForCausalLM", "LMHeadModel", "ForMaskedLM", "ForConditionalGeneration", "ForPreTraining", "Model"];

/// Components of the paths of layers whose rows are labels.
const LABELLED: &[&str] = &["classifier", "score", "qa_outputs", "classification_head", "logits_proj"];

/// The task and its number of labels, told by the heads that adapters bring. Errors if two of them disagree.
pub(super) fn labels(heads: &[(Option<Task>, String)], steps: &[Step], config: &mut ConfigChange) -> Result<()> {
    // By the head that they belong to, the last layer, whose rows are the labels.
    let mut last: Vec<(&str, &Task, &str, usize)> = Vec::new();
    for (task, target) in heads {
        let Some((module, parameter)) = target.rsplit_once('.') else { continue };
        if !config.added.iter().any(|added| added == module) {
            config.added.push(module.to_owned());
        }
        let Some(task) = task else { continue };
        let shape = steps.iter().find(|step| step.name == *target).map(Step::shape).unwrap_or_default();
        let (Some(head), "weight", &[number, _, ..]) = (head_of(module), parameter, shape) else { continue };
        match last.iter_mut().find(|(other, known, ..)| *other == head && *known == task) {
            Some(before) if model_order(before.2, target).is_lt() => *before = (head, task, target, number),
            Some(_) => {}
            None => last.push((head, task, target, number)),
        }
    }
    for (_, task, target, number) in last {
        let labels = Labels { task: task.clone(), number: Some(number) };
        match &config.labels {
            Some(before) if *before != labels => {
                let before = before.number.unwrap_or(0);
                return Err(mismatch(format!("{number} labels, but another head has {before}")).in_tensor(target));
            }
            _ => config.labels = Some(labels),
        }
    }
    // A head of another kind has no labels that are known by its name, and a class all the same.
    let other = heads.iter().find_map(|(task, _)| task.clone().filter(|task| matches!(task, Task::Class(_))));
    config.labels = config.labels.take().or_else(|| Some(Labels { task: other?, number: None }));
    Ok(())
}

/// The path up to the component that says that the rows below are labels.
fn head_of(module: &str) -> Option<&str> {
    let mut end = 0;
    for part in module.split('.') {
        end += part.len();
        if LABELLED.contains(&part) {
            return module.get(..end);
        }
        end += 1;
    }
    None
}

/// Names the class and its labels, as transformers writes them. Returns the class.
pub(super) fn describe(config: &mut ModelConfig, labels: &Labels) -> Option<String> {
    let class = config.class();
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
    let Some(number) = labels.number.filter(|_| labels.task.has_labels()) else {
        return class;
    };
    // The number of labels is the number of names; two are the default, which transformers does not write.
    let named = config.json.get("id2label").and_then(Value::as_object).map_or(2, Map::len);
    if named != number {
        let name = |label: usize| format!("LABEL_{label}");
        let names: Map<String, Value> = (0..number).map(|label| (label.to_string(), json!(name(label)))).collect();
        let numbers: Map<String, Value> = (0..number).map(|label| (name(label), json!(label))).collect();
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
        let class = describe(&mut config, &Labels { task: Task::Sequence, number: Some(3) });
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
            assert_eq!(describe(&mut config, &Labels { task, number: Some(3) }).as_deref(), Some(want));
        }
        // Two labels are what transformers takes where the file says nothing.
        config.json.shift_remove("id2label");
        config.json.shift_remove("label2id");
        describe(&mut config, &Labels { task: Task::Sequence, number: Some(2) });
        assert!(!config.json.contains_key("id2label"));
    }
}
