//! Clones in the control API.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use taipan_engine::api::CloneList;

use super::{Daemon, Failure, Name, call, found, parse_name};

pub(super) async fn list(daemon: Daemon, name: Name) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    let clones = call(daemon, move |a| a.clones(&name)).await??;
    Ok(found(CloneList { clones }))
}

pub(super) async fn flatten(daemon: Daemon, name: Name) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    let status = call(daemon, move |a| a.flatten(&name)).await??;
    Ok((StatusCode::ACCEPTED, Json(status)).into_response())
}

pub(super) async fn flatten_status(daemon: Daemon, name: Name) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    Ok(found(
        call(daemon, move |a| a.flatten_status(&name)).await??,
    ))
}
