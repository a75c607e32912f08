//! Finding what the user named: a path, or a hub id in the local Hugging Face cache. Nothing is downloaded here.
//!
//! Cache layout (huggingface_hub): `models--ORG--NAME/refs/REVISION` holds a commit, and
//! `models--ORG--NAME/snapshots/COMMIT/` the files.

use std::fmt;
use std::path::{Path, PathBuf};

use super::{is_plain_name, read_small_text};
use crate::error::{Error, Kind, Result};

/// A model on the hub at a revision, as the user writes it: `org/name[@revision]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubId {
    /// Owner.
    pub org: String,
    /// Name of the repository.
    pub name: String,
    /// Branch, tag or commit.
    pub revision: String,
}

impl fmt::Display for HubId {
    /// `org/name`, without the revision.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.org, self.name)
    }
}

impl HubId {
    /// Splits `org/name[@revision]`; anything that looks like a path is `None`. A revision may have slashes: `refs/pr/1`, or a branch's own.
    pub fn parse(text: &str) -> Option<Self> {
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (org, name) = id.split_once('/')?;
        let fits = |part: &str| {
            !part.is_empty()
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        };
        let owned = || Self { org: org.to_owned(), name: name.to_owned(), revision: revision.to_owned() };
        (fits(org) && fits(name) && revision.split('/').all(fits)).then(owned)
    }

    /// The id at its commit, for a snapshot's folder in a cache: what [`resolve`](super::resolve) returns for an id.
    pub fn of_snapshot(folder: &Path) -> Option<Self> {
        let commit = folder.file_name()?.to_str()?;
        let snapshots = folder.parent().filter(|parent| parent.ends_with("snapshots"))?;
        let (org, name) = snapshots.parent()?.file_name()?.to_str()?.strip_prefix("models--")?.split_once("--")?;
        Self::parse(&format!("{org}/{name}@{commit}"))
    }

    /// Its folder in a cache, there or not.
    pub fn folder(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}--{}", self.org, self.name))
    }

    /// The folder of its files in a cache, if there is one.
    pub fn snapshot(&self, cache: &Path) -> Option<PathBuf> {
        let folder = self.folder(cache);
        /// A commit's name and more.
        const MAX_REF: u64 = 4096;
        let commit = match read_small_text(&folder.join("refs").join(&self.revision), MAX_REF) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => self.revision.clone(),
        };
        let plain = is_plain_name(&commit);
        Some(folder.join("snapshots").join(commit)).filter(|snapshot| plain && snapshot.is_dir())
    }
}

/// A path that exists is taken as it is; else `org/name[@revision]` is looked up in the cache.
pub(super) fn resolve(location: &Path) -> Result<PathBuf> {
    if location.exists() {
        return Ok(location.to_path_buf());
    }
    let missing =
        |message: String, hint: String| Err(Error::new(Kind::Missing, message).in_file(location).with_hint(hint));
    let Some(id) = location.to_str().and_then(HubId::parse) else {
        return missing("no such file or folder".into(), "check the path".into());
    };
    let Some(cache) = cache_folder() else {
        return missing("no such folder, and no Hugging Face cache".into(), "set HF_HUB_CACHE or HF_HOME".into());
    };
    if let Some(snapshot) = id.snapshot(&cache) {
        return Ok(snapshot);
    }
    missing(
        format!("no such folder, and `{id}` at `{}` is not in the cache {}", id.revision, cache.display()),
        format!("check the path, or download it first: hf download {id}"),
    )
}

/// Where huggingface_hub keeps what it downloads: `HF_HUB_CACHE`, else `hub` in [`home`].
pub fn cache_folder() -> Option<PathBuf> {
    set("HF_HUB_CACHE").or_else(|| home().map(|home| home.join("hub")))
}

/// huggingface_hub's own folder: `HF_HOME`, else `huggingface` in the user's cache.
pub fn home() -> Option<PathBuf> {
    set("HF_HOME")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/huggingface")))
}

fn set(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        let parse = |text: &str| HubId::parse(text).map(|id| (id.to_string(), id.revision));
        assert_eq!(parse("org/name"), Some(("org/name".into(), "main".into())));
        assert_eq!(parse("org/name@v1.0"), Some(("org/name".into(), "v1.0".into())));
        assert_eq!(parse("org/name@refs/pr/1"), Some(("org/name".into(), "refs/pr/1".into())));
        let odd = ["org/name@", "org/name@/x", "org/name@a//b", "org/name@../up", "org/name@a/../../b", "org/a/b@c"];
        for path in ["./model", "/abs/model", "a/b/c", "model", "../up", "org/na me"].into_iter().chain(odd) {
            assert_eq!(parse(path), None, "{path}");
        }
    }

    #[test]
    fn snapshots_say_whose_they_are() {
        let id = HubId::of_snapshot(Path::new("/c/models--org--some-name/snapshots/abc1"));
        assert_eq!(id, HubId::parse("org/some-name@abc1"));
        for path in ["/c/models--org--name/snapshots", "/c/org--name/snapshots/a", "snapshots/a", "a", "/"] {
            assert_eq!(HubId::of_snapshot(Path::new(path)), None, "{path}");
        }
    }
}
