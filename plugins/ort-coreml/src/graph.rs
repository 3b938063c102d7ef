//! A graph that was opened: sessions of one file, for any shape of rectangle or for some that were named.

pub mod outlets;

use crate::config::Config;
use crate::files;
use crate::library::Runtime;
use crate::native::run::{INPUTS_MAX, Inputs, Tensor, run};
use crate::options::Options;
use crate::provider::{Device, Provider};
use backend_api::{Fault, FaultCode};
use ort::ErrorCode;
use ort::session::Session;
use ort::session::builder::{GraphOptimizationLevel, SessionBuilder};
use ort::value::ValueType;
use outlets::{Feed, Input, Output, input, list, output};
use std::sync::{Mutex, TryLockError};

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
    /// The rows of every rectangle, where it computes so many only.
    pub rows_fixed: Option<usize>,
    /// The width of every rectangle, where it computes that one only.
    pub width_fixed: Option<usize>,
}

/// What graphs are opened from.
#[derive(Clone, Copy, Debug)]
pub struct Open<'a> {
    /// What opens them.
    pub runtime: &'a Runtime,
    /// The file.
    pub file: &'a files::Graph,
    /// What computes them.
    pub device: &'a Device,
    /// The model's numbers.
    pub config: &'a Config,
    /// The plugin's options.
    pub options: &'a Options,
    /// Threads that may be inside an operator.
    pub n_threads: usize,
}

/// A shape that a graph is opened for: sizes of its two dimensions, by the names that these have in the file.
type Sizes<'a> = [(&'a str, usize); 2];

// === impl Graph ===

impl Graph {
    /// Whether the graph reads this.
    #[must_use]
    pub fn reads(&self, feed: Feed) -> bool {
        self.inputs.iter().any(|input| input.feed == feed)
    }

    /// Whether it computes rows of this length.
    #[must_use]
    pub fn takes(&self, row_tokens: usize) -> bool {
        self.width_fixed.is_none_or(|width| row_tokens <= width)
    }

    /// Computes a rectangle: reads the inputs and writes the logits in place.
    ///
    /// # Errors
    /// `DeviceLost` if the device failed or another run never ended, `OutOfMemory`, or `Internal` with what the runtime says.
    pub fn run(&self, inputs: &Inputs<'_>, logits: &mut Tensor<'_>) -> Result<(), Fault> {
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
        run(&self.session, inputs, &self.output.name, logits).map_err(|error| run_fault(&error))
    }
}

// === impl Open ===

impl Open<'_> {
    /// Opens the graph: once for all rectangles, or once for each shape that the options name, by rising width.
    ///
    /// # Errors
    /// `BadModel` if the runtime does not take the file, `Unsupported` if it is no classifier, reads what nobody has, or the device
    /// is not there; `BadRequest` if a shape does not fit.
    pub fn graphs(&self) -> Result<Vec<Graph>, Fault> {
        if self.options.shapes.is_empty() {
            return Ok(vec![self.graph(None)?]);
        }
        // As it is in the file, only for the names of its dimensions.
        let plain = self.builder(None, GraphOptimizationLevel::Disable)?;
        let plain = self.commit(plain)?;
        let of_ids = plain
            .inputs()
            .iter()
            .find(|outlet| outlet.name() == "input_ids");
        let names = match of_ids.map(ort::value::Outlet::dtype) {
            Some(ValueType::Tensor {
                dimension_symbols, ..
            }) => dimension_symbols.iter().map(String::as_str).collect(),
            _ => Vec::new(),
        };
        let [rows, width] = names[..] else {
            return Err(Fault::unsupported(format!(
                "{}: it reads no input_ids of rows × tokens",
                self.file.name
            )));
        };
        if rows.is_empty() || width.is_empty() {
            return Err(Fault::bad_request(format!(
                "options.shapes: the dimensions of input_ids in {} have no names, so it is for one shape only",
                self.file.name
            )));
        }
        let mut shapes = self.options.shapes.clone();
        shapes.sort_by_key(|&[_, width]| width);
        if let (Some(&[_, longest]), Some(limit)) = (shapes.last(), self.config.row_tokens_max)
            && limit < longest
        {
            return Err(Fault::bad_request(format!(
                "options.shapes: a width of {longest}, and the model has positions for rows of {limit} tokens"
            )));
        }
        let sizes = shapes
            .iter()
            .map(|&[n_rows, n_tokens]| [(rows, n_rows), (width, n_tokens)]);
        sizes.map(|sizes| self.graph(Some(sizes))).collect()
    }

    fn graph(&self, sizes: Option<Sizes<'_>>) -> Result<Graph, Fault> {
        let name = &self.file.name;
        let session = self.commit(self.builder(sizes, self.options.optimization.level())?)?;
        let unsupported = |why: String| Fault::unsupported(format!("{name}: {why}"));
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
        let output = output(session.outputs(), self.config.n_labels).map_err(unsupported)?;
        if let Some(said) = self.config.n_labels.filter(|&said| said != output.n_labels) {
            return Err(Fault::bad_model(format!(
                "{name}: it gives {} logits a row, and config.json names {said} labels",
                output.n_labels
            )));
        }
        let in_file = |at: usize| match session.inputs()[ids].dtype() {
            ValueType::Tensor { shape, .. } => {
                usize::try_from(shape[at]).ok().filter(|&size| 0 < size)
            }
            _ => None,
        };
        Ok(Graph {
            turn: (self.device.provider != Provider::Cpu).then(Mutex::default),
            rows_fixed: sizes.map(|[(_, rows), _]| rows).or_else(|| in_file(0)),
            width_fixed: sizes.map(|[_, (_, width)]| width).or_else(|| in_file(1)),
            inputs,
            output,
            session,
        })
    }

    fn builder(
        &self,
        sizes: Option<Sizes<'_>>,
        level: GraphOptimizationLevel,
    ) -> Result<SessionBuilder, Fault> {
        let Self {
            runtime,
            device,
            options,
            ..
        } = *self;
        let shape = sizes.map(|[(_, rows), (_, width)]| [rows, width]);
        let dispatch = device.dispatch(runtime, options, &self.file.content.hash, shape)?;
        let build = || -> Result<SessionBuilder, ort::Error> {
            let spinning = if options.spinning { "1" } else { "0" };
            let mut builder = Session::builder(&runtime.environment)?
                .with_execution_providers([dispatch])?
                .with_optimization_level(level)?
                // Batches are cut so that a core has work; operators beside each other would take the cores of other workers.
                .with_parallel_execution(false)?
                .with_inter_threads(1)?
                .with_intra_threads(self.n_threads)?
                .with_config_entry("session.intra_op.allow_spinning", spinning)?
                .with_memory_pattern(options.memory_pattern)?;
            for (name, size) in sizes.into_iter().flatten() {
                builder = builder.with_dimension_override(name, size as i64)?;
            }
            Ok(builder)
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

    fn commit(&self, mut builder: SessionBuilder) -> Result<Session, Fault> {
        builder.commit_from_file(&self.file.path).map_err(|error| {
            let data_files: Vec<_> = self
                .file
                .content
                .data_files
                .iter()
                .map(String::as_str)
                .collect();
            let with = if data_files.is_empty() {
                String::new()
            } else {
                format!(" with {}", data_files.join(", "))
            };
            let (path, version) = (self.file.path.display(), &self.runtime.version);
            // Whatever the code: "Protobuf parsing failed", "No graph was found in the protobuf".
            if error.message().to_ascii_lowercase().contains("protobuf") {
                return Fault::bad_model(format!(
                    "{path}: is no ONNX graph, or not all of one; download or export it again (ONNX Runtime {version} \
                     cannot read it)"
                ));
            }
            let text = format!(
                "{path}{with}: ONNX Runtime {version}: {}",
                error.message().trim()
            );
            if is_out_of_memory(&error) {
                Fault::new(FaultCode::OutOfMemory, text)
            } else {
                Fault::bad_model(text)
            }
        })
    }
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
