//! How long a batch takes: `seconds ≈ a + b·tokens + c·Σ len²`, learned from what is measured.
//!
//! One estimate serves batch cutting, fairness, admission and `Retry-After`. It is pure: what was
//! measured comes in, seconds come out.

/// Weight that an observation keeps with each later one: about the last 100 batches count.
const FORGETTING: f64 = 0.99;
/// Observations beyond this multiple of the prediction, or below its inverse, count as that: a descheduled
/// worker must not teach that the model is slow, nor a batch that was hardly computed that it is fast.
const OUTLIER_RATIO: f64 = 4.0;
/// Observations before outliers are judged.
const OUTLIER_AFTER: u64 = 8;
/// A pivot below this share of its unknown's own sum of squares is what rounding left of nothing: the
/// batches seen do not tell this unknown from the others.
const SINGULAR_RATIO: f64 = 1e-10;
/// What a batch costs beside its rows counts for little up to this share of theirs.
pub(super) const OWN_COST_SHARE_MAX: f64 = 0.1;

/// What a batch (or a row) is made of, as far as its time goes.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Size {
    /// Tokens: the linear layers.
    pub tokens: f64,
    /// Σ len² over the rows: attention.
    pub squares: f64,
}

/// Rows that are not one batch yet.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Amount {
    /// How many.
    pub rows: usize,
    /// Their size together.
    pub size: Size,
}

/// The learned model.
///
/// Weighted least squares over the last batches, by the normal equations of three unknowns.
#[derive(Clone, Debug)]
pub struct Cost {
    // Σ w·x·xᵀ and Σ w·x·y with x = (1, tokens/1000, squares/1e6): scaled so that the matrix is well
    // conditioned for row lengths from 1 to 10,000.
    xx: [[f64; 3]; 3],
    xy: [f64; 3],
    coefficients: [f64; 3],
    n_observed: u64,
}

impl Size {
    /// One row of this many tokens.
    pub fn row(n_tokens: usize) -> Self {
        let tokens = n_tokens as f64;
        Self {
            tokens,
            squares: tokens * tokens,
        }
    }

    fn features(self) -> [f64; 3] {
        [1.0, self.tokens / 1e3, self.squares / 1e6]
    }
}

impl std::ops::AddAssign for Size {
    fn add_assign(&mut self, other: Self) {
        self.tokens += other.tokens;
        self.squares += other.squares;
    }
}

impl std::ops::SubAssign for Size {
    fn sub_assign(&mut self, other: Self) {
        // Sums of many small differences may end a hair below nothing.
        self.tokens = (self.tokens - other.tokens).max(0.0);
        self.squares = (self.squares - other.squares).max(0.0);
    }
}

impl std::ops::Add for Size {
    type Output = Self;
    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.rows += other.rows;
        self.size += other.size;
    }
}

impl std::ops::SubAssign for Amount {
    fn sub_assign(&mut self, other: Self) {
        self.rows -= other.rows;
        self.size -= other.size;
    }
}

impl std::ops::Add for Amount {
    type Output = Self;
    fn add(mut self, other: Self) -> Self {
        self += other;
        self
    }
}

impl Default for Cost {
    fn default() -> Self {
        // Before anything is known: 10,000 tokens a second, what one slow core makes of a small model.
        // The ridge keeps the matrix regular until there are three different batches.
        let ridge = 1e-6;
        let coefficients = [1e-4, 0.1, 0.0];
        Self {
            xx: [[ridge, 0.0, 0.0], [0.0, ridge, 0.0], [0.0, 0.0, ridge]],
            xy: coefficients.map(|coefficient| ridge * coefficient),
            coefficients,
            n_observed: 0,
        }
    }
}

impl Cost {
    /// Predicted seconds of one batch.
    pub fn batch_s(&self, size: Size) -> f64 {
        dot(&self.coefficients, &size.features())
    }

    /// Whether a batch's own cost beside rows of this size counts for little: then a batch need not be filled
    /// up with more of them.
    pub fn is_mostly_rows(&self, size: Size) -> bool {
        let [own_s, ..] = self.coefficients();
        own_s <= OWN_COST_SHARE_MAX * self.rows_s(size)
    }

    /// Predicted seconds that rows add to a batch: without the batch's own `a`.
    pub fn rows_s(&self, size: Size) -> f64 {
        let [_, tokens, squares] = size.features();
        self.coefficients[1] * tokens + self.coefficients[2] * squares
    }

    /// `a`, `b` (seconds a token) and `c` (seconds a squared token).
    pub fn coefficients(&self) -> [f64; 3] {
        let [a, b, c] = self.coefficients;
        [a, b / 1e3, c / 1e6]
    }

    /// Learns from a batch that took `seconds`.
    pub fn learn(&mut self, size: Size, seconds: f64) {
        if !seconds.is_finite() || seconds <= 0.0 || size.tokens <= 0.0 {
            return;
        }
        let seconds = if self.n_observed < OUTLIER_AFTER {
            seconds
        } else {
            let predicted = self.batch_s(size);
            seconds.clamp(predicted / OUTLIER_RATIO, predicted * OUTLIER_RATIO)
        };
        let x = size.features();
        // Relative error is what matters: a batch of 2 ms and one of 200 ms teach equally much.
        let weight = 1.0 / (seconds * seconds);
        for row in 0..3 {
            for column in 0..3 {
                self.xx[row][column] =
                    FORGETTING * self.xx[row][column] + weight * x[row] * x[column];
            }
            self.xy[row] = FORGETTING * self.xy[row] + weight * x[row] * seconds;
        }
        self.n_observed += 1;
        self.coefficients = self.solve();
    }

    /// The least-squares coefficients that are not negative: of the eight subsets of unknowns, the one
    /// whose solution is positive and whose error is least (active sets, by trying all).
    fn solve(&self) -> [f64; 3] {
        let mut best = (f64::INFINITY, self.coefficients);
        for subset in 1..8_u32 {
            let kept = [0, 1, 2].map(|unknown| subset & (1 << unknown) != 0);
            let Some(found) = solve_3(&self.xx, &self.xy, kept) else {
                continue;
            };
            if found.iter().any(|&coefficient| coefficient < 0.0) {
                continue;
            }
            // Σ w(y - x·β)² less the constant Σ w·y².
            let quadratic: f64 = (0..3)
                .map(|row| found[row] * dot(&self.xx[row], &found))
                .sum();
            let error = quadratic - 2.0 * dot(&self.xy, &found);
            // Without a cost of tokens, rows would seem free: fairness and cutting need one.
            if 0.0 < found[1] && error < best.0 {
                best = (error, found);
            }
        }
        best.1
    }
}

fn dot(a: &[f64; 3], b: &[f64; 3]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Solves `matrix · x = right` for the unknowns that are kept, the others being 0. `None` if singular.
fn solve_3(matrix: &[[f64; 3]; 3], right: &[f64; 3], kept: [bool; 3]) -> Option<[f64; 3]> {
    let (squares, mut matrix, mut right) = (*matrix, *matrix, *right);
    for dropped in (0..3).filter(|&unknown| !kept[unknown]) {
        matrix[dropped] = [0.0; 3];
        matrix.iter_mut().for_each(|row| row[dropped] = 0.0);
        matrix[dropped][dropped] = 1.0;
        right[dropped] = 0.0;
    }
    // Gauss without pivoting: the matrix is symmetric and positive definite.
    for pivot in 0..3 {
        // Weights are 1/seconds²: what is small depends on the model's speed and the row lengths.
        if kept[pivot] && matrix[pivot][pivot] <= SINGULAR_RATIO * squares[pivot][pivot] {
            return None;
        }
        let upper = matrix[pivot];
        for row in pivot + 1..3 {
            let factor = matrix[row][pivot] / upper[pivot];
            for (below, above) in matrix[row].iter_mut().zip(upper) {
                *below -= factor * above;
            }
            right[row] -= factor * right[pivot];
        }
    }
    let mut solution = [0.0; 3];
    for row in (0..3).rev() {
        let known: f64 = (row + 1..3)
            .map(|column| matrix[row][column] * solution[column])
            .sum();
        solution[row] = (right[row] - known) / matrix[row][row];
    }
    Some(solution)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds batches whose time follows the formula; predictions must come within `tolerance`.
    #[track_caller]
    fn check(a: f64, b: f64, c: f64, noise: f64, tolerance: f64) {
        let mut cost = Cost::default();
        let truth = |size: Size| a + b * size.tokens + c * size.squares;
        let mut state = 1_u32;
        for round in 0..400_usize {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let mut size = Size::default();
            for row in 0..=(round % 9) {
                size += Size::row(8 + (round * 37 + row * 61) % 500);
            }
            let jitter = 1.0 + noise * (f64::from(state >> 8) / f64::from(1 << 24) - 0.5);
            // One batch in fifty was descheduled for a second.
            let stalled = if round % 50 == 49 && noise > 0.0 {
                1.0
            } else {
                0.0
            };
            cost.learn(size, truth(size) * jitter + stalled);
        }
        for size in [
            Size::row(16),
            Size::row(512),
            Size {
                tokens: 4_096.0,
                squares: 64.0 * 64.0 * 64.0,
            },
        ] {
            let (expected, found) = (truth(size), cost.batch_s(size));
            assert!(
                (found / expected - 1.0).abs() < tolerance,
                "{size:?}: {found} for {expected}"
            );
        }
    }

    #[test]
    fn learns_the_formula() {
        check(2e-3, 50e-6, 20e-9, 0.0, 0.01);
    }
    #[test]
    fn learns_without_a_constant() {
        check(0.0, 50e-6, 0.0, 0.0, 0.05);
    }
    #[test]
    fn learns_fast_and_slow_models_alike() {
        check(2e-6, 50e-9, 20e-12, 0.0, 0.01);
        check(2.0, 50e-3, 20e-6, 0.0, 0.01);
    }

    #[test]
    fn batches_of_one_size_leave_the_constant_open_and_predict_themselves() {
        for seconds in [1e-6, 1e-2, 10.0] {
            let mut cost = Cost::default();
            (0..1_000).for_each(|_| cost.learn(Size::row(100), seconds));
            let found = cost.batch_s(Size::row(100));
            assert!(
                (found / seconds - 1.0).abs() < 0.01,
                "{found} for {seconds}"
            );
            let [a, b, c] = cost.coefficients();
            assert!(0.0 <= a && 0.0 < b && 0.0 <= c, "{a} {b} {c}");
        }
    }

    #[test]
    fn a_batch_that_came_back_at_once_does_not_ruin_it() {
        let mut cost = Cost::default();
        for round in 0..200 {
            let size = Size::row(10 + round % 90);
            cost.learn(size, 1e-3 + 1e-5 * size.tokens);
        }
        let before = cost.batch_s(Size::row(50));
        cost.learn(Size::row(50), 1e-7);
        let after = cost.batch_s(Size::row(50));
        assert!((after / before - 1.0).abs() < 0.2, "{after} after {before}");
    }

    #[test]
    fn noise_and_stalls_do_not_mislead_it() {
        check(2e-3, 50e-6, 20e-9, 0.3, 0.4);
    }

    #[test]
    fn forgets_what_is_no_longer_true() {
        let mut cost = Cost::default();
        for _ in 0..200 {
            cost.learn(Size::row(100), 0.010);
        }
        for _ in 0..600 {
            cost.learn(Size::row(100), 0.030);
        }
        let found = cost.batch_s(Size::row(100));
        assert!((found - 0.030).abs() < 0.001, "{found}");
    }

    #[test]
    fn nonsense_is_not_learned() {
        let mut cost = Cost::default();
        let before = cost.coefficients();
        for seconds in [f64::NAN, f64::INFINITY, 0.0, -1.0] {
            cost.learn(Size::row(10), seconds);
        }
        assert_eq!(cost.coefficients(), before);
    }
}
