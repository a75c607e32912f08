//! File names out of files: an index names shards, a hub names what a repository holds.

/// Names that Windows gives to devices, in any folder and with any ending.
const DEVICES: &[&str] = &["con", "prn", "aux", "nul", "conin$", "conout$", "clock$"];

/// True if a name from an untrusted source is a plain file name everywhere: it stays in the folder that it is joined to, on any system
/// (`C:x` leaves it on Windows, and `x:y` names a stream there), and it names a file.
pub fn is_plain_name(name: &str) -> bool {
    let stem = name.split('.').next().unwrap_or(name).trim_end().to_ascii_lowercase();
    let port = stem.strip_prefix("com").or_else(|| stem.strip_prefix("lpt"));
    let device = DEVICES.contains(&stem.as_str())
        || port.is_some_and(|number| matches!(number, "¹" | "²" | "³") || matches!(number.as_bytes(), [b'0'..=b'9']));
    !name.is_empty()
        && name.len() <= 255
        // Windows drops dots and spaces at the end, so `..` and `a.` and `. ` are other names there.
        && !name.ends_with(['.', ' '])
        && !name.contains(['/', '\\', ':', '*', '?', '"', '<', '>', '|'])
        && !name.contains(char::is_control)
        && !device
}

/// True for a relative path of plain names.
pub fn is_plain_path(path: &str) -> bool {
    path.split('/').all(is_plain_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_or_are_none_are_told() {
        for name in [
            "model-00001-of-00002.safetensors",
            "a",
            ".gitattributes",
            "..a",
            "console.json",
            "com10",
            "ü ü.json",
            "nul_",
        ] {
            assert!(is_plain_name(name), "{name}");
        }
        let long = "a".repeat(256);
        for name in [
            "",
            ".",
            "..",
            "...",
            "a/b",
            "/etc/passwd",
            "a\\b",
            "\\\\host\\share",
            "C:x",
            "C:",
            "a:stream",
            "a\0",
            "a\nb",
            "CON",
            "nul.safetensors",
            "Com1.x",
            "LPT9",
            "com¹",
            "aux .json",
            "a.",
            "a ",
            "a?",
            "a*",
            "a|b",
            &long,
        ] {
            assert!(!is_plain_name(name), "{name:?}");
        }
        assert!(is_plain_path("1_Pooling/config.json"));
        for path in ["", "/a", "a//b", "a/../b", "./a", "a/", "a/C:x"] {
            assert!(!is_plain_path(path), "{path:?}");
        }
    }
}
