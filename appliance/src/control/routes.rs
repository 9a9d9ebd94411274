//! The control API: paths, bodies, and how results become answers.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete as remove, get, post};
use axum::{Json, Router};
use serde::Serialize;
use serde::de::DeserializeOwned;
use taipan_engine::api::{
    CONNECTIONS_PATH, ConnectionList, CreateVolume, DRAIN_PATH, ErrorBody, ErrorCode, ErrorDetail,
    REQUEST_BYTES_MAX, ResizeVolume, SNAPSHOT_GROUPS_PATH, STATUS_PATH, SweepVolume, VOLUMES_PATH,
    VolumeList, VolumePatch, WarmVolume, volume_path,
};
use taipan_engine::error::Error;
use taipan_engine::volume::VolumeName;

use super::model::Appliance;

mod clones;
mod snapshots;

type Daemon = State<Arc<dyn Appliance>>;
type Body = Result<Bytes, BytesRejection>;
type Name = Result<Path<String>, PathRejection>;

/// The API over `appliance`.
pub(super) fn router(appliance: Arc<dyn Appliance>) -> Router {
    Router::new()
        .route(STATUS_PATH, get(status))
        .route(VOLUMES_PATH, get(list).post(create))
        .route(
            &format!("{VOLUMES_PATH}/{{name}}"),
            get(show).patch(configure).delete(delete),
        )
        .route(&format!("{VOLUMES_PATH}/{{name}}/resize"), post(resize))
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/takeover"),
            post(take_over),
        )
        .route(&format!("{VOLUMES_PATH}/{{name}}/commit"), post(commit))
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/warm"),
            post(warm).get(warm_status),
        )
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/snapshots"),
            get(snapshots::list).post(snapshots::take),
        )
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/snapshots/{{snapshot}}"),
            get(snapshots::show).delete(snapshots::delete),
        )
        .route(&format!("{VOLUMES_PATH}/{{name}}/sweep"), post(sweep))
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/flatten"),
            post(clones::flatten).get(clones::flatten_status),
        )
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/clones"),
            get(clones::list),
        )
        .route(SNAPSHOT_GROUPS_PATH, post(snapshots::take_group))
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/history"),
            get(snapshots::history),
        )
        .route(CONNECTIONS_PATH, get(connections))
        .route(&format!("{CONNECTIONS_PATH}/{{name}}"), remove(kick))
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/changes/{{from}}"),
            get(snapshots::changes),
        )
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/changes/{{from}}/{{to}}"),
            get(snapshots::changes_to),
        )
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/rollback"),
            post(snapshots::roll_back),
        )
        .route(
            &format!("{VOLUMES_PATH}/{{name}}/snapshots/{{snapshot}}/clones"),
            post(snapshots::clone),
        )
        .route(DRAIN_PATH, post(drain))
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(REQUEST_BYTES_MAX))
        .with_state(appliance)
}

/// An answer that is not a success.
#[derive(Debug)]
struct Failure(ErrorBody);

impl Failure {
    fn new(kind: ErrorCode, message: impl Into<String>) -> Self {
        let message = message.into();
        Self(ErrorBody {
            error: ErrorDetail { kind, message },
        })
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self(ErrorBody::from(&error))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let code = StatusCode::from_u16(self.0.error.kind.http_status());
        let code = code.unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        (code, Json(self.0)).into_response()
    }
}

async fn no_such_path() -> Failure {
    Failure::new(ErrorCode::NotFound, "there is no such path in this API")
}

async fn no_such_method() -> Failure {
    let text = "this path does not take that method";
    Failure::new(ErrorCode::MethodNotAllowed, text)
}

/// Runs a call that may block on a thread of its own.
async fn call<T: Send + 'static>(
    State(appliance): Daemon,
    work: impl FnOnce(&dyn Appliance) -> T + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(move || work(appliance.as_ref()))
        .await
        .map_err(|error| Failure::new(ErrorCode::Io, format!("the request failed: {error}")))
}

fn parse_name(name: Name) -> Result<VolumeName, Failure> {
    let Path(text) = name.map_err(|e| Failure::new(ErrorCode::Invalid, e.body_text()))?;
    Ok(VolumeName::parse(&text)?)
}

fn parse_body<T: DeserializeOwned>(body: Body) -> Result<T, Failure> {
    let bytes = body.map_err(|rejection| {
        if rejection.status() == StatusCode::PAYLOAD_TOO_LARGE {
            let text = format!("the body is larger than {REQUEST_BYTES_MAX} bytes");
            Failure::new(ErrorCode::TooLarge, text)
        } else {
            Failure::new(ErrorCode::Invalid, rejection.body_text())
        }
    })?;
    serde_json::from_slice(&bytes)
        .map_err(|error| Failure::new(ErrorCode::Invalid, format!("the body is refused: {error}")))
}

/// 200 with a JSON body.
fn found(body: impl Serialize) -> Response {
    Json(body).into_response()
}

async fn status(daemon: Daemon) -> Result<Response, Failure> {
    Ok(found(call(daemon, |a| a.status()).await?))
}

async fn list(daemon: Daemon) -> Result<Response, Failure> {
    let volumes = call(daemon, |a| a.list()).await?;
    Ok(found(VolumeList { volumes }))
}

async fn create(daemon: Daemon, body: Body) -> Result<Response, Failure> {
    let request: CreateVolume = parse_body(body)?;
    let settings = request.settings()?;
    let location = volume_path(&request.name);
    let name = request.name.clone();
    let info = call(daemon, move |a| a.create(name, settings)).await??;
    tracing::info!(volume = %request.name, bytes = info.settings.size_bytes, "volume created");
    let mut response = (StatusCode::CREATED, Json(info)).into_response();
    if let Ok(location) = HeaderValue::from_str(&location) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    Ok(response)
}

async fn show(daemon: Daemon, name: Name) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    Ok(found(call(daemon, move |a| a.show(&name)).await??))
}

async fn configure(daemon: Daemon, name: Name, body: Body) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    let patch: VolumePatch = parse_body(body)?;
    if patch.is_empty() {
        return Err(Failure::new(ErrorCode::Invalid, "no setting is changed"));
    }
    let info = call(daemon, move |a| a.configure(&name, patch)).await??;
    tracing::info!(volume = %info.name, ?patch, "volume configured");
    Ok(found(info))
}

async fn resize(daemon: Daemon, name: Name, body: Body) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    let request: ResizeVolume = parse_body(body)?;
    let info = call(daemon, move |a| a.resize(&name, request.size_bytes)).await??;
    tracing::info!(volume = %info.name, bytes = info.settings.size_bytes, "volume resized");
    Ok(found(info))
}

async fn take_over(daemon: Daemon, name: Name) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    let info = call(daemon, move |a| a.take_over(&name)).await??;
    tracing::warn!(volume = %info.name, generation = info.generation, "volume taken over");
    Ok(found(info))
}

async fn delete(daemon: Daemon, name: Name) -> Result<StatusCode, Failure> {
    let name = parse_name(name)?;
    let named = name.clone();
    call(daemon, move |a| a.delete(&named)).await??;
    tracing::info!(volume = %name, "volume deleted");
    Ok(StatusCode::NO_CONTENT)
}

async fn commit(daemon: Daemon, name: Name) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    Ok(found(call(daemon, move |a| a.commit(&name)).await??))
}

async fn warm(daemon: Daemon, name: Name, body: Body) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    let request: WarmVolume = parse_body(body)?;
    let status = call(daemon, move |a| a.warm(&name, request)).await??;
    Ok((StatusCode::ACCEPTED, Json(status)).into_response())
}

async fn warm_status(daemon: Daemon, name: Name) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    Ok(found(call(daemon, move |a| a.warm_status(&name)).await??))
}

async fn sweep(daemon: Daemon, name: Name, body: Body) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    let request: SweepVolume = parse_body(body)?;
    Ok(found(
        call(daemon, move |a| a.sweep(&name, request)).await??,
    ))
}

async fn connections(daemon: Daemon) -> Result<Response, Failure> {
    let connections = call(daemon, |a| a.connections()).await??;
    Ok(found(ConnectionList { connections }))
}

async fn kick(daemon: Daemon, name: Name) -> Result<StatusCode, Failure> {
    let Path(text) = name.map_err(|e| Failure::new(ErrorCode::Invalid, e.body_text()))?;
    let name = text.parse()?;
    call(daemon, move |a| a.kick(name)).await??;
    Ok(StatusCode::NO_CONTENT)
}

async fn drain(daemon: Daemon) -> Result<StatusCode, Failure> {
    call(daemon, |a| a.drain()).await??;
    Ok(StatusCode::NO_CONTENT)
}
