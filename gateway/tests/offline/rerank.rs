//! Documents by their relevance.

use crate::Shell;
use serde_json::Value;
use std::io::{Read as _, Write as _};

const PLANTS: &str = "how do plants make energy";
const TEXT: &str = "The stock market fell sharply on Monday.\n\n\
                    Photosynthesis turns sunlight, water and carbon dioxide into glucose.\r\n\
                    Berlin is the capital of Germany.";
const OBJECTS: &str = r#"{"id": 1, "title": "stocks", "text": "The stock market fell sharply."}
{"id": 2, "title": "plants make energy", "text": "Berlin is the capital of Germany."}
"#;

fn shell() -> Shell {
    Shell::new(&[
        ("a.txt", TEXT.as_bytes()),
        ("a.jsonl", OBJECTS.as_bytes()),
        ("bytes.txt", b"a\nb\xff\n"),
        ("wrong.jsonl", b"{\"text\": \"a\"}\n{\"text\": 5}\n"),
        ("fields.jsonl", b"{\"body\": \"a\"}\n"),
        ("empty.txt", b"\n \n"),
    ])
}

const RERANK: [&str; 5] = ["rerank", "--backend", "cpu-int8", "-q", PLANTS];

fn args<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&RERANK, more].concat()
}

#[test]
fn lines_for_people() {
    let shell = shell();
    let text = shell.print(&args(&["a.txt"]), b"");
    let rows: Vec<_> = text
        .lines()
        .map(|line| line.split_once('\t').unwrap())
        .collect();
    let lines: Vec<_> = rows.iter().map(|(_, line)| *line).collect();
    assert!(lines[0].starts_with("Photosynthesis") && lines[0].ends_with("glucose."));
    assert_eq!(lines.len(), 3);
    let scores: Vec<f32> = rows
        .iter()
        .map(|(score, _)| score.parse().unwrap())
        .collect();
    assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
    // A pipe is a file.
    assert_eq!(text, shell.print(&args(&[]), TEXT.as_bytes()));
    assert_eq!(text, shell.print(&args(&["-"]), TEXT.as_bytes()));
    let best = shell.print(&args(&["-n", "1", "a.txt"]), b"");
    assert_eq!(
        best.lines().collect::<Vec<_>>(),
        [text.lines().next().unwrap()]
    );
}

#[track_caller]
fn objects(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).expect("an object a line");
    text.lines().map(parse).collect()
}

#[test]
fn objects_for_programs() {
    let shell = shell();
    let found = objects(&shell.print(&args(&["a.txt", "--json"]), b""));
    let index: Vec<_> = found
        .iter()
        .map(|row| row["index"].as_u64().unwrap())
        .collect();
    assert_eq!(index[0], 1);
    assert!(found[0]["document"].as_str().unwrap().starts_with("Photo"));
    let of_text = objects(&shell.print(&args(&["a.jsonl", "--json"]), b""));
    let by_title = args(&["a.jsonl", "--json", "--fields", "title"]);
    let of_title = objects(&shell.print(&by_title, b""));
    assert_eq!(of_title[0]["document"]["id"], 2);
    assert!(of_title[0]["score"].as_f64() > of_text[0]["score"].as_f64());
    // As it is, a line is a text like any other.
    let as_text = args(&["a.jsonl", "--json", "--format", "text"]);
    let as_text = objects(&shell.print(&as_text, b""));
    assert!(
        as_text[0]["document"]
            .as_str()
            .unwrap()
            .starts_with("{\"id\"")
    );
    let raw = objects(&shell.print(&args(&["a.txt", "--json", "--raw-scores"]), b""));
    let sigmoid = 1.0 / (1.0 + (-raw[0]["score"].as_f64().unwrap()).exp());
    assert!((sigmoid - found[0]["score"].as_f64().unwrap()).abs() < 1e-6);
}

/// More than a request to a server may have, and more than are kept.
#[test]
fn documents_are_ranked_together_however_many_they_are() {
    let shell = Shell::new(&[]);
    let n_documents = 2_500;
    let input: String = (0..n_documents)
        .map(|n| {
            if n % 500 == 7 {
                "energy\n".to_owned()
            } else {
                format!("{n}\n")
            }
        })
        .collect();
    let args = ["rerank", "--backend", "fake", "-q", "energy", "--json"];
    let all = objects(&shell.print(&args, input.as_bytes()));
    assert_eq!(all.len(), n_documents);
    // Equal ones in their order.
    let index = |rows: &[Value]| -> Vec<u64> {
        let index = rows.iter().map(|row| row["index"].as_u64().unwrap());
        index.take(5).collect()
    };
    assert_eq!(index(&all), [7, 507, 1007, 1507, 2007]);
    let best = shell.print(&[&args[..], &["--top-n", "5"]].concat(), input.as_bytes());
    let best = objects(&best);
    assert_eq!((best.len(), index(&best)), (5, index(&all)));
    // A queue with room for less waits, and refuses nothing.
    let little = [
        "--queue-rows-max",
        "8",
        "--documents-max",
        "8",
        "--queue-requests-max",
        "1",
    ];
    let little = shell.print(&[&args[..], &little].concat(), input.as_bytes());
    assert_eq!(objects(&little), all);
}

#[test]
fn long_texts() {
    let shell = Shell::new(&[]);
    let long = format!("{}\n", "word ".repeat(600));
    let cut = shell.print(&args(&[]), long.as_bytes());
    let strict = args(&["--overflow", "error"]);
    let words = [
        "document 1 of standard input",
        "too long",
        "--overflow truncate",
    ];
    shell.check_refused(&strict, long.as_bytes(), 1, &words);
    let windows = shell.print(&args(&["--overflow", "chunk_max"]), long.as_bytes());
    let bounded = shell.print(&args(&["--max-tokens-per-doc", "4"]), long.as_bytes());
    for other in [windows, bounded] {
        assert_eq!(
            cut.split_once('\t').unwrap().1,
            other.split_once('\t').unwrap().1
        );
    }
}

#[test]
fn what_is_wrong_is_named() {
    let shell = shell();
    for (more, code, words) in [
        (&["empty.txt"][..], 2, &["empty.txt holds no documents"][..]),
        (&["bytes.txt"], 2, &["bytes.txt:2:2:", "not UTF-8"]),
        (
            &["wrong.jsonl"],
            2,
            &["wrong.jsonl:2:10:", "text is not a string"],
        ),
        (&["fields.jsonl"], 2, &["fields.jsonl:1:1:", "--fields"]),
        (
            &["none.txt"],
            2,
            &["none.txt cannot be read", "- for standard input"],
        ),
        (&["."], 2, &[". is a folder"]),
        (
            &["a.txt", "--fields", "title"],
            2,
            &["a.txt:1:", "--fields names fields of objects"],
        ),
        (
            &["a.jsonl", "--format", "text", "--fields", "title"],
            2,
            &["the line is text"],
        ),
        (&["a.txt", "-q", " "], 2, &["--query: is empty"]),
        (&["a.txt", "-n", "0"], 2, &["--top-n", "1..="]),
        (
            &["a.txt", "--document-bytes-max", "9"],
            2,
            &["a.txt:1:", "document_bytes_max"],
        ),
        (
            &["a.txt", "--models", "starter,b=starter"],
            2,
            &["name one", "--models"],
        ),
        (
            &["a.txt", "--instruction", "x"],
            1,
            &["document 1 of a.txt", "instruction"],
        ),
    ] {
        shell.check_refused(&args(more), b"", code, words);
    }
    shell.check_refused(&["rerank", "a.txt"], b"", 2, &["--query"]);
}

/// `| head` has seen enough.
#[test]
fn a_broken_pipe_is_no_error() {
    let shell = Shell::new(&[]);
    let mut child = shell
        .command(&args(&["--backend", "fake"]))
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    drop(child.stdout.take());
    for _ in 0..10_000 {
        stdin
            .write_all(b"a document of which nobody reads the score\n")
            .unwrap();
    }
    drop(stdin);
    let mut said = String::new();
    child
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(said, "");
    assert!(child.wait().unwrap().success());
}
