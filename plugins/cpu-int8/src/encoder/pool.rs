//! Pooling: what the head reads of a row where that is not its first token.

use crate::encoder::pointwise::add_to;
use crate::kernel::lanes::{Lanes, map};
use crate::kernel::{Inside, Kernel, Op};

/// Replaces the first rows of `x` by the means of each row's tokens.
pub struct MeanOfTokens<'a> {
    /// Tokens of `width` values.
    pub x: &'a mut [f32],
    /// Values of a token.
    pub width: usize,
    /// Where each row's tokens start, and the end of the last; no row is empty.
    pub offsets: &'a [usize],
}

impl<K: Kernel> Op<K> for MeanOfTokens<'_> {
    type Output = ();

    #[inline(always)]
    fn run(self, inside: &Inside<K>) {
        let (lanes, width) = (inside.kernel().float(), self.width);
        for (row_idx, ends) in self.offsets.windows(2).enumerate() {
            // Rows are not empty, so row ≤ its first token: nothing is overwritten before it is
            // added.
            let first = ends[0] * width;
            self.x.copy_within(first..first + width, row_idx * width);
            let (sums, tokens) = self.x.split_at_mut(first + width);
            let sum = &mut sums[row_idx * width..][..width];
            let others = &tokens[..(ends[1] - ends[0] - 1) * width];
            for token in others.chunks_exact(width) {
                add_to(sum, token);
            }
            let n_tokens = (ends[1] - ends[0]) as f32;
            map(lanes, sum, |v| lanes.mul(v, lanes.splat(1.0 / n_tokens)));
        }
    }
}
