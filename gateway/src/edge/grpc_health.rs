//! gRPC's own health service. tonic's repeats itself to watchers whenever it is asked to look, and ends
//! the call of one who watches a service that is not there, where the protocol has a status for it.

use super::wire::shortened;
use crate::load::Catalog;
use std::sync::Arc;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_stream::{StreamExt as _, once, pending};
use tonic::codegen::BoxStream;
use tonic::{Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_server::Health;
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

/// The health service, in step with the catalog.
#[derive(Clone)]
pub struct HealthReport {
    catalog: Arc<dyn Catalog>,
    services: &'static [&'static str],
    is_ready: Arc<watch::Sender<bool>>,
}

// === impl HealthReport ===

impl HealthReport {
    /// Of the server as a whole, which has the empty name, and of its services, which are ready together.
    pub(super) fn new(catalog: Arc<dyn Catalog>, services: &'static [&'static str]) -> Self {
        let is_ready = catalog.not_ready().is_empty();
        Self {
            catalog,
            services,
            is_ready: Arc::new(watch::Sender::new(is_ready)),
        }
    }

    /// Tells watchers what the catalog says now, if it is something else than before. To be called
    /// when readiness may have changed; checks look for themselves.
    pub async fn refresh(&self) {
        let is_ready = self.catalog.not_ready().is_empty();
        self.is_ready
            .send_if_modified(|told| std::mem::replace(told, is_ready) != is_ready);
    }

    fn knows(&self, service: &str) -> bool {
        service.is_empty() || self.services.contains(&service)
    }
}

#[tonic::async_trait]
impl Health for HealthReport {
    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let service = &request.get_ref().service;
        if !self.knows(service) {
            let why = format!(
                "there is no service {service:?} here; ask for one of {:?}",
                self.services
            );
            return Err(Status::not_found(shortened(why)));
        }
        self.refresh().await;
        Ok(Response::new(answer(*self.is_ready.borrow())))
    }

    type WatchStream = BoxStream<HealthCheckResponse>;

    async fn watch(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        if !self.knows(&request.get_ref().service) {
            // The protocol keeps such a call open, in case the service comes; here none does.
            let unknown = said(ServingStatus::ServiceUnknown);
            return Ok(Response::new(Box::pin(once(Ok(unknown)).chain(pending()))));
        }
        self.refresh().await;
        let mut told = None;
        // What changed there and back in between is no change.
        let changes = WatchStream::new(self.is_ready.subscribe())
            .filter(move |&is_ready| told.replace(is_ready) != Some(is_ready));
        Ok(Response::new(Box::pin(
            changes.map(|is_ready| Ok(answer(is_ready))),
        )))
    }
}

fn answer(is_ready: bool) -> HealthCheckResponse {
    said(if is_ready {
        ServingStatus::Serving
    } else {
        ServingStatus::NotServing
    })
}

fn said(status: ServingStatus) -> HealthCheckResponse {
    HealthCheckResponse {
        status: status.into(),
    }
}
