//! A run: warm-up, counters before, the measured part, counters after, report.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::{MissedTickBehavior, interval};

use crate::Error;
use crate::arrivals::Order;
use crate::client::Client;
use crate::drive::{Driver, Phase};
use crate::metrics::{Counters, Scraper};
use crate::plan::{Plan, Until};
use crate::process::cpu_seconds;
use crate::progress::{bar, milliseconds};
use crate::report::{Measured, Report};
use crate::workload::Workload;

pub use crate::drive::Stop;

const PROGRESS_INTERVAL: Duration = Duration::from_millis(250);

/// Sends `workload` as `plan` says. A run that `stop` ends early still reports what it saw.
pub async fn run(plan: &Plan, workload: Workload, stop: Stop) -> Result<Report, Error> {
    plan.check()?;
    let workload = Arc::new(workload);
    let lines = workload.requests.len();
    let scraper = plan
        .metrics_url
        .as_deref()
        .map(|url| Scraper::new(url, plan.target.api_key.as_deref()))
        .transpose()?;
    let driver = Arc::new(Driver {
        client: Client::connect(&plan.target, &workload).await?,
        workload: Arc::clone(&workload),
        order: Mutex::new(Order::new(lines, plan.zipf, plan.seed)),
        timeout: plan.target.timeout,
        tolerance: plan.tolerance,
        seed: plan.seed,
        stop: Arc::clone(&stop),
    });
    if !plan.warmup.is_zero() {
        // Answered in full before anything is counted, so that the server's counters count the same requests.
        phase(&driver, plan, Until::Elapsed(plan.warmup), "warm-up").await;
    }
    let before = read(scraper.as_ref()).await;
    let cpu_before_s = cpu_seconds();
    let measured = phase(&driver, plan, plan.until, "measure").await;
    let wall = measured.elapsed();
    let client_cpu_s = cpu_seconds()
        .zip(cpu_before_s)
        .map(|(after_s, before_s)| after_s - before_s);
    let server = match (before, read(scraper.as_ref()).await) {
        (Ok(before), Ok(after)) => after.since(&before),
        (Err(reason), _) | (_, Err(reason)) => Err(reason),
    };
    let interrupted = stop.load(Ordering::Relaxed);
    let tally = measured.tally();
    Ok(Report::new(
        plan,
        &workload,
        &tally,
        Measured {
            wall,
            client_cpu_s,
            server,
            interrupted,
        },
    ))
}

async fn phase(driver: &Arc<Driver>, plan: &Plan, until: Until, title: &'static str) -> Arc<Phase> {
    let phase = Phase::new(Arc::clone(driver), until);
    let bar = bar(title, until);
    tokio::select! {
        () = phase.run(plan.load) => {}
        () = watch(&phase, &bar, until) => {}
    }
    bar.finish_and_clear();
    phase
}

/// Moves the bar for ever; without one it only waits.
async fn watch(phase: &Phase, bar: &ProgressBar, until: Until) {
    if bar.is_hidden() {
        return std::future::pending().await;
    }
    let mut ticks = interval(PROGRESS_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    loop {
        ticks.tick().await;
        let (sent, outcomes) = {
            let tally = phase.tally();
            (tally.sent, tally.outcomes.clone())
        };
        bar.set_position(match until {
            Until::Elapsed(_) => milliseconds(phase.elapsed()),
            Until::Requests(_) => sent,
        });
        let faults = outcomes.answered() - outcomes.ok - outcomes.refused();
        bar.set_message(format!(
            "{} ok, {} refused, {faults} faults",
            outcomes.ok,
            outcomes.refused()
        ));
    }
}

async fn read(scraper: Option<&Scraper>) -> Result<Counters, String> {
    match scraper {
        Some(scraper) => scraper.read().await,
        None => Err("no --metrics-url".into()),
    }
}
