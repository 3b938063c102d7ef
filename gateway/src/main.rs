//! `crossgate`: reads the command line and does what it says.

use gateway::app::{self, App, StartError};
use gateway::cli::{self, Command};
use gateway::config::Config;
use gateway::host::PluginFile;
use gateway::model::hub;
use gateway::telemetry::{self, LogFormat};
use std::io::Write as _;
use std::net::SocketAddr;
use std::process::ExitCode;
use tokio::signal::unix::{SignalKind, signal};

/// Usage and configuration are wrong in the same way: the user can mend both.
const EXIT_USAGE: u8 = 2;

fn main() -> ExitCode {
    match cli::parse(std::env::args_os(), cli::env) {
        Ok(Command::Serve(config)) => run(&config),
        Ok(Command::Plugins(config)) => print(&plugins(&config)),
        Ok(Command::Print(text)) => print(&text),
        Err(error) => {
            error.print();
            ExitCode::from(error.exit_code())
        }
    }
}

fn run(config: &Config) -> ExitCode {
    let log = config.log();
    let format = if log.is_json {
        LogFormat::Json
    } else {
        LogFormat::Text
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .thread_name("edge")
        .build();
    let served = telemetry::start_logging(&log.filter, format)
        .map_err(StartError::Other)
        .and_then(|()| {
            runtime.map_err(|error| StartError::Other(format!("no async runtime: {error}")))
        })
        .and_then(|runtime| runtime.block_on(serve(config)));
    match served {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "crossgate: {error}");
            ExitCode::from(if matches!(error, StartError::Config(_)) {
                EXIT_USAGE
            } else {
                1
            })
        }
    }
}

async fn serve(config: &Config) -> Result<(), StartError> {
    let hub = hub::Settings::from_env(cli::env).map_err(StartError::Other)?;
    let hub = match &config.models().cache_dir {
        Some(dir) => hub.with_cache_dir(dir.clone()),
        None => hub,
    };
    let listen = |kind| {
        signal(kind).map_err(|error| StartError::Other(format!("no signal handler: {error}")))
    };
    let (mut terminate, mut interrupt) = (
        listen(SignalKind::terminate())?,
        listen(SignalKind::interrupt())?,
    );
    let mut app = App::start(config, hub).await?;
    tracing::info!(http = %app.http, grpc = %app.grpc, admin = %app.admin, "listening");
    let mut asked = std::pin::pin!(async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    });
    tokio::select! {
        loaded = app.loaded() => {
            loaded?;
            tracing::info!("ready: {}/docs shows what can be asked", browsable(app.http));
            asked.as_mut().await;
        }
        () = &mut asked => {}
    }
    tokio::select! {
        () = app.shut_down() => Ok(()),
        // The first signal drains; whoever sends a second one does not want to wait.
        () = second_signal() => Err(StartError::Other("stopped at once: asked twice".to_owned())),
    }
}

/// An address that a browser on this machine understands: "any" is none.
fn browsable(address: SocketAddr) -> String {
    if address.ip().is_unspecified() {
        format!("http://localhost:{}", address.port())
    } else {
        format!("http://{address}")
    }
}

async fn second_signal() {
    let (terminate, interrupt) = (
        signal(SignalKind::terminate()),
        signal(SignalKind::interrupt()),
    );
    match (terminate, interrupt) {
        (Ok(mut terminate), Ok(mut interrupt)) => {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        }
        // Without a handler the second signal ends the process by itself.
        _ => std::future::pending().await,
    }
}

fn plugins(config: &Config) -> String {
    let (dirs, files) = app::plugins(config);
    let dirs: Vec<_> = dirs.iter().map(|dir| dir.display().to_string()).collect();
    let mut text = format!("looked in {}\n", dirs.join(", "));
    if files.is_empty() {
        text.push_str("no plugin found; build them with `make plugins` or name their folder with --plugin-dir\n");
    }
    for PluginFile { path, found } in &files {
        text.push_str(&match found {
            Err(why) => format!("\nrefused  {why}\n"),
            Ok(plugin) => {
                let card = plugin.card();
                format!(
                    "\n{} {}\n  file           {}\n  devices        {}\n  dtypes         {}\n  architectures  {}\n",
                    card.name,
                    card.version,
                    path.display(),
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
