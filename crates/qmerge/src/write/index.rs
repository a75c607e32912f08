//! The index of an output in several files.

use std::collections::HashMap;

use crate::error::{Result, malformed};
use crate::open::{MAX_INDEX, json, small_text};
use crate::plan::{Action, Inputs, Plan};

/// The index of the output: the base's with the new places and sizes.
pub(crate) fn index_json(inputs: &Inputs, plan: &Plan, bytes: u64, name: &str) -> Result<String> {
    let store = &*inputs.base.store;
    let text = small_text(store, name, MAX_INDEX)?.unwrap_or_default();
    let mut index = json::parse_object(&text)
        .map_err(|error| malformed(format!("not a JSON object: {error}")).in_file(&store.path_of(name)))?;
    let mut map: Vec<(&str, &str)> = plan
        .files
        .iter()
        .flat_map(|file| file.tensors.iter().map(|tensor| (tensor.name.as_str(), file.name.as_str())))
        .collect();
    map.sort_unstable();
    let map = map.into_iter().map(|(tensor, file)| (tensor.to_owned(), file.into())).collect();
    index.insert("weight_map".into(), serde_json::Value::Object(map));
    let metadata = index.entry("metadata").or_insert_with(|| serde_json::json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.insert("total_size".into(), bytes.into());
        if metadata.contains_key("total_parameters") {
            metadata.insert("total_parameters".into(), logical_parameters(inputs, plan).into());
        }
    }
    Ok(serde_json::to_string_pretty(&index).unwrap_or_default() + "\n")
}

/// Elements of all weights, unpacked; companions of quantized weights do not count.
fn logical_parameters(inputs: &Inputs, plan: &Plan) -> u64 {
    let by_lead: HashMap<&str, u64> = inputs
        .inventory
        .weights
        .iter()
        .filter_map(|claim| Some((claim.entries.first()?.name.as_str(), claim.weight.geometry().elements() as u64)))
        .collect();
    plan.steps
        .iter()
        .map(|step| match &step.action {
            Action::Recode(recode) => recode.to.geometry().elements() as u64,
            Action::Copy { entry } => by_lead.get(entry.name.as_str()).copied().unwrap_or(0),
            Action::Constant(_) => 0,
        })
        .sum()
}
