//! Files of pairs with their scores, ended and gone on with.

use crate::Shell;
use serde_json::{Value, json};
use std::fs;
use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Child, ExitStatus};
use std::time::{Duration, Instant};

/// No step of a test takes this long unless something is broken.
const PATIENCE: Duration = Duration::from_secs(60);

const SHAPES: &str = r#"{"id": "a", "query": "how do plants make energy", "document": "Photosynthesis turns sunlight, water and carbon dioxide into glucose."}
{"id": {"b": 2.50}, "query": "how do plants make energy", "documents": ["Berlin is the capital of Germany.", {"text": "Photosynthesis turns sunlight, water and carbon dioxide into glucose."}]}

{"text_1": "how do plants make energy", "text_2": "Berlin is the capital of Germany.", "label": 0}
"#;

fn lines(text: &str) -> Vec<Value> {
    let parse = |line| serde_json::from_str(line).expect("an object a line");
    text.lines().map(parse).collect()
}

/// What is written into a file, and what is said of it.
#[track_caller]
fn score(shell: &Shell, args: &[&str]) -> (String, String) {
    let base = ["score", "-i", "in.jsonl", "-o", "out.jsonl"];
    let output = shell.run(&[&base, args].concat(), b"");
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{args:?}: {said}");
    assert!(!shell.path("out.jsonl.progress").exists());
    (fs::read_to_string(shell.path("out.jsonl")).unwrap(), said)
}

#[test]
fn a_line_for_each_line() {
    let shell = Shell::new(&[("in.jsonl", SHAPES.as_bytes())]);
    let (text, said) = score(&shell, &["--backend", "cpu-int8"]);
    assert!(
        said.contains("4 pairs in") && said.contains("pairs/s") && said.contains("tokens"),
        "{said}"
    );
    let found = lines(&text);
    assert_eq!(found.len(), 3);
    assert_eq!(
        (&found[0]["line"], &found[0]["id"]),
        (&json!(1), &json!("a"))
    );
    assert!(
        text.contains(r#""id":{"b": 2.50}"#),
        "an id is repeated as it was written"
    );
    assert_eq!(
        (&found[2]["line"], &found[2]["id"]),
        (&json!(4), &Value::Null)
    );
    // The same pairs by other lines.
    assert_eq!(found[1]["scores"][1], found[0]["score"]);
    assert_eq!(found[1]["scores"][0], found[2]["score"]);
    assert!(found[0]["score"].as_f64() > found[2]["score"].as_f64());
    // A pipe is a file.
    let piped = shell.run(&["score", "--backend", "cpu-int8"], SHAPES.as_bytes());
    assert_eq!(String::from_utf8(piped.stdout).unwrap(), text);
}

/// A seeded classifier of three labels, with a tokenizer of a few words.
fn classifier(folder: &Path) {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugins/golden");
    fs::create_dir(folder).unwrap();
    for entry in fs::read_dir(golden.join("bert-sharded-3-labels")).unwrap() {
        let from = entry.unwrap().path();
        fs::copy(&from, folder.join(from.file_name().unwrap())).unwrap();
    }
    let special = |id: u32, content: &str| {
        json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true})
    };
    let piece = |id: &str, segment: u32| json!({"SpecialToken": {"id": id, "type_id": segment}});
    let text = |id: &str, segment: u32| json!({"Sequence": {"id": id, "type_id": segment}});
    let of = |id: &str, number: u32| json!({"id": id, "ids": [number], "tokens": [id]});
    let [class, separator] = [piece("[CLS]", 0), piece("[SEP]", 0)];
    let tokenizer = json!({
        "version": "1.0", "truncation": null, "padding": null, "normalizer": null, "decoder": null,
        "added_tokens": [special(0, "[PAD]"), special(1, "[UNK]"), special(2, "[CLS]"), special(3, "[SEP]")],
        "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": {"type": "TemplateProcessing",
            "single": [class, text("A", 0), separator],
            "pair": [class, text("A", 0), separator, text("B", 1), piece("[SEP]", 1)],
            "special_tokens": {"[CLS]": of("[CLS]", 2), "[SEP]": of("[SEP]", 3)}},
        "model": {"type": "WordLevel", "unk_token": "[UNK]",
            "vocab": {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "plants": 4, "light": 5}}
    });
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
}

#[test]
fn classifiers_answer_labels() {
    let input = "{\"text\": \"plants\"}\n{\"text_1\": \"plants\", \"text_2\": \"light\"}\n\
                 {\"query\": \"plants\", \"documents\": [\"cars\", \"light\"]}\n";
    let shell = Shell::new(&[("in.jsonl", input.as_bytes())]);
    classifier(&shell.path("model"));
    let args = [
        "--backend",
        "cpu-int8",
        "--dtype",
        "f32",
        "--model",
        "./model",
    ];
    let (text, _) = score(&shell, &args);
    let found = lines(&text);
    for line in &found[..2] {
        let labels = line["labels"].as_array().expect("labels");
        assert_eq!(labels.len(), 3);
        let scores = labels.iter().map(|label| label["score"].as_f64().unwrap());
        let scores: Vec<_> = scores.collect();
        assert!(scores.is_sorted_by(|a, b| a >= b), "{scores:?}");
        assert!(
            (scores.iter().sum::<f64>() - 1.0).abs() < 1e-5,
            "{scores:?}"
        );
    }
    assert_ne!(found[0]["labels"], found[1]["labels"]);
    assert_eq!(found[2]["labels"][1], found[1]["labels"]);
}

const WRONG: &str = r#"{"query": "a", "document": "x"}
{"id": 7, "query": "a", "document": 5}
{"query": "a", "document": "y"}
nonsense
{"query": "a", "documents": ["z", "the quick fox"]}
"#;

#[test]
fn a_wrong_line_stops_or_is_passed_over() {
    let shell = Shell::new(&[("in.jsonl", WRONG.as_bytes())]);
    let args = [
        "score",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--backend",
        "fake",
    ];
    let words = [
        "in.jsonl:2:37:",
        "document is neither",
        "1 line done",
        "--on-error skip",
    ];
    shell.check_refused(&args, b"", 2, &words);
    assert_eq!(
        fs::read_to_string(shell.path("out.jsonl"))
            .unwrap()
            .lines()
            .count(),
        1
    );
    // What is done stays done.
    let (text, said) = score(&shell, &["--backend", "fake", "--on-error", "skip"]);
    assert!(
        said.contains("2 lines with an error") && said.contains("3 pairs"),
        "{said}"
    );
    let found = lines(&text);
    let numbers: Vec<_> = found
        .iter()
        .map(|line| line["line"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5]);
    assert_eq!(found[1]["id"], 7);
    for (idx, word) in [(1, "column 37"), (3, "no JSON object")] {
        let error = found[idx]["error"].as_str().expect("an error");
        assert!(
            error.contains(word) && found[idx]["score"].is_null(),
            "{error}"
        );
    }
}

/// A pair that the backend cannot score takes none of those along that were asked for with it.
#[test]
fn a_row_that_fails_takes_no_other_along() {
    let line = |text: &str| format!("{{\"query\": \"a\", \"document\": \"{text}\"}}\n");
    let input: String = (0..40)
        .map(|n| line(if n == 21 { "fox" } else { "dog" }))
        .collect();
    let shell = Shell::new(&[("in.jsonl", input.as_bytes())]);
    let tokenizer = Path::new(env!("CARGO_MANIFEST_DIR")).join("starter/tokenizer.json");
    let tokenizer: Value = serde_json::from_slice(&fs::read(tokenizer).unwrap()).unwrap();
    let id = &tokenizer["model"]["vocab"]["fox"];
    let options = json!({"fault_on": id}).to_string();
    let args = [
        "--backend",
        "fake",
        "--cache=false",
        "--backend-options",
        &options,
    ];
    let stop = [&["score", "-i", "in.jsonl", "-o", "out.jsonl"], &args[..]].concat();
    shell.check_refused(
        &stop,
        b"",
        1,
        &["in.jsonl:22:", "the backend failed", "21 lines done"],
    );
    let (text, said) = score(&shell, &[&args[..], &["--on-error", "skip"]].concat());
    assert!(said.contains("1 line with an error"), "{said}");
    let failed: Vec<_> = lines(&text)
        .iter()
        .filter(|line| !line["error"].is_null())
        .map(|line| line["line"].as_u64().unwrap())
        .collect();
    assert_eq!(failed, [22]);
    assert_eq!(text.lines().count(), 40);
}

/// Lines of every shape, some of them wrong, some longer than a group.
fn many(n_lines: usize) -> String {
    let line = |n: usize| match n % 7 {
        0 => {
            json!({"id": n, "query": format!("query {}", n / 14), "document": format!("text {n}")})
                .to_string()
        }
        1 => json!({"text_1": format!("text {n}"), "text_2": "a text"}).to_string(),
        2 if n % 500 == 9 => {
            let documents: Vec<_> = (0..200).map(|d| format!("document {d} of {n}")).collect();
            json!({"query": "a document", "documents": documents}).to_string()
        }
        2 => json!({"id": [n], "query": "a document", "documents": ["document", format!("{n}")]})
            .to_string(),
        3 if n.is_multiple_of(5) => "{\"query\": \"broken".to_owned(),
        4 if n.is_multiple_of(5) => String::new(),
        _ => json!({"query": "the same query", "document": format!("text {n}")}).to_string(),
    };
    (0..n_lines).map(|n| line(n) + "\n").collect()
}

const SLOW: [&str; 8] = [
    "--backend",
    "fake",
    "--backend-options",
    r#"{"row_us": 200}"#,
    "--on-error",
    "skip",
    "--threads",
    "2",
];

/// Ended with the signal as soon as the output has so many bytes; `None` if it was done before.
fn end_at(shell: &Shell, args: &[&str], bytes: u64, signal: &str) -> Option<ExitStatus> {
    let mut child: Child = shell.command(args).spawn().unwrap();
    let (output, deadline) = (shell.path("out.jsonl"), Instant::now() + PATIENCE);
    loop {
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        if fs::metadata(&output).is_ok_and(|found| bytes <= found.len()) {
            break;
        }
        assert!(Instant::now() < deadline, "the output does not grow");
        std::thread::sleep(Duration::from_millis(1));
    }
    let id = child.id().to_string();
    let kill = std::process::Command::new("kill")
        .args([signal, &id])
        .status();
    assert!(kill.unwrap().success());
    Some(child.wait().unwrap())
}

#[test]
fn what_was_killed_goes_on() {
    let input = many(6_000);
    let shell = Shell::new(&[("in.jsonl", input.as_bytes())]);
    let args = [&["score", "-i", "in.jsonl", "-o", "out.jsonl"], &SLOW[..]].concat();
    let whole = shell.run(&[&["score", "-i", "in.jsonl"], &SLOW[..]].concat(), b"");
    let whole = String::from_utf8(whole.stdout).unwrap();
    assert_eq!(
        whole.lines().count(),
        input.lines().filter(|line| !line.is_empty()).count()
    );
    // Where it is killed is different every time, and depends on nothing.
    let size = whole.len() as u64;
    let mut n_killed = 0;
    for part in 1..=5 {
        let random = uuid::Uuid::new_v4().as_u128() as u64;
        let bytes = size * part / 7 + random % (size / 7);
        let Some(status) = end_at(&shell, &args, bytes, "-KILL") else {
            break;
        };
        assert_eq!(status.signal(), Some(9));
        n_killed += 1;
        if n_killed == 1 {
            let other = format!("{input}{{}}\n");
            fs::write(shell.path("in.jsonl"), other).unwrap();
            shell.check_refused(&args, b"", 2, &["input.bytes was", "--restart"]);
            fs::write(shell.path("in.jsonl"), &input).unwrap();
        }
        let so_far = fs::read(shell.path("out.jsonl")).unwrap();
        assert!(whole.as_bytes().starts_with(&so_far), "after {n_killed}");
        // As if it had been killed while it wrote, or behind a part of what it had written.
        let cut = random as usize % 100;
        fs::write(shell.path("out.jsonl"), &so_far[..so_far.len() - cut]).unwrap();
    }
    assert!(n_killed >= 2, "it was done before it could be killed");
    let (text, _) = score(&shell, &SLOW);
    assert!(text == whole, "another output than without being killed");
}

#[test]
fn who_interrupts_is_told_how_to_go_on() {
    let shell = Shell::new(&[("in.jsonl", many(6_000).as_bytes())]);
    let args = [&["score", "-i", "in.jsonl", "-o", "out.jsonl"], &SLOW[..]].concat();
    let status = end_at(&shell, &args, 1, "-INT").expect("it was interrupted");
    assert_eq!(status.code(), Some(130));
    let so_far = fs::read_to_string(shell.path("out.jsonl")).unwrap();
    assert!(so_far.ends_with('\n'));
    let (text, _) = score(&shell, &SLOW);
    assert!(text.starts_with(&so_far) && so_far.len() < text.len());
}

/// What is done is the same.
#[test]
fn a_line_that_is_mended_goes_on() {
    let shell = Shell::new(&[("in.jsonl", WRONG.as_bytes())]);
    let args = [
        "score",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--backend",
        "fake",
    ];
    shell.check_refused(&args, b"", 2, &["in.jsonl:2:", "1 line done"]);
    fs::write(shell.path("in.jsonl"), WRONG.replace("5}", "\"a text\"}")).unwrap();
    shell.check_refused(&args, b"", 2, &["in.jsonl:4:", "3 lines done"]);
    let mended = WRONG
        .replace("5}", "\"a text\"}")
        .replace("nonsense", "{\"text\": \"x\"}");
    fs::write(shell.path("in.jsonl"), mended).unwrap();
    let (text, said) = score(&shell, &["--backend", "fake"]);
    assert!(said.contains("3 pairs in"), "{said}");
    assert_eq!(text.lines().count(), 5);
}

#[test]
fn a_folder_is_no_input() {
    let shell = Shell::new(&[]);
    let args = ["score", "-i", ".", "-o", "out.jsonl", "--backend", "fake"];
    shell.check_refused(&args, b"", 2, &[". is a folder"]);
    for name in ["out.jsonl", "out.jsonl.progress"] {
        assert!(!shell.path(name).exists(), "{name}");
    }
}

#[test]
fn only_the_same_goes_on() {
    let shell = Shell::new(&[("in.jsonl", WRONG.as_bytes())]);
    let args = [
        "score",
        "-i",
        "in.jsonl",
        "-o",
        "out.jsonl",
        "--backend",
        "fake",
    ];
    shell.check_refused(&args, b"", 2, &["1 line done"]);
    let with = |more: &[&'static str]| [&args[..], more].concat();
    let check = |more: &[&'static str], words: &[&str]| {
        shell.check_refused(
            &with(more),
            b"",
            2,
            &[words, &["begun otherwise", "--restart"]].concat(),
        );
    };
    check(
        &["--raw-scores"],
        &["--raw-scores was \"false\" and is \"true\""],
    );
    check(
        &["--backend", "cpu-int8"],
        &["model.plugin was \"fake\" and is \"cpu-int8\""],
    );
    check(
        &["--max-length", "32"],
        &["model.max_length was", "is \"32\""],
    );
    fs::write(shell.path("in.jsonl"), WRONG.replace('x', "w")).unwrap();
    check(
        &[],
        &["the first 32 bytes of in.jsonl, which are done, are others"],
    );
    // What is another's is left alone.
    fs::remove_file(shell.path("out.jsonl.progress")).unwrap();
    let before = fs::read(shell.path("out.jsonl")).unwrap();
    shell.check_refused(&args, b"", 2, &["out.jsonl is there", "--restart"]);
    assert_eq!(fs::read(shell.path("out.jsonl")).unwrap(), before);
    shell.check_refused(
        &with(&["-o", "in.jsonl", "--restart"]),
        b"",
        2,
        &["is the input"],
    );
    shell.check_refused(
        &with(&["-o", "/nowhere/out"]),
        b"",
        2,
        &["/nowhere/out cannot be written"],
    );
    let (text, _) = score(
        &shell,
        &["--backend", "fake", "--restart", "--on-error", "skip"],
    );
    assert_eq!(text.lines().count(), 5);
    // A pipe cannot be read again.
    let piped = ["score", "-o", "piped.jsonl", "--backend", "fake"];
    shell.check_refused(&piped, WRONG.as_bytes(), 2, &["standard input:2:37:"]);
    shell.check_refused(
        &piped,
        WRONG.as_bytes(),
        2,
        &["cannot be read again", "--restart"],
    );
}
