//! The way of a swap from the moment at which it is proven: tried out on requests, live, watched, confirmed or
//! taken back.

use super::Swap;
use super::road::{Proven, Serves, tolerance};
use crate::control::{ShadowOrder, SwapState};
use crate::generation::probation::{self, Before};
use crate::generation::{Facts, Generation, Golden, Shadow, Shadowed};
use crate::load::Totals;
use crate::runtime::now;
use std::sync::Arc;
use std::time::Duration;

/// How often a generation in its probation, or one that is tried out, is looked at.
const WATCH_PAUSE: Duration = Duration::from_millis(100);
/// How often its golden rows are scored again.
const DRIFT_PAUSE: Duration = Duration::from_secs(5);
/// Requests that it may fail while it is tried out, and beyond that the share of all of them.
const SHADOW_FAILED_MAX: u64 = 2;
const SHADOW_FAILED_SHARE_MAX: f64 = 0.05;

impl Swap {
    /// The whole way, from `live` or, where a model is loaded, from nothing.
    pub(super) fn run(self, live: Option<Arc<Generation>>) {
        let mut serves = live.map(Serves::of);
        let proven = self.prove_new(&mut serves);
        let proven = proven.and_then(|proven| self.try_out(proven, serves.as_ref()));
        let (state, detail) = match proven {
            Ok(proven) => self.serve(proven, serves),
            Err(why) => self.recover(why, serves),
        };
        self.tell(state, detail);
    }

    /// Has it score a share of the requests, if that was ordered and there are any.
    fn try_out(&self, proven: Proven, serves: Option<&Serves>) -> Result<Proven, String> {
        let live = serves.and_then(|serves| Some((&serves.facts, serves.generation.as_ref()?)));
        let (Some(order), Some((facts, _))) = (self.order.shadow, live) else {
            return Ok(proven);
        };
        let told = self.shadow(&proven.generation, facts, order);
        match told {
            Ok(told) => Ok(Proven {
                detail: format!("{}; {told}", proven.detail),
                ..proven
            }),
            Err(why) => {
                self.all.retire(proven.generation);
                Err(why)
            }
        }
    }

    fn shadow(
        &self,
        candidate: &Arc<Generation>,
        live: &Facts,
        order: ShadowOrder,
    ) -> Result<String, String> {
        let (slots, model) = (&self.all.slots, self.order.model.as_str());
        let percent = order.share * 100.0;
        let time = order.time;
        self.tell(
            SwapState::Shadow,
            format!("tried out on {percent} % of the requests for {time:?}"),
        );
        let shadow = Shadow::new(Arc::clone(candidate), order.share);
        slots.cast_shadow(model, Some(Arc::clone(&shadow)));
        let end = now() + order.time;
        let mut wanted = Ok(());
        while now() < end && !slots.is_draining() && wanted.is_ok() {
            std::thread::sleep(WATCH_PAUSE.min(order.time));
            wanted = self.check_wanted();
        }
        slots.cast_shadow(model, None);
        wanted?;
        let seen = shadow.seen_so_far();
        verdict(&seen, live, candidate.facts())?;
        Ok(seen.to_string())
    }

    /// Has it serve, and watches it.
    fn serve(&self, proven: Proven, serves: Option<Serves>) -> (SwapState, String) {
        let Proven {
            generation,
            golden,
            detail,
        } = proven;
        let (slots, model) = (&self.all.slots, self.order.model.as_str());
        let (number, line) = (generation.facts().number, Arc::clone(generation.line()));
        let at_first = line.totals();
        // What is loaded beside others has no probation: it is there, or it is not.
        if serves.is_none()
            && let Err(why) = self.settle()
        {
            self.all.retire(generation);
            return (SwapState::RolledBack, why);
        }
        let before = serves.map(|serves| {
            let live = serves.generation.as_ref();
            let (totals, learned) = live.map_or((serves.totals, serves.learned), |live| {
                (live.line().totals(), live.line().load().learned)
            });
            (serves.facts, totals, learned)
        });
        slots.publish(Arc::clone(&generation));
        self.tell(SwapState::Live, format!("generation {number}"));
        let Some((facts, totals, learned)) = before else {
            return (SwapState::Confirmed, detail);
        };
        let before = Before {
            totals,
            learned,
            is_same_numerics: facts.description.numerics_id
                == generation.facts().description.numerics_id,
        };
        let outcome = self.watch(&generation, &golden, &at_first, &before);
        drop(generation);
        match outcome {
            Ok(()) => {
                let previous = slots.take_previous(model);
                previous
                    .into_iter()
                    .for_each(|previous| self.all.retire(previous));
                self.all.record(model, |record| record.before = Some(facts));
                (SwapState::Confirmed, detail)
            }
            Err(why) => match slots.restore(model) {
                Some(failed) => {
                    self.all.retire_taken_back(failed, &facts);
                    (SwapState::RolledBack, why)
                }
                None => self.take_back(&facts, &why),
            },
        }
    }

    /// Until the end of the probation.
    ///
    /// # Errors
    /// Why it shall not stay.
    fn watch(
        &self,
        generation: &Generation,
        golden: &Golden,
        at_first: &Totals,
        before: &Before,
    ) -> Result<(), String> {
        let end = now() + self.order.probation;
        let mut drift_at = now() + DRIFT_PAUSE;
        // A server that stops has nobody left to watch for.
        while now() < end && !self.all.slots.is_draining() {
            self.check_wanted()?;
            let line = generation.line();
            let done = line.totals().since(at_first);
            if let Some(why) = probation::why_not(before, &done, &line.load()) {
                return Err(why);
            }
            if drift_at <= now() {
                self.check_drift(generation, golden)?;
                drift_at = now() + DRIFT_PAUSE;
            }
            std::thread::sleep(WATCH_PAUSE);
        }
        self.settle()
    }

    /// Its scores must stay what they were when it was proven.
    fn check_drift(&self, generation: &Generation, golden: &Golden) -> Result<(), String> {
        let by = now() + DRIFT_PAUSE;
        // On a busy server it is asked again later.
        let Ok(again) = Golden::of(generation, &self.all.runtime, by) else {
            return Ok(());
        };
        let facts = generation.facts();
        golden
            .agreement(&again)?
            .check(&tolerance(facts, facts))
            .map_err(|why| format!("its scores drift: {why}"))
    }

    /// After a refusal: what was drained for it is opened again. Whoever ended it has what he wanted.
    fn recover(&self, why: String, serves: Option<Serves>) -> (SwapState, String) {
        let (state, told) = match serves {
            Some(serves) if serves.generation.is_none() => self.take_back(&serves.facts, &why),
            _ => (SwapState::RolledBack, why),
        };
        match self.settle() {
            Ok(()) => (SwapState::Refused, told),
            Err(_) => (state, told),
        }
    }

    /// What served before serves again, because an operator or the guard wants it.
    pub(super) fn go_back(self, before: &Arc<Facts>, why: &str) {
        let (state, detail) = self.take_back(before, why);
        // What did not open can be asked for again.
        if state == SwapState::RolledBack {
            self.all
                .record(&self.order.model, |record| record.before = None);
        }
        self.tell(state, detail);
    }

    /// Opens what served before, beside what serves if there is room for both, and has it serve.
    fn take_back(&self, before: &Arc<Facts>, why: &str) -> (SwapState, String) {
        let (slots, model) = (&self.all.slots, self.order.model.as_str());
        let needs = before.description.memory_bytes;
        let has_room = crate::host::memory_available().is_none_or(|has| needs <= has);
        if !has_room && let Ok(live) = slots.live(Some(model)) {
            let mut serves = Serves::of(live);
            self.drain(&mut serves, format!("{why}; there is no room for both"));
            self.all.forget_scores(&serves.facts, before);
        }
        match self.all.reopen(before) {
            Ok(generation) => {
                if let Some(proof) = before_proof(before) {
                    generation.note_proof(proof);
                }
                slots.publish(generation);
                let failed = slots.take_previous(model);
                failed
                    .into_iter()
                    .for_each(|failed| self.all.retire_taken_back(failed, before));
                (SwapState::RolledBack, why.to_owned())
            }
            Err(error) => {
                slots.give_up(model);
                let stays = match slots.live(Some(model)) {
                    Ok(_) => "what serves goes on",
                    Err(_) => "the model does not serve any more: load it again",
                };
                let told =
                    format!("{why}; what served before does not open again: {error}; {stays}");
                (SwapState::Refused, told)
            }
        }
    }
}

/// It was proven when it served the first time; the same file and weights are again what they were.
fn before_proof(before: &Facts) -> Option<String> {
    (before.number > 1).then(|| format!("as generation {}, which it is again", before.number))
}

/// Whether what was tried out may go live.
///
/// # Errors
/// Why not.
fn verdict(seen: &Shadowed, live: &Facts, new: &Facts) -> Result<(), String> {
    let counts = &seen.counts;
    let n_all = counts.n_compared + counts.n_failed;
    let share = SHADOW_FAILED_SHARE_MAX * n_all as f64;
    if SHADOW_FAILED_MAX < counts.n_failed && share < counts.n_failed as f64 {
        let last = counts.last_error.as_deref().unwrap_or_default();
        return Err(format!(
            "tried out on requests it failed {} of {n_all}, the last one with: {last}",
            counts.n_failed
        ));
    }
    let has_its_weights = new.info.has_weights_of(&live.info);
    if !has_its_weights || counts.n_compared == 0 {
        return Ok(());
    }
    let agreement = seen.agreement.check(&tolerance(live, new));
    agreement.map_err(|why| format!("tried out on requests: {why}"))
}
