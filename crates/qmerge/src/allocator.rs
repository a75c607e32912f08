//! What glibc's allocator keeps of what was freed; elsewhere nothing is changed.

/// Buffers of activations below this are kept for the next layer. To have them from the system each time costs a page fault for every 4 KiB, a tenth of the time of
/// running a small model; of larger ones the products take long beside it.
const ACTIVATIONS: usize = 128 << 20;
/// Bytes that come and go while a file is read or written from afar. Threads are many there, and each would keep what it has freed.
const TRANSFERS: usize = 1 << 20;

/// For a process that runs a model, unless it has come to [`return_transfers`] before.
pub fn keep_activations() {
    from_system(ACTIVATIONS, Some(2 * ACTIVATIONS));
}

/// For a process that reads or writes from afar, unless it has come to [`keep_activations`] before.
pub fn return_transfers() {
    from_system(TRANSFERS, None);
}

/// Has blocks of so many bytes come from the system and go back to it, and smaller ones once so many lie together. The first call decides: by another rule the
/// blocks that are kept would not be found again.
fn from_system(blocks: usize, together: Option<usize>) {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    {
        static ONCE: std::sync::Once = std::sync::Once::new();
        let set = |what, bytes| {
            // SAFETY: it changes nothing but from which sizes on the allocator asks the system, and gives back.
            unsafe { libc::mallopt(what, i32::try_from(bytes).unwrap_or(i32::MAX)) };
        };
        ONCE.call_once(|| {
            set(libc::M_MMAP_THRESHOLD, blocks);
            if let Some(bytes) = together {
                set(libc::M_TRIM_THRESHOLD, bytes);
            }
        });
    }
    #[cfg(not(all(target_os = "linux", target_env = "gnu")))]
    let _ = (blocks, together);
}

/// Gives back what was freed: the allocator keeps for each thread what that thread has freed, and the next phase's threads would take new memory beside it.
pub fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it touches nothing but the allocator's own free memory.
    unsafe {
        libc::malloc_trim(0);
    }
}
