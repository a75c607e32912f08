//! A model, an adapter or a calibration at a glance.

use anstyle::AnsiColor;
use std::path::Path;

use qmerge::inspect::{AdapterInspection, CalibrationInspection, Inspection, ModelInspection};

use super::figures::{bytes, count, counted, shapes};
use super::lines::say;
use super::table::{Table, number, word};
use super::{BOLD, DIM, colour};

pub(crate) fn inspection(inspection: &Inspection) {
    match inspection {
        Inspection::Model(model) => self::model(model),
        Inspection::Adapter(adapter) => self::adapter(adapter),
        Inspection::Calibration(calibration) => self::calibration(calibration),
    }
}

fn calibration(calibration: &CalibrationInspection) {
    say(&format!("{BOLD}{}{BOLD:#}: a calibration, for --calibration", calibration.path));
    say(&format!("taken from {}", calibration.taken_from));
    say(&format!(
        "second moments of {} of {} in {}, {}",
        counted(calibration.inputs, "input"),
        counted(calibration.weights, "weight"),
        counted(calibration.layers, "layer"),
        bytes(calibration.bytes)
    ));
}

fn model(model: &ModelInspection) {
    let family = if model.model_type.is_empty() { "model" } else { &model.model_type };
    say(&format!("{BOLD}{}{BOLD:#}: {family}, {}", model.path, model.format));
    let tied = if model.tied { ", tied embeddings" } else { "" };
    let parameters =
        model.parameters.map_or(String::new(), |parameters| format!("{} parameters in ", count(parameters)));
    say(&format!(
        "{parameters}{}, {} in {}{tied}",
        counted(model.tensors, "tensor"),
        bytes(model.bytes),
        counted(model.files, "file"),
    ));
    if let Some(unsupported) = &model.unsupported {
        say("");
        let place = match &unsupported.tensor {
            Some(tensor) => format!("`{tensor}`"),
            None => unsupported.file.display().to_string(),
        };
        let yellow = colour(AnsiColor::Yellow);
        say(&format!("{yellow}not supported{yellow:#}: {place}: {}", unsupported.about));
        say(&format!(
            "this version reads no such weights, and every other command refuses them; {}",
            unsupported.remedy
        ));
        return;
    }
    say("");
    groups(model);
    if let Some(first) = model.opaque.first() {
        let are = if model.opaque.len() == 1 {
            "of another type is copied as it is"
        } else {
            "of other types are copied as they are"
        };
        say(&format!("{DIM}{} {are}, first {first}{DIM:#}", counted(model.opaque.len(), "tensor")));
    }
    match &model.not_run {
        None => say("it can be run, to calibrate, measure and compare merges of it"),
        Some(reason) => say(&format!(
            "it cannot be run ({reason}): merges of it are not measured, and calibrated only by what is taken elsewhere (qmerge.torch, an importance matrix)"
        )),
    }
    if model.merged_by_qmerge {
        say(&format!("an adapter was merged into it or taken out of it: see {}", report(model)));
    }
    if model.converted_by_qmerge {
        say(&format!("it was converted: see {}", report(model)));
    }
}

/// The name of the report beside a model: of a single file its own, where there is one.
fn report(model: &ModelInspection) -> String {
    let own = qmerge::report::path_beside(Path::new(&model.path));
    let name = own.file_name().filter(|_| own.is_file());
    name.map_or_else(|| qmerge::report::FILE_NAME.to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The table of a model's modules. How a format is stored is told below, unless it differs between modules.
fn groups(model: &ModelInspection) {
    let mut details: Vec<(&str, &str)> = Vec::new();
    for group in model.groups.iter().filter(|group| !group.details.is_empty()) {
        let found = (group.format.as_str(), group.details.as_str());
        if !details.contains(&found) {
            details.push(found);
        }
    }
    let is_one = |format: &str| details.iter().filter(|(other, _)| *other == format).count() == 1;
    let mut columns = vec![
        word("format"),
        number("count").leaves(3),
        word("shape").leaves(2),
        number("parameters").leaves(1),
        number("bytes"),
    ];
    let is_told = details.iter().all(|(format, _)| is_one(format));
    columns.extend((!is_told).then(|| word("details").leaves(4)));
    let mut table = Table::new("module", columns);
    for group in &model.groups {
        let cells = [
            group.format.clone(),
            group.count.to_string(),
            shapes(&group.shapes),
            count(group.parameters),
            bytes(group.bytes),
            group.details.clone(),
        ];
        table.row(group.module.as_str(), cells);
    }
    table.print();
    for (format, text) in details.iter().filter(|_| is_told) {
        say(&format!("{format}: {text}"));
    }
}

fn adapter(adapter: &AdapterInspection) {
    let variants =
        if adapter.variants.is_empty() { String::new() } else { format!(" ({})", adapter.variants.join(", ")) };
    let rank = adapter.r.map_or(String::new(), |rank| format!(", rank {rank}"));
    let alpha = adapter.lora_alpha.map_or(String::new(), |alpha| format!(", alpha {alpha}"));
    say(&format!("{BOLD}{}{BOLD:#}: {}{variants}{rank}{alpha}", adapter.path, adapter.peft_type));
    say(&format!(
        "{} parameters in {}, {}",
        count(adapter.parameters),
        counted(adapter.tensors, "tensor"),
        bytes(adapter.bytes)
    ));
    if adapter.writer != "PEFT" {
        say(&format!("written as {} does", adapter.writer));
    }
    if let Some(base) = &adapter.base_model {
        say(&format!("trained on {base}"));
    }
    if let Some(refused) = &adapter.refused {
        let remedy = refused.remedy.as_ref().map_or(String::new(), |remedy| format!("; {remedy}"));
        let yellow = colour(AnsiColor::Yellow);
        say(&format!("{yellow}cannot be merged{yellow:#}: {}{remedy}", refused.reason));
    }
    say("");
    let shape = adapter.shapes_of.unwrap_or("shape");
    let mut table = Table::new("module", [number("count").leaves(1), word(shape)]);
    for target in &adapter.targets {
        table.row(target.module.as_str(), [target.count.to_string(), shapes(&target.shapes)]);
    }
    table.print();
    if !adapter.modules_to_save.is_empty() {
        say(&format!("trained whole: {}", adapter.modules_to_save.join(", ")));
    }
}
