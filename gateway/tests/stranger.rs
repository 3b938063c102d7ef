//! Somebody's first plugin: the way that `plugins/README.md` shows, gone as it is written.

#[path = "../../backend-api/tests/support/libraries.rs"]
mod libraries;

use libraries::{ROOT, STRANGER, block, file_name, of_stranger, read, scratch};
use serde_json::{Value, json};
use std::env;
use std::io::{BufRead as _, BufReader, Lines};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

/// A server's ports, so that it gets on with others on this machine.
const SERVER: [(&str, &str); 4] = [
    ("CROSSGATE_HOST", "127.0.0.1"),
    ("CROSSGATE_PORT", "0"),
    ("CROSSGATE_GRPC_PORT", "0"),
    ("CROSSGATE_ADMIN_PORT", "0"),
];

/// The page's commands, in order. Optimizing takes only longer.
fn commands() -> Vec<String> {
    let page = read(&Path::new(ROOT).join("plugins/README.md"));
    let debug = block(&page, "sh")
        .replace(" --release", "")
        .replace("target/release", "target/debug");
    debug.lines().map(str::to_owned).collect()
}

/// A line for the shell, in the stranger's folder, with this build's `crossgate` and `cargo` in the path.
fn shell(line: &str) -> Command {
    let programs = [env!("CARGO_BIN_EXE_crossgate"), env!("CARGO")];
    let folders = programs.map(|program| Path::new(program).parent().unwrap().to_owned());
    let path = env::var_os("PATH").unwrap_or_default();
    let path = env::join_paths(folders.into_iter().chain(env::split_paths(&path))).unwrap();
    let mut shell = Command::new("sh");
    shell.args(["-c", line]).env("PATH", path).envs(SERVER);
    shell.env("CROSSGATE_CACHE_DIR", scratch("stranger"));
    of_stranger(&mut shell);
    shell
}

/// What a line prints; it must succeed.
fn run(line: &str) -> String {
    let output = shell(line).output().unwrap();
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    assert!(output.status.success(), "{line}:\n{}", said.concat());
    said.concat()
}

/// A running server; killed when dropped.
struct Serving {
    child: Child,
    lines: Lines<BufReader<ChildStderr>>,
}

impl Serving {
    /// Starts one, and waits until it is ready. The address of its HTTP.
    fn start(line: &str) -> (Self, String) {
        let mut command = shell(&format!("exec {line}"));
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut serving = Self { child, lines };
        let listening = serving.line_with("listening");
        serving.line_with("ready");
        let (_, address) = listening.split_once("http=").unwrap();
        let address = address.split_whitespace().next().unwrap();
        (serving, address.to_owned())
    }

    /// Reads on until a line that says `word`.
    fn line_with(&mut self, word: &str) -> String {
        let mut said = String::new();
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            if line.contains(word) {
                return line;
            }
            said += &(line + "\n");
        }
        panic!("it ended without {word:?}:\n{said}");
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_way_in_is_as_it_is_written() {
    let folder = &*STRANGER;
    let root = Path::new(ROOT).canonicalize().unwrap();
    assert!(!folder.starts_with(root), "{folder:?} is in the tree");
    let commands = commands();
    let [suite, build, list, serve] = &commands[..] else {
        panic!("not the four commands that this test knows: {commands:?}");
    };

    let said = run(suite);
    assert!(said.contains("test conforms ... ok"), "{said}");

    // What lay there before is no proof.
    let library = folder.join("target/debug").join(file_name("short"));
    let _ = std::fs::remove_file(&library);
    run(build);
    assert!(library.is_file(), "{build}: no {}", library.display());

    let said = run(list);
    let file = format!("target/debug/{}", file_name("short"));
    for word in ["short 1.0.0", &file, "cpu", "f32"] {
        assert!(said.contains(word), "{list}: {said} does not say {word:?}");
    }
    assert!(!said.contains("refused"), "{said}");

    let (_serving, address) = Serving::start(serve);
    let documents = ["a document of many words", "short", "of three words"];
    let body = json!({"query": "q", "documents": documents}).to_string();
    let answer = ureq::post(format!("http://{address}/rerank"))
        .content_type("application/json")
        .send(body);
    let answer = answer.unwrap().body_mut().read_to_string().unwrap();
    let answer: Value = serde_json::from_str(&answer).unwrap();
    let results = answer["results"].as_array().unwrap();
    let order: Vec<_> = results.iter().map(|result| &result["index"]).collect();
    assert_eq!(order, [1, 2, 0], "{answer}");
}
