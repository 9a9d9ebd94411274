//! One request from its head to its reply, with what the faults make of it.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use hyper::body::Incoming;
use hyper::{Request, Response, StatusCode};

use super::World;
use super::admin;
use super::body::{Cut, ReplyBody, receive};
use super::call::{Call, Verb};
use super::faults::{Action, Down, Plan};
use super::object_calls::apply;
use super::reply::{Refusal, Reply};
use super::stats::Ticket;
use super::store::Object;

/// Serves one request; an error cuts the connection.
pub(crate) async fn serve(
    world: Arc<World>,
    request: Request<Incoming>,
) -> Result<Response<ReplyBody>, Cut> {
    if request.uri().path().starts_with("/-/") {
        return admin::serve(&world, request).await;
    }
    let (parts, incoming) = request.into_parts();
    let call = match Call::parse(&parts, &world.config) {
        Ok(call) => call,
        Err(refusal) => {
            // Read to the end, so that the client sees the refusal and not a broken pipe.
            drop(receive(incoming, &[], &world.prepared).await?);
            let headless = parts.method == hyper::Method::HEAD;
            return Ok(http_of(&refusal.reply("", headless), None));
        }
    };
    let subject = match call.verb {
        Verb::List => call.parameter("prefix").unwrap_or_default().to_owned(),
        _ => call.key.clone(),
    };
    let ticket = world
        .stats
        .begin(call.verb, &subject, call.range.as_deref());
    cut_while_silent(&world).await?;
    let plan = world
        .faults
        .plan(call.verb, &subject, call.conditions.any());
    if plan.action == Some(Action::CutBefore) {
        return Err(Cut);
    }
    let received = receive(incoming, &plan.limits, &world.prepared).await?;
    ticket.received(received.as_ref().map_or(0, Bytes::len));
    let delay = plan.delay + world.config.delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    let reply = match received {
        Ok(body) => answer(&world, &call, body, &plan).await,
        Err(refusal) => Err(refusal),
    };
    if plan.action == Some(Action::CutAfter) {
        return Err(Cut);
    }
    let headless = matches!(call.verb, Verb::Head | Verb::HeadBucket);
    let reply = reply.unwrap_or_else(|refusal| refusal.reply(&call.key, headless));
    Ok(faulty_http_of(reply, plan, ticket))
}

/// Never answers while the server plays dead in silence.
async fn cut_while_silent(world: &World) -> Result<(), Cut> {
    let mut down = world.faults.watch_down();
    if *down.borrow() != Some(Down::Silent) {
        return Ok(());
    }
    // The sender lives as long as the world.
    let _ = down.wait_for(|down| *down != Some(Down::Silent)).await;
    Err(Cut)
}

/// Carries the call out with the fault that falls between it and its effect.
async fn answer(
    world: &Arc<World>,
    call: &Call,
    body: Bytes,
    plan: &Plan,
) -> Result<Reply, Refusal> {
    match &plan.action {
        Some(Action::SlowDown) => return Err(Refusal::slow_down()),
        Some(Action::TooManyRequests) => return Err(Refusal::too_many_requests()),
        Some(Action::ErrorBefore) => return Err(Refusal::internal_error()),
        Some(Action::AccessDenied) => return Err(Refusal::access_denied()),
        Some(Action::Conflict) => return Err(Refusal::conflict()),
        Some(Action::FalsePreconditionFailed) => return Err(Refusal::precondition_failed()),
        Some(Action::Rival { body }) => {
            let rival = Object::of(body.clone().into());
            world.store().put(&call.key, rival);
        }
        Some(Action::Hang { ms }) => {
            let (world, call) = (Arc::clone(world), call.clone());
            let time = std::time::Duration::from_millis(*ms);
            // A task of its own: it goes on when the client, and with it this future, is gone.
            let task = tokio::spawn(async move {
                tokio::time::sleep(time).await;
                apply(&world, &call, body, None)
            });
            return task
                .await
                .unwrap_or_else(|_| Err(Refusal::internal_error()));
        }
        _ => {}
    }
    let past = plan.action.as_ref().and_then(Action::past);
    let reply = apply(world, call, body, past)?;
    match plan.action {
        Some(Action::ErrorAfter) => Err(Refusal::internal_error()),
        _ => Ok(reply),
    }
}

/// The reply as HTTP, with the faults that hit bodies.
fn faulty_http_of(mut reply: Reply, plan: Plan, ticket: Ticket<'_>) -> Response<ReplyBody> {
    let hit = reply.status.is_success();
    let mut kept = None;
    match plan.action {
        Some(Action::Flip { bit }) if hit && !reply.body.is_empty() => {
            let bit = bit.unwrap_or(plan.dice) as usize % (reply.body.len() * 8);
            let mut body = BytesMut::from(&reply.body[..]);
            body[bit / 8] ^= 1 << (bit % 8);
            reply.body = body.freeze();
        }
        Some(Action::Truncate { bytes }) if hit => {
            kept = Some(bytes.unwrap_or(reply.body.len() / 2).min(reply.body.len()));
        }
        _ => {}
    }
    ticket.answered(reply.status.as_u16(), kept.unwrap_or(reply.body.len()));
    let response = http_of(&reply, kept);
    response.map(|body| body.limited(plan.limits))
}

/// The reply as HTTP; with `kept` the connection is cut after so many bytes of the body.
pub(crate) fn http_of(reply: &Reply, kept: Option<usize>) -> Response<ReplyBody> {
    let mut response = Response::builder()
        .status(reply.status)
        .header("server", "taipan-fake-s3")
        .header("x-amz-request-id", "FAKE");
    for (name, value) in &reply.headers {
        response = response.header(name.as_str(), value.as_str());
    }
    if reply.status != StatusCode::NO_CONTENT && reply.status != StatusCode::NOT_MODIFIED {
        let length = reply.told_length.unwrap_or(reply.body.len());
        response = response.header("content-length", length);
    }
    let mut body = ReplyBody::whole(reply.body.clone());
    if let Some(kept) = kept {
        body = body.cut_after(kept);
    }
    // Metadata came out of a valid header and goes back into one.
    response.body(body).unwrap_or_else(|_| {
        let mut broken = Response::new(ReplyBody::whole(Bytes::new()));
        *broken.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        broken
    })
}
