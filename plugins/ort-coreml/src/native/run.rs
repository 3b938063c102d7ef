//! One run of a graph over memory of the worker's own. `ort` has `Session::run` for `&mut Session` only; here workers share one.

#![allow(unsafe_code)] // Tensors over borrowed slices, and a run that borrows the session.

use half::f16;
use ort::AsPointer as _;
use ort::memory::MemoryInfo;
use ort::session::Session;
use ort::sys::{ONNXTensorElementDataType, OrtValue};
use std::ffi::{CStr, c_char, c_void};
use std::marker::PhantomData;
use std::ptr;

/// The most inputs that a graph of ours has: ids, mask, types, positions.
pub const INPUTS_MAX: usize = 4;

/// Values of one kind that the runtime reads or writes in place.
pub enum Values<'a> {
    /// Token ids, masks, types or positions.
    I64(&'a mut [i64]),
    /// The same, in graphs that were exported with short integers.
    I32(&'a mut [i32]),
    /// Logits.
    F32(&'a mut [f32]),
    /// Logits of a graph in half precision.
    F16(&'a mut [f16]),
}

/// The inputs of a run: tensors over borrowed values, each with its name.
pub struct Inputs<'a> {
    names: [*const c_char; INPUTS_MAX],
    tensors: [Option<Tensor<'a>>; INPUTS_MAX],
    n: usize,
}

/// A tensor over borrowed values, as the runtime sees it.
pub struct Tensor<'a> {
    // Never null; owned.
    value: *mut OrtValue,
    borrowed: PhantomData<&'a mut ()>,
}

// === impl Inputs ===

impl Default for Inputs<'_> {
    fn default() -> Self {
        Self {
            names: [ptr::null(); INPUTS_MAX],
            tensors: [const { None }; INPUTS_MAX],
            n: 0,
        }
    }
}

impl<'a> Inputs<'a> {
    /// Adds an input.
    ///
    /// # Errors
    /// When there are [`INPUTS_MAX`] already.
    pub fn push(&mut self, name: &'a CStr, tensor: Tensor<'a>) -> Result<(), ort::Error> {
        let Some(place) = self.tensors.get_mut(self.n) else {
            return Err(ort::Error::new("more inputs than any graph of ours has"));
        };
        *place = Some(tensor);
        self.names[self.n] = name.as_ptr();
        self.n += 1;
        Ok(())
    }
}

// === impl Tensor ===

impl<'a> Tensor<'a> {
    /// A tensor of this shape over `values`, in the memory that `memory` describes: the process's own.
    ///
    /// # Errors
    /// What the runtime says, for example when the shape is of another size.
    pub fn new(
        memory: &MemoryInfo<'_>,
        values: Values<'a>,
        shape: &[i64],
    ) -> Result<Self, ort::Error> {
        use ONNXTensorElementDataType as Type;
        let (data, n_bytes, kind) = match values {
            Values::I64(values) => parts(values, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT64),
            Values::I32(values) => parts(values, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_INT32),
            Values::F32(values) => parts(values, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT),
            Values::F16(values) => parts(values, Type::ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT16),
        };
        let mut value = ptr::null_mut();
        // SAFETY: the slice is borrowed mutably for 'a, and so is the tensor: nobody else looks at it as long as the runtime may.
        // `memory` and `shape` outlive the call, which copies them; it compares their size with `n_bytes`.
        let status = unsafe {
            (ort::api().CreateTensorWithDataAsOrtValue)(
                memory.ptr(),
                data,
                n_bytes,
                shape.as_ptr(),
                shape.len(),
                kind,
                &mut value,
            )
        };
        // SAFETY: the status is the runtime's, and is not used again.
        unsafe { ort::Error::result_from_status(status) }?;
        if value.is_null() {
            return Err(ort::Error::new("the runtime made no tensor"));
        }
        Ok(Self {
            value,
            borrowed: PhantomData,
        })
    }
}

fn parts<T>(
    values: &mut [T],
    kind: ONNXTensorElementDataType,
) -> (*mut c_void, usize, ONNXTensorElementDataType) {
    let n_bytes = size_of_val(values);
    (values.as_mut_ptr().cast(), n_bytes, kind)
}

impl Drop for Tensor<'_> {
    fn drop(&mut self) {
        // SAFETY: the value is this tensor's own, and the last that knows of it ends here. The values behind it are the owner's.
        unsafe { (ort::api().ReleaseValue)(self.value) }
    }
}

/// Runs the graph: reads `inputs`, each by its name, and writes `output` in place.
///
/// Any number of threads may be in here with one session of the CPU's: the runtime's makers say that `Run` of one session may be
/// called from several threads at the same time, and its CPU provider holds to it. Not all others do: [`crate::graph`] lets one in.
///
/// # Errors
/// What the runtime says. The output holds anything then.
pub fn run(
    session: &Session,
    inputs: &Inputs<'_>,
    output_name: &CStr,
    output: &mut Tensor<'_>,
) -> Result<(), ort::Error> {
    let no_value = ptr::null::<OrtValue>();
    let value =
        |tensor: &Option<Tensor<'_>>| tensor.as_ref().map_or(no_value, |tensor| tensor.value);
    let values = inputs.tensors.each_ref().map(value);
    let output_name = output_name.as_ptr();
    let mut output_value = output.value;
    // SAFETY: the session lives as long as its borrow, and its pointer is mutable for the runtime alone, which locks what `Run`
    // changes. The first `n` names and values are there and outlive the call; the output is a tensor, so it is written and not
    // replaced; the runtime refuses one of another type or shape than what it computes.
    let status = unsafe {
        (ort::api().Run)(
            session.ptr().cast_mut(),
            ptr::null(),
            inputs.names.as_ptr(),
            values.as_ptr(),
            inputs.n,
            &output_name,
            1,
            &mut output_value,
        )
    };
    // SAFETY: the status is the runtime's, and is not used again.
    unsafe { ort::Error::result_from_status(status) }
}
