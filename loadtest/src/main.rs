//! `loadtest`: see `--help` and the crate's README.

use std::fs::File;
use std::io::{BufWriter, Write, stderr, stdout};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::Parser;

use loadtest::Error;
use loadtest::draw::draw;
use loadtest::process::raise_open_files;
use loadtest::record::record;
use loadtest::report::{Report, write_text};
use loadtest::run::{Stop, run};
use loadtest::workload::Workload;

mod cli;

use cli::{Cli, Command, DrawArgs, RecordArgs, RunArgs};

/// A run that failed a check, and nothing else.
const CHECK_FAILED: u8 = 1;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    raise_open_files();
    let stop = stop_on_interrupt();
    let done = match cli.command {
        Command::Run(arguments) => start_run(&arguments, stop).await,
        Command::Draw(arguments) => start_draw(&arguments).map(|()| ExitCode::SUCCESS),
        Command::Record(arguments) => start_record(&arguments, &stop)
            .await
            .map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        // Nobody is left to tell when standard error is gone.
        let _ = writeln!(stderr(), "loadtest: {error}");
        ExitCode::from(error.exit_code())
    })
}

async fn start_run(arguments: &RunArgs, stop: Stop) -> Result<ExitCode, Error> {
    // What is wrong with the command line comes before what is wrong with a file.
    let mut plan = arguments.plan()?;
    let workload = Workload::load(&arguments.source())?;
    plan.target.raw_scores = workload.has_expectations();
    // Opened first: a result must not be lost to a mistyped path after minutes of load.
    let json = arguments
        .json
        .as_deref()
        .map(|path| Ok((path, create(path)?)))
        .transpose()?;
    let report = run(&plan, workload, stop).await?;
    write_text(&report, &mut stdout().lock())
        .map_err(|error| Error::Run(format!("standard output: {error}")))?;
    if let Some((path, out)) = json {
        write_json(&report, path, out)?;
    }
    Ok(if report.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(CHECK_FAILED)
    })
}

async fn start_record(arguments: &RecordArgs, stop: &Stop) -> Result<(), Error> {
    let target = arguments.target()?;
    let workload = Workload::load(&arguments.source())?;
    let mut out = create(&arguments.output)?;
    record(&target, &workload, &mut out, stop).await
}

fn start_draw(arguments: &DrawArgs) -> Result<(), Error> {
    let workload = Workload::load(&arguments.source())?;
    draw(
        &arguments.draw(),
        &workload,
        &mut create(&arguments.output)?,
    )
}

fn write_json(report: &Report, path: &Path, mut out: BufWriter<File>) -> Result<(), Error> {
    serde_json::to_writer_pretty(&mut out, report)
        .map_err(std::io::Error::from)
        .and_then(|()| writeln!(out))
        .and_then(|()| out.flush())
        .map_err(|error| Error::Run(format!("{}: {error}", path.display())))
}

fn create(path: &Path) -> Result<BufWriter<File>, Error> {
    File::create(path)
        .map(BufWriter::new)
        .map_err(|error| Error::Usage(format!("{}: {error}", path.display())))
}

/// The first Ctrl-C ends the run early, with a report of what it saw. A second ends the process.
fn stop_on_interrupt() -> Stop {
    let stop: Stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    tokio::spawn(async move {
        if tokio::signal::ctrl_c().await.is_ok() {
            flag.store(true, Ordering::Relaxed);
        }
        if tokio::signal::ctrl_c().await.is_ok() {
            std::process::exit(i32::from(CHECK_FAILED));
        }
    });
    stop
}
