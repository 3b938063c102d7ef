//! What one exchange was worth: the answer's shape is checked always, its scores where they are known.

use crate::answers::{compare, in_document_order};
use crate::client::{Exchange, Status};
use crate::workload::Request;

pub enum Verdict {
    Ok {
        /// In document order.
        scores: Vec<f32>,
        /// From the expected scores, where the request has them.
        difference: Option<f32>,
    },
    Status(Status, String),
    /// Answered with success, and not with one good score for each document.
    WrongAnswer(String),
    /// Well formed, with a score further from the expected one than the tolerance.
    WrongScore(String),
    TimedOut,
    Broken(String),
}

pub fn judge(exchange: Exchange, request: &Request, tolerance: f32) -> Verdict {
    let scores = match exchange {
        Exchange::Scores(scores) => scores,
        Exchange::Status(status, text) => return Verdict::Status(status, text),
        Exchange::Unreadable(reason) => return Verdict::WrongAnswer(reason),
        Exchange::TimedOut => return Verdict::TimedOut,
        Exchange::Broken(reason) => return Verdict::Broken(reason),
    };
    let scores = match in_document_order(&scores, request.documents.len()) {
        Ok(scores) => scores,
        Err(fault) => return Verdict::WrongAnswer(fault.to_string()),
    };
    match request
        .expected
        .as_ref()
        .map(|expected| compare(&scores, expected, tolerance))
        .transpose()
    {
        Ok(difference) => Verdict::Ok { scores, difference },
        Err(fault) => Verdict::WrongScore(fault.to_string()),
    }
}
