//! Profiles of Amazon's tools: the stores' client knows the environment and the roles of machines.

use std::path::PathBuf;

use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey as Key};

use crate::http::set;

/// Adds what the user's profile says and the environment does not.
pub(super) fn of_profile(builder: AmazonS3Builder) -> AmazonS3Builder {
    let home = || set("HOME").or_else(|| set("USERPROFILE")).map(|home| PathBuf::from(home).join(".aws"));
    let file =
        |variable: &str, name: &str| set(variable).map(PathBuf::from).or_else(|| home().map(|home| home.join(name)));
    let read = |path: Option<PathBuf>| path.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
    let name = set("AWS_PROFILE").or_else(|| set("AWS_DEFAULT_PROFILE"));
    let texts = (read(file("AWS_SHARED_CREDENTIALS_FILE", "credentials")), read(file("AWS_CONFIG_FILE", "config")));
    let service = set("AWS_ENDPOINT_URL_S3");
    add(builder, name.as_deref(), (&texts.0, &texts.1), service)
}

fn add(
    mut builder: AmazonS3Builder,
    name: Option<&str>,
    (credentials, config): (&str, &str),
    service: Option<String>,
) -> AmazonS3Builder {
    let profile = name.unwrap_or("default");
    let in_config = if profile == "default" { profile.to_owned() } else { format!("profile {profile}") };
    let said = |key: &str| value(credentials, profile, key).or_else(|| value(config, &in_config, key));
    if let Some(endpoint) = service {
        builder = builder.with_endpoint(endpoint);
    }
    // The keys of the environment, unless a profile was named, go before a profile's; they belong together.
    let has_keys = builder.get_config_value(&Key::AccessKeyId).is_some();
    if let (false, Some(id), Some(secret)) = (has_keys, said("aws_access_key_id"), said("aws_secret_access_key")) {
        builder = builder.with_access_key_id(id).with_secret_access_key(secret);
        if let Some(token) = said("aws_session_token") {
            builder = builder.with_token(token);
        }
    }
    for (key, name) in [(Key::Region, "region"), (Key::Endpoint, "endpoint_url")] {
        if let (None, Some(value)) = (builder.get_config_value(&key), said(name)) {
            builder = builder.with_config(key, value);
        }
    }
    builder
}

/// What an INI file says in a section.
fn value(text: &str, section: &str, key: &str) -> Option<String> {
    let mut within = false;
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            within = name.trim() == section;
        } else if let (true, Some((name, value))) = (within && !line.starts_with(['#', ';']), line.split_once('='))
            && name.trim() == key
        {
            return Some(value.trim().to_owned()).filter(|value| !value.is_empty());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_fill_what_the_environment_leaves_open() {
        let credentials = "[default]\naws_access_key_id = a\naws_secret_access_key=b=\n# aws_session_token = no\n[other]\naws_access_key_id=c\n";
        let config = "[default]\nregion = r1\n[profile other]\nregion = r2\nendpoint_url = http://e\naws_secret_access_key = d\n";
        let get = |name: Option<&str>| {
            let builder = add(AmazonS3Builder::new(), name, (credentials, config), None);
            [Key::AccessKeyId, Key::SecretAccessKey, Key::Token, Key::Region, Key::Endpoint]
                .map(|key| builder.get_config_value(&key))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(get(None), [some("a"), some("b="), None, some("r1"), None]);
        assert_eq!(get(Some("other")), [some("c"), some("d"), None, some("r2"), some("http://e")]);
        let builder = AmazonS3Builder::new().with_access_key_id("env").with_secret_access_key("s").with_region("r");
        let builder = add(builder, None, (credentials, config), some("http://s3"));
        assert_eq!(builder.get_config_value(&Key::AccessKeyId), some("env"));
        assert_eq!(builder.get_config_value(&Key::Region), some("r"));
        assert_eq!(builder.get_config_value(&Key::Endpoint), some("http://s3"));
    }
}
