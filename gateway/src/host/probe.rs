//! A plugin is tried out in a process of its own before this one maps it: what it breaks there is its own.
//!
//! The child is this program again (`crossgate probe`): it loads the copy of the file, opens the model and
//! scores rows, under limits of time and memory and at the lowest priority. It reads what to do as a line of JSON
//! from standard input and says how it went in one line of standard output.

use super::image;
use crate::model::TokenRows;
use crate::runtime::step_back;
use backend_api::{Description, OpenRequest, OpenWorker, PluginCard, RaggedBatch, RowControl};
use rustix::process::{
    Pid, Resource, Rlimit, Signal, kill_current_process_group, kill_process_group, setrlimit,
};
use serde::{Deserialize, Serialize};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

/// Stands before the child's report: a plugin may write to standard output, too.
const REPORT: &str = "crossgate-probe: ";
/// Between two looks whether the child has ended.
const PAUSE: Duration = Duration::from_millis(10);
/// Of what the child writes to standard error, the end is told.
const ERROR_BYTES_MAX: usize = 2_048;
/// And of a report no more is read.
const REPORT_BYTES_MAX: u64 = 1 << 20;
/// What this program's own allocator sets aside before it needs it.
const OWN_BYTES: u64 = 1 << 30;

/// How plugins are tried out.
#[derive(Clone, Debug)]
pub struct Prober {
    /// This program, or one like it.
    pub program: PathBuf,
    /// For everything: load, open, score.
    pub timeout: Duration,
    /// Bytes of memory; `None` for what is available.
    pub memory_max: Option<u64>,
}

/// What the child is to do.
#[derive(Serialize, Deserialize)]
struct Task {
    library: PathBuf,
    /// `None` to look at the plugin's card only.
    trial: Option<Trial>,
    /// Bytes of data that it may have.
    memory_max: Option<u64>,
}

/// What the plugin is to do.
#[derive(Serialize, Deserialize)]
struct Trial {
    #[serde(with = "RequestDef")]
    request: OpenRequest,
    rows: TokenRows,
}

/// How a request is written down: backend-api knows no serde.
#[derive(Serialize, Deserialize)]
#[serde(remote = "OpenRequest")]
struct RequestDef {
    model_dir: PathBuf,
    device: String,
    dtype: String,
    cpus: Vec<u32>,
    n_threads: u32,
    n_workers: u32,
    rows_max: u32,
    tokens_max: u32,
    row_tokens_max: u32,
    options: String,
    yes_token: Option<u32>,
    no_token: Option<u32>,
    plugin_dir: PathBuf,
}

/// How a card is written down.
#[derive(Serialize, Deserialize)]
#[serde(remote = "PluginCard")]
struct CardDef {
    name: String,
    version: String,
    devices: Vec<String>,
    dtypes: Vec<String>,
    architectures: Vec<String>,
    formats: Vec<String>,
    preference: u32,
    files: Vec<String>,
}

/// How it went.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Probed {
    /// What the plugin says of itself.
    #[serde(with = "CardDef")]
    pub card: PluginCard,
    /// Bytes that the plugin says it takes.
    pub memory_bytes: u64,
    /// As the plugin describes it.
    pub numerics_id: String,
    /// As the plugin describes it.
    pub dtype: String,
    /// As the plugin describes it.
    pub device: String,
    /// Logits of all rows that are no longer than the plugin takes, each finite.
    pub logits: Vec<f32>,
    /// Logits of a row.
    pub n_labels: usize,
}

/// The child's last word.
#[derive(Serialize, Deserialize)]
enum Report {
    Passed(Box<Probed>),
    Failed(String),
}

// === impl Prober ===

impl Prober {
    /// Tries the library at `copy` with this request, for rows that it must score. Blocks.
    ///
    /// # Errors
    /// What the plugin answered, or how its process ended.
    pub fn probe(
        &self,
        copy: &Path,
        request: &OpenRequest,
        rows: TokenRows,
    ) -> Result<Probed, String> {
        let request = request.clone();
        self.run(copy, Some(Trial { request, rows }))
    }

    /// The card of the plugin at `copy`. Blocks.
    ///
    /// # Errors
    /// Why it is none, or how its process ended.
    pub fn card(&self, copy: &Path) -> Result<PluginCard, String> {
        Ok(self.run(copy, None)?.card)
    }

    fn run(&self, copy: &Path, trial: Option<Trial>) -> Result<Probed, String> {
        let task = Task {
            library: copy.to_owned(),
            trial,
            memory_max: self.memory_max.or_else(super::memory::available),
        };
        let mut task = serde_json::to_vec(&task).map_err(|error| error.to_string())?;
        task.push(b'\n');
        let mut child = Command::new(&self.program)
            .arg("probe")
            // Its last words are to be what went wrong.
            .env("RUST_BACKTRACE", "0")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            // Of its own: whatever the plugin starts belongs to it.
            .process_group(0)
            .spawn()
            .map_err(|error| {
                let program = self.program.display();
                format!("the plugin cannot be tried out: {program} does not start: {error}")
            })?;
        let outcome = self.follow(&mut child, &task);
        let _ = child.wait();
        outcome
    }

    fn follow(&self, child: &mut Child, task: &[u8]) -> Result<Probed, String> {
        let (stdin, stdout, stderr) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let end = Instant::now() + self.timeout;
        std::thread::scope(|scope| {
            // All three at once: whoever waits for one of them is not held up by the others.
            let told = scope.spawn(move || {
                // It may have ended before it has read everything; it tells by its end.
                stdin.inspect(|mut stdin| _ = stdin.write_all(task))
            });
            let report = scope.spawn(move || stdout.and_then(read_report));
            let said = scope.spawn(move || stderr.map(read_end));
            let status = wait(child, end);
            // Whatever happened, it ends here, and so do those that it has started: its pipes close with the last of
            // them, and then the threads end.
            let _ = kill_process_group(Pid::from_child(child), Signal::KILL);
            drop(told.join());
            let report = report.join().ok().flatten();
            let said = said.join().ok().flatten().unwrap_or_default();
            let status = status?;
            match report {
                Some(Report::Passed(probed)) if status.success() => Ok(*probed),
                Some(Report::Failed(why)) => Err(why),
                _ => Err(format!(
                    "its process {}{}",
                    how_ended(status),
                    last_words(&said)
                )),
            }
        })
    }
}

fn wait(child: &mut Child, end: Instant) -> Result<ExitStatus, String> {
    let begun = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if end <= Instant::now() => {
                let after = begun.elapsed().as_secs_f64();
                return Err(format!(
                    "it hangs: its process had not ended after {after:.1} s (plugins.probe_timeout)"
                ));
            }
            Ok(None) => std::thread::sleep(PAUSE),
            Err(error) => return Err(format!("its process cannot be watched: {error}")),
        }
    }
}

fn read_report(stdout: impl std::io::Read) -> Option<Report> {
    let lines = BufReader::new(stdout.take(REPORT_BYTES_MAX)).lines();
    let mut reports = lines.map_while(Result::ok).filter_map(|line| {
        let report = line.strip_prefix(REPORT)?;
        serde_json::from_str(report).ok()
    });
    // The first one: what a plugin says after it cannot mend what it did.
    let first = reports.next();
    reports.for_each(drop);
    first
}

fn read_end(mut stderr: impl std::io::Read) -> String {
    let (mut end, mut piece) = (Vec::new(), [0; 4_096]);
    while let Ok(n_read) = stderr.read(&mut piece)
        && n_read > 0
    {
        end.extend_from_slice(&piece[..n_read]);
        let n_old = end.len().saturating_sub(ERROR_BYTES_MAX);
        end.drain(..n_old);
    }
    String::from_utf8_lossy(&end).trim().to_owned()
}

fn how_ended(status: ExitStatus) -> String {
    match (status.signal(), status.code()) {
        (Some(signal), _) => {
            let name = match signal {
                4 => " (illegal instruction)",
                6 => " (abort)",
                7 => " (bus error)",
                9 => " (killed, perhaps for want of memory)",
                11 => " (segmentation fault)",
                _ => "",
            };
            format!("was ended by signal {signal}{name}")
        }
        (None, code) => format!(
            "ended with code {} and without a report",
            code.unwrap_or(-1)
        ),
    }
}

fn last_words(said: &str) -> String {
    let says = |line: &&str| !line.trim().is_empty() && !line.starts_with("note: ");
    let last = said.lines().rev().find(says);
    last.map(|last| format!("; its last words: {}", last.trim()))
        .unwrap_or_default()
}

// === the child ===

/// What `crossgate probe` does: reads a task from standard input, and reports.
///
/// # Errors
/// That there is no task.
pub fn run() -> Result<(), String> {
    let mut task = String::new();
    std::io::stdin()
        .read_line(&mut task)
        .map_err(|error| error.to_string())?;
    let task: Task = serde_json::from_str(&task).map_err(|error| {
        format!("no task on standard input: {error}; the server calls this command, nobody else needs it")
    })?;
    end_with_server();
    let report = match attempt(&task) {
        Ok(probed) => Report::Passed(Box::new(probed)),
        Err(why) => Report::Failed(why),
    };
    let report = serde_json::to_string(&report).map_err(|error| error.to_string())?;
    let mut stdout = std::io::stdout();
    writeln!(stdout, "\n{REPORT}{report}")
        .and_then(|()| stdout.flush())
        .map_err(|error| error.to_string())
}

/// A plugin that hangs here, and whatever it has started, does not outlive the server: standard input is open as
/// long as somebody waits.
fn end_with_server() {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin().lock(), &mut std::io::sink());
        let _ = kill_current_process_group(Signal::KILL);
    });
}

fn attempt(task: &Task) -> Result<Probed, String> {
    // Neither is worth failing for: they protect what runs beside.
    step_back();
    // Where memory runs out all the same, Linux ends this process before others.
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    if let Some(memory_max) = task.memory_max {
        let most = memory_max.saturating_add(OWN_BYTES);
        let limit = Rlimit {
            current: Some(most),
            maximum: Some(most),
        };
        let _ = setrlimit(Resource::Data, limit);
    }
    let library = image::open(&task.library)?;
    let card = library.card().clone();
    let Some(trial) = &task.trial else {
        return Ok(Probed {
            card,
            ..Probed::default()
        });
    };
    let of_plugin = |fault: backend_api::Fault| format!("{}: {fault}", card.name);
    let backend = library.open(&trial.request).map_err(of_plugin)?;
    let mut worker = backend.worker().map_err(of_plugin)?;
    let logits = score(&mut worker, &trial.rows)?;
    let n_labels = worker.n_labels();
    let Description {
        memory_bytes,
        numerics_id,
        dtype,
        device,
        ..
    } = backend.description().clone();
    // Later, in the server, it is asked for them: where that crashes or hangs, it had better do so here. What it tells,
    // and whether, is nobody's concern.
    let _ = backend.devices();
    drop(worker);
    drop(backend);
    Ok(Probed {
        card,
        memory_bytes,
        numerics_id,
        dtype,
        device,
        logits,
        n_labels,
    })
}

/// Scores all rows, as many at a time as there may be.
fn score(worker: &mut OpenWorker, rows: &TokenRows) -> Result<Vec<f32>, String> {
    let (limits, n_labels) = (worker.limits(), worker.n_labels());
    let end = |row: usize| rows.ends[row] as usize;
    let fits = |row: usize| rows.row_len(row) <= limits.row_tokens_max.min(limits.tokens_max);
    let (mut first, mut scored) = (0, Vec::new());
    while first < rows.len() {
        // The server will cut what is longer.
        if !fits(first) {
            first += 1;
            continue;
        }
        let (mut offsets, start) = (vec![0], end(first) - rows.row_len(first));
        let mut last = first;
        while last < rows.len()
            && offsets.len() <= limits.rows_max
            && fits(last)
            && end(last) - start <= limits.tokens_max
        {
            offsets.push((end(last) - start) as u32);
            last += 1;
        }
        let tokens = start..end(last - 1);
        let wanted = AtomicBool::new(true);
        let control = || RowControl {
            deadline_us: u64::MAX,
            wanted: &wanted,
        };
        let controls: Vec<_> = (first..last).map(|_| control()).collect();
        let (ids, types) = (&rows.input_ids[tokens.clone()], &rows.type_ids[tokens]);
        let now = Instant::now();
        let batch = RaggedBatch::check(ids, types, &offsets, &[], &controls, &limits, now)
            .map_err(|error| error.to_string())?;
        let n_rows = last - first;
        let (mut logits, mut statuses) = (vec![0.0; n_rows * n_labels], vec![0; n_rows]);
        let (_, scores) = worker
            .score(&batch, &mut logits, &mut statuses)
            .map_err(|fault| fault.to_string())?;
        for place in 0..n_rows {
            let of_row = scores
                .row(place)
                .map_err(|status| format!("row {} comes back as {status:?}", first + place))?;
            scored.extend_from_slice(of_row);
        }
        first = last;
    }
    Ok(scored)
}
