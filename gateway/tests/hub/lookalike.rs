//! A hub that knows one model, and a storage host for its large files, on two ports of this
//! machine. Each takes one request per connection, writes it down, and fails as it is told.
#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread;
use std::time::Duration;

use gateway::model::hub::Settings;
use gateway::model::progress::Log;
use gateway::model::{Folder, ModelError, Source, Wanted, fetch};
use sha2::{Digest, Sha256};
use tempfile::TempDir;

pub(crate) const COMMIT: &str = "1111111111111111111111111111111111111111";
pub(crate) const OLDER: &str = "2222222222222222222222222222222222222222";
pub(crate) const WEIGHTS: &str = "model.safetensors";
pub(crate) const CONFIG: &[u8] =
    br#"{"architectures":["BertForSequenceClassification"],"model_type":"bert",
    "id2label":{"0":"LABEL_0"},"max_position_embeddings":512}"#;

/// One request that arrived.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) at: &'static str,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) token: Option<String>,
}

#[derive(Default)]
pub(crate) struct State {
    pub(crate) files: Vec<(String, Vec<u8>)>,
    pub(crate) asked: Vec<Asked>,
    /// Bytes of a body after which the storage host hangs up, for its next answers.
    pub(crate) cuts: Vec<usize>,
    /// Answers of the hub before it works.
    pub(crate) failures: Vec<(u16, &'static str)>,
    pub(crate) token: Option<&'static str>,
    pub(crate) ignores_range: bool,
    /// Said in place of the true hash of the weights.
    pub(crate) etag: Option<String>,
}

pub(crate) struct Hub {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<Mutex<State>>,
    pub(crate) cache: TempDir,
}

impl Hub {
    pub(crate) fn start(files: &[(&str, Vec<u8>)]) -> Self {
        let files = files
            .iter()
            .map(|(name, bytes)| (name.to_string(), bytes.clone()))
            .collect();
        let state = Arc::new(Mutex::new(State {
            files,
            ..State::default()
        }));
        let storage = serve("cdn", &state, String::new());
        let address = serve("hub", &state, format!("http://{storage}"));
        Self {
            address,
            state,
            cache: tempfile::tempdir().unwrap(),
        }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn fetch(
        &self,
        revision: Option<&str>,
        env: &[(&str, &str)],
    ) -> Result<Folder, ModelError> {
        self.fetch_wanted(&Wanted::default(), revision, env)
    }

    pub(crate) fn fetch_wanted(
        &self,
        wanted: &Wanted,
        revision: Option<&str>,
        env: &[(&str, &str)],
    ) -> Result<Folder, ModelError> {
        let source = Source::Hub {
            repo: "org/name".into(),
            revision: revision.map(str::to_owned),
        };
        fetch(&source, wanted, &self.settings(env), &Log)
    }

    /// Of whoever fetches from it, with these variables.
    pub(crate) fn settings(&self, env: &[(&str, &str)]) -> Settings {
        let mut env: HashMap<String, String> = env
            .iter()
            .map(|(name, value)| (name.to_string(), value.to_string()))
            .collect();
        env.entry("HF_ENDPOINT".into())
            .or_insert(format!("http://{}", self.address));
        env.insert("HF_HOME".into(), self.cache.path().display().to_string());
        let settings = Settings::from_env(|name| env.get(name).cloned()).unwrap();
        settings.with_retry_pause(Duration::from_millis(1))
    }

    pub(crate) fn repo(&self) -> PathBuf {
        self.cache.path().join("hub/models--org--name")
    }

    /// What arrived since the last call.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        std::mem::take(&mut self.state().asked)
    }

    #[track_caller]
    pub(crate) fn check_content(&self, folder: &Folder) {
        for (name, bytes) in &self.state().files {
            if let Ok(got) = fs::read(folder.path.join(name)) {
                assert!(got == *bytes, "{name} differs");
            }
        }
        assert!(folder.path.join(WEIGHTS).is_file());
    }
}

fn serve(at: &'static str, state: &Arc<Mutex<State>>, storage: String) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let state = Arc::clone(state);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that hangs up is its own affair.
            let _ = answer(stream, at, &state, &storage);
        }
    });
    address
}

fn answer(
    stream: TcpStream,
    at: &'static str,
    state: &Mutex<State>,
    storage: &str,
) -> std::io::Result<()> {
    let asked = read_request(&stream, at)?;
    let mut state = state.lock().unwrap();
    state.asked.push(asked.clone());
    let state = &mut *state;
    if at == "cdn" {
        return send_file(&stream, state, &asked);
    }
    if let Some((status, headers)) = state.failures.pop() {
        return send(&stream, &asked, &format!("{status} X\r\n{headers}"), b"");
    }
    if state.token.is_some() && asked.token.as_deref() != state.token {
        return send(&stream, &asked, "401 X", b"");
    }
    if let Some(revision) = asked.path.strip_prefix("/api/models/org/name/revision/") {
        let commit = match revision {
            "main" | COMMIT => COMMIT,
            "refs%2Fpr%2F1" | OLDER => OLDER,
            _ => {
                return send(
                    &stream,
                    &asked,
                    "404 X\r\nx-error-code: RevisionNotFound",
                    b"",
                );
            }
        };
        let names: Vec<String> = state
            .files
            .iter()
            .map(|(name, _)| format!("{{\"rfilename\":{name:?}}}"))
            .collect();
        let body = format!(
            "{{\"sha\":\"{commit}\",\"siblings\":[{}]}}",
            names.join(",")
        );
        return send(&stream, &asked, "200 X", body.as_bytes());
    }
    let (_, name) = asked
        .path
        .split_at("/org/name/resolve/".len() + COMMIT.len() + 1);
    let (name, bytes) = state
        .files
        .iter()
        .find(|file| file.0 == name)
        .expect("a listed file");
    if !name.ends_with(".safetensors") {
        let etag = &sha256(bytes)[..40];
        return send(
            &stream,
            &asked,
            &format!("200 X\r\netag: \"{etag}\""),
            bytes,
        );
    }
    let etag = state.etag.clone().unwrap_or_else(|| sha256(bytes));
    let head = format!(
        "302 X\r\nlocation: {storage}/{name}\r\nx-linked-etag: \"{etag}\"\r\nx-linked-size: {}",
        bytes.len()
    );
    send(&stream, &asked, &head, b"moved")
}

fn read_request(stream: &TcpStream, at: &'static str) -> std::io::Result<Asked> {
    let mut lines = BufReader::new(stream.take(65_536)).lines();
    let first = lines.next().unwrap_or_else(|| Ok(String::new()))?;
    let mut words = first.split(' ').map(str::to_owned);
    let (method, path) = (
        words.next().unwrap_or_default(),
        words.next().unwrap_or_default(),
    );
    let mut asked = Asked {
        at,
        method,
        path,
        range: None,
        token: None,
    };
    for line in lines {
        let line = line?;
        match line.split_once(": ") {
            Some((name, value)) if name.eq_ignore_ascii_case("range") => {
                asked.range = Some(value.to_owned());
            }
            Some((name, value)) if name.eq_ignore_ascii_case("authorization") => {
                asked.token = value.strip_prefix("Bearer ").map(str::to_owned);
            }
            Some(_) => {}
            None => break,
        }
    }
    Ok(asked)
}

fn send_file(stream: &TcpStream, state: &mut State, asked: &Asked) -> std::io::Result<()> {
    let (_, bytes) = state
        .files
        .iter()
        .find(|file| format!("/{}", file.0) == asked.path)
        .unwrap();
    let range = asked.range.as_deref().filter(|_| !state.ignores_range);
    let start = range.and_then(|range| {
        range
            .strip_prefix("bytes=")?
            .strip_suffix('-')?
            .parse()
            .ok()
    });
    let (status, body) = match start {
        Some(start) if bytes.len() <= start => ("416 X".into(), &[][..]),
        Some(start) => (
            format!(
                "206 X\r\ncontent-range: bytes {start}-{}/{1}",
                bytes.len() - 1,
                bytes.len()
            ),
            &bytes[start..],
        ),
        None => ("200 X".to_owned(), bytes.as_slice()),
    };
    match state.cuts.pop() {
        Some(cut) => send_cut(stream, asked, &status, body, cut),
        None => send(stream, asked, &status, body),
    }
}

fn send(stream: &TcpStream, asked: &Asked, head: &str, body: &[u8]) -> std::io::Result<()> {
    send_cut(stream, asked, head, body, body.len())
}

/// Announces the whole body, sends the first `cut` bytes, and hangs up.
fn send_cut(
    mut stream: &TcpStream,
    asked: &Asked,
    head: &str,
    body: &[u8],
    cut: usize,
) -> std::io::Result<()> {
    let n = body.len();
    write!(
        stream,
        "HTTP/1.1 {head}\r\ncontent-length: {n}\r\nconnection: close\r\n\r\n"
    )?;
    if asked.method == "HEAD" {
        Ok(())
    } else {
        stream.write_all(&body[..cut.min(n)])
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}

/// Three megabytes of different bytes behind a true header.
pub(crate) fn weights() -> Vec<u8> {
    let n = 3_000_000u64;
    let header = format!(
        r#"{{"classifier.weight":{{"dtype":"F32","shape":[1,{}],"data_offsets":[0,{n}]}}}}"#,
        n / 4
    );
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend((0..n).map(|idx| (idx * 31 % 251) as u8));
    bytes
}

pub(crate) fn model() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("README.md", b"hello".to_vec()),
        ("config.json", CONFIG.to_vec()),
        ("onnx/model.onnx", b"onnx".to_vec()),
        ("pytorch_model.bin", b"bin".to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
        (
            "tokenizer_config.json",
            br#"{"model_max_length":128}"#.to_vec(),
        ),
        (WEIGHTS, weights()),
    ]
}
