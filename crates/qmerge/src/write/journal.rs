//! The list of finished steps, for `--resume`.
//!
//! One JSON object per line. The first says which merge it is: its inputs, options and layout. Sums are kept as the bits of their floats, so a
//! resumed merge reports the same figures to the last digit. An interruption may leave a part of a line; the list ends before it.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use super::queue::Failed;
use crate::error::{Error, Kind, Result};
use crate::measure::Sums;
use crate::round::Kept;
use crate::simd::moments::Moments;

/// Name of the journal in the partial folder.
pub(super) const FILE_NAME: &str = "qmerge-journal.jsonl";

/// A finished step: its sums, where it was measured, and its parts that wait for the end.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Finished {
    /// Number of the step in the plan.
    pub(crate) step: usize,
    /// What was measured.
    pub(crate) sums: Option<Sums>,
    /// What became of the adapter's output, where the inputs are known.
    pub(crate) kept: Option<Kept>,
    /// Part number and bytes of parts whose length was not known.
    pub(crate) late: Vec<(usize, Vec<u8>)>,
}

#[derive(Serialize, Deserialize)]
struct Line {
    step: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sums: Option<[u64; 8]>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kept: Option<[u64; 2]>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    late: Vec<(usize, Vec<u8>)>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    merge: Fingerprint,
}

/// The open journal. Its lock tells a second process that this folder is being written.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// A line may have been cut off: none can follow it.
    failed: Option<Failed>,
}

impl Journal {
    pub(super) fn create(partial: &Path, merge: &Fingerprint) -> Result<Self> {
        let path = partial.join(FILE_NAME);
        let file = open(&path)?;
        lock(&file, &path)?;
        let mut journal = Self { file, failed: None };
        journal.write(&line(&Head { merge: merge.clone() })).map_err(|error| Error::io("write", &path, error))?;
        Ok(journal)
    }

    /// Opens the journal of an interrupted run and reads what it finished; `None` if it ended before its first line was whole. Errors if it is of
    /// another merge.
    pub(super) fn reopen(partial: &Path, merge: &Fingerprint) -> Result<Option<(Self, Vec<Finished>)>> {
        let path = partial.join(FILE_NAME);
        let failed = |error| Error::io("read", &path, error);
        let mut file = open(&path)?;
        lock(&file, &path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        let mut lines = text.split_inclusive(|&byte| byte == b'\n').filter(|line| line.ends_with(b"\n"));
        let Some(head) = lines.next() else { return Ok(None) };
        let differences = match serde_json::from_slice::<Head>(head) {
            Ok(begun) => begun.merge.differences(merge),
            Err(_) => vec!["it was begun by another version of qmerge".to_owned()],
        };
        if !differences.is_empty() {
            let problem = format!("the unfinished output is another merge's ({})", differences.join("; "));
            return Err(Error::new(Kind::Usage, problem).in_file(partial).with_hint(
                "--resume takes the same inputs and options; --force in its place begins anew and gives up what was done",
            ));
        }
        let (mut finished, mut end) = (Vec::new(), head.len());
        for line in lines {
            let Ok(read) = serde_json::from_slice::<Line>(line) else { break };
            finished.push(read.read());
            end += line.len();
        }
        // What comes next begins a line of its own.
        file.set_len(end as u64).map_err(failed)?;
        file.seek(SeekFrom::Start(end as u64)).map_err(failed)?;
        Ok(Some((Self { file, failed: None }, finished)))
    }

    /// Lists steps as finished, and returns when that is on the disk.
    pub(super) fn append(&mut self, finished: &[Finished]) -> std::io::Result<()> {
        let lines: Vec<u8> = finished.iter().flat_map(|step| line(&Line::new(step))).collect();
        self.write(&lines)
    }

    fn write(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if let Some(failed) = self.failed {
            return Err(failed.error());
        }
        let written = self.file.write_all(lines).and_then(|()| self.file.sync_data());
        written.inspect_err(|error| self.failed = Some(Failed::new(error)))
    }
}

fn line(value: &impl Serialize) -> Vec<u8> {
    // Numbers, texts and lists of them: there is nothing that JSON could not hold.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text
}

impl Line {
    fn new(finished: &Finished) -> Self {
        let bits = |sums: &Sums| {
            let m = &sums.moments;
            [
                sums.elements,
                m.weight2.to_bits(),
                m.delta2.to_bits(),
                m.change_delta.to_bits(),
                m.error2.to_bits(),
                u64::from(m.max_error.to_bits()),
                m.changed,
                u64::from(m.finite),
            ]
        };
        Self {
            step: finished.step,
            sums: finished.sums.as_ref().map(bits),
            kept: finished.kept.map(|kept| [kept.output.to_bits(), kept.noise.to_bits()]),
            late: finished.late.clone(),
        }
    }

    fn read(self) -> Finished {
        let sums = self.sums.map(|bits| Sums {
            elements: bits[0],
            moments: Moments {
                weight2: f64::from_bits(bits[1]),
                delta2: f64::from_bits(bits[2]),
                change_delta: f64::from_bits(bits[3]),
                error2: f64::from_bits(bits[4]),
                max_error: f32::from_bits(bits[5] as u32),
                changed: bits[6],
                finite: bits[7] == 1,
            },
        });
        let kept =
            self.kept.map(|[output, noise]| Kept { output: f64::from_bits(output), noise: f64::from_bits(noise) });
        Finished { step: self.step, sums, kept, late: self.late }
    }
}

fn open(path: &PathBuf) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| Error::io("open", path, error))
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(running(path)),
        // A file system without locks: go without.
        Err(std::fs::TryLockError::Error(_)) => Ok(()),
    }
}

/// Errors if another process is writing this folder.
pub(super) fn refuse_running(partial: &Path) -> Result<()> {
    let path = partial.join(FILE_NAME);
    match File::open(&path) {
        Ok(file) => lock(&file, &path),
        Err(_) => Ok(()),
    }
}

fn running(path: &Path) -> Error {
    Error::new(Kind::Exists, "another qmerge is writing this output")
        .in_file(path)
        .with_hint("wait for it, or choose another output")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn merge(seed: &str) -> Fingerprint {
        let mut merge = Fingerprint::default();
        merge.add("seed", seed);
        merge
    }

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("qmerge-journal-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn steps() -> [Finished; 2] {
        let moments = Moments { delta2: 0.1 + 0.2, max_error: 1e-40, changed: 7, finite: true, ..Moments::default() };
        [
            Finished {
                step: 3,
                sums: Some(Sums { elements: 9, moments }),
                kept: None,
                // Not UTF-8.
                late: vec![(5, b"{\"a\": 1}".to_vec()), (6, vec![0xff, 0, b'\n', 0x80])],
            },
            Finished { step: 4, sums: None, kept: Some(Kept { output: 0.1, noise: 0.2 }), late: vec![] },
        ]
    }

    #[test]
    fn finished_steps_read_back_to_the_bit_after_every_interruption() {
        let (folder, steps) = (folder("torn"), steps());
        for torn in [&b""[..], b"{\"step\": 5, \"su", b"{\"step\":5}", &[0; 100], b"\0\0\n{\"step\":5}\n", b"{}\n"] {
            let mut journal = Journal::create(&folder, &merge("0")).unwrap();
            journal.append(&steps[..1]).unwrap();
            journal.file.write_all(torn).unwrap();
            drop(journal);
            let (mut journal, read) = Journal::reopen(&folder, &merge("0")).unwrap().unwrap();
            assert_eq!(read, steps[..1], "{torn:?}");
            // What is listed after it is found the next time.
            journal.append(&steps[1..]).unwrap();
            drop(journal);
            assert_eq!(Journal::reopen(&folder, &merge("0")).unwrap().unwrap().1, steps, "{torn:?}");
            std::fs::remove_file(folder.join(FILE_NAME)).unwrap();
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn another_merge_is_an_error_that_says_in_what_it_differs() {
        let folder = folder("another");
        drop(Journal::create(&folder, &merge("0")).unwrap());
        let error = Journal::reopen(&folder, &merge("7")).unwrap_err();
        assert!(error.to_string().contains("seed: 0 before, 7 now"), "{error}");
        std::fs::write(folder.join(FILE_NAME), "{\"merge\":\"abc\"}\n{\"step\":0}\n").unwrap();
        let error = Journal::reopen(&folder, &merge("0")).unwrap_err();
        assert!(error.to_string().contains("another version"), "{error}");
        // A run that ended before its first line finished nothing.
        std::fs::write(folder.join(FILE_NAME), "{\"merge\":[[\"se").unwrap();
        assert!(Journal::reopen(&folder, &merge("0")).unwrap().is_none());
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn no_line_follows_one_that_failed() {
        // The device refuses every write as a full disk does.
        let file = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let mut journal = Journal { file, failed: None };
        let first = journal.append(&steps()).unwrap_err();
        journal.file = unnamed();
        assert_eq!(journal.append(&steps()).unwrap_err().to_string(), first.to_string());
        assert_eq!(journal.file.metadata().unwrap().len(), 0);
    }

    #[cfg(target_os = "linux")]
    fn unnamed() -> File {
        let path = std::env::temp_dir().join(format!("qmerge-journal-unnamed-{}", std::process::id()));
        let file = open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }
}
