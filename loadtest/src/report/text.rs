//! The report for people: a line for each figure, failed checks last, where they are seen.

use std::io::{Result, Write};

use super::{Latency, Report, Setup};
use crate::arrivals::Spacing;
use crate::plan::{HangUp, Load};

pub fn write_text(report: &Report, out: &mut impl Write) -> Result<()> {
    write_setup(&report.setup, out)?;
    writeln!(out)?;
    row(out, "requests/s", &format!("{:.1}", report.requests_per_s))?;
    row(out, "pairs/s", &format!("{:.1}", report.pairs_per_s))?;
    if let Some(goodput) = &report.goodput {
        let text = format!(
            "{:.1} requests/s, {:.1} pairs/s in time; {} ok answers were late",
            goodput.requests_per_s, goodput.pairs_per_s, goodput.late
        );
        row(out, "goodput", &text)?;
    }
    row(out, "latency ms", &latency(&report.latency_us))?;
    if report.refused_latency_us.count > 0 {
        row(out, "refusal ms", &latency(&report.refused_latency_us))?;
    }
    row(out, "start delay ms", &latency(&report.start_delay_us))?;
    let share = format!("{:.2} %", report.refused_share * 100.0);
    row(out, "refused", &share)?;
    let hung_up = match report.outcomes.hung_up {
        0 => String::new(),
        count => format!(", {count} hung up"),
    };
    let counts = format!(
        "{} sent, {} answered, {} lost{hung_up}",
        report.sent, report.answered, report.lost
    );
    row(out, "requests", &counts)?;
    write_outcomes(report, out)?;
    if report.scores_compared > 0 {
        let compared = format!(
            "{} as expected, largest difference {:.1e}",
            report.scores_compared, report.largest_difference
        );
        row(out, "scores", &compared)?;
    }
    row(out, "cache hit rate", &cache(report))?;
    write_rows(report, out)?;
    row(out, "time", &time(report))?;
    let late = report.outcomes.deadline_exceeded;
    if late > 0 {
        let share = report.deadline_exceeded_share * 100.0;
        writeln!(
            out,
            "\nLATE: {late} requests, {share:.2} % of those sent, were admitted and got 504 instead of scores"
        )?;
    }
    write_verdict(report, out)
}

fn write_setup(setup: &Setup, out: &mut impl Write) -> Result<()> {
    let load = match setup.load {
        Load::Closed { clients } => format!("closed loop, {clients} clients"),
        Load::Open {
            rate_per_s,
            arrivals: Spacing::Poisson,
            ..
        } => format!("open loop, {rate_per_s}/s, Poisson"),
        Load::Open {
            rate_per_s,
            arrivals: Spacing::Uniform,
            ..
        } => format!("open loop, {rate_per_s}/s, uniform"),
    };
    let order = match setup.zipf {
        Some(exponent) => format!("Zipf {exponent}, seed {}", setup.seed),
        None => "in turn".to_owned(),
    };
    let mut patience = String::new();
    if let Some(deadline_ms) = setup.deadline_ms {
        patience += &format!("; {deadline_ms} ms deadlines");
    }
    if let Some(HangUp { share, after }) = setup.hang_up {
        let (share, after_ms) = (share * 100.0, after.as_secs_f64() * 1e3);
        patience += &format!("; {share} % hang up after {after_ms} ms");
    }
    writeln!(
        out,
        "{} at {}: {load}; {} requests of {} {order}{patience}",
        setup.protocol, setup.url, setup.workload_requests, setup.workload
    )
}

fn write_rows(report: &Report, out: &mut impl Write) -> Result<()> {
    let Some(server) = report.server else {
        return Ok(());
    };
    if let Some(rows) = server.rows {
        let text = format!("{rows} for {} pairs answered", report.pairs);
        row(out, "server rows", &text)?;
    }
    if let Some(rows) = server.rows_unwanted.filter(|rows| *rows > 0) {
        let text = format!("{rows} rows dropped that nobody waited for any more");
        row(out, "unwanted", &text)?;
    }
    Ok(())
}

fn write_outcomes(report: &Report, out: &mut impl Write) -> Result<()> {
    let outcomes = &report.outcomes;
    let always = [
        ("ok", outcomes.ok),
        ("429 with Retry-After", outcomes.too_many_with_retry_after),
    ];
    let when_seen = [
        (
            "429 without Retry-After",
            outcomes.too_many_without_retry_after,
        ),
        ("503", outcomes.unavailable),
        ("504", outcomes.deadline_exceeded),
        ("wrong answer", outcomes.wrong_answer),
        ("wrong score", outcomes.wrong_score),
        ("timed out", outcomes.timed_out),
        ("transport error", outcomes.transport_error),
        ("hung up", outcomes.hung_up),
        ("not sent", report.not_sent),
    ];
    for (name, count) in always {
        outcome(out, name, count)?;
    }
    for (name, count) in when_seen.into_iter().filter(|(_, count)| *count > 0) {
        outcome(out, name, count)?;
    }
    for (code, count) in &outcomes.other_status {
        outcome(out, &format!("status {code}"), *count)?;
    }
    Ok(())
}

fn write_verdict(report: &Report, out: &mut impl Write) -> Result<()> {
    if !report.examples.is_empty() {
        writeln!(out, "\nfirst faults:")?;
    }
    for example in &report.examples {
        writeln!(out, "  {example}")?;
    }
    if report.is_good() {
        return writeln!(out, "\nvalid: every check passed");
    }
    writeln!(out, "\nINVALID:")?;
    for failure in &report.failed_checks {
        writeln!(out, "  {failure}")?;
    }
    Ok(())
}

fn row(out: &mut impl Write, name: &str, value: &str) -> Result<()> {
    writeln!(out, "{name:<16}{value}")
}

fn outcome(out: &mut impl Write, name: &str, count: u64) -> Result<()> {
    writeln!(out, "  {name:<26}{count:>8}")
}

fn latency(latency_us: &Latency) -> String {
    let ms = |value_us: u64| value_us as f64 / 1e3;
    format!(
        "mean {:.2}  p50 {:.2}  p90 {:.2}  p95 {:.2}  p99 {:.2}  max {:.2}",
        latency_us.mean / 1e3,
        ms(latency_us.p50),
        ms(latency_us.p90),
        ms(latency_us.p95),
        ms(latency_us.p99),
        ms(latency_us.max),
    )
}

fn cache(report: &Report) -> String {
    match (&report.server, &report.server_missing) {
        (Some(server), _) => match server.cache {
            Some(cache) => {
                format!(
                    "{:.2} % ({} hits, {} from the second level, {} coalesced, {} misses)",
                    cache.hit_rate() * 100.0,
                    cache.hits,
                    cache.hits_distributed,
                    cache.coalesced,
                    cache.misses
                )
            }
            None => "no cache".to_owned(),
        },
        (None, Some(reason)) => format!("unknown ({reason})"),
        (None, None) => "unknown".to_owned(),
    }
}

fn time(report: &Report) -> String {
    let warmup = report.setup.warmup_s;
    let wall = format!("{:.2} s after {warmup:.1} s of warm-up", report.wall_s);
    match report.client_cpu_s {
        Some(cpu_s) => {
            let cores = cpu_s / report.wall_s.max(f64::MIN_POSITIVE);
            format!("{wall}; this client used {cpu_s:.2} CPU s ({cores:.2} cores)")
        }
        None => wall,
    }
}
