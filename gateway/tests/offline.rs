//! `crossgate rerank` and `crossgate score` as their users run it: the program itself, the starter, the fake and the real engine.

#[path = "offline/rerank.rs"]
mod rerank;
#[path = "offline/score.rs"]
mod score;

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A folder of files, and the program beside it.
struct Shell {
    dir: tempfile::TempDir,
}

impl Shell {
    /// Files by name.
    fn new(files: &[(&str, &[u8])]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for (name, content) in files {
            std::fs::write(dir.path().join(name), content).unwrap();
        }
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program in the folder, with a model and what is said.
    fn command(&self, args: &[&str]) -> Command {
        let program = Path::new(env!("CARGO_BIN_EXE_crossgate"));
        let mut command = Command::new(program);
        command
            .args(args)
            .arg("--plugin-dir")
            .arg(program.parent().unwrap())
            .arg("--cache-dir")
            .arg(self.path("cache"))
            .current_dir(self.dir.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, args: &[&str], stdin: &[u8]) -> Output {
        let mut child = self.command(args).spawn().unwrap();
        let mut pipe = child.stdin.take().unwrap();
        // Who refuses a flag does not read.
        _ = pipe.write_all(stdin);
        drop(pipe);
        child.wait_with_output().unwrap()
    }

    /// What it prints; it logs nothing.
    #[track_caller]
    fn print(&self, args: &[&str], stdin: &[u8]) -> String {
        let output = self.run(args, stdin);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}");
        assert_eq!(said, "", "{args:?} says something");
        String::from_utf8(output.stdout).unwrap()
    }

    #[track_caller]
    fn check_refused(&self, args: &[&str], stdin: &[u8], code: i32, words: &[&str]) {
        let output = self.run(args, stdin);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{args:?}: {said} lacks {word:?}");
        }
    }
}
