//! Keys of the public APIs: how they are written, and that they are never shown.

use crate::{check_error, print, serve, yaml};
use gateway::config::{ApiKey, Config, Limits, Rate};
use std::fs;

const KEY: &str = "swordfish-swordfish";
const OTHER: &str = "swordfish+SWORDFISH/==";

fn of(said: &[(&str, &str)]) -> Result<Vec<ApiKey>, String> {
    let config = Config::of(said).map_err(|error| error.to_string())?;
    config.api_keys().map_err(|error| error.to_string())
}

fn limits(rate: Option<(u32, u32)>, minute: Option<u64>, day: Option<u64>) -> Limits {
    Limits {
        rate: rate.map(|(per_second, burst)| Rate { per_second, burst }),
        documents_per_minute: minute,
        documents_per_day: day,
    }
}

/// Their names, and what stands behind each.
fn read(said: &[(&str, &str)]) -> Vec<(String, String, Limits)> {
    let keys = of(said).unwrap_or_else(|why| panic!("{why}"));
    keys.into_iter()
        .map(|key| (key.name, key.secret.reveal().to_owned(), key.limits))
        .collect()
}

#[test]
fn keys_have_names_and_limits() {
    assert!(of(&[]).unwrap().is_empty());
    let none = Limits::default();
    let row = |name: &str, key: &str, limits| (name.to_owned(), key.to_owned(), limits);
    let list = format!("search={KEY},{OTHER}");
    let wanted = [row("search", KEY, none), row("key-2", OTHER, none)];
    assert_eq!(read(&[("server.api_keys", &list)]), wanted);
    for line in [
        format!("crossgate --api-key search={KEY} --api-key {OTHER}"),
        format!("crossgate --api-keys search={KEY},{OTHER}"),
    ] {
        let keys = serve(&line, &[]).api_keys().unwrap();
        assert_eq!(keys.len(), 2, "{line}");
    }
    let keys = serve("crossgate", &[("CROSSGATE_API_KEY", KEY)]).api_keys();
    assert_eq!(keys.unwrap()[0].name, "key-1");
    let keys = yaml(&format!("server:\n  api_keys: [a={KEY}, b={OTHER}]\n")).unwrap();
    assert_eq!(keys.api_keys().unwrap()[1].name, "b");

    let usual = [("keys.rate_max", "5"), ("keys.documents_per_day", "1000")];
    for (entry, wanted) in [
        ("", limits(Some((5, 5)), None, Some(1_000))),
        (" rate=7", limits(Some((7, 7)), None, Some(1_000))),
        (" burst=9", limits(Some((5, 9)), None, Some(1_000))),
        (
            " documents_per_day=2  documents_per_minute=1 burst=8 rate=4 # a comment",
            limits(Some((4, 8)), Some(1), Some(2)),
        ),
    ] {
        let entry = format!("a={KEY}{entry}");
        let said = [usual[0], usual[1], ("server.api_keys", &entry)];
        assert_eq!(read(&said)[0].2, wanted, "{entry}");
    }
}

#[test]
fn a_file_adds_to_what_was_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    fs::write(&path, format!("# ours\n\nbatch={OTHER} rate=2\n")).unwrap();
    let path = path.display().to_string();
    let said = [("server.api_keys", KEY), ("server.api_key_file", &path)];
    let names: Vec<_> = read(&said).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["key-1", "batch"]);
}

#[test]
fn what_makes_no_sense_is_named_and_not_shown() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("keys");
    let same = format!("a={KEY}\nb={KEY}");
    let unlike = format!("a={KEY} rate=1\na={OTHER} rate=2");
    let with = |words: &str| format!("a={KEY} {words}");
    let strange = format!("a b={KEY}");
    for (text, words) in [
        ("swordfish", vec!["line 1", "16 to 512", "NAME=KEY"]),
        ("\n#\nname=swordfish", vec!["line 3", "16 to 512"]),
        (&strange, vec!["16 to 512"]),
        (&same, vec!["line 2", "the same key", "\"a\""]),
        (&unlike, vec!["line 2", "other limits"]),
        (&with("rate"), vec!["rate, burst, documents_per_minute"]),
        (&with("speed=1"), vec!["documents_per_day"]),
        (
            &with("rate=0"),
            vec!["rate: expected a whole number from 1"],
        ),
        (&with("rate=1 rate=2"), vec!["rate stands there twice"]),
        (&with("burst=2"), vec!["burst: expected rate"]),
        ("# none\n", vec!["holds no key"]),
    ] {
        fs::write(&path, text).unwrap();
        let named = path.display().to_string();
        let error = of(&[("server.api_key_file", &named)]).unwrap_err();
        assert!(!error.contains("sword"), "{error}");
        let places = ["server.api_key_file", "--api-key-file", &named];
        check_error::<()>(Err(error), &[&places, &*words].concat());
        // The same in a list.
        if let Some(line) = text
            .lines()
            .next()
            .filter(|_| text.lines().count() == 1 && words.len() < 3)
        {
            let error = of(&[("server.api_keys", line)]).err();
            let error = error.unwrap_or_else(|| "none".to_owned());
            assert!(
                line == "# none" || error.contains("server.api_keys = \"***\""),
                "{error}"
            );
            assert!(!error.contains("sword"), "{error}");
        }
    }
    check_error(
        of(&[("server.api_key_file", "/none")]),
        &["server.api_key_file", "/none: No such file"],
    );
    let many = (0..1_025).map(|n| format!("{KEY}{n}")).collect::<Vec<_>>();
    check_error(
        of(&[("server.api_keys", &many.join(","))]),
        &["at most 1024 keys"],
    );
}

#[test]
fn keys_are_never_shown() {
    let env = [("CROSSGATE_API_KEY", KEY)];
    let config = serve("crossgate", &env);
    for shown in [
        print("crossgate config", &env),
        print("crossgate config --json", &env),
        format!("{config:?} {:?}", config.api_keys()),
        format!("{:?}", config.refuse("server.api_keys", "why")),
    ] {
        assert!(!shown.contains("sword"), "{shown}");
        assert!(shown.contains("***"), "{shown}");
    }
}
