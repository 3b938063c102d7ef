//! A run: warm-up, counters before, the measured part, counters after, report.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use indicatif::ProgressBar;
use tokio::time::{MissedTickBehavior, interval};

use crate::Error;
use crate::arrivals::{HangUps, Order};
use crate::client::Client;
use crate::drive::{Driver, Phase};
use crate::metrics::{Scraper, growth};
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
    let scraper = Scraper::new(&plan.metrics_urls, plan.target.api_key.as_deref())?;
    let driver = Arc::new(Driver {
        client: Client::connect(&plan.target, &workload).await?,
        workload: Arc::clone(&workload),
        order: Mutex::new(Order::new(lines, plan.zipf, plan.seed)),
        hang_ups: Mutex::new(HangUps::new(
            plan.hang_up.map_or(0.0, |hang_up| hang_up.share),
            plan.seed,
        )),
        plan: plan.clone(),
        stop: Arc::clone(&stop),
    });
    if !plan.warmup.is_zero() {
        // Answered in full before anything is counted, so that the server's counters count the same requests.
        phase(&driver, Until::Elapsed(plan.warmup), "warm-up").await;
    }
    let before = scraper.read().await;
    let cpu_before_s = cpu_seconds();
    let measured = phase(&driver, plan.until, "measure").await;
    let wall = measured.elapsed();
    let client_cpu_s = cpu_seconds()
        .zip(cpu_before_s)
        .map(|(after_s, before_s)| after_s - before_s);
    let server = match (before, scraper.read().await) {
        (Ok(before), Ok(after)) => growth(&before, &after),
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

async fn phase(driver: &Arc<Driver>, until: Until, title: &'static str) -> Arc<Phase> {
    let phase = Phase::new(Arc::clone(driver), until);
    let bar = bar(title, until);
    tokio::select! {
        () = phase.run() => {}
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
