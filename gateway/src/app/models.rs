//! From a source to a generation that serves: fetch, read, open, warm up, publish.

use super::StartError;
use super::choice::{Choice, choose};
use crate::config::{Config, Threads};
use crate::generation::hold::HoldBounds;
use crate::generation::probation::FaultBounds;
use crate::generation::queue::{BatchBounds, QueueBounds};
use crate::generation::{Facts, Generation, Slots, Start, WorkerBounds, golden_rows};
use crate::host::Host;
use crate::model::progress::{self, Progress};
use crate::model::{self, ModelInfo, Reads, Source, Token, TokenRows, Tokenizer, Wanted, hub};
use crate::runtime::{Runtime, aside_of_all};
use crate::score::Activation;
use crate::telemetry::Metrics;
use backend_api::{OpenRequest, PluginCard, PluginLibrary};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a generation is made of.
pub(super) struct Recipe {
    /// What requests name.
    pub(super) name: String,
    /// Where the model comes from, as the user wrote it.
    pub(super) written: String,
    /// The same, understood.
    pub(super) source: Source,
    /// As plugins spell it.
    pub(super) dtype: String,
    /// As plugins spell it.
    pub(super) device: String,
    /// A JSON object of the plugin's own options.
    pub(super) options: String,
    /// Counts up with every swap, from 1.
    pub(super) number: u64,
}

/// A model as its folder says that it is, before anybody has opened it.
pub(super) struct Read {
    recipe: Recipe,
    info: ModelInfo,
    activation: Activation,
    tokenizer: Tokenizer,
    /// What a plugin will be asked to open.
    pub(super) request: OpenRequest,
}

/// Who opens a model.
pub(super) enum By {
    /// The plugin of this name; without one, the first that serves the model.
    Name(Option<String>),
    /// The plugin of the file with this SHA-256.
    Library(Arc<PluginLibrary>, String),
}

/// Loads models. Blocks: it runs on a thread of its own.
pub(super) struct Loader {
    pub(super) config: Config,
    pub(super) host: Arc<Host>,
    pub(super) hub: hub::Settings,
    pub(super) runtime: Runtime,
    pub(super) metrics: Arc<Metrics>,
    pub(super) threads: Threads,
}

impl Loader {
    /// Loads every configured model and publishes it as soon as it is warm.
    pub(super) fn load_all(&self, sources: Vec<Source>, slots: &Slots) -> Result<(), StartError> {
        for (named, source) in self.config.models().sources.iter().zip(sources) {
            let started = Instant::now();
            let settings = self.config.models();
            let recipe = Recipe {
                name: named.name.clone(),
                written: named.source.clone(),
                source,
                dtype: settings.dtype.clone(),
                device: settings.device.clone(),
                options: settings.options.clone(),
                number: slots.next_number(&named.name),
            };
            let by = By::Name(settings.backend.clone());
            let cards = self.host.cards(settings.backend.as_deref());
            let read = self.read(recipe, &cards, &*progress::for_stderr());
            let loaded = read.and_then(|read| self.open(read, &by));
            let generation = loaded.map_err(|error| match error {
                StartError::Other(why) => {
                    StartError::Other(format!("the model {} does not load: {why}", named.name))
                }
                wrong_value => wrong_value,
            })?;
            let state = generation.state();
            tracing::info!(
                model = %state.name, source = %state.source, architecture = %state.architecture,
                plugin = %state.plugin.0, chosen = %state.chosen, device = %state.device, dtype = %state.dtype, kernel = %state.kernel,
                workers = state.load.workers, row_tokens_max = state.row_tokens_max,
                activation = state.activation.name(), ms = started.elapsed().as_millis() as u64, "model is live"
            );
            slots.publish(generation);
        }
        Ok(())
    }

    /// Fetches and reads a model, for plugins with these cards.
    ///
    /// # Errors
    /// Which step failed, and what to do.
    pub(super) fn read(
        &self,
        recipe: Recipe,
        cards: &[PluginCard],
        progress: &dyn Progress,
    ) -> Result<Read, StartError> {
        let name = recipe.name.as_str();
        let reads = cards.iter().map(|card| Reads {
            formats: &card.formats,
            files: &card.files,
        });
        let wanted = Wanted::by(reads, &recipe.dtype, &recipe.options);
        let folder = model::fetch(&recipe.source, &wanted, &self.hub, progress)
            .map_err(StartError::other)?;
        let info = ModelInfo::read(&folder).map_err(StartError::other)?;
        for warning in &info.warnings {
            tracing::warn!(model = name, "{warning}");
        }
        let activation = self.activation(name, &info)?;
        let row_tokens_max = self.row_tokens_max(name, &info)?;
        let tokenizer = self.tokenizer(name, &info, row_tokens_max)?;
        let request = OpenRequest {
            yes_token: answer(
                &tokenizer,
                info.reading.answers.as_ref().map(|answers| &answers.yes),
            )?,
            no_token: answer(
                &tokenizer,
                info.reading
                    .answers
                    .as_ref()
                    .and_then(|answers| answers.no.as_ref()),
            )?,
            ..self.open_request(&info, row_tokens_max, &recipe)
        };
        Ok(Read {
            recipe,
            info,
            activation,
            tokenizer,
            request,
        })
    }

    /// Opens a model and warms it up.
    ///
    /// # Errors
    /// Which step failed, and what to do.
    pub(super) fn open(&self, read: Read, by: &By) -> Result<Arc<Generation>, StartError> {
        let Read {
            recipe,
            info,
            activation,
            tokenizer,
            request,
        } = read;
        let name = recipe.name.as_str();
        let Choice { opened, why } = self.call(by, &info, &request, &tokenizer)?;
        let description = opened.backend.description().clone();
        if description.n_labels as usize != info.labels.len() {
            return Err(StartError::other(format!(
                "the plugin opened it with {} labels, but config.json names {}",
                description.n_labels,
                info.labels.len()
            )));
        }
        // Rows are cut to what both sides agreed on, or the plugin would refuse each long one.
        let row_tokens_agreed = opened.backend.limits().row_tokens_max;
        if row_tokens_agreed < tokenizer.row_tokens_max() {
            tracing::warn!(
                model = name,
                most = row_tokens_agreed,
                "the plugin takes shorter rows than the model"
            );
        }
        let tokenizer = tokenizer
            .within(row_tokens_agreed)
            .map_err(StartError::Other)?;
        let card = opened.library.card();
        let facts = Facts {
            name: name.into(),
            source: recipe.written.clone(),
            number: recipe.number,
            activation,
            plugin: (card.name.clone(), card.version.clone()),
            image: opened.sha256.clone(),
            chosen: why,
            request,
            description,
            info,
        };
        let reopen = Box::new(opened.reopen());
        let start = Start {
            facts,
            backend: opened.backend,
            reopen,
            tokenizer,
            n_workers: self.threads.workers,
            worker: self.worker_bounds(),
            queue: self.queue_bounds(),
            batch: self.batch_bounds(),
            metrics: self.metrics.for_model(name),
        };
        Generation::start(start, &self.runtime).map_err(StartError::other)
    }

    fn call(
        &self,
        by: &By,
        info: &ModelInfo,
        request: &OpenRequest,
        tokenizer: &Tokenizer,
    ) -> Result<Choice, StartError> {
        match by {
            By::Name(name) => {
                let name = name.as_deref();
                choose(&self.host, name, info, request, tokenizer).map_err(|error| {
                    match error.is_by_options {
                        true => StartError::Config(self.config.refuse("model.options", error)),
                        false => StartError::other(error),
                    }
                })
            }
            By::Library(library, sha256) => {
                // Others are being served meanwhile.
                let opened = aside_of_all(|| self.host.open_by(library, sha256, request));
                let name = &library.card().name;
                let opened = opened
                    .ok_or_else(|| StartError::Other(format!("{name}: no thread opens the model")))?
                    .map_err(|fault| StartError::Other(format!("{name}: {fault}")))?;
                let why = "ordered by an operator".to_owned();
                Ok(Choice { opened, why })
            }
        }
    }

    /// What makes scores of logits: the model's own unless configured.
    fn activation(&self, name: &str, info: &ModelInfo) -> Result<Activation, StartError> {
        let activation = self.config.models().activation.unwrap_or(info.activation);
        if activation == Activation::Softmax && info.labels.len() == 1 {
            let why = format!(
                "the softmax of the one label of {name} is 1 for every document; \
                 expected auto, identity or sigmoid"
            );
            return Err(StartError::Config(
                self.config.refuse("model.activation", why),
            ));
        }
        Ok(activation)
    }

    /// The model's tokenizer, with rows of at most `row_tokens_max`.
    fn tokenizer(
        &self,
        name: &str,
        info: &ModelInfo,
        row_tokens_max: usize,
    ) -> Result<Tokenizer, StartError> {
        let settings = self.config.models();
        let n_types = info.type_vocab_size.unwrap_or(u32::MAX);
        let prompt = info.reading.prompt.as_ref();
        let mut tokenizer =
            Tokenizer::open(&info.tokenizer_path, info.row_tokens_max, n_types, prompt)
                .map_err(StartError::Other)?
                .with_prefixes(&settings.query_prefix, &settings.document_prefix);
        if let Some(side) = info.truncation_side {
            tokenizer = tokenizer.cutting_at(side);
        }
        if let Some(vocab_size) = info.vocab_size
            && let Some(warning) = tokenizer
                .check_vocabulary(vocab_size)
                .map_err(StartError::Other)?
        {
            tracing::warn!(model = name, "{warning}");
        }
        // The model's own bound left room for a pair: what leaves none now was configured.
        let key = if self.config.models().max_length == Some(row_tokens_max) {
            "model.max_length"
        } else {
            "batch.tokens_max"
        };
        tokenizer
            .within(row_tokens_max)
            .map_err(|why| StartError::Config(self.config.refuse(key, why)))
    }

    /// Tokens in a row: what the model can, cut to what is configured; without that, to what a batch
    /// holds.
    fn row_tokens_max(&self, name: &str, info: &ModelInfo) -> Result<usize, StartError> {
        let batch = self.config.batch().tokens_max;
        let (asked, reads) = (self.config.models().max_length, info.row_tokens_max);
        match asked {
            Some(asked) if batch < asked.min(reads) => {
                let row = asked.min(reads);
                let why = format!(
                    "rows of {row} tokens do not fit into batch.tokens_max = {batch}; allow shorter \
                     rows or larger batches"
                );
                let key = "model.max_length";
                return Err(StartError::Config(self.config.refuse(key, why)));
            }
            Some(asked) if reads < asked => tracing::warn!(
                model = name,
                "model.max_length = {asked} is more than the model reads; its rows end at {reads} tokens"
            ),
            None if batch < reads => {
                tracing::warn!(
                    model = name,
                    reads,
                    batch,
                    "rows are cut to batch.tokens_max"
                );
            }
            _ => {}
        }
        Ok(asked.unwrap_or(batch).min(reads))
    }

    fn open_request(
        &self,
        info: &ModelInfo,
        row_tokens_max: usize,
        recipe: &Recipe,
    ) -> OpenRequest {
        let batch = self.config.batch();
        OpenRequest {
            model_dir: info.path.clone(),
            device: recipe.device.clone(),
            dtype: recipe.dtype.clone(),
            cpus: Vec::new(),
            n_threads: 1,
            n_workers: count(self.threads.workers),
            rows_max: count(batch.rows_max),
            tokens_max: count(batch.tokens_max),
            row_tokens_max: count(row_tokens_max),
            options: recipe.options.clone(),
            ..OpenRequest::default()
        }
    }

    fn worker_bounds(&self) -> WorkerBounds {
        let worker = self.config.worker();
        WorkerBounds {
            timeout: worker.timeout,
            retries_max: count(worker.retries_max),
        }
    }

    /// When a generation counts as failing.
    pub(super) fn fault_bounds(&self) -> FaultBounds {
        let worker = self.config.worker();
        FaultBounds {
            faults_max: worker.faults_max as u64,
            window: worker.faults_window,
        }
    }

    fn queue_bounds(&self) -> QueueBounds {
        let queue = self.config.queue();
        QueueBounds {
            rows_max: queue.rows_max,
            tokens_max: queue.tokens_max,
            requests_max: queue.requests_max,
            bytes_max: queue.bytes_max,
            wait_max: queue.wait_max,
        }
    }

    fn batch_bounds(&self) -> BatchBounds {
        let batch = self.config.batch();
        BatchBounds {
            rows_max: batch.rows_max,
            tokens_max: batch.tokens_max,
            time_max: Duration::from_micros(batch.us_max),
            hold: HoldBounds {
                wait_max: batch.wait_max,
                rows_preferred: batch.rows_preferred,
                is_adaptive: batch.is_adaptive,
            },
        }
    }
}

fn answer(tokenizer: &Tokenizer, token: Option<&Token>) -> Result<Option<u32>, StartError> {
    let id = token.map(|token| tokenizer.id(token)).transpose();
    id.map_err(|why| StartError::Other(format!("the token by which it answers: {why}")))
}

fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

// === impl Read ===

impl Read {
    /// The golden rows of this model, for whoever tries a plugin out.
    ///
    /// # Errors
    /// The encoder's own.
    pub(super) fn golden_rows(&self) -> Result<TokenRows, String> {
        golden_rows(&self.tokenizer)
    }

    /// What its folder says.
    pub(super) fn info(&self) -> &ModelInfo {
        &self.info
    }
}
