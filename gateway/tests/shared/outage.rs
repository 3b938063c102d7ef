//! Redis stopped, hung, refusing: requests lose a bounded time, and the log is not flooded.

use crate::fixture::{Redis, until};
use crate::{OPERATION, Server};
use std::io;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tracing_subscriber::fmt::MakeWriter;

const SETTINGS: [(&str, &str); 2] = [
    ("distributed.requests_max", "3"),
    ("distributed.rate_max", "3"),
];
/// Failures in a row after which nobody is asked any more.
const FAILURES_MAX: u32 = 5;
/// What a loaded machine adds.
const SLACK: Duration = Duration::from_millis(500);

/// Every operation once, as a request does; nothing fails, whatever Redis does.
async fn request(server: &Server) -> Option<Vec<u8>> {
    server.shared.allow("client").await.unwrap();
    let lease = server.shared.enter().await.unwrap();
    let value = server.get_one(1).await;
    server.shared.put(vec![(2, b"y".to_vec())]);
    drop(lease);
    value
}

/// So many requests, one after the other; how long they took.
async fn requests(server: &Server, n: usize) -> Duration {
    let start = Instant::now();
    for _ in 0..n {
        request(server).await;
    }
    start.elapsed()
}

/// Values are read again; what was there is there, if `remembered`.
async fn check_well(server: &Server, is_remembered: bool) {
    server.is(true).await;
    if is_remembered {
        assert_eq!(server.get_one(1).await.as_deref(), Some(&b"x"[..]));
    }
    server.keep(3, b"z").await;
    let lease = until("a place", async || server.shared.enter().await.unwrap()).await;
    drop(lease);
    assert_eq!(server.metric("crossgate_distributed_breaker"), 0.0);
}

#[tokio::test]
async fn a_hung_redis_costs_a_few_timeouts_in_all() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let server = Server::connected(&redis, &SETTINGS).await;
    server.keep(1, b"x").await;
    redis.hang();
    let took = requests(&server, 1_000).await;
    assert!(
        took < OPERATION * FAILURES_MAX + SLACK,
        "{took:?} for all of them"
    );
    server.is(false).await;
    let took = requests(&server, 1_000).await;
    assert!(took < SLACK, "{took:?} while the breaker is open");
    // Whatever the background does meanwhile.
    assert!(server.metric("crossgate_distributed_breaker") >= 1.0);
    assert!(server.shared.clear().await.is_err());
    redis.go_on();
    check_well(&server, true).await;
}

#[tokio::test]
async fn a_hung_redis_costs_a_crowd_no_more() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let server = Arc::new(Server::connected(&redis, &[]).await);
    server.keep(1, b"x").await;
    redis.hang();
    let start = Instant::now();
    let crowd: Vec<_> = (0..2_000)
        .map(|_| {
            let server = Arc::clone(&server);
            tokio::spawn(async move { server.shared.get(&[1]).await })
        })
        .collect();
    for got in crowd {
        assert_eq!(got.await.unwrap(), [None]);
    }
    assert!(
        start.elapsed() < OPERATION * 2 + SLACK,
        "{:?}",
        start.elapsed()
    );
    redis.go_on();
    server.is(true).await;
    // An answer that came too late is not taken for another one's.
    server
        .shared
        .put(vec![(5, b"five".to_vec()), (6, b"six".to_vec())]);
    until("the write", async || server.get_one(6).await).await;
    let got = server.shared.get(&[6, 7, 5]).await;
    assert_eq!(got, [Some(b"six".to_vec()), None, Some(b"five".to_vec())]);
}

#[tokio::test]
async fn a_slow_answer_is_not_taken_for_the_next_one() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let server = Server::connected(&redis, &[]).await;
    server
        .shared
        .put(vec![(5, b"five".to_vec()), (6, b"six".to_vec())]);
    until("the write", async || server.get_one(6).await).await;
    // One timeout: the breaker stays closed and the connection as it is.
    redis.hang();
    assert_eq!(server.shared.get(&[5]).await, [None]);
    redis.go_on();
    let got = until("an answer", async || server.get_one(6).await).await;
    assert_eq!(got, b"six");
    assert_eq!(
        server.shared.get(&[7, 5]).await,
        [None, Some(b"five".to_vec())]
    );
}

#[tokio::test]
async fn a_stopped_redis_costs_nothing_and_comes_back() {
    let Some(mut redis) = Redis::start(&[]) else {
        return;
    };
    let server = Server::connected(&redis, &SETTINGS).await;
    server.keep(1, b"x").await;
    for _ in 0..2 {
        redis.kill();
        let took = requests(&server, 1_000).await;
        assert!(took < SLACK, "{took:?}");
        server.is(false).await;
        redis.start_again();
        // It has forgotten everything but goes on where the servers are.
        check_well(&server, false).await;
        server.keep(1, b"x").await;
    }
}

#[tokio::test]
async fn a_server_starts_without_redis_and_finds_it_later() {
    let Some(mut redis) = Redis::new(&[]) else {
        return;
    };
    let start = Instant::now();
    let server = Server::new(&redis.url(), &SETTINGS);
    let took = requests(&server, 100).await;
    assert!(start.elapsed() < SLACK, "{took:?}");
    assert_eq!(server.get_one(1).await, None);
    redis.start_again();
    server.is(true).await;
    let mut epoch = server.shared.cleared();
    epoch.wait_for(|epoch| *epoch > 0).await.unwrap();
    server.keep(1, b"x").await;
}

/// Keeps what is written to the log.
#[derive(Clone, Default)]
struct Page(Arc<Mutex<Vec<u8>>>);

impl io::Write for Page {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Page {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        self.clone()
    }
}

/// On this thread, with all tasks of its runtime, until the guard is dropped.
fn listen() -> (Page, tracing::subscriber::DefaultGuard) {
    let page = Page::default();
    let log = tracing_subscriber::fmt()
        .with_writer(page.clone())
        .with_ansi(false)
        .finish();
    (page, tracing::subscriber::set_default(log))
}

impl Page {
    fn lines_with(&self, word: &str) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        assert!(!text.contains("sesame"), "a password: {text}");
        let lines = text.lines().filter(|line| line.contains(word));
        lines.map(str::to_owned).collect()
    }
}

#[tokio::test]
async fn a_wrong_password_is_one_line() {
    let Some(redis) = Redis::start(&["--requirepass", "sesame-open"]) else {
        return;
    };
    for (url, word) in [
        (
            format!("{}?pass=sesame-closed", redis.url()),
            "refuses the user or the password",
        ),
        (redis.url(), "wants a password"),
    ] {
        let (page, guard) = listen();
        let server = Server::new(&url, &[]);
        until("the line", async || {
            (!page.lines_with("WARN").is_empty()).then_some(())
        })
        .await;
        // Several trials later.
        tokio::time::sleep(Duration::from_secs(1)).await;
        requests(&server, 100).await;
        let lines = page.lines_with("WARN");
        assert_eq!(lines.len(), 1, "{lines:?}");
        assert!(
            lines[0].contains("distributed.redis_url") && lines[0].contains(word),
            "{lines:?}"
        );
        assert!(!*server.shared.up().borrow());
        drop(guard);
    }
    let server = Server::new(&format!("{}?pass=sesame-open", redis.url()), &[]);
    server.is(true).await;
}

#[tokio::test]
async fn an_outage_is_one_line_at_each_end() {
    let Some(mut redis) = Redis::start(&[]) else {
        return;
    };
    let (page, _guard) = listen();
    let server = Server::connected(&redis, &[]).await;
    redis.kill();
    requests(&server, 100).await;
    server.is(false).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The connection went, and then there was none: two reasons.
    let lines = page.lines_with("WARN");
    assert!((1..=2).contains(&lines.len()), "{lines:?}");
    redis.start_again();
    server.is(true).await;
    let lines = page.lines_with("Redis answers");
    assert_eq!(lines.len(), 2, "{lines:?}");
}

#[tokio::test]
async fn a_redis_without_memory_is_read_and_complained_of_once() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let (page, _guard) = listen();
    let server = Server::connected(&redis, &[]).await;
    server.keep(1, b"x").await;
    let mut client = redis.client();
    let set = |name: &str, value: &str, client: &mut redis::Connection| {
        let mut command = redis::cmd("CONFIG");
        command
            .arg("SET")
            .arg(name)
            .arg(value)
            .exec(client)
            .unwrap();
    };
    set("maxmemory", "1", &mut client);
    for key in 100..120 {
        server.shared.put(vec![(key, b"y".to_vec())]);
        until("the refusal", async || {
            let failed = server.metric("crossgate_distributed_writes_total{outcome=\"failed\"}");
            (failed >= (key - 99) as f64).then_some(())
        })
        .await;
    }
    assert_eq!(server.get_one(1).await.as_deref(), Some(&b"x"[..]));
    let lines = page.lines_with("operation=\"put\"");
    assert_eq!(lines.len(), 1, "{lines:?}");
    assert!(lines[0].contains("OOM"), "{lines:?}");
    set("maxmemory", "0", &mut client);
    server.keep(200, b"z").await;
}

#[tokio::test]
async fn what_others_write_into_redis_is_no_outage() {
    let Some(redis) = Redis::start(&[]) else {
        return;
    };
    let server = Server::connected(&redis, &SETTINGS).await;
    let mut up = server.shared.up();
    assert!(*up.borrow_and_update());
    let mut client = redis.client();
    let () = redis::cmd("HSET")
        .arg("crossgate:faults")
        .arg(b"\xff")
        .arg(b"9999999999999 \xff")
        .query(&mut client)
        .unwrap();
    for epoch in ["garbage", "-1", "nan", "18446744073709551615"] {
        let known = *server.shared.cleared().borrow();
        let () = redis::cmd("SET")
            .arg("crossgate:epoch")
            .arg(epoch)
            .query(&mut client)
            .unwrap();
        until("that it is written over", async || {
            server.get_one(1).await;
            let now = redis::cmd("GET")
                .arg("crossgate:epoch")
                .query::<String>(&mut client);
            (now.unwrap() == known.to_string()).then_some(())
        })
        .await;
    }
    check_well(&server, false).await;
    assert!(!up.has_changed().unwrap(), "Redis was given up");
}
