//! `/metrics` for Prometheus and `/healthz` for whoever decides whether the daemon is up.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use taipan_engine::api::RunState;

use super::model::Appliance;
use crate::metrics;

/// Both resources over `appliance`.
pub(super) fn router(appliance: Arc<dyn Appliance>) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .route("/healthz", get(health))
        .with_state(appliance)
}

async fn scrape(State(appliance): State<Arc<dyn Appliance>>) -> Response {
    let rendered = tokio::task::spawn_blocking(move || {
        metrics::render(appliance.status(), appliance.metrics())
    });
    match rendered.await {
        Ok(Ok(text)) => ([(header::CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        Ok(Err(error)) => failed(&error),
        Err(error) => failed(&error),
    }
}

/// 200 while requests are served, else 503; the body says what the daemon is doing, and its
/// problems, one a line.
async fn health(State(appliance): State<Arc<dyn Appliance>>) -> Response {
    let status = match tokio::task::spawn_blocking(move || appliance.status()).await {
        Ok(status) => status,
        Err(error) => return failed(&error),
    };
    let (code, word) = match status.state {
        RunState::Starting => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
        RunState::Serving => (StatusCode::OK, "serving"),
        RunState::Draining => (StatusCode::OK, "draining"),
        RunState::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "stopping"),
    };
    let mut text = format!("{word}\n");
    for problem in &status.problems {
        text.push_str(problem);
        text.push('\n');
    }
    (code, text).into_response()
}

fn failed(error: &dyn std::error::Error) -> Response {
    let code = StatusCode::INTERNAL_SERVER_ERROR;
    (code, format!("{error}\n")).into_response()
}
