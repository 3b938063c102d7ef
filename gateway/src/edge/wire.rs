//! One table: what each failure becomes on every wire.

use super::call::Call;
use crate::score::ScoreError;
use axum::http::StatusCode;
use std::fmt;
use std::time::Duration;
use tonic::Code;

/// Why a client gets no answer: the core's reasons, and those that only a protocol can have.
#[derive(Clone, Debug)]
pub(super) enum Refusal {
    /// The core's.
    Score(ScoreError),
    /// The body is not JSON; serde's words, with line and column.
    BadJson { why: String },
    /// The message is not the method's; prost's words.
    BadMessage { why: String },
    /// A list without elements, or no body at all.
    Empty {
        param: &'static str,
        why: &'static str,
    },
    /// No such route.
    NoRoute {
        method: String,
        path: String,
        /// What there is.
        instead: String,
    },
    /// The route exists, the method does not.
    WrongMethod {
        method: String,
        path: String,
        allowed: &'static str,
    },
    /// A body that does not say that it is JSON.
    MediaType { found: String },
    /// A body that is packed in a way that is not taken.
    Encoding { found: String },
    /// The body is too long.
    BodyTooLarge { bytes_max: usize },
    /// The body did not arrive in time.
    BodyLate { after: Duration },
    /// The body broke off.
    BodyBroken { why: String },
    /// The admin listener was called by a name that is not this machine's; empty for none at all.
    ForeignHost { found: String },
    /// The admin listener was called by a web page that is not this machine's.
    ForeignPage { found: String },
    /// The admin listener's key is not the one that was shown.
    Key { found: &'static str },
    /// No key of the public APIs was shown, or another one.
    ApiKey { found: &'static str },
    /// A model is served as it was.
    NotSwapped { why: String },
}

/// One line of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Wire {
    /// HTTP's status.
    pub(super) http: u16,
    /// HTTP's status on TEI's routes, which differ in one.
    pub(super) tei_http: u16,
    /// gRPC's status.
    pub(super) grpc: Code,
    /// `error.type`: who has to do something.
    pub(super) kind: &'static str,
    /// `error.code`: what, for programs.
    pub(super) code: &'static str,
    /// `error_type` on TEI's routes.
    pub(super) tei: &'static str,
}

/// What clients are told of our mistakes.
pub(super) const OURS: &str = "a mistake in the server; its log says more under this request's id";

/// The longest text of a refusal. gRPC's goes into a header, and clients bound theirs at 8 KiB.
const MESSAGE_BYTES_MAX: usize = 1_024;

// What `error.type` may be.
const REQUEST: &str = "invalid_request_error";
const NOT_FOUND: &str = "not_found_error";
const BUSY: &str = "overloaded_error";
const TIMEOUT: &str = "timeout_error";
const SERVER: &str = "server_error";

/// Each failure's line, without a wildcard arm: a new failure must be given its own.
#[rustfmt::skip]
#[deny(clippy::wildcard_enum_match_arm)]
pub(super) fn wire(refusal: &Refusal) -> Wire {
    use ScoreError as E;
    match refusal {
        Refusal::Score(error) => match error {
            //                                    http  tei  gRPC                      type       code                  tei's type
            E::Invalid { .. }        => line(422, 422, Code::InvalidArgument,    REQUEST,   "invalid_value",      "Validation"),
            // Not RESOURCE_EXHAUSTED, which clients retry: it would be too large again.
            E::TooLarge { .. }       => line(413, 413, Code::InvalidArgument,    REQUEST,   "too_large",          "Validation"),
            E::UnknownModel { .. }   => line(404, 404, Code::NotFound,           NOT_FOUND, "model_not_found",    "Validation"),
            E::Overloaded { .. }     => line(429, 429, Code::ResourceExhausted,  BUSY,      "overloaded",         "Overloaded"),
            E::Unavailable { .. }    => line(503, 503, Code::Unavailable,        BUSY,      "unavailable",        "Unhealthy"),
            E::DeadlinePassed { .. } => line(504, 504, Code::DeadlineExceeded,   TIMEOUT,   "deadline_passed",    "Overloaded"),
            E::Backend { .. }        => line(502, 424, Code::Internal,           SERVER,    "backend_failed",     "Backend"),
            // For the log: nobody is there to read it.
            E::Cancelled             => line(499, 499, Code::Cancelled,          REQUEST,   "cancelled",          "Validation"),
            E::Internal { .. }       => line(500, 500, Code::Internal,           SERVER,    "internal",           "Backend"),
        },
        Refusal::BadJson { .. }      => line(400, 400, Code::InvalidArgument,    REQUEST,   "bad_json",           "Validation"),
        Refusal::BadMessage { .. }   => line(400, 400, Code::InvalidArgument,    REQUEST,   "bad_message",        "Validation"),
        Refusal::Empty { .. }        => line(400, 400, Code::InvalidArgument,    REQUEST,   "empty",              "Empty"),
        Refusal::NoRoute { .. }      => line(404, 404, Code::Unimplemented,      NOT_FOUND, "route_not_found",    "Validation"),
        Refusal::WrongMethod { .. }  => line(405, 405, Code::Unimplemented,      REQUEST,   "method_not_allowed", "Validation"),
        Refusal::MediaType { .. }    => line(415, 415, Code::InvalidArgument,    REQUEST,   "unsupported_media",  "Validation"),
        Refusal::Encoding { .. }     => line(415, 415, Code::Unimplemented,      REQUEST,   "unsupported_encoding", "Validation"),
        Refusal::BodyTooLarge { .. } => line(413, 413, Code::InvalidArgument,    REQUEST,   "body_too_large",     "Validation"),
        Refusal::BodyLate { .. }     => line(408, 408, Code::DeadlineExceeded,   TIMEOUT,   "body_late",          "Validation"),
        Refusal::BodyBroken { .. }   => line(400, 400, Code::InvalidArgument,    REQUEST,   "body_broken",        "Validation"),
        Refusal::NotSwapped { .. }   => line(409, 409, Code::FailedPrecondition, REQUEST,   "not_swapped",        "Validation"),
        Refusal::Key { .. }          => line(401, 401, Code::Unauthenticated,    REQUEST,   "invalid_key",        "Validation"),
        Refusal::ApiKey { .. }       => line(401, 401, Code::Unauthenticated,    REQUEST,   "invalid_api_key",    "Validation"),
        Refusal::ForeignHost { .. }  => line(403, 403, Code::PermissionDenied,   REQUEST,   "foreign_host",       "Validation"),
        Refusal::ForeignPage { .. }  => line(403, 403, Code::PermissionDenied,   REQUEST,   "foreign_page",       "Validation"),
    }
}

/// Nobody waits for longer than this, beyond what a key's day takes, so that others do not come with him.
const SPREAD_SECONDS_MAX: u64 = 60;

/// Seconds for `Retry-After`, where there is something to wait for: the estimate rounded up, plus
/// up to two seconds and a quarter (at most a minute) by the request's id, so that those refused together do not
/// return together.
pub(super) fn retry_after_seconds(refusal: &Refusal, call: &Call) -> Option<u64> {
    let (Refusal::Score(ScoreError::Overloaded { retry_after, .. })
    | Refusal::Score(ScoreError::Unavailable { retry_after, .. })) = refusal
    else {
        return None;
    };
    let estimate = retry_after.as_secs() + u64::from(retry_after.subsec_nanos() > 0);
    let estimate = estimate.max(1);
    // FNV-1a: any even spread will do.
    let spread = call
        .id()
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
        });
    Some(estimate + spread % (estimate / 4 + 2).min(SPREAD_SECONDS_MAX))
}

/// The same failure as gRPC says it. The request's id is added with every other answer's; what the
/// client is not told goes to the call's line in the log.
pub(super) fn status(refusal: &Refusal, call: &Call) -> tonic::Status {
    call.refuse(refusal.reason());
    let mut status = tonic::Status::new(wire(refusal).grpc, refusal.message(call));
    if let Some(seconds) = retry_after_seconds(refusal, call) {
        status.metadata_mut().insert("retry-after", seconds.into());
    }
    status
}

/// Cuts what repeats a client's own words, which may be as long as a body.
pub(super) fn shortened(mut text: String) -> String {
    if MESSAGE_BYTES_MAX < text.len() {
        text.truncate(text.floor_char_boundary(MESSAGE_BYTES_MAX));
        text.push('…');
    }
    text
}

const fn line(
    http: u16,
    tei_http: u16,
    grpc: Code,
    kind: &'static str,
    code: &'static str,
    tei: &'static str,
) -> Wire {
    Wire {
        http,
        tei_http,
        grpc,
        kind,
        code,
        tei,
    }
}

// === impl Wire ===

impl Wire {
    /// The status on the route's own terms. 499 is not a registered status, but a valid one.
    pub(super) fn status(&self, tei: bool) -> StatusCode {
        let number = if tei { self.tei_http } else { self.http };
        StatusCode::from_u16(number).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }
}

// === impl Refusal ===

impl Refusal {
    /// The field at fault, where it is a field.
    pub(super) fn param(&self) -> Option<String> {
        let param = match self {
            Self::Score(ScoreError::Invalid { param, .. } | ScoreError::TooLarge { param, .. }) => {
                param
            }
            Self::Score(ScoreError::UnknownModel { .. }) => "model",
            Self::Empty { param, .. } => param,
            _ => return None,
        };
        Some(shortened(param.to_owned()))
    }

    /// What clients read: what is wrong and what to do. What went wrong in here is for the log.
    pub(super) fn message(&self, call: &Call) -> String {
        match (self, retry_after_seconds(self, call)) {
            (Self::Score(ScoreError::Internal { .. }), _) => OURS.to_owned(),
            // The same number as in the header.
            (
                Self::Score(
                    ScoreError::Overloaded { why, .. } | ScoreError::Unavailable { why, .. },
                ),
                Some(seconds),
            ) => shortened(format!("{why}; try again in {seconds} s")),
            _ => self.reason(),
        }
    }

    /// What the log reads.
    pub(super) fn reason(&self) -> String {
        shortened(self.to_string())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Score(error) => error.fmt(f),
            Self::BadJson { why } => write!(f, "the body is not valid JSON: {why}"),
            Self::BadMessage { why } => write!(
                f,
                "the message is not the method's: {why}; send what proto/ describes"
            ),
            Self::Empty { param, why } => write!(f, "{param}: {why}"),
            Self::NoRoute {
                method,
                path,
                instead,
            } => write!(f, "there is no {method} {path} here; {instead}"),
            Self::WrongMethod {
                method,
                path,
                allowed,
            } => {
                write!(f, "{path} does not take {method}; send {allowed}")
            }
            Self::MediaType { found } => {
                write!(
                    f,
                    "the body is {found}; send JSON with Content-Type: application/json"
                )
            }
            Self::Encoding { found } => write!(
                f,
                "Content-Encoding: {found} is not taken; send the body as it is, or packed by gzip or zstd"
            ),
            Self::BodyTooLarge { bytes_max } => write!(
                f,
                "the body is longer than body_bytes_max = {bytes_max} bytes; send fewer documents in a request"
            ),
            Self::BodyLate { after } => write!(
                f,
                "the body did not arrive within {:.3} s; send it faster or in smaller requests",
                after.as_secs_f64()
            ),
            Self::BodyBroken { why } => write!(f, "the body broke off: {why}; send it again"),
            Self::NotSwapped { why } => write!(f, "not done: {why}"),
            Self::Key { found } => write!(
                f,
                "the admin key is {found}; send Authorization: Bearer KEY, the KEY that the server's \
                 server.admin_key or server.admin_key_file names"
            ),
            Self::ApiKey { found } => write!(
                f,
                "the API key is {found}; send Authorization: Bearer KEY, a KEY that this server's operator gave you"
            ),
            Self::ForeignHost { found } => write!(
                f,
                "the admin listener was called as {found:?}, by the header Host; call it as localhost or by its IP \
                 address, or set server.admin_key and show the key"
            ),
            Self::ForeignPage { found } => write!(
                f,
                "a web page of {found:?} has called, by the header Origin; the admin listener answers programs, \
                 and pages of localhost or of an IP address"
            ),
        }
    }
}

impl std::error::Error for Refusal {}

impl From<ScoreError> for Refusal {
    fn from(error: ScoreError) -> Self {
        Self::Score(error)
    }
}
