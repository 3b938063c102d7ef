//! How the settings are said, and that no password is shown.

use gateway::cli::{self, Command};
use gateway::config::{Config, Rate};
use gateway::runtime::Runtime;
use gateway::shared::Shared;
use gateway::telemetry::Metrics;

fn parse(line: &str, env: &[(&str, &str)]) -> Result<Command, String> {
    let env = |name: &str| {
        let found = env.iter().find(|(known, _)| *known == name);
        found.map(|(_, text)| (*text).to_owned())
    };
    cli::parse(line.split_whitespace(), env).map_err(|error| error.to_string())
}

#[track_caller]
fn serve(line: &str, env: &[(&str, &str)]) -> Config {
    match parse(line, env) {
        Ok(Command::Serve(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

#[test]
fn distributed_is_a_flag_a_variable_or_a_key() {
    for (line, env, is_on) in [
        ("crossgate", None, false),
        ("crossgate --distributed", None, true),
        ("crossgate --distributed serve", None, true),
        ("crossgate serve --distributed --port 1", None, true),
        ("crossgate --distributed=true", None, true),
        ("crossgate --distributed=off", Some("true"), false),
        ("crossgate --distributed --distributed=no", None, false),
        ("crossgate", Some("true"), true),
        ("crossgate", Some("1"), true),
        ("crossgate", Some("False"), false),
        ("crossgate", Some(""), false),
    ] {
        let env: Vec<_> = env
            .map(|text| ("ENABLE_DISTRIBUTED", text))
            .into_iter()
            .collect();
        let config = serve(line, &env);
        assert_eq!(config.distributed().is_some(), is_on, "{line} {env:?}");
    }
    let error = parse("crossgate", &[("ENABLE_DISTRIBUTED", "maybe")]).unwrap_err();
    assert!(
        error.contains(
            "distributed.enabled = \"maybe\" (env ENABLE_DISTRIBUTED): expected true or false"
        ),
        "{error}"
    );
}

#[test]
fn bounds_are_off_unless_they_are_set() {
    let of = |line: &str| {
        let config = serve(line, &[]);
        let settings = config.distributed().unwrap();
        (settings.requests_max, settings.rate)
    };
    assert_eq!(of("crossgate --distributed"), (None, None));
    let line = "crossgate --distributed --distributed-requests-max 7 --distributed-rate-max 5";
    let rate = |per_second, burst| Some(Rate { per_second, burst });
    assert_eq!(of(line), (Some(7), rate(5, 5)));
    let line = format!("{line} --distributed-rate-burst 20");
    assert_eq!(of(&line), (Some(7), rate(5, 20)));
}

#[test]
fn passwords_are_not_shown() {
    let env: &[_] = &[("REDIS_URL", "redis://me:sesame@example.org:1/2")];
    for line in ["crossgate config", "crossgate config --json"] {
        match parse(line, env) {
            Ok(Command::Print(text)) => {
                assert!(!text.contains("sesame"), "{text}");
                assert!(text.contains("redis://***@example.org:1/2"), "{text}");
            }
            other => panic!("{other:?}"),
        }
    }
    let config = serve("crossgate --distributed", env);
    let settings = config.distributed().unwrap();
    assert_eq!(
        settings.redis_url.secret(),
        "redis://me:sesame@example.org:1/2"
    );
    assert!(!format!("{config:?}").contains("sesame"), "{config:?}");
    let error = config.refuse("distributed.redis_url", "no").to_string();
    assert!(
        error.contains("***@") && !error.contains("sesame"),
        "{error}"
    );
}

#[tokio::test]
async fn bad_urls_are_refused_by_name() {
    for (url, word) in [
        ("http://:sesame@host", "expected redis://"),
        ("localhost:6379", "expected redis://"),
        ("rediss://:sesame@host", "TLS is not built in"),
        ("redis://", "expected redis://"),
    ] {
        let error = parse("crossgate", &[("REDIS_URL", url)]).unwrap_err();
        assert!(
            error.contains("distributed.redis_url = ") && error.contains(word),
            "{error}"
        );
        assert!(!error.contains("sesame"), "{error}");
    }
    // What only the client can tell.
    let runtime = Runtime::new(tokio::runtime::Handle::current(), 1);
    let metrics = Metrics::new().unwrap();
    for url in [
        "redis://:sesame@host/db",
        "redis://:sesame@:1",
        "redis://:sesame@0.0.0.0",
    ] {
        let config = serve("crossgate --distributed", &[("REDIS_URL", url)]);
        let settings = config.distributed().unwrap();
        let error = Shared::start(settings, &runtime, &metrics)
            .err()
            .expect(url);
        assert!(
            error.contains("URL") && !error.contains("sesame"),
            "{error}"
        );
    }
}
