//! What PEFT puts a LoRA on: a module, or a parameter by name.

use crate::adapters::{Names, Stack, router};
use crate::arch;

/// A module that is a layer, or a parameter of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Target {
    pub(super) module: String,
    /// Of what is targeted by name; none of a layer.
    pub(super) parameter: Option<String>,
}

impl Target {
    pub(super) fn module(module: &str) -> Self {
        Self { module: module.to_owned(), parameter: None }
    }

    /// A layer of a base. Those that PEFT cannot put a LoRA on as modules, it can by the name of their weight: routers, which are no linear layers in
    /// transformers, and layers whose names it takes for those of experts.
    pub(super) fn layer(names: &Names<'_>, module: &str) -> Self {
        let weight = |module: &str| Self { module: module.to_owned(), parameter: Some("weight".to_owned()) };
        if let Some(router) = router(names, module) {
            return weight(&router);
        }
        let is_projection = names.experts.is_some_and(|experts| arch::leaf_in(module, experts.each));
        if is_projection && arch::takes_layers_for_experts(names.model_type()) {
            return weight(module);
        }
        Self::module(&names.in_memory(module))
    }

    pub(super) fn stack(stack: &Stack<'_>) -> Self {
        Self { module: stack.module.clone(), parameter: Some(stack.parameter.to_owned()) }
    }

    /// Its path, as configurations and reports have it.
    pub(super) fn path(&self) -> String {
        match &self.parameter {
            Some(parameter) => format!("{}.{parameter}", self.module),
            None => self.module.clone(),
        }
    }
}
