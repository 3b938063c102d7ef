//! Will it be in time? Decided by prediction, before anything is tokenized or computed.

use crate::generation::line::{Line, Permit};
use crate::generation::plan::Ask;
use crate::score::ScoreError;
use std::sync::Arc;
use std::time::Instant;

/// Decides who is computed. Asked for what is not known yet, and for that alone: what costs nothing is
/// never refused.
#[derive(Clone, Default)]
pub struct Admit {}

impl Admit {
    /// Asks the generation of `line` for room and time.
    ///
    /// # Errors
    /// [`Line::admit`]'s.
    pub fn admit(&self, line: &Arc<Line>, ask: &Ask) -> Result<Permit, ScoreError> {
        line.admit(ask, Instant::now())
    }
}
