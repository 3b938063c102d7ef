//! candle's own operations on the device equal those on CPUs: the ground that the plugin's forward stands on, and the
//! proof of the emulated driver where that stands in for a GPU.

use candle_core::{D, DType, Device, IndexOp, Result, Tensor};

/// Whole numbers and halves from −4 to 4, in no simple order: exact in every type.
fn numbers(shape: &[usize]) -> Vec<f32> {
    let count: usize = shape.iter().product();
    (0..count)
        .map(|i| ((i * 7 + i / 5) % 17) as f32 / 2.0 - 4.0)
        .collect()
}

fn tensor(shape: &[usize], dtype: DType, device: &Device) -> Result<Tensor> {
    Tensor::from_vec(numbers(shape), shape, device)?.to_dtype(dtype)
}

/// The largest that a type's rounding makes of values near `size`.
fn tolerance(dtype: DType, size: f32) -> f32 {
    match dtype {
        DType::F16 => size / 1024.0,
        DType::BF16 => size / 128.0,
        _ => size / 100_000.0,
    }
}

/// Runs `operation` on both devices and compares.
fn check(name: &str, dtype: DType, operation: impl Fn(&Device) -> Result<Tensor>) {
    let cuda = Device::new_cuda(0).expect("a device");
    let values = |device: &Device| -> Result<Vec<f32>> {
        operation(device)?
            .flatten_all()?
            .to_dtype(DType::F32)?
            .to_vec1()
    };
    let on_cpu = values(&Device::Cpu).unwrap_or_else(|error| panic!("{name} on the CPU: {error}"));
    let on_cuda = values(&cuda).unwrap_or_else(|error| panic!("{name} on the device: {error}"));
    assert_eq!(on_cpu.len(), on_cuda.len(), "{name}");
    let size = on_cpu.iter().fold(1.0f32, |size, x| size.max(x.abs()));
    for (i, (a, b)) in on_cpu.iter().zip(&on_cuda).enumerate() {
        assert!(
            (a - b).abs() <= tolerance(dtype, size),
            "{name}: value {i} is {a} on the CPU and {b} on the device"
        );
    }
}

const TYPES: [DType; 3] = [DType::F32, DType::F16, DType::BF16];

#[test]
fn products() {
    for dtype in TYPES {
        check("a product", dtype, |device| {
            tensor(&[37, 65], dtype, device)?.matmul(&tensor(&[65, 41], dtype, device)?)
        });
        check("a product with a transposed side", dtype, |device| {
            tensor(&[37, 64], dtype, device)?.matmul(&tensor(&[48, 64], dtype, device)?.t()?)
        });
        check("products of a batch", dtype, |device| {
            tensor(&[2, 3, 5, 8], dtype, device)?.matmul(&tensor(&[2, 3, 8, 7], dtype, device)?)
        });
    }
}

#[test]
fn steps_between_products() {
    for dtype in TYPES {
        check("add", dtype, |device| {
            tensor(&[3, 40], dtype, device)?.broadcast_add(&tensor(&[40], dtype, device)?)
        });
        check("gelu", dtype, |device| {
            tensor(&[500], dtype, device)?.gelu_erf()
        });
        check("silu", dtype, |device| {
            tensor(&[500], dtype, device)?.silu()
        });
        check("affine", dtype, |device| {
            tensor(&[500], dtype, device)?.affine(0.5, 2.0)
        });
        check("cat", dtype, |device| {
            let x = tensor(&[4, 6], dtype, device)?;
            Tensor::cat(&[&x, &x.affine(2.0, 0.0)?], 1)
        });
        check("a strided part", dtype, |device| {
            tensor(&[6, 10], dtype, device)?
                .i((1..5, 2..9))?
                .contiguous()
        });
        check("softmax's pieces", dtype, |device| {
            let x = tensor(&[9, 33], dtype, device)?;
            let x = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
            x.broadcast_div(&x.sum_keepdim(D::Minus1)?)
        });
        check("index_select", dtype, |device| {
            let at = Tensor::from_vec(vec![3u32, 0, 4, 3], 4, device)?;
            tensor(&[5, 12], dtype, device)?.index_select(&at, 0)
        });
        check("where_cond", dtype, |device| {
            let x = tensor(&[40], dtype, device)?;
            x.ge(0f32)?.where_cond(&x, &x.zeros_like()?)
        });
    }
}
