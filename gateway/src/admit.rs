//! Will it be in time? Decided by prediction, before anything is tokenized or computed.

use crate::generation::line::{Line, Permit};
use crate::generation::plan::Ask;
use crate::runtime::now;
use crate::score::ScoreError;
use crate::shared::{Lease, Shared};
use std::sync::Arc;

/// Decides who is computed. Asked for what is not known yet, and for that alone: what costs nothing is
/// never refused.
#[derive(Clone, Default)]
pub struct Admit {
    shared: Option<Shared>,
}

/// The right to be computed: by this server, and among those of all.
pub struct Admission {
    /// A place in the queue.
    pub permit: Permit,
    /// Given back when everything has landed.
    pub lease: Option<Lease>,
}

impl Admit {
    /// Minds the bounds of all servers, where there are several.
    pub fn new(shared: Option<Shared>) -> Self {
        Self { shared }
    }

    /// Asks the generation of `line` for room and time, and then all servers for a place.
    ///
    /// # Errors
    /// [`Line::admit`]'s and [`Shared::enter`]'s.
    pub async fn admit(&self, line: &Arc<Line>, ask: &Ask) -> Result<Admission, ScoreError> {
        let permit = line.admit(ask, now())?;
        let lease = match &self.shared {
            Some(shared) => shared.enter().await?,
            None => None,
        };
        Ok(Admission { permit, lease })
    }
}
