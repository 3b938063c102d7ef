//! The command line, as typed. `plan` turns it into a checked plan.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use loadtest::Error;
use loadtest::arrivals::Spacing;
use loadtest::client::metrics_url;
use loadtest::draw::Draw;
use loadtest::plan::{Dialect, Endpoint, GrpcCall, HangUp, Load, Plan, Target, Until};
use loadtest::workload::Source;

/// When neither --duration nor --requests is given.
const DURATION: Duration = Duration::from_secs(30);
/// Requests in flight of an open loop, unless told otherwise.
const IN_FLIGHT: usize = 4096;
/// In the place of a metrics page: the counters are not looked at.
const NO_METRICS: &str = "none";
/// gRPC connections, unless told otherwise.
const GRPC_CONNECTIONS: usize = 24;
/// What hyper's servers admit on one connection; calls beyond it would queue on this side.
const GRPC_CALLS_PER_CONNECTION: usize = 200;
const _: () = assert!(GRPC_CONNECTIONS * GRPC_CALLS_PER_CONNECTION >= IN_FLIGHT);

/// Load tester for Crossgate and other rerank servers.
///
/// Sends a workload (a file with one {"query", "documents"} object a line) over HTTP or gRPC, checks
/// every answer, and reports throughput, latency, refusals and cache hits.
///
/// Exit codes: 0 the run is valid, 1 a check failed or the run could not be made, 2 wrong usage.
#[derive(Parser)]
#[command(version, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Put load on a server and report.
    ///
    /// Closed loop: --clients clients, each sending its next request when the last is answered; it
    /// shows what the server can do at that concurrency. Open loop: --rate requests a second
    /// start on a schedule whatever the server does; it shows what users would wait. Latency counts from
    /// the intended start, so a server that stalls is charged for everybody who waited.
    /// There are no retries: every refusal is counted.
    Run(Box<RunArgs>),
    /// Write the raw scores a server gives to a file, for a later run's --expect.
    Record(Box<RecordArgs>),
    /// Write a workload whose requests share documents by Zipf's law, so that a cache hits them partly:
    /// the queries of another workload in turn, each with documents drawn from all its lines.
    Draw(DrawArgs),
}

#[derive(Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// How requests start.
    #[arg(long, value_enum, default_value_t = Mode::Closed, help_heading = "Load")]
    mode: Mode,
    /// Closed loop: requests at a time.
    #[arg(long, value_name = "N", default_value_t = 16, help_heading = "Load")]
    clients: usize,
    /// Open loop: requests a second.
    #[arg(
        long,
        value_name = "PER_SECOND",
        required_if_eq("mode", "open"),
        help_heading = "Load"
    )]
    rate: Option<f64>,
    /// Open loop: the gaps between starts.
    #[arg(long, value_enum, default_value_t = Gaps::Poisson, help_heading = "Load")]
    arrivals: Gaps,
    /// Open loop: requests in flight at most. One that finds no room is counted as not sent, and makes
    /// the run invalid.
    #[arg(long, value_name = "N", default_value_t = IN_FLIGHT, help_heading = "Load")]
    in_flight_max: usize,
    /// Start requests for this long (500ms, 30s, 5m). 30s unless --requests is given.
    #[arg(long, value_name = "TIME", value_parser = duration, conflicts_with = "requests", help_heading = "Load")]
    duration: Option<Duration>,
    /// Start this many requests.
    #[arg(long, value_name = "N", help_heading = "Load")]
    requests: Option<u64>,
    /// Put the same load on for this long first, and measure none of it.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "3s", help_heading = "Load")]
    warmup: Duration,
    /// Of the requests, this share (0 to 1, drawn by --seed) is abandoned by its client when it is not
    /// answered in time: the connection is closed (HTTP), the call cancelled (gRPC).
    #[arg(
        long,
        value_name = "SHARE",
        requires = "hang_up_after",
        help_heading = "Load"
    )]
    hang_up: Option<f64>,
    /// How long a client of --hang-up waits.
    #[arg(long, value_name = "TIME", value_parser = duration, requires = "hang_up", help_heading = "Load")]
    hang_up_after: Option<Duration>,
    /// Draw requests by Zipf's law: line k of the workload with a weight of 1/k^EXPONENT. Without it
    /// the lines come in order, again and again.
    #[arg(long, value_name = "EXPONENT", help_heading = "Load")]
    zipf: Option<f64>,
    /// Makes --zipf, --hang-up and Poisson arrivals repeatable.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Load")]
    seed: u64,
    /// Scores to expect, as written by `record`: a {"scores": […]} object for each line of the workload.
    #[arg(long, value_name = "FILE", help_heading = "Checks")]
    expect: Option<PathBuf>,
    /// Largest absolute difference from an expected score.
    #[arg(
        long,
        value_name = "X",
        default_value_t = 1e-3,
        help_heading = "Checks"
    )]
    tolerance: f32,
    /// Fail the run unless the server computed every row: no cache hits, no equal pairs in flight.
    #[arg(long, help_heading = "Checks")]
    require_no_cache_hits: bool,
    /// The server's Prometheus page, over HTTP /metrics of --url; once for each of several servers, or
    /// none.
    #[arg(long, value_name = "URL|none", help_heading = "Checks")]
    metrics_url: Vec<String>,
    /// Write the result as JSON too.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) json: Option<PathBuf>,
}

#[derive(Args)]
pub(crate) struct RecordArgs {
    #[command(flatten)]
    target: TargetArgs,
    #[command(flatten)]
    workload: WorkloadArgs,
    /// Where the scores go.
    #[arg(long, value_name = "FILE", help_heading = "Output")]
    pub(crate) output: PathBuf,
}

#[derive(Args)]
pub(crate) struct DrawArgs {
    /// Where queries and documents come from.
    #[arg(long, value_name = "FILE")]
    workload: PathBuf,
    /// Lines to write.
    #[arg(long, value_name = "N")]
    requests: usize,
    /// Documents in each, all different.
    #[arg(long, value_name = "N", default_value_t = 32)]
    documents: usize,
    /// The k-th document of the workload comes with a weight of 1/k^EXPONENT.
    #[arg(long, value_name = "EXPONENT", default_value_t = 1.0)]
    zipf: f64,
    /// The same seed writes the same workload.
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Where the workload goes.
    #[arg(long, value_name = "FILE")]
    pub(crate) output: PathBuf,
}

#[derive(Args)]
#[group(skip)]
struct TargetArgs {
    /// HTTP server, http://HOST:PORT. A path replaces the dialect's own.
    #[arg(
        long,
        value_name = "URL",
        conflicts_with = "grpc",
        help_heading = "Target"
    )]
    url: Option<String>,
    /// gRPC server, http://HOST:PORT.
    #[arg(long, value_name = "URL", help_heading = "Target")]
    grpc: Option<String>,
    /// The shape of requests: rerank (/v1/rerank), tei (/rerank with texts) or score (/v1/score, as
    /// vLLM). Over gRPC: rerank or score.
    #[arg(long, value_enum, default_value_t = Shape::Rerank, help_heading = "Target")]
    dialect: Shape,
    /// The model to name in requests.
    #[arg(long, value_name = "NAME", help_heading = "Target")]
    model: Option<String>,
    /// Sent as "Authorization: Bearer KEY".
    #[arg(
        long,
        value_name = "KEY",
        env = "LOADTEST_API_KEY",
        hide_env_values = true,
        help_heading = "Target"
    )]
    api_key: Option<String>,
    /// How long to wait for an answer. A request that times out is lost. Longer than the server's own
    /// time for a request (10 s), or its 504 comes too late to be counted as an answer.
    #[arg(long, value_name = "TIME", value_parser = duration, default_value = "15s", help_heading = "Target")]
    timeout: Duration,
    /// Told to the server as the client's own deadline. Answers within it from the intended start are
    /// the goodput. Over gRPC the client ends a call there itself, as gRPC clients do.
    #[arg(long, value_name = "TIME", value_parser = duration, help_heading = "Target")]
    deadline: Option<Duration>,
    /// gRPC connections, taken in turn. HTTP opens one for each request in flight.
    #[arg(long, value_name = "N", default_value_t = GRPC_CONNECTIONS, help_heading = "Target")]
    connections: usize,
}

#[derive(Args)]
#[group(skip)]
struct WorkloadArgs {
    /// One {"query": …, "documents": […]} object a line; "scores" with expected logits is optional.
    #[arg(long, value_name = "FILE", help_heading = "Workload")]
    workload: PathBuf,
    /// Keep the first N documents of each request.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..), help_heading = "Workload")]
    documents: Option<u32>,
}

#[derive(Clone, Copy, ValueEnum)]
enum Mode {
    Closed,
    Open,
}

#[derive(Clone, Copy, ValueEnum)]
enum Gaps {
    Poisson,
    Uniform,
}

#[derive(Clone, Copy, ValueEnum)]
enum Shape {
    Rerank,
    Tei,
    Score,
}

impl RunArgs {
    pub(crate) fn source(&self) -> Source {
        Source {
            expect: self.expect.clone(),
            ..self.workload.source()
        }
    }

    /// The plan of a run without expected scores: those are logits, and have to be asked for.
    pub(crate) fn plan(&self) -> Result<Plan, Error> {
        let load = match self.mode {
            Mode::Closed if self.rate.is_some() => {
                return Err(Error::Usage(
                    "--rate: a closed loop has none; use --mode open, or leave it out".into(),
                ));
            }
            Mode::Closed => Load::Closed {
                clients: self.clients,
            },
            Mode::Open => Load::Open {
                // 0 is refused by name: clap asks for the flag before.
                rate_per_s: self.rate.unwrap_or(0.0),
                arrivals: match self.arrivals {
                    Gaps::Poisson => Spacing::Poisson,
                    Gaps::Uniform => Spacing::Uniform,
                },
                in_flight_max: self.in_flight_max,
            },
        };
        let until = match self.requests {
            Some(count) => Until::Requests(count),
            None => Until::Elapsed(self.duration.unwrap_or(DURATION)),
        };
        let plan = Plan {
            target: self.target.target(false)?,
            load,
            until,
            warmup: self.warmup,
            zipf: self.zipf,
            seed: self.seed,
            tolerance: self.tolerance,
            forbid_cache_hits: self.require_no_cache_hits,
            hang_up: self
                .hang_up
                .zip(self.hang_up_after)
                .map(|(share, after)| HangUp { share, after }),
            metrics_urls: self.metrics_urls()?,
        };
        plan.check()?;
        Ok(plan)
    }

    fn metrics_urls(&self) -> Result<Vec<String>, Error> {
        match (self.metrics_url.as_slice(), &self.target.url) {
            ([none], _) if none == NO_METRICS => Ok(Vec::new()),
            ([], Some(url)) => Ok(vec![metrics_url(url)?]),
            (urls, _) => Ok(urls.to_vec()),
        }
    }
}

impl RecordArgs {
    pub(crate) fn source(&self) -> Source {
        self.workload.source()
    }

    pub(crate) fn target(&self) -> Result<Target, Error> {
        self.target.target(true)
    }
}

impl DrawArgs {
    pub(crate) fn source(&self) -> Source {
        Source {
            path: self.workload.clone(),
            ..Source::default()
        }
    }

    pub(crate) fn draw(&self) -> Draw {
        Draw {
            requests: self.requests,
            documents: self.documents,
            zipf: self.zipf,
            seed: self.seed,
        }
    }
}

impl WorkloadArgs {
    fn source(&self) -> Source {
        Source {
            path: self.workload.clone(),
            expect: None,
            documents_max: self.documents.map(|count| count as usize),
        }
    }
}

impl TargetArgs {
    fn target(&self, raw_scores: bool) -> Result<Target, Error> {
        let endpoint = match (&self.url, &self.grpc, self.dialect) {
            (_, Some(_), Shape::Tei) => {
                return Err(Error::Usage("--dialect tei: not over gRPC".into()));
            }
            (_, Some(url), shape) => Endpoint::Grpc {
                url: url.clone(),
                call: if matches!(shape, Shape::Score) {
                    GrpcCall::Score
                } else {
                    GrpcCall::Rerank
                },
                connections: self.connections,
            },
            (Some(url), None, shape) => Endpoint::Http {
                url: url.clone(),
                dialect: match shape {
                    Shape::Rerank => Dialect::Rerank,
                    Shape::Tei => Dialect::Tei,
                    Shape::Score => Dialect::Score,
                },
            },
            (None, None, _) => {
                let why = "--url or --grpc is needed: where the server listens";
                return Err(Error::Usage(why.into()));
            }
        };
        let (model, api_key) = (self.model.clone(), self.api_key.clone());
        Ok(Target {
            endpoint,
            model,
            api_key,
            timeout: self.timeout,
            raw_scores,
            deadline: self.deadline,
        })
    }
}

/// `500ms`, `30s`, `1.5m`, `2h`.
fn duration(text: &str) -> Result<Duration, String> {
    let unit_start = text
        .find(|letter: char| letter.is_ascii_alphabetic())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(unit_start);
    let unit_s = match unit {
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return Err("a number with ms, s, m or h is needed, as in 30s".into()),
    };
    let number: f64 = number
        .parse()
        .map_err(|_| format!("{number:?} is not a number"))?;
    Duration::try_from_secs_f64(number * unit_s).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn durations_have_units() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(duration("1.5m"), Ok(Duration::from_secs(90)));
        assert!(duration("30").is_err());
        assert!(duration("-1s").is_err());
        assert!(duration("s").is_err());
    }

    #[track_caller]
    fn check(arguments: &str, wanted: Result<(), &str>) {
        let words = ["loadtest", "run", "--workload", "w"]
            .into_iter()
            .chain(arguments.split_whitespace());
        let plan = Cli::try_parse_from(words)
            .map_err(|error| error.to_string())
            .and_then(|cli| match cli.command {
                Command::Run(run) => run.plan().map(drop).map_err(|error| error.to_string()),
                Command::Record(_) | Command::Draw(_) => Err("no run".into()),
            });
        match (plan, wanted) {
            (Ok(()), Ok(())) => {}
            (Err(got), Err(wanted)) => assert!(got.contains(wanted), "{got}, not {wanted}"),
            (got, wanted) => panic!("{got:?}, not {wanted:?}"),
        }
    }

    #[test]
    fn a_wrong_value_is_refused_by_name() {
        check("--url http://h:1", Ok(()));
        check(
            "--grpc http://h:1 --dialect score --mode open --rate 5 --requests 3",
            Ok(()),
        );
        check("", Err("--url or --grpc"));
        check("--url http://h:1 --rate 5", Err("use --mode open"));
        check("--url http://h:1 --grpc http://h:1", Err("--grpc"));
        check("--url https://h:1", Err("no TLS"));
        check("--url http://h:1 --mode open", Err("--rate"));
        check(
            "--url http://h:1 --mode open --rate 0",
            Err("--rate 0: must be above 0"),
        );
        check("--url http://h:1 --mode open --rate nan", Err("--rate NaN"));
        check(
            "--url http://h:1 --clients 0",
            Err("--clients 0: must be from 1 to 4096"),
        );
        check("--url http://h:1 --requests 0", Err("--requests"));
        check(
            "--url http://h:1 --requests 1 --duration 1s",
            Err("--duration"),
        );
        check("--url http://h:1 --tolerance=-1", Err("--tolerance"));
        check("--url http://h:1 --zipf=-1", Err("--zipf"));
        check("--url http://h:1 --documents 0", Err("--documents"));
        check("--grpc http://h:1 --dialect tei", Err("not over gRPC"));
        let no_metrics = Err("needs --metrics-url");
        check("--grpc http://h:1 --require-no-cache-hits", no_metrics);
        let none = "--url http://h:1 --metrics-url none";
        check(none, Ok(()));
        check(&format!("{none} --require-no-cache-hits"), no_metrics);
        check("--url http://h:1 --deadline 0s", Err("--deadline"));
        check("--url http://h:1 --hang-up 0.5", Err("--hang-up-after"));
        let hang_up = "--url http://h:1 --hang-up-after 30ms --hang-up";
        check(&format!("{hang_up} 0.5"), Ok(()));
        check(&format!("{hang_up} 1.5"), Err("--hang-up 1.5: must be"));
    }
}
