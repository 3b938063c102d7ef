//! What operators do: the trait by which the admin listener acts.

use crate::load::CacheState;
use std::pin::Pin;

/// Whoever can do it.
pub trait Control: Send + Sync + 'static {
    /// What is kept of scores.
    fn cache(&self) -> CacheState;

    /// Forgets all scores that were kept.
    ///
    /// # Errors
    /// Says what could not be cleared; what could has been.
    fn clear_cache(&self) -> Pin<Box<dyn Future<Output = Result<(), String>> + Send + '_>>;
}
