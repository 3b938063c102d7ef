//! Writes the scores that a server gives, for a later run to expect.

use std::io::Write;
use std::sync::atomic::Ordering;

use serde::Serialize;

use crate::Error;
use crate::client::Client;
use crate::drive::Stop;
use crate::plan::{Target, Until};
use crate::progress::bar;
use crate::verdict::{Verdict, judge};
use crate::workload::{Request, Workload};

#[derive(Serialize)]
struct Line<'a> {
    /// So that the scores are not taken for those of another workload.
    query: &'a str,
    scores: Vec<f32>,
}

/// Sends each request once, one after the other, and writes a line of scores for each. The first
/// request without a good answer ends it: expectations with holes are of no use.
pub async fn record(
    target: &Target,
    workload: &Workload,
    out: &mut impl Write,
    stop: &Stop,
) -> Result<(), Error> {
    let target = Target {
        raw_scores: true,
        ..target.clone()
    };
    let client = Client::connect(&target, workload).await?;
    let bar = bar("record", Until::Requests(workload.requests.len() as u64));
    for (line, request) in workload.requests.iter().enumerate() {
        if stop.load(Ordering::Relaxed) {
            return Err(Error::Run("interrupted".into()));
        }
        let reply = client.send(client.prepare(line), target.timeout).await;
        // Scores that the workload brings are not judged here: new ones are being recorded.
        let bare = Request {
            expected: None,
            ..request.clone()
        };
        let scores = scores(judge(reply.exchange, &bare, 0.0))
            .map_err(|reason| Error::Run(format!("request {}: {reason}", request.line)))?;
        let rendered = serde_json::to_string(&Line {
            query: &request.query,
            scores,
        });
        rendered
            .map_err(std::io::Error::from)
            .and_then(|text| writeln!(out, "{text}"))
            .map_err(|error| Error::Run(format!("the output: {error}")))?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    out.flush()
        .map_err(|error| Error::Run(format!("the output: {error}")))
}

fn scores(verdict: Verdict) -> Result<Vec<f32>, String> {
    match verdict {
        Verdict::Ok { scores, .. } => Ok(scores),
        Verdict::Status(status, text) => Err(format!("{status:?}: {text}")),
        Verdict::WrongAnswer(reason) | Verdict::WrongScore(reason) | Verdict::Broken(reason) => {
            Err(reason)
        }
        Verdict::TimedOut => Err("no answer in time".into()),
    }
}
