//! Snapshots in the control API.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use taipan_engine::api::{
    CloneSnapshot, ErrorCode, RollBack, SnapshotList, TakeSnapshot, TakeSnapshotGroup,
};
use taipan_engine::snapshot::{ImageName, SnapshotName};
use taipan_engine::volume::VolumeName;

use super::{Body, Daemon, Failure, Name, call, found, parse_body, parse_name};

type Names = Result<Path<(String, String)>, PathRejection>;
type ThreeNames = Result<Path<(String, String, String)>, PathRejection>;

fn parse_names(names: Names) -> Result<(VolumeName, SnapshotName), Failure> {
    let Path((volume, snapshot)) =
        names.map_err(|e| Failure::new(ErrorCode::Invalid, e.body_text()))?;
    Ok((VolumeName::parse(&volume)?, SnapshotName::parse(&snapshot)?))
}

pub(super) async fn list(daemon: Daemon, name: Name) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    let snapshots = call(daemon, move |a| a.list_snapshots(&name)).await??;
    Ok(found(SnapshotList { snapshots }))
}

pub(super) async fn history(daemon: Daemon, name: Name) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    Ok(found(call(daemon, move |a| a.history(&name)).await??))
}

pub(super) async fn take(daemon: Daemon, name: Name, body: Body) -> Result<Response, Failure> {
    let name = parse_name(name)?;
    let request: TakeSnapshot = parse_body(body)?;
    let info = call(daemon, move |a| a.take_snapshot(&name, request)).await??;
    tracing::info!(volume = %info.volume, snapshot = %info.name, state = ?info.state, "snapshot");
    Ok((StatusCode::CREATED, Json(info)).into_response())
}

pub(super) async fn take_group(daemon: Daemon, body: Body) -> Result<Response, Failure> {
    let request: TakeSnapshotGroup = parse_body(body)?;
    let name = request.name.clone();
    let snapshots = call(daemon, move |a| a.take_snapshot_group(request)).await??;
    tracing::info!(snapshot = %name, volumes = snapshots.len(), "group of snapshots");
    let list = SnapshotList { snapshots };
    Ok((StatusCode::CREATED, Json(list)).into_response())
}

pub(super) async fn show(daemon: Daemon, names: Names) -> Result<Response, Failure> {
    let (volume, snapshot) = parse_names(names)?;
    let of = volume.clone();
    let all = call(daemon, move |a| a.list_snapshots(&of)).await??;
    match all.into_iter().find(|info| info.name == snapshot) {
        Some(info) => Ok(found(info)),
        None => {
            let text = format!("there is no snapshot {volume}@{snapshot}");
            Err(Failure::new(ErrorCode::NotFound, text))
        }
    }
}

/// Up to the last committed cut.
pub(super) async fn changes(daemon: Daemon, names: Names) -> Result<Response, Failure> {
    let (volume, from) = parse_names(names)?;
    Ok(found(
        call(daemon, move |a| a.changes(&volume, &from, None)).await??,
    ))
}

/// Up to another snapshot.
pub(super) async fn changes_to(daemon: Daemon, names: ThreeNames) -> Result<Response, Failure> {
    let Path((volume, from, to)) =
        names.map_err(|e| Failure::new(ErrorCode::Invalid, e.body_text()))?;
    let (volume, from) = (VolumeName::parse(&volume)?, SnapshotName::parse(&from)?);
    let to = SnapshotName::parse(&to)?;
    Ok(found(
        call(daemon, move |a| a.changes(&volume, &from, Some(&to))).await??,
    ))
}

pub(super) async fn clone(daemon: Daemon, names: Names, body: Body) -> Result<Response, Failure> {
    let Path((volume, image)) =
        names.map_err(|e| Failure::new(ErrorCode::Invalid, e.body_text()))?;
    let (volume, image): (_, ImageName) = (VolumeName::parse(&volume)?, image.parse()?);
    let CloneSnapshot { name } = parse_body(body)?;
    let (of, named) = (volume.clone(), image.clone());
    let info = call(daemon, move |a| a.clone_image(&of, &named, name)).await??;
    tracing::info!(%volume, %image, clone = %info.name, "image cloned");
    Ok((StatusCode::CREATED, Json(info)).into_response())
}

pub(super) async fn roll_back(daemon: Daemon, name: Name, body: Body) -> Result<Response, Failure> {
    let volume = parse_name(name)?;
    let RollBack { snapshot } = parse_body(body)?;
    let to = snapshot.clone();
    let info = call(daemon, move |a| a.roll_back(&volume, &to)).await??;
    let generation = info.generation;
    tracing::warn!(volume = %info.name, to = %snapshot, generation, "volume rolled back");
    Ok(found(info))
}

pub(super) async fn delete(daemon: Daemon, names: Names) -> Result<StatusCode, Failure> {
    let (volume, snapshot) = parse_names(names)?;
    let (of, named) = (volume.clone(), snapshot.clone());
    call(daemon, move |a| a.delete_snapshot(&of, &named)).await??;
    tracing::info!(%volume, %snapshot, "snapshot deleted");
    Ok(StatusCode::NO_CONTENT)
}
