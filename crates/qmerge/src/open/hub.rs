//! Finding what the user named: a path, or a hub id in the local Hugging Face cache. Nothing is downloaded.
//!
//! Cache layout (huggingface_hub): `models--ORG--NAME/refs/REVISION` holds a commit, and
//! `models--ORG--NAME/snapshots/COMMIT/` the files.

use std::path::{Path, PathBuf};

use crate::error::{Error, Kind, Result};

/// A path that exists is taken as it is; else `org/name[@revision]` is looked up in the cache.
pub(super) fn resolve(location: &Path) -> Result<PathBuf> {
    if location.exists() {
        return Ok(location.to_path_buf());
    }
    let missing =
        |message: String, hint: String| Err(Error::new(Kind::Usage, message).in_file(location).with_hint(hint));
    let Some((org, name, revision)) = location.to_str().and_then(parse_id) else {
        return missing("no such file or folder".into(), "check the path".into());
    };
    let Some(cache) = cache_folder() else {
        return missing("no such folder, and no Hugging Face cache".into(), "set HF_HUB_CACHE or HF_HOME".into());
    };
    let repo = cache.join(format!("models--{org}--{name}"));
    let reference = repo.join("refs").join(revision);
    let commit = match std::fs::read_to_string(&reference) {
        Ok(commit) => commit.trim().to_owned(),
        Err(_) => revision.to_owned(),
    };
    let plain = |part: &str| !part.is_empty() && part != ".." && !part.contains(['/', '\\']);
    let snapshot = repo.join("snapshots").join(&commit);
    if plain(&commit) && snapshot.is_dir() {
        return Ok(snapshot);
    }
    missing(
        format!("no such folder, and `{org}/{name}` at `{revision}` is not in the cache {}", cache.display()),
        format!("download it first: hf download {org}/{name}"),
    )
}

/// Splits `org/name[@revision]`; anything that looks like a path is `None`.
fn parse_id(text: &str) -> Option<(&str, &str, &str)> {
    let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
    let (org, name) = id.split_once('/')?;
    let fits = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
    };
    (fits(org) && fits(name) && fits(revision)).then_some((org, name, revision))
}

fn cache_folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("HF_HUB_CACHE")
        .or_else(|| set("HF_HOME").map(|home| home.join("hub")))
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/huggingface/hub")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_told_from_paths() {
        assert_eq!(parse_id("org/name"), Some(("org", "name", "main")));
        assert_eq!(parse_id("org/name@v1.0"), Some(("org", "name", "v1.0")));
        for path in ["./model", "/abs/model", "a/b/c", "model", "../up", "org/na me"] {
            assert_eq!(parse_id(path), None, "{path}");
        }
    }
}
