//! The output of `crossgate score`, so that a run that was ended at any moment can be gone on with.
//!
//! A whole line of the output is a line that is done. Beside the output stands its journal, written before the
//! first line and removed behind the last: what the scores depend on. A run goes on only where that is the
//! same.

use super::{Input, wrong};
use crate::app::StartError;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

/// Of the input so many bytes are compared, and its size.
const BEGINNING_BYTES: u64 = 1 << 20;
/// Read at a time.
const BUFFER_BYTES: usize = 1 << 20;
/// A journal is a page; more is another file.
const JOURNAL_BYTES_MAX: u64 = 1 << 20;

/// Of a run that ended by itself: as many bytes of the input as are done, and their hash.
const DONE: &str = "input.done";
/// How the facts of an input begin.
const OF_INPUT: &str = "input.";

/// What scores depend on, by name.
pub(super) type Facts = BTreeMap<String, String>;

/// Where lines go.
pub(super) struct Output {
    name: String,
    to: Box<dyn Write + Send>,
    journal: Option<(PathBuf, Facts)>,
    done: Whole,
}

/// The whole lines of a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Whole {
    pub(super) n_lines: u64,
    /// The input's line that the last one is of; 0 before the first.
    pub(super) line: u64,
    bytes: u64,
}

/// What an output line begins with.
#[derive(Deserialize)]
struct Numbered {
    line: u64,
}

// === impl Output ===

impl Output {
    /// Opens standard output for `-`, else a file: anew, or behind the lines that are done.
    ///
    /// # Errors
    /// The file is another's, is being written, or what it holds was made of something else.
    pub(super) fn open(
        path: &Path,
        input: &Input,
        facts: &Facts,
        is_restart: bool,
    ) -> Result<Self, StartError> {
        let name = path.display().to_string();
        if path.as_os_str() == "-" {
            return Ok(Self::stream("standard output".to_owned(), io::stdout()));
        }
        let unwritable =
            |error: io::Error| wrong(format!("--output {name} cannot be written: {error}"));
        // Not truncated: what is done is kept.
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let is_file = std::fs::metadata(path).map_or(true, |found| found.is_file());
        if !is_file {
            let file = OpenOptions::new().write(true).open(path);
            return Ok(Self::stream(name.clone(), file.map_err(unwritable)?));
        }
        let mut file = options.open(path).map_err(unwritable)?;
        if input.is_file(&file) {
            return Err(wrong(format!("--output {name} is the input; name another")));
        }
        if file.try_lock().is_err() {
            let why = format!("--output {name} is being written by another process");
            return Err(StartError::Other(why));
        }
        let journal = journal_of(path);
        let size = file.metadata().map_err(unwritable)?.len();
        let mut done = Whole::default();
        if is_restart {
            file.set_len(0).map_err(unwritable)?;
        } else if journal.exists() {
            check_same(&name, &journal, facts, input)?;
            done = Whole::of(&mut file).map_err(|why| wrong(format!("--output {name} {why}")))?;
            file.set_len(done.bytes).map_err(unwritable)?;
        } else if size > 0 {
            return Err(wrong(format!(
                "--output {name} is there, and no unfinished one (it has no {}); name another file, or \
                 --restart to write over it",
                journal.display()
            )));
        }
        write_journal(&journal, facts)
            .map_err(|error| wrong(format!("{} cannot be written: {error}", journal.display())))?;
        file.seek(SeekFrom::End(0)).map_err(unwritable)?;
        Ok(Self {
            name,
            to: Box::new(file),
            journal: Some((journal, facts.clone())),
            done,
        })
    }

    fn stream(name: String, to: impl Write + Send + 'static) -> Self {
        Self {
            name,
            to: Box::new(to),
            journal: None,
            done: Whole::default(),
        }
    }

    /// What is done already.
    pub(super) fn done(&self) -> Whole {
        self.done
    }

    /// Whether a run that ends early can be gone on with.
    pub(super) fn can_go_on(&self) -> bool {
        self.journal.is_some()
    }

    /// Writes whole lines, and hands them to the system at once: what was written survives this process.
    /// False where nobody reads any more.
    ///
    /// # Errors
    /// A disk that is full, or broken.
    pub(super) fn write(&mut self, lines: &str) -> Result<bool, StartError> {
        let written = self.to.write_all(lines.as_bytes());
        match written.and_then(|()| self.to.flush()) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
            Err(error) => Err(StartError::Other(format!(
                "{} cannot be written: {error}; what is done is kept",
                self.name
            ))),
        }
    }

    /// The run ends, and so many bytes of the input are done: what comes behind them may change before it is
    /// gone on with. Where that cannot be written, the input as it is goes on.
    pub(super) fn pause(&self, input: &Input, bytes: u64) {
        let (Some((journal, facts)), Some(hash)) = (&self.journal, input.hash(bytes)) else {
            return;
        };
        let mut facts = facts.clone();
        facts.retain(|name, _| !name.starts_with(OF_INPUT));
        facts.insert(DONE.to_owned(), format!("{bytes} {hash}"));
        if let Err(error) = write_journal(journal, &facts) {
            tracing::warn!(%error, journal = %journal.display(), "cannot be written");
        }
    }

    /// Every line is done: there is nothing to go on with.
    ///
    /// # Errors
    /// The journal cannot be removed.
    pub(super) fn finish(self) -> Result<(), StartError> {
        let Some((journal, _)) = self.journal else {
            return Ok(());
        };
        std::fs::remove_file(&journal).map_err(|error| {
            let journal = journal.display();
            StartError::Other(format!("{journal} cannot be removed: {error}"))
        })
    }
}

// === impl Whole ===

impl Whole {
    /// Counts the lines that have an end, and reads the last of them.
    fn of(file: &mut File) -> Result<Self, String> {
        let unreadable = |error: io::Error| format!("cannot be read: {error}");
        file.rewind().map_err(unreadable)?;
        let mut reader = BufReader::with_capacity(BUFFER_BYTES, file);
        let (mut whole, mut last, mut line) = (Self::default(), Vec::new(), Vec::new());
        loop {
            line.clear();
            let n_read = reader.read_until(b'\n', &mut line).map_err(unreadable)?;
            if line.last() != Some(&b'\n') {
                break;
            }
            whole.n_lines += 1;
            whole.bytes += n_read as u64;
            std::mem::swap(&mut line, &mut last);
        }
        if whole.n_lines > 0 {
            let last: Numbered = serde_json::from_slice(&last)
                .map_err(|_| "does not end in a line of scores; --restart writes over it")?;
            whole.line = last.line;
        }
        Ok(whole)
    }
}

fn journal_of(output: &Path) -> PathBuf {
    let mut name = output.as_os_str().to_owned();
    name.push(".progress");
    name.into()
}

fn check_same(
    output: &str,
    journal: &Path,
    facts: &Facts,
    input: &Input,
) -> Result<(), StartError> {
    let shown = journal.display();
    let anew = "; --restart begins anew";
    let read = || -> io::Result<Facts> {
        let mut text = String::new();
        let file = File::open(journal)?.take(JOURNAL_BYTES_MAX);
        BufReader::new(file).read_to_string(&mut text)?;
        Ok(serde_json::from_str(&text)?)
    };
    let mut was =
        read().map_err(|error| wrong(format!("{shown} cannot be read: {error}{anew}")))?;
    let mut is = facts.clone();
    let mut differing = Vec::new();
    if let Some(done) = was.remove(DONE) {
        is.retain(|name, _| !name.starts_with(OF_INPUT));
        let bytes = done.split(' ').next().and_then(|bytes| bytes.parse().ok());
        let hash = bytes.and_then(|bytes: u64| Some(format!("{bytes} {}", input.hash(bytes)?)));
        if hash.as_ref() != Some(&done) {
            let bytes = bytes.unwrap_or_default();
            differing.push(format!(
                "the first {bytes} bytes of {input}, which are done, are others"
            ));
        }
    }
    let none = String::new();
    let names = was
        .keys()
        .chain(is.keys().filter(|name| !was.contains_key(*name)));
    let facts = names.map(|name| {
        let [was, is] = [&was, &is].map(|facts| facts.get(name).unwrap_or(&none));
        (name, was, is)
    });
    let facts = facts.filter(|(_, was, is)| was != is);
    differing.extend(facts.map(|(name, was, is)| format!("{name} was {was:?} and is {is:?}")));
    match differing.is_empty() {
        true => Ok(()),
        false => Err(wrong(format!(
            "--output {output} was begun otherwise: {}; ask for the same as before{anew}",
            differing.join(", ")
        ))),
    }
}

/// All of it or nothing, whenever the process ends.
fn write_journal(path: &Path, facts: &Facts) -> io::Result<()> {
    let mut half = path.as_os_str().to_owned();
    half.push(".new");
    std::fs::write(&half, serde_json::to_string_pretty(facts)? + "\n")?;
    std::fs::rename(half, path)
}

// === impl Input ===

impl Input {
    /// Its size and how it begins; `None` for what cannot be read twice.
    pub(super) fn facts(&self) -> Result<Option<Facts>, StartError> {
        let Self::File(path) = self else {
            return Ok(None);
        };
        let unreadable = |error: io::Error| wrong(format!("{self} cannot be read: {error}"));
        let found = std::fs::metadata(path).map_err(unreadable)?;
        if !found.is_file() {
            return Ok(None);
        }
        let mut beginning = Vec::new();
        let file = File::open(path).map_err(unreadable)?;
        let mut file = file.take(BEGINNING_BYTES);
        file.read_to_end(&mut beginning).map_err(unreadable)?;
        let hash = blake3::hash(&beginning).to_hex();
        Ok(Some(Facts::from([
            ("input.bytes".to_owned(), found.len().to_string()),
            ("input.beginning".to_owned(), hash.to_string()),
        ])))
    }

    /// Of its first bytes; `None` where they cannot be read, or not twice.
    fn hash(&self, bytes: u64) -> Option<blake3::Hash> {
        self.bytes()?;
        let Self::File(path) = self else { return None };
        let mut hasher = blake3::Hasher::new();
        let file = File::open(path).ok()?;
        hasher.update_reader(file.take(bytes)).ok()?;
        Some(hasher.finalize())
    }

    /// Bytes that it has, where that is known.
    pub(super) fn bytes(&self) -> Option<u64> {
        let Self::File(path) = self else { return None };
        let found = std::fs::metadata(path).ok()?;
        found.is_file().then_some(found.len())
    }

    fn is_file(&self, other: &File) -> bool {
        let Self::File(path) = self else { return false };
        let same = |path: &Path| -> io::Result<bool> {
            let (own, other) = (std::fs::metadata(path)?, other.metadata()?);
            Ok((own.dev(), own.ino()) == (other.dev(), other.ino()))
        };
        same(path).unwrap_or(false)
    }
}
