//! Logits and decoded rows go into memory that is used again: fresh memory of that size costs more than what is computed in it.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use qmerge::adapters::Adapter;
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options as PlanOptions, Plan};
use qmerge_run::tensors::Tensors;
use qmerge_run::{Cache, Model, Options, Unwatched};

/// Counts the bytes of all allocations.
struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: the system's allocator does the work.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: as for the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as for the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn the_second_use_takes_no_fresh_memory() {
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../qmerge-cli/demo");
    // Stored as NF4 and in 16 bits, read from the file and held, with the adapter apart and without one.
    for (base, held, with) in [("base-nf4", 0, true), ("base-nf4", u64::MAX, false), ("base-bf16", 0, true)] {
        let adapter = Adapter::open(&demo.join("adapter"), 1.0).unwrap();
        let inputs = Inputs::new(Checkpoint::open(&demo.join(base)).unwrap(), vec![adapter]).unwrap();
        let plan = Plan::new(&inputs, &PlanOptions::default()).unwrap();
        let tensors = Tensors::new(&inputs, with.then_some(&plan));
        let model = Model::new(&tensors, Options { threads: 1, held: Some(held), progress: None }).unwrap();
        let vocab = model.spec().vocab;
        let tokens: Vec<u32> = (0..64).collect();
        let states = model.hidden(&[&tokens], &mut Unwatched).unwrap();
        let (mut many, mut one) = (Vec::new(), Vec::new());
        let mut cache = Cache::new(&model, 8);
        let mut use_it = || {
            let before = BYTES.load(Ordering::Relaxed);
            model.logits(&states, 0..64, &mut many).unwrap();
            let after = BYTES.load(Ordering::Relaxed);
            let state = model.advance(&[7], &mut cache).unwrap();
            model.logits(&state, 0..1, &mut one).unwrap();
            (after - before, BYTES.load(Ordering::Relaxed) - after)
        };
        use_it();
        let (many, one) = use_it();
        // The states, plain and packed, and some small things; not the logits, nor the head's rows.
        assert!(many < 4 * 64 * vocab / 2, "{base} {held} {many}");
        // Four layers have 160 thousand values each, and the head as many; what is decoded of them takes four bytes each. The factors of the
        // adapter are 51 thousand values.
        assert!(one < 220_000, "{base} {held} {one}");
    }
}
