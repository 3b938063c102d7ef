//! `crossgate`: reads the command line and does what it says.

use gateway::app::{self, App, StartError};
use gateway::bench;
use gateway::cli::{self, Command};
use gateway::config::Config;
use gateway::config::raw::unknown_env;
use gateway::host::{self, PluginFile};
use gateway::model::hub;
use gateway::offline::{rerank, score};
use gateway::telemetry::{self, LogFormat};
use std::io::Write as _;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Usage and configuration are wrong in the same way: the user can mend both.
const EXIT_USAGE: u8 = 2;
/// Stopped by a signal, as shells have it: 128 and the number of SIGINT.
const EXIT_STOPPED: u8 = 130;
/// The drain timeout ended before every request was answered.
const EXIT_UNANSWERED: u8 = 3;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os(), cli::env) {
        Ok(Command::Serve(config)) => run(&config),
        Ok(Command::Bench(config, options)) => measure(&config, &options),
        Ok(Command::Rerank(config, options)) => rank(&config, &options),
        Ok(Command::Score(config, options)) => score_file(&config, &options),
        Ok(Command::Plugins(config)) => {
            let found = hub_settings(&config).and_then(|hub| app::plugins(&config, &hub));
            match found {
                Ok((dirs, files)) => print(&plugins(&dirs, &files)),
                Err(error) => fail(&error),
            }
        }
        Ok(Command::Probe) => match host::probe::run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => fail(&StartError::Other(why)),
        },
        Ok(Command::Swap(order)) => match order.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(why) => fail(&StartError::Other(why)),
        },
        Ok(Command::Print(text)) => print(&text),
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(config: &Config) -> ExitCode {
    match on_runtime(config, serve(config)) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::from(EXIT_UNANSWERED),
        Err(error) => fail(&error),
    }
}

fn measure(config: &Config, options: &bench::Options) -> ExitCode {
    let measured = async { bench::run(config, hub_settings(config)?, options).await };
    match on_runtime(config, measured) {
        Ok(report) if options.is_json => print(&report.json()),
        Ok(report) => print(&report.to_string()),
        Err(error) => fail(&error),
    }
}

fn rank(config: &Config, options: &rerank::Options) -> ExitCode {
    let ranked = async { rerank::run(config, hub_settings(config)?, options).await };
    match on_runtime(config, ranked) {
        Ok(text) => print(&text),
        Err(error) => fail(&error),
    }
}

fn score_file(config: &Config, options: &score::Options) -> ExitCode {
    let scored = async {
        let mut signals = Signals::install()?;
        let hub = hub_settings(config)?;
        score::run(config, hub, options, signals.next()).await
    };
    match on_runtime(config, scored) {
        Ok(score::Ended::Done) => ExitCode::SUCCESS,
        Ok(score::Ended::Stopped) => ExitCode::from(EXIT_STOPPED),
        Err(error) => fail(&error),
    }
}

/// Starts the log and a runtime, and runs `work` on it.
fn on_runtime<T>(
    config: &Config,
    work: impl Future<Output = Result<T, StartError>>,
) -> Result<T, StartError> {
    let log = config.log();
    let format = if log.is_json {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    telemetry::start_logging(&log.filter, format).map_err(StartError::Other)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("edge")
        .build()
        .map_err(|error| StartError::Other(format!("no async runtime: {error}")))?;
    let done = runtime.block_on(work);
    // What had to end has ended. Dropping the runtime would wait for what may block for hours
    // (a download, a model that is being opened), so that only SIGKILL could stop the process.
    runtime.shutdown_background();
    done
}

fn hub_settings(config: &Config) -> Result<hub::Settings, StartError> {
    let hub = hub::Settings::from_env(cli::env).map_err(StartError::Other)?;
    Ok(match &config.models().cache_dir {
        Some(dir) => hub.with_cache_dir(dir.clone()),
        None => hub,
    })
}

fn fail(error: &StartError) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "crossgate: {error}");
    ExitCode::from(if matches!(error, StartError::Config(_)) {
        EXIT_USAGE
    } else {
        1
    })
}

/// Serves until told to stop; how many requests were then not answered in time.
async fn serve(config: &Config) -> Result<usize, StartError> {
    let unknown = unknown_env(std::env::vars_os().map(cli::lossy));
    for warning in config.notices().iter().chain(&unknown) {
        tracing::warn!("{warning}");
    }
    let hub = hub_settings(config)?;
    let mut signals = Signals::install()?;
    let mut app = App::start(config, hub).await?;
    let admin_key = if app.admin_needs_key {
        "required"
    } else {
        "none"
    };
    let (tls, api_keys) = (app.has_tls, app.needs_api_key);
    tracing::info!(http = %app.http, grpc = %app.grpc, tls, api_keys, admin = %app.admin, admin_key, "listening");
    let served = tokio::select! {
        loaded = app.loaded() => loaded,
        () = signals.next() => return drain(app, &mut signals, Ok(())).await,
    };
    if served.is_ok() {
        tracing::info!(
            "ready: {}/docs shows what can be asked",
            browsable(app.http, app.has_tls)
        );
        signals.next().await;
    }
    // Models before one that does not load serve already: what they took on is answered.
    drain(app, &mut signals, served).await
}

/// The first signal, or a failure, drains; whoever sends another signal does not want to wait.
async fn drain(
    app: App,
    signals: &mut Signals,
    served: Result<(), StartError>,
) -> Result<usize, StartError> {
    tokio::select! {
        unanswered = app.shut_down() => served.map(|()| unanswered),
        () = signals.next() => Err(StartError::Other("stopped at once: asked twice".to_owned())),
    }
}

/// The signals that ask the process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn install() -> Result<Self, StartError> {
        let listen = |kind| {
            signal(kind).map_err(|error| StartError::Other(format!("no signal handler: {error}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// An address that a browser on this machine understands: "any" is none.
fn browsable(address: SocketAddr, has_tls: bool) -> String {
    let scheme = if has_tls { "https" } else { "http" };
    if address.ip().is_unspecified() {
        format!("{scheme}://localhost:{}", address.port())
    } else {
        format!("{scheme}://{address}")
    }
}

fn plugins(dirs: &[PathBuf], files: &[PluginFile]) -> String {
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let mut text = format!("looked in {}\n", dirs.join(", "));
    if files.is_empty() {
        text.push_str("no plugin found; build them with `make plugins` or name their folder with --plugin-dir\n");
    }
    for PluginFile {
        path,
        sha256,
        found,
    } in files
    {
        text.push_str(&match found {
            Err(why) => format!("\nrefused  {why}\n"),
            Ok(plugin) => {
                let card = plugin.card();
                format!(
                    "\n{} {}\n  file           {}\n  sha256         {}\n  devices        {}\n  dtypes         {}\n  architectures  {}\n",
                    card.name,
                    card.version,
                    path.display(),
                    sha256.as_deref().unwrap_or_default(),
                    card.devices.join(", "),
                    card.dtypes.join(", "),
                    card.architectures.join(", ")
                )
            }
        });
    }
    text
}

fn print(text: &str) -> ExitCode {
    // A reader that has seen enough (`| head`) is no failure of ours.
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
