//! Names that come from outside and become paths and URLs. Each is checked before it is used.

use crate::digest::is_hex;

/// Characters of `org/name`, as the hub allows.
const REPO_CHARS_MAX: usize = 96;
/// Characters of a branch, a tag or a pull request's ref.
const REVISION_CHARS_MAX: usize = 255;
/// Characters of a file's path in a repository.
const FILE_NAME_CHARS_MAX: usize = 1_024;
/// A SHA-256 in hexadecimal has 64; a multi-part etag a few more.
const ETAG_CHARS_MAX: usize = 128;

/// `org/name` or `name`, by the hub's own rules. The error says what is wrong.
pub(crate) fn check_repo(repo: &str) -> Result<(), String> {
    if REPO_CHARS_MAX < repo.chars().count() {
        return Err(format!("a hub id has at most {REPO_CHARS_MAX} characters"));
    }
    if 1 < repo.matches('/').count() {
        return Err("a hub id has at most one slash".into());
    }
    for part in repo.split('/') {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if let Some(c) = part.chars().find(|&c| !allowed(c)) {
            return Err(format!("{c:?} cannot be in a hub id"));
        }
        if part.is_empty() {
            return Err("a part of the hub id is empty".into());
        }
        if part.starts_with(['-', '.']) || part.ends_with(['-', '.']) {
            return Err(format!("{part:?} starts or ends with '-' or '.'"));
        }
    }
    // The cache joins the parts by "--".
    match ["..", "--"].into_iter().find(|pair| repo.contains(pair)) {
        Some(pair) => Err(format!("{pair:?} cannot be in a hub id")),
        None => Ok(()),
    }
}

/// A branch, a tag, `refs/pr/1`, or a commit.
pub(crate) fn check_revision(revision: &str) -> Result<(), String> {
    check_relative(revision, REVISION_CHARS_MAX).map_err(|why| format!("revision {why}"))
}

/// A file's path inside a repository, with `/` between its parts.
pub(crate) fn check_file_name(name: &str) -> Result<(), String> {
    check_relative(name, FILE_NAME_CHARS_MAX).map_err(|why| format!("file name {why}"))
}

fn check_relative(path: &str, chars_max: usize) -> Result<(), String> {
    let refuse = |why: &str| Err(format!("{path:?} {why}"));
    if chars_max < path.len() {
        return Err(format!("of {} characters, at most {chars_max}", path.len()));
    }
    if path.chars().any(char::is_control) || path.contains(['\\', ':']) {
        return refuse("has a character that cannot be in a path");
    }
    match path
        .split('/')
        .find(|part| matches!(*part, "" | "." | ".."))
    {
        Some("") => refuse("is empty, absolute, or has an empty part"),
        Some(_) => refuse("leaves its folder"),
        None => Ok(()),
    }
}

/// What an `ETag` names, without quotes and weakness; it becomes a file's name.
pub(super) fn blob_name(etag: &str) -> Result<String, String> {
    let bare = etag.trim().trim_start_matches("W/").trim_matches('"');
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    if bare.is_empty() || ETAG_CHARS_MAX < bare.len() || !bare.chars().all(allowed) {
        return Err(format!("unusable etag {etag:?}"));
    }
    Ok(bare.to_owned())
}

/// A full commit, which never changes what it means.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && is_hex(text)
}

/// Percent-encodes for a URL's path; `keep_slash` for a path, not for one segment.
pub(super) fn url_path(text: &str, keep_slash: bool) -> String {
    let mut url = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                url.push(char::from(byte));
            }
            b'/' if keep_slash => url.push('/'),
            _ => url.push_str(&format!("%{byte:02X}")),
        }
    }
    url
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::is_sha256;

    #[track_caller]
    fn check(check: fn(&str) -> Result<(), String>, text: &str, ok: bool) {
        let got = check(text);
        assert_eq!(got.is_ok(), ok, "{text:?}: {got:?}");
    }

    #[test]
    fn file_names() {
        check(check_file_name, "config.json", true);
        check(check_file_name, "1_Pooling/config.json", true);
        check(check_file_name, "a b+c.txt", true);
        check(check_file_name, "..a/b..", true);
        for name in [
            "",
            "/etc/passwd",
            "../x",
            "a/../x",
            "a//b",
            "a/",
            "./a",
            "a\\..\\b",
            "C:x",
            "a\0",
        ] {
            check(check_file_name, name, false);
        }
        check(check_file_name, &"a".repeat(1_024), true);
        check(check_file_name, &"a".repeat(1_025), false);
    }

    #[test]
    fn repos_and_revisions() {
        check(check_repo, "cross-encoder/ms-marco-MiniLM-L-6-v2", true);
        check(check_repo, "gpt2", true);
        for repo in [
            "a/b/c", "", "a/", "a/.b", "-a/b", "a/b--c", "a..b", "a/b c", "ä/b",
        ] {
            check(check_repo, repo, false);
        }
        check(check_repo, &"a".repeat(97), false);
        check(check_revision, "refs/pr/12", true);
        check(check_revision, "v1.0+x", true);
        for revision in ["", "..", "a/../b", "/a", "a\nb"] {
            check(check_revision, revision, false);
        }
    }

    #[test]
    fn etags() {
        assert_eq!(blob_name("\"abc\"").unwrap(), "abc");
        assert_eq!(blob_name("W/\"abc-1\"").unwrap(), "abc-1");
        for etag in [
            "",
            "\"\"",
            "\"../a\"",
            "a/b",
            "a.incomplete",
            &"a".repeat(129),
        ] {
            assert!(blob_name(etag).is_err(), "{etag:?}");
        }
        assert!(is_sha256(&"0".repeat(64)) && !is_sha256(&"0".repeat(40)));
        assert!(is_commit(&"f".repeat(40)) && !is_commit("main") && !is_commit(&"g".repeat(40)));
    }

    #[test]
    fn urls() {
        assert_eq!(url_path("refs/pr/1", false), "refs%2Fpr%2F1");
        assert_eq!(url_path("a/b c?d#e%.json", true), "a/b%20c%3Fd%23e%25.json");
    }
}
