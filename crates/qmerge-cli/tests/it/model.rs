//! Small checkpoints and adapters in temporary folders, and the program itself.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use safetensors::Dtype;
use safetensors::tensor::TensorView;

/// A temporary folder, removed at the end of the test.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("qmerge-it-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The program with arguments, in a folder.
pub(crate) fn qmerge(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_qmerge"));
    command
        .args(args)
        .current_dir(folder)
        .env("NO_COLOR", "1")
        .env_remove("QMERGE_SIMD")
        .env_remove("QMERGE_WIDTH")
        .env_remove("COLUMNS")
        .env("HF_HUB_CACHE", folder.join("no-cache"))
        .env("HF_HUB_OFFLINE", "1");
    command
}

pub(crate) fn run(folder: &Path, args: &[&str]) -> Output {
    qmerge(folder, args).output().unwrap()
}

/// The same, with what it reads from the standard input.
pub(crate) fn with_input(folder: &Path, args: &[&str], input: &str) -> Output {
    use std::io::Write;
    let piped = || std::process::Stdio::piped();
    let mut child = qmerge(folder, args).stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
    // One that refuses reads nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    child.wait_with_output().unwrap()
}

/// Runs it, which comes to a good end, and returns what it prints.
pub(crate) fn done(folder: &Folder, args: &[&str]) -> String {
    let output = run(folder.path(), args);
    assert!(output.status.success(), "{args:?}: {}", stderr(&output));
    stdout(&output)
}

/// Runs it, which is refused in a message that says all of `words`, and returns the message.
pub(crate) fn refused(folder: &Folder, args: &[&str], words: &[&str]) -> String {
    let output = run(folder.path(), args);
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {said}");
    for word in words {
        assert!(said.contains(word), "{args:?}: `{word}` is not in: {said}");
    }
    assert!(!said.contains("panicked"), "{args:?}: {said}");
    said
}

/// The document that a command prints.
pub(crate) fn json(folder: &Folder, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&done(folder, &[args, &["--json"]].concat())).unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

/// The demo's base and adapter, copied.
pub(crate) fn demo(folder: &Path) {
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    for name in ["base-nf4", "adapter"] {
        copy_folder(&from.join(name), &folder.join(name));
    }
}

pub(crate) fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for item in std::fs::read_dir(from).unwrap() {
        let path = item.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

/// A tensor by name, type, shape and bytes.
pub(crate) type Tensor = (String, Dtype, Vec<usize>, Vec<u8>);

pub(crate) fn f32s(name: &str, shape: &[usize], f: impl Fn(usize) -> f32) -> Tensor {
    let n: usize = shape.iter().product();
    (name.to_owned(), Dtype::F32, shape.to_vec(), (0..n).flat_map(|i| f(i).to_le_bytes()).collect())
}

pub(crate) fn bf16s(name: &str, shape: &[usize], f: impl Fn(usize) -> f32) -> Tensor {
    let n: usize = shape.iter().product();
    let bytes = (0..n).flat_map(|i| ((f(i).to_bits() >> 16) as u16).to_le_bytes()).collect();
    (name.to_owned(), Dtype::BF16, shape.to_vec(), bytes)
}

pub(crate) fn f16s(name: &str, shape: &[usize], bits: u16) -> Tensor {
    let n: usize = shape.iter().product();
    (name.to_owned(), Dtype::F16, shape.to_vec(), (0..n).flat_map(|_| bits.to_le_bytes()).collect())
}

pub(crate) fn write(path: &Path, tensors: &[Tensor]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let views: Vec<_> = tensors
        .iter()
        .map(|(name, dtype, shape, bytes)| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()))
        .collect();
    let metadata = std::collections::HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize_to_file(views, Some(metadata), path).unwrap();
}

pub(crate) fn read(path: &Path) -> Vec<Tensor> {
    let bytes = std::fs::read(path).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut tensors: Vec<Tensor> = file
        .tensors()
        .into_iter()
        .map(|(name, view)| (name, view.dtype(), view.shape().to_vec(), view.data().to_vec()))
        .collect();
    tensors.sort_by(|a, b| a.0.cmp(&b.0));
    tensors
}

/// Changes one tensor of a file.
pub(crate) fn change(path: &Path, edit: impl Fn(&mut Vec<Tensor>)) {
    let mut tensors = read(path);
    edit(&mut tensors);
    write(path, &tensors);
}

/// Numbers between −1 and 1 that look random.
pub(crate) fn noise(i: usize) -> f32 {
    let x = (i as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    ((x ^ (x >> 29)) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// A base of `layers` bf16 matrices and a LoRA of rank 8 for all of them.
pub(crate) fn plain_model(folder: &Path, layers: usize, rows: usize, cols: usize) {
    let name = |layer: usize| format!("model.layers.{layer}.self_attn.q_proj");
    let base: Vec<Tensor> = (0..layers)
        .map(|layer| bf16s(&format!("{}.weight", name(layer)), &[rows, cols], |i| 0.05 * noise(i + layer)))
        .collect();
    write(&folder.join("base/model.safetensors"), &base);
    std::fs::write(folder.join("base/config.json"), "{\n  \"model_type\": \"llama\"\n}\n").unwrap();
    let adapter: Vec<Tensor> = (0..layers)
        .flat_map(|layer| {
            let stem = format!("base_model.model.{}", name(layer));
            [
                f32s(&format!("{stem}.lora_A.weight"), &[8, cols], |i| 0.1 * noise(i)),
                f32s(&format!("{stem}.lora_B.weight"), &[rows, 8], |i| 0.1 * noise(i + 5)),
            ]
        })
        .collect();
    write(&folder.join("adapter/adapter_model.safetensors"), &adapter);
    std::fs::write(folder.join("adapter/adapter_config.json"), r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16}"#)
        .unwrap();
}
