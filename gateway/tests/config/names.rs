//! Names that other servers know, and what the settings of queue and batch mean.

use super::{check_error, print, run, serve, set};
use gateway::bench::{Stage, Workload};
use gateway::cli::Command;
use gateway::config::show::SHARED_NAMES;
use gateway::config::{Config, show};
use gateway::score::Priority;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_configuration_for_another_server_keeps_its_meaning() {
    let by_env = serve(
        "crossgate",
        &[
            ("MAX_PARALLEL_REQUESTS", "4"),
            ("MAX_QUEUE_SIZE", "10"),
            ("QUEUE_TIMEOUT_SECONDS", "30"),
            ("BATCH_SIZE", "16"),
            ("WORKER_TIMEOUT", "120"),
            ("MAX_RETRIES", "3"),
        ],
    );
    let by_flags = serve(
        "crossgate --max-parallel-requests 4 --max-queue-size 10 --queue-timeout-seconds 30 \
         --batch-size 16 --worker-timeout 120 --max-retries 3",
        &[],
    );
    for config in [by_env, by_flags] {
        assert_eq!(config.threads().workers, 4);
        assert_eq!(config.queue().requests_max, 10);
        assert_eq!(config.queue().wait_max, Some(30 * SECOND));
        // The default of what is preferred gives way.
        assert_eq!(config.batch().rows_max, 16);
        assert_eq!(config.batch().rows_preferred, 16);
        assert_eq!(config.worker().timeout, 120 * SECOND);
        assert_eq!(config.worker().retries_max, 3);
    }
    let line = "crossgate --max-batch-size 64 --max-wait-time 0.005 --preferred-batch-size 8";
    let batch = serve(line, &[]).batch().clone();
    assert_eq!((batch.rows_max, batch.rows_preferred), (64, 8));
    assert_eq!(batch.wait_max, Duration::from_millis(5));
}

/// Elsewhere than on a Mac the old servers went on without MLX.
#[test]
fn use_mlx_never_refuses_a_start_and_is_never_silent() {
    let env = [("USE_MLX", "true"), ("DEVICE_PREFERENCE", "auto")];
    let config = serve("crossgate", &env);
    let (device, words) = match cfg!(target_os = "macos") {
        true => ("metal", "CROSSGATE_DEVICE=metal"),
        false => ("auto", "no Mac"),
    };
    assert_eq!(config.models().device, device);
    let notices = config.notices().join("; ");
    assert!(
        notices.contains("USE_MLX") && notices.contains(words),
        "{notices}"
    );
    let named = serve("crossgate --device cpu", &env);
    assert_eq!(named.models().device, "cpu");
    assert!(named.notices()[0].contains("flag --device"));
    for nothing in ["", "false"] {
        let config = serve("crossgate", &[("USE_MLX", nothing)]);
        assert!(config.notices().is_empty());
    }
}

#[test]
fn every_name_leads_to_a_key() {
    let reference = show::reference();
    for name in SHARED_NAMES {
        let row = reference
            .lines()
            .find(|line| line.starts_with(&format!("| `{name}` ")));
        assert!(
            row.is_some_and(|row| (row.contains('.') || row.contains("crossgate bench"))
                && !row.contains("none")),
            "{name}: {row:?}"
        );
    }
}

/// What they switched off is not here.
#[test]
fn flags_without_effect_are_accepted_and_noted() {
    for flag in [
        "--disable-flash-attention",
        "--disable-compile",
        "--disable-better-transformer",
    ] {
        for line in [
            format!("crossgate {flag}"),
            format!("crossgate serve {flag}"),
        ] {
            let notices = serve(&line, &[]).notices().to_vec();
            assert_eq!(notices.len(), 1, "{line}: {notices:?}");
            assert!(notices[0].starts_with(&format!("{flag} is passed over: ")));
        }
    }
    assert!(serve("crossgate", &[]).notices().is_empty());
}

#[test]
fn a_benchmark_by_flags_is_the_command() {
    let bench = |line: &str| match run(line, &[]) {
        Ok(Command::Bench(config, options)) => (*config, *options),
        other => panic!("{line}: {other:?}"),
    };
    for (line, texts) in [
        ("crossgate --benchmark --port 1", 1_000),
        ("crossgate --benchmark --benchmark-texts 50 --port 1", 50),
        ("crossgate --benchmark-texts 50 --port 1", 50),
        (
            "crossgate serve --benchmark --benchmark-texts 50 --port 1",
            50,
        ),
        ("crossgate bench --stage pipeline --texts 50 --port 1", 50),
    ] {
        let (config, options) = bench(line);
        assert_eq!(config.server().port, 1);
        assert_eq!(options.workload, Workload::Made { texts }, "{line}");
        assert_eq!(options.stage, Stage::Pipeline);
    }
    let both = "crossgate bench --stage pipeline --texts 50 --workload x";
    assert!(run(both, &[]).is_err());
    assert!(run("crossgate bench --stage pipeline", &[]).is_err());
}

#[test]
fn a_flag_without_a_value_says_no() {
    let is_adaptive = |line: &str, env| serve(line, env).batch().is_adaptive;
    assert!(is_adaptive("crossgate", &[]));
    let off = "crossgate --disable-adaptive-batching";
    assert!(!is_adaptive(off, &[]));
    assert!(!is_adaptive(&format!("{off} serve"), &[]));
    assert!(!is_adaptive(
        "crossgate serve --disable-adaptive-batching",
        &[]
    ));
    assert!(!is_adaptive("crossgate --adaptive-batching=Off", &[]));
    assert!(!is_adaptive(
        "crossgate",
        &[("CROSSGATE_ADAPTIVE_BATCHING", "no")]
    ));
    let env = [("CROSSGATE_ADAPTIVE_BATCHING", "0")];
    assert!(is_adaptive("crossgate --adaptive-batching=1", &env));
    let shown = print("crossgate config --disable-adaptive-batching", &[]);
    let row = shown
        .lines()
        .find(|line| line.starts_with("batch.adaptive"));
    assert!(
        row.is_some_and(|row| row.contains("false") && row.contains("flag --adaptive-batching"))
    );
}

#[test]
fn bounds_of_queue_and_batch_by_default() {
    let config = Config::of(&[]).unwrap();
    let (queue, batch) = (config.queue(), config.batch());
    assert_eq!((queue.requests_max, queue.bytes_max), (1_024, 64 << 20));
    assert_eq!(queue.wait_max, None);
    assert_eq!(batch.wait_max, Duration::from_millis(10));
    assert_eq!((batch.rows_preferred, batch.is_adaptive), (32, true));
    assert_eq!(config.intake().priority_max, Priority::High);
    let low = set("intake.priority_max", "LOW").unwrap();
    assert_eq!(low.intake().priority_max, Priority::Low);
    check_error(set("intake.priority_max", "urgent"), &["high, normal, low"]);
}

#[test]
fn relations_of_queue_and_batch() {
    let wrong = Config::of(&[("queue.wait_max", "9ms")]).map_err(|error| error.to_string());
    check_error(
        wrong,
        &[
            "batch.wait_max = \"10ms\" (default)",
            "queue.wait_max = \"9ms\"",
        ],
    );
    Config::of(&[("queue.wait_max", "10ms")]).unwrap();
    Config::of(&[("queue.wait_max", "9ms"), ("batch.wait_max", "0")]).unwrap();
    let both = [("batch.rows_preferred", "17"), ("batch.rows_max", "16")];
    let wrong = Config::of(&both).map_err(|error| error.to_string());
    check_error(
        wrong,
        &["batch.rows_preferred = \"17\"", "batch.rows_max = \"16\""],
    );
}

#[test]
fn prefixes_keep_their_spaces() {
    let config = serve(
        "crossgate --document-prefix=passage:",
        &[("CROSSGATE_QUERY_PREFIX", "query: ")],
    );
    assert_eq!(config.models().query_prefix, "query: ");
    assert_eq!(config.models().document_prefix, "passage:");
    let none = serve("crossgate", &[]);
    assert_eq!(none.models().query_prefix, "");
    check_error(
        set("model.query_prefix", &"x".repeat(5_000)),
        &["at most 4096 bytes"],
    );
}
