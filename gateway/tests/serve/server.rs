//! A server with the fake plugin on free ports, and a client that blocks.
#![allow(dead_code, reason = "each test uses a part of it")]

use gateway::app::App;
use gateway::config::Config;
use gateway::model::hub;
use serde_json::Value;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tonic::transport::{Channel, Endpoint};

/// No step of a test takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// A server; stops when dropped.
pub(crate) struct Server {
    app: Mutex<Option<App>>,
    address: SocketAddr,
    admin: SocketAddr,
    grpc: SocketAddr,
    runtime: tokio::runtime::Runtime,
    hold: PathBuf,
    _dir: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) text: String,
    headers: Vec<(String, String)>,
}

/// While it lives, the fake computes nothing.
pub(crate) struct Hold(PathBuf);

/// The id of a word in the starter's vocabulary.
pub(crate) fn token(word: &str) -> u64 {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("starter/tokenizer.json");
    let tokenizer: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    tokenizer["model"]["vocab"][word]
        .as_u64()
        .unwrap_or_else(|| panic!("{word:?} is no token of the starter"))
}

/// Where `cargo build` puts the plugins: beside the folder of this test.
pub(crate) fn plugin_dir() -> PathBuf {
    let dir = std::env::current_exe()
        .unwrap()
        .ancestors()
        .nth(2)
        .unwrap()
        .to_owned();
    let library = dir.join(format!(
        "{}fake{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    ));
    assert!(
        library.is_file(),
        "{} is missing: run `make test`, or `cargo build -p fake` first",
        library.display()
    );
    dir
}

// === impl Server ===

impl Server {
    /// Starts a server on the starter's tokenizer and the fake plugin with these options; `settings` are
    /// keys of the configuration.
    pub(crate) fn start(options: &str, settings: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let hub = hub::Settings::from_env(|_| None).unwrap();
        let hub = hub.with_cache_dir(dir.path().join("cache"));
        Self::start_in(dir, hub, options, settings)
    }

    /// The same, with models from this hub.
    pub(crate) fn start_from(hub: hub::Settings, options: &str, settings: &[(&str, &str)]) -> Self {
        Self::start_in(tempfile::tempdir().unwrap(), hub, options, settings)
    }

    fn start_in(
        dir: tempfile::TempDir,
        hub: hub::Settings,
        options: &str,
        settings: &[(&str, &str)],
    ) -> Self {
        let hold = dir.path().join("hold");
        let mut options: Value = serde_json::from_str(options).unwrap();
        options["hold"] = hold.display().to_string().into();
        let (options, plugins) = (options.to_string(), plugin_dir().display().to_string());
        let mut all = vec![
            ("plugins.prober", env!("CARGO_BIN_EXE_crossgate")),
            ("model.backend", "fake"),
            ("model.options", options.as_str()),
            ("plugins.dir", plugins.as_str()),
            ("server.host", "127.0.0.1"),
            ("server.port", "0"),
            ("server.grpc_port", "0"),
            ("server.admin_port", "0"),
            // Where a test does not say otherwise, each request is computed.
            ("cache.enabled", "false"),
            ("cache.coalesce", "false"),
        ];
        all.extend(settings);
        let config = Config::of(&all).unwrap_or_else(|error| panic!("{error}"));
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let app = runtime.block_on(async {
            let mut app = App::start(&config, hub)
                .await
                .unwrap_or_else(|error| panic!("{error}"));
            app.loaded().await.unwrap_or_else(|error| panic!("{error}"));
            app
        });
        Self {
            address: app.http,
            admin: app.admin.address().expect("a port"),
            grpc: app.grpc,
            app: Mutex::new(Some(app)),
            runtime,
            hold,
            _dir: dir,
        }
    }

    /// Holds the fake back until the value is dropped.
    pub(crate) fn hold(&self) -> Hold {
        std::fs::write(&self.hold, "").unwrap();
        Hold(self.hold.clone())
    }

    pub(crate) fn rerank(&self, body: &Value) -> Answer {
        self.post("/rerank", body)
    }

    pub(crate) fn post(&self, path: &str, body: &Value) -> Answer {
        ask(self.address, "POST", path, Some(body), PATIENCE)
    }

    /// With this header.
    pub(crate) fn rerank_with(&self, (name, value): (&str, &str), body: &Value) -> Answer {
        let response = agent(PATIENCE)
            .post(format!("http://{}/rerank", self.address))
            .content_type("application/json")
            .header(name, value)
            .send(body.to_string());
        answer(response.unwrap_or_else(|error| panic!("{error}")))
    }

    pub(crate) fn rerank_later(&self, body: &Value) -> JoinHandle<Answer> {
        let (address, body) = (self.address, body.clone());
        std::thread::spawn(move || ask(address, "POST", "/rerank", Some(&body), PATIENCE))
    }

    /// Asks for less time than the server allows.
    pub(crate) fn rerank_within(&self, body: &Value, timeout: Duration) -> JoinHandle<Answer> {
        let (address, body) = (self.address, body.clone());
        std::thread::spawn(move || {
            let path = format!("/rerank#{}", timeout.as_millis());
            ask(address, "POST", &path, Some(&body), PATIENCE)
        })
    }

    pub(crate) fn get(&self, path: &str) -> Answer {
        self.get_within(path, PATIENCE)
    }

    /// Has the operators' listener do something.
    pub(crate) fn act(&self, path: &str) -> Answer {
        ask(self.admin, "POST", path, Some(&Value::Null), PATIENCE)
    }

    /// The same with a body.
    pub(crate) fn order(&self, path: &str, body: &Value) -> Answer {
        ask(self.admin, "POST", path, Some(body), PATIENCE)
    }

    /// The same, answered by a stream of events, to its end.
    pub(crate) fn order_stream(&self, path: &str, body: &Value) -> String {
        let response = agent(PATIENCE)
            .post(format!("http://{}{path}", self.admin))
            .content_type("application/json")
            .header("accept", "text/event-stream")
            .send(body.to_string());
        answer(response.unwrap_or_else(|error| panic!("{error}"))).text
    }

    /// A connection over gRPC.
    pub(crate) fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(format!("http://{}", self.grpc)).unwrap();
        self.wait(endpoint.connect()).unwrap()
    }

    /// Waits for what a client does.
    pub(crate) fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        let bounded = async { tokio::time::timeout(PATIENCE, future).await };
        self.runtime.block_on(bounded).expect("in time")
    }

    /// Where operators are listened to.
    pub(crate) fn admin_address(&self) -> SocketAddr {
        self.admin
    }

    /// Asks the operators' listener.
    pub(crate) fn admin(&self, path: &str) -> Answer {
        ask(self.admin, "GET", path, None, PATIENCE)
    }

    pub(crate) fn get_within(&self, path: &str, timeout: Duration) -> Answer {
        ask(self.address, "GET", path, None, timeout)
    }

    /// Sends a request and leaves its answer unread; dropping the stream goes away.
    pub(crate) fn connect_and_ask(&self, body: &Value) -> TcpStream {
        let body = body.to_string();
        self.connect_and_begin(body.len(), &body)
    }

    /// Sends the head of a request with a body of so many bytes, and its beginning.
    pub(crate) fn connect_and_begin(&self, body_bytes: usize, begun: &str) -> TcpStream {
        let mut stream = TcpStream::connect(self.address).unwrap();
        let head = "POST /rerank HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";
        write!(stream, "{head}content-length: {body_bytes}\r\n\r\n{begun}").unwrap();
        stream
    }

    /// Sends the head of a request, and nothing of its body; the status that comes all the same.
    pub(crate) fn status_of_head(&self) -> (TcpStream, String) {
        let mut stream = self.connect_and_begin(100, "");
        stream
            .set_read_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        let mut status = [0; "HTTP/1.1 503".len()];
        let read = stream.read_exact(&mut status);
        let status = read.map_or_else(
            |error| error.to_string(),
            |()| String::from_utf8_lossy(&status).into_owned(),
        );
        (stream, status)
    }

    /// The sum of a metric over its labels; 0 when it is not there yet.
    pub(crate) fn metric(&self, name: &str) -> f64 {
        self.metric_of(name, "")
    }

    /// The same of the series that have this label, written as in `name="value"`.
    pub(crate) fn metric_of(&self, name: &str, label: &str) -> f64 {
        let text = self.get("/metrics").text;
        let of_name = |line: &&str| {
            line.strip_prefix(name)
                .is_some_and(|rest| rest.starts_with(['{', ' ']) && rest.contains(label))
        };
        text.lines()
            .filter(of_name)
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Asks again until there is something.
    pub(crate) fn until<T>(&self, mut ask: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = ask() {
                return found;
            }
            assert!(Instant::now() < end, "what was waited for did not come");
            std::thread::yield_now();
        }
    }

    /// Drains the server on another thread.
    pub(crate) fn shut_down_later(&self) -> JoinHandle<usize> {
        let app = self.app.lock().unwrap().take().expect("it runs");
        let handle = self.runtime.handle().clone();
        std::thread::spawn(move || handle.block_on(app.shut_down()))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.hold);
        if let Some(app) = self.app.lock().unwrap().take() {
            self.runtime.block_on(app.shut_down());
        }
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

// === impl Answer ===

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    pub(crate) fn results(&self) -> Vec<Value> {
        let body: Value = serde_json::from_str(&self.text)
            .unwrap_or_else(|error| panic!("{error}: {}", self.text));
        body["results"]
            .as_array()
            .unwrap_or_else(|| panic!("no results: {}", self.text))
            .clone()
    }
}

pub(crate) fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
    body: Option<&Value>,
    timeout: Duration,
) -> Answer {
    // What stands behind # is the client's deadline in milliseconds.
    let (path, timeout_ms) = path.split_once('#').unwrap_or((path, "3600000"));
    let agent = agent(timeout);
    let url = format!("http://{address}{path}");
    let response = match (method, body) {
        ("POST", Some(body)) => agent
            .post(&url)
            .content_type("application/json")
            .header("x-request-timeout-ms", timeout_ms)
            .send(body.to_string()),
        _ => agent.get(&url).call(),
    };
    answer(response.unwrap_or_else(|error| panic!("{method} {path}: {error}")))
}

fn agent(timeout: Duration) -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(timeout))
        .build()
        .new_agent()
}

fn answer(mut response: ureq::http::Response<ureq::Body>) -> Answer {
    let text = |value: &ureq::http::HeaderValue| value.to_str().unwrap_or_default().to_owned();
    Answer {
        status: response.status().as_u16(),
        headers: response
            .headers()
            .iter()
            .map(|(key, value)| (key.to_string(), text(value)))
            .collect(),
        text: response
            .body_mut()
            .with_config()
            .limit(64 << 20)
            .read_to_string()
            .unwrap(),
    }
}
