//! A real redis-server in a folder of its own, on a socket that nobody else reaches.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Nothing takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(30);

/// A redis-server without persistence; killed when dropped.
pub(crate) struct Redis {
    child: Option<Child>,
    args: Vec<String>,
    dir: tempfile::TempDir,
}

impl Redis {
    /// Starts one, or says on standard error why there is none.
    pub(crate) fn start(args: &[&str]) -> Option<Self> {
        let mut redis = Self::new(args)?;
        redis.start_again();
        Some(redis)
    }

    /// One that has not been started.
    pub(crate) fn new(args: &[&str]) -> Option<Self> {
        program()?;
        Some(Self {
            child: None,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            dir: tempfile::tempdir().unwrap(),
        })
    }

    /// Starts it where it was, without what it knew.
    pub(crate) fn start_again(&mut self) {
        let program = program().expect("it was there before");
        let mut command = Command::new(&program[0]);
        command.args(&program[1..]).args(["--port", "0"]);
        command.args(["--unixsocket", &self.socket().display().to_string()]);
        command.args(["--save", "", "--appendonly", "no"]);
        command.args(&self.args).current_dir(self.dir.path());
        let log = std::fs::File::create(self.dir.path().join("log")).unwrap();
        command.stdout(log).stderr(Stdio::null());
        self.child = Some(command.spawn().unwrap());
        let start = Instant::now();
        while std::os::unix::net::UnixStream::connect(self.socket()).is_err() {
            let log = || std::fs::read_to_string(self.dir.path().join("log")).unwrap();
            assert!(start.elapsed() < PATIENCE, "no redis-server:\n{}", log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// It is gone at once, with all it knew.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            _ = child.kill();
            _ = child.wait();
        }
    }

    /// It takes connections and answers nobody, until it is told to go on.
    pub(crate) fn hang(&self) {
        self.signal("-STOP");
    }

    pub(crate) fn go_on(&self) {
        self.signal("-CONT");
    }

    pub(crate) fn url(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// A client beside the one that is tested.
    pub(crate) fn client(&self) -> redis::Connection {
        let client = redis::Client::open(self.url()).unwrap();
        client.get_connection().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.dir.path().join("socket")
    }

    fn signal(&self, signal: &str) {
        let id = self.child.as_ref().expect("it runs").id().to_string();
        let status = Command::new("kill").args([signal, &id]).status().unwrap();
        assert!(status.success());
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Debian's, unpacked by `deploy/debian.sh`, or the system's.
fn program() -> Option<Vec<String>> {
    let unpacked = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/debian/run");
    let unpacked = unpacked.display().to_string();
    let ways = [
        vec![unpacked, "redis-server".to_owned()],
        vec!["redis-server".to_owned()],
        vec!["valkey-server".to_owned()],
    ];
    let works = |way: &Vec<String>| {
        let mut command = Command::new(&way[0]);
        command.args(&way[1..]).arg("--version");
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    };
    let found = ways.into_iter().find(works);
    if found.is_none() {
        let why = "there is no redis-server: `deploy/debian.sh redis-server` fetches one on Debian";
        assert!(std::env::var_os("REDIS_REQUIRED").is_none(), "{why}");
        // Not by a macro: what those print is shown only when a test fails.
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        let line = format!("SKIPPED {test}: {why}\n");
        _ = std::io::stderr().write_all(line.as_bytes());
    }
    found
}

/// Asks until there is an answer.
pub(crate) async fn until<T>(what: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "{what} does not happen");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
