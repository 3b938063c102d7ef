//! The program itself: signals, exit codes, and what it says when it ends.

use crate::server::{ask, plugin_dir};
use serde_json::json;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// No step of a test takes this long unless something is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);
/// A process that was told to stop is gone after much less than any download takes.
pub(crate) const SOON: Duration = Duration::from_secs(10);

/// A running `crossgate`; killed when dropped.
pub(crate) struct Process {
    child: Child,
    stderr: BufReader<ChildStderr>,
    dir: tempfile::TempDir,
}

impl Process {
    /// Starts on free ports with the fake plugin, and asks `hub` for models.
    pub(crate) fn start(args: &[&str], hub: &str) -> Self {
        Self::start_with(args, &[("HF_ENDPOINT", hub)])
    }

    pub(crate) fn start_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = json!({"hold": hold(dir.path())}).to_string();
        let mut command = Command::new(env!("CARGO_BIN_EXE_crossgate"));
        command
            .args(["--host", "127.0.0.1", "--port", "0", "--grpc-port", "0"])
            .args(["--admin-port", "0", "--backend", "fake"])
            .args(["--backend-options", &options, "--plugin-dir"])
            .arg(plugin_dir())
            .arg("--cache-dir")
            .arg(dir.path().join("cache"))
            .args(args)
            .envs(env.iter().copied())
            .env("NO_PROXY", "*")
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Self { child, stderr, dir }
    }

    /// Reads on until a line that says `word`.
    pub(crate) fn line_with(&mut self, word: &str) -> String {
        let mut said = String::new();
        loop {
            let mut line = String::new();
            let n_read = self.stderr.read_line(&mut line).unwrap();
            assert!(n_read > 0, "it ended without {word:?}:\n{said}");
            if line.contains(word) {
                return line;
            }
            said.push_str(&line);
        }
    }

    /// Where HTTP listens.
    pub(crate) fn address(&mut self) -> SocketAddr {
        let line = self.line_with("listening");
        let (_, rest) = line.split_once("http=").unwrap();
        rest.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Sends a request and waits until it was admitted.
    fn ask_and_leave_unread(&self, address: SocketAddr) -> TcpStream {
        let body = json!({"query": "q", "documents": ["x"]}).to_string();
        let mut client = TcpStream::connect(address).unwrap();
        let head = "POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        write!(client, "{head}content-length: {}\r\n\r\n{body}", body.len()).unwrap();
        let in_flight = || ask(address, "GET", "/metrics", None, PATIENCE).text;
        while !in_flight().contains("crossgate_requests_in_flight{model=\"starter\"} 1") {
            std::thread::yield_now();
        }
        client
    }

    pub(crate) fn signal(&self, name: &str) {
        let kill = Command::new("kill")
            .args([name, &self.child.id().to_string()])
            .status();
        assert!(kill.unwrap().success());
    }

    /// Waits for the end; what was said on the way.
    pub(crate) fn end_within(&mut self, patience: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + patience;
        let status = loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "it does not end");
            std::thread::sleep(Duration::from_millis(5));
        };
        let mut said = String::new();
        self.stderr.read_to_string(&mut said).unwrap();
        (status, said)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// While this file exists, the fake computes nothing.
fn hold(dir: &Path) -> std::path::PathBuf {
    dir.join("hold")
}

/// A hub that takes connections and says nothing until the test does.
fn silent_hub() -> (TcpListener, String) {
    let hub = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", hub.local_addr().unwrap());
    (hub, url)
}

fn answer_404(mut stream: &TcpStream) {
    let head = "HTTP/1.1 404 X\r\nx-error-code: RepoNotFound\r\n";
    write!(
        stream,
        "{head}content-length: 0\r\nconnection: close\r\n\r\n"
    )
    .unwrap();
}

#[test]
fn a_signal_ends_the_process_also_while_a_download_stalls() {
    for signal in ["-TERM", "-INT"] {
        let (hub, url) = silent_hub();
        let mut process = Process::start(&["--models", "org/name"], &url);
        let _stalled = hub.accept().unwrap();
        process.signal(signal);
        let (status, said) = process.end_within(SOON);
        assert!(status.success(), "{signal}: {status}: {said}");
    }
}

#[test]
fn a_second_signal_ends_the_process_at_once() {
    let mut process = Process::start(&["--drain-timeout", "1h"], "http://127.0.0.1:1");
    let address = process.address();
    process.line_with("ready");
    std::fs::write(hold(process.dir.path()), "").unwrap();
    let _client = process.ask_and_leave_unread(address);
    process.signal("-TERM");
    process.line_with("draining");
    process.signal("-TERM");
    let (status, said) = process.end_within(SOON);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("asked twice"), "{said}");
}

#[test]
fn a_model_that_does_not_load_leaves_the_others_time_to_answer() {
    let (hub, url) = silent_hub();
    let models = ["--models", "starter,org/name"];
    let mut process = Process::start(&models, &url);
    let address = process.address();
    process.line_with("model is live");
    let (asked, _) = hub.accept().unwrap();
    std::fs::write(hold(process.dir.path()), "").unwrap();
    let body = json!({"query": "q", "documents": ["x"]});
    let admitted =
        std::thread::spawn(move || ask(address, "POST", "/rerank", Some(&body), PATIENCE));
    let in_flight = || ask(address, "GET", "/metrics", None, PATIENCE).text;
    while !in_flight().contains("crossgate_requests_in_flight{model=\"starter\"} 1") {
        std::thread::yield_now();
    }
    answer_404(&asked);
    process.line_with("draining");
    std::fs::remove_file(hold(process.dir.path())).unwrap();
    assert_eq!(admitted.join().unwrap().status, 200);
    let (status, said) = process.end_within(SOON);
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("org/name does not load"), "{said}");
}

#[test]
fn wrong_values_end_with_2_before_a_port_opens() {
    let cases = [
        (["--backend", "nobody"], "there is no plugin \"nobody\""),
        (["--dtype", "f16"], "expected auto or one of f32"),
        (["--max-batch-tokens", "5"], "tokens from 8"),
        (["--device", "cuda"], "expected auto or one of cpu"),
        (["--plugin-dir", "/nope"], "there is no folder /nope"),
        (["--plugin-dir", "/dev/null"], "/dev/null is a file"),
        // An address for documentation, which no machine has.
        (["--host", "203.0.113.7"], "server.host"),
        (["--log-level", "gateway=loud"], "log.level"),
        (["--models", "no spaces"], "model.sources"),
    ];
    for (args, word) in cases {
        let mut process = Process::start(&args, "http://127.0.0.1:1");
        let (status, said) = process.end_within(PATIENCE);
        assert_eq!(status.code(), Some(2), "{args:?}: {said}");
        assert!(said.contains(word), "{args:?}: {said} does not say {word}");
        assert!(!said.contains("listening"), "{args:?}: {said}");
    }
}

#[test]
fn wrong_values_that_only_the_model_or_the_plugin_knows_end_with_2() {
    let cases = [
        (
            ["--activation", "softmax"],
            ["model.activation", "1 for every document"],
        ),
        (
            ["--backend-options", r#"{"colour": "red"}"#],
            ["model.options", "colour"],
        ),
    ];
    for (args, words) in cases {
        let mut process = Process::start(&args, "http://127.0.0.1:1");
        let (status, said) = process.end_within(PATIENCE);
        assert_eq!(status.code(), Some(2), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?}: {said} does not say {word}");
        }
    }
}

#[test]
fn a_length_beyond_the_models_is_the_models() {
    let mut process = Process::start(&["--max-length", "100000"], "http://127.0.0.1:1");
    let line = process.line_with("more than the model reads");
    assert!(line.contains("512 tokens"), "{line}");
    process.line_with("row_tokens_max=512");
}

#[test]
fn plugins_of_no_folder_are_an_error() {
    let output = Command::new(env!("CARGO_BIN_EXE_crossgate"))
        .args(["plugins", "--plugin-dir", "/nope"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("there is no folder /nope"), "{said}");
}

#[test]
fn a_drain_that_leaves_requests_unanswered_says_so() {
    let mut process = Process::start(&["--drain-timeout", "100ms"], "http://127.0.0.1:1");
    let address = process.address();
    process.line_with("ready");
    std::fs::write(hold(process.dir.path()), "").unwrap();
    let _client = process.ask_and_leave_unread(address);
    process.signal("-TERM");
    process.line_with("server.drain_timeout has passed");
    let (status, said) = process.end_within(SOON);
    assert_eq!(status.code(), Some(3), "{said}");
    assert!(said.contains("unanswered=1"), "{said}");
}

/// A folder with the starter and another value in its `config.json`.
fn starter_with(key: &str, value: u32) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let starter = Path::new(env!("CARGO_MANIFEST_DIR")).join("starter");
    for name in ["tokenizer.json", "model.safetensors"] {
        std::fs::copy(starter.join(name), dir.path().join(name)).unwrap();
    }
    let config = std::fs::read_to_string(starter.join("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
    config[key] = value.into();
    std::fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    dir
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_numbers() {
    let cases: [(&str, u32, &str, i32, &[&str]); 2] = [
        (
            "vocab_size",
            15_000,
            "512",
            1,
            &[
                "small does not load",
                "the model's vocabulary ends at 15000",
            ],
        ),
        (
            "max_position_embeddings",
            20_000,
            "9000",
            2,
            &[
                "model.max_length",
                "rows of 9000 tokens",
                "batch.tokens_max = 8192",
            ],
        ),
    ];
    for (key, value, length, code, words) in cases {
        let dir = starter_with(key, value);
        let source = format!("small={}", dir.path().display());
        let args = ["--models", &source, "--max-length", length];
        let mut process = Process::start(&args, "http://127.0.0.1:1");
        let (status, said) = process.end_within(PATIENCE);
        assert_eq!(status.code(), Some(code), "{said}");
        for word in words {
            assert!(said.contains(word), "{said} does not say {word}");
        }
    }
}

#[test]
fn a_variable_that_is_no_setting_is_named() {
    let mut process = Process::start_with(&[], &[("CROSSGATE_PROT", "80")]);
    process.line_with("did you mean CROSSGATE_PORT?");
}

/// The process that tries a plugin out for this one.
#[cfg(target_os = "linux")]
fn probe_of(server: u32) -> Option<String> {
    let status = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/status")).ok();
    let is_its = |pid: &String| {
        status(pid).is_some_and(|status| status.contains(&format!("\nPPid:\t{server}\n")))
    };
    let entries = std::fs::read_dir("/proc").unwrap();
    let mut names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    names.find(is_its)
}

#[cfg(target_os = "linux")]
#[test]
fn a_plugin_that_hangs_in_its_trial_ends_with_the_server() {
    for signal in ["-KILL", "-TERM"] {
        let mut process = Process::start(&[], "http://127.0.0.1:9");
        let line = process.line_with("listening");
        let (_, rest) = line.split_once("admin=").unwrap();
        let admin = rest.split_whitespace().next().unwrap();
        process.line_with("ready");
        let mut order = Command::new(env!("CARGO_BIN_EXE_crossgate"))
            .args(["swap", "starter", "--admin", admin])
            .args(["--options", r#"{"crash": "hang"}"#])
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let end = Instant::now() + PATIENCE;
        let until = |mut is_so: Box<dyn FnMut() -> bool>| {
            while !is_so() {
                assert!(Instant::now() < end, "what was waited for did not come");
                std::thread::sleep(Duration::from_millis(5));
            }
        };
        let server = process.child.id();
        until(Box::new(move || probe_of(server).is_some()));
        let probe = probe_of(server).unwrap();
        process.signal(signal);
        process.end_within(SOON);
        let folder = format!("/proc/{probe}/exe");
        // A zombie, if nobody else reaps it, has no program any more.
        until(Box::new(move || std::fs::read_link(&folder).is_err()));
        order.wait().unwrap();
    }
}

#[test]
fn copies_of_plugins_that_have_no_cache_go_with_the_server() {
    let temporary = tempfile::tempdir().unwrap();
    let copies = || {
        let entries = std::fs::read_dir(temporary.path()).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        names
            .filter(|name| name.starts_with("crossgate-plugins-"))
            .count()
    };
    let place = temporary.path().display().to_string();
    let args = ["--cache-dir", "/dev/null/nowhere"];
    let mut process = Process::start_with(&args, &[("TMPDIR", &place)]);
    process.line_with("ready");
    assert_eq!(copies(), 1);
    process.signal("-TERM");
    let (status, said) = process.end_within(SOON);
    assert!(status.success(), "{said}");
    assert_eq!(copies(), 0);
}
