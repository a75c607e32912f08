//! What the crate promises, held to bytes and numbers of the reference libraries. One program, since each links the whole crate.

mod adapters;
mod adapters_of_others;
mod bitsandbytes;
mod calibrated;
mod combine;
mod convert_adapter;
mod extract;
mod factor;
mod folder;
mod gguf_bounds;
mod gguf_loads;
mod gguf_lora;
mod gguf_made;
mod gguf_of_mlx;
mod gguf_of_towers;
mod hostile_adapters;
mod loaders;
mod peft;
mod peft_cases;
mod peft_methods;
mod quantized;
mod quantized_merge;
mod rounding;
mod stacks;
mod stores;
mod task_vectors;
mod verify_experts;
mod written;

/// The largest of some distances, all of them numbers.
pub(crate) fn largest<T: Copy + PartialOrd + Default>(distances: impl IntoIterator<Item = T>) -> T {
    let larger = |most: T, x: T| {
        assert!(x.partial_cmp(&most).is_some(), "a distance is not a number");
        if x > most { x } else { most }
    };
    distances.into_iter().fold(T::default(), larger)
}
