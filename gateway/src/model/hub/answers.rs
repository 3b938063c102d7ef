//! What the hub's answers mean, and how long to wait for the next one. Pure: text in, facts out.

use std::time::Duration;

use serde::Deserialize;
use ureq::http::{HeaderMap, Uri};

use super::names::{blob_name, check_file_name, is_commit};

/// Files in one commit. Models have tens; data sets have more and are not served here.
const LISTING_FILES_MAX: usize = 10_000;
/// Longest pause between attempts when the hub does not name one, and when it does.
const PAUSE_MAX: Duration = Duration::from_secs(30);
const RETRY_AFTER_MAX: Duration = Duration::from_secs(120);

/// What a revision means now. Names that could not be files here are left out.
#[derive(Debug)]
pub(super) struct Listing {
    pub commit: String,
    pub names: Vec<String>,
}

/// What a file is, known before its content.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Metadata {
    /// Its name among the blobs: SHA-256 for large files, git's hash for small ones.
    pub blob: String,
    pub n_bytes: Option<u64>,
}

pub(super) fn parse_listing(bytes: &[u8]) -> Result<Listing, String> {
    #[derive(Deserialize)]
    struct Answer {
        sha: String,
        #[serde(default)]
        siblings: Vec<Sibling>,
    }
    #[derive(Deserialize)]
    struct Sibling {
        rfilename: String,
    }
    let answer: Answer = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    if !is_commit(&answer.sha) {
        return Err(format!("{:?} is no commit", answer.sha));
    }
    if LISTING_FILES_MAX < answer.siblings.len() {
        return Err(format!(
            "{} files, at most {LISTING_FILES_MAX}",
            answer.siblings.len()
        ));
    }
    let names = answer.siblings.into_iter().map(|sibling| sibling.rfilename);
    let names = names.filter(|name| match check_file_name(name) {
        Ok(()) => true,
        Err(why) => {
            tracing::warn!("the hub lists a file that is left out: {why}");
            false
        }
    });
    Ok(Listing {
        commit: answer.sha,
        names: names.collect(),
    })
}

/// `Content-Length` of a redirect is its own, not the file's.
pub(super) fn parse_metadata(headers: &HeaderMap, is_redirect: bool) -> Result<Metadata, String> {
    let etag = header(headers, "x-linked-etag").or_else(|| header(headers, "etag"));
    let blob = blob_name(etag.ok_or("no etag")?)?;
    let plain = if is_redirect {
        None
    } else {
        header(headers, "content-length")
    };
    let n_bytes = match header(headers, "x-linked-size").or(plain) {
        Some(text) => Some(text.trim().parse().map_err(|_| format!("size {text:?}"))?),
        None => None,
    };
    Ok(Metadata { blob, n_bytes })
}

pub(super) fn header<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
    headers.get(name)?.to_str().ok()
}

/// The first byte of `bytes 5-9/10`.
pub(super) fn range_start(content_range: &str) -> Option<u64> {
    content_range
        .trim()
        .strip_prefix("bytes ")?
        .split_once('-')?
        .0
        .trim()
        .parse()
        .ok()
}

/// Scheme, host and port, in one spelling.
pub(super) fn origin(url: &str) -> Option<String> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri
        .port_u16()
        .unwrap_or(if scheme == "https" { 443 } else { 80 });
    Some(format!(
        "{scheme}://{}:{port}",
        uri.host()?.to_ascii_lowercase()
    ))
}

/// Where a redirect leads.
pub(super) fn target(from: &str, location: &str) -> Result<String, String> {
    let (scheme, rest) = from.split_once("://").ok_or("a URL without a scheme")?;
    if location.starts_with("//") {
        return Ok(format!("{scheme}:{location}"));
    }
    if location.starts_with('/') {
        let host = rest.split('/').next().unwrap_or(rest);
        return Ok(format!("{scheme}://{host}{location}"));
    }
    match location.split_once("://") {
        Some(("https", _)) => Ok(location.to_owned()),
        Some(("http", _)) if scheme == "http" => Ok(location.to_owned()),
        _ => Err(format!("a redirect from {scheme} to {location:?}")),
    }
}

/// Twice as long after each failure, and not the same for all who failed together.
pub(super) fn pause(
    n_failures: u32,
    first: Duration,
    retry_after: Option<Duration>,
    noise: u64,
) -> Duration {
    if let Some(asked) = retry_after {
        return asked.min(RETRY_AFTER_MAX);
    }
    let doubled = first
        .saturating_mul(1 << n_failures.saturating_sub(1).min(16))
        .min(PAUSE_MAX);
    // Between a half and the whole.
    doubled.mul_f64(0.5 + (noise >> 32) as f64 / f64::from(u32::MAX) / 2.0)
}

#[cfg(test)]
mod tests {
    use ureq::http::{HeaderName, HeaderValue};

    use super::*;

    const COMMIT: &str = "1111111111111111111111111111111111111111";

    #[track_caller]
    fn check_metadata(
        headers: &[(&str, &str)],
        is_redirect: bool,
        want: Result<(&str, Option<u64>), &str>,
    ) {
        let headers: HeaderMap = headers
            .iter()
            .map(|&(name, value)| {
                let name: HeaderName = name.parse().unwrap();
                (name, HeaderValue::from_str(value).unwrap())
            })
            .collect();
        match (parse_metadata(&headers, is_redirect), want) {
            (Ok(got), Ok((blob, n_bytes))) => {
                assert_eq!(
                    got,
                    Metadata {
                        blob: blob.into(),
                        n_bytes
                    }
                );
            }
            (Err(got), Err(want)) => assert!(got.contains(want), "{got:?} is not {want:?}"),
            (got, want) => panic!("{headers:?}: {got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn metadata() {
        let small = [("etag", "\"abc\""), ("content-length", "5")];
        check_metadata(&small, false, Ok(("abc", Some(5))));
        // A redirect's length is the length of its own text.
        check_metadata(&small, true, Ok(("abc", None)));
        let large = [
            ("x-linked-etag", "\"def\""),
            ("x-linked-size", "9"),
            ("etag", "\"abc\""),
        ];
        check_metadata(&large, true, Ok(("def", Some(9))));
        check_metadata(&[("etag", "W/\"abc\"")], false, Ok(("abc", None)));
        check_metadata(&[("content-length", "5")], false, Err("no etag"));
        check_metadata(&[("etag", "a/b")], false, Err("unusable etag"));
        check_metadata(
            &[("etag", "a"), ("content-length", "-1")],
            false,
            Err("size \"-1\""),
        );
    }

    #[track_caller]
    fn check_listing(text: &str, want: Result<&[&str], &str>) {
        match (parse_listing(text.as_bytes()), want) {
            (Ok(got), Ok(want)) => assert_eq!(got.names, want),
            (Err(got), Err(want)) => assert!(got.contains(want), "{got:?} is not {want:?}"),
            (got, want) => panic!("{text}: {got:?}, expected {want:?}"),
        }
    }

    #[test]
    fn listings() {
        let of = |files: &str| format!(r#"{{"sha":"{COMMIT}","siblings":[{files}],"x":1}}"#);
        let two = r#"{"rfilename":"a"},{"rfilename":"../b"},{"rfilename":"c/d","size":1}"#;
        check_listing(&of(two), Ok(&["a", "c/d"]));
        check_listing(&format!(r#"{{"sha":"{COMMIT}"}}"#), Ok(&[]));
        check_listing(
            r#"{"sha":"main","siblings":[]}"#,
            Err("\"main\" is no commit"),
        );
        check_listing("<html>", Err("expected value"));
        let many = vec![r#"{"rfilename":"a"}"#; LISTING_FILES_MAX + 1].join(",");
        check_listing(&of(&many), Err("10001 files, at most 10000"));
    }

    #[track_caller]
    fn check_target(from: &str, location: &str, want: Option<&str>) {
        assert_eq!(
            target(from, location).ok().as_deref(),
            want,
            "{from} to {location}"
        );
    }

    #[test]
    fn redirects() {
        let hub = "https://hub.co:8443/a/b?c=1";
        check_target(hub, "/x?y", Some("https://hub.co:8443/x?y"));
        check_target(hub, "//cdn.co/x", Some("https://cdn.co/x"));
        check_target(hub, "https://cdn.co/x", Some("https://cdn.co/x"));
        check_target("http://hub.co", "http://cdn.co/x", Some("http://cdn.co/x"));
        check_target("http://hub.co", "/x", Some("http://hub.co/x"));
        // What was asked under TLS is not fetched without.
        check_target(hub, "http://cdn.co/x", None);
        check_target(hub, "file:///etc/passwd", None);
        check_target(hub, "x", None);
    }

    #[test]
    fn origins_are_compared_whole() {
        let hub = origin("https://Hub.co/api").unwrap();
        for same in ["https://hub.co/x", "https://hub.co:443/y"] {
            assert_eq!(origin(same).as_ref(), Some(&hub), "{same}");
        }
        for other in [
            "http://hub.co/x",
            "https://hub.co:444/x",
            "https://hub.co.evil/x",
            "https://cdn.hub.co/x",
            "https://hub.co@evil/x",
            "/x",
        ] {
            assert_ne!(origin(other).as_ref(), Some(&hub), "{other}");
        }
    }

    #[test]
    fn ranges() {
        assert_eq!(range_start("bytes 5-9/10"), Some(5));
        assert_eq!(range_start("bytes 0-0/*"), Some(0));
        for text in ["", "bytes */10", "items 5-9/10", "bytes -5/10"] {
            assert_eq!(range_start(text), None, "{text:?}");
        }
    }

    #[test]
    fn pauses_double_and_end() {
        let first = Duration::from_millis(500);
        let ms = |n_failures, noise| pause(n_failures, first, None, noise).as_millis();
        assert_eq!(
            [ms(1, u64::MAX), ms(2, u64::MAX), ms(4, u64::MAX)],
            [500, 1_000, 4_000]
        );
        assert_eq!([ms(1, 0), ms(2, 0)], [250, 500]);
        assert_eq!(ms(u32::MAX, u64::MAX), PAUSE_MAX.as_millis());
        let asked = |seconds| pause(1, first, Some(Duration::from_secs(seconds)), 0).as_secs();
        assert_eq!(
            [asked(0), asked(7), asked(99_999)],
            [0, 7, RETRY_AFTER_MAX.as_secs()]
        );
    }
}
