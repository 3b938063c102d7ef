//! Settings from what is said to what holds: precedence, names, forms, bounds, relations, and the
//! texts that people read. The environment is a table here; nobody sets a variable.

#[path = "config/admin.rs"]
mod admin;
#[path = "config/keys.rs"]
mod keys;
#[path = "config/names.rs"]
mod names;
#[path = "config/public.rs"]
mod public;

use gateway::cli::{self, CliError, Command};
use gateway::config::raw::{Origin, Raw};
use gateway::config::table::{GROUPS, SETTINGS, find};
use gateway::config::{Config, NamedSource, show, value};
use gateway::score::Activation;
use std::path::{Path, PathBuf};
use std::time::Duration;

type Env<'a> = &'a [(&'a str, &'a str)];
/// What is said, and what the error must say.
type Wrong<'a> = (&'a [(&'a str, &'a str)], &'a [&'a str]);

/// The three sources above the defaults; the file is `crossgate.yaml`.
#[derive(Clone, Copy, Default)]
struct Say<'a> {
    flags: &'a [(&'static str, &'a str)],
    env: Env<'a>,
    file: Option<&'a str>,
}

fn collect(say: Say) -> Result<Raw, Vec<String>> {
    let mut flags: Vec<(&'static str, String)> = Vec::new();
    flags.extend(
        say.flags
            .iter()
            .map(|(key, text)| (*key, (*text).to_owned())),
    );
    if say.file.is_some() {
        flags.push(("config.file", "crossgate.yaml".to_owned()));
    }
    Raw::collect(
        &flags,
        |name| look_up(say.env, name),
        |name| {
            say.file
                .map(str::to_owned)
                .ok_or_else(|| format!("{name} is not there"))
        },
    )
}

fn look_up(env: Env, name: &str) -> Option<String> {
    env.iter()
        .find(|(known, _)| *known == name)
        .map(|(_, text)| (*text).to_owned())
}

fn config(say: Say) -> Result<Config, String> {
    let raw = collect(say).map_err(|errors| errors.join("\n"))?;
    Config::check(&raw).map_err(|error| error.to_string())
}

fn yaml(file: &str) -> Result<Config, String> {
    config(Say {
        file: Some(file),
        ..Say::default()
    })
}

fn set(key: &'static str, text: &str) -> Result<Config, String> {
    config(Say {
        flags: &[(key, text)],
        ..Say::default()
    })
}

fn run(line: &str, env: Env) -> Result<Command, CliError> {
    cli::parse(line.split_whitespace(), |name| look_up(env, name))
}

#[track_caller]
fn serve(line: &str, env: Env) -> Config {
    match run(line, env) {
        Ok(Command::Serve(config)) => *config,
        other => panic!("{line}: {other:?}"),
    }
}

#[track_caller]
fn print(line: &str, env: Env) -> String {
    match run(line, env) {
        Ok(Command::Print(text)) => text,
        other => panic!("{line}: {other:?}"),
    }
}

/// The error says every one of these.
#[track_caller]
fn check_error<T: std::fmt::Debug>(got: Result<T, String>, words: &[&str]) {
    let error = got.expect_err("this is wrong");
    for word in words {
        assert!(error.contains(word), "{error:?} does not say {word:?}");
    }
}

// === precedence and names ===

#[test]
fn a_flag_beats_the_environment_beats_the_file_beats_the_default() {
    let flags: &[(&str, &str)] = &[("server.port", "4")];
    let env: Env = &[("PORT", "3")];
    let file = Some("server:\n  port: 2\n");
    let none = Say::default();
    let cases = [
        (none, "8000", Origin::Default),
        (
            Say { file, ..none },
            "2",
            Origin::File {
                name: "crossgate.yaml".into(),
                line: 2,
            },
        ),
        (Say { file, env, ..none }, "3", Origin::Env("PORT")),
        (Say { file, env, flags }, "4", Origin::Flag("port")),
        (Say { flags, ..none }, "4", Origin::Flag("port")),
    ];
    for (say, text, origin) in cases {
        let raw = collect(say).unwrap();
        let said = raw.get("server.port").unwrap();
        assert_eq!((said.text.as_str(), &said.origin), (text, &origin));
        assert_eq!(Config::check(&raw).unwrap().server().port.to_string(), text);
    }
}

#[test]
fn every_name_of_every_setting_sets_it() {
    for setting in SETTINGS {
        for name in setting.env {
            let env = [(*name, "7")];
            let env = |wanted: &str| look_up(&env, wanted);
            let raw = Raw::collect(&[], env, |_| Ok(String::new())).unwrap();
            let said = raw.get(setting.key).unwrap();
            assert_eq!(said.text, "7", "{name}");
            assert_eq!(said.origin, Origin::Env(name));
        }
        let hash = "8".repeat(64);
        let default = match (setting.default, setting.key) {
            ("", "plugins.sha256" | "server.admin_key" | "server.api_keys") => hash.as_str(),
            ("", "plugins.probe_memory_max") => "1GiB",
            ("", _) => "8",
            (default, _) => default,
        };
        // Two of them mean nothing alone.
        let beside = match setting.key {
            "server.tls_cert" => Some("--tls-key=9"),
            "server.tls_key" => Some("--tls-cert=9"),
            _ => None,
        };
        if setting.key != "config.file" {
            for flag in setting.also.iter().chain([&setting.flag]) {
                let said = format!("--{flag}={default}");
                let args = ["crossgate", "config", &said].into_iter().chain(beside);
                let Ok(Command::Print(text)) = cli::parse(args, |_| None) else {
                    panic!("--{flag}")
                };
                assert!(
                    text.contains(&format!("flag --{}\n", setting.flag)),
                    "--{flag}\n{text}"
                );
            }
        }
    }
}

#[test]
fn the_table_is_in_order() {
    let mut names: Vec<&str> = Vec::new();
    for setting in SETTINGS {
        names.extend(
            [setting.key, setting.flag]
                .iter()
                .chain(setting.also)
                .chain(setting.env),
        );
        assert!(
            GROUPS.iter().any(|(group, _)| *group == setting.group()),
            "{}",
            setting.key
        );
        let own = setting.flag.to_ascii_uppercase().replace('-', "_");
        assert_eq!(
            setting.env.first(),
            Some(&format!("CROSSGATE_{own}").as_str())
        );
        assert!(
            setting.help.ends_with('.') && !setting.help.contains('|'),
            "{}",
            setting.key
        );
        // A default that is there has the setting's own form.
        if !setting.default.is_empty() {
            value::parse(&setting.kind, setting.default).unwrap();
        }
    }
    names.extend(SETTINGS.iter().flat_map(|setting| setting.off));
    let n_names = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), n_names, "a name stands twice");
    cli::program().debug_assert();
}

// === what holds ===

#[test]
fn the_defaults_hold() {
    let config = Config::of(&[]).unwrap();
    let models = config.models();
    let starter = NamedSource {
        name: "starter".into(),
        source: "starter".into(),
    };
    assert_eq!(models.sources, [starter]);
    assert_eq!((models.backend.as_deref(), models.activation), (None, None));
    assert_eq!(
        (models.dtype.as_str(), models.device.as_str()),
        ("auto", "auto")
    );
    assert_eq!((models.max_length, &models.cache_dir), (None, &None));
    assert_eq!(models.options, "{}");
    assert_eq!(config.plugins().dirs, Vec::<PathBuf>::new());
    let server = config.server();
    assert_eq!(
        (server.host.as_str(), server.admin_host.as_str()),
        ("0.0.0.0", "127.0.0.1")
    );
    assert_eq!(server.request_timeout, Duration::from_secs(10));
    assert_eq!(config.intake().body_bytes_max, 32 << 20);
    assert_eq!(config.intake().documents_max, 1_000);
    assert_eq!(
        (config.queue().rows_max, config.queue().tokens_max),
        (16_384, 2_097_152)
    );
    let batch = config.batch();
    assert_eq!(
        (batch.us_max, batch.rows_max, batch.tokens_max),
        (10_000, 256, 8_192)
    );
    assert!(!config.log().is_json);
}

#[test]
fn a_file_sets_groups_lists_and_mappings() {
    let config = yaml(concat!(
        "\u{feff}# everything that is special\n",
        "model:\n",
        "  sources: [a=./x, 'b=org/name@rev']\n",
        "  options: {threads: 4, name: x, pin: true, text: '1', list: [1, ~]}\n",
        "  max_length: 0512\n",
        "  activation: Sigmoid\n",
        "plugins:\n",
        "  dir:\n",
        "    - /opt/plugins\n",
        "    - ./mine\n",
        "server:\n",
        "  port:\n",
        "queue:\n",
        "batch.rows_max: 64\n",
    ))
    .unwrap();
    let models = config.models();
    assert_eq!(models.sources[1].source, "org/name@rev");
    let options = r#"{"list":[1,null],"name":"x","pin":true,"text":"1","threads":4}"#;
    let parse = |text| serde_json::from_str::<serde_json::Value>(text).unwrap();
    assert_eq!(parse(&models.options), parse(options));
    assert_eq!(models.max_length, Some(512));
    assert_eq!(models.activation, Some(Activation::Sigmoid));
    assert_eq!(
        config.plugins().dirs,
        [Path::new("/opt/plugins"), Path::new("./mine")]
    );
    assert_eq!(config.server().port, 8000);
    assert_eq!(config.batch().rows_max, 64);
    yaml("").unwrap();
    yaml("# nothing\n").unwrap();
}

// === what is refused ===

#[test]
fn a_wrong_value_is_named_with_its_origin_and_the_bound() {
    let cases = [
        ("server.port", "70000", "from 0 to 65535"),
        ("server.port", "-1", "from 0 to 65535"),
        ("server.port", "", "from 0 to 65535"),
        ("server.host", "127.0.0.256", "IP address"),
        ("server.host", "localhost:80", "without a port"),
        ("server.request_timeout", "0", "from 1ms to 1h"),
        ("server.request_timeout", "61m", "from 1ms to 1h"),
        (
            "server.request_timeout",
            "soon",
            "250ms, 10s, 2m or 10 (seconds)",
        ),
        ("intake.body_bytes_max", "1KB", "from 1KiB to 1GiB"),
        ("intake.documents_max", "0", "documents from 1 to 16777216"),
        ("queue.rows_max", "many", "rows from 1"),
        ("batch.us_max", "61s", "from 1us to 1m"),
        ("batch.rows_max", "65537", "from 1 to 65536"),
        ("batch.adaptive", "maybe", "true or false"),
        ("model.max_length", "7", "tokens from 8 to 1048576"),
        ("batch.tokens_max", "5", "tokens from 8 to"),
        (
            "model.activation",
            "relu",
            "auto, identity, sigmoid, softmax",
        ),
        (
            "model.device",
            "gpu",
            "auto, cpu, cuda, cuda:N, cuda:N,M, cuda:all, metal, mps",
        ),
        ("model.device", "cuda:", "cuda:N"),
        ("model.dtype", "f 16", "letters, digits"),
        ("model.options", "[1]", "JSON object"),
        ("model.options", "{", "JSON object"),
        ("threads.total", "4097", "threads from 0 to 4096"),
        ("log.level", "infos", "off, error, warn, info, debug, trace"),
        ("log.level", "info,gateway=loud", "directives such as"),
        ("log.format", "xml", "text, json"),
    ];
    for (key, text, bound) in cases {
        let flag = find(key).unwrap().flag;
        check_error(
            set(key, text),
            &[key, &format!("{text:?} (flag --{flag})"), bound],
        );
    }
    let long = "x".repeat(10_000);
    let error = set("model.options", &long).unwrap_err();
    assert!(error.len() < 300, "{error}");
    set("log.level", "warn,gateway=debug").unwrap();
}

#[test]
fn the_error_says_who_said_it() {
    let env: Env = &[("PORT", "x")];
    check_error(
        config(Say {
            env,
            ..Say::default()
        }),
        &["server.port = \"x\" (env PORT)"],
    );
    check_error(
        yaml("# a\nserver: {port: x}"),
        &["server.port = \"x\" (file crossgate.yaml:2)"],
    );
    // All of them at once.
    let error = run("crossgate --port x --threads y", &[("HOST", "a b")]).unwrap_err();
    let CliError::Config(error) = error else {
        panic!("{error:?}")
    };
    assert_eq!(error.sentences().len(), 3, "{error}");
}

#[test]
fn relations() {
    let cases: [Wrong; 7] = [
        (
            &[("intake.document_bytes_max", "33MiB")],
            &[
                "intake.document_bytes_max = \"33MiB\"",
                "intake.body_bytes_max = \"32MiB\" (default)",
            ],
        ),
        (
            &[("intake.query_bytes_max", "33MiB")],
            &["intake.query_bytes_max", "part of a body"],
        ),
        (
            &[("intake.body_bytes_max", "1GiB")],
            &["intake.bytes_max = \"256MiB\""],
        ),
        (
            &[("queue.rows_max", "999")],
            &[
                "intake.documents_max = \"1000\"",
                "queue.rows_max = \"999\"",
            ],
        ),
        (
            &[("model.max_length", "8193"), ("batch.tokens_max", "8192")],
            &[
                "model.max_length = \"8193\"",
                "batch.tokens_max = \"8192\" (flag --max-batch-tokens)",
            ],
        ),
        (
            &[("server.port", "50051")],
            &["server.port", "server.grpc_port = \"50051\" (default)"],
        ),
        (
            &[("server.grpc_port", "9001")],
            &["server.grpc_port", "server.admin_port", "any free one"],
        ),
    ];
    for (said, words) in cases {
        check_error(Config::of(said).map_err(|error| error.to_string()), words);
    }
    let fine: [&[(&str, &str)]; 5] = [
        // How much the model reads shows later.
        &[("model.max_length", "100000")],
        &[("queue.rows_max", "1000")],
        &[
            ("intake.body_bytes_max", "256MiB"),
            ("intake.document_bytes_max", "256MiB"),
        ],
        &[
            ("server.port", "0"),
            ("server.grpc_port", "0"),
            ("server.admin_port", "0"),
        ],
        &[("server.host", "10.0.0.1"), ("server.port", "9001")],
    ];
    for said in fine {
        Config::of(said).unwrap();
    }
}

#[test]
fn what_shows_only_later() {
    let config = serve("crossgate", &[("PORT", "80")]);
    let error = config
        .refuse("server.port", "the address is in use")
        .to_string();
    let want = "server.port = \"80\" (env PORT): the address is in use; \
                change it with --port, CROSSGATE_PORT or PORT";
    assert_eq!(error, want);
}

// === what people read ===

#[test]
fn config_shows_values_and_origins() {
    // The one test that reads a file from the disk.
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shown.yaml");
    std::fs::write(&path, "log:\n  level: debug\n").unwrap();
    let path = path.to_str().unwrap();
    let line = format!("crossgate config --config {path} --threads 3");
    let env: Env = &[("HOST", "localhost")];

    let text = print(&line, env);
    assert_eq!(text.lines().count(), SETTINGS.len());
    let row = |key: &str| {
        let row = text.lines().find(|row| row.starts_with(key)).unwrap();
        row.split_whitespace().skip(1).collect::<Vec<_>>().join(" ")
    };
    assert_eq!(row("threads.total"), "3 flag --threads");
    assert_eq!(row("server.host"), "localhost env HOST");
    assert_eq!(row("log.level"), format!("debug file {path}:2"));
    assert_eq!(row("server.port"), "8000 default");
    assert_eq!(row("model.cache_dir"), "(unset) default");

    let json = print(&format!("{line} --json"), env);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(json.as_object().unwrap().len(), SETTINGS.len());
    let said = &json["threads.total"];
    assert_eq!(
        (&said["value"], &said["from"], &said["name"]),
        (&"3".into(), &"flag".into(), &"--threads".into())
    );
    assert!(json["model.cache_dir"]["value"].is_null());
}

/// A change of a name, default or bound is a change that somebody reads.
#[test]
fn the_reference_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("CONFIG.md");
    let made = show::reference();
    if std::env::var_os("BLESS").is_some() {
        std::fs::write(&path, &made).unwrap();
    }
    let committed = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == made,
        "{} is stale; read the change, then run with BLESS=1",
        path.display()
    );
}
