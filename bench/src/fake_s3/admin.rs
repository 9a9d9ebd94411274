//! The admin endpoint: faults, statistics, log and objects as JSON.

use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};
use serde::Serialize;

use super::World;
use super::body::{Cut, ReplyBody, receive};
use super::call::query_of;
use super::faults::{Rule, RuleCounts, Script};
use super::reply::Reply;
use super::serve::http_of;
use super::store::Listed;

#[derive(Serialize)]
struct FaultsNow {
    #[serde(flatten)]
    script: Script,
    /// Of every rule, in their order.
    counts: Vec<RuleCounts>,
}

#[derive(Serialize)]
struct ObjectsNow {
    objects: Vec<Listed>,
    open_uploads: Vec<String>,
}

/// Serves one request to the admin endpoint.
pub(crate) async fn serve(
    world: &World,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Cut> {
    let (parts, incoming) = request.into_parts();
    let body = receive(incoming, &[], &world.prepared)
        .await?
        .unwrap_or_default();
    let query = parts.uri.query().unwrap_or_default();
    let reply = match (parts.method.as_str(), parts.uri.path()) {
        ("GET", "/-/faults") => Reply::json(&faults_now(world)),
        ("PUT", "/-/faults") => match serde_json::from_slice::<Script>(&body) {
            Ok(script) => {
                world.faults.set(script);
                Reply::json(&faults_now(world))
            }
            Err(error) => refused(&error.to_string()),
        },
        ("POST", "/-/faults") => match serde_json::from_slice::<Rule>(&body) {
            Ok(rule) => {
                world.faults.add(rule);
                Reply::json(&faults_now(world))
            }
            Err(error) => refused(&error.to_string()),
        },
        ("DELETE", "/-/faults") => {
            world.faults.clear();
            Reply::json(&faults_now(world))
        }
        ("GET", "/-/stats") => Reply::json(&world.stats.stats()),
        ("DELETE", "/-/stats") => {
            world.stats.reset();
            Reply::json(&world.stats.stats())
        }
        ("GET", "/-/log") => Reply::json(&world.stats.log()),
        ("GET", "/-/objects") => Reply::json(&objects_now(world, query)),
        _ => {
            let mut reply = refused("no such thing: see the documentation of taipan-bench fake-s3");
            reply.status = StatusCode::NOT_FOUND;
            reply
        }
    };
    Ok(http_of(&reply, None))
}

fn faults_now(world: &World) -> FaultsNow {
    FaultsNow {
        script: world.faults.script(),
        counts: world.faults.counts(),
    }
}

fn objects_now(world: &World, query: &str) -> ObjectsNow {
    let query = query_of(query).unwrap_or_default();
    let prefix = query.iter().find(|(name, _)| name == "prefix");
    let prefix = prefix.map_or("", |(_, value)| value.as_str());
    let store = world.store();
    ObjectsNow {
        objects: store.listed(prefix),
        open_uploads: store.open_uploads(),
    }
}

fn refused(message: &str) -> Reply {
    let mut reply = Reply::json(&serde_json::json!({ "error": message }));
    reply.status = StatusCode::BAD_REQUEST;
    reply
}
