//! What a byte of a hostile file may cost: a counting allocator holds readers to a multiple of the file's length.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use qmerge::error::Result;
use qmerge::open::Checkpoint;

struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

fn grown(bytes: usize) {
    MOST.fetch_max(NOW.fetch_add(bytes, Relaxed) + bytes, Relaxed);
}

// SAFETY: every call is passed on to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }

    // `realloc` is the trait's own: a new block, a copy, and the old one freed, so growth counts both.
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// One measurement at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// The most bytes that were held at once while `f` ran, beyond those that were held before.
fn most<T>(f: impl FnOnce() -> T) -> (T, usize) {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let result = f();
    (result, MOST.load(Relaxed).saturating_sub(before))
}

fn folder(name: &str) -> PathBuf {
    let folder = std::env::temp_dir().join(format!("qmerge-memory-{name}-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// A zip archive of stored members, as `torch.save` writes one.
fn archive(members: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut zip, mut directory) = (Vec::new(), Vec::new());
    for (name, data) in members {
        let start = zip.len() as u32;
        let mut common = [0_u8; 8].to_vec();
        common.extend(crc32(data).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((data.len() as u32).to_le_bytes());
        common.extend((name.len() as u16).to_le_bytes());
        common.extend([0; 2]);
        zip.extend(b"PK\x03\x04\x14\x00");
        zip.extend(&common);
        zip.extend(name.as_bytes());
        zip.extend(*data);
        directory.extend(b"PK\x01\x02\x14\x00\x14\x00");
        directory.extend(&common);
        directory.extend([0; 10]);
        directory.extend(start.to_le_bytes());
        directory.extend(name.as_bytes());
    }
    let at = zip.len() as u32;
    zip.extend(&directory);
    zip.extend(b"PK\x05\x06\x00\x00\x00\x00");
    zip.extend([(members.len() as u16).to_le_bytes(); 2].concat());
    zip.extend((directory.len() as u32).to_le_bytes());
    zip.extend(at.to_le_bytes());
    zip.extend([0; 2]);
    zip
}

fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(!0_u32, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 })
    })
}

/// Bytes that a byte of a pickle may cost, and what any file may.
const PER_BYTE: usize = 40;
const ANY: usize = 1 << 20;

fn open(path: &Path, pickle: &[u8]) -> (Result<Checkpoint>, usize) {
    let file = archive(&[("archive/data.pkl", pickle), ("archive/data/0", &[0; 16])]);
    std::fs::write(path, &file).unwrap();
    drop(file);
    most(|| Checkpoint::open_weights(path))
}

/// A state dict as `torch.save` writes it, up to where it is filled; memo 9 is a tensor of `shape` over the archive's one storage.
fn with_tensor(shape: &[u8]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}q\x00(ctorch._utils\n_rebuild_tensor_v2\nq\x010".to_vec();
    pickle
        .extend(b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQq\x020");
    pickle.extend(b"h\x01(h\x02K\x00");
    pickle.extend(shape);
    pickle.extend(shape);
    pickle.extend(b"tRq\x090");
    pickle
}

#[test]
fn a_pickle_costs_a_multiple_of_its_length() {
    const LENGTH: usize = 2 << 20;
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = folder("pickle");
    let path = folder.join("adapter_model.bin");
    let repeated = |unit: &[u8]| {
        let mut pickle = b"\x80\x02".to_vec();
        pickle.extend(unit.repeat(LENGTH / unit.len()));
        pickle.push(b'.');
        pickle
    };
    let units: [&[u8]; 13] = [
        b"]",
        b"}",
        b")",
        b"N",
        b"(",
        b"M\x00\x01",
        b"J\x00\x00\x00\x01",
        b"U\x01a",
        b"U\x00",
        b"\x85",
        b")2\x86",
        b"N\x94",
        b"U\x04abcd\x94\x85",
    ];
    for unit in units {
        let (result, used) = open(&path, &repeated(unit));
        assert!(result.is_err());
        assert!(used < PER_BYTE * LENGTH + ANY, "{unit:?}: {used} bytes for {LENGTH}");
    }
    // One wide tuple as the shape of many tensors, and one tensor under many names.
    for (dimensions, name) in [(200_000, 3_usize), (64, 3), (1, 3), (1, 12), (1, 40)] {
        let shape = [b"(".as_slice(), &b"K\x01".repeat(dimensions), b"t"].concat();
        let mut pickle = with_tensor(&shape);
        let mut i = 0;
        while pickle.len() < LENGTH {
            let text = format!("{i:0>name$}");
            pickle.extend([b'U', text.len() as u8]);
            pickle.extend(text.as_bytes());
            pickle.extend(b"h\x09");
            i += 1;
        }
        pickle.extend(b"u.");
        let (_, used) = open(&path, &pickle);
        assert!(used < PER_BYTE * pickle.len() + ANY, "{dimensions}, {name}: {used} bytes for {}", pickle.len());
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// The costliest documents of a configuration's length.
#[test]
fn a_configuration_costs_a_multiple_of_its_length() {
    const LENGTH: usize = 4 << 20;
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = folder("config");
    let path = folder.join("config.json");
    // Up to where the number of values alone refuses it, and beyond.
    let padded = format!("{{}},{}", " ".repeat(14));
    for unit in ["0,", "[],", "{},", "\"\",", "{\"a\":{}},", "NaN,", "1.5e-7,", &padded, "0,               "] {
        let text = format!("{{\"a\":[{}0]}}", unit.repeat(LENGTH / unit.len()));
        std::fs::write(&path, &text).unwrap();
        let (result, used) = most(|| qmerge::open::ModelConfig::read(&path));
        drop(result);
        assert!(used < PER_BYTE * LENGTH + (32 << 20), "{unit:?}: {used} bytes for {LENGTH}");
    }
    std::fs::remove_dir_all(folder).unwrap();
}

/// The same budget lets through what `torch.save` writes: its shortest form of a tensor, and one name after the other.
#[test]
fn ordinary_state_dicts_fit_the_budget() {
    let _alone = ALONE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let folder = folder("ordinary");
    let mut pickle = b"\x80\x02ccollections\nOrderedDict\nq\x00)Rq\x01(".to_vec();
    pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\nq\x020X\x07\x00\x00\x00storageq\x030ctorch\nFloatStorage\nq\x040X\x03\x00\x00\x00cpuq\x050");
    let mut memo = 6_u32;
    let mut remember = |pickle: &mut Vec<u8>| {
        pickle.push(b'r');
        pickle.extend(memo.to_le_bytes());
        memo += 1;
    };
    for i in 0..30_000_u32 {
        let name = i.to_string();
        pickle.push(b'X');
        pickle.extend((name.len() as u32).to_le_bytes());
        pickle.extend(name.as_bytes());
        remember(&mut pickle);
        pickle.extend(b"h\x02((h\x03h\x04X\x01\x00\x00\x000");
        remember(&mut pickle);
        pickle.extend(b"h\x05K\x04t");
        remember(&mut pickle);
        pickle.extend(b"QK\x00K\x02K\x02\x86");
        remember(&mut pickle);
        pickle.extend(b"K\x02K\x01\x86");
        remember(&mut pickle);
        pickle.extend(b"\x89h\x00)R");
        remember(&mut pickle);
        pickle.push(b't');
        remember(&mut pickle);
        pickle.push(b'R');
        remember(&mut pickle);
        if i % 1000 == 999 {
            pickle.extend(b"u(");
        }
    }
    pickle.extend(b"u.");
    let (result, used) = open(&folder.join("adapter_model.bin"), &pickle);
    assert_eq!(result.unwrap().entries.len(), 30_000);
    assert!(used < PER_BYTE * pickle.len() + ANY, "{used} bytes for {}", pickle.len());
    std::fs::remove_dir_all(folder).unwrap();
}
