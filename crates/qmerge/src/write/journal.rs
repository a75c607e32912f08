//! The list of finished steps, for `--resume`.
//!
//! One JSON object per line. The first names the merge by a fingerprint of inputs, options and layout; any other merge starts anew.
//! Sums are kept as the bits of their floats, so a resumed merge reports the same figures to the last digit.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

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
    late: Vec<(usize, String)>,
}

#[derive(Serialize, Deserialize)]
struct Head {
    merge: String,
}

/// The open journal. Its lock tells a second process that this folder is being written.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
}

impl Journal {
    pub(super) fn create(partial: &Path, fingerprint: &str) -> Result<Self> {
        let path = partial.join(FILE_NAME);
        let file = open(&path)?;
        lock(&file, &path)?;
        let mut journal = Self { file };
        journal.line(&Head { merge: fingerprint.to_owned() }).map_err(|error| Error::io("write", &path, error))?;
        Ok(journal)
    }

    /// Opens the journal of an interrupted run of the same merge; `None` if there is none.
    pub(super) fn reopen(partial: &Path, fingerprint: &str, finished: &mut Vec<Finished>) -> Result<Option<Self>> {
        let path = partial.join(FILE_NAME);
        if !path.is_file() {
            return Ok(None);
        }
        let file = open(&path)?;
        lock(&file, &path)?;
        let mut lines = BufReader::new(&file).split(b'\n');
        let head = lines.next().and_then(|line| serde_json::from_slice::<Head>(&line.ok()?).ok());
        if head.is_none_or(|head| head.merge != fingerprint) {
            return Ok(None);
        }
        // A line that was cut off by the interruption is not finished; neither is what follows.
        finished
            .extend(lines.map_while(|line| serde_json::from_slice::<Line>(&line.ok()?).ok()).filter_map(Line::read));
        Ok(Some(Self { file }))
    }

    pub(super) fn append(&mut self, finished: &[Finished]) -> Result<()> {
        let mut write = || -> std::io::Result<()> {
            for step in finished {
                self.line(&Line::new(step))?;
            }
            self.file.sync_data()
        };
        write().map_err(|error| Error::io("write", Path::new(FILE_NAME), error))
    }

    fn line(&mut self, value: &impl Serialize) -> std::io::Result<()> {
        let mut text = serde_json::to_vec(value)?;
        text.push(b'\n');
        self.file.write_all(&text)
    }
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
            late: finished
                .late
                .iter()
                .filter_map(|(part, bytes)| Some((*part, String::from_utf8(bytes.clone()).ok()?)))
                .collect(),
        }
    }

    fn read(self) -> Option<Finished> {
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
        let late = self.late.into_iter().map(|(part, text)| (part, text.into_bytes())).collect();
        let kept =
            self.kept.map(|[output, noise]| Kept { output: f64::from_bits(output), noise: f64::from_bits(noise) });
        Some(Finished { step: self.step, sums, kept, late })
    }
}

fn open(path: &PathBuf) -> Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path).map_err(|error| Error::io("open", path, error))
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

    #[test]
    fn finished_steps_read_back_to_the_bit_and_a_torn_line_is_dropped() {
        let folder = std::env::temp_dir().join(format!("qmerge-journal-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let moments = Moments { delta2: 0.1 + 0.2, max_error: 1e-40, changed: 7, finite: true, ..Moments::default() };
        let steps = [
            Finished {
                step: 3,
                sums: Some(Sums { elements: 9, moments }),
                kept: None,
                late: vec![(5, b"{\"a\": 1}".to_vec())],
            },
            Finished { step: 4, sums: None, kept: Some(Kept { output: 0.1, noise: 0.2 }), late: vec![] },
        ];
        let mut journal = Journal::create(&folder, "x").unwrap();
        journal.append(&steps).unwrap();
        journal.file.write_all(b"{\"step\": 5, \"su").unwrap();
        drop(journal);
        let mut read = Vec::new();
        assert!(Journal::reopen(&folder, "x", &mut read).unwrap().is_some());
        assert_eq!(read, steps);
        assert!(Journal::reopen(&folder, "another merge", &mut read).unwrap().is_none());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
