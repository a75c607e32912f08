//! What a user names that is no path.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use qmerge::error::{Error, Kind, Result};
use qmerge::open::{HubId, Store};
use url::Url;

use crate::folder::RemoteFolder;
use crate::remote::Source;
use crate::{hub, web};

/// Where something lies that is not on this machine.
#[derive(Clone)]
pub struct Address {
    /// As it was named; it may hold a password or a signature.
    url: Url,
    /// What messages call it.
    shown: PathBuf,
}

impl std::fmt::Debug for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Address({})", self.shown.display())
    }
}

/// True for a scheme and what follows, known or not: `s3://…`.
pub fn is_address(location: &Path) -> bool {
    location.to_str().is_some_and(|text| scheme(text).is_some())
}

fn scheme(text: &str) -> Option<&str> {
    let (scheme, _) = text.split_once("://")?;
    // One letter is a drive.
    (scheme.len() > 1 && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte)))
        .then_some(scheme)
}

/// What follows `://` in an address without what is secret: what is before an `@` of a host, and what follows a `?`.
fn bare(address: &str) -> &str {
    let address = address.split(['?', '#']).next().unwrap_or_default();
    let (host, _) = address.split_once('/').unwrap_or((address, ""));
    // A password that is not encoded may hold a slash: what stands where a port does is none then.
    let is_cut = host.split_once(':').is_some_and(|(_, port)| !port.bytes().all(|byte| byte.is_ascii_digit()));
    match (host.rsplit_once('@'), address.rsplit_once('@')) {
        (Some((user, _)), _) => &address[user.len() + 1..],
        (None, Some((_, rest))) if is_cut => rest,
        _ => address,
    }
}

/// A word of a command line, or an address, without what is secret in it: all behind `://` is one address.
pub fn redacted_word(word: &str) -> String {
    match word.split_once("://") {
        Some((before, address)) => format!("{before}://{}", bare(address)),
        None => word.to_owned(),
    }
}

/// A text without what is secret in the addresses that stand in it, as far as it tells where they end.
pub fn redacted(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find("://") {
        let (before, after) = rest.split_at(at + 3);
        let ends = |c: char| c.is_whitespace() || matches!(c, '"' | '\'' | '`' | '<' | '>' | ')' | '(' | ',' | ';');
        let (address, next) = after.split_at(after.find(ends).unwrap_or(after.len()));
        out.extend([before, bare(address)]);
        rest = next;
    }
    out.push_str(rest);
    out
}

impl Address {
    /// `None` for what is a path or a hub's id. Errors if it is an address that cannot be read.
    pub fn parse(location: &Path) -> Result<Option<Self>> {
        let Some(text) = location.to_str().filter(|text| scheme(text).is_some()) else { return Ok(None) };
        let shown = PathBuf::from(redacted_word(text).trim_end_matches('/'));
        let wrong = |problem: &str| Error::new(Kind::Usage, problem).in_file(&shown);
        let refused = |problem: &str| {
            Err(wrong(problem).with_hint("addresses begin with s3://, gs://, az://, https://, http:// or hf://"))
        };
        let Ok(url) = Url::parse(text) else { return refused("not an address that can be read") };
        let known = ["s3", "gs", "az", "https", "http", "hf"].contains(&url.scheme());
        let has_host = url.host_str().is_some_and(|host| !host.is_empty());
        // A signature may follow an address of Azure, and nothing any other bucket's.
        let is_odd = match url.scheme() {
            "s3" | "gs" => url.query().is_some() || url.fragment().is_some(),
            "az" => url.fragment().is_some(),
            _ => false,
        };
        if is_odd || text.contains(char::is_control) {
            return refused(
                "a `?`, a `#` or a control character in the name of an object: write it as %3F, %23 or %09",
            );
        }
        match (known, has_host) {
            (true, true) => Ok(Some(Self { url, shown })),
            (true, false) => refused("the address names no host or bucket"),
            (false, _) => refused("an address of a kind that is not known"),
        }
    }

    /// What messages call it: without a password or a signature.
    pub fn shown(&self) -> &Path {
        &self.shown
    }

    /// True if outputs can be written there.
    pub fn is_bucket(&self) -> bool {
        matches!(self.url.scheme(), "s3" | "gs" | "az")
    }

    /// True if another address, however it is spelled, is this one or lies below it.
    pub fn holds(&self, other: &Self) -> bool {
        let parts = |address: &Self| {
            address.path().split('/').filter(|part| !part.is_empty()).map(str::to_owned).collect::<Vec<_>>()
        };
        let place = |address: &Self| (address.url.scheme().to_owned(), address.url.host_str().map(str::to_owned));
        place(self) == place(other) && parts(other).starts_with(&parts(self))
    }

    /// As it was named.
    pub(crate) fn url(&self) -> &Url {
        &self.url
    }

    /// The path in it, decoded, without slashes at the ends.
    pub(crate) fn path(&self) -> String {
        percent_decoded(self.url.path().trim_matches('/'))
    }

    fn missing(&self) -> Error {
        Error::new(Kind::Missing, "there is nothing of that name").in_file(&self.shown).with_hint("check the address")
    }

    /// Reads a small file whole, of at most `limit` bytes.
    pub fn small(&self, limit: u64) -> Result<Vec<u8>> {
        let (folder, name) = self.parent()?;
        folder.small(&name, limit)?.ok_or_else(|| self.missing())
    }

    /// The folder, and the name of the file in it where the address ends in that of a weight file.
    pub(crate) fn open(&self) -> Result<(Arc<dyn Store>, Option<String>)> {
        let path = self.path();
        let name = path.rsplit('/').next().unwrap_or_default();
        let is_file = [".safetensors", ".gguf", ".bin", ".pt"].iter().any(|ending| name.ends_with(ending));
        if is_file {
            let (folder, name) = self.parent()?;
            return Ok((folder, Some(name)));
        }
        Ok((self.folder(&path)?, None))
    }

    /// The folder that a file lies in, and its name.
    pub(crate) fn parent(&self) -> Result<(Arc<dyn Store>, String)> {
        let path = self.path();
        let (folder, name) = path.rsplit_once('/').unwrap_or(("", &path));
        if name.is_empty() {
            return Err(Error::new(Kind::Usage, "the address names no file").in_file(&self.shown));
        }
        Ok((self.folder(folder)?, name.to_owned()))
    }

    /// The repository of an address of the hub, and the folder in it, of a path that this address has or lies below. A revision ends where a folder begins, so a slash
    /// in one is written as %2F, but for pull requests and conversions, which have names of a known shape: what huggingface_hub's own addresses mean.
    fn repository<'p>(&self, path: &'p str) -> Option<(HubId, &'p str)> {
        let own = self.url.path().trim_matches('/');
        let revision = own.split_once('@').map_or("", |(_, revision)| revision);
        let levels = match revision.split('/').collect::<Vec<_>>()[..] {
            ["refs", "pr", number, ..] if number.bytes().all(|byte| byte.is_ascii_digit()) => 3,
            ["refs", "convert", ..] => 3,
            _ => 1,
        };
        let end = own.match_indices('/').nth(levels - 1).map_or(own.len(), |(at, _)| at);
        let name = percent_decoded(own.get(..end)?);
        let below = path.strip_prefix(&name).filter(|below| below.is_empty() || below.starts_with('/'))?;
        let id = HubId::parse(&format!("{}/{name}", self.url.host_str().unwrap_or_default()))?;
        Some((id, below.trim_start_matches('/')))
    }

    fn folder(&self, path: &str) -> Result<Arc<dyn Store>> {
        let own = self.path();
        let shown = match own.strip_prefix(path).filter(|rest| !rest.is_empty()) {
            Some(rest) => {
                let text = self.shown.to_string_lossy().into_owned();
                let levels = rest.trim_matches('/').split('/').count();
                let cut = (0..levels).fold(text.as_str(), |text, _| text.rsplit_once('/').map_or(text, |(up, _)| up));
                PathBuf::from(cut)
            }
            None => self.shown.clone(),
        };
        let source: Box<dyn Source> = match self.url.scheme() {
            "hf" => {
                let Some((id, below)) = self.repository(path) else {
                    return Err(Error::new(Kind::Usage, "not the address of a repository")
                        .in_file(&self.shown)
                        .with_hint("write hf://org/name, or hf://org/name@revision"));
                };
                Box::new(hub::Repository::open(&id, below).map_err(|error| error.in_file(&shown))?)
            }
            "http" | "https" => Box::new(web::Web::new(&self.url, path)?),
            #[cfg(feature = "buckets")]
            _ => Box::new(crate::bucket::Bucket::open(self, path)?),
            #[cfg(not(feature = "buckets"))]
            _ => {
                return Err(Error::new(Kind::Unsupported, "this build of qmerge has no object stores")
                    .in_file(&self.shown)
                    .with_hint("build it with the feature `buckets`"));
            }
        };
        Ok(Arc::new(RemoteFolder::new(shown, source)))
    }
}

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        let code = after.get(..2).and_then(|digits| str::from_utf8(digits).ok());
        match code.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| first == b'%') {
            Some(byte) => {
                bytes.push(byte);
                rest = after.get(2..).unwrap_or_default();
            }
            None => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_do_not_stand_in_words() {
        for (word, shown) in [
            ("--base=http://user:pa,s;S('E)@h/base?sig=abc,SECRET", "--base=http://h/base"),
            ("https://h/base?a=host;range&sig=SECRET", "https://h/base"),
            ("ftp://user:p/SECRET@h/x", "ftp://h/x"),
            ("http://h:80/a@b", "http://h:80/a@b"),
            ("hf://org/name@rev", "hf://org/name@rev"),
            ("a?b", "a?b"),
        ] {
            assert_eq!(redacted_word(word), shown);
        }
    }

    #[test]
    fn one_place_has_many_spellings() {
        let address = |text: &str| Address::parse(Path::new(text)).unwrap().unwrap();
        let output = address("s3://models/in/%62ase");
        for inside in ["s3://models/in/base", "s3://models/in/x/../base/model.safetensors", "s3://models/in/base/"] {
            assert!(output.holds(&address(inside)), "{inside}");
        }
        for outside in ["s3://models/in/base2", "s3://models/in", "s3://other/in/base", "gs://models/in/base"] {
            assert!(!output.holds(&address(outside)), "{outside}");
        }
        for odd in ["s3://b/out#v2", "s3://b/o3?x=1", "s3://b/tab\tx", "az://c/a#b"] {
            assert!(Address::parse(Path::new(odd)).is_err(), "{odd}");
        }
    }

    /// What huggingface_hub 2.4's `HfFileSystem().resolve_path` says of the same, with `hf://` before it.
    #[test]
    fn revisions_may_have_slashes() {
        for (text, revision, below) in [
            ("hf://org/name", "main", ""),
            ("hf://org/name/a/b", "main", "a/b"),
            ("hf://org/name@v1/a/b", "v1", "a/b"),
            ("hf://org/name@refs/pr/1", "refs/pr/1", ""),
            ("hf://org/name@refs/pr/12/a/b", "refs/pr/12", "a/b"),
            ("hf://org/name@refs%2Fpr%2F1/a", "refs/pr/1", "a"),
            ("hf://org/name@refs/convert/parquet/a", "refs/convert/parquet", "a"),
            ("hf://org/name@my%2Fbranch/a", "my/branch", "a"),
            ("hf://org/name@my/branch", "my", "branch"),
        ] {
            let address = Address::parse(Path::new(text)).unwrap().unwrap();
            let path = address.path();
            let (id, found) = address.repository(&path).unwrap();
            assert_eq!((id.to_string().as_str(), id.revision.as_str(), found), ("org/name", revision, below), "{text}");
            assert_eq!(redacted_word(text), text);
        }
        let address = |text: &str| Address::parse(Path::new(text)).unwrap().unwrap();
        let request = address("hf://org/name@refs/pr/1");
        assert!(request.holds(&address("hf://org/name@refs%2Fpr%2F1/config.json")));
        assert!(
            !request.holds(&address("hf://org/name@refs/pr/2")) && !request.holds(&address("hf://org/name@refs/pr/11"))
        );
        for odd in ["hf://org/name@", "hf://org/name@..%2Fx", "hf://org/name@refs%2F%2Fx"] {
            let address = address(odd);
            assert!(address.repository(&address.path()).is_none(), "{odd}");
        }
    }

    #[test]
    fn secrets_do_not_stand_in_texts() {
        for (text, shown) in [
            ("https://u:p@h/a/b?sig=x#y", "https://h/a/b"),
            ("see `https://h/a?X-Amz-Signature=1`, or s3://b/c.", "see `https://h/a`, or s3://b/c."),
            ("--base https://me@h:1/m --x y", "--base https://h:1/m --x y"),
            ("no address: a?b", "no address: a?b"),
            ("hf://org/name@rev", "hf://org/name@rev"),
        ] {
            assert_eq!(redacted(text), shown);
        }
    }

    #[test]
    fn paths_are_no_addresses() {
        for path in ["a/b", "C:/x", "c://x", "/a://b", "org/name"] {
            assert!(!is_address(Path::new(path)), "{path}");
        }
        assert!(Address::parse(Path::new("s3://b/x")).unwrap().unwrap().is_bucket());
        for wrong in ["ftp://h/x", "s3:///x", "https://"] {
            assert!(Address::parse(Path::new(wrong)).is_err(), "{wrong}");
        }
        let address = Address::parse(Path::new("https://u:p@h/a%20b/c?sig=s")).unwrap().unwrap();
        assert_eq!((address.path().as_str(), format!("{address:?}").as_str()), ("a b/c", "Address(https://h/a%20b/c)"));
    }
}
