//! Every i8 kernel that this CPU has equals the scalar oracle on full-range data, at every size
//! around its tile.
//!
//! `KERNELS_REQUIRED` (names, comma-separated) says what this machine must have: a kernel cannot
//! vanish into a skip. Run with `--nocapture` to see which kernels ran.

#![allow(clippy::print_stdout)] // The measured differences, and which kernels ran.

mod common;

use common::Numbers;
use cpu_int8::arena::{Codes, TileScratch};
use cpu_int8::gemm::Linear;
use cpu_int8::gemm::finish::Finish;
use cpu_int8::gemm::pack::Packed;
use cpu_int8::kernel::scalar::{PortableF32, oracle};
use cpu_int8::kernel::tile::{self, Tile};
use cpu_int8::kernel::{Dtype, Kernel, MR_MAX, NR_MAX, Visitor, available, visit_all};
use cpu_int8::quant::f16::F16;
use cpu_int8::quant::int4::Column;
use cpu_int8::quant::narrow::Storage;
use cpu_int8::quant::{Code, Sum};

/// Quanta as rows of `k`.
#[derive(Clone, Copy)]
struct Case<'a> {
    name: &'a str,
    a: &'a [i8],
    b: &'a [i8],
    m: usize,
    n: usize,
    k: usize,
}

/// Packs and multiplies the case as the engine does and compares each sum with the oracle's.
struct Compare<'a>(Case<'a>);

impl Visitor for Compare<'_> {
    type Output = Result<(), String>;

    fn visit<K: Kernel>(&mut self, kernel: K) -> Self::Output {
        let Case {
            name,
            a,
            b,
            m,
            n,
            k,
        } = self.0;
        let expected = oracle(a, b, k);
        let stride = k.next_multiple_of(K::K_ALIGN);
        let left: Vec<K::Left> = a
            .chunks_exact(k)
            .flat_map(|row| exactly::<K::Left>(row, stride))
            .collect();
        // Rows up to a whole group are read, and must not matter: full-range rubbish.
        let mut left = left;
        let n_rubbish = (m.next_multiple_of(K::ROW_GROUP) - m) * stride;
        left.extend(exactly::<K::Left>(&vec![-127; n_rubbish], n_rubbish));
        for (panel_idx, columns) in b.chunks(K::NR * k).enumerate() {
            let columns: Vec<_> = columns
                .chunks_exact(k)
                .map(|column| exactly::<K::Right>(column, stride))
                .collect();
            let mut panel = vec![K::Right::default(); K::NR * stride];
            for (lane, column) in columns.iter().enumerate() {
                for (step, group) in column.chunks_exact(K::K_STEP).enumerate() {
                    panel[(step * K::NR + lane) * K::K_STEP..][..K::K_STEP].copy_from_slice(group);
                }
            }
            let mut out = vec![K::Acc::default(); MR_MAX * NR_MAX];
            for row in (0..m).step_by(K::MR) {
                let n_rows = (m - row).min(K::MR);
                tile::compute(
                    kernel,
                    Tile {
                        n_rows,
                        left: &left[row * stride..],
                        stride,
                        right: &panel,
                        out: &mut out,
                        out_stride: K::NR,
                    },
                );
                for (r, c) in (0..n_rows).flat_map(|r| (0..columns.len()).map(move |c| (r, c))) {
                    let quanta: i32 = columns[c].iter().map(|q| q.quantum()).sum();
                    let found = out[r * K::NR + c];
                    let expected = expected[(row + r) * n + panel_idx * K::NR + c];
                    let raw = i32::try_from(expected).unwrap() + K::Left::ZERO_POINT * quanta;
                    // 1 · raw: the kernel's own type for an integer. Compared as integers: f32
                    // would round.
                    let corrected =
                        found.corrected(K::Acc::correction(K::Left::ZERO_POINT, quanta));
                    if found != K::Acc::correction(1, raw) || corrected != expected as f32 {
                        return Err(format!(
                            "{}: {name} {m}×{n}×{k} at ({r}, {c}): {found:?}, not {raw}",
                            K::NAME
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// Quanta as a kernel's elements, zeros up to `stride`. A 127 in front fixes the scale at 1.
fn exactly<C: Code>(quanta: &[i8], stride: usize) -> Vec<C> {
    let values: Vec<f32> = [127.0]
        .into_iter()
        .chain(quanta.iter().map(|&q| f32::from(q)))
        .collect();
    let mut codes = vec![C::default(); stride + 1];
    assert_eq!(C::encode(PortableF32, &values, &mut codes), 1.0);
    let codes = codes.split_off(1);
    assert!(
        codes
            .iter()
            .zip(quanta)
            .all(|(code, &q)| code.quantum() == i32::from(q))
    );
    codes
}

fn check(name: &str, m: usize, n: usize, k: usize, mut quantum: impl FnMut() -> (i8, i8)) {
    let (mut a, mut b) = (vec![0; m * k], vec![0; n * k]);
    a.iter_mut().for_each(|a| *a = quantum().0);
    b.iter_mut().for_each(|b| *b = quantum().1);
    let failures: Vec<_> = visit_all(
        Dtype::Int8,
        &mut Compare(Case {
            name,
            a: &a,
            b: &b,
            m,
            n,
            k,
        }),
    )
    .into_iter()
    .filter_map(Result::err)
    .collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

#[test]
fn what_must_be_here_is_here() {
    let names: Vec<_> = Dtype::ALL.into_iter().flat_map(available).collect();
    println!("kernels: {}", names.join(", "));
    let required = std::env::var("KERNELS_REQUIRED").unwrap_or_default();
    for name in required
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty())
    {
        assert!(
            names.contains(&name),
            "{name} is required here but this CPU has {names:?}"
        );
    }
}

#[test]
fn random_full_range_at_every_boundary() {
    let mut numbers = Numbers::new(1);
    for m in [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 15, 16, 17, 31, 32, 33] {
        for n in [1, 2, 15, 16, 17, 31, 32, 33] {
            for k in [1, 2, 3, 4, 5, 7, 8, 9, 31, 32, 33, 64, 65] {
                check("random", m, n, k, || (numbers.quantum(), numbers.quantum()));
            }
        }
    }
}

#[test]
fn extremes_do_not_saturate() {
    // 3072 and 4096 are the feed-forward widths of BERT-base and -large.
    for k in [1, 2, 3, 4, 63, 64, 65, 384, 1_536, 3_072, 4_096] {
        for extreme in [(127, 127), (-127, 127), (127, -127), (-127, -127)] {
            check("extreme", 13, 33, k, || extreme);
        }
        let mut sign = 1_i8;
        check("alternating", 13, 33, k, || {
            sign = -sign;
            (127 * sign, -127)
        });
    }
}

#[test]
fn wide_random_sums_are_exact() {
    let mut numbers = Numbers::new(2);
    for k in [383, 384, 385, 1_536, 4_096] {
        check("random", 13, 33, k, || {
            (numbers.quantum(), numbers.quantum())
        });
    }
}

/// Integers up to 127 and their sums up to 2²⁴ are f32s, and the former bf16s, so they come out
/// exactly: a test of packing and tails.
#[test]
fn float_kernels_multiply_small_integers_exactly() {
    struct Multiply {
        k: usize,
    }
    impl Visitor for Multiply {
        type Output = ();
        fn visit<K: Kernel>(&mut self, kernel: K) {
            let mut numbers = Numbers::new(3);
            let a: Vec<i8> = (0..K::MR * self.k).map(|_| numbers.quantum()).collect();
            let b: Vec<i8> = (0..K::NR * self.k).map(|_| numbers.quantum()).collect();
            let expected = oracle(&a, &b, self.k);
            let stride = self.k.next_multiple_of(K::K_ALIGN);
            let left: Vec<K::Left> = a
                .chunks_exact(self.k)
                .flat_map(|row| encode::<K::Left>(row, stride))
                .collect();
            let mut panel = vec![K::Right::default(); K::NR * stride];
            for (lane, column) in b.chunks_exact(self.k).enumerate() {
                let codes = encode::<K::Right>(column, stride);
                for (step, group) in codes.chunks_exact(K::K_STEP).enumerate() {
                    panel[(step * K::NR + lane) * K::K_STEP..][..K::K_STEP].copy_from_slice(group);
                }
            }
            let mut out = vec![K::Acc::default(); K::MR * K::NR];
            tile::compute(
                kernel,
                Tile {
                    n_rows: K::MR,
                    left: &left,
                    stride,
                    right: &panel,
                    out: &mut out,
                    out_stride: K::NR,
                },
            );
            for (found, expected) in out.into_iter().zip(expected) {
                assert_eq!(
                    found.corrected(K::Acc::default()),
                    expected as f32,
                    "{} at k = {}",
                    K::NAME,
                    self.k
                );
            }
        }
    }
    for k in [1, 2, 7, 64, 384] {
        visit_all(Dtype::F32, &mut Multiply { k });
        visit_all(Dtype::Bf16, &mut Multiply { k });
    }
}

fn encode<C: Code>(quanta: &[i8], stride: usize) -> Vec<C> {
    let values: Vec<f32> = quanta.iter().map(|&q| f32::from(q)).collect();
    let mut codes = vec![C::default(); stride];
    assert_eq!(C::encode(PortableF32, &values, &mut codes), 1.0);
    codes
}

/// `left` (rows of `k`) by `weights` (columns of `k`), as the engine computes it; rows have scale 1.
struct Layer<'a> {
    storage: Storage,
    left: &'a [i8],
    weights: &'a [f32],
    n: usize,
    k: usize,
}

impl Visitor for Layer<'_> {
    type Output = (&'static str, Vec<f32>);

    fn visit<K: Kernel>(&mut self, kernel: K) -> Self::Output {
        let &mut Self {
            storage,
            left,
            weights,
            n,
            k,
        } = self;
        let m = left.len() / k;
        let packed = Packed::new(kernel, storage, weights, &vec![0.0; n], k);
        let mut codes = Codes::<K>::new(m, k);
        codes.scales.fill(1.0);
        let rows = codes.codes.chunks_exact_mut(codes.stride);
        for (out, row) in rows.zip(left.chunks_exact(k)) {
            if K::Left::QUANTISED {
                out.copy_from_slice(&exactly(row, out.len()));
            } else {
                out.copy_from_slice(&encode(row, out.len()));
            }
        }
        let mut out = vec![f32::NAN; m * n];
        Linear {
            left: &codes,
            rows: 0..m,
            weights: &packed,
            finish: Finish::Store,
            sums: &mut TileScratch::new(storage, k),
            out: &mut out,
        }
        .run(kernel);
        (K::NAME, out)
    }
}

/// Weights of several sizes, with zeros and a large one among them.
fn some_weights(numbers: &mut Numbers, n: usize) -> Vec<f32> {
    let weights = (0..n).map(|_| match numbers.below(64) {
        0 => 5.0,
        1 => 0.0,
        size => f32::from(numbers.quantum()) / 127.0 * size as f32 / 64.0,
    });
    weights.collect()
}

#[test]
fn four_bits_unpack_to_what_was_quantised() {
    let mut numbers = Numbers::new(4);
    for (m, n) in [(1, 1), (13, 15), (33, 17), (5, 33), (40, 65)] {
        for k in [1, 2, 3, 7, 8, 15, 16, 17, 31, 33, 63, 64, 65, 130, 384] {
            let left: Vec<i8> = (0..m * k).map(|_| numbers.quantum()).collect();
            let weights = some_weights(&mut numbers, n * k);
            let columns: Vec<Column> = weights.chunks_exact(k).map(Column::of).collect();
            let quanta = columns
                .iter()
                .flat_map(|column| (0..k).map(|at| column.quantum(at)));
            let sums = oracle(&left, &quanta.collect::<Vec<_>>(), k);
            let expected: Vec<f32> = sums
                .iter()
                .zip((0..m).flat_map(|_| &columns))
                .map(|(&sum, column)| sum as f32 * column.scale)
                .collect();
            let mut layer = Layer {
                storage: Storage::Narrow,
                left: &left,
                weights: &weights,
                n,
                k,
            };
            for (name, found) in visit_all(Dtype::Int4, &mut layer) {
                assert_eq!(found, expected, "{name}: {m}×{n}×{k}");
            }
        }
    }
}

/// Weights that are halves give the same bits whichever way they are held.
#[test]
fn halves_multiply_as_f32_does() {
    let mut numbers = Numbers::new(5);
    for (m, n) in [(1, 1), (13, 15), (33, 17), (5, 65)] {
        for k in [1, 2, 15, 64, 65, 384] {
            let left: Vec<i8> = (0..m * k).map(|_| numbers.quantum()).collect();
            let mut weights = some_weights(&mut numbers, n * k);
            for weight in &mut weights {
                // Subnormal halves among them.
                let small = [1.0, 1e-3, 1e-6][numbers.below(3) as usize];
                *weight = F16::of(*weight * small).get();
            }
            let [whole, narrow] = [Storage::Whole, Storage::Narrow].map(|storage| {
                let mut layer = Layer {
                    storage,
                    left: &left,
                    weights: &weights,
                    n,
                    k,
                };
                visit_all(Dtype::F16, &mut layer)
            });
            assert_eq!(whole, narrow, "{m}×{n}×{k}");
        }
    }
}

#[test]
fn narrow_weights_take_the_bits_they_are_said_to() {
    struct Bits(Storage);
    impl Visitor for Bits {
        type Output = f64;
        fn visit<K: Kernel>(&mut self, kernel: K) -> f64 {
            let (n, k) = (384, 1_536);
            let packed = Packed::new(kernel, self.0, &vec![1.0; n * k], &vec![0.0; n], k);
            // Scale, bias and correction are a column's.
            (packed.n_bytes() - 12 * n) as f64 * 8.0 / (n * k) as f64
        }
    }
    for (dtype, expected) in [(Dtype::Int4, 4.5), (Dtype::F16, 16.0)] {
        for bits in visit_all(dtype, &mut Bits(dtype.storage())) {
            // And up to a cache line.
            assert!((expected..expected + 0.01).contains(&bits), "{bits}");
        }
    }
}
