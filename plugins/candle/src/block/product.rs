//! Products of matrices on CPUs, by gemm's kernels for the CPU at hand and on the calling thread alone.
//!
//! candle calls the same kernels, but starts as many threads as the machine has cores, and to know their number
//! it reads /proc/cpuinfo before each product, which grows with them.

#![allow(unsafe_code)] // gemm takes pointers.

use super::Steps;
use candle_core::{CpuStorage, CustomOp2, Layout, Result, Shape, Tensor, bail};
use gemm::Parallelism;

/// x · y, of two matrices or of as many pairs of them.
pub(crate) fn product(x: &Tensor, y: &Tensor) -> Result<Tensor> {
    if Steps::of(x) == Steps::Fused && Steps::of(y) == Steps::Fused {
        x.apply_op2_no_bwd(y, &Product)
    } else {
        dense(x)?.matmul(&dense(y)?)
    }
}

/// The same values, each matrix row by row or column by column and without gaps, as Metal's products want them.
fn dense(x: &Tensor) -> Result<Tensor> {
    let is_dense = match (x.dims(), x.stride()) {
        (&[.., rows, columns], &[.., row, value]) => {
            (value == 1 && row == columns) || (row == 1 && value == rows)
        }
        _ => false,
    };
    if is_dense || !x.device().is_metal() {
        return Ok(x.clone());
    }
    x.contiguous()
}

struct Product;

/// Matrices in a slice, one behind the other.
struct Matrices {
    n: usize,
    rows: usize,
    columns: usize,
    /// From one matrix, row or value to the next.
    strides: [usize; 3],
}

impl Matrices {
    /// What a layout says of the values behind its start, if all of them lie within `len`.
    fn of(layout: &Layout, len: usize) -> Result<Self> {
        let (n, rows, columns, strides) = match (layout.dims(), layout.stride()) {
            (&[rows, columns], &[row, value]) => (1, rows, columns, [0, row, value]),
            (&[n, rows, columns], &[matrix, row, value]) => {
                (n, rows, columns, [matrix, row, value])
            }
            (dims, _) => bail!("a product of {} dimensions", dims.len()),
        };
        let mut sizes = [n, rows, columns].into_iter().zip(strides);
        let last = sizes.try_fold(0_usize, |at, (size, stride)| {
            at.checked_add(size.checked_sub(1)?.checked_mul(stride)?)
        });
        match last {
            Some(last) if last < len => Ok(Self {
                n,
                rows,
                columns,
                strides,
            }),
            _ => bail!("a product of matrices {:?} in {len} values", layout.dims()),
        }
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        y: &CpuStorage,
        y_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let x_values = behind(x.as_slice::<f32>()?, x_layout)?;
        let y_values = behind(y.as_slice::<f32>()?, y_layout)?;
        let x = Matrices::of(x_layout, x_values.len())?;
        let y = Matrices::of(y_layout, y_values.len())?;
        if x.n != y.n || x.columns != y.rows {
            bail!(
                "a product of {:?} and {:?}",
                x_layout.dims(),
                y_layout.dims()
            );
        }
        let (rows, columns) = (x.rows, y.columns);
        let mut out: Vec<f32> = Vec::with_capacity(x.n * rows * columns);
        for at in 0..x.n {
            let (x_start, y_start) = (at * x.strides[0], at * y.strides[0]);
            // SAFETY: `Matrices::of` found every value of both matrices within its slice, and `out` has room
            // for `x.n` results, of which this is the one at `at`. gemm writes all of a result and, told not
            // to by `read_dst`, reads none of it.
            unsafe {
                gemm::gemm(
                    rows,
                    columns,
                    x.columns,
                    out.as_mut_ptr().add(at * rows * columns),
                    1,
                    columns as isize,
                    false,
                    x_values.as_ptr().add(x_start),
                    x.strides[2] as isize,
                    x.strides[1] as isize,
                    y_values.as_ptr().add(y_start),
                    y.strides[2] as isize,
                    y.strides[1] as isize,
                    0.0_f32,
                    1.0_f32,
                    false,
                    false,
                    false,
                    Parallelism::None,
                );
            }
        }
        // SAFETY: each of the `x.n` results has been written above.
        unsafe { out.set_len(x.n * rows * columns) };
        let shape = match x_layout.dims().len() {
            2 => Shape::from((rows, columns)),
            _ => Shape::from((x.n, rows, columns)),
        };
        Ok((CpuStorage::F32(out), shape))
    }
}

fn behind<'a>(values: &'a [f32], layout: &Layout) -> Result<&'a [f32]> {
    match values.get(layout.start_offset()..) {
        Some(values) => Ok(values),
        None => bail!(
            "a layout that begins at {} of {}",
            layout.start_offset(),
            values.len()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{D, Device};

    /// Of every layout that blocks use: contiguous, transposed, a part of a larger one, many at once.
    #[test]
    fn products_are_those_of_candle() -> Result<()> {
        let device = Device::Cpu;
        let values = |n: usize| {
            (0..n)
                .map(|at| (at * 37 % 101) as f32 / 50.0 - 1.0)
                .collect::<Vec<_>>()
        };
        let tensor =
            |shape: &[usize]| Tensor::from_vec(values(shape.iter().product()), shape, &device);
        let check = |x: &Tensor, y: &Tensor| -> Result<()> {
            let (found, expected) = (product(x, y)?, x.contiguous()?.matmul(&y.contiguous()?)?);
            assert_eq!(found.dims(), expected.dims());
            let off = (found - expected)?.abs()?.flatten_all()?.max(D::Minus1)?;
            assert!(off.to_scalar::<f32>()? < 1e-5);
            Ok(())
        };
        for (m, k, n) in [(1, 1, 1), (7, 48, 3), (33, 17, 65), (130, 384, 64)] {
            check(&tensor(&[m, k])?, &tensor(&[k, n])?)?;
            check(&tensor(&[m, k])?, &tensor(&[n, k])?.t()?)?;
            check(
                &tensor(&[m, k])?,
                &tensor(&[n, k + 5])?.narrow(1, 0, k)?.t()?,
            )?;
            check(&tensor(&[3, m, k])?, &tensor(&[3, n, k])?.t()?)?;
            check(
                &tensor(&[3, m + 4, k])?.narrow(1, 2, m)?,
                &tensor(&[3, k, n])?,
            )?;
        }
        Ok(())
    }

    #[test]
    fn matrices_that_do_not_fit_are_refused() -> Result<()> {
        let x = Tensor::zeros((2, 3), candle_core::DType::F32, &Device::Cpu)?;
        assert!(product(&x, &x).is_err());
        let many = Tensor::zeros((4, 3, 2), candle_core::DType::F32, &Device::Cpu)?;
        assert!(product(&x, &many).is_err());
        Ok(())
    }
}
