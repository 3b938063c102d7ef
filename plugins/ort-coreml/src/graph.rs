//! A graph that was opened: a session, what it reads and what it says.

use crate::config::Config;
use crate::files;
use crate::library::Runtime;
use crate::native::run::{INPUTS_MAX, Tensor, run};
use crate::options::Options;
use crate::provider::{Device, Provider};
use backend_api::{Fault, FaultCode};
use ort::ErrorCode;
use ort::session::Session;
use ort::session::builder::SessionBuilder;
use ort::value::{Outlet, TensorElementType, ValueType};
use std::ffi::{CStr, CString};
use std::sync::{Mutex, TryLockError};

/// The output's name in every export of transformers' classifiers.
const LOGITS: &str = "logits";
/// The most outputs that a refusal lists.
const LISTED_MAX: usize = 8;

/// What a graph's input holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Feed {
    /// Token ids.
    Ids,
    /// 1 on tokens, 0 on padding.
    Mask,
    /// Token types.
    Types,
    /// Each token's position.
    Positions,
}

/// An input: rows × width integers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// What it holds.
    pub feed: Feed,
    /// Its name in the graph.
    pub name: CString,
    /// Whether it takes 32 bits instead of 64.
    pub is_short: bool,
}

/// The output that holds the logits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// Its name in the graph.
    pub name: CString,
    /// Whether it comes in halves.
    pub is_half: bool,
    /// Whether it has a dimension for labels; without one there is one label.
    pub has_labels: bool,
    /// Logits of a row.
    pub n_labels: usize,
}

/// A session and its shape. Shared by all workers.
#[derive(Debug)]
pub struct Graph {
    session: Session,
    /// Held while a run is under way, where the provider lets only one in.
    turn: Option<Mutex<()>>,
    /// What it reads, in the graph's order.
    pub inputs: Vec<Input>,
    /// What it says.
    pub output: Output,
    /// The rows of every rectangle, if the graph was exported for so many only.
    pub rows_fixed: Option<usize>,
    /// The width of every rectangle, if the graph was exported for that one only.
    pub width_fixed: Option<usize>,
}

// === impl Graph ===

impl Graph {
    /// Opens a file for a device. `n_threads` is how many may be inside an operator.
    ///
    /// # Errors
    /// `BadModel` if the runtime does not take the file, `Unsupported` if it is no classifier or reads what nobody has.
    pub fn open(
        runtime: &Runtime,
        file: &files::Graph,
        device: &Device,
        config: &Config,
        options: &Options,
        n_threads: usize,
    ) -> Result<Self, Fault> {
        let mut builder = session_builder(runtime, device, options, n_threads)?;
        let opened = builder.commit_from_file(&file.path);
        let session = opened.map_err(|error| {
            let data_files: Vec<_> = file.content.data_files.iter().map(String::as_str).collect();
            let with = if data_files.is_empty() {
                String::new()
            } else {
                format!(" with {}", data_files.join(", "))
            };
            let (path, version) = (file.path.display(), &runtime.version);
            let text = format!(
                "{path}{with}: ONNX Runtime {version}: {}",
                error.message().trim()
            );
            if is_out_of_memory(&error) {
                Fault::new(FaultCode::OutOfMemory, text)
            } else {
                Fault::bad_model(text)
            }
        })?;
        let unsupported = |why: String| Fault::unsupported(format!("{}: {why}", file.name));
        let inputs = session
            .inputs()
            .iter()
            .map(input)
            .collect::<Result<Vec<_>, _>>();
        let inputs = inputs.map_err(unsupported)?;
        let ids = inputs.iter().position(|input| input.feed == Feed::Ids);
        let Some(ids) = ids.filter(|_| inputs.len() <= INPUTS_MAX) else {
            let has = list(session.inputs());
            return Err(unsupported(format!(
                "a classifier reads input_ids; this graph reads {has}"
            )));
        };
        let output = output(session.outputs(), config.n_labels).map_err(unsupported)?;
        if let Some(said) = config.n_labels.filter(|&said| said != output.n_labels) {
            return Err(Fault::bad_model(format!(
                "{}: it gives {} logits a row, and config.json names {said} labels",
                file.name, output.n_labels
            )));
        }
        let fixed = |at: usize| match session.inputs()[ids].dtype() {
            ValueType::Tensor { shape, .. } => {
                usize::try_from(shape[at]).ok().filter(|&size| 0 < size)
            }
            _ => None,
        };
        Ok(Self {
            turn: (device.provider != Provider::Cpu).then(Mutex::default),
            rows_fixed: fixed(0),
            width_fixed: fixed(1),
            inputs,
            output,
            session,
        })
    }

    /// Whether the graph reads this.
    #[must_use]
    pub fn reads(&self, feed: Feed) -> bool {
        self.inputs.iter().any(|input| input.feed == feed)
    }

    /// Computes a rectangle: reads the inputs, each by its name, and writes the logits in place.
    ///
    /// # Errors
    /// `DeviceLost` if the device failed or another run never ended, `OutOfMemory`, or `Internal` with what the runtime says.
    pub fn run(
        &self,
        inputs: &[(&CStr, Tensor<'_>)],
        logits: &mut Tensor<'_>,
    ) -> Result<(), Fault> {
        let _turn = match self.turn.as_ref().map(Mutex::try_lock) {
            None => None,
            Some(Ok(turn)) => Some(turn),
            Some(Err(TryLockError::Poisoned(turn))) => Some(turn.into_inner()),
            // The host keeps to one worker, so this is one that took the place of a worker that never came back.
            Some(Err(TryLockError::WouldBlock)) => {
                return Err(Fault::new(
                    FaultCode::DeviceLost,
                    "an earlier run on this device has not ended",
                ));
            }
        };
        run(&self.session, inputs, (&self.output.name, logits)).map_err(|error| run_fault(&error))
    }
}

fn session_builder(
    runtime: &Runtime,
    device: &Device,
    options: &Options,
    n_threads: usize,
) -> Result<SessionBuilder, Fault> {
    let dispatch = device.dispatch(runtime, options)?;
    let build = || -> Result<SessionBuilder, ort::Error> {
        let spinning = if options.spinning { "1" } else { "0" };
        Ok(Session::builder(&runtime.environment)?
            .with_execution_providers([dispatch])?
            .with_optimization_level(options.optimization.level())?
            // Batches are cut so that a core has work; operators beside each other would take the cores of other workers.
            .with_parallel_execution(false)?
            .with_inter_threads(1)?
            .with_intra_threads(n_threads)?
            .with_config_entry("session.intra_op.allow_spinning", spinning)?
            .with_memory_pattern(options.memory_pattern)?)
    };
    build().map_err(|error| {
        Fault::unsupported(format!(
            "{} on {}: ONNX Runtime {}: {}",
            device.provider.name(),
            device.name,
            runtime.version,
            error.message()
        ))
    })
}

fn input(outlet: &Outlet) -> Result<Input, String> {
    let feed = match outlet.name() {
        "input_ids" => Feed::Ids,
        "attention_mask" => Feed::Mask,
        "token_type_ids" => Feed::Types,
        "position_ids" => Feed::Positions,
        _ => {
            return Err(format!(
                "it reads {}; this plugin has input_ids, attention_mask, token_type_ids and position_ids",
                written(outlet)
            ));
        }
    };
    let is_short = match outlet.dtype() {
        ValueType::Tensor {
            ty: TensorElementType::Int64,
            shape,
            ..
        } if shape.len() == 2 => false,
        ValueType::Tensor {
            ty: TensorElementType::Int32,
            shape,
            ..
        } if shape.len() == 2 => true,
        _ => {
            return Err(format!(
                "it reads {}; expected rows × tokens of int64 or int32",
                written(outlet)
            ));
        }
    };
    Ok(Input {
        feed,
        name: c_name(outlet)?,
        is_short,
    })
}

/// The output that is a row's logits: the one of that name, or the only one that is as wide as there are labels. An embedding is
/// as flat as logits, so without the name the configuration has to know.
fn output(outlets: &[Outlet], n_labels: Option<usize>) -> Result<Output, String> {
    let by_name = outlets.iter().find(|outlet| outlet.name() == LOGITS);
    let found = match by_name {
        Some(outlet) => as_logits(outlet, n_labels)?,
        None => {
            let fitting = outlets
                .iter()
                .filter_map(|outlet| as_logits(outlet, None).transpose());
            let mut fitting = fitting
                .filter_map(Result::ok)
                .filter(|output| Some(output.n_labels) == n_labels);
            // Of two, none is known to be it.
            fitting.next().filter(|_| fitting.next().is_none())
        }
    };
    found.ok_or_else(|| {
        let expected = match n_labels {
            Some(n_labels) => format!("rows × {n_labels}, as config.json names the labels"),
            None => "rows × labels".to_owned(),
        };
        format!(
            "no classifier: expected an output {LOGITS} of {expected}; it has {}",
            list(outlets)
        )
    })
}

/// An output read as logits; `None` if it has another shape or type.
fn as_logits(outlet: &Outlet, n_labels: Option<usize>) -> Result<Option<Output>, String> {
    let ValueType::Tensor { ty, shape, .. } = outlet.dtype() else {
        return Ok(None);
    };
    let is_half = match ty {
        TensorElementType::Float32 => false,
        TensorElementType::Float16 => true,
        _ => return Ok(None),
    };
    let has_labels = shape.len() == 2;
    let n_labels = match shape.len() {
        1 => Some(1),
        2 => usize::try_from(shape[1])
            .ok()
            .filter(|&n_labels| 0 < n_labels)
            .or(n_labels),
        _ => None,
    };
    let Some(n_labels) = n_labels else {
        return Ok(None);
    };
    Ok(Some(Output {
        name: c_name(outlet)?,
        is_half,
        has_labels,
        n_labels,
    }))
}

fn c_name(outlet: &Outlet) -> Result<CString, String> {
    CString::new(outlet.name()).map_err(|_| format!("a name holds a NUL: {:?}", outlet.name()))
}

/// `last_hidden_state float32 [batch, sequence, 384]`.
fn written(outlet: &Outlet) -> String {
    let ValueType::Tensor {
        ty,
        shape,
        dimension_symbols,
    } = outlet.dtype()
    else {
        return format!("{} {}", outlet.name(), outlet.dtype());
    };
    let dimensions = shape
        .iter()
        .enumerate()
        .map(|(at, &size)| match dimension_symbols.get(at) {
            Some(symbol) if size < 0 && !symbol.is_empty() => symbol.clone(),
            _ if size < 0 => "?".to_owned(),
            _ => size.to_string(),
        });
    let dimensions: Vec<_> = dimensions.collect();
    format!("{} {ty} [{}]", outlet.name(), dimensions.join(", "))
}

fn list(outlets: &[Outlet]) -> String {
    let listed: Vec<_> = outlets.iter().take(LISTED_MAX).map(written).collect();
    let more = if LISTED_MAX < outlets.len() {
        ", …"
    } else {
        ""
    };
    format!("{}{more}", listed.join(", "))
}

fn is_out_of_memory(error: &ort::Error) -> bool {
    ["bad_alloc", "Failed to allocate memory", "out of memory"]
        .iter()
        .any(|words| error.message().contains(words))
}

fn run_fault(error: &ort::Error) -> Fault {
    let code = match error.code() {
        _ if is_out_of_memory(error) => FaultCode::OutOfMemory,
        ErrorCode::ExecutionProviderFailure | ErrorCode::DeviceReset | ErrorCode::EngineError => {
            FaultCode::DeviceLost
        }
        _ => FaultCode::Internal,
    };
    Fault::new(code, format!("ONNX Runtime: {}", error.message()))
}
